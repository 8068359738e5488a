//! The allocator beside an array of blocks: what it hands out is free, nobody else's, and not what a transaction that
//! is not yet durable or a read still holds; it says that there is no room only when there is none.

use super::case::Model;
use super::disk::{Disk, Error, Fault, Kind};
use super::target::{Tally, on_virtual_time};
use crate::run::Counts;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::Ctx;
use cobalt_store::proof::{Allocator, Pinned, Reserved};
use cobalt_store::{Extent, Limits, Region, StoreError};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use std::time::Duration;

/// The last group is short.
const BLOCKS: u64 = 8100;
const GROUP: u64 = 128;
/// A stride that frees nothing.
const NOTHING: usize = 5;

#[derive(Clone, Debug)]
pub enum Op {
    /// Reserves, several at one time.
    Reserve(Vec<(u64, Option<u64>)>),
    /// Gives a reservation up.
    Drop(usize),
    /// Maps reservations, and frees every `stride`th block of something mapped.
    Commit(usize, usize, usize),
    /// Takes groups that are all free from one on, and frees every second block of them.
    Fragment(u64, u64),
    Pin,
    Unpin(usize),
    /// Blocks that nothing holds any more come back.
    Release(usize),
    Withdraw(u64, u64),
    Checkpoint,
    Reopen,
    FailRead(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let goal = || option::weighted(0.6, 0..BLOCKS);
    let blocks = prop_oneof![5 => 1..8u64, 3 => 1..64u64, 2 => 1..1500u64];
    prop_oneof![
        12 => vec((blocks, goal()), 1..4).prop_map(Op::Reserve),
        3 => any::<usize>().prop_map(Op::Drop),
        12 => (0..4usize, any::<usize>(), 0..6usize).prop_map(|(take, give, step)| Op::Commit(take, give, step)),
        2 => (0..BLOCKS / GROUP, 1..24u64).prop_map(|(group, count)| Op::Fragment(group, count)),
        // More nodes than any cache keeps.
        1 => Just(Op::Fragment(0, BLOCKS / GROUP)),
        2 => Just(Op::Pin),
        3 => any::<usize>().prop_map(Op::Unpin),
        5 => any::<usize>().prop_map(Op::Release),
        1 => (0..BLOCKS, 1..100u64).prop_map(|(start, len)| Op::Withdraw(start, start + len)),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::Reopen),
        1 => (0..3u64).prop_map(Op::FailRead),
    ]
}

pub struct BallocModel;

impl Model for BallocModel {
    type Op = Op;
    const NAME: &'static str = "balloc";
    const CASES: u64 = 300;
    const MEETS: &'static [&'static str] = &[
        "reserved",
        "no_space",
        "waits",
        "group_full",
        "groups_dropped",
        "node_reads",
        "evictions",
        "goals",
        "held_back",
        "pieces",
        "reopens",
    ];

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        vec(op(), 1..160)
    }

    fn play(seed: u64, ops: Vec<Op>) -> Counts {
        on_virtual_time(seed, move |ctx| async move {
            let mut world = World::new(&ctx, seed).await;
            for op in ops {
                world = world.act(op).await;
            }
            world.end().await
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Free,
    Reserved,
    Mapped,
    /// Freed; and how many pins had been taken then.
    Freed(u64),
    /// Nothing holds it any more, and it was not yet given back.
    LetGo,
}

struct World {
    ctx: Ctx,
    disk: Disk,
    allocator: Allocator,
    blocks: Vec<Block>,
    reserved: Vec<Reserved>,
    mapped: Vec<Extent>,
    pins: Vec<(u64, Pinned)>,
    pins_taken: u64,
    let_go: Vec<Extent>,
    tally: Tally,
}

impl World {
    async fn new(ctx: &Ctx, seed: u64) -> World {
        let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).expect("an arena");
        let disk = Disk::new("meta", 3 << 20, 64 << 10, seed);
        let meta = Region::whole(disk.mount(&ctx.scope()));
        let limits = Limits { node_cache: 4096, groups_loaded: 2, ..Limits::tiny() };
        let allocator = Allocator::new(ctx, &meta, &arena, BLOCKS, limits).await.expect("an allocator");
        assert_eq!(allocator.group_blocks(), GROUP);
        World {
            ctx: ctx.clone(),
            disk,
            allocator,
            blocks: vec![Block::Free; BLOCKS as usize],
            reserved: Vec::new(),
            mapped: Vec::new(),
            pins: Vec::new(),
            pins_taken: 0,
            let_go: Vec::new(),
            tally: Tally::default(),
        }
    }

    fn count(&self, is: impl Fn(&Block) -> bool) -> u64 {
        self.blocks.iter().filter(|b| is(b)).count() as u64
    }

    fn free(&self) -> u64 {
        self.count(|b| *b == Block::Free)
    }

    fn coming(&self) -> u64 {
        self.count(|b| matches!(b, Block::Freed(_) | Block::LetGo))
    }

    fn turn(&mut self, extents: &[Extent], from: impl Fn(Block) -> bool, to: Block) {
        for extent in extents {
            for block in extent.start..extent.start + u64::from(extent.blocks) {
                let state = &mut self.blocks[block as usize];
                assert!(from(*state), "block {block} is {state:?}, and becomes {to:?}");
                *state = to;
            }
        }
    }

    /// Whether these were all free, in one group.
    fn is_free_run(&self, start: u64, blocks: u64) -> bool {
        start + blocks <= BLOCKS
            && start / GROUP == (start + blocks - 1) / GROUP
            && (start..start + blocks).all(|b| self.blocks[b as usize] == Block::Free)
    }

    async fn reserve(&mut self, wants: Vec<(u64, Option<u64>)>) {
        let [(blocks, goal)] = wants[..] else { return self.reserve_many(wants).await };
        let (free, coming) = (self.free(), self.coming());
        let result = self.ctx.timeout(Duration::from_secs(1), self.allocator.reserve(blocks, goal)).await;
        match result {
            Ok(Ok(reserved)) => {
                assert!(blocks <= free, "{blocks} of {free} free blocks");
                let extents = reserved.extents();
                if let Some(goal) = goal
                    && self.is_free_run(goal, blocks)
                {
                    let at_goal = Extent { start: goal, blocks: blocks as u32 };
                    assert_eq!(extents, [at_goal], "the goal was free");
                    self.tally.add("goals", 1);
                }
                self.took(&extents, blocks);
                self.reserved.push(reserved);
            }
            Ok(Err(StoreError::NoSpace { .. })) => {
                assert!(
                    blocks > free + coming,
                    "{blocks} blocks: no room, with {free} free and {coming} to come"
                );
                self.tally.add("no_space", 1);
            }
            Ok(Err(error)) => self.excuse(&error),
            Err(_) => {
                assert!(blocks > free && blocks <= free + coming, "{blocks} blocks wait, with {free} free");
                self.tally.add("waits", 1);
            }
        }
    }

    fn took(&mut self, extents: &[Extent], blocks: u64) {
        let sum: u64 = extents.iter().map(|e| u64::from(e.blocks)).sum();
        assert_eq!(sum, blocks);
        for extent in extents {
            let last = extent.start + u64::from(extent.blocks) - 1;
            assert!(
                extent.blocks > 0 && extent.start / GROUP == last / GROUP,
                "{extent:?} is not in one group"
            );
        }
        self.turn(extents, |b| b == Block::Free, Block::Reserved);
        self.tally.add("reserved", 1);
        self.tally.add("pieces", u64::from(extents.len() > 1));
    }

    /// Several at one time: their loads of groups interleave.
    async fn reserve_many(&mut self, wants: Vec<(u64, Option<u64>)>) {
        let allocator = &self.allocator;
        let ctx = &self.ctx;
        let calls = wants.iter().map(|(blocks, goal)| async move {
            ctx.timeout(Duration::from_secs(1), allocator.reserve(*blocks, *goal)).await
        });
        let results = futures::future::join_all(calls).await;
        let (free, coming) = (self.free(), self.coming());
        let all: u64 = wants.iter().map(|(blocks, _)| blocks).sum();
        for ((blocks, _), result) in wants.into_iter().zip(results) {
            match result {
                Ok(Ok(reserved)) => {
                    self.took(&reserved.extents(), blocks);
                    self.reserved.push(reserved);
                }
                Ok(Err(StoreError::NoSpace { .. })) => {
                    assert!(
                        all > free + coming,
                        "{all} blocks: no room, with {free} free and {coming} to come"
                    );
                    self.tally.add("no_space", 1);
                }
                Ok(Err(error)) => self.excuse(&error),
                Err(_) => {
                    assert!(all > free, "{blocks} blocks wait, with {free} free for {all}");
                    self.tally.add("waits", 1);
                }
            }
        }
    }

    fn excuse(&self, error: &StoreError) {
        let injected = self.disk.injected()[Kind::Read as usize];
        assert!(injected > 0 && matches!(error, StoreError::Failed { .. }), "an error of nothing: {error}");
        self.disk.fail(None);
        self.tally.add("read_errors", 1);
    }

    async fn commit(&mut self, take: usize, give: usize, stride: usize) {
        let take: Vec<Reserved> = self.reserved.drain(..take.min(self.reserved.len())).collect();
        let mut freed = Vec::new();
        let mut kept = Vec::new();
        if !self.mapped.is_empty() && stride < NOTHING {
            let extent = self.mapped.swap_remove(give % self.mapped.len());
            for at in 0..u64::from(extent.blocks) {
                let block = Extent { start: extent.start + at, blocks: 1 };
                let free = stride == 0 || (at as usize).is_multiple_of(stride + 1);
                if free { &mut freed } else { &mut kept }.push(block);
            }
            if stride == 0 {
                freed = vec![extent];
            }
        }
        let result = self.allocator.commit(&take, freed.clone()).await;
        match result {
            Ok(let_go) => {
                for reserved_extents in take.iter().map(Reserved::extents) {
                    assert!(reserved_extents.is_empty(), "what is mapped is reserved no more");
                }
                self.turn(&freed, |b| b == Block::Mapped, Block::Freed(self.pins_taken));
                self.mapped.extend(kept);
                self.lets_go(&let_go);
                if !freed.is_empty() && let_go.is_empty() {
                    self.tally.add("held_back", 1);
                }
                self.tally.add("commits", 1);
            }
            Err(error) => {
                // Nothing was changed: what was mapped is, what was reserved comes back.
                self.excuse(&error);
                self.mapped.extend(kept);
                self.mapped.extend(freed);
                for reserved in &take {
                    self.turn(&reserved.extents(), |b| b == Block::Mapped, Block::Free);
                }
            }
        }
    }

    /// Nothing holds these any more: no pin that was there when they were freed.
    fn lets_go(&mut self, extents: &[Extent]) {
        let oldest = self.pins.iter().map(|(number, _)| *number).min().unwrap_or(u64::MAX);
        self.turn(extents, |b| matches!(b, Block::Freed(pins) if pins <= oldest), Block::LetGo);
        self.let_go.extend(extents);
    }

    /// Maps the first reservations, and frees of something that was mapped before.
    async fn map_and_free(&mut self, take: usize, give: usize, stride: usize) {
        let take = take.min(self.reserved.len());
        let extents: Vec<Vec<Extent>> = self.reserved[..take].iter().map(Reserved::extents).collect();
        for extents in &extents {
            self.turn(extents, |b| b == Block::Reserved, Block::Mapped);
        }
        let before = self.tally.get("commits");
        self.commit(take, give, stride).await;
        if self.tally.get("commits") > before {
            self.mapped.extend(extents.into_iter().flatten());
        }
    }

    async fn act(mut self, op: Op) -> World {
        self.tally.add("ops", 1);
        match op {
            Op::Reserve(wants) => self.reserve(wants).await,
            Op::Drop(at) if !self.reserved.is_empty() => {
                let reserved = self.reserved.swap_remove(at % self.reserved.len());
                self.turn(&reserved.extents(), |b| b == Block::Reserved, Block::Free);
            }
            Op::Commit(take, give, stride) => self.map_and_free(take, give, stride).await,
            Op::Fragment(group, count) => {
                for group in group..(group + count).min(BLOCKS / GROUP) {
                    if self.is_free_run(group * GROUP, GROUP) {
                        self.reserve(vec![(GROUP, Some(group * GROUP))]).await;
                        let last = self.reserved.len().saturating_sub(1);
                        self.reserved.rotate_right(usize::from(last > 0));
                        self.map_and_free(1, 0, NOTHING).await;
                        self.map_and_free(0, self.mapped.len().saturating_sub(1), 1).await;
                    }
                }
            }
            Op::Pin => {
                self.pins.push((self.pins_taken, self.allocator.pin()));
                self.pins_taken += 1;
            }
            Op::Unpin(at) if !self.pins.is_empty() => {
                drop(self.pins.swap_remove(at % self.pins.len()));
                let let_go = self.allocator.let_go();
                self.lets_go(&let_go);
            }
            Op::Release(at) if !self.let_go.is_empty() => {
                let extent = self.let_go.swap_remove(at % self.let_go.len());
                self.turn(&[extent], |b| b == Block::LetGo, Block::Free);
                self.allocator.reusable(&[extent]);
            }
            Op::Withdraw(start, end) => match self.allocator.withdraw(start, end).await {
                Ok(Some(extent)) => {
                    assert!(extent.start >= start && extent.start + u64::from(extent.blocks) <= end);
                    self.turn(&[extent], |b| b == Block::Free, Block::LetGo);
                    self.let_go.push(extent);
                }
                Ok(None) => {
                    let end = end.min((start / GROUP + 1) * GROUP).min(BLOCKS);
                    let free = (start..end).find(|b| self.blocks[*b as usize] == Block::Free);
                    assert_eq!(free, None, "free, and not found");
                }
                Err(error) => self.excuse(&error),
            },
            Op::Checkpoint => {
                self.allocator.checkpoint().await.expect("no write fails here");
                self.tally.add("checkpoints", 1);
            }
            Op::Reopen => self = self.reopen().await,
            Op::FailRead(at) => {
                self.disk.fail(Some(Fault { kind: Kind::Read, at, forever: false, error: Error::Failed }));
            }
            Op::Drop(_) | Op::Unpin(_) | Op::Release(_) => {}
        }
        self.check();
        self
    }

    fn check(&self) {
        let held = self.count(|b| matches!(b, Block::Reserved | Block::Freed(_) | Block::LetGo));
        assert_eq!(self.allocator.counts(), (self.free(), held), "blocks that are free, and held");
    }

    fn met(&self) {
        let [dropped, left, reads, evictions] = self.allocator.met();
        for (name, n) in [
            ("groups_dropped", dropped),
            ("group_full", left),
            ("node_reads", reads),
            ("evictions", evictions),
        ] {
            self.tally.add(name, n);
        }
    }

    async fn reopen(mut self) -> World {
        self.met();
        self.disk.fail(None);
        self.reserved.clear();
        self.pins.clear();
        self.let_go.clear();
        self.allocator = self.allocator.reopen().await.expect("no read fails here");
        for block in &mut self.blocks {
            if *block != Block::Mapped {
                *block = Block::Free;
            }
        }
        self.tally.add("reopens", 1);
        self
    }

    /// Everything comes back.
    async fn end(mut self) -> Counts {
        self.disk.fail(None);
        for reserved in std::mem::take(&mut self.reserved) {
            self.turn(&reserved.extents(), |b| b == Block::Reserved, Block::Free);
        }
        self.pins.clear();
        let let_go = self.allocator.let_go();
        self.lets_go(&let_go);
        let mapped = std::mem::take(&mut self.mapped);
        let more = self.allocator.commit(&[], mapped.clone()).await.expect("no read fails here");
        self.turn(&mapped, |b| b == Block::Mapped, Block::Freed(self.pins_taken));
        self.lets_go(&more);
        let all = std::mem::take(&mut self.let_go);
        self.turn(&all, |b| b == Block::LetGo, Block::Free);
        self.allocator.reusable(&all);
        assert_eq!(self.free(), BLOCKS, "every block comes back");
        self.check();
        self.met();
        let count = self.tally.get("reopens");
        let world = self.reopen().await;
        assert_eq!(world.tally.get("reopens"), count + 1);
        world.check();
        world.tally.take()
    }
}
