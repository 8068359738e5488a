//! How far a check is.

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
