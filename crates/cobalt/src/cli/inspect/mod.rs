//! `cobalt fsck` and `dump`: what lies on targets that are not in use. Nothing is written.

mod dump;
mod fsck;
mod names;
mod progress;
mod show;

pub use dump::dump;
pub use fsck::fsck;

use super::args::PlaceArgs;
use super::failure::{Code, Failure};
use super::place;
use crate::config::{Config, TargetDevice};
use crate::process::identity::ClusterId;
use crate::process::targets::{open_device, split, with_sources};
use cobalt_bdev::{DeviceKind, DeviceUri, OpenMode, open_uri};
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use cobalt_store::{Region, Regions};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A target that somebody named.
#[derive(Clone, Debug)]
struct Chosen {
    /// As the configuration names it, or as it was typed.
    name: String,
    process: Option<String>,
    device: TargetDevice,
    /// Who it must be, where the configuration says.
    cluster: Option<Uuid>,
    uuid: Option<Uuid>,
}

impl Chosen {
    fn device_name(&self) -> String {
        self.device.uris().iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
    }
}

/// Why a target cannot be looked at.
#[derive(Clone, Debug)]
struct Unreadable {
    /// For programs; stable.
    kind: &'static str,
    /// For people, with what to do.
    why: String,
}

/// The targets that were named: names of the configuration, device URIs or paths; all of the configuration for none. A
/// name of the configuration goes before a file of that name: `./t0` is the file.
fn chosen(place: &PlaceArgs, named: &[String]) -> Result<Vec<Chosen>, Failure> {
    if !named.is_empty() && named.iter().all(|text| is_device(text)) {
        return named.iter().map(|text| by_device(text)).collect();
    }
    let known = match place::config(place) {
        Ok(config) => of_config(&config),
        Err(_) if !named.is_empty() && is_default(place) && named.iter().all(|text| may_be_device(text)) => {
            Vec::new()
        }
        Err(failure) => return Err(failure),
    };
    if named.is_empty() {
        return Ok(known);
    }
    named
        .iter()
        .map(|text| match known.iter().find(|target| target.name == *text) {
            Some(target) => Ok(target.clone()),
            None if may_be_device(text) => by_device(text),
            None => {
                let names: Vec<_> = known.iter().map(|target| target.name.as_str()).collect();
                Err(Failure::new(format!("there is no target `{text}`"))
                    .hint(format!("the configuration has {}; or name a device or a file", names.join(", ")))
                    .code(Code::Usage))
            }
        })
        .collect()
}

fn is_default(place: &PlaceArgs) -> bool {
    place.config.is_none() && place.data_dir.is_none()
}

/// Whether it can be nothing but a device: a URI, or a path with a directory.
fn is_device(text: &str) -> bool {
    text.contains('/') || ["file:", "uring:", "mem:", "nvme:"].iter().any(|scheme| text.starts_with(scheme))
}

fn may_be_device(text: &str) -> bool {
    is_device(text) || Path::new(text).exists()
}

fn of_config(config: &Config) -> Vec<Chosen> {
    let path = ClusterId::path(&config.cluster.secret_file.value);
    let id = ClusterId::load(&path).ok().flatten();
    let of = |(process, target): (&crate::config::ProcessConfig, &crate::config::TargetConfig)| Chosen {
        name: target.name.clone(),
        process: Some(process.name.clone()),
        device: target.device.clone(),
        cluster: id.as_ref().map(|id| id.cluster),
        uuid: id.as_ref().and_then(|id| id.targets.get(&target.name).copied()),
    };
    config.targets().map(of).collect()
}

/// A device by its URI, or a file or block device by its path.
fn device_of(text: &str) -> Result<DeviceUri, String> {
    use std::os::unix::fs::FileTypeExt;
    if text.contains(':') {
        return text.parse().map_err(|e| with_sources(&e));
    }
    let path = PathBuf::from(text);
    let block = std::fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_block_device());
    let kind = match block {
        true => DeviceKind::Uring { path },
        false => DeviceKind::File { path, size: None, sparse: true },
    };
    Ok(DeviceUri { kind, volatile_cache: None, fua: true })
}

fn by_device(text: &str) -> Result<Chosen, Failure> {
    let failed = |why: String| {
        Failure::new(format!("`{text}` is no device that can be looked at"))
            .cause(why)
            .hint("name a file, a block device, or a target of the configuration")
            .code(Code::Usage)
    };
    match device_of(text).map_err(failed)? {
        DeviceUri { kind: DeviceKind::Mem { .. }, .. } => {
            Err(failed("it holds nothing: memory is forgotten when its process ends".into()))
        }
        uri => Ok(Chosen {
            name: text.to_owned(),
            process: None,
            device: TargetDevice::One(uri),
            cluster: None,
            uuid: None,
        }),
    }
}

/// Opens the regions of a target for reading.
async fn regions_of(ctx: &Ctx, arena: &Arena, device: &TargetDevice) -> Result<Regions, Unreadable> {
    let open = async |uri: &DeviceUri| {
        let mode = OpenMode::read_only();
        if matches!(uri.kind, DeviceKind::Nvme { .. }) {
            let opened = open_device(ctx, std::slice::from_ref(arena), uri, None, mode).await;
            return opened.map_err(|why| Unreadable { kind: "missing", why });
        }
        open_uri(ctx, arena, uri, mode)
            .await
            .map_err(|e| Unreadable { kind: kind_of(&e), why: with_sources(&e) })
    };
    match device {
        TargetDevice::One(uri) => {
            let device = open(uri).await?;
            let size = device.identify().size;
            split(&device).ok_or_else(|| Unreadable {
                kind: "truncated",
                why: format!(
                    "{uri} has {size} bytes, too few for any target: it was cut short, or is another file; \
                     restore it, or correct the path"
                ),
            })
        }
        TargetDevice::Two { meta, data } => {
            Ok(Regions { meta: Region::whole(open(meta).await?), data: Region::whole(open(data).await?) })
        }
    }
}

fn kind_of(error: &cobalt_bdev::OpenError) -> &'static str {
    use cobalt_bdev::OpenError as E;
    match error {
        E::Missing { .. } | E::NoDirectory { .. } => "missing",
        E::Directory { .. } | E::WrongKind { .. } => "not-a-device",
        E::Permission { .. } | E::ReadOnlyFileSystem { .. } => "permission",
        E::Locked { .. } => "in-use",
        E::TooSmall { .. } => "truncated",
        E::Empty { .. } | E::SizeNeeded { .. } => "empty",
        E::HostFull { .. } | E::System { .. } | E::Memory { .. } | E::Driven { .. } => "system",
    }
}

fn unreadable(error: &cobalt_store::OpenError) -> Unreadable {
    use cobalt_store::OpenError as E;
    let kind = match error {
        E::NotFormatted { .. } => "not-a-target",
        E::ForeignCluster { .. } => "foreign-cluster",
        E::ForeignTarget { .. } => "foreign-target",
        E::NewerFormat { .. } => "newer-format",
        E::WrongRegions { .. } => "wrong-size",
        E::Locked { .. } => "in-use",
        E::Damaged { .. } => "damaged",
        E::Device { .. } => "device",
        E::Limits { .. } => "limits",
    };
    Unreadable { kind, why: with_sources(error) }
}
