//! Backups on the schedule of the values, taken by the pod beside the etcd leader.
//!
//! What is due is told by what is kept: whoever leads looks at the newest snapshot in the target. So a missed one is made
//! up for, the first one is taken at once, and one that another pod has taken is not taken again where they share the place.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::pod::{ETCD_DEADLINE, Pod};
use crate::etcd::client::{EtcdClient, stalled_after};
use crate::migrate::progress::Meter;
use crate::settings::{Settings, SnapshotSettings};
use crate::snapshot::name::{SnapshotName, cluster_of};
use crate::snapshot::save::{ANSWER, Held, Wanted, corrupt, save};

/// Between two looks at the clock at most: it may be set.
const LOOK: Duration = Duration::from_secs(15 * 60);
/// Beside a follower that would be due: it may lead soon.
const FOLLOWER: Duration = Duration::from_secs(30);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(60);
/// After one was taken: whatever a place lists, snapshots are not taken one after the other.
const AT_LEAST: Duration = Duration::from_secs(1);
/// A place that hangs must not keep this from seeing changed settings.
const LISTING: Duration = Duration::from_secs(60);

/// Takes snapshots for as long as it is polled.
pub async fn keep(pod: &Pod) -> Infallible {
    // SQLite has none, whatever the values say of them.
    if pod.etcd.is_none() {
        return std::future::pending().await;
    }
    let mut now = pod.now.clone();
    let mut serving = pod.health.subscribe();
    loop {
        let wanted = now.borrow_and_update().etcd.snapshots.clone();
        let serves = async {
            match wanted {
                Some(_) => serving.wait_for(|health| health.datastore_ready && !health.stopping).await.is_ok(),
                None => false,
            }
        };
        let ready = async {
            if !serves.await {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = ready => {}
            () = changed(&mut now) => continue,
        }
        let Some(wanted) = &wanted else { continue };
        // Not given up for a changed setting: what has gone up to a bucket would stay there.
        let wait = match Box::pin(pass(pod, wanted)).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::error!(target = %wanted.target, "no snapshot was kept; trying again in {} s: {error:#}", AGAIN.as_secs());
                AGAIN
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed(&mut now) => {}
        }
    }
}

/// Until the settings change: never, where no values file is watched.
async fn changed(now: &mut watch::Receiver<Settings>) {
    if now.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Takes a snapshot if one is due and this is the leader's pod; how long until the next look.
async fn pass(pod: &Pod, wanted: &SnapshotSettings) -> anyhow::Result<Duration> {
    let cluster = cluster_of(&pod.settings);
    let now = OffsetDateTime::now_utc();
    let kept = kept(wanted).await?;
    // Outside of a pod nobody is told.
    let running = match pod.own.member() {
        Some((_, running)) => running,
        None => pod.etcd_here().await?.status(ETCD_DEADLINE).await?.cluster,
    };
    let next = SnapshotName::new(&cluster, running, now);
    let due = wanted.schedule.due(&kept, &next).context("the schedule has ended")?;
    if due > now {
        tracing::debug!(target = %wanted.target, %due, "no snapshot is due");
        return Ok(LOOK.min((due - now).unsigned_abs() + Duration::from_millis(10)));
    }
    if Arc::strong_count(&pod.snapshot) > 1 {
        bail!(
            "an earlier snapshot is still being written to where it is kept: that hangs, and none is begun beside it"
        );
    }
    // A defragmentation comes to its end first.
    let reading = pod.backend.lock().await;
    let mut etcd = pod.etcd_here().await?;
    let status = etcd.status(ETCD_DEADLINE).await?;
    if status.leader != Some(status.member) {
        tracing::debug!(target = %wanted.target, "a snapshot is due: the pod beside the etcd leader takes it");
        return Ok(FOLLOWER);
    }
    // A leader that was cut off a moment ago still says that it leads.
    let least = etcd.linearizable_read(ANSWER).await.context("reach a quorum")?;
    let name_now = SnapshotName::new(&cluster, status.cluster, now);
    let save_it = Wanted { name: &name_now, size: status.db_size, least, patience: stalled_after() };
    let held = Held { backend: Some(&pod.backend), reading: Some(reading), writing: Arc::clone(&pod.snapshot) };
    let saved = save(&pod.disk, &mut etcd, &wanted.target, &save_it, held, &Meter::default()).await?;
    let revision = saved.content.map(|content| content.revision.0);
    tracing::info!(name = %saved.name, target = %wanted.target, bytes = saved.bytes, revision, "snapshot kept");
    if let Err(error) = prune(pod, &mut etcd, wanted, &saved.name, now).await {
        tracing::error!(target = %wanted.target, "old snapshots stay until the next is kept: {error:#}");
    }
    Ok(AT_LEAST)
}

/// Removes the old ones, now that `newest` is kept.
async fn prune(
    pod: &Pod,
    etcd: &mut EtcdClient,
    wanted: &SnapshotSettings,
    newest: &SnapshotName,
    now: OffsetDateTime,
) -> anyhow::Result<()> {
    if corrupt(etcd).await? {
        bail!("etcd has raised the alarm CORRUPT, and what is taken now may be damaged");
    }
    let mut removed = Vec::new();
    let pruned = wanted.target.prune(&pod.disk, newest, wanted.keep, now, &mut removed);
    let pruned = tokio::time::timeout(LISTING, pruned).await;
    for old in removed {
        tracing::info!(name = %old, "old snapshot removed");
    }
    pruned.with_context(|| format!("remove old snapshots in {}", wanted.target))?
}

async fn kept(wanted: &SnapshotSettings) -> anyhow::Result<Vec<SnapshotName>> {
    let listed = tokio::time::timeout(LISTING, wanted.target.list()).await;
    let listed = listed.with_context(|| format!("list the snapshots in {}", wanted.target))??;
    Ok(listed.into_iter().map(|stored| stored.name).collect())
}
