//! Steps 2 to 4 of the write path: a body becomes units, gets its parity while it arrives, and is written
//! to all targets at once. It counts only when all units of all its groups are durable (I9).

use crate::bridge::{Fate, PutItem, PutParts, Slot};
use crate::client::{Core, answer};
use crate::config::LayoutConfig;
use crate::layout::{chunk_size, place};
use crate::session::Session;
use crate::write::{Unit, write};
use crate::{ClientError, layout};
use cobalt_base::Fid;
use cobalt_base::checksum::crc32c_chunks;
use cobalt_dma::{Buf, Slice};
use cobalt_ec::Sum;
use cobalt_reactor::sync::{Notify, Permit, Semaphore};
use cobalt_reactor::{JoinHandle, Step, mailbox};
use cobalt_rpc::proto::ios;
use cobalt_rpc::proto::record::{Body, Extent, Layout, PoolMap, PoolTarget};
use futures::channel::oneshot;
use futures::future::{Either, select};
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;

/// Fids that are drawn at most to find one whose units avoid the targets that are down.
const DRAWS_MAX: usize = 16;

/// Where a new body goes.
struct Plan {
    session: Rc<Session>,
    fid: Fid,
    layout: Layout,
    pool: Rc<PoolMap>,
}

/// Serves one PUT, from admission to the end of its body's uncertain time.
pub(crate) async fn serve(core: Rc<Core>, size: Option<u64>, slot: Slot<PutParts>, turn: Permit) {
    let Some(body_permit) = core.bodies.try_acquire(1) else { return answer(slot, Err(ClientError::Busy)) };
    let admitted = match plan(&core, size).await {
        Ok(plan) => {
            // Enough to go on at any time: the parity of the groups in flight, a unit that arrives and one that is
            // sent. So bodies that hold parity never all wait for each other's data.
            let parity = core.limits.groups_in_flight * u64::from(plan.layout.parity_units);
            let bytes = (parity + 2) * u64::from(plan.layout.unit_size);
            core.body_credit(&core.put_bytes, bytes).await.map(|credit| (plan, credit))
        }
        Err(error) => Err(error),
    };
    let (plan, credit) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return answer(slot, Err(error)),
    };
    let (units, mut receiver) = mailbox(core.limits.units_queued);
    let (failure, failed) = oneshot::channel();
    let unit_size = plan.layout.unit_size as usize;
    drop(turn);
    if slot.send(Ok(PutParts { unit_size, units, failed })).is_err() {
        return;
    }
    let fid = plan.fid;
    let writer = Writer::new(core.clone(), plan);
    let stored = writer.run(&mut receiver).await;
    let wrote = writer.wrote.get();
    drop(writer); // Its writes end here; what they did is under a fid that dies.
    let dead = match stored {
        Ok((body, finish)) => {
            drop((receiver, credit));
            let (fate, settled) = oneshot::channel();
            answer(finish, Ok((body, fate)));
            settled.await != Ok(Fate::Settled)
        }
        Err(error) => {
            core.count(|c| c.puts_failed += 1);
            drop(failure.send(error)); // Before the mailbox closes: who finds it closed asks why.
            true
        }
    };
    if dead && wrote {
        core.dead.add(fid, body_permit);
    }
}

/// Chooses a fid, and with it the targets; refuses before the body when they are not all up, or full.
async fn plan(core: &Core, size: Option<u64>) -> Result<Plan, ClientError> {
    let deadline = core.ctx.now() + core.limits.cas_deadline;
    let session = core.sessions.current(core, deadline).await?;
    let pool = core.pool.newest(core).await?;
    let config: LayoutConfig = core.config.layout;
    if pool.targets.len() < config.width() {
        let (have, need) = (pool.targets.len(), config.width());
        let what = format!("the pool has {have} targets, and a layout of N+K needs {need}");
        return Err(ClientError::Unavailable { what });
    }
    core.pool.recheck(core, &pool.targets).await;
    let layout = config.layout_for(size, pool.version);
    let mut refusal = None;
    for _ in 0..DRAWS_MAX {
        let fid = session.draw();
        match admit(core, fid, size, &layout, &pool) {
            Ok(()) => return Ok(Plan { session, fid, layout, pool }),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.expect("at least one fid was drawn"))
}

/// Whether all targets of the first groups of `fid` are up and have room.
fn admit(
    core: &Core,
    fid: Fid,
    size: Option<u64>,
    layout: &Layout,
    pool: &PoolMap,
) -> Result<(), ClientError> {
    let width = usize::from(layout.data_units) + usize::from(layout.parity_units);
    let group = u64::from(layout.unit_size) * u64::from(layout.data_units);
    let groups = size.map_or(1, |size| size.div_ceil(group));
    // More groups than targets use all of them in all likelihood.
    let looked_at = groups.min(pool.targets.len() as u64);
    for number in 0..looked_at {
        let Some(places) = layout::place(fid, number, pool.targets.len(), width) else { continue };
        for target in places.into_iter().filter_map(|place| pool.targets.get(place)) {
            if let Some(what) = core.pool.trouble(core, target) {
                return Err(ClientError::Unavailable { what });
            }
            let share = groups.div_ceil(looked_at) * u64::from(layout.unit_size);
            if core.pool.free(target).is_some_and(|free| free < share) {
                let what = format!("target {} on process {} is full", target.name, target.process);
                return Err(ClientError::NoSpace { what });
            }
        }
    }
    Ok(())
}

/// A group that is being filled.
struct Group {
    route: Route,
    sum: Sum,
    /// Data units so far, and the length of the longest.
    units: usize,
    longest: usize,
}

/// Where the units of a group go.
struct Route {
    number: u64,
    targets: Vec<PoolTarget>,
    /// The group's place in the window; free again when its last unit is durable.
    in_flight: Rc<Permit>,
}

/// Writes one body.
struct Writer {
    core: Rc<Core>,
    plan: Plan,
    groups: Semaphore,
    writes: RefCell<Vec<JoinHandle<()>>>,
    state: Rc<State>,
    /// Whether any unit was sent.
    wrote: Cell<bool>,
}

/// What the writes of one body report.
#[derive(Default)]
struct State {
    pending: Cell<usize>,
    failure: RefCell<Option<ClientError>>,
    changed: Notify,
}

impl Drop for Writer {
    fn drop(&mut self) {
        for write in self.writes.borrow_mut().drain(..) {
            write.abort();
        }
    }
}

type Finish = Slot<(Body, oneshot::Sender<Fate>)>;

impl Writer {
    fn new(core: Rc<Core>, plan: Plan) -> Writer {
        let groups = Semaphore::new(core.limits.groups_in_flight);
        Writer {
            core,
            plan,
            groups,
            writes: RefCell::default(),
            state: Rc::default(),
            wrote: Cell::new(false),
        }
    }

    /// Takes units until the body ends, and waits until all of them are durable.
    async fn run(&self, units: &mut mailbox::Receiver<PutItem>) -> Result<(Body, Finish), ClientError> {
        let mut open: Option<Group> = None;
        let (mut size, mut next) = (0, 0);
        let finish = loop {
            let item = self.unless_failed(units.recv()).await?;
            self.core.ctx.step(Step::Split);
            match item {
                None => return Err(ClientError::Closed), // The other end went away.
                Some(PutItem::Finish(finish)) => break finish,
                Some(PutItem::Unit(unit)) => {
                    size += unit.len() as u64;
                    let mut group = match open.take() {
                        Some(group) => group,
                        None => self.begin_group(next).await?,
                    };
                    next = group.route.number + 1;
                    self.data_unit(&mut group, unit).await;
                    if group.units == usize::from(self.plan.layout.data_units) {
                        self.end_group(group);
                    } else {
                        open = Some(group);
                    }
                }
            }
        };
        if let Some(group) = open {
            self.end_group(group);
        }
        self.unless_failed(self.drained()).await?;
        let extent = Extent { fid: self.plan.fid, size, layout: self.plan.layout };
        Ok((if size == 0 { Body::Empty } else { Body::Single(extent) }, finish))
    }

    /// Waits for a place in the window of groups, and for the memory of its parity.
    async fn begin_group(&self, number: u64) -> Result<Group, ClientError> {
        let layout = &self.plan.layout;
        let width = usize::from(layout.data_units) + usize::from(layout.parity_units);
        let places = place(self.plan.fid, number, self.plan.pool.targets.len(), width);
        let places = places.expect("the pool was found large enough");
        let targets =
            places.into_iter().filter_map(|place| self.plan.pool.targets.get(place)).cloned().collect();
        let in_flight = Rc::new(self.unless_failed(self.groups.acquire(1)).await?);
        let mut bufs = Vec::with_capacity(layout.parity_units.into());
        for _ in 0..layout.parity_units {
            bufs.push(self.unless_failed(self.core.arena.alloc(layout.unit_size as usize)).await?);
        }
        let codec = self.core.codec(layout.data_units.into(), layout.parity_units.into())?;
        let route = Route { number, targets, in_flight };
        Ok(Group { route, sum: codec.parity(bufs), units: 0, longest: 0 })
    }

    /// Sends a data unit on its way, and adds it to the parity while it travels.
    async fn data_unit(&self, group: &mut Group, unit: Buf) {
        let (place, unit) = (group.units, unit.freeze());
        self.send(&group.route, place, unit.clone());
        self.core.ctx.yield_now().await;
        self.core.ctx.step(Step::Parity);
        group.sum.add(place, [&unit[..]]);
        group.units += 1;
        group.longest = group.longest.max(unit.len());
    }

    /// All data of the group is there: its parity goes out.
    fn end_group(&self, group: Group) {
        let data_units = usize::from(self.plan.layout.data_units);
        for (place, parity) in group.sum.finish(group.longest).into_iter().enumerate() {
            self.send(&group.route, data_units + place, parity.freeze());
        }
    }

    /// Step 4, for one unit, in a task of its own.
    fn send(&self, route: &Route, place: usize, data: Slice) {
        let layout = &self.plan.layout;
        let chunk = chunk_size(layout.unit_size.into());
        let mut crcs = Vec::new();
        crc32c_chunks(&data, usize::try_from(chunk).expect("at most 64 KiB"), &mut crcs);
        let target = route.targets[place].clone();
        let request = ios::Write {
            target: target.target,
            fid: self.plan.fid,
            chunk_size: u32::try_from(chunk).expect("at most 64 KiB"),
            incarnation: self.plan.session.incarnation,
            offset: route.number * u64::from(layout.unit_size),
            len: data.len() as u64,
            crcs,
        };
        self.wrote.set(true);
        let (core, state, in_flight) = (self.core.clone(), self.state.clone(), route.in_flight.clone());
        state.pending.set(state.pending.get() + 1);
        let task = async move {
            let result = write(&core, Unit { target, request, data }).await;
            drop(in_flight);
            state.pending.set(state.pending.get() - 1);
            if let Err(error) = result {
                state.failure.borrow_mut().get_or_insert(error);
            }
            state.changed.notify_all();
        };
        let mut writes = self.writes.borrow_mut();
        writes.retain(|write| !write.is_finished());
        writes.push(self.core.ctx.spawn(task));
    }

    /// `future`'s output, unless a write fails first.
    async fn unless_failed<F: Future>(&self, future: F) -> Result<F::Output, ClientError> {
        let failed = async {
            loop {
                let changed = self.state.changed.notified();
                if let Some(error) = self.state.failure.borrow().clone() {
                    return error;
                }
                changed.await;
            }
        };
        match select(pin!(failed), pin!(future)).await {
            Either::Left((error, _)) => Err(error),
            Either::Right((output, _)) => Ok(output),
        }
    }

    /// Waits until no write is under way.
    async fn drained(&self) {
        loop {
            let changed = self.state.changed.notified();
            if self.state.pending.get() == 0 {
                return;
            }
            changed.await;
        }
    }
}
