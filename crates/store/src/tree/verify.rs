//! Proof that a checkpoint's trees are whole: every node is read from the device and held against its
//! referrer, and what the trees reach is exactly what the bitmap marks. Memory: one path and two bits a block.

use super::limits::FINDINGS_MAX;
use super::metaspace::Metaspace;
use super::walk::{Level, Lost, OnRead, Source, lost};
use super::{MetaError, NodeRef, TreeId, persist};
use crate::geometry::Region;
use crate::superblock::Superblock;
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

/// A rule of the trees that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A node is not what its referrer says.
    Node,
    /// The device does not give a node.
    Unreadable,
    /// Two pointers lead to one node.
    Shared,
    /// A node's keys are outside of its parent's range.
    Range,
    /// The bitmap is damaged, cannot be read, or does not match the trees.
    Bitmap,
}

/// Something that is wrong with the trees of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    /// Byte of the meta region.
    pub address: u64,
    /// The node block, if it is about one.
    pub block: Option<u64>,
    pub expected: String,
    pub found: String,
    /// The tree and the keys, from and before, that are out of reach for it.
    pub lost: Option<(TreeId, Vec<u8>, Option<Vec<u8>>)>,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// By tree, in the order of [`TreeId::ALL`].
    pub trees: [TreeReport; 4],
    /// What is wrong, up to [`FINDINGS_MAX`].
    pub findings: Vec<Fault>,
    /// Findings beyond that.
    pub findings_more: u64,
    /// Whether the bitmap cannot be trusted, so that nothing may be changed by it, in memory neither.
    pub bitmap_bad: bool,
}

/// Reads all trees of `superblock` and gives every entry to `visit`, in order. Damage and read errors go into the findings,
/// and what is below a damaged node is skipped.
pub async fn verify(
    meta: &Region,
    arena: &Arena,
    superblock: &Superblock,
    visit: impl FnMut(TreeId, &[u8], &[u8]),
) -> Verified {
    verify_watched(meta, arena, superblock, None, visit).await
}

/// As [`verify`]; tells `on_read` of each node.
pub(crate) async fn verify_watched(
    meta: &Region,
    arena: &Arena,
    superblock: &Superblock,
    on_read: Option<OnRead>,
    visit: impl FnMut(TreeId, &[u8], &[u8]),
) -> Verified {
    let mut found = Verified::default();
    let start = superblock.geometry.bitmap_at(superblock.bitmap.area);
    let marked = match persist::read_bitmap(meta, arena, superblock).await {
        Ok(space) => Some(space),
        Err(error) => {
            let why = match error {
                MetaError::Corrupt(corrupt) => corrupt.why,
                MetaError::Io { source, .. } => source.to_string(),
                full @ MetaError::Full => full.to_string(),
            };
            let expected = format!(
                "a bitmap of {} bytes with checksum {:016x}",
                superblock.bitmap.len, superblock.bitmap.checksum
            );
            found.bitmap(start, None, expected, why);
            None
        }
    };
    let mut source = Source::checkpoint(meta, arena, superblock);
    if let Some(on_read) = on_read {
        source = source.watched(on_read);
    }
    let reached = Metaspace::new(superblock.geometry.node_blocks);
    let mut walk = Walk { source: &source, superblock, reached, found, visit };
    for tree in TreeId::ALL {
        walk.tree(tree).await;
    }
    let Walk { reached, mut found, .. } = walk;
    let whole = found.findings.is_empty();
    for block in 0..superblock.geometry.node_blocks {
        let (used, mark) = (reached.is_live(block), marked.as_ref().is_some_and(|m| m.is_live(block)));
        let at = superblock.geometry.node_at(block);
        if used && !mark && marked.is_some() {
            let why = "marked free, and a tree refers to it".to_owned();
            found.bitmap(at, Some(block), format!("node block {block} marked used"), why);
        } else if mark && !used && whole {
            let why = "marked used, and no tree refers to it".to_owned();
            found.bitmap(at, Some(block), format!("node block {block} marked free"), why);
        }
    }
    found
}

impl Verified {
    fn add(&mut self, fault: Fault) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(fault);
        } else {
            self.findings_more += 1;
        }
    }

    fn bitmap(&mut self, address: u64, block: Option<u64>, expected: String, found: String) {
        self.bitmap_bad = true;
        self.add(Fault { kind: FaultKind::Bitmap, address, block, expected, found, lost: None });
    }
}

struct Walk<'a, V> {
    source: &'a Source,
    superblock: &'a Superblock,
    reached: Metaspace,
    found: Verified,
    visit: V,
}

impl<V: FnMut(TreeId, &[u8], &[u8])> Walk<'_, V> {
    async fn tree(&mut self, tree: TreeId) {
        let root = self.superblock.roots[tree.index()];
        self.found.trees[tree.index()].height = root.height;
        if root.height == 0 {
            return;
        }
        let mut path: Vec<Level> = Vec::new();
        let first = self.enter(tree, root.node, root.height - 1, (Vec::new(), None)).await;
        path.extend(first);
        while let Some(level) = path.last_mut() {
            if level.node.is_leaf() || level.next >= level.node.count() {
                path.pop();
                continue;
            }
            let (child, range) = (level.node.child(level.next), level.child_range(level.next));
            level.next += 1;
            let below = level.node.level - 1;
            let entered = self.enter(tree, child, below, range).await;
            path.extend(entered);
        }
    }

    fn fault(&mut self, kind: FaultKind, lost: Lost) {
        let block = lost.node.block;
        let address = self.superblock.geometry.node_at(block);
        let expected = lost.expected();
        let Lost { tree, from, until, why, .. } = lost;
        let lost = Some((tree, from, until));
        self.found.add(Fault { kind, address, block: Some(block), expected, found: why, lost });
    }

    /// Reads and judges one node; `None` if it is damaged.
    async fn enter(
        &mut self,
        tree: TreeId,
        node: NodeRef,
        level: u32,
        range: (Vec<u8>, Option<Vec<u8>>),
    ) -> Option<Level> {
        let said = |why: &str, (from, until): (Vec<u8>, Option<Vec<u8>>)| {
            let why = why.to_owned();
            Lost { tree, node, level, from, until, unreadable: false, why }
        };
        if self.reached.is_live(node.block) {
            self.fault(FaultKind::Shared, said("another pointer leads to it too", range));
            return None;
        }
        self.reached.mark(node.block);
        let (found, on_device) = match self.source.node(tree, node, level).await {
            Ok(found) => found,
            Err(error) => {
                let lost = lost(tree, node, level, range, error);
                let kind = if lost.unreadable { FaultKind::Unreadable } else { FaultKind::Node };
                self.fault(kind, lost);
                return None;
            }
        };
        let entered = Level::new(found, on_device, range);
        if !entered.in_range() {
            let range = (entered.low.clone(), entered.high.clone());
            self.fault(FaultKind::Range, said("its keys are outside of its parent's range", range));
        }
        let report = &mut self.found.trees[tree.index()];
        report.nodes += 1;
        if entered.node.is_leaf() {
            report.entries += entered.node.count() as u64;
            for i in 0..entered.node.count() {
                (self.visit)(tree, entered.node.key(i), entered.node.value(i));
            }
        }
        Some(entered)
    }
}
