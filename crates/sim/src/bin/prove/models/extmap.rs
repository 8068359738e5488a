//! The extent map: a few cobs written over and over, in pieces of every length, appended, with holes, in
//! transactions of two maps, deleted in steps; every read beside the bytes that were written.

use super::case::Model;
use super::disk::Cut;
use super::op::{Op, name_of};
use super::whole::play;
use crate::run::Counts;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, prop_oneof};

const CHUNKS: u64 = 60;

fn op() -> impl Strategy<Value = Op> {
    let cob = || (0..2u64, 0..3u64).prop_map(|(session, number)| name_of(session, number));
    let chunk = || prop_oneof![3 => 0..12u64, 1 => 0..CHUNKS];
    let len =
        || prop_oneof![3 => 1..4097usize, 3 => (1..12usize).prop_map(|n| n * 4096), 2 => 4097..60_000usize];
    let cut = (0..Cut::ALL.len()).prop_map(|at| Cut::ALL[at]);
    prop_oneof![
        40 => (cob(), chunk(), len())
            .prop_map(|(cob, chunk, len)| Op::Write { cob, chunk, len, give_up_us: None }),
        8 => (cob(), chunk(), cob(), chunk(), len()).prop_map(|(a, at_a, b, at_b, len)| Op::Pair {
            a: (a, at_a),
            b: (b, at_b),
            len,
        }),
        20 => (cob(), chunk(), 1..9u64).prop_map(|(cob, chunk, chunks)| Op::Read { cob, chunk, chunks }),
        3 => cob().prop_map(|cob| Op::Delete { cob, give_up_us: None }),
        1 => Just(Op::FillData),
        2 => Just(Op::Checkpoint),
        2 => (0..3000u64).prop_map(|us| Op::Pause { us }),
        3 => Just(Op::Settle),
        1 => cut.prop_map(|cut| Op::Crash { cut }),
    ]
}

pub struct ExtmapModel;

impl Model for ExtmapModel {
    type Op = Op;
    const NAME: &'static str = "extmap";
    const CASES: u64 = 500;
    const MEETS: &'static [&'static str] = &[
        "writes",
        "pairs",
        "reads",
        "missing",
        "deletes",
        "chore_steps",
        "no_space",
        "group_full",
        "trims",
        "crashes",
    ];

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        vec(op(), 1..120)
    }

    fn play(seed: u64, ops: Vec<Op>) -> Counts {
        play(seed, seed.is_multiple_of(3), 1 + seed as usize % 3, ops)
    }
}
