//! The commit of a migration, which is one rename, and what is tidied up after it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::journal::{self, Journal, Phase};
use super::journey::done;
use super::kine::StoreFiles;
use super::sink::Target;
use super::to_datadir::DatadirTarget;
use crate::crash_point;
use crate::disk::{Disk, at};

/// The names of a store that was migrated: `state.db.migrated`, and its `-wal` and `-shm`.
pub fn migrated(db: &Path) -> StoreFiles {
    StoreFiles::of(&with_suffix(db, ".migrated"))
}

/// Commits: renames `state.db` to `state.db.migrated`, durably. A `state.db.migrated` of an earlier migration is first
/// renamed to the next free `state.db.migrated.<n>` with its `-wal` and `-shm`: nothing is ever overwritten.
pub fn commit(disk: &dyn Disk, db: &Path) -> anyhow::Result<()> {
    let target = migrated(db);
    if exists(&target.db)? || exists(&target.wal)? || exists(&target.shm)? {
        number(disk, &target).context("keep an earlier migrated store")?;
    }
    crash_point!("migrate-before-commit");
    disk.rename_durable(db, &target.db).context("commit the migration")?;
    crash_point!("migrate-after-commit");
    Ok(())
}

/// Renames the migrated store of `db`, if there is one, to the next free number, with its `-wal` and `-shm`; its new
/// name.
pub fn keep_migrated(disk: &dyn Disk, db: &Path) -> anyhow::Result<Option<PathBuf>> {
    let present = migrated(db);
    if !exists(&present.db)? && !exists(&present.wal)? && !exists(&present.shm)? {
        return Ok(None);
    }
    number(disk, &present).map(Some)
}

/// At most so many earlier stores are kept apart by number.
const MAX_NUMBER: u32 = 10_000;

fn number(disk: &dyn Disk, present: &StoreFiles) -> anyhow::Result<PathBuf> {
    for n in 1..MAX_NUMBER {
        let kept = StoreFiles::of(&with_suffix(&present.db, &format!(".{n}")));
        if exists(&kept.db)? {
            continue;
        }
        // The database goes last: interrupted, the next attempt takes the same number.
        for (from, to) in [(&present.wal, &kept.wal), (&present.shm, &kept.shm), (&present.db, &kept.db)] {
            if exists(from)? {
                anyhow::ensure!(!exists(to)?, "{} is in the way", to.display());
                disk.rename_durable(from, to)?;
            }
        }
        return Ok(kept.db);
    }
    anyhow::bail!("there are more than {MAX_NUMBER} of them beside {}", present.db.display())
}

/// Moves the `-wal` and `-shm` of a migrated store to its new name; gives what was moved.
///
/// Only after the commit: moved before it, an interruption would leave `state.db` without its `-wal`, and the next
/// attempt would import less than there was.
pub fn move_strays(disk: &dyn Disk, db: &Path) -> io::Result<Vec<PathBuf>> {
    let (old, new) = (StoreFiles::of(db), migrated(db));
    let mut moved = Vec::new();
    if exists(&old.db)? || !exists(&new.db)? {
        return Ok(moved);
    }
    for (from, to) in [(old.wal, new.wal), (old.shm, new.shm)] {
        if exists(&from)? && !exists(&to)? {
            disk.rename_durable(&from, &to)?;
            moved.push(from);
        }
        crash_point!("migrate-wal-moved");
    }
    crash_point!("migrate-strays-moved");
    Ok(moved)
}

/// Finishes what a commit left undone: strays of each of `state_dbs`, and the journal in `data_dir`. Does nothing where
/// nothing is to be done, and never commits.
///
/// Only the commit that a journal tells to be under way has left strays of the store that it has renamed. Whatever else has
/// that name is another store's, whose last writes may be in it alone, and beside the migrated one it would hide that one's rows.
pub fn finish_commit(disk: &dyn Disk, data_dir: &Path, state_dbs: &[PathBuf], now: u64) -> anyhow::Result<()> {
    let path = data_dir.join(journal::FILE_NAME);
    let journal = journal::load(&path).context("read the migration journal")?;
    let by_hand = data_dir.join(journal::BY_HAND);
    // No start depends on it otherwise.
    let others = journal::load(&by_hand).ok().flatten();
    for db in state_dbs {
        let of = |path: &Path, journal: &Option<Journal>| journal.as_ref().is_some_and(|j| is_underway(path, j, db));
        if of(&path, &journal) || of(&by_hand, &others) {
            for stray in move_strays(disk, db).context("tidy up after a migration")? {
                tracing::info!(file = %stray.display(), "moved beside the migrated store");
            }
        } else if let Some(stray) = foreign_wal(db)? {
            tracing::warn!(
                file = %stray.display(),
                "left alone: it is not known to be the migrated store's; it may have the last writes of a state.db that was moved \
                 away without it: put it back beside that one, under the same base name"
            );
        }
    }
    let Some(journal) = journal else { return Ok(()) };
    // One that is done has nothing left; what became of its source since, or stands in its place, is none of its business.
    if journal.source.is_remote() || journal.phase == Phase::Done {
        return Ok(());
    }
    let db = journal::absolute(&path, &journal.source.path);
    match finish(disk, &path, &db, now)? {
        Some(_) => Ok(()),
        None => bail!("the import of {} is not committed, so it cannot be finished", db.display()),
    }
}

/// Finishes the import of `db` that the journal at `path` tells of, if it is committed, and gives the journal as it is
/// then; `None` if there is none or it is not committed.
pub fn finish(disk: &dyn Disk, path: &Path, db: &Path, now: u64) -> anyhow::Result<Option<Journal>> {
    let Some(journal) = journal::load(path).context("read the migration journal")? else { return Ok(None) };
    if journal::absolute(path, &journal.source.path) != db || exists(db)? || !exists(&migrated(db).db)? {
        return Ok(None);
    }
    match journal.phase {
        Phase::Importing => {
            move_strays(disk, db).context("tidy up after a migration")?;
            done(disk, DatadirTarget::POINTS, path, journal, now).map(Some)
        }
        Phase::Done => Ok(Some(journal)),
    }
}

/// Whether the journal at `path` tells that the store at `db` is being renamed, or has been a moment ago.
fn is_underway(path: &Path, journal: &Journal, db: &Path) -> bool {
    journal.phase == Phase::Importing && journal.renames && journal::absolute(path, &journal.source.path) == db
}

/// A `-wal` with content that lies where `db` was, which was migrated.
fn foreign_wal(db: &Path) -> io::Result<Option<PathBuf>> {
    let wal = StoreFiles::of(db).wal;
    let there = !exists(db)? && exists(&migrated(db).db)? && exists(&wal)?;
    Ok((there && wal.symlink_metadata().map_err(|e| at(&wal, e))?.len() > 0).then_some(wal))
}

/// Whether anything bears this name, be it a link to nothing.
pub(super) fn exists(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(at(path, e)),
    }
}

/// `path` with `suffix` appended to its last component.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use std::collections::BTreeMap;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    fn files(dir: &Path) -> BTreeMap<String, String> {
        std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), std::fs::read_to_string(e.path()).unwrap()))
            .collect()
    }

    fn names(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(n, c)| (n.to_string(), c.to_string())).collect()
    }

    #[test]
    fn the_commit_renames_the_database_alone_and_the_strays_follow() {
        let dir = dir(&[("state.db", "db"), ("state.db-wal", "wal"), ("state.db-shm", "shm")]);
        let db = dir.path().join("state.db");
        assert!(move_strays(&RealDisk, &db).unwrap().is_empty(), "strays were moved before the commit");
        commit(&RealDisk, &db).unwrap();
        assert_eq!(
            files(dir.path()),
            names(&[("state.db.migrated", "db"), ("state.db-wal", "wal"), ("state.db-shm", "shm")])
        );
        assert_eq!(move_strays(&RealDisk, &db).unwrap().len(), 2);
        let end = [("state.db.migrated", "db"), ("state.db.migrated-wal", "wal"), ("state.db.migrated-shm", "shm")];
        assert_eq!(files(dir.path()), names(&end));
        assert!(move_strays(&RealDisk, &db).unwrap().is_empty());
        assert_eq!(files(dir.path()), names(&end));
    }

    #[test]
    fn earlier_migrated_stores_are_kept() {
        let dir = dir(&[
            ("state.db", "3"),
            ("state.db.migrated", "2"),
            ("state.db.migrated-wal", "2w"),
            ("state.db.migrated.1", "1"),
        ]);
        commit(&RealDisk, &dir.path().join("state.db")).unwrap();
        assert_eq!(
            files(dir.path()),
            names(&[
                ("state.db.migrated", "3"),
                ("state.db.migrated.1", "1"),
                ("state.db.migrated.2", "2"),
                ("state.db.migrated.2-wal", "2w"),
            ])
        );
    }

    fn importing(dir: &Path, source: &str) -> PathBuf {
        let path = dir.join(journal::FILE_NAME);
        let source = journal::SourceFile { path: source.into(), bytes: 1, modified: 2, inode: 3 };
        let journal = Journal {
            phase: Phase::Importing,
            source,
            source_revision: crate::ids::Revision(1),
            beside: crate::migrate::source::FileState::default(),
            renames: true,
            started: 1,
            finished: None,
            written: None,
            file: None,
        };
        journal::store(&RealDisk, &path, &journal).unwrap();
        path
    }

    #[test]
    fn a_boot_finishes_what_was_committed_and_nothing_else() {
        let dir = dir(&[("state.db.migrated", "db"), ("state.db-wal", "wal")]);
        let db = dir.path().join("state.db");
        let path = importing(dir.path(), "state.db");
        finish_commit(&RealDisk, dir.path(), std::slice::from_ref(&db), 9).unwrap();
        let journal = journal::load(&path).unwrap().unwrap();
        assert_eq!((journal.phase, journal.finished), (Phase::Done, Some(9)));
        assert!(dir.path().join("state.db.migrated-wal").exists());
        finish_commit(&RealDisk, dir.path(), &[], 10).unwrap();
        assert_eq!(journal::load(&path).unwrap().unwrap().finished, Some(9));
        // The way back has put a store in its place, or somebody has removed the old one.
        std::fs::write(&db, "back").unwrap();
        finish_commit(&RealDisk, dir.path(), std::slice::from_ref(&db), 10).unwrap();
        std::fs::remove_file(dir.path().join("state.db.migrated")).unwrap();
        std::fs::remove_file(&db).unwrap();
        finish_commit(&RealDisk, dir.path(), std::slice::from_ref(&db), 10).unwrap();

        let dir = self::dir(&[("state.db", "db"), ("state.db-wal", "wal")]);
        importing(dir.path(), "state.db");
        let before = std::fs::read(dir.path().join(journal::FILE_NAME)).unwrap();
        let error = finish_commit(&RealDisk, dir.path(), &[dir.path().join("state.db")], 9).unwrap_err();
        assert!(error.to_string().contains("is not committed"), "{error}");
        assert_eq!(std::fs::read(dir.path().join(journal::FILE_NAME)).unwrap(), before);
        assert!(dir.path().join("state.db-wal").exists());
    }

    /// A store that was written back, used, and moved away without its `-wal`: that is neither the migrated store's nor rubbish.
    #[test]
    fn the_wal_of_another_store_is_left_where_it_is() {
        let there = [("state.db.migrated", "db"), ("state.db-wal", "another's"), ("state.db-shm", "another's")];
        for (what, phase, source) in [
            ("no journal", None, "state.db"),
            ("a move that is done", Some(Phase::Done), "state.db"),
            ("an import of another store", Some(Phase::Done), "server/db/state.db"),
            ("a move that keeps its source", Some(Phase::Importing), "https://vc-etcd:2379"),
        ] {
            let dir = dir(&there);
            let db = dir.path().join("state.db");
            if let Some(phase) = phase {
                let path = importing(dir.path(), source);
                let begun = journal::load(&path).unwrap().unwrap();
                if phase == Phase::Done {
                    done(&RealDisk, DatadirTarget::POINTS, &path, begun, 9).unwrap();
                }
            }
            finish_commit(&RealDisk, dir.path(), std::slice::from_ref(&db), 10).unwrap();
            let now = std::fs::read(dir.path().join("state.db-wal")).unwrap_or_default();
            assert_eq!(now, b"another's", "with {what} the -wal of another store was moved");
            assert!(!dir.path().join("state.db.migrated-wal").exists(), "{what}");
        }
        // Begun by hand and killed behind its rename, it is the store's own.
        let dir = dir(&[("state.db.migrated", "db"), ("state.db-wal", "its own")]);
        RealDisk.rename(&importing(dir.path(), "state.db"), &dir.path().join(journal::BY_HAND)).unwrap();
        finish_commit(&RealDisk, dir.path(), &[dir.path().join("state.db")], 10).unwrap();
        assert!(dir.path().join("state.db.migrated-wal").exists(), "the rest of a commit by hand was left behind");
    }

    #[test]
    fn a_wal_is_not_put_over_another() {
        let dir = dir(&[("state.db.migrated", "db"), ("state.db-wal", "new"), ("state.db.migrated-wal", "old")]);
        assert!(move_strays(&RealDisk, &dir.path().join("state.db")).unwrap().is_empty());
        assert_eq!(files(dir.path()).len(), 3);
    }
}
