//! One node: a block with a directory of slots that grows up and cells that grow down.
//!
//! In memory a node is its image plus the header's numbers; a lookup is a binary search in the image
//! and allocates nothing. On disk the cells lie in the order of their keys without a hole, so that an
//! image has one valid form and validation is exact: every offset follows from the lengths before it.
//!
//! An interior node's first key is empty and means "from wherever the parent says". So a child can be
//! unlinked at the left end without its neighbour's subtree being touched.

use super::{NodeRef, TreeId};
use cobalt_base::canary::{Canary, planted};
use cobalt_base::checksum::xxh3;
use std::cmp::Ordering;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const MAGIC: [u8; 4] = *b"CBnd";
const HEADER: usize = size_of::<Header>();
const SLOT: usize = 2;
const CELL: usize = 4;
const CHILD: usize = size_of::<Child>();

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

/// A node in memory.
#[derive(Clone)]
pub(super) struct Node {
    image: Box<[u8]>,
    pub tree: TreeId,
    pub level: u32,
    pub block: u64,
    pub generation: u64,
    count: usize,
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

impl Node {
    pub fn new(size: usize, tree: TreeId, level: u32) -> Node {
        let image = vec![0; size].into_boxed_slice();
        Node { image, tree, level, block: 0, generation: 0, count: 0, cells: size, live: 0 }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn is_leaf(&self) -> bool {
        self.level == 0
    }

    pub fn node_ref(&self) -> NodeRef {
        NodeRef { block: self.block, generation: self.generation, checksum: 0 }
    }

    /// Bytes of the payload in use.
    pub fn used(&self) -> usize {
        self.live + SLOT * self.count
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
        let value = u16::try_from(value).expect("offsets and lengths inside of a node fit 16 bits");
        self.image[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn cell(&self, i: usize) -> usize {
        debug_assert!(i < self.count);
        self.u16_at(HEADER + SLOT * i)
    }

    fn cell_len(&self, i: usize) -> usize {
        let cell = self.cell(i);
        CELL + self.u16_at(cell) + self.u16_at(cell + 2)
    }

    pub fn key(&self, i: usize) -> &[u8] {
        let cell = self.cell(i);
        &self.image[cell + CELL..cell + CELL + self.u16_at(cell)]
    }

    pub fn value(&self, i: usize) -> &[u8] {
        let cell = self.cell(i);
        let start = cell + CELL + self.u16_at(cell);
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

    /// Where `key` is, or where it would be.
    pub fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let mid = usize::midpoint(low, high);
            match self.key(mid).cmp(key) {
                Ordering::Less => low = mid + 1,
                Ordering::Greater => high = mid,
                Ordering::Equal => return Ok(mid),
            }
        }
        Err(low)
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
        let len = CELL + key.len() + value.len();
        if self.cells - (HEADER + SLOT * self.count) < len + SLOT {
            self.compact();
        }
        let cell = self.cells - len;
        self.set_u16(cell, key.len());
        self.set_u16(cell + 2, value.len());
        let value_at = cell + CELL + key.len();
        self.image[cell + CELL..value_at].copy_from_slice(key);
        self.image[value_at..value_at + value.len()].copy_from_slice(value);
        let slot = HEADER + SLOT * i;
        self.image.copy_within(slot..HEADER + SLOT * self.count, slot + SLOT);
        self.set_u16(slot, cell);
        self.count += 1;
        self.cells = cell;
        self.live += len;
    }

    pub fn remove(&mut self, i: usize) {
        let (cell, len) = (self.cell(i), self.cell_len(i));
        if cell == self.cells {
            self.cells += len;
        }
        let slot = HEADER + SLOT * i;
        self.image.copy_within(slot + SLOT..HEADER + SLOT * self.count, slot);
        self.count -= 1;
        self.live -= len;
    }

    /// Replaces a value where it lies, if the new one has its length.
    pub fn overwrite(&mut self, i: usize, value: &[u8]) -> bool {
        let cell = self.cell(i);
        let start = cell + CELL + self.u16_at(cell);
        let same = self.u16_at(cell + 2) == value.len();
        if same {
            self.image[start..start + value.len()].copy_from_slice(value);
        }
        same
    }

    pub fn set_child(&mut self, i: usize, child: NodeRef) {
        let done = self.overwrite(i, &child_bytes(child));
        assert!(done, "interior values have the size of a child");
    }

    /// Takes a child out of an interior node that has others.
    pub fn unlink_child(&mut self, i: usize) {
        assert!(self.count > 1, "an interior node keeps at least one child");
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
        for i in at..self.count {
            right.insert(right.count, self.key(i), self.value(i));
        }
        while self.count > at {
            self.remove(self.count - 1);
        }
        right
    }

    /// Appends all of `right`, whose first key becomes `first` in an interior node.
    pub fn append(&mut self, right: &Node, first: &[u8]) {
        for i in 0..right.count {
            let key = if i == 0 && !self.is_leaf() { first } else { right.key(i) };
            self.insert(self.count, key, right.value(i));
        }
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
        if i == self.count {
            return self.count;
        }
        let new = entry_room(key, value);
        let total = self.used() + new;
        let mut left = 0;
        for at in 0..self.count {
            left += match at.cmp(&i) {
                Ordering::Less => SLOT + self.cell_len(at),
                Ordering::Equal => new,
                Ordering::Greater => SLOT + self.cell_len(at - 1),
            };
            if left >= total / 2 {
                return at + 1;
            }
        }
        self.count
    }

    fn compact(&mut self) {
        let mut fresh = vec![0; self.image.len()].into_boxed_slice();
        self.cells = self.lay_out(&mut fresh);
        self.image = fresh;
    }

    /// Slots and cells in their one form on disk; gives the offset of the lowest cell.
    fn lay_out(&self, out: &mut [u8]) -> usize {
        let mut at = out.len();
        for i in 0..self.count {
            let (cell, len) = (self.cell(i), self.cell_len(i));
            at -= len;
            out[at..at + len].copy_from_slice(&self.image[cell..cell + len]);
            let slot = HEADER + SLOT * i;
            let offset = u16::try_from(at).expect("offsets inside of a node fit 16 bits");
            out[slot..slot + SLOT].copy_from_slice(&offset.to_le_bytes());
        }
        at
    }

    /// Writes the node's form on disk into `out` and gives its checksum, which is never 0. Checksums of
    /// children that are not known in memory yet come from `resolve`.
    pub fn seal(&self, seed: u64, out: &mut [u8], resolve: impl Fn(NodeRef) -> u64) -> u64 {
        assert!(out.len() == self.image.len(), "a node is sealed into a block of its size");
        out.fill(0);
        let cells = self.lay_out(out);
        if !self.is_leaf() {
            for i in 0..self.count {
                let child = self.child(i);
                if child.checksum == 0 {
                    let at = HEADER + SLOT * i;
                    let cell = usize::from(u16::from_le_bytes([out[at], out[at + 1]]));
                    let start = cell + CELL + self.key(i).len();
                    let known = NodeRef { checksum: resolve(child), ..child };
                    out[start..start + CHILD].copy_from_slice(&child_bytes(known));
                }
            }
        }
        let header = Header {
            magic: MAGIC,
            tree: self.tree as u8,
            level: u8::try_from(self.level).expect("a tree is never that high"),
            count: U16::new(u16::try_from(self.count).expect("entries take more than one byte each")),
            block: self.block.into(),
            generation: self.generation.into(),
            checksum: U64::ZERO,
            cells: U16::new(u16::try_from(cells).expect("offsets inside of a node fit 16 bits")),
            zero: [0; 6],
        };
        out[..HEADER].copy_from_slice(header.as_bytes());
        let sum = checksum(seed, out);
        out[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
        sum
    }

    /// A node from a block, if everything about it is as the referrer expects and as the format says.
    pub fn parse(bytes: &[u8], expect: &Expect) -> Result<Node, String> {
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| "shorter than a header".to_owned())?;
        if header.magic != MAGIC {
            return Err(format!("magic is {:02x?}", header.magic));
        }
        let mut image: Box<[u8]> = bytes.into();
        image[CHECKSUM_AT..CHECKSUM_AT + 8].fill(0);
        let computed = checksum(expect.seed, &image);
        let stored = header.checksum.get();
        if stored != computed {
            return Err(format!("checksum is {stored:016x}, its bytes give {computed:016x}"));
        }
        let (block, generation) = (header.block.get(), header.generation.get());
        if block != expect.node.block {
            return Err(format!("it is node block {block}, the parent refers to {}", expect.node.block));
        }
        let named = generation == expect.node.generation && stored == expect.node.checksum;
        if !named && !planted(Canary::NoParentChecksum) {
            return Err(format!(
                "it is of generation {generation} with checksum {stored:016x}, the parent refers to generation {} with {:016x}",
                expect.node.generation, expect.node.checksum
            ));
        }
        if header.tree != expect.tree as u8 || u32::from(header.level) != expect.level {
            return Err(format!(
                "it is of tree {} level {}, the parent refers to tree {} level {}",
                header.tree, header.level, expect.tree as u8, expect.level
            ));
        }
        let count = usize::from(header.count.get());
        let cells = usize::from(header.cells.get());
        let live = image.len().checked_sub(cells).ok_or("cells begin outside of the block")?;
        if HEADER + SLOT * count > cells {
            return Err(format!("{count} entries do not fit below offset {cells}"));
        }
        let node =
            Node { image, tree: expect.tree, level: expect.level, block, generation, count, cells, live };
        node.validate(expect)?;
        Ok(node)
    }

    /// Every offset and length; then order and sizes of the entries. Only lengths that were checked are followed.
    fn validate(&self, expect: &Expect) -> Result<(), String> {
        let size = self.image.len();
        let mut at = size;
        for i in 0..self.count {
            let cell = self.u16_at(HEADER + SLOT * i);
            if cell < self.cells || cell + CELL > size {
                return Err(format!("entry {i} begins at offset {cell}, outside of the cells"));
            }
            if cell + self.cell_len(i) != at {
                return Err(format!("entry {i} at offset {cell} does not end at {at}"));
            }
            at = cell;
        }
        if at != self.cells {
            return Err(format!("cells begin at {at}, the header says {}", self.cells));
        }
        for i in 0..self.count {
            let (key, value) = (self.key(i), self.value(i));
            if key.len() > key_max(size) || key.len() + value.len() > entry_max(size) {
                return Err(format!("entry {i} is longer than any may be"));
            }
            if i > 0 && self.key(i - 1) >= key {
                return Err(format!("keys {} and {i} are not in order", i - 1));
            }
            if !self.is_leaf() {
                self.validate_child(i, expect)?;
            }
        }
        if !self.is_leaf() && (self.count == 0 || !self.key(0).is_empty()) {
            return Err("an interior node begins with one child under the empty key".into());
        }
        Ok(())
    }

    fn validate_child(&self, i: usize, expect: &Expect) -> Result<(), String> {
        let len = self.value(i).len();
        if len != CHILD {
            return Err(format!("entry {i} of an interior node has {len} bytes"));
        }
        let child = self.child(i);
        if child.block >= expect.node_blocks || child.generation > self.generation || child.checksum == 0 {
            return Err(format!("entry {i} refers to an impossible node: {child:?}"));
        }
        Ok(())
    }
}

const CHECKSUM_AT: usize = std::mem::offset_of!(Header, checksum);

/// Never 0: that means "not known yet" in a pointer.
fn checksum(seed: u64, image: &[u8]) -> u64 {
    xxh3(seed, image).max(1)
}

#[cfg(test)]
mod tests {
    use super::{Expect, Node, NodeRef, TreeId, entry_max, key_max};

    fn sealed(node: &Node) -> (Vec<u8>, Expect) {
        let mut out = vec![0xaa; 4096];
        let checksum = node.seal(7, &mut out, |_| 9);
        let expect = Expect {
            seed: 7,
            tree: node.tree,
            level: node.level,
            node: NodeRef { checksum, ..node.node_ref() },
            node_blocks: 1000,
        };
        (out, expect)
    }

    fn leaf() -> Node {
        let mut node = Node::new(4096, TreeId::Ctg, 0);
        (node.block, node.generation) = (12, 34);
        for i in (0..20u8).rev() {
            node.insert(0, &[i, 1], &[i; 30]);
        }
        node.remove(3);
        node
    }

    #[test]
    fn the_contract_s_largest_metadata_fits() {
        assert!(entry_max(16_384) >= 5400);
        assert!(key_max(4096) >= 1024);
    }

    #[test]
    fn a_flip_of_any_byte_is_detected() {
        let (image, expect) = sealed(&leaf());
        Node::parse(&image, &expect).expect("whole");
        for at in 0..image.len() {
            let mut bad = image.clone();
            bad[at] ^= 0x10;
            assert!(Node::parse(&bad, &expect).is_err(), "byte {at}");
        }
    }

    #[test]
    fn nonsense_under_a_right_checksum_is_rejected_without_a_panic() {
        let (image, expect) = sealed(&leaf());
        for at in 0..image.len() {
            for bit in [0x01, 0x80, 0xff] {
                let mut bad = image.clone();
                bad[at] ^= bit;
                bad[super::CHECKSUM_AT..super::CHECKSUM_AT + 8].fill(0);
                let sum = super::checksum(7, &bad);
                bad[super::CHECKSUM_AT..super::CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
                let expect = Expect { node: NodeRef { checksum: sum, ..expect.node }, ..expect };
                if let Ok(node) = Node::parse(&bad, &expect) {
                    for i in 0..node.count() {
                        assert!(node.search(node.key(i)) == Ok(i) && node.value(i).len() < 4096);
                    }
                }
            }
        }
    }

    #[test]
    fn unknown_checksums_of_children_are_resolved_when_sealed() {
        let mut node = Node::new(4096, TreeId::Cob, 1);
        node.generation = 5;
        let child = NodeRef { block: 3, generation: 5, checksum: 0 };
        node.insert(0, b"", &super::child_bytes(child));
        node.insert(1, b"k", &super::child_bytes(NodeRef { checksum: 77, ..child }));
        let (image, expect) = sealed(&node);
        let back = Node::parse(&image, &expect).expect("whole");
        assert_eq!([back.child(0).checksum, back.child(1).checksum], [9, 77]);
    }
}
