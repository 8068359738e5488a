//! The codec against another implementation, and against loss.
#![allow(clippy::unwrap_used, reason = "tests")]
use cobalt_dma::{Arena, ArenaConfig, Buf};
use cobalt_ec::{Codec, CodecError};
use proptest::prelude::{Just, ProptestConfig, Strategy, prop, prop_assert_eq, proptest};
use reed_solomon_erasure::galois_8::ReedSolomon;

fn arena() -> Arena {
    Arena::new(ArenaConfig { limit: 64 << 20 }).expect("map 64 MiB")
}

/// Buffers full of rubbish: the codec must not rely on what was there before.
fn bufs(arena: &Arena, count: usize, len: usize) -> Vec<Buf> {
    let make = |_| {
        let mut buf = arena.try_alloc(len).expect("room");
        buf.fill(0xa5);
        buf
    };
    (0..count).map(make).collect()
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Parity as the oracle computes it: short units padded with zeroes.
fn oracle(data: &[Vec<u8>], parity: usize) -> Vec<Vec<u8>> {
    let len = data.iter().map(Vec::len).max().unwrap_or(0);
    let mut shards: Vec<Vec<u8>> = data.to_vec();
    shards.resize(data.len() + parity, Vec::new());
    for shard in &mut shards {
        shard.resize(len, 0);
    }
    ReedSolomon::new(data.len(), parity).unwrap().encode(&mut shards).unwrap();
    shards.split_off(data.len())
}

fn parity(arena: &Arena, codec: &Codec, data: &[Vec<u8>], order: &[usize]) -> Vec<Vec<u8>> {
    let len = data.iter().map(Vec::len).max().unwrap_or(0);
    let mut sum = codec.parity(bufs(arena, codec.parity_units(), len.max(1)));
    for unit in order {
        sum.add(*unit, [&data[*unit][..]]);
    }
    sum.finish(len).iter().map(|buf| buf.to_vec()).collect()
}

/// Loses `lost`, decodes from the first N others, and compares.
fn lose(arena: &Arena, codec: &Codec, units: &[Vec<u8>], lost: &[usize]) {
    let have: Vec<usize> =
        (0..units.len()).filter(|unit| !lost.contains(unit)).take(codec.data_units()).collect();
    let longest = units.iter().map(Vec::len).max().unwrap();
    let mut sum = codec.decode(&have, lost, bufs(arena, lost.len(), longest)).unwrap();
    for unit in have.iter().rev() {
        let (a, b) = units[*unit].split_at(units[*unit].len() / 3);
        sum.add(*unit, [a, b]);
    }
    assert_eq!(sum.missing().count(), 0);
    for (unit, mut got) in lost.iter().zip(sum.finish(longest)) {
        assert!(got[units[*unit].len()..].iter().all(|b| *b == 0), "a short unit is zeroes beyond its end");
        got.set_len(units[*unit].len());
        assert!(got[..] == units[*unit][..], "unit {unit} of {lost:?}");
    }
}

#[test]
fn parity_is_byte_identical_to_the_oracle_and_every_loss_is_decoded() {
    let arena = arena();
    for (n, k) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (4, 2), (5, 3), (8, 3), (8, 4), (10, 4)] {
        let codec = Codec::new(n, k).unwrap();
        let mut units: Vec<Vec<u8>> = (0..n).map(|i| bytes(i as u64 + 1, 4096 + 17)).collect();
        let order: Vec<usize> = (0..n).rev().collect();
        let parity = parity(&arena, &codec, &units, &order);
        assert_eq!(parity, oracle(&units, k), "{n}+{k}");
        units.extend(parity);
        for subset in 1u32..1 << (n + k) {
            if subset.count_ones() as usize <= k {
                let lost: Vec<usize> = (0..n + k).filter(|unit| subset >> unit & 1 == 1).collect();
                lose(&arena, &codec, &units, &lost);
            }
        }
    }
}

#[test]
fn one_data_unit_of_a_partial_group_is_enough() {
    let arena = arena();
    let codec = Codec::new(2, 1).unwrap();
    let data = vec![bytes(3, 123), Vec::new()];
    let parity = parity(&arena, &codec, &data, &[0]);
    assert_eq!(parity, oracle(&data, 1));
    let mut sum = codec.decode(&[1, 2], &[0], bufs(&arena, 1, 123)).unwrap();
    sum.add(2, [&parity[0][..]]);
    assert_eq!(sum.finish(123)[0][..], data[0][..]);
}

#[test]
fn impossible_codes_and_losses_are_refused() {
    let arena = arena();
    assert!(matches!(Codec::new(0, 1), Err(CodecError::Shape { .. })));
    assert!(matches!(Codec::new(200, 57), Err(CodecError::Shape { .. })));
    assert!(Codec::new(200, 56).is_ok());
    let none = Codec::new(3, 0).unwrap();
    assert!(none.parity(Vec::new()).finish(10).is_empty());
    let codec = Codec::new(2, 1).unwrap();
    for (have, want) in
        [(vec![0], vec![1]), (vec![0, 0], vec![1]), (vec![0, 1], vec![1]), (vec![0, 9], vec![1])]
    {
        let bufs = bufs(&arena, want.len(), 10);
        assert!(matches!(codec.decode(&have, &want, bufs), Err(CodecError::Units { .. })), "{have:?}");
    }
}

fn groups() -> impl Strategy<Value = (Vec<usize>, usize, Vec<usize>, u64)> {
    (1usize..9, 1usize..5).prop_flat_map(|(n, k)| {
        let lens = prop::collection::vec(0usize..40_000, n);
        let lost = prop::sample::subsequence((0..n + k).collect::<Vec<_>>(), 1..=k);
        (lens, Just(k), lost, 0u64..1000)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn units_of_any_lengths_in_any_order((lens, k, lost, seed) in groups(), shift in 0usize..8) {
        let arena = arena();
        let codec = Codec::new(lens.len(), k).unwrap();
        let mut units: Vec<Vec<u8>> = lens.iter().enumerate().map(|(i, len)| bytes(seed + i as u64, *len)).collect();
        let order: Vec<usize> = (0..lens.len()).map(|i| (i + shift) % lens.len()).collect();
        let parity = parity(&arena, &codec, &units, &order);
        prop_assert_eq!(&parity, &oracle(&units, k));
        units.extend(parity);
        lose(&arena, &codec, &units, &lost);
    }
}
