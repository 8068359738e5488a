//! The trait that transports implement. One conformance suite (tests/conformance) holds them all.

use cobalt_dma::Slice;
use futures::future::LocalBoxFuture;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;

/// Largest message, in bytes: headers and small bodies. Payload goes by bulk.
pub const MESSAGE_MAX: usize = 64 << 10;

/// Largest message of a peer that has not yet proved who it is.
pub const STRANGER_MESSAGE_MAX: usize = 512;

/// Where a process listens, as the configuration names it: `tcp://127.0.0.1:7000`, `local:p0`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PeerAddr {
    /// A reactor of this process, by name.
    Local(String),
    /// TCP. Loopback only, until TLS exists.
    Tcp(SocketAddr),
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAddr::Local(name) => write!(f, "local:{name}"),
            PeerAddr::Tcp(addr) => write!(f, "tcp://{addr}"),
        }
    }
}

/// Why a call on a connection failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FabricError {
    /// The connection is closed, by the peer or by us; nothing more will arrive.
    #[error("the connection to {peer} is closed: {reason}")]
    Closed { peer: String, reason: String },
    /// Nobody listens there, or not yet.
    #[error("cannot connect to {peer}: {reason}")]
    Unreachable { peer: String, reason: String },
    /// The peer broke the protocol: absurd lengths, unknown keys, more messages than it had credits for. The connection was dropped.
    #[error("{peer} broke the protocol: {reason}")]
    Protocol { peer: String, reason: String },
    /// The peer does not lend these bytes, or no longer. The connection is as good as before.
    #[error("{peer} does not lend these bytes: {reason}")]
    NotLent { peer: String, reason: String },
    /// A message above [`MESSAGE_MAX`], or a range outside of a bulk descriptor: our mistake.
    #[error("invalid call: {0}")]
    Invalid(String),
}

/// Names memory that the peer lent for one request. Travels inside messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct BulkDesc {
    /// Chosen by the lender, never used twice on a connection.
    pub key: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Exact counts of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnCounters {
    pub sent: u64,
    pub received: u64,
    pub pulls: u64,
    pub pull_bytes: u64,
    pub pushes: u64,
    pub push_bytes: u64,
    /// Payload bytes that this end copied in user space.
    pub copied_bytes: u64,
}

/// Memory lent to the peer. Ending it, by `take` or by dropping, makes the key void before the memory is
/// used again (I7).
pub trait Exposure {
    /// What to send to the peer.
    fn desc(&self) -> BulkDesc;
    /// Ends a loan for pushing and takes what arrived, in order and without gaps from the start. A loan for pulling yields nothing.
    fn take(self: Box<Self>) -> Vec<Slice>;
}

/// One connection. Both ends have the same calls.
pub trait Conn {
    /// Who is at the other end, for logs and `status`.
    fn peer(&self) -> String;
    /// The transport that really runs: "local", "tcp".
    fn transport(&self) -> &'static str;
    /// The peer has proved who it is: lifts the limits on strangers. Until then it may send a few messages of at most
    /// [`STRANGER_MESSAGE_MAX`] and no bulk.
    fn admit(&self);
    /// Sends a message of at most [`MESSAGE_MAX`] bytes; waits for a credit of the peer.
    fn send(&self, message: Vec<u8>) -> LocalBoxFuture<'_, Result<(), FabricError>>;
    /// The next message. One task at a time.
    fn recv(&self) -> LocalBoxFuture<'_, Result<Vec<u8>, FabricError>>;
    /// Lends bytes for the peer to pull.
    fn lend(&self, data: Vec<Slice>) -> Result<Box<dyn Exposure>, FabricError>;
    /// Lends room for `len` bytes that the peer may push; waits for memory where the transport needs it up front.
    fn lend_room(&self, len: usize) -> LocalBoxFuture<'_, Result<Box<dyn Exposure>, FabricError>>;
    /// Pulls `len` bytes at `offset` of what the peer lent. Slices are at most `cobalt_dma::BUF_MAX` long; all but the last
    /// are multiples of 4 KiB.
    fn get(
        &self,
        desc: BulkDesc,
        offset: u64,
        len: u64,
    ) -> LocalBoxFuture<'_, Result<Vec<Slice>, FabricError>>;
    /// Pushes `data` into the room that the peer lent, at `offset`. Complete when the peer's memory holds it.
    fn put(
        &self,
        desc: BulkDesc,
        offset: u64,
        data: Vec<Slice>,
    ) -> LocalBoxFuture<'_, Result<(), FabricError>>;
    /// Closes: everything pending fails, lent memory is void.
    fn close(&self);
    /// The counters now.
    fn counters(&self) -> ConnCounters;
}

/// Accepts connections.
pub trait Listener {
    /// Where it listens; with the port that the system chose.
    fn addr(&self) -> PeerAddr;
    /// The next connection.
    fn accept(&self) -> LocalBoxFuture<'_, Result<Rc<dyn Conn>, FabricError>>;
}

/// Opens connections and listeners of one kind.
pub trait Transport {
    /// Connects; the caller sets the deadline.
    fn connect(&self, addr: PeerAddr) -> LocalBoxFuture<'_, Result<Rc<dyn Conn>, FabricError>>;
    /// Listens.
    fn listen(&self, addr: PeerAddr) -> LocalBoxFuture<'_, Result<Box<dyn Listener>, FabricError>>;
}
