//! What every layer gets and gives: a seed and a budget; counts, or a failure that can be run again.

use std::cell::RefCell;
use std::fmt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

/// How to run a layer.
#[derive(Clone, Debug, clap::Args)]
pub struct Run {
    /// Everything follows from it
    #[arg(long, default_value_t = 1, value_parser = seed)]
    pub seed: u64,
    /// Threads to spread the work over
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// How much to do, in the layer's own unit; what it does on its own is its floor
    #[arg(long)]
    pub count: Option<u64>,
    /// Runs this case alone, as a failure names it
    #[arg(long)]
    pub case: Option<String>,
    /// Ends at the first failure, where a layer would look for more of them
    #[arg(long)]
    pub first: bool,
    /// Says more on standard error: what `RUST_LOG` asks for
    #[arg(long, short)]
    pub verbose: bool,
    #[arg(skip = now())]
    start: Instant,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the layer's own time, for its line; nothing under proof sees it"
)]
fn now() -> Instant {
    Instant::now()
}

fn seed(text: &str) -> Result<u64, String> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
    u64::from_str_radix(digits, radix).map_err(|e| e.to_string())
}

/// What a layer saw, by name, in the order of its line.
#[derive(Clone, Debug, Default)]
pub struct Counts(Vec<(String, u64)>);

impl Counts {
    /// Adds to a count; one that is new comes last.
    pub fn add(&mut self, name: &str, n: u64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += n,
            None => self.0.push((name.to_owned(), n)),
        }
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Counts) {
        other.0.iter().for_each(|(name, n)| self.add(name, *n));
    }

    /// The same under longer names.
    pub fn prefixed(&self, prefix: &str) -> Counts {
        Counts(self.0.iter().map(|(name, n)| (format!("{prefix}_{name}"), *n)).collect())
    }

    pub fn get(&self, name: &str) -> u64 {
        self.0.iter().find(|(known, _)| known == name).map_or(0, |(_, n)| *n)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, n)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={n}", if at > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

/// What failed, and the case that fails again.
#[derive(Clone, Debug)]
pub struct Failure {
    pub case: String,
    pub what: String,
}

thread_local! {
    static CASE: RefCell<Option<String>> = const { RefCell::new(None) };
}
static SEEN: AtomicU64 = AtomicU64::new(0);

/// What this thread works on: a panic, which ends the program, says how to run it again.
pub fn working_on(case: impl Into<String>) {
    CASE.set(Some(case.into()));
}

/// States (runs, images, inputs: the layer's own unit) that were looked at since: how far a run came that fails.
pub fn saw(states: u64) {
    SEEN.fetch_add(states, Ordering::Relaxed);
}

/// Cases 0, 1, 2 … over the run's threads, until each has its part of `much` of what counts as `unit`. Each thread has a
/// `worker` of its own, which plays a case by its number.
///
/// # Errors
/// The first case that failed.
pub fn spread<W>(run: &Run, unit: &'static str, much: u64, worker: impl Fn() -> W) -> Result<Counts, Failure>
where
    W: FnMut(u64) -> Result<Counts, Failure> + Send + 'static,
{
    let threads = run.threads.max(1);
    let part = run.count.unwrap_or(much).div_ceil(threads as u64);
    let (done, results) = mpsc::channel();
    for thread in 0..threads {
        let (done, mut play) = (done.clone(), worker());
        spawn(move || {
            let mut total = Counts::default();
            for number in (thread as u64..).step_by(threads) {
                if total.get(unit) >= part {
                    break;
                }
                match play(number) {
                    Ok(counts) => total.merge(&counts),
                    Err(failure) => {
                        let _ = done.send(Err(failure));
                        return;
                    }
                }
            }
            let _ = done.send(Ok(total));
        });
    }
    drop(done);
    let mut counts = Counts::default();
    for result in results {
        counts.merge(&result?);
    }
    Ok(counts)
}

#[expect(clippy::disallowed_methods, reason = "cases share nothing; each has a reactor on virtual time")]
fn spawn(work: impl FnOnce() + Send + 'static) {
    drop(std::thread::spawn(work));
}

/// Says that a layer failed, and how to run the case again.
pub fn again(name: &str, run: &Run, case: &str) {
    let (after, seed) = (SEEN.load(Ordering::Relaxed), run.seed);
    println!("prove {name}: FAILED after={after} seed={seed}");
    println!("again: prove {name} --seed {seed} --case '{case}'");
}

/// From now on a panic of the layer prints what [`report`] would have.
pub fn report_panics(name: &str, run: &Run) {
    let (name, run, inner) = (name.to_owned(), run.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        let payload = info.payload_as_str().unwrap_or("a panic");
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        println!("panic at {at}: {payload}");
        again(&name, &run, &CASE.take().unwrap_or_default());
        inner(info);
    }));
}

/// Prints a layer's line.
pub fn report(name: &str, run: &Run, outcome: Result<Counts, Failure>) -> ExitCode {
    let seconds = run.start.elapsed().as_secs_f64();
    match outcome {
        Ok(counts) => {
            println!("prove {name}: {counts} seed={} ({seconds:.1} s)", run.seed);
            ExitCode::SUCCESS
        }
        Err(Failure { case, what }) => {
            println!("{what}");
            again(name, run, &case);
            ExitCode::FAILURE
        }
    }
}
