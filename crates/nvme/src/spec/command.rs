//! Submission queue entries (4.1.1).

use super::sgl::SglDescriptor;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Opcodes of the admin command set (5).
pub mod admin {
    pub const DELETE_IO_SQ: u8 = 0x00;
    pub const CREATE_IO_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_IO_CQ: u8 = 0x04;
    pub const CREATE_IO_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNC_EVENT: u8 = 0x0c;
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
}

/// Opcodes of the NVM command set (NVM 3.2).
pub mod nvm {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Features (5.27.1).
pub mod feature {
    pub const VOLATILE_WRITE_CACHE: u32 = 0x06;
    pub const NUMBER_OF_QUEUES: u32 = 0x07;
    pub const ASYNC_EVENT_CONFIG: u32 = 0x0b;
}

/// One submission queue entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Command {
    pub opcode: u8,
    /// FUSE, which is zero: no fused commands. PSDT: zero, PRPs, or [`SGL`].
    pub flags: u8,
    pub cid: U16,
    pub nsid: U32,
    pub cdw2: [U32; 2],
    pub metadata: U64,
    /// The data pointer: two PRP entries, or one SGL descriptor.
    pub prp1: U64,
    pub prp2: U64,
    pub cdw10: U32,
    pub cdw11: U32,
    pub cdw12: U32,
    pub cdw13: U32,
    pub cdw14: U32,
    pub cdw15: U32,
}

const _: () = assert!(size_of::<Command>() == 64);

impl Command {
    /// A command with nothing but its opcode and namespace.
    pub fn new(opcode: u8, nsid: u32) -> Command {
        Command { opcode, nsid: nsid.into(), ..Command::default() }
    }

    /// Its logical blocks, for reads, writes and write zeroes (NVM 3.2.4): the first, and how many.
    pub fn blocks(mut self, slba: u64, count: u32) -> Command {
        self.cdw10 = (slba as u32).into();
        self.cdw11 = ((slba >> 32) as u32).into();
        self.cdw12 = (count - 1).into(); // NLB counts from zero.
        self
    }

    /// The first logical block.
    pub fn slba(&self) -> u64 {
        u64::from(self.cdw10.get()) | u64::from(self.cdw11.get()) << 32
    }

    /// How many logical blocks.
    pub fn block_count(&self) -> u32 {
        (self.cdw12.get() & 0xffff) + 1
    }

    /// Its data pointer is an SGL's first descriptor.
    pub fn set_sgl(&mut self, first: SglDescriptor) {
        self.flags = SGL;
        self.prp1 = first.address;
        self.prp2 = (u64::from(first.len.get()) | u64::from(first.kind) << 56).into();
    }

    /// The first descriptor of its SGL.
    pub fn sgl(&self) -> SglDescriptor {
        let mut bytes = [0; size_of::<SglDescriptor>()];
        bytes[..8].copy_from_slice(self.prp1.as_bytes());
        bytes[8..].copy_from_slice(self.prp2.as_bytes());
        SglDescriptor::read_from_bytes(&bytes).expect("a descriptor's bytes")
    }

    /// Durable when complete (FUA).
    pub fn fua(mut self) -> Command {
        self.cdw12.set(self.cdw12.get() | FUA);
        self
    }
}

/// In the flags, PSDT 01b: the data pointer is an SGL; no metadata, so what it says of its pointer matters not.
pub const SGL: u8 = 1 << 6;
/// Force Unit Access, in CDW12.
pub const FUA: u32 = 1 << 30;
/// Deallocate, in CDW11 of Dataset Management.
pub const DEALLOCATE: u32 = 1 << 2;

/// A range of Dataset Management (NVM 3.2.3).
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct DsmRange {
    pub attributes: U32,
    /// Logical blocks.
    pub len: U32,
    pub slba: U64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);
