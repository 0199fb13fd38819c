//! Why a pod does not start: each reason a variant, each with what is wrong, what to do, and an exit code.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::exit::{Exit, refuse};
use crate::ids::{ClusterId, MemberId, Ordinal};

/// Why a pod does not start, each with a remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Refusal {
    /// The data dir cannot be started from.
    DamagedDataDir(String),
    /// The data dir was written by a newer etcd.
    NewerDataDir(String),
    /// The data dir was written by an etcd more than one minor version older.
    OlderDataDir(String),
    /// The data dir was written by an etcd that has not stored promotions, and this one would count too many learners.
    UnpromotedDataDir(String),
    /// The migration journal cannot be read.
    DamagedJournal(String),
    /// Embedded etcd is off, but its data dir exists.
    EtcdDirWhileDisabled,
    /// A deployed etcd is to be moved from, and a SQLite store lies on the volume.
    TwoSources(PathBuf),
    /// A move from this etcd was begun and not committed, and is not asked for any more.
    MoveUnfinished(String),
    /// A move from this etcd was begun and not committed, its fence is raised, and a data dir stands here that the move has
    /// not written.
    OtherDataDirBesideFence(String),
    /// A move from this etcd was committed, but there is no data dir now.
    MovedButNoDataDir(String),
    /// A SQLite store lies on the volume, and the API server would begin a new one elsewhere.
    OtherStore {
        /// What lies there.
        found: PathBuf,
        /// Where the API server would have its own.
        uses: PathBuf,
    },
    /// The store was written back into SQLite earlier, but there is no `state.db` now.
    WrittenBackButGone,
    /// The way back to SQLite is asked for, and this volume has no store at all.
    NothingToWriteBack,
    /// Several SQLite stores, and nothing says which is the right one.
    SeveralStores(Vec<PathBuf>),
    /// The distro has kept its objects in an etcd of its own on this volume.
    DistroStore(PathBuf),
    /// A `-wal` with content lies there without its `state.db`.
    OrphanWal(PathBuf),
    /// A store was migrated earlier, but there is no data dir now.
    MigratedButNoDataDir(PathBuf),
    /// The journal says that an import was begun, its source is gone, and nothing was committed.
    SourceVanished(PathBuf),
    /// The marker says that a cluster has been formed, but this volume is empty.
    FormedElsewhere(ClusterId),
    /// Only the seed's store is moved, and this pod, which has one too, is another.
    NotTheSeed {
        /// This pod.
        ordinal: Ordinal,
        /// Its stores.
        stores: Vec<PathBuf>,
        /// The seed.
        seed: Ordinal,
        /// The seed's store, if it says that it has one.
        of_seed: Option<PathBuf>,
    },
    /// Only the seed's store is written back, and this pod is another.
    BackNotTheSeed {
        /// This pod.
        ordinal: Ordinal,
        /// The seed.
        seed: Ordinal,
    },
    /// Another pod has a SQLite store that has not been moved.
    StoreElsewhere {
        /// That pod.
        ordinal: Ordinal,
        /// Its `state.db`.
        store: PathBuf,
        /// Those of this pod.
        mine: Vec<PathBuf>,
    },
    /// This pod and the marker, or two pods, have data of unrelated clusters.
    TwoClusters {
        /// The cluster of this pod, or the one that it would join.
        mine: ClusterId,
        /// The other.
        other: ClusterId,
    },
    /// A reset was begun here, or done by hand, and others serve the cluster.
    ResetOvertaken {
        /// The member that was to be the only one.
        member: MemberId,
        /// Its cluster.
        cluster: ClusterId,
        /// Those that serve it, or have what it takes.
        others: Vec<MemberId>,
    },
    /// A reset was begun and not finished, and the data dir is gone.
    ResetVanished,
    /// A pod that would join has a CA of its own.
    NoSharedCa,
    /// A pod that would join lacks, in this folder, the CAs that the other pods' k0s has.
    K0sMakesCas(PathBuf),
    /// A pod that would join has other CAs for k0s, or another key pair for tokens, than one that serves.
    K0sOtherCas {
        /// Where they are.
        dir: PathBuf,
        /// The pod that serves.
        ordinal: Ordinal,
    },
    /// Embedded etcd is off and more than one replica is asked for: SQLite has one writer.
    SqliteReplicas(u32),
    /// The record of a staged restore cannot be read.
    DamagedRestore(String),
    /// A snapshot is staged to be restored, and embedded etcd is off.
    RestoreWhileDisabled,
    /// A snapshot is staged to be restored on another volume than the seed's.
    RestoreNotTheSeed {
        /// This pod.
        ordinal: Ordinal,
        /// The seed.
        seed: Ordinal,
    },
    /// A snapshot is staged to be restored, and an import of this store was begun and is not committed.
    RestoreBesideImport(PathBuf),
    /// A snapshot is staged to be restored on an empty volume, and a deployed etcd is to be moved there.
    RestoreBesideMove,
    /// The staged data dir is gone, or etcd could not start from it.
    RestoreVanished,
    /// The present store has come to the revision from which the restored one is to go on.
    RestoreOutrun,
}

impl Refusal {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Refusal::DamagedDataDir(_)
            | Refusal::NewerDataDir(_)
            | Refusal::OlderDataDir(_)
            | Refusal::UnpromotedDataDir(_)
            | Refusal::DamagedJournal(_)
            | Refusal::EtcdDirWhileDisabled
            | Refusal::ResetVanished
            | Refusal::OtherDataDirBesideFence(_)
            | Refusal::MovedButNoDataDir(_)
            | Refusal::MigratedButNoDataDir(_)
            | Refusal::WrittenBackButGone
            | Refusal::NothingToWriteBack
            | Refusal::DamagedRestore(_)
            | Refusal::RestoreWhileDisabled
            | Refusal::RestoreBesideImport(_)
            | Refusal::RestoreBesideMove
            | Refusal::RestoreVanished
            | Refusal::RestoreOutrun => Exit::RefusedDataDir,
            Refusal::SeveralStores(_)
            | Refusal::OrphanWal(_)
            | Refusal::DistroStore(_)
            | Refusal::SourceVanished(_)
            | Refusal::TwoSources(_)
            | Refusal::OtherStore { .. }
            | Refusal::MoveUnfinished(_) => Exit::RefusedSource,
            Refusal::FormedElsewhere(_)
            | Refusal::NotTheSeed { .. }
            | Refusal::BackNotTheSeed { .. }
            | Refusal::StoreElsewhere { .. }
            | Refusal::TwoClusters { .. }
            | Refusal::ResetOvertaken { .. }
            | Refusal::RestoreNotTheSeed { .. }
            | Refusal::SqliteReplicas(_) => Exit::RefusedMembership,
            Refusal::NoSharedCa | Refusal::K0sMakesCas(_) | Refusal::K0sOtherCas { .. } => Exit::RefusedPki,
        }
    }

    /// Whether the word of other pods or of the host API could lead to another decision: where there may be any, nothing
    /// is refused for this before they were asked.
    pub fn others_decide(&self) -> bool {
        // Whose data dir was moved away joins where the others have the cluster.
        let gone = matches!(
            self,
            Refusal::DamagedDataDir(_)
                | Refusal::NewerDataDir(_)
                | Refusal::OlderDataDir(_)
                | Refusal::UnpromotedDataDir(_)
                | Refusal::MigratedButNoDataDir(_)
                | Refusal::MovedButNoDataDir(_)
                | Refusal::WrittenBackButGone
                | Refusal::RestoreBesideMove
        );
        self.exit() == Exit::RefusedMembership || gone
    }

    /// What is wrong, naming the thing.
    pub fn what(&self) -> String {
        match self {
            Refusal::DamagedDataDir(why) => format!("the etcd data dir cannot be started from: {why}"),
            Refusal::NewerDataDir(versions) => format!("the etcd data dir is too new for this etcd: {versions}"),
            Refusal::OlderDataDir(versions) => {
                format!("the etcd data dir is too old for this etcd: {versions}")
            }
            Refusal::UnpromotedDataDir(why) => format!("this etcd would not start from the etcd data dir: {why}"),
            Refusal::DamagedJournal(why) => format!("the migration journal cannot be read: {why}"),
            Refusal::EtcdDirWhileDisabled => {
                "embedded etcd is disabled, but this volume holds an etcd data dir with the cluster's data".into()
            }
            Refusal::TwoSources(store) => {
                format!("a deployed etcd is to be moved from, and {} lies on this volume too", store.display())
            }
            Refusal::MoveUnfinished(source) => {
                format!(
                    "a move from {source} was begun on this volume and not completed, and is not asked for any more"
                )
            }
            Refusal::OtherDataDirBesideFence(source) => format!(
                "the store of {source} is being moved to this volume, and the etcd data dir here is not the one that the \
                 move has written"
            ),
            Refusal::MovedButNoDataDir(source) => {
                format!("the store of {source} was moved to this volume earlier, but the etcd data dir is gone")
            }
            Refusal::OtherStore { found, uses } => format!(
                "{} lies on this volume, and this distro's API server would begin an empty store at {}",
                found.display(),
                uses.display()
            ),
            Refusal::WrittenBackButGone => {
                "the store was written back from etcd into SQLite earlier, and its state.db is gone".into()
            }
            Refusal::NothingToWriteBack => {
                "the store is to be written back into SQLite, and this volume has neither etcd's data dir nor a state.db".into()
            }
            Refusal::SeveralStores(files) => format!("several SQLite stores lie on this volume: {}", paths(files)),
            Refusal::OrphanWal(wal) => {
                format!("{} has content, but its database file is gone: part of a store is missing", wal.display())
            }
            Refusal::DistroStore(dir) => {
                format!("{} holds the objects of an etcd that the distro ran by itself", dir.display())
            }
            Refusal::MigratedButNoDataDir(file) => {
                format!("{} was migrated earlier, but the etcd data dir it was migrated to is gone", file.display())
            }
            Refusal::SourceVanished(file) => {
                format!("a migration of {} was begun and not committed, and the file is gone", file.display())
            }
            Refusal::FormedElsewhere(cluster) => {
                format!("cluster {cluster} has been formed before, but this pod's volume is empty")
            }
            Refusal::NotTheSeed { ordinal, stores, seed, of_seed } => {
                let of_seed = of_seed.as_ref().map(|store| format!(", and it has {}", store.display()));
                format!(
                    "this pod, {ordinal}, has a SQLite store that has not been moved, {}; only pod {seed} moves its own into \
                     a cluster{}",
                    paths(stores),
                    of_seed.unwrap_or_default()
                )
            }
            Refusal::BackNotTheSeed { ordinal, seed } => {
                format!("only pod {seed} writes its store back to SQLite; this is pod {ordinal}")
            }
            Refusal::StoreElsewhere { ordinal, store, mine } => {
                let mine = if mine.is_empty() { String::new() } else { format!("; this pod has {}", paths(mine)) };
                format!("pod {ordinal} has a SQLite store that has not been moved: {}{mine}", store.display())
            }
            Refusal::TwoClusters { mine, other } => {
                format!("two unrelated clusters: {mine} and {other}")
            }
            Refusal::ResetOvertaken { member, cluster, others } => {
                let others: Vec<_> = others.iter().map(ToString::to_string).collect();
                let others = if others.is_empty() { vec!["that are not known now".to_owned()] } else { others };
                format!(
                    "a reset was to make member {member} of cluster {cluster} the only one, and members {}, which it drops, have \
                     a quorum or are served from",
                    others.join(", ")
                )
            }
            Refusal::ResetVanished => {
                "a reset was begun on this volume and not finished, and its data dir is gone".into()
            }
            Refusal::NoSharedCa => "more than one replica needs one shared CA, and this pod has one of its own".into(),
            Refusal::K0sMakesCas(dir) => format!(
                "more than one replica needs shared CAs, and k0s would make its own in {}: no other pod would accept this \
                 one's certificates and service account tokens",
                dir.display()
            ),
            Refusal::K0sOtherCas { dir, ordinal } => format!(
                "more than one replica needs shared CAs, and those of k0s in {}, or its key pair for tokens, are not the same as \
                 pod {ordinal}'s: neither would accept the other's certificates and service account tokens",
                dir.display()
            ),
            Refusal::SqliteReplicas(n) => {
                format!("{n} replicas are asked for, but embedded etcd is disabled and SQLite has one writer")
            }
            Refusal::DamagedRestore(why) => format!("the record of a staged restore cannot be read: {why}"),
            Refusal::RestoreWhileDisabled => {
                "a snapshot is staged on this volume to be restored, but embedded etcd is disabled".into()
            }
            Refusal::RestoreNotTheSeed { ordinal, seed } => {
                format!("a snapshot is restored on the volume of pod {seed}, and is staged on that of pod {ordinal}")
            }
            Refusal::RestoreBesideImport(store) => format!(
                "a snapshot is staged on this volume to be restored, and an import of {} was begun here and not committed",
                store.display()
            ),
            Refusal::RestoreBesideMove => {
                "a snapshot is staged on this volume to be restored, and the store of a deployed etcd is to be moved here too".into()
            }
            Refusal::RestoreVanished => {
                "a snapshot is staged on this volume to be restored, and the data dir that was made of it is gone or damaged".into()
            }
            Refusal::RestoreOutrun => {
                "the store here has come to the revision from which the staged snapshot was to go on".into()
            }
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Refusal::DamagedDataDir(_) => "nothing was changed: restore the volume, or move the data dir away and \
                 restore a snapshot"
                .into(),
            Refusal::NewerDataDir(_) => "nothing was changed: run that version of etcd or a newer one again; the way back \
                 is `etcdctl downgrade enable` while all members run it, one minor version at a time; a pod that is not \
                 ready is not replaced in order by itself: delete it then"
                .into(),
            Refusal::OlderDataDir(_) => "nothing was changed: run the minor version in between on every member until each \
                 has taken a raft snapshot (with snapshotCount: 100 in the values, a hundred writes), then this one; a pod \
                 that is not ready is not replaced in order by itself: delete it then"
                .into(),
            Refusal::UnpromotedDataDir(_) => "nothing was changed: run etcd 3.5 (3.5.26 or newer) on every member until all \
                 of them are ready, then this one; a pod that is not ready is not replaced in order by itself: delete it then"
                .into(),
            Refusal::DamagedJournal(_) => "nothing was changed: if etcd's data dir is the one in use, move that file \
                 away; if state.db is, move both the file and the data dir away; if a deployed etcd is, lift the fence around it \
                 (`etcdctl alarm disarm`), then move the file away with migrateFromEtcd still true: without, the next start \
                 forms an empty cluster"
                .into(),
            Refusal::EtcdDirWhileDisabled => "set embeddedEtcd.enabled (since 0.20: \
                 controlPlane.backingStore.etcd.embedded.enabled) to true, or have the store written back into SQLite with \
                 migrateBack: true beside it; to go on with SQLite and without what was written to etcd, move the data dir away and, if there is one, rename state.db.migrated back to \
                 state.db (with its -wal and -shm)"
                .into(),
            Refusal::TwoSources(_) => {
                "move away the store that is not this cluster's, or unset migrateFromEtcd: the deployed etcd was not touched"
                    .into()
            }
            Refusal::MoveUnfinished(_) => "set migrateFromEtcd (since 0.20: migrateFromDeployedEtcd) to true again, with \
                 embedded etcd enabled; to \
                 begin with an empty cluster instead, move migration.fence away"
                .into(),
            Refusal::OtherDataDirBesideFence(source) => format!(
                "nothing was changed, and {source} takes no writes: to go on with it, move etcd's data dir away: the next \
                 start lifts the fence, and moves it if that is still asked for; to go on with the data dir instead, and \
                 without what {source} has, lift the fence (`etcdctl alarm disarm` there) and move migration.fence away"
            ),
            Refusal::MovedButNoDataDir(_) => "restore the data dir, or a snapshot of it; or, to move again and lose what \
                 was written since, lift the fence around that etcd (`etcdctl alarm disarm`) and move migration.fence and \
                 migration.journal away"
                .into(),
            Refusal::OtherStore { .. } => "if it is this cluster's store, move it there (with its -wal and -shm); otherwise move it away"
                .into(),
            Refusal::WrittenBackButGone => "restore the state.db; or, to lose what was written since, have it written anew: \
                 the data dir that it was written from is beside it (etcd.aside-TIME): rename that to etcd, move \
                 migration-back.journal away, and set migrateBack to true again; to begin with an empty cluster, \
                 move only the journal away"
                .into(),
            Refusal::NothingToWriteBack => "restore the volume; or, to begin with an empty cluster, unset \
                 migrateBack"
                .into(),
            Refusal::SeveralStores(_) => {
                "move away the ones that are not this cluster's store, so that one state.db is left".into()
            }
            Refusal::OrphanWal(_) => "put the state.db that belongs to it back beside it, or, if it is left over from \
                 another store, move it away"
                .into(),
            Refusal::DistroStore(_) => "move it away if those objects are not wanted; otherwise restore a snapshot of \
                 it into the embedded etcd"
                .into(),
            Refusal::MigratedButNoDataDir(_) => "restore the data dir; or, to migrate the old store again and lose \
                 what was written since, rename it back to state.db (with its -wal and -shm; not over one that is there) and remove the \
                 journal"
                .into(),
            Refusal::SourceVanished(_) => "put the file back (with its -wal and -shm); or, to start without it, move the \
                 migration.journal file and etcd's data dir away"
                .into(),
            Refusal::FormedElsewhere(_) => "scale up again if another pod's volume has its data; otherwise restore the volume, or a \
                 snapshot; or, if its data is gone for good, say \
                 `syncer recover --new-cluster` on this volume and delete the ConfigMap <name>-etcd"
                .into(),
            Refusal::NotTheSeed { .. } => {
                "only the seed's store is moved: move this state.db away if it is not the one to keep, otherwise to the \
                 seed's volume"
                    .into()
            }
            Refusal::BackNotTheSeed { .. } => "scale to one replica while embedded etcd is enabled, then ask for the way \
                 back"
                .into(),
            Refusal::StoreElsewhere { .. } => "move away the store that is not this cluster's".into(),
            Refusal::TwoClusters { .. } => "nothing was changed: delete the volumes of the one that is not to be kept, \
                 and if the marker names it, the ConfigMap <name>-etcd too"
                .into(),
            Refusal::ResetOvertaken { .. } => "nothing was changed: to keep what they serve, delete this volume, or move \
                 its reset.journal and etcd away, and this pod joins them; to keep this one and give up what they took, give \
                 `syncer recover --cluster-id ID --accept-loss` on this volume, with the others' volumes deleted or their data dirs \
                 set aside"
                .into(),
            Refusal::ResetVanished => "put it back: a copy of it as it was stands beside it (etcd.aside-TIME); to go on \
                 without it, move reset.journal away"
                .into(),
            Refusal::NoSharedCa => {
                "mount one PKI into every pod, or let the pods use the Secret <name>-certs of the host cluster".into()
            }
            Refusal::K0sOtherCas { .. } => "nothing was changed: move that folder away, then copy ca.crt, ca.key, \
                 front-proxy-ca.crt, front-proxy-ca.key, sa.key and sa.pub from it of the pod that serves, or mount the same ones \
                 there in every pod"
                .into(),
            Refusal::K0sMakesCas(_) => "copy ca.crt, ca.key, front-proxy-ca.crt, front-proxy-ca.key, sa.key and sa.pub from \
                 that folder of a pod that runs into this pod's, or mount them there in every pod; or leave the certificates \
                 on the volume (no --pki-dir) and let the pods use the Secret <name>-certs of the host cluster"
                .into(),
            Refusal::SqliteReplicas(_) => "set the replicas to 1, or enable embedded etcd".into(),
            Refusal::DamagedRestore(_) => "nothing was changed: to go on with the etcd data dir, if it is there, move that \
                 file away; then restore the snapshot again if it is still wanted"
                .into(),
            Refusal::RestoreWhileDisabled => "set embeddedEtcd.enabled (since 0.20: \
                 controlPlane.backingStore.etcd.embedded.enabled) to true; or call the restore off: \
                 `syncer snapshot restore --cancel`"
                .into(),
            Refusal::RestoreNotTheSeed { .. } => {
                "call it off here (`syncer snapshot restore --cancel`), and restore it on that pod; the others follow by \
                 themselves"
                    .into()
            }
            Refusal::RestoreBesideImport(_) => "let the pod finish the import first, the restore called off if it is staged \
                 (`syncer snapshot restore --cancel`); or give the import up: move migration.journal away"
                .into(),
            Refusal::RestoreBesideMove => "call the restore off (`syncer snapshot restore --cancel`) to move the deployed etcd's \
                 store; or unset migrateFromEtcd (since 0.20: migrateFromDeployedEtcd) to serve the snapshot: the deployed etcd \
                 was not touched"
                .into(),
            Refusal::RestoreVanished => "call it off (`syncer snapshot restore --cancel`) and restore the snapshot again; if \
                 it was taking its place already, the former data dir is beside it (etcd.aside-TIME): rename that back to \
                 etcd and move restore.journal away first"
                .into(),
            Refusal::RestoreOutrun => "call it off (`syncer snapshot restore --cancel`) and restore the snapshot again with \
                 a greater --bump-revision"
                .into(),
        }
    }

    /// The error that ends the program.
    pub fn error(&self) -> anyhow::Error {
        refuse(self.exit(), self.what(), self.remedy())
    }
}

fn paths(files: &[PathBuf]) -> String {
    let names: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
    names.join(", ")
}
