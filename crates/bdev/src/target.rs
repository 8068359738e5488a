//! An open file or block device, and what the system says about it: what every backend over a
//! descriptor starts from.

use crate::device::{Identify, IoError, Op};
use std::fs::{File, Metadata};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Block size where the system names none: what every file system and disk can do.
const BLOCK_DEFAULT: u32 = 4096;

/// Something opened, locked and measured.
pub(crate) struct Target {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    /// O_DIRECT: the page cache is not used.
    pub(crate) direct: bool,
    pub(crate) block_size: u32,
    pub(crate) volatile_cache: bool,
    pub(crate) deallocate: bool,
}

impl Target {
    /// What a backend over this says about itself.
    pub(crate) fn identify(&self, engine: &str, depth: u32, transfer_max: u32) -> Identify {
        let mode = if self.direct { "O_DIRECT" } else { "buffered" };
        Identify {
            backend: format!("{engine} ({mode}) {}", self.path.display()),
            size: self.size,
            block_size: self.block_size,
            volatile_cache: self.volatile_cache,
            // A sector is what disks write whole; the page cache promises no more.
            atomic_write: if self.direct { self.block_size } else { 512 },
            depth,
            transfer_max,
            deallocate: self.deallocate,
        }
    }
}

/// The queue attribute `name` of the disk under a file or of a block device, if there is one disk to ask.
pub(crate) fn queue_attribute(meta: &Metadata, name: &str) -> Option<String> {
    let device = if meta.file_type().is_block_device() { meta.st_rdev() } else { meta.st_dev() };
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let disk = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition has no queue of its own: its disk, the parent directory, has.
    let read = |queue: &Path| std::fs::read_to_string(queue.join(name)).ok();
    let text =
        read(&disk.join("queue")).or_else(|| read(&disk.canonicalize().ok()?.parent()?.join("queue")))?;
    Some(text.trim().to_owned())
}

/// Smallest unit of direct reading and writing: the disk's logical block.
pub(crate) fn block_size(meta: &Metadata) -> u32 {
    queue_attribute(meta, "logical_block_size")
        .and_then(|text| text.parse().ok())
        .filter(|size: &u32| size.is_power_of_two() && (512..=BLOCK_DEFAULT).contains(size))
        .unwrap_or(BLOCK_DEFAULT)
}

/// Whether completed writes need a flush. A file always does: its metadata, and the disk below, may be
/// behind a cache. A block device does unless it says otherwise.
pub(crate) fn volatile_cache(meta: &Metadata) -> bool {
    !meta.file_type().is_block_device()
        || queue_attribute(meta, "write_cache").is_none_or(|mode| mode != "write through")
}

/// The operation's name and place, for an error about it.
pub(crate) fn span(op: &Op) -> (&'static str, u64, u64) {
    match op {
        Op::Read { offset, buf } => ("read", *offset, buf.len() as u64),
        Op::Write { offset, data, .. } => ("write", *offset, data.iter().map(|s| s.len() as u64).sum()),
        Op::Flush => ("flush", 0, 0),
        Op::Deallocate { offset, len } => ("deallocate", *offset, *len),
    }
}

/// What an error of the system means for an operation.
pub(crate) fn io_error((op, offset, len): (&'static str, u64, u64), error: &std::io::Error) -> IoError {
    let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
    // After a failed flush nobody knows what is on the disk: that is never only "full".
    if full && op != "flush" {
        return IoError::HostFull { offset, len };
    }
    IoError::Failed { op, offset, len, reason: error.to_string() }
}
