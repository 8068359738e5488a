//! What a software controller is, and what it does wrong.

use std::time::Duration;

/// A namespace of a software controller.
#[derive(Clone, Debug)]
pub struct SoftNamespace {
    /// Bytes of a logical block, as a power of two.
    pub block_shift: u8,
    pub blocks: u64,
    /// Bytes of metadata with each block.
    pub metadata: u16,
    /// 0 is NVM, 2 zoned.
    pub command_set: u8,
}

impl SoftNamespace {
    /// Of `bytes` bytes.
    pub fn new(block_shift: u8, bytes: u64) -> SoftNamespace {
        SoftNamespace { block_shift, blocks: bytes >> block_shift, metadata: 0, command_set: 0 }
    }
}

/// What the controller offers.
#[derive(Clone, Debug)]
pub struct SoftConfig {
    pub namespaces: Vec<SoftNamespace>,
    /// Most entries of a queue.
    pub queue_entries: u32,
    pub mdts: u8,
    /// Doorbell stride, as in CAP.
    pub dstrd: u8,
    pub volatile_cache: bool,
    pub shadow_doorbells: bool,
    /// As in Identify: bits 1:0 whether it takes SGLs, bits 15:8 how many descriptors it recommends at most.
    pub sgls: u32,
    pub deallocates: bool,
    /// Smallest page, as in CAP.MPSMIN.
    pub page_shift: u8,
    /// What a command takes; `None` completes within the doorbell's write.
    pub latency: Option<(Duration, Duration)>,
    /// The state that it is found in.
    pub found: Found,
    pub faults: Faults,
    /// I/O commands are completed without being done: what is left is the driver's own cost.
    pub hollow: bool,
}

impl SoftConfig {
    /// One namespace of `bytes` bytes in blocks of 4 KiB, without faults.
    pub fn new(bytes: u64) -> SoftConfig {
        SoftConfig {
            namespaces: vec![SoftNamespace::new(12, bytes)],
            queue_entries: 1024,
            mdts: 5,
            dstrd: 0,
            volatile_cache: true,
            shadow_doorbells: false,
            sgls: 0,
            deallocates: true,
            page_shift: 0,
            latency: Some((Duration::from_micros(5), Duration::from_micros(80))),
            found: Found::Disabled,
            faults: Faults::default(),
            hollow: false,
        }
    }
}

/// The state of a controller before the driver comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Found {
    #[default]
    Disabled,
    /// Enabled, with queues in somebody else's memory.
    Running,
    /// Enabled a moment ago, not ready yet.
    Starting,
    /// Controller Fatal Status.
    Fatal,
    /// CC.EN is cleared in vain; only a function reset helps.
    Stuck,
    /// Reads give all ones, or zeros.
    AllOnes,
    Zeros,
}

/// Faults, each so many times in a million commands, unless something else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A random status, half of them with DNR.
    pub status: u32,
    /// The same of flushes and of writes with FUA, on top.
    pub durable: u32,
    /// Never completes. A read may still write its memory until the controller is stopped.
    pub hang: u32,
    /// Takes longer than the driver's patience, and completes.
    pub late: u32,
    /// Completes twice, the second time a little later.
    pub duplicate: u32,
    /// Completes with an identifier that is nobody's.
    pub wrong_cid: u32,
    /// Completes with another queue's number, or a head beyond the queue.
    pub wrong_queue: u32,
    /// The controller fails (CFS), and forgets what its cache held.
    pub fatal: u32,
    /// Its power fails for a moment: it is disabled, and what its cache held is lost.
    pub power: u32,
    /// The device is pulled out: all ones from then on.
    pub removed: u32,
    /// It raises an event.
    pub event: u32,
    /// It refuses to be asked for events, always.
    pub events_refused: bool,
    /// An admin command is never answered; its page may still be written until the controller is stopped.
    pub admin_hang: u32,
    /// It ends with a random status, and was not done.
    pub admin_status: u32,
    /// Its completion has an identifier that is nobody's, another queue's number or a head beyond the queue, or comes twice.
    pub admin_illegal: u32,
    /// The phase bit of a completion is wrong.
    pub phase: u32,
    /// Per cent of aborts that work.
    pub aborts_work: u32,
    /// Per cent of disables that do not end, function resets that fail, and attempts to switch bus mastering off that fail.
    pub disable_stuck: u32,
    pub reset_fails: u32,
    pub bus_master_stuck: u32,
    pub unmap_fails: u32,
    /// FUA is ignored.
    pub fua_ignored: bool,
}

impl Faults {
    /// Whether there are none; how aborts end is no fault.
    pub fn healthy(&self) -> bool {
        *self == Faults { aborts_work: self.aborts_work, ..Faults::default() }
    }
}
