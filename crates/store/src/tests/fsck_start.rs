//! Findings about starts that cannot say what was durable.

use super::fsck::{filled, kinds, newest};
use super::rig::{CHUNK, fid, pattern, run};
use crate::{FindingKind, superblock};

#[test]
fn a_superblock_that_is_lost_is_told_by_the_journal_that_names_it() {
    run(13, async |ctx| {
        let rig = filled(&ctx).await;
        // The record that names the superblock of the checkpoint.
        rig.put(fid(6, 1), 0, &pattern(1, CHUNK)).await.unwrap();
        let sb = newest(&rig).await;
        for copy in superblock::read_all(&rig.regions.meta, &rig.arena).await {
            if copy.slot == sb.slot() {
                rig.meta.spoil(copy.at as usize + 130, |b| *b ^= 1);
            }
        }
        let report = rig.check(false).await;
        let kinds = kinds(&report);
        assert!(kinds.contains(&FindingKind::SuperblockLost), "{:#?}", report.findings);
        assert!(report.checkpoint_only && !report.is_sound());
    });
}

#[test]
fn a_journal_in_which_nothing_names_a_superblock_is_told() {
    run(14, async |ctx| {
        let rig = filled(&ctx).await;
        let sb = newest(&rig).await;
        let (from, len) = (sb.geometry.journal_at() as usize, sb.geometry.journal_len as usize);
        for at in (from..from + len).step_by(4096) {
            rig.meta.spoil(at + 60, |b| *b ^= 1);
        }
        let report = rig.check(false).await;
        assert_eq!(kinds(&report), [FindingKind::JournalUnnamed], "{:#?}", report.findings);
        assert!(report.checkpoint_only && report.redone == 0);
    });
}
