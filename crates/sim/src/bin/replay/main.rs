//! `replay LOG CLIENT DISK_BYTES META_BYTES`: takes the write log of a disk on which a process was killed, and makes every state
//! that the power could have left at any moment: each prefix of the log, of the writes that no flush had covered there
//! subsets, and of the last write of a prefix some of its sectors. Each is checked by fsck, opened, and held against what a client
//! was told (`CLIENT`, written outside of the machine). Prints one line of counts.
//!
//! `--without-flushes` is the proof that this can fail: writes are lost although a flush covered them, and somebody must notice.

mod client;
mod judge;
mod log;

use client::Client;
use cobalt_base::BLOCK_SIZE;
use cobalt_store::geometry::SLOTS;
use judge::{Judge, Mark};
use log::{Entry, What};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::borrow::Cow;
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
/// What the disk writes whole or not at all: its logical block, since it promises no more (AWUPF 0).
const SECTOR: usize = 512;
/// A write is torn behind its first sector, before its last one, at so many random places, and so often into random sectors.
const TORN_AT: usize = 1;
const TORN_INTO: usize = 1;
/// Most torn writes in all, those of superblocks apart.
const TORN_MAX: u64 = 4000;
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

/// Bytes of a disk from one on.
type Change<'a> = (usize, Cow<'a, [u8]>);

/// Some sectors of a change.
fn sectors_of<'a>((at, bytes): &'a Change<'_>, sectors: &'a [usize]) -> impl Iterator<Item = Change<'a>> {
    sectors.iter().map(move |n| (at + n * SECTOR, Cow::Borrowed(&bytes[n * SECTOR..(n + 1) * SECTOR])))
}

/// How often what was tried.
#[derive(Default)]
struct Counts {
    states: u64,
    prefixes: u64,
    subsets: u64,
    sampled: u64,
    torn: u64,
    torn_superblocks: u64,
    started: u64,
    most_pending: usize,
    marks: BTreeSet<Mark>,
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

    /// What an entry does to a disk: these bytes are there from this one on.
    fn change(&self, entry: &Entry) -> Option<Change<'_>> {
        match &entry.what {
            What::Flush => None,
            What::Write { at, data } => Some((*at, Cow::Borrowed(&self.log[data.clone()]))),
            What::Discard(range) => Some((range.start, Cow::Owned(vec![0xdd; range.len()]))),
        }
    }

    fn states(&self) -> Result<String, String> {
        let mut image = vec![0; self.disk]; // All that is durable.
        let mut pending: Vec<usize> = Vec::new();
        let mut counts = Counts::default();
        let mut rng = StdRng::seed_from_u64(1);
        for (n, entry) in self.entries.iter().enumerate() {
            if matches!(entry.what, What::Flush) {
                for (at, bytes) in pending.drain(..).filter_map(|n| self.change(&self.entries[n])) {
                    image[at..at + bytes.len()].copy_from_slice(&bytes);
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
                let some = pending.iter().enumerate().filter(|(bit, _)| kept >> bit & 1 == 1);
                let some = some.filter_map(|(_, n)| self.change(&self.entries[*n])).collect();
                self.state(&mut image, entry.end, some, &mut counts).map_err(|why| {
                    format!("after entry {n}, of {} unflushed writes kept {kept:b}: {why}", pending.len())
                })?;
            }
            let last = self.change(entry);
            for sectors in self.tears(entry, &mut counts, &mut rng) {
                let whole = pending.iter().take(pending.len() - 1).map(|n| &self.entries[*n]);
                let mut some: Vec<Change> = whole.filter_map(|entry| self.change(entry)).collect();
                some.extend(last.iter().flat_map(|last| sectors_of(last, &sectors)));
                self.state(&mut image, entry.end, some, &mut counts)
                    .map_err(|why| format!("entry {n}, of whose sectors {sectors:?} were written: {why}"))?;
            }
        }
        Ok(self.line(&counts))
    }

    /// Judges one state: what is durable, and these changes. The image is as it was afterwards.
    fn state(
        &self,
        image: &mut Vec<u8>,
        cut: u64,
        some: Vec<Change<'_>>,
        counts: &mut Counts,
    ) -> Result<(), String> {
        counts.states += 1;
        let start = counts.states.is_multiple_of(START_ONE_IN);
        counts.started += u64::from(start);
        let mut held = Vec::new();
        for (at, bytes) in some {
            let range = at..at + bytes.len();
            held.push((range.clone(), image[range.clone()].to_vec()));
            image[range].copy_from_slice(&bytes);
        }
        let mark = self.judge.judge(image, cut, start);
        for (range, bytes) in held.into_iter().rev() {
            image[range].copy_from_slice(&bytes);
        }
        counts.marks.insert(mark?);
        Ok(())
    }

    /// Which sectors of a write are kept, each time others, and never all.
    fn tears(&self, entry: &Entry, counts: &mut Counts, rng: &mut StdRng) -> BTreeSet<Vec<usize>> {
        let What::Write { at, data } = &entry.what else { return BTreeSet::new() };
        let sectors = data.len() / SECTOR;
        let superblock = self.is_superblock(*at);
        if sectors < 2 || (counts.torn >= TORN_MAX && !superblock) {
            return BTreeSet::new();
        }
        let ends = [1, sectors - 1].into_iter().chain((0..TORN_AT).map(|_| rng.random_range(1..sectors)));
        let mut tears: BTreeSet<Vec<usize>> = ends.map(|end| (0..end).collect()).collect();
        for _ in 0..TORN_INTO {
            let lost = rng.random_range(0..sectors);
            tears.insert((0..sectors).filter(|n| *n != lost && rng.random()).collect());
        }
        counts.torn += tears.len() as u64;
        counts.torn_superblocks += if superblock { tears.len() as u64 } else { 0 };
        tears
    }

    /// Both ends of the meta region have a copy of each slot.
    fn is_superblock(&self, at: usize) -> bool {
        let (at, meta, len) = (at as u64, self.judge.meta, SLOTS * BLOCK_SIZE);
        at < len || (meta - len..meta).contains(&at)
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
        let epochs: BTreeSet<u64> = counts.marks.iter().map(|mark| mark.1).collect();
        let checkpoints = counts.marks.len() - epochs.len();
        format!(
            "{} entries ({} writes, {} flushes, {} discards), {} since the target was laid out; {operations} operations, {acknowledged} acknowledged; {} prefixes, {} subsets of up to {SUBSETS_OF} unflushed writes (all before a flush), {} of up to {} (each one lost, and samples; at most {SUBSETS_MAX} in all); {} torn writes of sectors of {SECTOR} (at most {TORN_MAX} beside superblocks), {} of them of superblocks; {checkpoints} checkpoints in {} starts; {} started and stopped",
            self.entries.len(),
            of(|what| matches!(what, What::Write { .. })),
            of(|what| matches!(what, What::Flush)),
            of(|what| matches!(what, What::Discard(_))),
            self.entries.len() - self.laid_out,
            counts.prefixes,
            counts.subsets,
            counts.sampled,
            counts.most_pending,
            counts.torn,
            counts.torn_superblocks,
            epochs.len(),
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
                if (n < self.laid_out || rng.random_range(0..LOST_ONE_IN) > 0)
                    && let Some((at, bytes)) = self.change(entry)
                {
                    image[at..at + bytes.len()].copy_from_slice(&bytes);
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
