//! An answer that is no success, before s3s knows the request: status, S3 code, message, and what else the XML says.

use crate::reply::{Reply, empty, full};
use http::{HeaderValue, Method, Response, StatusCode, header};
use std::borrow::Cow;

/// Why a request goes no further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// S3's code.
    pub code: &'static str,
    /// For people.
    pub message: Cow<'static, str>,
    /// The region that the request should have named.
    pub region: Option<String>,
}

impl Refusal {
    /// A refusal with a message.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { status, code, message: message.into(), region: None }
    }
    /// 400 with the code given.
    pub fn bad(code: &'static str, message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, code, message)
    }
    /// 403 with the code given.
    pub fn forbidden(code: &'static str, message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal::new(StatusCode::FORBIDDEN, code, message)
    }
    /// 501, naming what is not there.
    pub fn lacking(what: &str) -> Refusal {
        Refusal::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", format!("{what} is not implemented."))
    }

    /// The answer as S3 gives it.
    pub fn reply(&self, method: &Method, request: &str) -> Response<Reply> {
        let region =
            self.region.as_ref().map_or(String::new(), |name| format!("<Region>{}</Region>", escape(name)));
        let xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{}</Code><Message>{}</Message>{region}\
             <RequestId>{}</RequestId></Error>",
            self.code,
            escape(&self.message),
            escape(request)
        );
        let body = if method == Method::HEAD { empty() } else { full(xml.into()) };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        if let Some(region) = self.region.as_deref().and_then(|name| HeaderValue::from_str(name).ok()) {
            response.headers_mut().insert("x-amz-bucket-region", region);
        }
        response
    }
}

impl From<Refusal> for s3s::S3Error {
    fn from(refusal: Refusal) -> s3s::S3Error {
        let code =
            s3s::S3ErrorCode::from_bytes(refusal.code.as_bytes()).unwrap_or(s3s::S3ErrorCode::InternalError);
        let mut error = s3s::S3Error::with_message(code, refusal.message);
        error.set_status_code(refusal.status);
        error
    }
}

/// Text as XML content; what XML cannot say becomes a question mark.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(c),
            c if (c as u32) < 0x20 || c == '\u{fffe}' || c == '\u{ffff}' => out.push('?'),
            c => out.push(c),
        }
    }
    out
}
