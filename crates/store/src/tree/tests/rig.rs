//! A small target: a device that keeps a record of what is done to it, and a forest on it.

use crate::checkpoint::{Checkpointed, Stamp, checkpoint};
use crate::geometry::{Geometry, JOURNAL_LEN_MIN, Region};
use crate::superblock::{BitmapRef, JournalPosition, Superblock};
use crate::tree::{Forest, MetaError, Miss, Root, Roots, TreeId, TreeLimits, verify};
use cobalt_base::Lsn;
use cobalt_bdev::{Bdev, Device, Identify, Io, IoError, MemBdev, Op};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use uuid::Uuid;

/// The four trees as they should be.
pub type Model = [BTreeMap<Vec<u8>, Vec<u8>>; 4];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Write {
        at: u64,
        len: u64,
    },
    Flush,
    Named(u64),
    /// The checkpoint gave back what its predecessor needed.
    Reused,
}

/// Memory with a volatile cache, as it says, so that flushes reach it.
pub struct Recorder {
    mem: MemBdev,
    identify: Identify,
    pub events: RefCell<Vec<Event>>,
    /// Writes that still succeed.
    pub writes_left: Cell<u64>,
}

impl Bdev for Recorder {
    fn identify(&self) -> &Identify {
        &self.identify
    }
    fn submit(&self, io: Io) {
        match &io.op {
            Op::Write { offset, data, .. } => {
                if self.writes_left.get() == 0 {
                    return io.done.send(Err(IoError::Gone));
                }
                self.writes_left.set(self.writes_left.get() - 1);
                let len = data.iter().map(|s| s.len() as u64).sum();
                self.events.borrow_mut().push(Event::Write { at: *offset, len });
            }
            Op::Flush => self.events.borrow_mut().push(Event::Flush),
            _ => {}
        }
        self.mem.submit(io);
    }
}

pub struct Rig {
    pub ctx: Ctx,
    pub device: Rc<Recorder>,
    pub meta: Region,
    pub arena: Arena,
    pub limits: TreeLimits,
    pub superblock: RefCell<Superblock>,
}

/// The smallest limits, with nodes that make trees of several levels from few entries.
pub fn tiny() -> TreeLimits {
    TreeLimits { cache_bytes: 16 * 4096, ..TreeLimits::tiny() }
}

/// Runs a test on a virtual reactor.
pub fn run<F: Future<Output = ()> + 'static>(seed: u64, test: impl FnOnce(Ctx) -> F + 'static) {
    let reactor = Reactor::new_virtual(seed).expect("a reactor");
    let ctx = reactor.ctx();
    reactor.block_on(test(ctx));
}

impl Rig {
    /// A region with about `blocks` node blocks of 4 KiB, and empty trees.
    pub fn new(ctx: &Ctx, blocks: u64, limits: TreeLimits) -> (Rig, Forest) {
        let len = blocks * 4096 + JOURNAL_LEN_MIN + 64 * 1024;
        let mem = MemBdev::new(len);
        let identify = Identify { volatile_cache: true, ..mem.identify().clone() };
        let device =
            Rc::new(Recorder { mem, identify, events: RefCell::default(), writes_left: Cell::new(u64::MAX) });
        let meta = Region { device: Device::new(device.clone()), offset: 0, len };
        let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).expect("map 4 MiB");
        let geometry = Geometry::plan(len, 4096, JOURNAL_LEN_MIN).expect("a layout");
        let target = Uuid::from_u128(7);
        let forest = Forest::create(ctx, &meta, &arena, geometry, target, limits);
        let superblock = Superblock {
            target,
            cluster: Uuid::from_u128(9),
            name: "t0".into(),
            generation: 0,
            mount_epoch: 1,
            epoch_start: Lsn(1),
            checkpoint_lsn: Lsn(0),
            journal: JournalPosition::default(),
            roots: [Root::default(); 4],
            bitmap: BitmapRef::default(),
            geometry,
            data_blocks: 1000,
            data_free: 1000,
        };
        let superblock = RefCell::new(superblock);
        (Rig { ctx: ctx.clone(), device, meta, arena, limits, superblock }, forest)
    }

    pub async fn checkpoint(&self, forest: &Forest) -> Result<(), MetaError> {
        let previous = self.superblock.borrow().clone();
        let next = checkpoint(&self.ctx, &self.meta, &self.arena, forest, &previous, self, |_| None).await?;
        self.superblock.replace(next);
        Ok(())
    }

    /// As if the superblock of a written generation had become durable.
    pub fn adopt(&self, written: Roots) {
        let mut superblock = self.superblock.borrow_mut();
        superblock.generation = written.generation;
        (superblock.roots, superblock.bitmap) = (written.roots, written.bitmap);
    }

    /// What a start does: the trees of the superblock, after recovery has written its own.
    pub async fn reopen(&self) -> Forest {
        let superblock = self.superblock.borrow().clone();
        let forest =
            Forest::open(&self.ctx, &self.meta, &self.arena, &superblock, self.limits).await.expect("open");
        self.superblock.borrow_mut().generation += 1;
        forest
    }

    /// The trees of the durable superblock are whole and hold exactly `model`.
    pub async fn assert_durable(&self, model: &Model) {
        let mut found = Model::default();
        let superblock = self.superblock.borrow().clone();
        let verified = verify(&self.meta, &self.arena, &superblock, |tree, key, value| {
            found[tree.index()].insert(key.to_vec(), value.to_vec());
        })
        .await;
        assert_eq!(verified.findings, []);
        assert!(found == *model, "the durable trees are not what was checkpointed");
        for tree in TreeId::ALL {
            let entries = verified.trees[tree.index()].entries;
            assert_eq!(entries, model[tree.index()].len() as u64);
        }
    }
}

impl Checkpointed for Rig {
    type Error = MetaError;
    fn stamp(&self) -> Stamp {
        Stamp {
            mount_epoch: 1,
            epoch_start: Lsn(1),
            checkpoint_lsn: Lsn(5),
            journal: JournalPosition { offset: 4096, chain: 3 },
            data_free: 900,
        }
    }
    async fn settle(&self, _: &Stamp) -> Result<(), MetaError> {
        Ok(())
    }
    fn reuse(&self) {
        self.device.events.borrow_mut().push(Event::Reused);
    }
    async fn name(&self, superblock: &Superblock) -> Result<(), MetaError> {
        self.device.events.borrow_mut().push(Event::Named(superblock.generation));
        Ok(())
    }
}

/// Runs an operation, loading what it misses. Few loads must be enough: a path and its neighbours.
pub async fn retry<T>(forest: &Forest, op: impl Fn() -> Result<T, Miss>) -> T {
    for _ in 0..200 {
        match op() {
            Ok(value) => return value,
            Err(miss) => forest.load(miss).await.expect("load"),
        }
    }
    panic!("the operation misses for ever");
}

/// A key of its number's order, and of a length that follows from it.
pub fn key(number: u16) -> Vec<u8> {
    let mut key = number.to_be_bytes().to_vec();
    key.resize(2 + usize::from(number % 9) * 60, b'k');
    key
}

pub fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}
