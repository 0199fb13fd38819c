//! Whether a pod may form a cluster, or import into one, which is the same (rules 4.1 to 4.3).

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::facts::{Desired, Facts, Known, PeerFact, PeerState};
use super::marker::{self, MarkerPhase};
use super::refusal::Refusal;
use super::wait::Wait;
use super::{BootDecision, Record, Verdict};
use crate::ids::{ClusterId, Ordinal};
use crate::rules::{Rule, Rules};

/// Why no cluster may be formed here now, or what comes before it; `None`: it may be formed.
pub(super) fn hindrance(facts: &Facts, rules: Rules) -> Option<Verdict> {
    let refuse = |refusal, rule| Some((BootDecision::Refuse(refusal), rule));
    let wait = |wait, rule| Some((BootDecision::Wait(wait), rule));
    if let Some(dir) = &facts.distro_store {
        return refuse(Refusal::DistroStore(dir.clone()), Rule::Settings);
    }
    let host = facts.host_configured && rules.on(Rule::HostAnswers);
    let away = facts.marker.unknown().filter(|_| host);
    if facts.ordinal != facts.seed && rules.on(Rule::SeedForms) {
        // The StatefulSet says which ordinal is the first.
        let unknown = match &facts.desired {
            Desired::Unknown(why) if host => Some(why.as_str()),
            _ => away,
        };
        if let Some(why) = unknown {
            return wait(Wait::HostAway(why.to_owned()), Rule::HostAnswers);
        }
        let stores = facts.stores.state_dbs.clone();
        return if !stores.is_empty() {
            let of_seed = facts.peer(facts.seed).and_then(store_of).cloned();
            let refusal = Refusal::NotTheSeed { ordinal: facts.ordinal, stores, seed: facts.seed, of_seed };
            refuse(refusal, Rule::SeedForms)
        } else if other_ca(facts, &[facts.seed], rules) {
            refuse(Refusal::NoSharedCa, Rule::SharedCa)
        } else {
            wait(Wait::ForSeed(facts.seed), Rule::SeedForms)
        };
    }
    if let Some(cluster) = evidence(facts, rules)
        && rules.on(Rule::FormedOnce)
    {
        return refuse(Refusal::FormedElsewhere(cluster), Rule::FormedOnce);
    }
    if let Some(why) = away {
        return wait(Wait::HostAway(why.to_owned()), Rule::HostAnswers);
    }
    let elsewhere = facts.peers.iter().find_map(|peer| Some((peer.ordinal, store_of(peer)?)));
    if let Some((ordinal, store)) = elsewhere {
        let (store, mine) = (store.clone(), facts.stores.state_dbs.clone());
        return refuse(Refusal::StoreElsewhere { ordinal, store, mine }, Rule::StoreOfSeed);
    }
    let asked = match must_answer(facts, rules) {
        Ok(asked) => asked,
        Err((why, rule)) => return wait(why, rule),
    };
    let silent: Vec<_> = asked.into_iter().filter(|ordinal| !says_empty(facts, *ordinal)).collect();
    if !silent.is_empty() {
        if other_ca(facts, &silent, rules) {
            return refuse(Refusal::NoSharedCa, Rule::SharedCa);
        }
        let rule = if facts.host_configured { Rule::ClaimsAnswer } else { Rule::PeersSayEmpty };
        return wait(Wait::PeersNotKnownEmpty(silent), rule);
    }
    if facts.host_configured
        && !(facts.notes.forming && facts.marker().is_some())
        && rules.on(Rule::FormedBeforeServing)
    {
        let write = marker::forming(&facts.marker);
        return Some((BootDecision::Record(Record::Forming(write)), Rule::FormedBeforeServing));
    }
    None
}

/// The store of another pod that has not been moved, by that pod's word.
const fn store_of(peer: &PeerFact) -> Option<&PathBuf> {
    match &peer.state {
        Known::Present(PeerState::Store(store)) => Some(store),
        _ => None,
    }
}

/// Whether one of these is there, with a certificate of another CA, and nobody has one of ours: they will never hear each
/// other.
fn other_ca(facts: &Facts, of: &[Ordinal], rules: Rules) -> bool {
    let other = of.iter().filter_map(|ordinal| facts.peer(*ordinal)).any(|peer| peer.other_ca);
    other && !facts.shared_ca && rules.on(Rule::SharedCa)
}

/// The cluster of which anything shows that it exists: the marker, a peer, or what was set aside here.
pub(super) fn evidence(facts: &Facts, rules: Rules) -> Option<ClusterId> {
    let released = marker::released(facts);
    // The seed's volume was lost with the store, or somebody has moved it.
    let store_gone = facts.ordinal == facts.seed && facts.stores.state_dbs.is_empty() && !facts.migrate_from;
    let listed = facts.members.present().map(|list| list.cluster);
    let seen = listed.into_iter().chain(facts.peers.iter().filter_map(|peer| peer.cluster()));
    facts
        .marker()
        .and_then(|marker| marker.formed())
        .or_else(|| seen.clone().find(|cluster| !marker::superseded(facts, *cluster)))
        .or_else(|| seen.clone().next().filter(|_| released.is_none()))
        .or(released.filter(|_| store_gone))
        .or(facts.notes.set_aside.filter(|_| rules.on(Rule::SetAsideNeverForms)))
        .or_else(|| told(facts, rules).next())
}

/// The clusters that pods with empty volumes are to join: their data may be nowhere, and is not proven to be.
fn told(facts: &Facts, rules: Rules) -> impl Iterator<Item = ClusterId> {
    let current = |cluster: &ClusterId| !marker::superseded(facts, *cluster);
    facts.peers.iter().filter(move |_| rules.on(Rule::JoinersTell)).filter_map(|peer| peer.joins).filter(current)
}

/// The ordinals that must say of themselves that they are empty, or what says which.
pub(super) fn must_answer(facts: &Facts, rules: Rules) -> Result<BTreeSet<Ordinal>, (Wait, Rule)> {
    // Whatever volumes there are, they are superseded, and the marker keeps them from starting.
    if facts.host_configured && marker::released(facts).is_some() {
        return Ok(BTreeSet::new());
    }
    if facts.host_configured {
        match &facts.claims {
            Known::Absent => return Ok(BTreeSet::new()),
            Known::Present(claims) if claims.is_empty() => return Ok(BTreeSet::new()),
            _ if !rules.on(Rule::ClaimsAnswer) => return Ok(BTreeSet::new()),
            // Whoever has a volume may be of a scale-down, and is named by nothing else.
            Known::Unknown(why) => return Err((Wait::HostAway(why.clone()), Rule::ClaimsAnswer)),
            Known::Present(_) => {}
        }
    }
    if !rules.on(Rule::PeersSayEmpty) {
        return Ok(BTreeSet::new());
    }
    let Some(desired) = facts.desired.known() else {
        return Err((Wait::HostAway("which pods are wanted".into()), Rule::HostAnswers));
    };
    // Those of a scale-down that has not reached them yet are known by their names alone. A store that has not been moved
    // shows that none was formed from this volume.
    if let Known::Unknown(why) = &facts.named
        && !facts.host_configured
        && facts.stores.state_dbs.is_empty()
    {
        return Err((Wait::PodsNotNamed(why.clone()), Rule::PeersSayEmpty));
    }
    let below = (0..desired).map(|n| Ordinal(facts.seed.0.saturating_add(n)));
    let claimed = facts.claims.present().into_iter().flatten().copied();
    // A record of a higher ordinal that is not authoritatively absent may be there.
    let named = facts.peers.iter().filter(|peer| !peer.dns.is_absent()).map(|peer| peer.ordinal);
    Ok(below.chain(claimed).chain(named).filter(|ordinal| *ordinal != facts.ordinal).collect())
}

fn says_empty(facts: &Facts, ordinal: Ordinal) -> bool {
    facts.peer(ordinal).is_some_and(|peer| peer.state == Known::Present(PeerState::Empty))
}

/// With a valid data dir: what is still to be recorded of its formation before it takes writes.
pub(super) fn unrecorded(facts: &Facts, cluster: ClusterId, rules: Rules) -> Option<Verdict> {
    let record = |record| Some((BootDecision::Record(record), Rule::FormedBeforeServing));
    let phase = facts.marker().map(|marker| marker.phase);
    let mine = facts.notes.forming || (facts.ordinal == facts.seed && phase == Some(MarkerPhase::Forming));
    if !mine || !rules.on(Rule::FormedBeforeServing) {
        return None;
    }
    match (&facts.marker, facts.host_configured) {
        // No marker can say so: whoever could have data is asked once more, now that this pod's word is its data.
        (Known::Unknown(_), false) => {
            let asked = match must_answer(facts, rules) {
                Ok(asked) => asked,
                Err((wait, rule)) => return Some((BootDecision::Wait(wait), rule)),
            };
            let silent: Vec<_> = asked.into_iter().filter(|ordinal| !says_empty(facts, *ordinal)).collect();
            if let Some(other) = told(facts, rules).find(|other| *other != cluster) {
                let refusal = Refusal::TwoClusters { mine: cluster, other };
                Some((BootDecision::Refuse(refusal), Rule::JoinersTell))
            } else if silent.is_empty() {
                record(Record::FormingDone)
            } else {
                Some((BootDecision::Wait(Wait::PeersNotKnownEmpty(silent)), Rule::PeersSayEmpty))
            }
        }
        (Known::Unknown(why), true) if rules.on(Rule::FormingNoted) => {
            Some((BootDecision::Wait(Wait::HostAway(why.clone())), Rule::FormingNoted))
        }
        (Known::Unknown(_), true) => None,
        (seen, _) => match marker::formed(seen, cluster) {
            Some(write) => record(Record::Formed(write)),
            None => record(Record::FormingDone),
        },
    }
}
