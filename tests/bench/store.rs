//! The stores that are measured, made once and cached: kine's layout, N live keys of 1 KiB and as many dead rows; and the
//! same live keys as etcd has them, a data dir and a snapshot of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rusqlite::{Connection, params};

use crate::journeys::etcdctl_save;
use crate::migrate::migrate;
use crate::peers::Etcd;

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
        put_in_place(&fresh, &path)?;
    }
    Ok(path)
}

#[expect(clippy::disallowed_methods, reason = "a cache, no crash story")]
fn put_in_place(fresh: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::rename(fresh, path)
}

/// A store as etcd has it.
pub struct Stores {
    /// Where all of them are.
    pub folder: PathBuf,
    /// The data dir of an etcd that has run and was stopped.
    pub datadir: PathBuf,
    /// What `etcdctl snapshot save` took of it.
    pub snapshot: PathBuf,
}

/// The cached stores of etcd with `keys` live keys: imported from the `state.db`, and served once.
pub fn stores(keys: u64) -> anyhow::Result<Stores> {
    let state_db = state_db(keys)?;
    let folder = state_db.parent().context("the store has a folder")?.to_owned();
    let place = folder.join(format!("etcd-{keys}-v1"));
    if !place.exists() {
        eprintln!("bench: making etcd's store of {keys} live keys");
        let fresh = tempfile::tempdir_in(&folder)?;
        migrate(&format!("sqlite:{}", state_db.display()), "datadir", fresh.path())?;
        let etcd = Etcd::start(&fresh.path().join("target"))?;
        etcd.serves(Duration::from_secs(300))?;
        etcdctl_save(&etcd, &fresh.path().join("snapshot.db"))?;
        etcd.stop()?;
        put_in_place(&fresh.keep(), &place)?;
    }
    Ok(Stores { folder, datadir: place.join("target"), snapshot: place.join("snapshot.db") })
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
