//! Making a new target. A device that holds anything is refused, with the name of what it holds.

use crate::error::FormatError;
use crate::geometry::{Geometry, GeometryError, Region};
use crate::intent::{self, Intent};
use crate::journal::ring::{Journal, Start};
use crate::limits::Limits;
use crate::options::FormatOptions;
use crate::recovery::first_chain;
use crate::region::Regions;
use crate::superblock::{self, JournalPosition, NAME_MAX, Superblock};
use crate::tree::{Forest, TreeLimits};
use cobalt_base::{BLOCK_SIZE, Lsn};
use cobalt_bdev::IoError;
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;

/// Smallest data region, in bytes.
pub const DATA_MIN: u64 = 1 << 20;
/// Bytes at the start of a region that are looked at for traces of others.
const LOOK: u64 = 1 << 20;

/// What others write near the start of a device: offset, bytes, name.
const SIGNATURES: [(usize, &[u8], &str); 16] = [
    (0, b"COBALTSB", "another Cobalt target"),
    (4096, b"COBALTSB", "another Cobalt target"),
    (0x438, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"LABELONE", "an LVM physical volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a Linux md RAID member"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a Linux md RAID member"),
    (4086, b"SWAPSPACE2", "a swap area"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (510, &[0x55, 0xaa], "an MBR partition table"),
];

/// Makes a target of two regions: superblocks wiped, record 1 names generation 1, empty trees, and the
/// superblock last, so that a format that was cut short is no target.
///
/// # Errors
/// [`FormatError`]; nothing was written when it says `InUse`, `TooSmall` or `Invalid`.
pub async fn format(
    ctx: &Ctx,
    regions: &Regions,
    arena: &Arena,
    options: &FormatOptions,
) -> Result<(), FormatError> {
    let geometry = plan(regions, options)?;
    if !options.force {
        for region in [&regions.meta, &regions.data] {
            if let Some(found) = look(region, arena).await? {
                return Err(FormatError::InUse { found });
            }
        }
    }
    wipe_superblocks(&regions.meta, arena).await?;
    let start = Start {
        at: geometry.journal_at(),
        len: geometry.journal_len,
        tail: 0,
        used: 0,
        chain: first_chain(options.target),
        next_lsn: 1,
        epoch: 1,
        named: 0,
    };
    let journal = Journal::new(&regions.meta, arena, options.target, start, &Limits::default()).await;
    let mut payload = Vec::new();
    intent::encode(&[Intent::Named { generation: 1 }], &mut payload);
    journal.write(1, 1, &payload).await?;
    let limits = TreeLimits::default();
    let forest = Forest::create(ctx, &regions.meta, arena, geometry, options.target, limits);
    let frozen = forest.freeze();
    let written = forest.write(&frozen, |_| None).await?;
    let data_blocks = regions.data.len / BLOCK_SIZE;
    let sb = Superblock {
        target: options.target,
        cluster: options.cluster,
        name: options.name.clone(),
        generation: written.generation,
        mount_epoch: 1,
        epoch_start: Lsn(1),
        checkpoint_lsn: Lsn(0),
        journal: JournalPosition { offset: 0, chain: start.chain },
        roots: written.roots,
        bitmap: written.bitmap,
        geometry,
        data_blocks,
        data_free: data_blocks,
    };
    superblock::write(&regions.meta, arena, &sb).await?;
    forest.release(frozen);
    Ok(())
}

fn plan(regions: &Regions, options: &FormatOptions) -> Result<Geometry, FormatError> {
    if options.name.is_empty() || options.name.len() > NAME_MAX {
        return Err(FormatError::Invalid(format!("a name has 1 to {NAME_MAX} bytes")));
    }
    if regions.data.len < DATA_MIN {
        return Err(FormatError::TooSmall { region: "data", len: regions.data.len, min: DATA_MIN });
    }
    let chosen = (regions.meta.len / 8).clamp(256 << 10, 64 << 20) / BLOCK_SIZE * BLOCK_SIZE;
    let journal = options.journal.unwrap_or(chosen);
    Geometry::plan(regions.meta.len, options.node_size, journal).map_err(|e| match e {
        GeometryError::RegionLen { len, need } => FormatError::TooSmall { region: "meta", len, min: need },
        other => FormatError::Invalid(other.to_string()),
    })
}

/// What the first MiB of a region holds, if anything.
pub(crate) async fn look(region: &Region, arena: &Arena) -> Result<Option<String>, IoError> {
    let len = LOOK.min(region.len);
    let step = u64::from(region.device.identify().transfer_max).min(LOOK) / BLOCK_SIZE * BLOCK_SIZE;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < len {
        let piece = step.max(BLOCK_SIZE).min(len - bytes.len() as u64);
        let buf = arena.alloc(piece as usize).await;
        bytes.extend_from_slice(&region.read(bytes.len() as u64, buf).await?);
    }
    let named = SIGNATURES.iter().find(|(at, mark, _)| bytes.get(*at..*at + mark.len()) == Some(*mark));
    if let Some((_, _, name)) = named {
        return Ok(Some((*name).to_owned()));
    }
    Ok(bytes.iter().position(|b| *b != 0).map(|at| format!("data of an unknown kind (first at byte {at})")))
}

async fn wipe_superblocks(meta: &Region, arena: &Arena) -> Result<(), IoError> {
    for slot in 0..crate::geometry::SLOTS {
        for copy in 0..crate::geometry::COPIES {
            let mut buf = arena.alloc(BLOCK_SIZE as usize).await;
            buf.fill(0);
            let at = Geometry::superblock_at(meta.len, slot, copy);
            meta.write(at, std::iter::once(buf.freeze()).collect(), false).await?;
        }
    }
    meta.flush().await
}
