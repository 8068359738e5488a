//! Who is let in, and which frames of those who are in are refused. The other end is played by hand.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod world;

use cobalt_base::checksum::crc32c;
use cobalt_fabric::{Conn, PeerAddr};
use cobalt_rpc::{
    Auth, CallError, Identity, Lend, PeerLimits, PeerState, Refusal, Request, Server, ServerLimits,
};
use hmac::{Hmac, Mac};
use proptest::prelude::{any, prop};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde::de::DeserializeOwned;
use sha2::Sha256;
use std::rc::Rc;
use std::time::Duration;
use world::{Echo, Slow, World, auth, everywhere, locally, over_tcp, secret};

const HELLO: usize = 120;

/// A client's hello, byte by byte as the wire has it.
fn hello(name: &str, incarnation: u64, nonce: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(0x4842_6f43_u32.to_le_bytes());
    bytes.extend(1_u16.to_le_bytes());
    bytes.extend((name.len() as u16).to_le_bytes());
    let mut padded = name.as_bytes().to_vec();
    padded.resize(64, 0);
    bytes.extend(padded);
    bytes.extend(incarnation.to_le_bytes());
    bytes.extend(77_u64.to_le_bytes());
    bytes.extend([nonce; 32]);
    assert_eq!(bytes.len(), HELLO);
    bytes
}

fn mac(secret: u8, role: &str, client: &[u8], server: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&[secret; 32]).unwrap();
    mac.update(format!("cobalt rpc handshake: {role}\0").as_bytes());
    mac.update(client);
    mac.update(server);
    mac.finalize().into_bytes().to_vec()
}

fn proof(bytes: &[u8]) -> Vec<u8> {
    [&0x4842_6f43_u32.to_le_bytes()[..], bytes].concat()
}

fn verdict(message: &[u8]) -> u32 {
    assert_eq!(message.len(), 8);
    u32::from_le_bytes(message[4..].try_into().unwrap())
}

/// Plays an honest client; the connection when it is let in, or the verdict.
async fn enter(w: &World, addr: &PeerAddr, name: &str, incarnation: u64) -> Result<Rc<dyn Conn>, u32> {
    let conn = w.transport.connect(addr.clone()).await.unwrap();
    let ours = hello(name, incarnation, 3);
    conn.send(ours.clone()).await.unwrap();
    let theirs = conn.recv().await.unwrap();
    assert_eq!(theirs[HELLO..], mac(1, "server", &ours, &theirs[..HELLO]));
    conn.send(proof(&mac(1, "client", &ours, &theirs[..HELLO]))).await.unwrap();
    match verdict(&conn.recv().await.unwrap()) {
        1 => {
            conn.admit();
            Ok(conn)
        }
        other => Err(other),
    }
}

fn request<R: Request>(request: &R, id: u64, incarnation: u64, epoch: u64) -> Vec<u8> {
    let body = postcard::to_allocvec(request).unwrap();
    let mut head = Vec::new();
    head.extend(0x5242_6f43_u32.to_le_bytes());
    for field in [1_u16, 1, R::OPCODE, 0] {
        head.extend(field.to_le_bytes());
    }
    head.extend((body.len() as u32).to_le_bytes());
    for field in [id, 5_000_000, incarnation, epoch, 0, 0] {
        head.extend(field.to_le_bytes());
    }
    head.extend(crc32c(&body).to_le_bytes());
    head.extend(crc32c(&head).to_le_bytes());
    head.extend(body);
    head
}

/// (id, what came back) of a reply; a refusal is `Err`.
fn answer<T: DeserializeOwned>(message: &[u8]) -> (u64, Result<T, Refusal>) {
    let id = u64::from_le_bytes(message[16..24].try_into().unwrap());
    let body = &message[72..];
    match u16::from_le_bytes(message[6..8].try_into().unwrap()) {
        2 => (id, Ok(postcard::from_bytes::<Result<T, world::No>>(body).unwrap().unwrap())),
        3 => (id, Err(postcard::from_bytes(body).unwrap())),
        other => panic!("a message of kind {other}"),
    }
}

#[test]
fn another_secret_is_not_let_in_and_says_why() {
    everywhere(|w| async move {
        let (server, addr) = w.server().await;
        let identity = Identity { name: "c".into(), incarnation: 1 };
        let peer = w.peer_as(&addr, Auth::new(identity, secret(2)), PeerLimits::default());
        let error = peer.call(&Echo(vec![1]), Lend::None, w.after(5000)).await.unwrap_err();
        let CallError::Unreachable { why, .. } = error else { panic!("{error}") };
        assert!(why.contains("proved no knowledge of our cluster secret"), "{why}");
        w.until("it is counted", || server.counters().auth_failures >= 1).await;
        assert_eq!((server.counters().accepted, w.service.handled.get()), (0, 0));
    });
}

#[test]
fn a_client_that_cannot_prove_itself_is_told_so() {
    everywhere(|w| async move {
        let (server, addr) = w.server().await;
        let conn = w.transport.connect(addr).await.unwrap();
        let ours = hello("c", 1, 3);
        conn.send(ours.clone()).await.unwrap();
        let theirs = conn.recv().await.unwrap();
        conn.send(proof(&mac(2, "client", &ours, &theirs[..HELLO]))).await.unwrap();
        assert_eq!(verdict(&conn.recv().await.unwrap()), 2);
        assert!(conn.recv().await.is_err());
        assert_eq!(server.counters().auth_failures, 1);
    });
}

#[test]
fn a_recorded_handshake_opens_nothing() {
    everywhere(|w| async move {
        let (server, addr) = w.server().await;
        let conn = w.transport.connect(addr.clone()).await.unwrap();
        let ours = hello("c", 1, 3);
        conn.send(ours.clone()).await.unwrap();
        let theirs = conn.recv().await.unwrap();
        let recorded = proof(&mac(1, "client", &ours, &theirs[..HELLO]));
        conn.send(recorded.clone()).await.unwrap();
        assert_eq!(verdict(&conn.recv().await.unwrap()), 1);
        // The same bytes once more: the server's nonce is another.
        let replay = w.transport.connect(addr).await.unwrap();
        replay.send(ours).await.unwrap();
        assert_ne!(replay.recv().await.unwrap(), theirs);
        replay.send(recorded).await.unwrap();
        assert_eq!(verdict(&replay.recv().await.unwrap()), 2);
        assert_eq!((server.counters().accepted, server.counters().auth_failures), (1, 1));
    });
}

#[test]
fn a_reflected_proof_opens_nothing() {
    everywhere(|w| async move {
        let (server, addr) = w.server().await;
        // Who knows no secret sends the server's own proof back: on the same connection, and on another whose hello is the server's.
        let conn = w.transport.connect(addr.clone()).await.unwrap();
        conn.send(hello("c", 1, 3)).await.unwrap();
        let theirs = conn.recv().await.unwrap();
        let second = w.transport.connect(addr).await.unwrap();
        second.send(theirs[..HELLO].to_vec()).await.unwrap();
        let reflected = second.recv().await.unwrap();
        conn.send(proof(&theirs[HELLO..])).await.unwrap();
        assert_eq!(verdict(&conn.recv().await.unwrap()), 2);
        second.send(proof(&reflected[HELLO..])).await.unwrap();
        assert_eq!(verdict(&second.recv().await.unwrap()), 2);
        assert_eq!(server.counters().accepted, 0);
    });
}

#[test]
fn a_server_that_only_echoes_is_not_believed() {
    everywhere(|w| async move {
        let listener = w.transport.listen(w.addr()).await.unwrap();
        let addr = listener.addr();
        w.ctx.spawn(async move {
            let conn = listener.accept().await.unwrap();
            let theirs = conn.recv().await.unwrap();
            conn.send([&theirs[..], &[0; 32]].concat()).await.unwrap();
            let _ = conn.recv().await;
        });
        let error = w.peer(&addr).call(&Echo(vec![]), Lend::None, w.after(5000)).await.unwrap_err();
        assert!(error.to_string().contains("proved no knowledge"), "{error}");
    });
}

#[test]
fn another_process_at_the_address_is_noticed() {
    everywhere(|w| async move {
        let (_server, addr) = w.server().await;
        let (ctx, transport) = (&w.ctx, w.transport.clone());
        let peer = cobalt_rpc::Peer::new(ctx, transport, auth("c", 1), "t", addr, PeerLimits::default());
        let error = peer.call(&Echo(vec![]), Lend::None, w.after(5000)).await.unwrap_err();
        assert!(error.to_string().contains("the peer is `s`, not `t`"), "{error}");
    });
}

#[test]
fn garbage_before_the_proof_never_reaches_the_service() {
    let mut runner = TestRunner::deterministic();
    let garbage = prop::collection::vec(any::<u8>(), 0..512);
    let cases: Vec<Vec<u8>> = (0..100).map(|_| garbage.new_tree(&mut runner).unwrap().current()).collect();
    over_tcp(move |w| {
        let cases = cases.clone();
        async move {
            let (server, addr) = w.server().await;
            let mut mutated = hello("c", 1, 3);
            mutated[4] = 9; // Another version.
            let cases = cases.into_iter().chain([mutated, vec![0; HELLO], request(&Echo(vec![]), 1, 1, 0)]);
            let mut count = 0;
            for case in cases {
                count += 1;
                let conn = w.transport.connect(addr.clone()).await.unwrap();
                let _ = conn.send(case).await;
                while w
                    .ctx
                    .timeout(Duration::from_secs(5), conn.recv())
                    .await
                    .expect("dropped at once")
                    .is_ok()
                {}
            }
            assert_eq!((server.counters().auth_failures, server.counters().accepted), (count, 0));
            assert_eq!(w.service.handled.get(), 0);
            assert!(w.peer(&addr).call(&Echo(vec![]), Lend::None, w.after(5000)).await.is_ok());
        }
    });
}

#[test]
fn garbage_after_the_proof_drops_the_connection() {
    let mut runner = TestRunner::deterministic();
    let garbage = (prop::collection::vec(any::<u8>(), 0..200), any::<Option<u16>>());
    let cases: Vec<_> = (0..200).map(|_| garbage.new_tree(&mut runner).unwrap().current()).collect();
    locally(move |w| {
        let cases = cases.clone();
        async move {
            let (server, addr) = w.server().await;
            let count = cases.len() as u64;
            for (random, flip) in cases {
                let conn = enter(&w, &addr, "c", 1).await.unwrap();
                let message = match flip {
                    None => random,
                    Some(flip) => {
                        let mut frame = request(&Echo(random), 1, 1, 0);
                        let bit = usize::from(flip) % (frame.len() * 8);
                        frame[bit / 8] ^= 1 << (bit % 8);
                        frame
                    }
                };
                conn.send(message).await.unwrap();
                assert!(conn.recv().await.is_err());
            }
            assert_eq!((server.counters().protocol_errors, w.service.handled.get()), (count, 0));
        }
    });
}

#[test]
fn strangers_are_few_and_have_little_time() {
    locally(|w| async move {
        let (server, addr) = w.serve(w.addr(), 1, ServerLimits::tiny()).await;
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(w.transport.connect(addr.clone()).await.unwrap());
        }
        w.ctx.sleep(Duration::from_secs(1)).await;
        assert_eq!(server.counters().turned_away, 3);
        w.ctx.sleep(Duration::from_secs(2)).await;
        assert_eq!(server.counters().auth_failures, 2);
        let mut inside = Vec::new();
        for i in 0..5 {
            inside.push(enter(&w, &addr, "c", i).await);
        }
        let verdicts: Vec<_> = inside.iter().map(|e| e.as_ref().err().copied()).collect();
        assert_eq!(verdicts, [None; 5], "older incarnations make room");
        let mut more = Vec::new();
        for _ in 0..4 {
            more.push(enter(&w, &addr, "c", 4).await);
        }
        assert_eq!(more.pop().unwrap().err(), Some(4), "four connections are the limit");
    });
}

async fn tiny(w: &World) -> (Server, Rc<dyn Conn>, PeerAddr) {
    let (server, addr) = w.serve(w.addr(), 1, ServerLimits::tiny()).await;
    let conn = enter(w, &addr, "c", 1).await.unwrap();
    (server, conn, addr)
}

#[test]
fn a_duplicate_is_done_once_and_answered_alike() {
    locally(|w| async move {
        let (server, conn, addr) = tiny(&w).await;
        let slow = request(&Slow(50), 1, 1, 0);
        conn.send(slow.clone()).await.unwrap();
        conn.send(slow.clone()).await.unwrap();
        let second = enter(&w, &addr, "c", 1).await.unwrap();
        second.send(slow.clone()).await.unwrap(); // The same channel, another connection: it joins.
        assert_eq!(answer::<u64>(&conn.recv().await.unwrap()), (1, Ok(50)));
        assert_eq!(answer::<u64>(&conn.recv().await.unwrap()), (1, Ok(50)));
        assert_eq!(answer::<u64>(&second.recv().await.unwrap()), (1, Ok(50)));
        let begun = w.ctx.now();
        second.send(slow).await.unwrap();
        assert_eq!(answer::<u64>(&second.recv().await.unwrap()), (1, Ok(50)));
        assert_eq!(w.ctx.now(), begun, "the stored answer");
        assert_eq!((w.service.handled.get(), server.counters().duplicates), (1, 3));
    });
}

#[test]
fn an_id_beyond_memory_is_refused() {
    locally(|w| async move {
        let (server, conn, _) = tiny(&w).await;
        for id in 1..=3 {
            conn.send(request(&Slow(0), id, 1, 0)).await.unwrap();
            assert_eq!(answer::<u64>(&conn.recv().await.unwrap()), (id, Ok(0)));
        }
        conn.send(request(&Slow(0), 1, 1, 0)).await.unwrap();
        assert_eq!(answer::<u64>(&conn.recv().await.unwrap()), (1, Err(Refusal::OldId)));
        conn.send(request(&Slow(0), 2, 1, 0)).await.unwrap();
        assert_eq!(answer::<u64>(&conn.recv().await.unwrap()), (2, Ok(0)), "two answers are remembered");
        assert_eq!((w.service.handled.get(), server.counters().stale), (3, 1));
    });
}

#[test]
fn an_older_incarnation_is_refused_everywhere() {
    everywhere(|w| async move {
        let (server, addr) = w.server().await;
        let old = enter(&w, &addr, "c", 5).await.unwrap();
        old.send(request(&Slow(0), 1, 4, 0)).await.unwrap();
        assert_eq!(answer::<u64>(&old.recv().await.unwrap()), (1, Err(Refusal::StaleIncarnation)));
        let new = enter(&w, &addr, "c", 6).await.unwrap();
        assert!(old.recv().await.is_err(), "what the older one left open is closed");
        assert_eq!(enter(&w, &addr, "c", 5).await.err(), Some(3));
        new.send(request(&Slow(0), 1, 6, 0)).await.unwrap();
        assert_eq!(answer::<u64>(&new.recv().await.unwrap()), (1, Ok(0)), "ids start anew");
        let peer = w.peer_as(&addr, auth("c", 5), PeerLimits::default());
        let error = peer.call(&Echo(vec![]), Lend::None, w.after(5000)).await.unwrap_err();
        assert!(error.to_string().contains("newer incarnation"), "{error}");
        assert_eq!(w.service.handled.get(), 1);
        drop(server);
    });
}

#[test]
fn an_older_epoch_is_refused() {
    locally(|w| async move {
        let (server, conn, addr) = tiny(&w).await;
        for (id, epoch, fresh) in [(1, 3, true), (2, 2, false), (3, 3, true), (4, 4, true), (5, 3, false)] {
            conn.send(request(&Slow(0), id, 1, epoch)).await.unwrap();
            let want = if fresh { Ok(0) } else { Err(Refusal::StaleEpoch) };
            assert_eq!(answer::<u64>(&conn.recv().await.unwrap()), (id, want), "epoch {epoch}");
        }
        let auth = auth("c", 1);
        let peer = w.peer_as(&addr, auth.clone(), PeerLimits::default());
        let stale = peer.call(&Slow(0), Lend::None, w.after(5000)).await.unwrap_err();
        assert!(matches!(stale, CallError::Refused { refusal: Refusal::StaleEpoch, .. }));
        auth.set_epoch(4);
        assert!(peer.call(&Slow(0), Lend::None, w.after(5000)).await.is_ok());
        assert_eq!(server.counters().stale, 3);
    });
}

#[test]
fn a_server_of_an_older_incarnation_is_not_believed() {
    locally(|w| async move {
        let (server, addr) = w.serve(w.addr(), 7, ServerLimits::default()).await;
        let peer = w.peer(&addr);
        assert!(peer.connected(w.after(5000)).await);
        drop(server);
        w.until("it is gone", || !peer.is_connected()).await;
        let (old, _) = w.serve(addr.clone(), 6, ServerLimits::default()).await;
        assert!(!peer.connected(w.after(3000)).await);
        assert!(peer.status().last_error.unwrap().contains("old incarnation of the peer"));
        drop(old);
        let (_new, _) = w.serve(addr, 8, ServerLimits::default()).await;
        assert!(peer.connected(w.after(3000)).await);
    });
}

#[test]
fn a_hung_server_is_noticed_by_its_silence() {
    locally(|w| async move {
        let listener = w.transport.listen(w.addr()).await.unwrap();
        let addr = listener.addr();
        let peer = w.peer(&addr);
        peer.connect();
        let conn = listener.accept().await.unwrap();
        let theirs = conn.recv().await.unwrap();
        let ours = hello("s", 1, 9);
        conn.send([&ours[..], &mac(1, "server", &theirs, &ours)].concat()).await.unwrap();
        let answer = conn.recv().await.unwrap();
        assert_eq!(answer[4..], mac(1, "client", &theirs, &ours));
        conn.admit();
        conn.send([0x4842_6f43_u32.to_le_bytes(), 1_u32.to_le_bytes()].concat()).await.unwrap();
        assert!(peer.connected(w.after(1000)).await);
        let begun = w.ctx.now();
        let error = peer.call(&Echo(vec![]), Lend::None, w.after(60_000)).await.unwrap_err();
        assert!(error.to_string().contains("silent"), "{error}");
        assert!((w.ctx.now() - begun).as_secs() < 7);
        assert_ne!(peer.status().state, PeerState::Connected);
    });
}

#[test]
fn a_silent_client_is_dropped() {
    locally(|w| async move {
        let (_server, conn, _) = tiny(&w).await;
        let begun = w.ctx.now();
        assert!(conn.recv().await.is_err());
        assert_eq!((w.ctx.now() - begun).as_secs(), 15);
    });
}
