//! Why a call failed, for the caller; and the refusals that the frame layer of a server sends.

use serde::{Deserialize, Serialize};

/// A server's refusal before, or instead of, an answer of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Too many requests run already, of this peer or in all. Nothing was done; try again later.
    #[error("the peer is busy")]
    Busy,
    /// The service ended the request without an answer: whether it was done is unknown.
    #[error("the service gave no answer")]
    NoReply,
    /// A newer incarnation of the caller has been seen: this one counts as dead.
    #[error("a newer incarnation of this process has spoken to the peer")]
    StaleIncarnation,
    /// The caller has spoken with a later epoch before.
    #[error("the request's epoch is older than the newest that the peer has seen")]
    StaleEpoch,
    /// The id is older than the window of remembered answers: whether it was done is unknown.
    #[error("the request's id is older than the answers that the peer remembers")]
    OldId,
    /// The service has no such request.
    #[error("the peer knows no request {0:#06x}")]
    UnknownOpcode(u16),
    /// The request's body could not be parsed. Nothing was done.
    #[error("the peer cannot parse the request")]
    BadRequest,
    /// The answer does not fit a message.
    #[error("the answer is too large for a message")]
    ReplyTooLarge,
    /// The server is stopping. Nothing was done.
    #[error("the peer is stopping")]
    Stopping,
}

impl Refusal {
    /// Whether the refusal proves that the request had no effect.
    pub fn is_definite(self) -> bool {
        !matches!(self, Refusal::NoReply | Refusal::OldId | Refusal::ReplyTooLarge)
    }
}

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E: std::error::Error> {
    /// The service's own refusal.
    #[error("{0}")]
    Service(E),
    /// The frame layer of the peer refused.
    #[error("{peer} refused the call: {refusal}")]
    Refused { peer: String, refusal: Refusal },
    /// The request was never sent: no connection. Nothing was done.
    #[error("{peer} cannot be reached: {why}")]
    Unreachable { peer: String, why: String },
    /// The connection died while the call was under way: whether it was done is unknown.
    #[error("the connection to {peer} failed during the call: {why}")]
    Transport { peer: String, why: String },
    /// The deadline passed: whether the call was done is unknown.
    #[error("{peer} did not answer before the deadline")]
    Deadline { peer: String },
    /// The request does not fit a message, or the reply cannot be parsed.
    #[error("malformed message between this process and {peer}: {why}")]
    Malformed { peer: String, why: String },
}

impl<E: std::error::Error> CallError<E> {
    /// Whether it is certain that the call had no effect (a service's own refusal is the service's matter and counts as certain).
    pub fn is_definite(&self) -> bool {
        match self {
            CallError::Service(_) | CallError::Unreachable { .. } => true,
            CallError::Refused { refusal, .. } => refusal.is_definite(),
            CallError::Transport { .. } | CallError::Deadline { .. } | CallError::Malformed { .. } => false,
        }
    }
}

/// Why a server's pull or push failed. The request leaves no trace then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BulkError {
    /// The request lent nothing of this kind, or less than asked for.
    #[error("the request lent no such bytes: {0}")]
    NotLent(String),
    /// The request's deadline passed.
    #[error("the deadline passed while payload moved")]
    Deadline,
    /// The connection failed, or the peer ended its loan.
    #[error("payload could not be moved: {0}")]
    Transport(String),
}

/// A request's body that is not what its opcode says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed request {opcode:#06x}: {why}")]
pub struct Malformed {
    /// The opcode that was received.
    pub opcode: u16,
    /// What is wrong.
    pub why: String,
}
