//! In a real host cluster: its API says how many pods there should be, and keeps the marker. No acknowledged write is lost.

mod away;
mod first_ordinal;
mod kills;
mod late;
mod marker;
mod sqlite;
mod unfit;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::scaling::{Access, CHANGE, Scene, ask, etcd_calls_it_healthy};
use crate::statefulset_box::protocol::{ApiMood, Config, PodStatus, Policy, Program, Status};
use crate::support::statefulset::{TestBox, can_be_held_back, has_time_to_leave, statefulset};
use crate::support::{part, poll, syncer};

/// So long nothing must change where nothing may.
const NOTHING: Duration = Duration::from_secs(8);

/// A host cluster needs namespaces and twenty seconds.
fn possible() -> bool {
    if std::env::var_os("SYNCER_QUICK").is_some() {
        return false;
    }
    TestBox::up(|config| config.replicas = 0).has_namespaces()
}

/// The marker as the ConfigMap has it, if there is one.
fn marker(set: &TestBox) -> Option<serde_json::Value> {
    let text = set.kubectl(&["get", "configmap", "vc-etcd", "--ignore-not-found", "-o", "jsonpath={.data.marker}"]);
    (!text.is_empty()).then(|| serde_json::from_str(&text).expect("a marker"))
}

fn formed(set: &TestBox) -> Option<String> {
    Some(marker(set)?["phase"]["formed"].as_str()?.to_owned())
}

fn scale(scene: &mut Scene, replicas: u32) {
    etcd_calls_it_healthy();
    scene.set.kubectl(&["scale", "statefulset", "vc", &format!("--replicas={replicas}")]);
    scene.scaled(replicas);
}

/// What the Role lets the pods do with their StatefulSet.
fn allow(set: &TestBox, verbs: &str) {
    let rule = r#"[{"op": "replace", "path": "/rules/1/verbs", "value": VERBS}]"#.replace("VERBS", verbs);
    set.kubectl(&["patch", "role", "vc", "--type=json", "-p", &rule]);
}

/// Whether the Role lets the pods use Secrets, beside what else it lets them do.
fn allow_secrets(set: &TestBox, allowed: bool) {
    let resources = r#"["configmaps", "services", "pods", "persistentvolumeclaims""#;
    let secrets = if allowed { r#", "secrets"]"# } else { "]" };
    let rule = format!(r#"[{{"op": "replace", "path": "/rules/0/resources", "value": {resources}{secrets}}}]"#);
    set.kubectl(&["patch", "role", "vc", "--type=json", "-p", &rule]);
}

/// What is under a key of the Secret with the certificates, in base64.
fn shared(set: &TestBox, key: &str) -> String {
    let path = format!("jsonpath={{.data.{}}}", key.replace('.', "\\."));
    set.kubectl(&["get", "secret", "vc-certs", "--ignore-not-found", "-o", &path])
}

/// A file of a pod's own PKI, in base64.
fn own(set: &TestBox, ordinal: u32, file: &str) -> String {
    let path = set.volume(&format!("vc-{ordinal}")).join("pki").join(file);
    STANDARD.encode(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// Pods without a mounted PKI.
fn hosted(replicas: u32, policy: Policy, change: impl FnOnce(&mut Config)) -> TestBox {
    TestBox::hosted_with(replicas, policy, |config| {
        config.mounted_pki = false;
        change(config);
    })
}

#[test]
fn the_host_cluster_says_how_many_and_keeps_the_marker() {
    if !possible() {
        return;
    }
    let mut scene = Scene::of(1, hosted(1, Policy::Parallel, |_| ()));
    let cluster = formed(&scene.set).expect("formed before anybody was served");
    let owner =
        scene.set.kubectl(&["get", "configmap", "vc-etcd", "-o", "jsonpath={.metadata.ownerReferences[*].name}"]);
    assert_eq!(owner, "vc-headless");
    let ca = shared(&scene.set, "etcd-ca.key");
    assert!(!ca.is_empty() && ca == own(&scene.set, 0, "etcd/ca.key"));
    let owner = scene.set.kubectl(&["get", "secret", "vc-certs", "-o", "jsonpath={.metadata.ownerReferences[*].name}"]);
    assert_eq!(owner, "vc-headless");

    scale(&mut scene, 3);
    for ordinal in 0..3 {
        assert_eq!(own(&scene.set, ordinal, "etcd/ca.key"), ca, "pod {ordinal} has the first one's");
    }
    secret_away(&mut scene);
    assert_eq!(shared(&scene.set, "etcd-ca.key"), ca, "a pod that has it puts it there again");
    assert_eq!(own(&scene.set, 2, "etcd/ca.key"), ca);

    scene.set.kubectl(&["delete", "configmap", "vc-etcd"]);
    poll("the leader's pod writes the marker again", CHANGE, || formed(&scene.set).filter(|again| *again == cluster));

    away::gone(&mut scene);
    away::denies(&mut scene);
    for replicas in [5, 3, 1] {
        scale(&mut scene, replicas);
    }
    assert_eq!(formed(&scene.set), Some(cluster.clone()));

    // The volume is lost, and the marker knows of it.
    let lost = scene.set.volume("vc-0").with_extension("lost-0");
    scene.set.lose_volume(0).expect("lose the volume");
    poll("it is not formed anew", CHANGE, || scene.set.log("vc-0").contains("has been formed").then_some(()));
    assert_eq!(own(&scene.set, 0, "etcd/ca.key"), ca, "from the Secret");
    nobody_serves(&scene);
    scene.set.kubectl(&["scale", "statefulset", "vc", "--replicas=0"]);
    scene.scaled(0);
    std::fs::remove_dir_all(scene.set.volume("vc-0")).expect("remove what stood in its place");
    let found = std::process::Command::new("mv").arg(&lost).arg(scene.set.volume("vc-0")).status().expect("mv");
    assert!(found.success());
    scene.set.kubectl(&["scale", "statefulset", "vc", "--replicas=3"]);
    scene.scaled(3);

    // A pause and back.
    scale(&mut scene, 0);
    let stopped = marker(&scene.set).expect("a marker")["stopped"].as_array().map_or(0, Vec::len);
    assert_eq!(stopped, 3, "each notes its last entry: {:?}", marker(&scene.set));
    scale(&mut scene, 3);
    assert_eq!(marker(&scene.set).expect("a marker")["stopped"], serde_json::json!([]));

    away::orphaned(&scene);
    assert!(!scene.writer.finish().is_empty());
}

/// The StatefulSet's own controller, in order: up, down, to nothing and back. Then the seed's volume is lost.
#[test]
fn in_order_every_step_of_kubectl_scale_is_followed() {
    if !possible() {
        return;
    }
    let mut scene = Scene::of(1, hosted(1, Policy::OrderedReady, |_| ()));
    let cluster = formed(&scene.set);
    for replicas in [3, 5, 2, 1, 0, 3] {
        scale(&mut scene, replicas);
        if replicas == 5 {
            // It has not led, not even while the first was started anew among others: nothing else has it ask.
            watch_has_told(&scene.set, 2, replicas);
        }
    }
    assert_eq!(formed(&scene.set), cluster);

    let voters = scene.voters();
    scene.replaced(0, "the seed lost its volume", |set| set.lose_volume(0).expect("lose the volume"));
    let now = scene.voters();
    assert_eq!(now.intersection(&voters).count(), 2, "the two others are whom they were: {voters:?}, now {now:?}");
    assert_eq!(own(&scene.set, 0, "etcd/ca.key"), shared(&scene.set, "etcd-ca.key"), "it has a CA of its own");
    assert_eq!(formed(&scene.set), cluster, "the marker names another cluster");
    assert!(!scene.writer.finish().is_empty());
}

/// Waits until a pod says that the StatefulSet was scaled to this.
fn watch_has_told(set: &TestBox, ordinal: u32, replicas: u32) {
    let pod = format!("vc-{ordinal}");
    let told = |line: &str| {
        let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
        line.is_some_and(|l| l["message"] == "the StatefulSet was scaled" && l["replicas"] == replicas)
    };
    let what = format!("the watch of {pod} tells it that {replicas} are wanted (see its log)");
    poll(&what, CHANGE, || set.log(&pod).lines().any(told).then_some(()));
}

/// Three that were paused, of which one comes back: what the others noted when they stopped proves that it lacks nothing.
/// The others' volumes come back to a cluster that has dropped their members.
#[test]
fn one_of_three_that_were_paused_goes_on_alone() {
    if !possible() {
        return;
    }
    let mut scene = Scene::of(3, hosted(3, Policy::Parallel, |_| ()));
    for dropped in [2, 4] {
        for replicas in [0, 1] {
            scale(&mut scene, replicas);
        }
        let now = marker(&scene.set).expect("a marker");
        let count = now["dropped"].as_array().map_or(0, Vec::len);
        assert!(!now["survivor"].is_null() && count == dropped, "{dropped} are dropped: {now}");
        scale(&mut scene, 3);
        for ordinal in 1..3 {
            let asides = syncer::datadir::quarantine::asides(&scene.set.volume(&format!("vc-{ordinal}")).join("etcd"));
            assert_eq!(asides.expect("a volume").len(), dropped / 2, "pod {ordinal} joined anew");
        }
    }
    assert!(!scene.writer.finish().is_empty());
}

/// The Secret is gone, may not be used, and a volume is lost with what was in it: that pod makes nothing of its own.
fn secret_away(scene: &mut Scene) {
    allow_secrets(&scene.set, false);
    scene.set.kubectl(&["delete", "secret", "vc-certs"]);
    let said = |scene: &Scene, what: &str| {
        poll(what, CHANGE, || scene.set.log("vc-2").contains(what).then_some(()));
    };
    scene.set.lose_volume(2).expect("lose the volume");
    said(scene, "this pod may not use Secret vc-certs");
    assert!(!scene.set.volume("vc-2").join("pki").exists(), "it made one of its own");
    poll("a pod that waits for the Secret lives", CHANGE, || scene.set.get(2, "/healthz"));
    assert_eq!(scene.set.status().expect("a status").pods[&2].restarts, 0, "it was ended for that");
    assert!(scene.set.get(2, "/readyz").is_none(), "it is ready");
    allow_secrets(&scene.set, true);
    said(scene, "has been formed, and Secret vc-certs has no CA of etcd");
    scene.replaced(1, "a pod that has it was started again", |set| set.kill9(1).expect("kill"));
}

fn nobody_serves(scene: &Scene) {
    let began = Instant::now();
    while began.elapsed() < NOTHING {
        assert!(ask(&Access::of(&scene.set, 0)).is_none(), "a second cluster serves");
    }
}

/// Without a mounted PKI, three pods that start at once, and an API that takes requests and never answers them: nobody is
/// removed, whoever has data starts, and whoever is told to stop does so in time. Pods that are scaled away by force: what
/// is left goes on alone if that is lossless, and otherwise says what to do.
#[test]
fn three_at_once_and_scaled_away_by_force() {
    if !possible() {
        return;
    }
    let mut scene = Scene::of(3, hosted(3, Policy::Parallel, |_| ()));
    let ca = shared(&scene.set, "etcd-ca.key");
    for ordinal in 0..3 {
        assert_eq!(own(&scene.set, ordinal, "etcd/ca.key"), ca, "pod {ordinal}");
    }
    away::hangs(&mut scene);

    // Of three voters two are killed: a write may be with those alone.
    by_force(&scene, 1, &[1, 2]);
    poll("it says what to do", CHANGE, || scene.set.log("vc-0").contains("scale up to 3").then_some(()));
    nobody_serves(&scene);
    scene.set.kubectl(&["scale", "statefulset", "vc", "--replicas=3"]);
    scene.scaled(3);

    // Of two voters one is killed: what was acknowledged is with both.
    scale(&mut scene, 2);
    by_force(&scene, 1, &[1]);
    goes_on_alone(&mut scene);
    let now = marker(&scene.set).expect("a marker");
    let dropped = now["dropped"].as_array().map_or(0, Vec::len);
    assert!(!now["survivor"].is_null() && dropped > 0, "the marker names who goes on: {now}");
    scale(&mut scene, 3);
    assert!(!scene.writer.finish().is_empty());
}

fn goes_on_alone(scene: &mut Scene) {
    let began = Instant::now();
    let access = Access::of(&scene.set, 0);
    while ask(&access).is_none_or(|said| said.voters.len() != 1) {
        assert!(began.elapsed() < CHANGE, "pod 0 does not go on alone: {:?}", marker(&scene.set));
        std::thread::sleep(Duration::from_millis(100));
    }
    scene.scaled(1);
}

/// Scales, and kills those that leave before they can.
fn by_force(scene: &Scene, replicas: u32, leaving: &[u32]) {
    etcd_calls_it_healthy();
    // However late the kill comes, they have not begun to leave.
    let pods = scene.set.status().expect("a status").pods;
    for pid in leaving.iter().filter_map(|ordinal| pods[ordinal].pid) {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("stop its syncer");
    }
    scene.set.scale_only(replicas).expect("scale");
    leaving.iter().for_each(|ordinal| scene.set.kill9(*ordinal).expect("kill"));
    let count = replicas as usize;
    scene.set.wait("the killed ones are gone", CHANGE, |s| s.pods.len() == count).expect("they are gone");
}

/// A pod that is made, and before it has looked at anything the API hangs: it waits, forms nothing beside those that it
/// cannot be told of, and lives on. It joins when the API is back.
#[test]
fn a_pod_that_finds_the_api_hanging_waits_and_joins_when_it_is_back() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let held = folder.path().join("hold-vc-1");
    std::fs::write(&held, "").expect("write a file");
    let set = TestBox::hosted_with(1, Policy::Parallel, |config| can_be_held_back(config, folder.path()));
    let mut scene = Scene::of(1, set);
    scene.set.kubectl(&["scale", "statefulset", "vc", "--replicas=2"]);
    let runs = |s: &Status| s.pods.get(&1).is_some_and(|pod| pod.pid.is_some());
    let made = scene.set.wait("pod 1 is made", CHANGE, runs).expect("a pod").pods[&1].clone();
    has_its_name(&scene.set, &made);
    scene.set.host_api(ApiMood::Hangs).expect("a mood");
    std::fs::remove_file(held).expect("let it go");

    let waits = "waiting: the host cluster's API does not say what must be known";
    poll("it says what it waits for", CHANGE, || scene.set.log("vc-1").contains(waits).then_some(()));
    let began = Instant::now();
    while began.elapsed() < NOTHING {
        assert!(!scene.set.volume("vc-1").join("etcd").exists(), "it formed or joined");
        poll("it lives", CHANGE, || scene.set.get(1, "/healthz"));
        let said = poll("pod 0 serves on", CHANGE, || ask(&Access::of(&scene.set, 0)));
        assert_eq!((said.voters.len(), said.learners), (1, 0));
        std::thread::sleep(Duration::from_millis(200));
    }
    scene.set.host_api(ApiMood::Well).expect("a mood");
    scene.scaled(2);
    let now = scene.set.status().expect("a status").pods[&1].clone();
    assert_eq!((now.pid, now.restarts), (made.pid, 0), "its process was ended");
    assert!(!scene.writer.finish().is_empty());
}

/// Without a name no pod starts etcd, and with the API away no name leads to a new address.
fn has_its_name(set: &TestBox, pod: &PodStatus) {
    let address = pod.address.expect("it runs").to_string();
    let addresses = || set.kubectl(&["get", "endpointslices", "-o", "jsonpath={.items[*].endpoints[*].addresses}"]);
    let named = || addresses().contains(&format!("\"{address}\"")).then_some(());
    poll(&format!("{} has its name", pod.name), CHANGE, named);
}

/// Of three that are paused one is made the only one by hand. Scaled to one first, it has the others dropped, whose volumes
/// still have a quorum of their own; they join anew.
#[test]
fn one_that_is_recovered_by_hand_drops_those_whose_volumes_are_there() {
    if !possible() {
        return;
    }
    let set = hosted(3, Policy::Parallel, |_| ());
    let three = |s: &Status| s.settled && s.pods.len() == 3;
    set.wait("three pods", CHANGE, three).unwrap_or_else(|e| panic!("{e:#}{}", set.log("vc-0")));
    let cluster = formed(&set).expect("formed");
    set.etcdctl(0, &["put", "/registry/kept", "x"]);
    let scale = |replicas: usize| {
        set.kubectl(&["scale", "statefulset", "vc", &format!("--replicas={replicas}")]);
        set.wait("the pods are scaled", CHANGE, |s| s.settled && s.pods.len() == replicas)
            .unwrap_or_else(|e| panic!("{e:#}{}{}", set.log("vc-0"), set.log("vc-1")));
    };
    scale(0);
    let mut command = Command::new(syncer());
    command.args(["recover", "--accept-loss", "--cluster-id", &cluster, "--data-dir"]).arg(set.volume("vc-0"));
    crate::support::etcd::output(command.arg("--etcd").arg(part("etcd")));
    scale(1);
    let now = marker(&set).expect("a marker");
    let dropped = now["dropped"].as_array().map_or(0, Vec::len);
    assert!(!now["survivor"].is_null() && dropped == 2, "{now}{}", set.log("vc-0"));
    set.etcdctl(0, &["put", "/registry/since", "y"]);
    scale(3);
    let joined = |access: &Access| ask(access).filter(|said| said.voters.len() == 3);
    poll("three voters", CHANGE, || joined(&Access::of(&set, 0)));
    for ordinal in 1..3 {
        let asides = syncer::datadir::quarantine::asides(&set.volume(&format!("vc-{ordinal}")).join("etcd"));
        assert_eq!(asides.expect("a volume").len(), 1, "pod {ordinal} started from its data{}", set.log("vc-1"));
        let has = |key: &str| set.etcdctl(ordinal, &["get", key, "--print-value-only"]);
        assert_eq!((&*has("/registry/kept"), &*has("/registry/since")), ("x\n", "y\n"));
    }
}

/// etcd's CA is mounted into every pod, and k0s keeps the others in a folder that nothing shares.
#[test]
fn a_pod_whose_k0s_would_make_cas_of_its_own_does_not_join() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let set = TestBox::hosted_with(1, Policy::Parallel, |config| with_k0s_that_makes_cas(config, folder.path()));
    set.wait("one pod", CHANGE, |s| s.settled).unwrap_or_else(|e| panic!("{e:#}{}", set.log("vc-0")));
    set.kubectl(&["scale", "statefulset", "vc", "--replicas=2"]);
    let refused = "k0s would make its own in";
    poll("it does not join", CHANGE, || {
        let log = set.log("vc-1");
        (log.contains(refused) && log.contains("exit status: 6")).then_some(())
    });
    assert!(!set.volume("vc-1").join("etcd").exists(), "{}", set.log("vc-1"));
    let members = set.etcdctl(0, &["member", "list"]);
    assert_eq!(members.lines().count(), 1, "{members}");
    let pki = |pod: &str| set.volume(pod).join("k0s/pki");
    let files: Vec<_> =
        std::fs::read_dir(pki("vc-0")).expect("k0s has made them").map(|f| f.expect("a file")).collect();
    // Put there by hand, and others than those of the pod that serves.
    let put = |content: &dyn Fn(&Path) -> Vec<u8>| {
        let new = set.volume("vc-1").join("k0s/new");
        std::fs::create_dir_all(&new).expect("a folder");
        for file in &files {
            std::fs::write(new.join(file.file_name()), content(&file.path())).expect("write a file");
        }
        let _ = std::fs::remove_dir_all(pki("vc-1"));
        syncer::disk::Disk::rename(&syncer::disk::RealDisk, &new, &pki("vc-1")).expect("put it in place");
    };
    put(&|_| b"of somebody else".to_vec());
    poll("it does not join with other CAs", CHANGE, || {
        set.log("vc-1").contains("or its key pair for tokens, are not the same as pod 0's").then_some(())
    });
    assert!(!set.volume("vc-1").join("etcd").exists(), "{}", set.log("vc-1"));
    // The remedy.
    put(&|file| std::fs::read(file).expect("read a file"));
    set.wait("both serve", CHANGE, |s| s.settled && s.pods.len() == 2)
        .unwrap_or_else(|e| panic!("{e:#}{}", set.log("vc-1")));
    poll("both vote", CHANGE, || ask(&Access::of(&set, 1)).filter(|said| (said.voters.len(), said.learners) == (2, 0)));
}

/// In the place of k3s: keeps the token that it is given, and serves what is asked of an API server by probes.
fn with_k3s(config: &mut Config, folder: &Path) {
    let script = r#"#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in
    --token) token=$2 ;;
    --data-dir=*) data=${1#*=} ;;
  esac
  shift
done
printf %s "$token" >"$data/given-token"
exec STAND-IN stand-in --data-dir="$data" --listen=127.0.0.1:6443
"#;
    with_distro(config, folder, "k3s", script);
}

/// In the place of k0s: notes which PKI it finds, and serves what is asked of an API server by probes.
fn with_k0s(config: &mut Config, folder: &Path) {
    let notes = r#"cd "$data/pki" && sha256sum ca.crt ca.key front-proxy-ca.crt front-proxy-ca.key sa.key sa.pub >"$data/../found-by-k0s""#;
    with_k0s_that(config, folder, notes);
}

/// In the place of k0s: makes what it does not find.
fn with_k0s_that_makes_cas(config: &mut Config, folder: &Path) {
    let makes = r#"mkdir -p "$data/pki"
for file in ca.crt ca.key front-proxy-ca.crt front-proxy-ca.key sa.key sa.pub; do
  [ -e "$data/pki/$file" ] || echo "of $POD_NAME" >"$data/pki/$file"
done"#;
    with_k0s_that(config, folder, makes);
}

fn with_k0s_that(config: &mut Config, folder: &Path, does: &str) {
    let script = r#"#!/bin/sh
for argument; do
  case "$argument" in
    --data-dir=*) data=${argument#*=} ;;
  esac
done
DOES
exec STAND-IN stand-in --data-dir="$data" --listen=127.0.0.1:6443
"#;
    with_distro(config, folder, "k0s", &script.replace("DOES", does));
}

fn with_distro(config: &mut Config, folder: &Path, name: &str, script: &str) {
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).expect("open the folder");
    std::os::unix::fs::symlink(part("etcd"), folder.join("etcd")).expect("etcd");
    let file = folder.join(name);
    crate::support::script(&file, script.replace("STAND-IN", &statefulset().display().to_string()));
    if let Program::Syncer { binaries, args, .. } = &mut config.program {
        (*binaries, *args) = (folder.to_owned(), vec![format!("--distro={name}")]);
    }
}
