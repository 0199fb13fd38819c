//! Opening a store without changing it, and whether it is kine's.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};

use super::error::SourceError;

/// The largest value or key, in bytes, that is read. kine's own limit is a request of 2 MiB (1.5 MiB and 512 KiB of
/// gRPC's); the rest is room for what others wrote.
pub const MAX_VALUE_BYTES: usize = 8 << 20;
/// Page cache of a connection, in KiB. Everything is read once and in order, so a larger one would not help.
const CACHE_KIB: i32 = 2048;

/// The columns that are read, by name: their order and their declared types differ among the layouts.
const COLUMNS: [&str; 8] = ["id", "name", "created", "deleted", "create_revision", "prev_revision", "lease", "value"];

/// Opens a store for reading. Nothing is written, created or locked: the caller holds the store's lock.
///
/// Without a `-wal` the file is all there is, and `immutable` keeps SQLite from making one. With one, SQLite reads it
/// through a WAL-index in memory (`locking_mode=exclusive` before the first read) instead of the `-shm`, and leaves it
/// as it is at the end. Memory mapping stays off: a read error would kill the process instead of being reported.
pub fn open(db: &Path, has_wal: bool) -> Result<Connection, SourceError> {
    let mut uri = String::from("file:");
    for byte in db.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(char::from(*byte)),
            other => write!(uri, "%{other:02X}").unwrap_or_default(),
        }
    }
    if !has_wal {
        uri.push_str("?immutable=1");
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags_and_vfs(uri, flags, c"unix-none")?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES as i32)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "locking_mode", "exclusive")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// The highest number that was ever given to a row of kine's. `None` if that cannot be told: the store has no such
/// record, or, read without its `-wal`, is not readable by itself.
pub fn last_row(connection: &Connection) -> Option<i64> {
    connection.query_row("SELECT seq FROM sqlite_sequence WHERE name = 'kine'", [], |row| row.get(0)).ok()
}

/// Checks that the store is kine's and has content.
pub fn check(connection: &Connection) -> Result<(), SourceError> {
    let kind = |name: &str| -> rusqlite::Result<Option<String>> {
        let mut statement = connection.prepare("SELECT type FROM sqlite_schema WHERE name = ?1")?;
        let mut rows = statement.query([name])?;
        rows.next()?.map(|row| row.get(0)).transpose()
    };
    match kind("kine")?.as_deref() {
        Some("table") => {}
        Some(other) => return Err(SourceError::ForeignLayout(format!("it is a {other}"))),
        None if kind("key_value")?.is_some() => return Err(SourceError::PreKine),
        None => return Err(SourceError::NotKine),
    }
    let mut statement = connection.prepare("SELECT lower(name), upper(type), pk FROM pragma_table_info('kine')")?;
    let columns: Vec<(String, String, i64)> =
        statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?.collect::<Result<_, _>>()?;
    for wanted in COLUMNS {
        if !columns.iter().any(|(name, ..)| name == wanted) {
            return Err(SourceError::MissingColumn(wanted));
        }
    }
    // Only a column declared exactly so is the row's number, and the rows then lie in the order of revisions.
    let key: Vec<_> = columns.iter().filter(|(.., pk)| *pk > 0).collect();
    if !matches!(key.as_slice(), [(name, kind, _)] if name == "id" && kind == "INTEGER") {
        return Err(SourceError::ForeignLayout("id is not its INTEGER PRIMARY KEY".to_owned()));
    }
    let empty = |table: &str| {
        connection.query_row(&format!("SELECT NOT EXISTS (SELECT 1 FROM {table})"), [], |r| r.get::<_, bool>(0))
    };
    if empty("kine")? {
        if kind("key_value")?.is_some() && !empty("key_value")? {
            return Err(SourceError::PreKine);
        }
        return Err(SourceError::NoRows);
    }
    Ok(())
}
