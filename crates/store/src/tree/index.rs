//! Finds the cache's entries by the block of their node: one table of numbers, probed in line, so that a lookup waits
//! for memory once before it has its entry.

/// An open-addressed table, at most half full. A place holds the low half of a block's number and its entry, plus one; 0 is free.
#[derive(Default)]
pub(super) struct BlockIndex {
    places: Vec<u64>,
    used: usize,
}

/// Places of the smallest table.
const PLACES_MIN: usize = 64;

fn place_of(block: u64, at: usize) -> u64 {
    let at = u32::try_from(at + 1).expect("a cache has fewer entries than that");
    block << 32 | u64::from(at)
}

fn entry_of(place: u64) -> usize {
    (place & u64::from(u32::MAX)) as usize - 1
}

impl BlockIndex {
    /// Where the search for a block begins. Block numbers are not chosen by anyone outside: a multiplication spreads them well.
    fn home(&self, block: u64) -> usize {
        let mixed = (block & u64::from(u32::MAX)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (64 - self.places.len().trailing_zeros())) as usize
    }

    fn next(&self, i: usize) -> usize {
        (i + 1) & (self.places.len() - 1)
    }

    fn find(&self, block: u64, has: impl Fn(usize) -> bool) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut i = self.home(block);
        while self.places[i] != 0 {
            let place = self.places[i];
            if place >> 32 == block & u64::from(u32::MAX) && has(entry_of(place)) {
                return Some(i);
            }
            i = self.next(i);
        }
        None
    }

    /// The entry of a block; `has` says whether an entry is that.
    pub fn get(&self, block: u64, has: impl Fn(usize) -> bool) -> Option<usize> {
        self.find(block, has).map(|i| entry_of(self.places[i]))
    }

    /// Adds a block that is not there.
    pub fn insert(&mut self, block: u64, at: usize) {
        if (self.used + 1) * 2 > self.places.len() {
            let len = (self.places.len() * 2).max(PLACES_MIN);
            let old = std::mem::replace(&mut self.places, vec![0; len]);
            for place in old.into_iter().filter(|place| *place != 0) {
                self.put(place);
            }
        }
        self.put(place_of(block, at));
        self.used += 1;
    }

    fn put(&mut self, place: u64) {
        let mut i = self.home(place >> 32);
        while self.places[i] != 0 {
            i = self.next(i);
        }
        self.places[i] = place;
    }

    /// Removes a block of an entry; whether it was there.
    pub fn remove(&mut self, block: u64, at: usize) -> bool {
        let Some(mut hole) = self.find(block, |entry| entry == at) else { return false };
        let mask = self.places.len() - 1;
        let mut i = self.next(hole);
        // What was pushed past the hole moves back into it.
        while self.places[i] != 0 {
            let home = self.home(self.places[i] >> 32);
            if i.wrapping_sub(home) & mask >= i.wrapping_sub(hole) & mask {
                self.places[hole] = self.places[i];
                hole = i;
            }
            i = self.next(i);
        }
        self.places[hole] = 0;
        self.used -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::BlockIndex;
    use std::collections::BTreeMap;

    #[test]
    fn it_is_a_map_of_blocks_to_entries() {
        let (mut index, mut model) = (BlockIndex::default(), BTreeMap::<u64, usize>::new());
        let mut blocks = vec![0u64; 4000];
        let mut x = 1u64;
        for round in 0..40_000usize {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Some differ in their high half alone.
            let block = ((x >> 40) % 1500) | (((x >> 60) % 2) << 40);
            let at = round % blocks.len();
            match model.get(&block).copied() {
                Some(old) => {
                    assert_eq!(index.get(block, |at| blocks[at] == block), Some(old));
                    assert!(index.remove(block, old) && !index.remove(block, old));
                    model.remove(&block);
                }
                None if !model.values().any(|used| *used == at) => {
                    assert_eq!(index.get(block, |at| blocks[at] == block), None);
                    blocks[at] = block;
                    index.insert(block, at);
                    model.insert(block, at);
                }
                None => {}
            }
            assert_eq!(index.used, model.len());
        }
        for (block, at) in &model {
            assert_eq!(index.get(*block, |at| blocks[at] == *block), Some(*at));
        }
    }
}
