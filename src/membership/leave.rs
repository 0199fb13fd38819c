//! What a pod that was told to stop does next (rules 5.3). Called again after each step with what is known then.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::observed::MemberFact;
use crate::boot::{Desired, Known, LogPosition, MarkerSeen, MarkerWrite};
use crate::ids::{MemberId, Ordinal};
use crate::rules::{Rule, Rules};

/// What must be left of the grace for stopping etcd itself.
pub const FOR_ETCD: Duration = Duration::from_secs(2);
/// How long it is asked whether this pod is wanted: an API that answers late once must not cost the others their quorum, and one
/// that is away holds up no restart for longer.
pub const ASKS_FOR: Duration = Duration::from_secs(5);
/// What must be left of the grace meanwhile, to leave and to stop.
pub const TO_LEAVE: Duration = Duration::from_millis(3500);
/// For so long an etcd that served may answer nothing before a stop goes on without its word: who leads, and who is a member.
pub const ANSWERS_IN: Duration = Duration::from_secs(2);

/// How a stop's record in the marker has been answered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announcing {
    may_be_there: bool,
}

impl Announcing {
    /// A write was not answered: it may have been made.
    pub fn unanswered(&mut self) {
        self.may_be_there = true;
    }

    /// A write was denied: whether the note `stopped` is taken back, as nothing is in the marker that the next start would have
    /// to withdraw. A note that is not there while the record is lets that start go on beside those who count on its stop.
    pub fn denied(self) -> bool {
        !self.may_be_there
    }
}

/// What is known while stopping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaving {
    /// This pod.
    pub ordinal: Ordinal,
    /// The lowest ordinal of the StatefulSet.
    pub seed: Ordinal,
    /// Desired replicas, asked for after the signal.
    pub desired: Desired,
    /// For how long that has been asked.
    pub asked_for: Duration,
    /// For how long the etcd beside it, which served, has answered nothing. `None`: it answers, or did not serve.
    #[serde(default)]
    pub unanswered: Option<Duration>,
    /// Whether a host API is configured.
    pub host_configured: bool,
    /// This pod's member; `None`: it has no data dir.
    pub member: Option<MemberId>,
    /// Whether the API server runs.
    pub apiserver: bool,
    /// Whether etcd runs.
    pub etcd: bool,
    /// Who leads. Absent: nobody.
    pub leader: Known<MemberId>,
    /// A *linearizable* member list, with who is active and caught up as the leader sees it.
    pub members: Known<Vec<MemberFact>>,
    /// Those of them that are known to have been told to stop as well.
    pub stopping: Vec<MemberId>,
    /// The last entry of the WAL, once etcd is stopped.
    pub last: Option<LogPosition>,
    /// Whether its removal has been asked for for a while, in vain.
    pub refused: bool,
    /// Whether the note `stopped` is on the volume.
    pub noted: bool,
    /// The marker.
    pub marker: Known<MarkerSeen>,
    /// What is left of the grace.
    pub left: Duration,
}

/// The next step of a stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LeaveStep {
    /// End the API server: SIGTERM, after two to three seconds SIGKILL.
    StopApiServer,
    /// Move leadership to this member, and let writes settle. Asked of the leader, which this is.
    MoveLeader(MemberId),
    /// Ask the leader's pod to remove this member, again every few hundred milliseconds, and look again. Also with etcd
    /// stopped, until the grace is nearly spent.
    AskRemoval,
    /// Look again in a moment, etcd running on.
    Wait(LeaveWait),
    /// End etcd: SIGTERM, and SIGKILL before the grace ends.
    StopEtcd,
    /// Note `setAside`, then rename the data dir, both durable.
    SetAside,
    /// Write the note `stopped`, durable: etcd does not start again before the marker has been written.
    NoteStopped,
    /// Write the marker; if it fails for its version, look again.
    Announce(MarkerWrite),
    /// Done.
    Exit,
}

/// What a stopping pod waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LeaveWait {
    /// For an answer on whether this pod is wanted.
    Desired,
    /// For an answer of the etcd beside it, which a busy machine may keep waiting.
    Answer,
    /// For a quorum that could remove it.
    Quorum,
    /// For another member to lead.
    Heir,
    /// For the pods that are no longer wanted to have left.
    Surplus,
    /// For the other pods to have stopped: the seed goes last.
    Others,
    /// For the marker to be readable, in which the last entry is to be noted.
    Marker,
}

/// The next step.
pub fn leave(leaving: &Leaving) -> LeaveStep {
    explained(leaving, Rules::ALL).0
}

/// The next step, and the rule.
pub fn explained(l: &Leaving, rules: Rules) -> (LeaveStep, Rule) {
    let Some(me) = l.member else {
        let step = if l.apiserver { LeaveStep::StopApiServer } else { LeaveStep::Exit };
        return (step, Rule::StopOnly);
    };
    if l.apiserver {
        return (LeaveStep::StopApiServer, Rule::StopOnly);
    }
    let hurry = l.left <= FOR_ETCD;
    let unknown = matches!(l.desired, Desired::Unknown(_)) && l.host_configured && l.etcd;
    if unknown && l.asked_for < ASKS_FOR && l.left > TO_LEAVE {
        return (LeaveStep::Wait(LeaveWait::Desired), Rule::StopOnly);
    }
    if l.etcd && l.unanswered.is_some_and(|time| time < ANSWERS_IN) && l.left > TO_LEAVE {
        return (LeaveStep::Wait(LeaveWait::Answer), Rule::StopOnly);
    }
    let wanted = l.desired.wants(l.seed, l.ordinal);
    match l.desired.known() {
        Some(0) if rules.on(Rule::PauseKeeps) => pausing(l, me, hurry, rules),
        Some(_) if wanted == Some(false) && rules.on(Rule::LeaveFirst) => leaving(l, me, hurry, rules),
        Some(_) if wanted == Some(true) && !rules.on(Rule::StopOnly) => leaving(l, me, hurry, rules),
        _ => (stopping(l, me, hurry, rules), Rule::StopOnly),
    }
}

/// No longer wanted: out of the membership, then the data dir out of the way.
fn leaving(l: &Leaving, me: MemberId, hurry: bool, rules: Rules) -> (LeaveStep, Rule) {
    let listed = l.members.present().map(|members| members.iter().any(|m| m.member.id == me));
    let step = match (listed, l.etcd) {
        (Some(false), true) => LeaveStep::StopEtcd,
        (Some(false), false) => LeaveStep::SetAside,
        // What could not be done in time, the boot decision does when the pod comes back.
        (_, true) if hurry => LeaveStep::StopEtcd,
        (_, false) if hurry => LeaveStep::Exit,
        (None, _) => LeaveStep::Wait(LeaveWait::Quorum),
        (Some(true), false) => LeaveStep::AskRemoval,
        (Some(true), true) if l.leader == Known::Present(me) => match heir(l, me) {
            Some(to) => LeaveStep::MoveLeader(to),
            None => LeaveStep::Wait(LeaveWait::Heir),
        },
        (Some(true), true) if l.refused && (dispensable(l, me) || !rules.on(Rule::StopsIfSpared)) => {
            LeaveStep::StopEtcd
        }
        (Some(true), true) => LeaveStep::AskRemoval,
    };
    (step, Rule::LeaveFirst)
}

/// Whether this member may stop before it is removed. etcd lets none go that runs, for five seconds after any of them has
/// connected, but lets one go that is down; so the highest one that is to leave may be down, if the others are a quorum
/// without it. It alone: two that go down together may be one too many.
fn dispensable(l: &Leaving, me: MemberId) -> bool {
    let Some(members) = l.members.present() else { return false };
    let voters = || members.iter().filter(|m| !m.member.learner);
    let others = voters().filter(|m| m.member.id != me && m.active).count();
    let above = |m: &MemberFact| {
        let above = m.member.ordinal.filter(|ordinal| *ordinal > l.ordinal);
        above.is_some_and(|ordinal| l.desired.wants(l.seed, ordinal) == Some(false))
    };
    others > voters().count() / 2 && !members.iter().any(above)
}

/// Zero replicas: nobody leaves; each notes its last entry, and the seed stops last where it can.
fn pausing(l: &Leaving, me: MemberId, hurry: bool, rules: Rules) -> (LeaveStep, Rule) {
    let others_up = l.members.present().is_some_and(|members| members.iter().any(|m| m.active && m.member.id != me));
    let step = if l.etcd {
        match () {
            () if hurry => LeaveStep::StopEtcd,
            () if l.ordinal == l.seed && others_up && rules.on(Rule::SurplusFirst) => {
                LeaveStep::Wait(LeaveWait::Others)
            }
            () if l.leader == Known::Present(me) => {
                last_to_stop(l, me).map_or(LeaveStep::StopEtcd, LeaveStep::MoveLeader)
            }
            () => LeaveStep::StopEtcd,
        }
    } else {
        match (l.last, &l.marker) {
            // Noted while the marker cannot be read, it would have to be withdrawn from one that perhaps nobody can read at
            // the next start either.
            (Some(_), Known::Present(_)) if l.host_configured && !l.noted => LeaveStep::NoteStopped,
            (Some(_), Known::Unknown(_)) if l.host_configured && !hurry => LeaveStep::Wait(LeaveWait::Marker),
            (Some(last), Known::Present(seen)) if !announced(seen, me, last) => {
                LeaveStep::Announce(seen.stopping(me, last))
            }
            _ => LeaveStep::Exit,
        }
    };
    (step, Rule::PauseKeeps)
}

/// Still wanted, or nobody knows: a stop is only a stop.
fn stopping(l: &Leaving, me: MemberId, hurry: bool, rules: Rules) -> LeaveStep {
    if !l.etcd {
        return LeaveStep::Exit;
    }
    if hurry {
        return LeaveStep::StopEtcd;
    }
    let not_wanted = |m: &MemberFact| {
        let ordinal = m.member.ordinal;
        !m.member.learner && ordinal.is_some_and(|ordinal| l.desired.wants(l.seed, ordinal) == Some(false))
    };
    if l.members.present().is_some_and(|members| members.iter().any(not_wanted)) && rules.on(Rule::SurplusFirst) {
        return LeaveStep::Wait(LeaveWait::Surplus);
    }
    if l.leader == Known::Present(me)
        && let Some(to) = heir(l, me)
    {
        return LeaveStep::MoveLeader(to);
    }
    LeaveStep::StopEtcd
}

/// The lowest caught-up voter that is wanted and stays. With desired unknown nobody is known not to be wanted.
fn heir(l: &Leaving, me: MemberId) -> Option<MemberId> {
    let able = |m: &&MemberFact| {
        !m.member.learner
            && m.active
            && m.caught_up
            && m.member.id != me
            && !l.stopping.contains(&m.member.id)
            && m.member.ordinal.is_some_and(|ordinal| l.desired.wants(l.seed, ordinal) != Some(false))
    };
    let able = l.members.present()?.iter().filter(able);
    able.min_by_key(|m| m.member.ordinal).map(|m| m.member.id)
}

/// The lowest caught-up voter that still runs: at zero replicas all of them are about to stop.
fn last_to_stop(l: &Leaving, me: MemberId) -> Option<MemberId> {
    let able = |m: &&MemberFact| !m.member.learner && m.active && m.caught_up && m.member.id != me;
    let able = l.members.present()?.iter().filter(able);
    able.min_by_key(|m| m.member.ordinal).map(|m| m.member.id)
}

fn announced(seen: &MarkerSeen, me: MemberId, last: LogPosition) -> bool {
    seen.marker.stopped.iter().any(|stop| stop.member == me && stop.last == last)
}
