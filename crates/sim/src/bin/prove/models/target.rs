//! A target on two model disks, with limits so small that all of them are met.

use super::disk::{Cut, Disk};
use crate::run::Counts;
use cobalt_base::checksum::crc32c_chunks;
use cobalt_base::{Fid, SessionId};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor, Scope};
use cobalt_store::proof::{self, Stats};
use cobalt_store::{
    CobAttrs, Committed, FormatError, FormatOptions, FsckOptions, Limits, OpenError, OpenOptions, Region,
    Regions, Store, StoreCounters, StoreError, TxClass, format, fsck,
};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// Longest virtual time of one case: whatever takes longer hangs.
pub const CASE_TIME: Duration = Duration::from_secs(4 * 3600);
/// Longest virtual time of one call.
pub const CALL_TIME: Duration = Duration::from_secs(300);

/// Sizes of a target.
#[derive(Clone, Debug)]
pub struct Shape {
    pub meta: usize,
    pub data: usize,
    pub journal: u64,
    pub transfer: u32,
    pub arena: usize,
    pub limits: Limits,
}

impl Shape {
    /// A small target: 512 data blocks in 8 groups, a ring of 64 KiB, a few hundred node blocks.
    pub fn small() -> Shape {
        Shape {
            meta: 1200 << 10,
            data: 2 << 20,
            journal: 64 << 10,
            transfer: 64 << 10,
            arena: 8 << 20,
            limits: Limits { meta_arena: 2 << 20, ..Limits::tiny() },
        }
    }
}

/// What the target's lives so far have counted.
#[derive(Clone, Default)]
pub struct Tally(Rc<RefCell<Counts>>);

impl Tally {
    pub fn add(&self, name: &str, n: u64) {
        self.0.borrow_mut().add(name, n);
    }

    pub fn get(&self, name: &str) -> u64 {
        self.0.borrow().get(name)
    }

    pub fn take(&self) -> Counts {
        self.0.take()
    }
}

/// Runs a case on virtual time under its seed.
pub fn on_virtual_time<T: 'static, F: Future<Output = T> + 'static>(
    seed: u64,
    case: impl FnOnce(Ctx) -> F,
) -> T {
    let reactor = Reactor::new_virtual(seed).expect("an eventfd");
    let ctx = reactor.ctx();
    let case = case(ctx.clone());
    reactor.block_on(async move { ctx.timeout(CASE_TIME, case).await.expect("the case ends") })
}

/// An open target.
pub struct Target {
    pub ctx: Ctx,
    pub scope: Scope,
    pub arenas: Arenas,
    pub meta: Disk,
    pub data: Disk,
    pub store: Store,
    pub shape: Shape,
    pub tally: Tally,
}

/// Memory for payload, and that of the meta region.
#[derive(Clone)]
pub struct Arenas {
    pub payload: Arena,
    pub meta: Arena,
}

impl Target {
    /// A new target.
    pub async fn new(ctx: &Ctx, seed: u64, shape: Shape, tally: &Tally) -> Target {
        let (arenas, meta, data) = Target::parts(seed, &shape);
        Target::format(ctx, &arenas, &meta, &data, &shape, false).await.expect("a new target");
        let opened = Target::open(ctx, arenas, meta, data, shape, tally.clone()).await;
        opened.unwrap_or_else(|error| panic!("a new target does not open: {error}"))
    }

    /// What a target is made of.
    pub fn parts(seed: u64, shape: &Shape) -> (Arenas, Disk, Disk) {
        let arena = |limit| Arena::new(ArenaConfig { limit }).expect("an arena");
        let arenas = Arenas { payload: arena(shape.arena), meta: arena(shape.limits.meta_arena as usize) };
        let meta = Disk::new("meta", shape.meta, shape.transfer, seed ^ 0x6d65_7461);
        let data = Disk::new("data", shape.data, shape.transfer, seed ^ 0x6461_7461);
        (arenas, meta, data)
    }

    /// Formats the disks.
    pub async fn format(
        ctx: &Ctx,
        arenas: &Arenas,
        meta: &Disk,
        data: &Disk,
        shape: &Shape,
        force: bool,
    ) -> Result<(), FormatError> {
        let scope = ctx.scope();
        let options = FormatOptions {
            node_size: 4096,
            journal: Some(shape.journal),
            force,
            ..FormatOptions::new(Uuid::from_u128(1), Uuid::from_u128(2), "t0")
        };
        let regions = regions(&scope, meta, data);
        let within = scope.ctx();
        let formatted = format(&within, &regions, &arenas.payload, &options);
        ctx.timeout(CALL_TIME, formatted).await.expect("a format ends")
    }

    /// Opens what is on two disks.
    pub async fn open(
        ctx: &Ctx,
        arenas: Arenas,
        meta: Disk,
        data: Disk,
        shape: Shape,
        tally: Tally,
    ) -> Result<Target, OpenError> {
        let scope = ctx.scope();
        let meta_arena = Some(arenas.meta.clone());
        let options = OpenOptions { limits: shape.limits.clone(), meta_arena, ..OpenOptions::default() };
        let regions = regions(&scope, &meta, &data);
        let open = Store::open(scope.ctx(), regions, arenas.payload.clone(), options);
        match ctx.timeout(CALL_TIME, open).await.expect("an open ends") {
            Ok(store) => Ok(Target { ctx: ctx.clone(), scope, arenas, meta, data, store, shape, tally }),
            Err(error) => {
                scope.kill();
                Err(error)
            }
        }
    }

    /// The end of this life: what it met is counted, and its tasks are gone.
    pub fn kill(&self) {
        self.count_events();
        self.scope.kill();
    }

    /// The next start, of a target whose life has ended. With failures on order it may be refused; then the next one, without,
    /// succeeds. Says whether that was so.
    pub async fn start(self) -> (Target, bool) {
        let Target { ctx, arenas, meta, data, shape, tally, store, scope } = self;
        let epoch = store.status().epoch;
        drop((store, scope));
        let before = (meta.injected(), data.injected());
        let open =
            || Target::open(&ctx, arenas.clone(), meta.clone(), data.clone(), shape.clone(), tally.clone());
        let (next, refused) = match open().await {
            Ok(next) => (next, false),
            Err(error) => {
                assert!((meta.injected(), data.injected()) != before, "the target does not open: {error}");
                assert!(matches!(error, OpenError::Device { .. }), "a device failed, the verdict: {error}");
                tally.add("opens_refused", 1);
                for disk in [&meta, &data] {
                    disk.fail(None);
                    disk.cut(Cut::Sectors);
                }
                (open().await.unwrap_or_else(|e| panic!("the target does not open: {e}")), true)
            }
        };
        assert!(next.store.status().epoch > epoch, "each mount is told from those before it");
        next.assert_clean("after a start").await;
        (next, refused)
    }

    /// Failures on order wait until `work` is done.
    pub async fn in_peace<T>(&self, work: impl Future<Output = T>) -> T {
        self.meta.pause(true);
        self.data.pause(true);
        let done = work.await;
        self.meta.pause(false);
        self.data.pause(false);
        done
    }

    /// Checks all that the disks hold now; the target goes on beside it.
    pub async fn assert_clean(&self, when: &str) {
        let scope = self.ctx.scope();
        let regions = regions(&scope, &self.meta.copy(), &self.data.copy());
        let options = FsckOptions { data: true, limits: self.shape.limits.clone(), ..FsckOptions::default() };
        let report = fsck(&self.ctx, &regions, &self.arenas.payload, &options).await;
        let report = report.unwrap_or_else(|e| panic!("{when}: fsck cannot look: {e}"));
        assert!(report.is_clean(), "{when}: {:#?}", report.findings);
        self.tally.add("fscks", 1);
    }

    /// Waits until chores and deallocations are done and nothing is reserved.
    pub async fn settle(&self) {
        for _ in 0..20_000 {
            if self.store.space().reserved == 0 && proof::is_idle(&self.store) {
                return;
            }
            self.ctx.sleep(Duration::from_millis(1)).await;
        }
        panic!("the target never settles: {:?} {:?}", self.store.space(), self.store.status());
    }

    fn count_events(&self) {
        let (counters, stats) = (self.store.counters(), proof::stats(&self.store));
        count_events(&self.tally, &counters, &stats);
    }
}

fn count_events(tally: &Tally, counters: &StoreCounters, stats: &Stats) {
    let Stats { cache, wraps, journal_waits, groups_dropped, groups_left } = *stats;
    for (name, n) in [
        ("groups", counters.groups),
        ("txs", counters.txs),
        ("checkpoints", counters.checkpoints),
        ("splits", cache.splits),
        ("merges", cache.merges),
        ("evictions", cache.evictions),
        ("node_reads", cache.reads),
        ("wraps", wraps),
        ("journal_full", journal_waits),
        ("groups_dropped", groups_dropped),
        ("chore_steps", counters.chore_steps),
        ("group_full", groups_left),
        ("trims", counters.trims),
        ("refused", counters.refused),
        ("read_retries", counters.read_retries),
        ("apply_misses", counters.apply_misses),
    ] {
        tally.add(name, n);
    }
    assert_eq!(counters.apply_misses, 0, "what a transaction touched is there when it is applied");
}

/// The disks as a process sees them.
pub fn regions(scope: &Scope, meta: &Disk, data: &Disk) -> Regions {
    Regions { meta: Region::whole(meta.mount(scope)), data: Region::whole(data.mount(scope)) }
}

pub fn fid(session: u64, counter: u64) -> Fid {
    Fid::new(SessionId(session), counter)
}

/// Bytes that tell which write they are of, and where in it.
pub fn pattern(write: u64, len: usize) -> Vec<u8> {
    let mut x = write.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// A part of a transaction.
pub struct Piece {
    pub fid: Fid,
    pub attrs: CobAttrs,
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// One transaction with all its steps.
pub async fn put_all(store: &Store, arena: &Arena, pieces: &[Piece]) -> Result<Committed, StoreError> {
    let mut data = Vec::new();
    for piece in pieces {
        let mut buf = arena.alloc(piece.bytes.len()).await;
        buf.copy_from_slice(&piece.bytes);
        data.push(buf.freeze());
    }
    // Each is rounded up to blocks of its own.
    let admitted = pieces.iter().map(|p| p.bytes.len().next_multiple_of(4096) as u64).sum();
    let mut tx = store.tx_open(TxClass::Write, admitted).await?;
    for piece in pieces {
        let len = piece.bytes.len() as u64;
        let mut crcs = Vec::new();
        crc32c_chunks(&piece.bytes, piece.attrs.chunk_size as usize, &mut crcs);
        let cob = store.cob_lookup(&mut tx, piece.fid, piece.attrs).await?;
        let extents = store.balloc(&mut tx, len).await?;
        store.extmap(&mut tx, &cob, piece.offset, len, &extents, &crcs).await?;
    }
    let sealed = store.tx_close(tx);
    let stable = store.data_write(&sealed, &data).await?;
    store.commit(sealed, stable).await
}

/// The bytes of a read, with its checksums looked at.
pub async fn get(store: &Store, fid: Fid, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
    let data = store.cob_read(fid, offset, len).await?;
    let bytes: Vec<u8> = data.slices.iter().flat_map(|s| s.iter().copied()).collect();
    assert!(bytes.len() as u64 == len && data.len == len, "a read of {len} gives {}", bytes.len());
    let mut crcs = Vec::new();
    crc32c_chunks(&bytes, data.chunk_size as usize, &mut crcs);
    assert!(crcs == data.crcs, "the checksums that go with a read are those of its bytes");
    Ok(bytes)
}
