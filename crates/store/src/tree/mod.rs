//! The trees under the store: four B+-trees over one cache and one space of node blocks.
//!
//! Operations are synchronous over cached nodes. A node that is not there is a [`Miss`]: the caller
//! awaits [`Forest::load`] and tries again, so there are no latches. Nodes are never changed on disk:
//! the first change in a generation moves a node to a new block, and with it the path to the root
//! (I5). A checkpoint freezes a generation and writes it while the next one goes on.

pub mod limits;

mod cache;
mod forest;
mod index;
mod insert;
mod metaspace;
mod node;
pub(crate) mod persist;
mod raw;
mod read;
mod remove;
mod verify;
mod walk;

#[cfg(test)]
mod tests;

pub use cache::CacheStats;
pub(crate) use cache::{BlockMap, Hint};
pub use forest::{EpochGuard, Forest};
pub(crate) use insert::Put;
pub use limits::TreeLimits;
pub use persist::{Frozen, Roots};
pub(crate) use persist::{marked_nodes, marked_runs};
pub(crate) use raw::{RawNode, raw_node};
pub use read::KeyValue;
pub(crate) use verify::verify_watched;
pub use verify::{Fault, FaultKind, TreeReport, Verified, verify};
pub(crate) use walk::{Cursor, Lost, OnRead, Row, Source, Step, entry_max};

use cobalt_base::Corrupt;
use cobalt_bdev::IoError;

/// The parsers, for a fuzzer.
#[cfg(feature = "proof")]
pub(crate) mod parse {
    use super::node::{Expect, Node};
    use super::{NodeRef, TreeId, forest, metaspace};
    use uuid::Uuid;

    /// A node that its referrer expects at this place of a tree; its entries are then used as a store uses them.
    pub fn node(
        bytes: &[u8],
        target: Uuid,
        node: NodeRef,
        tree: TreeId,
        level: u32,
        node_blocks: u64,
    ) -> bool {
        let expect = Expect { seed: forest::seed_of(target), tree, level, node, node_blocks };
        let Ok(node) = Node::parse(bytes, &expect) else { return false };
        for i in 0..node.count() {
            let key = node.key(i);
            assert!(
                node.search(key) == Ok(i) && node.value(i).len() < bytes.len(),
                "an entry is found by its key"
            );
            if !node.is_leaf() {
                assert!(
                    node.child(i).block < node_blocks && node.child_index(key) == i,
                    "a child is in its place"
                );
            }
        }
        true
    }

    /// A bitmap of node blocks.
    pub fn bitmap(blocks: u64, bytes: &[u8]) -> bool {
        metaspace::Metaspace::from_bytes(blocks, bytes).is_some()
    }
}

/// Which tree. The number is written into every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TreeId {
    /// Fid → attributes.
    Cob = 0,
    /// (Cob, offset) → extent and checksums.
    Extmap = 1,
    /// Free extents of the data region.
    Balloc = 2,
    /// (Catalogue, key) → value.
    Ctg = 3,
}

impl TreeId {
    /// All trees, in the order of the superblock's roots.
    pub const ALL: [TreeId; 4] = [TreeId::Cob, TreeId::Extmap, TreeId::Balloc, TreeId::Ctg];

    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            TreeId::Cob => "cob",
            TreeId::Extmap => "extmap",
            TreeId::Balloc => "balloc",
            TreeId::Ctg => "ctg",
        }
    }
}

impl std::fmt::Display for TreeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A pointer to a node, with all that is needed to recognise it (I5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeRef {
    /// Node block.
    pub block: u64,
    /// Generation that wrote it.
    pub generation: u64,
    /// Its checksum; 0 while it is not yet written.
    pub checksum: u64,
}

/// A tree's root. Height 0 is the empty tree, which has no node; 1 is a single leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// The top node.
    pub node: NodeRef,
    /// Levels.
    pub height: u32,
}

/// Why an operation cannot go on now: a node is not in the cache, or no node block is free. Nothing
/// was changed. [`Forest::load`] brings the node, or says that the region is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss(pub(crate) Want);

impl Miss {
    /// Whether free node blocks are missing, and not a node: a load cannot help, a checkpoint may.
    pub fn is_space(&self) -> bool {
        self.0 == Want::Space
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// A node, expected at a level (leaves are 0) of a tree.
    Node { tree: TreeId, node: NodeRef, level: u32 },
    /// Free node blocks.
    Space,
    /// A leaf whose keys belong before, or behind, those that lead to it: damage.
    Order { block: u64 },
}

/// What can go wrong on a meta region.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// The device failed: the target fails (I10).
    #[error("{what} failed")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The device's answer.
        source: IoError,
    },
    /// Bytes that are not what their referrer says.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// No node block is free until the next checkpoint, or at all.
    #[error("the meta region has no free node blocks; a checkpoint or deletes may free some")]
    Full,
}

impl MetaError {
    pub(crate) fn io(what: &'static str) -> impl Fn(IoError) -> MetaError {
        move |source| MetaError::Io { what, source }
    }
}
