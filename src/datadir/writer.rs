//! A whole new data dir of one member, as `etcdutl snapshot restore` would leave it, written in one pass.

use std::io;
use std::path::Path;

use thiserror::Error;

use super::identity::{IdentityError, MemberIdentity};
use crate::disk::Disk;
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

/// Writes a data dir. Dropped before [`DatadirWriter::finish`], it leaves an unusable directory for the caller to remove.
pub struct DatadirWriter<'d> {
    disk: &'d dyn Disk,
    bytes: u64,
}

impl<'d> DatadirWriter<'d> {
    /// Begins a data dir at `dir`, which must be missing or empty.
    pub fn create(disk: &'d dyn Disk, dir: &Path) -> Result<Self, WriteError> {
        disk.create_dir(dir).map_err(|source| WriteError::Io { doing: "create the data dir", source })?;
        Ok(DatadirWriter { disk, bytes: 0 })
    }

    /// Adds one live key. Records come in strictly ascending order of (`mod_revision`, `sub`).
    pub fn put(&mut self, record: &KeyRecord<'_>) -> Result<(), WriteError> {
        let _ = (self.disk, record);
        todo!()
    }

    /// Bytes of backend written so far, for progress.
    pub fn bytes_written(&self) -> u64 {
        self.bytes
    }

    /// Completes the data dir: every file and directory is durable when this returns.
    ///
    /// The store's revision is `revision`, and everything below it reads as compacted.
    pub fn finish(
        self,
        revision: Revision,
        leases: &[LeaseRecord],
        member: &MemberIdentity,
    ) -> Result<WrittenDatadir, WriteError> {
        let _ = (revision, leases, member);
        todo!()
    }
}
