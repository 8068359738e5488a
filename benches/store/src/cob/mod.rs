//! Rows of cobs: the write path and the read path of one target, called as `ios` calls them.

pub mod file;
pub mod mem;
mod taking;

use cobalt_base::Fid;
use cobalt_base::checksum::crc32c_chunks;
use cobalt_dma::{Arena, Slice};
use cobalt_store::{CobAttrs, Store, StoreError, TxClass};
use std::cell::RefCell;
use std::collections::VecDeque;

/// Bytes that are written: many and different ones, so that neither caches nor devices know them.
pub struct Pool {
    bytes: RefCell<VecDeque<(Slice, Vec<u32>)>>,
    chunk: u32,
    /// Where each write gets bytes of its own from, as fio's do.
    refill: Option<RefCell<Dice>>,
}

impl Pool {
    /// `count` buffers of `len` bytes, with the checksums of their chunks.
    pub fn new(arena: &Arena, count: usize, len: usize, chunk: u32, seed: u64) -> anyhow::Result<Pool> {
        let mut dice = Dice::new(seed);
        let mut bytes = VecDeque::new();
        for _ in 0..count {
            let mut buf = arena.try_alloc(len).ok_or_else(|| anyhow::anyhow!("the arena is too small"))?;
            for word in buf.chunks_exact_mut(8) {
                word.copy_from_slice(&dice.roll().to_le_bytes());
            }
            let mut crcs = Vec::new();
            crc32c_chunks(&buf, chunk as usize, &mut crcs);
            bytes.push_back((buf.freeze(), crcs));
        }
        Ok(Pool { bytes: RefCell::new(bytes), chunk, refill: None })
    }

    /// The same; a buffer is filled anew for each write.
    pub fn refilled(self, seed: u64) -> Pool {
        Pool { refill: Some(RefCell::new(Dice::new(seed))), ..self }
    }

    fn take(&self) -> (Slice, Vec<u32>) {
        let (bytes, mut crcs) = self.bytes.borrow_mut().pop_front().expect("more buffers than writers");
        let Some(dice) = &self.refill else { return (bytes, crcs) };
        let mut buf = bytes.try_thaw().expect("nobody holds what was written");
        // Random bytes are others, and as random, under a mask: that costs the writer less than new ones would.
        for block in buf.chunks_exact_mut(4096) {
            let mask = dice.borrow_mut().roll();
            for word in block.chunks_exact_mut(8) {
                let bytes: [u8; 8] = (*word).try_into().expect("eight bytes");
                word.copy_from_slice(&(u64::from_le_bytes(bytes) ^ mask).to_le_bytes());
            }
        }
        crcs.clear();
        crc32c_chunks(&buf, self.chunk as usize, &mut crcs);
        (buf.freeze(), crcs)
    }
}

/// One durable write of a whole buffer of the pool, steps 5 to 13.
pub async fn write(store: &Store, fid: Fid, offset: u64, pool: &Pool) -> Result<(), StoreError> {
    let (bytes, crcs) = pool.take();
    let len = bytes.len() as u64;
    let mut tx = store.tx_open(TxClass::Write, len).await?;
    let attrs = CobAttrs { chunk_size: pool.chunk, incarnation: 1 };
    let cob = store.cob_lookup(&mut tx, fid, attrs).await?;
    let extents = store.balloc(&mut tx, len).await?;
    store.extmap(&mut tx, &cob, offset, len, &extents, &crcs).await?;
    let sealed = store.tx_close(tx);
    let stable = store.data_write(&sealed, std::slice::from_ref(&bytes)).await?;
    store.commit(sealed, stable).await?;
    pool.bytes.borrow_mut().push_back((bytes, crcs));
    Ok(())
}

/// Numbers without a pattern, and always the same.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, most: u64) -> u64 {
        self.roll() % most
    }
}
