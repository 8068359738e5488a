//! Limits of both ends (I8), with tiny sets for tests.

use std::time::Duration;

/// Limits and times of a [`crate::Peer`].
#[derive(Clone, Copy, Debug)]
pub struct PeerLimits {
    /// Calls in flight; more wait their turn within their deadline.
    pub calls_max: u64,
    /// To connect and authenticate.
    pub connect_timeout: Duration,
    /// Pause after the first failed connection attempt; doubles up to `backoff_max`.
    pub backoff_min: Duration,
    /// Longest pause between connection attempts.
    pub backoff_max: Duration,
    /// Silence after which a ping is sent.
    pub ping_after: Duration,
    /// Silence after which the connection counts as dead.
    pub dead_after: Duration,
}

impl Default for PeerLimits {
    fn default() -> PeerLimits {
        PeerLimits {
            calls_max: 128,
            connect_timeout: Duration::from_secs(2),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_secs(1),
            ping_after: Duration::from_secs(1),
            dead_after: Duration::from_secs(4),
        }
    }
}

impl PeerLimits {
    /// Limits that tests reach.
    pub fn tiny() -> PeerLimits {
        PeerLimits { calls_max: 2, ..PeerLimits::default() }
    }
}

/// Limits and times of a [`crate::Server`].
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Requests that run at one time, of all peers; beyond: [`crate::Refusal::Busy`].
    pub running_max: usize,
    /// Requests that run at one time for one connection; beyond: busy.
    pub running_per_peer_max: usize,
    /// Authenticated connections.
    pub connections_max: usize,
    /// Connections that have not yet proved who they are.
    pub strangers_max: usize,
    /// Time for a connection to prove who it is.
    pub handshake_timeout: Duration,
    /// Peer names that are remembered with their newest incarnation and epoch.
    pub names_max: usize,
    /// Channels (one per `Peer` object) that are remembered per name.
    pub channels_per_name_max: usize,
    /// Answers that are remembered per channel.
    pub answers_max: usize,
    /// Bytes of answers that are remembered per channel.
    pub answer_bytes_max: usize,
    /// Longest time that a request may run for its pull and push, whatever its caller asks.
    pub deadline_max: Duration,
    /// Silence after which a connection is dropped; peers ping more often.
    pub idle_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits {
            running_max: 1024,
            running_per_peer_max: 256,
            connections_max: 1024,
            strangers_max: 64,
            handshake_timeout: Duration::from_secs(2),
            names_max: 256,
            channels_per_name_max: 16,
            answers_max: 512,
            answer_bytes_max: 256 << 10,
            deadline_max: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(15),
        }
    }
}

impl ServerLimits {
    /// Limits that tests reach.
    pub fn tiny() -> ServerLimits {
        ServerLimits {
            running_max: 3,
            running_per_peer_max: 2,
            connections_max: 4,
            strangers_max: 2,
            names_max: 2,
            channels_per_name_max: 2,
            answers_max: 2,
            answer_bytes_max: 4096,
            ..ServerLimits::default()
        }
    }
}
