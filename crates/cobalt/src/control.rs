//! What goes over a process's Unix socket: one request a connection, one line of JSON each way.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    Report,
    /// The NVMe controllers that it drives, each asked how it is.
    Controllers,
    KeyCreate {
        account: String,
    },
    KeyList,
    KeyEnable {
        access_key: String,
        enabled: bool,
    },
    KeyDelete {
        access_key: String,
    },
}

/// An answer. No `Debug`: one of them carries a secret, which no message may print.
#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    Report(Box<Report>),
    Controllers { controllers: Vec<Controller> },
    KeyCreated { access_key: String, secret_key: String, s3: Option<String>, region: String },
    Keys { keys: Vec<Key> },
    Done,
    Refused { error: String, hint: Option<String> },
}

impl Response {
    /// What kind of answer it is, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Response::Report(_) => "a report",
            Response::Controllers { .. } => "a list of controllers",
            Response::KeyCreated { .. } => "a new key",
            Response::Keys { .. } => "a list of keys",
            Response::Done => "done",
            Response::Refused { .. } => "a refusal",
        }
    }
}

/// A credential without its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Key {
    pub access_key: String,
    pub account: String,
    pub enabled: bool,
    /// Milliseconds since 1970.
    pub created: u64,
}

/// A process, as it sees itself and the cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub process: String,
    pub pid: u32,
    pub version: String,
    pub s3: Option<String>,
    pub admin: Option<String>,
    /// Its own targets.
    pub targets: Vec<Target>,
    /// Exact counts of this process since its start.
    pub counters: BTreeMap<String, u64>,
    pub arena: Arena,
    /// What its client sees, in a process that has one.
    pub view: Option<View>,
}

/// Payload memory, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Arena {
    pub limit: u64,
    pub in_use: u64,
    pub high_water: u64,
    pub locked: bool,
    pub huge: bool,
}

/// A target of a process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Target {
    pub name: String,
    pub process: String,
    pub target: Option<Uuid>,
    pub device: String,
    /// Whether it serves.
    pub up: bool,
    /// Why not.
    pub why: Option<String>,
    /// What really runs below it.
    pub backend: String,
    pub total: u64,
    pub used: u64,
    pub free: u64,
    pub reserved: u64,
    pub cobs: u64,
    pub generation: u64,
    pub applied: u64,
    pub journal: u64,
    pub journal_used: u64,
    pub counters: BTreeMap<String, u64>,
}

/// An NVMe controller, as the process sees it that drives it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Controller {
    pub address: String,
    pub model: String,
    pub serial: String,
    pub firmware: String,
    /// `ready`, `starting`, `failed` or `gone`.
    pub state: String,
    pub namespaces: Vec<Namespace>,
    pub health: Option<Health>,
    /// Why its health is not known.
    pub unknown: Option<String>,
    /// Exact counts since the process opened it.
    pub counters: BTreeMap<String, u64>,
}

/// A namespace of a controller.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Namespace {
    pub name: String,
    pub bytes: u64,
    /// What it is used for, or why it cannot be used; empty when it is free.
    pub uses: Vec<String>,
}

/// What a disk says of itself in its health information. Counts are over its whole life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub critical_warnings: Vec<String>,
    /// Degrees Celsius, where it measures.
    pub temperature: Option<i32>,
    /// Per cent of the spare blocks that are left, and the share below which it warns.
    pub spare: u8,
    pub spare_threshold: u8,
    /// Per cent of the endurance; may go beyond 100.
    pub used: u8,
    pub media_errors: u64,
    pub error_log_entries: u64,
    pub power_on_hours: u64,
    pub power_cycles: u64,
    pub unsafe_shutdowns: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

/// The cluster as a client sees it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct View {
    pub catalogue: Catalogue,
    pub layout: String,
    pub writable: bool,
    pub not_writable: Option<String>,
    pub redundancy_short: bool,
    pub session: Option<String>,
    /// Why processes that it talks to are down, by name.
    pub down: BTreeMap<String, String>,
}

/// The catalogue.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Catalogue {
    /// One line on where it is and what its loss means.
    pub note: String,
    pub up: bool,
    pub why: Option<String>,
    pub incarnation: Option<u64>,
    pub buckets: Option<u64>,
    /// Entries that wait for collection.
    pub dead: Option<u64>,
    pub collector_idle: bool,
    pub collector_note: Option<String>,
    pub sessions: Vec<Session>,
}

/// A session of the catalogue.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Session {
    pub session: String,
    pub process: String,
    pub fenced: bool,
}
