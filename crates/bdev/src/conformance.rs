//! What every device does alike: the suite that each backend passes. A crate with a backend names it in [`conformance!`],
//! with how it is opened.

#![expect(clippy::unwrap_used, reason = "tests, though they are lent to other crates")]

use crate::{Device, IoError, MemBdev, WriteData};
use cobalt_dma::{Arena, ArenaConfig, Slice};
use cobalt_reactor::{Ctx, Reactor};
use futures::future::{LocalBoxFuture, join_all};
use smallvec::smallvec;
use std::rc::Rc;
use std::time::Duration;

/// Bytes of the device under test.
pub const SIZE: u64 = 8 << 20;

/// In what backends may differ.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    pub volatile_cache: bool,
    /// Operations complete as they are submitted.
    pub at_once: bool,
    /// Nothing is there after reopening.
    pub forgets: bool,
    /// It takes at least so many bytes at a time.
    pub transfer_max: u32,
    /// After the device was dropped, how long what was in flight may take; zero: the drop waits for it.
    pub settles: Duration,
}

/// Opens the device, and opens it again after [`Bench::reopen`] has dropped it.
pub type Open = Box<dyn Fn(Ctx, Arena) -> LocalBoxFuture<'static, Device>>;

/// A device under test, and what it needs to live.
pub struct Bench {
    ctx: Ctx,
    arena: Arena,
    device: Device,
    open: Open,
    traits: Traits,
    /// Bytes of the arena that the device itself uses.
    own: usize,
}

impl Bench {
    /// `len` bytes that tell where they belong.
    fn pattern(&self, len: usize, salt: u64) -> Slice {
        let mut buf = self.arena.try_alloc(len).expect("the arena is large enough");
        for (i, chunk) in buf.chunks_mut(8).enumerate() {
            let word = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt;
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        buf.freeze()
    }

    async fn write(&self, offset: u64, slice: &Slice) {
        self.device.write(offset, smallvec![slice.clone()], false).await.expect("write");
    }

    async fn read(&self, offset: u64, len: usize) -> Slice {
        let buf = self.arena.alloc(len).await;
        self.device.read(offset, buf).await.expect("read").freeze()
    }

    async fn reopen(&mut self) {
        drop(std::mem::replace(&mut self.device, nothing()));
        self.device = (self.open)(self.ctx.clone(), self.arena.clone()).await;
    }
}

/// A device that is none.
fn nothing() -> Device {
    Device::new(Rc::new(MemBdev::new(4096)))
}

/// Runs one test of the suite.
pub fn run<F: Future<Output = ()> + 'static>(
    reactor: &Reactor,
    traits: Traits,
    open: Open,
    test: impl FnOnce(Bench) -> F + 'static,
) {
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let arena = Arena::new(ArenaConfig { limit: 32 << 20 }).unwrap();
        let device = open(ctx.clone(), arena.clone()).await;
        let own = arena.stats().in_use;
        test(Bench { ctx, arena, device, open, traits, own }).await;
    });
}

/// The suite as tests, a module for each backend: `mem: || (reactor, traits, open);`.
#[macro_export]
macro_rules! conformance {
    ($($backend:ident: $start:expr;)*) => {
        $($crate::conformance!{ @tests $backend: $start; [
            says_what_it_is,
            bytes_come_back_at_every_size,
            what_is_out_of_bounds_or_unaligned_is_refused,
            slices_are_written_one_after_the_other,
            more_operations_than_the_depth_wait_their_turn,
            what_was_flushed_or_forced_is_there_after_reopening,
            deallocating_spares_the_neighbours,
            an_operation_outlives_the_task_that_waits_for_it,
            dropping_the_device_answers_everyone,
        ]})*
    };
    (@tests $backend:ident: $start:expr; [$($test:ident,)*]) => {
        mod $backend {
            $(#[test] fn $test() {
                #[allow(unused_imports)]
                use super::*;
                let (reactor, traits, open) = ($start)();
                $crate::conformance::run(&reactor, traits, open, $crate::conformance::$test);
            })*
        }
    };
}

/// Its size, blocks and cache are what they should be.
pub async fn says_what_it_is(b: Bench) {
    let id = b.device.identify();
    assert_eq!(id.size, SIZE);
    assert!(id.block_size.is_power_of_two() && (512..=4096).contains(&id.block_size));
    assert!(id.atomic_write >= 512 && id.atomic_write <= id.block_size);
    assert!(id.depth >= 32 && id.transfer_max >= b.traits.transfer_max);
    assert_eq!(id.volatile_cache, b.traits.volatile_cache);
    assert!(id.deallocate);
}

/// From one block to 4 MiB, at both ends of the device.
pub async fn bytes_come_back_at_every_size(b: Bench) {
    let block = b.device.identify().block_size as usize;
    let mut offset = 0;
    for (salt, len) in [block, 4096, 12288, 65536, 1 << 20, 4 << 20].into_iter().enumerate() {
        let data = b.pattern(len, salt as u64);
        b.write(offset, &data).await;
        assert!(*b.read(offset, len).await == *data, "{len} bytes at {offset}");
        let middle = b.read(offset + (len / 2 / block * block) as u64, block).await;
        assert!(*middle == data[len / 2 / block * block..][..block]);
        offset += len as u64;
    }
    let last = b.pattern(4096, 99);
    b.write(SIZE - 4096, &last).await;
    assert!(*b.read(SIZE - 4096, 4096).await == *last);
}

/// Before it reaches the device, and its memory goes back.
pub async fn what_is_out_of_bounds_or_unaligned_is_refused(b: Bench) {
    let block = u64::from(b.device.identify().block_size);
    let data = b.pattern(4096, 1);
    let half = data.slice(0..(block / 2) as usize);
    let invalid = |r: Result<(), IoError>| assert!(matches!(r, Err(IoError::Invalid { .. })), "{r:?}");
    invalid(b.device.write(SIZE, smallvec![data.clone()], false).await);
    invalid(b.device.write(SIZE - block + 1, smallvec![data.clone()], false).await);
    invalid(b.device.write(u64::MAX - 4095, smallvec![data.clone()], false).await);
    invalid(b.device.write(1, smallvec![data.clone()], false).await);
    invalid(b.device.write(0, smallvec![half.clone()], false).await);
    invalid(b.device.write(0, smallvec![half.clone(), half], false).await);
    invalid(b.device.write(0, WriteData::new(), false).await);
    invalid(b.device.deallocate(0, SIZE + block).await);
    let buf = b.arena.alloc(100).await;
    invalid(b.device.read(0, buf).await.map(drop));
    let buf = b.arena.alloc(8192).await;
    invalid(b.device.read(SIZE - 4096, buf).await.map(drop));
    assert_eq!(b.device.counters().writes, 0, "nothing of it reached the device");
    drop(data);
    assert_eq!(b.arena.stats().in_use, b.own, "refused buffers go back");
}

/// Vectors, longer ones than the system takes among them.
pub async fn slices_are_written_one_after_the_other(b: Bench) {
    let all = b.pattern(64 << 10, 7);
    let cuts = [0, 4096, 16384, 20480, 65536];
    let data: WriteData = cuts.windows(2).map(|w| all.slice(w[0]..w[1])).collect();
    b.device.write(8192, data, false).await.unwrap();
    assert!(*b.read(8192, 64 << 10).await == *all);
    // More pieces than a vectored call takes, in an order of their own.
    let pieces = 1500;
    let data: WriteData =
        (0..pieces).map(|i| all.slice(i * 7 % 16 * 4096..(i * 7 % 16 + 1) * 4096)).collect();
    b.device.write(0, data, true).await.unwrap();
    for i in 0..pieces {
        let from = i * 7 % 16 * 4096;
        assert!(*b.read(i as u64 * 4096, 4096).await == all[from..from + 4096], "piece {i}");
    }
}

/// A full queue is no error.
pub async fn more_operations_than_the_depth_wait_their_turn(b: Bench) {
    let depth = b.device.identify().depth as u64;
    let count = depth.min(400) * 2 + 3;
    let writes = (0..count).map(|i| {
        let data = b.pattern(4096, i);
        let device = b.device.clone();
        async move { device.write(i * 4096, smallvec![data], false).await }
    });
    for result in join_all(writes).await {
        result.unwrap();
    }
    assert_eq!(b.device.in_flight(), 0);
    let reads = (0..count).map(|i| b.read(i * 4096, 4096));
    for (i, read) in join_all(reads).await.into_iter().enumerate() {
        assert!(*read == *b.pattern(4096, i as u64), "block {i}");
    }
    assert_eq!(b.device.counters().writes, count);
    assert_eq!(b.device.counters().write_bytes, count * 4096);
}

/// Flush and FUA keep what they promise.
pub async fn what_was_flushed_or_forced_is_there_after_reopening(mut b: Bench) {
    let (flushed, forced) = (b.pattern(1 << 20, 3), b.pattern(8192, 4));
    b.write(0, &flushed).await;
    b.device.flush().await.unwrap();
    b.device.write(2 << 20, smallvec![forced.clone()], true).await.unwrap();
    let flushes = u64::from(b.device.identify().volatile_cache);
    assert_eq!(b.device.counters().flushes, flushes, "without a volatile cache no flush is sent");
    if b.traits.forgets {
        return;
    }
    b.reopen().await;
    assert!(*b.read(0, 1 << 20).await == *flushed);
    assert!(*b.read(2 << 20, 8192).await == *forced);
}

/// And what was deallocated can be written again.
pub async fn deallocating_spares_the_neighbours(b: Bench) {
    let data = b.pattern(64 << 10, 5);
    b.write(0, &data).await;
    b.device.flush().await.unwrap();
    b.device.deallocate(16384, 16384).await.unwrap();
    assert!(*b.read(0, 16384).await == data[..16384]);
    assert!(*b.read(32768, 32768).await == data[32768..]);
    b.write(16384, &data.slice(0..16384)).await;
    assert!(*b.read(16384, 16384).await == data[..16384]);
    assert_eq!(b.device.counters().deallocates, 1);
}

/// Its memory is its own until the device is done (I7).
pub async fn an_operation_outlives_the_task_that_waits_for_it(b: Bench) {
    let old = b.pattern(4 << 20, 8);
    b.write(0, &old).await;
    b.device.flush().await.unwrap();
    drop(old);
    assert!(b.device.in_flight() == 0);
    let base = b.arena.stats().in_use;
    // Aborted in the very turn in which they were submitted: the memory comes back later, and whole.
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let buf = b.arena.try_alloc(1 << 20).unwrap();
            let device = b.device.clone();
            b.ctx.spawn(async move { device.read(0, buf).await.map(drop) })
        })
        .collect();
    let data = b.pattern(1 << 20, 9);
    let device = b.device.clone();
    let moved = data.clone();
    let write = b.ctx.spawn(async move { device.write(4 << 20, smallvec![moved], false).await });
    // In whatever order the reactor runs them, all are submitted in the end.
    for _ in 0..1000 {
        if b.traits.at_once || b.device.in_flight() >= 5 {
            break;
        }
        b.ctx.yield_now().await;
    }
    b.ctx.yield_now().await;
    tasks.iter().for_each(cobalt_reactor::JoinHandle::abort);
    write.abort();
    if !b.traits.at_once {
        assert!(b.device.in_flight() >= 4);
        assert!(b.arena.stats().in_use >= base + (5 << 20), "none of it may be used by others yet");
    }
    let mut turns = 0;
    while b.device.in_flight() > 0 {
        b.ctx.sleep(Duration::from_micros(20)).await;
        turns += 1;
        assert!(turns < 1_000_000, "aborted operations end");
    }
    drop(data);
    assert_eq!(b.arena.stats().in_use, base);
    // The write was taken whole or not at all begun; the device goes on.
    let fresh = b.pattern(4096, 10);
    b.write(0, &fresh).await;
    assert!(*b.read(0, 4096).await == *fresh);
}

/// Its memory comes back.
pub async fn dropping_the_device_answers_everyone(mut b: Bench) {
    let before = b.arena.stats().in_use;
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let buf = b.arena.try_alloc(64 << 10).unwrap();
            let device = b.device.clone();
            b.ctx.spawn(async move { device.read(0, buf).await.map(drop) })
        })
        .collect();
    b.ctx.yield_now().await;
    reads.iter().for_each(cobalt_reactor::JoinHandle::abort);
    b.ctx.yield_now().await;
    b.device = nothing();
    b.ctx.sleep(b.traits.settles).await;
    b.ctx.yield_now().await; // Threads hand the memory back through a mailbox.
    b.ctx.yield_now().await;
    assert_eq!(b.arena.stats().in_use, before, "dropping waits until the kernel has let go");
}
