//! The journal: a ring of records, each one group commit, that makes transactions durable before they
//! are applied (I6).

pub(crate) mod reader;
pub(crate) mod record;
pub(crate) mod ring;
pub(crate) mod scan;
pub mod table;
