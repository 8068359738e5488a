//! The trait that backends implement, and the handle that everyone else uses.

use cobalt_dma::{Buf, Slice};
use cobalt_reactor::sync::{OneReceiver, OneSender, Permit, Semaphore, oneshot};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What a device is. Backends answer truthfully: durability rests on `volatile_cache`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identify {
    /// Backend and what it opened, as `status` shows it: `uring (O_DIRECT) data/t0`.
    pub backend: String,
    /// Size in bytes.
    pub size: u64,
    /// Smallest unit of reading and writing, in bytes; offsets, lengths and memory are aligned to it.
    pub block_size: u32,
    /// Whether completed writes need a flush to survive a power cut.
    pub volatile_cache: bool,
    /// Bytes that are written whole or not at all.
    pub atomic_write: u32,
    /// Most operations in flight.
    pub depth: u32,
    /// Most bytes in one read or write.
    pub transfer_max: u32,
    /// Whether `deallocate` does anything.
    pub deallocate: bool,
}

/// Bytes of one write: consecutive slices, each a multiple of the block size in length.
pub type WriteData = SmallVec<[Slice; 4]>;

/// One operation. Offsets and lengths in bytes.
#[derive(Debug)]
pub enum Op {
    /// Fills the whole buffer from `offset`.
    Read { offset: u64, buf: Buf },
    /// Writes the slices one after the other at `offset`; with `fua`, durable when complete.
    Write { offset: u64, data: WriteData, fua: bool },
    /// Every write that was complete before this was submitted is durable when it completes.
    Flush,
    /// The range's content is no longer needed; what a read of it returns is undefined.
    Deallocate { offset: u64, len: u64 },
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The device or the system reported an error (an errno, a status code).
    #[error("{op} of {len} bytes at {offset:#x} failed: {reason}")]
    Failed { op: &'static str, offset: u64, len: u64, reason: String },
    /// The host's file system has no room for a sparse file's block. The device itself is well.
    #[error("the file system under the device is full: write of {len} bytes at {offset:#x}")]
    HostFull { offset: u64, len: u64 },
    /// The operation is outside of the device or not aligned to its blocks: our mistake, refused before it ran.
    #[error("{op} of {len} bytes at {offset:#x} is outside of the device or unaligned")]
    Invalid { op: &'static str, offset: u64, len: u64 },
    /// The device is gone.
    #[error("the device is gone")]
    Gone,
}

/// The answer to one operation: sent exactly once, with the buffer of a read.
pub struct Done {
    answer: OneSender<Result<Option<Buf>, IoError>>,
    /// Held until the backend is done, not until the task that waits is: so many are in flight in truth.
    _room: Option<Permit>,
    counters: Option<Rc<Cell<IoCounters>>>,
}

/// Where the answer to an operation arrives.
type Answer = OneReceiver<Result<Option<Buf>, IoError>>;

impl Done {
    /// One that nothing counts, and where its answer arrives: for those who drive a backend without a [`Device`].
    #[cfg(any(test, feature = "conformance"))]
    pub fn pair() -> (Done, Answer) {
        let (answer, receiver) = oneshot();
        (Done { answer, _room: None, counters: None }, receiver)
    }

    /// Another one, whose answer arrives where one has arrived before.
    #[cfg(any(test, feature = "conformance"))]
    pub fn again(receiver: &mut Answer) -> Option<Done> {
        Some(Done { answer: receiver.again()?, _room: None, counters: None })
    }

    /// Answers. The backend has let go of all of the operation's memory but `buf`.
    pub fn send(self, result: Result<Option<Buf>, IoError>) {
        if let (Err(_), Some(counters)) = (&result, &self.counters) {
            count(counters, |c| c.errors += 1);
        }
        self.answer.send(result);
    }
}

/// An operation on its way, with where its answer goes. The backend owns its memory until then (I7).
pub struct Io {
    /// What to do.
    pub op: Op,
    /// Where the answer goes.
    pub done: Done,
}

/// A backend. Submission never blocks and never fails: every `Io` is answered through its `done`,
/// also when the task that waits for it is gone.
pub trait Bdev {
    /// What the device is.
    fn identify(&self) -> &Identify;
    /// Takes an operation. At most `identify().depth` are in flight; [`Device`] sees to that.
    fn submit(&self, io: Io);
    /// Writes here and now, where no write ever waits: it needs no place in the queue, and no answer that is sent. Any
    /// other backend gives the bytes back. A device with a volatile cache is not asked.
    ///
    /// # Errors
    /// The bytes.
    fn write_now(&self, _offset: u64, data: WriteData) -> Result<(), WriteData> {
        Err(data)
    }
    /// Why no operation will succeed any more. Only what a backend knows without being asked for one.
    fn lost(&self) -> Option<String> {
        None
    }
}

/// Exact counts of what was asked of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub flushes: u64,
    pub deallocates: u64,
    pub errors: u64,
}

/// A handle to a device on this reactor: awaits queue room, submits, awaits the answer.
#[derive(Clone)]
pub struct Device {
    bdev: Rc<dyn Bdev>,
    room: Semaphore,
    counters: Rc<Cell<IoCounters>>,
    /// What answers of earlier operations arrived in: an operation takes no memory of its own.
    spare: Rc<RefCell<Vec<Answer>>>,
    /// FUA is believed.
    fua: bool,
}

impl Device {
    /// Wraps a backend.
    pub fn new(bdev: Rc<dyn Bdev>) -> Device {
        let depth = u64::from(bdev.identify().depth);
        let (room, counters, spare) = (Semaphore::new(depth), Rc::default(), Rc::default());
        Device { bdev, room, counters, spare, fua: true }
    }

    /// The same device, whose word on FUA is not taken: what is to be durable is written, then flushed.
    pub fn without_fua(self) -> Device {
        Device { fua: false, ..self }
    }

    /// The backend, for a wrapper that goes over it.
    pub fn bdev(&self) -> &Rc<dyn Bdev> {
        &self.bdev
    }

    /// What the device is.
    pub fn identify(&self) -> &Identify {
        self.bdev.identify()
    }

    /// Why no operation will succeed any more, as far as the backend knows.
    pub fn lost(&self) -> Option<String> {
        self.bdev.lost()
    }

    /// The counters now.
    pub fn counters(&self) -> IoCounters {
        self.counters.get()
    }

    /// Operations in flight now, those among them that nobody waits for any more.
    pub fn in_flight(&self) -> u64 {
        self.room.limit() - self.room.available()
    }

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// [`IoError`]; the buffer goes back to its arena.
    pub async fn read(&self, offset: u64, buf: Buf) -> Result<Buf, IoError> {
        let len = buf.len() as u64;
        self.check("read", offset, len)?;
        count(&self.counters, |c| {
            c.reads += 1;
            c.read_bytes += len;
        });
        let buf = self.run(Op::Read { offset, buf }).await?;
        match buf {
            Some(buf) => Ok(buf),
            None => unreachable!("a read answers with its buffer"),
        }
    }

    /// Writes `data` at byte `offset`; with `fua`, durable when this returns.
    ///
    /// # Errors
    /// [`IoError`]; what is on the device then is unknown.
    pub async fn write(&self, offset: u64, data: WriteData, fua: bool) -> Result<(), IoError> {
        let data = match self.write_now(offset, data) {
            Ok(written) => return written,
            Err(data) => data,
        };
        count(&self.counters, |c| {
            c.writes += 1;
            c.write_bytes += data.iter().map(|s| s.len() as u64).sum::<u64>();
        });
        self.run(Op::Write { offset, data, fua: fua && self.fua }).await?;
        if fua && !self.fua { self.flush().await } else { Ok(()) }
    }

    /// The same on a backend where no write waits; any other gives the bytes back. What is refused is refused by all.
    ///
    /// # Errors
    /// The bytes.
    pub fn write_now(&self, offset: u64, data: WriteData) -> Result<Result<(), IoError>, WriteData> {
        let len = data.iter().map(|s| s.len() as u64).sum();
        if let Err(error) = self.check("write", offset, len) {
            return Ok(Err(error));
        }
        let block = self.identify().block_size as usize;
        // Direct I/O wants memory aligned as well; every backend refuses alike.
        if !data.iter().all(|s| s.len().is_multiple_of(block) && (s.as_ptr() as usize).is_multiple_of(block))
        {
            return Ok(Err(IoError::Invalid { op: "write", offset, len }));
        }
        if self.identify().volatile_cache {
            return Err(data);
        }
        self.bdev.write_now(offset, data)?;
        count(&self.counters, |c| {
            c.writes += 1;
            c.write_bytes += len;
        });
        Ok(Ok(()))
    }

    /// Makes every write that completed before this call durable. Answers at once where no volatile cache exists.
    ///
    /// # Errors
    /// [`IoError`]; the state of all unflushed writes is unknown then.
    pub async fn flush(&self) -> Result<(), IoError> {
        if !self.identify().volatile_cache {
            return Ok(());
        }
        count(&self.counters, |c| c.flushes += 1);
        self.run(Op::Flush).await.map(drop)
    }

    /// Says that `len` bytes at `offset` are no longer needed.
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn deallocate(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.check("deallocate", offset, len)?;
        if !self.identify().deallocate {
            return Ok(());
        }
        count(&self.counters, |c| c.deallocates += 1);
        self.run(Op::Deallocate { offset, len }).await.map(drop)
    }

    async fn run(&self, op: Op) -> Result<Option<Buf>, IoError> {
        let room = self.room.acquire(1).await;
        let spare = self.spare.borrow_mut().pop();
        let again = spare.and_then(|mut receiver| Some((receiver.again()?, receiver)));
        let (answer, mut receiver) = again.unwrap_or_else(oneshot);
        let done = Done { answer, _room: Some(room), counters: Some(self.counters.clone()) };
        self.bdev.submit(Io { op, done });
        let result = (&mut receiver).await.unwrap_or(Err(IoError::Gone));
        self.spare.borrow_mut().push(receiver);
        result
    }

    fn check(&self, op: &'static str, offset: u64, len: u64) -> Result<(), IoError> {
        let id = self.identify();
        let block = u64::from(id.block_size);
        let fits = offset.checked_add(len).is_some_and(|end| end <= id.size);
        if !fits || !offset.is_multiple_of(block) || !len.is_multiple_of(block) || len == 0 {
            return Err(IoError::Invalid { op, offset, len });
        }
        Ok(())
    }
}

fn count(counters: &Cell<IoCounters>, f: impl FnOnce(&mut IoCounters)) {
    let mut now = counters.get();
    f(&mut now);
    counters.set(now);
}

#[cfg(test)]
mod tests {
    use super::{Bdev, Device, Identify, Io, IoError, Op, WriteData};
    use crate::MemBdev;
    use cobalt_dma::{Arena, ArenaConfig};
    use cobalt_reactor::Reactor;
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    /// Notes what it is asked, and may fail flushes.
    struct Noted {
        identify: Identify,
        asked: RefCell<Vec<&'static str>>,
        flush_fails: Cell<bool>,
    }

    impl Bdev for Noted {
        fn identify(&self) -> &Identify {
            &self.identify
        }

        fn submit(&self, io: Io) {
            let (what, result) = match io.op {
                Op::Write { fua: true, .. } => ("durable write", Ok(None)),
                Op::Write { .. } => ("write", Ok(None)),
                Op::Flush if self.flush_fails.get() => ("flush", Err(IoError::Gone)),
                _ => ("flush", Ok(None)),
            };
            self.asked.borrow_mut().push(what);
            io.done.send(result);
        }
    }

    #[test]
    fn an_answer_arrives_in_the_memory_of_an_earlier_one() {
        let reactor = Reactor::new_virtual(1).unwrap();
        let ctx = reactor.ctx();
        reactor.block_on(async move {
            let arena = Arena::new(ArenaConfig { limit: 1 << 20 }).unwrap();
            let device = Device::new(Rc::new(MemBdev::new(1 << 20)));
            for _ in 0..10 {
                let buf = device.read(0, arena.try_alloc(4096).unwrap()).await.unwrap();
                assert_eq!((buf.len(), device.spare.borrow().len()), (4096, 1));
            }
            let both = [(); 2].map(|()| {
                let (device, buf) = (device.clone(), arena.try_alloc(4096).unwrap());
                ctx.spawn(async move { device.read(4096, buf).await.map(drop) })
            });
            for read in both {
                read.await.unwrap();
            }
            assert!((1..=2).contains(&device.spare.borrow().len()), "no more than were in flight");
        });
    }

    #[test]
    fn where_fua_is_not_believed_a_durable_write_is_a_write_and_a_flush() {
        let reactor = Reactor::new_virtual(1).unwrap();
        reactor.block_on(async {
            let arena = Arena::new(ArenaConfig { limit: 1 << 20 }).unwrap();
            let identify = Identify { volatile_cache: true, ..MemBdev::new(1 << 20).identify().clone() };
            let noted = Rc::new(Noted { identify, asked: RefCell::default(), flush_fails: Cell::new(false) });
            let believed = Device::new(noted.clone());
            let device = Device::new(noted.clone()).without_fua();
            let data = || WriteData::from_iter([arena.try_alloc(4096).unwrap().freeze()]);
            believed.write(0, data(), true).await.unwrap();
            device.write(0, data(), false).await.unwrap();
            device.write(0, data(), true).await.unwrap();
            assert_eq!(noted.asked.take(), ["durable write", "write", "write", "flush"]);
            noted.flush_fails.set(true);
            assert_eq!(
                device.write(0, data(), true).await,
                Err(IoError::Gone),
                "not durable, and not said to be"
            );
        });
    }
}
