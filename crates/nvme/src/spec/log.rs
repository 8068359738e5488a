//! Log pages (5.16.1).

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Log page identifiers.
pub const ERRORS: u8 = 0x01;
pub const SMART: u8 = 0x02;
pub const FIRMWARE: u8 = 0x03;

/// A log page of a known layout.
pub trait LogPage: FromBytes + KnownLayout + Immutable {
    const ID: u8;
}

impl LogPage for ErrorEntry {
    const ID: u8 = ERRORS;
}

impl LogPage for Smart {
    const ID: u8 = SMART;
}

impl LogPage for Firmware {
    const ID: u8 = FIRMWARE;
}

/// Error Information: the newest entry (5.16.1.2).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ErrorEntry {
    /// Number of this error; zero is none.
    pub count: U64,
    pub sqid: U16,
    pub cid: U16,
    pub status: U16,
    pub location: U16,
    pub lba: U64,
    pub nsid: U32,
    pub reserved_28: [u8; 36],
}

const _: () = assert!(size_of::<ErrorEntry>() == 64);

/// SMART / Health Information (5.16.1.3).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Smart {
    /// Bit 0 spare, 1 temperature, 2 reliability, 3 read only, 4 the cache's backup has failed.
    pub critical_warning: u8,
    /// Kelvin.
    pub temperature: [u8; 2],
    /// Per cent.
    pub spare: u8,
    pub spare_threshold: u8,
    /// Per cent of the endurance; may go beyond 100.
    pub used: u8,
    pub reserved_6: [u8; 26],
    /// Thousands of 512 bytes.
    pub data_read: U128,
    pub data_written: U128,
    pub reads: U128,
    pub writes: U128,
    pub busy_minutes: U128,
    pub power_cycles: U128,
    pub power_on_hours: U128,
    pub unsafe_shutdowns: U128,
    pub media_errors: U128,
    pub error_entries: U128,
    pub reserved_192: [u8; 320],
}

const _: () = assert!(size_of::<Smart>() == 512);

impl Smart {
    /// Degrees Celsius.
    pub fn celsius(&self) -> i32 {
        i32::from(u16::from_le_bytes(self.temperature)) - 273
    }
}

/// Firmware Slot Information (5.16.1.4).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Firmware {
    /// Bits 2:0: the slot that runs.
    pub active: u8,
    pub reserved_1: [u8; 7],
    /// Revision of each slot.
    pub slots: [[u8; 8]; 7],
    pub reserved_64: [u8; 448],
}

const _: () = assert!(size_of::<Firmware>() == 512);
