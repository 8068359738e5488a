//! Weighted sums of units, built as the units arrive.

use cobalt_dma::Buf;
use rustfs_erasure_codec::galois_8::{mul_slice, mul_slice_xor};

/// Bytes of a unit that are added to every sum before the next bytes: they stay in the nearest cache.
const STRIDE: usize = 16 << 10;

/// Sums under way. Each unit is added once; what was not added counts as zeroes.
pub struct Sum {
    /// Unit, and its weight in each sum; taken out when it was added.
    columns: Vec<(usize, Vec<u8>)>,
    sums: Vec<Buf>,
    /// Bytes of the sums that were written so far; beyond is what the buffers held before.
    filled: usize,
}

impl Sum {
    pub(crate) fn new(columns: Vec<(usize, Vec<u8>)>, sums: Vec<Buf>) -> Sum {
        Sum { columns, sums, filled: 0 }
    }

    /// Adds unit `unit`, whose bytes may come in several pieces and may be fewer than the sums'.
    ///
    /// # Panics
    /// When the unit is not one of the sum, was added before, or is longer than a buffer.
    pub fn add<'a>(&mut self, unit: usize, pieces: impl IntoIterator<Item = &'a [u8]>) {
        let at = self.columns.iter().position(|(u, _)| *u == unit);
        let (_, weights) = self.columns.swap_remove(at.expect("each unit of the sum is added once"));
        let mut offset = 0;
        for piece in pieces {
            for bytes in piece.chunks(STRIDE) {
                // What lies below `filled` holds a sum already, what lies above holds rubbish.
                let old = self.filled.saturating_sub(offset).min(bytes.len());
                let (onto, fresh) = bytes.split_at(old);
                for (sum, weight) in self.sums.iter_mut().zip(&weights) {
                    let place = &mut sum[offset..offset + bytes.len()];
                    let (summed, rubbish) = place.split_at_mut(old);
                    mul_slice_xor(*weight, onto, summed);
                    mul_slice(*weight, fresh, rubbish);
                }
                offset += bytes.len();
            }
        }
        self.filled = self.filled.max(offset);
    }

    /// Units that were not added yet.
    pub fn missing(&self) -> impl Iterator<Item = usize> + '_ {
        self.columns.iter().map(|(unit, _)| *unit)
    }

    /// Ends the sums: each is `len` bytes long, zeroes where nothing was added.
    pub fn finish(mut self, len: usize) -> Vec<Buf> {
        for sum in &mut self.sums {
            sum.set_len(len);
            let filled = self.filled.min(len);
            sum[filled..].fill(0);
        }
        self.sums
    }
}
