//! What a client's call can fail with. The gateway turns each into its answer.

use cobalt_rpc::proto::cas::CasError;

/// Why a call failed. Every text names what it was about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The catalogue refused; its answer is final.
    #[error(transparent)]
    Cas(#[from] CasError),
    /// Too little of the cluster is up. Trying again later may help.
    #[error("unavailable: {what}")]
    Unavailable { what: String },
    /// A target has no room.
    #[error("no space: {what}")]
    NoSpace { what: String },
    /// The file system under a target is full.
    #[error("the host is full: {what}")]
    HostFull { what: String },
    /// No answer in time; a change may have happened or not.
    #[error("deadline passed: {what}")]
    Deadline { what: String },
    /// More units of a group are hurt than its parity can make good.
    #[error("damaged: {what}")]
    Damaged { what: String },
    /// A limit was reached; trying again later helps.
    #[error("busy")]
    Busy,
    /// The client has stopped.
    #[error("the client has stopped")]
    Closed,
}
