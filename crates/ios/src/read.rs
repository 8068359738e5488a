//! Reads: the store yields only bytes that passed their checksums, and those go into the caller's memory.

use crate::Ios;
use cobalt_rpc::Call;
use cobalt_rpc::proto::ios::{IosError, Read, ReadReply, UNIT_MAX};

/// Serves a [`Read`].
pub(crate) async fn read(ios: &Ios, call: &Call, r: Read) -> Result<ReadReply, IosError> {
    if r.len == 0 || r.len > UNIT_MAX || r.offset.checked_add(r.len).is_none() {
        return Err(IosError::Malformed("the range is empty, too long or too far".to_owned()));
    }
    if call.lent_room() < r.len {
        return Err(IosError::Malformed("less room was lent than is to be read".to_owned()));
    }
    let target = ios.target(r.target)?;
    let store = target.store()?;
    let turn = ios.reads.acquire(r.len.min(ios.limits.read_bytes));
    let Ok(_bytes) = ios.ctx.timeout_at(call.deadline(), turn).await else { return Err(IosError::Busy) };

    let data = store.cob_read(r.fid, r.offset, r.len).await.map_err(|error| {
        let error = target.refusal(error, r.len);
        if matches!(error, IosError::Corrupt { .. }) {
            ios.count(|c| c.corrupt += 1);
            tracing::error!(target = target.name(), %error, "a damaged unit: readers decode it from the others");
        }
        error
    })?;
    if data.len != r.len {
        return Err(IosError::Missing { fid: r.fid, offset: r.offset.saturating_add(data.len) });
    }
    let (crcs, chunk_size) = (data.crcs, data.chunk_size);
    call.push(0, data.slices).await.map_err(|error| IosError::Transfer(error.to_string()))?;
    ios.count(|c| (c.reads, c.read_bytes) = (c.reads + 1, c.read_bytes + r.len));
    Ok(ReadReply { crcs, chunk_size })
}
