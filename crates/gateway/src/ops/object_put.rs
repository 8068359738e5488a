//! PutObject, and what every body goes through on its way in: one copy from the socket's buffer into the unit, hashed in the
//! same pass, verified before the commit that names it.

use super::checksum::{Fields, checksummed};
use super::condition;
use super::{Body, Ops, STEP_HTTP_PUT, STEP_HTTP_REPLY, etag, meta, now};
use crate::body::{BodyError, ChunkSigner, Digested, Digests, Hasher, Pace, Payload};
use crate::error::{mismatched, raced, s3};
use crate::guard::Framing;
use crate::refusal::Refusal;
use crate::storage::{Put, Storage};
use cobalt_client::ClientError;
use cobalt_rpc::proto::cas::{Answer, CasError, Command, Condition, Query};
use cobalt_rpc::proto::record::{Body as StoredAt, ObjectRecord};
use http::{HeaderMap, header};
use s3s::auth::Credentials;
use s3s::dto;
use s3s::{S3Error, S3Request, S3Response, S3Result};

/// A body that is durable, and its digests. None stored: it has no byte.
pub(super) struct Taken<T> {
    pub size: u64,
    pub digested: Digested,
    pub stored: Option<T>,
}

impl<S: Storage> Ops<S> {
    pub(super) async fn put_object(
        &self,
        mut req: S3Request<dto::PutObjectInput>,
    ) -> S3Result<S3Response<dto::PutObjectOutput>> {
        (self.step)(STEP_HTTP_PUT);
        let key = req.input.key.clone().into_bytes();
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let condition = condition::write(req.input.if_match.as_ref(), req.input.if_none_match.as_ref())?;
        let meta = meta::from_request(&req.headers, req.input.metadata.take())?;
        self.precheck(&bucket.name, &key, &condition).await?;
        let taken = self.take(&mut req).await?;
        let record = ObjectRecord {
            size: taken.size,
            modified: now(),
            etag: taken.digested.etag(),
            body: StoredAt::Empty,
            meta,
            checksums: vec![taken.digested.record()],
        };
        let (tag, fields) = (etag(&record.etag), Fields::new(&record.checksums));
        let command = |body| Command::PutObject {
            bucket: bucket.name,
            bucket_id: bucket.id,
            key,
            record: ObjectRecord { body, ..record },
            condition,
        };
        self.name(taken.stored, command).await?;
        let kind = fields.kind.clone();
        let output = checksummed!(dto::PutObjectOutput::default(), fields);
        (self.step)(STEP_HTTP_REPLY);
        Ok(S3Response::new(dto::PutObjectOutput { e_tag: Some(tag), checksum_type: kind, ..output }))
    }

    /// Commits the command that names a body.
    pub(super) async fn name(
        &self,
        stored: Option<S::Stored>,
        command: impl FnOnce(StoredAt) -> Command + Send,
    ) -> S3Result<()> {
        let outcome = match stored {
            Some(stored) => self.storage.publish(stored, command).await,
            None => self.storage.commit(command(StoredAt::Empty)).await,
        };
        outcome.map(drop).map_err(raced)
    }

    /// Looks whether a write's condition holds now.
    pub(super) async fn precheck(&self, bucket: &str, key: &[u8], condition: &Condition) -> S3Result<()> {
        if !condition::is_any(condition) {
            return Ok(());
        }
        let found = self.find(bucket, key).await?;
        Ok(condition::precheck(condition, found.as_ref())?)
    }

    /// The record of a key, if there is one.
    pub(super) async fn find(&self, bucket: &str, key: &[u8]) -> S3Result<Option<ObjectRecord>> {
        let query = Query::Object { bucket: bucket.to_owned(), key: key.to_vec() };
        match self.storage.ask(query.clone()).await {
            Ok(Answer::Object(record)) => Ok(Some(record)),
            Err(ClientError::Cas(CasError::NoSuchKey)) => Ok(None),
            Ok(_) => Err(mismatched(&query)),
            Err(error) => Err(s3(error)),
        }
    }

    /// Takes the request's body in. Until the cluster says that it can be written and there is memory for its first unit, no byte is
    /// asked for, and a client that waits for 100-continue keeps its body.
    pub(super) async fn take<T>(&self, req: &mut S3Request<T>) -> S3Result<Taken<S::Stored>> {
        let absent = || Refusal::bad("InvalidRequest", "The request has no body that can be stored.");
        let Body { slot, upload } = req.extensions.remove::<Body>().ok_or_else(absent)?;
        let signer = match upload.framing {
            Framing::Chunked { signed: true, .. } => {
                Some(signer(&req.headers, req.credentials.as_ref(), &self.region)?)
            }
            _ => None,
        };
        let mut digests = Digests::new(upload.algorithm(), upload.declared.sha256.is_some());
        let mut payload = Payload::new(slot, &upload, signer, Pace::new(&self.limits));
        let stored = if upload.length == 0 {
            while payload.next().await?.is_some() {}
            None
        } else {
            let mut put = self.storage.put(upload.length).await.map_err(s3)?;
            fill(&mut put, &mut payload, &mut digests, &self.hasher).await?;
            Some(put)
        };
        let digested = digests.finish();
        digested.verify(&upload.declared, payload.trailer())?;
        let stored = match stored {
            Some(put) => Some(put.finish().await.map_err(s3)?),
            None => None,
        };
        Ok(Taken { size: upload.length, digested, stored })
    }
}

/// Copies the payload into units: the one copy between socket and device.
async fn fill<P: Put>(
    put: &mut P,
    payload: &mut Payload,
    digests: &mut Digests,
    hasher: &Hasher,
) -> Result<(), S3Error> {
    let unit = put.unit_size();
    let mut buf = put.buf().await;
    buf.set_len(unit);
    let mut filled = 0;
    while let Some(mut piece) = payload.next().await? {
        while !piece.is_empty() {
            let part = piece.split_to(piece.len().min(unit - filled));
            digests.update_checksums(&part);
            buf[filled..filled + part.len()].copy_from_slice(&part);
            cobalt_dma::copied::add(part.len());
            filled += part.len();
            if filled == unit {
                put.write(digests.update_md5(hasher, buf).await?).await.map_err(s3)?;
                buf = put.buf().await;
                buf.set_len(unit);
                filled = 0;
            }
        }
    }
    buf.set_len(filled);
    put.write(digests.update_md5(hasher, buf).await?).await.map_err(s3)
}

/// The chain of the request's chunk signatures, which begins with the signature that s3s has verified.
fn signer(
    headers: &HeaderMap,
    credentials: Option<&Credentials>,
    region: &str,
) -> Result<ChunkSigner, BodyError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let seed = text(header::AUTHORIZATION.as_str()).and_then(|value| value.rsplit_once("Signature="));
    let seed = seed.and_then(|(_, rest)| rest.split(',').next()).map(str::trim);
    let (Some(seed), Some(date), Some(credentials)) = (seed, text("x-amz-date"), credentials) else {
        return Err(BodyError::Frame(crate::body::FrameError::Signature));
    };
    Ok(ChunkSigner::new(credentials.secret_key.expose(), date, region, seed))
}
