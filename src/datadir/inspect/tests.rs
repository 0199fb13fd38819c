//! Every verdict on a data dir, from one that we wrote; those of real etcd are in `tests/it/datadir`.

use std::fs;

use super::*;
use crate::datadir::snapshot::file_name;
use crate::datadir::wal::record::{HardState, RecordEncoder, SnapshotRecord, TYPE_SNAPSHOT, TYPE_STATE};
use crate::datadir::wal::writer::FIRST_SEGMENT;
use crate::datadir::{DatadirWriter, KeyRecord, MemberIdentity};
use crate::disk::RealDisk;
use crate::ids::Revision;

const V3_6: SchemaVersion = SchemaVersion { major: 3, minor: 6 };
const V3_7: SchemaVersion = SchemaVersion { major: 3, minor: 7 };
const SNAP: &str = "member/snap/0000000000000001-0000000000000001.snap";
const DB: &str = "member/snap/db";

struct Dir {
    home: tempfile::TempDir,
}

impl Dir {
    /// A data dir with some keys.
    fn new() -> Dir {
        let dir = Dir { home: tempfile::tempdir().unwrap() };
        let mut writer = DatadirWriter::create(&RealDisk, &dir.path("")).unwrap();
        for n in 1..200 {
            let (create_revision, mod_revision) = (Revision(n), Revision(n));
            let key = format!("/key/{n}");
            let (key, value) = (key.as_bytes(), &[7; 100][..]);
            writer.put(&KeyRecord { key, value, create_revision, mod_revision, sub: 0, version: 1, lease: 0 }).unwrap();
        }
        writer.finish(Revision(500), &[], &identity()).unwrap();
        dir
    }

    fn path(&self, file: &str) -> PathBuf {
        let dir = self.home.path().join("etcd");
        if file.is_empty() { dir } else { dir.join(file) }
    }

    fn wal(&self) -> PathBuf {
        self.path("member/wal").join(FIRST_SEGMENT)
    }

    /// Appends to the WAL after its last record.
    fn append(&self, records: &[(u64, Vec<u8>)]) {
        let tail = read_wal(&self.path("member/wal")).unwrap().tail;
        let mut log = RecordEncoder::resume(tail.crc);
        for (kind, data) in records {
            log.push(*kind, data);
        }
        let mut bytes = fs::read(&tail.path).unwrap();
        bytes.truncate(tail.offset as usize);
        bytes.extend_from_slice(&log.into_bytes());
        fs::write(&tail.path, bytes).unwrap();
    }

    fn inspect(&self) -> InspectedDatadir {
        inspect(&self.path(""), V3_6).unwrap()
    }

    fn assert_usable(&self) -> UsableDatadir {
        match self.inspect() {
            InspectedDatadir::Usable(usable) => usable,
            other => panic!("usable, not {other:?}"),
        }
    }

    #[track_caller]
    fn assert_damaged(&self, words: &str) {
        match self.inspect() {
            InspectedDatadir::Damaged(reason) => assert!(reason.contains(words), "{reason:?} does not say {words:?}"),
            other => panic!("damaged ({words}), not {other:?}"),
        }
    }
}

fn identity() -> MemberIdentity {
    let urls = |port| vec![format!("http://127.0.0.1:{port}")];
    MemberIdentity { name: "pod-0".into(), peer_urls: urls(1), client_urls: urls(2), token: "t".into() }
}

#[test]
fn what_we_write_is_usable() {
    let dir = Dir::new();
    let usable = dir.assert_usable();
    assert_eq!((usable.member(), usable.cluster()), (identity().member_id(), identity().cluster_id()));
    assert_eq!((usable.last(), usable.term()), ((Term(1), RaftIndex(1)), Term(1)));
    assert_eq!((usable.commit(), usable.consistent_index()), (RaftIndex(1), RaftIndex(1)));
    let fact = DataDirFact::Valid { member: usable.member(), cluster: usable.cluster() };
    assert_eq!(dir.inspect().fact(), fact);
    assert!(matches!(inspect(&dir.path(""), V3_7).unwrap(), InspectedDatadir::Usable(_)));
}

#[test]
fn nothing_and_what_etcd_takes_for_nothing_is_empty() {
    let dir = Dir { home: tempfile::tempdir().unwrap() };
    assert_eq!(dir.inspect(), InspectedDatadir::Empty);
    // The steps of a first start, each of which may be the last before a kill.
    for step in ["", "lost+found", "member", "member/snap", "member/wal.tmp", "member/wal"] {
        fs::create_dir_all(dir.path(step)).unwrap();
        assert_eq!(dir.inspect(), InspectedDatadir::Empty, "{step}");
    }
    fs::write(dir.path("member/wal.tmp").join(FIRST_SEGMENT), b"half").unwrap();
    fs::write(dir.path(DB), b"").unwrap();
    assert_eq!(dir.inspect().fact(), DataDirFact::Empty);
}

/// A log with its head but no HardState, beside a backend without content.
#[test]
fn a_log_in_which_nothing_was_stored_is_empty() {
    use crate::datadir::bolt::BoltWriter;
    let dir = Dir::new();
    let log = fs::read(dir.wal()).unwrap();
    let entry = log.windows(3).position(|window| window == [8, 2, 0x10]).unwrap() - 8;
    fs::write(dir.wal(), &log[..entry]).unwrap();
    dir.assert_damaged("entries are lost");
    fs::remove_file(dir.path(DB)).unwrap();
    dir.assert_damaged("is missing while its WAL is there");
    BoltWriter::create(&RealDisk, &dir.path(DB)).unwrap().finish().unwrap();
    assert_eq!(dir.inspect(), InspectedDatadir::Empty);
    // An entry without a HardState was never acknowledged; a vote counts.
    fs::write(dir.wal(), &log[..entry + 8]).unwrap();
    assert_eq!(dir.inspect(), InspectedDatadir::Empty);
    dir.append(&[(TYPE_STATE, HardState { term: 1, vote: 7, commit: 0 }.encode())]);
    assert_eq!(dir.assert_usable().last_index(), RaftIndex(0));
}

#[test]
fn a_backend_without_its_wal_is_never_started_from() {
    let dir = Dir::new();
    fs::remove_dir_all(dir.path("member/wal")).unwrap();
    dir.assert_damaged("the WAL (member/wal) is missing while its backend");
    fs::create_dir(dir.path("member/wal")).unwrap();
    dir.assert_damaged("the WAL (member/wal) is missing while its backend");
    fs::remove_file(dir.path(DB)).unwrap();
    dir.assert_damaged("the WAL (member/wal) is missing while a snapshot is there");
}

#[test]
fn a_wal_without_its_backend_is_damage() {
    let dir = Dir::new();
    fs::remove_file(dir.path(DB)).unwrap();
    dir.assert_damaged("the backend (member/snap/db) is missing");
    fs::remove_dir_all(dir.path("member/snap")).unwrap();
    dir.assert_damaged("raft snapshot file");
}

#[test]
fn a_damaged_backend_is_noticed() {
    let dir = Dir::new();
    let whole = fs::read(dir.path(DB)).unwrap();
    for length in [0, 1, 4096, 8192, 12_288, whole.len() - 1] {
        fs::write(dir.path(DB), &whole[..length]).unwrap();
        dir.assert_damaged("the backend (member/snap/db) is damaged");
    }
    let mut broken = whole.clone();
    broken[10..8000].fill(0);
    fs::write(dir.path(DB), &broken).unwrap();
    dir.assert_damaged("both meta pages are broken");
    fs::write(dir.path(DB), b"a file that is something else entirely").unwrap();
    dir.assert_damaged("is damaged");
    fs::write(dir.path(DB), vec![0; 16384]).unwrap();
    dir.assert_damaged("is damaged");
}

#[test]
fn a_lost_raft_snapshot_file_is_damage_where_etcd_would_replay_the_log_instead() {
    let dir = Dir::new();
    let snap = fs::read(dir.path(SNAP)).unwrap();
    fs::write(dir.path(SNAP), &snap[..snap.len() - 1]).unwrap();
    dir.assert_damaged("0000000000000001-0000000000000001.snap is missing or damaged");
    fs::remove_file(dir.path(SNAP)).unwrap();
    dir.assert_damaged("0000000000000001-0000000000000001.snap is missing or damaged");
    // From 3.7 on the WAL's own record counts.
    assert!(matches!(inspect(&dir.path(""), V3_7).unwrap(), InspectedDatadir::Usable(_)));
    // etcd goes by a file's content, whatever its name.
    fs::write(dir.path("member/snap").join(file_name(Term(9), RaftIndex(9))), &snap).unwrap();
    dir.assert_usable();
}

#[test]
fn a_snapshot_that_was_received_but_not_put_in_place_is_usable() {
    let dir = Dir::new();
    let received = SnapshotRecord { index: 70, term: 2, conf_state: None };
    dir.append(&[
        (TYPE_SNAPSHOT, received.encode()),
        (TYPE_STATE, HardState { term: 2, vote: 0, commit: 70 }.encode()),
    ]);
    // 3.7 goes by the WAL's record; the backend is behind it, and the received one has not arrived.
    let InspectedDatadir::Damaged(reason) = inspect(&dir.path(""), V3_7).unwrap() else { panic!("damaged") };
    assert!(reason.contains("the backend ends at index 1, but its WAL begins at 70"), "{reason}");
    let arrived = dir.path("member/snap").join(format!("{:016x}.snap.db", 70));
    fs::copy(dir.path(DB), arrived).unwrap();
    let InspectedDatadir::Usable(usable) = inspect(&dir.path(""), V3_7).unwrap() else { panic!("usable") };
    assert_eq!(usable.last(), (Term(2), RaftIndex(70)));
}

#[test]
fn a_wal_that_lost_its_end_is_noticed() {
    let dir = Dir::new();
    let summary = read_wal(&dir.path("member/wal")).unwrap();
    // The log without its last three records: entry, HardState, snapshot. The backend has the entry.
    let bytes = fs::read(dir.wal()).unwrap();
    let mut log = bytes[..summary.tail.offset as usize].to_vec();
    let entry = log.windows(3).position(|window| window == [8, 2, 0x10]).unwrap() - 8;
    log.truncate(entry);
    fs::write(dir.wal(), &log).unwrap();
    dir.assert_damaged("the backend is at index 1, but its WAL ends at 0: entries are lost");
    fs::write(dir.wal(), b"").unwrap();
    dir.assert_damaged("does not name its member");
}

#[test]
fn a_gap_in_the_log_is_noticed() {
    use crate::datadir::wal::record::{Entry, EntryKind, TYPE_ENTRY};
    let dir = Dir::new();
    let entry = |index| Entry { kind: EntryKind::Normal, term: Term(1), index: RaftIndex(index), data: b"x" }.encode();
    dir.append(&[(TYPE_ENTRY, entry(2))]);
    assert_eq!(dir.assert_usable().last_index(), RaftIndex(2));
    dir.append(&[(TYPE_ENTRY, entry(9))]);
    dir.assert_damaged("no entries between index 1 and 9");
}

#[test]
fn a_log_that_begins_too_late_is_noticed() {
    let dir = Dir::new();
    fs::copy(dir.wal(), dir.path("member/wal").join(format!("{:016x}-{:016x}.wal", 3, 100))).unwrap();
    fs::remove_file(dir.wal()).unwrap();
    dir.assert_damaged("the WAL begins at index 100");
}

#[test]
fn an_interrupted_log_is_usable() {
    let dir = Dir::new();
    let tail = dir.assert_usable().wal().tail.clone();
    let whole = fs::read(dir.wal()).unwrap();
    assert_eq!(whole.len(), 64_000_000, "preallocated as etcd does");
    // Torn in the last record's middle; without preallocation; with junk beside it.
    fs::write(dir.wal(), &whole[..tail.offset as usize]).unwrap();
    dir.assert_usable();
    let mut torn = whole[..tail.offset as usize].to_vec();
    torn.extend_from_slice(&[90, 0, 0, 0, 0, 0, 0, 0, 8]);
    fs::write(dir.wal(), &torn).unwrap();
    assert!(dir.assert_usable().wal().tail.torn);
    fs::write(dir.path("member/wal/0.tmp"), b"").unwrap();
    fs::write(dir.path("some-file"), b"").unwrap();
    fs::write(dir.path("member/snap/db.tmp.123"), b"").unwrap();
    dir.assert_usable();
}

#[test]
fn what_is_not_etcd_s_is_not_called_empty() {
    for file in ["state.db", "wal/x", "member/x", "snap/db"] {
        let dir = Dir { home: tempfile::tempdir().unwrap() };
        fs::create_dir_all(dir.path(file).parent().unwrap()).unwrap();
        fs::write(dir.path(file), b"").unwrap();
        dir.assert_damaged("something that is not etcd's");
    }
    let dir = Dir { home: tempfile::tempdir().unwrap() };
    fs::write(dir.path(""), b"").unwrap();
    dir.assert_damaged("is not a directory");
}

#[test]
fn a_newer_etcd_s_data_dir_is_refused() {
    let file = fs::File::open(Dir::new().path(DB)).unwrap();
    let mut backend = Backend::read(file).unwrap();
    for (storage, cluster, refused) in [
        (None, None, false),
        (Some(V3_6), Some(V3_6), false),
        (Some(V3_7), None, true),
        (None, Some(V3_7), true),
        (Some(V3_7), Some(V3_6), true),
    ] {
        backend.storage_version = storage;
        backend.cluster_version = cluster;
        let outcome = backend.check_version(V3_6).err().map(Found::outcome);
        match outcome {
            Some(Ok(InspectedDatadir::Newer(reason))) if refused => {
                assert_eq!(reason, "it was written by etcd 3.7, and the etcd here is 3.6");
            }
            None if !refused => {}
            other => panic!("{storage:?} {cluster:?}: {other:?}"),
        }
        assert!(backend.check_version(V3_7).is_ok());
    }
}

#[test]
fn an_unreadable_directory_is_not_a_verdict() {
    // A name in the path that is a loop of links cannot be looked into: nothing is known.
    let home = tempfile::tempdir().unwrap();
    let link = home.path().join("etcd");
    std::os::unix::fs::symlink(&link, &link).unwrap();
    assert!(inspect(&link, V3_6).is_err());
}

#[test]
fn a_log_that_promises_more_than_it_holds_is_damaged() {
    let dir = Dir::new();
    dir.append(&[(TYPE_STATE, HardState { term: 1, vote: 7, commit: 2 }.encode())]);
    dir.assert_damaged("says that index 2 is committed, and ends at 1");
}
