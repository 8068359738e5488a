//! The block allocator in memory: which blocks may be handed out now.
//!
//! The trees say what is free as of the last applied transaction. From that this takes what is held:
//! blocks reserved by open transactions, and freed blocks that a read may still look at or that are being
//! deallocated (I3). Contents of a group are read from the tree when they are needed, and a bounded
//! number is kept; counts of all groups are always in memory.

use crate::apply::{Halt, Shape};
use crate::error::StoreError;
use crate::few::Pieces;
use crate::limits::{Limits, Placement};
use crate::points::{Point, refused};
use crate::schema::{self, FREE};
use crate::stage::Stage;
use crate::tree::{BlockMap, Forest, MetaError, Miss, TreeId};
use crate::tx::Extent;
use cobalt_base::canary::{Canary, planted};
use cobalt_base::{BLOCK_SIZE, Corrupt};
use cobalt_reactor::sync::Notify;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// Most blocks that are withheld for one deallocation: it stops the target's writes for as long as it takes.
const WITHDRAW_MAX: u64 = 256;

/// A group in memory.
#[derive(Default)]
struct Group {
    /// Blocks that may be handed out.
    avail: u64,
    /// Their extents (start → blocks), when loaded.
    extents: Option<BTreeMap<u64, u64>>,
    used_at: u64,
}

pub(crate) struct Balloc {
    shape: Shape,
    loaded_max: usize,
    placement: Placement,
    forest: Rc<Forest>,
    inner: RefCell<Inner>,
    /// Told when blocks become available.
    freed: Notify,
    /// Where the last reservation ended: the goal of those that have none.
    cursor: Cell<u64>,
}

#[derive(Default)]
struct Inner {
    groups: Vec<Group>,
    loaded: usize,
    clock: u64,
    avail: u64,
    /// Promised to reservations that still look for their blocks.
    claimed: u64,
    /// Blocks that the trees call free, or will, and that must not be handed out: start → blocks.
    held: BlockMap<u64>,
    held_blocks: u64,
    /// Blocks in `held` that will become available by themselves.
    limbo: u64,
    /// Freed blocks, each with the number that the next read had then.
    waiting: VecDeque<(u64, Vec<Extent>)>,
    reads: BTreeSet<u64>,
    next_read: u64,
    /// Groups dropped from memory, and reservations that left the group they began in.
    met: (u64, u64),
}

/// Reserved blocks. Dropped before its transaction is applied, it gives them back.
pub(crate) struct Reservation {
    balloc: Rc<Balloc>,
    extents: RefCell<Pieces>,
}

/// While it lives, no block that was mapped when it was taken is reused.
pub(crate) struct ReadPin {
    balloc: Rc<Balloc>,
    number: u64,
    /// Told of blocks that this pin was the last to hold.
    released: Rc<dyn Fn(Vec<Extent>)>,
}

impl Balloc {
    /// Reads the groups' summaries.
    pub(crate) async fn open(forest: Rc<Forest>, shape: Shape, limits: &Limits) -> Result<Balloc, MetaError> {
        let mut inner = Inner::default();
        for group in 0..shape.groups() {
            inner.groups.push(Group { avail: shape.group(group).1, ..Group::default() });
        }
        let mut from = schema::summary_key(0).to_vec();
        loop {
            let entry = retry(&forest, || forest.next(TreeId::Balloc, &from)).await?;
            let Some((key, value)) = entry else { break };
            let Some(group) = schema::key_number(schema::SUMMARY, &key) else { break };
            let free = u64::from(schema::decode_u32("group summary", &value)?);
            let slot = usize::try_from(group).ok().and_then(|g| inner.groups.get_mut(g));
            match slot {
                Some(slot) if free <= slot.avail => slot.avail = free,
                _ => return Err(Corrupt::new("group summary", 0, format!("group {group} has {free}")).into()),
            }
            from = key;
            from.push(0);
        }
        inner.avail = inner.groups.iter().map(|g| g.avail).sum();
        let inner = RefCell::new(inner);
        Ok(Balloc {
            shape,
            loaded_max: limits.groups_loaded,
            placement: limits.placement,
            forest,
            inner,
            freed: Notify::default(),
            cursor: Cell::new(0),
        })
    }

    /// Blocks (available, held or claimed); what is neither is mapped.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let inner = self.inner.borrow();
        (inner.avail - inner.claimed, inner.held_blocks + inner.claimed)
    }

    /// Groups dropped from memory, and reservations that left the group they began in.
    #[cfg(feature = "proof")]
    pub(crate) fn met(&self) -> (u64, u64) {
        self.inner.borrow().met
    }

    /// Blocks that the trees call free. Reserved ones are among them.
    pub(crate) fn tree_free(&self) -> u64 {
        let inner = self.inner.borrow();
        inner.avail + inner.held_blocks
    }

    /// Reserves `blocks`, near `goal` if one is given, in as few pieces as can be had.
    ///
    /// # Errors
    /// `NoSpace` only when fewer blocks are free; a damaged tree.
    pub(crate) async fn reserve(
        self: &Rc<Balloc>,
        blocks: u64,
        goal: Option<u64>,
        check: impl Fn() -> Result<(), StoreError>,
    ) -> Result<Rc<Reservation>, StoreError> {
        if refused(Point::Balloc) {
            return Err(StoreError::NoSpace { bytes: blocks * BLOCK_SIZE });
        }
        let mut claim = loop {
            check()?;
            {
                let mut inner = self.inner.borrow_mut();
                if inner.avail - inner.claimed >= blocks {
                    inner.claimed += blocks;
                    break Claim { balloc: self, blocks };
                }
                if inner.avail - inner.claimed + inner.limbo < blocks {
                    return Err(StoreError::NoSpace { bytes: blocks * BLOCK_SIZE });
                }
            }
            self.freed.notified().await;
        };
        let reservation = Rc::new(Reservation { balloc: self.clone(), extents: RefCell::default() });
        let mut goal = match self.placement {
            Placement::Goal => goal.unwrap_or(self.cursor.get()),
            Placement::FirstFit => 0,
        };
        let first = goal / self.shape.group_blocks;
        while claim.blocks > 0 {
            let group = self.pick(goal, claim.blocks);
            self.inner.borrow_mut().met.1 += u64::from(group as u64 != first);
            self.load_group(group).await?;
            let Some(extent) = self.take(group, goal, claim.blocks) else { continue };
            claim.blocks -= u64::from(extent.blocks);
            if self.placement == Placement::Goal {
                goal = extent.start + u64::from(extent.blocks);
            }
            reservation.extents.borrow_mut().push(extent);
        }
        self.cursor.set(goal);
        Ok(reservation)
    }

    /// The goal's group while it has blocks; else the next one around that has enough, or the fullest.
    fn pick(&self, goal: u64, blocks: u64) -> usize {
        let inner = self.inner.borrow();
        let count = inner.groups.len();
        let first = usize::try_from(goal / self.shape.group_blocks).unwrap_or(0) % count;
        let mut best = first;
        for i in 0..count {
            let group = (first + i) % count;
            let avail = inner.groups[group].avail;
            if avail >= blocks {
                return group;
            }
            if avail > inner.groups[best].avail {
                best = group;
            }
        }
        best
    }

    /// Brings a group's free extents into memory.
    async fn load_group(&self, group: usize) -> Result<(), StoreError> {
        let mut epoch = None;
        loop {
            match self.try_load(group) {
                Ok(()) => return Ok(()),
                Err(Halt::Miss(miss)) => {
                    epoch.get_or_insert_with(|| self.forest.epoch());
                    self.forest.load_held(miss).await?;
                }
                Err(Halt::Corrupt(corrupt)) => return Err(corrupt.into()),
                Err(Halt::Refused(error)) => return Err(error),
            }
        }
    }

    fn try_load(&self, group: usize) -> Result<(), Halt> {
        let mut inner = self.inner.borrow_mut();
        inner.clock += 1;
        let clock = inner.clock;
        let slot = &mut inner.groups[group];
        slot.used_at = clock;
        if slot.extents.is_some() {
            return Ok(());
        }
        let mut extents = tree_extents(&Stage::new(self.forest.clone()), self.shape, group as u64)?;
        let (first, len) = self.shape.group(group as u64);
        for (start, blocks) in inner.held.iter().filter(|(start, _)| (first..first + len).contains(*start)) {
            subtract(&mut extents, *start, *blocks);
        }
        let avail: u64 = extents.values().sum();
        if avail != inner.groups[group].avail {
            let why = format!(
                "group {group}: free extents have {avail} blocks, the count is {}",
                inner.groups[group].avail
            );
            return Err(Corrupt::new("free extents", first * BLOCK_SIZE, why).into());
        }
        inner.groups[group].extents = Some(extents);
        inner.loaded += 1;
        while inner.loaded > self.loaded_max {
            let oldest = (inner.groups.iter_mut().enumerate())
                .filter(|(i, g)| g.extents.is_some() && *i != group)
                .min_by_key(|(_, g)| g.used_at);
            let Some((_, oldest)) = oldest else { break };
            oldest.extents = None;
            inner.loaded -= 1;
            inner.met.0 += 1;
        }
        Ok(())
    }

    /// Takes one extent of up to `blocks` from a loaded group; none when it has none or was dropped since.
    fn take(&self, group: usize, goal: u64, blocks: u64) -> Option<Extent> {
        let mut inner = self.inner.borrow_mut();
        let slot = &mut inner.groups[group];
        let extents = slot.extents.as_mut()?;
        // Right at the goal first, then the first that is long enough behind it, then anywhere, then the longest.
        let at_goal = extents.range(..=goal).next_back().filter(|(s, l)| goal < *s + *l).map(|(s, _)| *s);
        let whole = |(_, len): &(&u64, &u64)| **len >= blocks;
        let behind =
            extents.range(goal..).find(whole).or_else(|| extents.iter().find(whole)).map(|(s, _)| *s);
        let inside = at_goal.filter(|s| s + extents[s] - goal >= blocks);
        let (start, from) = match (inside, behind) {
            (Some(start), _) => (start, goal),
            (None, Some(start)) => (start, start),
            (None, None) => {
                let (start, _) = extents.iter().max_by_key(|(_, len)| **len)?;
                (*start, *start)
            }
        };
        let len = extents.remove(&start)?;
        let count = blocks.min(start + len - from);
        if from > start {
            extents.insert(start, from - start);
        }
        if from + count < start + len {
            extents.insert(from + count, start + len - from - count);
        }
        slot.avail -= count;
        inner.avail -= count;
        inner.claimed -= count;
        inner.hold(from, count);
        Some(Extent { start: from, blocks: u32::try_from(count).expect("an extent lies in one group") })
    }

    fn make_available(&self, extents: &[Extent]) {
        let mut inner = self.inner.borrow_mut();
        for extent in extents {
            let blocks = u64::from(extent.blocks);
            inner.unhold(extent.start, blocks);
            let group = usize::try_from(extent.start / self.shape.group_blocks).unwrap_or(usize::MAX);
            let slot = &mut inner.groups[group];
            slot.avail += blocks;
            if let Some(extents) = &mut slot.extents {
                insert_merged(extents, extent.start, blocks);
            }
            inner.avail += blocks;
        }
        drop(inner);
        self.freed.notify_all();
    }

    /// A transaction that mapped these reserved blocks was applied: they are the cob's.
    pub(crate) fn applied(&self, extents: &[Extent]) {
        let mut inner = self.inner.borrow_mut();
        for extent in extents {
            inner.unhold(extent.start, u64::from(extent.blocks));
        }
    }

    /// A durable, applied transaction freed these blocks. Those that no read holds are returned: they
    /// are to be deallocated and then given to [`Balloc::reusable`].
    pub(crate) fn free(&self, extents: Vec<Extent>) -> Vec<Extent> {
        let mut inner = self.inner.borrow_mut();
        for extent in &extents {
            inner.hold(extent.start, u64::from(extent.blocks));
            inner.limbo += u64::from(extent.blocks);
        }
        let next = inner.next_read;
        inner.waiting.push_back((next, extents));
        inner.released()
    }

    /// Holds the first of the blocks `start..end` of a group that are free, for a deallocation: [`Balloc::reusable`] gives them
    /// back. None when there are none, or others were promised all that is left.
    pub(crate) async fn withdraw(&self, start: u64, end: u64) -> Result<Option<Extent>, StoreError> {
        let group = usize::try_from(start / self.shape.group_blocks).unwrap_or(usize::MAX);
        let end = end.min(self.group_end(start));
        if group >= self.inner.borrow().groups.len() || start >= end {
            return Ok(None);
        }
        self.load_group(group).await?;
        let mut inner = self.inner.borrow_mut();
        let most = (inner.avail - inner.claimed).min(WITHDRAW_MAX);
        let slot = &mut inner.groups[group];
        let Some(extents) = slot.extents.as_mut().filter(|_| most > 0) else { return Ok(None) };
        let around = extents.range(..=start).next_back().filter(|(s, l)| **s + **l > start);
        let Some((from, len)) = around.or_else(|| extents.range(start..end).next()) else { return Ok(None) };
        let (first, until) = (*from, *from + *len);
        let at = first.max(start);
        let count = (until.min(end) - at).min(most);
        extents.remove(&first);
        if first < at {
            extents.insert(first, at - first);
        }
        if at + count < until {
            extents.insert(at + count, until - at - count);
        }
        slot.avail -= count;
        inner.avail -= count;
        inner.limbo += count;
        inner.hold(at, count);
        Ok(Some(Extent { start: at, blocks: u32::try_from(count).expect("at most WITHDRAW_MAX") }))
    }

    /// First block of the group after the block's.
    pub(crate) fn group_end(&self, block: u64) -> u64 {
        (block / self.shape.group_blocks + 1) * self.shape.group_blocks
    }

    /// Blocks whose wait is over may be handed out.
    pub(crate) fn reusable(&self, extents: &[Extent]) {
        let blocks: u64 = extents.iter().map(|e| u64::from(e.blocks)).sum();
        self.inner.borrow_mut().limbo -= blocks;
        self.make_available(extents);
    }

    /// Holds every block that is mapped now.
    pub(crate) fn pin(self: &Rc<Balloc>, released: Rc<dyn Fn(Vec<Extent>)>) -> ReadPin {
        let mut inner = self.inner.borrow_mut();
        let number = inner.next_read;
        inner.next_read += 1;
        inner.reads.insert(number);
        ReadPin { balloc: self.clone(), number, released }
    }

    /// Wakes those who wait for blocks, so that they look at the target's state again.
    pub(crate) fn wake(&self) {
        self.freed.notify_all();
    }
}

impl Inner {
    fn hold(&mut self, start: u64, blocks: u64) {
        let old = self.held.insert(start, blocks);
        assert!(old.is_none(), "block {start} is held twice");
        self.held_blocks += blocks;
    }

    fn unhold(&mut self, start: u64, blocks: u64) {
        let old = self.held.remove(&start);
        assert_eq!(old, Some(blocks), "block {start} is let go as it was held");
        self.held_blocks -= blocks;
    }

    /// Takes the freed blocks that no read holds any more.
    fn released(&mut self) -> Vec<Extent> {
        let oldest =
            self.reads.first().copied().filter(|_| !planted(Canary::ReuseUnderRead)).unwrap_or(u64::MAX);
        let mut out = Vec::new();
        while self.waiting.front().is_some_and(|(at, _)| *at <= oldest) {
            out.extend(self.waiting.pop_front().map(|(_, extents)| extents).unwrap_or_default());
        }
        out
    }
}

struct Claim<'a> {
    balloc: &'a Balloc,
    blocks: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.blocks > 0 {
            self.balloc.inner.borrow_mut().claimed -= self.blocks;
            self.balloc.freed.notify_all();
        }
    }
}

impl Reservation {
    /// The blocks, in order.
    pub(crate) fn extents(&self) -> Pieces {
        self.extents.borrow().clone()
    }

    /// Whether an extent is one of its pieces.
    pub(crate) fn holds(&self, extent: &Extent) -> bool {
        self.extents.borrow().contains(extent)
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.extents.borrow().iter().map(|e| u64::from(e.blocks)).sum()
    }

    /// The transaction is applied: nothing is given back any more.
    pub(crate) fn consume(&self) {
        let extents = std::mem::take(&mut *self.extents.borrow_mut());
        self.balloc.applied(&extents);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let extents = std::mem::take(&mut *self.extents.borrow_mut());
        if !extents.is_empty() {
            self.balloc.make_available(&extents);
        }
    }
}

impl Drop for ReadPin {
    fn drop(&mut self) {
        let mut inner = self.balloc.inner.borrow_mut();
        inner.reads.remove(&self.number);
        let out = inner.released();
        drop(inner);
        if !out.is_empty() {
            (self.released)(out);
        }
    }
}

/// A group's free extents as the tree has them.
pub(crate) fn tree_extents(stage: &Stage, shape: Shape, group: u64) -> Result<BTreeMap<u64, u64>, Halt> {
    let (first, len) = shape.group(group);
    let mut extents = BTreeMap::new();
    if stage.get(TreeId::Balloc, &schema::summary_key(group))?.is_none() {
        extents.insert(first, len);
        return Ok(extents);
    }
    let mut from = schema::free_key(first).to_vec();
    let mut end = first;
    while let Some((key, value)) = stage.next(TreeId::Balloc, &from)? {
        let Some(start) = schema::key_number(FREE, &key).filter(|s| *s < first + len) else { break };
        let blocks = u64::from(schema::decode_u32("free extent", &value)?);
        if start < end || blocks == 0 || start + blocks > first + len {
            let why = format!("{blocks} blocks overlap a neighbour or leave group {group}");
            return Err(Corrupt::new("free extent", start * BLOCK_SIZE, why).into());
        }
        end = start + blocks;
        extents.insert(start, blocks);
        from = key;
        from.push(0);
    }
    Ok(extents)
}

fn subtract(extents: &mut BTreeMap<u64, u64>, start: u64, blocks: u64) {
    let end = start + blocks;
    let Some((&from, &len)) = extents.range(..=start).next_back() else { return };
    let until = from + len;
    if until < end {
        return; // Not free in the tree: a count that does not match tells.
    }
    extents.remove(&from);
    if from < start {
        extents.insert(from, start - from);
    }
    if end < until {
        extents.insert(end, until - end);
    }
}

fn insert_merged(extents: &mut BTreeMap<u64, u64>, mut start: u64, mut blocks: u64) {
    if let Some((&before, &len)) = extents.range(..start).next_back()
        && before + len == start
    {
        extents.remove(&before);
        start = before;
        blocks += len;
    }
    if let Some(len) = extents.remove(&(start + blocks)) {
        blocks += len;
    }
    extents.insert(start, blocks);
}

/// Runs a read of the trees until it misses nothing.
pub(crate) async fn retry<T>(forest: &Forest, read: impl Fn() -> Result<T, Miss>) -> Result<T, MetaError> {
    let _epoch = forest.epoch();
    loop {
        match read() {
            Ok(value) => return Ok(value),
            Err(miss) => forest.load(miss).await?,
        }
    }
}
