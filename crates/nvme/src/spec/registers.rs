//! Controller properties in BAR0 (3.1.3) and what is in them.

use std::time::Duration;

/// Controller Capabilities (3.1.3.1).
pub const CAP: usize = 0x00;
/// Version (3.1.3.2).
pub const VS: usize = 0x08;
/// Interrupt Mask Set (3.1.3.3).
pub const INTMS: usize = 0x0c;
/// Controller Configuration (3.1.3.5).
pub const CC: usize = 0x14;
/// Controller Status (3.1.3.6).
pub const CSTS: usize = 0x1c;
/// Admin Queue Attributes (3.1.3.8).
pub const AQA: usize = 0x24;
/// Admin Submission Queue Base Address (3.1.3.9).
pub const ASQ: usize = 0x28;
/// Admin Completion Queue Base Address (3.1.3.10).
pub const ACQ: usize = 0x30;
/// The first doorbell (PCIe transport 3.1.2.1).
pub const DOORBELLS: usize = 0x1000;

/// What reads of a device that is gone give.
pub const ALL_ONES: u32 = u32::MAX;

/// Controller Capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    fn bits(self, low: u32, len: u32) -> u64 {
        self.0 >> low & ((1 << len) - 1)
    }

    /// Most entries of a queue (MQES counts from zero).
    pub fn queue_entries_max(self) -> u32 {
        self.bits(0, 16) as u32 + 1
    }

    /// Longest time that a change of CC.EN takes (TO, in 500 ms).
    pub fn timeout(self) -> Duration {
        Duration::from_millis(500) * self.bits(24, 8) as u32
    }

    /// Bytes from one doorbell to the next (DSTRD).
    pub fn doorbell_stride(self) -> usize {
        4 << self.bits(32, 4)
    }

    /// Whether the NVM command set is there (CSS, bit 0).
    pub fn has_nvm(self) -> bool {
        self.bits(37, 1) == 1
    }

    /// Smallest memory page, in bytes (MPSMIN).
    pub fn page_min(self) -> u64 {
        4096 << self.bits(48, 4)
    }
}

/// Controller Status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csts(pub u32);

impl Csts {
    /// Ready (RDY).
    pub fn ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// Controller Fatal Status (CFS).
    pub fn fatal(self) -> bool {
        self.0 & 2 != 0
    }

    /// Shutdown processing is complete (SHST = 10b).
    pub fn shutdown_complete(self) -> bool {
        self.0 >> 2 & 3 == 2
    }

    /// What a device that is gone answers.
    pub fn gone(self) -> bool {
        self.0 == ALL_ONES
    }
}

/// Controller Configuration: 4 KiB pages, the NVM command set, round robin, entries of 64 and 16 bytes.
pub mod cc {
    /// Enable.
    pub const EN: u32 = 1;
    /// Shutdown Notification: normal.
    pub const SHN_NORMAL: u32 = 1 << 14;
    /// I/O submission queue entries have 2^6, completion queue entries 2^4 bytes.
    pub const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
}
