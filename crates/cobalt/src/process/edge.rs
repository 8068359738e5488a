//! The threads above the reactor: S3, the admin address and the control socket, the ready line, and the signals that end
//! a process.

use super::control::Control;
use super::credentials::Credentials;
use super::keys::Keys;
use super::reactor::Started;
use super::report::Reporter;
use super::socket::SocketName;
use super::targets::with_sources;
use super::{Plan, ReactorThread, sides};
use crate::cli::{Failure, socket_path};
use cobalt_rpc::ClusterSecret;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How long a gateway waits for the catalogue before it says that it is ready all the same.
const CATALOGUE_WAIT: Duration = Duration::from_secs(20);
/// Time for requests under way to finish.
const DRAIN: Duration = Duration::from_secs(20);
/// Pause between two attempts to put the process's own key there.
const KEY_RETRY: Duration = Duration::from_millis(200);

/// What ends a process.
pub struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on they no longer end the process by themselves.
    ///
    /// # Errors
    /// The system refuses.
    pub fn take() -> Result<Signals, Failure> {
        let system = |e: std::io::Error| Failure::new("the system gives no signals").cause(e);
        Ok(Signals {
            term: signal(SignalKind::terminate()).map_err(system)?,
            interrupt: signal(SignalKind::interrupt()).map_err(system)?,
            hangup: signal(SignalKind::hangup()).map_err(system)?,
        })
    }

    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.interrupt.recv() => return,
                // Keys are read from the catalogue anyway, and there are no certificates yet: nothing to read again.
                _ = self.hangup.recv() => tracing::info!("SIGHUP: nothing to reload"),
            }
        }
    }
}

/// What runs above the reactor until the end.
struct Running {
    /// Dropped: S3 accepts nothing more, what runs may finish.
    drain: tokio::sync::oneshot::Sender<()>,
    gateway: Option<std::thread::JoinHandle<usize>>,
    stop: futures::channel::oneshot::Sender<()>,
    reactor: std::thread::JoinHandle<Result<(), Failure>>,
}

/// Serves until a signal comes, then ends in order; a second signal ends at once.
///
/// # Errors
/// Why it did not start, or did not end in order.
pub async fn serve(
    plan: Plan,
    mut signals: Signals,
    reactor: ReactorThread,
    secret: ClusterSecret,
    announce: impl FnOnce(&str),
) -> Result<(), Failure> {
    let ReactorThread { thread, started, questions, stop, arena } = reactor;
    let started = tokio::select! {
        started = started => started,
        // What was being recovered is recovered by the next start.
        () = signals.next() => return Ok(()),
    };
    let Started { handle, problems } = match started {
        Ok(Ok(started)) => started,
        Ok(Err(failure)) => return Err(failure),
        Err(_) => return ended(thread).and(Err(Failure::new("the reactor ended before it served"))),
    };
    for problem in &problems {
        Failure::new(problem.clone()).hint("the rest goes on; `cobalt status` shows what is down").print();
    }
    let gateway = match handle.clone() {
        Some(handle) => sides::gateway(&plan, handle, secret.clone())?,
        None => None,
    };
    let s3 = gateway.as_ref().map(|g| format!("http://{}", g.local_addr()));
    let (serving, is_serving) = watch::channel(false);
    let keys = handle.clone().map(|handle| Keys { handle, questions: questions.clone(), secret });
    let mut reporter = Reporter {
        process: plan.process.name.clone(),
        s3: s3.clone(),
        admin: None,
        layout: plan.config.cluster.layout.value.to_string(),
        questions,
        handle,
        arena,
    };
    if let Some(admin) = sides::admin(&plan, &reporter, is_serving)? {
        reporter.admin = admin.local_addr().ok().map(|a| format!("http://{a}"));
        tokio::spawn(admin.run());
    }
    let admin = reporter.admin.clone();
    let _name = control(&plan, reporter, keys.clone())?;
    let (drain, drained) = tokio::sync::oneshot::channel::<()>();
    let gateway = match gateway {
        Some(gateway) => Some(on_thread(move || {
            let shutdown = async move { drop(drained.await) };
            gateway.run(shutdown, DRAIN)
        })?),
        None => None,
    };
    if let (Some(keys), Some(own)) = (keys, plan.credentials.clone()) {
        put_key(keys, own).await;
    }
    serving.send_replace(true);
    ready(s3.as_deref(), admin.as_deref());
    announce(s3.as_deref().unwrap_or_default());

    signals.next().await;
    serving.send_replace(false);
    tell_systemd(sd_notify::NotifyState::Stopping);
    tokio::select! {
        done = end(Running { drain, gateway, stop, reactor: thread }) => done,
        () = signals.next() => {
            Failure::new("ended at a second signal, before everything was closed")
                .hint("nothing that was acknowledged is lost; the next start recovers")
                .print();
            std::process::exit(1);
        }
    }
}

/// Serves the control socket. Its name is valid as long as what is returned lives.
fn control(plan: &Plan, reporter: Reporter, keys: Option<Keys>) -> Result<SocketName, Failure> {
    let path = socket_path(&plan.config, &plan.process.name);
    let failed = |cause: String| Failure::new(format!("cannot listen at {}", path.display())).cause(cause);
    let name = SocketName::new(&path).map_err(|e| failed(e.to_string()))?;
    let socket = cobalt_gateway::control::Control::bind(name.path()).map_err(|e| failed(with_sources(&e)))?;
    let region = plan.process.s3.as_ref().map(|s| s.region.value.clone()).unwrap_or_default();
    tokio::spawn(socket.run(Control { reporter, keys, region }.handler()));
    Ok(name)
}

fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>, Failure> {
    std::thread::Builder::new()
        .name("cobalt-s3".into())
        .spawn(work)
        .map_err(|e| Failure::new("the system gives no threads").cause(e))
}

/// Stops accepting, lets requests finish, then ends the reactor.
async fn end(running: Running) -> Result<(), Failure> {
    let Running { drain, gateway, stop, reactor } = running;
    let wait = move || {
        drop(drain);
        if let Some(gateway) = gateway
            && gateway.join().is_err()
        {
            tracing::error!("the gateway did not end in order");
        }
        let _ = stop.send(());
        ended(reactor)
    };
    let done = tokio::task::spawn_blocking(wait).await;
    done.unwrap_or_else(|e| Err(Failure::new("the process did not end in order").cause(e)))
}

fn ended(thread: std::thread::JoinHandle<Result<(), Failure>>) -> Result<(), Failure> {
    thread.join().unwrap_or_else(|_| Err(Failure::new("the reactor panicked")))
}

/// Puts the process's own key into the catalogue, and keeps at it behind the ready line when the catalogue is away.
async fn put_key(keys: Keys, own: Credentials) {
    let attempt = async move {
        while let Err(e) = keys.ensure(&own).await {
            tracing::info!("the key {} is not in the catalogue yet: {e}", own.access_key);
            tokio::time::sleep(KEY_RETRY).await;
        }
    };
    let task = tokio::spawn(attempt);
    if tokio::time::timeout(CATALOGUE_WAIT, task).await.is_err() {
        tracing::warn!("the catalogue does not answer: requests are refused until it does");
    }
}

/// The line that scripts wait for, and systemd's.
fn ready(s3: Option<&str>, admin: Option<&str>) {
    let part = |name: &str, url: Option<&str>| url.map(|u| format!(" {name}={u}")).unwrap_or_default();
    println!("ready{}{}", part("s3", s3), part("admin", admin));
    tell_systemd(sd_notify::NotifyState::Ready);
}

fn tell_systemd(state: sd_notify::NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(false, &[state]) {
        tracing::warn!("systemd was not told: {e}");
    }
}
