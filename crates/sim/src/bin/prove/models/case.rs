//! One case of a model: which operations a seed means, and how a failing one is made small.
//!
//! A case is named `MODEL/SEED`, or `MODEL/SEED/MOVES` once shrunk: the moves lead from the seed's
//! operations to fewer and simpler ones. The release build ends at a panic, so each candidate is tried by a process of its own;
//! models may assert as tests do, and so may the store.

use crate::run::{self, Counts, Run};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::fmt::{Debug, Write as _};
use std::process::{Command, Stdio};
#[expect(
    clippy::disallowed_types,
    reason = "the first of the threads that fails reports; nothing under proof sees it"
)]
use std::sync::Mutex;
use std::time::Duration;

/// Candidates that are tried for one failure, and how long each may take.
const TRIES_MAX: usize = 400;
const TRY_TIME: Duration = Duration::from_secs(20);

/// A model: what it does to the store follows from a list of operations and a seed.
pub trait Model {
    type Op: Debug + Clone + 'static;
    const NAME: &'static str;
    /// Cases of a run that is not told otherwise.
    const CASES: u64;
    /// What every run must have met at least once.
    const MEETS: &'static [&'static str];

    fn ops() -> impl Strategy<Value = Vec<Self::Op>>;
    /// Plays the operations; panics where the store does what the model does not.
    fn play(seed: u64, ops: Vec<Self::Op>) -> Counts;
}

/// A model without its type.
#[derive(Clone, Copy)]
pub struct Entry {
    pub name: &'static str,
    pub cases: u64,
    pub meets: &'static [&'static str],
    pub play: fn(u64, &str) -> Counts,
    show: fn(u64, &str) -> String,
    shrink: fn(&str, u64) -> String,
}

pub const fn entry<M: Model>() -> Entry {
    Entry {
        name: M::NAME,
        cases: M::CASES,
        meets: M::MEETS,
        play: |seed, moves| M::play(seed, ops::<M>(seed, moves)),
        show: |seed, moves| {
            let mut text = String::new();
            for (at, op) in ops::<M>(seed, moves).iter().enumerate() {
                let _ = writeln!(text, "  {at}: {op:?}");
            }
            text
        },
        shrink: shrink::<M>,
    }
}

fn tree<M: Model>(seed: u64) -> impl ValueTree<Value = Vec<M::Op>> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    M::ops().new_tree(&mut runner).expect("no strategy here refuses a value")
}

/// `s3c1`: three steps to something simpler, one back.
fn moves_of(moves: &str) -> Vec<(char, usize)> {
    let mut out: Vec<(char, usize)> = Vec::new();
    for c in moves.chars() {
        match (c.to_digit(10), out.last_mut()) {
            (Some(digit), Some((_, count))) => *count = *count * 10 + digit as usize,
            _ => out.push((c, 0)),
        }
    }
    out
}

fn push_move(moves: &mut Vec<(char, usize)>, c: char) {
    match moves.last_mut() {
        Some((last, count)) if *last == c => *count += 1,
        _ => moves.push((c, 1)),
    }
}

fn text_of(moves: &[(char, usize)]) -> String {
    moves.iter().fold(String::new(), |text, (c, count)| format!("{text}{c}{count}"))
}

fn ops<M: Model>(seed: u64, moves: &str) -> Vec<M::Op> {
    let mut tree = tree::<M>(seed);
    for (c, count) in moves_of(moves) {
        for _ in 0..count {
            if c == 's' {
                tree.simplify()
            } else {
                tree.complicate()
            };
        }
    }
    tree.current()
}

/// Looks for the simplest operations that still fail.
fn shrink<M: Model>(layer: &str, seed: u64) -> String {
    let mut tree = tree::<M>(seed);
    let mut moves = Vec::new();
    let mut best = String::new();
    let mut failing = true;
    for _ in 0..TRIES_MAX {
        let more = if failing { tree.simplify() } else { tree.complicate() };
        if !more {
            break;
        }
        push_move(&mut moves, if failing { 's' } else { 'c' });
        let text = text_of(&moves);
        failing = fails(layer, &format!("{}/{seed:#x}/{text}", M::NAME));
        if failing {
            best = text;
        }
    }
    best
}

/// Whether a case fails, in a process of its own. One that takes too long fails too.
fn fails(layer: &str, case: &str) -> bool {
    let Ok(program) = std::env::current_exe() else { return false };
    // A planted mistake is planted in the candidates too.
    let canary = std::env::args().skip_while(|arg| !arg.starts_with("--canary")).take(2);
    let child = Command::new(program)
        .args([layer, "--case", case])
        .args(canary)
        .env("PROVE_ALONE", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    #[expect(clippy::disallowed_methods, reason = "a child process is waited for on the host's clock")]
    let began = std::time::Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return !status.success(),
            Ok(None) if began.elapsed() < TRY_TIME => {
                #[expect(clippy::disallowed_methods, reason = "as above")]
                std::thread::sleep(Duration::from_millis(2));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return true;
            }
        }
    }
}

thread_local! {
    /// What this thread plays now.
    static PLAYED: RefCell<Option<(Entry, u64, String)>> = const { RefCell::new(None) };
}

/// Says what this thread plays from now on.
pub fn playing(entry: Entry, seed: u64, case: &str) {
    PLAYED.set(Some((entry, seed, case.to_owned())));
}

#[expect(clippy::disallowed_types, reason = "see the import")]
static FAILED: Mutex<()> = Mutex::new(());

/// From here on a panic is a failure of the case that the thread plays: it is shrunk, printed, and ends the program.
pub fn catch_panics(layer: &'static str, run: &Run) {
    let run = run.clone();
    std::panic::set_hook(Box::new(move |info| {
        // Never given back: whoever fails second waits here for the end.
        let _first = FAILED.lock();
        if std::env::var_os("PROVE_ALONE").is_some() {
            std::process::exit(1);
        }
        println!("{info}");
        let mut again = String::new();
        if let Some((entry, seed, case)) = PLAYED.take() {
            let mut moves = case.splitn(3, '/').nth(2).unwrap_or_default().to_owned();
            // Nobody looks at the small case of a mistake that was planted.
            if moves.is_empty() && !std::env::args().any(|arg| arg.starts_with("--canary")) {
                println!("{case} fails: looking for a smaller one");
                moves = (entry.shrink)(layer, seed);
            }
            println!("{}", (entry.show)(seed, &moves));
            again = format!("{}/{seed:#x}/{moves}", entry.name).trim_end_matches('/').to_owned();
        }
        run::again(layer, &run, &again);
        std::process::exit(1);
    }));
}

/// Plays a case by its name, with its operations printed.
pub fn replay(models: &[Entry], case: &str) -> Result<Counts, String> {
    let mut parts = case.splitn(3, '/');
    let entry = parts.next().and_then(|name| models.iter().find(|m| m.name == name));
    let entry = entry.ok_or_else(|| format!("no model of that name: {case}"))?;
    let seed = parts.next().and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    let seed = seed.ok_or_else(|| format!("no seed in {case}"))?;
    let moves = parts.next().unwrap_or_default();
    if std::env::var_os("PROVE_ALONE").is_none() {
        println!("{}", (entry.show)(seed, moves));
    }
    playing(*entry, seed, case);
    Ok((entry.play)(seed, moves))
}
