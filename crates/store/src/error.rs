//! What can go wrong, one enum per operation. The messages say what, to what, and what to do.

use crate::tree::MetaError;
use cobalt_base::{Corrupt, Fid, SessionId};
use uuid::Uuid;

/// Why a call on an open target failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The data region has too few free blocks. Nothing was moved.
    #[error("no room for {bytes} bytes: delete objects or add targets")]
    NoSpace { bytes: u64 },
    /// The host's file system under a sparse target is full. The target itself is well.
    #[error("the file system under the target is full: free space on the host")]
    HostFull,
    /// The meta region has no room for another change but deletes.
    #[error("the meta region is full: delete objects, or format the target with a larger one")]
    MetaFull,
    /// The session was fenced; it must open a new one.
    #[error("session {0} is fenced: open a new one")]
    Fenced(SessionId),
    /// The cob was deleted, and a late write of it is refused.
    #[error("cob {0} was deleted")]
    Deleted(Fid),
    /// The cob belongs to another incarnation of the catalogue.
    #[error("the cob is of catalogue incarnation {have}, the request of {want}")]
    Incarnation { have: u64, want: u64 },
    /// No such cob, or no bytes there.
    #[error("cob {fid} has no bytes at {offset}")]
    Missing { fid: Fid, offset: u64 },
    /// The bytes on the device are not those that were written.
    #[error("cob {fid} is damaged at {offset}: {why}")]
    Corrupt { fid: Fid, offset: u64, why: String },
    /// A metadata structure is damaged.
    #[error(transparent)]
    Damaged(#[from] Corrupt),
    /// Too many requests wait already: back-pressure.
    #[error("the target is busy: try again")]
    Busy,
    /// The target has failed and takes no more requests.
    #[error("the target has failed: {why}")]
    Failed { why: String },
    /// The target was closed.
    #[error("the target is closed")]
    Closed,
    /// The target was opened for reading only.
    #[error("the target is open for reading only")]
    ReadOnly,
    /// The request breaks a rule of the interface.
    #[error("invalid request: {0}")]
    Invalid(String),
}

/// Why a target could not be opened, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Nothing there looks like a target.
    #[error("no Cobalt target is here: {why}. Check the path; `cobalt format` lays a new device out")]
    NotFormatted { why: String },
    /// Formatted for another cluster.
    #[error("the target belongs to cluster {found}, not to {expected}: check the device path")]
    ForeignCluster { expected: Uuid, found: Uuid },
    /// Another target than the one that belongs here.
    #[error("the device holds target {found}, and {expected} belongs here: check the device path")]
    ForeignTarget { expected: Uuid, found: Uuid },
    /// Written by a newer version.
    #[error("the target has format {found}, this version reads up to {known}: upgrade")]
    NewerFormat { found: u32, known: u32 },
    /// Meta and data regions of different targets, or of other sizes than formatted.
    #[error("the regions do not fit the target: {why}")]
    WrongRegions { why: String },
    /// Another process holds it.
    #[error("locked: {why}")]
    Locked { why: String },
    /// Durable metadata is gone or damaged. Opening would lose acknowledged writes.
    #[error(
        "damaged: {what} at byte {address:#x}: expected {expected}, found {found}. \
         Do not format: other targets hold the redundancy; replace this target and repair"
    )]
    Damaged { what: String, address: u64, expected: String, found: String },
    /// The device reported an error.
    #[error("cannot read or write the device: {why}. Check the device, then start again")]
    Device { why: String },
    /// Memory for the target is lacking.
    #[error("limits do not allow it: {why}")]
    Limits { why: String },
}

/// Why a target could not be formatted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The device holds something.
    #[error("the device holds {found}: choose another, or force the format to destroy it")]
    InUse { found: String },
    /// The regions are too small.
    #[error("the {region} region of {len} bytes is too small: at least {min} bytes")]
    TooSmall { region: &'static str, len: u64, min: u64 },
    /// An option makes no sense.
    #[error("invalid option: {0}")]
    Invalid(String),
    /// The device reported an error.
    #[error("cannot read or write the device: {why}")]
    Device { why: String },
}

impl From<cobalt_bdev::IoError> for FormatError {
    fn from(e: cobalt_bdev::IoError) -> FormatError {
        FormatError::Device { why: e.to_string() }
    }
}

impl From<cobalt_bdev::IoError> for OpenError {
    fn from(e: cobalt_bdev::IoError) -> OpenError {
        OpenError::Device { why: e.to_string() }
    }
}

impl From<Corrupt> for OpenError {
    fn from(c: Corrupt) -> OpenError {
        OpenError::Damaged {
            what: c.what.into(),
            address: c.address,
            expected: "what its referrer says".into(),
            found: c.why,
        }
    }
}

impl From<StoreError> for OpenError {
    fn from(e: StoreError) -> OpenError {
        match e {
            StoreError::Damaged(corrupt) => corrupt.into(),
            other => OpenError::Device { why: other.to_string() },
        }
    }
}

impl From<MetaError> for StoreError {
    fn from(e: MetaError) -> StoreError {
        match e {
            MetaError::Io { what, source } => StoreError::Failed { why: format!("{what} failed: {source}") },
            MetaError::Corrupt(corrupt) => StoreError::Damaged(corrupt),
            MetaError::Full => StoreError::MetaFull,
        }
    }
}

impl From<MetaError> for OpenError {
    fn from(e: MetaError) -> OpenError {
        StoreError::from(e).into()
    }
}

impl From<MetaError> for FormatError {
    fn from(e: MetaError) -> FormatError {
        FormatError::Device { why: e.to_string() }
    }
}
