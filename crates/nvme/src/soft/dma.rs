//! The controller's side of memory: raw copies by IOVA, as a device makes them.

use crate::function::Iova;
use cobalt_dma::Arena;
use std::ptr;

/// What is mapped for the device.
#[derive(Default)]
pub struct DmaMap {
    maps: Vec<(u64, usize, usize)>,
    /// Memory stays mapped as long as the device can reach it, whatever its owner does.
    held: Vec<Arena>,
    next: u64,
}

impl DmaMap {
    /// Maps an arena at addresses that are nobody's virtual ones.
    pub fn add(&mut self, arena: &Arena) -> Iova {
        let (base, len) = arena.region();
        let iova = self.next.max(1 << 20);
        self.next = iova + len as u64 + (1 << 20);
        self.maps.push((iova, base as usize, len));
        self.held.push(arena.clone());
        Iova(iova)
    }

    pub fn clear(&mut self) {
        self.maps.clear();
    }

    fn at(&self, iova: u64, len: usize) -> Option<*mut u8> {
        self.maps.iter().find_map(|(start, base, size)| {
            let offset = usize::try_from(iova.checked_sub(*start)?).ok()?;
            (offset.checked_add(len)? <= *size).then(|| (*base + offset) as *mut u8)
        })
    }

    /// Copies out of memory; false if the IOMMU blocks it.
    pub fn read(&self, iova: u64, out: &mut [u8]) -> bool {
        let Some(from) = self.at(iova, out.len()) else { return false };
        // SAFETY: the range lies in an arena that `held` keeps mapped. The driver holds no reference into memory that it
        // has given to the device, so this copy races with nothing that Rust knows of; that it does not is what is tested.
        #[expect(unsafe_code)]
        unsafe {
            ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len());
        }
        true
    }

    /// Copies into memory; false if the IOMMU blocks it.
    pub fn write(&self, iova: u64, bytes: &[u8]) -> bool {
        let Some(to) = self.at(iova, bytes.len()) else { return false };
        // SAFETY: as for `read`.
        #[expect(unsafe_code)]
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        true
    }

    pub fn read64(&self, iova: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.read(iova, &mut word).then(|| u64::from_le_bytes(word))
    }
}
