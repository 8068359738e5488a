//! The limits of the catalogue service, in one place (I8).

use std::time::Duration;

/// Most bytes of a row, key and value together: what one leaf of the catalogue's tree takes at its default node size.
pub const ROW_MAX: usize = 5_300;
/// Longest name of a bucket, an owner, a process, a target or an access key, in bytes.
pub const NAME_MAX: usize = 255;
/// Most targets of a pool.
pub const POOL_TARGETS_MAX: usize = 64;
/// Most bytes of all versions of the pool together: they travel in one answer.
pub const POOLS_BYTES_MAX: usize = 40 << 10;
/// Most sessions that exist, fenced ones included.
pub const SESSIONS_MAX: u64 = 1024;
/// How far a session's request numbers may run ahead of its watermark: bounds its stored answers.
pub const REQUEST_WINDOW: u64 = 8192;
/// Acknowledged answers that one commit removes. More than one, so that removal catches up with any backlog.
pub const ANSWERS_PER_COMMIT: usize = 4;
/// Nonces of earlier sessions of a process that are remembered, so that their late repeats open nothing.
pub const NONCES_MAX: usize = 8;
/// Times that a Complete reads the parts again because one changed meanwhile.
pub const COMPLETE_TRIES: usize = 16;
/// Rows that a query reads from the tree at a time.
pub const SCAN_ROWS: usize = 64;

/// The collector's pace and steps.
#[derive(Clone, Copy, Debug)]
pub struct CollectorLimits {
    /// Rows that one commit or one call to a target handles.
    pub batch: usize,
    /// Pause between steps.
    pub pace: Duration,
    /// Shortest time between two walks over all the work.
    pub interval: Duration,
    /// First wait after a target failed; doubles up to `retry_max`.
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// A session that says nothing for so long is fenced. Its process beats once a second.
    pub lease: Duration,
}

impl Default for CollectorLimits {
    fn default() -> CollectorLimits {
        CollectorLimits {
            batch: 128,
            pace: Duration::from_millis(2),
            interval: Duration::from_millis(50),
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(5),
            lease: Duration::from_secs(300),
        }
    }
}

impl CollectorLimits {
    /// So small that tests cross every boundary.
    pub fn tiny() -> CollectorLimits {
        CollectorLimits { batch: 2, ..CollectorLimits::default() }
    }
}
