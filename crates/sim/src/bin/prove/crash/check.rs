//! One state: mounted, checked, compared, worked on. And the tape of it, for the crashes of recovery itself.

use super::client::{Client, compare};
use super::disk::{Disk, Shape, Tape};
use super::image::{Image, Page};
use super::model::{Cob, Floors, Lineage};
use super::walk::Pending;
use cobalt_base::{Fid, SessionId};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor};
use cobalt_store::{CtgOp, FsckOptions, Limits, OpenError, OpenOptions, Store, fsck, proof};
use std::rc::Rc;
use std::time::Duration;

/// What all states of a workload share.
#[derive(Clone)]
pub struct Env {
    pub seed: u64,
    pub shape: Shape,
    pub arena: Arena,
    pub meta_arena: Arena,
    pub limits: Limits,
}

/// Where a life began.
pub struct Start {
    pub durable: Image,
    /// What the dead process before it left in the devices' caches.
    pub pending: Vec<Pending>,
}

/// A life: its tape, and what it promised.
pub struct Recording {
    pub start: Start,
    pub tape: Tape,
    pub lineage: Rc<Lineage>,
    pub floors: Floors,
}

/// What a mounted state held, and what followed.
pub struct Checked {
    pub lsn: u64,
    pub tape: Tape,
    pub lineage: Rc<Lineage>,
    pub floors: Floors,
}

/// How much is done with a state beyond the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    Mount,
    /// Goes on working.
    Work,
    /// Closes, and opens what that leaves.
    Reopen,
}

impl Env {
    pub fn new(seed: u64, shape: Shape) -> Env {
        let arena = |limit| Arena::new(ArenaConfig { limit }).expect("memory for an arena");
        let limits = Limits { node_cache: 128 << 10, ..Limits::tiny() };
        Env { seed, shape, arena: arena(8 << 20), meta_arena: arena(8 << 20), limits }
    }

    /// Another workload on the same memory.
    pub fn again(&self, seed: u64, shape: Shape) -> Env {
        Env { seed, shape, ..self.clone() }
    }

    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            cluster: None,
            limits: self.limits.clone(),
            read_only: false,
            meta_arena: Some(self.meta_arena.clone()),
            ..OpenOptions::default()
        }
    }
}

/// Mounts what the pages hold and checks it. `from` are the states that the crashed life went through.
///
/// # Errors
/// What is wrong with it.
pub fn check(
    env: &Env,
    pages: Vec<Page>,
    from: &Rc<Lineage>,
    floor: u64,
    depth: Depth,
) -> Result<Checked, String> {
    let disk = Disk::new(pages, None);
    let reactor = Reactor::new_virtual(1).expect("an eventfd");
    let life = Life { env: env.clone(), ctx: reactor.ctx(), disk: disk.clone(), from: from.clone(), floor };
    let lived = reactor.block_on(async move { life.live(depth).await });
    drop(reactor);
    lived
}

/// Mounts what the pages hold after a record that is known to be durable has rotted: a verdict, or everything up to `floor`.
///
/// # Errors
/// What was silently lost.
pub fn check_rotten(env: &Env, pages: Vec<Page>, from: &Rc<Lineage>, floor: u64) -> Result<(), String> {
    let disk = Disk::new(pages, None);
    let reactor = Reactor::new_virtual(1).expect("an eventfd");
    let life = Life { env: env.clone(), ctx: reactor.ctx(), disk, from: from.clone(), floor };
    let lived = reactor.block_on(async move { life.judge_rotten().await });
    drop(reactor);
    lived
}

struct Life {
    env: Env,
    ctx: Ctx,
    disk: Rc<Disk>,
    from: Rc<Lineage>,
    floor: u64,
}

impl Life {
    async fn live(&self, depth: Depth) -> Result<Checked, String> {
        self.fsck(false).await?;
        let store = self.open().await?;
        let opened = self.disk.now();
        let lsn = proof::recovered(&store).0;
        if lsn < self.floor {
            return Err(format!("recovered up to lsn {lsn}, but {} was acknowledged", self.floor));
        }
        compare(&store, self.from.at(lsn)).await?;
        // Numbers of contents that no other life on this image has.
        let contents = 1 << 31 | u32::try_from(lsn & 0x7fff).unwrap_or(0) << 16;
        let client = Client::new(store.clone(), self.env.arena.clone(), self.disk.clone(), contents);
        if depth >= Depth::Work {
            self.work(&client, lsn).await?;
        }
        if depth >= Depth::Reopen {
            self.settle(&store).await?;
            store.close().await.map_err(|e| format!("closing: {e}"))?;
        }
        if let Some(wrong) = client.wrong.take().or(self.disk.clash.take()) {
            return Err(wrong);
        }
        let space = store.space();
        let mut history = client.history.take();
        history.visible(0, self.floor);
        history.visible(opened, lsn);
        let (lineage, floors) = history.judge((self.from.clone(), lsn))?;
        let held: u64 = lineage.at(u64::MAX).cobs.values().map(Cob::allocated).sum();
        if depth >= Depth::Reopen && (space.used, space.reserved) != (held, 0) {
            return Err(format!("cobs hold {held} bytes, but the space is {space:?}"));
        }
        // What the next start does is on another tape.
        let checked = Checked { lsn, tape: self.disk.tape.take(), lineage: Rc::new(lineage), floors };
        if depth >= Depth::Reopen {
            self.fsck(true).await?;
            let again = self.open().await?;
            compare(&again, checked.lineage.at(u64::MAX)).await.map_err(|e| format!("after a close: {e}"))?;
        }
        Ok(checked)
    }

    async fn judge_rotten(&self) -> Result<(), String> {
        match self.try_open().await {
            Err(OpenError::Damaged { .. }) => Ok(()),
            Err(error) => Err(format!("a record has rotted: {error}")),
            Ok(store) if proof::recovered(&store).0 < self.floor => {
                let lsn = proof::recovered(&store);
                Err(format!("a record has rotted, and lsns {lsn} to {} are lost in silence", self.floor))
            }
            Ok(store) => compare(&store, self.from.at(proof::recovered(&store).0)).await,
        }
    }

    async fn open(&self) -> Result<Store, String> {
        self.try_open().await.map_err(|e| format!("it does not open: {e}"))
    }

    async fn try_open(&self) -> Result<Store, OpenError> {
        let regions = self.disk.regions(self.env.shape);
        Store::open(self.ctx.clone(), regions, self.env.arena.clone(), self.env.options()).await
    }

    async fn fsck(&self, closed: bool) -> Result<(), String> {
        let regions = self.disk.regions(self.env.shape);
        let options = FsckOptions {
            data: false, // All data is read, and checked, by the comparison.
            limits: self.env.limits.clone(),
            ..FsckOptions::default()
        };
        let report = fsck(&self.ctx, &regions, &self.env.arena, &options).await;
        let report = report.map_err(|e| format!("fsck: {e}"))?;
        // The second copy of a superblock is written after the first.
        let bad = report.findings.iter().find(|f| closed || f.is_fatal());
        bad.map_or(Ok(()), |finding| Err(format!("fsck: {finding:?}")))
    }

    /// Waits for the work that the crash left over.
    async fn settle(&self, store: &Store) -> Result<(), String> {
        for _ in 0..1000 {
            if proof::is_idle(store) && store.space().reserved == 0 {
                return Ok(());
            }
            self.ctx.sleep(Duration::from_millis(1)).await;
        }
        Err(format!("work that a crash left over never ends: {:?}", store.space()))
    }

    /// What was deleted and fenced stays so; a write, an overwrite, a transaction and a delete go through.
    async fn work(&self, client: &Client, lsn: u64) -> Result<(), String> {
        let state = self.from.at(lsn).clone();
        let fresh = Fid::new(SessionId(77), 1);
        client.put(fresh, 4096, 0, 6000).await;
        let held = state.cobs.iter().find(|(fid, _)| !state.fenced.contains(&fid.session));
        if let Some((fid, cob)) = held {
            client.put(*fid, cob.chunk, 0, 700).await;
        }
        for fid in state.gone.iter().take(2) {
            if client.put(*fid, 4096, 0, 512).await {
                return Err(format!("cob {fid} was deleted, but can be written again"));
            }
        }
        for session in &state.fenced {
            if client.put(Fid::new(*session, 12345), 4096, 0, 512).await {
                return Err(format!("session {session} was fenced, but can write"));
            }
        }
        client
            .transact(|view| {
                let key = b"k\0".to_vec();
                let seen = view.get(1, &key)?;
                let put = CtgOp::Put { ctg: 1, key: key.clone(), value: b"again".to_vec() };
                Ok((vec![((1, key), seen)], vec![put]))
            })
            .await;
        let victim = state.cobs.keys().next_back().copied().unwrap_or(fresh);
        client.delete(victim).await;
        client.get(1, b"k\0".to_vec()).await;
        Ok(())
    }
}
