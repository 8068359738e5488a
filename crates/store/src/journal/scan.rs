//! Reading the ring after a crash, and the decision what of it counts.
//!
//! The decision is one function over typed inputs, so that a test can run through all of them. It must
//! never take the loss of acknowledged records for a torn tail, nor a torn tail for loss (I6).

use crate::geometry::Region;
use crate::journal::record::{self, HEADER_LEN, Header};
use cobalt_base::{BLOCK_SIZE, checksum::xxh3};
use cobalt_bdev::IoError;
use cobalt_dma::Arena;
use uuid::Uuid;

/// What the superblock says of the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anchor {
    /// Ring offset where redo starts.
    pub offset: u64,
    /// Checksum of the header before it.
    pub chain: u64,
    /// Everything up to here is in the trees.
    pub checkpoint: u64,
    /// Generation of the superblock.
    pub generation: u64,
    pub epoch: u64,
    /// Older epochs' records from here on are void.
    pub epoch_start: u64,
}

/// One whole record, at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub header: Header,
    /// The payload's checksum holds.
    pub whole: bool,
}

/// Why a target must not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Records up to `floor` were durable; the good ones end before, at ring offset `at`.
    Lost { floor: u64, have: u64, at: u64 },
    /// A kept record names a superblock that is not there.
    OldSuperblock { named: u64, have: u64 },
    /// No record names any superblock.
    Unnamed,
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Records to redo, in order.
    pub records: Vec<Header>,
    /// Bytes from the anchor to the end of the last kept record.
    pub used: u64,
    /// Checksum of the last kept header, or the anchor's.
    pub chain: u64,
    pub next_lsn: u64,
    /// Highest generation that a kept record names.
    pub named: u64,
    /// Highest epoch seen anywhere, kept or not.
    pub epoch: u64,
    /// Headers beyond the end that were dropped.
    pub dropped: usize,
}

/// Decides over all records found in the ring, by ring offset.
pub(crate) fn decide(anchor: Anchor, ring: u64, found: &[Found]) -> Result<Kept, Stop> {
    // An empty record that the last mount kept at the end of the older epoch has the lsn where the new one starts,
    // and the new one's first record is chained to it.
    let beyond = |h: &Header| h.first >= anchor.epoch_start + u64::from(h.count == 0);
    let void = |h: &Header| h.epoch < anchor.epoch && beyond(h);
    let at = |offset: u64| {
        let i = found.binary_search_by_key(&offset, |f| f.header.offset).ok()?;
        Some(&found[i])
    };
    let mut kept = Kept {
        records: Vec::new(),
        used: 0,
        chain: anchor.chain,
        next_lsn: anchor.checkpoint + 1,
        named: 0,
        epoch: anchor.epoch,
        dropped: 0,
    };
    while let Some(record) = at((anchor.offset + kept.used) % ring) {
        let header = &record.header;
        let chained = header.chain == kept.chain && header.first == kept.next_lsn;
        if !record.whole || !chained || void(header) || kept.used + header.record_len() > ring {
            break;
        }
        kept.used += header.record_len();
        kept.chain = header.sum;
        kept.next_lsn = header.next_lsn();
        kept.named = kept.named.max(header.named);
        kept.records.push(*header);
    }
    let mut floor = anchor.checkpoint;
    for record in found {
        let header = &record.header;
        kept.epoch = kept.epoch.max(header.epoch);
        if !void(header) {
            // Also a torn record says truly what was durable when it was issued.
            floor = floor.max(header.durable);
            if header.first <= anchor.checkpoint || header.next_lsn() <= kept.next_lsn {
                kept.named = kept.named.max(header.named);
            }
        }
        if header.first >= kept.next_lsn && header.count > 0 {
            kept.dropped += 1;
        }
    }
    if kept.next_lsn - 1 < floor {
        let end = (anchor.offset + kept.used) % ring;
        return Err(Stop::Lost { floor, have: kept.next_lsn - 1, at: end });
    }
    match kept.named {
        0 => Err(Stop::Unnamed),
        named if named > anchor.generation => Err(Stop::OldSuperblock { named, have: anchor.generation }),
        _ => Ok(kept),
    }
}

/// The whole ring in memory, while recovery reads it.
pub(crate) struct Image {
    bytes: Vec<u8>,
    target: Uuid,
}

impl Image {
    /// Reads the ring.
    ///
    /// # Errors
    /// A read error stops recovery: what is there is unknown.
    pub(crate) async fn read(
        meta: &Region,
        arena: &Arena,
        target: Uuid,
        at: u64,
        len: u64,
    ) -> Result<Image, IoError> {
        let most = u64::from(meta.device.identify().transfer_max).min(1 << 20) / BLOCK_SIZE * BLOCK_SIZE;
        let mut bytes = Vec::with_capacity(len as usize);
        while (bytes.len() as u64) < len {
            let piece = most.max(BLOCK_SIZE).min(len - bytes.len() as u64);
            let buf = arena.alloc(piece as usize).await;
            let buf = meta.read(at + bytes.len() as u64, buf).await?;
            bytes.extend_from_slice(&buf);
        }
        Ok(Image { bytes, target })
    }

    /// Every record whose header holds, by ring offset.
    pub(crate) fn records(&self) -> Vec<Found> {
        let ring = self.bytes.len() as u64;
        let mut found = Vec::new();
        for (i, block) in self.bytes.chunks_exact(BLOCK_SIZE as usize).enumerate() {
            if let Ok(header) = Header::parse(block, self.target, i as u64 * BLOCK_SIZE, ring) {
                let whole = xxh3(record::seed(self.target), &self.payload(&header)) == header.payload_sum;
                found.push(Found { header, whole });
            }
        }
        found
    }

    /// A record's payload, around the ring's end.
    pub(crate) fn payload(&self, header: &Header) -> Vec<u8> {
        let from = header.offset as usize + HEADER_LEN;
        let len = header.payload_len as usize;
        let mut out = Vec::with_capacity(len);
        let first = self.bytes.get(from..(from + len).min(self.bytes.len())).unwrap_or_default();
        out.extend_from_slice(first);
        out.extend_from_slice(self.bytes.get(..len - out.len()).unwrap_or_default());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::{Anchor, Found, Stop, decide};
    use crate::journal::record::Header;

    const RING: u64 = 16 * 4096;

    /// Records of one transaction each, lsns from 1 on; record n names generation 1 and is one block.
    fn ring(count: u64) -> Vec<Found> {
        (1..=count)
            .map(|n| Found {
                header: Header {
                    first: n,
                    count: 1,
                    payload_len: 10,
                    offset: (n - 1) * 4096,
                    chain: 100 + n - 1,
                    epoch: 1,
                    durable: n - 1,
                    named: 1,
                    payload_sum: 0,
                    sum: 100 + n,
                },
                whole: true,
            })
            .collect()
    }

    fn anchor() -> Anchor {
        Anchor { offset: 0, chain: 100, checkpoint: 0, generation: 1, epoch: 1, epoch_start: 1 }
    }

    #[test]
    fn every_single_damage_is_told_from_a_torn_tail() {
        for count in 1..6u64 {
            for hurt in 1..=count {
                for torn in [false, true] {
                    let mut found = ring(count);
                    if torn {
                        found[hurt as usize - 1].whole = false;
                    } else {
                        found.remove(hurt as usize - 1);
                    }
                    let verdict = decide(anchor(), RING, &found);
                    // Any follower says that the hurt one was durable; alone at the end it is a torn tail.
                    if hurt == 1 && count == 1 {
                        let unnamed = decide(anchor(), RING, &found);
                        assert_eq!(unnamed, Err(Stop::Unnamed), "{torn}");
                    } else if hurt == count {
                        let kept = verdict.expect("a torn tail");
                        assert_eq!(kept.next_lsn, hurt);
                    } else {
                        assert!(
                            matches!(verdict, Err(Stop::Lost { floor, have, .. })
                                if floor == count - 1 && have == hurt - 1),
                            "{count} {hurt} {torn}: {verdict:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn records_of_an_older_epoch_from_the_new_start_on_are_void() {
        let found = ring(5);
        // The mount after a crash kept lsn 1..=3 and started epoch 2 at lsn 4.
        let anchor = Anchor { epoch: 2, epoch_start: 4, ..anchor() };
        let kept = decide(anchor, RING, &found).expect("void records are not loss");
        assert_eq!((kept.next_lsn, kept.records.len(), kept.dropped), (4, 3, 2));
    }

    #[test]
    fn an_empty_record_at_the_end_of_the_older_epoch_stays() {
        let mut found = ring(5);
        // The mount after a crash kept lsn 1..=3 and an empty record, which has no lsn of its own.
        found[3].header.count = 0;
        found[4].header.first = 4;
        found[4].header.epoch = 2;
        found[4].header.durable = 3;
        let anchor = Anchor { epoch: 2, epoch_start: 4, ..anchor() };
        let kept = decide(anchor, RING, &found).expect("the new epoch's record is chained to the empty one");
        assert_eq!((kept.next_lsn, kept.records.len(), kept.dropped), (5, 5, 0));
    }

    #[test]
    fn a_record_of_another_past_is_not_redone_although_its_numbers_fit() {
        for hurt in 2..5usize {
            let mut found = ring(5);
            // The write of the record was lost; what lies there is whole, and has the lsn and the place.
            found[hurt - 1].header.chain ^= 1;
            let verdict = decide(anchor(), RING, &found);
            let have = hurt as u64 - 1;
            assert!(matches!(verdict, Err(Stop::Lost { floor: 4, have: h, .. }) if h == have), "{verdict:?}");
        }
        let mut found = ring(5);
        found[4].header.chain ^= 1;
        assert_eq!(decide(anchor(), RING, &found).expect("nothing says that it was durable").next_lsn, 5);
        let elsewhere = Anchor { chain: 99, ..anchor() };
        assert!(decide(elsewhere, RING, &ring(5)).is_err());
    }

    #[test]
    fn an_older_superblock_than_a_kept_record_names_stops() {
        let mut found = ring(4);
        found[2].header.named = 2;
        found[3].header.named = 2;
        assert_eq!(decide(anchor(), RING, &found), Err(Stop::OldSuperblock { named: 2, have: 1 }));
        let named = Anchor { generation: 2, ..anchor() };
        assert!(decide(named, RING, &found).is_ok());
    }

    #[test]
    fn records_before_the_checkpoint_are_not_needed_but_still_name() {
        let mut found = ring(4);
        found.remove(1);
        let anchor = Anchor { offset: 2 * 4096, chain: 102, checkpoint: 2, ..anchor() };
        let kept = decide(anchor, RING, &found).expect("record 2 is in the trees");
        assert_eq!((kept.next_lsn, kept.records.len(), kept.named), (5, 2, 1));
    }
}
