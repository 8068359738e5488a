//! Calls between a peer and a server, on both transports.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod world;

use cobalt_rpc::{CallError, Lend, PeerLimits, PeerState, Refusal, ServerLimits};
use std::time::Duration;
use world::{
    Big, Echo, Fetch, No, Refuse, Silent, Slow, SlowStore, Store, Unknown, World, auth, bytes, everywhere,
    locally, over_tcp, sum,
};

#[test]
fn calls_without_bulk() {
    everywhere(|w| async move {
        let (server, addr) = w.server().await;
        let peer = w.peer(&addr);
        assert_eq!(peer.status().state, PeerState::Idle);
        for len in [0, 1, 60_000] {
            let answer = peer.call(&Echo(vec![7; len]), Lend::None, w.after(5000)).await.unwrap();
            assert_eq!((answer.reply.len(), answer.pushed.len()), (len, 0));
        }
        let refused = peer.call(&Refuse("full".into()), Lend::None, w.after(5000)).await;
        assert_eq!(refused.unwrap_err(), CallError::Service(No("full".into())));
        let refusal = |r| CallError::Refused { peer: "s".into(), refusal: r };
        let unknown = peer.call(&Unknown(()), Lend::None, w.after(5000)).await;
        assert_eq!(unknown.unwrap_err(), refusal(Refusal::UnknownOpcode(99)));
        let silent = peer.call(&Silent(()), Lend::None, w.after(5000)).await;
        assert_eq!(silent.unwrap_err(), refusal(Refusal::NoReply));
        let big = peer.call(&Big(70_000), Lend::None, w.after(5000)).await;
        assert_eq!(big.unwrap_err(), refusal(Refusal::ReplyTooLarge));
        let big = peer.call(&Echo(vec![0; 70_000]), Lend::None, w.after(5000)).await;
        assert!(matches!(big.unwrap_err(), CallError::Malformed { .. }));
        let status = peer.status();
        assert_eq!(status.transport, Some(if w.local { "local" } else { "tcp" }));
        assert_eq!((status.state, status.incarnation), (PeerState::Connected, Some(1)));
        assert_eq!((status.counters.calls, status.counters.failures, status.counters.connects), (8, 4, 1));
        assert_eq!((server.counters().requests, server.running()), (7, 0));
    });
}

#[test]
fn bulk_is_pulled_and_pushed() {
    everywhere(|w| async move {
        let (_server, addr) = w.server().await;
        let peer = w.peer(&addr);
        for len in [0, 1, 4097, 1 << 20, (2 << 20) + 5] {
            let data = bytes(&w.arena, len, 3);
            let want = sum(&data);
            let answer = peer.call(&Store(len as u64), Lend::Data(data), w.after(5000)).await.unwrap();
            assert_eq!(answer.reply, want);
            let answer = peer.call(&Fetch(len as u64), Lend::Room(len), w.after(5000)).await.unwrap();
            assert_eq!((answer.reply, sum(&answer.pushed)), (sum(&bytes(&w.arena, len, 7)), answer.reply));
            assert_eq!(answer.pushed.iter().map(|s| s.len()).sum::<usize>(), len);
        }
        let more = peer.call(&Store(11), Lend::Data(bytes(&w.arena, 10, 3)), w.after(5000)).await;
        assert!(matches!(more.unwrap_err(), CallError::Service(_)), "the service sees that less was lent");
        let none = peer.call(&Fetch(1), Lend::None, w.after(5000)).await;
        assert!(matches!(none.unwrap_err(), CallError::Service(_)));
        w.until("all memory is back", || w.arena.stats().in_use == 0).await;
    });
}

#[test]
fn many_calls_share_a_connection_and_a_slow_one_holds_up_none() {
    everywhere(|w| async move {
        let (server, addr) = w.server().await;
        let peer = w.peer(&addr);
        let (slow, deadline) = (peer.clone(), w.after(20_000));
        let slow = w.ctx.spawn(async move { slow.call(&Slow(300), Lend::None, deadline).await });
        let tasks: Vec<_> = (0..400_usize)
            .map(|i| {
                let (peer, deadline) = (peer.clone(), w.after(20_000));
                w.ctx.spawn(async move {
                    let answer = peer.call(&Echo(vec![i as u8; i]), Lend::None, deadline).await.unwrap();
                    assert_eq!(answer.reply, vec![i as u8; i]);
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert!(!slow.is_finished());
        assert_eq!(slow.await.unwrap().reply, 300);
        assert_eq!((server.counters().accepted, server.counters().requests), (1, 401));
    });
}

#[test]
fn a_deadline_ends_the_call_and_the_late_reply_is_dropped() {
    everywhere(|w| async move {
        let (_server, addr) = w.server().await;
        let peer = w.peer(&addr);
        assert!(peer.connected(w.after(5000)).await);
        let late = peer.call(&Slow(60), Lend::None, w.after(20)).await;
        assert_eq!(late.unwrap_err(), CallError::Deadline { peer: "s".into() });
        w.until("the late reply is counted", || peer.status().counters.late_replies == 1).await;
        assert_eq!(peer.call(&Slow(1), Lend::None, w.after(5000)).await.unwrap().reply, 1);
        assert_eq!(peer.status().counters.deadlines, 1);
    });
}

#[test]
fn a_call_that_is_given_up_ends_its_loan() {
    everywhere(|w| async move {
        let (_server, addr) = w.server().await;
        let peer = w.peer(&addr);
        assert!(peer.connected(w.after(5000)).await);
        let data = bytes(&w.arena, 8192, 3);
        let late = peer.call(&SlowStore(8192), Lend::Data(data), w.after(20)).await;
        assert!(matches!(late.unwrap_err(), CallError::Deadline { .. }));
        assert_eq!(w.arena.stats().in_use, 0, "the memory is ours again at once");
        w.until("the server's pull fails", || w.service.bulk_errors.borrow().len() == 1).await;
    });
}

#[test]
fn calls_in_flight_are_bounded() {
    locally(|w| async move {
        let (server, addr) = w.server().await;
        let peer = w.peer_as(&addr, auth("c", 1), PeerLimits::tiny());
        let begun = w.ctx.now();
        let calls: Vec<_> = (0..4)
            .map(|_| {
                let (peer, deadline) = (peer.clone(), w.after(5000));
                w.ctx.spawn(async move { peer.call(&Slow(100), Lend::None, deadline).await.unwrap() })
            })
            .collect();
        w.ctx.sleep(Duration::from_millis(50)).await;
        assert_eq!((server.running(), peer.status().calls_in_flight), (2, 2));
        for call in calls {
            call.await;
        }
        assert_eq!((w.ctx.now() - begun).as_millis(), 200);
    });
}

#[test]
fn a_full_server_says_busy() {
    locally(|w| async move {
        let (server, addr) = w.serve(w.addr(), 1, ServerLimits::tiny()).await;
        let peers = [w.peer(&addr), w.peer_as(&addr, auth("d", 1), PeerLimits::default())];
        let call = |peer: usize| {
            let (peer, deadline) = (peers[peer].clone(), w.after(5000));
            w.ctx.spawn(async move { peer.call(&Slow(100), Lend::None, deadline).await })
        };
        let held = [call(0), call(0)];
        w.ctx.sleep(Duration::from_millis(10)).await;
        let busy = Err(CallError::Refused { peer: "s".into(), refusal: Refusal::Busy });
        assert_eq!(call(0).await.map(|a| a.reply), busy, "two for one peer");
        let third = call(1);
        w.ctx.sleep(Duration::from_millis(10)).await;
        assert_eq!(call(1).await.map(|a| a.reply), busy, "three in all");
        for call in held {
            assert!(call.await.is_ok());
        }
        assert!(third.await.is_ok());
        assert_eq!((server.counters().busy, server.running()), (2, 0));
    });
}

#[test]
fn a_peer_that_is_away_is_an_immediate_answer_and_comes_back() {
    everywhere(|w| async move {
        let (server, addr) = w.server().await;
        let peer = w.peer(&addr);
        assert!(peer.connected(w.after(5000)).await);
        let (slow, deadline) = (peer.clone(), w.after(20_000));
        let slow = w.ctx.spawn(async move { slow.call(&Slow(10_000), Lend::None, deadline).await });
        w.ctx.sleep(Duration::from_millis(20)).await;
        let died = w.ctx.now();
        drop(server);
        let lost = slow.await.unwrap_err();
        assert!(matches!(lost, CallError::Transport { .. }) && !lost.is_definite());
        assert!(w.ctx.now() - died < Duration::from_secs(1), "noticed at once");
        w.until("it backs off", || peer.status().state == PeerState::BackingOff).await;
        let away = peer.call(&Echo(vec![]), Lend::None, w.after(20_000)).await.unwrap_err();
        assert!(away.is_definite(), "{away}");
        let (_server, _) = w.serve(addr.clone(), 2, ServerLimits::default()).await;
        assert!(peer.connected(w.after(5000)).await);
        assert!(peer.call(&Echo(vec![1]), Lend::None, w.after(5000)).await.is_ok());
        assert_eq!(peer.status().incarnation, Some(2));
    });
}

#[test]
fn an_idle_connection_stays_and_a_closed_peer_says_so() {
    locally(|w| async move {
        let (server, addr) = w.server().await;
        let peer = w.peer(&addr);
        assert!(peer.connected(w.after(5000)).await);
        w.ctx.sleep(Duration::from_secs(3600)).await;
        assert!(peer.is_connected());
        assert_eq!((server.counters().accepted, peer.status().counters.connects), (1, 1));
        peer.close();
        let closed = peer.call(&Echo(vec![]), Lend::None, w.after(1000)).await.unwrap_err();
        assert!(matches!(closed, CallError::Unreachable { .. }));
        assert_eq!(peer.status().state, PeerState::Closed);
    });
}

#[test]
fn an_idle_connection_lets_the_reactor_sleep() {
    over_tcp(|w| async move {
        let (_server, addr) = w.server().await;
        let peer = w.peer(&addr);
        assert!(peer.call(&Echo(vec![1]), Lend::None, w.after(5000)).await.is_ok());
        let before = w.ctx.stats();
        w.ctx.sleep(Duration::from_millis(500)).await;
        let after = w.ctx.stats();
        assert!(after.turns - before.turns < 2000, "{} turns in half a second", after.turns - before.turns);
        assert!((1..50).contains(&(after.parks - before.parks)));
    });
}

#[test]
fn a_process_that_dies_where_it_stands_is_noticed_and_its_successor_found() {
    locally(|w| async move {
        let scope = w.ctx.scope();
        let dying = World { ctx: scope.ctx(), ..w.clone() };
        let addr = w.addr();
        let at = addr.clone();
        scope.ctx().spawn(async move {
            let _server = dying.serve(at, 1, ServerLimits::default()).await;
            std::future::pending::<()>().await;
        });
        let peer = w.peer(&addr);
        assert!(peer.connected(w.after(5000)).await);
        let data = bytes(&w.arena, 8192, 3);
        let (caller, deadline) = (peer.clone(), w.after(60_000));
        let call =
            w.ctx.spawn(async move { caller.call(&SlowStore(8192), Lend::Data(data), deadline).await });
        w.ctx.sleep(Duration::from_millis(50)).await;
        scope.kill();
        let died = w.ctx.now();
        assert!(matches!(call.await.unwrap_err(), CallError::Transport { .. }));
        assert_eq!((w.ctx.now(), w.arena.stats().in_use), (died, 0));
        let (_server, _) = w.serve(addr, 2, ServerLimits::default()).await;
        assert!(peer.connected(w.after(2000)).await);
    });
}
