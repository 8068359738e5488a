//! Checksums: CRC32C over payload chunks (they combine by length), xxh3 over metadata.

use crc_fast::{CrcAlgorithm, checksum, checksum_combine};

/// CRC32C (Castagnoli, as in iSCSI, RFC 3720) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    low32(checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

/// The CRC32C of A ‖ B from the CRC32C of A, that of B, and B's length in bytes.
pub fn crc32c_combine(a: u32, b: u32, b_len: u64) -> u32 {
    low32(checksum_combine(CrcAlgorithm::Crc32Iscsi, u64::from(a), u64::from(b), b_len))
}

/// xxh3 of metadata under a seed. The seed ties bytes to their place (target, region), so that no
/// payload passes for metadata.
pub fn xxh3(seed: u64, bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot_with_seed(seed, bytes)
}

/// CRC32C of each `chunk`-sized piece of `bytes`, the last one possibly short; appended to `out`.
pub fn crc32c_chunks(bytes: &[u8], chunk: usize, out: &mut Vec<u32>) {
    out.extend(bytes.chunks(chunk).map(crc32c));
}

/// CRC32C of each `chunk`-sized piece of bytes that lie in several `pieces`, the last chunk possibly short.
pub fn crc32c_chunks_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, chunk: usize) -> Vec<u32> {
    let (mut crcs, mut open, mut filled) = (Vec::new(), 0, 0);
    for mut piece in pieces {
        while !piece.is_empty() {
            let (now, rest) = piece.split_at(piece.len().min(chunk - filled));
            open =
                if filled == 0 { crc32c(now) } else { crc32c_combine(open, crc32c(now), now.len() as u64) };
            filled += now.len();
            if filled == chunk {
                crcs.push(open);
                filled = 0;
            }
            piece = rest;
        }
    }
    if filled > 0 {
        crcs.push(open);
    }
    crcs
}

#[expect(clippy::cast_possible_truncation, reason = "crc-fast widens 32-bit sums to u64")]
fn low32(wide: u64) -> u32 {
    wide as u32
}

#[cfg(test)]
mod tests {
    use super::{crc32c, crc32c_chunks, crc32c_chunks_of, crc32c_combine, xxh3};

    #[test]
    fn crc32c_is_castagnoli() {
        // RFC 3720, B.4: the check value of "123456789", and of 32 bytes of zeroes.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// It is in every format version: a faster one has to be the same one. Lengths of each of its ways, and some of their edges.
    #[test]
    fn xxh3_is_what_it_was() {
        let known = [
            (0, 0x0, 0x2d06_8005_38d3_94c2),
            (3, 0x1, 0x86ae_6c50_d7b6_9671),
            (8, 0x2, 0x4791_1fea_dd8e_d793),
            (16, 0x636f_6261_6c74_7472, 0x676a_aef8_f5d8_a79d),
            (17, 0x4, 0x217a_9aac_8f98_2ebe),
            (128, 0x5, 0xaec0_6ac9_c736_1765),
            (129, 0x6, 0xb006_202c_6896_ab0a),
            (240, 0x7, 0xfe23_0556_3b58_f7a6),
            (241, 0x8, 0x9a21_106c_168e_7f57),
            (1024, 0x9, 0x4468_0307_d2fa_6e12),
            (4096, 0x636f_6261_6c74_5342, 0x6f56_0b11_8e64_9b61),
            (16_384, u64::MAX, 0xca6a_f125_4dbe_76dc),
            (20_000, 10, 0xf369_295b_9d83_4b74),
        ];
        let bytes: Vec<u8> = (0..20_000u32).map(|i| (i * 31 % 253) as u8).collect();
        for (len, seed, expected) in known {
            assert_eq!(xxh3(seed, &bytes[..len]), expected, "{len} bytes");
        }
    }

    #[test]
    fn crcs_combine_by_length() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i * 7 % 251) as u8).collect();
        for cut in [0, 1, 4095, 65_536, 100_000] {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(crc32c_combine(crc32c(a), crc32c(b), b.len() as u64), crc32c(&bytes));
        }
    }

    #[test]
    fn chunks_do_not_depend_on_how_the_bytes_are_cut() {
        let bytes: Vec<u8> = (0..20_000u32).map(|i| (i * 31 % 253) as u8).collect();
        let mut whole = Vec::new();
        crc32c_chunks(&bytes, 4096, &mut whole);
        assert_eq!(whole.len(), 5);
        for cut in [1, 7, 4095, 4096, 4097, 8192, 20_000] {
            assert_eq!(crc32c_chunks_of(bytes.chunks(cut), 4096), whole, "pieces of {cut}");
        }
        assert!(crc32c_chunks_of([], 4096).is_empty());
    }
}
