//! Waiting between tasks of one reactor: a one-shot value, a notice, a counted semaphore. All are
//! `!Send`; between threads there are only mailboxes.

use slab::Slab;
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

impl<T> OneReceiver<T> {
    /// Uses the same memory for another value, once the sender of the last is gone; a value that nobody took goes with it.
    pub fn again(&mut self) -> Option<OneSender<T>> {
        let cell = Rc::get_mut(&mut self.0)?;
        *cell = OneCell { value: RefCell::new(None), waker: RefCell::new(None), closed: Cell::new(false) };
        Some(OneSender(self.0.clone()))
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
    /// Those who wait for the end of this round.
    waiting: RefCell<Slab<Waker>>,
}

impl Notify {
    /// Wakes all who wait now.
    pub fn notify_all(&self) {
        self.round.set(self.round.get() + 1);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for (_, waker) in waiting {
            waker.wake();
        }
    }

    /// Waits for the next notice after this call.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, round: self.round.get(), place: None }
    }
}

/// Waits for a notice of a [`Notify`]. Dropping it gives up its place.
#[must_use = "futures do nothing unless awaited"]
pub struct Notified<'a> {
    notify: &'a Notify,
    round: u64,
    place: Option<usize>,
}

impl Future for Notified<'_> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.notify.round.get() != self.round {
            return Poll::Ready(());
        }
        let mut waiting = self.notify.waiting.borrow_mut();
        match self.place.and_then(|place| waiting.get_mut(place)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.place = Some(waiting.insert(cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        // Places of earlier rounds are gone with their round.
        if let Some(place) = self.place
            && self.notify.round.get() == self.round
        {
            self.notify.waiting.borrow_mut().remove(place);
        }
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

#[cfg(test)]
mod tests {
    use super::{Notify, Semaphore, oneshot};
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_notice_wakes_those_who_wait_and_no_later_ones() {
        let notify = Notify::default();
        let early = notify.notified(); // Begun, though not polled yet.
        let mut waiting = Box::pin(notify.notified());
        assert!(poll(waiting.as_mut()).is_pending());
        notify.notify_all();
        let late = notify.notified();
        assert!(poll(pin!(early)).is_ready());
        assert!(poll(waiting.as_mut()).is_ready());
        assert!(poll(pin!(late)).is_pending());
    }

    #[test]
    fn those_who_gave_up_waiting_take_no_memory() {
        let notify = Notify::default();
        let mut stays = Box::pin(notify.notified());
        for _ in 0..1000 {
            let mut goes = Box::pin(notify.notified());
            assert!(poll(goes.as_mut()).is_pending());
            assert!(poll(stays.as_mut()).is_pending());
        }
        assert_eq!(notify.waiting.borrow().len(), 1);
        // A place of an earlier round is not given up in a later one.
        notify.notify_all();
        let mut next = Box::pin(notify.notified());
        assert!(poll(next.as_mut()).is_pending());
        drop(stays);
        assert_eq!(notify.waiting.borrow().len(), 1);
    }

    #[test]
    fn permits_go_in_turn_and_come_back() {
        let semaphore = Semaphore::new(10);
        let held = semaphore.try_acquire(8).unwrap();
        let mut large = Box::pin(semaphore.acquire(5));
        let mut small = Box::pin(semaphore.acquire(1));
        assert!(poll(large.as_mut()).is_pending());
        assert!(poll(small.as_mut()).is_pending(), "it would fit, and does not overtake");
        assert!(semaphore.try_acquire(1).is_none());
        drop(held);
        let Poll::Ready(permit) = poll(large.as_mut()) else { panic!("room for 5 of 10") };
        assert_eq!((permit.units(), semaphore.available()), (5, 5));
        assert!(poll(small.as_mut()).is_ready());
        drop(permit);
        assert_eq!(semaphore.available(), 10);
        assert!(poll(pin!(semaphore.acquire(10))).is_ready());
    }

    #[test]
    fn one_who_leaves_the_line_lets_the_next_one_through() {
        let semaphore = Semaphore::new(4);
        let held = semaphore.try_acquire(2).unwrap();
        let mut large = Box::pin(semaphore.acquire(4));
        let mut small = Box::pin(semaphore.acquire(2));
        assert!(poll(large.as_mut()).is_pending());
        assert!(poll(small.as_mut()).is_pending());
        drop(large);
        assert!(poll(small.as_mut()).is_ready());
        drop(held);
        assert_eq!(semaphore.available(), 4);
    }

    #[test]
    fn a_oneshot_tells_of_its_value_or_of_its_end() {
        let (sender, mut receiver) = oneshot();
        assert!(poll(pin!(&mut receiver)).is_pending());
        sender.send(3);
        assert_eq!(poll(pin!(receiver)), Poll::Ready(Some(3)));
        let (sender, receiver) = oneshot::<u8>();
        drop(sender);
        assert_eq!(poll(pin!(receiver)), Poll::Ready(None));
        let (sender, receiver) = oneshot::<u8>();
        assert!(sender.is_wanted());
        drop(receiver);
        assert!(!sender.is_wanted());
    }

    #[test]
    fn a_oneshot_is_used_again_once_its_sender_is_gone() {
        let (sender, mut receiver) = oneshot();
        assert!(poll(pin!(&mut receiver)).is_pending());
        assert!(receiver.again().is_none(), "its value is still to come");
        sender.send(3);
        let sender = receiver.again().unwrap();
        assert!(poll(pin!(&mut receiver)).is_pending(), "the value before is not the one that is waited for");
        sender.send(4);
        assert_eq!(poll(pin!(&mut receiver)), Poll::Ready(Some(4)));
        drop(receiver.again());
        assert_eq!(poll(pin!(&mut receiver)), Poll::Ready(None), "closed without a value");
    }
}
