//! The recovery decision table, over every combination: each of two superblocks, the checkpoint's root, the journal's
//! head, middle and tail, and the record that says how far it is durable, in each state that damage can leave it in.
//!
//! The states are real: a store wrote them. What must come of a combination is stated here by a rule of its own, which
//! knows what was durable and what is left to show it, and nothing of the table. All of them are decided; those with
//! at most three hurt parts are also opened, and must then hold exactly what they should, or be refused untouched.

mod history;
mod parts;
mod rule;

use crate::run::{Counts, Failure, Run, saw};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor};
use cobalt_store::proof::{Judged, judged};
use cobalt_store::recovery_table::TABLE;
use cobalt_store::{OpenError, OpenOptions, Store};
use history::{History, Past, limits};
use parts::{Case, State};
use rule::Required;

/// Cases with at most this many hurt parts are opened, too.
const OPENED_HURT: usize = 3;

/// All combinations over both histories, spread over the threads by the newest superblock's state and the other's.
pub fn run(run: &Run) -> Result<Counts, Failure> {
    let one = run.case.as_deref().map(str::parse::<Case>).transpose();
    let one = one.map_err(|what| Failure { case: run.case.clone().unwrap_or_default(), what })?;
    let threads = run.threads.max(1);
    let results: Vec<Result<Seen, Failure>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let reactor = Reactor::new_virtual(run.seed).expect("virtual time needs no system");
                    let ctx = reactor.ctx();
                    let limit = run.count.unwrap_or(u64::MAX) / threads as u64;
                    reactor.block_on(async move { work(&ctx, worker, threads, limit, one).await })
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a panic aborts")).collect()
    });
    let mut seen = Seen::default();
    for result in results {
        seen.merge(&result?);
    }
    let mut counts = Counts::default();
    counts.add("combinations", seen.combinations);
    counts.add("rows", seen.rows.iter().filter(|n| **n > 0).count() as u64);
    counts.add("rows_total", TABLE.len() as u64);
    counts.add("opening", seen.opening);
    counts.add("stopping", seen.combinations - seen.opening);
    counts.add("opened", seen.opened);
    counts.add("refused", seen.refused);
    if run.verbose {
        for (row, n) in TABLE.iter().zip(seen.rows) {
            println!("{n:>8} {}", row.then.text());
        }
    }
    if one.is_none() && run.count.is_none() && seen.rows.contains(&0) {
        let what = format!("rows that nothing reached: {:?}", seen.rows);
        return Err(Failure { case: String::new(), what });
    }
    Ok(counts)
}

/// What one worker saw.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    combinations: u64,
    rows: [u64; TABLE.len()],
    /// Combinations that a start would open.
    opening: u64,
    /// Starts that were tried: opened, and refused.
    opened: u64,
    refused: u64,
}

impl Seen {
    fn merge(&mut self, other: &Seen) {
        self.combinations += other.combinations;
        self.opening += other.opening;
        self.opened += other.opened;
        self.refused += other.refused;
        for (sum, n) in self.rows.iter_mut().zip(other.rows) {
            *sum += n;
        }
    }
}

async fn work(
    ctx: &Ctx,
    worker: usize,
    threads: usize,
    limit: u64,
    one: Option<Case>,
) -> Result<Seen, Failure> {
    let arena = Arena::new(ArenaConfig { limit: 64 << 20 }).expect("64 MiB of memory");
    let mut seen = Seen::default();
    for past in Past::ALL {
        let history = History::write(ctx, &arena, past).await;
        let mut number = 0;
        for newest in State::SUPERBLOCK {
            for previous in State::SUPERBLOCK {
                number += 1;
                if one.is_none() && number % threads != worker {
                    continue;
                }
                let first = Case::first(past, newest, previous);
                for case in first.all().filter(|case| one.is_none_or(|one| one == *case)) {
                    if seen.combinations == limit {
                        return Ok(seen);
                    }
                    saw(1);
                    check(ctx, &arena, &history, &case, &mut seen).await.map_err(|what| Failure {
                        case: case.to_string(),
                        what: format!("{case}: {what}"),
                    })?;
                }
            }
        }
    }
    Ok(seen)
}

/// Builds one case, decides it, and opens it if few parts are hurt.
async fn check(
    ctx: &Ctx,
    arena: &Arena,
    history: &History,
    case: &Case,
    seen: &mut Seen,
) -> Result<(), String> {
    let device = history.build(case);
    let regions = history.regions(&device, case);
    let required = rule::required(history, case);
    let Judged { row, chosen, last, floor } = judged(ctx, &regions, arena, Some(case.asked.cluster())).await;
    seen.combinations += 1;
    seen.rows[row] += 1;
    let then = TABLE[row].then;
    let agrees = match &required {
        Required::Stop(decisions) => decisions.contains(&then),
        Required::Open { target, generation, last: must } => {
            then.opens() && chosen == Some((*target, *generation)) && last == *must && floor <= last
        }
    };
    if !agrees {
        return Err(format!(
            "required {required:?}; row {row} says {then:?}, superblock {chosen:?}, last {last}, floor {floor}"
        ));
    }
    seen.opening += u64::from(then.opens());
    if case.hurt() <= OPENED_HURT {
        open(ctx, arena, history, case, &required, seen).await?;
    }
    Ok(())
}

/// Starts from the case: what the rule requires, or a refusal that leaves every byte as it was.
async fn open(
    ctx: &Ctx,
    arena: &Arena,
    history: &History,
    case: &Case,
    required: &Required,
    seen: &mut Seen,
) -> Result<(), String> {
    let device = history.copy(case);
    let scope = ctx.scope();
    let options = OpenOptions {
        cluster: Some(case.asked.cluster()),
        limits: limits(),
        meta_arena: Some(arena.clone()),
        ..OpenOptions::default()
    };
    let opened = Store::open(scope.ctx(), history.regions(&device, case), arena.clone(), options).await;
    let result = match (opened, history.outcome(case, required)) {
        (Err(error), None) => {
            seen.refused += 1;
            match error {
                _ if device.writes() > 0 => Err(format!("refused, after {} writes", device.writes())),
                OpenError::Limits { .. } => Err(error.to_string()),
                _ => Ok(()),
            }
        }
        (Err(error), Some(last)) => Err(format!("must open with lsn {last}: {error}")),
        (Ok(store), None) => Err(format!("must be refused, opened with lsn {:?}", store.status().applied)),
        (Ok(store), Some(last)) => {
            seen.opened += 1;
            history.holds(&store, last).await
        }
    };
    scope.kill();
    result
}

#[cfg(test)]
mod tests {
    use super::{Run, run};
    use clap::Parser;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        run: Run,
    }

    #[test]
    fn every_state_of_the_journal_under_whole_superblocks_ends_as_it_must() {
        let options = Options::parse_from(["prove", "--count", "6000"]);
        let counts = run(&options.run).expect("as the rule says");
        assert_eq!(counts.get("combinations"), 6000);
        assert!(
            counts.get("rows") >= 3 && counts.get("opened") > 20 && counts.get("refused") > 20,
            "{counts}"
        );
    }
}
