//! One target's storage engine: a journal that makes transactions durable, trees that hold what they
//! say, an allocator of data blocks, and the recovery that puts it all together after a crash.
//!
//! The modules follow the write path. A write opens a transaction, looks its cob up, claims blocks,
//! records the extent and closes (`tx`, `data`); the bytes go to the device; the transaction takes its
//! lsn, is judged against everything before it, becomes durable and is applied (`commit`, `apply`).

mod counters;
mod error;
mod limits;
mod options;
mod region;
mod store;

mod alloc_rows;
mod apply;
mod balloc;
mod cob;
mod commit;
mod ctg;
mod data;
mod few;
mod inline;
mod intent;
mod journal;
mod numbers;
mod read;
mod schema;
mod stage;
mod trim;
mod tx;

pub mod checkpoint;
mod checkpointer;
mod chore;
mod dump;
mod format;
mod fsck;
pub mod geometry;
mod inspect;
mod opening;
mod recovery;
mod verdict;

#[cfg(feature = "proof")]
pub mod parsers;
mod points;
#[cfg(feature = "proof")]
pub mod proof;
pub mod superblock;
#[cfg(test)]
mod tests;
pub mod tree;

pub use cob::{Cob, CobAttrs, CobData, CobInfo};
pub use counters::{Space, StoreCounters, StoreStatus};
pub use ctg::{Ctg, CtgOp, CtgView};
pub use dump::{RecordRow, TreeRow, dump_journal};
pub use error::{FormatError, OpenError, StoreError};
pub use fsck::{
    At, FINDINGS_MAX, Finding, FindingKind, FsckOptions, FsckReport, LostKeys, Progress, ProgressFn, Side,
    TOUCHED_MAX, Touched, fsck,
};
pub use geometry::Region;
pub use inspect::{GroupRow, Inspection, Item, NodeChild, NodeView, Rows, Skipped};
pub use journal::table as recovery_table;
pub use limits::{Limits, META_ARENA, Placement};
pub use options::{FormatOptions, OpenOptions};
pub use region::Regions;
pub use store::{Store, format};
pub use tree::Miss;
pub use tx::{Committed, DataStable, Extent, Extents, SealedTx, Tx, TxClass};
