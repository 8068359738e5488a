//! A generation on its way to the disk, while the next one goes on.
//!
//! Freezing takes pointers to the dirty nodes and the bitmap as they are. A parent's pointer to a
//! changed child has no checksum yet: the leaves are written first, then the level above, each in the
//! order of addresses, so that neighbours leave in one write. Memory stays bounded by the writes in flight.

use super::cache::BlockMap;
use super::forest::{Forest, seed_of};
use super::metaspace::Metaspace;
use super::node::Node;
use super::{MetaError, NodeRef, Root};
use crate::geometry::Region;
use crate::superblock::{BitmapRef, Superblock};
use cobalt_base::canary::{Canary, planted};
use cobalt_base::{BLOCK_SIZE, Corrupt, checksum::xxh3};
use cobalt_bdev::IoError;
use cobalt_dma::Arena;
use futures::stream::{FuturesUnordered, StreamExt};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// What a written generation consists of; goes into the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roots {
    /// The generation.
    pub generation: u64,
    /// Its roots, in the order of the superblock.
    pub roots: [Root; 4],
    /// Its used node blocks.
    pub bitmap: BitmapRef,
}

/// A generation that no longer changes and is not yet durable.
#[must_use = "a frozen generation is written, named and released"]
pub struct Frozen {
    generation: u64,
    roots: [Root; 4],
    nodes: RefCell<Vec<Rc<Node>>>,
    bitmap: Vec<u8>,
    area: u32,
    /// Blocks that this generation, unlike its predecessor, does not refer to.
    freed: Vec<u64>,
}

impl Frozen {
    /// The generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl Forest {
    /// Ends the running generation and begins the next.
    ///
    /// # Panics
    /// While another generation is frozen: checkpoints run one after the other.
    pub fn freeze(&self) -> Frozen {
        let inner = &mut *self.0.inner.borrow_mut();
        assert!(!inner.frozen, "a generation is frozen only after the one before it was released");
        inner.tidy();
        inner.frozen = true;
        let len = usize::try_from(self.0.geometry.bitmap_len).expect("a bitmap fits memory");
        let frozen = Frozen {
            generation: inner.generation,
            roots: inner.roots,
            nodes: RefCell::new(inner.cache.freeze()),
            bitmap: inner.space.to_bytes(len),
            area: 1 - inner.area,
            freed: inner.space.take_freed(),
        };
        inner.generation += 1;
        frozen
    }

    /// Writes a frozen generation and flushes; once for each. `pace` gives the pause after each write, from the part of
    /// the nodes that are written, 0 to 1.
    ///
    /// # Errors
    /// [`MetaError::Io`]: the target fails; nothing that a durable superblock refers to was overwritten.
    pub async fn write(
        &self,
        frozen: &Frozen,
        pace: impl Fn(f64) -> Option<Duration>,
    ) -> Result<Roots, MetaError> {
        let mut nodes = frozen.nodes.take();
        nodes.sort_unstable_by_key(|node| (node.level, node.block));
        let blocks: Vec<u64> = nodes.iter().map(|node| node.block).collect();
        let mut sums = BlockMap::default();
        self.write_nodes(nodes, &mut sums, pace).await?;
        self.write_bitmap(frozen).await?;
        if !planted(Canary::SuperblockBeforeNodes) {
            self.0.meta.flush().await.map_err(MetaError::io("flush after the checkpoint's nodes"))?;
        }
        self.thaw(frozen.generation, &blocks, &sums);
        let mut roots = frozen.roots;
        for root in &mut roots {
            resolve(&mut root.node, frozen.generation, &sums);
            assert!(root.height == 0 || root.node.checksum != 0, "a written root has a checksum");
        }
        let checksum = xxh3(self.0.seed, &frozen.bitmap);
        let bitmap = BitmapRef { area: frozen.area, len: frozen.bitmap.len() as u64, checksum };
        Ok(Roots { generation: frozen.generation, roots, bitmap })
    }

    /// The generation is durable and the journal names it: blocks that it does not refer to may be reused.
    pub fn release(&self, frozen: Frozen) {
        let inner = &mut *self.0.inner.borrow_mut();
        assert!(
            inner.frozen && frozen.generation < inner.generation,
            "the frozen generation is released once"
        );
        inner.frozen = false;
        inner.area = frozen.area;
        inner.space.release(&frozen.freed);
    }

    /// Writes nodes, children before their parents, and adds their checksums to `sums`. Each is let go once its image is
    /// made: who changes it from then on need not copy it.
    async fn write_nodes(
        &self,
        nodes: Vec<Rc<Node>>,
        sums: &mut BlockMap<u64>,
        pace: impl Fn(f64) -> Option<Duration>,
    ) -> Result<(), MetaError> {
        let size = self.0.geometry.node_size as usize;
        let most = (self.0.limits.write_bytes / size).max(1);
        let (mut writes, mut written, total) = (FuturesUnordered::new(), 0, nodes.len() as f64);
        let (mut nodes, mut run) = (nodes.into_iter().peekable(), Vec::<Rc<Node>>::new());
        while nodes.peek().is_some() {
            // Neighbours.
            while run.len() < most
                && let Some(node) =
                    nodes.next_if(|next| run.last().is_none_or(|last| last.block + 1 == next.block))
            {
                run.push(node);
            }
            let mut buf = self.0.arena.alloc(run.len() * size).await;
            for (node, out) in run.iter().zip(buf.chunks_exact_mut(size)) {
                let sum = node.seal(self.0.seed, out, |child| known(sums, child));
                sums.insert(node.block, sum);
            }
            let at = self.0.geometry.node_at(run[0].block);
            written += run.len();
            run.clear();
            writes.push(self.0.meta.write(at, std::iter::once(buf.freeze()).collect(), false));
            self.below(&mut writes, self.0.limits.writes_in_flight).await?;
            match pace(written as f64 / total) {
                Some(pause) => self.0.ctx.sleep(pause).await,
                None => self.0.ctx.yield_now().await,
            }
        }
        self.below(&mut writes, 1).await
    }

    async fn write_bitmap(&self, frozen: &Frozen) -> Result<(), MetaError> {
        let mut writes = FuturesUnordered::new();
        let start = self.0.geometry.bitmap_at(frozen.area);
        let most = bitmap_chunk(self.0.limits.write_bytes);
        for (at, part) in (start..).step_by(most).zip(frozen.bitmap.chunks(most)) {
            let mut buf = self.0.arena.alloc(part.len()).await;
            buf.copy_from_slice(part);
            writes.push(self.0.meta.write(at, std::iter::once(buf.freeze()).collect(), false));
            self.below(&mut writes, self.0.limits.writes_in_flight).await?;
        }
        self.below(&mut writes, 1).await
    }

    /// Waits until fewer than `count` writes are in flight.
    async fn below<F: Future<Output = Result<(), IoError>>>(
        &self,
        writes: &mut FuturesUnordered<F>,
        count: usize,
    ) -> Result<(), MetaError> {
        while writes.len() >= count.max(1) {
            match writes.next().await {
                Some(result) => result.map_err(MetaError::io("checkpoint write"))?,
                None => break,
            }
        }
        Ok(())
    }

    /// The generation's nodes are as on disk; pointers to them, wherever they are, get their checksums.
    fn thaw(&self, generation: u64, blocks: &[u64], sums: &BlockMap<u64>) {
        let inner = &mut *self.0.inner.borrow_mut();
        let fill = |node: &mut Node| {
            if !node.is_leaf() {
                for i in 0..node.count() {
                    let mut child = node.child(i);
                    if resolve(&mut child, generation, sums) {
                        node.set_child(i, child);
                    }
                }
            }
        };
        inner.cache.drop_doubles();
        for block in blocks {
            inner.cache.thaw(*block, fill);
        }
        inner.cache.each_dirty_interior(fill);
        for root in &mut inner.roots {
            resolve(&mut root.node, generation, sums);
        }
        for _ in blocks {
            inner.cache.evict();
        }
    }
}

/// Fills in the checksum of a pointer into `generation` that has none; gives whether it did.
fn resolve(node: &mut NodeRef, generation: u64, sums: &BlockMap<u64>) -> bool {
    let open = node.checksum == 0 && node.generation == generation;
    if let Some(sum) = sums.get(&node.block).filter(|_| open) {
        node.checksum = *sum;
        return true;
    }
    false
}

fn known(sums: &BlockMap<u64>, child: NodeRef) -> u64 {
    *sums.get(&child.block).expect("a child without a checksum is of the same generation, and lower")
}

fn bitmap_chunk(bytes: usize) -> usize {
    let block = usize::try_from(BLOCK_SIZE).expect("a small constant");
    (bytes / block * block).max(block)
}

/// The used node blocks of a checkpoint.
pub(super) async fn read_bitmap(
    meta: &Region,
    arena: &Arena,
    superblock: &Superblock,
) -> Result<Metaspace, MetaError> {
    let start = superblock.geometry.bitmap_at(superblock.bitmap.area);
    let corrupt = |why: String| MetaError::Corrupt(Corrupt::new("node bitmap", start, why));
    let len = usize::try_from(superblock.bitmap.len).map_err(|_| corrupt("too long for memory".into()))?;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let part = (len - bytes.len()).min(bitmap_chunk(TRANSFER));
        let buf = arena.alloc(part).await;
        let buf = meta.read(start + bytes.len() as u64, buf).await.map_err(MetaError::io("bitmap read"))?;
        bytes.extend_from_slice(&buf);
    }
    let found = xxh3(seed_of(superblock.target), &bytes);
    if found != superblock.bitmap.checksum {
        let expected = superblock.bitmap.checksum;
        return Err(corrupt(format!(
            "its bytes give {found:016x}, the superblock refers to {expected:016x}"
        )));
    }
    Metaspace::from_bytes(superblock.geometry.node_blocks, &bytes)
        .ok_or_else(|| corrupt("it marks blocks beyond the region".into()))
}

/// Gives the runs of node blocks that a checkpoint's bitmap marks used: first, and the one behind the last.
pub(crate) async fn marked_runs(
    meta: &Region,
    arena: &Arena,
    superblock: &Superblock,
    mut give: impl FnMut(u64, u64),
) -> Result<(), MetaError> {
    let space = read_bitmap(meta, arena, superblock).await?;
    let mut start = None;
    for block in 0..space.blocks() {
        match (space.is_live(block), start) {
            (true, None) => start = Some(block),
            (false, Some(from)) => {
                give(from, block);
                start = None;
            }
            _ => {}
        }
    }
    if let Some(from) = start {
        give(from, space.blocks());
    }
    Ok(())
}

/// How many node blocks a checkpoint's bitmap marks used.
pub(crate) async fn marked_nodes(
    meta: &Region,
    arena: &Arena,
    superblock: &Superblock,
) -> Result<u64, MetaError> {
    let space = read_bitmap(meta, arena, superblock).await?;
    Ok(space.blocks() - space.free())
}

/// Bytes of one read of the bitmap.
const TRANSFER: usize = 256 << 10;
