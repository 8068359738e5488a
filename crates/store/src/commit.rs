//! The group commit: one task that gives transactions their lsns, judges them, writes them as one
//! record, applies them once it is durable, and answers in lsn order.
//!
//! A transaction is judged over the trees and everything before it in its group: with one record in
//! flight, that is everything before it, pending or applied. Refusals wait for their group as well,
//! since what they were judged against must be durable before anybody hears of it (I9).

use crate::alloc_rows;
use crate::apply::{self, Effects, Halt};
use crate::ctg::{self, CtgOp, CtgView};
use crate::error::StoreError;
use crate::inline::Promise;
use crate::intent::{self, Inline, Intent};
use crate::stage::Stage;
use crate::store::{Applied, Core};
use crate::tree::{EpochGuard, Miss};
use crate::tx::{Extent, Leaves, Reservations, TxClass};
use cobalt_base::Lsn;
use cobalt_base::canary::{Canary, planted};
use cobalt_reactor::Step;
use cobalt_reactor::sync::{OneSender, oneshot};
use std::mem::take;
use std::rc::Rc;

/// Nodes that one transaction may miss, one after the other, before it is refused.
const ATTEMPTS_MAX: usize = 4096;
/// Checkpoints that a transaction waits for, one after the other, before the meta region counts as full for it.
const WAITS_MAX: u32 = 64;

/// Bytes that a transaction takes in the payload, as a rule.
const TX_PAYLOAD: usize = 64;

type Decide = Box<dyn Fn(&CtgView) -> Result<Vec<CtgOp>, Miss>>;

/// What a transaction wants: known before, or decided when it takes its lsn.
pub(crate) enum Kind {
    Fixed(Vec<Intent>),
    Decide(Decide),
}

/// A transaction on its way into a group.
pub(crate) struct Work {
    class: TxClass,
    kind: Kind,
    /// Journal space; held until the record is written.
    _room: Option<crate::journal::ring::Room>,
    pub(crate) reservations: Reservations,
    /// Of its first intent, if that is a map.
    pub(crate) leaves: Leaves,
    pub(crate) epoch: Option<EpochGuard>,
    /// Its place among the unwritten bytes, until it is applied.
    pub(crate) promise: Option<Promise>,
    reply: Option<OneSender<Result<Lsn, StoreError>>>,
    /// Checkpoints it has waited for, for node blocks.
    waited: u32,
}

impl Work {
    pub(crate) fn new(class: TxClass, kind: Kind, room: Option<crate::journal::ring::Room>) -> Work {
        Work {
            class,
            kind,
            _room: room,
            reservations: Reservations::new(),
            leaves: [None; 2],
            epoch: None,
            promise: None,
            reply: None,
            waited: 0,
        }
    }

    fn answer(&mut self, result: Result<Lsn, StoreError>) {
        if let Some(reply) = self.reply.take() {
            reply.send(result);
        }
    }
}

/// A judged member of the group.
struct Member {
    work: Work,
    result: Result<Lsn, StoreError>,
    fx: Effects,
}

/// The group that is being put together.
struct Group {
    stage: Rc<Stage>,
    members: Vec<Member>,
    payload: Vec<u8>,
    first: u64,
    count: u32,
    named: u64,
    /// Blocks that its members take and free.
    taken: Vec<Extent>,
    freed: Vec<Extent>,
}

impl Group {
    /// Takes back what an attempt put on the stage and behind the payload.
    fn take_back(&mut self, payload: usize) {
        self.stage.rollback();
        self.payload.truncate(payload);
    }
}

/// What became of one transaction's attempt.
enum Judged {
    /// It changes something, and is in the payload.
    Wants(Effects),
    /// It changes nothing.
    Nothing(Effects),
    Refused(StoreError),
    /// It does not fit this group any more.
    Later,
}

impl Core {
    /// Hands a transaction to the group commit; its lsn once it is durable and applied. When the caller
    /// goes away, the transaction runs on.
    pub(crate) async fn submit(&self, mut work: Work) -> Result<Lsn, StoreError> {
        self.alive()?;
        if work.class != TxClass::Checkpoint
            && self.queue.borrow().len() + self.parked.borrow().len() >= self.limits.queue_txs
        {
            return Err(StoreError::Busy);
        }
        let (reply, answer) = oneshot();
        work.reply = Some(reply);
        self.queue.borrow_mut().push_back(work);
        self.arrived.notify_all();
        match answer.await {
            Some(result) => result,
            None => Err(self.alive().err().unwrap_or(StoreError::Closed)),
        }
    }

    /// The task. Ends when the target has failed or is closed.
    pub(crate) async fn commit_loop(self: Rc<Core>) {
        let mut quiet_owed = false;
        loop {
            if self.alive().is_err() || (self.stop.get() && self.queue.borrow().is_empty()) {
                break;
            }
            if self.queue.borrow().is_empty() {
                let wait = async {
                    while self.queue.borrow().is_empty() && !self.stop.get() && self.alive().is_ok() {
                        self.arrived.notified().await;
                    }
                };
                if !quiet_owed {
                    wait.await;
                } else if self.ctx.timeout(self.limits.quiet, wait).await.is_err() {
                    // Nothing followed: say that the last group is durable, so that its rot is seen too.
                    quiet_owed = false;
                    if !self.journal.has_room_to_spare() {
                        // The checkpoint that is due says it with the record that names it.
                        self.kick_checkpoint();
                        continue;
                    }
                    if let Err(e) = self.journal.write(0, 0, &[]).await {
                        self.fail(&format!("journal write failed: {e}"));
                    }
                    self.count(|c| c.journal_empties += 1);
                }
                continue;
            }
            match self.run_group().await {
                Ok(wrote) => quiet_owed |= wrote,
                Err(error) => self.fail(&error.to_string()),
            }
            self.group_done.notify_all();
        }
        let mut left: Vec<Work> = self.queue.borrow_mut().drain(..).collect();
        left.extend(self.parked.borrow_mut().drain(..));
        let why = self.alive().err().unwrap_or(StoreError::Closed);
        for mut work in left {
            work.answer(Err(why.clone()));
        }
        self.committer_done.set(true);
        self.arrived.notify_all();
    }

    /// One group, from judging to answering. True when a record was written.
    async fn run_group(&self) -> Result<bool, StoreError> {
        let _epoch = self.forest.epoch();
        // Those who wait now are most of the group: what it grows to is not copied while it grows.
        let txs = self.queue.borrow().len().min(self.limits.group_txs);
        let mut group = Group {
            stage: Rc::new(Stage::holding(self.forest.clone(), txs)),
            members: Vec::with_capacity(txs),
            payload: Vec::with_capacity(txs * TX_PAYLOAD),
            first: self.journal.next_lsn.get(),
            count: 0,
            named: 0,
            taken: Vec::with_capacity(txs),
            freed: Vec::with_capacity(txs),
        };
        let mut staged = self.gather(&mut group).await;
        if staged.is_ok() {
            staged = self.settle_blocks(&group).await;
        }
        if let Err(error) = staged {
            // The trees contradict themselves: nothing of this group is durable, and nothing is answered with success.
            for member in &mut group.members {
                member.work.answer(Err(StoreError::Failed { why: error.to_string() }));
            }
            return Err(error);
        }
        let wrote = group.count > 0;
        if planted(Canary::FreeBeforeDurable) {
            for member in group.members.iter().filter(|m| m.result.is_ok()) {
                member.work.reservations.iter().for_each(|r| r.consume());
            }
            self.release_blocks(self.balloc.free(take(&mut group.freed)));
        }
        if wrote && let Err(error) = self.make_durable(&group).await {
            for member in &mut group.members {
                member.work.answer(Err(StoreError::Failed { why: error.to_string() }));
            }
            return Err(error);
        }
        for mut member in group.members {
            match member.result {
                Ok(lsn) => self.absorb(&member.work, member.fx, lsn),
                Err(_) => self.count(|c| c.refused += 1),
            }
            member.work.answer(member.result);
        }
        if !group.freed.is_empty() {
            self.release_blocks(self.balloc.free(group.freed));
        }
        self.kick_if_due();
        Ok(wrote)
    }

    /// Judges transactions in their order until the group is full or none waits.
    async fn gather(&self, group: &mut Group) -> Result<(), StoreError> {
        loop {
            if group.members.len() >= self.limits.group_txs {
                return Ok(());
            }
            let Some(mut work) = self.queue.borrow_mut().pop_front() else { return Ok(()) };
            let lsn = Lsn(group.first + u64::from(group.count));
            match self.judge(group, &work, lsn).await? {
                Judged::Nothing(fx) => {
                    if planted(Canary::RefusalBeforeDurable) {
                        work.answer(Ok(Lsn(lsn.0 - 1)));
                    }
                    group.members.push(Member { work, result: Ok(Lsn(lsn.0 - 1)), fx });
                }
                Judged::Wants(fx) => {
                    group.stage.savepoint();
                    group.count += 1;
                    group.named = group.named.max(fx.named);
                    group.taken.extend_from_slice(&fx.taken);
                    group.freed.extend_from_slice(&fx.freed);
                    group.members.push(Member { work, result: Ok(lsn), fx });
                }
                Judged::Refused(StoreError::MetaFull)
                    if work.waited < WAITS_MAX && self.checkpoint_frees() =>
                {
                    // What the next checkpoint gives back may do.
                    work.waited += 1;
                    self.parked.borrow_mut().push_back(work);
                }
                Judged::Refused(error) => {
                    if planted(Canary::RefusalBeforeDurable) {
                        work.answer(Err(error.clone()));
                    }
                    group.members.push(Member { work, result: Err(error), fx: Effects::default() });
                }
                Judged::Later => {
                    self.queue.borrow_mut().push_front(work);
                    return Ok(());
                }
            }
        }
    }

    async fn judge(&self, group: &mut Group, work: &Work, lsn: Lsn) -> Result<Judged, StoreError> {
        let before = group.payload.len();
        let mut counted = None;
        for _ in 0..ATTEMPTS_MAX {
            let mut fx = Effects::default();
            let attempt = self.attempt(group, work, lsn, &mut fx);
            if attempt.is_ok() {
                // Whatever is brought: nobody else changes what was judged.
                group.stage.bring_new().await?;
            }
            let halt = match attempt {
                Ok(()) if group.payload.len() == before => return Ok(Judged::Nothing(fx)),
                Ok(()) => match self.fits(group, work.class, &fx, counted) {
                    Ok(true) => return Ok(Judged::Wants(fx)),
                    Ok(false) => {
                        group.take_back(before);
                        return Ok(Judged::Later);
                    }
                    // Not at worst: what it really changes may fit.
                    Err(StoreError::MetaFull) if counted.is_none() => match self.count_changes(group, &fx) {
                        Ok(changes) => {
                            counted = Some(changes);
                            group.take_back(before);
                            continue;
                        }
                        Err(halt) => halt,
                    },
                    Err(error) => Halt::Refused(error),
                },
                Err(halt) => halt,
            };
            group.take_back(before);
            match halt {
                Halt::Miss(miss) => self.forest.load_held(miss).await?,
                Halt::Refused(error) => return Ok(Judged::Refused(error)),
                Halt::Corrupt(corrupt) => return Err(corrupt.into()),
            }
        }
        Ok(Judged::Refused(StoreError::Invalid("a decision looks at more than the node cache holds".into())))
    }

    /// Puts one transaction's changes on the stage, and its intents behind the payload.
    fn attempt(&self, group: &mut Group, work: &Work, lsn: Lsn, fx: &mut Effects) -> Result<(), Halt> {
        match &work.kind {
            Kind::Fixed(intents) => {
                if let Some(Intent::Map(map) | Intent::Inline(Inline { map, .. })) = intents.first() {
                    apply::expect(&group.stage, map, work.leaves);
                }
                apply::run(&group.stage, self.shape, lsn, intents, fx)?;
                if !intents.is_empty() {
                    intent::encode(intents, &mut group.payload);
                }
            }
            Kind::Decide(decide) => {
                let stage = match planted(Canary::ConditionOnApplied) {
                    false => group.stage.clone(),
                    true => Rc::new(Stage::new(self.forest.clone())),
                };
                let ops = decide(&CtgView { stage, lsn })?;
                let (entry, key) = (self.forest.entry_max(), self.forest.key_max());
                ctg::check_ops(&ops, entry, key, self.ctg_tx).map_err(Halt::Refused)?;
                ops.iter().for_each(|op| apply::change_ctg(&group.stage, op));
                if !ops.is_empty() {
                    ctg::encode(&ops, &mut group.payload);
                }
            }
        }
        Ok(())
    }

    /// Puts the blocks that the group and its last one take and free on the stage, too: all that will be changed.
    fn count_changes(&self, group: &Group, fx: &Effects) -> Result<usize, Halt> {
        let taken = [group.taken.as_slice(), &fx.taken].concat();
        let freed = [group.freed.as_slice(), &fx.freed].concat();
        alloc_rows::settle(&group.stage, self.shape, &taken, &freed)?;
        group.stage.touch_new()?;
        Ok(group.stage.len())
    }

    /// Whether the group had room for the one that is its last now; an error when it never will. Changes that were not
    /// counted are as many as can be at most.
    fn fits(
        &self,
        group: &Group,
        class: TxClass,
        fx: &Effects,
        counted: Option<usize>,
    ) -> Result<bool, StoreError> {
        let payload = group.payload.len();
        if group.count > 0 && payload > self.limits.group_bytes as usize {
            return Ok(false);
        }
        if payload > self.journal.payload_max() {
            return if group.count > 0 { Ok(false) } else { Err(StoreError::Invalid("too large".into())) };
        }
        // A change in the trees takes node blocks; it must not find none once its record is durable.
        let extents = group.taken.len() + group.freed.len() + fx.taken.len() + fx.freed.len();
        let changes = counted.unwrap_or(group.stage.len() + extents * alloc_rows::CHANGES_MAX);
        let needed = changes as u64 * self.forest.blocks_per_op();
        let keep = if class == TxClass::Write || class == TxClass::Cas { self.meta_reserve() } else { 0 };
        if needed > 0 && self.forest.meta_free() < needed + keep {
            self.kick_checkpoint();
            return if group.count > 0 { Ok(false) } else { Err(StoreError::MetaFull) };
        }
        Ok(true)
    }

    /// Enters the blocks that the group takes and frees, all at once: most that are taken are neighbours.
    async fn settle_blocks(&self, group: &Group) -> Result<(), StoreError> {
        loop {
            let settled = alloc_rows::settle(&group.stage, self.shape, &group.taken, &group.freed);
            match settled {
                Ok(()) => {
                    group.stage.bring_new().await?;
                    group.stage.savepoint();
                    return Ok(());
                }
                Err(Halt::Miss(miss)) => {
                    group.stage.rollback();
                    self.forest.load_held(miss).await?;
                }
                Err(Halt::Corrupt(corrupt)) => return Err(corrupt.into()),
                Err(Halt::Refused(error)) => return Err(error),
            }
        }
    }

    /// Writes the group's record, then applies it.
    async fn make_durable(&self, group: &Group) -> Result<(), StoreError> {
        self.ctx.step(Step::JournalWrite);
        if planted(Canary::ApplyBeforeDurable) {
            self.put_in(group).await?;
        }
        let written = self.journal.write(group.count, group.named, &group.payload).await;
        written.map_err(|e| StoreError::Failed { why: format!("journal write failed: {e}") })?;
        self.put_in(group).await?;
        // Same turn as the change: a checkpoint sees either all of the group or nothing of it.
        self.applied.set(Applied {
            lsn: Lsn(self.journal.next_lsn.get() - 1),
            position: self.journal.head(),
            chain: self.journal.chain.get(),
        });
        self.since_freeze.set(self.since_freeze.get() + u64::from(group.count) - u64::from(group.named > 0));
        self.count(|c| {
            c.groups += 1;
            c.txs += u64::from(group.count);
        });
        Ok(())
    }

    /// Puts the group's changes into the trees.
    async fn put_in(&self, group: &Group) -> Result<(), StoreError> {
        while let Err(miss) = group.stage.touch() {
            self.count(|c| c.apply_misses += 1);
            self.forest.load(miss).await?;
        }
        let put = group.stage.mutate();
        put.map_err(|miss| StoreError::Failed {
            why: format!("a pinned node or block was not there: {miss:?}"),
        })
    }

    /// Takes over what an applied transaction means for the state in memory.
    fn absorb(&self, work: &Work, fx: Effects, lsn: Lsn) {
        self.unwritten.take_over(&fx, lsn);
        let Effects { dead, fenced, .. } = fx;
        for reservation in &work.reservations {
            reservation.consume();
        }
        if fenced.is_some() {
            self.unfenced.set(None);
        }
        self.add_chores(dead, fenced);
    }
}
