//! Remote calls: frames, authentication, incarnations and epochs, and the messages of the two services.
//!
//! A [`Peer`] calls one remote process; a [`Server`] hands each request to its [`Service`] as a
//! [`Call`]. A call may lend memory: the server pulls a write's payload out of it and pushes a read's into it.

mod auth;
mod call;
mod channel;
mod error;
mod frame;
mod limits;
mod link;
mod peer;
pub mod proto;
mod secret;
mod server;

pub use auth::{Auth, Identity};
pub use call::Call;
pub use error::{BulkError, CallError, Malformed, Refusal};
pub use limits::{PeerLimits, ServerLimits};
pub use peer::{Answer, Lend, Peer, PeerCounters, PeerState, PeerStatus};
pub use secret::{ClusterSecret, SecretError};
pub use server::{Server, ServerCounters, Service, serve};

/// A request of a service: its number on the wire, and what answers it.
pub trait Request: serde::Serialize + serde::de::DeserializeOwned + 'static {
    /// Number on the wire; never used again for anything else.
    const OPCODE: u16;
    /// The answer.
    type Reply: serde::Serialize + serde::de::DeserializeOwned + 'static;
    /// The refusal.
    type Error: std::error::Error + serde::Serialize + serde::de::DeserializeOwned + 'static;
}
