//! The whole store: calls of all kinds at one time, given up, refused, failed by the devices or cut off by a
//! power cut, and after each start everything that was acknowledged.

use super::case::Model;
use super::cob_log::{CobLog, Found};
use super::ctg_log::{CtgLog, Key};
use super::disk::{Cut, Disk, Error, Fault, Kind};
use super::target::{CALL_TIME, Piece, Shape, Tally, Target, fid, get, on_virtual_time, put_all};
use crate::run::Counts;
use cobalt_base::{Fid, SessionId};
use cobalt_reactor::{Ctx, JoinHandle};
use cobalt_store::tree::TreeId;
use cobalt_store::{CobAttrs, CtgOp, Limits, Store, StoreError, TreeRow, proof};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Chunks that a cob of the model can have.
const CHUNKS: u64 = 14;
pub const CTG_KEYS: u16 = 500;

/// A cob: a session and a number in it, and whether its last incarnation or the one before, which was deleted or fenced.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    session: u64,
    number: u64,
    old: bool,
}

#[derive(Clone, Debug)]
pub enum Op {
    Write {
        cob: Name,
        chunk: u64,
        len: usize,
        give_up_us: Option<u64>,
    },
    /// Two cobs in one transaction, from a chunk each.
    Pair {
        a: (Name, u64),
        b: (Name, u64),
        len: usize,
    },
    Read {
        cob: Name,
        chunk: u64,
        chunks: u64,
    },
    Stat {
        cob: Name,
    },
    Delete {
        cob: Name,
        give_up_us: Option<u64>,
    },
    Fence {
        session: u64,
    },
    /// Puts a value if there is none, or another one, or deletes: as it finds it.
    Turn {
        key: u16,
        len: usize,
    },
    /// Writes the number of keys from one on that exist.
    Sum {
        key: u16,
        count: u16,
    },
    /// Puts so many keys from one on.
    Fill {
        key: u16,
        count: u16,
        len: usize,
    },
    /// Deletes up to so many keys from one on.
    Clear {
        key: u16,
        count: u16,
    },
    Get {
        key: u16,
    },
    Scan {
        key: u16,
        count: u16,
    },
    List {
        limit: usize,
    },
    Checkpoint,
    Pause {
        us: u64,
    },
    /// Waits for all calls, and looks at everything.
    Settle,
    Crash {
        cut: Cut,
    },
    Close,
    Fault {
        on_meta: bool,
        fault: Fault,
    },
    /// Writes until there is no room, then deletes all that.
    FillData,
    /// Puts entries until the meta region is full.
    FillMeta,
}

/// The cob of that session and number.
pub fn name_of(session: u64, number: u64) -> Name {
    Name { session, number, old: false }
}

fn name() -> impl Strategy<Value = Name> {
    (0..4u64, prop_oneof![3 => 0..2u64, 1 => 0..5u64], 0..12u8).prop_map(|(session, number, old)| Name {
        session,
        number,
        old: old == 0,
    })
}

/// More often than not near the start, where others have written.
fn chunk() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0..2u64, 1 => 0..CHUNKS]
}

fn fault() -> impl Strategy<Value = Fault> {
    let kind = prop_oneof![
        2 => Just(Kind::Read), 4 => Just(Kind::Write), 3 => Just(Kind::Flush), 1 => Just(Kind::Deallocate)
    ];
    let error = prop_oneof![2 => Just(Error::Failed), 1 => Just(Error::Gone), 1 => Just(Error::HostFull)];
    (kind, 0..12u64, any::<bool>(), error).prop_map(|(kind, at, forever, error)| Fault {
        kind,
        at,
        forever,
        error,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let give_up = || option::weighted(0.1, 0..400u64);
    let len = prop_oneof![2 => 1..4096usize, 3 => (1..7usize).prop_map(|n| n * 4096), 2 => 4097..40_000usize];
    let cut = (0..Cut::ALL.len()).prop_map(|at| Cut::ALL[at]);
    prop_oneof![
        40 => (name(), chunk(), len, give_up())
            .prop_map(|(cob, chunk, len, give_up_us)| Op::Write { cob, chunk, len, give_up_us }),
        30 => (name(), chunk(), prop_oneof![3 => 1..3u64, 1 => 1..8u64]).prop_map(|(cob, chunk, chunks)| Op::Read { cob, chunk, chunks }),
        2 => name().prop_map(|cob| Op::Stat { cob }),
        4 => (name(), give_up()).prop_map(|(cob, give_up_us)| Op::Delete { cob, give_up_us }),
        2 => (0..4u64).prop_map(|session| Op::Fence { session }),
        24 => (0..CTG_KEYS, 0..700usize).prop_map(|(key, len)| Op::Turn { key, len }),
        4 => (0..CTG_KEYS, 1..20u16).prop_map(|(key, count)| Op::Sum { key, count }),
        1 => (0..CTG_KEYS, 1..120u16, 0..600usize).prop_map(|(key, count, len)| Op::Fill { key, count, len }),
        3 => (0..CTG_KEYS, 1..40u16).prop_map(|(key, count)| Op::Clear { key, count }),
        4 => (0..CTG_KEYS).prop_map(|key| Op::Get { key }),
        3 => (0..CTG_KEYS, 1..60u16).prop_map(|(key, count)| Op::Scan { key, count }),
        2 => (1..30usize).prop_map(|limit| Op::List { limit }),
        3 => Just(Op::Checkpoint),
        6 => (0..3000u64).prop_map(|us| Op::Pause { us }),
        3 => Just(Op::Settle),
        4 => cut.prop_map(|cut| Op::Crash { cut }),
        1 => Just(Op::Close),
        4 => (any::<bool>(), fault()).prop_map(|(on_meta, fault)| Op::Fault { on_meta, fault }),
        1 => Just(Op::FillData),
    ]
}

pub struct Whole;

impl Model for Whole {
    type Op = Op;
    const NAME: &'static str = "store";
    const CASES: u64 = 1000;
    const MEETS: &'static [&'static str] = &[
        "splits",
        "merges",
        "evictions",
        "wraps",
        "checkpoints",
        "group_full",
        "journal_full",
        "groups_dropped",
        "crashes",
        "io_errors",
        "no_space",
        "meta_full",
        "host_full",
        "refused",
        "failed",
        "given_up",
    ];

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        prop_oneof![
            19 => vec(op(), 1..160),
            1 => (vec(op(), 0..20), vec(op(), 0..60)).prop_map(|(mut before, after)| {
                before.push(Op::FillMeta);
                before.extend(after);
                before
            }),
        ]
    }

    fn play(seed: u64, ops: Vec<Op>) -> Counts {
        play(seed, seed.is_multiple_of(3), 6, ops)
    }
}

/// Plays calls on a new target, so many at one time; with `few`, over a cache of the fewest nodes.
pub fn play(seed: u64, few: bool, window: usize, ops: Vec<Op>) -> Counts {
    on_virtual_time(seed, move |ctx| async move {
        let tally = Tally::default();
        let mut shape = Shape::small();
        if few {
            shape.limits = Limits { node_cache: 4096, dirty_max: 16 << 10, ..shape.limits };
        }
        let target = Target::new(&ctx, seed, shape, &tally).await;
        let mut world = World { window, ..World::new(ctx, target, &tally) };
        for op in ops {
            tally.add("ops", 1);
            world = world.act(op).await;
        }
        world.end().await;
        tally.take()
    })
}

/// Which incarnation the sessions and cobs of the model are in.
#[derive(Default)]
struct Ages {
    sessions: [Cell<u64>; 4],
    cobs: [[Cell<u64>; 5]; 4],
}

impl Ages {
    fn session(&self, slot: u64, old: bool) -> SessionId {
        let age = self.sessions[slot as usize].get();
        SessionId(1 + slot + 4 * age.saturating_sub(u64::from(old)))
    }

    fn fid(&self, name: Name) -> Fid {
        let age = self.cobs[name.session as usize][name.number as usize].get();
        let number = 1 + name.number + 5 * age.saturating_sub(u64::from(name.old));
        fid(self.session(name.session, false).0, number)
    }
}

/// What the tasks of a case share.
#[derive(Clone)]
struct Shared {
    ctx: Ctx,
    store: Store,
    arena: cobalt_dma::Arena,
    cobs: CobLog,
    ctg: CtgLog,
    ages: Rc<Ages>,
    tally: Tally,
    faults: Rc<Faults>,
}

/// Errors that were injected in this life, so that none comes out of nothing.
struct Faults {
    meta: Disk,
    data: Disk,
    before: RefCell<[[u64; 4]; 2]>,
    broken_before: Cell<u64>,
}

impl Faults {
    fn forget(&self) {
        self.before.replace([self.meta.injected(), self.data.injected()]);
        self.broken_before.set(self.data.broken_writes());
    }

    fn broken_writes(&self) -> u64 {
        self.data.broken_writes() - self.broken_before.get()
    }

    fn so_far(&self) -> [[u64; 4]; 2] {
        let before = self.before.borrow();
        let since = |disk: &Disk, at: usize| {
            let now = disk.injected();
            [0, 1, 2, 3].map(|kind| now[kind] - before[at][kind])
        };
        [since(&self.meta, 0), since(&self.data, 1)]
    }
}

pub struct World {
    target: Target,
    shared: Shared,
    tasks: Vec<JoinHandle<()>>,
    /// Calls in flight at one time.
    window: usize,
    /// Failures on order outlive a crash.
    keep_faults: bool,
}

fn attrs(fid: Fid) -> CobAttrs {
    let chunk_size = match fid.counter % 5 {
        0 => 8192,
        _ => 4096,
    };
    CobAttrs { chunk_size, incarnation: 7 }
}

fn ctg_key(key: u16) -> Key {
    let mut bytes = key.to_be_bytes().to_vec();
    bytes.resize(2 + usize::from(key % 7) * 50, b'k');
    (1 + u32::from(key.is_multiple_of(3)), bytes)
}

impl World {
    fn new(ctx: Ctx, target: Target, tally: &Tally) -> World {
        let faults = Faults {
            meta: target.meta.clone(),
            data: target.data.clone(),
            before: RefCell::default(),
            broken_before: Cell::new(0),
        };
        let shared = Shared {
            ctx,
            store: target.store.clone(),
            arena: target.arenas.payload.clone(),
            cobs: CobLog::default(),
            ctg: CtgLog::default(),
            ages: Rc::default(),
            tally: tally.clone(),
            faults: Rc::new(faults),
        };
        World { target, shared, tasks: Vec::new(), window: 6, keep_faults: false }
    }

    /// A world in which failures on order stay until the end.
    pub fn in_trouble(ctx: Ctx, target: Target, tally: &Tally) -> World {
        World { keep_faults: true, window: 3, ..World::new(ctx, target, tally) }
    }

    pub async fn act(mut self, op: Op) -> World {
        self.tasks.retain(|task| !task.is_finished());
        while self.tasks.len() >= self.window {
            self.shared.ctx.sleep(Duration::from_micros(20)).await;
            self.tasks.retain(|task| !task.is_finished());
        }
        match op {
            Op::Pause { us } => self.shared.ctx.sleep(Duration::from_micros(us)).await,
            Op::Settle => self.settle().await,
            Op::Crash { cut } => return self.crash(cut).await,
            Op::Close => return self.close().await,
            Op::Fault { on_meta, fault } => {
                let disk = if on_meta { &self.target.meta } else { &self.target.data };
                disk.fail(Some(fault));
            }
            Op::FillData => self.fill_data().await,
            Op::FillMeta => self.fill_meta().await,
            call => {
                let shared = self.shared.clone();
                // In the target's scope: a caller dies with its process.
                self.tasks.push(self.target.scope.ctx().spawn(async move { shared.call(call).await }));
            }
        }
        self
    }

    /// Waits for every call.
    async fn join(&mut self) {
        for task in self.tasks.drain(..) {
            let joined = self.shared.ctx.timeout(CALL_TIME * 4, task.join()).await;
            joined.expect("no call hangs").expect("no call is dropped");
        }
    }

    fn failed(&self) -> bool {
        self.target.store.status().failed.is_some()
    }

    async fn settle(&mut self) {
        self.join().await;
        self.check_verdict().await;
        if self.failed() {
            return;
        }
        // Reads of the settlement are to succeed.
        self.target.meta.fail(None);
        self.target.data.fail(None);
        proof::order_refusal(None);
        self.target.settle().await;
        self.shared.ctx.sleep(Duration::from_secs(1)).await;
        self.check_verdict().await;
        if self.failed() {
            return;
        }
        self.look(self.target.store.ctg().applied().0).await;
        self.check_chores().await;
        self.target.assert_clean("when all is quiet").await;
        self.shared.tally.add("settled", 1);
    }

    /// No background work was forgotten: no dead cob is left, and no tombstone of a fenced session.
    async fn check_chores(&self) {
        let (rows, _) = self.target.store.rows(TreeId::Cob, &[], usize::MAX).await.expect("rows");
        for row in rows {
            match row {
                TreeRow::Dead { fid, .. } => panic!("the dead cob {fid} is left"),
                TreeRow::Tombstone { fid } => {
                    assert!(!self.shared.cobs.is_fenced(fid.session), "the tombstone of {fid} is left");
                }
                _ => {}
            }
        }
    }

    /// Whether the target failed follows from what its devices did.
    async fn check_verdict(&self) {
        let mut told = false;
        // An operation that was failed a moment ago is still on its way to who waits for it.
        for _ in 0..100 {
            let [meta, data] = self.shared.faults.so_far();
            // What a failed write or flush left is unknown. Data that the host had no room for are nowhere.
            let broken = self.shared.faults.broken_writes() > 0 || data[Kind::Flush as usize] > 0;
            let must = meta.iter().sum::<u64>() > 0 || broken;
            let failed = self.target.store.status().failed;
            assert!(must || failed.is_none(), "failed without a cause: {failed:?}, data {data:?}");
            told = must == failed.is_some();
            if told {
                break;
            }
            self.shared.ctx.sleep(Duration::from_micros(100)).await;
        }
        assert!(
            told,
            "a device failed, and the target says that it is well: {:?}",
            self.shared.faults.so_far()
        );
    }

    /// Everything that there is, held against what was done.
    async fn look(&self, durable: u64) {
        let store = &self.target.store;
        let mut found = BTreeMap::new();
        for (fid, chunk, count) in self.shared.cobs.cobs() {
            let info = store.cob_stat(fid).await.unwrap_or_else(|e| panic!("stat of {fid}: {e}"));
            let mut chunks = BTreeMap::new();
            if let Some(info) = info {
                for at in 0..info.size.div_ceil(chunk).max(count) {
                    if let Some(bytes) = read_chunk(store, fid, at, chunk).await {
                        chunks.insert(at, bytes);
                    }
                }
            }
            found.insert(fid, Found { info, chunks });
        }
        let existing = found.values().filter(|f| f.info.is_some()).count() as u64;
        let used: u64 = found.values().filter_map(|f| f.info).map(|i| i.allocated).sum();
        let (status, space) = (store.status(), store.space());
        assert_eq!(status.cobs, existing, "the count of cobs");
        if space.reserved == 0 && proof::is_idle(store) {
            assert_eq!(space.used, used, "blocks that are used, and blocks of cobs: {space:?}");
        }
        let listed = store.cob_next(Fid::MIN, 1000).await.expect("a list");
        let listed: Vec<Fid> = listed.into_iter().map(|(fid, _)| fid).collect();
        let expected: Vec<Fid> =
            found.iter().filter(|(_, f)| f.info.is_some()).map(|(fid, _)| *fid).collect();
        assert_eq!(listed, expected, "the list of cobs");
        self.shared.cobs.settle(durable, found);
        let mut entries = BTreeMap::new();
        for ctg in [1, 2] {
            let all = store.ctg().scan(ctg, &[], None, usize::MAX).await.expect("a scan");
            entries.extend(all.into_iter().map(|(key, value)| ((ctg, key), value)));
        }
        self.shared.ctg.settle(durable, entries);
    }

    async fn crash(mut self, cut: Cut) -> World {
        self.target.kill();
        self.tasks.clear();
        for disk in [&self.target.meta, &self.target.data] {
            if !self.keep_faults {
                disk.fail(None);
            }
            disk.cut(cut);
        }
        self.shared.tally.add("crashes", 1);
        self.next_life().await
    }

    async fn next_life(mut self) -> World {
        let injected: u64 = self.shared.faults.so_far().iter().flatten().sum();
        self.shared.tally.add("io_errors", injected);
        let World { target, mut shared, window, keep_faults, .. } = self;
        shared.faults.forget();
        let (target, refused) = target.start().await;
        if refused {
            shared.faults.forget();
        }
        shared.store = target.store.clone();
        self = World { target, shared, tasks: Vec::new(), window, keep_faults };
        let durable = proof::recovered(&self.target.store).0;
        self.target.in_peace(self.look(durable)).await;
        self
    }

    async fn close(mut self) -> World {
        self.join().await;
        let closed =
            self.shared.ctx.timeout(CALL_TIME, self.target.store.close()).await.expect("a close ends");
        self.check_verdict().await;
        let full = matches!(closed, Err(StoreError::HostFull));
        assert!(closed.is_ok() || full || self.failed(), "{closed:?}");
        if closed.is_ok() && !self.failed() {
            self.shared.tally.add("closed", 1);
        }
        self.crash(Cut::Nothing).await
    }

    /// The last settlement, a crash, and another.
    pub async fn end(mut self) {
        self.settle().await;
        self.crash(Cut::Sectors).await.target.kill();
    }

    /// Cobs as large as can be, until one is refused.
    async fn fill_data(&mut self) {
        self.join().await;
        let shared = &self.shared;
        let mut filled = Vec::new();
        for number in 0..60 {
            let name = fid(900 + number % 2, 1 + number + 100 * shared.cobs.now());
            let bytes = shared.cobs.bytes(48 * 4096);
            match shared.write(name, 0, bytes, None).await {
                Ok(()) => filled.push(name),
                Err(StoreError::NoSpace { .. }) => {
                    self.shared.tally.add("no_space", 1);
                    break;
                }
                Err(_) => break,
            }
        }
        for name in filled {
            self.shared.delete(name, None).await;
        }
    }

    /// Entries until one is refused.
    async fn fill_meta(&mut self) {
        self.join().await;
        for number in 0..2000u16 {
            let key = (1, [&[0xfe][..], &number.to_be_bytes(), &[7; 500]].concat());
            let value = vec![1; 700];
            let result = self.shared.change(move |_| {
                Ok(vec![CtgOp::Put { ctg: key.0, key: key.1.clone(), value: value.clone() }])
            });
            match result.await {
                Ok(()) => {}
                Err(StoreError::MetaFull) => {
                    self.shared.tally.add("meta_full", 1);
                    break;
                }
                Err(_) => break,
            }
        }
        // Deletes of cobs go on, and a write is refused or done.
        for number in 0..5 {
            self.shared.delete(self.shared.ages.fid(Name { session: 1, number, old: false }), None).await;
        }
    }
}

async fn read_chunk(store: &Store, fid: Fid, at: u64, chunk: u64) -> Option<Vec<u8>> {
    // A chunk may be short, and only a read of exactly what is there succeeds.
    match get(store, fid, at * chunk, chunk).await {
        Ok(bytes) => Some(bytes),
        Err(StoreError::Missing { offset, .. }) if offset > at * chunk => {
            let len = offset - at * chunk;
            Some(get(store, fid, at * chunk, len).await.unwrap_or_else(|e| panic!("{fid} chunk {at}: {e}")))
        }
        Err(StoreError::Missing { .. }) => None,
        Err(error) => panic!("{fid} chunk {at}: {error}"),
    }
}

impl Shared {
    async fn call(self, op: Op) {
        let within = self.ctx.clone();
        let call = async {
            match op {
                Op::Write { cob, chunk, len, give_up_us } => {
                    let name = self.ages.fid(cob);
                    let bytes = self.cobs.bytes(len);
                    let _ = self.write(name, chunk, bytes, give_up_us).await;
                }
                Op::Pair { a, b, len } => {
                    let _ = self.pair((self.ages.fid(a.0), a.1), (self.ages.fid(b.0), b.1), len).await;
                }
                Op::Read { cob, chunk, chunks } => self.read(self.ages.fid(cob), chunk, chunks).await,
                Op::Stat { cob } => match self.store.cob_stat(self.ages.fid(cob)).await {
                    Ok(_) => {}
                    Err(error) => self.excuse(&error),
                },
                Op::Delete { cob, give_up_us } => {
                    self.delete(self.ages.fid(cob), give_up_us).await;
                    if !cob.old {
                        let age = &self.ages.cobs[cob.session as usize][cob.number as usize];
                        age.set(age.get() + 1);
                    }
                }
                Op::Fence { session } => self.fence(session).await,
                Op::Turn { key, len } => self.turn(key, len).await,
                Op::Sum { key, count } => self.sum(key, count).await,
                Op::Fill { key, count, len } => self.fill(key, count, len).await,
                Op::Clear { key, count } => self.clear(key, count).await,
                Op::Get { key } => self.get(key).await,
                Op::Scan { key, count } => self.scan(key, count).await,
                Op::List { limit } => {
                    if let Err(error) = self.store.cob_next(Fid::MIN, limit).await {
                        self.excuse(&error);
                    }
                }
                Op::Checkpoint => {
                    if let Err(error) = self.store.checkpoint().await {
                        self.excuse(&error);
                    }
                }
                other => panic!("not a call: {other:?}"),
            }
        };
        within.timeout(CALL_TIME, call).await.expect("no call hangs");
    }

    /// An error must have a cause.
    fn excuse(&self, error: &StoreError) {
        let [meta, data] = self.faults.so_far();
        let status = self.store.status();
        match error {
            StoreError::Failed { .. } => {
                let injected: u64 = meta.iter().chain(&data).sum();
                assert!(injected > 0, "nothing was injected: {error}");
                assert!(
                    status.failed.is_some(),
                    "a call says that the target failed, the target does not: {error}"
                );
                self.tally.add("failed", 1);
            }
            StoreError::Corrupt { .. } => {
                assert!(data[Kind::Read as usize] > 1, "no read failed twice: {error}");
                self.tally.add("read_errors", 1);
            }
            StoreError::HostFull => {
                assert!(data[Kind::Write as usize] > 0, "the host is not full: {error}");
                self.tally.add("host_full", 1);
            }
            StoreError::MetaFull => self.tally.add("meta_full", 1),
            StoreError::NoSpace { .. } => self.tally.add("no_space", 1),
            StoreError::Busy => self.tally.add("busy", 1),
            StoreError::Fenced(_) | StoreError::Deleted(_) => self.tally.add("late", 1),
            StoreError::Missing { .. } => self.tally.add("missing", 1),
            // A tree that contradicts itself never comes of a device that says so when it fails.
            other => panic!("no cause for: {other}"),
        }
    }

    async fn write(
        &self,
        fid: Fid,
        chunk: u64,
        bytes: Vec<u8>,
        give_up_us: Option<u64>,
    ) -> Result<(), StoreError> {
        let attrs = attrs(fid);
        let size = u64::from(attrs.chunk_size);
        let call = self.cobs.write_begins(fid, size, chunk * size, bytes.clone());
        let pieces = [Piece { fid, attrs, offset: chunk * size, bytes }];
        let putting = put_all(&self.store, &self.arena, &pieces);
        let result = match give_up_us {
            None => putting.await,
            Some(us) => match self.ctx.timeout(Duration::from_micros(us), putting).await {
                Ok(result) => result,
                Err(_) => {
                    self.tally.add("given_up", 1);
                    return Ok(());
                }
            },
        };
        match result {
            Ok(committed) => {
                self.cobs.committed(call, committed.lsn());
                self.tally.add("writes", 1);
                Ok(())
            }
            Err(error) => {
                if !matches!(error, StoreError::Failed { .. }) {
                    self.cobs.refused(call, &error);
                }
                self.excuse(&error);
                Err(error)
            }
        }
    }

    async fn pair(&self, a: (Fid, u64), b: (Fid, u64), len: usize) -> Result<(), StoreError> {
        if a.0 == b.0 {
            return Ok(());
        }
        let pieces = [a, b].map(|(fid, chunk)| {
            let attrs = attrs(fid);
            Piece { fid, attrs, offset: chunk * u64::from(attrs.chunk_size), bytes: self.cobs.bytes(len) }
        });
        let calls = pieces
            .each_ref()
            .map(|p| self.cobs.write_begins(p.fid, u64::from(p.attrs.chunk_size), p.offset, p.bytes.clone()));
        match put_all(&self.store, &self.arena, &pieces).await {
            Ok(committed) => {
                calls.iter().for_each(|call| self.cobs.committed(*call, committed.lsn()));
                self.tally.add("pairs", 1);
                Ok(())
            }
            Err(error) => {
                if !matches!(error, StoreError::Failed { .. }) {
                    // The reason is that of one of them.
                    calls.iter().for_each(|call| self.cobs.refused(*call, &StoreError::Busy));
                }
                self.excuse(&error);
                Err(error)
            }
        }
    }

    async fn read(&self, fid: Fid, chunk: u64, chunks: u64) {
        let size = u64::from(attrs(fid).chunk_size);
        let since = self.cobs.now();
        match get(&self.store, fid, chunk * size, chunks * size).await {
            Ok(bytes) => {
                self.cobs.read(fid, since, size, chunk * size, &bytes);
                self.tally.add("reads", 1);
            }
            Err(StoreError::Missing { offset, .. }) => {
                if offset.is_multiple_of(size) {
                    self.cobs.missed(fid, since, size, offset);
                }
                self.tally.add("missing", 1);
            }
            Err(error) => self.excuse(&error),
        }
    }

    async fn delete(&self, fid: Fid, give_up_us: Option<u64>) {
        let call = self.cobs.delete_begins(fid, u64::from(attrs(fid).chunk_size));
        let deleting = self.store.cob_delete(fid);
        let result = match give_up_us {
            None => deleting.await,
            Some(us) => match self.ctx.timeout(Duration::from_micros(us), deleting).await {
                Ok(result) => result,
                Err(_) => return self.tally.add("given_up", 1),
            },
        };
        match result {
            Ok(committed) => {
                self.cobs.committed(call, committed.lsn());
                self.tally.add("deletes", 1);
            }
            Err(error) => {
                // A host that has no room for what the journal holds leaves none for deletes some time. They are patient.
                let stays_full = self.faults.so_far()[1][Kind::Write as usize] >= proof::REFUSALS_MIN;
                assert!(
                    matches!(error, StoreError::Failed { .. } | StoreError::Busy)
                        || matches!(error, StoreError::HostFull) && stays_full,
                    "a delete works also on a full target: {error}"
                );
                if matches!(error, StoreError::Busy) {
                    self.cobs.refused(call, &error);
                }
                self.excuse(&error);
            }
        }
    }

    async fn fence(&self, slot: u64) {
        let session = self.ages.session(slot, false);
        let number = self.cobs.fence_begins(session);
        match self.store.fence(session).await {
            Ok(committed) => {
                self.cobs.fenced(session, number, committed.lsn());
                let age = &self.ages.sessions[slot as usize];
                age.set(age.get() + 1);
                self.tally.add("fences", 1);
            }
            Err(error) => self.excuse(&error),
        }
    }

    /// One catalogue transaction.
    async fn change(
        &self,
        decide: impl Fn(&mut super::ctg_log::View) -> Result<Vec<CtgOp>, cobalt_store::Miss> + 'static,
    ) -> Result<(), StoreError> {
        let (number, decide) = self.ctg.deciding(decide);
        match self.store.ctg().transact(decide).await {
            Ok((answer, lsn)) => {
                self.ctg.answered(number, answer, lsn);
                self.tally.add("transacts", 1);
                Ok(())
            }
            Err(error) => {
                if !matches!(error, StoreError::Failed { .. }) {
                    self.ctg.refused(number);
                }
                self.excuse(&error);
                Err(error)
            }
        }
    }

    async fn turn(&self, key: u16, len: usize) {
        let (key, tag) = (ctg_key(key), self.cobs.now());
        let result = self.change(move |view| {
            let old = view.get(&key)?;
            let (ctg, name) = key.clone();
            Ok(match old {
                Some(old) if old.len() % 3 == 0 => vec![CtgOp::Delete { ctg, key: name }],
                _ => {
                    let mut value = super::target::pattern(tag, len);
                    value.extend_from_slice(&tag.to_le_bytes());
                    vec![CtgOp::Put { ctg, key: name, value }]
                }
            })
        });
        let _ = result.await;
    }

    /// Looks at many keys, so that the decision misses many nodes, and writes one.
    async fn sum(&self, key: u16, count: u16) {
        let result = self.change(move |view| {
            let mut found = 0u64;
            for at in key..key + count {
                found += u64::from(view.get(&ctg_key(at))?.is_some());
            }
            let next = view.next(&ctg_key(key))?;
            let (ctg, name) = ctg_key(key);
            if found.is_multiple_of(4) {
                return Ok(Vec::new());
            }
            let value = [found.to_le_bytes().to_vec(), next.map(|n| n.1).unwrap_or_default()].concat();
            Ok(vec![CtgOp::Put { ctg, key: name, value }])
        });
        let _ = result.await;
    }

    async fn fill(&self, key: u16, count: u16, len: usize) {
        let keys: Vec<u16> = (key..key.saturating_add(count).min(CTG_KEYS)).collect();
        for keys in keys.chunks(4) {
            let puts = keys.iter().map(|key| {
                let (ctg, key) = ctg_key(*key);
                CtgOp::Put { ctg, key, value: super::target::pattern(self.cobs.now(), len.min(600)) }
            });
            let puts: Vec<CtgOp> = puts.collect();
            if self.change(move |_| Ok(puts.clone())).await.is_err() {
                return;
            }
        }
    }

    async fn clear(&self, key: u16, count: u16) {
        for ctg in [1, 2] {
            let result = self.change(move |view| {
                let mut ops = Vec::new();
                let mut from = (ctg, key.to_be_bytes().to_vec());
                let mut bytes = 0;
                while ops.len() < usize::from(count) && bytes < 3000 {
                    let Some(found) = view.next(&from)? else { break };
                    from = (found.0, [&found.1[..], &[0]].concat());
                    bytes += from.1.len() + 8;
                    ops.push(CtgOp::Delete { ctg: found.0, key: found.1 });
                }
                Ok(ops)
            });
            let _ = result.await;
        }
    }

    async fn get(&self, key: u16) {
        let key = ctg_key(key);
        let since = self.store.ctg().applied();
        match self.store.ctg().get(key.0, &key.1).await {
            Ok(value) => {
                self.ctg.got(key, value, (since, self.store.ctg().applied()));
                self.tally.add("gets", 1);
            }
            Err(error) => self.excuse(&error),
        }
    }

    async fn scan(&self, key: u16, count: u16) {
        let ctg = 1 + u32::from(key.is_multiple_of(3));
        let (from, until) = (key.to_be_bytes().to_vec(), (key + count).to_be_bytes().to_vec());
        let since = self.store.ctg().applied();
        match self.store.ctg().scan(ctg, &from, Some(&until), usize::MAX).await {
            Ok(entries) => {
                let between = (since, self.store.ctg().applied());
                self.ctg.scanned((ctg, from), (ctg, until), entries, between);
                self.tally.add("scans", 1);
            }
            Err(error) => self.excuse(&error),
        }
    }
}
