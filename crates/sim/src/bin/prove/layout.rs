//! The on-disk format as damage and fuzz need it: where each structure of an image lies, and its checksums made right
//! again after a change. Written from docs/format.md, and not with the store's own code: a mistake there is not made here.

use cobalt_base::checksum::xxh3;
use cobalt_sim::image::BLOCK;
use cobalt_sim::populate::{self, JOURNAL_LEN, META_LEN, NODE_SIZE};
use std::collections::BTreeMap;

pub const NODE: usize = NODE_SIZE as usize;
/// The ring and its blocks.
pub const RING: usize = JOURNAL_LEN as usize;
pub const HEADER: usize = 128;

pub fn u16_at(bytes: &[u8], at: usize) -> usize {
    let found = bytes.get(at..at + 2).and_then(|b| b.try_into().ok());
    usize::from(u16::from_le_bytes(found.unwrap_or_default()))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    u32::from_le_bytes(found.unwrap_or_default())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    u64::from_le_bytes(found.unwrap_or_default())
}

pub fn set_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Seed of the checksums of nodes and bitmaps.
pub fn tree_seed() -> u64 {
    xxh3(0x636f_6261_6c74_7472, populate::target().as_bytes())
}

/// Seed of the journal's checksums.
pub fn journal_seed() -> u64 {
    xxh3(0x6a6f_7572_6e61_6c31, populate::target().as_bytes())
}

/// Sum of a structure whose own sum lies in it, as zero.
fn sum_without(seed: u64, bytes: &mut [u8], at: usize) -> u64 {
    set_u64(bytes, at, 0);
    xxh3(seed, bytes)
}

pub fn seal_superblock(bytes: &mut [u8]) {
    let sum = sum_without(0x636f_6261_6c74_5342, bytes, 16);
    set_u64(bytes, 16, sum);
}

pub fn seal_node(bytes: &mut [u8]) -> u64 {
    let sum = sum_without(tree_seed(), bytes, 24).max(1);
    set_u64(bytes, 24, sum);
    sum
}

pub fn seal_header(bytes: &mut [u8]) -> u64 {
    let sum = sum_without(journal_seed(), &mut bytes[..HEADER], 120);
    set_u64(bytes, 120, sum);
    sum
}

/// The payload's sum goes into its header.
pub fn seal_payload(header: &mut [u8], payload: &[u8]) {
    set_u64(header, 88, xxh3(journal_seed(), payload));
}

/// Offsets of the four copies of a superblock, by slot and copy.
pub const COPIES: [(usize, usize); 4] =
    [(0, 0), (0, META_LEN - 2 * BLOCK), (1, BLOCK), (1, META_LEN - BLOCK)];

/// What the newest superblock says.
#[derive(Clone, Debug)]
pub struct Super {
    pub slot: usize,
    pub generation: u64,
    pub area: u32,
    pub ring_tail: usize,
    pub ring_chain: u64,
    pub checkpoint: u64,
    /// Block, generation, checksum, height.
    pub roots: [(u64, u64, u64, u32); 4],
    pub bitmap_len: usize,
    pub node_blocks: u64,
}

impl Super {
    /// The newest of an image; its copies are taken as good.
    pub fn of(meta: &[u8]) -> Super {
        let newest = COPIES.iter().max_by_key(|(_, at)| u64_at(meta, at + 120)).expect("four copies");
        let sb = &meta[newest.1..][..BLOCK];
        let root = |i: usize| {
            let at = 168 + 32 * i;
            (u64_at(sb, at), u64_at(sb, at + 8), u64_at(sb, at + 16), u32_at(sb, at + 24))
        };
        Super {
            slot: newest.0,
            generation: u64_at(sb, 120),
            area: u32_at(sb, 12),
            ring_tail: u64_at(sb, 152) as usize,
            ring_chain: u64_at(sb, 160),
            checkpoint: u64_at(sb, 144),
            roots: [0, 1, 2, 3].map(root),
            bitmap_len: u64_at(sb, 328) as usize,
            node_blocks: u64_at(sb, 336),
        }
    }

    pub fn bitmap_at(&self, area: u32) -> usize {
        2 * BLOCK + area as usize * self.bitmap_len
    }

    pub fn ring_at(&self) -> usize {
        2 * BLOCK + 2 * self.bitmap_len
    }

    pub fn node_at(&self, block: u64) -> usize {
        self.ring_at() + RING + block as usize * NODE
    }
}

/// The entries of a node, as its slots say: offset of the cell, key, value. What lies outside of it is left out.
pub fn entries(node: &[u8]) -> impl Iterator<Item = (usize, &[u8], &[u8])> {
    (0..u16_at(node, 6)).filter_map(|i| {
        let cell = u16_at(node, 40 + 2 * i);
        let (key, value) = (u16_at(node, cell), u16_at(node, cell + 2));
        let from = cell + 4;
        Some((cell, node.get(from..from + key)?, node.get(from + key..from + key + value)?))
    })
}

/// A node that the trees reach.
#[derive(Clone, Debug)]
pub struct Reached {
    pub block: u64,
    pub at: usize,
    pub tree: usize,
    pub level: usize,
    /// Node block of its parent, and where in it the pointer lies; none for a root.
    pub parent: Option<(u64, usize)>,
}

/// All nodes, parents first; each block once.
pub fn nodes(meta: &[u8], sb: &Super) -> Vec<Reached> {
    let mut found: Vec<Reached> = Vec::new();
    let mut seen = BTreeMap::new();
    for (tree, root) in sb.roots.iter().enumerate() {
        let mut open = Vec::new();
        if root.3 > 0 {
            open.push((root.0, root.3 as usize - 1, None));
        }
        while let Some((block, level, parent)) = open.pop() {
            if block >= sb.node_blocks || seen.insert(block, ()).is_some() {
                continue;
            }
            let at = sb.node_at(block);
            let Some(node) = meta.get(at..at + NODE) else { continue };
            found.push(Reached { block, at, tree, level, parent });
            if level > 0 {
                let children = entries(node).filter(|(_, _, value)| value.len() == 24);
                open.extend(children.map(|(cell, key, value)| {
                    (u64_at(value, 0), level - 1, Some((block, cell + 4 + key.len())))
                }));
            }
        }
    }
    found
}

/// A record whose header's checksum holds.
#[derive(Clone, Debug)]
pub struct Record {
    /// Offset in the ring.
    pub offset: usize,
    pub first: u64,
    pub count: u32,
    pub payload: usize,
    /// Its place among those that are redone.
    pub kept: Option<usize>,
}

impl Record {
    pub fn len(&self) -> usize {
        (HEADER + self.payload).next_multiple_of(BLOCK)
    }

    /// Ring bytes of header and payload, around the end.
    pub fn bytes(&self) -> impl Iterator<Item = usize> + use<> {
        let (offset, payload) = (self.offset, self.payload);
        (0..HEADER + payload).map(move |i| (offset + i) % RING)
    }
}

/// All records in the ring, by offset.
pub fn records(meta: &[u8], sb: &Super) -> Vec<Record> {
    let ring = &meta[sb.ring_at()..][..RING];
    let mut found = BTreeMap::new();
    for offset in (0..RING).step_by(BLOCK) {
        let header = &ring[offset..offset + HEADER];
        let mut copy = header.to_vec();
        if &header[..8] == b"COBALTJR" && seal_header(&mut copy) == u64_at(header, 120) {
            let record = Record {
                offset,
                first: u64_at(header, 24),
                count: u32_at(header, 40),
                payload: u32_at(header, 44) as usize,
                kept: None,
            };
            found.insert(offset, record);
        }
    }
    let (mut at, mut chain, mut next) = (sb.ring_tail, sb.ring_chain, sb.checkpoint + 1);
    let mut kept = 0;
    while let Some(record) = found.get_mut(&at) {
        let header = &ring[at..at + HEADER];
        if record.kept.is_some() || u64_at(header, 56) != chain || record.first != next {
            break;
        }
        record.kept = Some(kept);
        kept += 1;
        (chain, next) = (u64_at(header, 120), next + u64::from(record.count));
        at = (at + record.len()) % RING;
    }
    found.into_values().collect()
}
