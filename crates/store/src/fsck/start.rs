//! What the next start would begin with: superblocks, and the journal's part that counts.

use super::report::{At, Touched};
use super::{Check, FindingKind};
use crate::error::OpenError;
use crate::intent::{self, Intent};
use crate::journal::record::Header;
use crate::journal::scan::{self, Image, Kept, Stop};
use crate::recovery;
use crate::superblock::{Copy, Verdict};
use crate::tree::{Forest, Source, TreeLimits};
use cobalt_reactor::Ctx;
use std::rc::Rc;

/// The journal, as far as it counts; none when only the checkpoint can be looked at.
pub(super) struct Journal(Option<(Image, Kept)>);

impl Journal {
    /// Records that change the trees: naming a superblock does not. One that cannot be read counts, so that redo says so.
    fn changes(&self) -> u64 {
        let Some((image, kept)) = &self.0 else { return 0 };
        let changes = |header: &&Header| match intent::decode(&image.payload(header), header.count, 0) {
            Ok(txs) => txs.iter().flatten().any(|intent| !matches!(intent, Intent::Named { .. })),
            Err(_) => true,
        };
        kept.records.iter().filter(changes).count() as u64
    }

    /// Whether the trees change by it.
    pub fn redoes(&self) -> bool {
        self.changes() > 0
    }
}

impl Check<'_> {
    /// Copies that are not as they should be. Those of the other slot may be torn by a crash in the middle of a checkpoint.
    pub(super) fn copies(&mut self, copies: &[Copy]) {
        let (slot, generation) = (self.superblock.slot(), self.superblock.generation);
        for copy in copies {
            let found = match &copy.verdict {
                Verdict::Corrupt(why) => why.clone(),
                Verdict::Blank if copy.slot == slot => "never written".into(),
                Verdict::Valid(sb) if copy.slot == slot && sb.generation != generation => {
                    format!("generation {}", sb.generation)
                }
                _ => continue,
            };
            let expected = match copy.slot == slot {
                true => format!("generation {generation}, as in its twin"),
                false => format!("a generation before {generation}, or nothing"),
            };
            let at = Some(At::meta(copy.at));
            self.add(FindingKind::SuperblockCopy, at, expected, found, Touched::default());
        }
    }

    /// Reads the journal and decides what of it counts. `None` when it says that the trees are not the last ones: nothing
    /// else can be said of them.
    pub(super) async fn journal(&mut self) -> Option<Journal> {
        let geometry = self.superblock.geometry;
        let (at, len) = (geometry.journal_at(), geometry.journal_len);
        self.meter.begin("journal", len);
        let image = Image::read(&self.regions.meta, self.arena, self.superblock.target, at, len).await;
        self.meter.add(len);
        let none = Touched::default();
        let image = match image {
            Ok(image) => image,
            Err(error) => {
                self.report.checkpoint_only = true;
                let expected = "a journal that can be read";
                self.add(FindingKind::JournalLost, Some(At::meta(at)), expected, error.to_string(), none);
                return Some(Journal(None));
            }
        };
        let stop = match scan::decide(recovery::anchor_of(&self.superblock), len, &image.records()) {
            Ok(kept) => return Some(Journal(Some((image, kept)))),
            Err(stop) => stop,
        };
        self.report.checkpoint_only = true;
        let kind = match &stop {
            Stop::Lost { .. } => FindingKind::JournalLost,
            Stop::OldSuperblock { .. } => FindingKind::SuperblockLost,
            Stop::Unnamed => FindingKind::JournalUnnamed,
        };
        if let OpenError::Damaged { address, expected, found, .. } = recovery::verdict(stop, at) {
            self.add(kind, Some(At::meta(address)), expected, found, none);
        }
        (kind != FindingKind::SuperblockLost).then_some(Journal(None))
    }

    /// The trees after the journal, or those of the checkpoint where it cannot be redone.
    pub(super) async fn redo(&mut self, ctx: &Ctx, journal: Journal, bitmap_holds: bool) -> Source {
        let meter = self.meter.clone();
        let checkpoint = Source::checkpoint(&self.regions.meta, self.arena, &self.superblock)
            .watched(Rc::new(move |bytes| meter.add(bytes)));
        let changes = journal.changes();
        if changes == 0 {
            return checkpoint;
        }
        let Some((image, kept)) = journal.0 else { return checkpoint };
        if !bitmap_holds {
            self.report.checkpoint_only = true;
            return checkpoint;
        }
        match self.redone(ctx, &image, &kept).await {
            Ok(forest) => {
                self.report.redone = changes;
                checkpoint.redone(forest)
            }
            Err(error) => {
                self.report.checkpoint_only = true;
                let (at, found) = match error {
                    OpenError::Damaged { address, found, .. } => (Some(At::meta(address)), found),
                    other => (None, other.to_string()),
                };
                let expected = "a journal that the trees accept";
                self.add(FindingKind::JournalRedo, at, expected, found, Touched::default());
                checkpoint
            }
        }
    }

    async fn redone(&self, ctx: &Ctx, image: &Image, kept: &Kept) -> Result<Rc<Forest>, OpenError> {
        let meta = &self.regions.meta;
        let limits = TreeLimits { cache_bytes: self.options.limits.node_cache, ..TreeLimits::default() };
        let forest = Rc::new(Forest::open(ctx, meta, self.arena, &self.superblock, limits).await?);
        let journal_at = self.superblock.geometry.journal_at();
        for header in &kept.records {
            recovery::redo(&forest, self.shape, image, header, journal_at).await?;
        }
        Ok(forest)
    }
}
