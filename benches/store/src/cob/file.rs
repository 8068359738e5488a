//! Row `cob-file`: a target on a file, for so many seconds, in the directory where fio runs beside it.
//!
//! The files are written through once before. Writes go to cobs in random order, each a cob's whole unit, so that
//! every one takes fresh blocks and frees its predecessor's; every answer is durable. Reads check every chunk.

use super::{Dice, Pool, write};
use crate::clock::{Clock, Lap};
use crate::report::Report;
use anyhow::ensure;
use cobalt_base::{ByteSize, Fid, SessionId};
use cobalt_bdev::{OpenMode, open_uri};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use cobalt_store::{FormatOptions, Limits, OpenOptions, Region, Regions, Store, format};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Work {
    /// Writes of 1 MiB
    Write,
    /// Reads of 1 MiB
    Read,
    /// Reads of 4 KiB
    Randread,
    /// Writes of 4 KiB
    Randwrite,
}

impl Work {
    fn len(self) -> usize {
        match self {
            Work::Write | Work::Read => 1 << 20,
            Work::Randread | Work::Randwrite => 4096,
        }
    }

    fn depth(self) -> u64 {
        match self {
            Work::Write | Work::Read => 16,
            Work::Randread | Work::Randwrite => 32,
        }
    }

    fn reads(self) -> bool {
        matches!(self, Work::Read | Work::Randread)
    }
}

/// How to run the row.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What is done
    #[arg(long, value_enum)]
    work: Work,
    /// Seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Operations at a time; 16 of 1 MiB or 32 of 4 KiB
    #[arg(long)]
    depth: Option<u64>,
    /// Where the target's files go, which are made and removed
    #[arg(long)]
    dir: PathBuf,
    /// Size of the data region
    #[arg(long, default_value = "2GiB")]
    size: ByteSize,
    /// Most bytes of a write that travel in the journal; the store's own choice unless given
    #[arg(long)]
    inline_max: Option<u64>,
    /// Cache limit
    #[arg(long, default_value = "256MiB")]
    cache: ByteSize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.seconds > 0, "nothing to do");
    let reactor = Reactor::new(ReactorConfig::default())?;
    let ctx = reactor.ctx();
    let paths = [args.dir.join("store-bench.meta"), args.dir.join("store-bench.data")];
    let result = reactor.block_on(drive(ctx, args, paths.clone()));
    for path in paths {
        let _ = std::fs::remove_file(path);
    }
    result
}

async fn drive(ctx: Ctx, args: Args, [meta, data]: [PathBuf; 2]) -> anyhow::Result<()> {
    let arena = Arena::new(ArenaConfig { limit: 256 << 20 })?;
    let limits = Limits { node_cache: args.cache.0, dirty_max: args.cache.0 / 4, ..Limits::default() };
    let limits = Limits { inline_max: args.inline_max.unwrap_or(limits.inline_max), ..limits };
    let mode = OpenMode { create: true, ..OpenMode::default() };
    let mut regions = Vec::new();
    for (path, size) in [(meta, 768 << 20), (data, args.size.0)] {
        let uri = format!("file:{}?size={size}", path.display());
        let region = Region::whole(open_uri(&ctx, &arena, &uri.parse()?, mode).await?);
        write_through(&arena, &region).await?;
        regions.push(region);
    }
    let data = regions.pop().expect("there are two");
    let regions = Regions { meta: regions.pop().expect("there are two"), data };
    let options =
        FormatOptions { force: true, ..FormatOptions::new(Uuid::from_u128(1), Uuid::from_u128(2), "bench") };
    format(&ctx, &regions, &arena, &options).await?;
    let options = OpenOptions { limits, ..OpenOptions::default() };
    let store = Store::open(ctx.clone(), regions, arena.clone(), options).await?;
    let row = Row::new(ctx, store, &arena, &args)?;
    row.fill().await?;
    row.store.checkpoint().await?;
    let before = row.store.counters();
    let lap = row.go(Duration::from_secs(args.seconds)).await?;
    let after = row.store.counters();
    let mut report = Report::new("cob-file");
    report.set("work", format!("{:?}", args.work).to_lowercase()).set("depth", row.depth);
    report.lap(row.ops.get(), lap);
    report
        .set("mib_per_s", (row.ops.get() as f64 * args.work.len() as f64 / lap.seconds / 1048576.0).round());
    let mut times = row.times.take();
    times.sort_unstable();
    for (name, per_mille) in [("p50_us", 500), ("p99_us", 990), ("p999_us", 999)] {
        let at = (times.len() * per_mille / 1000).min(times.len().saturating_sub(1));
        report.set(name, times.get(at).copied().unwrap_or(0));
    }
    for ((name, was), (_, is)) in before.rows().iter().zip(after.rows()) {
        if is > *was {
            report.set(name, is - was);
        }
    }
    report.print();
    row.store.close().await?;
    Ok(())
}

/// Room that was never written costs a file system extra.
async fn write_through(arena: &Arena, region: &Region) -> anyhow::Result<()> {
    let mut buf = arena.alloc(4 << 20).await;
    buf.fill(0xa5);
    let slice = buf.freeze();
    let most = u64::from(region.device.identify().transfer_max).min(4 << 20);
    let mut at = 0;
    while at < region.len {
        let len = most.min(region.len - at);
        region.write(at, std::iter::once(slice.slice(0..len as usize)).collect(), false).await?;
        at += len;
    }
    // A head of zeros: formatting looks whether somebody else's data are there.
    let mut zeros = arena.alloc(1 << 20).await;
    zeros.fill(0);
    region.write(0, std::iter::once(zeros.freeze()).collect(), false).await?;
    region.flush().await?;
    Ok(())
}

#[derive(Clone)]
struct Row {
    ctx: Ctx,
    store: Store,
    work: Work,
    depth: u64,
    /// Cobs, and the bytes of each.
    cobs: u64,
    cob_len: u64,
    pool: Rc<Pool>,
    /// What cobs are filled with.
    units: Rc<Pool>,
    seed: u64,
    ops: Rc<Cell<u64>>,
    /// Microseconds of each.
    times: Rc<RefCell<Vec<u32>>>,
}

impl Row {
    fn new(ctx: Ctx, store: Store, arena: &Arena, args: &Args) -> anyhow::Result<Row> {
        let work = args.work;
        // Small reads are of random chunks of whole units; all else is a cob's whole.
        let (cob_len, chunk) = match work {
            Work::Write | Work::Read => (1u64 << 20, 64 << 10),
            Work::Randread => (1 << 20, 4096),
            Work::Randwrite => (4096, 4096),
        };
        let share = if work == Work::Randwrite { 8 } else { 2 };
        let cobs = args.size.0 / share / cob_len;
        let len = work.len();
        let pool = Rc::new(
            Pool::new(arena, (64 << 20) / len.max(16 << 10), len, chunk, args.seed)?.refilled(args.seed + 2),
        );
        let units = Rc::new(Pool::new(arena, 64, cob_len as usize, chunk, args.seed + 1)?);
        let depth = args.depth.unwrap_or(work.depth());
        let (ops, times) = (Rc::default(), Rc::default());
        Ok(Row { ctx, store, work, depth, cobs, cob_len, pool, units, seed: args.seed, ops, times })
    }

    async fn fill(&self) -> anyhow::Result<()> {
        let next = Rc::new(Cell::new(0));
        self.all(|row, _| {
            let next = next.clone();
            async move {
                while next.get() < row.cobs {
                    let cob = next.replace(next.get() + 1);
                    write(&row.store, fid(cob), 0, &row.units).await?;
                }
                Ok(())
            }
        })
        .await
    }

    async fn go(&self, time: Duration) -> anyhow::Result<Lap> {
        let clock = Clock::start();
        let end = self.ctx.now().0 + time.as_nanos() as u64;
        self.all(|row, mut dice| async move {
            while row.ctx.now().0 < end {
                let start = row.ctx.now().0;
                row.one(&mut dice).await?;
                row.ops.set(row.ops.get() + 1);
                row.times.borrow_mut().push(((row.ctx.now().0 - start) / 1000) as u32);
            }
            Ok(())
        })
        .await?;
        Ok(clock.lap())
    }

    async fn one(&self, dice: &mut Dice) -> anyhow::Result<()> {
        let (cob, len) = (fid(dice.below(self.cobs)), self.work.len() as u64);
        if self.work.reads() {
            let offset = dice.below(self.cob_len / len) * len;
            let data = self.store.cob_read(cob, offset, len).await?;
            ensure!(data.len == len, "{} bytes instead of {len}", data.len);
        } else {
            write(&self.store, cob, 0, &self.pool).await?;
        }
        Ok(())
    }

    async fn all<F: Future<Output = anyhow::Result<()>> + 'static>(
        &self,
        task: impl Fn(Row, Dice) -> F,
    ) -> anyhow::Result<()> {
        let tasks: Vec<_> = (0..self.depth)
            .map(|n| self.ctx.spawn(task(self.clone(), Dice::new(self.seed * 1000 + n))))
            .collect();
        for task in tasks {
            task.join().await.expect("nobody kills the tasks")?;
        }
        Ok(())
    }
}

fn fid(cob: u64) -> Fid {
    Fid::new(SessionId(1), cob)
}
