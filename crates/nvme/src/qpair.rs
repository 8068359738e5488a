//! A queue pair: submission entries written into shared memory, doorbells rung once a turn, completions found by their
//! phase bit (Base 3.3.1, 4.1, 4.2).

use crate::function::{Function, Iova};
use crate::memory::{Maps, Shared, acquire, full, release};
use crate::spec::{Command, Completion, registers};
#[cfg(feature = "proof")]
use cobalt_base::canary::{Canary, planted};
use cobalt_dma::Arena;
use std::io;

/// Bytes of an entry of each queue.
const SQE: usize = size_of::<Command>();
const CQE: usize = size_of::<Completion>();

/// Exact counts of a queue pair's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Commands put into the queue.
    pub submitted: u64,
    /// Completions taken out of it.
    pub completed: u64,
    /// Times that [`QueuePair::ring`] told the controller of new commands: at most once a turn.
    pub rings: u64,
    /// Writes of the submission doorbell's register: fewer than `rings` with shadow doorbells.
    pub sq_writes: u64,
    /// Writes of the completion doorbell's register.
    pub cq_writes: u64,
}

/// One doorbell: its register, and the memory that stands for it where the controller looks there (Base 5.8).
struct Doorbell {
    register: usize,
    /// Byte of the shadow value and of the event index in their pages.
    shadow: usize,
    told: u32,
    /// The register is written in any case.
    always: bool,
}

/// The two pages of Doorbell Buffer Config.
pub struct ShadowDoorbells {
    pub values: Shared,
    pub events: Shared,
}

impl ShadowDoorbells {
    /// For all queues.
    ///
    /// # Errors
    /// The arena is full.
    pub fn new(maps: &Maps, arena: &Arena) -> io::Result<ShadowDoorbells> {
        Ok(ShadowDoorbells { values: Shared::new(maps, arena, 1)?, events: Shared::new(maps, arena, 1)? })
    }
}

/// A submission queue and its completion queue.
pub struct QueuePair {
    id: u16,
    entries: u32,
    sq: Shared,
    cq: Shared,
    tail: u32,
    head: u32,
    phase: bool,
    sq_doorbell: Doorbell,
    cq_doorbell: Doorbell,
    counters: QueueCounters,
}

impl QueuePair {
    /// Queues number `id` of `entries` each: one more than commands in flight, since a full queue cannot be told from an
    /// empty one.
    ///
    /// # Errors
    /// The arena is full.
    pub fn new(maps: &Maps, arena: &Arena, id: u16, entries: u32, stride: usize) -> io::Result<QueuePair> {
        let sq = Shared::new(maps, arena, entries as usize * SQE)?;
        let cq = Shared::new(maps, arena, entries as usize * CQE)?;
        let doorbell = |n: usize| Doorbell {
            register: registers::DOORBELLS + n * stride,
            shadow: n * stride,
            told: 0,
            always: id == 0,
        };
        let (sq_doorbell, cq_doorbell) = (doorbell(2 * usize::from(id)), doorbell(2 * usize::from(id) + 1));
        let counters = QueueCounters::default();
        Ok(QueuePair {
            id,
            entries,
            sq,
            cq,
            tail: 0,
            head: 0,
            phase: true,
            sq_doorbell,
            cq_doorbell,
            counters,
        })
    }

    /// As new. The device has let go of it.
    pub fn empty(&mut self) {
        for at in (0..self.entries as usize * CQE).step_by(8) {
            self.cq.write64(at, 0);
        }
        (self.tail, self.head, self.phase) = (0, 0, true);
        (self.sq_doorbell.told, self.cq_doorbell.told) = (0, 0);
    }

    /// Its number.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Entries of each queue.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Where the device finds the submission queue and the completion queue.
    pub fn iovas(&self) -> (Iova, Iova) {
        (self.sq.iova(), self.cq.iova())
    }

    /// The counters now.
    pub fn counters(&self) -> QueueCounters {
        self.counters
    }

    /// Puts a command into the queue; the controller hears of it with the next [`QueuePair::ring`]. There is room: the
    /// slots of commands are fewer than the entries.
    pub fn push(&mut self, command: &Command) {
        self.sq.write(self.tail as usize * SQE, command);
        self.tail = (self.tail + 1) % self.entries;
        self.counters.submitted += 1;
        assert_ne!(self.tail, self.sq_doorbell.told, "more commands than slots");
    }

    /// The next completion, if one has arrived.
    pub fn pop(&mut self) -> Option<Completion> {
        let at = self.head as usize * CQE;
        // The last word carries the phase: when it is there, so is the rest.
        let last = self.cq.read32(at + 12);
        let theirs = (last >> 16 & 1 != 0) != self.phase;
        #[cfg(feature = "proof")]
        let theirs = theirs && !planted(Canary::NvmeNoPhase);
        if theirs {
            return None;
        }
        acquire();
        let completion = self.cq.read::<Completion>(at);
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        self.counters.completed += 1;
        Some(completion)
    }

    /// Tells the controller of what was pushed and of what was taken.
    pub fn ring<F: Function>(&mut self, function: &F, shadow: Option<&ShadowDoorbells>) {
        if self.head != self.cq_doorbell.told && self.cq_doorbell.ring(function, shadow, self.head) {
            self.counters.cq_writes += 1;
        }
        if self.tail != self.sq_doorbell.told {
            self.counters.rings += 1;
            release();
            if self.sq_doorbell.ring(function, shadow, self.tail) {
                self.counters.sq_writes += 1;
            }
        }
    }

    /// Whether commands wait for a [`QueuePair::ring`].
    pub fn is_unrung(&self) -> bool {
        self.tail != self.sq_doorbell.told
    }
}

impl Doorbell {
    /// True if the register was written.
    fn ring<F: Function>(&mut self, function: &F, shadow: Option<&ShadowDoorbells>, value: u32) -> bool {
        let old = std::mem::replace(&mut self.told, value);
        if let Some(ShadowDoorbells { values, events }) = shadow {
            values.write32(self.shadow, value);
            // The controller looks at the shadow after it has written the event index: one of the two sees the other.
            full();
            // Of the admin queue some controllers look at the register alone.
            if !self.always && !is_due(events.read32(self.shadow), value, old) {
                return false;
            }
        }
        function.write32(self.register, value);
        true
    }
}

/// Whether the step from `old` to `new` goes past the value at which the controller wants to be told.
fn is_due(event: u32, new: u32, old: u32) -> bool {
    let (event, new, old) = (event as u16, new as u16, old as u16);
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::is_due;

    #[test]
    fn a_doorbell_is_due_when_the_step_passes_the_event_index() {
        assert!(is_due(0, 1, 0));
        assert!(is_due(3, 5, 2));
        assert!(!is_due(7, 5, 2), "it asked for later");
        assert!(!is_due(1, 5, 2), "it was told already");
        assert!(is_due(u32::from(u16::MAX), 1, u32::from(u16::MAX) - 1), "around the end");
    }
}
