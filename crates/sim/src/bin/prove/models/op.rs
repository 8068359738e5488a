//! What the model of the whole store may do: one call, one turn of its devices, or a look at everything.

use super::disk::{Cut, Error, Fault, Kind};
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};

/// Chunks that a cob of the model can have, and keys of its catalogues.
const CHUNKS: u64 = 14;
pub const CTG_KEYS: u16 = 500;

/// A cob: a session and a number in it, and whether its last incarnation or the one before, which was deleted or fenced.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    pub session: u64,
    pub number: u64,
    pub old: bool,
}

#[derive(Clone, Debug)]
pub enum Op {
    Write {
        cob: Name,
        chunk: u64,
        len: usize,
        give_up_us: Option<u64>,
    },
    /// Two cobs in one transaction, from a chunk each.
    Pair {
        a: (Name, u64),
        b: (Name, u64),
        len: usize,
    },
    Read {
        cob: Name,
        chunk: u64,
        chunks: u64,
    },
    Stat {
        cob: Name,
    },
    Delete {
        cob: Name,
        give_up_us: Option<u64>,
    },
    Fence {
        session: u64,
    },
    /// Puts a value if there is none, or another one, or deletes: as it finds it.
    Turn {
        key: u16,
        len: usize,
    },
    /// Writes the number of keys from one on that exist.
    Sum {
        key: u16,
        count: u16,
    },
    /// Puts so many keys from one on.
    Fill {
        key: u16,
        count: u16,
        len: usize,
    },
    /// Deletes up to so many keys from one on.
    Clear {
        key: u16,
        count: u16,
    },
    Get {
        key: u16,
    },
    Scan {
        key: u16,
        count: u16,
    },
    List {
        limit: usize,
    },
    Checkpoint,
    Pause {
        us: u64,
    },
    /// Waits for all calls, and looks at everything.
    Settle,
    Crash {
        cut: Cut,
    },
    Close,
    Fault {
        on_meta: bool,
        fault: Fault,
    },
    /// Writes until there is no room, then deletes all that.
    FillData,
    /// Puts entries until the meta region is full.
    FillMeta,
}

/// The cob of that session and number.
pub fn name_of(session: u64, number: u64) -> Name {
    Name { session, number, old: false }
}

fn name() -> impl Strategy<Value = Name> {
    (0..4u64, prop_oneof![3 => 0..2u64, 1 => 0..5u64], 0..12u8).prop_map(|(session, number, old)| Name {
        session,
        number,
        old: old == 0,
    })
}

/// More often than not near the start, where others have written.
fn chunk() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0..2u64, 1 => 0..CHUNKS]
}

fn fault() -> impl Strategy<Value = Fault> {
    let kind = prop_oneof![
        2 => Just(Kind::Read), 4 => Just(Kind::Write), 3 => Just(Kind::Flush), 1 => Just(Kind::Deallocate)
    ];
    let error = prop_oneof![2 => Just(Error::Failed), 1 => Just(Error::Gone), 1 => Just(Error::HostFull)];
    (kind, 0..12u64, any::<bool>(), error).prop_map(|(kind, at, forever, error)| Fault {
        kind,
        at,
        forever,
        error,
    })
}

/// Any of them, each as often as it finds something.
pub fn one() -> impl Strategy<Value = Op> {
    let give_up = || option::weighted(0.1, 0..400u64);
    let len = prop_oneof![2 => 1..4096usize, 3 => (1..7usize).prop_map(|n| n * 4096), 2 => 4097..40_000usize];
    let cut = (0..Cut::ALL.len()).prop_map(|at| Cut::ALL[at]);
    prop_oneof![
        40 => (name(), chunk(), len, give_up())
            .prop_map(|(cob, chunk, len, give_up_us)| Op::Write { cob, chunk, len, give_up_us }),
        30 => (name(), chunk(), prop_oneof![3 => 1..3u64, 1 => 1..8u64]).prop_map(|(cob, chunk, chunks)| Op::Read { cob, chunk, chunks }),
        2 => name().prop_map(|cob| Op::Stat { cob }),
        4 => (name(), give_up()).prop_map(|(cob, give_up_us)| Op::Delete { cob, give_up_us }),
        2 => (0..4u64).prop_map(|session| Op::Fence { session }),
        24 => (0..CTG_KEYS, 0..700usize).prop_map(|(key, len)| Op::Turn { key, len }),
        4 => (0..CTG_KEYS, 1..20u16).prop_map(|(key, count)| Op::Sum { key, count }),
        1 => (0..CTG_KEYS, 1..120u16, 0..600usize).prop_map(|(key, count, len)| Op::Fill { key, count, len }),
        3 => (0..CTG_KEYS, 1..40u16).prop_map(|(key, count)| Op::Clear { key, count }),
        4 => (0..CTG_KEYS).prop_map(|key| Op::Get { key }),
        3 => (0..CTG_KEYS, 1..60u16).prop_map(|(key, count)| Op::Scan { key, count }),
        2 => (1..30usize).prop_map(|limit| Op::List { limit }),
        3 => Just(Op::Checkpoint),
        6 => (0..3000u64).prop_map(|us| Op::Pause { us }),
        3 => Just(Op::Settle),
        4 => cut.prop_map(|cut| Op::Crash { cut }),
        1 => Just(Op::Close),
        4 => (any::<bool>(), fault()).prop_map(|(on_meta, fault)| Op::Fault { on_meta, fault }),
        1 => Just(Op::FillData),
    ]
}
