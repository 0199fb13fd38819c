use rusqlite::Connection;

use super::super::journal::SourceFile;
use super::super::journey::Commit;
use super::super::origin::{Opening, Origin};
use super::super::progress::Show;
use super::*;
use crate::datadir::{DatadirWriter, KeyRecord, LeaseRecord, MemberIdentity};
use crate::disk::RealDisk;
use crate::scratch::Aside;

#[test]
fn only_a_file_that_nobody_used_goes_with_a_way_back_that_was_given_up() {
    use AtPlace::{Nothing, Other, Unused};
    for (found, want) in [
        (&[Nothing, Nothing][..], Some(None)),
        (&[Nothing, Unused], Some(Some(1))),
        (&[Other, Unused], Some(Some(1))),
        (&[Other, Nothing], None),
        (&[], Some(None)),
    ] {
        assert_eq!(given_up(found), want, "{found:?}");
    }
}

#[test]
fn a_file_that_was_used_since_is_not_taken_back() {
    let home = tempfile::tempdir().unwrap();
    let place = |name: &str| home.path().join(name);
    let journey = Journey {
        source: Origin::datadir(place("etcd")),
        target: SqliteTarget { path: place("state.db") },
        journal: place("journal"),
        etcd: "etcd".into(),
        verify: Verify::Hash,
        commit: Commit::KeepSource,
        spare: 0,
        show: Show::Nothing,
        lock: None,
    };
    let target = &journey.target;
    let put = |phase| {
        std::fs::write(&target.path, "a store").unwrap();
        let FileState { inode, bytes, modified } = FileState::of(&target.path).unwrap();
        let file = WrittenFile { inode, bytes, modified, revision: Revision(7), keys: 1 };
        let source = SourceFile { path: "etcd".into(), bytes: 0, modified: 0, inode: 0 };
        let journal = Journal {
            phase,
            source,
            source_revision: Revision(7),
            beside: FileState::default(),
            renames: false,
            started: 1,
            finished: None,
            written: None,
            file: Some(file),
        };
        let _ = std::fs::remove_file(&journey.journal);
        journal::store(&RealDisk, &journey.journal, &journal).unwrap();
    };
    let clear = || {
        let earlier = journal::load(&journey.journal).unwrap();
        target.admit(&journey, earlier.as_ref())?;
        target.clear(&RealDisk, &journey, earlier.as_ref())
    };
    put(Phase::Importing);
    clear().unwrap();
    assert!(!target.path.exists(), "nobody has used it");
    // Its source goes on: whatever is used by now, or is another file, stays.
    put(Phase::Importing);
    let places = [place("server/db/state.db"), place("state.db")];
    std::fs::write(place("state.db-wal"), "what was written since").unwrap();
    assert_eq!(abandon(&RealDisk, &journey.journal, &places).unwrap(), None);
    std::fs::remove_file(place("state.db-wal")).unwrap();
    RealDisk.rename(&place("state.db"), &place("ours")).unwrap();
    std::fs::write(place("state.db"), "a store").unwrap();
    assert_eq!(abandon(&RealDisk, &journey.journal, &places).unwrap(), None);
    assert!(target.path.exists() && journey.journal.exists());
    RealDisk.rename(&place("ours"), &place("state.db")).unwrap();
    assert_eq!(abandon(&RealDisk, &journey.journal, &places).unwrap(), Some(place("state.db")));
    assert!(!target.path.exists() && !journey.journal.exists());
    put(Phase::Done);
    assert_eq!(abandon(&RealDisk, &journey.journal, &places).unwrap(), None);
    assert!(target.path.exists());
    // By its journal another journey's flip was its commit.
    put(Phase::Importing);
    let other = Journey { source: Origin::datadir(place("other")), ..journey.clone() };
    let earlier = journal::load(&journey.journal).unwrap();
    assert_eq!(crate::exit::exit_of(&target.admit(&other, earlier.as_ref()).unwrap_err()), Exit::RefusedDataDir);
    assert!(target.clear(&RealDisk, &other, earlier.as_ref()).is_err() && target.path.exists());
    std::fs::remove_file(&target.path).unwrap();
    for beside in ["state.db-wal", "state.db-shm", "state.db-journal"] {
        put(Phase::Importing);
        std::fs::write(place(beside), "what was written since").unwrap();
        let error = clear().unwrap_err();
        assert_eq!(crate::exit::exit_of(&error), Exit::RefusedDataDir);
        assert!(target.path.exists() && place(beside).exists(), "{beside}");
        std::fs::remove_file(place(beside)).unwrap();
    }
    close(&RealDisk, &journey.journal).unwrap();
    assert!(clear().is_err());
    assert!(target.path.exists(), "it is in use");
    close(&RealDisk, &journey.journal).unwrap();
    close(&RealDisk, &place("none")).unwrap();
    std::fs::remove_file(&target.path).unwrap();
    clear().unwrap();
    assert!(!journey.journal.exists(), "the next journey has a journal of its own");
}

/// The data dir of a store at revision 12 whose first key has this value, as a source.
fn source(dir: &Path, value: &[u8]) -> Box<dyn Source> {
    let key = |key, value, create, modified, lease| {
        let (create_revision, mod_revision) = (Revision(create), Revision(modified));
        KeyRecord { key, value, create_revision, mod_revision, sub: 0, version: 1, lease }
    };
    let urls = vec!["http://127.0.0.1:1".to_owned()];
    let member = MemberIdentity { name: "a".into(), peer_urls: urls.clone(), client_urls: urls, token: "t".into() };
    let mut writer = DatadirWriter::create(&RealDisk, dir).unwrap();
    for record in [key(b"/a", value, 5, 5, 0), key(b"/b", b"", 5, 8, 77), key(b"/c", b"w", 9, 9, 0)] {
        writer.put(&record).unwrap();
    }
    writer.finish(Revision(12), &[LeaseRecord { id: 77, ttl: 3660 }], &member).unwrap();
    let none = Path::new("/nonexistent");
    let (copy, meter) = (Aside::alone(none.to_owned(), 0), Meter::default());
    let with = Opening { disk: &RealDisk, etcd: none, copy: &copy, lock: None, meter: &meter };
    Origin::datadir(dir.to_owned()).open(&with).unwrap()
}

#[test]
fn a_file_is_taken_only_if_it_reads_as_it_was_written() {
    let home = tempfile::tempdir().unwrap();
    let place = |name: &str| home.path().join(name);
    let mut of = source(&place("etcd"), b"v");
    let mut sink = SqliteSink::create(&place("whole.db"), Revision(12)).unwrap();
    copy(&mut *of, &mut sink, &Meter::default()).unwrap();
    let written = sink.finish().unwrap();
    let keys = "the keys read back from the file are not those that were written";
    for (change, why) in [
        ("", None),
        ("UPDATE kine SET value = x'77' WHERE name = '/a'", Some(keys)),
        ("UPDATE kine SET lease = 15 WHERE name = '/b'", Some(keys)),
        ("UPDATE kine SET create_revision = 4 WHERE name = '/b'", Some(keys)),
        ("UPDATE kine SET id = 10 WHERE name = '/c'", Some(keys)),
        ("UPDATE kine SET name = '/d' WHERE name = '/c'", Some(keys)),
        ("DELETE FROM kine WHERE name = '/c'", Some(keys)),
        ("INSERT INTO kine VALUES (11, '/d', 1, 0, 0, 0, 0, x'77', NULL)", Some(keys)),
        (
            "UPDATE kine SET id = 13 WHERE id = 12",
            Some("at revision 13, compacted at 12, and should be at 12, compacted at 12"),
        ),
        (
            "UPDATE kine SET prev_revision = 4 WHERE name = 'compact_rev_key'",
            Some("at revision 12, compacted at 4, and should be at 12, compacted at 12"),
        ),
    ] {
        let db = place("changed.db");
        std::fs::copy(place("whole.db"), &db).unwrap();
        Connection::open(&db).unwrap().execute_batch(change).unwrap();
        let read = read_back(&db, Verify::Hash, &mut *of, &written, &Meter::default());
        let said = read.err().map(|error| format!("{error:#}"));
        match why {
            None => assert_eq!(said, None, "what was not changed is not taken"),
            Some(why) => assert!(said.as_ref().is_some_and(|said| said.contains(why)), "{change}: {said:?}"),
        }
    }
    // The file is as it was written, and the source has something else: what a conversion may get wrong.
    let mut other = source(&place("other"), b"w");
    let full = |source: &mut dyn Source| {
        read_back(&place("whole.db"), Verify::Full, source, &written, &Meter::default()).map_err(|e| format!("{e:#}"))
    };
    assert_eq!(full(&mut *of), Ok(()));
    let said = full(&mut *other).unwrap_err();
    assert!(said.contains("the keys read back from the file are not those of the source"), "{said}");
}
