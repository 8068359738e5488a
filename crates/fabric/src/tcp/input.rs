//! What arrives on a connection: headers, then payload straight into where it belongs. Each read also
//! asks for the header that follows, so that a frame costs one system call.

use super::Core;
use super::conn::{Io, count_conn};
use super::frame::{HEADER_LEN, Header, Kind};
use super::output::Out;
use crate::FabricError;
use crate::limits::{BULK_FRAMES_MAX, TURN_BYTES_MAX};
use std::io::{self, IoSliceMut, Read as _};

/// Where the stream stands.
pub(super) struct Input {
    head: [u8; HEADER_LEN],
    /// Bytes of the header that are there.
    have: usize,
    body: Option<Body>,
}

impl Default for Input {
    fn default() -> Input {
        Input { head: [0; HEADER_LEN], have: 0, body: None }
    }
}

enum Body {
    Message {
        bytes: Vec<u8>,
        have: usize,
    },
    /// Payload of a pull or push, `have` of whose bytes were read; `keep` is false when nobody wants the rest.
    Bulk {
        header: Header,
        have: usize,
        keep: bool,
    },
}

/// What one read came to.
enum Step {
    More(usize),
    Blocked,
}

impl Io {
    /// Reads until the socket has no more, or the others have their turn.
    pub(super) fn read(&self, core: &Core) -> Result<(), FabricError> {
        let mut input = self.input.borrow_mut();
        let mut budget = TURN_BYTES_MAX;
        while self.readable.get() && budget > 0 {
            match self.read_some(core, &mut input)? {
                Step::More(n) => budget = budget.saturating_sub(n),
                Step::Blocked => self.readable.set(false),
            }
            self.digest(&mut input)?;
        }
        Ok(())
    }

    fn read_some(&self, core: &Core, input: &mut Input) -> Result<Step, FabricError> {
        let Input { head, have: head_have, body } = input;
        let next = head.get_mut(*head_have..).unwrap_or_default();
        let mut loans = self.loans.borrow_mut();
        let mut pulls = self.pulls.borrow_mut();
        let mut scratch = core.scratch.borrow_mut();
        let rest = match body {
            None => 0,
            Some(Body::Message { bytes, have }) => bytes.len() - *have,
            Some(Body::Bulk { header, have, .. }) => header.length - *have,
        };
        let place: &mut [u8] = match body {
            None => &mut [],
            Some(Body::Message { bytes, have }) => bytes.get_mut(*have..).unwrap_or_default(),
            Some(Body::Bulk { header, have, keep }) => {
                let wanted = match header.kind {
                    _ if !*keep => None,
                    Kind::PullData => {
                        let buf = pulls.get_mut(&header.tag).and_then(|p| p.buf.as_mut());
                        buf.and_then(|b| b.get_mut(*have..header.length))
                    }
                    _ => {
                        let room = loans.get_mut(&header.key).and_then(|l| l.room());
                        room.and_then(|r| r.place(header.offset.checked_add(*have as u64)?, rest))
                    }
                };
                match wanted.filter(|place| !place.is_empty()) {
                    Some(place) => place,
                    None => {
                        *keep = false; // Once bytes went nowhere, the rest may not go anywhere either.
                        let len = rest.min(scratch.len());
                        scratch.get_mut(..len).unwrap_or_default()
                    }
                }
            }
        };
        let room = place.len();
        let read = if room == rest {
            (&self.stream).read_vectored(&mut [IoSliceMut::new(place), IoSliceMut::new(next)])
        } else {
            (&self.stream).read(place)
        };
        let n = match read {
            Ok(0) => return Err(self.closed("the peer ended the connection")),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Blocked),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Step::More(0)),
            Err(e) => return Err(self.closed(&e.to_string())),
        };
        match body {
            Some(Body::Message { have, .. } | Body::Bulk { have, .. }) => *have += n.min(room),
            None => {}
        }
        *head_have += n - n.min(room);
        Ok(Step::More(n))
    }

    /// Acts on what is complete.
    fn digest(&self, input: &mut Input) -> Result<(), FabricError> {
        match input.body.take() {
            Some(Body::Message { bytes, have }) if have == bytes.len() => self.message(bytes),
            Some(Body::Bulk { header, have, keep }) if have == header.length => self.bulk_done(header, keep),
            other => input.body = other,
        }
        while input.body.is_none() && input.have == HEADER_LEN {
            input.have = 0;
            let header = Header::parse(&input.head, self.admitted.get()).map_err(|why| self.protocol(why))?;
            input.body = self.begin(header)?;
            if let Some(Body::Message { bytes, .. }) = &input.body
                && bytes.is_empty()
            {
                input.body = None;
                self.message(Vec::new());
            }
        }
        Ok(())
    }

    /// Acts on a header; what follows it, if anything.
    fn begin(&self, header: Header) -> Result<Option<Body>, FabricError> {
        match header.kind {
            Kind::Message => {
                let granted = self.granted.get().checked_sub(1);
                let granted = granted.ok_or_else(|| self.protocol("more messages than credits".into()))?;
                self.granted.set(granted);
                return Ok(Some(Body::Message { bytes: vec![0; header.length], have: 0 }));
            }
            Kind::PullRequest => {
                if self.pulls_waiting.get() >= BULK_FRAMES_MAX {
                    return Err(self.protocol("too many pulls at one time".into()));
                }
                self.pulls_waiting.set(self.pulls_waiting.get() + 1);
                let Header { key, offset, length, tag, .. } = header;
                self.output.bulk(Out::Pull { key, offset, length, tag });
            }
            Kind::PullData => {
                let pulls = self.pulls.borrow();
                let pull = pulls.get(&header.tag).filter(|p| p.length == header.length);
                if pull.is_none() {
                    return Err(self.protocol("an answer to a pull that was never asked for".into()));
                }
                return Ok(Some(Body::Bulk { header, have: 0, keep: true }));
            }
            Kind::PullError => {
                let pull = self.pulls.borrow_mut().remove(&header.tag);
                let pull =
                    pull.ok_or_else(|| self.protocol("an answer to a pull that was never asked for".into()))?;
                pull.done.send(Err(self.not_lent()));
            }
            Kind::PushData => {
                if self.acks_waiting.get() >= BULK_FRAMES_MAX {
                    return Err(self.protocol("too many pushes at one time".into()));
                }
                let mut loans = self.loans.borrow_mut();
                let room = loans.get_mut(&header.key).and_then(|l| l.room());
                let keep = room.is_some_and(|r| !r.refuses(header.offset, header.length));
                return Ok(Some(Body::Bulk { header, have: 0, keep }));
            }
            Kind::PushDone | Kind::PushError => {
                let push = self.pushes.borrow_mut().remove(&header.tag);
                let push =
                    push.ok_or_else(|| self.protocol("an answer to a push that was never sent".into()))?;
                push.done.send(if header.kind == Kind::PushDone { Ok(()) } else { Err(self.not_lent()) });
            }
            Kind::Credit => {
                let mut spent = self.spent.borrow_mut();
                let rest = spent.len().checked_sub(header.length);
                let rest = rest.ok_or_else(|| self.protocol("more credits than the window".into()))?;
                spent.truncate(rest);
            }
            Kind::Close => return Err(self.closed("closed by the peer")),
        }
        Ok(None)
    }

    fn message(&self, bytes: Vec<u8>) {
        self.inbox.borrow_mut().push_back(bytes);
        if let Some(waker) = self.inbox_waker.take() {
            waker.wake();
        }
    }

    fn bulk_done(&self, header: Header, keep: bool) {
        if header.kind == Kind::PullData {
            let Some(pull) = self.pulls.borrow_mut().remove(&header.tag) else { return };
            if let Some(buf) = pull.buf.filter(|_| keep) {
                count_conn(&self.counters, |c| c.pull_bytes += header.length as u64);
                pull.done.send(Ok(buf.freeze()));
            }
            return;
        }
        let mut loans = self.loans.borrow_mut();
        let room = loans.get_mut(&header.key).and_then(|l| l.room()).filter(|_| keep);
        let kind = match room {
            Some(room) => {
                room.fill(header.offset, header.length);
                Kind::PushDone
            }
            None => Kind::PushError,
        };
        self.acks_waiting.set(self.acks_waiting.get() + 1);
        self.output.control(Out::Plain(Header { kind, length: 0, ..header }));
    }
}
