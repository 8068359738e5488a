//! Owned buffers and shared slices of an arena.

use crate::PIECE_MIN;
use crate::arena::Inner;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

/// A buffer with one owner, 4 KiB aligned. Its content is whatever was there before.
pub struct Buf {
    /// Shared with the other parts of a buffer that was split, each of which owns a range of its own.
    block: Arc<Block>,
    start: usize,
    /// Bytes from `start` on that are this buffer's.
    room: usize,
    len: usize,
}

/// A piece of a frozen buffer; clones share it, and nobody can write it any more.
#[derive(Clone)]
pub struct Slice {
    block: Arc<Block>,
    start: usize,
    len: usize,
}

/// A block of an arena, given back when it is dropped.
struct Block {
    arena: Arc<Inner>,
    page: u32,
    order: usize,
}

impl Block {
    fn ptr(&self) -> *mut u8 {
        self.arena.map.at(self.page as usize * PIECE_MIN).as_ptr()
    }
    fn capacity(&self) -> usize {
        PIECE_MIN << self.order
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.arena.give(self.page, self.order);
    }
}

impl Buf {
    pub(crate) fn new(arena: Arc<Inner>, page: u32, order: usize, len: usize) -> Buf {
        let block = Block { arena, page, order };
        let room = block.capacity();
        Buf { block: Arc::new(block), start: 0, room, len }
    }

    /// Bytes that the buffer can hold: a multiple of 4,096; a power of two unless it was split.
    pub fn capacity(&self) -> usize {
        self.room
    }

    /// Splits off what is from byte `at` on, a multiple of 4,096: two buffers, of memory that was waited for once.
    /// It goes back to the arena when both are gone.
    pub fn split_off(&mut self, at: usize) -> Buf {
        assert!(
            at.is_multiple_of(PIECE_MIN) && at <= self.len,
            "byte {at} of {} is no place to split",
            self.len
        );
        let rest = Buf {
            block: self.block.clone(),
            start: self.start + at,
            room: self.room - at,
            len: self.len - at,
        };
        (self.room, self.len) = (at, at);
        rest
    }

    /// Sets the length, up to the capacity. Bytes beyond the old length are whatever they were.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes do not fit a buffer of {}", self.capacity());
        self.len = len;
    }

    /// Ends writing: from here on the bytes are shared and constant.
    pub fn freeze(self) -> Slice {
        Slice { block: self.block, start: self.start, len: self.len }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the block is inside the arena's mapping, initialised by the kernel; `start..start + room` of it
        // is this buffer's alone until it is dropped, since `split_off` gives disjoint ranges; `len` is at most `room`.
        #[expect(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.block.ptr().wrapping_add(self.start), self.len)
        }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` proves that no other reference exists.
        #[expect(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.block.ptr().wrapping_add(self.start), self.len)
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {} bytes)", self.len, self.capacity())
    }
}

impl Slice {
    /// The bytes of `range`, which share this slice's memory.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} is outside of {} bytes",
            self.len
        );
        Slice { block: self.block.clone(), start: self.start + range.start, len: range.end - range.start }
    }

    /// The buffer again, if this slice is the last to share it. Its length is the slice's end.
    ///
    /// # Errors
    /// The slice itself while others share it.
    pub fn try_thaw(self) -> Result<Buf, Slice> {
        let (start, len) = (self.start, self.len);
        match Arc::try_unwrap(self.block) {
            Ok(block) => {
                // Nobody else has a part of it any more: all of it is the buffer's.
                let room = block.capacity();
                Ok(Buf { block: Arc::new(block), start: 0, room, len: start + len })
            }
            Err(block) => Err(Slice { block, start, len }),
        }
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the block was initialised and frozen; nobody holds it mutably while a `Slice` exists,
        // and `slice` keeps start + len within its capacity.
        #[expect(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.block.ptr().wrapping_add(self.start), self.len)
        }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Arena, ArenaConfig};

    fn arena() -> Arena {
        Arena::new(ArenaConfig { limit: 4 << 20 }).expect("map 4 MiB")
    }

    #[test]
    fn a_full_arena_says_so_and_memory_comes_back() {
        let arena = arena();
        let all: Vec<_> = (0..4).map(|_| arena.try_alloc(1 << 20).expect("room")).collect();
        assert!(arena.try_alloc(1).is_none());
        drop(all);
        assert_eq!(arena.stats().in_use, 0);
        assert_eq!(arena.stats().high_water, 4 << 20);
        assert!(arena.try_alloc(4 << 20).is_some());
    }

    #[test]
    fn a_slice_keeps_the_memory_until_the_last_reader_is_gone() {
        let arena = arena();
        let mut buf = arena.try_alloc(5000).expect("room");
        buf.fill(7);
        let slice = buf.freeze();
        let part = slice.slice(4000..5000);
        drop(slice);
        assert_eq!(arena.stats().in_use, 8192);
        assert!(part.iter().all(|b| *b == 7) && part.len() == 1000);
        let buf = part.try_thaw().expect("the last reader");
        assert_eq!(buf.len(), 5000);
    }

    #[test]
    fn parts_of_a_split_buffer_are_apart_and_go_back_together() {
        let arena = arena();
        let mut first = arena.try_alloc(5 * 4096 + 10).expect("room");
        let mut second = first.split_off(2 * 4096);
        let mut third = second.split_off(4096);
        assert_eq!([first.len(), second.len(), third.len()], [2 * 4096, 4096, 2 * 4096 + 10]);
        assert_eq!([first.capacity(), second.capacity(), third.capacity()], [2 * 4096, 4096, 5 * 4096]);
        for (part, byte) in [&mut first, &mut second, &mut third].into_iter().zip(1u8..) {
            part.fill(byte);
        }
        third.set_len(5 * 4096);
        let (first, third) = (first.freeze(), third.freeze());
        assert!(first.iter().all(|b| *b == 1) && second.iter().all(|b| *b == 2));
        assert!(third[..2 * 4096 + 10].iter().all(|b| *b == 3));
        let first = first.try_thaw().expect_err("the others live");
        drop((first, second));
        assert_eq!(arena.stats().in_use, 8 * 4096);
        let whole = third.try_thaw().expect("the last part");
        assert_eq!((whole.len(), whole.capacity()), (8 * 4096, 8 * 4096));
        drop(whole);
        assert_eq!(arena.stats().in_use, 0);
    }

    #[test]
    fn waiters_are_served_in_turn() {
        use std::future::Future;
        use std::pin::pin;
        use std::task::{Context, Poll, Waker};
        let arena = arena();
        let held = arena.try_alloc(4 << 20).expect("room");
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = pin!(arena.alloc(4 << 20));
        let mut second = pin!(arena.alloc(4096));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(held);
        assert!(second.as_mut().poll(&mut cx).is_pending(), "the second may not overtake the first");
        let Poll::Ready(buf) = first.as_mut().poll(&mut cx) else { panic!("the first was next") };
        drop(buf);
        assert!(second.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn a_waiter_that_goes_away_lets_the_next_one_in() {
        use std::future::Future;
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};
        use std::task::{Context, Poll, Wake, Waker};
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let arena = arena();
        let held = arena.try_alloc(2 << 20).expect("room");
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        let mut large = Box::pin(arena.alloc(4 << 20));
        let mut small = Box::pin(arena.alloc(4096));
        assert!(large.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(small.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert!(arena.try_alloc(4096).is_none(), "those who wait come first");
        assert_eq!(arena.stats().waiting, 2);
        drop(large);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        let Poll::Ready(buf) = small.as_mut().poll(&mut Context::from_waker(&waker)) else {
            panic!("it fits, and nobody is before it")
        };
        drop((buf, held));
        assert_eq!(arena.stats().in_use, 0);
        assert_eq!(arena.stats().waiting, 0);
    }

    #[test]
    fn without_hugepages_ordinary_ones_are_used() {
        let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let free = free.map_or(0, |text| text.trim().parse::<u64>().unwrap_or(0));
        let arena = Arena::new_on_hugepages(ArenaConfig { limit: 4 << 20 }).expect("map 4 MiB");
        let mut buf = arena.try_alloc(4 << 20).expect("room");
        buf.fill(1);
        assert_eq!(arena.stats().huge, free >= 2);
    }

    #[test]
    fn untouched_memory_costs_nothing() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
            text.split(' ').nth(1).and_then(|t| t.parse::<u64>().ok()).expect("pages") * 4096
        };
        let before = resident();
        let arena = Arena::new(ArenaConfig { limit: 1 << 30 }).expect("map 1 GiB");
        for _ in 0..100 {
            arena.try_alloc(1 << 20).expect("room").fill(1); // The same low pages again and again.
        }
        assert!(resident() < before + (64 << 20), "{} to {}", before, resident());
    }

    #[test]
    fn copies_are_counted() {
        let before = crate::copied::total();
        crate::copied::add(3);
        crate::copied::add(4);
        assert!(crate::copied::total() >= before + 7);
    }
}
