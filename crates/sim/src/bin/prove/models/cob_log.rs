//! What was done to cobs and what was read of them, held against each other: every byte that is read is that
//! of a write that may have been the last one then, whole or not at all; what was acknowledged is there.
//!
//! Transactions that were acknowledged have an order, their lsns. One that was not (its target failed or lost
//! its power first) may have happened, at any place after it was begun.

use super::target::pattern;
use cobalt_base::{Fid, Lsn, SessionId};
use cobalt_store::{CobInfo, StoreError};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A moment, by the order of events in the log.
type Moment = u64;

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Not known: the caller went away, or the target did.
    Open,
    Done {
        at: Moment,
        lsn: u64,
    },
}

#[derive(Clone, Debug)]
enum What {
    Write { offset: u64, bytes: Rc<Vec<u8>> },
    Delete,
}

#[derive(Clone, Debug)]
struct Event {
    what: What,
    begun: Moment,
    fate: Fate,
}

/// Chunk by chunk, what a cob holds.
type Chunks = BTreeMap<u64, Vec<u8>>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Certain {
    #[default]
    No,
    Maybe,
    Yes,
}

#[derive(Default)]
struct Cob {
    chunk: u64,
    /// As it was at the last settlement.
    chunks: Chunks,
    size: u64,
    deleted: Certain,
    events: BTreeMap<u64, Event>,
    reads: Vec<Read>,
}

/// Chunks that a read saw, between two moments; `None` is a byte that was not there.
struct Read {
    seen: Vec<(u64, Option<Vec<u8>>)>,
    between: (Moment, Moment),
}

#[derive(Default)]
struct Session {
    fenced: Certain,
    /// Fences: begun, and what became of them.
    fences: Vec<(Moment, Fate)>,
}

#[derive(Default)]
struct Inner {
    now: Moment,
    next: u64,
    cobs: BTreeMap<Fid, Cob>,
    sessions: BTreeMap<SessionId, Session>,
}

/// The log, shared by the tasks of a case.
#[derive(Clone, Default)]
pub struct CobLog(Rc<RefCell<Inner>>);

/// A call that was begun.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    fid: Fid,
    number: u64,
}

/// What a settled target holds of a cob.
pub struct Found {
    pub info: Option<CobInfo>,
    pub chunks: Chunks,
}

impl Inner {
    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }
}

/// Who may have been the last to write a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Writer {
    Before,
    Call(u64),
}

impl Cob {
    /// Whether `a` is before `b` for certain.
    fn precedes(&self, a: Writer, b: Writer) -> bool {
        let (Writer::Call(a), Writer::Call(b)) = (a, b) else {
            return a == Writer::Before && b != Writer::Before;
        };
        let (a, b) = (&self.events[&a], &self.events[&b]);
        match (&a.fate, &b.fate) {
            (Fate::Done { lsn: a, .. }, Fate::Done { lsn: b, .. }) => a < b,
            (Fate::Done { at, .. }, Fate::Open) => *at < b.begun,
            (Fate::Open, _) => false,
        }
    }

    fn covers(&self, writer: Writer, chunk: u64) -> bool {
        match writer {
            Writer::Before => true,
            Writer::Call(number) => match &self.events[&number].what {
                What::Delete => true,
                What::Write { offset, bytes } => {
                    let (start, end) = (*offset, *offset + bytes.len() as u64);
                    start <= chunk * self.chunk && chunk * self.chunk < end
                }
            },
        }
    }

    /// What a chunk holds when this was the last to write it.
    fn content(&self, writer: Writer, chunk: u64) -> Option<&[u8]> {
        match writer {
            Writer::Before => self.chunks.get(&chunk).map(Vec::as_slice),
            Writer::Call(number) => match &self.events[&number].what {
                What::Delete => None,
                What::Write { offset, bytes } => {
                    let from = (chunk * self.chunk - offset) as usize;
                    Some(&bytes[from..bytes.len().min(from + self.chunk as usize)])
                }
            },
        }
    }

    /// All that could have written the chunk last, as of some moment between two.
    fn writers(&self, chunk: u64, (from, until): (Moment, Moment)) -> Vec<Writer> {
        let calls = self.events.keys().map(|number| Writer::Call(*number));
        let all: Vec<Writer> =
            std::iter::once(Writer::Before).chain(calls).filter(|w| self.covers(*w, chunk)).collect();
        let begun = |w: &Writer| match w {
            Writer::Before => 0,
            Writer::Call(number) => self.events[number].begun,
        };
        let done = |w: &Writer| match w {
            Writer::Before => 0,
            Writer::Call(number) => match self.events[number].fate {
                Fate::Done { at, .. } => at,
                Fate::Open => Moment::MAX,
            },
        };
        let hidden = |w: &Writer| all.iter().any(|u| self.precedes(*w, *u) && done(u) < from);
        all.iter().filter(|w| begun(w) < until && !hidden(w)).copied().collect()
    }

    /// Whether what was seen can be explained: each chunk by a writer, each write whole.
    fn explain(&self, seen: &[(u64, Option<Vec<u8>>)], between: (Moment, Moment)) -> Result<(), String> {
        let mut matching: Vec<(u64, Vec<Writer>)> = Vec::new();
        for (chunk, content) in seen {
            let writers = self.writers(*chunk, between);
            let mine: Vec<Writer> =
                writers.iter().filter(|w| self.content(**w, *chunk) == content.as_deref()).copied().collect();
            if mine.is_empty() {
                let found = content.as_ref().map(|c| (c.len(), c.get(..8).map(<[u8]>::to_vec)));
                return Err(format!("chunk {chunk} has {found:02x?}, which none of {writers:?} wrote"));
            }
            matching.push((*chunk, mine));
        }
        for (chunk, mine) in &matching {
            let [writer @ Writer::Call(_)] = mine.as_slice() else { continue };
            for (other, theirs) in &matching {
                let after = |x: &Writer| x == writer || !self.precedes(*x, *writer);
                if self.covers(*writer, *other) && !theirs.iter().any(after) {
                    return Err(format!(
                        "{writer:?} is in chunk {chunk} and not in chunk {other}: {theirs:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl CobLog {
    /// The bytes of a new write.
    pub fn bytes(&self, len: usize) -> Vec<u8> {
        let mut inner = self.0.borrow_mut();
        inner.next += 1;
        pattern(inner.next, len)
    }

    pub fn write_begins(&self, fid: Fid, chunk: u64, offset: u64, bytes: Vec<u8>) -> Call {
        self.begin(fid, chunk, What::Write { offset, bytes: Rc::new(bytes) })
    }

    pub fn delete_begins(&self, fid: Fid, chunk: u64) -> Call {
        self.begin(fid, chunk, What::Delete)
    }

    fn begin(&self, fid: Fid, chunk: u64, what: What) -> Call {
        let inner = &mut *self.0.borrow_mut();
        let begun = inner.tick();
        let number = begun;
        let cob = inner.cobs.entry(fid).or_default();
        cob.chunk = chunk;
        cob.events.insert(number, Event { what, begun, fate: Fate::Open });
        Call { fid, number }
    }

    pub fn committed(&self, call: Call, lsn: Lsn) {
        let inner = &mut *self.0.borrow_mut();
        let at = inner.tick();
        let event = inner.cobs.get_mut(&call.fid).and_then(|c| c.events.get_mut(&call.number));
        event.expect("it began").fate = Fate::Done { at, lsn: lsn.0 };
    }

    /// It was refused, and left no trace. The reason must be one that there is.
    pub fn refused(&self, call: Call, why: &StoreError) {
        let inner = &mut *self.0.borrow_mut();
        inner.tick();
        let cob = inner.cobs.get_mut(&call.fid).expect("it began");
        cob.events.remove(&call.number);
        match why {
            StoreError::Deleted(fid) => {
                let deletes = cob.events.values().any(|e| matches!(e.what, What::Delete));
                assert!(deletes || cob.deleted != Certain::No, "{fid} was never deleted");
            }
            StoreError::Fenced(session) => {
                let fenced = inner
                    .sessions
                    .get(session)
                    .is_some_and(|s| s.fenced != Certain::No || !s.fences.is_empty());
                assert!(fenced, "session {session} was never fenced");
            }
            _ => {}
        }
    }

    pub fn fence_begins(&self, session: SessionId) -> usize {
        let inner = &mut *self.0.borrow_mut();
        let begun = inner.tick();
        let fences = &mut inner.sessions.entry(session).or_default().fences;
        fences.push((begun, Fate::Open));
        fences.len() - 1
    }

    pub fn fenced(&self, session: SessionId, number: usize, lsn: Lsn) {
        let inner = &mut *self.0.borrow_mut();
        let at = inner.tick();
        inner.sessions.get_mut(&session).expect("it began").fences[number].1 = Fate::Done { at, lsn: lsn.0 };
    }

    /// Whether a session is fenced for certain, as of the last settlement.
    pub fn is_fenced(&self, session: SessionId) -> bool {
        self.0.borrow().sessions.get(&session).is_some_and(|s| s.fenced == Certain::Yes)
    }

    pub fn now(&self) -> Moment {
        self.0.borrow_mut().tick()
    }

    /// A read that began at `since` gave whole bytes from a chunk's start on.
    pub fn read(&self, fid: Fid, since: Moment, chunk: u64, offset: u64, bytes: &[u8]) {
        let seen = (offset / chunk..).zip(bytes.chunks(chunk as usize)).map(|(c, b)| (c, Some(b.to_vec())));
        self.saw(fid, since, chunk, seen.collect());
    }

    /// It found nothing there.
    pub fn missed(&self, fid: Fid, since: Moment, chunk: u64, offset: u64) {
        self.saw(fid, since, chunk, vec![(offset / chunk, None)]);
    }

    fn saw(&self, fid: Fid, since: Moment, chunk: u64, seen: Vec<(u64, Option<Vec<u8>>)>) {
        let inner = &mut *self.0.borrow_mut();
        let until = inner.tick();
        let cob = inner.cobs.entry(fid).or_default();
        cob.chunk = chunk;
        cob.reads.push(Read { seen, between: (since, until) });
    }

    /// Every cob that anything was done to, with the size of its chunks and how many it can have.
    pub fn cobs(&self) -> Vec<(Fid, u64, u64)> {
        let inner = self.0.borrow();
        let end = |cob: &Cob| {
            let writes = cob.events.values().filter_map(|e| match &e.what {
                What::Write { offset, bytes } => Some(offset + bytes.len() as u64),
                What::Delete => None,
            });
            writes.max().unwrap_or(0).max(cob.size)
        };
        inner.cobs.iter().map(|(fid, cob)| (*fid, cob.chunk, end(cob).div_ceil(cob.chunk.max(1)))).collect()
    }

    /// All is quiet, all up to lsn `durable` happened, and this is what there is. Begins anew from there.
    pub fn settle(&self, durable: u64, found: BTreeMap<Fid, Found>) {
        let inner = &mut *self.0.borrow_mut();
        let now = inner.tick();
        let Inner { cobs, sessions, .. } = inner;
        for (fid, cob) in cobs.iter_mut() {
            let session = sessions.entry(fid.session).or_default();
            check_order(*fid, cob, session, durable);
            for read in &cob.reads {
                let explained = cob.explain(&read.seen, read.between);
                explained.unwrap_or_else(|why| panic!("a read of {fid}: {why}"));
            }
            let found = found.get(fid).expect("every cob was looked at");
            settle_cob(*fid, cob, found, now);
        }
        for (id, session) in sessions.iter_mut() {
            for (_, fate) in session.fences.drain(..) {
                match fate {
                    Fate::Done { lsn, .. } => {
                        assert!(lsn <= durable, "the fence of {id} at lsn {lsn} is gone, {durable} survived");
                        session.fenced = Certain::Yes;
                    }
                    Fate::Open if session.fenced == Certain::No => session.fenced = Certain::Maybe,
                    Fate::Open => {}
                }
            }
        }
    }
}

/// Nothing was acknowledged after what forbids it, or lost.
fn check_order(fid: Fid, cob: &Cob, session: &Session, durable: u64) {
    let done = |fate: &Fate| if let Fate::Done { lsn, .. } = fate { Some(*lsn) } else { None };
    let fenced = session.fences.iter().filter_map(|(_, fate)| done(fate)).min();
    let fenced = if session.fenced == Certain::Yes { Some(0) } else { fenced };
    let deletes = cob.events.values().filter(|e| matches!(e.what, What::Delete));
    let deleted = deletes.filter_map(|e| done(&e.fate)).min();
    let deleted = if cob.deleted == Certain::Yes { Some(0) } else { deleted };
    let mut lsns = BTreeSet::new();
    for event in cob.events.values() {
        let Some(lsn) = done(&event.fate) else { continue };
        assert!(lsn <= durable, "{fid}: lsn {lsn} was acknowledged, and only {durable} survived");
        assert!(lsns.insert(lsn), "{fid}: lsn {lsn} twice");
        if matches!(event.what, What::Write { .. }) {
            assert!(
                fenced.is_none_or(|f| lsn < f),
                "{fid} was written at lsn {lsn}, its session fenced at {fenced:?}"
            );
            assert!(
                deleted.is_none_or(|d| lsn < d),
                "{fid} was written at lsn {lsn}, deleted at {deleted:?}"
            );
        }
    }
}

fn settle_cob(fid: Fid, cob: &mut Cob, found: &Found, now: Moment) {
    let most = found.chunks.keys().max().map_or(0, |c| c + 1);
    let ends = cob.events.values().filter_map(|e| match &e.what {
        What::Write { offset, bytes } => Some(offset + bytes.len() as u64),
        What::Delete => None,
    });
    let ends: Vec<u64> = ends.collect();
    let most = most.max(ends.iter().max().copied().unwrap_or(0).max(cob.size).div_ceil(cob.chunk.max(1)));
    let seen: Vec<_> = (0..most).map(|c| (c, found.chunks.get(&c).cloned())).collect();
    let explained = cob.explain(&seen, (now, now));
    explained.unwrap_or_else(|why| panic!("{fid}: {why}\n{:?}", brief(cob)));
    let exists = found.info.is_some();
    if let Some(info) = found.info {
        assert_eq!(u64::from(info.chunk_size), cob.chunk, "{fid}");
        let blocks: u64 = found.chunks.values().map(|c| c.len().div_ceil(4096) as u64).sum();
        assert_eq!(info.allocated, blocks * 4096, "{fid}: blocks of its attributes and of its map");
        let sizes = ends.iter().copied().chain([cob.size]);
        assert!(sizes.clone().any(|s| s == info.size), "{fid} has {} bytes, not one of {ends:?}", info.size);
    } else {
        assert!(found.chunks.is_empty(), "{fid} has bytes and no attributes");
    }
    let mut deleted = cob.deleted;
    for event in cob.events.values().filter(|e| matches!(e.what, What::Delete)) {
        match event.fate {
            Fate::Done { .. } => deleted = Certain::Yes,
            Fate::Open if deleted == Certain::No => deleted = Certain::Maybe,
            Fate::Open => {}
        }
    }
    if deleted == Certain::Yes {
        assert!(!exists, "{fid} was deleted and is there");
    }
    if deleted == Certain::Maybe && !cob.chunks.is_empty() {
        deleted = if exists { Certain::No } else { Certain::Yes };
    }
    cob.deleted = deleted;
    cob.chunks.clone_from(&found.chunks);
    cob.size = found.info.map_or(0, |i| i.size);
    cob.events.clear();
    cob.reads.clear();
}

fn brief(cob: &Cob) -> Vec<String> {
    let row = |(number, event): (&u64, &Event)| match &event.what {
        What::Write { offset, bytes } => {
            format!("{number}: write {}+{} {:?}", offset / cob.chunk, bytes.len(), event.fate)
        }
        What::Delete => format!("{number}: delete {:?}", event.fate),
    };
    cob.events.iter().map(row).collect()
}
