//! What is explored: who is there at first, what may happen, and how it is to end.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::membership::ready::PodManagement;
use crate::rules::Rules;

/// What may happen, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub kills: u8,
    pub losses: u8,
    pub scales: u8,
    pub writes: u8,
    pub blind: u8,
    pub late: u8,
    pub host: u8,
    pub marker: u8,
    /// Wanted pods that are told to stop, as a rolling update or an eviction does.
    pub stops: u8,
    /// Pods that are cut off from all others for a while; the host API and DNS still answer them.
    pub cuts: u8,
    /// Times that the marker alone cannot be read.
    pub hides: u8,
    /// Snapshots of the first write that are staged on the seed's volume.
    pub restores: u8,
    /// Times that DNS goes on saying what it says now, for a while.
    pub stales: u8,
    /// Data dirs of the last pod that are damaged while nothing runs on them.
    pub damages: u8,
    /// Resets that are begun by hand (`syncer recover`) and killed.
    pub recovers: u8,
    /// Times that the host API knows no such StatefulSet, for a while.
    pub orphans: u8,
    /// Times that embedded etcd is switched off, for a while.
    pub offs: u8,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub name: &'static str,
    pub pods: usize,
    pub host: bool,
    pub policy: PodManagement,
    pub rules: Rules,
    pub budget: Budget,
    /// Replicas at first.
    pub desired: u8,
    pub start: Start,
    /// The replica counts that may be scaled to.
    pub scale_to: &'static [u8],
    /// Expected: without a host API a lone volume was lost, formed anew, and then an older one came back.
    pub hole: bool,
    /// Nobody's grace is too short, and everything is to end well without anybody's help.
    pub graceful: bool,
    /// A pod comes back later than any grace lasts, and is rolled by being scaled.
    pub slow: bool,
    /// The pod whose node is gone in the end, with its volume: it never comes back.
    pub gone: Option<usize>,
    /// So many replicas are wanted in the end.
    pub at_last: Option<u8>,
    /// So few volumes are lost that every acknowledged write is still in some data dir.
    pub borne: bool,
    /// The host API is away while everything is to end well.
    pub away_at_last: bool,
    /// The IDs of members last a second: another of the same pod in the same second is the same.
    pub seconds: bool,
    /// At first each pod has a CA of its own.
    pub own_cas: bool,
    /// Where embedded etcd is switched off, the store is to be written back into SQLite.
    pub back: bool,
    /// Once all is well and at rest, the seed's volume is lost.
    pub lost_at_last: bool,
    /// What a rule says of itself is not asked for, neither the steps that it forbids, nor who leads, nor that there is a
    /// marker: only what is lost without it.
    pub loss_only: bool,
    /// How many states of the search that is on were let heal.
    pub healed: Arc<AtomicUsize>,
}

/// What there is at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing.
    Nothing,
    /// A cluster of all replicas.
    Running,
    /// The same, with zero replicas: each voter has noted its last entry.
    Paused,
    /// A cluster of all replicas but the last, and in the last one's volume another cluster's only member.
    Stray,
    /// A cluster of all replicas, and above them a pod that is not wanted, with an empty volume.
    Surplus,
    /// Scaled down from all pods by killing the others, whose volumes are as they were.
    Abandoned,
    /// The seed a learner and the last pod the only voter; scaled to one, and that one killed.
    Learner,
    /// A cluster of all replicas, of which the second pod does not know yet that the last one has been added.
    Behind,
    /// A cluster of all replicas, of which the last pod is gone, and its volume lost.
    Lost,
    /// Pods of another program, which are to be rolled out of the way.
    OtherProgram,
    /// A cluster of all replicas, a snapshot staged on the seed's volume, and the seed's pod about to start on it.
    Staged,
    /// Nothing but a `state.db` with the first write on the seed's volume.
    Store,
}
