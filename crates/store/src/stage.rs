//! Changes of one group on top of the trees: what the group's transactions are judged against, and what
//! is put into the trees once the group is durable.
//!
//! Judging and applying are one thing: a transaction runs once, over the trees and everything before it
//! in the group, when it takes its lsn. Redo runs the same code.

use crate::tree::{Forest, Miss, TreeId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

type Changes = BTreeMap<(TreeRank, Vec<u8>), Option<Vec<u8>>>;

/// A tree's place in the order in which changes are put in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct TreeRank(u8);

fn rank(tree: TreeId) -> TreeRank {
    TreeRank(match tree {
        TreeId::Cob => 0,
        TreeId::Extmap => 1,
        TreeId::Balloc => 2,
        TreeId::Ctg => 3,
    })
}

fn tree_of(rank: TreeRank) -> TreeId {
    match rank.0 {
        0 => TreeId::Cob,
        1 => TreeId::Extmap,
        2 => TreeId::Balloc,
        _ => TreeId::Ctg,
    }
}

/// The trees with pending changes on top.
pub(crate) struct Stage {
    forest: Rc<Forest>,
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    changes: Changes,
    /// What each change since the savepoint replaced, newest last.
    undo: Vec<((TreeRank, Vec<u8>), Option<Option<Vec<u8>>>)>,
}

impl Stage {
    pub(crate) fn new(forest: Rc<Forest>) -> Stage {
        Stage { forest, inner: RefCell::default() }
    }

    pub(crate) fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Vec<u8>>, Miss> {
        if let Some(change) = self.inner.borrow().changes.get(&(rank(tree), key.to_vec())) {
            return Ok(change.clone());
        }
        self.forest.get(tree, key)
    }

    /// The first entry with a key at or after `from`.
    pub(crate) fn next(&self, tree: TreeId, from: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, Miss> {
        let mut from = from.to_vec();
        loop {
            let below = self.forest.next(tree, &from)?;
            let inner = self.inner.borrow();
            let range = (Bound::Included((rank(tree), from.clone())), Bound::Unbounded);
            let change = inner.changes.range(range).next().filter(|((r, _), _)| *r == rank(tree));
            match (below, change) {
                (below, None) => return Ok(below),
                (Some(below), Some(((_, key), _))) if below.0 < *key => return Ok(Some(below)),
                (_, Some(((_, key), Some(value)))) => return Ok(Some((key.clone(), value.clone()))),
                (_, Some(((_, key), None))) => {
                    from.clone_from(key);
                    from.push(0);
                }
            }
        }
    }

    /// The last entry with a key at or before `from`, among keys as long as `from`.
    pub(crate) fn prev(&self, tree: TreeId, from: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, Miss> {
        let mut from = from.to_vec();
        loop {
            let below = self.forest.prev(tree, &from)?;
            let inner = self.inner.borrow();
            let range = (Bound::Unbounded, Bound::Included((rank(tree), from.clone())));
            let change = inner.changes.range(range).next_back().filter(|((r, _), _)| *r == rank(tree));
            match (below, change) {
                (below, None) => return Ok(below),
                (Some(below), Some(((_, key), _))) if below.0 > *key => return Ok(Some(below)),
                (_, Some(((_, key), Some(value)))) => return Ok(Some((key.clone(), value.clone()))),
                (_, Some(((_, key), None))) => match predecessor(key) {
                    Some(before) => from = before,
                    None => return Ok(None),
                },
            }
        }
    }

    pub(crate) fn put(&self, tree: TreeId, key: Vec<u8>, value: Vec<u8>) {
        self.change(tree, key, Some(value));
    }

    pub(crate) fn delete(&self, tree: TreeId, key: Vec<u8>) {
        self.change(tree, key, None);
    }

    fn change(&self, tree: TreeId, key: Vec<u8>, value: Option<Vec<u8>>) {
        let mut inner = self.inner.borrow_mut();
        let key = (rank(tree), key);
        let old = inner.changes.insert(key.clone(), value);
        inner.undo.push((key, old));
    }

    /// What changed since the last savepoint stays.
    pub(crate) fn savepoint(&self) {
        self.inner.borrow_mut().undo.clear();
    }

    /// Takes back what changed since the last savepoint.
    pub(crate) fn rollback(&self) {
        let mut inner = self.inner.borrow_mut();
        while let Some((key, old)) = inner.undo.pop() {
            match old {
                Some(old) => inner.changes.insert(key, old),
                None => inner.changes.remove(&key),
            };
        }
    }

    /// Changes on the stage.
    pub(crate) fn len(&self) -> usize {
        self.inner.borrow().changes.len()
    }

    /// Makes sure that every change finds its path in memory.
    pub(crate) fn touch(&self) -> Result<(), Miss> {
        for (rank, key) in self.inner.borrow().changes.keys() {
            self.forest.touch(tree_of(*rank), key)?;
        }
        Ok(())
    }

    /// The same for what changed since the last savepoint: the epoch of the group holds the rest.
    pub(crate) fn touch_new(&self) -> Result<(), Miss> {
        for ((rank, key), _) in &self.inner.borrow().undo {
            self.forest.touch(tree_of(*rank), key)?;
        }
        Ok(())
    }

    /// Puts the changes into the trees. A change that is in is taken off the stage, so that a miss, which
    /// only a lost pin can cause, continues where it stopped.
    pub(crate) fn mutate(&self) -> Result<(), Miss> {
        loop {
            let mut inner = self.inner.borrow_mut();
            let Some(entry) = inner.changes.first_entry() else { return Ok(()) };
            let tree = tree_of(entry.key().0);
            match entry.get() {
                Some(value) => self.forest.put(tree, &entry.key().1, value)?,
                None => drop(self.forest.delete(tree, &entry.key().1)?),
            }
            entry.remove();
        }
    }
}

/// The largest key of the same length before this one.
fn predecessor(key: &[u8]) -> Option<Vec<u8>> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        if *byte > 0 {
            *byte -= 1;
            return Some(key);
        }
        *byte = 0xff;
    }
    None
}
