//! A checkpoint: a generation of the trees becomes the one that recovery starts from.
//!
//! The order is the whole point (architecture, section 5): nodes, bitmap, flush; the superblock's copies,
//! flush; the journal record that names the generation, durable; only then is anything reused.

use crate::geometry::Region;
use crate::superblock::{self, JournalPosition, Superblock};
use crate::tree::{Forest, MetaError};
use cobalt_base::Lsn;
use cobalt_base::canary::{Canary, planted};
use cobalt_dma::Arena;
use cobalt_reactor::{Ctx, Step};
use std::future::Future;
use std::time::Duration;

/// What the store knows at the moment of the freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Counts mounts that wrote.
    pub mount_epoch: u64,
    /// First lsn of the epoch.
    pub epoch_start: Lsn,
    /// Everything up to here is applied to the trees, and nothing after it.
    pub checkpoint_lsn: Lsn,
    /// Where redo starts.
    pub journal: JournalPosition,
    /// Free blocks of the data region.
    pub data_free: u64,
}

/// The store's part in a checkpoint.
pub trait Checkpointed {
    /// The store's error; a failed checkpoint fails the target.
    type Error: From<MetaError>;

    /// Called in the same turn as the freeze.
    fn stamp(&self) -> Stamp;
    /// Data that the stamp's lsn covers and that is only in the journal goes to its blocks and is flushed.
    fn settle(&self, stamp: &Stamp) -> impl Future<Output = Result<(), Self::Error>>;
    /// Gives back the part of the ring that the stamp's superblock does not need.
    fn reuse(&self);
    /// The record that names the superblock's generation becomes durable.
    fn name(&self, superblock: &Superblock) -> impl Future<Output = Result<(), Self::Error>>;
}

/// Runs one checkpoint on top of `previous`, the superblock that is durable now. `pace` gives the pause after each
/// write of nodes, from the part of them that is written.
///
/// # Errors
/// Any error leaves the previous superblock's trees untouched and must fail the target: what the
/// devices hold beyond them is unknown.
pub async fn checkpoint<C: Checkpointed>(
    ctx: &Ctx,
    meta: &Region,
    arena: &Arena,
    forest: &Forest,
    previous: &Superblock,
    store: &C,
    pace: impl Fn(f64) -> Option<Duration>,
) -> Result<Superblock, C::Error> {
    let stamp = store.stamp();
    let frozen = forest.freeze();
    ctx.step(Step::Checkpoint);
    let written = forest.write(&frozen, pace).await?;
    store.settle(&stamp).await?;
    if planted(Canary::ReuseBeforeNamed) {
        store.reuse();
    }
    let next = Superblock {
        generation: written.generation,
        roots: written.roots,
        bitmap: written.bitmap,
        mount_epoch: stamp.mount_epoch,
        epoch_start: stamp.epoch_start,
        checkpoint_lsn: stamp.checkpoint_lsn,
        journal: stamp.journal,
        data_free: stamp.data_free,
        ..previous.clone()
    };
    assert!(
        next.generation == previous.generation + 1,
        "generations of superblocks have no gaps: slots are used in turn"
    );
    superblock::write(meta, arena, &next).await?;
    store.name(&next).await?;
    store.reuse();
    forest.release(frozen);
    Ok(next)
}
