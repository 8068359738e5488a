//! The server of a process: lets connections in that prove who they are, and hands requests to the service,
//! each once, within limits.

use crate::auth::{self, Verdict};
use crate::call::{Call, Slot};
use crate::channel::{Channel, Names, NotAdmitted, Seen};
use crate::frame::{Header, Kind, encode_body};
use crate::{Auth, Identity, Refusal, ServerLimits};
use cobalt_fabric::{Conn, Listener};
use cobalt_reactor::{Ctx, JoinHandle};
use futures::future::LocalBoxFuture;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Pause after a listener failed to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    /// Connections turned away because too many were there, or of a stale incarnation.
    pub turned_away: u64,
    /// Connections dropped for messages that are none.
    pub protocol_errors: u64,
    /// Requests handed to the service.
    pub requests: u64,
    /// Answers given, refusals of the service among them.
    pub replies: u64,
    /// Requests refused because too many ran.
    pub busy: u64,
    /// Duplicates that joined a running request or got the stored answer.
    pub duplicates: u64,
    /// Requests of an older incarnation or epoch, or with an id that is too old.
    pub stale: u64,
}

/// Serves until it is dropped or stopped. May serve several listeners, which share what is known of callers.
pub struct Server {
    inner: Rc<Inner>,
    acceptors: RefCell<Vec<JoinHandle<()>>>,
}

pub(crate) struct Inner {
    pub(crate) ctx: Ctx,
    auth: Auth,
    service: Rc<dyn Service>,
    pub(crate) limits: ServerLimits,
    pub(crate) running: Cell<usize>,
    strangers: Cell<usize>,
    conns: RefCell<Slab<(Rc<dyn Conn>, Option<Rc<Identity>>)>>,
    names: RefCell<Names>,
    stopped: Cell<bool>,
    counters: Cell<ServerCounters>,
}

/// One authenticated connection.
pub(crate) struct Session {
    pub(crate) conn: Rc<dyn Conn>,
    pub(crate) identity: Rc<Identity>,
    channel: Rc<RefCell<Channel>>,
    pub(crate) running: Cell<usize>,
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
    pub fn new(ctx: &Ctx, auth: Auth, service: Rc<dyn Service>, limits: ServerLimits) -> Server {
        let inner = Inner {
            ctx: ctx.clone(),
            auth,
            service,
            limits,
            running: Cell::new(0),
            strangers: Cell::new(0),
            conns: RefCell::default(),
            names: RefCell::new(Names::new(limits)),
            stopped: Cell::new(false),
            counters: Cell::default(),
        };
        Server { inner: Rc::new(inner), acceptors: RefCell::default() }
    }

    /// Accepts connections from `listener` too.
    pub fn listen(&self, listener: Box<dyn Listener>) {
        let task = self.inner.ctx.spawn(accept(self.inner.clone(), listener));
        self.acceptors.borrow_mut().push(task);
    }

    /// Closes listeners and connections. Requests that run go on without a caller.
    pub fn stop(&self) {
        if self.inner.stopped.replace(true) {
            return;
        }
        for task in self.acceptors.take() {
            task.abort();
        }
        let conns: Vec<Rc<dyn Conn>> =
            self.inner.conns.borrow().iter().map(|(_, (c, _))| c.clone()).collect();
        for conn in conns {
            conn.close();
        }
    }

    /// The counters now.
    pub fn counters(&self) -> ServerCounters {
        self.inner.counters.get()
    }

    /// Requests that run now.
    pub fn running(&self) -> usize {
        self.inner.running.get()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A connection's place in the books, given up however its task ends.
struct Place {
    server: Rc<Inner>,
    key: usize,
    stranger: bool,
    entered: Option<String>,
}

impl Place {
    fn new(server: &Rc<Inner>, conn: &Rc<dyn Conn>) -> Place {
        server.strangers.set(server.strangers.get() + 1);
        let key = server.conns.borrow_mut().insert((conn.clone(), None));
        Place { server: server.clone(), key, stranger: true, entered: None }
    }

    fn proved(&mut self) {
        if std::mem::replace(&mut self.stranger, false) {
            self.server.strangers.set(self.server.strangers.get() - 1);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.proved();
        let conn = self.server.conns.borrow_mut().try_remove(self.key);
        if let Some(name) = self.entered.take() {
            self.server.names.borrow_mut().leave(&name);
        }
        if let Some((conn, _)) = conn {
            conn.close();
        }
    }
}

async fn accept(server: Rc<Inner>, listener: Box<dyn Listener>) {
    loop {
        match listener.accept().await {
            Ok(conn) if server.strangers.get() < server.limits.strangers_max => {
                let place = Place::new(&server, &conn);
                server.ctx.spawn(serve_conn(server.clone(), conn, place));
            }
            Ok(conn) => {
                server.count(|c| c.turned_away += 1);
                conn.close();
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                server.ctx.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_conn(server: Rc<Inner>, conn: Rc<dyn Conn>, mut place: Place) {
    let Some(session) = server.greet(&conn, &mut place).await else { return };
    let session = Rc::new(session);
    loop {
        match server.ctx.timeout(server.limits.idle_timeout, conn.recv()).await {
            Ok(Ok(message)) => {
                let received =
                    server.ctx.timeout(server.limits.idle_timeout, server.receive(&session, &message));
                let received = received.await.unwrap_or_else(|_| Err("the peer does not read".into()));
                if let Err(why) = received {
                    server.count(|c| c.protocol_errors += 1);
                    tracing::warn!(peer = %session.identity.name, why, "connection dropped");
                    return;
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(peer = %session.identity.name, %error, "connection ended");
                return;
            }
            Err(_) => {
                tracing::info!(peer = %session.identity.name, "connection dropped: silent for too long");
                return;
            }
        }
    }
}

impl Inner {
    pub(crate) fn incarnation(&self) -> u64 {
        self.auth.identity().incarnation
    }

    fn count(&self, f: impl FnOnce(&mut ServerCounters)) {
        let mut counters = self.counters.get();
        f(&mut counters);
        self.counters.set(counters);
    }

    /// Runs the handshake; `None` when the connection is not let in.
    async fn greet(&self, conn: &Rc<dyn Conn>, place: &mut Place) -> Option<Session> {
        let end = self.ctx.now() + self.limits.handshake_timeout;
        let proved = self.ctx.timeout_at(end, auth::accept(&self.ctx, &**conn, &self.auth)).await;
        let (identity, channel) = match proved {
            Ok(Ok(proved)) => proved,
            failed => {
                self.count(|c| c.auth_failures += 1);
                let verdict = match &failed {
                    Ok(Err(auth::HandshakeError::Rejected)) => Some(Verdict::BadProof),
                    Ok(Err(auth::HandshakeError::Version)) => Some(Verdict::Version),
                    _ => None,
                };
                let why = failed
                    .map_or_else(|e| e.to_string(), |r| r.map_or_else(|e| e.to_string(), |_| String::new()));
                tracing::warn!(peer = %conn.peer(), why, "connection refused: it did not prove who it is");
                if let Some(verdict) = verdict {
                    let _ = self.ctx.timeout_at(end, auth::judge(&**conn, verdict)).await; // It is refused either way.
                    self.ctx.yield_now().await; // The transport takes the verdict before the end.
                }
                return None;
            }
        };
        let full = self.conns.borrow().len() - self.strangers.get() >= self.limits.connections_max;
        let entered = if full {
            Err(NotAdmitted::Full)
        } else {
            self.names.borrow_mut().enter(&identity.name, identity.incarnation, channel)
        };
        let verdict = match &entered {
            Ok(_) => Verdict::Welcome,
            Err(NotAdmitted::Stale) => Verdict::Stale,
            Err(NotAdmitted::Full) => Verdict::Full,
        };
        if entered.is_ok() {
            place.entered = Some(identity.name.clone());
            self.close_older(&identity);
            conn.admit();
        } else {
            self.count(|c| c.turned_away += 1);
        }
        let told = self.ctx.timeout_at(end, auth::judge(&**conn, verdict)).await;
        self.ctx.yield_now().await;
        let channel = entered.ok()?;
        told.ok()?.ok()?;
        place.proved();
        self.count(|c| c.accepted += 1);
        let identity = Rc::new(identity);
        if let Some(entry) = self.conns.borrow_mut().get_mut(place.key) {
            entry.1 = Some(identity.clone());
        }
        Some(Session { conn: conn.clone(), identity, channel, running: Cell::new(0) })
    }

    /// What an older incarnation of a process left open.
    fn close_older(&self, newest: &Identity) {
        let older = |known: &Identity| known.name == newest.name && known.incarnation < newest.incarnation;
        let conns: Vec<Rc<dyn Conn>> = (self.conns.borrow().iter())
            .filter(|(_, (_, known))| known.as_deref().is_some_and(older))
            .map(|(_, (conn, _))| conn.clone())
            .collect();
        for conn in conns {
            conn.close();
        }
    }

    async fn receive(self: &Rc<Inner>, session: &Rc<Session>, message: &[u8]) -> Result<(), String> {
        let (header, body) = Header::parse(message)?;
        match header.kind {
            Kind::Request => {}
            Kind::Ping => {
                let pong = Header::new(Kind::Pong, 0, self.incarnation()).encode(&[]);
                return session.conn.send(pong).await.map_err(|e| e.to_string());
            }
            Kind::Reply | Kind::Refused | Kind::Pong => {
                return Err(format!("a {:?} from a client", header.kind));
            }
        }
        let refusal = match self.judge(session, &header) {
            Ok(Seen::New) => match Slot::take(self, session) {
                Some(slot) => {
                    self.run(session, header, body, slot);
                    return Ok(());
                }
                None => Refusal::Busy,
            },
            Ok(Seen::Joined) => {
                self.count(|c| c.duplicates += 1);
                return Ok(());
            }
            Ok(Seen::Answered(answer)) => {
                self.count(|c| c.duplicates += 1);
                return session.conn.send(answer.to_vec()).await.map_err(|e| e.to_string());
            }
            Ok(Seen::TooMany) => Refusal::Busy,
            Ok(Seen::TooOld) => Refusal::OldId,
            Err(refusal) => refusal,
        };
        self.count(|c| match refusal {
            Refusal::Busy => c.busy += 1,
            _ => c.stale += 1,
        });
        let body = encode_body(&refusal)?;
        let frame = Header::new(Kind::Refused, header.id, self.incarnation()).encode(&body);
        session.conn.send(frame).await.map_err(|e| e.to_string())
    }

    fn judge(&self, session: &Session, header: &Header) -> Result<Seen, Refusal> {
        if self.stopped.get() {
            return Err(Refusal::Stopping);
        }
        let mut names = self.names.borrow_mut();
        let name = &session.identity.name;
        if header.incarnation != session.identity.incarnation || header.incarnation < names.incarnation(name)
        {
            return Err(Refusal::StaleIncarnation);
        }
        if !names.epoch(name, header.epoch) {
            return Err(Refusal::StaleEpoch);
        }
        Ok(session.channel.borrow_mut().look(header.id, &session.conn))
    }

    fn run(self: &Rc<Inner>, session: &Rc<Session>, header: Header, body: &[u8], slot: Slot) {
        self.count(|c| c.requests += 1);
        session.channel.borrow_mut().begin(header.id, &session.conn);
        let call = Call::new(self, session, header, body.to_vec(), slot);
        self.ctx.spawn(self.service.clone().call(call));
    }

    /// Stores the answer and sends it to all who wait for it; `slot` is given back when the transport has it.
    pub(crate) fn answer(self: &Rc<Inner>, session: &Session, header: Header, body: &[u8], slot: Slot) {
        self.count(|c| c.replies += 1);
        let frame = Rc::new(header.encode(body));
        let waiters = session.channel.borrow_mut().finish(header.id, &frame, &self.limits);
        self.ctx.spawn(async move {
            for conn in waiters {
                let _ = conn.send(frame.to_vec()).await; // Who is gone needs no answer.
            }
            drop(slot);
        });
    }
}
