//! The conformance suite over each backend of this crate: `mem`, a file over io_uring, the same over threads, and the
//! volatile cache over both.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests, too")]

use cobalt_bdev::conformance::{Open, Traits};
use cobalt_bdev::{DeviceUri, Engine, OpenMode, conformance, open_uri};
use cobalt_reactor::{Reactor, ReactorConfig};
use std::rc::Rc;
use std::time::Duration;
use tempfile::TempDir;

/// The device that `uri` (with `{}` for a fresh directory) and `engine` name.
fn on(uri: &str, engine: Engine) -> (Reactor, Traits, Open) {
    let dir = Rc::new(TempDir::new().unwrap());
    let mem = uri.starts_with("mem:");
    let traits = Traits {
        volatile_cache: uri != "mem:8MiB",
        at_once: mem,
        forgets: mem,
        transfer_max: 4 << 20,
        settles: Duration::ZERO,
    };
    let uri: DeviceUri = uri.replace("{}", dir.path().to_str().unwrap()).parse().unwrap();
    let open: Open = Box::new(move |ctx, arena| {
        let (uri, dir) = (uri.clone(), dir.clone());
        Box::pin(async move {
            let mode = OpenMode { create: true, engine, ..OpenMode::default() };
            let device = open_uri(&ctx, &arena, &uri, mode).await.expect("open");
            drop(dir);
            device
        })
    });
    (Reactor::new(ReactorConfig::default()).unwrap(), traits, open)
}

conformance! {
    mem: || on("mem:8MiB", Engine::Auto);
    uring: || on("file:{}/t0?size=8MiB&sparse=true", Engine::Auto);
    threads: || on("file:{}/t0?size=8MiB&sparse=true", Engine::Threads);
    volatile_mem: || on("mem:8192KiB?volatile_cache=1MiB", Engine::Auto);
    volatile_file: || on("file:{}/t0?size=8MiB&sparse=true&volatile_cache=1MiB", Engine::Auto);
}
