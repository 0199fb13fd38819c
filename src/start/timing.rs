//! The timing of an etcd that was started as the only member of its cluster, once others have joined.
//!
//! Alone it runs with an election timeout that among others would make it give leadership up whenever a disk elsewhere takes
//! its time ([`crate::etcd::launch`]). etcd takes another only at its start, so it is started again: with leadership elsewhere,
//! and once the members are as many as there are to be, or have been waited for, so that the others go on without it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::leader::{quiet, well};
use super::pod::{ETCD_DEADLINE, Pod};
use crate::boot::Member;
use crate::etcd::launch;
use crate::ids::{MemberId, Ordinal};
use crate::peer::list_of;
use crate::supervise::Control;
use crate::supervise::spec::ChildSpec;

/// Between two looks: while it is alone or others are joining; and while leadership moves.
const AT_REST: Duration = Duration::from_secs(2);
const MOVING: Duration = Duration::from_millis(50);
/// A quiet moment is waited for so long: what is on its way to a leader that moves may wait for seconds, once; a leader that
/// keeps this timing gives leadership up again and again.
const QUIET_WITHIN: Duration = Duration::from_secs(20);

/// A pod that is wanted and has not become a member is waited for so long after the last change of the members.
const AWAITED: Duration = Duration::from_secs(120);

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

/// Looks at the members, of which `own` was started alone: nothing is done before they are those that are `wanted`, all of them
/// voters that are up, so that no other change is on its way and, but for two, the others are a quorum while one starts again.
/// With two there is none for that moment. `awaited`: those that are wanted and not there may still come; one that never does must
/// not keep the others to this timing. `well`: those others that answer and have caught up.
fn step(
    own: MemberId,
    leader: Option<MemberId>,
    members: &[Member],
    (wanted, awaited): (&[Ordinal], bool),
    well: &BTreeSet<MemberId>,
) -> TimingStep {
    let others: Vec<_> = members.iter().filter(|m| m.id != own).collect();
    let there: BTreeSet<_> = members.iter().filter_map(|m| m.ordinal).collect();
    let whole = members.len() == wanted.len() && wanted.iter().all(|ordinal| there.contains(ordinal));
    let stay = members.iter().all(|m| m.ordinal.is_some_and(|ordinal| wanted.contains(&ordinal)));
    let whole = whole || stay && !awaited;
    let settled = whole && members.iter().all(|m| !m.learner) && others.iter().all(|m| well.contains(&m.id));
    match (others.iter().min_by_key(|m| m.ordinal), leader) {
        (Some(other), Some(leader)) if settled && leader == own => TimingStep::MoveLeader(other.id),
        (Some(_), Some(_)) if settled => TimingStep::Restart,
        _ => TimingStep::Wait,
    }
}

/// Starts etcd again with the timing of one among others once others have joined, whenever it runs `alone`, which is kept up to
/// date by whoever starts it anew. `anew` makes the spec of a restart. Never ends.
pub async fn follow(
    pod: &Pod,
    alone: &watch::Sender<bool>,
    anew: impl Fn() -> anyhow::Result<Option<ChildSpec>>,
    control: &Control,
) -> Infallible {
    let mut runs = alone.subscribe();
    while pod.surveyor.is_some() && runs.wait_for(|alone| *alone).await.is_ok() {
        restarted(pod, alone, &anew, control).await;
    }
    std::future::pending().await
}

/// Since when the members are what they are.
#[derive(Default)]
struct Unchanged(Option<(Vec<Member>, Instant)>);

impl Unchanged {
    /// For how long these have been the members, each a learner or a voter as now.
    fn seen(&mut self, members: &[Member]) -> Duration {
        match &self.0 {
            Some((before, since)) if before == members => since.elapsed(),
            _ => {
                self.0 = Some((members.to_vec(), Instant::now()));
                Duration::ZERO
            }
        }
    }
}

/// Until it runs alone no more.
async fn restarted(
    pod: &Pod,
    alone: &watch::Sender<bool>,
    anew: &impl Fn() -> anyhow::Result<Option<ChildSpec>>,
    control: &Control,
) {
    let mut serving = pod.health.subscribe();
    let mut due: Option<Instant> = None;
    let mut unchanged = Unchanged::default();
    while serving.wait_for(|health| health.datastore_ready && !health.stopping).await.is_ok() && *alone.borrow() {
        let patient = due.is_none_or(|since| since.elapsed() < QUIET_WITHIN);
        let wait = match Box::pin(look(pod, patient, &mut unchanged)).await {
            Ok(next @ (TimingStep::MoveLeader(_) | TimingStep::Restart)) => match (among_others(anew), next) {
                (None, _) => AT_REST,
                (Some(_), TimingStep::MoveLeader(to)) => moved(pod, to).await,
                (Some(spec), _) => {
                    if control.replace(spec) {
                        tracing::info!("starting etcd with the timing of one among others");
                        alone.send_replace(false);
                        return;
                    }
                    AT_REST
                }
            },
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
}

/// The spec with the timing of one among others. `None`: it would be started as it runs, as the list on the disk may be a moment
/// behind, and arguments of the user's own may say the same.
fn among_others(anew: &impl Fn() -> anyhow::Result<Option<ChildSpec>>) -> Option<ChildSpec> {
    match anew() {
        Ok(spec) => spec.filter(|spec| !launch::is_alone(spec)),
        Err(error) => {
            tracing::warn!("etcd keeps the timing of one that is alone: {error:#}");
            None
        }
    }
}

/// Moves leadership; how long until the next look.
pub(super) async fn moved(pod: &Pod, to: MemberId) -> Duration {
    let moved = async { anyhow::Ok(pod.etcd_here().await?.move_leader(to, ETCD_DEADLINE).await?) };
    match moved.await {
        Ok(()) => MOVING,
        Err(error) => {
            tracing::debug!(%to, "leadership was not moved: {error:#}");
            AT_REST
        }
    }
}

/// `patient`: leadership is moved in a quiet moment alone.
///
/// `unchanged`: what was seen before.
async fn look(pod: &Pod, patient: bool, unchanged: &mut Unchanged) -> anyhow::Result<TimingStep> {
    let mut etcd = pod.etcd_here().await?;
    let list = etcd.member_list(ETCD_DEADLINE).await?;
    if list.members.len() < 2 {
        return Ok(TimingStep::Wait);
    }
    let status = etcd.status(ETCD_DEADLINE).await?;
    let (members, replicas) = (list_of(&pod.settings, &list).members, pod.now.borrow().etcd.replicas);
    let seed = pod.seed().0;
    let wanted: Vec<_> = (seed..seed.saturating_add(replicas)).map(Ordinal).collect();
    let wanted = (&wanted[..], unchanged.seen(&members) < AWAITED);
    let all = members.iter().map(|member| member.id).collect();
    if step(status.member, status.leader, &members, wanted, &all) == TimingStep::Wait {
        // Nobody need be asked.
        return Ok(TimingStep::Wait);
    }
    let survey = pod.survey([]).await;
    // That may have taken a while.
    let list = etcd.member_list(ETCD_DEADLINE).await?;
    let status = etcd.status(ETCD_DEADLINE).await?;
    let members = list_of(&pod.settings, &list).members;
    let wanted = (wanted.0, unchanged.seen(&members) < AWAITED);
    let well = well(pod, &list, &status, &survey).await;
    let next = step(status.member, status.leader, &members, wanted, &well);
    let moves = matches!(next, TimingStep::MoveLeader(_));
    let loud = moves && patient && !quiet(&mut etcd, &status).await?;
    Ok(if loud { TimingStep::WaitForQuiet } else { next })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(learners: &[bool]) -> Vec<Member> {
        let member = |(n, learner): (usize, &bool)| Member {
            id: MemberId(n as u64 + 1),
            ordinal: Some(Ordinal(n as u32)),
            learner: *learner,
        };
        learners.iter().enumerate().map(member).collect()
    }

    #[test]
    fn each_change_of_the_members_may_be_followed_by_another() {
        let mut unchanged = Unchanged::default();
        assert_eq!(unchanged.seen(&members(&[false, true])), Duration::ZERO);
        std::thread::sleep(Duration::from_millis(2));
        assert!(unchanged.seen(&members(&[false, true])) > Duration::ZERO);
        assert_eq!(unchanged.seen(&members(&[false, false])), Duration::ZERO, "promoted");
    }

    #[test]
    fn it_is_restarted_among_all_the_others_and_never_as_the_leader() {
        let (own, other) = (MemberId(1), MemberId(2));
        let (led, follows) = (Some(own), Some(other));
        let (wait, moves, restart) = (TimingStep::Wait, TimingStep::MoveLeader(other), TimingStep::Restart);
        for (members, leader, replicas, down, want) in [
            (members(&[false]), led, 1, None, wait),
            (members(&[false]), led, 3, None, wait),
            (members(&[false, true]), led, 2, None, wait),
            // A third is to come.
            (members(&[false, false]), led, 3, None, wait),
            (members(&[false, false, true]), led, 3, None, wait),
            (members(&[false, false, false]), led, 5, None, wait),
            (members(&[false, false, false]), led, 3, None, moves),
            (members(&[false, false, false]), follows, 3, None, restart),
            (members(&[false, false, false]), None, 3, None, wait),
            // The others are no quorum, or not all of one.
            (members(&[false, false, false]), led, 3, Some(3), wait),
            (members(&[false, false, false]), follows, 3, Some(3), wait),
            (members(&[false, false]), led, 2, None, moves),
            (members(&[false, false]), follows, 2, None, restart),
            (members(&[false, false]), follows, 2, Some(2), wait),
            // Some are to leave, or nobody is to stay.
            (members(&[false, false]), led, 1, None, wait),
            (members(&[false, false, false]), follows, 1, None, wait),
            (members(&[false, false, false]), led, 0, None, wait),
        ] {
            let wanted: Vec<_> = (0..replicas).map(Ordinal).collect();
            let well = (2..=5).filter(|id| Some(*id) != down).map(MemberId).collect();
            let step = step(own, leader, &members, (&wanted, true), &well);
            assert_eq!(step, want, "{members:?} of {replicas}, led by {leader:?}, down: {down:?}");
        }
        // One of three has not come for long, is there and does not vote, or one of two is to leave.
        let (wanted, well) = ([0, 1, 2].map(Ordinal), [2, 3].map(MemberId).into());
        let step = |members: &[Member], wanted| step(own, led, members, (wanted, false), &well);
        assert_eq!(step(&members(&[false, false]), &wanted), moves);
        assert_eq!(step(&members(&[false, false, true]), &wanted), wait);
        assert_eq!(step(&members(&[false, false]), &wanted[..1]), wait);
    }
}
