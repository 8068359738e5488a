//! Headers: how large they may be, which may not come twice, and which ask for what is not there.

use crate::refusal::Refusal;
use http::{HeaderMap, HeaderName, StatusCode, header, request::Parts};

/// Size, doubles, encodings, and form posts.
pub fn check(parts: &Parts, bytes_max: usize) -> Result<(), Refusal> {
    let line = parts.method.as_str().len() + parts.uri.to_string().len();
    let fields: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if line + fields > bytes_max {
        return Err(Refusal::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "RequestHeaderSectionTooLarge",
            format!("The request line and headers have {} bytes; {bytes_max} are allowed.", line + fields),
        ));
    }
    for name in parts.headers.keys().filter(|name| single(name)) {
        let mut values = parts.headers.get_all(name).iter();
        let utf8 = values.next().is_some_and(|value| std::str::from_utf8(value.as_bytes()).is_ok());
        if values.next().is_some() {
            return Err(Refusal::bad("InvalidArgument", format!("The header {name} is there twice.")));
        }
        if !utf8 {
            return Err(Refusal::bad("InvalidArgument", format!("The header {name} is not UTF-8.")));
        }
    }
    let form = parts.headers.get_all(header::CONTENT_TYPE).iter().any(|value| {
        let text = String::from_utf8_lossy(value.as_bytes()).trim_start().to_ascii_lowercase();
        text.starts_with("multipart/form-data")
    });
    if form { Err(Refusal::lacking("A POST form (multipart/form-data)")) } else { Ok(()) }
}

fn single(name: &HeaderName) -> bool {
    name == header::AUTHORIZATION || name == header::HOST || name.as_str().starts_with("x-amz-")
}

/// Refuses by name what would change the meaning of the request and is not there: nothing of it is ignored.
pub fn lacking(parts: &Parts) -> Result<(), Refusal> {
    for name in parts.headers.keys() {
        let name = name.as_str();
        let Some(rest) = name.strip_prefix("x-amz-") else { continue };
        let refused =
            REFUSED.iter().any(|start| rest.starts_with(start)) && !harmless(&parts.headers, name, rest);
        let other_value = PLAIN.iter().any(|(header, plain)| {
            *header == rest && !value(&parts.headers, name).eq_ignore_ascii_case(plain)
        });
        if refused || other_value {
            return Err(Refusal::lacking(&format!("The header {name} (with this value)")));
        }
    }
    Ok(())
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim()
}

fn harmless(headers: &HeaderMap, name: &str, rest: &str) -> bool {
    rest == "bucket-object-lock-enabled" && value(headers, name).eq_ignore_ascii_case("false")
}

/// Beginnings of headers, after `x-amz-`, that are refused whatever they say.
const REFUSED: [&str; 17] = [
    "bucket-object-lock-",
    "bypass-governance-retention",
    "copy-source-server-side-encryption-",
    "copy-source-version-id",
    "grant-",
    "if-match-last-modified-time",
    "if-match-size",
    "if-match-initiated-time",
    "mfa",
    "object-lock-",
    "optional-object-attributes",
    "rename-source",
    "replication-",
    "security-token",
    "server-side-encryption",
    "tagging",
    "website-redirect-location",
];

/// Headers, after `x-amz-`, with the one value that says what happens anyway.
const PLAIN: [(&str, &str); 6] = [
    ("acl", "private"),
    ("storage-class", "STANDARD"),
    ("object-ownership", "BucketOwnerEnforced"),
    ("tagging-directive", "COPY"),
    ("write-offset-bytes", ""),
    ("create-session-mode", ""),
];
