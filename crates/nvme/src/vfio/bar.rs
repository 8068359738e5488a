//! A controller's registers as volatile cells. Nothing ever refers into them: each access is one load or store of the size
//! that was asked for.

use super::sigbus::Guard;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

/// A mapped window of registers. When the device goes away under it, it reads as all-ones.
pub struct Bar {
    base: NonNull<u8>,
    len: usize,
    guard: Option<Guard>,
}

// SAFETY: registers belong to no thread, and every access is a single volatile one.
#[expect(unsafe_code)]
unsafe impl Send for Bar {}
// SAFETY: as above: two threads that write a register race in the device, not in memory.
#[expect(unsafe_code)]
unsafe impl Sync for Bar {}

impl Bar {
    /// Maps `len` bytes, a multiple of a page, at `offset` of a device.
    ///
    /// # Errors
    /// What the system said.
    pub fn map(device: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Bar> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of this process.
        #[expect(unsafe_code)]
        let base = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, device, offset) }?;
        let mut bar = Bar { base: base.cast(), len, guard: None };
        bar.guard = Some(Guard::new(bar.base.addr().get(), len)?);
        Ok(bar)
    }

    /// Bytes in the window.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a window has at least a page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether an access found no device behind the window.
    pub fn lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::lost)
    }

    fn cell<T>(&self, offset: usize) -> NonNull<T> {
        let end = offset.checked_add(size_of::<T>());
        let fits = end.is_some_and(|end| end <= self.len) && offset.is_multiple_of(size_of::<T>());
        assert!(fits, "register {offset:#x} is outside of {:#x} bytes, or not aligned", self.len);
        // SAFETY: the offset lies inside of the mapping, as asserted.
        #[expect(unsafe_code)]
        unsafe { self.base.add(offset) }.cast()
    }

    /// The register of 32 bits at `offset`.
    pub fn read32(&self, offset: usize) -> u32 {
        let cell = self.cell::<u32>(offset);
        // SAFETY: the cell is mapped while `self` lives, and aligned.
        #[expect(unsafe_code)]
        let value = unsafe { cell.read_volatile() };
        u32::from_le(value)
    }

    /// The register of 64 bits at `offset`.
    pub fn read64(&self, offset: usize) -> u64 {
        let cell = self.cell::<u64>(offset);
        // SAFETY: the cell is mapped while `self` lives, and aligned.
        #[expect(unsafe_code)]
        let value = unsafe { cell.read_volatile() };
        u64::from_le(value)
    }

    /// Writes the register of 32 bits at `offset`. Memory that was written before is seen by the device before this.
    pub fn write32(&self, offset: usize, value: u32) {
        let cell = self.cell::<u32>(offset);
        fence(Ordering::Release); // Queue entries are ordinary memory: they must not be written after their doorbell.
        // SAFETY: the cell is mapped while `self` lives, and aligned.
        #[expect(unsafe_code)]
        unsafe {
            cell.write_volatile(value.to_le());
        }
    }

    /// Writes the register of 64 bits at `offset`.
    pub fn write64(&self, offset: usize, value: u64) {
        let cell = self.cell::<u64>(offset);
        fence(Ordering::Release);
        // SAFETY: the cell is mapped while `self` lives, and aligned.
        #[expect(unsafe_code)]
        unsafe {
            cell.write_volatile(value.to_le());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.guard = None; // First: a window that is not mapped must not be covered.
        // SAFETY: no access is under way, since nobody holds the window; the range is what `map` mapped.
        #[expect(unsafe_code)]
        let unmapped = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::Bar;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::AsFd;

    #[test]
    fn registers_of_a_device_that_went_away_read_as_all_ones_and_the_process_lives() {
        let device = memfd_create(c"bar", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&device, 8192).unwrap();
        let bar = Bar::map(device.as_fd(), 0, 8192).unwrap();
        let other = Bar::map(device.as_fd(), 0, 4096).unwrap();
        bar.write32(0x14, 0x0046_0001);
        bar.write64(0x28, 0x1_0000_2000);
        assert_eq!((bar.read32(0x14), bar.read64(0x28)), (0x0046_0001, 0x1_0000_2000));
        assert!(!bar.lost());

        // The file's pages go, as a device's do: the next access is a bus error.
        nix::unistd::ftruncate(&device, 0).unwrap();
        assert_eq!(bar.read32(0x1c), u32::MAX);
        assert!(bar.lost() && !other.lost(), "each window knows of its own device alone");
        bar.write32(0x1000, 7);
        assert_eq!(bar.read64(0x1008), u64::MAX, "the second page too");
        other.write32(0, 1);
        assert!(other.lost());
    }

    #[test]
    fn a_guard_ends_with_its_window() {
        let device = memfd_create(c"bar", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&device, 4096).unwrap();
        for _ in 0..1000 {
            let bar = Bar::map(device.as_fd(), 0, 4096).unwrap();
            assert!(!bar.lost());
        }
    }

    #[test]
    #[should_panic(expected = "outside of")]
    fn an_access_beyond_the_window_is_our_mistake() {
        let device = memfd_create(c"bar", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&device, 4096).unwrap();
        let _ = Bar::map(device.as_fd(), 0, 4096).unwrap().read64(4092);
    }
}
