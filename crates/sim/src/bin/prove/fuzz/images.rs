//! Whole images with something changed and every checksum made right: they are opened, checked, dumped, read and
//! written. Any of it may be refused; nothing may end the program, go on for ever or take memory without bound.

use super::mend::{mend, mend_ring};
use super::mutate::Dice;
use crate::layout::{COPIES, HEADER, NODE, RING, Super, entries, nodes, u16_at, u32_at};
use cobalt_base::Fid;
use cobalt_base::SessionId;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::Ctx;
use cobalt_sim::image::{BLOCK, ImageDisk};
use cobalt_sim::populate::{Moment, limits, put};
use cobalt_store::tree::TreeId;
use cobalt_store::{
    CtgOp, CtgView, FsckOptions, OpenOptions, Regions, Store, StoreError, TreeRow, dump_journal, fsck,
};
use std::sync::Arc;
use std::time::Duration;

/// Reads of one image: far more than anything that ends needs.
const READS_MAX: u64 = 200_000;
/// Rows of one tree that are looked at.
const ROWS_MAX: usize = 20_000;
/// Time on the image's own clock that all of a life may take.
const LIFE: Duration = Duration::from_secs(600);

pub struct Images {
    ctx: Ctx,
    moments: Vec<Moment>,
    arena: Arena,
    meta_arena: Arena,
}

/// What came of an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fate {
    pub opened: bool,
    pub found: bool,
}

impl Images {
    pub fn new(ctx: &Ctx, moments: Vec<Moment>) -> Images {
        let arena = || Arena::new(ArenaConfig { limit: 16 << 20 }).expect("memory for an arena");
        Images { ctx: ctx.clone(), moments, arena: arena(), meta_arena: arena() }
    }

    /// An image whose journal alone is changed.
    pub async fn ring(&self, dice: &mut Dice) -> Result<Fate, String> {
        let moment = dice.of(&self.moments).clone();
        let mut meta = moment.meta.to_vec();
        let sb = Super::of(&meta);
        let ring = sb.ring_at();
        for _ in 0..1 + dice.below(3) {
            let record = ring + dice.below(RING / BLOCK) * BLOCK;
            let payload = (u32_at(&meta, record + 44) as usize).clamp(1, BLOCK - HEADER);
            let (from, len) = match dice.below(3) {
                0 => (record, HEADER),
                1 => (record + HEADER, payload),
                _ => (record + 24, 72),
            };
            let other = ring + dice.below(RING / BLOCK) * BLOCK + (from - record);
            let other = moment.meta[other..other + len].to_vec();
            dice.change(&mut meta[from..from + len], &other);
        }
        mend_ring(&mut meta, &sb);
        let regions = self.regions(meta, &moment);
        let _ = dump_journal(&regions, &self.arena).await;
        let opened = self.open(&self.ctx, &regions, true).await.is_ok();
        Ok(Fate { opened, found: false })
    }

    /// An image with anything changed.
    pub async fn whole(&self, dice: &mut Dice) -> Result<Fate, String> {
        let moment = dice.of(&self.moments).clone();
        let mut meta = moment.meta.to_vec();
        let mut sb = Super::of(&meta);
        for _ in 0..1 + dice.below(3) {
            change_something(dice, &mut meta, &sb);
        }
        let now = Super::of(&meta);
        // What the sums are made right for must be there; a superblock that says otherwise is met as it is.
        if now.bitmap_len == sb.bitmap_len && now.node_blocks == sb.node_blocks {
            sb = Super { slot: sb.slot, ..now };
        }
        mend(&mut meta, &sb);
        let regions = self.regions(meta, &moment);
        let options = FsckOptions { data: true, limits: limits(), ..FsckOptions::default() };
        let report = fsck(&self.ctx, &regions, &self.arena, &options).await;
        let found = report.as_ref().map_or(true, |report| !report.is_clean());
        let _ = dump_journal(&regions, &self.arena).await;
        let opened = match self.open(&self.ctx, &regions, true).await {
            Ok(store) => {
                self.read(&store, &moment).await;
                true
            }
            Err(_) => false,
        };
        let scope = self.ctx.scope();
        let lived = self.ctx.timeout(LIFE, self.live(&scope.ctx(), &regions, &moment)).await;
        scope.kill();
        lived.map_err(|_| "a life on it never ends".to_owned())?;
        Ok(Fate { opened, found })
    }

    fn regions(&self, meta: Vec<u8>, moment: &Moment) -> Regions {
        let (meta, data) = (ImageDisk::new(Arc::new(meta)), ImageDisk::new(moment.data.clone()));
        meta.limit_reads(READS_MAX);
        data.limit_reads(READS_MAX);
        Regions { meta: meta.region(), data: data.region() }
    }

    async fn open(&self, ctx: &Ctx, regions: &Regions, read_only: bool) -> Result<Store, ()> {
        let options = OpenOptions {
            limits: limits(),
            read_only,
            meta_arena: Some(self.meta_arena.clone()),
            ..OpenOptions::default()
        };
        Store::open(ctx.clone(), regions.clone(), self.arena.clone(), options).await.map_err(drop)
    }

    /// Everything that can be read.
    async fn read(&self, store: &Store, moment: &Moment) {
        for tree in TreeId::ALL {
            let rows = store.rows(tree, &[], ROWS_MAX).await.map(|(rows, _)| rows).unwrap_or_default();
            for row in rows.into_iter().take(200) {
                if let TreeRow::Extents { fid, offset, len, .. } = row {
                    let _ = store.cob_read(fid, offset, len).await;
                }
            }
        }
        let _ = store.cob_next(Fid::MIN, ROWS_MAX).await;
        for (ctg, key) in moment.model.entries.keys().take(20) {
            let _ = store.ctg().get(*ctg, key).await;
            let _ = store.ctg().scan(*ctg, key, None, 50).await;
        }
        let _ = (store.status(), store.space(), store.counters());
    }

    /// A mount that writes, deletes, fences and closes.
    async fn live(&self, ctx: &Ctx, regions: &Regions, moment: &Moment) {
        let Ok(store) = self.open(ctx, regions, false).await else { return };
        let _: Result<(), StoreError> = async {
            let fids: Vec<Fid> = moment.model.cobs.keys().copied().collect();
            for (n, fid) in fids.iter().step_by(fids.len() / 8).enumerate() {
                if n % 2 == 0 {
                    let _ = store.cob_delete(*fid).await;
                } else {
                    let _ = put(&store, &self.arena, *fid, 4096, 0, &[n as u8; 6000]).await;
                }
            }
            let _ = put(&store, &self.arena, Fid::new(SessionId(77), 1), 4096, 0, &[7; 100_000]).await;
            let _ = store.fence(SessionId(2)).await;
            for (ctg, key) in moment.model.entries.keys().step_by(5) {
                let op = CtgOp::Put { ctg: *ctg, key: key.clone(), value: vec![5; 400] };
                let change = move |_: &CtgView| Ok((vec![op.clone()], ()));
                let _ = store.ctg().transact(change).await;
            }
            store.checkpoint().await
        }
        .await;
        let _ = store.close().await;
    }
}

fn change_something(dice: &mut Dice, meta: &mut [u8], sb: &Super) {
    let reached = nodes(meta, sb);
    match dice.below(10) {
        0 => {
            let copies = COPIES.iter().filter(|(slot, _)| *slot == sb.slot);
            let places: Vec<usize> = copies.map(|(_, at)| *at).collect();
            let mut copy = meta[places[0]..places[0] + 400].to_vec();
            let other = copy.clone();
            dice.change(&mut copy[24..], &other);
            for at in places {
                meta[at..at + 400].copy_from_slice(&copy);
            }
        }
        1 => {
            let at = sb.bitmap_at(sb.area % 2);
            let bytes = (sb.node_blocks as usize).div_ceil(8).min(BLOCK);
            let other = meta[at..at + bytes].to_vec();
            dice.change(&mut meta[at..at + bytes], &other);
        }
        2 => {
            let record = sb.ring_at() + dice.below(RING / BLOCK) * BLOCK;
            let payload = (u32_at(meta, record + 44) as usize).clamp(1, BLOCK - HEADER);
            let from = record + HEADER;
            let other = meta[from..from + payload].to_vec();
            dice.change(&mut meta[from..from + payload], &other);
        }
        kind if !reached.is_empty() => change_node(dice, meta, dice_node(kind), &reached),
        _ => {}
    }
}

/// What of a node is changed.
enum Part {
    Header,
    /// A value: a row, or a pointer to a child.
    Value,
    Key,
    /// Another node's content at this place.
    Whole,
}

fn dice_node(kind: usize) -> Part {
    match kind {
        3 => Part::Header,
        4 => Part::Whole,
        5 | 6 => Part::Key,
        _ => Part::Value,
    }
}

fn change_node(dice: &mut Dice, meta: &mut [u8], part: Part, reached: &[crate::layout::Reached]) {
    let node = dice.of(reached).clone();
    let other = dice.of(reached).clone();
    let other = meta[other.at..other.at + NODE].to_vec();
    let image = &mut meta[node.at..node.at + NODE];
    let count = u16_at(image, 6);
    let entry =
        entries(image).nth(dice.below(count)).map(|(cell, key, value)| (cell, key.len(), value.len()));
    match (part, entry) {
        (Part::Header, _) => dice.change(&mut image[..120], &other),
        (Part::Whole, _) => {
            let keep = image[8..24].to_vec();
            image.copy_from_slice(&other);
            // Its own place and generation, so that the referrer finds what it names.
            image[8..24].copy_from_slice(&keep);
        }
        (Part::Key, Some((cell, key, _))) => dice.change(&mut image[cell + 4..cell + 4 + key], &other),
        (Part::Value, Some((cell, key, value))) => {
            let from = cell + 4 + key;
            dice.change(&mut image[from..from + value], &other);
        }
        (_, None) => {}
    }
}
