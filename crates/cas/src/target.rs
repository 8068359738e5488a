//! What the collector asks of targets. The binary implements it with calls to the I/O services.

use cobalt_base::{Fid, SessionId};
use cobalt_rpc::proto::ios::{CobRow, IosError};
use futures::future::LocalBoxFuture;
use uuid::Uuid;

/// Why a target did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It cannot be reached, has failed, is busy: later.
    #[error("{0}")]
    Unavailable(String),
    /// It holds cobs of another catalogue: this one may have come back from the dead, and knows nothing of them.
    #[error("it holds cobs of catalogue incarnation {have}")]
    Incarnation { have: u64 },
}

impl From<IosError> for TargetError {
    fn from(error: IosError) -> TargetError {
        match error {
            IosError::Incarnation { have, .. } => TargetError::Incarnation { have },
            other => TargetError::Unavailable(other.to_string()),
        }
    }
}

/// The targets, wherever they are. Every call has a deadline of its own; all may be repeated.
pub trait Targets {
    /// Deletes cobs, durably; later writes of them are refused. Those that do not exist are deleted all the same.
    fn delete(
        &self,
        target: Uuid,
        fids: Vec<Fid>,
        incarnation: u64,
    ) -> LocalBoxFuture<'_, Result<(), TargetError>>;

    /// Ends every running write of a session and refuses later ones, durably.
    fn fence(&self, target: Uuid, session: SessionId) -> LocalBoxFuture<'_, Result<(), TargetError>>;

    /// Up to `limit` cobs from `from` on, in fid order; none when there are no more.
    fn list(
        &self,
        target: Uuid,
        from: Fid,
        limit: u32,
    ) -> LocalBoxFuture<'_, Result<Vec<CobRow>, TargetError>>;
}
