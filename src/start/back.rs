//! The way back at boot: etcd's store into a `state.db`, on which the API server runs from then on.
//!
//! The data dir is the truth until it is set aside, which is one rename and commits; the API server never runs before it.
//! A `state.db` that a killed attempt put in place is known by the journal, taken back and written anew.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;

use super::pod::Pod;
use crate::boot::marker::{self, Release};
use crate::boot::{FenceFact, JournalFact};
use crate::crash_point;
use crate::datadir::quarantine;
use crate::disk::Disk;
use crate::host::Host;
use crate::host::marker::Written;
use crate::ids::{ClusterId, MemberId};
use crate::migrate::commit::finish_commit;
use crate::migrate::journey::{self, Commit, Journey};
use crate::migrate::progress::Show;
use crate::migrate::sink::Made;
use crate::migrate::to_sqlite::{SqliteTarget, abandon, close};
use crate::migrate::{Origin, Verify, fence, journal};
use crate::observe::notes;
use crate::record_file::unix_seconds;
use crate::settings::HostApi;

/// What the journal of the way there becomes once the store is SQLite's again.
const FORMER: &str = "migration.journal.former";
/// And the record of the fence, if the way there began at a deployed etcd.
const FORMER_FENCE: &str = "migration.fence.former";

/// Writes the store back and sets the data dir aside. On a thread of its own, as the import is.
pub async fn migrate(pod: &Pod, member: MemberId, cluster: ClusterId) -> anyhow::Result<()> {
    let settings = &pod.settings;
    let stores = settings.state_db_candidates();
    // An import that is committed and not tidied up after would be taken for one that is not, once a state.db is there.
    finish_commit(&pod.disk, &settings.data_dir, &stores, unix_seconds())?;
    // Where the API server looks for it (`serve::distro::Backend::sqlite`).
    let target = stores.into_iter().next().context("there is no place for a SQLite store")?;
    let journey = Journey {
        source: Origin::datadir(settings.etcd_dir()),
        target: SqliteTarget { path: target },
        journal: settings.data_dir.join(journal::BACK_FILE_NAME),
        etcd: settings.program("etcd"),
        verify: Verify::Full,
        commit: Commit::KeepSource,
        spare: 0,
        show: Show::Auto,
        lock: Some(Arc::clone(&pod.lock)),
    };
    let (disk, etcd_dir, data_dir) = (pod.disk, settings.etcd_dir(), settings.data_dir.clone());
    tracing::info!(%member, %cluster, target = %journey.target.path.display(), "writing etcd's store back into a SQLite store");
    let (done, outcome) = tokio::sync::oneshot::channel();
    let work = move || -> anyhow::Result<_> {
        if let Some(folder) = journey.target.path.parent() {
            disk.create_dir(folder).context("make the folder of the SQLite store")?;
        }
        journey::run_then(&disk, &journey, || {
            // Before the commit, as nothing tells of it afterwards.
            notes::change(&disk, &data_dir, |notes| notes.left = Some(cluster))?;
            crash_point!("back-before-commit");
            let kept = quarantine::set_aside(&disk, &etcd_dir, SystemTime::now()).context("set the data dir aside")?;
            crash_point!("back-after-commit");
            Ok(kept)
        })
    };
    std::thread::Builder::new()
        .name("export".into())
        .spawn(move || {
            // The receiver is gone only when the process is about to end.
            let _ = done.send(work());
        })
        .context("start the export's thread")?;
    let (outcome, kept) = outcome.await.context("the export's thread ended without a result")??;
    tracing::info!(
        revision = outcome.revision.0,
        keys = outcome.keys,
        moved = outcome.made.moved.count,
        seconds = outcome.duration.as_secs_f64(),
        kept = kept.map(|kept| kept.display().to_string()),
        "the store is SQLite's again; the data dir was set aside"
    );
    let notes = outcome.made.notes(outcome.revision, outcome.source_revision);
    for warning in outcome.warnings.lines().into_iter().chain(notes) {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// etcd is about to be started: a way back that was killed before its commit is given up, and a `state.db` that it has put in
/// place, which nobody has used, goes. It would be imported, should the data dir be lost later. Gives that file.
pub fn give_up(pod: &Pod) -> anyhow::Result<Option<PathBuf>> {
    let settings = &pod.settings;
    let journal = settings.data_dir.join(journal::BACK_FILE_NAME);
    let gone = abandon(&pod.disk, &journal, &settings.state_db_candidates())?;
    if let Some(file) = &gone {
        let file = file.display();
        tracing::warn!(%file, "a way back to SQLite was begun and is not asked for any more: the store it wrote was removed");
    }
    Ok(gone)
}

/// Between two tries to have the marker say that its cluster was left, at first and at most.
const RELEASE_FIRST: Duration = Duration::from_secs(1);
const RELEASE_MOST: Duration = Duration::from_secs(60);

/// Has the marker say that its cluster is SQLite's again, so that embedded etcd can be switched on once more; its volumes
/// elsewhere stay superseded. The API server runs meanwhile, whether or not the host API answers: what is not done now is done
/// later, or at the next start. Never ends.
pub async fn release(pod: &Pod) -> Infallible {
    let left = match notes::load(&pod.settings.data_dir) {
        Ok(notes) => notes.left.filter(|_| pod.etcd.is_none()),
        Err(_) => None,
    };
    let (Some(left), Some(host)) = (left, Host::configured(&pod.settings)) else { return std::future::pending().await };
    let mut wait = RELEASE_FIRST;
    loop {
        let why = match marker::release(&host.marker().await, left) {
            Release::Done => break,
            Release::Ask(why) => why,
            Release::Write(write) => match host.write_marker(&write).await {
                // Only what is read says that it is done.
                Written::Done => continue,
                Written::Outdated => "it was changed meanwhile".to_owned(),
                Written::Denied(why) | Written::Unknown(why) => why,
            },
        };
        tracing::warn!(cluster = %left, "the marker may still name the cluster that is SQLite's again; embedded etcd is not \
             switched on before that is taken back: {why}");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RELEASE_MOST);
    }
    tracing::info!(cluster = %left, "the marker names the cluster no more that is SQLite's again");
    if let Err(error) = notes::change(&pod.disk, &pod.settings.data_dir, |notes| notes.left = None) {
        tracing::warn!("that could not be noted: {error:#}");
    }
    std::future::pending().await
}

/// The API server is about to write to SQLite, which is the truth from now on: nothing of the way back is taken back any
/// more, and the journal of the way into etcd tells of a
/// data dir that is not there any more, and the next such way is a new one.
pub fn goes_on_sqlite(pod: &Pod) -> anyhow::Result<()> {
    let dir = &pod.settings.data_dir;
    close(&pod.disk, &dir.join(journal::BACK_FILE_NAME))?;
    // A volume of another ordinal may still have the old data.
    let somewhere = pod.settings.host_api != HostApi::None;
    notes::change(&pod.disk, dir, |notes| {
        let Some(left) = notes.left else { return };
        if !notes.superseded.contains(&left) {
            notes.superseded.push(left);
        }
        notes.left = notes.left.filter(|_| somewhere);
    })?;
    if let JournalFact::Done { .. } = journal::fact(dir).context("read the migration journal")? {
        let disk: &dyn Disk = &pod.disk;
        disk.rename_durable(&dir.join(journal::FILE_NAME), &dir.join(FORMER))
            .context("put the journal of the way into etcd away")?;
    }
    if let FenceFact::Kept { .. } = fence::fact(dir).context("read the record of a fence")? {
        let disk: &dyn Disk = &pod.disk;
        disk.rename_durable(&fence::path(dir), &dir.join(FORMER_FENCE)).context("put the record of a fence away")?;
    }
    Ok(())
}
