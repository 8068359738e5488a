//! One TCP connection: its state, and the calls on it.

use super::frame::{Header, Kind};
use super::input::Input;
use super::loan::{Loan, Room, TcpExposure};
use super::output::{Out, Output};
use super::{Core, Source};
use crate::ending::Ending;
use crate::limits::{
    BULK_FRAMES_MAX, CREDIT_BATCH, FRAME_DATA_MAX, LOAN_MAX, LOANS_MAX, STRANGER_WINDOW, WINDOW,
};
use crate::pieces;
use crate::{BulkDesc, Conn, ConnCounters, Exposure, FabricError, MESSAGE_MAX};
use cobalt_dma::{Buf, Slice};
use cobalt_reactor::sync::{OneSender, Permit, Semaphore, oneshot};
use futures::future::LocalBoxFuture;
use mio::Interest;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The connection as the poller knows it.
pub(crate) struct Io {
    pub(super) stream: mio::net::TcpStream,
    peer: String,
    key: Cell<usize>,
    pub(super) ending: Ending,
    /// The system has said that the connection stands.
    open: Cell<bool>,
    open_waker: RefCell<Option<Waker>>,
    pub(super) readable: Cell<bool>,
    pub(super) writable: Cell<bool>,
    pub(super) dirty: Cell<bool>,
    pub(super) admitted: Cell<bool>,
    pub(super) input: RefCell<Input>,
    pub(super) inbox: RefCell<VecDeque<Vec<u8>>>,
    pub(super) inbox_waker: RefCell<Option<Waker>>,
    /// Messages that the peer may still send, and those read since it was last told.
    pub(super) granted: Cell<u64>,
    consumed: Cell<u64>,
    pub(super) output: Output,
    /// Our window of messages; a spent credit waits in `spent` for the peer to give it back.
    credits: Semaphore,
    pub(super) spent: RefCell<Vec<Permit>>,
    pub(super) loans: RefCell<BTreeMap<u64, Loan>>,
    next_key: Cell<u64>,
    next_tag: Cell<u64>,
    pub(super) pulls: RefCell<BTreeMap<u64, Pull>>,
    pull_slots: Semaphore,
    pub(super) pushes: RefCell<BTreeMap<u64, Push>>,
    push_slots: Semaphore,
    /// Answers to the peer's pulls and pushes that wait for the socket.
    pub(super) pulls_waiting: Cell<u64>,
    pub(super) acks_waiting: Cell<u64>,
    pub(super) counters: Cell<ConnCounters>,
}

/// A pull that was asked for. It keeps its slot until the peer answers; the memory goes when the caller gives up.
pub(super) struct Pull {
    pub(super) length: usize,
    pub(super) buf: Option<Buf>,
    pub(super) done: OneSender<Result<Slice, FabricError>>,
    _slot: Permit,
}

pub(super) struct Push {
    pub(super) done: OneSender<Result<(), FabricError>>,
    _slot: Permit,
}

pub(super) fn count_conn(counters: &Cell<ConnCounters>, f: impl FnOnce(&mut ConnCounters)) {
    let mut now = counters.get();
    f(&mut now);
    counters.set(now);
}

impl Io {
    pub(super) fn closed(&self, why: &str) -> FabricError {
        FabricError::Closed { peer: self.peer.clone(), reason: why.to_owned() }
    }

    pub(super) fn protocol(&self, why: String) -> FabricError {
        FabricError::Protocol { peer: self.peer.clone(), reason: why }
    }

    pub(super) fn not_lent(&self) -> FabricError {
        FabricError::NotLent {
            peer: self.peer.clone(),
            reason: "the loan has ended, or the range is outside of it".into(),
        }
    }

    /// Does what the socket allows now.
    pub(super) fn drive(self: &Rc<Io>, core: &Core) {
        if self.ending.reason().is_some() {
            return;
        }
        let result = self.drive_socket(core);
        if let Err(error) = result {
            if matches!(error, FabricError::Protocol { .. }) {
                core.count(|c| c.protocol_errors += 1);
                tracing::warn!(%error, "connection dropped");
            }
            self.fail(core, error);
        } else if self.readable.get() || self.has_output() {
            core.mark(self);
        }
    }

    fn drive_socket(&self, core: &Core) -> Result<(), FabricError> {
        if !self.open.get() && !self.check_open()? {
            return Ok(());
        }
        self.read(core)?;
        self.write().map_err(|e| self.closed(&e.to_string()))
    }

    fn check_open(&self) -> Result<bool, FabricError> {
        if let Some(error) = self.stream.take_error().map_err(|e| self.closed(&e.to_string()))? {
            return Err(self.closed(&error.to_string()));
        }
        match self.stream.peer_addr() {
            Ok(_) => {
                self.open.set(true);
                if let Some(waker) = self.open_waker.take() {
                    waker.wake();
                }
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(e) => Err(self.closed(&e.to_string())),
        }
    }

    /// Ends the connection: everything pending fails, lent memory is void. Messages that arrived before stay readable.
    fn fail(&self, core: &Core, reason: FabricError) {
        if !self.ending.end(reason) {
            return;
        }
        let loans = std::mem::take(&mut *self.loans.borrow_mut());
        let pulls = std::mem::take(&mut *self.pulls.borrow_mut());
        let pushes = std::mem::take(&mut *self.pushes.borrow_mut());
        drop((loans, pulls, pushes));
        self.output.clear();
        for waker in [self.inbox_waker.take(), self.open_waker.take()].into_iter().flatten() {
            waker.wake();
        }
        let _ = self.stream.shutdown(Shutdown::Both); // It may be gone already.
        core.forget(self.key.get());
    }

    fn tag(&self) -> u64 {
        let tag = self.next_tag.get();
        self.next_tag.set(tag + 1);
        tag
    }
}

/// The owner's handle: dropping it closes the connection.
pub(super) struct TcpConn {
    core: Rc<Core>,
    io: Rc<Io>,
}

impl TcpConn {
    pub(super) fn new(
        core: &Rc<Core>,
        mut stream: mio::net::TcpStream,
        peer: String,
        open: bool,
    ) -> io::Result<TcpConn> {
        if open {
            stream.set_nodelay(true)?;
        }
        let key = core.sources.borrow().vacant_key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        core.poll.borrow().registry().register(&mut stream, mio::Token(key), interest)?;
        let credits = Semaphore::new(WINDOW);
        let spent = (STRANGER_WINDOW..WINDOW).filter_map(|_| credits.try_acquire(1)).collect();
        let io = Rc::new(Io {
            stream,
            peer,
            key: Cell::new(key),
            ending: Ending::default(),
            open: Cell::new(open),
            open_waker: RefCell::default(),
            readable: Cell::new(open),
            writable: Cell::new(open),
            dirty: Cell::new(false),
            admitted: Cell::new(false),
            input: RefCell::default(),
            inbox: RefCell::default(),
            inbox_waker: RefCell::default(),
            granted: Cell::new(STRANGER_WINDOW),
            consumed: Cell::new(0),
            output: Output::default(),
            credits,
            spent: RefCell::new(spent),
            loans: RefCell::default(),
            next_key: Cell::new(core.ctx.random_u64()),
            next_tag: Cell::new(1),
            pulls: RefCell::default(),
            pull_slots: Semaphore::new(BULK_FRAMES_MAX),
            pushes: RefCell::default(),
            push_slots: Semaphore::new(BULK_FRAMES_MAX),
            pulls_waiting: Cell::new(0),
            acks_waiting: Cell::new(0),
            counters: Cell::default(),
        });
        let inserted = core.sources.borrow_mut().insert(Source::Conn(io.clone()));
        assert_eq!(inserted, key, "nothing is registered in between");
        core.mark(&io);
        Ok(TcpConn { core: core.clone(), io })
    }

    /// Waits until the connection stands.
    pub(super) async fn opened(&self) -> Result<(), FabricError> {
        let open = poll_fn(|cx| {
            if self.io.open.get() {
                return Poll::Ready(());
            }
            *self.io.open_waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        });
        self.io.ending.guard(open).await?;
        self.io.stream.set_nodelay(true).map_err(|e| self.io.closed(&e.to_string()))
    }

    fn mark(&self) {
        self.core.mark(&self.io);
    }

    /// Takes memory for `len` bytes: buffers of [`FRAME_DATA_MAX`], the last one shorter.
    async fn take_memory(&self, len: u64) -> Result<Vec<Buf>, FabricError> {
        let several = len > FRAME_DATA_MAX as u64;
        let turn =
            if several { Some(self.io.ending.guard(self.core.several.acquire(1)).await?) } else { None };
        let mut bufs = Vec::new();
        let mut rest = len;
        while rest > 0 {
            let size = usize::try_from(rest).unwrap_or(FRAME_DATA_MAX).min(FRAME_DATA_MAX);
            bufs.push(self.io.ending.guard(self.core.arena.alloc(size)).await?);
            rest -= size as u64;
        }
        drop(turn);
        Ok(bufs)
    }

    fn insert(&self, loan: Loan, len: u64) -> Result<Box<dyn Exposure>, FabricError> {
        self.io.ending.check()?;
        if self.io.loans.borrow().len() >= LOANS_MAX {
            return Err(FabricError::Invalid(format!("more than {LOANS_MAX} loans on one connection")));
        }
        let key = self.io.next_key.get();
        self.io.next_key.set(key.wrapping_add(1));
        self.io.loans.borrow_mut().insert(key, loan);
        Ok(Box::new(TcpExposure { io: self.io.clone(), desc: BulkDesc { key, len } }))
    }
}

fn check_loan(len: u64) -> Result<(), FabricError> {
    if len <= LOAN_MAX {
        return Ok(());
    }
    Err(FabricError::Invalid(format!("{len} bytes at one time are above the limit of {LOAN_MAX}")))
}

/// Gives the memory of pulls back whose caller has gone.
struct Abandon<'a> {
    io: &'a Io,
    tags: Vec<u64>,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        for tag in &self.tags {
            if let Some(pull) = self.io.pulls.borrow_mut().get_mut(tag) {
                pull.buf = None;
            }
        }
    }
}

impl Conn for TcpConn {
    fn peer(&self) -> String {
        self.io.peer.clone()
    }

    fn transport(&self) -> &'static str {
        "tcp"
    }

    fn admit(&self) {
        if !self.io.admitted.replace(true) {
            let grant = WINDOW - STRANGER_WINDOW + self.io.consumed.replace(0);
            self.grant(grant);
        }
    }

    fn send(&self, message: Vec<u8>) -> LocalBoxFuture<'_, Result<(), FabricError>> {
        Box::pin(async move {
            if message.len() > MESSAGE_MAX {
                return Err(FabricError::Invalid(format!(
                    "a message of {} bytes is above the limit of {MESSAGE_MAX}",
                    message.len()
                )));
            }
            self.io.ending.check()?;
            let credit = self.io.ending.guard(self.io.credits.acquire(1)).await?;
            self.io.ending.check()?;
            self.io.spent.borrow_mut().push(credit);
            self.io.output.control(Out::Message(message));
            count_conn(&self.io.counters, |c| c.sent += 1);
            self.mark();
            Ok(())
        })
    }

    fn recv(&self) -> LocalBoxFuture<'_, Result<Vec<u8>, FabricError>> {
        Box::pin(poll_fn(|cx| {
            let next = self.io.inbox.borrow_mut().pop_front();
            if let Some(message) = next {
                count_conn(&self.io.counters, |c| c.received += 1);
                self.io.consumed.set(self.io.consumed.get() + 1);
                let batch = if self.io.admitted.get() { CREDIT_BATCH } else { 1 };
                if self.io.consumed.get() >= batch {
                    self.grant(self.io.consumed.replace(0));
                }
                return Poll::Ready(Ok(message));
            }
            if let Some(reason) = self.io.ending.reason() {
                return Poll::Ready(Err(reason));
            }
            *self.io.inbox_waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }))
    }

    fn lend(&self, data: Vec<Slice>) -> Result<Box<dyn Exposure>, FabricError> {
        let len = pieces::total(&data);
        check_loan(len)?;
        self.insert(Loan::Data(data), len)
    }

    fn lend_room(&self, len: usize) -> LocalBoxFuture<'_, Result<Box<dyn Exposure>, FabricError>> {
        Box::pin(async move {
            let len = len as u64;
            check_loan(len)?;
            self.io.ending.check()?;
            let bufs = self.take_memory(len).await?;
            self.insert(Loan::Room(Room::new(bufs)), len)
        })
    }

    fn get(
        &self,
        desc: BulkDesc,
        offset: u64,
        len: u64,
    ) -> LocalBoxFuture<'_, Result<Vec<Slice>, FabricError>> {
        Box::pin(async move {
            check_loan(len)?;
            self.io.ending.check()?;
            let mut asked = Abandon { io: &self.io, tags: Vec::new() };
            let mut answers = Vec::new();
            let mut at = offset;
            for buf in self.take_memory(len).await? {
                let slot = self.io.ending.guard(self.io.pull_slots.acquire(1)).await?;
                self.io.ending.check()?;
                let (done, answer) = oneshot();
                let (tag, length) = (self.io.tag(), buf.len());
                let pull = Pull { length, buf: Some(buf), done, _slot: slot };
                self.io.pulls.borrow_mut().insert(tag, pull);
                asked.tags.push(tag);
                answers.push(answer);
                let header = Header { kind: Kind::PullRequest, length, key: desc.key, offset: at, tag };
                self.io.output.control(Out::Plain(header));
                self.mark();
                at = at.wrapping_add(length as u64); // A range past the end is the lender's to refuse.
            }
            let mut data = Vec::with_capacity(answers.len());
            for answer in answers {
                let slice = self.io.ending.guard(answer).await?;
                data.push(slice.ok_or_else(|| self.io.closed("the pull was not answered"))??);
            }
            count_conn(&self.io.counters, |c| c.pulls += 1);
            Ok(data)
        })
    }

    fn put(
        &self,
        desc: BulkDesc,
        offset: u64,
        data: Vec<Slice>,
    ) -> LocalBoxFuture<'_, Result<(), FabricError>> {
        Box::pin(async move {
            let len = pieces::total(&data);
            check_loan(len)?;
            self.io.ending.check()?;
            let mut answers = Vec::new();
            let mut at = 0;
            while at < len {
                let slot = self.io.ending.guard(self.io.push_slots.acquire(1)).await?;
                self.io.ending.check()?;
                let size = (len - at).min(FRAME_DATA_MAX as u64);
                let part = pieces::cut(&data, at, size).unwrap_or_default();
                let (done, answer) = oneshot();
                let tag = self.io.tag();
                self.io.pushes.borrow_mut().insert(tag, Push { done, _slot: slot });
                answers.push(answer);
                let length = usize::try_from(size).unwrap_or(FRAME_DATA_MAX);
                let (key, offset) = (desc.key, offset.wrapping_add(at));
                let header = Header { kind: Kind::PushData, length, key, offset, tag };
                self.io.output.bulk(Out::Push { header, data: part });
                self.mark();
                at += size;
            }
            for answer in answers {
                let done = self.io.ending.guard(answer).await?;
                done.ok_or_else(|| self.io.closed("the push was not answered"))??;
            }
            count_conn(&self.io.counters, |c| c.pushes += 1);
            Ok(())
        })
    }

    fn close(&self) {
        if self.io.ending.reason().is_none() {
            self.io.output.control(Out::Plain(Header::new(Kind::Close, 0)));
            let _ = self.io.write(); // As far as the socket takes it; the end of the stream says the same.
        }
        self.io.inbox.borrow_mut().clear();
        self.io.fail(&self.core, self.io.closed("closed by this end"));
    }

    fn counters(&self) -> ConnCounters {
        self.io.counters.get()
    }
}

impl TcpConn {
    fn grant(&self, messages: u64) {
        if self.io.ending.reason().is_some() {
            return;
        }
        self.io.granted.set(self.io.granted.get() + messages);
        let length = usize::try_from(messages).unwrap_or(usize::MAX);
        self.io.output.control(Out::Plain(Header::new(Kind::Credit, length)));
        self.mark();
    }
}

impl Drop for TcpConn {
    fn drop(&mut self) {
        self.close();
    }
}
