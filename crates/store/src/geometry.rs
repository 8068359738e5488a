//! Where everything lies on a meta region. Computed from four numbers, so that two readers never
//! disagree; the superblock stores the result and a reader checks it against its own computation.
//!
//! ```text
//! | slot A copy 0 | slot B copy 0 | bitmap area 0 | bitmap area 1 | journal ring | node blocks ... | slot A copy 1 | slot B copy 1 |
//! ```
//!
//! The two copies of a slot are at the two ends of the region: what ruins one end spares the other.

use cobalt_base::BLOCK_SIZE;
use cobalt_bdev::{Device, IoError, WriteData};
use cobalt_dma::Buf;

/// Smallest and largest size of a node block, in bytes; a power of two between them.
pub const NODE_SIZE_MIN: u32 = 4096;
/// See [`NODE_SIZE_MIN`]. Offsets inside of a node are 16-bit numbers.
pub const NODE_SIZE_MAX: u32 = 32_768;
/// Size of a node block unless the operator says otherwise, in bytes.
pub const NODE_SIZE: u32 = 16_384;
/// Fewest node blocks that are of any use: a checkpoint rewrites paths of all trees.
pub const NODE_BLOCKS_MIN: u64 = 64;
/// Shortest journal ring, in bytes.
pub const JOURNAL_LEN_MIN: u64 = 64 * 1024;
/// Superblock slots, used in turn, and the copies of each.
pub const SLOTS: u64 = 2;
/// See [`SLOTS`].
pub const COPIES: u64 = 2;

/// A range of a device. Addresses given to it are relative to its start, in bytes.
#[derive(Clone)]
pub struct Region {
    /// The device.
    pub device: Device,
    /// First byte on the device, a multiple of 4,096.
    pub offset: u64,
    /// Length in bytes, a multiple of 4,096.
    pub len: u64,
}

impl Region {
    /// Fills `buf` from byte `at` of the region.
    ///
    /// # Errors
    /// [`IoError`]; `Invalid` when the range is not inside of the region.
    pub async fn read(&self, at: u64, buf: Buf) -> Result<Buf, IoError> {
        self.check("read", at, buf.len() as u64)?;
        self.device.read(self.offset + at, buf).await
    }

    /// Writes `data` at byte `at` of the region; with `fua`, durable when this returns.
    ///
    /// # Errors
    /// [`IoError`]; `Invalid` when the range is not inside of the region.
    pub async fn write(&self, at: u64, data: WriteData, fua: bool) -> Result<(), IoError> {
        self.check("write", at, data.iter().map(|s| s.len() as u64).sum())?;
        self.device.write(self.offset + at, data, fua).await
    }

    /// The same on a device where no write waits; any other gives the bytes back.
    ///
    /// # Errors
    /// The bytes.
    pub(crate) fn write_now(&self, at: u64, data: WriteData) -> Result<Result<(), IoError>, WriteData> {
        match self.check("write", at, data.iter().map(|s| s.len() as u64).sum()) {
            Ok(()) => self.device.write_now(self.offset + at, data),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Makes completed writes durable.
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn flush(&self) -> Result<(), IoError> {
        self.device.flush().await
    }

    fn check(&self, op: &'static str, at: u64, len: u64) -> Result<(), IoError> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(IoError::Invalid { op, offset: at, len }),
        }
    }
}

/// Why no layout exists for a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The node size is not a power of two in range.
    #[error("node size {0} is not a power of two from {NODE_SIZE_MIN} to {NODE_SIZE_MAX}")]
    NodeSize(u32),
    /// The journal's length is too short or unaligned.
    #[error("journal length {0} is not a multiple of {BLOCK_SIZE} of at least {JOURNAL_LEN_MIN}")]
    JournalLen(u64),
    /// The region is too short or unaligned.
    #[error(
        "a meta region of {len} bytes is too small: it needs a multiple of {BLOCK_SIZE} of at least {need}"
    )]
    RegionLen {
        /// Bytes that the region has.
        len: u64,
        /// Bytes that it needs.
        need: u64,
    },
}

/// The layout of a meta region. All lengths and offsets in bytes unless named otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Length of the region.
    pub region_len: u64,
    /// Size of a node block.
    pub node_size: u32,
    /// Length of the journal ring.
    pub journal_len: u64,
    /// Length of each of the two bitmap areas: a bit for each node block, rounded up to 4,096 bytes.
    pub bitmap_len: u64,
    /// Count of node blocks.
    pub node_blocks: u64,
}

impl Geometry {
    /// The layout for a region of `region_len` bytes.
    ///
    /// # Errors
    /// [`GeometryError`] says which of the numbers cannot be.
    pub fn plan(region_len: u64, node_size: u32, journal_len: u64) -> Result<Geometry, GeometryError> {
        if !node_size.is_power_of_two() || !(NODE_SIZE_MIN..=NODE_SIZE_MAX).contains(&node_size) {
            return Err(GeometryError::NodeSize(node_size));
        }
        if journal_len < JOURNAL_LEN_MIN || !journal_len.is_multiple_of(BLOCK_SIZE) {
            return Err(GeometryError::JournalLen(journal_len));
        }
        let size = u64::from(node_size);
        let superblocks = SLOTS * COPIES * BLOCK_SIZE;
        let need =
            superblocks.saturating_add(2 * BLOCK_SIZE + NODE_BLOCKS_MIN * size).saturating_add(journal_len);
        if region_len < need || !region_len.is_multiple_of(BLOCK_SIZE) {
            return Err(GeometryError::RegionLen { len: region_len, need });
        }
        let room = region_len - superblocks - journal_len;
        // A little longer than needed: it has bits for the blocks that the bitmaps themselves displace.
        let bitmap_len = (room / size).div_ceil(8).next_multiple_of(BLOCK_SIZE);
        let node_blocks = (room - 2 * bitmap_len.min(room / 2)) / size;
        if node_blocks < NODE_BLOCKS_MIN {
            return Err(GeometryError::RegionLen { len: region_len, need: need + 2 * bitmap_len });
        }
        Ok(Geometry { region_len, node_size, journal_len, bitmap_len, node_blocks })
    }

    /// Where copy `copy` of slot `slot` of the superblock lies in a region of `region_len` bytes.
    pub fn superblock_at(region_len: u64, slot: u64, copy: u64) -> u64 {
        assert!(slot < SLOTS && copy < COPIES, "superblock slot {slot} copy {copy} does not exist");
        let in_group = slot * BLOCK_SIZE;
        if copy == 0 { in_group } else { region_len - SLOTS * BLOCK_SIZE + in_group }
    }

    /// Where bitmap area `area` (0 or 1) begins.
    pub fn bitmap_at(&self, area: u32) -> u64 {
        assert!(area < 2, "bitmap area {area} does not exist");
        SLOTS * BLOCK_SIZE + u64::from(area) * self.bitmap_len
    }

    /// Where the journal ring begins.
    pub fn journal_at(&self) -> u64 {
        SLOTS * BLOCK_SIZE + 2 * self.bitmap_len
    }

    /// Where node block `block` begins.
    pub fn node_at(&self, block: u64) -> u64 {
        self.journal_at() + self.journal_len + block * u64::from(self.node_size)
    }
}

#[cfg(test)]
mod tests {
    use super::{COPIES, Geometry, GeometryError, JOURNAL_LEN_MIN, NODE_BLOCKS_MIN, SLOTS};
    use cobalt_base::BLOCK_SIZE;

    #[test]
    fn parts_do_not_overlap_and_fill_the_region() {
        for node_size in [4096, 8192, 16_384, 32_768] {
            for blocks in [NODE_BLOCKS_MIN + 8, 1000, 40_000, 3_000_001] {
                let len = (blocks * u64::from(node_size)).next_multiple_of(BLOCK_SIZE) + (1 << 20);
                let g = Geometry::plan(len, node_size, 1 << 17).unwrap();
                assert!(g.node_blocks <= g.bitmap_len * 8, "a bit for every block");
                assert_eq!(g.bitmap_at(0), SLOTS * BLOCK_SIZE);
                assert_eq!(g.bitmap_at(1), g.bitmap_at(0) + g.bitmap_len);
                assert_eq!(g.journal_at(), g.bitmap_at(1) + g.bitmap_len);
                let end = g.node_at(g.node_blocks);
                let tail = Geometry::superblock_at(len, 0, COPIES - 1);
                assert!(end <= tail && tail - end < u64::from(node_size) + 4 * BLOCK_SIZE);
                assert_eq!(Geometry::superblock_at(len, 1, 1) + BLOCK_SIZE, len);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(Geometry::plan(1 << 30, 5000, 1 << 20), Err(GeometryError::NodeSize(5000)));
        assert_eq!(Geometry::plan(1 << 30, 4096, 4096), Err(GeometryError::JournalLen(4096)));
        assert_eq!(Geometry::plan(1 << 30, 4096, u64::MAX), Err(GeometryError::JournalLen(u64::MAX)));
        let small = Geometry::plan(128 << 10, 4096, JOURNAL_LEN_MIN);
        assert!(matches!(small, Err(GeometryError::RegionLen { .. })));
    }
}
