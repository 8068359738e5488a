//! What can be hurt, how, and one combination of that.

use super::history::{CLUSTER, OTHER_CLUSTER, Past};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// Where damage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Both copies of the newest superblock, and of the one before.
    Newest,
    Previous,
    /// The root of a tree that the newest superblock refers to.
    Root,
    /// The first record after the checkpoint: it names the newest superblock.
    Head,
    Middle,
    Tail,
    /// The empty record that says that the tail is durable.
    Durable,
}

/// Parts.
pub const PARTS: usize = 7;

impl Part {
    pub const ALL: [Part; PARTS] =
        [Part::Newest, Part::Previous, Part::Root, Part::Head, Part::Middle, Part::Tail, Part::Durable];
}

/// What it is then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Valid,
    /// Half of it is new, half is what was there before.
    Torn,
    /// What was there before.
    Old,
    /// A bit is flipped.
    Rotten,
    /// What another target has there.
    Foreign,
    /// Zeros.
    Missing,
    /// Whole, of a newer format. Superblocks only.
    Newer,
    /// The device gives an error.
    Unreadable,
}

impl State {
    pub const SUPERBLOCK: [State; 8] = [
        State::Valid,
        State::Torn,
        State::Old,
        State::Rotten,
        State::Foreign,
        State::Missing,
        State::Newer,
        State::Unreadable,
    ];
    pub const OTHER: [State; 6] =
        [State::Valid, State::Torn, State::Old, State::Rotten, State::Foreign, State::Missing];
}

/// What the start is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// What is there.
    Right,
    /// Another cluster's target.
    OtherCluster,
    /// It is given a data region that is too short.
    ShortData,
}

impl Asked {
    const ALL: [Asked; 3] = [Asked::Right, Asked::OtherCluster, Asked::ShortData];

    pub fn cluster(self) -> Uuid {
        if self == Asked::OtherCluster { OTHER_CLUSTER } else { CLUSTER }
    }
}

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub past: Past,
    pub asked: Asked,
    states: [State; PARTS],
    /// The first block of the ring cannot be read.
    pub ring_error: bool,
}

impl Case {
    /// With these superblocks and nothing else hurt.
    pub fn first(past: Past, newest: State, previous: State) -> Case {
        let mut states = [State::Valid; PARTS];
        states[Part::Newest as usize] = newest;
        states[Part::Previous as usize] = previous;
        Case { past, asked: Asked::Right, states, ring_error: false }
    }

    /// All with the same superblocks.
    pub fn all(self) -> impl Iterator<Item = Case> {
        let digits = PARTS - 2;
        let base = State::OTHER.len();
        let hurt = (0..base.pow(5)).map(move |mut n| {
            let mut case = self;
            for state in case.states.iter_mut().rev().take(digits) {
                *state = State::OTHER[n % base];
                n /= base;
            }
            case
        });
        // What does not depend on the parts goes with few of them.
        let asked = Asked::ALL.into_iter().skip(1).map(move |asked| {
            let mut case = self;
            case.asked = asked;
            case
        });
        let mut unreadable = self;
        unreadable.ring_error = true;
        hurt.chain(asked).chain([unreadable])
    }

    pub fn state(&self, part: Part) -> State {
        self.states[part as usize]
    }

    /// How many parts are hurt.
    pub fn hurt(&self) -> usize {
        self.states.iter().filter(|state| **state != State::Valid).count() + usize::from(self.ring_error)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?},{:?},{}", self.past, self.asked, self.ring_error)?;
        self.states.iter().try_for_each(|state| write!(f, ",{state:?}"))
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Case, String> {
        fn named<T: Copy + fmt::Debug>(all: &[T], name: Option<&str>) -> Result<T, String> {
            let known = all.iter().copied().find(|one| name == Some(format!("{one:?}").as_str()));
            known.ok_or_else(|| format!("{name:?} is none of {all:?}"))
        }
        let mut words = text.split(',');
        let past = named(&Past::ALL, words.next())?;
        let asked = named(&Asked::ALL, words.next())?;
        let ring_error = named(&[false, true], words.next())?;
        let mut states = [State::Valid; PARTS];
        for state in &mut states {
            *state = named(&State::SUPERBLOCK, words.next())?;
        }
        Ok(Case { past, asked, states, ring_error })
    }
}
