//! Bounded mailboxes into a reactor, from any thread. Full is a normal answer (I8).

use crossbeam_queue::ArrayQueue;
use futures::task::AtomicWaker;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

struct Box_<T> {
    queue: ArrayQueue<T>,
    receiver: AtomicWaker,
    /// Those who wait for room. Each wake takes one; a spurious wake looks again.
    room: crossbeam_queue::SegQueue<std::task::Waker>,
    senders: AtomicUsize,
    closed: std::sync::atomic::AtomicBool,
}

/// Makes a mailbox for up to `capacity` messages.
pub fn mailbox<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let inner = Arc::new(Box_ {
        queue: ArrayQueue::new(capacity),
        receiver: AtomicWaker::new(),
        room: crossbeam_queue::SegQueue::new(),
        senders: AtomicUsize::new(1),
        closed: std::sync::atomic::AtomicBool::new(false),
    });
    (Sender(inner.clone()), Receiver(inner))
}

/// Puts messages in, from any thread.
pub struct Sender<T>(Arc<Box_<T>>);
/// Takes messages out.
pub struct Receiver<T>(Arc<Box_<T>>);

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
        if self.0.closed.load(Ordering::Acquire) {
            return Err(SendError::Closed(message));
        }
        self.0.queue.push(message).map_err(SendError::Full)?;
        self.0.receiver.wake();
        Ok(())
    }

    /// Waits for room and puts a message in. Runs on any executor.
    ///
    /// # Errors
    /// The message, when the receiver is gone.
    pub async fn send(&self, message: T) -> Result<(), T> {
        let mut message = Some(message);
        poll_fn(move |cx| {
            for registered in [false, true] {
                let Some(value) = message.take() else { return Poll::Ready(Ok(())) };
                match self.try_send(value) {
                    Ok(()) => return Poll::Ready(Ok(())),
                    Err(SendError::Closed(value)) => return Poll::Ready(Err(value)),
                    Err(SendError::Full(value)) => message = Some(value),
                }
                if !registered {
                    self.0.room.push(cx.waker().clone());
                }
            }
            Poll::Pending
        })
        .await
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
        if let Some(waker) = self.0.room.pop() {
            waker.wake();
        }
        Some(message)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        while self.0.queue.pop().is_some() {}
        while let Some(waker) = self.0.room.pop() {
            waker.wake();
        }
    }
}
