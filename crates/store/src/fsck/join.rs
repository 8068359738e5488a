//! Cobs and their extents, side by side in the order of fids: four cursors, and one cob at a time.

use super::blocks::Claims;
use super::data::{Chunk, Chunks};
use super::report::Touched;
use super::stream::{Met, Stream};
use super::{Check, FindingKind, data_bytes};
use crate::apply;
use crate::schema::{self, COB, COUNT_KEY, CobRow, DEAD, FENCE, MapRow, TOMB};
use crate::tree::{Lost, Row, Source, Step, TreeId};
use cobalt_base::Fid;

/// Ranges that are out of reach and still ahead of the join, at most; beyond that neighbours are taken together.
const BROKEN_MAX: usize = 1000;

/// The four streams, and what is out of reach near them.
struct Join<'a> {
    cobs: Stream<'a, Fid>,
    dead: Stream<'a, Fid>,
    tombs: Stream<'a, Fid>,
    extents: Stream<'a, (Fid, u64)>,
    /// Ranges of the cob and extent-map trees, each with its finding.
    broken: Vec<(Lost, Option<usize>)>,
}

/// What the cob tree says of a fid.
enum Owner {
    Alive(CobRow),
    Dead(CobRow),
    /// Its row is damaged or out of reach.
    Unknown,
    None,
}

impl Owner {
    fn row(&self) -> Option<&CobRow> {
        match self {
            Owner::Alive(row) | Owner::Dead(row) => Some(row),
            Owner::Unknown | Owner::None => None,
        }
    }
}

/// What the extents of one cob add up to.
#[derive(Default)]
struct Sum {
    blocks: u64,
    /// End of the last byte.
    end: u64,
    /// Where the last row ends, in whole chunks.
    upto: u64,
}

impl<'a> Join<'a> {
    fn new(source: &'a Source) -> Join<'a> {
        let kind = |kind: u8, place| Stream::new(source, TreeId::Cob, &[kind], Some(&[kind + 1]), place);
        Join {
            cobs: kind(COB, |key| schema::key_fid(COB, key)),
            dead: kind(DEAD, |key| schema::key_fid(DEAD, key)),
            tombs: kind(TOMB, |key| schema::key_fid(TOMB, key)),
            extents: Stream::new(source, TreeId::Extmap, &[], None, schema::extmap_place),
            broken: Vec::new(),
        }
    }

    fn next_fid(&self) -> Option<Fid> {
        let extent = self.extents.place().map(|(fid, _)| fid);
        [self.cobs.place(), self.dead.place(), extent].into_iter().flatten().min()
    }

    /// Findings about nodes that held something of a cob in the tree.
    fn broken_of(&self, tree: TreeId, fid: Fid) -> Vec<Option<usize>> {
        let hit = |lost: &Lost| match tree {
            TreeId::Extmap => lost.hits(&schema::extmap_key(fid, 0), &schema::extmap_key(fid, u64::MAX)),
            _ => [COB, DEAD].iter().any(|kind| {
                let key = schema::fid_key(*kind, fid);
                lost.hits(&key, &key)
            }),
        };
        self.broken.iter().filter(|(lost, _)| lost.tree == tree && hit(lost)).map(|(_, at)| *at).collect()
    }

    fn note(&mut self, lost: Lost, finding: Option<usize>) {
        if self.broken.iter().any(|(known, _)| known.node == lost.node) {
            return;
        }
        let full = self.broken.len() >= BROKEN_MAX;
        match self.broken.iter_mut().rev().find(|(known, _)| known.tree == lost.tree) {
            Some((last, _)) if full => last.until = lost.until,
            _ => self.broken.push((lost, finding)),
        }
    }
}

impl Check<'_> {
    /// Checks every cob and every extent, claims their blocks, and reads their data if asked to.
    pub(super) async fn join(&mut self, source: &Source, claims: &mut Claims) {
        let data = if self.options.data { data_bytes(&self.superblock) } else { 0 };
        self.meter.begin(if self.options.data { "rows and data" } else { "rows" }, data);
        let mut join = Join::new(source);
        let mut chunks = Chunks::new(self.regions.data.clone(), self.arena.clone(), self.unwritten.clone());
        loop {
            self.settle(&mut join).await;
            let Some(fid) = join.next_fid() else { break };
            let owner = self.owner(&mut join, fid).await;
            let mut sum = Sum::default();
            while let Some(((_, offset), row)) = join.extents.take_if(|(f, _)| f == fid) {
                self.extent(&owner, (fid, offset), &row, &mut sum, claims, &mut chunks);
                if chunks.is_full() {
                    self.read_chunks(&mut chunks).await;
                }
                self.settle_extents(&mut join).await;
            }
            self.sums(&join, fid, &owner, &sum);
        }
        self.read_chunks(&mut chunks).await;
        self.other_rows(source).await;
    }

    async fn settle(&mut self, join: &mut Join<'_>) {
        while let Some(met) = join.cobs.settle().await {
            self.met(join, TreeId::Cob, met);
        }
        while let Some(met) = join.dead.settle().await {
            self.met(join, TreeId::Cob, met);
        }
        self.settle_extents(join).await;
    }

    async fn settle_extents(&mut self, join: &mut Join<'_>) {
        while let Some(met) = join.extents.settle().await {
            self.met(join, TreeId::Extmap, met);
        }
    }

    fn met(&mut self, join: &mut Join<'_>, tree: TreeId, met: Met) {
        match met {
            Met::Lost(lost) => {
                let finding = self.lost(&lost);
                join.note(lost, finding);
            }
            Met::Unknown(row) => self.unknown_row(tree, &row),
        }
    }

    /// Takes the fid's rows in the cob tree.
    async fn owner(&mut self, join: &mut Join<'_>, fid: Fid) -> Owner {
        let alive = join.cobs.take_if(|f| f == fid);
        let dead = join.dead.take_if(|f| f == fid);
        loop {
            while let Some(met) = join.tombs.settle().await {
                self.met(join, TreeId::Cob, met);
            }
            if join.tombs.take_if(|f| f < fid).is_none() {
                break;
            }
        }
        let tomb = join.tombs.take_if(|f| f == fid);
        if let Some((_, row)) = &alive {
            self.report.cobs += 1;
            let at = self.row_at(row);
            if dead.is_some() || tomb.is_some() {
                let found = if dead.is_some() { "its blocks are being freed too" } else { "deleted too" };
                self.add(FindingKind::CobTwice, at, "a cob that is alive", found, Touched::fid(fid));
            }
        }
        match (alive, dead) {
            (Some((_, row)), _) => self.cob_row(fid, &row).map_or(Owner::Unknown, Owner::Alive),
            (None, Some((_, row))) => self.cob_row(fid, &row).map_or(Owner::Unknown, Owner::Dead),
            (None, None) => {
                let broken = join.broken_of(TreeId::Cob, fid);
                for finding in broken.iter().flatten() {
                    self.touch(*finding, fid);
                }
                if broken.is_empty() { Owner::None } else { Owner::Unknown }
            }
        }
    }

    fn touch(&mut self, finding: usize, fid: Fid) {
        if let Some(finding) = self.report.findings.get_mut(finding) {
            finding.touched.add_fid(fid);
        }
    }

    fn cob_row(&mut self, fid: Fid, row: &Row) -> Option<CobRow> {
        match schema::decode::<CobRow>("cob row", &row.value) {
            Ok(cob) if cob.chunk_size > 0 => Some(cob),
            Ok(_) => {
                let at = self.row_at(row);
                self.add(FindingKind::CobRow, at, "a size of chunks", "0", Touched::fid(fid));
                None
            }
            Err(corrupt) => {
                let at = self.row_at(row);
                self.add(FindingKind::CobRow, at, "a cob's attributes", corrupt.why, Touched::fid(fid));
                None
            }
        }
    }

    fn extent(
        &mut self,
        owner: &Owner,
        (fid, offset): (Fid, u64),
        row: &Row,
        sum: &mut Sum,
        claims: &mut Claims,
        chunks: &mut Chunks,
    ) {
        let at = self.row_at(row);
        let bad = |check: &mut Self, kind, expected: &str, found: String| {
            check.add(kind, at, expected, format!("at offset {offset}: {found}"), Touched::fid(fid));
        };
        let map: MapRow = match schema::decode("extmap row", &row.value) {
            Ok(map) => map,
            Err(corrupt) => return bad(self, FindingKind::ExtentRow, "a row of extents", corrupt.why),
        };
        for extent in &map.extents {
            claims.claim(extent.start, u64::from(extent.blocks));
            self.report.extents += 1;
        }
        let blocks = map.blocks();
        self.report.blocks_used += blocks;
        sum.blocks += blocks;
        let cob = match (owner.row(), owner) {
            (Some(cob), _) => cob,
            (None, Owner::None) => {
                return bad(self, FindingKind::ExtentOrphan, "a cob with this fid", "none".into());
            }
            _ => return,
        };
        let chunk = u64::from(cob.chunk_size);
        let end = offset.checked_add(map.len);
        let sound = map.is_sound(cob.chunk_size, self.shape.data_blocks) && offset.is_multiple_of(chunk);
        let Some(end) = end.filter(|_| sound) else {
            let expected = "extents, length and checksums that agree, inside of the data region";
            let (len, crcs) = (map.len, map.crcs.len());
            let found = format!("{len} bytes, {blocks} blocks, {crcs} checksums of chunks of {chunk} bytes");
            return bad(self, FindingKind::ExtentRow, expected, found);
        };
        if map.generation != cob.generation {
            let expected = format!("generation {}, that of its cob", cob.generation);
            bad(self, FindingKind::ExtentGeneration, &expected, format!("generation {}", map.generation));
        }
        if sum.upto > offset {
            let expected = format!("an offset of {} or more, where the row before it ends", sum.upto);
            bad(self, FindingKind::ExtentOverlap, &expected, "an overlap".into());
        }
        sum.upto = end.checked_next_multiple_of(chunk).unwrap_or(end);
        sum.end = sum.end.max(end);
        if self.options.data && matches!(owner, Owner::Alive(_)) {
            chunks.add(fid, offset, chunk, &map);
        }
    }

    fn sums(&mut self, join: &Join<'_>, fid: Fid, owner: &Owner, sum: &Sum) {
        let broken = join.broken_of(TreeId::Extmap, fid);
        for finding in broken.iter().flatten() {
            self.touch(*finding, fid);
        }
        let Some(cob) = owner.row() else { return };
        let touched = || Touched::fid(fid);
        if broken.is_empty() && cob.blocks != sum.blocks {
            let expected = format!("{} blocks, as its row says", cob.blocks);
            let found = format!("extents of {} blocks", sum.blocks);
            self.add(FindingKind::CobBlocks, None, expected, found, touched());
        }
        if matches!(owner, Owner::Alive(_)) && cob.size < sum.end {
            let expected = format!("a size of {} or more, where its extents end", sum.end);
            let found = format!("a size of {}", cob.size);
            self.add(FindingKind::CobSize, None, expected, found, touched());
        }
    }

    /// The count of cobs, the fences, and rows that should not be there.
    async fn other_rows(&mut self, source: &Source) {
        let mut counted = Some(0);
        let mut fence_end: Option<u64> = None;
        for (from, until) in [(&[][..], Some(&[COB][..])), (&[FENCE], Some(&[DEAD])), (&[DEAD + 1], None)] {
            let mut cursor = source.cursor(TreeId::Cob, from, until);
            while let Some(step) = cursor.next().await {
                let row = match step {
                    Step::Lost(lost) => {
                        self.lost(&lost);
                        continue;
                    }
                    Step::Row(row) => row,
                };
                let at = self.row_at(&row);
                if row.key == COUNT_KEY {
                    counted = schema::decode("cob count", &row.value).ok();
                    continue;
                }
                let Some(first) = schema::key_number(FENCE, &row.key) else {
                    self.unknown_row(TreeId::Cob, &row);
                    continue;
                };
                match apply::fence_end(&row.value) {
                    Ok(last) if last.0 >= first && fence_end.is_none_or(|end| end < first) => {
                        fence_end = Some(last.0);
                    }
                    Ok(last) => {
                        let expected = match fence_end {
                            Some(end) => format!("an interval of sessions above {end}"),
                            None => "an interval of sessions".to_owned(),
                        };
                        let found = format!("{first} to {last}");
                        self.add(FindingKind::FenceRow, at, expected, found, Touched::default());
                    }
                    Err(corrupt) => {
                        let expected = "the last session of an interval";
                        self.add(FindingKind::FenceRow, at, expected, corrupt.why, Touched::default());
                    }
                }
            }
        }
        let cobs = self.report.cobs;
        if counted != Some(cobs) && !self.broken[TreeId::Cob.index()] {
            let found = counted.map_or("not a number".into(), |n| format!("a count of {n}"));
            self.add(FindingKind::CobCount, None, format!("{cobs} cobs"), found, Touched::default());
        }
    }

    /// Reads the chunks that wait.
    async fn read_chunks(&mut self, chunks: &mut Chunks) {
        for (chunk, wrong) in chunks.read(&self.meter, &mut self.report.data_bytes).await {
            let Chunk { fid, offset, .. } = chunk;
            let at = Some(super::At::data(chunk.block()));
            let found = format!("at offset {offset}: {}", wrong.found);
            let expected = format!("CRC32C {:08x}", chunk.crc);
            let kind = if wrong.unreadable { FindingKind::DataUnreadable } else { FindingKind::Data };
            self.add(kind, at, expected, found, Touched::fid(fid));
        }
    }
}
