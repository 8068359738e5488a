//! S3's operations over the cluster, one file per noun. This file ties them to s3s, and finds out who calls and whose bucket it is.
//! What has no method here answers 501 by s3s's own default.

mod bucket;
mod checksum;
mod condition;
mod list;
mod meta;
mod multipart;
mod object_copy;
mod object_delete;
mod object_get;
mod object_put;

use crate::body::{Hasher, Slot};
use crate::error::{mismatched, s3};
use crate::guard::Upload;
use crate::keys::Keys;
use crate::limits::Limits;
use crate::refusal::Refusal;
use crate::storage::Storage;
use cobalt_base::UnixMillis;
use cobalt_rpc::proto::cas::{Answer, Query};
use cobalt_rpc::proto::record::BucketRecord;
use s3s::dto;
use s3s::{S3, S3Request, S3Response, S3Result};
use std::sync::Arc;

/// Told the numbers of the write path's steps as a request passes them: 1 http/put, 15 http reply.
pub type StepHook = Arc<dyn Fn(u8) + Send + Sync>;
const STEP_HTTP_PUT: u8 = 1;
const STEP_HTTP_REPLY: u8 = 15;

/// A body that an operation reads itself, as the guard left it in the request's extensions.
#[derive(Clone)]
pub(crate) struct Body {
    pub slot: Slot,
    pub upload: Upload,
}

/// The operations.
pub(crate) struct Ops<S> {
    pub storage: S,
    pub keys: Arc<Keys<S>>,
    pub region: String,
    pub limits: Limits,
    pub step: StepHook,
    pub hasher: Hasher,
}

impl<S: Storage> Ops<S> {
    /// The account that signed the request.
    async fn account<T>(&self, req: &S3Request<T>) -> S3Result<String> {
        match &req.credentials {
            Some(credentials) => self.keys.account(&credentials.access_key).await,
            None => Err(Refusal::forbidden("AccessDenied", "Anonymous requests are refused.").into()),
        }
    }

    /// The bucket, if it is the caller's.
    async fn bucket<T>(&self, req: &S3Request<T>, name: &str) -> S3Result<BucketRecord> {
        let account = self.account(req).await?;
        let record = self.bucket_of(&account, name).await?;
        let expected = req.headers.get("x-amz-expected-bucket-owner");
        if expected.is_some_and(|value| value.as_bytes() != record.owner.as_bytes()) {
            return Err(Refusal::forbidden("AccessDenied", "The bucket belongs to somebody else.").into());
        }
        Ok(record)
    }

    async fn bucket_of(&self, account: &str, name: &str) -> S3Result<BucketRecord> {
        let query = Query::Bucket { name: name.to_owned() };
        match self.storage.ask(query.clone()).await.map_err(s3)? {
            Answer::Bucket(record) if record.owner == account => Ok(record),
            Answer::Bucket(_) => Err(Refusal::forbidden("AccessDenied", "Access Denied").into()),
            _ => Err(mismatched(&query)),
        }
    }
}

/// Now, for people.
fn now() -> UnixMillis {
    let nanos = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
    UnixMillis(u64::try_from(nanos / 1_000_000).unwrap_or(0))
}

/// A time as s3s shows it.
fn timestamp(millis: UnixMillis) -> dto::Timestamp {
    let nanos = i128::from(millis.0) * 1_000_000;
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos);
    time.unwrap_or(time::OffsetDateTime::UNIX_EPOCH).into()
}

fn etag(value: &str) -> dto::ETag {
    dto::ETag::Strong(value.to_owned())
}

fn owner(account: &str) -> dto::Owner {
    dto::Owner { display_name: Some(account.to_owned()), id: Some(account.to_owned()) }
}

/// Bytes as text: keys come in as text, so nothing is lost.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

macro_rules! operations {
    ($($name:ident($input:ident) -> $output:ident;)*) => {
        #[async_trait::async_trait]
        impl<S: Storage> S3 for Ops<S> {
            $(async fn $name(&self, req: S3Request<dto::$input>) -> S3Result<S3Response<dto::$output>> {
                Ops::$name(self, req).await
            })*
        }
    };
}

operations! {
    create_bucket(CreateBucketInput) -> CreateBucketOutput;
    head_bucket(HeadBucketInput) -> HeadBucketOutput;
    delete_bucket(DeleteBucketInput) -> DeleteBucketOutput;
    list_buckets(ListBucketsInput) -> ListBucketsOutput;
    get_bucket_location(GetBucketLocationInput) -> GetBucketLocationOutput;
    put_object(PutObjectInput) -> PutObjectOutput;
    copy_object(CopyObjectInput) -> CopyObjectOutput;
    get_object(GetObjectInput) -> GetObjectOutput;
    head_object(HeadObjectInput) -> HeadObjectOutput;
    get_object_tagging(GetObjectTaggingInput) -> GetObjectTaggingOutput;
    delete_object(DeleteObjectInput) -> DeleteObjectOutput;
    delete_objects(DeleteObjectsInput) -> DeleteObjectsOutput;
    list_objects(ListObjectsInput) -> ListObjectsOutput;
    list_objects_v2(ListObjectsV2Input) -> ListObjectsV2Output;
    create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput;
    upload_part(UploadPartInput) -> UploadPartOutput;
    upload_part_copy(UploadPartCopyInput) -> UploadPartCopyOutput;
    list_parts(ListPartsInput) -> ListPartsOutput;
    list_multipart_uploads(ListMultipartUploadsInput) -> ListMultipartUploadsOutput;
    complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput;
    abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput;
}
