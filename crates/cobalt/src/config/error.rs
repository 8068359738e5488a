//! A configuration that cannot be used: where, why, and what to write instead.

use std::fmt;
use std::path::PathBuf;

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the file cannot be read: {0}")]
    Unreadable(String),
    #[error("{0}")]
    Syntax(String),
    #[error("{0}")]
    UnknownKey(String),
    #[error("{0}")]
    BadValue(String),
    #[error("the {kind} `{name}` is defined twice (first in line {first})")]
    Duplicate { kind: &'static str, name: String, first: usize },
    #[error("the targets `{first}` and `{second}` lie on the same device, {device}")]
    SameDevice { first: Box<str>, second: Box<str>, device: Box<str> },
    #[error("reactor {0} is not served yet: a process runs one reactor, number 0")]
    Reactor(u32),
    #[error("{what} would listen on {addr}, beyond this host, and TLS is not there yet")]
    NotLoopback { what: &'static str, addr: String },
    #[error("`{0}` is not built into this binary")]
    NotBuiltIn(String),
    #[error("{0}")]
    Incomplete(String),
}

/// A [`Fault`] with its place and a hint. Exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line from 1, where one can be named.
    pub line: Option<usize>,
    /// What is wrong.
    pub fault: Fault,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.fault)
    }
}

impl std::error::Error for ConfigError {}
