//! A small target in which every structure of the format occurs, made by the store's own calls, and what it must
//! answer. Every run makes the same one.

use crate::image::{History, ImageDisk};
use cobalt_base::checksum::crc32c_chunks;
use cobalt_base::{Fid, SessionId};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::Ctx;
use cobalt_store::{
    CobAttrs, Committed, CtgOp, CtgView, FormatOptions, Limits, OpenOptions, Regions, Store, StoreError,
    TxClass, format,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Bytes of the two regions.
pub const META_LEN: usize = 1 << 20;
pub const DATA_LEN: usize = 4 << 20;
/// Bytes of the journal ring and of a node.
pub const JOURNAL_LEN: u64 = 128 << 10;
pub const NODE_SIZE: u32 = 4096;

const CHUNK: u32 = 4096;
const LARGE_CHUNK: u32 = 64 << 10;
/// Cobs of one chunk that fill the data region nearly.
const COBS: u64 = 1000;
const INCARNATION: u64 = 7;

/// The target's identity.
pub fn target() -> Uuid {
    Uuid::from_u128(0x0c0b_a170_0000_4000_8000_0000_0000_0001)
}

/// Its cluster's.
pub fn cluster() -> Uuid {
    Uuid::from_u128(0x0c0b_a170_0000_4000_8000_0000_0000_0002)
}

/// What a target must answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Chunk size, and the chunks by their offset.
    pub cobs: BTreeMap<Fid, (u32, BTreeMap<u64, Vec<u8>>)>,
    pub deleted: BTreeSet<Fid>,
    pub fenced: BTreeSet<SessionId>,
    pub entries: BTreeMap<(u32, Vec<u8>), Vec<u8>>,
}

/// The target at one moment.
#[derive(Clone)]
pub struct Moment {
    pub name: &'static str,
    pub meta: Arc<Vec<u8>>,
    pub data: Arc<Vec<u8>>,
    pub model: Model,
    /// What it answers without its journal's last record.
    pub shorter: Model,
}

/// The target at the moments that matter, and what each block held until the last.
pub struct Populated {
    /// Nothing to redo but the record that names the superblock.
    pub closed: Moment,
    /// A cob half freed, records before and after the checkpoint, and a last one that nothing says was durable.
    pub busy: Moment,
    /// The same target some time later: an empty record follows the last group.
    pub quiet: Moment,
    /// Later, on devices with a volatile cache: small writes whose data are in their records, and not on their blocks.
    pub inline: Moment,
    pub meta_history: History,
    pub data_history: History,
}

/// The limits it is made and opened with: few rows a step, and checkpoints when they are asked for.
pub fn limits() -> Limits {
    Limits { node_cache: 4 << 20, dirty_max: 4 << 20, journal_fill_pct: 100, trim: false, ..Limits::tiny() }
}

struct Work {
    ctx: Ctx,
    arena: Arena,
    store: Store,
    model: Model,
    writes: u64,
}

/// Makes the target.
///
/// # Panics
/// When the store refuses any of it.
pub async fn populate(ctx: &Ctx) -> Populated {
    let (meta, data) =
        (ImageDisk::new(Arc::new(vec![0; META_LEN])), ImageDisk::new(Arc::new(vec![0; DATA_LEN])));
    meta.remember();
    data.remember();
    // The target's own work is slow enough to be caught in the middle.
    meta.slow_down(ctx, Duration::from_micros(500));
    let regions = Regions { meta: meta.region(), data: data.region() };
    let arena = Arena::new(ArenaConfig { limit: 16 << 20 }).expect("memory for an arena");
    let options = FormatOptions {
        node_size: NODE_SIZE,
        journal: Some(JOURNAL_LEN),
        ..FormatOptions::new(target(), cluster(), "every-structure")
    };
    format(ctx, &regions, &arena, &options).await.expect("an empty device");
    let open = |ctx: &Ctx| {
        let options = OpenOptions { limits: limits(), ..OpenOptions::default() };
        Store::open(ctx.clone(), regions.clone(), arena.clone(), options)
    };
    let scope = ctx.scope();
    let store = open(&scope.ctx()).await.expect("a new target");
    let mut work = Work { ctx: ctx.clone(), arena: arena.clone(), store, model: Model::default(), writes: 0 };
    let moment = |name, model: &Model, shorter: &Model| Moment {
        name,
        meta: Arc::new(meta.image()),
        data: Arc::new(data.image()),
        model: model.clone(),
        shorter: shorter.clone(),
    };
    work.fill().await;
    work.hollow().await;
    work.catalogues().await;
    work.store.close().await.expect("a good end");
    scope.kill();
    let closed = moment("closed", &work.model, &work.model);

    let scope = ctx.scope();
    work.store = open(&scope.ctx()).await.expect("a closed target");
    let (busy, quiet) = work.last_hours(&moment).await;
    scope.kill();
    let inline = work.inline(&quiet).await;
    Populated { closed, busy, quiet, inline, meta_history: meta.history(), data_history: data.history() }
}

/// The fids of a session.
fn fid(session: u64, counter: u64) -> Fid {
    Fid::new(SessionId(session), counter)
}

/// Bytes that tell where they belong, and of which write.
fn pattern(fid: Fid, offset: u64, write: u64, len: usize) -> Vec<u8> {
    let mut line = Vec::with_capacity(64);
    for n in [fid.session.0, fid.counter, offset, write, !write, offset.wrapping_mul(0x9e37_79b9_7f4a_7c15)] {
        line.extend_from_slice(&n.to_le_bytes());
    }
    line.extend_from_slice(b"what was written");
    line.iter().copied().cycle().take(len).collect()
}

impl Work {
    async fn put(&mut self, fid: Fid, chunk: u32, offset: u64, len: usize) -> Committed {
        self.writes += 1;
        let mut bytes = Vec::with_capacity(len);
        for (n, at) in (0..len).step_by(chunk as usize).enumerate() {
            let place = offset + n as u64 * u64::from(chunk);
            bytes.extend(pattern(fid, place, self.writes, (len - at).min(chunk as usize)));
        }
        let committed =
            put(&self.store, &self.arena, fid, chunk, offset, &bytes).await.expect("there is room for it");
        let (_, chunks) = self.model.cobs.entry(fid).or_insert_with(|| (chunk, BTreeMap::new()));
        for (n, piece) in bytes.chunks(chunk as usize).enumerate() {
            chunks.insert(offset + n as u64 * u64::from(chunk), piece.to_vec());
        }
        committed
    }

    async fn delete(&mut self, fid: Fid) {
        self.store.cob_delete(fid).await.expect("deletes always work");
        self.model.cobs.remove(&fid);
        self.model.deleted.insert(fid);
    }

    async fn fence(&mut self, session: u64) {
        self.store.fence(SessionId(session)).await.expect("fences always work");
        self.model.fenced.insert(SessionId(session));
        self.model.deleted.retain(|fid| fid.session.0 != session);
    }

    async fn entry(&mut self, ctg: u32, key: Vec<u8>, value: Option<Vec<u8>>) {
        let op = match &value {
            Some(value) => CtgOp::Put { ctg, key: key.clone(), value: value.clone() },
            None => CtgOp::Delete { ctg, key: key.clone() },
        };
        let change = move |_: &CtgView| Ok((vec![op.clone()], ()));
        self.store.ctg().transact(change).await.expect("there is room for it");
        match value {
            Some(value) => self.model.entries.insert((ctg, key), value),
            None => self.model.entries.remove(&(ctg, key)),
        };
    }

    async fn checkpoint(&self) {
        self.store.checkpoint().await.expect("a checkpoint");
    }

    async fn rest(&self) {
        self.ctx.sleep(Duration::from_millis(200)).await;
    }

    /// Small cobs until most of the data region is used.
    async fn fill(&mut self) {
        for n in 1..=COBS {
            let len = CHUNK as usize - (n % 5) as usize * 100;
            self.put(fid(1 + n % 2, n), CHUNK, 0, len).await;
            if n % 20 == 0 {
                self.checkpoint().await;
            }
        }
    }

    /// Every other one goes: free space is in pieces, and what comes is too.
    async fn hollow(&mut self) {
        for n in (1..=COBS).step_by(2) {
            self.delete(fid(1 + n % 2, n)).await;
            if n % 40 == 1 {
                self.checkpoint().await;
            }
        }
        self.put(fid(3, 1), CHUNK, 0, 30 * CHUNK as usize).await;
        self.checkpoint().await;
        // Grown, overwritten in its middle and at its end, and with a hole.
        self.put(fid(3, 2), CHUNK, 0, 3 * CHUNK as usize + 10).await;
        self.put(fid(3, 2), CHUNK, 3 * u64::from(CHUNK), 2 * CHUNK as usize + 77).await;
        self.put(fid(3, 2), CHUNK, u64::from(CHUNK), 2 * CHUNK as usize).await;
        self.put(fid(3, 2), CHUNK, 9 * u64::from(CHUNK), 100).await;
        self.put(fid(3, 3), LARGE_CHUNK, 0, LARGE_CHUNK as usize + 5000).await;
        self.put(fid(3, 3), LARGE_CHUNK, u64::from(LARGE_CHUNK), 9000).await;
        for session in [20, 22, 21, 40] {
            self.put(fid(session, 1), CHUNK, 0, 100).await;
            self.delete(fid(session, 1)).await;
            self.fence(session).await;
        }
        self.rest().await;
        self.checkpoint().await;
    }

    async fn catalogues(&mut self) {
        for n in 0..60u32 {
            let key = [&[b'k'; 700][..], &n.wrapping_mul(0x9e37_79b9).to_be_bytes()].concat();
            self.entry(1, key, Some(vec![n as u8; 300])).await;
            self.entry(0x0102_0304, format!("name/{n:04}").into_bytes(), Some(vec![7; n as usize])).await;
            if n % 8 == 7 {
                self.checkpoint().await;
            }
        }
        for n in (0..60u32).step_by(7) {
            self.entry(0x0102_0304, format!("name/{n:04}").into_bytes(), None).await;
        }
        self.entry(u32::MAX, Vec::new(), Some(Vec::new())).await;
        // Many rows, to be freed one by one.
        for n in 0..100 {
            self.put(fid(4, 1), CHUNK, n * 2 * u64::from(CHUNK), CHUNK as usize).await;
            if n % 20 == 19 {
                self.checkpoint().await;
            }
        }
    }

    /// Records before a checkpoint and after it, one of several transactions, a cob that is being freed.
    async fn last_hours(
        &mut self,
        moment: &impl Fn(&'static str, &Model, &Model) -> Moment,
    ) -> (Moment, Moment) {
        for n in 0..4 {
            self.put(fid(5, n), CHUNK, 0, CHUNK as usize + 50).await;
        }
        self.rest().await;
        self.delete(fid(4, 1)).await;
        self.checkpoint().await;
        self.put(fid(5, 4), CHUNK, 0, 2 * CHUNK as usize).await;
        self.entry(1, b"after the checkpoint".to_vec(), Some(vec![1; 1200])).await;
        self.together().await;
        self.delete(fid(5, 0)).await;
        self.fence(41).await;
        let shorter = self.model.clone();
        self.put(fid(5, 5), CHUNK, 0, 300).await;
        let busy = moment("busy", &self.model, &shorter);
        self.rest().await;
        self.put(fid(5, 6), CHUNK, 0, 3 * CHUNK as usize).await;
        self.entry(2, b"later".to_vec(), Some(vec![2; 600])).await;
        self.rest().await;
        (busy, moment("quiet", &self.model, &self.model))
    }

    /// Small writes, overwritten and deleted ones among them, after a start on devices with a volatile cache.
    async fn inline(&mut self, from: &Moment) -> Moment {
        let (meta, data) = (ImageDisk::volatile(from.meta.clone()), ImageDisk::volatile(from.data.clone()));
        let regions = Regions { meta: meta.region(), data: data.region() };
        let scope = self.ctx.scope();
        let options = OpenOptions { limits: limits(), ..OpenOptions::default() };
        let store = Store::open(scope.ctx(), regions, self.arena.clone(), options).await;
        self.store = store.expect("a target after a crash");
        for n in 0..5 {
            self.put(fid(6, n), CHUNK, 0, 1000 + n as usize * 1200).await;
        }
        self.put(fid(6, 1), CHUNK, 0, 3000).await;
        self.delete(fid(6, 2)).await;
        self.put(fid(5, 4), CHUNK, u64::from(CHUNK), CHUNK as usize).await;
        self.rest().await;
        let shorter = self.model.clone();
        self.put(fid(6, 9), CHUNK, 0, 500).await;
        let (meta, data) = (Arc::new(meta.image()), Arc::new(data.image()));
        scope.kill();
        Moment { name: "inline", meta, data, model: self.model.clone(), shorter }
    }

    /// Several transactions at one time, so that they share a record; the first is longer than a block.
    async fn together(&mut self) {
        let entry = |n: u32, part: u32| {
            let key = format!("together/{n}/{part}").into_bytes();
            (key, vec![n as u8; if n == 0 { 1200 } else { 90 }])
        };
        let store = self.store.clone();
        let puts = (0..4u32).map(|n| {
            let store = store.clone();
            async move {
                let ops = (0..4).map(|part| {
                    let (key, value) = entry(n, part);
                    CtgOp::Put { ctg: 2, key, value }
                });
                let ops: Vec<_> = ops.collect();
                store.ctg().transact(move |_: &CtgView| Ok((ops.clone(), ()))).await
            }
        });
        for done in futures::future::join_all(puts).await {
            done.expect("there is room for it");
        }
        for (n, part) in (0..4).flat_map(|n| (0..4).map(move |part| (n, part))) {
            let (key, value) = entry(n, part);
            self.model.entries.insert((2, key), value);
        }
    }
}

/// The write path, as ios walks it.
///
/// # Errors
/// What the store says.
pub async fn put(
    store: &Store,
    arena: &Arena,
    fid: Fid,
    chunk: u32,
    offset: u64,
    bytes: &[u8],
) -> Result<Committed, StoreError> {
    let mut crcs = Vec::new();
    crc32c_chunks(bytes, chunk as usize, &mut crcs);
    let len = bytes.len() as u64;
    let mut tx = store.tx_open(TxClass::Write, len).await?;
    let attrs = CobAttrs { chunk_size: chunk, incarnation: INCARNATION };
    let cob = store.cob_lookup(&mut tx, fid, attrs).await?;
    let extents = store.balloc(&mut tx, len).await?;
    store.extmap(&mut tx, &cob, offset, len, &extents, &crcs).await?;
    let sealed = store.tx_close(tx);
    let mut buf = arena.alloc(bytes.len()).await;
    buf.copy_from_slice(bytes);
    let stable = store.data_write(&sealed, &[buf.freeze()]).await?;
    store.commit(sealed, stable).await
}

/// How a target's answers compare with a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    pub right: u64,
    /// Errors, by what was asked.
    pub errors: Vec<String>,
    /// Answers that are neither right nor an error.
    pub wrong: Vec<String>,
}

impl Answers {
    fn judge<T: PartialEq>(&mut self, asked: impl Fn() -> String, got: Result<T, StoreError>, want: &T) {
        match got {
            Ok(got) if got == *want => self.right += 1,
            Ok(_) => self.wrong.push(asked()),
            Err(error) => self.errors.push(format!("{}: {error}", asked())),
        }
    }

    /// Whether everything was answered, and rightly.
    pub fn all_right(&self) -> bool {
        self.errors.is_empty() && self.wrong.is_empty()
    }
}

impl Model {
    /// Asks a target everything that the model knows.
    pub async fn ask(&self, store: &Store) -> Answers {
        let mut answers = Answers::default();
        let listed = store.cob_next(Fid::MIN, self.cobs.len() + 1).await;
        let listed = listed.map(|rows| rows.into_iter().map(|(fid, _)| fid).collect());
        answers.judge(|| "list of cobs".into(), listed, &self.cobs.keys().copied().collect::<Vec<_>>());
        for (fid, (chunk, chunks)) in &self.cobs {
            let end = chunks.iter().next_back().map_or(0, |(at, bytes)| at + bytes.len() as u64);
            let stat = store.cob_stat(*fid).await.map(|info| info.map(|i| (i.chunk_size, i.size)));
            answers.judge(|| format!("attributes of {fid}"), stat, &Some((*chunk, end)));
            for (at, bytes) in chunks {
                let read = store.cob_read(*fid, *at, bytes.len() as u64).await;
                let read = read.map(|data| data.slices.iter().flat_map(|s| s.iter().copied()).collect());
                answers.judge(|| format!("chunk of {fid} at {at}"), read, bytes);
            }
        }
        for fid in &self.deleted {
            let stat = store.cob_stat(*fid).await.map(|info| info.is_some());
            answers.judge(|| format!("attributes of {fid}, deleted"), stat, &false);
        }
        self.ask_catalogues(store, &mut answers).await;
        answers
    }

    async fn ask_catalogues(&self, store: &Store, answers: &mut Answers) {
        for ((ctg, key), value) in &self.entries {
            let got = store.ctg().get(*ctg, key).await;
            let asked = || format!("catalogue {ctg} key {}", String::from_utf8_lossy(key));
            answers.judge(asked, got, &Some(value.clone()));
        }
        let numbers: BTreeSet<u32> = self.entries.keys().map(|(ctg, _)| *ctg).collect();
        for ctg in numbers {
            let want: Vec<_> = self.entries.iter().filter(|((c, _), _)| *c == ctg).collect();
            let want: Vec<_> =
                want.into_iter().map(|((_, key), value)| (key.clone(), value.clone())).collect();
            let mut got = Vec::new();
            let mut from = Vec::new();
            let scanned = loop {
                match store.ctg().scan(ctg, &from, None, 16).await {
                    Ok(page) => {
                        let Some((last, _)) = page.last() else { break Ok(got) };
                        from.clone_from(last);
                        from.push(0);
                        got.extend(page);
                    }
                    Err(error) => break Err(error),
                }
            };
            answers.judge(|| format!("scan of catalogue {ctg}"), scanned, &want);
        }
    }
}
