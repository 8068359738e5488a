//! A handle to one remote process: connects when first asked, proves itself, keeps the connection alive,
//! and comes back with growing pauses when it dies. Calls are told apart by their ids.

use crate::auth::{self, HandshakeError};
use crate::frame::{Header, Kind, Lent, decode_body, encode_body};
use crate::link::{Answered, Link};
use crate::{Auth, CallError, PeerLimits, Refusal, Request};
use cobalt_base::Nanos;
use cobalt_dma::Slice;
use cobalt_fabric::{FabricError, PeerAddr, Transport};
use cobalt_reactor::sync::{Notify, Semaphore};
use cobalt_reactor::{Ctx, JoinHandle};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Memory that a call lends to the server until it ends.
#[derive(Clone, Debug)]
pub enum Lend {
    /// Nothing.
    None,
    /// Bytes to pull.
    Data(Vec<Slice>),
    /// Room for so many bytes to be pushed.
    Room(usize),
}

/// A reply, and what the server pushed into the lent room, in order from its start.
#[derive(Debug)]
pub struct Answer<T> {
    pub reply: T,
    pub pushed: Vec<Slice>,
}

/// The state of the connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Never asked for.
    Idle,
    Connecting,
    Connected,
    /// Waits before the next attempt; calls fail at once.
    BackingOff,
    Closed,
}

/// Exact counts of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Calls begun.
    pub calls: u64,
    /// Calls without a reply of the service.
    pub failures: u64,
    /// Calls whose deadline passed.
    pub deadlines: u64,
    /// Connections made.
    pub connects: u64,
    /// Attempts that failed.
    pub connect_failures: u64,
    /// Replies that nobody waited for any more.
    pub late_replies: u64,
}

/// What `status` shows of a peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    pub name: String,
    pub addr: PeerAddr,
    pub state: PeerState,
    /// The transport that really runs, "local" or "tcp", while connected.
    pub transport: Option<&'static str>,
    /// The peer's incarnation, once known.
    pub incarnation: Option<u64>,
    pub last_error: Option<String>,
    pub calls_in_flight: u64,
    pub counters: PeerCounters,
}

/// A handle to one remote process. Clones share it; the last one closes the connection.
#[derive(Clone)]
pub struct Peer(Rc<Handle>);

/// Ends the driver when the last `Peer` is dropped; the driver itself holds only [`Inner`].
struct Handle {
    inner: Rc<Inner>,
    driver: RefCell<Option<JoinHandle<()>>>,
}

struct Inner {
    ctx: Ctx,
    transport: Rc<dyn Transport>,
    auth: Auth,
    name: String,
    addr: PeerAddr,
    limits: PeerLimits,
    /// Tells this object's ids from those of other `Peer`s of the same process.
    channel: u64,
    next_id: Cell<u64>,
    calls: Semaphore,
    state: Cell<PeerState>,
    link: RefCell<Option<Rc<Link>>>,
    last_error: RefCell<Option<String>>,
    newest: Cell<Option<u64>>,
    changed: Notify,
    counters: Rc<Cell<PeerCounters>>,
}

pub(crate) fn count(counters: &Cell<PeerCounters>, f: impl FnOnce(&mut PeerCounters)) {
    let mut now = counters.get();
    f(&mut now);
    counters.set(now);
}

impl Peer {
    /// A peer that is connected to at the first call, and kept connected from then on.
    pub fn new(
        ctx: &Ctx,
        transport: Rc<dyn Transport>,
        auth: Auth,
        name: &str,
        addr: PeerAddr,
        limits: PeerLimits,
    ) -> Peer {
        let inner = Rc::new(Inner {
            ctx: ctx.clone(),
            transport,
            auth,
            name: name.to_owned(),
            addr,
            limits,
            channel: ctx.random_u64(),
            next_id: Cell::new(1),
            calls: Semaphore::new(limits.calls_max),
            state: Cell::new(PeerState::Idle),
            link: RefCell::default(),
            last_error: RefCell::default(),
            newest: Cell::new(None),
            changed: Notify::default(),
            counters: Rc::default(),
        });
        Peer(Rc::new(Handle { inner, driver: RefCell::default() }))
    }

    /// Starts connecting in the background, and keeps at it. Does nothing when that runs already.
    pub fn connect(&self) {
        let inner = &self.0.inner;
        if inner.state.get() == PeerState::Idle {
            inner.state.set(PeerState::Connecting);
            let driver = inner.ctx.spawn(drive(inner.clone()));
            *self.0.driver.borrow_mut() = Some(driver);
        }
    }

    /// Calls the service. What is lent is void for the server when this returns or is dropped.
    ///
    /// # Errors
    /// [`CallError`]. While the peer is known to be away the answer is an immediate `Unreachable`.
    pub async fn call<R: Request>(
        &self,
        request: &R,
        lend: Lend,
        deadline: Nanos,
    ) -> Result<Answer<R::Reply>, CallError<R::Error>> {
        let inner = &self.0.inner;
        count(&inner.counters, |c| c.calls += 1);
        self.connect();
        let result = match encode_body(request) {
            Ok(body) => {
                let exchange = inner.exchange::<R::Error>(R::OPCODE, &body, lend, deadline);
                match inner.ctx.timeout_at(deadline, exchange).await {
                    Ok(exchanged) => {
                        exchanged.and_then(|(answered, pushed)| inner.read::<R>(answered, pushed))
                    }
                    Err(_) => Err(CallError::Deadline { peer: inner.name.clone() }),
                }
            }
            Err(why) => Err(CallError::Malformed { peer: inner.name.clone(), why }),
        };
        if let Err(error) = &result {
            count(&inner.counters, |c| {
                c.failures += u64::from(!matches!(error, CallError::Service(_)));
                c.deadlines += u64::from(matches!(error, CallError::Deadline { .. }));
            });
        }
        result
    }

    /// Waits until the peer is connected, or `deadline`. True when it is.
    pub async fn connected(&self, deadline: Nanos) -> bool {
        self.connect();
        let inner = &self.0.inner;
        let wait = async {
            while !matches!(inner.state.get(), PeerState::Connected | PeerState::Closed) {
                inner.changed.notified().await;
            }
        };
        let _ = inner.ctx.timeout_at(deadline, wait).await; // The state says it.
        self.is_connected()
    }

    /// The peer's name.
    pub fn name(&self) -> &str {
        &self.0.inner.name
    }

    /// Whether calls can be sent now.
    pub fn is_connected(&self) -> bool {
        self.0.inner.state.get() == PeerState::Connected
    }

    /// What `status` shows.
    pub fn status(&self) -> PeerStatus {
        let inner = &self.0.inner;
        PeerStatus {
            name: inner.name.clone(),
            addr: inner.addr.clone(),
            state: inner.state.get(),
            transport: inner.link.borrow().as_ref().map(|l| l.conn.transport()),
            incarnation: inner.newest.get(),
            last_error: inner.last_error.borrow().clone(),
            calls_in_flight: inner.calls.limit() - inner.calls.available(),
            counters: inner.counters.get(),
        }
    }

    /// Closes for good; calls under way fail.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Handle {
    fn close(&self) {
        let inner = &self.inner;
        if inner.state.replace(PeerState::Closed) == PeerState::Closed {
            return;
        }
        if let Some(driver) = self.driver.take() {
            driver.abort();
        }
        let link = inner.link.take();
        if let Some(link) = link {
            link.end("this end closed it");
        }
        inner.changed.notify_all();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn unreachable<E: std::error::Error>(&self, why: impl Into<String>) -> CallError<E> {
        CallError::Unreachable { peer: self.name.clone(), why: why.into() }
    }

    /// The connection; waits while one is being made.
    async fn connection<E: std::error::Error>(&self) -> Result<Rc<Link>, CallError<E>> {
        loop {
            let changed = self.changed.notified();
            match self.state.get() {
                PeerState::Connected => {
                    let link = self.link.borrow().clone();
                    return link.ok_or_else(|| self.unreachable("the connection was just lost"));
                }
                PeerState::Idle | PeerState::Connecting => changed.await,
                PeerState::BackingOff => {
                    let why = self.last_error.borrow().clone();
                    return Err(self.unreachable(why.unwrap_or_else(|| "the last attempt failed".into())));
                }
                PeerState::Closed => return Err(self.unreachable("this end closed the connection")),
            }
        }
    }

    async fn exchange<E: std::error::Error>(
        &self,
        opcode: u16,
        body: &[u8],
        lend: Lend,
        deadline: Nanos,
    ) -> Result<(Answered, Vec<Slice>), CallError<E>> {
        let _turn = self.calls.acquire(1).await;
        let link = self.connection().await?;
        let lost = |error: FabricError| match error {
            FabricError::Invalid(why) => CallError::Malformed { peer: self.name.clone(), why },
            other => self.unreachable(other.to_string()),
        };
        let (exposure, room) = match lend {
            Lend::None => (None, false),
            Lend::Data(data) => (Some(link.conn.lend(data).map_err(lost)?), false),
            Lend::Room(len) => (Some(link.conn.lend_room(len).await.map_err(lost)?), true),
        };
        let lent = match (exposure.as_ref().map(|e| e.desc()), room) {
            (None, _) => Lent::Nothing,
            (Some(desc), true) => Lent::Room(desc),
            (Some(desc), false) => Lent::Data(desc),
        };
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let left = deadline - self.ctx.now();
        let header = Header {
            opcode,
            deadline_us: u64::try_from(left.as_micros()).unwrap_or(u64::MAX),
            epoch: self.auth.epoch(),
            lent,
            ..Header::new(Kind::Request, id, self.auth.identity().incarnation)
        };
        let waiting = link.expect(id);
        link.conn.send(header.encode(body)).await.map_err(lost)?;
        let answered = waiting.answer().await;
        let pushed = exposure.map(|e| e.take()).unwrap_or_default();
        match answered {
            Some(answered) => Ok((answered, pushed)),
            None => Err(CallError::Transport { peer: self.name.clone(), why: link.why() }),
        }
    }

    fn read<R: Request>(
        &self,
        answered: Answered,
        pushed: Vec<Slice>,
    ) -> Result<Answer<R::Reply>, CallError<R::Error>> {
        let peer = || self.name.clone();
        if answered.refused {
            let refusal: Refusal =
                decode_body(&answered.body).map_err(|why| CallError::Malformed { peer: peer(), why })?;
            return Err(CallError::Refused { peer: peer(), refusal });
        }
        let result: Result<R::Reply, R::Error> =
            decode_body(&answered.body).map_err(|why| CallError::Malformed { peer: peer(), why })?;
        result.map(|reply| Answer { reply, pushed }).map_err(CallError::Service)
    }

    fn enter(&self, state: PeerState) {
        if self.state.get() != PeerState::Closed {
            self.state.set(state);
        }
        self.changed.notify_all();
    }

    async fn attempt(&self) -> Result<Rc<Link>, String> {
        let attempt = async {
            let conn = self.transport.connect(self.addr.clone()).await.map_err(HandshakeError::from)?;
            let remote = auth::connect(&self.ctx, &*conn, &self.auth, self.channel, &self.name).await?;
            if let Some(newest) = self.newest.get().filter(|newest| remote.incarnation < *newest) {
                return Err(HandshakeError::StalePeer { found: remote.incarnation, newest });
            }
            conn.admit();
            Ok(Rc::new(Link::new(&self.ctx, conn, remote, self.counters.clone())))
        };
        match self.ctx.timeout(self.limits.connect_timeout, attempt).await {
            Ok(result) => result.map_err(|e: HandshakeError| e.to_string()),
            Err(_) => Err(format!("no connection within {:?}", self.limits.connect_timeout)),
        }
    }

    /// A pause of `base`, shortened at random by up to a half, so that many do not come back at once.
    fn jitter(&self, base: Duration) -> Duration {
        base - base.mul_f64((self.ctx.random_u64() >> 12) as f64 / (1_u64 << 52) as f64 / 2.0)
    }
}

/// Keeps the connection: connects, runs it until it dies, pauses, comes back.
async fn drive(inner: Rc<Inner>) {
    let limits = inner.limits;
    let mut pause = limits.backoff_min;
    loop {
        inner.enter(PeerState::Connecting);
        match inner.attempt().await {
            Ok(link) => {
                count(&inner.counters, |c| c.connects += 1);
                inner.newest.set(Some(link.remote.incarnation));
                *inner.link.borrow_mut() = Some(link.clone());
                let since = inner.ctx.now();
                inner.enter(PeerState::Connected);
                let why = link.run(&limits, inner.auth.identity().incarnation).await;
                inner.link.take();
                *inner.last_error.borrow_mut() = Some(why);
                if inner.ctx.now() - since >= limits.backoff_max {
                    pause = limits.backoff_min;
                    continue; // It stood for a while: come back at once.
                }
            }
            Err(why) => {
                count(&inner.counters, |c| c.connect_failures += 1);
                tracing::debug!(peer = %inner.name, addr = %inner.addr, %why, "cannot connect");
                *inner.last_error.borrow_mut() = Some(why);
            }
        }
        inner.enter(PeerState::BackingOff);
        inner.ctx.sleep(inner.jitter(pause)).await;
        pause = (pause * 2).min(limits.backoff_max);
    }
}
