//! The I/O that fills [`super::Facts`]: looks at the volume, changes nothing.

use std::io;
use std::path::{Path, PathBuf};

use crate::boot::facts::StoresFact;
use crate::disk::at;

/// Looks for SQLite stores at `candidates`, and for what earlier migrations left beside them.
pub fn stores(candidates: &[PathBuf]) -> io::Result<StoresFact> {
    let mut found = StoresFact::default();
    for db in candidates {
        let (wal, shm) = (beside(db, "-wal"), beside(db, "-shm"));
        let migrated = beside(db, ".migrated");
        let has_migrated = size(&migrated)?.is_some();
        if size(db)?.is_some() {
            found.state_dbs.push(db.clone());
        } else if has_migrated {
            for (stray, target) in [(&wal, beside(db, ".migrated-wal")), (&shm, beside(db, ".migrated-shm"))] {
                if size(stray)?.is_some() && size(&target)?.is_none() {
                    found.strays.push(stray.clone());
                }
            }
        } else if size(&wal)?.is_some_and(|bytes| bytes > 0) {
            found.orphan_wals.push(wal);
        }
        if has_migrated {
            found.migrated.push(migrated);
        }
    }
    Ok(found)
}

/// The size of a file, `None` if there is none. Anything else, a missing permission say, is an error: unknown is not
/// absent.
fn size(path: &Path) -> io::Result<Option<u64>> {
    match path.symlink_metadata() {
        Ok(meta) => Ok(Some(meta.len())),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(at(path, e)),
    }
}

/// `path` with `suffix` appended to its last component.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(files: &[(&str, &str)]) -> StoresFact {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let mut found = stores(&[dir.path().join("state.db"), dir.path().join("server/db/state.db")]).unwrap();
        for list in [&mut found.state_dbs, &mut found.migrated, &mut found.strays, &mut found.orphan_wals] {
            for path in list {
                *path = path.strip_prefix(dir.path()).unwrap().to_owned();
            }
        }
        found
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(look(&[]), StoresFact::default());
    }

    #[test]
    fn a_store_with_its_wal_is_one_store() {
        let found = look(&[("state.db", "x"), ("state.db-wal", "x")]);
        assert_eq!(found, StoresFact { state_dbs: vec!["state.db".into()], ..StoresFact::default() });
    }

    #[test]
    fn a_wal_whose_database_was_renamed_is_a_stray() {
        let found = look(&[("state.db.migrated", "x"), ("state.db-wal", "x"), ("state.db-shm", "x")]);
        assert_eq!(found.strays, [PathBuf::from("state.db-wal"), "state.db-shm".into()]);
        assert!(found.orphan_wals.is_empty());
    }

    #[test]
    fn a_wal_alone_is_part_of_a_lost_store() {
        assert_eq!(look(&[("state.db-wal", "x")]).orphan_wals, [PathBuf::from("state.db-wal")]);
        assert_eq!(look(&[("state.db-wal", "")]), StoresFact::default());
    }
}
