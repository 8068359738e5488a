//! Every limit of a target in one place (I8). Full is a normal answer, never an allocation without bound.

use std::time::Duration;

/// Memory for the I/O of one target's meta region, in bytes: a journal record of up to 2 MiB, kept for good, and the
/// writes of a checkpoint in flight.
pub const META_ARENA: u64 = 8 << 20;

/// Nodes that one group of transactions reads at one time.
pub const LOADS_MAX: usize = 64;

/// Where the allocator looks for blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Behind the cob's last extent; a new cob behind what was written last, so that writes run on.
    #[default]
    Goal,
    /// At the lowest free block: a sparse file grows no further than it must.
    FirstFit,
}

/// Limits of one open target. Sizes in bytes unless the name says otherwise.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Memory for tree nodes, and for data that are in the journal only.
    pub node_cache: u64,
    /// Data bytes of a write that may travel in the journal; 0: none may.
    pub inline_max: u64,
    /// Data bytes that are in the journal only. More are written to their blocks at once.
    pub inline_unwritten_max: u64,
    /// Memory for the I/O of journal, trees and superblocks. Never shared with payload: a checkpoint that
    /// waits for payload to leave, while payload waits for the checkpoint, would wait for ever.
    pub meta_arena: u64,
    /// Dirty tree nodes that start a checkpoint.
    pub dirty_max: u64,
    /// Part of the journal, in percent, that starts a checkpoint when it is filled.
    pub journal_fill_pct: u64,
    /// Payload of one journal record: one group commit.
    pub group_bytes: u64,
    /// Transactions in one group commit.
    pub group_txs: usize,
    /// Transactions that wait for a group.
    pub queue_txs: usize,
    /// Transactions that wait for journal space; the next one is told `Busy`.
    pub admission_waiters: usize,
    /// Data bytes of one transaction.
    pub tx_data: u64,
    /// Encoded size of what one catalogue transaction changes.
    pub ctg_tx: u64,
    /// Journal space that only deletes, catalogues and checkpoints may use.
    pub reserve_delete: u64,
    /// Journal space that only checkpoints may use.
    pub reserve_checkpoint: u64,
    /// Extent-map rows freed by one step of a delete.
    pub free_step_rows: u32,
    /// Tombstones dropped by one step after a fence.
    pub fence_step_rows: u32,
    /// Allocation groups whose free extents are in memory.
    pub groups_loaded: usize,
    pub placement: Placement,
    /// Reads in flight.
    pub reads: u64,
    /// How long a durable group waits for a follower before an empty record says that it is durable.
    pub quiet: Duration,
    /// Whether freed blocks are deallocated on devices that can.
    pub trim: bool,
    /// How long they stay free before that; at most twice as long.
    pub trim_after: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            node_cache: 256 << 20,
            inline_max: 16 << 10,
            inline_unwritten_max: 16 << 20,
            meta_arena: META_ARENA,
            dirty_max: 64 << 20,
            journal_fill_pct: 40,
            group_bytes: 1 << 20,
            group_txs: 256,
            queue_txs: 4096,
            admission_waiters: 4096,
            tx_data: 4 << 20,
            ctg_tx: 256 << 10,
            reserve_delete: 512 << 10,
            reserve_checkpoint: 64 << 10,
            free_step_rows: 256,
            fence_step_rows: 256,
            groups_loaded: 64,
            placement: Placement::Goal,
            reads: 256,
            quiet: Duration::from_millis(10),
            trim: true,
            trim_after: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Unwritten bytes have a limit inside the cache's.
    pub(crate) fn unwritten_max(&self) -> u64 {
        self.inline_unwritten_max.min(self.node_cache / 3)
    }

    /// A set so small that tests reach every limit.
    pub fn tiny() -> Limits {
        Limits {
            node_cache: 96 << 10,
            inline_max: 8 << 10,
            inline_unwritten_max: 32 << 10,
            meta_arena: META_ARENA,
            dirty_max: 48 << 10,
            journal_fill_pct: 40,
            group_bytes: 16 << 10,
            group_txs: 4,
            queue_txs: 16,
            admission_waiters: 64,
            tx_data: 256 << 10,
            ctg_tx: 8 << 10,
            reserve_delete: 40 << 10,
            reserve_checkpoint: 16 << 10,
            free_step_rows: 2,
            fence_step_rows: 2,
            groups_loaded: 2,
            placement: Placement::Goal,
            reads: 4,
            quiet: Duration::from_millis(10),
            trim: true,
            trim_after: Duration::from_millis(5),
        }
    }
}
