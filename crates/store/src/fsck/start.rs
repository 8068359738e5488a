//! What the next start would begin with: superblocks, and the journal's part that counts.

use super::report::{At, Touched};
use super::{Check, FindingKind};
use crate::error::OpenError;
use crate::journal::reader::Reader;
use crate::journal::scan::Survey;
use crate::journal::table::Decision;
use crate::recovery::{self, Findings};
use crate::superblock::{Copy, Verdict};
use crate::tree::{Forest, Source, TreeLimits};
use cobalt_reactor::Ctx;
use std::rc::Rc;

/// The journal, as far as it counts; none when only the checkpoint can be looked at.
pub(super) struct Journal(Option<Survey>);

impl Journal {
    /// Whether the trees change by it.
    pub fn redoes(&self) -> bool {
        self.0.is_some_and(|survey| survey.changes > 0)
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

    /// What of the journal counts. `None` when it says that the trees are not the last ones: nothing else can be said
    /// of them.
    pub(super) fn journal(&mut self, findings: &Findings) -> Option<Journal> {
        let (at, len) = (self.superblock.geometry.journal_at(), self.superblock.geometry.journal_len);
        self.meter.begin("journal", len);
        self.meter.add(len);
        let kind = match findings.decision() {
            Decision::Open | Decision::OpenDropTail => return Some(Journal(findings.survey())),
            Decision::StopOldSuperblock => FindingKind::SuperblockLost,
            Decision::StopUnnamed => FindingKind::JournalUnnamed,
            _ => FindingKind::JournalLost,
        };
        self.report.checkpoint_only = true;
        let (at, expected, found) = match findings.open().err() {
            Some(OpenError::Damaged { address, expected, found, .. }) => (address, expected, found),
            other => {
                let found = other.map(|error| error.to_string()).unwrap_or_default();
                (at, "a journal that can be read".into(), found)
            }
        };
        self.add(kind, Some(At::meta(at)), expected, found, Touched::default());
        (kind != FindingKind::SuperblockLost).then_some(Journal(None))
    }

    /// The trees after the journal, or those of the checkpoint where it cannot be redone.
    pub(super) async fn redo(&mut self, ctx: &Ctx, journal: Journal, bitmap_holds: bool) -> Source {
        let meter = self.meter.clone();
        let checkpoint = Source::checkpoint(&self.regions.meta, self.arena, &self.superblock)
            .watched(Rc::new(move |bytes| meter.add(bytes)));
        if !journal.redoes() {
            return checkpoint;
        }
        let Some(survey) = journal.0 else { return checkpoint };
        if !bitmap_holds {
            self.report.checkpoint_only = true;
            return checkpoint;
        }
        match self.redone(ctx, &survey).await {
            Ok(forest) => {
                self.report.redone = survey.changes;
                checkpoint.redone(forest)
            }
            Err(error) => {
                self.report.checkpoint_only = true;
                self.unwritten = Rc::default(); // The checkpoint's data are on their blocks.
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

    async fn redone(&self, ctx: &Ctx, survey: &Survey) -> Result<Rc<Forest>, OpenError> {
        let meta = &self.regions.meta;
        let limits = TreeLimits { cache_bytes: self.options.limits.node_cache, ..TreeLimits::default() };
        let forest = Rc::new(Forest::open(ctx, meta, self.arena, &self.superblock, limits).await?);
        let mut reader = Reader::new(Some(ctx), meta, self.arena, &self.superblock);
        let unwritten = &self.unwritten;
        recovery::redo_all(&forest, self.shape, &mut reader, &self.superblock, survey.used, unwritten)
            .await?;
        Ok(forest)
    }
}
