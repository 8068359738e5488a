//! An allocator that counts what each thread holds, so that a fuzzer sees when a few bytes of input ask for a lot of
//! memory. The system's own does the work.

#![expect(
    unsafe_code,
    reason = "an allocator is unsafe by its trait; every call goes to the system's with the same words"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn add(bytes: i64) {
    // A thread that is on its way out has no counters any more, and nobody asks for them.
    let _ = LIVE.try_with(|live| {
        let now = live.get() + bytes;
        live.set(now);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: every call is passed on to the system's allocator unchanged, which keeps the contract; the counters are plain
// numbers of this thread, without a destructor, and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(signed(layout.size()));
        // SAFETY: the caller keeps `alloc`'s contract, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        add(-signed(layout.size()));
        // SAFETY: the caller got `at` from this allocator with this layout, so the system's has it.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(signed(layout.size()));
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(signed(size) - signed(layout.size()));
        // SAFETY: as in `dealloc`; `size` is the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Runs something; the most bytes that this thread held more than before.
pub fn peak_of<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let before = start();
    let result = run();
    (result, since(before))
}

/// From now on the peak counts anew; what is held now.
pub fn start() -> i64 {
    let live = LIVE.get();
    PEAK.set(live);
    live
}

/// The most that was held beyond `before`.
pub fn since(before: i64) -> u64 {
    u64::try_from(PEAK.get() - before).unwrap_or(0)
}
