//! Keys and values that follow from a seed: every engine gets the same, in the same order.

/// Bytes of a value.
pub const VALUE: usize = 100;
const KEY_MIN: usize = 16;
const KEY_MAX: usize = 32;

/// A set of random keys, each found by its number.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    seed: u64,
    count: u64,
}

impl Keys {
    pub fn new(seed: u64, count: u64) -> Keys {
        Keys { seed, count }
    }

    /// Key `i`: 16 to 32 random bytes.
    pub fn key(&self, i: u64, out: &mut Vec<u8>) {
        let mut x = mix(self.seed ^ mix(i));
        let len = KEY_MIN + (x % (KEY_MAX - KEY_MIN + 1) as u64) as usize;
        fill(&mut x, out, KEY_MAX);
        out.truncate(len);
    }

    /// The value of key `i`: incompressible, and told from every other.
    pub fn value(&self, i: u64, out: &mut Vec<u8>) {
        let mut x = mix(self.seed.rotate_left(17) ^ mix(i));
        fill(&mut x, out, VALUE);
        out.truncate(VALUE);
    }

    /// The number of the key that the `n`th get asks for: random, unlike the order of the puts.
    pub fn pick(&self, n: u64) -> u64 {
        mix(self.seed.rotate_left(31) ^ n.wrapping_mul(0x9e37_79b9)) % self.count
    }
}

fn fill(x: &mut u64, out: &mut Vec<u8>, len: usize) {
    out.clear();
    out.resize(len.next_multiple_of(8), 0);
    for word in out.chunks_exact_mut(8) {
        // Random enough, and cheap beside what is measured.
        *x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        word.copy_from_slice(&(*x ^ (*x >> 29)).to_le_bytes());
    }
}

fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
