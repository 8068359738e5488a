//! Checking a target that is not in use. Nothing is written: the journal is redone in memory, and what is checked is the
//! state after it, as the next start will have it.
//!
//! Proves: every superblock copy and node holds; every data block is in exactly one of free or one extent; every extent
//! has a cob; sums and counts match. With `data`, every chunk's checksum is checked too. Damage is a finding, and the check
//! goes on past it.
//!
//! Memory does not grow with what the target holds. It is: the journal's ring while it is read (at most 64 MiB), the
//! nodes that redo changes (those of one checkpoint), two bits for each node block, one path of nodes for each of four
//! cursors, a bit for each data block up to [`FsckOptions::map_bytes`] (64 MiB are 2 TiB of data; more takes further passes
//! over the extent map), 64 chunks of data in flight, and at most [`FINDINGS_MAX`] findings of [`TOUCHED_MAX`] objects each.

mod blocks;
mod data;
mod join;
mod kind;
mod progress;
mod report;
mod space;
mod start;
pub(crate) mod stream;

pub use kind::FindingKind;
pub use progress::{Progress, ProgressFn};
pub use report::{At, FINDINGS_MAX, Finding, FsckReport, LostKeys, Side, TOUCHED_MAX, Touched};

use crate::apply::Shape;
use crate::error::OpenError;
use crate::inline::Unwritten;
use crate::limits::Limits;
use crate::recovery::{self, Findings};
use crate::region::Regions;
use crate::schema;
use crate::superblock::{self, Superblock};
use crate::tree::{self, FaultKind, Lost, Row, Source, Step, TreeId};
use crate::verdict;
use blocks::Claims;
use cobalt_base::BLOCK_SIZE;
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use progress::Meter;
use std::collections::HashMap;
use std::rc::Rc;
use uuid::Uuid;

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct FsckOptions {
    /// Reads all data, and checks it.
    pub data: bool,
    /// The cluster that it must belong to; `None` takes any.
    pub cluster: Option<Uuid>,
    /// The target that it must be; `None` takes any.
    pub target: Option<Uuid>,
    /// Limits of the open target.
    pub limits: Limits,
    /// Most memory for the map of data blocks, in bytes; 0 is the default of 64 MiB. A larger data region takes
    /// several passes.
    pub map_bytes: u64,
    /// Told how far the check is.
    pub progress: Option<ProgressFn>,
}

/// Checks a target.
///
/// # Errors
/// [`OpenError`] when the device holds no target, or one whose superblock cannot be had; other damage is a finding.
pub async fn fsck(
    ctx: &Ctx,
    regions: &Regions,
    arena: &Arena,
    options: &FsckOptions,
) -> Result<FsckReport, OpenError> {
    let (mut check, findings) = begin(ctx, regions, arena, options).await?;
    let Some(journal) = check.journal(&findings) else { return Ok(check.report) };
    let whole = check.structure(journal.redoes()).await;
    let source = check.redo(ctx, journal, whole).await;
    if check.report.redone > 0 {
        check.catalogues(&source).await;
    }
    check.rows(&source).await;
    check.meter.end();
    Ok(check.report)
}

/// What whoever only looks begins with: the newest superblock, the trees as the next start will have them, and what is
/// wrong with superblocks and journal.
pub(crate) async fn look(
    ctx: &Ctx,
    regions: &Regions,
    arena: &Arena,
    options: &FsckOptions,
) -> Result<(Superblock, Source, FsckReport), OpenError> {
    let (mut check, findings) = begin(ctx, regions, arena, options).await?;
    let source = match check.journal(&findings) {
        Some(journal) => check.redo(ctx, journal, true).await,
        None => Source::checkpoint(&regions.meta, arena, &check.superblock),
    };
    Ok((check.superblock, source, check.report))
}

/// The newest superblock, what its copies look like, and what recovery found.
async fn begin<'a>(
    ctx: &Ctx,
    regions: &'a Regions,
    arena: &'a Arena,
    options: &'a FsckOptions,
) -> Result<(Check<'a>, Findings), OpenError> {
    let copies = superblock::read_all(&regions.meta, arena).await;
    let findings = recovery::judge(ctx, regions, arena, &copies, options.cluster).await;
    let superblock = match findings.superblock() {
        Ok(superblock) => superblock,
        Err(error) => return Err(verdict::explain(regions, arena, error).await),
    };
    recovery::belongs(&superblock, options.target)?;
    let mut check = Check::new(regions, arena, options, superblock);
    check.copies(&copies);
    Ok((check, findings))
}

/// A check that runs.
struct Check<'a> {
    regions: &'a Regions,
    arena: &'a Arena,
    options: &'a FsckOptions,
    superblock: Superblock,
    shape: Shape,
    report: FsckReport,
    meter: Rc<Meter>,
    /// Findings about nodes, by block.
    nodes: HashMap<u64, usize>,
    /// Trees of which something is out of reach.
    broken: [bool; 4],
    /// Data that only the journal has.
    unwritten: Rc<Unwritten>,
}

impl<'a> Check<'a> {
    fn new(
        regions: &'a Regions,
        arena: &'a Arena,
        options: &'a FsckOptions,
        superblock: Superblock,
    ) -> Check<'a> {
        let report = FsckReport {
            target: Some(superblock.target),
            name: superblock.name.clone(),
            generation: superblock.generation,
            ..FsckReport::default()
        };
        let shape = recovery::shape_of(&superblock, tree::entry_max(superblock.geometry.node_size));
        let meter = Meter::new(options.progress.clone());
        Check {
            regions,
            arena,
            options,
            superblock,
            shape,
            report,
            meter,
            nodes: HashMap::new(),
            broken: [false; 4],
            unwritten: Rc::default(),
        }
    }

    fn add(
        &mut self,
        kind: FindingKind,
        at: Option<At>,
        expected: impl Into<String>,
        found: impl Into<String>,
        touched: Touched,
    ) -> Option<usize> {
        let target = Some(self.superblock.target);
        self.report.add(Finding { kind, target, at, expected: expected.into(), found: found.into(), touched })
    }

    fn node_at(&self, block: u64) -> At {
        At { side: Side::Meta, address: self.superblock.geometry.node_at(block), block: Some(block) }
    }

    /// Where a row lies, if it is on the device.
    fn row_at(&self, row: &Row) -> Option<At> {
        row.block.map(|block| self.node_at(block))
    }

    /// The finding about a lost node; made now if nobody met it before.
    fn lost(&mut self, lost: &Lost) -> Option<usize> {
        self.broken[lost.tree.index()] = true;
        if let Some(at) = self.nodes.get(&lost.node.block) {
            return Some(*at);
        }
        let kind = if lost.unreadable { FindingKind::NodeUnreadable } else { FindingKind::Node };
        let keys = LostKeys { tree: lost.tree, from: lost.from.clone(), until: lost.until.clone() };
        let touched = Touched { lost: Some(keys), ..Touched::default() };
        let at = self.node_at(lost.node.block);
        let place = self.add(kind, Some(at), lost.expected(), lost.why.clone(), touched)?;
        self.nodes.insert(lost.node.block, place);
        Some(place)
    }

    fn unknown_row(&mut self, tree: TreeId, row: &Row) {
        let at = self.row_at(row);
        let found = format!("key {} of {} bytes in the {tree} tree", hex(&row.key), row.key.len());
        self.add(FindingKind::UnknownRow, at, "a key of a known form", found, Touched::default());
    }

    /// Every node of the checkpoint. Says whether the node bitmap can be used to redo the journal.
    async fn structure(&mut self, redoes: bool) -> bool {
        let geometry = self.superblock.geometry;
        let (meta, arena, sb) = (&self.regions.meta, self.arena, &self.superblock);
        let meter = self.meter.clone();
        let marked = tree::marked_nodes(meta, arena, sb).await.unwrap_or(0);
        meter.begin("trees", marked * u64::from(geometry.node_size));
        let on_read: tree::OnRead = Rc::new(move |bytes| meter.add(bytes));
        let (mut entries, mut bad) = (0, Vec::new());
        let verified = tree::verify_watched(meta, arena, sb, Some(on_read), |tree, key, _| {
            if tree == TreeId::Ctg && !redoes {
                entries += 1;
                if schema::ctg_place(key).is_none() && bad.len() < FINDINGS_MAX {
                    bad.push(key.to_vec());
                }
            }
        })
        .await;
        self.report.nodes = verified.trees.iter().map(|t| t.nodes).sum();
        self.report.entries = entries;
        for fault in verified.findings {
            let kind = match fault.kind {
                FaultKind::Node => FindingKind::Node,
                FaultKind::Unreadable => FindingKind::NodeUnreadable,
                FaultKind::Shared => FindingKind::NodeShared,
                FaultKind::Range => FindingKind::NodeRange,
                FaultKind::Bitmap => FindingKind::NodeBitmap,
            };
            let at = At { side: Side::Meta, address: fault.address, block: fault.block };
            let lost = fault.lost.map(|(tree, from, until)| LostKeys { tree, from, until });
            if let Some(keys) = &lost {
                self.broken[keys.tree.index()] = true;
            }
            let touched = Touched { lost, ..Touched::default() };
            let place = self.add(kind, Some(at), fault.expected, fault.found, touched);
            if let (Some(place), Some(block), FaultKind::Node | FaultKind::Unreadable) =
                (place, fault.block, fault.kind)
            {
                self.nodes.insert(block, place);
            }
        }
        self.report.found += verified.findings_more;
        self.report.fatal += verified.findings_more;
        for key in bad {
            self.ctg_row(None, key);
        }
        !verified.bitmap_bad
    }

    fn ctg_row(&mut self, at: Option<At>, key: Vec<u8>) {
        let found = format!("key {}", hex(&key));
        let expected = "the number of a catalogue, then a key";
        self.add(FindingKind::CtgRow, at, expected, found, Touched::default());
    }

    /// The rows of the catalogues as the journal leaves them.
    async fn catalogues(&mut self, source: &Source) {
        let mut cursor = source.cursor(TreeId::Ctg, &[], None);
        while let Some(step) = cursor.next().await {
            match step {
                Step::Lost(lost) => drop(self.lost(&lost)),
                Step::Row(row) => {
                    self.report.entries += 1;
                    if schema::ctg_place(&row.key).is_none() {
                        let at = self.row_at(&row);
                        self.ctg_row(at, row.key);
                    }
                }
            }
        }
    }

    /// Cobs, extents, free space: what their rows say, and each data block once.
    async fn rows(&mut self, source: &Source) {
        let bytes = if self.options.map_bytes == 0 { blocks::MAP_BYTES } else { self.options.map_bytes };
        let total = self.superblock.data_blocks;
        let most = (bytes.max(8) / 8).saturating_mul(64);
        let mut first = 0;
        while first < total {
            let mut claims = Claims::new(first, most.min(total - first));
            if first == 0 {
                self.join(source, &mut claims).await;
                self.space(source, &mut claims).await;
            } else {
                self.claim_again(source, &mut claims).await;
            }
            self.every_block_once(source, &claims).await;
            first += most;
        }
    }

    async fn every_block_once(&mut self, source: &Source, claims: &Claims) {
        let mut holes = Vec::new();
        let (mut more, mut unknown) = (0, 0);
        // What a lost row would say of these blocks is not known.
        let known = !self.broken[TreeId::Extmap.index()] && !self.broken[TreeId::Balloc.index()];
        claims.unclaimed(|from, until| {
            if !known {
                unknown += until - from;
            } else if holes.len() < FINDINGS_MAX {
                holes.push((from, until));
            } else {
                more += 1;
            }
        });
        self.report.blocks_unknown += unknown;
        for (from, until) in holes {
            let found = format!("blocks {from} to {} are neither", until - 1);
            let expected = "free, or of one cob";
            self.add(FindingKind::BlockLost, Some(At::data(from)), expected, found, Touched::default());
        }
        self.report.found += more + claims.conflicts_more;
        self.report.fatal += more + claims.conflicts_more;
        let conflicts = claims.conflicts();
        if !conflicts.is_empty() {
            self.owners(source, conflicts).await;
        }
    }
}

/// Bytes for people, cut when long.
fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 32;
    let mut out = String::from("0x");
    for byte in bytes.iter().take(SHOWN) {
        out.push_str(&format!("{byte:02x}"));
    }
    if bytes.len() > SHOWN {
        out.push('…');
    }
    out
}

/// The bytes of data that a check of all data reads.
fn data_bytes(superblock: &Superblock) -> u64 {
    superblock.data_blocks.saturating_sub(superblock.data_free).saturating_mul(BLOCK_SIZE)
}
