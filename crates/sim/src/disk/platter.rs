//! What is durable, what is only in the cache, and what becomes of both.

use super::faults::{Dice, Fault};
use super::{BLOCK, PowerCut, SECTOR};
use crate::log::EventLog;
use cobalt_base::Nanos;
use cobalt_dma::Buf;
use cobalt_reactor::Ctx;
use cobalt_reactor::sync::Notify;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Blocks that a medium error takes at most.
const SPOILT_MAX: u64 = 4;
/// How far a misdirected operation goes, in blocks, when it does not go anywhere at all.
const NEAR: u64 = 64;

pub(super) struct Platter {
    pub name: String,
    pub size: u64,
    pub log: EventLog,
    rng: RefCell<StdRng>,
    pub dice: RefCell<Dice>,
    /// Durable blocks; those never written read as zeroes.
    durable: RefCell<BTreeMap<u64, Box<[u8; BLOCK]>>>,
    /// Blocks that cannot be read.
    spoilt: RefCell<BTreeSet<u64>>,
    /// Writes that no flush has covered yet: complete ones in the order of their completion.
    cache: RefCell<Vec<Held>>,
    next: Cell<u64>,
    /// Mounts that still reach the disk carry this number.
    pub mount: Cell<u64>,
    pub dead: Cell<bool>,
    pub hung_until: Cell<Option<Nanos>>,
    pub back: Notify,
}

/// A write in the cache.
pub(super) struct Held {
    pub id: u64,
    pub offset: u64,
    pub bytes: Vec<u8>,
    pub complete: bool,
    /// It will never reach the platter.
    pub lost: bool,
}

impl Held {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl Platter {
    pub fn new(name: &str, size: u64, seed: u64, log: &EventLog) -> Platter {
        Platter {
            name: name.into(),
            size,
            log: log.clone(),
            rng: RefCell::new(StdRng::seed_from_u64(seed)),
            dice: RefCell::new(Dice::new(seed)),
            durable: RefCell::default(),
            spoilt: RefCell::default(),
            cache: RefCell::default(),
            next: Cell::new(0),
            mount: Cell::new(0),
            dead: Cell::new(false),
            hung_until: Cell::new(None),
            back: Notify::default(),
        }
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.rng.borrow_mut().random_range(0..limit.max(1))
    }

    /// Whether a fault strikes; noted if it does.
    pub fn strikes(&self, ctx: &Ctx, fault: Fault) -> bool {
        let struck = self.dice.borrow_mut().strikes(fault, ctx.now());
        if struck {
            self.log.note(ctx, &self.name, &[100 + fault as u64]);
            tracing::debug!(disk = self.name, fault = fault.name(), "struck");
        }
        struck
    }

    /// What happens to a disk while it lives, whatever it is asked.
    pub fn live(&self, ctx: &Ctx) {
        if self.strikes(ctx, Fault::Rot) {
            self.rot(ctx);
        }
        if self.strikes(ctx, Fault::Hang) {
            let time = self.dice.borrow_mut().hang();
            self.hang(ctx, time);
        }
        if self.strikes(ctx, Fault::Death) {
            self.dead.set(true);
        }
    }

    pub fn hang(&self, ctx: &Ctx, time: Duration) {
        self.log.note(ctx, &self.name, &[200, time.as_micros() as u64]);
        let until = ctx.now() + time;
        self.hung_until.set(self.hung_until.get().max(Some(until)));
    }

    /// Waits while the disk hangs.
    pub async fn responds(&self, ctx: &Ctx) {
        while let Some(until) = self.hung_until.get().filter(|until| ctx.now() < *until) {
            let _woken = ctx.timeout_at(until, self.back.notified()).await;
        }
    }

    /// Turns over a bit of a block that was written.
    fn rot(&self, ctx: &Ctx) {
        let (around, bit) = {
            let mut dice = self.dice.borrow_mut();
            (dice.below(self.size / BLOCK as u64), dice.below(8 * BLOCK as u64))
        };
        if let Some(block) = self.written(around) {
            let at = block * BLOCK as u64 + bit / 8;
            self.log.note(ctx, &self.name, &[201, at, bit % 8]);
            self.flip(at, 1 << (bit % 8));
        }
    }

    /// The first durable block from `block` on, or the first of all.
    fn written(&self, block: u64) -> Option<u64> {
        let durable = self.durable.borrow();
        durable.range(block..).next().or_else(|| durable.iter().next()).map(|(block, _)| *block)
    }

    pub fn flip(&self, at: u64, bits: u8) {
        let mut durable = self.durable.borrow_mut();
        let block = durable.entry(at / BLOCK as u64).or_insert_with(|| Box::new([0; BLOCK]));
        block[at as usize % BLOCK] ^= bits;
    }

    /// Another place of the same length: near by, or among what was written, where it hurts.
    pub fn elsewhere(&self, offset: u64, len: u64) -> u64 {
        let block = BLOCK as u64;
        let last = (self.size - len.min(self.size)) / block;
        let own = offset / block;
        let (near, by, anywhere) = {
            let mut dice = self.dice.borrow_mut();
            (dice.below(2) == 0, 1 + dice.below(NEAR), dice.below(last + 1))
        };
        let place = match near {
            true if own >= by => own - by,
            true => own + by,
            false => self.written(anywhere).unwrap_or(anywhere),
        };
        let place = place.min(last);
        if place == own { (own + 1).min(last) * block } else { place * block }
    }

    /// Some blocks of the range cannot be read any more.
    pub fn spoil(&self, offset: u64, len: u64) {
        let mut dice = self.dice.borrow_mut();
        let first = offset / BLOCK as u64 + dice.below(len / BLOCK as u64);
        let count = 1 + dice.below(SPOILT_MAX);
        self.spoilt.borrow_mut().extend(first..first + count);
    }

    pub fn is_spoilt(&self, offset: u64, len: u64) -> bool {
        let blocks = offset / BLOCK as u64..(offset + len) / BLOCK as u64;
        self.spoilt.borrow().range(blocks).next().is_some()
    }

    /// What is written can be read again.
    pub fn heal(&self, offset: u64, len: u64) {
        let mut spoilt = self.spoilt.borrow_mut();
        if !spoilt.is_empty() {
            let blocks = offset / BLOCK as u64..(offset + len) / BLOCK as u64;
            spoilt.retain(|block| !blocks.contains(block));
        }
    }

    /// Takes a write into the cache. Its number.
    pub fn take(&self, held: Held) -> u64 {
        let id = self.next.replace(self.next.get() + 1);
        self.cache.borrow_mut().push(Held { id, ..held });
        id
    }

    pub fn has(&self, id: u64) -> bool {
        self.cache.borrow().iter().any(|held| held.id == id)
    }

    /// A write is complete: of those that overlap, the one that completes last is the last.
    pub fn complete(&self, id: u64) {
        let mut cache = self.cache.borrow_mut();
        if let Some(at) = cache.iter().position(|held| held.id == id) {
            let held = cache.remove(at);
            cache.push(Held { complete: true, ..held });
        }
    }

    /// Writes that are complete.
    pub fn completed(&self) -> Vec<u64> {
        self.cache.borrow().iter().filter(|held| held.complete).map(|held| held.id).collect()
    }

    /// Makes bytes durable.
    fn settle(&self, offset: u64, bytes: &[u8]) {
        let mut durable = self.durable.borrow_mut();
        let mut at = offset as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let block = durable.entry((at / BLOCK) as u64).or_insert_with(|| Box::new([0; BLOCK]));
            let len = rest.len().min(BLOCK - at % BLOCK);
            block[at % BLOCK..at % BLOCK + len].copy_from_slice(&rest[..len]);
            at += len;
            rest = &rest[len..];
        }
    }

    pub fn read(&self, offset: u64, buf: &mut Buf) {
        let durable = self.durable.borrow();
        for (i, out) in buf.chunks_mut(BLOCK).enumerate() {
            match durable.get(&(offset / BLOCK as u64 + i as u64)) {
                Some(block) => out.copy_from_slice(&block[..out.len()]),
                None => out.fill(0),
            }
        }
        let end = offset + buf.len() as u64;
        for held in self.cache.borrow().iter().filter(|held| held.complete) {
            let (from, to) = (held.offset.max(offset), held.end().min(end));
            if from < to {
                let bytes = &held.bytes[(from - held.offset) as usize..(to - held.offset) as usize];
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(bytes);
            }
        }
    }

    /// Makes the writes in `ids` durable, in the order of their completion.
    pub fn flush(&self, ids: &[u64]) {
        let (flushed, kept) =
            self.cache.take().into_iter().partition::<Vec<_>, _>(|held| ids.contains(&held.id));
        *self.cache.borrow_mut() = kept;
        for held in flushed.into_iter().filter(|held| !held.lost) {
            self.settle(held.offset, &held.bytes);
        }
    }

    /// A flush failed: each write that it covered is durable or gone.
    pub fn forget_some(&self, ids: &[u64]) {
        let kept: Vec<u64> = ids.iter().copied().filter(|_| self.below(2) == 0).collect();
        self.flush(&kept);
        self.cache.borrow_mut().retain(|held| !ids.contains(&held.id));
    }

    /// Makes a write durable, and the completed ones below it.
    pub fn settle_one(&self, id: u64) {
        let below = {
            let cache = self.cache.borrow();
            match cache.iter().find(|held| held.id == id) {
                None => Vec::new(),
                Some(own) => {
                    let below =
                        |held: &&Held| held.complete && held.offset < own.end() && own.offset < held.end();
                    let until = cache.iter().position(|held| held.id == id).map_or(0, |at| at + 1);
                    cache.iter().take(until).filter(below).map(|held| held.id).collect()
                }
            }
        };
        self.flush(&below);
    }

    /// Of each write in the cache all stays, nothing, one end of it, or this sector and that.
    pub fn power_cut(&self) -> PowerCut {
        let mut cut = PowerCut::default();
        for held in self.cache.take().into_iter().filter(|held| !held.lost) {
            let sectors = held.bytes.len() / SECTOR;
            let all: Vec<usize> = (0..sectors).collect();
            let stay: Vec<usize> = match self.below(4) {
                0 => all,
                1 => Vec::new(),
                2 => {
                    let at = self.below(sectors as u64 + 1) as usize;
                    if self.below(2) == 0 { all[..at].to_vec() } else { all[at..].to_vec() }
                }
                _ => all.into_iter().filter(|_| self.below(2) == 0).collect(),
            };
            match stay.len() {
                0 => cut.lost += 1,
                n if n == sectors => cut.kept += 1,
                _ => cut.torn += 1,
            }
            for sector in stay {
                let at = sector * SECTOR;
                self.settle(held.offset + at as u64, &held.bytes[at..at + SECTOR]);
            }
        }
        cut
    }
}
