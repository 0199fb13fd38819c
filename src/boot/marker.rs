//! The marker: the record outside the pods' volumes that a cluster has been formed, and its transitions.
//!
//! It lives in ConfigMap `<name>-etcd`. Every write here is a compare-and-swap: [`MarkerWrite::expect`] is the version
//! that the decision saw, and a write that finds another version must fail. A write whose outcome is not known is not
//! retried: the marker is read again and decided anew. Every transition changes the object (it counts `writes`), so that
//! a delayed older write can never land after a newer one.

use serde::{Deserialize, Serialize};

use super::facts::{Facts, Known, LogPosition, MemberList};
use crate::ids::{ClusterId, MemberId};
use crate::rules::{Rule, Rules};

/// The record that a cluster is being or has been formed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Marker {
    /// How far forming has come.
    pub phase: MarkerPhase,
    /// Counts the writes.
    #[serde(default)]
    pub writes: u64,
    /// Clusters that a restore has replaced, or whose store was written back into SQLite.
    #[serde(default)]
    pub superseded: Vec<ClusterId>,
    /// The member that a reset has made, or is about to make, the only one.
    #[serde(default)]
    pub survivor: Option<MemberId>,
    /// Every member that a reset has dropped: its data dir never starts again.
    #[serde(default)]
    pub dropped: Vec<MemberId>,
    /// Voters that stopped at zero replicas, with their last log entry. Each takes its own back before it starts etcd.
    #[serde(default)]
    pub stopped: Vec<Stopped>,
}

/// How far forming has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MarkerPhase {
    /// The seed has begun; nobody's writes have been taken. With superseded clusters: the last of them was released.
    Forming,
    /// This cluster exists; its data is somewhere, even if no volume shows it.
    Formed(ClusterId),
}

/// A voter whose etcd was stopped at zero replicas and is not started without taking this back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stopped {
    /// The member.
    pub member: MemberId,
    /// The last entry of its WAL.
    pub last: LogPosition,
}

/// The marker with the version (`resourceVersion`) that it was read at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MarkerSeen {
    /// Opaque; compared for equality only.
    pub version: String,
    /// The content.
    pub marker: Marker,
}

/// A compare-and-swap of the marker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MarkerWrite {
    /// Replace only this version; `None`: create, and fail if there is one.
    pub expect: Option<String>,
    /// The new content.
    pub marker: Marker,
}

impl Marker {
    /// A marker of this phase and nothing else.
    pub const fn new(phase: MarkerPhase) -> Marker {
        Marker { phase, writes: 1, superseded: Vec::new(), survivor: None, dropped: Vec::new(), stopped: Vec::new() }
    }

    /// The cluster that has been formed.
    pub const fn formed(&self) -> Option<ClusterId> {
        match self.phase {
            MarkerPhase::Formed(cluster) => Some(cluster),
            MarkerPhase::Forming => None,
        }
    }
}

impl MarkerSeen {
    fn write(&self, change: impl FnOnce(&mut Marker)) -> MarkerWrite {
        let mut marker = self.marker.clone();
        marker.writes += 1;
        change(&mut marker);
        MarkerWrite { expect: Some(self.version.clone()), marker }
    }

    /// The survivor `member` is about to drop `dropped`: before anything of its reset is done. What stopped voters
    /// have noted stays, as the reset rests on it; of those that an earlier reset has dropped it is struck.
    pub fn naming(&self, member: MemberId, dropped: &[MemberId]) -> MarkerWrite {
        self.write(|marker| {
            marker.survivor = Some(member);
            marker.stopped.retain(|stopped| !self.marker.dropped.contains(&stopped.member));
            marker.dropped.extend(dropped.iter().filter(|id| !self.marker.dropped.contains(id)));
        })
    }

    /// Takes a naming back that was not acted upon: `dropped` are members after all.
    pub fn unnaming(&self, dropped: &[MemberId]) -> MarkerWrite {
        self.write(|marker| {
            marker.survivor = None;
            marker.dropped.retain(|id| !dropped.contains(id));
        })
    }

    /// `member` has stopped its etcd at zero replicas with this last entry; its dir's note of that is durable.
    pub fn stopping(&self, member: MemberId, last: LogPosition) -> MarkerWrite {
        self.write(|marker| {
            marker.stopped.retain(|stopped| stopped.member != member);
            marker.stopped.push(Stopped { member, last });
        })
    }

    /// `member` is about to start its etcd: what it has noted no longer holds. Written even if nothing is noted, as a
    /// delayed write of it may be on its way and must fail.
    pub fn withdrawing(&self, member: MemberId) -> MarkerWrite {
        self.write(|marker| marker.stopped.retain(|stopped| stopped.member != member))
    }

    /// The store of `cluster` is SQLite's again. Its volumes elsewhere stay superseded.
    pub fn releasing(&self, cluster: ClusterId) -> MarkerWrite {
        self.write(|marker| {
            marker.phase = MarkerPhase::Forming;
            marker.superseded.retain(|old| *old != cluster);
            marker.superseded.push(cluster);
            marker.survivor = None;
            marker.dropped.clear();
            marker.stopped.clear();
        })
    }

    /// A restore has put `cluster` in the place of `replaced` and of the formed one: after the restored dir is durable,
    /// before its etcd listens.
    pub fn superseding(&self, replaced: &[ClusterId], cluster: ClusterId) -> MarkerWrite {
        self.write(|marker| {
            let replaced = replaced.iter().copied().chain(self.marker.formed()).filter(|old| *old != cluster);
            for old in replaced {
                if !marker.superseded.contains(&old) {
                    marker.superseded.push(old);
                }
            }
            marker.phase = MarkerPhase::Formed(cluster);
            marker.survivor = None;
            marker.dropped.clear();
            marker.stopped.clear();
        })
    }
}

/// What is to be done about the marker of a cluster whose store was written back into SQLite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// It names that cluster as the formed one: write this.
    Write(MarkerWrite),
    /// It does not.
    Done,
    /// It cannot be read, for this reason: ask again.
    Ask(String),
}

/// Whether the marker is to be written, `left` being the cluster whose data dir is gone from here with its store in SQLite.
pub fn release(seen: &Known<MarkerSeen>, left: ClusterId) -> Release {
    match seen {
        Known::Present(seen) if seen.marker.formed() == Some(left) => Release::Write(seen.releasing(left)),
        Known::Present(_) | Known::Absent => Release::Done,
        Known::Unknown(why) => Release::Ask(why.clone()),
    }
}

/// The cluster that was released last, if no other has been formed since: its store is in the seed's `state.db`, and nobody's
/// data dir has anything that is not superseded.
pub fn released(facts: &Facts) -> Option<ClusterId> {
    let marker = facts.marker().filter(|marker| marker.phase == MarkerPhase::Forming);
    marker.and_then(|marker| marker.superseded.last()).copied()
}

/// The write that begins forming, if the marker does not say so already.
pub fn forming(seen: &Known<MarkerSeen>) -> Option<MarkerWrite> {
    match seen {
        Known::Present(_) => None,
        Known::Absent | Known::Unknown(_) => {
            Some(MarkerWrite { expect: None, marker: Marker::new(MarkerPhase::Forming) })
        }
    }
}

/// The write that completes forming, or records a cluster that no marker speaks of.
pub fn formed(seen: &Known<MarkerSeen>, cluster: ClusterId) -> Option<MarkerWrite> {
    let phase = MarkerPhase::Formed(cluster);
    match seen {
        Known::Present(seen) if seen.marker.phase == MarkerPhase::Forming => Some(seen.write(|m| m.phase = phase)),
        Known::Absent => Some(MarkerWrite { expect: None, marker: Marker::new(phase) }),
        Known::Present(_) | Known::Unknown(_) => None,
    }
}

/// The write by which the restored `cluster` is the formed one, in the place of `replaced`; `None`: it says so already, or
/// is not known.
pub fn restored(seen: &Known<MarkerSeen>, cluster: ClusterId, replaced: &[ClusterId]) -> Option<MarkerWrite> {
    match seen {
        Known::Present(seen) if seen.marker.formed() == Some(cluster) => None,
        Known::Present(seen) => Some(seen.superseding(replaced, cluster)),
        Known::Absent => {
            let marker = Marker { superseded: replaced.to_vec(), ..Marker::new(MarkerPhase::Formed(cluster)) };
            Some(MarkerWrite { expect: None, marker })
        }
        Known::Unknown(_) => None,
    }
}

/// The write by which `member`, the only one of `cluster`, has those dropped; `None`: the marker is of another cluster, or not
/// known.
pub fn dropping(
    seen: &Known<MarkerSeen>,
    member: MemberId,
    cluster: ClusterId,
    dropped: &[MemberId],
) -> Option<MarkerWrite> {
    match seen {
        Known::Present(seen) if seen.marker.formed() != Some(cluster) => None,
        Known::Present(seen) => Some(seen.naming(member, dropped)),
        Known::Absent => {
            let new = Marker::new(MarkerPhase::Formed(cluster));
            Some(MarkerWrite {
                expect: None,
                marker: Marker { survivor: Some(member), dropped: dropped.to_vec(), ..new },
            })
        }
        Known::Unknown(_) => None,
    }
}

/// What the volume beside the leader keeps of what the marker said.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    /// The member whose volume it is.
    pub member: Option<MemberId>,
    /// Whom the resets that made it the only one have dropped.
    pub dropped: Vec<MemberId>,
    /// The clusters that a restore has replaced.
    pub superseded: Vec<ClusterId>,
}

/// What the leader's pod does to the marker: it writes a missing one again, with what its volume kept of it, and strikes from
/// `dropped` who is a member of a cluster that has its quorum (a naming that landed late and was never acted upon). `list` is
/// linearizable.
pub fn upkeep(seen: &Known<MarkerSeen>, list: &MemberList, kept: &Remembered, rules: Rules) -> Option<MarkerWrite> {
    match seen {
        Known::Absent if rules.on(Rule::MarkerRestored) => {
            let mut write = formed(seen, list.cluster)?;
            write.marker.dropped = kept.dropped.iter().copied().filter(|id| !list.has(*id)).collect();
            write.marker.survivor = kept.member.filter(|_| !write.marker.dropped.is_empty());
            write.marker.superseded = kept.superseded.iter().copied().filter(|old| *old != list.cluster).collect();
            Some(write)
        }
        Known::Present(now) if now.marker.formed() == Some(list.cluster) => {
            let alive: Vec<_> = now.marker.dropped.iter().copied().filter(|id| list.has(*id)).collect();
            if alive.is_empty() { None } else { Some(now.unnaming(&alive)) }
        }
        _ => None,
    }
}

/// Whether a restore has replaced this cluster: by the marker, this volume's notes, or the seed's word.
pub fn superseded(facts: &Facts, cluster: ClusterId) -> bool {
    let seed = facts.peer(facts.seed);
    facts.marker().is_some_and(|marker| marker.superseded.contains(&cluster))
        || facts.notes.superseded.contains(&cluster)
        || seed.is_some_and(|peer| peer.superseded.contains(&cluster))
}
