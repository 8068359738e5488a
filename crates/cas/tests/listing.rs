//! Listings against a sorted map: prefixes, delimiters, pages, and writers in between.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod rig;

use cobalt_base::UnixMillis;
use cobalt_rpc::proto::cas::{Answer, Command, Condition, ListRow, PAGE_BYTES_MAX, Page, Query, UploadRow};
use cobalt_rpc::proto::record::{Body, BucketRecord, ObjectMeta, UploadRecord};
use proptest::prelude::{Strategy, any, prop};
use proptest::{prop_assert_eq, proptest};
use rig::{Rig, Session, on_virtual_time, put_object};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Names of few letters, the awkward bytes among them.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, b'/', b'a', b'b', 0xff]), 1..6)
}

fn part_of_name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, b'/', b'a', b'b', 0xff]), 0..3)
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    Key(Vec<u8>),
    Prefix(Vec<u8>),
}

impl Entry {
    fn name(&self) -> &[u8] {
        match self {
            Entry::Key(name) | Entry::Prefix(name) => name,
        }
    }
}

/// What a listing of all of `keys` should say.
fn model(
    keys: &BTreeSet<Vec<u8>>,
    prefix: &[u8],
    after: &[u8],
    inclusive: bool,
    delimiter: &[u8],
) -> Vec<Entry> {
    let mut out = Vec::new();
    for key in keys.iter().filter(|key| key.starts_with(prefix)) {
        let rest = &key[prefix.len()..];
        let cut = rest.windows(delimiter.len().max(1)).position(|w| !delimiter.is_empty() && w == delimiter);
        let entry = match cut {
            Some(at) => Entry::Prefix(key[..prefix.len() + at + delimiter.len()].to_vec()),
            None => Entry::Key(key.clone()),
        };
        let shown = entry.name() > after || (inclusive && entry.name() == after) || after.is_empty();
        if shown && out.last() != Some(&entry) {
            out.push(entry);
        }
    }
    out
}

async fn put(rig: &Rig, s: &Session, bucket: &BucketRecord, key: &[u8]) {
    s.commit(rig, put_object(bucket, key, Body::Empty, "e", Condition::default())).await.unwrap();
}

struct Listing {
    prefix: Vec<u8>,
    delimiter: Vec<u8>,
    limit: u32,
}

impl Listing {
    async fn page(&self, rig: &Rig, after: &[u8], inclusive: bool) -> Page<Entry> {
        let query = Query::List {
            bucket: "b".into(),
            prefix: self.prefix.clone(),
            after: after.to_vec(),
            inclusive,
            delimiter: Some(self.delimiter.clone()),
            limit: self.limit,
        };
        let Ok(Answer::List(page)) = rig.ask(query).await else { panic!("no listing") };
        assert!(page.rows.len() <= self.limit as usize);
        let entry = |row| match row {
            ListRow::Object { key, .. } => Entry::Key(key),
            ListRow::Prefix(prefix) => Entry::Prefix(prefix),
        };
        Page { rows: page.rows.into_iter().map(entry).collect(), more: page.more }
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(200))]
    #[test]
    fn pages_make_the_sorted_map(
        keys in prop::collection::btree_set(name(), 0..40),
        prefix in part_of_name(), after in part_of_name(), delimiter in part_of_name(),
        inclusive in any::<bool>(), limit in 1u32..7,
    ) {
        let expected = model(&keys, &prefix, &after, inclusive, &delimiter);
        let listing = Listing { prefix, delimiter, limit };
        let (got, first) = on_virtual_time(1, |ctx| async move {
            let rig = Rig::new(&ctx).await;
            let s = rig.session("gw", 1).await;
            let bucket = s.bucket(&rig, "b").await;
            let neighbour = s.bucket(&rig, "c").await;
            put(&rig, &s, &neighbour, b"a").await;
            for key in &keys {
                put(&rig, &s, &bucket, key).await;
            }
            let mut page = listing.page(&rig, &after, inclusive).await;
            let first = page.clone();
            let mut got = page.rows.clone();
            while page.more {
                let last = got.last().expect("a page that goes on has rows").name().to_vec();
                page = listing.page(&rig, &last, false).await;
                assert!(!page.rows.is_empty(), "`more` promised rows");
                got.extend(page.rows.clone());
            }
            (got, first)
        });
        prop_assert_eq!(first.more, expected.len() > first.rows.len());
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn writers_in_between_change_nothing_for_the_names_that_stay(
        stay in prop::collection::btree_set(name(), 1..20),
        come_and_go in prop::collection::vec((name(), any::<bool>()), 0..40),
        delimiter in prop::option::of(prop::sample::select(vec![b"/".to_vec()])), limit in 1u32..4,
    ) {
        let listing = Listing { prefix: Vec::new(), delimiter: delimiter.unwrap_or_default(), limit };
        let expected = model(&stay, &[], &[], false, &listing.delimiter);
        let ever: BTreeSet<_> = stay.iter().chain(come_and_go.iter().map(|(key, _)| key)).cloned().collect();
        let possible: BTreeSet<_> = model(&ever, &[], &[], false, &listing.delimiter).into_iter().collect();
        let kept = stay.clone();
        let got = on_virtual_time(1, |ctx| async move {
            let rig = Rig::new(&ctx).await;
            let s = rig.session("gw", 1).await;
            let bucket = s.bucket(&rig, "b").await;
            for key in &stay {
                put(&rig, &s, &bucket, key).await;
            }
            let mut writes = come_and_go.into_iter().filter(|(key, _)| !kept.contains(key));
            let (mut got, mut after): (Vec<Entry>, Vec<u8>) = (Vec::new(), Vec::new());
            loop {
                let page = listing.page(&rig, &after, false).await;
                got.extend(page.rows);
                if !page.more {
                    return got;
                }
                after = got.last().unwrap().name().to_vec();
                for (key, there) in writes.by_ref().take(3) {
                    if there {
                        put(&rig, &s, &bucket, &key).await;
                    } else {
                        let condition = Condition::default();
                        s.commit(&rig, Command::DeleteObject { bucket: "b".into(), key, condition }).await.unwrap();
                    }
                }
            }
        });
        assert!(got.is_sorted_by(|a, b| a.name() < b.name()), "each name once, in order: {got:?}");
        let missing: Vec<_> = expected.iter().filter(|entry| !got.contains(entry)).collect();
        assert!(missing.is_empty(), "{missing:?} are missing from {got:?}");
        assert!(got.iter().all(|entry| possible.contains(entry)));
    }
}

#[test]
fn a_common_prefix_takes_a_seek_and_not_a_scan() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let bucket = s.bucket(&rig, "b").await;
        for directory in 0..4 {
            for file in 0..500 {
                put(&rig, &s, &bucket, format!("{directory}/{file:04}").as_bytes()).await;
            }
        }
        let before = rig.rows_read();
        let listing = Listing { prefix: Vec::new(), delimiter: b"/".to_vec(), limit: 1000 };
        let page = listing.page(&rig, b"", false).await;
        assert_eq!(page.rows.len(), 4);
        assert!(rig.rows_read() - before < 20, "{} rows were read", rig.rows_read() - before);
    });
}

#[test]
fn a_page_ends_before_it_is_too_large_for_a_message() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let bucket = s.bucket(&rig, "b").await;
        for i in 0..200 {
            put(&rig, &s, &bucket, format!("{:01000}{i:03}", 0).as_bytes()).await;
        }
        let listing = Listing { prefix: Vec::new(), delimiter: Vec::new(), limit: 1000 };
        let page = listing.page(&rig, b"", false).await;
        let bytes: usize = page.rows.iter().map(|row| row.name().len()).sum();
        assert!(page.more && bytes <= PAGE_BYTES_MAX && bytes > PAGE_BYTES_MAX / 2, "{bytes}");
        let none = Listing { limit: 0, ..listing };
        assert_eq!(none.page(&rig, b"", false).await, Page { rows: Vec::new(), more: false });
    });
}

#[test]
fn uploads_are_listed_by_key_and_id() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        s.bucket(&rig, "b").await;
        let mut all = BTreeMap::new();
        for (key, id) in [("a", 3), ("a", 1), ("b/x", 2), ("b/y", 9), ("c", 4)] {
            let upload = Uuid::from_u128(id);
            let record = UploadRecord {
                upload,
                key: key.into(),
                initiated: UnixMillis(id as u64),
                meta: ObjectMeta::default(),
                checksum: None,
            };
            s.commit(&rig, Command::CreateUpload { bucket: "b".into(), record }).await.unwrap();
            all.insert((key.as_bytes().to_vec(), upload), ());
        }
        let list = |after_key: Vec<u8>, after_upload, delimiter: Option<&str>| {
            let query = Query::Uploads {
                bucket: "b".into(),
                prefix: Vec::new(),
                after_key,
                after_upload,
                delimiter: delimiter.map(Into::into),
                limit: 2,
            };
            rig.ask(query)
        };
        let (mut got, mut after) = (Vec::new(), (Vec::new(), None));
        loop {
            let Ok(Answer::Uploads(page)) = list(after.0, after.1, None).await else { panic!() };
            for row in page.rows {
                let UploadRow::Upload { key, upload, .. } = row else { panic!() };
                got.push((key, upload));
            }
            if !page.more {
                break;
            }
            let (key, upload) = got.last().cloned().unwrap();
            after = (key, Some(upload));
        }
        assert_eq!(got, all.into_keys().collect::<Vec<_>>());
        let Ok(Answer::Uploads(page)) = list(b"a".to_vec(), Some(Uuid::from_u128(1)), Some("/")).await else {
            panic!()
        };
        assert_eq!(page.rows[1], UploadRow::Prefix(b"b/".to_vec()));
        let Ok(Answer::Uploads(page)) = list(b"b/".to_vec(), None, Some("/")).await else { panic!() };
        assert!(matches!(&page.rows[..], [UploadRow::Upload { key, .. }] if key == b"c") && !page.more);
    });
}

#[test]
fn buckets_keys_and_parts_come_in_pages() {
    on_virtual_time(1, |ctx| async move {
        let rig = Rig::new(&ctx).await;
        let s = rig.session("gw", 1).await;
        let bucket = s.bucket(&rig, "b0").await;
        for i in 1..5 {
            s.bucket(&rig, &format!("b{i}")).await;
        }
        let Ok(Answer::Buckets(page)) = rig.ask(Query::Buckets { after: "b1".into(), limit: 2 }).await else {
            panic!()
        };
        assert_eq!(page.rows.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), ["b2", "b3"]);
        assert!(page.more);
        let upload = Uuid::from_u128(1);
        s.create_upload(&rig, &bucket, "k", upload).await;
        for number in [5, 1, 300, 2] {
            s.put_part(&rig, &bucket, "k", upload, number, s.fid()).await.unwrap();
        }
        let Ok(Answer::Parts(page)) = rig.ask(Query::Parts { upload, after: 1, limit: 2 }).await else {
            panic!()
        };
        assert_eq!(page.rows.iter().map(|p| p.number).collect::<Vec<_>>(), [2, 5]);
        assert!(page.more);
        let Ok(Answer::Parts(page)) = rig.ask(Query::Parts { upload, after: 5, limit: 2 }).await else {
            panic!()
        };
        assert_eq!(page.rows.iter().map(|p| p.number).collect::<Vec<_>>(), [300]);
        assert!(!page.more);
    });
}
