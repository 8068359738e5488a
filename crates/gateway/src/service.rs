//! One request: judged, served, answered, and its body's rest dealt with.

use crate::body::{Pace, Slot, SlotBody};
use crate::guard::{self, Admitted, Rules};
use crate::keys::{Auth, Keys};
use crate::ops::{Body, Ops};
use crate::refusal::Refusal;
use crate::reply::{Reply, empty, full};
use crate::storage::Storage;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::host::{S3Host, VirtualHost};
use s3s::service::{S3Service, S3ServiceBuilder};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Serves requests.
pub(crate) struct Service {
    s3: S3Service,
    rules: Rules,
    allow_plaintext: bool,
    ids: AtomicU64,
    /// KiB of XML that may still be read.
    documents: Semaphore,
}

/// Virtual hosts of one domain; any other host is path style.
struct Host(String);

impl S3Host for Host {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> s3s::S3Result<VirtualHost<'a>> {
        let plain = VirtualHost::new(host);
        Ok(match guard::bucket_in_host(&self.0, host) {
            Some(bucket) => plain.with_bucket(bucket.to_ascii_lowercase()),
            None => plain,
        })
    }
}

impl Service {
    pub(crate) fn new<S: Storage>(
        ops: Ops<S>,
        keys: Arc<Keys<S>>,
        rules: Rules,
        allow_plaintext: bool,
        seed: u64,
    ) -> Service {
        let mut config = S3Config::default();
        config.xml_max_body_size = rules.limits.xml_bytes;
        config.post_object_max_file_size = 0;
        config.form_max_field_size = 0;
        config.form_max_fields_size = 0;
        config.form_max_parts = 0;
        let mut builder = S3ServiceBuilder::new(ops);
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        builder.set_auth(Auth(keys));
        if let Some(domain) = &rules.domain {
            builder.set_host(Host(domain.clone()));
        }
        let documents = Semaphore::new(rules.limits.xml_total_bytes >> 10);
        Service { s3: builder.build(), rules, allow_plaintext, ids: AtomicU64::new(seed), documents }
    }

    /// Answers a request of a client at `peer`.
    pub(crate) async fn call(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Reply> {
        let id = self.request_id();
        let (parts, body) = request.into_parts();
        let method = parts.method.clone();
        let waits = parts
            .headers
            .get(header::EXPECT)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let size = body.size_hint();
        // There is no body to say "continue" to, and botocore takes the status of an answer that came without it for that of the
        // connection's next one: that connection ends here.
        let unasked = waits && size.exact() == Some(0);
        let slot = Slot::new(body);
        let served = match self.admit(&parts, peer) {
            Ok(admitted) => self.serve(parts, admitted, &slot, size).await,
            Err(refusal) => Err(refusal),
        };
        let mut response = match served {
            Ok(response) => identify(response, &method, &id),
            Err(refusal) => {
                tracing::info!(%method, request = %id, status = refusal.status.as_u16(), code = refusal.code, "refused");
                refusal.reply(&method, &id)
            }
        };
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert("x-amz-request-id", value);
        }
        response.headers_mut().insert(header::SERVER, HeaderValue::from_static("Cobalt"));
        if !self.settle(&slot, waits).await || unasked {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn request_id(&self) -> String {
        // A multiplication by an odd number visits every value once: ids differ, and do not tell how many there were.
        let count = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("{:016X}", count.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn admit(&self, parts: &Parts, peer: IpAddr) -> Result<Admitted, Refusal> {
        if !self.allow_plaintext && !peer.to_canonical().is_loopback() {
            return Err(Refusal::forbidden(
                "AccessDenied",
                "Plain HTTP is for loopback only here (allow_plaintext).",
            ));
        }
        guard::admit(&self.rules, parts)
    }

    async fn serve(
        &self,
        parts: Parts,
        admitted: Admitted,
        slot: &Slot,
        size: hyper::body::SizeHint,
    ) -> Result<Response<s3s::Body>, Refusal> {
        let mut _held = None;
        let mut request = Request::from_parts(parts, s3s::Body::empty());
        match admitted {
            Admitted::Upload(upload) => {
                request.extensions_mut().insert(Body { slot: slot.clone(), upload });
            }
            Admitted::Document(_) if slot.finished().await => {}
            Admitted::Document(declared) => {
                let limits = &self.rules.limits;
                _held = Some(self.document(&size).await?);
                let body = SlotBody::new(slot, declared, limits.xml_bytes, size, Pace::new(limits));
                *request.body_mut() = s3s::Body::http_body_unsync(body);
            }
        }
        let answer = self.s3.call(request).await;
        if let Some(refusal) = slot.refusal().await {
            return Err(refusal);
        }
        answer.map_err(|error| {
            tracing::error!(?error, "a request could not be answered");
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                "The answer could not be written.",
            )
        })
    }

    /// Room for a document of that size, in turn.
    async fn document(&self, size: &hyper::body::SizeHint) -> Result<SemaphorePermit<'_>, Refusal> {
        let limits = &self.rules.limits;
        let bytes =
            size.upper().map_or(limits.xml_bytes, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let bytes = bytes.min(limits.xml_bytes).min(limits.xml_total_bytes);
        let room = self.documents.acquire_many(u32::try_from(bytes >> 10).unwrap_or(u32::MAX));
        match tokio::time::timeout(limits.stall_time, room).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(crate::error::refusal(&cobalt_client::ClientError::Busy)),
        }
    }

    /// Deals with what nobody read of a body. True when the connection can go on.
    async fn settle(&self, slot: &Slot, waits: bool) -> bool {
        if slot.finished().await {
            return true;
        }
        // The client was not told to go on: it sends nothing, and a read would tell it to.
        if waits && !slot.touched() {
            return false;
        }
        let limits = &self.rules.limits;
        slot.drain(limits.drain_bytes, limits.drain_time).await
    }
}

/// The message of an error that s3s leaves without one: clients show people nothing else.
fn message(error: &str) -> String {
    let code =
        error.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map_or("", |c| c.0);
    let text = match code {
        "SignatureDoesNotMatch" => {
            "The signature is not that of this request under the key's secret: check the secret key, and what changes requests on their way."
        }
        "InvalidBucketName" => {
            "The bucket's name is not valid: use 3 to 63 lower-case letters, digits, dots and hyphens."
        }
        "KeyTooLongError" => "The key is longer than 1,024 bytes.",
        "NotImplemented" => "This part of S3 is not there yet.",
        "MethodNotAllowed" => "This method is not allowed here.",
        "MalformedXML" => "The XML of the request is not well-formed, or not what this operation takes.",
        _ => return String::new(),
    };
    format!("<Message>{text}</Message>")
}

/// s3s's answer with the request's id in its error, and no body where HTTP has none.
fn identify(response: Response<s3s::Body>, method: &Method, id: &str) -> Response<Reply> {
    let (mut parts, body) = response.into_parts();
    let bare = method == Method::HEAD || parts.status == StatusCode::NOT_MODIFIED;
    if bare {
        if parts.status.is_client_error()
            || parts.status.is_server_error()
            || parts.status == StatusCode::NOT_MODIFIED
        {
            parts.headers.remove(header::CONTENT_LENGTH);
            parts.headers.remove(header::CONTENT_TYPE);
        }
        return Response::from_parts(parts, empty());
    }
    let error = parts.status.is_client_error() || parts.status.is_server_error();
    if error && let Some(bytes) = body.bytes() {
        let text = String::from_utf8_lossy(&bytes);
        tracing::info!(%method, request = %id, status = parts.status.as_u16(), "refused");
        if let Some(text) = text.strip_suffix("</Error>").filter(|text| !text.contains("<RequestId>")) {
            parts.headers.remove(header::CONTENT_LENGTH);
            let message = if text.contains("<Message>") { String::new() } else { message(text) };
            let text = format!("{text}{message}<RequestId>{id}</RequestId></Error>");
            return Response::from_parts(parts, full(text.into()));
        }
    }
    Response::from_parts(parts, body.boxed_unsync())
}
