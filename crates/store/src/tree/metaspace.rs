//! Which node blocks are used: by the running trees, and by those that recovery may start from.
//!
//! A block that the running generation allocated and freed is free at once. One that an earlier
//! generation wrote stays busy until the generation that no longer refers to it is named in the
//! journal: until then recovery may start from trees that do (I5).

/// A bit for each block.
#[derive(Clone)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: u64) -> Bits {
        Bits(vec![0; usize::try_from(len.div_ceil(64)).expect("a bitmap fits memory")])
    }
    fn at(block: u64) -> (usize, u64) {
        (usize::try_from(block / 64).expect("a bitmap fits memory"), 1 << (block % 64))
    }
    fn get(&self, block: u64) -> bool {
        let (word, bit) = Bits::at(block);
        self.0[word] & bit != 0
    }
    fn set(&mut self, block: u64) {
        let (word, bit) = Bits::at(block);
        assert!(self.0[word] & bit == 0, "node block {block} is taken twice");
        self.0[word] |= bit;
    }
    fn clear(&mut self, block: u64) {
        let (word, bit) = Bits::at(block);
        assert!(self.0[word] & bit != 0, "node block {block} is freed twice");
        self.0[word] &= !bit;
    }
}

/// The node blocks of a region.
pub(super) struct Metaspace {
    blocks: u64,
    /// Blocks of the running trees.
    live: Bits,
    /// Those, and all that a checkpoint which recovery may start from refers to.
    busy: Bits,
    free: u64,
    /// Freed in the running generation, used by an earlier one.
    freed: Vec<u64>,
    /// The allocation goal: neighbours in time become neighbours on disk, and one write.
    goal: u64,
}

impl Metaspace {
    pub fn new(blocks: u64) -> Metaspace {
        let (live, busy) = (Bits::new(blocks), Bits::new(blocks));
        Metaspace { blocks, live, busy, free: blocks, freed: Vec::new(), goal: 0 }
    }

    /// From a checkpoint's bitmap; `None` if it marks blocks that do not exist.
    pub fn from_bytes(blocks: u64, bytes: &[u8]) -> Option<Metaspace> {
        let mut space = Metaspace::new(blocks);
        for (at, byte) in (0..).zip(bytes) {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                let block = at * 8 + bit;
                if block >= blocks {
                    return None;
                }
                space.mark(block);
            }
        }
        Some(space)
    }

    /// The running trees' blocks as a bitmap of `len` bytes.
    pub fn to_bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.live.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(len, 0);
        bytes
    }

    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    pub fn free(&self) -> u64 {
        self.free
    }

    pub fn is_live(&self, block: u64) -> bool {
        block < self.blocks && self.live.get(block)
    }

    /// Takes a certain block, which must be free.
    pub fn mark(&mut self, block: u64) {
        self.live.set(block);
        self.busy.set(block);
        self.free -= 1;
    }

    /// A block next to the last one if that is free.
    pub fn alloc(&mut self) -> u64 {
        assert!(self.free > 0, "operations check for room before they change anything");
        let block = self.find(self.goal, self.blocks).or_else(|| self.find(0, self.goal));
        let block = block.expect("the count of free blocks matches the bits");
        self.mark(block);
        self.goal = (block + 1) % self.blocks;
        block
    }

    fn find(&self, from: u64, until: u64) -> Option<u64> {
        let mut at = from;
        while at < until {
            let (word, _) = Bits::at(at);
            let free = !self.busy.0[word] & (u64::MAX << (at % 64));
            if free != 0 {
                let block = at / 64 * 64 + u64::from(free.trailing_zeros());
                return (block < until).then_some(block);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// The running trees no longer use `block`; `fresh` if they allocated it in this generation.
    pub fn free_block(&mut self, block: u64, fresh: bool) {
        self.live.clear(block);
        if fresh {
            self.busy.clear(block);
            self.free += 1;
        } else {
            self.freed.push(block);
        }
    }

    /// The blocks that the generation which ends now no longer refers to. The next one begins at the first blocks that
    /// are free side by side: a region that is sparse, or memory, grows no further than it must.
    pub fn take_freed(&mut self) -> Vec<u64> {
        if let Some(word) = self.busy.0.iter().position(|word| *word == 0) {
            self.goal = (word as u64 * 64).min(self.blocks - 1);
        }
        std::mem::take(&mut self.freed)
    }

    /// Nothing that recovery may start from refers to these any more.
    pub fn release(&mut self, freed: &[u64]) {
        for block in freed {
            self.busy.clear(*block);
        }
        self.free += freed.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::Metaspace;

    #[test]
    fn blocks_of_an_earlier_generation_wait_for_their_release() {
        let mut space = Metaspace::new(100);
        let [a, b] = [space.alloc(), space.alloc()];
        assert_eq!((a, b), (0, 1));
        space.free_block(a, true);
        assert_eq!(space.free(), 99);
        space.free_block(b, false);
        assert_eq!(space.free(), 99);
        let taken: Vec<u64> = (0..99).map(|_| space.alloc()).collect();
        assert!(!taken.contains(&b), "recovery may still need it");
        let freed = space.take_freed();
        assert_eq!(freed, [b]);
        space.release(&freed);
        assert_eq!(space.alloc(), b);
    }

    #[test]
    fn a_bitmap_survives_its_bytes_and_may_not_name_what_does_not_exist() {
        let mut space = Metaspace::new(70);
        let used: Vec<u64> = (0..67).map(|_| space.alloc()).collect();
        let bytes = space.to_bytes(4096);
        let back = Metaspace::from_bytes(70, &bytes).expect("whole");
        assert_eq!(back.free(), 3);
        assert!(used.iter().all(|b| back.is_live(*b)) && !back.is_live(67) && !back.is_live(1000));
        let mut bad = bytes;
        bad[70 / 8] |= 1 << (70 % 8);
        assert!(Metaspace::from_bytes(70, &bad).is_none());
    }
}
