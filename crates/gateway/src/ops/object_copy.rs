//! CopyObject and UploadPartCopy: the source streams through the units of a new body, and gets a fresh ETag.

use super::checksum::{Fields, checksummed};
use super::condition::{self, Read, Verdict};
use super::multipart::{part_number, upload_id};
use super::{Ops, etag, meta, now, timestamp};
use crate::body::{Algorithm, Digests, from_suffix};
use crate::error::s3;
use crate::limits::UPLOAD_MAX;
use crate::refusal::Refusal;
use crate::storage::{Object, Pieces, Put, Storage};
use cobalt_rpc::proto::cas::Command;
use cobalt_rpc::proto::record::{Body, ObjectRecord, PartRecord};
use http::StatusCode;
use s3s::dto;
use s3s::{S3Error, S3Request, S3Response, S3Result};
use std::ops::Range;

impl<S: Storage> Ops<S> {
    pub(super) async fn copy_object(
        &self,
        mut req: S3Request<dto::CopyObjectInput>,
    ) -> S3Result<S3Response<dto::CopyObjectOutput>> {
        let dto::CopySource::Bucket { bucket: from_bucket, key: from_key, version_id } =
            req.input.copy_source.clone()
        else {
            return Err(Refusal::lacking("A copy source that is an access point").into());
        };
        if version_id.is_some_and(|version| &*version != "null") {
            return Err(Refusal::lacking("Versioning").into());
        }
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let account = self.account(&req).await?;
        let from = self.bucket_of(&account, &from_bucket).await?;
        let write = write_condition(&req)?;
        let replace = replaces(req.input.metadata_directive.as_ref())?;
        let same = from.name == bucket.name && *from_key == *req.input.key;
        if same && !replace {
            let message = "This copy request is illegal because it is trying to copy an object to itself without \
                           changing the object's metadata, storage class, website redirect location or encryption \
                           attributes.";
            return Err(Refusal::bad("InvalidRequest", message).into());
        }
        let key = req.input.key.clone().into_bytes();
        self.precheck(&bucket.name, &key, &write).await?;
        let object = self.storage.open(&from.name, from_key.as_bytes()).await.map_err(s3)?;
        let source = object.record().clone();
        let read = Read {
            if_match: req.input.copy_source_if_match.as_ref(),
            if_none_match: req.input.copy_source_if_none_match.as_ref(),
            if_modified_since: req.input.copy_source_if_modified_since.as_ref(),
            if_unmodified_since: req.input.copy_source_if_unmodified_since.as_ref(),
        };
        judge(&read, &source)?;
        bounded(source.size)?;
        let meta = if replace {
            meta::from_request(&req.headers, req.input.metadata.take())?
        } else {
            source.meta.clone()
        };
        let digests = Digests::new(algorithm(&req.input, &source)?, false);
        let (digested, stored) = self.copy(&object, 0..source.size, digests).await?;
        let record = ObjectRecord {
            size: source.size,
            modified: now(),
            etag: digested.etag(),
            body: Body::Empty,
            meta,
            checksums: vec![digested.record()],
        };
        let (tag, modified, fields) = (record.etag.clone(), record.modified, Fields::new(&record.checksums));
        let command = |body| Command::PutObject {
            bucket: bucket.name,
            bucket_id: bucket.id,
            key,
            record: ObjectRecord { body, ..record },
            condition: write,
        };
        self.name(stored, command).await?;
        let kind = fields.kind.clone();
        let result = checksummed!(dto::CopyObjectResult::default(), fields);
        let result = dto::CopyObjectResult {
            checksum_type: kind,
            e_tag: Some(etag(&tag)),
            last_modified: Some(timestamp(modified)),
            ..result
        };
        Ok(S3Response::new(dto::CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
    }

    pub(super) async fn upload_part_copy(
        &self,
        req: S3Request<dto::UploadPartCopyInput>,
    ) -> S3Result<S3Response<dto::UploadPartCopyOutput>> {
        let input = &req.input;
        let dto::CopySource::Bucket { bucket: from_bucket, key: from_key, version_id } = &input.copy_source
        else {
            return Err(Refusal::lacking("A copy source that is an access point").into());
        };
        if version_id.as_deref().is_some_and(|version| version != "null") {
            return Err(Refusal::lacking("Versioning").into());
        }
        let bucket = self.bucket(&req, &input.bucket).await?;
        let account = self.account(&req).await?;
        let from = self.bucket_of(&account, from_bucket).await?;
        let number = part_number(input.part_number)?;
        let id = upload_id(&input.upload_id)?;
        let upload = self.upload(&bucket.name, &input.key, id).await?;
        let object = self.storage.open(&from.name, from_key.as_bytes()).await.map_err(s3)?;
        let read = Read {
            if_match: input.copy_source_if_match.as_ref(),
            if_none_match: input.copy_source_if_none_match.as_ref(),
            if_modified_since: input.copy_source_if_modified_since.as_ref(),
            if_unmodified_since: input.copy_source_if_unmodified_since.as_ref(),
        };
        judge(&read, object.record())?;
        let range = copy_range(input.copy_source_range.as_deref(), object.record().size)?;
        let size = range.end - range.start;
        bounded(size)?;
        let algorithm = upload.checksum.map_or(Algorithm::Crc64Nvme, |(algorithm, _)| algorithm);
        let (digested, stored) = self.copy(&object, range, Digests::new(algorithm, false)).await?;
        let part = PartRecord {
            number,
            size,
            modified: now(),
            etag: digested.etag(),
            body: Body::Empty,
            checksums: vec![digested.record()],
        };
        let (tag, modified, fields) = (part.etag.clone(), part.modified, Fields::new(&part.checksums));
        let key = input.key.clone().into_bytes();
        let command = |body| {
            let part = PartRecord { body, ..part };
            Command::PutPart { bucket: bucket.name, key, upload: id, part }
        };
        self.name(stored, command).await?;
        let result = checksummed!(dto::CopyPartResult::default(), fields);
        let result = dto::CopyPartResult {
            e_tag: Some(etag(&tag)),
            last_modified: Some(timestamp(modified)),
            ..result
        };
        Ok(S3Response::new(dto::UploadPartCopyOutput {
            copy_part_result: Some(result),
            ..Default::default()
        }))
    }

    async fn copy(
        &self,
        object: &S::Object,
        range: Range<u64>,
        mut digests: Digests,
    ) -> S3Result<(crate::body::Digested, Option<S::Stored>)> {
        let size = range.end - range.start;
        if size == 0 {
            return Ok((digests.finish(), None));
        }
        let mut put = self.storage.put(size).await.map_err(s3)?;
        let mut stream = object.read(range).await.map_err(s3)?;
        let unit = put.unit_size();
        let (mut buf, mut filled) = (put.buf().await, 0);
        buf.set_len(unit);
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(s3)?;
            let mut rest: &[u8] = &piece;
            while !rest.is_empty() {
                let (part, behind) = rest.split_at(rest.len().min(unit - filled));
                digests.update_checksums(part);
                buf[filled..filled + part.len()].copy_from_slice(part);
                cobalt_dma::copied::add(part.len());
                filled += part.len();
                rest = behind;
                if filled == unit {
                    put.write(digests.update_md5(&self.hasher, buf).await?).await.map_err(s3)?;
                    buf = put.buf().await;
                    buf.set_len(unit);
                    filled = 0;
                }
            }
        }
        buf.set_len(filled);
        put.write(digests.update_md5(&self.hasher, buf).await?).await.map_err(s3)?;
        Ok((digests.finish(), Some(put.finish().await.map_err(s3)?)))
    }
}

fn replaces(directive: Option<&dto::MetadataDirective>) -> Result<bool, Refusal> {
    match directive.map(dto::MetadataDirective::as_str) {
        None | Some("COPY") => Ok(false),
        Some("REPLACE") => Ok(true),
        Some(_) => Err(Refusal::bad("InvalidArgument", "Unknown metadata directive.")),
    }
}

/// If-Match and If-None-Match are about the object that is written.
fn write_condition<T>(req: &S3Request<T>) -> Result<cobalt_rpc::proto::cas::Condition, S3Error> {
    let parse = |name: http::HeaderName| match req.headers.get(&name) {
        None => Ok(None),
        Some(value) => dto::ETagCondition::parse_http_header(http::HeaderValue::as_bytes(value))
            .map(Some)
            .map_err(|_| Refusal::bad("InvalidArgument", format!("The header {name} is malformed."))),
    };
    condition::write(parse(http::header::IF_MATCH)?.as_ref(), parse(http::header::IF_NONE_MATCH)?.as_ref())
}

fn judge(read: &Read<'_>, source: &ObjectRecord) -> Result<(), Refusal> {
    if read.judge(source) != Verdict::Send {
        let message = "At least one of the pre-conditions you specified did not hold.";
        return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", message));
    }
    Ok(())
}

fn bounded(size: u64) -> Result<(), Refusal> {
    if size <= UPLOAD_MAX {
        return Ok(());
    }
    Err(Refusal::bad("InvalidRequest", format!("A copy has at most {UPLOAD_MAX} bytes.")))
}

/// The bytes that `x-amz-copy-source-range` names: first and last, both within the source.
fn copy_range(text: Option<&str>, size: u64) -> Result<Range<u64>, Refusal> {
    let Some(text) = text else { return Ok(0..size) };
    let bad =
        || Refusal::bad("InvalidArgument", "x-amz-copy-source-range is bytes=FIRST-LAST, within the source.");
    let (first, last) = text.strip_prefix("bytes=").and_then(|rest| rest.split_once('-')).ok_or_else(bad)?;
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last && last < size => Ok(first..last + 1),
        _ => Err(bad()),
    }
}

/// What the client asks for, else what the source has, else the default.
fn algorithm(input: &dto::CopyObjectInput, source: &ObjectRecord) -> Result<Algorithm, Refusal> {
    match &input.checksum_algorithm {
        Some(name) => from_suffix(&name.as_str().to_ascii_lowercase())
            .ok_or_else(|| Refusal::lacking("The checksum algorithm that is named")),
        None => {
            let stored = source.checksums.iter().find(|sum| !sum.composite).map(|sum| sum.algorithm);
            Ok(stored.unwrap_or(Algorithm::Crc64Nvme))
        }
    }
}
