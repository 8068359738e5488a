//! MD5 (RFC 1321) of several bodies side by side.
//!
//! One body's MD5 is a chain in which each step waits for the one before: most of a core stands idle meanwhile. Up to four bodies
//! that are in memory at the same time fill it, as the lanes of vectors; what each costs falls to nearly a third.

use std::array::from_fn;

/// Most bodies side by side: as many as a vector has lanes on every x86-64 and arm64 machine.
pub const LANES: usize = 4;
const BLOCK: usize = 64;

/// A number of each lane.
type Lanes<const N: usize> = [u32; N];

/// MD5 under way.
#[derive(Clone, Debug)]
pub struct Md5 {
    state: [u32; 4],
    len: u64,
    /// Bytes since the last whole block.
    tail: [u8; BLOCK],
}

impl Default for Md5 {
    fn default() -> Md5 {
        let state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        Md5 { state, len: 0, tail: [0; BLOCK] }
    }
}

impl Md5 {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        update_all([(self, bytes)]);
    }

    /// Ends.
    pub fn finish(mut self) -> [u8; 16] {
        let bits = self.len.wrapping_mul(8).to_le_bytes();
        let filled = self.filled();
        // A one bit, zeroes up to eight bytes before the end of a block, and the length in bits.
        let mut end = [0; 2 * BLOCK];
        end[0] = 0x80;
        let zeroes = if filled < BLOCK - 8 { BLOCK - 8 - filled } else { 2 * BLOCK - 8 - filled };
        end[zeroes..zeroes + 8].copy_from_slice(&bits);
        self.update(&end[..zeroes + 8]);
        let mut out = [0; 16];
        for (place, word) in out.chunks_exact_mut(4).zip(self.state) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    fn filled(&self) -> usize {
        (self.len % BLOCK as u64) as usize
    }

    /// Completes the block that is begun; returns the bytes behind it.
    fn begin<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let filled = self.filled();
        if filled == 0 {
            return bytes;
        }
        let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - filled));
        self.tail[filled..filled + head.len()].copy_from_slice(head);
        self.len += head.len() as u64;
        if self.filled() == 0 {
            let tail = self.tail;
            blocks([self], [&tail]);
        }
        rest
    }
}

/// Adds bytes to each of up to [`LANES`] digests, side by side.
///
/// # Panics
/// When there are more.
pub fn update_all<'a>(digests: impl IntoIterator<Item = (&'a mut Md5, &'a [u8])>) {
    let begun = digests.into_iter().map(|(md5, bytes)| {
        let rest = md5.begin(bytes);
        (md5, rest)
    });
    let mut lanes: Vec<(&mut Md5, &[u8])> = begun.collect();
    assert!(lanes.len() <= LANES, "{} digests side by side", lanes.len());
    // The shortest are done first, and the others go on without them.
    lanes.sort_by_key(|(_, bytes)| std::cmp::Reverse(bytes.len()));
    while let Some((_, shortest)) = lanes.last() {
        let len = shortest.len() / BLOCK * BLOCK;
        together(&mut lanes, len);
        if let Some((md5, rest)) = lanes.pop() {
            // Less than a block; of a block that was completed before, nothing.
            let filled = md5.filled();
            md5.tail[filled..filled + rest.len()].copy_from_slice(rest);
            md5.len += rest.len() as u64;
        }
    }
}

/// Adds the next `len` bytes, whole blocks, of each lane.
fn together(lanes: &mut [(&mut Md5, &[u8])], len: usize) {
    if len == 0 {
        return;
    }
    match lanes {
        [a] => {
            let data = [next(a, len)];
            blocks([a.0], data);
        }
        [a, b] => {
            let data = [next(a, len), next(b, len)];
            blocks([a.0, b.0], data);
        }
        [a, b, c] => {
            let mut unused = Md5::default();
            let data = [next(a, len), next(b, len), next(c, len)];
            blocks([a.0, b.0, c.0, &mut unused], [data[0], data[1], data[2], data[2]]);
        }
        [a, b, c, d] => {
            let data = [next(a, len), next(b, len), next(c, len), next(d, len)];
            blocks([a.0, b.0, c.0, d.0], data);
        }
        _ => unreachable!("one to {LANES} lanes"),
    }
}

/// Takes the lane's next `len` bytes.
fn next<'a>((md5, bytes): &mut (&mut Md5, &'a [u8]), len: usize) -> &'a [u8] {
    let (now, rest) = bytes.split_at(len);
    *bytes = rest;
    md5.len += len as u64;
    now
}

/// Adds whole blocks, as many of each lane.
fn blocks<const N: usize>(digests: [&mut Md5; N], data: [&[u8]; N]) {
    let mut state: [Lanes<N>; 4] = from_fn(|word| from_fn(|lane| digests[lane].state[word]));
    let mut rest = data.map(|bytes| bytes.as_chunks::<BLOCK>().0.iter());
    loop {
        let next: [Option<&[u8; BLOCK]>; N] = from_fn(|lane| rest[lane].next());
        let mut words = [[0; N]; 16];
        for (lane, block) in next.iter().enumerate() {
            let Some(block) = block else {
                for (lane, md5) in digests.into_iter().enumerate() {
                    md5.state = from_fn(|word| state[word][lane]);
                }
                return;
            };
            for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
                word[lane] = u32::from_le_bytes(*bytes);
            }
        }
        compress(&mut state, &words);
    }
}

/// How far each of the four steps in a row rotates, for each round.
const ROTATE: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
/// The whole part of 2^32 × |sin(step)|, for steps 1 to 64.
const SINES: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

/// Step `I` of 64 in all lanes.
#[inline(always)]
fn step<const N: usize, const I: usize>(
    [a, b, c, d]: [Lanes<N>; 4],
    words: &[Lanes<N>; 16],
) -> [Lanes<N>; 4] {
    let word = match I / 16 {
        0 => I,
        1 => (5 * I + 1) % 16,
        2 => (3 * I + 5) % 16,
        _ => (7 * I) % 16,
    };
    let next = from_fn(|l| {
        let (b, c, d) = (b[l], c[l], d[l]);
        let sum = a[l].wrapping_add(words[word][l]).wrapping_add(SINES[I]);
        let sum = match I / 16 {
            0 => sum.wrapping_add(d ^ (b & (c ^ d))),
            // The two halves have no bit in common: adding them one by one does not wait for `b` twice.
            1 => sum.wrapping_add(c & !d).wrapping_add(b & d),
            2 => sum.wrapping_add(b ^ (c ^ d)),
            _ => sum.wrapping_add(c ^ (b | !d)),
        };
        b.wrapping_add(sum.rotate_left(ROTATE[I / 16][I % 4]))
    });
    [d, next, b, c]
}

#[inline(always)]
fn compress<const N: usize>(state: &mut [Lanes<N>; 4], words: &[Lanes<N>; 16]) {
    let mut s = *state;
    macro_rules! steps {
        ($($i:literal)*) => { $(s = step::<N, $i>(s, words);)* };
    }
    steps!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    steps!(16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
    steps!(32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47);
    steps!(48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63);
    for (sum, s) in state.iter_mut().zip(s) {
        *sum = from_fn(|lane| sum[lane].wrapping_add(s[lane]));
    }
}

#[cfg(test)]
mod tests {
    use super::{LANES, Md5, update_all};
    use md5::Digest;

    fn bytes(seed: usize, len: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * 31 + seed * 7) % 251) as u8).collect()
    }

    fn expected(bytes: &[u8]) -> [u8; 16] {
        md5::Md5::digest(bytes).into()
    }

    #[test]
    fn the_test_suite_of_the_rfc_comes_out() {
        let of = |text: &str| {
            let mut md5 = Md5::default();
            md5.update(text.as_bytes());
            hex::encode(md5.finish())
        };
        assert_eq!(of(""), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(of("abc"), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(of("message digest"), "f96b697d7cb7938d525a2f31aaf161d0");
        assert_eq!(of(&"1234567890".repeat(8)), "57edf4a22be3c955ac49da2e2107b67a");
    }

    #[test]
    fn every_length_and_every_cut_gives_the_same_digest() {
        let all = bytes(1, 300);
        for len in 0..all.len() {
            for cut in [0, 1, 55, 63, 64, 65, 128, 200] {
                let (a, b) = all[..len].split_at(cut.min(len));
                let mut md5 = Md5::default();
                md5.update(a);
                md5.update(b);
                assert_eq!(md5.finish(), expected(&all[..len]), "{len} bytes cut at {cut}");
            }
        }
    }

    #[test]
    fn lanes_do_not_mix() {
        let lens = [0, 1, 63, 64, 65, 640, 4096, 5000];
        for turn in 0..lens.len() {
            for count in 1..=LANES {
                let bodies: Vec<_> =
                    (0..count).map(|i| bytes(i, lens[(turn + 3 * i) % lens.len()])).collect();
                let begun: Vec<_> = (0..count).map(|i| bytes(i + 50, (turn * 13 + i * 37) % 130)).collect();
                let mut digests = vec![Md5::default(); count];
                digests.iter_mut().zip(&begun).for_each(|(md5, bytes)| md5.update(bytes));
                update_all(digests.iter_mut().zip(bodies.iter().map(Vec::as_slice)));
                for ((md5, begun), body) in digests.into_iter().zip(&begun).zip(&bodies) {
                    assert_eq!(
                        md5.finish(),
                        expected(&[&begun[..], body].concat()),
                        "{count} lanes, turn {turn}"
                    );
                }
            }
        }
    }
}
