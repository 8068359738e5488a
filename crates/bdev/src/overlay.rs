//! What a volatile cache holds: pieces of writes by offset, newest on top, none overlapping another.

use cobalt_dma::Slice;
use std::collections::BTreeMap;
use std::ops::Range;

/// A piece of one write. Versions grow from write to write.
#[derive(Clone)]
pub(crate) struct Piece {
    pub(crate) slice: Slice,
    pub(crate) version: u64,
}

#[derive(Default)]
pub(crate) struct Overlay {
    pieces: BTreeMap<u64, Piece>,
    bytes: u64,
}

impl Overlay {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Puts a piece on top of whatever is there.
    pub(crate) fn insert(&mut self, offset: u64, piece: Piece) {
        self.carve(&span(offset, &piece), |_| true);
        self.put(offset, piece);
    }

    /// Drops what lies in `range` and whose version `drops` names; what sticks out stays.
    pub(crate) fn carve(&mut self, range: &Range<u64>, drops: impl Fn(u64) -> bool) {
        let hit: Vec<u64> =
            self.starts(range).filter(|(_, piece)| drops(piece.version)).map(|(at, _)| at).collect();
        for at in hit {
            let Some(piece) = self.pieces.remove(&at) else { continue };
            self.bytes -= piece.slice.len() as u64;
            let end = at + piece.slice.len() as u64;
            if at < range.start {
                self.put(at, clip(at, &piece, &(at..range.start)).1);
            }
            if end > range.end {
                self.put(range.end, clip(at, &piece, &(range.end..end)).1);
            }
        }
    }

    /// What lies in `range`, cut to it, in order.
    pub(crate) fn overlapping(&self, range: &Range<u64>) -> Vec<(u64, Piece)> {
        self.starts(range).map(|(at, piece)| clip(at, piece, range)).collect()
    }

    /// A piece that `random` chooses.
    pub(crate) fn pick(&self, random: u64) -> Option<(u64, Piece)> {
        let (first, _) = self.pieces.first_key_value()?;
        let (last, _) = self.pieces.last_key_value()?;
        let from = first + random % (last - first + 1);
        self.pieces.range(from..).next().map(|(at, piece)| (*at, piece.clone()))
    }

    /// Where something is held, piece by piece.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        self.pieces.iter().map(|(at, piece)| span(*at, piece)).collect()
    }

    fn put(&mut self, offset: u64, piece: Piece) {
        self.bytes += piece.slice.len() as u64;
        let before = self.pieces.insert(offset, piece);
        assert!(before.is_none(), "pieces do not overlap");
    }

    fn starts(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, &Piece)> {
        let first = self.pieces.range(..range.start).next_back().map_or(range.start, |(at, _)| *at);
        let start = range.start;
        self.pieces
            .range(first..range.end.max(first))
            .filter(move |(at, piece)| span(**at, piece).end > start)
            .map(|(at, piece)| (*at, piece))
    }
}

fn span(offset: u64, piece: &Piece) -> Range<u64> {
    offset..offset + piece.slice.len() as u64
}

/// The part of a piece at `at` that lies in `range`, with its offset.
fn clip(at: u64, piece: &Piece, range: &Range<u64>) -> (u64, Piece) {
    let all = span(at, piece);
    let (start, end) = (all.start.max(range.start), all.end.min(range.end));
    let index = |offset: u64| usize::try_from(offset - at).expect("a piece is at most one buffer long");
    (start, Piece { slice: piece.slice.slice(index(start)..index(end)), version: piece.version })
}
