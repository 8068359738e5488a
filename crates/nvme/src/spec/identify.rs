//! Identify data (5.17.2): what a controller and a namespace say of themselves.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of every Identify data structure.
pub const LEN: usize = 4096;

/// Controller or Namespace Structure (CNS) values.
pub mod cns {
    pub const NAMESPACE: u32 = 0x00;
    pub const CONTROLLER: u32 = 0x01;
    pub const ACTIVE_NAMESPACES: u32 = 0x02;
    pub const NAMESPACE_DESCRIPTORS: u32 = 0x03;
}

/// Identify Controller (5.17.2.1).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct IdentifyController {
    pub vid: U16,
    pub ssvid: U16,
    /// Serial number, in ASCII, padded with spaces.
    pub sn: [u8; 20],
    /// Model number, likewise.
    pub mn: [u8; 40],
    /// Firmware revision, likewise.
    pub fr: [u8; 8],
    pub reserved_72: [u8; 5],
    /// Maximum Data Transfer Size: a power of two of the smallest memory page; zero is no limit.
    pub mdts: u8,
    pub cntlid: U16,
    pub ver: U32,
    pub rtd3r: U32,
    /// Longest time that a shutdown takes, in microseconds.
    pub rtd3e: U32,
    pub oaes: U32,
    pub reserved_96: [u8; 160],
    /// Optional admin commands; bit 8 is Doorbell Buffer Config.
    pub oacs: U16,
    /// Abort commands at a time, counted from zero.
    pub acl: u8,
    /// Asynchronous Event Requests at a time, counted from zero.
    pub aerl: u8,
    pub reserved_260: [u8; 252],
    /// Submission queue entry size: smallest and largest, as powers of two.
    pub sqes: u8,
    pub cqes: u8,
    pub maxcmd: U16,
    /// Number of namespaces: the highest namespace identifier.
    pub nn: U32,
    /// Optional NVM commands: bit 2 is Dataset Management, bit 3 Write Zeroes.
    pub oncs: U16,
    pub fuses: U16,
    pub fna: u8,
    /// Bit 0: there is a volatile write cache.
    pub vwc: u8,
    pub awun: U16,
    /// Blocks that are written whole or not at all when the power fails, counted from zero.
    pub awupf: U16,
    pub nvscc: u8,
    pub nwpc: u8,
    pub reserved_532: [u8; 4],
    /// SGLs for NVM commands: bits 1:0 whether, bits 15:8 the recommended most descriptors of a command (zero: any).
    pub sgls: U32,
    pub reserved_540: [u8; 3556],
}

const _: () = assert!(size_of::<IdentifyController>() == LEN);
const _: () = assert!(std::mem::offset_of!(IdentifyController, mdts) == 77);
const _: () = assert!(std::mem::offset_of!(IdentifyController, rtd3e) == 88);
const _: () = assert!(std::mem::offset_of!(IdentifyController, oacs) == 256);
const _: () = assert!(std::mem::offset_of!(IdentifyController, sqes) == 512);
const _: () = assert!(std::mem::offset_of!(IdentifyController, oncs) == 520);
const _: () = assert!(std::mem::offset_of!(IdentifyController, awupf) == 528);
const _: () = assert!(std::mem::offset_of!(IdentifyController, sgls) == 536);

impl IdentifyController {
    /// Most SGL descriptors of a command; zero where it takes no SGLs. Whether it wants data blocks at double words (10b) or at
    /// any byte (01b) matters not for whole pages; what 11b wants is not said.
    pub fn sgl_descriptors(&self) -> u32 {
        let sgls = self.sgls.get();
        match (sgls & 3, sgls >> 8 & 0xff) {
            (0 | 3, _) => 0,
            (_, 0) => u32::MAX,
            (_, most) => most,
        }
    }
}

/// Identify Namespace (NVM 4.1.5.1).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size, in logical blocks.
    pub nsze: U64,
    pub ncap: U64,
    pub nuse: U64,
    /// Bit 1: `nawupf` holds for this namespace.
    pub nsfeat: u8,
    /// Formats that there are, counted from zero.
    pub nlbaf: u8,
    /// The format in use: bits 3:0 and 6:5; bit 4: metadata behind each block.
    pub flbas: u8,
    pub mc: u8,
    pub dpc: u8,
    pub dps: u8,
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    pub dlfeat: u8,
    pub nawun: U16,
    pub nawupf: U16,
    pub reserved_38: [u8; 66],
    pub nguid: [u8; 16],
    pub eui64: [u8; 8],
    pub lbaf: [LbaFormat; 64],
    pub reserved_384: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyNamespace>() == LEN);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, nawupf) == 36);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, nguid) == 104);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, lbaf) == 128);

impl IdentifyNamespace {
    /// The format in use.
    pub fn format(&self) -> LbaFormat {
        let index = usize::from(self.flbas & 0xf | self.flbas >> 5 << 4 & 0x30);
        self.lbaf[index]
    }
}

/// LBA Format (NVM 4.1.5.1).
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct LbaFormat {
    /// Bytes of metadata of each block.
    pub ms: U16,
    /// Bytes of a block, as a power of two.
    pub lbads: u8,
    pub rp: u8,
}

/// Namespace Identification Descriptor types (5.17.2.3).
pub mod descriptor {
    /// Command Set Identifier.
    pub const CSI: u8 = 4;
}

/// The command set of a namespace, from its identification descriptors: 0 is NVM, 1 key-value, 2 zoned.
pub fn command_set(descriptors: &[u8]) -> u8 {
    let mut rest = descriptors;
    while let [kind, len, _, _, tail @ ..] = rest {
        if *kind == 0 || tail.len() < usize::from(*len) {
            break;
        }
        if *kind == descriptor::CSI && *len == 1 {
            return tail[0];
        }
        rest = &tail[usize::from(*len)..];
    }
    0
}

/// Text of a field that is padded with spaces; what is not printable becomes a question mark.
pub fn text(field: &[u8]) -> String {
    let clean = field.iter().map(|b| if (0x20..0x7f).contains(b) { char::from(*b) } else { '?' });
    clean.collect::<String>().trim_end_matches([' ', '?']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::{IdentifyController, command_set, text};
    use zerocopy::FromZeros;

    #[test]
    fn descriptors_of_any_kind_are_walked_and_never_past_their_end() {
        assert_eq!(command_set(&[]), 0);
        assert_eq!(command_set(&[0; 64]), 0);
        assert_eq!(command_set(&[4, 1, 0, 0, 2]), 2);
        assert_eq!(command_set(&[1, 2, 0, 0, 9, 9, 4, 1, 0, 0, 1, 0, 0, 0, 0]), 1);
        assert_eq!(command_set(&[4, 1, 0, 0]), 0, "cut off");
        assert_eq!(command_set(&[1, 255, 0, 0, 4, 1, 0, 0, 2]), 0, "longer than the page");
    }

    #[test]
    fn sgls_are_taken_where_their_alignment_is_known_and_as_many_as_are_wanted() {
        let told = |sgls: u32| {
            let mut page = IdentifyController::new_zeroed();
            page.sgls = sgls.into();
            page.sgl_descriptors()
        };
        assert_eq!([told(0), told(1), told(2), told(3)], [0, u32::MAX, u32::MAX, 0]);
        assert_eq!(told(0x0701), 7);
        assert_eq!(told(0x0700), 0);
        assert_eq!(told(0x000f_0002), u32::MAX, "bit buckets, metadata and longer lists are of no use here");
    }

    #[test]
    fn names_are_printable() {
        assert_eq!(text(b"S4XX        "), "S4XX");
        assert_eq!(text(b"a\x1b[31mb\0\0\0"), "a?[31mb");
    }
}
