//! Every bound of the gateway, with its name and its reason in one place.

use std::time::Duration;

/// Largest object or part of one request, as S3 has it.
pub const UPLOAD_MAX: u64 = 5 << 30;
/// Smallest part but the last, as S3 has it.
pub const PART_MIN: u64 = 5 << 20;
/// Keys of one DeleteObjects.
pub const DELETE_MAX: usize = 1000;
/// Rows of one page of a listing.
pub const PAGE_MAX: u32 = 1000;
/// Bytes of all user metadata of an object, names and values.
pub const USER_METADATA_MAX: usize = 2048;
/// Bytes of the standard headers that are stored with an object.
pub const STORED_HEADERS_MAX: usize = 2048;
/// Longest line before a chunk's data.
pub const CHUNK_LINE_MAX: usize = 1024;
/// All trailers of a body.
pub const TRAILERS_MAX: usize = 16 << 10;
/// Longest line of the control socket, either way.
pub const CONTROL_LINE_MAX: usize = 8 << 20;
/// Longest validity of a presigned URL, in seconds.
pub const PRESIGNED_EXPIRY_MAX: u64 = 604_800;

/// Bounds that tests make small.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; one more waits in the kernel's backlog.
    pub connections: usize,
    /// Request line and headers, counted after parsing.
    pub header_bytes: usize,
    /// Buffer of a connection: what hyper reads ahead or holds before it waits for the socket.
    pub connection_bytes: usize,
    /// An XML request.
    pub xml_bytes: usize,
    /// XML requests under way, all together: each is in memory at once.
    pub xml_total_bytes: usize,
    /// One chunk of an aws-chunked body.
    pub chunk_bytes: u64,
    /// What is read of a refused body, so that the client sees the answer.
    pub drain_bytes: usize,
    /// How long that may take.
    pub drain_time: Duration,
    /// A connection that sends no whole header for so long is closed; idle ones too.
    pub header_time: Duration,
    /// A body that makes no progress for so long, either way, is cut.
    pub stall_time: Duration,
    /// What counts as progress of a body on its way in: a client that sends less in that time holds memory for nothing.
    pub stall_bytes: usize,
    /// How long a key that was looked up is believed.
    pub key_time: Duration,
    /// Keys that are remembered.
    pub keys: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            header_bytes: 16 << 10,
            connection_bytes: 64 << 10,
            xml_bytes: 4 << 20,
            xml_total_bytes: 64 << 20,
            chunk_bytes: 16 << 20,
            drain_bytes: 256 << 10,
            drain_time: Duration::from_secs(5),
            header_time: Duration::from_secs(60),
            stall_time: Duration::from_secs(30),
            stall_bytes: 64 << 10,
            key_time: Duration::from_secs(1),
            keys: 1024,
        }
    }
}
