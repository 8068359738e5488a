//! The context: what a task may ask of the reactor that runs it (I11).

use crate::executor::{Inner, ReactorStats, TaskId};
use crate::idle::ControlThread;
use crate::poller::Poller;
use crate::step::Step;
use cobalt_base::{Nanos, UnixMillis};
use futures::channel::oneshot;
use rand::RngCore;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A handle to the reactor of this thread: time, randomness, tasks.
#[derive(Clone)]
pub struct Ctx {
    inner: Rc<Inner>,
    scope: u64,
}

/// The time was up first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

impl Ctx {
    pub(crate) fn new(inner: Rc<Inner>, scope: u64) -> Ctx {
        Ctx { inner, scope }
    }

    /// Monotonic time.
    pub fn now(&self) -> Nanos {
        self.inner.clock.now()
    }

    /// Wall-clock time, for people only (I9).
    pub fn unix_time(&self) -> UnixMillis {
        self.inner.clock.unix_time()
    }

    /// A random number; unpredictable outside of the simulator.
    pub fn random_u64(&self) -> u64 {
        self.inner.rng.borrow_mut().next_u64()
    }

    /// Fills `out` with random bytes; unpredictable outside of the simulator.
    pub fn random_bytes(&self, out: &mut [u8]) {
        self.inner.rng.borrow_mut().fill_bytes(out);
    }

    /// Name of the reactor.
    pub fn reactor_name(&self) -> &str {
        &self.inner.name
    }

    /// The reactor's counters.
    pub fn stats(&self) -> ReactorStats {
        self.inner.stats()
    }

    /// Passes a step of the write path: counted, and the place where tests halt.
    pub fn step(&self, step: Step) {
        if let Some(hook) = &self.inner.on_step {
            hook(step);
        }
    }

    /// Starts a task on this reactor. Dropping the handle lets it run on. In a scope that was killed it
    /// is dropped before it begins.
    pub fn spawn<F: Future + 'static>(&self, future: F) -> JoinHandle<F::Output> {
        let cell =
            Rc::new(JoinCell { value: RefCell::new(None), waker: Cell::new(None), gone: Cell::new(false) });
        let guard = Finish(cell.clone());
        let task = self.inner.spawn(
            self.scope,
            Box::pin(async move {
                let guard = guard;
                let value = future.await;
                *guard.0.value.borrow_mut() = Some(value);
            }),
        );
        JoinHandle { cell, task, inner: Rc::downgrade(&self.inner) }
    }

    /// A context whose tasks can all be killed at once, as a process dies. It dies with the scope that this
    /// context belongs to.
    pub fn scope(&self) -> Scope {
        Scope { ctx: Ctx { inner: self.inner.clone(), scope: self.inner.new_scope(self.scope) } }
    }

    /// Polls `poller` in every turn for as long as its owner holds it.
    pub fn add_poller(&self, poller: Weak<dyn Poller>) {
        self.inner.add_poller(self.scope, poller);
    }

    /// Waits for `time`.
    pub async fn sleep(&self, time: Duration) {
        self.sleep_until(self.now() + time).await;
    }

    /// Waits until `at`.
    pub fn sleep_until(&self, at: Nanos) -> impl Future<Output = ()> + use<> {
        SleepUntil { inner: self.inner.clone(), at, key: None }
    }

    /// `future`'s output, or [`Elapsed`] when `time` is up first; the future is dropped then.
    ///
    /// # Errors
    /// [`Elapsed`].
    pub async fn timeout<F: Future>(&self, time: Duration, future: F) -> Result<F::Output, Elapsed> {
        self.timeout_at(self.now() + time, future).await
    }

    /// As [`Ctx::timeout`], at a point in time.
    ///
    /// # Errors
    /// [`Elapsed`].
    pub async fn timeout_at<F: Future>(&self, at: Nanos, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut sleep = pin!(self.sleep_until(at));
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending => sleep.as_mut().poll(cx).map(|()| Err(Elapsed)),
        })
        .await
    }

    /// Lets the others run first.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Runs a call that blocks on the control thread. Under the simulator it runs here and now.
    pub async fn blocking<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> T {
        if matches!(self.inner.clock, crate::clock::Clock::Virtual { .. }) {
            return call();
        }
        let (done, value) = oneshot::channel();
        // A panic goes to the caller, as that of any call would, and spares the thread.
        let job = Box::new(move || drop(done.send(catch_unwind(AssertUnwindSafe(call)))));
        self.inner.control.borrow_mut().get_or_insert_with(ControlThread::start).run(job);
        match value.await {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(oneshot::Canceled) => unreachable!("a job that runs sends its value"),
        }
    }
}

/// Tasks that live and die together.
pub struct Scope {
    ctx: Ctx,
}

impl Scope {
    /// The context to start them with.
    pub fn ctx(&self) -> Ctx {
        self.ctx.clone()
    }

    /// Drops every task of the scope, and of scopes made within it, where it stands. Tasks started in it
    /// from here on are dropped at once.
    pub fn kill(&self) {
        self.ctx.inner.kill(self.ctx.scope);
    }
}

struct JoinCell<T> {
    value: RefCell<Option<T>>,
    waker: Cell<Option<Waker>>,
    gone: Cell<bool>,
}

/// Tells the handle that the task has ended, however it ended.
struct Finish<T>(Rc<JoinCell<T>>);

impl<T> Drop for Finish<T> {
    fn drop(&mut self) {
        self.0.gone.set(true);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

/// A task's output, when it is done.
///
/// # Panics
/// Awaiting a task that was aborted or killed.
pub struct JoinHandle<T> {
    cell: Rc<JoinCell<T>>,
    task: TaskId,
    inner: Weak<Inner>,
}

impl<T> JoinHandle<T> {
    /// Drops the task where it stands.
    pub fn abort(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.abort(self.task);
        }
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.cell.gone.get()
    }

    /// The output, or `None` when the task was aborted or killed.
    pub async fn join(self) -> Option<T> {
        poll_fn(|cx| {
            if let Some(value) = self.try_take() {
                return Poll::Ready(Some(value));
            }
            if self.cell.gone.get() {
                return Poll::Ready(None);
            }
            self.cell.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    pub(crate) fn try_take(&self) -> Option<T> {
        self.cell.value.borrow_mut().take()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(value) = self.try_take() {
            return Poll::Ready(value);
        }
        assert!(!self.cell.gone.get(), "the awaited task was aborted");
        self.cell.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

struct SleepUntil {
    inner: Rc<Inner>,
    at: Nanos,
    key: Option<(Nanos, u64)>,
}

impl Future for SleepUntil {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.inner.clock.now() >= self.at {
            return Poll::Ready(());
        }
        match self.key {
            Some(key) => self.inner.timers.borrow_mut().update(key, cx.waker()),
            None => {
                let key = self.inner.timers.borrow_mut().insert(self.at, cx.waker().clone());
                self.key = Some(key);
            }
        }
        Poll::Pending
    }
}

impl Drop for SleepUntil {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.inner.timers.borrow_mut().remove(key);
        }
    }
}
