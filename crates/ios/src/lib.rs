//! The I/O service of a storage process: it writes, reads and deletes cobs on the targets of its process.
//!
//! Start with `write`: it is the table of the write path, top to bottom.

mod write;

mod read;

mod delete;
mod error;
mod limits;
mod service;
mod target;

pub use limits::Limits;
pub use service::{Ios, IosCounters};
pub use target::Target;
