//! A fence around a running etcd: it takes no writes, and goes on answering reads, while and after it is moved.
//!
//! The fence is etcd's own alarm CORRUPT. Raising an alarm is an entry of the raft log. Every member answers each write by
//! what it finds when it applies that write's entry, so the entry of the alarm divides all writes: those before it
//! are in the store of whoever has applied it, and those behind it are refused, whichever member is asked (`applierV3Corrupt`
//! in etcd's `etcdserver`). Leases neither expire nor are granted, and nothing is compacted: the revision stands still.
//! So the store's revision behind the alarm, read linearizably, is the last that was ever acknowledged, and a snapshot of
//! that revision has every acknowledged write.
//!
//! Before 3.6 a NOSPACE alarm that is raised while CORRUPT stands replaces it in the applying member, and deletions go
//! through (`applierV3backend.Alarm` in `etcdserver/apply.go` of 3.4 and 3.5), unless a NOSPACE alarm was there before. So
//! one is raised first. In the same way the end of either alarm is the end of both, until that member is restarted.
//!
//! Alarms are kept in the store and survive restarts of the source. To lift the fence by hand: `etcdctl alarm disarm`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

use super::backend::BackendStore;
use super::fence::{self, FencePhase, FenceRecord};
use super::origin::Opening;
use super::remote::{self, Alarms, Pace};
use super::ways::{ANSWER, Ways, patiently, to_voter};
use crate::crash_point;
use crate::disk::Disk;
use crate::etcd::client::{Alarm, ClientError, EtcdClient, EtcdEndpoint, Status};
use crate::exit::{Exit, exit_of, refuse};
use crate::ids::{ClusterId, MemberId, Revision};
use crate::record_file::unix_seconds;

/// How long a source that does not answer is asked again before anything has been changed.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// And when it has been fenced: its health check fails then, and a kubelet may restart it for that. Who is silent for longer
/// takes no writes either way, and is better told to somebody: the move is given up, and begun anew at the next start.
const PATIENCE_FENCED: Duration = Duration::from_secs(60);
/// How often a snapshot that breaks off, or lags behind the fence, is taken of a source that answers, and the pause before
/// the next.
const SNAPSHOTS: u32 = 10;
const BETWEEN_SNAPSHOTS: Duration = Duration::from_secs(3);

/// How the fence is lifted by hand.
pub const BY_HAND: &str = "by hand: `etcdctl alarm disarm` there, with the source's certificates";

/// Whether the move may still be given up: the commit and the lifting of the fence exclude each other.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<AtomicU8>);

const OPEN: u8 = 0;
const COMMITTING: u8 = 1;
const GIVEN_UP: u8 = 2;

impl Gate {
    /// The move is committed next; `false` if it was given up.
    pub fn commit(&self) -> bool {
        self.leave_open(COMMITTING)
    }

    /// The move is given up; `false` if it is being committed.
    pub fn give_up(&self) -> bool {
        self.leave_open(GIVEN_UP)
    }

    fn leave_open(&self, to: u8) -> bool {
        let before = self.0.compare_exchange(OPEN, to, Ordering::SeqCst, Ordering::SeqCst);
        before.is_ok_and(|_| true) || before == Err(to)
    }
}

impl PartialEq for Gate {
    fn eq(&self, other: &Gate) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Gate {}

/// An etcd with our fence around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fenced {
    /// Where it is, and other ways there.
    pub ways: Ways,
    /// In whose name the alarms are raised.
    pub alarm: MemberId,
    /// Its last revision.
    pub revision: Revision,
    /// Asked before the commit.
    pub gate: Gate,
}

/// What a source is before it is fenced.
#[derive(Clone, Debug)]
pub struct Looked {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its members.
    pub members: Vec<MemberId>,
    /// Their client URLs.
    pub urls: Vec<String>,
    /// Size of its backend file in bytes.
    pub db_size: u64,
    /// Bytes of it that are in use.
    pub in_use: u64,
}

/// Looks whether the source can be fenced and read. Nothing is changed anywhere. `ours`: the record of an earlier fence.
///
/// # Errors
/// [`Exit::RefusedSource`]: it does not answer, is a learner, has no quorum, asks for a user, or has an alarm CORRUPT of its
/// own.
pub async fn look(etcd: &EtcdEndpoint, ours: Option<&FenceRecord>) -> anyhow::Result<Looked> {
    let looked = patiently(PATIENCE, async || {
        let (mut client, status) = to_voter(etcd, ANSWER).await?;
        // It answers nothing else.
        if status.learner {
            return Ok((status, None));
        }
        client.linearizable_read(ANSWER).await?;
        Ok((status, Some((client.member_list(ANSWER).await?, client.alarms(ANSWER).await?))))
    });
    let (status, voter) = looked.await.map_err(|error| no_answer(etcd, error))?;
    let Some((list, alarms)) = voter else { return Err(learner(&etcd.url)) };
    let members: Vec<_> = list.members.iter().map(|member| member.id).collect();
    sound(etcd, &members, &alarms, ours)?;
    let theirs = |member: &MemberId| ours.is_none_or(|ours| ours.alarm != *member);
    if alarms.iter().any(|(member, alarm)| *alarm == Alarm::NoSpace && theirs(member)) {
        tracing::warn!(source = etcd.url, "the source has used up its quota; the move goes on, and leaves that behind");
    }
    tracing::info!(
        source = etcd.url, cluster = %list.cluster, version = status.version, members = members.len(), bytes = status.db_size,
        "the source can be moved from"
    );
    let urls = list.members.into_iter().flat_map(|member| member.client_urls).collect();
    Ok(Looked { cluster: list.cluster, members, urls, db_size: status.db_size, in_use: status.db_in_use })
}

/// Makes sure that it is no learner's word.
///
/// # Errors
/// [`Exit::RefusedSource`].
pub fn votes(url: &str, status: &Status) -> anyhow::Result<()> {
    if status.learner { Err(learner(url)) } else { Ok(()) }
}

fn learner(url: &str) -> anyhow::Error {
    let what = format!("{url} is a learner, which may lack what the others have");
    refuse(Exit::RefusedSource, what, "name a voter, or wait until it is promoted")
}

/// Makes sure that no alarm CORRUPT is raised, but that of our own fence, whose record `ours` is.
///
/// # Errors
/// [`Exit::RefusedSource`].
pub(super) fn sound(
    etcd: &EtcdEndpoint,
    members: &[MemberId],
    alarms: &[(MemberId, Alarm)],
    ours: Option<&FenceRecord>,
) -> anyhow::Result<()> {
    let corrupt = alarms.iter().filter(|(_, alarm)| *alarm == Alarm::Corrupt).map(|(member, _)| *member);
    let mut foreign = corrupt.filter(|member| ours.is_none_or(|ours| ours.alarm != *member));
    let Some(member) = foreign.next() else { return Ok(()) };
    Err(if members.contains(&member) {
        refuse(
            Exit::RefusedSource,
            format!("{} says of itself that the data of member {member} is corrupt (alarm CORRUPT)", etcd.url),
            "find the member that differs (`etcdctl endpoint hashkv --cluster`), replace it, and disarm the alarm; \
             nothing has been changed",
        )
    } else {
        refuse(
            Exit::RefusedSource,
            format!(
                "{} has a fence around it (alarm CORRUPT of {member}, no member) that is not this volume's",
                etcd.url
            ),
            format!(
                "another move was begun from it, and may be complete: find the virtual cluster that goes on from there, or \
                 the volume that had it. Only if there is none and writes were taken nowhere else, lift the fence {BY_HAND}"
            ),
        )
    })
}

/// Records a fence, raises it and makes sure that it holds.
///
/// # Errors
/// The record may be *raised* then: [`lift`] is due.
pub async fn raise(
    disk: &dyn Disk,
    data_dir: &Path,
    etcd: &EtcdEndpoint,
    looked: &Looked,
    gate: Gate,
) -> anyhow::Result<Fenced> {
    // The name of an earlier fence is used again: one of its alarms that comes late is known by it.
    let earlier = fence::load(data_dir).context("read the record of an earlier fence")?;
    let earlier = earlier.filter(|earlier| earlier.cluster == looked.cluster).map(|earlier| earlier.alarm);
    let mut alarm = earlier.unwrap_or(MemberId(rand::random()));
    while alarm.0 == 0 || looked.members.contains(&alarm) {
        alarm = MemberId(rand::random());
    }
    let record = FenceRecord {
        phase: FencePhase::Raised,
        source: etcd.url.clone(),
        cluster: looked.cluster,
        alarm,
        since: unix_seconds(),
        members: looked.urls.clone(),
    };
    fence::store(disk, data_dir, &record)?;
    crash_point!("fence-recorded");
    let (begun, ways) = (Instant::now(), Ways::new(etcd, looked.cluster, &looked.urls));
    ways.patiently(PATIENCE_FENCED, async |mut client, _| {
        client.raise_alarm(alarm, Alarm::NoSpace, ANSWER).await?;
        crash_point!("fence-half-raised");
        client.raise_alarm(alarm, Alarm::Corrupt, ANSWER).await
    })
    .await
    .map_err(|error| no_answer(etcd, error))?;
    crash_point!("fence-raised");
    let mut fenced = Fenced { ways, alarm, revision: Revision(0), gate };
    fenced.revision = fenced.held().await?;
    tracing::warn!(
        source = etcd.url,
        revision = fenced.revision.0,
        %alarm,
        took = format!("{:?}", begun.elapsed()),
        "the source is fenced: it takes no writes from now on; if this pod never returns, lift that {BY_HAND}"
    );
    Ok(fenced)
}

impl Fenced {
    /// Takes a snapshot, which has every write that the source has acknowledged, and opens it.
    ///
    /// # Errors
    /// None was whole, or the source is silent, or too slow, or the fence is down.
    pub fn open(&self, with: &Opening<'_>) -> anyhow::Result<BackendStore> {
        crash_point!("fence-stands");
        let mut pace = Pace::begin();
        for attempt in 1.. {
            let etcd = if attempt == 1 { self.given().clone() } else { self.reachable()? };
            let error = match remote::open(with, &etcd, Alarms::OfTheFence, Some(&mut pace)) {
                Ok(store) if store.revision() == self.revision => {
                    crash_point!("fence-snapshot-taken");
                    let fenced = self.clone();
                    return Ok(store.confirmed_by(Box::new(move || fenced.last_word())));
                }
                // A member that has not applied everything yet may have been asked.
                Ok(store) => refuse(
                    Exit::RefusedSource,
                    format!(
                        "the snapshot of {} is of revision {}, and the fence of {}",
                        etcd.url,
                        store.revision(),
                        self.revision
                    ),
                    "look at its members (`etcdctl endpoint status --cluster`), then try again",
                ),
                Err(error) if exit_of(&error) == Exit::RefusedSpace => return Err(error),
                Err(error) => error,
            };
            if attempt == SNAPSHOTS || pace.is_hopeless() {
                return Err(error);
            }
            tracing::warn!(attempt, "{error:#}; taking another snapshot when the source answers");
            std::thread::sleep(BETWEEN_SNAPSHOTS);
        }
        Err(anyhow!("no snapshot was taken"))
    }

    /// Makes sure, as the last thing before the commit, that the source has taken no write since the fence was raised.
    /// From then on the fence is not lifted.
    fn last_word(&self) -> anyhow::Result<()> {
        let revision = self.answers()?;
        if revision != self.revision {
            return Err(refuse(
                Exit::RefusedSource,
                format!(
                    "{} was written to in spite of the fence: it is at revision {revision}, not {}",
                    self.given().url,
                    self.revision
                ),
                "whoever has disarmed its alarm is to leave it until the move is done; then try again",
            ));
        }
        ensure!(self.gate.commit(), "told to stop before the commit");
        crash_point!("fence-held");
        Ok(())
    }

    /// The source by the URL that was given.
    pub fn given(&self) -> &EtcdEndpoint {
        self.ways.given()
    }

    /// A way by which it answers.
    fn reachable(&self) -> anyhow::Result<EtcdEndpoint> {
        let asked = async { self.ways.open(PATIENCE_FENCED).await.map_err(|error| no_answer(self.given(), error)) };
        waited_for(asked)
    }

    /// As [`Fenced::held`].
    fn answers(&self) -> anyhow::Result<Revision> {
        waited_for(self.held())
    }

    /// Makes sure that the fence holds, and gives the revision that a majority agrees on.
    async fn held(&self) -> anyhow::Result<Revision> {
        let asked = self.ways.patiently(PATIENCE_FENCED, async |mut client, _| {
            let alarms = client.alarms(ANSWER).await?;
            let refuses = client.refuses_writes(&format!("syncer/fence/{}", self.alarm), ANSWER).await?;
            // Last: what was written before the fence had been lifted for a moment shows in it.
            Ok((alarms, refuses, client.linearizable_read(ANSWER).await?))
        });
        let (alarms, refuses, revision) = asked.await.map_err(|error| no_answer(self.given(), error))?;
        let corrupt = || alarms.iter().filter(|(_, alarm)| *alarm == Alarm::Corrupt).map(|(member, _)| *member);
        // Raised since the source was looked at. Of two that move from it at once, both may see the other: both give up.
        if let Some(other) = corrupt().find(|member| *member != self.alarm) {
            return Err(refuse(
                Exit::RefusedSource,
                format!("{} has got an alarm CORRUPT of {other} beside the fence", self.given().url),
                "if that is a member (`etcdctl member list`), its data differs: replace it and disarm the alarm; otherwise \
                 another virtual cluster is being moved from there: let one alone do so",
            ));
        }
        let ours = corrupt().any(|member| member == self.alarm);
        if ours && refuses {
            return Ok(revision);
        }
        let found = if ours { "it takes writes all the same" } else { "somebody has disarmed the alarm" };
        Err(refuse(
            Exit::RefusedSource,
            format!("the fence around {} does not hold: {found}", self.given().url),
            "leave the alarms of the source alone until the move is done, then try again",
        ))
    }
}

/// Waits on the journey's own thread.
fn waited_for<T>(asked: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(asked)
}

/// Takes the fence of `record` down, and records that. It is not asked again for longer than `patience`.
///
/// Only ever to be called while no data dir is in place: from the commit on the fence stays.
pub async fn lift(
    disk: &dyn Disk,
    data_dir: &Path,
    etcd: &EtcdEndpoint,
    record: &FenceRecord,
    patience: Duration,
) -> anyhow::Result<()> {
    // Over all attempts: what one of them has taken back must not be forgotten by the next.
    let mut its_own = BTreeSet::new();
    let ways = Ways::new(etcd, record.cluster, &record.members);
    let lifted = ways.patiently(patience, async |mut client, _| {
        let version = client.status(ANSWER).await?.version;
        let before_3_6 = ["3.4.", "3.5."].iter().any(|line| version.starts_with(line));
        if before_3_6 {
            its_own.extend(own_alarms(&mut client).await?);
        }
        client.disarm_alarm(record.alarm, Alarm::Corrupt, ANSWER).await?;
        crash_point!("fence-half-lifted");
        client.disarm_alarm(record.alarm, Alarm::NoSpace, ANSWER).await?;
        if before_3_6 {
            renew_alarms(&mut client, &its_own).await?;
        }
        Ok(())
    });
    lifted.await.map_err(|error| {
        let what = match error {
            ClientError::OtherCluster { found, wanted, .. } => {
                format!("cluster {found} serves there, and the fence was put around {wanted}")
            }
            error => format!("{:#}", anyhow::Error::from(error)),
        };
        not_lifted(data_dir, etcd, &what)
    })?;
    fence::store(disk, data_dir, &FenceRecord { phase: FencePhase::Lifted, ..record.clone() })?;
    tracing::info!(source = etcd.url, "the fence around the source is lifted: it takes writes again");
    Ok(())
}

/// The alarms that are raised in the name of members; NOSPACE first.
async fn own_alarms(source: &mut EtcdClient) -> Result<Vec<(bool, MemberId)>, ClientError> {
    let members = source.member_list(ANSWER).await?.members;
    let alarms = source.alarms(ANSWER).await?.into_iter();
    let its_own = alarms.filter(|(member, _)| members.iter().any(|known| known.id == *member));
    Ok(its_own.map(|(member, alarm)| (alarm == Alarm::Corrupt, member)).collect())
}

/// Before 3.6 the end of the last alarm of either kind ends the effect of both, until a member is restarted, which then takes
/// other writes than the others. So alarms of the source's own are taken back and raised anew: only the first of a kind has
/// an effect (`applierV3backend.Alarm` in `server/etcdserver/apply.go`). CORRUPT comes last, as NOSPACE would take its place.
async fn renew_alarms(source: &mut EtcdClient, its_own: &BTreeSet<(bool, MemberId)>) -> Result<(), ClientError> {
    for corrupt in [false, true] {
        let kind = if corrupt { Alarm::Corrupt } else { Alarm::NoSpace };
        let members = || its_own.iter().filter(|(of, _)| *of == corrupt).map(|(_, member)| *member);
        for member in members() {
            source.disarm_alarm(member, kind, ANSWER).await?;
        }
        for member in members() {
            source.raise_alarm(member, kind, ANSWER).await?;
        }
    }
    Ok(())
}

fn not_lifted(data_dir: &Path, etcd: &EtcdEndpoint, why: &str) -> anyhow::Error {
    refuse(
        Exit::RefusedSource,
        format!("the fence around {} is not lifted, and it may refuse writes: {why}", etcd.url),
        format!(
            "it is lifted as soon as that etcd answers this pod; or {BY_HAND}, and then remove {} (with migrateFromEtcd still \
             or again true: without, the next start forms an empty cluster)",
            fence::path(data_dir).display()
        ),
    )
}

fn no_answer(etcd: &EtcdEndpoint, error: ClientError) -> anyhow::Error {
    let denied = error.is_denied();
    let what = format!("{} cannot be moved from: {:#}", etcd.url, anyhow::Error::from(error));
    let remedy = if denied {
        "it asks for a user: turn authentication off for the move (`etcdctl auth disable`); users and roles are not moved"
    } else {
        "check that it runs and has a quorum (`etcdctl endpoint status --cluster`), that this pod reaches it, and that its \
         certificates are of the CA that this pod has (etcd/ca.crt)"
    };
    refuse(Exit::RefusedSource, what, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_committed_or_given_up() {
        let gate = Gate::default();
        assert!(gate.commit() && gate.commit() && !gate.clone().give_up());
        let gate = Gate::default();
        assert!(gate.clone().give_up() && gate.give_up() && !gate.commit());
        assert!(gate == gate.clone() && gate != Gate::default());
    }
}
