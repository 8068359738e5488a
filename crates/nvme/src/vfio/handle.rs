//! An NVMe controller held through VFIO: group, container and device. Calls here block, so they run on a control thread; a
//! handle is stateless but for its descriptors, and may be shared with one.
//!
//! Each controller has a container of its own: what it may reach is known and can be taken away whole, whatever other
//! controllers do. The price is that locked memory counts once for each.

use super::address::PciAddress;
use super::bar::Bar;
use super::error::VfioError;
use super::host::{self, Function};
use super::iova::parse_ranges;
use super::sys;
use nix::sys::resource::{Resource, getrlimit};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vfio_bindings::bindings::vfio;

/// Where the kernel makes the nodes.
const DEV: &str = "/dev/vfio";
/// Registers of the smallest controller: its properties and the doorbells of a few queues.
const REGISTERS_MIN: u64 = 0x2000;
/// The command register in configuration space, and its bits for memory and for the bus.
const COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;

/// What was found when a function was opened.
#[derive(Clone, Debug)]
pub struct Description {
    pub address: PciAddress,
    pub group: u32,
    /// Where the IOMMU can translate.
    pub ranges: Vec<Range<u64>>,
    /// MSI-X vectors.
    pub vectors: u32,
    /// Whether the function can be reset.
    pub resets: bool,
}

/// Ways to learn that the function is to be let go, or is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Somebody wants the device back: it is being removed, or unbound.
    Request,
    /// The bus reported an error that cannot be corrected.
    Error,
}

/// An open function. Closing resets it, and takes all of its mappings away.
pub struct Handle {
    address: PciAddress,
    // Closed in this order.
    device: std::fs::File,
    _group: OwnedFd,
    container: OwnedFd,
    registers: (u64, usize),
    config: u64,
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open(path)?.into())
}

/// The limit on locked memory, as text.
fn memlock() -> String {
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) if soft != libc::RLIM_INFINITY => format!("{} MiB", soft >> 20),
        _ => "unlimited".to_owned(),
    }
}

/// What can be said without opening anything: the function is a controller, behind an IOMMU, and given to vfio-pci.
fn examine(address: PciAddress) -> Result<(Function, u32), VfioError> {
    let function = Function::at(address).ok_or(VfioError::Missing { address })?;
    if !function.is_nvme() {
        return Err(VfioError::NotNvme { address, class: function.class });
    }
    let group = function.group.ok_or(VfioError::NoIommu { address })?;
    // The mode without an IOMMU has groups, too; its nodes are named otherwise, and are refused.
    if Path::new(DEV).join(format!("noiommu-{group}")).exists() {
        return Err(VfioError::NoIommu { address });
    }
    match function.driver.as_deref() {
        Some("vfio-pci") => Ok((function, group)),
        other => Err(VfioError::WrongDriver { address, driver: other.unwrap_or("nothing").to_owned() }),
    }
}

impl Handle {
    /// Opens a controller. `memory` bytes will be locked for it: the figure of the advice when the user may not.
    ///
    /// # Errors
    /// [`VfioError`], which says what to do.
    pub fn open(address: PciAddress, memory: u64) -> Result<(Handle, Description), VfioError> {
        let (function, group) = examine(address)?;
        let refused = |path: PathBuf| {
            move |error: io::Error| match error.kind() {
                io::ErrorKind::NotFound => VfioError::NoVfio { path: path.display().to_string() },
                io::ErrorKind::PermissionDenied => VfioError::Permission {
                    path: path.display().to_string(),
                    group,
                    memlock_mib: memory.div_ceil(1 << 20),
                },
                _ if error.raw_os_error() == Some(libc::EBUSY) => {
                    let unknown = "another process, which this user may not see".to_owned();
                    let holder = host::holder(&path).map(|holder| holder.to_string());
                    let known = holder.is_some();
                    VfioError::Held { address, group, holder: holder.unwrap_or(unknown), known }
                }
                _ => VfioError::System { address, what: "opening", source: error },
            }
        };
        let system = VfioError::system;
        let path = PathBuf::from(DEV).join("vfio");
        let container = open(&path).map_err(refused(path))?;
        let version = sys::api_version(container.as_fd()).map_err(system(address, "asking VFIO about"))?;
        if version != vfio::VFIO_API_VERSION as i32 || !sys::has_type1(container.as_fd()).unwrap_or(false) {
            return Err(VfioError::NotType1);
        }
        let path = PathBuf::from(DEV).join(group.to_string());
        let group_fd = open(&path).map_err(refused(path))?;
        let flags = sys::group_flags(group_fd.as_fd()).map_err(system(address, "asking for the group of"))?;
        if flags & vfio::VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(VfioError::NotViable { address, group, others: others(&function) });
        }
        sys::set_container(group_fd.as_fd(), container.as_fd())
            .map_err(system(address, "making a container for"))?;
        sys::set_type1(container.as_fd()).map_err(system(address, "setting the IOMMU for"))?;
        let info = sys::iommu_info(container.as_fd()).map_err(system(address, "describing the IOMMU of"))?;
        let ranges = parse_ranges(&info).map_err(|source| VfioError::Ranges { address, source })?;
        let name = CString::new(address.to_string()).unwrap_or_default();
        let device = sys::device_fd(group_fd.as_fd(), &name).map_err(system(address, "taking"))?;
        let handle = Handle::describe(address, device, group_fd, container)?;
        let fd = handle.device.as_fd();
        let flags = sys::device_info(fd).map_err(system(address, "describing"))?.flags;
        let vectors = sys::irq_count(fd, vfio::VFIO_PCI_MSIX_IRQ_INDEX)
            .map_err(system(address, "counting interrupts of"))?;
        let resets = flags & vfio::VFIO_DEVICE_FLAGS_RESET != 0;
        Ok((handle, Description { address, group, ranges, vectors, resets }))
    }

    fn describe(
        address: PciAddress,
        device: OwnedFd,
        group: OwnedFd,
        container: OwnedFd,
    ) -> Result<Handle, VfioError> {
        let system = |what| VfioError::system(address, what);
        let bar = sys::region_info(device.as_fd(), vfio::VFIO_PCI_BAR0_REGION_INDEX)
            .map_err(system("finding the registers of"))?;
        if bar.flags & vfio::VFIO_REGION_INFO_FLAG_MMAP == 0 || bar.size < REGISTERS_MIN {
            return Err(VfioError::NoRegisters { address, need: REGISTERS_MIN });
        }
        let config = sys::region_info(device.as_fd(), vfio::VFIO_PCI_CONFIG_REGION_INDEX)
            .map_err(system("finding the configuration of"))?;
        let len =
            usize::try_from(bar.size).map_err(|_| VfioError::NoRegisters { address, need: REGISTERS_MIN })?;
        Ok(Handle {
            address,
            device: device.into(),
            _group: group,
            container,
            registers: (bar.offset, len),
            config: config.offset,
        })
    }

    /// The function's address.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Maps the registers.
    ///
    /// # Errors
    /// What the system said.
    pub fn registers(&self) -> Result<Bar, VfioError> {
        Bar::map(self.device.as_fd(), self.registers.0, self.registers.1)
            .map_err(VfioError::system(self.address, "mapping the registers of"))
    }

    /// Lets the device read and write `len` bytes at `address` of this process, at `iova`. The pages are locked.
    ///
    /// # Safety
    /// The memory stays mapped until [`Handle::unmap`] of the range has returned without an error, or this handle is
    /// dropped; and who reads it knows that a device writes there.
    ///
    /// # Errors
    /// [`VfioError::Memlock`] when the limit is reached.
    #[expect(unsafe_code)]
    pub unsafe fn map(&self, address: usize, len: u64, iova: u64) -> Result<(), VfioError> {
        // SAFETY: as the caller promises.
        let mapped = unsafe { sys::map(self.container.as_fd(), address, len, iova) };
        mapped.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOMEM) => VfioError::Memlock { address: self.address, len, limit: memlock() },
            _ => VfioError::System { address: self.address, what: "mapping memory for", source },
        })
    }

    /// Takes a mapping away. When this has returned without an error, no DMA reaches the range (I7).
    ///
    /// # Errors
    /// What the system said; the memory must not be used again then.
    pub fn unmap(&self, iova: u64, len: u64) -> Result<(), VfioError> {
        let system =
            |source| VfioError::System { address: self.address, what: "unmapping memory of", source };
        match sys::unmap(self.container.as_fd(), iova, len) {
            Ok(unmapped) if unmapped == len => Ok(()),
            Ok(unmapped) => Err(system(io::Error::other(format!("{unmapped} bytes of {len} were mapped")))),
            Err(source) => Err(system(source)),
        }
    }

    /// Gets `count` MSI-X vectors ready, none attached.
    ///
    /// # Errors
    /// What the system said.
    pub fn enable_vectors(&self, count: usize) -> Result<(), VfioError> {
        let none = [-1; sys::IRQS_MAX];
        let count = count.clamp(1, sys::IRQS_MAX);
        sys::set_irqs(self.device.as_fd(), vfio::VFIO_PCI_MSIX_IRQ_INDEX, 0, &none[..count])
            .map_err(VfioError::system(self.address, "enabling interrupts of"))
    }

    /// Attaches an eventfd to a vector, or detaches it. Between, interrupts of the vector are lost: poll after attaching.
    ///
    /// # Errors
    /// What the system said.
    pub fn set_vector(&self, vector: u32, eventfd: Option<BorrowedFd<'_>>) -> Result<(), VfioError> {
        self.set_irq(vfio::VFIO_PCI_MSIX_IRQ_INDEX, vector, eventfd)
            .map_err(VfioError::system(self.address, "setting an interrupt of"))
    }

    /// Has a notice written to an eventfd.
    ///
    /// # Errors
    /// What the system said; not every function has errors to report.
    pub fn set_notice(&self, notice: Notice, eventfd: BorrowedFd<'_>) -> Result<(), VfioError> {
        let index = match notice {
            Notice::Request => vfio::VFIO_PCI_REQ_IRQ_INDEX,
            Notice::Error => vfio::VFIO_PCI_ERR_IRQ_INDEX,
        };
        self.set_irq(index, 0, Some(eventfd))
            .map_err(VfioError::system(self.address, "asking for notices of"))
    }

    fn set_irq(&self, index: u32, start: u32, eventfd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fd: RawFd = eventfd.map_or(-1, |fd| fd.as_raw_fd());
        sys::set_irqs(self.device.as_fd(), index, start, &[fd])
    }

    /// Turns all vectors off.
    ///
    /// # Errors
    /// What the system said.
    pub fn disable_vectors(&self) -> Result<(), VfioError> {
        sys::irqs_off(self.device.as_fd(), vfio::VFIO_PCI_MSIX_IRQ_INDEX)
            .map_err(VfioError::system(self.address, "disabling interrupts of"))
    }

    /// Resets the function. When this has returned without an error, what it was doing has stopped.
    ///
    /// # Errors
    /// What the system said.
    pub fn reset(&self) -> Result<(), VfioError> {
        sys::reset(self.device.as_fd()).map_err(VfioError::system(self.address, "resetting"))
    }

    /// Lets the function reach memory, or not: with bus master off it starts no DMA. Answers whether the function obeyed.
    ///
    /// # Errors
    /// What the system said.
    pub fn set_bus_master(&self, on: bool) -> Result<bool, VfioError> {
        let failed = |source| VfioError::System { address: self.address, what: "configuring", source };
        let read = || {
            let mut bytes = [0; 2];
            self.device.read_exact_at(&mut bytes, self.config + COMMAND).map(|()| u16::from_le_bytes(bytes))
        };
        let command = read().map_err(failed)?;
        let wanted = if on { command | COMMAND_MASTER | COMMAND_MEMORY } else { command & !COMMAND_MASTER };
        self.device.write_all_at(&wanted.to_le_bytes(), self.config + COMMAND).map_err(failed)?;
        Ok((read().map_err(failed)? & COMMAND_MASTER != 0) == on)
    }
}

/// Those of the group that another driver has.
fn others(function: &Function) -> String {
    let foreign = |f: &Function| !f.is_bridge() && f.driver.as_deref().is_some_and(|d| d != "vfio-pci");
    let named: Vec<String> = function
        .companions()
        .iter()
        .filter(|f| foreign(f))
        .map(|f| format!("{} ({})", f.address, f.driver.as_deref().unwrap_or("nothing")))
        .collect();
    if named.is_empty() { "a part of it".to_owned() } else { named.join(", ") }
}
