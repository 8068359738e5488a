//! Every parser of bytes from a disk, for a fuzzer to meet alone. Built with the feature `proof` alone.

use crate::dump;
use crate::intent;
use crate::journal::record::Header;
use crate::superblock::{self, Verdict};
use crate::tree::TreeId;
use uuid::Uuid;

pub use crate::tree::parse::{bitmap, node};

/// A copy of a superblock; whether it is one.
pub fn superblock(bytes: &[u8], region_len: u64, slot: u64) -> bool {
    matches!(superblock::parse(bytes, region_len, slot), Verdict::Valid(_))
}

/// The header of a journal record.
pub fn header(bytes: &[u8], target: Uuid, offset: u64, ring: u64) -> bool {
    Header::parse(bytes, target, offset, ring).is_ok_and(|header| header.record_len() <= ring)
}

/// A record's payload of `count` transactions; how many intents are in it.
pub fn payload(bytes: &[u8], count: u32) -> Option<usize> {
    let txs = intent::decode(bytes, count, 0).ok()?;
    Some(txs.iter().map(Vec::len).sum())
}

/// A row of a tree.
pub fn row(tree: TreeId, key: &[u8], value: &[u8]) -> bool {
    dump::typed(tree, key, value).is_some()
}
