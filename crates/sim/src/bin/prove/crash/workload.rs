//! The workload: several clients on one target so small that it fills, wraps and checkpoints all the time.

use super::check::{Env, Recording, Start};
use super::client::{Client, Tally};
use super::disk::{Disk, Shape};
use super::image::{Block, Image};
use super::model::Lineage;
use crate::run::Counts;
use cobalt_base::{Fid, SessionId};
use cobalt_reactor::{Ctx, Reactor};
use cobalt_store::{CtgOp, CtgView, FormatOptions, Store, format};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// Blocks of the data region: the smallest that a target can have.
const DATA_BLOCKS: u32 = 256;
/// Keys that everybody wants.
const HOT: u8 = 3;
/// Bytes of the journal: the shortest.
const JOURNAL: u64 = 64 << 10;

/// What one workload did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Did {
    pub tally: Tally,
    pub checkpoints: u64,
    pub journal_bytes: u64,
}

impl Did {
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (name, n) in [
            ("writes", self.tally.writes),
            ("checkpoints", self.checkpoints),
            ("wraps", self.journal_bytes / JOURNAL),
            ("full", self.tally.full),
            ("deletes", self.tally.deletes),
            ("conditions", self.tally.conditions),
            ("given_up", self.tally.given_up),
        ] {
            counts.add(name, n);
        }
        counts
    }
}

pub fn shape(seed: u64) -> Shape {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5_4a9e);
    Shape {
        meta_blocks: rng.random_range(96..128),
        data_blocks: DATA_BLOCKS,
        // Every fourth device has no cache.
        volatile: seed % 4 != 3,
    }
}

/// A target that nobody has opened yet.
pub fn formatted(env: &Env) -> Image {
    let zero = Block::filled(0);
    let disk = Disk::new(vec![zero; (env.shape.meta_blocks + env.shape.data_blocks) as usize], None);
    let reactor = Reactor::new_virtual(0).expect("an eventfd");
    let (ctx, regions, arena, seed) = (reactor.ctx(), disk.regions(env.shape), env.arena.clone(), env.seed);
    reactor.block_on(async move {
        let options = FormatOptions {
            node_size: 4096,
            journal: Some(JOURNAL),
            ..FormatOptions::new(Uuid::from_u128(u128::from(seed) << 64 | 1), Uuid::from_u128(2), "crash")
        };
        format(&ctx, &regions, &arena, &options).await.expect("an empty device is formatted");
    });
    drop(reactor);
    Image::new(disk.pages.take())
}

/// Runs a workload from its seed to the end, on slow devices.
///
/// # Errors
/// What was wrong before anything crashed.
pub fn record(env: &Env) -> Result<(Recording, Did), String> {
    let start = formatted(env);
    let reactor = Reactor::new_virtual(env.seed).expect("an eventfd");
    let ctx = reactor.ctx();
    let disk = Disk::new(start.pages.clone(), Some((ctx.clone(), 40)));
    let (env2, disk2) = (env.clone(), disk.clone());
    let (client, did) = reactor.block_on(async move { play(&ctx, &env2, disk2).await })?;
    drop(reactor);
    if let Some(wrong) = client.wrong.take().or(disk.clash.take()) {
        return Err(wrong);
    }
    let (lineage, floors) = client.history.take().judge((Lineage::root(), 0))?;
    drop(client);
    let start = Start { durable: start, pending: Vec::new() };
    Ok((Recording { start, tape: disk.tape.take(), lineage: Rc::new(lineage), floors }, did))
}

async fn play(ctx: &Ctx, env: &Env, disk: Rc<Disk>) -> Result<(Client, Did), String> {
    let regions = disk.regions(env.shape);
    let store = Store::open(ctx.clone(), regions, env.arena.clone(), env.options())
        .await
        .map_err(|e| format!("opening a new target: {e}"))?;
    let client = Client::new(store.clone(), env.arena.clone(), disk, 1);
    let mut rng = StdRng::seed_from_u64(env.seed);
    let clients = rng.random_range(2..5);
    let fills = rng.random_range(0..4) == 0;
    let mut tasks = Vec::new();
    for n in 0..clients {
        let script = Script {
            client: client.clone(),
            ctx: ctx.clone(),
            rng: StdRng::seed_from_u64(rng.random()),
            chunk: if rng.random_range(0..4) == 0 { 8192 } else { 4096 },
        };
        tasks.push(ctx.spawn(script.run(56 / clients, fills && n == 0)));
    }
    let watcher = ctx.spawn(watch(ctx.clone(), client.clone(), StdRng::seed_from_u64(rng.random())));
    for task in tasks {
        task.await;
    }
    watcher.abort();
    store.close().await.map_err(|e| format!("closing: {e}"))?;
    let counters = store.counters();
    let did = Did {
        tally: client.tally.get(),
        checkpoints: counters.checkpoints,
        journal_bytes: counters.journal_bytes,
    };
    Ok((client, did))
}

/// Looks at the hot keys all the time: what is visible once must survive.
async fn watch(ctx: Ctx, client: Client, mut rng: StdRng) {
    let mut last = [const { None }; HOT as usize];
    loop {
        for (key, last) in (0..HOT).zip(&mut last) {
            client.watch(1, vec![b'k', key], last).await;
        }
        ctx.sleep(Duration::from_micros(rng.random_range(5..40))).await;
    }
}

struct Script {
    client: Client,
    ctx: Ctx,
    rng: StdRng,
    chunk: u32,
}

impl Script {
    async fn run(mut self, ops: u32, fills: bool) {
        for n in 0..ops {
            if fills && n == ops / 2 {
                self.fill().await;
            }
            self.one().await;
            if self.rng.random_range(0..4) == 0 {
                self.ctx.sleep(Duration::from_micros(self.rng.random_range(1..2000))).await;
            }
            if self.rng.random_range(0..24) == 0 {
                // Long enough for the empty record that says what is durable.
                self.ctx.sleep(Duration::from_millis(12)).await;
            }
        }
    }

    /// Chunk sizes are a cob's own: cobs of different sizes have different names.
    fn fid(&mut self) -> Fid {
        let session = self.rng.random_range(1..4);
        Fid::new(SessionId(session), u64::from(self.chunk / 4096 * 100) + self.rng.random_range(0..4))
    }

    async fn one(&mut self) {
        let fid = self.fid();
        let client = self.client.clone();
        match self.rng.random_range(0..100) {
            0..14 => {
                let len = self.rng.random_range(1..9) * 512;
                client.put(fid, self.chunk, self.rng.random_range(0..3), len.min(self.chunk)).await;
            }
            14..40 => {
                let first = self.rng.random_range(0..4);
                let len = self.rng.random_range(1..=6 * self.chunk);
                client.put(fid, self.chunk, first, len).await;
            }
            40..50 => {
                // Two at once on the same range.
                let first = self.rng.random_range(0..2);
                let (a, b) = (self.rng.random_range(1..4), self.rng.random_range(1..4));
                let chunk = self.chunk;
                let one = client.put(fid, chunk, first, a * chunk);
                let other = client.put(fid, chunk, first, b * chunk);
                futures::future::join(one, other).await;
            }
            50..54 => {
                // Given up, and its place taken at once.
                let len = self.rng.random_range(1..=4 * self.chunk);
                client.put_given_up(&self.ctx, fid, self.chunk, 0, len).await;
                client.put(fid, self.chunk, 0, len).await;
            }
            54..58 => {
                // Read while it goes.
                let chunk = self.chunk;
                futures::future::join(client.read(fid, chunk, 0..2, chunk), client.delete(fid)).await;
            }
            58..63 => {
                // Gone while it is written: which of the two comes first is decided where both are judged.
                let len = self.rng.random_range(1..=3 * self.chunk);
                let pause = Duration::from_micros(self.rng.random_range(0..150));
                let ctx = self.ctx.clone();
                let later = async {
                    ctx.sleep(pause).await;
                    client.delete(fid).await;
                };
                let (one, other) = (client.put(fid, self.chunk, 0, len), client.put(fid, self.chunk, 1, len));
                futures::future::join3(one, other, later).await;
            }
            63..64 => client.fence(SessionId(self.rng.random_range(3..5))).await,
            64..68 => {
                let first = self.rng.random_range(0..3);
                let count = self.rng.random_range(1..4);
                client.read(fid, self.chunk, first..first + count, self.chunk).await;
            }
            68..70 => client.get(1, vec![b'k', self.rng.random_range(0..HOT)]).await,
            70..84 => {
                let hot = self.rng.random_range(0..HOT);
                self.transaction(hot, 0..4).await;
            }
            84..92 => self.race().await,
            _ => {
                if let Err(error) = client.store.checkpoint().await {
                    client.wrong(format!("a checkpoint: {error}"));
                }
            }
        }
    }

    /// Several at once that want the same key, which all cannot have.
    async fn race(&mut self) {
        let hot = self.rng.random_range(0..HOT);
        let racers: Vec<_> = (0..3).map(|_| self.transaction(hot, 1..3)).collect();
        futures::future::join_all(racers).await;
    }

    fn transaction(&mut self, hot: u8, kinds: Range<u32>) -> impl Future<Output = ()> + use<> {
        let client = self.client.clone();
        let mine = client.content();
        let value = move |len: usize| -> Vec<u8> {
            mine.to_le_bytes().into_iter().cycle().take(len.max(4)).collect()
        };
        let len = self.rng.random_range(4..700);
        let kind = self.rng.random_range(kinds);
        let (hot, key) = (vec![b'k', hot], vec![b'p', self.rng.random_range(0..24)]);
        let decide = move |view: &CtgView| {
            let put = |key: &Vec<u8>, len| CtgOp::Put { ctg: 1, key: key.clone(), value: value(len) };
            if kind == 0 {
                // No condition; two catalogues in one.
                let other = CtgOp::Put { ctg: 2, key: key.clone(), value: value(len / 2) };
                return Ok((Vec::new(), vec![put(&key, len), other]));
            }
            let seen = view.get(1, &hot)?;
            let ops = match (kind, &seen) {
                // Create if absent.
                (1, None) => vec![put(&hot, 8)],
                // Take it away, and leave a trace.
                (2, Some(_)) => vec![CtgOp::Delete { ctg: 1, key: hot.clone() }, put(&key, len)],
                (1 | 2, _) => Vec::new(),
                // Replace, whatever it is, and say what it was.
                _ => vec![put(&hot, len)],
            };
            Ok((vec![((1, hot.clone()), seen)], ops))
        };
        async move { client.transact(decide).await }
    }

    /// Until there is no room, then a little more, then room again.
    async fn fill(&mut self) {
        let client = self.client.clone();
        let fids: Vec<Fid> = (0..12).map(|n| Fid::new(SessionId(8), n + 1)).collect();
        let mut len = 128 << 10;
        let mut used = 0;
        for fid in &fids {
            used += 1;
            if !client.put(*fid, 4096, 0, len).await {
                len /= 2;
            }
            if len < 4096 {
                break;
            }
        }
        for _ in 0..3 {
            self.one().await;
        }
        for fid in &fids[..used] {
            // What it frees is all that there is, and wanted at once, while a read still looks at it.
            let again = async {
                client.delete(*fid).await;
                client.put(Fid::new(SessionId(9), fid.counter), 4096, 0, 32 << 10).await;
                client.delete(Fid::new(SessionId(9), fid.counter)).await;
            };
            futures::future::join(client.read(*fid, 4096, 0..16, 4096), again).await;
        }
    }
}
