//! What the ring holds after a crash, gathered record by record.
//!
//! Good records are followed from the place that the superblock gives; then the rest of the ring is looked through for
//! what its headers prove. The decision is the table's ([`crate::journal::table`]): it never takes the loss of
//! acknowledged records for a torn tail, nor a torn tail for loss (I6). Nothing here grows with the ring.

use crate::intent::{self, Intent};
use crate::journal::reader::Reader;
use crate::journal::record::Header;
use crate::journal::table::{Fact, Facts};
use crate::superblock::Superblock;
use cobalt_base::BLOCK_SIZE;
use cobalt_base::canary::{Canary, planted};
use cobalt_bdev::IoError;

/// What the superblock says of the journal.
#[derive(Clone, Copy, Debug, Default)]
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
    /// Older epochs' records from here on are void; what is before was durable when the superblock was written.
    pub epoch_start: u64,
}

impl From<&Superblock> for Anchor {
    fn from(sb: &Superblock) -> Anchor {
        Anchor {
            offset: sb.journal.offset,
            chain: sb.journal.chain,
            checkpoint: sb.checkpoint_lsn.0,
            generation: sb.generation,
            epoch: sb.mount_epoch,
            epoch_start: sb.epoch_start.0,
        }
    }
}

/// The ring as far as it was looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survey {
    anchor: Anchor,
    ring: u64,
    /// Bytes from the anchor to the end of the last good record.
    pub used: u64,
    /// Checksum of the last good header, or the anchor's.
    pub chain: u64,
    /// The lsn after the good records.
    pub next_lsn: u64,
    /// Highest generation that a record which counts names.
    pub named: u64,
    /// Highest generation that any header names.
    pub named_anywhere: u64,
    /// Everything up to here was durable.
    pub floor: u64,
    /// Highest epoch seen anywhere, good or not.
    pub epoch: u64,
    /// Good records that change the trees: to name a superblock does not.
    pub changes: u64,
    /// Headers with transactions beyond the end.
    pub beyond: u64,
    /// A record that was durable is lost, although no lsn is: an empty one.
    pub gap: bool,
}

impl Survey {
    pub(crate) fn new(anchor: Anchor, ring: u64) -> Survey {
        Survey {
            anchor,
            ring,
            used: 0,
            chain: anchor.chain,
            next_lsn: anchor.checkpoint + 1,
            named: 0,
            named_anywhere: 0,
            // The start that wrote the superblock flushed before it read what it kept.
            floor: anchor.checkpoint.max(anchor.epoch_start.saturating_sub(1)),
            epoch: anchor.epoch,
            changes: 0,
            beyond: 0,
            gap: false,
        }
    }

    /// Whether an older mount wrote it where a later one, which did not keep it, went on.
    fn is_void(&self, header: &Header) -> bool {
        // An empty record that the last mount kept at the end of the older epoch has the lsn where the new one starts,
        // and the new one's first record is chained to it.
        let beyond = header.first >= self.anchor.epoch_start + u64::from(header.count == 0);
        header.epoch < self.anchor.epoch && beyond
    }

    /// The ring offset after the good records.
    pub(crate) fn end(&self) -> u64 {
        (self.anchor.offset + self.used).checked_rem(self.ring).unwrap_or(0)
    }

    /// Whether the record there is the next good one, if its payload is `whole`: then it counts.
    pub(crate) fn follow(&mut self, header: &Header, whole: bool) -> bool {
        let chained = header.chain == self.chain && header.first == self.next_lsn;
        let fits = self.used + header.record_len() <= self.ring;
        if !whole || !chained || !fits || self.is_void(header) {
            return false;
        }
        self.used += header.record_len();
        self.chain = header.sum;
        self.next_lsn = header.next_lsn();
        self.see(header);
        true
    }

    /// Takes from a header what it proves; for those that are not good, after all good ones were followed.
    pub(crate) fn see(&mut self, header: &Header) {
        self.epoch = self.epoch.max(header.epoch);
        // A superblock is durable before a record that names it is issued: whatever became of the record.
        self.named_anywhere = self.named_anywhere.max(header.named);
        if !self.is_void(header) {
            // Also a torn record says truly what was durable when it was issued.
            if !planted(Canary::NoDurableLsn) {
                self.floor = self.floor.max(header.durable);
            }
            // The next transactions are not where the good records end: what lay between had no lsn, and was durable before
            // they were issued. What they say may be acknowledged, and hangs on it.
            let issued_behind = header.first.checked_sub(1) == Some(header.durable) && header.count > 0;
            self.gap |= issued_behind && header.first == self.next_lsn && header.offset != self.end();
            if header.first <= self.anchor.checkpoint || header.next_lsn() <= self.next_lsn {
                self.named = self.named.max(header.named);
            }
        }
        if header.first >= self.next_lsn && header.count > 0 {
            self.beyond += 1;
        }
    }

    /// The answers to the table's questions about the journal, added to those about the superblock.
    pub(crate) fn answer(&self, facts: Facts) -> Facts {
        facts
            .with(Fact::Ahead, self.named_anywhere > self.anchor.generation)
            .with(Fact::Short, self.next_lsn - 1 < self.floor || self.gap)
            .with(Fact::Unnamed, self.named == 0)
            .with(Fact::Beyond, self.beyond > 0)
    }
}

/// Looks through the whole ring, once.
///
/// # Errors
/// A read error stops recovery: what is there is unknown.
pub(crate) async fn survey(reader: &mut Reader<'_>, anchor: Anchor) -> Result<Survey, IoError> {
    let mut survey = Survey::new(anchor, reader.len);
    let mut room = Vec::new();
    while survey.used < reader.len {
        let Some(header) = reader.header(survey.end()).await? else { break };
        let payload = reader.payload(&header, &mut room).await?;
        if !survey.follow(&header, payload.is_some()) {
            break;
        }
        survey.changes += u64::from(payload.is_none_or(|payload| changes(&header, payload)));
    }
    for at in (survey.used..reader.len).step_by(usize::try_from(BLOCK_SIZE).unwrap_or(usize::MAX)) {
        if let Some(header) = reader.header((anchor.offset + at) % reader.len).await? {
            survey.see(&header);
        }
    }
    Ok(survey)
}

/// Whether a record changes the trees. One that cannot be read does, so that redo says so.
fn changes(header: &Header, payload: &[u8]) -> bool {
    payload.len() > NAMING_MAX
        || intent::decode(payload, header.count, header.offset)
            .map_or(true, |txs| txs.iter().flatten().any(|intent| !matches!(intent, Intent::Named { .. })))
}

/// Longest payload of a record that only names a superblock, in bytes.
const NAMING_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::{Anchor, Survey};
    use crate::journal::record::Header;
    use crate::journal::table::{self, Decision, Fact, Facts, TABLE};

    const RING: u64 = 16 * 4096;

    /// A record whose header holds, and whether its payload does.
    #[derive(Clone)]
    struct Found {
        header: Header,
        whole: bool,
    }

    /// Looks through records as a start does, and decides.
    fn decide(anchor: Anchor, found: &[Found]) -> (Decision, Survey) {
        let mut survey = Survey::new(anchor, RING);
        let at = |offset: u64| found.iter().find(|f| f.header.offset == offset);
        while let Some(next) = at(survey.end()).filter(|_| survey.used < RING) {
            if !survey.follow(&next.header, next.whole) {
                break;
            }
        }
        for block in (survey.used..RING).step_by(4096) {
            at((anchor.offset + block) % RING).iter().for_each(|f| survey.see(&f.header));
        }
        let facts = survey.answer(Facts::default().with(Fact::Valid, true));
        (TABLE[table::index(facts)].then, survey)
    }

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
                    let (decision, survey) = decide(anchor(), &found);
                    // Any follower says that the hurt one was durable; alone at the end it is a torn tail.
                    if hurt == 1 && count == 1 {
                        assert_eq!(decision, Decision::StopUnnamed, "{torn}");
                    } else if hurt == count {
                        assert!(decision.opens(), "a torn tail");
                        assert_eq!(survey.next_lsn, hurt);
                    } else {
                        assert_eq!(decision, Decision::StopLost, "{count} {hurt} {torn}");
                        assert_eq!((survey.floor, survey.next_lsn), (count - 1, hurt));
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
        let (decision, kept) = decide(anchor, &found);
        assert_eq!(decision, Decision::OpenDropTail, "void records are not loss");
        assert_eq!((kept.next_lsn, kept.used, kept.beyond), (4, 3 * 4096, 2));
    }

    #[test]
    fn what_the_last_start_kept_was_durable() {
        // It kept lsn 1..=3 and its superblock became durable; nothing was written since. Record 3 rots.
        let anchor = Anchor { epoch: 2, epoch_start: 4, ..anchor() };
        let (decision, survey) = decide(anchor, &ring(2));
        assert_eq!((decision, survey.floor), (Decision::StopLost, 3));
        assert!(decide(anchor, &ring(3)).0.opens());
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
        let (decision, kept) = decide(anchor, &found);
        assert_eq!(decision, Decision::Open, "the new epoch's record is chained to the empty one");
        assert_eq!((kept.next_lsn, kept.used, kept.beyond), (5, 5 * 4096, 0));
    }

    #[test]
    fn an_empty_record_that_rots_takes_no_acknowledged_one_with_it() {
        // lsns 1 and 2, an empty record, and lsn 3, which may be acknowledged and which nothing later speaks of.
        let mut found = ring(4);
        found[2].header.count = 0;
        found[3].header.first = 3;
        found[3].header.durable = 2;
        assert_eq!(decide(anchor(), &found).1.next_lsn, 4);
        for torn in [false, true] {
            let mut hurt = found.clone();
            if torn {
                hurt[2].whole = false;
            } else {
                hurt.remove(2);
            }
            assert_eq!(decide(anchor(), &hurt).0, Decision::StopLost, "{torn}");
            // Issued together with what is missing, it would be a tail: it landed first.
            hurt.last_mut().unwrap().header.durable = 1;
            assert_eq!(decide(anchor(), &hurt).0, Decision::OpenDropTail, "{torn}");
        }
        // The empty record at the end itself was never whole: nothing hangs on it.
        found.truncate(3);
        found[2].whole = false;
        assert_eq!(decide(anchor(), &found).0, Decision::Open);
    }

    #[test]
    fn a_record_of_another_past_is_not_redone_although_its_numbers_fit() {
        for hurt in 2..5usize {
            let mut found = ring(5);
            // The write of the record was lost; what lies there is whole, and has the lsn and the place.
            found[hurt - 1].header.chain ^= 1;
            let (decision, survey) = decide(anchor(), &found);
            assert_eq!(decision, Decision::StopLost);
            assert_eq!((survey.floor, survey.next_lsn), (4, hurt as u64));
        }
        let mut found = ring(5);
        found[4].header.chain ^= 1;
        let (decision, survey) = decide(anchor(), &found);
        assert_eq!(decision, Decision::OpenDropTail, "nothing says that it was durable");
        assert_eq!(survey.next_lsn, 5);
        let elsewhere = Anchor { chain: 99, ..anchor() };
        assert!(!decide(elsewhere, &ring(5)).0.opens());
    }

    #[test]
    fn an_older_superblock_than_any_record_names_stops() {
        let mut found = ring(4);
        found[2].header.named = 2;
        found[3].header.named = 2;
        assert_eq!(decide(anchor(), &found).0, Decision::StopOldSuperblock);
        let named = Anchor { generation: 2, ..anchor() };
        assert!(decide(named, &found).0.opens());
        // The superblock is durable before the record that names it is issued: also one that is dropped tells.
        found[2].header.named = 1;
        found[3].whole = false;
        assert_eq!(decide(anchor(), &found).0, Decision::StopOldSuperblock);
        assert!(decide(named, &found).0.opens());
    }

    #[test]
    fn records_before_the_checkpoint_are_not_needed_but_still_name() {
        let mut found = ring(4);
        found.remove(1);
        let anchor = Anchor { offset: 2 * 4096, chain: 102, checkpoint: 2, ..anchor() };
        let (decision, kept) = decide(anchor, &found);
        assert_eq!(decision, Decision::Open, "record 2 is in the trees");
        assert_eq!((kept.next_lsn, kept.used, kept.named), (5, 2 * 4096, 1));
    }

    #[test]
    fn a_superblock_that_nothing_followed_yet_is_one_to_start_from() {
        // The power went when it was durable and the record that names it was not: those before name the one before.
        let anchor = Anchor { offset: 2 * 4096, chain: 102, checkpoint: 2, generation: 2, ..anchor() };
        let (decision, kept) = decide(anchor, &ring(2));
        assert_eq!(decision, Decision::Open);
        assert_eq!((kept.next_lsn, kept.used, kept.named), (3, 0, 1));
    }
}
