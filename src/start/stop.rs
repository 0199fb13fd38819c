//! What a pod that was told to stop does between the API server's end and etcd's, and after it.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::boot::set_aside;
use super::pod::{ETCD_DEADLINE, Pod};
use crate::boot::Known;
use crate::ids::Ordinal;
use crate::membership::leave::{self, LeaveStep, Leaving};
use crate::membership::{MemberFact, Request};
use crate::peer::list_of;
use crate::rules::Rules;
use crate::supervise::Control;

/// Between two looks while something is waited for.
const AGAIN: Duration = Duration::from_millis(100);
/// A leader's pod that removes a member at all does so within this time.
const REFUSED: Duration = Duration::from_secs(1);

/// Waits for the stop, and for the API server's end; then leaves the membership or hands leadership on, as the rules
/// say, and lets the datastore be stopped. Never ends.
///
/// By when all is to have ended is noted in `ends_by`.
pub async fn departure(
    pod: &Pod,
    told: oneshot::Receiver<Instant>,
    control: &Control,
    ends_by: &Cell<Option<Instant>>,
) -> Infallible {
    if let Ok(by) = told.await {
        ends_by.set(Some(by));
        let (mut said, mut asked) = (None, None::<Instant>);
        loop {
            let refused = asked.is_some_and(|at| at.elapsed() >= REFUSED);
            let leaving = Leaving { refused, ..look(pod, by).await };
            let (step, rule) = leave::explained(&leaving, Rules::ALL);
            if said.as_ref() != Some(&step) {
                tracing::info!(?step, %rule, "stopping");
            }
            let again = match &step {
                LeaveStep::MoveLeader(to) => {
                    let moved = async { anyhow::Ok(pod.etcd_here().await?.move_leader(*to, ETCD_DEADLINE).await?) };
                    if let Err(error) = moved.await {
                        tracing::debug!(%to, "leadership was not moved: {error:#}");
                    }
                    true
                }
                LeaveStep::AskRemoval => {
                    asked.get_or_insert_with(Instant::now);
                    ask_removal(pod).await;
                    true
                }
                LeaveStep::Wait(_) => true,
                _ => false,
            };
            said = Some(step);
            if !again {
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
        control.departed();
    }
    std::future::pending().await
}

/// After etcd's end: what is left to be done on the volume.
pub async fn after_etcd(pod: &Pod, by: Instant) -> anyhow::Result<()> {
    if pod.surveyor.is_none() {
        return Ok(());
    }
    loop {
        let leaving = Leaving { etcd: false, ..look(pod, by).await };
        match (leave::leave(&leaving), pod.own.member()) {
            (LeaveStep::SetAside, Some((member, cluster))) => return set_aside(pod, member, cluster),
            (LeaveStep::AskRemoval, _) => ask_removal(pod).await,
            (LeaveStep::Wait(_), _) => {}
            _ => return Ok(()),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn ask_removal(pod: &Pod) {
    pod.own.ask(Some(Request::Leave));
    if let Some(surveyor) = &pod.surveyor {
        surveyor.wake(&pod.survey([]).await).await;
    }
}

async fn look(pod: &Pod, by: Instant) -> Leaving {
    let desired = pod.desired_afresh();
    let me = pod.own.member();
    let here = async {
        let mut etcd = pod.etcd_here().await?;
        let status = etcd.status(ETCD_DEADLINE).await?;
        let list = etcd.member_list(ETCD_DEADLINE).await;
        anyhow::Ok((status, list))
    };
    let here = here.await.ok();
    let survey = pod.survey([]).await;
    let leader = match here.as_ref().map(|(status, _)| status.leader) {
        Some(Some(leader)) => Known::Present(leader),
        Some(None) => Known::Absent,
        None => Known::default(),
    };
    // A member that was removed no longer has a list of its own: the survivors say so.
    let own_list = here.and_then(|(_, list)| list.ok()).map(|list| list_of(&pod.settings, &list));
    let others =
        survey.members.present().cloned().filter(|list| me.is_some_and(|(_, cluster)| list.cluster == cluster));
    let members = match others.or(own_list) {
        Some(list) => Known::Present(list),
        None => Known::default(),
    };
    let word = |ordinal: Ordinal| survey.words.get(&ordinal);
    let fact = |member: &crate::boot::Member| {
        let said = member.ordinal.and_then(word);
        let serves = said.is_some_and(|w| matches!(w.state, Some(crate::boot::PeerState::Serving { .. })));
        let mine = me.is_some_and(|(id, _)| id == member.id);
        // Whether another has caught up is not known here. To one that has not, etcd first sends what it lacks, and
        // gives up after an election timeout.
        MemberFact { member: member.clone(), active: mine || serves, caught_up: mine || serves, stalled: false }
    };
    let stopping = |member: &crate::boot::Member| member.ordinal.and_then(word).is_some_and(|w| w.request.is_some());
    Leaving {
        ordinal: pod.settings.pod.ordinal,
        seed: Ordinal(0),
        desired,
        host_configured: false,
        member: me.map(|(id, _)| id),
        apiserver: false,
        etcd: true,
        leader,
        stopping: members
            .present()
            .into_iter()
            .flat_map(|l| &l.members)
            .filter(|m| stopping(m))
            .map(|m| m.id)
            .collect(),
        members: match &members {
            Known::Present(list) => Known::Present(list.members.iter().map(fact).collect()),
            Known::Absent => Known::Absent,
            Known::Unknown(why) => Known::Unknown(why.clone()),
        },
        last: None,
        refused: false,
        noted: false,
        marker: Known::default(),
        left: by.saturating_duration_since(Instant::now()),
    }
}
