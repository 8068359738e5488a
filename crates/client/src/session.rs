//! The client's session with the catalogue: it draws fids, numbers requests, and says how old the
//! oldest look-up is that is still in use (I9a, I9b). A session that was fenced is replaced by a new one.

use crate::client::Core;
use crate::{ClientError, cas};
use cobalt_base::{Fid, Nanos, SessionId};
use cobalt_reactor::sync::Notify;
use cobalt_rpc::proto::cas::{CasError, Heartbeat, OpenSession, Position};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The session of the moment, and the look-ups in use.
#[derive(Default)]
pub(crate) struct Sessions {
    open: RefCell<Option<Rc<Session>>>,
    /// A session was opened, or turned out to be fenced.
    changed: Notify,
    /// Newest position of any answer.
    newest: Cell<Position>,
    /// Look-ups in use: ticket, and a position that the look-up's answer is not older than.
    lookups: RefCell<BTreeMap<u64, Position>>,
    tickets: Cell<u64>,
}

/// One session.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    /// Incarnation of the catalogue.
    pub(crate) incarnation: u64,
    fids: Cell<u64>,
    requests: Cell<u64>,
    /// Requests without an answer, that may be sent again.
    unanswered: RefCell<BTreeSet<u64>>,
}

/// A request that has its number. Dropped when it was answered, or will never be sent again.
pub(crate) struct Numbered {
    pub(crate) session: Rc<Session>,
    pub(crate) number: u64,
}

/// A look-up in use. Ends when dropped.
pub(crate) struct Lookup {
    core: Rc<Core>,
    pub(crate) ticket: u64,
}

impl Session {
    fn new(id: SessionId, incarnation: u64) -> Session {
        Session {
            id,
            incarnation,
            fids: Cell::default(),
            requests: Cell::default(),
            unanswered: RefCell::default(),
        }
    }

    /// A fid that was never drawn before.
    pub(crate) fn draw(&self) -> Fid {
        self.fids.set(self.fids.get() + 1);
        Fid::new(self.id, self.fids.get())
    }

    /// Numbers a request.
    pub(crate) fn number(self: &Rc<Session>) -> Numbered {
        let number = self.requests.get() + 1;
        self.requests.set(number);
        self.unanswered.borrow_mut().insert(number);
        Numbered { session: self.clone(), number }
    }

    /// Every request at or below it has been answered, or was given up for good.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.unanswered.borrow().first().map_or(self.requests.get(), |first| first - 1)
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.session.unanswered.borrow_mut().remove(&self.number);
    }
}

impl Sessions {
    /// The open session, as soon as there is one.
    pub(crate) async fn current(&self, core: &Core, deadline: Nanos) -> Result<Rc<Session>, ClientError> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some(session) = self.peek() {
                    return session;
                }
                changed.await;
            }
        };
        core.ctx.timeout_at(deadline, wait).await.map_err(|_| ClientError::Unavailable {
            what: format!("the catalogue gave no session: {}", core.cas.last_error()),
        })
    }

    /// The open session, if there is one.
    pub(crate) fn peek(&self) -> Option<Rc<Session>> {
        self.open.borrow().clone()
    }

    /// Somebody was told that session `id` is fenced or unknown.
    pub(crate) fn fenced(&self, id: SessionId) {
        let mut open = self.open.borrow_mut();
        if open.as_ref().is_some_and(|session| session.id == id) {
            tracing::warn!(session = %id, "the session was fenced; opening a new one");
            *open = None;
            drop(open);
            self.changed.notify_all();
        }
    }

    /// An answer of the catalogue was this new.
    pub(crate) fn saw(&self, position: Position) {
        self.newest.set(self.newest.get().max(position));
    }

    /// Begins a look-up. It counts from before the question is asked: an answer is never older than an earlier one.
    pub(crate) fn begin_lookup(&self, core: &Rc<Core>) -> Result<Lookup, ClientError> {
        let mut lookups = self.lookups.borrow_mut();
        if lookups.len() >= core.limits.opens {
            return Err(ClientError::Busy);
        }
        let ticket = self.tickets.get() + 1;
        self.tickets.set(ticket);
        lookups.insert(ticket, self.newest.get());
        Ok(Lookup { core: core.clone(), ticket })
    }

    /// Whether a look-up still holds its object against the collector.
    pub(crate) fn holds(&self, ticket: u64) -> bool {
        self.lookups.borrow().contains_key(&ticket)
    }

    /// What a heartbeat says.
    fn oldest(&self) -> Position {
        self.lookups.borrow().values().min().copied().unwrap_or(self.newest.get())
    }
}

impl Lookup {
    /// The look-up was answered at `position`.
    pub(crate) fn answered(&self, position: Position) {
        if let Some(held) = self.core.sessions.lookups.borrow_mut().get_mut(&self.ticket) {
            *held = position.max(*held);
        }
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.core.sessions.lookups.borrow_mut().remove(&self.ticket);
    }
}

/// Opens a session, keeps it alive, and opens another when it was fenced. Runs for ever.
pub(crate) async fn run(core: Rc<Core>) {
    loop {
        let session = Rc::new(open(&core).await);
        tracing::info!(session = %session.id, incarnation = session.incarnation, "session opened");
        *core.sessions.open.borrow_mut() = Some(session.clone());
        core.sessions.changed.notify_all();
        while core.sessions.peek().is_some_and(|open| open.id == session.id) {
            beat(&core, &session).await;
        }
    }
}

/// Opens a session, however long it takes. The number of the attempt is drawn once: if only the answer was lost,
/// the same session comes back; if that one was fenced meanwhile, another is drawn.
async fn open(core: &Rc<Core>) -> Session {
    let mut request = OpenSession { process: core.config.process.clone(), nonce: core.ctx.random_u64() };
    let mut pause = core.limits.retry_min;
    loop {
        match core.cas.call(core, &request, core.ctx.now() + core.limits.cas_deadline).await {
            Ok(at) => {
                core.sessions.saw(at.position);
                return Session::new(at.value.session, at.value.incarnation);
            }
            Err(failure) => {
                tracing::warn!(error = %failure.error, "no session yet");
                if matches!(failure.error, ClientError::Cas(CasError::Fenced(_) | CasError::NoSession(_))) {
                    request.nonce = core.ctx.random_u64();
                }
                core.ctx.sleep(pause).await;
                pause = (pause * 2).min(core.limits.retry_max);
            }
        }
    }
}

/// Waits for the next beat, or until the session is over, and sends it.
async fn beat(core: &Rc<Core>, session: &Session) {
    if core.ctx.timeout(core.limits.heartbeat, core.sessions.changed.notified()).await.is_ok() {
        return;
    }
    let request = Heartbeat { session: session.id, oldest: core.sessions.oldest() };
    match core.cas.call(core, &request, core.ctx.now() + core.limits.cas_deadline).await {
        Ok(position) => core.sessions.saw(position),
        Err(cas::Failure {
            error: ClientError::Cas(CasError::Fenced(_) | CasError::NoSession(_)), ..
        }) => {
            core.sessions.fenced(session.id);
        }
        Err(failure) => tracing::debug!(error = %failure.error, "heartbeat"),
    }
}
