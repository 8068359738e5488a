//! The pool as the configuration has it, in its order: told to the catalogue by the process that holds it, at its start.

use super::identity::ClusterId;
use crate::config::Config;
use cobalt_rpc::proto::record::PoolTarget;

/// The targets that have been laid out, in the configuration's order.
pub fn of(config: &Config, id: &ClusterId) -> Vec<PoolTarget> {
    let row = |(process, target): (&crate::config::ProcessConfig, &crate::config::TargetConfig)| {
        let uuid = *id.targets.get(&target.name)?;
        Some(PoolTarget { target: uuid, name: target.name.clone(), process: process.name.clone() })
    };
    config.targets().filter_map(row).collect()
}
