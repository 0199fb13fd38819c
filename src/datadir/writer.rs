//! A whole new data dir of one member, as `etcdutl snapshot restore` would leave it, written in one pass.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::bolt::writer::{BoltWriteError, BoltWriter, BucketTree};
use super::identity::{IdentityError, MemberIdentity};
use super::schema;
use super::snapshot::{RESTORED, write_snapshot};
use super::wal::write_wal;
use crate::crash_point;
use crate::disk::{Disk, at, parent_of};
use crate::ids::{ClusterId, MemberId, Revision};

/// One live key at its newest revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRecord<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// The revision that created the key's present generation.
    pub create_revision: Revision,
    /// The revision of this value.
    pub mod_revision: Revision,
    /// The place within the transaction that made `mod_revision`, from 0.
    pub sub: i64,
    /// How many times the key was written in its present generation, from 1.
    pub version: i64,
    /// The lease it is attached to, or 0.
    pub lease: i64,
}

/// A lease that keys are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its ID, greater than 0.
    pub id: i64,
    /// Its time to live in seconds, counted anew from when etcd starts.
    pub ttl: i64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenDatadir {
    /// The member's ID.
    pub member_id: MemberId,
    /// The cluster's ID.
    pub cluster_id: ClusterId,
    /// What etcd's `HashKV` answers at the written revision.
    pub hash_kv: u32,
    /// How many keys.
    pub keys: u64,
    /// Size of the backend file in bytes.
    pub backend_bytes: u64,
}

/// Why a data dir could not be written. What was written so far is of no use and to be removed.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Records must come in ascending order of (revision, sub).
    #[error("revision {}/{} comes after {}/{}", next.0, next.1, previous.0, previous.1)]
    NotAscending {
        /// The record before.
        previous: (Revision, i64),
        /// The offending record.
        next: (Revision, i64),
    },
    /// A record that etcd could not hold or that contradicts itself.
    #[error("the record at revision {revision} is not valid: {reason}")]
    BadRecord {
        /// Its revision.
        revision: Revision,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A lease that etcd could not hold.
    #[error("lease {id} is not valid: {reason}")]
    BadLease {
        /// Its ID.
        id: i64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The store's revision is below that of a record.
    #[error("the store's revision {revision} is below the newest record's, {newest}")]
    RevisionTooLow {
        /// The store's.
        revision: Revision,
        /// The newest record's.
        newest: Revision,
    },
    /// The member cannot form a cluster.
    #[error("the member's identity is not valid")]
    Identity(#[source] IdentityError),
    /// Something stands where the data dir is to be written.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The backend file could not be written.
    #[error("write the backend")]
    Backend(#[from] BoltWriteError),
    /// The disk failed.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The disk's error, which names the path.
        #[source]
        source: io::Error,
    },
}

/// Writes a data dir. Dropped before [`DatadirWriter::finish`], it leaves an unusable directory to be removed.
pub struct DatadirWriter<'d> {
    disk: &'d dyn Disk,
    dir: PathBuf,
    backend: BoltWriter,
    tree: BucketTree,
    hash: u32,
    keys: u64,
    last: Option<(Revision, i64)>,
    /// The message around the value, kept for its allocation.
    head: Vec<u8>,
    tail: Vec<u8>,
    half_written: bool,
}

impl<'d> DatadirWriter<'d> {
    /// Begins a data dir at `dir`, which must be missing or empty.
    pub fn create(disk: &'d dyn Disk, dir: &Path) -> Result<Self, WriteError> {
        match std::fs::read_dir(dir) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(WriteError::NotEmpty(dir.to_owned()));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(WriteError::Io { doing: "look into the data dir", source: at(dir, e) }),
        }
        let snap = snap_dir(dir);
        disk.create_dir(&snap).map_err(io("create the data dir"))?;
        let backend = BoltWriter::create(disk, &backend_of(dir))?;
        Ok(DatadirWriter {
            disk,
            dir: dir.to_owned(),
            backend,
            tree: BucketTree::new(),
            // etcd's HashKV begins with the bucket's name (mvcc/hash.go, newKVHasher).
            hash: crc32c::crc32c(schema::BUCKET_KEY.as_bytes()),
            keys: 0,
            last: None,
            head: Vec::new(),
            tail: Vec::new(),
            half_written: false,
        })
    }

    /// Adds one live key. Records come in strictly ascending order of (`mod_revision`, `sub`).
    pub fn put(&mut self, record: &KeyRecord<'_>) -> Result<(), WriteError> {
        check(record)?;
        let next = (record.mod_revision, record.sub);
        if let Some(previous) = self.last.filter(|previous| *previous >= next) {
            return Err(WriteError::NotAscending { previous, next });
        }
        let key = schema::revision_key(record.mod_revision, record.sub);
        schema::encode_key_value(record, &mut self.head, &mut self.tail);
        let parts = [self.head.as_slice(), record.value, &self.tail];
        self.backend.put(&mut self.tree, &key, &parts)?;
        self.hash = parts.iter().fold(crc32c::crc32c_append(self.hash, &key), |h, part| crc32c::crc32c_append(h, part));
        self.last = Some(next);
        self.keys += 1;
        if !self.half_written && self.backend.bytes_flushed() > 0 {
            self.half_written = true;
            crash_point!("migrate-staging-half-written");
        }
        Ok(())
    }

    /// Bytes of backend written so far, for progress.
    pub fn bytes_written(&self) -> u64 {
        self.backend.bytes()
    }

    /// Completes the data dir: every file and directory is durable when this returns.
    ///
    /// The store's revision is `revision`, and everything below it reads as compacted.
    pub fn finish(
        mut self,
        revision: Revision,
        leases: &[LeaseRecord],
        member: &MemberIdentity,
    ) -> Result<WrittenDatadir, WriteError> {
        member.check().map_err(WriteError::Identity)?;
        // etcd begins at revision 1, so no store is below it.
        let newest = self.last.map_or(Revision(1), |(newest, _)| newest);
        if revision < newest {
            return Err(WriteError::RevisionTooLow { revision, newest });
        }
        if !self.half_written {
            crash_point!("migrate-staging-half-written");
        }
        self.backend.end_bucket(schema::BUCKET_KEY, self.tree)?;
        write_leases(&mut self.backend, leases)?;
        write_meta(&mut self.backend, revision, member)?;
        write_members(&mut self.backend, member)?;
        let backend_bytes = self.backend.finish()?;
        crash_point!("migrate-backend-written");

        let snap = snap_dir(&self.dir);
        let member_dir = self.dir.join("member");
        write_snapshot(self.disk, &snap, member).map_err(io("write the raft snapshot"))?;
        self.disk.sync_dir(&snap).map_err(io("sync the snapshot directory"))?;
        write_wal(self.disk, &member_dir.join("wal"), member).map_err(io("write the WAL"))?;
        for dir in [&member_dir, &self.dir, &parent_of(&self.dir)] {
            self.disk.sync_dir(dir).map_err(io("sync the data dir"))?;
        }
        Ok(WrittenDatadir {
            member_id: member.member_id(),
            cluster_id: member.cluster_id(),
            hash_kv: self.hash,
            keys: self.keys,
            backend_bytes,
        })
    }
}

/// The backend file of the data dir at `dir`.
pub fn backend_of(dir: &Path) -> PathBuf {
    snap_dir(dir).join("db")
}

fn snap_dir(dir: &Path) -> PathBuf {
    dir.join("member").join("snap")
}

fn io(doing: &'static str) -> impl FnOnce(io::Error) -> WriteError {
    move |source| WriteError::Io { doing, source }
}

/// What etcd would never have written, and what it could not restore.
fn check(record: &KeyRecord<'_>) -> Result<(), WriteError> {
    let reason = if record.key.is_empty() {
        "the key is empty"
    } else if record.create_revision.0 < 1 || record.sub < 0 {
        "a revision is below 1"
    } else if record.create_revision > record.mod_revision {
        "it was created after it was modified"
    } else if record.version < 1 {
        "its version is below 1"
    } else if record.lease < 0 {
        "its lease is negative"
    } else {
        return Ok(());
    };
    Err(WriteError::BadRecord { revision: record.mod_revision, reason })
}

fn write_leases(backend: &mut BoltWriter, leases: &[LeaseRecord]) -> Result<(), WriteError> {
    let mut sorted: Vec<&LeaseRecord> = leases.iter().collect();
    sorted.sort_by_key(|lease| lease.id);
    let mut previous = 0;
    let mut tree = BucketTree::new();
    for lease in sorted {
        let reason = if lease.id < 1 {
            "its ID is below 1"
        } else if lease.id == previous {
            "its ID is taken"
        } else if !(1..=schema::MAX_LEASE_TTL).contains(&lease.ttl) {
            "its time to live is not between 1 and 9000000000 seconds"
        } else {
            previous = lease.id;
            backend.put(&mut tree, &schema::lease_key(lease.id), &[&schema::encode_lease(lease)])?;
            continue;
        };
        return Err(WriteError::BadLease { id: lease.id, reason });
    }
    backend.end_bucket(schema::BUCKET_LEASE, tree)?;
    Ok(())
}

/// Bucket `meta`; keys in ascending order.
fn write_meta(backend: &mut BoltWriter, revision: Revision, member: &MemberIdentity) -> Result<(), WriteError> {
    let (term, index) = RESTORED;
    let compacted = schema::revision_key(revision, 0);
    let entries: [(&[u8], &[u8]); 5] = [
        (schema::META_CONF_STATE, &schema::conf_state_json(member.member_id())),
        (schema::META_CONSISTENT_INDEX, &index.0.to_be_bytes()),
        (schema::META_FINISHED_COMPACT, &compacted),
        (schema::META_SCHEDULED_COMPACT, &compacted),
        (schema::META_TERM, &term.0.to_be_bytes()),
    ];
    let mut tree = BucketTree::new();
    for (key, value) in entries {
        backend.put(&mut tree, key, &[value])?;
    }
    backend.end_bucket(schema::BUCKET_META, tree)?;
    Ok(())
}

/// Bucket `members` with the one member, and the buckets that etcd expects beside it, empty.
fn write_members(backend: &mut BoltWriter, member: &MemberIdentity) -> Result<(), WriteError> {
    let mut tree = BucketTree::new();
    let id = member.member_id().to_string();
    backend.put(&mut tree, id.as_bytes(), &[&schema::member_json(member, true)])?;
    backend.end_bucket(schema::BUCKET_MEMBERS, tree)?;
    for name in [schema::BUCKET_MEMBERS_REMOVED, schema::BUCKET_CLUSTER, schema::BUCKET_ALARM] {
        backend.end_bucket(name, BucketTree::new())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
