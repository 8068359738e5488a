//! What people call things: which object a cob is of, and keys of trees in words.

use super::{Chosen, regions_of};
use crate::process::format::on_reactor;
use cobalt_base::{Fid, SessionId};
use cobalt_cas::show::{self, FidOwner};
use cobalt_store::tree::TreeId;
use cobalt_store::{Inspection, Item, Limits, TreeRow};
use std::collections::{BTreeMap, BTreeSet};

/// Most cobs whose objects are looked for.
const FIDS_MAX: usize = 10_000;
/// Bytes of a key or value that are shown.
const SHOWN_MAX: usize = 96;

/// Cobs and what names them.
pub(super) type Names = BTreeMap<Fid, String>;

/// Looks the objects of cobs up in the catalogue, wherever one of the targets has it.
pub(super) fn of_fids(targets: &[Chosen], fids: &BTreeSet<Fid>) -> Names {
    let mut names = Names::new();
    for target in targets {
        let left: Vec<Fid> =
            fids.iter().filter(|fid| !names.contains_key(fid)).take(FIDS_MAX).copied().collect();
        if left.is_empty() {
            break;
        }
        let device = target.device.clone();
        let found = on_reactor(move |ctx, arena| async move {
            let regions = regions_of(&ctx, &arena, &device).await.ok()?;
            let inspection = Inspection::open(&ctx, &regions, &arena, &Limits::default()).await.ok()?;
            Some(look_up(&inspection, &left).await)
        });
        names.extend(found.ok().flatten().unwrap_or_default());
    }
    names
}

async fn look_up(inspection: &Inspection, fids: &[Fid]) -> Names {
    let mut buckets = BTreeMap::new();
    let mut rows = inspection.catalogue(Some(show::BUCKETS), b"");
    while let Some(item) = rows.next().await {
        if let Item::Row(TreeRow::Entry { value, .. }) = item {
            buckets.extend(show::bucket(&value));
        }
    }
    let mut names = Names::new();
    for fid in fids {
        let row = inspection.entry(show::FIDS, &fid.to_key()).await;
        let name = match row.and_then(|value| show::fid_owner(&value)) {
            Some(FidOwner::Object { bucket, key }) => {
                let bucket = buckets.get(&bucket).cloned().unwrap_or_else(|| format!("bucket {bucket}"));
                format!("s3://{bucket}/{}", String::from_utf8_lossy(&key))
            }
            Some(FidOwner::Part { upload, number }) => format!("part {number} of upload {upload}"),
            Some(FidOwner::Dead) => "of a deleted object".into(),
            None => continue,
        };
        names.insert(*fid, name);
    }
    names
}

/// A cob's number as it is printed: session and counter in hexadecimal.
pub(super) fn parse_fid(text: &str) -> Option<Fid> {
    let (session, counter) = text.split_once(':')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(Fid::new(SessionId(number(session)?), number(counter)?))
}

/// A key of a tree in words. It may be cut short: a boundary between nodes.
pub(super) fn key(tree: TreeId, key: &[u8]) -> String {
    if key.is_empty() {
        return "the beginning".into();
    }
    let padded = |from: usize, len: usize| {
        let mut out = vec![0; len];
        for (to, byte) in out.iter_mut().zip(key.iter().skip(from)) {
            *to = *byte;
        }
        out
    };
    let fid = |from: usize| padded(from, 16).try_into().map(Fid::from_key).unwrap_or(Fid::MIN);
    let number = |from: usize| padded(from, 8).try_into().map(u64::from_be_bytes).unwrap_or(0);
    let kind = key.first().copied().unwrap_or(0);
    match tree {
        TreeId::Cob => match kind {
            0 => "the count of cobs".into(),
            1 => format!("cob {}", fid(1)),
            2 => format!("tombstone {}", fid(1)),
            3 => format!("fence of session {:x}", number(1)),
            4 => format!("dead cob {}", fid(1)),
            _ => bytes(key),
        },
        TreeId::Extmap => format!("cob {} offset {}", fid(0), number(16)),
        TreeId::Balloc => match kind {
            0 => format!("group {}", number(1)),
            1 => format!("free block {}", number(1)),
            _ => bytes(key),
        },
        TreeId::Ctg => {
            let number = padded(0, 4).try_into().map(u32::from_be_bytes).unwrap_or(0);
            entry(number, key.get(4..).unwrap_or_default())
        }
    }
}

/// A row of a catalogue in words.
pub(super) fn entry(number: u32, key: &[u8]) -> String {
    let name = show::catalogue_name(number).map_or_else(|| format!("catalogue {number}"), str::to_owned);
    match show::show_key(number, key) {
        Some(shown) => format!("{name} {shown}"),
        None => format!("{name} {}", bytes(key)),
    }
}

/// Bytes as text where they are, in hexadecimal elsewhere, cut when long.
pub(super) fn bytes(bytes: &[u8]) -> String {
    let shown = bytes.get(..SHOWN_MAX).unwrap_or(bytes);
    let rest = if shown.len() < bytes.len() { format!("… {} bytes", bytes.len()) } else { String::new() };
    match std::str::from_utf8(shown) {
        Ok(text) if !text.chars().any(char::is_control) => format!("{text:?}{rest}"),
        _ => format!("0x{}{rest}", hex::encode(shown)),
    }
}

#[cfg(test)]
mod tests {
    use super::{bytes, key, parse_fid};
    use cobalt_base::{Fid, SessionId};
    use cobalt_store::tree::TreeId;

    #[test]
    fn keys_are_shown_in_words_also_when_they_are_cut() {
        let fid = Fid::new(SessionId(0x1f), 0xa0);
        assert_eq!(parse_fid(&fid.to_string()), Some(fid));
        assert_eq!(parse_fid("1f"), None);
        let mut row = fid.to_key().to_vec();
        row.extend_from_slice(&4096u64.to_be_bytes());
        assert_eq!(key(TreeId::Extmap, &row), "cob 1f:a0 offset 4096");
        assert_eq!(key(TreeId::Extmap, &row[..16]), "cob 1f:a0 offset 0");
        assert_eq!(key(TreeId::Balloc, &[1, 0, 0, 0, 0, 0, 0, 1]), "free block 256");
        assert_eq!(key(TreeId::Ctg, b"\0\0\0\x02photos"), "buckets \"photos\"");
        assert_eq!(key(TreeId::Cob, &[]), "the beginning");
        assert_eq!(bytes(&[0xff; 100]), format!("0x{}… 100 bytes", "ff".repeat(96)));
    }
}
