//! Work that needs more nodes at one time than a cache of the fewest holds: it ends, and does what it was to do.

use super::rig::{Rig, run};
use crate::alloc_rows::{self, group_blocks};
use crate::apply::Shape;
use crate::balloc::Balloc;
use crate::geometry::{Geometry, JOURNAL_LEN_MIN};
use crate::stage::Stage;
use crate::tree::{Forest, TreeLimits};
use crate::{CtgOp, CtgView, Extent, Limits, Region};
use cobalt_bdev::{Device, MemBdev};
use cobalt_dma::{Arena, ArenaConfig};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

fn row(n: u32) -> Vec<u8> {
    [&n.to_be_bytes()[..], &[3; 400]].concat()
}

#[test]
fn a_decision_looks_at_more_nodes_than_the_cache_keeps() {
    run(41, async |ctx| {
        let limits = Limits { node_cache: 4096, dirty_max: 16 << 10, ..Limits::tiny() };
        let rig = Rig::with(&ctx, limits).await;
        for n in 0..240 {
            let op = CtgOp::Put { ctg: 1, key: row(n), value: vec![1; 700] };
            rig.store.ctg().transact(move |_: &CtgView| Ok((vec![op.clone()], ()))).await.unwrap();
        }
        rig.store.checkpoint().await.unwrap();
        let count = |view: &CtgView| {
            let (mut found, mut from) = (0, Vec::new());
            while let Some((key, _)) = view.next(1, &from)? {
                found += 1;
                from = key;
                from.push(0);
            }
            Ok((Vec::new(), found))
        };
        let counted = ctx.timeout(Duration::from_secs(60), rig.store.ctg().transact(count)).await;
        assert_eq!(counted.expect("it ends").unwrap().0, 240);
    });
}

#[test]
fn a_transaction_decides_once_however_many_of_its_leaves_are_not_in_memory() {
    run(43, async |ctx| {
        let limits = Limits { node_cache: 4096, dirty_max: 16 << 10, ..Limits::tiny() };
        let rig = Rig::with(&ctx, limits).await;
        let put = |n| CtgOp::Put { ctg: 1, key: row(n), value: vec![1; 700] };
        for n in 0..240 {
            rig.store.ctg().transact(move |_: &CtgView| Ok((vec![put(n)], ()))).await.unwrap();
        }
        rig.store.checkpoint().await.unwrap();
        let (reads, decided) = (rig.store.counters().node_reads, Rc::new(Cell::new(0)));
        let count = decided.clone();
        let spread = move |_: &CtgView| {
            count.set(count.get() + 1);
            Ok(((0..7).map(|i| put(i * 34)).collect(), ()))
        };
        rig.store.ctg().transact(spread).await.unwrap();
        assert!(rig.store.counters().node_reads > reads + 3, "most of the leaves were read");
        assert_eq!(decided.get(), 1);
    });
}

#[test]
fn who_waits_for_a_running_checkpoint_asks_for_no_other() {
    run(44, async |ctx| {
        let rig = Rig::with(&ctx, Limits::tiny()).await;
        let put = |n| CtgOp::Put { ctg: 1, key: row(n), value: vec![1; 700] };
        let before = rig.store.counters().checkpoints;
        rig.store.ctg().transact(move |_: &CtgView| Ok((vec![put(1)], ()))).await.unwrap();
        let store = rig.store.clone();
        let running = ctx.spawn(async move { store.checkpoint().await });
        while !rig.store.is_checkpointing() {
            ctx.yield_now().await;
        }
        rig.store.ctg().transact(move |_: &CtgView| Ok((vec![put(2)], ()))).await.unwrap();
        assert!(rig.store.is_checkpointing(), "a transaction waits for none");
        rig.store.0.kick_checkpoint();
        running.join().await.unwrap().unwrap();
        ctx.sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.store.counters().checkpoints, before + 1);
    });
}

#[test]
fn a_group_in_many_pieces_is_loaded_over_a_small_cache() {
    run(42, async |ctx| {
        let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).unwrap();
        let meta = Region::whole(Device::new(Rc::new(MemBdev::new(4 << 20))));
        let geometry = Geometry::plan(meta.len, 4096, JOURNAL_LEN_MIN).unwrap();
        let limits = TreeLimits { cache_bytes: 4096, ..TreeLimits::tiny() };
        let forest = Rc::new(Forest::create(&ctx, &meta, &arena, geometry, Uuid::from_u128(7), limits));
        let data_blocks = 64 * 32_768;
        let shape = Shape { data_blocks, group_blocks: group_blocks(data_blocks), row_max: 1000 };
        // Every second block of the first group is taken.
        let stage = Stage::new(forest.clone());
        let taken: Vec<Extent> =
            (0..shape.group_blocks / 2).map(|at| Extent { start: 2 * at, blocks: 1 }).collect();
        assert!(alloc_rows::settle(&stage, shape, &taken, &[]).is_ok(), "all is in memory");
        stage.mutate().unwrap();
        let frozen = forest.freeze();
        forest.write(&frozen, |_| None).await.unwrap();
        forest.release(frozen);
        let balloc = Rc::new(Balloc::open(forest.clone(), shape, &Limits::tiny()).await.unwrap());
        let loading = balloc.reserve(5, Some(3), || Ok(()));
        let reserved = ctx.timeout(Duration::from_secs(60), loading).await.expect("it ends").unwrap();
        let extents = reserved.extents();
        assert_eq!(extents.iter().map(|e| e.blocks).sum::<u32>(), 5);
        assert!(extents[0].blocks == 1 && extents[0].start % 2 == 1 && extents[0].start < shape.group_blocks);
        assert!(forest.cache_stats().reads > 40, "the group has many nodes: {:?}", forest.cache_stats());
    });
}
