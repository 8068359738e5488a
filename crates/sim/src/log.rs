//! What happened, as one number: two runs of one seed must give the same.

use cobalt_base::checksum::xxh3;
use cobalt_reactor::Ctx;
use std::cell::Cell;
use std::rc::Rc;

/// A running hash over all events, each with its time.
#[derive(Clone, Default)]
pub struct EventLog(Rc<Log>);

#[derive(Default)]
struct Log {
    hash: Cell<u64>,
    events: Cell<u64>,
}

impl EventLog {
    /// Notes an event.
    pub fn note(&self, ctx: &Ctx, what: &str, numbers: &[u64]) {
        let mut bytes = what.as_bytes().to_vec();
        bytes.extend_from_slice(&ctx.now().0.to_le_bytes());
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.0.hash.set(xxh3(self.0.hash.get(), &bytes));
        self.0.events.set(self.0.events.get() + 1);
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.0.hash.get()
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.0.events.get()
    }
}
