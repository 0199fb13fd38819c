//! What a boot decides.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::marker::MarkerWrite;
use super::refusal::Refusal;
use super::wait::Wait;
use crate::ids::{ClusterId, MemberId};

/// What this boot does. It leaves whoever carries it out no choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BootDecision {
    /// Start etcd on the data dir as it is. While it finds no quorum, decide again every few seconds with fresh facts;
    /// on anything but `Start`, stop it first, read the facts once more and decide again.
    Start {
        /// Whose data dir it is.
        member: MemberId,
        /// Which cluster it belongs to.
        cluster: ClusterId,
        /// `-wal` and `-shm` files to be moved beside their `state.db.migrated` first.
        finish: bool,
        /// Things worth a warning.
        warnings: Vec<Warning>,
    },
    /// Form a new, empty cluster of one member with a fresh random token. If other pods can exist: note `forming`
    /// first, and put a data dir in place on which nothing runs yet; then decide again, which records the formation, looks
    /// once more for another cluster, and starts it.
    Form,
    /// Move this SQLite store into a new cluster of one member, setting aside what an uncommitted import left. Then, if
    /// other pods can exist, decide again, as after `Form`.
    Import {
        /// The `state.db`.
        source: PathBuf,
    },
    /// Move the deployed etcd's store into a new cluster of one member: fence it, read it, put the data dir in place, which
    /// commits. Before that any failure lifts the fence. Then decide again.
    MigrateFrom,
    /// Lift the fence around this etcd, from which nothing was moved; then decide again.
    LiftFence {
        /// Its URL.
        source: String,
    },
    /// Do this one durable thing, then decide again. If the write's outcome is not known, decide again too.
    Record(Record),
    /// Note `setAside` with the cluster, durable; then ask the leader's pod to be added. Its answer is a member ID that was
    /// not in the list that this decision saw, with a linearizable list that has it; etcd starts with `--initial-cluster` from it, rebuilt from a fresh list
    /// before every further start while the dir is empty. The note `setAside` is removed once the WAL is there. An ID
    /// that the list of this decision already had is never started: decide again.
    Join {
        /// The cluster to join; the list in the answer must be of it.
        cluster: ClusterId,
        /// The member with this pod's peer URL, to be removed first. Named in the request: the leader removes no other.
        replace: Option<MemberId>,
    },
    /// Note `setAside`, then rename the data dir, both durable; then decide again.
    SetAside {
        /// Whose data dir it is.
        member: MemberId,
        /// Which cluster it belongs to.
        cluster: ClusterId,
    },
    /// Unless that was begun before, note every other member as dropped; then make this data dir's member the only one, by
    /// [`reset::steps`](super::reset::steps); then decide again.
    Reset {
        /// Whose data dir it is.
        member: MemberId,
        /// Which cluster it belongs to.
        cluster: ClusterId,
    },
    /// Start nothing, say why, and decide again with fresh facts every few seconds. Never exit.
    Wait(Wait),
    /// Write the data dir's store into a `state.db`, then set the data dir aside, which commits; then decide again. Before
    /// that the data dir is the truth, and a `state.db` that an earlier attempt put in place is written anew.
    MigrateBack {
        /// Whose data dir it is.
        member: MemberId,
        /// Which cluster it belongs to.
        cluster: ClusterId,
    },
    /// Set aside what stands in the data dir's place, and put the staged data dir there; then decide again.
    PutRestored {
        /// Whose data dir it is.
        member: MemberId,
        /// Its cluster, which is new.
        cluster: ClusterId,
    },
    /// Run the API server on SQLite: embedded etcd is off.
    RunOnSqlite,
    /// Do not start.
    Refuse(Refusal),
}

/// One durable step towards a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Record {
    /// Note `forming` on the volume, then write the marker if it is to be written.
    Forming(Option<MarkerWrite>),
    /// Write the marker; once it is read back, remove the note `forming`.
    Formed(MarkerWrite),
    /// Remove the note `forming`.
    FormingDone,
    /// Write the marker; only once that is known to be done, remove the note `stopped`.
    Withdrawn(MarkerWrite),
    /// Remove the note `stopped`: no marker is left to take anything back from.
    WithdrawnAlready,
    /// Write the marker; once that is known to be done, note whom it drops.
    Survivor(MarkerWrite),
    /// Write the marker, and note that nobody is dropped.
    NoSurvivor(MarkerWrite),
    /// Write the marker: the cluster that it names is SQLite's again.
    Released(MarkerWrite),
    /// The store was written back and its data dir set aside, and this was cut short: put away what told of the way into etcd.
    WentBack,
    /// Note that these are dropped: the marker says so, or there is none and nobody is there who could start.
    Dropped(Vec<MemberId>),
    /// Note that others serve the cluster of this member, which a reset was to make the only one: it never is by itself.
    Overtaken(MemberId),
    /// Remove the note `resetting`, once the reset has been seen to be complete.
    ResetDone,
    /// Note that the move from the deployed etcd is committed: its fence is never lifted from here on.
    FenceKept,
    /// Write that the staged restore is taking its place, then note these clusters as superseded.
    RestoreBegun(Vec<ClusterId>),
    /// Write the marker.
    Restored(MarkerWrite),
    /// Remove all notes but `superseded` and `settled`, which were said of the former data dir; then put the record of the restore away.
    RestoreDone,
}

/// Something the operator should know, which stops nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Warning {
    /// A `state.db` lies beside a formed cluster; it is left alone.
    StateDbIgnored(PathBuf),
    /// More replicas are asked for than this pod can see; it starts from its valid data dir all the same.
    PeersUnknown,
    /// It will find no quorum, and why it does not reset.
    NoQuorum(Wait),
}
