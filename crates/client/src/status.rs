//! The cluster as the client sees it, for `status` and `health`.

use crate::cas;
use crate::client::{Core, unexpected};
use cobalt_rpc::proto::cas::{Answer, At, CasStatus, Query};
use cobalt_rpc::proto::ios::TargetRow;
use cobalt_rpc::proto::record::PoolTarget;
use futures::future::join_all;
use serde::Serialize;
use uuid::Uuid;

/// The whole cluster.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClusterStatus {
    /// One line about where the catalogue is: "catalogue: 1 copy on t0; its loss loses all".
    pub catalogue: String,
    /// The catalogue's own state; absent while it does not answer.
    pub cas: Option<CasStatus>,
    /// Why the catalogue's state is absent.
    pub cas_error: Option<String>,
    /// N and K of new objects.
    pub data_units: u8,
    pub parity_units: u8,
    /// Version of the pool map; absent before the catalogue answered for the first time.
    pub pool: Option<u32>,
    /// Whether a target is down or failed, so that objects have fewer good units than they should.
    pub redundancy_short: bool,
    /// Whether new objects can be written now.
    pub writable: bool,
    /// Why not.
    pub not_writable: Option<String>,
    /// Whether the collector has nothing to do; absent while the catalogue does not answer.
    pub collector_idle: Option<bool>,
    /// This process's session, while it has one.
    pub session: Option<String>,
    /// Fids of failed PUTs that wait to be reported to the catalogue.
    pub dead_waiting: u64,
    pub processes: Vec<ProcessStatus>,
    pub targets: Vec<TargetStatus>,
}

/// A process.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessStatus {
    pub name: String,
    pub address: String,
    /// Whether it may hold the catalogue.
    pub cas: bool,
    pub up: bool,
    /// Why it is not up.
    pub why: Option<String>,
    /// The transport that really runs: "local", "tcp". Absent without a connection.
    pub transport: Option<String>,
}

/// A target of the pool, or one that a process serves beside it.
#[derive(Clone, Debug, Serialize)]
pub struct TargetStatus {
    pub target: Uuid,
    pub name: String,
    pub process: String,
    /// Whether the pool names it.
    pub in_pool: bool,
    pub up: bool,
    /// Why it is not up.
    pub why: Option<String>,
    pub backend: String,
    pub total: u64,
    pub free: u64,
    pub cobs: u64,
    pub counters: Vec<(String, u64)>,
}

/// Asks everybody. What does not answer in time is shown as down.
pub(crate) async fn gather(core: &Core) -> ClusterStatus {
    let asked = core.ctx.timeout(core.limits.probe_deadline, cas::ask(core, Query::Status));
    let rows = join_all(core.peers.iter().map(|peer| core.pool.probe(core, peer)));
    let (asked, rows) = futures::join!(asked, rows);
    let mut status = ClusterStatus {
        data_units: core.config.layout.data_units,
        parity_units: core.config.layout.parity_units,
        session: core.sessions.peek().map(|session| session.id.to_string()),
        dead_waiting: core.dead.waiting() as u64,
        ..ClusterStatus::default()
    };
    match asked {
        Ok(Ok(At { value: Answer::Status(cas), .. })) => {
            status.catalogue = catalogue(&cas);
            status.collector_idle = Some(cas.collector_idle);
            status.cas = Some(cas);
        }
        Ok(Ok(other)) => status.cas_error = Some(unexpected(&other.value).to_string()),
        Ok(Err(error)) => status.cas_error = Some(error.to_string()),
        Err(_) => status.cas_error = Some(core.cas.last_error()),
    }
    if let Some(error) = &status.cas_error {
        status.catalogue = format!("catalogue: not available: {error}");
    }
    let pool = core.pool.peek();
    status.pool = pool.as_ref().map(|pool| pool.version);
    let members = pool.as_ref().map_or(&[][..], |pool| &pool.targets);
    for (peer, rows) in core.peers.iter().zip(&rows) {
        status.processes.push(ProcessStatus {
            name: peer.peer.name().to_owned(),
            address: peer.address.clone(),
            cas: peer.cas,
            up: rows.is_ok(),
            why: rows.as_ref().err().cloned(),
            transport: peer.peer.status().transport.map(str::to_owned),
        });
        for row in rows.iter().flatten() {
            let in_pool = members.iter().any(|member| member.target == row.target);
            status.targets.push(target(peer.peer.name(), row, in_pool));
        }
    }
    for member in
        members.iter().filter(|m| !status.targets.iter().any(|t| t.target == m.target)).collect::<Vec<_>>()
    {
        let why = core.pool.trouble(core, member);
        status.targets.push(absent(member, why));
    }
    status.targets.sort_by(|a, b| a.name.cmp(&b.name));
    let down: Vec<&str> =
        status.targets.iter().filter(|t| t.in_pool && !t.up).map(|t| t.name.as_str()).collect();
    status.redundancy_short = !down.is_empty();
    let width = core.config.layout.width();
    let up = members.len() - down.len();
    status.not_writable = if status.session.is_none() {
        Some("the catalogue gave no session".to_owned())
    } else if up < width {
        Some(format!("{up} targets are up, and a PUT needs {width}; down: {}", down.join(", ")))
    } else {
        None
    };
    status.writable = status.not_writable.is_none();
    status
}

/// What everybody should know about the catalogue.
fn catalogue(cas: &CasStatus) -> String {
    match cas.replicas {
        0 | 1 => format!("catalogue: 1 copy on {}; its loss loses all", cas.target),
        copies => format!("catalogue: {copies} copies, leader on {}", cas.target),
    }
}

fn target(process: &str, row: &TargetRow, in_pool: bool) -> TargetStatus {
    TargetStatus {
        target: row.target,
        name: row.name.clone(),
        process: process.to_owned(),
        in_pool,
        up: row.failed.is_none(),
        why: row.failed.clone(),
        backend: row.backend.clone(),
        total: row.total,
        free: row.free,
        cobs: row.cobs,
        counters: row.counters.clone(),
    }
}

/// A target of the pool that no process answers for.
fn absent(member: &PoolTarget, why: Option<String>) -> TargetStatus {
    TargetStatus {
        target: member.target,
        name: member.name.clone(),
        process: member.process.clone(),
        in_pool: true,
        up: false,
        why: Some(why.unwrap_or_else(|| format!("process {} does not serve it", member.process))),
        backend: String::new(),
        total: 0,
        free: 0,
        cobs: 0,
        counters: Vec::new(),
    }
}
