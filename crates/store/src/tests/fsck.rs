//! Every kind of damage becomes a finding of its kind, with its place and the objects that it touches; and the check
//! itself changes nothing.

use super::rig::{CHUNK, Rig, devices, fid, pattern, run};
use crate::fsck::{FsckOptions, FsckReport, Progress, ProgressFn, Side, fsck};
use crate::schema::{self, COB, COUNT_KEY, CobRow, MapRow, TOMB};
use crate::superblock::{self, Superblock, Verdict};
use crate::tree::{Source, Step, TreeId};
use crate::tx::Extent;
use crate::{CtgOp, FindingKind, Inspection, Item, Limits, TreeRow};
use cobalt_base::{Fid, SessionId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

const COBS: u64 = 250;

/// A target with enough in it that each tree has more than one level, checkpointed.
pub(super) async fn filled(ctx: &cobalt_reactor::Ctx) -> Rig {
    let rig = Rig::with(ctx, Limits { node_cache: 512 << 10, ..Limits::tiny() }).await;
    for n in 0..COBS {
        rig.put(fid(1 + n % 3, n), 0, &pattern(n, CHUNK)).await.unwrap();
    }
    rig.put(fid(9, 9), 0, &pattern(9, 3 * CHUNK + 100)).await.unwrap();
    for n in (0..COBS).step_by(7) {
        rig.store.cob_delete(fid(1 + n % 3, n)).await.unwrap();
    }
    rig.store.fence(SessionId(77)).await.unwrap();
    for n in 0..200u32 {
        let put = move |_: &crate::CtgView| {
            let op =
                CtgOp::Put { ctg: 3 + n % 2, key: format!("key{n:04}").into_bytes(), value: vec![7; 60] };
            Ok((vec![op], ()))
        };
        rig.store.ctg().transact(put).await.unwrap();
    }
    rig.settle().await;
    rig.store.checkpoint().await.unwrap();
    rig
}

pub(super) async fn newest(rig: &Rig) -> Superblock {
    let (regions, ..) = devices(&rig.ctx, rig.meta.current(), rig.data.current());
    let copies = superblock::read_all(&regions.meta, &rig.arena).await;
    let valid = copies.into_iter().filter_map(|copy| match copy.verdict {
        Verdict::Valid(sb) => Some(*sb),
        _ => None,
    });
    valid.max_by_key(|sb| sb.generation).unwrap()
}

/// All rows of a tree on the device, with the block of their leaf.
async fn rows(rig: &Rig, tree: TreeId) -> Vec<(Vec<u8>, u64)> {
    let (regions, ..) = devices(&rig.ctx, rig.meta.current(), rig.data.current());
    let source = Source::checkpoint(&regions.meta, &rig.arena, &newest(rig).await);
    let mut cursor = source.cursor(tree, &[], None);
    let mut out = Vec::new();
    while let Some(step) = cursor.next().await {
        match step {
            Step::Row(row) => out.push((row.key, row.block.unwrap())),
            Step::Lost(lost) => panic!("{lost:?}"),
        }
    }
    out
}

pub(super) fn kinds(report: &FsckReport) -> Vec<FindingKind> {
    report.findings.iter().map(|f| f.kind).collect()
}

/// Puts rows into the trees that no transaction would, and checkpoints them.
async fn plant(rig: &Rig, tree: TreeId, changes: &[(Vec<u8>, Option<Vec<u8>>)]) {
    let core = &rig.store.0;
    for (key, value) in changes {
        loop {
            let done = match value {
                Some(value) => core.forest.put(tree, key, value),
                None => core.forest.delete(tree, key).map(drop),
            };
            match done {
                Ok(()) => break,
                Err(miss) => core.forest.load(miss).await.unwrap(),
            }
        }
    }
    core.since_freeze.set(1);
    rig.store.checkpoint().await.unwrap();
}

async fn row(rig: &Rig, tree: TreeId, key: &[u8]) -> Vec<u8> {
    rig.store.0.look(|stage| Ok(stage.get(tree, key)?)).await.unwrap().unwrap()
}

async fn map_of(rig: &Rig, fid: Fid) -> MapRow {
    schema::decode("extmap row", &row(rig, TreeId::Extmap, &schema::extmap_key(fid, 0)).await).unwrap()
}

async fn cob_of(rig: &Rig, fid: Fid) -> CobRow {
    schema::decode("cob row", &row(rig, TreeId::Cob, &schema::fid_key(COB, fid)).await).unwrap()
}

#[test]
fn a_target_in_order_is_clean_in_one_pass_and_in_many_and_nothing_is_written() {
    run(1, async |ctx| {
        let rig = filled(&ctx).await;
        // Two more that only the journal holds, and one that it deletes.
        rig.put(fid(5, 1), 0, &pattern(51, 2 * CHUNK)).await.unwrap();
        rig.store.cob_delete(fid(2, 1)).await.unwrap();
        let images = (rig.meta.current(), rig.data.current());
        let (regions, meta, data) = devices(&ctx, images.0.clone(), images.1.clone());
        let mut last: Option<FsckReport> = None;
        for map_bytes in [0, 8, 16] {
            let told = Rc::new(Cell::new(Progress::default()));
            let seen = told.clone();
            let progress = ProgressFn(Rc::new(move |now: Progress| {
                assert!(now.done >= seen.get().done && now.done <= now.total, "{now:?}");
                seen.set(now);
            }));
            let options = FsckOptions {
                data: true,
                limits: rig.limits.clone(),
                map_bytes,
                progress: Some(progress),
                ..FsckOptions::default()
            };
            let report = fsck(&ctx, &regions, &rig.arena, &options).await.unwrap();
            assert!(report.is_clean(), "{map_bytes}: {:#?}", report.findings);
            assert!(report.redone > 0 && !report.checkpoint_only);
            assert_eq!(report.cobs, rig.store.status().cobs);
            assert_eq!(report.entries, 200);
            assert_eq!(report.blocks_used + report.blocks_free, 512);
            let deleted = COBS.div_ceil(7) + 1;
            assert_eq!(report.data_bytes, (COBS - deleted + 2) * CHUNK as u64 + 3 * CHUNK as u64 + 100);
            let end = told.get();
            assert!(end.done == end.total && end.total > report.data_bytes, "{end:?}");
            if let Some(last) = &last {
                assert_eq!(*last, report, "the same in windows of {map_bytes} bytes");
            }
            last = Some(report);
        }
        assert!(meta.current() == images.0 && data.current() == images.1);
        let written = [&meta, &data].map(|state| state.writes.get() + state.flushes.get());
        assert_eq!(written, [0, 0], "not even a flush");
    });
}

#[test]
fn a_damaged_node_is_named_with_what_it_held_and_the_rest_is_checked() {
    run(2, async |ctx| {
        let rig = filled(&ctx).await;
        let sb = newest(&rig).await;
        for tree in TreeId::ALL {
            let all = rows(&rig, tree).await;
            let mut leaves: Vec<u64> = all.iter().map(|(_, block)| *block).collect();
            leaves.dedup();
            let root = sb.roots[tree.index()];
            assert!(tree == TreeId::Balloc || root.height > 1, "{tree}");
            for block in leaves.iter().copied().chain([root.node.block]) {
                let at = sb.geometry.node_at(block) as usize + 700;
                rig.meta.spoil(at, |b| *b ^= 4);
                let report = rig.check(true).await;
                rig.meta.spoil(at, |b| *b ^= 4);
                let [finding] = &report.findings[..] else {
                    panic!("{tree} {block}: one finding for one node: {:#?}", report.findings)
                };
                assert_eq!(finding.kind, FindingKind::Node);
                let place = finding.at.unwrap();
                assert_eq!((place.side, place.block), (Side::Meta, Some(block)));
                assert_eq!(place.address, sb.geometry.node_at(block));
                let lost = finding.touched.lost.as_ref().unwrap();
                assert_eq!(lost.tree, tree);
                for (key, leaf) in &all {
                    let within = *key >= lost.from && lost.until.as_ref().is_none_or(|until| key < until);
                    assert_eq!(within, *leaf == block || root.node.block == block, "{tree} {key:?}");
                    let place = match tree {
                        TreeId::Cob => schema::key_fid(COB, key),
                        TreeId::Extmap => schema::extmap_place(key).map(|(fid, _)| fid),
                        _ => None,
                    };
                    if let Some(fid) = place.filter(|_| within) {
                        let touched = &finding.touched;
                        assert!(touched.fids.contains(&fid) || touched.fids_more > 0, "{tree}: {fid}");
                    }
                }
                assert!(!report.is_sound());
            }
        }
        rig.assert_clean("mended").await;
    });
}

#[test]
fn a_damaged_chunk_is_named_with_its_block_and_its_cob() {
    run(3, async |ctx| {
        let rig = filled(&ctx).await;
        let map = map_of(&rig, fid(9, 9)).await;
        let blocks: Vec<u64> =
            map.extents.iter().flat_map(|e| e.start..e.start + u64::from(e.blocks)).collect();
        for (chunk, block) in blocks.iter().enumerate() {
            let at = *block as usize * CHUNK + 50;
            rig.data.spoil(at, |b| *b ^= 1);
            let report = rig.check(true).await;
            rig.data.spoil(at, |b| *b ^= 1);
            let [finding] = &report.findings[..] else { panic!("{:#?}", report.findings) };
            assert_eq!((finding.kind, &finding.touched.fids[..]), (FindingKind::Data, &[fid(9, 9)][..]));
            let place = finding.at.unwrap();
            assert_eq!((place.side, place.block), (Side::Data, Some(*block)));
            assert_eq!(place.address, block * 4096);
            assert!(finding.expected.contains(&format!("{:08x}", map.crcs[chunk])), "{finding:?}");
            assert!(finding.found.contains(&format!("offset {}", chunk * CHUNK)), "{finding:?}");
        }
        // A device that does not give it is told from rot.
        let (regions, _, data) = devices(&ctx, rig.meta.current(), rig.data.current());
        data.bad_read.set(Some(blocks[1] * 4096));
        let options = FsckOptions { data: true, limits: rig.limits.clone(), ..FsckOptions::default() };
        let report = fsck(&ctx, &regions, &rig.arena, &options).await.unwrap();
        assert_eq!(kinds(&report), [FindingKind::DataUnreadable]);
        assert_eq!(report.findings[0].at.unwrap().block, Some(blocks[1]));
    });
}

#[test]
fn an_unreadable_node_is_a_finding_and_not_the_end() {
    run(4, async |ctx| {
        let rig = filled(&ctx).await;
        let sb = newest(&rig).await;
        let block = rows(&rig, TreeId::Extmap).await[0].1;
        let (regions, meta, _) = devices(&ctx, rig.meta.current(), rig.data.current());
        meta.bad_read.set(Some(sb.geometry.node_at(block)));
        let options = FsckOptions { data: true, limits: rig.limits.clone(), ..FsckOptions::default() };
        let report = fsck(&ctx, &regions, &rig.arena, &options).await.unwrap();
        assert_eq!(kinds(&report), [FindingKind::NodeUnreadable], "{:#?}", report.findings);
        assert!(report.blocks_unknown > 0 && !report.findings[0].touched.fids.is_empty());
        assert!(report.data_bytes > 0 && report.entries == 200, "the rest was checked");
    });
}

/// One row that is not as it should be, and the kind that it must be found as.
struct Wrong {
    kind: FindingKind,
    tree: TreeId,
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    fids: Vec<Fid>,
}

fn put(key: &[u8], value: impl AsRef<[u8]>) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    vec![(key.to_vec(), Some(value.as_ref().to_vec()))]
}

async fn wrongs(rig: &Rig) -> Vec<Wrong> {
    let victim = fid(2, 1);
    let (cob, map) = (cob_of(rig, victim).await, map_of(rig, victim).await);
    let other = map_of(rig, fid(3, 2)).await;
    let (cob_key, map_key) = (schema::fid_key(COB, victim), schema::extmap_key(victim, 0));
    let cob_with = |change: &dyn Fn(&mut CobRow)| {
        let mut cob = cob;
        change(&mut cob);
        put(&cob_key, schema::encode(&cob))
    };
    let map_with = |change: &dyn Fn(&mut MapRow)| {
        let mut map = map.clone();
        change(&mut map);
        put(&map_key, schema::encode(&map))
    };
    let free: Rows = {
        let mut rows = Vec::new();
        let mut from = schema::free_key(0).to_vec();
        while let Some((key, value)) =
            rig.store.0.look(|stage| Ok(stage.next(TreeId::Balloc, &from)?)).await.unwrap()
        {
            from.clone_from(&key);
            from.push(0);
            rows.push((key, value));
        }
        rows
    };
    let (free_key, free_len) = free.first().cloned().unwrap();
    let len = u32::from_le_bytes(free_len.try_into().unwrap());
    let group = schema::key_number(schema::FREE, &free_key).unwrap() / 64;
    use FindingKind as K;
    use TreeId::{Balloc, Cob, Extmap};
    let wrong = |kind, tree, changes, fids: &[Fid]| Wrong { kind, tree, changes, fids: fids.to_vec() };
    let v = &[victim][..];
    vec![
        wrong(K::CobRow, Cob, put(&cob_key, vec![1, 2]), v),
        wrong(K::CobRow, Cob, cob_with(&|cob| cob.chunk_size = 0), v),
        wrong(K::CobBlocks, Cob, cob_with(&|cob| cob.blocks += 1), v),
        wrong(K::CobSize, Cob, cob_with(&|cob| cob.size -= 1), v),
        wrong(K::CobTwice, Cob, put(&schema::fid_key(TOMB, victim), Vec::new()), v),
        wrong(K::CobTwice, Cob, put(&schema::fid_key(schema::DEAD, victim), schema::encode(&cob)), v),
        wrong(K::CobCount, Cob, put(COUNT_KEY, schema::encode(&3u64)), &[]),
        wrong(K::UnknownRow, Cob, put(&[200, 1], vec![1]), &[]),
        wrong(K::UnknownRow, Cob, put(&[COB, 1], vec![1]), &[]),
        wrong(K::FenceRow, Cob, put(&schema::fence_key(SessionId(5)), vec![1]), &[]),
        wrong(K::FenceRow, Cob, put(&schema::fence_key(SessionId(5)), 4u64.to_be_bytes()), &[]),
        wrong(K::ExtentRow, Extmap, put(&map_key, vec![9]), v),
        wrong(K::ExtentRow, Extmap, map_with(&|map| map.crcs.push(1)), v),
        wrong(K::ExtentGeneration, Extmap, map_with(&|map| map.generation += 1), v),
        wrong(
            K::ExtentOverlap,
            Extmap,
            put(&schema::extmap_key(fid(9, 9), 4096), schema::encode(&map)),
            &[fid(9, 9)],
        ),
        wrong(
            K::ExtentOrphan,
            Extmap,
            put(&schema::extmap_key(fid(8, 8), 0), schema::encode(&map)),
            &[fid(8, 8)],
        ),
        wrong(K::ExtentRow, Extmap, map_with(&|map| map.extents[0].start = 1 << 40), v),
        wrong(
            K::BlockTwice,
            Extmap,
            map_with(&|map| map.extents = other.extents.clone()),
            &[victim, fid(3, 2)],
        ),
        wrong(
            K::BlockTwice,
            Extmap,
            map_with(&|map| {
                let start = schema::key_number(schema::FREE, &free_key).unwrap();
                map.extents = [Extent { start, blocks: 1 }].into();
            }),
            v,
        ),
        wrong(K::BlockLost, Extmap, vec![(map_key.to_vec(), None)], &[]),
        wrong(K::BlockLost, Balloc, vec![(free_key.clone(), None)], &[]),
        wrong(K::GroupCount, Balloc, put(&schema::summary_key(group), 9999u32.to_le_bytes()), &[]),
        wrong(K::FreeRow, Balloc, put(&schema::summary_key(1 << 50), vec![0; 4]), &[]),
        wrong(K::FreeRow, Balloc, put(&schema::summary_key(group), vec![0; 5]), &[]),
        wrong(K::FreeRow, Balloc, put(&free_key, (len + 1000).to_le_bytes()), &[]),
        wrong(K::FreeCount, Balloc, vec![(free_key.clone(), None)], &[]),
        wrong(K::UnknownRow, Balloc, put(&[2, 2], vec![1]), &[]),
        wrong(K::CtgRow, TreeId::Ctg, put(&[0, 0], vec![1]), &[]),
    ]
}

#[test]
fn every_row_that_contradicts_another_is_found_as_what_it_is() {
    run(5, async |ctx| {
        let rig = filled(&ctx).await;
        let wrongs = wrongs(&rig).await;
        let seen = RefCell::new(Vec::new());
        for wrong in &wrongs {
            let mut undo = Vec::new();
            for (key, _) in &wrong.changes {
                let old = rig.store.0.look(|stage| Ok(stage.get(wrong.tree, key)?)).await.unwrap();
                undo.push((key.clone(), old));
            }
            plant(&rig, wrong.tree, &wrong.changes).await;
            let report = rig.check(false).await;
            plant(&rig, wrong.tree, &undo).await;
            let found = report.findings.iter().find(|f| f.kind == wrong.kind);
            let found = found.unwrap_or_else(|| panic!("{}: {:#?}", wrong.kind, report.findings));
            for fid in &wrong.fids {
                assert!(found.touched.fids.contains(fid), "{}: {found:#?}", wrong.kind);
            }
            assert!(report.findings.iter().all(|f| !f.found.is_empty() && !f.expected.is_empty()));
            assert!(!report.is_sound());
            seen.borrow_mut().push(wrong.kind);
        }
        rig.assert_clean("as before").await;
    });
}

#[test]
fn a_journal_that_cannot_be_redone_leaves_the_checkpoint_to_be_checked() {
    run(6, async |ctx| {
        let rig = filled(&ctx).await;
        for n in 0..3 {
            rig.put(fid(6, n), 0, &pattern(n, CHUNK)).await.unwrap();
        }
        let sb = newest(&rig).await;
        // The first record after the checkpoint: those behind it say that it was durable.
        let at = (sb.geometry.journal_at() + sb.journal.offset) as usize;
        rig.meta.spoil(at + 60, |b| *b ^= 1);
        let victim = map_of(&rig, fid(9, 9)).await.extents[0].start as usize * CHUNK;
        rig.data.spoil(victim, |b| *b ^= 1);
        let report = rig.check(true).await;
        assert_eq!(kinds(&report), [FindingKind::JournalLost, FindingKind::Data], "{:#?}", report.findings);
        assert!(report.checkpoint_only && report.redone == 0);
        assert_eq!(report.findings[0].at.unwrap().address, at as u64);
        rig.meta.spoil(at + 60, |b| *b ^= 1);
        rig.data.spoil(victim, |b| *b ^= 1);
        let report = rig.check(true).await;
        assert!(report.is_clean() && report.redone > 0, "{:#?}", report.findings);
        // A node that redo needs.
        let leaf = rows(&rig, TreeId::Extmap)
            .await
            .iter()
            .find(|(key, _)| *key >= schema::extmap_key(fid(6, 0), 0).to_vec())
            .map(|(_, block)| *block)
            .unwrap();
        let at = sb.geometry.node_at(leaf) as usize + 99;
        rig.meta.spoil(at, |b| *b ^= 1);
        let report = rig.check(true).await;
        assert_eq!(kinds(&report), [FindingKind::Node, FindingKind::JournalRedo], "{:#?}", report.findings);
    });
}

#[test]
fn superblock_copies_and_the_node_bitmap() {
    run(7, async |ctx| {
        let rig = filled(&ctx).await;
        let sb = newest(&rig).await;
        let copies = superblock::read_all(&rig.regions.meta, &rig.arena).await;
        for copy in &copies {
            rig.meta.spoil(copy.at as usize + 130, |b| *b ^= 1);
            let report = rig.check(false).await;
            assert_eq!(kinds(&report), [FindingKind::SuperblockCopy]);
            assert_eq!(report.findings[0].at.unwrap().address, copy.at);
            assert!(report.is_sound() && !report.is_clean(), "the next start mends it");
            rig.meta.spoil(copy.at as usize + 130, |b| *b ^= 1);
        }
        let at = sb.geometry.bitmap_at(sb.bitmap.area) as usize;
        rig.meta.spoil(at + 1, |b| *b ^= 1);
        let report = rig.check(false).await;
        assert_eq!(kinds(&report), [FindingKind::NodeBitmap], "{:#?}", report.findings);
        assert_eq!(report.findings[0].at.unwrap().address, at as u64);
    });
}

#[test]
fn an_inspection_goes_on_past_what_is_damaged_and_says_what_it_skips() {
    run(8, async |ctx| {
        let rig = filled(&ctx).await;
        let sb = newest(&rig).await;
        let all = rows(&rig, TreeId::Extmap).await;
        let hurt = all[all.len() / 2].1;
        rig.meta.spoil(sb.geometry.node_at(hurt) as usize + 900, |b| *b ^= 1);
        let (regions, meta, _) = devices(&ctx, rig.meta.current(), rig.data.current());
        let inspection = Inspection::open(&ctx, &regions, &rig.arena, &rig.limits).await.unwrap();
        assert_eq!((inspection.trouble(), inspection.superblock().generation), (&[][..], sb.generation));
        let mut tree = inspection.rows(TreeId::Extmap, &[], None);
        let (mut seen, mut skipped) = (0, Vec::new());
        while let Some(item) = tree.next().await {
            match item {
                Item::Row(row) => {
                    assert!(matches!(row, TreeRow::Extents { .. }));
                    seen += 1;
                }
                Item::Skipped(lost) => skipped.push(lost.at.block),
            }
        }
        assert_eq!(seen, all.iter().filter(|(_, block)| *block != hurt).count());
        assert_eq!(skipped, [Some(hurt)]);
        // One cob, one row of a catalogue, one node, and the space by group.
        assert!(
            matches!(&inspection.cob(fid(9, 9)).await[..], [Item::Row(TreeRow::Cob { info, .. })] if info.size == 3 * 4096 + 100)
        );
        assert_eq!(inspection.entry(3, b"key0000").await, Some(vec![7; 60]));
        assert_eq!(inspection.entry(3, b"key0001").await, None);
        assert!(inspection.node(hurt).await.unwrap().wrong.is_some_and(|why| why.starts_with("checksum")));
        let root = inspection.node(sb.roots[TreeId::Ctg.index()].node.block).await.unwrap();
        assert_eq!(
            (root.tree, root.wrong, root.children.len()),
            (Some(TreeId::Ctg), None, usize::from(root.entries))
        );
        let (mut free, mut blocks) = (0, 0);
        let skipped = inspection.groups(|group| {
            assert_eq!(group.says.unwrap_or(group.blocks), group.free);
            free += group.free;
            blocks += group.blocks;
            true
        });
        assert_eq!(skipped.await, []);
        assert_eq!((free, blocks), (sb.data_free, sb.data_blocks));
        let mut used = 0;
        inspection.node_runs(|from, until| used += until - from).await.unwrap();
        assert_eq!(used, rig.check(false).await.nodes + 1, "all but the damaged one are whole");
        assert_eq!(meta.writes.get(), 0);
    });
}
