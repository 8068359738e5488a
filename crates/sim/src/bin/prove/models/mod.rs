//! Models (testing.md, layer 2): the trees, the allocator, the extent map, the catalogues and the whole
//! store, each beside a reference of a few maps, over devices that lose power and fail.
//!
//! Limits are so small that splits, merges, evictions, full groups and full journals occur all the time; what a
//! model is said to meet is counted, and a run that did not meet it is a failure.

mod balloc;
mod btree;
mod caller;
pub mod case;
mod cob_log;
mod ctg;
mod ctg_log;
pub mod disk;
mod extmap;
pub mod op;
pub mod target;
pub mod whole;

use crate::run::{Counts, Failure, Run, saw};
use case::Entry;

const MODELS: [Entry; 5] = [
    case::entry::<btree::Btree>(),
    case::entry::<balloc::BallocModel>(),
    case::entry::<extmap::ExtmapModel>(),
    case::entry::<ctg::CtgModel>(),
    case::entry::<whole::Whole>(),
];

/// The seed of a case: every bit of it depends on the run's and on the case's number.
pub fn case_seed(run: u64, model: u64, number: u64) -> u64 {
    let mut x = run ^ model.rotate_left(40) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..2 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
    }
    x
}

/// Runs the models. `--count` is a percentage of the usual number of cases; a `--case` that is only a name is all of that
/// model.
pub fn run(run: &Run) -> Result<Counts, Failure> {
    case::catch_panics("models", run);
    if let Some(case) = run.case.as_ref().filter(|case| case.contains('/')) {
        return case::replay(&MODELS, case).map_err(|what| Failure { case: case.clone(), what });
    }
    let percent = run.count.unwrap_or(100);
    let threads = run.threads.max(1) as u64;
    let counts = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || worker(run, thread, threads, percent))).collect();
        let mut counts = Counts::default();
        for worker in workers {
            counts.merge(&worker.join().expect("a panic ends the program"));
        }
        counts
    });
    for entry in MODELS.iter().filter(|entry| wanted(run, entry)) {
        for meets in entry.meets {
            let name = format!("{}_{meets}", entry.name);
            if counts.get(&name) == 0 && percent >= 100 {
                let what = format!("{counts}\nno {name} occurred: the model does not meet what it is for");
                return Err(Failure { case: String::new(), what });
            }
        }
    }
    Ok(counts)
}

fn wanted(run: &Run, entry: &Entry) -> bool {
    run.case.as_ref().is_none_or(|name| name == entry.name)
}

fn worker(run: &Run, thread: u64, threads: u64, percent: u64) -> Counts {
    let mut counts = Counts::default();
    for (number, entry) in (0..).zip(&MODELS).filter(|(_, entry)| wanted(run, entry)) {
        let cases = (entry.cases * percent).div_ceil(100);
        for at in (0..cases).filter(|at| at % threads == thread) {
            let seed = case_seed(run.seed, number, at);
            case::playing(*entry, seed, &format!("{}/{seed:#x}", entry.name));
            let found = (entry.play)(seed, "");
            saw(1);
            if run.verbose {
                println!("{}/{seed:#x}: {found}", entry.name);
            }
            counts.add(&format!("{}_cases", entry.name), 1);
            counts.merge(&found.prefixed(entry.name));
        }
    }
    counts
}
