//! A controller on a reactor: one admin queue pair, one I/O queue pair, polled. What arrives is answered here; what does not
//! arrive is dealt with by `watch`, and how it comes up and goes down is in `bring_up` and `stop`.

mod bring_up;
mod stop;
mod watch;

pub use stop::DmaStopped;

use crate::admin::{self, AdminSlot, AdminWork};
use crate::error::NvmeError;
use crate::function::Function;
use crate::limits::Limits;
use crate::memory::{Maps, PAGE, Shared};
use crate::namespace::Namespace;
use crate::pointer::{self, List, Pointer};
use crate::qpair::{QueueCounters, QueuePair, ShadowDoorbells};
use crate::request::{Request, Slot, Span, Stage, span};
use crate::spec::command::{DEALLOCATE, DsmRange};
use crate::spec::{Command, Completion, Status, nvm};
use cobalt_base::Nanos;
#[cfg(feature = "proof")]
use cobalt_base::canary::{Canary, planted};
use cobalt_bdev::{Done, Io, IoError, Op};
use cobalt_dma::{Arena, Buf};
use cobalt_reactor::sync::{Notify, Semaphore};
use cobalt_reactor::{Ctx, Park, Poller};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};

/// Why a controller is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A command was neither answered nor aborted in time.
    Timeout,
    /// The same of an admin command.
    AdminTimeout(&'static str),
    /// A completion that belongs to no command: what else is wrong is unknown.
    Unexpected,
    /// Controller Fatal Status.
    Fatal,
    /// It is no longer ready, though nobody disabled it: it lost its power, or its subsystem was reset.
    Lost,
    /// It is gone, or asked for.
    Gone,
}

/// What a controller is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// It comes up, or is being reset: operations wait.
    Starting,
    Ready,
    /// Given up: operations fail with this.
    Failed(String),
    /// Removed.
    Gone,
    /// Shut down.
    Closed,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Life::Starting => "starting",
            Life::Ready => "ready",
            Life::Failed(_) => "failed",
            Life::Gone => "gone",
            Life::Closed => "closed",
        })
    }
}

/// Exact counts of a controller's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of the I/O queue pair.
    pub io: QueueCounters,
    /// Commands whose data is one SGL descriptor, and those that have a list of them. All others have PRPs, or no data.
    pub sgl_blocks: u64,
    pub sgl_lists: u64,
    /// Commands that were issued again.
    pub retries: u64,
    pub timeouts: u64,
    pub aborts: u64,
    pub resets: u64,
    pub unexpected: u64,
    pub events: u64,
    /// Interrupts were attached so often: only to park.
    pub armed: u64,
    /// Operations whose memory is never used again, since nothing proves that the device has let go of it.
    pub leaked: u64,
}

/// Who the controller is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub serial: String,
    pub model: String,
    pub firmware: String,
    /// Most bytes of one command.
    pub transfer_max: u64,
    /// Dataset Management is there.
    pub deallocates: bool,
    /// Get Features 06h: completed writes need a flush.
    pub volatile_cache: bool,
    /// Shadow doorbells are offered, and used.
    pub shadow_doorbells: bool,
    /// Most SGL descriptors of a command; zero: SGLs are not offered, or not used.
    pub sgl_max: u32,
    /// Longest shutdown that it announces, in microseconds; zero is unknown.
    pub shutdown_us: u32,
}

pub(crate) struct Queues {
    pub admin: QueuePair,
    pub io: QueuePair,
    pub shadow: Option<ShadowDoorbells>,
    /// Whether the controller was told of them.
    pub shadow_used: bool,
    /// One page for each slot: of PRP entries, SGL descriptors or ranges.
    pub lists: Shared,
    /// What admin commands fill.
    pub page: Shared,
}

pub(crate) struct Inner {
    pub life: Life,
    /// The controller works on the queues: completions are believed.
    pub enabled: bool,
    pub fault: Option<Fault>,
    pub maps: Maps,
    pub queues: Option<Queues>,
    pub slots: Vec<Slot>,
    pub free: Vec<u8>,
    pub requests: Slab<Request>,
    /// Requests with commands to issue, first come first served.
    pub ready: VecDeque<usize>,
    pub admin_slots: Vec<AdminSlot>,
    pub identity: Identity,
    pub namespaces: Vec<Namespace>,
    /// Unflushed writes may be lost: no flush may say otherwise.
    pub cache_doubt: bool,
    pub counters: Counters,
    /// As of the last look of `watch`: deadlines need no clock of their own.
    pub now: Nanos,
    /// Resets since the last command that succeeded.
    pub resets_in_row: u32,
    pub events: VecDeque<u32>,
    /// Nothing reaches memory any more: it may go back.
    pub stopped: Option<DmaStopped>,
}

type Answer = (Done, Result<Option<Buf>, IoError>);

/// A controller. Dropped without [`Controller::close`], it leaves its memory where it is, for ever.
pub struct Controller<F: Function> {
    pub(crate) ctx: Ctx,
    pub(crate) function: F,
    pub(crate) limits: Limits,
    pub(crate) inner: RefCell<Inner>,
    /// `watch` has something to do.
    pub(crate) news: Rc<Notify>,
    /// The right to use the page of admin commands.
    pub(crate) page: Semaphore,
    answers: RefCell<Vec<Answer>>,
    /// The interrupt's descriptor, while it is attached.
    interrupt: Cell<Option<RawFd>>,
    wants_interrupt: Cell<bool>,
    parked: Cell<bool>,
    /// A task tells what the controller has reported.
    telling: Cell<bool>,
}

impl<F: Function> Controller<F> {
    fn new(ctx: Ctx, function: F, limits: Limits) -> Controller<F> {
        let inner = Inner {
            life: Life::Starting,
            enabled: false,
            fault: None,
            maps: Maps::default(),
            queues: None,
            slots: Vec::new(),
            free: Vec::new(),
            requests: Slab::new(),
            ready: VecDeque::new(),
            admin_slots: admin::slots(),
            identity: Identity::default(),
            namespaces: Vec::new(),
            cache_doubt: false,
            counters: Counters::default(),
            now: ctx.now(),
            resets_in_row: 0,
            events: VecDeque::new(),
            stopped: None,
        };
        Controller {
            ctx,
            function,
            limits,
            inner: RefCell::new(inner),
            news: Rc::new(Notify::default()),
            page: Semaphore::new(1),
            answers: RefCell::default(),
            interrupt: Cell::new(None),
            wants_interrupt: Cell::new(false),
            parked: Cell::new(false),
            telling: Cell::new(false),
        }
    }

    /// Brings a controller up, whatever state it is in. All memory that operations will use lies in `arenas`; the queues
    /// are taken from the first.
    ///
    /// # Errors
    /// [`NvmeError`]: it is gone, does not become ready, or lacks what the driver needs. Nothing was written to a namespace.
    pub async fn open(
        ctx: &Ctx,
        function: F,
        arenas: &[Arena],
        limits: Limits,
    ) -> Result<Rc<Controller<F>>, NvmeError> {
        let controller = Rc::new(Controller::new(ctx.clone(), function, limits));
        ctx.add_poller(Rc::downgrade(&controller) as Weak<dyn Poller>);
        match controller.start(arenas).await {
            Ok(()) => {
                ctx.spawn(watch::watch(Rc::downgrade(&controller), controller.news.clone()));
                Ok(controller)
            }
            Err(error) => {
                let stopped = controller.stop_dma().await;
                let _ = controller.set_stopped(stopped);
                controller.function.release(ctx).await;
                Err(error)
            }
        }
    }

    /// What it is doing.
    pub fn life(&self) -> Life {
        self.inner.borrow().life.clone()
    }

    /// The counters now.
    pub fn counters(&self) -> Counters {
        let inner = self.inner.borrow();
        let io = inner.queues.as_ref().map(|q| q.io.counters()).unwrap_or_default();
        Counters { io, ..inner.counters }
    }

    /// Who it is.
    pub fn identity(&self) -> Identity {
        self.inner.borrow().identity.clone()
    }

    /// The function under it.
    pub fn function(&self) -> &F {
        &self.function
    }

    pub(crate) fn name(&self) -> String {
        self.function.name().to_owned()
    }

    pub(crate) fn unfit(&self, what: impl Into<String>) -> NvmeError {
        NvmeError::Unfit { controller: self.name(), what: what.into() }
    }

    /// Stops believing the controller; `watch` resets it.
    pub(crate) fn fault(&self, fault: Fault) {
        self.inner.borrow_mut().raise(fault);
        self.news.notify_all();
    }

    /// Takes an operation of a namespace.
    pub(crate) fn submit(&self, ns: usize, io: Io) {
        let refusal = {
            let mut inner = self.inner.borrow_mut();
            let refusal = match &inner.life {
                Life::Starting | Life::Ready if !pointer::reachable(&inner.maps, &io.op) => {
                    Some(failed(span(&io.op), "its memory is not mapped for the controller"))
                }
                Life::Starting | Life::Ready => None,
                Life::Failed(why) => Some(failed(span(&io.op), why)),
                Life::Gone | Life::Closed => Some(IoError::Gone),
            };
            if refusal.is_none() {
                let mut request = Request::new(io, ns, inner.identity.transfer_max);
                request.written = inner.namespaces[ns].written;
                let key = inner.requests.insert(request);
                inner.ready.push_back(key);
                inner.issue_ready(&self.limits);
                return;
            }
            (io, refusal)
        };
        if let (io, Some(error)) = refusal {
            io.done.send(Err(error));
        }
    }

    /// Operations that are not answered yet.
    pub fn in_flight(&self) -> usize {
        self.inner.borrow().requests.len()
    }

    fn send_answers(&self) -> bool {
        let mut answers = std::mem::take(&mut *self.answers.borrow_mut());
        let any = !answers.is_empty();
        for (done, result) in answers.drain(..) {
            done.send(result);
        }
        *self.answers.borrow_mut() = answers;
        any
    }

    /// Reaps, issues and rings. True when anything was done.
    fn turn(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        if !inner.enabled || inner.fault.is_some() {
            return false;
        }
        let (before, events) = (inner.counters, inner.events.len());
        let mut any = false;
        let mut answers = self.answers.borrow_mut();
        while let Some(completion) = inner.queues.as_mut().and_then(|queues| queues.io.pop()) {
            any = true;
            // One that has failed may go on completing; what its cache held is gone. Its word that something is durable is not enough.
            if inner.promises_durability(&completion)
                && let Some(fault) = self.health()
            {
                inner.raise(fault);
                break;
            }
            inner.complete(&completion, &self.limits, &mut answers);
            if inner.fault.is_some() {
                break;
            }
        }
        while let Some(completion) = inner.queues.as_mut().and_then(|queues| queues.admin.pop()) {
            any = true;
            inner.complete_admin(&completion, &mut answers);
            if inner.fault.is_some() {
                break;
            }
        }
        if inner.fault.is_some() || inner.events.len() > events || inner.counters.retries != before.retries {
            self.news.notify_all();
        }
        if inner.fault.is_none() {
            inner.issue_ready(&self.limits);
            if let Some(queues) = &mut inner.queues {
                any |= queues.admin.is_unrung() || queues.io.is_unrung();
                let shadow = queues.shadow.as_ref().filter(|_| queues.shadow_used);
                queues.io.ring(&self.function, shadow);
                queues.admin.ring(&self.function, shadow);
            }
        }
        any
    }
}

impl<F: Function> Poller for Controller<F> {
    fn poll(&self) -> bool {
        let any = self.turn();
        self.send_answers() | any
    }

    fn arm(&self) -> Park {
        let waits = {
            let inner = self.inner.borrow();
            let io = inner.free.len() < inner.slots.len();
            // An event may take for ever; every other admin command is waited for.
            let admin = inner
                .admin_slots
                .iter()
                .any(|slot| matches!(slot.work, Some(AdminWork::Answer(..) | AdminWork::Abort(_))));
            inner.enabled && inner.fault.is_none() && (io || admin)
        };
        match self.interrupt.get() {
            _ if !waits => Park::Idle,
            Some(fd) => {
                // What completed before the interrupt was attached raises none.
                self.parked.set(true);
                if self.poll() { Park::Busy } else { Park::Fd(fd) }
            }
            None => {
                if !self.wants_interrupt.replace(true) {
                    self.news.notify_all();
                }
                Park::Busy
            }
        }
    }

    fn disarm(&self) {
        // An eventfd stays readable until it is read: the next sleep would end at once.
        if let Some(fd) = self.interrupt.get() {
            drain(fd);
        }
    }
}

/// Takes what an eventfd has counted.
fn drain(fd: RawFd) {
    let mut count = [0u8; 8];
    // SAFETY: the function keeps the descriptor open until `disarm_interrupt`, before which `interrupt` is cleared; eight
    // bytes are written to `count` at most. It does not block; when nothing was counted, nothing is to be done.
    #[expect(unsafe_code)]
    let _ = unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) };
}

impl Inner {
    pub fn raise(&mut self, fault: Fault) {
        if fault == Fault::Gone || self.fault.is_none() {
            self.fault = Some(fault);
        }
    }

    /// Gives slots to what waits for one.
    fn issue_ready(&mut self, limits: &Limits) {
        if self.life != Life::Ready {
            return;
        }
        while let Some(&key) = self.ready.front() {
            let request = &mut self.requests[key];
            if request.issued >= request.parts {
                self.ready.pop_front();
                continue;
            }
            let Some(slot) = self.free.pop() else { return };
            let part = request.issued;
            request.issued += 1;
            self.slots[usize::from(slot)].request = key;
            self.slots[usize::from(slot)].part = part;
            self.slots[usize::from(slot)].retries = 0;
            self.issue(slot, limits);
        }
    }

    /// Writes a slot's command into the queue.
    pub fn issue(&mut self, index: u8, limits: &Limits) {
        let Inner { slots, requests, queues, namespaces, maps, now, identity, counters, .. } = self;
        let slot = &mut slots[usize::from(index)];
        let (request, Some(queues)) = (&requests[slot.request], queues) else {
            unreachable!("a ready controller has queues")
        };
        slot.generation = slot.generation.wrapping_add(1);
        #[cfg(feature = "proof")]
        if planted(Canary::NvmeNoGeneration) {
            slot.generation = 0;
        }
        slot.stage = Stage::Issued;
        slot.due = *now + if matches!(request.io.op, Op::Flush) { limits.flush_time } else { limits.io_time };
        let ns = &namespaces[request.ns];
        let span = request.span_of(slot.part);
        let list = List { pages: &queues.lists, at: usize::from(index) * PAGE };
        let blocks = span.len >> ns.block_shift;
        let slba = span.offset >> ns.block_shift;
        let mut command = match &request.io.op {
            Op::Read { .. } => Command::new(nvm::READ, ns.nsid).blocks(slba, blocks as u32),
            Op::Write { fua, .. } => {
                let write = Command::new(nvm::WRITE, ns.nsid).blocks(slba, blocks as u32);
                if *fua { write.fua() } else { write }
            }
            Op::Flush => Command::new(nvm::FLUSH, ns.nsid),
            Op::Deallocate { .. } => {
                let range = DsmRange { attributes: 0.into(), len: (blocks as u32).into(), slba: slba.into() };
                list.pages.write(list.at, &range);
                let mut command = Command::new(nvm::DATASET_MANAGEMENT, ns.nsid);
                command.prp1 = list.iova().into();
                command.cdw11 = DEALLOCATE.into();
                command
            }
        };
        command.cid = (u16::from(slot.generation) << 8 | u16::from(index)).into();
        let at = usize::try_from(u64::from(slot.part) * request.part).expect("an offset in memory");
        let len = usize::try_from(span.len).unwrap_or(0);
        let pointer = pointer::point(&mut command, maps, &request.io.op, at, len, list, identity.sgl_max);
        match pointer.expect("memory was checked when the operation came") {
            Pointer::Prps => {}
            Pointer::SglBlock => counters.sgl_blocks += 1,
            Pointer::SglList => counters.sgl_lists += 1,
        }
        queues.io.push(&command);
    }

    /// Whether a completion would say that the volatile cache was written back.
    fn promises_durability(&self, completion: &Completion) -> bool {
        let slot = self.slots.get(usize::from(completion.cid.get() & 0xff));
        let request =
            slot.filter(|slot| slot.stage != Stage::Free).and_then(|slot| self.requests.get(slot.request));
        self.identity.volatile_cache && request.is_some_and(|request| !request.may_repeat())
    }

    /// A completion of the I/O queue.
    fn complete(&mut self, completion: &Completion, limits: &Limits, answers: &mut Vec<Answer>) {
        let index = usize::from(completion.cid.get() & 0xff);
        let generation = (completion.cid.get() >> 8) as u8;
        let (id, entries) = self.queues.as_ref().map_or((0, 0), |q| (q.io.id(), q.io.entries()));
        let ours = self.slots.get(index).is_some_and(|slot| {
            slot.generation == generation && matches!(slot.stage, Stage::Issued | Stage::Aborting)
        });
        let placed = completion.sq_id.get() == id && u32::from(completion.sq_head.get()) < entries;
        if !ours || !placed {
            self.counters.unexpected += 1;
            return self.raise(Fault::Unexpected);
        }
        let (status, slot) = (completion.status(), self.slots[index]);
        let request = &mut self.requests[slot.request];
        if status.ok() {
            self.resets_in_row = 0;
        } else if status.may_retry() && repeats(request) && slot.retries < limits.retries {
            let slot = &mut self.slots[index];
            (slot.stage, slot.due) = (Stage::Waiting, self.now + limits.retry_after);
            slot.retries += 1;
            self.counters.retries += 1;
            return;
        } else {
            let why = match slot.stage {
                Stage::Aborting => format!("not done in time: {status}"),
                _ => status.to_string(),
            };
            request.fail(failed(request.span_of(slot.part), &why));
        }
        self.finish(index, answers);
    }

    /// Slot `index` is done with: the device has let go of its memory. Answers when it was the request's last.
    pub fn finish(&mut self, index: usize, answers: &mut Vec<Answer>) {
        let slot = &mut self.slots[index];
        slot.stage = Stage::Free;
        self.free.push(index as u8);
        let (key, cache_doubt) = (slot.request, self.cache_doubt);
        let request = &mut self.requests[key];
        request.done += 1;
        if request.done < request.parts.max(request.issued) {
            return;
        }
        let ns = &mut self.namespaces[request.ns];
        match &request.io.op {
            Op::Write { fua: false, .. } => ns.written += 1,
            Op::Flush if cache_doubt => {
                let why =
                    "the controller failed or was reset with unflushed writes in its cache: they may be lost";
                request.error.get_or_insert(failed(span(&request.io.op), why));
            }
            Op::Flush if request.error.is_none() => ns.flushed = ns.flushed.max(request.written),
            _ => {}
        }
        self.answer(key, answers);
    }

    /// Answers a request of which no command is out.
    pub fn answer(&mut self, key: usize, answers: &mut Vec<Answer>) {
        let Request { io: Io { op, done }, error, .. } = self.requests.remove(key);
        // One that failed may have parts that were never issued; only the first of the line is begun.
        if self.ready.front() == Some(&key) {
            self.ready.pop_front();
        }
        let result = match (error, op) {
            (Some(error), _) => Err(error),
            (None, Op::Read { buf, .. }) => Ok(Some(buf)),
            (None, _) => Ok(None),
        };
        answers.push((done, result));
    }

    /// A completion of the admin queue.
    #[cfg_attr(
        not(feature = "proof"),
        expect(unused_variables, clippy::ptr_arg, reason = "only a planted bug answers here")
    )]
    fn complete_admin(&mut self, completion: &Completion, answers: &mut Vec<Answer>) {
        let index = usize::from(completion.cid.get() & 0xff);
        let generation = (completion.cid.get() >> 8) as u8;
        let entries = self.queues.as_ref().map_or(0, |q| q.admin.entries());
        let placed = completion.sq_id.get() == 0 && u32::from(completion.sq_head.get()) < entries;
        let slot = self.admin_slots.get_mut(index).filter(|slot| placed && slot.generation == generation);
        match slot.and_then(|slot| slot.work.take()) {
            Some(AdminWork::Answer(answer, page)) => answer.send((*completion, page)),
            // Whether it says aborted or not: the command's own completion tells how that ended.
            #[cfg(feature = "proof")]
            Some(AdminWork::Abort(slot)) if planted(Canary::NvmeFreedByAbort) => {
                if self.slots[usize::from(slot)].stage == Stage::Aborting {
                    let key = self.slots[usize::from(slot)].request;
                    self.requests[key].fail(IoError::Gone);
                    self.finish(usize::from(slot), answers);
                }
            }
            Some(AdminWork::Abort(_)) => {}
            Some(AdminWork::AsyncEvent) if !completion.status().ok() => {
                // Not asked for again: it would be refused again, for ever.
                if completion.status() != Status::ABORT_REQUESTED {
                    tracing::warn!(status = %completion.status(), "the controller does not report events");
                }
            }
            Some(AdminWork::AsyncEvent) => self.events.push_back(completion.result.get()),
            None => {
                self.counters.unexpected += 1;
                self.raise(Fault::Unexpected);
            }
        }
    }

    /// Writes that no flush has covered.
    pub fn has_unflushed(&self) -> bool {
        self.identity.volatile_cache && self.namespaces.iter().any(|ns| ns.written > ns.flushed)
    }
}

/// Whether a request's commands may be issued again.
pub(crate) fn repeats(request: &Request) -> bool {
    #[cfg(feature = "proof")]
    if planted(Canary::NvmeFlushRetried) {
        return true;
    }
    request.may_repeat()
}

pub(crate) fn failed(span: Span, why: &str) -> IoError {
    IoError::Failed { op: span.op, offset: span.offset, len: span.len, reason: why.to_owned() }
}

impl<F: Function> Drop for Controller<F> {
    fn drop(&mut self) {
        self.news.notify_all();
        let inner = self.inner.get_mut();
        if inner.stopped.is_some() {
            return;
        }
        // Nobody can wait here for the device to stop. It is told to; its memory is never used again (I7).
        if !self.function.removed() {
            self.function.write32(crate::spec::registers::CC, 0);
        }
        inner.leak();
    }
}

impl Inner {
    /// Keeps all that the device may still reach out of everybody's hands, for ever; who waits hears that it is gone.
    pub fn leak(&mut self) {
        for Request { io: Io { op, done }, .. } in self.requests.drain() {
            self.counters.leaked += 1;
            std::mem::forget(op);
            done.send(Err(IoError::Gone));
        }
        std::mem::forget(self.queues.take());
        std::mem::forget(std::mem::take(&mut self.maps));
        self.ready.clear();
    }
}
