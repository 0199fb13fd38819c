//! Reading the live rows in the order of revisions, which is the order in which the table lies on the disk.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row as SqlRow, Statement};

use super::error::SourceError;
use super::idset::{ChunkView, IdSet};
use super::name::text_of_number;
use crate::migrate::convert::{Row, Warnings, convert};
use crate::migrate::source::BatchSender;

/// The columns by name; `deleted` as kine's own queries compare it, so that NULL is not live.
const COLUMNS: &str = "id, name, created, create_revision, lease, value";
/// A chunk of ids is read from end to end if at least one in so many of them is wanted, else each row by itself. Rows
/// in between cost their page cells; a search costs a walk from the root.
const SCAN_IF_ONE_IN: i64 = 12;

/// Sends every row of `newest` that is not a tombstone.
pub fn read_live(
    connection: &Connection,
    newest: &IdSet,
    warnings: &mut Warnings,
    out: &mut BatchSender<'_>,
) -> anyhow::Result<()> {
    let sql = |range: &str| format!("SELECT {COLUMNS}, deleted = 0 FROM kine NOT INDEXED WHERE {range} ORDER BY id");
    let mut scan = connection.prepare(&sql("id BETWEEN ?1 AND ?2")).map_err(SourceError::from)?;
    let mut search = connection.prepare(&sql("id = ?1")).map_err(SourceError::from)?;
    for chunk in newest.chunks() {
        let (low, high) = chunk.bounds();
        if (high - low) / SCAN_IF_ONE_IN <= chunk.len() as i64 {
            scan_chunk(&mut scan, chunk, warnings, out)?;
            continue;
        }
        for id in chunk.ids() {
            let mut rows = search.query([id]).map_err(SourceError::from)?;
            let row = rows.next().map_err(SourceError::from)?.ok_or_else(|| missing(1))?;
            emit(row, warnings, out)?;
        }
    }
    Ok(())
}

fn scan_chunk(
    scan: &mut Statement<'_>,
    chunk: ChunkView<'_>,
    warnings: &mut Warnings,
    out: &mut BatchSender<'_>,
) -> anyhow::Result<()> {
    let (low, high) = chunk.bounds();
    let mut rows = scan.query([low, high]).map_err(SourceError::from)?;
    let mut found = 0;
    while let Some(row) = rows.next().map_err(SourceError::from)? {
        let id: i64 = row.get(0).map_err(SourceError::from)?;
        if chunk.contains(id) {
            found += 1;
            emit(row, warnings, out)?;
        }
    }
    if found == chunk.len() { Ok(()) } else { Err(missing(chunk.len() - found).into()) }
}

fn missing(rows: u64) -> SourceError {
    SourceError::Corrupt(format!("its index on names has {rows} rows that the table does not have"))
}

/// Sends the row, unless it is a tombstone.
fn emit(row: &SqlRow<'_>, warnings: &mut Warnings, out: &mut BatchSender<'_>) -> anyhow::Result<()> {
    let value_of = |column: usize| row.get_ref(column).map_err(SourceError::from);
    if integer(value_of(6)?) != 1 {
        return Ok(());
    }
    let id = integer(value_of(0)?);
    let name = value_of(1)?;
    let number = text_of_number(name);
    let key = match (&number, name) {
        (Some(text), _) => text.as_slice(),
        (None, ValueRef::Text(text)) => text,
        // The walk over the index has refused such names.
        _ => return Err(missing(1).into()),
    };
    if number.is_some() {
        warnings.numeric_names.note(key);
    }
    let value = match value_of(5)? {
        ValueRef::Null => &[],
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => bytes,
        ValueRef::Integer(_) | ValueRef::Real(_) => {
            return Err(SourceError::BadRow { id, reason: "has a number for its value" }.into());
        }
    };
    let row = Row {
        id,
        key,
        created: integer(value_of(2)?),
        create_revision: integer(value_of(3)?),
        ttl: integer(value_of(4)?),
        value,
    };
    out.send(&convert(&row, warnings))?;
    Ok(())
}

/// A column that kine reads as a number: NULL is 0, as in Go's `sql.NullInt64`.
fn integer(value: ValueRef<'_>) -> i64 {
    match value {
        ValueRef::Integer(i) => i,
        ValueRef::Real(f) => f as i64,
        ValueRef::Text(text) => std::str::from_utf8(text).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0),
        ValueRef::Null | ValueRef::Blob(_) => 0,
    }
}
