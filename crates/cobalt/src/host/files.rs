//! Files that outlive a boot: the limit on locked memory, and the unit that prepares the host again. Each carries a mark; one
//! without it belongs to somebody else, and is neither written nor removed.

use super::HostError;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// The limit for an ordinary user who logs in; a service has `LimitMEMLOCK=` of its own.
pub const LIMITS: &str = "/etc/security/limits.d/90-cobalt.conf";
/// The unit.
pub const UNIT: &str = "/etc/systemd/system/cobalt-host.service";
/// What `systemctl enable` makes.
const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/cobalt-host.service";
const MARK: &str = "# Made by `cobalt host setup`; `cobalt host reset` removes it.";

/// Whether the file is there and ours.
///
/// # Errors
/// [`HostError::Foreign`] when it is somebody else's.
pub fn ours(path: &Path) -> Result<bool, HostError> {
    match fs::read_to_string(path) {
        Ok(text) if text.starts_with(MARK) => Ok(true),
        Ok(_) => Err(HostError::Foreign { path: path.display().to_string() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(HostError::system("reading", path)(error)),
    }
}

/// Writes a file of ours. False when it says the same already.
///
/// # Errors
/// [`HostError::Foreign`], or what the system said.
pub fn write(path: &Path, body: &str, dry_run: bool) -> Result<bool, HostError> {
    let text = format!("{MARK}\n{body}");
    if ours(path)? && fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    if !dry_run {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(HostError::system("making", folder))?;
        }
        fs::write(path, text).map_err(HostError::system("writing", path))?;
    }
    Ok(true)
}

/// Removes a file of ours. False when there is none.
///
/// # Errors
/// What the system said.
pub fn remove(path: &Path, dry_run: bool) -> Result<bool, HostError> {
    if !ours(path).unwrap_or(false) {
        return Ok(false);
    }
    if !dry_run {
        fs::remove_file(path).map_err(HostError::system("removing", path))?;
    }
    Ok(true)
}

/// Has the unit run at boot, or no longer. Whatever runs as the first process reads the links when it starts.
///
/// # Errors
/// What the system said.
pub fn enable(on: bool) -> Result<(), HostError> {
    let link = Path::new(ENABLED);
    match fs::remove_file(link) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(HostError::system("removing", link)(error));
        }
        _ => {}
    }
    if on {
        if let Some(folder) = link.parent() {
            fs::create_dir_all(folder).map_err(HostError::system("making", folder))?;
        }
        std::os::unix::fs::symlink(UNIT, link).map_err(HostError::system("making", link))?;
    } else if let Some(folder) = link.parent() {
        let _ = fs::remove_dir(folder); // Unless others have links there.
    }
    if Path::new("/run/systemd/system").exists() {
        let _ = Command::new("systemctl").arg("daemon-reload").output();
    }
    Ok(())
}

/// The unit that does what was asked for again at each boot.
pub fn unit(program: &Path, arguments: &str) -> String {
    format!(
        "[Unit]\nDescription=Hugepages and NVMe controllers for Cobalt\n\n[Service]\nType=oneshot\n\
         RemainAfterExit=yes\nExecStart={} host setup {arguments}\n\n[Install]\nWantedBy=multi-user.target\n",
        program.display()
    )
}

#[cfg(test)]
mod tests {
    use super::{ours, remove, write};

    #[test]
    fn files_of_others_are_neither_written_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("limits.d/90-cobalt.conf");
        assert!(write(&path, "cobalt - memlock 1024\n", true).unwrap());
        assert!(!path.exists(), "a dry run writes nothing");
        assert!(write(&path, "cobalt - memlock 1024\n", false).unwrap());
        assert!(!write(&path, "cobalt - memlock 1024\n", false).unwrap(), "the same again changes nothing");
        assert!(ours(&path).unwrap() && remove(&path, false).unwrap() && !path.exists());
        std::fs::write(&path, "somebody else's\n").unwrap();
        assert!(write(&path, "x\n", false).is_err());
        assert!(!remove(&path, false).unwrap() && path.exists());
    }
}
