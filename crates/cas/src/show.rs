//! The catalogues' rows for people who look at a target: names and keys in words, and which object a fid is of.

use crate::row::{FidRow, Row};
use crate::schema::{self, DeadKey};
use cobalt_base::Fid;
use cobalt_rpc::proto::record::{BucketRecord, ObjectRecord};
use uuid::Uuid;

/// The catalogue that says what names a fid: its keys are [`Fid::to_key`].
pub const FIDS: u32 = schema::FIDS;
/// The catalogue of buckets, by name.
pub const BUCKETS: u32 = schema::BUCKETS;
/// The catalogue of objects, by bucket and key.
pub const OBJECTS: u32 = schema::OBJECTS;

/// Numbers and names of all catalogues.
const NAMES: [(u32, &str); 14] = [
    (schema::META, "meta"),
    (schema::BUCKETS, "buckets"),
    (schema::OBJECTS, "objects"),
    (schema::FIDS, "fids"),
    (schema::UPLOADS, "uploads"),
    (schema::UPLOAD_STATES, "upload-states"),
    (schema::PARTS, "parts"),
    (schema::DEAD, "dead"),
    (schema::SESSIONS, "sessions"),
    (schema::PROCESSES, "processes"),
    (schema::ANSWERS, "answers"),
    (schema::FENCES, "fences"),
    (schema::POOLS, "pools"),
    (schema::CREDENTIALS, "credentials"),
];

/// The name of a catalogue.
pub fn catalogue_name(number: u32) -> Option<&'static str> {
    NAMES.iter().find(|(n, _)| *n == number).map(|(_, name)| *name)
}

/// The number of a catalogue.
pub fn catalogue_number(name: &str) -> Option<u32> {
    NAMES.iter().find(|(_, n)| *n == name).map(|(number, _)| *number)
}

/// What names a fid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FidOwner {
    Object {
        bucket: u64,
        key: Vec<u8>,
    },
    Part {
        upload: Uuid,
        number: u16,
    },
    /// Nothing: it waits for the collector.
    Dead,
}

/// What a row of [`FIDS`] says.
pub fn fid_owner(value: &[u8]) -> Option<FidOwner> {
    Some(match FidRow::decode(value).ok()? {
        FidRow::Object { bucket, key } => FidOwner::Object { bucket, key },
        FidRow::Part { upload, number } => FidOwner::Part { upload, number },
        FidRow::Dead { .. } => FidOwner::Dead,
    })
}

/// Id and name of a bucket, from its row of [`BUCKETS`].
pub fn bucket(value: &[u8]) -> Option<(u64, String)> {
    let record = BucketRecord::decode(value).ok()?;
    Some((record.id, record.name))
}

/// The key of an object, and its record, from a row of [`OBJECTS`].
pub fn object(key: &[u8], value: &[u8]) -> Option<(Vec<u8>, ObjectRecord)> {
    let (key, _) = schema::parse_key(key)?;
    Some((key, ObjectRecord::decode(value).ok()?))
}

/// A key in words; `None` when it is no key of that catalogue.
pub fn show_key(catalogue: u32, key: &[u8]) -> Option<String> {
    let text = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(bytes));
    match catalogue {
        schema::META | schema::BUCKETS | schema::PROCESSES | schema::CREDENTIALS => Some(text(key)),
        schema::OBJECTS | schema::UPLOADS => {
            let (bucket, _) = key.split_first_chunk::<8>()?;
            let bucket = u64::from_be_bytes(*bucket);
            let (name, rest) = schema::parse_key(key)?;
            match rest.try_into().map(Uuid::from_bytes) {
                Ok(upload) => Some(format!("bucket {bucket} {} upload {upload}", text(&name))),
                Err(_) => Some(format!("bucket {bucket} {}", text(&name))),
            }
        }
        schema::FIDS => Some(Fid::from_key(key.try_into().ok()?).to_string()),
        schema::UPLOAD_STATES => Some(format!("upload {}", Uuid::from_bytes(key.try_into().ok()?))),
        schema::PARTS => {
            let (upload, _) = key.split_first_chunk::<16>()?;
            let upload = Uuid::from_bytes(*upload);
            Some(format!("upload {upload} part {}", schema::part_number(key, upload)?))
        }
        schema::DEAD => {
            let (index, what) = schema::parse_dead(key)?;
            Some(match what {
                DeadKey::BucketUploads(bucket) => format!("commit {index} uploads of bucket {bucket}"),
                DeadKey::Upload(upload) => format!("commit {index} upload {upload}"),
                DeadKey::UploadRest(upload) => format!("commit {index} rest of upload {upload}"),
                DeadKey::Fid(fid) => format!("commit {index} fid {fid}"),
            })
        }
        schema::SESSIONS => Some(format!("session {}", schema::parse_session(key)?)),
        schema::ANSWERS => {
            let (session, request) = schema::parse_answer(key)?;
            Some(format!("session {session} request {request}"))
        }
        schema::FENCES => {
            let (session, target) = key.split_first_chunk::<8>()?;
            let target = Uuid::from_bytes(target.try_into().ok()?);
            Some(format!("session {} at target {target}", u64::from_be_bytes(*session)))
        }
        schema::POOLS => Some(format!("version {}", u32::from_be_bytes(key.try_into().ok()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{FidOwner, NAMES, catalogue_name, catalogue_number, fid_owner, show_key};
    use crate::row::{FidRow, Row};
    use crate::schema::{self, DeadKey};
    use cobalt_base::{Fid, SessionId};
    use uuid::Uuid;

    #[test]
    fn every_key_is_shown_in_words_and_cut_ones_are_told() {
        let (fid, upload) = (Fid::new(SessionId(3), 10), Uuid::from_u128(5));
        for (catalogue, key, shown) in [
            (schema::OBJECTS, schema::object(7, b"a\0b"), "bucket 7 \"a\\0b\""),
            (schema::FIDS, fid.to_key().to_vec(), "3:a"),
            (schema::PARTS, schema::part(upload, 9), "upload 00000000-0000-0000-0000-000000000005 part 9"),
            (schema::DEAD, schema::dead(4, DeadKey::Fid(fid)), "commit 4 fid 3:a"),
            (schema::ANSWERS, schema::answer(SessionId(3), 2), "session 3 request 2"),
            (schema::POOLS, schema::pool(2), "version 2"),
            (schema::BUCKETS, b"photos".to_vec(), "\"photos\""),
        ] {
            assert_eq!(show_key(catalogue, &key).as_deref(), Some(shown));
            if catalogue != schema::BUCKETS {
                assert_eq!(show_key(catalogue, &key[..key.len() - 1]), None);
            }
        }
        for (number, name) in NAMES {
            assert_eq!((catalogue_name(number), catalogue_number(name)), (Some(name), Some(number)));
        }
        let row = FidRow::Object { bucket: 7, key: b"k".to_vec() };
        assert_eq!(fid_owner(&row.encode()), Some(FidOwner::Object { bucket: 7, key: b"k".to_vec() }));
        assert_eq!(fid_owner(&[1]), None);
    }
}
