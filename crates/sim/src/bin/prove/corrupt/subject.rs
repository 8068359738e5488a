//! A target at one moment, laid open: where its structures lie, who holds which data block, and what it answers whole.

use crate::layout::{self, HEADER, RING, Reached, Record, Super};
use cobalt_base::Fid;
use cobalt_sim::image::{BLOCK, History};
use cobalt_sim::populate::{Model, Moment};
use cobalt_store::TreeRow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The part of a chunk that lies in one data block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub fid: Fid,
    /// The chunk: where it begins in the cob, and its real bytes.
    pub chunk: u64,
    pub len: u64,
    /// Real bytes in this block; the rest is padding.
    pub real: usize,
    /// A dead cob's blocks are read by nobody.
    pub alive: bool,
}

pub struct Subject {
    pub name: &'static str,
    pub meta: Arc<Vec<u8>>,
    pub data: Arc<Vec<u8>>,
    pub model: Model,
    /// What it answers without its last record.
    pub shorter: Model,
    pub sb: Super,
    pub nodes: Vec<Reached>,
    pub records: Vec<Record>,
    /// Those that are redone, in order: places in `records`.
    pub kept: Vec<usize>,
    /// Rows of the four trees after redo.
    pub rows: [Vec<TreeRow>; 4],
    pub holders: BTreeMap<u64, Holder>,
    /// What blocks held before.
    pub meta_old: History,
    pub data_old: History,
}

impl Subject {
    pub fn new(moment: &Moment, rows: [Vec<TreeRow>; 4], history: (&History, &History)) -> Subject {
        let sb = Super::of(&moment.meta);
        let records = layout::records(&moment.meta, &sb);
        let mut kept: Vec<usize> = (0..records.len()).filter(|i| records[*i].kept.is_some()).collect();
        kept.sort_by_key(|i| records[*i].kept);
        let holders = holders(&rows, &moment.model);
        Subject {
            name: moment.name,
            meta: moment.meta.clone(),
            data: moment.data.clone(),
            model: moment.model.clone(),
            shorter: moment.shorter.clone(),
            nodes: layout::nodes(&moment.meta, &sb),
            sb,
            records,
            kept,
            rows,
            holders,
            meta_old: before(&moment.meta, history.0),
            data_old: before(&moment.data, history.1),
        }
    }

    /// The kept records, by their place, that changed bytes of a ring block belong to, and whether to their headers.
    pub fn records_in(&self, ring_block: usize, changed: impl Fn(usize) -> bool) -> Vec<(usize, bool)> {
        let inside = ring_block * BLOCK..(ring_block + 1) * BLOCK;
        let hurt = |at: &usize| inside.contains(at) && changed(at % BLOCK);
        let kept = self.records.iter().filter_map(|record| Some((record.kept?, record)));
        let records = kept.filter(|(_, record)| record.bytes().any(|at| hurt(&at)));
        records.map(|(place, record)| (place, record.bytes().take(HEADER).any(|at| hurt(&at)))).collect()
    }

    pub fn kept_record(&self, place: usize) -> &Record {
        &self.records[self.kept[place]]
    }

    pub fn ring_block(&self) -> u64 {
        (self.sb.ring_at() / BLOCK) as u64
    }

    pub fn ring_blocks(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.ring_block();
        first..first + (RING / BLOCK) as u64
    }

    /// A meta block.
    pub fn meta_block(&self, block: u64) -> &[u8] {
        &self.meta[block as usize * BLOCK..][..BLOCK]
    }

    /// A data block.
    pub fn data_block(&self, block: u64) -> &[u8] {
        &self.data[block as usize * BLOCK..][..BLOCK]
    }

    /// Bytes of headers in the ring, whether their records are kept or not.
    pub fn headers(&self) -> Vec<usize> {
        self.records.iter().map(|record| self.sb.ring_at() + record.offset).collect()
    }

    /// Nodes on the way from the root to a node, without itself.
    pub fn above(&self, node: &Reached) -> Vec<u64> {
        let mut above = Vec::new();
        let mut at = node.parent;
        while let Some((block, _)) = at {
            above.push(block);
            at = self.nodes.iter().find(|n| n.block == block).and_then(|n| n.parent);
        }
        above
    }

    /// All keys in the leaves at and below a node.
    pub fn keys_below(&self, node: &Reached) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        for leaf in self.nodes.iter().filter(|n| n.tree == node.tree && n.level == 0) {
            if leaf.block == node.block || self.above(leaf).contains(&node.block) {
                let image = &self.meta[leaf.at..leaf.at + layout::NODE];
                keys.extend(layout::entries(image).map(|(_, key, _)| key.to_vec()));
            }
        }
        keys
    }
}

fn holders(rows: &[Vec<TreeRow>; 4], model: &Model) -> BTreeMap<u64, Holder> {
    let mut holders = BTreeMap::new();
    for row in &rows[1] {
        let TreeRow::Extents { fid, offset, len, extents, .. } = row else { continue };
        let chunk = model.cobs.get(fid).map_or(BLOCK as u64, |(chunk, _)| u64::from(*chunk));
        let blocks = extents.iter().flat_map(|e| e.start..e.start + u64::from(e.blocks));
        for (i, block) in (0u64..).zip(blocks) {
            let at = i * BLOCK as u64;
            let begin = at / chunk * chunk;
            let holder = Holder {
                fid: *fid,
                chunk: offset + begin,
                len: chunk.min(len - begin),
                real: (len - at).min(BLOCK as u64) as usize,
                alive: model.cobs.contains_key(fid),
            };
            holders.insert(block, holder);
        }
    }
    holders
}

/// Of each block, what it held before what it holds in `image`.
fn before(image: &[u8], history: &History) -> History {
    let older = history.iter().map(|(block, held)| {
        let now = &image[*block as usize * BLOCK..][..BLOCK];
        let at = held.iter().rposition(|bytes| bytes == now).unwrap_or(0);
        let mut older: Vec<Vec<u8>> = held[..at].iter().filter(|bytes| *bytes != now).cloned().collect();
        older.dedup();
        (*block, older)
    });
    older.collect()
}
