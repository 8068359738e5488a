//! An arena: one mapping, cut into buffers under a counted limit. Full is a normal answer, and
//! [`Arena::alloc`] waits its turn.

use crate::buddy::{Buddy, ORDER_MAX};
use crate::buf::Buf;
use crate::map::{Map, Pages};
use crate::{BUF_MAX, PIECE_MIN};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
#[expect(
    clippy::disallowed_types,
    reason = "HTTP threads and reactors share an arena; the lock covers at most ORDER_MAX steps and no call"
)]
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How large an arena is.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// Limit in bytes; rounded up to 4 MiB. Memory is taken from the system as it is first used.
    pub limit: usize,
}

/// Counters of an arena, in bytes and buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaStats {
    /// The limit, in bytes.
    pub limit: usize,
    /// Bytes in buffers now.
    pub in_use: usize,
    /// The most that were in use at one time.
    pub high_water: usize,
    /// Tasks that wait for memory now.
    pub waiting: usize,
    /// Whether pages are locked in memory.
    pub locked: bool,
    /// Whether they are hugepages.
    pub huge: bool,
}

/// A shared arena. Clones are handles to the same memory.
#[derive(Clone)]
pub struct Arena(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) map: Map,
    #[expect(clippy::disallowed_types, reason = "see the import")]
    state: Mutex<State>,
}

struct State {
    buddy: Buddy,
    in_use: usize,
    high_water: usize,
    /// Who waits, first come first served: (ticket, order, waker).
    waiting: VecDeque<(u64, usize, Waker)>,
    ticket: u64,
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Arena").field(&self.stats()).finish()
    }
}

impl Arena {
    /// Maps a new arena of ordinary pages. Memory is taken from the system as it is first used.
    ///
    /// # Errors
    /// What the system said when it refused the mapping.
    pub fn new(config: ArenaConfig) -> io::Result<Arena> {
        Arena::build(config, Pages::Ordinary)
    }

    /// Maps a new arena of 2 MiB hugepages; of ordinary pages, with a warning, where the host has reserved
    /// too few.
    ///
    /// # Errors
    /// What the system said when it refused the mapping.
    pub fn new_on_hugepages(config: ArenaConfig) -> io::Result<Arena> {
        Arena::build(config, Pages::Huge).or_else(|error| {
            tracing::warn!(
                %error,
                bytes = config.limit,
                "no hugepages for the arena: ordinary pages are used. Reserve some (vm.nr_hugepages)"
            );
            Arena::build(config, Pages::Ordinary)
        })
    }

    fn build(config: ArenaConfig, pages: Pages) -> io::Result<Arena> {
        let block = PIECE_MIN << ORDER_MAX;
        let blocks = u32::try_from(config.limit.div_ceil(block).max(1)).map_err(io::Error::other)?;
        let map = Map::new(blocks as usize * block, pages)?;
        if !map.locked {
            tracing::warn!(
                bytes = map.len(),
                "arena memory is not locked: it may be swapped out. Raise the memlock limit (ulimit -l, LimitMEMLOCK=)"
            );
        }
        let state = State {
            buddy: Buddy::new(blocks),
            in_use: 0,
            high_water: 0,
            waiting: VecDeque::new(),
            ticket: 0,
        };
        #[expect(clippy::disallowed_types, reason = "see the import")]
        Ok(Arena(Arc::new(Inner { map, state: Mutex::new(state) })))
    }

    /// A buffer of `len` bytes (at most [`BUF_MAX`]), zeroed on first use only; `None` when the arena is full.
    pub fn try_alloc(&self, len: usize) -> Option<Buf> {
        let order = order_of(len);
        let mut state = self.0.lock();
        if !state.waiting.is_empty() {
            return None; // Those who wait come first.
        }
        state.take(order).map(|page| Buf::new(self.0.clone(), page, order, len))
    }

    /// A buffer of `len` bytes as soon as there is room. Runs on any executor; first come, first served.
    pub fn alloc(&self, len: usize) -> Alloc {
        let _ = order_of(len);
        Alloc { arena: self.clone(), len, ticket: None }
    }

    /// The counters now.
    pub fn stats(&self) -> ArenaStats {
        let state = self.0.lock();
        ArenaStats {
            limit: self.0.map.len(),
            in_use: state.in_use,
            high_water: state.high_water,
            waiting: state.waiting.len(),
            locked: self.0.map.locked,
            huge: self.0.map.pages == Pages::Huge,
        }
    }

    /// Address and length of the whole mapping, for a device or a transport that registers it once.
    pub fn region(&self) -> (*mut u8, usize) {
        (self.0.map.at(0).as_ptr(), self.0.map.len())
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a block back and wakes who may have it.
    pub(crate) fn give(&self, page: u32, order: usize) {
        let mut state = self.lock();
        state.buddy.give(page, order);
        state.in_use -= PIECE_MIN << order;
        let next = state.waiting.front().map(|(_, _, waker)| waker.clone());
        drop(state);
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

impl State {
    fn take(&mut self, order: usize) -> Option<u32> {
        let page = self.buddy.take(order)?;
        self.in_use += PIECE_MIN << order;
        self.high_water = self.high_water.max(self.in_use);
        Some(page)
    }
}

fn order_of(len: usize) -> usize {
    assert!(len <= BUF_MAX, "a buffer of {len} bytes is above BUF_MAX");
    len.div_ceil(PIECE_MIN).max(1).next_power_of_two().trailing_zeros() as usize
}

/// Waits for a buffer. Dropping it gives up the place in the queue.
#[must_use = "futures do nothing unless awaited"]
pub struct Alloc {
    arena: Arena,
    len: usize,
    ticket: Option<u64>,
}

impl Future for Alloc {
    type Output = Buf;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Buf> {
        let order = order_of(self.len);
        let inner = self.arena.0.clone();
        let mut state = inner.lock();
        let first = match self.ticket {
            None => state.waiting.is_empty(),
            Some(ticket) => state.waiting.front().is_some_and(|(t, ..)| *t == ticket),
        };
        if first && let Some(page) = state.take(order) {
            if self.ticket.take().is_some() {
                state.waiting.pop_front();
                if let Some((_, _, waker)) = state.waiting.front() {
                    waker.wake_by_ref();
                }
            }
            return Poll::Ready(Buf::new(inner.clone(), page, order, self.len));
        }
        if let Some(ticket) = self.ticket {
            if let Some(place) = state.waiting.iter_mut().find(|(t, ..)| *t == ticket) {
                place.2.clone_from(cx.waker());
            }
        } else {
            let ticket = state.ticket;
            state.ticket += 1;
            state.waiting.push_back((ticket, order, cx.waker().clone()));
            self.ticket = Some(ticket);
        }
        Poll::Pending
    }
}

impl Drop for Alloc {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut state = self.arena.0.lock();
            state.waiting.retain(|(t, ..)| *t != ticket);
            if let Some((_, _, waker)) = state.waiting.front() {
                waker.wake_by_ref(); // The one behind may fit where this one did not.
            }
        }
    }
}
