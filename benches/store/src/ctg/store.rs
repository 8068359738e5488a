//! The store: transactions through its group commit, durable on its device before they are answered.

use super::{Args, Feed, Figures};
use crate::clock::{Clock, Lap};
use crate::keys::Keys;
use crate::target::Place;
use anyhow::ensure;
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use cobalt_store::{CtgOp, Limits, Store};
use std::cell::Cell;
use std::rc::Rc;

const CTG: u32 = 7;
/// Node blocks per entry, generously: nodes are two thirds full, and a checkpoint keeps its predecessor.
const META_PER_KEY: u64 = 512;

pub fn run(args: &Args) -> anyhow::Result<Figures> {
    let reactor = Reactor::new(ReactorConfig::default())?;
    let (ctx, args) = (reactor.ctx(), args.clone());
    reactor.block_on(async move { drive(&ctx, &args).await })
}

async fn drive(ctx: &Ctx, args: &Args) -> anyhow::Result<Figures> {
    // A checkpoint when half of the cache is dirty, or the journal filled: it writes a leaf once for many changes.
    // No data, so none of the cache is set aside for them.
    let (node_cache, dirty_max) = (args.cache.0, args.cache.0 / 2);
    let limits =
        Limits { node_cache, dirty_max, inline_max: 0, inline_unwritten_max: 0, ..Limits::default() };
    let meta = (args.keys * META_PER_KEY + args.journal.0 + (1 << 30)).next_multiple_of(1 << 20);
    let mut place = Place::memory(meta, 1 << 30, limits);
    place.journal = Some(args.journal.0);
    place.node_size = u32::try_from(args.node_size.0)?;
    let path = args.dir.join("store-bench.meta");
    if args.flush {
        place.meta = format!("file:{}?size={meta}&sparse=true", path.display());
    }
    let store = place.open(ctx).await?;
    let put = puts(ctx, &store, args).await?;
    let get = gets(&store, args).await;
    let (status, counters, cache) = (store.status(), store.counters(), store.cache());
    let notes = format!(
        "groups {} txs {} journal {} of {} dirty {} checkpoints {} node_reads {}",
        counters.groups,
        counters.txs,
        counters.journal_bytes,
        status.journal,
        status.dirty_bytes,
        counters.checkpoints,
        counters.node_reads
    );
    store.close().await?;
    if args.flush {
        let _ = std::fs::remove_file(&path);
    }
    Ok(Figures { put, get: get?, cache_bytes: Some(cache.bytes), notes })
}

async fn puts(ctx: &Ctx, store: &Store, args: &Args) -> anyhow::Result<Lap> {
    let clock = Clock::start();
    let next = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..args.tasks)
        .map(|_| {
            let (store, args, next) = (store.clone(), args.clone(), next.clone());
            ctx.spawn(async move {
                loop {
                    let at = next.get();
                    let end = (at + args.batch).min(args.keys);
                    next.set(end);
                    if at == end {
                        return anyhow::Ok(());
                    }
                    // The operations are made when the transaction takes its place, as callers do.
                    let keys = Feed::new(&args).keys;
                    store
                        .ctg()
                        .transact(move |_| Ok(((at..end).map(|i| put(keys, i)).collect(), ())))
                        .await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.join().await.expect("nobody kills the tasks")?;
    }
    Ok(clock.lap())
}

fn put(keys: Keys, i: u64) -> CtgOp {
    let (mut key, mut value) = (Vec::new(), Vec::new());
    keys.key(i, &mut key);
    keys.value(i, &mut value);
    CtgOp::Put { ctg: CTG, key, value }
}

async fn gets(store: &Store, args: &Args) -> anyhow::Result<Lap> {
    let mut feed = Feed::new(args);
    let ctg = store.ctg();
    let clock = Clock::start();
    for n in 0..args.gets {
        feed.ask(n);
        let whole = feed.compared(n);
        // As the peers' guards: the value is looked at where it lies.
        let good = ctg.get_with(CTG, &feed.key, |value| feed.is_right(value, whole)).await?;
        ensure!(
            good == Some(true),
            "get {n} found {}",
            if good.is_none() { "nothing" } else { "another value" }
        );
    }
    Ok(clock.lap())
}
