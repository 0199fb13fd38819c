//! Carries out what is decided about a used-up quota ([`crate::etcd::space`]), beside the leader, in its passes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::pod::{ETCD_DEADLINE, Pod};
use crate::etcd::args::quota;
use crate::etcd::client::{Alarm, ClientError, EtcdClient, Status};
use crate::etcd::space::{Hold, Repair, Space, Store, repair};
use crate::ids::{MemberId, Revision};
use crate::kinds::Kinds;
use crate::membership::Observed;
use crate::peer::survey::Survey;

/// What the API server leaves to those who read: the revisions of the last five minutes.
const OLD: Duration = Duration::from_secs(5 * 60);
/// Between two revisions that are remembered.
const REMEMBERED_EVERY: Duration = Duration::from_secs(30);
/// Removing millions of revisions takes a while; etcd goes on with it in any case.
const COMPACT_DEADLINE: Duration = Duration::from_secs(60);
/// etcd copies some hundred megabytes a second, on a slow disk some ten.
const DEFRAGMENT_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// What an operator must see to is said again after this time.
const SAY_EVERY: Duration = Duration::from_secs(5 * 60);

/// One page of a survey, its time, and the bytes that a page is to have.
const PAGE_DEADLINE: Duration = Duration::from_secs(60);
const PAGE_BYTES: u64 = 4 << 20;
const PAGE_KEYS_MAX: u64 = 10_000;
/// So many kinds are named.
const NAMED: usize = 5;

/// What is remembered between passes.
#[derive(Default)]
pub struct Keeper {
    /// Revisions of the last minutes, oldest first, each with when it was the newest.
    seen: VecDeque<(Instant, Revision)>,
    alarm: Option<Alarmed>,
}

/// Since an alarm was raised.
struct Alarmed {
    since: Instant,
    /// Size of the leader's file, and bytes in use in it, when it was noticed.
    size: u64,
    in_use: u64,
    compacted: Option<Revision>,
    said: Option<(Repair, Instant)>,
    /// Ends with this.
    survey: Option<JoinSet<()>>,
}

/// What a pass has found.
pub struct Look<'a> {
    /// The leader's own word.
    pub own: &'a Status,
    /// Every member's.
    pub states: &'a std::collections::BTreeMap<MemberId, Option<Status>>,
    /// The membership.
    pub observed: &'a Observed,
    /// Where the pods are.
    pub survey: &'a Survey,
    /// No member is to come or go.
    pub rests: bool,
}

impl Keeper {
    /// One step, if one is to be taken; whether one was. Without an alarm it costs nothing: the status has told.
    pub async fn pass(&mut self, pod: &Pod, etcd: &mut EtcdClient, look: &Look<'_>) -> anyhow::Result<bool> {
        self.remember(look.own.revision);
        if !look.own.errors.iter().any(|error| error.contains("alarm:")) {
            if let Some(over) = self.alarm.take() {
                over.say_end(look.own);
            }
            return Ok(false);
        }
        let alarm = self.alarm.get_or_insert_with(|| Alarmed::new(look.own));
        let space = Space {
            alarms: etcd.alarms(ETCD_DEADLINE).await?,
            leader: look.own.member,
            stores: stores(pod, look),
            newest: look.own.revision,
            old: self.seen.iter().rev().find(|(at, _)| at.elapsed() >= OLD).map(|(_, revision)| *revision),
            compacted: alarm.compacted,
            rests: look.rests,
            saved: pod.backend.try_lock().is_err().then_some(look.own.member),
        };
        let step = repair(&space);
        alarm.say(&step, pod, look);
        match take(pod, etcd, look, &space, step).await {
            Ok(Some(Repair::Compact(revision))) => alarm.compacted = Some(revision),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            // No space on the volume for a second file, for one. Not tried again before the next pass at rest.
            Err(error) => {
                tracing::warn!("a step of NOSPACE's repair failed: {error:#}");
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn remember(&mut self, revision: Revision) {
        if self.seen.back().is_none_or(|(at, _)| at.elapsed() >= REMEMBERED_EVERY) {
            self.seen.push_back((Instant::now(), revision));
        }
        // The newest one that is old enough stays.
        while self.seen.get(1).is_some_and(|(at, _)| at.elapsed() >= OLD) {
            self.seen.pop_front();
        }
    }
}

impl Alarmed {
    fn new(own: &Status) -> Alarmed {
        let (size, in_use) = (own.db_size, own.db_in_use);
        Alarmed { since: Instant::now(), size, in_use, compacted: None, said: None, survey: None }
    }

    fn say(&mut self, step: &Repair, pod: &Pod, look: &Look<'_>) {
        if self.said.as_ref().is_some_and(|(said, at)| said == step && at.elapsed() < SAY_EVERY) {
            return;
        }
        let first = self.said.is_none();
        self.said = Some((step.clone(), Instant::now()));
        if first && !matches!(step, Repair::Corrupt(_)) {
            let (size, in_use) = (mib(self.size), mib(self.in_use));
            tracing::error!(
                size,
                in_use,
                "etcd's quota is used up (NOSPACE): it refuses writes until that is repaired"
            );
        }
        if matches!(step, Repair::Full { .. } | Repair::Wait(_) | Repair::Defragment(_)) && self.survey.is_none() {
            self.survey = Some(begin_survey(pod, self.in_use.saturating_sub(look.own.db_in_use)));
        }
        match step {
            Repair::Full { in_use, quota } => tracing::error!(
                in_use = mib(*in_use),
                quota = mib(*quota),
                remedy = "raise etcd's quotaBackendBytes in the values, or delete objects: deletions are taken",
                "objects that are alive fill etcd's quota; writes are refused until there is room"
            ),
            Repair::Corrupt(members) => tracing::error!(
                members = shown(members),
                remedy = "find the member whose data differs (the raised alarm names it; compare `etcdctl endpoint \
                    hashkv --cluster`), move its data dir away so that it joins anew, then `etcdctl alarm disarm`; \
                    syncer never disarms it",
                "etcd's members hold different data (CORRUPT): it refuses writes"
            ),
            Repair::Wait(Hold::Degraded(members)) => tracing::warn!(
                members = shown(members),
                remedy = "bring those members back: nothing is defragmented while one is missing",
                "NOSPACE is not repaired yet: members do not answer or lag behind"
            ),
            Repair::Wait(hold) => tracing::info!(?hold, "NOSPACE is not repaired yet"),
            _ => {}
        }
    }

    fn say_end(&self, own: &Status) {
        tracing::info!(
            size_before = mib(self.size),
            size = mib(own.db_size),
            in_use = mib(own.db_in_use),
            seconds = self.since.elapsed().as_secs(),
            "no alarm is left: etcd takes writes"
        );
    }
}

/// Takes the step, if it is one.
async fn take(
    pod: &Pod,
    etcd: &mut EtcdClient,
    look: &Look<'_>,
    space: &Space,
    step: Repair,
) -> anyhow::Result<Option<Repair>> {
    match step {
        Repair::Wait(Hold::Compacting(_)) => {
            // bbolt counts the pages that a compaction has emptied as free only after later writes, of which there are
            // none now. A change of the membership that changes nothing is one, on every member.
            if !look.observed.own_url_differs {
                etcd.member_update(look.own.member, vec![pod.settings.peer_url()], ETCD_DEADLINE).await?;
            }
            return Ok(None);
        }
        Repair::Nothing | Repair::Wait(_) | Repair::Full { .. } | Repair::Corrupt(_) => return Ok(None),
        Repair::Compact(revision) => {
            match etcd.compact(revision, COMPACT_DEADLINE).await {
                Err(error) if !compacted_before(&error) => return Err(error.into()),
                _ => {}
            }
            tracing::info!(revision = revision.0, "compacted the store");
        }
        Repair::Defragment(member) => {
            let before = space.stores.iter().find(|store| store.member == member).map_or(0, |store| store.size);
            let mut of = client_of(pod, etcd, look, member).await?;
            let own = (member == look.own.member).then(|| pod.backend.try_lock());
            let Ok(_held) = own.transpose() else { return Ok(None) };
            of.defragment(DEFRAGMENT_DEADLINE).await?;
            let after = of.status(ETCD_DEADLINE).await?.db_size;
            tracing::info!(of = %member, before, after, "defragmented a member's store");
        }
        Repair::Disarm(member) => {
            etcd.disarm_alarm(member, Alarm::NoSpace, ETCD_DEADLINE).await?;
            tracing::info!(of = %member, "disarmed NOSPACE");
        }
    }
    Ok(Some(step))
}

fn stores(pod: &Pod, look: &Look<'_>) -> Vec<Store> {
    let asked = pod.now.borrow().etcd.quota_backend_bytes;
    let store = |fact: &crate::membership::MemberFact| {
        let member = fact.member.id;
        let state = look.states.get(&member).and_then(Option::as_ref);
        let well = state.is_some() && (fact.caught_up || member == look.own.member);
        let (size, in_use, told) = state.map_or((0, 0, 0), |s| (s.db_size, s.db_in_use, s.quota));
        // An etcd that does not tell has at least what is asked for, and at least what it has taken.
        let quota = if told > 0 { told } else { quota(asked, 0).max(size) };
        Store { member, learner: fact.member.learner, well, quota, size, in_use }
    };
    look.observed.members.iter().map(store).collect()
}

async fn client_of(pod: &Pod, own: &EtcdClient, look: &Look<'_>, member: MemberId) -> anyhow::Result<EtcdClient> {
    if member == look.own.member {
        return Ok(own.clone());
    }
    let ordinal = look.observed.members.iter().find(|m| m.member.id == member).and_then(|m| m.member.ordinal);
    let peer = ordinal.and_then(|ordinal| look.survey.pods.get(&ordinal));
    let (Some(peer), Some(surveyor)) = (peer, &pod.surveyor) else { anyhow::bail!("no way to member {member}") };
    surveyor.dial()?.etcd(peer).await
}

fn compacted_before(error: &ClientError) -> bool {
    matches!(error, ClientError::Etcd { source, .. } if source.to_string().contains("has been compacted"))
}

/// Says what fills the space, by reading all keys in pages that are small, from this member alone.
fn begin_survey(pod: &Pod, old: u64) -> JoinSet<()> {
    let mut task = JoinSet::new();
    let endpoint = pod.endpoint_here();
    task.spawn(async move {
        let survey = async { survey(&mut EtcdClient::connect(&endpoint).await?).await };
        match survey.await {
            Ok((bytes, writes)) => {
                let biggest: Vec<_> = bytes.biggest().iter().take(NAMED).map(ToString::to_string).collect();
                let most = writes.biggest();
                let most: Vec<_> =
                    most.iter().take(NAMED).map(|kind| format!("{} ({} times)", kind.kind, kind.bytes)).collect();
                tracing::warn!(
                    old_revisions = mib(old),
                    alive = biggest.join(", "),
                    most_written = most.join(", "),
                    "what has filled etcd's store"
                );
            }
            Err(error) => tracing::debug!("what fills the store could not be found out: {error:#}"),
        }
    });
    task
}

/// Bytes of what is alive, and how often it was written since it was created.
async fn survey(etcd: &mut EtcdClient) -> Result<(Kinds, Kinds), ClientError> {
    let (mut bytes, mut writes) = (Kinds::default(), Kinds::default());
    let (mut from, mut keys) = (Some(Vec::new()), 8);
    while let Some(start) = from {
        let limit = u32::try_from(keys).unwrap_or(u32::MAX);
        let page = etcd.local_page(&start, limit, PAGE_DEADLINE).await?;
        let mut read = 0;
        for kv in &page.kvs {
            let size = (kv.key().len() + kv.value().len()) as u64;
            bytes.count(kv.key(), size);
            writes.count(kv.key(), kv.version().unsigned_abs());
            read += size;
        }
        // The next one of about as many bytes; values may grow, so it does not leap.
        let mean = (read / page.kvs.len().max(1) as u64).max(1);
        keys = (PAGE_BYTES / mean).clamp(1, keys * 4).min(PAGE_KEYS_MAX);
        from = page.next;
    }
    Ok((bytes, writes))
}

fn shown(members: &[MemberId]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
