//! Catalogues: ordered key-value indexes with conditions that are judged at commit time (I9).

use crate::commit::{Kind, Work};
use crate::error::StoreError;
use crate::schema;
use crate::stage::Stage;
use crate::store::Store;
use crate::tree::{Miss, TreeId};
use crate::tx::TxClass;
use cobalt_base::Lsn;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::rc::Rc;

/// One change of a catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtgOp {
    Put {
        ctg: u32,
        #[serde(with = "as_bytes")]
        key: Vec<u8>,
        #[serde(with = "as_bytes")]
        value: Vec<u8>,
    },
    Delete {
        ctg: u32,
        #[serde(with = "as_bytes")]
        key: Vec<u8>,
    },
}

/// The catalogues of a target.
#[derive(Clone)]
pub struct Ctg(pub(crate) Store);

/// What a decision sees: everything before it, pending or applied.
pub struct CtgView {
    pub(crate) stage: Rc<Stage>,
    pub(crate) lsn: Lsn,
}

type Entry = (Vec<u8>, Vec<u8>);

impl Ctg {
    /// The value of a key; applied state only, so durable.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(&self, ctg: u32, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.get_with(ctg, key, <[u8]>::to_vec).await
    }

    /// What `read` makes of the value of a key, where it lies; applied state only, so durable.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get_with<T>(
        &self,
        ctg: u32,
        key: &[u8],
        read: impl Fn(&[u8]) -> T,
    ) -> Result<Option<T>, StoreError> {
        let key = schema::ctg_key(ctg, key);
        let forest = &self.0.0.forest;
        match forest.get_with(TreeId::Ctg, &key, &read) {
            Ok(found) => Ok(found),
            Err(_) => self.0.0.look(|_| Ok(forest.get_with(TreeId::Ctg, &key, &read)?)).await,
        }
    }

    /// Up to `limit` entries with `from` <= key < `until`, in order; applied state only. Entries that
    /// change while it runs may be seen before or after the change.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn scan(
        &self,
        ctg: u32,
        from: &[u8],
        until: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut out = Vec::new();
        let mut from = schema::ctg_key(ctg, from);
        let end = match (until, ctg.checked_add(1)) {
            (Some(until), _) => Some(schema::ctg_key(ctg, until)),
            (None, Some(next)) => Some(schema::ctg_key(next, &[])),
            (None, None) => None,
        };
        let core = &self.0.0;
        // A page that does not fit the cache would be begun anew for ever.
        let bytes = (core.limits.node_cache / 8).min(SCAN_BYTES) as usize;
        while out.len() < limit {
            let most = limit - out.len();
            let page =
                core.look(|_| Ok(core.forest.scan(TreeId::Ctg, &from, end.as_deref(), most, bytes)?)).await?;
            let Some((last, _)) = page.last() else { break };
            from.clear();
            from.extend_from_slice(last);
            from.push(0);
            out.extend(page.into_iter().filter_map(|(k, v)| Some((schema::ctg_place(&k)?.1.to_vec(), v))));
        }
        Ok(out)
    }

    /// Runs `decide` when the transaction takes its lsn, makes what it wants durable, and only then
    /// hands its answer out; a refusal (no ops) waits just the same. It may run several times: a node
    /// that is not in memory is loaded and the decision taken again.
    ///
    /// # Errors
    /// [`StoreError`]; `Invalid` when the ops are too large for one transaction or one tree entry.
    pub async fn transact<T: 'static>(
        &self,
        decide: impl Fn(&CtgView) -> Result<(Vec<CtgOp>, T), Miss> + 'static,
    ) -> Result<(T, Lsn), StoreError> {
        let core = &self.0.0;
        core.may_write()?;
        core.admit(TxClass::Cas).await?;
        let room = core.journal.reserve(TxClass::Cas, core.ctg_tx, || core.alive()).await?;
        let answer = Rc::new(RefCell::new(None));
        let slot = answer.clone();
        let decide = move |view: &CtgView| {
            let (ops, value) = decide(view)?;
            *slot.borrow_mut() = Some(value);
            Ok(ops)
        };
        let lsn = core.submit(Work::new(TxClass::Cas, Kind::Decide(Box::new(decide)), Some(room))).await?;
        let value = answer.borrow_mut().take().expect("a decision that was answered was taken");
        Ok((value, lsn))
    }

    /// The last applied transaction.
    pub fn applied(&self) -> Lsn {
        self.0.0.applied.get().lsn
    }
}

/// Most bytes of one page of a scan.
const SCAN_BYTES: u64 = 256 << 10;

impl CtgView {
    /// The value of a key.
    ///
    /// # Errors
    /// [`Miss`], to be passed on.
    pub fn get(&self, ctg: u32, key: &[u8]) -> Result<Option<Vec<u8>>, Miss> {
        self.stage.get(TreeId::Ctg, &schema::ctg_key(ctg, key))
    }

    /// The first entry with a key at or after `from`.
    ///
    /// # Errors
    /// [`Miss`], to be passed on.
    pub fn next(&self, ctg: u32, from: &[u8]) -> Result<Option<Entry>, Miss> {
        let entry = self.stage.next(TreeId::Ctg, &schema::ctg_key(ctg, from))?;
        Ok(entry.and_then(|(key, value)| match schema::ctg_place(&key) {
            Some((c, rest)) if c == ctg => Some((rest.to_vec(), value)),
            _ => None,
        }))
    }

    /// The lsn that the transaction takes.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }
}

/// Checks what a decision wants against the sizes of trees and journal.
pub(crate) fn check_ops(
    ops: &[CtgOp],
    entry_max: usize,
    key_max: usize,
    tx_max: usize,
) -> Result<(), StoreError> {
    for op in ops {
        let (CtgOp::Put { key, .. } | CtgOp::Delete { key, .. }) = op;
        let value = if let CtgOp::Put { value, .. } = op { value.len() } else { 0 };
        if key.len() + 4 > key_max || key.len() + 4 + value > entry_max {
            let why = format!("an entry of {} + {value} bytes; at most {entry_max}", key.len());
            return Err(StoreError::Invalid(why));
        }
    }
    let bytes = encoded_len(ops);
    if bytes > tx_max {
        return Err(StoreError::Invalid(format!("{bytes} bytes of changes; at most {tx_max}")));
    }
    Ok(())
}

/// Bytes that a transaction of these operations takes in the journal.
fn encoded_len(ops: &[CtgOp]) -> usize {
    let sized = |bytes: &[u8]| varint_len(bytes.len()) + bytes.len();
    let op_len = |op: &CtgOp| match op {
        CtgOp::Put { ctg, key, value } => 2 + varint_len(*ctg as usize) + sized(key) + sized(value),
        CtgOp::Delete { ctg, key } => 2 + varint_len(*ctg as usize) + sized(key),
    };
    4 + varint_len(ops.len()) + ops.iter().map(op_len).sum::<usize>()
}

/// Appends a transaction of these operations to a record's payload, byte for byte as [`crate::intent::encode`] does.
pub(crate) fn encode(ops: &[CtgOp], out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    put_number(ops.len(), out);
    for op in ops {
        let (CtgOp::Put { ctg, key, .. } | CtgOp::Delete { ctg, key }) = op;
        out.extend_from_slice(&[CTG_INTENT, u8::from(matches!(op, CtgOp::Delete { .. }))]);
        put_number(*ctg as usize, out);
        put_bytes(key, out);
        if let CtgOp::Put { value, .. } = op {
            put_bytes(value, out);
        }
    }
    let len = u32::try_from(out.len() - at - 4).expect("checked against the largest transaction");
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// The place of `Ctg` among the intents.
const CTG_INTENT: u8 = 5;

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_number(bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn put_number(mut n: usize, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Bytes of a number in the journal's encoding: seven bits in each.
fn varint_len(n: usize) -> usize {
    ((usize::BITS - n.leading_zeros()).max(1) as usize).div_ceil(7)
}

/// Bytes as bytes, not as a list of numbers: the encoding is the same, and many times as fast.
mod as_bytes {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};
    use std::fmt;

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Take;
        impl Visitor<'_> for Take {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        from.deserialize_bytes(Take)
    }
}

#[cfg(test)]
mod tests {
    use super::{CtgOp, encoded_len};
    use crate::intent::{Intent, decode, encode};

    #[test]
    fn the_length_of_a_transaction_is_known_before_it_is_encoded() {
        let lens = [0, 1, 127, 128, 16_383, 16_384];
        let ctgs = [0, 127, 128, u32::MAX];
        let put =
            |(key, value): (usize, usize), ctg| CtgOp::Put { ctg, key: vec![1; key], value: vec![2; value] };
        let mut ops: Vec<_> = lens.iter().flat_map(|a| lens.map(|b| put((*a, b), ctgs[b % 4]))).collect();
        ops.extend(ctgs.map(|ctg| CtgOp::Delete { ctg, key: vec![0, 255] }));
        for count in [0, 1, 5, ops.len()] {
            let mut bytes = Vec::new();
            let intents: Vec<_> = ops[..count].iter().cloned().map(Intent::Ctg).collect();
            encode(&intents, &mut bytes);
            assert_eq!(bytes.len(), encoded_len(&ops[..count]), "{count}");
            let mut same = Vec::new();
            super::encode(&ops[..count], &mut same);
            assert!(same == bytes, "one form on disk, whichever way it is made: {count}");
            assert_eq!(decode(&bytes, 1, 0).expect("whole"), [intents]);
        }
    }

    #[test]
    fn an_operation_keeps_its_place_in_the_format() {
        let mut bytes = Vec::new();
        let op = CtgOp::Put { ctg: 300, key: vec![9, 8], value: vec![7] };
        encode(&[Intent::Ctg(op), Intent::Ctg(CtgOp::Delete { ctg: 1, key: vec![5] })], &mut bytes);
        assert_eq!(bytes, [15, 0, 0, 0, 2, 5, 0, 0xac, 2, 2, 9, 8, 1, 7, 5, 1, 1, 1, 5]);
    }
}
