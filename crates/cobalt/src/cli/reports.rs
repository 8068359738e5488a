//! `cobalt status`, `health` and `df`: every process of the configuration is asked, and what they say is put together.

use super::args::{Output, ReportArgs};
use super::failure::{Code, Failure};
use super::output::{self, size};
use super::{place, talk};
use crate::config::Config;
use crate::control::{Catalogue, Report, Target};
use serde::Serialize;
use std::collections::BTreeMap;

/// A process in the whole picture.
#[derive(Serialize)]
struct Process {
    name: String,
    up: bool,
    why: Option<String>,
    cas: bool,
    pid: Option<u32>,
    version: Option<String>,
    s3: Option<String>,
    admin: Option<String>,
}

/// The whole picture.
#[derive(Serialize)]
struct Picture {
    /// Something is short: a process or target is down, or the catalogue is.
    degraded: bool,
    /// Why, in the order of weight.
    problems: Vec<String>,
    layout: String,
    redundancy_short: bool,
    writable: bool,
    catalogue: Catalogue,
    processes: Vec<Process>,
    targets: Vec<Target>,
    /// Sums over the processes that answer.
    counters: BTreeMap<String, u64>,
}

fn picture(config: &Config) -> Result<Picture, Failure> {
    let mut answers: Vec<(String, Result<Report, Failure>)> =
        config.processes.iter().map(|p| (p.name.clone(), talk::report(config, &p.name))).collect();
    if answers.iter().all(|(_, answer)| answer.is_err())
        && let Some((_, Err(failure))) = answers.pop()
    {
        return Err(failure);
    }
    let mut picture = Picture {
        degraded: false,
        problems: Vec::new(),
        layout: config.cluster.layout.value.to_string(),
        redundancy_short: false,
        writable: false,
        catalogue: Catalogue::default(),
        processes: Vec::new(),
        targets: Vec::new(),
        counters: BTreeMap::new(),
    };
    for (process, (name, answer)) in config.processes.iter().zip(answers) {
        let report = answer.as_ref().ok();
        picture.processes.push(Process {
            up: report.is_some(),
            why: answer.as_ref().err().map(|f| f.cause.clone().unwrap_or_else(|| f.error.clone())),
            cas: process.cas.value,
            pid: report.map(|r| r.pid),
            version: report.map(|r| r.version.clone()),
            s3: report.and_then(|r| r.s3.clone()),
            admin: report.and_then(|r| r.admin.clone()),
            name: name.clone(),
        });
        match answer {
            Ok(report) => take(&mut picture, report),
            Err(_) => {
                picture.problems.push(format!("process {name} is down"));
                let down = process.targets.iter().map(|t| Target {
                    name: t.name.clone(),
                    process: name.clone(),
                    device: t.device.uris().first().map(ToString::to_string).unwrap_or_default(),
                    why: Some(format!("its process {name} is down")),
                    ..Target::default()
                });
                picture.targets.extend(down);
            }
        }
    }
    judge(config, &mut picture);
    Ok(picture)
}

fn take(picture: &mut Picture, report: Report) {
    for (name, count) in report.counters {
        *picture.counters.entry(name).or_default() += count;
    }
    picture.targets.extend(report.targets);
    if let Some(view) = report.view {
        picture.writable |= view.writable;
        picture.redundancy_short |= view.redundancy_short;
        if let Some(why) = view.not_writable {
            picture.problems.push(format!("PUT answers 503: {why}"));
        }
        if !picture.catalogue.up {
            picture.catalogue = view.catalogue;
        }
    }
}

fn judge(config: &Config, picture: &mut Picture) {
    let down: Vec<_> = picture.targets.iter().filter(|t| !t.up).cloned().collect();
    for target in &down {
        let why = target.why.clone().unwrap_or_default();
        picture.problems.push(format!("target {} of {} does not serve: {why}", target.name, target.process));
    }
    picture.redundancy_short |= !down.is_empty();
    if picture.catalogue.note.is_empty()
        && let Some(target) = config.catalogue().and_then(|p| p.targets.first())
    {
        picture.catalogue.note = format!("catalogue: 1 copy on {}; its loss loses all", target.name);
    }
    let gateway =
        config.processes.iter().zip(&picture.processes).any(|(p, state)| p.s3.is_some() && state.up);
    if gateway && !picture.catalogue.up {
        let why = picture.catalogue.why.clone().unwrap_or_else(|| "it does not answer".into());
        picture.problems.push(format!("the catalogue is down: {why}"));
    }
    picture.degraded = !picture.problems.is_empty();
}

/// Exit code 4 when something is short.
fn verdict(picture: &Picture) -> Result<(), Failure> {
    if !picture.degraded {
        return Ok(());
    }
    Err(Failure::new("degraded").cause(picture.problems.join("; ")).code(Code::Degraded))
}

fn yes(value: bool, yes: &str, no: &str) -> String {
    (if value { yes } else { no }).to_owned()
}

/// `cobalt status`.
pub fn status(args: &ReportArgs) -> Result<(), Failure> {
    let picture = picture(&place::config(&args.place)?)?;
    if args.output == Output::Json {
        output::json(&picture)?;
        return verdict(&picture);
    }
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    output::table(
        &["process", "state", ">pid", "s3", "admin"],
        picture
            .processes
            .iter()
            .map(|p| {
                let state = yes(p.up, "up", "down");
                vec![
                    p.name.clone(),
                    state,
                    dash(p.pid.map(|p| p.to_string())),
                    dash(p.s3.clone()),
                    dash(p.admin.clone()),
                ]
            })
            .collect(),
    )?;
    output::line("")?;
    output::table(
        &["target", "process", "state", ">used", ">total", ">cobs", "backend"],
        picture
            .targets
            .iter()
            .map(|t| {
                let backend = if t.backend.is_empty() { t.device.clone() } else { t.backend.clone() };
                let state = yes(t.up, "up", "down");
                vec![
                    t.name.clone(),
                    t.process.clone(),
                    state,
                    size(t.used),
                    size(t.total),
                    t.cobs.to_string(),
                    backend,
                ]
            })
            .collect(),
    )?;
    output::line("")?;
    let short = yes(picture.redundancy_short, "short", "full");
    output::line(&format!(
        "layout: {}, redundancy: {short}, writable: {}",
        picture.layout,
        yes(picture.writable, "yes", "no")
    ))?;
    output::line(&picture.catalogue.note)?;
    let dead = picture.catalogue.dead.map(|d| format!(", {d} dead entries")).unwrap_or_default();
    output::line(&format!("collector: {}{dead}", yes(picture.catalogue.collector_idle, "idle", "working")))?;
    verdict(&picture)
}

/// `cobalt health`.
pub fn health(args: &ReportArgs) -> Result<(), Failure> {
    let picture = picture(&place::config(&args.place)?)?;
    if args.output == Output::Json {
        output::json(&serde_json::json!({
            "healthy": !picture.degraded,
            "problems": picture.problems,
            "catalogue": picture.catalogue.note,
        }))?;
        return verdict(&picture);
    }
    output::line(if picture.degraded { "degraded" } else { "healthy" })?;
    output::line(&picture.catalogue.note)?;
    verdict(&picture)
}

/// `cobalt df`.
pub fn df(args: &ReportArgs) -> Result<(), Failure> {
    let config = place::config(&args.place)?;
    let picture = picture(&config)?;
    let sum = |f: fn(&Target) -> u64| picture.targets.iter().map(f).sum::<u64>();
    let (total, used, free) = (sum(|t| t.total), sum(|t| t.used), sum(|t| t.free));
    // What objects can still take, parity taken off.
    let layout = config.cluster.layout.value;
    let width = (u64::from(layout.data) + u64::from(layout.parity)).max(1);
    let usable = free / width * u64::from(layout.data);
    if args.output == Output::Json {
        return output::json(&serde_json::json!({
            "total": total, "used": used, "free": free, "usable": usable, "layout": picture.layout,
            "targets": picture.targets,
        }));
    }
    let mut rows: Vec<_> = picture
        .targets
        .iter()
        .map(|t| vec![t.name.clone(), t.process.clone(), size(t.total), size(t.used), size(t.free)])
        .collect();
    rows.push(vec!["all".into(), String::new(), size(total), size(used), size(free)]);
    output::table(&["target", "process", ">total", ">used", ">free"], rows)?;
    output::line(&format!("room for objects at {}: {}", picture.layout, size(usable)))
}
