//! Row `list`: listing of a catalogue on one core, all of it in memory: keys a second by scanning, and common prefixes
//! by seeking past each, as a listing with a delimiter does.

use crate::clock::{Clock, Lap};
use crate::report::Report;
use crate::target::Place;
use anyhow::ensure;
use cobalt_base::ByteSize;
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use cobalt_store::{CtgOp, Limits, Store};

const CTG: u32 = 7;
/// Operations of one transaction while the catalogue is filled.
const BATCH: u64 = 256;
/// Keys of one page, as a listing asks for.
const PAGE: usize = 1000;

/// How to run the row.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Keys in the catalogue
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Common prefixes that they fall into
    #[arg(long, default_value_t = 1000)]
    prefixes: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 100)]
    value: usize,
    /// Cache limit
    #[arg(long, default_value = "1GiB")]
    cache: ByteSize,
    /// Times that each is done; the best counts
    #[arg(long, default_value_t = 5)]
    times: u32,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.prefixes > 0 && args.keys >= args.prefixes, "fewer keys than prefixes");
    let reactor = Reactor::new(ReactorConfig::default())?;
    let ctx = reactor.ctx();
    reactor.block_on(async move { drive(&ctx, &args).await })
}

/// Key `i`, in key order: `folder-0007/0000001234.jpg`.
fn key(args: &Args, i: u64) -> Vec<u8> {
    let each = args.keys.div_ceil(args.prefixes);
    format!("folder-{:06}/{:010}.jpg", i / each, i % each).into_bytes()
}

async fn drive(ctx: &Ctx, args: &Args) -> anyhow::Result<()> {
    let limits = Limits { node_cache: args.cache.0, ..Limits::default() };
    let meta = (args.keys * (args.value as u64 + 200) * 4 + (1 << 30)).next_multiple_of(1 << 20);
    let store = Place::memory(meta, 1 << 30, limits).open(ctx).await?;
    fill(&store, args).await?;
    let (mut scan, mut seek) = (None, None);
    for _ in 0..args.times {
        let clock = Clock::start();
        scan_all(&store, args).await?;
        keep_best(&mut scan, clock.lap());
        let clock = Clock::start();
        seek_all(&store, args).await?;
        keep_best(&mut seek, clock.lap());
    }
    for (phase, ops, lap) in [("scan", args.keys, scan), ("prefixes", args.prefixes, seek)] {
        let Some(lap) = lap else { continue };
        let mut report = Report::new("list");
        report.set("phase", phase).lap(ops, lap).set("keys", args.keys).set("value", args.value);
        report.set("ms", (lap.seconds * 1e5).round() / 1e2).set("page", PAGE).print();
    }
    Ok(store.close().await?)
}

fn keep_best(best: &mut Option<Lap>, lap: Lap) {
    if best.is_none_or(|best| lap.user + lap.system < best.user + best.system) {
        *best = Some(lap);
    }
}

async fn fill(store: &Store, args: &Args) -> anyhow::Result<()> {
    let mut at = 0;
    while at < args.keys {
        let end = (at + BATCH).min(args.keys);
        // In an order that is not theirs, so that nodes are as full as in a store that grew.
        let put = |args: &Args, n: u64| {
            let i = n.wrapping_mul(0x9e37_79b1) % args.keys;
            CtgOp::Put { ctg: CTG, key: key(args, i), value: vec![7; args.value] }
        };
        let args = args.clone();
        store.ctg().transact(move |_| Ok(((at..end).map(|n| put(&args, n)).collect(), ()))).await?;
        at = end;
    }
    Ok(())
}

async fn scan_all(store: &Store, args: &Args) -> anyhow::Result<()> {
    let (mut from, mut count) = (Vec::new(), 0u64);
    loop {
        let page = store.ctg().scan(CTG, &from, None, PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        from.clone_from(last);
        from.push(0);
        count += page.len() as u64;
    }
    ensure!(count > args.keys / 2 && count <= args.keys, "{count} of {} keys were scanned", args.keys);
    Ok(())
}

async fn seek_all(store: &Store, args: &Args) -> anyhow::Result<()> {
    let (mut from, mut count) = (Vec::new(), 0u64);
    while let Some((found, _)) = store.ctg().scan(CTG, &from, None, 1).await?.pop() {
        let Some(at) = found.iter().position(|b| *b == b'/') else { break };
        count += 1;
        // The end of the prefix: the delimiter plus one.
        from = found[..at].to_vec();
        from.push(b'/' + 1);
    }
    ensure!(count == args.prefixes, "{count} of {} prefixes were found", args.prefixes);
    Ok(())
}
