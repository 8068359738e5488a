//! The reactor's clock: the system's, or a virtual one that only the simulator moves.

#![expect(clippy::disallowed_methods, reason = "this is the home of time: all others ask Ctx")]

use cobalt_base::{Nanos, UnixMillis};
use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(crate) enum Clock {
    Real { start: Instant },
    Virtual { now: Cell<Nanos> },
}

/// Virtual time starts at 2026-01-01T00:00:00Z on the wall clock.
const VIRTUAL_EPOCH_MS: u64 = 1_767_225_600_000;

impl Clock {
    pub(crate) fn real() -> Clock {
        Clock::Real { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Nanos {
        match self {
            Clock::Real { start } => Nanos(0) + start.elapsed(),
            Clock::Virtual { now } => now.get(),
        }
    }

    pub(crate) fn unix_time(&self) -> UnixMillis {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        match self {
            Clock::Real { .. } => UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, ms)),
            Clock::Virtual { now } => UnixMillis(VIRTUAL_EPOCH_MS + now.get().0 / 1_000_000),
        }
    }
}
