//! A client of one open target, that writes down what it asked, when, and what it was told.

use super::disk::Disk;
use super::model::{Change, Cob, History, Key, Piece, Seen, State};
use cobalt_base::checksum::crc32c_chunks;
use cobalt_base::{Fid, SessionId};
use cobalt_dma::{Arena, Slice};
use cobalt_reactor::Ctx;
use cobalt_store::{CobAttrs, Committed, CtgOp, CtgView, Miss, SealedTx, Store, StoreError, TxClass};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// How often what happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub writes: u64,
    pub full: u64,
    pub deletes: u64,
    pub conditions: u64,
    pub refused: u64,
    pub given_up: u64,
}

#[derive(Clone)]
pub struct Client {
    pub store: Store,
    pub arena: Arena,
    pub disk: Rc<Disk>,
    pub history: Rc<RefCell<History>>,
    pub tally: Rc<Cell<Tally>>,
    /// What went wrong in a way that no crash excuses.
    pub wrong: Rc<RefCell<Option<String>>>,
    contents: Rc<Cell<u32>>,
}

/// A condition's outcome: what it looked at, what it wanted.
type Decision = (Vec<(Key, Option<Vec<u8>>)>, Vec<CtgOp>);

impl Client {
    /// `contents` is the first number of a content, none of which is used twice.
    pub fn new(store: Store, arena: Arena, disk: Rc<Disk>, contents: u32) -> Client {
        Client {
            store,
            arena,
            disk,
            history: Rc::default(),
            tally: Rc::default(),
            wrong: Rc::default(),
            contents: Rc::new(Cell::new(contents)),
        }
    }

    pub fn tally(&self, f: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.get();
        f(&mut tally);
        self.tally.set(tally);
    }

    pub fn wrong(&self, what: String) {
        self.wrong.borrow_mut().get_or_insert(what);
    }

    fn begin(&self) -> usize {
        self.history.borrow_mut().turn()
    }

    pub fn content(&self) -> u32 {
        self.contents.replace(self.contents.get() + 1)
    }

    /// Writes `len` bytes from chunk `first` on. True when it was acknowledged.
    pub async fn put(&self, fid: Fid, chunk: u32, first: u32, len: u32) -> bool {
        let (begun, content) = (self.begin(), self.content());
        let result = match self.staged(fid, chunk, first, len, content).await {
            Ok((sealed, data)) => self.finish(sealed, &data).await,
            Err(error) => Err(error),
        };
        let done = self.disk.now();
        let mut history = self.history.borrow_mut();
        match result {
            Ok(committed) => {
                self.tally(|t| t.writes += 1);
                history.commit(
                    begun,
                    done,
                    committed.lsn().0,
                    Change::Put { fid, chunk, first, len, content },
                );
                return true;
            }
            Err(StoreError::NoSpace { .. }) => self.tally(|t| t.full += 1),
            Err(StoreError::Busy | StoreError::MetaFull) => self.tally(|t| t.refused += 1),
            Err(StoreError::Deleted(fid)) => history.saw(begun, done, Seen::Deleted(fid)),
            Err(StoreError::Fenced(session)) => history.saw(begun, done, Seen::Fenced(session)),
            Err(error) => self.wrong(format!("a write of {fid}: {error}")),
        }
        false
    }

    /// A write whose caller goes away while the bytes are on their way: it leaves no trace.
    pub async fn put_given_up(&self, ctx: &Ctx, fid: Fid, chunk: u32, first: u32, len: u32) {
        let content = self.content();
        if let Ok((sealed, data)) = self.staged(fid, chunk, first, len, content).await {
            let time = Duration::from_micros(ctx.random_u64() % 60);
            drop(ctx.timeout(time, self.store.data_write(&sealed, &data)).await);
            self.tally(|t| t.given_up += 1);
        }
    }

    async fn finish(&self, sealed: SealedTx, data: &[Slice]) -> Result<Committed, StoreError> {
        let stable = self.store.data_write(&sealed, data).await?;
        self.store.commit(sealed, stable).await
    }

    async fn staged(
        &self,
        fid: Fid,
        chunk: u32,
        first: u32,
        len: u32,
        content: u32,
    ) -> Result<(SealedTx, [Slice; 1]), StoreError> {
        let mut buf = self.arena.alloc(len as usize).await;
        for (at, out) in (first..).zip(buf.chunks_mut(chunk as usize)) {
            fill(content, at, out);
        }
        let mut crcs = Vec::new();
        crc32c_chunks(&buf, chunk as usize, &mut crcs);
        let data = [buf.freeze()];
        let attrs = CobAttrs { chunk_size: chunk, incarnation: 7 };
        let store = &self.store;
        let mut tx = store.tx_open(TxClass::Write, len.into()).await?;
        let cob = store.cob_lookup(&mut tx, fid, attrs).await?;
        let extents = store.balloc(&mut tx, len.into()).await?;
        let offset = u64::from(first) * u64::from(chunk);
        store.extmap(&mut tx, &cob, offset, len.into(), &extents, &crcs).await?;
        Ok((store.tx_close(tx), data))
    }

    pub async fn delete(&self, fid: Fid) {
        let begun = self.begin();
        let result = self.store.cob_delete(fid).await;
        let done = self.disk.now();
        match result {
            Ok(committed) => {
                self.tally(|t| t.deletes += 1);
                self.history.borrow_mut().commit(begun, done, committed.lsn().0, Change::Delete(fid));
            }
            Err(error) => self.wrong(format!("a delete of {fid}: {error}")),
        }
    }

    pub async fn fence(&self, session: SessionId) {
        let begun = self.begin();
        let result = self.store.fence(session).await;
        let done = self.disk.now();
        match result {
            Ok(committed) => {
                self.history.borrow_mut().commit(begun, done, committed.lsn().0, Change::Fence(session));
            }
            Err(error) => self.wrong(format!("a fence of {session}: {error}")),
        }
    }

    pub async fn transact(&self, decide: impl Fn(&CtgView) -> Result<Decision, Miss> + 'static) {
        let begun = self.begin();
        let result = self
            .store
            .ctg()
            .transact(move |view| {
                let (looked, ops) = decide(view)?;
                Ok((ops.clone(), (looked, ops)))
            })
            .await;
        let done = self.disk.now();
        match result {
            Ok(((looked, ops), lsn)) => {
                self.tally(|t| t.conditions += u64::from(!looked.is_empty()));
                self.history.borrow_mut().decided(begun, done, lsn.0, looked, ops);
            }
            Err(StoreError::Busy | StoreError::MetaFull) => self.tally(|t| t.refused += 1),
            Err(error) => self.wrong(format!("a transaction: {error}")),
        }
    }

    /// Reads whole chunks, the last of `len` bytes, and notes whose they are.
    pub async fn read(&self, fid: Fid, chunk: u32, chunks: std::ops::Range<u32>, last: u32) {
        let begun = self.begin();
        let offset = u64::from(chunks.start) * u64::from(chunk);
        let len = u64::from(chunks.end - chunks.start - 1) * u64::from(chunk) + u64::from(last);
        let result = self.store.cob_read(fid, offset, len).await;
        let done = self.disk.now();
        let found = match result {
            Ok(data) => {
                let bytes: Vec<u8> = data.slices.iter().flat_map(|s| s.iter().copied()).collect();
                let mut pieces = Vec::new();
                for (at, bytes) in (chunks.start..).zip(bytes.chunks(chunk as usize)) {
                    let content = content_of(bytes, at);
                    if !holds(content, at, bytes) {
                        return self.wrong(format!("a read of {fid}: chunk {at} is none that was written"));
                    }
                    pieces.push(Piece { content, len: u32::try_from(bytes.len()).unwrap_or(0) });
                }
                Some(pieces)
            }
            Err(StoreError::Missing { .. }) => None,
            // Another length by now.
            Err(StoreError::Invalid(_)) => return,
            Err(error) => return self.wrong(format!("a read of {fid}: {error}")),
        };
        self.history.borrow_mut().saw(begun, done, Seen::Chunks { fid, chunks, found });
    }

    pub async fn get(&self, ctg: u32, key: Vec<u8>) {
        let begun = self.begin();
        match self.store.ctg().get(ctg, &key).await {
            Ok(found) => {
                let seen = Seen::Key { key: (ctg, key), found };
                self.history.borrow_mut().saw(begun, self.disk.now(), seen);
            }
            Err(error) => self.wrong(format!("a get: {error}")),
        }
    }
}

impl Client {
    /// As `get`, noted only when it is not what it was the last time.
    pub async fn watch(&self, ctg: u32, key: Vec<u8>, last: &mut Option<Option<Vec<u8>>>) {
        let begun = self.begin();
        match self.store.ctg().get(ctg, &key).await {
            Ok(found) if last.as_ref() == Some(&found) => {}
            Ok(found) => {
                *last = Some(found.clone());
                let seen = Seen::Key { key: (ctg, key), found };
                self.history.borrow_mut().saw(begun, self.disk.now(), seen);
            }
            Err(error) => self.wrong(format!("a get: {error}")),
        }
    }
}

/// Holds all that the target has against what it must have.
///
/// # Errors
/// What differs.
pub async fn compare(store: &Store, state: &State) -> Result<(), String> {
    let found = store.cob_next(Fid::MIN, usize::MAX).await.map_err(|e| format!("listing cobs: {e}"))?;
    let (have, want): (Vec<_>, Vec<_>) =
        (found.iter().map(|(fid, _)| *fid).collect(), state.cobs.keys().copied().collect());
    if have != want {
        return Err(format!("the cobs are {have:?}, not {want:?}"));
    }
    for ((fid, info), cob) in found.iter().zip(state.cobs.values()) {
        let same = (info.chunk_size, info.size, info.allocated) == (cob.chunk, cob.size, cob.allocated());
        if !same {
            let (size, allocated) = (cob.size, cob.allocated());
            return Err(format!("cob {fid} is {info:?}, not of size {size} with {allocated} allocated"));
        }
        for run in runs(cob) {
            compare_run(store, *fid, cob, run).await?;
        }
    }
    let mut keys = BTreeMap::new();
    for ctg in [1, 2] {
        let rows = store.ctg().scan(ctg, &[], None, usize::MAX).await.map_err(|e| format!("a scan: {e}"))?;
        keys.extend(rows.into_iter().map(|(key, value)| ((ctg, key), value)));
    }
    if keys != state.keys {
        let differ: Vec<_> = (state.keys.keys().chain(keys.keys()))
            .filter(|key| state.keys.get(*key) != keys.get(*key))
            .map(|key| {
                let len = |map: &BTreeMap<Key, Vec<u8>>| map.get(key).map(|v| (v.len(), v.first().copied()));
                (key, len(&keys), len(&state.keys))
            })
            .collect();
        return Err(format!("catalogue entries differ (key, found, wanted): {differ:02x?}"));
    }
    Ok(())
}

/// Chunks that one read can take: none missing, none short but the last.
fn runs(cob: &Cob) -> Vec<std::ops::Range<u32>> {
    let mut runs: Vec<std::ops::Range<u32>> = Vec::new();
    let mut open = false;
    for (at, piece) in &cob.chunks {
        match runs.last_mut() {
            Some(run) if open && run.end == *at && run.len() < 32 => run.end += 1,
            _ => runs.push(*at..*at + 1),
        }
        open = piece.len == cob.chunk;
    }
    runs
}

async fn compare_run(store: &Store, fid: Fid, cob: &Cob, chunks: std::ops::Range<u32>) -> Result<(), String> {
    let len: u64 = cob.chunks.range(chunks.clone()).map(|(_, piece)| u64::from(piece.len)).sum();
    let offset = u64::from(chunks.start) * u64::from(cob.chunk);
    let data =
        store.cob_read(fid, offset, len).await.map_err(|e| format!("chunks {chunks:?} of cob {fid}: {e}"))?;
    // Slices end at the ends of blocks, chunks as well.
    let mut left: Vec<&[u8]> = data.slices.iter().map(|s| &**s).rev().collect();
    for (at, piece) in cob.chunks.range(chunks) {
        let mut have = 0;
        while have < piece.len as usize {
            let Some(bytes) = left.pop() else { return Err(format!("chunk {at} of cob {fid} is short")) };
            let (part, rest) = bytes.split_at(bytes.len().min(piece.len as usize - have));
            if !holds_from(piece.content, *at, have, part) {
                let (whose, want) = (content_of(bytes, *at), piece.content);
                return Err(format!("chunk {at} of cob {fid} has the bytes of content {whose}, not {want}"));
            }
            have += part.len();
            if !rest.is_empty() {
                left.push(rest);
            }
        }
    }
    Ok(())
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bytes that say whose they are and where they belong.
fn word(content: u32, chunk: u32, index: u64) -> u64 {
    (u64::from(content) << 32 | u64::from(chunk)).wrapping_add(index.wrapping_mul(STEP))
}

fn fill(content: u32, chunk: u32, out: &mut [u8]) {
    for (index, out) in (0..).zip(out.chunks_mut(8)) {
        out.copy_from_slice(&word(content, chunk, index).to_le_bytes()[..out.len()]);
    }
}

fn content_of(bytes: &[u8], _chunk: u32) -> u32 {
    bytes.get(4..8).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn holds(content: u32, chunk: u32, bytes: &[u8]) -> bool {
    holds_from(content, chunk, 0, bytes)
}

/// Whether these are the bytes from byte `from` of the chunk on, a multiple of 8.
fn holds_from(content: u32, chunk: u32, from: usize, bytes: &[u8]) -> bool {
    let first = word(content, chunk, from as u64 / 8);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut same = true;
    let mut want = first;
    for word in words {
        same &= u64::from_le_bytes(*word) == want;
        want = want.wrapping_add(STEP);
    }
    same && rest == &want.to_le_bytes()[..rest.len()]
}
