//! Multipart uploads: parts are bodies with records of their own; Complete is one commit that names them.

use super::checksum::{Fields, checksummed};
use super::list::{Names, page_size};
use super::{Ops, STEP_HTTP_PUT, STEP_HTTP_REPLY, checksum, condition, etag, meta, now, owner, timestamp};
use crate::body::{Algorithm, Expected, combine_full, composite, from_suffix};
use crate::error::{mismatched, raced, s3};
use crate::limits::{PAGE_MAX, PART_MIN};
use crate::refusal::Refusal;
use crate::storage::Storage;
use cobalt_client::ClientError;
use cobalt_rpc::proto::cas::{Answer, CasError, Command, Outcome, PARTS_MAX, Query, UploadRow, parts_digest};
use cobalt_rpc::proto::record::{Body, Checksum, ObjectRecord, PartRecord, UploadRecord};
use http::StatusCode;
use s3s::dto;
use s3s::{S3Request, S3Response, S3Result};
use uuid::Uuid;

/// The upload that an id names. What is no id of ours is no upload.
pub(super) fn upload_id(text: &str) -> Result<Uuid, Refusal> {
    let missing =
        || Refusal::new(StatusCode::NOT_FOUND, "NoSuchUpload", "The specified upload does not exist.");
    Uuid::try_parse(text).map_err(|_| missing())
}

pub(super) fn part_number(number: i32) -> Result<u16, Refusal> {
    let number = u16::try_from(number).ok().filter(|n| (1..=PARTS_MAX).contains(n));
    number.ok_or_else(|| {
        Refusal::bad("InvalidArgument", format!("Part number must be an integer between 1 and {PARTS_MAX}"))
    })
}

/// The checksum that an upload's object is to have, and whether as a composite.
fn chosen(
    algorithm: Option<&dto::ChecksumAlgorithm>,
    kind: Option<&dto::ChecksumType>,
) -> Result<(Algorithm, bool), Refusal> {
    let algorithm = match algorithm {
        None => Algorithm::Crc64Nvme,
        Some(name) => from_suffix(&name.as_str().to_ascii_lowercase())
            .ok_or_else(|| Refusal::lacking("The checksum algorithm that is named"))?,
    };
    let composite = match kind.map(dto::ChecksumType::as_str) {
        None => algorithm != Algorithm::Crc64Nvme,
        Some("COMPOSITE") => true,
        Some("FULL_OBJECT") => false,
        Some(_) => {
            return Err(Refusal::bad("InvalidRequest", "x-amz-checksum-type is COMPOSITE or FULL_OBJECT."));
        }
    };
    let combines = !matches!(algorithm, Algorithm::Sha1 | Algorithm::Sha256);
    if composite && algorithm == Algorithm::Crc64Nvme || !composite && !combines {
        return Err(Refusal::bad("InvalidRequest", "The checksum algorithm and type do not go together."));
    }
    Ok((algorithm, composite))
}

impl<S: Storage> Ops<S> {
    pub(super) async fn create_multipart_upload(
        &self,
        mut req: S3Request<dto::CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CreateMultipartUploadOutput>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let meta = meta::from_request(&req.headers, req.input.metadata.take())?;
        let checksum = chosen(req.input.checksum_algorithm.as_ref(), req.input.checksum_type.as_ref())?;
        let named = req.input.checksum_algorithm.is_some();
        let mut random = [0; 16];
        getrandom(&mut random)?;
        let upload = uuid::Builder::from_random_bytes(random).into_uuid();
        let record = UploadRecord {
            upload,
            key: req.input.key.clone().into_bytes(),
            initiated: now(),
            meta,
            // Not named: parts come with whatever checksum the client likes, as its libraries do by themselves.
            checksum: named.then_some(checksum),
        };
        self.storage
            .commit(Command::CreateUpload { bucket: bucket.name.clone(), record })
            .await
            .map_err(s3)?;
        let output = dto::CreateMultipartUploadOutput {
            bucket: Some(bucket.name),
            key: Some(req.input.key),
            upload_id: Some(upload.simple().to_string()),
            checksum_algorithm: named.then(|| checksum::name(checksum.0)),
            checksum_type: named.then(|| checksum::kind(checksum.1)),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    pub(super) async fn upload(&self, bucket: &str, key: &str, upload: Uuid) -> S3Result<UploadRecord> {
        let query = Query::Upload { bucket: bucket.to_owned(), key: key.as_bytes().to_vec(), upload };
        match self.storage.ask(query.clone()).await.map_err(s3)? {
            Answer::Upload(record) => Ok(record),
            _ => Err(mismatched(&query)),
        }
    }

    pub(super) async fn upload_part(
        &self,
        mut req: S3Request<dto::UploadPartInput>,
    ) -> S3Result<S3Response<dto::UploadPartOutput>> {
        (self.step)(STEP_HTTP_PUT);
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let number = part_number(req.input.part_number)?;
        let id = upload_id(&req.input.upload_id)?;
        let upload = self.upload(&bucket.name, &req.input.key, id).await?;
        if let (Some(body), Some((algorithm, _))) = (req.extensions.get_mut::<super::Body>(), upload.checksum)
        {
            // Every part has the checksum that the object's is made of. A client that sends another one is told.
            let given = body.upload.algorithm();
            let explicit = body.upload.declared.checksum.is_some() || body.upload.trailed();
            if explicit && given != algorithm {
                let message = format!(
                    "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
                    checksum::name(algorithm).as_str(),
                    checksum::name(given).as_str()
                );
                return Err(Refusal::bad("InvalidRequest", message).into());
            }
            body.upload.named = Some(algorithm);
        }
        let taken = self.take(&mut req).await?;
        let part = PartRecord {
            number,
            size: taken.size,
            modified: now(),
            etag: taken.digested.etag(),
            body: Body::Empty,
            checksums: vec![taken.digested.record()],
        };
        let (tag, fields) = (etag(&part.etag), Fields::new(&part.checksums));
        let key = req.input.key.into_bytes();
        let command = |body| {
            let part = PartRecord { body, ..part };
            Command::PutPart { bucket: bucket.name, key, upload: id, part }
        };
        self.name(taken.stored, command).await?;
        let output = checksummed!(dto::UploadPartOutput::default(), fields);
        (self.step)(STEP_HTTP_REPLY);
        Ok(S3Response::new(dto::UploadPartOutput { e_tag: Some(tag), ..output }))
    }

    pub(super) async fn list_parts(
        &self,
        req: S3Request<dto::ListPartsInput>,
    ) -> S3Result<S3Response<dto::ListPartsOutput>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let id = upload_id(&req.input.upload_id)?;
        let upload = self.upload(&bucket.name, &req.input.key, id).await?;
        let limit = page_size(req.input.max_parts)?;
        let marker = req.input.part_number_marker.unwrap_or(0);
        let after = u16::try_from(marker)
            .map_err(|_| Refusal::bad("InvalidArgument", "part-number-marker is out of range."))?;
        let (mut rows, more) = self.parts(id, after, limit as usize).await?;
        let truncated = limit > 0 && (more || rows.len() > limit as usize);
        rows.truncate(limit as usize);
        let next = rows.last().map_or(i32::from(after), |part| i32::from(part.number));
        let parts = rows.into_iter().map(|part| {
            let output = checksummed!(dto::Part::default(), Fields::new(&part.checksums));
            dto::Part {
                e_tag: Some(etag(&part.etag)),
                last_modified: Some(timestamp(part.modified)),
                part_number: Some(i32::from(part.number)),
                size: i64::try_from(part.size).ok(),
                ..output
            }
        });
        let initiator =
            dto::Initiator { display_name: Some(bucket.owner.clone()), id: Some(bucket.owner.clone()) };
        let output = dto::ListPartsOutput {
            bucket: Some(bucket.name),
            checksum_algorithm: upload.checksum.map(|(algorithm, _)| checksum::name(algorithm)),
            checksum_type: upload.checksum.map(|(_, composite)| checksum::kind(composite)),
            initiator: Some(initiator),
            is_truncated: Some(truncated),
            key: Some(req.input.key),
            max_parts: Some(i32::try_from(limit).unwrap_or(i32::MAX)),
            next_part_number_marker: Some(next),
            owner: Some(owner(&bucket.owner)),
            part_number_marker: Some(marker),
            parts: Some(parts.collect()),
            storage_class: Some(dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
            upload_id: Some(req.input.upload_id),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    /// Parts behind `after`, at least `wanted` of them where there are as many, and whether more follow.
    async fn parts(&self, upload: Uuid, after: u16, wanted: usize) -> S3Result<(Vec<PartRecord>, bool)> {
        let (mut rows, mut after) = (Vec::new(), after);
        loop {
            let query = Query::Parts { upload, after, limit: PAGE_MAX };
            let Answer::Parts(page) = self.storage.ask(query.clone()).await.map_err(s3)? else {
                return Err(mismatched(&query));
            };
            let done = !page.more || page.rows.is_empty();
            rows.extend(page.rows);
            after = rows.last().map_or(after, |part: &PartRecord| part.number);
            if done || rows.len() >= wanted {
                return Ok((rows, !done));
            }
        }
    }

    pub(super) async fn list_multipart_uploads(
        &self,
        req: S3Request<dto::ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<dto::ListMultipartUploadsOutput>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let input = req.input;
        let names = Names::new(input.encoding_type.as_ref())?;
        let limit = page_size(input.max_uploads)?;
        let key_marker = input.key_marker.clone().unwrap_or_default();
        // Without a key the upload's marker is ignored.
        let id_marker = input.upload_id_marker.clone().filter(|id| !id.is_empty() && !key_marker.is_empty());
        let query = Query::Uploads {
            bucket: bucket.name.clone(),
            prefix: input.prefix.clone().unwrap_or_default().into_bytes(),
            after_key: key_marker.clone().into_bytes(),
            after_upload: id_marker.as_deref().map(upload_id).transpose()?,
            delimiter: input.delimiter.clone().filter(|d| !d.is_empty()).map(String::into_bytes),
            limit,
        };
        let Answer::Uploads(page) = self.storage.ask(query.clone()).await.map_err(s3)? else {
            return Err(mismatched(&query));
        };
        let (next_key, next_id) = match page.rows.last().filter(|_| page.more) {
            Some(UploadRow::Upload { key, upload, .. }) => {
                (Some(names.show(key)), Some(upload.simple().to_string()))
            }
            Some(UploadRow::Prefix(prefix)) => (Some(names.show(prefix)), None),
            None => (None, None),
        };
        let (mut uploads, mut prefixes) = (Vec::new(), Vec::new());
        for row in page.rows {
            match row {
                UploadRow::Prefix(prefix) => {
                    prefixes.push(dto::CommonPrefix { prefix: Some(names.show(&prefix)) });
                }
                UploadRow::Upload { key, upload, initiated } => uploads.push(dto::MultipartUpload {
                    initiated: Some(timestamp(initiated)),
                    key: Some(names.show(&key)),
                    owner: Some(owner(&bucket.owner)),
                    storage_class: Some(dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
                    upload_id: Some(upload.simple().to_string()),
                    ..Default::default()
                }),
            }
        }
        let shown = |name: Option<String>| name.map(|name| names.show(name.as_bytes()));
        let output = dto::ListMultipartUploadsOutput {
            bucket: Some(bucket.name),
            common_prefixes: Some(prefixes),
            delimiter: shown(input.delimiter),
            encoding_type: input.encoding_type,
            is_truncated: Some(page.more),
            key_marker: shown(Some(key_marker)),
            max_uploads: Some(i32::try_from(limit).unwrap_or(i32::MAX)),
            next_key_marker: next_key,
            next_upload_id_marker: next_id,
            prefix: shown(input.prefix),
            upload_id_marker: input.upload_id_marker,
            uploads: Some(uploads),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    pub(super) async fn complete_multipart_upload(
        &self,
        req: S3Request<dto::CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CompleteMultipartUploadOutput>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let id = upload_id(&req.input.upload_id)?;
        let condition = condition::write(req.input.if_match.as_ref(), req.input.if_none_match.as_ref())?;
        let named = named_parts(req.input.multipart_upload.as_ref())?;
        // A completed upload has no record any more. The commit knows it, and answers a repeat as it did the first time.
        let upload = match self.upload(&bucket.name, &req.input.key, id).await {
            Ok(upload) => Some(upload),
            Err(error) if *error.code() == s3s::S3ErrorCode::NoSuchUpload => None,
            Err(error) => return Err(error),
        };
        let key = req.input.key.clone().into_bytes();
        if upload.is_some() {
            self.precheck(&bucket.name, &key, &condition).await?;
        }
        let (stored, _) = self.parts(id, 0, usize::from(PARTS_MAX)).await?;
        let parts = match choose(&named, &stored) {
            Ok(parts) => parts,
            Err(refusal) if upload.is_some() => return Err(refusal.into()),
            Err(_) => return Err(s3(ClientError::Cas(CasError::NoSuchUpload(id)))),
        };
        // Where none was named, the object has the parts' checksum, if it is one for all of them.
        let common = || parts.first().and_then(|part| part.checksums.first()).map(|sum| sum.algorithm);
        let (algorithm, is_composite) = upload
            .as_ref()
            .and_then(|upload| upload.checksum)
            .unwrap_or_else(|| (common().unwrap_or(Algorithm::Crc64Nvme), false));
        let checksum = object_checksum(algorithm, is_composite, &parts);
        if upload.is_some() {
            declared(&req.input, checksum.as_ref(), &parts)?;
        }
        let record = ObjectRecord {
            size: parts.iter().map(|part| part.size).sum(),
            modified: now(),
            etag: etag_of(&parts)?,
            body: Body::Parts { upload: id, count: u32::try_from(parts.len()).unwrap_or(u32::MAX) },
            meta: upload.map(|upload| upload.meta).unwrap_or_default(),
            checksums: checksum.into_iter().collect(),
        };
        let fields = Fields::new(&record.checksums);
        let kind = fields.kind.clone();
        let command = Command::CompleteUpload {
            bucket: bucket.name.clone(),
            key,
            upload: id,
            numbers: bitmap(&parts),
            digest: parts_digest(parts.iter().map(|part| (part.number, part.etag.as_str(), part.size))),
            record,
            condition,
        };
        let query = || Query::Upload { bucket: bucket.name.clone(), key: Vec::new(), upload: id };
        let Outcome::Published { etag: tag } = self.storage.commit(command).await.map_err(raced)? else {
            return Err(mismatched(&query()));
        };
        let output = checksummed!(dto::CompleteMultipartUploadOutput::default(), fields);
        let output = dto::CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", bucket.name, req.input.key)),
            bucket: Some(bucket.name),
            checksum_type: kind,
            e_tag: Some(etag(&tag)),
            key: Some(req.input.key),
            ..output
        };
        Ok(S3Response::new(output))
    }

    pub(super) async fn abort_multipart_upload(
        &self,
        req: S3Request<dto::AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::AbortMultipartUploadOutput>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let upload = upload_id(&req.input.upload_id)?;
        let command = Command::AbortUpload { bucket: bucket.name, key: req.input.key.into_bytes(), upload };
        self.storage.commit(command).await.map_err(s3)?;
        Ok(S3Response::with_status(dto::AbortMultipartUploadOutput::default(), StatusCode::NO_CONTENT))
    }
}

fn getrandom(bytes: &mut [u8]) -> S3Result<()> {
    getrandom::fill(bytes).map_err(|error| {
        tracing::error!(%error, "the host gives no random bytes");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "No random bytes.").into()
    })
}

/// A part as Complete names it.
struct Named {
    number: u16,
    etag: String,
    checksums: Fields,
}

fn named_parts(upload: Option<&dto::CompletedMultipartUpload>) -> Result<Vec<Named>, Refusal> {
    let parts = upload.and_then(|upload| upload.parts.as_deref()).unwrap_or_default();
    if parts.is_empty() {
        return Err(Refusal::bad("MalformedXML", "Complete names no part."));
    }
    if parts.len() > usize::from(PARTS_MAX) {
        return Err(Refusal::bad("MalformedXML", format!("Complete names more than {PARTS_MAX} parts.")));
    }
    let mut named: Vec<Named> = Vec::with_capacity(parts.len());
    for part in parts {
        let (Some(number), Some(tag)) = (part.part_number, &part.e_tag) else {
            return Err(Refusal::bad("MalformedXML", "A part has no number or no ETag."));
        };
        let number = part_number(number)?;
        if named.last().is_some_and(|last| last.number >= number) {
            return Err(Refusal::bad("InvalidPartOrder", "The list of parts was not in ascending order."));
        }
        let checksums = Fields {
            crc32: part.checksum_crc32.clone(),
            crc32c: part.checksum_crc32c.clone(),
            crc64nvme: part.checksum_crc64nvme.clone(),
            sha1: part.checksum_sha1.clone(),
            sha256: part.checksum_sha256.clone(),
            kind: None,
        };
        named.push(Named { number, etag: tag.value().to_owned(), checksums });
    }
    Ok(named)
}

/// The stored parts that are named, in order.
fn choose<'a>(named: &[Named], stored: &'a [PartRecord]) -> Result<Vec<&'a PartRecord>, Refusal> {
    let invalid = |number: u16| {
        let what = "could not be found, or its entity tag or checksum is another one";
        Refusal::bad("InvalidPart", format!("Part {number} {what}."))
    };
    let mut parts = Vec::with_capacity(named.len());
    for (at, name) in named.iter().enumerate() {
        let found = stored.binary_search_by_key(&name.number, |part| part.number).ok();
        let part = found.and_then(|at| stored.get(at)).filter(|part| part.etag == name.etag);
        let part = part.ok_or_else(|| invalid(name.number))?;
        let differs = name.checksums.given().any(|(algorithm, value)| {
            !part.checksums.iter().any(|sum| sum.algorithm == algorithm && sum.value == value)
        });
        if differs {
            return Err(invalid(name.number));
        }
        if at + 1 < named.len() && part.size < PART_MIN {
            let message =
                format!("Part {} has {} bytes; all but the last have {PART_MIN}.", name.number, part.size);
            return Err(Refusal::bad("EntityTooSmall", message));
        }
        parts.push(part);
    }
    Ok(parts)
}

fn value_of(part: &PartRecord, algorithm: Algorithm) -> Option<Vec<u8>> {
    let sum = part.checksums.iter().find(|sum| sum.algorithm == algorithm)?;
    Expected::parse(algorithm, &sum.value).map(|expected| expected.value)
}

fn object_checksum(algorithm: Algorithm, is_composite: bool, parts: &[&PartRecord]) -> Option<Checksum> {
    let values: Option<Vec<Vec<u8>>> = parts.iter().map(|part| value_of(part, algorithm)).collect();
    let values = values?;
    if is_composite {
        return Some(composite(algorithm, &values));
    }
    let sized: Vec<_> = values.into_iter().zip(parts.iter().map(|part| part.size)).collect();
    combine_full(algorithm, &sized)
}

/// Holds what the client says of the whole object against what it is.
fn declared(
    input: &dto::CompleteMultipartUploadInput,
    checksum: Option<&Checksum>,
    parts: &[&PartRecord],
) -> Result<(), Refusal> {
    let size: u64 = parts.iter().map(|part| part.size).sum();
    if input.mpu_object_size.is_some_and(|said| u64::try_from(said) != Ok(size)) {
        let message = format!("The object has {size} bytes, not as many as x-amz-mp-object-size says.");
        return Err(Refusal::bad("InvalidRequest", message));
    }
    let fields = Fields {
        crc32: input.checksum_crc32.clone(),
        crc32c: input.checksum_crc32c.clone(),
        crc64nvme: input.checksum_crc64nvme.clone(),
        sha1: input.checksum_sha1.clone(),
        sha256: input.checksum_sha256.clone(),
        kind: None,
    };
    let plain = |value: &str| value.split_once('-').map_or(value.to_owned(), |(value, _)| value.to_owned());
    for (algorithm, value) in fields.given() {
        let same =
            checksum.is_some_and(|sum| sum.algorithm == algorithm && plain(&sum.value) == plain(value));
        if !same {
            return Err(Refusal::bad(
                "BadDigest",
                "The object's checksum is not the one that you specified.",
            ));
        }
    }
    if let (Some(kind), Some(sum)) = (&input.checksum_type, checksum)
        && *kind != checksum::kind(sum.composite)
    {
        return Err(Refusal::bad("InvalidRequest", "x-amz-checksum-type is not the upload's."));
    }
    Ok(())
}

/// MD5 of the parts' MD5s, and their number.
fn etag_of(parts: &[&PartRecord]) -> Result<String, Refusal> {
    use md5::{Digest, Md5};
    let mut digest = Md5::new();
    for part in parts {
        let bytes = hex::decode(&part.etag).map_err(|_| {
            let message = format!("The ETag of part {} is no MD5.", part.number);
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
        })?;
        digest.update(bytes);
    }
    Ok(format!("{}-{}", hex::encode(digest.finalize()), parts.len()))
}

/// Bit n-1 of byte (n-1)/8 for part n.
fn bitmap(parts: &[&PartRecord]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        let bit = usize::from(part.number) - 1;
        if bytes.len() <= bit / 8 {
            bytes.resize(bit / 8 + 1, 0);
        }
        bytes[bit / 8] |= 1 << (bit % 8);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, bitmap, choose, chosen, etag_of, named_parts};
    use cobalt_base::UnixMillis;
    use cobalt_rpc::proto::record::{Body, PartRecord};
    use s3s::dto;

    fn part(number: u16, size: u64, etag: &str) -> PartRecord {
        let etag = etag.to_owned();
        PartRecord { number, size, modified: UnixMillis(0), etag, body: Body::Empty, checksums: Vec::new() }
    }

    fn named(parts: &[(i32, &str)]) -> dto::CompletedMultipartUpload {
        let parts = parts.iter().map(|(number, tag)| dto::CompletedPart {
            part_number: Some(*number),
            e_tag: Some(dto::ETag::Strong((*tag).to_owned())),
            ..Default::default()
        });
        dto::CompletedMultipartUpload { parts: Some(parts.collect()) }
    }

    fn code(list: &[(i32, &str)], stored: &[PartRecord]) -> Result<usize, &'static str> {
        let named = named_parts(Some(&named(list))).map_err(|r| r.code)?;
        choose(&named, stored).map(|parts| parts.len()).map_err(|r| r.code)
    }

    #[test]
    fn parts_are_named_in_order_and_are_large_enough() {
        let stored = [part(1, 5 << 20, "a"), part(2, 1, "b"), part(4, 1, "c")];
        assert_eq!(code(&[(1, "a"), (2, "b")], &stored), Ok(2));
        assert_eq!(code(&[(1, "a"), (4, "c")], &stored), Ok(2), "numbers may have gaps");
        assert_eq!(code(&[(2, "b"), (4, "c")], &stored), Err("EntityTooSmall"));
        assert_eq!(code(&[(2, "b"), (1, "a")], &stored), Err("InvalidPartOrder"));
        assert_eq!(code(&[(1, "a"), (1, "a")], &stored), Err("InvalidPartOrder"));
        assert_eq!(code(&[(1, "x")], &stored), Err("InvalidPart"));
        assert_eq!(code(&[(3, "b")], &stored), Err("InvalidPart"));
        assert_eq!(code(&[], &stored), Err("MalformedXML"));
        assert_eq!(code(&[(0, "a")], &stored), Err("InvalidArgument"));
        assert_eq!(code(&[(10_001, "a")], &stored), Err("InvalidArgument"));
    }

    #[test]
    fn the_etag_is_the_md5_of_the_parts_md5s() {
        let md5 = "d41d8cd98f00b204e9800998ecf8427e";
        let one = part(1, 0, md5);
        assert_eq!(etag_of(&[&one]).unwrap(), "59adb24ef3cdbe0297f05b395827453f-1");
    }

    #[test]
    fn the_bitmap_has_a_bit_for_each_part() {
        let parts = [part(1, 0, ""), part(8, 0, ""), part(9, 0, ""), part(10_000, 0, "")];
        let bits = bitmap(&parts.iter().collect::<Vec<_>>());
        assert_eq!((bits[0], bits[1], bits.len(), bits[1249]), (0b1000_0001, 1, 1250, 0b1000_0000));
    }

    #[test]
    fn checksum_types_go_with_algorithms_that_can_have_them() {
        let algorithm = |name: &'static str| dto::ChecksumAlgorithm::from_static(name);
        let kind = |name: &'static str| dto::ChecksumType::from_static(name);
        assert_eq!(chosen(None, None), Ok((Algorithm::Crc64Nvme, false)));
        assert_eq!(chosen(Some(&algorithm("SHA256")), None), Ok((Algorithm::Sha256, true)));
        let full = chosen(Some(&algorithm("CRC32")), Some(&kind("FULL_OBJECT")));
        assert_eq!(full, Ok((Algorithm::Crc32, false)));
        assert!(chosen(Some(&algorithm("SHA1")), Some(&kind("FULL_OBJECT"))).is_err());
        assert!(chosen(Some(&algorithm("CRC64NVME")), Some(&kind("COMPOSITE"))).is_err());
    }
}
