//! Limits of the service (I8).

use std::time::Duration;

/// Limits of an [`crate::Ios`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of writes under way, over all targets; beyond it: busy.
    pub write_bytes: u64,
    /// Bytes of reads under way, over all targets; beyond it, reads wait within their deadline.
    pub read_bytes: u64,
    /// For one pull: a peer that does not deliver loses its reservation then.
    pub pull: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { write_bytes: 256 << 20, read_bytes: 128 << 20, pull: Duration::from_secs(10) }
    }
}

impl Limits {
    /// Limits that tests reach.
    pub fn tiny() -> Limits {
        Limits { write_bytes: 2 << 20, read_bytes: 1 << 20, pull: Duration::from_millis(200) }
    }
}
