//! One request in the hands of a service.

use crate::frame::{Header, Kind, Lent, decode_body, encode_body};
use crate::server::{Inner, Session};
use crate::{BulkError, Identity, Malformed, Refusal, Request};
use cobalt_base::Nanos;
use cobalt_dma::Slice;
use cobalt_fabric::{BulkDesc, FabricError};
use std::future::Future;
use std::rc::Rc;

/// One request, to be answered once. Dropping it unanswered sends [`Refusal::NoReply`].
pub struct Call {
    server: Rc<Inner>,
    session: Rc<Session>,
    header: Header,
    body: Vec<u8>,
    deadline: Nanos,
    /// Present until it is answered.
    slot: Option<Slot>,
}

/// A place among the running requests; held until the answer is with the transport.
pub(crate) struct Slot {
    server: Rc<Inner>,
    session: Rc<Session>,
}

impl Slot {
    /// A place, when the limits leave one.
    pub(crate) fn take(server: &Rc<Inner>, session: &Rc<Session>) -> Option<Slot> {
        let limits = &server.limits;
        let (all, own) = (server.running.get(), session.running.get());
        if all >= limits.running_max || own >= limits.running_per_peer_max {
            return None;
        }
        server.running.set(all + 1);
        session.running.set(own + 1);
        Some(Slot { server: server.clone(), session: session.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.server.running.set(self.server.running.get() - 1);
        self.session.running.set(self.session.running.get() - 1);
    }
}

impl Call {
    pub(crate) fn new(
        server: &Rc<Inner>,
        session: &Rc<Session>,
        header: Header,
        body: Vec<u8>,
        slot: Slot,
    ) -> Call {
        let budget = std::time::Duration::from_micros(header.deadline_us).min(server.limits.deadline_max);
        let deadline = server.ctx.now() + budget;
        Call { server: server.clone(), session: session.clone(), header, body, deadline, slot: Some(slot) }
    }

    /// The request's number.
    pub fn opcode(&self) -> u16 {
        self.header.opcode
    }

    /// Its id: the same for a duplicate.
    pub fn id(&self) -> u64 {
        self.header.id
    }

    /// Who asks.
    pub fn peer(&self) -> &Identity {
        &self.session.identity
    }

    /// The epoch that the caller spoke with.
    pub fn epoch(&self) -> u64 {
        self.header.epoch
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
        let opcode = self.header.opcode;
        if opcode != R::OPCODE {
            return Err(Malformed { opcode, why: format!("parsed as request {:#06x}", R::OPCODE) });
        }
        decode_body(&self.body).map_err(|why| Malformed { opcode, why })
    }

    /// Bytes that the caller lent to pull; 0 when none.
    pub fn lent_data(&self) -> u64 {
        match self.header.lent {
            Lent::Data(desc) => desc.len,
            Lent::Nothing | Lent::Room(_) => 0,
        }
    }

    /// Room that the caller lent to push into; 0 when none.
    pub fn lent_room(&self) -> u64 {
        match self.header.lent {
            Lent::Room(desc) => desc.len,
            Lent::Nothing | Lent::Data(_) => 0,
        }
    }

    /// Pulls `len` bytes at `offset` of what the caller lent. Slices are at most `cobalt_dma::BUF_MAX` long; all but the
    /// last are multiples of 4 KiB.
    ///
    /// # Errors
    /// [`BulkError`]; at the deadline too.
    pub async fn pull(&self, offset: u64, len: u64) -> Result<Vec<Slice>, BulkError> {
        let Lent::Data(desc) = self.header.lent else {
            return Err(BulkError::NotLent("the request lent no data".into()));
        };
        check_range(desc, offset, len)?;
        self.by_deadline(self.session.conn.get(desc, offset, len)).await
    }

    /// Pushes into the room that the caller lent, at `offset`; done when the caller's memory holds it.
    ///
    /// # Errors
    /// [`BulkError`]; at the deadline too.
    pub async fn push(&self, offset: u64, data: Vec<Slice>) -> Result<(), BulkError> {
        let Lent::Room(desc) = self.header.lent else {
            return Err(BulkError::NotLent("the request lent no room".into()));
        };
        check_range(desc, offset, data.iter().map(|s| s.len() as u64).sum())?;
        self.by_deadline(self.session.conn.put(desc, offset, data)).await
    }

    async fn by_deadline<T>(
        &self,
        transfer: impl Future<Output = Result<T, FabricError>>,
    ) -> Result<T, BulkError> {
        match self.server.ctx.timeout_at(self.deadline, transfer).await {
            Ok(result) => result.map_err(|e| BulkError::Transport(e.to_string())),
            Err(_) => Err(BulkError::Deadline),
        }
    }

    /// Answers.
    pub fn reply<R: Request>(mut self, answer: Result<R::Reply, R::Error>) {
        match encode_body(&answer) {
            Ok(body) => self.answer(Kind::Reply, &body),
            Err(why) => {
                tracing::error!(opcode = self.header.opcode, why, "an answer does not fit a message");
                self.answer_refusal(Refusal::ReplyTooLarge);
            }
        }
    }

    /// Refuses in the frame layer: an unknown opcode, a body that cannot be parsed.
    pub fn refuse(mut self, refusal: Refusal) {
        self.answer_refusal(refusal);
    }

    fn answer_refusal(&mut self, refusal: Refusal) {
        let body = encode_body(&refusal).expect("a refusal is a few bytes");
        self.answer(Kind::Refused, &body);
    }

    fn answer(&mut self, kind: Kind, body: &[u8]) {
        let Some(slot) = self.slot.take() else { return };
        let header = Header::new(kind, self.header.id, self.server.incarnation());
        self.server.answer(&self.session, header, body, slot);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.answer_refusal(Refusal::NoReply); // Nothing happens when it was answered.
    }
}

fn check_range(desc: BulkDesc, offset: u64, len: u64) -> Result<(), BulkError> {
    match offset.checked_add(len) {
        Some(end) if end <= desc.len => Ok(()),
        _ => Err(BulkError::NotLent(format!("{len} bytes at {offset} of {}", desc.len))),
    }
}
