//! A target's two regions: meta (superblocks, journal, tree nodes) and data.

use cobalt_bdev::{Device, IoError, WriteData};
use cobalt_dma::Buf;

/// A piece of a device. Offsets in its calls count from the piece's start.
#[derive(Clone)]
pub struct Region {
    /// The device.
    pub device: Device,
    /// First byte on the device; a multiple of 4,096.
    pub offset: u64,
    /// Bytes; a multiple of 4,096.
    pub len: u64,
}

/// The two regions of a target. They may be two devices, or two pieces of one.
#[derive(Clone)]
pub struct Regions {
    /// Superblocks, journal, tree nodes.
    pub meta: Region,
    /// Data blocks.
    pub data: Region,
}

impl Region {
    /// The whole device.
    pub fn whole(device: Device) -> Region {
        let len = device.identify().size / cobalt_base::BLOCK_SIZE * cobalt_base::BLOCK_SIZE;
        Region { device, offset: 0, len }
    }

    /// Fills `buf` from byte `offset` of the region.
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn read(&self, offset: u64, buf: Buf) -> Result<Buf, IoError> {
        let at = self.place("read", offset, buf.len() as u64)?;
        self.device.read(at, buf).await
    }

    /// Writes at byte `offset` of the region; with `fua`, durable when this returns.
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn write(&self, offset: u64, data: WriteData, fua: bool) -> Result<(), IoError> {
        let len = data.iter().map(|s| s.len() as u64).sum();
        let at = self.place("write", offset, len)?;
        self.device.write(at, data, fua).await
    }

    /// Makes completed writes durable.
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn flush(&self) -> Result<(), IoError> {
        self.device.flush().await
    }

    /// Says that a range is no longer needed.
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn deallocate(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let at = self.place("deallocate", offset, len)?;
        self.device.deallocate(at, len).await
    }

    fn place(&self, op: &'static str, offset: u64, len: u64) -> Result<u64, IoError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.offset + offset),
            _ => Err(IoError::Invalid { op, offset, len }),
        }
    }
}
