//! The journeys that are one command each, beside the program that people would use instead.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::contender::{Contender, rounds};
use crate::migrate::migrate;
use crate::peers::{Etcd, copy_tree};
use crate::sample::{self, Cost};
use crate::store::{Stores, program, stores};

/// For an etcd to serve.
const PATIENCE: Duration = Duration::from_secs(120);

/// A snapshot file to a data dir.
pub fn snapshot(what: &str, keys: u64, count: usize) -> anyhow::Result<Value> {
    let stores = stores(keys)?;
    let file = &stores.snapshot;
    let contenders = vec![
        Contender::new("syncer", |work| migrate(&format!("snapshot:{}", file.display()), "datadir", work)),
        Contender::new("etcdutl", |work| restore(file, true, work)),
        Contender::new("etcdutl_and_etcds_hash", |work| restored_and_hashed(file, true, work)),
    ];
    sized(&stores, rounds(what, &stores.folder, count, contenders)?.json("etcdutl"))
}

/// A stopped etcd's data dir to a new one; nobody else checks anything here.
pub fn datadir(what: &str, keys: u64, count: usize) -> anyhow::Result<Value> {
    let stores = stores(keys)?;
    let backend = stores.datadir.join("member/snap/db");
    let contenders = vec![
        Contender::new("syncer", |work| migrate(&format!("datadir:{}", stores.datadir.display()), "datadir", work)),
        Contender::new("etcdutl", |work| restore(&backend, false, work)),
        Contender::new("etcdutl_and_etcds_hash", |work| restored_and_hashed(&backend, false, work)),
    ];
    sized(&stores, rounds(what, &stores.folder, count, contenders)?.json("etcdutl"))
}

fn sized(stores: &Stores, mut figures: Value) -> anyhow::Result<Value> {
    figures["snapshot_bytes"] = json!(std::fs::metadata(&stores.snapshot)?.len());
    Ok(figures)
}

/// `etcdutl snapshot restore` into `work`; its member's URLs are its own defaults.
pub fn restore(file: &Path, checksum: bool, work: &Path) -> anyhow::Result<Cost> {
    let mut command = Command::new(program("SYNCER_PARTS", "etcdutl")?);
    command.args(["snapshot", "restore"]).arg(file).arg("--data-dir").arg(work.join("restored"));
    if !checksum {
        command.arg("--skip-hash-check");
    }
    Ok(sample::run(&mut command)?.0)
}

/// The same, and an etcd that is started on the result and hashes it, as ours has done when it ends. There is nothing to
/// compare the hash with: that it is what was read is known of ours alone.
fn restored_and_hashed(file: &Path, checksum: bool, work: &Path) -> anyhow::Result<Cost> {
    let restored = restore(file, checksum, work)?;
    let started = Instant::now();
    let etcd = Etcd::start(&work.join("restored"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { anyhow::Ok(etcd.connected(PATIENCE).await?.hash_kv(0).await?) })?;
    etcd.stop()?;
    let hashed = started.elapsed().as_secs_f64();
    let parts = vec![("restore", restored.seconds), ("hash", hashed)];
    Ok(Cost { seconds: restored.seconds + hashed, parts, ..Cost::default() })
}

/// A snapshot file to a state.db. The rows are there for sqlite3 already, in a file of SQLite's; the layout, the pragmas and
/// the order (rows in one transaction, then the indices) are those of syncer, and the result is made durable.
pub fn back(what: &str, keys: u64, count: usize) -> anyhow::Result<Value> {
    let stores = stores(keys)?;
    let from = format!("snapshot:{}", stores.snapshot.display());
    let given = tempfile::tempdir_in(&stores.folder)?;
    migrate(&from, "sqlite", given.path())?;
    let rows = given.path().join("target");
    let sql = sqlite_script(&rows)?;
    let contenders = vec![
        Contender::new("syncer", |work| migrate(&from, "sqlite", work)),
        Contender::new("sqlite3", |work| {
            let file = work.join("peer.db");
            let mut command = Command::new("sh");
            command.args(["-ec", r#"sqlite3 -bail "$1" "$2" && sync "$1""#, "sh"]).arg(&file).arg(&sql);
            let cost = sample::run(&mut command)?.0;
            ensure!(rows_of(&file)? == rows_of(&rows)?, "sqlite3 has written other rows");
            Ok(cost)
        }),
    ];
    let figures = rounds(what, &stores.folder, count, contenders)?;
    sized(&stores, figures.json("sqlite3"))
}

/// Makes a file like the one at `rows`: the same tables and indices, the same rows.
fn sqlite_script(rows: &Path) -> anyhow::Result<String> {
    let db = rusqlite::Connection::open(rows)?;
    let schema = |kind: &str| -> anyhow::Result<String> {
        let of_kind = "SELECT group_concat(sql, ';') FROM sqlite_schema WHERE type = ? AND name NOT LIKE 'sqlite_%'";
        Ok(db.query_row(of_kind, [kind], |row| row.get(0))?)
    };
    // The columns are named, as `SELECT *` would copy records without looking at them.
    let columns = "id, name, created, deleted, create_revision, prev_revision, lease, value, old_value";
    Ok(format!(
        "PRAGMA journal_mode = off; PRAGMA synchronous = off; PRAGMA cache_size = -8192; ATTACH '{}' AS given; {}; BEGIN; \
         INSERT INTO kine ({columns}) SELECT {columns} FROM given.kine; COMMIT; {};",
        rows.display(),
        schema("table")?,
        schema("index")?,
    ))
}

fn rows_of(file: &Path) -> anyhow::Result<(i64, i64)> {
    let db = rusqlite::Connection::open(file)?;
    Ok(db.query_row("SELECT count(*), total(length(value)) FROM kine", [], |row| {
        Ok((row.get(0)?, row.get::<_, f64>(1)? as i64))
    })?)
}

/// `snapshot save`, of one etcd that both ask.
pub fn save(what: &str, keys: u64, count: usize) -> anyhow::Result<Value> {
    let stores = stores(keys)?;
    let home = tempfile::tempdir_in(&stores.folder)?;
    let data = home.path().join("etcd");
    copy_tree(&stores.datadir, &data)?;
    let etcd = Etcd::start(&data)?;
    etcd.serves(PATIENCE)?;
    let contenders = vec![
        Contender::new("syncer", |work| {
            let mut command = Command::new(program("SYNCER_RELEASE", "")?);
            command.args(["snapshot", "save", "--name=bench", "--endpoint", &etcd.client_url()]);
            command.arg("--to").arg(work.join("snapshots")).stdin(Stdio::null());
            Ok(sample::run(&mut command)?.0)
        }),
        Contender::new("etcdctl", |work| etcdctl_save(&etcd, &work.join("snapshot.db"))),
    ];
    let figures = rounds(what, &stores.folder, count, contenders)?;
    sized(&stores, figures.json("etcdctl"))
}

/// `etcdctl snapshot save`.
pub fn etcdctl_save(etcd: &Etcd, file: &Path) -> anyhow::Result<Cost> {
    let mut command = Command::new(program("SYNCER_PARTS", "etcdctl")?);
    command.args(["snapshot", "save", "--endpoints", &etcd.client_url()]).arg(file);
    let cost = sample::run(&mut command).context("save with etcdctl")?.0;
    Ok(cost)
}
