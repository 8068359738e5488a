//! How a command fails: an exit code, and `error:`, `cause:`, `hint:` on stderr.

use crate::config::ConfigError;
use std::fmt;
use std::io::IsTerminal;

/// Exit codes. Scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    Degraded = 4,
}

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub error: String,
    pub cause: Option<String>,
    pub hint: Option<String>,
}

impl Failure {
    /// Exit code 1.
    pub fn new(error: impl Into<String>) -> Failure {
        Failure { code: Code::Failed, error: error.into(), cause: None, hint: None }
    }

    /// With another exit code.
    pub fn code(mut self, code: Code) -> Failure {
        self.code = code;
        self
    }

    /// What lies behind it.
    pub fn cause(mut self, cause: impl fmt::Display) -> Failure {
        self.cause = Some(cause.to_string());
        self
    }

    /// What to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Prints it on stderr, in colour on a terminal unless `NO_COLOR` is set.
    pub fn print(&self) {
        let colour =
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        eprintln!("{}", self.render(colour));
    }

    fn render(&self, colour: bool) -> String {
        let mut out = String::new();
        let mut line = |label: &str, code: &str, text: &str| {
            if !out.is_empty() {
                out.push('\n');
            }
            if colour {
                out.push_str(&format!("\x1b[1;{code}m{label}:\x1b[0m {text}"));
            } else {
                out.push_str(&format!("{label}: {text}"));
            }
        };
        line("error", "31", &self.error);
        if let Some(cause) = &self.cause {
            line("cause", "33", cause);
        }
        if let Some(hint) = &self.hint {
            line("hint", "36", hint);
        }
        out
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Failure {
        let mut place = e.file.display().to_string();
        if let Some(line) = e.line {
            place = format!("{place}:{line}");
        }
        Failure::new(format!("the configuration {place} cannot be used"))
            .cause(&e.fault)
            .hint(e.hint)
            .code(Code::Usage)
    }
}

#[cfg(test)]
mod tests {
    use super::{Code, Failure};

    #[test]
    fn a_failure_prints_what_why_and_what_to_do() {
        let f =
            Failure::new("cannot start").cause("the port is in use").hint("choose another").code(Code::Usage);
        assert_eq!(f.render(false), "error: cannot start\ncause: the port is in use\nhint: choose another");
        assert!(f.render(true).contains("\x1b[1;31merror:\x1b[0m cannot start"));
        assert_eq!(Failure::new("x").render(false), "error: x");
    }
}
