//! What test machines run to try the driver on an emulated controller: it holds one, and does what it is told on its standard
//! input, a line at a time, each answered by a line. Faults come from outside, between the lines. Not part of the product.
//!
//! `nvme-probe ADDRESS [depth=N] [entries=N] [io_ms=N] [abort_ms=N] [sgls=0]`. Offsets and lengths are in bytes; `N,N` are the
//! pieces of memory of one write; the content follows from place and seed, seed 0 is zeros.

#![expect(
    clippy::disallowed_methods,
    reason = "a thread reads the standard input: the control thread is the driver's"
)]

mod bent;
mod work;

use bent::Bent;
use cobalt_bdev::Device;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_nvme::spec::log::Smart;
use cobalt_nvme::vfio::{VfioFunction, Wait};
use cobalt_nvme::{Controller, Limits};
use cobalt_reactor::mailbox::mailbox;
use cobalt_reactor::{Ctx, JoinHandle, Reactor, ReactorConfig};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;
use work::{Load, Space, pattern};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Memory of all operations; what the device does not reach.
const ARENA: usize = 32 << 20;
const FAR: usize = 4 << 20;
/// How long `until` waits.
const PATIENCE: Duration = Duration::from_secs(120);
const GROUP_WAIT: Duration = Duration::from_secs(60);

type Tasks = Vec<JoinHandle<Result<(), String>>>;

struct Probe {
    ctx: Ctx,
    controller: Rc<Controller<Bent>>,
    arena: Arena,
    far: Arena,
    devices: BTreeMap<u32, Device>,
    started: Tasks,
    workers: Tasks,
    load: Rc<Load>,
}

/// Something to do with a namespace.
#[derive(Clone)]
enum Act {
    Write { offset: u64, lens: Vec<usize>, seed: u64, fua: bool },
    Read { offset: u64, len: usize, seed: u64 },
    Flush,
    Deallocate { offset: u64, len: u64 },
}

fn number<T: FromStr>(word: &str) -> Outcome<T> {
    word.parse().map_err(|_| format!("`{word}` is no number").into())
}

fn act(words: &[&str]) -> Outcome<(u32, Act)> {
    let (verb, nsid, rest) = match words {
        [verb, nsid, rest @ ..] => (*verb, number(nsid)?, rest),
        _ => return Err("what, and with which namespace?".into()),
    };
    let act = match (verb, rest) {
        ("write", [offset, lens, seed, rest @ ..]) => {
            let lens = lens.split(',').map(number).collect::<Outcome<_>>()?;
            Act::Write { offset: number(offset)?, lens, seed: number(seed)?, fua: rest == ["fua"] }
        }
        ("read", [offset, len, seed]) => {
            Act::Read { offset: number(offset)?, len: number(len)?, seed: number(seed)? }
        }
        ("flush", []) => Act::Flush,
        ("deallocate", [offset, len]) => Act::Deallocate { offset: number(offset)?, len: number(len)? },
        _ => return Err(format!("unknown: {words:?}").into()),
    };
    Ok((nsid, act))
}

impl Act {
    /// The same, `n` lengths further on.
    fn further(&self, n: u64) -> Act {
        let mut act = self.clone();
        match &mut act {
            Act::Write { offset, lens, .. } => *offset += n * lens.iter().sum::<usize>() as u64,
            Act::Read { offset, len, .. } => *offset += n * *len as u64,
            Act::Flush => {}
            Act::Deallocate { offset, len } => *offset += n * *len,
        }
        act
    }

    async fn run(self, space: Space) -> Result<(), String> {
        match self {
            Act::Write { offset, lens, seed, fua } => space.write(offset, &lens, seed, fua).await,
            Act::Read { offset, len, seed } => space.read(offset, len, seed).await,
            Act::Flush => space.device.flush().await.map_err(|e| e.to_string()),
            Act::Deallocate { offset, len } => {
                space.device.deallocate(offset, len).await.map_err(|e| e.to_string())
            }
        }
    }
}

impl Probe {
    fn space(&mut self, nsid: u32) -> Outcome<Space> {
        if !self.devices.contains_key(&nsid) {
            let device = Device::new(Rc::new(self.controller.namespace(nsid)?));
            self.devices.insert(nsid, device);
        }
        Ok(Space { device: self.devices[&nsid].clone(), arena: self.arena.clone() })
    }

    /// Does what a line says. The answer's words.
    async fn obey(&mut self, line: &str) -> Outcome<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["namespace", nsid] => self.namespace(number(nsid)?),
            ["start", count, ref rest @ ..] => self.start(number(count)?, rest),
            ["wait"] => Ok(joined(std::mem::take(&mut self.started)).await),
            ["load", nsid, workers, len] => self.work(number(nsid)?, number(workers)?, number(len)?),
            ["stop"] => Ok(self.stop().await),
            ["until", name, least] => self.until(name, number(least)?).await,
            ["counters"] => Ok(self.counters().iter().map(|(name, n)| format!("{name}={n} ")).collect()),
            ["smart"] => {
                let smart = self.controller.log_page::<Smart>().await?;
                Ok(format!("reads={} writes={}", smart.reads.get(), smart.writes.get()))
            }
            ["blocked", nsid, seed] => self.blocked(number(nsid)?, number(seed)?).await,
            ["close"] => Ok(self.controller.close().await.map(|()| String::new())?),
            _ => {
                let (nsid, act) = act(&words)?;
                act.run(self.space(nsid)?).await?;
                Ok(String::new())
            }
        }
    }

    /// What the driver says of a namespace; refused with the reason.
    fn namespace(&mut self, nsid: u32) -> Outcome<String> {
        let known = self.controller.namespaces().into_iter().find(|ns| ns.nsid == nsid);
        let block = known.as_ref().map_or(0, |ns| 1u32 << ns.block_shift);
        let deallocated = known.and_then(|ns| ns.deallocated).map_or(-1, i32::from);
        let device = self.space(nsid)?.device;
        let id = device.identify();
        Ok(format!(
            "block={block} size={} unit={} cache={} transfer={} depth={} deallocates={} deallocated={deallocated}",
            id.size,
            id.block_size,
            u8::from(id.volatile_cache),
            id.transfer_max,
            id.depth,
            u8::from(id.deallocate)
        ))
    }

    /// The same act `count` times, each further on, all in one turn and without waiting.
    fn start(&mut self, count: u64, words: &[&str]) -> Outcome<String> {
        let (nsid, act) = act(words)?;
        for n in 0..count {
            let (act, space) = (act.further(n), self.space(nsid)?);
            self.started.push(self.ctx.spawn(act.run(space)));
        }
        Ok(String::new())
    }

    fn work(&mut self, nsid: u32, workers: u64, len: usize) -> Outcome<String> {
        for n in 0..workers {
            let space = self.space(nsid)?;
            self.workers.push(self.ctx.spawn(space.work(n * len as u64, len, self.load.clone())));
        }
        Ok(String::new())
    }

    async fn stop(&mut self) -> String {
        self.load.stop.set(true);
        let joined = joined(std::mem::take(&mut self.workers)).await;
        let load = std::mem::take(&mut self.load);
        format!("rounds={} {joined}", load.rounds.get())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = self.controller.counters();
        vec![
            ("submitted", counters.io.submitted),
            ("completed", counters.io.completed),
            ("rings", counters.io.rings),
            ("sgl_blocks", counters.sgl_blocks),
            ("sgl_lists", counters.sgl_lists),
            ("retries", counters.retries),
            ("timeouts", counters.timeouts),
            ("aborts", counters.aborts),
            ("resets", counters.resets),
            ("unexpected", counters.unexpected),
            ("leaked", counters.leaked),
            ("in_flight", self.controller.in_flight() as u64),
            ("rounds", self.load.rounds.get()),
        ]
    }

    /// Waits until a counter has come to `least`. So a line follows what happened and not a time.
    async fn until(&self, name: &str, least: u64) -> Outcome<String> {
        let value = || self.counters().into_iter().find(|(known, _)| *known == name).map(|(_, n)| n);
        let begun = self.ctx.now();
        loop {
            let now = value().ok_or("there is no such counter")?;
            if now >= least {
                return Ok(format!("{name}={now}"));
            }
            if self.ctx.now() - begun > PATIENCE {
                return Err(format!("{name} is {now}: {:?}", self.controller.life()).into());
            }
            self.ctx.sleep(Duration::from_millis(2)).await;
        }
    }

    /// A read into memory that the IOMMU does not translate for the device: on purpose, and harmless, for that reason.
    async fn blocked(&mut self, nsid: u32, seed: u64) -> Outcome<String> {
        let device = self.space(nsid)?.device;
        let (mut buf, mut before) = (self.far.alloc(FAR / 4).await, self.far.alloc(FAR / 4).await);
        pattern(&mut buf, 0, seed);
        pattern(&mut before, 0, seed);
        let buf = device.read(0, buf).await?;
        Ok(format!("untouched={}", u8::from(*buf == *before)))
    }
}

/// Waits for all of them: how many succeeded, and why the first of the others did not.
async fn joined(tasks: Tasks) -> String {
    let (mut done, mut failed, mut why) = (0, 0, String::new());
    for task in tasks {
        match task.join().await.unwrap_or_else(|| Err("its task is gone".into())) {
            Ok(()) => done += 1,
            Err(reason) => {
                failed += 1;
                why = if why.is_empty() { reason } else { why };
            }
        }
    }
    format!("done={done} failed={failed} {why}")
}

struct Options {
    limits: Limits,
    entries: Option<u64>,
}

fn options(words: &[String]) -> Outcome<Options> {
    let mut options = Options { limits: Limits::default(), entries: None };
    for word in words {
        match word.split_once('=') {
            Some(("depth", n)) => options.limits.depth = number(n)?,
            Some(("sgls", n)) => options.limits.sgls = number::<u8>(n)? > 0,
            Some(("entries", n)) => options.entries = Some(number(n)?),
            Some(("io_ms", n)) => options.limits.io_time = Duration::from_millis(number(n)?),
            Some(("abort_ms", n)) => options.limits.abort_time = Duration::from_millis(number(n)?),
            _ => return Err(format!("unknown: {word}").into()),
        }
    }
    Ok(options)
}

fn say(line: &str) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", line.replace('\n', " ").trim_end())?;
    Ok(out.flush()?)
}

async fn serve(ctx: Ctx, args: Vec<String>) -> Outcome<()> {
    let address = args.first().ok_or("usage: nvme-probe ADDRESS [NAME=NUMBER]...")?.parse()?;
    let Options { limits, entries } = options(&args[1..])?;
    let arena = Arena::new_on_hugepages(ArenaConfig { limit: ARENA })?;
    let far = Arena::new(ArenaConfig { limit: FAR })?;
    let wait = Wait { time: GROUP_WAIT, refuse_living: false };
    let function = VfioFunction::open(&ctx, address, ARENA as u64, wait).await?;
    let function = Bent { function, entries, unmapped: far.clone() };
    let controller = Controller::open(&ctx, function, &[arena.clone(), far.clone()], limits).await?;
    let mut probe = Probe {
        ctx,
        controller,
        arena,
        far,
        devices: BTreeMap::new(),
        started: Vec::new(),
        workers: Vec::new(),
        load: Rc::default(),
    };
    let (lines, mut inbox) = mailbox(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.try_send(line).is_err() {
                return; // Whoever does not wait for answers is not served.
            }
        }
    });
    say("ready")?;
    while let Some(line) = inbox.recv().await {
        match probe.obey(&line).await {
            Ok(words) => say(&format!("ok {words}"))?,
            Err(error) => say(&format!("error {error}"))?,
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = std::env::args().skip(1).collect();
    let served = Reactor::new(ReactorConfig::default()).map_err(Box::from).and_then(|reactor| {
        let ctx = reactor.ctx();
        reactor.block_on(serve(ctx, args))
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = say(&format!("error {error}"));
            ExitCode::FAILURE
        }
    }
}
