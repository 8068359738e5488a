//! A target on two test devices, and the few calls that all tests make.

use super::dev::{State, TestDev};
use crate::fsck::{FsckOptions, FsckReport, fsck};
use crate::{
    CobAttrs, Committed, FormatOptions, Limits, OpenError, OpenOptions, Region, Regions, Store, StoreError,
    TxClass, format,
};
use cobalt_base::checksum::crc32c_chunks;
use cobalt_base::{Fid, SessionId};
use cobalt_bdev::Device;
use cobalt_dma::{Arena, ArenaConfig, Slice};
use cobalt_reactor::{Ctx, Reactor, Scope};
use std::future::Future;
use std::rc::Rc;
use uuid::Uuid;

pub const CHUNK: usize = 4096;
pub const META: usize = 3 << 20;
pub const DATA: usize = 2 << 20;

pub struct Rig {
    pub ctx: Ctx,
    scope: Scope,
    pub arena: Arena,
    pub meta: Rc<State>,
    pub data: Rc<State>,
    pub regions: Regions,
    pub store: Store,
    pub limits: Limits,
}

/// Runs a test on virtual time under a seed.
pub fn run<F: Future<Output = ()> + 'static>(seed: u64, test: impl FnOnce(Ctx) -> F) {
    let reactor = Reactor::new_virtual(seed).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(test(ctx));
}

pub fn fid(session: u64, counter: u64) -> Fid {
    Fid::new(SessionId(session), counter)
}

pub fn devices(ctx: &Ctx, meta: Vec<u8>, data: Vec<u8>) -> (Regions, Rc<State>, Rc<State>) {
    let (meta, data) = (TestDev::new(ctx, meta), TestDev::new(ctx, data));
    let states = (meta.state(), data.state());
    let meta = Region::whole(Device::new(Rc::new(meta)));
    let data = Region::whole(Device::new(Rc::new(data)));
    (Regions { meta, data }, states.0, states.1)
}

pub fn format_options() -> FormatOptions {
    FormatOptions {
        node_size: 4096,
        journal: Some(128 << 10),
        ..FormatOptions::new(Uuid::from_u128(1), Uuid::from_u128(2), "t0")
    }
}

impl Rig {
    /// A new target.
    pub async fn new(ctx: &Ctx) -> Rig {
        Rig::with(ctx, Limits::tiny()).await
    }

    /// A new target that writes all data to their blocks at once.
    pub async fn without_inline(ctx: &Ctx) -> Rig {
        Rig::with(ctx, Limits { inline_max: 0, ..Limits::tiny() }).await
    }

    pub async fn with(ctx: &Ctx, limits: Limits) -> Rig {
        let arena = Arena::new(ArenaConfig { limit: 16 << 20 }).unwrap();
        let (regions, meta, data) = devices(ctx, vec![0; META], vec![0; DATA]);
        format(ctx, &regions, &arena, &format_options()).await.unwrap();
        Rig::open(ctx, arena, regions, meta, data, limits).await.unwrap()
    }

    async fn open(
        ctx: &Ctx,
        arena: Arena,
        regions: Regions,
        meta: Rc<State>,
        data: Rc<State>,
        limits: Limits,
    ) -> Result<Rig, OpenError> {
        let scope = ctx.scope();
        let options = OpenOptions { limits: limits.clone(), ..OpenOptions::default() };
        let store = Store::open(scope.ctx(), regions.clone(), arena.clone(), options).await?;
        Ok(Rig { ctx: ctx.clone(), scope, arena, meta, data, regions, store, limits })
    }

    /// For tasks that die with the target.
    pub fn scope_ctx(&self) -> Ctx {
        self.scope.ctx()
    }

    /// The process dies, its devices live on: writes on their way end in the caches, durable or not as asked for, and no
    /// flush ends.
    pub async fn die(&self) {
        let states = [&self.meta, &self.data];
        states.iter().for_each(|state| state.orphaned.set(true));
        self.scope.kill();
        self.ctx.sleep(std::time::Duration::from_millis(50)).await;
        states.iter().for_each(|state| state.orphaned.set(false));
    }

    /// Pulls the plug, and returns what the devices hold then.
    pub fn cut(&self, mode: u64) -> (Vec<u8>, Vec<u8>) {
        self.scope.kill();
        (self.meta.cut(&self.ctx, mode), self.data.cut(&self.ctx, mode))
    }

    /// Opens a target from images.
    pub async fn boot(&self, (meta, data): (Vec<u8>, Vec<u8>)) -> Result<Rig, OpenError> {
        let (regions, meta, data) = devices(&self.ctx, meta, data);
        Rig::open(&self.ctx, self.arena.clone(), regions, meta, data, self.limits.clone()).await
    }

    /// A power cut, a check, and the next start.
    pub async fn crash(self, mode: u64) -> Rig {
        let epoch = self.store.status().epoch;
        let images = self.cut(mode);
        let next = self.boot(images).await.unwrap();
        assert!(next.store.status().epoch > epoch, "each mount is told from those before it");
        next.assert_clean("after a crash").await;
        next
    }

    /// Checks what the devices hold now, in the middle of everything.
    pub async fn check(&self, data: bool) -> FsckReport {
        let (regions, ..) = devices(&self.ctx, self.meta.current(), self.data.current());
        let options = FsckOptions { data, limits: self.limits.clone(), ..FsckOptions::default() };
        fsck(&self.ctx, &regions, &self.arena, &options).await.unwrap()
    }

    pub async fn assert_clean(&self, when: &str) {
        let report = self.check(true).await;
        assert!(report.is_clean(), "{when}: {:#?}", report.findings);
    }

    pub fn slice(&self, bytes: &[u8]) -> Slice {
        slice(&self.arena, bytes)
    }

    pub async fn put(&self, fid: Fid, offset: u64, bytes: &[u8]) -> Result<Committed, StoreError> {
        put(&self.store, &self.arena, fid, offset, bytes).await
    }

    pub async fn read(&self, fid: Fid, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let data = self.store.cob_read(fid, offset, len as u64).await?;
        Ok(data.slices.iter().flat_map(|s| s.iter().copied()).collect())
    }

    /// Waits until chores and deallocations are done and nothing is reserved.
    pub async fn settle(&self) {
        for _ in 0..10_000 {
            if self.store.space().reserved == 0 && self.store.is_idle() {
                return;
            }
            self.ctx.sleep(std::time::Duration::from_millis(1)).await;
        }
        panic!("never settles: {:?}", self.store.space());
    }
}

pub fn slice(arena: &Arena, bytes: &[u8]) -> Slice {
    let mut buf = arena.try_alloc(bytes.len()).expect("room in the arena");
    buf.copy_from_slice(bytes);
    buf.freeze()
}

/// The write path, as ios walks it.
pub async fn put(
    store: &Store,
    arena: &Arena,
    fid: Fid,
    offset: u64,
    bytes: &[u8],
) -> Result<Committed, StoreError> {
    let mut crcs = Vec::new();
    crc32c_chunks(bytes, CHUNK, &mut crcs);
    let len = bytes.len() as u64;
    let attrs = CobAttrs { chunk_size: CHUNK as u32, incarnation: 7 };
    let mut tx = store.tx_open(TxClass::Write, len).await?;
    let cob = store.cob_lookup(&mut tx, fid, attrs).await?;
    let extents = store.balloc(&mut tx, len).await?;
    store.extmap(&mut tx, &cob, offset, len, &extents, &crcs).await?;
    let sealed = store.tx_close(tx);
    let stable = store.data_write(&sealed, &[slice(arena, bytes)]).await?;
    store.commit(sealed, stable).await
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}
