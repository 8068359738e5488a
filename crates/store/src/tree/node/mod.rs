//! One node: cells that grow down from the end of a block, and a directory of slots in key order.
//!
//! On disk (`disk`) the slots are offsets alone. In memory a slot also has the first bytes of its key after the
//! prefix that all keys of the node share, so that a search stays within the directory until it is nearly
//! done, and allocates nothing.
//!
//! An interior node's first key is empty and means "from wherever the parent says". So a child can be
//! unlinked at the left end without its neighbour's subtree being touched.

mod disk;
#[cfg(test)]
mod tests;

use super::{NodeRef, TreeId};
use smallvec::SmallVec;
use std::cmp::Ordering;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const MAGIC: [u8; 4] = *b"CBnd";
const HEADER: usize = size_of::<Header>();
const SLOT: usize = 2;
const CELL: usize = 4;
const CHILD: usize = size_of::<Child>();

/// Slots that lie in the node.
const SLOTS_INLINE: usize = 120;
/// Slots that the directory grows by when it lies apart: few enough to waste little of the cache's limit.
const SLOTS_GROWTH: usize = 64;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    tree: u8,
    /// Levels below this node; leaves have 0.
    level: u8,
    count: U16,
    block: U64,
    generation: U64,
    checksum: U64,
    /// Offset of the lowest cell.
    cells: U16,
    zero: [u8; 6],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Child {
    block: U64,
    generation: U64,
    checksum: U64,
}

const _: () = assert!(HEADER == 40);
const _: () = assert!(CHILD == 24);

/// What a referrer knows about a node before it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expect {
    pub seed: u64,
    pub tree: TreeId,
    pub level: u32,
    pub node: NodeRef,
    pub node_blocks: u64,
}

/// An entry's place in the directory.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The four bytes of the key that follow the node's prefix, zero-filled: in the order of the keys, if not all different.
    head: u32,
    /// Offset of the cell.
    cell: u16,
    key_len: u16,
}

/// A node in memory.
#[derive(Clone)]
pub(super) struct Node {
    /// In key order; those of a usual leaf lie in the node itself, one wait for memory less.
    slots: SmallVec<[Slot; SLOTS_INLINE]>,
    /// A start that all keys share, but for the first one of an interior node.
    prefix: SmallVec<[u8; 24]>,
    /// The heads of the first and of the last slot that have one.
    edges: (u32, u32),
    /// Cells, from `cells` to the end; what is below is room.
    image: Box<[u8]>,
    pub tree: TreeId,
    pub level: u32,
    pub block: u64,
    pub generation: u64,
    /// Offset of the lowest cell.
    cells: usize,
    /// Bytes of cells that entries still refer to.
    live: usize,
}

/// Bytes of a node that entries share: slots and cells.
pub(super) fn payload(node_size: usize) -> usize {
    node_size - HEADER
}

/// Most bytes of a key and its value: three entries fit a node, so two halves always fit two nodes.
pub(super) fn entry_max(node_size: usize) -> usize {
    payload(node_size) / 3 - SLOT - CELL
}

/// Most bytes of a key: it fits an interior node's entry too.
pub(super) fn key_max(node_size: usize) -> usize {
    entry_max(node_size) - CHILD
}

/// The bytes of an interior entry's value.
pub(super) fn child_bytes(node: NodeRef) -> [u8; CHILD] {
    let child = Child {
        block: node.block.into(),
        generation: node.generation.into(),
        checksum: node.checksum.into(),
    };
    zerocopy::transmute!(child)
}

/// Room that an entry takes in a node.
fn entry_room(key: &[u8], value: &[u8]) -> usize {
    SLOT + CELL + key.len() + value.len()
}

/// Offsets and lengths inside of a node, as slots and cells keep them.
fn small(n: usize) -> u16 {
    u16::try_from(n).expect("offsets and lengths inside of a node fit 16 bits")
}

/// The head of a key whose prefix was cut off.
fn head_of(rest: &[u8]) -> u32 {
    match rest.first_chunk::<4>() {
        Some(head) => u32::from_be_bytes(*head),
        None => rest.iter().zip([24, 16, 8]).fold(0, |head, (byte, shift)| head | u32::from(*byte) << shift),
    }
}

/// Slots whose head is below `head`.
fn rank(slots: &[Slot], head: u32) -> usize {
    let (mut base, mut len) = (0, slots.len());
    while len > STRETCH {
        let half = len / 2;
        base += if slots[base + half].head < head { half } else { 0 };
        len -= half;
    }
    base + count_below(&slots[base..base + len], head)
}

fn count_below(slots: &[Slot], head: u32) -> usize {
    slots.iter().map(|slot| u32::from(slot.head < head)).sum::<u32>() as usize
}

/// The same, beginning where `head` would be if the heads between the edges were evenly spread: a leaf is rarely near
/// the processor, and each step of a search waits for memory. Heads that are spread otherwise cost a few steps more.
fn rank_by_guess(slots: &[Slot], head: u32, (low, high): (u32, u32)) -> usize {
    if head <= low || slots.is_empty() {
        return 0;
    }
    if head > high {
        return slots.len();
    }
    let guess = u64::from(head - low) * slots.len() as u64 / (u64::from(high - low) + 1);
    let guess = usize::try_from(guess).unwrap_or(usize::MAX).min(slots.len());
    let (from, until) = (guess.saturating_sub(STRETCH), (guess + STRETCH).min(slots.len()));
    if from > 0 && slots[from - 1].head >= head {
        return rank(&slots[..from], head);
    }
    if until < slots.len() && slots[until].head < head {
        return until + rank(&slots[until..], head);
    }
    from + count_below(&slots[from..until], head)
}

/// Slots that are counted through at once.
const STRETCH: usize = 10;

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Node {
    pub fn new(size: usize, tree: TreeId, level: u32) -> Node {
        Node {
            slots: SmallVec::new(),
            prefix: SmallVec::new(),
            edges: (0, 0),
            image: vec![0; size].into_boxed_slice(),
            tree,
            level,
            block: 0,
            generation: 0,
            cells: size,
            live: 0,
        }
    }

    pub fn count(&self) -> usize {
        self.slots.len()
    }

    pub fn is_leaf(&self) -> bool {
        self.level == 0
    }

    pub fn node_ref(&self) -> NodeRef {
        NodeRef { block: self.block, generation: self.generation, checksum: 0 }
    }

    /// Bytes of the payload in use.
    pub fn used(&self) -> usize {
        self.live + SLOT * self.count()
    }

    /// Bytes of memory beside the block.
    pub fn overhead(&self) -> usize {
        let prefix = if self.prefix.spilled() { self.prefix.capacity() } else { 0 };
        let slots = if self.slots.spilled() { self.slots.capacity() * size_of::<Slot>() } else { 0 };
        size_of::<Node>() + slots + prefix
    }

    fn room(&self) -> usize {
        payload(self.image.len()) - self.used()
    }

    pub fn fits(&self, key: &[u8], value: &[u8]) -> bool {
        self.room() >= entry_room(key, value)
    }

    fn u16_at(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes([self.image[at], self.image[at + 1]]))
    }

    fn set_u16(&mut self, at: usize, value: usize) {
        self.image[at..at + 2].copy_from_slice(&small(value).to_le_bytes());
    }

    fn cell(&self, i: usize) -> usize {
        usize::from(self.slots[i].cell)
    }

    fn cell_len(&self, i: usize) -> usize {
        let slot = self.slots[i];
        CELL + usize::from(slot.key_len) + self.u16_at(usize::from(slot.cell) + 2)
    }

    /// Bytes of the payload that an entry uses.
    pub fn room_of(&self, i: usize) -> usize {
        SLOT + self.cell_len(i)
    }

    pub fn key(&self, i: usize) -> &[u8] {
        self.key_of(self.slots[i])
    }

    fn key_of(&self, slot: Slot) -> &[u8] {
        let start = usize::from(slot.cell) + CELL;
        &self.image[start..start + usize::from(slot.key_len)]
    }

    pub fn value(&self, i: usize) -> &[u8] {
        let slot = self.slots[i];
        let cell = usize::from(slot.cell);
        let start = cell + CELL + usize::from(slot.key_len);
        &self.image[start..start + self.u16_at(cell + 2)]
    }

    pub fn child(&self, i: usize) -> NodeRef {
        let child = Child::ref_from_bytes(self.value(i)).expect("interior values have the size of a child");
        NodeRef {
            block: child.block.get(),
            generation: child.generation.get(),
            checksum: child.checksum.get(),
        }
    }

    /// The first entry whose key has the prefix and a head.
    fn first(&self) -> usize {
        usize::from(!self.is_leaf())
    }

    /// Where `key` is, or where it would be.
    pub fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let first = self.first().min(self.count());
        if first == 1 && key.is_empty() {
            return Ok(0);
        }
        let slots = &self.slots[first..];
        let Some(rest) = key.strip_prefix(self.prefix.as_slice()) else {
            return Err(if key < self.prefix.as_slice() { first } else { self.count() });
        };
        let head = head_of(rest);
        let mut low = if self.is_leaf() { rank_by_guess(slots, head, self.edges) } else { rank(slots, head) };
        let alike = |at: usize| slots.get(at).is_some_and(|slot| slot.head == head);
        // Most heads are unlike all others.
        let mut high = low + usize::from(alike(low));
        if alike(high) {
            high += slots[high..].partition_point(|slot| slot.head == head);
        }
        while low < high {
            let mid = usize::midpoint(low, high);
            match self.key_of(slots[mid]).cmp(key) {
                Ordering::Less => low = mid + 1,
                Ordering::Greater => high = mid,
                Ordering::Equal => return Ok(first + mid),
            }
        }
        Err(first + low)
    }

    /// As [`Node::search`]; looks at one place first.
    pub fn search_near(&self, place: usize, key: &[u8]) -> Result<usize, usize> {
        match self.slots.get(place) {
            Some(slot) if self.key_of(*slot) == key => Ok(place),
            _ => self.search(key),
        }
    }

    /// Reads what a search for `key` and an insert of it will read, and waits for none of it: what comes of it is no answer.
    pub fn warm(&self, key: &[u8]) -> u32 {
        let head = head_of(key.get(self.prefix.len()..).unwrap_or_default());
        let (low, high) = self.edges;
        let span = u64::from(high.saturating_sub(low)) + 1;
        let guess = u64::from(head.saturating_sub(low)).min(span) * self.slots.len() as u64 / span;
        let slot = self.slots.get(usize::try_from(guess).unwrap_or(0)).map_or(0, |slot| slot.head);
        let last = self.slots.last().map_or(0, |slot| slot.head);
        // Where the next cell goes.
        let cell =
            |back: usize| self.image.get(self.cells.wrapping_sub(back)).map_or(0, |byte| u32::from(*byte));
        slot ^ last ^ cell(1) ^ cell(65) ^ cell(129)
    }

    /// The child whose range holds `key`.
    pub fn child_index(&self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(i) => i,
            Err(i) => i.saturating_sub(1), // Never below 0: the first key is empty.
        }
    }

    pub fn insert(&mut self, i: usize, key: &[u8], value: &[u8]) {
        assert!(self.fits(key, value), "the caller makes room before it inserts");
        let mut slot = self.add_cell(key, value);
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(SLOTS_GROWTH);
        }
        let first = self.first();
        if self.count() <= first {
            self.slots.insert(i, slot);
            self.rehead();
        } else if i < first {
            // What was first has a key like all others now.
            self.slots.insert(i, slot);
            self.rehead();
        } else if let Some(rest) = key.strip_prefix(self.prefix.as_slice()) {
            slot.head = head_of(rest);
            self.slots.insert(i, slot);
            self.set_edges();
        } else {
            self.prefix.truncate(common(&self.prefix, key));
            self.slots.insert(i, slot);
            self.set_heads();
        }
    }

    /// Adds a cell below the others; its slot has no head yet.
    fn add_cell(&mut self, key: &[u8], value: &[u8]) -> Slot {
        let len = CELL + key.len() + value.len();
        if self.cells < len {
            self.compact();
        }
        let cell = self.cells - len;
        self.set_u16(cell, key.len());
        self.set_u16(cell + 2, value.len());
        let value_at = cell + CELL + key.len();
        self.image[cell + CELL..value_at].copy_from_slice(key);
        self.image[value_at..value_at + value.len()].copy_from_slice(value);
        self.cells = cell;
        self.live += len;
        Slot { head: 0, cell: small(cell), key_len: small(key.len()) }
    }

    /// Finds the longest prefix, and the heads after it.
    fn rehead(&mut self) {
        let slots = self.slots.get(self.first()..).unwrap_or_default();
        let (Some(low), Some(high)) = (slots.first(), slots.last()) else {
            self.prefix.clear();
            self.edges = (0, 0);
            return;
        };
        let (low, high) = (self.key_of(*low), self.key_of(*high));
        let prefix = SmallVec::from_slice(&low[..common(low, high)]);
        self.prefix = prefix;
        self.set_heads();
    }

    /// The heads of all keys that have the prefix.
    fn set_heads(&mut self) {
        for i in self.first()..self.count() {
            let head = head_of(&self.key(i)[self.prefix.len()..]);
            self.slots[i].head = head;
        }
        self.set_edges();
    }

    fn set_edges(&mut self) {
        let slots = self.slots.get(self.first()..).unwrap_or_default();
        self.edges = slots.first().zip(slots.last()).map_or((0, 0), |(low, high)| (low.head, high.head));
    }

    pub fn remove(&mut self, i: usize) {
        let (cell, len) = (self.cell(i), self.cell_len(i));
        if cell == self.cells {
            self.cells += len;
        }
        self.slots.remove(i);
        self.live -= len;
        self.set_edges();
    }

    /// Replaces a value where it lies, if the new one has its length.
    pub fn overwrite(&mut self, i: usize, value: &[u8]) -> bool {
        let slot = self.slots[i];
        let cell = usize::from(slot.cell);
        let start = cell + CELL + usize::from(slot.key_len);
        let same = self.u16_at(cell + 2) == value.len();
        if same {
            self.image[start..start + value.len()].copy_from_slice(value);
        }
        same
    }

    /// Replaces a value; whether there was room for that. A longer one goes to a cell of its own.
    pub fn replace(&mut self, i: usize, key: &[u8], value: &[u8]) -> bool {
        let length = self.cell(i) + 2;
        let old = self.u16_at(length);
        if value.len() <= old {
            self.set_u16(length, value.len());
            self.live -= old - value.len();
            return self.overwrite(i, value);
        }
        let fits = self.fits(key, value);
        if fits {
            let fresh = self.add_cell(key, value);
            self.live -= self.cell_len(i);
            self.slots[i].cell = fresh.cell;
        }
        fits
    }

    pub fn set_child(&mut self, i: usize, child: NodeRef) {
        let done = self.overwrite(i, &child_bytes(child));
        assert!(done, "interior values have the size of a child");
    }

    /// Takes a child out of an interior node that has others.
    pub fn unlink_child(&mut self, i: usize) {
        assert!(self.count() > 1, "an interior node keeps at least one child");
        if i == 0 {
            // The first key stays the empty one; its neighbour inherits the range.
            let heir = self.child(1);
            self.remove(1);
            self.set_child(0, heir);
        } else {
            self.remove(i);
        }
    }

    /// Moves the entries from `at` on to a new node. Its block and generation are the caller's to give.
    pub fn split_off(&mut self, at: usize) -> Node {
        let mut right = Node::new(self.image.len(), self.tree, self.level);
        right.slots.reserve_exact(self.count() - at);
        for i in at..self.count() {
            let (cell, len) = (self.cell(i), self.cell_len(i));
            right.cells -= len;
            right.image[right.cells..right.cells + len].copy_from_slice(&self.image[cell..cell + len]);
            right.slots.push(Slot { cell: small(right.cells), ..self.slots[i] });
            right.live += len;
        }
        right.rehead();
        self.live -= right.live;
        self.slots.truncate(at);
        self.set_edges();
        right
    }

    /// Appends all of `right`, whose first key becomes `first` in an interior node.
    pub fn append(&mut self, right: &Node, first: &[u8]) {
        self.slots.reserve_exact(right.count());
        for i in 0..right.count() {
            let key = if i == 0 && !self.is_leaf() { first } else { right.key(i) };
            assert!(self.fits(key, right.value(i)), "the caller joins nodes that fit together");
            let slot = self.add_cell(key, right.value(i));
            self.slots.push(slot);
        }
        self.rehead();
    }

    /// Makes the first key of an interior node the empty one, and gives what it was.
    pub fn take_first_key(&mut self) -> Vec<u8> {
        let key = self.key(0).to_vec();
        let child = child_bytes(self.child(0));
        self.remove(0);
        self.insert(0, b"", &child);
        key
    }

    /// Where to split so that both halves fit when an entry comes in at `i`: entries before the
    /// answer, counted with the new one, stay left. Growth at the right end leaves full nodes behind.
    pub fn split_point(&self, i: usize, key: &[u8], value: &[u8]) -> usize {
        if i == self.count() {
            return self.count();
        }
        let new = entry_room(key, value);
        let total = self.used() + new;
        let mut left = 0;
        for at in 0..self.count() {
            left += match at.cmp(&i) {
                Ordering::Less => SLOT + self.cell_len(at),
                Ordering::Equal => new,
                Ordering::Greater => SLOT + self.cell_len(at - 1),
            };
            if left >= total / 2 {
                return at + 1;
            }
        }
        self.count()
    }

    /// Moves the cells together.
    fn compact(&mut self) {
        let mut fresh = vec![0; self.image.len()].into_boxed_slice();
        let mut at = fresh.len();
        for i in 0..self.count() {
            let (cell, len) = (self.cell(i), self.cell_len(i));
            at -= len;
            fresh[at..at + len].copy_from_slice(&self.image[cell..cell + len]);
            self.slots[i].cell = small(at);
        }
        self.cells = at;
        self.image = fresh;
        self.rehead();
    }
}
