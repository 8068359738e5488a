//! The allocator's rows, group by group; further passes over blocks; and who owns a block twice.

use super::blocks::Claims;
use super::report::{TOUCHED_MAX, Touched};
use super::stream::{Met, Stream};
use super::{At, Check, FindingKind};
use crate::schema::{self, FREE, MapRow, SUMMARY};
use crate::tree::{Lost, Row, Source, Step, TreeId};

/// The allocator's two kinds of rows, side by side.
struct Groups<'a> {
    counts: Stream<'a, u64>,
    free: Stream<'a, u64>,
    broken: Vec<Lost>,
}

/// Lost ranges near the current group that are remembered.
const BROKEN_MAX: usize = 1000;

impl<'a> Groups<'a> {
    fn new(source: &'a Source) -> Groups<'a> {
        let kind = |kind: u8, place| Stream::new(source, TreeId::Balloc, &[kind], Some(&[kind + 1]), place);
        Groups {
            counts: kind(SUMMARY, |key| schema::key_number(SUMMARY, key)),
            free: kind(FREE, |key| schema::key_number(FREE, key)),
            broken: Vec::new(),
        }
    }

    fn note(&mut self, lost: Lost) {
        if self.broken.iter().any(|known| known.node == lost.node) {
            return;
        }
        let full = self.broken.len() >= BROKEN_MAX;
        match self.broken.last_mut() {
            Some(last) if full => last.until = lost.until,
            _ => self.broken.push(lost),
        }
    }

    /// Whether rows of the group may be out of reach.
    fn is_broken(&self, group: u64, first: u64, len: u64) -> bool {
        let count = schema::summary_key(group);
        let (from, until) = (schema::free_key(first), schema::free_key(first + len - 1));
        self.broken.iter().any(|lost| lost.hits(&count, &count) || lost.hits(&from, &until))
    }
}

/// Free blocks of one group.
struct Group {
    number: u64,
    /// What its row says, none without one.
    says: Option<u64>,
    /// What its free extents add up to.
    sum: u64,
    rows: u64,
    at: Option<At>,
    /// Its row cannot be read, and a finding says so.
    bad: bool,
}

impl Check<'_> {
    /// Checks the allocator's rows and claims what is free.
    pub(super) async fn space(&mut self, source: &Source, claims: &mut Claims) {
        let mut free = 0;
        self.each_free(source, true, |start, blocks| {
            free += blocks;
            claims.claim(start, blocks);
        })
        .await;
        self.report.blocks_free = free;
        let mut cursor = source.cursor(TreeId::Balloc, &[FREE + 1], None);
        while let Some(step) = cursor.next().await {
            match step {
                Step::Lost(lost) => drop(self.lost(&lost)),
                Step::Row(row) => self.unknown_row(TreeId::Balloc, &row),
            }
        }
        // Only the checkpoint's own rows are what the superblock counted.
        let says = self.superblock.data_free;
        if self.report.redone == 0 && !self.broken[TreeId::Balloc.index()] && says != free {
            let expected = format!("{free} free blocks, as the groups have");
            let found = format!("the superblock says {says}");
            let at = Some(At::meta(0));
            self.add(FindingKind::FreeCount, at, expected, found, Touched::default());
        }
    }

    /// Gives every free extent. With `judge`, what is wrong with the rows becomes findings.
    async fn each_free(&mut self, source: &Source, judge: bool, mut give: impl FnMut(u64, u64)) {
        let shape = self.shape;
        let mut groups = Groups::new(source);
        for number in 0..shape.groups() {
            let (first, len) = shape.group(number);
            self.settle_groups(&mut groups, judge).await;
            while let Some((_, row)) = groups.counts.take_if(|g| g < number) {
                self.free_row(judge, &row, "a group of the data region", "none".into());
                self.settle_groups(&mut groups, judge).await;
            }
            let mut group = Group { number, says: None, sum: 0, rows: 0, at: None, bad: false };
            if let Some((_, row)) = groups.counts.take_if(|g| g == number) {
                group.at = self.row_at(&row);
                match schema::decode_u32("group summary", &row.value) {
                    Ok(says) => group.says = Some(u64::from(says)),
                    Err(corrupt) => {
                        group.bad = true;
                        self.free_row(judge, &row, "a count of four bytes", corrupt.why);
                    }
                }
                self.settle_groups(&mut groups, judge).await;
            }
            let mut upto = None;
            while let Some((start, row)) = groups.free.take_if(|start| start < first + len) {
                if let Some(blocks) = self.free_extent(judge, &row, start, (first, len), upto) {
                    give(start, blocks);
                    group.sum += blocks;
                    upto = Some(start + blocks);
                }
                group.rows += 1;
                self.settle_groups(&mut groups, judge).await;
            }
            if group.bad || groups.is_broken(number, first, len) {
                continue;
            }
            // A group without rows is all free.
            if group.says.is_none() && group.rows == 0 {
                give(first, len);
            } else if judge {
                self.group(&group);
            }
        }
        self.settle_groups(&mut groups, judge).await;
        while let Some((_, row)) = groups.counts.take_if(|_| true).or_else(|| groups.free.take_if(|_| true)) {
            self.free_row(judge, &row, "a place inside of the data region", "beyond its end".into());
            self.settle_groups(&mut groups, judge).await;
        }
    }

    async fn settle_groups(&mut self, groups: &mut Groups<'_>, judge: bool) {
        loop {
            let met = match groups.counts.settle().await {
                Some(met) => met,
                None => match groups.free.settle().await {
                    Some(met) => met,
                    None => return,
                },
            };
            match met {
                Met::Lost(lost) => {
                    self.lost(&lost);
                    groups.note(lost);
                }
                Met::Unknown(row) if judge => self.unknown_row(TreeId::Balloc, &row),
                Met::Unknown(_) => {}
            }
        }
    }

    fn free_row(&mut self, judge: bool, row: &Row, expected: &str, found: String) {
        if judge {
            let at = self.row_at(row);
            let found = format!("key {}: {found}", super::hex(&row.key));
            self.add(FindingKind::FreeRow, at, expected, found, Touched::default());
        }
    }

    /// The blocks of a free extent that breaks no rule but that of being alone.
    fn free_extent(
        &mut self,
        judge: bool,
        row: &Row,
        start: u64,
        (first, len): (u64, u64),
        upto: Option<u64>,
    ) -> Option<u64> {
        let blocks = match schema::decode_u32("free extent", &row.value) {
            Ok(blocks) => u64::from(blocks),
            Err(corrupt) => {
                self.free_row(judge, row, "a length of four bytes", corrupt.why);
                return None;
            }
        };
        if blocks == 0 || start < first || start + blocks > first + len {
            let expected = format!("a free extent inside of blocks {first} to {}", first + len - 1);
            self.free_row(judge, row, &expected, format!("{blocks} blocks"));
            return None;
        }
        if upto == Some(start) {
            self.free_row(judge, row, "one extent for neighbours of a group", "two".into());
        }
        Some(blocks)
    }

    fn group(&mut self, group: &Group) {
        if group.says == Some(group.sum) {
            return;
        }
        let (number, sum) = (group.number, group.sum);
        let expected = format!("{sum} free blocks in group {number}, as its free extents have");
        let found = match group.says {
            Some(says) => format!("its row says {says}"),
            None => "no row with a count".into(),
        };
        self.add(FindingKind::GroupCount, group.at, expected, found, Touched::default());
    }

    /// Claims what lies in a further window.
    pub(super) async fn claim_again(&mut self, source: &Source, claims: &mut Claims) {
        self.meter.begin("blocks", 0);
        let mut cursor = source.cursor(TreeId::Extmap, &[], None);
        while let Some(step) = cursor.next().await {
            if let Step::Row(row) = step
                && let Ok(map) = schema::decode::<MapRow>("extmap row", &row.value)
            {
                for extent in &map.extents {
                    claims.claim(extent.start, u64::from(extent.blocks));
                }
            }
        }
        self.each_free(source, false, |start, blocks| claims.claim(start, blocks)).await;
    }

    /// Looks for all owners of runs of blocks that have more than one.
    pub(super) async fn owners(&mut self, source: &Source, runs: Vec<(u64, u64)>) {
        let mut free = vec![false; runs.len()];
        let mut touched = vec![Touched::default(); runs.len()];
        let hit = |start: u64, blocks: u64| {
            let from = runs.partition_point(|(_, end)| *end <= start);
            let until = runs.partition_point(|(first, _)| *first < start.saturating_add(blocks));
            from..until.max(from)
        };
        self.each_free(source, false, |start, blocks| {
            for i in hit(start, blocks) {
                free[i] = true;
            }
        })
        .await;
        let mut cursor = source.cursor(TreeId::Extmap, &[], None);
        while let Some(step) = cursor.next().await {
            if let Step::Row(row) = step
                && let Some((fid, _)) = schema::extmap_place(&row.key)
                && let Ok(map) = schema::decode::<MapRow>("extmap row", &row.value)
            {
                for extent in &map.extents {
                    for i in hit(extent.start, u64::from(extent.blocks)) {
                        touched[i].add_fid(fid);
                    }
                }
            }
        }
        for (i, ((start, end), touched)) in runs.iter().zip(touched).enumerate() {
            let mut owners: Vec<String> =
                touched.fids.iter().take(TOUCHED_MAX).map(|fid| format!("cob {fid}")).collect();
            if free[i] {
                owners.push("free space".into());
            }
            let found = format!("blocks {start} to {} are of {}", end - 1, owners.join(" and "));
            let at = Some(At::data(*start));
            self.add(FindingKind::BlockTwice, at, "one owner", found, touched);
        }
    }
}
