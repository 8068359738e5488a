//! Reed-Solomon over the units of a parity group, in GF(2^8).
//!
//! Both directions are the same work: a unit that is wanted is a weighted sum of N units that are there.
//! [`Codec`] knows the weights, [`Sum`] adds units up one by one as they arrive, so that parity overlaps the arrival
//! of the body and decoding overlaps the reads. Units are never copied or padded: a short one counts as filled
//! with zeroes, and zeroes add nothing.

mod codec;
mod sum;

pub use codec::{Codec, CodecError};
pub use sum::Sum;
