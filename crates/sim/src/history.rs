//! Writers and readers of a cluster, and the book by which their history is judged: what was acknowledged is there to
//! the byte, what was not is there whole or not at all, and nothing else is there at all (I2, I9, I9a).

use crate::cluster::SimCluster;
use cobalt_base::{Fid, UnixMillis};
use cobalt_client::{ClientError, Handle};
use cobalt_reactor::Ctx;
use cobalt_rpc::proto::cas::{CasError, Command, Condition, Outcome};
use cobalt_rpc::proto::record::{Body, BucketRecord, ObjectMeta, ObjectRecord};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// Sizes of objects: around every bound of block, chunk, unit and group.
pub const SIZES: [usize; 8] = [0, 1, 4095, 4096, 65_537, 131_072, 200_000, 300_001];
/// Attempts of a call that is repeated until the cluster is up, and the pause between two.
const ATTEMPTS: usize = 200;
const PAUSE: Duration = Duration::from_millis(200);
/// Every request ends within this, whatever the disks do: the sum of the client's deadlines, with room.
const REQUEST_MAX: Duration = Duration::from_secs(120);
/// Seconds that a collector may take to come to rest.
const REST_MAX: u64 = 300;
/// Cobs looked at on one target.
const COBS_MAX: usize = 10_000;

/// What is wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(pub String);

/// Why a PUT has no answer.
#[derive(Debug)]
pub struct PutError {
    /// Its publication was under way: it may have had its effect, or have it yet.
    pub unsure: bool,
    pub error: ClientError,
}

/// A version that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub version: u64,
    pub bytes: Vec<u8>,
    /// What holds the bytes.
    pub fid: Option<Fid>,
}

/// The bytes of a version: its number is in all of them, so that a mixture shows.
pub fn content(version: u64, size: usize) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(version);
    (0..size).map(|_| rng.random()).collect()
}

/// Puts a version of a key.
///
/// # Errors
/// [`PutError`].
pub async fn put(
    handle: &Handle,
    bucket: &BucketRecord,
    key: &str,
    version: u64,
    bytes: &[u8],
) -> Result<(), PutError> {
    let store = async {
        let mut stream = handle.put(Some(bytes.len() as u64)).await?;
        for unit in bytes.chunks(stream.unit_size()) {
            let mut buf = stream.buf().await;
            buf[..unit.len()].copy_from_slice(unit);
            buf.set_len(unit.len());
            stream.write(buf).await?;
        }
        stream.finish().await
    };
    let stored = store.await.map_err(|error| PutError { unsure: false, error })?;
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
    outcome.await.map(drop).map_err(|error| PutError { unsure: true, error })
}

/// The version that is there now.
///
/// # Errors
/// [`ClientError`]; bytes that came before it are not judged.
pub async fn get(handle: &Handle, key: &str) -> Result<Option<Read>, ClientError> {
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
    Ok(Some(Read { version: record.etag.parse().unwrap_or(0), bytes, fid }))
}

/// Repeats what a cluster that is coming up refuses.
///
/// # Errors
/// The last one, when it refuses for ever.
pub async fn patiently<T, F: Future<Output = Result<T, ClientError>>>(
    ctx: &Ctx,
    mut call: impl FnMut() -> F,
) -> Result<T, ClientError> {
    for _ in 0..ATTEMPTS {
        match call().await {
            Ok(value) => return Ok(value),
            Err(error) => tracing::info!(%error, "not yet"),
        }
        ctx.sleep(PAUSE).await;
    }
    call().await
}

/// Creates the bucket of all keys.
///
/// # Errors
/// [`Wrong`], when the cluster does not come up.
pub async fn create_bucket(ctx: &Ctx, handle: &Handle) -> Result<BucketRecord, Wrong> {
    let create = || Command::CreateBucket { name: "b".into(), owner: "me".into(), created: UnixMillis(0) };
    match patiently(ctx, || handle.commit(create())).await {
        Ok(Outcome::BucketCreated(bucket)) => Ok(bucket),
        other => Err(Wrong(format!("no bucket was made: {other:?}"))),
    }
}

/// What the writers know: per key the versions that were begun, and what became of them.
#[derive(Clone, Default)]
pub struct Book {
    begun: BTreeMap<String, Vec<(u64, usize)>>,
    acknowledged: BTreeMap<String, u64>,
    /// Without an answer: they may take effect later than what was acknowledged after them.
    unsure: BTreeSet<u64>,
    /// Refused before they were published: they never take effect.
    refused: BTreeSet<u64>,
    /// Acknowledgements, and PUTs that ended without.
    pub acknowledgements: u64,
    pub failures: u64,
    next: u64,
}

impl Book {
    /// The keys with a version that was begun.
    pub fn keys(&self) -> Vec<String> {
        self.begun.keys().cloned().collect()
    }

    /// The last version of a key that was acknowledged.
    pub fn acknowledged(&self, key: &str) -> Option<u64> {
        self.acknowledged.get(key).copied()
    }

    /// Per key, the last version that was begun and is not acknowledged.
    pub fn unanswered(&self) -> Vec<(String, u64)> {
        let last = |(key, begun): (&String, &Vec<(u64, usize)>)| {
            let (version, _) = *begun.last()?;
            (self.acknowledged(key) != Some(version)).then(|| (key.clone(), version))
        };
        self.begun.iter().filter_map(last).collect()
    }

    fn begin(&mut self, key: &str, size: usize) -> u64 {
        self.next += 1;
        self.begun.entry(key.to_owned()).or_default().push((self.next, size));
        self.next
    }

    fn end(&mut self, key: &str, version: u64, result: &Result<(), PutError>) {
        match result {
            Ok(()) => {
                self.acknowledged.insert(key.to_owned(), version);
                self.acknowledgements += 1;
            }
            Err(PutError { unsure, .. }) => {
                self.failures += 1;
                if *unsure { &mut self.unsure } else { &mut self.refused }.insert(version);
            }
        }
    }

    /// Judges what a read found, that began when `acknowledged` was the key's last.
    ///
    /// # Errors
    /// [`Wrong`].
    pub fn judge(&self, key: &str, acknowledged: Option<u64>, found: Option<&Read>) -> Result<(), Wrong> {
        let wrong = |what: String| Err(Wrong(format!("{key}: {what}")));
        let Some(Read { version, bytes, .. }) = found else {
            return match acknowledged {
                None => Ok(()),
                Some(version) => wrong(format!("version {version} was acknowledged and is gone")),
            };
        };
        if acknowledged.is_some_and(|last| *version < last) && !self.unsure.contains(version) {
            return wrong(format!("it fell back to {version}; {acknowledged:?} was acknowledged"));
        }
        if self.refused.contains(version) {
            return wrong(format!("version {version} was refused and is there"));
        }
        let begun = self.begun.get(key).into_iter().flatten().find(|(v, _)| v == version);
        match begun {
            None => wrong(format!("nobody wrote version {version}")),
            Some((_, size)) if *bytes != content(*version, *size) => {
                let expected = content(*version, *size);
                let at = bytes.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(expected.len());
                wrong(format!(
                    "version {version} has wrong bytes, from {at} of {size} on ({} came)",
                    bytes.len()
                ))
            }
            Some(_) => Ok(()),
        }
    }
}

/// How a writer goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Diligence {
    pub rounds: u64,
    /// Longest pause between two versions.
    pub pause: Duration,
    /// Pause before the next try after a PUT that failed; without it, the first one ends the writer.
    pub persist: Option<Duration>,
}

/// Writes its own key, one version after the other.
///
/// # Errors
/// [`Wrong`], when a PUT does not end.
pub async fn writer(
    ctx: Ctx,
    handle: Handle,
    bucket: BucketRecord,
    key: String,
    book: Rc<RefCell<Book>>,
    seed: u64,
    diligence: Diligence,
) -> Result<(), Wrong> {
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..diligence.rounds {
        if !diligence.pause.is_zero() {
            ctx.sleep(diligence.pause.mul_f64(rng.random())).await;
        }
        let size = SIZES[rng.random_range(0..SIZES.len())];
        let version = book.borrow_mut().begin(&key, size);
        let bytes = content(version, size);
        let result = ctx.timeout(REQUEST_MAX, put(&handle, &bucket, &key, version, &bytes)).await;
        let result =
            result.map_err(|_| Wrong(format!("the PUT of version {version} of {key} does not end")))?;
        book.borrow_mut().end(&key, version, &result);
        if let Err(error) = result {
            tracing::info!(key, version, ?error, "a PUT failed");
            let Some(pause) = diligence.persist else { return Ok(()) };
            ctx.sleep(pause).await;
        }
    }
    Ok(())
}

/// What readers saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// With bytes, or with the word that nothing is there.
    pub answered: u64,
    /// With an error.
    pub failed: u64,
    /// Those among them that say that more is hurt than parity makes good.
    pub damaged: u64,
}

/// Reads keys at random until it is aborted; the first wrong answer ends it.
pub async fn reader(
    ctx: Ctx,
    handle: Handle,
    keys: Vec<String>,
    book: Rc<RefCell<Book>>,
    reads: Rc<RefCell<Reads>>,
    seed: u64,
    pause: Duration,
) -> Wrong {
    let mut rng = StdRng::seed_from_u64(seed);
    loop {
        ctx.sleep(pause.mul_f64(rng.random_range(0.1..2.0))).await;
        let key = &keys[rng.random_range(0..keys.len())];
        let acknowledged = book.borrow().acknowledged(key);
        let Ok(result) = ctx.timeout(REQUEST_MAX, get(&handle, key)).await else {
            return Wrong(format!("a GET of {key} does not end"));
        };
        match result {
            Ok(found) => {
                reads.borrow_mut().answered += 1;
                if let Err(wrong) = book.borrow().judge(key, acknowledged, found.as_ref()) {
                    return wrong;
                }
            }
            Err(error) => {
                let mut reads = reads.borrow_mut();
                reads.failed += 1;
                reads.damaged += u64::from(matches!(error, ClientError::Damaged { .. }));
            }
        }
    }
}

/// What a final look at all keys found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Fids that are named.
    pub named: BTreeSet<Fid>,
    /// Keys whose bytes cannot be had any more, and why.
    pub damaged: BTreeMap<String, String>,
}

/// Reads every key and judges it by the book. With `may_be_damaged`, a clean word that the bytes are lost will do.
///
/// # Errors
/// [`Wrong`].
pub async fn judge(handle: &Handle, ctx: &Ctx, book: &Book, may_be_damaged: bool) -> Result<Verdict, Wrong> {
    let mut verdict = Verdict::default();
    for key in book.keys() {
        let read = || async {
            match get(handle, &key).await {
                Err(ClientError::Damaged { what }) if may_be_damaged => Ok(Err(what)),
                other => other.map(Ok),
            }
        };
        let found = patiently(ctx, read).await;
        match found.map_err(|error| Wrong(format!("{key} cannot be read: {error}")))? {
            Ok(found) => {
                book.judge(&key, book.acknowledged(&key), found.as_ref())?;
                verdict.named.extend(found.and_then(|read| read.fid));
            }
            Err(what) => {
                let open = patiently(ctx, || handle.open("b", key.as_bytes())).await;
                let open = open.map_err(|error| Wrong(format!("{key} has no record: {error}")))?;
                if let Body::Single(extent) = &open.record().body {
                    verdict.named.insert(extent.fid);
                }
                verdict.damaged.insert(key, what);
            }
        }
    }
    Ok(verdict)
}

/// The last client goes and another comes: once the collector is idle, the targets hold what is named. Targets in
/// `except` are not asked.
///
/// # Errors
/// [`Wrong`].
pub async fn reckon(
    cluster: &mut SimCluster,
    ctx: &Ctx,
    book: &Book,
    may_be_damaged: bool,
    except: &[usize],
) -> Result<Verdict, Wrong> {
    let handle = cluster.start_client();
    // A change takes a session, and with it the one before is fenced: what that left behind is an orphan from now on.
    let name = format!("after-{}", ctx.now().0);
    let create = || Command::CreateBucket { name: name.clone(), owner: "me".into(), created: UnixMillis(0) };
    let created = patiently(ctx, || handle.commit(create())).await;
    created.map_err(|error| Wrong(format!("the next client cannot change anything: {error}")))?;
    let verdict = judge(&handle, ctx, book, may_be_damaged).await?;
    let wrong = |what: String| Err(Wrong(what));
    let Some(cas) = cluster.processes()[0].cas() else { return wrong("no catalogue runs".into()) };
    let mut waited = 0;
    while !cas.collector_idle().await.map_err(|error| Wrong(error.to_string()))? {
        ctx.sleep(Duration::from_secs(1)).await;
        waited += 1;
        if waited > REST_MAX {
            return wrong(format!("the collector does not come to rest: {:?}", cas.status().await));
        }
    }
    let mut all = BTreeSet::new();
    for (number, process) in cluster.processes().iter().enumerate() {
        let Some(store) = process.store().filter(|_| !except.contains(&number)) else { continue };
        let cobs = store.cob_next(Fid::MIN, COBS_MAX).await;
        let cobs = cobs.map_err(|error| Wrong(format!("the cobs of target {number}: {error}")))?;
        let held: BTreeSet<Fid> = cobs.into_iter().map(|(fid, _)| fid).collect();
        let orphans: Vec<&Fid> = held.difference(&verdict.named).collect();
        if !orphans.is_empty() {
            return wrong(format!("target {number} holds what nothing names: {orphans:?}"));
        }
        all.extend(held);
    }
    // A small object has no unit on some target, but it has one somewhere.
    let gone: Vec<&Fid> = verdict.named.difference(&all).collect();
    if !gone.is_empty() && except.is_empty() {
        return wrong(format!("no target holds {gone:?}, which are named"));
    }
    Ok(verdict)
}
