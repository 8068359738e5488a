//! What goes wrong with a disk beyond a power cut: a plan of faults, each with its rate, its budget and its time, and the
//! dice that follow it. They have a sequence of their own, so that a disk without a plan does as it did before plans were.

use cobalt_base::Nanos;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// A fault that a disk can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A write lands elsewhere, and says that it is done.
    MisdirectedWrite,
    /// A read returns what lies elsewhere.
    MisdirectedRead,
    /// A write is done, is flushed, and is not there afterwards.
    LostWrite,
    /// A bit of what is durable turns over.
    Rot,
    /// A read fails once.
    ReadError,
    /// A write fails; part of it may be there.
    WriteError,
    /// A flush fails; part of what it covered is gone, and the next flush knows nothing of it.
    FlushError,
    /// A few blocks cannot be read until they are written again.
    MediumError,
    /// No operation ends for a while.
    Hang,
    /// Every operation fails until the disk is mounted again.
    Death,
}

const KINDS: usize = 10;
/// Of so many operations a rate counts those that are struck.
const RATE: u32 = 1_000_000;

impl Fault {
    /// All of them, in the order of their numbers.
    pub const ALL: [Fault; KINDS] = [
        Fault::MisdirectedWrite,
        Fault::MisdirectedRead,
        Fault::LostWrite,
        Fault::Rot,
        Fault::ReadError,
        Fault::WriteError,
        Fault::FlushError,
        Fault::MediumError,
        Fault::Hang,
        Fault::Death,
    ];

    /// Whether bytes that were written, and durable, may not be there afterwards.
    pub fn hurts(self) -> bool {
        match self {
            Fault::MisdirectedWrite | Fault::LostWrite | Fault::Rot | Fault::MediumError => true,
            Fault::MisdirectedRead | Fault::ReadError | Fault::WriteError | Fault::FlushError => false,
            Fault::Hang | Fault::Death => false,
        }
    }

    /// Its name in counts.
    pub fn name(self) -> &'static str {
        match self {
            Fault::MisdirectedWrite => "misdirected_writes",
            Fault::MisdirectedRead => "misdirected_reads",
            Fault::LostWrite => "lost_writes",
            Fault::Rot => "rotten",
            Fault::ReadError => "read_errors",
            Fault::WriteError => "write_errors",
            Fault::FlushError => "flush_errors",
            Fault::MediumError => "medium_errors",
            Fault::Hang => "hangs",
            Fault::Death => "deaths",
        }
    }
}

/// Which faults a disk has, how often, how many and when.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    /// Of a million operations that a fault could strike, so many are struck.
    rates: [u32; KINDS],
    /// Most of each in the disk's life.
    budgets: [u64; KINDS],
    /// The span of time in which they strike.
    window: Range<Nanos>,
    /// Longest time of a hang.
    hang_max: Duration,
}

impl Default for FaultPlan {
    fn default() -> FaultPlan {
        FaultPlan {
            rates: [0; KINDS],
            budgets: [0; KINDS],
            window: Nanos(0)..Nanos(u64::MAX),
            hang_max: Duration::from_secs(20),
        }
    }
}

impl FaultPlan {
    /// Adds a fault: so many of a million operations that it could strike, and at most `budget` in all.
    #[must_use]
    pub fn with(mut self, fault: Fault, per_million: u32, budget: u64) -> FaultPlan {
        self.rates[fault as usize] = per_million.min(RATE);
        self.budgets[fault as usize] = budget;
        self
    }

    /// Faults strike in this span of the simulation's time alone.
    #[must_use]
    pub fn between(mut self, window: Range<Nanos>) -> FaultPlan {
        self.window = window;
        self
    }

    /// No hang is longer.
    #[must_use]
    pub fn hangs_up_to(mut self, longest: Duration) -> FaultPlan {
        self.hang_max = longest;
        self
    }
}

/// How often each fault struck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts([u64; KINDS]);

impl FaultCounts {
    /// Of one kind.
    pub fn get(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Of all kinds.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Of those that hurt what was durable.
    pub fn hurts(&self) -> u64 {
        Fault::ALL.into_iter().filter(|fault| fault.hurts()).map(|fault| self.get(fault)).sum()
    }

    /// Adds another's.
    pub fn add(&mut self, other: &FaultCounts) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }

    pub(crate) fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }
}

impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let struck = Fault::ALL.into_iter().filter(|fault| self.get(*fault) > 0);
        for (at, fault) in struck.enumerate() {
            write!(f, "{}{}={}", if at > 0 { " " } else { "" }, fault.name(), self.get(fault))?;
        }
        Ok(())
    }
}

/// A plan at work.
pub(super) struct Dice {
    plan: FaultPlan,
    rng: StdRng,
    counts: FaultCounts,
}

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice {
            plan: FaultPlan::default(),
            rng: StdRng::seed_from_u64(seed ^ 0xfa17),
            counts: FaultCounts::default(),
        }
    }

    pub fn set(&mut self, plan: FaultPlan) {
        self.plan = plan;
    }

    pub fn counts(&self) -> FaultCounts {
        self.counts
    }

    /// A fault that somebody called for struck.
    pub fn count(&mut self, fault: Fault) {
        self.counts.count(fault);
    }

    /// Whether the fault strikes this operation.
    pub fn strikes(&mut self, fault: Fault, now: Nanos) -> bool {
        let kind = fault as usize;
        let due = self.plan.rates[kind] > 0
            && self.counts.get(fault) < self.plan.budgets[kind]
            && self.plan.window.contains(&now);
        let struck = due && self.rng.random_range(0..RATE) < self.plan.rates[kind];
        if struck {
            self.counts.count(fault);
        }
        struck
    }

    /// How long a hang lasts: from the moment that nobody notices to the longest, each order of magnitude as likely.
    pub fn hang(&mut self) -> Duration {
        let longest = u64::try_from(self.plan.hang_max.as_micros()).unwrap_or(u64::MAX).max(2);
        let bits = self.rng.random_range(1..=longest.ilog2());
        Duration::from_micros(self.rng.random_range(1..=1u64 << bits))
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.rng.random_range(0..limit.max(1))
    }
}
