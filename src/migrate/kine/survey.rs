//! Which rows are live: one walk over the index on names.
//!
//! A key's row is the one with the highest id of its name (`generic.go`, `ListFmt`); it is live if `deleted` is 0. The
//! index holds name and id, so the walk touches no value, and what is kept of it is the set of highest ids.

use std::collections::HashSet;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension};

use super::error::SourceError;
use super::idset::IdSet;
use super::name::{is_bookkeeping, text_of_number};
use super::schema::last_row;
use super::sum::RowSum;
use crate::ids::Revision;
use crate::migrate::convert::printable;

/// At most so many names that are not text are kept in memory to be compared with the others.
const MAX_ODD_NAMES: usize = 100_000;

/// What the walk over the index found.
#[derive(Debug)]
pub struct Survey {
    /// The highest id of each name, less kine's own: the rows of the live keys, and tombstones.
    pub newest: IdSet,
    /// The store's revision: the highest id of all, or the tombstone up to which it was compacted and which went with that.
    pub revision: Revision,
    /// What kine has compacted up to, 0 if never.
    pub compacted: Revision,
    /// Over all entries of the index: what the table must have too.
    pub index: RowSum,
    /// Names of kine's own.
    pub bookkeeping: u64,
    /// Names stored as numbers: a layout of kine before 0.16.3 alters keys that look like numbers.
    pub numeric_names: u64,
    /// Names with more than one row at or below the compacted revision: their chain of predecessors is broken, and a
    /// compaction that removed a tombstone may have brought an older value back (kine issue 408).
    pub broken_chains: u64,
    /// One of [`Survey::broken_chains`].
    pub broken_chain_example: Option<String>,
}

/// Walks the index.
pub fn survey(connection: &Connection) -> Result<Survey, SourceError> {
    let (lowest, highest): (i64, i64) =
        connection.query_row("SELECT min(id), max(id) FROM kine", [], |r| Ok((r.get(0)?, r.get(1)?)))?;
    if lowest <= 0 {
        return Err(SourceError::BadRow { id: lowest, reason: "has a number that is no revision" });
    }
    // etcd adds to it at each write.
    if highest > i64::MAX >> 1 {
        return Err(SourceError::BadRow { id: highest, reason: "has a number that leaves no room for more revisions" });
    }
    let compacted: Option<i64> = connection
        .query_row("SELECT max(prev_revision) FROM kine WHERE name = 'compact_rev_key'", [], |r| r.get(0))
        .optional()?
        .flatten();
    let compacted = compacted.unwrap_or(0).max(0);
    // kine compacts up to a row that is there, and may remove that row, if it is a tombstone. Its number was given out then.
    if compacted > highest && last_row(connection).is_none_or(|last| compacted > last) {
        return Err(SourceError::Corrupt(format!(
            "it was compacted up to {compacted}, and no row was ever written beyond {highest}: rows are missing"
        )));
    }
    let mut found = Survey {
        newest: IdSet::default(),
        revision: Revision(highest.max(compacted)),
        compacted: Revision(compacted),
        index: RowSum::default(),
        bookkeeping: 0,
        numeric_names: 0,
        broken_chains: 0,
        broken_chain_example: None,
    };
    let numbers = numeric_names(connection)?;
    found.numeric_names = numbers.len() as u64;
    walk(connection, &numbers, &mut found)?;
    Ok(found)
}

/// The names that are not text, as the keys they mean. Numbers sort before text and blobs behind it, so both are found
/// by the index.
fn numeric_names(connection: &Connection) -> Result<HashSet<Vec<u8>>, SourceError> {
    let odd = "SELECT id FROM kine WHERE name IS NULL OR name = '' OR name >= x'' LIMIT 1";
    if let Some(id) = connection.query_row(odd, [], |r| r.get(0)).optional()? {
        return Err(SourceError::BadRow {
            id,
            reason: "has no name, or one that is not text: kine serves no such key",
        });
    }
    let mut numbers = HashSet::new();
    let mut statement = connection.prepare("SELECT DISTINCT name FROM kine WHERE name < ''")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let Some(key) = text_of_number(row.get_ref(0)?) else { continue };
        if numbers.len() >= MAX_ODD_NAMES {
            return Err(SourceError::ForeignLayout(format!("more than {MAX_ODD_NAMES} of its names are numbers")));
        }
        if !numbers.insert(key.clone()) {
            return Err(SourceError::TwoNamesEqual { key: printable(&key) });
        }
    }
    Ok(numbers)
}

fn walk(connection: &Connection, numbers: &HashSet<Vec<u8>>, found: &mut Survey) -> Result<(), SourceError> {
    /// The name that the walk is at.
    #[derive(Default)]
    struct Name {
        bytes: Vec<u8>,
        text: bool,
        newest: i64,
        compacted_rows: u32,
    }
    let leave = |name: &Name, found: &mut Survey| {
        if name.newest == 0 {
            return;
        }
        if name.text && is_bookkeeping(&name.bytes) {
            found.bookkeeping += 1;
            return;
        }
        found.newest.insert(name.newest);
        if name.compacted_rows > 1 {
            found.broken_chains += 1;
            found.broken_chain_example.get_or_insert_with(|| printable(&name.bytes));
        }
    };
    let mut statement = connection.prepare("SELECT name, id FROM kine ORDER BY name, id")?;
    let mut rows = statement.query([])?;
    let mut at = Name::default();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(1)?;
        let number;
        let (bytes, text): (&[u8], bool) = match row.get_ref(0)? {
            ValueRef::Text(name) => (name, true),
            other => {
                number = text_of_number(other).unwrap_or_default();
                (&number, false)
            }
        };
        found.index.add_key(id, bytes);
        if at.newest == 0 || at.text != text || at.bytes != bytes {
            leave(&at, found);
            at.bytes.clear();
            at.bytes.extend_from_slice(bytes);
            (at.text, at.compacted_rows) = (text, 0);
            if text && !numbers.is_empty() && numbers.contains(bytes) {
                return Err(SourceError::TwoNamesEqual { key: printable(bytes) });
            }
        } else if id <= at.newest {
            return Err(SourceError::Corrupt("the index on names is not in order".to_owned()));
        }
        at.newest = id;
        at.compacted_rows += u32::from(id <= found.compacted.0);
    }
    leave(&at, found);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name_type: &str, indexes: &str, rows: &str) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(&format!(
                "CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name {name_type}, created INTEGER,
                 deleted INTEGER, create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB,
                 old_value BLOB); {indexes}
                 INSERT INTO kine (id, name, deleted, prev_revision) VALUES {rows}"
            ))
            .unwrap();
        connection
    }

    const NAME: &str = "CREATE INDEX kine_name_index ON kine (name);";
    const NAME_ID: &str = "CREATE INDEX kine_name_id_index ON kine (name, id);";

    fn newest(found: &Survey) -> Vec<i64> {
        found.newest.chunks().flat_map(|c| c.ids()).collect()
    }

    #[test]
    fn the_highest_id_of_each_name_is_found_with_any_index() {
        let rows = "(1,'compact_rev_key',0,4), (2,'/a',0,0), (3,'/b',0,0), (5,'/a',0,2), (6,'gap-6',1,0),
                    (7,'/b',1,3), (9,'compact_rev_key_apiserver',0,0), (4,'/A',0,0)";
        for indexes in ["", NAME, NAME_ID, &format!("{NAME}{NAME_ID}")] {
            for name_type in ["INTEGER", "TEXT"] {
                let found = survey(&store(name_type, indexes, rows)).unwrap();
                assert_eq!(newest(&found), [4, 5, 6, 7], "{name_type} {indexes}");
                assert_eq!((found.revision, found.compacted, found.index.rows), (Revision(9), Revision(4), 8));
                assert_eq!((found.bookkeeping, found.numeric_names, found.broken_chains), (2, 0, 0));
            }
        }
    }

    #[test]
    fn the_walk_needs_no_sorting_where_kine_made_an_index() {
        for indexes in [NAME, NAME_ID] {
            let connection = store("TEXT", indexes, "(1,'/a',0,0)");
            let mut plan =
                connection.prepare("EXPLAIN QUERY PLAN SELECT name, id FROM kine ORDER BY name, id").unwrap();
            let lines: Vec<String> = plan.query_map([], |r| r.get(3)).unwrap().map(Result::unwrap).collect();
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains("USING COVERING INDEX"), "{lines:?}");
        }
    }

    #[test]
    fn names_that_became_numbers_are_counted_and_compared() {
        let found = survey(&store("INTEGER", NAME, "(1,'007',0,0), (2,'/a',0,0), (3,'1e3',0,0)")).unwrap();
        assert_eq!((found.numeric_names, newest(&found)), (2, vec![1, 2, 3]));
        let both = store("TEXT", NAME, "(1,'/a',0,0)");
        both.execute_batch(
            "PRAGMA writable_schema=ON;
             UPDATE sqlite_schema SET sql = replace(sql, 'name TEXT', 'name INTEGER') WHERE name = 'kine';
             PRAGMA writable_schema=RESET; INSERT INTO kine (id, name) VALUES (2, '7');
             PRAGMA writable_schema=ON;
             UPDATE sqlite_schema SET sql = replace(sql, 'name INTEGER', 'name TEXT') WHERE name = 'kine';
             PRAGMA writable_schema=RESET; INSERT INTO kine (id, name) VALUES (3, '7');",
        )
        .unwrap();
        let error = survey(&both).unwrap_err();
        assert!(matches!(&error, SourceError::TwoNamesEqual { key } if key == "7"), "{error}");
    }

    #[test]
    fn rows_that_etcd_cannot_hold_are_named() {
        for (rows, row) in [
            ("(0,'/a',0,0)", 0),
            ("(-3,'/a',0,0)", -3),
            ("(9223372036854775807,'/a',0,0)", i64::MAX),
            ("(4,NULL,0,0)", 4),
            ("(4,'',0,0)", 4),
            ("(4,x'2f61',0,0)", 4),
        ] {
            let error = survey(&store("TEXT", NAME, rows)).unwrap_err();
            assert!(matches!(error, SourceError::BadRow { id, .. } if id == row), "{rows}: {error}");
        }
    }

    /// kine serves nobody from such a store: "required revision has been compacted".
    #[test]
    fn a_compaction_beyond_the_last_row_tells_of_missing_rows() {
        let compacted_at = |compacted: i64| format!("(1,'compact_rev_key',0,{compacted}), (2,'/a',0,0), (9,'/b',1,0)");
        let found = survey(&store("TEXT", NAME, &compacted_at(9))).unwrap();
        assert_eq!((found.revision, found.compacted), (Revision(9), Revision(9)));
        let error = survey(&store("TEXT", NAME, &compacted_at(10))).unwrap_err();
        assert!(error.to_string().contains("compacted up to 10, and no row was ever written beyond 9"), "{error}");
        // The last row was a tombstone, and went with the compaction.
        let without_last = store("TEXT", NAME, &compacted_at(9));
        without_last.execute_batch("DELETE FROM kine WHERE id = 9").unwrap();
        let found = survey(&without_last).unwrap();
        assert_eq!((found.revision, found.compacted, newest(&found)), (Revision(9), Revision(9), vec![2]));
    }

    #[test]
    fn a_chain_that_a_compaction_left_open_is_counted() {
        let rows =
            "(1,'compact_rev_key',0,10), (2,'/a',0,0), (5,'/a',0,3), (7,'/b',0,0), (12,'/b',0,7), (13,'/b',0,12)";
        let found = survey(&store("TEXT", NAME, rows)).unwrap();
        assert_eq!((found.broken_chains, found.broken_chain_example.as_deref()), (1, Some("/a")));
    }
}
