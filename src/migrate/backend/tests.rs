use super::*;
use crate::datadir::{DatadirWriter, KeyRecord, MemberIdentity};
use crate::disk::RealDisk;
use crate::exit::{Exit, exit_of};
use crate::migrate::Origin;
use crate::migrate::origin::Opening;
use crate::migrate::pipeline;
use crate::migrate::progress::Meter;
use crate::migrate::sink::Sink;
use crate::scratch::Aside;

/// A data dir of keys at revisions 2 to `keys + 1`, two of them with leases, of which one is not there.
fn datadir(home: &Path, keys: i64) -> PathBuf {
    let dir = home.join("etcd");
    let mut writer = DatadirWriter::create(&RealDisk, &dir).unwrap();
    for n in 0..keys {
        let (create_revision, mod_revision) = (Revision(2 + n), Revision(2 + n));
        let lease = [7, 8].get(n as usize).copied().unwrap_or(0);
        let key = format!("/key/{n:05}");
        let (key, value) = (key.as_bytes(), key.repeat(9));
        let value = value.as_bytes();
        writer.put(&KeyRecord { key, value, create_revision, mod_revision, sub: n, version: 1, lease }).unwrap();
    }
    let urls = vec!["http://127.0.0.1:1".to_owned()];
    let member = MemberIdentity { name: "a".into(), peer_urls: urls.clone(), client_urls: urls, token: "t".into() };
    writer.finish(Revision(5000), &[LeaseRecord { id: 7, ttl: 60 }], &member).unwrap();
    dir
}

#[derive(Default)]
struct Leases(Vec<KeyLease>);

impl Sink for Leases {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        self.0.push(key.lease);
        Ok(())
    }
}

fn read(origin: &Origin) -> anyhow::Result<(Vec<KeyLease>, Warnings)> {
    let none = Path::new("/nonexistent/etcd");
    let read = || {
        let (copy, meter) = (Aside::alone(none.to_owned(), 0), Meter::default());
        let with = Opening { disk: &RealDisk, etcd: none, copy: &copy, lock: None, meter: &meter };
        let mut source = origin.open(&with)?;
        let mut leases = Leases::default();
        let copied = pipeline::copy(&mut *source, &mut leases, &meter)?;
        Ok((leases.0, copied.warnings))
    };
    read().map_err(|e| origin.name_in(e))
}

#[track_caller]
fn refused(origin: &Origin, exit: Exit, why: &str) {
    let error = read(origin).expect_err("it was read");
    let text = format!("{error:#}");
    assert_eq!(exit_of(&error), exit, "{text}");
    assert!(text.contains(why) && text.contains(&origin.path().display().to_string()), "{text}");
}

#[test]
fn a_lease_that_is_not_there_is_kept_and_told() {
    let home = tempfile::tempdir().unwrap();
    let (leases, warnings) = read(&Origin::datadir(datadir(home.path(), 3))).unwrap();
    let held = |id, ttl| KeyLease::Held(LeaseRecord { id, ttl });
    assert_eq!(leases, [held(7, 60), held(8, 0), KeyLease::None]);
    assert_eq!(warnings.lost_leases.count, 1);
    assert_eq!(warnings.lost_leases.example.as_deref(), Some("/key/00001"));
}

#[test]
fn what_is_no_snapshot_or_not_whole_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let backend = datadir(home.path(), 500).join("member/snap/db");
    let bytes = std::fs::read(&backend).unwrap();
    let file = home.path().join("file");
    let snapshot = Origin::snapshot(file.clone(), true);
    for skip in [true, false] {
        let of = |path: &Path| Origin::snapshot(path.to_owned(), skip);
        refused(&of(&file), Exit::RefusedSource, "nothing of this name");
        refused(&of(home.path()), Exit::RefusedSource, "not a regular file");
        refused(&of(&backend), Exit::RefusedSource, "the backend of a data dir");
    }
    for (content, why) in [
        (&b""[..], "meta pages"),
        (&[7; 8192], "meta pages"),
        (&bytes[..bytes.len() - 100], "middle of a page"),
        (&bytes[..bytes.len() - 512], "bytes and needs"),
    ] {
        std::fs::write(&file, content).unwrap();
        refused(&snapshot, Exit::RefusedSource, why);
    }
    // A checksum that does not fit, over content that does.
    std::fs::write(&file, [bytes.as_slice(), &[0; 32]].concat()).unwrap();
    refused(&snapshot, Exit::RefusedSource, "checksum");
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(read(&snapshot).unwrap().1.no_checksums.count, 1);
    refused(&Origin::snapshot(file.clone(), false), Exit::RefusedSource, "add --skip-hash-check");
    let mut damaged = bytes.clone();
    let middle = bytes.len() / 2 / 4096 * 4096;
    damaged[middle..middle + 4096].fill(0xAA);
    std::fs::write(&file, &damaged).unwrap();
    refused(&snapshot, Exit::RefusedSource, "damaged");
}

#[test]
fn what_is_no_data_dir_or_in_use_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let dir = datadir(home.path(), 5);
    let origin = Origin::datadir(dir.clone());
    refused(&Origin::datadir(home.path().join("other")), Exit::RefusedSource, "nothing of this name");
    refused(&Origin::datadir(dir.join("member/snap/db")), Exit::RefusedSource, "no data dir");
    refused(&Origin::datadir(home.path().to_owned()), Exit::RefusedSource, "");
    let backend = File::open(dir.join("member/snap/db")).unwrap();
    backend.lock().unwrap();
    refused(&origin, Exit::RefusedLocked, "an etcd has it open");
    drop(backend);
    let syncer = crate::datadir::DatadirLock::acquire(home.path(), std::time::Duration::ZERO).unwrap();
    refused(&origin, Exit::RefusedLocked, "is held by");
    drop(syncer);
    read(&origin).unwrap();
    std::fs::remove_file(dir.join("member/snap/db")).unwrap();
    refused(&origin, Exit::RefusedSource, "is missing");
}
