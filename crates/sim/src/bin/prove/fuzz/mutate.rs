//! Small changes of valid bytes. Everything follows from the input's number.

/// Numbers that lie at the edge of something.
const EDGES: [u64; 12] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, number: u64) -> Dice {
        let mut dice =
            Dice(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        dice.next();
        dice.next();
        dice
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn of<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.below(things.len())]
    }

    fn number(&mut self, around: u64) -> u64 {
        match self.below(4) {
            0 => around.wrapping_add(self.next() % 5).wrapping_sub(2),
            1 => self.next(),
            _ => *self.of(&EDGES),
        }
    }

    /// Changes some of `bytes[from..]`; `other` is a valid input to take pieces from. The length stays.
    pub fn change(&mut self, bytes: &mut [u8], other: &[u8]) {
        for _ in 0..1 + self.below(4) {
            self.change_once(bytes, other);
        }
    }

    fn change_once(&mut self, bytes: &mut [u8], other: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let at = self.below(bytes.len());
        match self.below(8) {
            0 | 1 => bytes[at] ^= 1 << self.below(8),
            2 => bytes[at] = self.number(u64::from(bytes[at])) as u8,
            kind @ 3..=5 => {
                let width = [2, 4, 8][kind - 3];
                let at = if self.below(2) == 0 { at / width * width } else { at };
                let width = width.min(bytes.len() - at);
                let old = bytes[at..at + width].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
                let new = self.number(old).to_le_bytes();
                bytes[at..at + width].copy_from_slice(&new[..width]);
            }
            6 => {
                let from = self.below(other.len());
                let len = (1 + self.below(64)).min(bytes.len() - at).min(other.len() - from);
                bytes[at..at + len].copy_from_slice(&other[from..from + len]);
            }
            _ => {
                let from = self.below(bytes.len());
                let len = (1 + self.below(64)).min(bytes.len() - at.max(from));
                bytes.copy_within(from..from + len, at);
            }
        }
    }

    /// The same, and now and then cut short, or longer by a piece.
    pub fn change_length(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        match self.below(5) {
            0 => bytes.truncate(self.below(bytes.len() + 1)),
            1 => {
                let from = self.below(other.len());
                let piece = &other[from..(from + 1 + self.below(48)).min(other.len())];
                let at = self.below(bytes.len() + 1);
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => {}
        }
        self.change(bytes, other);
    }
}
