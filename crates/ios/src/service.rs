//! The service: takes a request apart, finds its target, and answers.

use crate::{Limits, Target, delete, read, write};
use cobalt_reactor::Ctx;
use cobalt_reactor::sync::Semaphore;
use cobalt_rpc::proto::ios::{
    COBS_MAX, CobRow, Delete, Fence, IosError, ListCobs, ListTargets, Read, TargetRow, Write,
};
use cobalt_rpc::{Call, Refusal, Request, Service};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

/// Exact counts of the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IosCounters {
    /// Writes that were acknowledged, and their bytes.
    pub writes: u64,
    pub write_bytes: u64,
    /// Reads that were answered with bytes, and how many.
    pub reads: u64,
    pub read_bytes: u64,
    /// Reads that found bytes which are not those that were written.
    pub corrupt: u64,
    /// Pulls that failed or took too long; each left no trace.
    pub pulls_failed: u64,
    /// Payloads that did not match their checksums on arrival.
    pub checksum_mismatches: u64,
    /// Writes refused because too many bytes were under way.
    pub busy: u64,
}

/// The I/O service of a process, over all its targets.
pub struct Ios {
    pub(crate) ctx: Ctx,
    pub(crate) limits: Limits,
    pub(crate) writes: Semaphore,
    pub(crate) reads: Semaphore,
    pub(crate) counters: Cell<IosCounters>,
    targets: RefCell<BTreeMap<Uuid, Rc<Target>>>,
}

impl Ios {
    /// A service of `targets`.
    pub fn new(ctx: &Ctx, targets: impl IntoIterator<Item = Target>, limits: Limits) -> Rc<Ios> {
        let targets = targets.into_iter().map(|target| (target.uuid(), Rc::new(target))).collect();
        Rc::new(Ios {
            ctx: ctx.clone(),
            limits,
            writes: Semaphore::new(limits.write_bytes),
            reads: Semaphore::new(limits.read_bytes),
            counters: Cell::default(),
            targets: RefCell::new(targets),
        })
    }

    /// Adds a target, or replaces the one of the same uuid.
    pub fn set_target(&self, target: Target) {
        self.targets.borrow_mut().insert(target.uuid(), Rc::new(target));
    }

    /// The counters now.
    pub fn counters(&self) -> IosCounters {
        self.counters.get()
    }

    /// Whether `opcode` is a request of this service: a process that serves the catalogue too asks before it hands
    /// a call on.
    pub fn serves(opcode: u16) -> bool {
        opcode >> 8 == Write::OPCODE >> 8
    }

    /// The targets as `status` shows them.
    pub fn rows(&self) -> Vec<TargetRow> {
        self.targets.borrow().values().map(|target| target.row()).collect()
    }

    pub(crate) fn target(&self, uuid: Uuid) -> Result<Rc<Target>, IosError> {
        self.targets.borrow().get(&uuid).cloned().ok_or(IosError::NoTarget(uuid))
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut IosCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    async fn fence(&self, request: Fence) -> Result<(), IosError> {
        let target = self.target(request.target)?;
        let committed = target.store()?.fence(request.session).await.map_err(|e| target.refusal(e, 0))?;
        tracing::info!(target = target.name(), session = %request.session, lsn = %committed.lsn(), "session fenced");
        Ok(())
    }

    async fn list_cobs(&self, request: ListCobs) -> Result<Vec<CobRow>, IosError> {
        let target = self.target(request.target)?;
        let limit = usize::try_from(request.limit).map_or(COBS_MAX, |limit| limit.min(COBS_MAX));
        let cobs = target.store()?.cob_next(request.from, limit).await.map_err(|e| target.refusal(e, 0))?;
        let row = |(fid, info): (_, cobalt_store::CobInfo)| CobRow {
            fid,
            incarnation: info.incarnation,
            allocated: info.allocated,
        };
        Ok(cobs.into_iter().map(row).collect())
    }
}

impl Service for Ios {
    fn call(self: Rc<Self>, call: Call) -> LocalBoxFuture<'static, ()> {
        async move {
            match call.opcode() {
                Write::OPCODE => write::serve(&self, call).await,
                Read::OPCODE => {
                    let Some(request) = parse::<Read>(&call) else { return call.refuse(Refusal::BadRequest) };
                    let answer = read::read(&self, &call, request).await;
                    call.reply::<Read>(answer);
                }
                Delete::OPCODE => {
                    let Some(request) = parse::<Delete>(&call) else {
                        return call.refuse(Refusal::BadRequest);
                    };
                    call.reply::<Delete>(delete::delete(&self, request).await);
                }
                Fence::OPCODE => {
                    let Some(request) = parse(&call) else { return call.refuse(Refusal::BadRequest) };
                    call.reply::<Fence>(self.fence(request).await);
                }
                ListCobs::OPCODE => {
                    let Some(request) = parse(&call) else { return call.refuse(Refusal::BadRequest) };
                    call.reply::<ListCobs>(self.list_cobs(request).await);
                }
                ListTargets::OPCODE => call.reply::<ListTargets>(Ok(self.rows())),
                opcode => call.refuse(Refusal::UnknownOpcode(opcode)),
            }
        }
        .boxed_local()
    }
}

pub(crate) fn parse<R: Request>(call: &Call) -> Option<R> {
    match call.parse::<R>() {
        Ok(request) => Some(request),
        Err(error) => {
            tracing::warn!(peer = call.peer().name, %error, "refused");
            None
        }
    }
}
