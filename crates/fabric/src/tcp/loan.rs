//! What this end lends: bytes to pull, or room to push into.

use super::conn::Io;
use crate::limits::{FRAME_DATA_MAX, RANGES_MAX};
use crate::pieces::{self, Ranges};
use crate::{BulkDesc, Exposure};
use cobalt_dma::{Buf, Slice};
use std::rc::Rc;

pub(super) enum Loan {
    Data(Vec<Slice>),
    Room(Room),
}

/// Buffers of [`FRAME_DATA_MAX`] bytes, the last one shorter.
pub(super) struct Room {
    len: u64,
    bufs: Vec<Buf>,
    filled: Ranges,
}

impl Room {
    pub(super) fn new(bufs: Vec<Buf>) -> Room {
        Room { len: bufs.iter().map(|b| b.len() as u64).sum(), bufs, filled: Ranges::default() }
    }

    /// Why a push of `length` bytes at `offset` cannot be taken, if it cannot.
    pub(super) fn refuses(&self, offset: u64, length: usize) -> bool {
        match offset.checked_add(length as u64) {
            Some(end) if end <= self.len => {
                self.filled.meets(offset, end) || self.filled.count() >= RANGES_MAX
            }
            _ => true,
        }
    }

    /// Where the bytes from `at` on go: at most `length`, as far as one buffer reaches.
    pub(super) fn place(&mut self, at: u64, length: usize) -> Option<&mut [u8]> {
        let at = usize::try_from(at).ok()?;
        let buf = self.bufs.get_mut(at / FRAME_DATA_MAX)?;
        let start = at % FRAME_DATA_MAX;
        let end = buf.len().min(start.checked_add(length)?);
        buf.get_mut(start..end)
    }

    pub(super) fn fill(&mut self, offset: u64, length: usize) {
        self.filled.fill(offset, offset + length as u64);
    }

    fn into_slices(self) -> Vec<Slice> {
        let mut rest = self.filled.prefix();
        let mut out = Vec::new();
        for mut buf in self.bufs {
            let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buf.len());
            if len == 0 {
                break;
            }
            buf.set_len(len);
            rest -= len as u64;
            out.push(buf.freeze());
        }
        out
    }
}

impl Loan {
    /// The bytes of a pull, if they are lent.
    pub(super) fn cut(&self, offset: u64, length: usize) -> Option<Vec<Slice>> {
        match self {
            Loan::Data(data) => pieces::cut(data, offset, length as u64),
            Loan::Room(_) => None,
        }
    }

    pub(super) fn room(&mut self) -> Option<&mut Room> {
        match self {
            Loan::Room(room) => Some(room),
            Loan::Data(_) => None,
        }
    }
}

/// The lender's handle.
pub(super) struct TcpExposure {
    pub(super) io: Rc<Io>,
    pub(super) desc: BulkDesc,
}

impl TcpExposure {
    fn end(&self) -> Option<Loan> {
        self.io.loans.borrow_mut().remove(&self.desc.key)
    }
}

impl Exposure for TcpExposure {
    fn desc(&self) -> BulkDesc {
        self.desc
    }

    fn take(self: Box<Self>) -> Vec<Slice> {
        match self.end() {
            Some(Loan::Room(room)) => room.into_slices(),
            Some(Loan::Data(_)) | None => Vec::new(),
        }
    }
}

impl Drop for TcpExposure {
    fn drop(&mut self) {
        drop(self.end());
    }
}
