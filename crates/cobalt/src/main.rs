//! Cobalt, an S3 object store for NVMe hosts: the binary. It reads what was typed (`cli`) and the configuration
//! (`config`), and wires the parts into a process (`process`).

mod cli;
mod config;
mod control;
mod host;
mod process;

fn main() -> std::process::ExitCode {
    cli::main()
}
