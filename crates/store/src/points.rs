//! Places where a proof makes a reservation fail, as if there were no room. Elsewhere [`refused`] is `false` as a
//! constant, and nothing of it is compiled.

/// What is reserved there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Space in the journal, by anything but a checkpoint: `Busy`.
    Journal,
    /// Data blocks: `NoSpace`.
    Balloc,
}

#[cfg(feature = "proof")]
mod on {
    use super::Point;
    use std::cell::Cell;

    thread_local! {
        static SEEN: Cell<[u64; 2]> = const { Cell::new([0; 2]) };
        static ORDER: Cell<Option<(Point, u64, bool)>> = const { Cell::new(None) };
    }

    /// Begins to count anew; reservation number `at` of a kind fails, alone or with all after it.
    pub fn order(order: Option<(Point, u64, bool)>) {
        SEEN.set([0; 2]);
        ORDER.set(order);
    }

    /// Reservations since then, by kind.
    pub fn seen() -> [u64; 2] {
        SEEN.get()
    }

    /// Whether this reservation fails.
    pub fn refused(point: Point) -> bool {
        let mut seen = SEEN.get();
        let number = seen[point as usize];
        seen[point as usize] += 1;
        SEEN.set(seen);
        let order = ORDER.get().filter(|(kind, ..)| *kind == point);
        order.is_some_and(|(_, at, forever)| number == at || (forever && number > at))
    }
}

#[cfg(feature = "proof")]
pub use on::{order, refused, seen};

/// Whether this reservation fails: never, in a build that is not a proof's.
#[cfg(not(feature = "proof"))]
#[inline(always)]
pub const fn refused(_: Point) -> bool {
    false
}
