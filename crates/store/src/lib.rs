//! One target's storage engine: a journal that makes transactions durable, trees that hold what they
//! say, an allocator of data blocks, and the recovery that puts it all together after a crash.
//!
//! The modules follow the write path. A write opens a transaction, looks its cob up, claims blocks,
//! records the extent and closes (`tx`); the bytes go to the device (`data`); the transaction takes its
//! lsn, is judged against everything before it, becomes durable and is applied (`commit`).

mod counters;
mod error;
mod limits;
mod options;
mod region;
mod store;

mod cob;
mod ctg;
mod tx;

pub mod checkpoint;
pub mod geometry;
pub mod superblock;
pub mod tree;

pub use cob::{Cob, CobAttrs, CobData, CobInfo};
pub use counters::{Space, StoreCounters, StoreStatus};
pub use ctg::{Ctg, CtgOp, CtgView};
pub use error::{FormatError, OpenError, StoreError};
pub use geometry::Region;
pub use limits::Limits;
pub use options::{FormatOptions, OpenOptions};
pub use region::Regions;
pub use store::{Store, format};
pub use tree::Miss;
pub use tx::{Committed, DataStable, Extent, Extents, SealedTx, Tx, TxClass};
