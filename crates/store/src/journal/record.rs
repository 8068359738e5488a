//! The header of a journal record, and what is checked of it.
//!
//! A record is a header and the encoded transactions of one group commit, padded to 4 KiB. Its checksums
//! are seeded from the superblock and it carries its own ring offset, so that no payload and no record
//! of another target or place passes for it.

use crate::superblock::COUNT_MAX;
use cobalt_base::{BLOCK_SIZE, Corrupt, checksum::xxh3};
use cobalt_dma::BUF_MAX;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const MAGIC: [u8; 8] = *b"COBALTJR";

/// The seed of a target's journal checksums.
pub(crate) fn seed(target: Uuid) -> u64 {
    xxh3(0x6a6f_7572_6e61_6c31, target.as_bytes())
}

/// A record's header, in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Lsn of the first transaction; an empty record has the lsn that is next.
    pub first: u64,
    /// Transactions.
    pub count: u32,
    /// Bytes of payload.
    pub payload_len: u32,
    /// Where the record begins in the ring.
    pub offset: u64,
    /// Checksum of the previous record's header.
    pub chain: u64,
    /// Mount that wrote it.
    pub epoch: u64,
    /// Everything up to here was durable when the record was issued.
    pub durable: u64,
    /// The highest superblock generation named up to and in this record.
    pub named: u64,
    pub payload_sum: u64,
    /// Checksum of this header; the next record chains to it.
    pub sum: u64,
}

/// Whether a record may begin with these bytes: most blocks of a ring are told by that.
pub(crate) fn may_be(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Size of the header on disk.
pub(crate) const HEADER_LEN: usize = 128;
/// Longest record, in bytes: what one buffer holds. It bounds what recovery has in memory.
pub(crate) const RECORD_MAX: u64 = BUF_MAX as u64;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    target: [u8; 16],
    first: U64,
    last: U64,
    count: U32,
    payload_len: U32,
    offset: U64,
    chain: U64,
    epoch: U64,
    durable: U64,
    named: U64,
    payload_sum: U64,
    rest: [u8; 24],
    sum: U64,
}

const _: () = assert!(size_of::<Disk>() == HEADER_LEN);

impl Header {
    /// The lsn that follows this record.
    pub(crate) fn next_lsn(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }

    /// Bytes of the whole record in the ring.
    pub(crate) fn record_len(&self) -> u64 {
        record_len(self.payload_len as usize)
    }

    /// Writes the header over the first bytes of `out` and returns its checksum.
    pub(crate) fn encode(&self, target: Uuid, out: &mut [u8]) -> u64 {
        let mut disk = Disk {
            magic: MAGIC,
            target: *target.as_bytes(),
            first: self.first.into(),
            last: (self.next_lsn() - 1).into(),
            count: self.count.into(),
            payload_len: self.payload_len.into(),
            offset: self.offset.into(),
            chain: self.chain.into(),
            epoch: self.epoch.into(),
            durable: self.durable.into(),
            named: self.named.into(),
            payload_sum: self.payload_sum.into(),
            rest: [0; 24],
            sum: U64::ZERO,
        };
        let sum = xxh3(seed(target), disk.as_bytes());
        disk.sum = sum.into();
        out[..HEADER_LEN].copy_from_slice(disk.as_bytes());
        sum
    }

    /// Reads the header of the record at ring byte `offset`; `ring` is the ring's length.
    ///
    /// # Errors
    /// [`Corrupt`] with the check that failed.
    pub(crate) fn parse(bytes: &[u8], target: Uuid, offset: u64, ring: u64) -> Result<Header, Corrupt> {
        let bad = |why: String| Corrupt::new("journal record", offset, why);
        let (mut disk, _) = Disk::read_from_prefix(bytes).map_err(|_| bad("shorter than a header".into()))?;
        if disk.magic != MAGIC {
            return Err(bad(format!("magic is {:02x?}", disk.magic)));
        }
        let found = disk.sum.get();
        disk.sum = U64::ZERO;
        let computed = xxh3(seed(target), disk.as_bytes());
        if found != computed {
            return Err(bad(format!("header checksum is {found:016x}, its bytes give {computed:016x}")));
        }
        let header = Header {
            first: disk.first.get(),
            count: disk.count.get(),
            payload_len: disk.payload_len.get(),
            offset: disk.offset.get(),
            chain: disk.chain.get(),
            epoch: disk.epoch.get(),
            durable: disk.durable.get(),
            named: disk.named.get(),
            payload_sum: disk.payload_sum.get(),
            sum: found,
        };
        if disk.target != *target.as_bytes() {
            return Err(bad("belongs to another target".into()));
        }
        if header.offset != offset {
            return Err(bad(format!("says that it lies at {:#x}", header.offset)));
        }
        let last = header.first.checked_add(u64::from(header.count)).and_then(|next| next.checked_sub(1));
        if header.first == 0
            || last != Some(disk.last.get())
            || header.durable >= header.first
            || [header.first, header.epoch, header.named].iter().any(|count| *count > COUNT_MAX)
        {
            return Err(bad("its lsns do not agree".into()));
        }
        if header.record_len() > ring.min(RECORD_MAX) {
            return Err(bad(format!("is longer ({} bytes) than a record can be", header.record_len())));
        }
        Ok(header)
    }
}

/// Bytes that a record with this much payload takes.
pub(crate) fn record_len(payload: usize) -> u64 {
    ((HEADER_LEN + payload) as u64).next_multiple_of(BLOCK_SIZE)
}

#[cfg(test)]
mod tests {
    use super::{HEADER_LEN, Header};
    use uuid::Uuid;

    #[test]
    fn every_flipped_bit_of_a_header_is_seen_and_so_is_another_place() {
        let target = Uuid::from_u128(77);
        let mut header = Header {
            first: 9,
            count: 3,
            payload_len: 100,
            offset: 8192,
            chain: 5,
            epoch: 2,
            durable: 8,
            named: 1,
            payload_sum: 4,
            sum: 0,
        };
        let mut bytes = vec![0; HEADER_LEN];
        header.sum = header.encode(target, &mut bytes);
        assert_eq!(Header::parse(&bytes, target, 8192, 65_536), Ok(header));
        assert!(Header::parse(&bytes, target, 4096, 65_536).is_err());
        assert!(Header::parse(&bytes, Uuid::from_u128(78), 8192, 65_536).is_err());
        for at in 0..HEADER_LEN {
            for bit in 0..8 {
                let mut hurt = bytes.clone();
                hurt[at] ^= 1 << bit;
                assert!(Header::parse(&hurt, target, 8192, 65_536).is_err(), "byte {at} bit {bit}");
            }
        }
    }
}
