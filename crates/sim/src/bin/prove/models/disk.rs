//! A disk for models: a volatile cache, completions in any order, power cuts that lose and tear, and failures on
//! order. Everything random in it follows from its own seed.

use cobalt_bdev::{Bdev, Device, Identify, Io, IoError, Op};
use cobalt_reactor::{Ctx, Scope};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

const SECTOR: usize = 512;
/// Longest time of an operation, in microseconds.
const LATENCY_MAX_US: u64 = 30;

/// Kinds of operations, as failures name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Flush,
    Deallocate,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Read, Kind::Write, Kind::Flush, Kind::Deallocate];

    pub fn of(op: &Op) -> Kind {
        match op {
            Op::Read { .. } => Kind::Read,
            Op::Write { .. } => Kind::Write,
            Op::Flush => Kind::Flush,
            Op::Deallocate { .. } => Kind::Deallocate,
        }
    }
}

/// Errors that a backend can answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Failed,
    Gone,
    HostFull,
}

impl Error {
    pub const ALL: [Error; 3] = [Error::Failed, Error::Gone, Error::HostFull];

    fn of(self, op: &'static str, offset: u64, len: u64) -> IoError {
        match self {
            Error::Failed => IoError::Failed { op, offset, len, reason: "injected".into() },
            Error::Gone => IoError::Gone,
            Error::HostFull => IoError::HostFull { offset, len },
        }
    }
}

/// Operation number `at` of a kind, counted from when this was ordered, fails: alone, or with all after it.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub at: u64,
    pub forever: bool,
    pub error: Error,
}

/// What a power cut leaves of what was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Nothing,
    All,
    /// Each write whole or not at all.
    Writes,
    /// Each sector for itself.
    Sectors,
    /// The power stays; the process is gone, and the device finishes some of what it was doing.
    ProcessOnly,
}

impl Cut {
    pub const ALL: [Cut; 5] = [Cut::Nothing, Cut::All, Cut::Writes, Cut::Sectors, Cut::ProcessOnly];
}

/// The platter and the cache. Outlives the processes that mount it.
#[derive(Clone)]
pub struct Disk(Rc<State>);

struct State {
    identify: Identify,
    rng: RefCell<StdRng>,
    /// What a read gets.
    current: RefCell<Vec<u8>>,
    /// What a power cut leaves for certain.
    durable: RefCell<Vec<u8>>,
    /// Writes that are not durable, in the order of their submission.
    held: RefCell<Vec<Held>>,
    clock: Cell<u64>,
    mount: Cell<u64>,
    seen: Cell<[u64; 4]>,
    fault: Cell<Option<Fault>>,
    /// When the fault was ordered, by `seen`.
    since: Cell<[u64; 4]>,
    injected: Cell<[u64; 4]>,
    /// Writes that failed, and not for want of room.
    broken_writes: Cell<u64>,
    paused: Cell<bool>,
    /// Called with every operation.
    hook: RefCell<Option<Rc<dyn Fn()>>>,
}

struct Held {
    id: u64,
    /// Order of completion; 0 while under way.
    order: u64,
    offset: usize,
    bytes: Vec<u8>,
}

impl Disk {
    pub fn new(name: &str, size: usize, transfer: u32, seed: u64) -> Disk {
        Disk::of(name, vec![0; size], transfer, seed)
    }

    /// Another disk with what a reader of this one finds now.
    pub fn copy(&self) -> Disk {
        Disk::of("copy", self.0.current.borrow().clone(), self.0.identify.transfer_max, 0)
    }

    fn of(name: &str, image: Vec<u8>, transfer: u32, seed: u64) -> Disk {
        let identify = Identify {
            backend: format!("model:{name}"),
            size: image.len() as u64,
            block_size: 4096,
            volatile_cache: true,
            atomic_write: 512,
            depth: 64,
            transfer_max: transfer,
            deallocate: true,
        };
        Disk(Rc::new(State {
            identify,
            rng: RefCell::new(StdRng::seed_from_u64(seed)),
            durable: RefCell::new(image.clone()),
            current: RefCell::new(image),
            held: RefCell::default(),
            clock: Cell::new(0),
            mount: Cell::new(0),
            seen: Cell::default(),
            fault: Cell::new(None),
            since: Cell::default(),
            injected: Cell::default(),
            broken_writes: Cell::new(0),
            paused: Cell::new(false),
            hook: RefCell::default(),
        }))
    }

    /// The disk as a process sees it until it dies.
    pub fn mount(&self, scope: &Scope) -> Device {
        let (state, mount) = (self.0.clone(), self.0.mount.get());
        Device::new(Rc::new(Mount { ctx: scope.ctx(), mount, state }))
    }

    /// Writes that failed, and not for want of room.
    pub fn broken_writes(&self) -> u64 {
        self.0.broken_writes.get()
    }

    /// While paused, operations are neither counted nor failed.
    pub fn pause(&self, paused: bool) {
        self.0.paused.set(paused);
    }

    /// Calls `hook` with every operation that is counted.
    pub fn on_operation(&self, hook: Rc<dyn Fn()>) {
        self.0.hook.replace(Some(hook));
    }

    /// Orders a failure, or takes the order back.
    pub fn fail(&self, fault: Option<Fault>) {
        self.0.since.set(self.0.seen.get());
        self.0.fault.set(fault);
    }

    /// Operations so far, by kind.
    pub fn seen(&self) -> [u64; 4] {
        self.0.seen.get()
    }

    /// Failures so far, by kind.
    pub fn injected(&self) -> [u64; 4] {
        self.0.injected.get()
    }

    /// Whoever has it mounted reaches it no more; of what was not flushed stays what `cut` says.
    pub fn cut(&self, cut: Cut) {
        let state = &*self.0;
        state.mount.set(state.mount.get() + 1);
        let mut held = state.held.take();
        held.sort_by_key(|h| if h.order == 0 { u64::MAX } else { h.order });
        if cut == Cut::ProcessOnly {
            held.retain(|h| h.order > 0 || state.below(2) == 0);
            for write in &mut held {
                if write.order == 0 {
                    write.order = state.tick();
                    state.current.borrow_mut()[write.offset..][..write.bytes.len()]
                        .copy_from_slice(&write.bytes);
                }
            }
            state.held.replace(held);
            return;
        }
        let mut durable = state.durable.borrow_mut();
        for write in held {
            let whole = state.below(2) == 0;
            for (at, sector) in write.bytes.chunks(SECTOR).enumerate() {
                let stays = match cut {
                    Cut::All => write.order > 0,
                    Cut::Writes => whole,
                    Cut::Sectors => state.below(2) == 0,
                    Cut::Nothing | Cut::ProcessOnly => false,
                };
                if stays {
                    durable[write.offset + at * SECTOR..][..sector.len()].copy_from_slice(sector);
                }
            }
        }
        state.current.borrow_mut().copy_from_slice(&durable);
    }
}

impl State {
    fn below(&self, limit: u64) -> u64 {
        self.rng.borrow_mut().random_range(0..limit.max(1))
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// Counts an operation; the error it is to fail with.
    fn count(&self, kind: Kind) -> Option<Error> {
        if self.paused.get() {
            return None;
        }
        let hook = self.hook.borrow().clone();
        if let Some(hook) = hook {
            hook();
        }
        let at = kind as usize;
        let mut seen = self.seen.get();
        seen[at] += 1;
        self.seen.set(seen);
        let fault = self.fault.get().filter(|f| f.kind == kind)?;
        let number = seen[at] - 1 - self.since.get()[at];
        let due = number == fault.at || (fault.forever && number > fault.at);
        due.then(|| {
            let mut injected = self.injected.get();
            injected[at] += 1;
            self.injected.set(injected);
            if kind == Kind::Write && fault.error != Error::HostFull {
                self.broken_writes.set(self.broken_writes.get() + 1);
            }
            fault.error
        })
    }

    fn complete(&self, id: u64) {
        let order = self.tick();
        let mut held = self.held.borrow_mut();
        let Some(write) = held.iter_mut().find(|h| h.id == id) else { return };
        write.order = order;
        self.current.borrow_mut()[write.offset..][..write.bytes.len()].copy_from_slice(&write.bytes);
    }

    /// A write that failed left nothing, all, or some sectors.
    fn spoil(&self, id: u64) {
        let whole = self.below(3);
        let order = self.tick();
        let mut held = self.held.borrow_mut();
        let Some(at) = held.iter().position(|h| h.id == id) else { return };
        if whole == 0 {
            held.remove(at);
            return;
        }
        let mut current = self.current.borrow_mut();
        let write = &mut held[at];
        write.order = order;
        let place = &mut current[write.offset..][..write.bytes.len()];
        for (old, new) in place.chunks_mut(SECTOR).zip(write.bytes.chunks_mut(SECTOR)) {
            if whole == 1 && self.below(2) == 0 {
                new.copy_from_slice(old);
            } else {
                old.copy_from_slice(new);
            }
        }
    }

    /// Makes the writes of these ids durable, and those they lie on; with `lossy` some of them are forgotten instead: a system
    /// that failed to write its cache back calls it clean all the same.
    fn persist(&self, ids: &[u64], lossy: bool) {
        let mut chosen = Vec::new();
        self.held.borrow_mut().retain_mut(|h| {
            let mine = ids.contains(&h.id);
            if mine {
                chosen.push((h.order, h.offset, std::mem::take(&mut h.bytes)));
            }
            !mine
        });
        chosen.sort_unstable_by_key(|(order, ..)| *order);
        let mut durable = self.durable.borrow_mut();
        for (_, offset, bytes) in chosen {
            if !lossy || self.below(2) == 0 {
                durable[offset..][..bytes.len()].copy_from_slice(&bytes);
            }
        }
    }

    /// The write itself and completed ones that it lies on.
    fn with_older(&self, id: u64) -> Vec<u64> {
        let held = self.held.borrow();
        let Some(own) = held.iter().find(|h| h.id == id) else { return Vec::new() };
        let (start, end) = (own.offset, own.offset + own.bytes.len());
        let over = |h: &&Held| h.order > 0 && h.offset < end && start < h.offset + h.bytes.len();
        held.iter().filter(over).map(|h| h.id).collect()
    }
}

struct Mount {
    ctx: Ctx,
    mount: u64,
    state: Rc<State>,
}

impl Bdev for Mount {
    fn identify(&self) -> &Identify {
        &self.state.identify
    }

    fn submit(&self, io: Io) {
        let Io { op, done } = io;
        let (state, ctx, mount) = (self.state.clone(), self.ctx.clone(), self.mount);
        if state.mount.get() != mount {
            return done.send(Err(IoError::Gone));
        }
        let error = state.count(Kind::of(&op));
        let latency = Duration::from_micros(state.below(LATENCY_MAX_US));
        // From now on a power cut may find it on the platter, in part.
        let id = state.tick();
        let mut covered = Vec::new();
        match &op {
            Op::Write { offset, data, .. } => {
                let bytes = data.iter().flat_map(|s| s.iter().copied()).collect();
                state.held.borrow_mut().push(Held { id, order: 0, offset: *offset as usize, bytes });
            }
            Op::Flush => covered = state.held.borrow().iter().filter(|h| h.order > 0).map(|h| h.id).collect(),
            Op::Read { .. } | Op::Deallocate { .. } => {}
        }
        drop(self.ctx.spawn(async move {
            ctx.sleep(latency).await;
            if state.mount.get() != mount {
                return done.send(Err(IoError::Gone));
            }
            match op {
                Op::Read { offset, mut buf } => {
                    if let Some(error) = error {
                        return done.send(Err(error.of("read", offset, buf.len() as u64)));
                    }
                    let len = buf.len();
                    buf.copy_from_slice(&state.current.borrow()[offset as usize..][..len]);
                    done.send(Ok(Some(buf)));
                }
                Op::Write { offset, data, fua } => {
                    let len = data.iter().map(|s| s.len() as u64).sum();
                    drop(data);
                    if let Some(error) = error {
                        state.spoil(id);
                        return done.send(Err(error.of("write", offset, len)));
                    }
                    state.complete(id);
                    if fua {
                        state.persist(&state.with_older(id), false);
                    }
                    done.send(Ok(None));
                }
                Op::Flush => {
                    state.persist(&covered, error.is_some());
                    done.send(error.map_or(Ok(None), |error| Err(error.of("flush", 0, 0))));
                }
                Op::Deallocate { offset, len } => {
                    if let Some(error) = error {
                        return done.send(Err(error.of("deallocate", offset, len)));
                    }
                    // Not zeros: whoever relies on the content of a freed block shall see it.
                    for image in [&state.current, &state.durable] {
                        image.borrow_mut()[offset as usize..][..len as usize].fill(0xdd);
                    }
                    // Of a write that lies only partly in the range, the rest is still to be flushed.
                    let (start, end) = (offset as usize, (offset + len) as usize);
                    for write in state.held.borrow_mut().iter_mut().filter(|h| h.order > 0) {
                        let from = start.clamp(write.offset, write.offset + write.bytes.len());
                        let to = end.clamp(write.offset, write.offset + write.bytes.len());
                        write.bytes[from - write.offset..to - write.offset].fill(0xdd);
                    }
                    done.send(Ok(None));
                }
            }
        }));
    }
}
