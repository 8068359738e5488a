//! The open target: its state, its background tasks and the calls that are not a write or a read.

use crate::apply::{self, Halt, Shape};
use crate::balloc::Balloc;
use crate::checkpoint::{self, Checkpointed, Stamp};
use crate::cob::CobInfo;
use crate::commit::{Kind, Work};
use crate::counters::{Space, StoreCounters, StoreStatus};
use crate::ctg::Ctg;
use crate::data::Flusher;
use crate::error::{OpenError, StoreError};
use crate::intent::Intent;
use crate::journal::ring::Journal;
use crate::limits::Limits;
use crate::options::OpenOptions;
use crate::recovery;
use crate::region::Regions;
use crate::schema::{self, COB, CobRow};
use crate::stage::Stage;
use crate::superblock::{JournalPosition, Superblock};
use crate::tree::{Forest, TreeId};
use crate::trim::Trims;
use crate::tx::{Committed, TxClass};
use cobalt_base::{BLOCK_SIZE, Fid, Lsn, SessionId};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::Ctx;
use cobalt_reactor::sync::{Notify, Semaphore, oneshot};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

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
    pub journal: Rc<Journal>,
    /// The durable superblock.
    pub superblock: RefCell<Superblock>,
    pub read_only: bool,
    /// Encoded size of the largest catalogue transaction.
    pub ctg_tx: usize,
    pub applied: Cell<Applied>,
    /// Transactions applied since the last freeze.
    pub since_freeze: Cell<u64>,
    stamped: Cell<u64>,
    pub queue: RefCell<VecDeque<Work>>,
    /// Transactions that wait for the node blocks that a checkpoint gives back; as many as had a place in the queue.
    pub parked: RefCell<VecDeque<Work>>,
    /// Told when a transaction arrives, and when the target ends.
    pub arrived: Notify,
    /// Told when a group was answered.
    pub group_done: Notify,
    pub stop: Cell<bool>,
    pub committer_done: Cell<bool>,
    failed: RefCell<Option<String>>,
    closed: Cell<bool>,
    chores: RefCell<VecDeque<Chore>>,
    chore: Notify,
    chore_running: Cell<bool>,
    checkpoint_wanted: Cell<bool>,
    checkpoint_running: Cell<bool>,
    /// The running checkpoint is the first of a target whose journal has no room for another record.
    folding: Cell<bool>,
    checkpoint_done: Notify,
    pub trims: Trims,
    pub flusher: Flusher,
    pub reads: Semaphore,
    pub next_tx: Cell<u64>,
    counters: Cell<StoreCounters>,
}

/// Background work that goes on after a crash.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chore {
    /// Free more of a dead cob.
    Free(Fid),
    /// Drop tombstones of a fenced session.
    Tombs(SessionId),
}

/// What recovery hands to the open target.
pub(crate) struct Parts {
    pub forest: Rc<Forest>,
    pub balloc: Balloc,
    pub journal: Journal,
    pub superblock: Superblock,
    pub shape: Shape,
    pub chores: VecDeque<Chore>,
}

impl Store {
    /// Opens a target: recovers it, then starts its background work.
    ///
    /// # Errors
    /// [`OpenError`], a verdict that says what to do.
    pub async fn open(
        ctx: Ctx,
        regions: Regions,
        arena: Arena,
        options: OpenOptions,
    ) -> Result<Store, OpenError> {
        let meta_arena = match &options.meta_arena {
            Some(arena) => arena.clone(),
            None => own_arena(&options.limits)?,
        };
        let parts = recovery::recover(&ctx, &regions, &meta_arena, &options).await?;
        let generation = parts.superblock.generation;
        let store = Store(Core::new(ctx, regions, [arena, meta_arena], options, parts));
        if store.0.read_only {
            return Ok(store);
        }
        let core = &store.0;
        let mut opening = Opening(Some(core.clone()));
        drop(core.ctx.spawn(core.clone().commit_loop()));
        // The superblock that recovery wrote is named before anything is reused.
        if core.journal.has_room_to_spare() {
            core.name_generation(generation).await?;
        } else {
            core.fold().await?;
        }
        drop(core.ctx.spawn(core.clone().checkpoint_loop()));
        drop(core.ctx.spawn(core.clone().chore_loop()));
        drop(core.ctx.spawn(core.clone().trim_loop()));
        opening.0 = None;
        Ok(store)
    }

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
        let mut from = schema::fid_key(COB, from);
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
            failed: core.failed.borrow().clone(),
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
        self.0.checkpoint_apart().await
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
    fn new(
        ctx: Ctx,
        regions: Regions,
        [arena, meta_arena]: [Arena; 2],
        options: OpenOptions,
        parts: Parts,
    ) -> Rc<Core> {
        let Parts { forest, balloc, journal, superblock, shape, chores } = parts;
        let limits = options.limits;
        let ctg_tx = (limits.ctg_tx.min(journal.len / 16) as usize).max(4096);
        let applied = Applied {
            lsn: Lsn(journal.next_lsn.get() - 1),
            position: journal.head(),
            chain: journal.chain.get(),
        };
        let ctx_random = ctx.random_u64();
        Rc::new(Core {
            flusher: Flusher::new(ctx.clone(), regions.data.clone()),
            reads: Semaphore::new(limits.reads),
            ctx,
            arena,
            meta_arena,
            regions,
            shape,
            forest,
            balloc: Rc::new(balloc),
            journal: Rc::new(journal),
            superblock: RefCell::new(superblock),
            read_only: options.read_only,
            ctg_tx,
            applied: Cell::new(applied),
            since_freeze: Cell::new(1),
            stamped: Cell::new(applied.position),
            queue: RefCell::default(),
            parked: RefCell::default(),
            arrived: Notify::default(),
            group_done: Notify::default(),
            stop: Cell::new(false),
            committer_done: Cell::new(false),
            failed: RefCell::default(),
            closed: Cell::new(false),
            chores: RefCell::new(chores),
            chore: Notify::default(),
            chore_running: Cell::new(false),
            checkpoint_wanted: Cell::new(false),
            checkpoint_running: Cell::new(false),
            folding: Cell::new(false),
            checkpoint_done: Notify::default(),
            trims: Trims::default(),
            // Somewhere: a proof of one target's transaction is none of another's.
            next_tx: Cell::new(ctx_random >> 1),
            counters: Cell::default(),
            limits,
        })
    }

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

    /// The target fails: a device's state is unknown, or its trees contradict themselves (I10).
    pub(crate) fn fail(&self, why: &str) {
        if self.failed.borrow().is_none() {
            let name = self.superblock.borrow().name.clone();
            tracing::error!(target_name = %name, why, "the target has failed and takes no more requests");
            *self.failed.borrow_mut() = Some(why.to_owned());
        }
        self.wake_all();
    }

    fn wake_all(&self) {
        self.journal.room.notify_all();
        self.journal.short.notify_all();
        self.balloc.wake();
        self.arrived.notify_all();
        self.group_done.notify_all();
        self.chore.notify_all();
        self.checkpoint_done.notify_all();
        self.trims.some.notify_all();
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
        let _epoch = self.forest.epoch();
        let stage = Stage::new(self.forest.clone());
        loop {
            match read(&stage) {
                Ok(value) => return Ok(value),
                Err(Halt::Miss(miss)) => {
                    self.forest.load(miss).await.map_err(|e| self.judge_error(e.into()))?;
                }
                Err(Halt::Refused(error)) => return Err(error),
                Err(Halt::Corrupt(corrupt)) => return Err(self.judge_error(corrupt.into())),
            }
        }
    }

    /// Node blocks that only deletes and checkpoints may take.
    pub(crate) fn meta_reserve(&self) -> u64 {
        8 * self.forest.blocks_per_op()
    }

    /// Rows that one step of a delete may free, so that it finds room for the changed nodes.
    fn step_rows(&self) -> u32 {
        let changes = self.forest.meta_free() / self.forest.blocks_per_op();
        let rows = changes.saturating_sub(CHANGES_PER_STEP) / CHANGES_PER_ROW;
        u32::try_from(rows).unwrap_or(u32::MAX).min(self.limits.free_step_rows).max(1)
    }

    /// Whether a checkpoint will give node blocks back.
    pub(crate) fn checkpoint_frees(&self) -> bool {
        self.checkpoint_running.get() || self.since_freeze.get() > 0
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
            done.await;
            self.is_well()?;
        }
        Ok(())
    }

    pub(crate) async fn run_fixed(&self, class: TxClass, intent: Intent) -> Result<Committed, StoreError> {
        self.may_write()?;
        self.run_chore(class, intent).await
    }

    /// As `run_fixed`, for the target's own work, which may also run while it closes.
    async fn run_chore(&self, class: TxClass, intent: Intent) -> Result<Committed, StoreError> {
        let room = self.journal.reserve(class, SMALL_TX, || self.alive()).await?;
        let lsn = self.submit(Work::new(class, Kind::Fixed(vec![intent]), Some(room))).await?;
        Ok(Committed { lsn })
    }

    async fn name_generation(&self, generation: u64) -> Result<(), StoreError> {
        self.run_chore(TxClass::Checkpoint, Intent::Named { generation }).await.map(drop)
    }

    pub(crate) fn add_chores(&self, dead: Option<Fid>, fenced: Option<SessionId>) {
        let mut chores = self.chores.borrow_mut();
        chores.extend(dead.map(Chore::Free));
        chores.extend(fenced.map(Chore::Tombs));
        drop(chores);
        self.chore.notify_all();
    }

    /// Frees dead cobs and drops tombstones in bounded steps, one at a time.
    async fn chore_loop(self: Rc<Core>) {
        while self.is_well().is_ok() && !self.stop.get() && !self.closed.get() {
            let Some(chore) = self.chores.borrow_mut().pop_front() else {
                self.chore.notified().await;
                continue;
            };
            let intent = match chore {
                Chore::Free(fid) => Intent::FreeStep { fid, rows: self.step_rows() },
                Chore::Tombs(session) => Intent::DropTombs { session, rows: self.limits.fence_step_rows },
            };
            self.chore_running.set(true);
            let result = self.run_chore(TxClass::Delete, intent).await;
            self.chore_running.set(false);
            self.checkpoint_done.notify_all();
            match result {
                Ok(_) => {}
                Err(StoreError::Busy | StoreError::MetaFull) => {
                    self.chores.borrow_mut().push_back(chore);
                    self.ctx.sleep(CHORE_PAUSE).await;
                }
                Err(_) => break,
            }
        }
    }

    fn checkpoint_due(&self) -> bool {
        let (used, len) = (self.journal.used(), self.journal.len);
        let full = used * 100 > len * self.limits.journal_fill_pct;
        // Space that is only promised comes back by itself; a checkpoint would not hasten it.
        let short = self.journal.is_short() && used * 10 > len;
        let dirty = self.forest.dirty_bytes() > self.limits.dirty_max || self.forest.pressure();
        self.since_freeze.get() > 0 && (full || dirty || short || self.checkpoint_wanted.get())
    }

    pub(crate) fn kick_checkpoint(&self) {
        self.checkpoint_wanted.set(true);
        if self.since_freeze.get() == 0 && !self.checkpoint_running.get() {
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

    async fn checkpoint_loop(self: Rc<Core>) {
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

    /// One checkpoint, on a task of its own: a caller that goes away does not leave half of one.
    async fn checkpoint_apart(self: &Rc<Core>) -> Result<(), StoreError> {
        let (done, result) = oneshot();
        let core = self.clone();
        drop(self.ctx.spawn(async move { done.send(core.checkpoint().await) }));
        result.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Empties a journal that has no room for another record: starts that did not live long enough for a
    /// checkpoint filled it. Both superblock slots hold this mount's trees by now, so that nothing can fall
    /// back behind them, and the new superblock needs nothing of the old journal: its room is taken before
    /// the record that names it is written.
    async fn fold(&self) -> Result<(), StoreError> {
        self.folding.set(true);
        let result = self.checkpoint().await;
        self.folding.set(false);
        result
    }

    /// One checkpoint; waits for one that runs.
    async fn checkpoint(&self) -> Result<(), StoreError> {
        while self.checkpoint_running.get() {
            self.is_well()?;
            self.checkpoint_done.notified().await;
        }
        self.is_well()?;
        self.checkpoint_running.set(true);
        self.checkpoint_wanted.set(false);
        let previous = self.superblock.borrow().clone();
        let (meta, forest) = (&self.regions.meta, &self.forest);
        let pace = (!self.closed.get() && !self.journal.is_short()).then_some(PACE);
        let result =
            checkpoint::checkpoint(&self.ctx, meta, &self.meta_arena, forest, &previous, self, pace).await;
        self.checkpoint_running.set(false);
        let result = match result {
            Ok(next) => {
                *self.superblock.borrow_mut() = next;
                self.journal.trim(self.stamped.get());
                self.count(|c| c.checkpoints += 1);
                self.unpark();
                Ok(())
            }
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

/// A start that is given up half-way leaves no task behind that could still write.
struct Opening(Option<Rc<Core>>);

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(core) = &self.0 {
            core.fail("its start was given up");
        }
    }
}

fn own_arena(limits: &Limits) -> Result<Arena, OpenError> {
    let limit = usize::try_from(limits.meta_arena).unwrap_or(usize::MAX);
    Arena::new(ArenaConfig { limit })
        .map_err(|e| OpenError::Limits { why: format!("no memory for the meta region's I/O: {e}") })
}

/// Payload of a transaction with one small intent, in bytes.
const SMALL_TX: usize = 64;
/// Pause between the writes of a checkpoint that nobody waits for.
const PACE: Duration = Duration::from_micros(200);
/// Changes in the trees that freeing one row takes, and those that come with a step.
const CHANGES_PER_ROW: u64 = 6;
const CHANGES_PER_STEP: u64 = 6;
/// Pause before a chore that found the target busy.
const CHORE_PAUSE: Duration = Duration::from_millis(50);

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

    async fn settle(&self, _: &Stamp) -> Result<(), StoreError> {
        Ok(()) // No write is inline: data is on its blocks before its transaction is journaled.
    }

    async fn name(&self, superblock: &Superblock) -> Result<(), StoreError> {
        if self.folding.get() {
            self.journal.trim(self.stamped.get());
        }
        self.name_generation(superblock.generation).await
    }
}

#[cfg(test)]
impl Store {
    /// Whether no background work is left.
    pub(crate) fn is_idle(&self) -> bool {
        let core = &self.0;
        let chores = core.chore_running.get() || !core.chores.borrow().is_empty();
        !chores && !core.checkpoint_running.get() && core.trims.is_idle()
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
