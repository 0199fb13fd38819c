//! A rolling upgrade of etcd, one minor version after the other, under a writer.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use syncer::disk::{Disk, RealDisk};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{CHANGE, Scene, runtime};
use crate::statefulset_box::protocol::{Policy, Program};
use crate::support::etcd::program;
use crate::support::kube::Kube;
use crate::support::statefulset::TestBox;
use crate::support::{poll, syncer};

/// Waits until each member has the cluster version of the line, some seconds after the last of them runs it: members of
/// the next line cannot join before.
fn cluster_version(set: &TestBox, line: &str) {
    let read = |name: &str| std::fs::read(set.dir().join("pki").join(name)).expect("read a certificate");
    for ordinal in 0..3 {
        let port = set.forward(ordinal, 2379).expect("a forward").port();
        let identity = (read("etcd/healthcheck-client.crt"), read("etcd/healthcheck-client.key"));
        let etcd = Kube::new(&format!("https://localhost:{port}"), Some(&read("etcd/ca.crt")), Some(identity), None);
        let etcd = etcd.expect("a client");
        poll(&format!("pod {ordinal} has cluster version {line}"), CHANGE, || {
            let told = runtime().block_on(etcd.get("/version")).ok()?;
            told["etcdcluster"].as_str()?.starts_with(&format!("{line}.")).then_some(())
        });
    }
}

/// The folder's etcd is of this line from here on, for whoever starts it.
pub fn install(folder: &Path, line: &str) {
    let new = folder.join("new");
    symlink(program("etcd", line), &new).expect("link");
    RealDisk.rename(&new, &folder.join("etcd")).expect("put it in place");
}

/// What etcd each pod runs.
fn runs(set: &TestBox, ordinal: u32) -> String {
    let shown: serde_json::Value =
        serde_json::from_str(&set.etcdctl(ordinal, &["endpoint", "status", "-w", "json"])).expect("JSON");
    shown[0]["Status"]["version"].as_str().expect("a version").to_owned()
}

/// One pod of the new line beside two of the old: either kind is killed, or loses its volume, and comes back as it was.
fn faults_while_mixed(scene: &mut Scene, folder: &Path, old: &str, new: &str) {
    let mut back = |ordinal: u32, line: &str, what: &str, end: fn(&TestBox, u32)| {
        install(folder, line);
        let what = format!("{old} and {new}: pod {ordinal} with {line} {what}");
        scene.replaced(ordinal, &what, |set| end(set, ordinal));
        let lines = [runs(&scene.set, 0), runs(&scene.set, 1), runs(&scene.set, 2)];
        let wanted = [old, old, new].iter().zip(&lines).all(|(line, shown)| shown.starts_with(&format!("{line}.")));
        assert!(wanted, "{what}: {lines:?}");
        let written = scene.writer.acknowledged().len();
        poll(&format!("{what}: writes go on"), CHANGE, || {
            (scene.writer.acknowledged().len() > written + 20).then_some(())
        });
    };
    let killed = |set: &TestBox, ordinal: u32| set.kill9(ordinal).expect("kill");
    let lost = |set: &TestBox, ordinal: u32| set.lose_volume(ordinal).expect("lose the volume");
    back(2, new, "is upgraded by a kill", killed);
    back(2, new, "is killed again", killed);
    back(1, old, "is killed", killed);
    back(0, old, "is killed, through which all is written", killed);
    back(2, new, "loses its volume", lost);
    back(1, old, "loses its volume", lost);
}

/// Pod by pod, and no version is skipped. Before each step, faults beside the first pod that has made it. What a pod left behind
/// before the first step keeps it from nothing after the last.
#[test]
fn etcd_is_upgraded_to_3_7_once_raft_snapshots_have_been_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("open the folder");
    install(folder.path(), "3.5");
    let set = TestBox::syncer_with(3, Policy::OrderedReady, |config| {
        let (file, binaries, args) = (syncer(), folder.path().to_owned(), vec!["--distro=none".to_owned()]);
        config.program = Program::Syncer { file, binaries, args };
    });
    let mut scene = Scene::of(3, set);
    // Pod 3 is removed under 3.5, and its volume keeps the data dir in its place, as if it had been killed first.
    scene.scale(4);
    scene.scale(3);
    let volume = scene.set.volume("vc-3");
    let mut kept = std::fs::read_dir(&volume).expect("its volume").flatten().map(|entry| entry.path());
    // One that used up its grace has left it there.
    if let Some(aside) = kept.find(|path| path.display().to_string().contains("etcd.aside-")) {
        RealDisk.rename(&aside, &volume.join("etcd")).expect("put it back");
    }
    let versions = |scene: &Scene, line: &str| {
        let shown = scene.set.etcdctl(0, &["endpoint", "status"]);
        assert!(shown.contains(&format!(", {line}.")), "{shown}");
    };
    let rolled = |scene: &mut Scene, line: &str| {
        let settled = scene.set.wait(&format!("all run {line}"), CHANGE, |s| s.settled);
        settled.unwrap_or_else(|error| panic!("{error:#}"));
        scene.rests(&format!("upgraded to {line}"), 3);
        versions(scene, line);
        cluster_version(&scene.set, line);
    };
    // From what pod 2 is given nothing is started; the two others keep the quorum, and the update goes no further.
    let refused = |scene: &Scene, line: &str, why: &str, remedy: &str| {
        install(folder.path(), line);
        let before = scene.set.log("vc-2").len();
        scene.set.roll().expect("roll");
        let said = || {
            let log = scene.set.log("vc-2").split_off(before);
            [why, remedy, "if the others serve with the etcd that this pod has"]
                .iter()
                .all(|said| log.contains(said))
                .then_some(())
        };
        poll(why, CHANGE, said);
        scene.set.until("the others are ready", |s| s.ready() == [0, 1]);
    };
    let put_back = |scene: &Scene, line: &str| {
        install(folder.path(), line);
        scene.set.kill9(2).expect("kill");
        scene.set.wait("pod 2 is back", CHANGE, |s| s.settled).unwrap_or_else(|error| panic!("{error:#}"));
    };
    versions(&scene, "3.5");
    refused(&scene, "3.7", "the etcd data dir is too old for this etcd", "run the minor version in between");
    put_back(&scene, "3.5");
    faults_while_mixed(&mut scene, folder.path(), "3.5", "3.6");
    install(folder.path(), "3.6");
    scene.set.roll().expect("roll");
    rolled(&mut scene, "3.6");
    // What 3.5 has written is still in the logs. The remedy: the writer's next hundred writes.
    refused(&scene, "3.7", "its log has a request of etcd 3.5", "snapshotCount: 100 in the values");
    put_back(&scene, "3.6");
    let values = "embeddedEtcd:\n  enabled: true\n  snapshotCount: 100\nsyncer:\n  replicas: 3\n";
    std::fs::write(scene.set.dir().join("values.yaml"), values).expect("write the values");
    scene.set.roll().expect("roll");
    rolled(&mut scene, "3.6");
    let before = scene.writer.acknowledged().len();
    poll("a few hundred writes", CHANGE, || (scene.writer.acknowledged().len() > before + 300).then_some(()));
    faults_while_mixed(&mut scene, folder.path(), "3.6", "3.7");
    install(folder.path(), "3.7");
    scene.set.roll().expect("roll");
    rolled(&mut scene, "3.7");
    // etcd 3.7 could not start from that data dir, and nobody needs it to: it is no member's any more.
    let said = scene.set.log("vc-3").len();
    scene.scale(4);
    let log = scene.set.log("vc-3").split_off(said);
    assert!(log.contains("the data dir is no member's any more: it was set aside"), "{log}");
    assert!(!scene.writer.finish().is_empty());
}

/// A changed quota reaches the values files of all pods in the same moment, and each starts its etcd again in its turn.
#[test]
fn changed_settings_start_etcd_again_in_one_pod_after_the_other() {
    let mut scene = Scene::begin(Policy::Parallel);
    let file = scene.set.dir().join("values.yaml");
    let values = std::fs::read_to_string(&file).expect("the values");
    let changed = values.replace("embeddedEtcd:\n", "embeddedEtcd:\n  quotaBackendBytes: 3Gi\n");
    assert_ne!(changed, values);
    std::fs::write(&file, changed).expect("write the values");
    let again = |ordinal: u32| {
        let log = scene.set.log(&format!("vc-{ordinal}"));
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let of_etcd: Vec<_> = lines.filter(|line| line["child"] == "etcd").collect();
        let at = of_etcd.iter().position(|line| line["message"] == "is started anew")?;
        let serves = of_etcd[at..].iter().find(|line| line["message"] == "serves")?;
        let time = |line: &serde_json::Value| OffsetDateTime::parse(line["time"].as_str()?, &Rfc3339).ok();
        time(&of_etcd[at]).zip(time(serves))
    };
    let mut turns: Vec<_> = (0..3).map(|n| poll("etcd is started again", CHANGE, || again(n))).collect();
    turns.sort();
    let one_by_one = turns.windows(2).all(|two| two[0].1 < two[1].0);
    assert!(one_by_one, "two at a time: {turns:?}");
    scene.rests("all run by the new settings", 3);
    assert!(!scene.writer.finish().is_empty());
}
