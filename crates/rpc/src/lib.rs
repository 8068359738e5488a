//! Remote calls: frames, sessions, authentication, and the messages of the two services.

pub mod proto;

/// A request of a service: its number on the wire, and what answers it.
pub trait Request: serde::Serialize + serde::de::DeserializeOwned + 'static {
    /// Number on the wire; never used again for anything else.
    const OPCODE: u16;
    /// The answer.
    type Reply: serde::Serialize + serde::de::DeserializeOwned + 'static;
    /// The refusal.
    type Error: std::error::Error + serde::Serialize + serde::de::DeserializeOwned + 'static;
}
