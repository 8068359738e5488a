//! Second thoughts about a device that has no superblock to trust: whether it changed its size, and what else it may be.
//! A verdict should say what somebody can do about it.

use crate::error::OpenError;
use crate::format;
use crate::geometry::Geometry;
use crate::region::Regions;
use crate::superblock;
use cobalt_base::{BLOCK_SIZE, ByteSize};
use cobalt_dma::Arena;
use std::cmp::Ordering;

/// Makes a verdict about superblocks say more, if the device tells more. Nothing is written.
pub(crate) async fn explain(regions: &Regions, arena: &Arena, error: OpenError) -> OpenError {
    match &error {
        OpenError::Damaged { what, .. } if what == "superblock" => match formatted(regions, arena).await {
            Some((meta, data)) if meta != regions.meta.len => wrong_size(regions, meta, data),
            _ => error,
        },
        OpenError::WrongRegions { .. } => match formatted(regions, arena).await {
            Some((meta, data)) => wrong_size(regions, meta, data),
            None => error,
        },
        OpenError::NotFormatted { .. } => match format::look(&regions.meta, arena).await {
            Ok(Some(found)) => OpenError::NotFormatted { why: format!("it holds {found}") },
            Ok(None) => OpenError::NotFormatted { why: "it is blank".into() },
            Err(_) => error,
        },
        _ => error,
    }
}

/// Bytes of the meta region and blocks of the data region that a superblock is for. The first copies of both slots are found
/// whatever the length: those of a region of another length are whole, and say so.
async fn formatted(regions: &Regions, arena: &Arena) -> Option<(u64, u64)> {
    for slot in 0..crate::geometry::SLOTS {
        let at = Geometry::superblock_at(regions.meta.len, slot, 0);
        let buf = arena.alloc(BLOCK_SIZE as usize).await;
        let Ok(bytes) = regions.meta.read(at, buf).await else { continue };
        if let Some(size) = superblock::formatted_size(&bytes) {
            return Some(size);
        }
    }
    None
}

/// The verdict over regions of other sizes than formatted.
fn wrong_size(regions: &Regions, meta: u64, data_blocks: u64) -> OpenError {
    let data = data_blocks.saturating_mul(BLOCK_SIZE);
    let have = regions.meta.len.saturating_add(regions.data.len);
    let change = match have.cmp(&meta.saturating_add(data)) {
        Ordering::Less => "the device shrank, or the file was cut short",
        Ordering::Greater => "the device grew",
        Ordering::Equal => "the regions are cut otherwise",
    };
    let size = |bytes: u64| format!("{} ({bytes} bytes)", ByteSize(bytes));
    let why = format!(
        "formatted with a meta region of {} and a data region of {}, here are {} and {}: {change}, or this is another \
         device. Nothing was changed: give it its size back, or correct the path",
        size(meta),
        size(data),
        size(regions.meta.len),
        size(regions.data.len)
    );
    OpenError::WrongRegions { why }
}
