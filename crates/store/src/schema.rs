//! Keys and values of the cob, extent-map and allocator trees. Keys are big-endian, so that byte order
//! is number order; the first byte tells kinds of rows apart.

use crate::few::{Crcs, Pieces};
use crate::numbers;
use crate::tx::Extent;
use cobalt_base::{BLOCK_SIZE, Corrupt, Fid, SessionId};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub(crate) const COB: u8 = 1;
pub(crate) const TOMB: u8 = 2;
pub(crate) const FENCE: u8 = 3;
pub(crate) const DEAD: u8 = 4;

/// Key of the row that counts cobs.
pub(crate) const COUNT_KEY: &[u8] = &[0];

pub(crate) const SUMMARY: u8 = 0;
pub(crate) const FREE: u8 = 1;

/// Value of a cob's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CobRow {
    pub chunk_size: u32,
    pub incarnation: u64,
    /// The lsn that created it.
    pub generation: u64,
    /// End of its last byte.
    pub size: u64,
    /// Data blocks it holds.
    pub blocks: u64,
}

/// Value of an extent-map row: bytes from the key's offset on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MapRow {
    /// Real bytes; only the last chunk may be short.
    pub len: u64,
    pub generation: u64,
    #[serde(with = "crate::few")]
    pub extents: Pieces,
    #[serde(with = "crate::few")]
    pub crcs: Crcs,
}

impl MapRow {
    pub(crate) fn blocks(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.blocks)).sum()
    }

    /// Whether the parts agree with each other.
    pub(crate) fn is_sound(&self, chunk: u32, data_blocks: u64) -> bool {
        Parts { len: self.len, generation: 0, extents: &self.extents, crcs: &self.crcs }
            .are_sound(chunk, data_blocks)
    }
}

/// A row's parts where they lie; encoded as [`MapRow`] is.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Parts<'a> {
    pub len: u64,
    pub generation: u64,
    pub extents: &'a [Extent],
    pub crcs: &'a [u32],
}

impl Parts<'_> {
    pub(crate) fn blocks(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.blocks)).sum()
    }

    /// Whether they agree with each other.
    pub(crate) fn are_sound(&self, chunk: u32, data_blocks: u64) -> bool {
        self.len > 0
            && self.blocks() == self.len.div_ceil(BLOCK_SIZE)
            && self.crcs.len() as u64 == self.len.div_ceil(u64::from(chunk.max(1)))
            && self.extents.iter().all(|e| e.blocks > 0 && e.end().is_some_and(|end| end <= data_blocks))
    }
}

impl Extent {
    /// The block after the last one; `None` when that is no number.
    pub(crate) fn end(&self) -> Option<u64> {
        self.start.checked_add(u64::from(self.blocks))
    }
}

pub(crate) fn fid_key(kind: u8, fid: Fid) -> [u8; 17] {
    let mut key = [kind; 17];
    key[1..].copy_from_slice(&fid.to_key());
    key
}

/// A kind byte and a number.
fn number_key(kind: u8, number: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

pub(crate) fn fence_key(session: SessionId) -> [u8; 9] {
    number_key(FENCE, session.0)
}

pub(crate) fn extmap_key(fid: Fid, offset: u64) -> [u8; 24] {
    let mut key = [0; 24];
    key[..16].copy_from_slice(&fid.to_key());
    key[16..].copy_from_slice(&offset.to_be_bytes());
    key
}

pub(crate) fn summary_key(group: u64) -> [u8; 9] {
    number_key(SUMMARY, group)
}

pub(crate) fn free_key(start: u64) -> [u8; 9] {
    number_key(FREE, start)
}

/// What all keys of a catalogue begin with.
pub(crate) fn ctg_start(ctg: u32) -> [u8; 4] {
    ctg.to_be_bytes()
}

pub(crate) fn ctg_key(ctg: u32, key: &[u8]) -> CtgKey {
    let mut full = CtgKey::from_slice(&ctg_start(ctg));
    full.extend_from_slice(key);
    full
}

/// A key of the catalogue tree; most fit in it.
pub(crate) type CtgKey = smallvec::SmallVec<[u8; 64]>;

/// The fid in a key of the given kind.
pub(crate) fn key_fid(kind: u8, key: &[u8]) -> Option<Fid> {
    let (first, rest) = key.split_first()?;
    (*first == kind).then_some(())?;
    Some(Fid::from_key(rest.try_into().ok()?))
}

/// The number in a key of one kind byte and eight bytes.
pub(crate) fn key_number(kind: u8, key: &[u8]) -> Option<u64> {
    let (first, rest) = key.split_first()?;
    (*first == kind).then_some(())?;
    Some(u64::from_be_bytes(rest.try_into().ok()?))
}

/// Fid and offset of an extent-map key.
pub(crate) fn extmap_place(key: &[u8]) -> Option<(Fid, u64)> {
    let (fid, offset) = key.split_first_chunk::<16>()?;
    Some((Fid::from_key(*fid), u64::from_be_bytes(offset.try_into().ok()?)))
}

/// The catalogue and the key within it.
pub(crate) fn ctg_place(key: &[u8]) -> Option<(u32, &[u8])> {
    let (ctg, rest) = key.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*ctg), rest))
}

/// A row's value. Most fit in it.
pub(crate) type Value = SmallVec<[u8; 64]>;

pub(crate) fn encode<T: Serialize>(value: &T) -> Value {
    let mut short = [0; 64];
    match postcard::to_slice(value, &mut short) {
        Ok(bytes) => SmallVec::from_slice(bytes),
        Err(_) => {
            SmallVec::from_vec(postcard::to_stdvec(value).expect("plain data in memory always encodes"))
        }
    }
}

/// The same of an extent-map row.
pub(crate) fn encode_parts(row: &Parts<'_>) -> Value {
    numbers::of_parts(row).map_or_else(|| encode(row), |numbers| Value::from_slice(numbers.bytes()))
}

/// Reads a row's value.
pub(crate) fn decode<T: for<'a> Deserialize<'a>>(what: &'static str, bytes: &[u8]) -> Result<T, Corrupt> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(Corrupt::new(what, 0, "bytes after the value")),
        Err(e) => Err(Corrupt::new(what, 0, format!("not a value: {e}"))),
    }
}

/// A four-byte count.
pub(crate) fn decode_u32(what: &'static str, bytes: &[u8]) -> Result<u32, Corrupt> {
    let bytes = bytes.try_into().map_err(|_| Corrupt::new(what, 0, "not four bytes"))?;
    Ok(u32::from_le_bytes(bytes))
}
