//! How far a check is.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

/// Bytes that were read of those that there are to read, as far as the superblock tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
    /// What is being read.
    pub what: &'static str,
}

/// Called often: it must be quick.
#[derive(Clone)]
pub struct ProgressFn(pub Rc<dyn Fn(Progress)>);

impl fmt::Debug for ProgressFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgressFn")
    }
}

/// Counts, and tells whoever asked.
pub(super) struct Meter {
    state: Cell<Progress>,
    tell: Option<ProgressFn>,
}

impl Meter {
    pub fn new(tell: Option<ProgressFn>) -> Rc<Meter> {
        Rc::new(Meter { state: Cell::default(), tell })
    }

    /// Begins with another kind of bytes, of which there are `more` to come.
    pub fn begin(&self, what: &'static str, more: u64) {
        let state = self.state.get();
        self.set(Progress { what, total: state.total + more, ..state });
    }

    pub fn add(&self, bytes: u64) {
        let state = self.state.get();
        self.set(Progress { done: state.done + bytes, ..state });
    }

    /// What was expected and did not come, or came and was not expected, is settled.
    pub fn end(&self) {
        let state = self.state.get();
        self.set(Progress { done: state.total, ..state });
    }

    fn set(&self, state: Progress) {
        let total = state.total.max(state.done);
        self.state.set(Progress { total, ..state });
        if let Some(tell) = &self.tell {
            (tell.0)(self.state.get());
        }
    }
}
