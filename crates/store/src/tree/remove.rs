//! Removing: empty leaves are unlinked, nodes that have little left join a neighbour that is in the
//! cache anyway. Neither ever waits for a read: a delete is never worse than the lookup before it.

use super::forest::{Forest, Inner, Path, Place};
use super::limits::EMPTIES_MAX;
use super::node::payload;
use super::{Miss, Root, TreeId};

impl Forest {
    /// Removes `key`; gives whether it was there. All or nothing; after a touch of the key in an open
    /// epoch it misses only for space.
    ///
    /// # Errors
    /// [`Miss`].
    pub fn delete(&self, tree: TreeId, key: &[u8]) -> Result<bool, Miss> {
        self.0.inner.borrow_mut().delete(tree, key)
    }
}

impl Inner {
    pub(super) fn delete(&mut self, tree: TreeId, key: &[u8]) -> Result<bool, Miss> {
        let path = self.descend(tree, key)?;
        let Some(leaf) = path.last().copied() else { return Ok(false) };
        let Ok(place) = self.cache.node(leaf.at).search(key) else { return Ok(false) };
        self.check_space()?;
        self.own_path(tree, &path);
        let node = self.cache.node_mut(leaf.at);
        node.remove(place);
        if node.count() > 0 {
            self.merge_up(tree, path);
        } else if !self.unlink(tree, path) {
            self.cache.stats.empties_kept += 1;
            if self.empties.len() < EMPTIES_MAX {
                self.empties.push((tree, key.to_vec()));
            }
        }
        Ok(true)
    }

    /// Removes from a leaf of the running generation; false when its neighbours must be looked at, since little is left of it.
    pub(super) fn remove_from(&mut self, leaf: usize, near: usize, key: &[u8]) -> bool {
        let quarter = payload(self.node_size) / 4;
        let Ok(place) = self.cache.node(leaf).search_near(near, key) else { return true };
        let node = self.cache.node_mut(leaf);
        let stays = node.used() >= quarter + node.room_of(place);
        if stays {
            node.remove(place);
        }
        stays
    }

    /// Takes an empty leaf and the ancestors that have only it out of an owned path. A leaf that an open
    /// transaction touched may only go when the leaf that inherits its range is in the cache too, and
    /// takes its protection over: else it stays, and the answer is false.
    fn unlink(&mut self, tree: TreeId, mut path: Path) -> bool {
        let Some(above) = path.iter().rposition(|p| self.cache.node(p.at).count() > 1) else {
            for place in path {
                self.drop_node(place.at);
            }
            self.roots[tree.index()] = Root::default();
            return true;
        };
        let leaf = path.last().expect("a path ends in a leaf").at;
        if self.cache.is_pinned(leaf) {
            let Some(heirs) = self.heirs(tree, &path[above]) else { return false };
            let touched = self.cache.touched(leaf);
            for place in heirs {
                self.cache.raise_touched(place.at, touched);
            }
        }
        for place in path.drain(above + 1..) {
            self.drop_node(place.at);
        }
        self.cache.node_mut(path[above].at).unlink_child(path[above].index);
        self.merge_up(tree, path);
        true
    }

    /// The path below `parent` that inherits the range of its child, if all of it is cached.
    fn heirs(&self, tree: TreeId, parent: &Place) -> Option<Path> {
        let from_left = parent.index > 0;
        let index = if from_left { parent.index - 1 } else { 1 };
        let mut path = Path::new();
        path.push(Place { at: parent.at, index });
        let choose = |node: &super::node::Node| if from_left { node.count() - 1 } else { 0 };
        self.extend(tree, &mut path, choose).ok()?;
        Some(path)
    }

    /// Joins the last node of an owned path with a sibling if it has little left, then looks at its parent.
    fn merge_up(&mut self, tree: TreeId, mut path: Path) {
        while let [.., parent, place] = path.as_slice() {
            let (parent, place) = (*parent, *place);
            if !self.merge(tree, &parent, &place) {
                break;
            }
            path.pop();
        }
        self.collapse_root(tree);
    }

    fn merge(&mut self, tree: TreeId, parent: &Place, place: &Place) -> bool {
        let quarter = payload(self.node_size) / 4;
        let small = self.cache.node(place.at).used() < quarter;
        if !small {
            return false;
        }
        let count = self.cache.node(parent.at).count();
        let sides = [parent.index.checked_sub(1), (parent.index + 1 < count).then_some(parent.index)];
        for left_index in sides.into_iter().flatten() {
            let node = self.cache.node(parent.at);
            // In a damaged tree another node may lie under a child's block, or one under both.
            let child = |index: usize| self.find(tree, node.child(index), node.level - 1);
            let (Ok(left), Ok(right)) = (child(left_index), child(left_index + 1)) else { continue };
            if left == right {
                continue;
            }
            let separator = node.key(left_index + 1).to_vec();
            let together = self.cache.node(left).used() + self.cache.node(right).used() + separator.len();
            // Not quite full, so that the next insert does not split it again.
            if together <= 3 * quarter {
                self.join(parent.at, left_index, left, right, &separator);
                return true;
            }
        }
        false
    }

    fn join(&mut self, parent: usize, left_index: usize, left: usize, right: usize, separator: &[u8]) {
        if let Some(moved) = self.own(left) {
            self.cache.node_mut(parent).set_child(left_index, moved);
        }
        let gone = self.cache.node(right).clone();
        self.cache.node_mut(left).append(&gone, separator);
        let touched = self.cache.touched(right);
        self.cache.raise_touched(left, touched);
        self.drop_node(right);
        self.cache.node_mut(parent).unlink_child(left_index + 1);
        self.cache.stats.merges += 1;
    }

    /// A root with one child is one level too many.
    fn collapse_root(&mut self, tree: TreeId) {
        loop {
            let root = self.roots[tree.index()];
            if root.height <= 1 {
                return;
            }
            let Ok(at) = self.find(tree, root.node, root.height - 1) else { return };
            let node = self.cache.node(at);
            if node.count() > 1 {
                return;
            }
            let child = node.child(0);
            self.drop_node(at);
            self.roots[tree.index()] = Root { node: child, height: root.height - 1 };
        }
    }

    /// Unlinks leaves that could not be unlinked when they became empty.
    pub fn tidy(&mut self) {
        for (tree, key) in std::mem::take(&mut self.empties) {
            let Ok(path) = self.descend(tree, &key) else { continue };
            let Some(leaf) = path.last() else { continue };
            if self.cache.node(leaf.at).count() > 0 {
                continue;
            }
            // Not out of the blocks that admission counts on.
            let kept = self.space.free() < self.space.blocks() / 4 || {
                self.own_path(tree, &path);
                !self.unlink(tree, path)
            };
            if kept {
                self.empties.push((tree, key));
            }
        }
    }
}
