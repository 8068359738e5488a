//! Checking a target that is not in use. Nothing is written: the journal is replayed in memory.
//!
//! Proves: every superblock copy and node holds; every data block is in exactly one of free or one extent;
//! every extent has a cob; sums and counts match. With `data`, every chunk's checksum is checked too.

mod kind;
mod progress;
mod report;

pub use kind::FindingKind;
pub use progress::{Progress, ProgressFn};
pub use report::{At, FINDINGS_MAX, Finding, FsckReport, LostKeys, Side, TOUCHED_MAX, Touched};

use crate::apply;
use crate::balloc;
use crate::error::{OpenError, StoreError};
use crate::limits::Limits;
use crate::options::OpenOptions;
use crate::region::Regions;
use crate::schema::{self, COB, COUNT_KEY, CobRow, DEAD, FENCE, FREE, MapRow, SUMMARY, TOMB};
use crate::store::Store;
use crate::superblock::{self, Verdict};
use crate::tree::{self, TreeId};
use cobalt_base::{BLOCK_SIZE, Corrupt, Fid};
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use std::collections::BTreeMap;
use uuid::Uuid;

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct FsckOptions {
    /// Reads all data, and checks it.
    pub data: bool,
    /// Limits of the open target.
    pub limits: Limits,
    /// Most memory for the map of data blocks, in bytes; 0 is the default of 64 MiB. A larger data region takes
    /// several passes.
    pub map_bytes: u64,
    /// Told how far the check is.
    pub progress: Option<ProgressFn>,
}

struct Check<'a> {
    store: &'a Store,
    target: Uuid,
    report: FsckReport,
    /// Start → (end, owner); none for free.
    blocks: BTreeMap<u64, (u64, Option<Fid>)>,
    /// Cobs and dead cobs, with the blocks that their rows add up to.
    cobs: BTreeMap<Fid, (CobRow, bool, u64, u64)>,
}

/// Checks a target.
///
/// # Errors
/// [`OpenError`] when the device does not answer or holds no target; damage is a finding.
pub async fn fsck(
    ctx: &Ctx,
    regions: &Regions,
    arena: &Arena,
    options: &FsckOptions,
) -> Result<FsckReport, OpenError> {
    let mut report = FsckReport::default();
    let copies = superblock::read_all(&regions.meta, arena).await;
    let newest = crate::recovery::choose(&copies)?;
    for copy in &copies {
        let why = match &copy.verdict {
            Verdict::Corrupt(why) => why.clone(),
            // Both copies of the newest generation should be there.
            Verdict::Blank if copy.slot == newest.slot() => "never written".into(),
            Verdict::Valid(sb) if copy.slot == newest.slot() && sb.generation != newest.generation => {
                format!("generation {}, its twin has {}", sb.generation, newest.generation)
            }
            _ => continue,
        };
        // The other slot may be torn by a crash in the middle of its rewriting.
        if copy.slot == newest.slot() {
            add(&mut report, newest.target, FindingKind::SuperblockCopy, Some(At::meta(copy.at)), None, why);
        }
    }
    let open =
        OpenOptions { cluster: None, limits: options.limits.clone(), read_only: true, meta_arena: None };
    let store = match Store::open(ctx.clone(), regions.clone(), arena.clone(), open).await {
        Ok(store) => store,
        Err(OpenError::Damaged { what: _, address, expected, found }) => {
            let why = format!("expected {expected}, found {found}");
            add(&mut report, newest.target, FindingKind::JournalLost, Some(At::meta(address)), None, why);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    let verified = tree::verify(&regions.meta, arena, &newest, |_, _, _| ()).await?;
    report.nodes = verified.trees.iter().map(|t| t.nodes).sum();
    for corrupt in verified.findings {
        add_corrupt(&mut report, newest.target, corrupt);
    }
    let mut check = Check {
        store: &store,
        target: newest.target,
        report,
        blocks: BTreeMap::new(),
        cobs: BTreeMap::new(),
    };
    if let Err(error) = check.run(options.data).await {
        let why = error.to_string();
        add(&mut check.report, newest.target, FindingKind::Node, None, None, why);
    }
    Ok(check.report)
}

fn add(
    report: &mut FsckReport,
    target: Uuid,
    kind: FindingKind,
    at: Option<At>,
    fid: Option<Fid>,
    found: String,
) {
    let touched = fid.map(Touched::fid).unwrap_or_default();
    report.add(Finding { kind, target: Some(target), at, expected: String::new(), found, touched });
}

fn add_corrupt(report: &mut FsckReport, target: Uuid, corrupt: Corrupt) {
    let kind = if corrupt.what == "node bitmap" { FindingKind::NodeBitmap } else { FindingKind::Node };
    add(report, target, kind, Some(At::meta(corrupt.address)), None, corrupt.why);
}

impl Check<'_> {
    async fn run(&mut self, data: bool) -> Result<(), StoreError> {
        self.cob_tree().await?;
        self.extent_map().await?;
        self.free_space().await?;
        self.every_block_once();
        self.sums();
        let mut from = Vec::new();
        while let Some((key, _)) = self.next(TreeId::Ctg, &from).await? {
            if schema::ctg_place(&key).is_none() {
                self.bad(FindingKind::CtgRow, None, None, format!("key {key:02x?}"));
            }
            self.report.entries += 1;
            from = after(key);
        }
        if data { self.all_data().await } else { Ok(()) }
    }

    async fn next(&self, tree: TreeId, from: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, StoreError> {
        self.store.0.look(|stage| Ok(stage.next(tree, from)?)).await
    }

    fn bad(&mut self, kind: FindingKind, address: Option<u64>, fid: Option<Fid>, why: String) {
        add(&mut self.report, self.target, kind, address.map(|a| At::data(a / BLOCK_SIZE)), fid, why);
    }

    async fn cob_tree(&mut self) -> Result<(), StoreError> {
        let mut from = Vec::new();
        let mut counted = 0u64;
        let mut fence_end = None;
        while let Some((key, value)) = self.next(TreeId::Cob, &from).await? {
            let kind = key.first().copied().unwrap_or(u8::MAX);
            match (kind, schema::key_fid(kind, &key)) {
                (COB | DEAD, Some(fid)) => match schema::decode::<CobRow>("cob row", &value) {
                    Ok(row) => {
                        self.report.cobs += u64::from(kind == COB);
                        if self.cobs.insert(fid, (row, kind == COB, 0, 0)).is_some() {
                            self.bad(FindingKind::CobRow, None, Some(fid), "both alive and dead".into());
                        }
                    }
                    Err(corrupt) => self.bad(FindingKind::CobRow, None, Some(fid), corrupt.why),
                },
                (TOMB, Some(fid)) => {
                    if self.cobs.get(&fid).is_some_and(|(_, alive, ..)| *alive) {
                        self.bad(FindingKind::CobTwice, None, Some(fid), "the cob is alive".into());
                    }
                }
                (FENCE, None) => match (schema::key_number(FENCE, &key), apply::fence_end(&value)) {
                    (Some(first), Ok(last))
                        if last.0 >= first && fence_end.is_none_or(|end: u64| end < first) =>
                    {
                        fence_end = Some(last.0);
                    }
                    _ => self.bad(FindingKind::FenceRow, None, None, format!("{key:02x?} {value:02x?}")),
                },
                _ if key == COUNT_KEY => counted = schema::decode("cob count", &value)?,
                _ => self.bad(FindingKind::UnknownRow, None, None, format!("unknown key {key:02x?}")),
            }
            from = after(key);
        }
        if counted != self.report.cobs {
            self.bad(FindingKind::CobCount, None, None, format!("{counted}, there are {}", self.report.cobs));
        }
        Ok(())
    }

    async fn extent_map(&mut self) -> Result<(), StoreError> {
        let mut from = Vec::new();
        let mut last = (Fid::MIN, 0u64);
        while let Some((key, value)) = self.next(TreeId::Extmap, &from).await? {
            let place = schema::extmap_place(&key);
            from = after(key);
            let Some((fid, offset)) = place else {
                self.bad(FindingKind::ExtentRow, None, None, "a key of another length".into());
                continue;
            };
            let row: MapRow = match schema::decode("extmap row", &value) {
                Ok(row) => row,
                Err(corrupt) => {
                    self.bad(FindingKind::ExtentRow, None, Some(fid), corrupt.why);
                    continue;
                }
            };
            let Some((cob, ..)) = self.cobs.get(&fid).copied() else {
                self.bad(FindingKind::ExtentRow, None, Some(fid), format!("at {offset}: no such cob"));
                continue;
            };
            let chunk = u64::from(cob.chunk_size.max(1));
            if !row.is_sound(cob.chunk_size, self.store.0.shape.data_blocks) || offset % chunk != 0 {
                self.bad(
                    FindingKind::ExtentRow,
                    None,
                    Some(fid),
                    format!("at {offset}: its parts do not agree"),
                );
                continue;
            }
            if row.generation != cob.generation {
                self.bad(
                    FindingKind::ExtentRow,
                    None,
                    Some(fid),
                    format!("at {offset}: of another generation"),
                );
            }
            if last.0 == fid && last.1 > offset {
                self.bad(
                    FindingKind::ExtentRow,
                    None,
                    Some(fid),
                    format!("at {offset}: overlaps the one before"),
                );
            }
            last = (fid, (offset + row.len).next_multiple_of(chunk));
            for extent in &row.extents {
                self.claim(extent.start, u64::from(extent.blocks), Some(fid));
                self.report.extents += 1;
            }
            if let Some((_, _, blocks, end)) = self.cobs.get_mut(&fid) {
                *blocks += row.blocks();
                *end = (*end).max(offset + row.len);
            }
        }
        Ok(())
    }

    fn claim(&mut self, start: u64, blocks: u64, owner: Option<Fid>) {
        match owner {
            Some(_) => self.report.blocks_used += blocks,
            None => self.report.blocks_free += blocks,
        }
        let end = start + blocks;
        let overlap = self.blocks.range(..end).next_back().filter(|(_, (until, _))| *until > start);
        if let Some((_, (_, other))) = overlap {
            let name = |o: Option<Fid>| o.map_or("free".to_owned(), |fid| format!("cob {fid}"));
            let why = format!("{blocks} blocks of {} are also of {}", name(owner), name(*other));
            self.bad(FindingKind::BlockTwice, Some(start * BLOCK_SIZE), owner.or(*other), why);
        }
        self.blocks.insert(start, (end, owner));
    }

    async fn free_space(&mut self) -> Result<(), StoreError> {
        let shape = self.store.0.shape;
        for group in 0..shape.groups() {
            let extents = self.store.0.look(|stage| balloc::tree_extents(stage, shape, group)).await?;
            let free: u64 = extents.values().sum();
            let key = schema::summary_key(group);
            let summary = self.store.0.look(|stage| Ok(stage.get(TreeId::Balloc, &key)?)).await?;
            if let Some(value) = summary {
                let says = u64::from(schema::decode_u32("group summary", &value)?);
                if says != free {
                    let why = format!("group {group} says {says} free blocks, there are {free}");
                    self.bad(FindingKind::GroupCount, None, None, why);
                }
            }
            for (start, blocks) in extents {
                self.claim(start, blocks, None);
            }
        }
        let mut from = Vec::new();
        while let Some((key, _)) = self.next(TreeId::Balloc, &from).await? {
            let known = match (schema::key_number(SUMMARY, &key), schema::key_number(FREE, &key)) {
                (Some(group), _) => group < shape.groups(),
                (_, Some(start)) => start < shape.data_blocks,
                _ => false,
            };
            if !known {
                self.bad(FindingKind::UnknownRow, None, None, format!("unknown key {key:02x?}"));
            }
            from = after(key);
        }
        Ok(())
    }

    fn every_block_once(&mut self) {
        let mut at = 0;
        let mut holes = Vec::new();
        for (start, (end, _)) in &self.blocks {
            if *start > at {
                holes.push((at, *start));
            }
            at = at.max(*end);
        }
        let total = self.store.0.shape.data_blocks;
        if at < total {
            holes.push((at, total));
        }
        for (from, until) in holes {
            let why = format!("{} blocks are neither free nor of a cob", until - from);
            self.bad(FindingKind::BlockTwice, Some(from * BLOCK_SIZE), None, why);
        }
    }

    fn sums(&mut self) {
        for (fid, (row, alive, blocks, end)) in std::mem::take(&mut self.cobs) {
            if row.blocks != blocks {
                let why = format!("says {} blocks, its extents have {blocks}", row.blocks);
                self.bad(FindingKind::CobRow, None, Some(fid), why);
            }
            if alive && row.size < end {
                self.bad(
                    FindingKind::CobRow,
                    None,
                    Some(fid),
                    format!("size {}, extents up to {end}", row.size),
                );
            }
        }
    }

    /// Reads every row of every cob that is alive.
    async fn all_data(&mut self) -> Result<(), StoreError> {
        let mut from = Vec::new();
        while let Some((key, value)) = self.next(TreeId::Extmap, &from).await? {
            let place = schema::extmap_place(&key);
            from = after(key);
            let Some((fid, offset)) = place else { continue };
            let Ok(row) = schema::decode::<MapRow>("extmap row", &value) else { continue };
            match self.store.cob_read(fid, offset, row.len).await {
                Ok(data) => self.report.data_bytes += data.len,
                Err(StoreError::Missing { .. }) => {} // Dead: being freed.
                Err(error) => {
                    let at = row.extents.first().map(|e| e.start * BLOCK_SIZE);
                    self.bad(FindingKind::Data, at, Some(fid), error.to_string());
                }
            }
        }
        Ok(())
    }
}

fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}
