//! Chunks of data, read a batch at a time and held against their checksums.

use super::progress::Meter;
use crate::geometry::Region;
use crate::inline::Unwritten;
use crate::schema::MapRow;
use cobalt_base::checksum::{crc32c, crc32c_combine};
use cobalt_base::{BLOCK_SIZE, Fid};
use cobalt_bdev::IoError;
use cobalt_dma::Arena;
use futures::future::join_all;
use smallvec::SmallVec;
use std::rc::Rc;

/// Chunks in flight.
const BATCH: usize = 64;

/// A chunk, and where it lies.
pub(super) struct Chunk {
    pub fid: Fid,
    /// Byte in the cob.
    pub offset: u64,
    pub len: u64,
    pub crc: u32,
    /// First block and count, in order.
    runs: SmallVec<[(u64, u64); 2]>,
}

impl Chunk {
    /// The block that it begins in.
    pub fn block(&self) -> u64 {
        self.runs.first().map_or(0, |(start, _)| *start)
    }
}

/// What is wrong with a chunk.
pub(super) struct Wrong {
    /// The device did not give it.
    pub unreadable: bool,
    pub found: String,
}

/// Chunks that wait for being read.
pub(super) struct Chunks {
    data: Region,
    arena: Arena,
    /// Bytes that are not on their blocks yet.
    unwritten: Rc<Unwritten>,
    waiting: Vec<Chunk>,
}

impl Chunks {
    pub fn new(data: Region, arena: Arena, unwritten: Rc<Unwritten>) -> Chunks {
        Chunks { data, arena, unwritten, waiting: Vec::new() }
    }

    /// Whether the batch should be read.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= BATCH
    }

    /// Adds those of a row that is sound.
    pub fn add(&mut self, fid: Fid, offset: u64, chunk: u64, row: &MapRow) {
        let mut extents = row.extents.iter();
        let (mut start, mut left) = (0, 0);
        for (i, crc) in (0..).zip(&row.crcs) {
            let at = i * chunk;
            let len = chunk.min(row.len - at);
            let mut runs = SmallVec::new();
            let mut blocks = len.div_ceil(BLOCK_SIZE);
            while blocks > 0 {
                if left == 0 {
                    let Some(extent) = extents.next() else { break };
                    (start, left) = (extent.start, u64::from(extent.blocks));
                }
                let count = blocks.min(left);
                runs.push((start, count));
                (start, left, blocks) = (start + count, left - count, blocks - count);
            }
            self.waiting.push(Chunk { fid, offset: offset + at, len, crc: *crc, runs });
        }
    }

    /// Reads all that wait, adds up the bytes of those that hold, and gives the others.
    pub async fn read(&mut self, meter: &Meter, held: &mut u64) -> Vec<(Chunk, Wrong)> {
        let mut bad = Vec::new();
        let mut waiting = std::mem::take(&mut self.waiting).into_iter().peekable();
        while waiting.peek().is_some() {
            let batch: Vec<Chunk> = waiting.by_ref().take(BATCH).collect();
            let sums = join_all(batch.iter().map(|chunk| self.sum(chunk))).await;
            for (chunk, sum) in batch.into_iter().zip(sums) {
                meter.add(chunk.len.next_multiple_of(BLOCK_SIZE));
                match sum {
                    Ok(crc) if crc == chunk.crc => *held += chunk.len,
                    Ok(crc) => {
                        let found = format!("CRC32C {crc:08x}");
                        bad.push((chunk, Wrong { unreadable: false, found }));
                    }
                    Err(error) => bad.push((chunk, Wrong { unreadable: true, found: error.to_string() })),
                }
            }
        }
        bad
    }

    async fn sum(&self, chunk: &Chunk) -> Result<u32, IoError> {
        let most = u64::from(self.data.device.identify().transfer_max).min(256 << 10) / BLOCK_SIZE;
        let (mut crc, mut left) = (0, chunk.len);
        for (start, blocks) in &chunk.runs {
            let (mut start, mut blocks) = (*start, *blocks);
            while blocks > 0 {
                let count = blocks.min(most.max(1));
                let buf = self.arena.alloc((count * BLOCK_SIZE) as usize).await;
                let mut buf = self.data.read(start * BLOCK_SIZE, buf).await?;
                self.unwritten.overlay(start, &mut buf);
                let real = left.min(count * BLOCK_SIZE);
                crc = crc32c_combine(crc, crc32c(&buf[..real as usize]), real);
                (start, blocks, left) = (start + count, blocks - count, left - real);
            }
        }
        Ok(crc)
    }
}
