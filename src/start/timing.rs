//! The timing of an etcd that was started as the only member of its cluster, once others have joined.
//!
//! Alone it runs with an election timeout that among others would make it give leadership up whenever a disk elsewhere takes
//! its time ([`crate::etcd::launch`]). etcd takes another only at its start, so it is started again: with leadership elsewhere,
//! and once the members are as many as there are to be, so that the others go on without it.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use super::pod::{ETCD_DEADLINE, Pod};
use crate::boot::Member;
use crate::etcd::launch;
use crate::ids::MemberId;
use crate::peer::list_of;
use crate::supervise::Control;
use crate::supervise::spec::ChildSpec;

/// Between two looks: while it is alone or others are joining; and while leadership moves.
const AT_REST: Duration = Duration::from_secs(2);
const MOVING: Duration = Duration::from_millis(50);
/// A quiet moment is waited for so long: what is on its way to a leader that moves may wait for seconds, once; a leader that
/// keeps this timing gives leadership up again and again.
const QUIET_WITHIN: Duration = Duration::from_secs(20);

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimingStep {
    /// Not yet.
    Wait,
    /// Leadership, once nothing is on its way to the leader.
    WaitForQuiet,
    /// Leadership first.
    MoveLeader(MemberId),
    /// Start it with the timing of one among others.
    Restart,
}

/// Looks at the members, of which `own` was started alone. With two there is no quorum while one starts again, which
/// takes it a moment; a third that is still to join is waited for. `desired` is how many there are to be.
fn step(own: MemberId, leader: Option<MemberId>, members: &[Member], desired: u32) -> TimingStep {
    let others: Vec<_> = members.iter().filter(|m| m.id != own && !m.learner).collect();
    let joining = members.iter().any(|m| m.learner) || (others.len() < 2 && desired as usize > others.len() + 1);
    match (others.iter().min_by_key(|m| m.ordinal), leader) {
        (Some(other), Some(leader)) if !joining => {
            if leader == own {
                TimingStep::MoveLeader(other.id)
            } else {
                TimingStep::Restart
            }
        }
        _ => TimingStep::Wait,
    }
}

/// Starts etcd again with the timing of one among others, if `runs` is not and others have joined. `anew` makes the spec of
/// a restart. Never ends.
pub async fn follow(
    pod: &Pod,
    runs: bool,
    anew: impl Fn() -> anyhow::Result<Option<ChildSpec>>,
    control: &Control,
) -> Infallible {
    if !runs || pod.surveyor.is_none() {
        return std::future::pending().await;
    }
    let mut serving = pod.health.subscribe();
    let mut due: Option<Instant> = None;
    while serving.wait_for(|health| health.datastore_ready && !health.stopping).await.is_ok() {
        let patient = due.is_none_or(|since| since.elapsed() < QUIET_WITHIN);
        let wait = match look(pod, patient).await {
            Ok(TimingStep::Restart) => match anew() {
                // The list on the disk may be a moment behind.
                Ok(Some(spec)) if !launch::is_alone(&spec) => {
                    if control.replace(spec) {
                        tracing::info!("starting etcd with the timing of one among others");
                        break;
                    }
                    AT_REST
                }
                Ok(_) => AT_REST,
                Err(error) => {
                    tracing::warn!("etcd keeps the timing of one that is alone: {error:#}");
                    AT_REST
                }
            },
            Ok(TimingStep::MoveLeader(to)) => {
                let moved = async { anyhow::Ok(pod.etcd_here().await?.move_leader(to, ETCD_DEADLINE).await?) };
                match moved.await {
                    Ok(()) => MOVING,
                    Err(error) => {
                        tracing::debug!(%to, "leadership was not moved: {error:#}");
                        AT_REST
                    }
                }
            }
            Ok(TimingStep::Wait) => {
                due = None;
                AT_REST
            }
            Ok(TimingStep::WaitForQuiet) => {
                due.get_or_insert_with(Instant::now);
                AT_REST
            }
            Err(error) => {
                tracing::debug!("the members cannot be looked at: {error:#}");
                AT_REST
            }
        };
        tokio::time::sleep(wait).await;
    }
    std::future::pending().await
}

/// `patient`: leadership is moved in a quiet moment alone.
async fn look(pod: &Pod, patient: bool) -> anyhow::Result<TimingStep> {
    let mut etcd = pod.etcd_here().await?;
    let list = etcd.member_list(ETCD_DEADLINE).await?;
    if list.members.len() < 2 {
        return Ok(TimingStep::Wait);
    }
    let status = etcd.status(ETCD_DEADLINE).await?;
    let (members, desired) = (list_of(&pod.settings, &list).members, pod.now.borrow().etcd.replicas);
    let next = step(status.member, status.leader, &members, desired);
    let moves = matches!(next, TimingStep::MoveLeader(_));
    Ok(if moves && patient && !super::leader::quiet(&mut etcd, &status).await? {
        TimingStep::WaitForQuiet
    } else {
        next
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Ordinal;

    fn members(learners: &[bool]) -> Vec<Member> {
        let member = |(n, learner): (usize, &bool)| Member {
            id: MemberId(n as u64 + 1),
            ordinal: Some(Ordinal(n as u32)),
            learner: *learner,
        };
        learners.iter().enumerate().map(member).collect()
    }

    #[test]
    fn it_is_restarted_among_all_the_others_and_never_as_the_leader() {
        let (own, other) = (MemberId(1), MemberId(2));
        let (led, follows) = (Some(own), Some(other));
        let (wait, moves) = (TimingStep::Wait, TimingStep::MoveLeader(other));
        for (members, leader, desired, want) in [
            (members(&[false]), led, 1, wait),
            (members(&[false]), led, 3, wait),
            (members(&[false, true]), led, 2, wait),
            // With a third that comes the others are a quorum.
            (members(&[false, false]), led, 3, wait),
            (members(&[false, false, true]), led, 3, wait),
            (members(&[false, false, false]), led, 3, moves),
            (members(&[false, false, false]), follows, 3, TimingStep::Restart),
            (members(&[false, false, false]), None, 3, wait),
            (members(&[false, false, false]), led, 5, moves),
            (members(&[false, false]), led, 2, moves),
            (members(&[false, false]), follows, 2, TimingStep::Restart),
            // Scaled down meanwhile.
            (members(&[false, false]), led, 1, moves),
        ] {
            assert_eq!(step(own, leader, &members, desired), want, "{members:?} of {desired}, led by {leader:?}");
        }
    }
}
