//! Bytes from outside on a TCP connection: none of them panics or hangs the reactor, and what breaks the
//! protocol ends the connection and is counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use cobalt_base::checksum::crc32c;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_fabric::{BulkDesc, PeerAddr, TcpTransport, Transport};
use cobalt_reactor::{Reactor, ReactorConfig};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use std::io::{Read as _, Write as _};
use std::time::Duration;

/// A frame with a good checksum.
fn frame(kind: u16, length: u32, key: u64, offset: u64, tag: u64, body: &[u8]) -> Vec<u8> {
    let mut head = Vec::new();
    head.extend(0x4642_6f43_u32.to_le_bytes());
    head.extend(kind.to_le_bytes());
    head.extend(0_u16.to_le_bytes());
    head.extend(length.to_le_bytes());
    head.extend(0_u32.to_le_bytes());
    head.extend(key.to_le_bytes());
    head.extend(offset.to_le_bytes());
    head.extend(tag.to_le_bytes());
    let crc = crc32c(&head);
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    head.extend(body);
    head
}

/// What became of a connection that sent `bytes`: (messages received, protocol errors).
fn feed(bytes: &[u8], admit: bool) -> (usize, u64) {
    let reactor = Reactor::new(ReactorConfig::default()).unwrap();
    let ctx = reactor.ctx();
    let bytes = bytes.to_vec();
    reactor.block_on(async move {
        let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).unwrap();
        let transport = TcpTransport::new(&ctx, &arena).unwrap();
        let listener = transport.listen(PeerAddr::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let PeerAddr::Tcp(addr) = listener.addr() else { unreachable!() };
        let mut raw = std::net::TcpStream::connect(addr).unwrap();
        let conn = listener.accept().await.unwrap();
        if admit {
            conn.admit();
        }
        raw.write_all(&bytes).unwrap();
        raw.shutdown(std::net::Shutdown::Write).unwrap();
        let mut messages = 0;
        let drain = async {
            while conn.recv().await.is_ok() {
                messages += 1;
            }
        };
        ctx.timeout(Duration::from_secs(5), drain).await.expect("the end of the stream ends the connection");
        let mut rest = Vec::new();
        raw.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = raw.read_to_end(&mut rest); // A reset is an end too.
        assert_eq!(arena.stats().in_use, 0);
        (messages, transport.counters().protocol_errors)
    })
}

#[test]
fn each_breach_is_counted_and_ends_the_connection() {
    let message = frame(1, 3, 0, 0, 0, b"abc");
    assert_eq!(feed(&message, true), (1, 0));
    let breaches = [
        ("garbage", vec![0x5a; 100]),
        ("unknown kind", frame(77, 0, 0, 0, 0, b"")),
        ("an absurd message", frame(1, 65_537, 0, 0, 0, b"")),
        ("an absurd pull", frame(2, u32::MAX, 0, 0, 0, b"")),
        ("an empty pull", frame(2, 0, 0, 0, 0, b"")),
        ("a pull's answer that nobody asked for", frame(3, 1, 0, 0, 5, b"x")),
        ("a pull's refusal that nobody asked for", frame(4, 0, 0, 0, 5, b"")),
        ("a push's answer that nobody waits for", frame(6, 0, 0, 0, 5, b"")),
        ("more credits than the window", frame(8, 32, 0, 0, 0, b"")),
        ("more messages than credits", message.repeat(40)),
        ("more pulls than allowed", frame(2, 1, 0, 0, 1, b"").repeat(100)),
    ];
    for (what, bytes) in breaches {
        let (_, errors) = feed(&bytes, true);
        assert_eq!(errors, 1, "{what}");
    }
    assert_eq!(feed(&frame(2, 1, 0, 0, 1, b""), false).1, 1, "no bulk from strangers");
    assert_eq!(feed(&frame(1, 513, 0, 0, 0, &[0; 513]), false), (0, 1), "nor large messages");
}

#[test]
fn a_push_to_nowhere_is_read_and_refused() {
    let mut bytes = frame(5, 100_000, 1, u64::MAX, 1, &vec![7; 100_000]);
    bytes.extend(frame(1, 2, 0, 0, 0, b"ok"));
    assert_eq!(feed(&bytes, true), (1, 0));
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![Just(0_u32), 1..200_u32, any::<u32>()];
    let body = prop::collection::vec(any::<u8>(), 0..200);
    (0..12_u16, length, 0..3_u64, any::<u64>(), 0..3_u64, body)
        .prop_map(|(kind, length, key, offset, tag, body)| frame(kind, length, key, offset, tag, &body))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_bytes_never_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..300), admit: bool) {
        let (messages, errors) = feed(&bytes, admit);
        assert_eq!(messages, 0);
        assert_eq!(errors, u64::from(bytes.len() >= 40));
    }

    #[test]
    fn random_frames_never_panic_or_hang(frames in prop::collection::vec(any_frame(), 1..8), flip in any::<Option<u16>>()) {
        let mut bytes = frames.concat();
        if let Some(flip) = flip {
            let bit = usize::from(flip) % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let (messages, errors) = feed(&bytes, true);
        assert!(messages <= 8 && errors <= 1);
    }
}

#[test]
fn a_pull_given_up_leaves_no_memory_with_a_peer_that_never_answers() {
    let reactor = Reactor::new(ReactorConfig::default()).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).unwrap();
        let transport = TcpTransport::new(&ctx, &arena).unwrap();
        let listener = transport.listen(PeerAddr::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let PeerAddr::Tcp(addr) = listener.addr() else { unreachable!() };
        let mut raw = std::net::TcpStream::connect(addr).unwrap();
        let conn = listener.accept().await.unwrap();
        conn.admit();
        let desc = BulkDesc { key: 1, len: 100_000 };
        let pull = ctx.timeout(Duration::from_millis(20), conn.get(desc, 0, 100_000)).await;
        assert!(pull.is_err() && arena.stats().in_use == 0);
        // The answer comes late after all: it is read, and goes nowhere.
        raw.write_all(&frame(3, 100_000, 1, 0, 1, &vec![7; 100_000])).unwrap();
        raw.write_all(&frame(1, 2, 0, 0, 0, b"ok")).unwrap();
        assert_eq!(conn.recv().await, Ok(b"ok".to_vec()));
        assert_eq!((arena.stats().in_use, transport.counters().protocol_errors), (0, 0));
    });
}

#[test]
fn a_reset_fails_everything_pending_at_once() {
    let reactor = Reactor::new(ReactorConfig::default()).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).unwrap();
        let transport = TcpTransport::new(&ctx, &arena).unwrap();
        let listener = transport.listen(PeerAddr::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let PeerAddr::Tcp(addr) = listener.addr() else { unreachable!() };
        let raw = socket2::Socket::from(std::net::TcpStream::connect(addr).unwrap());
        let conn = listener.accept().await.unwrap();
        conn.admit();
        let pulling = conn.clone();
        let pull = ctx.spawn(async move { pulling.get(BulkDesc { key: 1, len: 9 }, 0, 9).await });
        ctx.sleep(Duration::from_millis(5)).await;
        raw.set_linger(Some(Duration::ZERO)).unwrap();
        drop(raw); // As the kernel does for a process that is killed with bytes unread.
        let failed =
            ctx.timeout(Duration::from_secs(1), async { (pull.await, conn.recv().await) }).await.unwrap();
        assert!(failed.0.is_err() && failed.1.is_err());
        assert_eq!((arena.stats().in_use, transport.counters().protocol_errors), (0, 0));
    });
}
