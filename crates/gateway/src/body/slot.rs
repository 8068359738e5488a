//! Where hyper's body stream is kept while s3s judges the head: s3s gets a view that it may read or not, the operation reads
//! through another, and when a request is refused what is left can still be drained.

use super::{BodyError, Digests, Pace};
use crate::guard::Declared;
use crate::refusal::Refusal;
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, Sleep};

/// The body of one request. Polling it is what makes hyper send 100-continue, so nobody polls before the request may go on.
#[derive(Clone)]
pub struct Slot(Arc<Inner>);

struct Inner {
    body: Mutex<Option<Incoming>>,
    touched: AtomicBool,
    refusal: Mutex<Option<Refusal>>,
}

impl Slot {
    /// Keeps a body.
    pub fn new(body: Incoming) -> Slot {
        let body = Mutex::new(Some(body));
        Slot(Arc::new(Inner { body, touched: AtomicBool::new(false), refusal: Mutex::new(None) }))
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// The client went away, or sent nothing for `stall`.
    pub async fn next(&self, stall: Duration) -> Result<Option<Bytes>, BodyError> {
        self.0.touched.store(true, Ordering::Relaxed);
        let mut body = self.0.body.lock().await;
        loop {
            let Some(stream) = body.as_mut() else { return Ok(None) };
            match tokio::time::timeout(stall, stream.frame()).await {
                Err(_) => return Err(BodyError::Stalled),
                Ok(None) => {
                    *body = None;
                    return Ok(None);
                }
                Ok(Some(Err(_))) => {
                    *body = None;
                    return Err(BodyError::Gone);
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// Reads on to the end of a refused body, up to a bound. True when the connection can serve another request.
    pub async fn drain(&self, bytes_max: usize, time: Duration) -> bool {
        let mut left = bytes_max;
        let reading = async {
            loop {
                match self.next(time).await {
                    Ok(Some(bytes)) if bytes.len() <= left => left -= bytes.len(),
                    Ok(None) => return true,
                    _ => return false,
                }
            }
        };
        tokio::time::timeout(time, reading).await.unwrap_or(false)
    }

    /// Whether all has been read, or nothing was there.
    pub async fn finished(&self) -> bool {
        self.0.body.lock().await.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Whether anybody asked for a byte.
    pub fn touched(&self) -> bool {
        self.0.touched.load(Ordering::Relaxed)
    }

    /// Why the body was refused while s3s read it: s3s would call it an internal error.
    pub async fn refusal(&self) -> Option<Refusal> {
        self.0.refusal.lock().await.take()
    }
}

/// A document's body as s3s reads it: bounded, digested as it passes, refused at its end when a digest differs.
pub struct SlotBody {
    slot: Slot,
    digests: Option<Digests>,
    declared: Declared,
    left: usize,
    size: SizeHint,
    pace: Pace,
    /// The wait for the next bytes: since when, and until when.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl SlotBody {
    /// A view of the slot's body with at most `bytes_max` bytes.
    pub fn new(slot: &Slot, declared: Declared, bytes_max: usize, size: SizeHint, pace: Pace) -> SlotBody {
        let algorithm = declared.checksum.as_ref().map(|expected| expected.algorithm);
        let wanted = algorithm.is_some() || declared.md5.is_some();
        let digests = wanted.then(|| Digests::new(algorithm.unwrap_or(super::Algorithm::Crc32), false));
        SlotBody { slot: slot.clone(), digests, declared, left: bytes_max, size, pace, wait: None }
    }

    fn refuse(&self, refusal: Refusal) -> Poll<Option<Result<Frame<Bytes>, s3s::StdError>>> {
        if let Ok(mut place) = self.slot.0.refusal.try_lock() {
            *place = Some(refusal.clone());
        }
        Poll::Ready(Some(Err(Box::new(refusal))))
    }
}

impl Body for SlotBody {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, s3s::StdError>>> {
        let this = &mut *self;
        this.slot.0.touched.store(true, Ordering::Relaxed);
        let inner = this.slot.0.clone();
        // Nobody else looks at the slot until s3s is done with the request.
        let Ok(mut body) = inner.body.try_lock() else { return Poll::Ready(None) };
        let Some(stream) = body.as_mut() else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(stream).poll_frame(cx) else {
            let left = this.pace.left();
            let (_, patience) =
                this.wait.get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
            return match patience.as_mut().poll(cx) {
                Poll::Ready(()) => this.refuse(BodyError::Stalled.into()),
                Poll::Pending => Poll::Pending,
            };
        };
        let waited = this.wait.take().map(|(since, _)| since.elapsed()).unwrap_or_default();
        match frame {
            Some(Ok(frame)) => {
                let data = frame.data_ref().map_or(&[][..], |bytes| bytes);
                let Some(left) = this.left.checked_sub(data.len()) else {
                    return this
                        .refuse(Refusal::bad("MaxMessageLengthExceeded", "The request's body is too long."));
                };
                this.left = left;
                this.pace.took(data.len(), waited);
                if let Some(digests) = &mut this.digests {
                    digests.update(data);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => {
                *body = None;
                this.refuse(BodyError::Gone.into())
            }
            None => {
                *body = None;
                let digested = this.digests.take().map(Digests::finish);
                let declared = Declared { sha256: None, ..this.declared.clone() };
                match digested.map_or(Ok(()), |digested| digested.verify(&declared, None)) {
                    Ok(()) => Poll::Ready(None),
                    Err(error) => this.refuse(error.into()),
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}
