//! A Unix socket's path may be longer than a socket address holds: then it is named through its directory's descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Longest path that fits into a socket address with room to spare.
const PATH_MAX: usize = 100;

/// A name for a socket, valid as long as this lives.
pub struct SocketName {
    path: PathBuf,
    _directory: Option<File>,
}

impl SocketName {
    /// A name of `path` that is short enough.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn new(path: &Path) -> io::Result<SocketName> {
        if path.as_os_str().len() <= PATH_MAX {
            return Ok(SocketName { path: path.to_owned(), _directory: None });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = File::open(directory)?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(SocketName { path, _directory: Some(directory) })
    }

    /// The name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::SocketName;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_deep_in_the_tree_is_reachable() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(90)).join("e".repeat(90));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("p0.sock");
        assert!(UnixListener::bind(&path).is_err(), "too long for an address");
        let _listener = UnixListener::bind(SocketName::new(&path).unwrap().path()).unwrap();
        UnixStream::connect(SocketName::new(&path).unwrap().path()).unwrap();
        assert!(path.exists());
    }
}
