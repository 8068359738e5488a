//! Calls to the catalogue: finding its leader, and committing each command once.

use crate::ClientError;
use crate::client::Core;
use cobalt_base::{Nanos, SessionId};
use cobalt_reactor::Step;
use cobalt_rpc::proto::cas::{Answer, Ask, At, CasError, Command, Commit, Outcome, Query};
use cobalt_rpc::proto::record::Body;
use cobalt_rpc::{CallError, Lend, Refusal, Request};
use std::cell::{Cell, RefCell};

/// Which process is asked first, and what went wrong last.
#[derive(Default)]
pub(crate) struct Cas {
    /// Index among the processes that may hold the catalogue.
    leader: Cell<usize>,
    last_error: RefCell<Option<String>>,
}

/// Why a call has no answer.
pub(crate) struct Failure {
    pub(crate) error: ClientError,
    /// Whether an attempt may have had its effect without our knowing.
    pub(crate) unsure: bool,
}

impl Cas {
    /// What went wrong last, for people.
    pub(crate) fn last_error(&self) -> String {
        self.last_error.borrow().clone().unwrap_or_else(|| "it was not asked yet".to_owned())
    }

    /// Calls the leader; looks for it as long as `deadline` allows.
    pub(crate) async fn call<R: Request<Error = CasError>>(
        &self,
        core: &Core,
        request: &R,
        deadline: Nanos,
    ) -> Result<R::Reply, Failure> {
        let processes: Vec<_> = core.peers.iter().filter(|p| p.cas).map(|p| p.peer.clone()).collect();
        let (mut unsure, mut pause, mut hops) = (false, core.limits.retry_min, 0);
        let Some(count) = std::num::NonZeroUsize::new(processes.len()) else {
            let what = "the configuration names no process with a catalogue (cas = true)".to_owned();
            return Err(Failure { error: ClientError::Unavailable { what }, unsure });
        };
        loop {
            let now = core.ctx.now();
            if now >= deadline {
                let what = format!("the catalogue: {}", self.last_error());
                let error =
                    if unsure { ClientError::Deadline { what } } else { ClientError::Unavailable { what } };
                return Err(Failure { error, unsure });
            }
            let asked = self.leader.get() % count;
            let process = &processes[asked];
            let attempt = process.call(request, Lend::None, deadline.min(now + core.limits.cas_try));
            let mut next = (asked + 1) % count;
            let error = match attempt.await {
                Ok(answer) => return Ok(answer.reply),
                Err(error) => error,
            };
            unsure |= !error.is_definite();
            *self.last_error.borrow_mut() = Some(error.to_string());
            match error {
                CallError::Service(CasError::NotLeader { hint }) => {
                    let hinted = hint.and_then(|name| processes.iter().position(|p| p.name() == name));
                    next = hinted.unwrap_or(next);
                }
                CallError::Service(CasError::Busy) | CallError::Refused { refusal: Refusal::Busy, .. } => {
                    next = asked
                }
                CallError::Service(refusal) => return Err(Failure { error: refusal.into(), unsure }),
                CallError::Refused {
                    refusal: Refusal::Stopping | Refusal::NoReply | Refusal::OldId, ..
                }
                | CallError::Unreachable { .. }
                | CallError::Transport { .. }
                | CallError::Deadline { .. } => {}
                CallError::Refused { .. } | CallError::Malformed { .. } => {
                    let error = ClientError::Unavailable { what: self.last_error() };
                    return Err(Failure { error, unsure });
                }
            }
            self.leader.set(next);
            hops += 1;
            // A hint is followed at once; when everybody was asked in vain, wait.
            if next == asked || hops >= count.get() {
                core.ctx.sleep(pause.min(deadline - core.ctx.now())).await;
                (pause, hops) = ((pause * 2).min(core.limits.retry_max), 0);
            }
        }
    }
}

/// Asks a question.
pub(crate) async fn ask(core: &Core, query: Query) -> Result<At<Answer>, ClientError> {
    let deadline = core.ctx.now() + core.limits.cas_deadline;
    let answer = core.cas.call(core, &Ask(query), deadline).await.map_err(|failure| failure.error)?;
    core.sessions.saw(answer.position);
    Ok(answer)
}

/// Commits `command` under one number of the session, until it is answered or `deadline` passes (never, if `None`).
/// A command that names fids of a session is for that session alone; others are repeated in the next one if it is
/// sure that the fenced one did not commit them.
pub(crate) async fn commit(
    core: &Core,
    command: Command,
    bound: Bound,
    deadline: Option<Nanos>,
) -> Result<Outcome, ClientError> {
    if names_body(&command) {
        core.ctx.step(Step::Publish);
    }
    loop {
        let patience = || core.ctx.now() + core.limits.cas_deadline;
        let session = core.sessions.current(core, deadline.unwrap_or_else(patience)).await?;
        if let Some(drawn) =
            drawn_by(&command).filter(|drawn| bound == Bound::ToSession && *drawn != session.id)
        {
            // Its body was stored before the fence: nobody may name it any more.
            return Err(ClientError::Cas(CasError::Fenced(drawn)));
        }
        let numbered = session.number();
        let mut unsure = false;
        let failure = loop {
            let request = Commit {
                session: session.id,
                request: numbered.number,
                acknowledged: session.acknowledged(),
                command: command.clone(),
            };
            match core.cas.call(core, &request, deadline.unwrap_or_else(patience)).await {
                Ok(at) => {
                    core.sessions.saw(at.position);
                    return Ok(at.value);
                }
                Err(failure) => {
                    unsure |= failure.unsure;
                    let refused = matches!(failure.error, ClientError::Cas(_));
                    if refused || deadline.is_some_and(|at| core.ctx.now() >= at) {
                        break failure.error;
                    }
                    core.ctx.sleep(core.limits.retry_max).await;
                }
            }
        };
        drop(numbered);
        let ClientError::Cas(CasError::Fenced(_) | CasError::NoSession(_)) = failure else {
            return Err(failure);
        };
        core.sessions.fenced(session.id);
        if unsure {
            let what = "the session was fenced while the change was under way".to_owned();
            return Err(ClientError::Deadline { what });
        }
        if bound == Bound::ToSession {
            return Err(failure);
        }
    }
}

/// Whether a command means something in another session than the one that it was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// It names fids of this session.
    ToSession,
    Free,
}

/// The session that drew the fid that a command names.
fn drawn_by(command: &Command) -> Option<SessionId> {
    let body = match command {
        Command::PutObject { record, .. } => &record.body,
        Command::PutPart { part, .. } => &part.body,
        _ => return None,
    };
    match body {
        Body::Single(extent) => Some(extent.fid.session),
        Body::Empty | Body::Parts { .. } => None,
    }
}

fn names_body(command: &Command) -> bool {
    matches!(command, Command::PutObject { .. } | Command::PutPart { .. })
}
