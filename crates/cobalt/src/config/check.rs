//! From the file's text to a [`Config`], every rule of it checked.

use super::device::{Identity, identity};
use super::error::{ConfigError, Fault};
use super::layout::LayoutSpec;
use super::raw::{RawCluster, RawConfig, RawProcess, RawS3, RawTarget};
use super::{
    ARENA_DEFAULT, CACHE_DEFAULT, ClusterConfig, Config, Origin, ProcessConfig, REGION_DEFAULT, S3Config,
    Setting, TargetConfig, TargetDevice, UNIT_SIZE_DEFAULT, directory_of,
};
use cobalt_base::{BLOCK_SIZE, ByteSize};
use cobalt_bdev::{DeviceKind, DeviceUri, UriError};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Largest unit.
const UNIT_SIZE_MAX: u64 = 1 << 20;
/// Smallest arena that a process can work with.
const ARENA_MIN: u64 = 32 << 20;
/// Smallest cache that a target can work with.
const CACHE_MIN: u64 = 4 << 20;
/// Longest name of a process or target.
const NAME_MAX: usize = 64;

/// Turns places into lines, and faults into errors.
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
    base: PathBuf,
}

impl Source<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        let upto = self.text.as_bytes().get(..span.start).unwrap_or_default();
        1 + upto.iter().filter(|b| **b == b'\n').count()
    }

    fn error(&self, span: &Range<usize>, fault: Fault, hint: impl Into<String>) -> ConfigError {
        ConfigError { file: self.file.to_owned(), line: Some(self.line(span)), fault, hint: hint.into() }
    }

    fn incomplete(&self, what: impl Into<String>, hint: impl Into<String>) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: None,
            fault: Fault::Incomplete(what.into()),
            hint: hint.into(),
        }
    }

    fn setting<T>(&self, value: Option<Spanned<T>>, default: T) -> Setting<T> {
        match value {
            Some(v) => {
                let origin = Origin::File(self.line(&v.span()));
                Setting { value: v.into_inner(), origin }
            }
            None => Setting { value: default, origin: Origin::Default },
        }
    }
}

/// Reads and checks.
pub(super) fn check(file: &Path, text: &str) -> Result<Config, ConfigError> {
    let source = Source { file, text, base: directory_of(file) };
    let raw: RawConfig = toml::from_str(text).map_err(|e| syntax(&source, &e))?;
    let cluster = cluster(&source, raw.cluster)?;
    let mut names = Names::default();
    let mut processes = Vec::new();
    for process in raw.process {
        processes.push(self::process(&source, &mut names, process)?);
    }
    let config = Config { file: file.to_owned(), cluster, processes };
    whole(&source, &config)?;
    Ok(config)
}

fn syntax(source: &Source<'_>, error: &toml::de::Error) -> ConfigError {
    let message = error.message().trim().to_owned();
    let span = error.span().unwrap_or(0..0);
    if message.starts_with("unknown field") {
        let (key, known) = message.split_once(", expected ").unwrap_or((&message, "another key"));
        let key = key.trim_start_matches("unknown field").trim().to_owned();
        let hint = format!("known here: {}", known.trim_start_matches("one of ").replace('`', ""));
        return source.error(&span, Fault::UnknownKey(format!("the key {key} is not known")), hint);
    }
    if message.contains("is not a size") || message.contains("is not a layout") {
        let (what, hint) = message.split_once(": ").unwrap_or((&message, "see `cobalt config example`"));
        return source.error(&span, Fault::BadValue(what.to_owned()), hint);
    }
    source.error(&span, Fault::Syntax(message), "see `cobalt config example`")
}

fn cluster(source: &Source<'_>, raw: Option<RawCluster>) -> Result<ClusterConfig, ConfigError> {
    let Some(raw) = raw else {
        return Err(source.incomplete("the section [cluster] is missing", "see `cobalt config example`"));
    };
    if let Some(unit) = &raw.unit_size {
        let bytes = unit.get_ref().0;
        if !bytes.is_power_of_two() || !(BLOCK_SIZE..=UNIT_SIZE_MAX).contains(&bytes) {
            let fault = Fault::BadValue(format!("a unit of {} is not possible", unit.get_ref()));
            return Err(source.error(&unit.span(), fault, "take a power of two from 4KiB to 1MiB"));
        }
    }
    let Some(secret) = raw.secret_file else {
        return Err(source.incomplete(
            "[cluster] names no secret_file",
            "add secret_file = \"cluster.secret\"; `cobalt format` makes the file",
        ));
    };
    let origin = Origin::File(source.line(&secret.span()));
    Ok(ClusterConfig {
        secret_file: Setting { value: source.base.join(secret.into_inner()), origin },
        layout: source.setting(raw.layout, LayoutSpec::default()),
        unit_size: source.setting(raw.unit_size, UNIT_SIZE_DEFAULT),
    })
}

/// What must not be there twice: name or address, with the line of the first.
#[derive(Default)]
struct Names {
    processes: HashMap<String, usize>,
    targets: HashMap<String, usize>,
    addresses: HashMap<SocketAddr, usize>,
    devices: HashMap<Identity, String>,
}

fn unique(
    source: &Source<'_>,
    seen: &mut HashMap<String, usize>,
    kind: &'static str,
    name: &Spanned<String>,
) -> Result<(), ConfigError> {
    let text = name.get_ref();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    if text.is_empty() || text.len() > NAME_MAX || !text.chars().all(plain) || text.starts_with('.') {
        let fault = Fault::BadValue(format!("`{text}` cannot be the name of a {kind}"));
        return Err(source.error(&name.span(), fault, "use letters, digits, - _ and ., at most 64"));
    }
    let line = source.line(&name.span());
    if let Some(first) = seen.insert(text.clone(), line) {
        let fault = Fault::Duplicate { kind, name: text.clone(), first };
        return Err(source.error(&name.span(), fault, "give each its own name"));
    }
    Ok(())
}

fn process(
    source: &Source<'_>,
    names: &mut Names,
    raw: Spanned<RawProcess>,
) -> Result<ProcessConfig, ConfigError> {
    let span = raw.span();
    let raw = raw.into_inner();
    unique(source, &mut names.processes, "process", &raw.name)?;
    let mut listen = Vec::new();
    for address in &raw.listen {
        listen.push(peer_address(source, names, address)?);
    }
    let admin = match &raw.admin {
        Some(admin) => Some(address(source, names, "the admin address", admin.get_ref(), &admin.span())?),
        None => None,
    };
    for (value, least, what) in [(&raw.arena, ARENA_MIN, "arena"), (&raw.cache, CACHE_MIN, "cache")] {
        if let Some(size) = value
            && size.get_ref().0 < least
        {
            let fault = Fault::BadValue(format!("{what} = \"{}\" is too small to work with", size.get_ref()));
            return Err(source.error(&size.span(), fault, format!("give it {} or more", ByteSize(least))));
        }
    }
    let mut targets = Vec::new();
    for target in raw.target {
        targets.push(self::target(source, names, target)?);
    }
    let s3 = match raw.s3 {
        Some(s3) => Some(self::s3(source, names, s3)?),
        None => None,
    };
    let name = raw.name.into_inner();
    let cas = source.setting(raw.cas, false);
    if targets.is_empty() && s3.is_none() {
        let fault = Fault::Incomplete(format!("the process `{name}` has neither a target nor S3"));
        return Err(source.error(&span, fault, "add [[process.target]] or [process.s3], or remove it"));
    }
    if cas.value && targets.is_empty() {
        let fault =
            Fault::Incomplete(format!("the process `{name}` cannot hold the catalogue: it has no target"));
        return Err(source.error(&span, fault, "set cas = true on a process with a target"));
    }
    Ok(ProcessConfig {
        line: source.line(&span),
        name,
        listen,
        admin,
        cas,
        arena: source.setting(raw.arena, ARENA_DEFAULT),
        cache: source.setting(raw.cache, CACHE_DEFAULT),
        targets,
        s3,
    })
}

fn peer_address(
    source: &Source<'_>,
    names: &mut Names,
    raw: &Spanned<String>,
) -> Result<Setting<SocketAddr>, ConfigError> {
    let text = raw.get_ref();
    match text.split_once(':') {
        Some(("tcp", rest)) => {
            let rest = rest.trim_start_matches("//");
            address(source, names, "the process", rest, &raw.span())
        }
        Some(("rdma" | "shm" | "verbs", _)) => {
            let fault = Fault::NotBuiltIn(text.clone());
            Err(source.error(&raw.span(), fault, "use tcp://127.0.0.1:PORT"))
        }
        _ => {
            let fault = Fault::BadValue(format!("`{text}` is not an address of the fabric"));
            Err(source.error(&raw.span(), fault, "write tcp://127.0.0.1:PORT"))
        }
    }
}

fn address(
    source: &Source<'_>,
    names: &mut Names,
    what: &'static str,
    text: &str,
    span: &Range<usize>,
) -> Result<Setting<SocketAddr>, ConfigError> {
    let addr: SocketAddr = text.parse().map_err(|_| {
        let fault = Fault::BadValue(format!("`{text}` is not an address"));
        source.error(span, fault, "write HOST:PORT with a numeric host, as in 127.0.0.1:9000")
    })?;
    if !addr.ip().is_loopback() {
        let fault = Fault::NotLoopback { what, addr: addr.to_string() };
        return Err(source.error(span, fault, "listen on 127.0.0.1 or [::1]"));
    }
    let line = source.line(span);
    if addr.port() != 0
        && let Some(first) = names.addresses.insert(addr, line)
    {
        let fault = Fault::Duplicate { kind: "address", name: addr.to_string(), first };
        return Err(source.error(span, fault, "give each listener its own port"));
    }
    Ok(Setting { value: addr, origin: Origin::File(line) })
}

fn target(
    source: &Source<'_>,
    names: &mut Names,
    raw: Spanned<RawTarget>,
) -> Result<TargetConfig, ConfigError> {
    let span = raw.span();
    let raw = raw.into_inner();
    unique(source, &mut names.targets, "target", &raw.name)?;
    let name = raw.name.get_ref().clone();
    if let Some(reactor) = &raw.reactor
        && *reactor.get_ref() != 0
    {
        let fault = Fault::Reactor(*reactor.get_ref());
        return Err(source.error(&reactor.span(), fault, "write reactor = 0 or leave it out"));
    }
    let mut device = |uri: &Spanned<String>| device(source, names, &name, uri);
    let device = match (&raw.device, &raw.meta, &raw.data) {
        (Some(one), None, None) => TargetDevice::One(device(one)?),
        (None, Some(meta), Some(data)) => TargetDevice::Two { meta: device(meta)?, data: device(data)? },
        _ => {
            let fault = Fault::Incomplete(format!("the target `{name}` names no complete place"));
            return Err(source.error(&span, fault, "write either device, or both meta and data"));
        }
    };
    Ok(TargetConfig { line: source.line(&span), name, device })
}

fn device(
    source: &Source<'_>,
    names: &mut Names,
    target: &str,
    raw: &Spanned<String>,
) -> Result<DeviceUri, ConfigError> {
    let uri: DeviceUri = raw.get_ref().parse().map_err(|bad: UriError| {
        let text = bad.to_string();
        let (what, hint) = text.rsplit_once(": ").unwrap_or((&text, "see `cobalt config example`"));
        source.error(&raw.span(), Fault::BadValue(what.to_owned()), hint)
    })?;
    let uri = uri.relative_to(&source.base);
    if let Some(identity) = identity(&uri)
        && let Some(first) = names.devices.insert(identity, target.to_owned())
    {
        let fault =
            Fault::SameDevice { first: first.into(), second: target.into(), device: uri.to_string().into() };
        return Err(source.error(&raw.span(), fault, "give each target a device of its own"));
    }
    Ok(uri)
}

fn s3(source: &Source<'_>, names: &mut Names, raw: Spanned<RawS3>) -> Result<S3Config, ConfigError> {
    let span = raw.span();
    let raw = raw.into_inner();
    if let Some(tls) = &raw.tls {
        let fault = Fault::NotBuiltIn("tls".into());
        return Err(source.error(&tls.span(), fault, "remove it, and put a TLS proxy in front for now"));
    }
    let Some(listen) = &raw.listen else {
        let fault = Fault::Incomplete("[process.s3] names no address".into());
        return Err(source.error(&span, fault, "add listen = \"127.0.0.1:9000\""));
    };
    let listen = address(source, names, "S3", listen.get_ref(), &listen.span())?;
    let domain = raw.domain.map(|d| {
        let origin = Origin::File(source.line(&d.span()));
        Setting { value: d.into_inner(), origin }
    });
    Ok(S3Config { listen, region: source.setting(raw.region, REGION_DEFAULT.to_owned()), domain })
}

/// Rules that no single line breaks.
fn whole(source: &Source<'_>, config: &Config) -> Result<(), ConfigError> {
    if config.processes.is_empty() {
        return Err(source.incomplete("no [[process]] is described", "see `cobalt config example`"));
    }
    let holders: Vec<_> = config.processes.iter().filter(|p| p.cas.value).collect();
    match holders.as_slice() {
        [_] => {}
        [] => {
            let hint = "set cas = true on one process with a target";
            return Err(source.incomplete("no process holds the catalogue", hint));
        }
        [_, second, ..] => {
            let line = match second.cas.origin {
                Origin::File(line) => line,
                _ => second.line,
            };
            return Err(ConfigError {
                line: Some(line),
                ..source.incomplete(
                    "two processes would hold the catalogue, which is not replicated yet",
                    "set cas = true on one process only",
                )
            });
        }
    }
    controllers(source, config)?;
    let layout = config.cluster.layout.value;
    let targets = config.targets().count();
    if targets < layout.width() {
        return Err(source.incomplete(
            format!("layout {layout} needs {} targets, and {targets} are described", layout.width()),
            "add targets or choose a narrower layout",
        ));
    }
    if config.processes.len() > 1
        && let Some(process) = config.processes.iter().find(|p| !p.targets.is_empty() && p.listen.is_empty())
    {
        return Err(ConfigError {
            line: Some(process.line),
            ..source.incomplete(
                format!("the others cannot reach the process `{}`", process.name),
                "add listen = [\"tcp://127.0.0.1:PORT\"]",
            )
        });
    }
    Ok(())
}

/// A controller belongs to one process, and so does a whole IOMMU group.
fn controllers(source: &Source<'_>, config: &Config) -> Result<(), ConfigError> {
    let mut owners: HashMap<String, (&str, String)> = HashMap::new();
    for process in &config.processes {
        for target in &process.targets {
            for uri in target.device.uris() {
                let DeviceKind::Nvme { controller, .. } = &uri.kind else { continue };
                let address = crate::host::address_of(controller);
                let group = crate::host::group_of(&address);
                let keys = [Some(address.clone()), group.map(|group| format!("IOMMU group {group}"))];
                for key in keys.into_iter().flatten() {
                    let owner = owners.entry(key.clone()).or_insert((&process.name, address.clone()));
                    if owner.0 != process.name {
                        let what = format!(
                            "the processes `{}` and `{}` would share {key} (controllers {} and {address})",
                            owner.0, process.name, owner.1
                        );
                        return Err(ConfigError {
                            line: Some(target.line),
                            ..source.incomplete(
                                what,
                                "give all targets of a controller, and of its group, to one process",
                            )
                        });
                    }
                }
            }
        }
    }
    Ok(())
}
