//! Asking a running process over its Unix socket.

use super::failure::{Code, Failure};
use super::place;
use crate::config::Config;
use crate::control::{Report, Request, Response};
use crate::process::control::COMMAND;
use crate::process::socket::SocketName;
use cobalt_gateway::control::{ControlError, request};
use std::path::Path;
use std::time::Duration;

/// How long an answer may take: a command may wait for the catalogue.
const PATIENCE: Duration = Duration::from_secs(40);

/// Asks a process.
///
/// # Errors
/// Exit code 3 when it does not run; 1 with its refusal.
pub fn ask(config: &Config, process: &str, what: &Request) -> Result<Response, Failure> {
    ask_at(&place::socket(config, process), process, what)
}

/// Asks the process that listens at a path.
///
/// # Errors
/// As [`ask`].
pub fn ask_at(path: &Path, process: &str, what: &Request) -> Result<Response, Failure> {
    let unreachable = |cause: String| {
        Failure::new(format!("the process `{process}` cannot be reached"))
            .cause(format!("{}: {cause}", path.display()))
            .hint("is it running? `cobalt server --config FILE --process NAME`, or `cobalt dev`, starts it")
            .code(Code::Unreachable)
    };
    let name = SocketName::new(path).map_err(|e| unreachable(e.to_string()))?;
    let args = serde_json::to_value(what).map_err(|e| Failure::new("a request cannot be made").cause(e))?;
    let value = request(name.path(), COMMAND, args, PATIENCE).map_err(|e| match e {
        ControlError::NotRunning { source, .. } | ControlError::Io { source, .. } => {
            unreachable(source.to_string())
        }
        other => Failure::new(format!("the process `{process}` refused")).cause(other),
    })?;
    let malformed = |e| Failure::new(format!("the answer of `{process}` cannot be read")).cause(e);
    match serde_json::from_value(value).map_err(malformed)? {
        Response::Refused { error, hint } => {
            let failure = Failure::new(error);
            Err(match hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            })
        }
        response => Ok(response),
    }
}

/// What a process says of itself.
///
/// # Errors
/// As [`ask`].
pub fn report(config: &Config, process: &str) -> Result<Report, Failure> {
    match ask(config, process, &Request::Report)? {
        Response::Report(report) => Ok(*report),
        other => Err(Failure::new(format!("`{process}` answered something else"))
            .cause(format!("it sent {}", other.name()))),
    }
}
