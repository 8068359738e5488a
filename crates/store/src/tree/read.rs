//! Reading: a lookup goes down once; a scan walks from leaf to leaf over the path that it came by.

use super::cache::Hint;
use super::forest::{Forest, Inner, Path};
use super::insert::TOGETHER;
use super::node::Node;
use super::{Miss, NodeRef, TreeId, Want};
use smallvec::SmallVec;
use std::cmp::Ordering;

/// A key and its value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// Where the search for a leaf went last: keys that follow each other mostly share the node above their leaves.
#[derive(Default)]
pub(super) struct Finger<'a>(Option<Above<'a>>);

/// A node above leaves, and a range of keys that it holds.
struct Above<'a> {
    tree: TreeId,
    node: &'a Node,
    from: &'a [u8],
    until: Option<&'a [u8]>,
}

impl<'a> Finger<'a> {
    fn node(&self, tree: TreeId, key: &[u8]) -> Option<&'a Node> {
        let above = self.0.as_ref()?;
        let holds = above.tree == tree && key >= above.from && above.until.is_none_or(|until| key < until);
        holds.then_some(above.node)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Forest {
    /// The value of `key`.
    ///
    /// # Errors
    /// [`Miss`].
    pub fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Vec<u8>>, Miss> {
        self.get_with(tree, key, <[u8]>::to_vec)
    }

    /// What `read` makes of the value of `key`, where it lies.
    ///
    /// # Errors
    /// [`Miss`].
    pub fn get_with<R>(
        &self,
        tree: TreeId,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, Miss> {
        self.get_hinted(tree, key, read).map(|(value, _)| value)
    }

    /// The same; gives the leaf that holds the key, too, unless the tree is empty.
    ///
    /// # Errors
    /// [`Miss`].
    pub(crate) fn get_hinted<R>(
        &self,
        tree: TreeId,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<(Option<R>, Option<Hint>), Miss> {
        let inner = self.0.inner.borrow();
        let root = inner.roots[tree.index()];
        let (mut next, mut level) = (root.node, root.height);
        while level > 0 {
            level -= 1;
            let at = inner.find(tree, next, level)?;
            let node = inner.cache.node(at);
            if level == 0 {
                let found = node.search(key);
                let (Ok(place) | Err(place)) = found;
                return Ok((found.ok().map(|i| read(node.value(i))), Some(inner.cache.hint(at, place))));
            }
            next = node.child(node.child_index(key));
        }
        Ok((None, None))
    }

    /// The same; the way there comes under the protection of the open epochs. It is not gone when the leaf is known, by a hint
    /// that need not be true.
    ///
    /// # Errors
    /// [`Miss`].
    pub(crate) fn get_held<R>(
        &self,
        tree: TreeId,
        key: &[u8],
        near: Option<Hint>,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<(Option<R>, Option<Hint>), Miss> {
        let inner = &mut *self.0.inner.borrow_mut();
        let Some((at, found)) = inner.hold(tree, key, near)? else { return Ok((None, None)) };
        let (Ok(place) | Err(place)) = found;
        let value = found.ok().map(|i| read(inner.cache.node(at).value(i)));
        Ok((value, Some(inner.cache.hint(at, place))))
    }

    /// The first entry with a key of at least `from`.
    ///
    /// # Errors
    /// [`Miss`].
    pub fn next(&self, tree: TreeId, from: &[u8]) -> Result<Option<KeyValue>, Miss> {
        let inner = self.0.inner.borrow();
        Ok(inner.seek(tree, from, Way::Up)?.map(|path| inner.entry(&path)))
    }

    /// The last entry with a key of at most `from`.
    ///
    /// # Errors
    /// [`Miss`].
    pub fn prev(&self, tree: TreeId, from: &[u8]) -> Result<Option<KeyValue>, Miss> {
        self.prev_with(tree, from, |key, value| (key.to_vec(), value.to_vec()))
    }

    /// What `read` makes of the last entry with a key of at most `from`, where it lies.
    ///
    /// # Errors
    /// [`Miss`].
    pub(crate) fn prev_with<R>(
        &self,
        tree: TreeId,
        from: &[u8],
        read: impl FnOnce(&[u8], &[u8]) -> R,
    ) -> Result<Option<R>, Miss> {
        let inner = self.0.inner.borrow();
        Ok(inner.seek(tree, from, Way::Down)?.map(|path| inner.read(&path, read)))
    }

    /// The same; the way to `from` comes under the protection of the open epochs. Gives the leaf that holds `from`, too,
    /// unless the tree is empty.
    ///
    /// # Errors
    /// [`Miss`].
    pub(crate) fn prev_held<R>(
        &self,
        tree: TreeId,
        from: &[u8],
        read: impl FnOnce(&[u8], &[u8]) -> R,
    ) -> Result<(Option<R>, Option<Hint>), Miss> {
        let inner = &mut *self.0.inner.borrow_mut();
        let Some(leaf) = inner.touch_above(tree, from)? else { return Ok((None, None)) };
        let at = inner.find(tree, leaf, 0)?;
        inner.cache.touch(at);
        let node = inner.cache.node(at);
        let behind = node.search(from).map_or_else(|i| i, |i| i + 1);
        let leaf = Some(inner.cache.hint(at, behind));
        if let Some(i) = behind.checked_sub(1) {
            return Ok((Some(read(node.key(i), node.value(i))), leaf));
        }
        Ok((inner.seek(tree, from, Way::Down)?.map(|path| inner.read(&path, read)), leaf))
    }

    /// Shows the last entry at or before `from`, and every one behind that up to `until`, with its leaf if that is the one that holds
    /// `from`: the way to it comes under the protection of the open epochs, the leaf is given. `near` need not be true.
    ///
    /// # Errors
    /// [`Miss`].
    pub(crate) fn around_held(
        &self,
        tree: TreeId,
        from: &[u8],
        until: &[u8],
        near: Option<Hint>,
        mut show: impl FnMut(&[u8], &[u8], Option<Hint>),
    ) -> Result<Option<Hint>, Miss> {
        let inner = &mut *self.0.inner.borrow_mut();
        let Some((at, found)) = inner.hold(tree, from, near)? else { return Ok(None) };
        let behind = found.map_or_else(|place| place, |place| place + 1);
        let node = inner.cache.node(at);
        let leaf = |place| Some(inner.cache.hint(at, place));
        match behind.checked_sub(1) {
            Some(place) => show(node.key(place), node.value(place), leaf(place)),
            None => {
                if let Some(path) = inner.seek(tree, from, Way::Down)? {
                    inner.read(&path, |key, value| show(key, value, None));
                }
            }
        }
        for place in behind..node.count() {
            if node.key(place) > until {
                return Ok(leaf(behind));
            }
            show(node.key(place), node.value(place), leaf(place));
        }
        // The leaf has ended, and what follows may lie in the next one.
        let last = node.count().checked_sub(1).filter(|last| *last >= behind);
        let mut past = last.map_or(from, |last| node.key(last)).to_vec();
        past.push(0);
        let mut path = inner.seek(tree, &past, Way::Up)?;
        while let Some(mut place) = path {
            let key = inner.read(&place, |key, value| {
                let shown = key <= until;
                if shown {
                    show(key, value, None);
                }
                shown.then(|| key.to_vec())
            });
            let Some(key) = key else { break };
            if let Some(leaf) = place.last_mut() {
                leaf.index += 1;
            }
            path = inner.settle(tree, place, Way::Up, &key)?;
        }
        Ok(leaf(behind))
    }

    /// Whether a key lies between the first and the last one of a leaf, which then holds it.
    pub(crate) fn spans(&self, leaf: Hint, key: &[u8]) -> bool {
        let inner = self.0.inner.borrow();
        let Some(at) = inner.cache.whole(leaf) else { return false };
        let node = inner.cache.node(at);
        let last = node.count().checked_sub(1);
        last.is_some_and(|last| node.key(0) <= key && key <= node.key(last))
    }

    /// Entries from `from` to before `until`, in order, until one of the limits is met; at least one if
    /// any is there. All leaves on the way must be in the cache at once: keep `bytes_max` well below its size.
    ///
    /// # Errors
    /// [`Miss`]; the retry begins anew.
    pub fn scan(
        &self,
        tree: TreeId,
        from: &[u8],
        until: Option<&[u8]>,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<KeyValue>, Miss> {
        let inner = self.0.inner.borrow();
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut path = inner.seek(tree, from, Way::Up)?;
        while let Some(mut place) = path {
            let entry = inner.entry(&place);
            bytes += entry.0.len() + entry.1.len();
            let past = until.is_some_and(|until| entry.0.as_slice() >= until);
            let full = entries.len() >= entries_max || (bytes > bytes_max && !entries.is_empty());
            if past || full {
                break;
            }
            entries.push(entry);
            if entries.len() == entries_max {
                break;
            }
            if let Some(leaf) = place.last_mut() {
                leaf.index += 1;
            }
            let last = entries.last().map_or(from, |(key, _)| key.as_slice());
            path = inner.settle(tree, place, Way::Up, last)?;
        }
        Ok(entries)
    }

    /// Puts the path to `key` under the protection of the open epochs.
    ///
    /// # Errors
    /// [`Miss`].
    pub fn touch(&self, tree: TreeId, key: &[u8]) -> Result<(), Miss> {
        self.touch_hinted(tree, key).map(drop)
    }

    /// The same; gives the leaf that holds the key, unless the tree is empty.
    ///
    /// # Errors
    /// [`Miss`].
    pub(crate) fn touch_hinted(&self, tree: TreeId, key: &[u8]) -> Result<Option<Hint>, Miss> {
        let inner = &mut *self.0.inner.borrow_mut();
        let root = inner.roots[tree.index()];
        let (mut next, mut level) = (root.node, root.height);
        while level > 0 {
            level -= 1;
            let at = inner.find(tree, next, level)?;
            inner.cache.touch(at);
            if level == 0 {
                return Ok(Some(inner.cache.hint(at, usize::MAX)));
            }
            let node = inner.cache.node(at);
            next = node.child(node.child_index(key));
        }
        Ok(None)
    }

    /// As [`Forest::touch`], for many keys; gives what is missed, at most `most` of them.
    pub(crate) fn touch_all<'a>(
        &self,
        keys: impl Iterator<Item = (TreeId, &'a [u8])>,
        most: usize,
    ) -> Vec<Miss> {
        let inner = &mut *self.0.inner.borrow_mut();
        let (mut missed, mut keys) = (Vec::new(), keys);
        while missed.len() < most {
            let batch: SmallVec<[_; TOGETHER]> = keys.by_ref().take(TOGETHER).collect();
            if batch.is_empty() {
                break;
            }
            // First the ways to all leaves, then all leaves: they are far apart in memory.
            let leaves: SmallVec<[_; TOGETHER]> =
                batch.iter().map(|(tree, key)| (*tree, inner.touch_above(*tree, key))).collect();
            for (tree, leaf) in leaves {
                let touched = leaf.and_then(|leaf| match leaf {
                    Some(leaf) => inner.find(tree, leaf, 0).map(Some),
                    None => Ok(None),
                });
                match touched {
                    Ok(Some(at)) => inner.cache.touch(at),
                    Ok(None) => {}
                    Err(miss) if missed.contains(&miss) => {}
                    Err(miss) => missed.push(miss),
                }
            }
        }
        missed
    }

    /// As [`Forest::touch`], for what `next(tree, from)` reads, and the path to `from` itself.
    ///
    /// # Errors
    /// [`Miss`].
    pub fn touch_next(&self, tree: TreeId, from: &[u8]) -> Result<(), Miss> {
        self.touch_way(tree, from, Way::Up)
    }

    /// As [`Forest::touch`], for what `prev(tree, from)` reads, and the path to `from` itself.
    ///
    /// # Errors
    /// [`Miss`].
    pub fn touch_prev(&self, tree: TreeId, from: &[u8]) -> Result<(), Miss> {
        self.touch_way(tree, from, Way::Down)
    }

    fn touch_way(&self, tree: TreeId, from: &[u8], way: Way) -> Result<(), Miss> {
        let inner = &mut *self.0.inner.borrow_mut();
        let own = inner.descend(tree, from)?;
        let found = inner.seek(tree, from, way)?;
        inner.protect(&own);
        if let Some(path) = found {
            inner.protect(&path);
        }
        Ok(())
    }
}

impl Inner {
    /// Touches the way to the leaf of `key`, and gives the pointer to that; none in an empty tree.
    fn touch_above(&mut self, tree: TreeId, key: &[u8]) -> Result<Option<NodeRef>, Miss> {
        let root = self.roots[tree.index()];
        let mut next = root.node;
        for level in (1..root.height).rev() {
            let at = self.find(tree, next, level)?;
            self.cache.touch(at);
            let node = self.cache.node(at);
            next = node.child(node.child_index(key));
        }
        Ok((root.height > 0).then_some(next))
    }

    /// The leaf of `key`, and where in it; the way there comes under the protection of the open epochs. Nothing in an empty tree.
    fn hold(
        &mut self,
        tree: TreeId,
        key: &[u8],
        near: Option<Hint>,
    ) -> Result<Option<(usize, Result<usize, usize>)>, Miss> {
        let (at, found) = match near.and_then(|hint| self.cache.known(tree, hint, key)) {
            Some(known) => known,
            None => {
                let Some(leaf) = self.touch_above(tree, key)? else { return Ok(None) };
                let at = self.find(tree, leaf, 0)?;
                (at, self.cache.node(at).search(key))
            }
        };
        self.cache.touch(at);
        Ok(Some((at, found)))
    }

    /// The pointer to the leaf of `key`; none in an empty tree. Leaves the finger on the node above it.
    pub fn leaf_near<'a>(
        &'a self,
        finger: &mut Finger<'a>,
        tree: TreeId,
        key: &'a [u8],
    ) -> Result<Option<NodeRef>, Miss> {
        if let Some(above) = finger.node(tree, key) {
            return Ok(Some(above.child(above.child_index(key))));
        }
        let root = self.roots[tree.index()];
        let (mut next, mut until) = (root.node, None);
        for level in (1..root.height).rev() {
            let node = self.cache.node(self.find(tree, next, level)?);
            let index = node.child_index(key);
            if level > 1 && index + 1 < node.count() {
                until = Some(node.key(index + 1));
            } else if level == 1 {
                *finger = Finger(Some(Above { tree, node, from: key, until }));
            }
            next = node.child(index);
        }
        Ok((root.height > 0).then_some(next))
    }

    fn protect(&mut self, path: &Path) {
        for place in path {
            self.cache.touch(place.at);
        }
    }

    /// The path to the first entry at or above `from`, or to the last at or below it.
    fn seek(&self, tree: TreeId, from: &[u8], way: Way) -> Result<Option<Path>, Miss> {
        let mut path = self.descend(tree, from)?;
        let Some(leaf) = path.last_mut() else { return Ok(None) };
        leaf.index = match (self.cache.node(leaf.at).search(from), way) {
            (Ok(i), _) | (Err(i), Way::Up) => i,
            (Err(i), Way::Down) => i.wrapping_sub(1),
        };
        self.settle(tree, path, way, from)
    }

    /// Moves a path whose leaf index is outside of the leaf on to the next leaf that has entries. They lie on the other side of
    /// `past`, or the leaf is damaged: who goes from key to key would go in a circle.
    fn settle(&self, tree: TreeId, mut path: Path, way: Way, past: &[u8]) -> Result<Option<Path>, Miss> {
        let mut moved = false;
        loop {
            if let Some(leaf) = path.last() {
                let node = self.cache.node(leaf.at);
                if leaf.index < node.count() {
                    let side = if way == Way::Up { Ordering::Less } else { Ordering::Greater };
                    if moved && node.key(leaf.index).cmp(past) == side {
                        return Err(Miss(Want::Order { block: node.block }));
                    }
                    return Ok(Some(path));
                }
            }
            moved = true;
            path.pop();
            loop {
                let Some(place) = path.last_mut() else { return Ok(None) };
                let index = match way {
                    Way::Up => place.index + 1,
                    Way::Down => place.index.wrapping_sub(1),
                };
                if index < self.cache.node(place.at).count() {
                    place.index = index;
                    break;
                }
                path.pop();
            }
            match way {
                Way::Up => self.extend(tree, &mut path, |_| 0)?,
                Way::Down => self.extend(tree, &mut path, |node| node.count() - 1)?,
            }
            if way == Way::Down
                && let Some(leaf) = path.last_mut()
            {
                leaf.index = self.cache.node(leaf.at).count().wrapping_sub(1);
            }
        }
    }

    fn entry(&self, path: &Path) -> KeyValue {
        self.read(path, |key, value| (key.to_vec(), value.to_vec()))
    }

    /// Reads the entry that a path leads to.
    fn read<R>(&self, path: &Path, read: impl FnOnce(&[u8], &[u8]) -> R) -> R {
        let leaf = path.last().expect("a settled path ends in a leaf");
        let node = self.cache.node(leaf.at);
        read(node.key(leaf.index), node.value(leaf.index))
    }
}
