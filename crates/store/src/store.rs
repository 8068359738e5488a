//! The open target.

use crate::cob::{Cob, CobAttrs, CobData, CobInfo};
use crate::counters::{Space, StoreCounters, StoreStatus};
use crate::ctg::Ctg;
use crate::error::{FormatError, OpenError, StoreError};
use crate::options::{FormatOptions, OpenOptions};
use crate::region::Regions;
use crate::tx::{Committed, DataStable, Extents, SealedTx, Tx, TxClass};
use cobalt_base::{Fid, SessionId};
use cobalt_dma::{Arena, Slice};
use cobalt_reactor::Ctx;
use std::rc::Rc;

/// An open target. Clones are handles to it.
#[derive(Clone)]
pub struct Store(pub(crate) Rc<Core>);

pub(crate) struct Core {}

/// Makes a target of two regions.
///
/// # Errors
/// [`FormatError`]; nothing was written when it says `InUse`, `TooSmall` or `Invalid`.
pub async fn format(_: &Ctx, _: &Regions, _: &Arena, _: &FormatOptions) -> Result<(), FormatError> {
    Err(FormatError::Invalid("not built yet".into()))
}

impl Store {
    /// Opens a target: recovers it, then starts its background work.
    ///
    /// # Errors
    /// [`OpenError`], a verdict that says what to do.
    pub async fn open(_: Ctx, _: Regions, _: Arena, _: OpenOptions) -> Result<Store, OpenError> {
        Err(OpenError::NotFormatted { why: "not built yet".into() })
    }
    pub async fn close(&self) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn tx_open(&self, _: TxClass, _data_bytes: u64) -> Result<Tx, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn cob_lookup(&self, _: &mut Tx, _: Fid, _: CobAttrs) -> Result<Cob, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn balloc(&self, _: &mut Tx, _bytes: u64) -> Result<Extents, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn extmap(
        &self,
        _: &mut Tx,
        _: &Cob,
        _offset: u64,
        _len: u64,
        _: &Extents,
        _crcs: &[u32],
    ) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub fn tx_close(&self, tx: Tx) -> SealedTx {
        SealedTx { tx }
    }
    pub async fn data_write(&self, _: &SealedTx, _: &[Slice]) -> Result<DataStable, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn commit(&self, _: SealedTx, _: DataStable) -> Result<Committed, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn cob_read(&self, _: Fid, _offset: u64, _len: u64) -> Result<CobData, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn cob_stat(&self, _: Fid) -> Result<Option<CobInfo>, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn cob_next(&self, _from: Fid, _limit: usize) -> Result<Vec<(Fid, CobInfo)>, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn cob_delete(&self, _: Fid) -> Result<Committed, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn fence(&self, _: SessionId) -> Result<Committed, StoreError> {
        Err(StoreError::Closed)
    }
    pub fn space(&self) -> Space {
        Space::default()
    }
    pub fn status(&self) -> StoreStatus {
        StoreStatus {
            target: uuid::Uuid::nil(),
            cluster: uuid::Uuid::nil(),
            name: String::new(),
            failed: None,
            generation: 0,
            epoch: 0,
            applied: cobalt_base::Lsn(0),
            journal: 0,
            journal_used: 0,
            dirty_bytes: 0,
            cobs: 0,
            space: Space::default(),
        }
    }
    pub fn counters(&self) -> StoreCounters {
        StoreCounters::default()
    }
    pub fn ctg(&self) -> Ctg {
        Ctg(self.clone())
    }
}
