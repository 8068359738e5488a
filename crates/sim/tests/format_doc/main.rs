//! docs/format.md is enough to read a target: this reader takes every offset, length and constant from the page's own
//! tables and sentences, walks an image that the store has just written, and compares what it finds with what the store
//! says. The page and the code cannot drift apart, and each number of the page is needed: changed, it fails.

#![allow(clippy::unwrap_used, reason = "a test, with helpers of its own")]

mod image;
mod page;

use cobalt_base::checksum::xxh3;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::Reactor;
use cobalt_sim::image::ImageDisk;
use cobalt_sim::populate::{self, Moment, limits, populate};
use cobalt_store::superblock::{Superblock, Verdict, read_all};
use cobalt_store::tree::TreeId;
use cobalt_store::{OpenOptions, RecordRow, Regions, Store, TreeRow, dump_journal};
use image::{Reader, Walked};
use page::{
    Doubt, Layout, after, be, braces, hex, key, known_type, le, number, parts, postcard, same, section,
    split, varint,
};
use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../../../docs/format.md");

/// The rows of the trees, by the page, beside what the store makes of them.
fn rows_agree(page: &str, walked: &Walked, rows: &[Vec<TreeRow>; 4]) -> Doubt<()> {
    let cob = section(page, "Cob tree")?;
    let extmap = section(page, "Extent-map tree")?;
    let balloc = section(page, "Allocator tree")?;
    let ctg = section(page, "Catalogue tree")?;
    let fid_len = parts(after(&cob.text, "A fid is ", &['.'])?.replace(" and ", ", ").as_str())?;
    let cob_value = braces(&cob.rows[1][1])?;
    known_type(after(&cob.rows[0][1], "postcard ", &[':'])?)?;
    for (tree, (found, says)) in walked.rows.iter().zip(rows).enumerate() {
        same(&format!("rows of tree {tree}"), found.len(), says.len())?;
    }
    let fid = |bytes: &[u8]| {
        let parts = split(bytes, &fid_len)?;
        Ok::<_, String>((be(parts[0]), be(parts[1])))
    };
    for ((k, value), row) in walked.rows[0].iter().zip(&rows[0]) {
        let (at, bytes) =
            cob.rows.iter().enumerate().find_map(|(i, r)| Some((i, key(&r[0], k)?))).ok_or("no key")?;
        match (at, row) {
            (0, TreeRow::CobCount { count }) => same("count", varint(&mut value.as_slice())?, *count)?,
            (1, TreeRow::Cob { fid: f, info }) | (4, TreeRow::Dead { fid: f, info }) => {
                same("fid", fid(bytes)?, (f.session.0, f.counter))?;
                let value = postcard(cob_value, value)?;
                let blocks = info.allocated / 4096;
                let says = [u64::from(info.chunk_size), info.incarnation, info.generation, info.size, blocks];
                let names = ["chunk size", "incarnation", "generation", "size", "blocks"];
                for (name, says) in names.into_iter().zip(says) {
                    same(name, value.get(name), Some(&vec![says]))?;
                }
            }
            (2, TreeRow::Tombstone { fid: f }) => same("fid", fid(bytes)?, (f.session.0, f.counter))?,
            (3, TreeRow::Fence { first, last }) => {
                let len = number(after(&cob.rows[3][1], "last session, ", &[' '])?)?;
                same("bytes of a fence", value.len() as u64, len)?;
                same("fence", (be(bytes), be(value)), (first.0, last.0))?;
            }
            (at, row) => return Err(format!("row {at} of the page is {row:?}")),
        }
    }
    let extmap_key = parts(after(&extmap.text, "Key: ", &['.'])?)?;
    let extmap_value = braces(&extmap.text)?;
    for ((k, value), row) in walked.rows[1].iter().zip(&rows[1]) {
        let TreeRow::Extents { fid: f, offset, len, generation, extents, crcs } = row else {
            return Err(format!("not an extent: {row:?}"));
        };
        let k = split(k, &extmap_key)?;
        same("place", (fid(k[0])?, be(k[1])), ((f.session.0, f.counter), *offset))?;
        let value = postcard(extmap_value, value)?;
        same("len", value.get("len"), Some(&vec![*len]))?;
        same("generation", value.get("generation"), Some(&vec![*generation]))?;
        let flat = extents.iter().flat_map(|e| [e.start, u64::from(e.blocks)]).collect();
        same("extents", value.get("extents"), Some(&flat))?;
        same("checksums", value.get("checksums"), Some(&crcs.iter().map(|c| u64::from(*c)).collect()))?;
    }
    for ((k, value), row) in walked.rows[2].iter().zip(&rows[2]) {
        let (at, bytes) =
            balloc.rows.iter().enumerate().find_map(|(i, r)| Some((i, key(&r[0], k)?))).ok_or("no key")?;
        let bytes_of_value: usize = balloc.rows[at][1]
            .rsplit_once(", ")
            .ok_or("no length")?
            .1
            .trim_end_matches(" bytes")
            .parse()
            .map_err(|_| "no length")?;
        same("bytes of a count", value.len(), bytes_of_value)?;
        match (at, row) {
            (0, TreeRow::GroupSummary { group, free }) => {
                same("group", (be(bytes), le(value)?), (*group, u64::from(*free)))?
            }
            (1, TreeRow::Free { start, blocks }) => {
                same("free", (be(bytes), le(value)?), (*start, u64::from(*blocks)))?
            }
            (at, row) => return Err(format!("row {at} of the page is {row:?}")),
        }
    }
    let number_len = number(after(&ctg.text, "catalogue number ", &[','])?)? as usize;
    for ((k, value), row) in walked.rows[3].iter().zip(&rows[3]) {
        let (number, rest) = k.split_at_checked(number_len).ok_or("a short key")?;
        let found = TreeRow::Entry { ctg: be(number) as u32, key: rest.to_vec(), value: value.clone() };
        same("entry", &found, row)?;
    }
    Ok(())
}

/// What the store itself says of an image.
struct Says {
    meta: Vec<u8>,
    sb: Superblock,
    records: Vec<RecordRow>,
    /// Rows of the checkpoint; none where the journal has changed them since.
    rows: Option<[Vec<TreeRow>; 4]>,
    journal: u64,
}

fn read(page: &str, says: &Says) -> Doubt<()> {
    let sb = &says.sb;
    let title = section(page, "Superblock")?;
    let size = number(after(&title.text, "superblock.rs`, ", &[' '])?)? as usize;
    let layout = Layout::of(&title, size)?;
    let slot = sb.generation % number(after(&title.text, "slot g mod ", &[','])?)?;
    let mut reader = Reader { page, meta: &says.meta, b: 0, j: 0, n: 0, node_size: 0 };
    let block = reader.piece(&format!("superblock slot {slot}, copy 0"))?.to_vec();
    same("both copies", block.as_slice(), reader.piece(&format!("superblock slot {slot}, copy 1"))?)?;
    let block = block.as_slice();
    layout.magic(block)?;
    layout.zeros(block)?;
    let get = |name: &str| layout.number(block, name);
    let version = layout.field("format version")?.name.rsplit_once(' ').ok_or("no version")?.1.to_owned();
    same("format version", get("format version")?, number(&version)?)?;
    let seed = hex(after(&layout.field("checksum: xxh3(")?.name, "xxh3(0x", &[')'])?)?;
    same("sum of the superblock", layout.sum(block, "checksum: xxh3(", seed)?, get("checksum: xxh3(")?)?;
    let target = layout.bytes(block, "target uuid")?;
    same("target", target, sb.target.as_bytes().as_slice())?;
    same("cluster", layout.bytes(block, "cluster uuid")?, sb.cluster.as_bytes().as_slice())?;
    let name = &layout.bytes(block, "name")?[..get("length of the name")? as usize];
    same("name", name, sb.name.as_bytes())?;
    for (name, code) in [
        ("generation", sb.generation),
        ("mount epoch", sb.mount_epoch),
        ("epoch start", sb.epoch_start.0),
        ("checkpoint lsn", sb.checkpoint_lsn.0),
        ("ring offset", sb.journal.offset),
        ("checksum of the header", sb.journal.chain),
        ("bytes of the bitmap", sb.bitmap.len),
        ("xxh3(tree seed)", sb.bitmap.checksum),
        ("bitmap area", u64::from(sb.bitmap.area)),
        ("region length", says.meta.len() as u64),
        ("J", says.journal),
        ("B", sb.geometry.bitmap_len),
        ("n", sb.geometry.node_blocks),
        ("node size", u64::from(sb.geometry.node_size)),
        ("blocks of the data region", sb.data_blocks),
        ("free ones", sb.data_free),
    ] {
        let field = layout.0.iter().find(|field| {
            field.name == name
                || field.name.starts_with(&format!("{name} "))
                || field.name.starts_with(&format!("{name}:"))
                || field.name.starts_with(&format!("{name},"))
        });
        let field = field.ok_or_else(|| format!("no field {name}"))?;
        same(name, le(&block[field.at..field.at + field.bytes])?, code)?;
    }
    (reader.b, reader.j) = (get("B")?, get("J")?);
    (reader.n, reader.node_size) = (sb.geometry.node_blocks, get("node size")?);
    reader.regions_touch()?;
    same("bits in the bitmap", reader.b, (reader.n.div_ceil(8)).next_multiple_of(4096))?;
    let walked = reader.walk(&layout, block, target)?;
    let bitmap = reader.piece(&format!("node bitmap, area {}", sb.bitmap.area))?;
    same("sum of the bitmap", xxh3(reader.target_seed("The tree", target)?, bitmap), sb.bitmap.checksum)?;
    let marked = (0..bitmap.len() as u64 * 8).filter(|b| bitmap[*b as usize / 8] & (1 << (b % 8)) != 0);
    same("used node blocks", &marked.collect::<BTreeSet<u64>>(), &walked.blocks)?;
    let followed = reader.records(sb.journal.offset, sb.journal.chain, target, &says.records)?;
    same("records that follow the superblock", true, followed > 0)?;
    match &says.rows {
        Some(rows) => rows_agree(page, &walked, rows),
        None => {
            // The journal has changed them since; their kinds are those of the page.
            let cob = section(page, "Cob tree")?;
            let known = |k: &[u8]| cob.rows.iter().any(|row| key(&row[0], k).is_some());
            same("keys of the cob tree", true, walked.rows[0].iter().all(|(k, _)| known(k)))
        }
    }
}

fn says() -> Vec<Says> {
    let reactor = Reactor::new_virtual(1).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let made = populate(&ctx).await;
        let arena = Arena::new(ArenaConfig { limit: 16 << 20 }).unwrap();
        let mut all = Vec::new();
        for moment in [&made.closed, &made.busy] {
            let Moment { meta, data, .. } = moment;
            let regions = Regions {
                meta: ImageDisk::new(meta.clone()).region(),
                data: ImageDisk::new(data.clone()).region(),
            };
            let copies = read_all(&regions.meta, &arena).await;
            let valid = copies.into_iter().filter_map(|copy| match copy.verdict {
                Verdict::Valid(sb) => Some(*sb),
                _ => None,
            });
            let sb = valid.max_by_key(|sb| sb.generation).unwrap();
            let options = OpenOptions { limits: limits(), read_only: true, ..OpenOptions::default() };
            let store = Store::open(ctx.clone(), regions.clone(), arena.clone(), options).await.unwrap();
            let mut rows = <[Vec<TreeRow>; 4]>::default();
            for tree in TreeId::ALL {
                rows[tree as usize] = store.rows(tree, &[], usize::MAX).await.unwrap().0;
            }
            let records = dump_journal(&regions, &arena).await.unwrap();
            let rows = (moment.name == "closed").then_some(rows);
            all.push(Says { meta: meta.to_vec(), sb, records, rows, journal: populate::JOURNAL_LEN });
        }
        all
    })
}

#[test]
fn the_page_s_tables_alone_read_a_target() {
    for says in says() {
        read(PAGE, &says).unwrap();
    }
}

#[test]
fn every_number_of_the_tables_is_needed() {
    let says = says();
    let mut changed = 0;
    let mut unseen = Vec::new();
    for (at, line) in PAGE.lines().enumerate() {
        let cells: Vec<&str> = line.split('|').collect();
        if !line.starts_with('|') || !cells[1].contains(|c: char| c.is_ascii_digit()) {
            continue;
        }
        // The first number of a row's first cell, and that of its second: an offset and a length.
        for cell in [1, 2] {
            let Some(digit) = cells[cell].find(|c: char| c.is_ascii_digit()) else { continue };
            let old = cells[cell].as_bytes()[digit];
            let new = if old == b'9' { '1' } else { char::from(old + 1) };
            let mut cells: Vec<String> = cells.iter().map(|cell| (*cell).to_owned()).collect();
            cells[cell].replace_range(digit..=digit, &new.to_string());
            let mut lines: Vec<String> = PAGE.lines().map(str::to_owned).collect();
            lines[at] = cells.join("|");
            let page = lines.join("\n");
            changed += 1;
            if says.iter().all(|says| read(&page, says).is_ok()) {
                unseen.push(lines[at].clone());
            }
        }
    }
    assert!(changed > 80, "{changed} numbers");
    assert!(unseen.is_empty(), "{} of {changed}:\n{}", unseen.len(), unseen.join("\n"));
}
