//! The classes of damage, each with all of its cases by number.

use super::bench::{Bench, Depth, Patch, Seen};
use super::subject::Subject;
use crate::layout::{self, COPIES, HEADER, NODE};
use cobalt_sim::image::BLOCK;
use cobalt_store::Side;
use cobalt_store::superblock::{Verdict, read_all};
use std::sync::Arc;

const WORDS: u64 = (BLOCK / 8) as u64;
const BITS: u64 = (BLOCK * 8) as u64;

type Make = Box<dyn Fn(&Subject, u64) -> Vec<Patch> + Send + Sync>;

pub enum Kind {
    /// Each bit of each superblock copy.
    CopyBits,
    /// Of superblock copies.
    Superblocks(Make),
    /// Of anything else.
    Blocks(Make),
}

pub struct Class {
    pub name: &'static str,
    /// The moment.
    pub of: &'static str,
    pub subject: usize,
    pub len: u64,
    /// All answers and `fsck` are looked at in every so-manieth case; what the damage hits, in all.
    pub deep_every: u64,
    /// All rows of all trees in every so-manieth.
    pub rows_every: u64,
    pub kind: Kind,
}

/// Spreads a number: which bit of a word, which byte of a chunk.
fn mix(seed: u64, n: u64) -> u64 {
    let mut x = (seed ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 17
}

fn meta(block: u64, bytes: Vec<u8>) -> Patch {
    Patch { side: Side::Meta, block, bytes }
}

fn data(block: u64, bytes: Vec<u8>) -> Patch {
    Patch { side: Side::Data, block, bytes }
}

fn flipped(bytes: &[u8], bit: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    bytes
}

/// The `n`th pair of `len` things.
fn pair(len: u64, n: u64) -> (usize, usize) {
    // Row by row of a triangle: row i has i pairs.
    let mut i = ((2.0 * n as f64).sqrt()) as u64;
    while i * (i + 1) / 2 > n {
        i -= 1;
    }
    while (i + 1) * (i + 2) / 2 <= n {
        i += 1;
    }
    let (a, b) = (i + 1, n - i * (i + 1) / 2);
    assert!(a < len && b < a, "pairs are numbered below len * (len - 1) / 2");
    (a as usize, b as usize)
}

fn pairs(len: usize) -> u64 {
    (len * len.saturating_sub(1) / 2) as u64
}

/// All classes, over all subjects.
pub fn all(subjects: &[Arc<Subject>], seed: u64) -> Vec<Class> {
    let mut classes = Vec::new();
    for (number, subject) in subjects.iter().enumerate() {
        let mut add = |name, len: u64, deep_every: u64, kind| {
            // Where there are many cases, they differ by what they hit alone.
            let rows_every = if len > 8192 { 16 } else { 1 };
            classes.push(Class {
                name,
                of: subject.name,
                subject: number,
                len,
                deep_every,
                rows_every,
                kind,
            });
        };
        let headers = subject.records.len() as u64;
        add("header_bits", headers * (HEADER as u64) * 8, 509, Kind::Blocks(Box::new(header_bit)));
        let ring = subject.ring_blocks().count();
        let words = (ring as u64) * WORDS;
        add("journal_words", words, 127, Kind::Blocks(Box::new(move |s, i| ring_word(s, i, seed))));
        add("journal_swaps", pairs(ring), 7, Kind::Blocks(Box::new(swap_ring)));
        let old = old_ring(subject);
        let count = old.len() as u64;
        add("journal_old", count, 13, Kind::Blocks(Box::new(move |_, i| vec![old[i as usize].clone()])));
        let forgeable = subject.kept.len().saturating_sub(2) as u64;
        add("journal_forged", forgeable * 64, 7, Kind::Blocks(Box::new(forged_record)));
        if number == 0 {
            once(subject, seed, &mut add);
        }
    }
    classes
}

/// What is looked at in one moment only, since it does not depend on the journal's end.
fn once(subject: &Subject, seed: u64, add: &mut impl FnMut(&'static str, u64, u64, Kind)) {
    add("superblock_bits", 4 * BITS, 509, Kind::CopyBits);
    add("superblock_twins", BITS / 8, 1, Kind::Superblocks(Box::new(twins)));
    add("superblock_all", BITS / 8, 1, Kind::Superblocks(Box::new(all_copies)));
    let stale = stale(subject);
    let count = stale.len() as u64;
    add("superblock_stale", count, 5, Kind::Superblocks(Box::new(move |_, i| stale[i as usize].clone())));
    let areas = 2 * WORDS;
    add("bitmap_words", areas, 61, Kind::Blocks(Box::new(move |s, i| bitmap_word(s, i, seed))));
    let words = subject.nodes.len() as u64 * WORDS;
    add("node_words", words, 127, Kind::Blocks(Box::new(move |s, i| node_word(s, i, seed, false))));
    add("node_forged", words, 127, Kind::Blocks(Box::new(move |s, i| node_word(s, i, seed, true))));
    add("node_swaps", pairs(subject.nodes.len()), 13, Kind::Blocks(Box::new(swap_nodes)));
    let old = old_meta(subject);
    let count = old.len() as u64;
    add("node_old", count, 7, Kind::Blocks(Box::new(move |_, i| vec![old[i as usize].clone()])));
    let blocks = (subject.data.len() / BLOCK) as u64;
    add("data_chunks", blocks, 5, Kind::Blocks(Box::new(move |s, i| data_bit(s, i, seed, true))));
    add("data_padding", blocks, 16, Kind::Blocks(Box::new(move |s, i| data_bit(s, i, seed, false))));
    add("data_swaps", pairs(blocks as usize), 16_381, Kind::Blocks(Box::new(swap_data)));
    let old = old_data(subject);
    let count = old.len() as u64;
    add("data_old", count, 31, Kind::Blocks(Box::new(move |_, i| vec![old[i as usize].clone()])));
    let free = free_meta(subject);
    let count = free.len() as u64;
    add("free_nodes", count, 16, Kind::Blocks(Box::new(move |s, i| spoil_free(s, &free, i))));
}

/// A bit of a copy: it no longer counts, and the others serve.
pub async fn copy_bit(bench: &Bench, i: u64, depth: Depth) -> Result<Seen, String> {
    let (slot, at) = COPIES[(i / BITS) as usize];
    let block = (at / BLOCK) as u64;
    let bytes = flipped(bench.subject.meta_block(block), i % BITS);
    if depth == Depth::All {
        return bench.check_superblocks(&[meta(block, bytes)], depth).await;
    }
    bench.meta.set_block(block, &bytes);
    let copies = read_all(&bench.regions.meta, &bench.arena).await;
    bench.meta.reset();
    for copy in copies {
        let own = copy.at == at as u64;
        match copy.verdict {
            Verdict::Corrupt(_) if own && copy.slot == slot as u64 => {}
            Verdict::Valid(sb) if !own => {
                let expected = layout::u64_at(&bench.subject.meta, copy.at as usize + 120);
                if sb.generation != expected {
                    return Err(format!("the copy at {:#x} has another generation now", copy.at));
                }
            }
            other => return Err(format!("the copy at {:#x} is {other:?}", copy.at)),
        }
    }
    Ok(Seen::Detected)
}

/// The same bit of both copies of the newest generation; a bit of every byte.
fn twins(subject: &Subject, i: u64) -> Vec<Patch> {
    copies_of(subject, i, |slot| slot == subject.sb.slot)
}

/// The same bit of all copies.
fn all_copies(subject: &Subject, i: u64) -> Vec<Patch> {
    copies_of(subject, i, |_| true)
}

fn copies_of(subject: &Subject, i: u64, which: impl Fn(usize) -> bool) -> Vec<Patch> {
    let own = COPIES.iter().filter(|(slot, _)| which(*slot));
    let patches = own.map(|(_, at)| {
        let block = (at / BLOCK) as u64;
        meta(block, flipped(subject.meta_block(block), 8 * i + i % 8))
    });
    patches.collect()
}

/// Old contents of the copies of the newest superblock: of all of them, and of each; also what belongs elsewhere.
fn stale(subject: &Subject) -> Vec<Vec<Patch>> {
    let newest: Vec<u64> = own_copies(subject.sb.slot);
    let other: Vec<u64> = own_copies(1 - subject.sb.slot);
    let mut states = Vec::new();
    for old in &subject.meta_old[&newest[0]] {
        states.push(newest.iter().map(|block| meta(*block, old.clone())).collect());
        states.extend(newest.iter().map(|block| vec![meta(*block, old.clone())]));
        let everywhere = newest.iter().chain(&other);
        states.push(everywhere.map(|block| meta(*block, old.clone())).collect());
    }
    for old in &subject.meta_old[&other[0]] {
        states.push(other.iter().map(|block| meta(*block, old.clone())).collect());
        states.extend(other.iter().map(|block| vec![meta(*block, old.clone())]));
    }
    // The generation before, in the place of the newest, and the newest in its place.
    let [new, before] = [&newest, &other].map(|blocks| subject.meta_block(blocks[0]).to_vec());
    states.push(newest.iter().map(|block| meta(*block, before.clone())).collect());
    states.extend(newest.iter().map(|block| vec![meta(*block, before.clone())]));
    states.push(other.iter().map(|block| meta(*block, new.clone())).collect());
    states.push(newest.iter().map(|block| meta(*block, vec![0; BLOCK])).collect());
    states
}

fn own_copies(slot: usize) -> Vec<u64> {
    COPIES.iter().filter(|(s, _)| *s == slot).map(|(_, at)| (at / BLOCK) as u64).collect()
}

fn header_bit(subject: &Subject, i: u64) -> Vec<Patch> {
    let bits = HEADER as u64 * 8;
    let block = (subject.headers()[(i / bits) as usize] / BLOCK) as u64;
    vec![meta(block, flipped(subject.meta_block(block), i % bits))]
}

/// A bit of each word of the ring; headers too.
fn ring_word(subject: &Subject, i: u64, seed: u64) -> Vec<Patch> {
    let block = subject.ring_block() + i / WORDS;
    vec![meta(block, flipped(subject.meta_block(block), i % WORDS * 64 + mix(seed, i) % 64))]
}

fn swap_ring(subject: &Subject, i: u64) -> Vec<Patch> {
    let blocks: Vec<u64> = subject.ring_blocks().collect();
    let (a, b) = pair(blocks.len() as u64, i);
    swap(subject, blocks[a], blocks[b])
}

fn swap(subject: &Subject, a: u64, b: u64) -> Vec<Patch> {
    vec![meta(a, subject.meta_block(b).to_vec()), meta(b, subject.meta_block(a).to_vec())]
}

fn old_ring(subject: &Subject) -> Vec<Patch> {
    let ring = subject.ring_blocks();
    ring.flat_map(|block| subject.meta_old[&block].iter().map(move |old| meta(block, old.clone()))).collect()
}

/// Everything else of the meta region that once lay where something is now.
fn old_meta(subject: &Subject) -> Vec<Patch> {
    let ring: Vec<u64> = subject.ring_blocks().collect();
    let copies = COPIES.map(|(_, at)| (at / BLOCK) as u64);
    let rest = subject.meta_old.iter().filter(|(block, _)| !ring.contains(block) && !copies.contains(block));
    rest.flat_map(|(block, olds)| olds.iter().map(|old| meta(*block, old.clone()))).collect()
}

fn old_data(subject: &Subject) -> Vec<Patch> {
    let all = subject.data_old.iter();
    all.flat_map(|(block, olds)| olds.iter().map(|old| data(*block, old.clone()))).collect()
}

/// A record whose own sums are right, but that is not the one that its follower was chained to: 64 places in each.
fn forged_record(subject: &Subject, i: u64) -> Vec<Patch> {
    let record = subject.kept_record((i / 64) as usize);
    let at = subject.sb.ring_at() + record.offset;
    let block = (at / BLOCK) as u64;
    let mut bytes = subject.meta_block(block).to_vec();
    // The first places are what the header says of lsn, payload, chain, epoch, durable and named; the rest is payload.
    let fields = [24, 32, 40, 44, 56, 64, 72, 80];
    match fields.get((i % 64) as usize) {
        Some(field) => bytes[*field] ^= 1,
        None => {
            let inside = record.payload.clamp(1, BLOCK - HEADER);
            bytes[HEADER + (i % 64) as usize * inside / 64] ^= 1;
        }
    }
    let payload = record.bytes().skip(HEADER).map(|at| {
        let at = subject.sb.ring_at() + at;
        if at / BLOCK == block as usize { bytes[at % BLOCK] } else { subject.meta[at] }
    });
    let payload: Vec<u8> = payload.collect();
    layout::seal_payload(&mut bytes, &payload);
    layout::seal_header(&mut bytes[..HEADER]);
    vec![meta(block, bytes)]
}

fn bitmap_word(subject: &Subject, i: u64, seed: u64) -> Vec<Patch> {
    let block = (subject.sb.bitmap_at((i / WORDS) as u32) / BLOCK) as u64;
    vec![meta(block, flipped(subject.meta_block(block), i % WORDS * 64 + mix(seed, i) % 64))]
}

/// A bit of each word of each node; `forged` with its own checksum made right, so that only its referrer can tell.
fn node_word(subject: &Subject, i: u64, seed: u64, forged: bool) -> Vec<Patch> {
    let node = &subject.nodes[(i / WORDS) as usize];
    let block = (node.at / BLOCK) as u64;
    let mut bytes = flipped(subject.meta_block(block), i % WORDS * 64 + mix(seed, i) % 64);
    if forged {
        layout::seal_node(&mut bytes[..NODE]);
    }
    vec![meta(block, bytes)]
}

fn swap_nodes(subject: &Subject, i: u64) -> Vec<Patch> {
    let (a, b) = pair(subject.nodes.len() as u64, i);
    let [a, b] = [a, b].map(|n| (subject.nodes[n].at / BLOCK) as u64);
    swap(subject, a, b)
}

/// A real byte of a block, or one of the padding after them; a free block has neither, and any byte will do.
fn data_bit(subject: &Subject, block: u64, seed: u64, real: bool) -> Vec<Patch> {
    let bits = match (subject.holders.get(&block), real) {
        (Some(holder), true) => 0..holder.real as u64 * 8,
        (Some(holder), false) => holder.real as u64 * 8..BITS,
        (None, _) => 0..BITS,
    };
    let Some(len) = (bits.end - bits.start).checked_sub(1) else { return Vec::new() };
    vec![data(block, flipped(subject.data_block(block), bits.start + mix(seed, block) % (len + 1)))]
}

fn swap_data(subject: &Subject, i: u64) -> Vec<Patch> {
    let (a, b) = pair((subject.data.len() / BLOCK) as u64, i);
    let (a, b) = (a as u64, b as u64);
    vec![data(a, subject.data_block(b).to_vec()), data(b, subject.data_block(a).to_vec())]
}

/// Node blocks that no tree reaches, and the bitmap area of the generation before.
fn free_meta(subject: &Subject) -> Vec<u64> {
    let sb = &subject.sb;
    let reached: Vec<usize> = subject.nodes.iter().map(|node| node.at).collect();
    let free = (0..sb.node_blocks).map(|block| sb.node_at(block)).filter(|at| !reached.contains(at));
    let other = sb.bitmap_at(1 - sb.area);
    free.chain([other]).map(|at| (at / BLOCK) as u64).collect()
}

/// Each of them filled with a node that is whole, and belongs elsewhere; the last case is all at once, and free data too.
fn spoil_free(subject: &Subject, free: &[u64], i: u64) -> Vec<Patch> {
    let node = &subject.nodes[i as usize % subject.nodes.len()];
    let bytes = subject.meta_block((node.at / BLOCK) as u64);
    if (i as usize) + 1 < free.len() {
        return vec![meta(free[i as usize], bytes.to_vec())];
    }
    let blocks = (0..(subject.data.len() / BLOCK) as u64).filter(|b| !subject.holders.contains_key(b));
    let mut patches: Vec<Patch> = free.iter().map(|block| meta(*block, bytes.to_vec())).collect();
    patches.extend(blocks.map(|block| data(block, bytes.to_vec())));
    patches
}
