//! The catalogues: transactions that race with conditions, gets and scans beside them, over a cache of a few
//! nodes, checkpoints and power cuts. Every decision sees all that is before it.

use super::case::Model;
use super::disk::Cut;
use super::op::{CTG_KEYS, Op};
use super::whole::play;
use crate::run::Counts;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, prop_oneof};

fn op() -> impl Strategy<Value = Op> {
    // A few keys that all want, and many.
    let key = || prop_oneof![1 => 0..4u16, 2 => 0..CTG_KEYS];
    let cut = (0..Cut::ALL.len()).prop_map(|at| Cut::ALL[at]);
    prop_oneof![
        40 => (key(), 0..700usize).prop_map(|(key, len)| Op::Turn { key, len }),
        12 => (key(), 1..60u16).prop_map(|(key, count)| Op::Sum { key, count }),
        3 => (key(), 1..200u16, 0..600usize).prop_map(|(key, count, len)| Op::Fill { key, count, len }),
        6 => (key(), 1..60u16).prop_map(|(key, count)| Op::Clear { key, count }),
        12 => key().prop_map(|key| Op::Get { key }),
        6 => (key(), 1..100u16).prop_map(|(key, count)| Op::Scan { key, count }),
        3 => Just(Op::Checkpoint),
        2 => (0..3000u64).prop_map(|us| Op::Pause { us }),
        1 => Just(Op::Settle),
        1 => cut.prop_map(|cut| Op::Crash { cut }),
    ]
}

pub struct CtgModel;

impl Model for CtgModel {
    type Op = Op;
    const NAME: &'static str = "ctg";
    const CASES: u64 = 500;
    const MEETS: &'static [&'static str] = &[
        "transacts",
        "gets",
        "scans",
        "splits",
        "merges",
        "evictions",
        "wraps",
        "checkpoints",
        "journal_full",
        "crashes",
    ];

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        vec(op(), 1..250)
    }

    fn play(seed: u64, ops: Vec<Op>) -> Counts {
        // Most have but the fewest nodes in memory: decisions load what they look at, again and again.
        play(seed, !seed.is_multiple_of(4), 12, ops)
    }
}
