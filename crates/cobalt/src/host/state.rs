//! What was changed on this host since it booted, and what was there before. It lies where the system forgets at boot, as it
//! forgets the changes.

use super::HostError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where it lies.
const PLACE: &str = "/run/cobalt/host.json";

/// Hugepages of a memory node.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Pages {
    pub before: u64,
    pub set: u64,
}

/// A controller that was given to vfio-pci.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Device {
    /// Its driver before; none had it when this is empty.
    pub driver: Option<String>,
    /// What was in `driver_override` before.
    pub before: Option<String>,
    /// As the kernel's driver told them; the driver of this project is asked when it has the controller.
    pub model: String,
    pub serial: String,
    pub firmware: String,
}

/// Everything that `reset` undoes, beside the files that carry this project's mark.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct State {
    #[serde(default)]
    pub pages: BTreeMap<u32, Pages>,
    #[serde(default)]
    pub devices: BTreeMap<String, Device>,
}

impl State {
    /// What was written down; nothing where nothing was changed.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load() -> Result<State, HostError> {
        State::load_from(Path::new(PLACE))
    }

    /// Writes it down, or takes the file away when nothing is left to undo.
    ///
    /// # Errors
    /// What the system said.
    pub fn store(&self) -> Result<(), HostError> {
        self.store_to(Path::new(PLACE))
    }

    fn load_from(path: &Path) -> Result<State, HostError> {
        match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(std::io::Error::other)
                .map_err(HostError::system("reading", path)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(HostError::system("reading", path)(error)),
        }
    }

    fn store_to(&self, path: &Path) -> Result<(), HostError> {
        let folder = path.parent().map(PathBuf::from).unwrap_or_default();
        if *self == State::default() {
            return match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(HostError::system("removing", path)(error))
                }
                _ => {
                    let _ = fs::remove_dir(&folder); // Others may keep something there.
                    Ok(())
                }
            };
        }
        fs::create_dir_all(&folder).map_err(HostError::system("making", &folder))?;
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::other);
        let text = text.map_err(HostError::system("writing", path))?;
        // Whole or not at all: a reader never sees half of it.
        let new = path.with_extension("new");
        fs::write(&new, text).map_err(HostError::system("writing", &new))?;
        fs::rename(&new, path).map_err(HostError::system("writing", path))
    }
}

#[cfg(test)]
mod tests {
    use super::{Pages, State};

    #[test]
    fn a_state_without_anything_to_undo_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cobalt/host.json");
        let mut state = State::load_from(&path).unwrap();
        assert_eq!(state, State::default());
        state.pages.insert(0, Pages { before: 3, set: 64 });
        state.store_to(&path).unwrap();
        assert_eq!(State::load_from(&path).unwrap(), state);
        State::default().store_to(&path).unwrap();
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }
}
