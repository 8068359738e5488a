//! The cluster as the client sees it, for `status` and `health`.

use cobalt_rpc::proto::cas::CasStatus;
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
