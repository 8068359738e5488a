//! The block device: read, write, flush, deallocate and identify over owned buffers, with an answer
//! for every operation. Everything that stores bytes goes through here; what is behind it (a file,
//! a block device, memory, an NVMe queue pair) is named by a URI.

#[cfg(feature = "conformance")]
pub mod conformance;
mod device;
mod holder;
mod mem;
mod open;
mod overlay;
mod target;
mod threads;
mod uri;
mod uring;
mod volatile;

pub use device::{Bdev, Device, Done, Identify, Io, IoCounters, IoError, Op, WriteData};
pub use mem::MemBdev;
pub use open::{Engine, OpenError, OpenMode, open_uri, reserve_head};
pub use threads::Threads;
pub use uri::{DeviceKind, DeviceUri, NvmeName, UriError};
pub use uring::Uring;
pub use volatile::VolatileCache;
