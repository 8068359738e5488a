//! What `prove` sees of the store's inside. Built with the feature `proof` alone.

pub use crate::points::{Point, order as order_refusal, seen as reservations};
pub use crate::recovery::{Judged, judged};

use crate::store::Store;
use crate::tree::CacheStats;
use cobalt_base::Lsn;

/// What an open target has met, beyond its counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub cache: CacheStats,
    /// Times that the journal began its ring anew.
    pub wraps: u64,
    /// Reservations that waited for journal space.
    pub journal_waits: u64,
    /// Groups whose free extents were dropped from memory for others.
    pub groups_dropped: u64,
    /// Reservations that left the group they began in.
    pub groups_left: u64,
}

/// See [`Stats`].
pub fn stats(store: &Store) -> Stats {
    let core = &store.0;
    let (groups_dropped, groups_left) = core.balloc.met();
    Stats {
        cache: core.forest.cache_stats(),
        wraps: core.journal.head() / core.journal.len,
        journal_waits: core.journal.waits(),
        groups_dropped,
        groups_left,
    }
}

/// Whether no background work is left.
pub fn is_idle(store: &Store) -> bool {
    store.is_idle()
}

/// The last transaction that recovery found: what was before it survived, what was not is void.
pub fn recovered(store: &Store) -> Lsn {
    Lsn(store.0.superblock.borrow().epoch_start.0 - 1)
}
