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

/// The summary of the group at hand: read when its first extent comes, put on the stage behind its last one.
struct Summary<'a> {
    stage: &'a Stage,
    group: Option<u64>,
    /// `None`: there is no row, and all of the group is free.
    free: Option<u64>,
    /// Whether there is a row, and what it says.
    row: Option<u64>,
}

impl<'a> Summary<'a> {
    fn new(stage: &'a Stage) -> Summary<'a> {
        Summary { stage, group: None, free: None, row: None }
    }

    /// Free blocks of a group.
    fn of(&mut self, group: u64) -> Result<Option<u64>, Halt> {
        if self.group != Some(group) {
            self.put();
            self.row = match self.stage.get(TreeId::Balloc, &schema::summary_key(group))? {
                Some(value) => Some(u64::from(schema::decode_u32("group summary", &value)?)),
                None => None,
            };
            (self.group, self.free) = (Some(group), self.row);
        }
        Ok(self.free)
    }

    fn put(&mut self) {
        let Some(group) = self.group.take().filter(|_| self.free != self.row) else { return };
        let key = schema::summary_key(group);
        match self.free {
            Some(free) => {
                let free = u32::try_from(free).expect("a group has at most 32,768 blocks");
                self.stage.put(TreeId::Balloc, key, free.to_le_bytes());
            }
            None => self.stage.delete(TreeId::Balloc, key),
        }
    }
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
    let mut summary = Summary::new(stage);
    for extent in merged(shape, taken) {
        take(&mut summary, shape, extent)?;
    }
    for extent in merged(shape, freed) {
        give(&mut summary, shape, extent)?;
    }
    summary.put();
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

/// Start and end of the last free extent that starts at or before a block.
fn last_free(stage: &Stage, shape: Shape, at: u64) -> Result<Option<(u64, u64)>, Halt> {
    let extent = |key: &[u8], value: &[u8]| {
        let start = schema::key_number(FREE, key)?;
        Some(schema::decode_u32("free extent", value).map(|blocks| Extent { start, blocks }))
    };
    let Some(extent) = stage.prev_with(TreeId::Balloc, &schema::free_key(at), extent)?.flatten() else {
        return Ok(None);
    };
    let extent = extent?;
    let (_, end) = place(shape, extent)?;
    Ok(Some((extent.start, end)))
}

/// Takes blocks that must be free.
fn take(summary: &mut Summary<'_>, shape: Shape, extent: Extent) -> Result<(), Halt> {
    let stage = summary.stage;
    let (group, end) = place(shape, extent)?;
    let (first, len) = shape.group(group);
    let free = match summary.of(group)? {
        Some(free) => free,
        None => {
            put_free(stage, first, len);
            len
        }
    };
    let Some((start, until)) = last_free(stage, shape, extent.start)? else {
        return Err(corrupt(extent, "taken, but no free extent is there"));
    };
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
    summary.free = Some(free - u64::from(extent.blocks));
    Ok(())
}

/// Gives blocks back that must not be free.
fn give(summary: &mut Summary<'_>, shape: Shape, extent: Extent) -> Result<(), Halt> {
    let stage = summary.stage;
    let (group, end) = place(shape, extent)?;
    let (first, len) = shape.group(group);
    let Some(free) = summary.of(group)? else {
        return Err(corrupt(extent, "freed, but its whole group is free"));
    };
    let free = free + u64::from(extent.blocks);
    if free > len {
        return Err(corrupt(extent, "freed, but the group would have more free blocks than blocks"));
    }
    let (mut start, mut until) = (extent.start, end);
    // The last free extent up to the end: behind this one, before it, or where none may be.
    let mut before = last_free(stage, shape, end)?;
    if let Some((after, after_end)) = before.filter(|(after, _)| *after == end) {
        if after < first + len {
            stage.delete(TreeId::Balloc, schema::free_key(after));
            until = after_end;
        }
        before = last_free(stage, shape, extent.start)?;
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
        summary.free = None;
        stage.delete(TreeId::Balloc, schema::free_key(start));
    } else {
        put_free(stage, start, until - start);
        summary.free = Some(free);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{group_blocks, settle};
    use crate::apply::{Halt, Shape};
    use crate::geometry::{Geometry, JOURNAL_LEN_MIN};
    use crate::stage::Stage;
    use crate::tests::rig::run;
    use crate::tree::{Forest, TreeId, TreeLimits};
    use crate::{Extent, Region, schema};
    use cobalt_bdev::{Device, MemBdev};
    use cobalt_dma::{Arena, ArenaConfig};
    use std::rc::Rc;
    use uuid::Uuid;

    /// Found by a soak, `prove fuzz --seed 63556106901587 --case 655050`.
    #[test]
    fn a_free_extent_that_is_longer_than_its_group_is_damage() {
        run(45, async |ctx| {
            let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).unwrap();
            let meta = Region::whole(Device::new(Rc::new(MemBdev::new(4 << 20))));
            let geometry = Geometry::plan(meta.len, 4096, JOURNAL_LEN_MIN).unwrap();
            let limits = TreeLimits::tiny();
            let forest = Rc::new(Forest::create(&ctx, &meta, &arena, geometry, Uuid::from_u128(7), limits));
            let data_blocks = 64 * 32_768;
            let shape = Shape { data_blocks, group_blocks: group_blocks(data_blocks), row_max: 1000 };
            for start in [10, 30] {
                let stage = Stage::new(forest.clone());
                let extent = Extent { start: 20, blocks: 4 };
                assert!(settle(&stage, shape, &[extent], &[]).is_ok());
                stage.put(TreeId::Balloc, schema::free_key(start), u32::MAX.to_le_bytes());
                let given = settle(&stage, shape, &[], &[extent]);
                let taken = settle(&stage, shape, &[Extent { start: start + 2, blocks: 1 }], &[]);
                assert!(matches!(taken, Err(Halt::Corrupt(_))), "{start}");
                // One that lies behind, and is no neighbour, is not looked at.
                assert_eq!(matches!(given, Err(Halt::Corrupt(_))), start < 20, "{start}");
            }
        });
    }
}
