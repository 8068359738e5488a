//! Which store a command means: a configuration file, or the directory of a `cobalt dev`.

use super::args::PlaceArgs;
use super::failure::{Code, Failure};
use crate::config::Config;
use std::path::{Path, PathBuf};

/// Where `dev` keeps its data unless told otherwise.
pub const DATA_DIR: &str = "./cobalt-data";
/// The configuration that `dev` keeps in its data directory.
pub const DEV_CONFIG: &str = "cobalt.toml";

/// The configuration that is meant.
pub fn config(place: &PlaceArgs) -> Result<Config, Failure> {
    if let Some(file) = &place.config {
        return Ok(Config::load(file)?);
    }
    let directory = place.data_dir.clone().unwrap_or_else(|| PathBuf::from(DATA_DIR));
    let file = directory.join(DEV_CONFIG);
    if !file.exists() {
        return Err(Failure::new(format!("{} holds no store", directory.display()))
            .hint("name it with --data-dir DIR or --config FILE; `cobalt dev` makes one")
            .code(Code::Usage));
    }
    Ok(Config::load(&file)?)
}

/// The Unix socket of a process.
pub fn socket(config: &Config, process: &str) -> PathBuf {
    run_directory(config).join(format!("{process}.sock"))
}

/// Where sockets and locks of the processes are.
pub fn run_directory(config: &Config) -> PathBuf {
    let directory = config.directory();
    let directory = if directory == Path::new(".") { PathBuf::new() } else { directory };
    directory.join("run")
}
