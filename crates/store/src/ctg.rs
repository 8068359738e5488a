//! Catalogues: ordered key-value indexes with conditions that are judged at commit time (I9).

use crate::error::StoreError;
use crate::store::Store;
use crate::tree::Miss;
use cobalt_base::Lsn;
use serde::{Deserialize, Serialize};

/// One change of a catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtgOp {
    Put { ctg: u32, key: Vec<u8>, value: Vec<u8> },
    Delete { ctg: u32, key: Vec<u8> },
}

/// The catalogues of a target.
#[derive(Clone)]
pub struct Ctg(pub(crate) Store);

/// What a decision sees: everything before it, pending or applied.
pub struct CtgView {}

impl Ctg {
    /// The value of a key; applied state only, so durable.
    pub async fn get(&self, _ctg: u32, _key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Err(StoreError::Closed)
    }

    /// Up to `limit` entries with `from` <= key < `until`, in order; applied state only.
    pub async fn scan(
        &self,
        _ctg: u32,
        _from: &[u8],
        _until: Option<&[u8]>,
        _limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        Err(StoreError::Closed)
    }

    /// Runs `decide` when the transaction takes its lsn, makes what it wants durable, and only then
    /// hands its answer out; a refusal (no ops) waits just the same. It may run several times: a node
    /// that is not in memory is loaded and the decision taken again.
    pub async fn transact<T: 'static>(
        &self,
        _decide: impl Fn(&CtgView) -> Result<(Vec<CtgOp>, T), Miss> + 'static,
    ) -> Result<(T, Lsn), StoreError> {
        Err(StoreError::Closed)
    }

    /// The last applied transaction.
    pub fn applied(&self) -> Lsn {
        Lsn(0)
    }
}

impl CtgView {
    /// The value of a key.
    pub fn get(&self, _ctg: u32, _key: &[u8]) -> Result<Option<Vec<u8>>, Miss> {
        Ok(None)
    }

    /// The first entry with a key at or after `from`.
    pub fn next(&self, _ctg: u32, _from: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, Miss> {
        Ok(None)
    }

    /// The lsn that the transaction takes.
    pub fn lsn(&self) -> Lsn {
        Lsn(0)
    }
}
