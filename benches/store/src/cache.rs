//! Row `cache`: whether the cache limit holds while a catalogue grows far beyond it, on a sparse file or in memory.
//!
//! Keys are put in random order, so that every put may change another node. The most that the cache accounts for and
//! the most that the process has resident, above what it had before, are set against the limit. `--gib` is the size of
//! the trees; the full row has 20.

use crate::clock::{Clock, peak_rss, rss};
use crate::report::Report;
use crate::target::Place;
use cobalt_base::ByteSize;
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use cobalt_store::{CtgOp, Limits, Store};
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;

const CTG: u32 = 7;
/// Bytes of a value: with its key, three quarters of what an entry may have.
const VALUE: usize = 4000;
/// Operations of one transaction.
const BATCH: u64 = 32;
/// Transactions at a time: they share flushes.
const TASKS: u64 = 8;

/// How to run the row.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Size of the trees, in GiB
    #[arg(long, default_value_t = 2)]
    gib: u64,
    /// Cache limit
    #[arg(long, default_value = "256MiB")]
    cache: ByteSize,
    /// The sparse file
    #[arg(long, default_value = "/tmp/store-bench.cache")]
    file: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let reactor = Reactor::new(ReactorConfig::default())?;
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let result = drive(&ctx, &args).await;
        let _ = std::fs::remove_file(&args.file);
        result
    })
}

/// The most that was seen.
#[derive(Default)]
struct Peak {
    cache: Cell<u64>,
    rss: Cell<u64>,
}

async fn fill(store: Store, next: Rc<Cell<u64>>, keys: u64, peak: Rc<Peak>) -> anyhow::Result<()> {
    loop {
        let at = next.get();
        let end = (at + BATCH).min(keys);
        next.set(end);
        if at == end {
            return Ok(());
        }
        let put = |i: u64| CtgOp::Put {
            ctg: CTG,
            key: i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().to_vec(),
            value: vec![(i % 251) as u8; VALUE],
        };
        store.ctg().transact(move |_| Ok(((at..end).map(put).collect(), ()))).await?;
        peak.cache.set(peak.cache.get().max(store.cache().bytes));
        peak.rss.set(peak.rss.get().max(rss()));
    }
}

async fn drive(ctx: &Ctx, args: &Args) -> anyhow::Result<()> {
    let limits = Limits { node_cache: args.cache.0, dirty_max: args.cache.0 / 4, ..Limits::default() };
    // The allocation goal walks through all of it: the file becomes as large.
    let meta = (args.gib << 30) * 3 / 2 + (2 << 30);
    let mut place = Place::memory(0, 1 << 30, limits);
    place.meta = format!("file:{}?size={meta}&sparse=true", args.file.display());
    let store = place.open(ctx).await?;
    let before = rss();
    // Nodes of random keys are about two thirds full, with three entries and less.
    let keys = (args.gib << 30) / (16 << 10) * 2;
    let clock = Clock::start();
    let peak = Rc::new(Peak::default());
    let next = Rc::new(Cell::new(0));
    let tasks: Vec<_> =
        (0..TASKS).map(|_| ctx.spawn(fill(store.clone(), next.clone(), keys, peak.clone()))).collect();
    for task in tasks {
        task.join().await.expect("nobody kills the tasks")?;
    }
    let (most, most_rss) = (peak.cache.get(), peak.rss.get());
    store.checkpoint().await?;
    let lap = clock.lap();
    let percent = |bytes: u64| (bytes as f64 / args.cache.0 as f64 * 1e4).round() / 1e2;
    let mut report = Report::new("cache");
    report.lap(keys, lap).set("tree_bytes", store.tree_bytes()).set("cache", args.cache.0);
    report.set("cache_bytes", most).set("cache_pct", percent(most));
    report.set("rss", most_rss - before).set("rss_pct", percent(most_rss - before)).set("rss_before", before);
    report.set("peak_rss", peak_rss()).set("checkpoints", store.counters().checkpoints).print();
    Ok(store.close().await?)
}
