//! How many bytes of payload this process has copied in user space. Whoever copies payload from
//! memory to memory says so here; a budget test holds the sum against what one PUT may cost.

use std::sync::atomic::{AtomicU64, Ordering};

static TOTAL: AtomicU64 = AtomicU64::new(0);

/// Counts `bytes` of payload that were copied just now.
pub fn add(bytes: usize) {
    TOTAL.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Bytes copied since the process started.
pub fn total() -> u64 {
    TOTAL.load(Ordering::Relaxed)
}
