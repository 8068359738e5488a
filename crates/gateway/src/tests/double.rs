//! A store in memory that answers as the cluster does, and says what is held.

use crate::storage::{Object, Pieces, Put, Storage};
use cobalt_base::{Fid, UnixMillis};
use cobalt_client::ClientError;
use cobalt_dma::{Arena, ArenaConfig, Buf, Slice};
use cobalt_rpc::proto::cas::{
    Answer, CasError, Command, Condition, ListRow, Outcome, Page, Query, UploadRow, parts_digest,
};
use cobalt_rpc::proto::record::{
    Body, BucketRecord, Extent, KeyRecord, Layout, ObjectRecord, PartRecord, UploadRecord,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Mutex;
use uuid::Uuid;

pub const UNIT: usize = 64 << 10;

#[derive(Default)]
struct State {
    buckets: BTreeMap<String, BucketRecord>,
    objects: BTreeMap<(String, Vec<u8>), ObjectRecord>,
    uploads: BTreeMap<(String, Vec<u8>, Uuid), UploadRecord>,
    parts: BTreeMap<(Uuid, u16), PartRecord>,
    keys: BTreeMap<String, KeyRecord>,
    bodies: BTreeMap<u64, Vec<Slice>>,
    next: u64,
    /// What the next `put` fails with.
    fail_put: Option<ClientError>,
    /// What the next `commit` fails with.
    fail_commit: Option<ClientError>,
}

#[derive(Clone)]
pub struct Double {
    state: Arc<Mutex<State>>,
    arena: Arena,
    /// Bodies that were begun.
    pub puts: Arc<AtomicUsize>,
    /// Rows of a page.
    pub page: u32,
}

pub struct DoublePut {
    state: Arc<Mutex<State>>,
    arena: Arena,
    units: Vec<Slice>,
    size: u64,
}
pub struct DoubleStored {
    units: Vec<Slice>,
}
pub struct DoubleObject {
    record: ObjectRecord,
    bytes: Vec<Slice>,
}
pub struct DoubleStream {
    slices: std::vec::IntoIter<Slice>,
}

impl Double {
    pub fn new() -> Double {
        let arena = Arena::new(ArenaConfig { limit: 64 << 20 }).unwrap();
        Double { state: Arc::default(), arena, puts: Arc::default(), page: 1000 }
    }
    /// Bytes of the arena in use.
    pub fn held(&self) -> usize {
        self.arena.stats().in_use
    }
    /// Takes all of the arena, so that a body has to wait for memory.
    pub fn hog(&self) -> Vec<Buf> {
        std::iter::from_fn(|| self.arena.try_alloc(UNIT)).collect()
    }
    pub fn add_key(&self, access_key: &str, secret: &str, account: &str) {
        let record = KeyRecord {
            access_key: access_key.to_owned(),
            sealed_secret: secret.as_bytes().to_vec(),
            account: account.to_owned(),
            created: UnixMillis(0),
            enabled: true,
        };
        self.state.try_lock().unwrap().keys.insert(access_key.to_owned(), record);
    }
    pub fn enable_key(&self, access_key: &str, enabled: bool) {
        self.state.try_lock().unwrap().keys.get_mut(access_key).unwrap().enabled = enabled;
    }
    pub fn fail_put(&self, error: ClientError) {
        self.state.try_lock().unwrap().fail_put = Some(error);
    }
    pub fn fail_commit(&self, error: ClientError) {
        self.state.try_lock().unwrap().fail_commit = Some(error);
    }
    pub fn record(&self, bucket: &str, key: &str) -> Option<ObjectRecord> {
        self.state.try_lock().unwrap().objects.get(&(bucket.to_owned(), key.as_bytes().to_vec())).cloned()
    }
}

fn judge(old: Option<&ObjectRecord>, condition: &Condition) -> Result<(), CasError> {
    match (old, &condition.if_match) {
        (Some(_), _) if condition.absent => Err(CasError::PreconditionFailed),
        (None, Some(_)) => Err(CasError::NoSuchKey),
        (Some(old), Some(tag)) if old.etag != *tag => Err(CasError::PreconditionFailed),
        _ => Ok(()),
    }
}

impl State {
    fn bucket(&self, name: &str) -> Result<&BucketRecord, CasError> {
        self.buckets.get(name).ok_or_else(|| CasError::NoSuchBucket(name.to_owned()))
    }

    fn list(
        &self,
        bucket: &str,
        prefix: &[u8],
        after: &[u8],
        delimiter: Option<&[u8]>,
        limit: usize,
    ) -> Page<ListRow> {
        let mut rows: Vec<ListRow> = Vec::new();
        for ((name, key), record) in &self.objects {
            if name != bucket || !key.starts_with(prefix) {
                continue;
            }
            let fold = delimiter.and_then(|d| {
                let at = key[prefix.len()..].windows(d.len()).position(|w| w == d)?;
                Some(key[..prefix.len() + at + d.len()].to_vec())
            });
            let row = match fold {
                Some(p) if p.as_slice() <= after || rows.last() == Some(&ListRow::Prefix(p.clone())) => {
                    continue;
                }
                Some(p) => ListRow::Prefix(p),
                None if key.as_slice() <= after => continue,
                None => ListRow::Object {
                    key: key.clone(),
                    size: record.size,
                    modified: record.modified,
                    etag: record.etag.clone(),
                    checksum: record.checksums.first().map(|sum| sum.algorithm),
                },
            };
            if rows.len() == limit {
                return Page { rows, more: limit > 0 };
            }
            rows.push(row);
        }
        Page { rows, more: false }
    }

    fn ask(&self, query: Query, page: u32) -> Result<Answer, CasError> {
        Ok(match query {
            Query::Key { access_key } => {
                Answer::Key(self.keys.get(&access_key).cloned().ok_or(CasError::NoSuchAccessKey(access_key))?)
            }
            Query::Bucket { name } => Answer::Bucket(self.bucket(&name)?.clone()),
            Query::Buckets { after, limit } => {
                let mut rows: Vec<_> = self.buckets.values().filter(|b| b.name > after).cloned().collect();
                let more = rows.len() > limit as usize;
                rows.truncate(limit as usize);
                Answer::Buckets(Page { rows, more })
            }
            Query::Object { bucket, key } => {
                self.bucket(&bucket)?;
                Answer::Object(self.objects.get(&(bucket, key)).cloned().ok_or(CasError::NoSuchKey)?)
            }
            Query::List { bucket, prefix, after, delimiter, limit, .. } => {
                self.bucket(&bucket)?;
                let limit = limit.min(page) as usize;
                Answer::List(self.list(&bucket, &prefix, &after, delimiter.as_deref(), limit))
            }
            Query::Upload { bucket, key, upload } => {
                let found = self.uploads.get(&(bucket, key, upload)).cloned();
                Answer::Upload(found.ok_or(CasError::NoSuchUpload(upload))?)
            }
            Query::Uploads { bucket, .. } => {
                let rows = self.uploads.values().filter(|_| self.buckets.contains_key(&bucket));
                let rows = rows.map(|u| UploadRow::Upload {
                    key: u.key.clone(),
                    upload: u.upload,
                    initiated: u.initiated,
                });
                Answer::Uploads(Page { rows: rows.collect(), more: false })
            }
            Query::Parts { upload, after, limit } => {
                let rows = self.parts.range((upload, after + 1)..=(upload, u16::MAX)).map(|(_, p)| p.clone());
                let mut rows: Vec<_> = rows.collect();
                let limit = limit.min(page) as usize;
                let more = rows.len() > limit;
                rows.truncate(limit);
                Answer::Parts(Page { rows, more })
            }
            other => return Err(CasError::Malformed(format!("{other:?}"))),
        })
    }

    fn commit(&mut self, command: Command) -> Result<Outcome, CasError> {
        match command {
            Command::CreateBucket { name, owner, created } => {
                if let Some(old) = self.buckets.get(&name) {
                    return Err(CasError::BucketExists { name, owner: old.owner.clone() });
                }
                self.next += 1;
                let record = BucketRecord { id: self.next, name: name.clone(), owner, created };
                self.buckets.insert(name, record.clone());
                Ok(Outcome::BucketCreated(record))
            }
            Command::DeleteBucket { name } => {
                self.bucket(&name)?;
                if self.objects.keys().any(|(bucket, _)| *bucket == name) {
                    return Err(CasError::BucketNotEmpty(name));
                }
                self.buckets.remove(&name);
                Ok(Outcome::Done)
            }
            Command::PutObject { bucket, key, record, condition, .. } => {
                self.bucket(&bucket)?;
                let etag = record.etag.clone();
                judge(self.objects.get(&(bucket.clone(), key.clone())), &condition)?;
                self.objects.insert((bucket, key), record);
                Ok(Outcome::Published { etag })
            }
            Command::DeleteObject { bucket, key, condition } => {
                judge(self.objects.get(&(bucket.clone(), key.clone())), &condition)?;
                Ok(Outcome::Deleted(vec![self.objects.remove(&(bucket, key)).is_some()]))
            }
            Command::DeleteObjects { bucket, keys } => {
                assert!(keys.len() <= cobalt_rpc::proto::cas::DELETE_KEYS_MAX);
                let gone = keys.into_iter().map(|key| self.objects.remove(&(bucket.clone(), key)).is_some());
                Ok(Outcome::Deleted(gone.collect()))
            }
            Command::CreateUpload { bucket, record } => {
                self.bucket(&bucket)?;
                self.uploads.insert((bucket, record.key.clone(), record.upload), record);
                Ok(Outcome::Done)
            }
            Command::PutPart { bucket, key, upload, part } => {
                self.uploads.get(&(bucket, key, upload)).ok_or(CasError::NoSuchUpload(upload))?;
                self.parts.insert((upload, part.number), part);
                Ok(Outcome::Done)
            }
            Command::CompleteUpload { bucket, key, upload, numbers, digest, record, condition } => {
                if !self.uploads.contains_key(&(bucket.clone(), key.clone(), upload)) {
                    let done = self
                        .objects
                        .get(&(bucket, key))
                        .filter(|o| matches!(o.body, Body::Parts { upload: u, .. } if u == upload));
                    return done
                        .map(|o| Outcome::Published { etag: o.etag.clone() })
                        .ok_or(CasError::NoSuchUpload(upload));
                }
                let has = |n: u16| {
                    numbers.get(usize::from((n - 1) / 8)).is_some_and(|b| b >> ((n - 1) % 8) & 1 == 1)
                };
                let of_upload = self.parts.range((upload, 0)..=(upload, u16::MAX)).map(|(_, part)| part);
                let named = of_upload.filter(|p| has(p.number));
                if parts_digest(named.map(|p| (p.number, p.etag.as_str(), p.size))) != digest {
                    return Err(CasError::InvalidPart);
                }
                judge(self.objects.get(&(bucket.clone(), key.clone())), &condition)?;
                self.uploads.remove(&(bucket.clone(), key.clone(), upload));
                let etag = record.etag.clone();
                self.objects.insert((bucket, key), record);
                Ok(Outcome::Published { etag })
            }
            Command::AbortUpload { bucket, key, upload } => {
                self.uploads.remove(&(bucket, key, upload)).ok_or(CasError::NoSuchUpload(upload))?;
                Ok(Outcome::Done)
            }
            other => Err(CasError::Malformed(format!("{other:?}"))),
        }
    }

    fn bytes(&self, body: &Body) -> Vec<Slice> {
        match body {
            Body::Empty => Vec::new(),
            Body::Single(extent) => self.bodies[&extent.fid.counter].clone(),
            Body::Parts { upload, .. } => {
                let parts = self.parts.range((*upload, 0)..=(*upload, u16::MAX));
                parts.flat_map(|(_, part)| self.bytes(&part.body)).collect()
            }
        }
    }
}

impl Storage for Double {
    type Put = DoublePut;
    type Stored = DoubleStored;
    type Object = DoubleObject;
    async fn ask(&self, query: Query) -> Result<Answer, ClientError> {
        Ok(self.state.lock().await.ask(query, self.page)?)
    }
    async fn commit(&self, command: Command) -> Result<Outcome, ClientError> {
        let mut state = self.state.lock().await;
        if let Some(error) = state.fail_commit.take() {
            return Err(error);
        }
        Ok(state.commit(command)?)
    }
    async fn put(&self, size: u64) -> Result<DoublePut, ClientError> {
        if let Some(error) = self.state.lock().await.fail_put.take() {
            return Err(error);
        }
        self.puts.fetch_add(1, Ordering::Relaxed);
        Ok(DoublePut { state: self.state.clone(), arena: self.arena.clone(), units: Vec::new(), size })
    }
    async fn publish(
        &self,
        body: DoubleStored,
        command: impl FnOnce(Body) -> Command + Send,
    ) -> Result<Outcome, ClientError> {
        let mut state = self.state.lock().await;
        state.next += 1;
        let fid = Fid { session: cobalt_base::SessionId(1), counter: state.next };
        let layout = Layout { data_units: 2, parity_units: 1, unit_size: UNIT as u32, pool: 1 };
        let size = body.units.iter().map(|unit| unit.len() as u64).sum();
        state.bodies.insert(fid.counter, body.units);
        drop(state);
        self.commit(command(Body::Single(Extent { fid, size, layout }))).await
    }
    async fn open(&self, bucket: &str, key: &[u8]) -> Result<DoubleObject, ClientError> {
        let state = self.state.lock().await;
        state.bucket(bucket)?;
        let record =
            state.objects.get(&(bucket.to_owned(), key.to_vec())).cloned().ok_or(CasError::NoSuchKey)?;
        let bytes = state.bytes(&record.body);
        Ok(DoubleObject { record, bytes })
    }
}

impl Put for DoublePut {
    type Stored = DoubleStored;
    fn unit_size(&self) -> usize {
        UNIT
    }
    async fn buf(&mut self) -> Buf {
        self.arena.alloc(UNIT).await
    }
    async fn write(&mut self, unit: Buf) -> Result<(), ClientError> {
        assert!(self.units.last().is_none_or(|last| last.len() == UNIT), "only the last unit is short");
        if !unit.is_empty() {
            self.units.push(unit.freeze());
        }
        drop(self.state.lock().await);
        Ok(())
    }
    async fn finish(self) -> Result<DoubleStored, ClientError> {
        let size: u64 = self.units.iter().map(|unit| unit.len() as u64).sum();
        assert_eq!(size, self.size, "a body of another size than was announced is never finished");
        Ok(DoubleStored { units: self.units })
    }
}

impl Object for DoubleObject {
    type Stream = DoubleStream;
    fn record(&self) -> &ObjectRecord {
        &self.record
    }
    async fn read(&self, range: Range<u64>) -> Result<DoubleStream, ClientError> {
        assert!(range.end <= self.record.size);
        let (mut at, mut slices) = (0u64, Vec::new());
        for slice in &self.bytes {
            let end = at + slice.len() as u64;
            let (from, to) = (range.start.max(at), range.end.min(end));
            if from < to {
                slices.push(slice.slice((from - at) as usize..(to - at) as usize));
            }
            at = end;
        }
        Ok(DoubleStream { slices: slices.into_iter() })
    }
}

impl Pieces for DoubleStream {
    async fn next(&mut self) -> Option<Result<Slice, ClientError>> {
        self.slices.next().map(Ok)
    }
}
