//! A device over an image that many share: reads come from the image, what is written or hurt lies over it in blocks of
//! its own. So a proof makes thousands of states of one image without a copy of it. Completes at once, or writes take their time.

use cobalt_bdev::{Bdev, Device, Identify, Io, IoError, Op};
use cobalt_reactor::Ctx;
use cobalt_store::Region;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

type Block = Box<[u8; BLOCK]>;

/// The device. Clones are handles to it.
#[derive(Clone)]
pub struct ImageDisk(Rc<Inner>);

struct Inner {
    identify: Identify,
    base: Arc<Vec<u8>>,
    over: RefCell<BTreeMap<u64, Block>>,
    history: RefCell<Option<History>>,
    reads: Cell<u64>,
    reads_max: Cell<u64>,
    slow: RefCell<Option<(Ctx, Duration)>>,
}

/// What each block held, oldest first, its present content last.
pub type History = BTreeMap<u64, Vec<Vec<u8>>>;

impl ImageDisk {
    /// A device that holds `base`, whole blocks.
    pub fn new(base: Arc<Vec<u8>>) -> ImageDisk {
        ImageDisk::build(base, false)
    }

    /// One that says it has a volatile cache, for a store to treat it so.
    pub fn volatile(base: Arc<Vec<u8>>) -> ImageDisk {
        ImageDisk::build(base, true)
    }

    fn build(base: Arc<Vec<u8>>, volatile_cache: bool) -> ImageDisk {
        assert!(base.len().is_multiple_of(BLOCK), "an image is whole blocks");
        let identify = Identify {
            backend: "image".into(),
            size: base.len() as u64,
            block_size: 4096,
            volatile_cache,
            atomic_write: 4096,
            depth: 64,
            transfer_max: 1 << 20,
            deallocate: false,
        };
        ImageDisk(Rc::new(Inner {
            identify,
            base,
            over: RefCell::default(),
            history: RefCell::default(),
            reads: Cell::new(0),
            reads_max: Cell::new(u64::MAX),
            slow: RefCell::default(),
        }))
    }

    /// The whole device as a region.
    pub fn region(&self) -> Region {
        Region::whole(Device::new(Rc::new(self.clone())))
    }

    /// From now on each write takes this long; what it writes is there at once.
    pub fn slow_down(&self, ctx: &Ctx, by: Duration) {
        *self.0.slow.borrow_mut() = Some((ctx.clone(), by));
    }

    /// Takes away all that lies over the image.
    pub fn reset(&self) {
        self.0.over.borrow_mut().clear();
    }

    /// What a block holds now.
    pub fn block(&self, block: u64) -> Vec<u8> {
        match self.0.over.borrow().get(&block) {
            Some(over) => over.to_vec(),
            None => self.0.base[block as usize * BLOCK..][..BLOCK].to_vec(),
        }
    }

    /// Replaces a block.
    pub fn set_block(&self, block: u64, bytes: &[u8]) {
        let bytes: Block = Box::new(bytes.try_into().expect("a whole block"));
        if let Some(history) = self.0.history.borrow_mut().as_mut() {
            let held = history.entry(block).or_default();
            if held.last().is_none_or(|last| last[..] != bytes[..]) {
                held.push(bytes.to_vec());
            }
        }
        self.0.over.borrow_mut().insert(block, bytes);
    }

    /// Changes a byte.
    pub fn flip(&self, at: u64, mask: u8) {
        let mut block = self.block(at / BLOCK as u64);
        block[at as usize % BLOCK] ^= mask;
        self.set_block(at / BLOCK as u64, &block);
    }

    /// Everything that the device holds.
    pub fn image(&self) -> Vec<u8> {
        let mut image = self.0.base.to_vec();
        for (block, bytes) in self.0.over.borrow().iter() {
            image[*block as usize * BLOCK..][..BLOCK].copy_from_slice(&bytes[..]);
        }
        image
    }

    /// Remembers from now on what each block held.
    pub fn remember(&self) {
        *self.0.history.borrow_mut() = Some(History::new());
    }

    /// What was remembered.
    pub fn history(&self) -> History {
        self.0.history.borrow().clone().unwrap_or_default()
    }

    /// Reads since the last call; the next ones fail after `max`, so that nothing reads for ever.
    pub fn limit_reads(&self, max: u64) -> u64 {
        self.0.reads_max.set(max);
        self.0.reads.replace(0)
    }
}

impl Bdev for ImageDisk {
    fn identify(&self) -> &Identify {
        &self.0.identify
    }

    fn submit(&self, io: Io) {
        let first = |offset: u64| offset / BLOCK as u64;
        let result = match io.op {
            Op::Read { offset, mut buf } => {
                self.0.reads.set(self.0.reads.get() + 1);
                let len = buf.len();
                buf.copy_from_slice(&self.0.base[offset as usize..offset as usize + len]);
                let blocks = first(offset)..first(offset + len as u64);
                for (block, bytes) in self.0.over.borrow().range(blocks) {
                    buf[(*block as usize) * BLOCK - offset as usize..][..BLOCK].copy_from_slice(&bytes[..]);
                }
                match self.0.reads.get() > self.0.reads_max.get() {
                    true => Err(IoError::Failed {
                        op: "read",
                        offset,
                        len: len as u64,
                        reason: "more reads than anything needs".into(),
                    }),
                    false => Ok(Some(buf)),
                }
            }
            Op::Write { offset, data, .. } => {
                let blocks = data.iter().flat_map(|slice| slice.chunks(BLOCK));
                for (block, bytes) in (first(offset)..).zip(blocks) {
                    self.set_block(block, bytes);
                }
                if let Some((ctx, by)) = self.0.slow.borrow().clone() {
                    drop(ctx.clone().spawn(async move {
                        ctx.sleep(by).await;
                        io.done.send(Ok(None));
                    }));
                    return;
                }
                Ok(None)
            }
            Op::Flush | Op::Deallocate { .. } => Ok(None),
        };
        io.done.send(result);
    }
}
