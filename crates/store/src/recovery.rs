//! Opening a target after whatever happened (architecture, section 5, "recovery").
//!
//! Flush first; take the highest valid superblock; let the journal confirm it; decide what of the journal
//! counts; redo it with the code that applied it; then a superblock with a higher epoch is durable before
//! anything else is written.

use crate::alloc_rows::group_blocks;
use crate::apply::{self, Effects, Halt, Shape};
use crate::balloc::Balloc;
use crate::chore;
use crate::error::OpenError;
use crate::intent;
use crate::journal::record::{self, Header};
use crate::journal::ring::{Journal, Start};
use crate::journal::scan::{self, Anchor, Image, Kept, Stop};
use crate::opening::Parts;
use crate::options::OpenOptions;
use crate::region::Regions;
use crate::stage::Stage;
use crate::superblock::{self, Copy, FORMAT_VERSION, Superblock, Verdict};
use crate::tree::{Forest, MetaError, TreeLimits};
use cobalt_base::canary::{Canary, planted};
use cobalt_base::{BLOCK_SIZE, Corrupt, Lsn};
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use std::collections::VecDeque;
use std::rc::Rc;

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
    let sb = choose(&superblock::read_all(&regions.meta, arena).await)?;
    fits(&sb, regions, options)?;
    let (at, len) = (sb.geometry.journal_at(), sb.geometry.journal_len);
    let image = Image::read(&regions.meta, arena, sb.target, at, len).await?;
    let anchor = anchor_of(&sb);
    let kept = scan::decide(anchor, len, &image.records()).map_err(|stop| verdict(stop, at))?;
    if kept.dropped > 0 {
        tracing::info!(records = kept.dropped, "dropped a torn journal tail: none of it was acknowledged");
    }
    let tree_limits = TreeLimits { cache_bytes: options.limits.node_cache, ..TreeLimits::default() };
    let forest = Rc::new(Forest::open(ctx, &regions.meta, arena, &sb, tree_limits).await?);
    let shape = shape_of(&sb, forest.entry_max());
    for header in &kept.records {
        redo(&forest, shape, &image, header, at).await?;
    }
    let superblock = if options.read_only { sb } else { mount(regions, arena, &sb, &kept).await? };
    let start = Start {
        at,
        len,
        tail: anchor.offset,
        used: kept.used,
        chain: kept.chain,
        next_lsn: kept.next_lsn,
        epoch: superblock.mount_epoch,
        named: kept.named,
    };
    let journal = Journal::new(&regions.meta, arena, superblock.target, start, &options.limits).await;
    let balloc = Balloc::open(forest.clone(), shape, &options.limits).await?;
    let chores = if options.read_only { VecDeque::new() } else { chore::unfinished(&forest).await? };
    Ok(Parts { forest, balloc, journal, superblock, shape, chores })
}

/// The superblock says where the journal's part begins.
pub(crate) fn anchor_of(sb: &Superblock) -> Anchor {
    Anchor {
        offset: sb.journal.offset,
        chain: sb.journal.chain,
        checkpoint: sb.checkpoint_lsn.0,
        generation: sb.generation,
        epoch: sb.mount_epoch,
        epoch_start: sb.epoch_start.0,
    }
}

/// The highest valid superblock, or why there is none to trust.
pub(crate) fn choose(copies: &[Copy]) -> Result<Superblock, OpenError> {
    let mut best: Option<&Superblock> = None;
    let mut damaged = None;
    for copy in copies {
        match &copy.verdict {
            Verdict::Valid(sb) => {
                if best.is_none_or(|b| b.generation < sb.generation) {
                    best = Some(sb);
                }
            }
            Verdict::Newer(found) => {
                return Err(OpenError::NewerFormat { found: *found, known: FORMAT_VERSION });
            }
            Verdict::ReadError(error) => {
                return Err(OpenError::Device { why: format!("superblock copy at {:#x}: {error}", copy.at) });
            }
            Verdict::Corrupt(why) if !why.starts_with("magic") => damaged = Some((copy.at, why.clone())),
            Verdict::Corrupt(_) | Verdict::Blank => {}
        }
    }
    match (best, damaged) {
        (Some(best), _) => Ok(best.clone()),
        (None, Some((address, found))) => Err(OpenError::Damaged {
            what: "superblock".into(),
            address,
            expected: "one valid copy at least".into(),
            found,
        }),
        (None, None) => Err(OpenError::NotFormatted { why: "no superblock in any of its places".into() }),
    }
}

pub(crate) fn fits(sb: &Superblock, regions: &Regions, options: &OpenOptions) -> Result<(), OpenError> {
    if let Some(expected) = options.cluster
        && expected != sb.cluster
    {
        return Err(OpenError::ForeignCluster { expected, found: sb.cluster });
    }
    let have = regions.data.len / BLOCK_SIZE;
    if have < sb.data_blocks {
        let why = format!("the data region has {have} blocks, it was formatted with {}", sb.data_blocks);
        return Err(OpenError::WrongRegions { why });
    }
    Ok(())
}

pub(crate) fn verdict(stop: Stop, journal_at: u64) -> OpenError {
    let damaged = |address: u64, expected: String, found: String| OpenError::Damaged {
        what: "journal".into(),
        address,
        expected,
        found,
    };
    match stop {
        Stop::Lost { floor, have, at } => damaged(
            journal_at + at,
            format!("records up to lsn {floor}, which were durable"),
            format!("good records up to lsn {have} only"),
        ),
        Stop::OldSuperblock { named, have } => OpenError::Damaged {
            what: "superblock".into(),
            address: 0,
            expected: format!("generation {named}, which the journal names"),
            found: format!("generation {have} at best"),
        },
        Stop::Unnamed => damaged(journal_at, "a record that names a superblock".into(), "none".into()),
    }
}

/// Redoes one record.
pub(crate) async fn redo(
    forest: &Rc<Forest>,
    shape: Shape,
    image: &Image,
    header: &Header,
    journal_at: u64,
) -> Result<(), OpenError> {
    let address = journal_at + header.offset;
    let txs = intent::decode(&image.payload(header), header.count, address)?;
    let _epoch = forest.epoch();
    let stage = Stage::new(forest.clone());
    for (i, intents) in txs.iter().enumerate() {
        let lsn = Lsn(header.first + i as u64);
        loop {
            let attempt = apply::run(&stage, shape, lsn, intents, &mut Effects::default());
            let attempt = attempt.and_then(|()| Ok(stage.touch_new()?));
            match attempt {
                Ok(()) => break,
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
    loop {
        match stage.touch().and_then(|()| stage.mutate()) {
            Ok(()) => return Ok(()),
            Err(miss) => forest.load(miss).await?,
        }
    }
}

/// The new mount's superblock: the same trees, an epoch above any seen, and where that begins.
async fn mount(
    regions: &Regions,
    arena: &Arena,
    sb: &Superblock,
    kept: &Kept,
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
