//! A process of a cluster, from its configuration to its last checkpoint: a reactor thread below, HTTP threads
//! above, and the signals that end it.

pub mod control;
pub mod credentials;
pub mod dev;
mod dispatch;
mod edge;
pub mod format;
pub mod halt;
pub mod identity;
mod incarnation;
mod keys;
pub mod lock;
mod metrics;
pub mod nvme;
mod pool;
mod reactor;
mod report;
mod sides;
pub mod socket;
pub mod targets;

use crate::cli::Failure;
use crate::config::{Config, ProcessConfig};
use cobalt_base::ByteSize;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Reactor, ReactorConfig, mailbox};
use cobalt_rpc::ClusterSecret;
use credentials::Credentials;
use futures::channel::oneshot;
use halt::Halt;
use identity::ClusterId;
use lock::Lock;
use reactor::{QUESTIONS, Question, Reins, Started};
use std::rc::Rc;
use std::thread::JoinHandle;

/// Threads for the admin address, the control socket and signals; S3 has its own.
const EDGE_THREADS: usize = 1;

/// What to run.
#[derive(Clone)]
pub struct Plan {
    pub config: Config,
    pub process: ProcessConfig,
    pub id: ClusterId,
    /// Accepted beside the keys of the catalogue.
    pub credentials: Option<Credentials>,
    /// A volatile cache of this size over every device, for tests.
    pub volatile_cache: Option<ByteSize>,
    pub halt: Option<Halt>,
}

/// The reactor's thread, and what others hold of it.
struct ReactorThread {
    thread: JoinHandle<Result<(), Failure>>,
    started: oneshot::Receiver<Result<Started, Failure>>,
    questions: mailbox::Sender<Question>,
    stop: oneshot::Sender<()>,
    arena: Arena,
}

/// Reads the cluster's identity; it must have been made.
///
/// # Errors
/// With the hint to format.
pub fn identity_of(config: &Config) -> Result<ClusterId, Failure> {
    let path = ClusterId::path(&config.cluster.secret_file.value);
    let missing =
        || Failure::new("the cluster was never laid out").hint("run `cobalt format --config FILE` first");
    ClusterId::load(&path)
        .map_err(|e| Failure::new("the cluster's identity cannot be read").cause(e))?
        .ok_or_else(|| missing().cause(format!("{} does not exist", path.display())))
}

/// The refusal of a secret that is not there, not whole or not secret.
fn unusable_secret(error: &cobalt_rpc::SecretError) -> Failure {
    Failure::new("the cluster secret cannot be used").cause(targets::with_sources(error)).hint(
        "every process of a cluster needs the same file, which `cobalt format` made: put a copy there, with mode 0600",
    )
}

/// Runs a process until a signal ends it. The lock is held all the while.
///
/// # Errors
/// Why it did not start, or did not end in order.
pub fn run(plan: Plan, _lock: Lock, announce: impl FnOnce(&str)) -> Result<(), Failure> {
    let secret =
        ClusterSecret::load(&plan.config.cluster.secret_file.value).map_err(|e| unusable_secret(&e))?;
    let me = &plan.process;
    for (addr, flag) in [
        (me.s3.as_ref().map(|s| s.listen.value), "--s3-listen"),
        (me.admin.as_ref().map(|a| a.value), "--admin-listen"),
    ] {
        addr.map_or(Ok(()), |addr| sides::is_free(addr, flag))?;
    }
    let edge = cobalt_gateway::runtime(EDGE_THREADS)
        .map_err(|e| Failure::new("the system gives no threads").cause(e))?;
    let signals = {
        let _inside = edge.enter();
        edge::Signals::take()?
    };
    let reactor = start_reactor(&plan, secret.clone())?;
    let ended = edge.block_on(edge::serve(plan, signals, reactor, secret, announce));
    edge.shutdown_background();
    ended
}

fn start_reactor(plan: &Plan, secret: ClusterSecret) -> Result<ReactorThread, Failure> {
    let system = |e: std::io::Error| Failure::new("the system gives no reactor").cause(e);
    let limit = usize::try_from(plan.process.arena.value.0).unwrap_or(usize::MAX);
    let arena = new_arena(&plan.process, limit).map_err(|e| {
        Failure::new(format!("no memory for an arena of {}", plan.process.arena.value)).cause(e)
    })?;
    let (questions, inbox) = mailbox(QUESTIONS);
    let (started_here, started) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let reins = Reins { started: started_here, questions: inbox, stop: stopped };
    let (plan, memory) = (plan.clone(), arena.clone());
    let thread = std::thread::Builder::new()
        .name("cobalt-reactor".into())
        .spawn(move || {
            let on_step: Option<Rc<dyn Fn(cobalt_reactor::Step)>> =
                plan.halt.clone().map(|halt| Rc::new(move |step| halt.pass(step)) as Rc<_>);
            let config =
                ReactorConfig { name: plan.process.name.clone(), on_step, ..ReactorConfig::default() };
            let reactor = Reactor::new(config).map_err(system)?;
            let ctx = reactor.ctx();
            reactor.block_on(reactor::run(ctx, memory, Rc::new(plan), secret, reins))
        })
        .map_err(system)?;
    Ok(ReactorThread { thread, started, questions, stop, arena })
}

/// An arena of a process: of hugepages where a controller that it drives will reach into it.
fn new_arena(process: &ProcessConfig, limit: usize) -> std::io::Result<Arena> {
    let driven = |uri: &&cobalt_bdev::DeviceUri| matches!(uri.kind, cobalt_bdev::DeviceKind::Nvme { .. });
    let config = ArenaConfig { limit };
    if process.targets.iter().any(|target| target.device.uris().iter().any(driven)) {
        return Arena::new_on_hugepages(config);
    }
    Arena::new(config)
}
