//! When the open target writes a checkpoint, what it puts into it, and who waits for one.

use crate::checkpoint::{self, Checkpointed, Stamp};
use crate::error::StoreError;
use crate::inline::PATIENCE;
use crate::intent::Intent;
use crate::journal::ring::HostFull;
use crate::store::Core;
use crate::superblock::{JournalPosition, Superblock};
use crate::tx::TxClass;
use cobalt_reactor::sync::oneshot;
use futures::future::select;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// Pause between two writes of a checkpoint that owes nothing: an idle target is done in a fraction of a second.
const PAUSE: Duration = Duration::from_millis(1);

/// What a checkpoint owes. While it runs, others fill the journal and dirty nodes, of which it gives back what it
/// covers: it must be done before half of the room that was left at its start is used up, and need not be done sooner.
struct Debt {
    /// Bytes of the journal in use at the start, and those that may be taken until the end.
    used: u64,
    room: u64,
    dirty_room: u64,
}

impl Debt {
    fn new(journal_used: u64, journal_len: u64, dirty_max: u64) -> Debt {
        Debt { used: journal_used, room: (journal_len - journal_used) / 2, dirty_room: dirty_max / 2 }
    }

    /// The part of the checkpoint that should be written by now, from 0 to 1 and more.
    fn due(&self, journal_used: u64, dirty_bytes: u64) -> f64 {
        let journal = journal_used.saturating_sub(self.used) as f64 / self.room.max(1) as f64;
        journal.max(dirty_bytes as f64 / self.dirty_room.max(1) as f64)
    }
}

impl Core {
    /// Node blocks that only deletes and checkpoints may take.
    pub(crate) fn meta_reserve(&self) -> u64 {
        8 * self.forest.blocks_per_op()
    }

    /// Whether a checkpoint will give node blocks back, and soon.
    pub(crate) fn checkpoint_frees(&self) -> bool {
        (self.checkpoint_running.get() || self.since_freeze.get() > 0) && !self.unwritten.host_is_full()
    }

    /// A write-out found no room on the host, or some again. A checkpoint waits for it; who waits for that checkpoint is answered.
    pub(crate) fn set_host_full(&self, full: bool) {
        let was = self.unwritten.host_is_full();
        let now = self.ctx.now();
        let since = self.unwritten.full_since.get().unwrap_or(now);
        self.unwritten.full_since.set(full.then_some(since));
        self.journal.set_host_full(match full {
            false => HostFull::No,
            // Who closes the target tries the host once more, and no longer.
            true if now - since < PATIENCE && !self.closed.get() => HostFull::Now,
            true => HostFull::Stays,
        });
        if was != full {
            self.checkpoint_done.notify_all();
            self.unpark();
        }
    }

    /// Those who waited for node blocks are judged again, before the others.
    fn unpark(&self) {
        let mut queue = self.queue.borrow_mut();
        for work in self.parked.borrow_mut().drain(..).rev() {
            queue.push_front(work);
        }
        drop(queue);
        self.arrived.notify_all();
    }

    /// Waits while dirty nodes or used node blocks leave no room for more changes.
    pub(crate) async fn admit(&self, class: TxClass) -> Result<(), StoreError> {
        for _ in 0..2 {
            let low = self.forest.meta_free() < 2 * self.meta_reserve();
            let crowded = self.forest.pressure() && self.since_freeze.get() > 0;
            if (!low && !crowded) || class >= TxClass::Delete {
                return Ok(());
            }
            let done = self.checkpoint_done.notified();
            self.kick_checkpoint();
            if self.unwritten.host_is_full() {
                return Err(StoreError::HostFull);
            }
            done.await;
            self.is_well()?;
        }
        Ok(())
    }

    pub(crate) async fn name_generation(&self, generation: u64) -> Result<(), StoreError> {
        self.run_chore(TxClass::Checkpoint, Intent::Named { generation }).await.map(drop)
    }

    fn checkpoint_due(&self) -> bool {
        let (used, len) = (self.journal.used(), self.journal.len);
        let full = used * 100 > len * self.limits.journal_fill_pct;
        // Space that is only promised comes back by itself; a checkpoint would not hasten it.
        let short = self.journal.is_short() && used * 10 > len;
        let dirty = self.forest.dirty_bytes() > self.limits.dirty_max || self.forest.pressure();
        self.since_freeze.get() > 0 && (full || dirty || short || self.checkpoint_wanted.get())
    }

    /// Asks for a checkpoint. One that runs is enough: who waits looks again when it is done, and asks for another then.
    pub(crate) fn kick_checkpoint(&self) {
        if self.checkpoint_running.get() {
            return;
        }
        self.checkpoint_wanted.set(true);
        if self.since_freeze.get() == 0 {
            // Nothing to write: whoever waits for room finds it now or never.
            self.checkpoint_wanted.set(false);
            self.checkpoint_done.notify_all();
        }
        self.journal.short.notify_all();
    }

    pub(crate) fn kick_if_due(&self) {
        if self.checkpoint_due() {
            self.journal.short.notify_all();
        }
    }

    pub(crate) async fn checkpoint_loop(self: Rc<Core>) {
        while self.is_well().is_ok() && !self.stop.get() {
            if !self.checkpoint_due() || self.checkpoint_running.get() {
                self.journal.short.notified().await;
                continue;
            }
            if self.checkpoint().await.is_err() {
                break;
            }
        }
    }

    /// One checkpoint that a caller asked for. When it has to wait for a full host, the caller does not.
    pub(crate) async fn checkpoint_now(self: &Rc<Core>) -> Result<(), StoreError> {
        let full = async {
            while !self.unwritten.host_is_full() {
                self.checkpoint_done.notified().await;
            }
            Err(StoreError::HostFull)
        };
        let done = self.checkpoint_apart();
        let (done, full) = (pin!(done), pin!(full));
        select(done, full).await.factor_first().0
    }

    /// One checkpoint, on a task of its own: a caller that goes away does not leave half of one.
    pub(crate) async fn checkpoint_apart(self: &Rc<Core>) -> Result<(), StoreError> {
        let (done, result) = oneshot();
        let core = self.clone();
        drop(self.ctx.spawn(async move { done.send(core.checkpoint().await) }));
        result.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Empties a journal that has no room for another record: starts that did not live long enough for a
    /// checkpoint filled it. Both superblock slots hold this mount's trees by now, so that nothing can fall
    /// back behind them, and the new superblock needs nothing of the old journal: its room is taken before
    /// the record that names it is written.
    pub(crate) async fn fold(&self) -> Result<(), StoreError> {
        self.folding.set(true);
        let result = self.checkpoint().await;
        self.folding.set(false);
        result
    }

    /// One checkpoint; waits for one that runs.
    pub(crate) async fn checkpoint(&self) -> Result<(), StoreError> {
        while self.checkpoint_running.get() {
            self.is_well()?;
            if self.unwritten.host_is_full() {
                return Err(StoreError::HostFull);
            }
            self.checkpoint_done.notified().await;
        }
        self.is_well()?;
        if self.forest.is_frozen() {
            return Err(StoreError::HostFull); // The one before was given up.
        }
        self.checkpoint_running.set(true);
        self.checkpoint_wanted.set(false);
        let previous = self.superblock.borrow().clone();
        let (meta, forest) = (&self.regions.meta, &self.forest);
        let debt = Debt::new(self.journal.used(), self.journal.len, self.limits.dirty_max);
        let pace = |written: f64| {
            let waited_for = self.closed.get() || self.journal.is_short() || forest.pressure();
            let ahead = written > debt.due(self.journal.used(), forest.dirty_bytes());
            (ahead && !waited_for).then_some(PAUSE)
        };
        let result =
            checkpoint::checkpoint(&self.ctx, meta, &self.meta_arena, forest, &previous, self, pace).await;
        self.checkpoint_running.set(false);
        let result = match result {
            Ok(next) => {
                *self.superblock.borrow_mut() = next;
                self.count(|c| c.checkpoints += 1);
                self.unpark();
                Ok(())
            }
            // A target that closes does not wait for a full host. The journal has all that the checkpoint would have.
            Err(StoreError::HostFull) if self.closed.get() => Err(StoreError::HostFull),
            Err(error) => {
                self.fail(&format!("checkpoint failed: {error}"));
                Err(error)
            }
        };
        self.checkpoint_done.notify_all();
        self.journal.short.notify_all();
        result
    }
}

impl Checkpointed for Core {
    type Error = StoreError;

    fn stamp(&self) -> Stamp {
        let applied = self.applied.get();
        self.since_freeze.set(0);
        self.stamped.set(applied.position);
        let sb = self.superblock.borrow();
        Stamp {
            mount_epoch: sb.mount_epoch,
            epoch_start: sb.epoch_start,
            checkpoint_lsn: applied.lsn,
            journal: JournalPosition {
                offset: self.journal.ring_offset(applied.position),
                chain: applied.chain,
            },
            data_free: self.balloc.tree_free(),
        }
    }

    async fn settle(&self, stamp: &Stamp) -> Result<(), StoreError> {
        self.settle_inline(stamp.checkpoint_lsn).await
    }

    fn reuse(&self) {
        self.journal.trim(self.stamped.get());
    }

    async fn name(&self, superblock: &Superblock) -> Result<(), StoreError> {
        if self.folding.get() {
            self.reuse();
        }
        self.name_generation(superblock.generation).await
    }
}

#[cfg(test)]
mod tests {
    use super::Debt;

    #[test]
    fn a_checkpoint_is_done_before_half_of_what_was_left_is_used_up() {
        let debt = Debt::new(40, 100, 1000);
        assert_eq!(debt.due(40, 0), 0.0, "nothing is owed at the start");
        assert_eq!(debt.due(55, 0), 0.5, "by the journal");
        assert_eq!(debt.due(41, 250), 0.5, "by dirty nodes");
        assert!(debt.due(70, 0) >= 1.0 && debt.due(40, 500) >= 1.0);
        assert_eq!(debt.due(20, 0), 0.0, "a tail that moved meanwhile is no debt");
        assert!(Debt::new(100, 100, 0).due(100, 1) >= 1.0, "no room at all: at once");
    }
}
