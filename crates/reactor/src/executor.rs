//! The executor: a slab of `!Send` tasks, a queue of those that are ready, and the turn in which
//! pollers, timers and tasks take theirs.

use crate::clock::Clock;
use crate::ctx::{Ctx, JoinHandle};
use crate::idle::Sleeper;
use crate::poller::{Park, Poller};
use crate::step::Step;
use crate::timer::Timers;
use cobalt_base::Nanos;
use crossbeam_queue::SegQueue;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// Tasks run in one turn before the pollers are asked again.
const TASKS_PER_TURN: usize = 256;

/// What a reactor does when nothing is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Never sleeps: for a core that is given to Cobalt alone.
    Poll,
    /// Spins for this long, then arms every poller and sleeps.
    Adaptive(Duration),
}

/// How to run a reactor.
pub struct ReactorConfig {
    /// Name of the reactor in logs and `status`.
    pub name: String,
    /// What to do when idle.
    pub idle: Idle,
    /// The core to pin to, if any.
    pub core: Option<usize>,
    /// Called at every step of the write path that this reactor passes.
    pub on_step: Option<Rc<dyn Fn(Step)>>,
}

impl Default for ReactorConfig {
    fn default() -> ReactorConfig {
        ReactorConfig {
            name: "reactor".into(),
            idle: Idle::Adaptive(Duration::from_micros(20)),
            core: None,
            on_step: None,
        }
    }
}

/// Counters of a reactor since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReactorStats {
    /// Turns of the loop.
    pub turns: u64,
    /// Tasks run.
    pub polls: u64,
    /// Sleeps.
    pub parks: u64,
    /// Wakes from other threads that found the reactor asleep and cost a system call.
    pub remote_wakes: u64,
    /// Time in turns that did something, in nanoseconds.
    pub busy_ns: u64,
    /// Tasks alive now.
    pub tasks: u64,
}

/// Identity of a task: its place and the generation of that place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TaskId {
    slot: usize,
    generation: u64,
}

struct ScopeState {
    parent: u64,
    dead: bool,
}

struct TaskSlot {
    generation: u64,
    scope: u64,
    /// Taken out while it runs.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
}

/// The part of a reactor that other threads see.
pub(crate) struct Shared {
    /// Tasks woken by other threads; each task is in here at most once.
    remote: SegQueue<TaskId>,
    sleeper: Sleeper,
}

struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    shared: Arc<Shared>,
}

thread_local! {
    static CURRENT: RefCell<Weak<Inner>> = const { RefCell::new(Weak::new()) };
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let here = CURRENT
            .try_with(|c| c.borrow().upgrade())
            .ok()
            .flatten()
            .filter(|i| Arc::ptr_eq(&i.shared, &self.shared));
        if let Some(inner) = here {
            inner.ready.borrow_mut().push_back(self.id);
        } else {
            self.shared.remote.push(self.id);
            self.shared.sleeper.wake();
        }
    }
}

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Clock,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) rng: RefCell<StdRng>,
    pub(crate) on_step: Option<Rc<dyn Fn(Step)>>,
    pub(crate) control: RefCell<Option<crate::idle::ControlThread>>,
    /// The scopes in the order of their making; 0, the reactor's own, comes before them.
    scopes: RefCell<Vec<ScopeState>>,
    pub(crate) name: String,
    tasks: RefCell<Slab<TaskSlot>>,
    next_generation: Cell<u64>,
    ready: RefCell<VecDeque<TaskId>>,
    pollers: RefCell<Vec<(u64, Weak<dyn Poller>)>>,
    /// Present under the simulator: chooses which ready task runs next.
    schedule: Option<RefCell<StdRng>>,
    idle: Idle,
    stats: Cell<ReactorStats>,
}

/// A reactor. It lives on the thread that made it.
pub struct Reactor {
    inner: Rc<Inner>,
}

impl Reactor {
    /// A reactor on the system's clock, on this thread.
    ///
    /// # Errors
    /// What the system said when it refused an eventfd or the pinning.
    pub fn new(config: ReactorConfig) -> io::Result<Reactor> {
        if let Some(core) = config.core {
            let mut set = nix::sched::CpuSet::new();
            set.set(core)?;
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
        }
        Ok(Reactor::build(config, Clock::real(), StdRng::from_os_rng(), None, Sleeper::new()?))
    }

    /// A reactor on virtual time: ready tasks run in an order that `seed` decides, and time moves only when none is ready.
    ///
    /// # Errors
    /// What the system said when it refused an eventfd.
    pub fn new_virtual(seed: u64) -> io::Result<Reactor> {
        Reactor::new_virtual_with(seed, ReactorConfig::default())
    }

    /// As [`Reactor::new_virtual`], with a name and a hook for steps.
    ///
    /// # Errors
    /// What the system said when it refused an eventfd.
    pub fn new_virtual_with(seed: u64, config: ReactorConfig) -> io::Result<Reactor> {
        let clock = Clock::Virtual { now: Cell::new(Nanos(0)) };
        let schedule = RefCell::new(StdRng::seed_from_u64(seed ^ 0x5eed_5c4e_d01e));
        Ok(Reactor::build(config, clock, StdRng::seed_from_u64(seed), Some(schedule), Sleeper::new()?))
    }

    fn build(
        config: ReactorConfig,
        clock: Clock,
        rng: StdRng,
        schedule: Option<RefCell<StdRng>>,
        sleeper: Sleeper,
    ) -> Reactor {
        let shared = Arc::new(Shared { remote: SegQueue::new(), sleeper });
        Reactor {
            inner: Rc::new(Inner {
                shared,
                clock,
                timers: RefCell::default(),
                rng: RefCell::new(rng),
                on_step: config.on_step,
                control: RefCell::new(None),
                scopes: RefCell::default(),
                name: config.name,
                tasks: RefCell::default(),
                next_generation: Cell::new(0),
                ready: RefCell::default(),
                pollers: RefCell::default(),
                schedule,
                idle: config.idle,
                stats: Cell::default(),
            }),
        }
    }

    /// The context that tasks of this reactor use.
    pub fn ctx(&self) -> Ctx {
        Ctx::new(self.inner.clone(), 0)
    }

    /// Runs until `future` is done.
    ///
    /// # Panics
    /// On virtual time, when nothing can ever run again: a deadlock.
    pub fn block_on<F: Future + 'static>(&self, future: F) -> F::Output {
        let main = self.ctx().spawn(future);
        self.run_until(main)
    }

    fn run_until<T: 'static>(&self, main: JoinHandle<T>) -> T {
        let inner = &self.inner;
        let outer = CURRENT.with(|c| c.replace(Rc::downgrade(inner)));
        let mut idle_since: Option<Nanos> = None;
        let value = loop {
            if let Some(value) = main.try_take() {
                break value;
            }
            let began = inner.clock.now();
            if inner.turn() {
                idle_since = None;
                let busy = inner.clock.now() - began;
                inner.count(|s| s.busy_ns += u64::try_from(busy.as_nanos()).unwrap_or(0));
                continue;
            }
            match (&inner.clock, inner.idle) {
                (Clock::Virtual { now }, _) => {
                    let next = inner.timers.borrow().next();
                    now.set(next.expect("deadlock: no task is ready and no timer runs"));
                }
                (Clock::Real { .. }, Idle::Poll) => std::hint::spin_loop(),
                (Clock::Real { .. }, Idle::Adaptive(spin)) => {
                    let since = *idle_since.get_or_insert(began);
                    if began - since >= spin {
                        inner.park();
                    }
                }
            }
        };
        CURRENT.with(|c| c.replace(outer));
        value
    }

    /// The counters now.
    pub fn stats(&self) -> ReactorStats {
        self.inner.stats()
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        // Tasks hold the context, which holds the executor: break the circle. What they start while they
        // go, goes as well.
        while !self.inner.tasks.borrow().is_empty() {
            let tasks = std::mem::take(&mut *self.inner.tasks.borrow_mut());
            drop(tasks);
        }
        self.inner.pollers.borrow_mut().clear();
    }
}

impl Inner {
    pub(crate) fn spawn(&self, scope: u64, future: Pin<Box<dyn Future<Output = ()>>>) -> TaskId {
        let generation = self.next_generation.get();
        self.next_generation.set(generation + 1);
        if self.is_dead(scope) {
            return TaskId { slot: usize::MAX, generation };
        }
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let id = TaskId { slot: entry.key(), generation };
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(true), shared: self.shared.clone() });
        entry.insert(TaskSlot { generation, scope, future: Some(future), waker });
        self.ready.borrow_mut().push_back(id);
        id
    }

    /// Drops a task where it stands. One that is running now is dropped when it returns.
    pub(crate) fn abort(&self, id: TaskId) {
        let mut tasks = self.tasks.borrow_mut();
        if tasks.get(id.slot).is_some_and(|t| t.generation == id.generation) {
            let slot = tasks.remove(id.slot);
            drop(tasks);
            drop(slot);
        }
    }

    pub(crate) fn new_scope(&self, parent: u64) -> u64 {
        let dead = self.is_dead(parent);
        let mut scopes = self.scopes.borrow_mut();
        scopes.push(ScopeState { parent, dead });
        scopes.len() as u64
    }

    fn is_dead(&self, scope: u64) -> bool {
        let place = usize::try_from(scope).ok().and_then(|scope| scope.checked_sub(1));
        place.is_some_and(|place| self.scopes.borrow()[place].dead)
    }

    /// Drops every task of a scope and of those within it: what a process's death does.
    pub(crate) fn kill(&self, scope: u64) {
        let mut number = 0;
        let mut killed = vec![false]; // By scope. A scope is made after its parent, so one pass finds all.
        for state in &mut *self.scopes.borrow_mut() {
            number += 1;
            let within = number == scope || usize::try_from(state.parent).is_ok_and(|parent| killed[parent]);
            killed.push(within);
            state.dead |= within;
        }
        let hit = |scope: u64| usize::try_from(scope).is_ok_and(|scope| killed[scope]);
        let ids: Vec<TaskId> = (self.tasks.borrow().iter())
            .filter(|(_, t)| hit(t.scope))
            .map(|(slot, t)| TaskId { slot, generation: t.generation })
            .collect();
        for id in ids {
            self.abort(id);
        }
        self.pollers.borrow_mut().retain(|(s, _)| !hit(*s));
    }

    pub(crate) fn add_poller(&self, scope: u64, poller: Weak<dyn Poller>) {
        self.pollers.borrow_mut().push((scope, poller));
    }

    pub(crate) fn stats(&self) -> ReactorStats {
        ReactorStats {
            tasks: self.tasks.borrow().len() as u64,
            remote_wakes: self.shared.sleeper.wakes(),
            ..self.stats.get()
        }
    }

    fn count(&self, f: impl FnOnce(&mut ReactorStats)) {
        let mut stats = self.stats.get();
        f(&mut stats);
        self.stats.set(stats);
    }

    /// One turn: pollers, timers, tasks. True when anything was done.
    fn turn(&self) -> bool {
        self.count(|s| s.turns += 1);
        let mut progress = self.poll_pollers();
        let mut due = Vec::new();
        self.timers.borrow_mut().due(self.clock.now(), &mut due);
        for waker in due {
            waker.wake();
        }
        for _ in 0..TASKS_PER_TURN {
            while let Some(id) = self.shared.remote.pop() {
                self.ready.borrow_mut().push_back(id);
            }
            let Some(id) = self.next_ready() else { break };
            self.run(id);
            progress = true;
        }
        progress
    }

    fn poll_pollers(&self) -> bool {
        let mut progress = false;
        let mut gone = false;
        let count = self.pollers.borrow().len();
        for i in 0..count {
            let poller = self.pollers.borrow().get(i).map(|(_, p)| p.upgrade());
            match poller {
                Some(Some(poller)) => progress |= poller.poll(),
                Some(None) => gone = true,
                None => break,
            }
        }
        if gone {
            self.pollers.borrow_mut().retain(|(_, p)| p.strong_count() > 0);
        }
        progress
    }

    fn next_ready(&self) -> Option<TaskId> {
        let mut ready = self.ready.borrow_mut();
        if let Some(schedule) = &self.schedule
            && ready.len() > 1
        {
            let pick = schedule.borrow_mut().random_range(0..ready.len());
            return ready.swap_remove_front(pick);
        }
        ready.pop_front()
    }

    fn run(&self, id: TaskId) {
        let (mut future, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(slot) = tasks.get_mut(id.slot).filter(|t| t.generation == id.generation) else { return };
            let Some(future) = slot.future.take() else { return };
            slot.waker.queued.store(false, Ordering::Release);
            (future, slot.waker.clone())
        };
        self.count(|s| s.polls += 1);
        let waker = Waker::from(waker);
        let done = matches!(future.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(()));
        let mut tasks = self.tasks.borrow_mut();
        let slot = tasks.get_mut(id.slot).filter(|t| t.generation == id.generation);
        match slot {
            Some(slot) if !done => slot.future = Some(future),
            Some(_) => {
                let slot = tasks.remove(id.slot);
                drop(tasks);
                drop((slot, future));
            }
            None => {
                drop(tasks);
                drop(future); // Aborted while it ran.
            }
        }
    }

    /// Sleeps until a poller, a waker or a timer has something.
    fn park(&self) {
        let pollers: Vec<Rc<dyn Poller>> =
            self.pollers.borrow().iter().filter_map(|(_, p)| p.upgrade()).collect();
        let mut fds = Vec::with_capacity(pollers.len() + 1);
        let mut busy = false;
        for poller in &pollers {
            match poller.arm() {
                Park::Busy => busy = true,
                Park::Fd(fd) => fds.push(fd),
                Park::Idle => {}
            }
        }
        if !busy && self.ready.borrow().is_empty() {
            let until = self.timers.borrow().next().map(|at| at - self.clock.now());
            self.count(|s| s.parks += 1);
            self.shared.sleeper.sleep(&fds, until, || !self.shared.remote.is_empty());
        }
        for poller in &pollers {
            poller.disarm();
        }
    }
}
