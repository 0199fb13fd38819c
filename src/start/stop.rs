//! What a pod that was told to stop does between the API server's end and etcd's, and after it.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::boot::set_aside;
use super::pod::{ETCD_DEADLINE, Pod};
use crate::boot::{Desired, Known, LogPosition};
use crate::crash_point;
use crate::datadir::inspect::{InspectedDatadir, inspect};
use crate::datadir::log_tail::log_tail;
use crate::host::marker::Written;
use crate::ids::Ordinal;
use crate::membership::leave::{self, Announcing, LeaveStep, LeaveWait, Leaving};
use crate::membership::{MemberFact, Request};
use crate::observe::{self, notes};
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
        crash_point!("stop-told");
        let begun = Instant::now();
        let (mut said, mut asked, mut desired) = (None, None::<Instant>, None);
        let (served, mut silent) = (pod.health.borrow().datastore_ready, None::<Instant>);
        loop {
            let refused = asked.is_some_and(|at| at.elapsed() >= REFUSED);
            let first = said.is_none();
            let looked = look(pod, desired, first, by).await;
            let asked_for = if looked.asked_for.is_zero() { begun.elapsed() } else { looked.asked_for };
            silent = (served && looked.leader.unknown().is_some()).then(|| silent.unwrap_or_else(Instant::now));
            let unanswered = silent.map(|since| since.elapsed());
            let leaving = Leaving { refused, asked_for, unanswered, ..looked };
            let (step, rule) = leave::explained(&leaving, Rules::ALL);
            // Once it is no more waited for it is not asked for either: the grace is short.
            let unknown = matches!(leaving.desired, Desired::Unknown(_)) && step != LeaveStep::Wait(LeaveWait::Desired);
            desired = unknown.then_some(leaving.desired);
            if said.as_ref() != Some(&step) {
                tracing::info!(?step, %rule, "stopping");
            }
            let again = match &step {
                LeaveStep::MoveLeader(to) => {
                    let moved = async { anyhow::Ok(pod.etcd_here().await?.move_leader(*to, ETCD_DEADLINE).await?) };
                    if let Err(error) = moved.await {
                        tracing::debug!(%to, "leadership was not moved: {error:#}");
                    } else {
                        crash_point!("stop-led-on");
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

/// After etcd's end: what is left to be done on the volume, and at zero replicas in the marker.
pub async fn after_etcd(pod: &Pod, by: Instant) -> anyhow::Result<()> {
    if pod.surveyor.is_none() {
        return Ok(());
    }
    crash_point!("stop-etcd-ended");
    let ended = async {
        let (mut desired, mut announcing) = (None, Announcing::default());
        loop {
            let mut leaving = Leaving { etcd: false, ..look(pod, desired, true, by).await };
            desired = matches!(leaving.desired, Desired::Unknown(_)).then(|| leaving.desired.clone());
            if leaving.desired.known() == Some(0)
                && let Some(host) = &pod.host
            {
                leaving.last = last_entry(pod);
                leaving.noted = notes::load(&pod.settings.data_dir)?.stopped;
                leaving.marker = host.marker().await;
            }
            let (step, rule) = leave::explained(&leaving, Rules::ALL);
            tracing::debug!(?step, %rule, "etcd has stopped");
            match (step, pod.own.member(), &pod.host) {
                (LeaveStep::SetAside, Some((member, cluster)), _) => return set_aside(pod, member, cluster),
                (LeaveStep::AskRemoval, ..) => ask_removal(pod).await,
                (LeaveStep::Wait(_), ..) => {}
                (LeaveStep::NoteStopped, ..) => {
                    notes::change(&pod.disk, &pod.settings.data_dir, |notes| notes.stopped = true)?;
                    crash_point!("stop-noted");
                    continue;
                }
                (LeaveStep::Announce(write), _, Some(host)) => {
                    crash_point!("stop-before-mark");
                    match host.write_marker(&write).await {
                        Written::Done => {
                            crash_point!("stop-marked");
                            tracing::info!("the last entry was noted in the marker");
                            return Ok(());
                        }
                        Written::Outdated => continue,
                        Written::Denied(why) => {
                            tracing::warn!("the last entry cannot be noted in the marker: {why}");
                            if announcing.denied() {
                                notes::change(&pod.disk, &pod.settings.data_dir, |notes| notes.stopped = false)?;
                            }
                            return Ok(());
                        }
                        // The next look shows whether it was made.
                        Written::Unknown(why) => {
                            announcing.unanswered();
                            tracing::warn!("the last entry may not be noted in the marker: {why}");
                        }
                    }
                }
                _ => return Ok(()),
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    // What could not be done in time, the boot decision does, or does without, when the pod comes back.
    tokio::time::timeout_at(by.into(), ended).await.unwrap_or(Ok(()))
}

async fn ask_removal(pod: &Pod) {
    pod.own.ask(Some(Request::Leave));
    if let Some(surveyor) = &pod.surveyor {
        surveyor.wake(&pod.survey([]).await).await;
    }
    crash_point!("stop-asked");
}

/// The last entry of this volume's log, no etcd running on it.
fn last_entry(pod: &Pod) -> Option<LogPosition> {
    let dir = inspect(&pod.settings.etcd_dir(), observe::schema(pod.etcd.as_ref().map(|(_, version)| *version)));
    let Ok(InspectedDatadir::Usable(dir)) = dir else { return None };
    log_tail(&dir).ok().map(|tail| LogPosition { term: tail.last_term, index: tail.last_index })
}

/// `first`: whether this pod is wanted has not been asked before; then the answer is waited for as for any other.
async fn look(pod: &Pod, known: Option<Desired>, first: bool, by: Instant) -> Leaving {
    let me = pod.own.member();
    let here = async {
        let mut etcd = pod.etcd_here().await?;
        let status = etcd.status(ETCD_DEADLINE).await?;
        let list = etcd.member_list(ETCD_DEADLINE).await;
        anyhow::Ok((status, list))
    };
    let enough = by.checked_sub(leave::TO_LEAVE).unwrap_or(by);
    let desired = async {
        match known {
            Some(desired) => (desired, Duration::ZERO),
            None if first => pod.asked_afresh().await,
            None => match tokio::time::timeout_at(enough.into(), pod.asked_afresh()).await {
                Ok(asked) => asked,
                Err(_) => (Desired::Unknown("no answer in time".to_owned()), leave::ASKS_FOR),
            },
        }
    };
    let (here, (desired, asked_for)) = tokio::join!(here, desired);
    let here = here.ok();
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
        seed: pod.seed(),
        desired,
        asked_for,
        unanswered: None,
        host_configured: pod.host.is_some(),
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
