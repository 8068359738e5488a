//! The fixed header of every message after authentication, little-endian, and the bodies behind it: postcard,
//! bounded, nothing left over.

use cobalt_base::checksum::crc32c;
use cobalt_fabric::{BulkDesc, MESSAGE_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "CoBR", little-endian.
const MAGIC: u32 = 0x5242_6f43;
/// Version of the protocol; both ends must have the same.
pub(crate) const VERSION: u16 = 1;
/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 72;
/// Largest body, in bytes.
pub(crate) const BODY_MAX: usize = MESSAGE_MAX - HEADER_LEN;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum Kind {
    Request = 1,
    /// The body is the service's `Result`.
    Reply = 2,
    /// The body is a `Refusal`.
    Refused = 3,
    Ping = 4,
    Pong = 5,
}

/// What a request lends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lent {
    Nothing,
    Data(BulkDesc),
    Room(BulkDesc),
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: U32,
    version: U16,
    kind: U16,
    opcode: U16,
    /// 0 nothing, 1 data, 2 room.
    lent: U16,
    body_len: U32,
    id: U64,
    deadline_us: U64,
    incarnation: U64,
    epoch: U64,
    bulk_key: U64,
    bulk_len: U64,
    /// CRC32C of the body. It is under the next one's protection: combining the two would cost more than both.
    body_crc: U32,
    /// CRC32C of the header up to here.
    header_crc: U32,
}

const _: () = assert!(size_of::<Raw>() == HEADER_LEN);

/// A header that has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) opcode: u16,
    pub(crate) id: u64,
    /// What is left of the caller's time, in microseconds.
    pub(crate) deadline_us: u64,
    pub(crate) incarnation: u64,
    pub(crate) epoch: u64,
    pub(crate) lent: Lent,
}

impl Header {
    pub(crate) fn new(kind: Kind, id: u64, incarnation: u64) -> Header {
        Header { kind, opcode: 0, id, deadline_us: 0, incarnation, epoch: 0, lent: Lent::Nothing }
    }

    /// The message of this header and `body`.
    pub(crate) fn encode(&self, body: &[u8]) -> Vec<u8> {
        assert!(body.len() <= BODY_MAX, "bodies are bounded where they are made");
        let (lent, desc) = match self.lent {
            Lent::Nothing => (0, BulkDesc { key: 0, len: 0 }),
            Lent::Data(desc) => (1, desc),
            Lent::Room(desc) => (2, desc),
        };
        let mut raw = Raw {
            magic: MAGIC.into(),
            version: VERSION.into(),
            kind: (self.kind as u16).into(),
            opcode: self.opcode.into(),
            lent: lent.into(),
            body_len: u32::try_from(body.len()).expect("at most BODY_MAX").into(),
            id: self.id.into(),
            deadline_us: self.deadline_us.into(),
            incarnation: self.incarnation.into(),
            epoch: self.epoch.into(),
            bulk_key: desc.key.into(),
            bulk_len: desc.len.into(),
            body_crc: crc32c(body).into(),
            header_crc: 0.into(),
        };
        raw.header_crc = header_crc(&raw).into();
        let mut message = Vec::with_capacity(HEADER_LEN + body.len());
        message.extend_from_slice(raw.as_bytes());
        message.extend_from_slice(body);
        message
    }

    /// Checks a message and parts it into header and body.
    pub(crate) fn parse(message: &[u8]) -> Result<(Header, &[u8]), String> {
        let (raw, body) =
            Raw::read_from_prefix(message).map_err(|_| format!("a message of {} bytes", message.len()))?;
        if raw.magic.get() != MAGIC {
            return Err(format!("{:#010x} is not the magic of a message", raw.magic.get()));
        }
        if header_crc(&raw) != raw.header_crc.get() {
            return Err("a message's header does not match its checksum".into());
        }
        if raw.version.get() != VERSION {
            return Err(format!("protocol version {}, this end has {VERSION}", raw.version.get()));
        }
        if raw.body_len.get() as usize != body.len() {
            return Err(format!("a body of {} bytes that claims {}", body.len(), raw.body_len.get()));
        }
        if crc32c(body) != raw.body_crc.get() {
            return Err("a message's body does not match its checksum".into());
        }
        let kind = match raw.kind.get() {
            1 => Kind::Request,
            2 => Kind::Reply,
            3 => Kind::Refused,
            4 => Kind::Ping,
            5 => Kind::Pong,
            other => return Err(format!("unknown kind of message {other}")),
        };
        let desc = BulkDesc { key: raw.bulk_key.get(), len: raw.bulk_len.get() };
        let lent = match raw.lent.get() {
            0 => Lent::Nothing,
            1 => Lent::Data(desc),
            2 => Lent::Room(desc),
            other => return Err(format!("unknown kind of loan {other}")),
        };
        let header = Header {
            kind,
            opcode: raw.opcode.get(),
            id: raw.id.get(),
            deadline_us: raw.deadline_us.get(),
            incarnation: raw.incarnation.get(),
            epoch: raw.epoch.get(),
            lent,
        };
        Ok((header, body))
    }
}

fn header_crc(raw: &Raw) -> u32 {
    let bytes = raw.as_bytes();
    crc32c(bytes.get(..HEADER_LEN - size_of::<U32>()).unwrap_or_default())
}

/// A body's bytes.
pub(crate) fn encode_body<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    let bytes = postcard::to_allocvec(value).map_err(|e| e.to_string())?;
    if bytes.len() > BODY_MAX {
        return Err(format!("a body of {} bytes is above the limit of {BODY_MAX}", bytes.len()));
    }
    Ok(bytes)
}

/// A body's value; bytes left over are an error.
pub(crate) fn decode_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|e| e.to_string())?;
    if !rest.is_empty() {
        return Err(format!("{} bytes are left over", rest.len()));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::{BODY_MAX, Header, Kind, Lent, decode_body, encode_body};
    use crate::proto::{cas, ios};
    use cobalt_fabric::BulkDesc;
    use proptest::prelude::{any, prop, proptest};

    fn header() -> Header {
        Header {
            kind: Kind::Request,
            opcode: 0x0101,
            id: 7,
            deadline_us: 5_000_000,
            incarnation: 3,
            epoch: 4,
            lent: Lent::Data(BulkDesc { key: 9, len: 1 << 20 }),
        }
    }

    #[test]
    fn a_message_survives_the_wire_and_no_flipped_bit_does() {
        let message = header().encode(b"body");
        assert_eq!(Header::parse(&message), Ok((header(), &b"body"[..])));
        for bit in 0..message.len() * 8 {
            let mut hurt = message.clone();
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&hurt).is_err(), "bit {bit}");
        }
        for len in 0..message.len() {
            assert!(Header::parse(&message[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn bodies_are_bounded_and_exact() {
        assert!(encode_body(&vec![0_u8; BODY_MAX]).is_err(), "the length takes room too");
        let mut bytes = encode_body(&(1_u32, "x".to_owned())).unwrap();
        assert_eq!(decode_body::<(u32, String)>(&bytes), Ok((1, "x".to_owned())));
        bytes.push(0);
        assert!(decode_body::<(u32, String)>(&bytes).is_err());
    }

    #[test]
    fn the_largest_delete_is_a_message() {
        let longest = cas::DELETE_BYTES_MAX / cas::DELETE_KEYS_MAX;
        for (count, len) in
            [(cas::DELETE_KEYS_MAX, longest), (cas::DELETE_BYTES_MAX / cas::KEY_MAX, cas::KEY_MAX)]
        {
            let command =
                cas::Command::DeleteObjects { bucket: "b".repeat(63), keys: vec![vec![b'k'; len]; count] };
            let session = cobalt_base::SessionId(u64::MAX);
            let commit = cas::Commit { session, request: u64::MAX, acknowledged: u64::MAX - 1, command };
            assert!(encode_body(&commit).is_ok(), "{count} keys of {len} bytes");
        }
    }

    proptest! {
        #[test]
        fn outside_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Header::parse(&bytes);
            let _ = decode_body::<ios::Write>(&bytes);
            let _ = decode_body::<Result<ios::ReadReply, ios::IosError>>(&bytes);
            let _ = decode_body::<Vec<ios::TargetRow>>(&bytes);
            let _ = decode_body::<crate::proto::cas::Query>(&bytes);
            let _ = decode_body::<crate::Refusal>(&bytes);
        }
    }
}
