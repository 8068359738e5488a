//! Reading the catalogues outside of a commit: applied state only, so everything seen is durable.

use crate::draft::{Draft, Stop};
use crate::row::{BadRow, Row};
use cobalt_rpc::proto::cas::CasError;
use cobalt_store::{Ctg, CtgView, StoreError};
use std::cell::Cell;

/// Typed reads of the catalogues, and commits.
pub struct Table {
    ctg: Ctg,
    rows_read: Cell<u64>,
}

/// What the catalogue answers when its target cannot.
pub fn store_error(error: StoreError) -> CasError {
    match error {
        StoreError::Busy => CasError::Busy,
        StoreError::MetaFull | StoreError::HostFull | StoreError::NoSpace { .. } => CasError::Full,
        other => CasError::Failed(other.to_string()),
    }
}

impl From<BadRow> for TableError {
    fn from(bad: BadRow) -> TableError {
        TableError(CasError::Failed(bad.to_string()))
    }
}

impl From<StoreError> for TableError {
    fn from(error: StoreError) -> TableError {
        TableError(store_error(error))
    }
}

/// Why a read failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableError(pub CasError);

impl From<TableError> for CasError {
    fn from(error: TableError) -> CasError {
        error.0
    }
}

impl Table {
    /// The catalogues of a store.
    pub fn new(ctg: Ctg) -> Table {
        Table { ctg, rows_read: Cell::new(0) }
    }

    /// Rows that scans have read.
    pub fn rows_read(&self) -> u64 {
        self.rows_read.get()
    }

    /// The row at `key`.
    pub async fn get<R: Row>(&self, ctg: u32, key: &[u8]) -> Result<Option<R>, TableError> {
        let bytes = self.ctg.get(ctg, key).await?;
        Ok(bytes.map(|bytes| R::decode(&bytes)).transpose()?)
    }

    /// Rows with `from` <= key < `until`, at most `limit`.
    pub async fn scan<R: Row>(
        &self,
        ctg: u32,
        from: &[u8],
        until: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, R)>, TableError> {
        let rows = self.ctg.scan(ctg, from, until, limit).await?;
        self.rows_read.set(self.rows_read.get() + rows.len() as u64);
        rows.into_iter().map(|(key, value)| Ok((key, R::decode(&value)?))).collect()
    }

    /// A counter of the meta catalogue.
    pub async fn counter(&self, name: &[u8]) -> Result<u64, TableError> {
        Ok(self.get(crate::schema::META, name).await?.unwrap_or(0))
    }
}

impl Table {
    /// One commit. What `decide` answers, a refusal too, is handed out when it and everything before it is durable.
    pub async fn transact<T: 'static>(
        &self,
        decide: impl Fn(&mut Draft<'_>) -> Result<T, Stop> + 'static,
    ) -> Result<T, CasError> {
        let decide = move |view: &CtgView| {
            let mut draft = Draft::new(view);
            match decide(&mut draft) {
                Ok(value) => Ok((draft.into_ops(), Ok(value))),
                Err(Stop::Miss(miss)) => Err(miss),
                Err(Stop::Refused(error)) => Ok((Vec::new(), Err(error))),
                Err(Stop::Bad(bad)) => Ok((Vec::new(), Err(CasError::Failed(bad.to_string())))),
            }
        };
        let (value, _) = self.ctg.transact(decide).await.map_err(store_error)?;
        value
    }

    /// Index of the last commit that a read from now on reflects.
    pub fn applied(&self) -> u64 {
        self.ctg.applied().0
    }
}
