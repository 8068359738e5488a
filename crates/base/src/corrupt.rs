//! The error for bytes that came from a device and are not what they should be (I10).

use std::fmt;

/// What is wrong, where it was read, what was expected and what was found.
///
/// A referrer's checksum (I5) turns torn, rotten, lost and misdirected writes into this.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct Corrupt {
    /// The structure that was being read, in the field's words: "superblock", "btree node", "journal record".
    pub what: &'static str,
    /// Byte address on its region, where one exists.
    pub address: u64,
    /// The check that failed, with what was expected and found.
    pub why: String,
}

impl Corrupt {
    /// A finding about the `what` at byte `address`.
    pub fn new(what: &'static str, address: u64, why: impl Into<String>) -> Corrupt {
        Corrupt { what, address, why: why.into() }
    }
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "corrupt {} at byte {:#x}: {}", self.what, self.address, self.why)
    }
}
