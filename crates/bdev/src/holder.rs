//! Who has a device: the process that holds its lock, as far as the system tells.

use std::fs::File;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

/// A process that holds a lock.
pub(crate) struct Holder {
    pid: i32,
    /// Whether it has the file open now. One that is being killed has closed its files before its last I/O ends.
    pub(crate) alive: bool,
}

impl Holder {
    /// Finds the holder of `file`'s lock: by the system's list of locks, or by who has the file open.
    pub(crate) fn of(file: &File) -> Option<Holder> {
        let meta = file.metadata().ok()?;
        let place = (meta.st_dev(), meta.st_ino());
        match locked_by(place) {
            Some(pid) => Some(Holder { pid, alive: has_open(pid, place) }),
            // The list names another device number on some file systems, and no process of another namespace.
            None => opened_by(place).map(|pid| Holder { pid, alive: true }),
        }
    }

    /// `process 4711 (cobalt)`.
    pub(crate) fn name(&self) -> String {
        match std::fs::read_to_string(format!("/proc/{}/comm", self.pid)) {
            Ok(name) => format!("process {} ({})", self.pid, name.trim()),
            Err(_) => format!("process {}", self.pid),
        }
    }
}

fn locked_by((device, inode): (u64, u64)) -> Option<i32> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let place = format!("{major:02x}:{minor:02x}:{inode}");
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == place)?;
        let held = words.contains(&"FLOCK") && !words.contains(&"->");
        words.get(at.checked_sub(1)?)?.parse::<i32>().ok().filter(|pid| held && *pid > 0)
    })
}

fn has_open(pid: i32, place: (u64, u64)) -> bool {
    let Ok(files) = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")) else {
        return false;
    };
    files.flatten().any(|entry| {
        std::fs::metadata(entry.path()).is_ok_and(|meta| (meta.st_dev(), meta.st_ino()) == place)
    })
}

fn opened_by(place: (u64, u64)) -> Option<i32> {
    let own = i32::try_from(std::process::id()).ok()?;
    let processes = std::fs::read_dir("/proc").ok()?;
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid| *pid != own && has_open(*pid, place))
}
