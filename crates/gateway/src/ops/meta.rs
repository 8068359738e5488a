//! What a client says about an object: taken from the request's headers, given back with the object.

use crate::limits::{STORED_HEADERS_MAX, USER_METADATA_MAX};
use crate::refusal::Refusal;
use cobalt_rpc::proto::record::ObjectMeta;
use http::{HeaderMap, HeaderName, header};
use s3s::dto;

fn header(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let text = headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    text.filter(|text| !text.is_empty())
}

/// From the request's headers and the user metadata as s3s decoded it.
///
/// # Errors
/// 400 when it is too large.
pub fn from_request(headers: &HeaderMap, user: Option<dto::Metadata>) -> Result<ObjectMeta, Refusal> {
    let mut user: Vec<(String, String)> = user.unwrap_or_default().into_iter().collect();
    user.sort();
    // aws-chunked is about how the body travels, not about the object.
    let encoding = headers.get_all(header::CONTENT_ENCODING).iter();
    let encoding = encoding
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect::<Vec<_>>()
        .join(",");
    let parts = encoding
        .split(',')
        .map(str::trim)
        .filter(|p| !p.is_empty() && !p.eq_ignore_ascii_case("aws-chunked"));
    let encoding = parts.collect::<Vec<_>>().join(",");
    let meta = ObjectMeta {
        content_type: header(headers, header::CONTENT_TYPE),
        content_encoding: Some(encoding).filter(|text| !text.is_empty()),
        content_language: header(headers, header::CONTENT_LANGUAGE),
        content_disposition: header(headers, header::CONTENT_DISPOSITION),
        cache_control: header(headers, header::CACHE_CONTROL),
        expires: header(headers, header::EXPIRES),
        user,
    };
    let user: usize = meta.user.iter().map(|(name, value)| name.len() + value.len()).sum();
    let standard = [
        &meta.content_type,
        &meta.content_encoding,
        &meta.content_language,
        &meta.content_disposition,
        &meta.cache_control,
        &meta.expires,
    ];
    let standard: usize = standard.into_iter().flatten().map(String::len).sum();
    if user > USER_METADATA_MAX || standard > STORED_HEADERS_MAX {
        let message = "Your metadata headers exceed the maximum allowed metadata size.";
        return Err(Refusal::bad("MetadataTooLarge", message));
    }
    Ok(meta)
}

/// The `Expires` header as s3s sends it.
pub fn expires(meta: &ObjectMeta) -> Option<dto::Timestamp> {
    dto::Timestamp::parse(dto::TimestampFormat::HttpDate, meta.expires.as_deref()?).ok()
}

/// User metadata for an answer.
pub fn user(meta: &ObjectMeta) -> Option<dto::Metadata> {
    (!meta.user.is_empty()).then(|| meta.user.iter().cloned().collect())
}
