//! A staged restore takes the place of the data dir at the seed's start ([`crate::boot`] decides each step and their order).

use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::pod::Pod;
use crate::boot::Notes;
use crate::crash_point;
use crate::datadir::lock::LockError;
use crate::datadir::quarantine;
use crate::disk::Disk;
use crate::ids::{ClusterId, MemberId};
use crate::observe::notes;
use crate::record_file::unix_seconds;
use crate::reset;
use crate::restore::record;

/// Between two looks at whether a restore is staged.
const LOOK: Duration = Duration::from_secs(10);
/// Between two reminders of one that is.
const REMIND_EVERY: Duration = Duration::from_secs(600);
/// Somebody is staging a restore, or calling it off: it is looked at again after this time.
const AGAIN: Duration = Duration::from_millis(500);

/// Says, while this pod runs, that a restore is staged: whatever starts the pod again puts it in place. Never ends.
pub async fn remind(pod: &Pod) -> Infallible {
    let mut said: Option<Instant> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        // A record that cannot be read is told of by who uses it.
        let Ok(Some(staged)) = record::load(&pod.settings.data_dir) else {
            said = None;
            continue;
        };
        if said.is_none_or(|at| at.elapsed() >= REMIND_EVERY) {
            said = Some(Instant::now());
            let minutes = unix_seconds().saturating_sub(staged.staged) / 60;
            tracing::warn!(
                source = staged.source,
                remedy = "start this pod anew now, or call it off: `syncer snapshot restore --cancel`",
                "a restore was staged {minutes} minutes ago: the next start of this pod, whatever brings it about, puts it in \
                 the present store's place"
            );
        }
    }
}

/// From here on it is gone through with. The record first: what it supersedes stands in it too, and is noted again by
/// whoever finds the one without the other.
pub async fn begin(pod: &Pod, replaced: &[ClusterId]) -> anyhow::Result<()> {
    let dir = &pod.settings.data_dir;
    let _lock = match record::lock(dir, Duration::ZERO) {
        Ok(lock) => lock,
        Err(LockError::Held { .. }) => {
            tracing::info!("waiting for a `syncer snapshot restore` that is at work");
            tokio::time::sleep(AGAIN).await;
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    // Called off since it was looked at, perhaps.
    let present = record::load(dir).context("read the record of a restore")?;
    let Some(present) = present.filter(|present| Some(present.cluster) == pod.staged) else { return Ok(()) };
    tracing::warn!(
        source = present.source,
        cluster = %present.cluster,
        revision = present.revision.0,
        replaces = ?replaced.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "a snapshot is restored: its store takes the place of the present one"
    );
    pod.own.runs(None);
    let begun = present.begun.clone().unwrap_or_else(|| replaced.to_vec());
    record::store(&pod.disk, dir, &record::RestoreRecord { begun: Some(begun), made: None, ..present })?;
    crash_point!("restore-begun");
    notes::change(&pod.disk, dir, |notes| {
        let mut superseded = std::mem::take(&mut notes.superseded);
        superseded.retain(|old| !replaced.contains(old));
        superseded.extend(replaced);
        notes.superseded = superseded;
        notes.settled.retain(|old| !replaced.contains(old));
    })?;
    crash_point!("restore-noted");
    Ok(())
}

/// Sets aside what is in the data dir's place, and puts the staged data dir there.
pub fn put(pod: &Pod, member: MemberId, cluster: ClusterId) -> anyhow::Result<()> {
    let settings = &pod.settings;
    pod.own.runs(None);
    if reset::is_pending(&settings.data_dir)? {
        reset::forget(&pod.disk, &settings.data_dir).context("forget a reset of the data dir")?;
    }
    // Not `retire`: who has restored the wrong snapshot wants every data dir that there is.
    let kept = quarantine::clear(&pod.disk, &settings.etcd_dir(), SystemTime::now());
    let kept = kept.context("set the data dir aside")?;
    crash_point!("restore-set-aside");
    let disk: &dyn Disk = &pod.disk;
    disk.rename_durable(&record::staged_dir(&settings.data_dir), &settings.etcd_dir())
        .context("put the restored data dir in place")?;
    crash_point!("restore-in-place");
    let kept = kept.map(|kept| kept.display().to_string());
    tracing::warn!(%member, %cluster, kept, "the restored data dir is in place; the former one was set aside");
    Ok(())
}

/// Puts the record away: from here on the restored data dir is one like any other.
pub fn done(pod: &Pod) -> anyhow::Result<()> {
    let (disk, dir): (&dyn Disk, _) = (&pod.disk, &pod.settings.data_dir);
    // What else was noted was said of the data dir that was set aside.
    let of_this = |notes: &mut Notes| {
        let (superseded, settled) = (std::mem::take(&mut notes.superseded), std::mem::take(&mut notes.settled));
        *notes = Notes { superseded, settled, ..Notes::default() };
    };
    notes::change(disk, dir, of_this)?;
    disk.forget_dir(&record::staging(dir)).context("remove what staging a restore left")?;
    disk.rename_durable(&record::path(dir), &dir.join(record::DONE)).context("put the record of a restore away")?;
    crash_point!("restore-done");
    tracing::info!("the restore is complete");
    Ok(())
}
