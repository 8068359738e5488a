//! Crash points (layer 3): a workload on devices that write everything down, and every state that a crash at any moment of
//! it may leave, mounted and held against what clients were told.
//!
//! A **boundary** lies between two events of the devices: a write, a flush or a deallocation was submitted, or complete.
//! All are visited. The **states** of a boundary are choices among the writes that are not durable there: none of them, all,
//! each one lost, each one kept alone, each torn at a sector, every subset of up to eight, samples above that. A state is
//! mounted, checked, compared byte by byte; of some, clients go on working, close and open again; of some, the recovery is
//! crashed at each of *its* boundaries. And at each boundary the process alone dies, its devices live on, and the power goes
//! during or after the next start.
//!
//! A case is `seed/boundary:choice/boundary:choice...`: the second step is a crash within the recovery of the first.

mod check;
mod client;
mod disk;
mod explore;
mod image;
mod model;
mod rot;
mod walk;
mod workload;

use crate::run::{Counts, Failure, Run, spread, working_on};
use check::Env;
use explore::{Explorer, Fault, replay};

/// Distinct states of a run that is told nothing else.
const STATES: u64 = 1_000_000;

/// The layer.
///
/// # Errors
/// The first state that failed.
pub fn run(run: &Run) -> Result<Counts, Failure> {
    if let Some(case) = &run.case {
        return again(case);
    }
    spread(run, "states", STATES, || {
        let (mut env, run) = (None, run.clone());
        move |n| {
            let seed = workload_seed(run.seed, n);
            let counts = workload(&mut env, seed)?;
            if run.verbose {
                let (states, boundaries) = (counts.get("states"), counts.get("boundaries"));
                println!("workload {seed:x}: {boundaries} boundaries, {states} states");
            }
            Ok(counts)
        }
    })
}

fn workload_seed(seed: u64, n: u64) -> u64 {
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(0xd1b5_4a32_d192_ed03)).rotate_left(17) ^ n
}

/// One workload and all its states.
fn workload(env: &mut Option<Env>, seed: u64) -> Result<Counts, Failure> {
    let shape = workload::shape(seed);
    let env = match env {
        Some(env) => {
            *env = env.again(seed, shape);
            &*env
        }
        None => env.insert(Env::new(seed, shape)),
    };
    working_on(format!("{seed:x}"));
    let failure = |what| Failure { case: format!("{seed:x}"), what };
    let (recording, did) = workload::record(env).map_err(failure)?;
    let mut explorer = Explorer::new(env.clone());
    let boundaries = recording.tape.events.len() as u64 + 1;
    explorer.explore(&recording, 0).map_err(|Fault { case, what }| Failure { case, what })?;
    let visited = explorer.visits.boundaries;
    if visited != boundaries {
        return Err(failure(format!("{visited} boundaries of {boundaries} were visited")));
    }
    let mut counts = explorer.visits.counts();
    counts.add("workloads", 1);
    counts.merge(&did.counts());
    Ok(counts)
}

fn again(case: &str) -> Result<Counts, Failure> {
    let failure = |what| Failure { case: case.to_owned(), what };
    let mut steps = case.split('/');
    let seed = steps.next().unwrap_or_default();
    let seed = u64::from_str_radix(seed, 16).map_err(|e| failure(format!("{seed:?}: {e}")))?;
    working_on(case.to_owned());
    let env = Env::new(seed, workload::shape(seed));
    let (recording, _) = workload::record(&env).map_err(failure)?;
    let steps: Vec<&str> = steps.collect();
    replay(&env, recording, &steps).map_err(failure)?;
    let mut counts = Counts::default();
    counts.add("states", steps.len() as u64);
    Ok(counts)
}
