//! What travels between other threads and the reactor. Every answer has a slot of its own that was made
//! before the call, so an answer never waits; every guard is the sending half of a slot, so that a drop can
//! neither block nor be lost.

use crate::{ClientError, ClusterStatus};
use cobalt_dma::{Buf, Slice};
use cobalt_reactor::mailbox;
use cobalt_rpc::proto::cas::{Answer, Command, Outcome, Query};
use cobalt_rpc::proto::record::{Body, ObjectRecord, PartRecord};
use futures::channel::oneshot;
use std::ops::Range;

/// Where the answer to a call goes.
pub(crate) type Slot<T> = oneshot::Sender<Result<T, ClientError>>;

/// A call from another thread.
pub(crate) enum Call {
    Ask { query: Query, slot: Slot<Answer> },
    Commit { command: Command, slot: Slot<Outcome> },
    Put { size: Option<u64>, slot: Slot<PutParts> },
    Publish { command: Command, fate: oneshot::Sender<Fate>, slot: Slot<Outcome> },
    Open { bucket: String, key: Vec<u8>, slot: Slot<(ObjectRecord, Hold)> },
    Read { body: Body, range: Range<u64>, hold: Hold, slot: Slot<mailbox::Receiver<Piece>> },
    Part { body: Body, number: u16, slot: Slot<PartRecord> },
    Status { slot: oneshot::Sender<ClusterStatus> },
}

/// What becomes of a stored body. A sender that is dropped without a word means "dead".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The catalogue names it, or its session's sweep decides: leave it alone.
    Settled,
}

/// A look-up in use, shared by an object and its streams. The reactor waits for the sender to go.
pub(crate) struct HoldGuard {
    pub(crate) ticket: u64,
    pub(crate) _gone: oneshot::Sender<std::convert::Infallible>,
}

/// A share of a look-up.
pub(crate) type Hold = std::sync::Arc<HoldGuard>;

/// The next bytes of a GET.
pub(crate) type Piece = Result<Slice, ClientError>;

/// The HTTP thread's half of a PUT.
pub(crate) struct PutParts {
    pub(crate) unit_size: usize,
    pub(crate) units: mailbox::Sender<PutItem>,
    /// Why the reactor gave up early.
    pub(crate) failed: oneshot::Receiver<ClientError>,
}

/// A piece of a PUT's body. The mailbox closing without `Finish` means that the client went away.
pub(crate) enum PutItem {
    Unit(Buf),
    Finish(Slot<(Body, oneshot::Sender<Fate>)>),
}
