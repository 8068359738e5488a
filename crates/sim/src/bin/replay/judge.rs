//! One state of a disk: checked by fsck, opened, and held against what clients were told.

use crate::client::{Client, content_of};
use cobalt_base::Fid;
use cobalt_bdev::Device;
use cobalt_cas::show;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor};
use cobalt_rpc::proto::record::Body;
use cobalt_sim::image::ImageDisk;
use cobalt_store::{FsckOptions, Limits, OpenOptions, Region, Regions, Store, fsck};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of a block of an object's body.
const BLOCK: usize = 4096;

/// Superblock generation and mount epoch of a state: a start makes one of each, a checkpoint another generation.
pub type Mark = (u64, u64);

#[derive(Clone)]
pub struct Judge {
    pub client: Rc<Client>,
    /// Bytes of the meta region; data lie behind it.
    pub meta: u64,
    arena: Arena,
    meta_arena: Arena,
    limits: Limits,
}

impl Judge {
    pub fn new(client: Client, meta: u64) -> Judge {
        let arena = |limit| Arena::new(ArenaConfig { limit }).expect("memory for an arena");
        let limits = Limits { node_cache: 16 << 20, dirty_max: 4 << 20, ..Limits::default() };
        let meta_arena = usize::try_from(limits.meta_arena).unwrap_or(usize::MAX);
        Judge { client: Rc::new(client), meta, arena: arena(64 << 20), meta_arena: arena(meta_arena), limits }
    }

    /// Judges what `image` holds, given that the log was cut after byte `cut` of it. With `start` it is started as a process
    /// would, stopped, and checked again.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge(&self, image: &mut Vec<u8>, cut: u64, start: bool) -> Result<Mark, String> {
        let base = Arc::new(std::mem::take(image));
        let (disk, judge) = (ImageDisk::volatile(base.clone()), self.clone());
        let reactor = Reactor::new_virtual(1).expect("an eventfd");
        let ctx = reactor.ctx();
        let told = reactor.block_on(async move { judge.state(&ctx, &disk, cut, start).await });
        drop(reactor);
        *image = Arc::into_inner(base).expect("the disk is gone with its reactor");
        told
    }

    async fn state(&self, ctx: &Ctx, disk: &ImageDisk, cut: u64, start: bool) -> Result<Mark, String> {
        self.fsck(ctx, disk, false).await?;
        let store = self.open(ctx, disk, true).await?;
        let mark = (store.status().generation, store.status().epoch);
        self.client.compare(&self.objects(&store).await?, cut)?;
        drop(store);
        if start {
            let store = self.open(ctx, disk, false).await?;
            store.close().await.map_err(|e| format!("it does not close: {e}"))?;
            self.fsck(ctx, disk, true).await?;
            let store = self.open(ctx, disk, true).await?;
            self.client
                .compare(&self.objects(&store).await?, cut)
                .map_err(|e| format!("after a start: {e}"))?;
        }
        Ok(mark)
    }

    fn regions(&self, disk: &ImageDisk) -> Regions {
        let Region { device, len, .. } = disk.region();
        let part = |device: &Device, offset, len| Region { device: device.clone(), offset, len };
        Regions { meta: part(&device, 0, self.meta), data: part(&device, self.meta, len - self.meta) }
    }

    async fn fsck(&self, ctx: &Ctx, disk: &ImageDisk, closed: bool) -> Result<(), String> {
        let options = FsckOptions { data: true, limits: self.limits.clone(), ..FsckOptions::default() };
        let report = fsck(ctx, &self.regions(disk), &self.arena, &options).await;
        let report = report.map_err(|e| format!("fsck: {e}"))?;
        // The second copy of a superblock is written after the first.
        let bad = report.findings.iter().find(|f| closed || f.is_fatal());
        bad.map_or(Ok(()), |finding| Err(format!("fsck: {finding:?}")))
    }

    async fn open(&self, ctx: &Ctx, disk: &ImageDisk, read_only: bool) -> Result<Store, String> {
        let options = OpenOptions {
            limits: self.limits.clone(),
            read_only,
            meta_arena: Some(self.meta_arena.clone()),
            ..OpenOptions::default()
        };
        let opened = Store::open(ctx.clone(), self.regions(disk), self.arena.clone(), options).await;
        opened.map_err(|e| format!("it does not open: {e}"))
    }

    /// Every object's content and size, all of its bytes read.
    async fn objects(&self, store: &Store) -> Result<BTreeMap<String, (u32, u64)>, String> {
        let rows = store.ctg().scan(show::OBJECTS, &[], None, usize::MAX).await;
        let mut found = BTreeMap::new();
        for (key, value) in rows.map_err(|e| format!("a scan of the objects: {e}"))? {
            let (key, record) = show::object(&key, &value).ok_or("an object's row cannot be read")?;
            let key = String::from_utf8_lossy(&key).into_owned();
            let Body::Single(extent) = record.body else {
                return Err(format!("object {key} was not written by one request"));
            };
            let bytes =
                self.bytes(store, extent.fid, record.size).await.map_err(|e| format!("object {key}: {e}"))?;
            let mut blocks = bytes.chunks(BLOCK).enumerate().map(|(at, block)| content_of(at, block));
            let content =
                blocks.next().flatten().ok_or_else(|| format!("object {key} holds what nobody wrote"))?;
            if !blocks.all(|block| block == Some(content)) {
                return Err(format!("object {key} holds more than its content {content}"));
            }
            found.insert(key, (content, record.size));
        }
        Ok(found)
    }

    async fn bytes(&self, store: &Store, fid: Fid, size: u64) -> Result<Vec<u8>, String> {
        let data = store.cob_read(fid, 0, size).await.map_err(|e| e.to_string())?;
        Ok(data.slices.iter().flat_map(|slice| slice.iter().copied()).collect())
    }
}
