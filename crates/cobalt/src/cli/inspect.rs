//! `cobalt fsck` and `dump`: what lies on targets that are not in use. Nothing is written.

use super::args::{DumpArgs, DumpWhat, FsckArgs, Output};
use super::failure::Failure;
use super::{output, place};
use crate::config::TargetDevice;
use crate::process::format::on_reactor;
use crate::process::targets::{open_regions, with_sources};
use cobalt_bdev::{DeviceUri, OpenMode};
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use cobalt_store::tree::TreeId;
use cobalt_store::{FsckOptions, FsckReport, OpenOptions, Regions, Store, TreeRow, dump_journal, superblock};
use serde::Serialize;
use std::time::Duration;

/// Rows that are read at a time.
const PAGE: usize = 256;
/// Bytes of a key or value that `dump` shows.
const SHOWN_MAX: usize = 96;

/// One target's result.
#[derive(Serialize)]
struct Checked {
    target: String,
    process: String,
    /// Why it could not be checked.
    error: Option<String>,
    cobs: u64,
    extents: u64,
    nodes: u64,
    entries: u64,
    data_bytes: u64,
    found: u64,
    findings: Vec<Found>,
}

/// One finding.
#[derive(Serialize)]
struct Found {
    what: String,
    address: Option<u64>,
    fid: Option<String>,
    why: String,
    /// Whether the target cannot serve with it; what is not fatal mends itself.
    fatal: bool,
}

impl Checked {
    /// Whether something is wrong that does not mend itself: a superblock copy that a crash left old is rewritten by the
    /// next start.
    fn is_bad(&self) -> bool {
        let kept = self.findings.len() as u64;
        self.error.is_some() || self.found > kept || self.findings.iter().any(|f| f.fatal)
    }
}

/// `cobalt fsck`.
pub fn fsck(args: &FsckArgs) -> Result<(), Failure> {
    let config = place::config(&args.place)?;
    let mut all = Vec::new();
    // A killed process lets go of its devices a little later. Once one was waited for, no other is.
    let mut mode = OpenMode::default();
    for (process, target) in config.targets() {
        let device = target.device.clone();
        let data = args.data;
        let report =
            on_reactor(move |ctx, arena| async move { check(&ctx, &arena, &device, mode, data).await })?;
        if report.is_err() {
            mode.lock_wait = Duration::ZERO;
        }
        all.push(summary(&target.name, &process.name, report));
    }
    let bad: Vec<_> = all.iter().filter(|c| c.is_bad()).map(|c| c.target.clone()).collect();
    print(&all, args.output)?;
    if bad.is_empty() {
        return Ok(());
    }
    if all.iter().all(|c| c.error.is_some() || !c.is_bad()) {
        return Err(Failure::new(format!("{} of {} targets could not be checked", bad.len(), all.len()))
            .cause(bad.join(", "))
            .hint("see why above; targets are checked while no process serves them"));
    }
    Err(Failure::new(format!("{} of {} targets are not as they should be", bad.len(), all.len()))
        .cause(bad.join(", "))
        .hint("what is fatal names the damage; other targets may hold the redundancy"))
}

async fn check(
    ctx: &Ctx,
    arena: &Arena,
    device: &TargetDevice,
    mode: OpenMode,
    data: bool,
) -> Result<FsckReport, String> {
    let regions = open_regions(ctx, arena, device, None, mode).await?;
    let options = FsckOptions { data, ..FsckOptions::default() };
    cobalt_store::fsck(ctx, &regions, arena, &options).await.map_err(|e| with_sources(&e))
}

fn summary(target: &str, process: &str, report: Result<FsckReport, String>) -> Checked {
    let (report, error) = match report {
        Ok(report) => (report, None),
        Err(why) => (FsckReport::default(), Some(why)),
    };
    let found = |f: &cobalt_store::Finding| Found {
        what: f.kind.name().to_owned(),
        address: f.at.map(|at| at.address),
        fid: f.touched.fids.first().map(ToString::to_string),
        why: f.found.clone(),
        fatal: f.is_fatal(),
    };
    Checked {
        target: target.to_owned(),
        process: process.to_owned(),
        error,
        cobs: report.cobs,
        extents: report.extents,
        nodes: report.nodes,
        entries: report.entries,
        data_bytes: report.data_bytes,
        found: report.found,
        findings: report.findings.iter().map(found).collect(),
    }
}

fn print(all: &[Checked], how: Output) -> Result<(), Failure> {
    if how == Output::Json {
        let clean = !all.iter().any(Checked::is_bad);
        return output::json(&serde_json::json!({ "clean": clean, "targets": all }));
    }
    let row = |c: &Checked| {
        let verdict = match (&c.error, c.found) {
            (Some(why), _) => why.clone(),
            (None, 0) => "clean".into(),
            (None, n) => format!("{n} findings"),
        };
        vec![c.target.clone(), c.cobs.to_string(), c.extents.to_string(), output::size(c.data_bytes), verdict]
    };
    output::table(&["target", ">cobs", ">extents", ">data read", "verdict"], all.iter().map(row).collect())?;
    for checked in all {
        for f in &checked.findings {
            let at = f.address.map(|a| format!(" at {a:#x}")).unwrap_or_default();
            let fid = f.fid.as_ref().map(|fid| format!(" of {fid}")).unwrap_or_default();
            let weight = if f.fatal { "fatal" } else { "mends itself" };
            output::line(&format!("{}: {}{at}{fid}: {} ({weight})", checked.target, f.what, f.why))?;
        }
    }
    Ok(())
}

/// `cobalt dump`.
pub fn dump(args: &DumpArgs) -> Result<(), Failure> {
    let failed = |why: String| {
        Failure::new(format!("{} cannot be read", args.target))
            .cause(why)
            .hint("name the device as the configuration does; the process that serves it must be stopped")
    };
    let uri: DeviceUri = args.target.parse().map_err(|e| failed(with_sources(&e)))?;
    let device = TargetDevice::One(uri);
    let (what, limit) = (args.what, args.limit);
    let lines = on_reactor(move |ctx, arena| async move {
        let regions = open_regions(&ctx, &arena, &device, None, OpenMode::default()).await?;
        match what {
            DumpWhat::Superblock => Ok(superblocks(&regions, &arena).await),
            DumpWhat::Journal => journal(&regions, &arena, limit).await,
            DumpWhat::Cob => tree(ctx, regions, arena, TreeId::Cob, limit).await,
            DumpWhat::Balloc => tree(ctx, regions, arena, TreeId::Balloc, limit).await,
            DumpWhat::Extmap => tree(ctx, regions, arena, TreeId::Extmap, limit).await,
            DumpWhat::Ctg => tree(ctx, regions, arena, TreeId::Ctg, limit).await,
        }
    })?;
    for line in lines.map_err(failed)? {
        output::line(&line)?;
    }
    Ok(())
}

async fn superblocks(regions: &Regions, arena: &Arena) -> Vec<String> {
    let mut lines = Vec::new();
    for copy in superblock::read_all(&regions.meta, arena).await {
        lines.push(format!("slot {} copy {} at {:#x}: {:#?}", copy.slot, copy.copy, copy.at, copy.verdict));
    }
    lines
}

async fn journal(regions: &Regions, arena: &Arena, limit: usize) -> Result<Vec<String>, String> {
    let records = dump_journal(regions, arena).await.map_err(|e| with_sources(&e))?;
    let mut lines = Vec::new();
    for r in records.iter().rev().take(limit).rev() {
        let state = if r.whole { "" } else { ", torn" };
        lines.push(format!(
            "{:#x}: lsn {} + {}, {} bytes, epoch {}, durable {}, names {}{state}",
            r.offset, r.first, r.count, r.bytes, r.epoch, r.durable, r.named
        ));
        lines.extend(r.intents.iter().map(|intent| format!("    {intent}")));
    }
    Ok(lines)
}

async fn tree(
    ctx: Ctx,
    regions: Regions,
    arena: Arena,
    tree: TreeId,
    limit: usize,
) -> Result<Vec<String>, String> {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let store = Store::open(ctx, regions, arena, options).await.map_err(|e| with_sources(&e))?;
    let mut lines = Vec::new();
    let mut from = Some(Vec::new());
    while let Some(key) = from
        && lines.len() < limit
    {
        let page = (limit - lines.len()).min(PAGE);
        let (rows, next) = store.rows(tree, &key, page).await.map_err(|e| with_sources(&e))?;
        lines.extend(rows.iter().map(show));
        from = next;
    }
    Ok(lines)
}

/// A row for people. Sealed secrets are not shown.
fn show(row: &TreeRow) -> String {
    match row {
        TreeRow::Entry { ctg, key, value } if *ctg == cobalt_cas::CREDENTIALS => {
            format!("ctg {ctg} {} = ({} bytes, redacted)", bytes(key), value.len())
        }
        TreeRow::Entry { ctg, key, value } => format!("ctg {ctg} {} = {}", bytes(key), bytes(value)),
        TreeRow::Unknown { key, value } => format!("unknown {} = {}", bytes(key), bytes(value)),
        other => format!("{other:?}"),
    }
}

/// Bytes as text where they are, in hexadecimal elsewhere, cut when long.
fn bytes(bytes: &[u8]) -> String {
    let shown = bytes.get(..SHOWN_MAX).unwrap_or(bytes);
    let rest = if shown.len() < bytes.len() { format!("… {} bytes", bytes.len()) } else { String::new() };
    match std::str::from_utf8(shown) {
        Ok(text) if !text.chars().any(char::is_control) => format!("{text:?}{rest}"),
        _ => format!("0x{}{rest}", hex::encode(shown)),
    }
}
