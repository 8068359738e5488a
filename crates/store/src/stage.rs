//! Changes of one group on top of the trees: what the group's transactions are judged against, and what
//! is put into the trees once the group is durable.
//!
//! Judging and applying are one thing: a transaction runs once, over the trees and everything before it
//! in the group, when it takes its lsn. Redo runs the same code.

use crate::limits::LOADS_MAX;
use crate::tree::{Forest, Hint, MetaError, Miss, Put, TreeId};
use cobalt_base::SessionId;
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::rc::Rc;

/// The first bytes of a key, zero-filled: in the order of the keys, and nearly always enough to tell two apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Head(u128, u64);

impl Head {
    const LEN: usize = 24;

    fn of(key: &[u8]) -> Head {
        let mut bytes = [0; Head::LEN];
        match key.first_chunk::<{ Head::LEN }>() {
            Some(first) => bytes = *first,
            None => bytes[..key.len()].copy_from_slice(key),
        }
        let (high, low) = bytes.split_at(16);
        let high = high.try_into().expect("16 of 24 bytes");
        let low = low.try_into().expect("8 of 24 bytes");
        Head(u128::from_be_bytes(high), u64::from_be_bytes(low))
    }
}

/// A place among the bytes of the stage.
type Place = (usize, usize);

/// A changed row.
struct Row {
    tree: TreeId,
    head: Head,
    key: Place,
    /// `None` is a delete.
    value: Option<Place>,
    /// Its leaf, if that was found when the row was judged, and is held.
    leaf: Option<Hint>,
}

/// What is known of a key.
struct Seen {
    key: SmallVec<[u8; 32]>,
    leaf: Option<Hint>,
    /// Where it would be in the order of its tree, which has not changed since: it is not in it.
    gap: Option<usize>,
}

/// The trees with pending changes on top.
pub(crate) struct Stage {
    forest: Rc<Forest>,
    inner: RefCell<Inner>,
    /// What is read is likely to be changed, and an epoch is open: leaves that are read are held.
    holds: bool,
    /// What each tree was asked for last, or will be next.
    seen: RefCell<[Option<Seen>; TreeId::ALL.len()]>,
    /// What the forest had lost of that which was to stay, when the first node was touched.
    lost: Cell<Option<u64>>,
    /// A session that nothing before fences.
    unfenced: Cell<Option<SessionId>>,
}

#[derive(Default)]
struct Inner {
    /// In the order in which they were changed first.
    rows: Vec<Row>,
    /// The rows of each tree, in the order of their keys.
    order: [Vec<u32>; TreeId::ALL.len()],
    /// Keys and values.
    bytes: Vec<u8>,
    /// What each change since the savepoint replaced, newest last.
    undo: Vec<Undo>,
    /// Length of `bytes` at the savepoint.
    kept: usize,
}

/// A change since the savepoint.
struct Undo {
    row: u32,
    /// What it replaced; `None`: the row is new.
    old: Option<Option<Place>>,
}

/// What one transaction changes as a rule: rows, and bytes of keys and values.
const TX_ROWS: usize = 4;
const TX_BYTES: usize = 256;

impl Inner {
    fn with_room(txs: usize) -> Inner {
        let rows = txs * TX_ROWS;
        Inner {
            rows: Vec::with_capacity(rows),
            order: std::array::from_fn(|_| Vec::with_capacity(rows / 2)),
            bytes: Vec::with_capacity(txs * TX_BYTES),
            undo: Vec::with_capacity(rows / 2),
            kept: 0,
        }
    }

    fn bytes(&self, (from, until): Place) -> &[u8] {
        &self.bytes[from..until]
    }

    fn row(&self, row: u32) -> &Row {
        &self.rows[row as usize]
    }

    /// The key and the value of the row at a place of a tree's order.
    fn at(&self, tree: TreeId, place: usize) -> Option<(&[u8], Option<&[u8]>)> {
        let row = self.row(*self.order[tree.index()].get(place)?);
        Some((self.bytes(row.key), row.value.map(|place| self.bytes(place))))
    }

    /// The place of a key in the order of its tree, or where it would be.
    fn find(&self, tree: TreeId, key: &[u8]) -> Result<usize, usize> {
        let (head, order) = (Head::of(key), &self.order[tree.index()]);
        // What comes in its order goes to the end.
        if order.last().is_none_or(|last| self.row(*last).head < head) {
            return Err(order.len());
        }
        order.binary_search_by(|row| {
            let row = self.row(*row);
            match row.head.cmp(&head) {
                Ordering::Equal => self.bytes(row.key).cmp(key),
                other => other,
            }
        })
    }

    /// Appends to the bytes.
    fn keep(&mut self, parts: [&[u8]; 2]) -> Place {
        let from = self.bytes.len();
        parts.into_iter().for_each(|part| self.bytes.extend_from_slice(part));
        (from, self.bytes.len())
    }

    /// Takes in a change of the key at `key`, the last of the bytes, whose place was looked for.
    fn enter(
        &mut self,
        tree: TreeId,
        key: Place,
        value: Option<&[u8]>,
        found: Result<usize, usize>,
        leaf: Option<Hint>,
    ) {
        let (row, old) = match found {
            Ok(place) => {
                self.bytes.truncate(key.0);
                let row = self.order[tree.index()][place];
                (row, Some(self.row(row).value))
            }
            Err(place) => {
                let row = u32::try_from(self.rows.len()).expect("a group has few changes");
                let head = Head::of(self.bytes(key));
                self.rows.push(Row { tree, head, key, value: None, leaf });
                self.order[tree.index()].insert(place, row);
                (row, None)
            }
        };
        let value = value.map(|value| self.keep([value, &[]]));
        self.rows[row as usize].value = value;
        self.undo.push(Undo { row, old });
    }
}

impl Stage {
    /// One that reads: nothing in it stays but for who asks for it.
    pub(crate) fn new(forest: Rc<Forest>) -> Stage {
        let (inner, seen) = (RefCell::default(), RefCell::default());
        Stage { forest, inner, holds: false, seen, lost: Cell::new(None), unfenced: Cell::new(None) }
    }

    /// One whose changes will be put in, while an epoch of the caller's is open. It has room for what so many
    /// transactions change as a rule.
    pub(crate) fn holding(forest: Rc<Forest>, txs: usize) -> Stage {
        let inner = RefCell::new(Inner::with_room(txs));
        Stage { holds: true, inner, ..Stage::new(forest) }
    }

    /// Whether it is known that a session is not fenced.
    pub(crate) fn is_unfenced(&self, session: SessionId) -> bool {
        self.unfenced.get() == Some(session)
    }

    /// What is known of that from now on.
    pub(crate) fn set_unfenced(&self, session: Option<SessionId>) {
        self.unfenced.set(session);
    }

    pub(crate) fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Vec<u8>>, Miss> {
        self.get_with(tree, key, <[u8]>::to_vec)
    }

    /// What `read` makes of the value of `key`, where it lies.
    pub(crate) fn get_with<R>(
        &self,
        tree: TreeId,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, Miss> {
        let inner = self.inner.borrow();
        let gap = match inner.find(tree, key) {
            Ok(place) => return Ok(inner.at(tree, place).and_then(|(_, value)| value).map(read)),
            Err(gap) => Some(gap),
        };
        if !self.holds {
            let (value, leaf) = self.forest.get_hinted(tree, key, read)?;
            self.saw(tree, key, leaf, gap);
            return Ok(value);
        }
        self.before_touch();
        let near = self.leaf_of(tree, key);
        let (value, leaf) = self.forest.get_held(tree, key, near, read)?;
        self.saw(tree, key, leaf, gap);
        Ok(value)
    }

    /// Remembers what is known of a key.
    fn saw(&self, tree: TreeId, key: &[u8], leaf: Option<Hint>, gap: Option<usize>) {
        match &mut self.seen.borrow_mut()[tree.index()] {
            Some(seen) => {
                if seen.key.as_slice() != key {
                    seen.key.clear();
                    seen.key.extend_from_slice(key);
                }
                (seen.leaf, seen.gap) = (leaf, gap);
            }
            seen => *seen = Some(Seen { key: SmallVec::from_slice(key), leaf, gap }),
        }
    }

    /// That a key, which will be asked for, was found in a leaf. It may have left that since.
    pub(crate) fn expect(&self, tree: TreeId, key: &[u8], leaf: Option<Hint>) {
        self.saw(tree, key, leaf, None);
    }

    /// The leaf of a key, if the key was asked for last.
    pub(crate) fn leaf_of(&self, tree: TreeId, key: &[u8]) -> Option<Hint> {
        let seen = self.seen.borrow();
        seen[tree.index()].as_ref().filter(|seen| seen.key.as_slice() == key)?.leaf
    }

    /// What is known of a key that is put on the stage: its gap, and its leaf.
    fn known(&self, inner: &Inner, tree: TreeId, key: &[u8]) -> (Result<usize, usize>, Option<Hint>) {
        let mut seen = self.seen.borrow_mut();
        let Some(seen) = &mut seen[tree.index()] else { return (inner.find(tree, key), None) };
        // Whatever comes of it, the order changes.
        let gap = seen.gap.take();
        if seen.key.as_slice() == key {
            return (gap.map_or_else(|| inner.find(tree, key), Err), seen.leaf);
        }
        (inner.find(tree, key), seen.leaf.filter(|leaf| self.forest.spans(*leaf, key)))
    }

    /// The order of a tree has changed, or will.
    fn forget_gap(&self, tree: TreeId) {
        if let Some(seen) = &mut self.seen.borrow_mut()[tree.index()] {
            seen.gap = None;
        }
    }

    /// What the forest loses from now on may be what was touched.
    fn before_touch(&self) {
        if self.lost.get().is_none() {
            self.lost.set(Some(self.forest.lost()));
        }
    }

    /// The first entry with a key at or after `from`.
    pub(crate) fn next(&self, tree: TreeId, from: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, Miss> {
        let inner = self.inner.borrow();
        let (Ok(mut place) | Err(mut place)) = inner.find(tree, from);
        let mut from = from.to_vec();
        loop {
            let below = self.forest.next(tree, &from)?;
            match (below, inner.at(tree, place)) {
                (below, None) => return Ok(below),
                (Some(below), Some((key, _))) if below.0.as_slice() < key => return Ok(Some(below)),
                (_, Some((key, Some(value)))) => return Ok(Some((key.to_vec(), value.to_vec()))),
                (_, Some((key, None))) => {
                    from.clear();
                    from.extend_from_slice(key);
                    from.push(0);
                    place += 1;
                }
            }
        }
    }

    /// What `read` makes of the last entry with a key at or before `from`, among keys as long as `from`.
    pub(crate) fn prev_with<R>(
        &self,
        tree: TreeId,
        from: &[u8],
        read: impl Fn(&[u8], &[u8]) -> R,
    ) -> Result<Option<R>, Miss> {
        let inner = self.inner.borrow();
        // The place behind the change that is looked at.
        let mut place = match inner.find(tree, from) {
            Ok(place) => place + 1,
            Err(place) => place,
        };
        let mut from = SmallVec::<[u8; 32]>::from_slice(from);
        loop {
            let change = place.checked_sub(1).and_then(|place| inner.at(tree, place));
            let above = |key: &[u8]| change.is_none_or(|(changed, _)| key > changed);
            let below = self.below(tree, &from, |key, value| above(key).then(|| read(key, value)))?;
            match (below.flatten(), change) {
                (Some(found), _) => return Ok(Some(found)),
                (None, None) => return Ok(None),
                (None, Some((key, Some(value)))) => return Ok(Some(read(key, value))),
                (None, Some((key, None))) => {
                    from.clear();
                    from.extend_from_slice(key);
                    if !step_back(&mut from) {
                        return Ok(None);
                    }
                    place -= 1;
                }
            }
        }
    }

    /// What the tree alone has.
    fn below<R>(
        &self,
        tree: TreeId,
        from: &[u8],
        read: impl FnOnce(&[u8], &[u8]) -> R,
    ) -> Result<Option<R>, Miss> {
        if !self.holds {
            return self.forest.prev_with(tree, from, read);
        }
        self.before_touch();
        let (found, leaf) = self.forest.prev_held(tree, from, read)?;
        self.saw(tree, from, leaf, None);
        Ok(found)
    }

    /// Whether nothing of a tree is changed.
    pub(crate) fn is_free_of(&self, tree: TreeId) -> bool {
        self.inner.borrow().order[tree.index()].is_empty()
    }

    /// Whether a key lies between the first and the last one of a leaf, which then holds it.
    pub(crate) fn spans(&self, leaf: Hint, key: &[u8]) -> bool {
        self.forest.spans(leaf, key)
    }

    /// Shows what the tree alone has, of a stage that holds or not: the last entry at or before `from`, and every one from there up to
    /// `until`, with its leaf where that is held. Gives the leaf of `from`; `near` is one that may be it.
    pub(crate) fn around(
        &self,
        tree: TreeId,
        from: &[u8],
        until: &[u8],
        near: Option<Hint>,
        show: impl FnMut(&[u8], &[u8], Option<Hint>),
    ) -> Result<Option<Hint>, Miss> {
        self.before_touch();
        self.forest.around_held(tree, from, until, near, show)
    }

    pub(crate) fn put(&self, tree: TreeId, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.change(tree, &[], key.as_ref(), Some(value.as_ref()));
    }

    pub(crate) fn delete(&self, tree: TreeId, key: impl AsRef<[u8]>) {
        self.change(tree, &[], key.as_ref(), None);
    }

    /// Puts or deletes (`None`) the key that begins with `start` and goes on with `rest`.
    pub(crate) fn change(&self, tree: TreeId, start: &[u8], rest: &[u8], value: Option<&[u8]>) {
        let inner = &mut *self.inner.borrow_mut();
        let key = inner.keep([start, rest]);
        let (found, leaf) = self.known(inner, tree, inner.bytes(key));
        inner.enter(tree, key, value, found, leaf);
    }

    /// The same of a key whose leaf is known, and held.
    pub(crate) fn change_in(&self, tree: TreeId, key: &[u8], value: Option<&[u8]>, leaf: Option<Hint>) {
        self.forget_gap(tree);
        let inner = &mut *self.inner.borrow_mut();
        let key = inner.keep([key, &[]]);
        let found = inner.find(tree, inner.bytes(key));
        inner.enter(tree, key, value, found, leaf);
    }

    /// What changed since the last savepoint stays.
    pub(crate) fn savepoint(&self) {
        let inner = &mut *self.inner.borrow_mut();
        inner.undo.clear();
        inner.kept = inner.bytes.len();
    }

    /// Takes back what changed since the last savepoint.
    pub(crate) fn rollback(&self) {
        TreeId::ALL.into_iter().for_each(|tree| self.forget_gap(tree));
        let inner = &mut *self.inner.borrow_mut();
        while let Some(Undo { row, old }) = inner.undo.pop() {
            if let Some(value) = old {
                inner.rows[row as usize].value = value;
                continue;
            }
            let Row { tree, key, .. } = inner.rows[row as usize];
            let place = inner.find(tree, inner.bytes(key)).expect("what was put in the order is in it");
            inner.order[tree.index()].remove(place);
            // All that came later is gone: it is the last one.
            inner.rows.pop();
        }
        inner.bytes.truncate(inner.kept);
    }

    /// Changes on the stage.
    pub(crate) fn len(&self) -> usize {
        self.inner.borrow().order.iter().map(Vec::len).sum()
    }

    /// Makes sure that every change finds its path in memory. They were touched before, within an epoch that is
    /// still open: only when something got lost all the same, each is looked up again.
    pub(crate) fn touch(&self) -> Result<(), Miss> {
        let lost = self.forest.lost();
        if self.lost.get() == Some(lost) {
            return Ok(());
        }
        let inner = self.inner.borrow();
        for row in inner.order.iter().flatten() {
            let row = inner.row(*row);
            self.forest.touch(row.tree, inner.bytes(row.key))?;
        }
        self.lost.set(Some(lost));
        Ok(())
    }

    /// The same for what changed since the last savepoint: the epoch of the group holds the rest.
    pub(crate) fn touch_new(&self) -> Result<(), Miss> {
        self.missed(1).first().copied().map_or(Ok(()), Err)
    }

    /// The same; brings what is not there.
    pub(crate) async fn bring_new(&self) -> Result<(), MetaError> {
        loop {
            let missed = self.missed(LOADS_MAX);
            if missed.is_empty() {
                return Ok(());
            }
            self.forest.load_all(missed).await?;
        }
    }

    /// Nodes that what changed since the last savepoint needs and that are not there.
    fn missed(&self, most: usize) -> Vec<Miss> {
        self.before_touch();
        let inner = self.inner.borrow();
        if inner.undo.iter().all(|undo| inner.row(undo.row).leaf.is_some()) {
            return Vec::new();
        }
        let new = inner.undo.iter().map(|undo| inner.row(undo.row)).filter(|row| row.leaf.is_none());
        self.forest.touch_all(new.map(|row| (row.tree, inner.bytes(row.key))), most)
    }

    /// Puts the changes into the trees. A change that is in is taken off the stage, so that a miss, which
    /// only a lost pin can cause, continues where it stopped.
    pub(crate) fn mutate(&self) -> Result<(), Miss> {
        TreeId::ALL.into_iter().for_each(|tree| self.forget_gap(tree));
        let inner = &mut *self.inner.borrow_mut();
        let each = inner.order.iter().flatten().map(|row| {
            let row = inner.row(*row);
            let (key, value) = (inner.bytes(row.key), row.value.map(|place| inner.bytes(place)));
            Put { tree: row.tree, key, value, leaf: row.leaf }
        });
        let (mut done, missed) = match self.forest.apply(each) {
            Ok(()) => (usize::MAX, Ok(())),
            Err((done, miss)) => (done, Err(miss)),
        };
        for order in &mut inner.order {
            let gone = done.min(order.len());
            order.drain(..gone);
            done -= gone;
        }
        if missed.is_err() {
            self.lost.set(None);
        }
        missed
    }
}

/// Makes it the largest key of the same length before this one; false when there is none.
fn step_back(key: &mut [u8]) -> bool {
    for byte in key.iter_mut().rev() {
        if *byte > 0 {
            *byte -= 1;
            return true;
        }
        *byte = 0xff;
    }
    false
}
