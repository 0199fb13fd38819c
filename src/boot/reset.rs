//! The reset: one member goes on alone, with its data, when the others cannot come back (rules 5.4).
//!
//! `--force-new-cluster` alone discards entries that are not yet known as committed, acknowledged ones among them. So
//! the WAL's last entry is made the committed one first. That loses nothing if every acknowledged entry is in this WAL:
//! with at most two voters it is, as an acknowledgement took both; with more, if every other voter has noted, with its
//! etcd stopped, a last entry that is not ahead of ours.

use super::facts::{Desired, Facts, Known, LogFact, Member, PeerFact, PeerState, Role};
use super::marker::{self, MarkerSeen};
use super::wait::Wait;
use super::{BootDecision, Record, Refusal, Verdict};
use crate::ids::{ClusterId, MemberId, Ordinal};
use crate::rules::{Rule, Rules};

/// One step of a reset. Each is durable before the next; a reset that was killed begins again at the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetStep {
    /// Keep a copy of the data dir beside it, unless an earlier try has kept one.
    KeepCopy,
    /// Write the note `resetting`: from here on nothing else opens the data dir.
    Note,
    /// Append a HardState record to the WAL: commit = the last entry's index, term = the greater of the old HardState's
    /// and the last entry's, vote as it was if the term is the old one, else none.
    CommitAll,
    /// Run etcd with `--force-new-cluster`, listening on loopback only, until it answers linearizable reads with itself
    /// as the only member; stop it. Then decide again.
    ForceNewCluster,
}

/// The steps of a reset, in order.
pub fn steps(rules: Rules) -> impl Iterator<Item = ResetStep> {
    [ResetStep::KeepCopy, ResetStep::Note, ResetStep::CommitAll, ResetStep::ForceNewCluster]
        .into_iter()
        .filter(move |step| *step != ResetStep::CommitAll || rules.on(Rule::ResetCommitsAll))
}

/// What is to be done about a reset with a valid data dir; `None`: nothing, it starts as it is.
pub(super) fn verdict(facts: &Facts, member: MemberId, cluster: ClusterId, rules: Rules) -> Option<Verdict> {
    let log = facts.log.present()?;
    let voters = other_voters(log);
    let quorum = facts.members.present().is_some_and(|list| list.cluster == cluster);
    if voters.is_empty() || quorum || facts.desired.wants(facts.seed, facts.ordinal) != Some(true) {
        return None;
    }
    let seen = facts.marker.present().filter(|seen| seen.marker.formed() == Some(cluster));
    if facts.host_configured && seen.is_none() && rules.on(Rule::ResetNamed) {
        return None;
    }
    let able = log.role == Role::Voter || !rules.on(Rule::ResetVoter);
    let needed = if scaled_to_one(facts, &voters, rules) {
        Some(if rules.on(Rule::ResetByHost) { Rule::ResetByHost } else { Rule::ResetNeeded })
    } else if other_disk_empty(facts, log, &voters) || !rules.on(Rule::ResetNeeded) {
        Some(Rule::ResetNeeded)
    } else {
        None
    };
    let lossless = log.voters <= 2 || noted(seen, log, &voters) || !rules.on(Rule::ResetLossless);
    match (able, needed, lossless, seen) {
        (true, Some(rule), true, Some(seen)) if !named(seen, member, log) && rules.on(Rule::ResetNamed) => {
            let dropped: Vec<_> = log.others.iter().map(|other| other.id).collect();
            Some((BootDecision::Record(Record::Survivor(seen.naming(member, &dropped))), rule))
        }
        (true, Some(rule), true, _) => Some((BootDecision::Reset { member, cluster }, rule)),
        // Named earlier, not begun, and no longer to be done: those that it would have dropped may start again.
        (.., Some(seen)) if named(seen, member, log) => {
            let dropped: Vec<_> = log.others.iter().map(|other| other.id).collect();
            Some((BootDecision::Record(Record::NoSurvivor(seen.unnaming(&dropped))), Rule::ResetNamed))
        }
        _ => None,
    }
}

/// What keeps a reset that was begun here from being finished: others serve the cluster, with or without this member in
/// their list, or so many have its data that they will. Nothing of it has been served, so nothing is lost with it.
///
/// Whom the marker drops for this survivor does not start, whatever data it has: only the word that it serves counts.
pub(super) fn overtaken(facts: &Facts, member: MemberId, cluster: ClusterId) -> Option<BootDecision> {
    if facts.notes.overtaken == Some(member) {
        let others = facts.log.present().map(other_voters).unwrap_or_default().iter().map(|voter| voter.id).collect();
        return Some(BootDecision::Refuse(Refusal::ResetOvertaken { member, cluster, others }));
    }
    let listed = facts.members.present().filter(|list| list.cluster == cluster);
    let listed = listed.into_iter().flat_map(|list| list.members.iter().map(|member| member.id));
    let serving = facts.peers.iter().filter_map(|peer| match peer.state {
        Known::Present(PeerState::Serving { member, cluster: served }) if served == cluster => Some(member),
        _ => None,
    });
    let serving: Vec<_> = listed.chain(serving).filter(|id| *id != member).collect();
    let voters = facts.log.present().map(other_voters).unwrap_or_default();
    let has_data = |voter: &&&Member| {
        let state = voter.ordinal.and_then(|ordinal| facts.peer(ordinal)).and_then(|peer| peer.state.present());
        matches!(state, Some(PeerState::Data { member, cluster: of, .. }) if *member == voter.id && *of == cluster)
    };
    let survives = facts.marker().filter(|marker| marker.survivor == Some(member) && marker.formed() == Some(cluster));
    let starts = |voter: &&&Member| survives.is_none_or(|marker| !marker.dropped.contains(&voter.id));
    let mut able: Vec<_> = voters.iter().filter(has_data).filter(starts).map(|voter| voter.id).collect();
    if able.len() <= voters.len().div_ceil(2) {
        able.clear();
    }
    if let (Known::Unknown(why), true, true, false) =
        (&facts.marker, facts.host_configured, serving.is_empty(), able.is_empty())
    {
        return Some(BootDecision::Wait(Wait::HostAway(why.clone())));
    }
    let mut others: Vec<_> = serving.into_iter().chain(able).collect();
    others.sort();
    others.dedup();
    (!others.is_empty()).then_some(BootDecision::Refuse(Refusal::ResetOvertaken { member, cluster, others }))
}

/// That others serve the cluster is noted before it is refused: they may be away when it is looked at next, and what they have
/// taken is theirs.
pub(super) fn overtaken_noted(facts: &Facts, member: MemberId, decision: BootDecision) -> BootDecision {
    match decision {
        BootDecision::Refuse(Refusal::ResetOvertaken { .. }) if facts.notes.overtaken != Some(member) => {
            BootDecision::Record(Record::Overtaken(member))
        }
        decision => decision,
    }
}

/// What comes before the start of a member that a reset has made the only one: that nobody goes on whom it has dropped. A reset
/// at boot has had the marker say so; one by hand (`syncer recover`) could ask nobody.
pub(super) fn dropped(facts: &Facts, member: MemberId, cluster: ClusterId) -> Option<BootDecision> {
    if facts.dropped.is_empty() {
        return None;
    }
    let refuse = |others| Some(BootDecision::Refuse(Refusal::ResetOvertaken { member, cluster, others }));
    if facts.notes.overtaken == Some(member) {
        return refuse(facts.dropped.clone());
    }
    let listed = facts.members.present().filter(|list| list.cluster == cluster);
    let listed = listed.into_iter().flat_map(|list| list.members.iter().map(|member| member.id));
    let others = facts.peers.iter().filter_map(|peer| match peer.state {
        Known::Present(PeerState::Serving { member: other, cluster: of }) if of == cluster => Some(other),
        // Each was made the only one: which of the two is to go on, nobody here knows.
        Known::Present(PeerState::Data { member: other, cluster: of, .. }) if of == cluster => {
            peer.dropped.contains(&member).then_some(other)
        }
        _ => None,
    });
    let mut others: Vec<_> = listed.chain(others).filter(|id| facts.dropped.contains(id)).collect();
    if !others.is_empty() {
        others.sort();
        others.dedup();
        return refuse(others);
    }
    let all = |of: &[MemberId]| facts.dropped.iter().all(|id| of.contains(id));
    // Whoever has joined since has done so beside this member alone.
    let noted = all(&facts.notes.dropped) || facts.log.present().is_some_and(|log| !log.others.is_empty());
    let there = may_start(facts);
    let record = match &facts.marker {
        Known::Unknown(why) if facts.host_configured && !noted => {
            return Some(BootDecision::Wait(Wait::HostAway(why.clone())));
        }
        Known::Present(seen) if seen.marker.formed() == Some(cluster) && all(&seen.marker.dropped) => {
            (!noted).then(|| Record::Dropped(facts.dropped.clone()))
        }
        _ if noted && !facts.host_configured => None,
        Known::Unknown(_) if noted => None,
        _ if !noted && !there.is_empty() => return Some(BootDecision::Wait(Wait::OthersThere(there))),
        Known::Unknown(_) => Some(Record::Dropped(facts.dropped.clone())),
        seen => marker::dropping(seen, member, cluster, &facts.dropped).map(Record::Survivor),
    };
    record.map(BootDecision::Record)
}

/// The pods that are there, or may be, and could start as a member that was dropped: who is gone, is empty, or is another member
/// could not.
fn may_start(facts: &Facts) -> Vec<Ordinal> {
    let gone = |peer: &PeerFact| if facts.host_configured { peer.pod.is_absent() } else { peer.dns.is_absent() };
    let harmless = |peer: &PeerFact| match &peer.state {
        Known::Present(PeerState::Empty | PeerState::Store(_)) => true,
        Known::Present(PeerState::Data { member, .. } | PeerState::Serving { member, .. }) => {
            !facts.dropped.contains(member)
        }
        _ => gone(peer),
    };
    facts.peers.iter().filter(|peer| !harmless(peer)).map(|peer| peer.ordinal).collect()
}

/// Why a pod that is alone by the host API's word, or whose peers' disks are empty, does not reset: what it waits for
/// while its etcd runs without a quorum.
pub(super) fn hindered(facts: &Facts, cluster: ClusterId) -> Option<Wait> {
    let log = facts.log.present()?;
    let voters = other_voters(log);
    if voters.is_empty() && log.role != Role::Voter && facts.members.present().is_none() {
        // A joiner that has received nothing yet.
        return Some(Wait::NobodyToJoin(cluster));
    }
    // Said only, and acted upon by nobody: so DNS has a say where there is no host API.
    let unnamed = |ordinal| {
        matches!(facts.desired, Desired::Values(_)) && facts.peer(ordinal).is_some_and(|peer| peer.dns.is_absent())
    };
    let gone = |member: &&Member| {
        let gone = |ordinal| pod_gone(facts, ordinal) || empty(facts, ordinal) || unnamed(ordinal);
        member.ordinal.is_some_and(gone)
    };
    let ordinals = |of: &dyn Fn(&&Member) -> bool| {
        let mut found: Vec<Ordinal> = voters.iter().filter(|voter| of(voter)).filter_map(|m| m.ordinal).collect();
        found.sort();
        found
    };
    let gone = ordinals(&gone);
    let lost = ordinals(&|member| member.ordinal.is_some_and(|ordinal| empty(facts, ordinal)));
    if facts.members.present().is_some() {
        return None;
    }
    if no_quorum(log, &voters, &lost) {
        return Some(Wait::MajorityLost(lost));
    }
    if !no_quorum(log, &voters, &gone) {
        return None;
    }
    let highest = gone.iter().max().map_or(0, |ordinal| ordinal.0.saturating_sub(facts.seed.0));
    Some(Wait::MajorityGone { gone, replicas: highest.saturating_add(1) })
}

/// Whether those that are left without these cannot agree: by all the voters that the log knows, or by those in effect, who
/// must agree on whatever changes them.
fn no_quorum(log: &LogFact, voters: &[&Member], without: &[Ordinal]) -> bool {
    let lacks = |voters: &[&Member]| {
        let missing = voters.iter().filter(|voter| voter.ordinal.is_some_and(|ordinal| without.contains(&ordinal)));
        voters.len() + 1 - missing.count() <= voters.len().div_ceil(2)
    };
    let now: Vec<_> = voters.iter().copied().filter(|voter| log.voters_now.contains(&voter.id)).collect();
    lacks(voters) || lacks(&now)
}

fn other_voters(log: &LogFact) -> Vec<&Member> {
    log.others.iter().filter(|other| !other.learner).collect()
}

/// Whether one pod is wanted, this one, and every other voter's pod is gone.
fn scaled_to_one(facts: &Facts, voters: &[&Member], rules: Rules) -> bool {
    let by_host = facts.desired == Desired::Host(1)
        && voters.iter().all(|voter| voter.ordinal.is_some_and(|ordinal| pod_gone(facts, ordinal)));
    let by_dns = facts.desired == Desired::Values(1)
        && voters.iter().all(|voter| {
            voter.ordinal.and_then(|ordinal| facts.peer(ordinal)).is_some_and(|peer| peer.dns.is_absent())
        });
    by_host || (by_dns && !rules.on(Rule::ResetByHost))
}

fn pod_gone(facts: &Facts, ordinal: Ordinal) -> bool {
    facts.peer(ordinal).is_some_and(|peer| peer.pod.is_absent())
}

/// Whether there is one other voter, and its pod itself says that its disk is empty.
fn other_disk_empty(facts: &Facts, log: &LogFact, voters: &[&Member]) -> bool {
    matches!(voters, [other] if log.voters == 2 && other.ordinal.is_some_and(|ordinal| empty(facts, ordinal)))
}

fn empty(facts: &Facts, ordinal: Ordinal) -> bool {
    facts.peer(ordinal).is_some_and(|peer| peer.state == Known::Present(PeerState::Empty))
}

/// Whether every other voter has noted a last entry that is not ahead of ours.
fn noted(seen: Option<&MarkerSeen>, log: &LogFact, voters: &[&Member]) -> bool {
    seen.is_some_and(|seen| {
        let noted = &seen.marker.stopped;
        voters.iter().all(|voter| noted.iter().any(|stop| stop.member == voter.id && stop.last <= log.last))
    })
}

/// Whether the marker names this member, and drops every other one that its WAL knows.
fn named(seen: &MarkerSeen, member: MemberId, log: &LogFact) -> bool {
    seen.marker.survivor == Some(member) && log.others.iter().all(|other| seen.marker.dropped.contains(&other.id))
}
