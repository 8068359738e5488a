//! Timers: deadlines in order, each with the waker of who waits.

use cobalt_base::Nanos;
use std::collections::BTreeMap;
use std::task::Waker;

#[derive(Default)]
pub(crate) struct Timers {
    next_id: u64,
    waiting: BTreeMap<(Nanos, u64), Waker>,
}

impl Timers {
    pub(crate) fn insert(&mut self, at: Nanos, waker: Waker) -> (Nanos, u64) {
        self.next_id += 1;
        self.waiting.insert((at, self.next_id), waker);
        (at, self.next_id)
    }

    pub(crate) fn update(&mut self, key: (Nanos, u64), waker: &Waker) {
        if let Some(place) = self.waiting.get_mut(&key) {
            place.clone_from(waker);
        }
    }

    pub(crate) fn remove(&mut self, key: (Nanos, u64)) {
        self.waiting.remove(&key);
    }

    pub(crate) fn next(&self) -> Option<Nanos> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes the wakers of all that is due.
    pub(crate) fn due(&mut self, now: Nanos, out: &mut Vec<Waker>) {
        while let Some(entry) = self.waiting.first_entry() {
            if entry.key().0 > now {
                break;
            }
            out.push(entry.remove());
        }
    }
}
