//! Damage on the device is found by whoever reads it: the referrer holds the checksum (I5).

use super::rig::{Model, Rig, key, retry, run, tiny, value};
use crate::superblock::{self, Verdict};
use crate::tree::node::{Expect, Node};
use crate::tree::{FaultKind, Forest, MetaError, TreeId, verify};

async fn filled(ctx: &cobalt_reactor::Ctx) -> (Rig, Forest) {
    let (rig, forest) = Rig::new(ctx, 110, tiny());
    for number in 0..200 {
        let (k, v) = (key(number), value(200, 1));
        retry(&forest, || forest.put(TreeId::Cob, &k, &v)).await;
    }
    rig.checkpoint(&forest).await.expect("checkpoint");
    (rig, forest)
}

async fn read_block(rig: &Rig, at: u64) -> Vec<u8> {
    let buf = rig.arena.alloc(4096).await;
    rig.meta.read(at, buf).await.expect("read").to_vec()
}

async fn write_block(rig: &Rig, at: u64, bytes: &[u8]) {
    let mut buf = rig.arena.alloc(4096).await;
    buf.copy_from_slice(bytes);
    rig.meta.write(at, std::iter::once(buf.freeze()).collect(), true).await.expect("write");
}

/// Whether a lookup of every key and the verification both see the damage.
async fn assert_found(rig: &Rig, why: &str) {
    let superblock = rig.superblock.borrow().clone();
    let found = verify(&rig.meta, &rig.arena, &superblock, |_, _, _| {}).await;
    assert!(!found.findings.is_empty(), "{why}: not found by the verification");
    let forest = match Forest::open(&rig.ctx, &rig.meta, &rig.arena, &superblock, rig.limits).await {
        Ok(forest) => forest,
        Err(MetaError::Corrupt(_)) => return,
        Err(error) => panic!("{error}"),
    };
    let mut hits = 0;
    for number in 0..200 {
        let k = key(number);
        while let Err(miss) = forest.get(TreeId::Cob, &k) {
            if let Err(error) = forest.load(miss).await {
                assert!(matches!(error, MetaError::Corrupt(_)), "{error}");
                hits += 1;
                break;
            }
        }
    }
    assert!(hits > 0, "{why}: not found by lookups");
}

#[test]
fn a_flipped_byte_anywhere_in_a_node_or_the_bitmap_is_found() {
    run(10, |ctx| async move {
        let (rig, _) = filled(&ctx).await;
        let superblock = rig.superblock.borrow().clone();
        let root = superblock.geometry.node_at(superblock.roots[0].node.block);
        let bitmap = superblock.geometry.bitmap_at(superblock.bitmap.area);
        for at in [root, superblock.geometry.node_at(3), bitmap] {
            let whole = read_block(&rig, at).await;
            for byte in (0..4096).step_by(97) {
                let mut bad = whole.clone();
                bad[byte] ^= 0x40;
                write_block(&rig, at, &bad).await;
                assert_found(&rig, &format!("byte {byte} of the block at {at:#x}")).await;
            }
            write_block(&rig, at, &whole).await;
        }
        let clean = verify(&rig.meta, &rig.arena, &superblock, |_, _, _| {}).await;
        assert_eq!(clean.findings, []);
    });
}

#[test]
fn two_nodes_in_each_other_s_place_are_found() {
    run(11, |ctx| async move {
        let (rig, _) = filled(&ctx).await;
        let geometry = rig.superblock.borrow().geometry;
        let [a, b] = [geometry.node_at(2), geometry.node_at(3)];
        let [at_a, at_b] = [read_block(&rig, a).await, read_block(&rig, b).await];
        write_block(&rig, a, &at_b).await;
        write_block(&rig, b, &at_a).await;
        assert_found(&rig, "misdirected writes").await;
    });
}

#[test]
fn a_lost_write_is_found_although_the_old_node_is_whole() {
    run(12, |ctx| async move {
        let (rig, forest) = filled(&ctx).await;
        let geometry = rig.superblock.borrow().geometry;
        // Generations go by until every block was used once; then some are used again.
        let mut old = Vec::new();
        for generation in 0..10 {
            if generation == 8 {
                for block in 0..geometry.node_blocks {
                    old.push(read_block(&rig, geometry.node_at(block)).await);
                }
            }
            for number in 0..200 {
                let (k, v) = (key(number), value(200, generation));
                retry(&forest, || forest.put(TreeId::Cob, &k, &v)).await;
            }
            rig.checkpoint(&forest).await.expect("checkpoint");
        }
        let forest_blocks = forest.meta_blocks();
        let superblock = rig.superblock.borrow().clone();
        let mut tried = 0;
        for block in 0..forest_blocks {
            let at = geometry.node_at(block);
            let now = read_block(&rig, at).await;
            let before = &old[usize::try_from(block).expect("small")];
            let live = crate::tree::persist::read_bitmap(&rig.meta, &rig.arena, &superblock)
                .await
                .expect("bitmap")
                .is_live(block);
            if live && *before != now && before.iter().any(|b| *b != 0) {
                write_block(&rig, at, before).await;
                assert_found(&rig, "an old version of a node").await;
                write_block(&rig, at, &now).await;
                tried += 1;
            }
        }
        assert!(tried > 0, "no block was used twice: the test shows nothing");
    });
}

#[test]
fn a_flipped_byte_anywhere_in_a_superblock_costs_one_copy() {
    run(13, |ctx| async move {
        let (rig, _) = filled(&ctx).await;
        let at = superblock::read_all(&rig.meta, &rig.arena).await[2].at;
        let whole = read_block(&rig, at).await;
        for byte in 0..4096 {
            let mut bad = whole.clone();
            bad[byte] ^= 0x04;
            write_block(&rig, at, &bad).await;
            let copies = superblock::read_all(&rig.meta, &rig.arena).await;
            assert!(matches!(copies[2].verdict, Verdict::Corrupt(_)), "byte {byte}: {:?}", copies[2]);
            assert!(matches!(copies[3].verdict, Verdict::Valid(_)));
        }
    });
}

#[test]
fn a_superblock_in_the_other_slot_or_of_another_size_of_region_is_not_valid() {
    run(14, |ctx| async move {
        let (rig, _) = filled(&ctx).await;
        let copies = superblock::read_all(&rig.meta, &rig.arena).await;
        let image = read_block(&rig, copies[2].at).await;
        write_block(&rig, copies[0].at, &image).await;
        let copies = superblock::read_all(&rig.meta, &rig.arena).await;
        assert!(matches!(copies[0].verdict, Verdict::Corrupt(_)));

        let mut shorter = rig.meta.clone();
        shorter.len -= 4096;
        let copies = superblock::read_all(&shorter, &rig.arena).await;
        assert!(copies.iter().all(|c| !matches!(c.verdict, Verdict::Valid(_))), "{copies:?}");
    });
}

#[test]
fn entries_survive_many_generations() {
    run(15, |ctx| async move {
        let (rig, forest) = filled(&ctx).await;
        let mut model = Model::default();
        for generation in 0..6u8 {
            for number in (0..200).step_by(usize::from(generation) + 1) {
                let (k, v) = (key(number), value(100, generation));
                retry(&forest, || forest.put(TreeId::Cob, &k, &v)).await;
            }
            rig.checkpoint(&forest).await.expect("checkpoint");
        }
        for number in 0..200u16 {
            let last = (0..6u8).rev().find(|g| number % (u16::from(*g) + 1) == 0).expect("generation 0");
            model[0].insert(key(number), value(100, last));
        }
        rig.assert_durable(&model).await;
    });
}

/// Looks a key up until it is there, an error comes, or so many loads brought nothing that none ever will.
async fn look(forest: &Forest, tree: TreeId, number: u16) -> Result<Option<Vec<u8>>, MetaError> {
    for _ in 0..1000 {
        match forest.get(tree, &key(number)) {
            Ok(value) => return Ok(value),
            Err(miss) => forest.load(miss).await?,
        }
    }
    panic!("a lookup of {number} goes on for ever");
}

// Found by `prove fuzz --seed 1 --case 2750`.
#[test]
fn a_pointer_to_a_block_that_is_marked_free_is_damage_and_no_loop() {
    run(16, |ctx| async move {
        let (rig, _) = filled(&ctx).await;
        let mut superblock = rig.superblock.borrow().clone();
        let root = superblock.roots[0].node.block;
        let at = superblock.geometry.bitmap_at(superblock.bitmap.area);
        let mut bitmap = read_block(&rig, at).await;
        bitmap[usize::try_from(root / 8).expect("small")] &= !(1 << (root % 8));
        write_block(&rig, at, &bitmap).await;
        superblock.bitmap.checksum =
            cobalt_base::checksum::xxh3(crate::tree::forest::seed_of(superblock.target), &bitmap);
        let forest =
            Forest::open(&rig.ctx, &rig.meta, &rig.arena, &superblock, rig.limits).await.expect("open");
        let found = look(&forest, TreeId::Cob, 1).await;
        assert!(matches!(found, Err(MetaError::Corrupt(_))), "{found:?}");
    });
}

#[test]
fn a_node_that_two_trees_refer_to_answers_for_its_own_alone() {
    run(17, |ctx| async move {
        let (rig, _) = filled(&ctx).await;
        let mut superblock = rig.superblock.borrow().clone();
        superblock.roots[1] = superblock.roots[0];
        superblock.roots[3] = superblock.roots[0];
        superblock.roots[3].height -= 1;
        let forest =
            Forest::open(&rig.ctx, &rig.meta, &rig.arena, &superblock, rig.limits).await.expect("open");
        assert_eq!(look(&forest, TreeId::Cob, 1).await, Ok(Some(value(200, 1))));
        for tree in [TreeId::Extmap, TreeId::Ctg] {
            let found = look(&forest, tree, 1).await;
            assert!(matches!(found, Err(MetaError::Corrupt(_))), "{tree:?}: {found:?}");
        }
    });
}

/// Changes the root of the cobs' tree, with every checksum mended; the superblock that names it.
async fn forged_root(rig: &Rig, change: impl FnOnce(&mut Node)) -> crate::superblock::Superblock {
    let mut superblock = rig.superblock.borrow().clone();
    let seed = crate::tree::forest::seed_of(superblock.target);
    let (root, at) = (superblock.roots[0], superblock.geometry.node_at(superblock.roots[0].node.block));
    let expect = Expect {
        seed,
        tree: TreeId::Cob,
        level: root.height - 1,
        node: root.node,
        node_blocks: superblock.geometry.node_blocks,
    };
    let mut node = Node::parse(&read_block(rig, at).await, &expect).expect("the root is whole");
    change(&mut node);
    let mut bytes = vec![0; 4096];
    superblock.roots[0].node.checksum = node.seal(seed, &mut bytes, |child| child.checksum);
    write_block(rig, at, &bytes).await;
    superblock
}

/// Found by `prove fuzz --seed 109299110434670 --case 242550`: a start that went from key to key never came to an end.
#[test]
fn leaves_in_each_other_s_place_are_damage_and_no_circle() {
    run(18, |ctx| async move {
        let (rig, _) = filled(&ctx).await;
        let superblock = forged_root(&rig, |node| {
            let children: Vec<_> = (0..4).map(|i| node.child(i)).collect();
            for (i, child) in children.iter().enumerate() {
                node.set_child((i + 2) % 4, *child);
            }
        })
        .await;
        let forest =
            Forest::open(&rig.ctx, &rig.meta, &rig.arena, &superblock, rig.limits).await.expect("open");
        let (mut from, mut steps) = (Vec::new(), 0);
        let found = loop {
            match forest.next(TreeId::Cob, &from) {
                Ok(Some((key, _))) => from = [key.as_slice(), &[0]].concat(),
                Ok(None) => break Ok(()),
                Err(miss) => match forest.load(miss).await {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
            }
            steps += 1;
            assert!(steps < 10_000, "it goes in a circle");
        };
        assert!(matches!(found, Err(MetaError::Corrupt(_))), "{found:?}");
    });
}

/// Found by a soak, `prove fuzz --seed 77270311791594 --case 972400`: a leaf swallowed what lay under its neighbour's block.
#[test]
fn a_leaf_joins_no_node_of_another_tree_that_lies_under_its_neighbour_s_block() {
    run(19, |ctx| async move {
        let (rig, forest) = Rig::new(&ctx, 110, tiny());
        for number in 0..200 {
            let (k, v) = (key(number), value(200, 1));
            retry(&forest, || forest.put(TreeId::Cob, &k, &v)).await;
            retry(&forest, || forest.put(TreeId::Extmap, &k, &v)).await;
        }
        rig.checkpoint(&forest).await.expect("checkpoint");
        let other = rig.superblock.borrow().roots[1].node;
        let superblock = forged_root(&rig, |node| node.set_child(1, other)).await;
        let forest =
            Forest::open(&rig.ctx, &rig.meta, &rig.arena, &superblock, rig.limits).await.expect("open");
        let mut gone = 0;
        while let Ok(Some(_)) = look(&forest, TreeId::Cob, gone).await {
            retry(&forest, || forest.delete(TreeId::Cob, &key(gone))).await;
            // The other tree's root is in memory.
            assert_eq!(look(&forest, TreeId::Extmap, 0).await, Ok(Some(value(200, 1))), "behind {gone}");
            gone += 1;
        }
        assert!(gone > 3, "the first leaf was emptied");
        for number in 0..200 {
            assert_eq!(look(&forest, TreeId::Extmap, number).await, Ok(Some(value(200, 1))), "{number}");
        }
    });
}

/// What the verification finds after such a change, by kind and block.
async fn faults(rig: &Rig, change: impl FnOnce(&mut Node)) -> Vec<(FaultKind, Option<u64>)> {
    let superblock = forged_root(rig, change).await;
    let found = verify(&rig.meta, &rig.arena, &superblock, |_, _, _| {}).await;
    found.findings.iter().map(|fault| (fault.kind, fault.block)).collect()
}

#[test]
fn a_node_that_two_pointers_lead_to_is_found_once() {
    run(20, |ctx| async move {
        let (rig, _) = filled(&ctx).await;
        let mut shared = None;
        let found = faults(&rig, |root| {
            shared = Some(root.child(0).block);
            root.set_child(2, root.child(0));
        });
        let found = found.await;
        let expected = (FaultKind::Shared, shared);
        assert_eq!(found.iter().filter(|fault| **fault == expected).count(), 1, "{found:?}");
    });
}

#[test]
fn leaves_in_each_other_s_place_have_keys_out_of_range() {
    run(21, |ctx| async move {
        let (rig, _) = filled(&ctx).await;
        let mut expected = Vec::new();
        let found = faults(&rig, |root| {
            let (a, b) = (root.child(0), root.child(1));
            root.set_child(0, b);
            root.set_child(1, a);
            expected = vec![(FaultKind::Range, Some(b.block)), (FaultKind::Range, Some(a.block))];
        });
        assert_eq!(found.await, expected);
    });
}
