//! How a target is formatted and opened.

use crate::limits::Limits;
use cobalt_dma::Arena;
use uuid::Uuid;

/// How to format a target.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Identity of the new target; never used before.
    pub target: Uuid,
    /// The cluster that it belongs to.
    pub cluster: Uuid,
    /// The name people know it by, at most 64 bytes.
    pub name: String,
    /// Bytes of a tree node: a power of two from 4,096 to 32,768.
    pub node_size: u32,
    /// Bytes of the journal; `None` chooses by the meta region's size.
    pub journal: Option<u64>,
    /// Destroys what the device holds.
    pub force: bool,
}

impl FormatOptions {
    /// The defaults for a new target.
    pub fn new(target: Uuid, cluster: Uuid, name: impl Into<String>) -> FormatOptions {
        FormatOptions { target, cluster, name: name.into(), node_size: 16 << 10, journal: None, force: false }
    }
}

/// How to open a target.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The cluster that it must belong to; `None` takes any.
    pub cluster: Option<Uuid>,
    /// The target that it must be; `None` takes any.
    pub target: Option<Uuid>,
    /// Limits.
    pub limits: Limits,
    /// Writes nothing: the journal is replayed in memory only.
    pub read_only: bool,
    /// Memory for the I/O of journal, trees and superblocks, apart from that of payload: the targets of a
    /// process may share one, of [`crate::Limits::meta_arena`] each. `None` makes one for this target.
    pub meta_arena: Option<Arena>,
}
