//! The forest: four roots, the cache and the block space behind one handle.

use super::{MetaError, Miss, Root, TreeId, TreeLimits};
use crate::geometry::{Geometry, Region};
use crate::superblock::{BitmapRef, Superblock};
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use std::rc::Rc;
use uuid::Uuid;

type Entry = (Vec<u8>, Vec<u8>);

/// Counters of the node cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub hits: u64,
    pub misses: u64,
    pub reads: u64,
    pub evictions: u64,
    /// Bytes of all nodes in memory.
    pub bytes: u64,
    /// Bytes changed since the last freeze.
    pub dirty_bytes: u64,
    /// Bytes of the generation that is being written.
    pub frozen_bytes: u64,
    /// Clean bytes that open epochs hold.
    pub pinned_bytes: u64,
}

/// What a written generation consists of; goes into the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roots {
    pub generation: u64,
    pub roots: [Root; 4],
    pub bitmap: BitmapRef,
}

/// A generation on its way to the disk.
pub struct Frozen {}

/// Keeps the nodes that are touched from now on in the cache until it is dropped.
pub struct EpochGuard {}

/// Handle to a target's trees. Clones share them.
#[derive(Clone)]
pub struct Forest(Rc<()>);

#[expect(unused_variables, reason = "the signatures come first, to build on")]
impl Forest {
    /// Empty trees for `format`; the first freeze is generation 1.
    pub fn create(
        ctx: &Ctx,
        meta: &Region,
        arena: &Arena,
        geometry: Geometry,
        target: Uuid,
        limits: TreeLimits,
    ) -> Forest {
        unreachable!("signature only")
    }

    /// The trees of `superblock`. The running generation is the superblock's + 2: the one between is
    /// for the superblock that recovery writes.
    ///
    /// # Errors
    /// [`MetaError`] about the bitmap.
    pub async fn open(
        ctx: &Ctx,
        meta: &Region,
        arena: &Arena,
        superblock: &Superblock,
        limits: TreeLimits,
    ) -> Result<Forest, MetaError> {
        unreachable!("signature only")
    }

    /// Most bytes of a key and its value together.
    pub fn entry_max(&self) -> usize {
        unreachable!("signature only")
    }
    /// Most bytes of a key.
    pub fn key_max(&self) -> usize {
        unreachable!("signature only")
    }

    pub fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Vec<u8>>, Miss> {
        unreachable!("signature only")
    }
    /// As `get`, without a copy.
    pub fn get_with<R>(
        &self,
        tree: TreeId,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, Miss> {
        unreachable!("signature only")
    }
    /// First entry with key >= from.
    pub fn next(&self, tree: TreeId, from: &[u8]) -> Result<Option<Entry>, Miss> {
        unreachable!("signature only")
    }
    /// Last entry with key <= from.
    pub fn prev(&self, tree: TreeId, from: &[u8]) -> Result<Option<Entry>, Miss> {
        unreachable!("signature only")
    }
    /// Entries from `from` to before `until`, up to the limits (at least one entry, if any is there).
    pub fn scan(
        &self,
        tree: TreeId,
        from: &[u8],
        until: Option<&[u8]>,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, Miss> {
        unreachable!("signature only")
    }
    /// Brings the path to `key` under the protection of the open epochs.
    pub fn touch(&self, tree: TreeId, key: &[u8]) -> Result<(), Miss> {
        unreachable!("signature only")
    }
    /// As `touch`, for the path that `next(tree, from)` reads.
    pub fn touch_next(&self, tree: TreeId, from: &[u8]) -> Result<(), Miss> {
        unreachable!("signature only")
    }
    /// As `touch`, for the path that `prev(tree, from)` reads.
    pub fn touch_prev(&self, tree: TreeId, from: &[u8]) -> Result<(), Miss> {
        unreachable!("signature only")
    }
    /// Inserts or replaces. All or nothing; after a touch of the key in an open epoch it only ever misses for space.
    pub fn put(&self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<(), Miss> {
        unreachable!("signature only")
    }
    /// Whether the key was there. Same promise as `put`.
    pub fn delete(&self, tree: TreeId, key: &[u8]) -> Result<bool, Miss> {
        unreachable!("signature only")
    }
    /// Brings what was missed.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn load(&self, miss: Miss) -> Result<(), MetaError> {
        unreachable!("signature only")
    }
    pub fn epoch(&self) -> EpochGuard {
        unreachable!("signature only")
    }
    pub fn dirty_bytes(&self) -> u64 {
        unreachable!("signature only")
    }
    pub fn cache_stats(&self) -> CacheStats {
        unreachable!("signature only")
    }
    /// Dirty and pinned nodes use more of the cache than they should: admit no more, checkpoint.
    pub fn pressure(&self) -> bool {
        unreachable!("signature only")
    }
    /// Node blocks that may be allocated now.
    pub fn meta_free(&self) -> u64 {
        unreachable!("signature only")
    }
    /// Most node blocks that one put or delete in any tree may take: what admission reserves for each.
    pub fn blocks_per_op(&self) -> u64 {
        unreachable!("signature only")
    }
    /// Generation that changes belong to now.
    pub fn generation(&self) -> u64 {
        unreachable!("signature only")
    }

    /// Ends the running generation and begins the next. At most one generation is frozen at a time.
    pub fn freeze(&self) -> Frozen {
        unreachable!("signature only")
    }
    /// Writes a frozen generation and flushes.
    ///
    /// # Errors
    /// [`MetaError`]: the target fails; nothing durable was overwritten.
    pub async fn write(
        &self,
        frozen: &Frozen,
        pace: Option<std::time::Duration>,
    ) -> Result<Roots, MetaError> {
        unreachable!("signature only")
    }
    /// The generation's naming record is durable: what it no longer refers to may be reused.
    pub fn release(&self, frozen: Frozen) {
        unreachable!("signature only")
    }
}
