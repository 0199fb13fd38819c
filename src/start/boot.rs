//! Carries out the boot decision: looks, decides, does one durable step, and looks again, until etcd may be started.

mod join;
mod record;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::pod::{Broken, Look, Pod};
use super::readiness;
use super::{back, migrate_from, restore};
use crate::boot::{self, BootDecision, DataDirFact, Facts, Known, Notes, PeerFact, PeerState, Warning};
use crate::crash_point;
use crate::datadir::{DatadirWriter, MemberIdentity, quarantine};
use crate::disk::Disk;
use crate::etcd::args::Bootstrap;
use crate::etcd::launch;
use crate::exit::{Exit, ExitError, exit_of};
use crate::host::Claims;
use crate::ids::{ClusterId, MemberId, Ordinal, Revision};
use crate::migrate::Origin;
use crate::migrate::commit::finish_commit;
use crate::migrate::fenced::Gate;
use crate::migrate::journey::{self, Journey};
use crate::migrate::to_datadir::ImportOutcome;
use crate::observe::{self, notes};
use crate::peer::survey::Survey;
use crate::record_file::unix_seconds;
use crate::reset;
use crate::rules::Rules;
use crate::settings::Settings;
use crate::supervise::StopSignals;
use crate::telemetry::{self, Phase};

/// Between two looks of a pod that waits, at first and at most.
const WAIT_FIRST: Duration = Duration::from_millis(250);
const WAIT_MOST: Duration = Duration::from_secs(3);
/// A wait is said again after this time.
pub const SAY_EVERY: Duration = Duration::from_secs(30);
/// A seed that resolves and has not spoken for so long runs another program or an older release of this one.
const SILENT: Duration = Duration::from_secs(10);

/// So long a reset that was begun, or done by hand, waits for pods that are there, which may come to serve the cluster.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

/// Where a new cluster's data dir is built.
const FORMING: &str = "etcd.forming";
/// The revision of an etcd in which nothing has been written.
const FIRST_REVISION: Revision = Revision(1);

/// How etcd comes to its cluster.
#[derive(Debug)]
pub enum Booted {
    /// Start it so.
    Etcd(Bootstrap),
    /// There is no etcd: the API server runs on SQLite.
    Sqlite,
    /// Told to stop meanwhile.
    Stopped,
}

/// Decides and acts until etcd may be started. `stop` is listened to all the while.
pub async fn boot(pod: &Pod, stop: &mut StopSignals) -> anyhow::Result<Booted> {
    let mut boot = Boot {
        pod,
        said: None,
        wait: WAIT_FIRST,
        unmarked: WAIT_FIRST,
        seed_silent: None,
        silent: false,
        reset_seen: None,
        others: Vec::new(),
        unusable: false,
    };
    // One for each boot: it decides between the commit of a move and a stop.
    let gate = Gate::default();
    loop {
        let step = async {
            let usable = !boot.unusable && observe::has_wal(&pod.settings);
            let look = pod.look(boot.others.iter().copied(), Claims::of_boot(usable)).await;
            boot.step(&look, &gate).await
        };
        tokio::select! {
            booted = step => if let Some(booted) = booted? { return Ok(booted) },
            signal = stop.next() => {
                tracing::info!(signal, "told to stop before etcd was started");
                migrate_from::give_up(pod, &gate).await;
                return Ok(Booted::Stopped);
            }
        }
    }
}

struct Boot<'a> {
    pod: &'a Pod,
    said: Option<(BootDecision, Instant)>,
    wait: Duration,
    /// How long to wait after a marker that was not written.
    unmarked: Duration,
    seed_silent: Option<Instant>,
    /// This pod no longer says that it is empty: it may be about to form.
    silent: bool,
    /// Since when a reset is to be done.
    reset_seen: Option<Instant>,
    /// The pods that the log calls members, also those that are no longer wanted.
    others: Vec<Ordinal>,
    /// There is a data dir that the etcd at hand cannot start from.
    unusable: bool,
}

impl Boot<'_> {
    /// One decision carried out; `None`: decide again.
    async fn step(&mut self, look: &Look, gate: &Gate) -> anyhow::Result<Option<Booted>> {
        let (pod, survey) = (self.pod, &look.survey);
        let facts = pod.facts(look).await.context("look at the volume")?;
        let others = others(&facts);
        if self.others != others {
            self.others = others;
            // Whose pods they are shows only now: that nobody has asked for one is no word on it.
            if self.others.iter().any(|other| facts.peer(*other).is_none()) {
                return Ok(None);
            }
        }
        // Whether anybody else is there decides then, and whose volumes there are shows that.
        let unusable = observe::is_unusable(&pod.settings, &facts.data_dir);
        if std::mem::replace(&mut self.unusable, unusable) != unusable && unusable {
            return Ok(None);
        }
        let (decision, rule) = boot::explained(&facts, Rules::ALL);
        pod.own.drops(&facts.dropped);
        pod.has_replaced(boot::restored::replaced(&facts));
        let news = self.said.as_ref().is_none_or(|(said, at)| *said != decision || at.elapsed() >= SAY_EVERY);
        if news {
            self.said = Some((decision.clone(), Instant::now()));
            tracing::info!(?decision, %rule, "boot decision");
        }
        let forms = matches!(decision, BootDecision::Form | BootDecision::Import { .. } | BootDecision::MigrateFrom);
        if forms && pod.surveyor.is_some() && !self.silent {
            // Nobody may act on this pod's being empty while it forms: it says so no more, and looks once more.
            self.silent = true;
            pod.own.volume(None, &facts.notes);
            return Ok(None);
        }
        self.silent = forms;
        if !forms {
            pod.own.volume(said_of(&facts), &facts.notes);
        }
        if !matches!(decision, BootDecision::Wait(_)) {
            self.wait = WAIT_FIRST;
            pod.stands_by(false, None);
        }
        if !matches!(decision, BootDecision::Join { .. }) {
            pod.own.ask(None);
        }
        match decision {
            BootDecision::Start { member, cluster, finish, warnings } => {
                self.start(member, cluster, finish, &warnings)?;
                Ok(Some(Booted::Etcd(Bootstrap::Restart)))
            }
            BootDecision::Form if pod.surveyor.is_some() => {
                self.form_aside()?;
                Ok(None)
            }
            BootDecision::Form => Ok(Some(Booted::Etcd(self.form()?))),
            BootDecision::Import { source } => {
                if pod.surveyor.is_some() {
                    notes::change(&pod.disk, &pod.settings.data_dir, |notes| notes.forming = true)?;
                }
                self.import(&source).await?;
                Ok(pod.surveyor.is_none().then_some(Booted::Etcd(Bootstrap::Restart)))
            }
            BootDecision::MigrateFrom => {
                pod.own.runs(None);
                telemetry::set_phase(Phase::Migrate);
                // Boxed: what every boot waits in is to be no larger for a journey that few make.
                Box::pin(migrate_from::migrate(pod, gate)).await?;
                Ok(None)
            }
            BootDecision::LiftFence { .. } => {
                migrate_from::lift(pod, migrate_from::PATIENCE).await?;
                Ok(None)
            }
            BootDecision::Join { cluster, replace } => self.join(survey, cluster, replace).await,
            BootDecision::SetAside { member, cluster } => {
                self.set_aside(member, cluster)?;
                Ok(None)
            }
            BootDecision::Record(record) => {
                self.record(record, &facts).await?;
                Ok(None)
            }
            BootDecision::Reset { .. } => {
                self.reset(&facts).await?;
                Ok(None)
            }
            BootDecision::Wait(wait) => {
                if news {
                    tracing::warn!(remedy = wait.remedy(), "waiting: {}", wait.what());
                    let usable = matches!(facts.data_dir, DataDirFact::Empty | DataDirFact::Valid { .. });
                    if let (Known::Unknown(why), false) = (&facts.claims, usable || !facts.host_configured) {
                        tracing::warn!(why, "the host cluster's API does not say whether there are other volumes");
                    }
                }
                if pod.surveyor.is_none() {
                    return Err(wait.refused());
                }
                let seed_is_older = self.seed_is_older(&facts, survey);
                readiness::without_quorum(pod, &facts, look, seed_is_older);
                tokio::time::sleep(self.wait).await;
                self.wait = (self.wait * 3 / 2).min(WAIT_MOST);
                Ok(None)
            }
            BootDecision::MigrateBack { member, cluster } => {
                pod.own.runs(None);
                back::migrate(pod, member, cluster).await?;
                Ok(None)
            }
            BootDecision::PutRestored { member, cluster } => {
                restore::put(pod, member, cluster)?;
                Ok(None)
            }
            BootDecision::RunOnSqlite => {
                back::goes_on_sqlite(pod)?;
                Ok(Some(Booted::Sqlite))
            }
            BootDecision::Refuse(refusal) => Err(refusal.error()),
        }
    }

    fn start(&self, member: MemberId, cluster: ClusterId, finish: bool, warnings: &[Warning]) -> anyhow::Result<()> {
        let pod = self.pod;
        telemetry::set_member(Some(member));
        tracing::info!(%cluster, "starting from the data dir");
        let gone = back::give_up(pod)?;
        let there =
            |warning: &&Warning| !matches!(warning, Warning::StateDbIgnored(file) if Some(file) == gone.as_ref());
        warnings.iter().filter(there).for_each(warn);
        if finish {
            let settings = &pod.settings;
            finish_commit(&pod.disk, &settings.data_dir, &settings.state_db_candidates(), unix_seconds())?;
        }
        notes::change(&pod.disk, &pod.settings.data_dir, |notes| (notes.set_aside, notes.left) = (None, None))?;
        pod.own.runs(Some((member, cluster)));
        Ok(())
    }

    fn form(&self) -> anyhow::Result<Bootstrap> {
        self.pod.own.runs(None);
        self.clear().context("set aside what a killed first start left")?;
        Ok(launch::form(&self.pod.settings, token()))
    }

    /// Forms where other pods can exist: the data dir of a new cluster of this member alone is put in place, and nothing
    /// is started on it before everything has been decided once more.
    fn form_aside(&self) -> anyhow::Result<()> {
        let (pod, settings) = (self.pod, &self.pod.settings);
        notes::change(&pod.disk, &settings.data_dir, |notes| notes.forming = true)?;
        crash_point!("form-noted");
        self.clear().context("set aside what a killed first start left")?;
        let staging = settings.data_dir.join(FORMING);
        let disk: &dyn Disk = &pod.disk;
        disk.forget_dir(&staging).context("remove what a killed first start left")?;
        let writer = DatadirWriter::create(&pod.disk, &staging).context("begin a data dir")?;
        let formed = writer.finish(FIRST_REVISION, &[], &identity(settings)).context("complete a data dir")?;
        crash_point!("form-built");
        disk.rename_durable(&staging, &settings.etcd_dir()).context("put the data dir in place")?;
        crash_point!("form-in-place");
        tracing::info!(cluster = %formed.cluster_id, member = %formed.member_id, "formed a new cluster");
        Ok(())
    }

    async fn import(&self, source: &Path) -> anyhow::Result<()> {
        let pod = self.pod;
        pod.own.runs(None);
        telemetry::set_phase(Phase::Migrate);
        let outcome = imported(pod, Origin::sqlite(source.to_owned())).await?;
        telemetry::set_member(Some(outcome.made.member));
        tracing::info!(
            source = %source.display(),
            keys = outcome.keys,
            bytes = outcome.bytes,
            revision = outcome.revision.0,
            leases = outcome.made.leases,
            cluster = %outcome.made.cluster,
            seconds = outcome.duration.as_secs_f64(),
            "migrated and committed"
        );
        if pod.surveyor.is_none() {
            pod.own.runs(Some((outcome.made.member, outcome.made.cluster)));
        }
        Ok(())
    }

    async fn reset(&mut self, facts: &Facts) -> anyhow::Result<()> {
        let DataDirFact::Valid { member, cluster } = facts.data_dir else { return Ok(()) };
        // One that was begun may have been overtaken: whoever may be there has a moment to say so.
        let silent = |peer: &PeerFact| peer.state.unknown().is_some() && !peer.dns.is_absent() && !peer.pod.is_absent();
        let begun = *self.reset_seen.get_or_insert_with(Instant::now);
        if facts.notes.resetting && facts.peers.iter().any(silent) && begun.elapsed() < HEARD_WITHIN {
            tokio::time::sleep(WAIT_FIRST).await;
            return Ok(());
        }
        // One that was begun by hand has asked nobody whether they come back.
        if !facts.notes.resetting {
            let others = facts.log.present().map(|log| log.others.iter().map(|m| m.id).collect());
            self.note_dropped(others.unwrap_or_default())?;
        }
        self.pod.own.runs(None);
        super::reset::carry_out(self.pod, member, cluster, facts.log.present()).await
    }

    fn set_aside(&self, member: MemberId, cluster: ClusterId) -> anyhow::Result<()> {
        let pod = self.pod;
        pod.own.runs(None);
        set_aside(pod, member, cluster)
    }

    /// An inspection said that there is nothing worth starting from.
    fn clear(&self) -> anyhow::Result<()> {
        let etcd_dir = self.pod.settings.etcd_dir();
        if let Some(kept) = quarantine::clear(&self.pod.disk, &etcd_dir, SystemTime::now())? {
            tracing::warn!(kept = %kept.display(), "an earlier first start was killed; what it left was set aside");
        }
        Ok(())
    }

    /// Whether the seed runs an older revision of the StatefulSet. Without the host API: it resolves and has not said a
    /// word for a while.
    fn seed_is_older(&mut self, facts: &Facts, survey: &Survey) -> Option<bool> {
        let seed = facts.seed;
        if facts.host_configured {
            let pod = facts.peer(seed).and_then(|peer| peer.pod.present());
            return pod.and_then(|pod| pod.current_revision).map(|current| !current);
        }
        let silent = survey.peers.iter().any(|p| p.ordinal == seed && p.dns == Known::Present(()))
            && !survey.words.contains_key(&seed);
        let since = self.seed_silent.get_or_insert_with(Instant::now);
        if !silent {
            *since = Instant::now();
        }
        Some(silent && since.elapsed() >= SILENT)
    }
}

/// Notes that etcd ended because of damage to this volume's data dir, if `error` says so: an inspection need not see what
/// etcd stumbles over. This process starts etcd on it no more: it waits for the others, or refuses where there are none.
pub fn note_damage(pod: &Pod, error: &anyhow::Error) {
    let Some((member, cluster)) = pod.own.member() else { return };
    if exit_of(error) == Exit::RefusedDataDir {
        let why = error.downcast_ref::<ExitError>().map_or_else(|| error.to_string(), |error| error.what.clone());
        pod.is_broken(Broken { member, cluster, why });
        let noted = notes::change(&pod.disk, &pod.settings.data_dir, |notes| notes.damaged = Some(member));
        if let Err(error) = noted {
            tracing::warn!("the damage could not be noted: {error:#}");
        }
    }
}

/// Renames a data dir that is no member's any more, and keeps the newest few of such.
pub fn set_aside(pod: &Pod, member: MemberId, cluster: ClusterId) -> anyhow::Result<()> {
    let settings = &pod.settings;
    // What else was noted was said of this data dir.
    let note = |notes: &mut Notes| {
        let (superseded, settled) = (std::mem::take(&mut notes.superseded), std::mem::take(&mut notes.settled));
        *notes = Notes { set_aside: Some(cluster), superseded, settled, ..Notes::default() };
    };
    notes::change(&pod.disk, &settings.data_dir, note)?;
    crash_point!("aside-noted");
    if reset::is_pending(&settings.data_dir)? {
        reset::forget(&pod.disk, &settings.data_dir).context("forget a reset of the data dir")?;
    }
    let kept = quarantine::retire(&pod.disk, &settings.etcd_dir(), SystemTime::now());
    let kept = kept.context("set the data dir aside")?;
    crash_point!("aside-renamed");
    if let Some(kept) = kept {
        tracing::warn!(%member, %cluster, kept = %kept.display(), "the data dir is no member's any more: it was set aside");
    }
    Ok(())
}

/// The other members' pods, by the end of the log.
pub fn others(facts: &Facts) -> Vec<Ordinal> {
    facts.log.present().into_iter().flat_map(|log| log.others.iter().filter_map(|other| other.ordinal)).collect()
}

/// What the volume lets us say to the others.
pub fn said_of(facts: &Facts) -> Option<PeerState> {
    if facts.restore.is_begun() {
        return None;
    }
    let data = |(member, cluster)| {
        let last = facts.log.present().map(|log| log.last);
        PeerState::Data { member, cluster, last }
    };
    match &facts.data_dir {
        DataDirFact::Valid { member, cluster } => Some(data((*member, *cluster))),
        // Whole for the etcd that it fits.
        DataDirFact::Newer(_) | DataDirFact::Older(_) | DataDirFact::Unpromoted(_) => facts.owner.map(data),
        DataDirFact::Damaged(_) => None,
        DataDirFact::Empty => match facts.stores.state_dbs.first() {
            Some(store) => Some(PeerState::Store(store.clone())),
            None => Some(PeerState::Empty),
        },
    }
}

/// Imports on a thread of its own, which also starts and ends the etcd that verifies. Dropped when told to stop: the
/// thread ends with the process, and what it leaves is begun anew by the next start.
pub async fn imported(pod: &Pod, source: Origin) -> anyhow::Result<ImportOutcome> {
    let settings = &pod.settings;
    let (etcd, _) = pod.etcd.as_ref().context("an import needs etcd")?;
    let mut journey = Journey::of_boot(source, &settings.data_dir, identity(settings), etcd.clone());
    journey.lock = Some(Arc::clone(&pod.lock));
    let disk = pod.disk;
    let (done, outcome) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("import".into())
        .spawn(move || {
            // The receiver is gone only when the process is about to end.
            let _ = done.send(journey::run(&disk, &journey));
        })
        .context("start the import's thread")?;
    outcome.await.context("the import's thread ended without a result")?
}

fn identity(settings: &Settings) -> MemberIdentity {
    launch::identity(settings, token())
}

fn warn(warning: &Warning) {
    match warning {
        Warning::StateDbIgnored(file) => tracing::warn!(
            file = %file.display(),
            "a SQLite store lies beside a formed cluster; it is not imported: move it away if it is not needed"
        ),
        Warning::NoQuorum(wait) => tracing::warn!(remedy = wait.remedy(), "{}", wait.what()),
        Warning::PeersUnknown => tracing::warn!("no other pod has answered; starting from the data dir all the same"),
    }
}

/// A token that no cluster has had before, so that a lost and newly formed cluster has other IDs [4.1].
fn token() -> String {
    format!("syncer-{:032x}", rand::random::<u128>())
}
