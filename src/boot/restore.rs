//! What a staged restore has the seed's next start do (rule 4.7).
//!
//! The order: what it replaces is noted, durable, and told to the others from then on; the present data dir is set aside and
//! the staged one put in its place; the marker names the new cluster and supersedes the old; the record is put away. Only
//! then is anything started. Once begun it is gone through with: nothing is served in between.

use super::facts::{DataDirFact, Facts, Known, PeerFact, RestoreFact, Staged};
use super::refusal::Refusal;
use super::wait::Wait;
use super::{BootDecision, Record, Verdict, form, marker};
use crate::ids::ClusterId;
use crate::rules::{Rule, Rules};

/// What comes next of a restore; `None`: none is staged.
pub(super) fn verdict(facts: &Facts, rules: Rules) -> Option<Verdict> {
    let staged = match &facts.restore {
        RestoreFact::Absent => return None,
        RestoreFact::Damaged(why) => return Some(refuse(Refusal::DamagedRestore(why.clone()), Rule::JournalTrue)),
        RestoreFact::Staged(staged) => staged,
    };
    if !facts.enabled {
        return Some(refuse(Refusal::RestoreWhileDisabled, Rule::Settings));
    }
    // A reset that was begun is finished first. What is left of a data dir that is no more is forgotten with it.
    if staged.begun.is_none() && facts.notes.resetting && matches!(facts.data_dir, DataDirFact::Valid { .. }) {
        return None;
    }
    Some(match &staged.begun {
        None => begin(facts, staged, rules),
        Some(replaced) => go_on(facts, staged, replaced, rules),
    })
}

fn refuse(refusal: Refusal, rule: Rule) -> Verdict {
    (BootDecision::Refuse(refusal), rule)
}

/// Nothing has been changed for it yet.
fn begin(facts: &Facts, staged: &Staged, rules: Rules) -> Verdict {
    if let Some(refused) = refused(facts, staged, rules) {
        return refused;
    }
    if let (Known::Unknown(why), true) = (&facts.marker, facts.host_configured)
        && rules.on(Rule::HostAnswers)
    {
        return (BootDecision::Wait(Wait::HostAway(why.clone())), Rule::HostAnswers);
    }
    // Of two stores that are asked for, neither may be served as if the other had not been.
    if moves_too(facts, rules) {
        return refuse(Refusal::RestoreBesideMove, Rule::StoreOfSeed);
    }
    supersede(facts, staged, rules)
}

/// Whether without the restore a deployed etcd would be moved here: the setting alone does not tell, as it stays when that is
/// done.
fn moves_too(facts: &Facts, rules: Rules) -> bool {
    let moved = super::lost(facts).is_some() || form::evidence(facts, rules).is_some();
    facts.migrate_from && facts.data_dir == DataDirFact::Empty && !moved && rules.on(Rule::StoreOfSeed)
}

/// Why it may not begin on this volume.
fn refused(facts: &Facts, staged: &Staged, rules: Rules) -> Option<Verdict> {
    if facts.ordinal != facts.seed && rules.on(Rule::SeedForms) {
        let refusal = Refusal::RestoreNotTheSeed { ordinal: facts.ordinal, seed: facts.seed };
        return Some(refuse(refusal, Rule::SeedForms));
    }
    if let Some(dir) = facts.distro_store.as_ref().filter(|_| facts.data_dir == DataDirFact::Empty) {
        return Some(refuse(Refusal::DistroStore(dir.clone()), Rule::Settings));
    }
    if let Some(store) = super::uncommitted(facts).or_else(|| super::vanished(facts)) {
        return Some(refuse(Refusal::RestoreBesideImport(store), Rule::JournalTrue));
    }
    if !staged.whole {
        return Some(refuse(Refusal::RestoreVanished, Rule::JournalTrue));
    }
    staged.outrun.then(|| refuse(Refusal::RestoreOutrun, Rule::JournalTrue))
}

/// Begins, with the clusters that it replaces. Where nothing here tells which, the other pods must, as before a cluster is formed: who
/// does not speak may serve it later, beside the restored one.
fn supersede(facts: &Facts, staged: &Staged, rules: Rules) -> Verdict {
    let current = |cluster: &ClusterId| *cluster != staged.cluster && !marker::superseded(facts, *cluster);
    let here = match facts.data_dir {
        DataDirFact::Valid { cluster, .. } => Some(cluster),
        _ => facts.owner.map(|(_, cluster)| cluster),
    };
    let here = here.filter(current);
    let formed = facts.marker().and_then(|marker| marker.formed()).filter(current);
    let two = |mine, other| refuse(Refusal::TwoClusters { mine, other }, Rule::OneCluster);
    let begins = |replaced| {
        let noted = if rules.on(Rule::RestoreNoted) { replaced } else { Vec::new() };
        (BootDecision::Record(Record::RestoreBegun(noted)), Rule::RestoreNoted)
    };
    if let (Some(mine), Some(other)) = (here, formed)
        && mine != other
        && rules.on(Rule::OneCluster)
    {
        return two(mine, other);
    }
    let noted = facts.notes.set_aside.filter(|_| formed.is_none());
    let mut found = Vec::new();
    add(&mut found, here.into_iter().chain(formed).chain(noted).chain(staged.replaces).filter(current));
    if formed.is_some() {
        return begins(found);
    }
    let spoken = |peer: &PeerFact| peer.cluster().into_iter().chain(peer.joins);
    let mut seen = Vec::new();
    add(&mut seen, facts.peers.iter().flat_map(spoken).filter(current));
    if found.is_empty() {
        found.extend(seen.first().copied());
    }
    if let (Some(mine), Some(other)) = (found.first(), seen.iter().find(|seen| !found.contains(seen)))
        && rules.on(Rule::OneCluster)
    {
        return two(*mine, *other);
    }
    if !found.is_empty() {
        return begins(found);
    }
    let asked = match form::must_answer(facts, rules) {
        Ok(asked) => asked,
        Err((wait, rule)) => return (BootDecision::Wait(wait), rule),
    };
    let speaks = |peer: &PeerFact| peer.state.present().is_some();
    let silent: Vec<_> = asked.into_iter().filter(|ordinal| !facts.peer(*ordinal).is_some_and(speaks)).collect();
    if silent.is_empty() {
        return begins(found);
    }
    (BootDecision::Wait(Wait::PeersNotKnownEmpty(silent)), Rule::PeersSayEmpty)
}

fn add(found: &mut Vec<ClusterId>, more: impl Iterator<Item = ClusterId>) {
    for cluster in more {
        if !found.contains(&cluster) {
            found.push(cluster);
        }
    }
}

/// It is taking its place.
fn go_on(facts: &Facts, staged: &Staged, replaced: &[ClusterId], rules: Rules) -> Verdict {
    let record = |record, rule| (BootDecision::Record(record), rule);
    let Staged { member, cluster, .. } = *staged;
    if replaced.iter().any(|old| !facts.notes.superseded.contains(old)) {
        return record(Record::RestoreBegun(replaced.to_vec()), Rule::RestoreNoted);
    }
    if facts.data_dir != (DataDirFact::Valid { member, cluster }) {
        return match staged.whole {
            true => (BootDecision::PutRestored { member, cluster }, Rule::RestoreNoted),
            false => refuse(Refusal::RestoreVanished, Rule::JournalTrue),
        };
    }
    if facts.host_configured && rules.on(Rule::RestoreMarked) {
        if let Known::Unknown(why) = &facts.marker {
            return (BootDecision::Wait(Wait::HostAway(why.clone())), Rule::RestoreMarked);
        }
        if let Some(write) = marker::restored(&facts.marker, cluster, replaced) {
            return record(Record::Restored(write), Rule::RestoreMarked);
        }
    }
    record(Record::RestoreDone, Rule::RestoreMarked)
}
