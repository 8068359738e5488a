//! The allocator's rows: free extents, and a summary for each group.
//!
//! A group that has no summary row is all free, so a new target has no rows at all, and a group that
//! becomes all free again loses its rows. Extents never cross the bounds of groups.

use crate::apply::{Halt, Shape};
use crate::schema::{self, FREE};
use crate::stage::Stage;
use crate::tree::{Hint, TreeId};
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

/// Changes in the tree that one extent makes at most: two free extents, and the group's summary.
pub(crate) const CHANGES_MAX: usize = 3;

/// Enters what the transactions of one record took and freed. What one of them took another may have freed since,
/// but never the other way round: freed blocks are reusable when their record is durable (I3). The free extents around them are
/// read in one sweep, as the trees have them: no change of them is on the stage.
pub(crate) fn settle(stage: &Stage, shape: Shape, taken: &[Extent], freed: &[Extent]) -> Result<(), Halt> {
    assert!(stage.is_free_of(TreeId::Balloc), "the blocks of a record are entered once");
    let (mut taken, mut freed) = (runs(shape, taken)?, runs(shape, freed)?);
    let (mut taken, mut freed) = (taken.as_mut_slice(), freed.as_mut_slice());
    let mut sweep = Sweep { stage, shape, leaf: None, summaries: None };
    while let Some(first) = taken.first().into_iter().chain(freed.first()).map(|run| run.start).min() {
        let group = first / shape.group_blocks;
        let own = |runs: &[Run]| runs.partition_point(|run| run.start / shape.group_blocks == group);
        let (take, give);
        (take, taken) = taken.split_at_mut(own(taken));
        (give, freed) = freed.split_at_mut(own(freed));
        sweep.group(group, take, give)?;
    }
    Ok(())
}

/// Blocks from `start` to before `end`, and the leaf that holds the key of the first one, if that is known.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    end: u64,
    leaf: Option<Hint>,
}

impl Run {
    fn blocks(&self) -> u64 {
        self.end - self.start
    }
}

fn blocks(runs: &[Run]) -> u64 {
    runs.iter().map(Run::blocks).sum()
}

/// The same blocks in order, neighbours within a group as one.
fn runs(shape: Shape, extents: &[Extent]) -> Result<Vec<Run>, Halt> {
    let each = merged(shape, extents).into_iter();
    each.map(|extent| Ok(Run { start: extent.start, end: place(shape, extent)?.1, leaf: None })).collect()
}

fn contradicts(run: &Run, why: &str) -> Halt {
    corrupt(Extent { start: run.start, blocks: u32::try_from(run.blocks()).unwrap_or(u32::MAX) }, why)
}

/// Goes through the groups in their order.
struct Sweep<'a> {
    stage: &'a Stage,
    shape: Shape,
    /// Leaves that were read last, of free extents and of summaries.
    leaf: Option<Hint>,
    summaries: Option<Hint>,
}

impl Sweep<'_> {
    /// Enters what one group loses and then gains.
    fn group(&mut self, group: u64, take: &mut [Run], give: &mut [Run]) -> Result<(), Halt> {
        let (first, len) = self.shape.group(group);
        let row = self.summary(group)?;
        // Without a row all of the group is free, and has none of that either.
        let have = match (row, &*take, &*give) {
            (Some(_), ..) => self.around((first, first + len), take, give)?,
            (None, [], [given, ..]) => return Err(contradicts(given, "freed, but its whole group is free")),
            (None, ..) => vec![Run { start: first, end: first + len, leaf: None }],
        };
        let now = with(self.without(&have, take)?, give)?;
        let free = row.unwrap_or(len).checked_sub(blocks(take)).map(|free| free + blocks(give));
        let whole = matches!(now.as_slice(), [all] if all.blocks() == len);
        let Some(free) = free.filter(|free| *free <= len && whole == (*free == len)) else {
            let why = format!("group {group} has {row:?} free blocks, which its free extents contradict");
            return Err(Corrupt::new("group summary", first.saturating_mul(BLOCK_SIZE), why).into());
        };
        // All free, it has no rows any more.
        self.enter(if row.is_some() { &have } else { &[] }, if whole { &[] } else { &now });
        self.put_summary(group, row, (!whole).then_some(free));
        Ok(())
    }

    fn summary(&mut self, group: u64) -> Result<Option<u64>, Halt> {
        let key = schema::summary_key(group);
        self.stage.expect(TreeId::Balloc, &key, self.summaries);
        let read = |value: &[u8]| schema::decode_u32("group summary", value).map(u64::from);
        let row = self.stage.get_with(TreeId::Balloc, &key, read)?.transpose()?;
        self.summaries = self.stage.leaf_of(TreeId::Balloc, &key);
        Ok(row)
    }

    fn put_summary(&self, group: u64, row: Option<u64>, free: Option<u64>) {
        if row == free {
            return;
        }
        let count = |free| u32::try_from(free).expect("a group has at most 32,768 blocks").to_le_bytes();
        let (key, value) = (schema::summary_key(group), free.map(count));
        let value = value.as_ref().map(<[u8; 4]>::as_slice);
        self.stage.change_in(TreeId::Balloc, &key, value, self.summaries);
    }

    /// The free extents of a group that runs are in or touch, in order. Each run gets to know its leaf.
    fn around(
        &mut self,
        (first, end): (u64, u64),
        take: &mut [Run],
        give: &mut [Run],
    ) -> Result<Vec<Run>, Halt> {
        let mut have: Vec<Run> = Vec::with_capacity(take.len() + give.len() + 1);
        let (mut take, mut give) = (take.iter_mut().peekable(), give.iter_mut().peekable());
        loop {
            let is_next = |taken: &&mut Run| give.peek().is_none_or(|given| taken.start <= given.start);
            let Some(run) = take.next_if(is_next).or_else(|| give.next()) else { return Ok(have) };
            let (from, until) = (schema::free_key(run.start), schema::free_key(run.end));
            let mut wrong = None;
            let show = |key: &[u8], value: &[u8], leaf: Option<Hint>| {
                match free_extent(self.shape, key, value) {
                    // Those of other groups are no neighbours; others were shown before.
                    Ok(Some((start, until))) if first <= start && start < end => {
                        if have.last().is_none_or(|last| last.start < start) {
                            have.push(Run { start, end: until, leaf });
                        }
                    }
                    Ok(_) => {}
                    Err(halt) => wrong = Some(halt),
                }
            };
            self.leaf = self.stage.around(TreeId::Balloc, &from, &until, self.leaf, show)?;
            if let Some(halt) = wrong {
                return Err(halt);
            }
            run.leaf = self.leaf;
        }
    }

    /// Takes blocks that must be free.
    fn without(&self, have: &[Run], take: &[Run]) -> Result<Vec<Run>, Halt> {
        let mut out = Vec::with_capacity(have.len() + take.len());
        let mut take = take.iter().peekable();
        for mut free in have.iter().copied() {
            while let Some(taken) = take.next_if(|taken| taken.start < free.end) {
                if taken.start < free.start || free.end < taken.end {
                    return Err(contradicts(taken, "taken, but not free"));
                }
                if free.start < taken.start {
                    out.push(Run { end: taken.start, ..free });
                }
                let key = schema::free_key(taken.end);
                let leaf = taken.leaf.filter(|leaf| self.stage.spans(*leaf, &key));
                free = Run { start: taken.end, leaf, ..free };
            }
            if free.start < free.end {
                out.push(free);
            }
        }
        match take.next() {
            Some(taken) => Err(contradicts(taken, "taken, but no free extent is there")),
            None => Ok(out),
        }
    }

    /// Puts the rows on the stage that are not what they were.
    fn enter(&self, have: &[Run], now: &[Run]) {
        let (mut have, mut now) = (have.iter().peekable(), now.iter().peekable());
        loop {
            let (old, new) = match (have.peek(), now.peek()) {
                (Some(old), Some(new)) => (old.start <= new.start, new.start <= old.start),
                (old, new) => (old.is_some(), new.is_some()),
            };
            let (old, new) = (have.next_if(|_| old), now.next_if(|_| new));
            let ((Some(row), _) | (None, Some(row))) = (old, new) else { return };
            if old.map(|old| old.end) == new.map(|new| new.end) {
                continue;
            }
            let count = |run: &Run| {
                u32::try_from(run.blocks()).expect("a free extent lies in one group").to_le_bytes()
            };
            let (key, value) = (schema::free_key(row.start), new.map(count));
            let value = value.as_ref().map(<[u8; 4]>::as_slice);
            self.stage.change_in(TreeId::Balloc, &key, value, row.leaf);
        }
    }
}

/// Gives blocks back that must not be free. Neighbours become one.
fn with(have: Vec<Run>, give: &[Run]) -> Result<Vec<Run>, Halt> {
    let mut out: Vec<Run> = Vec::with_capacity(have.len() + give.len());
    let (mut have, mut give) = (have.iter().peekable(), give.iter().peekable());
    loop {
        let free = have.next_if(|free| give.peek().is_none_or(|given| free.start <= given.start));
        let Some(run) = free.or_else(|| give.next()) else { return Ok(out) };
        match out.last_mut() {
            Some(last) if last.end > run.start => return Err(contradicts(run, "freed, but free already")),
            Some(last) if last.end == run.start => last.end = run.end,
            _ => out.push(*run),
        }
    }
}

/// Start and end of a free extent, if the row is one.
fn free_extent(shape: Shape, key: &[u8], value: &[u8]) -> Result<Option<(u64, u64)>, Halt> {
    let Some(start) = schema::key_number(FREE, key) else { return Ok(None) };
    let extent = Extent { start, blocks: schema::decode_u32("free extent", value)? };
    Ok(Some((start, place(shape, extent)?.1)))
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

#[cfg(test)]
mod tests {
    use super::{CHANGES_MAX, group_blocks, settle};
    use crate::apply::{Halt, Shape};
    use crate::geometry::{Geometry, JOURNAL_LEN_MIN, NODE_SIZE_MIN};
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
            let put = |stage: &Stage| assert!(stage.touch().and_then(|()| stage.mutate()).is_ok());
            for start in [10, 30] {
                let _epoch = forest.epoch();
                let extent = Extent { start: 20, blocks: 4 };
                let stage = Stage::new(forest.clone());
                assert!(settle(&stage, shape, &[extent], &[]).is_ok());
                stage.put(TreeId::Balloc, schema::free_key(start), u32::MAX.to_le_bytes());
                put(&stage);
                let given = settle(&Stage::new(forest.clone()), shape, &[], &[extent]);
                let taken = Extent { start: start + 2, blocks: 1 };
                let taken = settle(&Stage::new(forest.clone()), shape, &[taken], &[]);
                assert!(matches!(taken, Err(Halt::Corrupt(_))), "{start}");
                // One that lies behind, and is no neighbour, is not looked at.
                assert_eq!(matches!(given, Err(Halt::Corrupt(_))), start < 20, "{start}");
                let stage = Stage::new(forest.clone());
                stage.delete(TreeId::Balloc, schema::free_key(start));
                put(&stage);
                let stage = Stage::new(forest.clone());
                assert!(settle(&stage, shape, &[], &[extent]).is_ok(), "{start}");
                put(&stage);
            }
        });
    }

    /// Beside a row of blocks. Groups are taken and given back whole and in part, taken and given in one record, next to their
    /// bounds; leaves are so small that what is around an extent lies in several.
    #[test]
    fn records_that_take_and_free_leave_the_rows_that_their_blocks_say() {
        run(46, async |ctx| {
            let arena = Arena::new(ArenaConfig { limit: 16 << 20 }).unwrap();
            let meta = Region::whole(Device::new(Rc::new(MemBdev::new(16 << 20))));
            let geometry = Geometry::plan(meta.len, NODE_SIZE_MIN, JOURNAL_LEN_MIN).unwrap();
            let limits = TreeLimits::default();
            let forest = Rc::new(Forest::create(&ctx, &meta, &arena, geometry, Uuid::from_u128(7), limits));
            // The last group is short.
            let shape = Shape { data_blocks: 40 * 64 + 20, group_blocks: 64, row_max: 1000 };
            let mut free = vec![true; shape.data_blocks as usize];
            let mut x = 1u64;
            let mut roll = |most: usize| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (x >> 33) as usize % most
            };
            for round in 0..3000 {
                let _epoch = forest.epoch();
                // What is freed in a record is not taken in it.
                let mut freed_now = vec![false; free.len()];
                let (mut taken, mut freed) = (Vec::new(), Vec::new());
                for _ in 0..1 + roll(40) {
                    let (start, most) = (roll(free.len()), 1 + roll(if round % 5 > 0 { 3 } else { 64 }));
                    let (group, is_free) = (start / 64, free[start]);
                    let ends = |at: &usize| {
                        let may = !is_free || !freed_now.get(*at).is_some_and(|freed| *freed);
                        !may || at / 64 != group || free.get(*at) != Some(&is_free)
                    };
                    let end = (start..start + most).find(ends).unwrap_or(start + most);
                    if start < end {
                        let list = if is_free { &mut taken } else { &mut freed };
                        list.push(Extent { start: start as u64, blocks: (end - start) as u32 });
                        free[start..end].fill(!is_free);
                        freed_now[start..end].fill(!is_free);
                    }
                }
                let stage = Stage::holding(forest.clone(), 1);
                assert!(settle(&stage, shape, &taken, &freed).is_ok(), "round {round}");
                assert!(stage.len() <= CHANGES_MAX * (taken.len() + freed.len()), "round {round}");
                assert!(stage.touch_new().and_then(|()| stage.mutate()).is_ok());
                let rows = forest.scan(TreeId::Balloc, &[], None, usize::MAX, usize::MAX).unwrap();
                assert_eq!(rows, rows_of(shape, &free), "round {round}");
            }
            assert!(forest.cache_stats().splits > 2, "{:?}", forest.cache_stats());
        });
    }

    /// The rows of an allocator of these blocks.
    fn rows_of(shape: Shape, free: &[bool]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        let mut put =
            |key: [u8; 9], count: usize| rows.push((key.to_vec(), (count as u32).to_le_bytes().to_vec()));
        for group in 0..shape.groups() {
            let (first, len) = shape.group(group);
            let own = &free[first as usize..(first + len) as usize];
            if own.iter().all(|free| *free) {
                continue;
            }
            put(schema::summary_key(group), own.iter().filter(|free| **free).count());
            let mut start = first;
            for run in own.chunk_by(|a, b| a == b) {
                if run[0] {
                    put(schema::free_key(start), run.len());
                }
                start += run.len() as u64;
            }
        }
        rows.sort();
        rows
    }
}
