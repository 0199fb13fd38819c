//! The record of a staged restore: what lies in `etcd.restore/etcd` is whole, and is to take the place of `etcd`.
//!
//! Its form is that of [`crate::record_file`], with the magic `SYNCRST1` and at most 64 KiB of payload, in `restore.journal`
//! on the volume. It appears once the staged data dir is durable and an etcd has confirmed it: an `etcd.restore` without it is
//! what an attempt has left that was killed.
//!
//! Legal transitions: none -> staged -> begun -> put away, staged -> none (called off). The last one that was put away
//! stays as `restored.journal`: etcd's limit of a request must not fall below what the restored values need.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::boot::{Refusal, RestoreFact, Staged};
use crate::datadir::bolt::BoltReader;
use crate::datadir::inspect::SchemaVersion;
use crate::datadir::lock::LockError;
use crate::datadir::members::revision;
use crate::datadir::{DatadirLock, InspectedDatadir, inspect};
use crate::disk::Disk;
use crate::ids::{ClusterId, MemberId, Revision};
use crate::migrate::Verify;
use crate::record_file::{self, RecordError};

/// Its name in the directory that also holds `etcd/`.
pub const FILE_NAME: &str = "restore.journal";
/// Its name once it is done with.
pub const DONE: &str = "restored.journal";
/// The directory in which a restore is staged, beside it.
const STAGING: &str = "etcd.restore";
/// The lock of whoever changes either.
const LOCK_FILE: &str = ".syncer.restore.lock";

const MAGIC: &[u8; 8] = b"SYNCRST1";
const MAX_PAYLOAD: usize = 64 << 10;

/// The record's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreRecord {
    /// The snapshot, as it was named.
    pub source: String,
    /// The same as a file: size in bytes and modification time in nanoseconds since 1970; `None` in a bucket.
    pub file: Option<(u64, i128)>,
    /// The staged data dir's only member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The snapshot's revision.
    pub source_revision: Revision,
    /// The staged store's.
    pub revision: Revision,
    /// Live keys.
    pub keys: u64,
    /// `HashKV` at that revision.
    pub hash: u32,
    /// The largest request that the values need, in bytes.
    pub max_request_bytes: u64,
    /// The cluster whose data dir was in the place when it was staged.
    pub replaces: Option<ClusterId>,
    /// When it was staged, in seconds since 1970.
    pub staged: u64,
    /// How it was made, for as long as the same command may be given again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<MadeBy>,
    /// It is taking its place, and supersedes these clusters.
    pub begun: Option<Vec<ClusterId>>,
}

/// What was asked for when a restore was staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MadeBy {
    /// By how much it is above all that clients may have seen.
    pub bump: i64,
    /// How it was verified.
    pub verify: Verify,
}

/// The record's file on the volume at `data_dir`.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE_NAME)
}

/// The directory in which a restore is staged on the volume at `data_dir`; its data dir is `etcd` in it.
pub fn staging(data_dir: &Path) -> PathBuf {
    data_dir.join(STAGING)
}

/// The staged data dir on the volume at `data_dir`.
pub fn staged_dir(data_dir: &Path) -> PathBuf {
    staging(data_dir).join("etcd")
}

/// Keeps everybody else from staging, calling off, or beginning a restore on the volume at `data_dir`.
pub fn lock(data_dir: &Path, wait: Duration) -> Result<DatadirLock, LockError> {
    DatadirLock::acquire_file(&data_dir.join(LOCK_FILE), wait)
}

/// The record on the volume at `data_dir`.
pub fn load(data_dir: &Path) -> Result<Option<RestoreRecord>, RecordError> {
    record_file::load(MAGIC, MAX_PAYLOAD, &path(data_dir))
}

/// As [`load`], for a command.
///
/// # Errors
/// As a start has them: what cannot be read may be of a restore that is taking its place.
pub fn read(data_dir: &Path) -> anyhow::Result<Option<RestoreRecord>> {
    load(data_dir).map_err(|e| match e {
        RecordError::Io(e) => anyhow::Error::from(e).context("read the record of a restore"),
        damaged => Refusal::DamagedRestore(damaged.to_string()).error(),
    })
}

/// Replaces the record, durably. A transition that is not legal is an error.
pub fn store(disk: &dyn Disk, data_dir: &Path, record: &RestoreRecord) -> anyhow::Result<()> {
    let present = load(data_dir).context("read the record of the restore that is to be replaced")?;
    let legal = match &present {
        None => record.begun.is_none(),
        Some(present) => present == record || (present.begun.is_none() && present.cluster == record.cluster),
    };
    anyhow::ensure!(legal, "the record of a restore, {present:?}, cannot become {record:?}");
    disk.write_durable(&path(data_dir), &record_file::encode(MAGIC, MAX_PAYLOAD, record)?, 0o600)
        .context("write the record of the restore")
}

/// What the boot decision looks at, on the volume at `data_dir` whose data dir is at `etcd_dir`.
pub fn fact(data_dir: &Path, etcd_dir: &Path, schema: SchemaVersion) -> anyhow::Result<RestoreFact> {
    let record = match load(data_dir) {
        Ok(None) => return Ok(RestoreFact::Absent),
        Ok(Some(record)) => record,
        Err(e @ RecordError::Damaged { .. }) => return Ok(RestoreFact::Damaged(e.to_string())),
        Err(RecordError::Io(e)) => return Err(e.into()),
    };
    let found = inspect(&staged_dir(data_dir), schema)?;
    let ours = |member, cluster| (member, cluster) == (record.member, record.cluster);
    let outrun = record.begun.is_none() && present_revision(etcd_dir).is_some_and(|now| now >= record.revision);
    Ok(RestoreFact::Staged(Staged {
        member: record.member,
        cluster: record.cluster,
        replaces: record.replaces,
        begun: record.begun,
        whole: matches!(found, InspectedDatadir::Usable(dir) if ours(dir.member(), dir.cluster())),
        outrun,
    }))
}

/// The revision of the backend in a data dir, whatever its log has beyond that; `None` if it does not tell.
pub fn present_revision(etcd_dir: &Path) -> Option<Revision> {
    let file = File::open(etcd_dir.join("member/snap/db")).ok()?;
    revision(&BoltReader::open(file).ok()?).ok()
}

/// The largest request that the values need that were restored last, in bytes; `None` if nothing was restored.
pub fn max_request_bytes(data_dir: &Path) -> Result<Option<u64>, RecordError> {
    Ok(restored(data_dir)?.map(|record| record.max_request_bytes))
}

/// The revision at which the store began that was restored last; `None` if nothing was restored.
pub fn restored_at(data_dir: &Path) -> Result<Option<Revision>, RecordError> {
    Ok(restored(data_dir)?.map(|record| record.revision))
}

fn restored(data_dir: &Path) -> Result<Option<RestoreRecord>, RecordError> {
    record_file::load(MAGIC, MAX_PAYLOAD, &data_dir.join(DONE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    const NEWEST: SchemaVersion = SchemaVersion { major: 3, minor: 7 };

    fn record(cluster: u64, begun: Option<Vec<ClusterId>>) -> RestoreRecord {
        RestoreRecord {
            source: "s3://backups/vc/a.db".into(),
            file: None,
            member: MemberId(1),
            cluster: ClusterId(cluster),
            source_revision: Revision(5),
            revision: Revision(1_000_000_005),
            keys: 3,
            hash: 4,
            max_request_bytes: 7,
            replaces: Some(ClusterId(9)),
            staged: 10,
            made: begun.is_none().then_some(MadeBy { bump: 7, verify: Verify::Full }),
            begun,
        }
    }

    #[test]
    fn only_legal_transitions_are_written_and_a_staged_dir_that_is_gone_is_not_whole() {
        let begun = || Some(vec![ClusterId(9)]);
        for (from, to, legal) in [
            (None, record(2, None), true),
            (None, record(2, begun()), false),
            (Some(record(2, None)), record(2, begun()), true),
            (Some(record(2, None)), record(3, None), false),
            (Some(record(2, begun())), record(2, begun()), true),
            (Some(record(2, begun())), record(2, None), false),
            (Some(record(2, begun())), record(2, Some(vec![])), false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path();
            let etcd = data.join("etcd");
            assert_eq!(fact(data, &etcd, NEWEST).unwrap(), RestoreFact::Absent);
            if let Some(from) = &from {
                store(&RealDisk, data, &record(from.cluster.0, None)).unwrap();
                store(&RealDisk, data, from).unwrap();
            }
            assert_eq!(store(&RealDisk, data, &to).is_ok(), legal, "{from:?} {to:?}");
            let now = if legal { Some(to) } else { from };
            let RestoreFact::Staged(staged) = fact(data, &etcd, NEWEST).unwrap() else {
                assert_eq!(now, None);
                continue;
            };
            let now = now.unwrap();
            assert_eq!((staged.cluster, staged.begun, staged.whole), (now.cluster, now.begun, false));
        }
    }

    #[test]
    fn damage_is_no_absence() {
        let dir = tempfile::tempdir().unwrap();
        store(&RealDisk, dir.path(), &record(2, None)).unwrap();
        let mut bytes = std::fs::read(path(dir.path())).unwrap();
        bytes[30] ^= 1;
        std::fs::write(path(dir.path()), bytes).unwrap();
        let found = fact(dir.path(), &dir.path().join("etcd"), NEWEST).unwrap();
        assert!(matches!(found, RestoreFact::Damaged(why) if why.contains(FILE_NAME)));
        assert_eq!(max_request_bytes(dir.path()).unwrap(), None);
    }
}
