//! The target against a model of a few lines, with a power cut as one of the operations.

use super::rig::{CHUNK, Rig, fid, pattern, run};
use crate::StoreError;
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Op {
    Put { cob: u64, chunk: u64, chunks: usize, short: usize },
    Read { cob: u64, chunk: u64, chunks: usize },
    Delete { cob: u64 },
    Checkpoint,
    Crash { mode: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1..8u64, 0..12u64, 1..6usize, 0..CHUNK)
            .prop_map(|(cob, chunk, chunks, short)| Op::Put { cob, chunk, chunks, short: if short % 3 == 0 { short } else { 0 } }),
        4 => (1..8u64, 0..12u64, 1..8usize).prop_map(|(cob, chunk, chunks)| Op::Read { cob, chunk, chunks }),
        1 => (1..8u64).prop_map(|cob| Op::Delete { cob }),
        1 => any::<()>().prop_map(|()| Op::Checkpoint),
        1 => (0..5u64).prop_map(|mode| Op::Crash { mode }),
    ]
}

/// What a cob holds, by chunk; `None` once deleted.
type Model = BTreeMap<u64, Option<BTreeMap<u64, Vec<u8>>>>;

/// What the model says that a read returns: the bytes, or none where any are missing.
fn expect(model: &Model, cob: u64, chunk: u64, chunks: usize) -> Option<Vec<u8>> {
    let held = model.get(&cob)?.as_ref()?;
    let mut out = Vec::new();
    for i in chunk..chunk + chunks as u64 {
        if out.len() % CHUNK != 0 {
            return None;
        }
        out.extend_from_slice(held.get(&i)?);
    }
    Some(out)
}

async fn play(rig: Rig, ops: Vec<Op>) {
    let mut rig = rig;
    let start = rig.store.space();
    let mut model = Model::new();
    for (n, op) in ops.into_iter().enumerate() {
        match op {
            Op::Put { cob, chunk, chunks, short } => {
                let bytes = pattern(n as u64, chunks * CHUNK - short);
                let result = rig.put(fid(1, cob), chunk * CHUNK as u64, &bytes).await;
                if model.get(&cob) == Some(&None) {
                    assert_eq!(result, Err(StoreError::Deleted(fid(1, cob))));
                    continue;
                }
                result.unwrap();
                let held = model.entry(cob).or_insert_with(|| Some(BTreeMap::new())).as_mut().unwrap();
                for (i, piece) in bytes.chunks(CHUNK).enumerate() {
                    held.insert(chunk + i as u64, piece.to_vec());
                }
            }
            Op::Read { cob, chunk, chunks } => {
                let want = expect(&model, cob, chunk, chunks);
                let len = want.as_ref().map_or(chunks * CHUNK, Vec::len);
                match (want, rig.read(fid(1, cob), chunk * CHUNK as u64, len).await) {
                    (Some(want), Ok(found)) => assert!(found == want, "op {n}: wrong bytes"),
                    (None, Err(StoreError::Missing { .. })) => {}
                    (want, found) => panic!("op {n}: {:?}, {found:?}", want.map(|w| w.len())),
                }
            }
            Op::Delete { cob } => {
                rig.store.cob_delete(fid(1, cob)).await.unwrap();
                model.insert(cob, None);
            }
            Op::Checkpoint => rig.store.checkpoint().await.unwrap(),
            Op::Crash { mode } => rig = rig.crash(mode).await,
        }
    }
    let blocks: usize = model.values().flatten().map(BTreeMap::len).sum();
    rig.settle().await;
    assert_eq!(rig.store.space().used, (blocks * CHUNK) as u64, "one block a chunk, and no other");
    for cob in model.keys() {
        rig.store.cob_delete(fid(1, *cob)).await.unwrap();
    }
    rig.settle().await;
    assert_eq!(rig.store.space(), start);
    rig.assert_clean("at the end").await;
}

#[test]
fn the_target_does_what_the_model_says() {
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let ops = proptest::collection::vec(op(), 1..60);
    runner
        .run(&(any::<u64>(), ops), |(seed, ops)| {
            run(seed, async move |ctx| play(Rig::new(&ctx).await, ops).await);
            Ok(())
        })
        .unwrap();
}
