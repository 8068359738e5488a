//! The store's errors as the wire says them.

use cobalt_rpc::proto::ios::IosError;
use cobalt_store::StoreError;

/// What target `name` answers, for a request about `bytes` bytes.
pub(crate) fn refusal(name: &str, error: StoreError, bytes: u64) -> IosError {
    let name = name.to_owned();
    match error {
        StoreError::NoSpace { bytes } => IosError::NoSpace { name, bytes },
        StoreError::MetaFull => IosError::NoSpace { name, bytes },
        StoreError::HostFull => IosError::HostFull { name },
        StoreError::Fenced(session) => IosError::Fenced(session),
        StoreError::Deleted(fid) => IosError::Deleted(fid),
        StoreError::Incarnation { have, want } => IosError::Incarnation { have, want },
        StoreError::Missing { fid, offset } => IosError::Missing { fid, offset },
        StoreError::Corrupt { fid, offset, why } => IosError::Corrupt { fid, offset, why },
        StoreError::Busy => IosError::Busy,
        StoreError::Invalid(why) => IosError::Malformed(why),
        error @ (StoreError::Damaged(_)
        | StoreError::Failed { .. }
        | StoreError::Closed
        | StoreError::ReadOnly) => IosError::TargetFailed { name, why: error.to_string() },
    }
}
