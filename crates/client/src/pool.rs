//! The pool and its targets: which process serves a target, and whether it is up.

use crate::client::Core;
use crate::{ClientError, PeerConfig, cas};
use cobalt_base::Nanos;
use cobalt_rpc::proto::cas::{Answer, Query};
use cobalt_rpc::proto::ios::{ListTargets, TargetRow};
use cobalt_rpc::proto::record::{PoolMap, PoolTarget};
use cobalt_rpc::{CallError, Lend};
use futures::future::join_all;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// Versions of the pool, and what is known of the targets.
#[derive(Default)]
pub(crate) struct Pool {
    maps: RefCell<BTreeMap<u32, Rc<PoolMap>>>,
    /// What each process said of its targets last; an error when it did not answer.
    rows: RefCell<HashMap<String, Result<Vec<TargetRow>, String>>>,
    down: RefCell<HashMap<Uuid, Down>>,
}

/// A target that did not do its work.
struct Down {
    until: Nanos,
    why: String,
    /// For how long it was taken for down the last time.
    for_: Duration,
}

impl Pool {
    /// The newest version; asks for it when none is known.
    pub(crate) async fn newest(&self, core: &Core) -> Result<Rc<PoolMap>, ClientError> {
        if self.maps.borrow().is_empty() {
            self.refresh(core).await?;
        }
        self.peek()
            .ok_or_else(|| ClientError::Unavailable { what: "the cluster has no pool of targets yet".into() })
    }

    /// The newest version that is known.
    pub(crate) fn peek(&self) -> Option<Rc<PoolMap>> {
        self.maps.borrow().values().next_back().cloned()
    }

    /// Version `version`; asks when it is not known.
    pub(crate) async fn version(&self, core: &Core, version: u32) -> Result<Rc<PoolMap>, ClientError> {
        let known = self.maps.borrow().get(&version).cloned();
        if let Some(map) = known {
            return Ok(map);
        }
        self.refresh(core).await?;
        let known = self.maps.borrow().get(&version).cloned();
        known.ok_or_else(|| ClientError::Damaged {
            what: format!("the catalogue has no pool version {version}"),
        })
    }

    async fn refresh(&self, core: &Core) -> Result<(), ClientError> {
        if let Answer::Cluster { pools, .. } = cas::ask(core, Query::Cluster).await?.value {
            let pools = pools.into_iter().map(|pool| (pool.version, Rc::new(pool)));
            self.maps.borrow_mut().extend(pools);
        }
        Ok(())
    }

    /// Takes a target for down for a while, so that not every unit waits for it. One that does not answer at all costs a
    /// deadline each time it is tried, so the while doubles; one that is refused at once costs nothing.
    pub(crate) fn mark_down(&self, core: &Core, target: Uuid, trouble: Trouble, why: impl Into<String>) {
        let mut down = self.down.borrow_mut();
        let limits = &core.limits;
        let for_ = match (trouble, down.get(&target)) {
            (Trouble::Silent, Some(last)) => (last.for_ * 2).min(limits.down_max),
            (Trouble::Silent | Trouble::Away, _) => limits.down_for,
        };
        down.insert(target, Down { until: core.ctx.now() + for_, why: why.into(), for_ });
    }

    /// A target did its work.
    pub(crate) fn mark_up(&self, target: Uuid) {
        self.down.borrow_mut().remove(&target);
    }

    /// Why `target` cannot be used now; `None` when nothing speaks against it.
    pub(crate) fn trouble(&self, core: &Core, target: &PoolTarget) -> Option<String> {
        let named = |why: &str| format!("target {} on process {}: {why}", target.name, target.process);
        if core.peer(&target.process).is_none() {
            return Some(named("the configuration does not name the process"));
        }
        if let Some(down) = self.down.borrow().get(&target.target)
            && down.until > core.ctx.now()
        {
            return Some(named(&down.why));
        }
        match self.rows.borrow().get(&target.process) {
            None => None,
            Some(Err(why)) => Some(named(why)),
            Some(Ok(rows)) => match rows.iter().find(|row| row.target == target.target) {
                None => Some(named("the process does not serve it")),
                Some(row) => row.failed.as_ref().map(|why| named(why)),
            },
        }
    }

    /// Bytes that are free on `target`, when known.
    pub(crate) fn free(&self, target: &PoolTarget) -> Option<u64> {
        let rows = self.rows.borrow();
        let row = rows.get(&target.process)?.as_ref().ok()?.iter().find(|row| row.target == target.target)?;
        Some(row.free)
    }

    /// Asks a process for its targets.
    pub(crate) async fn probe(&self, core: &Core, peer: &PeerConfig) -> Result<Vec<TargetRow>, String> {
        let deadline = core.ctx.now() + core.limits.probe_deadline;
        let rows = peer.peer.call(&ListTargets {}, Lend::None, deadline).await;
        let rows = rows.map(|answer| answer.reply).map_err(|error| error.to_string());
        self.rows.borrow_mut().insert(peer.peer.name().to_owned(), rows.clone());
        rows
    }

    /// Asks again every process that serves one of `targets` and about which there is doubt.
    pub(crate) async fn recheck(&self, core: &Core, targets: &[PoolTarget]) {
        let doubtful = core.peers.iter().filter(|peer| {
            let serves = |target: &PoolTarget| target.process == peer.peer.name();
            let unknown = !self.rows.borrow().contains_key(peer.peer.name()) || !peer.peer.is_connected();
            targets.iter().any(|t| serves(t) && (unknown || self.trouble(core, t).is_some()))
        });
        join_all(doubtful.map(|peer| self.probe(core, peer))).await;
    }
}

/// How a target is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is known at once.
    Away,
    /// It is known after a deadline only.
    Silent,
}

impl Trouble {
    pub(crate) fn of<E: std::error::Error>(error: &CallError<E>) -> Trouble {
        match error {
            CallError::Deadline { .. } => Trouble::Silent,
            _ => Trouble::Away,
        }
    }
}

/// Keeps the picture of the pool fresh. Runs for ever.
pub(crate) async fn run(core: Rc<Core>) {
    loop {
        let pool = &core.pool;
        let (refreshed, _) = futures::join!(
            pool.refresh(&core),
            join_all(core.peers.iter().map(|peer| pool.probe(&core, peer)))
        );
        if let Err(error) = refreshed {
            tracing::debug!(%error, "the pool is not known newer");
        }
        core.ctx.sleep(core.limits.pool_refresh).await;
    }
}
