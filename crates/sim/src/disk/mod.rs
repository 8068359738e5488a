//! A disk with a volatile write cache and a mind of its own: operations take a random time, a power cut keeps of
//! each unflushed write all, nothing, or some of its sectors; and what a plan of faults says goes wrong besides.

mod faults;
mod platter;

pub use faults::{Fault, FaultCounts, FaultPlan};

use crate::log::EventLog;
use cobalt_base::checksum::crc32c;
use cobalt_bdev::{Bdev, Device, Done, Identify, Io, IoError, Op};
use cobalt_reactor::{Ctx, Scope};
use platter::{Held, Platter};
use std::rc::Rc;
use std::time::Duration;

/// What the disk writes whole; a power cut tears here.
const SECTOR: usize = 512;
const BLOCK: usize = 4096;
/// Longest time of an operation, in microseconds.
const LATENCY_MAX_US: u64 = 400;
/// What a read finds where a range was deallocated: whoever relies on it shall see it.
const DEALLOCATED: u8 = 0xdd;

/// The platter and the cache: outlives the processes that mount it.
#[derive(Clone)]
pub struct Disk(Rc<Platter>);

/// Counts of what a power cut did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PowerCut {
    pub kept: u64,
    pub lost: u64,
    pub torn: u64,
}

impl Disk {
    /// An empty disk of `size` bytes, a multiple of 4 KiB.
    pub fn new(name: &str, size: u64, seed: u64, log: &EventLog) -> Disk {
        Disk(Rc::new(Platter::new(name, size, seed, log)))
    }

    /// The disk as a process sees it, until the next power cut. Operations run in tasks of `scope`.
    pub fn mount(&self, scope: &Scope) -> Device {
        let identify = Identify {
            backend: format!("sim:{}", self.0.name),
            size: self.0.size,
            block_size: 4096,
            volatile_cache: true,
            atomic_write: 512,
            depth: 64,
            transfer_max: 4 << 20,
            deallocate: true,
        };
        let mount = self.0.mount.get();
        self.0.dead.set(false);
        Device::new(Rc::new(Mount { identify, ctx: scope.ctx(), disk: self.0.clone(), mount }))
    }

    /// Cuts the power: whoever has it mounted reaches it no more, and of what was not flushed a random part stays.
    /// A disk that hangs is back.
    pub fn power_cut(&self, ctx: &Ctx) -> PowerCut {
        self.0.mount.set(self.0.mount.get() + 1);
        self.come_back();
        let cut = self.0.power_cut();
        self.0.log.note(ctx, "power cut", &[cut.kept, cut.lost, cut.torn]);
        cut
    }

    /// Changes a durable byte, as rot does.
    pub fn rot(&self, at: u64) {
        self.0.dice.borrow_mut().count(Fault::Rot);
        self.0.flip(at, 0x40);
    }

    /// Follows another plan of faults from now on.
    pub fn set_faults(&self, plan: FaultPlan) {
        self.0.dice.borrow_mut().set(plan);
    }

    /// The faults so far.
    pub fn faults(&self) -> FaultCounts {
        self.0.dice.borrow().counts()
    }

    /// No operation ends for so long, or until [`Disk::come_back`].
    pub fn hang(&self, ctx: &Ctx, time: Duration) {
        self.0.dice.borrow_mut().count(Fault::Hang);
        self.0.hang(ctx, time);
    }

    /// Ends a hang.
    pub fn come_back(&self) {
        self.0.hung_until.set(None);
        self.0.back.notify_all();
    }
}

struct Mount {
    identify: Identify,
    ctx: Ctx,
    disk: Rc<Platter>,
    mount: u64,
}

/// An operation that was taken, on its way to its answer.
struct Running {
    ctx: Ctx,
    disk: Rc<Platter>,
    mount: u64,
    latency: Duration,
    done: Done,
}

impl Running {
    /// Waits until it is its turn; answers itself when the disk is gone, dead or struck. `failure` is what it says then.
    async fn ready(self, failure: Option<IoError>) -> Option<Running> {
        self.ctx.sleep(self.latency).await;
        self.disk.responds(&self.ctx).await;
        if self.disk.mount.get() != self.mount {
            self.done.send(Err(IoError::Gone));
            return None;
        }
        if let Some(failure) = failure {
            self.done.send(Err(failure));
            return None;
        }
        Some(self)
    }
}

impl Bdev for Mount {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn submit(&self, io: Io) {
        let Io { op, done } = io;
        let disk = self.disk.clone();
        if disk.mount.get() != self.mount {
            return done.send(Err(IoError::Gone));
        }
        disk.live(&self.ctx);
        let latency = Duration::from_micros(1 + disk.below(LATENCY_MAX_US));
        let running = Running { ctx: self.ctx.clone(), disk, mount: self.mount, latency, done };
        match op {
            Op::Read { offset, buf } => self.read(running, offset, buf),
            Op::Write { offset, data, fua } => self.write(running, offset, data, fua),
            Op::Flush => self.flush(running),
            Op::Deallocate { offset, len } => self.deallocate(running, offset, len),
        }
    }
}

impl Mount {
    fn note(&self, numbers: &[u64]) {
        self.disk.log.note(&self.ctx, &self.disk.name, numbers);
    }

    fn strikes(&self, fault: Fault) -> bool {
        self.disk.strikes(&self.ctx, fault)
    }

    /// What an operation says that a fault makes fail.
    fn failure(&self, op: &'static str, offset: u64, len: u64, fault: Fault) -> Option<IoError> {
        let failed = |reason: &str| IoError::Failed { op, offset, len, reason: reason.into() };
        if self.disk.dead.get() {
            return Some(failed("the disk is dead"));
        }
        self.strikes(fault).then(|| failed(fault.name()))
    }

    fn read(&self, running: Running, offset: u64, mut buf: cobalt_dma::Buf) {
        let len = buf.len() as u64;
        self.note(&[0, offset, len]);
        if self.strikes(Fault::MediumError) {
            self.disk.spoil(offset, len);
        }
        let failure = self.failure("read", offset, len, Fault::ReadError);
        let from = match self.strikes(Fault::MisdirectedRead) {
            true => self.disk.elsewhere(offset, len),
            false => offset,
        };
        drop(self.ctx.spawn(async move {
            let Some(running) = running.ready(failure).await else { return };
            if running.disk.is_spoilt(offset, len) {
                let reason = "unrecovered medium error".to_owned();
                return running.done.send(Err(IoError::Failed { op: "read", offset, len, reason }));
            }
            running.disk.read(from, &mut buf);
            running.done.send(Ok(Some(buf)));
        }));
    }

    fn write(&self, running: Running, offset: u64, data: cobalt_bdev::WriteData, fua: bool) {
        let mut bytes = data.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>();
        let len = bytes.len() as u64;
        self.note(&[1, offset, len, crc32c(&bytes).into(), fua.into()]);
        let failure = self.failure("write", offset, len, Fault::WriteError);
        if failure.is_some() {
            let sectors = self.disk.below(len / SECTOR as u64 + 1) as usize;
            bytes.truncate(if self.disk.dead.get() { 0 } else { sectors * SECTOR });
        }
        let lost = self.strikes(Fault::LostWrite);
        let to = match self.strikes(Fault::MisdirectedWrite) {
            true => self.disk.elsewhere(offset, len),
            false => offset,
        };
        // From now on a power cut may find some of it on the platter.
        let id = self.disk.take(Held { id: 0, offset: to, bytes, complete: false, lost });
        drop(self.ctx.spawn(async move {
            let disk = running.disk.clone();
            let running = running.ready(failure).await;
            if disk.has(id) {
                disk.complete(id);
            }
            let Some(running) = running else { return };
            if fua {
                // What older writes left of these sectors is older still: order stays.
                disk.settle_one(id);
            }
            disk.heal(offset, len);
            drop(data);
            running.done.send(Ok(None));
        }));
    }

    fn flush(&self, running: Running) {
        let complete = self.disk.completed();
        self.note(&[2, complete.len() as u64]);
        let failure = self.failure("flush", 0, 0, Fault::FlushError);
        drop(self.ctx.spawn(async move {
            let (disk, failed) = (running.disk.clone(), failure.is_some());
            let Some(running) = running.ready(failure).await else {
                if failed {
                    disk.forget_some(&complete);
                }
                return;
            };
            disk.flush(&complete);
            running.done.send(Ok(None));
        }));
    }

    fn deallocate(&self, running: Running, offset: u64, len: u64) {
        self.note(&[3, offset, len]);
        let bytes = vec![DEALLOCATED; len as usize];
        let id = self.disk.take(Held { id: 0, offset, bytes, complete: false, lost: false });
        drop(self.ctx.spawn(async move {
            let Some(running) = running.ready(None).await else { return };
            running.disk.complete(id);
            running.done.send(Ok(None));
        }));
    }
}
