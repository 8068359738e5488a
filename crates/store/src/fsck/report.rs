//! What a check found: what is hurt, where, and which objects it touches. Bounded, however much is wrong.

use super::kind::FindingKind;
use crate::tree::TreeId;
use cobalt_base::{BLOCK_SIZE, Fid};
use uuid::Uuid;

/// Most findings that are kept; more are only counted.
pub const FINDINGS_MAX: usize = 1000;
/// Most objects that one finding names; more are only counted.
pub const TOUCHED_MAX: usize = 64;

/// One of a target's two regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Meta,
    Data,
}

impl Side {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Side::Meta => "meta",
            Side::Data => "data",
        }
    }
}

/// Where something lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub side: Side,
    /// Byte in the region.
    pub address: u64,
    /// Number of the node block (meta) or of the data block (data); none for superblocks, bitmaps and journal.
    pub block: Option<u64>,
}

impl At {
    /// A byte of the meta region that is of no node.
    pub fn meta(address: u64) -> At {
        At { side: Side::Meta, address, block: None }
    }

    /// A data block.
    pub fn data(block: u64) -> At {
        At { side: Side::Data, address: block.saturating_mul(BLOCK_SIZE), block: Some(block) }
    }
}

/// Keys that cannot be reached: those of a tree from `from` on, before `until`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostKeys {
    pub tree: TreeId,
    pub from: Vec<u8>,
    /// `None`: to the end of the tree.
    pub until: Option<Vec<u8>>,
}

/// The objects that a finding touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Cobs, in order, up to [`TOUCHED_MAX`].
    pub fids: Vec<Fid>,
    /// Cobs beyond those.
    pub fids_more: u64,
    /// Rows of the catalogues: number and key, up to [`TOUCHED_MAX`].
    pub rows: Vec<(u32, Vec<u8>)>,
    /// What a damaged node held, also where it is not known which objects that were.
    pub lost: Option<LostKeys>,
}

impl Touched {
    /// One cob.
    pub fn fid(fid: Fid) -> Touched {
        Touched { fids: vec![fid], ..Touched::default() }
    }

    /// Adds a cob; in order, so that one that is there already is the last.
    pub(crate) fn add_fid(&mut self, fid: Fid) {
        if self.fids.contains(&fid) {
            return;
        }
        if self.fids.len() < TOUCHED_MAX {
            self.fids.push(fid);
        } else {
            self.fids_more += 1;
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    /// The target, where it is known.
    pub target: Option<Uuid>,
    pub at: Option<At>,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    pub touched: Touched,
}

impl Finding {
    /// Whether the target cannot serve all that it holds with it.
    pub fn is_fatal(&self) -> bool {
        self.kind.is_fatal()
    }
}

/// What a check saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// The target.
    pub target: Option<Uuid>,
    /// Its name.
    pub name: String,
    /// The superblock's generation.
    pub generation: u64,
    /// Up to [`FINDINGS_MAX`], those of structures before those of what they hold.
    pub findings: Vec<Finding>,
    /// All findings, also those that were not kept.
    pub found: u64,
    /// Fatal ones among them.
    pub fatal: u64,
    /// Journal records that the next start will redo; what was checked is the state after them.
    pub redone: u64,
    /// Whether the journal could not be redone: what was checked is the last checkpoint.
    pub checkpoint_only: bool,
    pub nodes: u64,
    pub cobs: u64,
    pub extents: u64,
    pub blocks_used: u64,
    pub blocks_free: u64,
    /// Blocks of which nothing can be said, since the rows that would say it are lost.
    pub blocks_unknown: u64,
    /// Rows of the catalogues.
    pub entries: u64,
    /// Bytes of data that were read and held.
    pub data_bytes: u64,
}

impl FsckReport {
    /// Whether nothing at all was found.
    pub fn is_clean(&self) -> bool {
        self.found == 0
    }

    /// Whether nothing was found but what mends itself at the next start.
    pub fn is_sound(&self) -> bool {
        self.fatal == 0
    }

    /// Counts a finding and keeps it while there is room; gives its place.
    pub(crate) fn add(&mut self, finding: Finding) -> Option<usize> {
        self.found += 1;
        self.fatal += u64::from(finding.is_fatal());
        if self.findings.len() >= FINDINGS_MAX {
            return None;
        }
        self.findings.push(finding);
        Some(self.findings.len() - 1)
    }
}
