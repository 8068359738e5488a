//! Questions. Each is answered from applied, so durable state; the position that goes with an answer
//! is taken before the first read, so that it never claims a commit that the answer may not reflect.

use crate::limits::{SCAN_ROWS, SESSIONS_MAX};
use crate::list::{Names, PageBuilder, PageRow, list};
use crate::row::{PoolRow, Row, SessionState, UploadStage, UploadState};
use crate::schema::{
    self, BUCKETS, CREDENTIALS, OBJECTS, PARTS, POOLS, SESSIONS, UPLOAD_STATES, UPLOADS, meta,
};
use crate::table::Table;
use crate::upload::has_number;
use cobalt_rpc::proto::cas::{Answer, CasError, ListRow, Page, Query, SessionRow, UploadRow};
use cobalt_rpc::proto::record::{BucketRecord, KeyRecord, ObjectRecord, PartRecord, PoolMap, UploadRecord};
use uuid::Uuid;

/// Most sessions that the status names.
const STATUS_SESSIONS: usize = 128;

impl PageRow for ListRow {
    fn bytes(&self) -> usize {
        match self {
            ListRow::Object { key, etag, .. } => key.len() + etag.len() + 40,
            ListRow::Prefix(prefix) => prefix.len() + 8,
        }
    }
}

impl PageRow for UploadRow {
    fn bytes(&self) -> usize {
        match self {
            UploadRow::Upload { key, .. } => key.len() + 40,
            UploadRow::Prefix(prefix) => prefix.len() + 8,
        }
    }
}

macro_rules! stored_page_rows {
    ($($row:ty),*) => {
        $(impl PageRow for $row {
            fn bytes(&self) -> usize {
                self.encode().len()
            }
        })*
    };
}

stored_page_rows!(BucketRecord, PartRecord, KeyRecord);

/// Answers all but `Status`, which the service knows.
///
/// # Errors
/// [`CasError`].
pub async fn answer(table: &Table, query: &Query) -> Result<Answer, CasError> {
    match query {
        Query::Cluster => cluster(table).await,
        Query::Bucket { name } => Ok(Answer::Bucket(bucket(table, name).await?)),
        Query::Buckets { after, limit } => Ok(Answer::Buckets(page(table, BUCKETS, after, *limit).await?)),
        Query::Object { bucket: name, key } => {
            let bucket = bucket(table, name).await?;
            let object = table.get::<ObjectRecord>(OBJECTS, &schema::object(bucket.id, key)).await?;
            object.map(Answer::Object).ok_or(CasError::NoSuchKey)
        }
        Query::List { bucket: name, prefix, after, inclusive, delimiter, limit } => {
            let bucket = bucket(table, name).await?;
            let mut from = schema::key_bound(bucket.id, after);
            if !inclusive && !after.is_empty() {
                from = schema::key_bound(bucket.id, &[after.as_slice(), &[0]].concat());
            }
            let names = Names {
                ctg: OBJECTS,
                bucket: bucket.id,
                prefix,
                after,
                inclusive: *inclusive,
                from,
                delimiter: delimiter.as_deref(),
                limit: *limit,
            };
            let row = |key, _: &[u8], object: ObjectRecord| {
                Some(ListRow::Object {
                    key,
                    size: object.size,
                    modified: object.modified,
                    etag: object.etag,
                    checksum: object.checksums.first().map(|checksum| checksum.algorithm),
                })
            };
            Ok(Answer::List(list(table, names, row, ListRow::Prefix).await?))
        }
        Query::Upload { bucket: name, key, upload } => {
            let bucket = bucket(table, name).await?;
            let row = schema::upload(bucket.id, key, *upload);
            let upload =
                table.get::<UploadRecord>(UPLOADS, &row).await?.ok_or(CasError::NoSuchUpload(*upload))?;
            Ok(Answer::Upload(upload))
        }
        Query::Uploads { bucket: name, prefix, after_key, after_upload, delimiter, limit } => {
            let bucket = bucket(table, name).await?;
            let from = match after_upload {
                Some(id) => [schema::upload(bucket.id, after_key, *id).as_slice(), &[0]].concat(),
                None if after_key.is_empty() => schema::key_bound(bucket.id, &[]),
                None => schema::key_bound(bucket.id, &[after_key.as_slice(), &[0]].concat()),
            };
            let names = Names {
                ctg: UPLOADS,
                bucket: bucket.id,
                prefix,
                after: after_key,
                inclusive: false,
                from,
                delimiter: delimiter.as_deref(),
                limit: *limit,
            };
            let row = |key, _: &[u8], upload: UploadRecord| {
                Some(UploadRow::Upload { key, upload: upload.upload, initiated: upload.initiated })
            };
            Ok(Answer::Uploads(list(table, names, row, UploadRow::Prefix).await?))
        }
        Query::Parts { upload, after, limit } => parts(table, *upload, *after, *limit).await,
        Query::Key { access_key } => {
            let record = table.get(CREDENTIALS, access_key.as_bytes()).await?;
            record.map(Answer::Key).ok_or_else(|| CasError::NoSuchAccessKey(access_key.clone()))
        }
        Query::Keys { after, limit } => Ok(Answer::Keys(page(table, CREDENTIALS, after, *limit).await?)),
        Query::Status => Err(CasError::Malformed("the service itself answers Status".into())),
    }
}

async fn bucket(table: &Table, name: &str) -> Result<BucketRecord, CasError> {
    let bucket = table.get(BUCKETS, name.as_bytes()).await?;
    bucket.ok_or_else(|| CasError::NoSuchBucket(name.to_owned()))
}

async fn cluster(table: &Table) -> Result<Answer, CasError> {
    let incarnation = table.counter(meta::INCARNATION).await?;
    Ok(Answer::Cluster { incarnation, pools: pools(table).await? })
}

/// Every version of the pool, the newest last.
pub async fn pools(table: &Table) -> Result<Vec<PoolMap>, CasError> {
    let mut pools: Vec<PoolMap> = Vec::new();
    loop {
        let next = schema::pool(pools.last().map_or(1, |pool| pool.version + 1));
        let rows = table.scan::<PoolRow>(POOLS, &next, None, SCAN_ROWS).await?;
        let end = rows.len() < SCAN_ROWS;
        for (_, row) in rows {
            let version = pools.last().map_or(1, |pool| pool.version + 1);
            pools.push(PoolMap { version, targets: row.targets });
        }
        if end {
            return Ok(pools);
        }
    }
}

/// A page of rows whose keys are names.
async fn page<R: Row + PageRow>(
    table: &Table,
    ctg: u32,
    after: &str,
    limit: u32,
) -> Result<Page<R>, CasError> {
    let mut page = PageBuilder::new(limit);
    let mut from = after.as_bytes().to_vec();
    if !after.is_empty() {
        from.push(0);
    }
    loop {
        let rows = table.scan::<R>(ctg, &from, None, SCAN_ROWS).await?;
        let end = rows.len() < SCAN_ROWS;
        for (key, row) in rows {
            from = [key.as_slice(), &[0]].concat();
            if !page.push(row) {
                return Ok(page.finish());
            }
        }
        if end {
            return Ok(page.finish());
        }
    }
}

/// Parts of an upload under way, or those that its object names: also when the object has been replaced, for the GETs
/// that still read it, until the collector has them.
async fn parts(table: &Table, upload: Uuid, after: u16, limit: u32) -> Result<Answer, CasError> {
    let state = table.get::<UploadState>(UPLOAD_STATES, upload.as_bytes()).await?;
    let numbers = match state.map(|state| state.stage) {
        None | Some(UploadStage::Aborted) => return Err(CasError::NoSuchUpload(upload)),
        Some(UploadStage::Open) => None,
        Some(UploadStage::Completed { numbers, .. }) => Some(numbers),
    };
    let mut page = PageBuilder::new(limit);
    let mut next = after.checked_add(1);
    while let Some(number) = next {
        let rows = table.scan::<PartRecord>(PARTS, &schema::part(upload, number), None, SCAN_ROWS).await?;
        next = None;
        for (row, part) in rows {
            let Some(number) = schema::part_number(&row, upload) else {
                return Ok(Answer::Parts(page.finish()));
            };
            next = number.checked_add(1);
            let named = numbers.as_ref().is_none_or(|numbers| has_number(numbers, number));
            if named && !page.push(part) {
                return Ok(Answer::Parts(page.finish()));
            }
        }
    }
    Ok(Answer::Parts(page.finish()))
}

/// The sessions, for the status.
pub async fn sessions(table: &Table) -> Result<Vec<SessionRow>, CasError> {
    let rows =
        table.scan::<SessionState>(SESSIONS, &[], None, STATUS_SESSIONS.min(SESSIONS_MAX as usize)).await?;
    let row = |(key, state): (Vec<u8>, SessionState)| {
        let session = schema::parse_session(&key)?;
        Some(SessionRow { session, process: state.process, fenced: state.fenced })
    };
    Ok(rows.into_iter().filter_map(row).collect())
}
