//! Moving a deployed etcd into this pod's at boot (`migrateFromEtcd`).
//!
//! The chart may run the old API server against the source meanwhile. So a fence is put around it first
//! ([`crate::migrate::fenced`]), recorded before it is raised. Putting the data dir in place commits: whatever ends before
//! that lifts the fence (a failure, a stop, the next boot after a crash), and nothing does from then on. The record of
//! that is durable before etcd serves anybody here.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::boot::imported;
use super::pod::Pod;
use crate::boot::{DataDirFact, Refusal};
use crate::crash_point;
use crate::datadir::inspect;
use crate::disk::{Disk, RealDisk, parent_of};
use crate::etcd::client::EtcdEndpoint;
use crate::migrate::fence::{self, FencePhase, FenceRecord};
use crate::migrate::fenced::{self, Gate};
use crate::migrate::to_datadir::{ImportOutcome, close_kept, forget_killed};
use crate::migrate::{Origin, journal, space};
use crate::observe::{self, notes};
use crate::pki::PkiPaths;
use crate::settings::Settings;
use crate::supervise::StopSignals;
use crate::telemetry;

/// How long a source that does not answer is asked to let a fence be lifted.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The same while the pod's grace runs.
const WITHIN_GRACE: Duration = Duration::from_secs(5);

/// Moves the source's store into a data dir here. When it fails, the source takes writes as before.
pub async fn migrate(pod: &Pod, gate: &Gate) -> anyhow::Result<()> {
    let settings = &pod.settings;
    let url = settings.etcd.migrate_from.as_deref().context("there is nothing to move from")?;
    let etcd = endpoint(&pod.pki.paths, url);
    let earlier = fence::load(&settings.data_dir).context("read the record of an earlier fence")?;
    tracing::info!(source = url, "moving the store of a deployed etcd");
    let looked = fenced::look(&etcd, earlier.as_ref()).await?;
    // What a killed move has left takes the room of this one.
    forget_killed(&pod.disk, &settings.data_dir)?;
    // Its snapshot, and at least what etcd writes for itself: the import looks closer.
    let volume = parent_of(&settings.etcd_dir());
    let (free, least) = (space::free(&volume)?, looked.db_size.saturating_add(space::needed(0, 0)));
    space::check(&volume, least, 0, free)?;
    // History is not moved; how much of it there is, nobody tells.
    let most = looked.db_size.saturating_add(space::needed(0, looked.in_use));
    if free < most {
        tracing::warn!(
            free_mib = free >> 20,
            may_need_mib = most >> 20,
            "the volume may be too small for the source's snapshot and the store: if it is, the fence is lifted again"
        );
    }
    if pod.surveyor.is_some() {
        notes::change(&pod.disk, &settings.data_dir, |notes| notes.forming = true)?;
    }
    let outcome = match moved(pod, &etcd, &looked, gate).await {
        Ok(outcome) => outcome,
        Err(error) => {
            // Both are told: the one is why, the other is what the source is left as.
            let left = lift(pod, PATIENCE).await;
            return Err(match left {
                Ok(()) => error,
                Err(left) => error.context(format!("{left:#}")),
            });
        }
    };
    keep(pod)?;
    telemetry::set_member(Some(outcome.made.member));
    tracing::info!(
        source = url,
        keys = outcome.keys,
        bytes = outcome.bytes,
        revision = outcome.revision.0,
        leases = outcome.made.leases,
        cluster = %outcome.made.cluster,
        seconds = outcome.duration.as_secs_f64(),
        "moved and committed; the source stays fenced, and can be deleted once this virtual cluster has been looked at"
    );
    for warning in outcome.warnings.lines() {
        tracing::warn!("{warning}");
    }
    Ok(())
}

async fn moved(pod: &Pod, etcd: &EtcdEndpoint, looked: &fenced::Looked, gate: &Gate) -> anyhow::Result<ImportOutcome> {
    let fenced = fenced::raise(&pod.disk, &pod.settings.data_dir, etcd, looked, gate.clone()).await?;
    imported(pod, Origin::fenced(fenced)).await
}

/// Notes that the move is committed.
pub fn keep(pod: &Pod) -> anyhow::Result<()> {
    let settings = &pod.settings;
    close_kept(&pod.disk, &settings.data_dir.join(journal::FILE_NAME), &settings.etcd_dir())?;
    let Some(record) = raised(settings)? else { return Ok(()) };
    fence::store(&pod.disk, &settings.data_dir, &FenceRecord { phase: FencePhase::Kept, ..record })?;
    crash_point!("fence-kept");
    Ok(())
}

/// Lifts the fence, if one was raised and nothing was moved.
pub async fn lift(pod: &Pod, patience: Duration) -> anyhow::Result<()> {
    lift_by(&pod.settings, &pod.pki.paths, &pod.disk, patience).await
}

/// The same for settings that are refused, such as those of before the move: the source is to serve by them again.
pub async fn lift_refused(settings: &Settings) -> anyhow::Result<()> {
    if raised(settings)?.is_none() {
        return Ok(());
    }
    let mut stop = StopSignals::new().context("listen for stop signals")?;
    let _lock = super::lock(settings)?;
    lift_unless_stopped(settings, &mut stop).await.unwrap_or(Ok(()))
}

/// Lifts what a killed move has left before anything can end this start or hold it up. What cannot be lifted yet, the boot
/// decision sees to. `false`: told to stop.
pub async fn lift_left(settings: &Settings, stop: &mut StopSignals) -> bool {
    let is_left = || anyhow::Ok(raised(settings)?.is_some() && !is_there(settings)?);
    let lifted = match is_left() {
        Ok(true) => lift_unless_stopped(settings, stop).await,
        Ok(false) => Some(Ok(())),
        Err(error) => Some(Err(error)),
    };
    if let Some(Err(error)) = &lifted {
        tracing::warn!("the fence around the source is not lifted yet: {error:#}");
    }
    lifted.is_some()
}

/// `None`: told to stop.
async fn lift_unless_stopped(settings: &Settings, stop: &mut StopSignals) -> Option<anyhow::Result<()>> {
    let pki = PkiPaths::new(&settings.pki_dir);
    tokio::select! {
        lifted = lift_by(settings, &pki, &RealDisk, PATIENCE) => Some(lifted),
        signal = stop.next() => {
            tracing::warn!(signal, "told to stop before the fence around the source was lifted: the next start lifts it");
            None
        }
    }
}

async fn lift_by(settings: &Settings, pki: &PkiPaths, disk: &dyn Disk, patience: Duration) -> anyhow::Result<()> {
    let Some(record) = raised(settings)? else { return Ok(()) };
    if fence::moved(&settings.data_dir).context("look whether the move is committed")? {
        tracing::warn!(source = record.source, "the data dir is in place: the source stays fenced");
        return Ok(());
    }
    // Served from next, it would lack what the source has.
    if is_there(settings)? {
        return Err(Refusal::OtherDataDirBesideFence(record.source).error());
    }
    fenced::lift(disk, &settings.data_dir, &endpoint(pki, &record.source), &record, patience).await
}

/// Whether there is a data dir. An empty directory is none.
fn is_there(settings: &Settings) -> anyhow::Result<bool> {
    let found = inspect(&settings.etcd_dir(), observe::schema(None)).context("inspect etcd's data dir")?;
    Ok(found.fact() != DataDirFact::Empty)
}

/// Told to stop: a move that is not being committed is given up, and its fence lifted.
pub async fn give_up(pod: &Pod, gate: &Gate) {
    match raised(&pod.settings) {
        Ok(None) => return,
        // The data dir is put in place next, on the import's thread. Ended before that, the pod would leave a source behind
        // that serves nobody until the next start.
        Ok(Some(_)) if !gate.give_up() => {
            let begun = Instant::now();
            // One that cannot be looked at now is looked at again.
            let committed = || fence::moved(&pod.settings.data_dir).unwrap_or(false);
            while !committed() && begun.elapsed() < WITHIN_GRACE {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let committed = committed();
            tracing::warn!(committed, "told to stop while a move is committed: the source stays fenced");
            return;
        }
        Ok(Some(_)) => {}
        Err(error) => return tracing::error!("{error:#}"),
    }
    if let Err(error) = lift(pod, WITHIN_GRACE).await {
        tracing::error!("{error:#}");
    }
}

fn raised(settings: &Settings) -> anyhow::Result<Option<FenceRecord>> {
    let record = fence::load(&settings.data_dir).context("read the record of the fence")?;
    Ok(record.filter(|record| record.phase == FencePhase::Raised))
}

/// The source's certificates are those of this virtual cluster: the chart gives its etcd the same ones.
fn endpoint(pki: &PkiPaths, url: &str) -> EtcdEndpoint {
    let tls = url.starts_with("https://").then(|| pki.etcd_tls().client());
    EtcdEndpoint { url: url.to_owned(), tls, server_name: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::load::{Loader, Surroundings};

    #[test]
    fn an_empty_directory_is_no_data_dir() {
        let home = tempfile::tempdir().unwrap();
        let flags = crate::settings::flags::Flags { data_dir: Some(home.path().to_owned()), ..Default::default() };
        let surroundings = Surroundings { values_files: Vec::new(), ..Surroundings::of_this_machine() };
        let env = Box::new(std::collections::BTreeMap::<String, std::ffi::OsString>::new());
        let settings = Loader { flags, wrapped: None, env, surroundings }.load().unwrap().settings;
        assert!(!is_there(&settings).unwrap());
        std::fs::create_dir(settings.etcd_dir()).unwrap();
        assert!(!is_there(&settings).unwrap());
        std::fs::create_dir_all(settings.etcd_dir().join("member/snap")).unwrap();
        std::fs::write(settings.etcd_dir().join("member/snap/db"), "x").unwrap();
        assert!(is_there(&settings).unwrap());
    }
}
