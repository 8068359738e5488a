//! One suite for all transports: what `Conn` promises, on local and on tcp.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use cobalt_dma::{Arena, ArenaConfig, Slice};
use cobalt_fabric::limits::WINDOW;
use cobalt_fabric::{
    Conn, FabricError, LocalNet, MESSAGE_MAX, PeerAddr, STRANGER_MESSAGE_MAX, TcpTransport, Transport,
};
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Local,
    Tcp,
}

#[derive(Clone)]
struct World {
    kind: Kind,
    ctx: Ctx,
    arena: Arena,
    transport: Rc<dyn Transport>,
}

impl World {
    fn new(kind: Kind, ctx: &Ctx) -> World {
        let arena = Arena::new(ArenaConfig { limit: 64 << 20 }).unwrap();
        let transport: Rc<dyn Transport> = match kind {
            Kind::Local => Rc::new(LocalNet::new(ctx, &arena).transport("tester")),
            Kind::Tcp => Rc::new(TcpTransport::new(ctx, &arena).unwrap()),
        };
        World { kind, ctx: ctx.clone(), arena, transport }
    }

    fn addr(&self) -> PeerAddr {
        match self.kind {
            Kind::Local => PeerAddr::Local("server".into()),
            Kind::Tcp => PeerAddr::Tcp("127.0.0.1:0".parse().unwrap()),
        }
    }

    async fn strangers(&self) -> (Rc<dyn Conn>, Rc<dyn Conn>) {
        let listener = self.transport.listen(self.addr()).await.unwrap();
        let client = self.transport.connect(listener.addr()).await.unwrap();
        let server = listener.accept().await.unwrap();
        (client, server)
    }

    async fn pair(&self) -> (Rc<dyn Conn>, Rc<dyn Conn>) {
        let (client, server) = self.strangers().await;
        client.admit();
        server.admit();
        self.settle().await;
        (client, server)
    }

    /// Lets what is on its way arrive.
    async fn settle(&self) {
        for _ in 0..200 {
            self.ctx.yield_now().await;
        }
        if self.kind == Kind::Tcp {
            self.ctx.sleep(Duration::from_millis(5)).await;
        }
    }

    fn bytes(&self, len: usize, seed: u8) -> Vec<Slice> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < len {
            let size = (len - at).min(1 << 20);
            let mut buf = self.arena.try_alloc(size).expect("the test's arena is large");
            for (i, byte) in buf.iter_mut().enumerate() {
                *byte = pattern(at + i, seed);
            }
            out.push(buf.freeze());
            at += size;
        }
        out
    }
}

fn pattern(at: usize, seed: u8) -> u8 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[6] ^ seed
}

fn check_bytes(data: &[Slice], len: usize, seed: u8) {
    let all: Vec<u8> = data.iter().flat_map(|s| s.iter().copied()).collect();
    assert!(all.len() == len && all.iter().enumerate().all(|(i, byte)| *byte == pattern(i, seed)));
}

fn check(data: &[Slice], offset: usize, len: usize, seed: u8) {
    let all: Vec<u8> = data.iter().flat_map(|s| s.iter().copied()).collect();
    assert_eq!(all.len(), len);
    for (i, byte) in all.iter().enumerate() {
        assert_eq!(*byte, pattern(offset + i, seed), "byte {i}");
    }
    if let Some((_, rest)) = data.split_last() {
        assert!(rest.iter().all(|s| s.len().is_multiple_of(4096) && s.len() <= 4 << 20));
    }
}

/// Runs a test over every transport; local on virtual time.
fn everywhere<F: Future<Output = ()> + 'static>(test: impl Fn(World) -> F) {
    let reactor = Reactor::new_virtual(7).unwrap();
    reactor.block_on(test(World::new(Kind::Local, &reactor.ctx())));
    let reactor = Reactor::new(ReactorConfig::default()).unwrap();
    let (ctx, future) = (reactor.ctx(), test(World::new(Kind::Tcp, &reactor.ctx())));
    reactor.block_on(async move {
        ctx.timeout(Duration::from_secs(30), future).await.expect("the test hangs");
    });
}

#[test]
fn messages_go_both_ways_in_order() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        let back = server.clone();
        w.ctx.spawn(async move {
            while let Ok(message) = back.recv().await {
                if back.send(message).await.is_err() {
                    break;
                }
            }
        });
        let sender = client.clone();
        let all: Vec<Vec<u8>> =
            (0..500_usize).map(|i| vec![i as u8; [0, 1, 100, 4096, MESSAGE_MAX][i % 5]]).collect();
        let sent = all.clone();
        w.ctx.spawn(async move {
            for message in sent {
                sender.send(message).await.unwrap();
            }
        });
        for message in &all {
            assert_eq!(client.recv().await.as_ref(), Ok(message));
        }
        assert_eq!((client.counters().sent, client.counters().received), (500, 500));
    });
}

#[test]
fn a_receiver_that_does_not_read_stops_the_sender() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        for i in 0..WINDOW {
            client.send(vec![i as u8]).await.unwrap();
        }
        let more = w.ctx.timeout(Duration::from_millis(50), client.send(vec![255])).await;
        assert!(more.is_err(), "the window is spent");
        for i in 0..WINDOW {
            assert_eq!(server.recv().await, Ok(vec![i as u8]));
        }
        client.send(vec![99]).await.unwrap();
        assert_eq!(server.recv().await, Ok(vec![99]), "a send that was given up sends nothing");
    });
}

#[test]
fn strangers_are_held_short() {
    everywhere(|w| async move {
        let (client, server) = w.strangers().await;
        client.send(vec![1; STRANGER_MESSAGE_MAX]).await.unwrap();
        assert_eq!(server.recv().await.unwrap().len(), STRANGER_MESSAGE_MAX);
        let sent = client.send(vec![1; STRANGER_MESSAGE_MAX + 1]).await;
        let received = w.ctx.timeout(Duration::from_millis(50), server.recv()).await;
        assert!(sent.is_err() || matches!(received, Ok(Err(FabricError::Protocol { .. }))));
    });
}

#[test]
fn oversized_messages_and_loans_are_our_own_mistake() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        assert!(matches!(client.send(vec![0; MESSAGE_MAX + 1]).await, Err(FabricError::Invalid(_))));
        assert!(matches!(client.lend_room(1 << 30).await, Err(FabricError::Invalid(_))));
        client.send(vec![5]).await.unwrap();
        assert_eq!(server.recv().await, Ok(vec![5]));
    });
}

#[test]
fn bulk_of_every_length_moves_both_ways() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        for len in [0, 1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, 3 * (1 << 20) + 12_345] {
            let loan = client.lend(w.bytes(len, 3)).unwrap();
            check(&server.get(loan.desc(), 0, len as u64).await.unwrap(), 0, len, 3);
            if len > 4096 {
                check(&server.get(loan.desc(), 4096, 1).await.unwrap(), 4096, 1, 3);
                let rest = len as u64 - 1000;
                check(&server.get(loan.desc(), 1000, rest).await.unwrap(), 1000, len - 1000, 3);
            }
            assert!(loan.take().is_empty());

            let room = client.lend_room(len).await.unwrap();
            server.put(room.desc(), 0, w.bytes(len, 9)).await.unwrap();
            check(&room.take(), 0, len, 9);
        }
        assert_eq!(client.counters().copied_bytes, 0);
    });
}

#[test]
fn pushes_in_pieces_meet_and_a_gap_ends_what_is_taken() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        let room = client.lend_room(3 << 20).await.unwrap();
        let data = w.bytes(3 << 20, 1);
        server.put(room.desc(), 1 << 20, vec![data[1].clone()]).await.unwrap();
        server.put(room.desc(), 0, vec![data[0].clone()]).await.unwrap();
        server.put(room.desc(), (2 << 20) + 4096, vec![data[2].slice(4096..8192)]).await.unwrap();
        let again = server.put(room.desc(), 100, vec![data[0].slice(0..1)]).await;
        assert!(matches!(again, Err(FabricError::NotLent { .. })), "filled already: {again:?}");
        check(&room.take(), 0, 2 << 20, 1);
    });
}

#[test]
fn only_what_is_lent_can_be_reached() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        let loan = client.lend(w.bytes(8192, 3)).unwrap();
        let room = client.lend_room(8192).await.unwrap();
        let not_lent = |r: Result<Vec<Slice>, FabricError>| matches!(r, Err(FabricError::NotLent { .. }));
        assert!(not_lent(server.get(loan.desc(), 8192, 1).await));
        assert!(not_lent(server.get(loan.desc(), 1, 8192).await));
        assert!(not_lent(server.get(loan.desc(), u64::MAX, 2).await));
        assert!(not_lent(server.get(room.desc(), 0, 1).await), "room is not data");
        let byte = w.bytes(1, 0);
        for (desc, offset) in [(room.desc(), 8192), (room.desc(), u64::MAX), (loan.desc(), 0)] {
            let put = server.put(desc, offset, byte.clone()).await;
            assert!(matches!(put, Err(FabricError::NotLent { .. })), "{put:?}");
        }
        let unknown = cobalt_fabric::BulkDesc { key: loan.desc().key.wrapping_add(77), len: 1 };
        assert!(not_lent(server.get(unknown, 0, 1).await));
        assert!(not_lent(client.get(loan.desc(), 0, 1).await), "our own loan is not the peer's");
        check(&server.get(loan.desc(), 0, 8192).await.unwrap(), 0, 8192, 3);
    });
}

#[test]
fn an_ended_loan_is_void_at_once() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        let loan = client.lend(w.bytes(3 << 20, 3)).unwrap();
        let desc = loan.desc();
        let conn = server.clone();
        let pull = w.ctx.spawn(async move { conn.get(desc, 0, 3 << 20).await });
        w.ctx.yield_now().await;
        drop(loan);
        match pull.await {
            Ok(data) => check(&data, 0, 3 << 20, 3),
            Err(e) => assert!(matches!(e, FabricError::NotLent { .. }), "{e}"),
        }
        assert!(matches!(server.get(desc, 0, 1).await, Err(FabricError::NotLent { .. })));
        let room = client.lend_room(1 << 20).await.unwrap();
        let desc = room.desc();
        assert!(room.take().is_empty());
        let put = server.put(desc, 0, w.bytes(4096, 0)).await;
        assert!(matches!(put, Err(FabricError::NotLent { .. })));
        client.send(vec![1]).await.unwrap();
        assert_eq!(server.recv().await, Ok(vec![1]), "the connection goes on");
        w.settle().await;
        assert_eq!(w.arena.stats().in_use, 0, "nothing is left behind");
    });
}

#[test]
fn a_pull_that_is_given_up_gives_its_memory_back() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        let loan = client.lend(w.bytes(3 << 20, 3)).unwrap();
        for _ in 0..20 {
            drop(futures::poll!(server.get(loan.desc(), 0, 3 << 20)));
        }
        w.settle().await;
        check(&server.get(loan.desc(), 0, 3 << 20).await.unwrap(), 0, 3 << 20, 3);
        drop(loan);
        w.settle().await;
        assert_eq!(w.arena.stats().in_use, 0);
    });
}

#[test]
fn a_peer_that_dies_fails_everything_pending() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        let loan = client.lend(w.bytes(3 << 20, 3)).unwrap();
        let (pulling, receiving, desc) = (server.clone(), server.clone(), loan.desc());
        let pull = w.ctx.spawn(async move { pulling.get(desc, 0, 3 << 20).await });
        let recv = w.ctx.spawn(async move { receiving.recv().await });
        w.ctx.yield_now().await;
        drop(client);
        if let Ok(data) = pull.await {
            check(&data, 0, 3 << 20, 3);
        }
        assert!(matches!(recv.await, Err(FabricError::Closed { .. })));
        assert!(server.send(vec![1]).await.is_err());
        assert!(server.get(desc, 0, 1).await.is_err());
        assert!(server.lend_room(10).await.is_err());
        assert!(loan.take().is_empty());
        w.settle().await;
        assert_eq!(w.arena.stats().in_use, 0);
    });
}

#[test]
fn what_was_sent_before_the_end_is_still_read() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        client.send(b"last words".to_vec()).await.unwrap();
        w.settle().await;
        client.close();
        assert_eq!(server.recv().await, Ok(b"last words".to_vec()));
        assert!(matches!(server.recv().await, Err(FabricError::Closed { .. })));
        assert!(client.recv().await.is_err());
    });
}

#[test]
fn many_connections_share_a_reactor() {
    everywhere(|w| async move {
        let listener = w.transport.listen(w.addr()).await.unwrap();
        let addr = listener.addr();
        let ctx = w.ctx.clone();
        w.ctx.spawn(async move {
            while let Ok(conn) = listener.accept().await {
                conn.admit();
                ctx.spawn(async move {
                    let message = conn.recv().await.unwrap();
                    let key = u64::from_le_bytes(message.try_into().unwrap());
                    let desc = cobalt_fabric::BulkDesc { key, len: 100_000 };
                    let data = conn.get(desc, 0, 100_000).await.unwrap();
                    check(&data, 0, 100_000, 5);
                    conn.send(vec![1]).await.unwrap();
                    let _ = conn.recv().await;
                });
            }
        });
        let mut tasks = Vec::new();
        for _ in 0..50 {
            let (w, addr) = (w.clone(), addr.clone());
            tasks.push(w.ctx.clone().spawn(async move {
                let conn = w.transport.connect(addr).await.unwrap();
                conn.admit();
                let loan = conn.lend(w.bytes(100_000, 5)).unwrap();
                conn.send(loan.desc().key.to_le_bytes().to_vec()).await.unwrap();
                assert_eq!(conn.recv().await, Ok(vec![1]));
            }));
        }
        for task in tasks {
            task.await;
        }
    });
}

#[test]
fn nobody_there_is_an_answer() {
    everywhere(|w| async move {
        let listener = w.transport.listen(w.addr()).await.unwrap();
        let addr = listener.addr();
        drop(listener);
        w.settle().await;
        let conn = w.transport.connect(addr.clone()).await;
        assert!(matches!(conn, Err(FabricError::Unreachable { .. })));
        let listener = w.transport.listen(addr).await.expect("the address is free again");
        assert!(w.transport.connect(listener.addr()).await.is_ok());
    });
}

#[test]
fn tcp_stays_on_this_host() {
    let reactor = Reactor::new(ReactorConfig::default()).unwrap();
    let w = World::new(Kind::Tcp, &reactor.ctx());
    reactor.block_on(async move {
        for addr in ["0.0.0.0:0", "192.0.2.1:7000", "[::]:0"] {
            let addr = PeerAddr::Tcp(addr.parse().unwrap());
            let refused = w.transport.listen(addr.clone()).await.err().unwrap();
            assert!(refused.to_string().contains("is not a loopback address"), "{refused}");
            assert!(w.transport.connect(addr).await.is_err());
        }
    });
}

#[test]
fn slices_that_break_the_alignment_are_put_right() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        let data = w.bytes(3 * 4096, 3);
        let pieces = [0..100, 100..5000, 5000..12_288].map(|r| data[0].slice(r));
        let loan = client.lend(pieces.to_vec()).unwrap();
        check(&server.get(loan.desc(), 0, 3 * 4096).await.unwrap(), 0, 3 * 4096, 3);
        let copied = if w.kind == Kind::Local { 3 * 4096 } else { 0 };
        assert_eq!(server.counters().copied_bytes, copied, "the only copy of all");
        let room = client.lend_room(3 * 4096).await.unwrap();
        server.put(room.desc(), 0, pieces.to_vec()).await.unwrap();
        check_bytes(&room.take(), 3 * 4096, 3);
    });
}

#[test]
fn a_full_arena_holds_up_the_pull_and_not_the_connection() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        let loan = client.lend(w.bytes(1 << 20, 3)).unwrap();
        let mut held = Vec::new();
        while let Some(buf) = w.arena.try_alloc(1 << 20) {
            held.push(buf);
        }
        let (conn, desc) = (server.clone(), loan.desc());
        let pull = w.ctx.spawn(async move { conn.get(desc, 0, 1 << 20).await });
        w.settle().await;
        client.send(vec![1]).await.unwrap();
        assert_eq!(server.recv().await, Ok(vec![1]));
        if w.kind == Kind::Tcp {
            assert!(!pull.is_finished());
        }
        drop(held);
        check(&pull.await.unwrap(), 0, 1 << 20, 3);
    });
}

/// Pulls and pushes of all sizes at once, many given up half way, through an arena that is too small for them all.
#[test]
fn a_crowd_with_little_memory_gets_through() {
    everywhere(|w| async move {
        let (client, server) = w.pair().await;
        let source = w.bytes(5 << 20, 3);
        let mut held = Vec::new();
        while w.arena.stats().in_use < 56 << 20 {
            held.push(w.arena.try_alloc(1 << 20).unwrap());
        }
        let tasks: Vec<_> = (0..24_u64)
            .map(|task| {
                let (w, client, server, source) = (w.clone(), client.clone(), server.clone(), source.clone());
                w.ctx.clone().spawn(async move {
                    let mut whole = 0;
                    for _ in 0..20 {
                        let len = (w.ctx.random_u64() % (5 << 20)) as usize;
                        let give_up = Duration::from_micros(w.ctx.random_u64() % 20_000);
                        let patience = if task % 3 == 0 { give_up } else { Duration::from_secs(20) };
                        let data: Vec<Slice> = cut(&source, len);
                        if w.ctx.random_u64() % 2 == 0 {
                            let loan = client.lend(data).unwrap();
                            let got = w.ctx.timeout(patience, server.get(loan.desc(), 0, len as u64)).await;
                            if let Ok(got) = got {
                                assert_eq!(crc(&got.unwrap()), crc(&cut(&source, len)));
                                whole += 1;
                            }
                        } else {
                            let moved = w.ctx.timeout(patience, async {
                                let room = client.lend_room(len).await.unwrap();
                                server.put(room.desc(), 0, data).await.unwrap();
                                room.take()
                            });
                            if let Ok(got) = moved.await {
                                assert_eq!(crc(&got), crc(&cut(&source, len)));
                                whole += 1;
                            }
                        }
                    }
                    assert!(task % 3 == 0 || whole == 20, "{whole} of 20");
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        drop((held, source));
        w.settle().await;
        assert_eq!(w.arena.stats().in_use, 0);
    });
}

fn cut(data: &[Slice], len: usize) -> Vec<Slice> {
    let whole = data.iter().take(len >> 20).cloned();
    let rest = len % (1 << 20);
    whole.chain((rest > 0).then(|| data[len >> 20].slice(0..rest))).collect()
}

fn crc(data: &[Slice]) -> (usize, u32) {
    let all: Vec<u8> = data.iter().flat_map(|s| s.iter().copied()).collect();
    (all.len(), cobalt_base::checksum::crc32c(&all))
}
