//! Operations on a namespace, with bytes that tell where they belong and when they were written.

use cobalt_bdev::{Device, WriteData};
use cobalt_dma::{Arena, Slice};
use std::cell::Cell;
use std::rc::Rc;

const PAGE: usize = 4096;

/// A namespace, and memory for its operations.
#[derive(Clone)]
pub struct Space {
    pub device: Device,
    pub arena: Arena,
}

/// What several workers share.
#[derive(Default)]
pub struct Load {
    pub stop: Cell<bool>,
    /// Writes that were read back.
    pub rounds: Cell<u64>,
}

/// Fills `bytes` as they stand at `offset` of a namespace. Seed 0 is zeros.
pub fn pattern(bytes: &mut [u8], offset: u64, seed: u64) {
    for (n, word) in bytes.chunks_mut(8).enumerate() {
        let place = (offset / 8 + n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let value = place.rotate_left(17).wrapping_mul(seed);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}

impl Space {
    /// Pieces of memory that do not lie one behind the other, filled for `offset`.
    async fn pieces(&self, offset: u64, lens: &[usize], seed: u64) -> WriteData {
        let mut data = WriteData::new();
        let mut at = offset;
        for len in lens {
            let mut buf = self.arena.alloc(PAGE + len).await;
            pattern(&mut buf[PAGE..], at, seed);
            let slice: Slice = buf.freeze();
            data.push(slice.slice(PAGE..PAGE + len));
            at += *len as u64;
        }
        data
    }

    /// One write of several pieces of memory.
    pub async fn write(&self, offset: u64, lens: &[usize], seed: u64, fua: bool) -> Result<(), String> {
        let data = self.pieces(offset, lens, seed).await;
        self.device.write(offset, data, fua).await.map_err(|e| e.to_string())
    }

    /// One read; other bytes than the pattern are an error.
    pub async fn read(&self, offset: u64, len: usize, seed: u64) -> Result<(), String> {
        let mut buf = self.arena.alloc(len).await;
        pattern(&mut buf, offset, !seed);
        let buf = self.device.read(offset, buf).await.map_err(|e| e.to_string())?;
        let mut wanted = self.arena.alloc(len).await;
        pattern(&mut wanted, offset, seed);
        match buf.iter().zip(wanted.iter()).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => Err(format!("wrong: byte {at} of {len} at {offset:#x} is {:#x}", buf[at])),
        }
    }

    /// Writes a place of its own over and over, and reads each back, until it is told to stop.
    pub async fn work(self, offset: u64, len: usize, load: Rc<Load>) -> Result<(), String> {
        let mut seed = 0;
        while !load.stop.get() {
            seed += 1;
            self.write(offset, &[len], seed, false).await?;
            self.read(offset, len, seed).await?;
            load.rounds.set(load.rounds.get() + 1);
        }
        Ok(())
    }
}
