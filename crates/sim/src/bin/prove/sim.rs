//! The cluster on disks that go wrong: as many runs as are asked for, each of a seed of its own, kinds of trouble in turn.

use crate::run::{Counts, Failure, Run, saw, working_on};
use cobalt_sim::scenario::{self, Kind, Sights};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Runs of one pass.
const RUNS: u64 = 72;
/// Events of one seed that two runs of it must agree on, at least: less is not much of a history.
const EVENTS_MIN: u64 = 100;

/// Runs the layer.
///
/// # Errors
/// The seed of a run that broke a promise.
pub fn run(run: &Run) -> Result<Counts, Failure> {
    if let Some(case) = &run.case {
        let wrong = |what: String| Failure { case: case.clone(), what };
        let seed = case.parse::<u64>().map_err(|e| wrong(format!("a case of this layer is a seed: {e}")))?;
        return one(seed).map(|sights| counts(&sights));
    }
    let (count, first) = (run.count.unwrap_or(RUNS), run.seed << 32);
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let worker = || {
        let mut seen = Sights::default();
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            match one(first + number) {
                Ok(sights) => seen.add(&sights),
                Err(failure) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(failure);
                }
            }
        }
        Ok(seen)
    };
    // Runs share nothing: each has a reactor of its own.
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..run.threads.max(1)).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a panic ends the program")).collect()
    });
    let mut seen = Sights::default();
    for outcome in outcomes {
        seen.add(&outcome?);
    }
    replay(first).map(|()| counts(&seen))
}

/// One run.
fn one(seed: u64) -> Result<Sights, Failure> {
    working_on(seed.to_string());
    let result = scenario::run(seed);
    saw(1);
    result.map_err(|wrong| {
        let what = format!("{:?} of seed {seed}: {wrong}", Kind::of(seed));
        Failure { case: seed.to_string(), what }
    })
}

/// One seed is one history, and another is another.
fn replay(seed: u64) -> Result<(), Failure> {
    let (first, second, other) = (one(seed)?, one(seed)?, one(seed + 1)?);
    let what = match first == second {
        false => format!("two runs of seed {seed} are not the same: {first:?}, then {second:?}"),
        true if first.hash == other.hash || first.events < EVENTS_MIN => {
            format!("seeds {seed} and {} are the same: {first:?}", seed + 1)
        }
        true => return Ok(()),
    };
    Err(Failure { case: seed.to_string(), what })
}

fn counts(sights: &Sights) -> Counts {
    let mut counts = Counts::default();
    sights.rows().into_iter().for_each(|(name, n)| counts.add(name, n));
    counts
}
