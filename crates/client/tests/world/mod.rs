//! What the client's tests share: a cluster in one thread on virtual time. The I/O service and the
//! catalogue are doubles that keep what they are told in memory, and fail as they are told.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test binary uses its part; a test that cannot go on fails"
)]

use cobalt_base::checksum::crc32c_chunks_of;
use cobalt_base::{Fid, SessionId, UnixMillis};
use cobalt_client::{
    Client, ClientConfig, ClientError, Handle, LayoutConfig, Limits, OpenObject, PeerConfig, StoredBody,
};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_fabric::{LocalNet, PeerAddr, Transport};
use cobalt_reactor::{Ctx, Reactor};
use cobalt_rpc::proto::cas::{
    Answer, Ask, At, CasError, CasStatus, CloseSession, Command, Commit, Condition, Heartbeat, OpenSession,
    Outcome, Page, Position, Query, SessionOpened,
};
use cobalt_rpc::proto::ios::{self, IosError, ListTargets, ReadReply, TargetRow};
use cobalt_rpc::proto::record::{Body, ObjectMeta, ObjectRecord, PartRecord, PoolMap, PoolTarget};
use cobalt_rpc::{
    Auth, Call, ClusterSecret, Identity, Peer, PeerLimits, Refusal, Request, Server, ServerLimits, Service,
};
use futures::future::LocalBoxFuture;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

pub const BUCKET: &str = "bucket";

/// A unit as a target keeps it.
#[derive(Clone)]
pub struct Stored {
    pub bytes: Vec<u8>,
    pub crcs: Vec<u32>,
    pub chunk: u32,
}

/// What a target does to requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Refuses so many writes as busy, then is well.
    Busy(u32),
    /// Never answers.
    Hangs,
    Failed,
    NoSpace,
    /// Writes hang; reads are well.
    WritesHang,
    /// Sends bytes that do not match the checksums it sends.
    Lies,
    Fenced,
}

/// The I/O service of one process with one target.
pub struct Target {
    pub ctx: Ctx,
    pub arena: Arena,
    pub uuid: Uuid,
    pub name: String,
    pub mood: RefCell<Mood>,
    pub cobs: RefCell<BTreeMap<(Fid, u64), Stored>>,
    pub writes: Cell<u64>,
    pub reads: Cell<u64>,
    pub free: Cell<u64>,
}

impl Target {
    async fn write(&self, call: &Call, w: ios::Write) -> Result<(), IosError> {
        let mood = self.mood.borrow().clone();
        match mood {
            Mood::Busy(0) => *self.mood.borrow_mut() = Mood::Well,
            Mood::Busy(n) => {
                *self.mood.borrow_mut() = Mood::Busy(n - 1);
                return Err(IosError::Busy);
            }
            Mood::Hangs | Mood::WritesHang => std::future::pending().await,
            Mood::Failed => return Err(self.failed()),
            Mood::NoSpace => return Err(IosError::NoSpace { name: self.name.clone(), bytes: w.len }),
            Mood::Fenced => return Err(IosError::Fenced(w.fid.session)),
            Mood::Well | Mood::Lies => {}
        }
        let data = call.pull(0, w.len).await.map_err(|e| IosError::Transfer(e.to_string()))?;
        let crcs = crc32c_chunks_of(data.iter().map(|s| &s[..]), w.chunk_size as usize);
        assert_eq!(crcs, w.crcs, "the client's checksums are those of its bytes");
        assert_eq!(w.incarnation, 77);
        assert!(w.offset.is_multiple_of(w.chunk_size.into()));
        let bytes: Vec<u8> = data.iter().flat_map(|s| s.iter().copied()).collect();
        self.writes.set(self.writes.get() + 1);
        self.cobs.borrow_mut().insert((w.fid, w.offset), Stored { bytes, crcs, chunk: w.chunk_size });
        Ok(())
    }

    async fn read(&self, call: &Call, r: ios::Read) -> Result<ReadReply, IosError> {
        let mood = self.mood.borrow().clone();
        match mood {
            Mood::Hangs => std::future::pending().await,
            Mood::Failed => return Err(self.failed()),
            _ => {}
        }
        let missing = IosError::Missing { fid: r.fid, offset: r.offset };
        let (at, unit) = {
            let cobs = self.cobs.borrow();
            let found = cobs.range((r.fid, 0)..=(r.fid, r.offset)).next_back();
            let ((_, at), unit) = found.ok_or_else(|| missing.clone())?;
            (*at, unit.clone())
        };
        let (from, to) = ((r.offset - at) as usize, (r.offset - at + r.len) as usize);
        assert!(from.is_multiple_of(unit.chunk as usize), "reads begin at chunks");
        assert!(to.is_multiple_of(unit.chunk as usize) || to == unit.bytes.len(), "reads end at chunks");
        let bytes = unit.bytes.get(from..to).ok_or(missing)?;
        let crcs = crc32c_chunks_of([bytes], unit.chunk as usize);
        let first = from / unit.chunk as usize;
        if crcs[..] != unit.crcs[first..first + crcs.len()] {
            return Err(IosError::Corrupt { fid: r.fid, offset: r.offset, why: "checksum".into() });
        }
        let mut buf = self.arena.alloc(bytes.len()).await;
        buf.copy_from_slice(bytes);
        if mood == Mood::Lies {
            buf[0] ^= 1;
        }
        call.push(0, vec![buf.freeze()]).await.map_err(|e| IosError::Transfer(e.to_string()))?;
        self.reads.set(self.reads.get() + 1);
        Ok(ReadReply { crcs, chunk_size: unit.chunk })
    }

    fn failed(&self) -> IosError {
        IosError::TargetFailed { name: self.name.clone(), why: "told to".into() }
    }

    /// Flips a bit of every unit that is stored.
    pub fn rot(&self) {
        for unit in self.cobs.borrow_mut().values_mut() {
            let middle = unit.bytes.len() / 2;
            unit.bytes[middle] ^= 0x10;
        }
    }
}

/// The catalogue in memory.
#[derive(Default)]
pub struct Catalogue {
    pub objects: RefCell<HashMap<Vec<u8>, ObjectRecord>>,
    pub parts: RefCell<BTreeMap<(Uuid, u16), PartRecord>>,
    pub dead: RefCell<Vec<Fid>>,
    pub answers: RefCell<HashMap<(SessionId, u64), Result<Outcome, CasError>>>,
    pub applied: RefCell<Vec<Command>>,
    pub sessions: RefCell<BTreeMap<u64, SessionId>>,
    pub fenced: RefCell<BTreeSet<SessionId>>,
    /// The next session is opened, its answer is lost, and somebody fences it.
    pub fence_next: Cell<bool>,
    pub closed: RefCell<BTreeSet<SessionId>>,
    pub pools: RefCell<Vec<PoolMap>>,
    pub index: Cell<u64>,
    pub beats: RefCell<Vec<Heartbeat>>,
    pub acknowledged: RefCell<Vec<(u64, u64)>>,
    /// So many commits take place, and their answers are lost.
    pub lose: Cell<u32>,
    pub refuse: RefCell<Option<CasError>>,
    /// Who leads; `None` when it is this one.
    pub leader: RefCell<Option<Option<String>>>,
    pub down: Cell<bool>,
    /// How long the answer about an object travels.
    pub slow: Cell<Duration>,
}

impl Catalogue {
    fn at<T>(&self, value: T) -> At<T> {
        At { position: self.position(), value }
    }

    pub fn position(&self) -> Position {
        Position { term: 1, index: self.index.get() }
    }

    fn live(&self, session: SessionId) -> Result<(), CasError> {
        if !self.sessions.borrow().values().any(|s| *s == session) {
            return Err(CasError::NoSession(session));
        }
        if self.fenced.borrow().contains(&session) {
            return Err(CasError::Fenced(session));
        }
        Ok(())
    }

    fn leads(&self) -> Result<(), CasError> {
        match &*self.leader.borrow() {
            Some(hint) => Err(CasError::NotLeader { hint: hint.clone() }),
            None => Ok(()),
        }
    }

    fn ask(&self, query: Query) -> Result<At<Answer>, CasError> {
        self.leads()?;
        Ok(self.at(match query {
            Query::Cluster => Answer::Cluster { incarnation: 77, pools: self.pools.borrow().clone() },
            Query::Object { key, .. } => {
                Answer::Object(self.objects.borrow().get(&key).cloned().ok_or(CasError::NoSuchKey)?)
            }
            Query::Parts { upload, after, limit } => {
                let parts = self.parts.borrow();
                let mut rows: Vec<_> = parts
                    .range((upload, after + 1)..=(upload, u16::MAX))
                    .map(|(_, part)| part.clone())
                    .collect();
                let limit = (limit as usize).min(3); // Small pages.
                let more = rows.len() > limit;
                rows.truncate(limit);
                Answer::Parts(Page { rows, more })
            }
            Query::Status => Answer::Status(CasStatus {
                incarnation: 77,
                replicas: 1,
                target: "t0".into(),
                buckets: 1,
                sessions: Vec::new(),
                dead: 0,
                collector_idle: true,
                collector_note: None,
            }),
            other => panic!("not asked in these tests: {other:?}"),
        }))
    }

    fn commit(&self, commit: Commit) -> Result<At<Outcome>, CasError> {
        self.leads()?;
        self.live(commit.session)?;
        self.acknowledged.borrow_mut().push((commit.request, commit.acknowledged));
        assert!(commit.acknowledged < commit.request);
        let key = (commit.session, commit.request);
        let known = self.answers.borrow().get(&key).cloned();
        let answer = known.unwrap_or_else(|| {
            self.index.set(self.index.get() + 1);
            self.apply(commit.command)
        });
        self.answers.borrow_mut().insert(key, answer.clone());
        answer.map(|outcome| self.at(outcome))
    }

    fn apply(&self, command: Command) -> Result<Outcome, CasError> {
        if let Some(refusal) = self.refuse.borrow().clone()
            && !matches!(command, Command::Dead { .. })
        {
            return Err(refusal);
        }
        self.applied.borrow_mut().push(command.clone());
        match command {
            Command::PutObject { key, record, .. } => {
                let etag = record.etag.clone();
                self.objects.borrow_mut().insert(key, record);
                Ok(Outcome::Published { etag })
            }
            Command::Dead { fids } => {
                self.dead.borrow_mut().extend(fids);
                Ok(Outcome::Done)
            }
            _ => Ok(Outcome::Done),
        }
    }
}

/// One process: a target, and perhaps the catalogue.
pub struct Process {
    pub target: Rc<Target>,
    pub catalogue: Option<Rc<Catalogue>>,
}

impl Service for Process {
    fn call(self: Rc<Self>, call: Call) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            match call.opcode() {
                ios::Write::OPCODE => {
                    let answer = self.target.write(&call, call.parse().unwrap()).await;
                    call.reply::<ios::Write>(answer);
                }
                ios::Read::OPCODE => {
                    let answer = self.target.read(&call, call.parse().unwrap()).await;
                    call.reply::<ios::Read>(answer);
                }
                ListTargets::OPCODE => {
                    let mood = self.target.mood.borrow().clone();
                    call.reply::<ListTargets>(Ok(vec![TargetRow {
                        target: self.target.uuid,
                        name: self.target.name.clone(),
                        failed: (mood == Mood::Failed).then(|| "told to".into()),
                        backend: "double".into(),
                        total: 1 << 40,
                        free: self.target.free.get(),
                        cobs: 0,
                        counters: Vec::new(),
                    }]));
                }
                opcode => match &self.catalogue {
                    Some(catalogue) if !catalogue.down.get() => {
                        catalogue_call(&self.target.ctx, catalogue, call).await;
                    }
                    Some(_) => std::future::pending().await,
                    None => call.refuse(Refusal::UnknownOpcode(opcode)),
                },
            }
        })
    }
}

async fn catalogue_call(ctx: &Ctx, catalogue: &Catalogue, call: Call) {
    match call.opcode() {
        OpenSession::OPCODE => {
            let request: OpenSession = call.parse().unwrap();
            let next = SessionId(catalogue.sessions.borrow().len() as u64 + 1);
            let opened = catalogue.leads().map(|()| {
                let session = *catalogue.sessions.borrow_mut().entry(request.nonce).or_insert(next);
                catalogue.at(SessionOpened { session, incarnation: 77 })
            });
            if let (Ok(at), true) = (&opened, catalogue.fence_next.replace(false)) {
                catalogue.fenced.borrow_mut().insert(at.value.session);
                return call.refuse(Refusal::NoReply);
            }
            let opened = opened.and_then(|at| catalogue.live(at.value.session).map(|()| at));
            call.reply::<OpenSession>(opened);
        }
        Heartbeat::OPCODE => {
            let beat: Heartbeat = call.parse().unwrap();
            let answer = catalogue.leads().and_then(|()| catalogue.live(beat.session));
            catalogue.beats.borrow_mut().push(beat);
            call.reply::<Heartbeat>(answer.map(|()| catalogue.position()));
        }
        CloseSession::OPCODE => {
            let close: CloseSession = call.parse().unwrap();
            catalogue.closed.borrow_mut().insert(close.session);
            call.reply::<CloseSession>(Ok(catalogue.position()));
        }
        Ask::OPCODE => {
            let ask: Ask = call.parse().unwrap();
            let object = matches!(ask.0, Query::Object { .. });
            let answer = catalogue.ask(ask.0);
            if object && !catalogue.slow.get().is_zero() {
                ctx.sleep(catalogue.slow.get()).await;
            }
            call.reply::<Ask>(answer);
        }
        Commit::OPCODE => {
            let answer = catalogue.commit(call.parse().unwrap());
            if catalogue.lose.get() > 0 {
                catalogue.lose.set(catalogue.lose.get() - 1);
                return call.refuse(Refusal::NoReply);
            }
            call.reply::<Commit>(answer);
        }
        opcode => call.refuse(Refusal::UnknownOpcode(opcode)),
    }
}

/// The cluster and a client of it.
pub struct World {
    pub ctx: Ctx,
    pub arena: Arena,
    pub net: LocalNet,
    pub secret: ClusterSecret,
    pub targets: Vec<Rc<Target>>,
    pub catalogue: Rc<Catalogue>,
    /// A process's catalogue that never leads, if the test wants one.
    pub follower: Rc<Catalogue>,
    pub servers: RefCell<Vec<Option<Server>>>,
    incarnation: Cell<u64>,
    pub client: Client,
    pub handle: Handle,
}

#[derive(Clone, Copy)]
pub struct Shape {
    pub targets: usize,
    pub layout: LayoutConfig,
    pub limits: Limits,
    pub arena: usize,
    /// Whether the second process has a catalogue that does not lead, and is asked first.
    pub follower: bool,
}

impl Default for Shape {
    fn default() -> Shape {
        let (layout, limits) = (LayoutConfig::default(), Limits::default());
        Shape { targets: 3, layout, limits, arena: 64 << 20, follower: false }
    }
}

impl World {
    pub async fn new(ctx: &Ctx, shape: Shape) -> World {
        let arena = Arena::new(ArenaConfig { limit: shape.arena }).unwrap();
        let net = LocalNet::new(ctx, &arena);
        let secret = ClusterSecret::from_bytes([9; 32]);
        let name = |i: usize| format!("p{i}");
        let targets: Vec<Rc<Target>> = (0..shape.targets)
            .map(|i| {
                Rc::new(Target {
                    ctx: ctx.clone(),
                    arena: arena.clone(),
                    uuid: Uuid::from_u128(100 + i as u128),
                    name: format!("t{i}"),
                    mood: RefCell::new(Mood::Well),
                    cobs: RefCell::default(),
                    writes: Cell::default(),
                    reads: Cell::default(),
                    free: Cell::new(1 << 39),
                })
            })
            .collect();
        let catalogue = Rc::<Catalogue>::default();
        let follower = Rc::<Catalogue>::default();
        *follower.leader.borrow_mut() = Some(None);
        let pool = targets.iter().enumerate().map(|(i, target)| PoolTarget {
            target: target.uuid,
            name: target.name.clone(),
            process: name(i),
        });
        catalogue.pools.borrow_mut().push(PoolMap { version: 1, targets: pool.collect() });
        let auth = Auth::new(Identity { name: "client".into(), incarnation: 1 }, secret.clone());
        let transport: Rc<dyn Transport> = Rc::new(net.transport("client"));
        let mut peers: Vec<PeerConfig> = (0..shape.targets)
            .map(|i| PeerConfig {
                peer: Peer::new(
                    ctx,
                    transport.clone(),
                    auth.clone(),
                    &name(i),
                    PeerAddr::Local(name(i)),
                    PeerLimits::default(),
                ),
                address: format!("local:{}", name(i)),
                cas: i == 0 || (i == 1 && shape.follower),
            })
            .collect();
        if shape.follower {
            peers.swap(0, 1);
        }
        let config = ClientConfig { process: "gw".into(), layout: shape.layout, limits: shape.limits };
        let (client, handle) = Client::start(ctx, &arena, config, peers).unwrap();
        let world = World {
            ctx: ctx.clone(),
            arena,
            net,
            secret,
            targets,
            catalogue,
            follower,
            servers: RefCell::new((0..shape.targets).map(|_| None).collect()),
            incarnation: Cell::new(1),
            client,
            handle,
        };
        for i in 0..shape.targets {
            world.start(i).await;
        }
        world
    }

    /// Starts process `i`, perhaps again.
    pub async fn start(&self, i: usize) {
        self.incarnation.set(self.incarnation.get() + 1);
        let identity = Identity { name: format!("p{i}"), incarnation: self.incarnation.get() };
        let auth = Auth::new(identity, self.secret.clone());
        let catalogue = match i {
            0 => Some(self.catalogue.clone()),
            1 => Some(self.follower.clone()),
            _ => None,
        };
        let service = Rc::new(Process { target: self.targets[i].clone(), catalogue });
        let server = Server::new(&self.ctx, auth, service, ServerLimits::default());
        let address = PeerAddr::Local(format!("p{i}"));
        server.listen(self.net.transport(&format!("p{i}")).listen(address).await.unwrap());
        self.servers.borrow_mut()[i] = Some(server);
    }

    /// Stops process `i`.
    pub fn kill(&self, i: usize) {
        let server = self.servers.borrow_mut()[i].take().unwrap();
        server.stop();
    }

    pub async fn store(&self, bytes: &[u8], known: bool) -> Result<StoredBody, ClientError> {
        let mut put = self.handle.put(known.then_some(bytes.len() as u64)).await?;
        for unit in bytes.chunks(put.unit_size()) {
            let mut buf = put.buf().await;
            buf.set_len(unit.len());
            buf.copy_from_slice(unit);
            put.write(buf).await?;
        }
        put.finish().await
    }

    pub async fn put(&self, key: &str, bytes: &[u8]) -> Result<Outcome, ClientError> {
        let stored = self.store(bytes, true).await?;
        let size = bytes.len() as u64;
        self.handle.publish(stored, |body| put_command(key, body, size)).await
    }

    pub async fn open(&self, key: &str) -> Result<OpenObject, ClientError> {
        self.handle.open(BUCKET, key.as_bytes()).await
    }

    pub async fn get(&self, key: &str) -> Result<Vec<u8>, ClientError> {
        let object = self.open(key).await?;
        let size = object.record().size;
        read(&object, 0..size).await
    }

    /// Waits for virtual time to pass.
    pub async fn pass(&self, time: Duration) {
        self.ctx.sleep(time).await;
    }
}

pub async fn read(object: &OpenObject, range: Range<u64>) -> Result<Vec<u8>, ClientError> {
    let mut stream = object.read(range).await?;
    let mut bytes = Vec::new();
    while let Some(slice) = stream.next().await {
        bytes.extend_from_slice(&slice?);
    }
    Ok(bytes)
}

pub fn put_command(key: &str, body: Body, size: u64) -> Command {
    let record = ObjectRecord {
        size,
        modified: UnixMillis(0),
        etag: format!("etag-{key}"),
        body,
        meta: ObjectMeta::default(),
        checksums: Vec::new(),
    };
    Command::PutObject {
        bucket: BUCKET.into(),
        bucket_id: 1,
        key: key.as_bytes().to_vec(),
        record,
        condition: Condition::default(),
    }
}

pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Runs a test on a cluster, on virtual time.
pub fn run<F: Future<Output = ()> + 'static>(shape: Shape, test: impl FnOnce(World) -> F + 'static) {
    let reactor = Reactor::new_virtual(1).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let world = World::new(&ctx, shape).await;
        test(world).await;
    });
}
