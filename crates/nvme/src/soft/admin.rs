//! How the software controller does admin commands: rightly, or as its faults say.

use super::exec::{GARBAGE, PAGE};
use super::{Queue, State};
use crate::spec::command::feature;
use crate::spec::identify::{IdentifyController, IdentifyNamespace, cns};
use crate::spec::log::{self, Firmware, Smart};
use crate::spec::{Command, Status, admin};
use rand::Rng;
use std::rc::Rc;
use zerocopy::{FromZeros, IntoBytes};

/// What an admin command takes.
const ADMIN_MICROS: u64 = 20;

/// What went wrong with admin commands, by opcode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdminFaults {
    pub hangs: u64,
    pub statuses: u64,
    pub illegal: u64,
}

impl State {
    /// An admin command. A request for events has no fault of its own: it may take for ever.
    pub(super) fn start_admin(self: &Rc<Self>, command: Command) {
        let (cid, opcode) = (command.cid.get(), command.opcode);
        let faults = &self.config.faults;
        let note = |f: fn(&mut AdminFaults)| f(self.admin_faults.borrow_mut().entry(opcode).or_default());
        if opcode == admin::ASYNC_EVENT {
            self.do_admin(command);
        } else if self.hang_next.get() == Some(opcode) || self.chance(faults.admin_hang) {
            self.hang_next.set(None);
            note(|f| f.hangs += 1);
            self.hang_admin(command);
        } else if self.chance(faults.admin_status) {
            note(|f| f.statuses += 1);
            let status = self.any_status();
            self.soon(move |state| state.complete(0, cid, status, 0));
        } else if self.chance(faults.admin_illegal) {
            note(|f| f.illegal += 1);
            self.answer_wrongly(command);
        } else {
            self.do_admin(command);
        }
    }

    /// It is never answered. Until the controller is stopped, its page may be written.
    fn hang_admin(self: &Rc<Self>, command: Command) {
        if !matches!(command.opcode, admin::IDENTIFY | admin::GET_LOG_PAGE) {
            return;
        }
        let time = self.rng.borrow_mut().random_range(1_000..60_000);
        self.later(time, move |state| {
            state.count(|c| c.late_dma += 1);
            state.reach(state.dma.borrow().write(command.prp1.get(), &[GARBAGE; PAGE as usize]));
        });
    }

    fn answer_wrongly(self: &Rc<Self>, command: Command) {
        let cid = command.cid.get();
        let kind = self.rng.borrow_mut().random_range(0..4);
        match kind {
            0 => self.soon(move |state| {
                let wrong = state.wrong_cid(0, cid);
                state.post(0, wrong, 0, None, Status::SUCCESS, 0);
            }),
            1 => self.soon(move |state| state.post(0, cid, 1, None, Status::SUCCESS, 0)),
            2 => self.soon(move |state| state.post(0, cid, 0, Some(u16::MAX), Status::SUCCESS, 0)),
            // Done and answered, and answered again.
            _ => {
                self.do_admin(command);
                self.later(ADMIN_MICROS + 150, move |state| state.post(0, cid, 0, None, Status::SUCCESS, 0));
            }
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
        self.soon(move |state| state.complete(0, cid, status, result));
    }

    fn soon(self: &Rc<Self>, work: impl FnOnce(&Rc<State>) + 'static) {
        match self.config.latency {
            None => work(self),
            Some(_) => self.later(ADMIN_MICROS, work),
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
                data.sgls = config.sgls.into();
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
