//! The server of a process.

use crate::{Auth, BulkError, Identity, Malformed, Refusal, Request, ServerLimits};
use cobalt_base::Nanos;
use cobalt_dma::Slice;
use cobalt_fabric::Listener;
use cobalt_reactor::Ctx;
use futures::future::LocalBoxFuture;
use std::rc::Rc;

/// Answers requests. Dispatches on [`Call::opcode`].
pub trait Service {
    /// Handles one request. Ending it without a reply sends [`Refusal::NoReply`].
    fn call(self: Rc<Self>, call: Call) -> LocalBoxFuture<'static, ()>;
}

/// Exact counts of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerCounters {
    /// Connections that proved who they are.
    pub accepted: u64,
    /// Connections that failed to, or took too long.
    pub auth_failures: u64,
    /// Connections turned away because too many were there.
    pub turned_away: u64,
    /// Connections dropped for frames that are none.
    pub protocol_errors: u64,
    pub requests: u64,
    pub replies: u64,
    pub busy: u64,
    /// Duplicates that joined a running request or got the stored answer.
    pub duplicates: u64,
    /// Requests of an older incarnation or epoch, or with an id that is too old.
    pub stale: u64,
}

/// Serves until it is dropped or stopped. May serve several listeners.
pub struct Server {
    counters: ServerCounters,
}

/// Serves `service` on `listener`.
pub fn serve(
    ctx: &Ctx,
    listener: Box<dyn Listener>,
    auth: Auth,
    service: Rc<dyn Service>,
    limits: ServerLimits,
) -> Server {
    let server = Server::new(ctx, auth, service, limits);
    server.listen(listener);
    server
}

impl Server {
    /// A server without a listener yet.
    pub fn new(_ctx: &Ctx, _auth: Auth, _service: Rc<dyn Service>, _limits: ServerLimits) -> Server {
        Server { counters: ServerCounters::default() }
    }

    /// Accepts connections from `listener` too.
    pub fn listen(&self, _listener: Box<dyn Listener>) {}

    /// Closes listeners and connections. Requests that run go on without a caller.
    pub fn stop(&self) {}

    /// The counters now.
    pub fn counters(&self) -> ServerCounters {
        self.counters
    }
}

/// One request, to be answered once.
pub struct Call {
    opcode: u16,
    peer: Rc<Identity>,
    deadline: Nanos,
}

impl Call {
    /// The request's number.
    pub fn opcode(&self) -> u16 {
        self.opcode
    }

    /// Who asks.
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// When the caller stops waiting, in this reactor's time.
    pub fn deadline(&self) -> Nanos {
        self.deadline
    }

    /// The request.
    ///
    /// # Errors
    /// [`Malformed`]; answer with the service's own error or [`Call::refuse`].
    pub fn parse<R: Request>(&self) -> Result<R, Malformed> {
        Err(Malformed { opcode: self.opcode, why: String::new() })
    }

    /// Bytes that the caller lent to pull; 0 when none.
    pub fn lent_data(&self) -> u64 {
        0
    }

    /// Room that the caller lent to push into; 0 when none.
    pub fn lent_room(&self) -> u64 {
        0
    }

    /// Pulls `len` bytes at `offset` of what the caller lent. Slices are at most `cobalt_dma::BUF_MAX` long; all but the
    /// last are multiples of 4 KiB.
    ///
    /// # Errors
    /// [`BulkError`].
    pub async fn pull(&self, _offset: u64, _len: u64) -> Result<Vec<Slice>, BulkError> {
        Err(BulkError::Deadline)
    }

    /// Pushes into the room that the caller lent, at `offset`; done when the caller's memory holds it.
    ///
    /// # Errors
    /// [`BulkError`].
    pub async fn push(&self, _offset: u64, _data: Vec<Slice>) -> Result<(), BulkError> {
        Err(BulkError::Deadline)
    }

    /// Answers.
    pub fn reply<R: Request>(self, _answer: Result<R::Reply, R::Error>) {}

    /// Refuses in the frame layer: an unknown opcode, a body that cannot be parsed.
    pub fn refuse(self, _refusal: Refusal) {}
}
