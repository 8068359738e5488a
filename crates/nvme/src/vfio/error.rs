//! Why a controller cannot be had through VFIO, with what to do about it.

use super::address::PciAddress;
use super::iova::RangesError;
use std::io;

/// Why a function cannot be opened, or an operation on it failed.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    #[error(
        "there is no PCI function {address}: `cobalt device list` shows the NVMe controllers of this host"
    )]
    Missing { address: PciAddress },
    #[error(
        "{address} is not an NVMe controller (class {class}): `cobalt device list` shows those of this host"
    )]
    NotNvme { address: PciAddress, class: String },
    #[error(
        "{address} stands behind no IOMMU, and without one a driver in userspace could overwrite any memory: switch VT-d or AMD-Vi on in the firmware and boot with intel_iommu=on (AMD: amd_iommu=on)"
    )]
    NoIommu { address: PciAddress },
    #[error("{address} is driven by {driver}: `cobalt device bind {address}` gives it to vfio-pci")]
    WrongDriver { address: PciAddress, driver: String },
    #[error("{path} does not exist: load the module vfio-pci, or run `hugepages/setup`")]
    NoVfio { path: String },
    #[error(
        "{path} may not be opened by this user: give the user the group of /dev/vfio/{group} (`hugepages/setup --user NAME`), and a memlock limit of {memlock_mib} MiB or more"
    )]
    Permission { path: String, group: u32, memlock_mib: u64 },
    #[error("IOMMU group {group} of {address} is held by {holder}: one process has all of a group")]
    Held { address: PciAddress, group: u32, holder: String, known: bool },
    #[error(
        "IOMMU group {group} of {address} cannot be used while other drivers have {others}: give those to vfio-pci too"
    )]
    NotViable { address: PciAddress, group: u32, others: String },
    #[error("this kernel's VFIO is not one of version 0 with type 1: it needs CONFIG_VFIO_IOMMU_TYPE1")]
    NotType1,
    #[error("the kernel's description of the IOMMU of {address} cannot be used")]
    Ranges { address: PciAddress, source: RangesError },
    #[error("{address} has no registers of {need} bytes that can be mapped")]
    NoRegisters { address: PciAddress, need: u64 },
    #[error("no room for {len} bytes in the address ranges that the IOMMU of {address} offers")]
    NoAddresses { address: PciAddress, len: u64 },
    #[error(
        "{len} bytes cannot be locked for {address}: the memlock limit is {limit}, and all arenas of a process count, once for each controller. Raise it (LimitMEMLOCK=, ulimit -l)"
    )]
    Memlock { address: PciAddress, len: u64, limit: String },
    #[error("{what} {address} failed")]
    System { address: PciAddress, what: &'static str, source: io::Error },
}

impl VfioError {
    /// For `map_err`.
    pub(super) fn system(address: PciAddress, what: &'static str) -> impl FnOnce(io::Error) -> VfioError {
        move |source| VfioError::System { address, what, source }
    }
}
