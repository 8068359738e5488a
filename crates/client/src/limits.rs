//! The client's limits, all in one place (I8).

use std::time::Duration;

/// Limits of a client. [`Limits::default`] is for a server, [`Limits::tiny`] for tests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls that wait in the mailbox between other threads and the reactor.
    pub mailbox: usize,
    /// Calls under way at one time; more wait in the mailbox.
    pub calls: u64,
    /// Parity groups of one PUT that are being written at one time.
    pub groups_in_flight: u64,
    /// Units of one PUT that wait between the HTTP thread and the reactor.
    pub units_queued: usize,
    /// Objects that are open at one time; beyond it: busy.
    pub opens: usize,
    /// Share of the arena that PUTs may hold, in percent.
    pub put_share: u64,
    /// Share of the arena that GETs may hold, in percent. Each takes three units: one with the HTTP thread, one that
    /// waits for it, one that is being read.
    pub get_share: u64,
    /// Share of the arena that small PUTs may hold, in percent, and as much for small GETs: they do not wait behind large
    /// ones whose clients are slow. Small is what 16 of fit in it.
    pub small_share: u64,
    /// Share of the arena that units under reconstruction may hold, in percent.
    pub decode_share: u64,
    /// For one answer of the catalogue, retries and search for the leader included.
    pub cas_deadline: Duration,
    /// For one attempt at the catalogue, before the next of its processes is asked.
    pub cas_try: Duration,
    /// For one unit to become durable, retries included.
    pub write_deadline: Duration,
    /// For one attempt at writing a unit.
    pub write_try: Duration,
    /// For one unit to be read from one target. Then it is decoded from the others.
    pub read_deadline: Duration,
    /// For one look at the targets of a process.
    pub probe_deadline: Duration,
    /// How long a call waits for its share of the arena.
    pub credit_deadline: Duration,
    /// First pause between two attempts; it doubles up to `retry_max`.
    pub retry_min: Duration,
    /// Longest pause between two attempts.
    pub retry_max: Duration,
    /// How long a target that did not answer is taken for down.
    pub down_for: Duration,
    /// The same, at most, for one that stays silent again and again.
    pub down_max: Duration,
    /// Between two heartbeats of the session.
    pub heartbeat: Duration,
    /// Between two looks at the pool and its targets.
    pub pool_refresh: Duration,
    /// Age at which a GET is cut: the collector waits for the oldest one.
    pub get_age: Duration,
    /// Bodies that are being written, are unpublished, or wait to be reported dead. Beyond it new PUTs are refused.
    pub bodies: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            mailbox: 1024,
            calls: 4096,
            groups_in_flight: 2,
            units_queued: 1,
            opens: 4096,
            put_share: 50,
            get_share: 25,
            small_share: 3,
            decode_share: 15,
            cas_deadline: Duration::from_secs(10),
            cas_try: Duration::from_secs(3),
            write_deadline: Duration::from_secs(10),
            write_try: Duration::from_secs(5),
            read_deadline: Duration::from_secs(3),
            probe_deadline: Duration::from_secs(1),
            credit_deadline: Duration::from_secs(10),
            retry_min: Duration::from_millis(5),
            retry_max: Duration::from_millis(500),
            down_for: Duration::from_secs(1),
            down_max: Duration::from_secs(16),
            heartbeat: Duration::from_secs(1),
            pool_refresh: Duration::from_secs(1),
            get_age: Duration::from_secs(3600),
            bodies: 16_384,
        }
    }
}

impl Limits {
    /// For tests: everything is reached soon.
    pub fn tiny() -> Limits {
        Limits { mailbox: 4, calls: 16, opens: 8, bodies: 16, ..Limits::default() }
    }
}

/// Units that a GET holds: one with the HTTP thread, one that waits for it, one that is being read.
pub(crate) const GET_UNITS: u64 = 3;

/// Bodies of the largest size that counts as small that fit their share of the arena.
pub(crate) const SMALL_BODIES: u64 = 16;
