//! redb: one write transaction a batch.

use super::{Args, Figures, phases};
use redb::{Database, Durability, ReadableDatabase, TableDefinition};

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("ctg");

pub fn run(args: &Args) -> anyhow::Result<Figures> {
    let path = args.dir.join("store-bench.redb");
    let _ = std::fs::remove_file(&path);
    let db = Database::builder().set_cache_size(usize::try_from(args.cache.0)?).create(&path)?;
    let durability = if args.flush { Durability::Immediate } else { Durability::None };
    let laps = phases(
        args,
        |feed, batch| {
            let mut tx = db.begin_write()?;
            tx.set_durability(durability)?;
            let mut table = tx.open_table(TABLE)?;
            for i in batch {
                let (key, value) = feed.entry(i);
                table.insert(key, value)?;
            }
            drop(table);
            Ok(tx.commit()?)
        },
        |feed| {
            let table = db.begin_read()?.open_table(TABLE)?;
            for n in 0..args.gets {
                let found = table.get(feed.ask(n))?;
                feed.check(n, found.as_ref().map(redb::AccessGuard::value))?;
            }
            Ok(())
        },
    );
    drop(db);
    let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
    let _ = std::fs::remove_file(&path);
    let [put, get] = laps?;
    Ok(Figures { put, get, cache_bytes: None, notes: format!("file {bytes}") })
}
