//! Addresses that a device may use. The kernel lists the ranges that the IOMMU can translate: often 39 bits, with a hole
//! where interrupts are written, so a virtual address is no I/O address. Mappings are laid into these ranges.

use std::ops::Range;

/// Most ranges that the kernel may list.
const RANGES_MAX: usize = 256;
/// Nothing is mapped below: a zero in a queue entry must never be a place in memory.
const LOWEST: u64 = 2 << 20;
/// Identifier of the capability that lists the ranges.
const CAP_IOVA_RANGE: u16 = 1;
/// The kernel has capabilities to list.
const INFO_CAPS: u32 = 2;

/// Why the kernel's description of an IOMMU cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangesError {
    /// Too short, or a capability lies outside of it.
    #[error("it is malformed at byte {at}")]
    Malformed { at: usize },
    /// No ranges in it: a kernel before 5.4.
    #[error("it lists no address ranges, as kernels before 5.4 do")]
    None,
    /// More ranges than anything real has.
    #[error("it lists {count} address ranges")]
    TooMany { count: u32 },
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, RangesError> {
    let part = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or(RangesError::Malformed { at })?;
    Ok(u32::from_le_bytes(*part))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, RangesError> {
    let part = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or(RangesError::Malformed { at })?;
    Ok(u64::from_le_bytes(*part))
}

/// The ranges in a `vfio_iommu_type1_info` with its capabilities. The kernel's ends are inclusive.
///
/// # Errors
/// [`RangesError`].
pub fn parse_ranges(info: &[u8]) -> Result<Vec<Range<u64>>, RangesError> {
    if u32_at(info, 4)? & INFO_CAPS == 0 {
        return Err(RangesError::None);
    }
    let mut at = u32_at(info, 16)? as usize;
    // Each capability names the next, further on; zero ends the chain.
    while at != 0 {
        let head = u32_at(info, at)?;
        if (head & u32::from(u16::MAX)) == u32::from(CAP_IOVA_RANGE) {
            let count = u32_at(info, at + 8)?;
            if count as usize > RANGES_MAX {
                return Err(RangesError::TooMany { count });
            }
            let mut ranges = Vec::with_capacity(count as usize);
            for index in 0..count as usize {
                let entry = at + 16 + 16 * index;
                let (start, last) = (u64_at(info, entry)?, u64_at(info, entry + 8)?);
                let end = last.saturating_add(1);
                if start < end {
                    ranges.push(start..end);
                }
            }
            return Ok(ranges);
        }
        let next = u32_at(info, at + 4)? as usize;
        if next != 0 && next <= at {
            return Err(RangesError::Malformed { at: at + 4 });
        }
        at = next;
    }
    Err(RangesError::None)
}

/// What is free of the ranges.
#[derive(Debug)]
pub struct IovaSpace {
    /// In order, disjoint, not touching.
    free: Vec<Range<u64>>,
}

impl IovaSpace {
    /// Everything in `ranges` is free, but the lowest addresses.
    pub fn new(ranges: &[Range<u64>]) -> IovaSpace {
        let mut space = IovaSpace { free: Vec::with_capacity(ranges.len()) };
        for range in ranges {
            let start = range.start.max(LOWEST);
            if start < range.end {
                space.put(start..range.end);
            }
        }
        space
    }

    /// Takes `len` bytes at a multiple of `align`, a power of two; `None` where no range has so many in one piece.
    pub fn take(&mut self, len: u64, align: u64) -> Option<u64> {
        assert!(len > 0 && align.is_power_of_two(), "{len} bytes at a multiple of {align}");
        let (index, start) = self.free.iter().enumerate().find_map(|(index, free)| {
            let start = free.start.checked_next_multiple_of(align)?;
            (start.checked_add(len)? <= free.end).then_some((index, start))
        })?;
        let free = self.free.remove(index);
        let pieces = [free.start..start, start + len..free.end];
        self.free.splice(index..index, pieces.into_iter().filter(|piece| piece.start < piece.end));
        Some(start)
    }

    /// Gives back what `take` gave.
    pub fn give(&mut self, start: u64, len: u64) {
        self.put(start..start + len);
    }

    fn put(&mut self, range: Range<u64>) {
        let at = self.free.partition_point(|free| free.start < range.start);
        let before = at.checked_sub(1).and_then(|i| self.free.get(i));
        assert!(before.is_none_or(|b| b.end <= range.start), "{range:x?} overlaps what is free");
        assert!(self.free.get(at).is_none_or(|a| range.end <= a.start), "{range:x?} overlaps what is free");
        self.free.insert(at, range);
        // Joined with its neighbours.
        self.free.dedup_by(|later, earlier| {
            let touch = earlier.end == later.start;
            if touch {
                earlier.end = later.end;
            }
            touch
        });
    }

    /// Free bytes in all.
    pub fn free(&self) -> u64 {
        self.free.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{IovaSpace, LOWEST, RangesError, parse_ranges};
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    /// As Linux fills it: a head of 24 bytes, a capability of another kind, then the ranges.
    fn description(ranges: &[(u64, u64)]) -> Vec<u8> {
        let mut info = vec![0; 24];
        info[4..8].copy_from_slice(&3u32.to_le_bytes());
        info[16..20].copy_from_slice(&24u32.to_le_bytes());
        info.extend([3, 0, 1, 0]);
        info.extend(32u32.to_le_bytes());
        info.extend([1, 0, 1, 0]);
        info.extend(0u32.to_le_bytes());
        info.extend((ranges.len() as u64).to_le_bytes());
        for (start, last) in ranges {
            info.extend(start.to_le_bytes());
            info.extend(last.to_le_bytes());
        }
        info
    }

    #[test]
    fn the_ranges_of_an_emulated_iommu_are_found_and_its_hole_is_kept_out() {
        let info = description(&[(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)]);
        let ranges = parse_ranges(&info).unwrap();
        assert_eq!(ranges, [0..0xfee0_0000, 0xfef0_0000..1 << 39]);
        let mut space = IovaSpace::new(&ranges);
        let mut held = Vec::new();
        while let Some(at) = space.take(1 << 30, 2 << 20) {
            assert!(at >= LOWEST && at + (1 << 30) <= 1 << 39);
            assert!(at + (1 << 30) <= 0xfee0_0000 || at >= 0xfef0_0000, "{at:#x} reaches into the hole");
            held.push(at);
        }
        assert_eq!(held.len(), 511, "all of 512 GiB but the gibibyte with the hole");
    }

    #[test]
    fn a_malformed_description_is_refused() {
        let good = description(&[(0, 0xffff)]);
        for len in 0..good.len() {
            assert!(parse_ranges(&good[..len]).is_err(), "cut to {len} bytes");
        }
        let mut circle = good.clone();
        circle[28..32].copy_from_slice(&24u32.to_le_bytes());
        assert_eq!(parse_ranges(&circle), Err(RangesError::Malformed { at: 28 }));
        let mut many = good.clone();
        many[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(parse_ranges(&many), Err(RangesError::TooMany { count: u32::MAX }));
        let mut old = good;
        old[4] = 1;
        assert_eq!(parse_ranges(&old), Err(RangesError::None));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_taken_is_disjoint_and_comes_back_whole(steps in proptest::collection::vec((any::<bool>(), 1u64..64, 0u32..6), 1..200)) {
            let mut space = IovaSpace::new(&[LOWEST..LOWEST + (1 << 20), (8 << 20)..(9 << 20)]);
            let all = space.free();
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (take, pages, shift) in steps {
                if take {
                    let len = pages << 12;
                    if let Some(at) = space.take(len, 4096 << shift) {
                        prop_assert!(at.is_multiple_of(4096 << shift));
                        prop_assert!(held.iter().all(|(start, size)| at + len <= *start || start + size <= at));
                        held.push((at, len));
                    }
                } else if let Some((at, len)) = held.pop() {
                    space.give(at, len);
                }
                prop_assert_eq!(space.free() + held.iter().map(|(_, len)| len).sum::<u64>(), all);
            }
            for (at, len) in held {
                space.give(at, len);
            }
            prop_assert_eq!(space.take(1 << 20, 4096), Some(LOWEST));
        }
    }
}
