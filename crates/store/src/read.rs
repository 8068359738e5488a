//! Reading a cob: its extents are held, read, and every chunk is checked before a byte is handed out.

use crate::apply::{self, cut};
use crate::cob::CobData;
use crate::error::StoreError;
use crate::inline::Piece;
use crate::schema::{self, COB, CobRow, MapRow};
use crate::store::{Core, Store};
use crate::tree::TreeId;
use crate::tx::Extent;
use cobalt_base::canary::{Canary, planted};
use cobalt_base::checksum::{crc32c, crc32c_combine};
use cobalt_base::{BLOCK_SIZE, Fid};
use cobalt_dma::{BUF_MAX, Buf, Slice};
use futures::future::join_all;
use std::collections::BTreeMap;

/// What a read will find, as the trees have it in one turn.
struct Plan {
    chunk: u64,
    /// Byte offset in the cob, and the part of a row that begins there.
    parts: Vec<(u64, MapRow)>,
    /// Blocks whose bytes are not on the device. Taken in the same turn: what frees them also forgets them.
    unwritten: BTreeMap<u64, Piece>,
}

impl Store {
    /// Bytes `offset..offset + len` of a cob: whole chunks, but for a short last one.
    ///
    /// # Errors
    /// `Missing` when the cob or a byte of the range is not there; `Corrupt` when the device's bytes
    /// are not those that were written; `Invalid` when the range cuts a chunk.
    pub async fn cob_read(&self, fid: Fid, offset: u64, len: u64) -> Result<CobData, StoreError> {
        let core = &self.0;
        let _turn = core.reads.acquire(1).await;
        let _pin = core.pin_blocks();
        let plan = core.plan_read(fid, offset, len).await?;
        for attempt in 0..2 {
            match core.read_parts(fid, &plan).await {
                Ok(slices) => {
                    let crcs = plan.parts.into_iter().flat_map(|(_, row)| row.crcs).collect();
                    let chunk_size = u32::try_from(plan.chunk).unwrap_or(u32::MAX);
                    return Ok(CobData { slices, crcs, chunk_size, len });
                }
                Err(_) if attempt == 0 => core.count(|c| c.read_retries += 1),
                Err(error) => {
                    core.count(|c| c.corrupt_reads += 1);
                    return Err(error);
                }
            }
        }
        unreachable!("the second attempt returns")
    }
}

impl Core {
    async fn plan_read(&self, fid: Fid, offset: u64, len: u64) -> Result<Plan, StoreError> {
        let missing = |offset| StoreError::Missing { fid, offset };
        let most = self.limits.tx_data.min(BUF_MAX as u64);
        let end = offset.checked_add(len).filter(|_| len > 0 && len <= most);
        let end = end.ok_or_else(|| StoreError::Invalid(format!("a read of {len} bytes at {offset}")))?;
        let (cob, rows) = self
            .look(|stage| {
                let Some(value) = stage.get(TreeId::Cob, &schema::fid_key(COB, fid))? else {
                    return Ok((None, Vec::new()));
                };
                let cob: CobRow = schema::decode("cob row", &value)?;
                let mut rows = Vec::new();
                let mut at = offset;
                while at < end {
                    match apply::last_row(stage, fid, at)? {
                        Some((start, row)) if start.saturating_add(row.len) > at => {
                            at = start.saturating_add(row.len);
                            rows.push((start, row));
                        }
                        _ => break,
                    }
                }
                Ok((Some(cob), rows))
            })
            .await?;
        let cob = cob.ok_or_else(|| missing(offset))?;
        let chunk = u64::from(cob.chunk_size);
        if !offset.is_multiple_of(chunk.max(1)) {
            return Err(StoreError::Invalid(format!("a read at {offset} of chunks of {chunk} bytes")));
        }
        let (mut parts, mut unwritten) = (Vec::new(), BTreeMap::new());
        let mut at = offset;
        for (start, row) in rows {
            if !row.is_sound(cob.chunk_size, self.shape.data_blocks) {
                return Err(StoreError::Corrupt { fid, offset: start, why: "its map does not agree".into() });
            }
            let until = row.len.min(end - start);
            if until < row.len && !until.is_multiple_of(chunk) {
                return Err(StoreError::Invalid(format!("a read up to {end} cuts a chunk of {chunk} bytes")));
            }
            let part = cut(&row, chunk, at - start, until);
            self.unwritten.find(&part.extents, &mut unwritten);
            parts.push((at, part));
            at = start + until;
        }
        if at < end { Err(missing(at)) } else { Ok(Plan { chunk, parts, unwritten }) }
    }

    async fn read_parts(&self, fid: Fid, plan: &Plan) -> Result<Vec<Slice>, StoreError> {
        let mut out = Vec::new();
        // All of it at once: two reads that hold some and wait for the rest would wait for each other.
        let blocks: u64 = plan.parts.iter().map(|(_, row)| row.blocks()).sum();
        let mut memory = self.arena.alloc((blocks * BLOCK_SIZE) as usize).await;
        for (offset, row) in &plan.parts {
            let rest = memory.split_off((row.blocks() * BLOCK_SIZE) as usize);
            let own = std::mem::replace(&mut memory, rest);
            let slices = self.read_row(fid, *offset, row, &plan.unwritten, own).await?;
            if !planted(Canary::ReadUnchecked) {
                verify(fid, *offset, plan.chunk, row, &slices)?;
            }
            out.extend(slices);
        }
        Ok(out)
    }

    /// The bytes of a row into `memory` of just its blocks, unchecked: one slice for each device read, and for each run of blocks
    /// in memory.
    async fn read_row(
        &self,
        fid: Fid,
        offset: u64,
        row: &MapRow,
        unwritten: &BTreeMap<u64, Piece>,
        mut memory: Buf,
    ) -> Result<Vec<Slice>, StoreError> {
        let region = &self.regions.data;
        let most = u64::from(region.device.identify().transfer_max).min(BUF_MAX as u64) / BLOCK_SIZE;
        let pieces: Vec<Run> =
            row.extents.iter().flat_map(|extent| runs(*extent, most.max(1), unwritten)).collect();
        self.count(|c| c.data_reads += pieces.iter().filter(|r| !r.in_memory).count() as u64);
        let reads = pieces.into_iter().map(|run| {
            let rest = memory.split_off((run.blocks * BLOCK_SIZE) as usize);
            (run, std::mem::replace(&mut memory, rest))
        });
        let reads = reads.map(|(run, mut buf)| async move {
            if !run.in_memory {
                return region.read(run.start * BLOCK_SIZE, buf).await;
            }
            for (block, number) in buf.chunks_mut(BLOCK_SIZE as usize).zip(run.start..) {
                unwritten.get(&number).expect("a run in memory is of blocks that are there").fill(block);
            }
            Ok(buf)
        });
        let mut left = row.len as usize;
        let mut slices = Vec::new();
        for read in join_all(reads).await {
            let buf = read.map_err(|e| StoreError::Corrupt { fid, offset, why: e.to_string() })?;
            let slice = buf.freeze();
            let real = slice.len().min(left);
            left -= real;
            slices.push(slice.slice(0..real));
        }
        Ok(slices)
    }
}

/// Neighbouring blocks that one read gets.
struct Run {
    start: u64,
    blocks: u64,
    in_memory: bool,
}

/// Cuts an extent into reads of at most `most` blocks, from memory or from the device.
fn runs(extent: Extent, most: u64, unwritten: &BTreeMap<u64, Piece>) -> Vec<Run> {
    let end = extent.start + u64::from(extent.blocks);
    let mut out = Vec::new();
    let mut start = extent.start;
    while start < end {
        let next = unwritten.range(start..end).next().map(|(block, _)| *block);
        let in_memory = next == Some(start);
        let until = match next {
            Some(_) if in_memory => (start..end).find(|b| !unwritten.contains_key(b)).unwrap_or(end),
            next => next.unwrap_or(end),
        };
        let blocks = (until - start).min(most);
        out.push(Run { start, blocks, in_memory });
        start += blocks;
    }
    out
}

/// Checks every chunk; a chunk may lie in several slices.
fn verify(fid: Fid, offset: u64, chunk: u64, row: &MapRow, slices: &[Slice]) -> Result<(), StoreError> {
    let mut crcs = Vec::with_capacity(row.crcs.len());
    let (mut crc, mut have) = (0u32, 0u64);
    for slice in slices {
        let mut rest: &[u8] = slice;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min((chunk - have) as usize));
            let sum = crc32c(piece);
            crc = if have == 0 { sum } else { crc32c_combine(crc, sum, piece.len() as u64) };
            have += piece.len() as u64;
            rest = after;
            if have == chunk {
                crcs.push(crc);
                (crc, have) = (0, 0);
            }
        }
    }
    if have > 0 {
        crcs.push(crc);
    }
    match crcs.iter().zip(&row.crcs).position(|(found, expected)| found != expected) {
        None if crcs.len() == row.crcs.len() => Ok(()),
        at => {
            let at = at.unwrap_or(crcs.len().min(row.crcs.len()));
            let (found, expected) = (crcs.get(at), row.crcs.get(at));
            let why = format!("chunk {at}: CRC32C is {found:08x?}, the map says {expected:08x?}");
            Err(StoreError::Corrupt { fid, offset: offset + at as u64 * chunk, why })
        }
    }
}
