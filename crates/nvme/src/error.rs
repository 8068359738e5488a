//! Why a controller cannot be used.

use crate::spec::Status;
use std::io;

/// Why a controller does not come up, or a namespace is refused.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// Reads of its registers say that it is not there.
    #[error("{controller}: the controller does not answer (VS {vs:#x}): it was removed, or its power is off")]
    Gone { controller: String, vs: u32 },
    /// It cannot do what the driver needs.
    #[error("{controller}: {what}")]
    Unfit { controller: String, what: String },
    /// CSTS.RDY did not follow CC.EN in time.
    #[error("{controller}: not {wanted} {seconds:.1} s after it was told to be (CSTS {csts:#x})")]
    NotReady { controller: String, wanted: &'static str, seconds: f64, csts: u32 },
    /// CC.EN was cleared before it was ready.
    #[error(
        "{controller}: it was disabled while it was brought up: somebody else resets it, or its power failed"
    )]
    Disabled { controller: String },
    /// An admin command failed.
    #[error("{controller}: {command} failed: {status}")]
    Command { controller: String, command: &'static str, status: Status },
    /// An admin command was not answered.
    #[error("{controller}: {command} was not answered within {seconds:.1} s")]
    TimedOut { controller: String, command: &'static str, seconds: f64 },
    /// A log page that says what cannot be.
    #[error("{controller}: its log page of {page} is malformed: {why}")]
    Malformed { controller: String, page: &'static str, why: String },
    /// The system refused.
    #[error("{controller}: {what}: {source}")]
    System { controller: String, what: &'static str, source: io::Error },
    /// After a reset it is another one.
    #[error("{controller}: after a reset it is not what it was: {what}")]
    Changed { controller: String, what: String },
    /// There is no such namespace.
    #[error("{controller} has no namespace {nsid}; it has {there}")]
    NoNamespace { controller: String, nsid: u32, there: String },
    /// A namespace that is of no use here.
    #[error("{controller}: namespace {nsid} {why}")]
    Namespace { controller: String, nsid: u32, why: String },
}
