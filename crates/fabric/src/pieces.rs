//! Ranges of lists of slices, without copying.

use cobalt_dma::{PIECE_MIN, Slice};

/// Bytes in all.
pub(crate) fn total(data: &[Slice]) -> u64 {
    data.iter().map(|s| s.len() as u64).sum()
}

/// The slices of `offset..offset + len`, or `None` when the range is outside.
pub(crate) fn cut(data: &[Slice], offset: u64, len: u64) -> Option<Vec<Slice>> {
    let end = offset.checked_add(len)?;
    let mut out = Vec::new();
    let mut at = 0_u64;
    for slice in data {
        let next = at + slice.len() as u64;
        let (from, to) = (offset.max(at), end.min(next));
        if from < to {
            let from = usize::try_from(from - at).ok()?;
            let to = usize::try_from(to - at).ok()?;
            out.push(slice.slice(from..to));
        }
        at = next;
    }
    (end <= at).then_some(out)
}

/// Whether all but the last are multiples of 4 KiB, as receivers may expect.
pub(crate) fn aligned(data: &[Slice]) -> bool {
    data.split_last().is_none_or(|(_, rest)| rest.iter().all(|s| s.len().is_multiple_of(PIECE_MIN)))
}

/// Ranges that are filled, apart and in order.
#[derive(Default)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Whether `start..end` meets a filled range.
    pub(crate) fn meets(&self, start: u64, end: u64) -> bool {
        self.0.iter().any(|(s, e)| start < *e && *s < end)
    }

    /// Fills `start..end`, which meets nothing. Neighbours merge.
    pub(crate) fn fill(&mut self, start: u64, end: u64) {
        let place = self.0.partition_point(|(s, _)| *s < start);
        self.0.insert(place, (start, end));
        self.0.dedup_by(|next, before| {
            let touches = before.1 == next.0;
            if touches {
                before.1 = next.1;
            }
            touches
        });
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Bytes filled without a gap from the start.
    pub(crate) fn prefix(&self) -> u64 {
        self.0.first().filter(|(start, _)| *start == 0).map_or(0, |(_, end)| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::Ranges;

    #[test]
    fn ranges_merge_and_know_their_prefix() {
        let mut ranges = Ranges::default();
        ranges.fill(10, 20);
        assert_eq!(ranges.prefix(), 0);
        assert!(ranges.meets(19, 21) && !ranges.meets(20, 30) && !ranges.meets(0, 10));
        ranges.fill(0, 10);
        assert_eq!((ranges.prefix(), ranges.count()), (20, 1));
        ranges.fill(30, 40);
        assert_eq!((ranges.prefix(), ranges.count()), (20, 2));
    }
}
