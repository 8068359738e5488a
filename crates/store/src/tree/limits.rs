//! Named limits of the trees (I8).

use crate::geometry::NODE_SIZE;

/// Highest tree: with nodes of 4 KiB and the longest keys it still addresses more blocks than a region can have.
pub const HEIGHT_MAX: u32 = 24;
/// Clean nodes that stay in the cache even when dirty and pinned ones use all of its limit, so that
/// a path can be loaded and used.
pub const CLEAN_MIN: usize = HEIGHT_MAX as usize;
/// Steps of the eviction clock for one node that comes in.
pub const EVICT_STEPS_MAX: usize = 256;
/// Share of the cache, in percent, that the epochs of open transactions may pin before the oldest of them end early:
/// a peer that is slow to give its bytes does not hold the cache.
pub const PINNED_PERCENT: u64 = 25;
/// Nodes that were dropped and whose memory waits for those that are read next.
pub const SPARES_MAX: u64 = 64;
/// They are at most this part of the cache, but one at least.
pub const SPARES_PART: u64 = 256;
/// Empty leaves that wait for their turn to be unlinked; more are left for a later delete to find.
pub const EMPTIES_MAX: usize = 1024;
/// Findings that one verification keeps.
pub const FINDINGS_MAX: usize = 1000;

/// Limits of one target's trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeLimits {
    /// Bytes of nodes in memory: clean, dirty and pinned.
    pub cache_bytes: u64,
    /// Share of `cache_bytes`, in percent, that dirty and pinned nodes may use before [`super::Forest::pressure`] says so.
    pub pressure_percent: u64,
    /// Bytes of one write of a checkpoint; neighbours are written together up to this.
    pub write_bytes: usize,
    /// Writes of a checkpoint in flight at one time.
    pub writes_in_flight: usize,
}

impl Default for TreeLimits {
    fn default() -> TreeLimits {
        TreeLimits {
            cache_bytes: 256 << 20,
            pressure_percent: 60,
            write_bytes: 512 << 10,
            writes_in_flight: 4,
        }
    }
}

impl TreeLimits {
    /// So small that tests meet every limit.
    pub fn tiny() -> TreeLimits {
        TreeLimits {
            cache_bytes: 4 * u64::from(NODE_SIZE),
            pressure_percent: 50,
            write_bytes: 16 << 10,
            writes_in_flight: 2,
        }
    }
}
