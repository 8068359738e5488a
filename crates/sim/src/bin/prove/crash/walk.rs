//! Walks along a tape: at each boundary, what is durable and what a crash may keep or lose.

use super::check::Recording;
use super::disk::Event;
use super::image::{BLOCK, Block, Image, Page, SECTOR};
use std::fmt;
use std::str::FromStr;

/// A write that is not known to be durable.
#[derive(Clone)]
pub struct Pending {
    /// Its number on this tape; none, when the process before it had submitted it.
    pub write: Option<usize>,
    pub part: usize,
    /// Complete, so that a flush covers it; else still on its way.
    pub done: bool,
    pub torn: bool,
    pub blocks: Vec<(u32, Page)>,
}

/// What a crash keeps of the pending writes: a bit each, and one in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    pub kept: u128,
    pub torn: Option<Tear>,
}

/// One pending write, and how many of its sectors came first; those, or the others, are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tear {
    pub of: usize,
    pub cut: usize,
    pub first: bool,
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.kept)?;
        match self.torn {
            Some(Tear { of, cut, first }) => write!(f, "t{of}.{cut}{}", if first { 'a' } else { 'b' }),
            None => Ok(()),
        }
    }
}

impl FromStr for Pick {
    type Err = String;
    fn from_str(text: &str) -> Result<Pick, String> {
        let bad = || format!("{text:?} is no choice of writes");
        let (kept, torn) = text.split_once('t').map_or((text, None), |(kept, torn)| (kept, Some(torn)));
        let kept = u128::from_str_radix(kept, 16).map_err(|_| bad())?;
        let torn = match torn {
            None => None,
            Some(torn) => {
                let (of, cut) = torn.split_once('.').ok_or_else(bad)?;
                let (cut, first) = match (cut.strip_suffix('a'), cut.strip_suffix('b')) {
                    (Some(cut), _) => (cut, true),
                    (_, Some(cut)) => (cut, false),
                    _ => return Err(bad()),
                };
                let of = of.parse().map_err(|_| bad())?;
                let cut = cut.parse().map_err(|_| bad())?;
                Some(Tear { of, cut, first })
            }
        };
        Ok(Pick { kept, torn })
    }
}

/// A place on a tape.
pub struct Walk<'a> {
    recording: &'a Recording,
    pub at: usize,
    durable: Image,
    pub pending: Vec<Pending>,
    volatile: bool,
    /// What each flush that runs covers.
    flushes: Vec<(usize, Vec<usize>)>,
    /// What each pending write adds to the sum, when none overlaps another.
    deltas: Option<Vec<u128>>,
}

impl<'a> Walk<'a> {
    pub fn new(recording: &'a Recording, volatile: bool) -> Walk<'a> {
        let Recording { start, .. } = recording;
        let mut walk = Walk {
            recording,
            at: 0,
            durable: start.durable.clone(),
            pending: start.pending.clone(),
            volatile,
            flushes: Vec::new(),
            deltas: None,
        };
        // Names of their own, above all numbers of this tape.
        for (n, pending) in walk.pending.iter_mut().enumerate() {
            pending.write = Some(usize::MAX - n);
        }
        walk.weigh();
        walk
    }

    /// Boundaries: before each event, and at the end.
    pub fn boundaries(&self) -> usize {
        self.recording.tape.events.len() + 1
    }

    /// Passes one event. True when what a crash may leave has changed.
    pub fn step(&mut self) -> bool {
        let tape = &self.recording.tape;
        let event = tape.events[self.at];
        self.at += 1;
        match event {
            Event::Submit(id) => {
                let write = &tape.writes[id];
                let blocks = write.blocks.clone();
                let (part, torn) = (write.part, write.torn);
                self.pending.push(Pending { write: Some(id), part, done: false, torn, blocks });
            }
            Event::Done(id) => {
                let from = self.place(id).expect("a write that ends has begun");
                let mut pending = self.pending.remove(from);
                pending.done = true;
                let to = self.pending.iter().position(|p| !p.done).unwrap_or(self.pending.len());
                self.pending.insert(to, pending);
                if tape.writes[id].fua || !self.volatile {
                    self.settle(id);
                } else if from == to {
                    return false;
                }
            }
            Event::Flush { id, part } => {
                let covered = self.pending.iter().filter(|p| p.done && p.part == part);
                self.flushes.push((id, covered.filter_map(|p| p.write).collect()));
                return false;
            }
            Event::Flushed { id } => {
                let at = self.flushes.iter().position(|(f, _)| *f == id);
                let (_, covered) = self.flushes.remove(at.expect("a flush that ends has begun"));
                if covered.is_empty() {
                    return false;
                }
                for write in covered {
                    self.settle(write);
                }
            }
        }
        self.weigh();
        true
    }

    fn place(&self, write: usize) -> Option<usize> {
        self.pending.iter().position(|p| p.write == Some(write))
    }

    /// A write becomes durable; older ones can no longer come out on top of it.
    fn settle(&mut self, write: usize) {
        let Some(at) = self.place(write) else { return };
        let settled = self.pending.remove(at);
        for older in &mut self.pending[..at] {
            older.blocks.retain(|(place, _)| settled.blocks.iter().all(|(s, _)| s != place));
        }
        self.pending.retain(|p| !p.blocks.is_empty());
        for (place, page) in settled.blocks {
            self.durable.set(place, page);
        }
    }

    fn weigh(&mut self) {
        assert!(self.pending.len() < 128, "{} writes are pending", self.pending.len());
        let mut places: Vec<u32> = self.pending.iter().flat_map(|p| &p.blocks).map(|(at, _)| *at).collect();
        let all = places.len();
        places.sort_unstable();
        places.dedup();
        self.deltas = (places.len() == all).then(|| {
            let delta = |p: &Pending| {
                p.blocks.iter().fold(0u128, |sum, (at, page)| {
                    let old = self.durable.pages[*at as usize].weight(*at);
                    sum.wrapping_add(page.weight(*at)).wrapping_sub(old)
                })
            };
            self.pending.iter().map(delta).collect()
        });
    }

    pub fn all(&self) -> u128 {
        (1u128 << self.pending.len()) - 1
    }

    /// The sum of the image that a choice leaves.
    pub fn sum(&self, pick: Pick) -> u128 {
        match (&self.deltas, pick.torn) {
            (Some(deltas), None) => {
                let (mut sum, mut left) = (self.durable.sum, pick.kept);
                while left != 0 {
                    sum = sum.wrapping_add(deltas[left.trailing_zeros() as usize]);
                    left &= left - 1;
                }
                sum
            }
            _ => self.changed(pick).into_iter().fold(self.durable.sum, |sum, (at, page)| {
                let old = self.durable.pages[at as usize].weight(at);
                sum.wrapping_add(page.weight(at)).wrapping_sub(old)
            }),
        }
    }

    /// The blocks in which a choice differs from what is durable.
    fn changed(&self, pick: Pick) -> Vec<(u32, Page)> {
        let mut out: Vec<(u32, Page)> = Vec::new();
        let mut set = |place: u32, page: Page| match out.iter_mut().find(|(at, _)| *at == place) {
            Some((_, old)) => *old = page,
            None => out.push((place, page)),
        };
        for (n, pending) in self.pending.iter().enumerate() {
            match pick.torn {
                Some(tear) if tear.of == n => {
                    for (i, (place, page)) in pending.blocks.iter().enumerate() {
                        let cut = (tear.cut * SECTOR).saturating_sub(i * BLOCK).min(BLOCK);
                        let keeps = if tear.first { 0..cut } else { cut..BLOCK };
                        if keeps.len() == BLOCK {
                            set(*place, page.clone());
                        } else if !keeps.is_empty() {
                            set(*place, Block::new(&mix(&self.below(pick, n, *place), page, keeps)));
                        }
                    }
                }
                _ if pick.kept >> n & 1 == 1 => {
                    for (place, page) in &pending.blocks {
                        set(*place, page.clone());
                    }
                }
                _ => {}
            }
        }
        out
    }

    /// What lies under pending write `n` at a place.
    fn below(&self, pick: Pick, n: usize, place: u32) -> Page {
        let kept = self.pending[..n].iter().enumerate().rev().filter(|(i, _)| pick.kept >> i & 1 == 1);
        let found = kept.flat_map(|(_, p)| &p.blocks).find(|(at, _)| *at == place);
        found.map_or_else(|| self.durable.pages[place as usize].clone(), |(_, page)| page.clone())
    }

    /// The blocks that a choice leaves.
    pub fn pages(&self, pick: Pick) -> Vec<Page> {
        let mut pages = self.durable.pages.clone();
        for (place, page) in self.changed(pick) {
            pages[place as usize] = page;
        }
        pages
    }

    /// What is on the devices' media and in their caches when the process dies and they live on. Of the writes on their way
    /// those in `landed` arrive.
    pub fn lives_on(&self, landed: u128) -> (Image, Vec<Pending>) {
        let mut left: Vec<Pending> = (self.pending.iter().enumerate())
            .filter(|(n, p)| p.done || landed >> n & 1 == 1)
            .map(|(_, p)| p.clone())
            .collect();
        for pending in &mut left {
            pending.done = true;
        }
        (self.durable.clone(), left)
    }

    /// Sectors of a pending write.
    pub fn sectors(&self, n: usize) -> usize {
        self.pending[n].blocks.len() * (BLOCK / SECTOR)
    }
}

fn mix(old: &Page, new: &Page, keeps: std::ops::Range<usize>) -> [u8; BLOCK] {
    let mut bytes = old.bytes;
    bytes[keeps.clone()].copy_from_slice(&new.bytes[keeps]);
    bytes
}
