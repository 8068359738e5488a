//! PUT, power cut, recovery, GET: the whole cluster on virtual time. What was acknowledged is there to the byte; what
//! was not is there whole or not at all (I2, I9); and once the collector is idle nothing is left but what is named (I9a).

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use cobalt_base::{Fid, UnixMillis};
use cobalt_client::{ClientError, Handle};
use cobalt_reactor::{Ctx, JoinHandle, Step};
use cobalt_rpc::proto::cas::{CasError, Command, Condition, Outcome};
use cobalt_rpc::proto::record::{Body, BucketRecord, ObjectMeta, ObjectRecord};
use cobalt_sim::{PROCESSES, SimCluster, SimOptions, simulate};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

const SIZES: [usize; 8] = [0, 1, 4095, 4096, 65_537, 131_072, 200_000, 300_001];
const KEYS: usize = 4;

/// The bytes of a version: its number is in all of them, so that a mixture shows.
fn content(version: u64, size: usize) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(version);
    (0..size).map(|_| rng.random()).collect()
}

async fn put(
    handle: &Handle,
    bucket: &BucketRecord,
    key: &str,
    version: u64,
    bytes: &[u8],
) -> Result<(), ClientError> {
    let mut stream = handle.put(Some(bytes.len() as u64)).await?;
    for unit in bytes.chunks(stream.unit_size()) {
        let mut buf = stream.buf().await;
        buf[..unit.len()].copy_from_slice(unit);
        buf.set_len(unit.len());
        stream.write(buf).await?;
    }
    let stored = stream.finish().await?;
    let (bucket, key, size) = (bucket.clone(), key.as_bytes().to_vec(), bytes.len() as u64);
    let outcome = handle.publish(stored, move |body| Command::PutObject {
        bucket: bucket.name,
        bucket_id: bucket.id,
        key,
        record: ObjectRecord {
            size,
            modified: UnixMillis(0),
            etag: version.to_string(),
            body,
            meta: ObjectMeta::default(),
            checksums: Vec::new(),
        },
        condition: Condition::default(),
    });
    outcome.await.map(drop)
}

/// The version that is there now, with its bytes and the fid that holds them.
async fn get(handle: &Handle, key: &str) -> Result<Option<(u64, Vec<u8>, Option<Fid>)>, ClientError> {
    let object = match handle.open("b", key.as_bytes()).await {
        Ok(object) => object,
        Err(ClientError::Cas(CasError::NoSuchKey)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let record = object.record().clone();
    let mut stream = object.read(0..record.size).await?;
    let mut bytes = Vec::new();
    while let Some(slice) = stream.next().await {
        bytes.extend_from_slice(&slice?);
    }
    let fid = match record.body {
        Body::Single(extent) => Some(extent.fid),
        _ => None,
    };
    Ok(Some((record.etag.parse().unwrap(), bytes, fid)))
}

/// Repeats what a cluster that is coming up refuses.
async fn patiently<T, F: Future<Output = Result<T, ClientError>>>(
    ctx: &Ctx,
    mut call: impl FnMut() -> F,
) -> T {
    for _ in 0..200 {
        match call().await {
            Ok(value) => return value,
            Err(error) => tracing::info!(%error, "not yet"),
        }
        ctx.sleep(Duration::from_millis(200)).await;
    }
    call().await.expect("the cluster is up")
}

async fn create_bucket(ctx: &Ctx, handle: &Handle) -> BucketRecord {
    let create = || Command::CreateBucket { name: "b".into(), owner: "me".into(), created: UnixMillis(0) };
    match patiently(ctx, || handle.commit(create())).await {
        Outcome::BucketCreated(bucket) => bucket,
        other => panic!("{other:?}"),
    }
}

/// What the writers know: per key the versions that were begun, and the last one that was acknowledged.
#[derive(Clone, Default)]
struct Book {
    begun: BTreeMap<String, Vec<(u64, usize)>>,
    acknowledged: BTreeMap<String, u64>,
    acknowledgements: u64,
    next: u64,
}

/// Writes its own keys, one version after the other, until a write fails or `rounds` are done.
async fn writer(
    handle: Handle,
    bucket: BucketRecord,
    key: String,
    book: Rc<RefCell<Book>>,
    seed: u64,
    rounds: u64,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..rounds {
        let size = SIZES[rng.random_range(0..SIZES.len())];
        let version = {
            let mut book = book.borrow_mut();
            book.next += 1;
            let version = book.next;
            book.begun.entry(key.clone()).or_default().push((version, size));
            version
        };
        match put(&handle, &bucket, &key, version, &content(version, size)).await {
            Ok(()) => {
                let mut book = book.borrow_mut();
                book.acknowledged.insert(key.clone(), version);
                book.acknowledgements += 1;
            }
            Err(_) => return,
        }
    }
}

/// Reads every key and judges it by the book. Fids that are named.
async fn judge(handle: &Handle, ctx: &Ctx, book: &Book) -> BTreeSet<Fid> {
    let mut named = BTreeSet::new();
    for (key, begun) in &book.begun {
        let found = patiently(ctx, || get(handle, key)).await;
        let acknowledged = book.acknowledged.get(key).copied();
        let Some((version, bytes, fid)) = found else {
            assert_eq!(acknowledged, None, "{key} was acknowledged and is gone");
            continue;
        };
        assert!(
            acknowledged.is_none_or(|acknowledged| version >= acknowledged),
            "{key} fell back to {version}"
        );
        let (_, size) = begun.iter().find(|(v, _)| *v == version).expect("nobody wrote this version");
        assert!(bytes == content(version, *size), "{key} is torn at version {version}");
        named.extend(fid);
    }
    named
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
        let bucket = create_bucket(&ctx, &handle).await;
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
                let writer =
                    writer(handle.clone(), bucket.clone(), format!("k{key}"), book.clone(), rng.random(), 20);
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
                    writer.await;
                }
                // Let the client find out what became of its requests.
                ctx.sleep(Duration::from_secs(30)).await;
            }
            let known = book.borrow().clone();
            judge(&handle, &ctx, &known).await;
            if client_dies {
                seen.add(unanswered(&handle, &ctx, &before).await);
            }
            cluster.log().note(&ctx, "judged", &[round, known.acknowledged.values().sum()]);
        }
        let known = book.borrow().clone();
        reckon(&mut cluster, &ctx, &known).await;
        seen.acknowledged = known.acknowledgements;
        Seen { hash: cluster.log().hash(), ..seen }
    })
}

/// What became of the writes that had no answer when the power went.
async fn unanswered(handle: &Handle, ctx: &Ctx, book: &Book) -> Seen {
    let mut seen = Seen::default();
    for (key, begun) in &book.begun {
        let Some((last, _)) = begun.last().filter(|(v, _)| Some(v) != book.acknowledged.get(key)) else {
            continue;
        };
        let found = patiently(ctx, || get(handle, key)).await;
        match found.is_some_and(|(version, ..)| version == *last) {
            true => seen.there += 1,
            false => seen.absent += 1,
        }
    }
    seen
}

/// The last client goes and another comes: once the collector is idle, the targets hold what is named.
async fn reckon(cluster: &mut SimCluster, ctx: &Ctx, book: &Book) {
    let handle = cluster.start_client();
    let named = judge(&handle, ctx, book).await;
    let cas = cluster.processes()[0].cas().unwrap();
    let mut waited = 0;
    while !cas.collector_idle().await.unwrap() {
        ctx.sleep(Duration::from_secs(1)).await;
        waited += 1;
        assert!(waited < 120, "the collector does not come to rest: {:?}", cas.status().await);
    }
    let mut all = BTreeSet::new();
    for process in cluster.processes() {
        let store = process.store().unwrap();
        let cobs = store.cob_next(Fid::MIN, 1000).await.unwrap();
        let held: BTreeSet<Fid> = cobs.into_iter().map(|(fid, _)| fid).collect();
        assert!(held.is_subset(&named), "a target holds what nothing names: {held:?}, named is {named:?}");
        all.extend(held);
    }
    // A small object has no unit on some target, but it has one somewhere.
    assert_eq!(all, named);
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
            let bucket = create_bucket(&ctx, &handle).await;
            let book = Rc::new(RefCell::new(Book::default()));
            let mut writers = Vec::new();
            for key in 0..KEYS {
                let (handle, bucket) = (handle.clone(), bucket.clone());
                writers.push(ctx.spawn(writer(
                    handle,
                    bucket,
                    format!("k{key}"),
                    book.clone(),
                    rng.random(),
                    50,
                )));
            }
            ctx.sleep(Duration::from_micros(rng.random_range(0..60_000))).await;
            let victim = rng.random_range(0..PROCESSES);
            cluster.kill(victim);
            for writer in writers {
                writer.await;
            }
            if victim != 0 {
                // The catalogue is there, and any two of three units make a group.
                let known = book.borrow().clone();
                judge(&handle, &ctx, &known).await;
                let refused = put(&handle, &bucket, "new", 0, b"x").await;
                assert!(matches!(refused, Err(ClientError::Unavailable { .. })), "{refused:?}");
            }
            cluster.start_all().await.unwrap();
            ctx.sleep(Duration::from_secs(30)).await;
            let known = book.borrow().clone();
            judge(&handle, &ctx, &known).await;
            put(&handle, &bucket, "new", 0, b"x").await.unwrap();
            assert_eq!(get(&handle, "new").await.unwrap().unwrap().1, b"x");
        });
    }
}
