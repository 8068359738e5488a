//! Reading the ring in bounded pieces: a window that moves over it, with the next pieces already on their way.

use crate::geometry::Region;
use crate::journal::record::{self, HEADER_LEN, Header};
use crate::superblock::Superblock;
use cobalt_base::{BLOCK_SIZE, checksum::xxh3};
use cobalt_bdev::IoError;
use cobalt_dma::{Arena, Buf};
use cobalt_reactor::{Ctx, JoinHandle};
use std::collections::VecDeque;
use uuid::Uuid;

/// Bytes of one piece.
const PIECE: u64 = 512 << 10;
/// Pieces on their way: as many as keep a disk busy. With the window they are the reader's memory.
const AHEAD: u64 = 4;

/// A target's ring, as it is read after a crash.
pub(crate) struct Reader<'a> {
    /// Reads ahead with it.
    ctx: Option<&'a Ctx>,
    meta: &'a Region,
    arena: &'a Arena,
    target: Uuid,
    /// First byte of the ring on the region.
    at: u64,
    pub len: u64,
    piece: u64,
    /// Number of the piece in `window`.
    number: u64,
    window: Option<Buf>,
    /// The pieces that follow, in their order.
    ahead: VecDeque<(u64, JoinHandle<Result<Buf, IoError>>)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        ctx: Option<&'a Ctx>,
        meta: &'a Region,
        arena: &'a Arena,
        sb: &Superblock,
    ) -> Reader<'a> {
        let (at, len) = (sb.geometry.journal_at(), sb.geometry.journal_len);
        let most = u64::from(meta.device.identify().transfer_max).min(PIECE).min(len);
        let piece = (most / BLOCK_SIZE * BLOCK_SIZE).max(BLOCK_SIZE);
        let target = sb.target;
        Reader { ctx, meta, arena, target, at, len, piece, number: 0, window: None, ahead: VecDeque::new() }
    }

    /// The header at a ring offset, if one holds there.
    ///
    /// # Errors
    /// A read error: what is there is unknown.
    pub(crate) async fn header(&mut self, offset: u64) -> Result<Option<Header>, IoError> {
        let (target, ring) = (self.target, self.len);
        let bytes = self.bytes(offset).await?;
        Ok(record::may_be(bytes).then(|| Header::parse(bytes, target, offset, ring).ok()).flatten())
    }

    /// A record's payload, if its checksum holds: where it lies, or put together in `out`.
    ///
    /// # Errors
    /// A read error.
    pub(crate) async fn payload<'b>(
        &'b mut self,
        header: &Header,
        out: &'b mut Vec<u8>,
    ) -> Result<Option<&'b [u8]>, IoError> {
        let len = header.payload_len as usize;
        let mut at = (header.offset + HEADER_LEN as u64) % self.len;
        let seed = record::seed(self.target);
        let holds = |payload: &[u8]| xxh3(seed, payload) == header.payload_sum;
        if self.bytes(at).await?.len() >= len {
            return Ok(self.bytes(at).await?.get(..len).filter(|payload| holds(payload)));
        }
        out.clear();
        while out.len() < len {
            let bytes = self.bytes(at).await?;
            let part = bytes.len().min(len - out.len());
            out.extend_from_slice(&bytes[..part]);
            at = (at + part as u64) % self.len;
        }
        Ok(Some(out.as_slice()).filter(|payload| holds(payload)))
    }

    /// What the window has from a ring offset on: at least the rest of its block.
    async fn bytes(&mut self, offset: u64) -> Result<&[u8], IoError> {
        let number = offset / self.piece;
        if self.number != number || self.window.is_none() {
            self.window = None;
            while self.ahead.front().is_some_and(|(coming, _)| *coming != number) {
                self.ahead.pop_front();
            }
            let buf = match self.ahead.pop_front() {
                Some((_, coming)) => coming.await?,
                None => self.read(number).await?,
            };
            self.window = Some(buf);
            self.number = number;
            self.read_ahead();
        }
        let window = self.window.as_deref().unwrap_or_default();
        let from = usize::try_from(offset % self.piece).expect("a piece fits memory");
        Ok(&window[from..])
    }

    fn read_ahead(&mut self) {
        let Some(ctx) = self.ctx else { return };
        let pieces = self.len.div_ceil(self.piece);
        for i in self.ahead.len() as u64 + 1..=AHEAD.min(pieces - 1) {
            let next = (self.number + i) % pieces;
            self.ahead.push_back((next, ctx.spawn(self.read(next))));
        }
    }

    fn read(&self, number: u64) -> impl Future<Output = Result<Buf, IoError>> + 'static {
        let (meta, arena) = (self.meta.clone(), self.arena.clone());
        let (at, len) = (self.at + number * self.piece, self.piece.min(self.len - number * self.piece));
        async move {
            let buf = arena.alloc(usize::try_from(len).expect("a piece fits memory")).await;
            meta.read(at, buf).await
        }
    }
}
