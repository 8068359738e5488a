//! `cobalt format`: makes the cluster's secret and identity where they are missing, and lays out targets.

use super::identity::{ClusterId, random_uuid};
use super::targets::{open_regions, with_sources};
use crate::cli::Failure;
use crate::config::{Config, TargetConfig, TargetDevice};
use cobalt_base::ByteSize;
use cobalt_bdev::{DeviceKind, OpenMode, reserve_head};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use cobalt_rpc::ClusterSecret;
use cobalt_store::FormatOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// Memory to format with.
const ARENA: usize = 16 << 20;
/// A device that is in use is not worth a long wait.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// What to lay out.
pub struct Format<'a> {
    pub config: &'a Config,
    /// Only the targets of this process.
    pub process: Option<&'a str>,
    /// Also devices that hold something.
    pub force: bool,
}

/// Lays out. Says on stderr what it made.
///
/// # Errors
/// The first target that cannot be laid out; those before it are.
pub fn format(request: &Format<'_>) -> Result<(), Failure> {
    let config = request.config;
    let secret_file = &config.cluster.secret_file.value;
    make_secret(secret_file)?;
    let id_path = ClusterId::path(secret_file);
    let failed = |e: super::identity::IdError| Failure::new("the cluster has no identity").cause(e);
    let (mut id, known) = match ClusterId::load(&id_path).map_err(failed)? {
        Some(id) => (id, true),
        None => (ClusterId::generate().map_err(failed)?, false),
    };
    // Every target of the file gets its uuid now: the other hosts and the pool know it before it is laid out.
    let mut fresh = Vec::new();
    for (_, target) in config.targets() {
        if !id.targets.contains_key(&target.name) {
            id.targets.insert(target.name.clone(), random_uuid().map_err(failed)?);
            fresh.push(target.name.clone());
        }
    }
    if !fresh.is_empty() || !known {
        id.store(&id_path).map_err(failed)?;
    }
    if !known {
        eprintln!("made {} for the new cluster {}", id_path.display(), id.cluster);
    }
    let chosen: Vec<&TargetConfig> = match request.process {
        Some(name) => config.process(Some(name))?.targets.iter().collect(),
        None => config.targets().map(|(_, t)| t).collect(),
    };
    for target in chosen {
        // A device that is laid out again is another target: what was on it is gone.
        let uuid = match id.targets.get(&target.name) {
            Some(uuid) if fresh.contains(&target.name) => *uuid,
            _ => random_uuid().map_err(failed)?,
        };
        one(target, uuid, id.cluster, request.force)?;
        if id.targets.insert(target.name.clone(), uuid) != Some(uuid) {
            id.store(&id_path).map_err(failed)?;
        }
    }
    Ok(())
}

fn make_secret(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        ClusterSecret::load(path).map_err(|e| super::unusable_secret(&e))?;
        return Ok(());
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::new("no randomness can be had from the system").cause(e))?;
    ClusterSecret::from_bytes(bytes)
        .store(path)
        .map_err(|e| Failure::new("the cluster secret cannot be kept").cause(with_sources(&e)))?;
    eprintln!(
        "made {}: keep a copy in a safe place, and give it to the cluster's hosts only",
        path.display()
    );
    Ok(())
}

fn one(target: &TargetConfig, uuid: Uuid, cluster: Uuid, force: bool) -> Result<(), Failure> {
    for uri in target.device.uris() {
        if let Some(directory) = uri.path().and_then(Path::parent).filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory)
                .map_err(|e| Failure::new(format!("cannot make {}", directory.display())).cause(e))?;
        }
    }
    let device = target.device.clone();
    let name = target.name.clone();
    let done = on_reactor(move |ctx, arena| async move {
        let mode = OpenMode { create: true, lock_wait: LOCK_WAIT, ..OpenMode::default() };
        let regions = open_regions(&ctx, std::slice::from_ref(&arena), &device, None, mode).await?;
        let size = regions.meta.len + regions.data.len;
        // When the host is full, data is refused; journal and trees go on, so that deleting does.
        if let Some(path) = sparse_meta(&device) {
            let len = regions.meta.len;
            ctx.blocking(move || reserve_head(&path, len)).await.map_err(|e| with_sources(&e))?;
        }
        let options = FormatOptions { force, ..FormatOptions::new(uuid, cluster, name) };
        cobalt_store::format(&ctx, &regions, &arena, &options).await.map_err(|e| with_sources(&e))?;
        Ok::<u64, String>(size)
    })?;
    match done {
        Ok(size) => {
            eprintln!("laid out target {} ({}) as {uuid}", target.name, ByteSize(size));
            Ok(())
        }
        Err(why) => Err(Failure::new(format!("target {} was not laid out", target.name))
            .cause(why)
            .hint("choose another device, or destroy what this one holds with `cobalt format --force`")),
    }
}

/// The file whose head is the meta region, where it takes room only as it is written.
fn sparse_meta(device: &TargetDevice) -> Option<PathBuf> {
    let (TargetDevice::One(uri) | TargetDevice::Two { meta: uri, .. }) = device;
    match &uri.kind {
        DeviceKind::File { path, sparse: true, .. } => Some(path.clone()),
        _ => None,
    }
}

/// Runs one task on a reactor of its own, with a small arena.
///
/// # Errors
/// When the system gives no reactor or memory.
pub fn on_reactor<T, F>(task: impl FnOnce(Ctx, Arena) -> F + 'static) -> Result<T, Failure>
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let failed = |e: std::io::Error| Failure::new("the system gives no reactor").cause(e);
    let reactor = Reactor::new(ReactorConfig::default()).map_err(failed)?;
    let arena = Arena::new(ArenaConfig { limit: ARENA }).map_err(failed)?;
    let ctx = reactor.ctx();
    Ok(reactor.block_on(async move {
        let done = task(ctx, arena).await;
        super::nvme::close_all().await;
        done
    }))
}
