//! fjall: one write batch a batch. Its memtables come out of the cache limit: a quarter of it, up to its default.

use super::{Args, Figures, phases};
use anyhow::ensure;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};

/// Its default, and what its documentation recommends at most.
const MEMTABLE_MAX: u64 = 64 << 20;

pub fn run(args: &Args) -> anyhow::Result<Figures> {
    let path = args.dir.join("store-bench.fjall");
    let _ = std::fs::remove_dir_all(&path);
    let limit = args.cache.0;
    ensure!(limit >= 32 << 20, "a cache of {} is too small for its memtables", args.cache);
    // One that fills and one that is on its way to a table.
    let memtable = MEMTABLE_MAX.min(limit / 8);
    let db = Database::builder(&path).cache_size(limit - 2 * memtable).open()?;
    let space = db.keyspace("ctg", || KeyspaceCreateOptions::default().max_memtable_size(memtable))?;
    let durability = args.flush.then_some(PersistMode::SyncData);
    let laps = phases(
        args,
        |feed, entries| {
            let mut batch = db.batch().durability(durability);
            for i in entries {
                let (key, value) = feed.entry(i);
                batch.insert(&space, key, value);
            }
            Ok(batch.commit()?)
        },
        |feed| {
            for n in 0..args.gets {
                let found = space.get(feed.ask(n))?;
                feed.check(n, found.as_deref())?;
            }
            Ok(())
        },
    );
    let cache_bytes = Some(db.cache_size());
    let notes = format!("disk {} compactions {}", db.disk_space().unwrap_or(0), db.compactions_completed());
    drop(space);
    drop(db);
    let _ = std::fs::remove_dir_all(&path);
    let [put, get] = laps?;
    Ok(Figures { put, get, cache_bytes, notes })
}
