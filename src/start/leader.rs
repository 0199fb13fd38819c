//! What the syncer beside the etcd leader does: looks at members and pods, plans at most one step, takes it, looks
//! again. Beside a follower it does nothing but see that it is one.

mod by_host;
mod lasting;
mod refused;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::pod::{ETCD_DEADLINE, Pod};
use super::space::{self, Keeper};
use crate::boot::Desired;
use crate::crash_point;
use crate::crash_point::seconds;
use crate::etcd::client::{ClientError, EtcdClient, MemberList, Status};
use crate::ids::{MemberId, Ordinal, RaftIndex, Term};
use crate::membership::{self, MemberFact, Observed, Plan, PodView, Step};
use crate::observe::notes;
use crate::peer::survey::Survey;
use crate::peer::{list_of, peer_url_of};
use crate::rules::Rules;
use crate::telemetry;
use by_host::{ByHost, HostView};
use lasting::Lasting;
use refused::Refused;

/// Between two passes while nothing is to be done: among other pods, and without any; and while something is.
const AT_REST: Duration = Duration::from_secs(5);
const ALONE_AT_REST: Duration = Duration::from_secs(30);
const AT_WORK: Duration = Duration::from_millis(250);
/// Between two passes at least.
const AT_LEAST: Duration = Duration::from_millis(50);
/// IDs have one-second grain, and a change that was just made may not be applied everywhere.
const SETTLED: Duration = Duration::from_millis(1100);
/// A learner that has neither applied an entry nor received a byte for so long is stuck.
const STALLED: Duration = Duration::from_secs(5 * 60);
/// So many entries behind the leader a member counts as caught up: less than a busy API server writes in a second.
const CAUGHT_UP: u64 = 500;
/// No entry in this time: moving leadership stalls nobody.
const QUIET: Duration = Duration::from_millis(100);

/// Looks after the membership for as long as it is polled.
pub async fn look_after(pod: &Pod) -> Infallible {
    let mut leader = Leader {
        pod,
        etcd: None,
        changed: None,
        fenced: None,
        replacing: BTreeSet::new(),
        progress: BTreeMap::new(),
        said: None,
        refused: Refused::default(),
        space: Keeper::default(),
        by_host: ByHost::default(),
    };
    let mut serving = pod.health.subscribe();
    let mut now = pod.now.clone();
    let mut sound = false;
    let mut failing: Option<Lasting> = None;
    loop {
        if serving.wait_for(|health| health.datastore_ready).await.is_err() {
            return std::future::pending().await;
        }
        if !std::mem::replace(&mut sound, true) {
            // Whatever its data dir was once said to be.
            let noted = notes::change(&pod.disk, &pod.settings.data_dir, |notes| notes.damaged = None);
            if let Err(error) = noted {
                tracing::warn!("that the data dir is sound could not be noted: {error:#}");
            }
        }
        let stopping = serving.borrow().stopping;
        let wait = match Box::pin(leader.pass(stopping)).await {
            Ok(wait) => {
                failing = None;
                wait
            }
            Err(error) => {
                let now = Instant::now();
                match failing.get_or_insert_with(|| Lasting::since(now)).is_due(now) {
                    Some(lasts) => tracing::warn!(
                        seconds = lasts.as_secs(),
                        remedy = "look at this pod's etcd: its log, its disk, and whether its machine is overloaded",
                        "the membership is not looked after: nobody joins or leaves: {error:#}"
                    ),
                    None => tracing::debug!("the membership was not looked after: {error:#}"),
                }
                leader.etcd = None;
                AT_WORK
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = pod.own.wake.notified() => {}
            Ok(()) = now.changed() => {}
        }
        // However often it is woken.
        tokio::time::sleep(AT_LEAST).await;
    }
}

struct Leader<'a> {
    pod: &'a Pod,
    /// The etcd beside us; made anew, with the certificates of then, after a pass that failed.
    etcd: Option<EtcdClient>,
    /// When this syncer last changed the membership.
    changed: Option<Instant>,
    /// The term in which it has fenced what was changed before; nobody else changes anything while it lasts.
    fenced: Option<Term>,
    replacing: BTreeSet<Ordinal>,
    /// How far each member has come, and since when it is there.
    progress: BTreeMap<MemberId, Progress>,
    said: Option<Plan>,
    refused: Refused,
    space: Keeper,
    by_host: ByHost,
}

impl Leader<'_> {
    /// One look and at most one step; how long until the next. `stopping`: this pod was told to stop.
    async fn pass(&mut self, stopping: bool) -> anyhow::Result<Duration> {
        let pod = self.pod;
        let mut etcd = match &self.etcd {
            Some(etcd) => etcd.clone(),
            None => self.etcd.insert(pod.etcd_here().await?).clone(),
        };
        let at_rest = if pod.surveyor.is_some() { AT_REST } else { ALONE_AT_REST };
        let status = etcd.status(ETCD_DEADLINE).await?;
        if pod.own.member() != Some((status.member, status.cluster)) {
            pod.own.runs(Some((status.member, status.cluster)));
            telemetry::set_member(Some(status.member));
        }
        if status.leader != Some(status.member) {
            self.said = None;
            // What another leader sees meanwhile is not seen here.
            self.progress.clear();
            self.replacing.clear();
            self.refused.ends();
            return Ok(at_rest);
        }
        let before = etcd.member_list(ETCD_DEADLINE).await?;
        self.fence(&mut etcd, &status, &before).await;
        let ordinals = list_of(&pod.settings, &before).members.into_iter().filter_map(|m| m.ordinal);
        let survey = pod.survey(ordinals).await;
        let states = states(pod, &before, &status, &survey).await;
        let view = self.by_host.view(pod, &before, &survey).await;
        // The list comes last: what it says is acted upon.
        let list = etcd.member_list(ETCD_DEADLINE).await?;
        let observed = self.observed(&mut etcd, &status, &list, &states, &survey, &view).await?;
        let (plan, rule) = membership::explained(&observed, Rules::ALL);
        let plan = if stopping { membership::while_stopping(plan, rule) } else { plan };
        tracing::debug!(observed = %Json(&observed), "observed");
        if self.said.as_ref() != Some(&plan) && plan != Plan::Nothing {
            tracing::info!(?plan, %rule, "membership plan");
        }
        self.said = Some(plan.clone());
        if stopping && !matches!(plan, Plan::Do(_)) {
            return Ok(AT_WORK);
        }
        if !matches!(plan, Plan::Do(_)) {
            self.by_host.keep_marker(pod, &list, &view).await;
        }
        let learning = observed.members.iter().any(|m| m.member.learner);
        let rests = plan == Plan::Nothing && !learning;
        let step = match plan {
            Plan::Do(step) => step,
            Plan::Wait(_) | Plan::Nothing => {
                self.refused.ends();
                let look = space::Look { own: &status, states: &states, observed: &observed, survey: &survey, rests };
                let stepped = self.space.pass(pod, &mut etcd, &look).await?;
                return Ok(if stepped || !rests { AT_WORK } else { at_rest });
            }
        };
        self.take(&mut etcd, step, &observed).await?;
        Ok(Duration::ZERO)
    }

    /// Has a change of the membership that changes nothing follow the last change of the voters. raft takes it only once
    /// the leader has applied that one, so that from here on every log that has it shows by which voters entries were
    /// committed ([`crate::datadir::log_tail`](mod@crate::datadir::log_tail)): a voter that is left alone soon after a
    /// change could not be proven to lack nothing otherwise.
    async fn fence(&mut self, etcd: &mut EtcdClient, own: &Status, list: &MemberList) {
        let voters = list.members.iter().filter(|m| !m.learner).count();
        let Some(me) = list.members.iter().find(|m| m.id == own.member && !m.learner) else { return };
        // One that is alone lacks nothing anyway.
        if self.fenced == Some(own.term) || voters < 2 {
            return;
        }
        match etcd.member_update(me.id, me.peer_urls.clone(), ETCD_DEADLINE).await {
            Ok(()) => {
                crash_point!("lead-fenced");
                self.fenced = Some(own.term);
            }
            Err(error) => tracing::debug!("the change of the voters is not fenced: {:#}", anyhow::Error::from(error)),
        }
    }

    /// Takes a step. Whatever comes of it, the next pass looks again.
    async fn take(&mut self, etcd: &mut EtcdClient, step: Step, observed: &Observed) -> anyhow::Result<()> {
        let pod = self.pod;
        if matches!(step, Step::Promote(_) | Step::Remove(_)) {
            self.fenced = None;
        }
        let (before, after) = step.crash_points();
        crash_point!(before);
        let taken = match step {
            Step::AddLearner(ordinal) => {
                etcd.member_add_learner(vec![peer_url_of(&pod.settings, ordinal)], ETCD_DEADLINE).await
            }
            Step::Promote(id) => etcd.member_promote(id, ETCD_DEADLINE).await,
            Step::Remove(id) => etcd.member_remove(id, ETCD_DEADLINE).await,
            Step::MoveLeader(id) => etcd.move_leader(id, ETCD_DEADLINE).await,
            Step::UpdateOwnPeerUrl => {
                etcd.member_update(observed.leader, vec![pod.settings.peer_url()], ETCD_DEADLINE).await
            }
        };
        // etcd's own no has changed nothing; no answer in time may have.
        let refused = taken.as_ref().is_err_and(ClientError::is_refusal);
        match step {
            Step::Remove(id) if !refused => self.replacing.extend(observed.makes_room(id)),
            Step::AddLearner(ordinal) if taken.is_ok() => drop(self.replacing.remove(&ordinal)),
            _ => {}
        }
        if !refused && !matches!(step, Step::MoveLeader(_)) {
            self.changed = Some(Instant::now());
        }
        match taken {
            Ok(()) => {
                crash_point!(after);
                self.refused.ends();
                tracing::info!(?step, "membership changed");
            }
            Err(error) => {
                // Often "not yet": an unhealthy cluster, a learner that is still behind.
                let error = anyhow::Error::from(error);
                tracing::debug!(?step, "{error:#}");
                if refused {
                    self.refused.again(&step, observed, &error);
                }
                tokio::time::sleep(AT_WORK).await;
            }
        }
        Ok(())
    }

    async fn observed(
        &mut self,
        etcd: &mut EtcdClient,
        own: &Status,
        list: &MemberList,
        states: &BTreeMap<MemberId, Option<Status>>,
        survey: &Survey,
        view: &HostView,
    ) -> anyhow::Result<Observed> {
        let pod = self.pod;
        let members = list_of(&pod.settings, list);
        self.progress.retain(|id, _| members.has(*id));
        let facts: Vec<_> = members
            .members
            .iter()
            .map(|member| {
                let state = states.get(&member.id).and_then(Option::as_ref);
                // A learner's own word counts too: it may be promoted before its etcd answers clients.
                let word = member.ordinal.filter(|_| member.learner).and_then(|ordinal| survey.words.get(&ordinal));
                let told = word.and_then(|word| word.applied_as(member.id, list.cluster));
                let answered = state.map(|state| state.applied).or(told);
                let applied = answered.unwrap_or(RaftIndex(0));
                let word = member.ordinal.and_then(|ordinal| survey.words.get(&ordinal));
                let received = word.and_then(|word| word.received_as(member.id, list.cluster)).unwrap_or_default();
                let stands = self.progress.entry(member.id).or_insert_with(Progress::none).to(applied, received);
                let behind = own.applied.0.saturating_sub(applied.0);
                MemberFact {
                    active: answered.is_some(),
                    caught_up: applied.0 > 0 && behind <= CAUGHT_UP,
                    stalled: member.learner && (answered.is_none() || behind > CAUGHT_UP) && stands >= stalled_after(),
                    member: member.clone(),
                }
            })
            .collect();
        // Only leadership waits for it, and only if another is to have it.
        let here = pod.settings.pod.ordinal;
        let lowest = members.members.iter().filter(|m| !m.learner).all(|m| m.ordinal.is_none_or(|o| o >= here));
        let quiet = lowest || quiet(etcd, own).await?;
        let own_urls = list.members.iter().find(|m| m.id == own.member).map(|m| &m.peer_urls);
        let own_url_differs = own_urls.context("the leader is not in its own list")? != &[pod.settings.peer_url()];
        let mut observed = Observed {
            seed: pod.seed(),
            desired: view.desired().unwrap_or_else(|| Desired::Values(pod.now.borrow().etcd.replicas)),
            cluster: list.cluster,
            leader: own.member,
            members: facts,
            pods: survey.peers.iter().map(|peer| pod_view(peer, survey, view)).collect(),
            settled: self.changed.is_none_or(|at| at.elapsed() >= SETTLED),
            quiet,
            replacing: std::mem::take(&mut self.replacing),
            own_url_differs,
        };
        self.replacing = observed.kept_places();
        observed.replacing = self.replacing.clone();
        Ok(observed)
    }
}

/// What each member says of itself, `own` of its own; `None`: it did not answer.
pub(super) async fn states(
    pod: &Pod,
    list: &MemberList,
    own: &Status,
    survey: &Survey,
) -> BTreeMap<MemberId, Option<Status>> {
    let mut states = BTreeMap::from([(own.member, Some(own.clone()))]);
    let Some(dial) = pod.surveyor.as_ref().and_then(|surveyor| surveyor.dial().ok()) else { return states };
    for member in list_of(&pod.settings, list).members {
        if member.id == own.member {
            continue;
        }
        let peer = member.ordinal.and_then(|ordinal| survey.pods.get(&ordinal));
        let word = member.ordinal.and_then(|ordinal| survey.words.get(&ordinal));
        let state = match peer {
            // It takes clients seconds after its start, and those who connect before wait: gRPC where they are refused, TLS
            // where nobody accepts yet. Until then its word tells how far it is.
            Some(_) if member.learner && word.is_some_and(|w| w.applied_as(member.id, own.cluster).is_some()) => None,
            Some(peer) if member.learner && !dial.listens(peer).await => None,
            Some(peer) => {
                let asked = async { anyhow::Ok(dial.etcd(peer).await?.status(ETCD_DEADLINE).await?) };
                asked.await.ok().filter(|status| status.member == member.id && status.cluster == own.cluster)
            }
            None => None,
        };
        states.insert(member.id, state);
    }
    states
}

/// The members that answer and have caught up with `own`.
pub(super) async fn well(pod: &Pod, list: &MemberList, own: &Status, survey: &Survey) -> BTreeSet<MemberId> {
    let caught_up = |state: &Status| own.applied.0.saturating_sub(state.applied.0) <= CAUGHT_UP;
    let states = states(pod, list, own, survey).await.into_iter();
    states.filter(|(_, state)| state.as_ref().is_some_and(caught_up)).map(|(id, _)| id).collect()
}

/// How far a member has come: the most that was seen of it, as one that begins anew again and again comes no further.
#[derive(Clone, Copy, Debug)]
struct Progress {
    applied: RaftIndex,
    received: u64,
    since: Instant,
}

impl Progress {
    fn none() -> Progress {
        Progress { applied: RaftIndex(0), received: 0, since: Instant::now() }
    }

    /// Notes where it is now; how long it has been there.
    fn to(&mut self, applied: RaftIndex, received: u64) -> Duration {
        if applied > self.applied || received > self.received {
            let (applied, received) = (applied.max(self.applied), received.max(self.received));
            *self = Progress { applied, received, since: Instant::now() };
        }
        self.since.elapsed()
    }
}

/// A learner that has come no further in this time is stuck.
fn stalled_after() -> Duration {
    seconds("SYNCER_STALLED_SECONDS", STALLED)
}

/// As JSON, made only if it is logged: `syncer plan --membership` reads it.
struct Json<'a>(&'a Observed);

impl std::fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        serde_json::to_string(self.0).map_err(|_| std::fmt::Error)?.fmt(f)
    }
}

/// Whether no entry is written for a moment.
pub(super) async fn quiet(etcd: &mut EtcdClient, before: &Status) -> anyhow::Result<bool> {
    let first = etcd.status(ETCD_DEADLINE).await?;
    tokio::time::sleep(QUIET).await;
    let second = etcd.status(ETCD_DEADLINE).await?;
    Ok(second.raft_index == first.raft_index && second.term == before.term)
}

fn pod_view(peer: &crate::boot::PeerFact, survey: &Survey, view: &HostView) -> PodView {
    PodView {
        dns: peer.dns.clone(),
        state: peer.state.clone(),
        request: survey.words.get(&peer.ordinal).and_then(|word| word.request),
        pod: view.pod(peer.ordinal),
        ..PodView::new(peer.ordinal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// etcd applies nothing while it is sent a snapshot, however long that takes.
    #[test]
    fn a_learner_comes_further_by_entries_and_by_bytes_and_not_by_beginning_anew() {
        let Some(long_ago) = Instant::now().checked_sub(STALLED) else { return };
        let stood = Progress { applied: RaftIndex(5), received: 100, since: long_ago };
        for (applied, received, further) in
            [(5, 100, false), (6, 0, true), (0, 101, true), (0, 0, false), (0, 99, false)]
        {
            let mut progress = stood;
            let stands = progress.to(RaftIndex(applied), received);
            assert_eq!(stands < STALLED, further, "{applied} {received}");
            assert!(progress.applied >= stood.applied && progress.received >= stood.received);
        }
    }
}
