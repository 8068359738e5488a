//! A number that rises with every start of a process: its peers refuse what an older start of it still says.

use super::identity::write_durably;
use crate::cli::Failure;
use std::path::Path;

/// The next incarnation, durable before it is returned. `now` keeps it rising when the file is lost.
///
/// # Errors
/// Of the file system.
pub fn next(path: &Path, now: u64) -> Result<u64, Failure> {
    let failed =
        |e: std::io::Error| Failure::new(format!("cannot count starts in {}", path.display())).cause(e);
    let last = match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) => return Err(failed(e)),
    };
    let next = now.max(last + 1);
    write_durably(path, next.to_string().as_bytes(), 0o644).map_err(failed)?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::next;

    #[test]
    fn incarnations_rise_whatever_the_clock_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p0.incarnation");
        let starts: Vec<_> =
            [1000, 2000, 500, 2001].iter().map(|now| next(&path, *now).ok().unwrap()).collect();
        assert_eq!(starts, [1000, 2000, 2001, 2002]);
    }
}
