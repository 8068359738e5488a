//! A target for people who look for something: its structures as they are, in memory that does not grow with them, and as
//! far as they can be read. Nothing is written.
//!
//! Rows are those of the trees after the journal, as the next start will have them; where the journal cannot be redone,
//! those of the checkpoint, and [`Inspection::trouble`] says so. Secrets in catalogue values are the caller's to hide.

mod node;
mod space;

pub use node::{NodeChild, NodeView};
pub use space::GroupRow;

use crate::dump::{TreeRow, typed};
use crate::error::OpenError;
use crate::fsck::{At, Finding, FsckOptions, LostKeys, Side, look};
use crate::limits::Limits;
use crate::region::Regions;
use crate::schema::{self, COB, DEAD};
use crate::superblock::Superblock;
use crate::tree::{self, Cursor, Lost, MetaError, Source, Step, TreeId};
use cobalt_base::Fid;
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;

/// A target that is looked at.
pub struct Inspection {
    regions: Regions,
    arena: Arena,
    superblock: Superblock,
    source: Source,
    trouble: Vec<Finding>,
}

/// What comes next in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Row(TreeRow),
    /// A node that cannot be read, with the keys that it held: they are skipped.
    Skipped(Skipped),
}

/// A part of a tree that is out of reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub keys: LostKeys,
    pub at: At,
    pub why: String,
}

/// Rows of a tree, in the order of their keys.
pub struct Rows<'a> {
    inspection: &'a Inspection,
    tree: TreeId,
    cursor: Cursor<'a>,
}

impl Inspection {
    /// Looks at a target.
    ///
    /// # Errors
    /// [`OpenError`] when the device holds no target, or one whose superblock cannot be had.
    pub async fn open(
        ctx: &Ctx,
        regions: &Regions,
        arena: &Arena,
        limits: &Limits,
    ) -> Result<Inspection, OpenError> {
        let options = FsckOptions { limits: limits.clone(), ..FsckOptions::default() };
        let (superblock, source, report) = look(ctx, regions, arena, &options).await?;
        let (regions, arena, trouble) = (regions.clone(), arena.clone(), report.findings);
        Ok(Inspection { regions, arena, superblock, source, trouble })
    }

    /// The newest superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// What is wrong with superblocks and journal. A fatal finding means that rows are those of the last checkpoint.
    pub fn trouble(&self) -> &[Finding] {
        &self.trouble
    }

    /// Rows of a tree with keys from `from` to before `until`.
    pub fn rows(&self, tree: TreeId, from: &[u8], until: Option<&[u8]>) -> Rows<'_> {
        Rows { inspection: self, tree, cursor: self.source.cursor(tree, from, until) }
    }

    /// Rows of one catalogue, of keys that begin with `prefix`; of all of them without a number.
    pub fn catalogue(&self, number: Option<u32>, prefix: &[u8]) -> Rows<'_> {
        let from = number.map(|number| schema::ctg_key(number, prefix)).unwrap_or_default();
        let until = after_prefix(&from);
        self.rows(TreeId::Ctg, &from, until.as_deref())
    }

    /// The row of a catalogue with this key, if it is there and can be reached.
    pub async fn entry(&self, number: u32, key: &[u8]) -> Option<Vec<u8>> {
        let from = schema::ctg_key(number, key);
        let mut until = from.clone();
        until.push(0);
        let mut rows = self.rows(TreeId::Ctg, &from, Some(&until));
        loop {
            match rows.next().await? {
                Item::Row(TreeRow::Entry { value, .. }) => return Some(value),
                Item::Row(_) | Item::Skipped(_) => {}
            }
        }
    }

    /// The rows of one cob: alive and dead.
    pub async fn cob(&self, fid: Fid) -> Vec<Item> {
        let mut out = Vec::new();
        for kind in [COB, DEAD] {
            let from = schema::fid_key(kind, fid);
            let mut until = from.to_vec();
            until.push(0);
            let mut rows = self.rows(TreeId::Cob, &from, Some(&until));
            while let Some(item) = rows.next().await {
                out.push(item);
            }
        }
        out
    }

    /// The extents of one cob.
    pub fn extents(&self, fid: Fid) -> Rows<'_> {
        let from = fid.to_key();
        self.rows(TreeId::Extmap, &from, after_prefix(&from).as_deref())
    }

    /// Gives each run of node blocks that the checkpoint uses: first, and the one behind the last.
    ///
    /// # Errors
    /// Why the bitmap cannot be had.
    pub async fn node_runs(&self, give: impl FnMut(u64, u64)) -> Result<(), MetaError> {
        tree::marked_runs(&self.regions.meta, &self.arena, &self.superblock, give).await
    }

    fn skipped(&self, lost: Lost) -> Skipped {
        let block = lost.node.block;
        let address = self.superblock.geometry.node_at(block);
        let at = At { side: Side::Meta, address, block: Some(block) };
        Skipped { keys: LostKeys { tree: lost.tree, from: lost.from, until: lost.until }, at, why: lost.why }
    }
}

impl Rows<'_> {
    /// The next row, or the next part that is skipped.
    pub async fn next(&mut self) -> Option<Item> {
        Some(match self.cursor.next().await? {
            Step::Lost(lost) => Item::Skipped(self.inspection.skipped(lost)),
            Step::Row(row) => Item::Row(any(self.tree, row.key, row.value)),
        })
    }
}

fn any(tree: TreeId, key: Vec<u8>, value: Vec<u8>) -> TreeRow {
    typed(tree, &key, &value).unwrap_or(TreeRow::Unknown { key, value })
}

/// The smallest key above all that begin with `prefix`; `None`: there is none.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}
