//! When the API server of a restored cluster may start: once nobody serves a cluster that the restore has replaced. Pure.
//!
//! Its etcd runs before that, so that the others hear of the restore and join. A cluster that has replaced none never waits:
//! whether a pod starts does not depend on the others.

use std::collections::BTreeSet;

use super::facts::{Facts, PeerFact};
use crate::ids::{ClusterId, Ordinal};
use crate::rules::{Rule, Rules};

/// What holds the API server back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Pods that serve a replaced cluster or have its data, and so may be about to: each stops and sets it aside by itself.
    pub having: Vec<Ordinal>,
    /// Pods that are there and give no word, or are not known to be gone.
    pub silent: Vec<Ordinal>,
    /// Nothing says which pods there are: one that is no longer wanted may serve on.
    pub unnamed: bool,
}

impl Held {
    /// What is waited for.
    pub fn what(&self) -> String {
        let list = |pods: &[Ordinal]| pods.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut parts = Vec::new();
        if !self.having.is_empty() {
            parts.push(format!("pods {} serve it or have its data", list(&self.having)));
        }
        if !self.silent.is_empty() {
            parts.push(format!("pods {} may serve it and give no word", list(&self.silent)));
        }
        if self.unnamed {
            parts.push("nothing says which pods there are that may serve it".to_owned());
        }
        format!(
            "the API server of the restored cluster does not start beside the one it has replaced: {}",
            parts.join("; ")
        )
    }

    /// What brings it on.
    pub const fn remedy(&self) -> &'static str {
        if self.unnamed {
            "have the host cluster's API answer, with the StatefulSet there and its volume claims readable; where the pods use \
             none, look at the cluster's DNS and the headless service, which needs publishNotReadyAddresses"
        } else if self.silent.is_empty() {
            "they set it aside by themselves within seconds; where one does not, delete that pod and its volume"
        } else {
            "delete those pods, or bring them back; where they come back and still give no word, scale down to the pods that do"
        }
    }
}

/// The clusters that a restore has replaced, as far as this pod knows: its volume, the marker, or the seed says so.
pub fn replaced(facts: &Facts) -> BTreeSet<ClusterId> {
    let marker = facts.marker().into_iter().flat_map(|marker| &marker.superseded);
    let seed = facts.peer(facts.seed).into_iter().flat_map(|peer| &peer.superseded);
    facts.notes.superseded.iter().chain(marker).chain(seed).copied().collect()
}

/// Those of `replaced` that nobody has yet seen to be served by no pod: only these make a pod's silence matter. That it was
/// seen once is noted, and believed from any pod: whoever starts later hears of the restore first.
fn unsettled(facts: &Facts, replaced: &BTreeSet<ClusterId>) -> BTreeSet<ClusterId> {
    let told = |cluster: &ClusterId| facts.peers.iter().any(|peer| peer.settled.contains(cluster));
    unnoted(facts, replaced).into_iter().filter(|cluster| !told(cluster)).collect()
}

/// Those of `replaced` that this volume does not note as settled. Each pod notes it for itself, also what it was told: who
/// told it may be silent when it starts the next time.
pub fn unnoted(facts: &Facts, replaced: &BTreeSet<ClusterId>) -> BTreeSet<ClusterId> {
    replaced.iter().copied().filter(|cluster| !facts.notes.settled.contains(cluster)).collect()
}

/// What holds the API server back, in a pod that knows these clusters to be replaced; `None`: nothing.
pub fn held(facts: &Facts, replaced: &BTreeSet<ClusterId>, rules: Rules) -> Option<Held> {
    if replaced.is_empty() || !rules.on(Rule::RestoredWaits) {
        return None;
    }
    let ordinals = |that: &dyn Fn(&PeerFact) -> bool| -> Vec<Ordinal> {
        facts.peers.iter().filter(|peer| that(peer)).map(|peer| peer.ordinal).collect()
    };
    let unsettled = unsettled(facts, replaced);
    let mut held = Held {
        having: ordinals(&|peer| peer.cluster().is_some_and(|cluster| replaced.contains(&cluster))),
        ..Held::default()
    };
    if !unsettled.is_empty() {
        held.silent = ordinals(&|peer| peer.state.present().is_none() && !gone(facts, peer));
        // A volume whose pod nobody has asked.
        let claimed = facts.claims.present().into_iter().flatten().copied();
        held.silent.extend(claimed.filter(|ordinal| facts.peer(*ordinal).is_none()));
        held.unnamed = match facts.host_configured {
            true => facts.claims.unknown().is_some(),
            false => facts.named.unknown().is_some(),
        };
    }
    (held != Held::default()).then_some(held)
}

/// Whether an authority says that there is no such pod: the host API; DNS only where there is none, as a host API that does
/// not answer says nothing, and DNS may be behind.
fn gone(facts: &Facts, peer: &PeerFact) -> bool {
    peer.pod.is_absent() || (!facts.host_configured && peer.dns.is_absent())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{DataDirFact, Known, LogPosition, Marker, MarkerPhase, MarkerSeen, PeerState, PodFact};
    use crate::ids::MemberId;

    const OLD: ClusterId = ClusterId(1);
    const NEW: ClusterId = ClusterId(2);

    /// A seed whose volume notes that [`NEW`] has replaced [`OLD`], beside these.
    fn seed(peers: impl Into<Vec<PeerFact>>) -> Facts {
        let data_dir = DataDirFact::Valid { member: MemberId(1), cluster: NEW };
        let mut facts = Facts { peers: peers.into(), ..Facts::serving(Ordinal(0), data_dir) };
        facts.notes.superseded = vec![OLD];
        facts
    }

    fn with_host(facts: Facts) -> Facts {
        Facts { host_configured: true, claims: Known::Absent, ..facts }
    }

    fn says(state: PeerState) -> PeerFact {
        PeerFact { dns: Known::Present(()), state: Known::Present(state), ..PeerFact::new(Ordinal(1)) }
    }

    fn data(cluster: ClusterId, last: Option<LogPosition>) -> PeerFact {
        says(PeerState::Data { member: MemberId(5), cluster, last })
    }

    fn serves(cluster: ClusterId) -> PeerFact {
        says(PeerState::Serving { member: MemberId(5), cluster })
    }

    fn asked(facts: &Facts) -> Option<Held> {
        held(facts, &replaced(facts), Rules::ALL)
    }

    fn having() -> Option<Held> {
        Some(Held { having: vec![Ordinal(1)], ..Held::default() })
    }

    fn silent() -> Option<Held> {
        Some(Held { silent: vec![Ordinal(1)], ..Held::default() })
    }

    const POD: Known<PodFact> = Known::Present(PodFact { terminating: false, current_revision: None });

    #[test]
    fn the_api_server_waits_while_a_replaced_cluster_is_served_or_may_be() {
        assert_eq!(asked(&seed([serves(OLD)])), having());
        for last in [None, Some(LogPosition::default())] {
            assert_eq!(asked(&seed([data(OLD, last)])), having(), "it may be about to serve");
        }
        let there = PeerFact { dns: Known::Present(()), ..PeerFact::new(Ordinal(1)) };
        assert_eq!(asked(&seed([there.clone()])), silent());
        assert_eq!(asked(&with_host(seed([PeerFact { pod: POD, dns: Known::Absent, ..there.clone() }]))), silent());
        assert_eq!(asked(&seed([PeerFact::new(Ordinal(1))])), silent(), "unknown is not absent");
        assert_eq!(held(&seed([serves(OLD)]), &[OLD].into(), Rules::without(&[Rule::RestoredWaits])), None);
    }

    #[test]
    fn pods_that_are_gone_or_have_nothing_of_it_do_not_hold_it_up() {
        assert_eq!(asked(&seed([])), None);
        let gone = PeerFact { dns: Known::Absent, ..PeerFact::new(Ordinal(1)) };
        assert_eq!(asked(&seed([gone.clone()])), None);
        assert_eq!(asked(&with_host(seed([PeerFact { pod: Known::Absent, dns: Known::Present(()), ..gone }]))), None);
        for other in [serves(NEW), data(NEW, None), says(PeerState::Empty), says(PeerState::Store("state.db".into()))] {
            assert_eq!(asked(&seed([other])), None);
        }
    }

    /// Stale DNS: a pod that has come again is not in it yet, and may serve the replaced cluster.
    #[test]
    fn absence_from_dns_lets_nobody_go_while_the_host_api_is_away() {
        let hidden = PeerFact { dns: Known::Absent, ..PeerFact::new(Ordinal(1)) };
        assert_eq!(asked(&with_host(seed([hidden.clone()]))), silent());
        assert_eq!(asked(&seed([hidden])), None, "without a host API nothing else says so");
    }

    /// A scale-down that has not reached them yet: they are not wanted, and nobody asks for them by their ordinals.
    #[test]
    fn it_waits_until_anything_says_which_pods_there_are() {
        let unnamed = || Facts { named: Known::default(), ..seed([]) };
        assert_eq!(asked(&unnamed()), Some(Held { unnamed: true, ..Held::default() }));
        let claimed = |claims| Facts { claims: Known::Present(claims), ..with_host(unnamed()) };
        assert_eq!(asked(&claimed(vec![])), None);
        let denied = Facts { claims: Known::default(), named: Known::Present(()), ..claimed(vec![]) };
        assert_eq!(asked(&denied), asked(&unnamed()), "DNS may be behind");
        assert_eq!(asked(&claimed(vec![Ordinal(1)])), silent(), "its pod was not asked");
        let gone = PeerFact { pod: Known::Absent, ..PeerFact::new(Ordinal(1)) };
        assert_eq!(asked(&Facts { peers: vec![gone], ..claimed(vec![Ordinal(1)]) }), None);
        let mut settled = unnamed();
        settled.notes.settled = vec![OLD];
        assert_eq!(asked(&settled), None, "nobody serves it any more");
        assert!(asked(&unnamed()).is_some_and(|held| held.what().contains("says which pods")));
    }

    /// Whether an ordinary start succeeds must not depend on the others.
    #[test]
    fn a_cluster_that_has_replaced_none_waits_for_nobody() {
        let mut facts = seed([PeerFact { dns: Known::Present(()), ..PeerFact::new(Ordinal(1)) }, serves(OLD)]);
        facts.notes.superseded.clear();
        assert_eq!(asked(&facts), None);
    }

    #[test]
    fn a_restore_is_known_from_the_volume_the_marker_or_the_seed() {
        let mut other = Facts { ordinal: Ordinal(1), ..seed([]) };
        other.notes.superseded.clear();
        assert!(replaced(&other).is_empty());
        let mut marker = Marker::new(MarkerPhase::Formed(NEW));
        marker.superseded.push(OLD);
        let marked = Facts { marker: Known::Present(MarkerSeen { version: "7".into(), marker }), ..other.clone() };
        assert_eq!(replaced(&marked), [OLD].into());
        let mut word = PeerFact { ordinal: Ordinal(0), superseded: vec![OLD], ..serves(NEW) };
        other.peers = vec![word.clone()];
        assert_eq!(replaced(&other), [OLD].into());
        word.ordinal = Ordinal(2);
        other.peers = vec![word];
        assert!(replaced(&other).is_empty(), "not the seed's word");
    }

    /// Once it was seen that nobody serves it, a node that is down holds up no restart, for ever after; who has its data, does.
    #[test]
    fn silence_matters_until_it_was_once_seen_that_nobody_serves_it() {
        let there = PeerFact { dns: Known::Present(()), ..PeerFact::new(Ordinal(1)) };
        let mut facts = seed([there.clone()]);
        facts.notes.settled = vec![OLD];
        assert_eq!(asked(&facts), None);
        facts.peers.push(PeerFact { ordinal: Ordinal(2), ..serves(OLD) });
        assert_eq!(asked(&facts).map(|held| (held.having, held.silent)), Some((vec![Ordinal(2)], vec![])));
        let told = PeerFact { ordinal: Ordinal(2), settled: vec![OLD], ..serves(NEW) };
        let hears = seed([there.clone(), told.clone()]);
        assert_eq!(asked(&hears), None, "another pod has seen it");
        assert_eq!(
            unnoted(&hears, &replaced(&hears)),
            [OLD].into(),
            "it notes that itself: the other may be silent next time"
        );
        assert_eq!(unnoted(&facts, &[OLD].into()), [].into());
        let mut again = seed([there, told]);
        again.notes.superseded.push(ClusterId(7));
        assert_eq!(asked(&again), silent(), "another restore is settled anew");
    }
}
