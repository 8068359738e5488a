//! Row `tail`: latency of small durable writes while checkpoints run, and while none runs.
//!
//! Writers overwrite random 4 KiB cobs of a file target, one after the other each, so that checkpoints come by themselves. A
//! write counts as during a checkpoint when one ran at its start or at its end. The plot shows both over time.

use crate::report::Report;
use crate::target::{NODE_SIZE, Place, small_write};
use cobalt_base::{ByteSize, Fid, SessionId};
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use cobalt_store::{Limits, Store};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// How to run the row.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Writers
    #[arg(long, default_value_t = 32)]
    depth: u64,
    /// Cobs that are there before, and overwritten
    #[arg(long, default_value_t = 100_000)]
    cobs: u64,
    #[arg(long, default_value = "256MiB")]
    journal: ByteSize,
    /// Where the target's file goes
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Draws latencies over time
    #[cfg(feature = "plot")]
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// One write.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Since the start.
    #[cfg_attr(not(feature = "plot"), expect(dead_code, reason = "only a plot has an axis of time"))]
    pub at: Duration,
    pub took: Duration,
    /// A checkpoint ran.
    pub beside: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let reactor = Reactor::new(ReactorConfig::default())?;
    let ctx = reactor.ctx();
    reactor.block_on(async move { measure(&ctx, args).await })
}

async fn measure(ctx: &Ctx, args: Args) -> anyhow::Result<()> {
    let path = args.dir.join("store-bench.tail");
    let place = Place {
        meta: format!("file:{}.meta?size=8GiB&sparse=true", path.display()),
        data: format!("file:{}.data?size={}&sparse=true", path.display(), args.cobs * 4 * 4096),
        node_size: NODE_SIZE,
        journal: Some(args.journal.0),
        limits: Limits::default(),
    };
    let store = place.open(ctx).await?;
    for first in (0..args.cobs).step_by(256) {
        let fill = (first..args.cobs.min(first + 256)).map(|n| small_write(&store, cob(n), 0));
        futures::future::try_join_all(fill).await?;
    }
    store.checkpoint().await?;
    let before = store.counters().checkpoints;
    let samples = write(ctx, &store, &args).await?;
    let checkpoints = store.counters().checkpoints - before;
    store.close().await?;
    for part in ["meta", "data"] {
        let _ = std::fs::remove_file(format!("{}.{part}", path.display()));
    }
    report(&args, &samples, checkpoints);
    #[cfg(feature = "plot")]
    if let Some(plot) = &args.plot {
        crate::plot::draw(plot, &samples)?;
    }
    Ok(())
}

fn cob(n: u64) -> Fid {
    Fid::new(SessionId(1), n)
}

async fn write(ctx: &Ctx, store: &Store, args: &Args) -> anyhow::Result<Vec<Sample>> {
    let samples = Rc::new(RefCell::new(Vec::new()));
    let failed = Rc::new(Cell::new(None));
    let start = ctx.now();
    let end = start + Duration::from_secs(args.seconds);
    let writers: Vec<_> = (0..args.depth)
        .map(|_| {
            let (ctx, store, samples, failed) = (ctx.clone(), store.clone(), samples.clone(), failed.clone());
            let cobs = args.cobs;
            ctx.clone().spawn(async move {
                while ctx.now() < end {
                    let (from, ran) = (ctx.now(), store.is_checkpointing());
                    let written = small_write(&store, cob(ctx.random_u64() % cobs), 0).await;
                    let to = ctx.now();
                    if let Err(error) = written {
                        failed.set(Some(error));
                        return;
                    }
                    let beside = ran || store.is_checkpointing();
                    samples.borrow_mut().push(Sample { at: to - start, took: to - from, beside });
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().await;
    }
    if let Some(error) = failed.take() {
        return Err(error.into());
    }
    Ok(samples.take())
}

/// The share of `sorted` at a percentile, in microseconds.
pub fn percentile(sorted: &[Duration], per_mille: usize) -> f64 {
    let index = (sorted.len() * per_mille / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |d| d.as_secs_f64() * 1e6)
}

fn report(args: &Args, samples: &[Sample], checkpoints: u64) {
    let mut report = Report::new("tail");
    report.set("depth", args.depth).set("checkpoints", checkpoints).set("ops", samples.len());
    report.set("ops_per_s", samples.len() as u64 / args.seconds);
    let mut tails = Vec::new();
    for (name, beside) in [("alone", false), ("beside", true)] {
        let mut took: Vec<_> = samples.iter().filter(|s| s.beside == beside).map(|s| s.took).collect();
        took.sort_unstable();
        report.set(&format!("{name}_ops"), took.len());
        for (label, per_mille) in [("p50", 500), ("p99", 990), ("p999", 999)] {
            report.set(&format!("{name}_{label}_us"), percentile(&took, per_mille).round());
        }
        tails.push(percentile(&took, 999));
    }
    report.set("p999_ratio", (tails[1] / tails[0] * 100.0).round() / 100.0);
    report.print();
}
