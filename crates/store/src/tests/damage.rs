//! Rot, lost and failed writes: told apart, never served, never a panic.

use super::rig::{CHUNK, Rig, devices, fid, format_options, pattern, run};
use crate::superblock;
use crate::{FormatError, Limits, OpenError, OpenOptions, Store, StoreError, dump_journal, format};
use std::time::Duration;

#[test]
fn a_rotten_chunk_is_corrupt_and_never_wrong_bytes() {
    run(1, async |ctx| {
        let rig = Rig::without_inline(&ctx).await;
        let bytes = pattern(1, 3 * CHUNK + 10);
        rig.put(fid(1, 1), 0, &bytes).await.unwrap();
        let at = rig.data.current().windows(16).position(|w| w == &bytes[..16]).unwrap();
        for (byte, chunk) in [(0, 0), (CHUNK + 5, 1), (3 * CHUNK + 9, 3)] {
            rig.data.spoil(at + byte, |b| *b ^= 0x10);
            match rig.read(fid(1, 1), 0, bytes.len()).await {
                Err(StoreError::Corrupt { offset, .. }) => assert_eq!(offset, chunk * CHUNK as u64),
                other => panic!("byte {byte}: {other:?}"),
            }
            // The other chunks can still be read.
            let other = (chunk as usize + 1) % 3;
            let whole = rig.read(fid(1, 1), (other * CHUNK) as u64, CHUNK).await.unwrap();
            assert_eq!(whole, bytes[other * CHUNK..][..CHUNK]);
            let report = rig.check(true).await;
            assert!(report.findings.iter().any(|f| f.touched.fids == [fid(1, 1)]), "fsck sees it");
            rig.data.spoil(at + byte, |b| *b ^= 0x10);
        }
        // The padding of the short last chunk is zeros, and nobody's data.
        assert!(rig.data.current()[at + bytes.len()..at + 4 * CHUNK].iter().all(|b| *b == 0));
        assert_eq!(rig.store.counters().corrupt_reads, 3);
    });
}

#[test]
fn rot_below_the_floor_stops_and_a_torn_tail_is_dropped() {
    run(2, async |ctx| {
        // No checkpoint in between, which would make the first records needless.
        let rig = Rig::with(&ctx, Limits { journal_fill_pct: 90, ..Limits::tiny() }).await;
        for n in 1..=6 {
            rig.put(fid(1, n), 0, &pattern(n, CHUNK)).await.unwrap();
        }
        // An empty record says that the last group is durable.
        ctx.sleep(Duration::from_millis(50)).await;
        let rows = dump_journal(&rig.regions, &rig.arena).await.unwrap();
        assert!(rows.last().unwrap().count == 0, "{rows:#?}");
        let journal = match &superblock::read_all(&rig.regions.meta, &rig.arena).await[0].verdict {
            superblock::Verdict::Valid(sb) => sb.geometry.journal_at(),
            other => panic!("{other:?}"),
        };
        let images = rig.cut(0);
        let redone: Vec<_> = rows.iter().filter(|r| r.first.0 > 2).collect();
        assert!(redone.len() >= 6);
        for row in &redone {
            for byte in [3, 60, 130] {
                if row.count == 0 && byte == 130 {
                    continue; // Padding of an empty record.
                }
                let mut hurt = images.clone();
                hurt.0[(journal + row.offset) as usize + byte] ^= 1;
                let found = rig.boot(hurt).await.map(|_| ());
                if row.count > 0 {
                    assert!(matches!(found, Err(OpenError::Damaged { .. })), "{row:?}: {found:?}");
                } else {
                    assert_eq!(found, Ok(()), "a torn empty record is a torn tail");
                }
            }
        }
        // Without the empty record, the last group is not known to be durable: a torn tail.
        let empty = redone.last().unwrap();
        let last = redone.iter().rev().find(|r| r.count > 0).unwrap();
        let mut torn = images.clone();
        torn.0[(journal + empty.offset) as usize..][..4096].fill(0);
        torn.0[(journal + last.offset) as usize + 130] ^= 1;
        let rig = rig.boot(torn).await.unwrap();
        rig.assert_clean("after a torn tail").await;
        assert!(rig.store.cob_stat(fid(1, 6)).await.unwrap().is_none());
        assert_eq!(rig.read(fid(1, 5), 0, CHUNK).await.unwrap(), pattern(5, CHUNK));
    });
}

#[test]
fn lost_superblocks_are_seen() {
    run(3, async |ctx| {
        let rig = Rig::new(&ctx).await;
        rig.put(fid(1, 1), 0, &pattern(1, CHUNK)).await.unwrap();
        rig.store.checkpoint().await.unwrap();
        let copies = superblock::read_all(&rig.regions.meta, &rig.arena).await;
        let generation = rig.store.status().generation;
        let images = rig.cut(0);
        let mut newest = Vec::new();
        for copy in &copies {
            if matches!(&copy.verdict, superblock::Verdict::Valid(sb) if sb.generation == generation) {
                newest.push(copy.at as usize);
            }
        }
        assert_eq!(newest.len(), 2);
        let mut one = images.clone();
        one.0[newest[0] + 100] ^= 1;
        let next = rig.boot(one).await.unwrap();
        assert_eq!(next.read(fid(1, 1), 0, CHUNK).await.unwrap(), pattern(1, CHUNK));
        let mut both = images.clone();
        for at in newest {
            both.0[at..at + 4096].fill(0);
        }
        let found = rig.boot(both).await.map(|_| ());
        assert!(matches!(&found, Err(OpenError::Damaged { what, .. }) if what == "superblock"), "{found:?}");
    });
}

#[test]
fn failed_flushes_and_journal_writes_fail_the_target_and_lose_nothing_acknowledged() {
    for (flush, seed) in [(true, 4), (false, 5)] {
        run(seed, async move |ctx| {
            let rig = Rig::without_inline(&ctx).await;
            for n in 1..=3 {
                rig.put(fid(1, n), 0, &pattern(n, CHUNK)).await.unwrap();
            }
            if flush {
                rig.data.fail_flush_in.set(Some(0));
            } else {
                rig.meta.fail_write_in.set(Some(0));
            }
            for n in 4..=5 {
                let failed = rig.put(fid(1, n), 0, &pattern(n, CHUNK)).await;
                assert!(matches!(failed, Err(StoreError::Failed { .. })), "{failed:?}");
            }
            rig.data.fail_flush_in.set(None);
            assert!(rig.store.status().failed.is_some());
            let failed = rig.store.cob_delete(fid(1, 1)).await;
            assert!(matches!(failed, Err(StoreError::Failed { .. })), "{failed:?}");
            assert_eq!(rig.read(fid(1, 2), 0, CHUNK).await.unwrap(), pattern(2, CHUNK), "reads go on");
            assert!(matches!(rig.store.close().await, Err(StoreError::Failed { .. })));
            let rig = rig.crash(2).await;
            for n in 1..=3 {
                assert_eq!(rig.read(fid(1, n), 0, CHUNK).await.unwrap(), pattern(n, CHUNK));
            }
        });
    }
}

#[test]
fn each_write_and_flush_fails_once_in_turn() {
    let mut outcomes = [0u32; 2];
    for nth in 0..60 {
        let failed = std::rc::Rc::new(std::cell::Cell::new(false));
        let seen = failed.clone();
        run(nth, async move |ctx| {
            let rig = Rig::new(&ctx).await;
            let state = if nth % 2 == 0 { &rig.meta } else { &rig.data };
            state.fail_write_in.set(Some(nth / 4));
            let mut acked = Vec::new();
            for n in 1..=12 {
                if rig.put(fid(1, n), 0, &pattern(n, 2 * CHUNK)).await.is_ok() {
                    acked.push(n);
                }
                if n == 6 {
                    let _ = rig.store.checkpoint().await;
                }
            }
            seen.set(rig.store.status().failed.is_some());
            let rig = rig.crash(2).await;
            for n in acked {
                assert_eq!(rig.read(fid(1, n), 0, 2 * CHUNK).await.unwrap(), pattern(n, 2 * CHUNK));
            }
        });
        outcomes[usize::from(failed.get())] += 1;
    }
    assert!(outcomes[1] > 20, "most of them were met: {outcomes:?}");
}

#[test]
fn an_unreadable_block_is_an_error_of_that_read_alone() {
    run(6, async |ctx| {
        let rig = Rig::without_inline(&ctx).await;
        let bytes = pattern(1, CHUNK);
        rig.put(fid(1, 1), 0, &bytes).await.unwrap();
        rig.put(fid(1, 2), 0, &pattern(2, CHUNK)).await.unwrap();
        let at = rig.data.current().windows(16).position(|w| w == &bytes[..16]).unwrap();
        rig.data.bad_read.set(Some(at as u64));
        assert!(matches!(rig.read(fid(1, 1), 0, CHUNK).await, Err(StoreError::Corrupt { .. })));
        assert_eq!(rig.read(fid(1, 2), 0, CHUNK).await.unwrap(), pattern(2, CHUNK));
        assert!(rig.store.status().failed.is_none());
        rig.data.bad_read.set(None);
        assert_eq!(rig.read(fid(1, 1), 0, CHUNK).await.unwrap(), bytes);
    });
}

#[test]
fn verdicts_say_what_to_do() {
    run(7, async |ctx| {
        let arena = cobalt_dma::Arena::new(cobalt_dma::ArenaConfig { limit: 16 << 20 }).unwrap();
        let (regions, meta, _) = devices(&ctx, vec![0; 3 << 20], vec![0; 2 << 20]);
        let open = |cluster| {
            let options = OpenOptions { cluster, ..OpenOptions::default() };
            Store::open(ctx.clone(), regions.clone(), arena.clone(), options)
        };
        assert!(matches!(open(None).await.map(|_| ()), Err(OpenError::NotFormatted { .. })));
        for (at, bytes, name) in [
            (0x438, &[0x53, 0xef][..], "ext4"),
            (0, b"XFSB", "XFS"),
            (0x1_0040, b"_BHRfS_M", "btrfs"),
            (510, &[0x55, 0xaa], "MBR"),
            (4086, b"SWAPSPACE2", "swap"),
            (777_777, &[1], "unknown"),
        ] {
            for (i, b) in bytes.iter().enumerate() {
                meta.spoil(at + i, |x| *x = *b);
            }
            let refused = format(&ctx, &regions, &arena, &format_options()).await;
            assert!(
                matches!(&refused, Err(FormatError::InUse { found }) if found.contains(name)),
                "{name}: {refused:?}"
            );
            for i in 0..bytes.len() {
                meta.spoil(at + i, |x| *x = 0);
            }
        }
        format(&ctx, &regions, &arena, &format_options()).await.unwrap();
        let again = format(&ctx, &regions, &arena, &format_options()).await;
        assert!(matches!(&again, Err(FormatError::InUse { found }) if found.contains("Cobalt")), "{again:?}");
        let foreign = open(Some(uuid::Uuid::from_u128(99))).await.map(|_| ());
        assert!(matches!(foreign, Err(OpenError::ForeignCluster { .. })), "{foreign:?}");
        let forced = crate::FormatOptions { force: true, ..format_options() };
        format(&ctx, &regions, &arena, &forced).await.unwrap();
        assert!(open(None).await.is_ok());
    });
}
