//! Limits of a connection (I8).

/// Messages that a peer may have under way or unread.
pub const WINDOW: u64 = 32;
/// The same for a peer that has not yet proved who it is.
pub const STRANGER_WINDOW: u64 = 4;
/// Messages read before their credits go back.
pub const CREDIT_BATCH: u64 = WINDOW / 4;
/// Largest payload of a frame of bulk, in bytes; larger transfers take several.
pub const FRAME_DATA_MAX: usize = 1 << 20;
/// Frames of bulk under way, each way and of each kind.
pub const BULK_FRAMES_MAX: u64 = 16;
/// Loans of one end at one time.
pub const LOANS_MAX: usize = 1024;
/// Largest loan, in bytes.
pub const LOAN_MAX: u64 = 64 << 20;
/// Separate ranges of a room that are filled at one time.
pub const RANGES_MAX: usize = 64;
/// Connections that wait to be accepted.
pub const BACKLOG_MAX: usize = 64;
/// Bytes that a connection reads, or writes, before the others have their turn.
pub const TURN_BYTES_MAX: usize = 4 << 20;
/// Pieces of one vectored write.
pub const IOV_MAX: usize = 64;
