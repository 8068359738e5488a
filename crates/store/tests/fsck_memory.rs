//! The memory of a check does not grow with what a target holds: a sparse target of 1 TiB with few cobs and with many,
//! each checked by a process of its own, whose peak the kernel tells.
//!
//! `FSCK_COBS=1000000 cargo test -p cobalt-store --release --test fsck_memory` does it with so many, and prints what it saw.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

use cobalt_base::checksum::crc32c_chunks;
use cobalt_base::{Fid, SessionId};
use cobalt_bdev::{Device, DeviceUri, OpenMode, open_uri};
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use cobalt_store::{
    CobAttrs, FormatOptions, FsckOptions, OpenOptions, Region, Regions, Store, TxClass, format, fsck,
};
use futures::future::join_all;
use std::path::Path;
use std::process::Command;
use uuid::Uuid;

const CHUNK: usize = 4096;
const FILE: &str = "FSCK_MEMORY_FILE";

fn regions(device: &Device) -> Regions {
    let size = device.identify().size;
    let meta = size / 16;
    Regions {
        meta: Region { device: device.clone(), offset: 0, len: meta },
        data: Region { device: device.clone(), offset: meta, len: size - meta },
    }
}

fn on_reactor<T, F: Future<Output = T> + 'static>(task: impl FnOnce(Ctx, Arena) -> F) -> T
where
    T: 'static,
{
    let reactor = Reactor::new(ReactorConfig::default()).unwrap();
    let arena = Arena::new(ArenaConfig { limit: 16 << 20 }).unwrap();
    reactor.block_on(task(reactor.ctx(), arena))
}

async fn put(store: &Store, arena: &Arena, fid: Fid) {
    let bytes: Vec<u8> = (0..CHUNK).map(|i| (i as u64 ^ fid.counter) as u8).collect();
    let mut crcs = Vec::new();
    crc32c_chunks(&bytes, CHUNK, &mut crcs);
    let attrs = CobAttrs { chunk_size: CHUNK as u32, incarnation: 1 };
    let mut tx = store.tx_open(TxClass::Write, CHUNK as u64).await.unwrap();
    let cob = store.cob_lookup(&mut tx, fid, attrs).await.unwrap();
    let extents = store.balloc(&mut tx, CHUNK as u64).await.unwrap();
    store.extmap(&mut tx, &cob, 0, CHUNK as u64, &extents, &crcs).await.unwrap();
    let sealed = store.tx_close(tx);
    let mut buf = arena.alloc(CHUNK).await;
    buf.copy_from_slice(&bytes);
    let stable = store.data_write(&sealed, &[buf.freeze()]).await.unwrap();
    store.commit(sealed, stable).await.unwrap();
}

/// A new target with so many cobs, closed.
fn fill(path: &Path, cobs: u64) {
    let uri: DeviceUri = format!("file:{}?size=1TiB&sparse=true", path.display()).parse().unwrap();
    on_reactor(move |ctx, arena| async move {
        let mode = OpenMode { create: true, ..OpenMode::default() };
        let regions = regions(&open_uri(&ctx, &arena, &uri, mode).await.unwrap());
        let options = FormatOptions::new(Uuid::from_u128(1), Uuid::from_u128(2), "large");
        format(&ctx, &regions, &arena, &options).await.unwrap();
        let store = Store::open(ctx, regions, arena.clone(), OpenOptions::default()).await.unwrap();
        let all: Vec<u64> = (0..cobs).collect();
        for batch in all.chunks(256) {
            join_all(batch.iter().map(|n| put(&store, &arena, Fid::new(SessionId(1), *n)))).await;
        }
        store.close().await.unwrap();
    });
}

/// Checks the target in a process of its own, and gives that one's peak of memory in KiB.
fn peak_of_check(path: &Path) -> u64 {
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "check_alone", "--ignored", "--nocapture"])
        .env(FILE, path)
        .output()
        .unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{said}");
    let line =
        said.lines().find_map(|line| line.split("peak KiB ").nth(1)).unwrap_or_else(|| panic!("{said}"));
    line.trim().parse().unwrap()
}

#[test]
#[ignore = "the process that memory_does_not_grow_with_cobs starts"]
fn check_alone() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let uri: DeviceUri =
        format!("file:{}?size=1TiB&sparse=true", Path::new(&path).display()).parse().unwrap();
    let report = on_reactor(move |ctx, arena| async move {
        let regions = regions(&open_uri(&ctx, &arena, &uri, OpenMode::read_only()).await.unwrap());
        fsck(&ctx, &regions, &arena, &FsckOptions::default()).await.unwrap()
    });
    assert!(report.is_clean(), "{:?}", report.findings);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("{} cobs, peak KiB {}", report.cobs, peak.trim().trim_end_matches(" kB"));
}

#[test]
fn memory_does_not_grow_with_cobs() {
    let by_hand = std::env::var("FSCK_COBS").ok().and_then(|count| count.parse().ok());
    let many: u64 = by_hand.unwrap_or(40_000);
    let dir = tempfile::tempdir().unwrap();
    let mut peaks = Vec::new();
    for cobs in [100, many] {
        let path = dir.path().join(format!("t{cobs}"));
        fill(&path, cobs);
        peaks.push(peak_of_check(&path));
        if by_hand.is_some() {
            eprintln!("{cobs} cobs: peak {} KiB", peaks[peaks.len() - 1]);
        }
        std::fs::remove_file(&path).unwrap();
    }
    // 32 MiB of it are the map of 1 TiB of blocks; a map of cobs and one of extents would be 100 bytes a cob and more.
    assert!(peaks[1] < peaks[0] + 2048, "KiB with few and with many: {peaks:?}");
    assert!(peaks[1] < 128 << 10, "KiB: {peaks:?}");
}
