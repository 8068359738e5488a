//! What a transaction wants, as the journal keeps it: logical, small, with physical block addresses
//! but no node images. Redo runs the same code on them as the first apply.

use crate::ctg::CtgOp;
use crate::few::{Crcs, Pieces};
use crate::numbers;
use cobalt_base::{Corrupt, Fid, SessionId};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

/// A range of a cob gets new blocks; the cob is created when it does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Map {
    pub fid: Fid,
    pub chunk_size: u32,
    pub incarnation: u64,
    /// The generation that the transaction found; `None` creates the cob or joins one created since.
    pub expect: Option<u64>,
    pub offset: u64,
    pub len: u64,
    #[serde(with = "crate::few")]
    pub extents: Pieces,
    /// CRC32C of each chunk's real bytes.
    #[serde(with = "crate::few")]
    pub crcs: Crcs,
}

/// The data of a map, shared between the transaction and those who read it before it is on its blocks.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bytes(Rc<Vec<u8>>);

impl Bytes {
    /// Whether both share one memory.
    pub(crate) fn is(&self, other: &Bytes) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes(Rc::new(bytes))
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

// As bytes, not as a list of numbers: the encoding is the same, and many times as fast.
impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        struct Take;
        impl Visitor<'_> for Take {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes::from(bytes.to_vec()))
            }
        }
        from.deserialize_bytes(Take)
    }
}

/// A map whose data are in the record itself, and not yet on their blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inline {
    pub map: Map,
    pub bytes: Bytes,
}

/// One change. A transaction is a list of them, applied whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Intent {
    Map(Map),
    /// Removes a cob, frees up to `rows` of its extent-map rows, leaves a tombstone.
    Delete {
        fid: Fid,
        rows: u32,
    },
    /// Frees up to `rows` more rows of a dead cob.
    FreeStep {
        fid: Fid,
        rows: u32,
    },
    /// Refuses every later write of a session.
    Fence {
        session: SessionId,
    },
    /// Drops up to `rows` tombstones of a fenced session.
    DropTombs {
        session: SessionId,
        rows: u32,
    },
    Ctg(CtgOp),
    /// A superblock of this generation is durable.
    Named {
        generation: u64,
    },
    Inline(Inline),
}

/// Appends one transaction to a record's payload: its length, then its intents.
pub(crate) fn encode(intents: &[Intent], out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    let map = if let [Intent::Map(map)] = intents { numbers::of_map(map) } else { None };
    match map {
        Some(map) => out.extend_from_slice(map.bytes()),
        None => drop(postcard::to_io(intents, &mut *out).expect("plain data in memory always encodes")),
    }
    let len = u32::try_from(out.len() - at - 4).expect("admission bounds a transaction far below 4 GiB");
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// Takes `count` transactions from a record's payload.
///
/// # Errors
/// [`Corrupt`] when the bytes are not exactly that.
pub(crate) fn decode(mut payload: &[u8], count: u32, address: u64) -> Result<Vec<Vec<Intent>>, Corrupt> {
    let bad = |why: &str| Corrupt::new("journal payload", address, why);
    let mut txs = Vec::new();
    for _ in 0..count {
        let (len, rest) = payload.split_first_chunk::<4>().ok_or_else(|| bad("ends inside a length"))?;
        let len = u32::from_le_bytes(*len) as usize;
        let body = rest.get(..len).ok_or_else(|| bad("ends inside a transaction"))?;
        let (intents, left) =
            postcard::take_from_bytes::<Vec<Intent>>(body).map_err(|e| bad(&format!("not intents: {e}")))?;
        if !left.is_empty() {
            return Err(bad("a transaction is longer than its intents"));
        }
        txs.push(intents);
        payload = &rest[len..];
    }
    if !payload.is_empty() {
        return Err(bad("more bytes than its transactions"));
    }
    Ok(txs)
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Inline, Intent, Map, decode, encode};
    use crate::tx::Extent;
    use cobalt_base::{Fid, SessionId};

    fn inline() -> Intent {
        let map = Map {
            fid: Fid::new(SessionId(3), 9),
            chunk_size: 4096,
            incarnation: 1,
            expect: None,
            offset: 0,
            len: 3,
            extents: [Extent { start: 5, blocks: 1 }].into(),
            crcs: [6].as_slice().into(),
        };
        Intent::Inline(Inline { map, bytes: Bytes::from(vec![1, 2, 3]) })
    }

    #[test]
    fn a_cut_or_changed_payload_is_corrupt_and_never_a_panic() {
        let tx = vec![
            Intent::Delete { fid: Fid::new(SessionId(3), 9), rows: 7 },
            Intent::Fence { session: SessionId(3) },
            inline(),
        ];
        let mut bytes = Vec::new();
        encode(&tx, &mut bytes);
        encode(&[Intent::Named { generation: 8 }], &mut bytes);
        let txs = decode(&bytes, 2, 0).expect("whole");
        assert_eq!(txs[0], tx);
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], 2, 0).is_err(), "cut at {cut}");
        }
        assert!(decode(&bytes, 1, 0).is_err());
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut hurt = bytes.clone();
                hurt[at] ^= 1 << bit;
                let _ = decode(&hurt, 2, 0);
            }
        }
    }
}
