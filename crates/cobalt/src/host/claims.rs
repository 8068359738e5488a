//! Who uses a controller's namespaces: nothing that is mounted, partitioned, swap, part of an array or volume group, or open
//! is ever taken from the kernel.

use super::word;
use cobalt_nvme::vfio::{PciAddress, host};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes at a device's beginning that say what it belongs to.
const HEAD: usize = 8192;
/// Where md of version 1.2 keeps its superblock; 1.1 keeps it at the beginning.
const MD_PLACES: [usize; 2] = [0, 4096];
const MD_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
/// LVM's label is in one of the first four sectors.
const LVM_MAGIC: &[u8] = b"LABELONE";
const SECTOR: usize = 512;

/// A controller that the kernel's driver has, as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    pub model: String,
    pub serial: String,
    pub firmware: String,
}

/// A namespace as a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// `nvme0n1`.
    pub name: String,
    pub bytes: u64,
    /// What it is used for, in words; empty when it is free.
    pub uses: Vec<String>,
}

/// The kernel's controller behind a function: its folder in sysfs.
fn kernel_controller(address: PciAddress) -> Option<PathBuf> {
    let folder = host::folder(address).join("nvme");
    fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).next()
}

/// What the kernel says of a controller that its driver has.
pub fn controller(address: PciAddress) -> Option<Controller> {
    let folder = kernel_controller(address)?;
    let read = |name: &str| word(&folder.join(name)).unwrap_or_default();
    Some(Controller { model: read("model"), serial: read("serial"), firmware: read("firmware_rev") })
}

/// The block devices of a controller, and what each is used for.
pub fn disks(address: PciAddress) -> Vec<Disk> {
    let Some(folder) = kernel_controller(address) else { return Vec::new() };
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut disks: Vec<Disk> = names.filter_map(|name| visible(&name)).map(|name| disk(&name)).collect();
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks
}

/// The name of the block device: a path of several (`nvme0c1n1`) is shown as one (`nvme0n1`).
fn visible(name: &str) -> Option<String> {
    let rest = name.strip_prefix("nvme")?;
    let (controller, namespace) = rest.split_once('n')?;
    let subsystem = controller.split_once('c').map_or(controller, |(subsystem, _)| subsystem);
    let numbers = [subsystem, namespace].iter().all(|part| part.parse::<u32>().is_ok());
    numbers.then(|| format!("nvme{subsystem}n{namespace}"))
}

fn disk(name: &str) -> Disk {
    let folder = Path::new("/sys/class/block").join(name);
    let sectors: u64 = word(&folder.join("size")).and_then(|size| size.parse().ok()).unwrap_or(0);
    Disk { name: name.to_owned(), bytes: sectors.saturating_mul(SECTOR as u64), uses: uses(name, &folder) }
}

fn uses(name: &str, folder: &Path) -> Vec<String> {
    let node = Path::new("/dev").join(name);
    let number = word(&folder.join("dev")).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut uses = Vec::new();
    uses.extend(mounted(&mounts, &number).map(|place| format!("{name} is mounted on {place}")));
    if swapped(&swaps, &node) {
        uses.push(format!("{name} is swap"));
    }
    for holder in names(&folder.join("holders")) {
        uses.push(format!("{name} is part of {}", holder_words(&holder)));
    }
    let mut partitions: Vec<String> =
        names(folder).into_iter().filter(|part| folder.join(part).join("partition").exists()).collect();
    partitions.sort();
    if !partitions.is_empty() {
        uses.push(format!("{name} is partitioned ({})", partitions.join(", ")));
        for part in &partitions {
            uses.extend(self::uses(part, &Path::new("/sys/class/block").join(part)));
        }
    }
    if uses.is_empty() {
        uses.extend(labelled(&node).map(|what| format!("{name} belongs to {what}")));
        uses.extend(opened(&node).map(|who| format!("{name} is held by {who}")));
    }
    uses
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Where the device with this number is mounted.
fn mounted<'a>(mounts: &'a str, number: &str) -> Option<&'a str> {
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.find(|words| words.get(2) == Some(&number)).and_then(|words| words.get(4).copied())
}

fn swapped(swaps: &str, node: &Path) -> bool {
    swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .any(|path| Path::new(path) == node)
}

/// `md0 (md)`, `vg-root (lvm)`.
fn holder_words(holder: &str) -> String {
    let mapper = Path::new("/sys/class/block").join(holder).join("dm");
    match (word(&mapper.join("name")), word(&mapper.join("uuid"))) {
        (Some(name), Some(uuid)) if uuid.starts_with("LVM-") => format!("{name} (lvm)"),
        (Some(name), _) => format!("{name} (device mapper)"),
        _ if holder.starts_with("md") => format!("{holder} (md)"),
        _ => holder.to_owned(),
    }
}

/// An array or volume group that is not running, by the device's first bytes.
fn labelled(node: &Path) -> Option<&'static str> {
    let mut head = vec![0; HEAD];
    let mut file = fs::File::open(node).ok()?;
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_exact(&mut head).ok()?;
    label(&head)
}

fn label(head: &[u8]) -> Option<&'static str> {
    if MD_PLACES.iter().any(|at| head.get(*at..).is_some_and(|rest| rest.starts_with(&MD_MAGIC))) {
        return Some("an md array that is not running");
    }
    let sectors = head.chunks(SECTOR).take(4);
    sectors.into_iter().any(|sector| sector.starts_with(LVM_MAGIC)).then_some("an lvm volume group")
}

/// Who has the device open. The kernel refuses an exclusive open of what a file system or mapper claims.
fn opened(node: &Path) -> Option<String> {
    if let Some(holder) = host::holder(node) {
        return Some(holder.to_string());
    }
    let exclusive = fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(node);
    let busy = exclusive.is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY));
    busy.then(|| "something in the kernel".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{label, mounted, swapped, visible};
    use std::path::Path;

    #[test]
    fn names_of_namespaces_are_those_of_the_block_devices() {
        assert_eq!(visible("nvme0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(visible("nvme3c1n2").as_deref(), Some("nvme3n2"), "one path of several");
        for other in ["nvme0", "ng0n1", "power", "hwmon1", "nvme0n1p1x", "nvmexn1"] {
            assert_eq!(visible(other), None, "{other}");
        }
    }

    #[test]
    fn mounts_and_swap_are_found_by_number_and_by_path() {
        let mounts =
            "22 1 259:1 / / rw - ext4 /dev/root rw\n30 22 259:12 /sub /mnt/a rw - xfs /dev/nvme1n1 rw\n";
        assert_eq!(mounted(mounts, "259:12"), Some("/mnt/a"));
        assert_eq!(mounted(mounts, "259:2"), None, "a number is compared whole");
        let swaps = "Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 1 0 -2\n";
        assert!(swapped(swaps, Path::new("/dev/nvme0n1p2")) && !swapped(swaps, Path::new("/dev/nvme0n1")));
    }

    #[test]
    fn arrays_and_volume_groups_are_known_by_their_labels() {
        let mut head = vec![0; 8192];
        assert_eq!(label(&head), None);
        head[4096..4100].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9]);
        assert!(label(&head).unwrap().contains("md"));
        head[4096] = 0;
        head[512..520].copy_from_slice(b"LABELONE");
        assert!(label(&head).unwrap().contains("lvm"));
    }
}
