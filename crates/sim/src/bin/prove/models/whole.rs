//! The whole store: calls of all kinds at one time, given up, refused, failed by the devices or cut off by a
//! power cut, and after each start everything that was acknowledged.

use super::caller::{Caller, Faults};
use super::case::Model;
use super::cob_log::{CobLog, Found};
use super::ctg_log::CtgLog;
use super::disk::{Cut, Kind};
use super::op::{self, Name, Op};
use super::target::{CALL_TIME, Shape, Tally, Target, fid, get, on_virtual_time};
use crate::run::Counts;
use cobalt_base::Fid;
use cobalt_reactor::{Ctx, JoinHandle};
use cobalt_store::tree::TreeId;
use cobalt_store::{CtgOp, Limits, Store, StoreError, TreeRow, proof};
use proptest::collection::vec;
use proptest::prelude::{Strategy, prop_oneof};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

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
            19 => vec(op::one(), 1..160),
            1 => (vec(op::one(), 0..20), vec(op::one(), 0..60)).prop_map(|(mut before, after)| {
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

pub struct World {
    target: Target,
    caller: Caller,
    tasks: Vec<JoinHandle<()>>,
    /// Calls in flight at one time.
    window: usize,
    /// Failures on order outlive a crash.
    keep_faults: bool,
}

impl World {
    fn new(ctx: Ctx, target: Target, tally: &Tally) -> World {
        let faults = Faults {
            meta: target.meta.clone(),
            data: target.data.clone(),
            before: RefCell::default(),
            broken_before: Cell::new(0),
        };
        let caller = Caller {
            ctx,
            store: target.store.clone(),
            arena: target.arenas.payload.clone(),
            cobs: CobLog::default(),
            ctg: CtgLog::default(),
            ages: Rc::default(),
            tally: tally.clone(),
            faults: Rc::new(faults),
        };
        World { target, caller, tasks: Vec::new(), window: 6, keep_faults: false }
    }

    /// A world in which failures on order stay until the end.
    pub fn in_trouble(ctx: Ctx, target: Target, tally: &Tally) -> World {
        World { keep_faults: true, window: 3, ..World::new(ctx, target, tally) }
    }

    pub async fn act(mut self, op: Op) -> World {
        self.tasks.retain(|task| !task.is_finished());
        while self.tasks.len() >= self.window {
            self.caller.ctx.sleep(Duration::from_micros(20)).await;
            self.tasks.retain(|task| !task.is_finished());
        }
        match op {
            Op::Pause { us } => self.caller.ctx.sleep(Duration::from_micros(us)).await,
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
                let caller = self.caller.clone();
                // In the target's scope: a caller dies with its process.
                self.tasks.push(self.target.scope.ctx().spawn(async move { caller.call(call).await }));
            }
        }
        self
    }

    /// Waits for every call.
    async fn join(&mut self) {
        for task in self.tasks.drain(..) {
            let joined = self.caller.ctx.timeout(CALL_TIME * 4, task.join()).await;
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
        self.caller.ctx.sleep(Duration::from_secs(1)).await;
        self.check_verdict().await;
        if self.failed() {
            return;
        }
        self.look(self.target.store.ctg().applied().0).await;
        self.check_chores().await;
        self.target.assert_clean("when all is quiet").await;
        self.caller.tally.add("settled", 1);
    }

    /// No background work was forgotten: no dead cob is left, and no tombstone of a fenced session.
    async fn check_chores(&self) {
        let (rows, _) = self.target.store.rows(TreeId::Cob, &[], usize::MAX).await.expect("rows");
        for row in rows {
            match row {
                TreeRow::Dead { fid, .. } => panic!("the dead cob {fid} is left"),
                TreeRow::Tombstone { fid } => {
                    assert!(!self.caller.cobs.is_fenced(fid.session), "the tombstone of {fid} is left");
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
            let [meta, data] = self.caller.faults.so_far();
            // What a failed write or flush left is unknown. Data that the host had no room for are nowhere.
            let broken = self.caller.faults.broken_writes() > 0 || data[Kind::Flush as usize] > 0;
            let must = meta.iter().sum::<u64>() > 0 || broken;
            let failed = self.target.store.status().failed;
            assert!(must || failed.is_none(), "failed without a cause: {failed:?}, data {data:?}");
            told = must == failed.is_some();
            if told {
                break;
            }
            self.caller.ctx.sleep(Duration::from_micros(100)).await;
        }
        assert!(
            told,
            "a device failed, and the target says that it is well: {:?}",
            self.caller.faults.so_far()
        );
    }

    /// Everything that there is, held against what was done.
    async fn look(&self, durable: u64) {
        let store = &self.target.store;
        let mut found = BTreeMap::new();
        for (fid, chunk, count) in self.caller.cobs.cobs() {
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
        self.caller.cobs.settle(durable, found);
        let mut entries = BTreeMap::new();
        for ctg in [1, 2] {
            let all = store.ctg().scan(ctg, &[], None, usize::MAX).await.expect("a scan");
            entries.extend(all.into_iter().map(|(key, value)| ((ctg, key), value)));
        }
        self.caller.ctg.settle(durable, entries);
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
        self.caller.tally.add("crashes", 1);
        self.next_life().await
    }

    async fn next_life(mut self) -> World {
        let injected: u64 = self.caller.faults.so_far().iter().flatten().sum();
        self.caller.tally.add("io_errors", injected);
        let World { target, mut caller, window, keep_faults, .. } = self;
        caller.faults.forget();
        let (target, refused) = target.start().await;
        if refused {
            caller.faults.forget();
        }
        caller.store = target.store.clone();
        self = World { target, caller, tasks: Vec::new(), window, keep_faults };
        let durable = proof::recovered(&self.target.store).0;
        self.target.in_peace(self.look(durable)).await;
        self
    }

    async fn close(mut self) -> World {
        self.join().await;
        let closed =
            self.caller.ctx.timeout(CALL_TIME, self.target.store.close()).await.expect("a close ends");
        self.check_verdict().await;
        let full = matches!(closed, Err(StoreError::HostFull));
        assert!(closed.is_ok() || full || self.failed(), "{closed:?}");
        if closed.is_ok() && !self.failed() {
            self.caller.tally.add("closed", 1);
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
        let caller = &self.caller;
        let mut filled = Vec::new();
        for number in 0..60 {
            let name = fid(900 + number % 2, 1 + number + 100 * caller.cobs.now());
            let bytes = caller.cobs.bytes(48 * 4096);
            match caller.write(name, 0, bytes, None).await {
                Ok(()) => filled.push(name),
                Err(StoreError::NoSpace { .. }) => {
                    self.caller.tally.add("no_space", 1);
                    break;
                }
                Err(_) => break,
            }
        }
        for name in filled {
            self.caller.delete(name, None).await;
        }
    }

    /// Entries until one is refused.
    async fn fill_meta(&mut self) {
        self.join().await;
        for number in 0..2000u16 {
            let key = (1, [&[0xfe][..], &number.to_be_bytes(), &[7; 500]].concat());
            let value = vec![1; 700];
            let result = self.caller.change(move |_| {
                Ok(vec![CtgOp::Put { ctg: key.0, key: key.1.clone(), value: value.clone() }])
            });
            match result.await {
                Ok(()) => {}
                Err(StoreError::MetaFull) => {
                    self.caller.tally.add("meta_full", 1);
                    break;
                }
                Err(_) => break,
            }
        }
        // Deletes of cobs go on, and a write is refused or done.
        for number in 0..5 {
            self.caller.delete(self.caller.ages.fid(Name { session: 1, number, old: false }), None).await;
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
