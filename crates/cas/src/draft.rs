//! A commit in the making: what it reads of the catalogue, what it has written so far (which its
//! own reads see), and why it stops. Commands are functions over a draft and nothing else, so that replay decides the
//! same again.

use crate::row::{BadRow, Row};
use crate::schema::meta;
use crate::{limits::ROW_MAX, schema};
use cobalt_rpc::proto::cas::CasError;
use cobalt_store::{CtgOp, CtgView, Miss};
use std::collections::BTreeMap;

/// Why a command has no outcome.
pub enum Stop {
    /// A node must be read first; the whole command runs again then.
    Miss(Miss),
    /// The answer is no. Stored like any other answer.
    Refused(CasError),
    /// The catalogue itself is damaged: nothing is decided, nothing is stored.
    Bad(BadRow),
}

impl From<Miss> for Stop {
    fn from(miss: Miss) -> Stop {
        Stop::Miss(miss)
    }
}

impl From<CasError> for Stop {
    fn from(error: CasError) -> Stop {
        Stop::Refused(error)
    }
}

impl From<BadRow> for Stop {
    fn from(bad: BadRow) -> Stop {
        Stop::Bad(bad)
    }
}

/// A commit in the making.
pub struct Draft<'v> {
    view: &'v CtgView,
    writes: BTreeMap<(u32, Vec<u8>), Option<Vec<u8>>>,
}

impl<'v> Draft<'v> {
    /// Nothing written yet.
    pub fn new(view: &'v CtgView) -> Draft<'v> {
        Draft { view, writes: BTreeMap::new() }
    }

    /// Index of this commit.
    pub fn index(&self) -> u64 {
        self.view.lsn().0
    }

    /// The row at `key`.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn get<R: Row>(&self, ctg: u32, key: &[u8]) -> Result<Option<R>, Stop> {
        let bytes = match self.writes.get(&(ctg, key.to_vec())) {
            Some(written) => written.clone(),
            None => self.view.get(ctg, key)?,
        };
        Ok(bytes.map(|bytes| R::decode(&bytes)).transpose()?)
    }

    /// Key and bytes of the first row at or after `from`, without what this draft wrote.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn next(&self, ctg: u32, from: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, Stop> {
        Ok(self.view.next(ctg, from)?)
    }

    /// Writes the row at `key`.
    ///
    /// # Errors
    /// [`CasError::TooLarge`] when no leaf takes it.
    pub fn put<R: Row>(&mut self, ctg: u32, key: Vec<u8>, row: &R) -> Result<(), Stop> {
        let value = row.encode();
        let size = key.len() + value.len() + size_of::<u32>();
        if size > ROW_MAX {
            let what = format!("a {} row of {size} bytes; {ROW_MAX} is the most", R::WHAT);
            return Err(CasError::TooLarge(what).into());
        }
        self.writes.insert((ctg, key), Some(value));
        Ok(())
    }

    /// Removes the row at `key`.
    pub fn delete(&mut self, ctg: u32, key: Vec<u8>) {
        self.writes.insert((ctg, key), None);
    }

    /// The counter `name`; zero when it was never written.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn counter(&self, name: &[u8]) -> Result<u64, Stop> {
        Ok(self.get(schema::META, name)?.unwrap_or(0))
    }

    /// Adds to the counter `name`; its new value.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn count(&mut self, name: &[u8], change: i64) -> Result<u64, Stop> {
        let value = self.counter(name)?.checked_add_signed(change).ok_or_else(|| BadRow {
            what: "meta",
            why: format!("counter {} falls below zero", String::from_utf8_lossy(name)),
        })?;
        self.put(schema::META, name.to_vec(), &value)?;
        Ok(value)
    }

    /// Adds an entry to the dead list at `index`, which is this commit's but for what an older entry stood for.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn bury(&mut self, index: u64, what: schema::DeadKey, pool: Option<u32>) -> Result<(), Stop> {
        let row = crate::row::DeadRow { pool, confirmed: Vec::new() };
        self.put(schema::DEAD, schema::dead(index, what), &row)?;
        if let schema::DeadKey::Fid(fid) = what {
            self.put(schema::FIDS, fid.to_key().to_vec(), &crate::row::FidRow::Dead { index })?;
        }
        self.count(meta::DEAD, 1)?;
        Ok(())
    }

    /// Forgets what was written.
    pub fn clear(&mut self) {
        self.writes.clear();
    }

    /// What the store is to do.
    pub fn into_ops(self) -> Vec<CtgOp> {
        let op = |((ctg, key), value)| match value {
            Some(value) => CtgOp::Put { ctg, key, value },
            None => CtgOp::Delete { ctg, key },
        };
        self.writes.into_iter().map(op).collect()
    }
}
