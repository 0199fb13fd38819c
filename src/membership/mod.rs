//! The membership plan: at most one step a pass, by the syncer beside the etcd leader (rules 4.5, 4.6, 5.1, 5.2, 5.5).
//! No clock, no socket, no file.
//!
//! Each step is called with a deadline of about 500 ms. Whatever its outcome, the next pass reads the list again and
//! plans anew: raft drops a second change while one is pending, and its caller hangs until its own deadline.

pub mod leave;
pub mod observed;
pub mod ready;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::boot::{Known, PeerState};
use crate::ids::{MemberId, Ordinal};
use crate::rules::{Rule, Rules};
pub use observed::{MemberFact, Observed, PodView, Request};

/// The outcome of a pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Plan {
    /// Do this one thing.
    Do(Step),
    /// Membership is as it should be.
    Nothing,
    /// Something is to be done and may not be done yet.
    Wait(Hold),
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Add this pod as a learner; answer its request with the new ID and a linearizable list.
    AddLearner(Ordinal),
    /// Make this learner a voter.
    Promote(MemberId),
    /// Remove this member. If it is to be replaced, remember its ordinal ([`Observed::replacing`]).
    Remove(MemberId),
    /// Move leadership to this member, then let writes settle.
    MoveLeader(MemberId),
    /// Set the leader's own peer URL to that of its pod: it is the only member (a restored or adopted data dir).
    UpdateOwnPeerUrl,
}

impl Step {
    /// Where tests kill the leader's pod: before this step, and once etcd has taken it.
    pub const fn crash_points(&self) -> (&'static str, &'static str) {
        match self {
            Step::AddLearner(_) => ("lead-before-add", "lead-added"),
            Step::Promote(_) => ("lead-before-promote", "lead-promoted"),
            Step::Remove(_) => ("lead-before-remove", "lead-removed"),
            Step::MoveLeader(_) => ("lead-before-move", "lead-moved"),
            Step::UpdateOwnPeerUrl => ("lead-before-url", "lead-url-set"),
        }
    }
}

/// Why a step is not taken yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hold {
    /// A change was made less than a second ago.
    JustChanged,
    /// Without this member the rest would have no quorum.
    QuorumNeeds(MemberId),
    /// The leader is to go, and no caught-up voter is there to lead.
    NobodyToLead,
    /// This pod asks to be added while another learner is catching up.
    AnotherLearner(Ordinal),
    /// This pod is to be added or removed, and how many replicas are wanted is not known.
    DesiredUnknown(Ordinal),
    /// This pod is not wanted.
    NotWanted(Ordinal),
    /// A member that no pod of this StatefulSet can be; it is left alone.
    Foreign(MemberId),
}

/// Plans one step.
pub fn plan(observed: &Observed) -> Plan {
    explained(observed, Rules::ALL).0
}

/// Plans one step, and names the rule.
pub fn explained(o: &Observed, rules: Rules) -> (Plan, Rule) {
    if o.own_url_differs && o.members.len() == 1 {
        return (Plan::Do(Step::UpdateOwnPeerUrl), Rule::OneWriter);
    }
    // In this order: what is gone goes before anything is added, and leadership moves when nothing else is to be done.
    let mut held = None;
    for passed in [surplus, replaced, stalled, caught_up, joining, leadership] {
        match passed(o, rules) {
            // Only what gets a new ID must wait: the list already shows what was removed.
            Some((Plan::Do(Step::AddLearner(_)), _)) if !o.settled && rules.on(Rule::SecondApart) => {
                return (Plan::Wait(Hold::JustChanged), Rule::SecondApart);
            }
            Some((Plan::Do(step), rule)) => return (Plan::Do(step), rule),
            Some(hold) => held = held.or(Some(hold)),
            None => {}
        }
    }
    held.unwrap_or((Plan::Nothing, Rule::OneWriter))
}

/// What is left of a plan beside a leader whose own pod was told to stop: it removes those that are not wanted. They wait for
/// that, and it waits for them ([`leave`]).
pub fn while_stopping(plan: Plan, rule: Rule) -> Plan {
    match plan {
        Plan::Do(Step::Remove(_)) if rule == Rule::GoneOrLeaving => plan,
        _ => Plan::Nothing,
    }
}

type Pass = Option<(Plan, Rule)>;

fn step(step: Step, rule: Rule) -> Pass {
    Some((Plan::Do(step), rule))
}

fn hold(hold: Hold, rule: Rule) -> Pass {
    Some((Plan::Wait(hold), rule))
}

/// Members whose ordinal is not wanted and whose pod is going or gone: dead ones first, then the highest.
fn surplus(o: &Observed, rules: Rules) -> Pass {
    let leaving = |m: &&MemberFact| m.member.ordinal.is_some_and(|ordinal| is_surplus(o, ordinal, rules));
    let mut going: Vec<_> = o.members.iter().filter(leaving).collect();
    going.sort_by_key(|m| (m.active, std::cmp::Reverse(m.member.ordinal)));
    let mut held = None;
    for m in going {
        if m.member.id == o.leader && rules.on(Rule::LeaderStays) {
            // Its own turn comes once another leads.
            let moved = heir(o).map_or_else(
                || hold(Hold::NobodyToLead, Rule::LeaderStays),
                |to| step(Step::MoveLeader(to), Rule::LeaderStays),
            );
            held = held.or(moved);
        } else if keeps_quorum(o, m, rules) {
            return step(Step::Remove(m.member.id), Rule::GoneOrLeaving);
        } else {
            held = held.or(hold(Hold::QuorumNeeds(m.member.id), Rule::QuorumKept));
        }
    }
    held
}

/// Whether this ordinal is to leave: it is known not to be wanted, and its pod is terminating, gone, or asks for it.
fn is_surplus(o: &Observed, ordinal: Ordinal, rules: Rules) -> bool {
    let Some(pod) = o.pod(ordinal) else { return false };
    // A change of the values reaches each pod's file in its own time: whoever asks to leave has the newer one.
    let told_by_its_own_file =
        matches!(o.desired, crate::boot::Desired::Values(_)) && pod.request == Some(Request::Leave);
    let not_wanted = match o.desired.known() {
        Some(0) => !rules.on(Rule::PauseKeeps),
        Some(_) => o.wants(ordinal) == Some(false) || told_by_its_own_file,
        None => !rules.on(Rule::FreshDesired),
    };
    let gone = match &pod.pod {
        Known::Present(pod) => pod.terminating,
        Known::Absent => true,
        // Only without any host API does DNS have a say.
        Known::Unknown(_) => matches!(o.desired, crate::boot::Desired::Values(_)) && pod.dns.is_absent(),
    };
    not_wanted && (gone || pod.request == Some(Request::Leave) || !rules.on(Rule::GoneOrLeaving))
}

/// A pod with an empty volume whose peer URL is listed: that member has lost its data, and goes.
fn replaced(o: &Observed, rules: Rules) -> Pass {
    let lost = |m: &&MemberFact| {
        let pod = m.member.ordinal.and_then(|ordinal| o.pod(ordinal));
        pod.is_some_and(|pod| {
            pod.request == Some(Request::Join { replace: Some(m.member.id) })
                && pod.state == Known::Present(PeerState::Empty)
        })
    };
    let m = o.members.iter().filter(|m| m.member.id != o.leader).find(lost)?;
    if keeps_quorum(o, m, rules) {
        step(Step::Remove(m.member.id), Rule::ReplaceListed)
    } else {
        hold(Hold::QuorumNeeds(m.member.id), Rule::QuorumKept)
    }
}

fn stalled(o: &Observed, rules: Rules) -> Pass {
    let m = o.members.iter().find(|m| m.member.learner && m.stalled && m.member.id != o.leader)?;
    if rules.on(Rule::EvictStalled) { step(Step::Remove(m.member.id), Rule::EvictStalled) } else { None }
}

/// A learner that has caught up becomes a voter, while its pod is wanted and stays.
fn caught_up(o: &Observed, rules: Rules) -> Pass {
    let able = |m: &&MemberFact| m.member.learner && ((m.active && m.caught_up) || !rules.on(Rule::CaughtUpPromotes));
    let m = o.members.iter().find(able)?;
    let Some(ordinal) = m.member.ordinal else { return hold(Hold::Foreign(m.member.id), Rule::CaughtUpPromotes) };
    match o.wants(ordinal) {
        _ if !rules.on(Rule::NeverAddSurplus) => {}
        Some(true) => {}
        Some(false) => return hold(Hold::NotWanted(ordinal), Rule::NeverAddSurplus),
        None => return hold(Hold::DesiredUnknown(ordinal), Rule::NeverAddSurplus),
    }
    if rules.on(Rule::CaughtUpPromotes) && o.pod(ordinal).is_some_and(stopping) {
        return None;
    }
    let voters = 1 + o.members.iter().filter(|m| !m.member.learner).count();
    let active = 1 + o.members.iter().filter(|m| !m.member.learner && is_active(o, m)).count();
    if active > voters / 2 || !rules.on(Rule::QuorumKept) {
        step(Step::Promote(m.member.id), Rule::CaughtUpPromotes)
    } else {
        hold(Hold::QuorumNeeds(m.member.id), Rule::QuorumKept)
    }
}

/// The lowest pod that asks to be added, is wanted or comes back in its own place, and is in nobody else's.
fn joining(o: &Observed, rules: Rules) -> Pass {
    let joins = |pod: &&PodView| {
        matches!(pod.request, Some(Request::Join { .. }))
            && pod.state == Known::Present(PeerState::Empty)
            && !o.members.iter().any(|m| m.member.ordinal == Some(pod.ordinal))
    };
    let asking: BTreeSet<_> = o.pods.iter().filter(joins).map(|pod| pod.ordinal).collect();
    let refused = |ordinal: Ordinal| match o.wants(ordinal) {
        _ if !rules.on(Rule::NeverAddSurplus) => None,
        Some(true) => None,
        Some(false) => Some(Hold::NotWanted(ordinal)),
        None if o.replacing.contains(&ordinal) && rules.on(Rule::PlaceKept) => None,
        None => Some(Hold::DesiredUnknown(ordinal)),
    };
    let Some(ordinal) = asking.iter().copied().find(|ordinal| refused(*ordinal).is_none()) else {
        return hold(refused(*asking.first()?)?, Rule::NeverAddSurplus);
    };
    if rules.on(Rule::OneLearner) && o.members.iter().any(|m| m.member.learner) {
        return hold(Hold::AnotherLearner(ordinal), Rule::OneLearner);
    }
    step(Step::AddLearner(ordinal), Rule::AskLeader)
}

/// Leadership rests on the lowest caught-up voter that is wanted and stays.
fn leadership(o: &Observed, rules: Rules) -> Pass {
    if !o.quiet || !rules.on(Rule::LowestLeads) {
        return None;
    }
    let to = candidates(o).min_by_key(|m| m.member.ordinal)?;
    if to.member.id == o.leader { None } else { step(Step::MoveLeader(to.member.id), Rule::LowestLeads) }
}

/// Who leads after the leader: the lowest caught-up voter that is wanted and stays.
fn heir(o: &Observed) -> Option<MemberId> {
    let others = candidates(o).filter(|m| m.member.id != o.leader);
    others.min_by_key(|m| m.member.ordinal).map(|m| m.member.id)
}

fn candidates(o: &Observed) -> impl Iterator<Item = &MemberFact> {
    o.members.iter().filter(|m| {
        !m.member.learner
            && is_active(o, m)
            && (m.caught_up || m.member.id == o.leader)
            && m.member
                .ordinal
                .is_some_and(|ordinal| o.wants(ordinal) == Some(true) && !o.pod(ordinal).is_some_and(stopping))
    })
}

fn stopping(pod: &PodView) -> bool {
    matches!(pod.request, Some(Request::Stop | Request::Leave))
        || pod.pod.is_absent()
        || pod.pod.present().is_some_and(|pod| pod.terminating)
}

fn is_active(o: &Observed, m: &MemberFact) -> bool {
    m.active || m.member.id == o.leader
}

/// Whether the voters other than `gone` have a quorum among themselves; if `gone` is alive, one that has caught up, as
/// writes would stall until it has. A learner's removal changes no quorum.
///
/// While a live one is removed, a higher one that is not wanted either may stop: by the list that it has, the others are a
/// quorum without it ([`leave`]). So it is not counted, and goes first: one that leads hands that on before.
fn keeps_quorum(o: &Observed, gone: &MemberFact, rules: Rules) -> bool {
    let rest = || o.members.iter().filter(|m| !m.member.learner && m.member.id != gone.member.id);
    let unwanted = |m: &MemberFact| m.member.ordinal.is_some_and(|ordinal| o.wants(ordinal) == Some(false));
    // By the leader's values file all are wanted when a pod leaves by a newer one.
    let may_stop = |m: &MemberFact| m.member.ordinal > gone.member.ordinal && (unwanted(m) || !unwanted(gone));
    let up_to_date = |m: &MemberFact| m.caught_up || m.member.id == o.leader;
    let able = |m: &&MemberFact| is_active(o, m) && (!gone.active || (up_to_date(m) && !may_stop(m)));
    gone.member.learner || rest().filter(able).count() > rest().count() / 2 || !rules.on(Rule::QuorumKept)
}

#[cfg(test)]
mod tests;
