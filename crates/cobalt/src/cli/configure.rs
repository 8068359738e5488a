//! `cobalt config check|show|example`.

use super::args::{ConfigCommand, Output, OverrideArgs};
use super::failure::{Code, Failure};
use super::output;
use crate::config::{Config, EXAMPLE, Fault, Origin, ProcessConfig, Setting, TargetDevice};
use clap::ArgMatches;
use clap::parser::ValueSource;
use serde::Serialize;
use std::net::SocketAddr;

/// Runs a `config` command.
pub fn run(command: ConfigCommand, matches: &ArgMatches) -> Result<(), Failure> {
    match command {
        ConfigCommand::Example => {
            print!("{EXAMPLE}");
            Ok(())
        }
        ConfigCommand::Check { config } => {
            let config = Config::load(&config)?;
            let targets = config.targets().count();
            eprintln!(
                "{}: no fault; processes: {}, targets: {targets}",
                config.file.display(),
                config.processes.len()
            );
            Ok(())
        }
        ConfigCommand::Show { config, origin, overrides, output } => {
            let mut config = Config::load(&config)?;
            for process in &mut config.processes {
                apply(process, &overrides, matches)?;
            }
            show(&config, origin, output)
        }
    }
}

/// Puts flags and variables above the file.
pub fn apply(
    process: &mut ProcessConfig,
    overrides: &OverrideArgs,
    matches: &ArgMatches,
) -> Result<(), Failure> {
    let origin = |id: &str| match source(matches, id) {
        Some(ValueSource::CommandLine) => Origin::Flag,
        _ => Origin::Environment,
    };
    let loopback = |addr: SocketAddr, what: &'static str| match addr.ip().is_loopback() {
        true => Ok(addr),
        false => Err(beyond_loopback(addr, what)),
    };
    if let Some(s3) = &mut process.s3 {
        if let Some(addr) = overrides.s3_listen {
            s3.listen.overridden(Some((loopback(addr, "S3")?, origin("s3_listen"))));
        }
        s3.region.overridden(overrides.region.clone().map(|r| (r, origin("region"))));
        if let Some(addr) = overrides.admin_listen {
            let value = (loopback(addr, "the admin address")?, origin("admin_listen"));
            match &mut process.admin {
                Some(admin) => admin.overridden(Some(value)),
                None => process.admin = Some(Setting { value: value.0, origin: value.1 }),
            }
        }
    }
    Ok(())
}

/// The refusal of an address that others could reach.
pub fn beyond_loopback(addr: SocketAddr, what: &'static str) -> Failure {
    Failure::new(Fault::NotLoopback { what, addr: addr.to_string() }.to_string())
        .hint("listen on 127.0.0.1 or [::1]")
        .code(Code::Usage)
}

/// Where clap found a value, however deep the command that takes it.
fn source(matches: &ArgMatches, id: &str) -> Option<ValueSource> {
    let mut at = matches;
    while let Some((_, inner)) = at.subcommand() {
        at = inner;
    }
    at.try_contains_id(id).ok().and_then(|_| at.value_source(id))
}

#[derive(Serialize)]
struct Row {
    key: String,
    value: String,
    origin: String,
}

fn show(config: &Config, origin: bool, output: Output) -> Result<(), Failure> {
    let rows = rows(config);
    match output {
        Output::Json => output::json(&serde_json::json!({ "file": config.file, "settings": rows })),
        Output::Table if origin => output::table(
            &["key", "value", "origin"],
            rows.into_iter().map(|r| vec![r.key, r.value, r.origin]).collect(),
        ),
        Output::Table => {
            output::table(&["key", "value"], rows.into_iter().map(|r| vec![r.key, r.value]).collect())
        }
    }
}

fn rows(config: &Config) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |key: String, value: String, origin: String| rows.push(Row { key, value, origin });
    let c = &config.cluster;
    row(
        "cluster.secret_file".into(),
        c.secret_file.value.display().to_string(),
        c.secret_file.origin.to_string(),
    );
    row("cluster.layout".into(), c.layout.value.to_string(), c.layout.origin.to_string());
    row("cluster.unit_size".into(), c.unit_size.value.to_string(), c.unit_size.origin.to_string());
    for p in &config.processes {
        let key = |k: &str| format!("process.{}.{k}", p.name);
        for listen in &p.listen {
            row(key("listen"), format!("tcp://{}", listen.value), listen.origin.to_string());
        }
        if let Some(admin) = &p.admin {
            row(key("admin"), admin.value.to_string(), admin.origin.to_string());
        }
        row(key("cas"), p.cas.value.to_string(), p.cas.origin.to_string());
        row(key("arena"), p.arena.value.to_string(), p.arena.origin.to_string());
        row(key("cache"), p.cache.value.to_string(), p.cache.origin.to_string());
        for t in &p.targets {
            let origin = Origin::File(t.line).to_string();
            match &t.device {
                TargetDevice::One(uri) => {
                    row(key(&format!("target.{}.device", t.name)), uri.to_string(), origin)
                }
                TargetDevice::Two { meta, data } => {
                    row(key(&format!("target.{}.meta", t.name)), meta.to_string(), origin.clone());
                    row(key(&format!("target.{}.data", t.name)), data.to_string(), origin);
                }
            }
        }
        if let Some(s3) = &p.s3 {
            row(key("s3.listen"), s3.listen.value.to_string(), s3.listen.origin.to_string());
            row(key("s3.region"), s3.region.value.clone(), s3.region.origin.to_string());
            if let Some(domain) = &s3.domain {
                row(key("s3.domain"), domain.value.clone(), domain.origin.to_string());
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use crate::cli::args::Cli;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }
}
