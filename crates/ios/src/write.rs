//! Steps 5 to 14 of the write path, top to bottom. Up to the commit nothing of a write is visible or
//! durable: a pull that fails drops the transaction, and with it the reservation. No undo exists because
//! nothing was applied.

use crate::service::parse;
use crate::{Ios, Target};
#[cfg(feature = "proof")]
use cobalt_base::canary::{Canary, planted};
use cobalt_base::checksum::crc32c_chunks_of;
use cobalt_dma::Slice;
use cobalt_reactor::Step;
use cobalt_rpc::proto::ios::{IosError, UNIT_MAX, Write};
use cobalt_rpc::{Call, Refusal};
use cobalt_store::{CobAttrs, Committed, TxClass};

/// Serves a [`Write`].
pub(crate) async fn serve(ios: &Ios, call: Call) {
    let Some(request) = parse::<Write>(&call) else { return call.refuse(Refusal::BadRequest) };
    match write(ios, &call, &request).await {
        Ok(committed) => {
            ios.count(|c| (c.writes, c.write_bytes) = (c.writes + 1, c.write_bytes + request.len));
            reply(call, committed);
        }
        Err(error) => call.reply::<Write>(Err(error)),
    }
}

/// The write path of one unit.
async fn write(ios: &Ios, call: &Call, w: &Write) -> Result<Committed, IosError> {
    check(w, call.lent_data())?;
    let target = ios.target(w.target)?;
    let store = target.store()?;
    let refused = |error| target.refusal(error, w.len);
    let _bytes = ios.writes.try_acquire(w.len).ok_or_else(|| busy(ios))?;

    let mut tx = store.tx_open(TxClass::Write, w.len).await.map_err(refused)?; // 5
    let attrs = CobAttrs { chunk_size: w.chunk_size, incarnation: w.incarnation };
    let cob = store.cob_lookup(&mut tx, w.fid, attrs).await.map_err(refused)?; // 6
    let extents = store.balloc(&mut tx, w.len).await.map_err(refused)?; // 7
    store.extmap(&mut tx, &cob, w.offset, w.len, &extents, &w.crcs).await.map_err(refused)?; // 8
    let sealed = store.tx_close(tx); // 9
    #[cfg(feature = "proof")]
    if planted(Canary::SeedOrder) {
        let committed = store.commit_unproven(sealed).await.map_err(refused)?;
        let data = pull(ios, &target, call, w).await?;
        store.data_write_late(&extents, &data).await.map_err(refused)?;
        return Ok(committed);
    }
    let data = pull(ios, &target, call, w).await?; // 10
    verify(ios, &data, w)?;
    let stable = store.data_write(&sealed, &data).await.map_err(refused)?; // 11, 12
    store.commit(sealed, stable).await.map_err(refused) // 13
}

/// Step 14. The commit took the proof that the data is stable, and is itself the proof that the journal is (I1):
/// there is no other way to acknowledge a write.
fn reply(call: Call, _durable: Committed) {
    call.reply::<Write>(Ok(()));
}

/// Step 10, within its time.
async fn pull(ios: &Ios, target: &Target, call: &Call, w: &Write) -> Result<Vec<Slice>, IosError> {
    ios.ctx.step(Step::Pull);
    let why = match ios.ctx.timeout(ios.limits.pull, call.pull(0, w.len)).await {
        Ok(Ok(data)) => return Ok(data),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("{} did not deliver within {:?}", call.peer().name, ios.limits.pull),
    };
    ios.count(|c| c.pulls_failed += 1);
    tracing::warn!(target = target.name(), fid = %w.fid, peer = call.peer().name, why, "pull failed");
    Err(IosError::Transfer(why))
}

/// What arrived is what the client meant: the checksums that it sent are those that the extent map records.
fn verify(ios: &Ios, data: &[Slice], w: &Write) -> Result<(), IosError> {
    let chunk = w.chunk_size as usize;
    let len: u64 = data.iter().map(|slice| slice.len() as u64).sum();
    if len != w.len {
        return Err(IosError::Transfer(format!("{len} bytes arrived instead of {}", w.len)));
    }
    let crcs = crc32c_chunks_of(data.iter().map(|slice| &slice[..]), chunk);
    match crcs.iter().zip(&w.crcs).position(|(have, want)| have != want) {
        None => Ok(()),
        Some(bad) => {
            ios.count(|c| c.checksum_mismatches += 1);
            Err(IosError::Checksum { offset: w.offset + bad as u64 * u64::from(w.chunk_size) })
        }
    }
}

/// The request's own rules, before anything is reserved for it.
fn check(w: &Write, lent: u64) -> Result<(), IosError> {
    let malformed = |why: &str| Err(IosError::Malformed(why.to_owned()));
    let chunk = u64::from(w.chunk_size);
    if !w.chunk_size.is_power_of_two() || !(4096..=65_536).contains(&w.chunk_size) {
        return malformed("the chunk size is no power of two from 4 KiB to 64 KiB");
    }
    if w.len == 0 || w.len > UNIT_MAX {
        return malformed("the length is zero or above that of a unit");
    }
    if !w.offset.is_multiple_of(chunk) || w.offset.checked_add(w.len).is_none() {
        return malformed("the offset is no multiple of the chunk size, or too large");
    }
    if w.crcs.len() as u64 != w.len.div_ceil(chunk) {
        return malformed("not one checksum for each chunk");
    }
    if lent < w.len {
        return malformed("fewer bytes were lent than are to be written");
    }
    Ok(())
}

fn busy(ios: &Ios) -> IosError {
    ios.count(|c| c.busy += 1);
    IosError::Busy
}
