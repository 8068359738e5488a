//! The targets as the collector reaches them: by calls to the I/O services of their processes.

use crate::{TargetError, Targets};
use cobalt_base::{Fid, SessionId};
use cobalt_reactor::Ctx;
use cobalt_rpc::proto::ios::{CobRow, Delete, Fence, IosError, ListCobs};
use cobalt_rpc::{CallError, Lend, Peer, Request};
use futures::future::LocalBoxFuture;
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// Time for one call: a delete may wait for journal space behind a checkpoint.
const DEADLINE: Duration = Duration::from_secs(10);

/// Every target of the configuration, with the peer that serves it.
pub struct RemoteTargets {
    /// Of the reactor that the peers live on.
    pub ctx: Ctx,
    /// The peer that serves a target.
    pub peers: BTreeMap<Uuid, Peer>,
}

impl RemoteTargets {
    async fn call<R: Request<Error = IosError>>(
        &self,
        target: Uuid,
        request: R,
    ) -> Result<R::Reply, TargetError> {
        let Some(peer) = self.peers.get(&target) else {
            return Err(TargetError::Unavailable("no process of the configuration serves it".into()));
        };
        match peer.call(&request, Lend::None, self.ctx.now() + DEADLINE).await {
            Ok(answer) => Ok(answer.reply),
            Err(CallError::Service(refusal)) => Err(refusal.into()),
            Err(other) => Err(TargetError::Unavailable(other.to_string())),
        }
    }
}

impl Targets for RemoteTargets {
    fn delete(
        &self,
        target: Uuid,
        fids: Vec<Fid>,
        incarnation: u64,
    ) -> LocalBoxFuture<'_, Result<(), TargetError>> {
        Box::pin(self.call(target, Delete { target, fids, incarnation }))
    }

    fn fence(&self, target: Uuid, session: SessionId) -> LocalBoxFuture<'_, Result<(), TargetError>> {
        Box::pin(self.call(target, Fence { target, session }))
    }

    fn list(
        &self,
        target: Uuid,
        from: Fid,
        limit: u32,
    ) -> LocalBoxFuture<'_, Result<Vec<CobRow>, TargetError>> {
        Box::pin(self.call(target, ListCobs { target, from, limit }))
    }
}
