//! One shared mapping of locked pages, backed by a memfd so that a peer process can map it too.

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

/// What a mapping is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// The system's ordinary pages.
    Ordinary,
    /// Hugepages of 2 MiB, taken from the host's reserve.
    Huge,
}

/// A mapping that lives until it is dropped. Its address never changes.
pub(crate) struct Map {
    base: NonNull<u8>,
    len: usize,
    _fd: OwnedFd,
    pub(crate) locked: bool,
    pub(crate) pages: Pages,
}

// SAFETY: the mapping belongs to no thread; who may touch which bytes is the arena's business, and
// it hands every piece to one owner at a time.
#[expect(unsafe_code)]
unsafe impl Send for Map {}
// SAFETY: as above: `Map` itself offers no access to the bytes, only their address.
#[expect(unsafe_code)]
unsafe impl Sync for Map {}

impl Map {
    /// Maps `len` bytes (a multiple of the page size) of fresh zeroed memory. Pages are locked when
    /// first touched, where the limits allow it; hugepages are locked by nature, and reserved here.
    pub(crate) fn new(len: usize, pages: Pages) -> io::Result<Map> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = match pages {
            Pages::Ordinary => MFdFlags::MFD_CLOEXEC,
            Pages::Huge => MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
        };
        let fd = memfd_create(c"cobalt-arena", flags)?;
        nix::unistd::ftruncate(&fd, i64::try_from(len).map_err(io::Error::other)?)?;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing; the memfd is
        // ours alone and never shrinks.
        #[expect(unsafe_code)]
        let base = unsafe {
            mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &fd, 0)
        }?;
        // SAFETY: the range is the mapping that was made just above.
        #[expect(unsafe_code)]
        let rc = unsafe { libc::mlock2(base.as_ptr(), len, libc::MLOCK_ONFAULT as _) };
        Ok(Map { base: base.cast(), len, _fd: fd, locked: rc == 0 || pages == Pages::Huge, pages })
    }

    /// Address of the byte at `offset`.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len, "offset {offset} is outside of a mapping of {} bytes", self.len);
        // SAFETY: the offset lies inside the mapping, as asserted.
        #[expect(unsafe_code)]
        unsafe {
            self.base.add(offset)
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: every buffer holds the arena alive, so none is left; the range is what `new` mapped.
        #[expect(unsafe_code)]
        let unmapped = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}
