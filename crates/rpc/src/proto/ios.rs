//! Requests to the I/O service of a storage process. The client sends a small request; the server
//! pulls a write's payload out of the client's memory, and pushes a read's into it.

use crate::Request;
use cobalt_base::{Fid, SessionId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Most cobs that one [`Delete`] names, or one [`ListCobs`] returns.
pub const COBS_MAX: usize = 256;
/// Largest unit, in bytes: what one [`Write`] or [`Read`] carries.
pub const UNIT_MAX: u64 = 1 << 20;

/// Writes whole chunks of a cob, which is created when it does not exist. Lends `len` bytes to pull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// The target that must hold it; a process may own several.
    pub target: Uuid,
    /// The cob.
    pub fid: Fid,
    /// Bytes per checksummed chunk; fixed when the cob is created.
    pub chunk_size: u32,
    /// Incarnation of the catalogue that the fid comes from (I9a).
    pub incarnation: u64,
    /// Offset in the cob, in bytes; a multiple of the chunk size.
    pub offset: u64,
    /// Bytes; the last chunk may be short. At most [`UNIT_MAX`].
    pub len: u64,
    /// CRC32C of each chunk's real bytes.
    pub crcs: Vec<u32>,
}

/// Reads part of a cob into lent room. The server pushes only bytes that passed their checksums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    pub target: Uuid,
    pub fid: Fid,
    /// A multiple of the chunk size.
    pub offset: u64,
    /// Whole chunks, but for the cob's short last one.
    pub len: u64,
}

/// The answer to [`Read`], after the bytes were pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadReply {
    /// CRC32C of each chunk pushed: the client checks what arrived.
    pub crcs: Vec<u32>,
    /// Bytes per chunk.
    pub chunk_size: u32,
}

/// Deletes cobs, durably; a later write of one is refused. Cobs that do not exist are deleted all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    pub target: Uuid,
    pub fids: Vec<Fid>,
    pub incarnation: u64,
}

/// Ends every running write of a session and refuses later ones, durably.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    pub target: Uuid,
    pub session: SessionId,
}

/// Lists cobs in fid order, for the collector's sweep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListCobs {
    pub target: Uuid,
    pub from: Fid,
    pub limit: u32,
}

/// One cob of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CobRow {
    pub fid: Fid,
    pub incarnation: u64,
    /// Bytes of data blocks it holds.
    pub allocated: u64,
}

/// Asks for the targets of the process: names, state, space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTargets {}

/// A target as its process sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRow {
    pub target: Uuid,
    pub name: String,
    /// `None` while it serves; why it does not.
    pub failed: Option<String>,
    pub backend: String,
    pub total: u64,
    pub free: u64,
    pub cobs: u64,
    /// Exact counters by name: data writes, flushes, journal writes and so on.
    pub counters: Vec<(String, u64)>,
}

/// Why the I/O service refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum IosError {
    #[error("target {0} is not served by this process")]
    NoTarget(Uuid),
    #[error("target {name} has failed: {why}")]
    TargetFailed { name: String, why: String },
    #[error("target {name} has no room for {bytes} bytes")]
    NoSpace { name: String, bytes: u64 },
    #[error("the file system under target {name} is full")]
    HostFull { name: String },
    #[error("session {0} is fenced: this process must open a new one")]
    Fenced(SessionId),
    #[error("cob {0} was deleted")]
    Deleted(Fid),
    #[error("the catalogue is at incarnation {have}, the request at {want}")]
    Incarnation { have: u64, want: u64 },
    #[error("cob {fid} has no bytes at {offset}")]
    Missing { fid: Fid, offset: u64 },
    #[error("cob {fid} is damaged at {offset}: {why}")]
    Corrupt { fid: Fid, offset: u64, why: String },
    #[error("the payload does not match its checksums at byte {offset}")]
    Checksum { offset: u64 },
    #[error("the payload could not be moved: {0}")]
    Transfer(String),
    #[error("the target is busy")]
    Busy,
    #[error("malformed request: {0}")]
    Malformed(String),
}

macro_rules! requests {
    ($($op:literal $request:ty => $reply:ty;)*) => {
        $(impl Request for $request {
            const OPCODE: u16 = $op;
            type Reply = $reply;
            type Error = IosError;
        })*
    };
}

requests! {
    0x0101 Write => ();
    0x0102 Read => ReadReply;
    0x0103 Delete => ();
    0x0104 Fence => ();
    0x0105 ListCobs => Vec<CobRow>;
    0x0106 ListTargets => Vec<TargetRow>;
}
