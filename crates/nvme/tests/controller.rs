//! The driver on the software controller: bring-up from every state, every size, each kind of loss.

use cobalt_bdev::{Device, IoError, WriteData};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_nvme::soft::{Faults, Found, Soft, SoftConfig, SoftNamespace};
use cobalt_nvme::spec::admin;
use cobalt_nvme::spec::log::{self, ErrorEntry, Firmware, Smart};
use cobalt_nvme::spec::registers::{self, Csts, cc};
use cobalt_nvme::{Controller, Function, Life, Limits, NvmeError};
use cobalt_reactor::{Ctx, Park, Poller, Reactor};
use std::rc::Rc;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn run<F: Future + 'static>(test: impl FnOnce(Ctx, Arena) -> F) -> F::Output {
    let reactor = Reactor::new_virtual(1).expect("an eventfd");
    let arena = Arena::new(ArenaConfig { limit: 32 << 20 }).expect("32 MiB");
    reactor.block_on(test(reactor.ctx(), arena))
}

async fn open(
    ctx: &Ctx,
    arena: &Arena,
    config: SoftConfig,
) -> Result<(Soft, Rc<Controller<Soft>>), NvmeError> {
    let soft = Soft::new(ctx, config, 7);
    let controller = Controller::open(ctx, soft.clone(), std::slice::from_ref(arena), Limits::tiny()).await?;
    Ok((soft, controller))
}

fn device(controller: &Rc<Controller<Soft>>, nsid: u32) -> Device {
    Device::new(Rc::new(controller.namespace(nsid).expect("a namespace")))
}

fn filled(arena: &Arena, len: usize, byte: u8) -> cobalt_dma::Buf {
    let mut buf = arena.try_alloc(len).expect("room");
    buf.fill(byte);
    buf
}

fn data(arena: &Arena, len: usize, byte: u8) -> WriteData {
    WriteData::from_iter([filled(arena, len, byte).freeze()])
}

async fn holds(device: &Device, arena: &Arena, offset: u64, len: usize, byte: u8) -> bool {
    let buf = device.read(offset, filled(arena, len, !byte)).await.expect("a read");
    buf.iter().all(|b| *b == byte)
}

#[test]
fn a_controller_comes_up_from_every_state_it_may_be_found_in() {
    for found in [Found::Disabled, Found::Running, Found::Starting, Found::Fatal, Found::Stuck] {
        run(move |ctx, arena| async move {
            let (soft, controller) =
                open(&ctx, &arena, SoftConfig { found, ..SoftConfig::new(MIB) }).await.expect("it comes up");
            let device = device(&controller, 1);
            device.write(0, data(&arena, 4096, 1), false).await.expect("a write");
            assert!(holds(&device, &arena, 0, 4096, 1).await, "{found:?}");
            assert_eq!(soft.violations(), Vec::<String>::new(), "{found:?}");
        });
    }
}

#[test]
fn a_controller_that_is_gone_is_told_from_one_that_is_broken() {
    for found in [Found::AllOnes, Found::Zeros] {
        run(move |ctx, arena| async move {
            let error = open(&ctx, &arena, SoftConfig { found, ..SoftConfig::new(MIB) }).await.err();
            assert!(matches!(error, Some(NvmeError::Gone { .. })), "{error:?}");
        });
    }
    run(|ctx, arena| async move {
        let faults = Faults { reset_fails: 100, ..Faults::default() };
        let config = SoftConfig { found: Found::Stuck, faults, ..SoftConfig::new(MIB) };
        let error = open(&ctx, &arena, config).await.err();
        assert!(matches!(error, Some(NvmeError::NotReady { .. })), "{error:?}");
    });
}

#[test]
fn every_size_is_split_to_what_the_controller_takes_and_lands_where_it_belongs() {
    for (shift, mdts, dstrd, shadow, sgls) in
        [(12, 0, 0, false, 0), (9, 1, 2, true, 1), (12, 5, 0, true, 0x0302), (9, 8, 4, false, 1)]
    {
        run(move |ctx, arena| async move {
            let namespaces =
                vec![SoftNamespace::new(shift, 2 * MIB), SoftNamespace::new(shift, 8 * MIB + 512)];
            let config =
                SoftConfig { namespaces, mdts, dstrd, shadow_doorbells: shadow, sgls, ..SoftConfig::new(0) };
            let (soft, controller) = open(&ctx, &arena, config).await.expect("it comes up");
            let (small, large) = (device(&controller, 1), device(&controller, 2));
            assert_eq!(large.identify().size, 8 * MIB, "what is not a whole page is not used");
            for (n, len) in (1u8..).zip([4096, 8192, 12288, 131_072, 1 << 20, 4 << 20]) {
                large.write(4096, data(&arena, len, n), n % 2 == 0).await.expect("a write");
                assert!(holds(&large, &arena, 4096, len, n).await, "{len} bytes");
            }
            assert!(holds(&large, &arena, 0, 4096, 0).await && holds(&small, &arena, 0, 1 << 20, 0).await);
            // Three pieces of memory, one write.
            let pieces: Vec<_> =
                [4096, 16384, 8192].iter().zip(60..).map(|(len, b)| data(&arena, *len, b)).collect();
            small.write(8192, pieces.into_iter().flatten().collect(), false).await.expect("a write");
            assert!(holds(&small, &arena, 8192, 4096, 60).await);
            assert!(holds(&small, &arena, 12288, 16384, 61).await);
            assert!(holds(&small, &arena, 28672, 8192, 62).await);
            small.flush().await.expect("a flush");
            assert_eq!(soft.durable(0)[8192], 60);
            small.deallocate(8192, 28672).await.expect("a deallocation");
            assert!(holds(&small, &arena, 8192, 28672, 0).await);
            assert_eq!(soft.violations(), Vec::<String>::new());
            let counters = controller.counters();
            assert!(counters.io.sq_writes <= counters.io.rings && counters.io.rings <= counters.io.submitted);
            drop((small, large));
            controller.close().await.expect("it stops");
            assert!(!soft.is_enabled());
        });
    }
}

#[test]
fn sgls_are_used_for_more_than_two_pages_where_they_are_offered_and_wanted() {
    for (sgls, wanted, used) in
        [(1, true, true), (2, true, true), (0, true, false), (3, true, false), (1, false, false)]
    {
        run(move |ctx, arena| async move {
            let soft = Soft::new(&ctx, SoftConfig { sgls, ..SoftConfig::new(MIB) }, 7);
            let limits = Limits { sgls: wanted, ..Limits::tiny() };
            let controller = Controller::open(&ctx, soft.clone(), std::slice::from_ref(&arena), limits).await;
            let controller = controller.expect("it comes up");
            let device = device(&controller, 1);
            // Apart, since what lies between is kept; one piece; one and two pages.
            let memory = filled(&arena, 8 * 4096, 1).freeze();
            let apart = [0, 2, 5].map(|page| memory.slice(page * 4096..(page + 1) * 4096));
            device.write(0, WriteData::from_iter(apart), false).await.expect("a write");
            device.write(4 * 4096, data(&arena, 1 << 17, 2), true).await.expect("a write");
            assert!(holds(&device, &arena, 0, 3 * 4096, 1).await);
            assert!(holds(&device, &arena, 3 * 4096, 4096, 0).await);
            // After a reset as before it.
            device.flush().await.expect("a flush");
            soft.fail();
            ctx.sleep(Duration::from_millis(100)).await;
            assert!(holds(&device, &arena, 4 * 4096, 1 << 17, 2).await);
            assert!(holds(&device, &arena, 0, 2 * 4096, 1).await);
            let (ours, theirs) = (controller.counters(), soft.counters());
            assert_eq!(controller.counters().resets, 1);
            assert_eq!((ours.sgl_blocks, ours.sgl_lists), if used { (3, 1) } else { (0, 0) }, "{sgls:#x}");
            assert_eq!((theirs.sgl_blocks, theirs.sgl_lists), (ours.sgl_blocks, ours.sgl_lists));
            assert_eq!(theirs.prp_lists, if used { 0 } else { 4 });
            assert_eq!(soft.violations(), Vec::<String>::new());
        });
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    run(|ctx, arena| async move {
        let plain = SoftNamespace::new(12, MIB);
        let namespaces = vec![
            plain.clone(),
            SoftNamespace { command_set: 2, ..plain.clone() },
            SoftNamespace { metadata: 8, ..plain.clone() },
            SoftNamespace { block_shift: 13, ..plain },
        ];
        let (_, controller) =
            open(&ctx, &arena, SoftConfig { namespaces, ..SoftConfig::new(0) }).await.expect("it comes up");
        let refused = |nsid| controller.namespace(nsid).err().map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(refused(1), "");
        assert!(refused(2).contains("is zoned"), "{}", refused(2));
        assert!(refused(3).contains("8 bytes of metadata"), "{}", refused(3));
        assert!(refused(4).contains("2^13"), "{}", refused(4));
        assert!(refused(5).contains("has no namespace 5; it has 1, 2, 3, 4"), "{}", refused(5));
        let config = SoftConfig { page_shift: 2, ..SoftConfig::new(MIB) };
        let error = open(&ctx, &arena, config).await.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("smallest memory page has 16384 bytes"), "{error}");
    });
}

#[test]
fn a_controller_that_fails_again_while_it_is_brought_up_is_not_waited_for() {
    run(|ctx, arena| async move {
        let limits = Limits { admin_time: Duration::from_secs(1000), ..Limits::tiny() };
        let soft = Soft::new(&ctx, SoftConfig::new(MIB), 7);
        let controller = Controller::open(&ctx, soft.clone(), std::slice::from_ref(&arena), limits).await;
        let controller = controller.expect("it comes up");
        let device = device(&controller, 1);
        soft.lose_power();
        let begun = ctx.now();
        let (writer, written) = (device.clone(), data(&arena, 4096, 1));
        let write = ctx.spawn(async move { writer.write(0, written, false).await });
        let before = soft.counters().completions;
        while soft.counters().completions < before + 2 {
            ctx.sleep(Duration::from_micros(1)).await;
        }
        assert_eq!(controller.life(), Life::Starting, "its queues are not made yet");
        soft.lose_power();
        write.join().await.expect("a task").expect("a write");
        assert!(holds(&device, &arena, 0, 4096, 1).await);
        assert_eq!(controller.counters().resets, 2);
        assert!(
            ctx.now() - begun < Duration::from_secs(1),
            "nobody waits for an answer of a controller that is off"
        );
    });
}

/// Until a controller has been told to come up, and is not ready yet.
async fn told_to_come_up(ctx: &Ctx, soft: &Soft) {
    for _ in 0..1_000_000 {
        if soft.read32(registers::CC) & cc::EN != 0 && !Csts(soft.read32(registers::CSTS)).ready() {
            return;
        }
        ctx.sleep(Duration::from_micros(1)).await;
    }
    panic!("nobody brings it up");
}

#[test]
fn a_controller_that_somebody_disables_while_it_comes_up_is_not_waited_for() {
    run(|ctx, arena| async move {
        let limits = Limits { ready_time: Duration::from_secs(1000), ..Limits::tiny() };
        let soft = Soft::new(&ctx, SoftConfig::new(MIB), 7);
        let (opens, at, memory, patient) = (soft.clone(), ctx.clone(), arena.clone(), limits.clone());
        let begun = ctx.now();
        let opened = ctx.spawn(async move {
            Controller::open(&at, opens, std::slice::from_ref(&memory), patient).await.err()
        });
        told_to_come_up(&ctx, &soft).await;
        soft.write32(registers::CC, 0);
        let error = opened.join().await.expect("a task");
        assert!(matches!(error, Some(NvmeError::Disabled { .. })), "{error:?}");
        assert!(ctx.now() - begun < Duration::from_secs(1));
        assert_eq!(arena.stats().in_use, 0);
        // In a reset: the next one succeeds.
        let soft = Soft::new(&ctx, SoftConfig::new(MIB), 7);
        let controller = Controller::open(&ctx, soft.clone(), std::slice::from_ref(&arena), limits).await;
        let controller = controller.expect("it comes up");
        let begun = ctx.now();
        soft.fail();
        told_to_come_up(&ctx, &soft).await;
        soft.write32(registers::CC, 0);
        let device = device(&controller, 1);
        device.write(0, data(&arena, 4096, 1), false).await.expect("a write");
        assert_eq!(controller.counters().resets, 2);
        assert!(ctx.now() - begun < Duration::from_secs(1));
    });
}

#[test]
fn a_disk_that_loses_its_power_in_a_reset_never_says_that_unflushed_writes_are_durable() {
    run(|ctx, arena| async move {
        let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        let device = device(&controller, 1);
        device.write(0, data(&arena, 4096, 1), false).await.expect("a write");
        // A reset for want of an answer: by itself it loses nothing.
        soft.hang_next(admin::GET_LOG_PAGE);
        let asks = controller.clone();
        let asked = ctx.spawn(async move { asks.log_page::<Smart>().await.is_err() });
        while controller.life() != Life::Starting {
            ctx.sleep(Duration::from_micros(1)).await;
        }
        told_to_come_up(&ctx, &soft).await;
        soft.lose_power();
        assert!(asked.await);
        assert!(device.flush().await.is_err(), "the write is lost");
        assert_eq!((controller.life(), controller.counters().resets), (Life::Ready, 2));
        assert!(holds(&device, &arena, 0, 4096, 0).await);
    });
}

#[test]
fn a_device_that_is_pulled_out_answers_everybody_and_its_memory_comes_back_only_with_proof() {
    for (value, unmap_fails) in [(u32::MAX, 0), (0, 0), (u32::MAX, 100), (0, 100)] {
        run(move |ctx, arena| async move {
            let faults = Faults { unmap_fails, ..Faults::default() };
            let (soft, controller) =
                open(&ctx, &arena, SoftConfig { faults, ..SoftConfig::new(MIB) }).await.expect("it comes up");
            let device = device(&controller, 1);
            let queues = arena.stats().in_use;
            let reads: Vec<_> = (0..20)
                .map(|n| {
                    let (device, buf) = (device.clone(), filled(&arena, 4096, 0));
                    ctx.spawn(async move { device.read(n * 4096, buf).await.err() })
                })
                .collect();
            soft.remove(value);
            let begun = ctx.now();
            for read in reads {
                assert_eq!(read.await, Some(IoError::Gone));
            }
            assert!(ctx.now() - begun < Duration::from_secs(1), "nobody tries to reset what is not there");
            assert_eq!(controller.life(), Life::Gone);
            let write = device.write(0, data(&arena, 4096, 1), false).await;
            assert_eq!(write, Err(IoError::Gone), "what comes later is told at once");
            assert_eq!(device.lost(), Some(IoError::Gone.to_string()));
            let leaked = controller.counters().leaked;
            assert_eq!(leaked > 0, unmap_fails == 100);
            assert!(soft.is_released(), "whoever takes it out waits for its descriptors, proof or not");
            drop((device, controller));
            let left = arena.stats().in_use;
            if unmap_fails == 100 { assert!(left > queues) } else { assert_eq!(left, 0) }
        });
    }
}

#[test]
fn an_idle_device_that_is_pulled_out_says_so_without_being_asked_for_anything() {
    for value in [u32::MAX, 0] {
        run(move |ctx, arena| async move {
            let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
            let device = device(&controller, 1);
            ctx.sleep(Duration::from_secs(1)).await;
            assert_eq!(device.lost(), None);
            soft.remove(value);
            ctx.sleep(2 * Limits::tiny().health_every).await;
            assert_eq!(device.lost(), Some(IoError::Gone.to_string()));
        });
    }
}

#[test]
fn a_shutdown_is_announced_and_all_memory_comes_back() {
    run(|ctx, arena| async move {
        let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        let device = device(&controller, 1);
        device.write(0, data(&arena, 8192, 5), false).await.expect("a write");
        assert_eq!(soft.durable(0)[0], 0, "it is in the cache");
        controller.close().await.expect("it stops");
        assert!(soft.is_released());
        assert_eq!(soft.durable(0)[0], 5, "the shutdown wrote the cache back");
        assert_eq!(device.read(0, filled(&arena, 4096, 0)).await.err(), Some(IoError::Gone));
        drop((device, controller));
        assert_eq!(arena.stats().in_use, 0);
    });
}

#[test]
fn a_controller_that_is_dropped_without_a_shutdown_keeps_its_memory() {
    run(|ctx, arena| async move {
        let (_, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        let used = arena.stats().in_use;
        drop(controller);
        ctx.sleep(Duration::from_secs(1)).await;
        assert_eq!(arena.stats().in_use, used, "nobody saw it stop");
    });
}

#[test]
fn a_failed_controller_with_unflushed_writes_never_says_that_they_are_durable() {
    run(|ctx, arena| async move {
        let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        let device = device(&controller, 1);
        device.write(0, data(&arena, 4096, 1), false).await.expect("a write");
        device.flush().await.expect("a flush");
        device.write(0, data(&arena, 4096, 2), false).await.expect("a write");
        soft.fail();
        ctx.sleep(Duration::from_millis(100)).await;
        assert_eq!((controller.life(), controller.counters().resets), (Life::Ready, 1));
        let flush = device.flush().await;
        assert!(
            matches!(&flush, Err(IoError::Failed { reason, .. }) if reason.contains("unflushed")),
            "{flush:?}"
        );
        assert!(holds(&device, &arena, 0, 4096, 1).await, "the second write is lost indeed");
    });
}

#[test]
fn a_flush_that_a_failed_controller_completes_is_not_believed() {
    run(|ctx, arena| async move {
        let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        let device = device(&controller, 1);
        device.write(0, data(&arena, 4096, 1), false).await.expect("a write");
        // It goes on completing commands. Nobody looks at its state before the flush is done.
        soft.fail();
        let flush = device.flush().await;
        assert!(matches!(flush, Err(IoError::Failed { .. })), "{flush:?}");
        assert!(holds(&device, &arena, 0, 4096, 0).await, "the write is lost indeed");
    });
}

#[test]
fn a_turn_that_submits_rings_once_however_many_commands_there_are() {
    run(|ctx, arena| async move {
        let (_, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        let device = device(&controller, 1);
        let before = controller.counters().io;
        let reads: Vec<_> = (0..8)
            .map(|n| {
                let (device, buf) = (device.clone(), filled(&arena, 4096, 0));
                ctx.spawn(async move { device.read(n * 4096, buf).await.map(drop) })
            })
            .collect();
        for read in reads {
            read.await.expect("a read");
        }
        let after = controller.counters().io;
        assert_eq!(after.submitted - before.submitted, 8);
        assert_eq!((after.rings - before.rings, after.sq_writes - before.sq_writes), (1, 1));
    });
}

#[test]
fn a_request_that_fails_before_all_of_its_parts_were_issued_leaves_no_trace() {
    run(|ctx, arena| async move {
        let faults = Faults { status: 1_000_000, ..Faults::default() };
        let config = SoftConfig { mdts: 1, faults, ..SoftConfig::new(MIB) };
        let soft = Soft::new(&ctx, config, 7);
        let limits = Limits { depth: 1, ..Limits::tiny() };
        let arenas = std::slice::from_ref(&arena);
        let controller = Controller::open(&ctx, soft, arenas, limits).await.expect("it comes up");
        let device = device(&controller, 1);
        for _ in 0..20 {
            let write = device.write(0, data(&arena, 1 << 17, 1), false).await;
            assert!(matches!(write, Err(IoError::Failed { .. })), "{write:?}");
            let read = device.read(0, filled(&arena, 4096, 0)).await;
            assert!(matches!(read, Err(IoError::Failed { .. })), "{read:?}");
        }
        assert_eq!((controller.life(), controller.in_flight()), (Life::Ready, 0));
    });
}

#[test]
fn a_disk_that_lost_its_power_never_says_that_unflushed_writes_are_durable() {
    for idle in [true, false] {
        run(move |ctx, arena| async move {
            let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
            let device = device(&controller, 1);
            device.write(0, data(&arena, 4096, 1), false).await.expect("a write");
            soft.lose_power();
            if idle {
                ctx.sleep(Duration::from_millis(100)).await;
                assert_eq!(controller.life(), Life::Ready, "it came back");
            }
            assert!(device.flush().await.is_err(), "the write is lost");
            assert!(device.flush().await.is_err(), "it stays lost");
            assert!(holds(&device, &arena, 0, 4096, 0).await);
        });
    }
}

#[test]
fn a_controller_that_is_closed_during_a_reset_stays_closed() {
    run(|ctx, arena| async move {
        let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        soft.fail();
        for _ in 0..1000 {
            if controller.life() == Life::Starting {
                break;
            }
            ctx.sleep(Duration::from_micros(20)).await;
        }
        assert_eq!(controller.life(), Life::Starting, "a reset was caught");
        controller.close().await.expect("it stops");
        ctx.sleep(Duration::from_secs(1)).await;
        assert_eq!(controller.life(), Life::Closed);
        assert!(!soft.is_enabled());
        drop(controller);
        assert_eq!(arena.stats().in_use, 0);
    });
}

#[test]
fn events_are_asked_for_again_once_their_page_was_read_and_never_where_they_are_refused() {
    run(|ctx, arena| async move {
        let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        ctx.sleep(Duration::from_millis(10)).await;
        for (kind, page) in [(0, 1), (1, 2), (2, 4), (2, 4)] {
            soft.raise_event(kind, page);
            ctx.sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(soft.pages_read(), [1, 2, 4, 4]);
        assert_eq!(controller.counters().events, 4);
        let faults = Faults { events_refused: true, ..Faults::default() };
        let config = SoftConfig { faults, ..SoftConfig::new(MIB) };
        let (soft, controller) = open(&ctx, &arena, config).await.expect("it comes up");
        ctx.sleep(Duration::from_secs(1)).await;
        assert_eq!((controller.life(), controller.counters().events), (Life::Ready, 0));
        assert!(soft.counters().completions < 40, "{:?}", soft.counters());
    });
}

#[test]
fn completions_of_the_wrong_round_are_not_believed() {
    run(|ctx, arena| async move {
        let faults = Faults { phase: 50_000, ..Faults::default() };
        let config = SoftConfig { faults, ..SoftConfig::new(MIB) };
        let (soft, controller) = open(&ctx, &arena, config).await.expect("it comes up");
        let device = device(&controller, 1);
        for n in 0..100u8 {
            let at = u64::from(n) * 8192;
            if device.write(at, data(&arena, 8192, n), false).await.is_ok() {
                assert!(
                    device.read(at, filled(&arena, 8192, !n)).await.is_ok_and(|b| b.iter().all(|x| *x == n))
                );
            }
        }
        assert!(soft.counters().illegal > 0 && controller.counters().resets > 0);
        assert_eq!(soft.violations(), Vec::<String>::new());
    });
}

/// Found in a test machine: commands of a bring-up were seen half a minute late, when the next timer ran out.
#[test]
fn a_reactor_does_not_sleep_on_an_admin_command() {
    run(|ctx, arena| async move {
        let (_, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        assert_eq!(controller.arm(), Park::Idle, "an event may take for ever");
        let asks = controller.clone();
        let page = ctx.spawn(async move { asks.log_page::<Smart>().await });
        // The controller takes 20 us for it.
        ctx.sleep(Duration::from_micros(1)).await;
        assert_eq!(controller.arm(), Park::Busy);
        page.await.expect("a log page");
        assert_eq!(controller.arm(), Park::Idle);
    });
}

#[test]
fn log_pages_are_read_while_commands_run_and_malformed_ones_are_typed_errors() {
    run(|ctx, arena| async move {
        let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        let device = device(&controller, 1);
        let writes = ctx.spawn({
            let (device, arena) = (device.clone(), arena.clone());
            async move {
                for n in 0..100u64 {
                    device.write(n % 16 * 4096, data(&arena, 4096, 1), false).await.expect("a write");
                }
            }
        });
        let smart = controller.log_page::<Smart>().await.expect("a healthy page");
        assert_eq!((smart.celsius(), smart.spare, smart.used), (Some(40), 100, 3));
        assert_eq!((smart.power_on_hours.get(), smart.unsafe_shutdowns.get()), (4711, 5));
        assert_eq!(controller.log_page::<Firmware>().await.expect("firmware slots").active, 1);
        assert_eq!(controller.log_page::<ErrorEntry>().await.expect("no error yet").count.get(), 0);
        writes.await;
        for (id, page) in [(log::SMART, [0xff; 512]), (log::SMART, [0; 512]), (log::FIRMWARE, [0; 512])] {
            soft.set_log_page(id, &page);
            let error = match id {
                log::SMART => controller.log_page::<Smart>().await.map(drop),
                _ => controller.log_page::<Firmware>().await.map(drop),
            };
            assert!(matches!(error, Err(NvmeError::Malformed { .. })), "{error:?}");
        }
        assert_eq!(
            (controller.life(), controller.counters().resets),
            (Life::Ready, 0),
            "nothing but an answer"
        );
        assert_eq!(soft.violations(), Vec::<String>::new());
    });
}

#[test]
fn a_controller_that_is_gone_or_failed_is_not_asked_for_its_health() {
    // With and without a proof that it has stopped: without one its queues are given up.
    for (value, unmap_fails) in [(u32::MAX, 0), (u32::MAX, 100)] {
        run(move |ctx, arena| async move {
            let faults = Faults { unmap_fails, ..Faults::default() };
            let (soft, controller) =
                open(&ctx, &arena, SoftConfig { faults, ..SoftConfig::new(MIB) }).await.expect("it comes up");
            let asks = controller.clone();
            let asked = ctx.spawn(async move { asks.log_page::<Smart>().await.map(drop) });
            ctx.sleep(Duration::from_micros(1)).await;
            soft.remove(value);
            assert!(asked.await.is_err(), "a command that is under way ends");
            let begun = ctx.now();
            let error = controller.log_page::<Smart>().await.expect_err("nobody is there").to_string();
            assert!(error.contains("it is gone") && ctx.now() == begun, "{error}");
        });
    }
}

#[test]
fn a_controller_that_is_given_up_is_let_go_and_may_be_closed_after_that() {
    for unmap_fails in [0, 100] {
        run(move |ctx, arena| async move {
            // It never stops by itself, and comes back from no reset.
            let faults = Faults {
                disable_stuck: 100,
                reset_fails: 100,
                unmap_fails,
                bus_master_stuck: unmap_fails,
                ..Faults::default()
            };
            let (soft, controller) =
                open(&ctx, &arena, SoftConfig { faults, ..SoftConfig::new(MIB) }).await.expect("it comes up");
            let device = device(&controller, 1);
            assert!(!soft.is_released() && device.lost().is_none());
            soft.fail();
            ctx.sleep(Duration::from_secs(1)).await;
            let Life::Failed(why) = controller.life() else { panic!("{:?}", controller.life()) };
            assert_eq!(device.lost(), Some(why), "nobody asked it for anything");
            drop(device);
            assert!(soft.is_released());
            let closed = controller.close().await;
            assert_eq!(closed.is_ok(), unmap_fails == 0, "{closed:?}");
            assert_eq!(controller.life(), Life::Closed);
            drop(controller);
            assert_eq!(arena.stats().in_use > 0, unmap_fails == 100, "memory comes back with proof alone");
            assert_eq!(soft.violations(), Vec::<String>::new());
        });
    }
}

/// Found by `prove nvme`: who looks after the controller waited for its page, which a hung command had, and nobody reset it.
#[test]
fn a_health_page_that_never_comes_does_not_keep_events_or_commands_waiting() {
    run(|ctx, arena| async move {
        let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        let device = device(&controller, 1);
        ctx.sleep(Duration::from_millis(10)).await;
        soft.hang_next(admin::GET_LOG_PAGE);
        let asks = controller.clone();
        let asked = ctx.spawn(async move { asks.log_page::<Smart>().await.map(drop) });
        ctx.sleep(Duration::from_millis(1)).await;
        soft.raise_event(1, 2);
        device.write(0, data(&arena, 4096, 1), false).await.expect("a write");
        assert!(asked.await.is_err());
        ctx.sleep(Duration::from_millis(100)).await;
        assert_eq!((controller.life(), controller.counters().resets), (Life::Ready, 1));
        assert_eq!(controller.log_page::<Smart>().await.expect("it answers again").spare, 100);
        assert!(holds(&device, &arena, 0, 4096, 1).await);
    });
}

#[test]
fn an_admin_command_that_hangs_is_the_controllers_end_or_a_reset_and_never_a_wait_without_one() {
    for opcode in
        [admin::IDENTIFY, admin::SET_FEATURES, admin::GET_FEATURES, admin::CREATE_IO_CQ, admin::CREATE_IO_SQ]
    {
        run(move |ctx, arena| async move {
            // At the first time: it does not come up, and its memory comes back.
            let soft = Soft::new(&ctx, SoftConfig::new(MIB), 7);
            soft.hang_next(opcode);
            let arenas = std::slice::from_ref(&arena);
            let refused = Controller::open(&ctx, soft.clone(), arenas, Limits::tiny()).await;
            assert!(matches!(refused.err(), Some(NvmeError::TimedOut { .. })), "{opcode:#x}");
            assert_eq!((arena.stats().in_use, soft.is_released()), (0, true));
            // In a reset: the next one succeeds.
            let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
            soft.hang_next(opcode);
            soft.fail();
            ctx.sleep(Duration::from_millis(200)).await;
            assert_eq!((controller.life(), controller.counters().resets), (Life::Ready, 2), "{opcode:#x}");
            assert_eq!(soft.violations(), Vec::<String>::new());
        });
    }
}

/// Found by `prove nvme`: a question that came in the middle of a reset hung, and the reset waited for the page that it had.
#[test]
fn a_question_during_a_reset_is_refused_and_does_not_keep_it_waiting() {
    run(|ctx, arena| async move {
        let (soft, controller) = open(&ctx, &arena, SoftConfig::new(MIB)).await.expect("it comes up");
        soft.fail();
        soft.hang_next(admin::GET_LOG_PAGE);
        let (asks, within) = (controller.clone(), ctx.clone());
        let asked = ctx.spawn(async move {
            let mut errors = 0;
            for _ in 0..2000 {
                errors += u32::from(asks.log_page::<Smart>().await.is_err());
                within.sleep(Duration::from_micros(20)).await;
            }
            errors
        });
        let errors = asked.await;
        assert!(errors > 1, "it was asked during the reset: {errors}");
        ctx.sleep(Duration::from_millis(100)).await;
        assert_eq!(controller.life(), Life::Ready);
        assert_eq!(controller.log_page::<Smart>().await.expect("it answers again").spare, 100);
    });
}
