//! Memory that devices and peers may touch: arenas of locked pages, and buffers that own a piece.
//!
//! A [`Buf`] has one owner and moves by value; [`Buf::freeze`] turns it into a [`Slice`], which any
//! number of readers share. Whoever runs an operation owns the memory until the operation is
//! complete, whatever happens to the task that waits for it (I7): the types make that the easy way.

mod arena;
mod buddy;
mod buf;
pub mod copied;
mod map;

pub use arena::{Alloc, Arena, ArenaConfig, ArenaStats};
pub use buf::{Buf, Slice};

/// Smallest piece of an arena, in bytes, and the alignment of every buffer.
pub const PIECE_MIN: usize = 4096;
/// Largest single buffer, in bytes.
pub const BUF_MAX: usize = 4 << 20;
