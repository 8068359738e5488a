//! What only the io_uring backend promises: registration, sleeping while I/O runs, and order beyond its depth.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests, too")]

use cobalt_bdev::{Device, DeviceUri, OpenMode, open_uri};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Idle, Reactor, ReactorConfig};
use futures::future::join_all;
use smallvec::smallvec;
use std::io::Write;
use std::time::Duration;
use tempfile::TempDir;

/// Runs `test` on a new file over io_uring, on a reactor that sleeps whenever it can.
fn on_ring<F: Future<Output = ()> + 'static>(
    name: &str,
    test: impl FnOnce(Ctx, Arena, Device) -> F + 'static,
) {
    if io_uring::IoUring::new(8).is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: this kernel refuses io_uring");
        return;
    }
    let dir = TempDir::new().unwrap();
    let uri: DeviceUri =
        format!("file:{}/{name}?size=16MiB&sparse=true", dir.path().display()).parse().unwrap();
    let config = ReactorConfig { idle: Idle::Adaptive(Duration::ZERO), ..ReactorConfig::default() };
    let reactor = Reactor::new(config).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let arena = Arena::new(ArenaConfig { limit: 64 << 20 }).unwrap();
        let mode = OpenMode { create: true, ..OpenMode::default() };
        let device = open_uri(&ctx, &arena, &uri, mode).await.unwrap();
        test(ctx, arena, device).await;
    });
}

/// What the kernel says about the ring that has `name` among its registered files.
fn ring_info(name: &str) -> Option<String> {
    let all = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let texts = all.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts.into_iter().find(|text| text.contains("UserFiles") && text.contains(name))
}

/// The table's size and how many of its entries are filled.
fn buffers(info: &str) -> (usize, usize) {
    let table = info.lines().skip_while(|l| !l.starts_with("UserBufs:"));
    let size = table.clone().next().and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
    let filled = table.skip(1).take_while(|l| l.starts_with(' ')).filter(|l| l.contains("/4194304")).count();
    (size, filled)
}

#[test]
fn the_file_and_the_touched_memory_are_registered() {
    on_ring("registered-0", |_, arena, device| async move {
        let info = ring_info("registered-0").expect("the file is registered");
        if !arena.stats().locked {
            assert!(device.identify().backend.ends_with("buffers not registered"));
            return;
        }
        assert_eq!(buffers(&info), (16, 1), "{info}");
        let mut held = Vec::new();
        for at in 0..3 {
            let buf = arena.try_alloc(4 << 20).unwrap();
            device.write(at * (4 << 20), smallvec![buf.freeze()], false).await.unwrap();
            held.push(device.read(at * (4 << 20), arena.try_alloc(4 << 20).unwrap()).await.unwrap());
        }
        let (_, filled) = buffers(&ring_info("registered-0").unwrap());
        assert_eq!(filled, 3, "the blocks that were used, and none of the rest");
        // Memory of another arena works as well, without being registered.
        let other = Arena::new(ArenaConfig { limit: 4 << 20 }).unwrap();
        let mut buf = other.try_alloc(4096).unwrap();
        buf.fill(5);
        device.write(0, smallvec![buf.freeze()], false).await.unwrap();
        let buf = device.read(0, other.try_alloc(4096).unwrap()).await.unwrap();
        assert!(buf.iter().all(|b| *b == 5));
        assert_eq!(buffers(&ring_info("registered-0").unwrap()).1, 3);
    });
}

#[test]
fn the_reactor_sleeps_while_the_disk_works_and_misses_nothing() {
    on_ring("sleeps", |ctx, arena, device| async move {
        const COUNT: u64 = 300;
        let before = ctx.stats();
        for i in 0..COUNT {
            let buf = arena.try_alloc(64 << 10).unwrap();
            device.write(i % 32 * (64 << 10), smallvec![buf.freeze()], i % 3 == 0).await.unwrap();
        }
        let after = ctx.stats();
        assert!(after.parks > before.parks, "it slept");
        assert!(
            after.turns - before.turns < COUNT * 10,
            "it did not spin: {} turns",
            after.turns - before.turns
        );
    });
}

#[test]
fn more_than_the_ring_holds_is_taken_in_turn() {
    on_ring("deep", |_, arena, device| async move {
        // Each handle has its own count: together they ask for several times the depth.
        let handles: Vec<Device> = (0..4).map(|_| Device::new(device.bdev().clone())).collect();
        let depth = u64::from(device.identify().depth);
        let writes = (0..depth * 4).map(|i| {
            let mut buf = arena.try_alloc(4096).unwrap();
            buf.chunks_mut(8).for_each(|c| c.copy_from_slice(&i.to_le_bytes()));
            let device = handles[usize::try_from(i % 4).unwrap()].clone();
            async move { device.write(i * 4096, smallvec![buf.freeze()], false).await }
        });
        assert!(join_all(writes).await.into_iter().all(|r| r.is_ok()));
        for i in 0..depth * 4 {
            let buf = device.read(i * 4096, arena.try_alloc(4096).unwrap()).await.unwrap();
            assert!(buf.chunks(8).all(|c| c == i.to_le_bytes()), "block {i}");
        }
    });
}

#[test]
fn what_was_submitted_is_finished_before_the_memory_goes() {
    on_ring("drained", |ctx, arena, device| async move {
        let mut buf = arena.try_alloc(4 << 20).unwrap();
        buf.fill(0x5a);
        let (data, own) = (buf.freeze(), device.clone());
        let write = ctx.spawn(async move { own.write(0, smallvec![data], false).await });
        ctx.yield_now().await;
        write.abort();
        assert_eq!((device.in_flight(), arena.stats().in_use), (1, 4 << 20));
        let path = device.identify().backend.split(' ').nth(2).unwrap().trim_end_matches(',').to_owned();
        drop(device);
        assert_eq!(arena.stats().in_use, 0);
        let bytes = std::fs::read(path).unwrap();
        assert!(
            bytes[..4 << 20].iter().all(|b| *b == 0x5a),
            "the kernel read the memory while it was the write's"
        );
    });
}

#[test]
fn an_idle_device_costs_nothing() {
    on_ring("idle", |ctx, _, device| async move {
        let before = ctx.stats().turns;
        ctx.sleep(Duration::from_millis(100)).await;
        assert!(ctx.stats().turns - before < 10);
        drop(device);
    });
}

#[test]
fn the_device_works_on_a_batch_while_tasks_still_run() {
    on_ring("batch-0", |_, arena, device| async move {
        let block = |n: u8| {
            let mut buf = arena.try_alloc(4096).unwrap();
            buf.fill(n);
            buf.freeze()
        };
        device.write(0, smallvec![block(1)], false).await.unwrap();
        let mut writes: Vec<_> =
            (2..34).map(|n| Box::pin(device.write(0, smallvec![block(n)], false))).collect();
        for write in &mut writes {
            assert!(futures::poll!(write).is_pending());
        }
        // The reactor has had no turn since. All but what is less than a batch is the kernel's already.
        let info = ring_info("batch-0").expect("the file is registered");
        let entry = |name: &str| -> u64 {
            let line = info.lines().find_map(|l| l.strip_prefix(name)).expect("the kernel says it");
            line.trim().parse().unwrap()
        };
        assert!(entry("SqTail:") - entry("SqHead:") < 8, "{info}");
        for done in join_all(writes).await {
            done.unwrap();
        }
    });
}
