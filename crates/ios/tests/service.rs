//! The I/O service over real stores on devices in memory, called through the wire.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use cobalt_base::checksum::{crc32c_chunks, crc32c_chunks_of};
use cobalt_base::{Fid, SessionId};
use cobalt_bdev::{Bdev, Device, Identify, Io, MemBdev, Op, WriteData};
use cobalt_dma::{Arena, ArenaConfig, Slice};
use cobalt_fabric::{LocalNet, PeerAddr, Transport as _};
use cobalt_ios::{Ios, Limits, Target};
use cobalt_reactor::{Ctx, Reactor};
use cobalt_rpc::proto::ios::{
    CobRow, Delete, Fence, IosError, ListCobs, ListTargets, Read, ReadReply, Write,
};
use cobalt_rpc::{
    Auth, CallError, ClusterSecret, Identity, Lend, Peer, PeerLimits, Refusal, Request, Server, ServerLimits,
    Service,
};
use cobalt_store::{FormatOptions, OpenOptions, Region, Regions, Store, format};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

const T0: Uuid = Uuid::from_u128(1);
const BROKEN: Uuid = Uuid::from_u128(2);
const CHUNK: u32 = 65_536;

/// Memory that takes its time, as disks do: what comes together overlaps.
struct Slow {
    ctx: Ctx,
    device: Device,
}

impl Bdev for Slow {
    fn identify(&self) -> &Identify {
        self.device.identify()
    }

    fn submit(&self, Io { op, done }: Io) {
        let (ctx, device) = (self.ctx.clone(), self.device.clone());
        drop(self.ctx.spawn(async move {
            ctx.sleep(Duration::from_micros(100)).await;
            done.send(match op {
                Op::Read { offset, buf } => device.read(offset, buf).await.map(Some),
                Op::Write { offset, data, fua } => device.write(offset, data, fua).await.map(|()| None),
                Op::Flush => device.flush().await.map(|()| None),
                Op::Deallocate { offset, len } => device.deallocate(offset, len).await.map(|()| None),
            });
        }));
    }
}

struct World {
    ctx: Ctx,
    arena: Arena,
    data: Device,
    store: Store,
    ios: Rc<Ios>,
    peer: Peer,
    _server: Server,
}

impl World {
    async fn new(ctx: &Ctx, limits: Limits, data_size: u64) -> World {
        let arena = Arena::new(ArenaConfig { limit: 64 << 20 }).unwrap();
        let device = |size| {
            let device = Device::new(Rc::new(MemBdev::new(size)));
            Device::new(Rc::new(Slow { ctx: ctx.clone(), device }))
        };
        let data = device(data_size);
        let regions = Regions { meta: Region::whole(device(64 << 20)), data: Region::whole(data.clone()) };
        format(ctx, &regions, &arena, &FormatOptions::new(T0, Uuid::from_u128(9), "t0")).await.unwrap();
        let store = Store::open(ctx.clone(), regions, arena.clone(), OpenOptions::default()).await.unwrap();
        let targets = [
            Target::open(T0, "t0", "mem", store.clone()),
            Target::failed(BROKEN, "broken", "mem", "its superblocks are damaged"),
        ];
        let ios = Ios::new(ctx, targets, limits);
        let net = LocalNet::new(ctx, &arena);
        let auth = |name: &str| {
            let identity = Identity { name: name.into(), incarnation: 1 };
            Auth::new(identity, ClusterSecret::from_bytes([1; 32]))
        };
        let service: Rc<dyn Service> = ios.clone();
        let server = Server::new(ctx, auth("p0"), service, ServerLimits::default());
        server.listen(net.transport("p0").listen(PeerAddr::Local("p0".into())).await.unwrap());
        let transport = Rc::new(net.transport("client"));
        let address = PeerAddr::Local("p0".into());
        let peer = Peer::new(ctx, transport, auth("client"), "p0", address, PeerLimits::default());
        World { ctx: ctx.clone(), arena, data, store, ios, peer, _server: server }
    }

    async fn call<R: Request<Error = IosError>>(
        &self,
        request: &R,
        lend: Lend,
    ) -> Result<(R::Reply, Vec<Slice>), IosError> {
        let deadline = self.ctx.now() + Duration::from_secs(5);
        match self.peer.call(request, lend, deadline).await {
            Ok(answer) => Ok((answer.reply, answer.pushed)),
            Err(CallError::Service(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    fn slice(&self, bytes: &[u8]) -> Slice {
        let mut buf = self.arena.try_alloc(bytes.len()).unwrap();
        buf.copy_from_slice(bytes);
        buf.freeze()
    }

    async fn write(&self, request: &Write, bytes: &[u8]) -> Result<(), IosError> {
        self.call(request, Lend::Data(vec![self.slice(bytes)])).await.map(|((), _)| ())
    }

    async fn read(&self, fid: Fid, offset: u64, len: u64) -> Result<(ReadReply, Vec<u8>), IosError> {
        let request = Read { target: T0, fid, offset, len };
        let (reply, pushed) = self.call(&request, Lend::Room(usize::try_from(len).unwrap())).await?;
        Ok((reply, pushed.iter().flat_map(|slice| slice.iter().copied()).collect()))
    }

    /// Until what was dropped is given back.
    async fn settle(&self) {
        self.ctx.sleep(Duration::from_millis(50)).await;
    }
}

fn fid(counter: u64) -> Fid {
    Fid::new(SessionId(5), counter)
}

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 + i * 31 % 253) as u8 ^ seed).collect()
}

fn write_of(fid: Fid, offset: u64, bytes: &[u8]) -> Write {
    let mut crcs = Vec::new();
    crc32c_chunks(bytes, CHUNK as usize, &mut crcs);
    Write { target: T0, fid, chunk_size: CHUNK, incarnation: 3, offset, len: bytes.len() as u64, crcs }
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(World) -> F + 'static) {
    run_with(Limits::default(), 256 << 20, test);
}

fn run_with<F: Future<Output = ()> + 'static>(
    limits: Limits,
    data_size: u64,
    test: impl FnOnce(World) -> F + 'static,
) {
    let reactor = Reactor::new_virtual(3).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let world = World::new(&ctx, limits, data_size).await;
        test(world).await;
    });
}

#[test]
fn what_was_written_is_read_with_its_checksums() {
    run(|world| async move {
        for (i, len) in [1, 4095, 4096, 65_536, 65_537, 1 << 20].into_iter().enumerate() {
            let (fid, data) = (fid(i as u64 + 1), bytes(i as u8, len));
            let before = world.store.counters();
            world.write(&write_of(fid, 0, &data), &data).await.unwrap();
            let after = world.store.counters();
            assert_eq!(after.data_writes - before.data_writes, 1, "one write for one extent");
            let (reply, got) = world.read(fid, 0, len as u64).await.unwrap();
            assert!(got == data, "{len}");
            assert_eq!(reply.chunk_size, CHUNK);
            assert_eq!(reply.crcs, crc32c_chunks_of([&data[..]], CHUNK as usize));
        }
        let counters = world.ios.counters();
        assert_eq!((counters.writes, counters.reads, counters.corrupt), (6, 6, 0));
        assert_eq!(world.store.counters().apply_misses, 0);
    });
}

#[test]
fn units_of_later_groups_and_repeated_units_are_the_same_cob() {
    run(|world| async move {
        let (a, b) = (bytes(1, 1 << 20), bytes(2, 70_000));
        world.write(&write_of(fid(1), 1 << 20, &b), &b).await.unwrap();
        world.write(&write_of(fid(1), 0, &a), &a).await.unwrap();
        world.write(&write_of(fid(1), 0, &a), &a).await.unwrap();
        assert!(world.read(fid(1), 0, 1 << 20).await.unwrap().1 == a);
        assert!(world.read(fid(1), 1 << 20, 70_000).await.unwrap().1 == b);
        assert!(world.read(fid(1), (1 << 20) + 65_536, 70_000 - 65_536).await.unwrap().1 == b[65_536..]);
        for (cob, offset, len) in [(fid(1), 4 << 20, 10), (fid(2), 0, 10), (fid(1), 1 << 20, 70_001)] {
            let error = world.read(cob, offset, len).await.unwrap_err();
            assert!(matches!(error, IosError::Missing { .. }), "{error}");
        }
        let (rows, _) = world.call(&ListTargets {}, Lend::None).await.unwrap();
        let row = rows.iter().find(|row| row.target == T0).unwrap();
        assert_eq!((row.cobs, row.failed.as_ref(), row.name.as_str()), (1, None, "t0"));
        assert!(row.free < row.total);
    });
}

#[test]
fn a_payload_that_does_not_match_leaves_no_trace() {
    run(|world| async move {
        let data = bytes(1, 200_000);
        let mut request = write_of(fid(1), 0, &data);
        request.crcs[2] ^= 1;
        let free = world.store.space().free;
        let error = world.write(&request, &data).await.unwrap_err();
        assert_eq!(error, IosError::Checksum { offset: 131_072 });
        world.settle().await;
        assert_eq!(world.store.space().free, free);
        assert!(matches!(world.read(fid(1), 0, 10).await, Err(IosError::Missing { .. })));
        assert_eq!(world.ios.counters().checksum_mismatches, 1);
        assert_eq!(world.store.counters().data_writes, 0);
    });
}

#[test]
fn a_caller_that_goes_away_leaves_no_half_write() {
    run(|world| async move {
        let data = bytes(1, 1 << 20);
        let request = write_of(fid(1), 0, &data);
        let free = world.store.space().free;
        // Given up at every point of the call: what is there afterwards is all of it or none.
        for turns in 0..60 {
            let request = Write { fid: fid(turns + 1), ..request.clone() };
            let (peer, slice, ctx) = (world.peer.clone(), world.slice(&data), world.ctx.clone());
            let deadline = world.ctx.now() + Duration::from_secs(5);
            let fid = request.fid;
            let lend = Lend::Data(vec![slice]);
            let call = world.ctx.spawn(async move { peer.call(&request, lend, deadline).await.is_ok() });
            for _ in 0..turns {
                ctx.yield_now().await;
            }
            call.abort();
            world.settle().await;
            match world.read(fid, 0, 1 << 20).await {
                Ok((_, got)) => assert!(got == data),
                Err(error) => assert!(matches!(error, IosError::Missing { .. }), "{error}"),
            }
        }
        let written = world.store.status().cobs;
        assert!(written < 60, "some were given up in time");
        assert_eq!(free - world.store.space().free, written << 20, "nothing stays reserved");
    });
}

#[test]
fn a_failed_target_is_named_and_the_others_serve() {
    run(|world| async move {
        let data = bytes(1, 10);
        let request = Write { target: BROKEN, ..write_of(fid(1), 0, &data) };
        let error = world.write(&request, &data).await.unwrap_err();
        assert_eq!(
            error,
            IosError::TargetFailed { name: "broken".into(), why: "its superblocks are damaged".into() }
        );
        let nowhere = Write { target: Uuid::from_u128(77), ..request };
        assert_eq!(world.write(&nowhere, &data).await, Err(IosError::NoTarget(Uuid::from_u128(77))));
        world.write(&write_of(fid(1), 0, &data), &data).await.unwrap();
        let (rows, _) = world.call(&ListTargets {}, Lend::None).await.unwrap();
        let broken = rows.iter().find(|row| row.target == BROKEN).unwrap();
        assert_eq!(broken.failed.as_deref(), Some("its superblocks are damaged"));
    });
}

#[test]
fn requests_that_break_the_rules_are_refused_before_anything_is_reserved() {
    run(|world| async move {
        let data = bytes(1, 70_000);
        let good = write_of(fid(1), 0, &data);
        let bad = [
            Write { chunk_size: 0, ..good.clone() },
            Write { chunk_size: 5000, ..good.clone() },
            Write { chunk_size: 1 << 20, ..good.clone() },
            Write { offset: 4096, ..good.clone() },
            Write { offset: u64::MAX - 65_535, ..good.clone() },
            Write { len: 0, crcs: Vec::new(), ..good.clone() },
            Write { len: 70_001, ..good.clone() },
            Write { len: (1 << 20) + 1, crcs: vec![0; 17], ..good.clone() },
            Write { crcs: vec![1], ..good.clone() },
            Write { crcs: vec![1, 2, 3], ..good.clone() },
        ];
        let txs = world.store.counters().txs;
        for request in bad {
            let error = world.write(&request, &data).await.unwrap_err();
            assert!(matches!(error, IosError::Malformed(_)), "{request:?}: {error}");
        }
        assert!(matches!(world.call(&good, Lend::None).await, Err(IosError::Malformed(_))));
        for (offset, len) in [(0, 0), (0, (1 << 20) + 1), (u64::MAX, 10)] {
            let read = Read { target: T0, fid: fid(1), offset, len };
            assert!(matches!(world.call(&read, Lend::Room(2 << 20)).await, Err(IosError::Malformed(_))));
        }
        let read = Read { target: T0, fid: fid(1), offset: 0, len: 4096 };
        assert!(matches!(world.call(&read, Lend::Room(4095)).await, Err(IosError::Malformed(_))));
        let delete = Delete { target: T0, fids: (0..257).map(fid).collect(), incarnation: 3 };
        assert!(matches!(world.call(&delete, Lend::None).await, Err(IosError::Malformed(_))));
        assert_eq!(world.store.counters().txs, txs);
    });
}

#[test]
fn writes_beyond_the_limit_are_busy_and_nothing_is_lost() {
    run_with(Limits::tiny(), 256 << 20, |world| async move {
        let world = Rc::new(world);
        let tasks: Vec<_> = (1..9u8)
            .map(|i| {
                let (task, ctx) = (world.clone(), world.ctx.clone());
                ctx.spawn(async move {
                    let data = bytes(i, 1 << 20);
                    let mut busy = 0;
                    while let Err(error) = task.write(&write_of(fid(i.into()), 0, &data), &data).await {
                        assert_eq!(error, IosError::Busy);
                        busy += 1;
                        task.ctx.sleep(Duration::from_millis(1)).await;
                    }
                    assert!(task.read(fid(i.into()), 0, 1 << 20).await.unwrap().1 == data);
                    busy
                })
            })
            .collect();
        let mut busy = 0;
        for task in tasks {
            busy += task.await;
        }
        assert!(busy >= 6, "two fit at one time");
        assert_eq!(world.ios.counters().busy, busy);
    });
}

#[test]
fn deletes_are_final_and_spare_another_incarnation() {
    run(|world| async move {
        let data = bytes(1, 100_000);
        for i in 1..4 {
            world.write(&write_of(fid(i), 0, &data), &data).await.unwrap();
        }
        let delete = |fids: Vec<Fid>, incarnation| Delete { target: T0, fids, incarnation };
        let error = world.call(&delete(vec![fid(1)], 4), Lend::None).await.unwrap_err();
        assert_eq!(error, IosError::Incarnation { have: 3, want: 4 });
        world.call(&delete(vec![fid(1), fid(2), fid(40)], 3), Lend::None).await.unwrap();
        world.call(&delete(vec![fid(1), fid(2)], 3), Lend::None).await.unwrap();
        assert!(matches!(
            world.read(fid(1), 0, 10).await,
            Err(IosError::Missing { .. } | IosError::Deleted(_))
        ));
        for late in [fid(1), fid(40)] {
            assert_eq!(world.write(&write_of(late, 0, &data), &data).await, Err(IosError::Deleted(late)));
        }
        assert!(world.read(fid(3), 0, 100_000).await.unwrap().1 == data);
        let other = Write { incarnation: 8, ..write_of(fid(3), 1 << 20, &data) };
        assert_eq!(world.write(&other, &data).await, Err(IosError::Incarnation { have: 3, want: 8 }));
    });
}

#[test]
fn a_fenced_session_writes_no_more_and_its_cobs_can_be_listed() {
    run(|world| async move {
        let data = bytes(1, 5000);
        for i in 1..301 {
            world.write(&write_of(fid(i), 0, &data), &data).await.unwrap();
        }
        world.call(&Fence { target: T0, session: SessionId(5) }, Lend::None).await.unwrap();
        let refused = world.write(&write_of(fid(400), 0, &data), &data).await;
        assert_eq!(refused, Err(IosError::Fenced(SessionId(5))));
        let other = Fid::new(SessionId(6), 1);
        world.write(&write_of(other, 0, &data), &data).await.unwrap();
        let (mut from, mut all): (_, Vec<CobRow>) = (Fid::new(SessionId(5), 0), Vec::new());
        loop {
            let list = ListCobs { target: T0, from, limit: 1000 };
            let (rows, _) = world.call(&list, Lend::None).await.unwrap();
            let Some(last) = rows.last() else { break };
            assert!(rows.len() <= 256);
            from = Fid::new(last.fid.session, last.fid.counter + 1);
            all.extend(rows);
        }
        assert_eq!(all.len(), 301);
        assert!(all.windows(2).all(|pair| pair[0].fid < pair[1].fid));
        assert!(all.iter().all(|row| row.incarnation == 3 && row.allocated == 8192));
    });
}

#[test]
fn a_damaged_block_is_said_and_counted_and_never_sent() {
    run(|world| async move {
        let data = bytes(1, 300_000);
        world.write(&write_of(fid(1), 0, &data), &data).await.unwrap();
        let mut hit = false;
        for block in 0..(256 << 20) / 4096u64 {
            let found = world.data.read(block * 4096, world.arena.try_alloc(4096).unwrap()).await.unwrap();
            if found[..] == data[131_072..135_168] {
                let mut rotten = found;
                rotten[17] ^= 4;
                let rotten = WriteData::from_iter([rotten.freeze()]);
                world.data.write(block * 4096, rotten, false).await.unwrap();
                hit = true;
                break;
            }
        }
        assert!(hit);
        let error = world.read(fid(1), 0, 300_000).await.unwrap_err();
        assert!(matches!(error, IosError::Corrupt { fid: bad, .. } if bad == fid(1)), "{error}");
        assert_eq!(world.ios.counters().corrupt, 1);
        assert!(world.read(fid(1), 0, 131_072).await.unwrap().1 == data[..131_072], "what is whole is read");
    });
}

#[test]
fn a_full_target_says_so_and_can_be_emptied() {
    run_with(Limits::default(), 16 << 20, |world| async move {
        let data = bytes(1, 1 << 20);
        let mut written = 0;
        let error = loop {
            match world.write(&write_of(fid(written + 1), 0, &data), &data).await {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(&error, IosError::NoSpace { name, .. } if name == "t0"), "{error}");
        assert!(written >= 12, "{written}");
        let delete = Delete { target: T0, fids: vec![fid(1), fid(2)], incarnation: 3 };
        world.call(&delete, Lend::None).await.unwrap();
        world.ctx.sleep(Duration::from_secs(1)).await;
        world.write(&write_of(fid(900), 0, &data), &data).await.unwrap();
    });
}

#[test]
fn a_request_of_another_service_is_refused() {
    use cobalt_rpc::proto::cas::{Ask, Query};
    run(|world| async move {
        world.settle().await;
        let deadline = world.ctx.now() + Duration::from_secs(1);
        let error = world.peer.call(&Ask(Query::Status), Lend::None, deadline).await.unwrap_err();
        let refusal = Refusal::UnknownOpcode(Ask::OPCODE);
        assert!(matches!(error, CallError::Refused { refusal: r, .. } if r == refusal), "{error}");
        assert!(Ios::serves(Write::OPCODE) && !Ios::serves(Ask::OPCODE));
    });
}
