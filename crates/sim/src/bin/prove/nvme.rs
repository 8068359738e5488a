//! The NVMe driver on controllers that go wrong, beside a model of what each block may hold.
//!
//! Several tasks work on blocks of their own. Each operation is answered exactly once (all end, and the types allow no second
//! answer); a read gives what the model allows; an operation that failed has no effect later; a flush that failed is never
//! asked for again; what was flushed survives; memory comes back if and only if the device has let go of it; and the controller
//! saw nothing that the specification forbids.

use crate::run::{Counts, Failure, Run, saw, spread, working_on};
use cobalt_bdev::{Device, IoError, WriteData};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_nvme::soft::{Faults, Found, Soft, SoftConfig, SoftNamespace};
use cobalt_nvme::spec::admin;
use cobalt_nvme::spec::log::Smart;
use cobalt_nvme::{Controller, Limits, NvmeError};
use cobalt_reactor::{Ctx, Reactor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Completions of a run that is told nothing else.
const COMPLETIONS: u64 = 1_100_000;
const PAGE: usize = 4096;
/// Blocks of each task.
const BLOCKS: usize = 24;
const TASKS: usize = 6;
/// Operations of each task.
const OPS: usize = 150;
/// What the software controller says of its spare blocks and hours.
const HEALTH: (u8, u128) = (100, 4711);
const ASK_EVERY: Duration = Duration::from_millis(1);
/// A case that takes longer, on its own clock, hangs.
const CASE_TIME: Duration = Duration::from_secs(600);

/// The layer.
///
/// # Errors
/// The first case that failed.
pub fn run(run: &Run) -> Result<Counts, Failure> {
    if let Some(case) = &run.case {
        let seed = u64::from_str_radix(case, 16);
        let seed = seed.map_err(|e| Failure { case: case.clone(), what: e.to_string() })?;
        return self::case(seed).map_err(|what| Failure { case: case.clone(), what });
    }
    spread(run, "completions", COMPLETIONS, || {
        let base = run.seed;
        move |n| {
            let seed = base.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(0xd1b5_4a32_d192_ed03);
            working_on(format!("{seed:x}"));
            case(seed).map_err(|what| Failure { case: format!("{seed:x}"), what })
        }
    })
}

fn case(seed: u64) -> Result<Counts, String> {
    let reactor = Reactor::new_virtual(seed).map_err(|e| e.to_string())?;
    let ctx = reactor.ctx();
    let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).map_err(|e| e.to_string())?;
    reactor.block_on(async move {
        let work = Box::pin(drive(ctx.clone(), arena, seed));
        ctx.timeout(CASE_TIME, work).await.unwrap_or_else(|_| Err("it does not end".into()))
    })
}

/// What the controller is, and what it does wrong.
fn config(rng: &mut StdRng) -> SoftConfig {
    let shift = if rng.random() { 12 } else { 9 };
    let bytes = (TASKS * BLOCKS * PAGE) as u64;
    let found = [Found::Disabled, Found::Running, Found::Starting, Found::Fatal, Found::Stuck];
    let mut faults = Faults { aborts_work: [0, 50, 100][rng.random_range(0..3)], ..Faults::default() };
    // Each kind alone, and all together.
    let kinds: &[usize] = match rng.random_range(0..19) {
        0 => &[],
        1 => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
        n => &[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3, 12, 13, 14][n - 2]],
    };
    for kind in kinds {
        let rate = rng.random_range(500..20_000);
        match kind {
            0 => faults.status = rate * 4,
            1 => faults.durable = rate * 10,
            2 => faults.hang = rate,
            3 => faults.late = rate,
            4 => faults.duplicate = rate,
            5 => faults.wrong_cid = rate,
            6 => faults.wrong_queue = rate,
            7 => faults.fatal = rate / 4,
            8 => faults.removed = rate / 20,
            9 => faults.event = rate,
            10 => faults.power = rate / 4,
            11 => faults.phase = rate,
            // A controller has few admin commands in its life: resets bring more.
            12 => (faults.admin_hang, faults.hang, faults.event) = (rate * 3, rate, rate),
            13 => (faults.admin_status, faults.hang, faults.event) = (rate * 3, rate, rate),
            _ => (faults.admin_illegal, faults.hang, faults.event) = (rate * 3, rate, rate),
        }
    }
    if rng.random_range(0..3) == 0 {
        faults.disable_stuck = rng.random_range(0..60);
        faults.reset_fails = rng.random_range(0..60);
        faults.bus_master_stuck = rng.random_range(0..60);
        faults.unmap_fails = rng.random_range(0..60);
    }
    SoftConfig {
        namespaces: vec![SoftNamespace::new(shift, bytes), SoftNamespace::new(21 - shift, bytes)],
        queue_entries: rng.random_range(3..64),
        mdts: rng.random_range(1..6),
        dstrd: rng.random_range(0..4),
        volatile_cache: rng.random_range(0..4) > 0,
        shadow_doorbells: rng.random(),
        deallocates: rng.random_range(0..4) > 0,
        sgls: [0, 1, 2, 3, 0x0401][rng.random_range(0..5)],
        found: found[rng.random_range(0..found.len())],
        faults,
        ..SoftConfig::new(0)
    }
}

/// What blocks may hold, by the byte that fills each.
struct Model {
    /// What a read may give.
    now: Vec<Vec<u8>>,
    /// What a controller that forgot its cache, or a power cut, may leave.
    kept: Vec<Vec<u8>>,
}

/// One task's work and what it knows.
struct Task {
    ctx: Ctx,
    device: Device,
    arena: Arena,
    rng: RefCell<StdRng>,
    first: usize,
    model: RefCell<Model>,
    /// The controller may forget its cache.
    forgets: bool,
    fua_holds: bool,
    cached: bool,
    tally: Rc<Tally>,
}

#[derive(Default)]
struct Tally {
    ops: Cell<u64>,
    errors: Cell<u64>,
    flushes: Cell<u64>,
    flush_errors: Cell<u64>,
    fua_commands: Cell<u64>,
}

fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get() + n);
}

impl Task {
    async fn work(&self) -> Result<(), String> {
        for stamp in 0..OPS {
            let (kind, at, most) = {
                let mut rng = self.rng.borrow_mut();
                (rng.random_range(0..100), rng.random_range(0..BLOCKS), rng.random_range(1..9))
            };
            let blocks = at..(at + most).min(BLOCKS);
            add(&self.tally.ops, 1);
            match kind {
                0..40 => self.read(blocks).await?,
                40..85 => self.write(blocks, (stamp + 1) as u8, kind < 50).await,
                85..94 => self.flush().await,
                _ => self.deallocate(blocks).await,
            }
        }
        self.read(0..BLOCKS).await
    }

    fn offset(&self, block: usize) -> u64 {
        ((self.first + block) * PAGE) as u64
    }

    async fn read(&self, blocks: std::ops::Range<usize>) -> Result<(), String> {
        let mut buf = self.arena.alloc(blocks.len() * PAGE).await;
        buf.fill(0xdd);
        match self.device.read(self.offset(blocks.start), buf).await {
            Ok(buf) => {
                let mut model = self.model.borrow_mut();
                for (block, bytes) in blocks.zip(buf.chunks(PAGE)) {
                    let byte = bytes[0];
                    if bytes.iter().any(|b| *b != byte) {
                        return Err(format!("block {} is torn or another's", self.first + block));
                    }
                    let allowed = if self.forgets { &model.kept[block] } else { &model.now[block] };
                    if !allowed.contains(&byte) {
                        return Err(format!(
                            "block {} reads as {byte:#x}; {:x?} is possible",
                            self.first + block,
                            allowed
                        ));
                    }
                    if !self.forgets {
                        model.now[block] = vec![byte];
                    }
                }
            }
            Err(_) => add(&self.tally.errors, 1),
        }
        Ok(())
    }

    async fn write(&self, blocks: std::ops::Range<usize>, stamp: u8, fua: bool) {
        let mut data = WriteData::new();
        let mut left = blocks.len();
        while left > 0 {
            // Several pieces of memory.
            let piece = self.rng.borrow_mut().random_range(1..=left);
            let mut buf = self.arena.alloc(piece * PAGE).await;
            buf.fill(stamp);
            data.push(buf.freeze());
            left -= piece;
        }
        if fua {
            let part = u64::from(self.device.identify().transfer_max);
            add(&self.tally.fua_commands, ((blocks.len() * PAGE) as u64).div_ceil(part));
        }
        let done = self.device.write(self.offset(blocks.start), data, fua).await;
        let durable = fua && self.fua_holds || !self.cached;
        self.changed(blocks, stamp, done, durable);
    }

    async fn deallocate(&self, blocks: std::ops::Range<usize>) {
        if !self.device.identify().deallocate {
            return;
        }
        let done = self.device.deallocate(self.offset(blocks.start), (blocks.len() * PAGE) as u64).await;
        self.changed(blocks, 0, done, !self.cached);
    }

    fn changed(&self, blocks: std::ops::Range<usize>, stamp: u8, done: Result<(), IoError>, durable: bool) {
        let mut model = self.model.borrow_mut();
        let Model { now, kept } = &mut *model;
        for block in blocks {
            if done.is_ok() {
                now[block] = vec![stamp];
            } else {
                now[block].push(stamp);
            }
            if done.is_ok() && durable {
                kept[block] = vec![stamp];
            } else {
                kept[block].push(stamp);
            }
        }
        add(&self.tally.errors, u64::from(done.is_err()));
    }

    async fn flush(&self) {
        if !self.device.identify().volatile_cache {
            return;
        }
        add(&self.tally.flushes, 1);
        match self.device.flush().await {
            Ok(()) if !self.forgets => {
                let mut model = self.model.borrow_mut();
                model.kept = model.now.clone();
            }
            // Some of what may be forgotten was, before this flush; what of it is there now cannot be told.
            Ok(()) => {}
            Err(_) => add(&self.tally.flush_errors, 1),
        }
    }
}

async fn drive(ctx: Ctx, arena: Arena, seed: u64) -> Result<Counts, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let config = config(&mut rng);
    let limits = Limits { depth: rng.random_range(1..32), ..Limits::tiny() };
    let soft = Soft::new(&ctx, config.clone(), seed);
    let tally = Rc::new(Tally::default());
    let opened = Controller::open(&ctx, soft.clone(), std::slice::from_ref(&arena), limits).await;
    let controller = match opened {
        Ok(controller) => controller,
        Err(error) => return refused(&soft, &config, &error),
    };
    let mut tasks = Vec::new();
    for n in 0..TASKS * 2 {
        let bdev = controller.namespace(n as u32 % 2 + 1).map_err(|e| e.to_string())?;
        let zeros = vec![vec![0]; BLOCKS];
        tasks.push(Rc::new(Task {
            ctx: ctx.clone(),
            device: Device::new(Rc::new(bdev)),
            arena: arena.clone(),
            rng: RefCell::new(StdRng::seed_from_u64(seed ^ (n as u64) << 32)),
            first: n / 2 * BLOCKS,
            model: RefCell::new(Model { now: zeros.clone(), kept: zeros }),
            forgets: config.faults.fatal + config.faults.power > 0 && config.volatile_cache,
            fua_holds: !config.faults.fua_ignored,
            cached: config.volatile_cache,
            tally: tally.clone(),
        }));
    }
    let running: Vec<_> = (tasks.iter().cloned())
        .map(|task| {
            let within = task.ctx.clone();
            within.spawn(async move { task.work().await })
        })
        .collect();
    let worked = Rc::new(Cell::new(false));
    let health = ctx.spawn(ask(ctx.clone(), controller.clone(), worked.clone()));
    for task in running {
        task.await?;
    }
    worked.set(true);
    let unanswered = health.await?;
    check(unanswered == 0 || !config.faults.healthy(), || {
        "a healthy controller did not tell its health".into()
    })?;
    survivors(&soft, &tasks)?;
    let counters = controller.counters();
    let closed = controller.close().await;
    drop((tasks, controller));
    // Whoever looks after the controller may wait for an answer still.
    ctx.sleep(Duration::from_millis(100)).await;
    check(soft.is_released(), || "its descriptors are open still".into())?;
    let (saw_, asked) = (soft.counters(), &tally);
    check(saw_.flushes <= asked.flushes.get(), || {
        format!("{} flushes were asked for, the controller got {}", asked.flushes.get(), saw_.flushes)
    })?;
    check(saw_.fua_writes <= asked.fua_commands.get(), || {
        format!(
            "{} durable writes were asked for, the controller got {}",
            asked.fua_commands.get(),
            saw_.fua_writes
        )
    })?;
    let violations = soft.violations();
    check(violations.is_empty(), || format!("the driver broke the specification: {violations:?}"))?;
    let held = arena.stats().in_use;
    check((held > 0) == closed.is_err(), || format!("{held} bytes are held; closing said {closed:?}"))?;
    check(held > 0 || !soft.is_enabled(), || "memory went back while the controller works".into())?;
    Ok(count(&soft, &tally, counters, held))
}

/// Asks for the controller's health all the while. What is answered is no other command's page, and no late one's; how often there was
/// none.
async fn ask(ctx: Ctx, controller: Rc<Controller<Soft>>, worked: Rc<Cell<bool>>) -> Result<u64, String> {
    let mut unanswered = 0;
    while !worked.get() {
        match controller.log_page::<Smart>().await {
            Ok(page) => check((page.spare, page.power_on_hours.get()) == HEALTH, || {
                format!("its health is {page:?}")
            })?,
            Err(NvmeError::Malformed { why, .. }) => {
                return Err(format!("a page that it never wrote: {why}"));
            }
            Err(_) => unanswered += 1,
        }
        ctx.sleep(ASK_EVERY).await;
    }
    Ok(unanswered)
}

fn refused(soft: &Soft, config: &SoftConfig, error: &NvmeError) -> Result<Counts, String> {
    let faults = &config.faults;
    let admin = faults.admin_hang + faults.admin_status + faults.admin_illegal;
    let excused = faults.removed + faults.disable_stuck + faults.reset_fails + faults.event + admin > 0
        || matches!(error, NvmeError::TimedOut { .. }) && faults.hang > 0;
    check(excused, || format!("it does not come up: {error}"))?;
    let mut counts = Counts::default();
    counts.add("cases", 1);
    counts.add("refused", 1);
    counts.add("completions", soft.counters().completions);
    count_admin(soft, &mut counts);
    Ok(counts)
}

/// What a power cut now would leave.
fn survivors(soft: &Soft, tasks: &[Rc<Task>]) -> Result<(), String> {
    let durable = [soft.durable(0), soft.durable(1)];
    for (n, task) in tasks.iter().enumerate() {
        let model = task.model.borrow();
        for block in 0..BLOCKS {
            let at = (task.first + block) * PAGE;
            let byte = durable[n % 2][at];
            check(model.kept[block].contains(&byte), || {
                format!(
                    "after a power cut block {} is {byte:#x}; {:x?} was promised",
                    at / PAGE,
                    model.kept[block]
                )
            })?;
        }
    }
    Ok(())
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

fn count(soft: &Soft, tally: &Tally, driver: cobalt_nvme::Counters, held: usize) -> Counts {
    let seen = soft.counters();
    saw(seen.completions);
    let mut counts = Counts::default();
    for (name, n) in [
        ("completions", seen.completions),
        ("cases", 1),
        ("ops", tally.ops.get()),
        ("errors", tally.errors.get()),
        ("flush_errors", tally.flush_errors.get()),
        ("statuses", seen.statuses),
        ("hangs", seen.hangs),
        ("late_dma", seen.late_dma),
        ("illegal", seen.illegal),
        ("prp_lists", seen.prp_lists),
        ("sgl_blocks", seen.sgl_blocks),
        ("sgl_lists", seen.sgl_lists),
        ("aborts", driver.aborts),
        ("retries", driver.retries),
        ("resets", driver.resets),
        ("unexpected", driver.unexpected),
        ("events", driver.events),
        ("leaked", driver.leaked),
        ("memory_kept", u64::from(held > 0)),
        ("rings", driver.io.rings),
        ("doorbells", driver.io.sq_writes),
    ] {
        counts.add(name, n);
    }
    count_admin(soft, &mut counts);
    counts
}

/// What went wrong with admin commands: by kind of fault, and by command.
fn count_admin(soft: &Soft, counts: &mut Counts) {
    for (command, faults) in soft.admin_faults() {
        counts.add("admin_hangs", faults.hangs);
        counts.add("admin_statuses", faults.statuses);
        counts.add("admin_illegal", faults.illegal);
        let name = match command {
            admin::IDENTIFY => "bad_identify",
            admin::CREATE_IO_CQ | admin::CREATE_IO_SQ => "bad_create_queue",
            admin::SET_FEATURES | admin::GET_FEATURES => "bad_features",
            admin::GET_LOG_PAGE => "bad_log_page",
            admin::ABORT => "bad_abort",
            _ => "bad_other_admin",
        };
        counts.add(name, faults.hangs + faults.statuses + faults.illegal);
    }
}
