//! Messages and bulk between processes. A connection carries bounded messages both ways; bulk is
//! memory that one side lends to the other for one request: the server pulls (`get`) a write's
//! payload out of it, or pushes (`put`) a read's payload into it. The client never pushes payload.
//!
//! `local` joins reactors of one process, `tcp` carries the same calls as framed streams. RDMA
//! (`verbs`) and shared memory (`shm`) come behind the same trait.

mod conn;
mod ending;
pub mod limits;
mod local;
mod pieces;
mod tcp;

pub use conn::{
    BulkDesc, Conn, ConnCounters, Exposure, FabricError, Listener, MESSAGE_MAX, PeerAddr,
    STRANGER_MESSAGE_MAX, Transport,
};
pub use local::{LocalNet, LocalTransport};
pub use tcp::{TcpCounters, TcpTransport};
