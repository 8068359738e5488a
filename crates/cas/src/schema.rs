//! The catalogues: their numbers and how their keys are encoded. Numbers and encodings are on disk: they
//! are never used again for anything else.
//!
//! The order of encoded keys is the order of what they encode. Object keys are arbitrary bytes with something behind
//! them (a version, an upload id), so a zero byte is written as `00 01` and the key ends with `00 00`: the end sorts
//! before any continuation, and a bound may stop before the end.

use cobalt_base::{Fid, SessionId};
use uuid::Uuid;

/// Counters and identity of the catalogue: text → number.
pub const META: u32 = 1;
/// Bucket name → bucket.
pub const BUCKETS: u32 = 2;
/// (bucket id, key, version) → object. The only version today is the empty one; numbered ones sort behind it.
pub const OBJECTS: u32 = 3;
/// Fid → what names it, or that it is on the dead list. A fid of a body is in exactly one state.
pub const FIDS: u32 = 4;
/// (bucket id, key, upload id) → upload under way.
pub const UPLOADS: u32 = 5;
/// Upload id → its state, for as long as its parts are there.
pub const UPLOAD_STATES: u32 = 6;
/// (upload id, number) → part.
pub const PARTS: u32 = 7;
/// (index of the commit, what) → what is to be collected.
pub const DEAD: u32 = 8;
/// Session → its state.
pub const SESSIONS: u32 = 9;
/// Process name → its present session.
pub const PROCESSES: u32 = 10;
/// (session, request) → answer.
pub const ANSWERS: u32 = 11;
/// (fenced session, target) → how far its fence is there.
pub const FENCES: u32 = 12;
/// Version → pool map.
pub const POOLS: u32 = 13;
/// Access key → credential.
pub const CREDENTIALS: u32 = 14;

/// Rows of [`META`].
pub mod meta {
    pub const INCARNATION: &[u8] = b"incarnation";
    /// Rises at each start.
    pub const TERM: &[u8] = b"term";
    pub const NEXT_BUCKET: &[u8] = b"next-bucket";
    pub const NEXT_SESSION: &[u8] = b"next-session";
    /// Number of buckets.
    pub const BUCKETS: &[u8] = b"buckets";
    /// Number of rows of the dead list.
    pub const DEAD: &[u8] = b"dead";
    /// Number of sessions, fenced ones included.
    pub const SESSIONS: &[u8] = b"sessions";
    /// Number of fenced sessions.
    pub const FENCED: &[u8] = b"fenced";
}

/// What can be on the dead list, in the order of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeadKey {
    /// Uploads that were under way in a bucket that was deleted.
    BucketUploads(u64),
    /// All parts of an upload.
    Upload(Uuid),
    /// Parts of a completed upload that the object does not name.
    UploadRest(Uuid),
    /// The cobs of a fid.
    Fid(Fid),
}

fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(1);
        }
    }
}

/// Lower bound of all rows of `bucket` whose key is at least `key`, in [`OBJECTS`] and [`UPLOADS`].
pub fn key_bound(bucket: u64, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + key.len() + 2);
    out.extend_from_slice(&bucket.to_be_bytes());
    escape(&mut out, key);
    out
}

/// Key of the object's present version.
pub fn object(bucket: u64, key: &[u8]) -> Vec<u8> {
    let mut out = key_bound(bucket, key);
    out.extend_from_slice(&[0, 0]);
    out
}

/// Key of an upload under way.
pub fn upload(bucket: u64, key: &[u8], upload: Uuid) -> Vec<u8> {
    let mut out = object(bucket, key);
    out.extend_from_slice(upload.as_bytes());
    out
}

/// The object key of a row of [`OBJECTS`] or [`UPLOADS`], and what follows its end.
pub fn parse_key(row: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut rest = row.get(8..)?;
    let mut key = Vec::with_capacity(rest.len());
    loop {
        match rest {
            [0, 0, tail @ ..] => return Some((key, tail)),
            [0, 1, tail @ ..] => {
                key.push(0);
                rest = tail;
            }
            [0, ..] | [] => return None,
            [byte, tail @ ..] => {
                key.push(*byte);
                rest = tail;
            }
        }
    }
}

/// First row that belongs to no bucket up to `bucket`; `None` for the last bucket of all.
pub fn bucket_end(bucket: u64) -> Option<Vec<u8>> {
    bucket.checked_add(1).map(|next| next.to_be_bytes().to_vec())
}

/// The smallest key above every key that starts with `prefix`; `None` when there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

/// Key of a part.
pub fn part(upload: Uuid, number: u16) -> Vec<u8> {
    [upload.as_bytes().as_slice(), &number.to_be_bytes()].concat()
}

/// The number of a row of [`PARTS`] when it is a part of `upload`.
pub fn part_number(row: &[u8], upload: Uuid) -> Option<u16> {
    match row.strip_prefix(upload.as_bytes().as_slice())? {
        [high, low] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

/// Key of a stored answer.
pub fn answer(session: SessionId, request: u64) -> Vec<u8> {
    [session.0.to_be_bytes(), request.to_be_bytes()].concat()
}

/// Session and request of a stored answer.
pub fn parse_answer(row: &[u8]) -> Option<(SessionId, u64)> {
    let (session, request) = row.split_first_chunk::<8>()?;
    let request: [u8; 8] = request.try_into().ok()?;
    Some((SessionId(u64::from_be_bytes(*session)), u64::from_be_bytes(request)))
}

/// Key of a session.
pub fn session(session: SessionId) -> Vec<u8> {
    session.0.to_be_bytes().to_vec()
}

/// The session of a key of [`SESSIONS`].
pub fn parse_session(row: &[u8]) -> Option<SessionId> {
    row.try_into().ok().map(|bytes| SessionId(u64::from_be_bytes(bytes)))
}

/// Key of a fenced session at a target.
pub fn fence(session: SessionId, target: Uuid) -> Vec<u8> {
    [session.0.to_be_bytes().as_slice(), target.as_bytes()].concat()
}

/// Key of a pool version.
pub fn pool(version: u32) -> Vec<u8> {
    version.to_be_bytes().to_vec()
}

/// Key of an entry of the dead list, made by the commit at `index`.
pub fn dead(index: u64, what: DeadKey) -> Vec<u8> {
    let (tag, id): (u8, [u8; 16]) = match what {
        DeadKey::BucketUploads(bucket) => (0, u128::from(bucket).to_be_bytes()),
        DeadKey::Upload(upload) => (1, *upload.as_bytes()),
        DeadKey::UploadRest(upload) => (2, *upload.as_bytes()),
        DeadKey::Fid(fid) => (3, fid.to_key()),
    };
    let mut out = index.to_be_bytes().to_vec();
    out.push(tag);
    out.extend_from_slice(&id);
    out
}

/// Index and subject of a row of [`DEAD`].
pub fn parse_dead(row: &[u8]) -> Option<(u64, DeadKey)> {
    let (index, rest) = row.split_first_chunk::<8>()?;
    let (tag, id) = rest.split_first()?;
    let id: [u8; 16] = id.try_into().ok()?;
    let what = match tag {
        0 => DeadKey::BucketUploads(u64::try_from(u128::from_be_bytes(id)).ok()?),
        1 => DeadKey::Upload(Uuid::from_bytes(id)),
        2 => DeadKey::UploadRest(Uuid::from_bytes(id)),
        3 => DeadKey::Fid(Fid::from_key(id)),
        _ => return None,
    };
    Some((u64::from_be_bytes(*index), what))
}

#[cfg(test)]
mod tests {
    use super::{
        DeadKey, dead, key_bound, object, parse_dead, parse_key, part, part_number, prefix_end, upload,
    };
    use cobalt_base::{Fid, SessionId};
    use proptest::prelude::{Strategy, any, prop};
    use proptest::{prop_assert, prop_assert_eq, prop_oneof, proptest};
    use uuid::Uuid;

    /// Few distinct bytes, the awkward ones among them, so that prefixes and equal keys are common.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, b'/', 0xfe, 0xff]), 0..6)
    }

    fn subject() -> impl Strategy<Value = DeadKey> {
        prop_oneof![
            any::<u64>().prop_map(DeadKey::BucketUploads),
            any::<u128>().prop_map(|id| DeadKey::Upload(Uuid::from_u128(id))),
            any::<u128>().prop_map(|id| DeadKey::UploadRest(Uuid::from_u128(id))),
            (0u64..3, any::<u64>()).prop_map(|(s, c)| DeadKey::Fid(Fid::new(SessionId(s), c))),
        ]
    }

    proptest! {
        #[test]
        fn object_keys_keep_the_order_of_bytes(a in bytes(), b in bytes(), p in 0u64..3, q in 0u64..3) {
            let (x, y) = (object(p, &a), object(q, &b));
            prop_assert_eq!(x.cmp(&y), (p, &a).cmp(&(q, &b)));
            let (back, rest) = parse_key(&x).expect("it was just made");
            prop_assert_eq!(back, a);
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn a_bound_lies_between_smaller_and_larger_keys(a in bytes(), b in bytes(), version in any::<u64>()) {
            let row = [object(1, &a), version.to_be_bytes().to_vec()].concat();
            prop_assert_eq!(row >= key_bound(1, &b), a >= b);
            prop_assert!(row > object(1, &a), "numbered versions sort behind the present one");
        }

        #[test]
        fn uploads_sort_by_key_and_then_by_id(a in bytes(), b in bytes(), i in any::<u128>(), j in any::<u128>()) {
            let (i, j) = (Uuid::from_u128(i), Uuid::from_u128(j));
            prop_assert_eq!(upload(1, &a, i).cmp(&upload(1, &b, j)), (&a, i).cmp(&(&b, j)));
        }

        #[test]
        fn nothing_fits_between_a_prefix_and_its_end(prefix in bytes(), key in bytes()) {
            let below = prefix_end(&prefix).is_none_or(|end| key < end);
            prop_assert_eq!(key >= prefix && below, key.starts_with(&prefix));
        }

        #[test]
        fn the_dead_list_is_in_order_of_commits(a in 0u64..3, b in 0u64..3, x in subject(), y in subject()) {
            prop_assert_eq!(parse_dead(&dead(a, x)), Some((a, x)));
            if a != b {
                prop_assert_eq!(dead(a, x).cmp(&dead(b, y)), a.cmp(&b));
            } else {
                prop_assert_eq!(dead(a, x) == dead(b, y), x == y);
            }
        }

        #[test]
        fn parts_sort_by_number(a in any::<u16>(), b in any::<u16>(), id in any::<u128>()) {
            let id = Uuid::from_u128(id);
            prop_assert_eq!(part(id, a).cmp(&part(id, b)), a.cmp(&b));
            prop_assert_eq!(part_number(&part(id, a), id), Some(a));
        }

        #[test]
        fn bytes_that_are_no_key_are_refused(row in prop::collection::vec(any::<u8>(), 0..24)) {
            if let Some((key, rest)) = parse_key(&row) {
                let bucket = u64::from_be_bytes(row[..8].try_into().unwrap());
                prop_assert_eq!([object(bucket, &key), rest.to_vec()].concat(), row.clone());
            }
            if let Some((index, what)) = parse_dead(&row) {
                prop_assert_eq!(dead(index, what), row);
            }
        }
    }
}
