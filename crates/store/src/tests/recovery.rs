//! What a start goes through, and what it needs: devices that outlived their process, room, memory, and the work that the
//! last mount left undone.

use super::dev::State;
use super::rig::{CHUNK, Rig, devices, fid, pattern, put, run};
use crate::geometry::Geometry;
use crate::schema::{self, TOMB};
use crate::superblock::{self, Verdict};
use crate::tree::TreeId;
use crate::{CtgOp, Limits, OpenError, OpenOptions, Region, Regions, Store, StoreError, dump_journal};
use cobalt_base::{Fid, SessionId};
use std::rc::Rc;
use std::time::Duration;

fn entry(n: u32, value: u8) -> CtgOp {
    let key = [&n.wrapping_mul(0x9e37_79b9).to_be_bytes()[..], &[3; 500]].concat();
    CtgOp::Put { ctg: 1, key, value: vec![value; 600] }
}

async fn write_entry(store: &Store, n: u32, value: u8) -> Result<(), StoreError> {
    let op = entry(n, value);
    store.ctg().transact(move |_| Ok((vec![op.clone()], ()))).await.map(drop)
}

#[test]
fn a_process_dies_its_device_lives_on_and_then_the_power_goes() {
    let (mut served, mut cut_short) = (0, 0);
    for seed in 0..120 {
        let seen = Rc::new(std::cell::Cell::new(None));
        let result = seen.clone();
        run(seed, async move |ctx| {
            let rig = Rig::new(&ctx).await;
            for n in 1..=3 {
                rig.put(fid(1, n), 0, &pattern(n, CHUNK)).await.unwrap();
            }
            let (store, arena) = (rig.store.clone(), rig.arena.clone());
            drop(rig.scope_ctx().spawn(async move {
                for n in 4.. {
                    put(&store, &arena, fid(1, n), 0, &pattern(n, CHUNK)).await.unwrap();
                    if n % 3 == 0 {
                        store.checkpoint().await.unwrap();
                    }
                }
            }));
            ctx.sleep(Duration::from_micros(ctx.random_u64() % 900)).await;
            rig.die().await;
            // The next process starts over the same devices, and the power is cut in the middle of that, or after.
            let scope = ctx.scope();
            let options = OpenOptions { limits: rig.limits.clone(), ..OpenOptions::default() };
            let open = Store::open(scope.ctx(), rig.regions.clone(), rig.arena.clone(), options);
            let mut found = Vec::new();
            let opened = ctx.timeout(Duration::from_micros(ctx.random_u64() % 350), open).await;
            result.set(Some(opened.is_ok()));
            if let Ok(opened) = opened {
                let store = opened.unwrap();
                for n in 1..40 {
                    if let Ok(data) = store.cob_read(fid(1, n), 0, CHUNK as u64).await {
                        let bytes: Vec<u8> = data.slices.iter().flat_map(|s| s.iter().copied()).collect();
                        assert_eq!(bytes, pattern(n, CHUNK));
                        found.push(n);
                    }
                }
                assert!(found.len() >= 3);
            }
            scope.kill();
            let images = rig.cut(ctx.random_u64() % 5);
            let rig = rig.boot(images).await.unwrap();
            rig.assert_clean("after both").await;
            for n in (1..=3).chain(found) {
                assert_eq!(
                    rig.read(fid(1, n), 0, CHUNK).await.unwrap(),
                    pattern(n, CHUNK),
                    "cob {n} was served"
                );
            }
        });
        match seen.get() {
            Some(true) => served += 1,
            _ => cut_short += 1,
        }
    }
    assert!(served > 20 && cut_short > 20, "{served} starts came to their end, {cut_short} did not");
}

#[test]
fn what_a_start_keeps_is_durable_before_its_superblock_says_so() {
    let met = Rc::new(std::cell::Cell::new(0));
    for seed in 0..40 {
        let met = met.clone();
        run(seed, async move |ctx| {
            let rig = Rig::new(&ctx).await;
            for n in 1..=3 {
                rig.put(fid(1, n), 0, &pattern(n, CHUNK)).await.unwrap();
            }
            let (store, arena) = (rig.store.clone(), rig.arena.clone());
            drop(
                rig.scope_ctx()
                    .spawn(async move { put(&store, &arena, fid(1, 4), 0, &pattern(4, CHUNK)).await }),
            );
            ctx.sleep(Duration::from_micros(ctx.random_u64() % 60)).await;
            rig.die().await;
            if rig.meta.current() == rig.meta.cut(&ctx, 0) {
                return; // No record was on its way.
            }
            met.set(met.get() + 1);
            // The next start is cut short when its superblock is on the disk. Of the cache, nothing else is left.
            let before = superblocks(&rig.meta.current());
            let scope = ctx.scope();
            let options = OpenOptions { limits: rig.limits.clone(), ..OpenOptions::default() };
            let open = Store::open(scope.ctx(), rig.regions.clone(), rig.arena.clone(), options);
            drop(scope.ctx().spawn(async move { open.await.map(drop) }));
            while superblocks(&rig.meta.current()) == before {
                ctx.sleep(Duration::from_micros(1)).await;
            }
            scope.kill();
            let mut images = rig.cut(0);
            for (at, bytes) in superblocks(&rig.meta.current()) {
                images.0[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            let rig = rig.boot(images).await.unwrap();
            for n in 1..=3 {
                assert_eq!(rig.read(fid(1, n), 0, CHUNK).await.unwrap(), pattern(n, CHUNK));
            }
        });
    }
    assert!(met.get() > 3, "a record was on its way in {} of 40", met.get());
}

/// All copies, by place.
fn superblocks(image: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let at = |slot, copy| Geometry::superblock_at(image.len() as u64, slot, copy) as usize;
    [at(0, 0), at(0, 1), at(1, 0), at(1, 1)].map(|at| (at, image[at..at + 4096].to_vec())).to_vec()
}

/// The superblock's copies of the newest generation, and where the journal begins.
async fn newest(rig: &Rig) -> (Vec<usize>, usize) {
    let copies = superblock::read_all(&rig.regions.meta, &rig.arena).await;
    let generation = rig.store.status().generation;
    let of = |copy: &superblock::Copy| match &copy.verdict {
        Verdict::Valid(sb) if sb.generation == generation => {
            Some((copy.at as usize, sb.geometry.journal_at() as usize))
        }
        _ => None,
    };
    let found: Vec<_> = copies.iter().filter_map(of).collect();
    (found.iter().map(|(at, _)| *at).collect(), found[0].1)
}

#[test]
fn a_start_that_is_cut_short_still_knows_what_was_durable() {
    run(2, async |ctx| {
        let rig = Rig::new(&ctx).await;
        for n in 1..=3 {
            rig.put(fid(1, n), 0, &pattern(n, CHUNK)).await.unwrap();
        }
        // No empty record yet: nothing in the journal says that the last one was durable.
        let (_, journal) = newest(&rig).await;
        let rows = dump_journal(&rig.regions, &rig.arena).await.unwrap();
        let last = rows.last().unwrap().offset as usize + journal;
        let images = rig.cut(0);
        let hurt = |mut images: (Vec<u8>, Vec<u8>)| {
            images.0[last + 200] ^= 1;
            images
        };
        // Taken alone, the rotten record is a torn tail.
        assert!(rig.boot(hurt(images.clone())).await.is_ok());
        // The start flushed and kept it; its superblock is durable, and it ends before it names it.
        let (regions, meta, data) = devices(&ctx, images.0, images.1);
        let scope = ctx.scope();
        let options = OpenOptions { limits: rig.limits.clone(), ..OpenOptions::default() };
        let written = meta.writes.get();
        let open = Store::open(scope.ctx(), regions, rig.arena.clone(), options);
        meta.fail_write_in.set(Some(2));
        assert!(ctx.timeout(Duration::from_secs(1), open).await.unwrap().is_err(), "its naming record fails");
        assert_eq!(meta.writes.get() - written, 3, "two copies, and the record that names them");
        scope.kill();
        meta.fail_write_in.set(None);
        let images = (meta.cut(&ctx, 0), data.cut(&ctx, 0));
        let found = rig.boot(hurt(images.clone())).await.map(|_| ());
        assert!(matches!(&found, Err(OpenError::Damaged { what, .. }) if what == "journal"), "{found:?}");
        assert!(rig.boot(images).await.is_ok());
    });
}

#[test]
fn a_refused_start_changes_nothing() {
    run(3, async |ctx| {
        let rig = Rig::new(&ctx).await;
        for n in 1..=4 {
            rig.put(fid(1, n), 0, &pattern(n, CHUNK)).await.unwrap();
            rig.store.checkpoint().await.unwrap();
        }
        let copies = superblock::read_all(&rig.regions.meta, &rig.arena).await;
        let newest = copies.iter().filter_map(|copy| match &copy.verdict {
            Verdict::Valid(sb) => Some(sb),
            _ => None,
        });
        let sb = newest.max_by_key(|sb| sb.generation).unwrap().clone();
        let images = rig.cut(0);
        for root in sb.roots.iter().filter(|root| root.height > 0) {
            let at = sb.geometry.node_at(root.node.block) as usize;
            let mut hurt = images.clone();
            hurt.0[at + 60] ^= 4;
            let (regions, meta, data) = devices(&ctx, hurt.0.clone(), hurt.1.clone());
            let options = OpenOptions { limits: rig.limits.clone(), ..OpenOptions::default() };
            let opened = Store::open(ctx.clone(), regions, rig.arena.clone(), options).await;
            // The extent map is read when somebody asks for it.
            if let Err(error) = opened.map(drop) {
                assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
                assert_eq!((meta.writes.get(), data.writes.get()), (0, 0));
                assert!(meta.current() == hurt.0 && data.current() == hurt.1);
            }
        }
    });
}

#[test]
fn redo_finds_room_in_a_meta_region_that_is_nearly_full() {
    for seed in 0..8 {
        run(seed, async move |ctx| {
            let limits = Limits { node_cache: 8 << 20, dirty_max: 4 << 20, ..Limits::tiny() };
            let mut rig = Rig::with(&ctx, limits).await;
            let mut count = 0u32;
            while write_entry(&rig.store, count, 1).await.is_ok() {
                count += 1;
            }
            for round in 0..4u8 {
                for task in 0..8 {
                    let (store, ctx) = (rig.store.clone(), ctx.clone());
                    drop(rig.scope_ctx().spawn(async move {
                        loop {
                            let n = u32::try_from(ctx.random_u64()).unwrap_or(7) % (count * 9 / 10);
                            let _ = write_entry(&store, n, round).await;
                            if task == 0 {
                                let _ = store.cob_delete(fid(3, u64::from(n))).await;
                            }
                        }
                    }));
                }
                ctx.sleep(Duration::from_micros(30_000 + ctx.random_u64() % 60_000)).await;
                let held = held(&rig);
                // The next start has a cache that is far smaller than what it must redo.
                let small = Limits { node_cache: 96 << 10, ..rig.limits.clone() };
                let images = rig.cut(round.into());
                let (regions, ..) = devices(&ctx, images.0.clone(), images.1.clone());
                let options = OpenOptions { limits: small, ..OpenOptions::default() };
                let scope = ctx.scope();
                let store = Store::open(scope.ctx(), regions, rig.arena.clone(), options).await.unwrap();
                let bytes = store.0.forest.cache_stats().bytes;
                // What was changed and not yet in a superblock, a group in flight, and the nodes that a path needs.
                let most = held + (96 << 10) + 64 * 4096;
                assert!(bytes <= most, "seed {seed} round {round}: {bytes} bytes of nodes, at most {most}");
                scope.kill();
                rig = rig.boot(images).await.unwrap();
                rig.assert_clean("nearly full").await;
            }
        });
    }
}

/// Bytes of nodes that no superblock has yet.
fn held(rig: &Rig) -> u64 {
    let stats = rig.store.0.forest.cache_stats();
    stats.dirty_bytes + stats.frozen_bytes
}

#[test]
fn tombstones_go_on_being_dropped_after_a_crash() {
    for seed in 0..10 {
        run(seed, async move |ctx| {
            let mut rig = Rig::new(&ctx).await;
            // Two neighbours, fenced as one interval, and one that is not fenced.
            for session in [5, 6, 9] {
                for n in 0..7 {
                    rig.store.cob_delete(fid(session, n)).await.unwrap();
                }
            }
            for session in [6, 5] {
                rig.store.fence(SessionId(session)).await.unwrap();
            }
            for _ in 0..1 + seed % 3 {
                ctx.sleep(Duration::from_micros(ctx.random_u64() % 40)).await;
                rig = rig.crash(seed % 5).await;
            }
            rig.settle().await;
            assert_eq!(
                tombstones(&rig, 5).await,
                Some(fid(9, 0)),
                "seed {seed}: those of fenced sessions are gone"
            );
            for session in [5, 6] {
                let late = rig.put(fid(session, 3), 0, &pattern(1, CHUNK)).await;
                assert_eq!(late, Err(StoreError::Fenced(SessionId(session))));
            }
            assert_eq!(rig.put(fid(9, 3), 0, &pattern(1, CHUNK)).await, Err(StoreError::Deleted(fid(9, 3))));
        });
    }
}

#[test]
fn a_checkpoint_behind_an_empty_record_is_one_to_start_from_and_each_record_names_it() {
    run(5, async |ctx| {
        let rig = Rig::new(&ctx).await;
        rig.put(fid(1, 1), 0, &pattern(1, CHUNK)).await.unwrap();
        ctx.sleep(Duration::from_millis(50)).await;
        assert!(rig.store.counters().journal_empties > 0);
        rig.store.checkpoint().await.unwrap();
        rig.put(fid(1, 2), 0, &pattern(2, CHUNK)).await.unwrap();
        let rows = dump_journal(&rig.regions, &rig.arena).await.unwrap();
        assert_eq!(rows.last().unwrap().named, rig.store.status().generation);
        let rig = rig.crash(0).await;
        for n in 1..=2 {
            assert_eq!(rig.read(fid(1, n), 0, CHUNK).await.unwrap(), pattern(n, CHUNK));
        }
    });
}

/// The first tombstone from a session on.
async fn tombstones(rig: &Rig, session: u64) -> Option<Fid> {
    let from = schema::fid_key(TOMB, Fid::new(SessionId(session), 0));
    let row = rig.store.0.look(|stage| Ok(stage.next(TreeId::Cob, &from)?)).await.unwrap();
    row.and_then(|(key, _)| schema::key_fid(TOMB, &key))
}

#[test]
fn a_long_journal_is_read_in_pieces_whatever_a_device_takes_at_once() {
    run(4, async |ctx| {
        let arena = cobalt_dma::Arena::new(cobalt_dma::ArenaConfig { limit: 16 << 20 }).unwrap();
        let meta = super::dev::TestDev::new(&ctx, vec![0; 16 << 20]).with_transfer(12 << 10);
        let states: [Rc<State>; 1] = [meta.state()];
        let data = super::dev::TestDev::new(&ctx, vec![0; 2 << 20]);
        let regions = Regions {
            meta: Region::whole(cobalt_bdev::Device::new(Rc::new(meta))),
            data: Region::whole(cobalt_bdev::Device::new(Rc::new(data))),
        };
        let options = crate::FormatOptions { journal: Some(2 << 20), ..super::rig::format_options() };
        crate::format(&ctx, &regions, &arena, &options).await.unwrap();
        let limits = Limits {
            node_cache: 8 << 20,
            dirty_max: 4 << 20,
            journal_fill_pct: 95,
            group_txs: 64,
            group_bytes: 64 << 10,
            queue_txs: 512,
            ..Limits::tiny()
        };
        let open = |ctx: cobalt_reactor::Ctx| {
            let options = OpenOptions { limits: limits.clone(), ..OpenOptions::default() };
            Store::open(ctx, regions.clone(), arena.clone(), options)
        };
        // Twice: the second time around the ring's end.
        for turn in 0..2u8 {
            let scope = ctx.scope();
            let store = open(scope.ctx()).await.unwrap();
            store.checkpoint().await.unwrap();
            let tasks: Vec<_> = (0..16u32)
                .map(|task| {
                    let store = store.clone();
                    scope.ctx().spawn(async move {
                        for n in task * 75..task * 75 + 75 {
                            write_entry(&store, n, turn).await.unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.join().await.unwrap();
            }
            assert!(store.status().journal_used > 600 << 10, "{:?}", store.status());
            scope.kill();
            let scope = ctx.scope();
            let store = open(scope.ctx()).await.unwrap();
            for n in 0..1200 {
                let CtgOp::Put { key, value, .. } = entry(n, turn) else { unreachable!() };
                assert_eq!(store.ctg().get(1, &key).await.unwrap(), Some(value));
            }
            store.close().await.unwrap();
            scope.kill();
        }
        assert!(states[0].writes.get() > 300);
    });
}
