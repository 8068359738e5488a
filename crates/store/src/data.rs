//! The write path, one call for each step of the table: admission, look-up, blocks, extent map, close,
//! data, data-stable gate, commit.

use crate::apply;
use crate::cob::{Cob, CobAttrs};
use crate::commit::{Kind, Work};
use crate::error::StoreError;
use crate::geometry::Region;
use crate::inline::{Carried, map_of};
use crate::intent::{Intent, Map};
use crate::schema::{self, COB, Parts};
use crate::store::{Core, Store};
use crate::tree::TreeId;
use crate::tx::{Committed, DataStable, Extent, Extents, Reservations, SealedTx, Tx, TxClass};
use cobalt_base::canary::{Canary, planted};
use cobalt_base::{BLOCK_SIZE, Fid};
use cobalt_bdev::{IoError, WriteData};
use cobalt_dma::{Arena, Slice};
use cobalt_reactor::sync::{Notify, oneshot};
use cobalt_reactor::{Ctx, Step};
use futures::future::join_all;
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Poll;

/// Most maps of one transaction, and the largest encoding of one without its extents and checksums: what
/// admission promised of the journal must hold whatever the transaction becomes.
const MAPS_MAX: usize = 4;
const MAP_BYTES: usize = 96;
/// Largest chunk, in bytes.
const CHUNK_MAX: u32 = 64 << 10;

impl Store {
    /// Step 5: admission. Journal space for `data_bytes` of data is reserved, waiting for it if need be.
    ///
    /// # Errors
    /// `Busy` when too many wait, `MetaFull`, and the target's state.
    pub async fn tx_open(&self, class: TxClass, data_bytes: u64) -> Result<Tx, StoreError> {
        let core = &self.0;
        core.ctx.step(Step::TxOpen);
        core.may_write()?;
        if data_bytes > core.limits.tx_data {
            let why = format!("{data_bytes} bytes in one transaction; at most {}", core.limits.tx_data);
            return Err(StoreError::Invalid(why));
        }
        core.admit(class).await?;
        // At worst each block is an extent of its own (15 bytes) and a chunk (5 bytes).
        let mut payload = MAPS_MAX * MAP_BYTES + data_bytes.div_ceil(BLOCK_SIZE) as usize * 20;
        let small = core.is_small(data_bytes) && core.journal.may_hold(payload + data_bytes as usize);
        if small {
            payload += data_bytes as usize;
        }
        let room = core.journal.reserve(class, payload, || core.may_write()).await?;
        let id = core.next_tx.get();
        core.next_tx.set(id + 1);
        Ok(Tx {
            id,
            class,
            data_max: data_bytes,
            small,
            // Most have one.
            intents: Vec::with_capacity(1),
            reservations: Reservations::new(),
            room,
            epoch: core.forest.long_epoch(),
            leaves: [None; 2],
            near: None,
        })
    }

    /// Step 6: the cob, or the promise that this transaction creates it.
    ///
    /// # Errors
    /// `Fenced`, `Deleted`, `Incarnation`; `Invalid` for a chunk size that cannot be or that is not the cob's.
    pub async fn cob_lookup(&self, tx: &mut Tx, fid: Fid, attrs: CobAttrs) -> Result<Cob, StoreError> {
        let core = &self.0;
        core.ctx.step(Step::CobLookup);
        let chunk = attrs.chunk_size;
        if chunk == 0 || u64::from(chunk) % BLOCK_SIZE != 0 || chunk > CHUNK_MAX {
            return Err(StoreError::Invalid(format!("a chunk of {chunk} bytes")));
        }
        let key = schema::fid_key(COB, fid);
        let (row, leaf) = core
            .look(|stage| {
                stage.set_unfenced(core.unfenced.get());
                Ok((apply::judge_cob(stage, fid)?, stage.leaf_of(TreeId::Cob, &key)))
            })
            .await?;
        core.unfenced.set(Some(fid.session));
        if let Some(row) = row {
            if row.incarnation != attrs.incarnation {
                let (have, want) = (row.incarnation, attrs.incarnation);
                return Err(StoreError::Incarnation { have, want });
            }
            if row.chunk_size != chunk {
                let why = format!("cob {fid} has chunks of {} bytes, not {chunk}", row.chunk_size);
                return Err(StoreError::Invalid(why));
            }
            // What is about to replace all of it has no neighbour to be near to.
            let replaced = row.blocks <= tx.data_max.div_ceil(BLOCK_SIZE);
            tx.near = (!replaced).then_some(fid);
        }
        Ok(Cob { fid, attrs, generation: row.map(|r| r.generation), leaf })
    }

    /// Step 7: blocks for `bytes`, reserved in memory, next to the cob's last ones where that is possible.
    ///
    /// # Errors
    /// `NoSpace` when fewer are free. Nothing was moved.
    pub async fn balloc(&self, tx: &mut Tx, bytes: u64) -> Result<Extents, StoreError> {
        let core = &self.0;
        core.ctx.step(Step::Balloc);
        let blocks = bytes.div_ceil(BLOCK_SIZE);
        let held: u64 = tx.reservations.iter().map(|r| r.blocks()).sum();
        if blocks == 0 || held + blocks > tx.data_max.div_ceil(BLOCK_SIZE) {
            return Err(StoreError::Invalid(format!("{bytes} bytes; {} were admitted", tx.data_max)));
        }
        let goal = match tx.near {
            Some(fid) => core.last_block(fid).await?,
            None => None,
        };
        let reservation = core.balloc.reserve(blocks, goal, || core.may_write()).await;
        let reservation = reservation.map_err(|e| core.judge_error(e))?;
        let extents = Extents(reservation.extents());
        tx.reservations.push(reservation);
        Ok(extents)
    }

    /// Step 8: records in the write set that bytes `offset..offset + len` of the cob are on these blocks.
    ///
    /// # Errors
    /// `Invalid` when offset, length, extents and checksums do not agree.
    pub async fn extmap(
        &self,
        tx: &mut Tx,
        cob: &Cob,
        offset: u64,
        len: u64,
        extents: &Extents,
        crcs: &[u32],
    ) -> Result<(), StoreError> {
        let core = &self.0;
        core.ctx.step(Step::Extmap);
        if tx.intents.len() >= MAPS_MAX {
            return Err(StoreError::Invalid(format!("more than {MAPS_MAX} maps in one transaction")));
        }
        let chunk = cob.attrs.chunk_size;
        let row = Parts { len, generation: 0, extents: &extents.0, crcs };
        let fits = offset.is_multiple_of(u64::from(chunk))
            && offset.checked_add(len).is_some_and(|end| end <= i64::MAX as u64)
            && row.are_sound(chunk, core.shape.data_blocks);
        let reserved = |e: &Extent| tx.reservations.iter().any(|r| r.holds(e));
        let mapped = |e: &Extent| tx.intents.iter().filter_map(map_of).any(|map| map.extents.contains(e));
        if !fits || !extents.0.iter().all(|e| reserved(e) && !mapped(e)) {
            let why = format!("map of {len} bytes at {offset} of {}: its parts do not agree", cob.fid);
            return Err(StoreError::Invalid(why));
        }
        let map = Map {
            fid: cob.fid,
            chunk_size: chunk,
            incarnation: cob.attrs.incarnation,
            expect: cob.generation,
            offset,
            len,
            extents: extents.0.clone(),
            crcs: crcs.into(),
        };
        // The leaf that will change is brought into memory now, so that the commit does not wait for it.
        let key = schema::extmap_key(map.fid, map.offset);
        let leaf = core.look(|_| Ok(core.forest.touch_hinted(TreeId::Extmap, &key)?)).await?;
        if tx.intents.is_empty() {
            tx.leaves = [cob.leaf, leaf];
        }
        tx.intents.push(Intent::Map(map));
        Ok(())
    }

    /// Step 9: the write set is final. Nothing of it is visible or durable.
    pub fn tx_close(&self, tx: Tx) -> SealedTx {
        self.0.ctx.step(Step::TxClose);
        SealedTx { tx }
    }

    /// Steps 11 and 12: writes the bytes of all maps, one after the other, and makes them durable. When
    /// the caller goes away, the blocks stay reserved until the device is done with them (I7). A few bytes
    /// travel in the transaction's record instead, where that saves a flush.
    ///
    /// # Errors
    /// `HostFull`; any other device error fails the target.
    pub async fn data_write(&self, sealed: &SealedTx, data: &[Slice]) -> Result<DataStable, StoreError> {
        let core = &self.0;
        core.ctx.step(Step::DataWrite);
        core.may_write()?;
        if let Some(carried) = core.carry(sealed, data) {
            core.ctx.step(Step::DataStable);
            return Ok(DataStable { tx: sealed.tx.id, carried: Some(carried) });
        }
        let writes = match one_write(&core.regions.data, &sealed.tx.intents, data) {
            Some(write) => match core.write_now(write) {
                Ok(written) => {
                    written?;
                    core.ctx.step(Step::DataStable);
                    return Ok(DataStable { tx: sealed.tx.id, carried: None });
                }
                Err(write) => Writes::from([write]),
            },
            None => {
                let arenas = [&core.arena, &core.meta_arena];
                plan_writes(&core.regions.data, arenas, &sealed.tx.intents, data).await?
            }
        };
        let held = if planted(Canary::ReuseUnderWrite) {
            Reservations::new()
        } else {
            sealed.tx.reservations.clone()
        };
        let task = core.clone();
        let mut work = Box::pin(async move {
            let result = task.write_data(writes).await;
            drop(held);
            result
        });
        // A device in memory is done at once; any other is waited for by a task that nobody gives up.
        match futures::poll!(&mut work) {
            Poll::Ready(result) => result?,
            Poll::Pending => {
                let (done, result) = oneshot();
                drop(core.ctx.spawn(async move { done.send(work.await) }));
                if !planted(Canary::CommitBeforeData) {
                    result.await.unwrap_or(Err(StoreError::Closed))?;
                }
            }
        }
        core.ctx.step(Step::DataStable);
        Ok(DataStable { tx: sealed.tx.id, carried: None })
    }

    /// Step 13: the transaction takes its lsn, is judged again, becomes durable and is applied. When the
    /// caller goes away, it runs on.
    ///
    /// # Errors
    /// `Fenced`, `Deleted`, `Incarnation` when what came before it refuses it; the target's state.
    pub async fn commit(&self, sealed: SealedTx, stable: DataStable) -> Result<Committed, StoreError> {
        let tx = sealed.tx;
        assert!(stable.tx == tx.id, "the proof is of another transaction");
        self.submit_tx(tx, stable.carried).await
    }

    async fn submit_tx(&self, tx: Tx, carried: Option<Carried>) -> Result<Committed, StoreError> {
        self.0.may_write()?;
        let (intents, promise) = match carried {
            Some(Carried { bytes, promise }) => (Carried::join(bytes, tx.intents), Some(promise)),
            None => (tx.intents, None),
        };
        let mut work = Work::new(tx.class, Kind::Fixed(intents), Some(tx.room));
        work.promise = promise;
        work.leaves = tx.leaves;
        work.reservations = tx.reservations;
        work.epoch = Some(tx.epoch);
        let lsn = self.0.submit(work).await?;
        Ok(Committed { lsn })
    }

    /// A commit without the proof that its bytes are durable: the order of the seed, for its canary.
    #[cfg(feature = "proof")]
    pub async fn commit_unproven(&self, sealed: SealedTx) -> Result<Committed, StoreError> {
        self.submit_tx(sealed.tx, None).await
    }

    /// Writes bytes to blocks that are mapped already: the order of the seed, for its canary.
    #[cfg(feature = "proof")]
    pub async fn data_write_late(&self, extents: &Extents, data: &[Slice]) -> Result<(), StoreError> {
        let core = &self.0;
        let len = data.iter().map(|s| s.len() as u64).sum();
        let map = Map {
            fid: Fid::MIN,
            chunk_size: 0,
            incarnation: 0,
            expect: None,
            offset: 0,
            len,
            extents: extents.0.clone(),
            crcs: Default::default(),
        };
        let arenas = [&core.arena, &core.meta_arena];
        core.write_data(plan_writes(&core.regions.data, arenas, &[Intent::Map(map)], data).await?).await
    }
}

impl Core {
    /// The block after a cob's last extent.
    async fn last_block(&self, fid: Fid) -> Result<Option<u64>, StoreError> {
        self.look(|stage| {
            let row = apply::last_row(stage, fid, u64::MAX)?;
            let last = row.and_then(|(_, row)| row.extents.last().and_then(Extent::end));
            Ok(last.filter(|end| *end < self.shape.data_blocks))
        })
        .await
    }

    /// Writes where no write waits: what is written then is stable. Any other device leaves it to be done.
    fn write_now(&self, (at, data): Write) -> Result<Result<(), StoreError>, Write> {
        let len: u64 = data.iter().map(|s| s.len() as u64).sum();
        let written = self.regions.data.write_now(at, data).map_err(|data| (at, data))?;
        self.count(|c| {
            c.data_writes += 1;
            c.data_write_bytes += len;
        });
        Ok(written.map_err(|e| self.data_error("data write", &e)))
    }

    async fn write_data(&self, writes: Writes) -> Result<(), StoreError> {
        self.count(|c| {
            c.data_writes += writes.len() as u64;
            c.data_write_bytes += writes.iter().flat_map(|(_, d)| d).map(|s| s.len() as u64).sum::<u64>();
        });
        let region = &self.regions.data;
        let all: SmallVec<[_; 1]> = match writes.into_inner() {
            Ok([(at, data)]) => [region.write(at, data, false).await].into(),
            Err(writes) => {
                join_all(writes.into_iter().map(|(at, data)| region.write(at, data, false))).await.into()
            }
        };
        // Every error is looked at: a full host beside it does not excuse a device that failed.
        let errors = all.into_iter().filter_map(Result::err);
        let errors: Vec<_> = errors.map(|e| self.data_error("data write", &e)).collect();
        if let Some(error) = errors.into_iter().max_by_key(|e| matches!(e, StoreError::Failed { .. })) {
            return Err(error);
        }
        self.flush_data().await
    }

    /// What was written to the data region before this call is durable when it returns.
    pub(crate) async fn flush_data(&self) -> Result<(), StoreError> {
        self.flusher.flush().await.map_err(|e| self.failure("flush of the data region", &e))?;
        self.count(|c| c.data_flushes = self.flusher.0.flushes.get());
        Ok(())
    }

    pub(crate) fn data_error(&self, what: &str, error: &IoError) -> StoreError {
        if matches!(error, IoError::HostFull { .. }) {
            return StoreError::HostFull;
        }
        self.failure(what, error)
    }

    /// What a failed flush left is unknown, also when it was for want of room.
    fn failure(&self, what: &str, error: &IoError) -> StoreError {
        let why = format!("{what} failed: {error}");
        self.fail(&why);
        StoreError::Failed { why }
    }
}

/// A write of the data region: where, and what.
type Write = (u64, WriteData);
type Writes = SmallVec<[Write; 1]>;

/// The write of a transaction whose bytes are whole blocks in one piece, and go to one extent.
fn one_write(region: &Region, intents: &[Intent], data: &[Slice]) -> Option<Write> {
    let ([Intent::Map(map)], [slice]) = (intents, data) else { return None };
    let [extent] = map.extents.as_slice() else { return None };
    let fits = slice.len() as u64 == map.len && map.len <= u64::from(region.device.identify().transfer_max);
    (fits && is_whole(slice)).then(|| (extent.start * BLOCK_SIZE, WriteData::from_iter([slice.clone()])))
}

/// Turns maps and bytes into device writes: whole blocks, at most as long as the device takes.
async fn plan_writes(
    region: &Region,
    arenas: [&Arena; 2],
    intents: &[Intent],
    data: &[Slice],
) -> Result<Writes, StoreError> {
    let most = u64::from(region.device.identify().transfer_max) / BLOCK_SIZE * BLOCK_SIZE;
    let given: u64 = data.iter().map(|s| s.len() as u64).sum();
    let maps = || intents.iter().filter_map(map_of);
    let wanted: u64 = maps().map(|m| m.len).sum();
    if given != wanted {
        return Err(StoreError::Invalid(format!("{given} bytes of data for maps of {wanted}")));
    }
    let mut data = Feed::new(data);
    let mut writes = Writes::new();
    for map in maps() {
        let blocks = whole_blocks(arenas, data.take(map.len)).await;
        let mut blocks = Feed::new(&blocks);
        for extent in &map.extents {
            let mut at = extent.start * BLOCK_SIZE;
            let mut left = u64::from(extent.blocks) * BLOCK_SIZE;
            while left > 0 {
                let piece = left.min(most.max(BLOCK_SIZE));
                writes.push((at, blocks.take(piece)));
                at += piece;
                left -= piece;
            }
        }
    }
    Ok(writes)
}

/// Bytes in slices, of which the first ones are taken again and again.
pub(crate) struct Feed<'a> {
    slices: &'a [Slice],
    /// Bytes of the first slice that were taken.
    taken: usize,
}

impl Feed<'_> {
    pub(crate) fn new(slices: &[Slice]) -> Feed<'_> {
        Feed { slices, taken: 0 }
    }

    /// Takes the next `len` bytes.
    pub(crate) fn take(&mut self, len: u64) -> WriteData {
        let mut out = WriteData::new();
        let mut left = len as usize;
        while left > 0
            && let Some((first, rest)) = self.slices.split_first()
        {
            let until = first.len().min(self.taken + left);
            if self.taken < until {
                out.push(first.slice(self.taken..until));
            }
            left -= until - self.taken;
            self.taken = until;
            if until == first.len() {
                *self = Feed::new(rest);
            }
        }
        out
    }
}

/// Whether a slice is whole blocks, as a device takes them.
fn is_whole(slice: &Slice) -> bool {
    let block = BLOCK_SIZE as usize;
    slice.len().is_multiple_of(block) && (slice.as_ptr() as usize).is_multiple_of(block)
}

/// The same bytes in slices of whole blocks; the last block is filled up with zeros. Nothing is copied
/// but a short tail, unless a slice in the middle ends inside of a block.
async fn whole_blocks(arenas: [&Arena; 2], slices: WriteData) -> WriteData {
    let block = BLOCK_SIZE as usize;
    if slices.iter().all(is_whole) {
        return slices;
    }
    let mut out = WriteData::new();
    let mut slices = slices.into_iter().peekable();
    while let Some(slice) = slices.next() {
        let whole = slice.len() / block * block;
        let aligned = (slice.as_ptr() as usize).is_multiple_of(block);
        if aligned && whole > 0 {
            out.push(slice.slice(0..whole));
        }
        let from = if aligned { whole } else { 0 };
        if from == slice.len() {
            continue;
        }
        let mut tail: Vec<Slice> = vec![slice.slice(from..slice.len())];
        if slices.peek().is_some() {
            tail.extend(slices.by_ref());
        }
        copy_blocks(arenas, &tail, &mut out).await;
    }
    out
}

/// A short tail does not wait for payload memory, which others hold who wait for theirs.
async fn copy_blocks([payload, meta]: [&Arena; 2], slices: &[Slice], out: &mut WriteData) {
    let mut left: usize = slices.iter().map(|s| s.len()).sum();
    let arena = if left <= BLOCK_SIZE as usize { meta } else { payload };
    let mut bytes = slices.iter().flat_map(|s| s.iter().copied());
    while left > 0 {
        let len = left.min(1 << 20);
        let mut buf = arena.alloc(len.next_multiple_of(BLOCK_SIZE as usize)).await;
        for place in &mut buf[..len] {
            *place = bytes.next().unwrap_or(0);
        }
        buf[len..].fill(0);
        out.push(buf.freeze());
        left -= len;
    }
}

/// Flushes of the data device that writers share: one covers everyone whose writes were complete before
/// it began.
pub(crate) struct Flusher(Rc<FlusherInner>);

struct FlusherInner {
    ctx: Ctx,
    region: Region,
    asked: Cell<u64>,
    covered: Cell<u64>,
    running: Cell<bool>,
    failed: RefCell<Option<IoError>>,
    done: Notify,
    flushes: Cell<u64>,
}

impl Flusher {
    pub(crate) fn new(ctx: Ctx, region: Region) -> Flusher {
        Flusher(Rc::new(FlusherInner {
            ctx,
            region,
            asked: Cell::new(0),
            covered: Cell::new(0),
            running: Cell::new(false),
            failed: RefCell::default(),
            done: Notify::default(),
            flushes: Cell::new(0),
        }))
    }

    /// Everything written before this call is durable when it returns.
    async fn flush(&self) -> Result<(), IoError> {
        let inner = &self.0;
        if !inner.region.device.identify().volatile_cache || planted(Canary::NoFlush) {
            return Ok(());
        }
        inner.asked.set(inner.asked.get() + 1);
        let mine = inner.asked.get();
        loop {
            if let Some(error) = &*inner.failed.borrow()
                && !planted(Canary::FlushRetried)
            {
                return Err(error.clone()); // Never retried: what a second flush would say is worth nothing.
            }
            if inner.covered.get() >= mine {
                return Ok(());
            }
            if !inner.running.replace(true) {
                let inner = inner.clone();
                drop(self.0.ctx.spawn(async move {
                    let covers = inner.asked.get();
                    let result = inner.region.flush().await;
                    inner.flushes.set(inner.flushes.get() + 1);
                    match result {
                        Ok(()) => inner.covered.set(covers),
                        Err(error) => *inner.failed.borrow_mut() = Some(error),
                    }
                    inner.running.set(false);
                    inner.done.notify_all();
                }));
            }
            if planted(Canary::ReplyBeforeFlush) {
                return Ok(());
            }
            inner.done.notified().await;
        }
    }
}
