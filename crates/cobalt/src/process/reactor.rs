//! The reactor of a process: targets, services, client. It starts what it is told to, answers questions about itself, and
//! ends in order when it is told to.

use super::dispatch::Dispatch;
use super::targets::{self, Opening, Target, with_sources};
use super::{Plan, incarnation, pool};
use crate::cli::Failure;
use crate::config::ProcessConfig;
use crate::control;
use cobalt_cas::limits::CollectorLimits;
use cobalt_cas::{Cas, CasService, RemoteTargets, SoleReplica};
use cobalt_client::{Client, ClientConfig, Handle, LayoutConfig, PeerConfig};
use cobalt_dma::Arena;
use cobalt_fabric::{LocalNet, PeerAddr, TcpTransport, Transport};
use cobalt_ios::Ios;
use cobalt_reactor::{Ctx, JoinHandle, mailbox};
use cobalt_rpc::{Auth, ClusterSecret, Identity, Peer, PeerLimits, Server, ServerLimits};
use futures::channel::oneshot;
use futures::future::{FutureExt, join_all};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Questions that wait for the reactor.
pub const QUESTIONS: usize = 64;
/// Time for each target's last checkpoint.
const CLOSE_STORE: Duration = Duration::from_secs(60);

/// What other threads ask the reactor.
pub enum Question {
    Report(oneshot::Sender<Local>),
    Controllers(oneshot::Sender<Vec<control::Controller>>),
    /// Seals the secret of an access key.
    Seal {
        access_key: String,
        secret: zeroize::Zeroizing<String>,
        sealed: oneshot::Sender<Result<Vec<u8>, String>>,
    },
}

/// What the reactor knows of its process.
#[derive(Default)]
pub struct Local {
    pub targets: Vec<control::Target>,
    pub counters: BTreeMap<String, u64>,
}

/// What has been started.
pub struct Started {
    /// In a process with a gateway.
    pub handle: Option<Handle>,
    /// Why some targets do not serve, or the catalogue does not.
    pub problems: Vec<String>,
}

/// The other ends of a reactor's life.
pub struct Reins {
    pub started: oneshot::Sender<Result<Started, Failure>>,
    pub questions: mailbox::Receiver<Question>,
    pub stop: oneshot::Receiver<()>,
}

/// Everything that runs here.
struct Process {
    ctx: Ctx,
    plan: Rc<Plan>,
    targets: Vec<Target>,
    ios: Rc<Ios>,
    server: Server,
    cas: Option<Cas>,
    collector: Option<JoinHandle<()>>,
    client: Option<Client>,
    peers: Vec<Peer>,
    tcp: TcpTransport,
}

/// Runs a process from its start to its end.
pub async fn run(
    ctx: Ctx,
    arena: Arena,
    plan: Rc<Plan>,
    secret: ClusterSecret,
    reins: Reins,
) -> Result<(), Failure> {
    let Reins { started, mut questions, stop } = reins;
    let (process, handle, problems) = match Process::start(&ctx, arena, plan, secret.clone()).await {
        Ok(parts) => parts,
        Err(failure) => {
            drop(started.send(Err(failure)));
            return Ok(());
        }
    };
    drop(started.send(Ok(Started { handle, problems })));
    let mut stop = stop.fuse();
    loop {
        futures::select_biased! {
            _ = stop => break,
            question = questions.recv().fuse() => match question {
                Some(question) => process.answer(question, &secret),
                None => break,
            },
        }
    }
    process.end().await
}

impl Process {
    async fn start(
        ctx: &Ctx,
        arena: Arena,
        plan: Rc<Plan>,
        secret: ClusterSecret,
    ) -> Result<(Process, Option<Handle>, Vec<String>), Failure> {
        let me = &plan.process;
        let run = crate::cli::run_directory(&plan.config);
        let number = incarnation::next(&run.join(format!("{}.incarnation", me.name)), ctx.unix_time().0)?;
        let auth = Auth::new(Identity { name: me.name.clone(), incarnation: number }, secret);
        let tcp = TcpTransport::new(ctx, &arena)
            .map_err(|e| Failure::new("the system gives no sockets").cause(e))?;
        let local = LocalNet::new(ctx, &arena);
        let peers = peers(ctx, &plan, &auth, &tcp, &local);
        // Listening comes before recovery: a port in use is told at once. What connects meanwhile waits.
        let listeners = listen(me, &tcp, &local).await?;

        let targets = open_targets(ctx, &arena, &plan).await;
        let mut problems: Vec<String> = targets
            .iter()
            .filter_map(|t| {
                t.store.as_ref().err().map(|why| format!("target {} does not serve: {why}", t.name))
            })
            .collect();
        let ios = Ios::new(ctx, targets.iter().map(served), cobalt_ios::Limits::default());
        let cas = match start_catalogue(ctx, &plan, &targets).await {
            Some(Ok(cas)) => Some(cas),
            Some(Err(why)) => {
                problems.push(format!("the catalogue does not serve: {why}"));
                None
            }
            None => None,
        };
        let service = Dispatch { ios: ios.clone(), cas: cas.clone().map(CasService::new) };
        let server = Server::new(ctx, auth, Rc::new(service), ServerLimits::default());
        for listener in listeners {
            server.listen(listener);
        }
        let collector = cas.as_ref().map(|cas| {
            let remote = RemoteTargets { ctx: ctx.clone(), peers: by_target(&plan, &peers) };
            cas.start_collector(Rc::new(remote), CollectorLimits::default())
        });
        let (client, handle) = match &me.s3 {
            Some(_) => {
                let (client, handle) = start_client(ctx, &arena, &plan, &peers)?;
                (Some(client), Some(handle))
            }
            None => (None, None),
        };
        let peers = peers.into_iter().map(|p| p.peer).collect();
        let ctx = ctx.clone();
        let process = Process { ctx, plan, targets, ios, server, cas, collector, client, peers, tcp };
        Ok((process, handle, problems))
    }

    fn answer(&self, question: Question, secret: &ClusterSecret) {
        match question {
            Question::Report(slot) => drop(slot.send(self.report())),
            // The controllers take their time to answer: nothing here waits for that.
            Question::Controllers(slot) => {
                let plan = self.plan.clone();
                self.ctx.spawn(async move {
                    drop(slot.send(super::nvme::report(&plan.process.targets).await));
                });
            }
            Question::Seal { access_key, secret: text, sealed } => {
                let result = cobalt_cas::secrets::seal(&self.ctx, secret.expose(), &access_key, &text);
                drop(sealed.send(result.map_err(|e| e.to_string())));
            }
        }
    }

    fn report(&self) -> Local {
        let mut local = Local {
            targets: self.targets.iter().map(|t| report_target(&self.plan.process.name, t)).collect(),
            counters: BTreeMap::new(),
        };
        let mut add = |name: &str, count: u64| *local.counters.entry(name.to_owned()).or_default() += count;
        for target in &self.targets {
            for device in &target.devices {
                let io = device.counters();
                add("device_reads", io.reads);
                add("device_writes", io.writes);
                add("flushes", io.flushes);
                add("device_errors", io.errors);
            }
            if let Ok(store) = &target.store {
                let counters = store.counters();
                for (name, count) in counters.rows() {
                    add(name, count);
                }
                add("journal_groups", counters.groups + counters.journal_empties);
            }
        }
        let ios = self.ios.counters();
        add("pulls", ios.writes + ios.pulls_failed);
        add("ios_corrupt", ios.corrupt);
        add("ios_checksum_mismatches", ios.checksum_mismatches);
        let server = self.server.counters();
        add("requests", server.requests);
        add("messages", server.requests + server.replies);
        add("rpc_protocol_errors", server.protocol_errors + self.tcp.counters().protocol_errors);
        add("rpc_auth_failures", server.auth_failures);
        if let Some(client) = &self.client {
            let counters = client.counters();
            add("client_units_written", counters.units_written);
            add("client_units_read", counters.units_read);
            add("client_units_decoded", counters.units_decoded);
            add("client_write_retries", counters.write_retries);
            add("client_corrupt", counters.corrupt);
            add("client_puts_failed", counters.puts_failed);
        }
        add("copied_bytes", cobalt_dma::copied::total());
        let reactor = self.ctx.stats();
        add("reactor_turns", reactor.turns);
        add("reactor_parks", reactor.parks);
        add("reactor_busy_ns", reactor.busy_ns);
        add("bridge_wakes", reactor.remote_wakes);
        local
    }

    /// The client ends, then nothing new comes in, then every target writes its checkpoint.
    async fn end(self) -> Result<(), Failure> {
        // The gateway has drained. A session that is closed here need not be fenced by the next start.
        if let Some(client) = self.client {
            client.stop().await;
        }
        if let Some(collector) = &self.collector {
            collector.abort();
        }
        drop(self.cas);
        self.server.stop();
        for peer in &self.peers {
            peer.close();
        }
        let close = self.targets.iter().filter_map(|target| {
            let store = target.store.as_ref().ok()?;
            let ctx = &self.ctx;
            Some(async move {
                match ctx.timeout(CLOSE_STORE, store.close()).await {
                    Ok(Ok(())) => None,
                    Ok(Err(e)) => Some(format!("target {}: {}", target.name, with_sources(&e))),
                    Err(_) => Some(format!("target {}: its last checkpoint takes too long", target.name)),
                }
            })
        });
        let failed: Vec<String> = join_all(close).await.into_iter().flatten().collect();
        super::nvme::close_all().await;
        if failed.is_empty() {
            return Ok(());
        }
        // Nothing is lost: the journal has all of it.
        Err(Failure::new("not every target was closed in order").cause(failed.join("; ")))
    }
}

/// Every process with something to serve, reached in the shortest way.
fn peers(ctx: &Ctx, plan: &Plan, auth: &Auth, tcp: &TcpTransport, local: &LocalNet) -> Vec<PeerConfig> {
    let mut peers = Vec::new();
    for process in plan.config.processes.iter().filter(|p| !p.targets.is_empty()) {
        let (transport, addr): (Rc<dyn Transport>, _) = if process.name == plan.process.name {
            (Rc::new(local.transport(&process.name)), PeerAddr::Local(process.name.clone()))
        } else {
            let Some(listen) = process.listen.first() else { continue };
            (Rc::new(tcp.clone()), PeerAddr::Tcp(listen.value))
        };
        let address = addr.to_string();
        let peer = Peer::new(ctx, transport, auth.clone(), &process.name, addr, PeerLimits::default());
        peers.push(PeerConfig { peer, address, cas: process.cas.value });
    }
    peers
}

async fn listen(
    me: &ProcessConfig,
    tcp: &TcpTransport,
    local: &LocalNet,
) -> Result<Vec<Box<dyn cobalt_fabric::Listener>>, Failure> {
    let mut listeners = Vec::new();
    if me.targets.is_empty() {
        return Ok(listeners);
    }
    for addr in me.listen.iter().map(|l| PeerAddr::Tcp(l.value)) {
        let listener = tcp.listen(addr.clone()).await.map_err(|e| {
            Failure::new(format!("cannot listen on {addr}"))
                .cause(with_sources(&e))
                .hint("stop what uses the port, or give the process another one in `listen`")
        })?;
        listeners.push(listener);
    }
    let here = PeerAddr::Local(me.name.clone());
    let listener = local.transport(&me.name).listen(here).await;
    listeners.push(listener.map_err(|e| Failure::new("cannot listen within the process").cause(e))?);
    Ok(listeners)
}

async fn open_targets(ctx: &Ctx, arena: &Arena, plan: &Plan) -> Vec<Target> {
    let each = usize::try_from(cobalt_store::META_ARENA).unwrap_or(usize::MAX);
    let limit = each.saturating_mul(plan.process.targets.len().max(1));
    let opening = Opening {
        cluster: plan.id.cluster,
        cache: plan.process.cache.value.0,
        volatile_cache: plan.volatile_cache,
        read_only: false,
        meta_arena: super::new_arena(&plan.process, limit).ok(),
    };
    let opening = &opening;
    let open = plan.process.targets.iter().map(|target| async move {
        targets::open(ctx, arena, target, plan.id.targets.get(&target.name).copied(), opening).await
    });
    join_all(open).await
}

fn served(target: &Target) -> cobalt_ios::Target {
    match &target.store {
        Ok(store) => cobalt_ios::Target::open(target.uuid, &target.name, &target.backend, store.clone()),
        Err(why) => cobalt_ios::Target::failed(target.uuid, &target.name, &target.device, why),
    }
}

/// The catalogue lies on the first target of its process.
async fn start_catalogue(ctx: &Ctx, plan: &Plan, targets: &[Target]) -> Option<Result<Cas, String>> {
    if !plan.process.cas.value {
        return None;
    }
    let first = targets.first()?;
    let store = match &first.store {
        Ok(store) => store,
        Err(why) => return Some(Err(format!("it lies on target {}: {why}", first.name))),
    };
    let start = async {
        let cas = Cas::start(ctx.clone(), store.ctg(), first.name.clone(), Rc::new(SoleReplica)).await?;
        cas.set_pool(pool::of(&plan.config, &plan.id)).await?;
        Ok::<Cas, cobalt_rpc::proto::cas::CasError>(cas)
    };
    Some(start.await.map_err(|e| with_sources(&e)))
}

fn by_target(plan: &Plan, peers: &[PeerConfig]) -> BTreeMap<uuid::Uuid, Peer> {
    let peer_of = |process: &str| peers.iter().find(|p| p.peer.name() == process).map(|p| p.peer.clone());
    plan.config
        .targets()
        .filter_map(|(process, target)| Some((*plan.id.targets.get(&target.name)?, peer_of(&process.name)?)))
        .collect()
}

fn start_client(
    ctx: &Ctx,
    arena: &Arena,
    plan: &Plan,
    peers: &[PeerConfig],
) -> Result<(Client, Handle), Failure> {
    let layout = plan.config.cluster.layout.value;
    let unit_size = u32::try_from(plan.config.cluster.unit_size.value.0).expect("a unit is at most 1 MiB");
    let config = ClientConfig {
        process: plan.process.name.clone(),
        layout: LayoutConfig { data_units: layout.data, parity_units: layout.parity, unit_size },
        limits: cobalt_client::Limits::default(),
    };
    Client::start(ctx, arena, config, peers.to_vec())
        .map_err(|e| Failure::new(format!("the layout {layout} is not possible")).cause(e))
}

fn report_target(process: &str, target: &Target) -> control::Target {
    let mut report = control::Target {
        name: target.name.clone(),
        process: process.to_owned(),
        target: Some(target.uuid),
        device: target.device.clone(),
        backend: target.backend.clone(),
        ..control::Target::default()
    };
    match &target.store {
        Err(why) => report.why = Some(why.clone()),
        Ok(store) => {
            let status = store.status();
            report.up = status.failed.is_none();
            report.why = status.failed;
            report.total = status.space.total;
            report.used = status.space.used;
            report.free = status.space.free;
            report.reserved = status.space.reserved;
            report.cobs = status.cobs;
            report.generation = status.generation;
            report.applied = status.applied.0;
            report.journal = status.journal;
            report.journal_used = status.journal_used;
            report.counters =
                store.counters().rows().iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        }
    }
    report
}
