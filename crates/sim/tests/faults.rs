//! Disks that go wrong, under the whole cluster; and the promise that a seed is a history.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use cobalt_sim::Fault;
use cobalt_sim::scenario::{Kind, Sights, run_kind};

#[test]
fn every_kind_of_trouble_keeps_the_promises() {
    let mut all = Sights::default();
    for (at, kind) in (0..).zip(Kind::ALL) {
        let mut seen = Sights::default();
        for seed in 10 * at..10 * at + 4 {
            match run_kind(seed, kind) {
                Ok(sights) => seen.add(&sights),
                Err(wrong) => panic!("{kind:?} of seed {seed}: {wrong}"),
            }
        }
        println!("{kind:?}: {seen}");
        all.add(&seen);
    }
    // A disk that dies is rarer than the runs of a test.
    for fault in Fault::ALL.into_iter().filter(|fault| *fault != Fault::Death) {
        assert!(all.faults.get(fault) > 0, "nothing was struck by {fault:?}: {all}");
    }
    assert!(all.puts > 200 && all.reads.answered > 500 && all.crashes > 10 && all.failed > 0, "{all}");
}

#[test]
fn one_seed_is_one_history_with_all_faults() {
    for seed in 0..2 {
        let (first, second) = (run_kind(seed, Kind::Everything), run_kind(seed, Kind::Everything));
        assert_eq!(first.unwrap(), second.unwrap(), "seed {seed}");
    }
    let hash = |seed| run_kind(seed, Kind::Everything).unwrap().hash;
    assert_ne!(hash(1), hash(2));
}
