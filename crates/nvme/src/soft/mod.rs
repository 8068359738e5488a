//! **A test double**: an NVMe controller in this process, with registers, queues, namespaces in memory and a volatile write
//! cache. It shows what no emulation does: reordering, hangs, aborts that work, late DMA, illegal completions, controllers
//! that do not stop. It follows the specification except where its faults say otherwise, and writes down where the driver
//! does not ([`Soft::violations`]).

mod admin;
mod dma;
mod exec;
mod plan;
mod pointer;

pub use admin::AdminFaults;
pub use plan::{Faults, Found, SoftConfig, SoftNamespace};

use crate::function::{Function, Iova};
use crate::spec::registers;
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use dma::DmaMap;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;

/// Violations that are kept.
const VIOLATIONS_MAX: usize = 16;

/// Exact counts of what the controller saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftCounters {
    pub completions: u64,
    pub reads: u64,
    pub writes: u64,
    pub fua_writes: u64,
    pub flushes: u64,
    pub deallocates: u64,
    /// Reads and writes by how their data was pointed to; one or two PRPs are not counted.
    pub prp_lists: u64,
    pub sgl_blocks: u64,
    pub sgl_lists: u64,
    pub aborts: u64,
    pub statuses: u64,
    pub hangs: u64,
    pub late_dma: u64,
    pub illegal: u64,
    pub resets: u64,
    /// Reaches into memory that the IOMMU blocked.
    pub blocked: u64,
    pub doorbell_writes: u64,
}

/// A handle to the controller.
#[derive(Clone)]
pub struct Soft(Rc<State>);

pub(crate) struct State {
    ctx: Ctx,
    config: SoftConfig,
    rng: RefCell<StdRng>,
    regs: RefCell<Regs>,
    dma: RefCell<DmaMap>,
    bus_master: Cell<bool>,
    stuck: Cell<bool>,
    removed: Cell<Option<u32>>,
    /// The driver holds it no more; what it was doing it may go on with.
    released: Cell<bool>,
    /// Commands of an earlier one reach nothing any more.
    epoch: Cell<u64>,
    queues: RefCell<BTreeMap<u16, Queue>>,
    spaces: RefCell<Vec<Space>>,
    shadow: Cell<Option<(u64, u64)>>,
    /// Identifiers that await a completion, by queue.
    outstanding: RefCell<BTreeSet<(u16, u16)>>,
    /// Aborted ones complete with that status and do nothing.
    aborted: RefCell<BTreeSet<(u16, u16)>>,
    hung: RefCell<BTreeSet<(u16, u16)>>,
    events: RefCell<Vec<u16>>,
    /// The next admin command with this opcode is never answered.
    hang_next: Cell<Option<u8>>,
    admin_faults: RefCell<BTreeMap<u8, AdminFaults>>,
    pages_read: RefCell<Vec<u8>>,
    /// Other log pages than it has by itself.
    log_pages: RefCell<BTreeMap<u8, Vec<u8>>>,
    counters: Cell<SoftCounters>,
    violations: RefCell<Vec<String>>,
}

#[derive(Default)]
struct Regs {
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
}

/// A submission queue, and its completion queue.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    sq: u64,
    sq_entries: u32,
    sq_head: u32,
    sq_tail: u32,
    cq: u64,
    cq_entries: u32,
    cq_head: u32,
    cq_tail: u32,
    phase: bool,
}

/// A namespace's bytes: as reads see them, and as a power cut leaves them.
struct Space {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Blocks that differ.
    dirty: BTreeSet<u64>,
}

impl Soft {
    /// A controller; everything random in it follows from `seed`.
    pub fn new(ctx: &Ctx, config: SoftConfig, seed: u64) -> Soft {
        let spaces = config.namespaces.iter().map(|ns| {
            let bytes = usize::try_from(ns.blocks << ns.block_shift).expect("a namespace in memory");
            Space { current: vec![0; bytes], durable: vec![0; bytes], dirty: BTreeSet::new() }
        });
        let mut regs = Regs::default();
        let mut removed = None;
        match config.found {
            Found::Disabled => {}
            Found::Running | Found::Stuck => (regs.cc, regs.csts) = (1, 1),
            Found::Starting => regs.cc = 1,
            Found::Fatal => (regs.cc, regs.csts) = (1, 3),
            Found::AllOnes => removed = Some(u32::MAX),
            Found::Zeros => removed = Some(0),
        }
        let soft = Soft(Rc::new(State {
            ctx: ctx.clone(),
            rng: RefCell::new(StdRng::seed_from_u64(seed)),
            regs: RefCell::new(regs),
            dma: RefCell::default(),
            bus_master: Cell::new(false),
            stuck: Cell::new(config.found == Found::Stuck),
            removed: Cell::new(removed),
            released: Cell::new(false),
            epoch: Cell::new(0),
            queues: RefCell::default(),
            spaces: RefCell::new(spaces.collect()),
            shadow: Cell::new(None),
            outstanding: RefCell::default(),
            aborted: RefCell::default(),
            hung: RefCell::default(),
            events: RefCell::default(),
            hang_next: Cell::default(),
            admin_faults: RefCell::default(),
            pages_read: RefCell::default(),
            log_pages: RefCell::default(),
            counters: Cell::default(),
            violations: RefCell::default(),
            config,
        }));
        if soft.0.config.found == Found::Starting {
            soft.0.become_ready();
        }
        soft
    }

    /// What it saw.
    pub fn counters(&self) -> SoftCounters {
        self.0.counters.get()
    }

    /// What went wrong with admin commands, by opcode.
    pub fn admin_faults(&self) -> BTreeMap<u8, AdminFaults> {
        self.0.admin_faults.borrow().clone()
    }

    /// Where the driver broke the specification.
    pub fn violations(&self) -> Vec<String> {
        self.0.violations.borrow().clone()
    }

    /// Pulls it out: reads give `value` from here on.
    pub fn remove(&self, value: u32) {
        self.0.removed.set(Some(value));
        self.0.end_epoch();
    }

    /// Controller Fatal Status, from here on; the cache's content is lost.
    pub fn fail(&self) {
        self.0.fail();
    }

    /// Its power fails for a moment: it is disabled, and what its cache held is lost.
    pub fn lose_power(&self) {
        self.0.lose_power();
    }

    /// The next admin command with this opcode is never answered.
    pub fn hang_next(&self, opcode: u8) {
        self.0.hang_next.set(Some(opcode));
    }

    /// Raises an event of a type, which names a log page. Nothing if nobody asked for events.
    pub fn raise_event(&self, kind: u32, page: u32) {
        self.0.raise_event(page << 16 | kind);
    }

    /// Identifiers of log pages that were read, in turn.
    pub fn pages_read(&self) -> Vec<u8> {
        self.0.pages_read.borrow().clone()
    }

    /// What it says when log page `id` is read, from here on.
    pub fn set_log_page(&self, id: u8, bytes: &[u8]) {
        self.0.log_pages.borrow_mut().insert(id, bytes.to_vec());
    }

    /// Whether the last shutdown was announced and finished.
    pub fn was_shut_down(&self) -> bool {
        self.0.regs.borrow().csts >> 2 & 3 == 2
    }

    /// Bytes of a namespace that survive a power cut.
    pub fn durable(&self, index: usize) -> Vec<u8> {
        self.0.spaces.borrow()[index].durable.clone()
    }

    /// Whether the driver has given it up.
    pub fn is_released(&self) -> bool {
        self.0.released.get()
    }

    /// Whether the controller may reach memory.
    pub fn is_enabled(&self) -> bool {
        self.0.regs.borrow().cc & 1 != 0 && self.0.bus_master.get() && self.0.removed.get().is_none()
    }
}

#[cfg(test)]
impl Soft {
    /// Maps an arena, without a driver.
    pub(crate) fn reach_all(&self, arena: &Arena) -> Iova {
        self.0.dma.borrow_mut().add(arena)
    }

    /// Does an I/O command, without a queue.
    pub(crate) fn do_now(&self, command: &crate::spec::Command) -> crate::spec::Status {
        self.0.perform(command)
    }

    /// The bytes that a read's or write's data pointer stands for.
    pub(crate) fn behind(&self, command: &crate::spec::Command) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (address, len) in self.0.pieces(command).expect("it points to something") {
            let at = bytes.len();
            bytes.resize(at + len, 0);
            assert!(self.0.dma.borrow().read(address, &mut bytes[at..]), "{address:#x} is out of reach");
        }
        bytes
    }
}

impl State {
    fn count(&self, f: impl FnOnce(&mut SoftCounters)) {
        let mut now = self.counters.get();
        f(&mut now);
        self.counters.set(now);
    }

    fn violation(&self, what: String) {
        let mut violations = self.violations.borrow_mut();
        if violations.len() < VIOLATIONS_MAX {
            violations.push(what);
        }
    }

    /// Whether something that happens so many times in a million happens now.
    fn chance(&self, per_million: u32) -> bool {
        per_million > 0 && self.rng.borrow_mut().random_range(0..1_000_000) < per_million
    }

    fn percent(&self, percent: u32) -> bool {
        percent > 0 && self.rng.borrow_mut().random_range(0..100) < percent
    }

    /// What its registers read as when it is not there for the driver.
    fn absent(&self) -> Option<u32> {
        self.removed.get().or(self.released.get().then_some(u32::MAX))
    }

    /// Commands that are under way end without a trace.
    fn end_epoch(&self) {
        self.epoch.set(self.epoch.get() + 1);
        self.outstanding.borrow_mut().clear();
        self.aborted.borrow_mut().clear();
        self.hung.borrow_mut().clear();
        self.events.borrow_mut().clear();
        self.queues.borrow_mut().clear();
        self.shadow.set(None);
    }

    fn fail(&self) {
        self.regs.borrow_mut().csts |= 2;
        for space in &mut *self.spaces.borrow_mut() {
            let (current, durable) = (&mut space.current, &space.durable);
            current.copy_from_slice(durable);
            space.dirty.clear();
        }
    }

    fn lose_power(&self) {
        self.fail();
        self.end_epoch();
        *self.regs.borrow_mut() = Regs::default();
    }

    fn become_ready(self: &Rc<Self>) {
        let (state, epoch) = (self.clone(), self.epoch.get());
        let time = self.rng.borrow_mut().random_range(10..500);
        let ready = move |state: &State| {
            if state.epoch.get() == epoch && state.regs.borrow().cc & 1 == 1 {
                state.regs.borrow_mut().csts |= 1;
            }
        };
        if self.config.latency.is_none() {
            return ready(self);
        }
        self.ctx.spawn(async move {
            state.ctx.sleep(std::time::Duration::from_micros(time)).await;
            ready(&state);
        });
    }

    fn write_cc(self: &Rc<Self>, value: u32) {
        let old = std::mem::replace(&mut self.regs.borrow_mut().cc, value);
        match (old & 1, value & 1) {
            (0, 1) => {
                if value >> 16 & 0xff != 0x46 || value >> 7 & 0xf != 0 {
                    self.violation(format!(
                        "CC {value:#x} has other entry or page sizes than the driver uses"
                    ));
                }
                let regs = self.regs.borrow();
                let admin = Queue {
                    sq: regs.asq,
                    sq_entries: (regs.aqa & 0xfff) + 1,
                    cq: regs.acq,
                    cq_entries: (regs.aqa >> 16 & 0xfff) + 1,
                    phase: true,
                    ..Queue::default()
                };
                drop(regs);
                self.queues.borrow_mut().insert(0, admin);
                self.become_ready();
            }
            (1, 0) => {
                if self.stuck.get() || self.percent(self.config.faults.disable_stuck) {
                    self.stuck.set(true);
                    return;
                }
                self.count(|c| c.resets += 1);
                self.end_epoch();
                self.regs.borrow_mut().csts = 0;
            }
            (1, 1) if value >> 14 & 3 != 0 => {
                // A shutdown writes the cache back.
                for space in &mut *self.spaces.borrow_mut() {
                    space.durable.copy_from_slice(&space.current);
                    space.dirty.clear();
                }
                self.end_epoch();
                let mut regs = self.regs.borrow_mut();
                regs.csts = regs.csts & !0xc | 0x8;
            }
            (1, 1) if old & 0xf0_3fff != value & 0xf0_3fff => {
                self.violation(format!("CC changed from {old:#x} to {value:#x} while enabled"));
            }
            _ => {}
        }
    }

    fn cap(&self) -> u64 {
        let config = &self.config;
        u64::from(config.queue_entries - 1)
            | 1 << 16
            | 1 << 24
            | u64::from(config.dstrd) << 32
            | 1 << 37
            | u64::from(config.page_shift) << 48
    }

    fn doorbell(self: &Rc<Self>, offset: usize, value: u32) {
        self.count(|c| c.doorbell_writes += 1);
        let n = (offset - registers::DOORBELLS) / (4 << self.config.dstrd);
        let (id, is_cq) = ((n / 2) as u16, n % 2 == 1);
        let mut queues = self.queues.borrow_mut();
        let Some(queue) = queues.get_mut(&id) else {
            drop(queues);
            if self.regs.borrow().cc & 1 == 1 {
                self.violation(format!("doorbell of queue {id}, which does not exist"));
            }
            return;
        };
        let entries = if is_cq { queue.cq_entries } else { queue.sq_entries };
        if value >= entries {
            drop(queues);
            return self.violation(format!("doorbell of queue {id} set to {value} of {entries}"));
        }
        if is_cq {
            queue.cq_head = value;
        } else {
            queue.sq_tail = value;
        }
        drop(queues);
        if !is_cq {
            self.fetch(id);
        }
    }
}

impl Function for Soft {
    fn name(&self) -> &str {
        "soft"
    }

    fn bar_len(&self) -> usize {
        0x2000
    }

    fn read32(&self, offset: usize) -> u32 {
        if let Some(value) = self.0.absent() {
            return value;
        }
        let regs = self.0.regs.borrow();
        match offset {
            registers::CAP => self.0.cap() as u32,
            registers::VS => 0x0002_0000,
            registers::CC => regs.cc,
            registers::CSTS => regs.csts,
            registers::AQA => regs.aqa,
            _ => 0,
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        match (self.0.absent(), offset) {
            (Some(value), _) => u64::from(value) << 32 | u64::from(value),
            (None, registers::CAP) => self.0.cap(),
            _ => 0,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        if self.0.absent().is_some() {
            return;
        }
        match offset {
            registers::CC => self.0.write_cc(value),
            registers::AQA if self.0.regs.borrow().cc & 1 == 1 => {
                self.0.violation("AQA written while enabled".into());
            }
            registers::AQA => self.0.regs.borrow_mut().aqa = value,
            offset if offset >= registers::DOORBELLS => self.0.doorbell(offset, value),
            _ => {}
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        if self.0.absent().is_some() {
            return;
        }
        if self.0.regs.borrow().cc & 1 == 1 {
            return self.0.violation(format!("register {offset:#x} written while enabled"));
        }
        match offset {
            registers::ASQ => self.0.regs.borrow_mut().asq = value,
            registers::ACQ => self.0.regs.borrow_mut().acq = value,
            _ => {}
        }
    }

    fn removed(&self) -> bool {
        self.0.released.get()
    }

    async fn map(&self, _: &Ctx, arena: &Arena) -> io::Result<Iova> {
        Ok(self.0.dma.borrow_mut().add(arena))
    }

    async fn unmap_all(&self, _: &Ctx) -> io::Result<()> {
        if self.0.released.get() || self.0.percent(self.0.config.faults.unmap_fails) {
            return Err(io::Error::other("the IOMMU does not answer"));
        }
        self.0.dma.borrow_mut().clear();
        Ok(())
    }

    async fn reset(&self, ctx: &Ctx) -> io::Result<()> {
        if self.0.removed.get().is_some() {
            // As Linux does, for one that does not answer.
            ctx.sleep(std::time::Duration::from_secs(60)).await;
        }
        if self.0.absent().is_some() || self.0.percent(self.0.config.faults.reset_fails) {
            return Err(io::Error::other("the function does not reset"));
        }
        self.0.count(|c| c.resets += 1);
        self.0.stuck.set(false);
        self.0.end_epoch();
        *self.0.regs.borrow_mut() = Regs::default();
        Ok(())
    }

    async fn set_bus_master(&self, _: &Ctx, on: bool) -> io::Result<()> {
        if !on && (self.0.absent().is_some() || self.0.percent(self.0.config.faults.bus_master_stuck)) {
            return Err(io::Error::other("the setting does not hold"));
        }
        self.0.bus_master.set(on);
        Ok(())
    }

    async fn arm_interrupt(&self, _: &Ctx) -> io::Result<RawFd> {
        Err(io::Error::other("a software controller has no interrupt"))
    }

    async fn disarm_interrupt(&self, _: &Ctx) -> io::Result<()> {
        Ok(())
    }

    async fn release(&self, _: &Ctx) {
        self.0.released.set(true);
    }
}
