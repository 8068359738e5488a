//! How the software controller fetches commands, does those of its namespaces, and completes them: rightly, or as its faults say.

use super::{Queue, Space, State};
use crate::spec::command::{DEALLOCATE, DsmRange, FUA};
use crate::spec::{Command, Completion, Status, nvm};
use rand::Rng;
use std::rc::Rc;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

pub(super) const PAGE: u64 = 4096;
/// What a hung read may leave in its memory.
pub(super) const GARBAGE: u8 = 0xee;

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
            // Of what has data, who looks for it judges how it is pointed to.
            let data = id > 0 && matches!(command.opcode, nvm::READ | nvm::WRITE);
            if command.flags != 0 && !data || command.metadata.get() != 0 {
                self.violation(format!("reserved fields are set: {command:?}"));
            }
            if id == 0 { self.start_admin(command) } else { self.start(id, command) }
        }
    }

    pub(super) fn reach(&self, reached: bool) {
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

    /// An error, half of them not to be retried.
    pub(super) fn any_status(&self) -> Status {
        let mut rng = self.rng.borrow_mut();
        let (kind, code) = (rng.random_range(0..8), rng.random_range(0..=255));
        let status = Status::of(kind, if kind == 0 { code.max(1) } else { code });
        if rng.random() { status.dnr() } else { status }
    }

    /// An identifier that is nobody's: another command's completion could not be told from the right one.
    pub(super) fn wrong_cid(&self, id: u16, cid: u16) -> u16 {
        let mut wrong = cid ^ 1 << self.rng.borrow_mut().random_range(0..16);
        while self.outstanding.borrow().contains(&(id, wrong)) {
            wrong = wrong.wrapping_add(1);
        }
        wrong
    }

    fn fate(&self, command: &Command) -> Fate {
        let faults = &self.config.faults;
        let durable = command.opcode == nvm::FLUSH || command.cdw12.get() & FUA != 0;
        if self.chance(faults.status) || durable && self.chance(faults.durable) {
            return Fate::Status(self.any_status());
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
                self.post(id, self.wrong_cid(id, cid), id, None, Status::SUCCESS, 0);
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
                for (address, len) in state.pieces(&command).unwrap_or_default() {
                    state.reach(state.dma.borrow().write(address, &vec![GARBAGE; len]));
                }
            }
        });
    }

    /// Does something in so many microseconds, unless the controller is stopped before.
    pub(super) fn later(self: &Rc<Self>, micros: u64, work: impl FnOnce(&Rc<State>) + 'static) {
        let (state, epoch) = (self.clone(), self.epoch.get());
        self.ctx.spawn(async move {
            state.ctx.sleep(Duration::from_micros(micros)).await;
            if state.epoch.get() == epoch {
                work(&state);
            }
        });
    }

    pub(super) fn complete(self: &Rc<Self>, id: u16, cid: u16, status: Status, result: u32) {
        self.outstanding.borrow_mut().remove(&(id, cid));
        self.post(id, cid, id, None, status, result);
    }

    /// Writes a completion.
    pub(super) fn post(
        self: &Rc<Self>,
        id: u16,
        cid: u16,
        sq_id: u16,
        head: Option<u16>,
        status: Status,
        result: u32,
    ) {
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

    /// Does an I/O command.
    pub(super) fn perform(&self, command: &Command) -> Status {
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
                let pieces = match self.pieces(command) {
                    Ok(pieces) => pieces,
                    Err(status) => return status,
                };
                let mut rest = &mut space.current[(slba << shift) as usize..];
                for (address, len) in pieces {
                    let (part, behind) = rest.split_at_mut(len);
                    let dma = self.dma.borrow();
                    let reached = if command.opcode == nvm::READ {
                        dma.write(address, part)
                    } else {
                        dma.read(address, part)
                    };
                    self.reach(reached);
                    rest = behind;
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
