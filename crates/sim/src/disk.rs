//! A disk with a volatile write cache and a mind of its own: operations take a random time, and a power
//! cut keeps of each unflushed write all, nothing, or some of its sectors.

use crate::log::EventLog;
use cobalt_base::checksum::crc32c;
use cobalt_bdev::{Bdev, Device, Identify, Io, IoError, Op};
use cobalt_dma::Buf;
use cobalt_reactor::{Ctx, Scope};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// What the disk writes whole; a power cut tears here.
const SECTOR: usize = 512;
const BLOCK: usize = 4096;
/// Longest time of an operation, in microseconds.
const LATENCY_MAX_US: u64 = 400;

/// The platter and the cache: outlives the processes that mount it.
#[derive(Clone)]
pub struct Disk(Rc<Platter>);

struct Platter {
    name: String,
    size: u64,
    log: EventLog,
    rng: RefCell<StdRng>,
    /// Durable blocks; those never written read as zeroes.
    durable: RefCell<BTreeMap<u64, Box<[u8; BLOCK]>>>,
    /// Writes that no flush has covered yet, in the order of their submission.
    cache: RefCell<Vec<Held>>,
    next: Cell<u64>,
    /// Mounts that still reach the disk carry this number.
    mount: Cell<u64>,
}

struct Held {
    id: u64,
    offset: u64,
    bytes: Vec<u8>,
    complete: bool,
}

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
        Disk(Rc::new(Platter {
            name: name.into(),
            size,
            log: log.clone(),
            rng: RefCell::new(StdRng::seed_from_u64(seed)),
            durable: RefCell::default(),
            cache: RefCell::default(),
            next: Cell::new(0),
            mount: Cell::new(0),
        }))
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
        Device::new(Rc::new(Mount { identify, ctx: scope.ctx(), disk: self.0.clone(), mount }))
    }

    /// Cuts the power: whoever has it mounted reaches it no more, and of what was not flushed a random part stays.
    pub fn power_cut(&self, ctx: &Ctx) -> PowerCut {
        self.0.mount.set(self.0.mount.get() + 1);
        let mut cut = PowerCut::default();
        for held in self.0.cache.take() {
            let sectors = held.bytes.len() / SECTOR;
            let (from, to) = match self.0.below(3) {
                0 => (0, sectors),
                1 => (0, 0),
                _ => {
                    let at = self.0.below(sectors as u64 + 1) as usize;
                    if self.0.below(2) == 0 { (0, at) } else { (at, sectors) }
                }
            };
            match to - from {
                0 => cut.lost += 1,
                n if n == sectors => cut.kept += 1,
                _ => cut.torn += 1,
            }
            let bytes = &held.bytes[from * SECTOR..to * SECTOR];
            self.0.settle(held.offset + (from * SECTOR) as u64, bytes);
        }
        self.0.log.note(ctx, "power cut", &[cut.kept, cut.lost, cut.torn]);
        cut
    }

    /// Changes a durable byte, as rot does.
    pub fn rot(&self, at: u64) {
        let mut durable = self.0.durable.borrow_mut();
        let block = durable.entry(at / BLOCK as u64).or_insert_with(|| Box::new([0; BLOCK]));
        block[at as usize % BLOCK] ^= 0x40;
    }
}

impl Platter {
    fn below(&self, limit: u64) -> u64 {
        self.rng.borrow_mut().random_range(0..limit.max(1))
    }

    /// Makes bytes durable.
    fn settle(&self, offset: u64, bytes: &[u8]) {
        let mut durable = self.durable.borrow_mut();
        let mut at = offset as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let block = durable.entry((at / BLOCK) as u64).or_insert_with(|| Box::new([0; BLOCK]));
            let len = rest.len().min(BLOCK - at % BLOCK);
            block[at % BLOCK..at % BLOCK + len].copy_from_slice(&rest[..len]);
            at += len;
            rest = &rest[len..];
        }
    }

    fn read(&self, offset: u64, buf: &mut Buf) {
        let durable = self.durable.borrow();
        for (i, out) in buf.chunks_mut(BLOCK).enumerate() {
            match durable.get(&(offset / BLOCK as u64 + i as u64)) {
                Some(block) => out.copy_from_slice(&block[..out.len()]),
                None => out.fill(0),
            }
        }
        let end = offset + buf.len() as u64;
        for held in self.cache.borrow().iter().filter(|held| held.complete) {
            let from = held.offset.max(offset);
            let to = (held.offset + held.bytes.len() as u64).min(end);
            if from < to {
                let bytes = &held.bytes[(from - held.offset) as usize..(to - held.offset) as usize];
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(bytes);
            }
        }
    }

    /// Makes the writes in `ids` durable, in the order of their submission.
    fn flush(&self, ids: &[u64]) {
        let (flushed, kept) =
            self.cache.take().into_iter().partition::<Vec<_>, _>(|held| ids.contains(&held.id));
        *self.cache.borrow_mut() = kept;
        for held in flushed {
            self.settle(held.offset, &held.bytes);
        }
    }
}

struct Mount {
    identify: Identify,
    ctx: Ctx,
    disk: Rc<Platter>,
    mount: u64,
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
        let latency = Duration::from_micros(1 + disk.below(LATENCY_MAX_US));
        let (ctx, log, mount) = (self.ctx.clone(), disk.log.clone(), self.mount);
        let gone = move |disk: &Platter| disk.mount.get() != mount;
        let id = disk.next.replace(disk.next.get() + 1);
        match op {
            Op::Read { offset, mut buf } => drop(self.ctx.spawn(async move {
                log.note(&ctx, &disk.name, &[0, offset, buf.len() as u64]);
                ctx.sleep(latency).await;
                if gone(&disk) {
                    return done.send(Err(IoError::Gone));
                }
                disk.read(offset, &mut buf);
                done.send(Ok(Some(buf)));
            })),
            Op::Write { offset, data, fua } => {
                let bytes = data.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>();
                log.note(
                    &ctx,
                    &disk.name,
                    &[1, offset, bytes.len() as u64, crc32c(&bytes).into(), fua.into()],
                );
                // From now on a power cut may find some of it on the platter.
                disk.cache.borrow_mut().push(Held { id, offset, bytes, complete: false });
                drop(self.ctx.spawn(async move {
                    ctx.sleep(latency).await;
                    if gone(&disk) {
                        return done.send(Err(IoError::Gone));
                    }
                    if fua {
                        // What older writes left of these sectors is older still: order stays.
                        let covered: Vec<u64> = disk.overlapped_by(id);
                        disk.flush(&covered);
                    } else if let Some(held) = disk.cache.borrow_mut().iter_mut().find(|held| held.id == id) {
                        held.complete = true;
                    }
                    drop(data);
                    done.send(Ok(None));
                }));
            }
            Op::Flush => {
                let complete: Vec<u64> =
                    disk.cache.borrow().iter().filter(|held| held.complete).map(|held| held.id).collect();
                log.note(&ctx, &disk.name, &[2, complete.len() as u64]);
                drop(self.ctx.spawn(async move {
                    ctx.sleep(latency).await;
                    if gone(&disk) {
                        return done.send(Err(IoError::Gone));
                    }
                    disk.flush(&complete);
                    done.send(Ok(None));
                }));
            }
            Op::Deallocate { offset, len } => {
                log.note(&ctx, &disk.name, &[3, offset, len]);
                drop(self.ctx.spawn(async move {
                    ctx.sleep(latency).await;
                    done.send(Ok(None));
                }));
            }
        }
    }
}

impl Platter {
    /// The write itself, and completed ones below it.
    fn overlapped_by(&self, id: u64) -> Vec<u64> {
        let cache = self.cache.borrow();
        let Some(own) = cache.iter().find(|held| held.id == id) else { return vec![id] };
        let end = own.offset + own.bytes.len() as u64;
        let below = |held: &&Held| {
            held.id <= id && held.offset < end && own.offset < held.offset + held.bytes.len() as u64
        };
        cache.iter().filter(below).map(|held| held.id).collect()
    }
}
