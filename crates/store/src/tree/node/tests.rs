//! Tests of one node.

use super::{Expect, Node, NodeRef, TreeId, entry_max, key_max};

fn sealed(node: &Node) -> (Vec<u8>, Expect) {
    let mut out = vec![0xaa; 4096];
    let checksum = node.seal(7, &mut out, |_| 9);
    let expect = Expect {
        seed: 7,
        tree: node.tree,
        level: node.level,
        node: NodeRef { checksum, ..node.node_ref() },
        node_blocks: 1000,
    };
    (out, expect)
}

fn leaf() -> Node {
    let mut node = Node::new(4096, TreeId::Ctg, 0);
    (node.block, node.generation) = (12, 34);
    for i in (0..20u8).rev() {
        node.insert(0, &[i, 1], &[i; 30]);
    }
    node.remove(3);
    node
}

#[test]
fn the_contract_s_largest_metadata_fits() {
    assert!(entry_max(16_384) >= 5400);
    assert!(key_max(4096) >= 1024);
}

#[test]
fn a_flip_of_any_byte_is_detected() {
    let (image, expect) = sealed(&leaf());
    Node::parse(&image, &expect).expect("whole");
    for at in 0..image.len() {
        let mut bad = image.clone();
        bad[at] ^= 0x10;
        assert!(Node::parse(&bad, &expect).is_err(), "byte {at}");
    }
}

#[test]
fn nonsense_under_a_right_checksum_is_rejected_without_a_panic() {
    let (image, expect) = sealed(&leaf());
    for at in 0..image.len() {
        for bit in [0x01, 0x80, 0xff] {
            let mut bad = image.clone();
            bad[at] ^= bit;
            bad[super::disk::CHECKSUM_AT..super::disk::CHECKSUM_AT + 8].fill(0);
            let sum = super::disk::checksum(7, &bad);
            bad[super::disk::CHECKSUM_AT..super::disk::CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
            let expect = Expect { node: NodeRef { checksum: sum, ..expect.node }, ..expect };
            if let Ok(node) = Node::parse(&bad, &expect) {
                for i in 0..node.count() {
                    assert!(node.search(node.key(i)) == Ok(i) && node.value(i).len() < 4096);
                }
            }
        }
    }
}

/// However its cells came to lie, a node has one image; and read over another node, it is as if it were read alone.
#[test]
fn a_node_has_one_image_whatever_it_went_through() {
    let mut over = leaf();
    let mut x = 7u64;
    let mut random = |below: usize| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (x >> 33) as usize % below
    };
    for round in 0..60 {
        let (mut node, mut model) = (leaf(), leaf().entries());
        for _ in 0..round * 4 {
            let (key, value) = (vec![random(40) as u8, random(3) as u8], vec![random(256) as u8; random(50)]);
            match node.search(&key) {
                Ok(at) if random(3) == 0 => {
                    node.remove(at);
                    model.remove(at);
                }
                Ok(at) => {
                    if node.overwrite(at, &value) {
                        model[at].1 = value;
                    }
                }
                Err(at) if node.fits(&key, &value) => {
                    node.insert(at, &key, &value);
                    model.insert(at, (key, value));
                }
                Err(_) => {}
            }
        }
        assert_eq!(node.entries(), model);
        let mut plain = Node::new(4096, TreeId::Ctg, 0);
        (plain.block, plain.generation) = (node.block, node.generation);
        for (i, (key, value)) in model.iter().enumerate() {
            plain.insert(i, key, value);
        }
        let (image, expect) = sealed(&node);
        assert!(image == sealed(&plain).0, "round {round}");
        over.parse_over(&image, &expect).expect("whole");
        let alone = Node::parse(&image, &expect).expect("whole");
        assert!(over.entries() == model && sealed(&over).0 == image && sealed(&alone).0 == image);
        assert!((0..model.len()).all(|i| over.search(&model[i].0) == Ok(i)));
        assert_eq!((over.edges, over.used()), (alone.edges, alone.used()));
        if random(2) == 0 {
            over = node;
        }
    }
}

impl Node {
    fn entries(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        (0..self.count()).map(|i| (self.key(i).to_vec(), self.value(i).to_vec())).collect()
    }
}

#[test]
fn unknown_checksums_of_children_are_resolved_when_sealed() {
    let mut node = Node::new(4096, TreeId::Cob, 1);
    node.generation = 5;
    let child = NodeRef { block: 3, generation: 5, checksum: 0 };
    node.insert(0, b"", &super::child_bytes(child));
    node.insert(1, b"k", &super::child_bytes(NodeRef { checksum: 77, ..child }));
    let (image, expect) = sealed(&node);
    let back = Node::parse(&image, &expect).expect("whole");
    assert_eq!([back.child(0).checksum, back.child(1).checksum], [9, 77]);
}

/// Keys that share much, little and nothing, that are each other's starts, and that are full of zeros.
fn awkward() -> Vec<Vec<u8>> {
    let mut keys = vec![vec![], vec![0], vec![0, 0], vec![0, 0, 0, 0, 0], vec![255; 9], b"photos".to_vec()];
    for i in 0..40u8 {
        keys.push([b"photos/2026/11/".as_slice(), &[i / 8, i % 8]].concat());
        keys.push([b"photos/2026/11/24/0".as_slice(), &[0; 3], &[i]].concat());
        keys.push(vec![i.wrapping_mul(37), i]);
    }
    keys.sort();
    keys.dedup();
    keys
}

#[test]
fn a_search_finds_what_the_keys_themselves_say() {
    for step in 1..awkward().len() {
        for range in [0..awkward().len(), 20..60] {
            let mut node = Node::new(32_768, TreeId::Ctg, 0);
            let mut model: Vec<Vec<u8>> = Vec::new();
            // In and out in an order that is not theirs.
            let keys: Vec<_> = awkward()[range].to_vec();
            for n in 0..keys.len() * 3 {
                let key = &keys[n * step % keys.len()];
                assert_eq!(node.search(key), model.binary_search(key));
                match model.binary_search(key) {
                    Ok(at) => {
                        node.remove(at);
                        model.remove(at);
                    }
                    Err(at) => {
                        node.insert(at, key, &[7; 40]);
                        model.insert(at, key.clone());
                    }
                }
            }
            for key in awkward() {
                assert_eq!(node.search(&key), model.binary_search(&key), "{key:?}");
            }
            let right = node.split_off(model.len() / 2);
            let tail = model.split_off(model.len() / 2);
            for key in awkward() {
                assert_eq!(
                    (node.search(&key), right.search(&key)),
                    (model.binary_search(&key), tail.binary_search(&key))
                );
            }
            node.append(&right, b"");
            model.extend(tail);
            assert!((0..model.len()).all(|i| node.key(i) == model[i] && node.search(&model[i]) == Ok(i)));
        }
    }
}

#[test]
fn an_interior_node_finds_the_child_of_every_key_through_splits_and_joins() {
    let child = super::child_bytes(NodeRef { block: 3, generation: 5, checksum: 1 });
    let child_of =
        |model: &[Vec<u8>], key: &[u8]| model.partition_point(|k| k.as_slice() <= key).saturating_sub(1);
    for step in [1, 7, 23, 53] {
        let mut node = Node::new(32_768, TreeId::Ctg, 1);
        node.insert(0, b"", &child);
        let mut model = vec![vec![]];
        let keys = awkward();
        for n in 0..keys.len() {
            let key = &keys[n * step % keys.len()];
            if let Err(at) = model.binary_search(key) {
                node.insert(at, key, &child);
                model.insert(at, key.clone());
            }
        }
        let at = model.len() / 3;
        let mut right = node.split_off(at);
        let mut tail = model.split_off(at);
        // An entry may come in before the first one of the right half, and is its first key then.
        let mut between = tail[0].clone();
        between.pop();
        if between > model[at - 1] {
            right.insert(0, &between, &child);
            tail.insert(0, between);
        }
        let first = right.take_first_key();
        assert_eq!(first, tail[0]);
        tail[0] = vec![];
        for key in awkward() {
            assert_eq!(node.child_index(&key), child_of(&model, &key));
            assert_eq!(right.child_index(&key), child_of(&tail, &key), "{key:?} in {tail:?}");
        }
        right.unlink_child(0);
        tail.remove(1);
        right.unlink_child(5);
        tail.remove(5);
        node.append(&right, &first);
        tail[0] = first;
        model.extend(tail);
        for key in awkward() {
            assert_eq!(node.child_index(&key), child_of(&model, &key));
        }
    }
}

#[test]
fn a_value_is_replaced_by_shorter_and_by_longer_ones_until_the_node_is_full() {
    let mut node = Node::new(4096, TreeId::Ctg, 0);
    let mut model = std::collections::BTreeMap::new();
    for i in 0..30u8 {
        node.insert(usize::from(i), &[i, 1], &[i; 30]);
        model.insert(vec![i, 1], vec![i; 30]);
    }
    let (mut x, mut full) = (1u64, 0);
    for round in 0..3000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (i, len) = ((x >> 33) as usize % 30, (x >> 40) as usize % 240);
        let (key, value) = (vec![i as u8, 1], vec![round as u8; len]);
        let room = node.room();
        if node.replace(i, &key, &value) {
            model.insert(key, value);
        } else {
            assert!(room < super::entry_room(&key, &value), "there was room for it");
            full += 1;
        }
        let used: usize = model.iter().map(|(k, v)| super::entry_room(k, v)).sum();
        assert_eq!(node.used(), used);
    }
    assert!((100..2900).contains(&full), "{full}");
    let (image, expect) = sealed(&node);
    let back = Node::parse(&image, &expect).expect("whole");
    for (i, (key, value)) in model.iter().enumerate() {
        assert_eq!((back.key(i), back.value(i)), (key.as_slice(), value.as_slice()));
        assert_eq!((node.key(i), node.value(i)), (key.as_slice(), value.as_slice()));
    }
}
