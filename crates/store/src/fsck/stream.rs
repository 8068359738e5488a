//! Rows of a part of a tree, one at a time and with a look ahead: what joins are made of.

use crate::tree::{Cursor, Lost, Row, Source, Step, TreeId};

/// What of the keys says where a row belongs: a fid, a group, a block.
pub(crate) type PlaceOf<P> = fn(&[u8]) -> Option<P>;

/// Rows in order, with the first one in sight.
pub(crate) struct Stream<'a, P> {
    cursor: Cursor<'a>,
    place: PlaceOf<P>,
    head: Option<(P, Row)>,
}

/// What is met on the way to the next row.
pub(crate) enum Met {
    Lost(Lost),
    /// A row whose key is of no known form.
    Unknown(Row),
}

impl<'a, P: Copy> Stream<'a, P> {
    /// Rows with keys from `from` to before `until`. Nothing is read yet.
    pub fn new(
        source: &'a Source,
        tree: TreeId,
        from: &[u8],
        until: Option<&[u8]>,
        place: PlaceOf<P>,
    ) -> Stream<'a, P> {
        Stream { cursor: source.cursor(tree, from, until), place, head: None }
    }

    /// Brings the next row into sight, if none is; gives what is in the way first. `None`: the head is settled.
    pub async fn settle(&mut self) -> Option<Met> {
        if self.head.is_some() {
            return None;
        }
        match self.cursor.next().await? {
            Step::Lost(lost) => Some(Met::Lost(lost)),
            Step::Row(row) => match (self.place)(&row.key) {
                Some(place) => {
                    self.head = Some((place, row));
                    None
                }
                None => Some(Met::Unknown(row)),
            },
        }
    }

    /// The place of the row in sight.
    pub fn place(&self) -> Option<P> {
        self.head.as_ref().map(|(place, _)| *place)
    }

    /// Takes the row in sight if `at` holds for its place.
    pub fn take_if(&mut self, at: impl FnOnce(P) -> bool) -> Option<(P, Row)> {
        match self.head {
            Some((place, _)) if at(place) => self.head.take(),
            _ => None,
        }
    }
}
