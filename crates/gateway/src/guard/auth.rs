//! The shape of a signature: exactly one SigV4, over every `x-amz-*` header and the host, in our region's scope.
//! Whether it is right is s3s's business; nothing here sees a secret, and no signature is ever shown.

use super::{Query, Rules};
use crate::limits::PRESIGNED_EXPIRY_MAX;
use crate::refusal::Refusal;
use http::{HeaderMap, header, request::Parts};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// The names of a presigned URL, each of which comes once.
const PRESIGNED: [&str; 6] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
];

/// Checks the shape, and says whether the request is presigned. `location`: GetBucketLocation, which clients send to learn the region, may
/// be scoped to us-east-1.
pub fn check(rules: &Rules, parts: &Parts, query: &Query, location: bool) -> Result<bool, Refusal> {
    let authorization =
        parts.headers.get(header::AUTHORIZATION).map(|v| String::from_utf8_lossy(v.as_bytes()));
    let v2 = ["Signature", "AWSAccessKeyId"].iter().any(|name| query.count_ignoring_case(name) > 0);
    if v2 || authorization.as_deref().is_some_and(|value| value.trim_start().starts_with("AWS ")) {
        return Err(Refusal::bad(
            "InvalidRequest",
            format!("Signature version 2 is not supported. Use {ALGORITHM}."),
        ));
    }
    let in_query = PRESIGNED.iter().any(|name| query.count_ignoring_case(name) > 0);
    match (authorization, in_query) {
        (None, false) => {
            Err(Refusal::forbidden("AccessDenied", "Anonymous requests are refused: sign the request."))
        }
        (Some(_), true) => Err(Refusal::bad(
            "InvalidArgument",
            "Only one way of authentication is allowed: the Authorization header or the query.",
        )),
        (Some(value), false) => {
            in_header(rules, &parts.headers, &value, location)?;
            Ok(false)
        }
        (None, true) => {
            presigned(rules, &parts.headers, query, location)?;
            Ok(true)
        }
    }
}

fn in_header(rules: &Rules, headers: &HeaderMap, value: &str, location: bool) -> Result<(), Refusal> {
    let malformed = |what: &str| {
        Refusal::bad(
            "AuthorizationHeaderMalformed",
            format!("The Authorization header is malformed: {what}."),
        )
    };
    let fields = value.strip_prefix(ALGORITHM).filter(|rest| rest.starts_with(' '));
    let fields = fields.ok_or_else(|| malformed("it does not begin with AWS4-HMAC-SHA256"))?;
    let (mut credential, mut signed, mut signature) = (None, None, None);
    for field in fields.split(',') {
        let (name, value) = field.trim().split_once('=').ok_or_else(|| malformed("a field has no value"))?;
        let place = match name {
            "Credential" => &mut credential,
            "SignedHeaders" => &mut signed,
            "Signature" => &mut signature,
            _ => return Err(malformed("it has an unknown field")),
        };
        if place.replace(value.trim()).is_some() {
            return Err(malformed("a field is there twice"));
        }
    }
    let (Some(credential), Some(signed), Some(signature)) = (credential, signed, signature) else {
        return Err(malformed("Credential, SignedHeaders or Signature is missing"));
    };
    if !is_hex64(signature) {
        return Err(malformed("the signature is not 64 hexadecimal digits"));
    }
    scope(rules, credential, location, "AuthorizationHeaderMalformed")?;
    signed_headers(headers, signed)
}

fn presigned(rules: &Rules, headers: &HeaderMap, query: &Query, location: bool) -> Result<(), Refusal> {
    const CODE: &str = "AuthorizationQueryParametersError";
    for name in PRESIGNED {
        if query.get(name).is_none() || query.count_ignoring_case(name) != 1 {
            return Err(Refusal::bad(CODE, format!("A presigned URL has {name} exactly once.")));
        }
    }
    let value = |name| query.get(name).unwrap_or_default();
    if value("X-Amz-Algorithm") != ALGORITHM {
        return Err(Refusal::bad(CODE, format!("X-Amz-Algorithm must be {ALGORITHM}.")));
    }
    let digits = value("X-Amz-Expires");
    let expires = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
    if !expires.is_some_and(|seconds| (1..=PRESIGNED_EXPIRY_MAX).contains(&seconds)) {
        return Err(Refusal::bad(
            CODE,
            format!("X-Amz-Expires must be 1 to {PRESIGNED_EXPIRY_MAX} seconds."),
        ));
    }
    if !is_hex64(value("X-Amz-Signature")) {
        return Err(Refusal::bad(CODE, "X-Amz-Signature is not 64 hexadecimal digits."));
    }
    scope(rules, value("X-Amz-Credential"), location, CODE)?;
    signed_headers(headers, value("X-Amz-SignedHeaders"))
}

fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn scope(rules: &Rules, credential: &str, location: bool, code: &'static str) -> Result<(), Refusal> {
    let mut fields = credential.rsplitn(5, '/');
    let (Some(end), Some(service), Some(region), Some(_date), Some(_key)) =
        (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(Refusal::bad(code, "The credential is not KEY/DATE/REGION/SERVICE/aws4_request."));
    };
    if end != "aws4_request" {
        return Err(Refusal::bad(code, "The credential does not end in aws4_request."));
    }
    if service != "s3" {
        return Err(Refusal::bad(code, format!("The service '{service}' is wrong; expecting 's3'.")));
    }
    if region != rules.region && !(location && region == "us-east-1") {
        let message = format!("The region '{region}' is wrong; expecting '{}'.", rules.region);
        return Err(Refusal { region: Some(rules.region.clone()), ..Refusal::bad(code, message) });
    }
    Ok(())
}

fn signed_headers(headers: &HeaderMap, list: &str) -> Result<(), Refusal> {
    let signed: Vec<&str> = list.split(';').collect();
    if !signed.contains(&"host") {
        return Err(Refusal::forbidden("AccessDenied", "The host header is not signed."));
    }
    let unsigned = headers
        .keys()
        .map(http::HeaderName::as_str)
        .find(|name| name.starts_with("x-amz-") && *name != "x-amz-content-sha256" && !signed.contains(name));
    if let Some(name) = unsigned {
        let message = format!("There were headers present in the request which were not signed: {name}");
        return Err(Refusal::forbidden("AccessDenied", message));
    }
    // s3s leaves out what is signed and absent: the signature of a request without it would pass.
    if let Some(name) = signed.iter().find(|name| !headers.contains_key(**name)) {
        let message = format!("The signed header {} is not in the request.", name.escape_default());
        return Err(Refusal::forbidden("SignatureDoesNotMatch", message));
    }
    Ok(())
}
