//! What callers see of a component object.

use crate::tree::Hint;
use cobalt_base::Fid;
use cobalt_dma::Slice;

/// What a cob is created with, and must still have when it is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CobAttrs {
    /// Bytes per checksummed chunk: a multiple of 4,096, at most 65,536.
    pub chunk_size: u32,
    /// Incarnation of the catalogue that the fid comes from (I9a).
    pub incarnation: u64,
}

/// A cob as a transaction found it, or as the transaction will create it.
#[derive(Clone, Debug)]
pub struct Cob {
    pub(crate) fid: Fid,
    pub(crate) attrs: CobAttrs,
    /// The generation that was found; `None` when the cob is yet to be created.
    pub(crate) generation: Option<u64>,
    /// The leaf that has its row.
    pub(crate) leaf: Option<Hint>,
}

/// Attributes of a cob that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CobInfo {
    pub chunk_size: u32,
    pub incarnation: u64,
    /// The lsn that created it.
    pub generation: u64,
    /// End of its last byte.
    pub size: u64,
    /// Bytes of data blocks it holds.
    pub allocated: u64,
}

/// Bytes of a cob that have passed their checksums.
#[derive(Clone, Debug)]
pub struct CobData {
    /// The bytes, in order, in as many pieces as the device reads took.
    pub slices: Vec<Slice>,
    /// CRC32C of each chunk's real bytes.
    pub crcs: Vec<u32>,
    /// Bytes per chunk; the last one may be short.
    pub chunk_size: u32,
    /// Bytes in all.
    pub len: u64,
}
