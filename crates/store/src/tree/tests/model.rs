//! The forest does what four ordered maps do, whatever the cache forgets and whenever checkpoints run.

use super::rig::{Model, Rig, key, retry, run, tiny, value};
use crate::tree::{EpochGuard, Forest, Frozen, Hint, MetaError, Put, Roots, TreeId};
use cobalt_reactor::JoinHandle;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Act {
    Put(u8, u16, usize, u8),
    Fill(u8, u16, u8, usize),
    Delete(u8, u16),
    Empty(u8, u16, u8),
    Get(u8, u16),
    Next(u8, u16),
    Prev(u8, u16),
    Scan(u8, u16, u16, usize, usize),
    /// A transaction touches a key now and writes it when it is applied; `None` deletes.
    Touch(u8, u16, Option<usize>),
    Apply,
    Freeze,
    Finish,
    Checkpoint,
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    let tree = 0..4u8;
    let k = 0..400u16;
    prop_oneof![
        8 => (tree.clone(), k.clone(), 0..840usize, any::<u8>()).prop_map(|(t, k, l, s)| Act::Put(t, k, l, s)),
        4 => (tree.clone(), k.clone(), 1..60u8, 0..500usize).prop_map(|(t, k, n, l)| Act::Fill(t, k, n, l)),
        6 => (tree.clone(), k.clone()).prop_map(|(t, k)| Act::Delete(t, k)),
        3 => (tree.clone(), k.clone(), 1..120u8).prop_map(|(t, k, n)| Act::Empty(t, k, n)),
        3 => (tree.clone(), k.clone()).prop_map(|(t, k)| Act::Get(t, k)),
        3 => (tree.clone(), k.clone()).prop_map(|(t, k)| Act::Next(t, k)),
        3 => (tree.clone(), k.clone()).prop_map(|(t, k)| Act::Prev(t, k)),
        3 => (tree.clone(), k.clone(), k.clone(), 1..30usize, 1..5000usize)
            .prop_map(|(t, a, b, n, l)| Act::Scan(t, a, b, n, l)),
        5 => (tree, k, proptest::option::of(0..800usize)).prop_map(|(t, k, v)| Act::Touch(t, k, v)),
        3 => proptest::strategy::Just(Act::Apply),
        3 => proptest::strategy::Just(Act::Freeze),
        3 => proptest::strategy::Just(Act::Finish),
        1 => proptest::strategy::Just(Act::Checkpoint),
        1 => proptest::strategy::Just(Act::Reopen),
    ]
}

/// A transaction that is open: what it touched, and what it will do to it.
type Pending = (EpochGuard, TreeId, Vec<u8>, Option<Vec<u8>>, Option<Hint>);
type Writing = JoinHandle<Result<(Frozen, Roots), MetaError>>;

struct World {
    rig: Rig,
    forest: Forest,
    model: Model,
    pending: Vec<Pending>,
    writing: Option<(Writing, Model)>,
    durable: Model,
}

impl World {
    async fn put(&mut self, tree: u8, k: Vec<u8>, v: Vec<u8>) {
        let id = TreeId::ALL[usize::from(tree)];
        retry(&self.forest, || self.forest.put(id, &k, &v)).await;
        self.model[usize::from(tree)].insert(k, v);
    }

    async fn delete(&mut self, tree: u8, k: Vec<u8>) {
        let id = TreeId::ALL[usize::from(tree)];
        let was = retry(&self.forest, || self.forest.delete(id, &k)).await;
        assert_eq!(was, self.model[usize::from(tree)].remove(&k).is_some());
    }

    /// What was touched in an open epoch never misses, whatever happened since.
    fn apply(&mut self) {
        let changes = self.pending.iter().map(|(_, tree, key, value, leaf)| Put {
            tree: *tree,
            key,
            value: value.as_deref(),
            leaf: *leaf,
        });
        self.forest.apply(changes).expect("a touched key never misses");
        for (_epoch, tree, k, v, _) in self.pending.drain(..) {
            let map = &mut self.model[tree.index()];
            match v {
                Some(v) => drop(map.insert(k, v)),
                None => drop(map.remove(&k)),
            }
        }
    }

    /// Many changes at one time, as a group of transactions is applied.
    async fn change(&mut self, tree: u8, keys: std::ops::Range<u16>, make: impl Fn(u16) -> Option<Vec<u8>>) {
        let id = TreeId::ALL[usize::from(tree)];
        let changes: Vec<_> = keys.map(|i| (key(i), make(i))).collect();
        let mut left = changes.as_slice();
        while let Err((done, miss)) = self.forest.apply(left.iter().map(|(key, value)| Put {
            tree: id,
            key,
            value: value.as_deref(),
            leaf: None,
        })) {
            left = &left[done..];
            self.forest.load(miss).await.expect("load");
        }
        for (k, v) in changes {
            let map = &mut self.model[usize::from(tree)];
            match v {
                Some(v) => drop(map.insert(k, v)),
                None => drop(map.remove(&k)),
            }
        }
    }

    /// The write goes on between the acts that follow.
    fn freeze(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let forest = self.forest.clone();
        let frozen = forest.freeze();
        let task = self.rig.ctx.spawn(async move {
            let roots = forest.write(&frozen, |_| Some(Duration::from_micros(3))).await?;
            Ok((frozen, roots))
        });
        self.writing = Some((task, self.model.clone()));
    }

    async fn finish(&mut self) {
        let Some((task, model)) = self.writing.take() else { return };
        let (frozen, roots) = task.await.expect("write");
        // A crash here starts from the generation before: nothing of it may be gone.
        self.rig.assert_durable(&self.durable).await;
        self.rig.adopt(roots);
        self.forest.release(frozen);
        self.durable = model;
        self.rig.assert_durable(&self.durable).await;
    }

    async fn scan(&self, tree: u8, from: u16, until: u16, entries: usize, bytes: usize) {
        let map = &self.model[usize::from(tree)];
        let (from, until) = (key(from), key(until));
        let id = TreeId::ALL[usize::from(tree)];
        let got = retry(&self.forest, || self.forest.scan(id, &from, Some(&until), entries, bytes)).await;
        let mut size = 0;
        let expected: Vec<_> = map
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
        assert_eq!(got, expected);
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Put(t, k, len, seed) => self.put(t, key(k), value(len, seed)).await,
            Act::Fill(t, k, n, len) => {
                self.change(t, k..k + u16::from(n), |i| Some(value(len, i as u8))).await;
            }
            Act::Delete(t, k) => self.delete(t, key(k)).await,
            Act::Empty(t, k, n) => {
                self.change(t, k..k + u16::from(n), |_| None).await;
            }
            Act::Get(t, k) => {
                let (id, k) = (TreeId::ALL[usize::from(t)], key(k));
                let got = retry(&self.forest, || self.forest.get(id, &k)).await;
                assert_eq!(got.as_ref(), self.model[usize::from(t)].get(&k));
            }
            Act::Next(t, k) => {
                let (id, k) = (TreeId::ALL[usize::from(t)], key(k));
                let got = retry(&self.forest, || self.forest.next(id, &k)).await;
                let expected = self.model[usize::from(t)].range(k..).next();
                assert_eq!(got, expected.map(|(k, v)| (k.clone(), v.clone())));
            }
            Act::Prev(t, k) => {
                let (id, k) = (TreeId::ALL[usize::from(t)], key(k));
                let got = retry(&self.forest, || self.forest.prev(id, &k)).await;
                let below = (Bound::Unbounded, Bound::Included(k));
                let expected = self.model[usize::from(t)].range::<Vec<u8>, _>(below).next_back();
                assert_eq!(got, expected.map(|(k, v)| (k.clone(), v.clone())));
            }
            Act::Scan(t, a, b, n, l) => self.scan(t, a, b, n, l).await,
            Act::Touch(t, k, v) => {
                let (id, k) = (TreeId::ALL[usize::from(t)], key(k));
                let epoch = self.forest.epoch();
                // What is said of a key's leaf when it is read may be true of another key, in another tree, long ago, or of none.
                let near = self.pending.iter().rev().find_map(|(.., leaf)| *leaf);
                // Its leaf is known by then, or is not; known, it may since have been split, joined, written or emptied.
                let leaf = if v.is_some_and(|len| len % 3 == 0) {
                    retry(&self.forest, || self.forest.touch(id, &k)).await;
                    None
                } else {
                    let read =
                        retry(&self.forest, || self.forest.get_held(id, &k, near, <[u8]>::to_vec)).await;
                    assert_eq!(read.0.as_ref(), self.model[id.index()].get(&k));
                    read.1
                };
                self.pending.push((epoch, id, k, v.map(|len| value(len, 3)), leaf));
            }
            Act::Apply => self.apply(),
            Act::Freeze => self.freeze(),
            Act::Finish => self.finish().await,
            Act::Checkpoint => {
                self.finish().await;
                self.rig.checkpoint(&self.forest).await.expect("checkpoint");
                self.durable = self.model.clone();
                self.rig.assert_durable(&self.durable).await;
            }
            Act::Reopen => {
                // A crash: what no checkpoint holds is gone (the journal would bring it back).
                self.finish().await;
                self.pending.clear();
                self.forest = self.rig.reopen().await;
                self.model = self.durable.clone();
            }
        }
    }
}

async fn check(rig: Rig, forest: Forest, acts: Vec<Act>) -> Forest {
    let model: Model = Default::default();
    let mut world = World { rig, forest, durable: model.clone(), model, pending: Vec::new(), writing: None };
    // Format writes generation 1, so that there is a durable generation to crash back to.
    world.act(Act::Checkpoint).await;
    for act in acts {
        world.act(act).await;
        if world.writing.is_some() {
            world.rig.ctx.yield_now().await;
        }
    }
    world.apply();
    world.act(Act::Checkpoint).await;
    for tree in TreeId::ALL {
        let map: BTreeMap<_, _> = world.model[tree.index()].clone();
        for (k, v) in map {
            assert_eq!(retry(&world.forest, || world.forest.get(tree, &k)).await, Some(v));
        }
    }
    world.forest
}

proptest! {
    #![proptest_config(Config { max_shrink_iters: 400, ..Config::default() })]
    #[test]
    fn the_forest_is_four_ordered_maps(acts in proptest::collection::vec(act(), 1..120), seed in any::<u64>()) {
        run(seed, move |ctx| async move {
            let (rig, forest) = Rig::new(&ctx, 3000, tiny());
            check(rig, forest, acts).await;
        });
    }
}

/// The proptest is worth something only if what it is about happens: one long run must split, merge,
/// evict and reload.
#[test]
fn a_long_run_splits_merges_evicts_and_reloads() {
    run(1, |ctx| async move {
        let (rig, forest) = Rig::new(&ctx, 6000, tiny());
        let mut acts = Vec::new();
        for round in 0..6u16 {
            for t in 0..4u8 {
                acts.extend([Act::Fill(t, round * 50, 120, 300), Act::Checkpoint]);
            }
            acts.extend([
                Act::Freeze,
                Act::Put(1, 3, 700, 1),
                Act::Touch(2, 77, None),
                Act::Touch(2, 180, Some(200)),
            ]);
            for t in 0..4u8 {
                acts.extend([Act::Scan(t, 0, 399, 25, 4000), Act::Empty(t, round * 50 + 10, 100)]);
            }
            acts.extend([Act::Apply, Act::Finish, Act::Checkpoint, Act::Prev(0, 390), Act::Next(3, 20)]);
        }
        let forest = check(rig, forest, acts).await;
        let stats = forest.cache_stats();
        assert!(stats.splits > 100, "{stats:?}");
        assert!(stats.merges > 10, "{stats:?}");
        assert!(stats.evictions > 50, "{stats:?}");
        assert!(stats.reads > 50, "{stats:?}");
        assert_eq!((stats.pinned_bytes, stats.frozen_bytes, stats.dirty_bytes), (0, 0, 0));
    });
}

#[test]
fn an_emptied_tree_gives_all_its_blocks_back() {
    run(2, |ctx| async move {
        let (rig, forest) = Rig::new(&ctx, 3000, tiny());
        let all = forest.meta_free();
        let acts = vec![Act::Fill(0, 0, 255, 400), Act::Checkpoint, Act::Empty(0, 0, 255), Act::Checkpoint];
        let forest = check(rig, forest, acts).await;
        assert_eq!(forest.meta_free(), all);
    });
}

/// Splits, merges and unlinked leaves move a touched key to other nodes; those take the protection over.
#[test]
fn what_was_touched_stays_whatever_others_do_around_it() {
    for stride in [3u8, 7, 20, 55, 130] {
        for emptied in [false, true] {
            run(u64::from(stride), move |ctx| async move {
                let (rig, forest) = Rig::new(&ctx, 3000, tiny());
                let cob = |k: u16| (TreeId::Cob, key(k));
                for k in 0..400 {
                    retry(&forest, || forest.put(TreeId::Ctg, &key(k), &value(600, 1))).await;
                    if emptied || k % 5 == 0 {
                        retry(&forest, || forest.put(TreeId::Cob, &key(k), &value(300, 1))).await;
                    }
                }
                rig.checkpoint(&forest).await.expect("checkpoint");
                let epoch = forest.epoch();
                for k in (0..400).step_by(usize::from(stride)) {
                    let (tree, k) = cob(k);
                    retry(&forest, || forest.touch(tree, &k)).await;
                }
                for number in 0..400 {
                    let (tree, k) = cob(number);
                    if emptied && number % 60 == 59 {
                        continue; // Something is left to inherit the ranges.
                    } else if emptied {
                        retry(&forest, || forest.delete(tree, &k)).await;
                    } else {
                        retry(&forest, || forest.put(tree, &k, &value(400, 2))).await;
                    }
                    if number % 40 == 0 {
                        rig.checkpoint(&forest).await.expect("checkpoint");
                    }
                }
                rig.checkpoint(&forest).await.expect("checkpoint");
                for _ in 0..3 {
                    for k in 0..400 {
                        let found = retry(&forest, || forest.get(TreeId::Ctg, &key(k))).await;
                        assert_eq!(found.map(|v| v.len()), Some(600));
                    }
                }
                assert!(forest.cache_stats().evictions > 100, "nothing was in danger");
                for k in (0..400).step_by(usize::from(stride)) {
                    let (tree, k) = cob(k);
                    forest.put(tree, &k, &value(500, 3)).expect("a touched key never misses");
                }
                drop(epoch);
                rig.checkpoint(&forest).await.expect("checkpoint");
                assert_eq!(forest.cache_stats().pinned_bytes, 0);
            });
        }
    }
}

fn leaf_keys(forest: &Forest, k: &[u8]) -> Vec<Vec<u8>> {
    let inner = forest.0.inner.borrow();
    let path = inner.descend(TreeId::Cob, k).expect("it was touched");
    let leaf = inner.cache.node(path.last().expect("a leaf").at);
    (0..leaf.count()).map(|i| leaf.key(i).to_vec()).collect()
}

/// A leaf that becomes empty leaves its range to a neighbour, which may not have been touched itself.
#[test]
fn the_heir_of_a_touched_leaf_is_held_too() {
    for touched in [35, 45, 55, 65] {
        run(20, move |ctx| async move {
            let (rig, forest) = Rig::new(&ctx, 3000, tiny());
            for k in 0..400 {
                retry(&forest, || forest.put(TreeId::Ctg, &key(k), &value(600, 1))).await;
                retry(&forest, || forest.put(TreeId::Cob, &key(k), &value(300, 1))).await;
            }
            rig.checkpoint(&forest).await.expect("checkpoint");
            let _epoch = forest.epoch();
            retry(&forest, || forest.touch(TreeId::Cob, &key(touched))).await;
            // Exactly the keys of its leaf: the neighbours are full, so it is unlinked, not merged.
            for k in leaf_keys(&forest, &key(touched)) {
                for near in touched - 10..touched + 10 {
                    retry(&forest, || forest.get(TreeId::Cob, &key(near))).await;
                }
                retry(&forest, || forest.delete(TreeId::Cob, &k)).await;
            }
            assert_eq!((forest.cache_stats().merges, forest.cache_stats().empties_kept), (0, 0));
            rig.checkpoint(&forest).await.expect("checkpoint");
            for k in 0..400 {
                retry(&forest, || forest.get(TreeId::Ctg, &key(k))).await;
            }
            forest.put(TreeId::Cob, &key(touched), b"back").expect("a touched key never misses");
        });
    }
}
