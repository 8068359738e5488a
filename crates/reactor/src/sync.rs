//! Waiting between tasks of one reactor: a one-shot value, a notice, a counted semaphore. All are
//! `!Send`; between threads there are only mailboxes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A value that is sent once.
pub fn oneshot<T>() -> (OneSender<T>, OneReceiver<T>) {
    let cell =
        Rc::new(OneCell { value: RefCell::new(None), waker: RefCell::new(None), closed: Cell::new(false) });
    (OneSender(cell.clone()), OneReceiver(cell))
}

struct OneCell<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
    closed: Cell<bool>,
}

/// Sends the value. Dropping it unsent closes the channel.
pub struct OneSender<T>(Rc<OneCell<T>>);
/// Receives the value, or `None` when the sender was dropped.
pub struct OneReceiver<T>(Rc<OneCell<T>>);

impl<T> OneSender<T> {
    /// Sends the value; it is dropped with the channel when nobody waits any more.
    pub fn send(self, value: T) {
        *self.0.value.borrow_mut() = Some(value);
    }

    /// Whether anybody still waits.
    pub fn is_wanted(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }
}

impl<T> Drop for OneSender<T> {
    fn drop(&mut self) {
        self.0.closed.set(true);
        let waker = self.0.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for OneReceiver<T> {
    type Output = Option<T>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let value = self.0.value.borrow_mut().take();
        if value.is_some() || self.0.closed.get() {
            return Poll::Ready(value);
        }
        *self.0.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Wakes all who wait. A wait sees only notices given after it began.
#[derive(Default)]
pub struct Notify {
    round: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Wakes all who wait now.
    pub fn notify_all(&self) {
        self.round.set(self.round.get() + 1);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for waker in waiting {
            waker.wake();
        }
    }

    /// Waits for the next notice after this call.
    pub fn notified(&self) -> impl Future<Output = ()> + '_ {
        let round = self.round.get();
        std::future::poll_fn(move |cx| {
            if self.round.get() != round {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
    }
}

/// A counted limit with first-come-first-served waiting.
#[derive(Clone)]
pub struct Semaphore(Rc<SemaphoreInner>);

struct SemaphoreInner {
    free: Cell<u64>,
    limit: u64,
    next: Cell<u64>,
    waiting: RefCell<VecDeque<(u64, u64, Waker)>>,
}

/// Units held; given back when dropped.
pub struct Permit {
    semaphore: Semaphore,
    units: u64,
}

impl Semaphore {
    /// A limit of `limit` units.
    pub fn new(limit: u64) -> Semaphore {
        Semaphore(Rc::new(SemaphoreInner {
            free: Cell::new(limit),
            limit,
            next: Cell::new(0),
            waiting: RefCell::default(),
        }))
    }

    /// Units that are free now.
    pub fn available(&self) -> u64 {
        self.0.free.get()
    }

    /// The limit.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// `units` now, or `None`.
    pub fn try_acquire(&self, units: u64) -> Option<Permit> {
        if !self.0.waiting.borrow().is_empty() || self.0.free.get() < units {
            return None;
        }
        self.0.free.set(self.0.free.get() - units);
        Some(Permit { semaphore: self.clone(), units })
    }

    /// Waits for `units`, at most the limit, in turn.
    pub fn acquire(&self, units: u64) -> Acquire {
        assert!(units <= self.0.limit, "{units} units can never be had from a limit of {}", self.0.limit);
        Acquire { semaphore: self.clone(), units, ticket: None }
    }

    fn wake_first(&self) {
        if let Some((_, units, waker)) = self.0.waiting.borrow().front()
            && *units <= self.0.free.get()
        {
            waker.wake_by_ref();
        }
    }
}

/// Waits for units of a [`Semaphore`].
#[must_use = "futures do nothing unless awaited"]
pub struct Acquire {
    semaphore: Semaphore,
    units: u64,
    ticket: Option<u64>,
}

impl Future for Acquire {
    type Output = Permit;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let inner = self.semaphore.0.clone();
        let mut waiting = inner.waiting.borrow_mut();
        let first = match self.ticket {
            None => waiting.is_empty(),
            Some(ticket) => waiting.front().is_some_and(|(t, ..)| *t == ticket),
        };
        if first && inner.free.get() >= self.units {
            inner.free.set(inner.free.get() - self.units);
            if self.ticket.take().is_some() {
                waiting.pop_front();
            }
            drop(waiting);
            self.semaphore.wake_first();
            return Poll::Ready(Permit { semaphore: self.semaphore.clone(), units: self.units });
        }
        match self.ticket {
            Some(ticket) => {
                if let Some(place) = waiting.iter_mut().find(|(t, ..)| *t == ticket) {
                    place.2.clone_from(cx.waker());
                }
            }
            None => {
                let ticket = inner.next.get();
                inner.next.set(ticket + 1);
                waiting.push_back((ticket, self.units, cx.waker().clone()));
                self.ticket = Some(ticket);
            }
        }
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.semaphore.0.waiting.borrow_mut().retain(|(t, ..)| *t != ticket);
            self.semaphore.wake_first();
        }
    }
}

impl Permit {
    /// Units held.
    pub fn units(&self) -> u64 {
        self.units
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let inner = &self.semaphore.0;
        inner.free.set(inner.free.get() + self.units);
        self.semaphore.wake_first();
    }
}
