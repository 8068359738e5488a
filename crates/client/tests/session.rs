//! The client and the catalogue: leaders, lost answers, fences, positions, and what becomes of bodies that nobody
//! publishes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod world;

use cobalt_base::UnixMillis;
use cobalt_client::{ClientError, Limits};
use cobalt_rpc::proto::cas::{Answer, CasError, Command, Outcome, Query};
use cobalt_rpc::proto::record::{Body, ObjectMeta, ObjectRecord, PartRecord};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;
use world::{BUCKET, Mood, Shape, World, bytes, put_command, read, run};

fn delete(key: &str) -> Command {
    Command::DeleteObject { bucket: BUCKET.into(), key: key.into(), condition: Default::default() }
}

async fn settle(world: &World) {
    world.pass(Duration::from_millis(700)).await;
}

#[test]
fn the_leader_is_found_by_hint_and_without() {
    for hint in [None, Some("p0".to_owned())] {
        run(Shape { follower: true, ..Shape::default() }, |world| async move {
            *world.follower.leader.borrow_mut() = Some(hint);
            world.put("o", &bytes(1, 100)).await.unwrap();
            assert!(world.follower.applied.borrow().is_empty());
            // Leadership moves: what was asked of the old leader is asked of the new one.
            *world.catalogue.leader.borrow_mut() = Some(Some("p1".into()));
            *world.follower.leader.borrow_mut() = None;
            for session in world.catalogue.sessions.borrow().iter() {
                world.follower.sessions.borrow_mut().insert(*session.0, *session.1);
            }
            assert_eq!(world.handle.commit(delete("o")).await, Ok(Outcome::Done));
            assert_eq!(world.follower.applied.borrow().len(), 1);
        });
    }
}

#[test]
fn without_any_leader_the_answer_comes_at_the_deadline() {
    run(Shape::default(), |world| async move {
        world.put("o", b"x").await.unwrap();
        *world.catalogue.leader.borrow_mut() = Some(None);
        let start = world.ctx.now();
        let error = world.handle.ask(Query::Cluster).await.unwrap_err();
        assert!(matches!(error, ClientError::Unavailable { .. }), "{error:?}");
        let took = world.ctx.now() - start;
        assert!((Duration::from_secs(10)..Duration::from_secs(11)).contains(&took), "{took:?}");
        *world.catalogue.leader.borrow_mut() = None;
        assert!(matches!(world.handle.ask(Query::Cluster).await, Ok(Answer::Cluster { .. })));
    });
}

#[test]
fn a_commit_whose_answer_was_lost_happens_once_and_gets_its_first_answer() {
    run(Shape::default(), |world| async move {
        settle(&world).await;
        world.catalogue.lose.set(2);
        assert_eq!(world.handle.commit(delete("a")).await, Ok(Outcome::Done));
        assert_eq!(world.catalogue.applied.borrow().len(), 1);
        assert_eq!(*world.catalogue.acknowledged.borrow(), [(1, 0), (1, 0), (1, 0)]);
        assert_eq!(world.handle.commit(delete("b")).await, Ok(Outcome::Done));
        assert_eq!(world.catalogue.acknowledged.borrow().last(), Some(&(2, 1)), "the first is acknowledged");
    });
}

#[test]
fn the_watermark_never_passes_a_request_without_an_answer() {
    run(Shape::default(), |world| async move {
        let stored = world.store(&bytes(1, 10), true).await.unwrap();
        world.catalogue.down.set(true);
        let handle = world.handle.clone();
        let publish =
            world.ctx.spawn(async move { handle.publish(stored, |body| put_command("o", body, 10)).await });
        assert!(matches!(publish.await, Err(ClientError::Deadline { .. })), "its caller waits so long");
        world.catalogue.down.set(false);
        // The client still asks for the first one: others pass it, the watermark does not.
        world.catalogue.lose.set(1);
        world.handle.commit(delete("x")).await.unwrap();
        assert!(world.catalogue.acknowledged.borrow().iter().all(|(_, acknowledged)| *acknowledged == 0));
        world.pass(Duration::from_secs(10)).await;
        world.handle.commit(delete("y")).await.unwrap();
        assert!(world.get("o").await.unwrap() == bytes(1, 10), "it was published in the end");
        let (request, acknowledged) = *world.catalogue.acknowledged.borrow().last().unwrap();
        assert_eq!(acknowledged, request - 1);
        assert!(world.catalogue.dead.borrow().is_empty(), "and its fid is not dead");
    });
}

#[test]
fn a_put_that_is_given_up_dies() {
    run(Shape::default(), |world| async move {
        let mut put = world.handle.put(Some(8 << 20)).await.unwrap();
        let mut buf = put.buf().await;
        buf.fill(3);
        put.write(buf).await.unwrap();
        world.pass(Duration::from_millis(1)).await;
        drop(put);
        settle(&world).await;
        assert_eq!(world.catalogue.dead.borrow().len(), 1);
        // One that never sent a byte has nothing to die.
        drop(world.handle.put(Some(8 << 20)).await.unwrap());
        settle(&world).await;
        assert_eq!(world.catalogue.dead.borrow().len(), 1);
        assert_eq!(world.arena.stats().in_use, 0);
    });
}

#[test]
fn a_stored_body_that_nobody_publishes_dies_and_a_published_one_lives() {
    run(Shape::default(), |world| async move {
        let stored = world.store(&bytes(1, 5000), true).await.unwrap();
        settle(&world).await;
        assert!(world.catalogue.dead.borrow().is_empty(), "not while it is held");
        let Body::Single(extent) = stored.body().clone() else { panic!() };
        drop(stored);
        settle(&world).await;
        assert_eq!(*world.catalogue.dead.borrow(), [extent.fid]);
        world.put("o", &bytes(2, 5000)).await.unwrap();
        settle(&world).await;
        assert_eq!(world.catalogue.dead.borrow().len(), 1);
        drop(world.store(&[], true).await.unwrap());
        settle(&world).await;
        assert_eq!(world.catalogue.dead.borrow().len(), 1, "an empty body has no cobs");
    });
}

#[test]
fn a_body_whose_publish_is_refused_dies() {
    run(Shape::default(), |world| async move {
        *world.catalogue.refuse.borrow_mut() = Some(CasError::PreconditionFailed);
        let error = world.put("o", &bytes(1, 5000)).await.unwrap_err();
        assert_eq!(error, ClientError::Cas(CasError::PreconditionFailed));
        settle(&world).await;
        assert_eq!(world.catalogue.dead.borrow().len(), 1);
    });
}

#[test]
fn dead_fids_wait_for_a_catalogue_that_is_down_and_are_bounded() {
    run(Shape { limits: Limits::tiny(), ..Shape::default() }, |world| async move {
        world.put("o", &bytes(1, 10)).await.unwrap();
        let mut bodies = Vec::new();
        for i in 0..16 {
            bodies.push(world.store(&bytes(i, 10), true).await.unwrap());
        }
        assert_eq!(world.handle.put(Some(10)).await.unwrap_err(), ClientError::Busy);
        world.catalogue.down.set(true);
        drop(bodies);
        world.pass(Duration::from_secs(30)).await;
        assert!(world.catalogue.dead.borrow().is_empty());
        assert_eq!(world.handle.put(Some(10)).await.unwrap_err(), ClientError::Busy);
        world.catalogue.down.set(false);
        world.pass(Duration::from_secs(15)).await;
        let mut dead = world.catalogue.dead.borrow().clone();
        dead.sort_unstable();
        dead.dedup();
        assert_eq!(dead.len(), 16, "every one, once the catalogue is back");
        world.put("p", &bytes(1, 10)).await.unwrap();
    });
}

#[test]
fn a_fenced_client_opens_a_new_session_and_goes_on() {
    run(Shape::default(), |world| async move {
        let stored = world.store(&bytes(1, 5000), true).await.unwrap();
        let first = *world.catalogue.sessions.borrow().values().next().unwrap();
        world.catalogue.fenced.borrow_mut().insert(first);
        let error = world.handle.publish(stored, |body| put_command("o", body, 5000)).await.unwrap_err();
        assert_eq!(
            error,
            ClientError::Cas(CasError::Fenced(first)),
            "its bytes belong to the fenced session"
        );
        // What names no fid is repeated in the new session; new bodies get new fids.
        assert_eq!(world.handle.commit(delete("x")).await, Ok(Outcome::Done));
        world.put("o", &bytes(1, 5000)).await.unwrap();
        assert_eq!(world.catalogue.sessions.borrow().len(), 2);
        settle(&world).await;
        assert!(world.catalogue.dead.borrow().is_empty(), "the sweep of the fenced session takes the rest");
    });
}

#[test]
fn a_fence_is_noticed_by_heartbeat_and_by_a_target() {
    run(Shape::default(), |world| async move {
        world.put("o", &bytes(1, 10)).await.unwrap();
        let first = *world.catalogue.sessions.borrow().values().next().unwrap();
        world.catalogue.fenced.borrow_mut().insert(first);
        world.pass(Duration::from_secs(3)).await;
        assert_eq!(world.catalogue.sessions.borrow().len(), 2);
        *world.targets[1].mood.borrow_mut() = Mood::Fenced;
        assert!(matches!(world.put("p", &bytes(1, 10)).await, Err(ClientError::Unavailable { .. })));
        *world.targets[1].mood.borrow_mut() = Mood::Well;
        settle(&world).await;
        assert_eq!(world.catalogue.sessions.borrow().len(), 3);
        world.put("p", &bytes(1, 10)).await.unwrap();
    });
}

#[test]
fn a_get_holds_its_position_until_its_last_stream_is_gone() {
    run(Shape::default(), |world| async move {
        world.put("o", &bytes(1, 4 << 20)).await.unwrap();
        world.pass(Duration::from_secs(3)).await;
        let at_open = world.catalogue.position();
        let object = world.open("o").await.unwrap();
        let mut stream = object.read(0..4 << 20).await.unwrap();
        for i in 0..5 {
            world.put(&format!("p{i}"), &bytes(i, 10)).await.unwrap();
        }
        drop(object);
        world.pass(Duration::from_secs(3)).await;
        let last = || world.catalogue.beats.borrow().last().unwrap().oldest;
        assert_eq!(last(), at_open, "a stream holds the look-up");
        assert!(stream.next().await.unwrap().is_ok());
        drop(stream);
        world.pass(Duration::from_secs(3)).await;
        assert_eq!(last(), world.catalogue.position());
    });
}

#[test]
fn a_session_that_was_fenced_before_its_answer_came_is_not_asked_for_again() {
    run(Shape::default(), |world| async move {
        world.put("o", &bytes(1, 10)).await.unwrap();
        world.catalogue.fence_next.set(true);
        world.catalogue.fenced.borrow_mut().insert(cobalt_base::SessionId(1));
        world.pass(Duration::from_secs(5)).await;
        assert_eq!(world.catalogue.sessions.borrow().len(), 3);
        world.put("p", &bytes(2, 10)).await.unwrap();
    });
}

#[test]
fn a_body_of_a_fenced_session_is_not_published_in_the_next() {
    run(Shape::default(), |world| async move {
        let stored = world.store(&bytes(1, 5000), true).await.unwrap();
        world.catalogue.fenced.borrow_mut().insert(cobalt_base::SessionId(1));
        world.pass(Duration::from_secs(3)).await;
        assert_eq!(world.catalogue.sessions.borrow().len(), 2);
        let error = world.handle.publish(stored, |body| put_command("o", body, 5000)).await.unwrap_err();
        let fenced = CasError::Fenced(cobalt_base::SessionId(1));
        assert_eq!(error, ClientError::Cas(fenced), "not a fault of the request");
        settle(&world).await;
        assert!(world.catalogue.dead.borrow().is_empty(), "the sweep of its session has it");
    });
}

#[test]
fn what_a_heartbeat_says_is_never_newer_than_a_look_up_under_way() {
    run(Shape::default(), |world| async move {
        world.put("o", &bytes(1, 10)).await.unwrap();
        world.pass(Duration::from_secs(3)).await;
        let before = world.catalogue.position();
        // The answer is on its way for two seconds and a half; meanwhile others make the newest position rise.
        world.catalogue.slow.set(Duration::from_millis(2500));
        let world = Rc::new(world);
        let asking = world.clone();
        let open = world.ctx.spawn(async move { asking.open("o").await });
        world.pass(Duration::from_millis(5)).await;
        let said = world.catalogue.beats.borrow().len();
        for i in 0..5 {
            world.put(&format!("p{i}"), &bytes(i, 10)).await.unwrap();
        }
        let object = open.await.unwrap();
        let beats = world.catalogue.beats.borrow()[said..].to_vec();
        assert!(beats.len() >= 2, "{beats:?}");
        assert!(beats.iter().all(|beat| beat.oldest == before), "{before:?} {beats:?}");
        drop(object);
        world.pass(Duration::from_secs(3)).await;
        assert_eq!(world.catalogue.beats.borrow().last().unwrap().oldest, world.catalogue.position());
    });
}

#[test]
fn a_get_that_is_too_old_is_cut_and_stops_holding() {
    let limits = Limits { get_age: Duration::from_secs(20), ..Limits::default() };
    run(Shape { limits, ..Shape::default() }, |world| async move {
        world.put("o", &bytes(1, 8 << 20)).await.unwrap();
        let object = world.open("o").await.unwrap();
        let mut stream = object.read(0..8 << 20).await.unwrap();
        stream.next().await.unwrap().unwrap();
        world.pass(Duration::from_secs(21)).await;
        let mut got = 1;
        let error = loop {
            match stream.next().await {
                Some(Ok(_)) => got += 1,
                Some(Err(error)) => break error,
                None => panic!("a cut stream must not look complete"),
            }
        };
        assert!(matches!(error, ClientError::Deadline { .. }), "{error:?}");
        assert!(got < 8);
        assert!(stream.next().await.is_none());
        world.put("p", b"x").await.unwrap();
        world.pass(Duration::from_secs(3)).await;
        assert_eq!(world.catalogue.beats.borrow().last().unwrap().oldest, world.catalogue.position());
    });
}

#[test]
fn an_object_of_parts_reads_as_one() {
    run(Shape::default(), |world| async move {
        let upload = Uuid::from_u128(5);
        let (mut whole, mut numbers) = (Vec::new(), Vec::new());
        for (i, len) in [70_000, 1, 2_500_000, 4096, 300_000, 8_193, 1 << 20].into_iter().enumerate() {
            let number = u16::try_from(i * 3 + 1).unwrap();
            let data = bytes(number.into(), len);
            let stored = world.store(&data, true).await.unwrap();
            let body = stored.body().clone();
            let part = PartRecord {
                number,
                size: len as u64,
                modified: UnixMillis(0),
                etag: "e".into(),
                body,
                checksums: Vec::new(),
            };
            world.catalogue.parts.borrow_mut().insert((upload, number), part.clone());
            let command =
                |_| Command::PutPart { bucket: BUCKET.into(), key: b"m".into(), upload, part: part.clone() };
            world.handle.publish(stored, command).await.unwrap();
            whole.extend_from_slice(&data);
            numbers.push(number);
        }
        let record = ObjectRecord {
            size: whole.len() as u64,
            modified: UnixMillis(0),
            etag: "e-7".into(),
            body: Body::Parts { upload, count: 7 },
            meta: ObjectMeta::default(),
            checksums: Vec::new(),
        };
        world.catalogue.objects.borrow_mut().insert(b"m".to_vec(), record);
        assert!(world.get("m").await.unwrap() == whole);
        let object = world.open("m").await.unwrap();
        for range in [0..1, 69_999..70_002, 70_000..70_001, 2_000_000..2_874_290, 2_574_096..2_874_099] {
            let got = read(&object, range.clone()).await.unwrap();
            assert!(got == whole[range.start as usize..range.end as usize], "{range:?}");
        }
        assert_eq!(object.part(7).await.unwrap().size, 2_500_000);
        assert_eq!(object.part(2).await.unwrap_err(), ClientError::Cas(CasError::InvalidPart));
        world.catalogue.parts.borrow_mut().remove(&(upload, 19));
        assert!(matches!(world.get("m").await, Err(ClientError::Damaged { .. })), "never a shorter object");
    });
}

#[test]
fn status_names_what_is_down_and_what_the_catalogue_hangs_on() {
    run(Shape::default(), |world| async move {
        world.put("o", &bytes(1, 10)).await.unwrap();
        let status = world.handle.status().await;
        assert_eq!(status.catalogue, "catalogue: 1 copy on t0; its loss loses all");
        assert!(status.writable && !status.redundancy_short && status.collector_idle == Some(true));
        assert_eq!(status.targets.len(), 3);
        assert!(
            status.processes.iter().all(|p| p.up && p.transport.as_deref() == Some("local")),
            "{status:?}"
        );
        world.kill(2);
        *world.targets[1].mood.borrow_mut() = Mood::Failed;
        let status = world.handle.status().await;
        assert!(status.redundancy_short && !status.writable);
        let why = status.not_writable.clone().unwrap();
        assert!(why.contains("t1") && why.contains("t2"), "{why}");
        assert_eq!(status.targets.iter().filter(|t| t.up).count(), 1);
        assert_eq!(status.targets.len(), 3);
        world.catalogue.down.set(true);
        let status = world.handle.status().await;
        assert!(status.cas.is_none() && status.cas_error.is_some());
        assert!(status.catalogue.starts_with("catalogue: not available"));
    });
}

#[test]
fn a_client_that_stops_reports_its_dead_and_closes_its_session() {
    run(Shape::default(), |world| async move {
        drop(world.store(&bytes(1, 10), true).await.unwrap());
        world.ctx.yield_now().await;
        let World { client, catalogue, handle, servers: _servers, targets: _targets, .. } = world;
        client.stop().await;
        assert_eq!(catalogue.dead.borrow().len(), 1);
        assert_eq!(catalogue.closed.borrow().len(), 1);
        assert_eq!(handle.ask(Query::Cluster).await, Err(ClientError::Closed));
        assert!(matches!(handle.put(None).await, Err(ClientError::Closed)));
    });
}
