//! The command line: what can be typed, how results are printed, how failures are told.

pub mod args;
mod clients;
mod configure;
pub mod device;
mod failure;
pub mod host;
mod inspect;
mod keys;
mod output;
mod place;
mod reports;
mod run;
mod talk;

pub use failure::{Code, Failure};
pub use place::{DEV_CONFIG, run_directory, socket as socket_path};

use args::{Cli, Command};
use clap::{CommandFactory, FromArgMatches};
use std::process::ExitCode;

/// Runs what was typed.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    let done = match cli.command {
        None => run::dev(&cli.dev),
        Some(Command::Dev(args)) => run::dev(&args),
        Some(Command::Server(args)) => run::server(&args, &matches),
        Some(Command::Format(args)) => run::format(&args),
        Some(Command::Config { command }) => configure::run(command, &matches),
        Some(Command::Key { command }) => keys::run(command),
        Some(Command::Status(args)) => reports::status(&args),
        Some(Command::Health(args)) => reports::health(&args),
        Some(Command::Df(args)) => reports::df(&args),
        Some(Command::Fsck(args)) => inspect::fsck(&args),
        Some(Command::Dump(args)) => inspect::dump(&args),
        Some(Command::Device { command }) => device::run(command),
        Some(Command::Host { command }) => host::run(command),
        Some(Command::Doctor { output }) => host::doctor(output),
        Some(Command::Completions { shell }) => {
            clap_complete::generate(shell, &mut Cli::command(), "cobalt", &mut std::io::stdout());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code as u8)
        }
    }
}
