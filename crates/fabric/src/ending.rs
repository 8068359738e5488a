//! How a connection ends: once, with a reason that everything pending gets.

use crate::FabricError;
use slab::Slab;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};

#[derive(Default)]
pub(crate) struct Ending {
    reason: RefCell<Option<FabricError>>,
    waiting: RefCell<Slab<Waker>>,
}

impl Ending {
    /// Ends it; false when it had ended before. The first reason stays.
    pub(crate) fn end(&self, reason: FabricError) -> bool {
        if self.reason.borrow().is_some() {
            return false;
        }
        *self.reason.borrow_mut() = Some(reason);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for (_, waker) in waiting {
            waker.wake();
        }
        true
    }

    pub(crate) fn reason(&self) -> Option<FabricError> {
        self.reason.borrow().clone()
    }

    pub(crate) fn check(&self) -> Result<(), FabricError> {
        self.reason().map_or(Ok(()), Err)
    }

    /// `future`'s output, or the reason when the connection ends first.
    pub(crate) async fn guard<F: Future>(&self, future: F) -> Result<F::Output, FabricError> {
        let mut future = pin!(future);
        let mut place = Place { ending: self, key: None };
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            if let Some(reason) = self.reason() {
                return Poll::Ready(Err(reason));
            }
            place.register(cx.waker());
            Poll::Pending
        })
        .await
    }
}

/// A place among those who wait, given up when dropped.
struct Place<'a> {
    ending: &'a Ending,
    key: Option<usize>,
}

impl Place<'_> {
    fn register(&mut self, waker: &Waker) {
        let mut waiting = self.ending.waiting.borrow_mut();
        match self.key.and_then(|key| waiting.get_mut(key)) {
            Some(place) => place.clone_from(waker),
            None => self.key = Some(waiting.insert(waker.clone())),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            // After the end the list is empty: everybody was woken.
            self.ending.waiting.borrow_mut().try_remove(key);
        }
    }
}
