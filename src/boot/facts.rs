//! What a boot decision rests on. Plain values: `observe` fills them, tests and the model make them up.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::marker::{Marker, MarkerSeen};
use crate::ids::{ClusterId, MemberId, Ordinal, RaftIndex, Term};

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

impl<T> Default for Known<T> {
    fn default() -> Self {
        Known::Unknown("not asked".to_owned())
    }
}

impl<T> Known<T> {
    /// The value, if it was seen.
    pub fn present(&self) -> Option<&T> {
        match self {
            Known::Present(value) => Some(value),
            Known::Absent | Known::Unknown(_) => None,
        }
    }

    /// Whether an authority says that there is none.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Known::Absent)
    }

    /// Why it is not known.
    pub fn unknown(&self) -> Option<&str> {
        match self {
            Known::Unknown(why) => Some(why),
            Known::Present(_) | Known::Absent => None,
        }
    }
}

/// Everything that [`super::decide`] looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Facts {
    /// This pod's ordinal.
    pub ordinal: Ordinal,
    /// The lowest ordinal of the StatefulSet, normally 0: the only pod that may form a cluster.
    pub seed: Ordinal,
    /// Desired replicas and who says so.
    pub desired: Desired,
    /// `embeddedEtcd.enabled`.
    pub enabled: bool,
    /// `embeddedEtcd.migrateBack`.
    #[serde(default)]
    pub migrate_back: bool,
    /// A deployed etcd is to be moved from.
    #[serde(default)]
    pub migrate_from: bool,
    /// The fence that this volume has put around a deployed etcd.
    #[serde(default, skip_serializing_if = "FenceFact::is_absent")]
    pub fence: FenceFact,
    /// The snapshot that is staged on this volume, to be restored.
    #[serde(default, skip_serializing_if = "RestoreFact::is_absent")]
    pub restore: RestoreFact,
    /// The data dir on this pod's volume.
    pub data_dir: DataDirFact,
    /// Whose the data dir is if it is there and not [valid](DataDirFact::Valid), where its WAL still tells.
    #[serde(default)]
    pub owner: Option<(MemberId, ClusterId)>,
    /// The end of the data dir's WAL; absent without a data dir.
    #[serde(default)]
    pub log: Known<LogFact>,
    /// The members that the last reset of this data dir has dropped, by its journal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<MemberId>,
    /// What earlier steps have noted beside the data dir.
    #[serde(default)]
    pub notes: Notes,
    /// The migration journal on this pod's volume.
    pub journal: JournalFact,
    /// Where the API server keeps its SQLite store, if it is run on one of this distro's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqlite: Option<PathBuf>,
    /// Whether the store was written back into a `state.db` once, as far as can be told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub written_back: bool,
    /// SQLite stores found on this pod's volume, and what was left of earlier ones.
    #[serde(default)]
    pub stores: StoresFact,
    /// The data dir of an etcd that k3s or k0s ran by itself on this volume. Its objects are in no store of ours.
    #[serde(default)]
    pub distro_store: Option<PathBuf>,
    /// Whether the members of this cluster share one CA: a mounted directory or the host API's Secret.
    #[serde(default)]
    pub shared_ca: bool,
    /// Where k0s would make CAs and a key pair for tokens of its own, as it would not find those that all pods share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k0s_makes_cas: Option<PathBuf>,
    /// Where k0s has CAs or a key pair for tokens that are not those of this pod's, which serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k0s_other_cas: Option<(PathBuf, Ordinal)>,
    /// Whether a host API is configured at all.
    #[serde(default)]
    pub host_configured: bool,
    /// The marker outside the volume, when a host API is configured.
    #[serde(default)]
    pub marker: Known<MarkerSeen>,
    /// The other ordinals that have a PVC, from the host API. Absent is the same as an empty list.
    #[serde(default)]
    pub claims: Known<Vec<Ordinal>>,
    /// The other ordinals: at least those below desired, and each higher one that anything is known of.
    #[serde(default)]
    pub peers: Vec<PeerFact>,
    /// Whether the headless service has said which pods there are, in an answer that names this pod and is thus of its time;
    /// absent: it names none, or there is none to ask. Until it has, a pod above desired may be there that `peers` does not
    /// have.
    #[serde(default = "nobody_to_ask", skip_serializing_if = "Known::is_absent")]
    pub named: Known<()>,
    /// A *linearizable* member list of a cluster that a peer serves. Never a peer's own view ([`PeerFact::members`]).
    #[serde(default)]
    pub members: Known<MemberList>,
}

const fn nobody_to_ask() -> Known<()> {
    Known::Absent
}

impl Facts {
    /// What a pod whose etcd runs on `data_dir` knows of itself: its volume is not looked at while it is written to, and
    /// of the others nothing is known.
    pub fn serving(ordinal: Ordinal, data_dir: DataDirFact) -> Facts {
        Facts {
            ordinal,
            seed: Ordinal(0),
            desired: Desired::Unknown("not asked".to_owned()),
            enabled: true,
            migrate_back: false,
            migrate_from: false,
            fence: FenceFact::Absent,
            restore: RestoreFact::Absent,
            data_dir,
            owner: None,
            log: Known::default(),
            dropped: Vec::new(),
            notes: Notes::default(),
            journal: JournalFact::Absent,
            sqlite: None,
            written_back: false,
            stores: StoresFact::default(),
            distro_store: None,
            shared_ca: false,
            k0s_makes_cas: None,
            k0s_other_cas: None,
            host_configured: false,
            marker: Known::default(),
            claims: Known::default(),
            peers: Vec::new(),
            named: Known::Absent,
            members: Known::default(),
        }
    }

    /// The fact about an ordinal, if anything is known of it.
    pub fn peer(&self, ordinal: Ordinal) -> Option<&PeerFact> {
        self.peers.iter().find(|peer| peer.ordinal == ordinal)
    }

    /// The marker, if it could be read and is there.
    pub fn marker(&self) -> Option<&Marker> {
        self.marker.present().map(|seen| &seen.marker)
    }
}

/// How many replicas there should be, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Desired {
    /// `spec.replicas` of the StatefulSet, read from the host API for this very decision.
    Host(u32),
    /// The values file, because no host API is configured at all.
    Values(u32),
    /// The host API is configured and did not answer, or knows no such StatefulSet.
    Unknown(String),
}

impl Desired {
    /// The number, if it is known.
    pub const fn known(&self) -> Option<u32> {
        match self {
            Desired::Host(n) | Desired::Values(n) => Some(*n),
            Desired::Unknown(_) => None,
        }
    }

    /// Whether `ordinal` is to exist, if that is known.
    pub fn wants(&self, seed: Ordinal, ordinal: Ordinal) -> Option<bool> {
        self.known().map(|n| ordinal >= seed && ordinal.0 - seed.0 < n)
    }
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
    /// Written by a newer etcd than the one at hand, with both versions.
    Newer(String),
    /// Written by an etcd more than one minor version older than the one at hand, with both versions.
    Older(String),
    /// Written by an etcd that has not stored promotions, so that the one at hand would count too many learners, with their
    /// number.
    Unpromoted(String),
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

/// The record of a fence around a deployed etcd: that it takes no writes because of us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FenceFact {
    /// There is none: nothing was ever moved from a running etcd.
    #[default]
    Absent,
    /// It may be up. With the data dir in place that its move has written, the move is committed.
    Raised {
        /// The etcd's URL.
        source: String,
        /// Whether what stands in the data dir's place is what the move has written, by the move's own journal.
        moved: bool,
    },
    /// It was lifted, and nothing was moved.
    Lifted {
        /// The etcd's URL.
        source: String,
    },
    /// The move is committed, and the source is to take no more writes.
    Kept {
        /// The etcd's URL.
        source: String,
    },
    /// There is a record that cannot be read.
    Damaged(String),
}

impl FenceFact {
    /// Whether there is no record.
    pub fn is_absent(&self) -> bool {
        *self == FenceFact::Absent
    }
}

/// A snapshot that `syncer snapshot restore` has made a data dir of, which is to take the place of the present one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestoreFact {
    /// None. What an attempt leaves that was killed is none either.
    #[default]
    Absent,
    /// There is one, and its record is durable.
    Staged(Staged),
    /// There is a record that cannot be read.
    Damaged(String),
}

/// A staged data dir.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Staged {
    /// Its only member.
    pub member: MemberId,
    /// Its cluster, which is new.
    pub cluster: ClusterId,
    /// The cluster whose data dir was in the place when it was staged.
    #[serde(default)]
    pub replaces: Option<ClusterId>,
    /// It is taking its place, which is not called off any more; these clusters are superseded by it.
    #[serde(default)]
    pub begun: Option<Vec<ClusterId>>,
    /// It is there, and etcd goes on from it.
    pub whole: bool,
    /// The present store has come to its revision meanwhile, so that clients have seen revisions that it would give anew.
    #[serde(default)]
    pub outrun: bool,
}

impl RestoreFact {
    /// Whether nothing is to be restored.
    pub fn is_absent(&self) -> bool {
        *self == RestoreFact::Absent
    }

    /// The cluster that is staged.
    pub fn cluster(&self) -> Option<ClusterId> {
        match self {
            RestoreFact::Staged(staged) => Some(staged.cluster),
            RestoreFact::Absent | RestoreFact::Damaged(_) => None,
        }
    }

    /// Whether the present data dir is on its way out: what is on the volume is nobody's to rely on.
    pub fn is_begun(&self) -> bool {
        matches!(self, RestoreFact::Staged(Staged { begun: Some(_), .. }))
    }
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

/// A place in a raft log. Later is greater: raft compares the term first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogPosition {
    /// The entry's term.
    pub term: Term,
    /// The entry's index.
    pub index: RaftIndex,
}

/// The end of a data dir's WAL, read while no etcd runs on it: the last entry, and *every membership from the one in
/// effect at the last entry known as committed to the one that the last entry would bring*.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogFact {
    /// The last entry.
    pub last: LogPosition,
    /// What this member is in those memberships.
    pub role: Role,
    /// The greatest number of voters in any of those memberships.
    pub voters: u32,
    /// Every other member of any of those memberships. Voter if it is one in any of them.
    pub others: Vec<Member>,
    /// The other voters of the first of them, which is in effect: they agree on what follows, also on the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub voters_now: Vec<MemberId>,
}

/// What a member is in every membership at the end of its WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// A voter in every one of them.
    Voter,
    /// In every one of them, and a learner in at least one.
    Learner,
    /// Missing from at least one.
    Removed,
}

/// Notes beside the data dir, each durable before the step that it announces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Notes {
    /// This volume was about to form a cluster, and the marker did not durably say formed yet.
    pub forming: bool,
    /// A copy is kept and a reset was begun: nothing but the reset may open the data dir.
    pub resetting: bool,
    /// This member was about to note its last log in the marker.
    pub stopped: bool,
    /// A data dir of this cluster was set aside here, or it was asked to add this pod; no WAL has been written since.
    pub set_aside: Option<ClusterId>,
    /// The etcd of this member ended because of damage to its data dir.
    pub damaged: Option<MemberId>,
    /// Cluster IDs that a restore has superseded; kept by the seed, believed from the seed.
    pub superseded: Vec<ClusterId>,
    /// Those of them of which it was seen, after the restore, that no pod serves them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<ClusterId>,
    /// The members that a reset of this data dir has dropped, once the marker was seen to say so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<MemberId>,
    /// Others served the cluster of this member, which a reset was to make, or had made, the only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overtaken: Option<MemberId>,
    /// This cluster's store was written back into SQLite here, and its data dir set aside unless it is still there; the marker
    /// may still name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<ClusterId>,
    /// The largest request that the store's values need, in bytes, as another pod said when this one joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
}

/// A member list with the cluster it is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberList {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its members.
    pub members: Vec<Member>,
}

impl MemberList {
    /// Whether this member is listed.
    pub fn has(&self, id: MemberId) -> bool {
        self.members.iter().any(|member| member.id == id)
    }

    /// The member with the peer URL of this ordinal.
    pub fn of(&self, ordinal: Ordinal) -> Option<&Member> {
        self.members.iter().find(|member| member.ordinal == Some(ordinal))
    }
}

/// A member as etcd lists it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its ID.
    pub id: MemberId,
    /// The ordinal whose peer URL it has; `None`: a URL that no pod of this StatefulSet has.
    pub ordinal: Option<Ordinal>,
    /// Whether it has no vote.
    pub learner: bool,
}

/// What is known of another ordinal. What was not asked is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerFact {
    /// Which one.
    pub ordinal: Ordinal,
    /// Its DNS record; absent only by an authoritative answer within its TTL.
    #[serde(default)]
    pub dns: Known<()>,
    /// Its pod, from the host API.
    #[serde(default)]
    pub pod: Known<PodFact>,
    /// Its `/members` on the peer port: its own, possibly lagging view. Proves nothing but that it is of that cluster.
    #[serde(default)]
    pub members: Known<MemberList>,
    /// Its own word on its state (`/v1/state`). Absent never occurs: who does not answer is unknown.
    #[serde(default)]
    pub state: Known<PeerState>,
    /// The cluster IDs that its volume notes as superseded; believed from the seed.
    #[serde(default)]
    pub superseded: Vec<ClusterId>,
    /// Those that it has seen to be served by no pod ([`Notes::settled`]); believed from anybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<ClusterId>,
    /// The members of its cluster that a reset of its data dir has dropped, by its word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<MemberId>,
    /// The cluster that its empty volume is to join ([`Notes::set_aside`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joins: Option<ClusterId>,
    /// Whether it was reached, and its certificate is of another CA than this pod's, for a while.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_ca: bool,
}

impl PeerFact {
    /// An ordinal of which nothing is known.
    pub fn new(ordinal: Ordinal) -> PeerFact {
        PeerFact {
            ordinal,
            dns: Known::default(),
            pod: Known::default(),
            members: Known::default(),
            state: Known::default(),
            superseded: Vec::new(),
            settled: Vec::new(),
            dropped: Vec::new(),
            joins: None,
            other_ca: false,
        }
    }

    /// The cluster that it has data of or serves.
    pub fn cluster(&self) -> Option<ClusterId> {
        match (&self.state, &self.members) {
            (Known::Present(PeerState::Data { cluster, .. } | PeerState::Serving { cluster, .. }), _) => Some(*cluster),
            (_, Known::Present(list)) => Some(list.cluster),
            _ => None,
        }
    }

    /// The cluster that it says it serves.
    pub fn serves(&self) -> Option<ClusterId> {
        match &self.state {
            Known::Present(PeerState::Serving { cluster, .. }) => Some(*cluster),
            _ => None,
        }
    }
}

/// A pod as the host API knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodFact {
    /// Told to stop.
    pub terminating: bool,
    /// Whether it runs the StatefulSet's newest revision, if that is known.
    pub current_revision: Option<bool>,
}

/// A peer's own word on itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerState {
    /// Its volume holds no etcd data and no store, its etcd has not been started, and it is not about to form a cluster:
    /// it stops saying so *before* it reads the facts of a decision that may be to form.
    Empty,
    /// Its volume holds no etcd data, but a SQLite store that has not been moved.
    Store(PathBuf),
    /// Its volume holds a data dir; its etcd serves no linearizable reads, or does not run.
    Data {
        /// From the first WAL record.
        member: MemberId,
        /// From the first WAL record.
        cluster: ClusterId,
        /// The last entry of its WAL, if its etcd does not run.
        last: Option<LogPosition>,
    },
    /// Its etcd answers linearizable reads.
    Serving {
        /// Its member.
        member: MemberId,
        /// The cluster that it serves.
        cluster: ClusterId,
    },
}
