//! Proof that a checkpoint's trees are whole: every node is read from the device and held against its
//! referrer, and what the trees reach is exactly what the bitmap marks. Memory: one path and one bit a block.

use super::forest::{read_node, seed_of};
use super::limits::FINDINGS_MAX;
use super::metaspace::Metaspace;
use super::node::{Expect, Node};
use super::{MetaError, NodeRef, TreeId, persist};
use crate::geometry::Region;
use crate::superblock::Superblock;
use cobalt_base::Corrupt;
use cobalt_dma::Arena;

/// What was counted in one tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeReport {
    /// Levels.
    pub height: u32,
    /// Nodes that are whole.
    pub nodes: u64,
    /// Entries in their leaves.
    pub entries: u64,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// By tree, in the order of [`TreeId::ALL`].
    pub trees: [TreeReport; 4],
    /// What is wrong, up to [`FINDINGS_MAX`].
    pub findings: Vec<Corrupt>,
    /// Findings beyond that.
    pub findings_more: u64,
}

/// Reads all trees of `superblock` and gives every entry to `visit`, in order.
///
/// # Errors
/// [`MetaError::Io`] only: damage goes into the findings, and what is below a damaged node is skipped.
pub async fn verify(
    meta: &Region,
    arena: &Arena,
    superblock: &Superblock,
    visit: impl FnMut(TreeId, &[u8], &[u8]),
) -> Result<Verified, MetaError> {
    let mut found = Verified::default();
    let marked = match persist::read_bitmap(meta, arena, superblock).await {
        Ok(space) => Some(space),
        Err(MetaError::Corrupt(corrupt)) => {
            found.add(corrupt);
            None
        }
        Err(error) => return Err(error),
    };
    let reached = Metaspace::new(superblock.geometry.node_blocks);
    let mut walk = Walk { meta, arena, superblock, reached, found, visit };
    for tree in TreeId::ALL {
        walk.tree(tree).await?;
    }
    let Walk { reached, mut found, .. } = walk;
    let whole = found.findings.is_empty();
    for block in 0..superblock.geometry.node_blocks {
        let (used, mark) = (reached.is_live(block), marked.as_ref().is_some_and(|m| m.is_live(block)));
        let at = superblock.geometry.node_at(block);
        if used && !mark && marked.is_some() {
            found.add(Corrupt::new("node bitmap", at, "a tree refers to a block that is marked free"));
        } else if mark && !used && whole {
            found.add(Corrupt::new("node bitmap", at, "no tree refers to a block that is marked used"));
        }
    }
    Ok(found)
}

impl Verified {
    fn add(&mut self, corrupt: Corrupt) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(corrupt);
        } else {
            self.findings_more += 1;
        }
    }
}

struct Walk<'a, V> {
    meta: &'a Region,
    arena: &'a Arena,
    superblock: &'a Superblock,
    reached: Metaspace,
    found: Verified,
    visit: V,
}

/// A node on the current path, the child that comes next, and the range of keys that its parent gives it.
struct Level {
    node: Node,
    next: usize,
    low: Vec<u8>,
    high: Option<Vec<u8>>,
}

impl Level {
    fn child_range(&self, i: usize) -> (Vec<u8>, Option<Vec<u8>>) {
        let low = if i == 0 { self.low.clone() } else { self.node.key(i).to_vec() };
        let high =
            if i + 1 < self.node.count() { Some(self.node.key(i + 1).to_vec()) } else { self.high.clone() };
        (low, high)
    }

    /// Keys lie in the range; the node itself has checked their order.
    fn in_range(&self) -> bool {
        let first = if self.node.is_leaf() { 0 } else { 1 };
        let count = self.node.count();
        first >= count
            || (self.node.key(first) >= self.low.as_slice()
                && self.high.as_ref().is_none_or(|high| self.node.key(count - 1) < high.as_slice()))
    }
}

impl<V: FnMut(TreeId, &[u8], &[u8])> Walk<'_, V> {
    async fn tree(&mut self, tree: TreeId) -> Result<(), MetaError> {
        let root = self.superblock.roots[tree.index()];
        self.found.trees[tree.index()].height = root.height;
        if root.height == 0 {
            return Ok(());
        }
        let mut path: Vec<Level> = Vec::new();
        let first = self.enter(tree, root.node, root.height - 1, (Vec::new(), None)).await?;
        path.extend(first);
        while let Some(level) = path.last_mut() {
            if level.node.is_leaf() || level.next >= level.node.count() {
                path.pop();
                continue;
            }
            let (child, range) = (level.node.child(level.next), level.child_range(level.next));
            level.next += 1;
            let below = level.node.level - 1;
            let entered = self.enter(tree, child, below, range).await?;
            path.extend(entered);
        }
        Ok(())
    }

    /// Reads and judges one node; `None` if it is damaged.
    async fn enter(
        &mut self,
        tree: TreeId,
        node: NodeRef,
        level: u32,
        (low, high): (Vec<u8>, Option<Vec<u8>>),
    ) -> Result<Option<Level>, MetaError> {
        let geometry = &self.superblock.geometry;
        let at = geometry.node_at(node.block);
        if self.reached.is_live(node.block) {
            self.found.add(Corrupt::new("btree node", at, "two pointers lead to it"));
            return Ok(None);
        }
        self.reached.mark(node.block);
        let seed = seed_of(self.superblock.target);
        let expect = Expect { seed, tree, level, node, node_blocks: geometry.node_blocks };
        let node = match read_node(self.meta, self.arena, geometry, &expect).await {
            Ok(node) => node,
            Err(MetaError::Corrupt(corrupt)) => {
                self.found.add(corrupt);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let entered = Level { node, next: 0, low, high };
        if !entered.in_range() {
            self.found.add(Corrupt::new("btree node", at, "its keys are outside of its parent's range"));
        }
        let report = &mut self.found.trees[tree.index()];
        report.nodes += 1;
        if entered.node.is_leaf() {
            report.entries += entered.node.count() as u64;
            for i in 0..entered.node.count() {
                (self.visit)(tree, entered.node.key(i), entered.node.value(i));
            }
        }
        Ok(Some(entered))
    }
}
