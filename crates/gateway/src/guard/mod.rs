//! What is checked of a request before s3s sees it. s3s decides whether a signature is right; the guard decides
//! which requests have a shape that may be signed at all, and what of S3 is refused because it is not there.
//! Nothing here reads a byte of the body.

mod auth;
mod framing;
mod header;
mod query;
mod resource;

pub use framing::{Declared, Framing, Upload};
pub use query::Query;

use crate::limits::Limits;
use crate::refusal::Refusal;
use http::{Method, request::Parts};

/// What the guard judges by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The region that credentials are scoped to.
    pub region: String,
    /// Domain of virtual-host style requests, without a port.
    pub domain: Option<String>,
    /// Bounds.
    pub limits: Limits,
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Root,
    Bucket,
    Object,
}

/// A request that may go on, and what its body is.
#[derive(Clone, Debug)]
pub enum Admitted {
    /// Bytes of an object or part: the operation itself reads them, after authentication and arena credit.
    Upload(Upload),
    /// XML, or nothing: s3s reads it, after authentication; checksums are verified as it passes.
    Document(Declared),
}

/// Judges a request by its head.
///
/// # Errors
/// The answer that it gets instead.
pub fn admit(rules: &Rules, parts: &Parts) -> Result<Admitted, Refusal> {
    header::check(parts, rules.limits.header_bytes)?;
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let level = level(rules, parts);
    let location = parts.method == Method::GET && level == Level::Bucket && query.has("location");
    let presigned = auth::check(rules, parts, &query, location)?;
    header::lacking(parts)?;
    resource::check(&parts.method, level, &query)?;
    if parts.method == Method::PUT
        && level == Level::Object
        && !parts.headers.contains_key("x-amz-copy-source")
    {
        return framing::upload(rules, parts, presigned).map(Admitted::Upload);
    }
    framing::document(rules, parts).map(Admitted::Document)
}

/// Whether a path names a bucket or an object, as s3s will see it.
fn level(rules: &Rules, parts: &Parts) -> Level {
    let path = parts.uri.path().trim_start_matches('/');
    let raw = parts.uri.path();
    let virtual_host = bucket_of_host(rules.domain.as_deref(), parts).is_some();
    if virtual_host {
        return if raw.len() <= 1 { Level::Bucket } else { Level::Object };
    }
    // As in s3s, the path is cut after it is decoded: %2F ends a bucket's name too.
    let decoded = percent_encoding::percent_decode_str(raw).decode_utf8_lossy();
    let decoded = decoded.strip_prefix('/').unwrap_or(path);
    match decoded.split_once('/') {
        None if decoded.is_empty() => Level::Root,
        None | Some((_, "")) => Level::Bucket,
        Some(_) => Level::Object,
    }
}

fn bucket_of_host<'a>(domain: Option<&str>, parts: &'a Parts) -> Option<&'a str> {
    let host = parts.headers.get(http::header::HOST)?.to_str().ok()?;
    bucket_in_host(domain?, host)
}

/// The bucket that a host names under the domain.
pub fn bucket_in_host<'a>(domain: &str, host: &'a str) -> Option<&'a str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let cut = name.len().checked_sub(domain.len())?;
    let (bucket, rest) = (name.get(..cut)?, name.get(cut..)?);
    rest.eq_ignore_ascii_case(domain).then(|| bucket.strip_suffix('.')).flatten().filter(|b| !b.is_empty())
}
