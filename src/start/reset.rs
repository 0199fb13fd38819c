//! Carries out a reset that the boot decision asks for, or goes on with one that was begun.
//!
//! It runs etcd itself, on a runtime of its own, and so on a thread of its own. Dropped when told to stop: the thread
//! ends with the process, and what it leaves is gone on with by the next start.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::pod::Pod;
use crate::boot::LogFact;
use crate::datadir::DatadirLock;
use crate::disk::RealDisk;
use crate::etcd::version::EtcdVersion;
use crate::ids::{ClusterId, MemberId};
use crate::reset::{self, Permission, ResetOutcome, ResetPlan};
use crate::settings::Settings;

/// Makes this the only member of its cluster, etcd not running. `log` is what the decision rests on; it is read anew.
pub async fn carry_out(pod: &Pod, member: MemberId, cluster: ClusterId, log: Option<&LogFact>) -> anyhow::Result<()> {
    let (program, version) = pod.etcd.clone().context("a reset needs etcd")?;
    let (disk, data_dir, lock) = (pod.disk, pod.settings.data_dir.clone(), Arc::clone(&pod.lock));
    // The decision allows more voters only where all of them have noted their last entries.
    let noted = log.is_some_and(|log| log.voters > 2);
    let permission = if noted { Permission::StopRecord } else { Permission::TwoVoters };
    tracing::warn!(%member, %cluster, ?permission, "the others are gone for good: this member goes on alone");
    let (done, outcome) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("reset".into())
        .spawn(move || {
            let run = || match reset::finish(&disk, &data_dir, &program, version, &lock)? {
                Some(finished) => Ok(finished),
                None => {
                    let (data_dir, program, lock) = (data_dir.clone(), program.clone(), &*lock);
                    reset::reset(&disk, &ResetPlan { data_dir, program, version, lock, member, cluster, permission })
                }
            };
            // The receiver is gone only when the process is about to end.
            let _ = done.send(run());
        })
        .context("start the reset's thread")?;
    let outcome = outcome.await.context("the reset's thread ended without a result")?;
    say(&outcome.context("make this the only member of its cluster")?);
    Ok(())
}

/// Goes on with an interrupted reset where there are no other pods to ask.
pub fn finish(
    settings: &Settings,
    disk: &RealDisk,
    etcd: &Path,
    version: EtcdVersion,
    lock: &DatadirLock,
) -> anyhow::Result<()> {
    let finished =
        std::thread::scope(|scope| scope.spawn(|| reset::finish(disk, &settings.data_dir, etcd, version, lock)).join());
    let finished = finished.map_err(|_| anyhow::anyhow!("the reset's thread panicked"))?;
    if let Some(outcome) = finished.context("finish an interrupted reset")? {
        say(&outcome);
    }
    Ok(())
}

fn say(outcome: &ResetOutcome) {
    tracing::warn!(
        member = %outcome.before.member,
        revision = outcome.revision.0,
        copy = %outcome.copy.display(),
        "the reset is finished: this is the only member of its cluster"
    );
}
