//! A device for tests: completions take random times, unflushed writes are kept apart, and a power cut
//! keeps, drops or tears them at 512 bytes.

use cobalt_bdev::{Bdev, Identify, Io, IoError, Op};
use cobalt_reactor::Ctx;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const SECTOR: usize = 512;

pub struct TestDev {
    ctx: Ctx,
    identify: Identify,
    state: Rc<State>,
}

#[derive(Default)]
pub struct State {
    /// What a read gets.
    current: RefCell<Vec<u8>>,
    /// What a power cut leaves for certain.
    durable: RefCell<Vec<u8>>,
    /// Sectors written and not flushed, with all that a power cut may leave there.
    unflushed: RefCell<BTreeMap<usize, Vec<Version>>>,
    /// For each sector, the order number of the completed write that is durable.
    durable_order: RefCell<BTreeMap<usize, u64>>,
    clock: Cell<u64>,
    pub flushes: Cell<u64>,
    pub writes: Cell<u64>,
    /// Fails the flush or write when this many more were done.
    pub fail_flush_in: Cell<Option<u64>>,
    pub fail_write_in: Cell<Option<u64>>,
    /// Those failures are for want of room on the host.
    pub host_full: Cell<bool>,
    /// The process that asked is gone: what it asked to be durable is only in the cache.
    pub orphaned: Cell<bool>,
    /// Reads of this byte fail.
    pub bad_read: Cell<Option<u64>>,
    /// It says of itself that it is gone.
    pub lost: Cell<bool>,
    /// Longest time of an operation, in microseconds.
    pub slow_us: Cell<u64>,
    /// Time of a flush on top of that, in microseconds.
    pub slow_flush_us: Cell<u64>,
}

/// What a write makes of a sector.
struct Version {
    write: u64,
    /// Order number of its completion; 0 while it is under way.
    order: u64,
    bytes: [u8; SECTOR],
}

/// What a flush covers: the writes that were complete when it was submitted, and none that came later.
type Covered = Vec<(usize, u64, [u8; SECTOR])>;

impl TestDev {
    pub fn new(ctx: &Ctx, image: Vec<u8>) -> TestDev {
        let identify = Identify {
            backend: "test".into(),
            size: image.len() as u64,
            block_size: 4096,
            volatile_cache: true,
            atomic_write: 512,
            depth: 64,
            transfer_max: 64 << 10,
            deallocate: true,
        };
        let state = State { durable: RefCell::new(image.clone()), ..State::default() };
        *state.current.borrow_mut() = image;
        state.slow_us.set(20);
        TestDev { ctx: ctx.clone(), identify, state: Rc::new(state) }
    }

    /// Takes transfers of this length.
    pub fn with_transfer(mut self, bytes: u32) -> TestDev {
        self.identify.transfer_max = bytes;
        self
    }

    pub fn state(&self) -> Rc<State> {
        self.state.clone()
    }
}

impl State {
    /// The image after a power cut: `mode` 0 keeps nothing unflushed, 1 all, others a random choice.
    pub fn cut(&self, ctx: &Ctx, mode: u64) -> Vec<u8> {
        let mut image = self.durable.borrow().clone();
        let mut keep = true;
        for (i, (sector, versions)) in self.unflushed.borrow().iter().enumerate() {
            // Runs of sectors live and die together in mode 2; each one alone in the others.
            if mode != 2 || i % 8 == 0 {
                keep = mode == 1 || (mode > 1 && ctx.random_u64().is_multiple_of(2));
            }
            if !keep {
                continue;
            }
            let pick =
                if mode == 1 { versions.len() - 1 } else { ctx.random_u64() as usize % versions.len() };
            image[sector * SECTOR..][..SECTOR].copy_from_slice(&versions[pick].bytes);
        }
        image
    }

    /// Changes bytes under the store's feet, durably.
    pub fn spoil(&self, at: usize, change: impl Fn(&mut u8)) {
        change(&mut self.current.borrow_mut()[at]);
        change(&mut self.durable.borrow_mut()[at]);
    }

    pub fn current(&self) -> Vec<u8> {
        self.current.borrow().clone()
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// A write is on its way; its number.
    fn note(&self, offset: u64, bytes: &[u8]) -> u64 {
        let write = self.tick();
        let mut unflushed = self.unflushed.borrow_mut();
        for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let entry = unflushed.entry(offset as usize / SECTOR + i).or_default();
            entry.push(Version { write, order: 0, bytes: sector.try_into().unwrap() });
        }
        write
    }

    fn complete(&self, write: u64, offset: u64, len: usize) {
        let order = self.tick();
        let mut unflushed = self.unflushed.borrow_mut();
        for sector in offset as usize / SECTOR..(offset as usize + len) / SECTOR {
            let versions = unflushed.get_mut(&sector).into_iter().flatten();
            for version in versions.filter(|v| v.write == write) {
                version.order = order;
            }
        }
    }

    fn covered(&self) -> Covered {
        let mut covered = Vec::new();
        for (sector, versions) in self.unflushed.borrow().iter() {
            if let Some(last) = versions.iter().filter(|v| v.order > 0).max_by_key(|v| v.order) {
                covered.push((*sector, last.order, last.bytes));
            }
        }
        covered
    }

    fn make_durable(&self, covered: Covered) {
        let mut unflushed = self.unflushed.borrow_mut();
        for (sector, order, bytes) in covered {
            let mut orders = self.durable_order.borrow_mut();
            let durable = orders.entry(sector).or_default();
            if *durable < order {
                *durable = order;
                self.durable.borrow_mut()[sector * SECTOR..][..SECTOR].copy_from_slice(&bytes);
            }
            if let Some(versions) = unflushed.get_mut(&sector) {
                versions.retain(|v| v.order == 0 || v.order > order);
                if versions.is_empty() {
                    unflushed.remove(&sector);
                }
            }
        }
    }

    fn run(&self, op: Op, write: u64, covered: Covered) -> Result<Option<cobalt_dma::Buf>, IoError> {
        let failed = |op, offset| match self.host_full.get() {
            true => Err(IoError::HostFull { offset, len: 0 }),
            false => Err(IoError::Failed { op, offset, len: 0, reason: "injected".into() }),
        };
        let due = |cell: &Cell<Option<u64>>| match cell.get() {
            Some(0) => true,
            Some(n) => {
                cell.set(Some(n - 1));
                false
            }
            None => false,
        };
        match op {
            Op::Read { offset, mut buf } => {
                let len = buf.len();
                if self.bad_read.get().is_some_and(|at| at >= offset && at < offset + len as u64) {
                    return failed("read", offset);
                }
                buf.copy_from_slice(&self.current.borrow()[offset as usize..offset as usize + len]);
                Ok(Some(buf))
            }
            Op::Write { offset, data, fua } => {
                self.writes.set(self.writes.get() + 1);
                if due(&self.fail_write_in) {
                    return failed("write", offset);
                }
                let bytes: Vec<u8> = data.iter().flat_map(|s| s.iter().copied()).collect();
                let range = offset as usize..offset as usize + bytes.len();
                self.current.borrow_mut()[range].copy_from_slice(&bytes);
                self.complete(write, offset, bytes.len());
                if fua && !self.orphaned.get() {
                    let sectors = offset as usize / SECTOR..(offset as usize + bytes.len()) / SECTOR;
                    let own = self.covered().into_iter().filter(|(s, ..)| sectors.contains(s)).collect();
                    self.make_durable(own);
                }
                Ok(None)
            }
            Op::Flush => {
                self.flushes.set(self.flushes.get() + 1);
                if due(&self.fail_flush_in) {
                    return failed("flush", 0);
                }
                if !self.orphaned.get() {
                    self.make_durable(covered);
                }
                Ok(None)
            }
            Op::Deallocate { offset, len } => {
                // Not zeros: whoever relies on the content of a freed block shall see it.
                self.current.borrow_mut()[offset as usize..(offset + len) as usize].fill(0xdd);
                self.durable.borrow_mut()[offset as usize..(offset + len) as usize].fill(0xdd);
                Ok(None)
            }
        }
    }
}

impl Bdev for TestDev {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn lost(&self) -> Option<String> {
        self.state.lost.get().then(|| "pulled out".to_owned())
    }

    fn submit(&self, io: Io) {
        let (state, ctx) = (self.state.clone(), self.ctx.clone());
        // From now on a power cut may find it on the device, complete or not.
        let (mut write, mut covered) = (0, Vec::new());
        match &io.op {
            Op::Write { offset, data, .. } => {
                let bytes: Vec<u8> = data.iter().flat_map(|s| s.iter().copied()).collect();
                write = state.note(*offset, &bytes);
            }
            Op::Flush => covered = state.covered(),
            _ => {}
        }
        drop(self.ctx.spawn(async move {
            let flush = if matches!(io.op, Op::Flush) { state.slow_flush_us.get() } else { 0 };
            let us = ctx.random_u64() % state.slow_us.get().max(1) + flush;
            ctx.sleep(Duration::from_micros(us)).await;
            let result = state.run(io.op, write, covered);
            io.done.send(result);
        }));
    }
}
