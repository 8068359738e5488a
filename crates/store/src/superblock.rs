//! The superblock: the one structure that nothing refers to, from which everything else is found.
//!
//! Two slots are used in turn by the parity of the generation; each has two copies at the two ends of
//! the region. A generation is never written over the one before it (I5). Whether a superblock is the
//! newest is not for it to say: the journal names each generation, and recovery compares.

use crate::geometry::{COPIES, Geometry, Region, SLOTS};
use crate::journal::table::{Fact, Facts};
use crate::tree::{MetaError, NodeRef, Root};
use cobalt_base::{BLOCK_SIZE, Lsn, checksum::xxh3};
use cobalt_bdev::IoError;
use cobalt_dma::Arena;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The format that this code reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Longest name of a target, in bytes of UTF-8.
pub const NAME_MAX: usize = 64;

/// Highest generation, epoch and lsn: nobody counts that far, so adding to them never overflows.
pub(crate) const COUNT_MAX: u64 = u64::MAX >> 8;

const MAGIC: [u8; 8] = *b"COBALTSB";
/// Ties the checksum to this structure: no other checksummed bytes pass for a superblock.
const SEED: u64 = 0x636f_6261_6c74_5342;

/// Where redo starts: the place right after the record of the checkpoint's lsn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalPosition {
    /// Byte offset in the ring.
    pub offset: u64,
    /// Checksum of the record before it, which the next record chains to.
    pub chain: u64,
}

/// Which bitmap area holds the used node blocks of this generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BitmapRef {
    /// 0 or 1.
    pub area: u32,
    /// Bytes that the checksum covers.
    pub len: u64,
    /// xxh3 of them, under the target's seed.
    pub checksum: u64,
}

/// A superblock, in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The target that this region belongs to.
    pub target: Uuid,
    /// The cluster that the target belongs to.
    pub cluster: Uuid,
    /// The operator's name for the target, at most [`NAME_MAX`] bytes.
    pub name: String,
    /// Counts superblocks; the parity chooses the slot.
    pub generation: u64,
    /// Counts mounts that wrote.
    pub mount_epoch: u64,
    /// First lsn of the epoch: older epochs' records from here on are void.
    pub epoch_start: Lsn,
    /// Everything up to this lsn is in the trees.
    pub checkpoint_lsn: Lsn,
    /// Where redo starts.
    pub journal: JournalPosition,
    /// Roots, in the order of [`crate::tree::TreeId::ALL`].
    pub roots: [Root; 4],
    /// Used node blocks.
    pub bitmap: BitmapRef,
    /// Layout of this region.
    pub geometry: Geometry,
    /// Blocks of [`BLOCK_SIZE`] bytes in the data region.
    pub data_blocks: u64,
    /// How many of them are free.
    pub data_free: u64,
}

impl Superblock {
    /// The slot that this generation is written to.
    pub fn slot(&self) -> u64 {
        self.generation % SLOTS
    }
}

/// What one copy turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A superblock whose checks all hold.
    Valid(Box<Superblock>),
    /// All zeroes: never written.
    Blank,
    /// Whole, but of a format that this version does not know.
    Newer(u32),
    /// Not a superblock, or one that a check rejects.
    Corrupt(String),
    /// The device did not give it.
    ReadError(IoError),
}

/// One copy and what was found there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Slot, 0 or 1.
    pub slot: u64,
    /// Copy, 0 or 1.
    pub copy: u64,
    /// Byte offset on the region.
    pub at: u64,
    /// What it is.
    pub verdict: Verdict,
}

/// Magic, version and checksum keep their place and meaning in every version: that is how a newer one is told from rot.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    version: U32,
    bitmap_area: U32,
    checksum: U64,
    target: [u8; 16],
    cluster: [u8; 16],
    name: [u8; NAME_MAX],
    generation: U64,
    mount_epoch: U64,
    epoch_start: U64,
    checkpoint_lsn: U64,
    journal_offset: U64,
    journal_chain: U64,
    roots: [DiskRoot; 4],
    bitmap_used_len: U64,
    bitmap_checksum: U64,
    region_len: U64,
    journal_len: U64,
    bitmap_len: U64,
    node_blocks: U64,
    data_blocks: U64,
    data_free: U64,
    node_size: U32,
    name_len: U32,
    rest: [u8; 3728],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DiskRoot {
    block: U64,
    generation: U64,
    checksum: U64,
    height: U32,
    zero: U32,
}

const _: () = assert!(size_of::<Disk>() == BLOCK_SIZE as usize);
const _: () = assert!(size_of::<DiskRoot>() == 32);

/// Reads every copy. The region's length alone says where they are.
pub async fn read_all(meta: &Region, arena: &Arena) -> Vec<Copy> {
    let mut copies = Vec::with_capacity((SLOTS * COPIES) as usize);
    for slot in 0..SLOTS {
        for copy in 0..COPIES {
            let at = Geometry::superblock_at(meta.len, slot, copy);
            let buf = arena.alloc(BLOCK_SIZE as usize).await;
            let verdict = match meta.read(at, buf).await {
                Ok(buf) => parse(&buf, meta.len, slot),
                Err(error) => Verdict::ReadError(error),
            };
            copies.push(Copy { slot, copy, at, verdict });
        }
    }
    copies
}

/// What all copies say together.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    /// The valid one of the highest generation.
    pub best: Option<Superblock>,
    /// A copy that could not be read: where, and why.
    pub unreadable: Option<(u64, IoError)>,
    /// The format of a copy that a newer version wrote.
    pub newer: Option<u32>,
    /// A copy that begins as a superblock and fails a check: where, and which.
    pub hurt: Option<(u64, String)>,
    /// Another target that a valid copy belongs to: where, and which.
    pub other: Option<(u64, Uuid)>,
}

impl Choice {
    /// Looks through the copies.
    pub(crate) fn of(copies: &[Copy]) -> Choice {
        let mut choice = Choice::default();
        for copy in copies {
            match &copy.verdict {
                Verdict::Valid(sb) => match &choice.best {
                    Some(best) if best.target != sb.target => choice.other = Some((copy.at, sb.target)),
                    Some(best) if best.generation >= sb.generation => {}
                    _ => choice.best = Some(Superblock::clone(sb)),
                },
                Verdict::Newer(found) => choice.newer = Some(*found),
                Verdict::ReadError(error) => choice.unreadable = Some((copy.at, error.clone())),
                Verdict::Corrupt(why) if !why.starts_with("magic") => {
                    choice.hurt = Some((copy.at, why.clone()));
                }
                Verdict::Corrupt(_) | Verdict::Blank => {}
            }
        }
        choice
    }

    /// The answers to the table's questions about superblocks.
    pub(crate) fn facts(&self) -> Facts {
        Facts::default()
            .with(Fact::Unreadable, self.unreadable.is_some())
            .with(Fact::Newer, self.newer.is_some())
            .with(Fact::Valid, self.best.is_some())
            .with(Fact::Mixed, self.other.is_some())
            .with(Fact::Hurt, self.hurt.is_some())
    }
}

/// Writes all copies of the superblock's slot, then flushes. Durable when it returns.
///
/// # Errors
/// [`MetaError::Io`]: the state of this slot is unknown then; the other slot is untouched.
pub async fn write(meta: &Region, arena: &Arena, superblock: &Superblock) -> Result<(), MetaError> {
    let mut buf = arena.alloc(BLOCK_SIZE as usize).await;
    buf.copy_from_slice(encode(superblock).as_bytes());
    let image = buf.freeze();
    for copy in 0..COPIES {
        let at = Geometry::superblock_at(meta.len, superblock.slot(), copy);
        let data = std::iter::once(image.clone()).collect();
        meta.write(at, data, false).await.map_err(MetaError::io("superblock write"))?;
    }
    meta.flush().await.map_err(MetaError::io("flush after the superblock"))
}

fn encode(sb: &Superblock) -> Box<Disk> {
    assert!(sb.name.len() <= NAME_MAX, "format refuses names above {NAME_MAX} bytes");
    let mut disk = Box::new(Disk::new_zeroed());
    disk.magic = MAGIC;
    disk.version = FORMAT_VERSION.into();
    disk.target = *sb.target.as_bytes();
    disk.cluster = *sb.cluster.as_bytes();
    disk.name[..sb.name.len()].copy_from_slice(sb.name.as_bytes());
    disk.name_len = U32::new(u32::try_from(sb.name.len()).expect("asserted above"));
    disk.generation = sb.generation.into();
    disk.mount_epoch = sb.mount_epoch.into();
    disk.epoch_start = sb.epoch_start.0.into();
    disk.checkpoint_lsn = sb.checkpoint_lsn.0.into();
    disk.journal_offset = sb.journal.offset.into();
    disk.journal_chain = sb.journal.chain.into();
    for (out, root) in disk.roots.iter_mut().zip(&sb.roots) {
        out.block = root.node.block.into();
        out.generation = root.node.generation.into();
        out.checksum = root.node.checksum.into();
        out.height = root.height.into();
    }
    disk.bitmap_area = sb.bitmap.area.into();
    disk.bitmap_used_len = sb.bitmap.len.into();
    disk.bitmap_checksum = sb.bitmap.checksum.into();
    disk.region_len = sb.geometry.region_len.into();
    disk.journal_len = sb.geometry.journal_len.into();
    disk.bitmap_len = sb.geometry.bitmap_len.into();
    disk.node_blocks = sb.geometry.node_blocks.into();
    disk.node_size = sb.geometry.node_size.into();
    disk.data_blocks = sb.data_blocks.into();
    disk.data_free = sb.data_free.into();
    disk.checksum = xxh3(SEED, disk.as_bytes()).into();
    disk
}

/// Length of the meta region and blocks of the data region that a whole superblock of this format was made for, wherever it
/// lies now.
pub(crate) fn formatted_size(bytes: &[u8]) -> Option<(u64, u64)> {
    let mut disk = Box::new(Disk::read_from_bytes(bytes).ok()?);
    let found = disk.checksum.get();
    disk.checksum = U64::ZERO;
    let whole = disk.magic == MAGIC && disk.version.get() == FORMAT_VERSION;
    (whole && found == xxh3(SEED, disk.as_bytes())).then(|| (disk.region_len.get(), disk.data_blocks.get()))
}

pub(crate) fn parse(bytes: &[u8], region_len: u64, slot: u64) -> Verdict {
    if bytes.iter().all(|b| *b == 0) {
        return Verdict::Blank;
    }
    let Ok(disk) = Disk::read_from_bytes(bytes) else {
        return Verdict::Corrupt(format!("{} bytes instead of {BLOCK_SIZE}", bytes.len()));
    };
    if disk.magic != MAGIC {
        return Verdict::Corrupt(format!("magic is {:02x?}", disk.magic));
    }
    let found = disk.checksum.get();
    let mut disk = Box::new(disk);
    disk.checksum = U64::ZERO;
    let computed = xxh3(SEED, disk.as_bytes());
    if found != computed {
        return Verdict::Corrupt(format!("checksum is {found:016x}, its bytes give {computed:016x}"));
    }
    match disk.version.get() {
        FORMAT_VERSION => {}
        version if version > FORMAT_VERSION => return Verdict::Newer(version),
        version => return Verdict::Corrupt(format!("format version {version} never existed")),
    }
    match decode(&disk, region_len) {
        Ok(sb) if sb.slot() != slot => {
            Verdict::Corrupt(format!("generation {} does not belong in slot {slot}", sb.generation))
        }
        Ok(sb) => Verdict::Valid(Box::new(sb)),
        Err(why) => Verdict::Corrupt(why),
    }
}

fn decode(disk: &Disk, region_len: u64) -> Result<Superblock, String> {
    let planned = Geometry::plan(region_len, disk.node_size.get(), disk.journal_len.get())
        .map_err(|e| format!("no layout exists for what it says: {e}"))?;
    let geometry = Geometry {
        region_len: disk.region_len.get(),
        node_size: disk.node_size.get(),
        journal_len: disk.journal_len.get(),
        bitmap_len: disk.bitmap_len.get(),
        node_blocks: disk.node_blocks.get(),
    };
    if geometry != planned {
        return Err(format!("its layout is {geometry:?}; a region of {region_len} bytes has {planned:?}"));
    }
    let name = disk.name.get(..disk.name_len.get() as usize).ok_or("name length is out of range")?;
    let name = std::str::from_utf8(name).map_err(|_| "name is not UTF-8")?.to_owned();
    let mut roots = [Root::default(); 4];
    for (root, on_disk) in roots.iter_mut().zip(&disk.roots) {
        *root = decode_root(on_disk, &geometry, disk.generation.get())?;
    }
    let bitmap = BitmapRef {
        area: disk.bitmap_area.get(),
        len: disk.bitmap_used_len.get(),
        checksum: disk.bitmap_checksum.get(),
    };
    if bitmap.area > 1 || bitmap.len != geometry.bitmap_len {
        return Err(format!("{bitmap:?} does not fit the layout"));
    }
    let offset = disk.journal_offset.get();
    let data_blocks = disk.data_blocks.get();
    if offset >= geometry.journal_len || !offset.is_multiple_of(BLOCK_SIZE) {
        return Err(format!("journal offset {offset} is out of range"));
    }
    if data_blocks == 0 || disk.data_free.get() > data_blocks {
        return Err(format!("{} of {data_blocks} data blocks are free", disk.data_free.get()));
    }
    let counts = [disk.generation, disk.mount_epoch, disk.epoch_start, disk.checkpoint_lsn];
    if counts.iter().any(|count| count.get() > COUNT_MAX) {
        return Err("a generation, epoch or lsn is out of range".into());
    }
    Ok(Superblock {
        target: Uuid::from_bytes(disk.target),
        cluster: Uuid::from_bytes(disk.cluster),
        name,
        generation: disk.generation.get(),
        mount_epoch: disk.mount_epoch.get(),
        epoch_start: Lsn(disk.epoch_start.get()),
        checkpoint_lsn: Lsn(disk.checkpoint_lsn.get()),
        journal: JournalPosition { offset: disk.journal_offset.get(), chain: disk.journal_chain.get() },
        roots,
        bitmap,
        geometry,
        data_blocks: disk.data_blocks.get(),
        data_free: disk.data_free.get(),
    })
}

fn decode_root(disk: &DiskRoot, geometry: &Geometry, generation: u64) -> Result<Root, String> {
    let node =
        NodeRef { block: disk.block.get(), generation: disk.generation.get(), checksum: disk.checksum.get() };
    let root = Root { node, height: disk.height.get() };
    let empty = root == Root::default();
    let sound = node.block < geometry.node_blocks
        && node.generation <= generation
        && node.checksum != 0
        && (1..=crate::tree::limits::HEIGHT_MAX).contains(&root.height);
    if empty || sound { Ok(root) } else { Err(format!("root {root:?} is out of range")) }
}

#[cfg(test)]
mod tests {
    use super::{BitmapRef, Disk, JournalPosition, NodeRef, Root, SEED, Superblock, Verdict, encode, parse};
    use crate::geometry::{Geometry, JOURNAL_LEN_MIN};
    use cobalt_base::{Lsn, checksum::xxh3};
    use uuid::Uuid;
    use zerocopy::little_endian::{U32, U64};
    use zerocopy::{FromBytes, IntoBytes};

    const LEN: u64 = 8 << 20;

    fn superblock() -> Superblock {
        let geometry = Geometry::plan(LEN, 4096, JOURNAL_LEN_MIN).unwrap();
        let root = |block| Root { node: NodeRef { block, generation: 3, checksum: 5 }, height: 2 };
        Superblock {
            target: Uuid::from_u128(1),
            cluster: Uuid::from_u128(2),
            name: "nvme-7 \u{e9}tage".into(),
            generation: 8,
            mount_epoch: 2,
            epoch_start: Lsn(40),
            checkpoint_lsn: Lsn(77),
            journal: JournalPosition { offset: 8192, chain: 0xfeed },
            roots: [root(1), Root::default(), root(9), root(4)],
            bitmap: BitmapRef { area: 1, len: geometry.bitmap_len, checksum: 6 },
            geometry,
            data_blocks: 500,
            data_free: 499,
        }
    }

    fn resealed(mut disk: Disk) -> Vec<u8> {
        disk.checksum = U64::ZERO;
        disk.checksum = xxh3(SEED, disk.as_bytes()).into();
        disk.as_bytes().to_vec()
    }

    #[test]
    fn what_is_written_is_read() {
        let sb = superblock();
        assert_eq!(parse(encode(&sb).as_bytes(), LEN, 0), Verdict::Valid(Box::new(sb)));
    }

    #[test]
    fn a_newer_format_is_told_from_rot() {
        let mut disk = *encode(&superblock());
        disk.version = U32::new(2);
        assert_eq!(parse(&resealed(disk), LEN, 0), Verdict::Newer(2));
    }

    #[test]
    fn nonsense_under_a_right_checksum_is_a_verdict_and_no_panic() {
        let image = encode(&superblock()).as_bytes().to_vec();
        let mut rejected = 0;
        for at in 0..400 {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = image.clone();
                bad[at] ^= flip;
                let bad = resealed(Disk::read_from_bytes(&bad).unwrap());
                rejected += usize::from(!matches!(parse(&bad, LEN, 0), Verdict::Valid(_)));
            }
        }
        assert!(rejected > 300, "{rejected}");
    }
}
