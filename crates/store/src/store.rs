//! The open target: its state, its background tasks and the calls that are not a write or a read.

use crate::apply::{self, Halt, Shape};
use crate::balloc::{Balloc, ReadPin};
use crate::chore::Chore;
use crate::cob::CobInfo;
use crate::commit::Work;
use crate::counters::{Space, StoreCounters, StoreStatus};
use crate::ctg::Ctg;
use crate::data::Flusher;
use crate::error::StoreError;
use crate::inline::Unwritten;
use crate::intent::Intent;
use crate::journal::ring::Journal;
use crate::limits::Limits;
use crate::region::Regions;
use crate::schema::{self, COB, CobRow};
use crate::stage::Stage;
use crate::superblock::Superblock;
use crate::tree::{Forest, TreeId};
use crate::trim::Trims;
use crate::tx::{Committed, Extent, TxClass};
use cobalt_base::{BLOCK_SIZE, Fid, Lsn, SessionId};
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use cobalt_reactor::sync::{Notify, Semaphore};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

pub use crate::format::format;

/// An open target. Clones are handles to it.
#[derive(Clone)]
pub struct Store(pub(crate) Rc<Core>);

/// The last applied transaction, and where the journal stood after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applied {
    pub lsn: Lsn,
    pub position: u64,
    pub chain: u64,
}

/// Everything of an open target.
pub(crate) struct Core {
    pub ctx: Ctx,
    /// Memory for payload.
    pub arena: Arena,
    /// Memory for the I/O of the meta region.
    pub meta_arena: Arena,
    pub regions: Regions,
    pub limits: Limits,
    pub shape: Shape,
    pub forest: Rc<Forest>,
    pub balloc: Rc<Balloc>,
    /// What becomes of blocks that the last pin lets go.
    pub release: Rc<dyn Fn(Vec<Extent>)>,
    pub journal: Rc<Journal>,
    /// The durable superblock.
    pub superblock: RefCell<Superblock>,
    pub read_only: bool,
    /// Encoded size of the largest catalogue transaction.
    pub ctg_tx: usize,
    pub applied: Cell<Applied>,
    /// Transactions applied since the last freeze.
    pub since_freeze: Cell<u64>,
    pub stamped: Cell<u64>,
    pub queue: RefCell<VecDeque<Work>>,
    /// Transactions that wait for the node blocks that a checkpoint gives back; as many as had a place in the queue.
    pub parked: RefCell<VecDeque<Work>>,
    /// Told when a transaction arrives, and when the target ends.
    pub arrived: Notify,
    /// Told when a group was answered.
    pub group_done: Notify,
    pub stop: Cell<bool>,
    pub committer_done: Cell<bool>,
    pub failed: RefCell<Option<String>>,
    pub closed: Cell<bool>,
    pub chores: RefCell<VecDeque<Chore>>,
    pub chore: Notify,
    pub chore_running: Cell<bool>,
    pub checkpoint_wanted: Cell<bool>,
    pub checkpoint_running: Cell<bool>,
    /// The running checkpoint is the first of a target whose journal has no room for another record.
    pub folding: Cell<bool>,
    pub checkpoint_done: Notify,
    pub trims: Trims,
    pub unwritten: Rc<Unwritten>,
    pub flusher: Flusher,
    pub reads: Semaphore,
    pub next_tx: Cell<u64>,
    /// A session that was not fenced by what is applied.
    pub unfenced: Cell<Option<SessionId>>,
    pub counters: Cell<StoreCounters>,
}

impl Store {
    /// Ends the target in good order: what was submitted is finished, and a last checkpoint leaves
    /// nothing to redo. Later calls get `Closed`.
    ///
    /// # Errors
    /// [`StoreError`]; the target is closed all the same.
    pub async fn close(&self) -> Result<(), StoreError> {
        let core = &self.0;
        if core.closed.replace(true) {
            return Ok(());
        }
        if core.read_only {
            return Ok(());
        }
        if core.unwritten.host_is_full() {
            core.set_host_full(true); // Deletes that wait for it hear of the end.
        }
        core.wake_all();
        while core.chore_running.get() && core.is_well().is_ok() {
            core.checkpoint_done.notified().await;
        }
        while !core.queue.borrow().is_empty() && core.is_well().is_ok() {
            core.group_done.notified().await;
        }
        core.trim_at_close().await;
        let last = core.checkpoint_apart().await;
        core.stop.set(true);
        core.wake_all();
        while !core.committer_done.get() {
            core.arrived.notified().await;
        }
        last
    }

    /// A cob's attributes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cob_stat(&self, fid: Fid) -> Result<Option<CobInfo>, StoreError> {
        let key = schema::fid_key(COB, fid);
        let row = self.0.look(|stage| Ok(stage.get(TreeId::Cob, &key)?)).await?;
        Ok(row.map(|value| schema::decode::<CobRow>("cob row", &value)).transpose()?.map(info))
    }

    /// Up to `limit` cobs from `from` on, in fid order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cob_next(&self, from: Fid, limit: usize) -> Result<Vec<(Fid, CobInfo)>, StoreError> {
        let mut out = Vec::new();
        let mut from = schema::fid_key(COB, from).to_vec();
        while out.len() < limit {
            let Some((key, value)) = self.0.look(|stage| Ok(stage.next(TreeId::Cob, &from)?)).await? else {
                break;
            };
            let Some(fid) = schema::key_fid(COB, &key) else { break };
            out.push((fid, info(schema::decode("cob row", &value)?)));
            from = key;
            from.push(0);
        }
        Ok(out)
    }

    /// Deletes a cob, durably. Its blocks come back at once, or in steps when it is large. A later
    /// write of it is refused. Works on a full target, and when there is no such cob.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cob_delete(&self, fid: Fid) -> Result<Committed, StoreError> {
        let rows = self.0.step_rows();
        match self.0.run_fixed(TxClass::Delete, Intent::Delete { fid, rows }).await {
            // Not even one row: the cob is marked dead, its rows are freed when there is room.
            Err(StoreError::MetaFull) => {
                self.0.run_fixed(TxClass::Delete, Intent::Delete { fid, rows: 0 }).await
            }
            other => other,
        }
    }

    /// Ends every running write of a session and refuses later ones, durably.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fence(&self, session: SessionId) -> Result<Committed, StoreError> {
        self.0.run_fixed(TxClass::Delete, Intent::Fence { session }).await
    }

    /// Space of the data region.
    pub fn space(&self) -> Space {
        self.0.space()
    }

    /// What the target says of itself.
    pub fn status(&self) -> StoreStatus {
        let core = &self.0;
        let sb = core.superblock.borrow();
        // The count is one row at the edge of the tree: nearly always in memory, and only for show.
        let cobs = apply::cob_count(&Stage::new(core.forest.clone())).unwrap_or(0);
        StoreStatus {
            target: sb.target,
            cluster: sb.cluster,
            name: sb.name.clone(),
            failed: core.failed.borrow().clone().or_else(|| core.lost()),
            generation: sb.generation,
            epoch: sb.mount_epoch,
            applied: core.applied.get().lsn,
            journal: core.journal.len,
            journal_used: core.journal.used(),
            dirty_bytes: core.forest.dirty_bytes(),
            cobs,
            space: core.space(),
        }
    }

    /// Memory for payload.
    pub fn arena(&self) -> &Arena {
        &self.0.arena
    }

    /// Whether a checkpoint runs now.
    pub fn is_checkpointing(&self) -> bool {
        self.0.checkpoint_running.get()
    }

    /// The counters.
    pub fn counters(&self) -> StoreCounters {
        let core = &self.0;
        StoreCounters {
            journal_writes: core.journal.writes.get(),
            journal_bytes: core.journal.bytes.get(),
            node_reads: core.forest.cache_stats().reads,
            ..core.counters.get()
        }
    }

    /// The catalogues.
    pub fn ctg(&self) -> Ctg {
        Ctg(self.clone())
    }

    /// Writes a checkpoint now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.0.may_write()?;
        self.0.checkpoint_now().await
    }
}

pub(crate) fn info(row: CobRow) -> CobInfo {
    CobInfo {
        chunk_size: row.chunk_size,
        incarnation: row.incarnation,
        generation: row.generation,
        size: row.size,
        allocated: row.blocks.saturating_mul(BLOCK_SIZE),
    }
}

impl Core {
    pub(crate) fn count(&self, f: impl FnOnce(&mut StoreCounters)) {
        let mut counters = self.counters.get();
        f(&mut counters);
        self.counters.set(counters);
    }

    fn space(&self) -> Space {
        let (free, reserved) = self.balloc.counts();
        let total = self.shape.data_blocks;
        Space {
            total: total * BLOCK_SIZE,
            free: free * BLOCK_SIZE,
            reserved: reserved * BLOCK_SIZE,
            used: (total - free - reserved) * BLOCK_SIZE,
        }
    }

    /// Why a device is gone, where its backend knows. The target fails with its next operation; an idle one has none.
    fn lost(&self) -> Option<String> {
        self.regions.meta.device.lost().or_else(|| self.regions.data.device.lost())
    }

    /// The target fails: a device's state is unknown, or its trees contradict themselves (I10).
    pub(crate) fn fail(&self, why: &str) {
        if self.failed.borrow().is_none() {
            let name = self.superblock.borrow().name.clone();
            tracing::error!(target_name = %name, why, "the target has failed and takes no more requests");
            *self.failed.borrow_mut() = Some(why.to_owned());
        }
        self.wake_all();
    }

    pub(crate) fn wake_all(&self) {
        self.journal.room.notify_all();
        self.journal.short.notify_all();
        self.balloc.wake();
        self.arrived.notify_all();
        self.group_done.notify_all();
        self.chore.notify_all();
        self.checkpoint_done.notify_all();
        self.trims.some.notify_all();
        self.unwritten.changed.notify_all();
    }

    /// Whether a checkpoint may wait for the host: not when the target ends, or has not begun.
    pub(crate) fn may_wait(&self) -> bool {
        !self.closed.get() && !self.folding.get() && self.is_well().is_ok()
    }

    /// While it lives, no block that is mapped now is reused.
    pub(crate) fn pin_blocks(&self) -> ReadPin {
        self.balloc.pin(self.release.clone())
    }

    pub(crate) fn is_well(&self) -> Result<(), StoreError> {
        match &*self.failed.borrow() {
            Some(why) => Err(StoreError::Failed { why: why.clone() }),
            None => Ok(()),
        }
    }

    /// Whether the target's own tasks may go on.
    pub(crate) fn alive(&self) -> Result<(), StoreError> {
        self.is_well()?;
        if self.stop.get() && self.queue.borrow().is_empty() { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Whether a caller may change anything.
    pub(crate) fn may_write(&self) -> Result<(), StoreError> {
        self.is_well()?;
        if self.closed.get() {
            return Err(StoreError::Closed);
        }
        if self.read_only { Err(StoreError::ReadOnly) } else { Ok(()) }
    }

    /// Passes an error on; one that says that the trees or a device cannot be trusted fails the target.
    pub(crate) fn judge_error(&self, error: StoreError) -> StoreError {
        if let StoreError::Failed { .. } | StoreError::Damaged(_) = &error
            && !self.read_only
        {
            self.fail(&error.to_string());
        }
        error
    }

    /// Reads the trees as they are applied; loads what is missing and looks again.
    pub(crate) async fn look<T>(&self, read: impl Fn(&Stage) -> Result<T, Halt>) -> Result<T, StoreError> {
        let stage = Stage::new(self.forest.clone());
        // What the first attempt finds need not stay.
        let mut epoch = None;
        loop {
            match read(&stage) {
                Ok(value) => return Ok(value),
                Err(Halt::Miss(miss)) => {
                    epoch.get_or_insert_with(|| self.forest.epoch());
                    self.forest.load(miss).await.map_err(|e| self.judge_error(e.into()))?;
                }
                Err(Halt::Refused(error)) => return Err(error),
                Err(Halt::Corrupt(corrupt)) => return Err(self.judge_error(corrupt.into())),
            }
        }
    }

    pub(crate) async fn run_fixed(&self, class: TxClass, intent: Intent) -> Result<Committed, StoreError> {
        self.may_write()?;
        self.run_chore(class, intent).await
    }
}

#[cfg(any(test, feature = "proof"))]
impl Store {
    /// Whether no background work is left.
    pub(crate) fn is_idle(&self) -> bool {
        let core = &self.0;
        let chores = core.chore_running.get() || !core.chores.borrow().is_empty();
        !chores && !core.checkpoint_running.get() && core.trims.is_idle()
    }
}

#[cfg(test)]
impl Store {
    /// Blocks whose bytes are only in the journal and in memory.
    pub(crate) fn unwritten(&self) -> u64 {
        self.0.unwritten.len()
    }

    /// Bytes of nodes in memory.
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.0.forest.cache_stats().bytes
    }

    /// Journal bytes promised, bytes of pinned nodes, tasks that wait for the journal.
    pub(crate) fn leftovers(&self) -> (u64, u64, usize) {
        let journal = &self.0.journal;
        let waiting = usize::from(journal.is_short());
        (journal.taken() - journal.used(), self.0.forest.cache_stats().pinned_bytes, waiting)
    }
}
