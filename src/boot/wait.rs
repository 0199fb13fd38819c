//! Why a pod waits instead of starting: each reason with what is missing and what an operator can do. A wait is never
//! an exit: it is decided again with fresh facts, every few seconds.

use serde::{Deserialize, Serialize};

use super::refusal::Refusal;
use crate::exit::{Exit, refuse};
use crate::ids::{ClusterId, MemberId, Ordinal};

/// Why a pod waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wait {
    /// The host API is configured, does not answer, and this step may not be decided without it.
    HostAway(String),
    /// DNS does not say which pods there are, and nothing may be formed before each has said of itself that it is empty.
    PodsNotNamed(String),
    /// Nothing may be formed before each of these pods has said of itself that it is empty.
    PeersNotKnownEmpty(Vec<Ordinal>),
    /// No cluster exists yet; the seed forms it.
    ForSeed(Ordinal),
    /// The seed is forming a cluster while this pod has data.
    SeedIsForming(ClusterId),
    /// This pod is not wanted and its volume is empty.
    Surplus {
        /// This pod.
        ordinal: Ordinal,
        /// Desired replicas.
        desired: u32,
    },
    /// This volume is empty, and no peer of the cluster answers with a quorum.
    NobodyToJoin(ClusterId),
    /// This data dir's cluster has been replaced by a restore, and nobody serves the new one yet.
    SupersededNotServed(ClusterId),
    /// This member was made the only one by hand, and these pods may start from what their volumes still have.
    OthersThere(Vec<Ordinal>),
    /// This voter was paused, the marker is gone that would tell whether the seed has gone on without it, and so is the seed's word.
    UnheardSeed(Ordinal),
    /// A reset has dropped this data dir's member, and the survivor does not serve yet.
    Dropped {
        /// This member.
        member: MemberId,
        /// The member that is to serve alone.
        survivor: Option<MemberId>,
    },
    /// This data dir is damaged, and no quorum of the others lists its member.
    Damaged(String),
    /// The etcd at hand cannot start from this data dir, for this reason.
    Unfit {
        /// As it is refused where there is nobody else.
        why: Refusal,
        /// The others have a quorum without it.
        others_go_on: bool,
    },
    /// The other voters are gone, and it is not provable that this data dir has every acknowledged write.
    MajorityGone {
        /// The voters that are gone.
        gone: Vec<Ordinal>,
        /// How many pods bring a quorum back.
        replicas: u32,
    },
    /// So many voters have lost their volumes that those that are left can never be a quorum again.
    MajorityLost(Vec<Ordinal>),
}

impl Wait {
    /// What is missing.
    pub fn what(&self) -> String {
        match self {
            Wait::HostAway(why) => format!("the host cluster's API does not say what must be known: {why}"),
            Wait::PodsNotNamed(why) => {
                format!("DNS does not say which pods the headless service has, and one of them may hold data: {why}")
            }
            Wait::PeersNotKnownEmpty(pods) => {
                format!("pods {} may hold a cluster's data: nothing has said that they are empty", list(pods))
            }
            Wait::ForSeed(seed) => format!("only pod {seed} may form a cluster, and it has not done so yet"),
            Wait::SeedIsForming(cluster) => {
                format!("the seed is forming a new cluster, but this volume holds data of cluster {cluster}")
            }
            Wait::Surplus { ordinal, desired } => {
                format!("this is pod {ordinal} and {desired} replicas are wanted: it is not added to the cluster")
            }
            Wait::NobodyToJoin(cluster) => {
                format!("cluster {cluster} has been formed, this volume is empty, and no pod of it has a quorum")
            }
            Wait::SupersededNotServed(cluster) => {
                format!(
                    "cluster {cluster} was replaced, by a restore or by SQLite, and no pod serves its successor yet"
                )
            }
            Wait::OthersThere(pods) => format!(
                "this member was made the only one of its cluster by hand, and pods {} may start from what their volumes \
                 still have",
                list(pods)
            ),
            Wait::UnheardSeed(seed) => format!(
                "the pods were paused, the ConfigMap <name>-etcd that would tell whether pod {seed} has gone on alone since is gone, and \
                 pod {seed} has not said what its volume holds"
            ),
            Wait::Dropped { member, survivor } => format!(
                "member {member} was dropped when the cluster was reset to {}, which does not serve yet",
                survivor.map_or("one member".into(), |id| format!("member {id}"))
            ),
            Wait::MajorityLost(lost) => format!(
                "the volumes of voters {} are empty: nobody can have a quorum any more, and this volume is not proven to \
                 have every acknowledged write",
                list(lost)
            ),
            Wait::Damaged(why) => format!(
                "the etcd data dir cannot be started from ({why}), and no quorum of the other pods lists this member"
            ),
            Wait::Unfit { why, .. } => why.what(),
            Wait::MajorityGone { gone, .. } => format!(
                "voters {} are gone, and this volume is not proven to have every acknowledged write",
                list(gone)
            ),
        }
    }

    /// The refusal where nobody else can ever answer.
    pub fn refused(&self) -> anyhow::Error {
        match self {
            Wait::Unfit { why, .. } => why.error(),
            Wait::Damaged(why) => Refusal::DamagedDataDir(why.clone()).error(),
            wait => refuse(Exit::RefusedMembership, wait.what(), wait.remedy()),
        }
    }

    /// What brings it on.
    pub fn remedy(&self) -> String {
        match self {
            Wait::HostAway(_) => "make the host cluster's API reachable, with a Role that may get and watch the StatefulSet, list pods \
                 and PersistentVolumeClaims, and get, create and patch ConfigMaps; a ConfigMap <name>-etcd that was damaged by hand is \
                 to be restored (deleted, it is made anew of what the volumes have, and forgets a reset that is under way)"
                .into(),
            Wait::PodsNotNamed(_) => "look at the cluster's DNS, the headless service (it needs publishNotReadyAddresses, and a port named peer, 2380) and this pod's dnsPolicy (or name a server by --dns-server); or \
                 give the pods the host cluster's API, which says it too (a service account with the chart's Role)"
                .into(),
            Wait::PeersNotKnownEmpty(_) => "start those pods, or set the replicas to 1 and delete the volumes of pods \
                 that hold nothing: one pod first, then more"
                .into(),
            Wait::ForSeed(seed) => format!(
                "look at pod {seed}; if the StatefulSet's ordinals begin elsewhere (spec.ordinals.start), give the pods the host \
                 cluster's API, which says so"
            ),
            Wait::SeedIsForming(_) => {
                "delete the ConfigMap <name>-etcd if this volume has the data to keep; otherwise delete this volume"
                    .into()
            }
            Wait::Surplus { .. } => "scale up to have it added".into(),
            Wait::NobodyToJoin(_) => "start the pods that have the data; if their volumes are gone, restore a \
                 snapshot, or give them up: `syncer recover --new-cluster` on every volume that is left (or delete those of \
                 the pods that wait to join it), and delete the ConfigMap <name>-etcd"
                .into(),
            Wait::SupersededNotServed(_) => "start the pod that was restored; to keep this data dir instead, move it aside \
                 and have `syncer migrate --from datadir:PATH` make a new cluster of it"
                .into(),
            Wait::OthersThere(_) => "scale the StatefulSet to one replica: this pod then drops them, and they join anew when \
                 it is scaled up again; if this is not its lowest ordinal, set the data dirs of those pods aside instead"
                .into(),
            Wait::UnheardSeed(seed) => format!(
                "start pod {seed}; if its volume is lost, an empty one will do; if its data dir is damaged, restore it, or, where nothing \
                 was written since all were paused, move it away"
            ),
            Wait::Dropped { .. } => {
                "start the survivor; if its volume is gone, and with it what it has written since, scale the StatefulSet to zero, \
                 `syncer recover` on the volume with the latest data, delete the ConfigMap <name>-etcd, which drops this member, and \
                 scale to one replica first, as it says"
                    .into()
            }
            Wait::MajorityLost(_) => "put the lost volumes back; or scale the StatefulSet to zero (and delete the pods that \
                 it leaves there because another is not ready), give `syncer recover` the volume with the latest data, which says what may \
                 be lost before it does anything, and what to do about the others' volumes"
                .into(),
            Wait::Damaged(_) => "nothing was changed: start the other pods; once they have a quorum, this data dir is set \
                 aside and the pod joins anew. If it was one of two voters, or its member cannot be told, move the data dir \
                 away by hand; if the others are gone, restore the volume or a snapshot"
                .into(),
            Wait::Unfit { why, others_go_on } => {
                let anew = "; or, if the others serve with the etcd that this pod has, move its data dir away: it joins anew";
                format!("{}{}", why.remedy(), if *others_go_on { anew } else { "" })
            }
            Wait::MajorityGone { replicas, .. } => format!(
                "scale up to {replicas}, wait for a quorum, then down: retained volumes make that lossless; or \
                 `syncer recover`, which says what may be lost, and what to do about the others' volumes"
            ),
        }
    }
}

fn list(pods: &[Ordinal]) -> String {
    let pods: Vec<_> = pods.iter().map(ToString::to_string).collect();
    pods.join(", ")
}
