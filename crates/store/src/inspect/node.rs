//! One node block, whatever it holds.

use super::{Inspection, any};
use crate::dump::TreeRow;
use crate::tree::{self, NodeRef, TreeId};

/// What a node block says, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    pub block: u64,
    /// Byte of the meta region.
    pub address: u64,
    /// The tree that it says it is of.
    pub tree: Option<TreeId>,
    pub level: u8,
    pub entries: u16,
    pub generation: u64,
    pub checksum: u64,
    /// The check that fails, if one does. Its rows are not shown then.
    pub wrong: Option<String>,
    /// Of a leaf.
    pub rows: Vec<TreeRow>,
    /// Of an interior node.
    pub children: Vec<NodeChild>,
}

/// A child of an interior node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeChild {
    /// Its range of keys begins here; empty at the left end.
    pub from: Vec<u8>,
    pub node: NodeRef,
}

impl Inspection {
    /// The node block `block` as it is on the device. That it is whole does not say that a tree refers to it.
    ///
    /// # Errors
    /// Why there is no such block, or that the device does not give it.
    pub async fn node(&self, block: u64) -> Result<NodeView, String> {
        let geometry = self.superblock.geometry;
        if block >= geometry.node_blocks {
            return Err(format!(
                "there is no node block {block}: the region has {}, counted from 0",
                geometry.node_blocks
            ));
        }
        let buf = self.arena.alloc(geometry.node_size as usize).await;
        let address = geometry.node_at(block);
        let bytes = self.regions.meta.read(address, buf).await.map_err(|e| e.to_string())?;
        let raw = tree::raw_node(self.superblock.target, geometry.node_blocks, block, &bytes);
        let Some(tree) = raw.tree else {
            return Ok(NodeView::of(block, address, &raw, Vec::new(), Vec::new()));
        };
        let (mut rows, mut children) = (Vec::new(), Vec::new());
        for (key, value, child) in raw.entries() {
            match child {
                Some(node) => children.push(NodeChild { from: key, node }),
                None => rows.push(any(tree, key, value)),
            }
        }
        Ok(NodeView::of(block, address, &raw, rows, children))
    }
}

impl NodeView {
    fn of(
        block: u64,
        address: u64,
        raw: &tree::RawNode,
        rows: Vec<TreeRow>,
        children: Vec<NodeChild>,
    ) -> NodeView {
        NodeView {
            block,
            address,
            tree: raw.tree,
            level: raw.level,
            entries: raw.count,
            generation: raw.generation,
            checksum: raw.checksum,
            wrong: raw.wrong(),
            rows,
            children,
        }
    }
}
