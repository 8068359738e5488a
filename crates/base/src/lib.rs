//! The words of the whole workspace: identities, units of measure, checksums and the error that
//! says what is wrong with bytes from a disk.
//!
//! Everything here is plain data. Nothing here allocates without a bound, reads a clock or draws
//! a random number.

pub mod bytes;
pub mod canary;
pub mod checksum;
pub mod corrupt;
pub mod fid;
pub mod units;

pub use bytes::ByteSize;
pub use corrupt::Corrupt;
pub use fid::{Fid, SessionId};
pub use units::{BLOCK_SIZE, Lsn, Nanos, UnixMillis};
