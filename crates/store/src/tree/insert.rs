//! Inserting: the path moves to the running generation, then full nodes split upwards.

use super::forest::{Forest, Inner, Path};
use super::limits::HEIGHT_MAX;
use super::node::{Node, child_bytes};
use super::{Miss, NodeRef, Root, TreeId};
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

impl Inner {
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
            Ok(place) if node.overwrite(place, value) => return Ok(()),
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
