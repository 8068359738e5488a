//! The configuration: one TOML file for the whole cluster, read into typed values. Whatever is wrong is
//! refused with file, line and hint before anything is touched.

mod check;
mod device;
mod error;
mod layout;
mod raw;

pub use error::{ConfigError, Fault};
pub use layout::LayoutSpec;

use cobalt_base::ByteSize;
use cobalt_bdev::DeviceUri;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A commented file that passes every check.
pub const EXAMPLE: &str = include_str!("example.toml");

/// Payload memory of a process where the file says nothing.
pub const ARENA_DEFAULT: ByteSize = ByteSize(128 << 20);
/// Tree-node memory of a target where the file says nothing.
pub const CACHE_DEFAULT: ByteSize = ByteSize(32 << 20);
/// Unit size where the file says nothing.
pub const UNIT_SIZE_DEFAULT: ByteSize = ByteSize(1 << 20);
/// Region of S3 where the file says nothing.
pub const REGION_DEFAULT: &str = "us-east-1";

/// Where a value came from, later ones above earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Default,
    /// Line of the file, from 1.
    File(usize),
    Environment,
    Flag,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(line) => write!(f, "file:{line}"),
            Origin::Environment => f.write_str("environment"),
            Origin::Flag => f.write_str("flag"),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    pub value: T,
    pub origin: Origin,
}

impl<T> Setting<T> {
    /// Takes the place of what is lower in precedence.
    pub fn overridden(&mut self, value: Option<(T, Origin)>) {
        if let Some((value, origin)) = value
            && origin > self.origin
        {
            *self = Setting { value, origin };
        }
    }
}

/// The whole cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file, as given.
    pub file: PathBuf,
    pub cluster: ClusterConfig,
    /// In the file's order; so are the targets of the pool.
    pub processes: Vec<ProcessConfig>,
}

/// What all processes share.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    pub secret_file: Setting<PathBuf>,
    pub layout: Setting<LayoutSpec>,
    pub unit_size: Setting<ByteSize>,
}

/// One process.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    pub name: String,
    /// Line where it begins.
    pub line: usize,
    pub listen: Vec<Setting<SocketAddr>>,
    pub admin: Option<Setting<SocketAddr>>,
    pub cas: Setting<bool>,
    pub arena: Setting<ByteSize>,
    pub cache: Setting<ByteSize>,
    pub targets: Vec<TargetConfig>,
    pub s3: Option<S3Config>,
}

/// One target.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    pub name: String,
    pub line: usize,
    pub device: TargetDevice,
}

/// Where a target lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetDevice {
    /// Two regions of one device.
    One(DeviceUri),
    /// A device for each region.
    Two { meta: DeviceUri, data: DeviceUri },
}

impl TargetDevice {
    /// All devices of the target.
    pub fn uris(&self) -> Vec<&DeviceUri> {
        match self {
            TargetDevice::One(uri) => vec![uri],
            TargetDevice::Two { meta, data } => vec![meta, data],
        }
    }
}

/// The S3 listener.
#[derive(Clone, Debug)]
pub struct S3Config {
    pub listen: Setting<SocketAddr>,
    pub region: Setting<String>,
    pub domain: Option<Setting<String>>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`]: the first thing that is wrong.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|e| ConfigError {
            file: file.to_owned(),
            line: None,
            fault: Fault::Unreadable(e.to_string()),
            hint: "name the file with --config; `cobalt config example` prints one".into(),
        })?;
        Config::parse(file, &text)
    }

    /// Checks `text`, the content of `file`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
        check::check(file, text)
    }

    /// The directory that relative paths count from.
    pub fn directory(&self) -> PathBuf {
        directory_of(&self.file)
    }

    /// The process of this name; the only one when no name is given.
    ///
    /// # Errors
    /// [`ConfigError`] that lists the names.
    pub fn process(&self, name: Option<&str>) -> Result<&ProcessConfig, ConfigError> {
        let names = || self.processes.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
        let refuse = |what: String| ConfigError {
            file: self.file.clone(),
            line: None,
            fault: Fault::Incomplete(what),
            hint: format!("choose one with --process: {}", names()),
        };
        match (name, self.processes.as_slice()) {
            (Some(name), all) => all
                .iter()
                .find(|p| p.name == name)
                .ok_or_else(|| refuse(format!("no process is named `{name}`"))),
            (None, [one]) => Ok(one),
            (None, _) => Err(refuse("several processes are described here".into())),
        }
    }

    /// Every target of the cluster with its process, in the file's order.
    pub fn targets(&self) -> impl Iterator<Item = (&ProcessConfig, &TargetConfig)> {
        self.processes.iter().flat_map(|p| p.targets.iter().map(move |t| (p, t)))
    }

    /// The process that holds the catalogue.
    pub fn catalogue(&self) -> Option<&ProcessConfig> {
        self.processes.iter().find(|p| p.cas.value)
    }
}

/// The directory of a file, `.` for a bare name.
fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests;
