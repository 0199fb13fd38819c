//! What stands where etcd's data dir belongs. Reads little: never the whole backend.

use std::io;
use std::path::Path;

use thiserror::Error;

use crate::boot::DataDirFact;
use crate::ids::{ClusterId, MemberId, RaftIndex, Term};

/// An etcd schema version (`3.6`), as in the backend's `storageVersion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SchemaVersion {
    /// Major.
    pub major: u64,
    /// Minor.
    pub minor: u64,
}

/// What an inspection found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InspectedDatadir {
    /// Nothing, or what etcd itself treats as nothing: it would form or join from here.
    Empty,
    /// A data dir that etcd starts from.
    Usable(UsableDatadir),
    /// Something that etcd could not or must not start from, with the reason.
    Damaged(String),
}

/// A data dir that passed inspection; only [`inspect`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsableDatadir {
    member: MemberId,
    cluster: ClusterId,
    term: Term,
    last_index: RaftIndex,
    commit: RaftIndex,
}

impl UsableDatadir {
    /// Whose data dir it is, from the WAL's metadata record.
    pub fn member(&self) -> MemberId {
        self.member
    }
    /// Which cluster it belongs to, from the WAL's metadata record.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }
    /// The term of the last entry or HardState, whichever is greater.
    pub fn term(&self) -> Term {
        self.term
    }
    /// The index of the last entry or raft snapshot, whichever is greater.
    pub fn last_index(&self) -> RaftIndex {
        self.last_index
    }
    /// The HardState's commit index.
    pub fn commit(&self) -> RaftIndex {
        self.commit
    }
}

impl InspectedDatadir {
    /// What the boot decision looks at.
    pub fn fact(&self) -> DataDirFact {
        match self {
            InspectedDatadir::Empty => DataDirFact::Empty,
            InspectedDatadir::Usable(u) => DataDirFact::Valid { member: u.member, cluster: u.cluster },
            InspectedDatadir::Damaged(reason) => DataDirFact::Damaged(reason.clone()),
        }
    }
}

/// The disk could not be read, so nothing is known.
#[derive(Debug, Error)]
#[error("inspect the data dir")]
pub struct InspectError(#[source] pub io::Error);

/// Inspects the data dir at `etcd_dir`. `newest` is the schema version of the etcd that will run: an older one refuses
/// a newer backend.
pub fn inspect(etcd_dir: &Path, newest: SchemaVersion) -> Result<InspectedDatadir, InspectError> {
    let _ = (etcd_dir, newest);
    todo!()
}
