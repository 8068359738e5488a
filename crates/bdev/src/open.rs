//! Opening a device by its URI: find, lock, measure, and put the best backend over it.

use crate::device::{Bdev, Device};
use crate::holder::Holder;
use crate::mem::MemBdev;
use crate::target::{Target, block_size, queue_attribute, volatile_cache};
use crate::threads::{Threads, punch};
use crate::uri::{DeviceKind, DeviceUri};
use crate::uring::Uring;
use crate::volatile::VolatileCache;
use cobalt_base::ByteSize;
use cobalt_dma::Arena;
use cobalt_reactor::{Ctx, Poller};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// A file system's block: what a device's size is a multiple of.
const SIZE_UNIT: u64 = 4096;
/// Pause between two attempts to lock.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// How to open a device.
#[derive(Clone, Copy, Debug)]
pub struct OpenMode {
    /// Make a `file:` that does not exist, or is empty, in its size.
    pub create: bool,
    /// How long to wait for another process to let go of it. A killed process lets go when the kernel
    /// has finished its last operation.
    pub lock_wait: Duration,
    /// What drives it.
    pub engine: Engine,
    /// Open for reading only. Nothing is written, and a read-only file or file system will do.
    pub read_only: bool,
    /// Do not wait while a living process holds it: only for one that was killed and is not quite gone.
    pub refuse_living: bool,
}

/// What drives a file or block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring; threads where the kernel refuses it.
    Auto,
    /// Threads, as if the kernel refused io_uring.
    Threads,
}

impl OpenMode {
    /// For whoever only looks.
    pub fn read_only() -> OpenMode {
        OpenMode { read_only: true, refuse_living: true, ..OpenMode::default() }
    }
}

impl Default for OpenMode {
    fn default() -> OpenMode {
        OpenMode {
            create: false,
            lock_wait: Duration::from_secs(10),
            engine: Engine::Auto,
            read_only: false,
            refuse_living: false,
        }
    }
}

/// Why a device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} does not exist: `cobalt format` creates it, or correct the path", .path.display())]
    Missing { path: PathBuf },
    #[error("the directory of {} does not exist: make it, or correct the path", .path.display())]
    NoDirectory { path: PathBuf },
    #[error("{} is a directory: name a file or a block device", .path.display())]
    Directory { path: PathBuf },
    #[error("{} is neither a file nor a block device", .path.display())]
    WrongKind { path: PathBuf },
    #[error("{} may not be {} by this user: change its owner or mode", .path.display(), if *.read_only { "read" } else { "read and written" })]
    Permission { path: PathBuf, read_only: bool },
    #[error("{} lies on a file system that is mounted read-only: mount it for writing, or name another device", .path.display())]
    ReadOnlyFileSystem { path: PathBuf },
    #[error("{} is held by {holder}: stop that, or name another device", .path.display())]
    Locked { path: PathBuf, holder: String },
    #[error("{} has {len} bytes, and size={size} is asked for: if it was cut short, restore it; else correct the size, or remove the file if nothing in it is needed", .path.display())]
    TooSmall { path: PathBuf, len: u64, size: ByteSize },
    #[error("{} is to be created without a size: add ?size=8GiB to its URI", .path.display())]
    SizeNeeded { path: PathBuf },
    #[error("{} is empty: `cobalt format` gives it its size, or correct the path", .path.display())]
    Empty { path: PathBuf },
    #[error("no room for {size} at {}: free some, choose a smaller size, or add sparse=true to take it as it is needed", .path.display())]
    HostFull { path: PathBuf, size: ByteSize },
    #[error("{what} {} failed", .path.display())]
    System { path: PathBuf, what: &'static str, source: io::Error },
    #[error("{uri} is driven by this process itself, and is not opened as a file or block device is")]
    Driven { uri: String },
    #[error("no memory for the volatile cache")]
    Memory { source: io::Error },
}

/// Opens the device that `uri` names. `arena` is the memory that most of its I/O will use. The device is
/// served for as long as the scope of `ctx` lives. Files and block devices need a reactor on the
/// system's clock: no virtual time passes while a real disk works.
///
/// # Errors
/// [`OpenError`].
pub async fn open_uri(
    ctx: &Ctx,
    arena: &Arena,
    uri: &DeviceUri,
    mode: OpenMode,
) -> Result<Device, OpenError> {
    let bdev: Rc<dyn Bdev> = match &uri.kind {
        DeviceKind::Mem { size } => Rc::new(MemBdev::new(size.0)),
        // The driver lies above this crate: whoever links it opens these.
        DeviceKind::Nvme { .. } => return Err(OpenError::Driven { uri: uri.to_string() }),
        DeviceKind::File { path, size, sparse } => {
            let request = Request {
                path: path.clone(),
                size: *size,
                sparse: *sparse,
                create: mode.create,
                read_only: mode.read_only,
            };
            open_path(ctx, arena, request, mode).await?
        }
        DeviceKind::Uring { path } => {
            let request = Request {
                path: path.clone(),
                size: None,
                sparse: true,
                create: false,
                read_only: mode.read_only,
            };
            open_path(ctx, arena, request, mode).await?
        }
    };
    let device = match uri.volatile_cache {
        None => Device::new(bdev),
        Some(limit) => {
            let cache =
                VolatileCache::new(ctx, bdev, limit.0).map_err(|source| OpenError::Memory { source })?;
            Device::new(Rc::new(cache))
        }
    };
    Ok(if uri.fua { device } else { device.without_fua() })
}

#[derive(Clone)]
struct Request {
    path: PathBuf,
    size: Option<ByteSize>,
    sparse: bool,
    create: bool,
    read_only: bool,
}

struct Opened {
    file: File,
    direct: bool,
    created: bool,
}

async fn open_path(
    ctx: &Ctx,
    arena: &Arena,
    request: Request,
    mode: OpenMode,
) -> Result<Rc<dyn Bdev>, OpenError> {
    let step = request.clone();
    let opened = ctx.blocking(move || step.open()).await?;
    let opened = lock(ctx, &request.path, opened, mode).await?;
    let target = ctx.blocking(move || request.measure(opened)).await?;
    let (target, refusal) = match mode.engine {
        Engine::Threads => (target, "not asked for".to_owned()),
        Engine::Auto => match Uring::new(arena, target) {
            Ok(uring) => {
                let uring = Rc::new(uring);
                let poller: Weak<dyn Poller> = Rc::<Uring>::downgrade(&uring);
                ctx.add_poller(poller);
                return Ok(uring);
            }
            Err((target, error)) => (target, error.to_string()),
        },
    };
    tracing::warn!(device = %target.path.display(), reason = refusal, "io_uring is not used: a few threads make blocking calls instead, which is slower");
    let path = target.path.clone();
    let threads = Threads::new(ctx, target).map_err(|source| OpenError::System {
        path,
        what: "starting threads for",
        source,
    })?;
    Ok(Rc::new(threads))
}

/// Takes the exclusive lock of the very file description that the backend uses: while any of its I/O
/// runs, even that of a killed process, nobody else gets in.
async fn lock(ctx: &Ctx, path: &Path, opened: Opened, mode: OpenMode) -> Result<Opened, OpenError> {
    let until = ctx.now() + mode.lock_wait;
    let mut opened = opened;
    loop {
        match opened.file.try_lock() {
            Ok(()) => return Ok(opened),
            Err(TryLockError::Error(source)) => {
                return Err(OpenError::System { path: path.into(), what: "locking", source });
            }
            Err(TryLockError::WouldBlock) if ctx.now() < until && !mode.refuse_living => {
                ctx.sleep(LOCK_PAUSE).await;
            }
            Err(TryLockError::WouldBlock) => {
                let (same, holder) = ctx
                    .blocking(move || {
                        let holder = Holder::of(&opened.file).map(|holder| (holder.alive, holder.name()));
                        (opened, holder)
                    })
                    .await;
                opened = same;
                let alive = holder.as_ref().is_some_and(|(alive, _)| *alive);
                if ctx.now() < until && !alive {
                    ctx.sleep(LOCK_PAUSE).await;
                    continue;
                }
                let unknown = "another process, which this system does not name";
                let holder = holder.map_or_else(|| unknown.to_owned(), |(_, name)| name);
                return Err(OpenError::Locked { path: path.into(), holder });
            }
        }
    }
}

impl Request {
    fn system(&self, what: &'static str) -> impl FnOnce(io::Error) -> OpenError {
        let (path, create, read_only) = (self.path.clone(), self.create, self.read_only);
        move |source| match source.raw_os_error() {
            Some(libc::ENOENT) if create => OpenError::NoDirectory { path },
            Some(libc::ENOENT) => OpenError::Missing { path },
            Some(libc::EISDIR) => OpenError::Directory { path },
            Some(libc::EACCES | libc::EPERM) => OpenError::Permission { path, read_only },
            Some(libc::EROFS) => OpenError::ReadOnlyFileSystem { path },
            _ => OpenError::System { path, what, source },
        }
    }

    fn open(&self) -> Result<Opened, OpenError> {
        // Opening a pipe or a terminal has effects: look first.
        match self.path.metadata().map(|m| m.file_type()) {
            Ok(kind) if kind.is_dir() => return Err(OpenError::Directory { path: self.path.clone() }),
            Ok(kind) if kind.is_file() || kind.is_block_device() => {}
            Ok(_) => return Err(OpenError::WrongKind { path: self.path.clone() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.create => {}
            Err(error) => return Err(self.system("examining")(error)),
        }
        let exists = self.path.exists();
        if self.create && !exists && self.size.is_none() {
            return Err(OpenError::SizeNeeded { path: self.path.clone() });
        }
        let open = |create: bool, flags: i32| {
            let mut options = OpenOptions::new();
            options.read(true).write(!self.read_only).create_new(create).mode(0o600);
            options.custom_flags(flags).open(&self.path)
        };
        // Whoever makes the file takes it away again if it gets no room: nobody else's.
        let mut created = self.create && !exists;
        let mut opened = open(created, libc::O_DIRECT);
        if created && opened.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists) {
            created = false;
            opened = open(false, libc::O_DIRECT);
        }
        match opened {
            Ok(file) => Ok(Opened { file, direct: true, created }),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                // A refused O_DIRECT has made the file all the same.
                let create = created && !self.path.exists();
                let file = open(create, 0).map_err(self.system("opening"))?;
                tracing::warn!(device = %self.path.display(), "this file system refuses O_DIRECT: data goes through the page cache");
                Ok(Opened { file, direct: false, created })
            }
            Err(error) => Err(self.system("opening")(error)),
        }
    }

    /// Gives a new file its size, and finds out what an old one is.
    fn measure(&self, opened: Opened) -> Result<Target, OpenError> {
        let Opened { file, direct, created } = opened;
        let path = self.path.clone();
        let meta = file.metadata().map_err(self.system("examining"))?;
        let kind = meta.file_type();
        if meta.st_nlink() == 0 {
            return Err(OpenError::Missing { path }); // Removed while it was waited for.
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::WrongKind { path });
        }
        let mut len = self.len(&file)?;
        if len == 0 && self.create && kind.is_file() {
            let size = self.size.ok_or(OpenError::SizeNeeded { path: path.clone() })?;
            if let Err(error) = self.allocate(&file, size) {
                if created {
                    let _ = std::fs::remove_file(&path); // As it was before.
                }
                return Err(error);
            }
            len = self.len(&file)?;
        }
        let size = self.size.map_or(len / SIZE_UNIT * SIZE_UNIT, |size| size.0);
        if size == 0 {
            return Err(OpenError::Empty { path });
        }
        if len < size {
            return Err(OpenError::TooSmall { path, len, size: ByteSize(size) });
        }
        let meta = file.metadata().map_err(self.system("examining"))?;
        // A hole in a file that was allocated whole would give its room away: only sparse ones have them.
        let punches = || punch(&file, len, SIZE_UNIT).is_ok(); // Beyond the end: asks, and changes nothing.
        let deallocate =
            self.sparse && !self.read_only && if kind.is_file() { punches() } else { zeroes_ranges(&meta) };
        let (block_size, volatile_cache) = (block_size(&meta), volatile_cache(&meta));
        Ok(Target { file, path, size, direct, block_size, volatile_cache, deallocate })
    }

    fn len(&self, mut file: &File) -> Result<u64, OpenError> {
        file.seek(SeekFrom::End(0)).map_err(self.system("measuring"))
    }

    fn allocate(&self, file: &File, size: ByteSize) -> Result<(), OpenError> {
        let sized = if self.sparse { file.set_len(size.0) } else { reserve(file, size.0) };
        let stable = sized.and_then(|()| file.sync_all()).and_then(|()| sync_parent(&self.path));
        stable.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
                OpenError::HostFull { path: self.path.clone(), size }
            }
            _ => self.system("creating")(source),
        })
    }
}

fn reserve(file: &File, size: u64) -> io::Result<()> {
    // The size comes last and at once: a file that is cut short here is empty, and is begun anew.
    match claim(file, size) {
        Ok(true) => file.set_len(size),
        Ok(false) => {
            tracing::warn!("this file system cannot reserve room: the file is sparse");
            file.set_len(size)
        }
        Err(error) => {
            let _ = file.set_len(0); // Gives back what it got.
            Err(error)
        }
    }
}

/// Takes the host's room for the first `len` bytes; false where the file system cannot. What they hold stays, and so does
/// the size.
fn claim(file: &File, len: u64) -> io::Result<bool> {
    let bytes = i64::try_from(len).map_err(io::Error::other)?;
    // Asked first: trying would fill the host to the brim for a moment, and others with it. A file system
    // without a size of its own says zero.
    let host = nix::sys::statvfs::fstatvfs(file)?;
    if host.blocks() > 0 && host.blocks_available().saturating_mul(host.fragment_size()) < len {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes the host's room for the first `len` bytes of the sparse file at `path`: they can be written however full the host
/// becomes. Blocks.
///
/// # Errors
/// [`OpenError::HostFull`], or what the system says.
pub fn reserve_head(path: &Path, len: u64) -> Result<(), OpenError> {
    let file = std::fs::OpenOptions::new().write(true).open(path);
    match file.and_then(|file| claim(&file, len).and_then(|claimed| file.sync_all().map(|()| claimed))) {
        Ok(true) => Ok(()),
        Ok(false) => {
            tracing::warn!(path = %path.display(), "this file system cannot reserve room: a full host stops the target");
            Ok(())
        }
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
            Err(OpenError::HostFull { path: path.into(), size: ByteSize(len) })
        }
        Err(source) => Err(OpenError::System { path: path.into(), what: "reserving room", source }),
    }
}

/// Makes a new name durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Whether a block device can zero a range by itself: only then does it take holes.
fn zeroes_ranges(meta: &std::fs::Metadata) -> bool {
    queue_attribute(meta, "write_zeroes_max_bytes").is_some_and(|max| max != "0")
}
