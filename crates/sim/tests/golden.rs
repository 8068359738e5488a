//! An image of each format version is kept, and every later version of the code opens it and reads it all. Version 1
//! was written by the code that first had it; `COBALT_GOLDEN=write` makes the image of a version that has none yet.

#![allow(clippy::unwrap_used, reason = "a test, with helpers of its own")]

use cobalt_base::checksum::{crc32c, xxh3};
use cobalt_base::{Fid, SessionId};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor};
use cobalt_sim::image::{BLOCK, ImageDisk};
use cobalt_sim::populate::{Moment, limits, populate};
use cobalt_store::superblock::{FORMAT_VERSION, Superblock, Verdict, read_all};
use cobalt_store::tree::TreeId;
use cobalt_store::{FsckOptions, OpenOptions, RecordRow, Regions, Store, TreeRow, dump_journal, fsck};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Blocks are kept as runs of equal lines of this length.
const LINE: usize = 64;

fn path(version: u32, ending: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../store/golden/v{version}.{ending}"))
}

/// The two regions: their lengths; then for each block that is not zero its region, its number, and its lines as runs:
/// how many, and the line.
fn pack(images: [&[u8]; 2]) -> Vec<u8> {
    let mut out = Vec::new();
    for image in images {
        out.extend_from_slice(&(image.len() as u64).to_le_bytes());
    }
    for (region, image) in (0u8..).zip(images) {
        for (block, bytes) in (0u32..).zip(image.chunks(BLOCK)) {
            if bytes.iter().all(|b| *b == 0) {
                continue;
            }
            out.push(region);
            out.extend_from_slice(&block.to_le_bytes());
            let lines: Vec<&[u8]> = bytes.chunks(LINE).collect();
            for run in lines.chunk_by(|a, b| a == b) {
                out.push(u8::try_from(run.len()).unwrap());
                out.extend_from_slice(run[0]);
            }
        }
    }
    out
}

fn unpack(mut packed: &[u8]) -> [Vec<u8>; 2] {
    let mut take = |n: usize| {
        let (head, rest) = packed.split_at(n.min(packed.len()));
        packed = rest;
        head
    };
    let mut images = [(); 2].map(|()| {
        let len = u64::from_le_bytes(take(8).try_into().unwrap());
        vec![0; len as usize]
    });
    while let [region] = take(1) {
        let at = u32::from_le_bytes(take(4).try_into().unwrap()) as usize * BLOCK;
        let mut bytes = Vec::new();
        while bytes.len() < BLOCK {
            let run = usize::from(take(1)[0]);
            bytes.extend(take(LINE).repeat(run));
        }
        images[usize::from(*region)][at..at + BLOCK].copy_from_slice(&bytes);
    }
    images
}

fn disks(images: &[Vec<u8>; 2]) -> Regions {
    let [meta, data] = images.each_ref().map(|image| ImageDisk::new(Arc::new(image.clone())));
    Regions { meta: meta.region(), data: data.region() }
}

fn arena() -> Arena {
    Arena::new(ArenaConfig { limit: 16 << 20 }).unwrap()
}

async fn open(ctx: &Ctx, regions: &Regions, read_only: bool) -> Store {
    let options = OpenOptions { limits: limits(), read_only, ..OpenOptions::default() };
    Store::open(ctx.clone(), regions.clone(), arena(), options).await.expect("a golden image opens")
}

async fn all_rows(store: &Store, tree: TreeId) -> Vec<TreeRow> {
    let (rows, more) = store.rows(tree, &[], usize::MAX).await.unwrap();
    assert_eq!(more, None);
    rows
}

/// Everything that a caller can read of a target.
async fn manifest(store: &Store) -> String {
    let mut out = String::new();
    let mut alive: BTreeSet<Fid> = BTreeSet::new();
    for row in all_rows(store, TreeId::Cob).await {
        match row {
            TreeRow::Cob { fid, info } => {
                alive.insert(fid);
                let (chunk, size, blocks) = (info.chunk_size, info.size, info.allocated / BLOCK as u64);
                let (incarnation, generation) = (info.incarnation, info.generation);
                writeln!(out, "cob {fid} chunk {chunk} size {size} blocks {blocks} incarnation {incarnation} generation {generation}").unwrap();
            }
            TreeRow::Tombstone { fid } => writeln!(out, "deleted {fid}").unwrap(),
            TreeRow::Fence { first: SessionId(first), last: SessionId(last) } => {
                writeln!(out, "fenced {first} to {last}").unwrap();
            }
            TreeRow::CobCount { count } => writeln!(out, "cobs {count}").unwrap(),
            TreeRow::Dead { .. } => {} // On its way out: how far is not for callers to see.
            row => panic!("not a row of the cob tree: {row:?}"),
        }
    }
    for row in all_rows(store, TreeId::Extmap).await {
        let TreeRow::Extents { fid, offset, len, crcs, .. } = row else { panic!("not an extent: {row:?}") };
        if !alive.contains(&fid) {
            continue;
        }
        let read = store.cob_read(fid, offset, len).await.unwrap();
        let bytes: Vec<u8> = read.slices.iter().flat_map(|s| s.iter().copied()).collect();
        assert_eq!((bytes.len() as u64, read.crcs.len()), (len, crcs.len()));
        writeln!(out, "bytes {fid} at {offset} len {len} crc32c {:08x}", crc32c(&bytes)).unwrap();
    }
    let mut catalogues: Vec<(u32, u64, Vec<u8>)> = Vec::new();
    for row in all_rows(store, TreeId::Ctg).await {
        let TreeRow::Entry { ctg, key, value } = row else { panic!("not an entry: {row:?}") };
        assert_eq!(store.ctg().get(ctg, &key).await.unwrap(), Some(value.clone()));
        if catalogues.last().is_none_or(|(number, ..)| *number != ctg) {
            catalogues.push((ctg, 0, Vec::new()));
        }
        let (_, count, all) = catalogues.last_mut().unwrap();
        *count += 1;
        for part in [key, value] {
            all.extend_from_slice(&(part.len() as u64).to_le_bytes());
            all.extend_from_slice(&part);
        }
    }
    for (number, count, all) in catalogues {
        writeln!(out, "catalogue {number}: {count} entries, xxh3 {:016x}", xxh3(0, &all)).unwrap();
    }
    out
}

async fn assert_clean(ctx: &Ctx, regions: &Regions, when: &str) {
    let options = FsckOptions { data: true, limits: limits(), ..FsckOptions::default() };
    let report = fsck(ctx, regions, &arena(), &options).await.unwrap();
    assert!(report.is_clean(), "{when}: {:#?}", report.findings);
}

fn run<T: 'static>(test: impl AsyncFnOnce(Ctx) -> T + 'static) -> T {
    let reactor = Reactor::new_virtual(1).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(test(ctx))
}

/// What free blocks hold, of data or for nodes, means nothing, so it is not kept.
async fn without_free_blocks(ctx: &Ctx, moment: &Moment) -> [Vec<u8>; 2] {
    let mut images = [moment.meta.to_vec(), moment.data.to_vec()];
    let regions = disks(&images);
    let store = open(ctx, &regions, true).await;
    let sb = newest(&regions).await;
    let bitmap = sb.geometry.bitmap_at(sb.bitmap.area) as usize;
    for block in 0..sb.geometry.node_blocks {
        if images[0][bitmap + block as usize / 8] & (1 << (block % 8)) == 0 {
            let at = sb.geometry.node_at(block) as usize;
            images[0][at..at + sb.geometry.node_size as usize].fill(0);
        }
    }
    let mut used = BTreeSet::new();
    for row in all_rows(&store, TreeId::Extmap).await {
        if let TreeRow::Extents { extents, .. } = row {
            used.extend(extents.iter().flat_map(|e| e.start..e.start + u64::from(e.blocks)));
        }
    }
    for (block, bytes) in (0u64..).zip(images[1].chunks_mut(BLOCK)) {
        if !used.contains(&block) {
            bytes.fill(0);
        }
    }
    images
}

#[test]
fn a_populated_target_answers_as_its_model() {
    run(async |ctx| {
        let made = populate(&ctx).await;
        for moment in [&made.closed, &made.busy, &made.quiet, &made.inline] {
            let images = [moment.meta.to_vec(), moment.data.to_vec()];
            let regions = disks(&images);
            let answers = moment.model.ask(&open(&ctx, &regions, true).await).await;
            assert!(answers.all_right() && answers.right > 500, "{}: {answers:?}", moment.name);
            assert_clean(&ctx, &regions, moment.name).await;
        }
        has_everything(&ctx, &made.busy).await;
        let inline = disks(&[made.inline.meta.to_vec(), made.inline.data.to_vec()]);
        let records = dump_journal(&inline, &arena()).await.unwrap();
        let inlines =
            records.iter().flat_map(|r| &r.intents).filter(|line| line.contains(" and its ")).count();
        assert!(inlines > 0, "{inlines} records with data");
        let quiet = disks(&[made.quiet.meta.to_vec(), made.quiet.data.to_vec()]);
        let records = dump_journal(&quiet, &arena()).await.unwrap();
        assert!(records.last().is_some_and(|r| r.count == 0), "an empty record is the last: {records:#?}");
    });
}

async fn newest(regions: &Regions) -> Superblock {
    let copies = read_all(&regions.meta, &arena()).await;
    let valid = copies.into_iter().filter_map(|copy| match copy.verdict {
        Verdict::Valid(sb) => Some(*sb),
        _ => None,
    });
    valid.max_by_key(|sb| sb.generation).expect("a superblock")
}

/// What damage can meet is there to be met.
async fn has_everything(ctx: &Ctx, moment: &Moment) {
    let regions = disks(&[moment.meta.to_vec(), moment.data.to_vec()]);
    let newest = newest(&regions).await;
    let heights = newest.roots.map(|root| root.height);
    assert!(heights.iter().all(|height| *height >= 2) && heights.contains(&3), "{heights:?}");
    let records = dump_journal(&regions, &arena()).await.unwrap();
    let count = |f: &dyn Fn(&RecordRow) -> bool| records.iter().filter(|r| f(r)).count();
    let after = newest.checkpoint_lsn;
    assert!(count(&|r| r.first > after && r.count > 0) > 4, "after the checkpoint: {records:#?}");
    assert!(count(&|r| r.first <= after) > 2, "before the checkpoint: {records:#?}");
    assert!(count(&|r| r.count > 1) > 0, "of several transactions: {records:#?}");
    assert!(count(&|r| r.bytes > BLOCK as u64) > 0, "records of several blocks");
    assert_eq!(newest.data_blocks * 4096, moment.data.len() as u64);
    let store = open(ctx, &regions, true).await;
    let cobs = all_rows(&store, TreeId::Cob).await;
    assert!(cobs.iter().any(|row| matches!(row, TreeRow::Dead { .. })), "a cob that is being freed");
    assert!(cobs.iter().any(|row| matches!(row, TreeRow::Fence { first, last } if first < last)));
    assert!(cobs.iter().any(|row| matches!(row, TreeRow::Tombstone { .. })));
    let extents = all_rows(&store, TreeId::Extmap).await;
    let in_pieces = |row: &TreeRow| matches!(row, TreeRow::Extents { extents, .. } if extents.len() > 5);
    assert!(extents.iter().any(in_pieces), "a row of several extents");
}

#[test]
fn every_format_version_has_a_golden_image_that_mounts() {
    if std::env::var("COBALT_GOLDEN").is_ok_and(|v| v == "write") {
        write_golden();
    }
    for version in 1..=FORMAT_VERSION {
        let packed = std::fs::read(path(version, "img")).expect("every format version has a golden image");
        let expected = std::fs::read_to_string(path(version, "txt")).expect("and a list of what is in it");
        assert!(packed.len() <= 1 << 20);
        run(async move |ctx| {
            let images = unpack(&packed);
            let regions = disks(&images);
            assert_clean(&ctx, &regions, "as it was kept").await;
            let store = open(&ctx, &regions, true).await;
            assert_eq!(manifest(&store).await, expected, "version {version}, read only");
            let scope = ctx.scope();
            let store = open(&scope.ctx(), &regions, false).await;
            assert_eq!(manifest(&store).await, expected, "version {version}, mounted");
            store.close().await.unwrap();
            scope.kill();
            assert_clean(&ctx, &regions, "after a mount").await;
            let store = open(&ctx, &regions, false).await;
            assert_eq!(manifest(&store).await, expected, "version {version}, mounted again");
        });
    }
}

fn write_golden() {
    let image = path(FORMAT_VERSION, "img");
    assert!(
        !image.exists(),
        "version {FORMAT_VERSION} has its image: a format that was released never changes"
    );
    run(async move |ctx| {
        let moment = populate(&ctx).await.busy;
        let images = without_free_blocks(&ctx, &moment).await;
        let store = open(&ctx, &disks(&images), true).await;
        assert!(moment.model.ask(&store).await.all_right());
        std::fs::write(&image, pack([&images[0], &images[1]])).unwrap();
        std::fs::write(path(FORMAT_VERSION, "txt"), manifest(&store).await).unwrap();
    });
}
