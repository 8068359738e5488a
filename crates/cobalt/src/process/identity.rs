//! Who the cluster and its targets are: `cluster.id`, made once by `format` beside the secret. It lies on every
//! host, as the configuration does. A target that is laid out again is another target and gets another uuid.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The uuids of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterId {
    pub cluster: Uuid,
    /// By name.
    pub targets: BTreeMap<String, Uuid>,
}

/// Why it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdError {
    #[error("{path} cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} cannot be written: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a list of uuids: {why}")]
    Malformed { path: PathBuf, why: String },
    #[error("no randomness can be had from the system: {0}")]
    Random(getrandom::Error),
}

/// A random uuid.
///
/// # Errors
/// [`IdError::Random`].
pub fn random_uuid() -> Result<Uuid, IdError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(IdError::Random)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

impl ClusterId {
    /// Where it lies: beside the secret.
    pub fn path(secret_file: &Path) -> PathBuf {
        secret_file.with_extension("id")
    }

    /// A new cluster without targets.
    ///
    /// # Errors
    /// [`IdError::Random`].
    pub fn generate() -> Result<ClusterId, IdError> {
        Ok(ClusterId { cluster: random_uuid()?, targets: BTreeMap::new() })
    }

    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// [`IdError`].
    pub fn load(path: &Path) -> Result<Option<ClusterId>, IdError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdError::Read { path: path.to_owned(), source }),
        };
        let id = toml::from_str(&text)
            .map_err(|e| IdError::Malformed { path: path.to_owned(), why: e.message().to_owned() })?;
        Ok(Some(id))
    }

    /// Replaces the file as one step, durably.
    ///
    /// # Errors
    /// [`IdError::Write`].
    pub fn store(&self, path: &Path) -> Result<(), IdError> {
        let text = toml::to_string(self).expect("uuids under plain names are TOML");
        write_durably(path, text.as_bytes(), 0o644)
            .map_err(|source| IdError::Write { path: path.to_owned(), source })
    }
}

/// Writes a file beside its place and moves it there: after a crash there is the old one or the new one.
///
/// # Errors
/// Of the file system.
pub fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::ClusterId;

    #[test]
    fn an_identity_reads_as_written_and_a_stranger_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = ClusterId::path(&dir.path().join("cluster.secret"));
        assert_eq!(path.file_name().unwrap(), "cluster.id");
        assert!(ClusterId::load(&path).unwrap().is_none());
        let mut id = ClusterId::generate().unwrap();
        id.targets.insert("t0".into(), super::random_uuid().unwrap());
        id.store(&path).unwrap();
        assert_eq!(ClusterId::load(&path).unwrap(), Some(id));
        std::fs::write(&path, "cluster = 5").unwrap();
        assert!(ClusterId::load(&path).is_err());
    }
}
