//! Memory that the controller reads and writes while this process does: never a reference into it, only volatile accesses
//! of whole words (a reference would promise that nobody else writes).

use crate::function::Iova;
use cobalt_dma::{Arena, Buf};
use std::io;
use std::sync::atomic::{Ordering, fence};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of a page, the controller's and ours.
pub const PAGE: usize = 4096;

/// Pages shared with the device. They go back to the arena with this value: whoever drops it knows that the device has
/// let go of them (I7).
pub struct Shared {
    /// Never looked into again; it keeps the pages.
    pages: Buf,
    base: *mut u8,
    iova: Iova,
}

impl Shared {
    /// `len` zeroed bytes of an arena, rounded up to pages.
    ///
    /// # Errors
    /// The arena is full, or not mapped for the device.
    pub fn new(maps: &Maps, arena: &Arena, len: usize) -> io::Result<Shared> {
        let mut pages = arena.try_alloc(len.next_multiple_of(PAGE)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::OutOfMemory, "the arena has no room for the queues of a controller")
        })?;
        pages.fill(0);
        let base = pages.as_mut_ptr();
        let iova = maps.iova(base, pages.len()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the arena is not mapped for this device")
        })?;
        Ok(Shared { pages, base, iova })
    }

    /// Where the device sees them.
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// Where a `T` lies, to be accessed by words.
    fn at<T, Word>(&self, offset: usize) -> *mut Word {
        assert!(
            offset + size_of::<T>() <= self.pages.capacity() && offset.is_multiple_of(align_of::<Word>()),
            "byte {offset} is outside of {} shared bytes or unaligned",
            self.pages.capacity()
        );
        self.base.wrapping_add(offset).cast()
    }

    /// Reads a word.
    pub fn read32(&self, offset: usize) -> u32 {
        let at = self.at::<u32, u32>(offset);
        // SAFETY: `at` checks that the word lies within the pages, which `self.pages` keeps mapped, and is aligned.
        #[expect(unsafe_code)]
        let word = unsafe { at.read_volatile() };
        u32::from_le(word)
    }

    /// Writes a word.
    pub fn write32(&self, offset: usize, value: u32) {
        let at = self.at::<u32, u32>(offset);
        // SAFETY: as for `read32`; no reference into the pages exists, so none is invalidated.
        #[expect(unsafe_code)]
        unsafe {
            at.write_volatile(value.to_le());
        }
    }

    /// Writes a double word.
    pub fn write64(&self, offset: usize, value: u64) {
        let at = self.at::<u64, u64>(offset);
        // SAFETY: as for `write32`.
        #[expect(unsafe_code)]
        unsafe {
            at.write_volatile(value.to_le());
        }
    }

    /// Reads a structure of whole double words.
    pub fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let (mut out, from) = (T::new_zeroed(), self.at::<T, u64>(offset));
        for (n, word) in out.as_mut_bytes().chunks_exact_mut(8).enumerate() {
            // SAFETY: as for `read32`; `n` double words behind `from` are within the structure that `at` has checked.
            #[expect(unsafe_code)]
            let now = unsafe { from.wrapping_add(n).read_volatile() };
            word.copy_from_slice(&u64::from_le(now).to_le_bytes());
        }
        out
    }

    /// Writes a structure of whole double words.
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let to = self.at::<T, u64>(offset);
        for (n, word) in value.as_bytes().chunks_exact(8).enumerate() {
            let word = u64::from_le_bytes(word.try_into().expect("a chunk of eight bytes"));
            // SAFETY: as for `write32`; `n` double words behind `to` are within the structure that `at` has checked.
            #[expect(unsafe_code)]
            unsafe {
                to.wrapping_add(n).write_volatile(word.to_le());
            }
        }
    }
}

/// What was read is not older than what made it known.
pub fn acquire() {
    fence(Ordering::Acquire);
}

/// What was written is visible before what makes it known.
pub fn release() {
    fence(Ordering::Release);
}

/// What was written is visible before anything is read.
pub fn full() {
    fence(Ordering::SeqCst);
}

/// Which memory a device reaches, and where.
#[derive(Clone, Debug, Default)]
pub struct Maps(Vec<Map>);

#[derive(Clone, Debug)]
struct Map {
    base: usize,
    len: usize,
    iova: Iova,
    /// Holds the memory while it is mapped.
    _arena: Arena,
}

impl Maps {
    /// All of an arena, from `iova` on.
    pub fn add(&mut self, arena: &Arena, iova: Iova) {
        let (base, len) = arena.region();
        self.0.push(Map { base: base as usize, len, iova, _arena: arena.clone() });
    }

    /// Where the device sees `len` bytes at `ptr`; `None` for memory that it does not reach.
    pub fn iova(&self, ptr: *const u8, len: usize) -> Option<Iova> {
        self.0.iter().find_map(|map| {
            let offset = (ptr as usize).checked_sub(map.base)?;
            (offset.checked_add(len)? <= map.len).then(|| map.iova.offset(offset))
        })
    }
}
