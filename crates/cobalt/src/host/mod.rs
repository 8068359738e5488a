//! Preparing a host for the NVMe driver, and undoing it: hugepages per memory node, controllers with vfio-pci, the limit on
//! locked memory, a unit that does it again at boot. What is changed is written down first, so that `reset` can put it back.

mod binding;
mod claims;
pub mod doctor;
mod files;
mod pages;
mod prepare;
pub mod sockets;
mod state;

pub use binding::{Bound, bind, unbind};
pub use claims::{Controller, controller, disks};
pub use files::{LIMITS, UNIT};
pub use pages::nodes;
pub use prepare::{Request, reset, setup};
pub use state::State;

use cobalt_bdev::NvmeName;
use cobalt_nvme::vfio::host::Function;
use std::path::Path;

/// A controller's address: as it is named, or by the serial number that was written down when it was given away. What is
/// not known is its own name.
pub fn address_of(name: &NvmeName) -> String {
    match name {
        NvmeName::Address(address) => address.clone(),
        NvmeName::Serial(serial) => {
            let known = State::load().unwrap_or_default();
            let found = known.devices.into_iter().find(|(_, device)| device.serial == *serial);
            found.map_or_else(|| name.to_string(), |(address, _)| address)
        }
    }
}

/// The IOMMU group of a controller of this host.
pub fn group_of(address: &str) -> Option<u32> {
    Function::at(address.parse().ok()?)?.group
}

/// A file's only word.
fn word(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Why a host cannot be prepared. One sentence, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("{what} needs root: run it with sudo")]
    Root { what: &'static str },
    #[error("{address} is in use: {uses}. Stop that first; nothing was changed")]
    InUse { address: String, uses: String },
    #[error(
        "IOMMU group {group} of {address} has {others} in it, and a group is given away as a whole: free those too, or use another slot"
    )]
    Shared { address: String, group: u32, others: String },
    #[error("there is no NVMe controller {address}: `cobalt device list` shows those of this host")]
    Missing { address: String },
    #[error(
        "{address} stands behind no IOMMU: switch VT-d or AMD-Vi on in the firmware and boot with intel_iommu=on (AMD: amd_iommu=on)"
    )]
    NoIommu { address: String },
    #[error("{address} is held by {holder}: stop that first")]
    Held { address: String, holder: String },
    #[error(
        "the kernel has no driver {driver}, or it refuses {address}: `modprobe {driver}` and the kernel's log say why"
    )]
    Refused { address: String, driver: String },
    #[error(
        "{address} was not bound by this tool, so it does not know the driver from before: name it with --driver"
    )]
    Unknown { address: String },
    #[error("there is no user {user}: make one with `useradd --system {user}`")]
    NoUser { user: String },
    #[error(
        "memory node {node} gave {got} hugepages of {wanted}: its memory is in use or in pieces; free some, or do this at boot (--persist)"
    )]
    Pages { node: u32, wanted: u64, got: u64 },
    #[error("there is no memory node {node}")]
    NoNode { node: u32 },
    #[error("{path} was not made by this tool: move it away")]
    Foreign { path: String },
    #[error("{what} {path} failed")]
    System { what: &'static str, path: String, source: std::io::Error },
}

impl HostError {
    fn system(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> HostError {
        let path = path.display().to_string();
        move |source| match source.kind() {
            std::io::ErrorKind::PermissionDenied => HostError::Root { what: "changing the host" },
            _ => HostError::System { what, path, source },
        }
    }
}
