//! One request at a time: what a caller sees.

use super::rig::{CHUNK, Rig, fid, pattern, run};
use crate::{CobAttrs, CtgOp, Limits, StoreError, TxClass};
use cobalt_base::SessionId;
use std::time::Duration;

#[test]
fn what_is_put_is_read_overwritten_and_survives_a_restart() {
    run(1, async |ctx| {
        let rig = Rig::new(&ctx).await;
        let (a, b) = (pattern(1, 5 * CHUNK + 100), pattern(2, 2 * CHUNK));
        rig.put(fid(1, 1), 0, &a).await.unwrap();
        assert_eq!(rig.read(fid(1, 1), 0, a.len()).await.unwrap(), a);
        rig.put(fid(1, 1), CHUNK as u64, &b).await.unwrap();
        let mut want = a.clone();
        want[CHUNK..3 * CHUNK].copy_from_slice(&b);
        assert_eq!(rig.read(fid(1, 1), 0, a.len()).await.unwrap(), want);
        assert_eq!(rig.read(fid(1, 1), 2 * CHUNK as u64, CHUNK).await.unwrap(), want[2 * CHUNK..3 * CHUNK]);
        let info = rig.store.cob_stat(fid(1, 1)).await.unwrap().unwrap();
        assert_eq!((info.size, info.allocated), (a.len() as u64, 6 * CHUNK as u64));
        rig.settle().await;
        assert_eq!(rig.store.space().used, 6 * CHUNK as u64, "overwritten blocks came back");
        let rig = rig.crash(0).await;
        assert_eq!(rig.read(fid(1, 1), 0, a.len()).await.unwrap(), want);
        rig.store.close().await.unwrap();
        assert!(matches!(rig.put(fid(1, 2), 0, &b).await, Err(StoreError::Closed)));
        let rig = rig.boot((rig.meta.current(), rig.data.current())).await.unwrap();
        assert_eq!(rig.read(fid(1, 1), 0, a.len()).await.unwrap(), want);
        assert_eq!(rig.store.status().cobs, 1);
        assert_eq!(rig.store.counters().apply_misses, 0);
    });
}

#[test]
fn a_target_is_shown_failed_as_soon_as_a_device_of_it_says_that_it_is_gone() {
    run(2, async |ctx| {
        for which in [0, 1] {
            let rig = Rig::new(&ctx).await;
            assert_eq!(rig.store.status().failed, None);
            let devices = [&rig.meta, &rig.data];
            devices[which].lost.set(true);
            assert_eq!(rig.store.status().failed.as_deref(), Some("pulled out"), "nobody asked for anything");
        }
    });
}

#[test]
fn a_hole_is_missing_and_never_zeros() {
    run(2, async |ctx| {
        let rig = Rig::new(&ctx).await;
        rig.put(fid(1, 1), 0, &pattern(1, CHUNK)).await.unwrap();
        rig.put(fid(1, 1), 2 * CHUNK as u64, &pattern(2, CHUNK)).await.unwrap();
        let hole = rig.read(fid(1, 1), 0, 3 * CHUNK).await;
        assert_eq!(hole, Err(StoreError::Missing { fid: fid(1, 1), offset: CHUNK as u64 }));
        let beyond = rig.read(fid(1, 1), 2 * CHUNK as u64, 2 * CHUNK).await;
        assert_eq!(beyond, Err(StoreError::Missing { fid: fid(1, 1), offset: 3 * CHUNK as u64 }));
        assert!(matches!(rig.read(fid(1, 9), 0, CHUNK).await, Err(StoreError::Missing { .. })));
    });
}

#[test]
fn a_full_target_refuses_before_data_moves_and_can_be_emptied() {
    run(3, async |ctx| {
        let rig = Rig::new(&ctx).await;
        let start = rig.store.space();
        let unit = pattern(3, 16 * CHUNK);
        let mut count = 0;
        let refused = loop {
            match rig.put(fid(1, count), 0, &unit).await {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, StoreError::NoSpace { bytes: unit.len() as u64 });
        assert_eq!(rig.store.space().free, 0, "every block was handed out");
        assert_eq!(count * unit.len() as u64, start.total);
        let writes = rig.data.writes.get();
        assert!(rig.put(fid(2, 1), 0, &unit[..1]).await.is_err());
        assert_eq!(rig.data.writes.get(), writes, "refused before the data moved");
        rig.store.cob_delete(fid(1, 0)).await.unwrap();
        rig.put(fid(2, 2), 0, &unit).await.unwrap();
        for i in 0..count {
            rig.store.cob_delete(fid(1, i)).await.unwrap();
        }
        rig.store.cob_delete(fid(2, 2)).await.unwrap();
        rig.settle().await;
        assert_eq!(rig.store.space(), start, "space returns exactly");
        rig.assert_clean("emptied").await;
        let rig = rig.crash(0).await;
        assert_eq!(rig.store.space(), start);
    });
}

#[test]
fn a_dropped_transaction_leaves_no_trace() {
    run(4, async |ctx| {
        let rig = Rig::new(&ctx).await;
        let start = rig.store.space();
        let attrs = CobAttrs { chunk_size: CHUNK as u32, incarnation: 7 };
        let mut tx = rig.store.tx_open(TxClass::Write, 65_536).await.unwrap();
        let cob = rig.store.cob_lookup(&mut tx, fid(1, 1), attrs).await.unwrap();
        let extents = rig.store.balloc(&mut tx, 65_536).await.unwrap();
        rig.store.extmap(&mut tx, &cob, 0, 65_536, &extents, &[0; 16]).await.unwrap();
        assert_eq!(rig.store.space().reserved, 65_536);
        let sealed = rig.store.tx_close(tx);
        drop(sealed);
        assert_eq!(rig.store.space(), start);
        assert!(rig.store.cob_stat(fid(1, 1)).await.unwrap().is_none());
    });
}

#[test]
fn a_dropped_write_holds_its_blocks_until_the_device_is_done() {
    run(5, async |ctx| {
        let rig = Rig::new(&ctx).await;
        rig.data.slow_us.set(1_000_000);
        let start = rig.store.space();
        let bytes = pattern(1, 16 * CHUNK);
        let gone = ctx.timeout(std::time::Duration::from_micros(300), rig.put(fid(1, 1), 0, &bytes)).await;
        assert!(gone.is_err(), "the writer gave up");
        assert_eq!(rig.store.space().reserved, 65_536, "the device may still write there");
        ctx.sleep(std::time::Duration::from_secs(3)).await;
        assert_eq!(rig.store.space(), start);
    });
}

#[test]
fn a_fence_refuses_late_writes_and_a_tombstone_too() {
    run(6, async |ctx| {
        let rig = Rig::new(&ctx).await;
        let bytes = pattern(1, CHUNK);
        rig.put(fid(5, 1), 0, &bytes).await.unwrap();
        rig.store.cob_delete(fid(5, 1)).await.unwrap();
        rig.store.cob_delete(fid(5, 2)).await.unwrap();
        assert_eq!(rig.put(fid(5, 1), 0, &bytes).await, Err(StoreError::Deleted(fid(5, 1))));
        assert_eq!(rig.put(fid(5, 2), 0, &bytes).await, Err(StoreError::Deleted(fid(5, 2))));
        let rig = rig.crash(0).await;
        assert_eq!(rig.put(fid(5, 2), 0, &bytes).await, Err(StoreError::Deleted(fid(5, 2))));
        // A write that is past its look-up when the fence comes is refused when it takes its lsn.
        let attrs = CobAttrs { chunk_size: CHUNK as u32, incarnation: 7 };
        let mut tx = rig.store.tx_open(TxClass::Write, 4096).await.unwrap();
        let cob = rig.store.cob_lookup(&mut tx, fid(5, 3), attrs).await.unwrap();
        let extents = rig.store.balloc(&mut tx, 4096).await.unwrap();
        let crc = cobalt_base::checksum::crc32c(&bytes);
        rig.store.extmap(&mut tx, &cob, 0, 4096, &extents, &[crc]).await.unwrap();
        let sealed = rig.store.tx_close(tx);
        let stable = rig.store.data_write(&sealed, &[rig.slice(&bytes)]).await.unwrap();
        rig.store.fence(SessionId(5)).await.unwrap();
        let late = rig.store.commit(sealed, stable).await;
        assert_eq!(late, Err(StoreError::Fenced(SessionId(5))));
        rig.settle().await;
        assert_eq!(rig.store.space().used, 0);
        for session in [4, 6, 5, 9] {
            rig.store.fence(SessionId(session)).await.unwrap();
        }
        let rig = rig.crash(0).await;
        for session in [4, 5, 6, 9] {
            let refused = rig.put(fid(session, 77), 0, &bytes).await;
            assert_eq!(refused, Err(StoreError::Fenced(SessionId(session))));
        }
        rig.put(fid(7, 1), 0, &bytes).await.unwrap();
    });
}

#[test]
fn another_incarnation_is_refused() {
    run(7, async |ctx| {
        let rig = Rig::new(&ctx).await;
        rig.put(fid(1, 1), 0, &pattern(1, CHUNK)).await.unwrap();
        let mut tx = rig.store.tx_open(TxClass::Write, 4096).await.unwrap();
        let attrs = CobAttrs { chunk_size: CHUNK as u32, incarnation: 8 };
        let found = rig.store.cob_lookup(&mut tx, fid(1, 1), attrs).await.map(|_| ());
        assert_eq!(found, Err(StoreError::Incarnation { have: 7, want: 8 }));
    });
}

#[test]
fn conditions_of_one_group_see_each_other() {
    run(8, async |ctx| {
        let rig = Rig::new(&ctx).await;
        // Ten create-if-absent of one key at the same moment: one wins, whatever the order.
        let tasks: Vec<_> = (0..10u8)
            .map(|i| {
                let ctg = rig.store.ctg();
                ctx.spawn(async move {
                    let decide = move |view: &crate::CtgView| {
                        if view.get(3, b"key")?.is_some() {
                            return Ok((Vec::new(), false));
                        }
                        let op = CtgOp::Put { ctg: 3, key: b"key".to_vec(), value: vec![i] };
                        Ok((vec![op], true))
                    };
                    (i, ctg.transact(decide).await.unwrap())
                })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            let (i, (won, lsn)) = task.await;
            assert!(lsn <= rig.store.ctg().applied(), "an answer is durable and applied");
            if won {
                winners.push(i);
            }
        }
        assert_eq!(winners.len(), 1);
        assert!(rig.store.counters().groups < 12, "they shared groups");
        assert_eq!(rig.store.ctg().get(3, b"key").await.unwrap(), Some(winners.clone()));
        assert_eq!(rig.store.ctg().get(4, b"key").await.unwrap(), None);
        let rig = rig.crash(0).await;
        let all = rig.store.ctg().scan(3, b"", None, 10).await.unwrap();
        assert_eq!(all, vec![(b"key".to_vec(), winners)]);
    });
}

#[test]
fn blocks_that_a_read_looks_at_are_not_reused() {
    for seed in 0..8 {
        run(seed, async |ctx| {
            let rig = Rig::new(&ctx).await;
            let (old, new) = (pattern(1, 8 * CHUNK), pattern(2, 8 * CHUNK));
            rig.put(fid(1, 1), 0, &old).await.unwrap();
            // Fill the rest, so that freed blocks are wanted at once.
            let mut n = 2;
            while rig.put(fid(1, n), 0, &pattern(n, 16 * CHUNK)).await.is_ok() {
                n += 1;
            }
            rig.data.slow_us.set(20_000);
            let store = rig.store.clone();
            let read = ctx.spawn(async move { store.cob_read(fid(1, 1), 0, 8 * CHUNK as u64).await });
            ctx.sleep(std::time::Duration::from_micros(1)).await;
            rig.data.slow_us.set(5);
            rig.store.cob_delete(fid(1, 1)).await.unwrap();
            // Waits for the blocks of the deleted cob, which the slow read still looks at.
            rig.put(fid(2, 1), 0, &new).await.unwrap();
            let found = read.await.unwrap();
            let found: Vec<u8> = found.slices.iter().flat_map(|s| s.iter().copied()).collect();
            assert!(found == old, "the read saw its own bytes");
            assert_eq!(rig.store.counters().read_retries, 0);
        });
    }
}

#[test]
fn a_refused_transaction_leaves_none_of_its_parts() {
    run(9, async |ctx| {
        let rig = Rig::new(&ctx).await;
        let bytes = pattern(1, CHUNK);
        rig.put(fid(1, 2), 0, &bytes).await.unwrap();
        // One transaction over two cobs; the second is deleted before it commits.
        let attrs = CobAttrs { chunk_size: CHUNK as u32, incarnation: 7 };
        let crc = cobalt_base::checksum::crc32c(&bytes);
        let mut tx = rig.store.tx_open(TxClass::Write, 8192).await.unwrap();
        for counter in [1, 2] {
            let cob = rig.store.cob_lookup(&mut tx, fid(1, counter), attrs).await.unwrap();
            let extents = rig.store.balloc(&mut tx, 4096).await.unwrap();
            rig.store.extmap(&mut tx, &cob, 0, 4096, &extents, &[crc]).await.unwrap();
        }
        let sealed = rig.store.tx_close(tx);
        let data = rig.slice(&[&bytes[..], &bytes[..]].concat());
        let stable = rig.store.data_write(&sealed, &[data]).await.unwrap();
        rig.store.cob_delete(fid(1, 2)).await.unwrap();
        // A neighbour in the same group makes the group durable.
        let late = rig.store.commit(sealed, stable);
        let (late, other) = futures::join!(late, rig.store.cob_delete(fid(1, 9)));
        assert_eq!(late, Err(StoreError::Deleted(fid(1, 2))));
        other.unwrap();
        rig.put(fid(1, 4), 0, &bytes).await.unwrap();
        rig.settle().await;
        assert!(rig.store.cob_stat(fid(1, 1)).await.unwrap().is_none());
        assert_eq!(rig.store.space().used, CHUNK as u64);
        rig.assert_clean("after the refusal").await;
        let rig = rig.crash(0).await;
        assert!(rig.store.cob_stat(fid(1, 1)).await.unwrap().is_none());
    });
}

#[test]
fn a_catalogue_larger_than_the_cache_is_read_judged_and_redone() {
    run(10, async |ctx| {
        let limits = crate::Limits { node_cache: 64 << 10, ..crate::Limits::tiny() };
        let mut rig = Rig::with(&ctx, limits).await;
        let key = |n: u32| format!("object/{:08}", n.wrapping_mul(2_654_435_761) % 1_000_003).into_bytes();
        for n in 0..900u32 {
            let decide = move |view: &crate::CtgView| {
                let old = view.get(1, &key(n))?;
                let next = view.next(1, &key(n))?;
                let value = vec![u8::try_from(n % 251).unwrap(); 500];
                let first = CtgOp::Put { ctg: 1, key: key(n), value: value.clone() };
                let second = CtgOp::Put { ctg: 2, key: n.to_be_bytes().to_vec(), value: vec![1] };
                Ok((vec![first, second], (old, next.is_some())))
            };
            let ((old, _), _) = rig.store.ctg().transact(decide).await.unwrap();
            assert_eq!(old, None);
            if n % 400 == 399 {
                assert_eq!(rig.store.counters().apply_misses, 0);
                rig = rig.crash(u64::from(n) % 5).await;
            }
        }
        assert!(rig.store.counters().node_reads > 48, "the cache is too small for it");
        let mut from = Vec::new();
        let mut count = 0;
        loop {
            let page = rig.store.ctg().scan(1, &from, None, 100).await.unwrap();
            let Some((last, _)) = page.last() else { break };
            assert!(page.windows(2).all(|w| w[0].0 < w[1].0));
            from = [last.as_slice(), &[0]].concat();
            count += page.len();
        }
        assert_eq!(count, 900);
        assert_eq!(rig.store.ctg().scan(2, &[], Some(&5u32.to_be_bytes()), 100).await.unwrap().len(), 5);
    });
}

#[test]
fn freed_blocks_are_deallocated_only_when_they_stay_free_and_in_long_runs() {
    run(8, async |ctx| {
        let limits = Limits { trim_after: Duration::from_secs(10), ..Limits::tiny() };
        let rig = Rig::with(&ctx, limits).await;
        let (total, unit) = (rig.store.space().total, pattern(1, 16 * CHUNK));
        let count = total / unit.len() as u64;
        for round in 0..3 {
            for i in 0..count {
                rig.put(fid(1, round * count + i), 0, &unit).await.unwrap();
            }
            for i in 0..count {
                rig.store.cob_delete(fid(1, round * count + i)).await.unwrap();
            }
            while rig.store.space().used > 0 {
                ctx.sleep(Duration::from_millis(1)).await;
            }
        }
        let device = &rig.regions.data.device;
        assert_eq!(device.counters().deallocates, 0, "what is written again soon is left alone");
        assert_eq!(rig.store.space().free, total, "and can be used at once");
        // One lives on in the middle: nothing of it may go.
        rig.put(fid(2, 1), 0, &unit).await.unwrap();
        ctx.sleep(Duration::from_secs(25)).await;
        rig.settle().await;
        let (all, deallocates) = (rig.store.space(), device.counters().deallocates);
        assert_eq!((all.free, all.used, all.reserved), (total - unit.len() as u64, unit.len() as u64, 0));
        assert!(
            deallocates > 0 && deallocates <= total / unit.len() as u64 / 3,
            "{deallocates} for {total} bytes"
        );
        assert_eq!(rig.read(fid(2, 1), 0, unit.len()).await.unwrap(), unit);
        let gone = rig.data.current().iter().filter(|byte| **byte == 0xdd).count() as u64;
        assert!(gone >= total - unit.len() as u64, "all that stayed free: {gone} bytes");
        rig.assert_clean("deallocated").await;
    });
}
