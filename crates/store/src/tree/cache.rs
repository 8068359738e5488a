//! The node cache: bounded in bytes, evicting by a clock that passes over what may not go.
//!
//! Dirty and frozen nodes exist nowhere else, and what an open transaction touched must still be
//! there when it is applied; the rest is a copy of the disk.

use super::index::BlockIndex;
use super::limits::{CLEAN_MIN, EVICT_STEPS_MAX, PINNED_PERCENT, SPARES_MAX, SPARES_PART};
use super::node::Node;
use super::{NodeRef, TreeId};
use slab::Slab;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

/// Block numbers are not chosen by anyone outside: a multiplication spreads them well enough.
#[derive(Default)]
pub(crate) struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, n: u64) {
        let mixed = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

pub(crate) type BlockMap<V> = HashMap<u64, V, BuildHasherDefault<BlockHasher>>;

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// As on disk.
    Clean,
    /// Of the generation that is being written.
    Frozen,
    /// Of the running generation; the position in the list of dirty nodes.
    Dirty(usize),
}

/// A cached node.
pub(super) struct Entry {
    pub node: Rc<Node>,
    pub state: State,
    /// What the node says of itself: a look-up need not wait for the node's own memory.
    id: Id,
    /// The count of [`Cache::shapes`] when the node last gave a part of its range away.
    shaped: u64,
    /// The epoch count when a transaction last touched it.
    touched: Cell<u64>,
    /// Used since the clock's hand last passed.
    hot: Cell<bool>,
    /// Bytes of memory beside the block, as they were counted last.
    beside: u32,
}

/// A node's place in its tree, and the block where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    block: u64,
    generation: u64,
    tree: TreeId,
    level: u8,
}

impl Id {
    fn of(node: &Node) -> Id {
        let level = u8::try_from(node.level).expect("a tree is never that high");
        Id { block: node.block, generation: node.generation, tree: node.tree, level }
    }
}

/// A leaf that a key was found to belong to, when, and where in it. See [`Cache::still`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hint {
    at: usize,
    shapes: u64,
    pub(super) place: usize,
}

impl Entry {
    fn new(node: Rc<Node>, state: State, touched: u64, shaped: u64) -> Entry {
        let (id, beside) = (Id::of(&node), beside(&node));
        let (touched, hot) = (Cell::new(touched), Cell::new(true));
        Entry { node, state, id, shaped, touched, hot, beside }
    }
}

/// Bytes that a node takes beside its block.
fn beside(node: &Node) -> u32 {
    u32::try_from(ENTRY + node.overhead()).expect("a directory is no larger than a few blocks")
}

// One line of the processor's cache for each look-up.
const _: () = assert!(size_of::<Entry>() <= 72);

/// Bytes of an entry in the cache's own tables, roughly.
const ENTRY: usize = size_of::<Entry>() + 2 * size_of::<(u64, usize)>();

/// Counters of the node cache. Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Operations' steps that found their node.
    pub hits: u64,
    /// Those that did not.
    pub misses: u64,
    /// Nodes read from the device.
    pub reads: u64,
    /// Nodes dropped to make room.
    pub evictions: u64,
    /// All nodes in the cache.
    pub bytes: u64,
    /// Nodes changed since the last freeze.
    pub dirty_bytes: u64,
    /// Nodes of the generation that is being written.
    pub frozen_bytes: u64,
    /// Clean nodes that open epochs hold.
    pub pinned_bytes: u64,
    /// Sibling nodes merged.
    pub merges: u64,
    /// Nodes split.
    pub splits: u64,
    /// Empty leaves that could not be unlinked at once.
    pub empties_kept: u64,
}

/// Open epochs, and how many clean bytes each of them is the last to have touched.
#[derive(Default)]
struct Epochs {
    count: u64,
    /// Each with whether it may be ended early.
    open: BTreeMap<u64, bool>,
    bytes: BTreeMap<u64, u64>,
    total: u64,
}

impl Epochs {
    fn holds(&self, touched: u64) -> bool {
        self.open.first_key_value().is_some_and(|(oldest, _)| touched >= *oldest)
    }
    fn add(&mut self, touched: u64, bytes: u64) {
        if self.holds(touched) {
            *self.bytes.entry(touched).or_default() += bytes;
            self.total += bytes;
        }
    }
    fn sub(&mut self, touched: u64, bytes: u64) {
        if self.holds(touched) {
            let held = self.bytes.get_mut(&touched).expect("what is held was added");
            *held -= bytes;
            self.total -= bytes;
        }
    }
    fn close(&mut self, epoch: u64) {
        self.open.remove(&epoch);
        self.let_go();
    }
    /// Ends the oldest epochs that may be ended early, until the rest hold at most `bytes`.
    fn expire(&mut self, bytes: u64) {
        while self.total > bytes
            && let Some((&oldest, true)) = self.open.first_key_value()
        {
            self.close(oldest);
        }
    }
    fn let_go(&mut self) {
        let oldest = self.open.first_key_value().map_or(u64::MAX, |(oldest, _)| *oldest);
        while let Some(first) = self.bytes.first_entry()
            && *first.key() < oldest
        {
            self.total -= first.remove();
        }
    }
}

/// The cache of one forest.
pub(super) struct Cache {
    entries: Slab<Entry>,
    by_block: BlockIndex,
    /// Entries that are dirty, in no order.
    dirty: Vec<usize>,
    frozen: usize,
    /// Frozen nodes that changed while they were written: their old images are held beside the new ones.
    doubled: usize,
    /// Nodes that are of no more use, for their memory.
    spares: Vec<Rc<Node>>,
    /// Bytes of memory beside the blocks of nodes.
    beside: usize,
    /// The node that was given out to be changed last; what it takes beside its block is not counted yet.
    changed: Option<usize>,
    epochs: Epochs,
    /// Counts nodes that came, and those that gave a part of their range away.
    shapes: u64,
    hand: usize,
    /// Nodes removed while an open epoch held them.
    lost: u64,
    node_size: u64,
    limit: u64,
    hits: Cell<u64>,
    misses: Cell<u64>,
    pub stats: CacheStats,
}

impl Cache {
    pub fn new(node_size: u64, limit: u64) -> Cache {
        Cache {
            entries: Slab::new(),
            by_block: BlockIndex::default(),
            dirty: Vec::new(),
            frozen: 0,
            doubled: 0,
            spares: Vec::new(),
            beside: 0,
            changed: None,
            epochs: Epochs::default(),
            shapes: 0,
            hand: 0,
            lost: 0,
            node_size,
            limit,
            hits: Cell::new(0),
            misses: Cell::new(0),
            stats: CacheStats::default(),
        }
    }

    pub fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.get(),
            misses: self.misses.get(),
            bytes: self.bytes(),
            dirty_bytes: self.dirty_bytes(),
            frozen_bytes: self.frozen as u64 * self.node_size,
            pinned_bytes: self.epochs.total,
            ..self.stats
        }
    }

    pub fn dirty_bytes(&self) -> u64 {
        self.dirty.len() as u64 * self.node_size
    }

    /// All memory of nodes.
    fn bytes(&self) -> u64 {
        (self.entries.len() + self.doubled + self.spares.len()) as u64 * self.node_size + self.beside as u64
    }

    /// Bytes that cannot be evicted.
    pub fn held_bytes(&self) -> u64 {
        self.dirty_bytes() + (self.frozen + self.doubled) as u64 * self.node_size + self.epochs.total
    }

    /// The entry of a block, which counts as used now.
    pub fn find(&self, block: u64) -> Option<usize> {
        let found = self.peek(block);
        match found {
            Some(at) => {
                self.entries[at].hot.set(true);
                self.hits.set(self.hits.get() + 1);
            }
            None => self.misses.set(self.misses.get() + 1),
        }
        found
    }

    /// Whether a block is here, without a trace of the question.
    pub fn peek(&self, block: u64) -> Option<usize> {
        self.by_block.get(block, |at| self.entries[at].id.block == block)
    }

    /// Whether an entry is the node that a pointer at this level of a tree means, as far as it says so itself.
    pub fn is(&self, at: usize, tree: TreeId, node: NodeRef, level: u32) -> bool {
        let id = self.entries[at].id;
        id.block == node.block
            && id.tree == tree
            && id.generation == node.generation
            && u32::from(id.level) == level
    }

    /// That the range of this leaf holds a key; it is at `place`, if it was not moved since.
    pub fn hint(&self, at: usize, place: usize) -> Hint {
        Hint { at, shapes: self.shapes, place }
    }

    /// The leaf, if it still holds the key.
    pub fn whole(&self, hint: Hint) -> Option<usize> {
        (self.entries.get(hint.at)?.shaped <= hint.shapes).then_some(hint.at)
    }

    /// The same, if it is of the running generation: it may be changed without a way to it.
    pub fn still(&self, hint: Hint) -> Option<usize> {
        self.whole(hint).filter(|at| matches!(self.entries[*at].state, State::Dirty(_)))
    }

    /// A node gave a part of its range to another.
    pub fn set_shaped(&mut self, at: usize) {
        self.shapes += 1;
        self.entries[at].shaped = self.shapes;
    }

    pub fn node(&self, at: usize) -> &Node {
        &self.entries[at].node
    }

    /// A node to look at for longer than the cache may keep it. Nobody changes nodes while it is held.
    pub fn shared(&self, at: usize) -> Rc<Node> {
        self.entries[at].node.clone()
    }

    /// A dirty node, to change it.
    pub fn node_mut(&mut self, at: usize) -> &mut Node {
        if self.changed != Some(at) {
            self.count_changed();
            self.changed = Some(at);
        }
        let entry = &mut self.entries[at];
        assert!(matches!(entry.state, State::Dirty(_)), "only nodes of the running generation change");
        Rc::get_mut(&mut entry.node).expect("nobody shares a node of the running generation")
    }

    fn count_changed(&mut self) {
        let changed = self.changed.take().and_then(|at| self.entries.get_mut(at));
        if let Some(entry) = changed {
            let beside = beside(&entry.node);
            self.beside = self.beside - entry.beside as usize + beside as usize;
            entry.beside = beside;
        }
    }

    pub fn state(&self, at: usize) -> State {
        self.entries[at].state
    }

    pub fn touched(&self, at: usize) -> u64 {
        self.entries[at].touched.get()
    }

    pub fn is_pinned(&self, at: usize) -> bool {
        self.epochs.holds(self.touched(at))
    }

    /// Nodes that are no longer here although an open epoch held them: joined with others, or empty.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The mark of a touch by the epochs that are open now.
    pub fn epoch_now(&self) -> u64 {
        self.epochs.count
    }

    /// The leaf of a key that is as a hint has it, if it is of the running generation: with all that leads to it, it stays until
    /// that is written, and then for the epochs that were open when it was frozen. The hint may be any: what is there is looked at.
    pub fn known(&self, tree: TreeId, hint: Hint, key: &[u8]) -> Option<(usize, Result<usize, usize>)> {
        let entry = self.entries.get(hint.at)?;
        let dirty = matches!(entry.state, State::Dirty(_));
        if !dirty || entry.id.tree != tree || entry.id.level > 0 {
            return None;
        }
        let found = entry.node.search_near(hint.place, key);
        // Between two keys of a leaf is nothing of another.
        let own = found.is_ok() || found.is_err_and(|place| 0 < place && place < entry.node.count());
        entry.hot.set(true);
        own.then_some((hint.at, found))
    }

    /// Puts the node under the protection of the epochs that are open now.
    pub fn touch(&mut self, at: usize) {
        self.raise_touched(at, self.epochs.count);
    }

    /// The node inherits another's protection.
    pub fn raise_touched(&mut self, at: usize, touched: u64) {
        let entry = &self.entries[at];
        let old = entry.touched.get();
        if old >= touched {
            return;
        }
        entry.touched.set(touched);
        if entry.state == State::Clean {
            self.epochs.sub(old, self.node_size);
            self.epochs.add(touched, self.node_size);
        }
    }

    pub fn open_epoch(&mut self, may_expire: bool) -> u64 {
        self.epochs.count += 1;
        self.epochs.open.insert(self.epochs.count, may_expire);
        self.epochs.count
    }

    pub fn close_epoch(&mut self, epoch: u64) {
        self.epochs.close(epoch);
    }

    /// Takes in a node that was read, and makes room for it.
    pub fn insert_clean(&mut self, node: Rc<Node>) {
        self.evict();
        let block = node.block;
        assert!(self.peek(block).is_none(), "node block {block} is cached twice");
        self.shapes += 1;
        let entry = Entry::new(node, State::Clean, 0, self.shapes);
        self.beside += entry.beside as usize;
        let at = self.entries.insert(entry);
        self.by_block.insert(block, at);
    }

    /// Takes in a node of the running generation.
    pub fn insert_dirty(&mut self, node: Node, touched: u64) -> usize {
        let block = node.block;
        assert!(self.peek(block).is_none(), "node block {block} is cached twice");
        let state = State::Dirty(self.dirty.len());
        self.shapes += 1;
        let entry = Entry::new(Rc::new(node), state, touched, self.shapes);
        self.beside += entry.beside as usize;
        let at = self.entries.insert(entry);
        self.dirty.push(at);
        self.by_block.insert(block, at);
        at
    }

    /// Moves a clean or frozen node to a new block of the running generation. A frozen one is copied when
    /// its old image is still to be made.
    pub fn rewrite(&mut self, at: usize, block: u64, generation: u64) {
        assert!(self.peek(block).is_none(), "node block {block} is cached twice");
        let entry = &self.entries[at];
        self.doubled += usize::from(entry.state == State::Frozen && Rc::strong_count(&entry.node) > 1);
        self.leave_state(at);
        let entry = &mut self.entries[at];
        entry.state = State::Dirty(self.dirty.len());
        self.dirty.push(at);
        let node = Rc::make_mut(&mut entry.node);
        self.by_block.remove(node.block, at);
        (node.block, node.generation) = (block, generation);
        entry.id = Id::of(node);
        self.by_block.insert(block, at);
    }

    /// Drops a node; gives its block and whether the running generation wrote it.
    pub fn remove(&mut self, at: usize) -> (u64, bool) {
        let fresh = matches!(self.entries[at].state, State::Dirty(_));
        self.lost += u64::from(self.is_pinned(at));
        self.leave_state(at);
        let entry = self.entries.remove(at);
        self.beside -= entry.beside as usize;
        self.by_block.remove(entry.id.block, at);
        self.keep(entry.node);
        (entry.id.block, fresh)
    }

    /// Keeps the memory of a node that was dropped: the next one comes soon.
    fn keep(&mut self, mut node: Rc<Node>) {
        let most = (self.limit / self.node_size / SPARES_PART).clamp(1, SPARES_MAX);
        if (self.spares.len() as u64) < most && Rc::get_mut(&mut node).is_some() {
            self.beside += node.overhead();
            self.spares.push(node);
        }
    }

    /// A node to be overwritten.
    pub fn spare(&mut self) -> Option<Rc<Node>> {
        let node = self.spares.pop()?;
        self.beside -= node.overhead();
        Some(node)
    }

    fn leave_state(&mut self, at: usize) {
        let entry = &self.entries[at];
        match entry.state {
            State::Clean => self.epochs.sub(entry.touched.get(), self.node_size),
            State::Frozen => self.frozen -= 1,
            State::Dirty(place) => {
                self.dirty.swap_remove(place);
                if let Some(moved) = self.dirty.get(place) {
                    self.entries[*moved].state = State::Dirty(place);
                }
            }
        }
    }

    /// Every dirty node becomes frozen.
    pub fn freeze(&mut self) -> Vec<Rc<Node>> {
        assert!(self.frozen == 0, "one generation is frozen at a time");
        let dirty = std::mem::take(&mut self.dirty);
        self.frozen = dirty.len();
        dirty
            .iter()
            .map(|at| {
                let entry = &mut self.entries[*at];
                entry.state = State::Frozen;
                // Who found it dirty counts on it.
                entry.touched.set(self.epochs.count);
                entry.node.clone()
            })
            .collect()
    }

    /// The writer has let go of all its nodes.
    pub fn drop_doubles(&mut self) {
        self.doubled = 0;
    }

    /// The frozen node of `block` is on disk. `finish` sees it before it counts as clean.
    pub fn thaw(&mut self, block: u64, finish: impl FnOnce(&mut Node)) {
        let Some(at) = self.peek(block) else { return };
        let entry = &mut self.entries[at];
        if entry.state == State::Frozen {
            finish(Rc::get_mut(&mut entry.node).expect("the writer has let go of its nodes"));
            entry.state = State::Clean;
            self.frozen -= 1;
            self.epochs.add(entry.touched.get(), self.node_size);
        }
    }

    /// Visits every interior node of the running generation.
    pub fn each_dirty_interior(&mut self, mut visit: impl FnMut(&mut Node)) {
        for at in &self.dirty {
            let node = &mut self.entries[*at].node;
            if !node.is_leaf() {
                visit(Rc::get_mut(node).expect("nobody shares a node of the running generation"));
            }
        }
    }

    /// Makes room for one more node, as far as the clock finds nodes that may go.
    pub fn evict(&mut self) {
        self.epochs.expire(self.limit / 100 * PINNED_PERCENT);
        for _ in 0..EVICT_STEPS_MAX {
            let bytes = self.bytes() + self.node_size;
            let clean = self.entries.len() - self.dirty.len() - self.frozen;
            let pinned = usize::try_from(self.epochs.total / self.node_size).unwrap_or(usize::MAX);
            if bytes <= self.limit || clean.saturating_sub(pinned) < CLEAN_MIN {
                return;
            }
            self.hand = if self.hand + 1 < self.entries.capacity() { self.hand + 1 } else { 0 };
            let Some(entry) = self.entries.get(self.hand) else { continue };
            let may_go = entry.state == State::Clean && !self.epochs.holds(entry.touched.get());
            if may_go && !entry.hot.replace(false) {
                self.remove(self.hand);
                self.stats.evictions += 1;
            }
        }
    }
}
