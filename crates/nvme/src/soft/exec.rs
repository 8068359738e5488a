//! How the software controller fetches commands, does them, and completes them: rightly, or as its faults say.

use super::{Queue, Space, State};
use crate::spec::command::{DEALLOCATE, DsmRange, FUA, feature};
use crate::spec::identify::{IdentifyController, IdentifyNamespace, cns};
use crate::spec::log::{self, Firmware, Smart};
use crate::spec::{Command, Completion, Status, admin, nvm};
use rand::Rng;
use std::rc::Rc;
use std::time::Duration;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const PAGE: u64 = 4096;
/// What a hung read may leave in its memory.
const GARBAGE: u8 = 0xee;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Done,
    Status(Status),
    Hang,
    Late,
    Duplicate,
    WrongCid,
    WrongQueue,
    WrongPhase,
}

impl State {
    /// Takes what lies in a submission queue.
    pub(super) fn fetch(self: &Rc<Self>, id: u16) {
        loop {
            let command = {
                let mut queues = self.queues.borrow_mut();
                let Some(queue) = queues.get_mut(&id) else { return };
                let shadow = self.shadow.get().filter(|_| id > 0);
                if let Some((values, events)) = shadow {
                    let at = u64::from(id) * 2 * (4 << self.config.dstrd);
                    let mut word = [0; 4];
                    self.reach(self.dma.borrow().read(values + at, &mut word));
                    queue.sq_tail = u32::from_le_bytes(word) % queue.sq_entries;
                    // Told at the next step, whatever it is.
                    self.reach(self.dma.borrow().write(events + at, &queue.sq_tail.to_le_bytes()));
                }
                if queue.sq_head == queue.sq_tail || !self.bus_master.get() {
                    return;
                }
                let mut bytes = [0; size_of::<Command>()];
                self.reach(self.dma.borrow().read(queue.sq + u64::from(queue.sq_head) * 64, &mut bytes));
                queue.sq_head = (queue.sq_head + 1) % queue.sq_entries;
                Command::read_from_bytes(&bytes).expect("an entry's bytes")
            };
            if self.config.hollow && id > 0 {
                self.post(id, command.cid.get(), id, None, Status::SUCCESS, 0);
                continue;
            }
            if !self.outstanding.borrow_mut().insert((id, command.cid.get())) {
                self.violation(format!("identifier {:#x} of queue {id} is in use", command.cid.get()));
            }
            if command.flags != 0 || command.metadata.get() != 0 {
                self.violation(format!("reserved fields are set: {command:?}"));
            }
            if id == 0 { self.do_admin(command) } else { self.start(id, command) }
        }
    }

    fn reach(&self, reached: bool) {
        if !reached {
            self.count(|c| c.blocked += 1);
        }
    }

    /// An I/O command: when, and how.
    fn start(self: &Rc<Self>, id: u16, command: Command) {
        self.note(&command);
        let fate = self.fate(&command);
        let faults = &self.config.faults;
        if self.chance(faults.removed) {
            self.removed.set(Some(u32::MAX));
            return self.end_epoch();
        }
        if self.chance(faults.power) {
            return self.lose_power();
        }
        if self.chance(faults.fatal) {
            self.fail();
        }
        if self.chance(faults.event) {
            self.raise_event(0x0002_0101);
        }
        let Some((least, most)) = self.config.latency else {
            return self.finish(id, command, fate);
        };
        let time = self.rng.borrow_mut().random_range(least..=most);
        let time = if fate == Fate::Late { time + Duration::from_millis(22) } else { time };
        let (state, epoch) = (self.clone(), self.epoch.get());
        self.ctx.spawn(async move {
            state.ctx.sleep(time).await;
            if state.epoch.get() == epoch {
                state.finish(id, command, fate);
            }
        });
    }

    fn note(&self, command: &Command) {
        let fua = command.cdw12.get() & FUA != 0;
        self.count(|c| match command.opcode {
            nvm::READ => c.reads += 1,
            nvm::WRITE if fua => c.fua_writes += 1,
            nvm::WRITE => c.writes += 1,
            nvm::FLUSH => c.flushes += 1,
            nvm::DATASET_MANAGEMENT => c.deallocates += 1,
            _ => {}
        });
    }

    fn fate(&self, command: &Command) -> Fate {
        let faults = &self.config.faults;
        let durable = command.opcode == nvm::FLUSH || command.cdw12.get() & FUA != 0;
        if self.chance(faults.status) || durable && self.chance(faults.durable) {
            let mut rng = self.rng.borrow_mut();
            let (kind, code) = (rng.random_range(0..8), rng.random_range(0..=255));
            let status = Status::of(kind, if kind == 0 { code.max(1) } else { code });
            return Fate::Status(if rng.random() { status.dnr() } else { status });
        }
        for (chance, fate) in [
            (faults.hang, Fate::Hang),
            (faults.late, Fate::Late),
            (faults.duplicate, Fate::Duplicate),
            (faults.wrong_cid, Fate::WrongCid),
            (faults.wrong_queue, Fate::WrongQueue),
            (faults.phase, Fate::WrongPhase),
        ] {
            if self.chance(chance) {
                return fate;
            }
        }
        Fate::Done
    }

    fn finish(self: &Rc<Self>, id: u16, command: Command, fate: Fate) {
        let cid = command.cid.get();
        if self.aborted.borrow_mut().remove(&(id, cid)) {
            return self.complete(id, cid, Status::ABORT_REQUESTED, 0);
        }
        match fate {
            Fate::Status(status) => {
                self.count(|c| c.statuses += 1);
                // What a failed write or deallocation left is unknown: here, all or nothing of it.
                if matches!(command.opcode, nvm::WRITE | nvm::DATASET_MANAGEMENT) && self.percent(50) {
                    let _ = self.perform(&command);
                }
                self.complete(id, cid, status, 0);
            }
            Fate::Hang => {
                self.count(|c| c.hangs += 1);
                self.hung.borrow_mut().insert((id, cid));
                self.hang(id, command);
            }
            Fate::Done | Fate::Late => {
                let status = self.perform(&command);
                self.complete(id, cid, status, 0);
            }
            Fate::Duplicate => {
                let status = self.perform(&command);
                self.complete(id, cid, status, 0);
                self.count(|c| c.illegal += 1);
                self.later(150, move |state| state.post(id, cid, id, None, status, 0));
            }
            Fate::WrongPhase => {
                let status = self.perform(&command);
                self.post_of_last_round(id, cid, status);
            }
            Fate::WrongCid => {
                self.count(|c| c.illegal += 1);
                let mut wrong = cid ^ 1 << self.rng.borrow_mut().random_range(0..16);
                // Another command's completion cannot be told from the right one.
                while self.outstanding.borrow().contains(&(id, wrong)) {
                    wrong = wrong.wrapping_add(1);
                }
                self.post(id, wrong, id, None, Status::SUCCESS, 0);
            }
            Fate::WrongQueue => {
                self.count(|c| c.illegal += 1);
                let (queue, head) = if self.percent(50) { (id + 1, None) } else { (id, Some(0xffff)) };
                self.post(id, cid, queue, head, Status::SUCCESS, 0);
            }
        }
    }

    /// A completion that looks as if it were of the round before: the driver never sees it, nor any after it.
    fn post_of_last_round(self: &Rc<Self>, id: u16, cid: u16, status: Status) {
        self.count(|c| c.illegal += 1);
        let turned = |state: &State| {
            if let Some(queue) = state.queues.borrow_mut().get_mut(&id) {
                queue.phase = !queue.phase;
            }
        };
        turned(self);
        self.complete(id, cid, status, 0);
        turned(self);
    }

    /// A command that does not end. Until the controller is stopped it may write the memory of a read.
    fn hang(self: &Rc<Self>, id: u16, command: Command) {
        if command.opcode != nvm::READ {
            return;
        }
        let time = self.rng.borrow_mut().random_range(1_000..60_000);
        self.later(time, move |state| {
            if state.hung.borrow().contains(&(id, command.cid.get())) {
                state.count(|c| c.late_dma += 1);
                for page in state.pages(&command).unwrap_or_default() {
                    state.reach(state.dma.borrow().write(page, &[GARBAGE; PAGE as usize]));
                }
            }
        });
    }

    /// Does something in so many microseconds, unless the controller is stopped before.
    fn later(self: &Rc<Self>, micros: u64, work: impl FnOnce(&Rc<State>) + 'static) {
        let (state, epoch) = (self.clone(), self.epoch.get());
        self.ctx.spawn(async move {
            state.ctx.sleep(Duration::from_micros(micros)).await;
            if state.epoch.get() == epoch {
                work(&state);
            }
        });
    }

    fn complete(self: &Rc<Self>, id: u16, cid: u16, status: Status, result: u32) {
        self.outstanding.borrow_mut().remove(&(id, cid));
        self.post(id, cid, id, None, status, result);
    }

    /// Writes a completion.
    fn post(self: &Rc<Self>, id: u16, cid: u16, sq_id: u16, head: Option<u16>, status: Status, result: u32) {
        let mut queues = self.queues.borrow_mut();
        let Some(queue) = queues.get_mut(&id) else { return };
        if !self.bus_master.get() || (queue.cq_tail + 1) % queue.cq_entries == self.cq_head(id, queue) {
            return; // No room: only faults fill it.
        }
        let entry = Completion {
            result: result.into(),
            reserved: 0.into(),
            sq_head: head.unwrap_or(queue.sq_head as u16).into(),
            sq_id: sq_id.into(),
            cid: cid.into(),
            phase_status: (status.0 << 1 | u16::from(queue.phase)).into(),
        };
        let at = queue.cq + u64::from(queue.cq_tail) * 16;
        let dma = self.dma.borrow();
        self.reach(dma.write(at, &entry.as_bytes()[..12]) && dma.write(at + 12, &entry.as_bytes()[12..]));
        queue.cq_tail += 1;
        if queue.cq_tail == queue.cq_entries {
            (queue.cq_tail, queue.phase) = (0, !queue.phase);
        }
        self.count(|c| c.completions += 1);
    }

    fn cq_head(&self, id: u16, queue: &Queue) -> u32 {
        match self.shadow.get().filter(|_| id > 0) {
            None => queue.cq_head,
            Some((values, events)) => {
                let at = (u64::from(id) * 2 + 1) * (4 << self.config.dstrd);
                let mut word = [0; 4];
                self.reach(self.dma.borrow().read(values + at, &mut word));
                // It need not be told before then: it looks by itself.
                self.reach(self.dma.borrow().write(events + at, &word));
                u32::from_le_bytes(word)
            }
        }
    }

    pub(super) fn raise_event(self: &Rc<Self>, event: u32) {
        let Some(cid) = self.events.borrow_mut().pop() else { return };
        self.complete(0, cid, Status::SUCCESS, event);
    }

    /// The pages of a command, through its PRPs.
    fn pages(&self, command: &Command) -> Option<Vec<u64>> {
        let shift = self.config.namespaces.get(command.nsid.get() as usize - 1)?.block_shift;
        let bytes = u64::from(command.block_count()) << shift;
        let count = bytes.div_ceil(PAGE);
        let mut pages = vec![command.prp1.get()];
        match count {
            0 | 1 => {}
            2 => pages.push(command.prp2.get()),
            _ => {
                for n in 0..count - 1 {
                    pages.push(self.dma.borrow().read64(command.prp2.get() + n * 8)?);
                }
            }
        }
        if let Some(bad) = pages.iter().find(|page| !page.is_multiple_of(PAGE)) {
            self.violation(format!("PRP entry {bad:#x} is not aligned"));
        }
        Some(pages)
    }

    /// Does an I/O command.
    fn perform(&self, command: &Command) -> Status {
        let index = (command.nsid.get() as usize).wrapping_sub(1);
        let Some(ns) = self.config.namespaces.get(index) else {
            self.violation(format!("there is no namespace {}", command.nsid.get()));
            return Status::of(0, 0x0b).dnr();
        };
        let shift = ns.block_shift;
        let mut spaces = self.spaces.borrow_mut();
        let space = &mut spaces[index];
        let durable =
            !self.config.volatile_cache || command.cdw12.get() & FUA != 0 && !self.config.faults.fua_ignored;
        match command.opcode {
            nvm::FLUSH => {
                space.flush(shift);
                Status::SUCCESS
            }
            nvm::READ | nvm::WRITE => {
                let (slba, count) = (command.slba(), u64::from(command.block_count()));
                if slba + count > ns.blocks
                    || self.config.mdts > 0 && count << shift > PAGE << self.config.mdts
                {
                    self.violation(format!("blocks {slba}+{count} are out of range, or too many at a time"));
                    return Status::of(0, 0x80).dnr();
                }
                let Some(pages) = self.pages(command) else { return Status::of(0, 0x04) };
                let bytes = (count << shift) as usize;
                let start = (slba << shift) as usize;
                for (page, at) in pages.iter().zip((0..bytes).step_by(PAGE as usize)) {
                    let len = (bytes - at).min(PAGE as usize);
                    let part = &mut space.current[start + at..][..len];
                    let dma = self.dma.borrow();
                    let reached = if command.opcode == nvm::READ {
                        dma.write(*page, part)
                    } else {
                        dma.read(*page, part)
                    };
                    self.reach(reached);
                }
                if command.opcode == nvm::WRITE {
                    space.changed(slba..slba + count, shift, durable);
                }
                Status::SUCCESS
            }
            nvm::DATASET_MANAGEMENT => {
                let mut bytes = [0; size_of::<DsmRange>()];
                self.reach(self.dma.borrow().read(command.prp1.get(), &mut bytes));
                let range = DsmRange::read_from_bytes(&bytes).expect("a range's bytes");
                let (slba, count) = (range.slba.get(), u64::from(range.len.get()));
                if command.cdw10.get() != 0 || command.cdw11.get() != DEALLOCATE || slba + count > ns.blocks {
                    self.violation(format!("a deallocation of {slba}+{count}: {command:?}"));
                    return Status::INVALID_FIELD;
                }
                space.current[(slba << shift) as usize..][..(count << shift) as usize].fill(0);
                space.changed(slba..slba + count, shift, durable);
                Status::SUCCESS
            }
            _ => Status::of(0, 0x01).dnr(),
        }
    }

    fn do_admin(self: &Rc<Self>, command: Command) {
        let cid = command.cid.get();
        let (mut status, mut result) = (Status::SUCCESS, 0);
        match command.opcode {
            admin::IDENTIFY => match self.identify(&command) {
                Some(page) => self.reach(self.dma.borrow().write(command.prp1.get(), &page)),
                None => status = Status::INVALID_FIELD,
            },
            admin::SET_FEATURES | admin::GET_FEATURES => match command.cdw10.get() & 0xff {
                feature::VOLATILE_WRITE_CACHE => result = u32::from(self.config.volatile_cache),
                feature::NUMBER_OF_QUEUES | feature::ASYNC_EVENT_CONFIG => {}
                _ => status = Status::INVALID_FIELD,
            },
            admin::GET_LOG_PAGE => {
                self.pages_read.borrow_mut().push(command.cdw10.get() as u8);
                let len = ((command.cdw10.get() >> 16) as usize + 1) * 4;
                let mut page = self.log_page(command.cdw10.get() as u8);
                page.resize(len, 0);
                self.reach(self.dma.borrow().write(command.prp1.get(), &page));
            }
            admin::DOORBELL_BUFFER_CONFIG if self.config.shadow_doorbells => {
                self.shadow.set(Some((command.prp1.get(), command.prp2.get())));
            }
            admin::CREATE_IO_CQ | admin::CREATE_IO_SQ => status = self.create(&command),
            admin::ASYNC_EVENT if self.config.faults.events_refused => status = Status::of(1, 0x05),
            admin::ASYNC_EVENT => return self.events.borrow_mut().push(cid),
            admin::ABORT => {
                result = u32::from(!self.abort(&command));
            }
            _ => status = Status::of(0, 0x01).dnr(),
        }
        match self.config.latency {
            None => self.complete(0, cid, status, result),
            Some(_) => self.later(20, move |state| state.complete(0, cid, status, result)),
        }
    }

    fn log_page(&self, id: u8) -> Vec<u8> {
        if let Some(page) = self.log_pages.borrow().get(&id) {
            return page.clone();
        }
        match id {
            log::SMART => {
                let mut page = Smart::new_zeroed();
                page.temperature = 313u16.to_le_bytes();
                (page.spare, page.spare_threshold, page.used) = (100, 10, 3);
                page.media_errors = 2.into();
                page.power_on_hours = 4711.into();
                page.unsafe_shutdowns = 5.into();
                page.as_bytes().to_vec()
            }
            log::FIRMWARE => {
                let mut page = Firmware::new_zeroed();
                page.active = 1;
                page.slots[0] = *b"1       ";
                page.as_bytes().to_vec()
            }
            _ => Vec::new(),
        }
    }

    fn create(&self, command: &Command) -> Status {
        let (id, entries) = ((command.cdw10.get() & 0xffff) as u16, (command.cdw10.get() >> 16) + 1);
        if id == 0 || entries < 2 || entries > self.config.queue_entries || command.cdw11.get() & 1 == 0 {
            self.violation(format!("queue {id} of {entries} entries"));
            return Status::INVALID_FIELD;
        }
        let mut queues = self.queues.borrow_mut();
        if command.opcode == admin::CREATE_IO_CQ {
            let cq = Queue { cq: command.prp1.get(), cq_entries: entries, phase: true, ..Queue::default() };
            queues.insert(id, cq);
        } else if let Some(queue) = queues.get_mut(&((command.cdw11.get() >> 16) as u16)) {
            (queue.sq, queue.sq_entries) = (command.prp1.get(), entries);
        } else {
            return Status::of(1, 0x00).dnr();
        }
        Status::SUCCESS
    }

    /// Whether it worked: then the command completes with that status, and does nothing more.
    fn abort(self: &Rc<Self>, command: &Command) -> bool {
        self.count(|c| c.aborts += 1);
        let (id, cid) = ((command.cdw10.get() & 0xffff) as u16, (command.cdw10.get() >> 16) as u16);
        if !self.outstanding.borrow().contains(&(id, cid)) || !self.percent(self.config.faults.aborts_work) {
            return false;
        }
        if self.hung.borrow_mut().remove(&(id, cid)) {
            self.later(60, move |state| state.complete(id, cid, Status::ABORT_REQUESTED, 0));
        } else {
            self.aborted.borrow_mut().insert((id, cid));
        }
        true
    }

    fn identify(&self, command: &Command) -> Option<Vec<u8>> {
        let config = &self.config;
        let ns = || config.namespaces.get((command.nsid.get() as usize).wrapping_sub(1));
        match command.cdw10.get() & 0xff {
            cns::CONTROLLER => {
                let mut data = IdentifyController::new_zeroed();
                data.sn.copy_from_slice(b"SOFT0001            ");
                data.mn[..19].copy_from_slice(b"Software controller");
                data.fr.copy_from_slice(b"1       ");
                data.mdts = config.mdts;
                (data.sqes, data.cqes) = (0x66, 0x44);
                data.nn = (config.namespaces.len() as u32).into();
                data.vwc = u8::from(config.volatile_cache);
                data.oacs = (u16::from(config.shadow_doorbells) << 8).into();
                data.oncs = (u16::from(config.deallocates) << 2).into();
                Some(data.as_bytes().to_vec())
            }
            cns::ACTIVE_NAMESPACES => {
                let mut page = vec![0; PAGE as usize];
                for n in 0..config.namespaces.len() {
                    page[4 * n..][..4].copy_from_slice(&(n as u32 + 1).to_le_bytes());
                }
                Some(page)
            }
            cns::NAMESPACE => {
                let (ns, mut data) = (ns()?, IdentifyNamespace::new_zeroed());
                data.nsze = ns.blocks.into();
                data.lbaf[0].lbads = ns.block_shift;
                data.lbaf[0].ms = ns.metadata.into();
                data.nguid[15] = command.nsid.get() as u8;
                Some(data.as_bytes().to_vec())
            }
            cns::NAMESPACE_DESCRIPTORS => {
                let mut page = vec![0; PAGE as usize];
                page[..5].copy_from_slice(&[4, 1, 0, 0, ns()?.command_set]);
                Some(page)
            }
            _ => None,
        }
    }
}

impl Space {
    fn changed(&mut self, blocks: std::ops::Range<u64>, shift: u8, durable: bool) {
        for block in blocks {
            self.dirty.insert(block);
            if durable {
                self.save(block, shift);
            }
        }
    }

    fn save(&mut self, block: u64, shift: u8) {
        let (at, len) = ((block << shift) as usize, 1 << shift);
        self.durable[at..at + len].copy_from_slice(&self.current[at..at + len]);
        self.dirty.remove(&block);
    }

    fn flush(&mut self, shift: u8) {
        for block in std::mem::take(&mut self.dirty) {
            self.save(block, shift);
        }
    }
}
