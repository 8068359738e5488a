//! The forest: four roots, the cache and the block space behind one handle.

use super::cache::{BlockMap, Cache, CacheStats};
use super::metaspace::Metaspace;
use super::node::{self, Expect, Node};
use super::{MetaError, Miss, NodeRef, Root, TreeId, TreeLimits, Want};
use crate::geometry::{Geometry, Region};
use crate::superblock::Superblock;
use cobalt_base::Corrupt;
use cobalt_base::checksum::xxh3;
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use cobalt_reactor::sync::Notify;
use futures::future::try_join_all;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::rc::Rc;
use uuid::Uuid;

/// Ties checksums of nodes and bitmaps to this use of xxh3.
const SEED: u64 = 0x636f_6261_6c74_7472;

/// The seed of a target's nodes and bitmaps: another target's are not valid here.
pub(super) fn seed_of(target: Uuid) -> u64 {
    xxh3(SEED, target.as_bytes())
}

/// Handle to a target's trees. Clones share them.
#[derive(Clone)]
pub struct Forest(pub(super) Rc<Shared>);

pub(super) struct Shared {
    pub ctx: Ctx,
    pub meta: Region,
    pub arena: Arena,
    pub geometry: Geometry,
    pub limits: TreeLimits,
    pub seed: u64,
    pub inner: RefCell<Inner>,
    loading: RefCell<BlockMap<Rc<Notify>>>,
}

/// Everything that operations change.
pub(super) struct Inner {
    pub cache: Cache,
    pub space: Metaspace,
    pub roots: [Root; 4],
    /// The running generation.
    pub generation: u64,
    /// The bitmap area of the last checkpoint.
    pub area: u32,
    pub frozen: bool,
    /// Keys of leaves that are empty and could not be unlinked yet.
    pub empties: Vec<(TreeId, Vec<u8>)>,
    pub node_size: usize,
}

/// A node on the way down, and which of its children or entries comes next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Entry in the cache.
    pub at: usize,
    pub index: usize,
}

/// From the root to a leaf.
pub(super) type Path = SmallVec<[Place; 8]>;

/// Keeps what is touched from now on in the cache until it is dropped.
#[must_use = "an epoch ends when its guard is dropped"]
pub struct EpochGuard {
    shared: Rc<Shared>,
    epoch: u64,
}

impl Drop for EpochGuard {
    fn drop(&mut self) {
        self.shared.inner.borrow_mut().cache.close_epoch(self.epoch);
    }
}

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
        let space = Metaspace::new(geometry.node_blocks);
        Forest::new(ctx, meta, arena, geometry, target, limits, space, [Root::default(); 4], 1, 1)
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
        let space = super::persist::read_bitmap(meta, arena, superblock).await?;
        let (geometry, target, roots) = (superblock.geometry, superblock.target, superblock.roots);
        let generation = superblock.generation + 2;
        let area = superblock.bitmap.area;
        Ok(Forest::new(ctx, meta, arena, geometry, target, limits, space, roots, generation, area))
    }

    #[expect(clippy::too_many_arguments, reason = "the two constructors above name them all")]
    fn new(
        ctx: &Ctx,
        meta: &Region,
        arena: &Arena,
        geometry: Geometry,
        target: Uuid,
        limits: TreeLimits,
        space: Metaspace,
        roots: [Root; 4],
        generation: u64,
        area: u32,
    ) -> Forest {
        let cache = Cache::new(u64::from(geometry.node_size), limits.cache_bytes);
        let node_size = geometry.node_size as usize;
        let inner =
            Inner { cache, space, roots, generation, area, frozen: false, empties: Vec::new(), node_size };
        Forest(Rc::new(Shared {
            ctx: ctx.clone(),
            meta: meta.clone(),
            arena: arena.clone(),
            geometry,
            limits,
            seed: seed_of(target),
            inner: RefCell::new(inner),
            loading: RefCell::default(),
        }))
    }

    /// Most bytes of a key and its value together.
    pub fn entry_max(&self) -> usize {
        node::entry_max(self.0.geometry.node_size as usize)
    }

    /// Most bytes of a key.
    pub fn key_max(&self) -> usize {
        node::key_max(self.0.geometry.node_size as usize)
    }

    /// Brings what was missed into the cache; loads of one node share a read. To be called in the turn
    /// of the miss: later, the node's block may belong to another.
    ///
    /// # Errors
    /// [`MetaError::Full`] when the miss was one of space; `Io` and `Corrupt` from the read.
    pub async fn load(&self, miss: Miss) -> Result<(), MetaError> {
        let shared = &self.0;
        let (tree, node, level) = match miss.0 {
            Want::Node { tree, node, level } => (tree, node, level),
            Want::Space => return Err(MetaError::Full),
            Want::Order { block } => {
                let at = shared.geometry.node_at(block);
                return Err(Corrupt::new("btree node", at, "its keys are not those that lead to it").into());
            }
        };
        if !shared.wants(tree, node, level)? {
            return Ok(());
        }
        let running = shared.loading.borrow().get(&node.block).cloned();
        if let Some(running) = running {
            // Whatever came of it, the caller tries again, and if need be loads again.
            running.notified().await;
            return Ok(());
        }
        shared.loading.borrow_mut().insert(node.block, Rc::default());
        let _loading = Loading { shared, block: node.block };
        let expect =
            Expect { seed: shared.seed, tree, level, node, node_blocks: shared.geometry.node_blocks };
        let spare = || shared.inner.borrow_mut().cache.spare();
        let read = read_node(&shared.meta, &shared.arena, &shared.geometry, &expect, spare).await;
        if !shared.lacks(node.block) {
            return Ok(()); // The trees went on meanwhile.
        }
        let node = read?;
        let mut inner = shared.inner.borrow_mut();
        inner.cache.stats.reads += 1;
        inner.cache.insert_clean(node);
        Ok(())
    }

    /// As [`Forest::load`], and what came stays until the epochs that are open now have ended: work that looks at more nodes at one
    /// time than the cache keeps comes to its end.
    ///
    /// # Errors
    /// As for [`Forest::load`].
    pub async fn load_held(&self, miss: Miss) -> Result<(), MetaError> {
        self.load(miss).await?;
        if let Want::Node { node, .. } = miss.0 {
            let cache = &mut self.0.inner.borrow_mut().cache;
            if let Some(at) = cache.peek(node.block) {
                cache.touch(at);
            }
        }
        Ok(())
    }

    /// As [`Forest::load_held`], for all of them at one time.
    ///
    /// # Errors
    /// As for [`Forest::load`]; the others are still on their way then.
    pub async fn load_all(&self, misses: Vec<Miss>) -> Result<(), MetaError> {
        try_join_all(misses.into_iter().map(|miss| self.load_held(miss))).await.map(drop)
    }

    /// Begins an epoch: what is touched while it is open stays in the cache.
    pub fn epoch(&self) -> EpochGuard {
        let epoch = self.0.inner.borrow_mut().cache.open_epoch(false);
        EpochGuard { shared: self.0.clone(), epoch }
    }

    /// The same for an open transaction, which may stay open long: the epoch ends early when too much is held.
    /// What the transaction touched is then loaded again when it takes its lsn.
    pub fn long_epoch(&self) -> EpochGuard {
        let epoch = self.0.inner.borrow_mut().cache.open_epoch(true);
        EpochGuard { shared: self.0.clone(), epoch }
    }

    /// Counts nodes that an open epoch held and that are gone: while it stands still, what was touched is there.
    pub(crate) fn lost(&self) -> u64 {
        self.0.inner.borrow().cache.lost()
    }

    /// Whether a generation was frozen and not released since.
    pub fn is_frozen(&self) -> bool {
        self.0.inner.borrow().frozen
    }

    /// Bytes changed since the last freeze.
    pub fn dirty_bytes(&self) -> u64 {
        self.0.inner.borrow().cache.dirty_bytes()
    }

    /// The cache's counters now.
    pub fn cache_stats(&self) -> CacheStats {
        self.0.inner.borrow().cache.stats()
    }

    /// Dirty and pinned nodes use more of the cache than they should: checkpoint, and admit no more until then.
    pub fn pressure(&self) -> bool {
        let limits = &self.0.limits;
        self.0.inner.borrow().cache.held_bytes() > limits.cache_bytes / 100 * limits.pressure_percent
    }

    /// Node blocks that may be allocated now.
    pub fn meta_free(&self) -> u64 {
        self.0.inner.borrow().space.free()
    }

    /// Node blocks of the region.
    pub fn meta_blocks(&self) -> u64 {
        self.0.geometry.node_blocks
    }

    /// Most node blocks that one put or delete in any tree may take now: what admission reserves for each.
    pub fn blocks_per_op(&self) -> u64 {
        self.0.inner.borrow().blocks_per_op()
    }

    /// The generation that changes belong to now.
    pub fn generation(&self) -> u64 {
        self.0.inner.borrow().generation
    }
}

impl Shared {
    /// Whether the trees use a block that is not here.
    fn lacks(&self, block: u64) -> bool {
        let inner = self.inner.borrow();
        inner.space.is_live(block) && inner.cache.peek(block).is_none()
    }

    /// Whether a load is of use: a miss of this turn that it cannot end is one of trees that contradict themselves.
    fn wants(&self, tree: TreeId, node: NodeRef, level: u32) -> Result<bool, Corrupt> {
        let inner = self.inner.borrow();
        let corrupt = |why: &str| Corrupt::new("btree node", self.geometry.node_at(node.block), why);
        match inner.cache.peek(node.block) {
            Some(at) if inner.cache.is(at, tree, node, level) => Ok(false),
            Some(_) => Err(corrupt("two pointers lead to it, and do not agree")),
            None if inner.space.is_live(node.block) => Ok(true),
            None => Err(corrupt("a tree refers to it, and the bitmap marks it free")),
        }
    }
}

/// Ends a load, whether it succeeded, failed or was dropped.
struct Loading<'a> {
    shared: &'a Shared,
    block: u64,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let waiting = self.shared.loading.borrow_mut().remove(&self.block);
        if let Some(waiting) = waiting {
            waiting.notify_all();
        }
    }
}

/// Reads a node and checks everything that its referrer and the format say about it. It takes the place of `spare`, if there is one.
pub(super) async fn read_node(
    meta: &Region,
    arena: &Arena,
    geometry: &Geometry,
    expect: &Expect,
    spare: impl FnOnce() -> Option<Rc<Node>>,
) -> Result<Rc<Node>, MetaError> {
    let at = geometry.node_at(expect.node.block);
    let buf = arena.alloc(geometry.node_size as usize).await;
    let buf = meta.read(at, buf).await.map_err(MetaError::io("btree node read"))?;
    let mut node = spare().unwrap_or_else(|| Rc::new(Node::new(buf.len(), expect.tree, expect.level)));
    let parsed = Rc::get_mut(&mut node).expect("nobody shares a spare node").parse_over(&buf, expect);
    parsed.map(|()| node).map_err(|why| Corrupt::new("btree node", at, why).into())
}

impl Inner {
    pub fn blocks_per_op(&self) -> u64 {
        let height = self.roots.iter().map(|root| root.height).max().unwrap_or(0);
        2 * u64::from(height) + 2
    }

    /// The cached entry of a node.
    pub fn find(&self, tree: TreeId, node: NodeRef, level: u32) -> Result<usize, Miss> {
        // Nodes are found by their block; two pointers to one block are never two nodes.
        let found = self.cache.find(node.block);
        let own = found.filter(|at| self.cache.is(*at, tree, node, level));
        own.ok_or(Miss(Want::Node { tree, node, level }))
    }

    /// The way to the leaf whose range holds `key`; empty in an empty tree. The leaf's index is 0.
    pub fn descend(&self, tree: TreeId, key: &[u8]) -> Result<Path, Miss> {
        let mut path = Path::new();
        self.extend(tree, &mut path, |node| node.child_index(key))?;
        Ok(path)
    }

    /// Goes on from the end of `path` (from the root, if it is empty) to a leaf.
    pub fn extend(&self, tree: TreeId, path: &mut Path, choose: impl Fn(&Node) -> usize) -> Result<(), Miss> {
        let (mut next, mut level) = match path.last() {
            None => (self.roots[tree.index()].node, self.roots[tree.index()].height),
            Some(place) => {
                let node = self.cache.node(place.at);
                if node.is_leaf() {
                    return Ok(());
                }
                (node.child(place.index), node.level)
            }
        };
        while level > 0 {
            level -= 1;
            let at = self.find(tree, next, level)?;
            let node = self.cache.node(at);
            let index = if level == 0 { 0 } else { choose(node) };
            path.push(Place { at, index });
            if level > 0 {
                next = node.child(index);
            }
        }
        Ok(())
    }

    /// Refuses an operation before it changes anything when there might not be room for all of it.
    pub fn check_space(&self) -> Result<(), Miss> {
        if self.space.free() < self.blocks_per_op() { Err(Miss(Want::Space)) } else { Ok(()) }
    }

    /// Makes every node of the path one of the running generation, from the root down (I5).
    pub fn own_path(&mut self, tree: TreeId, path: &Path) {
        for (depth, place) in path.iter().enumerate() {
            if let Some(node) = self.own(place.at) {
                match depth.checked_sub(1).map(|above| path[above]) {
                    None => self.roots[tree.index()].node = node,
                    Some(parent) => self.cache.node_mut(parent.at).set_child(parent.index, node),
                }
            }
        }
    }

    /// Makes a node one of the running generation; gives the new pointer if it moved.
    pub fn own(&mut self, at: usize) -> Option<NodeRef> {
        if matches!(self.cache.state(at), super::cache::State::Dirty(_)) {
            return None;
        }
        let old = self.cache.node(at).block;
        let block = self.space.alloc();
        self.space.free_block(old, false);
        self.cache.rewrite(at, block, self.generation);
        Some(self.cache.node(at).node_ref())
    }

    /// Adds a new node of the running generation.
    pub fn add(&mut self, mut node: Node, touched: u64) -> NodeRef {
        (node.block, node.generation) = (self.space.alloc(), self.generation);
        let node_ref = node.node_ref();
        self.cache.insert_dirty(node, touched);
        node_ref
    }

    /// Drops a node that nothing refers to any more.
    pub fn drop_node(&mut self, at: usize) {
        let (block, fresh) = self.cache.remove(at);
        self.space.free_block(block, fresh);
    }
}
