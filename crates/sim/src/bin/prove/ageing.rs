//! Ageing: a target is worked to 95 % full and back, thousands of times. Not one block may leak, and what a write costs at
//! the end is compared with what it cost at the start, for both ways to place blocks.

use crate::run::{Counts, Failure, Run};
use cobalt_base::{BLOCK_SIZE, Fid, SessionId, checksum::crc32c_chunks};
use cobalt_bdev::{Device, MemBdev};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor};
use cobalt_store::{
    CobAttrs, FormatOptions, FsckOptions, Limits, OpenOptions, Placement, Region, Regions, Store, StoreError,
    TxClass, format, fsck,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const TURNS: u64 = 2_000;
const META: u64 = 16 << 20;
const DATA_BLOCKS: u64 = 8_192;
/// Fill levels in blocks: each turn goes up to the first and back to the second.
const FULL: u64 = DATA_BLOCKS * 95 / 100;
const EASED: u64 = DATA_BLOCKS * 85 / 100;
/// A target with a tenth in use: how much of a sparse file is touched in the long run.
const LIGHT: u64 = DATA_BLOCKS / 10;
/// Longest write, in blocks.
const WRITE_MAX: u64 = 64;
/// Turns of one session. Then it is fenced, which takes the tombstones of its deletes away.
const SESSION_TURNS: u64 = 50;
/// Nodes of a target that holds nothing but the row of its fences.
const NODES_EMPTY: u64 = 2;
/// Turns between two checks of everything.
const CHECK_EVERY: u64 = 500;

/// Both placements, one on each thread.
pub fn run(run: &Run) -> Result<Counts, Failure> {
    let turns = run.count.unwrap_or(TURNS);
    let one = |placement: Placement| {
        let reactor = Reactor::new_virtual(run.seed).expect("a reactor on virtual time needs no system");
        let ctx = reactor.ctx();
        let seed = run.seed;
        reactor.block_on(async move { age(&ctx, placement, seed, turns).await })
    };
    let [goal, first_fit] = std::thread::scope(|scope| {
        let threads = [Placement::Goal, Placement::FirstFit].map(|p| scope.spawn(move || one(p)));
        threads.map(|thread| thread.join().expect("a panic aborts"))
    });
    let fail = |what: String| Failure { case: String::new(), what };
    let mut counts = Counts::default();
    for (name, aged) in [("goal", goal.map_err(fail)?), ("first_fit", first_fit.map_err(fail)?)] {
        counts.add("turns", aged.turns);
        counts.add("writes", aged.writes);
        let mut figure = |what: &str, n: u64| counts.add(&format!("{name}_{what}"), n);
        figure("milli_extents_per_write_start", aged.start.milli_extents());
        figure("milli_extents_per_write_end", aged.end.milli_extents());
        figure("writes_per_s_start", aged.start.rate());
        figure("writes_per_s_end", aged.end.rate());
        figure("touched_pct_at_10_pct", aged.touched * 100 / DATA_BLOCKS);
    }
    counts.add("leaked", 0);
    Ok(counts)
}

/// What some turns cost.
#[derive(Default)]
struct Cost {
    writes: u64,
    extents: u64,
    time: Duration,
}

impl Cost {
    fn milli_extents(&self) -> u64 {
        self.extents * 1000 / self.writes.max(1)
    }

    fn rate(&self) -> u64 {
        self.writes * 1_000_000 / (self.time.as_micros() as u64).max(1)
    }
}

struct Aged {
    turns: u64,
    writes: u64,
    start: Cost,
    end: Cost,
    touched: u64,
}

struct Target {
    ctx: Ctx,
    arena: Arena,
    regions: Regions,
    store: Store,
    rng: StdRng,
    /// Cobs and their blocks: what must be in use.
    cobs: Vec<(Fid, u64)>,
    used: u64,
    session: SessionId,
    turns: u64,
    next: u64,
    touched: BTreeSet<u64>,
}

async fn age(ctx: &Ctx, placement: Placement, seed: u64, turns: u64) -> Result<Aged, String> {
    let mut light = Target::new(ctx, placement, seed).await?;
    let mut ignored = Cost::default();
    for _ in 0..turns / 4 {
        light.turn(LIGHT, LIGHT / 2, &mut ignored).await?;
    }
    let touched = light.touched.len() as u64;
    light.end().await?;

    let mut target = Target::new(ctx, placement, seed).await?;
    let window = (turns / 20).max(1);
    let mut aged = Aged { turns, writes: 0, start: Cost::default(), end: Cost::default(), touched };
    // The first filling has an empty target to itself: it is nobody's yardstick.
    target.turn(FULL, EASED, &mut ignored).await?;
    for turn in 0..turns {
        let mut cost = Cost::default();
        let start = now();
        target.turn(FULL, EASED, &mut cost).await?;
        cost.time = start.elapsed();
        aged.writes += cost.writes;
        let of = if turn < window { Some(&mut aged.start) } else { None };
        let of = if turn >= turns - window { Some(&mut aged.end) } else { of };
        if let Some(of) = of {
            of.writes += cost.writes;
            of.extents += cost.extents;
            of.time += cost.time;
        }
        if turn % CHECK_EVERY == CHECK_EVERY - 1 {
            target.check(&format!("after {} turns", turn + 1)).await?;
        }
    }
    target.end().await?;
    Ok(aged)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the price of a write is real time; what happens follows from the seed alone"
)]
fn now() -> Instant {
    Instant::now()
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Target {
    async fn new(ctx: &Ctx, placement: Placement, seed: u64) -> Result<Target, String> {
        let arena = Arena::new(ArenaConfig { limit: 16 << 20 }).map_err(said)?;
        let region = |bytes| Region::whole(Device::new(Rc::new(MemBdev::new(bytes))));
        let regions = Regions { meta: region(META), data: region(DATA_BLOCKS * BLOCK_SIZE) };
        let format_options = FormatOptions::new(Uuid::from_u128(1), Uuid::from_u128(2), "aged");
        format(ctx, &regions, &arena, &format_options).await.map_err(said)?;
        let limits = Limits { placement, ..Limits::default() };
        let options = OpenOptions { limits, ..OpenOptions::default() };
        let store = Store::open(ctx.clone(), regions.clone(), arena.clone(), options).await.map_err(said)?;
        let rng = StdRng::seed_from_u64(seed);
        let ctx = ctx.clone();
        Ok(Target {
            ctx,
            arena,
            regions,
            store,
            rng,
            cobs: Vec::new(),
            used: 0,
            session: SessionId(1),
            turns: 0,
            next: 1,
            touched: BTreeSet::new(),
        })
    }

    /// Up to `full` blocks in use, and back to `eased`.
    async fn turn(&mut self, full: u64, eased: u64, cost: &mut Cost) -> Result<(), String> {
        self.turns += 1;
        if self.turns.is_multiple_of(SESSION_TURNS) {
            self.store.fence(self.session).await.map_err(said)?;
            self.session = SessionId(self.session.0 + 1);
        }
        while self.used < full {
            // Small ones are many, large ones have the bytes.
            let most = 1 << self.rng.random_range(0..=WRITE_MAX.ilog2());
            let blocks = self.rng.random_range(1..=most).min(full - self.used);
            // A fifth replaces a whole cob: its old blocks come back by the same transaction.
            let old = (self.rng.random_range(0..5) == 0 && !self.cobs.is_empty())
                .then(|| self.rng.random_range(0..self.cobs.len()))
                .filter(|at| self.cobs[*at].0.session == self.session);
            let (fid, blocks) = match old {
                Some(at) => self.cobs[at],
                None => (Fid::new(self.session, self.next), blocks),
            };
            if old.is_none() {
                self.next += 1;
                self.cobs.push((fid, blocks));
                self.used += blocks;
            }
            let extents =
                self.write(fid, blocks).await.map_err(|e| format!("a write of {blocks} blocks: {e}"))?;
            cost.writes += 1;
            cost.extents += extents;
        }
        while self.used > eased {
            let (fid, blocks) = self.cobs.swap_remove(self.rng.random_range(0..self.cobs.len()));
            self.store.cob_delete(fid).await.map_err(said)?;
            self.used -= blocks;
        }
        Ok(())
    }

    /// One durable write from the start of a cob; how many extents it took.
    async fn write(&mut self, fid: Fid, blocks: u64) -> Result<u64, StoreError> {
        let len = blocks * BLOCK_SIZE;
        let mut buf = self.arena.alloc(len as usize).await;
        buf.fill(fid.counter as u8);
        let mut crcs = Vec::new();
        crc32c_chunks(&buf, BLOCK_SIZE as usize, &mut crcs);
        let store = &self.store;
        let mut tx = store.tx_open(TxClass::Write, len).await?;
        let attrs = CobAttrs { chunk_size: BLOCK_SIZE as u32, incarnation: 1 };
        let cob = store.cob_lookup(&mut tx, fid, attrs).await?;
        let extents = store.balloc(&mut tx, len).await?;
        store.extmap(&mut tx, &cob, 0, len, &extents, &crcs).await?;
        let sealed = store.tx_close(tx);
        let stable = store.data_write(&sealed, &[buf.freeze()]).await?;
        store.commit(sealed, stable).await?;
        for extent in extents.pieces() {
            self.touched.extend(extent.start..extent.start + u64::from(extent.blocks));
        }
        Ok(extents.pieces().len() as u64)
    }

    /// Waits for what runs in the background, then counts blocks.
    async fn settled(&self) -> Result<u64, String> {
        for _ in 0..100_000 {
            let space = self.store.space();
            if space.reserved == 0 && space.used == self.used * BLOCK_SIZE {
                return Ok(space.used);
            }
            self.ctx.sleep(Duration::from_millis(10)).await;
        }
        let space = self.store.space();
        Err(format!("{} bytes should be in use, but the target says {space:?}", self.used * BLOCK_SIZE))
    }

    /// Holds the target against what it should hold; its node blocks, too.
    async fn check(&self, when: &str) -> Result<u64, String> {
        self.settled().await.map_err(|e| format!("{when}: {e}"))?;
        self.store.checkpoint().await.map_err(said)?;
        let report =
            fsck(&self.ctx, &self.regions, &self.arena, &FsckOptions::default()).await.map_err(said)?;
        if report.is_clean() { Ok(report.nodes) } else { Err(format!("{when}: {:#?}", report.findings)) }
    }

    /// Deletes everything: then every block is free.
    async fn end(mut self) -> Result<(), String> {
        let mut ignored = Cost::default();
        self.turn(0, 0, &mut ignored).await?;
        // Tombstones of the last session are left.
        self.store.fence(self.session).await.map_err(said)?;
        let mut nodes = self.check("with everything deleted").await?;
        for _ in 0..1_000 {
            if nodes <= NODES_EMPTY {
                break;
            }
            self.ctx.sleep(Duration::from_millis(10)).await;
            nodes = self.check("with everything deleted").await?;
        }
        if nodes > NODES_EMPTY {
            return Err(format!("{nodes} nodes hold nothing: their rows are gone"));
        }
        let space = self.store.space();
        if space.free != space.total {
            return Err(format!("{} bytes have leaked", space.total - space.free));
        }
        self.store.close().await.map_err(said)
    }
}
