//! What the membership plan rests on: seen by the syncer beside the etcd leader, in one pass.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::boot::{Desired, Known, Member, MemberList, PeerState, PodFact};
use crate::ids::{ClusterId, MemberId, Ordinal};

/// Everything that [`super::plan`] looks at, read anew for each pass, the member list *last*.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// The lowest ordinal of the StatefulSet.
    pub seed: Ordinal,
    /// Desired replicas and who says so.
    pub desired: Desired,
    /// The cluster.
    pub cluster: ClusterId,
    /// The member beside this syncer, which leads.
    pub leader: MemberId,
    /// A *linearizable* member list with the leader's own view of each member.
    pub members: Vec<MemberFact>,
    /// The pods that are, were or ask to be members.
    pub pods: Vec<PodView>,
    /// The last membership change is more than a second old, and none is pending (IDs have one-second grain).
    pub settled: bool,
    /// No proposal is in flight and none was a moment ago: moving leadership stalls nobody.
    pub quiet: bool,
    /// The ordinals whose members this leader has removed to add them anew, and has not added yet.
    #[serde(default)]
    pub replacing: BTreeSet<Ordinal>,
    /// The leader is the only member and its listed peer URL is not that of this pod.
    #[serde(default)]
    pub own_url_differs: bool,
}

/// A member as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberFact {
    /// From the member list.
    #[serde(flatten)]
    pub member: Member,
    /// It answers the leader (within an election timeout).
    pub active: bool,
    /// It is within a small number of entries of the leader, with the leader's snapshot installed.
    pub caught_up: bool,
    /// A learner that has neither applied an entry nor received bytes for minutes, and is behind or gives no answer.
    #[serde(default)]
    pub stalled: bool,
}

/// What is known of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Which one.
    pub ordinal: Ordinal,
    /// From the host API.
    #[serde(default)]
    pub pod: Known<PodFact>,
    /// Its DNS record; absent only by an authoritative answer within its TTL.
    #[serde(default)]
    pub dns: Known<()>,
    /// Its own word on its state, asked for in this pass.
    #[serde(default)]
    pub state: Known<PeerState>,
    /// What it asks for over mTLS, now.
    #[serde(default)]
    pub request: Option<Request>,
}

impl PodView {
    /// An ordinal of which nothing is known.
    pub fn new(ordinal: Ordinal) -> PodView {
        PodView { ordinal, pod: Known::default(), dns: Known::default(), state: Known::default(), request: None }
    }
}

/// What a pod asks the leader's pod for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// To be added: its volume is empty and its etcd does not run.
    Join {
        /// The member with its peer URL in the list that its decision saw.
        replace: Option<MemberId>,
    },
    /// To be removed: it was told to stop and is no longer wanted.
    Leave,
    /// Nothing, but it was told to stop.
    Stop,
}

impl Observed {
    /// The pod of an ordinal, if anything is known of it.
    pub fn pod(&self, ordinal: Ordinal) -> Option<&PodView> {
        self.pods.iter().find(|pod| pod.ordinal == ordinal)
    }

    /// Whether an ordinal is wanted, if that is known.
    pub fn wants(&self, ordinal: Ordinal) -> Option<bool> {
        self.desired.wants(self.seed, ordinal)
    }

    /// The pod for whose new member the removal of this one makes room ([`Observed::replacing`]): it is still wanted, and the
    /// one that goes has voted.
    pub fn makes_room(&self, removed: MemberId) -> Option<Ordinal> {
        let member = self.members.iter().map(|m| &m.member).find(|m| m.id == removed && !m.learner)?;
        member.ordinal.filter(|ordinal| self.wants(*ordinal) != Some(false))
    }

    /// The places that go on being kept ([`Observed::replacing`]): nobody has taken them, and that they are not wanted has not
    /// been said.
    pub fn kept_places(&self) -> BTreeSet<Ordinal> {
        let taken = |ordinal: &Ordinal| self.members.iter().any(|m| m.member.ordinal == Some(*ordinal));
        let kept = |ordinal: &&Ordinal| !taken(ordinal) && self.wants(**ordinal) != Some(false);
        self.replacing.iter().filter(kept).copied().collect()
    }

    /// The member list alone.
    pub fn list(&self) -> MemberList {
        MemberList { cluster: self.cluster, members: self.members.iter().map(|m| m.member.clone()).collect() }
    }
}
