//! A target's two regions: meta (superblocks, journal, tree nodes) and data.

use crate::geometry::Region;
use cobalt_base::BLOCK_SIZE;
use cobalt_bdev::{Device, IoError};

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
        let len = device.identify().size / BLOCK_SIZE * BLOCK_SIZE;
        Region { device, offset: 0, len }
    }

    /// Says that a range is no longer needed.
    ///
    /// # Errors
    /// [`IoError`].
    pub async fn deallocate(&self, at: u64, len: u64) -> Result<(), IoError> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => self.device.deallocate(self.offset + at, len).await,
            _ => Err(IoError::Invalid { op: "deallocate", offset: at, len }),
        }
    }
}
