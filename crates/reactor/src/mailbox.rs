//! Bounded mailboxes into a reactor, from any thread. Full is a normal answer (I8).
//!
//! Who waits for room stands in a line. Each message taken wakes the first in line; one that was
//! woken and goes away without sending passes its wake on, so no room stays unused while somebody
//! waits for it.

use crossbeam_queue::ArrayQueue;
use futures::task::AtomicWaker;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
#[expect(
    clippy::disallowed_types,
    reason = "the line of those who wait for room; taken only while the mailbox is full, and never around a call"
)]
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

struct Shared<T> {
    queue: ArrayQueue<T>,
    receiver: AtomicWaker,
    line: Line,
    senders: AtomicUsize,
    closed: AtomicBool,
}

/// Those who wait for room, first come first served.
struct Line {
    /// How many wait: spares the lock when nobody does.
    count: AtomicUsize,
    #[expect(clippy::disallowed_types, reason = "see the import")]
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    next: u64,
    waiting: VecDeque<(u64, Waker)>,
}

/// Makes a mailbox for up to `capacity` messages.
pub fn mailbox<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    #[expect(clippy::disallowed_types, reason = "see the import")]
    let line = Line { count: AtomicUsize::new(0), places: Mutex::default() };
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        receiver: AtomicWaker::new(),
        line,
        senders: AtomicUsize::new(1),
        closed: AtomicBool::new(false),
    });
    (Sender(shared.clone()), Receiver(shared))
}

/// Puts messages in, from any thread.
pub struct Sender<T>(Arc<Shared<T>>);
/// Takes messages out.
pub struct Receiver<T>(Arc<Shared<T>>);

/// Why a message was not taken; it comes back with the answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError<T> {
    /// No room now.
    #[error("the mailbox is full")]
    Full(T),
    /// Nobody will ever take it.
    #[error("the receiver is gone")]
    Closed(T),
}

impl Line {
    fn with<R>(&self, f: impl FnOnce(&mut Places) -> R) -> R {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut places);
        self.count.store(places.waiting.len(), Ordering::SeqCst);
        result
    }

    /// Called after room was made.
    fn wake_first(&self) {
        fence(Ordering::SeqCst); // The room is seen by whoever joins the line after this look at it.
        if self.count.load(Ordering::SeqCst) > 0
            && let Some((_, waker)) = self.with(|places| places.waiting.pop_front())
        {
            waker.wake();
        }
    }

    /// Takes a place, or renews it. A place that was woken is lost: a new one is taken at the front.
    fn join(&self, place: &mut Option<u64>, waker: &Waker) {
        self.with(|places| {
            let mine = place.and_then(|id| places.waiting.iter_mut().find(|(other, _)| *other == id));
            match (mine, *place) {
                (Some((_, held)), _) => held.clone_from(waker),
                (None, Some(id)) => places.waiting.push_front((id, waker.clone())),
                (None, None) => {
                    *place = Some(places.next);
                    places.waiting.push_back((places.next, waker.clone()));
                    places.next += 1;
                }
            }
        });
        fence(Ordering::SeqCst);
    }

    /// Gives a place up. True when it had been woken.
    fn leave(&self, id: u64) -> bool {
        self.with(|places| {
            let before = places.waiting.len();
            places.waiting.retain(|(other, _)| *other != id);
            places.waiting.len() == before
        })
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.receiver.wake();
        }
    }
}

impl<T> Sender<T> {
    /// Puts a message in if there is room.
    ///
    /// # Errors
    /// [`SendError`] with the message.
    pub fn try_send(&self, message: T) -> Result<(), SendError<T>> {
        if self.0.closed.load(Ordering::SeqCst) {
            return Err(SendError::Closed(message));
        }
        self.0.queue.push(message).map_err(SendError::Full)?;
        fence(Ordering::SeqCst);
        if self.0.closed.load(Ordering::SeqCst) {
            // The receiver went away beside us: nobody is left to drop what lies in the queue, and who
            // waits for an answer to it has to hear.
            while self.0.queue.pop().is_some() {}
        }
        self.0.receiver.wake();
        Ok(())
    }

    /// Waits for room and puts a message in. Runs on any executor.
    ///
    /// # Errors
    /// The message, when the receiver is gone.
    pub fn send(&self, message: T) -> Sending<'_, T> {
        Sending { sender: self, message: Some(message), place: None }
    }
}

/// Waits for room in a mailbox. Dropping it takes the message back.
#[must_use = "futures do nothing unless awaited"]
pub struct Sending<'a, T> {
    sender: &'a Sender<T>,
    message: Option<T>,
    place: Option<u64>,
}

impl<T> Unpin for Sending<'_, T> {}

impl<T> Sending<'_, T> {
    fn attempt(&mut self) -> Poll<Result<(), T>> {
        let Some(message) = self.message.take() else { return Poll::Ready(Ok(())) };
        let result = match self.sender.try_send(message) {
            Ok(()) => Ok(()),
            Err(SendError::Closed(message)) => Err(message),
            Err(SendError::Full(message)) => {
                self.message = Some(message);
                return Poll::Pending;
            }
        };
        if let Some(id) = self.place.take() {
            self.sender.0.line.leave(id);
        }
        Poll::Ready(result)
    }
}

impl<T> Future for Sending<'_, T> {
    type Output = Result<(), T>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), T>> {
        let this = &mut *self;
        if let Poll::Ready(result) = this.attempt() {
            return Poll::Ready(result);
        }
        this.sender.0.line.join(&mut this.place, cx.waker());
        this.attempt() // Room made before we stood in line woke nobody.
    }
}

impl<T> Drop for Sending<'_, T> {
    fn drop(&mut self) {
        if let Some(id) = self.place.take()
            && self.sender.0.line.leave(id)
        {
            self.sender.0.line.wake_first();
        }
    }
}

impl<T> Receiver<T> {
    /// The next message, or `None` when every sender is gone and nothing is left.
    pub fn recv(&mut self) -> impl Future<Output = Option<T>> + '_ {
        poll_fn(|cx| {
            for registered in [false, true] {
                if let Some(message) = self.try_recv() {
                    return Poll::Ready(Some(message));
                }
                if self.0.senders.load(Ordering::Acquire) == 0 {
                    return Poll::Ready(self.try_recv());
                }
                if !registered {
                    self.0.receiver.register(cx.waker());
                }
            }
            Poll::Pending
        })
    }

    /// The next message if one is there.
    pub fn try_recv(&mut self) -> Option<T> {
        let message = self.0.queue.pop()?;
        self.0.line.wake_first();
        Some(message)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        while self.0.queue.pop().is_some() {}
        for (_, waker) in self.0.line.with(|places| std::mem::take(&mut places.waiting)) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SendError, mailbox};
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    impl Count {
        fn poll<F: Future>(self: &Arc<Self>, future: Pin<&mut F>) -> Poll<F::Output> {
            future.poll(&mut Context::from_waker(&Waker::from(self.clone())))
        }
        fn wakes(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn a_woken_sender_that_goes_away_passes_its_wake_on() {
        let (sender, mut receiver) = mailbox(1);
        sender.try_send(0).unwrap();
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut a = Box::pin(sender.send(1));
        let mut b = Box::pin(sender.send(2));
        assert!(first.poll(a.as_mut()).is_pending());
        assert!(second.poll(b.as_mut()).is_pending());
        assert_eq!(receiver.try_recv(), Some(0));
        assert_eq!((first.wakes(), second.wakes()), (1, 0));
        drop(a);
        assert_eq!(second.wakes(), 1, "the room is the next one's");
        assert_eq!(second.poll(b.as_mut()), Poll::Ready(Ok(())));
        assert_eq!(receiver.try_recv(), Some(2));
    }

    #[test]
    fn a_sender_that_goes_away_unwoken_is_forgotten() {
        let (sender, mut receiver) = mailbox(1);
        sender.try_send(0).unwrap();
        let count = Arc::new(Count::default());
        for i in 0..1000 {
            let mut send = Box::pin(sender.send(i));
            assert!(count.poll(send.as_mut()).is_pending());
            assert!(count.poll(send.as_mut()).is_pending());
        }
        assert_eq!(sender.0.line.with(|places| places.waiting.len()), 0);
        let mut last = Box::pin(sender.send(7));
        assert!(count.poll(last.as_mut()).is_pending());
        assert_eq!(receiver.try_recv(), Some(0));
        assert_eq!(count.wakes(), 1);
        assert_eq!(count.poll(last.as_mut()), Poll::Ready(Ok(())));
    }

    #[test]
    fn one_overtaken_after_its_wake_is_first_again() {
        let (sender, mut receiver) = mailbox(1);
        sender.try_send(0).unwrap();
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut a = Box::pin(sender.send(1));
        let mut b = Box::pin(sender.send(2));
        assert!(first.poll(a.as_mut()).is_pending());
        assert!(second.poll(b.as_mut()).is_pending());
        assert_eq!(receiver.try_recv(), Some(0));
        sender.try_send(9).unwrap(); // Slips in before the woken one runs.
        assert!(first.poll(a.as_mut()).is_pending());
        assert_eq!(receiver.try_recv(), Some(9));
        assert_eq!((first.wakes(), second.wakes()), (2, 0));
        assert_eq!(first.poll(a.as_mut()), Poll::Ready(Ok(())));
        assert_eq!(receiver.try_recv(), Some(1));
        assert_eq!(second.wakes(), 1);
    }

    #[test]
    fn both_ends_hear_of_the_others_going() {
        let (sender, mut receiver) = mailbox(1);
        let count = Arc::new(Count::default());
        sender.clone().try_send(1).unwrap();
        drop(sender.clone());
        assert_eq!(count.poll(std::pin::pin!(receiver.recv())), Poll::Ready(Some(1)));
        assert!(count.poll(std::pin::pin!(receiver.recv())).is_pending());
        drop(sender);
        assert_eq!(count.wakes(), 1);
        assert_eq!(count.poll(std::pin::pin!(receiver.recv())), Poll::Ready(None));

        let (sender, receiver) = mailbox(1);
        let message = Arc::new(());
        sender.try_send(message.clone()).unwrap();
        let mut send = Box::pin(sender.send(message.clone()));
        assert!(count.poll(send.as_mut()).is_pending());
        drop(receiver);
        assert_eq!(count.wakes(), 2);
        assert!(matches!(count.poll(send.as_mut()), Poll::Ready(Err(_))));
        drop(send);
        assert_eq!(Arc::strong_count(&message), 1, "what nobody took is dropped");
        assert!(matches!(sender.try_send(message), Err(SendError::Closed(_))));
    }
}
