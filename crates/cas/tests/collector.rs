//! Nothing is orphaned, and nothing living is collected (I9a).

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod rig;

use cobalt_base::{Fid, SessionId};
use cobalt_rpc::proto::cas::{Answer, CasError, CloseSession, Command, Condition, Outcome, Query};
use cobalt_rpc::proto::record::{Body, BucketRecord};
use proptest::prelude::{Strategy, prop};
use proptest::{prop_oneof, proptest};
use rig::{
    Rig, Session, TARGETS, TargetDouble, body, complete_upload, on_virtual_time, put_object, set_pool, settle,
};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(60);

async fn cluster(ctx: &cobalt_reactor::Ctx) -> (Rig, Session, BucketRecord, Rc<TargetDouble>) {
    let rig = Rig::new(ctx).await;
    let s = rig.session("gw", 1).await;
    s.commit(&rig, set_pool()).await.unwrap();
    let b = s.bucket(&rig, "b").await;
    (rig, s, b, TargetDouble::new())
}

/// Writes a body on all targets, as a PUT does before its publish.
fn write(rig: &Rig, s: &Session, targets: &TargetDouble) -> Fid {
    let fid = s.fid();
    targets.write(fid, rig.cas.incarnation());
    fid
}

#[test]
fn what_an_old_get_reads_is_kept_until_it_ends() {
    on_virtual_time(1, |ctx| async move {
        let (rig, s, b, targets) = cluster(&ctx).await;
        rig.collect(&targets);
        let reader = rig.session("reader", 1).await;
        let fid = write(&rig, &s, &targets);
        s.put(&rig, &b, "k", fid).await.unwrap();
        let looked_up = rig.cas.ask(&Query::Object { bucket: "b".into(), key: b"k".to_vec() }).await.unwrap();
        s.put(&rig, &b, "k", write(&rig, &s, &targets)).await.unwrap();
        // The reader has not said a word yet.
        assert!(!settle(&rig, &[&s], LONG).await);
        assert_eq!(targets.holds(fid), 3);
        for _ in 0..50 {
            rig.beat(&reader, looked_up.position).await.unwrap();
            rig.beat_idle(&s).await.unwrap();
            ctx.sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(targets.holds(fid), 3, "a GET that looked up before the overwrite still runs");
        assert!(settle(&rig, &[&s, &reader], LONG).await);
        assert_eq!(targets.holds(fid), 0);
        assert_eq!(rig.status().await.dead, 0);
    });
}

#[test]
fn after_a_start_every_session_must_speak_again() {
    on_virtual_time(1, |ctx| async move {
        let (mut rig, s, b, targets) = cluster(&ctx).await;
        let reader = rig.session("reader", 1).await;
        let fid = write(&rig, &s, &targets);
        s.put(&rig, &b, "k", fid).await.unwrap();
        s.delete(&rig, &b, "k").await.unwrap();
        rig.beat_idle(&s).await.unwrap();
        rig.beat_idle(&reader).await.unwrap();
        rig.restart().await;
        rig.collect(&targets);
        assert!(!settle(&rig, &[&s], LONG).await);
        assert_eq!(targets.holds(fid), 3, "what was said to the last term does not count");
        assert!(settle(&rig, &[&s, &reader], LONG).await);
        assert_eq!(targets.holds(fid), 0);
    });
}

#[test]
fn a_session_that_says_goodbye_holds_nothing_up() {
    on_virtual_time(1, |ctx| async move {
        let (rig, s, b, targets) = cluster(&ctx).await;
        rig.collect(&targets);
        let silent = rig.session("silent", 1).await;
        s.put(&rig, &b, "k", write(&rig, &s, &targets)).await.unwrap();
        s.delete(&rig, &b, "k").await.unwrap();
        assert!(!settle(&rig, &[&s], LONG).await);
        rig.cas.close_session(CloseSession { session: silent.id }).await.unwrap();
        assert!(settle(&rig, &[&s], LONG).await);
        assert!(targets.is_empty());
        assert_eq!(rig.status().await.sessions.len(), 1, "a swept session is forgotten");
    });
}

#[test]
fn a_session_that_never_speaks_again_is_fenced_and_one_that_does_is_not() {
    on_virtual_time(1, |ctx| async move {
        let (mut rig, s, b, targets) = cluster(&ctx).await;
        rig.collect(&targets);
        let silent = rig.session("silent", 1).await;
        let orphan = write(&rig, &silent, &targets);
        s.put(&rig, &b, "k", write(&rig, &s, &targets)).await.unwrap();
        s.delete(&rig, &b, "k").await.unwrap();
        assert!(!settle(&rig, &[&s], Duration::from_secs(290)).await, "its lease runs");
        // A start renews every lease.
        rig.restart().await;
        rig.collect(&targets);
        assert!(!settle(&rig, &[&s], Duration::from_secs(290)).await);
        assert_eq!(targets.holds(orphan), 3);
        assert!(settle(&rig, &[&s], LONG).await);
        assert!(targets.is_empty());
        let sessions = rig.status().await.sessions;
        assert!(sessions.iter().all(|row| row.session == s.id), "{sessions:?}");
        assert!(matches!(rig.beat_idle(&silent).await, Err(CasError::NoSession(_))));
        s.put(&rig, &b, "k", write(&rig, &s, &targets)).await.unwrap();
    });
}

#[test]
fn a_session_that_opens_during_a_walk_is_waited_for() {
    on_virtual_time(1, |ctx| async move {
        let (rig, s, b, targets) = cluster(&ctx).await;
        for i in 0..20 {
            s.put(&rig, &b, &format!("k{i}"), write(&rig, &s, &targets)).await.unwrap();
            s.delete(&rig, &b, &format!("k{i}")).await.unwrap();
        }
        rig.cas.close_session(CloseSession { session: s.id }).await.unwrap();
        rig.collect(&targets);
        // With no session at all the walk has no bound to wait for; it is under way.
        while targets.deleted.borrow().is_empty() {
            ctx.sleep(Duration::from_micros(100)).await;
        }
        assert!(targets.deleted.borrow().len() < 20);
        let reader = rig.session("reader", 1).await;
        let fid = write(&rig, &reader, &targets);
        reader.put(&rig, &b, "x", fid).await.unwrap();
        reader.delete(&rig, &b, "x").await.unwrap();
        ctx.sleep(Duration::from_secs(10)).await;
        assert_eq!(targets.holds(fid), 3, "a GET of the new session may read it");
        assert!(settle(&rig, &[&reader], LONG).await);
        assert!(targets.is_empty());
    });
}

#[test]
fn an_entry_is_kept_until_every_target_has_confirmed() {
    on_virtual_time(1, |ctx| async move {
        let (mut rig, s, b, targets) = cluster(&ctx).await;
        rig.collect(&targets);
        targets.down.borrow_mut().insert(TARGETS[1]);
        let fids: Vec<Fid> = (0..5).map(|_| write(&rig, &s, &targets)).collect();
        for (i, fid) in fids.iter().enumerate() {
            s.put(&rig, &b, &format!("k{i}"), *fid).await.unwrap();
            s.delete(&rig, &b, &format!("k{i}")).await.unwrap();
        }
        assert!(!settle(&rig, &[&s], LONG).await);
        for fid in &fids {
            assert_eq!(targets.holds(*fid), 1, "the others have freed theirs");
        }
        let status = rig.status().await;
        assert_eq!(status.dead, 5);
        assert!(status.collector_note.is_some_and(|note| note.contains("it is down")));
        rig.restart().await;
        rig.collect(&targets);
        assert!(!settle(&rig, &[&s], LONG).await);
        targets.down.borrow_mut().clear();
        assert!(settle(&rig, &[&s], LONG).await);
        assert!(targets.is_empty());
        assert_eq!(rig.status().await.collector_note, None);
    });
}

#[test]
fn a_fenced_sessions_orphan_is_swept_and_what_is_named_is_spared() {
    on_virtual_time(1, |ctx| async move {
        let (rig, s, b, targets) = cluster(&ctx).await;
        rig.collect(&targets);
        let named = write(&rig, &s, &targets);
        s.put(&rig, &b, "k", named).await.unwrap();
        let part = write(&rig, &s, &targets);
        let upload = Uuid::from_u128(5);
        s.create_upload(&rig, &b, "u", upload).await;
        s.put_part(&rig, &b, "u", upload, 1, part).await.unwrap();
        let orphans: Vec<Fid> = (0..7).map(|_| write(&rig, &s, &targets)).collect();
        let other = rig.session("other", 1).await;
        let unpublished = write(&rig, &other, &targets);
        assert!(settle(&rig, &[&s, &other], LONG).await, "a living session's fids are its own matter");
        assert_eq!(targets.holds(orphans[0]), 3);

        let next = rig.session("gw", 2).await;
        assert_eq!(s.put(&rig, &b, "late", orphans[0]).await, Err(CasError::Fenced(s.id)));
        assert!(settle(&rig, &[&next, &other], LONG).await);
        assert!(orphans.iter().all(|fid| targets.holds(*fid) == 0));
        assert_eq!((targets.holds(named), targets.holds(part), targets.holds(unpublished)), (3, 3, 3));
        assert!(TARGETS.iter().all(|target| targets.fenced.borrow().contains(&(*target, s.id))));
        let left: Vec<SessionId> = rig.status().await.sessions.iter().map(|row| row.session).collect();
        assert_eq!(left, [other.id, next.id]);
        assert_eq!(s.put(&rig, &b, "late", orphans[0]).await, Err(CasError::NoSession(s.id)));
    });
}

#[test]
fn cobs_of_another_catalogue_stop_the_collector() {
    on_virtual_time(1, |ctx| async move {
        let (rig, s, _, targets) = cluster(&ctx).await;
        rig.collect(&targets);
        let foreign = s.fid();
        targets.write(foreign, rig.cas.incarnation() ^ 1);
        let next = rig.session("gw", 2).await;
        assert!(!settle(&rig, &[&next], LONG).await);
        assert_eq!(targets.holds(foreign), 3);
        let note = rig.status().await.collector_note.unwrap();
        assert!(note.contains("incarnation"), "{note}");
    });
}

#[test]
fn parts_die_with_their_upload_and_the_others_of_a_completed_one_at_once() {
    on_virtual_time(1, |ctx| async move {
        let (rig, s, b, targets) = cluster(&ctx).await;
        rig.collect(&targets);
        let mut parts = BTreeMap::new();
        for (id, key) in [(1, "done"), (2, "aborted"), (3, "left")] {
            let upload = Uuid::from_u128(id);
            s.create_upload(&rig, &b, key, upload).await;
            for number in 1..=9 {
                let fid = write(&rig, &s, &targets);
                s.put_part(&rig, &b, key, upload, number, fid).await.unwrap();
                parts.insert((id, number), fid);
            }
        }
        let done = Uuid::from_u128(1);
        s.complete(&rig, &b, "done", done, &[2, 4, 6]).await.unwrap();
        let abort =
            Command::AbortUpload { bucket: "b".into(), key: b"aborted".to_vec(), upload: Uuid::from_u128(2) };
        s.commit(&rig, abort).await.unwrap();
        assert!(settle(&rig, &[&s], LONG).await);
        for ((id, number), fid) in &parts {
            let lives = *id == 3 || (*id == 1 && [2, 4, 6].contains(number));
            assert_eq!(targets.holds(*fid), if lives { 3 } else { 0 }, "part {number} of {id}");
        }
        assert_eq!(rig.parts(done).await.unwrap().len(), 3);
        // The object is replaced; then its bucket goes while an upload is still open in it.
        s.put(&rig, &b, "done", write(&rig, &s, &targets)).await.unwrap();
        assert!(settle(&rig, &[&s], LONG).await);
        assert_eq!(rig.parts(done).await, Err(CasError::NoSuchUpload(done)));
        s.delete(&rig, &b, "done").await.unwrap();
        s.commit(&rig, Command::DeleteBucket { name: "b".into() }).await.unwrap();
        assert!(settle(&rig, &[&s], LONG).await);
        assert!(targets.is_empty());
    });
}

/// A scene with all kinds of dead: returns what must stay.
async fn all_kinds_of_dead(
    rig: &Rig,
    s: &Session,
    b: &BucketRecord,
    targets: &TargetDouble,
) -> BTreeSet<Fid> {
    let keep = write(rig, s, targets);
    s.put(rig, b, "keep", keep).await.unwrap();
    s.put(rig, b, "k", write(rig, s, targets)).await.unwrap();
    s.delete(rig, b, "k").await.unwrap();
    s.commit(rig, Command::Dead { fids: vec![write(rig, s, targets)] }).await.unwrap();
    let upload = Uuid::from_u128(1);
    s.create_upload(rig, b, "u", upload).await;
    let parts: Vec<Fid> = (0..5).map(|_| write(rig, s, targets)).collect();
    for (number, fid) in (1..).zip(&parts) {
        s.put_part(rig, b, "u", upload, number, *fid).await.unwrap();
    }
    s.complete(rig, b, "u", upload, &[1, 5]).await.unwrap();
    let gone = s.bucket(rig, "gone").await;
    for id in 2..6 {
        s.create_upload(rig, &gone, "x", Uuid::from_u128(id)).await;
        s.put_part(rig, &gone, "x", Uuid::from_u128(id), 1, write(rig, s, targets)).await.unwrap();
    }
    s.commit(rig, Command::DeleteBucket { name: "gone".into() }).await.unwrap();
    write(rig, s, targets);
    BTreeSet::from([keep, parts[0], parts[4]])
}

#[test]
fn a_collector_that_dies_at_any_step_is_resumed() {
    let mut calls = 1;
    for dies_at in 0.. {
        if dies_at > calls {
            assert!(calls >= 25, "the scene is too small: {calls} calls");
            return;
        }
        calls = on_virtual_time(dies_at, move |ctx| async move {
            let (mut rig, s, b, targets) = cluster(&ctx).await;
            let keep = all_kinds_of_dead(&rig, &s, &b, &targets).await;
            let next = rig.session("gw", 2).await;
            targets.hang_after.set(Some(dies_at));
            rig.collect(&targets);
            let _ = settle(&rig, &[&next], Duration::from_secs(5)).await;
            rig.restart().await;
            targets.hang_after.set(None);
            rig.collect(&targets);
            assert!(settle(&rig, &[&next], LONG).await, "died at call {dies_at}");
            for target in TARGETS {
                let held: BTreeSet<Fid> = targets.cobs.borrow()[&target].keys().copied().collect();
                assert_eq!(held, keep, "died at call {dies_at}");
            }
            targets.calls.get()
        });
    }
}

#[test]
fn a_collector_that_dies_at_any_time_is_resumed() {
    for millis in 0..120 {
        on_virtual_time(millis, move |ctx| async move {
            let (mut rig, s, b, targets) = cluster(&ctx).await;
            let keep = all_kinds_of_dead(&rig, &s, &b, &targets).await;
            let next = rig.session("gw", 2).await;
            for _ in 0..3 {
                rig.collect(&targets);
                rig.beat_idle(&next).await.unwrap();
                ctx.sleep(Duration::from_millis(millis)).await;
                rig.restart().await;
            }
            rig.collect(&targets);
            assert!(settle(&rig, &[&next], LONG).await);
            for target in TARGETS {
                let held: BTreeSet<Fid> = targets.cobs.borrow()[&target].keys().copied().collect();
                assert_eq!(held, keep, "died after {millis} ms");
            }
        });
    }
}

/// What a client may do to two keys and two uploads.
#[derive(Clone, Debug)]
enum Act {
    Put(u8),
    PutIfAbsent(u8),
    Delete(u8),
    DeleteBoth,
    FailPut,
    Create(u8),
    Part(u8, u16),
    Complete(u8, u8),
    Abort(u8),
    Beat,
    Crash,
    NewGateway,
    Target(u8),
    Wait,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..2u8).prop_map(Act::Put),
        1 => (0..2u8).prop_map(Act::PutIfAbsent),
        2 => (0..2u8).prop_map(Act::Delete),
        1 => prop::strategy::Just(Act::DeleteBoth),
        1 => prop::strategy::Just(Act::FailPut),
        3 => (0..2u8).prop_map(Act::Create),
        6 => ((0..2u8), (1..6u16)).prop_map(|(u, n)| Act::Part(u, n)),
        3 => ((0..2u8), (1..32u8)).prop_map(|(u, n)| Act::Complete(u, n)),
        1 => (0..2u8).prop_map(Act::Abort),
        4 => prop::strategy::Just(Act::Beat),
        1 => prop::strategy::Just(Act::Crash),
        1 => prop::strategy::Just(Act::NewGateway),
        1 => (0..3u8).prop_map(Act::Target),
        2 => prop::strategy::Just(Act::Wait),
    ]
}

/// A client that does the acts, and what it knows.
struct Model {
    rig: Rig,
    s: Session,
    b: BucketRecord,
    targets: Rc<TargetDouble>,
    uploads: [Option<Uuid>; 2],
    drawn: u128,
}

impl Model {
    async fn new(ctx: &cobalt_reactor::Ctx) -> Model {
        let (rig, s, b, targets) = cluster(ctx).await;
        rig.collect(&targets);
        Model { rig, s, b, targets, uploads: [None; 2], drawn: 100 }
    }

    /// Publishes a fresh body; one that was refused is declared dead, as a client does.
    async fn publish(&self, command: impl FnOnce(Body) -> Command) {
        let fid = write(&self.rig, &self.s, &self.targets);
        if self.s.commit(&self.rig, command(body(fid))).await.is_err() {
            self.s.commit(&self.rig, Command::Dead { fids: vec![fid] }).await.unwrap();
        }
    }

    async fn act(&mut self, act: Act) {
        let Model { rig, s, b, targets, .. } = &*self;
        let key = |i: u8| format!("k{i}");
        let upload = |i: u8| self.uploads[usize::from(i)].unwrap_or(Uuid::nil());
        match act {
            Act::Put(i) => {
                self.publish(|body| put_object(b, key(i).as_bytes(), body, "e", Condition::default())).await;
            }
            Act::PutIfAbsent(i) => {
                let condition = Condition { absent: true, if_match: None };
                self.publish(|body| put_object(b, key(i).as_bytes(), body, "e", condition)).await;
            }
            Act::Delete(i) => drop(s.delete(rig, b, &key(i)).await.unwrap()),
            Act::DeleteBoth => {
                let keys = vec![key(0).into(), key(1).into(), key(0).into()];
                s.commit(rig, Command::DeleteObjects { bucket: "b".into(), keys }).await.unwrap();
            }
            Act::FailPut => {
                let fids = vec![write(rig, s, targets), write(rig, s, targets)];
                s.commit(rig, Command::Dead { fids }).await.unwrap();
            }
            Act::Create(i) => {
                if self.uploads[usize::from(i)].is_none() {
                    let id = Uuid::from_u128(self.drawn);
                    s.create_upload(rig, b, &key(i), id).await;
                    self.drawn += 1;
                    self.uploads[usize::from(i)] = Some(id);
                }
            }
            Act::Part(i, number) => {
                let part = |body| cobalt_rpc::proto::record::PartRecord {
                    number,
                    size: 10,
                    modified: cobalt_base::UnixMillis(1),
                    etag: "p".into(),
                    body,
                    checksums: Vec::new(),
                };
                self.publish(|body| Command::PutPart {
                    bucket: "b".into(),
                    key: key(i).into(),
                    upload: upload(i),
                    part: part(body),
                })
                .await;
            }
            Act::Complete(i, bits) => {
                let id = upload(i);
                let Ok(parts) = rig.parts(id).await else { return };
                let numbers: Vec<u16> = (1..6).filter(|n| bits >> (n - 1) & 1 == 1).collect();
                let done = s.commit(rig, complete_upload(b, &key(i), id, &numbers, &parts)).await;
                if matches!(done, Ok(Outcome::Published { .. })) {
                    self.uploads[usize::from(i)] = None;
                }
            }
            Act::Abort(i) => {
                let command =
                    Command::AbortUpload { bucket: "b".into(), key: key(i).into(), upload: upload(i) };
                let _ = s.commit(rig, command).await;
                self.uploads[usize::from(i)] = None;
            }
            Act::Beat => drop(rig.beat_idle(s).await.unwrap()),
            Act::Crash => {
                self.rig.restart().await;
                self.rig.collect(&self.targets);
            }
            Act::NewGateway => {
                write(rig, s, targets);
                self.drawn += 1;
                self.s = self.rig.session("gw", self.drawn as u64).await;
            }
            Act::Target(i) => {
                let target = TARGETS[usize::from(i)];
                let mut down = targets.down.borrow_mut();
                if !down.remove(&target) {
                    down.insert(target);
                }
            }
            Act::Wait => rig.ctx.sleep(Duration::from_millis(300)).await,
        }
    }

    /// Fids that records name, as GETs see them.
    async fn named(&self) -> BTreeSet<Fid> {
        let mut named = BTreeSet::new();
        let mut uploads: Vec<Uuid> = self.uploads.iter().flatten().copied().collect();
        for key in ["k0", "k1"] {
            match self.rig.object("b", key).await.map(|object| object.body) {
                Ok(Body::Single(extent)) => assert!(named.insert(extent.fid)),
                Ok(Body::Parts { upload, count }) => {
                    assert_eq!(self.rig.parts(upload).await.unwrap().len(), count as usize);
                    uploads.push(upload);
                }
                other => assert_eq!(other, Err(CasError::NoSuchKey)),
            }
        }
        for upload in uploads {
            for part in self.rig.parts(upload).await.unwrap() {
                let Body::Single(extent) = part.body else { panic!("an empty part") };
                assert!(named.insert(extent.fid), "a fid has one name");
            }
        }
        named
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(200))]
    #[test]
    fn every_fid_is_named_or_dead_or_collected(acts in prop::collection::vec(act(), 1..60)) {
        on_virtual_time(1, |ctx| async move {
            let mut model = Model::new(&ctx).await;
            for act in acts {
                model.act(act).await;
                for fid in model.named().await {
                    assert_eq!(model.targets.holds(fid), 3, "a living fid was collected");
                    assert!(!model.targets.deleted.borrow().contains(&fid));
                }
            }
            // The last gateway dies too: what remains is what is named, and nothing else.
            model.targets.down.borrow_mut().clear();
            model.act(Act::NewGateway).await;
            assert!(settle(&model.rig, &[&model.s], LONG).await);
            let named = model.named().await;
            for target in TARGETS {
                let held: Option<BTreeSet<Fid>> =
                    model.targets.cobs.borrow().get(&target).map(|cobs| cobs.keys().copied().collect());
                assert_eq!(held.unwrap_or_default(), named);
            }
            let Ok(Answer::Status(status)) = model.rig.ask(Query::Status).await else { panic!() };
            assert_eq!((status.dead, status.sessions.len(), status.collector_idle), (0, 1, true));
        });
    }
}
