//! A catalogue on a real store in memory, a session that talks to it, and a double of the targets.

#![allow(dead_code, reason = "each test file uses its part")]

use cobalt_base::{Fid, SessionId, UnixMillis};
use cobalt_bdev::{Device, MemBdev};
use cobalt_cas::limits::CollectorLimits;
use cobalt_cas::{Cas, SoleReplica, TargetError, Targets};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor, Scope};
use cobalt_rpc::proto::cas::{
    Answer, CasError, CasStatus, Command, Commit, Condition, Heartbeat, OpenSession, Outcome, Position, Query,
};
use cobalt_rpc::proto::ios::CobRow;
use cobalt_rpc::proto::record::{
    Body, BucketRecord, Extent, Layout, ObjectMeta, ObjectRecord, PartRecord, PoolTarget, UploadRecord,
};
use cobalt_store::{Ctg, FormatOptions, OpenOptions, Region, Regions, Store, format};
use futures::future::LocalBoxFuture;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// Runs a test on virtual time.
pub fn on_virtual_time<F: Future + 'static>(seed: u64, test: impl FnOnce(Ctx) -> F) -> F::Output {
    let reactor = Reactor::new_virtual(seed).unwrap();
    let future = test(reactor.ctx());
    reactor.block_on(future)
}

/// A catalogue that can be killed and started again.
pub struct Rig {
    pub ctx: Ctx,
    regions: Regions,
    arena: Arena,
    process: Option<Scope>,
    store: Option<Store>,
    pub cas: Cas,
}

impl Rig {
    pub async fn new(ctx: &Ctx) -> Rig {
        let device = |size| Region::whole(Device::new(Rc::new(MemBdev::new(size))));
        let regions = Regions { meta: device(64 << 20), data: device(64 << 20) };
        let arena = Arena::new(ArenaConfig { limit: 64 << 20 }).unwrap();
        let options = FormatOptions::new(Uuid::from_u128(1), Uuid::from_u128(2), "t0");
        format(ctx, &regions, &arena, &options).await.unwrap();
        let (process, store, cas) = start(ctx, &regions, &arena).await;
        Rig { ctx: ctx.clone(), regions, arena, process: Some(process), store: Some(store), cas }
    }

    /// Kills the process where it stands, and starts the next one.
    pub async fn restart(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
        self.store = None;
        let (process, store, cas) = start(&self.ctx, &self.regions, &self.arena).await;
        (self.process, self.store, self.cas) = (Some(process), Some(store), cas);
    }

    pub fn rows_read(&self) -> u64 {
        self.cas.rows_read()
    }

    pub fn ctg(&self) -> Ctg {
        self.store.as_ref().expect("it runs").ctg()
    }

    /// Starts the collector in the process.
    pub fn collect(&self, targets: &Rc<TargetDouble>) {
        drop(self.cas.start_collector(targets.clone(), CollectorLimits::tiny()));
    }

    pub async fn session(&self, process: &str, nonce: u64) -> Session {
        let request = OpenSession { process: process.into(), nonce };
        let opened = self.cas.open_session(request).await.unwrap();
        Session { id: opened.value.session, next: Cell::new(1), counter: Cell::new(1) }
    }

    pub async fn ask(&self, query: Query) -> Result<Answer, CasError> {
        self.cas.ask(&query).await.map(|at| at.value)
    }

    pub async fn status(&self) -> CasStatus {
        self.cas.status().await.unwrap()
    }

    pub async fn beat(&self, session: &Session, oldest: Position) -> Result<Position, CasError> {
        self.cas.heartbeat(Heartbeat { session: session.id, oldest }).await
    }

    /// Says that no GET of the session runs.
    pub async fn beat_idle(&self, session: &Session) -> Result<Position, CasError> {
        self.beat(session, self.cas.position()).await
    }

    pub async fn object(&self, bucket: &str, key: &str) -> Result<ObjectRecord, CasError> {
        match self.ask(Query::Object { bucket: bucket.into(), key: key.into() }).await? {
            Answer::Object(object) => Ok(object),
            other => panic!("{other:?}"),
        }
    }

    pub async fn parts(&self, upload: Uuid) -> Result<Vec<PartRecord>, CasError> {
        match self.ask(Query::Parts { upload, after: 0, limit: 1000 }).await? {
            Answer::Parts(page) => Ok(page.rows),
            other => panic!("{other:?}"),
        }
    }
}

async fn start(ctx: &Ctx, regions: &Regions, arena: &Arena) -> (Scope, Store, Cas) {
    let process = ctx.scope();
    let store =
        Store::open(process.ctx(), regions.clone(), arena.clone(), OpenOptions::default()).await.unwrap();
    let cas = Cas::start(process.ctx(), store.ctg(), "t0", Rc::new(SoleReplica)).await.unwrap();
    (process, store, cas)
}

/// A gateway's session.
pub struct Session {
    pub id: SessionId,
    next: Cell<u64>,
    counter: Cell<u64>,
}

impl Session {
    pub fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// One request: answered, and acknowledged by the next.
    pub async fn commit(&self, rig: &Rig, command: Command) -> Result<Outcome, CasError> {
        let request = self.number();
        self.send(rig, request, request - 1, command).await
    }

    pub async fn send(
        &self,
        rig: &Rig,
        request: u64,
        acknowledged: u64,
        command: Command,
    ) -> Result<Outcome, CasError> {
        let commit = Commit { session: self.id, request, acknowledged, command };
        rig.cas.commit(commit).await.map(|at| at.value)
    }

    pub async fn bucket(&self, rig: &Rig, name: &str) -> BucketRecord {
        match self.commit(rig, create_bucket(name)).await.unwrap() {
            Outcome::BucketCreated(bucket) => bucket,
            other => panic!("{other:?}"),
        }
    }

    pub fn fid(&self) -> Fid {
        Fid::new(self.id, self.counter.replace(self.counter.get() + 1))
    }

    pub async fn put(
        &self,
        rig: &Rig,
        bucket: &BucketRecord,
        key: &str,
        fid: Fid,
    ) -> Result<Outcome, CasError> {
        self.commit(rig, put_object(bucket, key.as_bytes(), body(fid), "e", Condition::default())).await
    }

    pub async fn delete(&self, rig: &Rig, bucket: &BucketRecord, key: &str) -> Result<Outcome, CasError> {
        let command = Command::DeleteObject {
            bucket: bucket.name.clone(),
            key: key.into(),
            condition: Condition::default(),
        };
        self.commit(rig, command).await
    }

    pub async fn create_upload(&self, rig: &Rig, bucket: &BucketRecord, key: &str, upload: Uuid) {
        let record = UploadRecord {
            upload,
            key: key.into(),
            initiated: UnixMillis(1),
            meta: ObjectMeta::default(),
            checksum: None,
        };
        self.commit(rig, Command::CreateUpload { bucket: bucket.name.clone(), record }).await.unwrap();
    }

    pub async fn put_part(
        &self,
        rig: &Rig,
        bucket: &BucketRecord,
        key: &str,
        upload: Uuid,
        number: u16,
        fid: Fid,
    ) -> Result<Outcome, CasError> {
        let part = PartRecord {
            number,
            size: 10,
            modified: UnixMillis(1),
            etag: format!("p{number}"),
            body: body(fid),
            checksums: Vec::new(),
        };
        self.commit(rig, Command::PutPart { bucket: bucket.name.clone(), key: key.into(), upload, part })
            .await
    }

    pub async fn complete(
        &self,
        rig: &Rig,
        bucket: &BucketRecord,
        key: &str,
        upload: Uuid,
        numbers: &[u16],
    ) -> Result<Outcome, CasError> {
        let parts = rig.parts(upload).await?;
        self.commit(rig, complete_upload(bucket, key, upload, numbers, &parts)).await
    }
}

pub fn create_bucket(name: &str) -> Command {
    Command::CreateBucket { name: name.into(), owner: "me".into(), created: UnixMillis(1) }
}

pub fn body(fid: Fid) -> Body {
    let layout = Layout { data_units: 2, parity_units: 1, unit_size: 4096, pool: 1 };
    Body::Single(Extent { fid, size: 10, layout })
}

pub fn record(body: Body, etag: &str) -> ObjectRecord {
    let size = if body == Body::Empty { 0 } else { 10 };
    let meta = ObjectMeta::default();
    ObjectRecord { size, modified: UnixMillis(1), etag: etag.into(), body, meta, checksums: Vec::new() }
}

pub fn put_object(
    bucket: &BucketRecord,
    key: &[u8],
    body: Body,
    etag: &str,
    condition: Condition,
) -> Command {
    Command::PutObject {
        bucket: bucket.name.clone(),
        bucket_id: bucket.id,
        key: key.to_vec(),
        record: record(body, etag),
        condition,
    }
}

pub fn complete_upload(
    bucket: &BucketRecord,
    key: &str,
    upload: Uuid,
    numbers: &[u16],
    parts: &[PartRecord],
) -> Command {
    let mut bitmap = vec![0u8; 16];
    for number in numbers {
        bitmap[usize::from((number - 1) / 8)] |= 1 << ((number - 1) % 8);
    }
    let named = parts.iter().filter(|part| numbers.contains(&part.number));
    let digest = cobalt_rpc::proto::cas::parts_digest(named.map(|p| (p.number, p.etag.as_str(), p.size)));
    let body = Body::Parts { upload, count: u32::try_from(numbers.len()).unwrap() };
    Command::CompleteUpload {
        bucket: bucket.name.clone(),
        key: key.into(),
        upload,
        numbers: bitmap,
        digest,
        record: record(body, &format!("complete-{}", numbers.len())),
        condition: Condition::default(),
    }
}

pub const TARGETS: [Uuid; 3] = [Uuid::from_u128(10), Uuid::from_u128(11), Uuid::from_u128(12)];

pub fn set_pool() -> Command {
    let target = |(i, target): (usize, &Uuid)| PoolTarget {
        target: *target,
        name: format!("t{i}"),
        process: format!("p{i}"),
    };
    Command::SetPool { targets: TARGETS.iter().enumerate().map(target).collect() }
}

/// Targets that hold cobs in a set and do what they are told, unless they are down.
#[derive(Default)]
pub struct TargetDouble {
    pub cobs: RefCell<BTreeMap<Uuid, BTreeMap<Fid, u64>>>,
    pub down: RefCell<BTreeSet<Uuid>>,
    pub fenced: RefCell<BTreeSet<(Uuid, SessionId)>>,
    /// Every fid whose deletion was asked for.
    pub deleted: RefCell<BTreeSet<Fid>>,
    pub calls: Cell<u64>,
    /// Calls after which every target hangs for ever, as when the process is killed in the next.
    pub hang_after: Cell<Option<u64>>,
}

impl TargetDouble {
    pub fn new() -> Rc<TargetDouble> {
        Rc::default()
    }

    /// Writes a cob of `fid` on every target.
    pub fn write(&self, fid: Fid, incarnation: u64) {
        for target in TARGETS {
            self.cobs.borrow_mut().entry(target).or_default().insert(fid, incarnation);
        }
    }

    pub fn holds(&self, fid: Fid) -> usize {
        self.cobs.borrow().values().filter(|cobs| cobs.contains_key(&fid)).count()
    }

    pub fn is_empty(&self) -> bool {
        self.cobs.borrow().values().all(BTreeMap::is_empty)
    }

    /// `before`: the process dies before the target did it; else after, before the answer.
    async fn enter(&self, target: Uuid) -> Result<bool, TargetError> {
        self.calls.set(self.calls.get() + 1);
        if self.down.borrow().contains(&target) {
            return Err(TargetError::Unavailable("it is down".into()));
        }
        match self.hang_after.get() {
            Some(0) => std::future::pending().await,
            Some(1) => {
                self.hang_after.set(Some(0));
                Ok(false)
            }
            Some(n) => {
                self.hang_after.set(Some(n - 1));
                Ok(true)
            }
            None => Ok(true),
        }
    }

    async fn leave(answers: bool) {
        if !answers {
            std::future::pending::<()>().await;
        }
    }
}

impl Targets for TargetDouble {
    fn delete(
        &self,
        target: Uuid,
        fids: Vec<Fid>,
        incarnation: u64,
    ) -> LocalBoxFuture<'_, Result<(), TargetError>> {
        Box::pin(async move {
            let answers = self.enter(target).await?;
            for fid in fids {
                self.deleted.borrow_mut().insert(fid);
                let have = self.cobs.borrow_mut().entry(target).or_default().remove(&fid);
                assert!(
                    have.is_none_or(|have| have == incarnation),
                    "a cob of another catalogue was deleted"
                );
            }
            TargetDouble::leave(answers).await;
            Ok(())
        })
    }

    fn fence(&self, target: Uuid, session: SessionId) -> LocalBoxFuture<'_, Result<(), TargetError>> {
        Box::pin(async move {
            let answers = self.enter(target).await?;
            self.fenced.borrow_mut().insert((target, session));
            TargetDouble::leave(answers).await;
            Ok(())
        })
    }

    fn list(
        &self,
        target: Uuid,
        from: Fid,
        limit: u32,
    ) -> LocalBoxFuture<'_, Result<Vec<CobRow>, TargetError>> {
        Box::pin(async move {
            let answers = self.enter(target).await?;
            let row = |(fid, incarnation): (&Fid, &u64)| CobRow {
                fid: *fid,
                incarnation: *incarnation,
                allocated: 4096,
            };
            let rows = match self.cobs.borrow().get(&target) {
                Some(cobs) => cobs.range(from..).take(limit as usize).map(row).collect(),
                None => Vec::new(),
            };
            TargetDouble::leave(answers).await;
            Ok(rows)
        })
    }
}

/// Waits, with heartbeats of `sessions`, until the collector has nothing to do; false after `time`.
pub async fn settle(rig: &Rig, sessions: &[&Session], time: Duration) -> bool {
    let end = rig.ctx.now() + time;
    while rig.ctx.now() < end {
        for session in sessions {
            rig.beat_idle(session).await.unwrap();
        }
        if rig.cas.collector_idle().await.unwrap() {
            return true;
        }
        rig.ctx.sleep(Duration::from_millis(100)).await;
    }
    false
}
