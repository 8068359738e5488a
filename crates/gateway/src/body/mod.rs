//! Bodies of requests: where hyper's stream is kept, how chunks are undone, and the digests of what passes.

mod chunked;
mod digest;
mod hasher;
mod md5;
mod pace;
mod payload;
mod slot;

pub use chunked::{ChunkSigner, Decoder, FrameError};
pub use digest::{Algorithm, Digested, Digests, Expected, combine_full, composite, from_suffix, suffix};
pub use hasher::Hasher;
pub use pace::Pace;
pub use payload::{BodyError, Payload};
pub use slot::{Slot, SlotBody};
