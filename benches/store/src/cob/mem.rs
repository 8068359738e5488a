//! Row `cob-mem`: durable writes of 4 KiB on one core, with a device that answers at once. What is left is the
//! store's own work: admission, look-up, blocks, extent map, group commit, journal, apply, checkpoints. Beside it
//! the reactor's ceiling: as many tasks, whose operation does nothing but wait to be answered in a group.

use super::taking::TakingBdev;
use super::{Dice, Pool, write};
use crate::clock::{Clock, Lap};
use crate::report::Report;
use anyhow::ensure;
use cobalt_base::{Fid, SessionId};
use cobalt_bdev::{Bdev, Device, MemBdev};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::sync::{Notify, OneSender, oneshot};
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use cobalt_store::{FormatOptions, Limits, OpenOptions, Region, Regions, Store, format};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use uuid::Uuid;

const LEN: usize = 4096;

/// How to run the row.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Writes
    #[arg(long, default_value_t = 1_000_000)]
    ops: u64,
    /// Writes at a time
    #[arg(long, default_value_t = 128)]
    depth: u64,
    /// Cobs, each of one block, which are created and then overwritten in random order
    #[arg(long, default_value_t = 65_536)]
    cobs: u64,
    /// The data device takes the buffers instead of copying them
    #[arg(long)]
    no_copy: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.ops > 0 && args.depth > 0 && args.cobs > 0, "nothing to do");
    let reactor = Reactor::new(ReactorConfig::default())?;
    let ctx = reactor.ctx();
    reactor.block_on(async move { drive(&ctx, args).await })
}

async fn drive(ctx: &Ctx, args: Args) -> anyhow::Result<()> {
    let arena = Arena::new(ArenaConfig { limit: 256 << 20 })?;
    let size = (args.cobs * 2 * LEN as u64).max(64 << 20);
    let data: Rc<dyn Bdev> = match args.no_copy {
        true => Rc::new(TakingBdev::new(size)),
        false => Rc::new(MemBdev::new(size)),
    };
    let meta = Rc::new(MemBdev::new(1 << 30));
    let regions = Regions { meta: Region::whole(Device::new(meta)), data: Region::whole(Device::new(data)) };
    let options = FormatOptions::new(Uuid::from_u128(1), Uuid::from_u128(2), "bench");
    format(ctx, &regions, &arena, &options).await?;
    let options =
        OpenOptions { limits: Limits { trim: false, ..Limits::default() }, ..OpenOptions::default() };
    let store = Store::open(ctx.clone(), regions, arena.clone(), options).await?;
    let pool = Rc::new(Pool::new(&arena, 4096, LEN, LEN as u32, args.seed)?);
    phase(ctx, &store, &pool, &args, args.cobs, Order::InTurn).await?;
    let clock = Clock::start();
    let before = store.counters();
    phase(ctx, &store, &pool, &args, args.ops, Order::Random).await?;
    let lap = clock.lap();
    let after = store.counters();
    let mut report = Report::new("cob-mem");
    report.set("no_copy", args.no_copy).set("depth", args.depth).set("cobs", args.cobs);
    report.lap(args.ops, lap);
    report
        .set("groups", after.groups - before.groups)
        .set("checkpoints", after.checkpoints - before.checkpoints);
    report.set("journal_bytes", after.journal_bytes - before.journal_bytes);
    let ceiling = ceiling(ctx, &args).await;
    report.set("ceiling_ops_per_s", (args.ops as f64 / ceiling.seconds).round());
    report.print();
    store.close().await?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Order {
    InTurn,
    Random,
}

async fn phase(
    ctx: &Ctx,
    store: &Store,
    pool: &Rc<Pool>,
    args: &Args,
    ops: u64,
    order: Order,
) -> anyhow::Result<()> {
    let next = Rc::new(Cell::new(0));
    let mut tasks = Vec::new();
    for task in 0..args.depth {
        let (store, pool, next, cobs) = (store.clone(), pool.clone(), next.clone(), args.cobs);
        let mut dice = Dice::new(args.seed + task);
        tasks.push(ctx.spawn(async move {
            while next.get() < ops {
                let n = next.replace(next.get() + 1);
                let cob = match order {
                    Order::InTurn => n % cobs,
                    Order::Random => dice.below(cobs),
                };
                write(&store, Fid::new(SessionId(1), cob), 0, &pool).await?;
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.join().await.expect("nobody kills the tasks")?;
    }
    Ok(())
}

/// The same tasks without a store: each operation waits in a queue, and one task answers all who wait.
async fn ceiling(ctx: &Ctx, args: &Args) -> Lap {
    let queue: Rc<RefCell<Vec<OneSender<()>>>> = Rc::default();
    let arrived = Rc::new(Notify::default());
    let next = Rc::new(Cell::new(0));
    let clock = Clock::start();
    let mut tasks = Vec::new();
    for _ in 0..args.depth {
        let (queue, arrived, next, ops) = (queue.clone(), arrived.clone(), next.clone(), args.ops);
        tasks.push(ctx.spawn(async move {
            while next.get() < ops {
                next.set(next.get() + 1);
                let (reply, answer) = oneshot();
                queue.borrow_mut().push(reply);
                arrived.notify_all();
                answer.await;
            }
        }));
    }
    let mut answered = 0;
    while answered < args.ops {
        while queue.borrow().is_empty() {
            arrived.notified().await;
        }
        for reply in queue.take() {
            reply.send(());
            answered += 1;
        }
    }
    for task in tasks {
        task.join().await.expect("nobody kills the tasks");
    }
    clock.lap()
}
