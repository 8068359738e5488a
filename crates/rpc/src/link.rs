//! The calling side of one connection: hands answers to those who wait, notices silence.

use crate::PeerLimits;
use crate::auth::Identity;
use crate::frame::{Header, Kind};
use crate::peer::{PeerCounters, count};
use cobalt_fabric::Conn;
use cobalt_reactor::Ctx;
use cobalt_reactor::sync::{OneReceiver, OneSender, oneshot};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

pub(crate) struct Link {
    ctx: Ctx,
    pub(crate) conn: Rc<dyn Conn>,
    pub(crate) remote: Identity,
    pending: RefCell<BTreeMap<u64, OneSender<Answered>>>,
    why: RefCell<Option<String>>,
    counters: Rc<Cell<PeerCounters>>,
}

/// What came back for a call.
pub(crate) struct Answered {
    pub(crate) refused: bool,
    pub(crate) body: Vec<u8>,
}

/// A call that waits; dropping it forgets the call.
pub(crate) struct Waiting<'a> {
    link: &'a Link,
    id: u64,
    answer: OneReceiver<Answered>,
}

impl Waiting<'_> {
    /// What came back, or `None` when the connection died first.
    pub(crate) async fn answer(mut self) -> Option<Answered> {
        (&mut self.answer).await
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.link.pending.borrow_mut().remove(&self.id);
    }
}

impl Link {
    pub(crate) fn new(
        ctx: &Ctx,
        conn: Rc<dyn Conn>,
        remote: Identity,
        counters: Rc<Cell<PeerCounters>>,
    ) -> Link {
        Link {
            ctx: ctx.clone(),
            conn,
            remote,
            pending: RefCell::default(),
            why: RefCell::default(),
            counters,
        }
    }

    /// Makes a place for the answer to call `id`.
    pub(crate) fn expect(&self, id: u64) -> Waiting<'_> {
        let (sender, answer) = oneshot();
        if self.why.borrow().is_none() {
            self.pending.borrow_mut().insert(id, sender);
        }
        Waiting { link: self, id, answer }
    }

    /// Why it ended.
    pub(crate) fn why(&self) -> String {
        self.why.borrow().clone().unwrap_or_else(|| "the connection was lost".into())
    }

    /// Ends it: every call under way fails.
    pub(crate) fn end(&self, why: &str) {
        self.why.borrow_mut().get_or_insert_with(|| why.to_owned());
        self.conn.close();
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        drop(pending);
    }

    /// Runs until the connection is dead; says why.
    pub(crate) async fn run(&self, limits: &PeerLimits, incarnation: u64) -> String {
        let mut heard = self.ctx.now();
        let why = loop {
            match self.ctx.timeout(limits.ping_after, self.conn.recv()).await {
                Ok(Ok(message)) => {
                    heard = self.ctx.now();
                    if let Err(why) = self.receive(&message) {
                        break why;
                    }
                }
                Ok(Err(error)) => break error.to_string(),
                Err(_) if self.ctx.now() - heard >= limits.dead_after => {
                    break format!("the peer was silent for {:?}", limits.dead_after);
                }
                Err(_) => {
                    let ping = Header::new(Kind::Ping, 0, incarnation).encode(&[]);
                    let sent = self.ctx.timeout(limits.ping_after, self.conn.send(ping)).await;
                    if let Ok(Err(error)) = sent {
                        break error.to_string();
                    }
                }
            }
        };
        self.end(&why);
        why
    }

    fn receive(&self, message: &[u8]) -> Result<(), String> {
        let (header, body) = Header::parse(message)?;
        if header.incarnation != self.remote.incarnation {
            return Err(format!(
                "a message of incarnation {} on a connection to {}",
                header.incarnation, self.remote.incarnation
            ));
        }
        let refused = match header.kind {
            Kind::Pong => return Ok(()),
            Kind::Reply => false,
            Kind::Refused => true,
            Kind::Request | Kind::Ping => return Err(format!("a {:?} from a server", header.kind)),
        };
        let waiting = self.pending.borrow_mut().remove(&header.id);
        match waiting.filter(OneSender::is_wanted) {
            Some(waiting) => waiting.send(Answered { refused, body: body.to_vec() }),
            None => count(&self.counters, |c| c.late_replies += 1),
        }
        Ok(())
    }
}
