//! The client on its reactor: what its tasks share, and the task that takes calls from other threads.

use crate::bridge::{Call, Fate, Hold, HoldGuard, Slot};
use crate::cas::Bound;
use crate::config::{ClientConfig, PeerConfig};
use crate::limits::SMALL_BODIES;
use crate::pool::Pool;
use crate::session::Sessions;
use crate::{ClientError, Handle, Limits, cas, dead, get, pool, put, session, status};
use cobalt_dma::Arena;
use cobalt_ec::{Codec, CodecError};
use cobalt_reactor::sync::{Permit, Semaphore};
use cobalt_reactor::{Ctx, Scope, mailbox};
use cobalt_rpc::proto::cas::{Answer, CasError, CloseSession, Command, Outcome, Query};
use cobalt_rpc::proto::record::{Body, ObjectRecord, PartRecord};
use futures::channel::oneshot;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;

/// Exact counts of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCounters {
    /// Units that were written, parity among them, and their bytes.
    pub units_written: u64,
    pub bytes_written: u64,
    /// Attempts at writing a unit that were repeated.
    pub write_retries: u64,
    /// Units, or parts of units, that were read, and their bytes.
    pub units_read: u64,
    pub bytes_read: u64,
    /// Units that were decoded because the target did not yield them.
    pub units_decoded: u64,
    /// Reads whose bytes were damaged, on the target or on the way.
    pub corrupt: u64,
    /// PUTs whose body failed or was given up.
    pub puts_failed: u64,
    /// Fids that the catalogue took for dead.
    pub dead_reported: u64,
}

/// What the client's tasks share.
pub(crate) struct Core {
    pub(crate) ctx: Ctx,
    pub(crate) arena: Arena,
    pub(crate) config: ClientConfig,
    pub(crate) limits: Limits,
    pub(crate) peers: Vec<PeerConfig>,
    pub(crate) cas: cas::Cas,
    pub(crate) sessions: Sessions,
    pub(crate) pool: Pool,
    pub(crate) dead: dead::Dead,
    /// Bodies that are being written, unpublished or waiting to be reported dead.
    pub(crate) bodies: Semaphore,
    /// Bytes of the arena for PUTs, for GETs, and for decoding. Decoding has its own: it ends without waiting for
    /// anybody, so it can never be what everybody waits for.
    pub(crate) put_bytes: Share,
    pub(crate) get_bytes: Share,
    pub(crate) decode_bytes: Semaphore,
    calls: Semaphore,
    codecs: RefCell<BTreeMap<(usize, usize), Rc<Codec>>>,
    counters: Cell<ClientCounters>,
}

/// Bytes of the arena for one purpose.
pub(crate) struct Share {
    large: Semaphore,
    small: Semaphore,
}

impl Share {
    /// Where `bytes` come from.
    fn of(&self, bytes: u64) -> &Semaphore {
        if bytes <= self.small.limit() / SMALL_BODIES { &self.small } else { &self.large }
    }
}

/// A client. It runs until this is dropped.
pub struct Client {
    core: Rc<Core>,
    scope: Scope,
}

impl Client {
    /// Starts a client on this reactor, and yields the handle for other threads. It opens its session in the
    /// background; `peers` are all processes of the cluster, this one too.
    ///
    /// # Errors
    /// When the layout is impossible.
    pub fn start(
        ctx: &Ctx,
        arena: &Arena,
        config: ClientConfig,
        peers: Vec<PeerConfig>,
    ) -> Result<(Client, Handle), CodecError> {
        let layout = config.layout;
        let codec = Codec::new(layout.data_units.into(), layout.parity_units.into())?;
        assert!(
            layout.unit_size.is_power_of_two() && (4096..=1 << 20).contains(&layout.unit_size),
            "a unit of {} bytes is no power of two from 4 KiB to 1 MiB",
            layout.unit_size
        );
        let scope = ctx.scope();
        let limits = config.limits;
        let share = |percent: u64| Semaphore::new(arena.stats().limit as u64 / 100 * percent);
        let core = Rc::new(Core {
            ctx: scope.ctx(),
            arena: arena.clone(),
            limits,
            peers,
            cas: cas::Cas::default(),
            sessions: Sessions::default(),
            pool: Pool::default(),
            dead: dead::Dead::default(),
            bodies: Semaphore::new(limits.bodies),
            put_bytes: Share { large: share(limits.put_share), small: share(limits.small_share) },
            get_bytes: Share { large: share(limits.get_share), small: share(limits.small_share) },
            decode_bytes: share(limits.decode_share),
            calls: Semaphore::new(limits.calls),
            codecs: RefCell::new(BTreeMap::from([(
                (codec.data_units(), codec.parity_units()),
                Rc::new(codec),
            )])),
            counters: Cell::default(),
            config,
        });
        let (sender, receiver) = mailbox(limits.mailbox);
        let ctx = scope.ctx();
        ctx.spawn(session::run(core.clone()));
        ctx.spawn(pool::run(core.clone()));
        ctx.spawn(dead::run(core.clone()));
        ctx.spawn(serve(core.clone(), receiver));
        let handle = Handle::new(sender, arena.clone(), layout);
        Ok((Client { core, scope }, handle))
    }

    /// The counters now.
    pub fn counters(&self) -> ClientCounters {
        self.core.counters.get()
    }

    /// Stops for good: gives the dead fids that wait a chance, ends everything under way, and closes the session, so
    /// that nobody waits for its GETs. What cannot be told now is found by the sweep.
    pub async fn stop(self) {
        let core = self.core.clone();
        let told = async {
            while core.dead.waiting() > 0 {
                core.ctx.sleep(core.limits.retry_min).await;
            }
        };
        let _late = core.ctx.timeout(core.limits.cas_try, told).await;
        self.scope.kill();
        if let Some(session) = core.sessions.peek() {
            let request = CloseSession { session: session.id };
            let deadline = core.ctx.now() + core.limits.cas_try;
            if let Err(failure) = core.cas.call(&core, &request, deadline).await {
                tracing::warn!(session = %session.id, error = %failure.error, "the session was not closed");
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.scope.kill();
    }
}

impl Core {
    pub(crate) fn count(&self, change: impl FnOnce(&mut ClientCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// The process of that name.
    pub(crate) fn peer(&self, process: &str) -> Option<&PeerConfig> {
        self.peers.iter().find(|peer| peer.peer.name() == process)
    }

    /// The code of a layout.
    pub(crate) fn codec(&self, data: usize, parity: usize) -> Result<Rc<Codec>, ClientError> {
        let mut codecs = self.codecs.borrow_mut();
        if let Some(codec) = codecs.get(&(data, parity)) {
            return Ok(codec.clone());
        }
        let codec = Codec::new(data, parity).map_err(|e| ClientError::Damaged { what: e.to_string() })?;
        let codec = Rc::new(codec);
        codecs.insert((data, parity), codec.clone());
        Ok(codec)
    }

    /// `bytes` of the arena for a body, in turn.
    pub(crate) async fn body_credit(&self, share: &Share, bytes: u64) -> Result<Permit, ClientError> {
        self.credit(share.of(bytes), bytes).await
    }

    /// `bytes` of the arena out of `share`, in turn.
    pub(crate) async fn credit(&self, share: &Semaphore, bytes: u64) -> Result<Permit, ClientError> {
        let turn = share.acquire(bytes.min(share.limit()));
        self.ctx.timeout(self.limits.credit_deadline, turn).await.map_err(|_| ClientError::Busy)
    }
}

/// Takes calls, and gives each a task of its own.
async fn serve(core: Rc<Core>, mut calls: mailbox::Receiver<Call>) {
    while let Some(call) = calls.recv().await {
        let turn = core.calls.acquire(1).await;
        let task = core.clone();
        core.ctx.spawn(async move { dispatch(task, call, turn).await });
    }
}

async fn dispatch(core: Rc<Core>, call: Call, turn: Permit) {
    match call {
        Call::Ask { query, slot } => answer(slot, cas::ask(&core, query).await.map(|at| at.value)),
        Call::Commit { command, slot } => {
            let deadline = core.ctx.now() + core.limits.cas_deadline;
            answer(slot, cas::commit(&core, command, Bound::Free, Some(deadline)).await);
        }
        Call::Publish { command, fate, slot } => publish(&core, command, fate, slot).await,
        Call::Put { size, slot } => put::serve(core, size, slot, turn).await,
        Call::Open { bucket, key, slot } => open(core, bucket, key, slot).await,
        Call::Read { body, range, hold, slot } => {
            get::serve(core, body, range, hold.ticket, slot, turn).await
        }
        Call::Part { body, number, slot } => answer(slot, part(&core, body, number).await),
        Call::Status { slot } => drop(slot.send(status::gather(&core).await)),
    }
}

/// Answers; who does not wait any more gets nothing.
pub(crate) fn answer<T>(slot: Slot<T>, result: Result<T, ClientError>) {
    drop(slot.send(result));
}

/// Commits a command that names a body. The caller waits for its time; the body's fate is found out in any case.
async fn publish(core: &Core, command: Command, fate: oneshot::Sender<Fate>, slot: Slot<Outcome>) {
    let mut commit = pin!(cas::commit(core, command, Bound::ToSession, None));
    let outcome = match core.ctx.timeout(core.limits.cas_deadline, commit.as_mut()).await {
        Ok(outcome) => {
            answer(slot, outcome.clone());
            outcome
        }
        Err(_) => {
            let what = format!("publishing: {}", core.cas.last_error());
            answer(slot, Err(ClientError::Deadline { what }));
            commit.await
        }
    };
    match outcome {
        // Refused for good: nothing names the body. A fenced session's bodies are left to its sweep.
        Err(ClientError::Cas(error)) if !matches!(error, CasError::Fenced(_) | CasError::NoSession(_)) => {
            drop(fate)
        }
        _ => drop(fate.send(Fate::Settled)),
    }
}

/// Looks an object up, and keeps the look-up for as long as the caller holds it, or until it is too old.
async fn open(core: Rc<Core>, bucket: String, key: Vec<u8>, slot: Slot<(ObjectRecord, Hold)>) {
    let lookup = match core.sessions.begin_lookup(&core) {
        Ok(lookup) => lookup,
        Err(error) => return answer(slot, Err(error)),
    };
    let asked = cas::ask(&core, Query::Object { bucket, key }).await;
    let record = match asked {
        Ok(at) => {
            lookup.answered(at.position);
            match at.value {
                Answer::Object(record) => record,
                other => return answer(slot, Err(unexpected(&other))),
            }
        }
        Err(error) => return answer(slot, Err(error)),
    };
    let (sender, gone) = oneshot::channel();
    let hold = Hold::new(HoldGuard { ticket: lookup.ticket, _gone: sender });
    answer(slot, Ok((record, hold)));
    let age = core.limits.get_age;
    let ctx = core.ctx.clone();
    ctx.spawn(async move {
        if core.ctx.timeout(age, gone).await.is_err() {
            tracing::warn!("a GET is cut at the age of {age:?}: the collector waits for the oldest");
        }
        drop(lookup);
    });
}

async fn part(core: &Core, body: Body, number: u16) -> Result<PartRecord, ClientError> {
    let none = || ClientError::Cas(CasError::InvalidPart);
    let Body::Parts { upload, .. } = body else { return Err(none()) };
    let after = number.checked_sub(1).ok_or_else(none)?;
    match cas::ask(core, Query::Parts { upload, after, limit: 1 }).await?.value {
        Answer::Parts(page) => page.rows.into_iter().find(|part| part.number == number).ok_or_else(none),
        other => Err(unexpected(&other)),
    }
}

/// An answer to another question.
pub(crate) fn unexpected(answer: &Answer) -> ClientError {
    let name = format!("{answer:?}");
    let name = name.split(['(', ' ']).next().unwrap_or_default();
    ClientError::Unavailable { what: format!("the catalogue answered another question ({name})") }
}
