//! Connections between parts of one process on one reactor. Bulk hands slices over; nothing is copied
//! unless the lender's slices break the alignment that `get` promises.

use crate::ending::Ending;
use crate::limits::{BACKLOG_MAX, FRAME_DATA_MAX, LOAN_MAX, LOANS_MAX, STRANGER_WINDOW, WINDOW};
use crate::pieces;
use crate::{
    BulkDesc, Conn, ConnCounters, Exposure, FabricError, Listener, MESSAGE_MAX, PeerAddr,
    STRANGER_MESSAGE_MAX, Transport,
};
use cobalt_dma::{Arena, Slice};
use cobalt_reactor::Ctx;
use cobalt_reactor::sync::{Permit, Semaphore};
use futures::future::LocalBoxFuture;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The names that parts of this process listen at. Passed around; there is no global one.
#[derive(Clone)]
pub struct LocalNet(Rc<Net>);

struct Net {
    ctx: Ctx,
    arena: Arena,
    listeners: RefCell<BTreeMap<String, Rc<Backlog>>>,
}

#[derive(Default)]
struct Backlog {
    waiting: RefCell<VecDeque<Rc<LocalConn>>>,
    waker: RefCell<Option<Waker>>,
}

impl LocalNet {
    /// A net without listeners. `arena` serves the copies that alignment demands.
    pub fn new(ctx: &Ctx, arena: &Arena) -> LocalNet {
        LocalNet(Rc::new(Net { ctx: ctx.clone(), arena: arena.clone(), listeners: RefCell::default() }))
    }

    /// The transport of the part called `name`.
    pub fn transport(&self, name: &str) -> LocalTransport {
        LocalTransport { net: self.clone(), name: name.to_owned() }
    }
}

/// Opens local connections in the name of one part of the process.
pub struct LocalTransport {
    net: LocalNet,
    name: String,
}

impl Transport for LocalTransport {
    fn connect(&self, addr: PeerAddr) -> LocalBoxFuture<'_, Result<Rc<dyn Conn>, FabricError>> {
        Box::pin(async move {
            let unreachable =
                |reason: &str| FabricError::Unreachable { peer: addr.to_string(), reason: reason.to_owned() };
            let PeerAddr::Local(name) = &addr else {
                return Err(unreachable("the local transport connects only to local addresses"));
            };
            let backlog = self.net.0.listeners.borrow().get(name).cloned();
            let backlog = backlog.ok_or_else(|| unreachable("nobody listens there"))?;
            if backlog.waiting.borrow().len() >= BACKLOG_MAX {
                return Err(unreachable("too many connections wait to be accepted"));
            }
            let (ours, theirs) = pair(&self.net.0, format!("local:{}", self.name), addr.to_string());
            backlog.waiting.borrow_mut().push_back(theirs);
            if let Some(waker) = backlog.waker.take() {
                waker.wake();
            }
            Ok(ours as Rc<dyn Conn>)
        })
    }

    fn listen(&self, addr: PeerAddr) -> LocalBoxFuture<'_, Result<Box<dyn Listener>, FabricError>> {
        Box::pin(async move {
            let PeerAddr::Local(name) = addr else {
                return Err(FabricError::Invalid(format!("the local transport cannot listen at {addr}")));
            };
            let mut listeners = self.net.0.listeners.borrow_mut();
            if listeners.contains_key(&name) {
                return Err(FabricError::Invalid(format!("somebody listens at local:{name} already")));
            }
            let backlog = Rc::new(Backlog::default());
            listeners.insert(name.clone(), backlog.clone());
            let listener: Box<dyn Listener> =
                Box::new(LocalListener { net: self.net.clone(), name, backlog });
            Ok(listener)
        })
    }
}

struct LocalListener {
    net: LocalNet,
    name: String,
    backlog: Rc<Backlog>,
}

impl Listener for LocalListener {
    fn addr(&self) -> PeerAddr {
        PeerAddr::Local(self.name.clone())
    }

    fn accept(&self) -> LocalBoxFuture<'_, Result<Rc<dyn Conn>, FabricError>> {
        Box::pin(poll_fn(|cx| match self.backlog.waiting.borrow_mut().pop_front() {
            Some(conn) => Poll::Ready(Ok(conn as Rc<dyn Conn>)),
            None => {
                *self.backlog.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }))
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        self.net.0.listeners.borrow_mut().remove(&self.name);
    }
}

/// One end's half of a connection.
struct Side {
    peer: String,
    inbox: RefCell<VecDeque<(Vec<u8>, Permit)>>,
    waker: RefCell<Option<Waker>>,
    /// Room in the inbox.
    credits: Semaphore,
    /// Keeps the room small until this end admits the other.
    withheld: RefCell<Option<Permit>>,
    loans: RefCell<BTreeMap<u64, Loan>>,
    next_key: Cell<u64>,
    counters: Cell<ConnCounters>,
}

enum Loan {
    Data(Vec<Slice>),
    Room { len: u64, filled: BTreeMap<u64, Slice> },
}

struct Pair {
    arena: Arena,
    ending: Ending,
    sides: [Side; 2],
}

struct LocalConn {
    pair: Rc<Pair>,
    end: usize,
}

fn pair(net: &Net, first: String, second: String) -> (Rc<LocalConn>, Rc<LocalConn>) {
    let side = |peer: String| {
        let credits = Semaphore::new(WINDOW);
        let withheld = credits.try_acquire(WINDOW - STRANGER_WINDOW);
        Side {
            peer,
            inbox: RefCell::default(),
            waker: RefCell::default(),
            credits,
            withheld: RefCell::new(withheld),
            loans: RefCell::default(),
            next_key: Cell::new(net.ctx.random_u64()),
            counters: Cell::default(),
        }
    };
    let sides = [side(second), side(first)];
    let pair = Rc::new(Pair { arena: net.arena.clone(), ending: Ending::default(), sides });
    (Rc::new(LocalConn { pair: pair.clone(), end: 0 }), Rc::new(LocalConn { pair, end: 1 }))
}

impl Pair {
    fn close(&self, reason: &str) {
        // One reason for both ends; the peer's name is the closer's view of it.
        let peer = self.sides.first().map_or_else(String::new, |s| s.peer.clone());
        if self.ending.end(FabricError::Closed { peer, reason: reason.to_owned() }) {
            for side in &self.sides {
                side.loans.borrow_mut().clear();
                if let Some(waker) = side.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

impl LocalConn {
    fn side(&self) -> &Side {
        let [first, second] = &self.pair.sides;
        if self.end == 0 { first } else { second }
    }

    fn other(&self) -> &Side {
        let [first, second] = &self.pair.sides;
        if self.end == 0 { second } else { first }
    }

    fn count(&self, f: impl FnOnce(&mut ConnCounters)) {
        let mut counters = self.side().counters.get();
        f(&mut counters);
        self.side().counters.set(counters);
    }

    fn not_lent(&self, reason: &str) -> FabricError {
        FabricError::NotLent { peer: self.side().peer.clone(), reason: reason.to_owned() }
    }

    fn insert(&self, loan: Loan, len: u64) -> Result<Box<dyn Exposure>, FabricError> {
        self.pair.ending.check()?;
        let side = self.side();
        if len > LOAN_MAX {
            return Err(FabricError::Invalid(format!(
                "a loan of {len} bytes is above the limit of {LOAN_MAX}"
            )));
        }
        if side.loans.borrow().len() >= LOANS_MAX {
            return Err(FabricError::Invalid(format!("more than {LOANS_MAX} loans on one connection")));
        }
        let key = side.next_key.get();
        side.next_key.set(key.wrapping_add(1));
        side.loans.borrow_mut().insert(key, loan);
        Ok(Box::new(LocalExposure { pair: self.pair.clone(), end: self.end, desc: BulkDesc { key, len } }))
    }

    fn lent(&self, desc: BulkDesc, offset: u64, len: u64) -> Result<Vec<Slice>, FabricError> {
        match self.other().loans.borrow().get(&desc.key) {
            Some(Loan::Data(data)) => pieces::cut(data, offset, len)
                .ok_or_else(|| self.not_lent("the range is outside of the loan")),
            Some(Loan::Room { .. }) => Err(self.not_lent("the loan is room, not data")),
            None => Err(self.not_lent("the loan has ended")),
        }
    }

    /// The same bytes in slices that are multiples of 4 KiB: a copy, and counted as one.
    async fn realign(&self, data: &[Slice], len: u64) -> Result<Vec<Slice>, FabricError> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < len {
            let size = (len - at).min(FRAME_DATA_MAX as u64);
            let room = usize::try_from(size).map_err(|_| self.not_lent("the range is too large"))?;
            let mut buf = self.pair.ending.guard(self.pair.arena.alloc(room)).await?;
            let mut rest = &mut buf[..];
            for piece in pieces::cut(data, at, size).unwrap_or_default() {
                let (place, after) = rest.split_at_mut(piece.len());
                place.copy_from_slice(&piece);
                rest = after;
            }
            self.count(|c| c.copied_bytes += size);
            cobalt_dma::copied::add(room);
            out.push(buf.freeze());
            at += size;
        }
        Ok(out)
    }

    fn store(&self, desc: BulkDesc, offset: u64, data: Vec<Slice>) -> Result<(), FabricError> {
        let size = pieces::total(&data);
        let mut loans = self.other().loans.borrow_mut();
        let Some(loan) = loans.get_mut(&desc.key) else { return Err(self.not_lent("the loan has ended")) };
        let Loan::Room { len, filled } = loan else {
            return Err(self.not_lent("the loan is data, not room"));
        };
        let end = offset.checked_add(size).filter(|end| *end <= *len);
        let Some(end) = end else { return Err(self.not_lent("the range is outside of the loan")) };
        let before = filled.range(..end).next_back().map_or(0, |(at, slice)| at + slice.len() as u64);
        if before > offset {
            return Err(self.not_lent("the range overlaps one that is filled"));
        }
        let mut at = offset;
        for slice in data {
            let next = at + slice.len() as u64;
            if next > at {
                filled.insert(at, slice);
            }
            at = next;
        }
        Ok(())
    }
}

impl Conn for LocalConn {
    fn peer(&self) -> String {
        self.side().peer.clone()
    }

    fn transport(&self) -> &'static str {
        "local"
    }

    fn admit(&self) {
        self.side().withheld.borrow_mut().take();
    }

    fn send(&self, message: Vec<u8>) -> LocalBoxFuture<'_, Result<(), FabricError>> {
        Box::pin(async move {
            let other = self.other();
            let stranger = other.withheld.borrow().is_some();
            let limit = if stranger { STRANGER_MESSAGE_MAX } else { MESSAGE_MAX };
            if message.len() > limit {
                return Err(FabricError::Invalid(format!(
                    "a message of {} bytes is above the limit of {limit}",
                    message.len()
                )));
            }
            self.pair.ending.check()?;
            let credit = self.pair.ending.guard(other.credits.acquire(1)).await?;
            self.pair.ending.check()?;
            other.inbox.borrow_mut().push_back((message, credit));
            if let Some(waker) = other.waker.take() {
                waker.wake();
            }
            self.count(|c| c.sent += 1);
            Ok(())
        })
    }

    fn recv(&self) -> LocalBoxFuture<'_, Result<Vec<u8>, FabricError>> {
        Box::pin(poll_fn(|cx| {
            let side = self.side();
            let next = side.inbox.borrow_mut().pop_front();
            if let Some((message, _credit)) = next {
                self.count(|c| c.received += 1);
                return Poll::Ready(Ok(message));
            }
            if let Some(reason) = self.pair.ending.reason() {
                return Poll::Ready(Err(reason));
            }
            *side.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }))
    }

    fn lend(&self, data: Vec<Slice>) -> Result<Box<dyn Exposure>, FabricError> {
        let len = pieces::total(&data);
        self.insert(Loan::Data(data), len)
    }

    fn lend_room(&self, len: usize) -> LocalBoxFuture<'_, Result<Box<dyn Exposure>, FabricError>> {
        let len = len as u64;
        let exposure = self.insert(Loan::Room { len, filled: BTreeMap::new() }, len);
        Box::pin(std::future::ready(exposure))
    }

    fn get(
        &self,
        desc: BulkDesc,
        offset: u64,
        len: u64,
    ) -> LocalBoxFuture<'_, Result<Vec<Slice>, FabricError>> {
        Box::pin(async move {
            self.pair.ending.check()?;
            if len == 0 {
                return Ok(Vec::new());
            }
            let mut data = self.lent(desc, offset, len)?;
            if !pieces::aligned(&data) {
                data = self.realign(&data, len).await?;
            }
            self.count(|c| {
                c.pulls += 1;
                c.pull_bytes += len;
            });
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
            self.pair.ending.check()?;
            let len = pieces::total(&data);
            if len == 0 {
                return Ok(());
            }
            self.store(desc, offset, data)?;
            self.count(|c| {
                c.pushes += 1;
                c.push_bytes += len;
            });
            Ok(())
        })
    }

    fn close(&self) {
        self.side().inbox.borrow_mut().clear();
        self.pair.close("closed by one of its ends");
    }

    fn counters(&self) -> ConnCounters {
        self.side().counters.get()
    }
}

impl Drop for LocalConn {
    fn drop(&mut self) {
        self.close();
    }
}

struct LocalExposure {
    pair: Rc<Pair>,
    end: usize,
    desc: BulkDesc,
}

impl LocalExposure {
    fn end(&self) -> Option<Loan> {
        self.pair.sides.get(self.end).and_then(|side| side.loans.borrow_mut().remove(&self.desc.key))
    }
}

impl Exposure for LocalExposure {
    fn desc(&self) -> BulkDesc {
        self.desc
    }

    fn take(self: Box<Self>) -> Vec<Slice> {
        let Some(Loan::Room { filled, .. }) = self.end() else { return Vec::new() };
        let mut next = 0;
        let in_order = filled.into_iter().take_while(|(at, slice)| {
            let fits = *at == next;
            next = at + slice.len() as u64;
            fits
        });
        in_order.map(|(_, slice)| slice).collect()
    }
}

impl Drop for LocalExposure {
    fn drop(&mut self) {
        drop(self.end());
    }
}
