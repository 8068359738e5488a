//! What the kernel's sysfs says about PCI functions: class, driver, IOMMU group.

use super::address::PciAddress;
use std::fmt;
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

const DEVICES: &str = "/sys/bus/pci/devices";
/// Mass storage, non-volatile memory, NVMe.
const NVME_CLASS: &str = "0x010802";

/// A PCI function of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub address: PciAddress,
    /// As sysfs writes it.
    pub class: String,
    /// Who drives it.
    pub driver: Option<String>,
    /// The functions that the IOMMU cannot tell apart from it share a group.
    pub group: Option<u32>,
    /// Memory node that it is close to.
    pub numa: Option<u32>,
}

/// The folder of a function in sysfs.
pub fn folder(address: PciAddress) -> PathBuf {
    Path::new(DEVICES).join(address.to_string())
}

fn word(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

impl Function {
    /// The function at an address, if there is one.
    pub fn at(address: PciAddress) -> Option<Function> {
        let folder = folder(address);
        Some(Function {
            address,
            class: word(&folder.join("class"))?,
            driver: link_name(&folder.join("driver")),
            group: link_name(&folder.join("iommu_group")).and_then(|name| name.parse().ok()),
            numa: word(&folder.join("numa_node")).and_then(|node| node.parse().ok()),
        })
    }

    /// Whether it is an NVMe controller.
    pub fn is_nvme(&self) -> bool {
        self.class == NVME_CLASS
    }

    /// Whether it is a bridge: those stay with the kernel, also in a group that is in use.
    pub fn is_bridge(&self) -> bool {
        self.class.starts_with("0x0604")
    }

    /// The others of its group.
    pub fn companions(&self) -> Vec<Function> {
        let Some(group) = self.group else { return Vec::new() };
        let folder = Path::new("/sys/kernel/iommu_groups").join(group.to_string()).join("devices");
        let mut others: Vec<Function> =
            addresses(&folder).into_iter().filter(|a| *a != self.address).filter_map(Function::at).collect();
        others.sort_by_key(|f| f.address);
        others
    }
}

fn addresses(folder: &Path) -> Vec<PciAddress> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// All NVMe controllers of this host, in order.
pub fn controllers() -> Vec<Function> {
    let mut found: Vec<Function> = addresses(Path::new(DEVICES))
        .into_iter()
        .filter_map(Function::at)
        .filter(Function::is_nvme)
        .collect();
    found.sort_by_key(|f| f.address);
    found
}

/// A process that has something open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    /// What it calls itself.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// Which process has a device open, as far as this user may see.
pub fn holder(node: &Path) -> Option<Holder> {
    let number = fs::metadata(node).ok().map(|meta| meta.st_rdev()).filter(|number| *number != 0)?;
    let own = std::process::id();
    let processes = fs::read_dir("/proc").ok()?;
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.filter(|pid| *pid != own) {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        if files.flatten().any(|file| fs::metadata(file.path()).is_ok_and(|meta| meta.st_rdev() == number)) {
            let name = word(&PathBuf::from(format!("/proc/{pid}/comm"))).unwrap_or_default();
            return Some(Holder { pid, name });
        }
    }
    None
}
