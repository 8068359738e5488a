//! Where the kernel refuses io_uring: the same operations as ordinary calls on a few threads. A job
//! carries its memory with it, so the memory lives until the call has returned (I7).

use crate::device::{Bdev, Done, Identify, Io, IoError, Op};
use crate::target::{Target, io_error, span};
use cobalt_dma::{BUF_MAX, Buf};
use cobalt_reactor::{Ctx, mailbox};
use crossbeam_queue::ArrayQueue;
use nix::fcntl::{FallocateFlags, fallocate};
use slab::Slab;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};

const THREADS: usize = 4;
const DEPTH: u32 = 64;

/// A device driven by blocking calls.
pub struct Threads {
    identify: Identify,
    pool: Arc<Pool>,
    threads: Vec<JoinHandle<()>>,
    state: Rc<RefCell<State>>,
}

#[derive(Default)]
struct State {
    done: Slab<Done>,
    /// Operations beyond the depth.
    waiting: VecDeque<Io>,
}

struct Pool {
    target: Target,
    jobs: ArrayQueue<Job>,
    workers: [Worker; THREADS],
    stop: AtomicBool,
}

#[derive(Default)]
struct Worker {
    /// Known once the worker has started; it looks at the queue after that.
    thread: OnceLock<Thread>,
    /// Set by the worker before it looks at the queue a last time and parks.
    idle: AtomicBool,
}

struct Job {
    key: usize,
    op: Op,
}

type Answer = (usize, Result<Option<Buf>, IoError>);

impl Threads {
    /// Starts the threads; answers are handed out by a task of `ctx`'s reactor.
    pub(crate) fn new(ctx: &Ctx, target: Target) -> io::Result<Threads> {
        let identify = target.identify("threads", DEPTH, u32::try_from(BUF_MAX).unwrap_or(u32::MAX));
        let pool = Arc::new(Pool {
            target,
            jobs: ArrayQueue::new(DEPTH as usize),
            workers: Default::default(),
            stop: AtomicBool::new(false),
        });
        let state = Rc::new(RefCell::new(State::default()));
        let (answers, mut receiver) = mailbox::<Answer>(DEPTH as usize);
        let mut threads = Vec::with_capacity(THREADS);
        for index in 0..THREADS {
            let (pool, answers) = (pool.clone(), answers.clone());
            let thread = std::thread::Builder::new()
                .name(format!("bdev-{index}"))
                .spawn(move || pool.work(index, &answers))?;
            threads.push(thread);
        }
        drop(answers);
        let (jobs, table) = (pool.clone(), state.clone());
        drop(ctx.spawn(async move {
            while let Some((key, result)) = receiver.recv().await {
                let (done, next) = {
                    let mut state = table.borrow_mut();
                    (state.done.try_remove(key), state.waiting.pop_front())
                };
                if let Some(done) = done {
                    done.send(result);
                }
                if let Some(io) = next {
                    start(&table, &jobs, io);
                }
            }
        }));
        Ok(Threads { identify, pool, threads, state })
    }
}

fn start(state: &RefCell<State>, pool: &Pool, io: Io) {
    let mut state = state.borrow_mut();
    if state.done.len() == DEPTH as usize {
        state.waiting.push_back(io);
        return;
    }
    let key = state.done.insert(io.done);
    drop(state);
    let pushed = pool.jobs.push(Job { key, op: io.op });
    assert!(pushed.is_ok(), "the queue has room for the whole depth");
    fence(Ordering::SeqCst);
    let idle = pool.workers.iter().find(|w| w.idle.swap(false, Ordering::SeqCst));
    if let Some(thread) = idle.and_then(|w| w.thread.get()) {
        thread.unpark();
    }
}

impl Pool {
    fn work(&self, index: usize, answers: &mailbox::Sender<Answer>) {
        let worker = &self.workers[index];
        worker.thread.get_or_init(std::thread::current);
        loop {
            while let Some(Job { key, op }) = self.jobs.pop() {
                let sent = answers.try_send((key, self.run(op)));
                debug_assert!(!matches!(sent, Err(mailbox::SendError::Full(_))), "it has room for the depth");
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            worker.idle.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if self.jobs.is_empty() && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            worker.idle.store(false, Ordering::SeqCst);
        }
    }

    fn run(&self, op: Op) -> Result<Option<Buf>, IoError> {
        let at = span(&op);
        let file = &self.target.file;
        let answer = match op {
            Op::Read { offset, mut buf } => file.read_exact_at(&mut buf, offset).map(|()| Some(buf)),
            Op::Write { offset, data, fua } => {
                let mut place = offset;
                let written = data.iter().try_for_each(|slice| {
                    let result = file.write_all_at(slice, place);
                    place += slice.len() as u64;
                    result
                });
                let stable = if fua { written.and_then(|()| file.sync_data()) } else { written };
                stable.map(|()| None)
            }
            Op::Flush => file.sync_data().map(|()| None),
            Op::Deallocate { offset, len } => punch(file, offset, len).map(|()| None),
        };
        answer.map_err(|error| io_error(at, &error))
    }
}

/// Gives a range of a file back to its file system.
pub(crate) fn punch(file: &std::fs::File, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    let len = i64::try_from(len).map_err(io::Error::other)?;
    Ok(fallocate(file, flags, offset, len)?)
}

impl Bdev for Threads {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn submit(&self, io: Io) {
        start(&self.state, &self.pool, io);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.state.borrow_mut().waiting.clear(); // Never begun: answered with `Gone`.
        self.pool.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
