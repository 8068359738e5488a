//! A handle to one remote process.

use crate::{Auth, CallError, PeerLimits, Request};
use cobalt_base::Nanos;
use cobalt_dma::Slice;
use cobalt_fabric::{PeerAddr, Transport};
use cobalt_reactor::Ctx;
use std::rc::Rc;

/// Memory that a call lends to the server until it ends.
#[derive(Clone, Debug)]
pub enum Lend {
    /// Nothing.
    None,
    /// Bytes to pull.
    Data(Vec<Slice>),
    /// Room for so many bytes to be pushed.
    Room(usize),
}

/// A reply, and what the server pushed into the lent room, in order from its start.
#[derive(Debug)]
pub struct Answer<T> {
    pub reply: T,
    pub pushed: Vec<Slice>,
}

/// The state of the connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Never asked for.
    Idle,
    Connecting,
    Connected,
    /// Waits before the next attempt.
    BackingOff,
    Closed,
}

/// Exact counts of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Calls begun.
    pub calls: u64,
    /// Calls without a reply of the service.
    pub failures: u64,
    /// Calls whose deadline passed.
    pub deadlines: u64,
    /// Connections made.
    pub connects: u64,
    /// Attempts that failed.
    pub connect_failures: u64,
    /// Replies that nobody waited for any more.
    pub late_replies: u64,
}

/// What `status` shows of a peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    pub name: String,
    pub addr: PeerAddr,
    pub state: PeerState,
    /// "local" or "tcp" while connected.
    pub transport: Option<&'static str>,
    /// The peer's incarnation, once known.
    pub incarnation: Option<u64>,
    pub last_error: Option<String>,
    pub calls_in_flight: u64,
    pub counters: PeerCounters,
}

/// A handle to one remote process. Clones share it; the last one closes the connection.
#[derive(Clone)]
pub struct Peer {
    name: Rc<str>,
}

impl Peer {
    /// A peer that is connected to at the first call, and kept connected from then on.
    pub fn new(
        _ctx: &Ctx,
        _transport: Rc<dyn Transport>,
        _auth: Auth,
        name: &str,
        _addr: PeerAddr,
        _limits: PeerLimits,
    ) -> Peer {
        Peer { name: name.into() }
    }

    /// Starts connecting in the background, and keeps at it. Does nothing when that runs already.
    pub fn connect(&self) {}

    /// Calls the service. The loan ends before this returns, or is dropped.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call<R: Request>(
        &self,
        _request: &R,
        _lend: Lend,
        _deadline: Nanos,
    ) -> Result<Answer<R::Reply>, CallError<R::Error>> {
        Err(CallError::Unreachable { peer: self.name.to_string(), why: "not connected".into() })
    }

    /// The peer's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether calls can be sent now.
    pub fn is_connected(&self) -> bool {
        false
    }

    /// Closes for good; calls under way fail.
    pub fn close(&self) {}
}
