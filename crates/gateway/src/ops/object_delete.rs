//! DeleteObject and DeleteObjects.

use super::{Ops, condition};
use crate::error::{raced, refusal, s3};
use crate::limits::DELETE_MAX;
use crate::refusal::Refusal;
use crate::storage::Storage;
use cobalt_client::ClientError;
use cobalt_rpc::proto::cas::{CasError, Command, Condition, DELETE_KEYS_MAX, KEY_MAX};
use http::StatusCode;
use s3s::dto;
use s3s::{S3Request, S3Response, S3Result};

impl<S: Storage> Ops<S> {
    pub(super) async fn delete_object(
        &self,
        req: S3Request<dto::DeleteObjectInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectOutput>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let key = req.input.key.into_bytes();
        let condition = match &req.input.if_match {
            // Any object that is there: what is judged is the one that is there now.
            Some(dto::ETagCondition::Any) => {
                let found = self.find(&bucket.name, &key).await?;
                let missing = || Refusal::new(StatusCode::NOT_FOUND, "NoSuchKey", "The key does not exist.");
                Condition { absent: false, if_match: Some(found.ok_or_else(missing)?.etag) }
            }
            tag => condition::write(tag.as_ref(), None)?,
        };
        self.precheck(&bucket.name, &key, &condition).await?;
        let command = Command::DeleteObject { bucket: bucket.name, key, condition: condition.clone() };
        match self.storage.commit(command).await {
            Ok(_) => {}
            // What is not there is deleted, unless a condition says that it must be there.
            Err(ClientError::Cas(CasError::NoSuchKey)) if condition.if_match.is_none() => {}
            Err(error) => return Err(raced(error)),
        }
        Ok(S3Response::with_status(dto::DeleteObjectOutput::default(), StatusCode::NO_CONTENT))
    }

    pub(super) async fn delete_objects(
        &self,
        req: S3Request<dto::DeleteObjectsInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectsOutput>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let covered =
            ["content-md5", "x-amz-content-sha256"].iter().any(|name| req.headers.contains_key(*name))
                || req.headers.keys().any(|name| name.as_str().starts_with("x-amz-checksum-"));
        if !covered {
            return Err(Refusal::bad(
                "InvalidRequest",
                "Missing required header for this request: Content-MD5",
            )
            .into());
        }
        let quiet = req.input.delete.quiet.unwrap_or(false);
        let objects = req.input.delete.objects;
        if objects.is_empty() || objects.len() > DELETE_MAX {
            let message = format!("A request deletes 1 to {DELETE_MAX} keys.");
            return Err(Refusal::bad("MalformedXML", message).into());
        }
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        let mut plain = Vec::new();
        for object in objects {
            let result = match judge(&object) {
                Err(refusal) => Some(Err(refusal)),
                Ok(None) => None,
                Ok(Some(condition)) => Some(self.delete_if(&bucket.name, &object.key, condition).await),
            };
            match result {
                None => plain.push(object.key),
                Some(Ok(())) => deleted.push(object.key),
                Some(Err(refusal)) => errors.push(failed(object.key, &refusal)),
            }
        }
        for keys in plain.chunks(DELETE_KEYS_MAX) {
            let command = Command::DeleteObjects {
                bucket: bucket.name.clone(),
                keys: keys.iter().map(|key| key.clone().into_bytes()).collect(),
            };
            match self.storage.commit(command).await {
                Ok(_) => deleted.extend(keys.iter().cloned()),
                Err(error @ ClientError::Cas(CasError::NoSuchBucket(_))) => return Err(s3(error)),
                Err(error) => errors.extend(keys.iter().map(|key| failed(key.clone(), &refusal(&error)))),
            }
        }
        let deleted =
            deleted.into_iter().map(|key| dto::DeletedObject { key: Some(key), ..Default::default() });
        let output = dto::DeleteObjectsOutput {
            deleted: (!quiet).then(|| deleted.collect()),
            errors: (!errors.is_empty()).then_some(errors),
            request_charged: None,
        };
        Ok(S3Response::new(output))
    }

    async fn delete_if(&self, bucket: &str, key: &str, condition: Condition) -> Result<(), Refusal> {
        let command =
            Command::DeleteObject { bucket: bucket.to_owned(), key: key.as_bytes().to_vec(), condition };
        self.storage.commit(command).await.map(drop).map_err(|error| refusal(&error))
    }
}

/// Whether one key of many may be deleted, and under which condition.
fn judge(object: &dto::ObjectIdentifier) -> Result<Option<Condition>, Refusal> {
    if object.version_id.as_deref().is_some_and(|version| version != "null") {
        return Err(Refusal::lacking("Versioning"));
    }
    if object.last_modified_time.is_some() || object.size.is_some() {
        return Err(Refusal::lacking("Deleting by time or size"));
    }
    if object.key.is_empty() {
        return Err(Refusal::bad("UserKeyMustBeSpecified", "The key is empty."));
    }
    if object.key.len() > KEY_MAX {
        return Err(Refusal::bad("KeyTooLongError", "Your key is too long"));
    }
    Ok(object.e_tag.as_ref().map(|tag| Condition { absent: false, if_match: Some(tag.value().to_owned()) }))
}

fn failed(key: String, refusal: &Refusal) -> dto::Error {
    dto::Error {
        code: Some(refusal.code.to_owned()),
        key: Some(key),
        message: Some(refusal.message.to_string()),
        version_id: None,
    }
}
