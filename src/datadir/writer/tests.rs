//! What the writer refuses, and that no failure of the disk is taken for success.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::disk::{DiskFile, RealDisk, Unsynced};

const GOOD: KeyRecord<'static> = KeyRecord {
    key: b"/a",
    value: b"",
    create_revision: Revision(3),
    mod_revision: Revision(5),
    sub: 0,
    version: 2,
    lease: 0,
};

fn identity() -> MemberIdentity {
    let urls = |port| vec![format!("http://127.0.0.1:{port}")];
    MemberIdentity { name: "pod-0".into(), peer_urls: urls(1), client_urls: urls(2), token: "t".into() }
}

/// Writes one record and finishes.
fn write(record: &KeyRecord<'_>, revision: i64, leases: &[LeaseRecord]) -> Result<WrittenDatadir, WriteError> {
    let home = tempfile::tempdir().unwrap();
    let mut writer = DatadirWriter::create(&RealDisk, &home.path().join("etcd"))?;
    writer.put(record)?;
    writer.finish(Revision(revision), leases, &identity())
}

#[test]
fn records_that_etcd_never_writes_are_refused() {
    for (record, want) in [
        (KeyRecord { key: b"", ..GOOD }, "the key is empty"),
        (KeyRecord { create_revision: Revision(0), ..GOOD }, "a revision is below 1"),
        (KeyRecord { sub: -1, ..GOOD }, "a revision is below 1"),
        (KeyRecord { create_revision: Revision(6), ..GOOD }, "it was created after it was modified"),
        (KeyRecord { version: 0, ..GOOD }, "its version is below 1"),
        (KeyRecord { lease: -1, ..GOOD }, "its lease is negative"),
    ] {
        match write(&record, 9, &[]) {
            Err(WriteError::BadRecord { reason, .. }) => assert_eq!(reason, want),
            other => panic!("{want}: {other:?}"),
        }
    }
    assert_eq!(write(&GOOD, 5, &[]).unwrap().keys, 1);
}

#[test]
fn records_must_ascend() {
    let home = tempfile::tempdir().unwrap();
    let mut writer = DatadirWriter::create(&RealDisk, &home.path().join("etcd")).unwrap();
    writer.put(&KeyRecord { sub: 1, ..GOOD }).unwrap();
    for next in [KeyRecord { sub: 1, ..GOOD }, GOOD, KeyRecord { mod_revision: Revision(4), sub: 9, ..GOOD }] {
        let error = writer.put(&next).unwrap_err();
        assert!(matches!(error, WriteError::NotAscending { previous: (Revision(5), 1), .. }), "{error}");
    }
    writer.put(&KeyRecord { sub: 2, ..GOOD }).unwrap();
    assert_eq!(writer.finish(Revision(5), &[], &identity()).unwrap().keys, 2);
}

#[test]
fn the_store_s_revision_is_not_below_its_keys() {
    let error = write(&GOOD, 4, &[]).unwrap_err();
    assert_eq!(error.to_string(), "the store's revision 4 is below the newest record's, 5");
    let home = tempfile::tempdir().unwrap();
    let empty = DatadirWriter::create(&RealDisk, &home.path().join("etcd")).unwrap();
    assert!(matches!(empty.finish(Revision(0), &[], &identity()), Err(WriteError::RevisionTooLow { .. })));
}

#[test]
fn leases_that_etcd_never_grants_are_refused() {
    let lease = |id, ttl| LeaseRecord { id, ttl };
    for (leases, want) in [
        (vec![lease(0, 5)], "its ID is below 1"),
        (vec![lease(7, 5), lease(7, 6)], "its ID is taken"),
        (vec![lease(7, 0)], "its time to live"),
        (vec![lease(7, 9_000_000_001)], "its time to live"),
    ] {
        match write(&GOOD, 5, &leases) {
            Err(WriteError::BadLease { reason, .. }) => assert!(reason.starts_with(want), "{reason}"),
            other => panic!("{want}: {other:?}"),
        }
    }
    write(&GOOD, 5, &[lease(9, 9_000_000_000), lease(1, 1)]).unwrap();
}

#[test]
fn nothing_is_written_over() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("file"), b"").unwrap();
    assert!(matches!(DatadirWriter::create(&RealDisk, home.path()), Err(WriteError::NotEmpty(_))));
    let writer = DatadirWriter::create(&RealDisk, &home.path().join("etcd")).unwrap();
    let nobody = MemberIdentity { peer_urls: vec![], ..identity() };
    assert!(matches!(writer.finish(Revision(1), &[], &nobody), Err(WriteError::Identity(_))));
}

#[test]
fn the_hash_of_no_keys_is_that_of_the_bucket_s_name() {
    let home = tempfile::tempdir().unwrap();
    let writer = DatadirWriter::create(&RealDisk, &home.path().join("etcd")).unwrap();
    assert_eq!(writer.finish(Revision(1), &[], &identity()).unwrap().hash_kv, crc32c::crc32c(b"key"));
}

/// Lets so many operations pass, and fails all that follow; notes what was made durable.
#[derive(Clone)]
struct FailingDisk {
    left: Arc<AtomicU32>,
    synced: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl FailingDisk {
    fn pass(&self) -> io::Result<()> {
        let passed = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        passed.map(drop).map_err(|_| io::Error::from(io::ErrorKind::StorageFull))
    }

    fn of(operations: u32) -> Self {
        FailingDisk { left: Arc::new(AtomicU32::new(operations)), synced: Arc::default() }
    }

    fn note(&self, path: &Path) {
        self.synced.lock().unwrap().insert(path.to_owned());
    }
}

struct FailingFile(Box<dyn DiskFile>, FailingDisk, PathBuf);

impl DiskFile for FailingFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.pass()?;
        self.0.write_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.1.pass()?;
        self.1.note(&self.2);
        self.0.sync()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.1.pass()?;
        self.0.truncate(length)
    }
}

impl Disk for FailingDisk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        self.pass()?;
        Ok(Box::new(FailingFile(RealDisk.create(path, mode)?, self.clone(), path.to_owned())))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.pass()?;
        Ok(Box::new(FailingFile(RealDisk.open(path)?, self.clone(), path.to_owned())))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.create_dir(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        self.note(path);
        RealDisk.sync_dir(path)
    }
}

#[test]
fn a_disk_that_fails_at_any_operation_fails_the_whole() {
    let value = vec![1; 700_000];
    let attempt = |operations: u32| {
        let home = tempfile::tempdir().unwrap();
        let disk = FailingDisk::of(operations);
        let mut writer = DatadirWriter::create(&disk, &home.path().join("etcd"))?;
        for n in 1..=5 {
            let (create_revision, mod_revision) = (Revision(n), Revision(n));
            writer.put(&KeyRecord { value: &value, create_revision, mod_revision, ..GOOD })?;
        }
        let written = writer.finish(Revision(5), &[], &identity())?;
        assert_eq!(disk.left.load(Ordering::Relaxed), 0, "it ends exactly when nothing is left to do");
        Ok::<_, WriteError>(written)
    };
    let mut operations = 0;
    loop {
        match attempt(operations) {
            Ok(written) => break assert_eq!(written.keys, 5),
            Err(error) => {
                let full = crate::exit::exit_of(&anyhow::Error::from(error));
                assert_eq!(full, crate::exit::Exit::RefusedSpace, "after {operations} operations");
            }
        }
        operations += 1;
    }
    // Two directories, three files with a write and a sync each, and five directories made durable, at the least.
    assert!(operations >= 15, "{operations} operations");
}

#[test]
fn what_is_written_unsynced_is_durable_when_the_tree_is() {
    let home = tempfile::tempdir().unwrap();
    let (dir, disk) = (home.path().join("etcd"), FailingDisk::of(1000));
    let unsynced = Unsynced(&disk);
    let mut writer = DatadirWriter::create(&unsynced, &dir).unwrap();
    writer.put(&GOOD).unwrap();
    writer.finish(Revision(5), &[], &identity()).unwrap();
    assert_eq!(*disk.synced.lock().unwrap(), BTreeSet::new());
    (&disk as &dyn Disk).sync_tree(&dir).unwrap();
    let mut all = BTreeSet::from([dir.clone()]);
    let mut open = vec![dir];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path.clone());
            }
            all.insert(path);
        }
    }
    assert_eq!(all.len(), 7, "member, snap, wal, and a file in each, or two: {all:?}");
    assert_eq!(*disk.synced.lock().unwrap(), all);
    disk.left.store(3, Ordering::Relaxed);
    assert!((&disk as &dyn Disk).sync_tree(&home.path().join("etcd")).is_err(), "a disk that fails is told");
}
