//! The allocator's rows: free extents, and a summary for each group.
//!
//! A group that has no summary row is all free, so a new target has no rows at all, and a group that
//! becomes all free again loses its rows. Extents never cross the bounds of groups.

use crate::apply::{Halt, Shape};
use crate::schema::{self, FREE};
use crate::stage::Stage;
use crate::tree::TreeId;
use crate::tx::Extent;
use cobalt_base::{BLOCK_SIZE, Corrupt};

/// Blocks in one group of a data region: 64 groups on a small one, at most 128 MiB a group.
pub(crate) fn group_blocks(data_blocks: u64) -> u64 {
    (data_blocks / 64).next_power_of_two().clamp(64, 32_768)
}

impl Shape {
    /// Number of groups.
    pub(crate) fn groups(&self) -> u64 {
        self.data_blocks.div_ceil(self.group_blocks)
    }

    /// First block and count of blocks of a group; the last one may be short.
    pub(crate) fn group(&self, group: u64) -> (u64, u64) {
        let start = group * self.group_blocks;
        (start, self.group_blocks.min(self.data_blocks.saturating_sub(start)))
    }
}

fn corrupt(extent: Extent, why: &str) -> Halt {
    let address = extent.start.saturating_mul(BLOCK_SIZE);
    Corrupt::new("free extents", address, format!("{} blocks: {why}", extent.blocks)).into()
}

fn place(shape: Shape, extent: Extent) -> Result<(u64, u64), Halt> {
    let group = extent.start / shape.group_blocks;
    let end = extent.end().filter(|end| *end <= shape.data_blocks);
    match end {
        Some(end) if extent.blocks > 0 && (end - 1) / shape.group_blocks == group => Ok((group, end)),
        _ => Err(corrupt(extent, "not inside of one group")),
    }
}

fn summary(stage: &Stage, group: u64) -> Result<Option<u64>, Halt> {
    match stage.get(TreeId::Balloc, &schema::summary_key(group))? {
        Some(value) => Ok(Some(u64::from(schema::decode_u32("group summary", &value)?))),
        None => Ok(None),
    }
}

fn put_summary(stage: &Stage, group: u64, free: u64) {
    let free = u32::try_from(free).expect("a group has at most 32,768 blocks");
    stage.put(TreeId::Balloc, schema::summary_key(group), free.to_le_bytes());
}

fn put_free(stage: &Stage, start: u64, blocks: u64) {
    let blocks = u32::try_from(blocks).expect("a free extent lies in one group");
    stage.put(TreeId::Balloc, schema::free_key(start), blocks.to_le_bytes());
}

/// Changes in the tree that one extent makes at most: two free extents, and the group's summary.
pub(crate) const CHANGES_MAX: usize = 3;

/// Enters what the transactions of one record took and freed. What one of them took another may have freed since,
/// but never the other way round: freed blocks are reusable when their record is durable (I3).
pub(crate) fn settle(stage: &Stage, shape: Shape, taken: &[Extent], freed: &[Extent]) -> Result<(), Halt> {
    for extent in merged(shape, taken) {
        take(stage, shape, extent)?;
    }
    for extent in merged(shape, freed) {
        give(stage, shape, extent)?;
    }
    Ok(())
}

/// The same blocks in order, neighbours within a group as one extent.
fn merged(shape: Shape, extents: &[Extent]) -> Vec<Extent> {
    let mut sorted = extents.to_vec();
    sorted.sort_unstable_by_key(|extent| extent.start);
    let group = |block: u64| block / shape.group_blocks;
    let mut out: Vec<Extent> = Vec::with_capacity(sorted.len());
    for extent in sorted {
        if let Some(last) = out.last_mut()
            && last.end() == Some(extent.start)
            && group(last.start) == group(extent.start)
            && let Some(blocks) = last.blocks.checked_add(extent.blocks)
        {
            last.blocks = blocks;
        } else {
            out.push(extent);
        }
    }
    out
}

/// Takes blocks that must be free.
fn take(stage: &Stage, shape: Shape, extent: Extent) -> Result<(), Halt> {
    let (group, end) = place(shape, extent)?;
    let (first, len) = shape.group(group);
    let free = match summary(stage, group)? {
        Some(free) => free,
        None => {
            put_free(stage, first, len);
            len
        }
    };
    let row = stage.prev(TreeId::Balloc, &schema::free_key(extent.start))?;
    let Some((start, value)) = row.and_then(|(k, v)| Some((schema::key_number(FREE, &k)?, v))) else {
        return Err(corrupt(extent, "taken, but no free extent is there"));
    };
    let until = start + u64::from(schema::decode_u32("free extent", &value)?);
    if until < end || free < u64::from(extent.blocks) {
        return Err(corrupt(extent, "taken, but not free"));
    }
    stage.delete(TreeId::Balloc, schema::free_key(start));
    if start < extent.start {
        put_free(stage, start, extent.start - start);
    }
    if end < until {
        put_free(stage, end, until - end);
    }
    put_summary(stage, group, free - u64::from(extent.blocks));
    Ok(())
}

/// Gives blocks back that must not be free.
pub(crate) fn give(stage: &Stage, shape: Shape, extent: Extent) -> Result<(), Halt> {
    let (group, end) = place(shape, extent)?;
    let (first, len) = shape.group(group);
    let Some(free) = summary(stage, group)? else {
        return Err(corrupt(extent, "freed, but its whole group is free"));
    };
    let free = free + u64::from(extent.blocks);
    if free > len {
        return Err(corrupt(extent, "freed, but the group would have more free blocks than blocks"));
    }
    let (mut start, mut until) = (extent.start, end);
    // The last free extent up to the end: behind this one, before it, or where none may be.
    let row = |at: u64| -> Result<Option<(u64, u64)>, Halt> {
        let Some((key, value)) = stage.prev(TreeId::Balloc, &schema::free_key(at))? else { return Ok(None) };
        let Some(start) = schema::key_number(FREE, &key) else { return Ok(None) };
        Ok(Some((start, start + u64::from(schema::decode_u32("free extent", &value)?))))
    };
    let mut before = row(end)?;
    if let Some((after, after_end)) = before.filter(|(after, _)| *after == end) {
        if after < first + len {
            stage.delete(TreeId::Balloc, schema::free_key(after));
            until = after_end;
        }
        before = row(extent.start)?;
    }
    if let Some((before, before_end)) = before {
        if before_end > extent.start {
            return Err(corrupt(extent, "freed, but free already"));
        }
        if before_end == extent.start && before >= first {
            stage.delete(TreeId::Balloc, schema::free_key(before));
            start = before;
        }
    }
    if free == len {
        stage.delete(TreeId::Balloc, schema::summary_key(group));
        stage.delete(TreeId::Balloc, schema::free_key(start));
    } else {
        put_free(stage, start, until - start);
        put_summary(stage, group, free);
    }
    Ok(())
}
