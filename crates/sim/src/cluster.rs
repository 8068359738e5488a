//! The cluster in one thread: three storage processes and a client, on virtual time, from one seed.

use crate::disk::{Disk, FaultCounts, FaultPlan};
use crate::log::EventLog;
use crate::process::{self, Process, Site, StartError, name, target};
use cobalt_client::{Client, ClientConfig, Handle, LayoutConfig, PeerConfig};
use cobalt_dma::Arena;
use cobalt_fabric::LocalNet;
use cobalt_reactor::sync::Notify;
use cobalt_reactor::{Ctx, Reactor, ReactorConfig, Scope, Step};
use cobalt_rpc::ClusterSecret;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;

/// Storage processes.
pub const PROCESSES: usize = 3;
/// Bytes of each disk.
const DISK: u64 = 64 << 20;

/// Where the power goes: counted down at each pass of a step.
#[derive(Default)]
struct Trap {
    at: Cell<Option<(Step, u64)>>,
    action: RefCell<Option<Rc<dyn Fn()>>>,
}

impl Trap {
    fn pass(&self, step: Step) {
        match self.at.get() {
            Some((wanted, 1)) if wanted == step => {
                self.at.set(None);
                let action = self.action.borrow().clone();
                if let Some(action) = action {
                    action();
                }
            }
            Some((wanted, n)) if wanted == step => self.at.set(Some((wanted, n - 1))),
            _ => {}
        }
    }
}

/// How a simulation is set up.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Limits of the stores.
    pub store: cobalt_store::Limits,
    /// How the client lays objects out.
    pub layout: LayoutConfig,
    /// What goes wrong with the disks, once [`SimCluster::begin_faults`] says so; with those that are not named, nothing.
    pub faults: Vec<DiskFaults>,
}

/// One of a process's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Meta,
    Data,
}

/// The faults of one disk.
#[derive(Clone, Debug)]
pub struct DiskFaults {
    pub process: usize,
    pub part: Part,
    pub plan: FaultPlan,
}

impl Default for SimOptions {
    fn default() -> SimOptions {
        let layout = LayoutConfig { data_units: 2, parity_units: 1, unit_size: 64 << 10 };
        SimOptions { store: cobalt_store::Limits::default(), layout, faults: Vec::new() }
    }
}

/// Three storage processes and a client.
pub struct SimCluster {
    site: Site,
    options: SimOptions,
    trap: Rc<Trap>,
    processes: Rc<Vec<Process>>,
    client: Option<(Scope, Client)>,
    client_starts: u64,
    cut: Rc<Notify>,
}

/// Runs `test` on a fresh cluster in a reactor of its own, all of it decided by `seed`.
pub fn simulate<F: Future + 'static>(
    seed: u64,
    options: SimOptions,
    test: impl FnOnce(SimCluster) -> F + 'static,
) -> F::Output {
    let trap = Rc::new(Trap::default());
    let hook = trap.clone();
    let on_step: Rc<dyn Fn(Step)> = Rc::new(move |step| hook.pass(step));
    let config = ReactorConfig { on_step: Some(on_step), ..ReactorConfig::default() };
    let reactor = Reactor::new_virtual_with(seed, config).expect("an eventfd can be had");
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let cluster = SimCluster::new(&ctx, seed, options, trap).await.expect("fresh disks take a target");
        test(cluster).await
    })
}

impl SimCluster {
    async fn new(
        ctx: &Ctx,
        seed: u64,
        options: SimOptions,
        trap: Rc<Trap>,
    ) -> Result<SimCluster, StartError> {
        let arena = Arena::new(cobalt_dma::ArenaConfig { limit: 64 << 20 })?;
        let site = Site {
            ctx: ctx.clone(),
            net: LocalNet::new(ctx, &arena),
            secret: ClusterSecret::from_bytes([7; 32]),
            log: EventLog::default(),
            store: options.store.clone(),
        };
        let mut processes = Vec::new();
        for number in 0..PROCESSES {
            let process = Process::new(&site, number, seed, DISK);
            process.format().await?;
            processes.push(process);
        }
        let processes = Rc::new(processes);
        let cut = Rc::new(Notify::default());
        let (disks, news, log, at) = (processes.clone(), cut.clone(), site.log.clone(), ctx.clone());
        // Runs in the middle of whatever passed the step: the disks go at once, the tasks when their turn comes.
        *trap.action.borrow_mut() = Some(Rc::new(move || {
            log.note(&at, "trap", &[]);
            disks.iter().for_each(Process::power_cut);
            news.notify_all();
        }));
        let cluster = SimCluster { site, options, trap, processes, client: None, client_starts: 0, cut };
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// The context of the simulation.
    pub fn ctx(&self) -> &Ctx {
        &self.site.ctx
    }

    /// The log of what happened.
    pub fn log(&self) -> &EventLog {
        &self.site.log
    }

    /// A disk of process `number`.
    pub fn disk(&self, number: usize, part: Part) -> &Disk {
        let (meta, data) = self.processes[number].disks();
        match part {
            Part::Meta => meta,
            Part::Data => data,
        }
    }

    /// The faults of all disks so far.
    pub fn faults(&self) -> FaultCounts {
        let mut all = FaultCounts::default();
        for process in self.processes.iter() {
            all.add(&process.faults());
        }
        all
    }

    /// From now on the disks have the faults that the options say.
    pub fn begin_faults(&self) {
        for faults in &self.options.faults {
            self.disk(faults.process, faults.part).set_faults(faults.plan.clone());
        }
    }

    /// No disk has any more faults from now on; those that hang come back. What is hurt stays hurt.
    pub fn end_faults(&self) {
        for process in self.processes.iter() {
            for disk in [process.disks().0, process.disks().1] {
                disk.set_faults(FaultPlan::default());
                disk.come_back();
            }
        }
    }

    /// Starts the storage processes that do not run.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_all(&self) -> Result<(), StartError> {
        for process in self.processes.iter() {
            if !process.is_running() {
                process.start(PROCESSES).await?;
            }
        }
        Ok(())
    }

    /// Starts process `number`.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(&self, number: usize) -> Result<(), StartError> {
        self.processes[number].start(PROCESSES).await
    }

    /// Starts the client, or the next one in place of it.
    ///
    /// # Panics
    /// When the layout is impossible.
    pub fn start_client(&mut self) -> Handle {
        self.kill_client();
        self.client_starts += 1;
        let scope = self.site.ctx.scope();
        let peers = process::peers(&self.site, &scope, "gw", self.client_starts, PROCESSES);
        let peer = |(number, peer)| PeerConfig { peer, address: name(number), cas: number == 0 };
        let peers = peers.into_iter().enumerate().map(peer).collect();
        let config = ClientConfig {
            process: "gw".into(),
            layout: self.options.layout,
            limits: cobalt_client::Limits::default(),
        };
        let arena = Arena::new(cobalt_dma::ArenaConfig { limit: 64 << 20 }).expect("memory for buffers");
        let (client, handle) =
            Client::start(&scope.ctx(), &arena, config, peers).expect("the layout is possible");
        self.client = Some((scope, client));
        handle
    }

    /// Ends the client where it stands.
    pub fn kill_client(&mut self) {
        if let Some((scope, client)) = self.client.take() {
            drop(client);
            scope.kill();
        }
    }

    /// Cuts the power of all storage processes when `step` is passed for the `nth` time from now.
    pub fn cut_at(&self, step: Step, nth: u64) {
        self.trap.at.set(Some((step, nth)));
    }

    /// Cuts the power now.
    pub fn cut_now(&self) {
        (self.cutter())();
    }

    /// What cuts the power when it is called.
    pub fn cutter(&self) -> impl Fn() + use<> {
        let trap = self.trap.clone();
        move || {
            trap.at.set(None);
            let action = trap.action.borrow().clone();
            if let Some(action) = action {
                action();
            }
        }
    }

    /// Told when the power was cut.
    pub fn cut(&self) -> Rc<Notify> {
        self.cut.clone()
    }

    /// Ends the storage processes where they stand, with what their disks lose.
    pub fn kill_all(&self) {
        for process in self.processes.iter() {
            process.kill();
            // Writes that a dying process sent off after the cut reached nothing; the mount ends in any case.
            process.power_cut();
        }
        self.site.log.note(&self.site.ctx, "killed", &[]);
    }

    /// Ends process `number` where it stands, with what its disks lose.
    pub fn kill(&self, number: usize) {
        let process = &self.processes[number];
        process.kill();
        process.power_cut();
        self.site.log.note(&self.site.ctx, "killed", &[number as u64]);
    }

    /// The storage processes.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The targets, in the pool's order.
    pub fn targets() -> Vec<cobalt_rpc::proto::record::PoolTarget> {
        (0..PROCESSES).map(target).collect()
    }
}

impl Drop for SimCluster {
    fn drop(&mut self) {
        self.kill_client();
        // The reactor holds the trap, and the trap the disks and the reactor.
        self.trap.action.take();
    }
}
