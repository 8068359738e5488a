//! The other threads' ends of a PUT and a GET. Their futures run on any executor.

use crate::ClientError;
use crate::bridge::{Call, Fate, Hold, Piece, PutItem, PutParts};
use crate::handle::call;
use cobalt_dma::{Arena, Buf, Slice};
use cobalt_reactor::mailbox;
use cobalt_rpc::proto::record::{Body, ObjectRecord, PartRecord};
use futures::channel::oneshot;
use std::fmt;
use std::ops::Range;

/// A body on its way in. Dropped before [`PutStream::finish`], what was written of it is collected.
#[must_use = "a PUT that is dropped is undone"]
pub struct PutStream {
    parts: PutParts,
    arena: Arena,
    /// A unit was not full: it is the last.
    ended: bool,
}

impl PutStream {
    pub(crate) fn new(parts: PutParts, arena: Arena) -> PutStream {
        PutStream { parts, arena, ended: false }
    }

    /// Bytes per unit.
    pub fn unit_size(&self) -> usize {
        self.parts.unit_size
    }

    /// A buffer for the next unit, as soon as the arena has room. Its length is `unit_size`, its content anything.
    pub async fn buf(&mut self) -> Buf {
        self.arena.alloc(self.parts.unit_size).await
    }

    /// Hands over the next unit. All but the last are full; set the last one's length to its bytes. An empty
    /// one is ignored.
    ///
    /// # Errors
    /// Why the PUT failed; the stream is of no more use then.
    pub async fn write(&mut self, unit: Buf) -> Result<(), ClientError> {
        assert!(unit.len() <= self.parts.unit_size, "a unit of {} bytes is too long", unit.len());
        if unit.is_empty() {
            return Ok(());
        }
        assert!(!self.ended, "only the last unit of a body may be short");
        self.ended = unit.len() < self.parts.unit_size;
        match self.parts.units.send(PutItem::Unit(unit)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.why().await),
        }
    }

    /// Ends the body: waits until all its units are durable.
    ///
    /// # Errors
    /// Why the PUT failed.
    pub async fn finish(mut self) -> Result<StoredBody, ClientError> {
        let (slot, stored) = oneshot::channel();
        if self.parts.units.send(PutItem::Finish(slot)).await.is_err() {
            return Err(self.why().await);
        }
        match stored.await {
            Ok(Ok((body, fate))) => Ok(StoredBody { body, fate: Some(fate) }),
            Ok(Err(error)) => Err(error),
            Err(oneshot::Canceled) => Err(self.why().await),
        }
    }

    async fn why(&mut self) -> ClientError {
        (&mut self.parts.failed).await.unwrap_or(ClientError::Closed)
    }
}

impl fmt::Debug for PutStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PutStream({} bytes per unit)", self.parts.unit_size)
    }
}

/// A body whose units are all durable and which nothing names yet. Dropped unpublished, it is collected.
#[must_use = "a stored body that is dropped is collected"]
pub struct StoredBody {
    body: Body,
    fate: Option<oneshot::Sender<Fate>>,
}

impl StoredBody {
    /// Where the bytes are.
    pub fn body(&self) -> &Body {
        &self.body
    }

    pub(crate) fn into_parts(self) -> (Body, Option<oneshot::Sender<Fate>>) {
        (self.body, self.fate)
    }
}

impl fmt::Debug for StoredBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoredBody").field(&self.body).finish()
    }
}

/// An object that was looked up. While it, or a stream of it, lives, the collector spares its bytes (I9a).
pub struct OpenObject {
    pub(crate) record: ObjectRecord,
    pub(crate) hold: Hold,
    pub(crate) calls: mailbox::Sender<Call>,
}

impl OpenObject {
    /// The record.
    pub fn record(&self) -> &ObjectRecord {
        &self.record
    }

    /// Streams the bytes of `range`, which must lie within the object.
    ///
    /// # Errors
    /// `Busy` when there is no memory for it in time. What happens to the bytes is told by the stream.
    pub async fn read(&self, range: Range<u64>) -> Result<GetStream, ClientError> {
        assert!(
            range.start <= range.end && range.end <= self.record.size,
            "{range:?} is outside of the object"
        );
        let (body, hold) = (self.record.body.clone(), self.hold.clone());
        let pieces = call(&self.calls, |slot| Call::Read { body, range: range.clone(), hold, slot }).await?;
        Ok(GetStream { pieces, _hold: self.hold.clone(), left: range.end - range.start })
    }

    /// The record of part `number` of an object that was made of parts.
    ///
    /// # Errors
    /// `Cas(InvalidPart)` when the object has no such part.
    pub async fn part(&self, number: u16) -> Result<PartRecord, ClientError> {
        let body = self.record.body.clone();
        call(&self.calls, |slot| Call::Part { body, number, slot }).await
    }
}

impl fmt::Debug for OpenObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenObject").field(&self.record).finish()
    }
}

/// The bytes of a range, in order; each has passed its checksum.
#[must_use = "a stream does nothing unless it is read"]
pub struct GetStream {
    pieces: mailbox::Receiver<Piece>,
    _hold: Hold,
    left: u64,
}

impl GetStream {
    /// The next bytes; `None` at the end of the range. After an error nothing more comes.
    pub async fn next(&mut self) -> Option<Result<Slice, ClientError>> {
        if self.left == 0 {
            return None;
        }
        match self.pieces.recv().await {
            Some(Ok(slice)) => {
                self.left = self.left.saturating_sub(slice.len() as u64);
                Some(Ok(slice))
            }
            Some(Err(error)) => {
                self.left = 0;
                Some(Err(error))
            }
            None => {
                self.left = 0; // Cut short: the end is never taken for the end of the object.
                Some(Err(ClientError::Closed))
            }
        }
    }

    /// Bytes that are still to come.
    pub fn remaining(&self) -> u64 {
        self.left
    }
}

impl fmt::Debug for GetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GetStream({} bytes to come)", self.left)
    }
}
