//! The whole cluster in one thread, on virtual time, from one seed: simulated disks under real stores, real
//! services and the real client over the local fabric. A power cut takes what was not flushed, in part; two runs of one
//! seed do the same.

mod disk;
pub mod history;
pub mod image;
mod log;
pub mod populate;
mod process;
pub mod scenario;

mod cluster;

pub use cluster::{DiskFaults, PROCESSES, Part, SimCluster, SimOptions, simulate};
pub use disk::{Disk, Fault, FaultCounts, FaultPlan, PowerCut};
pub use log::EventLog;
pub use process::{Process, StartError};
