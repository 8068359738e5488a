//! Opening: every way in which a device can be wrong has an error that says what to do, and the best
//! backend is the one that is used.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests, too")]

use cobalt_bdev::{Device, DeviceUri, Engine, IoError, OpenError, OpenMode, open_uri, reserve_head};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use smallvec::smallvec;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tempfile::TempDir;

const CREATE: OpenMode = OpenMode {
    create: true,
    lock_wait: Duration::from_millis(200),
    engine: Engine::Auto,
    read_only: false,
    refuse_living: false,
};
const OPEN: OpenMode = OpenMode { create: false, ..CREATE };

struct Place {
    ctx: Ctx,
    arena: Arena,
    dir: TempDir,
}

impl Place {
    async fn open(&self, rest: &str, mode: OpenMode) -> Result<Device, OpenError> {
        let uri: DeviceUri = rest.replace("{}", self.dir.path().to_str().unwrap()).parse().unwrap();
        open_uri(&self.ctx, &self.arena, &uri, mode).await
    }

    async fn fails(&self, rest: &str, mode: OpenMode) -> String {
        match self.open(rest, mode).await {
            Ok(device) => panic!("{rest} opened as {}", device.identify().backend),
            Err(error) => error.to_string(),
        }
    }
}

fn at<F: Future<Output = ()> + 'static>(test: impl FnOnce(Place) -> F + 'static) {
    let reactor = Reactor::new(ReactorConfig::default()).unwrap();
    let ctx = reactor.ctx();
    let arena = Arena::new(ArenaConfig { limit: 16 << 20 }).unwrap();
    let dir = TempDir::new().unwrap();
    reactor.block_on(async move { test(Place { ctx, arena, dir }).await });
}

/// Whether this kernel lets this process have a ring at all.
fn kernel_has_io_uring() -> bool {
    io_uring::IoUring::new(8).is_ok()
}

#[test]
fn io_uring_is_used_where_it_is_there() {
    at(|p| async move {
        let device = p.open("file:{}/t0?size=1MiB", CREATE).await.unwrap();
        let backend = &device.identify().backend;
        let wanted = if kernel_has_io_uring() { "uring (O_DIRECT) " } else { "threads (O_DIRECT) " };
        assert!(backend.starts_with(wanted), "{backend}");
        assert!(backend.contains("/t0"), "{backend}");
        let locked = p.arena.stats().locked;
        assert_eq!(!backend.contains("buffers not registered"), locked, "{backend}");
    });
}

#[test]
fn the_fallback_is_shown() {
    at(|p| async move {
        let mode = OpenMode { engine: Engine::Threads, ..CREATE };
        let device = p.open("file:{}/t0?size=1MiB", mode).await.unwrap();
        assert!(device.identify().backend.starts_with("threads (O_DIRECT) "));
        drop(device);
        let device = p.open("file:{}/t0?volatile_cache=64KiB", OPEN).await.unwrap();
        assert!(device.identify().backend.starts_with("volatile_cache=64KiB over "));
        assert!(device.identify().volatile_cache);
    });
}

#[test]
fn a_created_file_has_its_size_and_room() {
    at(|p| async move {
        let full = p.open("file:{}/full?size=4MiB", CREATE).await.unwrap();
        let sparse = p.open("file:{}/sparse?size=4MiB&sparse=true", CREATE).await.unwrap();
        let room = |name| std::fs::metadata(p.dir.path().join(name)).unwrap().blocks() * 512;
        assert_eq!((full.identify().size, sparse.identify().size), (4 << 20, 4 << 20));
        assert!(room("full") >= 4 << 20 && room("sparse") < 1 << 20);
        assert!(full.identify().volatile_cache, "a file always needs fdatasync");
        // A hole would give the reserved room of the first one away.
        assert!(!full.identify().deallocate && sparse.identify().deallocate);
        // Deallocating a sparse file gives its room back.
        let mut buf = p.arena.try_alloc(1 << 20).unwrap();
        buf.fill(3);
        sparse.write(0, smallvec![buf.freeze()], true).await.unwrap();
        assert!(room("sparse") >= 1 << 20);
        sparse.deallocate(0, 1 << 20).await.unwrap();
        assert!(room("sparse") < 1 << 20);
    });
}

#[test]
fn the_head_of_a_sparse_file_can_be_reserved() {
    at(|p| async move {
        let device = p.open("file:{}/sparse?size=4MiB&sparse=true", CREATE).await.unwrap();
        let mut buf = p.arena.try_alloc(4096).unwrap();
        buf.fill(7);
        device.write(4096, smallvec![buf.freeze()], true).await.unwrap();
        let path = p.dir.path().join("sparse");
        reserve_head(&path, 1 << 20).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert!((1 << 20..2 << 20).contains(&(meta.blocks() * 512)), "{} blocks", meta.blocks());
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() == 4 << 20 && bytes[4095] == 0 && bytes[4096..8192].iter().all(|b| *b == 7));
        assert!(matches!(reserve_head(&path, 1 << 60), Err(OpenError::HostFull { .. })));
        assert_eq!(std::fs::metadata(&path).unwrap().blocks(), meta.blocks());
    });
}

#[test]
fn an_existing_file_keeps_its_bytes_when_created_again() {
    at(|p| async move {
        let device = p.open("file:{}/t0?size=1MiB", CREATE).await.unwrap();
        let mut buf = p.arena.try_alloc(4096).unwrap();
        buf.fill(9);
        device.write(0, smallvec![buf.freeze()], true).await.unwrap();
        drop(device);
        let device = p.open("file:{}/t0?size=1MiB", CREATE).await.unwrap();
        let buf = device.read(0, p.arena.try_alloc(4096).unwrap()).await.unwrap();
        assert!(buf.iter().all(|b| *b == 9));
        drop(device);
        let error = p.fails("file:{}/t0?size=2MiB", CREATE).await;
        assert!(error.contains("has 1048576 bytes, and size=2MiB is asked for"), "{error}");
        let smaller = p.open("file:{}/t0?size=512KiB", OPEN).await.unwrap();
        assert_eq!(smaller.identify().size, 512 << 10);
    });
}

#[test]
fn what_is_wrong_is_named() {
    at(|p| async move {
        let error = p.fails("file:{}/none?size=1MiB", OPEN).await;
        assert!(error.contains("/none does not exist: `cobalt format` creates it"), "{error}");
        let error = p.fails("file:{}/no/such/dir?size=1MiB", CREATE).await;
        assert!(error.contains("the directory of") && error.contains("make it"), "{error}");
        let error = p.fails("file:{}/none", CREATE).await;
        assert!(error.contains("without a size: add ?size=8GiB"), "{error}");
        assert!(!p.dir.path().join("none").exists(), "nothing is left behind");
        let error = p.fails("file:{}?size=1MiB", CREATE).await;
        assert!(error.contains("is a directory"), "{error}");
        let error = p.fails("uring:/dev/null", OPEN).await;
        assert!(error.contains("neither a file nor a block device"), "{error}");
        File::create(p.dir.path().join("empty")).unwrap();
        let error = p.fails("file:{}/empty", OPEN).await;
        assert!(error.contains("is empty: `cobalt format`"), "{error}");
        File::create(p.dir.path().join("small")).unwrap().set_len(4096).unwrap();
        let error = p.fails("file:{}/small?size=1MiB", OPEN).await;
        assert!(error.contains("has 4096 bytes, and size=1MiB"), "{error}");
    });
}

#[test]
fn a_host_without_room_is_named_and_left_as_it_was() {
    at(|p| async move {
        let free = nix::sys::statvfs::statvfs(p.dir.path()).unwrap();
        let size = (free.blocks_available() * free.fragment_size() / 4096 + (1 << 20)) * 4096;
        let error = p.open(&format!("file:{{}}/big?size={size}"), CREATE).await.err().unwrap();
        assert!(matches!(error, OpenError::HostFull { .. }), "{error}");
        assert!(error.to_string().contains("sparse=true"), "{error}");
        assert!(!p.dir.path().join("big").exists());
    });
}

#[test]
fn a_file_that_may_not_be_written_is_named() {
    at(|p| async move {
        // A file of sysfs that even root may not write.
        let error = p.fails("uring:/sys/kernel/uevent_seqnum", OPEN).await;
        assert!(error.contains("may not be read and written by this user"), "{error}");
    });
}

#[test]
fn only_one_at_a_time_has_a_device() {
    at(|p| async move {
        let first = p.open("file:{}/t0?size=1MiB", CREATE).await.unwrap();
        let began = p.ctx.now();
        let error = p.fails("file:{}/t0?size=1MiB", OPEN).await;
        assert!(p.ctx.now() - began >= OPEN.lock_wait, "it waited");
        let me = format!("process {}", std::process::id());
        assert!(error.contains(&me), "{error}");
        // Let go of while somebody waits: that one gets it.
        let patient = OpenMode { lock_wait: Duration::from_secs(10), ..OPEN };
        let p = Rc::new(p);
        let waiting = p.clone();
        let second = p.ctx.spawn(async move { waiting.open("file:{}/t0?size=1MiB", patient).await });
        p.ctx.sleep(Duration::from_millis(120)).await;
        assert!(!second.is_finished());
        drop(first);
        assert!(second.await.is_ok());
    });
}

#[test]
fn another_process_that_holds_a_device_is_named_until_it_is_killed() {
    at(|p| async move {
        drop(p.open("file:{}/t0?size=1MiB", CREATE).await.unwrap());
        let mut holder = std::process::Command::new("flock");
        holder.arg("--no-fork").arg(p.dir.path().join("t0")).args(["sh", "-c", "echo held; exec sleep 600"]);
        let Ok(mut holder) = holder.stdout(std::process::Stdio::piped()).spawn() else {
            let _ = writeln!(std::io::stderr(), "skipped: there is no flock(1)");
            return;
        };
        let mut word = [0; 4];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut word).unwrap();
        let error = p.fails("file:{}/t0?size=1MiB", OPEN).await;
        assert!(error.contains(&format!("is held by process {} (", holder.id())), "{error}");
        holder.kill().unwrap(); // Nobody waits for it to be gone: opening does.
        let patient = OpenMode { lock_wait: Duration::from_secs(10), ..OPEN };
        p.open("file:{}/t0?size=1MiB", patient).await.unwrap();
        holder.wait().unwrap();
    });
}

#[test]
fn a_file_cut_while_open_is_an_error_of_the_device() {
    for engine in [Engine::Auto, Engine::Threads] {
        at(move |p| async move {
            let device = p.open("file:{}/t0?size=1MiB", OpenMode { engine, ..CREATE }).await.unwrap();
            let path = p.dir.path().join("t0");
            File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
            let read = device.read(4096, p.arena.try_alloc(64 << 10).unwrap()).await;
            assert!(matches!(read, Err(IoError::Failed { op: "read", offset: 4096, .. })), "{read:?}");
            assert_eq!(device.counters().errors, 1);
            assert_eq!(p.arena.stats().in_use, 0);
            let good = device.read(0, p.arena.try_alloc(8192).unwrap()).await;
            assert!(good.is_ok());
        });
    }
}

/// A file system in memory, where this process may mount one; a `tmpfs` has room for 1 MiB.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(kind: &str, dir: &Path) -> Option<Small> {
        let mut mount = std::process::Command::new("mount");
        let done = mount.args(["-t", kind, "-o", "size=1m", "none"]).arg(dir).output();
        if done.is_ok_and(|o| o.status.success()) {
            return Some(Small(dir.into()));
        }
        let _ = writeln!(std::io::stderr(), "skipped: this user cannot mount a {kind}");
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_host_is_told_apart_from_a_broken_device() {
    for engine in [Engine::Auto, Engine::Threads] {
        at(move |p| async move {
            let dir = p.dir.path().join("fs");
            std::fs::create_dir(&dir).unwrap();
            let Some(_small) = Small::mount("tmpfs", &dir) else { return };
            let error = p.open("file:{}/fs/t0?size=8MiB", OpenMode { engine, ..CREATE }).await.err().unwrap();
            assert!(matches!(error, OpenError::HostFull { .. }), "{error}");
            let mode = OpenMode { engine, ..CREATE };
            let device = p.open("file:{}/fs/t0?size=8MiB&sparse=true", mode).await.unwrap();
            let mut buf = p.arena.try_alloc(4 << 20).unwrap();
            buf.fill(1);
            let data = buf.freeze();
            let full = device.write(0, smallvec![data.clone()], false).await;
            assert!(matches!(full, Err(IoError::HostFull { offset: 0, .. })), "{full:?}");
            // The device is well: room that is given back is used again.
            device.deallocate(0, 4 << 20).await.unwrap();
            device.write(0, smallvec![data.slice(0..64 << 10)], true).await.unwrap();
            drop(device);
        });
    }
}

#[test]
fn without_o_direct_the_page_cache_is_used_and_shown() {
    for engine in [Engine::Auto, Engine::Threads] {
        at(move |p| async move {
            let dir = p.dir.path().join("fs");
            std::fs::create_dir(&dir).unwrap();
            let Some(_small) = Small::mount("ramfs", &dir) else { return };
            let mode = OpenMode { engine, ..CREATE };
            let device = p.open("file:{}/fs/t0?size=1MiB", mode).await.unwrap();
            let id = device.identify();
            assert!(id.backend.contains(" (buffered) "), "{id:?}");
            assert!(id.volatile_cache && !id.deallocate && id.atomic_write == 512, "{id:?}");
            let mut buf = p.arena.try_alloc(8192).unwrap();
            buf.fill(4);
            device.write(4096, smallvec![buf.freeze()], true).await.unwrap();
            device.flush().await.unwrap();
            let buf = device.read(4096, p.arena.try_alloc(8192).unwrap()).await.unwrap();
            assert!(buf.iter().all(|b| *b == 4));
            drop(device);
        });
    }
}

/// A block device over a file, where this process may make one.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Option<Loop> {
        let made = std::process::Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let made = made.ok().filter(|o| o.status.success())?;
        Some(Loop(String::from_utf8(made.stdout).ok()?.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_reads_writes_and_says_what_it_is() {
    at(move |p| async move {
        let file = p.dir.path().join("disk");
        File::create(&file).unwrap().set_len(4 << 20).unwrap();
        let Some(disk) = Loop::over(&file) else {
            let _ = writeln!(std::io::stderr(), "skipped: this user cannot make a loop device");
            return;
        };
        let device = p.open(&format!("uring:{}", disk.0), OPEN).await.unwrap();
        let id = device.identify().clone();
        assert_eq!((id.size, id.block_size), (4 << 20, 512), "{id:?}");
        assert!(id.volatile_cache, "the file below is behind a cache: {id:?}");
        let mut buf = p.arena.try_alloc(512).unwrap();
        buf.fill(7);
        device.write(512, smallvec![buf.freeze()], true).await.unwrap();
        device.flush().await.unwrap();
        device.deallocate(1 << 20, 1 << 20).await.unwrap();
        let buf = device.read(512, p.arena.try_alloc(512).unwrap()).await.unwrap();
        assert!(buf.iter().all(|b| *b == 7));
        let beyond = device.read(id.size, p.arena.try_alloc(512).unwrap()).await;
        assert!(matches!(beyond, Err(IoError::Invalid { .. })));
    });
}

#[test]
fn a_device_opened_for_reading_is_not_changed_and_needs_no_leave_to_write() {
    at(|p| async move {
        drop(p.open("file:{}/t0?size=1MiB&sparse=true", CREATE).await.unwrap());
        let path = p.dir.path().join("t0");
        let mut mode = std::fs::metadata(&path).unwrap().permissions();
        mode.set_readonly(true);
        std::fs::set_permissions(&path, mode).unwrap();
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        for engine in [Engine::Auto, Engine::Threads] {
            let look = OpenMode { engine, ..OpenMode::read_only() };
            let device = p.open("file:{}/t0?size=1MiB&sparse=true", look).await.unwrap();
            assert!(!device.identify().deallocate);
            let buf = p.arena.alloc(4096).await;
            assert!(device.read(0, buf).await.unwrap().iter().all(|b| *b == 0));
            let mut buf = p.arena.alloc(4096).await;
            buf.fill(1);
            let refused = device.write(0, std::iter::once(buf.freeze()).collect(), false).await;
            assert!(refused.is_err(), "{engine:?}");
        }
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
    });
}

#[test]
fn whoever_only_looks_does_not_wait_for_a_living_holder() {
    at(|p| async move {
        let held = p.open("file:{}/t0?size=1MiB", CREATE).await.unwrap();
        let began = p.ctx.now();
        let error = p.fails("file:{}/t0?size=1MiB", OpenMode::read_only()).await;
        assert!(p.ctx.now() - began < Duration::from_secs(5), "the lock's wait is 10 s");
        assert!(error.contains(&format!("is held by process {} (", std::process::id())), "{error}");
        drop(held);
    });
}
