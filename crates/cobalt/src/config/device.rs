//! The identity that tells two names of one device apart from two devices.

use cobalt_bdev::{DeviceKind, DeviceUri};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One device, whatever it is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A file that exists: file system and inode.
    Inode(u64, u64),
    /// A device node that exists: its number.
    Node(u64),
    /// A file that does not exist yet: where it would be, links in the way resolved.
    Absent(PathBuf),
    /// A namespace of a controller: its address where that is known, else what names it.
    Namespace(String, u32),
}

/// What to compare devices by. Memory has nothing: each is its own.
pub fn identity(uri: &DeviceUri) -> Option<Identity> {
    if let DeviceKind::Nvme { controller, nsid } = &uri.kind {
        return Some(Identity::Namespace(crate::host::address_of(controller), *nsid));
    }
    let path = uri.path()?;
    if let Ok(meta) = std::fs::metadata(path) {
        if meta.file_type().is_block_device() || meta.file_type().is_char_device() {
            return Some(Identity::Node(meta.rdev()));
        }
        return Some(Identity::Inode(meta.dev(), meta.ino()));
    }
    Some(Identity::Absent(resolve_absent(path)))
}

/// Where a file that does not exist would be: the deepest directory that exists is resolved, `.` and `..` behind it by name.
fn resolve_absent(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    let mut at = path.to_path_buf();
    let mut base = loop {
        if let Ok(real) = at.canonicalize() {
            break real;
        }
        let Some(last) = at.components().next_back() else { break PathBuf::from("/") };
        rest.push(last.as_os_str().to_owned());
        if !at.pop() {
            break at;
        }
    };
    for name in rest.into_iter().rev() {
        match name.to_str() {
            Some(".") => {}
            Some("..") => {
                base.pop();
            }
            _ => base.push(name),
        }
    }
    base
}
