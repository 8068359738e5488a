//! `prove`: runs the store under instruments that find what tests by hand cannot, and counts what they saw.
//!
//! One layer a subcommand. Each prints one line, `prove LAYER: name=count ... seed=S (T s)`, and ends with 0; or says what
//! failed, how to run just that again, and ends with 1. Everything a run does follows from its seed.

mod ageing;
mod canaries;
mod corrupt;
mod crash;
mod fuzz;
mod layout;
mod models;
mod nth;
mod nvme;
mod recovery;
mod run;
mod sim;

use clap::{Parser, ValueEnum};
use cobalt_base::canary::{Canary, plant_everywhere};
use run::{Counts, Failure, Run};
use std::process::ExitCode;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Layer {
    /// The trees, the allocator, the extent map, the catalogues and the whole store beside their models
    Models,
    /// Every operation of a device and every reservation fails in turn
    Nth,
    /// Recovery's decision table, over every combination of damage
    Recovery,
    /// The cluster on disks that go wrong
    Sim,
    /// Planted mistakes, each of which the other layers must find
    Canaries,
    /// A target worked to 95 % full and back, thousands of times
    Ageing,
    /// Every state that a crash may leave
    Crash,
    /// Every kind of damage, and what must come of it
    Corrupt,
    /// Changed input for everything that reads a disk
    Fuzz,
    /// The NVMe driver on controllers that go wrong
    Nvme,
}

#[derive(Parser)]
#[command(about = "Proves the store: crash states, models, damage, failing I/O, fuzz, canaries")]
struct Options {
    layer: Layer,
    #[command(flatten)]
    run: Run,
    /// Plants this mistake in everything that runs: the layer must find it
    #[arg(long)]
    canary: Option<Canary>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(canary) = options.canary {
        plant_everywhere(canary);
    }
    if options.run.verbose {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let name = options.layer.to_possible_value().expect("no layer is hidden").get_name().to_owned();
    run::report_panics(&name, &options.run);
    let outcome: Result<Counts, Failure> = match options.layer {
        Layer::Models => models::run(&options.run),
        Layer::Nth => nth::run(&options.run),
        Layer::Recovery => recovery::run(&options.run),
        Layer::Sim => sim::run(&options.run),
        Layer::Canaries => canaries::run(&options.run),
        Layer::Ageing => ageing::run(&options.run),
        Layer::Crash => crash::run(&options.run),
        Layer::Corrupt => corrupt::run(&options.run),
        Layer::Fuzz => fuzz::run(&options.run),
        Layer::Nvme => nvme::run(&options.run),
    };
    run::report(&name, &options.run, outcome)
}
