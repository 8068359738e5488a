//! The ring and its writer: space promised and used, and one record in flight at a time.
//!
//! Positions in memory only grow; the place in the ring is the position modulo the ring's length. The
//! tail is where redo would start, and moves only when a later checkpoint is named.

use crate::error::StoreError;
use crate::geometry::Region;
use crate::journal::record::{self, HEADER_LEN, Header};
use crate::limits::Limits;
use crate::points::{Point, refused};
use crate::tx::TxClass;
use cobalt_base::canary::{Canary, planted};
use cobalt_base::{BLOCK_SIZE, checksum::xxh3};
use cobalt_bdev::IoError;
use cobalt_dma::{Arena, BUF_MAX, Buf};
use cobalt_reactor::sync::Notify;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use uuid::Uuid;

/// Where the journal stands when a target is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// First byte of the ring on the meta region, and its length.
    pub at: u64,
    pub len: u64,
    /// Ring offset where redo would start, and bytes from there to the end of the last record.
    pub tail: u64,
    pub used: u64,
    /// Checksum of the last record's header.
    pub chain: u64,
    pub next_lsn: u64,
    pub epoch: u64,
    pub named: u64,
}

/// Whether the host under the data region has room for what the journal wants to write out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HostFull {
    #[default]
    No,
    /// A write-out was refused; the next one may find room. Deletes wait for that, others are told.
    Now,
    /// It was refused again and again.
    Stays,
}

pub(crate) struct Journal {
    meta: Region,
    arena: Arena,
    target: Uuid,
    at: u64,
    pub(crate) len: u64,
    epoch: u64,
    reserve_delete: u64,
    reserve_checkpoint: u64,
    waiters_max: usize,
    head: Cell<u64>,
    tail: Cell<u64>,
    pub(crate) chain: Cell<u64>,
    pub(crate) next_lsn: Cell<u64>,
    named: Cell<u64>,
    reserved: Cell<u64>,
    waiting: Cell<usize>,
    /// Reservations that had to wait.
    waits: Cell<u64>,
    /// Told when space comes back, and when the target fails.
    pub(crate) room: Notify,
    /// The host is full: a checkpoint waits for it, and gives no room back before it has some.
    host_full: Cell<HostFull>,
    /// Told when space is asked for and lacking.
    pub(crate) short: Notify,
    /// The record buffer; kept, so that a full arena cannot stop the journal.
    buf: RefCell<Option<Buf>>,
    payload_max: usize,
    pub(crate) writes: Cell<u64>,
    pub(crate) bytes: Cell<u64>,
}

/// Bytes of the journal promised to a transaction; given back when dropped.
pub(crate) struct Room {
    journal: Rc<Journal>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.journal.reserved.set(self.journal.reserved.get() - self.bytes);
        self.journal.room.notify_all();
    }
}

impl Journal {
    pub(crate) async fn new(
        meta: &Region,
        arena: &Arena,
        target: Uuid,
        start: Start,
        limits: &Limits,
    ) -> Journal {
        let want = record::record_len(limits.group_bytes as usize + limits.ctg_tx as usize + TX_MAX);
        let buf = arena.alloc((want.min(start.len / 2) as usize).min(BUF_MAX)).await;
        let payload_max = buf.len() / BLOCK_SIZE as usize * BLOCK_SIZE as usize - HEADER_LEN;
        Journal {
            meta: meta.clone(),
            arena: arena.clone(),
            target,
            at: start.at,
            len: start.len,
            epoch: start.epoch,
            reserve_delete: limits.reserve_delete.min(start.len / 8),
            reserve_checkpoint: limits.reserve_checkpoint.min(start.len / 16),
            waiters_max: limits.admission_waiters,
            head: Cell::new(start.tail + start.used),
            tail: Cell::new(start.tail),
            chain: Cell::new(start.chain),
            next_lsn: Cell::new(start.next_lsn),
            named: Cell::new(start.named),
            reserved: Cell::new(0),
            waiting: Cell::new(0),
            waits: Cell::new(0),
            room: Notify::default(),
            host_full: Cell::new(HostFull::No),
            short: Notify::default(),
            buf: RefCell::new(Some(buf)),
            payload_max,
            writes: Cell::new(0),
            bytes: Cell::new(0),
        }
    }

    /// Bytes between the tail and the head.
    pub(crate) fn used(&self) -> u64 {
        self.head.get() - self.tail.get()
    }

    /// Bytes used or promised.
    pub(crate) fn taken(&self) -> u64 {
        self.used() + self.reserved.get()
    }

    /// Whether anybody waits for space.
    pub(crate) fn is_short(&self) -> bool {
        self.waiting.get() > 0
    }

    /// Reservations that had to wait so far.
    #[cfg(feature = "proof")]
    pub(crate) fn waits(&self) -> u64 {
        self.waits.get()
    }

    /// Payload bytes that fit the record buffer, also while it is on its way to the device.
    pub(crate) fn payload_max(&self) -> usize {
        self.payload_max
    }

    /// Position of the next record, as the superblock keeps it.
    pub(crate) fn head(&self) -> u64 {
        self.head.get()
    }

    pub(crate) fn ring_offset(&self, position: u64) -> u64 {
        position % self.len
    }

    /// A named checkpoint needs nothing before `position`.
    pub(crate) fn trim(&self, position: u64) {
        assert!(position >= self.tail.get() && position <= self.head.get(), "the tail moves within the ring");
        self.tail.set(position);
        self.room.notify_all();
    }

    fn fits(&self, class: TxClass, bytes: u64) -> bool {
        // One block is always kept for the empty record that may follow the last group.
        let keep = BLOCK_SIZE
            + match class {
                TxClass::Write => self.reserve_delete + self.reserve_checkpoint,
                TxClass::Cas | TxClass::Delete => self.reserve_checkpoint,
                TxClass::Checkpoint => 0,
            };
        self.taken() + bytes + keep <= self.len
    }

    /// Says whether a checkpoint waits for the host. Those who wait for its room are told.
    pub(crate) fn set_host_full(&self, full: HostFull) {
        if self.host_full.replace(full) != full {
            self.room.notify_all();
        }
    }

    /// Whether there is room for a record beside what deletes and checkpoints are promised.
    pub(crate) fn has_room_to_spare(&self) -> bool {
        self.fits(TxClass::Delete, BLOCK_SIZE)
    }

    /// Whether a transaction of this payload can ever have a place.
    pub(crate) fn may_hold(&self, payload: usize) -> bool {
        record::record_len(payload) <= self.len / 4 && payload <= self.payload_max()
    }

    /// Promises space for a transaction of `payload` bytes, waiting for a checkpoint if need be.
    ///
    /// # Errors
    /// `Busy` when too many wait already, `HostFull` when the room depends on that, `Invalid` when it can never fit, and what
    /// `check` says.
    pub(crate) async fn reserve(
        self: &Rc<Journal>,
        class: TxClass,
        payload: usize,
        check: impl Fn() -> Result<(), StoreError>,
    ) -> Result<Room, StoreError> {
        let bytes = record::record_len(payload);
        if !self.may_hold(payload) {
            return Err(StoreError::Invalid(format!("a transaction of {payload} bytes is too large")));
        }
        if class < TxClass::Checkpoint && refused(Point::Journal) {
            return Err(StoreError::Busy);
        }
        loop {
            check()?;
            if self.fits(class, bytes) {
                self.reserved.set(self.reserved.get() + bytes);
                return Ok(Room { journal: self.clone(), bytes });
            }
            let patience = if class < TxClass::Delete { HostFull::Now } else { HostFull::Stays };
            if self.host_full.get() >= patience {
                return Err(StoreError::HostFull);
            }
            if self.waiting.get() >= self.waiters_max {
                return Err(StoreError::Busy);
            }
            self.waits.set(self.waits.get() + 1);
            let _turn = Turn::new(&self.waiting);
            let room = self.room.notified();
            self.short.notify_all();
            room.await;
        }
    }

    /// Writes one record; durable when this returns. Only one may be in flight.
    ///
    /// # Errors
    /// [`IoError`]; whether the record is on the device is unknown then, and the target must fail.
    pub(crate) async fn write(&self, count: u32, named: u64, payload: &[u8]) -> Result<(), IoError> {
        let len = record::record_len(payload.len());
        assert!(self.used() + len <= self.len, "admission keeps the ring from running over");
        let kept = self.buf.borrow_mut().take();
        let mut buf = match kept.filter(|b| b.capacity() as u64 >= len) {
            Some(buf) => buf,
            None => self.arena.alloc(len as usize).await,
        };
        let full = buf.len();
        buf.set_len(len as usize);
        buf[HEADER_LEN..HEADER_LEN + payload.len()].copy_from_slice(payload);
        buf[HEADER_LEN + payload.len()..].fill(0);
        let first = self.next_lsn.get();
        let offset = self.ring_offset(self.head.get());
        let header = Header {
            first,
            count,
            payload_len: u32::try_from(payload.len()).expect("the record buffer is at most 4 MiB"),
            offset,
            chain: self.chain.get(),
            epoch: self.epoch,
            // Everything before: one record in flight.
            durable: if planted(Canary::NoDurableLsn) { 0 } else { first - 1 },
            named: named.max(self.named.get()),
            payload_sum: xxh3(record::seed(self.target), payload),
            sum: 0,
        };
        let sum = header.encode(self.target, &mut buf);
        let image = buf.freeze();
        self.put(offset, &image).await?;
        if let Ok(mut buf) = image.try_thaw() {
            buf.set_len(full.max(len as usize));
            *self.buf.borrow_mut() = Some(buf);
        }
        self.head.set(self.head.get() + len);
        self.chain.set(sum);
        self.next_lsn.set(header.next_lsn());
        self.named.set(header.named);
        self.writes.set(self.writes.get() + 1);
        self.bytes.set(self.bytes.get() + len);
        Ok(())
    }

    /// Writes bytes at a ring offset with FUA, around the ring's end and in pieces that the device takes.
    async fn put(&self, offset: u64, image: &cobalt_dma::Slice) -> Result<(), IoError> {
        let id = self.meta.device.identify();
        let most = u64::from(id.transfer_max) / BLOCK_SIZE * BLOCK_SIZE;
        let (mut at, mut done) = (offset, 0u64);
        while done < image.len() as u64 {
            let piece = (image.len() as u64 - done).min(self.len - at).min(most.max(BLOCK_SIZE));
            let data = std::iter::once(image.slice(done as usize..(done + piece) as usize)).collect();
            self.meta.write(self.at + at, data, id.volatile_cache).await?;
            done += piece;
            at = (at + piece) % self.len;
        }
        Ok(())
    }
}

/// Largest encoded write, in bytes: 1,024 chunk checksums and as many extents of one block.
const TX_MAX: usize = 24 << 10;

/// A place among those who wait.
struct Turn<'a>(&'a Cell<usize>);

impl Turn<'_> {
    fn new(waiting: &Cell<usize>) -> Turn<'_> {
        waiting.set(waiting.get() + 1);
        Turn(waiting)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
