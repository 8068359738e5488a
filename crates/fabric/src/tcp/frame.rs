//! The fixed header of every frame, little-endian. Lengths are checked here, before anything is read or allocated for them.

use crate::limits::{FRAME_DATA_MAX, WINDOW};
use crate::{MESSAGE_MAX, STRANGER_MESSAGE_MAX};
use cobalt_base::checksum::crc32c;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "CoBF", little-endian.
const MAGIC: u32 = 0x4642_6f43;
/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 40;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum Kind {
    /// `length` bytes follow.
    Message = 1,
    /// Asks for `length` bytes at `offset` of the loan `key`.
    PullRequest = 2,
    /// Answers the request `tag`; `length` bytes follow.
    PullData = 3,
    /// Answers the request `tag`: not lent.
    PullError = 4,
    /// `length` bytes for `offset` of the loan `key` follow.
    PushData = 5,
    /// The push `tag` is in memory.
    PushDone = 6,
    /// The push `tag` was not lent room.
    PushError = 7,
    /// The peer may send `length` messages more.
    Credit = 8,
    /// Nothing follows any more.
    Close = 9,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: U32,
    kind: U16,
    flags: U16,
    length: U32,
    /// CRC32C of the header with this field zero.
    crc: U32,
    key: U64,
    offset: U64,
    tag: U64,
}

const _: () = assert!(size_of::<Raw>() == HEADER_LEN);

/// A header that has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) length: usize,
    pub(crate) key: u64,
    pub(crate) offset: u64,
    pub(crate) tag: u64,
}

impl Header {
    pub(crate) fn new(kind: Kind, length: usize) -> Header {
        Header { kind, length, key: 0, offset: 0, tag: 0 }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let length = u32::try_from(self.length).expect("frames are bounded far below 4 GiB");
        let mut raw = Raw {
            magic: MAGIC.into(),
            kind: (self.kind as u16).into(),
            flags: 0.into(),
            length: length.into(),
            crc: 0.into(),
            key: self.key.into(),
            offset: self.offset.into(),
            tag: self.tag.into(),
        };
        raw.crc = crc32c(raw.as_bytes()).into();
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Checks a header; `admitted` says whether the peer has proved who it is.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN], admitted: bool) -> Result<Header, String> {
        let mut raw = Raw::read_from_bytes(bytes).map_err(|_| "short header".to_owned())?;
        if raw.magic.get() != MAGIC {
            return Err(format!("{:#010x} is not the magic of a frame", raw.magic.get()));
        }
        let crc = raw.crc.get();
        raw.crc = 0.into();
        if crc32c(raw.as_bytes()) != crc {
            return Err("a frame's header does not match its checksum".into());
        }
        if raw.flags.get() != 0 {
            return Err(format!("unknown flags {:#x}", raw.flags.get()));
        }
        let kind = kind_of(raw.kind.get()).ok_or_else(|| format!("unknown frame kind {}", raw.kind.get()))?;
        let length = raw.length.get() as usize;
        let (min, max) = match kind {
            Kind::Message => (0, if admitted { MESSAGE_MAX } else { STRANGER_MESSAGE_MAX }),
            Kind::PullRequest | Kind::PullData | Kind::PushData => (1, FRAME_DATA_MAX),
            Kind::Credit => (1, usize::try_from(WINDOW).unwrap_or(usize::MAX)),
            Kind::PullError | Kind::PushDone | Kind::PushError | Kind::Close => (0, 0),
        };
        if !(min..=max).contains(&length) {
            return Err(format!("a {kind:?} frame of length {length}; {min} to {max} are allowed"));
        }
        if !admitted && !matches!(kind, Kind::Message | Kind::Credit | Kind::Close) {
            return Err(format!("a {kind:?} frame before the peer proved who it is"));
        }
        Ok(Header { kind, length, key: raw.key.get(), offset: raw.offset.get(), tag: raw.tag.get() })
    }
}

fn kind_of(number: u16) -> Option<Kind> {
    use Kind::{Close, Credit, Message, PullData, PullError, PullRequest, PushData, PushDone, PushError};
    [Message, PullRequest, PullData, PullError, PushData, PushDone, PushError, Credit, Close]
        .into_iter()
        .find(|kind| *kind as u16 == number)
}

#[cfg(test)]
mod tests {
    use super::{HEADER_LEN, Header, Kind};
    use proptest::prelude::{any, proptest};

    #[test]
    fn a_header_survives_the_wire_and_no_flipped_bit_does() {
        let header = Header { kind: Kind::PushData, length: 4097, key: 3, offset: 1 << 40, tag: 9 };
        let bytes = header.encode();
        assert_eq!(Header::parse(&bytes, true), Ok(header));
        assert!(Header::parse(&bytes, false).is_err(), "no bulk from strangers");
        for bit in 0..HEADER_LEN * 8 {
            let mut hurt = bytes;
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&hurt, true).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn absurd_lengths_are_refused() {
        for (kind, length) in [
            (Kind::Message, (64 << 10) + 1),
            (Kind::PullRequest, (1 << 20) + 1),
            (Kind::PullData, 0),
            (Kind::Credit, 33),
        ] {
            assert!(Header::parse(&Header::new(kind, length).encode(), true).is_err(), "{kind:?} {length}");
        }
        assert!(Header::parse(&Header::new(Kind::Message, 513).encode(), false).is_err());
    }

    proptest! {
        #[test]
        fn random_headers_never_panic(bytes in any::<[u8; HEADER_LEN]>(), admitted: bool) {
            let _ = Header::parse(&bytes, admitted);
        }
    }
}
