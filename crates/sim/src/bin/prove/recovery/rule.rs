//! What must come of a combination: from what was durable, and from what is left to show it.
//!
//! It speaks of one target's parts. A part is there for it whole, or as a header that still says the truth, or
//! not at all; another target's part is nothing to it.

use super::history::{History, Past};
use super::parts::{Asked, Case, Part, State};
use cobalt_store::recovery_table::Decision;
use uuid::Uuid;

/// What a start must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Required {
    /// Refuse, for one of these reasons.
    Stop(Vec<Decision>),
    /// Start from this superblock, and keep everything up to this lsn.
    Open { target: Uuid, generation: u64, last: u64 },
}

/// What is left of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Whole,
    /// The header holds, the payload does not.
    Header,
    Nothing,
}

fn left(case: &Case, part: Part, foreign: bool) -> Left {
    match (case.state(part), foreign) {
        (State::Valid, false) | (State::Foreign, true) => Left::Whole,
        // Half of these two is more than a header; of the others, a header is all there is.
        (State::Torn, false) if matches!(part, Part::Middle | Part::Tail) => Left::Header,
        _ => Left::Nothing,
    }
}

pub fn required(history: &History, case: &Case) -> Required {
    let [newest, previous] = [case.state(Part::Newest), case.state(Part::Previous)];
    let any = |state: State| newest == state || previous == state;
    let stop = |decision| Required::Stop(vec![decision]);
    if any(State::Unreadable) {
        return stop(Decision::StopUnreadable);
    }
    if any(State::Newer) {
        return stop(Decision::StopNewer);
    }
    // Which generations are there, of which target?
    let there = |state: State, generation: u64| match state {
        State::Valid => Some((false, generation)),
        State::Old => Some((false, generation - 2)),
        State::Foreign => Some((true, generation)),
        _ => None,
    };
    let last_written = history.generation;
    let found: Vec<(bool, u64)> =
        [there(newest, last_written), there(previous, last_written - 1)].into_iter().flatten().collect();
    let Some((foreign, generation)) = found.iter().copied().max_by_key(|(_, generation)| *generation) else {
        let hurt = any(State::Torn) || any(State::Rotten);
        return stop(if hurt { Decision::StopNoSuperblock } else { Decision::StopNotFormatted });
    };
    if found.iter().any(|(other, _)| *other != foreign) {
        return stop(Decision::StopTwoTargets);
    }
    match case.asked {
        Asked::OtherCluster => return stop(Decision::StopForeignCluster),
        Asked::ShortData => return stop(Decision::StopWrongRegions),
        Asked::Right => {}
    }
    if case.ring_error {
        return stop(Decision::StopUnreadable);
    }
    if foreign && history.past == Past::Epoch {
        // Of the other target's records between its checkpoint and the head, this ring has none.
        return Required::Stop(vec![Decision::StopLost, Decision::StopUnnamed, Decision::StopOldSuperblock]);
    }
    let records = [Part::Head, Part::Middle, Part::Tail];
    let [head, middle, tail] = records.map(|part| left(case, part, foreign));
    let durable = left(case, Part::Durable, foreign);
    let any_left = [head, middle, tail, durable].iter().any(|left| *left != Left::Nothing);
    // Each record names the highest generation named so far. Of this target, those before the head name the one before.
    let named = match (any_left, foreign) {
        (true, _) => last_written,
        (false, false) => last_written - 1,
        (false, true) => 0,
    };
    if named > generation {
        return stop(Decision::StopOldSuperblock);
    }
    // Each header was written when everything before it was durable.
    let start = history.before_head;
    let shown = [(head, start), (middle, start + 1), (tail, start + 2), (durable, start + 3)];
    let shown = shown.iter().filter(|(left, _)| *left != Left::Nothing).map(|(_, lsn)| *lsn).max();
    let floor = shown.unwrap_or(start).max(start);
    let whole = [head, middle, tail].iter().take_while(|left| **left == Left::Whole).count() as u64;
    let mut last = start + whole;
    if last < floor {
        return stop(Decision::StopLost);
    }
    if foreign && head != Left::Whole {
        // Nothing in this ring names that target's superblock.
        return stop(Decision::StopUnnamed);
    }
    if generation < last_written && history.past == Past::Epoch && case.state(Part::Head) == State::Old {
        // The superblock that made it void is gone with all that would show it: it was written whole, and never
        // acknowledged. To keep it is as good as to drop it.
        last += 1;
    }
    Required::Open { target: history.target(foreign), generation, last }
}
