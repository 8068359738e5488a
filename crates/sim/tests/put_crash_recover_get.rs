//! PUT, power cut, recovery, GET: the whole cluster on virtual time. What was acknowledged is there to the byte; what
//! was not is there whole or not at all (I2, I9); and once the collector is idle nothing is left but what is named (I9a).

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use cobalt_client::{ClientError, Handle};
use cobalt_reactor::{Ctx, JoinHandle, Step};
use cobalt_sim::history::{Book, Diligence, create_bucket, get, judge, patiently, put, reckon, writer};
use cobalt_sim::{PROCESSES, SimCluster, SimOptions, simulate};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const KEYS: usize = 4;

/// A writer that writes so many versions, and stops at the first that fails.
fn until_failure(rounds: u64) -> Diligence {
    Diligence { rounds, pause: Duration::ZERO, persist: None }
}

/// What a run saw, so that a test of nothing shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Of the event log.
    hash: u64,
    acknowledged: u64,
    /// Writes without an answer: there after all, and not.
    there: u64,
    absent: u64,
    /// Cuts in the middle of the step that was asked for.
    trapped: u64,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.acknowledged += other.acknowledged;
        self.there += other.there;
        self.absent += other.absent;
        self.trapped += other.trapped;
    }
}

/// Every target is whole after a power cut, also before anybody recovered it.
async fn check(cluster: &SimCluster) {
    for process in cluster.processes() {
        let report = process.fsck().await.unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
    }
}

/// One seed: writers, a power cut, recovery, and the reckoning.
fn run(seed: u64, step: Option<Step>) -> Seen {
    let mut options = SimOptions::default();
    if step == Some(Step::Checkpoint) {
        // So little that checkpoints run all the time.
        options.store.dirty_max = 16 << 10;
    }
    simulate(seed, options, move |mut cluster| async move {
        let ctx = cluster.ctx().clone();
        let mut rng = StdRng::seed_from_u64(seed ^ 0xc0ba);
        let mut handle = cluster.start_client();
        let bucket = create_bucket(&ctx, &handle).await.unwrap();
        let book = Rc::new(RefCell::new(Book::default()));
        let mut seen = Seen::default();
        for round in 0..2 {
            let cut = cluster.cut();
            let news = cut.notified();
            match step {
                Some(Step::Checkpoint) => cluster.cut_at(Step::Checkpoint, rng.random_range(1..4)),
                Some(step) => cluster.cut_at(step, rng.random_range(1..20)),
                None => {
                    let (cluster_ctx, after) = (ctx.clone(), rng.random_range(0..60_000));
                    let now = cluster.cutter();
                    drop(ctx.spawn(async move {
                        cluster_ctx.sleep(Duration::from_micros(after)).await;
                        now();
                    }));
                }
            }
            let mut writers = Vec::new();
            for key in 0..KEYS {
                let (handle, bucket, book) = (handle.clone(), bucket.clone(), book.clone());
                let writer = writer(
                    ctx.clone(),
                    handle,
                    bucket,
                    format!("k{key}"),
                    book,
                    rng.random(),
                    until_failure(20),
                );
                writers.push(ctx.spawn(writer));
            }
            // A step that does not come is as good as any other moment.
            match ctx.timeout(Duration::from_secs(20), news).await {
                Ok(()) => seen.trapped += 1,
                Err(_) => cluster.cut_now(),
            }
            cluster.kill_all();
            let before = book.borrow().clone();
            let client_dies = rng.random_bool(0.5);
            if client_dies {
                cluster.kill_client();
            }
            ctx.sleep(Duration::from_millis(rng.random_range(0..500))).await;
            check(&cluster).await;
            cluster.start_all().await.unwrap();
            if client_dies {
                writers.iter().for_each(JoinHandle::abort);
                handle = cluster.start_client();
            } else {
                for writer in writers {
                    writer.await.unwrap();
                }
                // Let the client find out what became of its requests.
                ctx.sleep(Duration::from_secs(30)).await;
            }
            let known = book.borrow().clone();
            judge(&handle, &ctx, &known, false).await.unwrap();
            if client_dies {
                seen.add(unanswered(&handle, &ctx, &before).await);
            }
            cluster.log().note(&ctx, "judged", &[round, known.acknowledgements]);
        }
        let known = book.borrow().clone();
        reckon(&mut cluster, &ctx, &known, false, &[]).await.unwrap();
        seen.acknowledged = known.acknowledgements;
        Seen { hash: cluster.log().hash(), ..seen }
    })
}

/// What became of the writes that had no answer when the power went.
async fn unanswered(handle: &Handle, ctx: &Ctx, book: &Book) -> Seen {
    let mut seen = Seen::default();
    for (key, last) in book.unanswered() {
        let found = patiently(ctx, || get(handle, &key)).await.unwrap();
        match found.is_some_and(|read| read.version == last) {
            true => seen.there += 1,
            false => seen.absent += 1,
        }
    }
    seen
}

#[test]
fn put_crash_recover_get_on_virtual_time() {
    let mut seen = Seen::default();
    for seed in 0..30 {
        seen.add(run(seed, None));
    }
    println!("at any time: {seen:?}");
    assert!(seen.acknowledged > 500 && seen.there > 0 && seen.absent > 0, "{seen:?}");
}

#[test]
fn a_power_cut_at_each_step_loses_nothing() {
    let steps = [
        Step::Split,
        Step::Parity,
        Step::SendUnits,
        Step::TxOpen,
        Step::CobLookup,
        Step::Balloc,
        Step::Extmap,
        Step::TxClose,
        Step::Pull,
        Step::DataWrite,
        Step::DataStable,
        Step::JournalWrite,
        Step::Publish,
        Step::Checkpoint,
    ];
    for (number, step) in (1..).zip(steps) {
        let mut seen = Seen::default();
        for seed in 0..3 {
            seen.add(run(1000 * number + seed, Some(step)));
        }
        println!("{step:?}: {seen:?}");
        assert_eq!(seen.trapped, 6, "the power went elsewhere than at {step:?}");
    }
}

#[test]
fn one_seed_is_one_history() {
    for seed in 0..3 {
        assert_eq!(run(seed, None), run(seed, None), "seed {seed}");
    }
    assert_ne!(run(1, None).hash, run(2, None).hash);
}

#[test]
fn a_process_that_dies_takes_nothing_along() {
    for seed in 0..12 {
        simulate(seed, SimOptions::default(), move |mut cluster| async move {
            let ctx = cluster.ctx().clone();
            let mut rng = StdRng::seed_from_u64(seed);
            let handle = cluster.start_client();
            let bucket = create_bucket(&ctx, &handle).await.unwrap();
            let book = Rc::new(RefCell::new(Book::default()));
            let mut writers = Vec::new();
            for key in 0..KEYS {
                let (handle, bucket) = (handle.clone(), bucket.clone());
                let book = book.clone();
                let writer = writer(
                    ctx.clone(),
                    handle,
                    bucket,
                    format!("k{key}"),
                    book,
                    rng.random(),
                    until_failure(50),
                );
                writers.push(ctx.spawn(writer));
            }
            ctx.sleep(Duration::from_micros(rng.random_range(0..60_000))).await;
            let victim = rng.random_range(0..PROCESSES);
            cluster.kill(victim);
            for writer in writers {
                writer.await.unwrap();
            }
            if victim != 0 {
                // The catalogue is there, and any two of three units make a group.
                let known = book.borrow().clone();
                judge(&handle, &ctx, &known, false).await.unwrap();
                let refused = put(&handle, &bucket, "new", 0, b"x").await;
                let refused = refused.map_err(|e| e.error);
                assert!(matches!(refused, Err(ClientError::Unavailable { .. })), "{refused:?}");
            }
            cluster.start_all().await.unwrap();
            ctx.sleep(Duration::from_secs(30)).await;
            let known = book.borrow().clone();
            judge(&handle, &ctx, &known, false).await.unwrap();
            put(&handle, &bucket, "new", 0, b"x").await.unwrap();
            assert_eq!(get(&handle, "new").await.unwrap().unwrap().bytes, b"x");
        });
    }
}
