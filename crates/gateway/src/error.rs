//! What the cluster refuses, as S3 says it.

use crate::refusal::Refusal;
use cobalt_client::ClientError;
use cobalt_rpc::proto::cas::{CasError, Query};
use http::StatusCode;
use s3s::S3Error;

/// The answer to an error of the cluster.
pub fn refusal(error: &ClientError) -> Refusal {
    let unavailable = |code, what: &str| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, code, what.to_owned());
    match error {
        ClientError::Cas(error) => catalogue(error),
        ClientError::Unavailable { what } => {
            unavailable("ServiceUnavailable", &format!("{what}. Nothing was stored; try again later."))
        }
        ClientError::NoSpace { what } | ClientError::HostFull { what } => full(what),
        ClientError::Deadline { what } => unavailable(
            "ServiceUnavailable",
            &format!("No answer in time: {what}. The change may have taken place; look before trying again."),
        ),
        ClientError::Damaged { what } => Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Data is damaged beyond repair: {what}."),
        ),
        ClientError::Busy => unavailable("SlowDown", "Please reduce your request rate."),
        ClientError::Closed => unavailable("ServiceUnavailable", "The service is shutting down."),
    }
}

fn full(what: &str) -> Refusal {
    Refusal::new(
        StatusCode::INSUFFICIENT_STORAGE,
        "InsufficientStorage",
        format!("No space is left: {what}."),
    )
}

fn catalogue(error: &CasError) -> Refusal {
    let message = error.to_string();
    let (status, code) = match error {
        CasError::NoSuchBucket(_) => (StatusCode::NOT_FOUND, "NoSuchBucket"),
        CasError::NoSuchKey => (StatusCode::NOT_FOUND, "NoSuchKey"),
        CasError::NoSuchUpload(_) => (StatusCode::NOT_FOUND, "NoSuchUpload"),
        CasError::InvalidPart => (StatusCode::BAD_REQUEST, "InvalidPart"),
        CasError::BucketExists { .. } => {
            return Refusal::new(StatusCode::CONFLICT, "BucketAlreadyExists", "The bucket name is taken.");
        }
        CasError::BucketNotEmpty(_) => (StatusCode::CONFLICT, "BucketNotEmpty"),
        CasError::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
        CasError::Conflict => (StatusCode::CONFLICT, "ConditionalRequestConflict"),
        CasError::NoSuchAccessKey(_) => (StatusCode::FORBIDDEN, "InvalidAccessKeyId"),
        CasError::TooLarge(_) => (StatusCode::BAD_REQUEST, "MetadataTooLarge"),
        CasError::Full => return full("the catalogue"),
        CasError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
        CasError::Malformed(_) => (StatusCode::BAD_REQUEST, "InvalidRequest"),
        CasError::NotLeader { .. }
        | CasError::Fenced(_)
        | CasError::NoSession(_)
        | CasError::Acknowledged(_)
        | CasError::Failed(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
        CasError::AccessKeyExists(_) => (StatusCode::CONFLICT, "InvalidRequest"),
    };
    Refusal::new(status, code, message)
}

/// The same as s3s's error.
pub fn s3(error: ClientError) -> S3Error {
    refusal(&error).into()
}

/// A commit's refusal. Its condition held when it was looked at before the body: now somebody else was first.
pub fn raced(error: ClientError) -> S3Error {
    match error {
        ClientError::Cas(CasError::PreconditionFailed) => s3(ClientError::Cas(CasError::Conflict)),
        error => s3(error),
    }
}

/// An answer of another kind than the question: a fault of the cluster, not of the client.
pub fn mismatched(query: &Query) -> S3Error {
    tracing::error!(?query, "the catalogue answered another question");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "The catalogue gave a wrong answer.")
        .into()
}
