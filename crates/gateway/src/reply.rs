//! The body of an answer: what s3s made, or a few bytes of our own.

use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Bytes;

/// What hyper sends.
pub type Reply = UnsyncBoxBody<Bytes, s3s::StdError>;

/// No body.
pub fn empty() -> Reply {
    full(Bytes::new())
}

/// A body that is there already.
pub fn full(bytes: Bytes) -> Reply {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
