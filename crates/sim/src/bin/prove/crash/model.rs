//! What the target must hold, lsn by lsn, and what clients have been told.
//!
//! Every change that clients committed has an lsn, so what a crash may leave is simple: the changes up to some lsn, all of
//! them and nothing else, and that lsn is not below any that a client had seen the effect of. The order itself is judged
//! too: lsns follow real time, and every condition and every read must be true of the state at its place in it.

use cobalt_base::{Fid, SessionId};
use cobalt_store::CtgOp;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The content of a chunk: whose it is, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub content: u32,
    pub len: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cob {
    pub chunk: u32,
    pub chunks: BTreeMap<u32, Piece>,
    pub size: u64,
}

pub type Key = (u32, Vec<u8>);

/// What is durable at one lsn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub cobs: BTreeMap<Fid, Cob>,
    pub gone: BTreeSet<Fid>,
    pub fenced: BTreeSet<SessionId>,
    pub keys: BTreeMap<Key, Vec<u8>>,
}

/// A change.
#[derive(Clone, Debug)]
pub enum Change {
    Put { fid: Fid, chunk: u32, first: u32, len: u32, content: u32 },
    Delete(Fid),
    Fence(SessionId),
    Ctg(Vec<CtgOp>),
}

impl Cob {
    pub fn allocated(&self) -> u64 {
        self.chunks.values().map(|piece| u64::from(piece.len).next_multiple_of(4096)).sum()
    }
}

impl State {
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Put { fid, chunk, first, len, content } => {
                let cob = self.cobs.entry(*fid).or_insert_with(|| Cob {
                    chunk: *chunk,
                    chunks: BTreeMap::new(),
                    size: 0,
                });
                let mut left = *len;
                for at in *first.. {
                    if left == 0 {
                        break;
                    }
                    let piece = Piece { content: *content, len: left.min(*chunk) };
                    left -= piece.len;
                    cob.chunks.insert(at, piece);
                }
                cob.size = cob.size.max(u64::from(*first) * u64::from(*chunk) + u64::from(*len));
            }
            Change::Delete(fid) => {
                self.cobs.remove(fid);
                self.gone.insert(*fid);
            }
            Change::Fence(session) => {
                self.fenced.insert(*session);
            }
            Change::Ctg(ops) => {
                for op in ops {
                    match op {
                        CtgOp::Put { ctg, key, value } => {
                            self.keys.insert((*ctg, key.clone()), value.clone());
                        }
                        CtgOp::Delete { ctg, key } => {
                            self.keys.remove(&(*ctg, key.clone()));
                        }
                    }
                }
            }
        }
    }
}

/// What a client saw.
#[derive(Clone, Debug)]
pub enum Seen {
    /// Whole chunks of a cob, or that some are missing or short.
    Chunks {
        fid: Fid,
        chunks: std::ops::Range<u32>,
        found: Option<Vec<Piece>>,
    },
    Key {
        key: Key,
        found: Option<Vec<u8>>,
    },
    /// A write was refused: the cob was deleted; the session fenced.
    Deleted(Fid),
    Fenced(SessionId),
}

impl Seen {
    fn fits(&self, state: &State) -> bool {
        match self {
            Seen::Chunks { fid, chunks, found } => {
                let cob = state.cobs.get(fid);
                let held = |at| cob.and_then(|cob| cob.chunks.get(&at)).copied();
                match found {
                    Some(found) => chunks.clone().map(held).eq(found.iter().copied().map(Some)),
                    None => chunks
                        .clone()
                        .any(|at| held(at).is_none_or(|p| cob.is_some_and(|cob| p.len < cob.chunk))),
                }
            }
            Seen::Key { key, found } => state.keys.get(key) == found.as_ref(),
            Seen::Deleted(fid) => state.gone.contains(fid),
            Seen::Fenced(session) => state.fenced.contains(session),
        }
    }
}

/// The states of one process's life, by lsn; before it began, those of the life whose crash it recovered from.
pub struct Lineage {
    parent: Option<(Rc<Lineage>, u64)>,
    base: Rc<State>,
    states: Vec<(u64, Rc<State>)>,
}

impl Lineage {
    pub fn root() -> Rc<Lineage> {
        Rc::new(Lineage { parent: None, base: Rc::default(), states: Vec::new() })
    }

    /// What is there when everything up to `lsn` is.
    pub fn at(&self, lsn: u64) -> &Rc<State> {
        match &self.parent {
            Some((parent, fork)) if lsn <= *fork => parent.at(lsn),
            _ => match self.states.partition_point(|(at, _)| *at <= lsn) {
                0 => &self.base,
                n => &self.states[n - 1].1,
            },
        }
    }
}

/// What happened in one process's life. Moments are counts of device events; between two of them, turns tell what came first.
#[derive(Default)]
pub struct History {
    turns: usize,
    commits: Vec<Commit>,
    seen: Vec<Sight>,
    /// From this moment on, everything up to this lsn was visible.
    visible: Vec<(usize, u64)>,
}

/// When a client asked and was answered.
#[derive(Clone, Copy)]
struct When {
    begun: usize,
    answered: usize,
    done: usize,
}

struct Sight {
    when: When,
    seen: Seen,
}

struct Commit {
    when: When,
    lsn: u64,
    /// What a condition saw before the change.
    looked: Vec<(Key, Option<Vec<u8>>)>,
    change: Option<Change>,
}

/// From which moment on which lsn is the least that a crash may leave.
pub struct Floors(Vec<(usize, u64)>);

impl Floors {
    pub fn at(&self, moment: usize) -> u64 {
        match self.0.partition_point(|(from, _)| *from <= moment) {
            0 => 0,
            n => self.0[n - 1].1,
        }
    }

    fn of(mut raises: Vec<(usize, u64)>) -> Floors {
        raises.sort_unstable();
        let mut high = 0;
        for (_, lsn) in &mut raises {
            high = high.max(*lsn);
            *lsn = high;
        }
        Floors(raises)
    }
}

impl History {
    pub fn visible(&mut self, from: usize, lsn: u64) {
        self.visible.push((from, lsn));
    }

    /// The turn in which a client asks.
    pub fn turn(&mut self) -> usize {
        self.turns += 1;
        self.turns
    }

    fn when(&mut self, begun: usize, done: usize) -> When {
        When { begun, answered: self.turn(), done }
    }

    pub fn commit(&mut self, begun: usize, done: usize, lsn: u64, change: Change) {
        let when = self.when(begun, done);
        self.commits.push(Commit { when, lsn, looked: Vec::new(), change: Some(change) });
    }

    pub fn decided(
        &mut self,
        begun: usize,
        done: usize,
        lsn: u64,
        looked: Vec<(Key, Option<Vec<u8>>)>,
        ops: Vec<CtgOp>,
    ) {
        let (when, change) = (self.when(begun, done), (!ops.is_empty()).then_some(Change::Ctg(ops)));
        self.commits.push(Commit { when, lsn, looked, change });
    }

    pub fn saw(&mut self, begun: usize, done: usize, seen: Seen) {
        let when = self.when(begun, done);
        self.seen.push(Sight { when, seen });
    }

    /// Puts the changes in their order, and holds everything that was told against it. `from` is what the process found.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn judge(&mut self, from: (Rc<Lineage>, u64)) -> Result<(Lineage, Floors), String> {
        self.commits.sort_by_key(|c| (c.lsn, c.change.is_none()));
        let base = from.0.at(from.1).clone();
        let mut lineage = Lineage { parent: Some(from), base, states: Vec::new() };
        for commit in &self.commits {
            let before = commit.lsn - u64::from(commit.change.is_some());
            let state = lineage.at(before).clone();
            for (key, saw) in &commit.looked {
                if state.keys.get(key) != saw.as_ref() {
                    let have = state.keys.get(key).map(|v| v.len());
                    let saw = saw.as_ref().map(Vec::len);
                    return Err(format!(
                        "the condition of lsn {} saw a value of {saw:?} bytes at {key:02x?}; before it there is one of {have:?}",
                        commit.lsn
                    ));
                }
            }
            if let Some(change) = &commit.change {
                if lineage.states.last().is_some_and(|(last, _)| *last >= commit.lsn) {
                    return Err(format!("two transactions were told that they are lsn {}", commit.lsn));
                }
                let mut next = State::clone(lineage.at(commit.lsn));
                next.apply(change);
                lineage.states.push((commit.lsn, Rc::new(next)));
            }
        }
        let opened = self.visible.iter().map(|(_, lsn)| (0, *lsn));
        let answers = self.commits.iter().map(|c| (c.when.answered, c.lsn));
        let told = Floors::of(opened.chain(answers).collect());
        for Commit { when, lsn, change, .. } in &self.commits {
            let before = told.at(when.begun);
            if *lsn < before + u64::from(change.is_some()) {
                return Err(format!(
                    "a transaction that began after lsn {before} was answered has lsn {lsn}"
                ));
            }
        }
        let mut raises = self.visible.clone();
        raises.extend(self.commits.iter().map(|c| (c.when.done, c.lsn)));
        for Sight { when, seen } in &self.seen {
            let least = told.at(when.begun);
            // A condition that wanted nothing has the lsn of the change before it.
            let changes = || self.commits.iter().filter(|c| c.change.is_some());
            let begun = |lsn| changes().all(|c| c.lsn != lsn || c.when.begun < when.answered);
            let later = lineage.states.iter().filter(|(lsn, _)| *lsn > least && begun(*lsn));
            let mut all = std::iter::once((least, lineage.at(least))).chain(later.map(|(lsn, s)| (*lsn, s)));
            let Some((lsn, _)) = all.find(|(_, state)| seen.fits(state)) else {
                return Err(format!("at no lsn from {least} on a client could see {seen:?}"));
            };
            // What was shown is told.
            raises.push((when.done, lsn));
        }
        Ok((lineage, Floors::of(raises)))
    }
}
