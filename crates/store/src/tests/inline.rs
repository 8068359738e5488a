//! Small writes in the journal: durable with their record, read from memory, on their blocks before the superblock
//! that covers them, and never on a block that is somebody else's by then.

use super::rig::{CHUNK, Rig, fid, pattern, run};
use crate::{CobAttrs, Limits, OpenOptions, Placement, Store, StoreError, TxClass, dump_journal};
use cobalt_base::checksum::crc32c_chunks;
use std::time::Duration;

/// A target that takes no checkpoint by itself.
async fn quiet(ctx: &cobalt_reactor::Ctx) -> Rig {
    Rig::with(ctx, Limits { journal_fill_pct: 95, dirty_max: 1 << 20, node_cache: 1 << 20, ..Limits::tiny() })
        .await
}

fn holds(rig: &Rig, bytes: &[u8]) -> bool {
    rig.data.current().windows(bytes.len()).any(|w| w == bytes)
}

#[test]
fn a_small_write_is_one_journal_write_and_reaches_its_block_with_the_checkpoint() {
    run(1, async |ctx| {
        let rig = quiet(&ctx).await;
        let bytes = pattern(1, CHUNK + 100);
        let before = rig.store.counters();
        rig.put(fid(1, 1), 0, &bytes).await.unwrap();
        let after = rig.store.counters();
        assert_eq!(after.journal_writes - before.journal_writes, 1);
        assert_eq!((after.data_writes, after.data_flushes, after.inline_writes), (0, 0, 1));
        assert_eq!(rig.data.writes.get(), 0);
        assert_eq!(rig.store.unwritten(), 2);
        assert_eq!(rig.read(fid(1, 1), 0, bytes.len()).await.unwrap(), bytes);
        assert_eq!(rig.read(fid(1, 1), CHUNK as u64, 100).await.unwrap(), bytes[CHUNK..]);
        assert!(!holds(&rig, &bytes[..64]));
        rig.assert_clean("while the bytes are in the journal only").await;

        rig.store.checkpoint().await.unwrap();
        assert_eq!((rig.store.unwritten(), rig.store.counters().data_flushes), (0, 1));
        assert!(holds(&rig, &bytes));
        assert_eq!(rig.read(fid(1, 1), 0, bytes.len()).await.unwrap(), bytes);
        // Nothing is left of the journal that knew them; nothing that was not flushed survives either.
        let rig = rig.crash(0).await;
        assert_eq!(rig.read(fid(1, 1), 0, bytes.len()).await.unwrap(), bytes);
        let flushes = rig.store.counters().data_flushes;
        rig.store.checkpoint().await.unwrap();
        assert_eq!(rig.store.counters().data_flushes, flushes, "nothing to write out, nothing to flush");
    });
}

#[test]
fn a_larger_write_goes_to_its_blocks_at_once_and_so_does_one_beyond_the_limit() {
    run(2, async |ctx| {
        let rig = quiet(&ctx).await;
        rig.put(fid(1, 1), 0, &pattern(1, 3 * CHUNK)).await.unwrap();
        assert_eq!((rig.store.counters().inline_writes, rig.store.counters().data_writes), (0, 1));
        let most = rig.limits.inline_unwritten_max / CHUNK as u64;
        for n in 0..11 {
            rig.put(fid(2, n), 0, &pattern(n, CHUNK)).await.unwrap();
            assert!(rig.store.unwritten() <= most, "{} of {most}", rig.store.unwritten());
        }
        let counters = rig.store.counters();
        assert!(counters.inline_writes > most, "the write-out makes room: {counters:?}");
        assert_eq!(counters.checkpoints, 0);
        for n in 0..11 {
            assert_eq!(rig.read(fid(2, n), 0, CHUNK).await.unwrap(), pattern(n, CHUNK));
        }
        let rig = rig.crash(0).await;
        for n in 0..11 {
            assert_eq!(rig.read(fid(2, n), 0, CHUNK).await.unwrap(), pattern(n, CHUNK));
        }
    });
}

#[test]
fn every_map_of_a_transaction_has_its_own_bytes() {
    run(3, async |ctx| {
        let rig = quiet(&ctx).await;
        let (one, two) = (pattern(1, 100), pattern(2, CHUNK));
        let attrs = CobAttrs { chunk_size: CHUNK as u32, incarnation: 7 };
        let store = &rig.store;
        let mut tx = store.tx_open(TxClass::Write, 2 * CHUNK as u64).await.unwrap();
        for (n, bytes) in [&one, &two].into_iter().enumerate() {
            let mut crcs = Vec::new();
            crc32c_chunks(bytes, CHUNK, &mut crcs);
            let len = bytes.len() as u64;
            let cob = store.cob_lookup(&mut tx, fid(1, n as u64 + 1), attrs).await.unwrap();
            let extents = store.balloc(&mut tx, len).await.unwrap();
            store.extmap(&mut tx, &cob, 0, len, &extents, &crcs).await.unwrap();
        }
        let sealed = store.tx_close(tx);
        // The bytes come in pieces that have nothing to do with the maps.
        let all = [one.clone(), two.clone()].concat();
        let data: Vec<_> = all.chunks(37).map(|piece| rig.slice(piece)).collect();
        let stable = store.data_write(&sealed, &data).await.unwrap();
        store.commit(sealed, stable).await.unwrap();
        assert_eq!(store.counters().inline_writes, 1);
        let rig = rig.crash(0).await;
        assert_eq!(rig.read(fid(1, 1), 0, one.len()).await.unwrap(), one);
        assert_eq!(rig.read(fid(1, 2), 0, two.len()).await.unwrap(), two);
    });
}

#[test]
fn what_is_given_up_before_its_commit_leaves_nothing() {
    run(4, async |ctx| {
        let rig = quiet(&ctx).await;
        let start = rig.store.space();
        for _ in 0..100 {
            let bytes = pattern(1, CHUNK);
            let mut crcs = Vec::new();
            crc32c_chunks(&bytes, CHUNK, &mut crcs);
            let attrs = CobAttrs { chunk_size: CHUNK as u32, incarnation: 7 };
            let mut tx = rig.store.tx_open(TxClass::Write, CHUNK as u64).await.unwrap();
            let cob = rig.store.cob_lookup(&mut tx, fid(1, 1), attrs).await.unwrap();
            let extents = rig.store.balloc(&mut tx, CHUNK as u64).await.unwrap();
            rig.store.extmap(&mut tx, &cob, 0, CHUNK as u64, &extents, &crcs).await.unwrap();
            let sealed = rig.store.tx_close(tx);
            let stable = rig.store.data_write(&sealed, &[rig.slice(&bytes)]).await.unwrap();
            drop((sealed, stable));
        }
        assert_eq!((rig.store.space(), rig.store.unwritten()), (start, 0));
        assert_eq!(rig.store.counters().data_writes, 0, "a dropped promise makes room");
        rig.put(fid(1, 2), 0, &pattern(2, CHUNK)).await.unwrap();
        assert_eq!(rig.store.unwritten(), 1);
    });
}

#[test]
fn bytes_whose_blocks_were_freed_are_never_written() {
    run(5, async |ctx| {
        let rig = quiet(&ctx).await;
        let start = rig.store.space();
        for n in 0..5 {
            rig.put(fid(1, 1), 0, &pattern(n, CHUNK)).await.unwrap();
        }
        assert_eq!(rig.store.unwritten(), 1, "the last version only");
        // In part: the first of two blocks is replaced.
        rig.put(fid(1, 2), 0, &pattern(10, 2 * CHUNK)).await.unwrap();
        rig.put(fid(1, 2), 0, &pattern(11, CHUNK)).await.unwrap();
        assert_eq!(rig.store.unwritten(), 3);
        let want = [pattern(11, CHUNK), pattern(10, 2 * CHUNK)[CHUNK..].to_vec()].concat();
        assert_eq!(rig.read(fid(1, 2), 0, 2 * CHUNK).await.unwrap(), want);
        rig.store.cob_delete(fid(1, 1)).await.unwrap();
        assert_eq!(rig.store.unwritten(), 2);
        let rig = rig.crash(0).await;
        assert_eq!(rig.store.unwritten(), 2, "redo drops them as well");
        assert_eq!(rig.read(fid(1, 2), 0, 2 * CHUNK).await.unwrap(), want);
        rig.store.checkpoint().await.unwrap();
        for n in 0..5 {
            assert!(!holds(&rig, &pattern(n, CHUNK)));
        }
        assert_eq!(rig.read(fid(1, 2), 0, 2 * CHUNK).await.unwrap(), want);
        rig.store.cob_delete(fid(1, 2)).await.unwrap();
        rig.settle().await;
        assert_eq!(rig.store.space(), start);
    });
}

#[test]
fn a_write_out_in_flight_holds_its_blocks() {
    for seed in 0..20 {
        run(seed, async move |ctx| {
            // Freed blocks are wanted at once.
            let limits = Limits { placement: Placement::FirstFit, ..Limits::tiny() };
            let rig = Rig::with(&ctx, limits).await;
            for n in 0..4 {
                rig.put(fid(1, n), 0, &pattern(n, CHUNK)).await.unwrap();
            }
            assert_eq!(rig.store.unwritten(), 4);
            rig.data.slow_us.set(20_000);
            let before = rig.store.counters().data_writes;
            let store = rig.store.clone();
            let checkpoint = rig.scope_ctx().spawn(async move { store.checkpoint().await });
            while rig.store.counters().data_writes == before {
                ctx.sleep(Duration::from_micros(100)).await;
            }
            for n in 0..4 {
                rig.store.cob_delete(fid(1, n)).await.unwrap();
            }
            // New data, at once on the device. Late bytes of the old would ruin them.
            let bytes = pattern(100, 3 * CHUNK);
            let put = rig.put(fid(2, 0), 0, &bytes);
            ctx.timeout(Duration::from_secs(60), put).await.expect("it waits for nothing").unwrap();
            checkpoint.await.unwrap();
            rig.store.checkpoint().await.unwrap();
            assert_eq!(rig.read(fid(2, 0), 0, bytes.len()).await.unwrap(), bytes);
            rig.assert_clean("after the race").await;
            let rig = rig.crash(seed % 5).await;
            assert_eq!(rig.read(fid(2, 0), 0, bytes.len()).await.unwrap(), bytes);
        });
    }
}

#[test]
fn a_read_keeps_the_bytes_that_it_was_promised() {
    for seed in 0..10 {
        run(seed, async move |ctx| {
            let rig = quiet(&ctx).await;
            // One block on the device, slow to read, and one in memory.
            rig.put(fid(1, 1), 0, &pattern(1, CHUNK)).await.unwrap();
            rig.store.checkpoint().await.unwrap();
            rig.put(fid(1, 1), CHUNK as u64, &pattern(2, CHUNK)).await.unwrap();
            rig.data.slow_us.set(5_000);
            let store = rig.store.clone();
            let read = rig.scope_ctx().spawn(async move {
                let data = store.cob_read(fid(1, 1), 0, 2 * CHUNK as u64).await?;
                Ok::<_, StoreError>(data.slices.iter().flat_map(|s| s.iter().copied()).collect::<Vec<_>>())
            });
            ctx.sleep(Duration::from_micros(5)).await;
            rig.put(fid(1, 1), CHUNK as u64, &pattern(3, CHUNK)).await.unwrap();
            rig.store.cob_delete(fid(1, 1)).await.unwrap();
            let found = read.await.unwrap();
            assert_eq!(found, [pattern(1, CHUNK), pattern(2, CHUNK)].concat());
        });
    }
}

#[test]
fn cuts_around_a_checkpoint_lose_nothing() {
    for seed in 0..60 {
        run(seed, async move |ctx| {
            let mut rig = Rig::new(&ctx).await;
            let mut want = std::collections::BTreeMap::new();
            for round in 0..4u64 {
                for n in 0..6u64 {
                    let cob = ctx.random_u64() % 8;
                    let bytes = pattern(round * 100 + n, 1 + ctx.random_u64() as usize % (2 * CHUNK));
                    let (cob, delete) = (cob + round * 8, ctx.random_u64().is_multiple_of(4));
                    if want.get(&cob) == Some(&None) {
                        continue;
                    }
                    rig.put(fid(1, cob), 0, &bytes).await.unwrap();
                    want.insert(cob, Some(bytes));
                    if delete {
                        rig.store.cob_delete(fid(1, cob)).await.unwrap();
                        want.insert(cob, None);
                    }
                }
                rig.data.slow_us.set(200);
                let store = rig.store.clone();
                drop(rig.scope_ctx().spawn(async move { drop(store.checkpoint().await) }));
                ctx.sleep(Duration::from_micros(ctx.random_u64() % 1500)).await;
                rig = rig.crash(ctx.random_u64() % 5).await;
                for (cob, bytes) in &want {
                    match bytes {
                        Some(bytes) => {
                            assert_eq!(&rig.read(fid(1, *cob), 0, bytes.len()).await.unwrap(), bytes);
                        }
                        None => assert!(rig.store.cob_stat(fid(1, *cob)).await.unwrap().is_none()),
                    }
                }
            }
        });
    }
}

#[test]
fn a_full_host_holds_the_checkpoint_back_and_loses_nothing() {
    run(6, async |ctx| {
        let rig = quiet(&ctx).await;
        rig.put(fid(1, 1), 0, &pattern(1, CHUNK)).await.unwrap();
        rig.put(fid(1, 2), 0, &pattern(2, CHUNK)).await.unwrap();
        rig.data.host_full.set(true);
        rig.data.fail_write_in.set(Some(0));
        assert_eq!(rig.store.checkpoint().await, Err(StoreError::HostFull), "who asks for it does not wait");
        ctx.sleep(Duration::from_millis(500)).await;
        assert!(rig.store.status().failed.is_none() && rig.store.is_checkpointing());
        // The next small write is told of it, and deleting goes on.
        assert_eq!(rig.put(fid(1, 3), 0, &pattern(3, CHUNK)).await, Err(StoreError::HostFull));
        rig.store.cob_delete(fid(1, 1)).await.unwrap();
        assert_eq!(rig.read(fid(1, 2), 0, CHUNK).await.unwrap(), pattern(2, CHUNK));
        rig.data.fail_write_in.set(None);
        ctx.sleep(Duration::from_millis(500)).await;
        assert!(!rig.store.is_checkpointing());
        assert_eq!(rig.store.unwritten(), 0);
        rig.put(fid(1, 3), 0, &pattern(3, CHUNK)).await.unwrap();
        assert_eq!(rig.store.unwritten(), 1, "small writes travel in the journal again");

        // A target that closes does not wait for the host; the journal still has the bytes.
        rig.data.fail_write_in.set(Some(0));
        rig.store.close().await.unwrap_err();
        rig.data.fail_write_in.set(None);
        let rig = rig.crash(0).await;
        assert_eq!(rig.read(fid(1, 2), 0, CHUNK).await.unwrap(), pattern(2, CHUNK));
        assert_eq!(rig.read(fid(1, 3), 0, CHUNK).await.unwrap(), pattern(3, CHUNK));
    });
}

#[test]
fn a_write_out_that_fails_fails_the_target_and_the_journal_has_the_bytes() {
    run(7, async |ctx| {
        let rig = quiet(&ctx).await;
        rig.put(fid(1, 1), 0, &pattern(1, CHUNK)).await.unwrap();
        rig.data.fail_write_in.set(Some(0));
        assert!(matches!(rig.store.checkpoint().await, Err(StoreError::Failed { .. })));
        assert!(rig.store.status().failed.is_some());
        assert_eq!(rig.read(fid(1, 1), 0, CHUNK).await.unwrap(), pattern(1, CHUNK), "reads go on");
        let rig = rig.crash(3).await;
        rig.data.fail_flush_in.set(Some(0));
        assert!(matches!(rig.store.checkpoint().await, Err(StoreError::Failed { .. })));
        rig.data.fail_flush_in.set(None);
        let rig = rig.crash(0).await;
        assert_eq!(rig.read(fid(1, 1), 0, CHUNK).await.unwrap(), pattern(1, CHUNK));
    });
}

#[test]
fn a_read_only_target_serves_what_only_the_journal_has() {
    run(8, async |ctx| {
        let rig = quiet(&ctx).await;
        let bytes = pattern(1, 2 * CHUNK - 5);
        rig.put(fid(1, 1), 0, &bytes).await.unwrap();
        let rows = dump_journal(&rig.regions, &rig.arena).await.unwrap();
        let lines: Vec<_> = rows.iter().flat_map(|row| &row.intents).collect();
        assert!(
            lines.iter().any(|l| l.contains("map 1:1") && l.ends_with("and its 8187 bytes")),
            "{lines:?}"
        );
        let images = rig.cut(0);
        let (regions, _, data) = super::rig::devices(&ctx, images.0, images.1);
        let options = OpenOptions { limits: rig.limits.clone(), read_only: true, ..OpenOptions::default() };
        let store = Store::open(ctx.clone(), regions, rig.arena.clone(), options).await.unwrap();
        let found = store.cob_read(fid(1, 1), 0, bytes.len() as u64).await.unwrap();
        assert_eq!(found.slices.iter().flat_map(|s| s.iter().copied()).collect::<Vec<_>>(), bytes);
        assert_eq!(data.writes.get(), 0);
    });
}
