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
    /// Units of one GET that are being read, or wait for the HTTP thread.
    pub prefetch: usize,
    /// Share of the arena that PUTs may hold, in percent.
    pub put_share: u64,
    /// Share of the arena that GETs may hold, in percent.
    pub get_share: u64,
    /// For one answer of the catalogue, retries and search for the leader included.
    pub cas_deadline: Duration,
    /// For one unit to become durable, retries included.
    pub write_deadline: Duration,
    /// For one unit to be read from one target. Then it is decoded from the others.
    pub read_deadline: Duration,
    /// How long a call waits for its share of the arena.
    pub credit_deadline: Duration,
    /// First pause between two attempts; it doubles up to `retry_max`.
    pub retry_min: Duration,
    /// Longest pause between two attempts.
    pub retry_max: Duration,
    /// How long a target that did not answer is taken for down.
    pub down_for: Duration,
    /// Between two heartbeats of the session.
    pub heartbeat: Duration,
    /// Between two looks at the pool and its targets.
    pub pool_refresh: Duration,
    /// Age at which a GET is cut: the collector waits for the oldest one.
    pub get_age: Duration,
    /// Fids that wait to be reported dead. Beyond it new PUTs are refused.
    pub dead_queued: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            mailbox: 1024,
            calls: 4096,
            groups_in_flight: 2,
            units_queued: 1,
            prefetch: 2,
            put_share: 50,
            get_share: 25,
            cas_deadline: Duration::from_secs(10),
            write_deadline: Duration::from_secs(30),
            read_deadline: Duration::from_secs(5),
            credit_deadline: Duration::from_secs(30),
            retry_min: Duration::from_millis(5),
            retry_max: Duration::from_millis(500),
            down_for: Duration::from_secs(1),
            heartbeat: Duration::from_secs(1),
            pool_refresh: Duration::from_secs(1),
            get_age: Duration::from_secs(3600),
            dead_queued: 65_536,
        }
    }
}

impl Limits {
    /// For tests: everything is reached soon.
    pub fn tiny() -> Limits {
        Limits { mailbox: 4, calls: 16, dead_queued: 64, ..Limits::default() }
    }
}
