//! Opening a target after whatever happened (architecture, section 5, "recovery").
//!
//! Flush first; look at superblocks and journal; do what the table says of what was found
//! ([`crate::journal::table`]); redo what counts with the code that applied it; then a superblock with a higher epoch is
//! durable before anything else is written.

use crate::alloc_rows::{self, group_blocks};
use crate::apply::{self, Effects, Halt, Shape};
use crate::balloc::Balloc;
use crate::chore;
use crate::error::OpenError;
use crate::inline::Unwritten;
use crate::intent;
use crate::journal::reader::Reader;
use crate::journal::record::{self, Header};
use crate::journal::ring::{Journal, Start};
use crate::journal::scan::{self, Anchor, Survey};
use crate::journal::table::{self, Decision, Fact, TABLE};
use crate::opening::Parts;
use crate::options::OpenOptions;
use crate::region::Regions;
use crate::stage::Stage;
use crate::superblock::{self, Choice, Copy, FORMAT_VERSION, Superblock};
use crate::tree::{Forest, MetaError, TreeLimits};
use crate::verdict;
use cobalt_base::canary::{Canary, planted};
use cobalt_base::{BLOCK_SIZE, Corrupt, Lsn};
use cobalt_bdev::IoError;
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use std::collections::VecDeque;
use std::fmt::Display;
use std::rc::Rc;
use uuid::Uuid;

/// The chain that a target's first record carries.
pub(crate) fn first_chain(target: uuid::Uuid) -> u64 {
    record::seed(target)
}

/// The shape of a target.
pub(crate) fn shape_of(sb: &Superblock, entry_max: usize) -> Shape {
    Shape {
        data_blocks: sb.data_blocks,
        group_blocks: group_blocks(sb.data_blocks),
        row_max: entry_max.saturating_sub(24),
    }
}

/// Recovers a target. With `read_only`, the journal is replayed in memory and nothing is written.
pub(crate) async fn recover(
    ctx: &Ctx,
    regions: &Regions,
    arena: &Arena,
    options: &OpenOptions,
) -> Result<Parts, OpenError> {
    if !options.read_only && !planted(Canary::NoFlushAtRecovery) {
        // A process may have died while its device lived on, with writes in its cache.
        regions.meta.flush().await?;
        regions.data.flush().await?;
    }
    let copies = superblock::read_all(&regions.meta, arena).await;
    let (sb, survey) = match judge(ctx, regions, arena, &copies, options.cluster).await.open() {
        Ok(found) => found,
        Err(error) => return Err(verdict::explain(regions, arena, error).await),
    };
    belongs(&sb, options.target)?;
    if survey.beyond > 0 {
        tracing::info!(records = survey.beyond, "dropped a torn journal tail: none of it was acknowledged");
    }
    let cache_bytes = options.limits.node_cache - options.limits.unwritten_max();
    let tree_limits = TreeLimits { cache_bytes, ..TreeLimits::default() };
    let forest = Rc::new(Forest::open(ctx, &regions.meta, arena, &sb, tree_limits).await?);
    let shape = shape_of(&sb, forest.entry_max());
    let mut reader = Reader::new(Some(ctx), &regions.meta, arena, &sb);
    let unwritten = Unwritten::default();
    redo_all(&forest, shape, &mut reader, &sb, survey.used, &unwritten).await?;
    let balloc = Balloc::open(forest.clone(), shape, &options.limits).await?;
    let chores = if options.read_only { VecDeque::new() } else { chore::unfinished(&forest).await? };
    // Nothing is written before everything that a start reads was found whole.
    let superblock = if options.read_only { sb.clone() } else { mount(regions, arena, &sb, &survey).await? };
    let start = Start {
        at: sb.geometry.journal_at(),
        len: sb.geometry.journal_len,
        tail: sb.journal.offset,
        used: survey.used,
        chain: survey.chain,
        next_lsn: survey.next_lsn,
        epoch: superblock.mount_epoch,
        named: survey.named,
    };
    let journal = Journal::new(&regions.meta, arena, superblock.target, start, &options.limits).await;
    Ok(Parts { forest, balloc, journal, superblock, shape, chores, unwritten })
}

/// Whether this is the target that was asked for.
pub(crate) fn belongs(sb: &Superblock, target: Option<Uuid>) -> Result<(), OpenError> {
    match target {
        Some(expected) if expected != sb.target => {
            Err(OpenError::ForeignTarget { expected, found: sb.target })
        }
        _ => Ok(()),
    }
}

/// What superblocks and journal look like, and the row of the table that this is.
#[derive(Default)]
pub(crate) struct Findings {
    choice: Choice,
    survey: Option<Survey>,
    /// A read of the ring that failed.
    ring_error: Option<IoError>,
    /// The cluster that was asked for.
    cluster: Option<Uuid>,
    /// Blocks of the data region.
    data_blocks: u64,
    /// The row's index in [`TABLE`].
    pub row: usize,
}

/// Reads what a decision needs beside the superblock's copies. Nothing is written.
pub(crate) async fn judge(
    ctx: &Ctx,
    regions: &Regions,
    arena: &Arena,
    copies: &[Copy],
    cluster: Option<Uuid>,
) -> Findings {
    let choice = Choice::of(copies);
    let data_blocks = regions.data.len / BLOCK_SIZE;
    let mut findings = Findings { cluster, data_blocks, ..Findings::of(choice) };
    let Some(sb) = findings.choice.best.clone() else { return findings };
    let mut facts = (findings.choice.facts())
        .with(Fact::Foreign, cluster.is_some_and(|expected| expected != sb.cluster))
        .with(Fact::Misfit, data_blocks < sb.data_blocks);
    if TABLE[table::index(facts)].then.opens() {
        // One superblock says where the journal is: the questions about that are still open.
        match scan::survey(&mut Reader::new(Some(ctx), &regions.meta, arena, &sb), Anchor::from(&sb)).await {
            Ok(survey) => {
                facts = survey.answer(facts);
                findings.survey = Some(survey);
            }
            Err(error) => {
                facts = facts.with(Fact::Unreadable, true);
                findings.ring_error = Some(error);
            }
        }
    }
    findings.row = table::index(facts);
    findings
}

/// The superblock that a start would begin with, by the superblocks alone, or why there is none to trust.
pub(crate) fn choose(copies: &[Copy]) -> Result<Superblock, OpenError> {
    let findings = Findings::of(Choice::of(copies));
    match &findings.choice.best {
        Some(sb) if findings.decision().opens() => Ok(sb.clone()),
        best => Err(findings.verdict(best.as_ref())),
    }
}

impl Findings {
    fn of(choice: Choice) -> Findings {
        let row = table::index(choice.facts());
        Findings { choice, row, ..Findings::default() }
    }

    /// The superblock, unless the verdict is about superblocks or regions: then nothing says where anything is.
    pub(crate) fn superblock(&self) -> Result<Superblock, OpenError> {
        match &self.choice.best {
            Some(sb) if self.survey.is_some() || self.ring_error.is_some() => Ok(sb.clone()),
            best => Err(self.verdict(best.as_ref())),
        }
    }

    /// What the journal holds, unless it could not be read.
    pub(crate) fn survey(&self) -> Option<Survey> {
        self.survey
    }

    /// What the table says is done.
    pub(crate) fn decision(&self) -> Decision {
        TABLE[self.row].then
    }

    /// The superblock to start from, and what of the journal counts, or the verdict.
    pub(crate) fn open(&self) -> Result<(Superblock, Survey), OpenError> {
        match (&self.choice.best, self.survey) {
            (Some(sb), Some(survey)) if self.decision().opens() => Ok((sb.clone(), survey)),
            (best, _) => Err(self.verdict(best.as_ref())),
        }
    }

    fn verdict(&self, best: Option<&Superblock>) -> OpenError {
        let copy = |at: u64, why: &dyn Display| format!("superblock copy at {at:#x}: {why}");
        let superblock = |address: u64, expected: String, found: String| OpenError::Damaged {
            what: "superblock".into(),
            address,
            expected,
            found,
        };
        let journal = |at: u64, expected: String, found: String| {
            let address = best.map_or(0, |sb| sb.geometry.journal_at()) + at;
            OpenError::Damaged { what: "journal".into(), address, expected, found }
        };
        let Choice { unreadable, newer, hurt, other, .. } = &self.choice;
        let survey = self.survey.unwrap_or_else(|| Survey::new(Anchor::default(), 0));
        match (self.decision(), best) {
            (Decision::StopUnreadable, _) => match (unreadable, &self.ring_error) {
                (Some((at, error)), _) => OpenError::Device { why: copy(*at, error) },
                (None, Some(error)) => OpenError::Device { why: format!("journal: {error}") },
                (None, None) => OpenError::Device { why: "no answer".into() },
            },
            (Decision::StopNewer, _) => {
                OpenError::NewerFormat { found: newer.unwrap_or_default(), known: FORMAT_VERSION }
            }
            (Decision::StopNoSuperblock, _) => {
                let (at, why) = hurt.clone().unwrap_or_default();
                superblock(at, "one valid copy at least".into(), why)
            }
            (Decision::StopTwoTargets, Some(sb)) => {
                let (at, target) = other.unwrap_or_default();
                superblock(at, format!("target {} in all copies", sb.target), format!("target {target}"))
            }
            (Decision::StopForeignCluster, Some(sb)) => {
                OpenError::ForeignCluster { expected: self.cluster.unwrap_or_default(), found: sb.cluster }
            }
            (Decision::StopWrongRegions, Some(sb)) => {
                let (have, want) = (self.data_blocks, sb.data_blocks);
                let why = format!("the data region has {have} blocks, it was formatted with {want}");
                OpenError::WrongRegions { why }
            }
            (Decision::StopOldSuperblock, Some(sb)) => superblock(
                0,
                format!("generation {}, which the journal names", survey.named_anywhere),
                format!("generation {} at best", sb.generation),
            ),
            (Decision::StopLost, Some(_)) if survey.next_lsn > survey.floor => journal(
                survey.end(),
                format!("the record before lsn {}, which was durable", survey.next_lsn),
                "none that holds".into(),
            ),
            (Decision::StopLost, Some(_)) => journal(
                survey.end(),
                format!("records up to lsn {}, which were durable", survey.floor),
                format!("good records up to lsn {} only", survey.next_lsn - 1),
            ),
            (Decision::StopUnnamed, Some(_)) => {
                journal(0, "a record that names a superblock".into(), "none".into())
            }
            _ => OpenError::NotFormatted { why: "no superblock in any of its places".into() },
        }
    }
}

/// What a start would do, for those who go through every combination.
#[cfg(feature = "proof")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Index in the table.
    pub row: usize,
    /// Target and generation of the superblock that it would start from.
    pub chosen: Option<(Uuid, u64)>,
    /// The last lsn that counts, and the one up to which everything was durable.
    pub last: u64,
    pub floor: u64,
}

/// Looks at a target as a start does, and decides. Nothing is written.
#[cfg(feature = "proof")]
pub async fn judged(ctx: &Ctx, regions: &Regions, arena: &Arena, cluster: Option<Uuid>) -> Judged {
    let copies = superblock::read_all(&regions.meta, arena).await;
    let findings = judge(ctx, regions, arena, &copies, cluster).await;
    let survey = findings.survey.unwrap_or_else(|| Survey::new(Anchor::default(), 0));
    let chosen = findings.choice.best.map(|sb| (sb.target, sb.generation));
    Judged { row: findings.row, chosen, last: survey.next_lsn - 1, floor: survey.floor }
}

/// Redoes the good records, read once more from the ring. Nothing grows with it but inline data and nodes, of which only those that the
/// records change: the rest goes when the cache is full, however small it is.
///
/// Room and memory follow from admission. The last mount put the same changes into the same trees in the same order, and
/// each found its node blocks before its record was written, with those of the generation before still taken: as here. A
/// node that it changed in two generations, in the one that a checkpoint was writing and after that, is changed here in one.
/// So redo takes no more blocks than were taken, and has no more changed nodes in memory than were changed and frozen then,
/// which is what [`Forest::pressure`] bounds.
pub(crate) async fn redo_all(
    forest: &Rc<Forest>,
    shape: Shape,
    reader: &mut Reader<'_>,
    sb: &Superblock,
    used: u64,
    unwritten: &Unwritten,
) -> Result<(), OpenError> {
    let journal_at = sb.geometry.journal_at();
    let mut survey = Survey::new(Anchor::from(sb), reader.len);
    let mut room = Vec::new();
    while survey.used < used {
        let offset = survey.end();
        let changed = || Corrupt::new("journal", journal_at + offset, "it changed under the start");
        let header = reader.header(offset).await?.ok_or_else(changed)?;
        let payload = reader.payload(&header, &mut room).await?.ok_or_else(changed)?;
        if !survey.follow(&header, true) {
            return Err(changed().into());
        }
        redo(forest, shape, payload, &header, journal_at, unwritten).await?;
    }
    Ok(())
}

/// Redoes one record.
pub(crate) async fn redo(
    forest: &Rc<Forest>,
    shape: Shape,
    payload: &[u8],
    header: &Header,
    journal_at: u64,
    unwritten: &Unwritten,
) -> Result<(), OpenError> {
    let address = journal_at + header.offset;
    let txs = intent::decode(payload, header.count, address)?;
    let _epoch = forest.epoch();
    let stage = Stage::holding(forest.clone(), 1);
    let mut effects = Vec::new();
    for (i, intents) in txs.iter().enumerate() {
        let lsn = Lsn(header.first + i as u64);
        loop {
            let mut fx = Effects::default();
            let attempt = apply::run(&stage, shape, lsn, intents, &mut fx);
            match attempt {
                Ok(()) => {
                    stage.bring_new().await?;
                    effects.push((lsn, fx));
                    break;
                }
                Err(Halt::Miss(miss)) => {
                    stage.rollback();
                    forest.load(miss).await?;
                }
                Err(Halt::Corrupt(corrupt)) => return Err(corrupt.into()),
                Err(Halt::Refused(why)) => {
                    let why = format!("lsn {lsn} was acknowledged, but the trees refuse it: {why}");
                    return Err(Corrupt::new("journal record", address, why).into());
                }
            }
        }
        stage.savepoint();
    }
    let taken: Vec<_> = effects.iter().flat_map(|(_, fx)| fx.taken.iter().copied()).collect();
    let freed: Vec<_> = effects.iter().flat_map(|(_, fx)| fx.freed.iter().copied()).collect();
    while let Err(halt) = alloc_rows::settle(&stage, shape, &taken, &freed) {
        stage.rollback();
        match halt {
            Halt::Miss(miss) => forest.load(miss).await?,
            Halt::Corrupt(corrupt) => return Err(corrupt.into()),
            Halt::Refused(error) => {
                return Err(Corrupt::new("journal record", address, error.to_string()).into());
            }
        }
    }
    while let Err(miss) = stage.touch().and_then(|()| stage.mutate()) {
        forest.load(miss).await?;
    }
    // What is still mapped after the last record is what is to be written out.
    for (lsn, fx) in effects {
        unwritten.take_over(&fx, lsn);
    }
    Ok(())
}

/// The new mount's superblock: the same trees, an epoch above any seen, and where that begins.
async fn mount(
    regions: &Regions,
    arena: &Arena,
    sb: &Superblock,
    kept: &Survey,
) -> Result<Superblock, MetaError> {
    let next = Superblock {
        generation: sb.generation + 1,
        mount_epoch: kept.epoch + 1,
        epoch_start: Lsn(kept.next_lsn),
        ..sb.clone()
    };
    superblock::write(&regions.meta, arena, &next).await?;
    Ok(next)
}
