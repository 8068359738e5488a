//! The `volatile_cache` wrapper: a disk's write cache inside of the process. Killing the process loses
//! what was not flushed, as a power cut does, and leaves some of it written, in any order, torn at
//! sectors: what a test that only kills processes would otherwise never see, since the host's page
//! cache survives them.

use crate::device::{Bdev, Device, Done, Identify, Io, IoError, Op, WriteData};
use crate::overlay::{Overlay, Piece};
use cobalt_base::ByteSize;
use cobalt_dma::{Arena, ArenaConfig, BUF_MAX, Buf};
use cobalt_reactor::sync::Notify;
use cobalt_reactor::{Ctx, Scope};
use futures::stream::{StreamExt, iter};
use smallvec::smallvec;
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// What a disk writes whole; torn writes tear here.
const SECTOR: u64 = 512;
/// Longest pause between two early write-backs, in microseconds.
const PAUSE_MAX_US: u64 = 10_000;
/// Most pieces written back early at a time.
const EARLY_MAX: u64 = 8;
/// Pause after a write-back that failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Pieces that a flush writes back at the same time.
const FLUSH_WIDTH: usize = 32;

/// A device that holds unflushed writes back. Dropping it is the power cut.
pub struct VolatileCache {
    identify: Identify,
    state: Rc<State>,
    scope: Scope,
}

struct State {
    ctx: Ctx,
    inner: Device,
    arena: Arena,
    limit: u64,
    overlay: RefCell<Overlay>,
    version: Cell<u64>,
    /// Ranges that inner writes run in or wait for, in the order of their coming.
    claims: RefCell<Vec<(u64, Range<u64>)>>,
    ticket: Cell<u64>,
    released: Notify,
    dirtied: Notify,
}

/// The sole right to write a range of the inner device.
struct Claim<'a> {
    state: &'a State,
    ticket: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.state.claims.borrow_mut().retain(|(ticket, _)| *ticket != self.ticket);
        self.state.released.notify_all();
    }
}

impl VolatileCache {
    /// Holds up to `limit` bytes of unflushed writes to `inner` back, in memory of its own.
    ///
    /// # Errors
    /// What the system said when it refused that memory.
    pub fn new(ctx: &Ctx, inner: Rc<dyn Bdev>, limit: u64) -> io::Result<VolatileCache> {
        let below = inner.identify().clone();
        let identify = Identify {
            backend: format!("volatile_cache={} over {}", ByteSize(limit), below.backend),
            volatile_cache: true,
            atomic_write: below.atomic_write.min(512),
            ..below
        };
        // Twice: a buffer is up to twice as large as what it holds. And room for tearing.
        let room = usize::try_from(limit.saturating_mul(2)).map_err(io::Error::other)?;
        let arena = Arena::new(ArenaConfig { limit: room.saturating_add(2 * BUF_MAX) })?;
        let scope = ctx.scope();
        let state = Rc::new(State {
            ctx: scope.ctx(),
            inner: Device::new(inner),
            arena,
            limit,
            overlay: RefCell::default(),
            version: Cell::new(1),
            claims: RefCell::default(),
            ticket: Cell::new(0),
            released: Notify::default(),
            dirtied: Notify::default(),
        });
        let background = state.clone();
        drop(scope.ctx().spawn(async move { background.write_back_early().await }));
        Ok(VolatileCache { identify, state, scope })
    }

    /// Bytes that a power cut would lose now.
    pub fn held(&self) -> u64 {
        self.state.overlay.borrow().bytes()
    }
}

impl Drop for VolatileCache {
    fn drop(&mut self) {
        self.scope.kill();
    }
}

impl Bdev for VolatileCache {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn lost(&self) -> Option<String> {
        self.state.inner.lost()
    }

    fn submit(&self, io: Io) {
        let state = self.state.clone();
        let version = state.version.get();
        state.version.set(version + 1);
        let Io { op, done } = io;
        match op {
            Op::Read { offset, buf } => state.read(offset, buf, done),
            Op::Write { offset, data, fua: false } if state.hold(offset, &data, version) => {
                done.send(Ok(None))
            }
            Op::Write { offset, data, fua } => state.run(done, async move |state| {
                if fua {
                    state.through(offset, data, true, version).await
                } else {
                    state.make_room(offset, data).await
                }
            }),
            Op::Flush => {
                let held = state.overlay.borrow().ranges();
                state.run(done, async move |state| state.flush(held).await);
            }
            Op::Deallocate { offset, len } => state.run(done, async move |state| {
                let claim = state.claim(offset..offset + len).await;
                state.inner.deallocate(offset, len).await?;
                state.supersede(offset, len, version);
                drop(claim);
                Ok(())
            }),
        }
    }
}

fn length(data: &WriteData) -> u64 {
    data.iter().map(|slice| slice.len() as u64).sum()
}

impl State {
    fn run(self: Rc<Self>, done: Done, job: impl AsyncFnOnce(&Rc<State>) -> Result<(), IoError> + 'static) {
        let ctx = self.ctx.clone();
        drop(ctx.spawn(async move { done.send(job(&self).await.map(|()| None)) }));
    }

    /// What is held now covers what the inner device answers later: pieces written back meanwhile, or
    /// put on top, belong to writes that this read runs beside.
    fn read(self: Rc<Self>, offset: u64, mut buf: Buf, done: Done) {
        let held = self.overlay.borrow().overlapping(&(offset..offset + buf.len() as u64));
        if held.iter().map(|(_, piece)| piece.slice.len()).sum::<usize>() == buf.len() {
            patch(&mut buf, offset, &held);
            return done.send(Ok(Some(buf)));
        }
        let ctx = self.ctx.clone();
        drop(ctx.spawn(async move {
            let read = self.inner.read(offset, buf).await.map(|mut buf| {
                patch(&mut buf, offset, &held);
                Some(buf)
            });
            done.send(read);
        }));
    }

    /// Copies a write into the cache if there is room.
    fn hold(&self, offset: u64, data: &WriteData, version: u64) -> bool {
        let len = length(data);
        if self.overlay.borrow().bytes() + len > self.limit {
            return false;
        }
        let mut copies = Vec::new();
        let mut at = offset;
        for part in data.iter().flat_map(|slice| slice.chunks(BUF_MAX)) {
            let Some(mut buf) = self.arena.try_alloc(part.len()) else { return false };
            buf.copy_from_slice(part);
            copies.push((at, Piece { slice: buf.freeze(), version }));
            at += part.len() as u64;
        }
        let mut overlay = self.overlay.borrow_mut();
        for (at, piece) in copies {
            overlay.insert(at, piece);
        }
        self.dirtied.notify_all();
        true
    }

    /// Writes back until a write fits; one that never will goes through.
    async fn make_room(&self, offset: u64, data: WriteData) -> Result<(), IoError> {
        loop {
            // Taken anew: it goes on top of all that came while it waited.
            let version = self.version.get();
            self.version.set(version + 1);
            if self.hold(offset, &data, version) {
                return Ok(());
            }
            let picked = self.pick();
            match picked {
                Some((at, piece)) => {
                    self.write_back(at..at + piece.slice.len() as u64).await?;
                }
                None => return self.through(offset, data, false, version).await,
            }
        }
    }

    /// Writes to the inner device at once. Older data that is held below it will never be written.
    async fn through(&self, offset: u64, data: WriteData, fua: bool, version: u64) -> Result<(), IoError> {
        let len = length(&data);
        let claim = self.claim(offset..offset + len).await;
        self.inner.write(offset, data, fua).await?;
        self.supersede(offset, len, version);
        drop(claim);
        Ok(())
    }

    fn supersede(&self, offset: u64, len: u64, version: u64) {
        self.overlay.borrow_mut().carve(&(offset..offset + len), |held| held < version);
    }

    /// Writes back whatever lies where something was held when the flush came: that, or what took its
    /// place since, for the older version can be had nowhere else by then.
    async fn flush(&self, mut held: Vec<Range<u64>>) -> Result<(), IoError> {
        for last in (1..held.len()).rev() {
            held.swap(last, self.below(last as u64 + 1) as usize);
        }
        let mut writes = iter(held).map(|range| self.write_back(range)).buffer_unordered(FLUSH_WIDTH);
        while let Some(written) = writes.next().await {
            written?;
        }
        drop(writes);
        self.inner.flush().await
    }

    /// Writes what is held in `range`, then lets go of it.
    async fn write_back(&self, range: Range<u64>) -> Result<(), IoError> {
        let claim = self.claim(range.clone()).await;
        let pieces = self.overlay.borrow().overlapping(&range);
        for (at, Piece { slice, version }) in pieces {
            let end = at + slice.len() as u64;
            self.inner.write(at, smallvec![slice], false).await?;
            self.overlay.borrow_mut().carve(&(at..end), |held| held == version);
        }
        drop(claim);
        Ok(())
    }

    /// Writes some sectors of a piece, and goes on holding all of it: a power cut leaves it torn.
    async fn tear(&self, at: u64, piece: &Piece) -> Result<(), IoError> {
        let len = piece.slice.len() as u64;
        let cut = self.below(len / SECTOR + 1) * SECTOR;
        let part = if self.below(2) == 0 { 0..cut } else { cut..len };
        let block = u64::from(self.inner.identify().block_size);
        let blocks = part.start / block * block..part.end.next_multiple_of(block);
        let (Ok(from), Ok(to)) = (usize::try_from(part.start), usize::try_from(part.end)) else {
            return Ok(());
        };
        let (Ok(skip), Ok(size)) =
            (usize::try_from(blocks.start), usize::try_from(blocks.end - blocks.start))
        else {
            return Ok(());
        };
        let claim = self.claim(at..at + len).await;
        let held = self.overlay.borrow().overlapping(&(at..at + len));
        let whole = matches!(held.as_slice(), [(_, now)] if now.version == piece.version && now.slice.len() as u64 == len);
        if from == to || !whole {
            return Ok(()); // Written back or covered meanwhile.
        }
        let Some(buf) = self.arena.try_alloc(size) else { return Ok(()) };
        let mut buf = self.inner.read(at + blocks.start, buf).await?;
        buf[from - skip..to - skip].copy_from_slice(&piece.slice[from..to]);
        self.inner.write(at + blocks.start, smallvec![buf.freeze()], false).await?;
        drop(claim);
        Ok(())
    }

    /// What a real cache does by itself: writes this and that whenever it likes.
    async fn write_back_early(&self) {
        let mut failing = false;
        loop {
            let dirtied = self.dirtied.notified();
            if self.overlay.borrow().is_empty() {
                dirtied.await;
            }
            self.ctx.sleep(Duration::from_micros(self.below(PAUSE_MAX_US) + 1)).await;
            for _ in 0..self.below(EARLY_MAX) + 1 {
                let Some((at, piece)) = self.pick() else { break };
                let done = match self.below(4) {
                    0 => self.tear(at, &piece).await,
                    _ => self.write_back(at..at + piece.slice.len() as u64).await,
                };
                if let Err(error) = done {
                    // Still held: the next flush tries again, and its caller hears of it.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "early write-back fails; the data stays in the volatile cache");
                    }
                    self.ctx.sleep(FAILURE_PAUSE).await;
                    break;
                }
                failing = false;
            }
        }
    }

    fn pick(&self) -> Option<(u64, Piece)> {
        self.overlay.borrow().pick(self.ctx.random_u64())
    }

    fn below(&self, limit: u64) -> u64 {
        self.ctx.random_u64() % limit.max(1)
    }

    async fn claim(&self, range: Range<u64>) -> Claim<'_> {
        let ticket = self.ticket.get();
        self.ticket.set(ticket + 1);
        self.claims.borrow_mut().push((ticket, range.clone()));
        let claim = Claim { state: self, ticket };
        loop {
            let free = {
                let claims = self.claims.borrow();
                !claims.iter().any(|(t, r)| *t < ticket && r.start < range.end && range.start < r.end)
            };
            if free {
                return claim;
            }
            self.released.notified().await;
        }
    }
}

fn patch(buf: &mut Buf, offset: u64, held: &[(u64, Piece)]) {
    for (at, piece) in held {
        let from = usize::try_from(at - offset).expect("pieces were cut to the buffer");
        buf[from..from + piece.slice.len()].copy_from_slice(&piece.slice);
    }
}
