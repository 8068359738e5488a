//! What a target counts, and what it says of itself.

use crate::store::Store;
use crate::tree::CacheStats;
use cobalt_base::Lsn;
use uuid::Uuid;

/// Exact counts since the target was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounters {
    pub data_reads: u64,
    pub data_writes: u64,
    pub data_write_bytes: u64,
    pub data_flushes: u64,
    /// Writes whose data travelled in the journal, and their bytes.
    pub inline_writes: u64,
    pub inline_bytes: u64,
    pub journal_writes: u64,
    pub journal_bytes: u64,
    /// Flushes after journal writes; zero where the device takes FUA with the write.
    pub journal_flushes: u64,
    /// Records that carry no transaction, only how far the journal is durable.
    pub journal_empties: u64,
    /// Group commits.
    pub groups: u64,
    pub txs: u64,
    /// Transactions refused when they took their lsn.
    pub refused: u64,
    /// Applies that had to wait for a read; zero outside of recovery.
    pub apply_misses: u64,
    pub node_reads: u64,
    pub checkpoints: u64,
    pub trims: u64,
    /// Steps in which blocks of dead cobs were freed, or tombstones dropped.
    pub chore_steps: u64,
    pub corrupt_reads: u64,
    pub read_retries: u64,
}

impl StoreCounters {
    /// Names and values, as `status` and metrics show them.
    pub fn rows(&self) -> [(&'static str, u64); 20] {
        [
            ("data_reads", self.data_reads),
            ("data_writes", self.data_writes),
            ("data_write_bytes", self.data_write_bytes),
            ("data_flushes", self.data_flushes),
            ("inline_writes", self.inline_writes),
            ("inline_bytes", self.inline_bytes),
            ("journal_writes", self.journal_writes),
            ("journal_bytes", self.journal_bytes),
            ("journal_flushes", self.journal_flushes),
            ("journal_empties", self.journal_empties),
            ("groups", self.groups),
            ("txs", self.txs),
            ("refused", self.refused),
            ("apply_misses", self.apply_misses),
            ("node_reads", self.node_reads),
            ("checkpoints", self.checkpoints),
            ("trims", self.trims),
            ("chore_steps", self.chore_steps),
            ("corrupt_reads", self.corrupt_reads),
            ("read_retries", self.read_retries),
        ]
    }
}

/// Space of the data region, in bytes. `total = free + reserved + used`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    /// Can be allocated now.
    pub free: u64,
    /// Promised to open transactions, or freed and not yet reusable.
    pub reserved: u64,
    /// Mapped by cobs.
    pub used: u64,
}

/// What a target says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    pub target: Uuid,
    pub cluster: Uuid,
    pub name: String,
    /// `None` while it serves; why it does not.
    pub failed: Option<String>,
    /// Superblock generation and mount epoch.
    pub generation: u64,
    pub epoch: u64,
    /// Last applied transaction.
    pub applied: Lsn,
    /// Bytes of the journal, and how many of them are in use.
    pub journal: u64,
    pub journal_used: u64,
    pub dirty_bytes: u64,
    pub cobs: u64,
    pub space: Space,
}

impl Store {
    /// The node cache: what it holds, and what it did.
    pub fn cache(&self) -> CacheStats {
        self.0.forest.cache_stats()
    }

    /// Bytes of node blocks in use: by the trees, and by the checkpoint before them.
    pub fn tree_bytes(&self) -> u64 {
        let forest = &self.0.forest;
        (forest.meta_blocks() - forest.meta_free()) * u64::from(self.0.superblock.borrow().geometry.node_size)
    }
}
