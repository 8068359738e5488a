//! Connections over TCP sockets: one epoll instance per transport, driven by the reactor.
//!
//! Nothing is allocated on the socket's behalf: a pull's memory is there before the pull is asked for, room
//! for a push before it is lent, and messages are bounded by credits. So a full arena holds up those who
//! ask for memory, and never a socket.

mod conn;
mod frame;
mod input;
mod listener;
mod loan;
mod output;

use crate::{Conn, FabricError, Listener, PeerAddr, Transport};
use cobalt_dma::Arena;
use cobalt_reactor::sync::Semaphore;
use cobalt_reactor::{Ctx, Park, Poller};
use conn::{Io, TcpConn};
use futures::future::LocalBoxFuture;
use listener::{ListenIo, TcpListener};
use mio::{Events, Poll};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::Duration;

/// Events taken from the system at one time.
const EVENTS_MAX: usize = 256;
/// Bytes of the buffer that payload nobody waits for any more is read into.
const SCRATCH: usize = 64 << 10;

/// Exact counts of a transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Connections accepted from the system.
    pub accepted: u64,
    /// Connections opened.
    pub connected: u64,
    /// Connections dropped because the peer broke the protocol.
    pub protocol_errors: u64,
}

/// The TCP transport of one reactor. Clones share it.
#[derive(Clone)]
pub struct TcpTransport(Rc<Core>);

pub(crate) struct Core {
    ctx: Ctx,
    arena: Arena,
    poll: RefCell<Poll>,
    events: RefCell<Events>,
    sources: RefCell<Slab<Source>>,
    /// Who has something to do, whatever the system says.
    dirty: RefCell<Vec<Source>>,
    /// Held by who takes several buffers, so that no two wait for each other's.
    several: Semaphore,
    scratch: RefCell<Vec<u8>>,
    counters: Cell<TcpCounters>,
}

#[derive(Clone)]
enum Source {
    Conn(Rc<Io>),
    Listener(Rc<ListenIo>),
}

impl TcpTransport {
    /// A transport on `ctx`'s reactor that receives payload into `arena`.
    ///
    /// # Errors
    /// What the system said when it refused an epoll instance.
    pub fn new(ctx: &Ctx, arena: &Arena) -> io::Result<TcpTransport> {
        let core = Rc::new(Core {
            ctx: ctx.clone(),
            arena: arena.clone(),
            poll: RefCell::new(Poll::new()?),
            events: RefCell::new(Events::with_capacity(EVENTS_MAX)),
            sources: RefCell::default(),
            dirty: RefCell::default(),
            several: Semaphore::new(1),
            scratch: RefCell::new(vec![0; SCRATCH]),
            counters: Cell::default(),
        });
        let poller: Rc<dyn Poller> = core.clone();
        ctx.add_poller(Rc::downgrade(&poller));
        Ok(TcpTransport(core))
    }

    /// The counters now.
    pub fn counters(&self) -> TcpCounters {
        self.0.counters.get()
    }
}

impl Transport for TcpTransport {
    fn connect(&self, addr: PeerAddr) -> LocalBoxFuture<'_, Result<Rc<dyn Conn>, FabricError>> {
        Box::pin(async move {
            let peer = addr.to_string();
            let unreachable =
                |why: &dyn ToString| FabricError::Unreachable { peer: peer.clone(), reason: why.to_string() };
            let socket = tcp_addr(&addr)
                .ok_or_else(|| unreachable(&"the TCP transport connects only to TCP addresses"))?;
            loopback(socket)?;
            let stream = mio::net::TcpStream::connect(socket).map_err(|e| unreachable(&e))?;
            let conn = TcpConn::new(&self.0, stream, peer.clone(), false).map_err(|e| unreachable(&e))?;
            conn.opened().await.map_err(|e| match e {
                FabricError::Closed { reason, .. } => unreachable(&reason),
                other => other,
            })?;
            self.0.count(|c| c.connected += 1);
            Ok(Rc::new(conn) as Rc<dyn Conn>)
        })
    }

    fn listen(&self, addr: PeerAddr) -> LocalBoxFuture<'_, Result<Box<dyn Listener>, FabricError>> {
        Box::pin(async move {
            let socket = tcp_addr(&addr)
                .ok_or_else(|| FabricError::Invalid(format!("the TCP transport cannot listen at {addr}")))?;
            loopback(socket)?;
            let listener = TcpListener::bind(&self.0, socket).map_err(|e| FabricError::Unreachable {
                peer: addr.to_string(),
                reason: format!("cannot listen: {e}"),
            })?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }
}

fn tcp_addr(addr: &PeerAddr) -> Option<SocketAddr> {
    match addr {
        PeerAddr::Tcp(socket) => Some(*socket),
        PeerAddr::Local(_) => None,
    }
}

fn loopback(addr: SocketAddr) -> Result<(), FabricError> {
    if addr.ip().is_loopback() {
        return Ok(());
    }
    Err(FabricError::Invalid(format!(
        "tcp://{addr} is not a loopback address: without TLS, TCP stays on this host; use 127.0.0.1 or [::1]"
    )))
}

impl Core {
    fn count(&self, f: impl FnOnce(&mut TcpCounters)) {
        let mut counters = self.counters.get();
        f(&mut counters);
        self.counters.set(counters);
    }

    /// Forgets a source; its descriptor leaves the epoll instance when it is closed.
    fn forget(&self, key: usize) {
        let source = self.sources.borrow_mut().try_remove(key);
        drop(source);
    }

    fn mark(&self, io: &Rc<Io>) {
        if !io.dirty.replace(true) {
            self.dirty.borrow_mut().push(Source::Conn(io.clone()));
        }
    }

    fn mark_listener(&self, io: &Rc<ListenIo>) {
        if !io.dirty.replace(true) {
            self.dirty.borrow_mut().push(Source::Listener(io.clone()));
        }
    }

    /// Takes readiness from the system.
    fn take_events(&self) -> bool {
        let mut events = self.events.borrow_mut();
        if let Err(e) = self.poll.borrow_mut().poll(&mut events, Some(Duration::ZERO)) {
            if e.kind() != io::ErrorKind::Interrupted {
                tracing::error!(error = %e, "epoll failed");
            }
            return false;
        }
        for event in events.iter() {
            // A source that is gone may have left an event behind; one that took its place looks once for nothing.
            let source = self.sources.borrow().get(event.token().0).cloned();
            match source {
                Some(Source::Conn(io)) => {
                    let failed = event.is_error() || event.is_read_closed();
                    io.readable.set(io.readable.get() || event.is_readable() || failed);
                    io.writable.set(io.writable.get() || event.is_writable() || event.is_error());
                    self.mark(&io);
                }
                Some(Source::Listener(io)) => {
                    io.readable.set(true);
                    self.mark_listener(&io);
                }
                None => {}
            }
        }
        !events.is_empty()
    }
}

impl Poller for Core {
    fn poll(&self) -> bool {
        let mut progress = self.take_events();
        let dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        for source in dirty {
            progress = true;
            match source {
                Source::Conn(io) => {
                    io.dirty.set(false);
                    io.drive(self);
                }
                Source::Listener(io) => {
                    io.dirty.set(false);
                    io.drive(self);
                }
            }
        }
        progress
    }

    fn arm(&self) -> Park {
        if self.dirty.borrow().is_empty() { Park::Fd(self.poll.borrow().as_raw_fd()) } else { Park::Busy }
    }
}
