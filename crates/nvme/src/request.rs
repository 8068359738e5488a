//! What was asked of a namespace, and the commands that do it.

use crate::pointer::BYTES_MAX;
use cobalt_base::Nanos;
use cobalt_bdev::{Io, IoError, Op};

/// Bytes of one deallocation command.
const DEALLOCATE_MAX: u64 = 64 << 30;

/// One operation of the device, done by one or more commands.
pub struct Request {
    pub io: Io,
    /// Index of its namespace.
    pub ns: usize,
    /// Bytes of each command but the last.
    pub part: u64,
    /// Commands in all; fewer once one has failed.
    pub parts: u32,
    pub issued: u32,
    pub done: u32,
    pub error: Option<IoError>,
    /// What the namespace had written when a flush was asked for.
    pub written: u64,
}

/// What kind of operation, where and how long, for its commands and messages.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub op: &'static str,
    pub offset: u64,
    pub len: u64,
}

impl Request {
    /// `transfer_max` is what the controller takes in one command, in bytes.
    pub fn new(io: Io, ns: usize, transfer_max: u64) -> Request {
        let span = span(&io.op);
        let part = match io.op {
            Op::Read { .. } | Op::Write { .. } => transfer_max.min(BYTES_MAX as u64),
            Op::Flush => 1,
            Op::Deallocate { .. } => DEALLOCATE_MAX,
        };
        let parts = u32::try_from(span.len.div_ceil(part)).unwrap_or(u32::MAX).max(1);
        Request { io, ns, part, parts, issued: 0, done: 0, error: None, written: 0 }
    }

    /// Where part `n` lies, in bytes of the namespace.
    pub fn span_of(&self, n: u32) -> Span {
        let whole = span(&self.io.op);
        let at = u64::from(n) * self.part;
        Span { offset: whole.offset + at, len: self.part.min(whole.len - at.min(whole.len)), ..whole }
    }

    /// Whether the same commands may be issued again after an error or a reset. A flush, and a write that promises to be
    /// durable, may not: what an earlier try lost, a later one does not bring back.
    pub fn may_repeat(&self) -> bool {
        !matches!(self.io.op, Op::Flush | Op::Write { fua: true, .. })
    }

    /// Notes why a command failed; the first reason counts, and no further command is issued.
    pub fn fail(&mut self, error: IoError) {
        self.error.get_or_insert(error);
        self.parts = self.issued.max(1);
    }
}

/// An operation's kind, place and length.
pub fn span(op: &Op) -> Span {
    match op {
        Op::Read { offset, buf } => Span { op: "read", offset: *offset, len: buf.len() as u64 },
        Op::Write { offset, data, .. } => {
            Span { op: "write", offset: *offset, len: data.iter().map(|s| s.len() as u64).sum() }
        }
        Op::Flush => Span { op: "flush", offset: 0, len: 0 },
        Op::Deallocate { offset, len } => Span { op: "deallocate", offset: *offset, len: *len },
    }
}

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Free,
    /// The controller has it.
    Issued,
    /// An abort was sent for it.
    Aborting,
    /// It will be issued again.
    Waiting,
}

/// One command's place in the queue pair: its identifier is the slot's number and the generation.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Changes with each use, so that a late completion is told from the next one's.
    pub generation: u8,
    pub stage: Stage,
    /// Which request, and which part of it.
    pub request: usize,
    pub part: u32,
    pub retries: u8,
    /// When it is aborted; when the controller is reset, for an aborted one; when it is issued again, for a waiting one.
    pub due: Nanos,
}

impl Slot {
    pub const FREE: Slot =
        Slot { generation: 0, stage: Stage::Free, request: 0, part: 0, retries: 0, due: Nanos(0) };
}
