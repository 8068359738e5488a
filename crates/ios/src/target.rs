//! A target of the process: its store, or why it has none.

use crate::error::refusal;
use cobalt_rpc::proto::ios::{IosError, TargetRow};
use cobalt_store::Store;
use uuid::Uuid;

/// A target.
#[derive(Clone)]
pub struct Target {
    uuid: Uuid,
    name: String,
    backend: String,
    state: State,
}

#[derive(Clone)]
enum State {
    Open(Store),
    Failed(String),
}

impl Target {
    /// A target that was opened; `backend` names its device for people.
    pub fn open(uuid: Uuid, name: impl Into<String>, backend: impl Into<String>, store: Store) -> Target {
        Target { uuid, name: name.into(), backend: backend.into(), state: State::Open(store) }
    }

    /// A target that could not be opened. The process serves its others.
    pub fn failed(
        uuid: Uuid,
        name: impl Into<String>,
        backend: impl Into<String>,
        why: impl Into<String>,
    ) -> Target {
        Target { uuid, name: name.into(), backend: backend.into(), state: State::Failed(why.into()) }
    }

    /// Its identity.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its store.
    ///
    /// # Errors
    /// `TargetFailed` with the reason.
    pub fn store(&self) -> Result<&Store, IosError> {
        match &self.state {
            State::Open(store) => Ok(store),
            State::Failed(why) => Err(IosError::TargetFailed { name: self.name.clone(), why: why.clone() }),
        }
    }

    /// As `status` shows it.
    pub fn row(&self) -> TargetRow {
        let mut row = TargetRow {
            target: self.uuid,
            name: self.name.clone(),
            failed: None,
            backend: self.backend.clone(),
            total: 0,
            free: 0,
            cobs: 0,
            counters: Vec::new(),
        };
        match &self.state {
            State::Failed(why) => row.failed = Some(why.clone()),
            State::Open(store) => {
                let status = store.status();
                row.failed = status.failed;
                (row.total, row.free, row.cobs) = (status.space.total, status.space.free, status.cobs);
                row.counters = store
                    .counters()
                    .rows()
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), *value))
                    .collect();
            }
        }
        row
    }

    /// The store's error as the wire says it, about `bytes` bytes.
    pub(crate) fn refusal(&self, error: cobalt_store::StoreError, bytes: u64) -> IosError {
        refusal(&self.name, error, bytes)
    }
}
