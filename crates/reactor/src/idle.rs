//! Sleeping without missing a wake-up, and the control thread for calls that block.

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// An eventfd and the promise around it: who wakes after `parked` was set writes the eventfd; who
/// sleeps looks at the queue once more after setting it.
pub(crate) struct Sleeper {
    event: EventFd,
    parked: AtomicBool,
    wakes: AtomicU64,
}

impl Sleeper {
    pub(crate) fn new() -> io::Result<Sleeper> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Sleeper { event, parked: AtomicBool::new(false), wakes: AtomicU64::new(0) })
    }

    /// Called by other threads after they queued something.
    pub(crate) fn wake(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.parked.swap(false, Ordering::SeqCst) {
            self.wakes.fetch_add(1, Ordering::Relaxed);
            let _ = self.event.write(1); // Full means that it is readable already.
        }
    }

    pub(crate) fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Relaxed)
    }

    /// Sleeps until `wake`, one of `fds`, or the time is up; not at all when `pending` says so.
    pub(crate) fn sleep(&self, fds: &[RawFd], time: Option<Duration>, pending: impl Fn() -> bool) {
        self.parked.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        if !pending() {
            let mut set = Vec::with_capacity(fds.len() + 1);
            set.push(PollFd::new(self.event.as_fd(), PollFlags::POLLIN));
            for fd in fds {
                // SAFETY: the poller that named this descriptor is held by the caller for the whole sleep.
                #[expect(unsafe_code)]
                let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                set.push(PollFd::new(fd, PollFlags::POLLIN));
            }
            // A signal is a wake-up like any other.
            let woken = ppoll(&mut set, time.map(TimeSpec::from), None).is_ok_and(|ready| ready > 0);
            // Who took `parked` may write late: that ends the next sleep at once, and is read there.
            if woken && set.first().and_then(PollFd::any).unwrap_or(false) {
                let _ = self.event.read();
            }
        }
        self.parked.store(false, Ordering::SeqCst);
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// One thread for calls that block: open, fallocate, map, register, reset.
pub(crate) struct ControlThread {
    jobs: mpsc::Sender<Job>,
}

impl ControlThread {
    #[expect(clippy::disallowed_methods, reason = "the home of the control thread")]
    pub(crate) fn start() -> ControlThread {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for job in queue {
                job();
            }
        });
        ControlThread { jobs }
    }

    pub(crate) fn run(&self, job: Job) {
        let sent = self.jobs.send(job);
        assert!(sent.is_ok(), "the control thread lives as long as its reactor");
    }
}
