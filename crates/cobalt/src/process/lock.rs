//! One process of a name at a time: a lock on `run/NAME.lock`, held until the process ends, however it ends.

use crate::cli::Failure;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

/// How long to wait for a predecessor: a killed process lets go when the kernel has finished its last operation.
const WAIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// The lock. Dropping it lets go.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`, which is made with its directory if need be.
    ///
    /// # Errors
    /// That another process holds it, with its id.
    pub fn take(path: &Path) -> Result<Lock, Failure> {
        Lock::take_within(path, WAIT)
    }

    fn take_within(path: &Path, wait: Duration) -> Result<Lock, Failure> {
        let failed = |e: std::io::Error| Failure::new(format!("cannot lock {}", path.display())).cause(e);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let mut left = wait;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(e)) => return Err(failed(e)),
                Err(TryLockError::WouldBlock) if left.is_zero() => return Err(held(path, &mut file)),
                Err(TryLockError::WouldBlock) => {
                    #[expect(clippy::disallowed_methods, reason = "no reactor runs yet")]
                    std::thread::sleep(PAUSE);
                    left = left.saturating_sub(PAUSE);
                }
            }
        }
        file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Lock { _file: file })
    }
}

fn held(path: &Path, file: &mut File) -> Failure {
    let mut pid = String::new();
    let _ = file.rewind().and_then(|()| file.take(20).read_to_string(&mut pid));
    Failure::new("another cobalt process runs here")
        .cause(format!("process {} holds {}", pid.trim(), path.display()))
        .hint("stop it, or choose another --data-dir or --process")
}

#[cfg(test)]
mod tests {
    use super::Lock;
    use std::time::Duration;

    #[test]
    fn a_second_process_is_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/p0.lock");
        let first = Lock::take(&path).ok().unwrap();
        let failure = Lock::take_within(&path, Duration::ZERO).err().unwrap();
        assert!(failure.cause.unwrap().contains(&std::process::id().to_string()));
        drop(first);
        assert!(Lock::take(&path).is_ok());
    }
}
