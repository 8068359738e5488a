//! Opening after a crash: what it takes for the journal, and that the target's size is nothing to it.

use crate::clock::{Clock, Lap};
use crate::keys::Keys;
use crate::report::Report;
use crate::target::small_write;
use clap::ValueEnum;
use cobalt_base::{ByteSize, Fid, SessionId};
use cobalt_bdev::{OpenMode, open_uri};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use cobalt_store::{CtgOp, FormatOptions, Limits, OpenOptions, Region, Regions, Store, format};
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use uuid::Uuid;

/// Part of a target that is its meta region, as `cobalt format` has it, and its bounds; the lower one is larger here, so
/// that a small target has room for a long journal's changes without a checkpoint.
const META_SHARE: u64 = 16;
const META_MIN: u64 = 512 << 20;
const META_MAX: u64 = 64 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Catalogue puts of 100 bytes
    Ctg,
    /// Durable writes of 4 KiB, which travel inline
    Write,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Sizes of the target
    #[arg(long, value_delimiter = ',', default_value = "1GiB,32GiB,1TiB")]
    size: Vec<ByteSize>,
    #[arg(long, default_value = "64MiB")]
    journal: ByteSize,
    /// Transactions in the journal
    #[arg(long, default_value_t = 200_000)]
    txs: u64,
    #[arg(long, value_enum, default_value = "ctg")]
    kind: Kind,
    /// Tasks that fill it at a time: as many transactions share a record
    #[arg(long, default_value_t = 64)]
    tasks: u64,
    /// Memory for nodes
    #[arg(long, default_value = "2GiB")]
    cache: ByteSize,
    /// A folder for a sparse file; without it, the target is in memory
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    for size in &args.size {
        let reactor = Reactor::new(ReactorConfig::default())?;
        let (ctx, args, size) = (reactor.ctx(), args.clone(), size.0);
        reactor.block_on(async move { row(&ctx, &args, size).await })?;
    }
    Ok(())
}

async fn row(ctx: &Ctx, args: &Args, size: u64) -> anyhow::Result<()> {
    let arena = Arena::new(ArenaConfig { limit: 64 << 20 })?;
    let path = args.dir.as_ref().map(|dir| dir.join("store-bench.recovery"));
    let uri = match &path {
        Some(path) => format!("file:{}?size={size}&sparse=true", path.display()),
        None => format!("mem:{size}"),
    };
    let device =
        open_uri(ctx, &arena, &uri.parse()?, OpenMode { create: true, ..OpenMode::default() }).await?;
    let meta = (size / META_SHARE).clamp(META_MIN, META_MAX).max(2 * args.journal.0);
    let regions = Regions {
        meta: Region { device: device.clone(), offset: 0, len: meta },
        data: Region { device, offset: meta, len: size - meta },
    };
    let options = FormatOptions {
        journal: Some(args.journal.0),
        force: true,
        ..FormatOptions::new(Uuid::from_u128(1), Uuid::from_u128(2), "bench")
    };
    format(ctx, &regions, &arena, &options).await?;
    let limits =
        Limits { node_cache: args.cache.0, dirty_max: u64::MAX, journal_fill_pct: 98, ..Limits::default() };
    let options = OpenOptions { limits, ..OpenOptions::default() };
    let scope = ctx.scope();
    let store = Store::open(scope.ctx(), regions.clone(), arena.clone(), options.clone()).await?;
    fill(&scope.ctx(), &store, args).await?;
    let (before, counters) = (store.status(), store.counters());
    anyhow::ensure!(counters.checkpoints == 0, "a checkpoint emptied the journal: fewer transactions");
    scope.kill();
    drop(store);
    let clock = Clock::start();
    let store = Store::open(ctx.clone(), regions, arena, options).await?;
    let lap = clock.lap();
    anyhow::ensure!(store.status().applied >= before.applied, "the start lost transactions");
    report(args, size, before.journal_used, counters.txs, &store, lap);
    store.close().await?;
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

fn report(args: &Args, size: u64, used: u64, txs: u64, store: &Store, lap: Lap) {
    let mut report = Report::new("recovery");
    report.set("kind", format!("{:?}", args.kind).to_lowercase()).set("target", ByteSize(size).to_string());
    report.set("ring_bytes", args.journal.0).set("journal_bytes", used).set("txs", txs).lap(txs, lap);
    let us = |seconds: f64| (seconds * 1e9 / txs as f64).round() / 1e3;
    report.set("us_per_tx", us(lap.seconds)).set("cpu_us_per_tx", us(lap.user + lap.system));
    let gib = used as f64 / f64::from(1 << 30);
    report.set("seconds_per_gib", (lap.seconds / gib * 1e3).round() / 1e3);
    report.set("dirty_bytes", store.status().dirty_bytes).print();
}

async fn fill(ctx: &Ctx, store: &Store, args: &Args) -> anyhow::Result<()> {
    let next = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..args.tasks)
        .map(|_| {
            let (store, next, args) = (store.clone(), next.clone(), args.clone());
            ctx.spawn(async move {
                loop {
                    let n = next.get();
                    if n >= args.txs {
                        return anyhow::Ok(());
                    }
                    next.set(n + 1);
                    match args.kind {
                        Kind::Write => small_write(&store, Fid::new(SessionId(1), n + 1), 0).await?,
                        Kind::Ctg => {
                            let op = put(Keys::new(1, args.txs), n);
                            store.ctg().transact(move |_| Ok((vec![op.clone()], ()))).await?;
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.join().await.expect("nobody kills the tasks")?;
    }
    Ok(())
}

fn put(keys: Keys, i: u64) -> CtgOp {
    let (mut key, mut value) = (Vec::new(), Vec::new());
    keys.key(i, &mut key);
    keys.value(i, &mut value);
    CtgOp::Put { ctg: 7, key, value }
}
