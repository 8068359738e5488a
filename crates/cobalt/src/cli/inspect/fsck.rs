//! `cobalt fsck`: checks targets, says what is hurt and what that touches.

use super::names::{self, Names};
use super::{Chosen, Unreadable, chosen, progress, regions_of, unreadable};
use crate::cli::args::{FsckArgs, Output, ProgressWhen};
use crate::cli::failure::Failure;
use crate::cli::output;
use crate::process::format::on_reactor;
use cobalt_base::Fid;
use cobalt_store::{Finding, FsckOptions, FsckReport, Limits};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Memory for nodes that redo only reads.
const NODE_CACHE: u64 = 32 << 20;

/// One target's result.
struct Checked {
    target: Chosen,
    result: Result<FsckReport, Unreadable>,
}

impl Checked {
    /// `clean`, `mends`, `damaged` or `unreadable`.
    fn verdict(&self) -> &'static str {
        match &self.result {
            Err(_) => "unreadable",
            Ok(report) if report.is_clean() => "clean",
            Ok(report) if report.is_sound() => "mends",
            Ok(_) => "damaged",
        }
    }

    fn is_bad(&self) -> bool {
        matches!(self.verdict(), "damaged" | "unreadable")
    }
}

/// `cobalt fsck`.
pub fn fsck(args: &FsckArgs) -> Result<(), Failure> {
    let targets = chosen(&args.place, &args.targets)?;
    let mut all = Vec::new();
    for target in &targets {
        let result = check(target, args.data, args.progress)?;
        all.push(Checked { target: target.clone(), result });
    }
    let names = names::of_fids(&targets, &touched(&all));
    let json = args.json || args.output == Output::Json;
    match json {
        true => output::json(&document(&all, args.data, &names))?,
        false => print(&all, &names)?,
    }
    verdict(&all)
}

/// How it ends: the exit code, and what to do.
fn verdict(all: &[Checked]) -> Result<(), Failure> {
    let bad: Vec<_> = all.iter().filter(|c| c.is_bad()).collect();
    let reason = |c: &&Checked| match &c.result {
        Err(why) => format!("{}: {}", c.target.name, why.why),
        Ok(report) => format!("{}: {}", c.target.name, findings(report.fatal, "fatal ")),
    };
    let cause = bad.iter().map(reason).collect::<Vec<_>>().join("; ");
    if bad.is_empty() {
        return Ok(());
    }
    if bad.iter().all(|c| c.result.is_err()) {
        return Err(Failure::new(format!("{} of {} targets could not be checked", bad.len(), all.len()))
            .cause(cause)
            .hint("targets are checked while no process serves them; nothing was written"));
    }
    Err(Failure::new(format!("{} of {} targets are not as they should be", bad.len(), all.len()))
        .cause(cause)
        .hint("do not format or delete: the other targets may hold the redundancy. What each kind of finding means and what to do is in docs/operations/fsck.md"))
}

fn check(target: &Chosen, data: bool, when: ProgressWhen) -> Result<Result<FsckReport, Unreadable>, Failure> {
    let (bar, progress) = progress::of(&target.name, when);
    let device = target.device.clone();
    let (cluster, uuid) = (target.cluster, target.uuid);
    let report = on_reactor(move |ctx, arena| async move {
        let regions = regions_of(&ctx, &arena, &device).await?;
        let limits = Limits { node_cache: NODE_CACHE, ..Limits::default() };
        let options = FsckOptions { data, progress, cluster, target: uuid, limits, ..FsckOptions::default() };
        cobalt_store::fsck(&ctx, &regions, &arena, &options).await.map_err(|e| unreadable(&e))
    });
    drop(bar);
    report
}

fn touched(all: &[Checked]) -> BTreeSet<Fid> {
    let reports = all.iter().filter_map(|c| c.result.as_ref().ok());
    reports.flat_map(|r| &r.findings).flat_map(|f| &f.touched.fids).copied().collect()
}

fn document(all: &[Checked], data: bool, names: &Names) -> Value {
    let clean = !all.iter().any(Checked::is_bad);
    let targets: Vec<Value> = all.iter().map(|c| target_json(c, data, names)).collect();
    json!({ "clean": clean, "targets": targets })
}

fn target_json(checked: &Checked, data: bool, names: &Names) -> Value {
    let Chosen { name, process, .. } = &checked.target;
    let default = FsckReport::default();
    let report = checked.result.as_ref().unwrap_or(&default);
    let error = checked.result.as_ref().err().map(|e| json!({ "kind": e.kind, "message": e.why }));
    json!({
        "target": name,
        "process": process,
        "device": checked.target.device_name(),
        "uuid": report.target,
        "name": report.name,
        "verdict": checked.verdict(),
        "error": error,
        "generation": report.generation,
        "journal_records_to_redo": report.redone,
        "checkpoint_only": report.checkpoint_only,
        "nodes": report.nodes,
        "cobs": report.cobs,
        "extents": report.extents,
        "entries": report.entries,
        "blocks_used": report.blocks_used,
        "blocks_free": report.blocks_free,
        "blocks_unknown": report.blocks_unknown,
        "data_checked": data,
        "data_bytes": report.data_bytes,
        "found": report.found,
        "fatal": report.fatal,
        "findings": report.findings.iter().map(|f| finding_json(f, names)).collect::<Vec<_>>(),
    })
}

fn finding_json(f: &Finding, names: &Names) -> Value {
    let touched = &f.touched;
    let lost = touched.lost.as_ref().map(|lost| {
        json!({
            "tree": lost.tree.name(),
            "from": hex::encode(&lost.from),
            "until": lost.until.as_ref().map(hex::encode),
            "text": lost_text(lost),
        })
    });
    json!({
        "kind": f.kind.name(),
        "fatal": f.is_fatal(),
        "region": f.at.map(|at| at.side.name()),
        "address": f.at.map(|at| at.address),
        "block": f.at.and_then(|at| at.block),
        "expected": f.expected,
        "found": f.found,
        "fids": touched.fids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "fids_more": touched.fids_more,
        "objects": touched.fids.iter().filter_map(|fid| names.get(fid)).collect::<Vec<_>>(),
        "lost": lost,
    })
}

fn lost_text(lost: &cobalt_store::LostKeys) -> String {
    let until = match &lost.until {
        Some(until) => format!("before {}", names::key(lost.tree, until)),
        None => "the end".into(),
    };
    format!("{} tree, from {} to {until}", lost.tree, names::key(lost.tree, &lost.from))
}

fn print(all: &[Checked], names: &Names) -> Result<(), Failure> {
    let row = |c: &Checked| match &c.result {
        Err(_) => {
            vec![c.target.name.clone(), "-".into(), "-".into(), "-".into(), "could not be checked".into()]
        }
        Ok(report) => {
            let verdict = match c.verdict() {
                "clean" => "clean".to_owned(),
                "mends" => format!("sound: {}, mended by the next start", findings(report.found, "")),
                _ => format!("damaged: {}", findings(report.found, "")),
            };
            vec![
                c.target.name.clone(),
                report.cobs.to_string(),
                report.extents.to_string(),
                output::size(report.data_bytes),
                verdict,
            ]
        }
    };
    output::table(&["target", ">cobs", ">extents", ">data read", "verdict"], all.iter().map(row).collect())?;
    for checked in all {
        let Ok(report) = &checked.result else { continue };
        for f in &report.findings {
            output::line("")?;
            for line in lines(&checked.target.name, f, names) {
                output::line(&line)?;
            }
        }
        let more = report.found - report.findings.len() as u64;
        if more > 0 {
            output::line(&format!("\n{}: and {} more", checked.target.name, findings(more, "")))?;
        }
        if report.checkpoint_only {
            output::line(&format!(
                "\n{}: the journal cannot be redone: what was checked is the last checkpoint",
                checked.target.name
            ))?;
        }
        if report.blocks_unknown > 0 {
            output::line(&format!(
                "\n{}: {} data blocks could not be judged: rows that would tell are lost",
                checked.target.name, report.blocks_unknown
            ))?;
        }
    }
    Ok(())
}

fn findings(count: u64, which: &str) -> String {
    if count == 1 { format!("1 {which}finding") } else { format!("{count} {which}findings") }
}

/// A finding for people.
fn lines(target: &str, f: &Finding, names: &Names) -> Vec<String> {
    let weight = if f.is_fatal() { "fatal" } else { "mends itself" };
    let at = match f.at {
        Some(at) => {
            let block = match (at.block, at.side.name()) {
                (Some(block), "meta") => format!(", node block {block}"),
                (Some(block), _) => format!(", block {block}"),
                (None, _) => String::new(),
            };
            format!(" at byte {:#x} of the {} region{block}", at.address, at.side.name())
        }
        None => String::new(),
    };
    let mut out = vec![format!("{target}: {}{at} ({weight})", f.kind)];
    out.push(format!("  expected  {}", f.expected));
    out.push(format!("  found     {}", f.found));
    if let Some(lost) = &f.touched.lost {
        out.push(format!("  lost      {}", lost_text(lost)));
    }
    for fid in &f.touched.fids {
        let name = names.get(fid).map(|name| format!(", {name}")).unwrap_or_default();
        out.push(format!("  touches   cob {fid}{name}"));
    }
    if f.touched.fids_more > 0 {
        out.push(format!("            and {} cobs more", f.touched.fids_more));
    }
    out
}
