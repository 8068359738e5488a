//! Background work that a crash does not end: dead cobs are freed, tombstones of fenced sessions dropped, in
//! bounded steps, one at a time.

use crate::apply;
use crate::balloc::retry;
use crate::commit::{Kind, Work};
use crate::error::StoreError;
use crate::intent::Intent;
use crate::schema::{self, DEAD, FENCE, TOMB};
use crate::store::Core;
use crate::tree::{Forest, MetaError, TreeId};
use crate::tx::{Committed, TxClass};
use cobalt_base::{Fid, SessionId};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// Payload of a transaction with one small intent, in bytes.
pub(crate) const SMALL_TX: usize = 64;
/// Changes in the trees that freeing one row takes, and those that come with a step.
const CHANGES_PER_ROW: u64 = 6;
const CHANGES_PER_STEP: u64 = 6;
/// Pause before a chore that found the target busy.
const CHORE_PAUSE: Duration = Duration::from_millis(50);

/// Background work that goes on after a crash.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chore {
    /// Free more of a dead cob.
    Free(Fid),
    /// Drop tombstones of a fenced session.
    Tombs(SessionId),
}

impl Core {
    /// Rows that one step of a delete may free, so that it finds room for the changed nodes.
    pub(crate) fn step_rows(&self) -> u32 {
        self.rows_that_fit(CHANGES_PER_ROW).min(self.limits.free_step_rows)
    }

    /// Rows, each of so many changes in the trees, that one step may change now; at least one.
    fn rows_that_fit(&self, changes_per_row: u64) -> u32 {
        let changes = self.forest.meta_free() / self.forest.blocks_per_op();
        let rows = changes.saturating_sub(CHANGES_PER_STEP) / changes_per_row;
        u32::try_from(rows).unwrap_or(u32::MAX).max(1)
    }

    /// As `run_fixed`, for the target's own work, which may also run while it closes.
    pub(crate) async fn run_chore(&self, class: TxClass, intent: Intent) -> Result<Committed, StoreError> {
        let room = self.journal.reserve(class, SMALL_TX, || self.alive()).await?;
        let lsn = self.submit(Work::new(class, Kind::Fixed(vec![intent]), Some(room))).await?;
        Ok(Committed { lsn })
    }

    pub(crate) fn add_chores(&self, dead: Option<Fid>, fenced: Option<SessionId>) {
        let mut chores = self.chores.borrow_mut();
        chores.extend(dead.map(Chore::Free));
        chores.extend(fenced.map(Chore::Tombs));
        drop(chores);
        self.chore.notify_all();
    }

    /// Frees dead cobs and drops tombstones in bounded steps, one at a time.
    pub(crate) async fn chore_loop(self: Rc<Core>) {
        while self.is_well().is_ok() && !self.stop.get() && !self.closed.get() {
            let Some(chore) = self.chores.borrow_mut().pop_front() else {
                self.chore.notified().await;
                continue;
            };
            let intent = match chore {
                Chore::Free(fid) => Intent::FreeStep { fid, rows: self.step_rows() },
                Chore::Tombs(session) => {
                    let rows = self.rows_that_fit(1).min(self.limits.fence_step_rows);
                    Intent::DropTombs { session, rows }
                }
            };
            self.chore_running.set(true);
            self.count(|c| c.chore_steps += 1);
            let result = self.run_chore(TxClass::Delete, intent).await;
            self.chore_running.set(false);
            self.checkpoint_done.notify_all();
            match result {
                Ok(_) => {}
                Err(StoreError::Busy | StoreError::MetaFull | StoreError::HostFull) => {
                    self.chores.borrow_mut().push_back(chore);
                    self.ctx.sleep(CHORE_PAUSE).await;
                }
                Err(_) => break,
            }
        }
    }
}

/// Background work that the last mount did not finish.
pub(crate) async fn unfinished(forest: &Forest) -> Result<VecDeque<Chore>, MetaError> {
    let mut chores = VecDeque::new();
    let mut from = schema::fid_key(DEAD, Fid::MIN).to_vec();
    while let Some((key, _)) = retry(forest, || forest.next(TreeId::Cob, &from)).await? {
        let Some(fid) = schema::key_fid(DEAD, &key) else { break };
        chores.push_back(Chore::Free(fid));
        from = key;
        from.push(0);
    }
    let mut fence = schema::fence_key(SessionId(0)).to_vec();
    while let Some((key, value)) = retry(forest, || forest.next(TreeId::Cob, &fence)).await? {
        let Some(first) = schema::key_number(FENCE, &key) else { break };
        let last = apply::fence_end(&value)?.0;
        let mut session = first;
        loop {
            let from = schema::fid_key(TOMB, Fid::new(SessionId(session), 0));
            let tomb = retry(forest, || forest.next(TreeId::Cob, &from)).await?;
            let found = tomb.and_then(|(key, _)| schema::key_fid(TOMB, &key));
            let Some(fid) = found.filter(|fid| fid.session.0 <= last) else { break };
            chores.push_back(Chore::Tombs(fid.session));
            match fid.session.0.checked_add(1) {
                Some(next) if next <= last => session = next,
                _ => break,
            }
        }
        fence = key;
        fence.push(0);
    }
    Ok(chores)
}
