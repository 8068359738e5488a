//! `COBALT_HALT_AT=STEP[:COUNT]`: stops the process at the COUNT-th pass of a step of the write path, so that a
//! test can kill it exactly there. SIGSTOP, since nothing in the process may go on.

use crate::cli::{Code, Failure};
use cobalt_reactor::Step;
use nix::sys::signal::{Signal, raise};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable.
const VARIABLE: &str = "COBALT_HALT_AT";

/// A halt that was asked for. Clones count together.
#[derive(Clone, Debug)]
pub struct Halt {
    step: u8,
    left: Arc<AtomicU64>,
}

impl Halt {
    /// What the environment asks for.
    ///
    /// # Errors
    /// Exit code 2 for a value that names no step.
    pub fn from_env() -> Result<Option<Halt>, Failure> {
        match std::env::var(VARIABLE) {
            Ok(text) => Halt::parse(&text).map(Some),
            Err(_) => Ok(None),
        }
    }

    fn parse(text: &str) -> Result<Halt, Failure> {
        let (step, count) = text.split_once(':').unwrap_or((text, "1"));
        let step = step.parse().ok().filter(|n| Step::ALL.iter().any(|s| s.number() == *n));
        let count = count.parse().ok().filter(|n| *n > 0);
        match (step, count) {
            (Some(step), Some(count)) => Ok(Halt { step, left: Arc::new(AtomicU64::new(count)) }),
            _ => Err(Failure::new(format!("{VARIABLE}={text} names no step"))
                .hint("write STEP or STEP:COUNT, with a step from 1 to 16")
                .code(Code::Usage)),
        }
    }

    /// Counts a pass of a step on the reactor; stops the process at the one that was asked for.
    pub fn pass(&self, step: Step) {
        self.pass_number(step.number());
    }

    /// The same, of a step above the reactor, which the gateway knows by its number.
    pub fn pass_number(&self, step: u8) {
        if self.due(step) {
            eprintln!("halted step={}", self.step);
            // To this thread: it goes no further, and the others stop with it.
            if let Err(e) = raise(Signal::SIGSTOP) {
                eprintln!("error: cannot stop: {e}");
            }
        }
    }

    fn due(&self, step: u8) -> bool {
        step == self.step
            && self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1)) == Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::Halt;
    use cobalt_reactor::Step;

    #[test]
    fn a_halt_is_due_once_at_its_count() {
        let halt = Halt::parse("13:2").unwrap();
        let passes = [Step::JournalWrite, Step::DataWrite, Step::JournalWrite, Step::JournalWrite];
        assert_eq!(passes.map(|s| halt.due(s.number())), [false, false, true, false]);
        assert!(Halt::parse("5").unwrap().due(Step::TxOpen.number()));
        for bad in ["", "0", "17", "5:0", "5:x", "x"] {
            assert!(Halt::parse(bad).is_err(), "{bad}");
        }
    }
}
