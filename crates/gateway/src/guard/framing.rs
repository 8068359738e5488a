//! What a request says about its body: how it is framed, how long it is, which checksums it must have.

use super::Rules;
use crate::body::{Algorithm, Expected, from_suffix};
use crate::limits::UPLOAD_MAX;
use crate::refusal::Refusal;
use base64::{Engine, engine::general_purpose::STANDARD};
use cobalt_rpc::proto::record::ChecksumAlgorithm;
use http::{HeaderMap, StatusCode, header, request::Parts};

/// How the bytes of an object arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// As they are.
    Plain,
    /// In chunks, each signed or not, with trailers or not.
    Chunked { signed: bool, trailer: Option<Algorithm> },
}

/// Digests that the head of a request declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// `Content-MD5`.
    pub md5: Option<[u8; 16]>,
    /// `x-amz-content-sha256`, where it is a digest.
    pub sha256: Option<[u8; 32]>,
    /// `x-amz-checksum-*`.
    pub checksum: Option<Expected>,
}

/// A body that becomes an object or a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Bytes of the object.
    pub length: u64,
    pub framing: Framing,
    pub declared: Declared,
    /// The algorithm that the client names without giving a value in the head.
    pub named: Option<Algorithm>,
    /// Largest chunk.
    pub chunk_max: u64,
}

impl Upload {
    /// Whether a checksum comes behind the body.
    pub fn trailed(&self) -> bool {
        matches!(self.framing, Framing::Chunked { trailer: Some(_), .. })
    }

    /// What is computed: what the client names, else CRC64NVME.
    pub fn algorithm(&self) -> Algorithm {
        let trailer = match self.framing {
            Framing::Chunked { trailer, .. } => trailer,
            Framing::Plain => None,
        };
        let given = self.declared.checksum.as_ref().map(|expected| expected.algorithm);
        given.or(trailer).or(self.named).unwrap_or(ChecksumAlgorithm::Crc64Nvme)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("\u{fffd}").trim())
}

/// The body of a PUT of an object or part.
pub fn upload(rules: &Rules, parts: &Parts, presigned: bool) -> Result<Upload, Refusal> {
    let headers = &parts.headers;
    let payload = text(headers, "x-amz-content-sha256");
    let chunked = |signed, trailer| chunked(headers, signed, trailer);
    let (framing, sha256) = match payload {
        None if presigned => (Framing::Plain, None),
        None => return Err(Refusal::bad("InvalidRequest", "The header x-amz-content-sha256 is missing.")),
        Some("UNSIGNED-PAYLOAD") => (Framing::Plain, None),
        Some("STREAMING-UNSIGNED-PAYLOAD-TRAILER") => (chunked(false, true)?, None),
        Some("STREAMING-AWS4-HMAC-SHA256-PAYLOAD") => (chunked(true, false)?, None),
        Some("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER") => (chunked(true, true)?, None),
        Some(other) => (Framing::Plain, Some(payload_digest(other)?)),
    };
    if presigned && framing != Framing::Plain {
        return Err(Refusal::lacking("A chunked body under a presigned URL"));
    }
    let encoded = headers.get_all(header::CONTENT_ENCODING).iter().any(|value| {
        String::from_utf8_lossy(value.as_bytes())
            .split(',')
            .any(|part| part.trim().eq_ignore_ascii_case("aws-chunked"))
    });
    let decoded = text(headers, "x-amz-decoded-content-length");
    let length = if framing == Framing::Plain {
        if encoded || decoded.is_some() || headers.contains_key("x-amz-trailer") {
            return Err(Refusal::bad(
                "InvalidRequest",
                "aws-chunked, x-amz-decoded-content-length and x-amz-trailer need a STREAMING x-amz-content-sha256.",
            ));
        }
        text(headers, "content-length")
    } else {
        decoded
    };
    let missing = || {
        let message =
            "The length of the body is missing: Content-Length, or x-amz-decoded-content-length for chunks.";
        Refusal::new(StatusCode::LENGTH_REQUIRED, "MissingContentLength", message)
    };
    let length = number(length.ok_or_else(missing)?)?;
    if length > UPLOAD_MAX {
        let message = format!("{length} bytes are too many for one request; {UPLOAD_MAX} are allowed.");
        return Err(Refusal::bad("EntityTooLarge", message));
    }
    let declared = Declared { sha256, ..digests(headers)? };
    let trailed = matches!(framing, Framing::Chunked { trailer: Some(_), .. });
    if trailed && declared.checksum.is_some() {
        return Err(Refusal::bad(
            "InvalidRequest",
            "A checksum comes as a header or as a trailer, not both.",
        ));
    }
    let named = match text(headers, "x-amz-sdk-checksum-algorithm") {
        None => None,
        Some(name) => Some(named(name)?),
    };
    Ok(Upload { length, framing, declared, named, chunk_max: rules.limits.chunk_bytes })
}

/// The body of any other request. Chunks are for objects only.
pub fn document(rules: &Rules, parts: &Parts) -> Result<Declared, Refusal> {
    let headers = &parts.headers;
    if text(headers, "x-amz-content-sha256").is_some_and(|value| value.starts_with("STREAMING-")) {
        return Err(Refusal::lacking("A chunked body of a request that is no upload"));
    }
    let length = text(headers, "content-length").map(number).transpose()?.unwrap_or(0);
    if length > rules.limits.xml_bytes as u64 {
        let message =
            format!("The request's body has {length} bytes; {} are allowed.", rules.limits.xml_bytes);
        return Err(Refusal::bad("MaxMessageLengthExceeded", message));
    }
    // Copy and Complete name the checksum that the object is to have; it is not one of the body.
    let of_body = parts.uri.query().is_some_and(|query| super::Query::parse(query).has("delete"));
    let declared = digests(headers)?;
    Ok(Declared { checksum: declared.checksum.filter(|_| of_body), ..declared })
}

fn number(text: &str) -> Result<u64, Refusal> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = text.parse::<u64>().ok().filter(|_| digits);
    value.ok_or_else(|| Refusal::bad("InvalidArgument", "A length in the headers is no number."))
}

fn payload_digest(text: &str) -> Result<[u8; 32], Refusal> {
    if text.starts_with("STREAMING-AWS4-ECDSA") {
        return Err(Refusal::lacking("Signature version 4A"));
    }
    let mut digest = [0; 32];
    match hex::decode_to_slice(text, &mut digest) {
        Ok(()) => Ok(digest),
        Err(_) => {
            Err(Refusal::bad("InvalidArgument", "x-amz-content-sha256 is neither a digest nor a known word."))
        }
    }
}

fn chunked(headers: &HeaderMap, signed: bool, trailer: bool) -> Result<Framing, Refusal> {
    let names = text(headers, "x-amz-trailer");
    let Some(names) = names else {
        let message = "The header x-amz-trailer is missing.";
        // AWS SDKs send the trailer form without a trailer when told to compute no checksum: s3s refuses it too.
        return if trailer {
            Err(Refusal::bad("InvalidRequest", message))
        } else {
            Ok(Framing::Chunked { signed, trailer: None })
        };
    };
    if !trailer {
        return Err(Refusal::bad("InvalidRequest", "x-amz-trailer needs a payload form with trailers."));
    }
    let name = names.to_ascii_lowercase();
    let algorithm = name.strip_prefix("x-amz-checksum-").and_then(from_suffix);
    let algorithm = algorithm.ok_or_else(|| {
        Refusal::bad("InvalidRequest", "x-amz-trailer names something other than one known checksum.")
    })?;
    Ok(Framing::Chunked { signed, trailer: Some(algorithm) })
}

fn named(name: &str) -> Result<Algorithm, Refusal> {
    from_suffix(&name.to_ascii_lowercase())
        .ok_or_else(|| Refusal::lacking("The checksum algorithm that is named"))
}

fn digests(headers: &HeaderMap) -> Result<Declared, Refusal> {
    let md5 = match text(headers, "content-md5") {
        None => None,
        Some(value) => {
            let bytes = STANDARD.decode(value).ok().and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
            Some(bytes.ok_or_else(|| {
                Refusal::bad("InvalidDigest", "The Content-MD5 you specified is not valid.")
            })?)
        }
    };
    let mut checksum = None;
    for name in headers.keys() {
        let Some(suffix) = name.as_str().strip_prefix("x-amz-checksum-") else { continue };
        if matches!(suffix, "mode" | "algorithm" | "type") {
            continue;
        }
        let algorithm = from_suffix(suffix)
            .ok_or_else(|| Refusal::lacking(&format!("The checksum of the header {name}")))?;
        let value = text(headers, name.as_str()).unwrap_or_default();
        let expected = Expected::parse(algorithm, value)
            .ok_or_else(|| Refusal::bad("InvalidRequest", format!("Value for {name} header is invalid.")))?;
        if checksum.replace(expected).is_some() {
            return Err(Refusal::bad(
                "InvalidRequest",
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
            ));
        }
    }
    Ok(Declared { md5, sha256: None, checksum })
}
