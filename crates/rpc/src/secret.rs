//! The cluster secret: 32 random bytes that every process of a cluster knows. Generated, never defaulted.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroize as _;

/// Bytes of a secret.
const SECRET_LEN: usize = 32;
/// Longest file that is read: 64 digits and white space around them.
const FILE_MAX: u64 = 256;

/// The secret. Wiped when dropped; never printed.
#[derive(Clone)]
pub struct ClusterSecret([u8; SECRET_LEN]);

impl Drop for ClusterSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Why a secret could not be loaded or stored.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read or write the cluster secret {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the cluster secret {path} can be read by others (mode {mode:o}): run `chmod 600` on it")]
    Permissions { path: PathBuf, mode: u32 },
    #[error("the cluster secret {path} is not 64 hexadecimal digits")]
    Format { path: PathBuf },
}

impl ClusterSecret {
    /// A secret of bytes that the caller drew from the system's random source.
    pub fn from_bytes(bytes: [u8; SECRET_LEN]) -> ClusterSecret {
        ClusterSecret(bytes)
    }

    /// A new secret from the reactor's random source, which the system seeds.
    pub fn generate(ctx: &cobalt_reactor::Ctx) -> ClusterSecret {
        let mut bytes = [0; SECRET_LEN];
        ctx.random_bytes(&mut bytes);
        ClusterSecret(bytes)
    }

    /// Reads a secret file. Blocks: for the start of a process.
    ///
    /// # Errors
    /// [`SecretError`], also when anybody but the owner can read the file.
    pub fn load(path: &Path) -> Result<ClusterSecret, SecretError> {
        let io = |source| SecretError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Permissions { path: path.to_owned(), mode });
        }
        let mut text = Vec::with_capacity(FILE_MAX as usize + 1);
        file.take(FILE_MAX + 1).read_to_end(&mut text).map_err(io)?;
        let secret = decode(text.trim_ascii());
        text.zeroize();
        secret.ok_or_else(|| SecretError::Format { path: path.to_owned() })
    }

    /// Writes the secret to a new file with mode 0600. Blocks.
    ///
    /// # Errors
    /// [`SecretError`], also when the file exists.
    pub fn store(&self, path: &Path) -> Result<(), SecretError> {
        let io = |source| SecretError::Io { path: path.to_owned(), source };
        let mut text = String::with_capacity(2 * SECRET_LEN + 1);
        for byte in self.0 {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).expect("four bits are a digit"));
            }
        }
        text.push('\n');
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let written = file.and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()));
        text.zeroize();
        written.map_err(io)
    }

    /// The bytes, for keys that are derived from them.
    pub fn expose(&self) -> &[u8; SECRET_LEN] {
        &self.0
    }
}

impl std::fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

fn decode(text: &[u8]) -> Option<ClusterSecret> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    if text.len() != 2 * SECRET_LEN {
        return None;
    }
    let mut secret = ClusterSecret([0; SECRET_LEN]);
    for (byte, pair) in secret.0.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(secret)
}

#[cfg(test)]
mod tests {
    use super::{ClusterSecret, SecretError};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_file_is_private_and_exact() {
        let dir = std::env::temp_dir().join(format!("cobalt-secret-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("cluster.secret");
        let _ = std::fs::remove_file(&path);
        let secret = ClusterSecret::from_bytes([0xa7; 32]);
        secret.store(&path).unwrap();
        assert_eq!(ClusterSecret::load(&path).unwrap().expose(), secret.expose());
        assert!(matches!(secret.store(&path), Err(SecretError::Io { .. })), "never overwritten");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(ClusterSecret::load(&path), Err(SecretError::Permissions { mode: 0o640, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for bad in [String::new(), "a".repeat(63), "a".repeat(65), "g".repeat(64), "a".repeat(5000)] {
            std::fs::write(&path, &bad).unwrap();
            assert!(matches!(ClusterSecret::load(&path), Err(SecretError::Format { .. })), "{bad}");
        }
        assert!(!format!("{secret:?}").contains("a7"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
