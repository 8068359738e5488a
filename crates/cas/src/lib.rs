//! The catalogue service: names, sessions, the dead list and its collector.
//!
//! Everything it knows is rows of the store's catalogues (`schema`, `row`). A change is a function over a draft of one
//! commit (`draft`, `command`, one file per noun), which judges its conditions when the commit takes its place in the
//! order (I9), and keeps its answer (I9b). Questions (`query`, `list`) read what is applied. `server` puts both behind the
//! wire, with the position that the collector's rule needs (I9a). `collector` and `sweep` take away what nothing names.

pub mod limits;

mod draft;
mod row;
mod schema;
mod table;

mod bucket;
mod command;
mod key;
mod object;
mod pool;
mod session;
mod upload;

mod list;
mod query;

mod leader;
mod server;

mod collector;
mod remote;
mod sweep;
mod target;

pub mod secrets;
pub mod show;

/// The catalogue of credentials: its values are hidden from people.
pub use schema::CREDENTIALS;

pub use leader::{Leadership, SoleReplica};
pub use remote::RemoteTargets;
pub use server::{Cas, CasService};
pub use target::{TargetError, Targets};
