//! What a boot decision rests on. Plain values: [`super::observe`] fills them, tests and models make them up.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, MemberId, Ordinal};

/// A fact that was observed, observed to be missing, or not observed. Unknown is never treated as absent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Known<T> {
    /// Seen.
    Present(T),
    /// An authority says that there is none.
    Absent,
    /// Could not be found out, with the reason.
    Unknown(String),
}

/// Everything that [`super::decide`] looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// This pod's ordinal.
    pub ordinal: Ordinal,
    /// The lowest ordinal of the StatefulSet, normally 0: the only pod that may form a cluster.
    pub seed: Ordinal,
    /// Desired replicas.
    pub desired: u32,
    /// `embeddedEtcd.enabled`.
    pub enabled: bool,
    /// `embeddedEtcd.migrateBack`.
    pub migrate_back: bool,
    /// A deployed etcd is to be moved from.
    pub migrate_from: bool,
    /// The data dir on this pod's volume.
    pub data_dir: DataDirFact,
    /// The migration journal on this pod's volume.
    pub journal: JournalFact,
    /// SQLite stores found on this pod's volume, and what was left of earlier ones.
    pub stores: StoresFact,
    /// The data dir of an etcd that k3s or k0s ran by itself on this volume. Its objects are in no store of ours.
    pub distro_store: Option<PathBuf>,
    /// The marker outside the volume, when a host API is configured.
    pub marker: Known<Marker>,
    /// Whether a host API is configured at all.
    pub host_configured: bool,
    /// The other ordinals, each with what is known of it.
    pub peers: Vec<PeerFact>,
}

/// What stands where etcd's data dir belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DataDirFact {
    /// Nothing, or an empty directory.
    Empty,
    /// A data dir whose WAL names its member and cluster.
    Valid {
        /// From the first WAL record.
        member: MemberId,
        /// From the first WAL record.
        cluster: ClusterId,
    },
    /// Something that etcd could not start from, with the reason.
    Damaged(String),
}

/// What the migration journal says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JournalFact {
    /// No journal: no migration has ever been begun here, or it is long done.
    Absent,
    /// An import was begun from this source; whether it is committed shows in [`StoresFact`].
    Importing {
        /// The SQLite file being moved.
        source: PathBuf,
    },
    /// The import is committed and cleaned up after.
    Done {
        /// The SQLite file that was moved.
        source: PathBuf,
    },
    /// There is a journal that cannot be read.
    Damaged(String),
}

/// SQLite stores on the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoresFact {
    /// `state.db` files, most likely first.
    pub state_dbs: Vec<PathBuf>,
    /// `state.db.migrated` files.
    pub migrated: Vec<PathBuf>,
    /// `-wal` or `-shm` files whose `state.db` is gone while its `.migrated` is there.
    pub strays: Vec<PathBuf>,
    /// `-wal` files with content whose `state.db` is gone without a `.migrated`: part of a store is missing.
    pub orphan_wals: Vec<PathBuf>,
}

/// The record, outside the pod's own volume, that a cluster has been formed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Marker {
    /// The cluster that was formed or is being formed.
    pub cluster: ClusterId,
    /// Whether forming is finished.
    pub formed: bool,
}

/// What is known of another ordinal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerFact {
    /// Which one.
    pub ordinal: Ordinal,
    /// Its own word on its state.
    pub state: Known<PeerState>,
}

/// A peer's own word on itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerState {
    /// Its volume holds no etcd data and it serves no cluster.
    Empty,
    /// It has data of, or serves, this cluster.
    Cluster(ClusterId),
}
