//! `replay LOG CLIENT DISK_BYTES META_BYTES`: takes the write log of a disk on which a process was killed, and makes every state
//! that the power could have left at any moment: each prefix of the log, and, of the writes that no flush had covered there,
//! subsets. Each is checked by fsck, opened, and held against what a client was told (`CLIENT`, written outside of the machine).
//! Prints one line of counts.
//!
//! `--without-flushes` is the proof that this can fail: writes are lost although a flush covered them, and somebody must notice.

mod client;
mod judge;
mod log;

use client::Client;
use judge::Judge;
use log::{Entry, What};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::process::ExitCode;

/// Up to so many writes between two flushes have all of their subsets tried.
const SUBSETS_OF: usize = 4;
/// Random subsets where there are more, before each flush.
const SAMPLES: usize = 8;
/// Random subsets at every other place.
const SAMPLES_BETWEEN: usize = 1;
/// Most subsets in all.
const SUBSETS_MAX: u64 = 4000;
/// One in so many states is started, stopped and checked again.
const START_ONE_IN: u64 = 16;
/// Disks without their flushes, one in how many of whose writes is lost.
const UNFLUSHED: u64 = 40;
const LOST_ONE_IN: u32 = 8;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        [log, client, disk, meta, ref rest @ ..] if rest.is_empty() || rest == ["--without-flushes"] => {
            Replay::load(log, client, disk, meta).and_then(|replay| match rest {
                [] => replay.states(),
                _ => replay.without_flushes(),
            })
        }
        _ => Err("usage: replay LOG CLIENT DISK_BYTES META_BYTES [--without-flushes]".to_owned()),
    };
    match outcome {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

struct Replay {
    log: Vec<u8>,
    entries: Vec<Entry>,
    disk: usize,
    judge: Judge,
    /// Entries that were there when the target was laid out: before, nothing was promised.
    laid_out: usize,
}

/// How often what was tried.
#[derive(Default)]
struct Counts {
    prefixes: u64,
    subsets: u64,
    sampled: u64,
    started: u64,
    most_pending: usize,
}

impl Replay {
    fn load(log: &str, client: &str, disk: &str, meta: &str) -> Result<Replay, String> {
        let read = |path: &str| std::fs::read(path).map_err(|e| format!("{path}: {e}"));
        let (log, text) = (read(log)?, read(client)?);
        let number = |text: &str| text.parse::<usize>().map_err(|e| format!("{text}: {e}"));
        let (disk, meta) = (number(disk)?, number(meta)?);
        let entries = log::parse(&log, disk)?;
        let text = String::from_utf8(text).map_err(|e| e.to_string())?;
        let (first, rest) = text.split_once('\n').ok_or("the client says nothing")?;
        let laid_out = first.strip_prefix("laid-out ").and_then(|end| end.parse().ok());
        let laid_out: u64 = laid_out.ok_or("the client does not say when the target was laid out")?;
        let laid_out = entries.partition_point(|entry| entry.end <= laid_out);
        let judge = Judge::new(Client::parse(rest)?, meta as u64);
        Ok(Replay { log, entries, disk, judge, laid_out })
    }

    /// Does to an image what an entry says. Gives what was there.
    fn apply(&self, entry: &Entry, image: &mut [u8]) -> Option<(usize, Vec<u8>)> {
        let (at, data) = match &entry.what {
            What::Flush => return None,
            What::Write { at, data } => (*at, Some(&self.log[data.clone()])),
            What::Discard(range) => (range.start, None),
        };
        let len = match &entry.what {
            What::Discard(range) => range.len(),
            _ => data.map_or(0, <[u8]>::len),
        };
        let held = image[at..at + len].to_vec();
        match data {
            Some(data) => image[at..at + len].copy_from_slice(data),
            None => image[at..at + len].fill(0xdd),
        }
        Some((at, held))
    }

    /// Shows an image with those of the pending writes that are kept, a bit each; it is as it was afterwards.
    fn with(
        &self,
        image: &mut Vec<u8>,
        pending: &[usize],
        kept: u64,
        see: impl FnOnce(&mut Vec<u8>) -> Result<(), String>,
    ) -> Result<(), String> {
        let some = pending.iter().enumerate().filter(|(n, _)| kept >> n & 1 == 1);
        let old: Vec<_> = some.filter_map(|(_, at)| self.apply(&self.entries[*at], image)).collect();
        let seen = see(image);
        for (at, held) in old.into_iter().rev() {
            image[at..at + held.len()].copy_from_slice(&held);
        }
        seen
    }

    fn states(&self) -> Result<String, String> {
        let mut image = vec![0; self.disk]; // All that is durable.
        let mut pending: Vec<usize> = Vec::new();
        let mut counts = Counts::default();
        let mut rng = StdRng::seed_from_u64(1);
        for (n, entry) in self.entries.iter().enumerate() {
            if matches!(entry.what, What::Flush) {
                for at in pending.drain(..) {
                    self.apply(&self.entries[at], &mut image);
                }
            } else {
                pending.push(n);
                if pending.len() > 63 {
                    return Err(format!(
                        "more than 63 writes without a flush, at entry {n}: not made for that"
                    ));
                }
            }
            if n + 1 < self.laid_out {
                continue;
            }
            counts.most_pending = counts.most_pending.max(pending.len());
            let before_flush = self.entries.get(n + 1).is_some_and(|next| matches!(next.what, What::Flush));
            for kept in self.picks(pending.len(), before_flush, &counts, &mut rng) {
                let all = kept == (1 << pending.len()) - 1;
                match all {
                    true => counts.prefixes += 1,
                    false if pending.len() > SUBSETS_OF => counts.sampled += 1,
                    false => counts.subsets += 1,
                }
                let states = counts.prefixes + counts.subsets + counts.sampled;
                let start = states.is_multiple_of(START_ONE_IN);
                counts.started += u64::from(start);
                self.with(&mut image, &pending, kept, |image| self.judge.judge(image, entry.end, start))
                    .map_err(|why| {
                        format!(
                            "after entry {n} of {}, of {} unflushed writes kept {kept:b}: {why}",
                            self.entries.len(),
                            pending.len()
                        )
                    })?;
            }
        }
        Ok(self.line(&counts))
    }

    /// Which pending writes are kept, a bit each. All of them are the prefix.
    fn picks(&self, n: usize, before_flush: bool, counts: &Counts, rng: &mut StdRng) -> BTreeSet<u64> {
        let all = (1u64 << n) - 1;
        let mut picks = BTreeSet::from([all]);
        if n == 0 || counts.subsets + counts.sampled >= SUBSETS_MAX {
            return picks;
        }
        picks.insert(0);
        if !before_flush {
            picks.extend((0..SAMPLES_BETWEEN).map(|_| rng.random::<u64>() & all));
        } else if n <= SUBSETS_OF {
            picks.extend(0..all);
        } else {
            picks.extend((0..n).map(|lost| all & !(1 << lost)));
            picks.extend((0..SAMPLES).map(|_| rng.random::<u64>() & all));
        }
        picks
    }

    fn line(&self, counts: &Counts) -> String {
        let of = |is: fn(&What) -> bool| self.entries.iter().filter(|entry| is(&entry.what)).count();
        let (operations, acknowledged) = self.judge.client.counts();
        format!(
            "{} entries ({} writes, {} flushes, {} discards), {} since the target was laid out; {operations} operations, {acknowledged} acknowledged; {} prefixes, {} subsets of up to {SUBSETS_OF} unflushed writes (all before a flush), {} of up to {} (each one lost, and samples; at most {SUBSETS_MAX} in all); {} started and stopped",
            self.entries.len(),
            of(|what| matches!(what, What::Write { .. })),
            of(|what| matches!(what, What::Flush)),
            of(|what| matches!(what, What::Discard(_))),
            self.entries.len() - self.laid_out,
            counts.prefixes,
            counts.subsets,
            counts.sampled,
            counts.most_pending,
            counts.started,
        )
    }

    /// Loses writes although they were flushed: a judge that minds nothing proves nothing.
    fn without_flushes(&self) -> Result<String, String> {
        let mut rng = StdRng::seed_from_u64(1);
        let (mut noticed, mut example) = (0, String::new());
        for _ in 0..UNFLUSHED {
            let end = rng.random_range(self.laid_out..self.entries.len());
            let mut image = vec![0; self.disk];
            for (n, entry) in self.entries[..=end].iter().enumerate() {
                if n < self.laid_out || rng.random_range(0..LOST_ONE_IN) > 0 {
                    self.apply(entry, &mut image);
                }
            }
            if let Err(why) = self.judge.judge(&mut image, self.entries[end].end, false) {
                noticed += 1;
                example = why;
            }
        }
        if noticed < UNFLUSHED / 2 {
            return Err(format!("of {UNFLUSHED} disks that lost flushed writes, {noticed} were noticed"));
        }
        Ok(format!(
            "of {UNFLUSHED} disks that lost one in {LOST_ONE_IN} of all writes, flushed or not, {noticed} were noticed, the last so: {example}"
        ))
    }
}
