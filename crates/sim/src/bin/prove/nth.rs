//! Fail the Nth (testing.md, layer 4): one workload, in which every read, write, flush, deallocation and reservation
//! fails in turn, once and for ever, with every error that a device has; and memory runs out at every operation.
//!
//! What must follow: an error to the caller, a failed target where the state is unknown, never a wrong answer, never a wait without
//! end. After the next start without failures the target is whole, and everything acknowledged is there.

use crate::models::disk::{Cut, Disk, Error, Fault, Kind};
use crate::models::op::{Op, name_of};
use crate::models::target::{Arenas, Shape, Tally, Target, on_virtual_time};
use crate::models::whole::World;
use crate::run::{Counts, Failure, Run, saw, working_on};
use cobalt_reactor::Ctx;
use cobalt_store::OpenError;
use cobalt_store::proof::{Point, order_refusal, reservations};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// How long memory is gone.
const HOARD_TIME: Duration = Duration::from_millis(20);

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Nothing,
    Io {
        on_meta: bool,
        kind: Kind,
        error: Error,
    },
    Reservation(Point),
    /// No memory of either arena for a while, from an operation on.
    Memory,
}

/// Which one of its kind, and whether all after it as well.
#[derive(Clone, Copy, Debug)]
struct Case {
    what: What,
    at: u64,
    forever: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Nothing => write!(f, "nothing"),
            What::Io { on_meta, kind, error } => {
                write!(f, "{}-{kind:?}-{error:?}", if on_meta { "meta" } else { "data" })
            }
            What::Reservation(point) => write!(f, "{point:?}"),
            What::Memory => write!(f, "Memory"),
        }?;
        write!(f, "/{}/{}", self.at, if self.forever { "ever" } else { "once" })
    }
}

/// How many there are of each kind: of the devices, meta first; of the reservations; of operations in all.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    io: [[u64; 4]; 2],
    reservations: [u64; 2],
    operations: u64,
}

/// Writes, overwrites, reads, deletes, a fence, catalogues, checkpoints, a full device, two recoveries, a close.
fn workload() -> Vec<Op> {
    let write = |session, number, chunk, len| Op::Write {
        cob: name_of(session, number),
        chunk,
        len,
        give_up_us: None,
    };
    let read = |session, number, chunks| Op::Read { cob: name_of(session, number), chunk: 0, chunks };
    let pause = |us| Op::Pause { us };
    let mut ops = vec![write(0, 0, 0, 20_000), write(0, 1, 0, 1), write(1, 0, 2, 4096), pause(300)];
    ops.extend([write(0, 0, 1, 9000), read(0, 0, 2), write(0, 0, 4, 8192), write(1, 0, 0, 100)]);
    ops.extend((0..14).map(|n| Op::Turn { key: n * 13, len: 650 }));
    ops.extend([Op::Checkpoint, read(0, 0, 1), read(0, 0, 6), Op::Stat { cob: name_of(0, 0) }]);
    ops.extend([Op::Sum { key: 3, count: 15 }, Op::Scan { key: 0, count: 180 }, write(0, 2, 0, 70_000)]);
    ops.extend([Op::Delete { cob: name_of(0, 0), give_up_us: None }, pause(12_000), Op::List { limit: 9 }]);
    ops.extend((0..14).map(|n| Op::Turn { key: n * 13 + 5, len: 400 }));
    ops.extend([
        write(0, 2, 3, 8192),
        Op::Checkpoint,
        pause(3000),
        read(0, 2, 8),
        Op::Crash { cut: Cut::Writes },
    ]);
    ops.extend([read(0, 2, 8), read(1, 0, 1), write(1, 0, 0, 5000), Op::Clear { key: 0, count: 30 }]);
    ops.extend([Op::Fence { session: 1 }, write(2, 0, 0, 30_000), pause(2000), read(2, 0, 7)]);
    ops.extend([
        Op::Get { key: 13 },
        Op::Scan { key: 0, count: 200 },
        Op::FillData,
        pause(12_000),
        Op::Close,
    ]);
    ops.extend([
        read(2, 0, 3),
        write(2, 1, 0, 300),
        Op::Turn { key: 1, len: 20 },
        Op::Checkpoint,
        pause(500),
    ]);
    ops
}

/// Takes all memory at one operation, and gives it back some time later.
struct Hoard {
    ctx: Ctx,
    arenas: Arenas,
    at: u64,
    seen: Cell<u64>,
    held: RefCell<Vec<cobalt_dma::Buf>>,
}

impl Hoard {
    fn operation(self: &Rc<Hoard>) {
        let number = self.seen.replace(self.seen.get() + 1);
        if number != self.at {
            return;
        }
        for arena in [&self.arenas.payload, &self.arenas.meta] {
            for len in [4 << 20, 1 << 20, 64 << 10, 4096] {
                self.held.borrow_mut().extend(std::iter::from_fn(|| arena.try_alloc(len)));
            }
        }
        let hoard = self.clone();
        drop(self.ctx.spawn(async move {
            hoard.ctx.sleep(HOARD_TIME).await;
            drop(hoard.held.take());
        }));
    }
}

/// A new target, of which already the format may have failed.
async fn new_target(ctx: &Ctx, parts: (Arenas, Disk, Disk), shape: Shape, tally: &Tally) -> Target {
    let (arenas, meta, data) = parts;
    if let Err(error) = Target::format(ctx, &arenas, &meta, &data, &shape, false).await {
        assert!(injected(&meta, &data) > 0, "format failed of nothing: {error}");
        [&meta, &data].iter().for_each(|disk| disk.fail(None));
        let again = Target::format(ctx, &arenas, &meta, &data, &shape, true).await;
        again.expect("a format over one that failed");
        tally.add("formats_failed", 1);
    }
    let open = || Target::open(ctx, arenas.clone(), meta.clone(), data.clone(), shape.clone(), tally.clone());
    match open().await {
        Ok(target) => target,
        Err(error) => {
            assert!(injected(&meta, &data) > 0, "the target does not open: {error}");
            assert!(matches!(error, OpenError::Device { .. }), "a device failed, the verdict: {error}");
            [&meta, &data].iter().for_each(|disk| disk.fail(None));
            tally.add("opens_refused", 1);
            open().await.unwrap_or_else(|e| panic!("the target does not open: {e}"))
        }
    }
}

fn injected(meta: &Disk, data: &Disk) -> u64 {
    meta.injected().iter().chain(&data.injected()).sum()
}

/// The workload with one thing that fails.
fn play(seed: u64, case: Case) -> (Counts, Totals) {
    on_virtual_time(seed, move |ctx| async move {
        let tally = Tally::default();
        let shape = Shape::small();
        let (arenas, meta, data) = Target::parts(seed, &shape);
        let hoard = Rc::new(Hoard {
            ctx: ctx.clone(),
            arenas: arenas.clone(),
            at: if case.what == What::Memory { case.at } else { u64::MAX },
            seen: Cell::new(0),
            held: RefCell::default(),
        });
        for disk in [&meta, &data] {
            let hoard = hoard.clone();
            disk.on_operation(Rc::new(move || hoard.operation()));
        }
        order_refusal(None);
        match case.what {
            What::Io { on_meta, kind, error } => {
                let fault = Fault { kind, at: case.at, forever: case.forever, error };
                if on_meta { &meta } else { &data }.fail(Some(fault));
            }
            What::Reservation(point) => order_refusal(Some((point, case.at, case.forever))),
            What::Memory | What::Nothing => {}
        }
        let target = new_target(&ctx, (arenas, meta.clone(), data.clone()), shape, &tally).await;
        let mut world = World::in_trouble(ctx, target, &tally);
        for op in workload() {
            world = world.act(op).await;
        }
        let totals = Totals {
            io: [meta.seen(), data.seen()],
            reservations: reservations(),
            operations: hoard.seen.get(),
        };
        world.end().await;
        if case.what == What::Nothing {
            assert_eq!(injected(&meta, &data), 0);
        }
        (tally.take(), totals)
    })
}

/// Every case of a workload that has so many operations of each kind.
fn cases(totals: &Totals) -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |what, count, ever: &[bool]| {
        for at in 0..count {
            all.extend(ever.iter().map(|forever| Case { what, at, forever: *forever }));
        }
    };
    for (on_meta, counts) in [(true, totals.io[0]), (false, totals.io[1])] {
        for kind in Kind::ALL {
            for error in Error::ALL {
                add(What::Io { on_meta, kind, error }, counts[kind as usize], &[false, true]);
            }
        }
    }
    for point in [Point::Journal, Point::Balloc] {
        add(What::Reservation(point), totals.reservations[point as usize], &[false, true]);
    }
    add(What::Memory, totals.operations, &[false]);
    all
}

/// Runs every case. `--count` runs one of so many.
pub fn run(run: &Run) -> Result<Counts, Failure> {
    working_on("nothing/0/once");
    let (_, totals) = play(run.seed, Case { what: What::Nothing, at: 0, forever: false });
    let mut cases = cases(&totals);
    if let Some(name) = &run.case {
        cases.retain(|case| case.to_string() == *name);
        if cases.is_empty() {
            return Err(Failure { case: name.clone(), what: "no such case".into() });
        }
    }
    let step = run.count.unwrap_or(1).max(1) as usize;
    let threads = run.threads.max(1);
    let mut counts = Counts::default();
    for (name, kinds) in [("meta", totals.io[0]), ("data", totals.io[1])] {
        for kind in Kind::ALL {
            counts.add(&format!("{name}_{kind:?}s").to_lowercase(), kinds[kind as usize]);
        }
    }
    counts.add("journal_reservations", totals.reservations[0]);
    counts.add("block_reservations", totals.reservations[1]);
    counts.add("memory_points", totals.operations);
    let found = std::thread::scope(|scope| {
        let worker = |thread: usize| {
            let mut counts = Counts::default();
            for case in cases.iter().skip(thread * step).step_by(threads * step) {
                working_on(case.to_string());
                let (met, _) = play(run.seed, *case);
                saw(1);
                counts.add("runs", 1);
                let kind = case.to_string();
                let kind = kind.split('/').next().unwrap_or_default().to_lowercase().replace('-', "_");
                counts.add(&format!("runs_{kind}"), 1);
                for name in [
                    "io_errors",
                    "failed",
                    "host_full",
                    "read_errors",
                    "read_retries",
                    "opens_refused",
                    "formats_failed",
                    "no_space",
                    "busy",
                    "crashes",
                ] {
                    counts.add(name, met.get(name));
                }
            }
            counts
        };
        let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || worker(thread))).collect();
        workers.into_iter().map(|w| w.join().expect("a panic ends the program")).collect::<Vec<_>>()
    });
    found.iter().for_each(|found| counts.merge(found));
    Ok(counts)
}
