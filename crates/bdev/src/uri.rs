//! What names a device: `file:PATH?size=8GiB&sparse=true`, `uring:/dev/nvme0n1`, `nvme:0000:03:00.0/1`, `mem:4GiB`. Parsed into
//! typed values once; printing gives text that parses to the same value.

use cobalt_base::ByteSize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Sizes are multiples of this many bytes.
const SIZE_UNIT: u64 = 4096;

/// A device's name, and how it is to be made or treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceUri {
    /// What is behind it.
    pub kind: DeviceKind,
    /// Hold up to so much unflushed data back inside of the process, so that killing it acts like a power cut.
    pub volatile_cache: Option<ByteSize>,
    /// Whether the device's word on FUA is taken. Without, what must be durable is written, then flushed.
    pub fua: bool,
}

/// What is behind a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A file on a file system.
    File {
        /// Where it is.
        path: PathBuf,
        /// Size of the device; without it, whatever the file's size is.
        size: Option<ByteSize>,
        /// Take room on the file system as it is written, instead of all at creation.
        sparse: bool,
    },
    /// A block device, or an existing file.
    Uring {
        /// Where it is.
        path: PathBuf,
    },
    /// A namespace of a controller that this process drives.
    Nvme {
        /// Which controller.
        controller: NvmeName,
        /// Which of its namespaces.
        nsid: u32,
    },
    /// Memory that is forgotten at exit.
    Mem {
        /// Size of the device.
        size: ByteSize,
    },
}

/// How an NVMe controller is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NvmeName {
    /// By its place on the bus, in full: `0000:03:00.0`.
    Address(String),
    /// By its serial number, wherever it is.
    Serial(String),
}

impl fmt::Display for NvmeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NvmeName::Address(address) => f.write_str(address),
            NvmeName::Serial(serial) => write!(f, "serial={serial}"),
        }
    }
}

/// Why text is not the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// No scheme, or one that does not exist.
    #[error(
        "`{uri}` names no kind of device: begin with `file:`, `uring:`, `nvme:` or `mem:`, as in `file:data/t0?size=8GiB`"
    )]
    Scheme { uri: String },
    /// No controller, or no namespace.
    #[error(
        "`{uri}` names no namespace of a controller: write its PCI address or serial number and the namespace, as in `nvme:0000:03:00.0/1` or `nvme:serial=S4XX/1`"
    )]
    Namespace { uri: String },
    /// A cache over a controller.
    #[error(
        "`{uri}`: volatile_cache is for files and block devices: what it holds back lies in memory that a controller does not reach. Leave it out"
    )]
    CacheOverController { uri: String },
    /// Nothing after the scheme.
    #[error("`{uri}` has no path: write it after the colon, as in `{scheme}:data/t0`")]
    NoPath { uri: String, scheme: &'static str },
    /// A key that this kind of device does not have.
    #[error("`{uri}`: unknown key `{key}`: {scheme}: devices have {known}")]
    Key { uri: String, key: String, scheme: &'static str, known: &'static str },
    /// The same key twice.
    #[error("`{uri}`: `{key}` is there twice: keep one")]
    Twice { uri: String, key: String },
    /// A value that is no size.
    #[error(
        "`{uri}`: {key}: `{value}` is not a size: write a multiple of 4KiB above zero, as in `{key}=8GiB`"
    )]
    Size { uri: String, key: &'static str, value: String },
    /// A value that is neither true nor false.
    #[error("`{uri}`: {key}: `{value}` is neither `true` nor `false`")]
    Flag { uri: String, key: &'static str, value: String },
}

impl DeviceUri {
    /// The path that the device is at, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match &self.kind {
            DeviceKind::File { path, .. } | DeviceKind::Uring { path } => Some(path),
            DeviceKind::Mem { .. } | DeviceKind::Nvme { .. } => None,
        }
    }

    /// The same device with a relative path taken from `base` on.
    #[must_use]
    pub fn relative_to(mut self, base: &Path) -> DeviceUri {
        if let DeviceKind::File { path, .. } | DeviceKind::Uring { path } = &mut self.kind
            && path.is_relative()
        {
            *path = base.join(&*path);
        }
        self
    }
}

/// The keys behind the question mark, each taken once.
struct Query<'a> {
    uri: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Query<'a> {
    fn parse(uri: &'a str, query: Option<&'a str>) -> Result<Query<'a>, UriError> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for pair in query.unwrap_or("").split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if pairs.iter().any(|(k, _)| *k == key) {
                return Err(UriError::Twice { uri: uri.into(), key: key.into() });
            }
            pairs.push((key, value));
        }
        Ok(Query { uri, pairs })
    }

    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.pairs.iter().position(|(k, _)| *k == key)?;
        Some(self.pairs.swap_remove(at).1)
    }

    fn size(&mut self, key: &'static str) -> Result<Option<ByteSize>, UriError> {
        self.take(key).map(|value| size(self.uri, key, value)).transpose()
    }

    fn flag(&mut self, key: &'static str, unsaid: bool) -> Result<bool, UriError> {
        match self.take(key) {
            None => Ok(unsaid),
            Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(value) => Err(UriError::Flag { uri: self.uri.into(), key, value: value.into() }),
        }
    }

    fn end(self, scheme: &'static str, known: &'static str) -> Result<(), UriError> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(UriError::Key { uri: self.uri.into(), key: (*key).into(), scheme, known }),
        }
    }
}

fn size(uri: &str, key: &'static str, value: &str) -> Result<ByteSize, UriError> {
    match value.parse::<ByteSize>() {
        Ok(size) if size.0 > 0 && size.0.is_multiple_of(SIZE_UNIT) && i64::try_from(size.0).is_ok() => {
            Ok(size)
        }
        _ => Err(UriError::Size { uri: uri.into(), key, value: value.into() }),
    }
}

/// `0000:03:00.0/1`, `03:00.0/1` or `serial=S4XX/1`.
fn namespace(place: &str) -> Option<DeviceKind> {
    let (controller, nsid) = place.rsplit_once('/')?;
    let nsid = nsid.parse().ok().filter(|nsid| *nsid != 0 && *nsid != u32::MAX)?;
    let controller = match controller.strip_prefix("serial=") {
        Some("") => return None,
        Some(serial) => NvmeName::Serial(serial.to_owned()),
        None => NvmeName::Address(pci_address(controller)?),
    };
    Some(DeviceKind::Nvme { controller, nsid })
}

/// A PCI address in full and in lower case.
fn pci_address(text: &str) -> Option<String> {
    let full = if text.len() == 7 { format!("0000:{text}") } else { text.to_ascii_lowercase() };
    let shape = full.len() == 12
        && full.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b':',
            10 => byte == b'.',
            11 => matches!(byte, b'0'..=b'7'),
            _ => byte.is_ascii_hexdigit(),
        });
    shape.then(|| full.to_ascii_lowercase())
}

impl FromStr for DeviceUri {
    type Err = UriError;
    fn from_str(uri: &str) -> Result<DeviceUri, UriError> {
        let scheme_error = || UriError::Scheme { uri: uri.into() };
        let (scheme, rest) = uri.split_once(':').ok_or_else(scheme_error)?;
        let (place, query) = match rest.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (rest, None),
        };
        let mut query = Query::parse(uri, query)?;
        let volatile_cache = query.size("volatile_cache")?;
        let fua = query.flag("fua", true)?;
        let path = |scheme| match place {
            "" => Err(UriError::NoPath { uri: uri.into(), scheme }),
            _ => Ok(PathBuf::from(place)),
        };
        let kind = match scheme {
            "file" => {
                let kind = DeviceKind::File {
                    path: path("file")?,
                    size: query.size("size")?,
                    sparse: query.flag("sparse", false)?,
                };
                query.end("file", "size, sparse, fua and volatile_cache")?;
                kind
            }
            "uring" => {
                query.end("uring", "fua and volatile_cache")?;
                DeviceKind::Uring { path: path("uring")? }
            }
            "mem" => {
                query.end("mem", "fua and volatile_cache")?;
                DeviceKind::Mem { size: size(uri, "size", place)? }
            }
            "nvme" => {
                query.end("nvme", "fua")?;
                if volatile_cache.is_some() {
                    return Err(UriError::CacheOverController { uri: uri.into() });
                }
                namespace(place).ok_or_else(|| UriError::Namespace { uri: uri.into() })?
            }
            _ => return Err(scheme_error()),
        };
        Ok(DeviceUri { kind, volatile_cache, fua })
    }
}

impl fmt::Display for DeviceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut keys = Vec::new();
        match &self.kind {
            DeviceKind::File { path, size, sparse } => {
                write!(f, "file:{}", path.display())?;
                keys.extend(size.map(|s| format!("size={s}")));
                keys.extend(sparse.then(|| "sparse=true".to_owned()));
            }
            DeviceKind::Uring { path } => write!(f, "uring:{}", path.display())?,
            DeviceKind::Nvme { controller, nsid } => write!(f, "nvme:{controller}/{nsid}")?,
            DeviceKind::Mem { size } => write!(f, "mem:{size}")?,
        }
        keys.extend((!self.fua).then(|| "fua=false".to_owned()));
        keys.extend(self.volatile_cache.map(|s| format!("volatile_cache={s}")));
        if !keys.is_empty() {
            write!(f, "?{}", keys.join("&"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceKind, DeviceUri};
    use cobalt_base::ByteSize;
    use std::path::Path;

    #[test]
    fn uris_read_and_print_the_same() {
        for text in [
            "file:data/t0?size=8GiB",
            "file:/var/t0",
            "file:t0?size=1MiB&sparse=true&volatile_cache=64MiB",
            "uring:/dev/nvme0n1",
            "nvme:0000:03:00.0/1",
            "nvme:serial=S4XX 1/2",
            "uring:/dev/nvme0n1?volatile_cache=4MiB",
            "nvme:0000:03:00.0/1?fua=false",
            "file:t0?size=1MiB&fua=false&volatile_cache=64MiB",
            "mem:4GiB",
            "mem:64MiB?volatile_cache=1MiB",
        ] {
            let uri: DeviceUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), text);
            assert_eq!(uri.to_string().parse(), Ok(uri));
        }
        let uri: DeviceUri = "file:t0?sparse=false&size=8192KiB".parse().unwrap();
        assert_eq!(uri.to_string(), "file:t0?size=8MiB");
    }

    #[test]
    fn what_is_wrong_is_named_with_a_hint() {
        for (text, hint) in [
            ("data/t0", "begin with `file:`"),
            ("http:x", "begin with `file:`"),
            ("nvme:0000:03:00.0", "names no namespace"),
            ("nvme:0000:03:00.0/0", "names no namespace"),
            ("nvme:0000:03:00.9/1", "names no namespace"),
            ("nvme:serial=/1", "names no namespace"),
            ("nvme:0000:03:00.0/1?size=8GiB", "unknown key `size`: nvme: devices have fua"),
            ("nvme:0000:03:00.0/1?volatile_cache=4MiB", "memory that a controller does not reach"),
            ("file:", "no path"),
            ("uring:?volatile_cache=4MiB", "no path"),
            (
                "file:x?sise=8GiB",
                "unknown key `sise`: file: devices have size, sparse, fua and volatile_cache",
            ),
            ("uring:/dev/x?size=8GiB", "unknown key `size`"),
            ("mem:4GiB?sparse=true", "unknown key `sparse`"),
            ("file:x?size=0", "multiple of 4KiB above zero"),
            ("file:x?size=", "is not a size"),
            ("file:x?size=8GB/s", "is not a size"),
            ("file:x?size=4097", "multiple of 4KiB"),
            ("file:x?size=9000000TiB", "is not a size"),
            ("mem:lots", "is not a size"),
            ("mem:", "is not a size"),
            ("file:x?sparse=yes", "neither `true` nor `false`"),
            ("file:x?size=8GiB&size=4GiB", "twice"),
        ] {
            let error = text.parse::<DeviceUri>().unwrap_err().to_string();
            assert!(error.contains(hint) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn relative_paths_are_taken_from_the_file_that_names_them() {
        let uri: DeviceUri = "file:data/t0?size=8MiB".parse().unwrap();
        let uri = uri.relative_to(Path::new("/etc/cobalt"));
        assert_eq!(uri.path(), Some(Path::new("/etc/cobalt/data/t0")));
        let DeviceKind::File { size, .. } = uri.kind else { panic!("still a file") };
        assert_eq!(size, Some(ByteSize(8 << 20)));
        let uri: DeviceUri = "uring:/dev/sda".parse().unwrap();
        assert_eq!(uri.relative_to(Path::new("/x")).path(), Some(Path::new("/dev/sda")));
    }
}
