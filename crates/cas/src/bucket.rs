//! Buckets. Objects hang on a bucket's id, which is never used twice: a bucket that was deleted and
//! made again is another one.

use crate::draft::{Draft, Stop};
use crate::limits::NAME_MAX;
use crate::schema::{self, BUCKETS, DeadKey, OBJECTS, UPLOADS, meta};
use cobalt_base::UnixMillis;
use cobalt_rpc::proto::cas::{CasError, Outcome};
use cobalt_rpc::proto::record::BucketRecord;

/// The bucket `name`.
pub fn find(draft: &Draft<'_>, name: &str) -> Result<BucketRecord, Stop> {
    check_name("a bucket name", name)?;
    match draft.get(BUCKETS, name.as_bytes())? {
        Some(bucket) => Ok(bucket),
        None => Err(CasError::NoSuchBucket(name.to_owned()).into()),
    }
}

/// Refuses names that are empty or longer than a row takes.
pub fn check_name(what: &str, name: &str) -> Result<(), CasError> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(CasError::TooLarge(format!(
            "{what} of {} bytes; 1 to {NAME_MAX} are possible",
            name.len()
        )));
    }
    Ok(())
}

/// Makes a bucket.
pub fn create(draft: &mut Draft<'_>, name: &str, owner: &str, created: UnixMillis) -> Result<Outcome, Stop> {
    check_name("a bucket name", name)?;
    check_name("an owner", owner)?;
    if let Some(BucketRecord { name, owner, .. }) = draft.get(BUCKETS, name.as_bytes())? {
        return Err(CasError::BucketExists { name, owner }.into());
    }
    let id = draft.count(meta::NEXT_BUCKET, 1)?;
    let record = BucketRecord { id, name: name.to_owned(), owner: owner.to_owned(), created };
    draft.put(BUCKETS, name.as_bytes().to_vec(), &record)?;
    draft.count(meta::BUCKETS, 1)?;
    Ok(Outcome::BucketCreated(record))
}

/// Deletes a bucket that has no object. Uploads under way in it die with it.
pub fn delete(draft: &mut Draft<'_>, name: &str) -> Result<Outcome, Stop> {
    let bucket = find(draft, name)?;
    if has_row(draft, OBJECTS, bucket.id)? {
        return Err(CasError::BucketNotEmpty(name.to_owned()).into());
    }
    if has_row(draft, UPLOADS, bucket.id)? {
        draft.bury(draft.index(), DeadKey::BucketUploads(bucket.id), None)?;
    }
    draft.delete(BUCKETS, name.as_bytes().to_vec());
    draft.count(meta::BUCKETS, -1)?;
    Ok(Outcome::Done)
}

fn has_row(draft: &Draft<'_>, ctg: u32, bucket: u64) -> Result<bool, Stop> {
    let first = draft.next(ctg, &schema::key_bound(bucket, &[]))?;
    Ok(first.is_some_and(|(row, _)| row.starts_with(&bucket.to_be_bytes())))
}
