//! The client of the cluster: it finds objects in the catalogue, splits bodies into units, gives them
//! parity, writes them to the storage processes and reads them back, decoding what is hurt.
//!
//! [`Client`] runs on a reactor; [`Handle`] is what other threads hold of it. They meet in bounded
//! mailboxes that carry whole units. Reading order: the write path (`layout`, `put`), publishing (`cas_client`,
//! `session`, `dead`), then reading (`get`).

mod handle;
mod stream;

mod bridge;
mod client;

mod layout;
mod put;
mod write;

mod cas;
mod dead;
mod session;

mod get;
mod read;

mod config;
mod error;
mod limits;
mod pool;
mod status;

pub use client::{Client, ClientCounters};
pub use config::{ClientConfig, LayoutConfig, PeerConfig};
pub use error::ClientError;
pub use handle::Handle;
pub use limits::Limits;
pub use status::{ClusterStatus, ProcessStatus, TargetStatus};
pub use stream::{GetStream, OpenObject, PutStream, StoredBody};
