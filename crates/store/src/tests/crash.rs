//! Power cuts in the middle of many requests: what was acknowledged is there, the rest is there whole or
//! not at all, and nothing else ever is (I2).

use super::rig::{CHUNK, Rig, fid, pattern, put, run};
use crate::{CtgOp, StoreError};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// What writers know: for each cob the last acknowledged value, and one that may or may not have made it.
type Known = Rc<RefCell<BTreeMap<u64, (Option<u64>, Option<u64>)>>>;

fn value(cob: u64, version: u64) -> Vec<u8> {
    let chunks = 1 + (cob + version) as usize % 7;
    pattern(cob * 1000 + version, chunks * CHUNK - (version as usize * 37) % CHUNK)
}

/// Writers, each with cobs of its own, overwrite them until the power is cut at a random moment.
async fn rounds(rig: Rig, rounds: u64) -> Rig {
    let known: Known = Rc::default();
    let mut rig = rig;
    let mut version = 0;
    for round in 0..rounds {
        let first = version;
        for writer in 0..4u64 {
            let (store, arena, known) = (rig.store.clone(), rig.arena.clone(), known.clone());
            let ctx = rig.scope_ctx();
            drop(ctx.spawn(async move {
                for n in first.. {
                    let cob = writer * 4 + n % 4;
                    known.borrow_mut().entry(cob).or_default().1 = Some(n);
                    match put(&store, &arena, fid(1, cob + 1), 0, &value(cob, n)).await {
                        Ok(_) => known.borrow_mut().insert(cob, (Some(n), None)),
                        Err(StoreError::Busy) => None,
                        Err(error) => panic!("round {round}: {error}"),
                    };
                }
            }));
        }
        rig.ctx.sleep(Duration::from_micros(rig.ctx.random_u64() % 20_000)).await;
        let mode = rig_mode(&rig);
        rig = rig.crash(mode).await;
        let before = std::mem::take(&mut *known.borrow_mut());
        for (cob, (acked, maybe)) in before {
            version = version.max(acked.unwrap_or(0)).max(maybe.unwrap_or(0)) + 1;
            let now = held(&rig, cob, acked, maybe).await;
            known.borrow_mut().insert(cob, (now, None));
        }
    }
    rig
}

fn rig_mode(rig: &Rig) -> u64 {
    rig.ctx.random_u64() % 5
}

/// The version that the cob has: the acknowledged one or the one in flight.
async fn held(rig: &Rig, cob: u64, acked: Option<u64>, maybe: Option<u64>) -> Option<u64> {
    for version in [acked, maybe].into_iter().flatten() {
        let want = value(cob, version);
        // A shorter value over a longer one leaves the longer one's tail: look at the written range.
        match rig.read(fid(1, cob + 1), 0, want.len()).await {
            Ok(found) if found == want => return Some(version),
            Ok(_) | Err(StoreError::Missing { .. } | StoreError::Invalid(_)) => {}
            Err(error) => panic!("cob {cob}: {error}"),
        }
    }
    let info = rig.store.cob_stat(fid(1, cob + 1)).await.unwrap();
    assert!(
        acked.is_none() && info.is_none(),
        "cob {cob}: acked {acked:?}, in flight {maybe:?}, found {info:?}"
    );
    None
}

#[test]
fn acknowledged_writes_survive_and_others_are_whole_or_absent() {
    for seed in 0..12 {
        run(seed, async move |ctx| {
            let rig = rounds(Rig::new(&ctx).await, 6).await;
            assert_eq!(rig.store.counters().apply_misses, 0);
        });
    }
}

#[test]
fn the_journal_wraps_many_times() {
    run(31, async |ctx| {
        let rig = Rig::new(&ctx).await;
        let ring = rig.store.status().journal;
        let mut written = 0;
        let mut last = Vec::new();
        for n in 0..400u64 {
            last = pattern(n, CHUNK);
            rig.put(fid(1, n % 5 + 1), 0, &last).await.unwrap();
            written = rig.store.counters().journal_bytes;
        }
        assert!(written > 8 * ring, "{written} bytes through a ring of {ring}");
        assert!(rig.store.counters().checkpoints > 5);
        let rig = rig.crash(2).await;
        assert_eq!(rig.read(fid(1, 399 % 5 + 1), 0, CHUNK).await.unwrap(), last);
    });
}

#[test]
fn a_large_delete_goes_on_after_a_crash_and_space_returns_exactly() {
    for seed in 0..12 {
        run(seed, async move |ctx| {
            let mut rig = Rig::new(&ctx).await;
            let start = rig.store.space();
            for n in 0..20u64 {
                rig.put(fid(1, 1), n * 2 * CHUNK as u64, &pattern(n, CHUNK)).await.unwrap();
            }
            rig.store.cob_delete(fid(1, 1)).await.unwrap();
            // Twenty rows, two a step: the cuts fall between the steps.
            for _ in 0..3 {
                rig.ctx.sleep(Duration::from_micros(rig.ctx.random_u64() % 300)).await;
                let mode = rig_mode(&rig);
                rig = rig.crash(mode).await;
                assert!(rig.store.cob_stat(fid(1, 1)).await.unwrap().is_none());
            }
            rig.settle().await;
            assert_eq!(rig.store.space(), start);
            let late = rig.put(fid(1, 1), 0, &pattern(1, CHUNK)).await;
            assert_eq!(late, Err(StoreError::Deleted(fid(1, 1))));
            rig.assert_clean("after the delete").await;
        });
    }
}

#[test]
fn a_catalogue_counter_never_goes_back() {
    for seed in 0..15 {
        run(seed, async move |ctx| {
            let mut rig = Rig::new(&ctx).await;
            let acked = Rc::new(RefCell::new(0u64));
            for _ in 0..5 {
                for _ in 0..6 {
                    let (ctg, acked) = (rig.store.ctg(), acked.clone());
                    drop(rig.scope_ctx().spawn(async move {
                        loop {
                            let bump = |view: &crate::CtgView| {
                                let old = view
                                    .get(1, b"n")?
                                    .map_or(0, |v| u64::from_le_bytes(v.try_into().unwrap()));
                                let value = (old + 1).to_le_bytes().to_vec();
                                Ok((vec![CtgOp::Put { ctg: 1, key: b"n".to_vec(), value }], old + 1))
                            };
                            let Ok((n, _)) = ctg.transact(bump).await else { return };
                            let before = acked.replace_with(|a| (*a).max(n));
                            assert!(n != before, "two transactions got {n}");
                        }
                    }));
                }
                rig.ctx.sleep(Duration::from_micros(rig.ctx.random_u64() % 15_000)).await;
                let mode = rig_mode(&rig);
                rig = rig.crash(mode).await;
                let now = rig.store.ctg().get(1, b"n").await.unwrap();
                let now = now.map_or(0, |v| u64::from_le_bytes(v.try_into().unwrap()));
                assert!(now >= *acked.borrow(), "acknowledged {}, found {now}", acked.borrow());
                *acked.borrow_mut() = now;
            }
        });
    }
}

#[test]
fn a_crash_during_recovery_changes_nothing() {
    for seed in 0..10 {
        run(seed, async move |ctx| {
            let rig = Rig::new(&ctx).await;
            let mut want = Vec::new();
            for n in 0..30u64 {
                let bytes = pattern(n, (1 + n as usize % 3) * CHUNK);
                rig.put(fid(1, n + 1), 0, &bytes).await.unwrap();
                want.push(bytes);
            }
            let mut images = rig.cut(2);
            for _ in 0..6 {
                // The next start is cut short, too.
                let (regions, meta, data) = super::rig::devices(&ctx, images.0, images.1);
                let scope = ctx.scope();
                let options = crate::OpenOptions { limits: rig.limits.clone(), ..Default::default() };
                let open = crate::Store::open(scope.ctx(), regions, rig.arena.clone(), options);
                let _ = ctx.timeout(Duration::from_micros(ctx.random_u64() % 2500), open).await;
                scope.kill();
                images = (meta.cut(&ctx, ctx.random_u64() % 5), data.cut(&ctx, ctx.random_u64() % 5));
            }
            let rig = rig.boot(images).await.unwrap();
            rig.assert_clean("after crashes in recovery").await;
            for (n, bytes) in want.iter().enumerate() {
                assert_eq!(&rig.read(fid(1, n as u64 + 1), 0, bytes.len()).await.unwrap(), bytes);
            }
        });
    }
}
