//! One thread's place of work: the subject's image under a store, damage over it, and the judgement of what the store
//! and `fsck` say then.

use super::subject::{Holder, Subject};
use crate::layout;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::Ctx;
use cobalt_sim::image::{BLOCK, ImageDisk};
use cobalt_sim::populate::{Model, limits};

use cobalt_store::tree::TreeId;
use cobalt_store::{
    FsckOptions, FsckReport, OpenError, OpenOptions, Regions, Side, Store, StoreError, TreeRow, fsck,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A block that holds something else than it should.
#[derive(Clone, Debug)]
pub struct Patch {
    pub side: Side,
    pub block: u64,
    pub bytes: Vec<u8>,
}

/// What came of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was found: a verdict, or an error of every read through it.
    Detected,
    /// The last record, which nothing says was durable, was dropped.
    Dropped,
    /// Nothing refers to what was hurt, and nothing changed.
    Harmless,
    /// The damage changes no byte.
    Nothing,
}

/// How much is looked at after damage, beside what it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Where the journal ended, and the counts.
    Status,
    /// Every row of every tree.
    Rows,
    /// Every answer, and `fsck`.
    All,
}

/// What is hurt, by what must come of it.
#[derive(Default)]
struct Hurt {
    bitmap: bool,
    records: BTreeSet<usize>,
    /// Those of them whose headers say nothing any more.
    headers: BTreeSet<usize>,
    nodes: BTreeSet<usize>,
    chunks: BTreeSet<(cobalt_base::Fid, u64, u64)>,
}

pub struct Bench {
    pub ctx: Ctx,
    pub subject: Arc<Subject>,
    pub meta: ImageDisk,
    pub data: ImageDisk,
    pub regions: Regions,
    pub arena: Arena,
    meta_arena: Arena,
    /// The subject, open and whole, for damage of data alone.
    reader: Store,
    /// Whether the last record's loss can be seen in the answers.
    last_matters: bool,
}

impl Bench {
    pub async fn new(ctx: &Ctx, subject: Arc<Subject>) -> Result<Bench, String> {
        let arena = || Arena::new(ArenaConfig { limit: 16 << 20 }).map_err(|e| e.to_string());
        let (meta, data) = (ImageDisk::new(subject.meta.clone()), ImageDisk::new(subject.data.clone()));
        let regions = Regions { meta: meta.region(), data: data.region() };
        let (arena, meta_arena) = (arena()?, arena()?);
        let reader = open(ctx, &regions, &arena, &meta_arena).await.map_err(|e| e.to_string())?;
        let ctx = ctx.clone();
        let mut bench =
            Bench { ctx, subject, meta, data, regions, arena, meta_arena, reader, last_matters: false };
        bench.last_matters = bench.does_last_matter().await?;
        Ok(bench)
    }

    pub async fn open(&self) -> Result<Store, OpenError> {
        open(&self.ctx, &self.regions, &self.arena, &self.meta_arena).await
    }

    pub async fn fsck(&self, data: bool) -> Result<FsckReport, String> {
        let options = FsckOptions { data, limits: limits(), ..FsckOptions::default() };
        fsck(&self.ctx, &self.regions, &self.arena, &options).await.map_err(|e| format!("fsck: {e}"))
    }

    async fn does_last_matter(&self) -> Result<bool, String> {
        let Some(last) = self.subject.kept.last() else { return Ok(false) };
        let at = self.subject.sb.ring_at() + self.subject.records[*last].offset;
        self.meta.set_block((at / BLOCK) as u64, &[0; BLOCK]);
        let store = self.open().await.map_err(|e| format!("without its last record: {e}"))?;
        self.meta.reset();
        let whole = self.subject.model.ask(&store).await.all_right();
        let shorter = self.subject.shorter.ask(&store).await.all_right();
        match (whole, shorter) {
            (true, _) => Ok(false),
            (_, true) => Ok(true),
            _ => Err("without its last record it answers neither as before nor as after it".into()),
        }
    }

    /// Does the damage, judges what comes of it, and takes it back.
    pub async fn check(&self, patches: &[Patch], forged: bool, depth: Depth) -> Result<Seen, String> {
        let mut hurt = Hurt::default();
        let mut same = true;
        for patch in patches {
            let old = match patch.side {
                Side::Meta => self.subject.meta_block(patch.block),
                Side::Data => self.subject.data_block(patch.block),
            };
            same &= old == patch.bytes;
            self.sort(patch, old, &mut hurt);
        }
        if same {
            return Ok(Seen::Nothing);
        }
        for patch in patches {
            match patch.side {
                Side::Meta => self.meta.set_block(patch.block, &patch.bytes),
                Side::Data => self.data.set_block(patch.block, &patch.bytes),
            }
        }
        let only_data = patches.iter().all(|patch| patch.side == Side::Data);
        let seen = self.judge(&hurt, only_data, forged, depth).await;
        self.meta.reset();
        self.data.reset();
        seen
    }

    fn sort(&self, patch: &Patch, old: &[u8], hurt: &mut Hurt) {
        let differs = |i: usize| old[i] != patch.bytes[i];
        if patch.side == Side::Data {
            if let Some(Holder { fid, chunk, len, real, alive: true }) =
                self.subject.holders.get(&patch.block)
                && (0..*real).any(differs)
            {
                hurt.chunks.insert((*fid, *chunk, *len));
            }
            return;
        }
        let (sb, at) = (&self.subject.sb, patch.block as usize * BLOCK);
        let changed = (0..BLOCK).any(differs);
        let ring = self.subject.ring_blocks().position(|block| block == patch.block);
        if let Some(ring) = ring {
            for (record, header) in self.subject.records_in(ring, differs) {
                hurt.records.insert(record);
                if header {
                    hurt.headers.insert(record);
                }
            }
        } else if (sb.bitmap_at(sb.area)..sb.bitmap_at(sb.area) + sb.bitmap_len).contains(&at) {
            hurt.bitmap |= changed;
        } else if let Some(node) = self.subject.nodes.iter().position(|node| node.at == at && changed) {
            hurt.nodes.insert(node);
        }
    }

    async fn judge(&self, hurt: &Hurt, only_data: bool, forged: bool, depth: Depth) -> Result<Seen, String> {
        let subject = &*self.subject;
        if only_data {
            return self.judge_data(&self.reader, hurt, depth).await;
        }
        let opened = self.open().await;
        // A later header that holds says that the first hurt record was durable.
        let count = subject.kept.len();
        let durable = |first: &usize| (first + 1..count).any(|later| !hurt.headers.contains(&later));
        if let Some(first) = hurt.records.first().filter(|first| durable(first)) {
            let ends =
                subject.kept[*first..].iter().map(|i| subject.sb.ring_at() + subject.records[*i].offset);
            // One that was forged is whole in itself: its follower is not chained to it.
            let places: Vec<usize> = ends.take(if forged { 2 } else { 1 }).collect();
            // A forged record may name a superblock that never was: that one is what is missed then.
            let missed = |error: &OpenError| {
                matches!(error, OpenError::Damaged { what, expected, .. }
                    if what == "superblock" && expected.ends_with("which the journal names"))
            };
            let (what, places) = match &opened {
                Err(error) if forged && missed(error) => ("superblock", vec![0]),
                _ => ("journal", places),
            };
            let seen = stopped(opened, what, &places)?;
            if depth == Depth::All {
                self.named(&places, None).await?;
            }
            return Ok(seen);
        }
        if hurt.bitmap {
            let at = subject.sb.bitmap_at(subject.sb.area);
            let seen = stopped(opened, "node bitmap", &[at])?;
            if depth == Depth::All {
                self.named(&[at], None).await?;
            }
            return Ok(seen);
        }
        if !hurt.nodes.is_empty() {
            self.judge_nodes(opened, hurt, depth).await?;
            return Ok(Seen::Detected);
        }
        let store = opened.map_err(|e| format!("is not opened: {e}"))?;
        let dropped = !hurt.records.is_empty();
        if hurt.records.len() > 1 {
            // Further back than any model goes.
            all_rows(&store).await.map_err(|e| format!("after a torn tail: {e}"))?;
            return Ok(Seen::Dropped);
        }
        if dropped && self.last_matters {
            all_right(&subject.shorter, &store).await?;
        } else {
            if !dropped && depth >= Depth::Rows {
                self.rows_are_right(&store, &BTreeSet::new(), &[], depth).await?;
            } else if !dropped && store.status() != self.reader.status() {
                return Err(format!("{:?} instead of {:?}", store.status(), self.reader.status()));
            }
            if depth == Depth::All {
                all_right(&subject.model, &store).await?;
            }
        }
        if depth == Depth::All {
            let report = self.fsck(true).await?;
            if !report.is_sound() {
                return Err(format!("fsck finds what is not hurt: {:?}", report.findings));
            }
        }
        if dropped { Ok(Seen::Dropped) } else { self.judge_data(&store, hurt, depth).await }
    }

    async fn judge_data(&self, store: &Store, hurt: &Hurt, depth: Depth) -> Result<Seen, String> {
        for (fid, chunk, len) in &hurt.chunks {
            match store.cob_read(*fid, *chunk, *len).await {
                Err(StoreError::Corrupt { fid: named, offset, .. }) if named == *fid && offset == *chunk => {}
                Ok(_) => return Err(format!("cob {fid} at {chunk}: damaged bytes were read")),
                Err(error) => return Err(format!("cob {fid} at {chunk}: not called damaged: {error}")),
            }
        }
        if depth == Depth::All {
            let answers = self.subject.model.ask(store).await;
            if !answers.wrong.is_empty() || answers.errors.len() != hurt.chunks.len() {
                return Err(format!("{} chunks are hurt, and the answers: {answers:?}", hurt.chunks.len()));
            }
            let report = self.fsck(true).await?;
            for (fid, chunk, _) in &hurt.chunks {
                let place = format!("{chunk}");
                let named = report.findings.iter().any(|f| {
                    let side = f.at.is_some_and(|at| at.side == Side::Data);
                    let text = format!("{} {}", f.expected, f.found);
                    side && f.touched.fids.contains(fid) && text.contains(&place)
                });
                if !named {
                    return Err(format!("fsck does not name cob {fid} at {chunk}: {:?}", report.findings));
                }
            }
            if hurt.chunks.is_empty() && !report.is_sound() {
                return Err(format!("fsck finds what is not hurt: {:?}", report.findings));
            }
        }
        Ok(if hurt.chunks.is_empty() { Seen::Harmless } else { Seen::Detected })
    }

    async fn judge_nodes(
        &self,
        opened: Result<Store, OpenError>,
        hurt: &Hurt,
        depth: Depth,
    ) -> Result<(), String> {
        let nodes: Vec<_> = hurt.nodes.iter().map(|i| &self.subject.nodes[*i]).collect();
        let places: Vec<usize> = nodes.iter().map(|node| node.at).collect();
        match opened {
            Err(error) => stopped(Err(error), "btree node", &places).map(drop)?,
            Ok(store) => {
                let trees: BTreeSet<usize> = nodes.iter().map(|node| node.tree).collect();
                self.rows_are_right(&store, &trees, &places, depth).await?;
                if depth == Depth::All {
                    let answers = self.subject.model.ask(&store).await;
                    if !answers.wrong.is_empty() {
                        return Err(format!("wrong answers: {:?}", answers.wrong));
                    }
                }
            }
        }
        if depth == Depth::All {
            for node in &nodes {
                // What lies below a damaged node cannot be reached.
                let hidden = nodes.iter().any(|n| self.subject.above(node).contains(&n.block));
                if !hidden {
                    self.named(&[node.at], Some((node.tree, self.subject.keys_below(node)))).await?;
                }
            }
        }
        Ok(())
    }

    /// Rows of the trees that are hurt give an error with an address; the other trees give what they held.
    async fn rows_are_right(
        &self,
        store: &Store,
        hurt: &BTreeSet<usize>,
        places: &[usize],
        depth: Depth,
    ) -> Result<(), String> {
        for tree in TreeId::ALL {
            let number = tree as usize;
            if depth < Depth::Rows && !hurt.contains(&number) {
                continue;
            }
            match (store.rows(tree, &[], usize::MAX).await, hurt.contains(&number)) {
                (Ok((rows, _)), false) if rows == self.subject.rows[number] => {}
                (Ok(_), false) => return Err(format!("tree {tree:?} is not hurt and has other rows")),
                (Err(error), false) => return Err(format!("tree {tree:?} is not hurt: {error}")),
                (Ok(_), true) => return Err(format!("a scan of tree {tree:?} does not meet the damage")),
                (Err(StoreError::Damaged(corrupt)), true) if places.contains(&(corrupt.address as usize)) => {
                }
                (Err(error), true) => return Err(format!("tree {tree:?}: not the damage: {error}")),
            }
        }
        Ok(())
    }

    /// `fsck` names one of the places, and the keys that cannot be reached.
    async fn named(&self, places: &[usize], lost: Option<(usize, Vec<Vec<u8>>)>) -> Result<(), String> {
        let report = self.fsck(false).await?;
        let mut there = report.findings.iter().filter(|f| {
            let address = f.at.filter(|at| at.side == Side::Meta).map(|at| at.address as usize);
            address.is_some_and(|at| places.contains(&at))
        });
        let Some((tree, keys)) = lost else {
            return match there.next() {
                Some(finding) if finding.is_fatal() => Ok(()),
                other => Err(format!("fsck names no fatal damage at {places:x?}: {other:?} {report:?}")),
            };
        };
        let covers = there.any(|finding| {
            let Some(lost) = &finding.touched.lost else { return false };
            let inside = |key: &Vec<u8>| *key >= lost.from && lost.until.as_ref().is_none_or(|u| key < u);
            lost.tree as usize == tree && keys.iter().all(inside)
        });
        match covers {
            true => Ok(()),
            false => Err(format!("fsck does not name what node {places:x?} held: {:?}", report.findings)),
        }
    }

    /// Damage of superblock copies: which of them can still be read, newest first, decides.
    pub async fn check_superblocks(&self, patches: &[Patch], depth: Depth) -> Result<Seen, String> {
        for patch in patches {
            self.meta.set_block(patch.block, &patch.bytes);
        }
        let seen = self.judge_superblocks(patches, depth).await;
        self.meta.reset();
        seen
    }

    async fn judge_superblocks(&self, patches: &[Patch], depth: Depth) -> Result<Seen, String> {
        let newest = self.subject.sb.generation;
        let slot = self.subject.sb.slot;
        let mut best = None;
        let mut hurt = Vec::new();
        for (copy_slot, at) in layout::COPIES {
            let block = self.meta.block((at / BLOCK) as u64);
            let mut sealed = block.clone();
            layout::seal_superblock(&mut sealed);
            let generation = layout::u64_at(&block, 120);
            let holds = sealed == block && block[..8] == *b"COBALTSB" && generation % 2 == copy_slot as u64;
            if holds {
                best = best.max(Some(generation));
            }
            if copy_slot == slot && (!holds || generation != newest) {
                hurt.push(at);
            }
        }
        let opened = self.open().await;
        if best == Some(newest) {
            let store = opened.map_err(|e| format!("is not opened, although a copy is whole: {e}"))?;
            if depth == Depth::All {
                self.rows_are_right(&store, &BTreeSet::new(), &[], depth).await?;
                all_right(&self.subject.model, &store).await?;
                let report = self.fsck(false).await?;
                for at in &hurt {
                    let named = report.findings.iter().any(|f| f.at.is_some_and(|a| a.address == *at as u64));
                    if !named {
                        return Err(format!("fsck does not name the copy at {at:#x}: {report:?}"));
                    }
                }
                if !report.is_sound() {
                    return Err(format!("a copy is whole: {:?}", report.findings));
                }
            }
            return Ok(Seen::Detected);
        }
        match opened.map(drop) {
            Err(OpenError::Damaged { .. }) => Ok(Seen::Detected),
            Err(OpenError::NotFormatted { .. }) if best.is_none() && patches.len() == 4 => Ok(Seen::Detected),
            Err(error) => Err(format!("not called damaged: {error}")),
            Ok(()) => Err(format!("opened with generation {best:?} of {newest}")),
        }
    }
}

async fn open(ctx: &Ctx, regions: &Regions, arena: &Arena, meta: &Arena) -> Result<Store, OpenError> {
    let options = OpenOptions {
        limits: limits(),
        read_only: true,
        meta_arena: Some(meta.clone()),
        ..OpenOptions::default()
    };
    Store::open(ctx.clone(), regions.clone(), arena.clone(), options).await
}

/// All rows of the four trees.
pub async fn all_rows(store: &Store) -> Result<[Vec<TreeRow>; 4], StoreError> {
    let mut all = <[Vec<TreeRow>; 4]>::default();
    for tree in TreeId::ALL {
        all[tree as usize] = store.rows(tree, &[], usize::MAX).await?.0;
    }
    Ok(all)
}

async fn all_right(model: &Model, store: &Store) -> Result<(), String> {
    let answers = model.ask(store).await;
    if answers.all_right() { Ok(()) } else { Err(format!("{answers:?}")) }
}

fn stopped(opened: Result<Store, OpenError>, what: &str, places: &[usize]) -> Result<Seen, String> {
    match opened.map(drop) {
        Err(OpenError::Damaged { what: found, address, expected, .. })
            if found == what && places.contains(&(address as usize)) && !expected.is_empty() =>
        {
            Ok(Seen::Detected)
        }
        Err(error) => Err(format!("not a verdict about the {what} at {places:x?}: {error}")),
        Ok(()) => Err(format!("opened, although the {what} at {places:x?} is hurt")),
    }
}
