//! Walking a tree in key order for whoever examines a target: past what is damaged, and in the memory of one path.
//!
//! Nothing goes through the cache. A walk sees the nodes that redo changed in memory, and the device's where it did not.

use super::forest::{read_node, seed_of};
use super::node::{Expect, Node};
use super::{Forest, MetaError, NodeRef, Root, TreeId, node};
use crate::geometry::{Geometry, Region};
use crate::superblock::Superblock;
use cobalt_dma::Arena;
use std::rc::Rc;

/// Called with the bytes of each node that was read.
pub(crate) type OnRead = Rc<dyn Fn(u64)>;

/// Where nodes come from.
pub(crate) struct Source {
    meta: Region,
    arena: Arena,
    geometry: Geometry,
    seed: u64,
    roots: [Root; 4],
    /// The trees after redo; without it, those of the checkpoint.
    forest: Option<Rc<Forest>>,
    on_read: Option<OnRead>,
}

/// What comes next in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Row(Row),
    Lost(Lost),
}

/// An entry of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// The leaf's block, if that is what the device holds and not a change in memory.
    pub block: Option<u64>,
}

/// A node that cannot be used. Everything in its range of keys is out of reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub tree: TreeId,
    pub node: NodeRef,
    pub level: u32,
    pub from: Vec<u8>,
    pub until: Option<Vec<u8>>,
    /// The device did not give it.
    pub unreadable: bool,
    pub why: String,
}

impl Lost {
    /// What its referrer says of it.
    pub fn expected(&self) -> String {
        let NodeRef { block, generation, checksum } = self.node;
        let (tree, level) = (self.tree, self.level);
        format!(
            "node block {block} of the {tree} tree, level {level}, generation {generation}, checksum {checksum:016x}"
        )
    }

    /// Whether it held keys from `first` to `last`, both included.
    pub fn hits(&self, first: &[u8], last: &[u8]) -> bool {
        self.from.as_slice() <= last && self.until.as_ref().is_none_or(|until| until.as_slice() > first)
    }
}

/// Most bytes of a key and its value in nodes of this size.
pub(crate) fn entry_max(node_size: u32) -> usize {
    node::entry_max(node_size as usize)
}

impl Source {
    /// The trees of a superblock, as they are on the device.
    pub fn checkpoint(meta: &Region, arena: &Arena, superblock: &Superblock) -> Source {
        Source {
            meta: meta.clone(),
            arena: arena.clone(),
            geometry: superblock.geometry,
            seed: seed_of(superblock.target),
            roots: superblock.roots,
            forest: None,
            on_read: None,
        }
    }

    /// The trees as `forest` has them now; it must not change while they are walked.
    pub fn redone(self, forest: Rc<Forest>) -> Source {
        let roots = forest.0.inner.borrow().roots;
        Source { roots, forest: Some(forest), ..self }
    }

    /// Tells `on_read` of each node that is read.
    pub fn watched(self, on_read: OnRead) -> Source {
        Source { on_read: Some(on_read), ..self }
    }

    pub fn root(&self, tree: TreeId) -> Root {
        self.roots[tree.index()]
    }

    /// The node, and whether it is the device's.
    pub(super) async fn node(
        &self,
        tree: TreeId,
        node: NodeRef,
        level: u32,
    ) -> Result<(Rc<Node>, bool), MetaError> {
        if let Some(found) = self.forest.as_ref().and_then(|forest| forest.cached(node.block)) {
            return Ok(found);
        }
        let expect = Expect { seed: self.seed, tree, level, node, node_blocks: self.geometry.node_blocks };
        let read = read_node(&self.meta, &self.arena, &self.geometry, &expect, || None).await;
        if let Some(on_read) = &self.on_read {
            on_read(u64::from(self.geometry.node_size));
        }
        Ok((read?, true))
    }

    /// Entries with keys from `from` to before `until`.
    pub fn cursor(&self, tree: TreeId, from: &[u8], until: Option<&[u8]>) -> Cursor<'_> {
        let root = self.root(tree);
        let path = Vec::new();
        let pending = (root.height > 0).then(|| Pending {
            node: root.node,
            level: root.height - 1,
            low: Vec::new(),
            high: None,
        });
        let left = self.geometry.node_blocks;
        let (from, until) = (from.to_vec(), until.map(<[u8]>::to_vec));
        Cursor { source: self, tree, from, until, path, pending, left }
    }
}

impl Forest {
    /// A node in memory, and whether it is as on the device.
    fn cached(&self, block: u64) -> Option<(Rc<Node>, bool)> {
        let inner = self.0.inner.borrow();
        let at = inner.cache.peek(block)?;
        Some((inner.cache.shared(at), inner.cache.state(at) == super::cache::State::Clean))
    }
}

/// A node on the path, and what of it comes next.
pub(super) struct Level {
    pub node: Rc<Node>,
    pub next: usize,
    pub low: Vec<u8>,
    pub high: Option<Vec<u8>>,
    on_device: bool,
}

impl Level {
    pub fn new(node: Rc<Node>, on_device: bool, (low, high): (Vec<u8>, Option<Vec<u8>>)) -> Level {
        Level { node, next: 0, low, high, on_device }
    }

    /// The range of keys that this node gives its child.
    pub fn child_range(&self, i: usize) -> (Vec<u8>, Option<Vec<u8>>) {
        let low = if i == 0 { self.low.clone() } else { self.node.key(i).to_vec() };
        let high =
            if i + 1 < self.node.count() { Some(self.node.key(i + 1).to_vec()) } else { self.high.clone() };
        (low, high)
    }

    /// Keys lie in the range; the node itself has checked their order.
    pub fn in_range(&self) -> bool {
        let first = if self.node.is_leaf() { 0 } else { 1 };
        let count = self.node.count();
        first >= count
            || (self.node.key(first) >= self.low.as_slice()
                && self.high.as_ref().is_none_or(|high| self.node.key(count - 1) < high.as_slice()))
    }
}

struct Pending {
    node: NodeRef,
    level: u32,
    low: Vec<u8>,
    high: Option<Vec<u8>>,
}

/// A place in a tree. Holds the nodes of one path.
pub(crate) struct Cursor<'a> {
    source: &'a Source,
    tree: TreeId,
    from: Vec<u8>,
    until: Option<Vec<u8>>,
    path: Vec<Level>,
    pending: Option<Pending>,
    /// Nodes that may still be read: more than there are would go in circles.
    left: u64,
}

impl Cursor<'_> {
    /// The next entry, or the next node that is lost; `None` at the end.
    pub async fn next(&mut self) -> Option<Step> {
        loop {
            if self.left == 0 {
                return None;
            }
            if let Some(next) = self.pending.take()
                && let Err(lost) = self.enter(next).await
            {
                return Some(Step::Lost(lost));
            }
            let level = self.path.last_mut()?;
            if level.next >= level.node.count() {
                self.path.pop();
                continue;
            }
            let i = level.next;
            level.next += 1;
            if level.node.is_leaf() {
                let (key, node) = (level.node.key(i), &level.node);
                if self.until.as_ref().is_some_and(|until| key >= until.as_slice()) {
                    self.path.clear();
                    return None;
                }
                let block = level.on_device.then_some(node.block);
                return Some(Step::Row(Row { key: key.to_vec(), value: node.value(i).to_vec(), block }));
            }
            let (low, high) = level.child_range(i);
            if self.until.as_ref().is_some_and(|until| low >= *until) {
                self.path.clear();
                return None;
            }
            let (node, level) = (level.node.child(i), level.node.level - 1);
            self.pending = Some(Pending { node, level, low, high });
        }
    }

    async fn enter(&mut self, next: Pending) -> Result<(), Lost> {
        let Pending { node, level, low, high } = next;
        self.left -= 1;
        match self.source.node(self.tree, node, level).await {
            Ok((found, on_device)) => {
                let mut entered = Level::new(found, on_device, (low, high));
                entered.next = match entered.node.is_leaf() {
                    true => entered.node.search(&self.from).unwrap_or_else(|at| at),
                    false => entered.node.child_index(&self.from),
                };
                self.path.push(entered);
                Ok(())
            }
            Err(error) => Err(lost(self.tree, node, level, (low, high), error)),
        }
    }
}

/// What is said of a node that cannot be used.
pub(super) fn lost(
    tree: TreeId,
    node: NodeRef,
    level: u32,
    (from, until): (Vec<u8>, Option<Vec<u8>>),
    error: MetaError,
) -> Lost {
    let (unreadable, why) = match error {
        MetaError::Corrupt(corrupt) => (false, corrupt.why),
        MetaError::Io { source, .. } => (true, source.to_string()),
        full @ MetaError::Full => (true, full.to_string()),
    };
    Lost { tree, node, level, from, until, unreadable, why }
}
