//! A new `state.db` as a sink: one that kine opens and goes on with.
//!
//! Every live key is one row whose number is its mod revision, with no predecessor (`prev_revision` 0: it must not be the
//! number of another row, which kine's compaction would remove), and nothing is left to compact: kine's record says that
//! all up to the store's revision is. Then whoever goes on from an older revision is told so and lists anew. If no key has
//! the store's revision, a gap row has it, as kine itself makes them. The layout is that of kine 0.16.3 and later, which
//! older ones go on with too: they bind names as text, and create only what is missing.
//!
//! A kine that finds no revision above what is compacted when it starts does not compact until it is started again: its next
//! target comes of what it compacted last (`compactor` in `pkg/logstructured/sqllog/sql.go`). It makes its health key at each
//! start, which is one, unless that is there already, as in a store that came from SQLite: then kine's record is put above all.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rusqlite::{Connection, OpenFlags, params};

use super::convert::{KeyLease, LiveKey};
use super::renumber::{Renumber, Renumbered};
use super::sink::Sink;
use super::verify::Multiset;
use crate::crash_point;
use crate::exit::{Exit, refuse};
use crate::ids::Revision;

/// `pkg/drivers/sqlite/sqlite.go`: the table as kine 0.16.3 declares it, and every index that it has had.
const TABLE: &str = "CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, \
    deleted INTEGER, create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB)";
const INDEXES: [&str; 6] = [
    "CREATE INDEX kine_name_index ON kine (name)",
    "CREATE INDEX kine_name_id_index ON kine (name, id)",
    "CREATE INDEX kine_id_deleted_index ON kine (id, deleted)",
    "CREATE INDEX kine_prev_revision_index ON kine (prev_revision)",
    "CREATE UNIQUE INDEX kine_name_prev_revision_uindex ON kine (name, prev_revision)",
    "CREATE INDEX kine_id_compact_rev_key_with_prev_revision_index ON kine (id, name, prev_revision) \
     WHERE name != 'compact_rev_key' AND prev_revision != 0",
];
/// Names are bound as their raw bytes: kine does so too, whether they are UTF-8 or not.
const INSERT: &str = "INSERT INTO kine \
    (id, name, created, deleted, create_revision, prev_revision, lease, value, old_value) \
    VALUES (?1, CAST(?2 AS TEXT), ?3, ?4, ?5, ?6, ?7, ?8, NULL)";

/// What kine makes at its start if it is not there (`Start` in `pkg/logstructured/logstructured.go`).
const HEALTH: &[u8] = b"/registry/health";

/// Page cache, in KiB; also what an index is sorted in before it goes to a file.
const CACHE_KIB: i32 = 8 << 10;
/// So many rows later a kill leaves a file that is half written.
const HALF: u64 = 100;

/// The longest path of a database that SQLite opens, in bytes: 512 (`MAX_PATHNAME` of `os_unix.c`) less `-journal`.
pub const PATH_MAX: usize = 504;

/// Refuses a path that is too long for SQLite, which itself says no more than that it cannot open it.
///
/// # Errors
/// [`Exit::Usage`].
pub fn check_path(path: &Path) -> anyhow::Result<()> {
    let bytes = path.as_os_str().len();
    if bytes <= PATH_MAX {
        return Ok(());
    }
    let shown: String = path.to_string_lossy().chars().take(80).collect();
    let what = format!("the path {shown}... has {bytes} bytes, and SQLite opens none above {PATH_MAX}");
    Err(refuse(Exit::Usage, what, "move it to a directory with a shorter path"))
}

/// A `state.db` that is being written.
pub struct SqliteSink {
    connection: Connection,
    path: PathBuf,
    renumber: Renumber,
    rows: Rows,
}

/// What was written so far.
#[derive(Default)]
struct Rows {
    sum: Multiset,
    counts: Counts,
}

/// What is counted of rows.
#[derive(Debug)]
struct Counts {
    keys: u64,
    ttls: u64,
    largest: u64,
    /// The lowest number that no row has, as long as rows come in order.
    free: i64,
    /// kine will find its health key.
    health: bool,
}

impl Default for Counts {
    fn default() -> Self {
        Counts { keys: 0, ttls: 0, largest: 0, free: 1, health: false }
    }
}

impl Counts {
    fn add(&mut self, key: &LiveKey<'_>) {
        self.keys += 1;
        self.ttls += u64::from(!matches!(key.lease, KeyLease::None));
        self.largest = self.largest.max((key.key.len() + key.value.len()) as u64);
        self.free += i64::from(key.mod_revision.0 == self.free);
        self.health |= key.key == HEALTH;
    }

    /// The number of kine's record in a store that is compacted up to there.
    fn record(&self, compacted: Revision) -> i64 {
        // Above it also if every revision is taken.
        if self.health { compacted.0 + 1 } else { self.free }
    }
}

/// A `state.db` that is written; durable once its file and directory are synced.
#[derive(Debug)]
pub struct WrittenSqlite {
    /// The revisions.
    pub renumbered: Renumbered,
    /// The revision up to which it is compacted.
    pub compacted: Revision,
    /// The live keys, for the comparison with what is read back.
    pub(super) sum: Multiset,
    /// How many.
    pub keys: u64,
    /// How many of them expire.
    pub ttls: u64,
    /// Size of the largest key and value together, in bytes.
    pub largest: u64,
}

impl SqliteSink {
    /// Begins a file at `path`, which must not exist, for a store at `revision`.
    pub fn create(path: &Path, revision: Revision) -> anyhow::Result<Self> {
        let connection = open(path, OpenFlags::SQLITE_OPEN_CREATE).context("create the SQLite file")?;
        let folder = crate::disk::parent_of(path).display().to_string();
        let begin = || -> rusqlite::Result<()> {
            // Nobody reads it before it is synced as a whole; a kill leaves a file that is made anew.
            connection.pragma_update(None, "journal_mode", "off")?;
            connection.pragma_update(None, "synchronous", "off")?;
            connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
            // Where the target can be written, so can what an index is sorted in; /tmp may be read-only.
            connection.pragma_update(None, "temp_store_directory", &folder)?;
            connection.execute_batch(TABLE)?;
            connection.execute_batch("BEGIN")
        };
        begin().map_err(full).context("begin the SQLite file")?;
        Ok(SqliteSink { connection, path: path.to_owned(), renumber: Renumber::new(revision), rows: Rows::default() })
    }

    /// Completes the file.
    pub fn finish(self) -> anyhow::Result<WrittenSqlite> {
        let SqliteSink { connection, path, renumber, mut rows } = self;
        let mut renumbered = renumber.finish(|key| rows.put(&connection, key))?;
        let compacted = renumbered.revision;
        let finish = |rows: &Rows, renumbered: &mut Renumbered| -> rusqlite::Result<()> {
            let own = rows.counts.record(compacted);
            let compacted = compacted.0;
            renumbered.revision = Revision(own.max(compacted));
            let empty: &[u8] = &[];
            let mut insert = connection.prepare(INSERT)?;
            insert.execute(params![own, b"compact_rev_key", 1, 0, 0, compacted, 0, Some(empty)])?;
            if !renumbered.taken && own != compacted {
                let name = format!("gap-{compacted}");
                insert.execute(params![compacted, name.as_bytes(), 0, 1, 0, 0, 0, None::<&[u8]>])?;
            }
            connection.execute_batch("COMMIT")?;
            INDEXES.iter().try_for_each(|index| connection.execute_batch(index))
        };
        finish(&rows, &mut renumbered).map_err(full).context("complete the SQLite file")?;
        connection.close().map_err(|(_, e)| full(e)).context("close the SQLite file")?;
        mark_as_wal(&path).map_err(full).context("complete the SQLite file")?;
        let Rows { sum, counts: Counts { keys, ttls, largest, .. } } = rows;
        Ok(WrittenSqlite { renumbered, compacted, sum, keys, ttls, largest })
    }
}

impl Sink for SqliteSink {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let (connection, rows) = (&self.connection, &mut self.rows);
        self.renumber.put(key, |key| rows.put(connection, key))
    }
}

impl Rows {
    fn put(&mut self, connection: &Connection, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let id = key.mod_revision.0;
        let created = key.create_revision.0 == id;
        let create_revision = if created { 0 } else { key.create_revision.0 };
        let value = Some(key.value).filter(|value| !value.is_empty());
        let mut insert = connection.prepare_cached(INSERT).map_err(full)?;
        insert
            .execute(params![id, key.key, created, 0, create_revision, 0, key.lease.ttl(), value])
            .map_err(full)
            .with_context(|| format!("write revision {id}"))?;
        self.sum.add(key, key.lease.ttl());
        self.counts.add(key);
        if self.counts.keys == HALF {
            crash_point!("back-half-written");
        }
        Ok(())
    }
}

fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | flags)
}

/// kine's stores are in WAL mode, which the file itself says; some of its builds do not ask for it.
fn mark_as_wal(path: &Path) -> rusqlite::Result<()> {
    let connection = open(path, OpenFlags::empty())?;
    // It is synced as a whole, once all is written.
    connection.pragma_update(None, "synchronous", "off")?;
    let mode: String = connection.query_row("PRAGMA journal_mode = wal", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(rusqlite::Error::InvalidQuery);
    }
    // The last to close it removes the -wal and -shm.
    connection.close().map_err(|(_, e)| e)
}

/// A full volume has an exit code of its own.
fn full(error: rusqlite::Error) -> anyhow::Error {
    if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) {
        let remedy = "enlarge the volume, or free space on it; nothing has been changed";
        return refuse(Exit::RefusedSpace, "the volume is full", remedy);
    }
    error.into()
}

/// Tells what a file of the keys that it is given would be.
pub struct SqliteForecast {
    renumber: Renumber,
    counts: Counts,
}

impl SqliteForecast {
    /// For a store at `revision`.
    pub fn new(revision: Revision) -> Self {
        SqliteForecast { renumber: Renumber::new(revision), counts: Counts::default() }
    }

    /// The revisions, how many keys it would have, and how many of them expire, as [`SqliteSink::finish`] has them.
    pub(super) fn finish(self) -> anyhow::Result<(Renumbered, u64, u64)> {
        let SqliteForecast { renumber, mut counts } = self;
        let mut renumbered = renumber.finish(|key| {
            counts.add(key);
            Ok(())
        })?;
        renumbered.revision = renumbered.revision.max(Revision(counts.record(renumbered.revision)));
        Ok((renumbered, counts.keys, counts.ttls))
    }
}

impl Sink for SqliteForecast {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let counts = &mut self.counts;
        self.renumber.put(key, |key| {
            counts.add(key);
            Ok(())
        })
    }
}

/// Sums up what a file of the keys that it is given would hold.
pub struct SqliteSum {
    renumber: Renumber,
    sum: Multiset,
}

impl SqliteSum {
    /// For a store at `revision`.
    pub fn new(revision: Revision) -> Self {
        SqliteSum { renumber: Renumber::new(revision), sum: Multiset::default() }
    }

    /// The sum.
    pub(super) fn finish(mut self) -> anyhow::Result<Multiset> {
        let sum = &mut self.sum;
        self.renumber.finish(|key| {
            sum.add(key, key.lease.ttl());
            Ok(())
        })?;
        Ok(self.sum)
    }
}

impl Sink for SqliteSum {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let sum = &mut self.sum;
        self.renumber.put(key, |key| {
            sum.add(key, key.lease.ttl());
            Ok(())
        })
    }
}

/// Sums up what is read from a file of kine's.
#[derive(Default)]
pub struct ReadBack(pub(super) Multiset);

impl Sink for ReadBack {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        self.0.add(key, key.lease.ttl());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
