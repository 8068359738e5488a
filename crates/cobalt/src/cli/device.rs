//! `cobalt device list|status|bind|unbind`: NVMe controllers, who drives them, and who shares their IOMMU group.

use super::args::Output;
use super::failure::Failure;
use super::output::{self, size};
use crate::host::{self, Bound, State};
use clap::Subcommand;
use cobalt_nvme::vfio::PciAddress;
use cobalt_nvme::vfio::host::{Function, controllers, holder};
use nix::unistd::User;
use serde::Serialize;
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum DeviceCommand {
    /// All NVMe controllers of this host.
    List {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// One controller: what it is, who has it, what its namespaces are used for.
    Status {
        /// Its PCI address.
        address: PciAddress,
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Give a controller that nothing uses to vfio-pci.
    Bind {
        /// Its PCI address.
        address: PciAddress,
        /// Whose group may open it, beside root.
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// Say whether it could be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Give a controller back to the driver that had it.
    Unbind {
        /// Its PCI address.
        address: PciAddress,
        /// To this driver instead.
        #[arg(long, value_name = "NAME")]
        driver: Option<String>,
        /// Say whether it could be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// A controller, as far as this host knows it.
#[derive(Serialize)]
struct Row {
    address: String,
    driver: Option<String>,
    iommu_group: Option<u32>,
    numa_node: Option<u32>,
    /// Others in its group: a group belongs to one process.
    companions: Vec<String>,
    model: String,
    serial: String,
    firmware: String,
    /// The process that has it through VFIO.
    owner: Option<String>,
    namespaces: Vec<Namespace>,
}

#[derive(Serialize)]
struct Namespace {
    name: String,
    bytes: u64,
    uses: Vec<String>,
}

fn row(function: &Function, state: &State) -> Row {
    let told = host::controller(function.address).or_else(|| {
        let device = state.devices.get(&function.address.to_string())?.clone();
        Some(host::Controller { model: device.model, serial: device.serial, firmware: device.firmware })
    });
    let told = told.unwrap_or_default();
    let vfio = function.driver.as_deref() == Some("vfio-pci");
    let node =
        function.group.filter(|_| vfio).map(|group| PathBuf::from("/dev/vfio").join(group.to_string()));
    let driven = |f: &Function| format!("{} ({})", f.address, f.driver.as_deref().unwrap_or("no driver"));
    let namespaces = host::disks(function.address)
        .into_iter()
        .map(|disk| Namespace { name: disk.name, bytes: disk.bytes, uses: disk.uses })
        .collect();
    Row {
        address: function.address.to_string(),
        driver: function.driver.clone(),
        iommu_group: function.group,
        numa_node: function.numa,
        companions: function.companions().iter().filter(|f| !f.is_bridge()).map(driven).collect(),
        model: told.model,
        serial: told.serial,
        firmware: told.firmware,
        owner: node.and_then(|node| holder(&node)),
        namespaces,
    }
}

/// `cobalt device`.
pub fn run(command: DeviceCommand) -> Result<(), Failure> {
    match command {
        DeviceCommand::List { output } => list(output),
        DeviceCommand::Status { address, output } => status(address, output),
        DeviceCommand::Bind { address, user, dry_run } => {
            let gid = user.map(|name| {
                let found = User::from_name(&name).ok().flatten().map(|user| user.gid.as_raw());
                found.ok_or(host::HostError::NoUser { user: name })
            });
            let done = host::bind(address, gid.transpose()?, dry_run)?;
            told(done, dry_run, &format!("{address}: given to vfio-pci"))
        }
        DeviceCommand::Unbind { address, driver, dry_run } => {
            let done = host::unbind(address, driver.as_deref(), dry_run)?;
            told(done, dry_run, &format!("{address}: given back"))
        }
    }
}

fn told(done: Bound, dry_run: bool, change: &str) -> Result<(), Failure> {
    match (done, dry_run) {
        (Bound::Unchanged, _) => output::line("nothing to change"),
        (Bound::Changed, true) => output::line(&format!("{change} (a dry run: nothing was changed)")),
        (Bound::Changed, false) => output::line(change),
    }
}

fn list(how: Output) -> Result<(), Failure> {
    let state = State::load()?;
    let rows: Vec<Row> = controllers().iter().map(|function| row(function, &state)).collect();
    if how == Output::Json {
        return output::json(&serde_json::json!({ "controllers": rows }));
    }
    let dash = |text: Option<String>| text.filter(|t| !t.is_empty()).unwrap_or_else(|| "-".into());
    let cells = |row: &Row| {
        let uses: Vec<&str> = row.namespaces.iter().flat_map(|n| n.uses.iter().map(String::as_str)).collect();
        let used = if uses.is_empty() { row.owner.clone() } else { Some(uses.join("; ")) };
        vec![
            row.address.clone(),
            dash(row.driver.clone()),
            dash(row.iommu_group.map(|g| g.to_string())),
            dash(row.numa_node.map(|n| n.to_string())),
            dash(Some(row.model.clone())),
            dash(Some(row.serial.clone())),
            row.namespaces.len().to_string(),
            dash(used),
        ]
    };
    let headers = ["address", "driver", ">group", ">node", "model", "serial", ">namespaces", "used by"];
    output::table(&headers, rows.iter().map(cells).collect())
}

fn status(address: PciAddress, how: Output) -> Result<(), Failure> {
    let function = Function::at(address).filter(Function::is_nvme);
    let function = function.ok_or_else(|| host::HostError::Missing { address: address.to_string() })?;
    let row = row(&function, &State::load()?);
    if how == Output::Json {
        return output::json(&row);
    }
    let name = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    output::line(&format!("{}: {} {} firmware {}", row.address, row.model, row.serial, row.firmware))?;
    output::line(&format!("driver: {}, process: {}", name(&row.driver), name(&row.owner)))?;
    let group = row.iommu_group.map_or("none".into(), |group| group.to_string());
    let alone = if row.companions.is_empty() { "alone".into() } else { row.companions.join(", ") };
    output::line(&format!("IOMMU group: {group}, with: {alone}"))?;
    for namespace in &row.namespaces {
        let uses = if namespace.uses.is_empty() { "free".into() } else { namespace.uses.join("; ") };
        output::line(&format!("{}: {}, {uses}", namespace.name, size(namespace.bytes)))?;
    }
    Ok(())
}
