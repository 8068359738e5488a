//! The bytes of an object as they arrive: framing undone, length counted, trailers kept for the end.

use super::{ChunkSigner, Decoder, Expected, FrameError, Pace, Slot};
use crate::guard::{Framing, Upload};
use crate::refusal::Refusal;
use http::StatusCode;
use hyper::body::Bytes;
use tokio::time::Instant;

/// Why a body did not become an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the client went away before the end of the body")]
    Gone,
    #[error("the client sent nothing for too long")]
    Stalled,
    #[error("the body is shorter than its length says")]
    Short,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the body does not match its x-amz-content-sha256")]
    Sha256,
    #[error("the body does not match its Content-MD5")]
    Md5,
    #[error("the body does not match its {0} checksum")]
    Checksum(&'static str),
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Refusal {
        let message = format!("The request is refused: {error}.");
        let code = match error {
            BodyError::Gone
            | BodyError::Short
            | BodyError::Frame(FrameError::TooShort | FrameError::Unfinished) => "IncompleteBody",
            BodyError::Stalled => "RequestTimeout",
            BodyError::Frame(FrameError::Signature) => {
                return Refusal::new(StatusCode::FORBIDDEN, "SignatureDoesNotMatch", message);
            }
            BodyError::Frame(FrameError::Trailers | FrameError::OtherTrailers) => "MalformedTrailerError",
            BodyError::Frame(FrameError::ChunkTooLarge) => "InvalidChunkSizeError",
            BodyError::Frame(_) => "InvalidRequest",
            BodyError::Sha256 => "XAmzContentSHA256Mismatch",
            BodyError::Md5 | BodyError::Checksum(_) => "BadDigest",
        };
        Refusal::bad(code, message)
    }
}

impl From<BodyError> for s3s::S3Error {
    fn from(error: BodyError) -> s3s::S3Error {
        Refusal::from(error).into()
    }
}

/// A body being read.
pub struct Payload {
    slot: Slot,
    pace: Pace,
    decoder: Option<Decoder>,
    input: Bytes,
    left: u64,
    trailer: Option<Expected>,
}

impl Payload {
    /// Begins; no byte is asked for yet. `signer` for bodies whose chunks are signed.
    pub fn new(slot: Slot, upload: &Upload, signer: Option<ChunkSigner>, pace: Pace) -> Payload {
        let decoder = match upload.framing {
            Framing::Plain => None,
            Framing::Chunked { trailer, .. } => {
                Some(Decoder::new(upload.length, upload.chunk_max, signer, trailer))
            }
        };
        Payload { slot, pace, decoder, input: Bytes::new(), left: upload.length, trailer: None }
    }

    /// The next bytes of the object, or none when it is whole.
    ///
    /// # Errors
    /// A body that is not as its head says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if let Some(decoder) = &mut self.decoder
                && let Some(data) = decoder.next(&mut self.input)?
            {
                self.left = self.left.saturating_sub(data.len() as u64);
                return Ok(Some(data));
            }
            let begun = Instant::now();
            let bytes = self.slot.next(self.pace.left()).await?;
            self.pace.took(bytes.as_ref().map_or(0, Bytes::len), begun.elapsed());
            match bytes {
                Some(bytes) if self.decoder.is_some() => self.input = bytes,
                Some(bytes) => {
                    self.left = self.left.checked_sub(bytes.len() as u64).ok_or(FrameError::TooLong)?;
                    return Ok(Some(bytes));
                }
                None => {
                    if let Some(decoder) = self.decoder.take() {
                        self.trailer = decoder.finish()?;
                    }
                    return if self.left == 0 { Ok(None) } else { Err(BodyError::Short) };
                }
            }
        }
    }

    /// The checksum that came behind the body.
    pub fn trailer(&self) -> Option<&Expected> {
        self.trailer.as_ref()
    }
}
