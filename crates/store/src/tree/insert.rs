//! Inserting: the path moves to the running generation, then full nodes split upwards.

use super::cache::Hint;
use super::forest::{Forest, Inner, Path};
use super::limits::HEIGHT_MAX;
use super::node::{Node, child_bytes};
use super::read::Finger;
use super::{Miss, NodeRef, Root, TreeId};
use smallvec::SmallVec;
use std::borrow::Cow;

impl Forest {
    /// Inserts or replaces. All or nothing; after a touch of the key in an open epoch it misses only for space.
    ///
    /// # Errors
    /// [`Miss`].
    ///
    /// # Panics
    /// When the key or the entry is longer than [`Forest::key_max`] or [`Forest::entry_max`]: the
    /// caller's limits are below those.
    pub fn put(&self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<(), Miss> {
        assert!(key.len() <= self.key_max(), "a key of {} bytes is above the limit", key.len());
        assert!(
            key.len() + value.len() <= self.entry_max(),
            "an entry of {} bytes is above the limit",
            key.len() + value.len()
        );
        self.0.inner.borrow_mut().put(tree, key, value)
    }
}

/// A change of a tree, and the leaf that it goes to, if that was found before.
pub(crate) struct Put<'a> {
    pub tree: TreeId,
    pub key: &'a [u8],
    /// `None` is a delete.
    pub value: Option<&'a [u8]>,
    pub leaf: Option<Hint>,
}

/// Keys whose leaves are looked for at one time: what they wait for in memory, they wait for together.
pub(super) const TOGETHER: usize = 32;

impl Forest {
    /// Puts and deletes (`None`) in the order of their keys. What was changed is not changed back: gives how many were.
    ///
    /// # Errors
    /// [`Miss`] of the change that follows those.
    ///
    /// # Panics
    /// As [`Forest::put`].
    pub(crate) fn apply<'a>(&self, changes: impl Iterator<Item = Put<'a>>) -> Result<(), (usize, Miss)> {
        let (key_max, entry_max) = (self.key_max(), self.entry_max());
        let inner = &mut *self.0.inner.borrow_mut();
        let (mut done, mut changes) = (0, changes);
        loop {
            let batch: SmallVec<[_; TOGETHER]> = changes.by_ref().take(TOGETHER).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let hints = inner.leaves(&batch);
            for (Put { tree, key, value, .. }, hint) in batch.into_iter().zip(hints) {
                let len = key.len() + value.map_or(0, <[u8]>::len);
                assert!(
                    key.len() <= key_max && len <= entry_max,
                    "an entry of {len} bytes is above the limit"
                );
                inner.change(tree, key, value, hint).map_err(|miss| (done, miss))?;
                done += 1;
            }
        }
    }
}

impl Inner {
    /// The leaf of each key, and everything of it that a change reads, on its way to the processor.
    fn leaves(&self, batch: &[Put<'_>]) -> SmallVec<[Option<Hint>; TOGETHER]> {
        let mut finger = Finger::default();
        let found: SmallVec<[Option<Hint>; TOGETHER]> = batch
            .iter()
            .map(|put| {
                if put.leaf.is_some_and(|leaf| self.cache.still(leaf).is_some()) {
                    return put.leaf;
                }
                // What is there under the block may be another tree's, in a damaged one.
                let leaf = self.leaf_near(&mut finger, put.tree, put.key).ok()??;
                Some(self.cache.hint(self.find(put.tree, leaf, 0).ok()?, usize::MAX))
            })
            .collect();
        let warm = found.iter().zip(batch).map(|(leaf, put)| {
            // What was read when it was judged is near.
            let cold = leaf.filter(|_| put.leaf.is_none()).and_then(|leaf| self.cache.still(leaf));
            cold.map_or(0, |at| self.cache.node(at).warm(put.key))
        });
        std::hint::black_box(warm.fold(0, |all, one| all ^ one));
        found
    }

    /// Changes a leaf where it is, if the hint still holds and nothing but the leaf changes by it; else from the root down.
    fn change(
        &mut self,
        tree: TreeId,
        key: &[u8],
        value: Option<&[u8]>,
        hint: Option<Hint>,
    ) -> Result<(), Miss> {
        let leaf = hint.and_then(|hint| Some((self.cache.still(hint)?, hint.place)));
        match (leaf, value) {
            (Some((leaf, near)), Some(value)) if self.put_into(leaf, near, key, value) => Ok(()),
            (Some((leaf, near)), None) if self.remove_from(leaf, near, key) => Ok(()),
            (_, Some(value)) => self.put(tree, key, value),
            (_, None) => self.delete(tree, key).map(drop),
        }
    }

    /// Puts into a leaf of the running generation; whether it had room.
    fn put_into(&mut self, leaf: usize, near: usize, key: &[u8], value: &[u8]) -> bool {
        let node = self.cache.node_mut(leaf);
        match node.search_near(near, key) {
            Ok(place) => node.replace(place, key, value),
            Err(place) => {
                let fits = node.fits(key, value);
                if fits {
                    node.insert(place, key, value);
                }
                fits
            }
        }
    }

    fn put(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<(), Miss> {
        let path = self.descend(tree, key)?;
        self.check_space()?;
        self.own_path(tree, &path);
        let Some(leaf) = path.last() else {
            let mut node = Node::new(self.node_size, tree, 0);
            node.insert(0, key, value);
            // An open transaction may have touched the empty tree: its key's path begins here.
            let touched = self.cache.epoch_now();
            self.roots[tree.index()] = Root { node: self.add(node, touched), height: 1 };
            return Ok(());
        };
        let node = self.cache.node_mut(leaf.at);
        let place = match node.search(key) {
            Ok(place) if node.replace(place, key, value) => return Ok(()),
            Ok(place) => {
                node.remove(place);
                place
            }
            Err(place) => place,
        };
        self.insert_at(tree, &path, place, key, value);
        Ok(())
    }

    /// Inserts into the leaf of an owned path; what a split gives goes into the parent.
    fn insert_at(&mut self, tree: TreeId, path: &Path, place: usize, key: &[u8], value: &[u8]) {
        let (mut index, mut key, mut value) = (place, Cow::Borrowed(key), Cow::Borrowed(value));
        for depth in (0..path.len()).rev() {
            let at = path[depth].at;
            let node = self.cache.node_mut(at);
            if node.fits(&key, &value) {
                node.insert(index, &key, &value);
                return;
            }
            let (separator, right) = self.split(at, index, &key, &value);
            index = depth.checked_sub(1).map_or(0, |above| path[above].index + 1);
            key = Cow::Owned(separator);
            value = Cow::Owned(child_bytes(right).to_vec());
        }
        let root = self.roots[tree.index()];
        assert!(root.height < HEIGHT_MAX, "a tree of this height has more nodes than a region has blocks");
        let mut node = Node::new(self.node_size, tree, root.height);
        node.insert(0, b"", &child_bytes(NodeRef { checksum: 0, ..root.node }));
        node.insert(1, &key, &value);
        let touched = self.cache.touched(path[0].at);
        self.roots[tree.index()] = Root { node: self.add(node, touched), height: root.height + 1 };
    }

    /// Splits a node around an entry that does not fit; gives the right half and the key that leads to it.
    fn split(&mut self, at: usize, index: usize, key: &[u8], value: &[u8]) -> (Vec<u8>, NodeRef) {
        let touched = self.cache.touched(at);
        let left = self.cache.node_mut(at);
        let point = left.split_point(index, key, value);
        let mut right;
        if index < point {
            right = left.split_off(point - 1);
            left.insert(index, key, value);
        } else {
            right = left.split_off(point);
            right.insert(index - point, key, value);
        }
        let separator = if left.is_leaf() {
            shortest_between(left.key(left.count() - 1), right.key(0))
        } else {
            right.take_first_key()
        };
        self.cache.stats.splits += 1;
        self.cache.set_shaped(at);
        (separator, self.add(right, touched))
    }
}

/// The shortest key that is above `low` and not above `high`.
fn shortest_between(low: &[u8], high: &[u8]) -> Vec<u8> {
    let same = low.iter().zip(high).take_while(|(a, b)| a == b).count();
    high[..same + 1].to_vec()
}

#[cfg(test)]
mod tests {
    use super::shortest_between;

    #[test]
    fn separators_are_short_and_separate() {
        for (low, high, expected) in
            [("abc", "abd", "abd"), ("abc", "b", "b"), ("ab", "abcd", "abc"), ("", "zz", "z")]
        {
            let key = shortest_between(low.as_bytes(), high.as_bytes());
            assert_eq!(key, expected.as_bytes());
            assert!(low.as_bytes() < key.as_slice() && key.as_slice() <= high.as_bytes());
        }
    }
}
