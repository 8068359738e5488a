//! Named limits of the driver, and a tiny set for tests.

use std::time::Duration;

/// Most commands of an I/O queue pair: a command identifier has 8 bits for its slot and 8 for the slot's generation.
pub const SLOTS_MAX: u32 = 256;
/// Commands of the admin queue pair.
pub const ADMIN_SLOTS: u32 = 16;
/// Entries of a slot's PRP list: one page.
pub const PRP_LIST_MAX: usize = 512;
/// Descriptors of a slot's SGL, in the same page.
pub const SGL_LIST_MAX: usize = 256;

/// What the driver may use, and how long it waits.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Commands in flight of an I/O queue pair, at most [`SLOTS_MAX`].
    pub depth: u32,
    /// Shadow doorbells where they are offered.
    pub shadow_doorbells: bool,
    /// SGLs where they are offered.
    pub sgls: bool,
    /// How long a read, write or deallocation may take before it is aborted.
    pub io_time: Duration,
    /// The same for a flush.
    pub flush_time: Duration,
    /// How long an admin command may take.
    pub admin_time: Duration,
    /// How long an aborted command may take to end, before the controller is reset.
    pub abort_time: Duration,
    /// Times that a read or a write is issued again where its status allows it.
    pub retries: u8,
    /// Time before a command is issued again.
    pub retry_after: Duration,
    /// Resets in a row without one command that succeeded, before the controller is given up.
    pub resets: u32,
    /// Least time that a controller has to become ready or to stop, whatever CAP.TO says.
    pub ready_time: Duration,
    /// How long a shutdown may take.
    pub shutdown_time: Duration,
    /// How often the state of the controller is looked at while commands are in flight.
    pub health_every: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            depth: SLOTS_MAX,
            shadow_doorbells: true,
            sgls: true,
            io_time: Duration::from_secs(30),
            flush_time: Duration::from_secs(60),
            admin_time: Duration::from_secs(30),
            abort_time: Duration::from_secs(8),
            retries: 3,
            retry_after: Duration::from_millis(100),
            resets: 3,
            ready_time: Duration::from_secs(10),
            shutdown_time: Duration::from_secs(10),
            health_every: Duration::from_millis(500),
        }
    }
}

impl Limits {
    /// For tests: little of everything, so that every limit is met.
    pub fn tiny() -> Limits {
        Limits {
            depth: 8,
            shadow_doorbells: true,
            sgls: true,
            io_time: Duration::from_millis(20),
            flush_time: Duration::from_millis(30),
            admin_time: Duration::from_millis(20),
            abort_time: Duration::from_millis(5),
            retries: 2,
            retry_after: Duration::from_micros(50),
            resets: 3,
            ready_time: Duration::from_millis(20),
            shutdown_time: Duration::from_millis(20),
            health_every: Duration::from_millis(2),
        }
    }
}
