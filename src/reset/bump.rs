//! Raises a store's revision, in its stopped member's backend.
//!
//! After a reset that may have lost writes, revisions that clients have seen would be given to other writes. So the
//! store goes on far above, and all before reads as compacted: watchers are told so and list anew, instead of missing
//! what is lost. `etcdutl snapshot restore --bump-revision --mark-compacted` does the same
//! (`etcdutl/snapshot/v3_snapshot.go`), with an entry of an empty key at the new revision; here the two revisions of
//! compaction alone are raised, as in every store that we write (`datadir/FORMAT.md`, 2): at start etcd takes the greatest
//! of them for the store's revision. Keys and their revisions stay.
//!
//! The backend is written anew beside the old one and renamed over it: a bbolt file is not changed in place here. The log
//! must not reach back to index 1: a member that joins would be sent the log instead of this backend, and its
//! revisions would differ. [`super::run`] makes sure of a raft snapshot before.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, ensure};

use crate::crash_point;
use crate::datadir::bolt::writer::BucketTree;
use crate::datadir::bolt::{BoltReader, BoltWriter};
use crate::datadir::members::revision;
use crate::datadir::schema;
use crate::disk::{Disk, at};
use crate::ids::Revision;

/// The new backend until it is whole; etcd removes such a file at its start.
const NEW: &str = "db.tmp-bumped";

/// Raises the revision of the backend in `snap` (`member/snap`) to `to`; does nothing if it is there already.
pub fn bump(disk: &dyn Disk, snap: &Path, to: Revision) -> anyhow::Result<()> {
    let (old, new) = (snap.join("db"), snap.join(NEW));
    let reader = BoltReader::open(File::open(&old).map_err(|e| at(&old, e))?).context("open the backend")?;
    if revision(&reader).context("read the store's revision")? >= to {
        return Ok(());
    }
    disk.forget_file(&new).context("remove what was left before")?;
    rewrite(disk, &reader, &new, to).context("write the backend anew")?;
    let written = BoltReader::open(File::open(&new).map_err(|e| at(&new, e))?).context("open the new backend")?;
    ensure!(revision(&written)? == to, "the new backend is not at revision {to}");
    crash_point!("reset-half-bumped");
    disk.rename_durable(&new, &old).context("put the new backend in place")
}

fn rewrite(disk: &dyn Disk, reader: &BoltReader<File>, new: &Path, to: Revision) -> anyhow::Result<()> {
    let mut writer = BoltWriter::create(disk, new)?;
    let mark = schema::revision_key(to, 0);
    for name in reader.bucket_names()? {
        let bucket = reader.bucket(&name)?.context("a bucket vanished")?;
        let mut cursor = reader.cursor(&bucket)?;
        let mut tree = BucketTree::new();
        if name == schema::BUCKET_META {
            let mut meta = BTreeMap::new();
            while let Some((key, value)) = cursor.next()? {
                meta.insert(key.to_vec(), value.to_vec());
            }
            for key in [schema::META_SCHEDULED_COMPACT, schema::META_FINISHED_COMPACT] {
                meta.insert(key.to_vec(), mark.to_vec());
            }
            for (key, value) in &meta {
                writer.put(&mut tree, key, &[value])?;
            }
        } else {
            while let Some((key, value)) = cursor.next()? {
                writer.put(&mut tree, key, &[value])?;
            }
        }
        writer.end_bucket(&name, tree)?;
    }
    writer.finish()?;
    Ok(())
}

/// Reads every page of a backend that holds something, so that a damaged one is refused before anything is changed.
pub fn check_pages(backend: &Path) -> anyhow::Result<()> {
    let reader = BoltReader::open(File::open(backend).map_err(|e| at(backend, e))?)?;
    for name in reader.bucket_names()? {
        let Some(bucket) = reader.bucket(&name)? else { continue };
        let mut cursor = reader.cursor(&bucket)?;
        while cursor.next()?.is_some() {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::{DatadirWriter, KeyRecord, MemberIdentity};
    use crate::disk::RealDisk;
    use std::path::PathBuf;

    fn backend(home: &Path) -> PathBuf {
        let mut writer = DatadirWriter::create(&RealDisk, home).unwrap();
        for n in 1..3000 {
            let (create_revision, mod_revision) = (Revision(n), Revision(n));
            let (key, value) = (format!("/key/{n:05}"), vec![n as u8; 300]);
            let (key, value) = (key.as_bytes(), value.as_slice());
            writer.put(&KeyRecord { key, value, create_revision, mod_revision, sub: 0, version: 1, lease: 0 }).unwrap();
        }
        let urls = vec!["http://127.0.0.1:1".to_owned()];
        let identity =
            MemberIdentity { name: "a".into(), peer_urls: urls.clone(), client_urls: urls, token: "t".into() };
        writer.finish(Revision(4000), &[], &identity).unwrap();
        home.join("member/snap")
    }

    type Content = BTreeMap<String, Vec<(Vec<u8>, Vec<u8>)>>;

    fn content(snap: &Path) -> Content {
        let reader = BoltReader::open(File::open(snap.join("db")).unwrap()).unwrap();
        let mut all = BTreeMap::new();
        for name in reader.bucket_names().unwrap() {
            let mut cursor = reader.cursor(&reader.bucket(&name).unwrap().unwrap()).unwrap();
            let mut pairs = Vec::new();
            while let Some((key, value)) = cursor.next().unwrap() {
                pairs.push((key.to_vec(), value.to_vec()));
            }
            all.insert(name, pairs);
        }
        all
    }

    #[test]
    fn only_the_marks_of_compaction_change_and_once() {
        let home = tempfile::tempdir().unwrap();
        let snap = backend(&home.path().join("etcd"));
        let mut before = content(&snap);
        std::fs::write(snap.join(NEW), "left by an interrupted attempt").unwrap();
        bump(&RealDisk, &snap, Revision(1_000_004_000)).unwrap();
        let mut after = content(&snap);
        let mark = schema::revision_key(Revision(1_000_004_000), 0).to_vec();
        let marks = |pairs: &[(Vec<u8>, Vec<u8>)]| pairs.iter().filter(|(_, value)| *value == mark).count();
        assert_eq!(marks(&after[schema::BUCKET_META]), 2);
        let rest = |content: &mut Content| {
            content.get_mut(schema::BUCKET_META).unwrap().retain(|(key, _)| !key.ends_with(b"CompactRev"));
        };
        rest(&mut before);
        rest(&mut after);
        assert_eq!(before, after);
        check_pages(&snap.join("db")).unwrap();
        // Again, as after a kill: nothing is raised twice.
        let written = std::fs::read(snap.join("db")).unwrap();
        bump(&RealDisk, &snap, Revision(1_000_004_000)).unwrap();
        assert_eq!(std::fs::read(snap.join("db")).unwrap(), written);
        assert!(!snap.join(NEW).exists());
    }

    #[test]
    fn a_damaged_backend_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let snap = backend(&home.path().join("etcd"));
        let mut bytes = std::fs::read(snap.join("db")).unwrap();
        let middle = bytes.len() / 2 / 4096 * 4096;
        bytes[middle..middle + 4096].fill(0xAA);
        std::fs::write(snap.join("db"), &bytes).unwrap();
        assert!(check_pages(&snap.join("db")).is_err());
        assert!(bump(&RealDisk, &snap, Revision(9000)).is_err());
        assert_eq!(std::fs::read(snap.join("db")).unwrap(), bytes, "and left as it was");
    }
}
