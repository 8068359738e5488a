//! Multipart uploads. A part is a record under the upload's id and stays one when the upload is
//! completed: Complete is one small commit, however many parts there are.

use crate::bucket;
use crate::draft::{Draft, Stop};
use crate::object::{bury_body, check_key, find, judge, name_body};
use crate::row::{FidRow, UploadStage, UploadState, body_fid};
use crate::schema::{self, DeadKey, OBJECTS, PARTS, UPLOAD_STATES, UPLOADS};
use cobalt_base::SessionId;
use cobalt_rpc::proto::cas::{CasError, Condition, Outcome, PARTS_MAX};
use cobalt_rpc::proto::record::{Body, ObjectRecord, PartRecord, UploadRecord};
use uuid::Uuid;

/// Whether the bitmap of part numbers has `number`.
pub fn has_number(numbers: &[u8], number: u16) -> bool {
    let Some(bit) = number.checked_sub(1) else { return false };
    numbers.get(usize::from(bit / 8)).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
}

/// Begins an upload.
pub fn create(draft: &mut Draft<'_>, bucket: &str, record: &UploadRecord) -> Result<Outcome, Stop> {
    let bucket = bucket::find(draft, bucket)?;
    check_key(&record.key)?;
    let id = record.upload.as_bytes().to_vec();
    if draft.get::<UploadState>(UPLOAD_STATES, &id)?.is_some() {
        return Err(CasError::Malformed(format!("upload {} was begun before", record.upload)).into());
    }
    let state =
        UploadState { bucket: bucket.id, key: record.key.clone(), revision: 0, stage: UploadStage::Open };
    draft.put(UPLOAD_STATES, id, &state)?;
    draft.put(UPLOADS, schema::upload(bucket.id, &record.key, record.upload), record)?;
    Ok(Outcome::Done)
}

/// The state of an upload of this bucket and key.
fn state_of(draft: &Draft<'_>, bucket: &str, key: &[u8], upload: Uuid) -> Result<UploadState, Stop> {
    let bucket = bucket::find(draft, bucket)?;
    match draft.get::<UploadState>(UPLOAD_STATES, upload.as_bytes())? {
        Some(state) if state.bucket == bucket.id && state.key == key => Ok(state),
        _ => Err(CasError::NoSuchUpload(upload).into()),
    }
}

fn open_state(draft: &Draft<'_>, bucket: &str, key: &[u8], upload: Uuid) -> Result<UploadState, Stop> {
    let state = state_of(draft, bucket, key, upload)?;
    match state.stage {
        UploadStage::Open => Ok(state),
        _ => Err(CasError::NoSuchUpload(upload).into()),
    }
}

/// Adds a part, or replaces the one of its number.
pub fn put_part(
    draft: &mut Draft<'_>,
    session: SessionId,
    bucket: &str,
    key: &[u8],
    upload: Uuid,
    part: &PartRecord,
) -> Result<Outcome, Stop> {
    let mut state = open_state(draft, bucket, key, upload)?;
    if part.number == 0 || part.number > PARTS_MAX {
        return Err(
            CasError::Malformed(format!("part {}; 1 to {PARTS_MAX} are possible", part.number)).into()
        );
    }
    let row = schema::part(upload, part.number);
    let old: Option<PartRecord> = draft.get(PARTS, &row)?;
    name_body(draft, session, &part.body, part.size, &FidRow::Part { upload, number: part.number })?;
    if let Some(old) = old {
        bury_body(draft, &old.body)?;
    }
    draft.put(PARTS, row, part)?;
    state.revision += 1;
    draft.put(UPLOAD_STATES, upload.as_bytes().to_vec(), &state)?;
    Ok(Outcome::Done)
}

/// Ends an upload; its parts die.
pub fn abort(draft: &mut Draft<'_>, bucket: &str, key: &[u8], upload: Uuid) -> Result<Outcome, Stop> {
    let state = open_state(draft, bucket, key, upload)?;
    abort_open(draft, draft.index(), upload, state)?;
    Ok(Outcome::Done)
}

/// As [`abort`], whether or not its bucket is still there; the dead entry is of the commit at `index`.
pub fn abort_open(
    draft: &mut Draft<'_>,
    index: u64,
    upload: Uuid,
    mut state: UploadState,
) -> Result<(), Stop> {
    draft.delete(UPLOADS, schema::upload(state.bucket, &state.key, upload));
    state.stage = UploadStage::Aborted;
    draft.put(UPLOAD_STATES, upload.as_bytes().to_vec(), &state)?;
    draft.bury(index, DeadKey::Upload(upload), None)
}

/// What the service read of an upload's parts before the commit, and at which revision. The commit takes it only if
/// the revision is still the same: then it is what the commit would read, without reading 10,000 rows in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartsRead {
    pub revision: u64,
    /// `parts_digest` of the parts that Complete names; `None` when one of them is missing.
    pub digest: Option<u64>,
    /// Whether the upload has parts that Complete does not name.
    pub rest: bool,
}

/// An upload to publish as an object.
pub struct Complete<'a> {
    pub bucket: &'a str,
    pub key: &'a [u8],
    pub upload: Uuid,
    pub numbers: &'a [u8],
    pub digest: u64,
    pub record: &'a ObjectRecord,
    pub condition: &'a Condition,
}

/// Publishes an upload as an object. `None` when `read` is of another revision: read again.
pub fn complete(
    draft: &mut Draft<'_>,
    new: &Complete<'_>,
    read: &PartsRead,
) -> Result<Option<Outcome>, Stop> {
    let mut state = state_of(draft, new.bucket, new.key, new.upload)?;
    match &state.stage {
        UploadStage::Open => {}
        UploadStage::Completed { numbers, etag } if numbers == new.numbers => {
            return Ok(Some(Outcome::Published { etag: etag.clone() }));
        }
        _ => return Err(CasError::NoSuchUpload(new.upload).into()),
    }
    let count: u32 = new.numbers.iter().map(|byte| byte.count_ones()).sum();
    let body = Body::Parts { upload: new.upload, count };
    let in_range = new.numbers.len() <= usize::from(PARTS_MAX.div_ceil(8));
    if count == 0 || new.record.body != body || !in_range {
        let why = format!("Complete names {count} parts, its record says {:?}", new.record.body);
        return Err(CasError::Malformed(why).into());
    }
    if state.revision != read.revision {
        return Ok(None);
    }
    if read.digest != Some(new.digest) {
        return Err(CasError::InvalidPart.into());
    }
    let old = find(draft, state.bucket, new.key)?;
    judge(old.as_ref(), new.condition)?;
    if let Some(old) = old {
        bury_body(draft, &old.body)?;
    }
    if read.rest {
        draft.bury(draft.index(), DeadKey::UploadRest(new.upload), None)?;
    }
    draft.delete(UPLOADS, schema::upload(state.bucket, new.key, new.upload));
    draft.put(OBJECTS, schema::object(state.bucket, new.key), new.record)?;
    state.stage = UploadStage::Completed { numbers: new.numbers.to_vec(), etag: new.record.etag.clone() };
    draft.put(UPLOAD_STATES, new.upload.as_bytes().to_vec(), &state)?;
    Ok(Some(Outcome::Published { etag: new.record.etag.clone() }))
}

/// Moves up to `limit` parts of a dead upload, or of what its object does not name, to the dead list at `index`, the
/// index of the entry that stands for them. True when none is left.
pub fn bury_parts(
    draft: &mut Draft<'_>,
    index: u64,
    upload: Uuid,
    rest_only: bool,
    limit: usize,
) -> Result<bool, Stop> {
    let state: Option<UploadState> = draft.get(UPLOAD_STATES, upload.as_bytes())?;
    let kept = match (rest_only, state) {
        (true, Some(UploadState { stage: UploadStage::Completed { numbers, .. }, .. })) => numbers,
        (true, _) => return Ok(true),
        (false, _) => Vec::new(),
    };
    let (mut from, mut seen) = (schema::part(upload, 0), 0);
    while let Some((row, value)) = draft.next(PARTS, &from)? {
        let Some(number) = schema::part_number(&row, upload) else { break };
        if seen == limit {
            return Ok(false);
        }
        from = [row.as_slice(), &[0]].concat();
        if has_number(&kept, number) {
            continue;
        }
        seen += 1;
        let part: PartRecord = crate::row::Row::decode(&value)?;
        if let (Some(fid), Body::Single(extent)) = (body_fid(&part.body), &part.body) {
            draft.bury(index, DeadKey::Fid(fid), Some(extent.layout.pool))?;
        }
        draft.delete(PARTS, row);
    }
    if !rest_only {
        draft.delete(UPLOAD_STATES, upload.as_bytes().to_vec());
    }
    Ok(true)
}
