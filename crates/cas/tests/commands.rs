//! Every command with its refusals, conditions at commit time (I9), and answers that outlive a crash (I9b).

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod rig;

use cobalt_base::{Fid, SessionId, UnixMillis};
use cobalt_cas::{Cas, Leadership};
use cobalt_rpc::proto::cas::{
    Answer, CasError, CloseSession, Command, Commit, Condition, Heartbeat, OpenSession, Outcome, Position,
    Query,
};
use cobalt_rpc::proto::record::{Body, KeyRecord, PoolTarget};
use rig::{Rig, body, complete_upload, create_bucket, on_virtual_time, put_object, record, set_pool};
use std::cell::Cell;
use std::rc::Rc;
use uuid::Uuid;

fn published(etag: &str) -> Result<Outcome, CasError> {
    Ok(Outcome::Published { etag: etag.into() })
}

fn if_match(etag: &str) -> Condition {
    Condition { absent: false, if_match: Some(etag.into()) }
}

const ABSENT: Condition = Condition { absent: true, if_match: None };

#[test]
fn a_bucket_lives_once_under_its_name_and_never_again_under_its_id() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let first = s.bucket(&rig, "b").await;
        let exists = CasError::BucketExists { name: "b".into(), owner: "me".into() };
        assert_eq!(s.commit(&rig, create_bucket("b")).await, Err(exists));
        s.put(&rig, &first, "k", s.fid()).await.unwrap();
        let delete = || Command::DeleteBucket { name: "b".into() };
        assert_eq!(s.commit(&rig, delete()).await, Err(CasError::BucketNotEmpty("b".into())));
        s.delete(&rig, &first, "k").await.unwrap();
        assert_eq!(s.commit(&rig, delete()).await, Ok(Outcome::Done));
        assert_eq!(s.commit(&rig, delete()).await, Err(CasError::NoSuchBucket("b".into())));
        let second = s.bucket(&rig, "b").await;
        assert_ne!(first.id, second.id);
        assert_eq!(s.put(&rig, &first, "k", s.fid()).await, Err(CasError::NoSuchBucket("b".into())));
        assert_eq!(rig.status().await.buckets, 1);
        assert!(matches!(s.commit(&rig, create_bucket(&"x".repeat(256))).await, Err(CasError::TooLarge(_))));
        assert!(matches!(s.commit(&rig, create_bucket("")).await, Err(CasError::TooLarge(_))));
    });
}

#[test]
fn conditions_are_judged_against_what_is_there() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let b = s.bucket(&rig, "b").await;
        let put =
            |etag: &str, condition| s.commit(&rig, put_object(&b, b"k", body(s.fid()), etag, condition));
        assert_eq!(put("1", if_match("0")).await, Err(CasError::NoSuchKey));
        assert_eq!(put("1", ABSENT).await, published("1"));
        assert_eq!(put("2", ABSENT).await, Err(CasError::PreconditionFailed));
        assert_eq!(put("2", if_match("0")).await, Err(CasError::PreconditionFailed));
        assert_eq!(put("2", if_match("1")).await, published("2"));
        let delete = |condition| {
            let command = Command::DeleteObject { bucket: "b".into(), key: b"k".to_vec(), condition };
            s.commit(&rig, command)
        };
        assert_eq!(delete(if_match("1")).await, Err(CasError::PreconditionFailed));
        assert_eq!(delete(if_match("2")).await, Ok(Outcome::Deleted(vec![true])));
        assert_eq!(delete(if_match("2")).await, Err(CasError::NoSuchKey));
        assert_eq!(delete(Condition::default()).await, Ok(Outcome::Deleted(vec![false])));
        assert_eq!(rig.object("b", "k").await, Err(CasError::NoSuchKey));
        assert_eq!(rig.object("c", "k").await, Err(CasError::NoSuchBucket("c".into())));
    });
}

#[test]
fn writers_that_race_for_one_key_have_one_winner() {
    for seed in 0..20 {
        on_virtual_time(seed, |ctx| async move {
            let rig = Rc::new(Rig::new(&ctx).await);
            let s = Rc::new(rig.session("gw", 1).await);
            let b = s.bucket(&rig, "b").await;
            let mut tasks = Vec::new();
            for i in 0..10u64 {
                let (rig, s, b) = (rig.clone(), s.clone(), b.clone());
                tasks.push(ctx.spawn(async move {
                    let command = put_object(&b, b"k", body(s.fid()), &i.to_string(), ABSENT);
                    s.send(&rig, 100 + i, 1, command).await
                }));
            }
            let mut won = Vec::new();
            for task in tasks {
                match task.await {
                    Ok(Outcome::Published { etag }) => won.push(etag),
                    other => assert_eq!(other, Err(CasError::PreconditionFailed)),
                }
            }
            assert_eq!(won.len(), 1);
            assert_eq!(rig.object("b", "k").await.unwrap().etag, won[0]);
        });
    }
}

#[test]
fn a_delete_of_a_bucket_and_a_put_into_it_exclude_each_other() {
    for seed in 0..20 {
        on_virtual_time(seed, |ctx| async move {
            let rig = Rc::new(Rig::new(&ctx).await);
            let s = Rc::new(rig.session("gw", 1).await);
            let b = s.bucket(&rig, "b").await;
            let deleter = {
                let (rig, s) = (rig.clone(), s.clone());
                ctx.spawn(
                    async move { s.send(&rig, 50, 1, Command::DeleteBucket { name: "b".into() }).await },
                )
            };
            let put = s.send(&rig, 51, 1, put_object(&b, b"k", body(s.fid()), "e", ABSENT)).await;
            match deleter.await {
                Ok(_) => assert_eq!(put, Err(CasError::NoSuchBucket("b".into()))),
                other => {
                    assert_eq!(other, Err(CasError::BucketNotEmpty("b".into())));
                    assert_eq!(put, published("e"));
                }
            }
        });
    }
}

#[test]
fn a_retry_gets_its_first_answer_across_a_crash_a_refusal_too() {
    on_virtual_time(1, |ctx| async move {
        let mut rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let b = s.bucket(&rig, "b").await;
        let put = |fid| put_object(&b, b"k", body(fid), "1", ABSENT);
        let (first, second) = (s.fid(), s.fid());
        assert_eq!(s.send(&rig, 10, 1, put(first)).await, published("1"));
        assert_eq!(s.send(&rig, 11, 1, put(second)).await, Err(CasError::PreconditionFailed));
        s.send(
            &rig,
            12,
            1,
            Command::DeleteObject { bucket: "b".into(), key: b"k".to_vec(), condition: Condition::default() },
        )
        .await
        .unwrap();
        rig.restart().await;
        // Judged anew both would come out the other way round.
        assert_eq!(s.send(&rig, 10, 1, put(first)).await, published("1"));
        assert_eq!(s.send(&rig, 11, 1, put(second)).await, Err(CasError::PreconditionFailed));
        assert_eq!(rig.object("b", "k").await, Err(CasError::NoSuchKey));
        // Acknowledged ones are refused, for ever.
        assert_eq!(s.send(&rig, 13, 12, create_bucket("c")).await.map(drop), Ok(()));
        for id in 1..=12 {
            assert_eq!(s.send(&rig, id, 0, create_bucket("d")).await, Err(CasError::Acknowledged(id)));
        }
        rig.restart().await;
        assert_eq!(s.send(&rig, 10, 0, put(first)).await, Err(CasError::Acknowledged(10)));
        assert!(matches!(s.send(&rig, 14, 14, put(first)).await, Err(CasError::Malformed(_))));
        assert_eq!(s.send(&rig, 1_000_000, 13, put(first)).await, Err(CasError::Busy));
    });
}

#[test]
fn a_body_is_named_once_and_by_its_own_session() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let (s, other) = (rig.session("gw", 1).await, rig.session("gw2", 1).await);
        let b = s.bucket(&rig, "b").await;
        let fid = s.fid();
        s.put(&rig, &b, "k", fid).await.unwrap();
        assert!(matches!(s.put(&rig, &b, "k2", fid).await, Err(CasError::Malformed(_))));
        assert!(matches!(s.put(&rig, &b, "k2", other.fid()).await, Err(CasError::Malformed(_))));
        assert!(matches!(s.put(&rig, &b, "k2", Fid::new(s.id, 0)).await, Err(CasError::Malformed(_))));
        // The dead are not named again, and the named do not die.
        let dead = s.fid();
        s.commit(&rig, Command::Dead { fids: vec![dead, fid] }).await.unwrap();
        assert_eq!(rig.status().await.dead, 1);
        assert!(matches!(s.put(&rig, &b, "k2", dead).await, Err(CasError::Malformed(_))));
        let foreign = Command::Dead { fids: vec![other.fid()] };
        assert!(matches!(s.commit(&rig, foreign).await, Err(CasError::Malformed(_))));
        // A copy onto itself names the same body again: nothing dies.
        s.commit(&rig, put_object(&b, b"k", body(fid), "new", Condition::default())).await.unwrap();
        assert_eq!(rig.status().await.dead, 1);
        s.put(&rig, &b, "k", s.fid()).await.unwrap();
        assert_eq!(rig.status().await.dead, 2);
    });
}

#[test]
fn keys_and_records_have_a_largest_size() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let b = s.bucket(&rig, "b").await;
        let put = |key: Vec<u8>, record| {
            let condition = Condition::default();
            let command = Command::PutObject { bucket: "b".into(), bucket_id: b.id, key, record, condition };
            s.commit(&rig, command)
        };
        let mut large = record(body(s.fid()), "e");
        large.meta.user = vec![("n".into(), "v".repeat(4 << 10))];
        assert_eq!(put(vec![0xff; 1024], large.clone()).await, published("e"));
        large.body = body(s.fid());
        assert!(matches!(put(vec![b'k'; 1025], large.clone()).await, Err(CasError::TooLarge(_))));
        large.meta.user = vec![("n".into(), "v".repeat(6 << 10))];
        assert!(matches!(put(vec![b'k'], large.clone()).await, Err(CasError::TooLarge(_))));
        assert!(matches!(put(Vec::new(), record(Body::Empty, "e")).await, Err(CasError::Malformed(_))));
        let mut lying = record(body(s.fid()), "e");
        lying.size = 11;
        assert!(matches!(put(vec![b'k'], lying).await, Err(CasError::Malformed(_))));
        assert_eq!(put(vec![b'k'], record(Body::Empty, "e")).await, published("e"));
        let many = Command::DeleteObjects { bucket: "b".into(), keys: vec![vec![b'k']; 101] };
        assert!(matches!(s.commit(&rig, many).await, Err(CasError::TooLarge(_))));
        let keys = vec![vec![b'k'], vec![b'x'], vec![b'k']];
        let many = Command::DeleteObjects { bucket: "b".into(), keys };
        assert_eq!(s.commit(&rig, many).await, Ok(Outcome::Deleted(vec![true, false, false])));
    });
}

#[test]
fn the_longest_delete_of_the_longest_keys_is_one_commit() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let b = s.bucket(&rig, "b").await;
        let keys: Vec<Vec<u8>> = (0..100u8).map(|i| [vec![b'k'; 1023], vec![i]].concat()).collect();
        for key in &keys {
            s.commit(&rig, put_object(&b, key, body(s.fid()), "e", ABSENT)).await.unwrap();
        }
        let outcome = s.commit(&rig, Command::DeleteObjects { bucket: "b".into(), keys }).await;
        assert_eq!(outcome, Ok(Outcome::Deleted(vec![true; 100])));
        assert_eq!(rig.status().await.dead, 100);
    });
}

#[test]
fn complete_publishes_the_parts_it_names_and_answers_the_same_again() {
    on_virtual_time(1, |ctx| async move {
        let mut rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let b = s.bucket(&rig, "b").await;
        let upload = Uuid::from_u128(7);
        s.create_upload(&rig, &b, "k", upload).await;
        for number in [1, 2, 3, 9, 10] {
            s.put_part(&rig, &b, "k", upload, number, s.fid()).await.unwrap();
        }
        assert!(matches!(s.put_part(&rig, &b, "k", upload, 0, s.fid()).await, Err(CasError::Malformed(_))));
        assert!(matches!(
            s.put_part(&rig, &b, "k", upload, 10_001, s.fid()).await,
            Err(CasError::Malformed(_))
        ));
        let wrong_key = s.put_part(&rig, &b, "x", upload, 1, s.fid()).await;
        assert_eq!(wrong_key, Err(CasError::NoSuchUpload(upload)));

        let parts = rig.parts(upload).await.unwrap();
        let complete = |numbers: &[u16]| complete_upload(&b, "k", upload, numbers, &parts);
        assert_eq!(s.commit(&rig, complete(&[1, 4])).await, Err(CasError::InvalidPart), "4 is not there");
        // A part is replaced after the gateway read it.
        let mut old = parts.clone();
        old[0].etag = "old".into();
        let stale = complete_upload(&b, "k", upload, &[1, 2], &old);
        assert_eq!(s.commit(&rig, stale).await, Err(CasError::InvalidPart));

        assert_eq!(s.commit(&rig, complete(&[1, 3, 9])).await, published("complete-3"));
        let numbers = |parts: Vec<cobalt_rpc::proto::record::PartRecord>| -> Vec<u16> {
            parts.iter().map(|part| part.number).collect()
        };
        assert_eq!(numbers(rig.parts(upload).await.unwrap()), [1, 3, 9]);
        assert_eq!(rig.object("b", "k").await.unwrap().body, Body::Parts { upload, count: 3 });
        let late = s.put_part(&rig, &b, "k", upload, 4, s.fid()).await;
        assert_eq!(late, Err(CasError::NoSuchUpload(upload)));
        // Another request with the same Complete, though the first was acknowledged long ago.
        rig.restart().await;
        assert_eq!(s.commit(&rig, complete(&[1, 3, 9])).await, published("complete-3"));
        assert_eq!(s.commit(&rig, complete(&[1, 3])).await, Err(CasError::NoSuchUpload(upload)));
        let abort = Command::AbortUpload { bucket: "b".into(), key: b"k".to_vec(), upload };
        assert_eq!(s.commit(&rig, abort).await, Err(CasError::NoSuchUpload(upload)));
        // A GET that still reads the replaced object finds its parts.
        s.put(&rig, &b, "k", s.fid()).await.unwrap();
        assert_eq!(numbers(rig.parts(upload).await.unwrap()), [1, 3, 9]);
    });
}

#[test]
fn complete_and_a_part_that_comes_meanwhile_agree_on_an_order() {
    for seed in 0..20 {
        on_virtual_time(seed, |ctx| async move {
            let rig = Rc::new(Rig::new(&ctx).await);
            let s = Rc::new(rig.session("gw", 1).await);
            let b = s.bucket(&rig, "b").await;
            let upload = Uuid::from_u128(7);
            s.create_upload(&rig, &b, "k", upload).await;
            s.put_part(&rig, &b, "k", upload, 1, s.fid()).await.unwrap();
            let parts = rig.parts(upload).await.unwrap();
            let late = {
                let (rig, s, b) = (rig.clone(), s.clone(), b.clone());
                ctx.spawn(async move {
                    for number in 2..6 {
                        s.put_part(&rig, &b, "k", upload, number, s.fid()).await?;
                    }
                    Ok(Outcome::Done)
                })
            };
            let command = complete_upload(&b, "k", upload, &[1], &parts);
            assert_eq!(s.send(&rig, 1000, 1, command).await, published("complete-1"));
            let late = late.await;
            assert!(late.is_ok() || late == Err(CasError::NoSuchUpload(upload)), "{late:?}");
            assert_eq!(rig.parts(upload).await.unwrap().len(), 1);
        });
    }
}

#[test]
fn an_aborted_upload_takes_nothing_more() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let b = s.bucket(&rig, "b").await;
        let upload = Uuid::from_u128(7);
        s.create_upload(&rig, &b, "k", upload).await;
        s.put_part(&rig, &b, "k", upload, 1, s.fid()).await.unwrap();
        let abort = || Command::AbortUpload { bucket: "b".into(), key: b"k".to_vec(), upload };
        assert_eq!(s.commit(&rig, abort()).await, Ok(Outcome::Done));
        let gone = CasError::NoSuchUpload(upload);
        assert_eq!(s.commit(&rig, abort()).await, Err(gone.clone()));
        assert_eq!(s.put_part(&rig, &b, "k", upload, 1, s.fid()).await, Err(gone.clone()));
        assert_eq!(rig.parts(upload).await, Err(gone.clone()));
        assert_eq!(s.complete(&rig, &b, "k", upload, &[1]).await, Err(gone));
    });
}

#[test]
fn a_process_that_opens_a_session_fences_its_last_one() {
    on_virtual_time(1, |ctx| async move {
        let mut rig = Rig::new(&ctx).await;
        let first = rig.session("gw", 1).await;
        assert_eq!(rig.session("gw", 1).await.id, first.id, "a repeat gets the same session");
        let b = first.bucket(&rig, "b").await;
        let other = rig.session("gw2", 1).await;
        let second = rig.session("gw", 2).await;
        assert_ne!(first.id, second.id);
        let fenced = CasError::Fenced(first.id);
        assert_eq!(first.put(&rig, &b, "k", first.fid()).await, Err(fenced.clone()));
        assert!(matches!(second.put(&rig, &b, "k", first.fid()).await, Err(CasError::Malformed(_))));
        assert_eq!(rig.beat_idle(&first).await, Err(fenced.clone()));
        other.put(&rig, &b, "k", other.fid()).await.unwrap();
        rig.restart().await;
        // The first opening, come late, opens nothing.
        let late = OpenSession { process: "gw".into(), nonce: 1 };
        assert_eq!(rig.cas.open_session(late).await.map(drop), Err(fenced));
        second.put(&rig, &b, "k", second.fid()).await.unwrap();
        rig.cas.close_session(CloseSession { session: second.id }).await.unwrap();
        assert_eq!(second.put(&rig, &b, "k", second.fid()).await, Err(CasError::Fenced(second.id)));
        let nobody = Heartbeat { session: SessionId(77), oldest: Position::default() };
        assert_eq!(rig.cas.heartbeat(nobody).await, Err(CasError::NoSession(SessionId(77))));
        let fenced: Vec<bool> = rig.status().await.sessions.iter().map(|row| row.fenced).collect();
        assert_eq!(fenced, [true, false, true]);
    });
}

#[test]
fn credentials_and_pools_are_kept() {
    on_virtual_time(1, |ctx| async move {
        let mut rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let key = KeyRecord {
            access_key: "AK".into(),
            sealed_secret: vec![1; 40],
            account: "me".into(),
            created: UnixMillis(1),
            enabled: true,
        };
        let exists = CasError::AccessKeyExists("AK".into());
        assert_eq!(s.commit(&rig, Command::CreateKey(key.clone())).await, Ok(Outcome::Done));
        assert_eq!(s.commit(&rig, Command::CreateKey(key.clone())).await, Err(exists));
        let off = Command::EnableKey { access_key: "AK".into(), enabled: false };
        s.commit(&rig, off).await.unwrap();
        rig.restart().await;
        let found = rig.ask(Query::Key { access_key: "AK".into() }).await;
        assert_eq!(found, Ok(Answer::Key(KeyRecord { enabled: false, ..key })));
        let delete = || Command::DeleteKey { access_key: "AK".into() };
        s.commit(&rig, delete()).await.unwrap();
        assert_eq!(s.commit(&rig, delete()).await, Err(CasError::NoSuchAccessKey("AK".into())));

        assert_eq!(s.commit(&rig, set_pool()).await, Ok(Outcome::PoolSet { version: 1 }));
        assert_eq!(s.commit(&rig, set_pool()).await, Ok(Outcome::PoolSet { version: 1 }));
        let target = PoolTarget { target: Uuid::from_u128(10), name: "t".into(), process: "p".into() };
        let twice = Command::SetPool { targets: vec![target.clone(), target.clone()] };
        assert!(matches!(s.commit(&rig, twice).await, Err(CasError::Malformed(_))));
        let other = Command::SetPool { targets: vec![target] };
        assert_eq!(s.commit(&rig, other).await, Ok(Outcome::PoolSet { version: 2 }));
        let Ok(Answer::Cluster { incarnation, pools }) = rig.ask(Query::Cluster).await else { panic!() };
        assert_eq!(incarnation, rig.cas.incarnation());
        assert_eq!(
            pools.iter().map(|pool| (pool.version, pool.targets.len())).collect::<Vec<_>>(),
            [(1, 3), (2, 1)]
        );
    });
}

/// A leader that moves when the test says so.
struct Moving(Cell<bool>);

impl Leadership for Moving {
    fn lead(&self) -> Result<(), Option<String>> {
        if self.0.get() { Ok(()) } else { Err(Some("p1".into())) }
    }
}

#[test]
fn a_replica_that_does_not_lead_answers_nothing() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let leader = Rc::new(Moving(Cell::new(true)));
        let cas = Cas::start(ctx.clone(), rig.ctg(), "t0", leader.clone()).await.unwrap();
        cas.ask(&Query::Cluster).await.unwrap();
        leader.0.set(false);
        let no = CasError::NotLeader { hint: Some("p1".into()) };
        assert_eq!(cas.ask(&Query::Cluster).await.map(drop), Err(no.clone()));
        let open = OpenSession { process: "gw9".into(), nonce: 1 };
        assert_eq!(cas.open_session(open).await.map(drop), Err(no.clone()));
        let beat = Heartbeat { session: s.id, oldest: Position::default() };
        assert_eq!(cas.heartbeat(beat).await.map(drop), Err(no.clone()));
        let commit = Commit { session: s.id, request: 9, acknowledged: 0, command: create_bucket("b") };
        assert_eq!(cas.commit(commit.clone()).await.map(drop), Err(no));
        leader.0.set(true);
        // The client does not know whether it was done; its repeat tells.
        cas.commit(commit).await.unwrap();
    });
}

#[test]
fn the_term_rises_at_each_start_and_the_incarnation_stays() {
    on_virtual_time(1, |ctx| async move {
        let mut rig = Rig::new(&ctx).await;
        let (incarnation, mut last) = (rig.cas.incarnation(), rig.cas.position());
        for _ in 0..3 {
            rig.restart().await;
            let now = rig.cas.position();
            assert!(now.term == last.term + 1 && now.index > last.index, "{last:?} {now:?}");
            assert_eq!(rig.cas.incarnation(), incarnation);
            last = now;
        }
    });
}
