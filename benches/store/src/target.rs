//! A store to measure: formatted anew on memory or on a file.

use cobalt_base::{ByteSize, Fid, checksum::crc32c};
use cobalt_bdev::{OpenMode, open_uri};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::Ctx;
use cobalt_store::{
    CobAttrs, FormatOptions, Limits, OpenOptions, Region, Regions, Store, StoreError, TxClass, format,
};
use uuid::Uuid;

/// What a target is formatted with, unless it is told otherwise.
pub const NODE_SIZE: u32 = 16 << 10;

/// Where a target lies and how it is opened.
#[derive(Clone, Debug)]
pub struct Place {
    /// URIs of its two devices.
    pub meta: String,
    pub data: String,
    pub journal: Option<u64>,
    pub node_size: u32,
    pub limits: Limits,
}

impl Place {
    /// In memory: `meta` bytes of meta region, `data` of data region.
    pub fn memory(meta: u64, data: u64, limits: Limits) -> Place {
        let mem = |size: u64| format!("mem:{}", ByteSize(size));
        Place { meta: mem(meta), data: mem(data), journal: None, node_size: NODE_SIZE, limits }
    }

    /// Formats and opens it.
    pub async fn open(&self, ctx: &Ctx) -> anyhow::Result<Store> {
        let arena = Arena::new(ArenaConfig { limit: 64 << 20 })?;
        let mode = OpenMode { create: true, ..OpenMode::default() };
        let meta = open_uri(ctx, &arena, &self.meta.parse()?, mode).await?;
        let data = open_uri(ctx, &arena, &self.data.parse()?, mode).await?;
        let regions = Regions { meta: Region::whole(meta), data: Region::whole(data) };
        let options = FormatOptions {
            journal: self.journal,
            node_size: self.node_size,
            force: true,
            ..FormatOptions::new(Uuid::from_u128(1), Uuid::from_u128(2), "bench")
        };
        format(ctx, &regions, &arena, &options).await?;
        let options = OpenOptions { limits: self.limits.clone(), ..OpenOptions::default() };
        Ok(Store::open(ctx.clone(), regions, arena, options).await?)
    }
}

/// Most of one write here.
const SMALL: usize = 4096;

/// One durable write of 4 KiB, as `ios` does it.
pub async fn small_write(store: &Store, fid: Fid, offset: u64) -> Result<(), StoreError> {
    let arena = store.arena();
    let mut buf = arena.alloc(SMALL).await;
    buf.fill(fid.counter as u8);
    let crcs = [crc32c(&buf)];
    let len = SMALL as u64;
    let mut tx = store.tx_open(TxClass::Write, len).await?;
    let cob = store.cob_lookup(&mut tx, fid, CobAttrs { chunk_size: SMALL as u32, incarnation: 1 }).await?;
    let extents = store.balloc(&mut tx, len).await?;
    store.extmap(&mut tx, &cob, offset, len, &extents, &crcs).await?;
    let sealed = store.tx_close(tx);
    let stable = store.data_write(&sealed, &[buf.freeze()]).await?;
    store.commit(sealed, stable).await?;
    Ok(())
}
