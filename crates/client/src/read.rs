//! Reading part of a unit: from its target, or, when that is down, late or hurt, out of the other units of
//! its group. Every byte has passed a checksum of the extent map on its way here.

use crate::ClientError;
use crate::client::Core;
use crate::layout::{Geometry, Piece, place};
use crate::pool::Trouble;
use cobalt_base::checksum::crc32c_chunks_of;
use cobalt_dma::Slice;
use cobalt_rpc::proto::ios::{self, IosError};
use cobalt_rpc::proto::record::{Extent, PoolMap, PoolTarget};
use cobalt_rpc::{Answer, CallError, Lend, Refusal};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::ops::Range;
use std::rc::Rc;

/// An extent that is being read.
pub(crate) struct Reader<'a> {
    pub(crate) core: &'a Core,
    pub(crate) extent: &'a Extent,
    pub(crate) geometry: Geometry,
    pub(crate) pool: Rc<PoolMap>,
}

/// Whether a target that did not answer a moment ago is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    Trusted,
    Ignored,
}

/// Why a unit could not be had from its target.
struct Hurt {
    /// The target answers, and does not have the bytes that were written.
    damaged: bool,
    what: String,
}

impl Reader<'_> {
    /// The bytes of `piece`.
    pub(crate) async fn piece(&self, piece: &Piece) -> Result<Vec<Slice>, ClientError> {
        let width = self.geometry.width();
        let targets =
            place(self.extent.fid, piece.group, self.pool.targets.len(), width).ok_or_else(|| {
                let (have, version) = (self.pool.targets.len(), self.pool.version);
                ClientError::Damaged {
                    what: format!("pool version {version} has {have} targets, the layout needs {width}"),
                }
            })?;
        let len = self.geometry.unit_len(piece.group, piece.unit);
        let window = self.geometry.whole_chunks(&piece.range, len);
        let slices = self.patiently(&targets, piece, &window).await?;
        Ok(trim(slices, piece.range.start - window.start..piece.range.end - window.start))
    }

    /// `window` of the piece's unit. The body has begun by now, so nobody can be told to come back later: while too many targets
    /// are out of reach, all are asked again until the deadline, whatever is remembered of them. They may be starting.
    async fn patiently(
        &self,
        targets: &[usize],
        piece: &Piece,
        window: &Range<u64>,
    ) -> Result<Vec<Slice>, ClientError> {
        let core = self.core;
        let deadline = core.ctx.now() + core.limits.read_deadline;
        let (mut pause, mut memory) = (core.limits.retry_min, Memory::Trusted);
        loop {
            let result = match self.fetch(targets, piece.group, piece.unit, window, memory).await {
                Ok(slices) => return Ok(slices),
                Err(hurt) => {
                    tracing::debug!(fid = %self.extent.fid, group = piece.group, unit = piece.unit, why = hurt.what, "decoding");
                    self.decode(targets, piece, window, hurt, memory).await
                }
            };
            match result {
                Err(ClientError::Unavailable { .. }) if core.ctx.now() + pause < deadline => {}
                result => return result,
            }
            core.ctx.sleep(pause).await;
            (pause, memory) = ((pause * 2).min(core.limits.retry_max), Memory::Ignored);
        }
    }

    /// `window` of a unit, from its target.
    async fn fetch(
        &self,
        targets: &[usize],
        group: u64,
        unit: usize,
        window: &Range<u64>,
        memory: Memory,
    ) -> Result<Vec<Slice>, Hurt> {
        let core = self.core;
        let target = targets.get(unit).and_then(|place| self.pool.targets.get(*place));
        let target = target.expect("placement names targets of the pool");
        if memory == Memory::Trusted
            && let Some(what) = core.pool.trouble(core, target)
        {
            return Err(Hurt { damaged: false, what });
        }
        let Some(process) = core.peer(&target.process) else {
            return Err(Hurt { damaged: false, what: format!("no process {}", target.process) });
        };
        let request = ios::Read {
            target: target.target,
            fid: self.extent.fid,
            offset: self.geometry.cob_offset(group) + window.start,
            len: window.end - window.start,
        };
        let deadline = core.ctx.now() + core.limits.read_deadline;
        let mut pause = core.limits.retry_min;
        loop {
            let room = Lend::Room(usize::try_from(request.len).expect("at most a unit"));
            match process.peer.call(&request, room, deadline).await {
                Ok(answer) => return self.verify(target, &request, answer),
                Err(
                    CallError::Service(IosError::Busy) | CallError::Refused { refusal: Refusal::Busy, .. },
                ) if core.ctx.now() + pause < deadline => {
                    core.ctx.sleep(pause).await;
                    pause = (pause * 2).min(core.limits.retry_max);
                }
                Err(error) => return Err(self.hurt(target, &error)),
            }
        }
    }

    /// What arrived is what the target's extent map says.
    fn verify(
        &self,
        target: &PoolTarget,
        request: &ios::Read,
        answer: Answer<ios::ReadReply>,
    ) -> Result<Vec<Slice>, Hurt> {
        let Answer { reply, pushed } = answer;
        let len: u64 = pushed.iter().map(|slice| slice.len() as u64).sum();
        let sane = u64::from(reply.chunk_size) == self.geometry.chunk() && len == request.len;
        let matches =
            || crc32c_chunks_of(pushed.iter().map(|s| &s[..]), reply.chunk_size as usize) == reply.crcs;
        if sane && matches() {
            self.core.pool.mark_up(target.target);
            self.core.count(|c| {
                c.units_read += 1;
                c.bytes_read += len;
            });
            return Ok(pushed);
        }
        self.core.count(|c| c.corrupt += 1);
        let what = format!(
            "target {}: the bytes of {} at {} do not match their checksums on arrival",
            target.name, request.fid, request.offset
        );
        tracing::error!(what, "damaged on the way");
        Err(Hurt { damaged: true, what })
    }

    fn hurt(&self, target: &PoolTarget, error: &CallError<IosError>) -> Hurt {
        let what = format!("target {} on process {}: {error}", target.name, target.process);
        let damaged = matches!(
            error,
            CallError::Service(IosError::Missing { .. } | IosError::Corrupt { .. } | IosError::Deleted(_))
        );
        if damaged {
            self.core.count(|c| c.corrupt += 1);
            tracing::error!(what, "a unit is hurt");
        } else if !matches!(
            error,
            CallError::Service(IosError::Busy) | CallError::Refused { refusal: Refusal::Busy, .. }
        ) {
            self.core.pool.mark_down(self.core, target.target, Trouble::of(error), error.to_string());
        }
        Hurt { damaged, what }
    }

    /// `window` of the piece's unit, out of N others of its group. They are read at the same time; each that fails is
    /// replaced by one that is left.
    async fn decode(
        &self,
        targets: &[usize],
        piece: &Piece,
        window: &Range<u64>,
        first: Hurt,
        memory: Memory,
    ) -> Result<Vec<Slice>, ClientError> {
        let (core, geometry) = (self.core, &self.geometry);
        let len = usize::try_from(window.end - window.start).expect("at most a unit");
        let credit = (geometry.data as u64 + 1) * len as u64;
        let _credit = core.credit(&core.decode_bytes, credit).await?;
        // What others have beyond their ends are zeroes, which need no reading.
        let part = |unit: usize| window.start..geometry.unit_len(piece.group, unit).min(window.end);
        let others = (0..geometry.width()).filter(|unit| *unit != piece.unit);
        let (mut left, free): (Vec<_>, Vec<_>) = others.partition(|unit| !part(*unit).is_empty());
        let mut have: Vec<(usize, Vec<Slice>)> = free.into_iter().map(|unit| (unit, Vec::new())).collect();
        have.truncate(geometry.data);
        // Taken from the end: those that seem well first, data before parity.
        let troubled = |unit: &usize| {
            let target = targets.get(*unit).and_then(|place| self.pool.targets.get(*place));
            target.is_none_or(|target| core.pool.trouble(core, target).is_some())
        };
        left.sort_by_key(|unit| std::cmp::Reverse((troubled(unit), *unit)));
        let (mut hurts, mut reads) = (vec![first], FuturesUnordered::new());
        while have.len() < geometry.data {
            while have.len() + reads.len() < geometry.data
                && let Some(unit) = left.pop()
            {
                let window = geometry.whole_chunks(&part(unit), geometry.unit_len(piece.group, unit));
                reads.push(
                    async move { (unit, self.fetch(targets, piece.group, unit, &window, memory).await) },
                );
            }
            match reads.next().await {
                Some((unit, Ok(slices))) => have.push((unit, slices)),
                Some((_, Err(hurt))) => hurts.push(hurt),
                None => return Err(self.lost(piece, &hurts)),
            }
        }
        let codec = core.codec(geometry.data, geometry.parity)?;
        let out = core.arena.alloc(len).await;
        let units: Vec<usize> = have.iter().map(|(unit, _)| *unit).collect();
        let mut sum = codec
            .decode(&units, &[piece.unit], vec![out])
            .map_err(|error| ClientError::Damaged { what: error.to_string() })?;
        for (unit, slices) in have {
            let end = (part(unit).end.max(window.start) - window.start).min(len as u64);
            let slices = trim(slices, 0..end);
            sum.add(unit, slices.iter().map(|slice| &slice[..]));
        }
        core.count(|c| c.units_decoded += 1);
        Ok(sum.finish(len).into_iter().map(cobalt_dma::Buf::freeze).collect())
    }

    /// More units are hurt than parity makes good.
    fn lost(&self, piece: &Piece, hurts: &[Hurt]) -> ClientError {
        let why: Vec<&str> = hurts.iter().map(|hurt| hurt.what.as_str()).collect();
        let what = format!("{} group {}: {}", self.extent.fid, piece.group, why.join("; "));
        let damaged = hurts.iter().filter(|hurt| hurt.damaged).count();
        if damaged > self.geometry.parity {
            ClientError::Damaged { what }
        } else {
            ClientError::Unavailable { what }
        }
    }
}

/// `range` of the bytes that lie in `slices`; nothing is copied.
fn trim(slices: Vec<Slice>, range: Range<u64>) -> Vec<Slice> {
    let mut at = 0;
    let mut kept = Vec::with_capacity(slices.len());
    for slice in slices {
        let len = slice.len() as u64;
        let from = range.start.clamp(at, at + len) - at;
        let to = range.end.clamp(at, at + len) - at;
        if from < to {
            let cut = |place| usize::try_from(place).expect("within a slice");
            kept.push(slice.slice(cut(from)..cut(to)));
        }
        at += len;
    }
    kept
}
