//! Structures of a target as lines for people and as JSON for programs. Sealed secrets are not shown.

use super::names;
use cobalt_base::BLOCK_SIZE;
use cobalt_cas::CREDENTIALS;
use cobalt_store::superblock::{Copy, Superblock, Verdict};
use cobalt_store::tree::{Root, TreeId};
use cobalt_store::{CobInfo, Extent, GroupRow, NodeChild, NodeView, RecordRow, Skipped, TreeRow};
use serde_json::{Value, json};

/// One thing that is printed.
pub(super) struct Shown {
    pub line: String,
    pub json: Value,
}

pub(super) fn row(row: &TreeRow) -> Shown {
    match row {
        TreeRow::Cob { fid, info } => cob("cob", *fid, info),
        TreeRow::Dead { fid, info } => cob("dead cob", *fid, info),
        TreeRow::Tombstone { fid } => Shown {
            line: format!("tombstone {fid}"),
            json: json!({ "row": "tombstone", "fid": fid.to_string() }),
        },
        TreeRow::Fence { first, last } => Shown {
            line: format!("fence of sessions {first} to {last}"),
            json: json!({ "row": "fence", "first": first.to_string(), "last": last.to_string() }),
        },
        TreeRow::CobCount { count } => {
            Shown { line: format!("{count} cobs"), json: json!({ "row": "cob-count", "count": count }) }
        }
        TreeRow::Extents { fid, offset, len, generation, extents, crcs } => Shown {
            line: format!(
                "cob {fid} {offset}+{len} generation {generation} blocks {} crc32c {}",
                extents.iter().map(run).collect::<Vec<_>>().join(" "),
                crcs.iter().map(|crc| format!("{crc:08x}")).collect::<Vec<_>>().join(" ")
            ),
            json: json!({
                "row": "extents",
                "fid": fid.to_string(),
                "offset": offset,
                "len": len,
                "generation": generation,
                "extents": extents.iter().map(|e| json!({ "block": e.start, "blocks": e.blocks })).collect::<Vec<_>>(),
                "crc32c": crcs.iter().map(|crc| format!("{crc:08x}")).collect::<Vec<_>>(),
            }),
        },
        TreeRow::GroupSummary { group, free } => Shown {
            line: format!("group {group}: {free} free blocks"),
            json: json!({ "row": "group", "group": group, "free": free }),
        },
        TreeRow::Free { start, blocks } => Shown {
            line: format!("free {start}+{blocks}"),
            json: json!({ "row": "free", "block": start, "blocks": blocks }),
        },
        TreeRow::Entry { ctg, key, value } => entry(*ctg, key, value),
        TreeRow::Unknown { key, value } => Shown {
            line: format!("unknown {} = {}", names::bytes(key), names::bytes(value)),
            json: json!({ "row": "unknown", "key": hex::encode(key), "value": hex::encode(value) }),
        },
    }
}

fn run(extent: &Extent) -> String {
    format!("{}+{}", extent.start, extent.blocks)
}

fn cob(kind: &str, fid: cobalt_base::Fid, info: &CobInfo) -> Shown {
    let CobInfo { chunk_size, incarnation, generation, size, allocated } = *info;
    Shown {
        line: format!(
            "{kind} {fid}: {size} bytes, {allocated} allocated, chunks of {chunk_size}, generation {generation}, incarnation {incarnation}"
        ),
        json: json!({
            "row": kind.replace(' ', "-"),
            "fid": fid.to_string(),
            "size": size,
            "allocated": allocated,
            "chunk_size": chunk_size,
            "generation": generation,
            "incarnation": incarnation,
        }),
    }
}

fn entry(ctg: u32, key: &[u8], value: &[u8]) -> Shown {
    let name = names::entry(ctg, key);
    let secret = ctg == CREDENTIALS;
    let shown = if secret { format!("({} bytes, redacted)", value.len()) } else { names::bytes(value) };
    Shown {
        line: format!("{name} = {shown}"),
        json: json!({
            "row": "entry",
            "catalogue": ctg,
            "name": name,
            "key": hex::encode(key),
            "value": (!secret).then(|| hex::encode(value)),
            "value_bytes": value.len(),
        }),
    }
}

pub(super) fn skipped(skipped: &Skipped) -> Shown {
    let Skipped { keys, at, why } = skipped;
    let until = match &keys.until {
        Some(until) => format!("before {}", names::key(keys.tree, until)),
        None => "the end".into(),
    };
    let text = format!("{} tree, from {} to {until}", keys.tree, names::key(keys.tree, &keys.from));
    Shown {
        line: format!("skipped: {text}: node block {} at {:#x}: {why}", at.block.unwrap_or(0), at.address),
        json: json!({
            "tree": keys.tree.name(),
            "from": hex::encode(&keys.from),
            "until": keys.until.as_ref().map(hex::encode),
            "text": text,
            "node": at.block,
            "address": at.address,
            "why": why,
        }),
    }
}

pub(super) fn record(record: &RecordRow) -> Shown {
    let state = if record.whole { "" } else { ", torn" };
    let txs = match record.count {
        0 => format!("empty, next lsn {}", record.first),
        1 => format!("lsn {}", record.first),
        n => format!("lsn {} to {}", record.first, record.first.0 + u64::from(n) - 1),
    };
    let mut line = format!(
        "{:#x}: {txs}, {} bytes, epoch {}, durable {}, names superblock {}{state}",
        record.offset, record.bytes, record.epoch, record.durable, record.named
    );
    for intent in &record.intents {
        line.push_str("\n    ");
        line.push_str(intent);
    }
    Shown {
        line,
        json: json!({
            "offset": record.offset,
            "first": record.first.0,
            "transactions": record.count,
            "bytes": record.bytes,
            "epoch": record.epoch,
            "durable": record.durable.0,
            "names": record.named,
            "whole": record.whole,
            "intents": record.intents,
        }),
    }
}

pub(super) fn group(row: &GroupRow) -> Shown {
    let GroupRow { group, first, blocks, free, extents, largest, says } = *row;
    let used = blocks - free.min(blocks);
    let wrong = match says {
        Some(says) if says != free => format!(", its row says {says} free"),
        _ => String::new(),
    };
    Shown {
        line: format!(
            "group {group}: blocks {first} to {}, {used} used, {free} free in {extents} extents, the largest of {largest}{wrong}",
            first + blocks - 1
        ),
        json: json!({
            "group": group, "first": first, "blocks": blocks, "used": used, "free": free,
            "free_extents": extents, "largest": largest, "row_says": says,
        }),
    }
}

pub(super) fn node(view: &NodeView) -> Vec<Shown> {
    let tree = view.tree.map_or("no tree", TreeId::name);
    let verdict = view.wrong.clone().unwrap_or_else(|| "whole".into());
    let mut out = vec![Shown {
        line: format!(
            "node block {} at {:#x}: {tree}, level {}, {} entries, generation {}, checksum {:016x}: {verdict}",
            view.block, view.address, view.level, view.entries, view.generation, view.checksum
        ),
        json: json!({
            "node": view.block, "address": view.address, "tree": view.tree.map(TreeId::name), "level": view.level,
            "entries": view.entries, "generation": view.generation, "checksum": format!("{:016x}", view.checksum),
            "whole": view.wrong.is_none(), "why": view.wrong,
        }),
    }];
    for NodeChild { from, node } in &view.children {
        let key = view.tree.map_or_else(String::new, |tree| names::key(tree, from));
        out.push(Shown {
            line: format!(
                "    from {key}: node block {}, generation {}, checksum {:016x}",
                node.block, node.generation, node.checksum
            ),
            json: json!({
                "from": hex::encode(from), "text": key, "node": node.block, "generation": node.generation,
                "checksum": format!("{:016x}", node.checksum),
            }),
        });
    }
    for entry in &view.rows {
        let Shown { line, json } = row(entry);
        out.push(Shown { line: format!("    {line}"), json });
    }
    out
}

pub(super) fn copy(copy: &Copy) -> Shown {
    let place = format!("slot {} copy {} at byte {:#x}", copy.slot, copy.copy, copy.at);
    let (verdict, why, fields) = match &copy.verdict {
        Verdict::Valid(sb) => ("valid", None, Some(sb)),
        Verdict::Blank => ("blank", None, None),
        Verdict::Newer(version) => ("newer", Some(format!("format version {version}")), None),
        Verdict::Corrupt(why) => ("corrupt", Some(why.clone()), None),
        Verdict::ReadError(error) => ("unreadable", Some(error.to_string()), None),
    };
    let mut line = format!("{place}: {verdict}");
    if let Some(why) = &why {
        line.push_str(&format!(": {why}"));
    }
    if let Some(sb) = fields {
        line.push_str(&format!(", generation {}", sb.generation));
    }
    let json = json!({
        "slot": copy.slot, "copy": copy.copy, "address": copy.at, "verdict": verdict, "why": why,
        "superblock": fields.map(|sb| superblock_json(sb)),
    });
    Shown { line, json }
}

fn superblock_json(sb: &Superblock) -> Value {
    let root = |tree: TreeId| {
        let Root { node, height } = sb.roots[tree as usize];
        json!({
            "tree": tree.name(), "height": height, "node": node.block, "generation": node.generation,
            "checksum": format!("{:016x}", node.checksum),
        })
    };
    json!({
        "target": sb.target, "cluster": sb.cluster, "name": sb.name, "generation": sb.generation,
        "mount_epoch": sb.mount_epoch, "epoch_start": sb.epoch_start.0, "checkpoint_lsn": sb.checkpoint_lsn.0,
        "redo_offset": sb.journal.offset, "redo_chain": format!("{:016x}", sb.journal.chain),
        "roots": TreeId::ALL.map(root),
        "bitmap": { "area": sb.bitmap.area, "bytes": sb.bitmap.len, "checksum": format!("{:016x}", sb.bitmap.checksum) },
        "meta_region_bytes": sb.geometry.region_len, "node_size": sb.geometry.node_size,
        "journal_bytes": sb.geometry.journal_len, "bitmap_area_bytes": sb.geometry.bitmap_len,
        "node_blocks": sb.geometry.node_blocks, "data_blocks": sb.data_blocks, "data_blocks_free": sb.data_free,
        "data_region_bytes": sb.data_blocks * BLOCK_SIZE,
    })
}

/// Names and values of a superblock's fields.
pub(super) fn superblock(sb: &Superblock) -> Vec<Vec<String>> {
    let mut rows = vec![
        ("target", sb.target.to_string()),
        ("cluster", sb.cluster.to_string()),
        ("name", sb.name.clone()),
        ("generation", sb.generation.to_string()),
        ("mount epoch", format!("{}, from lsn {}", sb.mount_epoch, sb.epoch_start)),
        ("checkpoint", format!("everything up to lsn {}", sb.checkpoint_lsn)),
        (
            "redo from",
            format!(
                "ring offset {:#x}, after the record with checksum {:016x}",
                sb.journal.offset, sb.journal.chain
            ),
        ),
        (
            "meta region",
            format!(
                "{} bytes, {} node blocks of {} bytes",
                sb.geometry.region_len, sb.geometry.node_blocks, sb.geometry.node_size
            ),
        ),
        ("journal", format!("{} bytes at {:#x}", sb.geometry.journal_len, sb.geometry.journal_at())),
        (
            "node bitmap",
            format!(
                "area {} at {:#x}, {} bytes, checksum {:016x}",
                sb.bitmap.area,
                sb.geometry.bitmap_at(sb.bitmap.area),
                sb.bitmap.len,
                sb.bitmap.checksum
            ),
        ),
        (
            "data region",
            format!(
                "{} blocks of {BLOCK_SIZE} bytes, {} of them free at the checkpoint",
                sb.data_blocks, sb.data_free
            ),
        ),
    ];
    for tree in TreeId::ALL {
        let Root { node, height } = sb.roots[tree as usize];
        let text = match height {
            0 => "empty".to_owned(),
            _ => format!(
                "node block {}, height {height}, generation {}, checksum {:016x}",
                node.block, node.generation, node.checksum
            ),
        };
        rows.push((["cob tree", "extent-map tree", "allocator tree", "catalogue tree"][tree as usize], text));
    }
    rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect()
}
