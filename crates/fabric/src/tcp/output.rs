//! What leaves a connection: control frames first, then bulk, in vectored writes straight from slices.

use super::conn::{Io, count_conn};
use super::frame::{HEADER_LEN, Header, Kind};
use crate::limits::{IOV_MAX, TURN_BYTES_MAX};
use cobalt_dma::Slice;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};

/// Bytes that are made ready ahead of the socket.
const READY_BYTES: usize = 256 << 10;

/// Something to send.
pub(super) enum Out {
    /// A frame without payload.
    Plain(Header),
    Message(Vec<u8>),
    /// Answers a pull; looked up only when its turn comes, so that an ended loan is never touched.
    Pull {
        key: u64,
        offset: u64,
        length: usize,
        tag: u64,
    },
    /// A push; skipped when its caller has given up before its turn.
    Push {
        header: Header,
        data: Vec<Slice>,
    },
}

/// A frame on its way.
struct Flight {
    head: [u8; HEADER_LEN],
    message: Vec<u8>,
    data: SmallVec<[Slice; 2]>,
    /// Bytes in all, and those that the socket has taken.
    len: usize,
    sent: usize,
}

#[derive(Default)]
pub(super) struct Output {
    control: RefCell<VecDeque<Out>>,
    bulk: RefCell<VecDeque<Out>>,
    flights: RefCell<VecDeque<Flight>>,
}

impl Output {
    pub(super) fn control(&self, out: Out) {
        self.control.borrow_mut().push_back(out);
    }

    pub(super) fn bulk(&self, out: Out) {
        self.bulk.borrow_mut().push_back(out);
    }

    pub(super) fn clear(&self) {
        self.control.borrow_mut().clear();
        self.bulk.borrow_mut().clear();
        self.flights.borrow_mut().clear();
    }

    fn next(&self) -> Option<Out> {
        let control = self.control.borrow_mut().pop_front();
        control.or_else(|| self.bulk.borrow_mut().pop_front())
    }
}

impl Flight {
    fn new(header: Header, message: Vec<u8>, data: SmallVec<[Slice; 2]>) -> Flight {
        let len = HEADER_LEN + header_payload(&header);
        let held = message.len() + data.iter().map(|s| s.len()).sum::<usize>();
        assert_eq!(len, HEADER_LEN + held, "a frame's length is that of its payload");
        Flight { head: header.encode(), message, data, len, sent: 0 }
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        [&self.head[..], &self.message[..]].into_iter().chain(self.data.iter().map(|s| &s[..]))
    }
}

fn header_payload(header: &Header) -> usize {
    match header.kind {
        Kind::Message | Kind::PullData | Kind::PushData => header.length,
        _ => 0,
    }
}

impl Io {
    /// Writes until the socket takes no more, nothing is left, or the others have their turn.
    pub(super) fn write(&self) -> io::Result<()> {
        let mut budget = TURN_BYTES_MAX;
        while self.writable.get() && budget > 0 {
            self.make_ready();
            let written = {
                let flights = self.output.flights.borrow();
                let mut iov: SmallVec<[IoSlice<'_>; IOV_MAX]> = SmallVec::new();
                for flight in &*flights {
                    let mut skip = flight.sent;
                    for part in flight.parts() {
                        let rest = part.get(skip.min(part.len())..).unwrap_or_default();
                        skip -= skip.min(part.len());
                        if !rest.is_empty() && iov.len() < IOV_MAX {
                            iov.push(IoSlice::new(rest));
                        }
                    }
                }
                if iov.is_empty() {
                    return Ok(());
                }
                (&self.stream).write_vectored(&iov)
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    budget = budget.saturating_sub(n);
                    self.advance(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable.set(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Whether the socket would take more and more is there.
    pub(super) fn has_output(&self) -> bool {
        let output = &self.output;
        self.writable.get()
            && !(output.flights.borrow().is_empty()
                && output.control.borrow().is_empty()
                && output.bulk.borrow().is_empty())
    }

    fn advance(&self, mut written: usize) {
        let mut flights = self.output.flights.borrow_mut();
        while let Some(first) = flights.front_mut() {
            let rest = first.len - first.sent;
            if written < rest {
                first.sent += written;
                return;
            }
            written -= rest;
            flights.pop_front();
        }
    }

    fn make_ready(&self) {
        let ready = |flights: &VecDeque<Flight>| flights.iter().map(|f| f.len - f.sent).sum::<usize>();
        while ready(&self.output.flights.borrow()) < READY_BYTES
            && self.output.flights.borrow().len() < IOV_MAX / 4
        {
            let Some(out) = self.output.next() else { return };
            let flight = match out {
                Out::Plain(header) => {
                    if matches!(header.kind, Kind::PushDone | Kind::PushError) {
                        self.acks_waiting.set(self.acks_waiting.get().saturating_sub(1));
                    }
                    Flight::new(header, Vec::new(), SmallVec::new())
                }
                Out::Message(bytes) => {
                    Flight::new(Header::new(Kind::Message, bytes.len()), bytes, SmallVec::new())
                }
                Out::Pull { key, offset, length, tag } => self.answer_pull(key, offset, length, tag),
                Out::Push { header, data } => {
                    let wanted = self.pushes.borrow().get(&header.tag).is_some_and(|p| p.done.is_wanted());
                    if !wanted {
                        self.pushes.borrow_mut().remove(&header.tag);
                        continue;
                    }
                    count_conn(&self.counters, |c| c.push_bytes += header.length as u64);
                    Flight::new(header, Vec::new(), data.into())
                }
            };
            self.output.flights.borrow_mut().push_back(flight);
        }
    }

    fn answer_pull(&self, key: u64, offset: u64, length: usize, tag: u64) -> Flight {
        self.pulls_waiting.set(self.pulls_waiting.get().saturating_sub(1));
        let data = self.loans.borrow().get(&key).and_then(|loan| loan.cut(offset, length));
        match data {
            Some(data) => {
                let header = Header { kind: Kind::PullData, length, key, offset, tag };
                Flight::new(header, Vec::new(), data.into())
            }
            None => {
                let header = Header { kind: Kind::PullError, length: 0, key, offset, tag };
                Flight::new(header, Vec::new(), SmallVec::new())
            }
        }
    }
}
