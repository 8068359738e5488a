//! Free space by group of the data region.

use super::Inspection;
use crate::fsck::stream::{Met, Stream};
use crate::recovery;
use crate::schema::{self, FREE, SUMMARY};
use crate::tree::{self, TreeId};

/// One group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupRow {
    pub group: u64,
    /// First block.
    pub first: u64,
    pub blocks: u64,
    /// Free blocks, by its free extents.
    pub free: u64,
    /// Free extents.
    pub extents: u64,
    /// Blocks of the largest of them.
    pub largest: u64,
    /// What its row says is free; none in a group that is all free.
    pub says: Option<u64>,
}

impl Inspection {
    /// Gives each group in order until `give` says false. Returns the nodes that could not be read: rows in them are
    /// missing from the sums.
    pub async fn groups(&self, mut give: impl FnMut(GroupRow) -> bool) -> Vec<super::Skipped> {
        let shape = recovery::shape_of(&self.superblock, tree::entry_max(self.superblock.geometry.node_size));
        let mut skipped = Vec::new();
        let kind =
            |kind: u8, place| Stream::new(&self.source, TreeId::Balloc, &[kind], Some(&[kind + 1]), place);
        let mut counts = kind(SUMMARY, |key| schema::key_number(SUMMARY, key));
        let mut free = kind(FREE, |key| schema::key_number(FREE, key));
        for group in 0..shape.groups() {
            let (first, blocks) = shape.group(group);
            let mut row = GroupRow { group, first, blocks, free: 0, extents: 0, largest: 0, says: None };
            loop {
                self.settle(&mut counts, &mut skipped).await;
                let Some((number, count)) = counts.take_if(|number| number <= group) else { break };
                if number == group {
                    row.says = schema::decode_u32("group summary", &count.value).ok().map(u64::from);
                }
            }
            loop {
                self.settle(&mut free, &mut skipped).await;
                let Some((_, extent)) = free.take_if(|start| start < first + blocks) else { break };
                let len = schema::decode_u32("free extent", &extent.value).map_or(0, u64::from);
                row.free += len;
                row.extents += 1;
                row.largest = row.largest.max(len);
            }
            if row.says.is_none() && row.extents == 0 && skipped.is_empty() {
                (row.free, row.extents, row.largest) = (blocks, 1, blocks);
            }
            if !give(row) {
                break;
            }
        }
        skipped
    }

    async fn settle(&self, stream: &mut Stream<'_, u64>, skipped: &mut Vec<super::Skipped>) {
        while let Some(met) = stream.settle().await {
            if let Met::Lost(lost) = met {
                let lost = self.skipped(lost);
                if !skipped.contains(&lost) && skipped.len() < crate::fsck::FINDINGS_MAX {
                    skipped.push(lost);
                }
            }
        }
    }
}
