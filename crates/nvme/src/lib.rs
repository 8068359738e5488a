//! NVMe in userspace: a controller that this process owns, polled by the reactor that uses it. No system call and no
//! interrupt stands between an operation and its completion.
//!
//! `spec` has the layouts, `function` what lies under the driver (VFIO; the software controller in proofs), `qpair` the rings,
//! `controller` the life from reset to shutdown, `namespace` the block device. SPDK's driver is the reference for behaviour.
//!
//! **I7 here**: memory goes back to its owner when the command that used it was answered by its own completion, or when it is
//! proven that the device reaches no memory any more ([`DmaStopped`]). Otherwise it is never used again.

mod admin;
mod controller;
mod error;
mod function;
pub mod limits;
mod memory;
mod namespace;
mod pointer;
mod qpair;
mod request;
#[cfg(feature = "soft")]
pub mod soft;
pub mod spec;
pub mod vfio;

pub use controller::{Controller, Counters, DmaStopped, Fault, Identity, Life};
pub use error::NvmeError;
pub use function::{Function, Iova};
pub use limits::Limits;
pub use namespace::{Namespace, NvmeBdev};
pub use qpair::QueueCounters;
