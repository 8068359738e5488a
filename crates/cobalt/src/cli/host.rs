//! `cobalt host setup|status|reset`, which hugepages/ runs, and `cobalt doctor`.

use super::args::Output;
use super::failure::{Code, Failure};
use super::output;
use crate::host::{self, HostError, Request, State};
use clap::{Args, Subcommand};
use cobalt_base::ByteSize;
use cobalt_nvme::vfio::PciAddress;
use std::path::Path;

#[derive(Subcommand)]
pub enum HostCommand {
    /// Reserve hugepages, give controllers to vfio-pci, let a user lock memory. Again without effect.
    Setup(SetupArgs),
    /// What holds now, and what `reset` would undo.
    Status {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Put everything back as it was before the first `setup`.
    Reset {
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Args)]
pub struct SetupArgs {
    /// Hugepages of 2 MiB on each memory node [default: as they are]
    #[arg(long, value_name = "N")]
    pages: Option<u64>,
    /// Another number of pages for one memory node.
    #[arg(long = "node", value_name = "NODE:N", value_parser = node)]
    nodes: Vec<(u32, u64)>,
    /// A controller to give to vfio-pci, as `cobalt device list` shows it.
    #[arg(long = "device", value_name = "ADDRESS")]
    devices: Vec<PciAddress>,
    /// Who will run the daemon: may open the controllers, and lock memory.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How much memory the user may lock [default: what pages and controllers come to]
    #[arg(long, value_name = "SIZE")]
    memlock: Option<ByteSize>,
    /// Do the same at each boot, by a systemd unit that `reset` removes.
    #[arg(long)]
    persist: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

fn node(text: &str) -> Result<(u32, u64), String> {
    let parsed =
        text.split_once(':').and_then(|(node, pages)| Some((node.parse().ok()?, pages.parse().ok()?)));
    parsed.ok_or_else(|| "write NODE:PAGES, as in 0:512".to_owned())
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Failure {
        let text = crate::process::targets::with_sources(&error);
        // The messages say what to do behind a colon.
        match text.split_once(": ") {
            Some((what, hint)) if std::error::Error::source(&error).is_none() => {
                Failure::new(what).hint(hint)
            }
            _ => Failure::new(text),
        }
    }
}

/// `cobalt host`.
pub fn run(command: HostCommand) -> Result<(), Failure> {
    let mut changes = 0;
    let mut say = |text: String| {
        changes += 1;
        let _ = output::line(&text);
    };
    let dry_run = match command {
        HostCommand::Setup(args) => {
            let request = Request {
                pages: args.pages,
                nodes: args.nodes,
                devices: args.devices,
                user: args.user,
                memlock: args.memlock.map(|size| size.0),
                persist: args.persist,
                dry_run: args.dry_run,
            };
            host::setup(&request, &mut say)?;
            args.dry_run
        }
        HostCommand::Reset { dry_run } => {
            host::reset(dry_run, &mut say)?;
            dry_run
        }
        HostCommand::Status { output } => return status(output),
    };
    match (changes, dry_run) {
        (0, _) => output::line("nothing to change"),
        (_, true) => output::line("nothing was changed: this was a dry run"),
        (_, false) => Ok(()),
    }
}

fn status(how: Output) -> Result<(), Failure> {
    let state = State::load()?;
    let nodes = host::nodes();
    let files: Vec<&str> = [host::LIMITS, host::UNIT].into_iter().filter(|f| Path::new(f).exists()).collect();
    if how == Output::Json {
        let nodes: Vec<_> = nodes
            .iter()
            .map(|n| serde_json::json!({"node": n.node, "pages": n.pages, "free": n.free}))
            .collect();
        return output::json(&serde_json::json!({"nodes": nodes, "changed": state, "files": files}));
    }
    let rows = nodes.iter().map(|n| {
        let before = state.pages.get(&n.node).map_or("-".into(), |p| p.before.to_string());
        vec![n.node.to_string(), n.pages.to_string(), n.free.to_string(), before]
    });
    output::table(&[">node", ">hugepages", ">free", ">before"], rows.collect())?;
    for (address, device) in &state.devices {
        let driver = device.driver.as_deref().unwrap_or("nobody");
        output::line(&format!(
            "{address}: given to vfio-pci, {driver} had it ({} {})",
            device.model, device.serial
        ))?;
    }
    files.into_iter().try_for_each(|file| output::line(&format!("{file}: made by setup")))
}

/// `cobalt doctor`.
pub fn doctor(how: Output) -> Result<(), Failure> {
    let checks = host::doctor::checks();
    let failed: Vec<&str> =
        checks.iter().filter(|c| c.verdict == host::doctor::Verdict::Failed).map(|c| c.name).collect();
    if how == Output::Json {
        output::json(&serde_json::json!({"healthy": failed.is_empty(), "checks": checks}))?;
    } else {
        for check in &checks {
            let verdict = format!("{:?}", check.verdict).to_lowercase();
            output::line(&format!("{verdict:8} {}: {}", check.name, check.found))?;
            if let Some(fix) = &check.fix {
                output::line(&format!("         fix: {fix}"))?;
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new("this host cannot run the NVMe driver").cause(failed.join(", ")).code(Code::Failed))
}
