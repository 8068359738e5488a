//! Where an object's bytes lie: groups of N data and K parity units, each unit of a group on another
//! target, in a permutation of the pool's targets that follows from fid and group alone.
//!
//! The permutation is part of the format: objects are found by computing it again.

use cobalt_base::Fid;
use cobalt_base::checksum::xxh3;
use cobalt_rpc::proto::record::{Extent, Layout};
use std::ops::Range;

/// A seed of its own, so that placement shares no pattern with other hashes of fids.
const PLACEMENT_SEED: u64 = 0x636f_6261_6c74_5031;

/// An object's groups and units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) data: usize,
    pub(crate) parity: usize,
    unit: u64,
    size: u64,
}

/// Part of a data unit, in bytes of the unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) group: u64,
    pub(crate) unit: usize,
    pub(crate) range: Range<u64>,
}

/// A layout that no client writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record's layout is none: {0:?}")]
pub(crate) struct BadLayout(Layout);

impl Geometry {
    /// The geometry of `extent`; the record comes from the catalogue, so it is checked.
    pub(crate) fn of(extent: &Extent) -> Result<Geometry, BadLayout> {
        let Layout { data_units, parity_units, unit_size, .. } = extent.layout;
        let width = usize::from(data_units) + usize::from(parity_units);
        let sane = data_units > 0 && width <= 256;
        if !sane || !unit_size.is_power_of_two() || !(4096..=1 << 20).contains(&unit_size) {
            return Err(BadLayout(extent.layout));
        }
        Ok(Geometry {
            data: usize::from(data_units),
            parity: usize::from(parity_units),
            unit: u64::from(unit_size),
            size: extent.size,
        })
    }

    /// N+K.
    pub(crate) fn width(&self) -> usize {
        self.data + self.parity
    }

    /// Bytes per chunk with a checksum of its own.
    pub(crate) fn chunk(&self) -> u64 {
        chunk_size(self.unit)
    }

    /// Data bytes per group.
    pub(crate) fn group_size(&self) -> u64 {
        self.unit * self.data as u64
    }

    /// Real bytes of a unit of `group`, data or parity. Parity is as long as the longest data unit, which is the first.
    pub(crate) fn unit_len(&self, group: u64, unit: usize) -> u64 {
        let place = if unit < self.data { unit as u64 } else { 0 };
        let start = group.saturating_mul(self.group_size()).saturating_add(place * self.unit);
        self.size.saturating_sub(start).min(self.unit)
    }

    /// Where a unit of `group` begins in its cob.
    pub(crate) fn cob_offset(&self, group: u64) -> u64 {
        group.saturating_mul(self.unit)
    }

    /// The pieces of data units that `range` of the object covers, in order.
    pub(crate) fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + use<> {
        let (unit, data) = (self.unit, self.data as u64);
        let end = range.end.min(self.size);
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (number, from) = (at / unit, at % unit);
            let len = (unit - from).min(end - at);
            at += len;
            let place = usize::try_from(number % data).expect("less than N");
            Some(Piece { group: number / data, unit: place, range: from..from + len })
        })
    }

    /// `range` of a unit of `len` bytes, widened to whole chunks.
    pub(crate) fn whole_chunks(&self, range: &Range<u64>, len: u64) -> Range<u64> {
        let chunk = self.chunk();
        range.start / chunk * chunk..range.end.div_ceil(chunk).saturating_mul(chunk).min(len)
    }
}

/// Bytes per chunk of cobs with units of `unit` bytes.
pub(crate) fn chunk_size(unit: u64) -> u64 {
    if unit >= 64 << 10 { 64 << 10 } else { 4096 }
}

/// For each unit of a group, data first, the index in the pool of the target that holds it: `width` different ones.
/// `None` when the pool has fewer.
pub(crate) fn place(fid: Fid, group: u64, targets: usize, width: usize) -> Option<Vec<usize>> {
    if width > targets {
        return None;
    }
    let mut key = [0; 24];
    key[..16].copy_from_slice(&fid.to_key());
    key[16..].copy_from_slice(&group.to_be_bytes());
    let mut state = xxh3(PLACEMENT_SEED, &key);
    let mut order: Vec<usize> = (0..targets).collect();
    // Fisher and Yates, for the first `width` places.
    for place in 0..width {
        let left = (targets - place) as u64;
        let pick = usize::try_from(splitmix(&mut state) % left).expect("less than a usize");
        order.swap(place, place + pick);
    }
    order.truncate(width);
    Some(order)
}

/// The next number of a splitmix64 sequence (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::{Geometry, chunk_size, place};
    use crate::LayoutConfig;
    use cobalt_base::{Fid, SessionId};
    use cobalt_rpc::proto::record::Extent;
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

    fn extent(config: LayoutConfig, size: u64) -> Extent {
        Extent { fid: Fid::new(SessionId(7), 1), size, layout: config.layout_for(Some(size), 1) }
    }

    #[test]
    fn small_objects_have_small_units() {
        let config = LayoutConfig::default();
        for (size, unit) in [
            (0, 4096),
            (1, 4096),
            (8192, 4096),
            (8193, 8192),
            (65_537, 65_536),
            (131_073, 131_072),
            (2 << 20, 1 << 20),
            ((2 << 20) + 1, 1 << 20),
            (u64::MAX, 1 << 20),
        ] {
            assert_eq!(config.unit_for(Some(size)), unit, "{size}");
        }
        assert_eq!((chunk_size(4096), chunk_size(65_536), chunk_size(1 << 20)), (4096, 65_536, 65_536));
    }

    #[test]
    fn placement_is_a_format() {
        // These values were computed once. If this test fails, objects that exist would not be found.
        let fid = Fid::new(SessionId(0x1234), 0x5678);
        let placed: Vec<_> = (0..4).map(|group| place(fid, group, 5, 3).unwrap()).collect();
        assert_eq!(placed, PLACED);
        assert_eq!(place(fid, 0, 2, 3), None);
    }
    const PLACED: [[usize; 3]; 4] = [[4, 3, 2], [4, 1, 0], [3, 1, 4], [3, 1, 4]];

    #[test]
    fn a_layout_that_a_client_writes_is_one_that_it_reads() {
        for size in [0, 1, 100_000, 1 << 30] {
            assert!(Geometry::of(&extent(LayoutConfig::default(), size)).is_ok());
        }
        let mut bad = extent(LayoutConfig::default(), 1);
        for (n, unit) in [(0, 4096), (2, 0), (2, 5000), (2, 1 << 31)] {
            (bad.layout.data_units, bad.layout.unit_size) = (n, unit);
            assert!(Geometry::of(&bad).is_err(), "{n} {unit}");
        }
    }

    #[test]
    fn every_target_gets_its_share() {
        let mut counts = [0u32; 5];
        for counter in 0..10_000 {
            for target in place(Fid::new(SessionId(1), counter), 0, 5, 3).unwrap() {
                counts[target] += 1;
            }
        }
        assert!(counts.iter().all(|n| (5700..6300).contains(n)), "{counts:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn units_are_on_different_targets(session in 1u64.., counter: u64, group: u64, targets in 1usize..20, width in 1usize..12) {
            match place(Fid::new(SessionId(session), counter), group, targets, width) {
                None => prop_assert!(width > targets),
                Some(mut order) => {
                    prop_assert_eq!(order.len(), width);
                    order.sort_unstable();
                    order.dedup();
                    prop_assert_eq!(order.len(), width);
                    prop_assert!(order.iter().all(|t| *t < targets));
                }
            }
        }

        #[test]
        fn pieces_cover_a_range_once(n in 1u8..9, k in 0u8..5, size in 0u64..40_000_000, a: u64, b: u64) {
            let config = LayoutConfig { data_units: n, parity_units: k, unit_size: 1 << 20 };
            let geometry = Geometry::of(&extent(config, size)).unwrap();
            let (a, b) = (a % (size + 1), b % (size + 1));
            let range = a.min(b)..a.max(b);
            let mut at = range.start;
            for piece in geometry.pieces(range.clone()) {
                let start = piece.group * geometry.group_size() + piece.unit as u64 * geometry.unit;
                prop_assert_eq!(start + piece.range.start, at);
                let len = geometry.unit_len(piece.group, piece.unit);
                prop_assert!(piece.range.end <= len && piece.range.start < piece.range.end);
                let chunks = geometry.whole_chunks(&piece.range, len);
                prop_assert!(chunks.start <= piece.range.start && chunks.end >= piece.range.end);
                prop_assert!(chunks.start.is_multiple_of(geometry.chunk()));
                prop_assert!(chunks.end == len || chunks.end.is_multiple_of(geometry.chunk()));
                at += piece.range.end - piece.range.start;
            }
            prop_assert_eq!(at, range.end);
        }

        #[test]
        fn real_lengths_add_up(n in 1u8..9, size in 0u64..40_000_000) {
            let config = LayoutConfig { data_units: n, parity_units: 1, unit_size: 1 << 20 };
            let geometry = Geometry::of(&extent(config, size)).unwrap();
            let groups = size.div_ceil(geometry.group_size());
            let mut sum = 0;
            for group in 0..groups {
                for unit in 0..geometry.data {
                    prop_assert!(geometry.unit_len(group, unit) <= geometry.unit_len(group, geometry.data));
                    sum += geometry.unit_len(group, unit);
                }
            }
            prop_assert_eq!(sum, size);
            prop_assert_eq!(geometry.unit_len(groups, 0), 0);
        }
    }
}
