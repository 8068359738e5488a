//! The reactor: one thread that polls its devices, fabric, mailboxes and timers in turn, and runs
//! local tasks. Requests are straight-line `async fn`s on it; nothing is shared between reactors but
//! bounded mailboxes (I4).
//!
//! [`Ctx`] is what everything above gets time, randomness and tasks from (I11). Under the simulator
//! the same executor runs on virtual time with a seeded scheduler.

mod clock;
mod ctx;
mod executor;
mod idle;
pub mod mailbox;
mod poller;
pub mod step;
pub mod sync;
mod timer;

pub use ctx::{Ctx, Elapsed, JoinHandle, Scope};
pub use executor::{Idle, Reactor, ReactorConfig, ReactorStats};
pub use mailbox::mailbox;
pub use poller::{Park, Poller};
pub use step::Step;
