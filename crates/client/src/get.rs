//! The read path: a range of an object as a stream of slices. One unit is read while another waits to be
//! taken, so a slow reader holds little and a quick one does not wait.

use crate::bridge::{Piece, Slot};
use crate::cas;
use crate::client::{Core, answer, unexpected};
use crate::layout::{Geometry, chunk_size};
use crate::read::Reader;
use crate::{ClientError, limits};
use cobalt_reactor::mailbox;
use cobalt_reactor::sync::Permit;
use cobalt_rpc::proto::cas::{Answer, PAGE_MAX, Query};
use cobalt_rpc::proto::ios::UNIT_MAX;
use cobalt_rpc::proto::record::{Body, Extent};
use std::ops::Range;
use std::rc::Rc;
use uuid::Uuid;

/// Why a stream ends early.
enum End {
    /// Nobody reads it any more.
    Gone,
    Failed(ClientError),
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> End {
        End::Failed(error)
    }
}

/// A stream's way out, and what it holds.
struct Stream {
    core: Rc<Core>,
    ticket: u64,
    out: mailbox::Sender<Piece>,
}

/// Serves one range of an object until its end, or until nobody reads it.
pub(crate) async fn serve(
    core: Rc<Core>,
    body: Body,
    range: Range<u64>,
    ticket: u64,
    slot: Slot<mailbox::Receiver<Piece>>,
    turn: Permit,
) {
    let unit = match &body {
        Body::Empty => 0,
        Body::Single(extent) => u64::from(extent.layout.unit_size),
        Body::Parts { .. } => UNIT_MAX,
    };
    // A range of a few bytes holds the chunks that they lie in, whatever the size of a unit.
    let window = (range.end - range.start).saturating_add(2 * chunk_size(unit));
    let bytes = window.min(unit * limits::GET_UNITS);
    let _credit = match core.body_credit(&core.get_bytes, bytes).await {
        Ok(credit) => credit,
        Err(error) => return answer(slot, Err(error)),
    };
    drop(turn);
    let (out, pieces) = mailbox(1);
    if slot.send(Ok(pieces)).is_err() {
        return;
    }
    let stream = Stream { core, ticket, out };
    if let Err(End::Failed(error)) = stream.body(&body, range).await {
        tracing::warn!(%error, "a GET failed");
        drop(stream.out.send(Err(error)).await);
    }
}

impl Stream {
    async fn body(&self, body: &Body, range: Range<u64>) -> Result<(), End> {
        match body {
            Body::Empty => Ok(()),
            Body::Single(extent) => self.extent(extent, range).await,
            Body::Parts { upload, .. } => self.parts(*upload, range).await,
        }
    }

    async fn extent(&self, extent: &Extent, range: Range<u64>) -> Result<(), End> {
        let geometry =
            Geometry::of(extent).map_err(|error| ClientError::Damaged { what: error.to_string() })?;
        let pool = self.core.pool.version(&self.core, extent.layout.pool).await?;
        let reader = Reader { core: &self.core, extent, geometry, pool };
        for piece in geometry.pieces(range) {
            if !self.core.sessions.holds(self.ticket) {
                let what = "the GET is older than the longest that is allowed".to_owned();
                return Err(End::Failed(ClientError::Deadline { what }));
            }
            for slice in reader.piece(&piece).await? {
                self.out.send(Ok(slice)).await.map_err(|_| End::Gone)?;
            }
        }
        Ok(())
    }

    /// An object that was made of parts: their records come in pages.
    async fn parts(&self, upload: Uuid, range: Range<u64>) -> Result<(), End> {
        let (mut after, mut start) = (0, 0u64);
        while start < range.end {
            let query = Query::Parts { upload, after, limit: PAGE_MAX };
            let page = match cas::ask(&self.core, query).await?.value {
                Answer::Parts(page) => page,
                other => return Err(unexpected(&other).into()),
            };
            let Some(last) = page.rows.last() else {
                let what = format!("the parts of upload {upload} end at byte {start}");
                return Err(End::Failed(ClientError::Damaged { what }));
            };
            after = last.number;
            for part in page.rows {
                let end = start.saturating_add(part.size);
                let (from, to) = (range.start.max(start), range.end.min(end));
                if from < to {
                    match &part.body {
                        Body::Single(extent) => self.extent(extent, from - start..to - start).await?,
                        Body::Empty | Body::Parts { .. } => {
                            let what =
                                format!("part {} of upload {upload} has no bytes of its own", part.number);
                            return Err(End::Failed(ClientError::Damaged { what }));
                        }
                    }
                }
                start = end;
            }
        }
        Ok(())
    }
}
