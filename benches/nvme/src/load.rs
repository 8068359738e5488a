//! `nvme-load`: drives a controller that was given to vfio-pci, as hard as it goes, and counts what the driver did. For
//! test machines: the disk is written over.
//!
//! `nvme-load ADDRESS read|write BYTES DEPTH seconds=N|count=N [registers] [prps]` keeps DEPTH commands of BYTES at random places in
//! flight and polls; `registers` leaves shadow doorbells alone, `prps` SGLs. `nvme-load ADDRESS idle SECONDS` reads with interrupts, as a
//! process that shares its core does, then waits, then reads once more. Each prints one line of JSON.

mod count;

use cobalt_bdev::{Bdev, Device, Done, Io, IoError, Op, WriteData};
use cobalt_dma::{Arena, ArenaConfig, Buf};
use cobalt_nvme::vfio::{VfioFunction, Wait};
use cobalt_nvme::{Controller, Counters, Limits, NvmeBdev};
use cobalt_reactor::sync::OneReceiver;
use cobalt_reactor::{Ctx, Idle, Poller, Reactor, ReactorConfig};
use futures::FutureExt;
use std::error::Error;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

const ARENA: usize = 32 << 20;
/// Commands after which all has grown to its size.
const WARM: u64 = 2000;
/// Turns between two looks at the clock, and two turns of the reactor.
const TURNS: u64 = 64;
/// After work until it is idle: the interrupt is detached by the next look after the controller.
const SETTLED: Duration = Duration::from_secs(2);
/// Reads of the idle row before and after: with one in flight, the reactor sleeps for each.
const READS: u64 = 200;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Clone, Copy)]
enum Until {
    Time(Duration),
    Count(u64),
}

struct Work {
    write: bool,
    len: usize,
    depth: usize,
    until: Until,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        [address, "idle", seconds] => {
            let (address, seconds) = (address.parse()?, Duration::from_secs(seconds.parse()?));
            let reactor = Reactor::new(ReactorConfig::default())?;
            let ctx = reactor.ctx();
            reactor.block_on(async move {
                let (arena, controller) = open(&ctx, address, Limits::default()).await?;
                idle(&ctx, &arena, &controller, seconds).await?;
                Ok(controller.close().await?)
            })
        }
        [address, op @ ("read" | "write"), bytes, depth, until, ref rest @ ..] => {
            let until = match until.split_once('=') {
                Some(("seconds", n)) => Until::Time(Duration::from_secs(n.parse()?)),
                Some(("count", n)) => Until::Count(n.parse()?),
                _ => return Err(format!("{until} is neither seconds=N nor count=N").into()),
            };
            let work = Work { write: op == "write", len: bytes.parse()?, depth: depth.parse()?, until };
            if let Some(unknown) = rest.iter().find(|word| !["registers", "prps"].contains(*word)) {
                return Err(format!("{unknown} is neither registers nor prps").into());
            }
            let address = address.parse()?;
            let limits = Limits {
                shadow_doorbells: !rest.contains(&"registers"),
                sgls: !rest.contains(&"prps"),
                ..Limits::default()
            };
            let reactor = Reactor::new(ReactorConfig { idle: Idle::Poll, ..ReactorConfig::default() })?;
            let ctx = reactor.ctx();
            reactor.block_on(async move {
                let (arena, controller) = open(&ctx, address, limits).await?;
                Load::new(&arena, &controller, work)?.measure(&ctx).await?;
                Ok(controller.close().await?)
            })
        }
        _ => Err(
            "usage: nvme-load ADDRESS read|write BYTES DEPTH seconds=N|count=N [registers] [prps] | idle SECONDS"
                .into(),
        ),
    }
}

type Vfio = Rc<Controller<VfioFunction>>;

async fn open(ctx: &Ctx, address: cobalt_nvme::vfio::PciAddress, limits: Limits) -> Outcome<(Arena, Vfio)> {
    let arena = Arena::new_on_hugepages(ArenaConfig { limit: ARENA })?;
    let wait = Wait { time: Duration::from_secs(5), refuse_living: true };
    let function = VfioFunction::open(ctx, address, ARENA as u64, wait).await?;
    let controller = Controller::open(ctx, function, std::slice::from_ref(&arena), limits).await?;
    Ok((arena, controller))
}

type Answer = OneReceiver<Result<Option<Buf>, IoError>>;

struct Load {
    bdev: NvmeBdev<VfioFunction>,
    work: Work,
    places: u64,
    seed: u64,
    idle: Vec<Buf>,
    /// What is in flight; of a write, its memory.
    flying: Vec<(Answer, Option<cobalt_dma::Slice>)>,
    /// Answers that have arrived, for the next ones.
    used: Vec<Answer>,
    done: u64,
    tally: Tally,
}

/// What the driver was seen to do.
#[derive(Clone, Copy, Default)]
struct Tally {
    turns: u64,
    /// Turns before which commands were submitted.
    submitting: u64,
    allocations: u64,
}

impl Load {
    fn new(arena: &Arena, controller: &Vfio, work: Work) -> Outcome<Load> {
        let bdev = controller.namespace(1)?;
        let idle: Option<Vec<Buf>> = (0..work.depth).map(|_| arena.try_alloc(work.len)).collect();
        let idle = idle.ok_or("the arena is smaller than what is to be in flight")?;
        let places = bdev.identify().size / work.len as u64;
        let flying = Vec::with_capacity(work.depth);
        let used = Vec::with_capacity(work.depth);
        Ok(Load { bdev, work, places, seed: 1, idle, flying, used, done: 0, tally: Tally::default() })
    }

    async fn measure(&mut self, ctx: &Ctx) -> Outcome<()> {
        self.drive(ctx, Until::Count(WARM)).await?;
        let (before, tally, done, start) = (self.counters(), self.tally, self.done, ctx.now());
        self.drive(ctx, self.work.until).await?;
        let (now, seconds) = (self.counters(), (ctx.now() - start).as_secs_f64());
        let done = self.done - done;
        println!(
            "{{\"iops\": {:.0}, \"commands\": {done}, \"seconds\": {seconds:.3}, \"turns\": {}, \"submitting_turns\": {}, \"rings\": {}, \"sq_writes\": {}, \"cq_writes\": {}, \"sgls\": {}, \"sq_writes_ever\": {}, \"allocations\": {}, \"armed\": {}, \"retries\": {}, \"resets\": {}}}",
            done as f64 / seconds,
            self.tally.turns - tally.turns,
            self.tally.submitting - tally.submitting,
            now.io.rings - before.io.rings,
            now.io.sq_writes - before.io.sq_writes,
            now.io.cq_writes - before.io.cq_writes,
            now.sgl_blocks + now.sgl_lists - before.sgl_blocks - before.sgl_lists,
            now.io.sq_writes,
            self.tally.allocations - tally.allocations,
            now.armed,
            now.retries,
            now.resets,
        );
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.bdev.controller().counters()
    }

    /// Keeps the depth in flight, then lets it run out.
    async fn drive(&mut self, ctx: &Ctx, until: Until) -> Outcome<()> {
        let (end, last) = match until {
            Until::Time(time) => (Some(ctx.now() + time), u64::MAX),
            Until::Count(count) => (None, self.done + count),
        };
        loop {
            for _ in 0..TURNS {
                let started = self.done + self.flying.len() as u64;
                self.turn((last - started).min(self.work.depth as u64) as usize)?;
            }
            if self.done >= last {
                return Ok(());
            }
            if end.is_some_and(|end| ctx.now() >= end) {
                while !self.flying.is_empty() {
                    self.turn(0)?;
                }
                return Ok(());
            }
            // For what looks after the controller.
            ctx.yield_now().await;
        }
    }

    /// Submits at most `most`, and takes what has arrived.
    fn turn(&mut self, most: usize) -> Outcome<()> {
        let mut submitted = false;
        for _ in 0..most {
            let Some(buf) = self.idle.pop() else { break };
            self.submit(buf);
            submitted = true;
        }
        let asked = count::allocations();
        self.bdev.controller().poll();
        self.tally.allocations += count::allocations() - asked;
        self.tally.turns += 1;
        self.tally.submitting += u64::from(submitted);
        if self.bdev.controller().in_flight() == self.flying.len() {
            return Ok(());
        }
        let mut at = 0;
        while at < self.flying.len() {
            let Some(answer) = (&mut self.flying[at].0).now_or_never() else {
                at += 1;
                continue;
            };
            let (used, data) = self.flying.swap_remove(at);
            self.used.push(used);
            let buf = answer.ok_or("an operation was dropped")??;
            self.idle.extend(buf.or_else(|| data.and_then(|data| data.try_thaw().ok())));
            self.done += 1;
        }
        Ok(())
    }

    fn submit(&mut self, buf: Buf) {
        // A linear congruential generator's upper bits: any places will do.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (self.seed >> 33) % self.places * self.work.len as u64;
        // What the answer travels in is the caller's: one for each that is in flight.
        let used = self.used.pop();
        let again = used.and_then(|mut answer| Some((Done::again(&mut answer)?, answer)));
        let (done, answer) = again.unwrap_or_else(Done::pair);
        let (op, data) = if self.work.write {
            let data = buf.freeze();
            (Op::Write { offset, data: WriteData::from_iter([data.clone()]), fua: false }, Some(data))
        } else {
            (Op::Read { offset, buf }, None)
        };
        self.flying.push((answer, data));
        let asked = count::allocations();
        self.bdev.submit(Io { op, done });
        self.tally.allocations += count::allocations() - asked;
    }
}

async fn idle(ctx: &Ctx, arena: &Arena, controller: &Vfio, time: Duration) -> Outcome<()> {
    let device = Device::new(Rc::new(controller.namespace(1)?));
    let mut buf = arena.alloc(4096).await;
    for n in 0..READS {
        buf = device.read(n * 4096, buf).await?;
    }
    ctx.sleep(SETTLED).await;
    let (before, parks) = (cpu()?, ctx.stats().parks);
    ctx.sleep(time).await;
    let (share, slept) = ((cpu()? - before).as_secs_f64() / time.as_secs_f64(), ctx.stats().parks - parks);
    let start = ctx.now();
    buf = device.read(0, buf).await?;
    let first = (ctx.now() - start).as_secs_f64() * 1e6;
    for n in 0..READS {
        buf = device.read(n * 4096, buf).await?;
    }
    let (counters, stats) = (controller.counters(), ctx.stats());
    println!(
        "{{\"cpu_share\": {share:.5}, \"parks_idle\": {slept}, \"first_us\": {first:.0}, \"commands\": {}, \"parks\": {}, \"turns\": {}, \"armed\": {}, \"resets\": {}}}",
        counters.io.completed, stats.parks, stats.turns, counters.armed, counters.resets,
    );
    Ok(())
}

/// CPU time of this process, by the system's account: ticks of user and system time, fields 14 and 15.
fn cpu() -> Outcome<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks =
        |n: usize| fields.get(n - 3).and_then(|field| field.parse::<u64>().ok()).ok_or("no CPU time in stat");
    // A tick is a hundredth of a second on every Linux that runs this.
    Ok(Duration::from_millis(10 * (ticks(14)? + ticks(15)?)))
}
