//! `store-bench`: one row of figures a subcommand.
//!
//! Each prints one line of JSON on stdout, {row, ops, seconds, ops_per_s, ...}, and the same for people on stderr.
//! `benches/run store` runs them in turn and shows the ratios.

mod cache;
mod clock;
mod cob;
mod ctg;
mod keys;
mod list;
#[cfg(feature = "plot")]
mod plot;
mod recovery;
mod report;
mod tail;
mod target;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures the store: one row of figures a subcommand")]
struct Options {
    #[command(subcommand)]
    row: Row,
}

#[derive(Subcommand)]
enum Row {
    /// Cob writes of 4 KiB without a device's time: what the store costs on one core
    CobMem(cob::mem::Args),
    /// Cobs on a file, in one of four ways that fio has too
    CobFile(cob::file::Args),
    /// Catalogue: puts, then gets, of random keys; this store or one that it is measured beside
    Ctg(ctg::Args),
    /// Catalogue: scanning, and common prefixes by seeking
    List(list::Args),
    /// Whether the cache limit holds while trees grow beyond it
    Cache(cache::Args),
    /// Opening after a crash
    Recovery(recovery::Args),
    /// Latency of durable 4 KiB writes while checkpoints run and while none does
    Tail(tail::Args),
}

fn main() -> anyhow::Result<()> {
    match Options::parse().row {
        Row::CobMem(args) => cob::mem::run(args),
        Row::CobFile(args) => cob::file::run(args),
        Row::Ctg(args) => ctg::run(args),
        Row::List(args) => list::run(args),
        Row::Cache(args) => cache::run(args),
        Row::Recovery(args) => recovery::run(args),
        Row::Tail(args) => tail::run(args),
    }
}
