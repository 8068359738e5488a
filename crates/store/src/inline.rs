//! Small writes that travel in the journal: one record makes their data and their map durable, with no write and no
//! flush of the data region before the answer.
//!
//! Their blocks are allocated like any others. Until the bytes are on them, they are kept here and serve reads. They
//! are written out when they become many, and by a checkpoint before its superblock: that covers their record.
//! Bytes whose blocks were freed first are never written; a write-out in flight holds the blocks of its turn (I3).

use crate::apply::Effects;
use crate::data::Feed;
use crate::error::StoreError;
use crate::intent::{Bytes, Inline, Intent, Map};
use crate::store::Core;
use crate::tx::{Extent, SealedTx};
use cobalt_base::{BLOCK_SIZE, Lsn, Nanos};
use cobalt_bdev::IoError;
use cobalt_dma::Slice;
use cobalt_reactor::sync::Notify;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Blocks of one turn of the write-out, and of one of its writes.
const TURN_BLOCKS: usize = 256;
const RUN_BLOCKS: usize = 64;
/// Pause before a write-out that found the host full is tried again.
pub(crate) const FULL_PAUSE: Duration = Duration::from_millis(50);
/// A host that was full for so long counts as one that stays so.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// One block's bytes: a part of those of its map. What is missing of the block is zeros.
#[derive(Clone)]
pub(crate) struct Piece {
    bytes: Bytes,
    at: usize,
    /// The transaction that brought them.
    lsn: Lsn,
}

impl Piece {
    /// Fills a block.
    pub(crate) fn fill(&self, block: &mut [u8]) {
        let bytes = self.bytes.get(self.at..).unwrap_or_default();
        let real = bytes.len().min(block.len());
        block[..real].copy_from_slice(&bytes[..real]);
        block[real..].fill(0);
    }

    fn is(&self, other: &Piece) -> bool {
        self.at == other.at && self.bytes.is(&other.bytes)
    }
}

/// Bytes that are durable in the journal only, by block.
#[derive(Default)]
pub(crate) struct Unwritten {
    blocks: RefCell<BTreeMap<u64, Piece>>,
    /// Blocks of transactions that are not applied yet.
    promised: Cell<u64>,
    /// Something was written out since the last flush for a checkpoint.
    unflushed: Cell<bool>,
    /// Since when the host has no room for a write-out: no more small writes are taken in until it has.
    pub(crate) full_since: Cell<Option<Nanos>>,
    running: Cell<bool>,
    /// Told when blocks are added, when a write-out ends, and when the target ends.
    pub(crate) changed: Notify,
    /// Where the last turn of the write-out ended.
    cursor: Cell<u64>,
}

/// A place within the limit of unwritten bytes; given back when dropped.
pub(crate) struct Promise {
    unwritten: Rc<Unwritten>,
    blocks: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.unwritten.promised.set(self.unwritten.promised.get() - self.blocks);
    }
}

/// The bytes of a transaction's maps, which its record will carry.
pub(crate) struct Carried {
    pub(crate) bytes: Vec<Bytes>,
    pub(crate) promise: Promise,
}

impl Carried {
    /// The write set with the bytes in it.
    pub(crate) fn join(bytes: Vec<Bytes>, intents: Vec<Intent>) -> Vec<Intent> {
        let mut bytes = bytes.into_iter();
        let one = |intent| match intent {
            Intent::Map(map) => {
                let bytes = bytes.next().expect("there is one piece of bytes for each map");
                Intent::Inline(Inline { map, bytes })
            }
            other => other,
        };
        intents.into_iter().map(one).collect()
    }
}

impl Unwritten {
    /// Takes over what an applied transaction brought and what it freed.
    pub(crate) fn take_over(&self, fx: &Effects, lsn: Lsn) {
        for (extents, bytes) in &fx.inline {
            self.add(extents, bytes, lsn);
        }
        self.forget(&fx.freed);
    }

    /// An applied transaction mapped these blocks to these bytes.
    fn add(&self, extents: &[Extent], bytes: &Bytes, lsn: Lsn) {
        let mut blocks = self.blocks.borrow_mut();
        let numbers = extents.iter().flat_map(|e| e.start..e.start + u64::from(e.blocks));
        for (i, block) in numbers.enumerate() {
            blocks.insert(block, Piece { bytes: bytes.clone(), at: i * BLOCK_SIZE as usize, lsn });
        }
        drop(blocks);
        self.changed.notify_all();
    }

    /// An applied transaction freed these blocks: nobody wants their bytes any more.
    fn forget(&self, extents: &[Extent]) {
        let mut blocks = self.blocks.borrow_mut();
        for extent in extents {
            if blocks.is_empty() {
                return;
            }
            let end = extent.start + u64::from(extent.blocks);
            while let Some((&block, _)) = blocks.range(extent.start..end).next() {
                blocks.remove(&block);
            }
        }
    }

    /// What is here of some blocks.
    pub(crate) fn find(&self, extents: &[Extent], out: &mut BTreeMap<u64, Piece>) {
        let blocks = self.blocks.borrow();
        if blocks.is_empty() {
            return;
        }
        for extent in extents {
            let range = extent.start..extent.start + u64::from(extent.blocks);
            out.extend(blocks.range(range).map(|(block, piece)| (*block, piece.clone())));
        }
    }

    /// Puts what is here of the blocks from `start` on over what the device holds.
    pub(crate) fn overlay(&self, start: u64, bytes: &mut [u8]) {
        let blocks = self.blocks.borrow();
        let end = start + bytes.len() as u64 / BLOCK_SIZE;
        for (block, piece) in blocks.range(start..end) {
            piece.fill(&mut bytes[((block - start) * BLOCK_SIZE) as usize..][..BLOCK_SIZE as usize]);
        }
    }

    /// Whether the host refused the last write-out.
    pub(crate) fn host_is_full(&self) -> bool {
        self.full_since.get().is_some()
    }

    /// Blocks whose bytes are only here and in the journal.
    pub(crate) fn len(&self) -> u64 {
        self.blocks.borrow().len() as u64
    }

    fn promise(self: &Rc<Unwritten>, blocks: u64, most: u64) -> Option<Promise> {
        let promised = self.promised.get() + blocks;
        if self.host_is_full() || self.len() + promised > most {
            return None;
        }
        self.promised.set(promised);
        Some(Promise { unwritten: self.clone(), blocks })
    }

    /// The blocks of one turn, from the cursor on, as runs of neighbours.
    fn pick(&self, until: Lsn, run_blocks: usize) -> Vec<(u64, Vec<Piece>)> {
        let blocks = self.blocks.borrow();
        let cursor = self.cursor.get();
        let wanted = blocks.range(cursor..).chain(blocks.range(..cursor)).filter(|(_, p)| p.lsn <= until);
        let mut runs: Vec<(u64, Vec<Piece>)> = Vec::new();
        for (&block, piece) in wanted.take(TURN_BLOCKS) {
            match runs.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == block && run.len() < run_blocks => {
                    run.push(piece.clone());
                }
                _ => runs.push((block, vec![piece.clone()])),
            }
            self.cursor.set(block + 1);
        }
        runs
    }

    /// These bytes are on their blocks.
    fn written(&self, start: u64, run: &[Piece]) {
        let mut blocks = self.blocks.borrow_mut();
        for (block, piece) in (start..).zip(run) {
            if blocks.get(&block).is_some_and(|now| now.is(piece)) {
                blocks.remove(&block);
            }
        }
    }
}

/// One write-out at a time.
struct Turn<'a>(&'a Unwritten);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
        self.0.changed.notify_all();
    }
}

impl Core {
    /// Most blocks that may be unwritten.
    fn unwritten_max(&self) -> u64 {
        self.limits.unwritten_max() / BLOCK_SIZE
    }

    /// Whether a transaction of this much data may travel in the journal: where an answer would wait for a flush.
    pub(crate) fn is_small(&self, data_bytes: u64) -> bool {
        data_bytes > 0
            && data_bytes <= self.limits.inline_max
            && self.regions.data.device.identify().volatile_cache
            && !self.unwritten.host_is_full()
    }

    /// The bytes of a transaction for its record; none when they are to be written to their blocks now.
    pub(crate) fn carry(&self, sealed: &SealedTx, data: &[Slice]) -> Option<Carried> {
        let maps = || sealed.tx.intents.iter().filter_map(map_of);
        let given: u64 = data.iter().map(|s| s.len() as u64).sum();
        if !sealed.tx.small || given > sealed.tx.data_max || given != maps().map(|m| m.len).sum() {
            return None;
        }
        let blocks = maps().map(|m| m.len.div_ceil(BLOCK_SIZE)).sum();
        let promise = self.unwritten.promise(blocks, self.unwritten_max())?;
        let mut rest = Feed::new(data);
        let mut bytes = Vec::new();
        for map in maps() {
            let mut whole = Vec::with_capacity(map.len as usize);
            rest.take(map.len).iter().for_each(|slice| whole.extend_from_slice(slice));
            bytes.push(Bytes::from(whole));
        }
        self.count(|c| {
            c.inline_writes += 1;
            c.inline_bytes += given;
        });
        Some(Carried { bytes, promise })
    }

    /// Writes bytes out that became durable up to an lsn, until at most `leave` blocks are unwritten. Complete is not
    /// durable: that is the checkpoint's to see to.
    async fn write_out(&self, until: Lsn, leave: u64) -> Result<(), StoreError> {
        while self.unwritten.running.replace(true) {
            self.unwritten.changed.notified().await;
            self.is_well()?;
        }
        let _turn = Turn(&self.unwritten);
        while self.unwritten.len() > leave {
            let result = self.write_turn(until).await;
            let full = matches!(result, Err(StoreError::HostFull));
            self.set_host_full(full);
            if !result? {
                break;
            }
        }
        Ok(())
    }

    /// One turn; false when nothing was left to write.
    async fn write_turn(&self, until: Lsn) -> Result<bool, StoreError> {
        // The blocks are mapped now. Freed while the device works on them, they wait for it.
        let pin = Rc::new(self.pin_blocks());
        let most = u64::from(self.regions.data.device.identify().transfer_max) / BLOCK_SIZE;
        let runs = self.unwritten.pick(until, RUN_BLOCKS.min(most.max(1) as usize));
        self.count(|c| {
            c.data_writes += runs.len() as u64;
            c.data_write_bytes += runs.iter().map(|(_, run)| run.len() as u64 * BLOCK_SIZE).sum::<u64>();
        });
        let mut writes = Vec::new();
        for (start, run) in &runs {
            // Each is on its way as soon as it has its memory: nobody who waits for some holds any.
            let mut buf = self.meta_arena.alloc(run.len() * BLOCK_SIZE as usize).await;
            for (block, piece) in buf.chunks_mut(BLOCK_SIZE as usize).zip(run) {
                piece.fill(block);
            }
            let (region, pin, at) = (self.regions.data.clone(), pin.clone(), start * BLOCK_SIZE);
            writes.push(self.ctx.spawn(async move {
                let result = region.write(at, std::iter::once(buf.freeze()).collect(), false).await;
                drop(pin);
                result
            }));
        }
        drop(pin);
        let mut worst = None;
        for (write, (start, run)) in writes.into_iter().zip(&runs) {
            match write.join().await.unwrap_or(Err(IoError::Gone)) {
                Ok(()) => {
                    self.unwritten.unflushed.set(true);
                    self.unwritten.written(*start, run);
                }
                Err(error) => {
                    let error = self.data_error("write-out", &error);
                    if worst.is_none() || matches!(error, StoreError::Failed { .. }) {
                        worst = Some(error);
                    }
                }
            }
        }
        worst.map_or(Ok(!runs.is_empty()), Err)
    }

    /// Writes out what became too much; all of it, again and again, while the host is full, so that what it says stays true: who
    /// waits for it must hear some time. Ends with the target.
    pub(crate) async fn write_out_loop(self: Rc<Core>) {
        let most = self.unwritten_max();
        while self.may_write().is_ok() {
            let full = self.unwritten.host_is_full();
            if !full && self.unwritten.len() <= most / 2 {
                self.unwritten.changed.notified().await;
                continue;
            }
            match self.write_out(Lsn(u64::MAX), if full { 0 } else { most / 4 }).await {
                // Nothing is left that needs the host.
                Ok(()) if full => self.set_host_full(false),
                Ok(()) => {}
                Err(StoreError::HostFull) => self.ctx.sleep(FULL_PAUSE).await,
                Err(_) => return,
            }
        }
    }

    /// What records up to an lsn carried is on its blocks and durable when this returns. A full host is waited for:
    /// the journal keeps the bytes until then, and deleting goes on.
    pub(crate) async fn settle_inline(&self, until: Lsn) -> Result<(), StoreError> {
        while let Err(error) = self.write_out(until, 0).await {
            if !matches!(error, StoreError::HostFull) || !self.may_wait() {
                return Err(error);
            }
            self.ctx.sleep(FULL_PAUSE).await;
        }
        if self.unwritten.unflushed.replace(false) {
            self.flush_data().await?;
        }
        Ok(())
    }
}

pub(crate) fn map_of(intent: &Intent) -> Option<&Map> {
    match intent {
        Intent::Map(map) => Some(map),
        _ => None,
    }
}
