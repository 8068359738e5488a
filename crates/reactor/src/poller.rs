//! What a reactor polls each turn, and how it sleeps without missing anything.

use std::os::fd::RawFd;

/// A source of completions: a device queue, a fabric, a bridge to other threads.
///
/// The reactor holds pollers weakly: one that is dropped is forgotten.
pub trait Poller {
    /// Handles what has arrived, submits what waits. True when anything was done.
    fn poll(&self) -> bool;

    /// Arms the wake-up before the reactor sleeps. Called only after a `poll` that did nothing; what
    /// arrives from here on must make the descriptor readable, and what arrived between must be answered
    /// with [`Park::Busy`].
    fn arm(&self) -> Park;

    /// Disarms after the sleep.
    fn disarm(&self) {}
}

/// Whether the reactor may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Park {
    /// Something is there already: poll again.
    Busy,
    /// Sleep until this descriptor is readable.
    Fd(RawFd),
    /// Nothing can arrive but through wakers and timers.
    Idle,
}
