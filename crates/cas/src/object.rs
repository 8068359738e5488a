//! Objects: publish, replace, delete. The commit that takes a name away from a fid puts the fid on
//! the dead list (I9a), whatever the reason.

use crate::bucket;
use crate::draft::{Draft, Stop};
use crate::row::FidRow;
use crate::schema::{self, DeadKey, FIDS, OBJECTS};
use cobalt_base::SessionId;
use cobalt_rpc::proto::cas::{CasError, Condition, DELETE_KEYS_MAX, KEY_MAX, Outcome};
use cobalt_rpc::proto::record::{Body, Extent, ObjectRecord};

/// An object to publish, and where.
pub struct Publish<'a> {
    pub session: SessionId,
    pub bucket: &'a str,
    pub bucket_id: u64,
    pub key: &'a [u8],
    pub record: &'a ObjectRecord,
    pub condition: &'a Condition,
}

/// Publishes an object that one PUT wrote.
pub fn put(draft: &mut Draft<'_>, new: &Publish<'_>) -> Result<Outcome, Stop> {
    let bucket = bucket::find(draft, new.bucket)?;
    if bucket.id != new.bucket_id {
        return Err(CasError::NoSuchBucket(new.bucket.to_owned()).into());
    }
    check_key(new.key)?;
    let old = find(draft, bucket.id, new.key)?;
    judge(old.as_ref(), new.condition)?;
    let name = FidRow::Object { bucket: bucket.id, key: new.key.to_vec() };
    let old = old.map(|old| old.body);
    // A copy onto itself with other metadata names the same body again.
    let same = old.as_ref() == Some(&new.record.body);
    if !same {
        name_body(draft, new.session, &new.record.body, new.record.size, &name)?;
        if let Some(old) = old {
            bury_body(draft, &old)?;
        }
    }
    draft.put(OBJECTS, schema::object(bucket.id, new.key), new.record)?;
    Ok(Outcome::Published { etag: new.record.etag.clone() })
}

/// Deletes an object; one that does not exist is deleted all the same unless it had to match.
pub fn delete(
    draft: &mut Draft<'_>,
    bucket: &str,
    key: &[u8],
    condition: &Condition,
) -> Result<Outcome, Stop> {
    let bucket = bucket::find(draft, bucket)?;
    check_key(key)?;
    let old = find(draft, bucket.id, key)?;
    judge(old.as_ref(), condition)?;
    Ok(Outcome::Deleted(vec![remove(draft, bucket.id, key, old)?]))
}

/// Deletes each of `keys`.
pub fn delete_many(draft: &mut Draft<'_>, bucket: &str, keys: &[Vec<u8>]) -> Result<Outcome, Stop> {
    if keys.len() > DELETE_KEYS_MAX {
        return Err(CasError::TooLarge(format!("{} keys; {DELETE_KEYS_MAX} are the most", keys.len())).into());
    }
    let bucket = bucket::find(draft, bucket)?;
    let mut existed = Vec::with_capacity(keys.len());
    for key in keys {
        check_key(key)?;
        let old = find(draft, bucket.id, key)?;
        existed.push(remove(draft, bucket.id, key, old)?);
    }
    Ok(Outcome::Deleted(existed))
}

fn remove(draft: &mut Draft<'_>, bucket: u64, key: &[u8], old: Option<ObjectRecord>) -> Result<bool, Stop> {
    let Some(old) = old else { return Ok(false) };
    draft.delete(OBJECTS, schema::object(bucket, key));
    bury_body(draft, &old.body)?;
    Ok(true)
}

/// The object's record.
pub fn find(draft: &Draft<'_>, bucket: u64, key: &[u8]) -> Result<Option<ObjectRecord>, Stop> {
    draft.get(OBJECTS, &schema::object(bucket, key))
}

/// Refuses keys that no row takes.
pub fn check_key(key: &[u8]) -> Result<(), CasError> {
    match key.len() {
        0 => Err(CasError::Malformed("an empty key".into())),
        1..=KEY_MAX => Ok(()),
        len => Err(CasError::TooLarge(format!("a key of {len} bytes; {KEY_MAX} are the most"))),
    }
}

/// Judges a condition against what is there when the commit takes its place in the order.
pub fn judge(old: Option<&ObjectRecord>, condition: &Condition) -> Result<(), CasError> {
    if condition.absent && old.is_some() {
        return Err(CasError::PreconditionFailed);
    }
    match (&condition.if_match, old) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(CasError::NoSuchKey),
        (Some(etag), Some(old)) if *etag == old.etag => Ok(()),
        (Some(_), Some(_)) => Err(CasError::PreconditionFailed),
    }
}

/// Gives the body's fid its name. A fid is named once: it must be the session's own, and no record may ever have
/// named it.
pub fn name_body(
    draft: &mut Draft<'_>,
    session: SessionId,
    body: &Body,
    size: u64,
    name: &FidRow,
) -> Result<(), Stop> {
    let malformed = |why: String| Err(Stop::Refused(CasError::Malformed(why)));
    match body {
        Body::Empty if size == 0 => Ok(()),
        Body::Empty => malformed(format!("{size} bytes in an empty body")),
        Body::Parts { .. } => malformed("only Complete makes an object of parts".into()),
        Body::Single(Extent { fid, size: stored, .. }) => {
            if *stored != size || size == 0 {
                return malformed(format!("a body of {stored} bytes for a size of {size}"));
            }
            if fid.session != session || fid.counter == 0 {
                return malformed(format!("fid {fid} is not one of session {session}"));
            }
            let key = fid.to_key().to_vec();
            if draft.get::<FidRow>(FIDS, &key)?.is_some() {
                return malformed(format!("fid {fid} was used before"));
            }
            draft.put(FIDS, key, name)
        }
    }
}

/// Puts what a record named on the dead list.
pub fn bury_body(draft: &mut Draft<'_>, body: &Body) -> Result<(), Stop> {
    match body {
        Body::Empty => Ok(()),
        Body::Single(extent) => draft.bury(draft.index(), DeadKey::Fid(extent.fid), Some(extent.layout.pool)),
        Body::Parts { upload, .. } => draft.bury(draft.index(), DeadKey::Upload(*upload), None),
    }
}
