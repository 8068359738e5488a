//! What each intent does to the trees. It runs once when the transaction takes its lsn, over everything
//! before it, and judges at the same time; redo runs it again on what the journal kept.
//!
//! Nothing here waits: a node that is not in memory ends the attempt, the caller takes the attempt's
//! changes back, loads the node and tries again.

use crate::ctg::CtgOp;
use crate::error::StoreError;
use crate::few::{Crcs, Pieces};
use crate::intent::{Bytes, Inline, Intent, Map};
use crate::numbers;
use crate::schema::{self, COB, COUNT_KEY, CobRow, DEAD, FENCE, MapRow, Parts, TOMB, fid_key};
use crate::stage::Stage;
use crate::tree::{Miss, TreeId};
use crate::tx::{Extent, Leaves};
use cobalt_base::canary::{Canary, planted};
use cobalt_base::{BLOCK_SIZE, Corrupt, Fid, Lsn, SessionId};
use smallvec::SmallVec;

/// Why an attempt ended.
pub(crate) enum Halt {
    /// A node must be loaded first.
    Miss(Miss),
    /// A condition does not hold: the answer to the caller.
    Refused(StoreError),
    /// The trees contradict the intent.
    Corrupt(Corrupt),
}

impl From<Miss> for Halt {
    fn from(miss: Miss) -> Halt {
        Halt::Miss(miss)
    }
}

impl From<Corrupt> for Halt {
    fn from(corrupt: Corrupt) -> Halt {
        Halt::Corrupt(corrupt)
    }
}

/// What a transaction does to the state in memory, once it is durable.
#[derive(Default, Debug)]
pub(crate) struct Effects {
    /// Blocks whose bytes came with the record.
    pub inline: Vec<(Pieces, Bytes)>,
    /// Blocks that it takes, and blocks that become free. [`crate::alloc_rows::settle`] enters them.
    pub taken: Pieces,
    pub freed: Pieces,
    /// A dead cob with rows left to free.
    pub dead: Option<Fid>,
    /// A fenced session that may have tombstones left.
    pub fenced: Option<SessionId>,
    /// The superblock generation that was named, or 0.
    pub named: u64,
}

/// Numbers of the target that intents are judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub data_blocks: u64,
    pub group_blocks: u64,
    /// Largest value of an extent-map row, in bytes.
    pub row_max: usize,
}

/// Runs one transaction on the stage.
pub(crate) fn run(
    stage: &Stage,
    shape: Shape,
    lsn: Lsn,
    intents: &[Intent],
    fx: &mut Effects,
) -> Result<(), Halt> {
    for intent in intents {
        match intent {
            Intent::Map(map) => map_range(stage, shape, lsn, map, fx)?,
            Intent::Delete { fid, rows } => delete(stage, *fid, *rows, fx)?,
            Intent::FreeStep { fid, rows } => free_step(stage, *fid, *rows, fx)?,
            Intent::Fence { session } => fence(stage, *session, fx)?,
            Intent::DropTombs { session, rows } => drop_tombs(stage, *session, *rows, fx)?,
            Intent::Ctg(op) => change_ctg(stage, op),
            Intent::Named { generation } => fx.named = *generation,
            Intent::Inline(Inline { map, bytes }) => {
                if bytes.len() as u64 != map.len {
                    let why = format!("{bytes:?} for a map of {}", map.len);
                    return Err(Corrupt::new("inline intent", 0, why).into());
                }
                map_range(stage, shape, lsn, map, fx)?;
                fx.inline.push((map.extents.clone(), bytes.clone()));
            }
        }
    }
    Ok(())
}

/// Tells the stage where the rows of a map were found.
pub(crate) fn expect(stage: &Stage, map: &Map, [cob, extmap]: Leaves) {
    stage.expect(TreeId::Cob, &fid_key(COB, map.fid), cob);
    stage.expect(TreeId::Extmap, &schema::extmap_key(map.fid, map.offset), extmap);
}

/// Puts a change of a catalogue on the stage.
pub(crate) fn change_ctg(stage: &Stage, op: &CtgOp) {
    let (CtgOp::Put { ctg, key, .. } | CtgOp::Delete { ctg, key }) = op;
    let value = if let CtgOp::Put { value, .. } = op { Some(value.as_slice()) } else { None };
    stage.change(TreeId::Ctg, &schema::ctg_start(*ctg), key, value);
}

/// Whether a session is fenced. Fenced sessions are kept as merged intervals.
pub(crate) fn is_fenced(stage: &Stage, session: SessionId) -> Result<bool, Halt> {
    if stage.is_unfenced(session) {
        return Ok(false);
    }
    let fenced = fence_before(stage, session)?.is_some_and(|(_, last)| last >= session);
    if !fenced {
        stage.set_unfenced(Some(session));
    }
    Ok(fenced)
}

fn fence_before(stage: &Stage, session: SessionId) -> Result<Option<(SessionId, SessionId)>, Halt> {
    let fence = |key: &[u8], value: &[u8]| {
        let first = SessionId(schema::key_number(FENCE, key)?);
        Some(fence_end(value).map(|last| (first, last)))
    };
    let found = stage.prev_with(TreeId::Cob, &schema::fence_key(session), fence)?;
    Ok(found.flatten().transpose()?)
}

pub(crate) fn fence_end(value: &[u8]) -> Result<SessionId, Corrupt> {
    let bytes = value.try_into().map_err(|_| Corrupt::new("fence row", 0, "not eight bytes"))?;
    Ok(SessionId(u64::from_be_bytes(bytes)))
}

/// Finds a cob, refusing what may not be written any more.
pub(crate) fn judge_cob(stage: &Stage, fid: Fid) -> Result<Option<CobRow>, Halt> {
    if is_fenced(stage, fid.session)? {
        return Err(Halt::Refused(StoreError::Fenced(fid.session)));
    }
    // A cob that is there is not deleted.
    let row = cob_row(stage, fid)?;
    if row.is_none() && stage.get_with(TreeId::Cob, &fid_key(TOMB, fid), |_| ())?.is_some() {
        return Err(Halt::Refused(StoreError::Deleted(fid)));
    }
    Ok(row)
}

fn cob_row(stage: &Stage, fid: Fid) -> Result<Option<CobRow>, Halt> {
    let read = |value: &[u8]| numbers::cob(value).map_or_else(|| schema::decode("cob row", value), Ok);
    Ok(stage.get_with(TreeId::Cob, &fid_key(COB, fid), read)?.transpose()?)
}

/// The count of cobs that exist.
pub(crate) fn cob_count(stage: &Stage) -> Result<u64, Halt> {
    match stage.get(TreeId::Cob, COUNT_KEY)? {
        Some(value) => Ok(schema::decode("cob count", &value)?),
        None => Ok(0),
    }
}

fn count_cobs(stage: &Stage, change: i64) -> Result<(), Halt> {
    match cob_count(stage)?.checked_add_signed(change) {
        Some(0) => stage.delete(TreeId::Cob, COUNT_KEY),
        Some(count) => stage.put(TreeId::Cob, COUNT_KEY, schema::encode(&count)),
        None => return Err(Corrupt::new("cob count", 0, "fewer cobs than were deleted").into()),
    }
    Ok(())
}

fn map_range(stage: &Stage, shape: Shape, lsn: Lsn, map: &Map, fx: &mut Effects) -> Result<(), Halt> {
    let chunk = u64::from(map.chunk_size);
    let whole = Parts { len: map.len, generation: 0, extents: &map.extents, crcs: &map.crcs };
    if chunk == 0
        || !chunk.is_multiple_of(BLOCK_SIZE)
        || !map.offset.is_multiple_of(chunk)
        || map.offset.checked_add(map.len).is_none_or(|end| end > i64::MAX as u64)
        || !whole.are_sound(map.chunk_size, shape.data_blocks)
    {
        return Err(Corrupt::new("map intent", 0, format!("its parts do not agree: {map:?}")).into());
    }
    let found = judge_cob(stage, map.fid)?;
    let mut row = match (found, map.expect) {
        (Some(row), _) if row.incarnation != map.incarnation => {
            let (have, want) = (row.incarnation, map.incarnation);
            return Err(Halt::Refused(StoreError::Incarnation { have, want }));
        }
        (Some(row), _) if row.chunk_size != map.chunk_size => {
            let why =
                format!("cob {} has chunks of {} bytes, not {}", map.fid, row.chunk_size, map.chunk_size);
            return Err(Halt::Refused(StoreError::Invalid(why)));
        }
        (Some(row), Some(generation)) if row.generation != generation => {
            return Err(Halt::Refused(StoreError::Deleted(map.fid)));
        }
        (None, Some(_)) => return Err(Halt::Refused(StoreError::Deleted(map.fid))),
        (Some(row), _) => row,
        (None, None) => {
            count_cobs(stage, 1)?;
            CobRow {
                chunk_size: map.chunk_size,
                incarnation: map.incarnation,
                generation: lsn.0,
                size: 0,
                blocks: 0,
            }
        }
    };
    row.blocks = row.blocks.saturating_sub(unmap(stage, shape, map, chunk, fx)?);
    fx.taken.extend_from_slice(&map.extents);
    let whole = Parts { generation: row.generation, ..whole };
    if row_size(whole.extents, whole.crcs) <= shape.row_max {
        stage.put(TreeId::Extmap, schema::extmap_key(map.fid, map.offset), schema::encode_parts(&whole));
    } else {
        for (offset, piece) in split_rows(whole, map.offset, chunk, shape.row_max) {
            stage.put(TreeId::Extmap, schema::extmap_key(map.fid, offset), schema::encode(&piece));
        }
    }
    row.blocks = row.blocks.saturating_add(whole.blocks());
    row.size = row.size.max(map.offset + map.len);
    // A write over what was written leaves it as it was.
    if found != Some(row) {
        stage.put(TreeId::Cob, fid_key(COB, map.fid), numbers::of_cob(&row).bytes());
    }
    Ok(())
}

fn map_row(value: &[u8]) -> Result<MapRow, Corrupt> {
    numbers::map_row(value).map_or_else(|| schema::decode("extmap row", value), Ok)
}

/// A cob's first row at or behind `from`, and its offset. One that begins right there is read where it lies.
fn first_row(stage: &Stage, fid: Fid, from: u64) -> Result<Option<(u64, MapRow)>, Halt> {
    let key = schema::extmap_key(fid, from);
    if let Some(row) = stage.get_with(TreeId::Extmap, &key, map_row)? {
        return Ok(Some((from, row?)));
    }
    let Some((key, value)) = stage.next(TreeId::Extmap, &key)? else { return Ok(None) };
    match schema::extmap_place(&key) {
        Some((at, offset)) if at == fid => Ok(Some((offset, map_row(&value)?))),
        _ => Ok(None),
    }
}

/// A cob's last row at or before `until`, and its offset.
pub(crate) fn last_row(stage: &Stage, fid: Fid, until: u64) -> Result<Option<(u64, MapRow)>, Halt> {
    let row = |key: &[u8], value: &[u8]| {
        let (_, offset) = schema::extmap_place(key).filter(|(at, _)| *at == fid)?;
        Some((offset, map_row(value)))
    };
    match stage.prev_with(TreeId::Extmap, &schema::extmap_key(fid, until), row)?.flatten() {
        Some((offset, row)) => Ok(Some((offset, row?))),
        None => Ok(None),
    }
}

/// Takes the old extents of a range out of the map, all but the row that the range's own first one replaces; returns the count of blocks freed.
fn unmap(stage: &Stage, shape: Shape, map: &Map, chunk: u64, fx: &mut Effects) -> Result<u64, Halt> {
    // Whole chunks are replaced: also the one that a short last chunk replaces in part.
    let end = (map.offset + map.len).div_ceil(chunk) * chunk;
    let mut overlaps: SmallVec<[(u64, MapRow); 2]> = SmallVec::new();
    if map.offset > 0
        && let Some((offset, row)) = last_row(stage, map.fid, map.offset - 1)?
    {
        overlaps.push((offset, row));
    }
    let mut from = map.offset;
    while from < end
        && let Some((offset, row)) = first_row(stage, map.fid, from)?
        && offset < end
    {
        // Rows do not overlap: the next one begins behind this one's last chunk.
        from = offset.saturating_add(row.len.max(1)).div_ceil(chunk).saturating_mul(chunk);
        overlaps.push((offset, row));
    }
    let mut freed = 0;
    for (offset, row) in overlaps {
        if offset.saturating_add(row.len) <= map.offset {
            continue;
        }
        let chunk_size = u32::try_from(chunk).unwrap_or(u32::MAX);
        if !row.is_sound(chunk_size, shape.data_blocks) {
            return Err(Corrupt::new("extmap row", 0, format!("cob {} at {offset}: {row:?}", map.fid)).into());
        }
        if offset < map.offset {
            let left = cut(&row, chunk, 0, map.offset - offset);
            stage.put(TreeId::Extmap, schema::extmap_key(map.fid, offset), schema::encode(&left));
        } else if offset > map.offset {
            // What begins where the range does is replaced by the range's own first row.
            stage.delete(TreeId::Extmap, schema::extmap_key(map.fid, offset));
        }
        if offset.saturating_add(row.len) > end {
            let right = cut(&row, chunk, end - offset, row.len);
            stage.put(TreeId::Extmap, schema::extmap_key(map.fid, end), schema::encode(&right));
        }
        let gone = cut(&row, chunk, map.offset.saturating_sub(offset), row.len.min(end - offset));
        for extent in gone.extents {
            freed += u64::from(extent.blocks);
            fx.freed.push(extent);
        }
    }
    Ok(freed)
}

/// The part of a row from byte `from` to byte `until` of it; both on chunk bounds, or `until` its end.
pub(crate) fn cut(row: &MapRow, chunk: u64, from: u64, until: u64) -> MapRow {
    let blocks = from / BLOCK_SIZE..until.div_ceil(BLOCK_SIZE);
    let mut extents = Pieces::new();
    let mut at = 0;
    for extent in &row.extents {
        let next = at + u64::from(extent.blocks);
        let (lo, hi) = (at.max(blocks.start), next.min(blocks.end));
        if lo < hi {
            let count = u32::try_from(hi - lo).unwrap_or(extent.blocks);
            extents.push(Extent { start: extent.start + (lo - at), blocks: count });
        }
        at = next;
    }
    let chunks = (from / chunk) as usize..until.div_ceil(chunk) as usize;
    let crcs = row.crcs.get(chunks).map(Crcs::from_slice).unwrap_or_default();
    MapRow { len: until - from, generation: row.generation, extents, crcs }
}

/// Most bytes of a row's value: 15 an extent, 5 a checksum, 30 for the rest.
fn row_size(extents: &[Extent], crcs: &[u32]) -> usize {
    30 + extents.len() * 15 + crcs.len() * 5
}

/// Cuts a row at chunk bounds so that every piece fits a tree entry.
fn split_rows(whole: Parts<'_>, offset: u64, chunk: u64, row_max: usize) -> Vec<(u64, MapRow)> {
    let Parts { len, generation, extents, crcs } = whole;
    let whole = MapRow { len, generation, extents: extents.into(), crcs: crcs.into() };
    let mut rows = Vec::new();
    let mut pieces = vec![(0, len)];
    while let Some((from, until)) = pieces.pop() {
        let row = cut(&whole, chunk, from, until);
        let chunks = (until - from).div_ceil(chunk);
        if row_size(&row.extents, &row.crcs) > row_max && chunks > 1 {
            let middle = from + chunks / 2 * chunk;
            pieces.push((middle, until));
            pieces.push((from, middle));
        } else {
            rows.push((offset + from, row));
        }
    }
    rows
}

fn delete(stage: &Stage, fid: Fid, rows: u32, fx: &mut Effects) -> Result<(), Halt> {
    if !is_fenced(stage, fid.session)? && !planted(Canary::NoTombstone) {
        stage.put(TreeId::Cob, fid_key(TOMB, fid), Vec::new());
    }
    let Some(row) = cob_row(stage, fid)? else { return Ok(()) };
    count_cobs(stage, -1)?;
    stage.delete(TreeId::Cob, fid_key(COB, fid));
    free_rows(stage, fid, row, rows, fx)
}

fn free_step(stage: &Stage, fid: Fid, rows: u32, fx: &mut Effects) -> Result<(), Halt> {
    let Some(value) = stage.get(TreeId::Cob, &fid_key(DEAD, fid))? else { return Ok(()) };
    stage.delete(TreeId::Cob, fid_key(DEAD, fid));
    let row = schema::decode("dead cob row", &value)?;
    free_rows(stage, fid, row, rows, fx)
}

/// Frees up to `limit` rows of a cob that is no more; what remains is kept under a dead row.
fn free_rows(stage: &Stage, fid: Fid, mut cob: CobRow, limit: u32, fx: &mut Effects) -> Result<(), Halt> {
    let from = schema::extmap_key(fid, 0);
    for _ in 0..limit {
        let Some((key, value)) = next_row(stage, fid, &from)? else { return Ok(()) };
        let row: MapRow = schema::decode("extmap row", &value)?;
        for extent in &row.extents {
            cob.blocks = cob.blocks.saturating_sub(u64::from(extent.blocks));
            fx.freed.push(*extent);
        }
        stage.delete(TreeId::Extmap, key);
    }
    if next_row(stage, fid, &from)?.is_some() {
        stage.put(TreeId::Cob, fid_key(DEAD, fid), schema::encode(&cob));
        fx.dead = Some(fid);
    }
    Ok(())
}

fn next_row(stage: &Stage, fid: Fid, from: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, Halt> {
    let row = stage.next(TreeId::Extmap, from)?;
    Ok(row.filter(|(key, _)| schema::extmap_place(key).is_some_and(|(f, _)| f == fid)))
}

fn fence(stage: &Stage, session: SessionId, fx: &mut Effects) -> Result<(), Halt> {
    stage.set_unfenced(None);
    fx.fenced = Some(session);
    let (mut first, mut last) = (session, session);
    if let Some((from, until)) = fence_before(stage, session)? {
        if until >= session {
            return Ok(());
        }
        if until.0 + 1 == session.0 {
            first = from;
        }
    }
    if let Some(next) = session.0.checked_add(1) {
        let key = schema::fence_key(SessionId(next));
        if let Some(value) = stage.get(TreeId::Cob, &key)? {
            last = fence_end(&value)?;
            stage.delete(TreeId::Cob, key);
        }
    }
    stage.put(TreeId::Cob, schema::fence_key(first), last.0.to_be_bytes());
    Ok(())
}

fn drop_tombs(stage: &Stage, session: SessionId, rows: u32, fx: &mut Effects) -> Result<(), Halt> {
    let mut from = fid_key(TOMB, Fid::new(session, 0)).to_vec();
    for _ in 0..rows {
        let Some((key, _)) = stage.next(TreeId::Cob, &from)? else { return Ok(()) };
        match schema::key_fid(TOMB, &key) {
            Some(fid) if fid.session == session => {
                // Not from the start each time: what was dropped so far would be passed over again.
                from = key.clone();
                stage.delete(TreeId::Cob, key);
            }
            _ => return Ok(()),
        }
    }
    fx.fenced = Some(session);
    Ok(())
}
