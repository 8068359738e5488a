//! Canaries (layer 10): mistakes that the store could make are planted one by one, and the layers must find each. A
//! canary runs in a process of its own, this program again with `--canary`: what it breaks may also be an assertion, which
//! ends a process. Then the layers run as far as they came without any canary, and must find nothing: what always
//! fails has caught nobody.

use crate::run::{Counts, Failure, Run};
use cobalt_base::canary::Canary;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Most CPU time of one process: a host that has other things to do makes nothing late.
const CPU_MAX: Duration = Duration::from_secs(90);
/// Longest time of one that waits for something that never comes.
const TIME_MAX: Duration = Duration::from_secs(1200);
/// Units of CPU time in a second (proc(5): `stat`, USER_HZ).
const TICKS: u64 = 100;
/// Longest text of what was found, in a line.
const WHAT_MAX: usize = 160;

/// A layer that should find a mistake, and how much of it at most.
#[derive(Clone, Copy, Debug)]
struct Trap {
    layer: &'static str,
    limit: Limit,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    /// So many states.
    States(u64),
    /// So many of the layer's own units, in all.
    Count(u64),
    /// This part of it.
    Case(&'static str),
    All,
}

// Several times what seed 1 needs: a fresh seed may meet a mistake much later.
const CRASH: Trap = Trap { layer: "crash", limit: Limit::States(400_000) };
const SIM: Trap = Trap { layer: "sim", limit: Limit::States(600) };
const NVME: Trap = Trap { layer: "nvme", limit: Limit::States(400_000) };
const MODELS: Trap = Trap { layer: "models", limit: Limit::Count(40) };
const RECOVERY: Trap = Trap { layer: "recovery", limit: Limit::All };
const FORGED_NODES: Trap = Trap { layer: "corrupt", limit: Limit::Case("node_forged:busy") };
const OLD_DATA: Trap = Trap { layer: "corrupt", limit: Limit::Case("data_old:busy") };

/// Where each should be caught. The layers are tried in turn.
fn traps(canary: Canary) -> &'static [Trap] {
    match canary {
        Canary::ReplyBeforeFlush
        | Canary::NoFlush
        | Canary::FreeBeforeDurable
        | Canary::SuperblockBeforeNodes
        | Canary::ApplyBeforeDurable
        | Canary::ConditionOnApplied
        | Canary::ReuseBeforeNamed
        | Canary::NoFlushAtRecovery
        | Canary::CommitBeforeData
        | Canary::NoTombstone
        | Canary::RefusalBeforeDurable => &[CRASH, SIM],
        // A record in the middle that rots is no torn tail.
        Canary::NoDurableLsn => &[RECOVERY],
        // An older version of a node, and of a data block, is put back.
        Canary::NoParentChecksum => &[FORGED_NODES],
        Canary::ReadUnchecked => &[OLD_DATA],
        Canary::ReuseUnderRead => &[CRASH, MODELS],
        Canary::ReuseUnderWrite => &[MODELS, SIM, CRASH],
        Canary::CollectorWithoutFence
        | Canary::SeedOrder
        | Canary::FlushRetried
        | Canary::SweepWithoutFence => &[SIM],
        Canary::NvmeNoGeneration
        | Canary::NvmeFreedByAbort
        | Canary::NvmeFlushRetried
        | Canary::NvmeReuseWithoutProof
        | Canary::NvmeNoPhase => &[NVME],
    }
}

/// What a process came to.
enum End {
    /// It found nothing.
    Clean,
    /// It found something after so many states.
    Caught { after: u64, what: String },
    /// Neither can be said.
    Broken(String),
}

/// The layer.
///
/// # Errors
/// A canary that nobody caught, or a layer that finds something where nothing is planted.
pub fn run(run: &Run) -> Result<Counts, Failure> {
    let all = match &run.case {
        None => Canary::ALL.to_vec(),
        Some(name) => vec![name.parse().map_err(|what| Failure { case: name.clone(), what })?],
    };
    let caught = side_by_side(run, &all, |canary| hunt(run, *canary));
    let mut counts = Counts::default();
    let mut failure = None;
    // What is run again without a canary: each layer as far as it came at most.
    let mut clean: Vec<Trap> = Vec::new();
    for (canary, outcome) in all.iter().zip(caught) {
        match outcome {
            Ok((trap, after, what)) => {
                println!("canary {canary:?}: caught by {} after {after} states: {what}", trap.layer);
                counts.add("caught", 1);
                counts.add("states", after);
                as_far_as(&mut clean, trap, after);
            }
            Err(what) => {
                println!("canary {canary:?}: SURVIVED: {what}");
                failure = failure.or(Some(Failure { case: format!("{canary:?}"), what }));
            }
        }
    }
    let ends = side_by_side(run, &clean, |trap| end(run, *trap, None));
    for (trap, end) in clean.iter().zip(ends) {
        match end {
            End::Clean => counts.add("clean_runs", 1),
            End::Caught { what, .. } | End::Broken(what) => {
                let what = format!("{} finds something where nothing is planted: {what}", trap.layer);
                failure = failure.or(Some(Failure { case: String::new(), what }));
            }
        }
    }
    failure.map_or(Ok(counts), Err)
}

/// Adds a run that goes at least as far as `after` states.
fn as_far_as(clean: &mut Vec<Trap>, trap: Trap, after: u64) {
    let Limit::States(_) = trap.limit else {
        clean.push(trap);
        return;
    };
    for known in clean.iter_mut().filter(|known| known.layer == trap.layer) {
        if let Limit::States(most) = &mut known.limit {
            *most = after.max(*most);
            return;
        }
    }
    clean.push(Trap { limit: Limit::States(after.max(1)), ..trap });
}

/// Runs `work` on each, `threads` at a time. The outcomes in order.
fn side_by_side<T: Sync, R: Send>(run: &Run, all: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = all.get(number) else { return done };
            done.push((number, work(item)));
        }
    };
    // They wait for processes, and share nothing but what is next.
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..run.threads.max(1)).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("a panic ends the program")).collect()
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Sets the traps for a canary, one after the other. Which trap caught it, after how many states, and what it saw.
fn hunt(run: &Run, canary: Canary) -> Result<(Trap, u64, String), String> {
    let mut missed = Vec::new();
    for trap in traps(canary) {
        match end(run, *trap, Some(canary)) {
            End::Caught { after, what } => return Ok((*trap, after, what)),
            End::Clean => missed.push(format!("{} found nothing in {:?}", trap.layer, trap.limit)),
            End::Broken(why) => missed.push(format!("{}: {why}", trap.layer)),
        }
    }
    Err(missed.join("; "))
}

/// Runs one layer in a process of its own.
fn end(run: &Run, trap: Trap, canary: Option<Canary>) -> End {
    let Ok(program) = std::env::current_exe() else { return End::Broken("this program is gone".into()) };
    let mut command = Command::new(program);
    command.args([trap.layer, "--threads", "1", "--seed", &run.seed.to_string()]);
    match trap.limit {
        Limit::States(n) | Limit::Count(n) => drop(command.args(["--count", &n.to_string()])),
        Limit::Case(case) => drop(command.args(["--first", "--case", case])),
        Limit::All => {}
    }
    command.args(canary.map(|canary| format!("--canary={canary:?}")));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let (success, text) = match child.map_err(|e| e.to_string()).and_then(outcome) {
        Ok(outcome) => outcome,
        Err(why) => return End::Broken(why),
    };
    if run.verbose {
        println!("{command:?}\n{text}");
    }
    if success {
        return End::Clean;
    }
    let verdict = format!("prove {}: FAILED after=", trap.layer);
    let lines: Vec<&str> = text.lines().collect();
    let Some(at) = lines.iter().position(|line| line.starts_with(&verdict)) else {
        return End::Broken(format!("it ends without a verdict: {}", shortened(lines.last().unwrap_or(&""))));
    };
    let after = lines[at][verdict.len()..].split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    // Where many failed, the first of them; else what was said first.
    let told = || lines[..at].iter().filter(|line| !line.trim().is_empty());
    let what = told().find(|line| line.contains("the first: ")).or_else(|| told().next());
    let what = what.copied().unwrap_or_default();
    End::Caught { after, what: shortened(what) }
}

/// Waits for a process; what it printed.
#[expect(clippy::disallowed_methods, reason = "a process that does not end has no virtual time")]
fn outcome(mut child: Child) -> Result<(bool, String), String> {
    let start = Instant::now();
    let mut pipe = child.stdout.take().ok_or("it has no output")?;
    // It prints little until it ends: nothing fills the pipe.
    let status = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break status,
            None => {
                let used = cpu_time(child.id());
                if used > CPU_MAX || start.elapsed() > TIME_MAX {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("it does not end: {used:?} of CPU time in {:?}", start.elapsed()));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    let mut text = String::new();
    pipe.read_to_string(&mut text).map_err(|e| e.to_string())?;
    Ok((status.success(), text))
}

/// What a process has used; zero when it is gone.
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything; user and system time are the 12th and 13th fields behind it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

fn shortened(what: &str) -> String {
    match what.char_indices().nth(WHAT_MAX) {
        Some((end, _)) => format!("{}...", &what[..end]),
        None => what.to_owned(),
    }
}
