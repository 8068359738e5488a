//! Layer 5, corruption: a target in which every structure occurs is hurt in every way that a device can hurt it, each
//! way alone, and everything that the store answers then must be right or an error.
//!
//! What must come of damage follows from what it hits (`bench`): of a superblock's copies, the whole ones serve; a
//! journal record that was durable stops the start with its address, one that nothing says was durable is dropped; a node
//! is named by `fsck` with the keys that it held, and no read goes through it; a data chunk is called corrupt. What nothing
//! refers to is harmless: every answer stays as it was.

mod bench;
mod classes;
mod subject;

use crate::run::{self, Counts, Failure, Run};
use bench::{Bench, Depth, Seen, all_rows};
use classes::{Class, Kind};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor};
use cobalt_sim::image::ImageDisk;
use cobalt_sim::populate::{Moment, limits, populate};
use cobalt_store::{OpenOptions, Regions, Store};
use std::sync::Arc;
use subject::Subject;

/// Failures that are told before the rest is only counted.
const TOLD_MAX: usize = 10;

/// What one class of damage came to.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    detected: u64,
    dropped: u64,
    harmless: u64,
    missed: u64,
}

pub fn run(run: &Run) -> Result<Counts, Failure> {
    let broken = |what: String| Failure { case: String::new(), what };
    let subjects = subjects(run.seed).map_err(broken)?;
    let classes = classes::all(&subjects, run.seed);
    let wanted = match &run.case {
        Some(case) => Some(find(&subjects, &classes, case).ok_or_else(|| broken(format!("no case {case}")))?),
        None => None,
    };
    let threads = run.threads.max(1);
    let classes = Arc::new(classes);
    let parts: Vec<(Vec<Tally>, Vec<Failure>)> = std::thread::scope(|scope| {
        let work = (0..threads).map(|thread| {
            let (subjects, classes) = (subjects.clone(), classes.clone());
            let share = Share { subjects, classes, thread, threads, wanted, first: run.first };
            scope.spawn(move || share.work(run.seed))
        });
        let work: Vec<_> = work.collect();
        work.into_iter().map(|thread| thread.join().expect("a panic aborts")).collect()
    });
    let mut tallies = vec![Tally::default(); classes.len()];
    let mut failures = Vec::new();
    for (part, failed) in parts {
        for (sum, tally) in tallies.iter_mut().zip(part) {
            sum.detected += tally.detected;
            sum.dropped += tally.dropped;
            sum.harmless += tally.harmless;
            sum.missed += tally.missed;
        }
        failures.extend(failed);
    }
    report(run, &classes, &tallies, failures)
}

fn report(
    run: &Run,
    classes: &[Class],
    tallies: &[Tally],
    failures: Vec<Failure>,
) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    let mut missed = 0;
    let mut all = Tally::default();
    for (class, tally) in classes.iter().zip(tallies) {
        let Tally { detected, dropped, harmless, missed: lost } = *tally;
        if run.verbose || lost > 0 {
            println!(
                "{} of {}: {detected}/{} detected, {dropped} dropped, {harmless} harmless",
                class.name,
                class.of,
                detected + lost
            );
        }
        counts.add(class.name, detected);
        all.dropped += dropped;
        all.harmless += harmless;
        all.detected += detected;
        missed += lost;
    }
    let Tally { detected, dropped, harmless, .. } = all;
    let sums = [("detected", detected), ("dropped", dropped), ("harmless", harmless), ("missed", missed)];
    sums.iter().for_each(|(name, n)| counts.add(name, *n));
    counts.add("states", detected + dropped + harmless + missed);
    for failure in failures.iter().take(TOLD_MAX) {
        println!("{}: {}", failure.case, failure.what);
    }
    match failures.into_iter().next() {
        Some(first) => {
            let what = format!("{missed} states were not as they must be; the first: {}", first.what);
            Err(Failure { case: first.case, what })
        }
        None => Ok(counts),
    }
}

/// A case as `class:moment:number`, or all of a class as `class:moment`.
fn find(subjects: &[Arc<Subject>], classes: &[Class], case: &str) -> Option<(usize, Option<u64>)> {
    let mut parts = case.split(':');
    let (name, of) = (parts.next()?, parts.next()?);
    let number = parts.next().map(str::parse).transpose().ok()?;
    let known = |class: &Class| class.name == name && subjects[class.subject].name == of;
    Some((classes.iter().position(known)?, number))
}

/// What a thread works on: every so-manieth case of each class.
#[derive(Clone)]
struct Share {
    subjects: Vec<Arc<Subject>>,
    classes: Arc<Vec<Class>>,
    thread: usize,
    threads: usize,
    wanted: Option<(usize, Option<u64>)>,
    /// Ends at the first failure.
    first: bool,
}

impl Share {
    fn work(self, seed: u64) -> (Vec<Tally>, Vec<Failure>) {
        let reactor = Reactor::new_virtual(seed).expect("a reactor");
        let ctx = reactor.ctx();
        reactor.block_on(async move {
            let mut tallies = vec![Tally::default(); self.classes.len()];
            let mut failures = Vec::new();
            for number in 0..self.subjects.len() {
                if let Err(what) = self.one(&ctx, number, &mut tallies, &mut failures).await {
                    failures.push(Failure { case: self.subjects[number].name.to_owned(), what });
                }
            }
            (tallies, failures)
        })
    }

    async fn one(
        &self,
        ctx: &Ctx,
        number: usize,
        tallies: &mut [Tally],
        failures: &mut Vec<Failure>,
    ) -> Result<(), String> {
        let bench = Bench::new(ctx, self.subjects[number].clone()).await?;
        let own = self.classes.iter().enumerate().filter(|(_, class)| class.subject == number);
        for (at, class) in own {
            let tally = &mut tallies[at];
            let mine = (self.thread as u64..class.len).step_by(self.threads);
            let wanted = |i: &u64| {
                self.wanted.is_none_or(|(class, case)| class == at && case.is_none_or(|case| case == *i))
            };
            for i in mine.filter(wanted) {
                if self.first && !failures.is_empty() {
                    return Ok(());
                }
                let alone = self.wanted.is_some_and(|(_, case)| case.is_some());
                run::working_on(format!("{}:{}:{i}", class.name, class.of));
                run::saw(1);
                let depth = match i {
                    _ if alone || i % class.deep_every == 0 => Depth::All,
                    _ if i % class.rows_every == 0 => Depth::Rows,
                    _ => Depth::Status,
                };
                match check(&bench, class, i, depth).await {
                    Ok(Seen::Detected) => tally.detected += 1,
                    Ok(Seen::Dropped) => tally.dropped += 1,
                    Ok(Seen::Harmless) => tally.harmless += 1,
                    Ok(Seen::Nothing) => {}
                    Err(what) => {
                        tally.missed += 1;
                        if failures.len() < TOLD_MAX {
                            let case = format!("{}:{}:{i}", class.name, class.of);
                            failures.push(Failure { case, what });
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

async fn check(bench: &Bench, class: &Class, i: u64, depth: Depth) -> Result<Seen, String> {
    match &class.kind {
        Kind::CopyBits => classes::copy_bit(bench, i, depth).await,
        Kind::Superblocks(make) => bench.check_superblocks(&make(&bench.subject, i), depth).await,
        Kind::Blocks(make) => {
            bench.check(&make(&bench.subject, i), class.name.ends_with("forged"), depth).await
        }
    }
}

fn subjects(seed: u64) -> Result<Vec<Arc<Subject>>, String> {
    let reactor = Reactor::new_virtual(seed).map_err(|e| e.to_string())?;
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let made = populate(&ctx).await;
        let arena = Arena::new(ArenaConfig { limit: 16 << 20 }).map_err(|e| e.to_string())?;
        let mut subjects = Vec::new();
        for moment in [&made.busy, &made.quiet] {
            let Moment { meta, data, .. } = moment;
            let regions = Regions {
                meta: ImageDisk::new(meta.clone()).region(),
                data: ImageDisk::new(data.clone()).region(),
            };
            let options = OpenOptions { limits: limits(), read_only: true, ..OpenOptions::default() };
            let store = Store::open(ctx.clone(), regions, arena.clone(), options).await;
            let rows = all_rows(&store.map_err(|e| e.to_string())?).await.map_err(|e| e.to_string())?;
            let history = (&made.meta_history, &made.data_history);
            subjects.push(Arc::new(Subject::new(moment, rows, history)));
        }
        Ok(subjects)
    })
}
