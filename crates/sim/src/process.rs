//! A storage process of the simulated cluster: its disks outlive it.

use crate::disk::{Disk, FaultCounts};
use crate::log::EventLog;
use cobalt_cas::limits::CollectorLimits;
use cobalt_cas::{Cas, CasService, RemoteTargets, SoleReplica};
use cobalt_dma::Arena;
use cobalt_fabric::{LocalNet, PeerAddr, Transport};
use cobalt_ios::{Ios, Target};
use cobalt_reactor::{Ctx, Scope};
use cobalt_rpc::proto::record::PoolTarget;
use cobalt_rpc::{
    Auth, Call, ClusterSecret, Identity, Peer, PeerLimits, Refusal, Server, ServerLimits, Service,
};
use cobalt_store::{
    FormatOptions, FsckOptions, FsckReport, Limits, OpenOptions, Region, Regions, Store, format, fsck,
};
use futures::future::LocalBoxFuture;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use uuid::Uuid;

/// The cluster of all simulations.
const CLUSTER: Uuid = Uuid::from_u128(0xc1);

/// What all processes of a cluster share.
#[derive(Clone)]
pub(crate) struct Site {
    pub ctx: Ctx,
    pub net: LocalNet,
    pub secret: ClusterSecret,
    pub log: EventLog,
    pub store: Limits,
}

/// A storage process with one target.
pub struct Process {
    site: Site,
    number: usize,
    meta: Disk,
    data: Disk,
    incarnation: Cell<u64>,
    running: RefCell<Option<Running>>,
}

struct Running {
    scope: Scope,
    /// The store, or the verdict on its target.
    store: Result<Store, String>,
    cas: Option<Cas>,
    _server: Server,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Format(#[from] cobalt_store::FormatError),
    #[error(transparent)]
    Open(#[from] cobalt_store::OpenError),
    #[error("the catalogue does not start: {0}")]
    Cas(#[from] cobalt_rpc::proto::cas::CasError),
    #[error(transparent)]
    Fabric(#[from] cobalt_fabric::FabricError),
    #[error("no memory for buffers: {0}")]
    Arena(#[from] std::io::Error),
}

/// Name of process `number`.
pub(crate) fn name(number: usize) -> String {
    format!("p{number}")
}

/// Its target.
pub(crate) fn target(number: usize) -> PoolTarget {
    PoolTarget {
        target: Uuid::from_u128(0x10 + number as u128),
        name: format!("t{number}"),
        process: name(number),
    }
}

/// Peers of a process called `me`, one for each storage process.
pub(crate) fn peers(site: &Site, scope: &Scope, me: &str, incarnation: u64, count: usize) -> Vec<Peer> {
    let auth = Auth::new(Identity { name: me.into(), incarnation }, site.secret.clone());
    let transport: Rc<dyn Transport> = Rc::new(site.net.transport(me));
    let peer = |number| {
        let addr = PeerAddr::Local(name(number));
        let limits = PeerLimits::default();
        Peer::new(&scope.ctx(), transport.clone(), auth.clone(), &name(number), addr, limits)
    };
    (0..count).map(peer).collect()
}

impl Process {
    pub(crate) fn new(site: &Site, number: usize, seed: u64, size: u64) -> Process {
        let disk = |kind: &str, salt| Disk::new(&format!("{kind}{number}"), size, seed ^ salt, &site.log);
        Process {
            site: site.clone(),
            number,
            meta: disk("meta", 2 * number as u64 + 11),
            data: disk("data", 2 * number as u64 + 12),
            incarnation: Cell::new(0),
            running: RefCell::default(),
        }
    }

    fn regions(&self, scope: &Scope) -> Regions {
        Regions { meta: Region::whole(self.meta.mount(scope)), data: Region::whole(self.data.mount(scope)) }
    }

    fn arena() -> Result<Arena, StartError> {
        Ok(Arena::new(cobalt_dma::ArenaConfig { limit: 64 << 20 })?)
    }

    /// Formats its target.
    pub(crate) async fn format(&self) -> Result<(), StartError> {
        let scope = self.site.ctx.scope();
        let row = target(self.number);
        let options = FormatOptions::new(row.target, CLUSTER, row.name);
        format(&scope.ctx(), &self.regions(&scope), &Process::arena()?, &options).await?;
        scope.kill();
        Ok(())
    }

    /// Starts it, of `count` processes. The first holds the catalogue.
    pub(crate) async fn start(&self, count: usize) -> Result<(), StartError> {
        let scope = self.site.ctx.scope();
        let (ctx, row) = (scope.ctx(), target(self.number));
        let incarnation = self.incarnation.get() + 1;
        self.incarnation.set(incarnation);
        let arena = Process::arena()?;
        let options =
            OpenOptions { cluster: Some(CLUSTER), limits: self.site.store.clone(), ..OpenOptions::default() };
        let store = match Store::open(ctx.clone(), self.regions(&scope), arena, options).await {
            Ok(store) => Ok(store),
            // As in the product: the process serves its other targets, and says what is wrong with this one.
            Err(error) if self.number > 0 && self.faults().total() > 0 => Err(error.to_string()),
            Err(error) => {
                scope.kill();
                return Err(error.into());
            }
        };
        let served = match &store {
            Ok(store) => Target::open(row.target, row.name.clone(), "sim", store.clone()),
            Err(why) => Target::failed(row.target, row.name.clone(), "sim", why.clone()),
        };
        let ios = Ios::new(&ctx, [served], cobalt_ios::Limits::default());
        let cas = match (&store, self.number) {
            (Ok(store), 0) => {
                Some(Cas::start(ctx.clone(), store.ctg(), row.name, Rc::new(SoleReplica)).await?)
            }
            _ => None,
        };
        if let Some(cas) = &cas {
            cas.set_pool((0..count).map(target).collect()).await?;
            let peers = peers(&self.site, &scope, &name(self.number), incarnation, count);
            let remote = RemoteTargets {
                ctx: ctx.clone(),
                peers: peers.into_iter().enumerate().map(|(i, peer)| (target(i).target, peer)).collect(),
            };
            drop(cas.start_collector(Rc::new(remote), CollectorLimits::default()));
        }
        let auth = Auth::new(Identity { name: name(self.number), incarnation }, self.site.secret.clone());
        let service = Rc::new(Services { ios, cas: cas.clone().map(CasService::new) });
        let server = Server::new(&ctx, auth, service, ServerLimits::default());
        let transport = self.site.net.transport(&name(self.number));
        server.listen(transport.listen(PeerAddr::Local(name(self.number))).await?);
        *self.running.borrow_mut() = Some(Running { scope, store, cas, _server: server });
        Ok(())
    }

    /// Checks its target, data too, while the process does not run.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn fsck(&self) -> Result<FsckReport, StartError> {
        assert!(!self.is_running(), "fsck is for targets that are not in use");
        let scope = self.site.ctx.scope();
        let options = FsckOptions { data: true, limits: self.site.store.clone(), ..FsckOptions::default() };
        let report = fsck(&scope.ctx(), &self.regions(&scope), &Process::arena()?, &options).await?;
        scope.kill();
        Ok(report)
    }

    /// Cuts the power of its disks. What runs on finds them gone.
    pub(crate) fn power_cut(&self) {
        self.meta.power_cut(&self.site.ctx);
        self.data.power_cut(&self.site.ctx);
    }

    /// Ends its tasks where they stand.
    pub(crate) fn kill(&self) {
        let running = self.running.take();
        if let Some(running) = running {
            running.scope.kill();
        }
    }

    /// The store while it runs.
    pub fn store(&self) -> Option<Store> {
        self.running.borrow().as_ref().and_then(|running| running.store.clone().ok())
    }

    /// Why it serves no store, while it runs.
    pub fn verdict(&self) -> Option<String> {
        self.running.borrow().as_ref().and_then(|running| running.store.as_ref().err().cloned())
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.running.borrow().is_some()
    }

    /// The faults of its disks so far.
    pub fn faults(&self) -> FaultCounts {
        let mut faults = self.meta.faults();
        faults.add(&self.data.faults());
        faults
    }

    /// The catalogue, where it runs.
    pub fn cas(&self) -> Option<Cas> {
        self.running.borrow().as_ref().and_then(|running| running.cas.clone())
    }

    /// Its disks: meta and data.
    pub fn disks(&self) -> (&Disk, &Disk) {
        (&self.meta, &self.data)
    }
}

struct Services {
    ios: Rc<Ios>,
    cas: Option<Rc<CasService>>,
}

impl Service for Services {
    fn call(self: Rc<Self>, call: Call) -> LocalBoxFuture<'static, ()> {
        let opcode = call.opcode();
        match &self.cas {
            _ if Ios::serves(opcode) => self.ios.clone().call(call),
            Some(cas) if CasService::serves(opcode) => cas.clone().call(call),
            _ => {
                call.refuse(Refusal::UnknownOpcode(opcode));
                Box::pin(std::future::ready(()))
            }
        }
    }
}
