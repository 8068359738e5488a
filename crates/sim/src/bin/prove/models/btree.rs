//! The trees: four ordered maps over one cache of a few nodes, whatever the cache forgets, whenever checkpoints
//! run, whichever read or write fails.

use super::case::Model;
use super::disk::{Cut, Disk, Error, Fault, Kind};
use super::target::{Tally, on_virtual_time, pattern};
use crate::run::Counts;
use cobalt_base::Lsn;
use cobalt_bdev::IoError;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, JoinHandle, Scope};
use cobalt_store::Region;
use cobalt_store::geometry::{Geometry, JOURNAL_LEN_MIN};
use cobalt_store::superblock::{BitmapRef, JournalPosition, Superblock};
use cobalt_store::tree::{
    EpochGuard, Forest, Frozen, KeyValue, MetaError, Miss, Root, Roots, TreeId, TreeLimits, verify,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// Node blocks of the region: few enough to run out of.
const BLOCKS: u64 = 260;
const KEYS: u16 = 400;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
type Maps = [Map; 4];

#[derive(Clone, Debug)]
pub enum Op {
    Put(u8, u16, usize),
    Fill(u8, u16, u8, usize),
    Delete(u8, u16),
    Empty(u8, u16, u8),
    Get(u8, u16),
    Next(u8, u16),
    Prev(u8, u16),
    Scan(u8, u16, u16, usize, usize),
    /// A transaction touches a key now and writes it when it is applied; `None` deletes.
    Touch(u8, u16, Option<usize>),
    /// Touches a key, deletes those around it, and reads all of another tree: what inherits the key's place must stay.
    Orphan(u8, u16, u8),
    Apply,
    /// A checkpoint begins, and goes on during what follows.
    Freeze,
    Finish,
    /// What no checkpoint holds is gone.
    Crash(usize),
    /// A read fails, some reads from now.
    FailRead(u64),
    /// A write or a flush fails.
    FailWrite(bool, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let tree = || 0..4u8;
    let k = || 0..KEYS;
    prop_oneof![
        8 => (tree(), k(), 0..1200usize).prop_map(|(t, k, l)| Op::Put(t, k, l)),
        4 => (tree(), k(), 1..60u8, 0..700usize).prop_map(|(t, k, n, l)| Op::Fill(t, k, n, l)),
        6 => (tree(), k()).prop_map(|(t, k)| Op::Delete(t, k)),
        4 => (tree(), k(), 1..120u8).prop_map(|(t, k, n)| Op::Empty(t, k, n)),
        3 => (tree(), k()).prop_map(|(t, k)| Op::Get(t, k)),
        3 => (tree(), k()).prop_map(|(t, k)| Op::Next(t, k)),
        3 => (tree(), k()).prop_map(|(t, k)| Op::Prev(t, k)),
        3 => (tree(), k(), k(), 1..30usize, 1..5000usize)
            .prop_map(|(t, a, b, n, l)| Op::Scan(t, a, b, n, l)),
        6 => (tree(), k(), option::of(0..1000usize)).prop_map(|(t, k, v)| Op::Touch(t, k, v)),
        2 => (tree(), k(), 1..30u8).prop_map(|(t, k, n)| Op::Orphan(t, k, n)),
        3 => Just(Op::Apply),
        4 => Just(Op::Freeze),
        4 => Just(Op::Finish),
        1 => (0..Cut::ALL.len()).prop_map(Op::Crash),
        1 => (0..4u64).prop_map(Op::FailRead),
        1 => (any::<bool>(), 0..4u64).prop_map(|(flush, at)| Op::FailWrite(flush, at)),
    ]
}

pub struct Btree;

impl Model for Btree {
    type Op = Op;
    const NAME: &'static str = "btree";
    const CASES: u64 = 600;
    const MEETS: &'static [&'static str] = &[
        "splits",
        "merges",
        "evictions",
        "node_reads",
        "checkpoints",
        "crashes",
        "read_errors",
        "write_errors",
        "touched",
        "emptied",
    ];

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        vec(op(), 1..150)
    }

    fn play(seed: u64, ops: Vec<Op>) -> Counts {
        on_virtual_time(seed, move |ctx| async move {
            let mut world = World::new(&ctx, seed).await;
            for op in ops {
                world.act(op).await;
            }
            world.end().await
        })
    }
}

/// A transaction that is open: what it touched, and what it will do to it.
type Pending = (EpochGuard, TreeId, Vec<u8>, Option<Vec<u8>>);
type Writing = JoinHandle<Result<(Frozen, Roots), MetaError>>;

struct World {
    ctx: Ctx,
    arena: Arena,
    disk: Disk,
    scope: Scope,
    meta: Region,
    superblock: Superblock,
    forest: Forest,
    limits: TreeLimits,
    maps: Maps,
    durable: Maps,
    pending: Vec<Pending>,
    writing: Option<(Writing, Maps)>,
    values: u64,
    tally: Tally,
}

fn key(number: u16) -> Vec<u8> {
    let mut key = number.to_be_bytes().to_vec();
    key.resize(2 + usize::from(number % 9) * 60, b'k');
    key
}

impl World {
    async fn new(ctx: &Ctx, seed: u64) -> World {
        let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).expect("an arena");
        let len = BLOCKS * 4096 + JOURNAL_LEN_MIN + 32 * 1024;
        let disk = Disk::new("meta", len as usize, 64 << 10, seed);
        let scope = ctx.scope();
        let meta = Region::whole(disk.mount(&scope));
        let geometry = Geometry::plan(meta.len, 4096, JOURNAL_LEN_MIN).expect("a layout");
        // Every other case has but the fewest nodes in memory.
        let cache_bytes = if seed.is_multiple_of(2) { 4096 } else { 40 * 4096 };
        let limits = TreeLimits { cache_bytes, ..TreeLimits::tiny() };
        let target = Uuid::from_u128(7);
        let forest = Forest::create(&scope.ctx(), &meta, &arena, geometry, target, limits);
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
        let mut world = World {
            ctx: ctx.clone(),
            arena,
            disk,
            scope,
            meta,
            superblock,
            forest,
            limits,
            maps: Maps::default(),
            durable: Maps::default(),
            pending: Vec::new(),
            writing: None,
            values: 0,
            tally: Tally::default(),
        };
        // Generation 1, so that there is one to fall back to.
        world.freeze();
        world.finish().await;
        world
    }

    /// Runs an operation, loading what it misses. `None` when there is no room, or a read failed.
    async fn retry<T>(&mut self, op: impl Fn(&Forest) -> Result<T, Miss>) -> Option<T> {
        let mut read_failed = false;
        for _ in 0..400 {
            let miss = match op(&self.forest) {
                Ok(value) => return Some(value),
                Err(miss) => miss,
            };
            match self.forest.load(miss).await {
                Ok(()) => {}
                Err(MetaError::Full) => {
                    self.tally.add("full", 1);
                    return None;
                }
                Err(MetaError::Io { source: IoError::Failed { .. }, .. }) if !read_failed => {
                    // Nothing was changed: it works the next time.
                    read_failed = true;
                    self.tally.add("read_errors", 1);
                    self.disk.fail(None);
                }
                Err(error) => panic!("a load fails of nothing: {error:?}"),
            }
        }
        panic!("the operation misses for ever");
    }

    fn value(&mut self, len: usize, key: &[u8]) -> Vec<u8> {
        self.values += 1;
        pattern(self.values, len.min(self.forest.entry_max() - key.len()))
    }

    async fn put(&mut self, tree: u8, number: u16, len: usize) {
        let (id, key) = (TreeId::ALL[usize::from(tree)], key(number));
        let value = self.value(len, &key);
        if self.retry(|forest| forest.put(id, &key, &value)).await.is_some() {
            self.maps[usize::from(tree)].insert(key, value);
        }
    }

    async fn delete(&mut self, tree: u8, number: u16) {
        let (id, key) = (TreeId::ALL[usize::from(tree)], key(number));
        if let Some(was) = self.retry(|forest| forest.delete(id, &key)).await {
            assert_eq!(
                was,
                self.maps[usize::from(tree)].remove(&key).is_some(),
                "a delete says what was there"
            );
        }
    }

    /// What was touched in an open epoch never misses, whatever happened since, but for room.
    fn apply(&mut self) {
        for (_epoch, tree, key, value) in std::mem::take(&mut self.pending) {
            let map = &mut self.maps[tree as usize];
            let done = match &value {
                Some(value) => self.forest.put(tree, &key, value).map(|()| map.contains_key(&key)),
                None => self.forest.delete(tree, &key),
            };
            match (done, value) {
                (Ok(_), Some(value)) => drop(map.insert(key, value)),
                (Ok(was), None) => assert_eq!(was, map.remove(&key).is_some()),
                (Err(miss), _) => assert!(miss.is_space(), "a touched key misses: {miss:?}"),
            }
            self.tally.add("touched", 1);
        }
    }

    fn freeze(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let forest = self.forest.clone();
        let frozen = forest.freeze();
        let task = self.scope.ctx().spawn(async move {
            let roots = forest.write(&frozen, |_| Some(Duration::from_micros(3))).await?;
            Ok((frozen, roots))
        });
        self.writing = Some((task, self.maps.clone()));
    }

    /// The checkpoint that runs ends. One that failed ends this life.
    async fn finish(&mut self) {
        let Some((task, maps)) = self.writing.take() else { return };
        match task.await {
            Ok((frozen, roots)) => {
                // A crash here starts from the generation before: nothing of it may be gone.
                if self.superblock.generation > 0 {
                    self.assert_durable().await;
                }
                self.superblock.generation = roots.generation;
                (self.superblock.roots, self.superblock.bitmap) = (roots.roots, roots.bitmap);
                self.forest.release(frozen);
                self.durable = maps;
                self.assert_durable().await;
                self.tally.add("checkpoints", 1);
            }
            Err(error) => {
                assert!(matches!(error, MetaError::Io { .. }), "a write failed, the error: {error}");
                self.tally.add("write_errors", 1);
                self.crash(Cut::Sectors).await;
            }
        }
    }

    async fn crash(&mut self, cut: Cut) {
        self.count();
        self.pending.clear();
        self.writing = None;
        self.scope.kill();
        self.disk.fail(None);
        self.disk.cut(cut);
        self.scope = self.ctx.scope();
        self.meta = Region::whole(self.disk.mount(&self.scope));
        let opened =
            Forest::open(&self.scope.ctx(), &self.meta, &self.arena, &self.superblock, self.limits).await;
        self.forest = opened.unwrap_or_else(|e| panic!("the trees do not open: {e}"));
        // Recovery writes a superblock of its own.
        self.superblock.generation += 1;
        self.maps = self.durable.clone();
        self.tally.add("crashes", 1);
        self.assert_durable().await;
    }

    fn count(&self) {
        let stats = self.forest.cache_stats();
        for (name, n) in [
            ("splits", stats.splits),
            ("merges", stats.merges),
            ("evictions", stats.evictions),
            ("node_reads", stats.reads),
            ("empties_kept", stats.empties_kept),
        ] {
            self.tally.add(name, n);
        }
    }

    /// The durable superblock's trees are whole and hold what they held when they were frozen. Gives their nodes.
    async fn assert_durable(&self) -> u64 {
        self.disk.pause(true);
        let mut found = Maps::default();
        let verified = verify(&self.meta, &self.arena, &self.superblock, |tree, key, value| {
            found[tree as usize].insert(key.to_vec(), value.to_vec());
        })
        .await;
        self.disk.pause(false);
        assert!(verified.findings.is_empty(), "{:?}", verified.findings);
        assert!(found == self.durable, "the durable trees are not what was checkpointed");
        verified.trees.iter().map(|tree| tree.nodes).sum()
    }

    /// Once all that was changed is in a checkpoint, every block is free or a node of it.
    async fn assert_no_leak(&mut self) {
        self.freeze();
        self.finish().await;
        let nodes = self.assert_durable().await;
        assert_eq!(self.forest.meta_free() + nodes, self.forest.meta_blocks(), "a node block is lost");
    }

    async fn look(
        &mut self,
        tree: u8,
        op: impl Fn(&Forest, TreeId) -> Result<Option<KeyValue>, Miss>,
        expected: Option<KeyValue>,
    ) {
        let id = TreeId::ALL[usize::from(tree)];
        let found = self.retry(|forest| op(forest, id)).await.expect("a look needs no room");
        assert!(found == expected, "found {:?}, expected {:?}", found.map(|e| e.0), expected.map(|e| e.0));
    }

    async fn act(&mut self, op: Op) {
        self.tally.add("ops", 1);
        if self.writing.is_some() {
            self.ctx.yield_now().await;
        }
        let owned = |entry: (&Vec<u8>, &Vec<u8>)| (entry.0.clone(), entry.1.clone());
        match op {
            Op::Put(t, k, len) => self.put(t, k, len).await,
            Op::Fill(t, k, n, len) => {
                for k in k..k.saturating_add(u16::from(n)).min(KEYS) {
                    self.put(t, k, len).await;
                }
            }
            Op::Delete(t, k) => self.delete(t, k).await,
            Op::Empty(t, k, n) => {
                for k in k..k.saturating_add(u16::from(n)).min(KEYS) {
                    self.delete(t, k).await;
                }
            }
            Op::Get(t, k) => {
                let k = key(k);
                let expected = self.maps[usize::from(t)].get(&k).map(|v| (k.clone(), v.clone()));
                let get = |f: &Forest, id| Ok(f.get(id, &k)?.map(|v| (k.clone(), v)));
                self.look(t, get, expected).await;
            }
            Op::Next(t, k) => {
                let k = key(k);
                let expected = self.maps[usize::from(t)].range(k.clone()..).next().map(owned);
                self.look(t, |f, id| f.next(id, &k), expected).await;
            }
            Op::Prev(t, k) => {
                let k = key(k);
                let expected = self.maps[usize::from(t)].range(..=k.clone()).next_back().map(owned);
                self.look(t, |f, id| f.prev(id, &k), expected).await;
            }
            Op::Scan(t, a, b, entries, bytes) => self.scan(t, a, b, entries, bytes).await,
            Op::Touch(t, k, len) => self.touch(t, k, len).await,
            Op::Orphan(t, k, n) => {
                self.freeze();
                self.finish().await;
                self.touch(t, k, Some(300)).await;
                for near in k.saturating_sub(u16::from(n))..(k + u16::from(n)).min(KEYS) {
                    self.delete(t, near).await;
                }
                self.freeze();
                self.finish().await;
                self.scan((t + 1) % 4, 0, KEYS, usize::MAX, 20_000).await;
                self.scan((t + 2) % 4, 0, KEYS, usize::MAX, 20_000).await;
                self.apply();
            }
            Op::Apply => self.apply(),
            Op::Freeze => self.freeze(),
            Op::Finish => {
                self.freeze();
                self.finish().await;
            }
            Op::Crash(cut) => self.crash(Cut::ALL[cut]).await,
            Op::FailRead(at) => {
                self.disk.fail(Some(Fault { kind: Kind::Read, at, forever: false, error: Error::Failed }));
            }
            Op::FailWrite(flush, at) => {
                let (kind, at) = if flush { (Kind::Flush, 0) } else { (Kind::Write, at) };
                self.disk.fail(Some(Fault { kind, at, forever: false, error: Error::Failed }));
            }
        }
    }

    async fn touch(&mut self, t: u8, k: u16, len: Option<usize>) {
        let (id, k) = (TreeId::ALL[usize::from(t)], key(k));
        // Much at a time, held for ever, is more than a store does.
        if self.pending.len() > 8 {
            self.apply();
        }
        let epoch = self.forest.epoch();
        self.retry(|forest| forest.touch(id, &k)).await.expect("a touch needs no room");
        let value = len.map(|len| self.value(len, &k));
        self.pending.push((epoch, id, k, value));
    }

    async fn scan(&mut self, t: u8, a: u16, b: u16, entries: usize, bytes: usize) {
        let (id, from, until) = (TreeId::ALL[usize::from(t)], key(a), key(b));
        let found = self.retry(|forest| forest.scan(id, &from, Some(&until), entries, bytes)).await;
        let found = found.expect("a scan needs no room");
        let mut size = 0;
        let expected: Vec<_> = self.maps[usize::from(t)]
            .range(from.clone()..)
            .take_while(|(k, _)| **k < until)
            .take(entries)
            .enumerate()
            .take_while(|(i, (k, v))| {
                size += k.len() + v.len();
                *i == 0 || size <= bytes
            })
            .map(|(_, (k, v))| (k.clone(), v.clone()))
            .collect();
        assert!(found == expected, "a scan gives {} entries, expected {}", found.len(), expected.len());
    }

    async fn end(mut self) -> Counts {
        self.apply();
        self.disk.fail(None);
        self.finish().await;
        self.assert_no_leak().await;
        for tree in 0..4u8 {
            for (k, v) in self.maps[usize::from(tree)].clone() {
                let expected = Some((k.clone(), v));
                self.look(tree, |f, id| Ok(f.get(id, &k)?.map(|v| (k.clone(), v))), expected).await;
            }
        }
        for tree in 0..4u8 {
            for k in 0..KEYS {
                if self.forest.meta_free() < BLOCKS / 4 {
                    self.freeze();
                    self.finish().await;
                }
                self.delete(tree, k).await;
            }
        }
        for _ in 0..2 {
            self.freeze();
            self.finish().await;
        }
        self.assert_no_leak().await;
        // Only admission, which is not here, keeps room for deletes. An empty leaf that a life could not unlink is not
        // remembered by the next one: it stays until something is put there and deleted again.
        if self.maps.iter().all(Map::is_empty) && self.tally.get("empties_kept") == 0 {
            assert_eq!(self.forest.meta_free(), self.forest.meta_blocks(), "an empty tree has no node");
            self.tally.add("emptied", 1);
        }
        let stats = self.forest.cache_stats();
        assert_eq!((stats.pinned_bytes, stats.frozen_bytes, stats.dirty_bytes), (0, 0, 0), "nothing is held");
        self.count();
        self.scope.kill();
        self.tally.take()
    }
}
