//! DeleteObject and DeleteObjects.

use super::{Ops, condition};
use crate::error::{raced, refusal, s3};
use crate::limits::DELETE_MAX;
use crate::refusal::Refusal;
use crate::storage::Storage;
use cobalt_client::ClientError;
use cobalt_rpc::proto::cas::{CasError, Command, Condition, DELETE_BYTES_MAX, DELETE_KEYS_MAX, KEY_MAX};
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
        for keys in batches(&plain) {
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

/// The keys in runs, each of which fits one request to the catalogue.
fn batches(mut keys: &[String]) -> Vec<&[String]> {
    let mut batches = Vec::new();
    while !keys.is_empty() {
        let mut bytes = 0;
        let fits = |key: &&String| {
            bytes += key.len() + size_of::<u32>();
            bytes <= DELETE_BYTES_MAX
        };
        let count = keys.iter().take(DELETE_KEYS_MAX).take_while(fits).count().max(1);
        let (batch, rest) = keys.split_at(count);
        batches.push(batch);
        keys = rest;
    }
    batches
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

#[cfg(test)]
mod tests {
    use super::batches;
    use cobalt_rpc::proto::cas::{DELETE_BYTES_MAX, DELETE_KEYS_MAX, KEY_MAX};

    #[test]
    fn a_thousand_keys_of_any_length_are_cut_into_requests_of_bounded_size() {
        for len in [1, 400, KEY_MAX] {
            let keys = vec!["k".repeat(len); 1000];
            let batches = batches(&keys);
            assert_eq!(batches.concat(), keys);
            for keys in batches {
                assert!(keys.len() <= DELETE_KEYS_MAX && keys.concat().len() <= DELETE_BYTES_MAX);
            }
        }
        assert!(batches(&[]).is_empty());
    }
}
