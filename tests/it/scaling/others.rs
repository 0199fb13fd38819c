//! Another cluster that was not to be seen when a pod was started is seen while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use syncer::disk::RealDisk;
use syncer::ids::ClusterId;
use syncer::observe::notes;

use super::{Access, CHANGE, Said, Scene, ask};
use crate::statefulset_box::protocol::{Policy, Program};
use crate::support::etcd::output;
use crate::support::statefulset::{TestBox, can_be_held_back, wrapped};
use crate::support::{part, poll};

/// Pods that can be held back, whose files for that are in the folder.
fn pods(replicas: u32) -> (TestBox, tempfile::TempDir) {
    pods_with(replicas, |_| Vec::new())
}

/// The same with more arguments.
fn pods_with(replicas: u32, more: impl FnOnce(&Path) -> Vec<String>) -> (TestBox, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let set = TestBox::syncer_with(replicas, Policy::Parallel, |config| {
        can_be_held_back(config, folder.path());
        if let Program::Syncer { args, .. } = &mut config.program {
            args.extend(more(folder.path()));
        }
    });
    (set, folder)
}

/// Kills a pod and holds its successor back until the file is removed.
fn hold(set: &TestBox, folder: &Path, ordinal: u32) -> PathBuf {
    let held = folder.join(format!("hold-vc-{ordinal}"));
    fs::write(&held, "").expect("write a file");
    let before = set.status().expect("a status").pods[&ordinal].incarnation;
    set.kill9(ordinal).expect("kill");
    let replaced = |pods: &crate::statefulset_box::protocol::Status| {
        pods.pods.get(&ordinal).is_some_and(|pod| pod.incarnation > before && pod.pid.is_some())
    };
    set.wait("its successor is held back", CHANGE, replaced).expect("it is replaced");
    held
}

/// Puts the snapshot in the place of the pod's data dir, as the only member of a new cluster.
fn restore(set: &TestBox, snapshot: &Path, ordinal: u32) {
    let etcd = set.volume(&format!("vc-{ordinal}")).join("etcd");
    fs::remove_dir_all(&etcd).expect("remove the data dir");
    let (name, url) = (format!("vc-{ordinal}"), format!("https://vc-{ordinal}.vc-headless.team-a:2380"));
    let mut restore = Command::new(part("etcdutl"));
    restore
        .args(["snapshot", "restore", "--name", &name, "--initial-cluster-token", "another", "--data-dir"])
        .arg(etcd);
    restore.args(["--initial-cluster", &format!("{name}={url}"), "--initial-advertise-peer-urls", &url]);
    output(restore.args(["--bump-revision", "1000000", "--mark-compacted"]).arg(snapshot));
}

fn snapshot(set: &TestBox, folder: &Path) -> PathBuf {
    let file = folder.join("snapshot.db");
    set.etcdctl(0, &["snapshot", "save", &file.display().to_string()]);
    file
}

/// What a pod that serves says, once that is as wanted.
fn said(set: &TestBox, ordinal: u32, what: &str, wanted: impl Fn(&Said) -> bool) -> Said {
    let access = Access::of(set, ordinal);
    poll(&format!("pod {ordinal}: {what}"), CHANGE, || ask(&access).filter(&wanted))
}

#[test]
fn a_pod_that_serves_another_cluster_stops_once_it_sees_those_that_serve_theirs() {
    let (set, folder) = pods(3);
    let mut scene = Scene::of(3, set);
    if !scene.set.has_namespaces() {
        return;
    }
    let mine = said(&scene.set, 0, "its cluster", |_| true).cluster;
    let file = snapshot(&scene.set, folder.path());
    let held = hold(&scene.set, folder.path(), 2);
    // Nobody answers at its boot.
    scene.set.partition(2, 0).expect("part them");
    scene.set.partition(2, 1).expect("part them");
    restore(&scene.set, &file, 2);
    fs::remove_file(held).expect("let it go");
    let theirs = said(&scene.set, 2, "it serves another cluster", |said| said.cluster != mine).cluster;

    scene.set.heal().expect("heal");
    let refusal = format!("two unrelated clusters: {theirs:x} and {mine:x}");
    poll(&refusal, CHANGE, || {
        let log = scene.set.log("vc-2");
        (log.contains(&format!("{refusal}: stopping")) && log.contains("exit status: 5")).then_some(())
    });
    // The others have gone on, and do.
    assert!(!scene.set.log("vc-0").contains(": stopping") && !scene.set.log("vc-1").contains(": stopping"));
    let before = scene.writer.acknowledged().len();
    poll("the others go on", CHANGE, || (scene.writer.acknowledged().len() > before + 20).then_some(()));
    scene.set.until("the others are ready", |s| s.ready() == [0, 1]);
    // The remedy: the volume that is not to be kept is taken away.
    scene.replaced(2, "the stray volume is gone", |set| set.lose_volume(2).expect("lose the volume"));
    assert!(!scene.writer.finish().is_empty());
}

/// The seed comes back restored while the others serve on and cannot hear it: its etcd runs, its API server does not beside
/// theirs. Once they hear it they stop and join, and then it does.
#[test]
fn pods_that_run_notice_a_restore_and_join_the_restored_cluster() {
    let (set, folder) = pods_with(3, |folder| wrapped(folder).into());
    if !set.has_namespaces() {
        return;
    }
    let api_servers = |ordinal: u32| set.log(&format!("vc-{ordinal}")).matches("an API server runs").count();
    poll("each has an API server", CHANGE, || (0..3).all(|ordinal| api_servers(ordinal) == 1).then_some(()));
    let old = said(&set, 0, "three voters", |said| said.voters.len() == 3).cluster;
    set.etcdctl(0, &["put", "/before", "x"]);
    let file = snapshot(&set, folder.path());
    let held = hold(&set, folder.path(), 0);
    said(&set, 1, "it serves without the leader that was killed", |_| true);
    set.etcdctl(1, &["put", "/after", "x"]);
    restore(&set, &file, 0);
    notes::change(&RealDisk, &set.volume("vc-0"), |notes| notes.superseded.push(ClusterId(old))).expect("note it");
    for other in [1, 2] {
        set.partition(0, other).expect("part them");
    }
    fs::remove_file(held).expect("let it go");

    said(&set, 0, "etcd serves the restored cluster", |said| said.cluster != old);
    let waits = "waiting: the API server of the restored cluster does not start beside the one it has replaced";
    let silent = format!("{waits}: pods 1, 2 may serve it and give no word");
    poll("the seed says what it waits for", CHANGE, || set.log("vc-0").contains(&silent).then_some(()));
    assert!(said(&set, 1, "the old one is served on", |_| true).cluster == old && api_servers(0) == 1);
    set.heal().expect("heal");
    poll("the API server starts", CHANGE, || (api_servers(0) == 2).then_some(()));
    for pod in ["vc-1", "vc-2"] {
        let volume = set.volume(pod);
        let asides = syncer::datadir::quarantine::asides(&volume.join("etcd")).expect("a volume");
        assert_eq!(asides.len(), 1, "{pod} had the old cluster's data when the seed's API server was started");
    }

    let new = said(&set, 0, "three voters of another cluster", |said| said.cluster != old && said.voters.len() == 3);
    for ordinal in 0..3 {
        assert_eq!(said(&set, ordinal, "it serves the restored cluster", |said| *said == new), new);
        assert_eq!(set.etcdctl(ordinal, &["get", "/before", "--print-value-only"]), "x\n");
        assert_eq!(set.etcdctl(ordinal, &["get", "/after", "--print-value-only"]), "");
    }
    for pod in ["vc-1", "vc-2"] {
        let log = set.log(pod);
        // It hears so from the seed, or without a quorum when the other has heard it first.
        let heard = log.contains("a restore has replaced this cluster") || log.contains("(Superseded)");
        assert!(heard && log.contains("it was set aside"), "{log}");
        // Nor does its liveness fail while the command that answers for it is not to run.
        assert!(!log.contains("the pod's process has ended"), "{pod} was ended meanwhile:\n{log}");
    }

    // That nobody serves the old one any more has been seen: nobody's silence holds up a later start.
    let held = hold(&set, folder.path(), 0);
    // Who cannot be heard must not lead, or the seed's etcd finds no leader. Leadership rests on the lowest of them soon.
    let leads = |ordinal: u32| {
        let said = set.etcdctl(ordinal, &["endpoint", "status", "-w", "json"]);
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        let status = &said[0]["Status"];
        status["leader"] == status["header"]["member_id"]
    };
    poll("leadership rests on pod 1", CHANGE, || leads(1).then_some(()));
    set.partition(0, 2).expect("part them");
    fs::remove_file(held).expect("let it go");
    poll("the API server starts again", CHANGE, || (api_servers(0) == 3).then_some(()));
}

/// Without a host API a lost volume of the seed looks like a first start, but for what the others know.
#[test]
fn a_seed_forms_nothing_beside_a_pod_that_is_to_join_a_cluster() {
    let (set, folder) = pods(2);
    let old = said(&set, 0, "two voters", |said| said.voters.len() == 2).cluster;
    set.wait("two pods", CHANGE, |s| s.settled).expect("two pods");
    // It leaves, and its volume notes which cluster it was of.
    set.scale(1).expect("scale");
    set.wait("one pod", CHANGE, |s| s.settled && s.pods.len() == 1).expect("one pod");
    let held = hold(&set, folder.path(), 0);
    let lost = folder.path().join("lost");
    syncer::disk::Disk::rename(&RealDisk, &set.volume("vc-0"), &lost).expect("take the volume away");
    fs::create_dir(set.volume("vc-0")).expect("an empty volume");
    set.scale(2).expect("scale");
    poll("the other is to join", CHANGE, || set.log("vc-1").contains("NobodyToJoin").then_some(()));
    fs::remove_file(held).expect("let it go");

    let knows = format!("cluster {old:x} has been formed, this volume is empty");
    poll("the seed is told", CHANGE, || set.log("vc-0").contains(&knows).then_some(()));
    assert!(!set.volume("vc-0").join("etcd").exists());
    // The remedy.
    set.lose_volume(1).expect("lose the volume");
    let new = said(&set, 0, "a new cluster", |said| said.voters.len() == 2);
    assert_ne!(new.cluster, old);
}
