//! Reading the live rows in the order of revisions, which is the order in which the table lies on the disk.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row as SqlRow, Statement};

use super::error::SourceError;
use super::idset::{ChunkView, IdSet};
use super::name::text_of_number;
use super::sum::RowSum;
use crate::migrate::convert::{Row, Warnings, convert};
use crate::migrate::source::BatchSender;

/// The columns by name; `deleted` as kine's own queries compare it, so that NULL is not live.
const COLUMNS: &str = "id, name, created, create_revision, lease, value";
/// A chunk of ids is read from end to end if at least one in so many of them is wanted, else each row by itself. Rows
/// in between cost their page cells; a search costs a walk from the root.
const SCAN_IF_ONE_IN: i64 = 12;

/// Sends every row of `newest` that is not a tombstone; gives the sum over all rows but those of [`unread`].
pub fn read_live(
    connection: &Connection,
    newest: &IdSet,
    warnings: &mut Warnings,
    out: &mut BatchSender<'_>,
) -> anyhow::Result<RowSum> {
    let sql = |range: &str| format!("SELECT {COLUMNS}, deleted = 0 FROM kine NOT INDEXED WHERE {range} ORDER BY id");
    let mut scan = connection.prepare(&sql("id BETWEEN ?1 AND ?2")).map_err(SourceError::from)?;
    let mut search = connection.prepare(&sql("id = ?1")).map_err(SourceError::from)?;
    let mut sum = RowSum::default();
    for chunk in newest.chunks() {
        if is_scanned(chunk) {
            scan_chunk(&mut scan, chunk, &mut sum, warnings, out)?;
            continue;
        }
        for id in chunk.ids() {
            let mut rows = search.query([id]).map_err(SourceError::from)?;
            let row = rows.next().map_err(SourceError::from)?.ok_or_else(|| missing(1))?;
            emit(row, warnings, out)?;
        }
    }
    Ok(sum)
}

/// Whether [`read_live`] comes by every row between the chunk's lowest and highest.
fn is_scanned(chunk: ChunkView<'_>) -> bool {
    let (low, high) = chunk.bounds();
    (high - low) / SCAN_IF_ONE_IN <= chunk.len() as i64
}

/// The ranges of ids, both ends included, that [`read_live`] does not read from end to end.
pub fn unread(newest: &IdSet) -> Vec<(i64, i64)> {
    let mut ranges = Vec::new();
    let mut next = i64::MIN;
    for (low, high) in newest.chunks().filter(|chunk| is_scanned(*chunk)).map(ChunkView::bounds) {
        // Ids are positive, so there is one below.
        if next < low {
            ranges.push((next, low - 1));
        }
        // No row is at the very last id: etcd could not add to it, and the survey has refused it.
        next = high.saturating_add(1);
    }
    ranges.push((next, i64::MAX));
    ranges
}

fn scan_chunk(
    scan: &mut Statement<'_>,
    chunk: ChunkView<'_>,
    sum: &mut RowSum,
    warnings: &mut Warnings,
    out: &mut BatchSender<'_>,
) -> anyhow::Result<()> {
    let (low, high) = chunk.bounds();
    let mut rows = scan.query([low, high]).map_err(SourceError::from)?;
    let mut found = 0;
    while let Some(row) = rows.next().map_err(SourceError::from)? {
        let id: i64 = row.get(0).map_err(SourceError::from)?;
        sum.add(id, row.get_ref(1).map_err(SourceError::from)?);
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
    if value_of(6)? != ValueRef::Integer(1) {
        return Ok(());
    }
    let id = row.get(0).map_err(SourceError::from)?;
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
    let number = |column: usize, reason| {
        let read = whole_number(value_of(column)?);
        read.ok_or(SourceError::BadRow { id, reason })
    };
    let row = Row {
        id,
        key,
        created: number(2, "has no number in its column created")?,
        create_revision: number(3, "has no number in its column create_revision")?,
        ttl: number(4, "has no number for its time to live (column lease)")?,
        value,
    };
    out.send(&convert(&row, warnings))?;
    Ok(())
}

/// A column that kine reads into a whole number; `None` where it fails to. NULL is 0, as in Go's `sql.NullInt64`.
fn whole_number(value: ValueRef<'_>) -> Option<i64> {
    match value {
        ValueRef::Integer(number) => Some(number),
        ValueRef::Null => Some(0),
        ValueRef::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        ValueRef::Real(_) | ValueRef::Blob(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_id_is_either_scanned_or_unread(
            dense in proptest::collection::vec(1_i64..400_000, 0..20),
            sparse in proptest::collection::vec(1_i64..400_000, 0..20),
        ) {
            let mut newest = IdSet::default();
            dense.iter().flat_map(|first| *first..first + 5000).for_each(|id| newest.insert(id));
            sparse.iter().for_each(|id| newest.insert(*id));
            let scanned = newest.chunks().filter(|chunk| is_scanned(*chunk)).map(ChunkView::bounds);
            let mut all: Vec<_> = unread(&newest).into_iter().chain(scanned).collect();
            all.sort_unstable();
            prop_assert_eq!((all[0].0, all[all.len() - 1].1), (i64::MIN, i64::MAX));
            prop_assert!(all.iter().all(|(low, high)| low <= high));
            prop_assert!(all.is_sorted_by(|a, b| a.1 + 1 == b.0), "{:?}", all);
        }
    }
}
