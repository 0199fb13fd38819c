//! The stores that are measured: kine's layout, N live keys of 1 KiB and as many dead rows, made once and cached.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rusqlite::{Connection, params};

/// Value size in bytes.
pub const VALUE: usize = 1024;

/// The program file named by an environment variable that `scripts/bench` sets.
pub fn program(variable: &str, name: &str) -> anyhow::Result<PathBuf> {
    let value = std::env::var_os(variable).with_context(|| format!("{variable} is not set: use scripts/bench"))?;
    let path = PathBuf::from(value);
    Ok(if name.is_empty() { path } else { path.join(name) })
}

/// The cached `state.db` of `keys` live keys.
pub fn state_db(keys: u64) -> anyhow::Result<PathBuf> {
    let folder = program("SYNCER_BENCH_DIR", "")?;
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("state-{keys}-v1.db"));
    if !path.exists() {
        eprintln!("bench: making a store of {keys} live keys");
        let fresh = path.with_extension("new");
        let _ = std::fs::remove_file(&fresh);
        write_store(&fresh, keys).with_context(|| format!("make {}", fresh.display()))?;
        #[expect(clippy::disallowed_methods, reason = "a cache file, no crash story")]
        std::fs::rename(&fresh, &path)?;
    }
    Ok(path)
}

/// Every key is created, then updated once, in another order: the creates are dead, the updates live and, as kine keeps
/// it, carry the old value too.
fn write_store(path: &Path, keys: u64) -> anyhow::Result<()> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "off")?;
    db.pragma_update(None, "synchronous", "off")?;
    db.execute_batch(
        "CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER,
           create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB);
         BEGIN;
         INSERT INTO kine VALUES (1, 'compact_rev_key', 1, 0, 0, 0, 0, x'', NULL);",
    )?;
    {
        let mut insert = db.prepare("INSERT INTO kine VALUES (?, ?, ?, 0, ?, ?, 0, ?, ?)")?;
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut fill = |value: &mut [u8]| {
            for chunk in value.chunks_mut(8) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let bytes = random.to_le_bytes();
                chunk.copy_from_slice(bytes.get(..chunk.len()).unwrap_or(&bytes));
            }
        };
        let (mut old, mut new) = (vec![0; VALUE], vec![0; VALUE]);
        let keys = i64::try_from(keys)?;
        for i in 0..keys {
            fill(&mut old);
            insert.execute(params![2 + i, name(i), 1, 0, 0, old, None::<Vec<u8>>])?;
        }
        for step in 0..keys {
            // A step coprime to any round count visits every key once, out of order.
            let i = (step * 7919) % keys;
            fill(&mut new);
            fill(&mut old);
            insert.execute(params![2 + keys + step, name(i), 0, 2 + i, 2 + i, new, old])?;
        }
    }
    db.execute_batch(
        "COMMIT;
         CREATE INDEX kine_name_index ON kine (name);
         CREATE INDEX kine_name_id_index ON kine (name, id);
         CREATE INDEX kine_id_deleted_index ON kine (id, deleted);
         CREATE INDEX kine_prev_revision_index ON kine (prev_revision);
         CREATE UNIQUE INDEX kine_name_prev_revision_uindex ON kine (name, prev_revision);
         PRAGMA journal_mode=wal;",
    )?;
    Ok(())
}

fn name(i: i64) -> String {
    let kind = ["configmaps", "secrets", "pods", "services", "apps/deployments"][(i % 5) as usize];
    format!("/registry/{kind}/namespace-{:03}/object-{i:08}", i % 211)
}
