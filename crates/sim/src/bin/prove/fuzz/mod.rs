//! Layer 7, fuzz: parsers of everything that comes from a disk, and whole images, under changed input whose checksums
//! are made right again. Any of it may be refused. Nothing may panic, go on for ever, or take more memory than its input
//! warrants.

mod images;
mod memory;
mod mend;
mod mutate;

use crate::layout::{self, COPIES, HEADER, NODE, RING, Super, u32_at, u64_at};
use crate::run::{self, Counts, Failure, Run};
use cobalt_reactor::Reactor;
use cobalt_sim::image::BLOCK;
use cobalt_sim::populate::{META_LEN, Moment, populate, target};
use cobalt_store::parsers;
use cobalt_store::tree::{NodeRef, TreeId};
use images::Images;
use mutate::Dice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Inputs of a run.
const INPUTS: u64 = 1_100_000;
/// Every so-manieth input is a ring, and a whole image.
const RING_EVERY: u64 = 110;
const IMAGE_EVERY: u64 = 550;
/// Bytes of memory for each byte of a parser's input, and for any.
const MEMORY_FACTOR: u64 = 32;
/// The same for payloads: an intent may have two bytes on disk, and while its vector grows it is there twice.
const MEMORY_FACTOR_PAYLOAD: u64 = 128;
const MEMORY_LEAST: u64 = 64 << 10;
/// Bytes for an image: two arenas are there before.
const MEMORY_IMAGE: u64 = 96 << 20;
/// A thread that is at one input for so long hangs.
const HANG: Duration = Duration::from_secs(60);

/// Valid inputs, by parser.
struct Corpus {
    moments: Vec<Moment>,
    superblocks: Vec<Vec<u8>>,
    nodes: Vec<Vec<u8>>,
    headers: Vec<Vec<u8>>,
    payloads: Vec<(Vec<u8>, u32)>,
    rows: Vec<(TreeId, Vec<u8>, Vec<u8>)>,
    bitmap: Vec<u8>,
    node_blocks: u64,
}

pub fn run(run: &Run) -> Result<Counts, Failure> {
    let broken = |what: String| Failure { case: String::new(), what };
    let corpus = Arc::new(corpus(run.seed).map_err(broken)?);
    let (only, inputs) = match &run.case {
        Some(case) => (Some(case.parse().map_err(|_| broken(format!("no case {case}")))?), 0),
        None => (None, run.count.unwrap_or(INPUTS)),
    };
    let threads = if only.is_some() { 1 } else { run.threads.max(1) };
    let beats: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    let parts: Vec<Result<Counts, Failure>> = std::thread::scope(|scope| {
        let work: Vec<_> = beats
            .iter()
            .enumerate()
            .map(|(thread, beat)| {
                let corpus = corpus.clone();
                let numbers = match only {
                    Some(number) => number..number + 1,
                    None => 0..inputs,
                };
                scope.spawn(move || share(run.seed, &corpus, numbers, (thread, threads), beat))
            })
            .collect();
        scope.spawn(|| watch(run, &beats, &done));
        let parts = work.into_iter().map(|thread| thread.join().expect("a panic aborts")).collect();
        done.store(true, Ordering::Relaxed);
        parts
    });
    let mut counts = Counts::default();
    for part in parts {
        counts.merge(&part?);
    }
    Ok(counts)
}

/// Ends the program when a thread does not get on: a loop without an end cannot be left in another way.
fn watch(run: &Run, beats: &[AtomicU64], done: &AtomicBool) {
    let mut last: Vec<u64> = vec![u64::MAX; beats.len()];
    let mut since = 0;
    while !done.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(100));
        since += 1;
        if since < HANG.as_millis() / 100 {
            continue;
        }
        since = 0;
        for (last, beat) in last.iter_mut().zip(beats) {
            let now = beat.load(Ordering::Relaxed);
            if now == *last && now != u64::MAX {
                println!("input {now} does not end");
                println!("again: prove fuzz --seed {} --case '{now}'", run.seed);
                std::process::exit(1);
            }
            *last = now;
        }
    }
}

fn share(
    seed: u64,
    corpus: &Arc<Corpus>,
    numbers: std::ops::Range<u64>,
    (thread, threads): (usize, usize),
    beat: &AtomicU64,
) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    let mine = numbers.clone().skip(thread).step_by(threads);
    // Images in turns of one reactor each, so that none has to live with what another left.
    let mut images = Vec::new();
    for number in mine {
        if number.is_multiple_of(RING_EVERY) {
            images.push(number);
            continue;
        }
        beat.store(number, Ordering::Relaxed);
        run::working_on(number.to_string());
        run::saw(1);
        parser(seed, corpus, number, &mut counts)
            .map_err(|what| Failure { case: number.to_string(), what })?;
    }
    for number in images {
        beat.store(number, Ordering::Relaxed);
        run::working_on(number.to_string());
        run::saw(1);
        image(seed, corpus, number, &mut counts)
            .map_err(|what| Failure { case: number.to_string(), what })?;
    }
    beat.store(u64::MAX, Ordering::Relaxed);
    Ok(counts)
}

fn image(seed: u64, corpus: &Arc<Corpus>, number: u64, counts: &mut Counts) -> Result<(), String> {
    let reactor = Reactor::new_virtual(number).map_err(|e| e.to_string())?;
    let (ctx, corpus) = (reactor.ctx(), corpus.clone());
    let before = memory::start();
    let whole = number.is_multiple_of(IMAGE_EVERY);
    let fate = reactor.block_on(async move {
        let images = Images::new(&ctx, corpus.moments.clone());
        let mut dice = Dice::new(seed, number);
        if whole { images.whole(&mut dice).await } else { images.ring(&mut dice).await }
    })?;
    let peak = memory::since(before);
    if peak > MEMORY_IMAGE {
        return Err(format!("an image took {peak} bytes of memory"));
    }
    counts.add(if whole { "images" } else { "rings" }, 1);
    counts.add("inputs", 1);
    counts.add(if fate.opened { "opened" } else { "refused" }, 1);
    counts.add("found", u64::from(fate.found));
    Ok(())
}

fn parser(seed: u64, corpus: &Corpus, number: u64, counts: &mut Counts) -> Result<(), String> {
    let mut dice = Dice::new(seed, number);
    let (name, len, (good, peak)) = match number % 20 {
        0..=6 => {
            let (mut node, other) = (dice.of(&corpus.nodes).clone(), dice.of(&corpus.nodes));
            if dice.below(4) == 0 {
                dice.change_length(&mut node, other);
            } else {
                dice.change(&mut node, other);
            }
            ("nodes", node.len(), memory::peak_of(|| node_input(corpus, &mut node)))
        }
        7..=11 => {
            let ((mut payload, mut count), other) =
                (dice.of(&corpus.payloads).clone(), dice.of(&corpus.payloads));
            dice.change_length(&mut payload, &other.0);
            if dice.below(8) == 0 {
                count = dice.next() as u32;
            }
            let run = || parsers::payload(&payload, count).is_some();
            ("payloads", payload.len(), memory::peak_of(run))
        }
        12..=14 => {
            let (mut header, other) = (dice.of(&corpus.headers).clone(), dice.of(&corpus.headers));
            dice.change(&mut header, other);
            layout::seal_header(&mut header);
            if dice.below(8) == 0 {
                header.truncate(dice.below(HEADER));
            }
            let offset = u64_at(&header, 48);
            let run = || parsers::header(&header, target(), offset, RING as u64);
            ("headers", header.len(), memory::peak_of(run))
        }
        15..=17 => {
            let ((tree, mut key, mut value), other) = (dice.of(&corpus.rows).clone(), dice.of(&corpus.rows));
            if dice.below(3) == 0 {
                dice.change_length(&mut key, &other.1);
            }
            dice.change_length(&mut value, &other.2);
            let run = || parsers::row(tree, &key, &value);
            ("rows", key.len() + value.len(), memory::peak_of(run))
        }
        18 => {
            let (mut copy, other) = (dice.of(&corpus.superblocks).clone(), dice.of(&corpus.superblocks));
            dice.change(&mut copy[..400], other);
            layout::seal_superblock(&mut copy);
            if dice.below(8) == 0 {
                copy.truncate(dice.below(BLOCK));
            }
            let (region, slot) = (META_LEN as u64, dice.next() % 2);
            let run = || parsers::superblock(&copy, region, slot);
            ("superblocks", copy.len(), memory::peak_of(run))
        }
        _ => {
            let mut bitmap = corpus.bitmap.clone();
            let other = bitmap.clone();
            dice.change_length(&mut bitmap, &other);
            let run = || parsers::bitmap(corpus.node_blocks, &bitmap);
            ("bitmaps", bitmap.len(), memory::peak_of(run))
        }
    };
    let factor = if name == "payloads" { MEMORY_FACTOR_PAYLOAD } else { MEMORY_FACTOR };
    let allowed = len as u64 * factor + MEMORY_LEAST;
    if peak > allowed {
        return Err(format!("{name}: an input of {len} bytes took {peak} bytes of memory"));
    }
    counts.add(name, 1);
    counts.add("inputs", 1);
    counts.add("accepted", u64::from(good));
    Ok(())
}

/// A node, with the sum that its bytes have, at the place that it names.
fn node_input(corpus: &Corpus, node: &mut [u8]) -> bool {
    let checksum = if node.len() >= 40 { layout::seal_node(node) } else { 1 };
    let tree = TreeId::ALL[node.get(4).map_or(0, |tree| usize::from(*tree) % 4)];
    let level = u32::from(node.get(5).copied().unwrap_or(0));
    let place = NodeRef { block: u64_at(node, 8), generation: u64_at(node, 16), checksum };
    parsers::node(node, target(), place, tree, level, corpus.node_blocks)
}

fn corpus(seed: u64) -> Result<Corpus, String> {
    let reactor = Reactor::new_virtual(seed).map_err(|e| e.to_string())?;
    let ctx = reactor.ctx();
    let made = reactor.block_on(async move { populate(&ctx).await });
    let moments = vec![made.closed, made.busy, made.quiet, made.inline];
    let meta = moments[1].meta.clone();
    let sb = Super::of(&meta);
    let nodes = layout::nodes(&meta, &sb);
    let block = |at: usize| meta[at..at + BLOCK].to_vec();
    let mut payloads = Vec::new();
    let mut headers = Vec::new();
    for meta in moments.iter().map(|moment| &moment.meta) {
        let sb = Super::of(meta);
        for record in layout::records(meta, &sb) {
            let bytes: Vec<u8> = record.bytes().map(|at| meta[sb.ring_at() + at]).collect();
            headers.push(bytes[..HEADER].to_vec());
            if record.payload > 0 {
                payloads.push((bytes[HEADER..].to_vec(), u32_at(&bytes, 40)));
            }
        }
    }
    let mut rows = Vec::new();
    for node in nodes.iter().filter(|node| node.level == 0) {
        let leaf = &meta[node.at..node.at + NODE];
        let tree = TreeId::ALL[node.tree];
        rows.extend(layout::entries(leaf).map(|(_, key, value)| (tree, key.to_vec(), value.to_vec())));
    }
    Ok(Corpus {
        superblocks: COPIES.iter().map(|(_, at)| block(*at)).collect(),
        nodes: nodes.iter().map(|node| block(node.at)).collect(),
        headers,
        payloads,
        rows,
        bitmap: block(sb.bitmap_at(sb.area)),
        node_blocks: sb.node_blocks,
        moments,
    })
}
