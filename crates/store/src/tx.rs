//! Transactions as proof values (I1): a write passes from [`Tx`] to [`SealedTx`], to [`DataStable`],
//! to [`Committed`]. Dropped at any point before its commit, it leaves no trace.

use crate::balloc::Reservation;
use crate::few::Pieces;
use crate::inline::Carried;
use crate::intent::Intent;
use crate::journal::ring::Room;
use crate::tree::{EpochGuard, Hint};
use cobalt_base::Lsn;
use smallvec::SmallVec;
use std::rc::Rc;

/// What a transaction is for. Journal space is kept back for the later classes, so that a full
/// target can still be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TxClass {
    /// A write.
    Write,
    /// A catalogue change.
    Cas,
    /// A delete or a fence.
    Delete,
    /// The naming of a checkpoint.
    Checkpoint,
}

/// Consecutive blocks of the data region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Extent {
    /// First block.
    pub start: u64,
    /// Blocks.
    pub blocks: u32,
}

/// Blocks reserved by a transaction, in the order in which its bytes fill them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents(pub(crate) Pieces);

impl Extents {
    /// The pieces.
    pub fn pieces(&self) -> &[Extent] {
        &self.0
    }

    /// Blocks in all pieces.
    pub fn blocks(&self) -> u64 {
        self.0.iter().map(|e| u64::from(e.blocks)).sum()
    }
}

/// What a transaction reserved.
pub(crate) type Reservations = SmallVec<[Rc<Reservation>; 1]>;

/// Where the rows of a map were found: in the tree of cobs, and in the extent map.
pub(crate) type Leaves = [Option<Hint>; 2];

/// An open transaction. Dropping it drops its reservations and leaves no trace.
#[must_use = "dropping a transaction gives it up"]
pub struct Tx {
    pub(crate) id: u64,
    pub(crate) class: TxClass,
    pub(crate) data_max: u64,
    /// Its record has room for its data.
    pub(crate) small: bool,
    pub(crate) intents: Vec<Intent>,
    pub(crate) reservations: Reservations,
    pub(crate) room: Room,
    pub(crate) epoch: EpochGuard,
    /// The leaves that have the rows of its first map, of cob and extent map.
    pub(crate) leaves: Leaves,
    /// The cob that was looked up last: new blocks go next to its old ones.
    pub(crate) near: Option<cobalt_base::Fid>,
}

/// A closed transaction: its write set is final. Dropping it leaves no trace.
#[must_use = "dropping a transaction gives it up"]
pub struct SealedTx {
    pub(crate) tx: Tx,
}

/// Proof that the bytes of one transaction are durable no later than its record: on the data device
/// already, or within that record, which this carries them to.
#[must_use = "a proof that nobody takes proves nothing"]
pub struct DataStable {
    pub(crate) tx: u64,
    pub(crate) carried: Option<Carried>,
}

/// Proof that a transaction is durable and applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub(crate) lsn: Lsn,
}

impl Committed {
    /// The transaction's place in the order of all.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }
}
