//! etcd by changed settings, one pod after the other: a changed values file reaches all of them at about the same time, and
//! members that are started again together are no quorum.
//!
//! A pod says that it is due, and waits a moment, so that of two that are due at once each knows of the other; the highest
//! goes first, as a StatefulSet is rolled. It goes while the others are a quorum without it, and never as the leader.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::boot::SAY_EVERY;
use super::leader::{quiet, well};
use super::pod::{ETCD_DEADLINE, Pod};
use super::timing::moved;
use crate::boot::{Desired, Member};
use crate::etcd::launch;
use crate::ids::{MemberId, Ordinal};
use crate::peer::list_of;
use crate::settings::Settings;
use crate::settings::change::{self, Effect};
use crate::supervise::Control;
use crate::supervise::spec::ChildSpec;

/// Between two looks while it is not this pod's turn, at first and at most.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MOST: Duration = Duration::from_secs(5);
/// So long a pod has said that it is due before it goes.
const ANNOUNCED: Duration = Duration::from_secs(2);
/// A quiet moment for leadership to move in is waited for so long.
const QUIET_WITHIN: Duration = Duration::from_secs(20);
/// From asking for a restart until etcd does not serve any more.
const STOPS_WITHIN: Duration = Duration::from_secs(15);

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It is another pod's turn, or the others cannot go on without this one.
    Wait,
    /// Leadership, once nothing is on its way to the leader.
    WaitForQuiet,
    /// Leadership first.
    MoveLeader(MemberId),
    /// Start etcd again.
    Go,
}

/// What whose turn it is rests on.
struct Seen<'a> {
    /// This pod's member.
    own: MemberId,
    /// Who leads.
    leader: Option<MemberId>,
    /// The members.
    members: &'a [Member],
    /// Those of the others that answer and have caught up.
    well: BTreeSet<MemberId>,
    /// The other pods that are due too.
    due: BTreeSet<Ordinal>,
    /// The lowest ordinal of the StatefulSet.
    seed: Ordinal,
    /// Desired replicas.
    desired: Desired,
    /// Whether any pod asks to be added, or was told to stop.
    asked: bool,
}

/// Whose turn it is.
fn turn(seen: &Seen<'_>) -> Turn {
    let Seen { own, leader, members, well, due, .. } = seen;
    let Some(me) = members.iter().find(|m| m.id == *own) else { return Turn::Wait };
    // Who comes, leaves, or is to, needs the others as they are.
    let unwanted = |ordinal| seen.desired.wants(seen.seed, ordinal) == Some(false);
    if seen.asked || members.iter().filter_map(|member| member.ordinal).any(unwanted) {
        return Turn::Wait;
    }
    let others: Vec<_> = members.iter().filter(|m| m.id != *own && !m.learner).collect();
    if me.learner || others.is_empty() {
        return Turn::Go;
    }
    let voters = others.len() + 1;
    // Of two, neither is a quorum for that moment, whatever is done.
    let needed = if voters == 2 { 1 } else { voters / 2 + 1 };
    let able: Vec<_> = others.iter().filter(|m| well.contains(&m.id)).collect();
    let higher = |ordinal: &Ordinal| me.ordinal.is_some_and(|mine| *ordinal > mine);
    if able.len() < needed || due.iter().any(higher) {
        return Turn::Wait;
    }
    match (leader, able.iter().min_by_key(|m| m.ordinal)) {
        (Some(leader), Some(heir)) if leader == own => Turn::MoveLeader(heir.id),
        (Some(_), _) => Turn::Go,
        (None, _) => Turn::Wait,
    }
}

/// Runs etcd by the new settings whenever they ask for another command line, in its turn. `started_by`: what it was started by;
/// `spec` makes that of a restart; `alone` is told what it is started by ([`super::timing`]). Never ends, and holds the receiver, which is what keeps the values file watched.
pub async fn follow(
    pod: &Pod,
    started_by: &Settings,
    alone: &watch::Sender<bool>,
    spec: impl Fn(&Settings) -> anyhow::Result<Option<ChildSpec>>,
    control: &Control,
) -> Infallible {
    let (mut changed, mut serving) = (pod.now.clone(), pod.health.subscribe());
    let mut runs_by = started_by.clone();
    let (mut since, mut said, mut moves): (Option<Instant>, Option<Instant>, Option<Instant>) = (None, None, None);
    let mut again = AGAIN;
    // The command line of a restart would not form the cluster that a first start is about to form.
    while serving.wait_for(|health| health.datastore_ready && !health.stopping).await.is_ok() {
        let new = changed.borrow_and_update().clone();
        let due = change::between(&runs_by, &new).iter().any(|change| change.effect == Effect::EtcdRestart);
        pod.own.due(due);
        if !due {
            (since, moves, again) = (None, None, AGAIN);
            if changed.changed().await.is_err() {
                break;
            }
            continue;
        }
        let waits = since.get_or_insert_with(Instant::now).elapsed();
        let patient = moves.is_none_or(|since| since.elapsed() < QUIET_WITHIN);
        let next = Box::pin(look(pod, waits, patient)).await.unwrap_or_else(|error| {
            tracing::debug!("whose turn it is cannot be seen: {error:#}");
            Turn::Wait
        });
        let pause = match next {
            Turn::Wait => {
                if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) && waits >= SAY_EVERY {
                    let remedy = "bring the others up: etcd is started again once they are a quorum without this one";
                    tracing::warn!(remedy, "changed settings of etcd do not act yet");
                    said = Some(Instant::now());
                }
                again = (again * 3 / 2).min(AGAIN_MOST);
                again
            }
            Turn::WaitForQuiet => {
                moves.get_or_insert_with(Instant::now);
                AGAIN
            }
            Turn::MoveLeader(to) => moved(pod, to).await,
            Turn::Go => {
                let spec = spec(&new).unwrap_or_else(|error| {
                    tracing::error!("{error:#}; etcd runs on by the old settings");
                    None
                });
                let is_alone = spec.as_ref().is_some_and(|spec| launch::chosen_alone(spec, &new));
                match spec.map(|spec| control.replace(spec)) {
                    Some(true) => {
                        alone.send_replace(is_alone);
                        let stopped = serving.wait_for(|health| !health.datastore_ready);
                        let _ = tokio::time::timeout(STOPS_WITHIN, stopped).await;
                        runs_by = new;
                    }
                    Some(false) => tracing::warn!("the supervisor does not keep up: asking it again"),
                    None => runs_by = new,
                }
                AGAIN
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = changed.changed() => {}
        }
    }
    std::future::pending().await
}

/// `waits`: for how long this pod has said that it is due; `patient`: leadership is moved in a quiet moment alone.
async fn look(pod: &Pod, waits: Duration, patient: bool) -> anyhow::Result<Turn> {
    if pod.surveyor.is_none() {
        return Ok(Turn::Go);
    }
    let mut etcd = pod.etcd_here().await?;
    let list = etcd.member_list(ETCD_DEADLINE).await?;
    if list.members.len() > 1 && waits < ANNOUNCED {
        return Ok(Turn::Wait);
    }
    let status = etcd.status(ETCD_DEADLINE).await?;
    let survey = pod.survey([]).await;
    let well = well(pod, &list, &status, &survey).await;
    let seen = Seen {
        own: status.member,
        leader: status.leader,
        members: &list_of(&pod.settings, &list).members,
        well,
        due: survey.words.iter().filter(|(_, word)| word.restarts).map(|(ordinal, _)| *ordinal).collect(),
        seed: pod.seed(),
        desired: Desired::Values(pod.now.borrow().etcd.replicas),
        asked: survey.words.values().any(|word| word.request.is_some()),
    };
    let next = turn(&seen);
    let loud = matches!(next, Turn::MoveLeader(_)) && patient && !quiet(&mut etcd, &status).await?;
    Ok(if loud { Turn::WaitForQuiet } else { next })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(count: u64) -> Vec<Member> {
        let voter = |n| Member { id: MemberId(n + 1), ordinal: Some(Ordinal(n as u32)), learner: false };
        (0..count).map(voter).collect()
    }

    fn seen<'a>(own: u64, leader: u64, members: &'a [Member], down: &[u64], due: &[u32]) -> Seen<'a> {
        Seen {
            own: MemberId(own),
            leader: Some(MemberId(leader)),
            members,
            well: members.iter().map(|m| m.id).filter(|id| !down.contains(&id.0)).collect(),
            due: due.iter().copied().map(Ordinal).collect(),
            seed: Ordinal(0),
            desired: Desired::Values(5),
            asked: false,
        }
    }

    #[test]
    fn nobody_is_started_again_while_the_members_change() {
        let three = voters(3);
        for (own, leader, turns) in [(3, 1, Turn::Go), (1, 1, Turn::MoveLeader(MemberId(2)))] {
            let with = |desired, asked| turn(&Seen { desired, asked, ..seen(own, leader, &three, &[], &[]) });
            assert_eq!(with(Desired::Values(3), false), turns);
            assert_eq!(with(Desired::Values(3), true), Turn::Wait);
            assert_eq!(with(Desired::Values(2), false), Turn::Wait);
            assert_eq!(with(Desired::Values(0), false), Turn::Wait);
        }
    }

    #[test]
    fn one_after_the_other_the_highest_first_and_never_as_the_leader() {
        let of = |own: u64, leader: u64, members: &[Member], down: &[u64], due: &[u32]| {
            turn(&seen(own, leader, members, down, due))
        };
        let (go, wait, moves) = (Turn::Go, Turn::Wait, |to| Turn::MoveLeader(MemberId(to)));
        let three = voters(3);
        // All three are due.
        assert_eq!(of(3, 1, &three, &[], &[0, 1]), go);
        assert_eq!(of(2, 1, &three, &[], &[0, 2]), wait);
        assert_eq!(of(2, 1, &three, &[], &[0]), go);
        assert_eq!(of(1, 1, &three, &[], &[]), moves(2));
        assert_eq!(of(1, 2, &three, &[], &[]), go);
        // One that starts again, or is down, is one too many of three, and not of five.
        assert_eq!(of(2, 1, &three, &[3], &[0]), wait);
        assert_eq!(of(1, 1, &three, &[2], &[]), wait);
        let five = voters(5);
        assert_eq!((of(2, 1, &five, &[5], &[]), of(2, 1, &five, &[4, 5], &[])), (go, wait));
        // Of two there is none for a moment; not while the other is away.
        let two = voters(2);
        assert_eq!((of(2, 1, &two, &[], &[0]), of(1, 1, &two, &[], &[]), of(1, 2, &two, &[], &[])), (go, moves(2), go));
        assert_eq!(of(2, 1, &two, &[1], &[]), wait);
        assert_eq!(of(1, 1, &voters(1), &[], &[]), go);
        // Nobody counts on a learner, and it is in nobody's way.
        let learner = [voters(2), vec![Member { learner: true, ..five[2].clone() }]].concat();
        assert_eq!((of(3, 1, &learner, &[1], &[]), of(2, 1, &learner, &[1], &[])), (go, wait));
        assert_eq!(turn(&Seen { leader: None, ..seen(2, 1, &three, &[], &[]) }), wait);
        assert_eq!(of(9, 1, &three, &[], &[]), wait);
    }
}
