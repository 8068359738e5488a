//! From a target's line in the configuration to an open store, or to the one sentence that says why not.

use super::nvme;
use crate::config::{TargetConfig, TargetDevice};
use cobalt_base::{BLOCK_SIZE, ByteSize};
use cobalt_bdev::{Device, DeviceKind, DeviceUri, OpenMode, UriError, open_uri};
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use cobalt_store::{Limits, OpenOptions, Region, Regions, Store};
use uuid::Uuid;

/// Part of a device that becomes its meta region, where the two share it.
const META_SHARE: u64 = 16;
/// Least and most bytes of such a meta region.
const META_MIN: u64 = 32 << 20;
const META_MAX: u64 = 64 << 30;
/// Part of the node cache that may be dirty before a checkpoint starts.
const DIRTY_SHARE: u64 = 4;

/// A target of this process.
pub struct Target {
    pub name: String,
    pub uuid: Uuid,
    /// As the configuration names it.
    pub device: String,
    /// What really runs, once that is known.
    pub backend: String,
    pub devices: Vec<Device>,
    /// The store, or why there is none.
    pub store: Result<Store, String>,
}

/// How targets are opened.
#[derive(Clone)]
pub struct Opening {
    /// The cluster that they must belong to.
    pub cluster: Uuid,
    /// Memory for tree nodes of each.
    pub cache: u64,
    /// A volatile cache of this size over every device, for tests.
    pub volatile_cache: Option<ByteSize>,
    pub read_only: bool,
    /// Memory for the I/O of all meta regions; without it, each target makes its own.
    pub meta_arena: Option<Arena>,
}

impl Opening {
    /// The store's options.
    fn options(&self, target: Uuid) -> OpenOptions {
        let limits =
            Limits { node_cache: self.cache, dirty_max: self.cache / DIRTY_SHARE, ..Limits::default() };
        OpenOptions {
            cluster: Some(self.cluster),
            target: Some(target),
            limits,
            read_only: self.read_only,
            meta_arena: self.meta_arena.clone(),
        }
    }
}

/// Opens a device, with the volatile cache over it that was asked for.
///
/// # Errors
/// One sentence.
pub async fn open_device(
    ctx: &Ctx,
    arenas: &[Arena],
    uri: &DeviceUri,
    volatile_cache: Option<ByteSize>,
    mode: OpenMode,
) -> Result<Device, String> {
    if let DeviceKind::Nvme { controller, nsid } = &uri.kind {
        // Of its own a URI has none; one for every device of the process may have been asked for.
        if volatile_cache.is_some() {
            return Err(UriError::CacheOverController { uri: uri.to_string() }.to_string());
        }
        let device = nvme::open(ctx, arenas, controller, *nsid, mode).await?;
        return Ok(if uri.fua { device } else { device.without_fua() });
    }
    let arena = arenas.first().ok_or("no memory for I/O")?;
    let mut uri = uri.clone();
    if volatile_cache.is_some() {
        uri.volatile_cache = volatile_cache;
    }
    open_uri(ctx, arena, &uri, mode).await.map_err(|e| with_sources(&e))
}

/// An error and what lies behind it, in one line.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

/// The two regions of a target. All memory of their I/O lies in `arenas`, most of it in the first.
///
/// # Errors
/// One sentence.
pub async fn open_regions(
    ctx: &Ctx,
    arenas: &[Arena],
    device: &TargetDevice,
    volatile_cache: Option<ByteSize>,
    mode: OpenMode,
) -> Result<Regions, String> {
    match device {
        TargetDevice::One(uri) => {
            let device = open_device(ctx, arenas, uri, volatile_cache, mode).await?;
            split(&device)
                .ok_or_else(|| format!("{uri} is too small: two regions need {}", ByteSize(2 * META_MIN)))
        }
        TargetDevice::Two { meta, data } => Ok(Regions {
            meta: Region::whole(open_device(ctx, arenas, meta, volatile_cache, mode).await?),
            data: Region::whole(open_device(ctx, arenas, data, volatile_cache, mode).await?),
        }),
    }
}

/// Meta first, data behind it: a sixteenth of the device within bounds. A function of the size alone, so that it need not
/// be recorded; the superblock holds the lengths and refuses others.
pub fn split(device: &Device) -> Option<Regions> {
    let size = device.identify().size / BLOCK_SIZE * BLOCK_SIZE;
    let meta = (size / META_SHARE).clamp(META_MIN, META_MAX) / BLOCK_SIZE * BLOCK_SIZE;
    if size < 2 * META_MIN {
        return None;
    }
    Some(Regions {
        meta: Region { device: device.clone(), offset: 0, len: meta },
        data: Region { device: device.clone(), offset: meta, len: size - meta },
    })
}

/// Opens a target. What fails is part of the answer: the process serves its others.
pub async fn open(
    ctx: &Ctx,
    arena: &Arena,
    config: &TargetConfig,
    uuid: Option<Uuid>,
    opening: &Opening,
) -> Target {
    let device = config.device.uris().iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ");
    let mut target = Target {
        name: config.name.clone(),
        uuid: uuid.unwrap_or_default(),
        device,
        backend: String::new(),
        devices: Vec::new(),
        store: Err(String::new()),
    };
    let Some(uuid) = uuid else {
        target.store = Err("it was never laid out: run `cobalt format`".into());
        return target;
    };
    let arenas: Vec<Arena> =
        [Some(arena), opening.meta_arena.as_ref()].into_iter().flatten().cloned().collect();
    let regions =
        match open_regions(ctx, &arenas, &config.device, opening.volatile_cache, OpenMode::default()).await {
            Ok(regions) => regions,
            Err(why) => {
                target.store = Err(why);
                return target;
            }
        };
    target.devices.push(regions.meta.device.clone());
    if matches!(config.device, TargetDevice::Two { .. }) {
        target.devices.push(regions.data.device.clone());
    }
    target.backend = regions.data.device.identify().backend.clone();
    let options = opening.options(uuid);
    target.store =
        Store::open(ctx.clone(), regions, arena.clone(), options).await.map_err(|e| with_sources(&e));
    target
}
