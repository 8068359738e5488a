//! `nvme-bench`: CPU time of the driver for one read or write, from its submission to its answer, on one core and without a
//! disk. The software controller completes commands within the doorbell's write and moves no bytes; its own share is measured
//! beside, by ringing the same doorbells without the driver, and taken off. Also counted: doorbells and allocations.

mod count;

use cobalt_bdev::{Bdev, Done, Io, Op, WriteData};
use cobalt_dma::{Arena, ArenaConfig, Buf};
use cobalt_nvme::soft::{Soft, SoftConfig};
use cobalt_nvme::{Controller, Function, Limits, NvmeBdev};
use cobalt_reactor::{Poller, Reactor, ReactorConfig};
use futures::FutureExt;
use std::error::Error;
use std::rc::Rc;
use std::time::Instant;

/// Commands in flight.
const DEPTH: usize = 32;
/// Entries of the driver's queues: after so many batches a ring is where it began, and so is its phase bit.
const ENTRIES: usize = 257;
const OPERATIONS: usize = DEPTH * ENTRIES;
const ROUNDS: usize = 60;
const SIZE: u64 = 64 << 20;
/// Doorbells of queue pair 1.
const SQ_DOORBELL: usize = 0x1008;
const CQ_DOORBELL: usize = 0x100c;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let reactor = Reactor::new(ReactorConfig::default())?;
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let arena = Arena::new(ArenaConfig { limit: 64 << 20 })?;
        for (name, len, write, sgls) in [
            ("read 4 KiB", 4096, false, 1),
            ("write 4 KiB", 4096, true, 1),
            ("read 128 KiB", 1 << 17, false, 1),
            ("read 128 KiB by PRPs", 1 << 17, false, 0),
        ] {
            let config = SoftConfig { hollow: true, latency: None, sgls, ..SoftConfig::new(SIZE) };
            let soft = Soft::new(&ctx, config, 1);
            let arenas = std::slice::from_ref(&arena);
            let controller = Controller::open(&ctx, soft.clone(), arenas, Limits::default()).await?;
            let mut row = Row { bdev: controller.namespace(1)?, soft, len, write, bufs: Vec::new() };
            row.bufs = (0..DEPTH).filter_map(|_| arena.try_alloc(len)).collect();
            row.measure(name)?;
            drop(row);
            controller.close().await?;
        }
        Ok(())
    })
}

struct Row {
    bdev: NvmeBdev<Soft>,
    soft: Soft,
    len: usize,
    write: bool,
    bufs: Vec<Buf>,
}

impl Row {
    fn measure(&mut self, name: &str) -> Outcome<()> {
        self.driven()?; // Everything grows to its size.
        let before = self.bdev.controller().counters().io;
        let (mut all, mut own, mut allocations) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            let (time, asked) = self.driven()?;
            all.push(time);
            own.push(self.undriven());
            allocations += asked;
        }
        let after = self.bdev.controller().counters().io;
        let cost: Vec<f64> = all.iter().zip(&own).map(|(all, own)| all - own).collect();
        let submitted = (after.submitted - before.submitted) as f64;
        println!(
            "{name}, depth {DEPTH}: {:.0} ns of CPU each (best rounds {:.0}); with the controller's share {:.0}, that alone {:.0}; doorbell writes a command {:.3}, of completions {:.3}; allocations a command {}",
            median(cost),
            best(&all) - best(&own),
            median(all),
            median(own),
            (after.sq_writes - before.sq_writes) as f64 / submitted,
            (after.cq_writes - before.cq_writes) as f64 / submitted,
            allocations as f64 / submitted,
        );
        // What does not depend on the machine must hold.
        let rung = (after.sq_writes - before.sq_writes) * DEPTH as u64 == after.submitted - before.submitted;
        if allocations > 0 || !rung {
            return Err("the driver allocates for a command, or rings more than once a turn".into());
        }
        Ok(())
    }

    /// Nanoseconds of an operation, and all allocations, of all batches. What the answers travel in is made before.
    fn driven(&mut self) -> Outcome<(f64, u64)> {
        let controller: Rc<Controller<Soft>> = self.bdev.controller().clone();
        let (mut nanos, mut allocations) = (0, 0);
        let mut answers = Vec::with_capacity(DEPTH);
        for batch in 0..ENTRIES {
            let mut ios = Vec::with_capacity(DEPTH);
            let mut kept = Vec::with_capacity(DEPTH);
            for (n, buf) in self.bufs.drain(..).enumerate() {
                let offset = ((batch * DEPTH + n) * self.len) as u64 % SIZE;
                let (done, answer) = Done::pair();
                answers.push(answer);
                let op = if self.write {
                    let data = buf.freeze();
                    kept.push(data.clone());
                    Op::Write { offset, data: WriteData::from_iter([data]), fua: false }
                } else {
                    Op::Read { offset, buf }
                };
                ios.push(Io { op, done });
            }
            let (start, asked) = (now(), count::allocations());
            for io in ios.drain(..) {
                self.bdev.submit(io);
            }
            // Rings; reaps, and tells of it.
            while controller.poll() {}
            allocations += count::allocations() - asked;
            nanos += start.elapsed().as_nanos();
            for answer in answers.drain(..) {
                let answer = answer.now_or_never().flatten().ok_or("an operation is not answered")??;
                self.bufs.extend(answer);
            }
            self.bufs.extend(kept.into_iter().filter_map(|data| data.try_thaw().ok()));
        }
        Ok((nanos as f64 / OPERATIONS as f64, allocations))
    }

    /// The same doorbells, rung without the driver: the controller takes the same commands again.
    fn undriven(&self) -> f64 {
        let place = |batch: usize| (self.at() + batch * DEPTH) % ENTRIES;
        let (mut nanos, before) = (0, self.soft.counters().completions);
        for batch in 1..=ENTRIES {
            let start = now();
            self.soft.write32(SQ_DOORBELL, place(batch) as u32);
            self.soft.write32(CQ_DOORBELL, place(batch) as u32);
            nanos += start.elapsed().as_nanos();
        }
        let done = self.soft.counters().completions - before;
        assert_eq!(done, OPERATIONS as u64, "the controller did what it does with the driver");
        nanos as f64 / OPERATIONS as f64
    }

    /// Where the driver is in its queues.
    fn at(&self) -> usize {
        (self.bdev.controller().counters().io.submitted % ENTRIES as u64) as usize
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn best(all: &[f64]) -> f64 {
    all.iter().copied().fold(f64::MAX, f64::min)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}
