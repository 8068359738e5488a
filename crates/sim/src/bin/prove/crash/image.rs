//! What a target's two devices hold, as shared blocks: a state of a crash costs only the blocks in which it differs.
//!
//! Blocks are numbered through: the meta region's first, then the data region's. An image is known by a 128-bit sum over its
//! blocks, each weighed by its place, so that a changed block changes the sum without a look at the others.

use cobalt_base::checksum::xxh3;
use std::cell::OnceCell;
use std::rc::Rc;

/// Bytes of a block, and of a sector: what a disk writes whole.
pub const BLOCK: usize = 4096;
pub const SECTOR: usize = 512;

pub struct Block {
    pub bytes: [u8; BLOCK],
    hash: OnceCell<(u64, u64)>,
}

pub type Page = Rc<Block>;

impl Block {
    pub fn new(bytes: &[u8]) -> Page {
        let mut block = Rc::new(Block { bytes: [0; BLOCK], hash: OnceCell::new() });
        if let Some(block) = Rc::get_mut(&mut block) {
            block.bytes[..bytes.len()].copy_from_slice(bytes);
        }
        block
    }

    pub fn filled(byte: u8) -> Page {
        Rc::new(Block { bytes: [byte; BLOCK], hash: OnceCell::new() })
    }

    /// What a block of this content at this place adds to an image's sum.
    pub fn weight(&self, place: u32) -> u128 {
        let (a, b) = *self.hash.get_or_init(|| (xxh3(1, &self.bytes), xxh3(2, &self.bytes)));
        let at = (u64::from(place) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Not linear in the place: two blocks that change places change the sum.
        u128::from(a ^ at) * u128::from(b ^ at.rotate_left(32)) + u128::from(a)
    }
}

/// All blocks, and their sum.
#[derive(Clone)]
pub struct Image {
    pub pages: Vec<Page>,
    pub sum: u128,
}

impl Image {
    pub fn new(pages: Vec<Page>) -> Image {
        let sum = (0u32..).zip(&pages).fold(0u128, |sum, (at, page)| sum.wrapping_add(page.weight(at)));
        Image { pages, sum }
    }

    pub fn set(&mut self, place: u32, page: Page) {
        let old = std::mem::replace(&mut self.pages[place as usize], page);
        self.sum =
            self.sum.wrapping_sub(old.weight(place)).wrapping_add(self.pages[place as usize].weight(place));
    }
}
