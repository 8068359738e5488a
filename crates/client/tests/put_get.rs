//! Bodies in, bodies out, and what happens when targets are down, full, hurt or slow.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod world;

use cobalt_client::{ClientError, LayoutConfig};
use cobalt_rpc::proto::record::Body;
use std::rc::Rc;
use std::time::Duration;
use world::{Mood, Shape, World, bytes, put_command, read, run};

const SIZES: [usize; 12] = [
    0,
    1,
    4095,
    4096,
    8193,
    65_537,
    (1 << 20) - 1,
    1 << 20,
    (1 << 20) + 1,
    2 << 20,
    (8 << 20) + 123,
    (3 << 20) + 5,
];

async fn put_all(world: &World) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for size in SIZES {
        let (key, data) = (format!("o{size}"), bytes(size as u64 + 1, size));
        world.put(&key, &data).await.unwrap();
        all.push((key, data));
    }
    all
}

#[test]
fn what_was_put_is_got() {
    run(Shape::default(), |world| async move {
        for (key, data) in put_all(&world).await {
            assert!(world.get(&key).await.unwrap() == data, "{key}");
        }
        assert_eq!(world.client.counters().units_decoded, 0);
        assert!(world.catalogue.dead.borrow().is_empty());
        world.pass(Duration::from_millis(10)).await;
        assert_eq!(world.arena.stats().in_use, 0, "all memory came back");
    });
}

#[test]
fn a_body_of_unknown_size_is_laid_out_in_full_units() {
    run(Shape::default(), |world| async move {
        let data = bytes(3, (3 << 20) + 77);
        let stored = world.store(&data, false).await.unwrap();
        world.handle.publish(stored, |body| put_command("o", body, data.len() as u64)).await.unwrap();
        assert!(world.get("o").await.unwrap() == data);
        let object = world.open("o").await.unwrap();
        let Body::Single(extent) = &object.record().body else { panic!() };
        assert_eq!((extent.size, extent.layout.unit_size), (data.len() as u64, 1 << 20));
    });
}

#[test]
fn eight_mebibytes_at_two_and_one_are_twelve_unit_writes() {
    run(Shape::default(), |world| async move {
        world.put("warm", &bytes(1, 1)).await.unwrap();
        let before = world.client.counters();
        let writes: Vec<u64> = world.targets.iter().map(|t| t.writes.get()).collect();
        world.put("o", &bytes(2, 8 << 20)).await.unwrap();
        let after = world.client.counters();
        assert_eq!(after.units_written - before.units_written, 12);
        assert_eq!(after.bytes_written - before.bytes_written, 12 << 20);
        assert_eq!(after.write_retries, 0);
        for (target, before) in world.targets.iter().zip(writes) {
            assert_eq!(
                target.writes.get() - before,
                4,
                "each target holds one unit of each of the four groups"
            );
        }
    });
}

#[test]
fn every_object_is_read_with_any_one_target_down() {
    run(Shape::default(), |world| async move {
        let all = put_all(&world).await;
        // Target 0's process holds the catalogue too, so its target fails instead.
        for down in 0..3 {
            if down == 0 {
                *world.targets[0].mood.borrow_mut() = Mood::Failed;
            } else {
                world.kill(down);
            }
            for (key, data) in &all {
                assert!(world.get(key).await.unwrap() == *data, "{key} without target {down}");
            }
            match world.store(&bytes(1, 10_000), true).await {
                Err(ClientError::Unavailable { what }) => {
                    assert!(what.contains(&format!("target t{down}")), "{what}");
                }
                other => panic!("a PUT below N+K: {other:?}"),
            }
            if down == 0 {
                *world.targets[0].mood.borrow_mut() = Mood::Well;
            } else {
                world.start(down).await;
            }
            world.pass(Duration::from_secs(5)).await;
            world.put("again", &bytes(1, 10)).await.unwrap();
        }
        assert!(world.client.counters().units_decoded > 0);
        assert_eq!(world.arena.stats().in_use, 0);
    });
}

#[test]
fn more_losses_than_parity_are_said_and_never_guessed() {
    run(Shape::default(), |world| async move {
        let data = bytes(1, 3 << 20);
        world.put("o", &data).await.unwrap();
        world.kill(1);
        world.kill(2);
        assert!(matches!(world.get("o").await, Err(ClientError::Unavailable { .. })));
        world.start(1).await;
        world.start(2).await;
        world.pass(Duration::from_secs(5)).await;
        assert!(world.get("o").await.unwrap() == data);
        world.targets[0].rot();
        assert!(world.get("o").await.unwrap() == data, "one rotten target is decoded");
        assert!(world.client.counters().corrupt > 0);
        world.targets[1].rot();
        let error = world.get("o").await.unwrap_err();
        assert!(matches!(error, ClientError::Damaged { .. }), "{error:?}");
    });
}

/// Found in a test machine: a gateway that started together with its targets broke its first GETs off.
#[test]
fn a_get_believes_no_memory_of_targets_that_are_back_and_waits_for_those_that_start() {
    run(Shape::default(), |world| async move {
        let data = bytes(1, 3 << 20);
        world.put("o", &data).await.unwrap();
        for at_once in [true, false] {
            world.kill(1);
            world.kill(2);
            assert!(matches!(world.get("o").await, Err(ClientError::Unavailable { .. })));
            let start = async {
                world.pass(Duration::from_secs(u64::from(!at_once))).await;
                world.start(1).await;
                world.start(2).await;
            };
            let get = async {
                if at_once {
                    world.pass(Duration::from_millis(1)).await;
                }
                world.get("o").await
            };
            let ((), got) = futures::join!(start, get);
            assert!(got.unwrap() == data, "at once: {at_once}");
        }
    });
}

#[test]
fn bytes_that_changed_on_the_way_are_not_returned() {
    run(Shape::default(), |world| async move {
        let data = bytes(1, (2 << 20) + 9);
        world.put("o", &data).await.unwrap();
        *world.targets[2].mood.borrow_mut() = Mood::Lies;
        assert!(world.get("o").await.unwrap() == data);
        assert!(world.client.counters().corrupt > 0);
    });
}

#[test]
fn a_target_that_hangs_is_read_around_and_not_waited_for_twice() {
    run(Shape::default(), |world| async move {
        let data = bytes(1, 8 << 20);
        world.put("o", &data).await.unwrap();
        *world.targets[1].mood.borrow_mut() = Mood::Hangs;
        let start = world.ctx.now();
        assert!(world.get("o").await.unwrap() == data);
        let took = world.ctx.now() - start;
        assert!(took < Duration::from_secs(4), "one deadline, not one per unit: {took:?}");
        // It is tried again more and more rarely; what is read meanwhile does not wait.
        let start = world.ctx.now();
        for _ in 0..60 {
            assert!(world.get("o").await.unwrap() == data);
            world.pass(Duration::from_secs(1)).await;
        }
        let waited = world.ctx.now() - start - Duration::from_secs(60);
        assert!(waited < Duration::from_secs(22), "{waited:?}");
        *world.targets[1].mood.borrow_mut() = Mood::Well;
        world.pass(Duration::from_secs(20)).await;
        let before = world.client.counters().units_decoded;
        assert!(world.get("o").await.unwrap() == data);
        assert_eq!(world.client.counters().units_decoded, before, "it is used again");
    });
}

#[test]
fn wide_layouts_survive_their_parity() {
    let layout = LayoutConfig { data_units: 4, parity_units: 2, unit_size: 1 << 20 };
    run(Shape { targets: 8, layout, ..Shape::default() }, |world| async move {
        let all = put_all(&world).await;
        world.kill(3);
        world.kill(6);
        for (key, data) in &all {
            assert!(world.get(key).await.unwrap() == *data, "{key}");
        }
    });
}

#[test]
fn ranges_are_exact() {
    run(Shape::default(), |world| async move {
        let size = (4u64 << 20) + 777;
        let data = bytes(1, size as usize);
        world.put("o", &data).await.unwrap();
        let small = bytes(2, 20_000);
        world.put("s", &small).await.unwrap();
        for down in [false, true] {
            if down {
                world.kill(2);
            }
            let object = world.open("o").await.unwrap();
            let edges = [
                0,
                1,
                65_535,
                65_536,
                1 << 20,
                (1 << 20) + 1,
                (2 << 20) - 1,
                3 << 20,
                4 << 20,
                size - 1,
                size,
            ];
            for from in edges {
                for to in edges.iter().filter(|to| **to >= from) {
                    let got = read(&object, from..*to).await.unwrap();
                    assert!(got == data[from as usize..*to as usize], "{from}..{to}");
                }
            }
            let object = world.open("s").await.unwrap();
            let mut state = 12_345u64;
            for _ in 0..200 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (a, b) = ((state >> 33) % 20_001, (state >> 13) % 20_001);
                let range = a.min(b)..a.max(b);
                let got = read(&object, range.clone()).await.unwrap();
                assert!(got == small[range.start as usize..range.end as usize], "{range:?}");
            }
        }
    });
}

#[test]
fn busy_targets_are_asked_again_and_full_ones_are_not() {
    run(Shape::default(), |world| async move {
        *world.targets[1].mood.borrow_mut() = Mood::Busy(3);
        world.put("o", &bytes(1, 1 << 20)).await.unwrap();
        assert_eq!(world.client.counters().write_retries, 3);
        *world.targets[1].mood.borrow_mut() = Mood::NoSpace;
        let start = world.ctx.now();
        let error = world.put("o", &bytes(1, 1 << 20)).await.unwrap_err();
        assert!(matches!(&error, ClientError::NoSpace { what } if what.contains("t1")), "{error:?}");
        assert!(world.ctx.now() - start < Duration::from_secs(1));
        *world.targets[1].mood.borrow_mut() = Mood::Well;
        world.targets[2].free.set(4096);
        world.pass(Duration::from_secs(2)).await;
        let error = world.handle.put(Some(8 << 20)).await.unwrap_err();
        assert!(
            matches!(&error, ClientError::NoSpace { what } if what.contains("t2")),
            "before the body: {error:?}"
        );
        drop(world.handle.put(Some(100)).await.unwrap());
    });
}

#[test]
fn a_target_that_dies_in_the_middle_fails_the_put_and_its_fid_dies() {
    run(Shape::default(), |world| async move {
        let mut put = world.handle.put(Some(16 << 20)).await.unwrap();
        for _ in 0..4 {
            let mut buf = put.buf().await;
            buf.fill(1);
            put.write(buf).await.unwrap();
        }
        world.pass(Duration::from_millis(10)).await;
        world.kill(2);
        let error = loop {
            let mut buf = put.buf().await;
            buf.fill(2);
            if let Err(error) = put.write(buf).await {
                break error;
            }
        };
        assert!(matches!(&error, ClientError::Unavailable { what } if what.contains("t2")), "{error:?}");
        world.pass(Duration::from_secs(1)).await;
        assert_eq!(world.catalogue.dead.borrow().len(), 1);
        assert_eq!(world.arena.stats().in_use, 0);
    });
}

#[test]
fn a_short_absence_of_a_target_is_waited_out() {
    run(Shape::default(), |world| async move {
        let data = bytes(5, 6 << 20);
        let mut put = world.handle.put(Some(data.len() as u64)).await.unwrap();
        for (i, unit) in data.chunks(1 << 20).enumerate() {
            let mut buf = put.buf().await;
            buf.copy_from_slice(unit);
            if i == 2 {
                world.kill(1);
            }
            if i == 3 {
                world.pass(Duration::from_secs(2)).await;
                world.start(1).await;
            }
            put.write(buf).await.unwrap();
        }
        let stored = put.finish().await.unwrap();
        world.handle.publish(stored, |body| put_command("o", body, data.len() as u64)).await.unwrap();
        assert!(world.get("o").await.unwrap() == data);
    });
}

#[test]
fn many_puts_share_a_small_arena_without_deadlock() {
    run(Shape { arena: 16 << 20, ..Shape::default() }, |world| async move {
        let world = std::rc::Rc::new(world);
        let tasks: Vec<_> = (0..12)
            .map(|i| {
                let world = world.clone();
                let ctx = world.ctx.clone();
                ctx.spawn(async move {
                    let (key, data) = (format!("o{i}"), bytes(i, (5 << 20) + i as usize));
                    world.put(&key, &data).await.unwrap();
                    assert!(world.get(&key).await.unwrap() == data, "{key}");
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert_eq!(world.arena.stats().in_use, 0);
    });
}

/// Far more bodies than the arena takes, begun at once, in every mix of the slow and the given up, with GETs beside:
/// whoever was let in ends, and whoever was not is told so.
#[test]
fn a_crowd_of_bodies_in_a_small_arena_ends() {
    run(Shape { arena: 16 << 20, ..Shape::default() }, |world| async move {
        let whole = bytes(99, 8 << 20);
        world.put("read", &whole).await.unwrap();
        let (world, whole) = (Rc::new(world), Rc::new(whole));
        let put = |i: u64| {
            let world = world.clone();
            world.ctx.clone().spawn(async move {
                let (key, data) = (format!("o{i}"), bytes(i, 8 << 20));
                let mut put = match world.handle.put(Some(data.len() as u64)).await {
                    Ok(put) => put,
                    Err(ClientError::Busy) => return false,
                    Err(error) => panic!("{error}"),
                };
                for (n, unit) in data.chunks(put.unit_size()).enumerate() {
                    if i % 5 == 1 && n == 3 {
                        return false; // The client went away.
                    }
                    let mut buf = put.buf().await;
                    if i.is_multiple_of(3) {
                        world.pass(Duration::from_millis(20 * i)).await; // A slow one holds its unit meanwhile.
                    }
                    buf.copy_from_slice(unit);
                    put.write(buf).await.unwrap();
                }
                let stored = put.finish().await.unwrap();
                let size = data.len() as u64;
                world.handle.publish(stored, |body| put_command(&key, body, size)).await.unwrap();
                match world.get(&key).await {
                    Ok(got) => assert!(got == data, "{key}"),
                    Err(error) => assert_eq!(error, ClientError::Busy),
                }
                true
            })
        };
        let get = |_| {
            let (world, whole) = (world.clone(), whole.clone());
            world.ctx.clone().spawn(async move {
                match world.get("read").await {
                    Ok(got) => assert!(got == *whole),
                    Err(error) => assert_eq!(error, ClientError::Busy),
                }
            })
        };
        let (puts, gets): (Vec<_>, Vec<_>) = ((0..64).map(put).collect(), (0..64).map(get).collect());
        let mut stored = 0;
        for put in puts {
            stored += usize::from(put.await);
        }
        for get in gets {
            get.await;
        }
        assert!(stored > 5, "{stored}");
        world.pass(Duration::from_secs(1)).await;
        assert_eq!(world.arena.stats().in_use, 0);
    });
}

#[test]
fn small_bodies_do_not_wait_behind_slow_large_ones() {
    run(Shape { arena: 16 << 20, ..Shape::default() }, |world| async move {
        world.put("large", &bytes(1, 8 << 20)).await.unwrap();
        let object = world.open("large").await.unwrap();
        let mut slow = Vec::new();
        while let Ok(put) = world.handle.put(Some(8 << 20)).await {
            slow.push(put);
        }
        let mut streams = Vec::new();
        while let Ok(stream) = object.read(0..8 << 20).await {
            streams.push(stream);
        }
        assert!(!slow.is_empty() && !streams.is_empty());
        let begun = world.ctx.now();
        world.put("small", &bytes(2, 5000)).await.unwrap();
        assert!(world.get("small").await.unwrap() == bytes(2, 5000));
        assert!(world.ctx.now() - begun < Duration::from_secs(1));
        drop((slow, streams));
        world.put("next", &bytes(3, 8 << 20)).await.unwrap();
    });
}

#[test]
fn a_slow_reader_holds_at_most_three_units() {
    run(Shape::default(), |world| async move {
        world.put("o", &bytes(1, 16 << 20)).await.unwrap();
        let object = world.open("o").await.unwrap();
        let mut stream = object.read(0..16 << 20).await.unwrap();
        let held = stream.next().await.unwrap().unwrap();
        world.pass(Duration::from_secs(20)).await;
        assert!(world.arena.stats().in_use <= 3 << 20, "{:?}", world.arena.stats());
        drop((held, stream));
        world.pass(Duration::from_secs(1)).await;
        assert_eq!(world.arena.stats().in_use, 0);
    });
}
