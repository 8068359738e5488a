//! A node block that nobody vouches for: what it says of itself, and whether it keeps the format's rules.

use super::forest::seed_of;
use super::node::{Expect, Node};
use super::{NodeRef, TreeId};
use uuid::Uuid;

/// Offsets in the header (docs/format.md).
const TREE_AT: usize = 4;
const LEVEL_AT: usize = 5;
const COUNT_AT: usize = 6;
const GENERATION_AT: usize = 16;
const CHECKSUM_AT: usize = 24;

/// A node as it describes itself.
pub(crate) struct RawNode {
    /// `None`: the number is that of no tree.
    pub tree: Option<TreeId>,
    pub level: u8,
    pub count: u16,
    pub generation: u64,
    pub checksum: u64,
    node: Result<Node, String>,
}

/// Reads the bytes of node block `block`.
pub(crate) fn raw_node(target: Uuid, node_blocks: u64, block: u64, bytes: &[u8]) -> RawNode {
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).unwrap_or_default();
        u64::from_le_bytes(bytes)
    };
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let tree = TreeId::ALL.into_iter().find(|tree| *tree as u8 == byte(TREE_AT));
    let (level, count) = (byte(LEVEL_AT), u16::from_le_bytes([byte(COUNT_AT), byte(COUNT_AT + 1)]));
    let (generation, checksum) = (number(GENERATION_AT), number(CHECKSUM_AT));
    let node = match tree {
        Some(tree) => {
            let node = NodeRef { block, generation, checksum };
            let expect = Expect { seed: seed_of(target), tree, level: u32::from(level), node, node_blocks };
            Node::parse(bytes, &expect)
        }
        None => Err(format!("there is no tree {}", byte(TREE_AT))),
    };
    RawNode { tree, level, count, generation, checksum, node }
}

impl RawNode {
    /// The check that fails.
    pub fn wrong(&self) -> Option<String> {
        self.node.as_ref().err().cloned()
    }

    /// Key, value, and in an interior node the child; none of a node that is damaged.
    pub fn entries(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>, Option<NodeRef>)> {
        let node = self.node.as_ref().ok();
        let count = node.map_or(0, Node::count);
        (0..count).filter_map(move |i| {
            let node = node?;
            let child = (!node.is_leaf()).then(|| node.child(i));
            Some((node.key(i).to_vec(), node.value(i).to_vec(), child))
        })
    }
}
