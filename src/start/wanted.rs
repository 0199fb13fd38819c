//! The settings of now: the values file's, and with a host API the replicas that the StatefulSet has.

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::host::Host;
use crate::settings::Settings;
use crate::settings::values::replicas_warning;

/// Watches the StatefulSet too, if there is a host API. The tasks end with the set.
pub fn follow(mut files: watch::Receiver<Settings>, host: Option<&Host>) -> (watch::Receiver<Settings>, JoinSet<()>) {
    let mut tasks = JoinSet::new();
    let Some(host) = host.cloned() else { return (files, tasks) };
    let mut sets = host.last();
    let (sender, now) = watch::channel(merged(&files.borrow_and_update(), &mut sets));
    tasks.spawn(async move { host.follow().await });
    tasks.spawn(async move {
        let mut watched = true;
        loop {
            tokio::select! {
                changed = sets.changed() => if changed.is_err() { return },
                changed = files.changed(), if watched => watched = changed.is_ok(),
            }
            let new = merged(&files.borrow_and_update(), &mut sets);
            if sender.borrow().etcd.replicas != new.etcd.replicas {
                tracing::info!(replicas = new.etcd.replicas, "the StatefulSet was scaled");
                if let Some(warning) = replicas_warning(new.etcd.replicas) {
                    tracing::warn!("{warning}");
                }
            }
            sender.send_replace(new);
        }
    });
    (now, tasks)
}

fn merged(file: &Settings, sets: &mut watch::Receiver<Option<crate::host::statefulset::StatefulSet>>) -> Settings {
    let mut settings = file.clone();
    if let Some(set) = &*sets.borrow_and_update() {
        settings.etcd.replicas = set.replicas;
    }
    settings
}
