//! The pool's versions. None is ever forgotten or changed: layouts name theirs.

use crate::bucket::check_name;
use crate::draft::{Draft, Stop};
use crate::limits::{POOL_TARGETS_MAX, POOLS_BYTES_MAX};
use crate::row::{PoolRow, Row};
use crate::schema::{self, POOLS};
use cobalt_rpc::proto::cas::{CasError, Outcome};
use cobalt_rpc::proto::record::PoolTarget;
use std::collections::BTreeSet;

/// Adds a version if it differs from the newest.
pub fn set(draft: &mut Draft<'_>, targets: &[PoolTarget]) -> Result<Outcome, Stop> {
    if targets.is_empty() || targets.len() > POOL_TARGETS_MAX {
        let why = format!("a pool of {} targets; 1 to {POOL_TARGETS_MAX} are possible", targets.len());
        return Err(CasError::Malformed(why).into());
    }
    let mut seen = BTreeSet::new();
    for target in targets {
        check_name("a target's name", &target.name)?;
        check_name("a process name", &target.process)?;
        if !seen.insert(target.target) {
            return Err(CasError::Malformed(format!("target {} is twice in the pool", target.name)).into());
        }
    }
    let row = PoolRow { targets: targets.to_vec() };
    let (mut version, mut bytes, mut newest) = (0, 0, None);
    while let Some((_, value)) = draft.next(POOLS, &schema::pool(version + 1))? {
        version += 1;
        bytes += value.len();
        newest = Some(PoolRow::decode(&value)?);
    }
    if newest.as_ref() != Some(&row) {
        version += 1;
        if bytes + row.encode().len() > POOLS_BYTES_MAX {
            return Err(CasError::Full.into());
        }
        draft.put(POOLS, schema::pool(version), &row)?;
    }
    Ok(Outcome::PoolSet { version })
}
