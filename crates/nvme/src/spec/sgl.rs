//! Scatter Gather Lists (4.1.3): a command's bytes in pieces of any length.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// SGL Descriptor types and sub types, as byte 15 has them: of each, the sub type "address".
pub const DATA_BLOCK: u8 = 0x00;
pub const SEGMENT: u8 = 0x20;
pub const LAST_SEGMENT: u8 = 0x30;

/// SGL Descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SglDescriptor {
    pub address: U64,
    /// Bytes of the data block, or of the segment: of descriptors, 16 each.
    pub len: U32,
    pub reserved_12: [u8; 3],
    /// Type (bits 7:4) and sub type.
    pub kind: u8,
}

const _: () = assert!(size_of::<SglDescriptor>() == 16);

impl SglDescriptor {
    /// Of `len` bytes at `address`.
    pub fn new(kind: u8, address: u64, len: u32) -> SglDescriptor {
        SglDescriptor { address: address.into(), len: len.into(), reserved_12: [0; 3], kind }
    }
}
