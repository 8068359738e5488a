//! GetObject and HeadObject: conditions, ranges, parts, overrides; the units go to the socket as they are.

use super::checksum::{Fields, checksummed};
use super::condition::{Read, Verdict};
use super::{Ops, etag, meta, timestamp};
use crate::error::{mismatched, s3};
use crate::limits::PAGE_MAX;
use crate::refusal::Refusal;
use crate::storage::{Object, Pieces, Storage};
use cobalt_client::ClientError;
use cobalt_dma::Slice;
use cobalt_rpc::proto::cas::{Answer, Query};
use cobalt_rpc::proto::record::{Body, ObjectRecord};
use futures::Stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::Bytes;
use s3s::dto;
use s3s::stream::{ByteStream, RemainingLength};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::Mutex;

/// What of the object is sent.
struct Extent {
    range: Range<u64>,
    /// 206 and a Content-Range.
    partial: bool,
    /// Number of parts, where a part was asked for.
    parts: Option<i32>,
}

impl<S: Storage> Ops<S> {
    pub(super) async fn get_object(
        &self,
        req: S3Request<dto::GetObjectInput>,
    ) -> S3Result<S3Response<dto::GetObjectOutput>> {
        let input = &req.input;
        let (bucket, object) = futures::join!(
            self.bucket(&req, &input.bucket),
            self.storage.open(&input.bucket, input.key.as_bytes())
        );
        bucket?;
        let object = object.map_err(s3)?;
        let record = object.record();
        let read = Read {
            if_match: input.if_match.as_ref(),
            if_none_match: input.if_none_match.as_ref(),
            if_modified_since: input.if_modified_since.as_ref(),
            if_unmodified_since: input.if_unmodified_since.as_ref(),
        };
        judge(&read, record)?;
        let extent = self.extent(record, input.range.as_ref(), input.part_number).await?;
        let output = describe(record, &extent, input);
        let mut output = dto::GetObjectOutput { tag_count: None, ..output };
        let stream = object.read(extent.range.clone()).await.map_err(s3)?;
        output.body =
            Some(dto::StreamingBlob::new(Units::new(stream, extent.range.end - extent.range.start)));
        Ok(S3Response::new(output))
    }

    pub(super) async fn head_object(
        &self,
        req: S3Request<dto::HeadObjectInput>,
    ) -> S3Result<S3Response<dto::HeadObjectOutput>> {
        let input = &req.input;
        let bucket = self.bucket(&req, &input.bucket).await?;
        let found = self.find(&bucket.name, input.key.as_bytes()).await?;
        let record = found.ok_or_else(|| S3Error::new(S3ErrorCode::NoSuchKey))?;
        let read = Read {
            if_match: input.if_match.as_ref(),
            if_none_match: input.if_none_match.as_ref(),
            if_modified_since: input.if_modified_since.as_ref(),
            if_unmodified_since: input.if_unmodified_since.as_ref(),
        };
        judge(&read, &record)?;
        let extent = self.extent(&record, input.range.as_ref(), input.part_number).await?;
        let mut builder = dto::GetObjectInput::builder();
        builder.set_bucket(input.bucket.clone());
        builder.set_key(input.key.clone());
        let mut as_get = builder.build().map_err(S3Error::internal_error)?;
        as_get.checksum_mode = input.checksum_mode.clone();
        as_get.response_cache_control = input.response_cache_control.clone();
        as_get.response_content_disposition = input.response_content_disposition.clone();
        as_get.response_content_encoding = input.response_content_encoding.clone();
        as_get.response_content_language = input.response_content_language.clone();
        as_get.response_content_type = input.response_content_type.clone();
        as_get.response_expires = input.response_expires.clone();
        Ok(head(describe(&record, &extent, &as_get)))
    }

    /// Which bytes a range or part number means.
    async fn extent(
        &self,
        record: &ObjectRecord,
        range: Option<&dto::Range>,
        part: Option<i32>,
    ) -> S3Result<Extent> {
        match (range, part) {
            (Some(_), Some(_)) => {
                Err(Refusal::bad("InvalidRequest", "Cannot specify both Range header and partNumber.").into())
            }
            (None, None) => Ok(Extent { range: 0..record.size, partial: false, parts: None }),
            (Some(range), None) => {
                let range = range.check(record.size).ok().filter(|range| !range.is_empty());
                let range = range.ok_or_else(|| unsatisfiable(record.size))?;
                Ok(Extent { range, partial: true, parts: None })
            }
            (None, Some(number)) => self.part(record, number).await,
        }
    }

    /// Where a part lies in its object. An object that was put whole has one part.
    async fn part(&self, record: &ObjectRecord, number: i32) -> S3Result<Extent> {
        let beyond = || {
            Refusal::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "InvalidPartNumber",
                "The object has no such part.",
            )
        };
        let wanted = u16::try_from(number).ok().filter(|n| *n >= 1).ok_or_else(beyond)?;
        let Body::Parts { upload, count } = record.body else {
            return if wanted == 1 {
                Ok(Extent { range: 0..record.size, partial: record.size > 0, parts: None })
            } else {
                Err(beyond().into())
            };
        };
        let (mut start, mut after) = (0, 0);
        loop {
            let query = Query::Parts { upload, after, limit: PAGE_MAX };
            let Answer::Parts(page) = self.storage.ask(query.clone()).await.map_err(s3)? else {
                return Err(mismatched(&query));
            };
            for row in &page.rows {
                if row.number == wanted {
                    let parts = i32::try_from(count).ok();
                    let end = start + row.size;
                    return Ok(Extent { range: start..end, partial: row.size > 0, parts });
                }
                start += row.size;
                after = row.number;
            }
            if !page.more || page.rows.is_empty() {
                return Err(beyond().into());
            }
        }
    }

    pub(super) async fn get_object_tagging(
        &self,
        req: S3Request<dto::GetObjectTaggingInput>,
    ) -> S3Result<S3Response<dto::GetObjectTaggingOutput>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let found = self.find(&bucket.name, req.input.key.as_bytes()).await?;
        found.ok_or_else(|| S3Error::new(S3ErrorCode::NoSuchKey))?;
        Ok(S3Response::new(dto::GetObjectTaggingOutput::default()))
    }
}

fn judge(read: &Read<'_>, record: &ObjectRecord) -> Result<(), S3Error> {
    let code = match read.judge(record) {
        Verdict::Send => return Ok(()),
        Verdict::Failed => S3ErrorCode::PreconditionFailed,
        Verdict::NotModified => S3ErrorCode::NotModified,
    };
    let mut error =
        S3Error::with_message(code, "At least one of the pre-conditions you specified did not hold.");
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Ok(value) = HeaderValue::from_str(&format!("\"{}\"", record.etag)) {
        headers.insert(header::ETAG, value);
    }
    let mut date = Vec::new();
    if timestamp(record.modified).format(dto::TimestampFormat::HttpDate, &mut date).is_ok()
        && let Ok(value) = HeaderValue::from_bytes(&date)
    {
        headers.insert(header::LAST_MODIFIED, value);
    }
    error.set_headers(headers);
    Err(error)
}

fn unsatisfiable(size: u64) -> S3Error {
    let mut error =
        S3Error::with_message(S3ErrorCode::InvalidRange, "The requested range is not satisfiable");
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        headers.insert(header::CONTENT_RANGE, value);
    }
    error.set_headers(headers);
    error
}

/// Everything of the answer but its body.
fn describe(record: &ObjectRecord, extent: &Extent, input: &dto::GetObjectInput) -> dto::GetObjectOutput {
    let meta = &record.meta;
    // What covers the whole object says nothing about a piece of it.
    let whole = extent.range == (0..record.size) && !extent.partial;
    let wanted =
        input.checksum_mode.as_ref().is_some_and(|mode| mode.as_str().eq_ignore_ascii_case("ENABLED"));
    let fields = if whole && wanted { Fields::new(&record.checksums) } else { Fields::default() };
    let kind = fields.kind.clone();
    let or = |given: &Option<String>, stored: &Option<String>| given.clone().or_else(|| stored.clone());
    let content_range = extent.partial.then(|| {
        format!("bytes {}-{}/{}", extent.range.start, extent.range.end.saturating_sub(1), record.size)
    });
    let output = checksummed!(dto::GetObjectOutput::default(), fields);
    dto::GetObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        cache_control: or(&input.response_cache_control, &meta.cache_control),
        checksum_type: kind,
        content_disposition: or(&input.response_content_disposition, &meta.content_disposition),
        content_encoding: or(&input.response_content_encoding, &meta.content_encoding),
        content_language: or(&input.response_content_language, &meta.content_language),
        content_length: i64::try_from(extent.range.end - extent.range.start).ok(),
        content_range,
        content_type: or(&input.response_content_type, &meta.content_type)
            .or_else(|| Some("binary/octet-stream".to_owned())),
        e_tag: Some(etag(&record.etag)),
        expires: input.response_expires.clone().or_else(|| meta::expires(meta)),
        last_modified: Some(timestamp(record.modified)),
        metadata: meta::user(meta),
        parts_count: extent.parts,
        ..output
    }
}

fn head(get: dto::GetObjectOutput) -> S3Response<dto::HeadObjectOutput> {
    let status = if get.content_range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let output = dto::HeadObjectOutput {
        accept_ranges: get.accept_ranges,
        cache_control: get.cache_control,
        checksum_crc32: get.checksum_crc32,
        checksum_crc32c: get.checksum_crc32c,
        checksum_crc64nvme: get.checksum_crc64nvme,
        checksum_sha1: get.checksum_sha1,
        checksum_sha256: get.checksum_sha256,
        checksum_type: get.checksum_type,
        content_disposition: get.content_disposition,
        content_encoding: get.content_encoding,
        content_language: get.content_language,
        content_length: get.content_length,
        content_range: get.content_range,
        content_type: get.content_type,
        e_tag: get.e_tag,
        expires: get.expires,
        last_modified: get.last_modified,
        metadata: get.metadata,
        parts_count: get.parts_count,
        ..Default::default()
    };
    S3Response::with_status(output, status)
}

type Next<P> = Pin<Box<dyn Future<Output = (P, Option<Result<Slice, ClientError>>)> + Send>>;

/// Units on their way to the socket, each lent to hyper as it is. Only one is asked for at a time.
struct Units<P> {
    /// Never locked: it makes the stream `Sync`, which s3s asks for.
    next: Mutex<Option<Next<P>>>,
    left: u64,
}

impl<P: Pieces> Units<P> {
    fn new(stream: P, left: u64) -> Units<P> {
        let next = (left > 0).then(|| step(stream));
        Units { next: Mutex::new(next), left }
    }
}

fn step<P: Pieces>(mut stream: P) -> Next<P> {
    Box::pin(async move {
        let piece = stream.next().await;
        (stream, piece)
    })
}

impl<P: Pieces> Stream for Units<P> {
    type Item = Result<Bytes, s3s::StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let next = this.next.get_mut();
        let Some(future) = next.as_mut() else { return Poll::Ready(None) };
        let (stream, piece) = std::task::ready!(future.as_mut().poll(cx));
        *next = None;
        match piece {
            Some(Ok(slice)) => {
                this.left = this.left.saturating_sub(slice.len() as u64);
                *next = (this.left > 0).then(|| step(stream));
                Poll::Ready(Some(Ok(Bytes::from_owner(slice))))
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a GET ends early");
                Poll::Ready(Some(Err(Box::new(error))))
            }
            None if this.left > 0 => Poll::Ready(Some(Err(Box::new(ClientError::Closed)))),
            None => Poll::Ready(None),
        }
    }
}

impl<P: Pieces> ByteStream for Units<P> {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(usize::try_from(self.left).unwrap_or(usize::MAX))
    }
}
