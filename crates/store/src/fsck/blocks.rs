//! Every data block is in exactly one of free space or one extent: a bit for each block of a window of the data region.

use std::collections::BTreeMap;

/// Memory for the map unless said otherwise, in bytes: 2 TiB of data in one pass.
pub(super) const MAP_BYTES: u64 = 64 << 20;
/// Runs of blocks with two owners whose owners are looked for.
const CONFLICTS_MAX: usize = 1000;

/// The blocks of a window that were claimed.
pub(super) struct Claims {
    first: u64,
    len: u64,
    bits: Vec<u64>,
    /// Runs that were claimed twice: start → end. They neither overlap nor touch.
    conflicts: BTreeMap<u64, u64>,
    /// Runs beyond those that are kept.
    pub conflicts_more: u64,
}

impl Claims {
    /// The window of `len` blocks from `first` on.
    pub fn new(first: u64, len: u64) -> Claims {
        let words = usize::try_from(len.div_ceil(64)).expect("the window was chosen to fit memory");
        Claims { first, len, bits: vec![0; words], conflicts: BTreeMap::new(), conflicts_more: 0 }
    }

    fn end(&self) -> u64 {
        self.first + self.len
    }

    /// Claims what of the blocks lies in the window.
    pub fn claim(&mut self, start: u64, blocks: u64) {
        let from = start.max(self.first);
        let until = start.saturating_add(blocks).min(self.end());
        let mut at = from;
        while at < until {
            let (word, shift) = self.place(at);
            let count = (64 - shift).min(until - at);
            let mask = (u64::MAX >> (64 - count)) << shift;
            let twice = self.bits[word] & mask;
            self.bits[word] |= mask;
            if twice != 0 {
                self.conflict(at - shift, twice);
            }
            at += count;
        }
    }

    fn place(&self, block: u64) -> (usize, u64) {
        let at = block - self.first;
        (usize::try_from(at / 64).expect("the window fits memory"), at % 64)
    }

    /// Notes the runs of the bits of one word.
    fn conflict(&mut self, base: u64, mut bits: u64) {
        while bits != 0 {
            let start = u64::from(bits.trailing_zeros());
            let len = u64::from((bits >> start).trailing_ones());
            bits &= !((u64::MAX >> (64 - len)) << start);
            self.conflict_run(base + start, base + start + len);
        }
    }

    fn conflict_run(&mut self, mut start: u64, mut end: u64) {
        while let Some((&s, &e)) = self.conflicts.range(..=end).next_back().filter(|(_, e)| **e >= start) {
            self.conflicts.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        if self.conflicts.len() < CONFLICTS_MAX {
            self.conflicts.insert(start, end);
        } else {
            self.conflicts_more += 1;
        }
    }

    /// Runs with two owners: start and end.
    pub fn conflicts(&self) -> Vec<(u64, u64)> {
        self.conflicts.iter().map(|(start, end)| (*start, *end)).collect()
    }

    /// Gives each run that nobody claimed: start and end.
    pub fn unclaimed(&self, mut give: impl FnMut(u64, u64)) {
        let mut start = None;
        for (i, word) in self.bits.iter().enumerate() {
            if *word == u64::MAX && start.is_none() {
                continue;
            }
            if *word == 0 && start.is_some() {
                continue;
            }
            let base = self.first + i as u64 * 64;
            for bit in 0..64 {
                let block = base + bit;
                if block >= self.end() {
                    break;
                }
                let claimed = word & (1 << bit) != 0;
                match (claimed, start) {
                    (false, None) => start = Some(block),
                    (true, Some(from)) => {
                        give(from, block);
                        start = None;
                    }
                    _ => {}
                }
            }
        }
        if let Some(from) = start {
            give(from, self.end());
        }
    }

    /// Bytes of the map.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bits.len() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::{CONFLICTS_MAX, Claims};

    fn holes(claims: &Claims) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        claims.unclaimed(|from, until| out.push((from, until)));
        out
    }

    #[test]
    fn holes_and_double_claims_are_runs_whatever_words_they_cross() {
        for first in [0, 640, 1 << 40] {
            let mut claims = Claims::new(first, 1000);
            assert_eq!(holes(&claims), [(first, first + 1000)]);
            claims.claim(first + 10, 300);
            claims.claim(first + 400, 1_000_000);
            claims.claim(0, first + 3);
            assert_eq!(holes(&claims), [(first + 3, first + 10), (first + 310, first + 400)]);
            assert_eq!(claims.conflicts(), []);
            claims.claim(first + 300, 20);
            claims.claim(first + 63, 130);
            claims.claim(first + 193, 1);
            assert_eq!(claims.conflicts(), [(first + 63, first + 194), (first + 300, first + 310)]);
            claims.claim(first + 3, 7);
            claims.claim(first + 320, 80);
            assert_eq!(holes(&claims), []);
        }
    }

    #[test]
    fn a_naive_map_agrees() {
        let mut x = 7u64;
        let mut random = move |below: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 33) % below
        };
        for _ in 0..50 {
            let (first, len) = (random(500), 1 + random(700));
            let mut claims = Claims::new(first, len);
            let mut naive = vec![0u32; 2000];
            for _ in 0..8 {
                let (start, blocks) = (random(1200), random(200));
                claims.claim(start, blocks);
                for block in start..start + blocks {
                    naive[block as usize] += 1;
                }
            }
            let mut seen = vec![0u32; 2000];
            claims.unclaimed(|from, until| (from..until).for_each(|b| seen[b as usize] = 1));
            let mut twice = vec![0u32; 2000];
            for (from, until) in claims.conflicts() {
                (from..until).for_each(|b| twice[b as usize] = 1);
            }
            for block in first..first + len {
                let at = block as usize;
                assert_eq!((seen[at] == 1, twice[at] == 1), (naive[at] == 0, naive[at] > 1), "block {block}");
            }
        }
    }

    #[test]
    fn conflicts_are_bounded() {
        let mut claims = Claims::new(0, 10_000);
        claims.claim(0, 10_000);
        for n in 0..2000 {
            claims.claim(n * 4, 1);
        }
        assert_eq!(claims.conflicts().len(), CONFLICTS_MAX);
        assert_eq!(claims.conflicts_more, 1000);
        assert_eq!(claims.bytes(), 157 * 8);
    }
}
