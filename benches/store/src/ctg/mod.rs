//! Row `ctg`: catalogue puts and gets of random keys, beside redb and fjall.
//!
//! Every engine gets the same keys and values in the same order and the same cache limit, in a process of its
//! own. Puts come in batches: `--batch` operations make one transaction, for the peers one write transaction or
//! write batch. The store runs `--tasks` of them at a time, which share group commits; the peers' API takes them one
//! after the other. Without `--flush` the store is on memory and the peers leave out every fsync; with it the
//! store is on a file, and the peers flush once a batch. The peers' files are in `--dir`.

#[cfg(feature = "peers")]
mod fjall;
#[cfg(feature = "peers")]
mod redb;
mod store;

#[cfg(feature = "peers")]
use crate::clock::Clock;
use crate::clock::{Lap, peak_rss};
use crate::keys::{Keys, VALUE};
use crate::report::Report;
use anyhow::ensure;
use clap::ValueEnum;
use cobalt_base::ByteSize;
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Engine {
    Store,
    #[cfg(feature = "peers")]
    Redb,
    #[cfg(feature = "peers")]
    Fjall,
}

/// How to run the row.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Whose figures
    #[arg(long, value_enum, default_value = "store")]
    engine: Engine,
    /// Keys that are put
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Gets of random keys after that
    #[arg(long, default_value_t = 1_000_000)]
    gets: u64,
    /// Cache limit
    #[arg(long, default_value = "256MiB")]
    cache: ByteSize,
    /// Operations of one transaction
    #[arg(long, default_value_t = 256)]
    batch: u64,
    /// Transactions at a time, for the store
    #[arg(long, default_value_t = 4)]
    tasks: u64,
    /// Journal, for the store; the peers have their own limits for theirs
    #[arg(long, default_value = "512MiB")]
    journal: ByteSize,
    /// Node size, for the store. Smaller than its default, keys and values have less room: for comparison only
    #[arg(long, default_value = "16KiB")]
    node_size: ByteSize,
    /// Makes each batch durable on a disk
    #[arg(long)]
    flush: bool,
    /// Where files go; on memory unless --flush
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What an engine's run gave.
struct Figures {
    put: Lap,
    get: Lap,
    /// Bytes in its cache when it was asked last, if it says so.
    cache_bytes: Option<u64>,
    /// Its own counters, in words.
    notes: String,
}

/// The keys of a run, and buffers for one of them.
struct Feed {
    keys: Keys,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Feed {
    fn new(args: &Args) -> Feed {
        let keys = Keys::new(args.seed, args.keys);
        Feed { keys, key: Vec::new(), value: Vec::new() }
    }

    #[cfg(feature = "peers")]
    fn entry(&mut self, i: u64) -> (&[u8], &[u8]) {
        self.keys.key(i, &mut self.key);
        self.keys.value(i, &mut self.value);
        (&self.key, &self.value)
    }

    /// The key of the `n`th get.
    fn ask(&mut self, n: u64) -> &[u8] {
        self.keys.key(self.keys.pick(n), &mut self.key);
        &self.key
    }

    /// Whether the answer of the `n`th get is compared byte for byte, and puts the right value at hand.
    fn compared(&mut self, n: u64) -> bool {
        let whole = n.is_multiple_of(64);
        if whole {
            self.keys.value(self.keys.pick(n), &mut self.value);
        }
        whole
    }

    /// Every answer has the right size and is read; one in 64 is compared.
    fn is_right(&self, found: &[u8], whole: bool) -> bool {
        let sum = found.iter().fold(0u8, |sum, byte| sum ^ byte);
        found.len() == VALUE && (if whole { found == self.value } else { std::hint::black_box(sum) == sum })
    }

    #[cfg(feature = "peers")]
    fn check(&mut self, n: u64, found: Option<&[u8]>) -> anyhow::Result<()> {
        let whole = self.compared(n);
        ensure!(found.is_some_and(|found| self.is_right(found, whole)), "get {n} found {found:?}");
        Ok(())
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.keys > 0 && args.batch > 0 && args.tasks > 0, "nothing to do");
    let figures = match args.engine {
        Engine::Store => store::run(&args)?,
        #[cfg(feature = "peers")]
        Engine::Redb => redb::run(&args)?,
        #[cfg(feature = "peers")]
        Engine::Fjall => fjall::run(&args)?,
    };
    let name = args.engine.to_possible_value().expect("no engine is hidden").get_name().to_owned();
    for (phase, ops, lap) in [("put", args.keys, figures.put), ("get", args.gets, figures.get)] {
        let mut report = Report::new("ctg");
        report.set("engine", name.as_str()).set("phase", phase).lap(ops, lap);
        report.set("keys", args.keys).set("value", VALUE).set("batch", args.batch).set("flush", args.flush);
        report.set("cache", args.cache.0).set("peak_rss", peak_rss());
        if let Some(bytes) = figures.cache_bytes {
            report.set("cache_bytes", bytes);
        }
        report.set("notes", figures.notes.as_str()).print();
    }
    Ok(())
}

/// Puts all keys, one batch after the other, then gets.
#[cfg(feature = "peers")]
fn phases(
    args: &Args,
    mut put: impl FnMut(&mut Feed, std::ops::Range<u64>) -> anyhow::Result<()>,
    get: impl FnOnce(&mut Feed) -> anyhow::Result<()>,
) -> anyhow::Result<[Lap; 2]> {
    let mut feed = Feed::new(args);
    let clock = Clock::start();
    let mut at = 0;
    while at < args.keys {
        let end = (at + args.batch).min(args.keys);
        put(&mut feed, at..end)?;
        at = end;
    }
    let put = clock.lap();
    let clock = Clock::start();
    get(&mut feed)?;
    Ok([put, clock.lap()])
}
