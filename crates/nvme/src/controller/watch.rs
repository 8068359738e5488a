//! What does not come by itself: commands that are late, a controller that failed, a device that is gone, events.
//!
//! A late command is aborted; when neither it nor its abort ends it, the controller is reset. A reset begins with the proof
//! that the device has let go of all memory; then each command is issued again or answered, exactly once.

use super::stop::{DmaStopped, StoppedBy};
use super::{Controller, Fault, Inner, Life, failed, repeats};
use crate::admin::{self, AdminWork, take_slot};
use crate::function::Function;
use crate::request::{Stage, span};
use crate::spec::log::Smart;
use crate::spec::registers::{self, Csts};
use crate::spec::{Command, admin as opcode};
use cobalt_bdev::IoError;
use cobalt_reactor::sync::Notify;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Types of asynchronous events (Base 5.2.1).
const EVENT_ERROR: u32 = 0;
const EVENT_HEALTH: u32 = 1;

/// Looks after a controller until it is closed or gone.
pub(super) async fn watch<F: Function>(controller: Weak<Controller<F>>, news: Rc<Notify>) {
    loop {
        let Some(held) = controller.upgrade() else { return };
        if !matches!(held.life(), Life::Starting | Life::Ready) {
            return;
        }
        held.look().await;
        if held.has_news_of_its_own() && !held.telling.replace(true) {
            // Apart from this: a log page that does not come is one of the things that are looked after here.
            let telling = held.clone();
            held.ctx.spawn(async move {
                telling.tell_events().await;
                telling.telling.set(false);
            });
        }
        let (ctx, pause) = (held.ctx.clone(), held.pause());
        drop(held);
        let _ = ctx.timeout(pause, news.notified()).await;
    }
}

impl<F: Function> Controller<F> {
    /// Until the next look, unless there is news.
    fn pause(&self) -> Duration {
        let inner = self.inner.borrow();
        let every = self.limits.health_every;
        if inner.requests.is_empty() && inner.admin_slots.iter().all(|slot| slot.due.is_none()) {
            return every * 2;
        }
        let waiting = inner.slots.iter().filter(|slot| slot.stage == Stage::Waiting).map(|slot| slot.due);
        waiting
            .min()
            .map_or(every, |due| if due > inner.now { (due - inner.now).min(every) } else { Duration::ZERO })
    }

    async fn look(&self) {
        if !matches!(self.life(), Life::Starting | Life::Ready) {
            return; // Closed meanwhile.
        }
        self.inner.borrow_mut().now = self.ctx.now();
        if self.function.removed() {
            self.fault(Fault::Gone);
        } else {
            let enabled = self.inner.borrow().enabled;
            match self.health() {
                Some(Fault::Gone) => self.fault(Fault::Gone),
                Some(fault) if enabled => self.fault(fault),
                _ => {}
            }
        }
        self.chase_late();
        if self.inner.borrow().fault.is_some() {
            self.recover().await;
        }
        self.send_answers();
        self.tend_interrupt().await;
    }

    /// Whether events wait to be told.
    fn has_news_of_its_own(&self) -> bool {
        !self.inner.borrow().events.is_empty()
    }

    /// Whether nobody is behind the registers: they read as ones, or on some buses as zeros. That is no CSTS.RDY = 0.
    pub(super) fn absent(&self) -> bool {
        Csts(self.function.read32(registers::CSTS)).gone() || self.function.read32(registers::VS) == 0
    }

    /// What the registers of an enabled controller say that is wrong with it.
    pub(crate) fn health(&self) -> Option<Fault> {
        let csts = Csts(self.function.read32(registers::CSTS));
        match () {
            () if self.absent() => Some(Fault::Gone),
            () if csts.fatal() => Some(Fault::Fatal),
            () if !csts.ready() => Some(Fault::Lost),
            () => None,
        }
    }

    /// Aborts what is late, resets for what is late in spite of that, issues what has waited.
    fn chase_late(&self) {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        if inner.life != Life::Ready || inner.fault.is_some() {
            return;
        }
        let now = inner.now;
        for index in 0..inner.slots.len() {
            let slot = inner.slots[index];
            match slot.stage {
                Stage::Waiting if slot.due <= now => {
                    if inner.requests[slot.request].error.is_some() {
                        inner.finish(index, &mut self.answers.borrow_mut());
                    } else {
                        inner.issue(index as u8, &self.limits);
                    }
                }
                Stage::Issued if slot.due <= now => inner.abort(index, &self.limits),
                Stage::Aborting if slot.due <= now => inner.raise(Fault::Timeout),
                _ => {}
            }
        }
        if inner.admin_slots.iter().any(|slot| slot.work.is_some() && slot.due.is_some_and(|due| due <= now))
        {
            inner.raise(Fault::AdminTimeout("Abort"));
        }
    }

    /// Resets the controller, as often as it takes or the limit allows.
    async fn recover(&self) {
        loop {
            self.inner.borrow_mut().life = Life::Starting;
            self.detach_interrupt().await;
            self.note_loss();
            let stopped = self.stop_dma().await;
            let settled = self.settle(stopped);
            self.send_answers();
            let Some(stopped) = settled else {
                // Nobody will use it: whoever wants the device back, or takes it out, waits for its descriptors.
                return self.function.release(&self.ctx).await;
            };
            match self.bring_up(stopped).await {
                Ok(()) if self.inner.borrow().fault.is_none() => {
                    self.inner.borrow_mut().life = Life::Ready;
                    self.chase_late();
                    return;
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(controller = self.function.name(), %error, "a reset did not bring it back");
                    self.inner.borrow_mut().raise(Fault::Timeout);
                }
            }
        }
    }

    /// Why it is reset, as it stands before it is: what its cache held is lost with its power, whatever showed it first.
    fn note_loss(&self) {
        let csts = Csts(self.function.read32(registers::CSTS));
        let mut inner = self.inner.borrow_mut();
        if inner.enabled && !csts.gone() && inner.fault != Some(Fault::Gone) && !csts.ready() {
            inner.fault = Some(Fault::Lost);
        }
        if csts.fatal() && !csts.gone() && inner.fault != Some(Fault::Gone) {
            inner.fault = Some(Fault::Fatal);
        }
    }

    /// The device has stopped, or nothing proves it: what becomes of its commands. The proof is given back if the controller
    /// may go on.
    fn settle(&self, stopped: Option<DmaStopped>) -> Option<DmaStopped> {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        // Stopping may have shown that it is gone.
        let fault = inner.fault.unwrap_or(Fault::Timeout);
        let gone = fault == Fault::Gone;
        inner.counters.resets += 1;
        inner.resets_in_row += 1;
        let resets = inner.counters.resets;
        tracing::warn!(
            controller = self.function.name(),
            ?fault,
            stopped = ?stopped.as_ref().map(|s| s.by),
            resets,
            "the controller is reset"
        );
        // Nobody is answered any more. Where the device may still write the page of a command, that is given up below.
        inner.admin_slots = admin::slots();
        let Some(stopped) = stopped else {
            inner.life = if gone { Life::Gone } else { Life::Failed("it cannot be stopped".into()) };
            inner.leak();
            return None;
        };
        let unclean = matches!(fault, Fault::Fatal | Fault::Lost) || stopped.by == StoppedBy::FunctionReset;
        inner.cache_doubt |= unclean && inner.has_unflushed();
        self.take_back(inner, fault);
        if !gone && inner.resets_in_row <= self.limits.resets && stopped.by.can_go_on() {
            return Some(stopped);
        }
        let why = format!("the controller was given up after {resets} resets ({fault:?})");
        inner.life = if gone { Life::Gone } else { Life::Failed(why) };
        inner.stopped = Some(stopped);
        self.answer_all(inner);
        None
    }

    /// What the controller had is ours again. It is issued once more, where that is allowed, or answered.
    fn take_back(&self, inner: &mut Inner, fault: Fault) {
        for index in 0..inner.slots.len() {
            let slot = inner.slots[index];
            if !matches!(slot.stage, Stage::Issued | Stage::Aborting) {
                continue;
            }
            let request = &mut inner.requests[slot.request];
            if repeats(request) && slot.retries < self.limits.retries {
                let slot = &mut inner.slots[index];
                (slot.stage, slot.due) = (Stage::Waiting, inner.now);
                slot.retries += 1;
                inner.counters.retries += 1;
            } else {
                let why = format!("lost in a reset of the controller ({fault:?})");
                request.fail(failed(request.span_of(slot.part), &why));
                inner.finish(index, &mut self.answers.borrow_mut());
            }
        }
    }

    /// Nothing will be issued any more: everybody who waits is told.
    fn answer_all(&self, inner: &mut Inner) {
        let error = |op: &cobalt_bdev::Op| match &inner.life {
            Life::Failed(why) => failed(span(op), why),
            _ => IoError::Gone,
        };
        let keys: Vec<(usize, IoError)> =
            inner.requests.iter().map(|(key, request)| (key, error(&request.io.op))).collect();
        for (key, error) in keys {
            inner.requests[key].error.get_or_insert(error);
            inner.answer(key, &mut self.answers.borrow_mut());
        }
        inner.ready.clear();
        for slot in &mut inner.slots {
            slot.stage = Stage::Free;
        }
    }

    /// Attaches the interrupt when the reactor wants to sleep on running commands; takes it back when it no longer sleeps.
    async fn tend_interrupt(&self) {
        if self.life() != Life::Ready {
            return;
        }
        match self.interrupt.get() {
            None if self.wants_interrupt.get() => match self.function.arm_interrupt(&self.ctx).await {
                // Closed meanwhile: the descriptor is about to be closed, too.
                Ok(_) if self.life() != Life::Ready => {}
                Ok(fd) => {
                    self.interrupt.set(Some(fd));
                    self.inner.borrow_mut().counters.armed += 1;
                }
                // Polling goes on.
                Err(error) => tracing::debug!(controller = self.function.name(), %error, "no interrupt"),
            },
            Some(_) if !self.parked.replace(false) => self.detach_interrupt().await,
            _ => {}
        }
        self.wants_interrupt.set(false);
    }

    pub(super) async fn detach_interrupt(&self) {
        if self.interrupt.take().is_some() {
            let _ = self.function.disarm_interrupt(&self.ctx).await;
        }
    }

    /// Says what the controller reported, reads the page that tells more (which clears the event), and asks again.
    async fn tell_events(&self) {
        while self.life() == Life::Ready {
            let Some(event) = self.inner.borrow_mut().events.pop_front() else { return };
            self.inner.borrow_mut().counters.events += 1;
            let (kind, info, page) = (event & 7, event >> 8 & 0xff, event >> 16 & 0xff);
            match kind {
                EVENT_ERROR => {
                    tracing::error!(controller = self.function.name(), info, "it reports an error")
                }
                EVENT_HEALTH => match self.log_page::<Smart>().await {
                    Ok(smart) => tracing::warn!(
                        controller = self.function.name(),
                        warnings = smart.warnings().join(", "),
                        celsius = smart.celsius(),
                        spare = smart.spare,
                        used = smart.used,
                        "it reports its health"
                    ),
                    Err(error) => tracing::warn!(%error, "its health cannot be read"),
                },
                _ => tracing::info!(controller = self.function.name(), kind, info, "it reports an event"),
            }
            if kind != EVENT_HEALTH && page != 0 {
                // Until its page is read, events of its kind are masked (Base 5.2).
                let _ = self.clear_event(page).await;
            }
            self.ask_for_events();
        }
    }
}

impl Inner {
    /// Sends an abort for a late command. One at a time: every controller takes that many (ACL).
    fn abort(&mut self, index: usize, limits: &crate::limits::Limits) {
        if self.admin_slots.iter().any(|slot| matches!(slot.work, Some(AdminWork::Abort(_)))) {
            return;
        }
        let due = Some(self.now + limits.admin_time);
        let work = AdminWork::Abort(index as u8);
        let Some(cid) = take_slot(&mut self.admin_slots, work, due) else { return };
        let slot = &mut self.slots[index];
        slot.stage = Stage::Aborting;
        slot.due = self.now + limits.abort_time;
        self.counters.timeouts += 1;
        self.counters.aborts += 1;
        let target = u32::from(slot.generation) << 8 | index as u32;
        let Some(queues) = &mut self.queues else { return };
        let mut command = Command::new(opcode::ABORT, 0);
        command.cid = cid.into();
        command.cdw10 = (target << 16 | u32::from(queues.io.id())).into();
        queues.admin.push(&command);
    }
}
