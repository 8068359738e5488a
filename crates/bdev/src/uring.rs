//! The io_uring backend of `file:` and `uring:` devices: a registered file, registered buffers, one
//! submission entry per operation, completions reaped without a system call.
//!
//! The kernel owns an operation's memory from the moment its entry is pushed until its completion is
//! reaped. A slot keeps the operation, whatever happens to the task that waits for it (I7); dropping
//! the backend waits for the kernel to let go of everything before the slots go.

use crate::device::{Bdev, Done, Identify, Io, IoError, Op};
use crate::target::{Target, io_error, queue_attribute, span};
use cobalt_dma::{Arena, BUF_MAX};
use cobalt_reactor::{Park, Poller};
use io_uring::{IoUring, Probe, opcode, squeue, types};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;

/// Operations in flight per device.
const DEPTH: u32 = 256;
/// Entries that wait for the reactor's next turn at most. The device works on them while tasks make the next ones; one
/// call for each entry would cost more than it gains.
const BATCH: usize = 8;
/// Resubmissions without progress before an operation fails.
const RETRIES_MAX: u8 = 16;
/// Most pieces that the kernel takes in one vectored write (UIO_MAXIOV).
const IOVECS_MAX: usize = 1024;
/// Most entries that the kernel takes in a buffer table (IORING_MAX_REG_BUFFERS).
const TABLE_MAX: usize = 1 << 14;

/// A device behind an io_uring of its own.
pub struct Uring {
    identify: Identify,
    inner: RefCell<Inner>,
    /// Empty between polls; kept for its capacity.
    answers: RefCell<Vec<Answer>>,
}

type Answer = (Done, Result<Option<cobalt_dma::Buf>, IoError>);

struct Inner {
    ring: IoUring,
    target: Target,
    fixed_file: bool,
    /// The disk itself knows FUA. On any other the kernel would flush twice for a durable write.
    native_fua: bool,
    table: Table,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Operations beyond the depth, in the order of their coming.
    waiting: VecDeque<Io>,
    /// Entries pushed that the kernel has not taken yet.
    queued: usize,
}

/// One operation that the kernel works on.
#[derive(Default)]
struct Slot {
    io: Option<Io>,
    progress: usize,
    retries: u8,
    /// The write is followed by a flush, and that flush is under way.
    flushes: bool,
    flushing: bool,
    /// What a vectored write points to; its memory moves only when no entry is out.
    iovecs: Vec<libc::iovec>,
}

/// Which 4 MiB blocks of the arena the ring knows. A block is registered when it is first used, so
/// that untouched memory stays untouched.
struct Table {
    arena: Arena,
    known: Vec<bool>,
    refused: bool,
}

impl Uring {
    /// Makes a ring for `target`, or gives it back when the kernel refuses.
    pub(crate) fn new(arena: &Arena, target: Target) -> Result<Uring, (Target, io::Error)> {
        let ring = match ring().and_then(|ring| check_opcodes(&ring).map(|()| ring)) {
            Ok(ring) => ring,
            Err(error) => return Err((target, error)),
        };
        let fixed_file = ring.submitter().register_files(&[target.file.as_raw_fd()]).is_ok();
        let native_fua = target
            .file
            .metadata()
            .is_ok_and(|meta| queue_attribute(&meta, "fua").is_some_and(|fua| fua == "1"));
        let table = Table::new(&ring, arena);
        let mut identify = target.identify("uring", DEPTH, u32::try_from(BUF_MAX).unwrap_or(u32::MAX));
        if table.refused {
            identify.backend.push_str(", buffers not registered");
        }
        let inner = Inner {
            ring,
            target,
            fixed_file,
            native_fua,
            table,
            slots: (0..DEPTH).map(|_| Slot::default()).collect(),
            free: (0..DEPTH as usize).rev().collect(),
            waiting: VecDeque::new(),
            queued: 0,
        };
        Ok(Uring { identify, inner: RefCell::new(inner), answers: RefCell::default() })
    }

    fn send_answers(&self) -> bool {
        let mut answers = std::mem::take(&mut *self.answers.borrow_mut());
        let any = !answers.is_empty();
        for (done, result) in answers.drain(..) {
            done.send(result);
        }
        *self.answers.borrow_mut() = answers;
        any
    }
}

/// A ring with the flags of newer kernels, else with none.
fn ring() -> io::Result<IoUring> {
    let modern = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(2 * DEPTH)
        .build(DEPTH);
    modern.or_else(|_| IoUring::builder().setup_cqsize(2 * DEPTH).build(DEPTH))
}

fn check_opcodes(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::ReadFixed::CODE,
        opcode::Write::CODE,
        opcode::WriteFixed::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
    ];
    if needed.iter().all(|code| probe.is_supported(*code)) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring lacks file operations"))
}

impl Table {
    fn new(ring: &IoUring, arena: &Arena) -> Table {
        let blocks = arena.region().1.div_ceil(BUF_MAX).min(TABLE_MAX);
        let mut table = Table { arena: arena.clone(), known: vec![false; blocks], refused: false };
        let sparse = u32::try_from(blocks)
            .map_err(io::Error::other)
            .and_then(|blocks| ring.submitter().register_buffers_sparse(blocks));
        if let Err(error) = sparse {
            table.refuse(&error);
        } else {
            table.register(ring, 0); // Shows at once whether the limits allow it.
        }
        table
    }

    /// Which table entry covers `ptr`, or `None` where plain memory has to do.
    fn index(&mut self, ring: &IoUring, ptr: *const u8) -> Option<u16> {
        let (base, len) = self.arena.region();
        let offset = (ptr as usize).checked_sub(base as usize).filter(|offset| *offset < len)?;
        let block = offset / BUF_MAX;
        if !*self.known.get(block)? && (self.refused || !self.register(ring, block)) {
            return None;
        }
        u16::try_from(block).ok()
    }

    fn register(&mut self, ring: &IoUring, block: usize) -> bool {
        let (base, _) = self.arena.region();
        let iovec = libc::iovec { iov_base: base.wrapping_add(block * BUF_MAX).cast(), iov_len: BUF_MAX };
        let Ok(index) = u32::try_from(block) else { return false };
        // SAFETY: arenas are mapped in multiples of BUF_MAX, so the block is inside the mapping; `self.arena`
        // keeps it mapped at this address for longer than the ring (`Inner` drops `ring` first).
        #[expect(unsafe_code)]
        let registered = unsafe { ring.submitter().register_buffers_update(index, &[iovec], None) };
        match registered {
            Ok(()) => self.known[block] = true,
            Err(error) => self.refuse(&error),
        }
        self.known[block]
    }

    fn refuse(&mut self, error: &io::Error) {
        self.refused = true;
        tracing::warn!(
            %error,
            "io_uring does not register this memory: the kernel maps it for each operation. Raise the memlock limit (ulimit -l, LimitMEMLOCK=)"
        );
    }
}

impl Inner {
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Gives an operation a slot and an entry, or has it wait.
    fn start(&mut self, io: Io) {
        let Some(index) = self.free.pop() else {
            self.waiting.push_back(io);
            return;
        };
        let slot = &mut self.slots[index];
        slot.flushes = !self.native_fua && matches!(io.op, Op::Write { fua: true, .. });
        slot.flushing = false;
        slot.io = Some(io);
        slot.progress = 0;
        slot.retries = 0;
        self.push(index);
    }

    /// Pushes the entry for what is left of slot `index`.
    fn push(&mut self, index: usize) {
        let entry = self.entry(index).user_data(index as u64);
        // SAFETY: all that the entry points to is the slot's: the operation's buffer or slices, which are
        // arena memory and do not move, and the slot's iovecs, which stay as they are while the entry is out.
        // The slot is emptied only when the completion has been reaped; `drop` sees to that, too.
        #[expect(unsafe_code)]
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the ring has an entry for each slot");
        self.queued += 1;
    }

    fn entry(&mut self, index: usize) -> squeue::Entry {
        let Inner { ring, table, slots, target, fixed_file, .. } = self;
        let Slot { io, progress, iovecs, flushes, flushing, .. } = &mut slots[index];
        let Some(io) = io else { unreachable!("only slots in use have entries") };
        let fd = types::Fd(if *fixed_file { 0 } else { target.file.as_raw_fd() });
        let skip = *progress as u64;
        let flush = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
        let entry = match &mut io.op {
            Op::Read { offset, buf } => {
                let len = short(buf.len() - *progress);
                let ptr = buf.as_mut_ptr().wrapping_add(*progress);
                match table.index(ring, ptr) {
                    Some(block) => opcode::ReadFixed::new(fd, ptr, len, block).offset(*offset + skip).build(),
                    None => opcode::Read::new(fd, ptr, len).offset(*offset + skip).build(),
                }
            }
            Op::Write { .. } if *flushing => flush,
            Op::Write { offset, data, fua } => {
                let flags = if *fua && !*flushes { libc::RWF_DSYNC } else { 0 };
                fill_iovecs(iovecs, data, *progress);
                let offset = *offset + skip;
                let only = match iovecs.as_slice() {
                    [one] => Some((one.iov_base.cast_const().cast::<u8>(), short(one.iov_len))),
                    _ => None,
                };
                match only.map(|(ptr, len)| (ptr, len, table.index(ring, ptr))) {
                    Some((ptr, len, Some(block))) => {
                        opcode::WriteFixed::new(fd, ptr, len, block).offset(offset).rw_flags(flags).build()
                    }
                    Some((ptr, len, None)) => {
                        opcode::Write::new(fd, ptr, len).offset(offset).rw_flags(flags).build()
                    }
                    None => opcode::Writev::new(fd, iovecs.as_ptr(), short(iovecs.len()))
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            Op::Flush => flush,
            Op::Deallocate { offset, len } => opcode::Fallocate::new(fd, *len)
                .offset(*offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
        };
        if *fixed_file { entry.flags(squeue::Flags::FIXED_FILE) } else { entry }
    }

    /// Hands pushed entries to the kernel, and lets it finish what waits for this thread.
    fn enter(&mut self) {
        if self.queued == 0 && !self.ring.submission().taskrun() {
            return;
        }
        match self.ring.submit() {
            Ok(taken) => self.queued -= taken.min(self.queued),
            // Entries stay where they are; the next turn tries again.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => tracing::error!(%error, "io_uring_enter failed"),
        }
    }

    /// Takes completions, resubmits what is not whole, starts what waits.
    fn reap(&mut self, answers: &mut Vec<Answer>) {
        loop {
            let Some(cqe) = self.ring.completion().next() else { return };
            let Some(index) = usize::try_from(cqe.user_data()).ok().filter(|i| *i < self.slots.len()) else {
                continue;
            };
            match self.slots[index].advance(cqe.result(), self.target.block_size as usize) {
                None => self.push(index),
                Some(answer) => {
                    answers.push(answer);
                    self.free.push(index);
                    if let Some(io) = self.waiting.pop_front() {
                        self.start(io);
                    }
                }
            }
        }
    }
}

impl Slot {
    /// Takes the kernel's result. `None` when a part is left to do.
    fn advance(&mut self, result: i32, block: usize) -> Option<Answer> {
        let Some(io) = &self.io else { unreachable!("only slots in use have completions") };
        let span = if self.flushing { ("flush", 0, 0) } else { span(&io.op) };
        let failed = match usize::try_from(result) {
            Ok(bytes) => {
                let moves = !self.flushing && matches!(io.op, Op::Read { .. } | Op::Write { .. });
                let len = if moves { usize::try_from(span.2).unwrap_or(usize::MAX) } else { 0 };
                if bytes > 0 {
                    self.retries = 0;
                }
                // What ends inside of a block goes on at the block's start: offsets stay aligned.
                let end = self.progress + bytes;
                self.progress = if end >= len { len } else { end - end % block };
                if self.progress == len && self.flushes && !self.flushing {
                    self.flushing = true;
                    return None;
                } else if self.progress == len {
                    None
                } else if bytes < block {
                    Some(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the file ends here: it was cut while open",
                    ))
                } else {
                    return None;
                }
            }
            Err(_) => {
                let again = matches!(-result, libc::EINTR | libc::EAGAIN) && self.retries < RETRIES_MAX;
                if again {
                    self.retries += 1;
                    return None;
                }
                Some(io::Error::from_raw_os_error(-result))
            }
        };
        let Io { op, done } = self.io.take()?;
        let result = match (failed, op) {
            (Some(error), _) => Err(io_error(span, &error)),
            (None, Op::Read { buf, .. }) => Ok(Some(buf)),
            (None, _) => Ok(None),
        };
        Some((done, result))
    }
}

fn fill_iovecs(iovecs: &mut Vec<libc::iovec>, data: &[cobalt_dma::Slice], mut skip: usize) {
    iovecs.clear();
    for slice in data {
        if iovecs.len() == IOVECS_MAX {
            return; // A short write; the rest follows.
        }
        let from = skip.min(slice.len());
        skip -= from;
        if from < slice.len() {
            let base = slice.as_ptr().wrapping_add(from).cast_mut().cast();
            iovecs.push(libc::iovec { iov_base: base, iov_len: slice.len() - from });
        }
    }
}

fn short(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Bdev for Uring {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn submit(&self, io: Io) {
        let mut inner = self.inner.borrow_mut();
        inner.start(io);
        if inner.queued >= BATCH {
            inner.enter();
        }
    }
}

impl Poller for Uring {
    fn poll(&self) -> bool {
        {
            let mut inner = self.inner.borrow_mut();
            if inner.in_flight() == 0 {
                return false;
            }
            inner.enter();
            inner.reap(&mut self.answers.borrow_mut());
        }
        self.send_answers()
    }

    fn arm(&self) -> Park {
        let mut inner = self.inner.borrow_mut();
        if inner.in_flight() == 0 {
            return Park::Idle;
        }
        let here =
            inner.queued > 0 || !inner.ring.completion().is_empty() || inner.ring.submission().taskrun();
        // The ring's own descriptor is readable while a completion is there: what comes after this look wakes.
        if here { Park::Busy } else { Park::Fd(inner.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        {
            let mut inner = self.inner.borrow_mut();
            inner.waiting.clear(); // Never begun: answered with `Gone`.
            while inner.in_flight() > 0 {
                match inner.ring.submit_and_wait(1) {
                    Ok(taken) => inner.queued -= taken.min(inner.queued),
                    Err(error)
                        if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                    }
                    Err(error) => {
                        tracing::error!(%error, "io_uring does not drain: its memory is not reused");
                        std::mem::forget(std::mem::take(&mut inner.slots));
                        break;
                    }
                }
                inner.reap(&mut self.answers.borrow_mut());
            }
            // The kernel tears rings down later, by itself; the file, and its lock, go now.
            let _ = inner.ring.submitter().unregister_files();
        }
        self.send_answers();
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, RETRIES_MAX, Slot};
    use crate::device::{Done, Io, IoError, Op};
    use cobalt_dma::{Arena, ArenaConfig};
    use smallvec::smallvec;

    fn slot(op: Op) -> Slot {
        let (done, _) = Done::pair();
        Slot { io: Some(Io { op, done }), ..Slot::default() }
    }

    fn write(len: usize) -> Slot {
        let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).unwrap();
        let data = smallvec![arena.try_alloc(len).unwrap().freeze()];
        slot(Op::Write { offset: 65536, data, fua: false })
    }

    fn failure(answer: Option<Answer>) -> IoError {
        answer.expect("an answer").1.expect_err("an error")
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let mut slot = write(16384);
        assert!(slot.advance(4096, 512).is_none());
        assert_eq!(slot.progress, 4096);
        assert!(slot.advance(5000, 512).is_none());
        assert_eq!(slot.progress, 8704, "in whole blocks, so that it stays aligned");
        let (_, result) = slot.advance(7680, 512).expect("all of it");
        assert_eq!(result.map(|buf| buf.is_some()), Ok(false));
        assert!(slot.io.is_none());
    }

    #[test]
    fn a_durable_write_is_answered_after_its_flush() {
        let durable = || Slot { flushes: true, ..write(8192) };
        let mut slot = durable();
        assert!(slot.advance(4096, 512).is_none());
        assert!(!slot.flushing, "the other half is to be written first");
        assert!(slot.advance(4096, 512).is_none());
        assert!(slot.flushing);
        assert!(slot.advance(-libc::EINTR, 512).is_none());
        assert!(slot.advance(0, 512).expect("an answer").1.is_ok());
        let mut slot = durable();
        assert!(slot.advance(8192, 512).is_none());
        let error = failure(slot.advance(-libc::ENOSPC, 512));
        assert!(matches!(error, IoError::Failed { op: "flush", .. }), "what is stable is unknown: {error}");
    }

    #[test]
    fn interruptions_are_retried_and_nothing_for_ever() {
        let mut slot = write(8192);
        for _ in 0..RETRIES_MAX {
            assert!(slot.advance(-libc::EAGAIN, 512).is_none());
        }
        assert!(slot.advance(4096, 512).is_none(), "progress starts the count anew");
        for _ in 0..RETRIES_MAX {
            assert!(slot.advance(-libc::EINTR, 512).is_none());
        }
        let error = failure(slot.advance(-libc::EINTR, 512));
        assert!(matches!(error, IoError::Failed { op: "write", offset: 65536, len: 8192, .. }), "{error}");
        assert!(matches!(failure(write(8192).advance(0, 512)), IoError::Failed { .. }));
        assert!(matches!(failure(write(8192).advance(100, 512)), IoError::Failed { .. }));
    }

    #[test]
    fn errors_say_what_they_mean() {
        for errno in [libc::ENOSPC, libc::EDQUOT] {
            let error = failure(write(8192).advance(-errno, 512));
            assert_eq!(error, IoError::HostFull { offset: 65536, len: 8192 });
            let error = failure(slot(Op::Flush).advance(-errno, 512));
            assert!(
                matches!(error, IoError::Failed { op: "flush", .. }),
                "what is stable is unknown: {error}"
            );
        }
        let error = failure(write(8192).advance(-libc::EIO, 512)).to_string();
        assert!(error.contains("write of 8192 bytes at 0x10000 failed: Input/output error"), "{error}");
        let (_, flushed) = slot(Op::Flush).advance(0, 512).expect("an answer");
        assert!(flushed.is_ok());
    }
}
