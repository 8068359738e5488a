//! The volatile cache against a model: each sector has the values it may have now, and those it may have
//! after a power cut. Operations of a batch run at the same time, over a device that takes its time.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests, too")]

use cobalt_bdev::{Bdev, Device, Identify, Io, IoError, MemBdev, Op, VolatileCache};
use cobalt_dma::{Arena, ArenaConfig, Slice};
use cobalt_reactor::{Ctx, Reactor};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use smallvec::smallvec;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;
const SECTOR: u64 = 512;
const LIMIT: u64 = 48 << 10;

/// A device that applies an operation some time after it came, and answers some time after that. It
/// insists that no two writes in flight overlap: their order would be lost.
struct Slow {
    ctx: Ctx,
    device: Device,
    writing: Rc<RefCell<Vec<Range<u64>>>>,
}

impl Slow {
    fn new(ctx: &Ctx) -> Rc<Slow> {
        let device = Device::new(Rc::new(MemBdev::new(BLOCKS * BLOCK)));
        Rc::new(Slow { ctx: ctx.clone(), device, writing: Rc::default() })
    }
}

impl Bdev for Slow {
    fn identify(&self) -> &Identify {
        self.device.identify()
    }

    fn submit(&self, Io { op, done }: Io) {
        let (ctx, device, writing) = (self.ctx.clone(), self.device.clone(), self.writing.clone());
        let range = match &op {
            Op::Write { offset, data, .. } => {
                *offset..*offset + data.iter().map(|s| s.len() as u64).sum::<u64>()
            }
            Op::Deallocate { offset, len } => *offset..*offset + *len,
            _ => 0..0,
        };
        let overlaps = |r: &Range<u64>| r.start < range.end && range.start < r.end;
        assert!(!writing.borrow().iter().any(overlaps), "two writes of {range:?} at the same time");
        writing.borrow_mut().push(range.clone());
        let pause = |ctx: &Ctx| Duration::from_micros(ctx.random_u64() % 3000);
        drop(self.ctx.spawn(async move {
            ctx.sleep(pause(&ctx)).await;
            let result = match op {
                Op::Read { offset, buf } => device.read(offset, buf).await.map(Some),
                Op::Write { offset, data, fua } => device.write(offset, data, fua).await.map(|()| None),
                Op::Flush => Ok(None),
                Op::Deallocate { offset, len } => device.deallocate(offset, len).await.map(|()| None),
            };
            ctx.sleep(pause(&ctx)).await;
            let at = writing.borrow().iter().position(|r| *r == range).unwrap();
            writing.borrow_mut().swap_remove(at);
            done.send(result);
        }));
    }
}

#[derive(Clone, Debug)]
enum Action {
    Write { at: u64, blocks: u64, fua: bool },
    Read { at: u64, blocks: u64 },
    Deallocate { at: u64, blocks: u64 },
    Flush,
}

#[derive(Clone, Debug)]
enum Event {
    Together(Vec<Action>),
    Pause(u64),
    PowerCut,
}

fn action() -> impl Strategy<Value = Action> {
    let place =
        || (0..BLOCKS, prop_oneof![Just(1), Just(2), 1..24u64]).prop_map(|(at, n)| (at, n.min(BLOCKS - at)));
    prop_oneof![
        6 => (place(), any::<u8>()).prop_map(|((at, blocks), b)| Action::Write { at, blocks, fua: b < 50 }),
        3 => place().prop_map(|(at, blocks)| Action::Read { at, blocks }),
        1 => place().prop_map(|(at, blocks)| Action::Deallocate { at, blocks }),
        1 => Just(Action::Flush),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => proptest::collection::vec(action(), 1..5).prop_map(Event::Together),
        2 => (0..20_000u64).prop_map(Event::Pause),
        1 => Just(Event::PowerCut),
    ]
}

/// What a sector may hold.
#[derive(Clone)]
struct Sector {
    now: BTreeSet<u64>,
    after_cut: BTreeSet<u64>,
}

struct World {
    ctx: Ctx,
    arena: Arena,
    slow: Rc<Slow>,
    device: Option<Device>,
    model: Vec<Sector>,
    next: u64,
}

impl World {
    fn new(ctx: &Ctx) -> World {
        let zero = Sector { now: [0].into(), after_cut: [0].into() };
        let mut world = World {
            ctx: ctx.clone(),
            arena: Arena::new(ArenaConfig { limit: 16 << 20 }).unwrap(),
            slow: Slow::new(ctx),
            device: None,
            model: vec![zero; usize::try_from(BLOCKS * BLOCK / SECTOR).unwrap()],
            next: 0,
        };
        world.power_on();
        world
    }

    fn power_on(&mut self) {
        let cache = VolatileCache::new(&self.ctx, self.slow.clone(), LIMIT).unwrap();
        self.device = Some(Device::new(Rc::new(cache)));
    }

    fn filled(&mut self, blocks: u64) -> (u64, Slice) {
        self.next += 1;
        let mut buf = self.arena.try_alloc(usize::try_from(blocks * BLOCK).unwrap()).unwrap();
        buf.chunks_mut(8).for_each(|word| word.copy_from_slice(&self.next.to_le_bytes()));
        (self.next, buf.freeze())
    }

    fn sectors(&mut self, at: u64, blocks: u64) -> &mut [Sector] {
        let per = BLOCK / SECTOR;
        &mut self.model[usize::try_from(at * per).unwrap()..usize::try_from((at + blocks) * per).unwrap()]
    }

    async fn together(&mut self, actions: Vec<Action>) {
        let device = self.device.clone().unwrap();
        let before = self.model.clone();
        // What each sector is written with in this batch, and whether one of it is forced.
        let mut written: Vec<(BTreeSet<u64>, bool, bool)> = vec![Default::default(); before.len()];
        let flushed = actions.iter().any(|a| matches!(a, Action::Flush));
        let (mut tasks, mut reads) = (Vec::new(), Vec::new());
        for action in actions {
            let device = device.clone();
            let span = |at: u64, blocks: u64| {
                usize::try_from(at * BLOCK / SECTOR).unwrap()
                    ..usize::try_from((at + blocks) * BLOCK / SECTOR).unwrap()
            };
            match action {
                Action::Write { at, blocks, fua } => {
                    let (id, data) = self.filled(blocks);
                    for (ids, forced, _) in &mut written[span(at, blocks)] {
                        ids.insert(id);
                        *forced |= fua;
                    }
                    tasks.push(
                        self.ctx.spawn(async move { device.write(at * BLOCK, smallvec![data], fua).await }),
                    );
                }
                Action::Read { at, blocks } => {
                    let buf = self.arena.try_alloc(usize::try_from(blocks * BLOCK).unwrap()).unwrap();
                    let read =
                        self.ctx.spawn(async move { device.read(at * BLOCK, buf).await.unwrap().freeze() });
                    reads.push((span(at, blocks), read));
                }
                Action::Deallocate { at, blocks } => {
                    written[span(at, blocks)].iter_mut().for_each(|w| w.2 = true);
                    tasks.push(
                        self.ctx.spawn(async move { device.deallocate(at * BLOCK, blocks * BLOCK).await }),
                    );
                }
                Action::Flush => tasks.push(self.ctx.spawn(async move { device.flush().await })),
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
        for (span, read) in reads {
            for (index, value) in span.zip(values(&read.await)) {
                let (ids, _, gone) = &written[index];
                let may = before[index].now.contains(&value) || ids.contains(&value) || (*gone && value == 0);
                assert!(may, "sector {index} read as {value} beside {:?} over {:?}", ids, before[index].now);
            }
        }
        for ((sector, old), (ids, forced, gone)) in self.model.iter_mut().zip(before).zip(written) {
            if flushed {
                sector.after_cut = old.now.clone();
            }
            if forced {
                sector.after_cut.clear();
            }
            if !ids.is_empty() {
                sector.now = ids.clone();
            }
            if gone {
                // Undefined by contract; here it is what was there, or zeroes.
                sector.now.extend(old.now.iter().copied().chain([0]));
                sector.after_cut.extend(old.now.iter().copied().chain([0]));
            }
            sector.after_cut.extend(ids);
        }
    }

    /// Reads everything while nothing else runs: what is seen is what is there.
    async fn look(&mut self) {
        let device = self.device.clone().unwrap();
        let buf = self.arena.try_alloc(usize::try_from(BLOCKS * BLOCK).unwrap()).unwrap();
        let read = device.read(0, buf).await.unwrap();
        for (index, value) in values(&read).enumerate() {
            let sector = &mut self.model[index];
            assert!(sector.now.contains(&value), "sector {index} is {value}, not of {:?}", sector.now);
            sector.now = [value].into();
        }
    }

    /// Everything unflushed may be lost, in sectors. What the inner device has taken already, it finishes.
    async fn power_cut(&mut self) {
        self.device = None;
        self.ctx.sleep(Duration::from_secs(1)).await;
        assert!(self.slow.writing.borrow().is_empty());
        let buf = self.arena.try_alloc(usize::try_from(BLOCKS * BLOCK).unwrap()).unwrap();
        let read = self.slow.device.read(0, buf).await.unwrap();
        for (index, value) in values(&read).enumerate() {
            let sector = &mut self.model[index];
            assert!(
                sector.after_cut.contains(&value),
                "sector {index} is {value} after the cut, not of {:?}",
                sector.after_cut
            );
            *sector = Sector { now: [value].into(), after_cut: [value].into() };
        }
        self.power_on();
    }

    async fn run(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Together(actions) => self.together(actions).await,
                Event::Pause(us) => self.ctx.sleep(Duration::from_micros(us)).await,
                Event::PowerCut => {
                    self.look().await;
                    self.power_cut().await;
                }
            }
        }
        self.look().await;
        self.together(vec![Action::Flush]).await;
        for sector in &mut self.model {
            assert_eq!(sector.after_cut, sector.now, "a flush leaves nothing to lose");
        }
        self.power_cut().await;
        self.look().await;
        let all = self.sectors(0, BLOCKS).len();
        assert_eq!(all, self.model.len());
    }
}

/// The value of each sector; a sector of two values would be a mistake of the wrapper.
fn values(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks(usize::try_from(SECTOR).unwrap()).map(|sector| {
        let value = u64::from_le_bytes(sector[..8].try_into().unwrap());
        assert!(sector.chunks(8).all(|w| w == value.to_le_bytes()), "a sector is written whole");
        value
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn reads_are_never_stale_and_a_power_cut_takes_only_what_was_not_flushed(
        seed in any::<u64>(),
        events in proptest::collection::vec(event(), 1..40),
    ) {
        let reactor = Reactor::new_virtual(seed).unwrap();
        let ctx = reactor.ctx();
        reactor.block_on(async move { World::new(&ctx).run(events).await });
    }
}

#[test]
fn a_power_cut_loses_keeps_reorders_and_tears() {
    let (mut lost, mut kept, mut torn, mut reordered) = (0, 0, 0, 0);
    for seed in 0..200 {
        let reactor = Reactor::new_virtual(seed).unwrap();
        let ctx = reactor.ctx();
        let after = reactor.block_on(async move {
            let mut world = World::new(&ctx);
            for at in [0, 8] {
                world.together(vec![Action::Write { at, blocks: 2, fua: false }]).await;
            }
            ctx.sleep(Duration::from_micros(ctx.random_u64() % 12_000)).await;
            world.power_cut().await;
            let sectors = |world: &mut World, at| -> Vec<u64> {
                world.sectors(at, 2).iter().map(|s| *s.now.first().unwrap()).collect()
            };
            (sectors(&mut world, 0), sectors(&mut world, 8))
        });
        let whole = |v: &[u64], id: u64| v.iter().all(|x| *x == id);
        let (first, second) = (&after.0, &after.1);
        lost += u32::from(whole(first, 0));
        kept += u32::from(whole(first, 1));
        torn += u32::from(!whole(first, 0) && !whole(first, 1));
        reordered += u32::from(whole(first, 0) && whole(second, 2));
    }
    assert!(lost > 20 && kept > 20 && torn > 5 && reordered > 5, "{lost} {kept} {torn} {reordered}");
}

/// Found by the model above: the overwriting write took the place of what the flush had yet to write.
#[test]
fn a_flush_covers_what_was_written_before_it_even_if_it_is_overwritten_meanwhile() {
    for seed in 0..200 {
        let reactor = Reactor::new_virtual(seed).unwrap();
        let ctx = reactor.ctx();
        reactor.block_on(async move {
            let mut world = World::new(&ctx);
            let write = || Action::Write { at: 4, blocks: 2, fua: false };
            world.together(vec![write()]).await;
            world.together(vec![Action::Flush, write()]).await;
            world.power_cut().await;
        });
    }
}

#[test]
fn no_more_than_the_limit_is_held() {
    let reactor = Reactor::new_virtual(3).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let cache = Rc::new(VolatileCache::new(&ctx, Slow::new(&ctx), LIMIT).unwrap());
        let device = Device::new(cache.clone());
        let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).unwrap();
        let mut most = 0;
        for at in 0..BLOCKS {
            let mut buf = arena.try_alloc(4096).unwrap();
            buf.fill(u8::try_from(at).unwrap());
            device.write(at * BLOCK, smallvec![buf.freeze()], false).await.unwrap();
            most = most.max(cache.held());
            assert!(cache.held() <= LIMIT);
        }
        assert_eq!(most, LIMIT, "it is used to the full");
        assert_eq!(arena.stats().in_use, 0, "the writer's memory is free at once");
        // Larger than the whole cache: goes through.
        let mut buf = arena.try_alloc(64 << 10).unwrap();
        buf.fill(0xee);
        device.write(0, smallvec![buf.freeze()], false).await.unwrap();
        let buf = device.read(0, arena.try_alloc(68 << 10).unwrap()).await.unwrap();
        assert!(buf[..64 << 10].iter().all(|b| *b == 0xee) && buf[64 << 10..].iter().all(|b| *b == 16));
        device.flush().await.unwrap();
        assert_eq!(cache.held(), 0);
        assert_eq!(device.counters().flushes, 1);
    });
}

/// A device whose writes fail while `broken` says so.
struct Fragile {
    inner: Rc<Slow>,
    broken: Rc<std::cell::Cell<bool>>,
}

impl Bdev for Fragile {
    fn identify(&self) -> &Identify {
        self.inner.identify()
    }
    fn submit(&self, io: Io) {
        if self.broken.get() && matches!(io.op, Op::Write { .. }) {
            return io.done.send(Err(IoError::HostFull { offset: 0, len: 1 }));
        }
        self.inner.submit(io);
    }
}

#[test]
fn what_cannot_be_written_back_stays_and_the_flush_says_so() {
    let reactor = Reactor::new_virtual(5).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let broken = Rc::new(std::cell::Cell::new(true));
        let inner = Rc::new(Fragile { inner: Slow::new(&ctx), broken: broken.clone() });
        let device = Device::new(Rc::new(VolatileCache::new(&ctx, inner.clone(), LIMIT).unwrap()));
        let arena = Arena::new(ArenaConfig { limit: 4 << 20 }).unwrap();
        let mut buf = arena.try_alloc(8192).unwrap();
        buf.fill(6);
        let data = buf.freeze();
        device.write(0, smallvec![data.clone()], false).await.unwrap();
        ctx.sleep(Duration::from_secs(60)).await;
        assert!(device.flush().await.is_err());
        assert!(device.write(0, smallvec![data.clone()], true).await.is_err(), "nor does a forced write");
        let buf = device.read(0, arena.try_alloc(8192).unwrap()).await.unwrap();
        assert!(buf.iter().all(|b| *b == 6), "reads still see it");
        broken.set(false);
        device.flush().await.unwrap();
        drop(device);
        let buf = inner.inner.device.read(0, arena.try_alloc(8192).unwrap()).await.unwrap();
        assert!(buf.iter().all(|b| *b == 6));
    });
}
