//! A node's form on disk: header, slots that are offsets, room, cells in the order of their keys without a hole.
//! An image has one valid form, and validation is exact: every offset follows from the lengths before it.

use super::{
    CELL, CHILD, Expect, HEADER, Header, MAGIC, Node, NodeRef, SLOT, Slot, child_bytes, entry_max, key_max,
    small,
};
use cobalt_base::canary::{Canary, planted};
use cobalt_base::checksum::xxh3;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, IntoBytes};

impl Node {
    /// Slots and cells in their one form on disk; gives the offset of the lowest cell.
    fn lay_out(&self, out: &mut [u8]) -> usize {
        let cells_from = HEADER + SLOT * self.count();
        let (head, cells) = out.split_at_mut(cells_from);
        let mut at = cells.len();
        // Most cells lie in their order from when the node was read: those go together, as `run` of the image.
        let mut run = 0..0;
        for (slot, out) in self.slots.iter().zip(head[HEADER..].chunks_exact_mut(SLOT)) {
            let cell = usize::from(slot.cell);
            let end = cell + CELL + usize::from(slot.key_len) + self.u16_at(cell + 2);
            if end != run.start {
                cells[at..at + run.len()].copy_from_slice(&self.image[run.clone()]);
                run = end..end;
            }
            run.start = cell;
            at -= end - cell;
            out.copy_from_slice(&small(cells_from + at).to_le_bytes());
        }
        cells[at..at + run.len()].copy_from_slice(&self.image[run]);
        cells[..at].fill(0);
        cells_from + at
    }

    /// Writes the node's form on disk into `out` and gives its checksum, which is never 0. Checksums of
    /// children that are not known in memory yet come from `resolve`.
    pub fn seal(&self, seed: u64, out: &mut [u8], resolve: impl Fn(NodeRef) -> u64) -> u64 {
        assert!(out.len() == self.image.len(), "a node is sealed into a block of its size");
        let cells = self.lay_out(out);
        if !self.is_leaf() {
            for i in 0..self.count() {
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
            count: U16::new(small(self.count())),
            block: self.block.into(),
            generation: self.generation.into(),
            checksum: U64::ZERO,
            cells: U16::new(small(cells)),
            zero: [0; 6],
        };
        out[..HEADER].copy_from_slice(header.as_bytes());
        let sum = checksum(seed, out);
        out[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
        sum
    }

    /// A node from a block, if everything about it is as the referrer expects and as the format says.
    pub fn parse(bytes: &[u8], expect: &Expect) -> Result<Node, String> {
        let mut node = Node::new(bytes.len(), expect.tree, expect.level);
        node.parse_over(bytes, expect)?;
        Ok(node)
    }

    /// As [`Node::parse`], in place of a node of this size that is of no more use. What it is after an error is of none either.
    pub fn parse_over(&mut self, bytes: &[u8], expect: &Expect) -> Result<(), String> {
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| "shorter than a header".to_owned())?;
        if header.magic != MAGIC {
            return Err(format!("magic is {:02x?}", header.magic));
        }
        self.image.copy_from_slice(bytes);
        self.image[CHECKSUM_AT..CHECKSUM_AT + 8].fill(0);
        let computed = checksum(expect.seed, &self.image);
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
        let live = bytes.len().checked_sub(cells).ok_or("cells begin outside of the block")?;
        if HEADER + SLOT * count > cells {
            return Err(format!("{count} entries do not fit below offset {cells}"));
        }
        (self.tree, self.level) = (expect.tree, expect.level);
        (self.block, self.generation) = (block, generation);
        (self.cells, self.live) = (cells, live);
        self.read_slots(count)?;
        self.validate(expect)?;
        self.rehead();
        Ok(())
    }

    /// Every offset and length. Only lengths that were checked are followed.
    fn read_slots(&mut self, count: usize) -> Result<(), String> {
        let size = self.image.len();
        let mut at = size;
        self.slots.clear();
        self.slots.reserve_exact(count);
        for i in 0..count {
            let cell = self.u16_at(HEADER + SLOT * i);
            if cell < self.cells || cell + CELL > size {
                return Err(format!("entry {i} begins at offset {cell}, outside of the cells"));
            }
            let (key_len, value_len) = (self.u16_at(cell), self.u16_at(cell + 2));
            if cell + CELL + key_len + value_len != at {
                return Err(format!("entry {i} at offset {cell} does not end at {at}"));
            }
            at = cell;
            self.slots.push(Slot { head: 0, cell: small(cell), key_len: small(key_len) });
        }
        if at != self.cells {
            return Err(format!("cells begin at {at}, the header says {}", self.cells));
        }
        Ok(())
    }

    /// Order and sizes of the entries.
    fn validate(&self, expect: &Expect) -> Result<(), String> {
        let size = self.image.len();
        for i in 0..self.count() {
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
        if !self.is_leaf() && (self.count() == 0 || !self.key(0).is_empty()) {
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

pub(super) const CHECKSUM_AT: usize = std::mem::offset_of!(Header, checksum);

/// Never 0: that means "not known yet" in a pointer.
pub(super) fn checksum(seed: u64, image: &[u8]) -> u64 {
    xxh3(seed, image).max(1)
}
