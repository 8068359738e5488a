//! What is on a target, as typed rows, for people who look for something. Secrets in catalogue values are the caller's to
//! hide.

use crate::apply;
use crate::cob::CobInfo;
use crate::error::{OpenError, StoreError};
use crate::intent::{self, Inline, Intent};
use crate::journal::reader::Reader;
use crate::recovery;
use crate::region::Regions;
use crate::schema::{self, COB, COUNT_KEY, CobRow, DEAD, FENCE, FREE, MapRow, SUMMARY, TOMB};
use crate::store::{Store, info};
use crate::superblock;
use crate::tree::TreeId;
use crate::tx::Extent;
use cobalt_base::{BLOCK_SIZE, Fid, Lsn, SessionId};
use cobalt_dma::Arena;

/// A journal record, by its place in the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRow {
    /// Byte in the ring.
    pub offset: u64,
    pub first: Lsn,
    /// Transactions; none in a record that only says what is durable.
    pub count: u32,
    pub bytes: u64,
    pub epoch: u64,
    pub durable: Lsn,
    /// Highest superblock generation named up to here.
    pub named: u64,
    /// Whether its payload's checksum holds.
    pub whole: bool,
    /// What each transaction wants, one line an intent.
    pub intents: Vec<String>,
}

/// A row of one of the trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeRow {
    Cob {
        fid: Fid,
        info: CobInfo,
    },
    /// A deleted cob whose blocks are still being freed.
    Dead {
        fid: Fid,
        info: CobInfo,
    },
    Tombstone {
        fid: Fid,
    },
    Fence {
        first: SessionId,
        last: SessionId,
    },
    CobCount {
        count: u64,
    },
    Extents {
        fid: Fid,
        offset: u64,
        len: u64,
        generation: u64,
        extents: Vec<Extent>,
        crcs: Vec<u32>,
    },
    GroupSummary {
        group: u64,
        free: u32,
    },
    Free {
        start: u64,
        blocks: u32,
    },
    Entry {
        ctg: u32,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// Not a row that this version writes.
    Unknown {
        key: Vec<u8>,
        value: Vec<u8>,
    },
}

/// All records in the ring whose headers hold, in lsn order, kept by recovery or not.
///
/// # Errors
/// [`OpenError`] when no superblock says where the journal is, or the device does not answer.
pub async fn dump_journal(regions: &Regions, arena: &Arena) -> Result<Vec<RecordRow>, OpenError> {
    let sb = recovery::choose(&superblock::read_all(&regions.meta, arena).await)?;
    let journal_at = sb.geometry.journal_at();
    let mut reader = Reader::new(None, &regions.meta, arena, &sb);
    let mut rows = Vec::new();
    let mut room = Vec::new();
    for block in 0..reader.len / BLOCK_SIZE {
        let Some(header) = reader.header(block * BLOCK_SIZE).await? else { continue };
        let payload = reader.payload(&header, &mut room).await?;
        let decoded =
            payload.and_then(|bytes| intent::decode(bytes, header.count, journal_at + header.offset).ok());
        rows.push(RecordRow {
            offset: header.offset,
            first: Lsn(header.first),
            count: header.count,
            bytes: header.record_len(),
            epoch: header.epoch,
            durable: Lsn(header.durable),
            named: header.named,
            whole: payload.is_some(),
            intents: decoded.unwrap_or_default().iter().flatten().map(line).collect(),
        });
    }
    rows.sort_by_key(|r| (r.first, r.count > 0, r.epoch));
    Ok(rows)
}

/// One intent for people; keys and values only by their length, they may be secret.
fn line(intent: &Intent) -> String {
    use crate::ctg::CtgOp;
    match intent {
        Intent::Inline(Inline { map, bytes }) => {
            format!("{} and its {bytes:?}", line(&Intent::Map(map.clone())))
        }
        Intent::Map(map) => {
            let Extent { start, blocks } =
                map.extents.first().copied().unwrap_or(Extent { start: 0, blocks: 0 });
            let (fid, offset, len, pieces) = (map.fid, map.offset, map.len, map.extents.len());
            format!("map {fid} {offset}+{len} -> {start}+{blocks} ({pieces} extents)")
        }
        Intent::Delete { fid, rows } => format!("delete {fid}, up to {rows} rows"),
        Intent::FreeStep { fid, rows } => format!("free {fid}, up to {rows} rows"),
        Intent::Fence { session } => format!("fence {session}"),
        Intent::DropTombs { session, rows } => format!("drop tombstones of {session}, up to {rows}"),
        Intent::Ctg(CtgOp::Put { ctg, key, value }) => {
            format!("ctg {ctg} put {} + {} bytes", key.len(), value.len())
        }
        Intent::Ctg(CtgOp::Delete { ctg, key }) => format!("ctg {ctg} delete {} bytes", key.len()),
        Intent::Named { generation } => format!("superblock {generation} is durable"),
    }
}

impl Store {
    /// Up to `limit` rows of a tree, from the key `from` on; and the key to go on from, until none is left.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rows(
        &self,
        tree: TreeId,
        from: &[u8],
        limit: usize,
    ) -> Result<(Vec<TreeRow>, Option<Vec<u8>>), StoreError> {
        let mut rows = Vec::new();
        let mut from = from.to_vec();
        while rows.len() < limit {
            let Some((key, value)) = self.0.look(|stage| Ok(stage.next(tree, &from)?)).await? else {
                return Ok((rows, None));
            };
            let row = typed(tree, &key, &value);
            from.clone_from(&key);
            from.push(0);
            rows.push(row.unwrap_or(TreeRow::Unknown { key, value }));
        }
        Ok((rows, Some(from)))
    }
}

pub(crate) fn typed(tree: TreeId, key: &[u8], value: &[u8]) -> Option<TreeRow> {
    match tree {
        TreeId::Cob if key == COUNT_KEY => {
            Some(TreeRow::CobCount { count: schema::decode("cob count", value).ok()? })
        }
        TreeId::Cob => match *key.first()? {
            kind @ (COB | DEAD) => {
                let fid = schema::key_fid(kind, key)?;
                let info = info(schema::decode::<CobRow>("cob row", value).ok()?);
                Some(if kind == COB { TreeRow::Cob { fid, info } } else { TreeRow::Dead { fid, info } })
            }
            TOMB => Some(TreeRow::Tombstone { fid: schema::key_fid(TOMB, key)? }),
            FENCE => {
                let first = SessionId(schema::key_number(FENCE, key)?);
                Some(TreeRow::Fence { first, last: apply::fence_end(value).ok()? })
            }
            _ => None,
        },
        TreeId::Extmap => {
            let (fid, offset) = schema::extmap_place(key)?;
            let MapRow { len, generation, extents, crcs } = schema::decode("extmap row", value).ok()?;
            let (extents, crcs) = (extents.into_vec(), crcs.into_vec());
            Some(TreeRow::Extents { fid, offset, len, generation, extents, crcs })
        }
        TreeId::Balloc => {
            let count = schema::decode_u32("allocator row", value).ok()?;
            match (schema::key_number(SUMMARY, key), schema::key_number(FREE, key)) {
                (Some(group), _) => Some(TreeRow::GroupSummary { group, free: count }),
                (_, Some(start)) => Some(TreeRow::Free { start, blocks: count }),
                _ => None,
            }
        }
        TreeId::Ctg => {
            let (ctg, key) = schema::ctg_place(key)?;
            Some(TreeRow::Entry { ctg, key: key.to_vec(), value: value.to_vec() })
        }
    }
}
