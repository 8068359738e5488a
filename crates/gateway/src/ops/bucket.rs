//! Buckets: create, head, delete, list, location.

use super::{Ops, now, owner, timestamp};
use crate::error::{mismatched, s3};
use crate::limits::PAGE_MAX;
use crate::refusal::Refusal;
use crate::storage::Storage;
use cobalt_client::ClientError;
use cobalt_rpc::proto::cas::{Answer, CasError, Command, Query};
use http::StatusCode;
use s3s::dto;
use s3s::{S3Request, S3Response, S3Result};

impl<S: Storage> Ops<S> {
    pub(super) async fn create_bucket(
        &self,
        req: S3Request<dto::CreateBucketInput>,
    ) -> S3Result<S3Response<dto::CreateBucketOutput>> {
        let account = self.account(&req).await?;
        if let Some(configuration) = &req.input.create_bucket_configuration {
            if configuration.bucket.is_some() || configuration.location.is_some() {
                return Err(Refusal::lacking("A directory bucket").into());
            }
            let location =
                configuration.location_constraint.as_ref().map(dto::BucketLocationConstraint::as_str);
            if location.is_some_and(|name| !name.is_empty() && name != self.region) {
                let message = format!("The location constraint is wrong; this is region {}.", self.region);
                return Err(Refusal::bad("InvalidLocationConstraint", message).into());
            }
        }
        let name = req.input.bucket;
        let command = Command::CreateBucket { name: name.clone(), owner: account.clone(), created: now() };
        match self.storage.commit(command).await {
            Ok(_) => {
                let output = dto::CreateBucketOutput { location: Some(format!("/{name}")) };
                Ok(S3Response::new(output))
            }
            Err(ClientError::Cas(CasError::BucketExists { owner, .. })) if owner == account => {
                let message = "The bucket exists already, and you own it.";
                Err(Refusal::new(StatusCode::CONFLICT, "BucketAlreadyOwnedByYou", message).into())
            }
            Err(error) => Err(s3(error)),
        }
    }

    pub(super) async fn head_bucket(
        &self,
        req: S3Request<dto::HeadBucketInput>,
    ) -> S3Result<S3Response<dto::HeadBucketOutput>> {
        self.bucket(&req, &req.input.bucket).await?;
        let output = dto::HeadBucketOutput { bucket_region: Some(self.region.clone()), ..Default::default() };
        Ok(S3Response::new(output))
    }

    pub(super) async fn delete_bucket(
        &self,
        req: S3Request<dto::DeleteBucketInput>,
    ) -> S3Result<S3Response<dto::DeleteBucketOutput>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        self.storage.commit(Command::DeleteBucket { name: bucket.name }).await.map_err(s3)?;
        Ok(S3Response::with_status(dto::DeleteBucketOutput::default(), StatusCode::NO_CONTENT))
    }

    pub(super) async fn list_buckets(
        &self,
        req: S3Request<dto::ListBucketsInput>,
    ) -> S3Result<S3Response<dto::ListBucketsOutput>> {
        let account = self.account(&req).await?;
        let prefix = req.input.prefix.clone().unwrap_or_default();
        let max = req.input.max_buckets.unwrap_or(10_000);
        let max = usize::try_from(max).ok().filter(|n| (1..=10_000).contains(n));
        let max = max.ok_or_else(|| Refusal::bad("InvalidArgument", "max-buckets must be 1 to 10,000."))?;
        let mut after = req.input.continuation_token.clone().unwrap_or_default();
        let (mut buckets, mut token) = (Vec::new(), None);
        'pages: loop {
            let query = Query::Buckets { after: after.clone(), limit: PAGE_MAX };
            let Answer::Buckets(page) = self.storage.ask(query.clone()).await.map_err(s3)? else {
                return Err(mismatched(&query));
            };
            let Some(last) = page.rows.last() else { break };
            let end = last.name.clone();
            for row in
                page.rows.into_iter().filter(|row| row.owner == account && row.name.starts_with(&prefix))
            {
                if buckets.len() == max {
                    token = Some(after);
                    break 'pages;
                }
                after = row.name.clone();
                buckets.push(dto::Bucket {
                    bucket_region: Some(self.region.clone()),
                    creation_date: Some(timestamp(row.created)),
                    name: Some(row.name),
                });
            }
            after = end;
            if !page.more {
                break;
            }
        }
        let output = dto::ListBucketsOutput {
            buckets: Some(buckets),
            owner: Some(owner(&account)),
            continuation_token: token,
            prefix: req.input.prefix,
        };
        Ok(S3Response::new(output))
    }

    pub(super) async fn get_bucket_location(
        &self,
        req: S3Request<dto::GetBucketLocationInput>,
    ) -> S3Result<S3Response<dto::GetBucketLocationOutput>> {
        self.bucket(&req, &req.input.bucket).await?;
        // S3 says nothing for us-east-1.
        let named = (self.region != "us-east-1").then(|| self.region.clone());
        let location_constraint = named.map(dto::BucketLocationConstraint::from);
        Ok(S3Response::new(dto::GetBucketLocationOutput { location_constraint }))
    }
}
