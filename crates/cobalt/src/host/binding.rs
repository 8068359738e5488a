//! Giving a controller to vfio-pci, and back to whom it belonged.

use super::claims::{controller, disks};
use super::state::{Device, State};
use super::{HostError, word};
use cobalt_nvme::vfio::PciAddress;
use cobalt_nvme::vfio::host::{self, Function};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The driver that gives functions to processes.
const VFIO: &str = "vfio-pci";
/// Who may open a group's node, beside root.
const NODE_MODE: u32 = 0o660;
/// VFIO's own node, with the mode that the kernel means it to have: it gives nothing without a group. systemd makes it for root
/// alone before the module is there, and where no udev runs it stays so.
const CONTAINER: (&str, u32) = ("/dev/vfio/vfio", 0o666);

/// What was done, or would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Changed,
    /// It was so already.
    Unchanged,
}

/// A controller that may be given away: it exists, nothing uses it, and nobody else is in its group.
///
/// # Errors
/// Why not.
pub fn examine(address: PciAddress) -> Result<Function, HostError> {
    let text = address.to_string();
    let function = Function::at(address).filter(Function::is_nvme);
    let function = function.ok_or_else(|| HostError::Missing { address: text.clone() })?;
    let group = function.group.ok_or_else(|| HostError::NoIommu { address: text.clone() })?;
    let uses: Vec<String> = disks(address).into_iter().flat_map(|disk| disk.uses).collect();
    if !uses.is_empty() {
        return Err(HostError::InUse { address: text, uses: uses.join("; ") });
    }
    let taken = |f: &Function| !f.is_bridge() && f.driver.as_deref().is_some_and(|d| d != VFIO);
    let others: Vec<String> = function
        .companions()
        .iter()
        .filter(|f| taken(f))
        .map(|f| format!("{} (driven by {})", f.address, f.driver.as_deref().unwrap_or_default()))
        .collect();
    if !others.is_empty() {
        return Err(HostError::Shared { address: text, group, others: others.join(", ") });
    }
    Ok(function)
}

fn load(driver: &str) {
    // Built in, loaded already, or missing: whether the driver takes the function tells.
    let _ = Command::new("modprobe").arg(driver).output();
}

fn write(path: &Path, text: &str) -> Result<(), HostError> {
    fs::write(path, text).map_err(HostError::system("writing", path))
}

/// Moves a function from its driver to another; to whichever fits when `to` is none.
fn hand_over(address: PciAddress, to: Option<&str>, override_before: &str) -> Result<(), HostError> {
    let folder = host::folder(address);
    let text = address.to_string();
    if folder.join("driver").exists() {
        write(&folder.join("driver/unbind"), &text)?;
    }
    // An empty line takes an override away.
    write(&folder.join("driver_override"), &format!("{override_before}\n"))?;
    if let Some(driver) = to {
        load(driver);
        write(Path::new("/sys/bus/pci/drivers_probe"), &text)?;
        let now = Function::at(address).and_then(|f| f.driver);
        if now.as_deref() != Some(driver) {
            return Err(HostError::Refused { address: text, driver: driver.to_owned() });
        }
    }
    Ok(())
}

/// Gives a controller to vfio-pci, and its group's node to a user's group, where one is named.
///
/// # Errors
/// Why it was not done; the controller is as it was then.
pub fn bind(address: PciAddress, group_of_user: Option<u32>, dry_run: bool) -> Result<Bound, HostError> {
    let function = examine(address)?;
    let bound = function.driver.as_deref() == Some(VFIO);
    if !bound && !dry_run {
        let told = controller(address).unwrap_or_default();
        let before = word(&host::folder(address).join("driver_override")).filter(|w| w != "(null)");
        let mut state = State::load()?;
        // Written down first: what follows can be undone whenever it is interrupted.
        state.devices.insert(
            address.to_string(),
            Device {
                driver: function.driver.clone(),
                before: before.clone(),
                model: told.model,
                serial: told.serial,
                firmware: told.firmware,
            },
        );
        state.store()?;
        if let Err(error) = hand_over(address, Some(VFIO), VFIO) {
            let back = hand_over(address, function.driver.as_deref(), &before.unwrap_or_default());
            if back.is_ok() {
                state.devices.remove(&address.to_string());
                state.store()?;
            }
            return Err(error);
        }
    }
    let Some((gid, group)) = group_of_user.zip(function.group).filter(|_| !dry_run) else {
        return Ok(if bound { Bound::Unchanged } else { Bound::Changed });
    };
    let node = PathBuf::from("/dev/vfio").join(group.to_string());
    chown(&node, None, Some(gid)).map_err(HostError::system("giving away", &node))?;
    for (node, mode) in [(node.as_path(), NODE_MODE), (Path::new(CONTAINER.0), CONTAINER.1)] {
        fs::set_permissions(node, fs::Permissions::from_mode(mode))
            .map_err(HostError::system("giving away", node))?;
    }
    Ok(if bound { Bound::Unchanged } else { Bound::Changed })
}

/// Gives a controller back to the driver that had it, or to the one that is named.
///
/// # Errors
/// Why it was not done.
pub fn unbind(address: PciAddress, driver: Option<&str>, dry_run: bool) -> Result<Bound, HostError> {
    let text = address.to_string();
    let function = Function::at(address).filter(Function::is_nvme);
    let mut state = State::load()?;
    let Some(function) = function else {
        // It was taken out: nothing of it is left to undo.
        if !dry_run && state.devices.remove(&text).is_some() {
            state.store()?;
        }
        return Err(HostError::Missing { address: text });
    };
    let known = state.devices.get(&text).cloned();
    if function.driver.as_deref() != Some(VFIO) && known.is_none() {
        return Ok(Bound::Unchanged);
    }
    if let Some(group) = function.group
        && let Some(holder) = host::holder(&PathBuf::from("/dev/vfio").join(group.to_string()))
    {
        return Err(HostError::Held { address: text, holder: holder.to_string() });
    }
    let to = match (&known, driver) {
        (_, Some(driver)) => Some(driver.to_owned()),
        (Some(device), None) => device.driver.clone(),
        (None, None) => return Err(HostError::Unknown { address: text }),
    };
    if dry_run {
        return Ok(Bound::Changed);
    }
    let before = known.as_ref().and_then(|device| device.before.clone()).unwrap_or_default();
    hand_over(address, to.as_deref(), &before)?;
    state.devices.remove(&text);
    state.store()?;
    Ok(Bound::Changed)
}
