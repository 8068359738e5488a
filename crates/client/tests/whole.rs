//! The whole write and read path in one thread: client, I/O service, stores on devices in memory and the
//! catalogue, joined by the local fabric; and the client called from another thread.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use cobalt_base::UnixMillis;
use cobalt_bdev::{Device, MemBdev, WriteData};
use cobalt_cas::{Cas, CasService, SoleReplica};
use cobalt_client::{Client, ClientConfig, ClientError, Handle, LayoutConfig, Limits, PeerConfig};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_fabric::{LocalNet, PeerAddr, Transport};
use cobalt_ios::{Ios, Target};
use cobalt_reactor::{Ctx, Reactor, ReactorConfig, Scope};
use cobalt_rpc::proto::cas::{Answer, CasError, Command, Condition, Outcome, Query};
use cobalt_rpc::proto::record::{Body, ObjectMeta, ObjectRecord, PoolTarget};
use cobalt_rpc::{Auth, Call, ClusterSecret, Identity, Peer, PeerLimits, Server, ServerLimits, Service};
use cobalt_store::{FormatOptions, OpenOptions, Region, Regions, Store, StoreCounters, format};
use futures::future::LocalBoxFuture;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use uuid::Uuid;

const BUCKET: &str = "bucket";

/// Both services of a process.
struct Both {
    ios: Rc<Ios>,
    cas: Option<Rc<CasService>>,
}

impl Service for Both {
    fn call(self: Rc<Self>, call: Call) -> LocalBoxFuture<'static, ()> {
        match &self.cas {
            Some(cas) if CasService::serves(call.opcode()) => cas.clone().call(call),
            _ => self.ios.clone().call(call),
        }
    }
}

struct Process {
    scope: Scope,
    store: Store,
    ios: Rc<Ios>,
    server: Server,
}

struct World {
    ctx: Ctx,
    arena: Arena,
    net: LocalNet,
    regions: Vec<Regions>,
    processes: RefCell<Vec<Option<Process>>>,
    incarnation: Cell<u64>,
    client: Client,
    handle: Handle,
    bucket: u64,
}

fn uuid(i: usize) -> Uuid {
    Uuid::from_u128(100 + i as u128)
}

fn auth(name: &str, incarnation: u64) -> Auth {
    Auth::new(Identity { name: name.into(), incarnation }, ClusterSecret::from_bytes([4; 32]))
}

impl World {
    async fn new(ctx: &Ctx) -> World {
        let arena = Arena::new(ArenaConfig { limit: 128 << 20 }).unwrap();
        let net = LocalNet::new(ctx, &arena);
        let device = |size| Device::new(Rc::new(MemBdev::new(size)));
        let mut regions = Vec::new();
        for i in 0..3 {
            let region =
                Regions { meta: Region::whole(device(64 << 20)), data: Region::whole(device(256 << 20)) };
            let options = FormatOptions::new(uuid(i), Uuid::from_u128(9), format!("t{i}"));
            format(ctx, &region, &arena, &options).await.unwrap();
            regions.push(region);
        }
        let transport: Rc<dyn Transport> = Rc::new(net.transport("gw"));
        let peers = (0..3).map(|i| {
            let (name, limits) = (format!("p{i}"), PeerLimits::default());
            let address = PeerAddr::Local(name.clone());
            let peer = Peer::new(ctx, transport.clone(), auth("gw", 1), &name, address.clone(), limits);
            PeerConfig { peer, address: address.to_string(), cas: i == 0 }
        });
        let config =
            ClientConfig { process: "gw".into(), layout: LayoutConfig::default(), limits: Limits::default() };
        let (client, handle) = Client::start(ctx, &arena, config, peers.collect()).unwrap();
        let mut world = World {
            ctx: ctx.clone(),
            arena,
            net,
            regions,
            processes: RefCell::new(vec![None, None, None]),
            incarnation: Cell::new(1),
            client,
            handle,
            bucket: 0,
        };
        for i in 0..3 {
            world.start(i).await;
        }
        let targets =
            (0..3).map(|i| PoolTarget { target: uuid(i), name: format!("t{i}"), process: format!("p{i}") });
        world.handle.commit(Command::SetPool { targets: targets.collect() }).await.unwrap();
        let create =
            Command::CreateBucket { name: BUCKET.into(), owner: "me".into(), created: UnixMillis(1) };
        let Outcome::BucketCreated(bucket) = world.handle.commit(create).await.unwrap() else { panic!() };
        world.bucket = bucket.id;
        world
    }

    /// Opens the target of process `i` and serves it.
    async fn start(&self, i: usize) {
        let scope = self.ctx.scope();
        let ctx = scope.ctx();
        let store =
            Store::open(ctx.clone(), self.regions[i].clone(), self.arena.clone(), OpenOptions::default());
        let store = store.await.unwrap();
        let target = Target::open(uuid(i), format!("t{i}"), "mem", store.clone());
        let ios = Ios::new(&ctx, [target], cobalt_ios::Limits::default());
        let cas = if i == 0 {
            let cas = Cas::start(ctx.clone(), store.ctg(), "t0", Rc::new(SoleReplica)).await.unwrap();
            Some(CasService::new(cas))
        } else {
            None
        };
        self.incarnation.set(self.incarnation.get() + 1);
        let name = format!("p{i}");
        let service = Rc::new(Both { ios: ios.clone(), cas });
        let server = Server::new(&ctx, auth(&name, self.incarnation.get()), service, ServerLimits::default());
        server.listen(self.net.transport(&name).listen(PeerAddr::Local(name.clone())).await.unwrap());
        self.processes.borrow_mut()[i] = Some(Process { scope, store, ios, server });
    }

    /// Process `i` is gone from one moment to the next.
    fn kill(&self, i: usize) {
        let process = self.processes.borrow_mut()[i].take().unwrap();
        process.server.stop();
        process.scope.kill();
    }

    fn counters(&self) -> Vec<StoreCounters> {
        self.processes.borrow().iter().flatten().map(|process| process.store.counters()).collect()
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, ClientError> {
        get(&self.handle, key).await
    }

    async fn put(&self, key: &str, data: &[u8]) -> Result<Outcome, ClientError> {
        put(&self.handle, self.bucket, key, data).await
    }
}

async fn put(handle: &Handle, bucket_id: u64, key: &str, data: &[u8]) -> Result<Outcome, ClientError> {
    let size = data.len() as u64;
    let mut stream = handle.put(Some(size)).await?;
    for unit in data.chunks(stream.unit_size()) {
        let mut buf = stream.buf().await;
        buf.set_len(unit.len());
        buf.copy_from_slice(unit);
        stream.write(buf).await?;
    }
    let stored = stream.finish().await?;
    let command = |body: Body| Command::PutObject {
        bucket: BUCKET.into(),
        bucket_id,
        key: key.as_bytes().to_vec(),
        record: ObjectRecord {
            size,
            modified: UnixMillis(1),
            etag: "e".into(),
            body,
            meta: ObjectMeta::default(),
            checksums: Vec::new(),
        },
        condition: Condition::default(),
    };
    handle.publish(stored, command).await
}

async fn get(handle: &Handle, key: &str) -> Result<Vec<u8>, ClientError> {
    let object = handle.open(BUCKET, key.as_bytes()).await?;
    let mut stream = object.read(0..object.record().size).await?;
    let mut data = Vec::new();
    while let Some(slice) = stream.next().await {
        data.extend_from_slice(&slice?);
    }
    Ok(data)
}

/// An executor that is none of ours: it parks the thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Rc<World>) -> F + 'static) {
    let reactor = Reactor::new_virtual(5).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let world = Rc::new(World::new(&ctx).await);
        test(world).await;
    });
}

#[test]
fn objects_of_all_sizes_survive_every_loss_and_restart() {
    run(|world| async move {
        let sizes =
            [0, 1, 4095, 4096, 65_537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 2 << 20, (8 << 20) + 123];
        let all: Vec<_> =
            sizes.iter().map(|size| (format!("o{size}"), bytes(*size as u64 + 1, *size))).collect();
        for (key, data) in &all {
            world.put(key, data).await.unwrap();
        }
        for (key, data) in &all {
            assert!(world.get(key).await.unwrap() == *data, "{key}");
        }
        for down in [1, 2] {
            world.kill(down);
            for (key, data) in &all {
                assert!(world.get(key).await.unwrap() == *data, "{key} without p{down}");
            }
            let error = world.put("no", &bytes(1, 9)).await.unwrap_err();
            assert!(
                matches!(&error, ClientError::Unavailable { what } if what.contains(&format!("t{down}"))),
                "{error}"
            );
            world.start(down).await;
            world.ctx.sleep(Duration::from_secs(3)).await;
        }
        // The process with the catalogue comes back with all it knew.
        world.kill(0);
        world.start(0).await;
        world.ctx.sleep(Duration::from_secs(3)).await;
        for (key, data) in &all {
            assert!(world.get(key).await.unwrap() == *data, "{key} after the restart");
        }
        world.put("yes", &bytes(2, 3 << 20)).await.unwrap();
        assert!(world.get("yes").await.unwrap() == bytes(2, 3 << 20));
        let missing = world.get("no").await.unwrap_err();
        assert_eq!(missing, ClientError::Cas(CasError::NoSuchKey));
    });
}

#[test]
fn one_put_of_eight_mebibytes_costs_what_it_must() {
    run(|world| async move {
        world.put("warm", &bytes(1, 8 << 20)).await.unwrap();
        let copied = cobalt_dma::copied::total();
        let (before, client) = (world.counters(), world.client.counters());
        world.put("o", &bytes(2, 8 << 20)).await.unwrap();
        let (after, units) = (world.counters(), world.client.counters().units_written - client.units_written);
        assert_eq!(units, 12, "8 data and 4 parity units");
        assert_eq!(cobalt_dma::copied::total(), copied, "the local fabric hands payload over");
        for (i, (after, before)) in after.iter().zip(&before).enumerate() {
            assert_eq!(after.data_writes - before.data_writes, 4, "target {i}");
            assert_eq!(after.data_write_bytes - before.data_write_bytes, 4 << 20, "target {i}");
            // A commit for each unit at most (they share), and one for the record where the catalogue is.
            let groups = after.groups - before.groups;
            assert!(groups <= 4 + u64::from(i == 0) * 2, "target {i}: {groups} group commits");
            assert_eq!(after.apply_misses, 0);
        }
        world.ctx.sleep(Duration::from_secs(1)).await;
        assert_eq!(world.client.counters().write_retries, 0);
    });
}

#[test]
fn a_rotten_block_is_decoded_and_the_reader_never_sees_it() {
    run(|world| async move {
        let data = bytes(7, (5 << 20) + 321);
        world.put("o", &data).await.unwrap();
        // Everything on one data device rots.
        let device = &world.regions[1].data;
        let mut hurt = 0;
        for block in 0..2048u64 {
            let mut found = device.read(block * 4096, world.arena.try_alloc(4096).unwrap()).await.unwrap();
            if found.iter().any(|byte| *byte != 0) {
                found[9] ^= 1;
                device.write(block * 4096, WriteData::from_iter([found.freeze()]), false).await.unwrap();
                hurt += 1;
            }
        }
        assert!(hurt > 256, "{hurt}");
        assert!(world.get("o").await.unwrap() == data);
        assert!(world.client.counters().units_decoded > 0);
        let corrupt = world.processes.borrow()[1].as_ref().unwrap().ios.counters().corrupt;
        assert!(corrupt > 0);
    });
}

#[test]
fn what_nobody_published_is_on_the_dead_list() {
    run(|world| async move {
        let mut stream = world.handle.put(Some(3 << 20)).await.unwrap();
        let mut buf = stream.buf().await;
        buf.fill(1);
        stream.write(buf).await.unwrap();
        world.ctx.sleep(Duration::from_millis(10)).await;
        drop(stream);
        world.ctx.sleep(Duration::from_secs(1)).await;
        let Answer::Status(status) = world.handle.ask(Query::Status).await.unwrap() else { panic!() };
        assert!(status.dead > 0, "{status:?}");
        let status = world.handle.status().await;
        assert_eq!(status.catalogue, "catalogue: 1 copy on t0; its loss loses all");
        assert!(status.writable, "{status:?}");
    });
}

#[test]
fn other_threads_put_and_get_through_the_handle() {
    let reactor = Reactor::new(ReactorConfig::default()).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let world = World::new(&ctx).await;
        let mut done = Vec::new();
        for thread in 0..3u64 {
            let (handle, bucket) = (world.handle.clone(), world.bucket);
            let (sender, receiver) = futures::channel::oneshot::channel();
            #[expect(clippy::disallowed_methods, reason = "it stands for the HTTP threads")]
            std::thread::spawn(move || {
                for i in 0..4 {
                    let (key, data) =
                        (format!("{thread}-{i}"), bytes(thread * 10 + i, (3 << 20) + i as usize));
                    block_on(put(&handle, bucket, &key, &data)).unwrap();
                    assert!(block_on(get(&handle, &key)).unwrap() == data);
                    // One that goes away in the middle, from a thread that is not the reactor's.
                    let mut stream = block_on(handle.put(Some(4 << 20))).unwrap();
                    let buf = block_on(stream.buf());
                    block_on(stream.write(buf)).unwrap();
                    drop(stream);
                }
                let _ = sender.send(());
            });
            done.push(receiver);
        }
        for thread in done {
            thread.await.unwrap();
        }
        for _ in 0..100 {
            if world.client.counters().dead_reported >= 12 {
                break;
            }
            world.ctx.sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(world.client.counters().puts_failed, 12);
        assert!(world.client.counters().dead_reported <= 12);
        assert!(world.client.counters().dead_reported > 0, "those of which a unit was sent");
    });
}
