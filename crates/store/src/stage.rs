//! Changes of one group on top of the trees: what the group's transactions are judged against, and what
//! is put into the trees once the group is durable.
//!
//! Judging and applying are one thing: a transaction runs once, over the trees and everything before it
//! in the group, when it takes its lsn. Redo runs the same code.

use crate::limits::LOADS_MAX;
use crate::tree::{Forest, MetaError, Miss, TreeId};
use cobalt_base::SessionId;
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

/// A tree's place in the order in which changes are put in, then the key in that tree.
#[derive(PartialEq, Eq)]
struct Key {
    /// The first bytes of `full`, zero-filled: nearly always enough to tell two keys apart.
    head: u128,
    /// Most keys fit in it.
    full: SmallVec<[u8; 48]>,
}

impl Key {
    fn new(tree: TreeId, key: &[u8]) -> Key {
        Key::of(tree, &[], key)
    }

    /// The key that begins with `start` and goes on with `rest`.
    fn of(tree: TreeId, start: &[u8], rest: &[u8]) -> Key {
        let mut full = SmallVec::with_capacity(1 + start.len() + rest.len());
        // The order of `TreeId::ALL`.
        full.push(tree as u8);
        full.extend_from_slice(start);
        full.extend_from_slice(rest);
        let mut head = [0; 16];
        let len = full.len().min(head.len());
        head[..len].copy_from_slice(&full[..len]);
        Key { head: u128::from_be_bytes(head), full }
    }

    /// The tree and the key in it.
    fn place(&self) -> (TreeId, &[u8]) {
        let (rank, key) = self.full.split_first().expect("a key on the stage begins with its tree");
        (TreeId::ALL[usize::from(*rank)], key)
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        self.head.cmp(&other.head).then_with(|| self.full.as_slice().cmp(other.full.as_slice()))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A value's place among the values of the stage; `None` is a delete.
type Change = Option<(usize, usize)>;

/// The trees with pending changes on top.
pub(crate) struct Stage {
    forest: Rc<Forest>,
    inner: RefCell<Inner>,
    /// A session that nothing before fences.
    unfenced: Cell<Option<SessionId>>,
}

#[derive(Default)]
struct Inner {
    changes: BTreeMap<Key, Change>,
    values: Vec<u8>,
    /// What each change since the savepoint replaced, newest last.
    undo: Vec<Undo>,
    /// Bytes of `values` at the savepoint.
    kept: usize,
    /// What the forest had lost of that which was to stay, when the first change was touched.
    lost: Option<u64>,
}

/// A change since the savepoint.
struct Undo {
    tree: TreeId,
    /// Its key, among the values.
    key: (usize, usize),
    /// What it replaced.
    old: Option<Change>,
}

impl Inner {
    fn value(&self, (from, until): (usize, usize)) -> &[u8] {
        &self.values[from..until]
    }
}

impl Stage {
    pub(crate) fn new(forest: Rc<Forest>) -> Stage {
        Stage { forest, inner: RefCell::default(), unfenced: Cell::new(None) }
    }

    /// Whether it is known that a session is not fenced.
    pub(crate) fn is_unfenced(&self, session: SessionId) -> bool {
        self.unfenced.get() == Some(session)
    }

    /// What is known of that from now on.
    pub(crate) fn set_unfenced(&self, session: Option<SessionId>) {
        self.unfenced.set(session);
    }

    pub(crate) fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Vec<u8>>, Miss> {
        self.get_with(tree, key, <[u8]>::to_vec)
    }

    /// What `read` makes of the value of `key`, where it lies.
    pub(crate) fn get_with<R>(
        &self,
        tree: TreeId,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, Miss> {
        let inner = self.inner.borrow();
        if !inner.changes.is_empty()
            && let Some(change) = inner.changes.get(&Key::new(tree, key))
        {
            return Ok(change.map(|place| read(inner.value(place))));
        }
        self.forest.get_with(tree, key, read)
    }

    /// The first entry with a key at or after `from`.
    pub(crate) fn next(&self, tree: TreeId, from: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, Miss> {
        if self.inner.borrow().changes.is_empty() {
            return self.forest.next(tree, from);
        }
        let mut from = from.to_vec();
        loop {
            let below = self.forest.next(tree, &from)?;
            let inner = self.inner.borrow();
            let range = (Bound::Included(Key::new(tree, &from)), Bound::Unbounded);
            let change = inner.changes.range(range).next().map(|(full, change)| (full.place(), change));
            match (below, change.filter(|((t, _), _)| *t == tree)) {
                (below, None) => return Ok(below),
                (Some(below), Some(((_, key), _))) if below.0.as_slice() < key => return Ok(Some(below)),
                (_, Some(((_, key), Some(place)))) => {
                    return Ok(Some((key.to_vec(), inner.value(*place).to_vec())));
                }
                (_, Some(((_, key), None))) => {
                    from.clear();
                    from.extend_from_slice(key);
                    from.push(0);
                }
            }
        }
    }

    /// The last entry with a key at or before `from`, among keys as long as `from`.
    pub(crate) fn prev(&self, tree: TreeId, from: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, Miss> {
        if self.inner.borrow().changes.is_empty() {
            return self.forest.prev(tree, from);
        }
        let mut from = from.to_vec();
        loop {
            let below = self.forest.prev(tree, &from)?;
            let inner = self.inner.borrow();
            let range = (Bound::Unbounded, Bound::Included(Key::new(tree, &from)));
            let change = inner.changes.range(range).next_back().map(|(full, change)| (full.place(), change));
            match (below, change.filter(|((t, _), _)| *t == tree)) {
                (below, None) => return Ok(below),
                (Some(below), Some(((_, key), _))) if below.0.as_slice() > key => return Ok(Some(below)),
                (_, Some(((_, key), Some(place)))) => {
                    return Ok(Some((key.to_vec(), inner.value(*place).to_vec())));
                }
                (_, Some(((_, key), None))) => match predecessor(key) {
                    Some(before) => from = before,
                    None => return Ok(None),
                },
            }
        }
    }

    pub(crate) fn put(&self, tree: TreeId, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.change(tree, &[], key.as_ref(), Some(value.as_ref()));
    }

    pub(crate) fn delete(&self, tree: TreeId, key: impl AsRef<[u8]>) {
        self.change(tree, &[], key.as_ref(), None);
    }

    /// Puts or deletes (`None`) the key that begins with `start` and goes on with `rest`.
    pub(crate) fn change(&self, tree: TreeId, start: &[u8], rest: &[u8], value: Option<&[u8]>) {
        let inner = &mut *self.inner.borrow_mut();
        let values = &mut inner.values;
        let mut keep = |parts: [&[u8]; 2]| {
            let from = values.len();
            parts.into_iter().for_each(|part| values.extend_from_slice(part));
            (from, values.len())
        };
        let key = keep([start, rest]);
        let place = value.map(|value| keep([value, &[]]));
        let old = inner.changes.insert(Key::of(tree, start, rest), place);
        inner.undo.push(Undo { tree, key, old });
    }

    /// What changed since the last savepoint stays.
    pub(crate) fn savepoint(&self) {
        let inner = &mut *self.inner.borrow_mut();
        inner.undo.clear();
        inner.kept = inner.values.len();
    }

    /// Takes back what changed since the last savepoint.
    pub(crate) fn rollback(&self) {
        let inner = &mut *self.inner.borrow_mut();
        while let Some(Undo { tree, key, old }) = inner.undo.pop() {
            let key = Key::new(tree, inner.value(key));
            match old {
                Some(old) => inner.changes.insert(key, old),
                None => inner.changes.remove(&key),
            };
        }
        inner.values.truncate(inner.kept);
    }

    /// Changes on the stage.
    pub(crate) fn len(&self) -> usize {
        self.inner.borrow().changes.len()
    }

    /// Makes sure that every change finds its path in memory. They were touched before, within an epoch that is
    /// still open: only when something got lost all the same, each is looked up again.
    pub(crate) fn touch(&self) -> Result<(), Miss> {
        let inner = &mut *self.inner.borrow_mut();
        let lost = self.forest.lost();
        if inner.lost == Some(lost) {
            return Ok(());
        }
        for full in inner.changes.keys() {
            let (tree, key) = full.place();
            self.forest.touch(tree, key)?;
        }
        inner.lost = Some(lost);
        Ok(())
    }

    /// The same for what changed since the last savepoint: the epoch of the group holds the rest.
    pub(crate) fn touch_new(&self) -> Result<(), Miss> {
        self.missed(1).first().copied().map_or(Ok(()), Err)
    }

    /// The same; brings what is not there.
    pub(crate) async fn bring_new(&self) -> Result<(), MetaError> {
        loop {
            let missed = self.missed(LOADS_MAX);
            if missed.is_empty() {
                return Ok(());
            }
            self.forest.load_all(missed).await?;
        }
    }

    /// Nodes that what changed since the last savepoint needs and that are not there.
    fn missed(&self, most: usize) -> Vec<Miss> {
        let inner = &mut *self.inner.borrow_mut();
        inner.lost.get_or_insert_with(|| self.forest.lost());
        self.forest.touch_all(inner.undo.iter().map(|undo| (undo.tree, inner.value(undo.key))), most)
    }

    /// Puts the changes into the trees. A change that is in is taken off the stage, so that a miss, which
    /// only a lost pin can cause, continues where it stopped.
    pub(crate) fn mutate(&self) -> Result<(), Miss> {
        let inner = &mut *self.inner.borrow_mut();
        let changes = std::mem::take(&mut inner.changes);
        let each = changes.iter().map(|(full, change)| {
            let (tree, key) = full.place();
            (tree, key, change.map(|place| inner.value(place)))
        });
        if let Err((done, miss)) = self.forest.apply(each) {
            inner.changes = changes.into_iter().skip(done).collect();
            inner.lost = None;
            return Err(miss);
        }
        Ok(())
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
