//! Where a process listens: who holds a controller is known by its number, and is asked through its control socket.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// `__SO_ACCEPTCON`: the socket listens.
const LISTENS: u32 = 1 << 16;

/// The Unix sockets on which a process listens, named so that this process reaches them. None of another user's: neither
/// their descriptors nor their control sockets are for everybody.
pub fn listening(pid: u32) -> Vec<PathBuf> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let Ok(files) = fs::read_dir(folder.join("fd")) else { return Vec::new() };
    let links = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    let inode = |link: PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned);
    let own: BTreeSet<String> = links.filter_map(inode).collect();
    let table = fs::read_to_string(folder.join("net/unix")).unwrap_or_default();
    let bound = table.lines().filter_map(row).filter(|(inode, _)| own.contains(*inode));
    bound.map(|(_, path)| seen_from_here(&folder, path)).collect()
}

/// Inode and path of a listening socket, from a line of the kernel's table.
fn row(line: &str) -> Option<(&str, &str)> {
    let mut rest = line;
    let mut next = || {
        let word = rest.trim_start();
        let end = word.find(' ')?;
        rest = &word[end..];
        Some(&word[..end])
    };
    let words: Vec<&str> = (0..7).map_while(|_| next()).collect();
    let [_, _, _, flags, _, _, inode] = words[..] else { return None };
    let listens = u32::from_str_radix(flags, 16).ok()? & LISTENS != 0;
    // Names without a file begin with an at sign.
    let path = rest.strip_prefix(' ')?;
    (listens && !path.starts_with('@')).then_some((inode, path))
}

/// What the process that `folder` describes calls `path`.
fn seen_from_here(folder: &Path, path: &str) -> PathBuf {
    match path.strip_prefix("/proc/self/") {
        Some(own) => folder.join(own),
        None => folder.join("cwd").join(path),
    }
}

#[cfg(test)]
mod tests {
    use super::{listening, row};
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn sockets_of_a_process_are_found_and_reachable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a name with spaces.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let found: Vec<_> = listening(std::process::id()).into_iter().filter(|p| *p == path).collect();
        assert_eq!(found, std::slice::from_ref(&path), "once: a connection is no listener");
        drop(listener);
        assert!(!listening(std::process::id()).contains(&path));
    }

    #[test]
    fn lines_of_the_table_are_read_whole_or_not_at_all() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 24571 /run/cobalt/p 0.sock";
        assert_eq!(row(line), Some(("24571", "/run/cobalt/p 0.sock")));
        assert_eq!(row("0000000000000000: 00000003 00000000 00000000 0001 03 24571 /run/p0.sock"), None);
        assert_eq!(row("0000000000000000: 00000002 00000000 00010000 0001 01 24571 @abstract"), None);
        for cut in
            ["", "Num       RefCount Protocol Flags    Type St Inode Path", "0: 2 0 00010000 0001 01 24571"]
        {
            assert_eq!(row(cut), None);
        }
    }
}
