//! Rows and intents that every write encodes and reads, number by number: the bytes are those that `postcard` writes of the
//! same values, and what is not of the usual shape is left to that.

use crate::few::{Crcs, Pieces};
use crate::intent::Map;
use crate::schema::{CobRow, MapRow, Parts};
use crate::tx::Extent;

/// Most checksums of a usual row: it has one extent.
const CRCS_MAX: usize = 4;

/// Numbers in a row of bytes: seven bits a byte, the lowest first.
pub(crate) struct Numbers<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Numbers<N> {
    fn new() -> Numbers<N> {
        Numbers { bytes: [0; N], len: 0 }
    }

    fn put(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes[self.len] = (number & 0x7f) as u8 | 0x80;
            self.len += 1;
            number >>= 7;
        }
        self.bytes[self.len] = number as u8;
        self.len += 1;
    }

    fn put_lists(&mut self, extent: &Extent, crcs: &[u32]) {
        self.put(1);
        self.put(extent.start);
        self.put(u64::from(extent.blocks));
        self.put(crcs.len() as u64);
        crcs.iter().for_each(|crc| self.put(u64::from(*crc)));
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A cob's row: five numbers of at most ten bytes.
pub(crate) fn of_cob(row: &CobRow) -> Numbers<50> {
    let mut out = Numbers::new();
    out.put(u64::from(row.chunk_size));
    [row.incarnation, row.generation, row.size, row.blocks].into_iter().for_each(|number| out.put(number));
    out
}

/// An extent-map row of one extent and few checksums.
pub(crate) fn of_parts(row: &Parts<'_>) -> Option<Numbers<57>> {
    let ([extent], ..=CRCS_MAX) = (row.extents, row.crcs.len()) else { return None };
    let mut out = Numbers::new();
    out.put(row.len);
    out.put(row.generation);
    out.put_lists(extent, row.crcs);
    Some(out)
}

/// The intents of a transaction that is one map of one extent and few checksums.
pub(crate) fn of_map(map: &Map) -> Option<Numbers<110>> {
    let ([extent], ..=CRCS_MAX) = (map.extents.as_slice(), map.crcs.len()) else { return None };
    let mut out = Numbers::new();
    // One intent, the first kind of them.
    out.put(1);
    out.put(0);
    out.put(map.fid.session.0);
    out.put(map.fid.counter);
    out.put(u64::from(map.chunk_size));
    out.put(map.incarnation);
    match map.expect {
        Some(generation) => {
            out.put(1);
            out.put(generation);
        }
        None => out.put(0),
    }
    out.put(map.offset);
    out.put(map.len);
    out.put_lists(extent, &map.crcs);
    Some(out)
}

/// Takes a number of at most `most` bytes, of which there are nine or fewer, from the front.
fn take_short(bytes: &mut &[u8], most: usize) -> Option<u64> {
    let mut number = 0;
    for (i, byte) in bytes.iter().enumerate().take(most) {
        number |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *bytes = &bytes[i + 1..];
            return Some(number);
        }
    }
    None
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    take_short(bytes, 9)
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    u32::try_from(take_short(bytes, 5)?).ok()
}

/// A cob's row; `None` of one that must be looked at more closely.
pub(crate) fn cob(mut bytes: &[u8]) -> Option<CobRow> {
    let bytes = &mut bytes;
    let row = CobRow {
        chunk_size: take_u32(bytes)?,
        incarnation: take(bytes)?,
        generation: take(bytes)?,
        size: take(bytes)?,
        blocks: take(bytes)?,
    };
    bytes.is_empty().then_some(row)
}

/// An extent-map row of one extent; `None` of one that must be looked at more closely.
pub(crate) fn map_row(mut bytes: &[u8]) -> Option<MapRow> {
    let bytes = &mut bytes;
    let (len, generation) = (take(bytes)?, take(bytes)?);
    if take(bytes)? != 1 {
        return None;
    }
    let extent = Extent { start: take(bytes)?, blocks: take_u32(bytes)? };
    let mut crcs = Crcs::new();
    for _ in 0..usize::try_from(take(bytes)?).ok().filter(|count| *count <= CRCS_MAX)? {
        crcs.push(take_u32(bytes)?);
    }
    bytes.is_empty().then(|| MapRow { len, generation, extents: Pieces::from([extent]), crcs })
}

#[cfg(test)]
mod tests {
    use super::{cob, map_row, of_cob, of_map, of_parts};
    use crate::few::{Crcs, Pieces};
    use crate::intent::{Intent, Map};
    use crate::schema::{CobRow, MapRow, Parts};
    use crate::tx::Extent;
    use cobalt_base::{Fid, SessionId};

    /// Numbers of every length.
    fn number(x: &mut u64) -> u64 {
        *x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*x ^ (*x >> 29)) >> ((*x >> 57) % 64)
    }

    #[test]
    fn the_bytes_are_those_of_the_encoder_of_all_else() {
        let mut x = 7;
        for round in 0..20_000 {
            let n = &mut || if round == 0 { u64::MAX } else { number(&mut x) };
            let row =
                CobRow { chunk_size: n() as u32, incarnation: n(), generation: n(), size: n(), blocks: n() };
            let bytes = postcard::to_stdvec(&row).unwrap();
            assert_eq!(of_cob(&row).bytes(), bytes);
            assert!(cob(&bytes).is_none_or(|back| back == row));
            let extents: Pieces = (0..1 + n() % 2 * u64::from(round > 0))
                .map(|_| Extent { start: n(), blocks: n() as u32 })
                .collect();
            let crcs: Crcs = (0..if round == 0 { 4 } else { n() % 7 }).map(|_| n() as u32).collect();
            let row = MapRow { len: n(), generation: n(), extents: extents.clone(), crcs: crcs.clone() };
            let bytes = postcard::to_stdvec(&row).unwrap();
            let parts = Parts { len: row.len, generation: row.generation, extents: &extents, crcs: &crcs };
            assert_eq!(of_parts(&parts).is_some(), extents.len() == 1 && crcs.len() <= 4);
            assert!(of_parts(&parts).is_none_or(|numbers| numbers.bytes() == bytes));
            assert!(map_row(&bytes).is_none_or(|back| back == row));
            let map = Map {
                fid: Fid::new(SessionId(n()), n()),
                chunk_size: n() as u32,
                incarnation: n(),
                expect: (n() % 2 > 0).then(&mut *n),
                offset: n(),
                len: n(),
                extents,
                crcs,
            };
            let numbers = of_map(&map);
            let bytes = postcard::to_stdvec(&vec![Intent::Map(map)]).unwrap();
            assert!(numbers.is_none_or(|numbers| numbers.bytes() == bytes));
        }
    }

    #[test]
    fn what_is_read_is_what_the_decoder_of_all_else_reads_of_any_bytes() {
        let mut x = 9;
        let mut taken = [0; 2];
        for _ in 0..200_000 {
            let len = 5 + number(&mut x) % 12;
            let mut bytes: Vec<u8> = (0..len).map(|_| number(&mut x) as u8).collect();
            if number(&mut x) & 1 > 0 {
                bytes[2] = 1;
                bytes[5.min(len as usize - 1)] = 0;
            }
            if let Some(row) = cob(&bytes) {
                taken[0] += 1;
                assert_eq!(postcard::take_from_bytes(&bytes), Ok((row, [].as_slice())));
            }
            if let Some(row) = map_row(&bytes) {
                taken[1] += 1;
                assert_eq!(postcard::take_from_bytes(&bytes), Ok((row, [].as_slice())));
            }
        }
        assert!(taken.iter().all(|count| *count > 100), "{taken:?}");
    }
}
