//! Two real pasts of a target, written by a store, and every state that each part of them can be put into.

use super::parts::{Asked, Case, Part, State};
use super::rule::Required;
use cobalt_base::{Fid, SessionId};
use cobalt_bdev::{Bdev, Device, Identify, Io, IoError, MemBdev, Op};
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use cobalt_store::superblock::{self, Superblock, Verdict};
use cobalt_store::{CtgOp, FormatOptions, Limits, OpenOptions, Region, Regions, Store, dump_journal, format};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

pub const CLUSTER: Uuid = Uuid::from_u128(0xc1);
pub const OTHER_CLUSTER: Uuid = Uuid::from_u128(0xc2);
const OURS: Uuid = Uuid::from_u128(1);
const THEIRS: Uuid = Uuid::from_u128(2);
const META: usize = 512 << 10;
const DATA: u64 = 1 << 20;
const RING: u64 = 64 << 10;
const BLOCK: usize = 4096;
/// Bytes of a superblock and of a record's header that mean something: half of them is a torn one.
const SUPERBLOCK_LEN: usize = 368;
const HEADER_LEN: usize = 128;

/// How the end of the journal came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// A checkpoint, and records over those of an earlier turn around the ring.
    Turn,
    /// A crash tore the last record, which was dropped; the next start's records lie over it.
    Epoch,
}

impl Past {
    pub const ALL: [Past; 2] = [Past::Turn, Past::Epoch];
}

pub fn limits() -> Limits {
    Limits { journal_fill_pct: 90, trim: false, ..Limits::tiny() }
}

/// A device whose bytes can be changed under the store.
pub struct Image {
    identify: Identify,
    bytes: RefCell<Vec<u8>>,
    bad: RefCell<Vec<Range<u64>>>,
    writes: Cell<u64>,
}

impl Image {
    fn new(bytes: Vec<u8>) -> Rc<Image> {
        let identify =
            Identify { backend: "image".into(), ..MemBdev::new(bytes.len() as u64).identify().clone() };
        Rc::new(Image { identify, bytes: RefCell::new(bytes), bad: RefCell::default(), writes: Cell::new(0) })
    }

    fn at(&self, range: Range<usize>) -> Vec<u8> {
        self.bytes.borrow()[range].to_vec()
    }

    /// Writes that reached it.
    pub fn writes(&self) -> u64 {
        self.writes.get()
    }
}

impl Bdev for Image {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn submit(&self, io: Io) {
        let result = match io.op {
            Op::Read { offset, mut buf } => {
                let (len, end) = (buf.len(), offset + buf.len() as u64);
                if self.bad.borrow().iter().any(|bad| bad.start < end && offset < bad.end) {
                    let reason = "unreadable".into();
                    Err(IoError::Failed { op: "read", offset, len: len as u64, reason })
                } else {
                    buf.copy_from_slice(&self.bytes.borrow()[offset as usize..][..len]);
                    Ok(Some(buf))
                }
            }
            Op::Write { offset, data, .. } => {
                self.writes.set(self.writes.get() + 1);
                let mut at = offset as usize;
                for slice in &data {
                    self.bytes.borrow_mut()[at..at + slice.len()].copy_from_slice(slice);
                    at += slice.len();
                }
                Ok(None)
            }
            Op::Flush | Op::Deallocate { .. } => Ok(None),
        };
        io.done.send(result);
    }
}

/// Bytes to put somewhere, and whether they can be read.
#[derive(Clone)]
struct Patch {
    at: usize,
    bytes: Vec<u8>,
    bad: bool,
}

/// A past: the numbers that the rule needs, and every state of every part.
pub struct History {
    pub past: Past,
    /// The newest superblock's.
    pub generation: u64,
    /// The last lsn before the head.
    pub before_head: u64,
    journal_at: u64,
    /// By part and state.
    patches: Vec<Vec<Vec<Patch>>>,
    work: Rc<Image>,
    data: [Device; 2],
}

/// What one target wrote.
struct Written {
    /// Its meta region before the superblock before the newest was written, before the newest was, and at the end.
    images: [Vec<u8>; 3],
    superblock: Superblock,
    /// Where head, middle, tail and the empty record lie on the region.
    places: [usize; 4],
    before_head: u64,
}

impl History {
    /// Lets a store write the past, once for this target and once for another.
    pub async fn write(ctx: &Ctx, arena: &Arena, past: Past) -> History {
        let ours = Written::new(ctx, arena, past, OURS).await;
        let theirs = Written::new(ctx, arena, past, THEIRS).await;
        assert_eq!(ours.places, theirs.places, "both targets do the same");
        let patches = Part::ALL
            .iter()
            .map(|part| State::SUPERBLOCK.iter().map(|state| spoil(*part, *state, &ours, &theirs)).collect())
            .collect();
        let data = [DATA, DATA / 2].map(|len| Device::new(Rc::new(MemBdev::new(len))));
        History {
            past,
            generation: ours.superblock.generation,
            before_head: ours.before_head,
            journal_at: ours.superblock.geometry.journal_at(),
            patches,
            work: Image::new(ours.images[2].clone()),
            data,
        }
    }

    pub fn target(&self, foreign: bool) -> Uuid {
        if foreign { THEIRS } else { OURS }
    }

    /// Brings the device into the case's state. It is the same device each time.
    pub fn build(&self, case: &Case) -> Rc<Image> {
        let mut bytes = self.work.bytes.borrow_mut();
        let mut bad = self.work.bad.borrow_mut();
        bad.clear();
        for part in Part::ALL {
            for patch in &self.patches[part as usize][case.state(part) as usize] {
                bytes[patch.at..patch.at + patch.bytes.len()].copy_from_slice(&patch.bytes);
                if patch.bad {
                    bad.push(patch.at as u64..(patch.at + patch.bytes.len()) as u64);
                }
            }
        }
        if case.ring_error {
            bad.push(self.journal_at..self.journal_at + BLOCK as u64);
        }
        self.work.clone()
    }

    /// A device of its own in the case's state.
    pub fn copy(&self, case: &Case) -> Rc<Image> {
        let work = self.build(case);
        let copy = Image::new(work.bytes.borrow().clone());
        copy.bad.borrow_mut().clone_from(&work.bad.borrow());
        copy
    }

    pub fn regions(&self, meta: &Rc<Image>, case: &Case) -> Regions {
        let data = &self.data[usize::from(case.asked == Asked::ShortData)];
        Regions { meta: Region::whole(Device::new(meta.clone())), data: Region::whole(data.clone()) }
    }

    /// The last lsn that the opened target must have, or none if something keeps it from being opened.
    pub fn outcome(&self, case: &Case, required: &Required) -> Option<u64> {
        let Required::Open { target, generation, last } = required else { return None };
        // The start after a crash wrote a superblock of the same trees.
        let shares = self.past == Past::Epoch || *generation == self.generation;
        let rooted = !shares || case.state(Part::Root) == State::Valid;
        (*target == OURS && rooted).then_some(*last)
    }

    /// The target has what is due up to that lsn, and nothing else, and goes on.
    pub async fn holds(&self, store: &Store, last: u64) -> Result<(), String> {
        let ctg = store.ctg();
        let there = async |key: &str| {
            let found = ctg.get(1, key.as_bytes()).await.map_err(|e| format!("reading {key}: {e}"))?;
            Ok::<_, String>(found.is_some())
        };
        let (has_middle, has_tail) = (last >= self.before_head + 2, last >= self.before_head + 3);
        let torn_kept =
            self.past == Past::Epoch && last == self.before_head + 1 && store_kept_torn(store, self);
        for (key, must) in [("before", true), ("middle", has_middle), ("tail", has_tail)] {
            if there(key).await? != must {
                return Err(format!("opened with lsn {last}: {key} must be there: {must}"));
            }
        }
        if self.past == Past::Epoch && there("torn").await? != torn_kept {
            return Err(format!("opened with lsn {last}: the torn record must be there: {torn_kept}"));
        }
        put(store, "after").await;
        match there("after").await? {
            true => Ok(()),
            false => Err("a change after the start is not there".into()),
        }
    }
}

/// Whether the start went on from the superblock before the newest, which knows nothing of a dropped record.
fn store_kept_torn(store: &Store, history: &History) -> bool {
    // Each start writes one generation on top of the one that it took.
    store.status().generation == history.generation
}

impl Written {
    async fn new(ctx: &Ctx, arena: &Arena, past: Past, target: Uuid) -> Written {
        let image = Image::new(vec![0; META]);
        let data = Device::new(Rc::new(MemBdev::new(DATA)));
        let regions = |image: &Rc<Image>| Regions {
            meta: Region::whole(Device::new(image.clone())),
            data: Region::whole(data.clone()),
        };
        let options = FormatOptions {
            node_size: 4096,
            journal: Some(RING),
            ..FormatOptions::new(target, CLUSTER, "t")
        };
        format(ctx, &regions(&image), arena, &options).await.expect("a format of an empty image");
        let open = async |image: &Rc<Image>| {
            let options =
                OpenOptions { limits: limits(), meta_arena: Some(arena.clone()), ..OpenOptions::default() };
            let scope = ctx.scope();
            let store = Store::open(scope.ctx(), regions(image), arena.clone(), options).await;
            (scope, store.expect("a whole target opens"))
        };
        let (scope, store) = open(&image).await;
        let mut images = vec![];
        // Five times nine records: more than twice around the ring of sixteen blocks. The last two rounds fit it.
        for round in 0..5u64 {
            for n in 0..4u64 {
                put(&store, "before").await;
                // Each newer one comes first in its node, and moves the others.
                let fid = Fid::new(SessionId(1), 1000 - round * 10 - n);
                store.cob_delete(fid).await.expect("a tombstone");
            }
            images.push(image.at(0..META));
            store.checkpoint().await.expect("a checkpoint");
        }
        let last = match past {
            Past::Turn => {
                images.drain(..3);
                put(&store, "middle").await;
                put(&store, "tail").await;
                settle(ctx).await;
                scope.kill();
                image
            }
            Past::Epoch => {
                images.drain(..4);
                settle(ctx).await;
                put(&store, "torn").await;
                scope.kill();
                let whole = image.at(0..META);
                let rows = dump_journal(&regions(&image), arena).await.expect("a journal");
                let torn =
                    rows.iter().filter(|row| row.count > 0).max_by_key(|row| row.first).expect("records");
                let at = journal_at(&regions(&image), arena).await + torn.offset as usize;
                image.bytes.borrow_mut()[at + BLOCK / 2..at + BLOCK].fill(0);
                let (scope, store) = open(&image).await;
                images.push(whole);
                put(&store, "middle").await;
                put(&store, "tail").await;
                settle(ctx).await;
                scope.kill();
                image
            }
        };
        images.push(last.at(0..META));
        let rows = dump_journal(&regions(&last), arena).await.expect("a journal");
        let newest_epoch = rows.iter().map(|row| row.epoch).max().expect("records");
        let rows: Vec<_> =
            rows.iter().filter(|row| row.epoch == newest_epoch || past == Past::Turn).collect();
        let end = &rows[rows.len() - 4..];
        assert!(end[3].count == 0 && end[..3].iter().all(|row| row.count == 1), "{end:#?}");
        let superblock = newest(&regions(&last), arena).await;
        let base = superblock.geometry.journal_at() as usize;
        Written {
            images: images.try_into().expect("three images"),
            superblock,
            places: std::array::from_fn(|i| base + end[i].offset as usize),
            before_head: end[0].first.0 - 1,
        }
    }
}

/// Waits until an empty record says that all is durable.
async fn settle(ctx: &Ctx) {
    ctx.sleep(Duration::from_millis(50)).await;
}

/// One record of nearly a block.
async fn put(store: &Store, key: &str) {
    let ops: Vec<CtgOp> = ["", ".1", ".2"]
        .iter()
        .map(|tail| CtgOp::Put { ctg: 1, key: format!("{key}{tail}").into_bytes(), value: vec![7; 1000] })
        .collect();
    store.ctg().transact(move |_| Ok((ops.clone(), ()))).await.expect("a change");
}

async fn newest(regions: &Regions, arena: &Arena) -> Superblock {
    let copies = superblock::read_all(&regions.meta, arena).await;
    let valid = copies.into_iter().filter_map(|copy| match copy.verdict {
        Verdict::Valid(sb) => Some(*sb),
        _ => None,
    });
    valid.max_by_key(|sb| sb.generation).expect("a superblock")
}

async fn journal_at(regions: &Regions, arena: &Arena) -> usize {
    newest(regions, arena).await.geometry.journal_at() as usize
}

/// The bytes of a part in a state.
fn spoil(part: Part, state: State, ours: &Written, theirs: &Written) -> Vec<Patch> {
    let generation = ours.superblock.generation;
    let slot = |generation: u64| [generation % 2 * 4096, META as u64 - 8192 + generation % 2 * 4096];
    let (places, before, meaning) = match part {
        Part::Newest => (slot(generation).to_vec(), &ours.images[1], SUPERBLOCK_LEN),
        Part::Previous => (slot(generation - 1).to_vec(), &ours.images[0], SUPERBLOCK_LEN),
        Part::Root => {
            let root = &ours.superblock.roots[0];
            // A start writes a superblock of the same trees: before that is before the checkpoint.
            let before = usize::from(root.node.generation == generation);
            (vec![ours.superblock.geometry.node_at(root.node.block)], &ours.images[before], BLOCK)
        }
        Part::Head | Part::Middle | Part::Tail | Part::Durable => {
            let index = part as usize - Part::Head as usize;
            let meaning = if matches!(part, Part::Middle | Part::Tail) { BLOCK } else { HEADER_LEN };
            (vec![ours.places[index] as u64], &ours.images[1], meaning)
        }
    };
    let patch = |at: u64| {
        let at = at as usize;
        let valid = &ours.images[2][at..at + BLOCK];
        let old = &before[at..at + BLOCK];
        let mut bytes = valid.to_vec();
        match state {
            State::Valid | State::Unreadable => {}
            State::Torn => {
                let (first, second) = (0..meaning / 2, meaning / 2..BLOCK);
                let half = if valid[second.clone()] == old[second.clone()] { first } else { second };
                bytes[half.clone()].copy_from_slice(&old[half]);
            }
            State::Old => bytes.copy_from_slice(old),
            State::Rotten => bytes[HEADER_LEN / 3] ^= 0x10,
            State::Foreign => bytes.copy_from_slice(&theirs.images[2][at..at + BLOCK]),
            State::Missing => bytes.fill(0),
            State::Newer => {
                bytes[8] = 2;
                bytes[16..24].fill(0);
                let sum = cobalt_base::checksum::xxh3(0x636f_6261_6c74_5342, &bytes);
                bytes[16..24].copy_from_slice(&sum.to_le_bytes());
            }
        }
        let changed = bytes != valid;
        let must = !matches!(state, State::Valid | State::Unreadable);
        assert!(changed == must, "{part:?} {state:?} at {at:#x} is nothing else than the valid one");
        Patch { at, bytes, bad: state == State::Unreadable }
    };
    places.into_iter().map(patch).collect()
}
