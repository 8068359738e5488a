//! What is durable stays until its successor is named, in the order of the architecture's section 5.

use super::rig::{Event, Model, Rig, key, retry, run, tiny, value};
use crate::geometry::Geometry;
use crate::superblock::{self, Verdict};
use crate::tree::{Forest, MetaError, TreeId, TreeLimits};
use std::rc::Rc;

async fn fill(forest: &Forest, model: &mut Model, numbers: std::ops::Range<u16>, seed: u8) {
    for number in numbers {
        let (k, v) = (key(number), value(300, seed));
        retry(forest, || forest.put(TreeId::Extmap, &k, &v)).await;
        model[TreeId::Extmap.index()].insert(k, v);
    }
}

#[test]
fn a_crash_between_freeze_and_release_leaves_the_old_trees_untouched() {
    run(3, |ctx| async move {
        let (rig, forest) = Rig::new(&ctx, 2000, tiny());
        let mut model = Model::default();
        fill(&forest, &mut model, 0..200, 1).await;
        rig.checkpoint(&forest).await.expect("checkpoint");
        let old = model.clone();
        let old_blocks = reachable(&rig).await;
        assert!(old_blocks.len() > 30);

        rig.device.events.borrow_mut().clear();
        fill(&forest, &mut model, 50..300, 2).await;
        let frozen = forest.freeze();
        fill(&forest, &mut model, 0..350, 3).await;
        let written = forest.write(&frozen, |_| None).await.expect("write");
        fill(&forest, &mut model, 100..400, 4).await;
        assert_eq!(written.generation, 2);
        let geometry = rig.superblock.borrow().geometry;
        let mut blocks_written = 0;
        for event in rig.device.events.borrow().iter() {
            let Event::Write { at, len } = *event else { continue };
            blocks_written += len / 4096;
            for block in &old_blocks {
                let start = geometry.node_at(*block);
                assert!(at + len <= start || at >= start + 4096, "block {block} was overwritten");
            }
            let area = geometry.bitmap_at(rig.superblock.borrow().bitmap.area);
            assert!(at + len <= area || at >= area + geometry.bitmap_len, "the bitmap was overwritten");
        }
        assert!(blocks_written > 30);
        rig.assert_durable(&old).await;
    });
}

/// Blocks that the durable trees use, from the bitmap on the device.
async fn reachable(rig: &Rig) -> Vec<u64> {
    let superblock = rig.superblock.borrow().clone();
    let space = crate::tree::persist::read_bitmap(&rig.meta, &rig.arena, &superblock).await.expect("bitmap");
    (0..superblock.geometry.node_blocks).filter(|b| space.is_live(*b)).collect()
}

#[test]
fn nodes_are_flushed_before_the_superblock_and_it_before_its_name() {
    run(4, |ctx| async move {
        let (rig, forest) = Rig::new(&ctx, 2000, tiny());
        fill(&forest, &mut Model::default(), 0..200, 1).await;
        rig.checkpoint(&forest).await.expect("checkpoint");
        let geometry = rig.superblock.borrow().geometry;
        let copies: Vec<u64> =
            (0..2).map(|copy| Geometry::superblock_at(geometry.region_len, 1, copy)).collect();
        let events = rig.device.events.borrow().clone();
        let is_copy = |e: &Event| matches!(e, Event::Write { at, .. } if copies.contains(at));
        let first_copy = events.iter().position(is_copy).expect("superblock written");
        let last_node = events
            .iter()
            .rposition(|e| matches!(e, Event::Write { .. }) && !is_copy(e))
            .expect("nodes written");
        assert!(last_node < first_copy);
        assert!(events[last_node..first_copy].contains(&Event::Flush));
        assert_eq!(events[first_copy..].iter().filter(|e| is_copy(e)).count(), 2);
        assert_eq!(events[events.len() - 3..], [Event::Flush, Event::Named(1), Event::Reused]);
        let nodes = events[..last_node].iter().filter(|e| matches!(e, Event::Write { .. })).count();
        assert!(nodes < 40, "neighbours leave in one write: {nodes} writes");
    });
}

#[test]
fn superblocks_use_their_slots_in_turn_and_each_copy_is_read_back() {
    run(5, |ctx| async move {
        let (rig, forest) = Rig::new(&ctx, 2000, tiny());
        let blank = superblock::read_all(&rig.meta, &rig.arena).await;
        assert!(blank.iter().all(|c| c.verdict == Verdict::Blank));
        let mut model = Model::default();
        for round in 0..3u8 {
            fill(&forest, &mut model, 0..100, round).await;
            rig.checkpoint(&forest).await.expect("checkpoint");
        }
        let copies = superblock::read_all(&rig.meta, &rig.arena).await;
        let generations: Vec<_> = copies
            .iter()
            .map(|c| match &c.verdict {
                Verdict::Valid(sb) => (c.slot, c.copy, sb.generation),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(generations, [(0, 0, 2), (0, 1, 2), (1, 0, 3), (1, 1, 3)]);
        let Verdict::Valid(newest) = &copies[3].verdict else { panic!() };
        assert_eq!(**newest, *rig.superblock.borrow());
    });
}

#[test]
fn a_failed_write_ends_the_checkpoint_and_harms_nothing_durable() {
    for writes in 0..12 {
        run(6, move |ctx| async move {
            let (rig, forest) = Rig::new(&ctx, 2000, tiny());
            let mut model = Model::default();
            fill(&forest, &mut model, 0..150, 1).await;
            rig.checkpoint(&forest).await.expect("checkpoint");
            let old = model.clone();
            fill(&forest, &mut model, 0..250, 2).await;
            rig.device.writes_left.set(writes);
            let error = rig.checkpoint(&forest).await.expect_err("the device is gone");
            assert!(matches!(error, MetaError::Io { .. }));
            rig.assert_durable(&old).await;
        });
    }
}

#[test]
fn a_full_region_says_so_before_anything_changes_and_can_still_checkpoint() {
    run(7, |ctx| async move {
        let (rig, forest) = Rig::new(&ctx, 64, tiny());
        let mut model = Model::default();
        rig.checkpoint(&forest).await.expect("checkpoint");
        let mut full = 0;
        for number in 0..2000u16 {
            let (k, v) = (key(number % 250 * 37 % 251), value(300, number as u8));
            let done = loop {
                match forest.put(TreeId::Ctg, &k, &v) {
                    Ok(()) => break true,
                    Err(miss) => match forest.load(miss).await {
                        Ok(()) => {}
                        Err(MetaError::Full) => break false,
                        Err(error) => panic!("{error}"),
                    },
                }
            };
            if number == 300 {
                rig.checkpoint(&forest).await.expect("checkpoint"); // From here on, old blocks wait for release.
            }
            if done {
                model[TreeId::Ctg.index()].insert(k, v);
            } else {
                full += 1;
                assert!(forest.meta_free() < forest.blocks_per_op());
                rig.checkpoint(&forest).await.expect("checkpoint");
                rig.assert_durable(&model).await;
            }
        }
        assert!(full > 5, "{full}");
    });
}

#[test]
fn concurrent_loads_of_a_node_share_one_read_and_a_dropped_one_leaves_no_trace() {
    run(8, |ctx| async move {
        let (rig, forest) = Rig::new(&ctx, 2000, TreeLimits::default());
        fill(&forest, &mut Model::default(), 0..5, 1).await;
        rig.checkpoint(&forest).await.expect("checkpoint");
        let forest = Rc::new(rig.reopen().await);
        let reads = rig.meta.device.counters().reads;
        let held = rig.arena.try_alloc(4 << 20).expect("the whole arena");
        let k = key(3);
        let miss = forest.get(TreeId::Extmap, &k).expect_err("nothing is cached");
        let dropped = {
            let forest = forest.clone();
            ctx.spawn(async move { forest.load(miss).await })
        };
        ctx.yield_now().await;
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let (forest, k) = (forest.clone(), k.clone());
                ctx.spawn(async move { retry(&forest, || forest.get(TreeId::Extmap, &k)).await })
            })
            .collect();
        ctx.yield_now().await;
        dropped.abort();
        ctx.yield_now().await;
        drop(held);
        for task in tasks {
            assert_eq!(task.await, Some(value(300, 1)));
        }
        assert_eq!(rig.meta.device.counters().reads - reads, 1);
    });
}
