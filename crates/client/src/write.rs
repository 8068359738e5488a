//! Writing one unit to its target: again and again until it is durable, its time is up, or the answer is
//! final. Writing the same bytes at the same place of the same cob twice does no harm.

use crate::ClientError;
use crate::client::Core;
use crate::pool::Trouble;
use cobalt_dma::Slice;
use cobalt_reactor::Step;
use cobalt_rpc::proto::ios::{self, IosError};
use cobalt_rpc::proto::record::PoolTarget;
use cobalt_rpc::{CallError, Lend, Refusal};

/// A unit on its way.
pub(crate) struct Unit {
    pub(crate) target: PoolTarget,
    pub(crate) request: ios::Write,
    pub(crate) data: Slice,
}

/// Writes the unit.
pub(crate) async fn write(core: &Core, unit: Unit) -> Result<(), ClientError> {
    let Unit { target, request, data } = unit;
    let deadline = core.ctx.now() + core.limits.write_deadline;
    let mut pause = core.limits.retry_min;
    let unavailable = |why: &str| ClientError::Unavailable {
        what: format!("target {} on process {}: {why}", target.name, target.process),
    };
    let Some(process) = core.peer(&target.process) else {
        return Err(unavailable("the configuration does not name the process"));
    };
    loop {
        core.ctx.step(Step::SendUnits);
        let attempt = deadline.min(core.ctx.now() + core.limits.write_try);
        let lend = Lend::Data(vec![data.clone()]);
        let error = match process.peer.call(&request, lend, attempt).await {
            Ok(_) => {
                core.pool.mark_up(target.target);
                core.count(|c| {
                    c.units_written += 1;
                    c.bytes_written += request.len;
                });
                return Ok(());
            }
            Err(error) => error,
        };
        match verdict(&error) {
            Verdict::Again => {}
            Verdict::Down => core.pool.mark_down(core, target.target, Trouble::of(&error), error.to_string()),
            Verdict::Final(kind) => {
                if let CallError::Service(IosError::Fenced(session)) = &error {
                    core.sessions.fenced(*session);
                }
                if kind == Final::Failed {
                    core.pool.mark_down(core, target.target, Trouble::of(&error), error.to_string());
                }
                let what = error.to_string();
                return Err(match kind {
                    Final::NoSpace => ClientError::NoSpace { what },
                    Final::HostFull => ClientError::HostFull { what },
                    Final::Failed | Final::Refused => unavailable(&what),
                });
            }
        }
        if core.ctx.now() + pause >= deadline {
            return Err(unavailable(&error.to_string()));
        }
        tracing::debug!(target = target.name, fid = %request.fid, %error, "writing the unit again");
        core.count(|c| c.write_retries += 1);
        core.ctx.sleep(pause).await;
        pause = (pause * 2).min(core.limits.retry_max);
    }
}

enum Verdict {
    /// Trying again may help.
    Again,
    /// It may help, when the process is back.
    Down,
    Final(Final),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Final {
    NoSpace,
    HostFull,
    /// The target does not work.
    Failed,
    /// The target works, and will not take this unit.
    Refused,
}

fn verdict(error: &CallError<IosError>) -> Verdict {
    match error {
        CallError::Service(refusal) => match refusal {
            IosError::Busy | IosError::Transfer(_) | IosError::Checksum { .. } => Verdict::Again,
            IosError::NoSpace { .. } => Verdict::Final(Final::NoSpace),
            IosError::HostFull { .. } => Verdict::Final(Final::HostFull),
            IosError::NoTarget(_) | IosError::TargetFailed { .. } => Verdict::Final(Final::Failed),
            IosError::Fenced(_)
            | IosError::Deleted(_)
            | IosError::Incarnation { .. }
            | IosError::Missing { .. }
            | IosError::Corrupt { .. }
            | IosError::Malformed(_) => Verdict::Final(Final::Refused),
        },
        CallError::Refused { refusal, .. } => match refusal {
            Refusal::Busy | Refusal::NoReply | Refusal::OldId => Verdict::Again,
            Refusal::Stopping => Verdict::Down,
            Refusal::StaleIncarnation
            | Refusal::StaleEpoch
            | Refusal::UnknownOpcode(_)
            | Refusal::BadRequest
            | Refusal::ReplyTooLarge => Verdict::Final(Final::Refused),
        },
        CallError::Unreachable { .. } | CallError::Transport { .. } | CallError::Deadline { .. } => {
            Verdict::Down
        }
        CallError::Malformed { .. } => Verdict::Final(Final::Refused),
    }
}
