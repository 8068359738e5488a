//! `cobalt device list|status|bind|unbind`: NVMe controllers, who drives them, and who shares their IOMMU group.

use super::args::Output;
use super::failure::Failure;
use super::output::{self, size};
use super::talk::ask_at;
use crate::control::{Controller, Health, Namespace, Request, Response};
use crate::host::{self, Bound, State, sockets};
use clap::Subcommand;
use cobalt_nvme::vfio::PciAddress;
use cobalt_nvme::vfio::host::{Function, Holder, controllers, holder};
use nix::unistd::User;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum DeviceCommand {
    /// All NVMe controllers of this host.
    List {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// What a controller is, who has it, what its namespaces are used for, and how it is. The process that drives it is asked.
    Status {
        /// Its PCI address [default: all controllers]
        address: Option<PciAddress>,
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

/// The same, with what its owner says.
#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    row: Row,
    /// What the owner does with it: `ready`, `starting`, `failed: ...`, `gone`.
    state: Option<String>,
    health: Option<Health>,
    /// Why its health is not known.
    unknown: Option<String>,
    /// The owner's exact counts.
    counters: BTreeMap<String, u64>,
}

/// Who has a controller through VFIO.
fn owner(function: &Function) -> Option<Holder> {
    let group = function.group.filter(|_| function.driver.as_deref() == Some("vfio-pci"))?;
    holder(&PathBuf::from("/dev/vfio").join(group.to_string()))
}

fn row(function: &Function, state: &State) -> Row {
    let told = host::controller(function.address).or_else(|| {
        let device = state.devices.get(&function.address.to_string())?.clone();
        Some(host::Controller { model: device.model, serial: device.serial, firmware: device.firmware })
    });
    let told = told.unwrap_or_default();
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
        owner: owner(function).map(|holder| holder.to_string()),
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
            changed(done, dry_run, &format!("{address}: given to vfio-pci"))
        }
        DeviceCommand::Unbind { address, driver, dry_run } => {
            let done = host::unbind(address, driver.as_deref(), dry_run)?;
            changed(done, dry_run, &format!("{address}: given back"))
        }
    }
}

fn changed(done: Bound, dry_run: bool, change: &str) -> Result<(), Failure> {
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

/// Asks the owner, who alone can ask the controller.
fn told(function: &Function, state: &State) -> Told {
    let mut row = row(function, state);
    let answer = match (owner(function), function.driver.as_deref()) {
        (Some(holder), _) => ask(function.address, &holder),
        (None, Some("vfio-pci")) => Err("no process that this user may see has it".to_owned()),
        (None, Some(driver)) => {
            Err(format!("the kernel's driver {driver} has it: `nvme smart-log` asks there"))
        }
        (None, None) => Err("no driver has it".to_owned()),
    };
    match answer {
        Ok(Controller { model, serial, firmware, state, namespaces, health, unknown, counters, .. }) => {
            (row.model, row.serial, row.firmware, row.namespaces) = (model, serial, firmware, namespaces);
            Told { row, state: Some(state), health, unknown, counters }
        }
        Err(why) => Told { row, state: None, health: None, unknown: Some(why), counters: BTreeMap::new() },
    }
}

fn ask(address: PciAddress, holder: &Holder) -> Result<Controller, String> {
    let mut said = Vec::new();
    for socket in sockets::listening(holder.pid) {
        match ask_at(&socket, &holder.to_string(), &Request::Controllers) {
            Ok(Response::Controllers { controllers }) => {
                let own = controllers.into_iter().find(|c| c.address == address.to_string());
                return own
                    .ok_or_else(|| format!("{holder} has it and does not drive it: it starts or ends"));
            }
            Ok(other) => said.push(format!("it sent {}", other.name())),
            Err(failure) => said.push(failure.cause.unwrap_or(failure.error)),
        }
    }
    if said.is_empty() {
        said.push("it has no control socket that this user may reach".to_owned());
    }
    Err(format!("{holder} has it and does not answer: {}", said.join("; ")))
}

fn status(address: Option<PciAddress>, how: Output) -> Result<(), Failure> {
    let state = State::load()?;
    let Some(address) = address else {
        let all: Vec<Told> = controllers().iter().map(|function| told(function, &state)).collect();
        return match how {
            Output::Json => output::json(&serde_json::json!({ "controllers": all })),
            _ if all.is_empty() => output::line("this host has no NVMe controller"),
            _ => all.iter().try_for_each(print),
        };
    };
    let function = Function::at(address).filter(Function::is_nvme);
    let function = function.ok_or_else(|| host::HostError::Missing { address: address.to_string() })?;
    let told = told(&function, &state);
    if how == Output::Json { output::json(&told) } else { print(&told) }
}

fn print(told: &Told) -> Result<(), Failure> {
    let Told { row, state, health, unknown, counters } = told;
    let name = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    output::line(&format!("{}: {} {} firmware {}", row.address, row.model, row.serial, row.firmware))?;
    output::line(&format!("  driver: {}, process: {}", name(&row.driver), name(&row.owner)))?;
    let group = row.iommu_group.map_or("none".into(), |group| group.to_string());
    let alone = if row.companions.is_empty() { "alone".into() } else { row.companions.join(", ") };
    output::line(&format!("  IOMMU group: {group}, with: {alone}"))?;
    for namespace in &row.namespaces {
        let uses = if namespace.uses.is_empty() { "free".into() } else { namespace.uses.join("; ") };
        output::line(&format!("  {}: {}, {uses}", namespace.name, size(namespace.bytes)))?;
    }
    if let Some(state) = state {
        let counts: Vec<String> =
            counters.iter().map(|(name, n)| format!("{n} {}", name.replace('_', " "))).collect();
        output::line(&format!("  state: {state}; {}", counts.join(", ")))?;
    }
    match (health, unknown) {
        (Some(health), _) => words(health).iter().try_for_each(|line| output::line(&format!("  {line}"))),
        (None, why) => output::line(&format!("  health unknown: {}", name(why))),
    }
}

/// A disk's health, the worst first.
fn words(health: &Health) -> Vec<String> {
    let mut lines: Vec<String> =
        health.critical_warnings.iter().map(|warning| format!("CRITICAL: {warning}")).collect();
    let temperature = health.temperature.map_or("not measured".into(), |celsius| format!("{celsius} °C"));
    lines.push(format!(
        "temperature: {temperature}, used: {} %, spare: {} % (warns below {} %), media errors: {}",
        health.used, health.spare, health.spare_threshold, health.media_errors
    ));
    lines.push(format!(
        "power on: {} h, power cycles: {}, unsafe shutdowns: {}, error log entries: {}, read: {}, written: {}",
        health.power_on_hours,
        health.power_cycles,
        health.unsafe_shutdowns,
        health.error_log_entries,
        size(health.read_bytes),
        size(health.written_bytes)
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::words;
    use crate::control::Health;

    #[test]
    fn what_is_critical_comes_first() {
        let health = Health {
            critical_warnings: vec!["media is read-only".into()],
            used: 103,
            media_errors: 7,
            ..Health::default()
        };
        let lines = words(&health);
        assert_eq!(lines[0], "CRITICAL: media is read-only");
        assert!(lines[1].contains("not measured") && lines[1].contains("used: 103 %"), "{}", lines[1]);
        assert!(lines[1].contains("media errors: 7"));
    }
}
