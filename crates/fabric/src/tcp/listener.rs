//! A listening socket and the connections that wait to be accepted.

use super::conn::TcpConn;
use super::{Core, Source};
use crate::limits::BACKLOG_MAX;
use crate::{Conn, FabricError, Listener, PeerAddr};
use futures::future::LocalBoxFuture;
use mio::Interest;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

/// Pause when the system has no descriptor left for a connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct ListenIo {
    socket: mio::net::TcpListener,
    addr: SocketAddr,
    key: Cell<usize>,
    pub(super) readable: Cell<bool>,
    pub(super) dirty: Cell<bool>,
    waiting: RefCell<VecDeque<Rc<TcpConn>>>,
    waker: RefCell<Option<Waker>>,
    core: Weak<Core>,
}

pub(super) struct TcpListener {
    core: Rc<Core>,
    io: Rc<ListenIo>,
}

impl TcpListener {
    pub(super) fn bind(core: &Rc<Core>, addr: SocketAddr) -> io::Result<TcpListener> {
        // mio sets SO_REUSEADDR, so that a restarted process gets its port back at once.
        let mut socket = mio::net::TcpListener::bind(addr)?;
        let addr = socket.local_addr()?;
        let registry = core.poll.borrow().registry().try_clone()?;
        let key = core.sources.borrow().vacant_key();
        registry.register(&mut socket, mio::Token(key), Interest::READABLE)?;
        let io = Rc::new(ListenIo {
            socket,
            addr,
            key: Cell::new(key),
            readable: Cell::new(true),
            dirty: Cell::new(false),
            waiting: RefCell::default(),
            waker: RefCell::default(),
            core: Rc::downgrade(core),
        });
        let inserted = core.sources.borrow_mut().insert(Source::Listener(io.clone()));
        assert_eq!(inserted, key, "nothing is registered in between");
        core.mark_listener(&io);
        Ok(TcpListener { core: core.clone(), io })
    }
}

impl ListenIo {
    /// Accepts until the system has no more, or too many wait here.
    pub(super) fn drive(self: &Rc<ListenIo>, core: &Core) {
        let Some(owner) = self.core.upgrade() else { return };
        while self.readable.get() && self.waiting.borrow().len() < BACKLOG_MAX {
            match self.socket.accept() {
                Ok((stream, from)) => {
                    core.count(|c| c.accepted += 1);
                    match TcpConn::new(&owner, stream, format!("tcp://{from}"), true) {
                        Ok(conn) => self.waiting.borrow_mut().push_back(Rc::new(conn)),
                        Err(e) => {
                            tracing::debug!(%from, error = %e, "a connection failed as it was accepted")
                        }
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable.set(false),
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept connections for the moment");
                    let (io, ctx) = (self.clone(), core.ctx.clone());
                    core.ctx.spawn(async move {
                        ctx.sleep(EXHAUSTED_PAUSE).await;
                        if let Some(core) = io.core.upgrade() {
                            core.mark_listener(&io);
                        }
                    });
                    break;
                }
            }
        }
        if !self.waiting.borrow().is_empty()
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }
}

impl Listener for TcpListener {
    fn addr(&self) -> PeerAddr {
        PeerAddr::Tcp(self.io.addr)
    }

    fn accept(&self) -> LocalBoxFuture<'_, Result<Rc<dyn Conn>, FabricError>> {
        Box::pin(poll_fn(|cx| {
            let next = self.io.waiting.borrow_mut().pop_front();
            if self.io.readable.get() {
                self.core.mark_listener(&self.io); // There is room again.
            }
            if let Some(conn) = next {
                return Poll::Ready(Ok(conn as Rc<dyn Conn>));
            }
            *self.io.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }))
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.core.forget(self.io.key.get());
        let waiting = std::mem::take(&mut *self.io.waiting.borrow_mut());
        drop(waiting);
    }
}
