//! In a real host cluster: its API says how many pods there should be, and keeps the marker. No acknowledged write is lost.

use std::time::{Duration, Instant};

use crate::scaling::{Access, CHANGE, Scene, ask, etcd_calls_it_healthy};
use crate::statefulset_box::protocol::{ApiMood, NetworkMode, Policy};
use crate::support::poll;
use crate::support::statefulset::TestBox;

/// So long nothing must change where nothing may.
const NOTHING: Duration = Duration::from_secs(8);

/// A host cluster needs namespaces and twenty seconds.
fn possible() -> bool {
    if std::env::var_os("SYNCER_QUICK").is_some() {
        return false;
    }
    let namespaces = TestBox::up(|config| config.replicas = 0).status().expect("a status").network;
    if namespaces != NetworkMode::Namespaces {
        println!("pods have no namespaces here: this is not tested");
    }
    namespaces == NetworkMode::Namespaces
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

/// For a while the members stay those that they are.
fn nobody_is_removed(scene: &Scene, what: &str, voters: usize) {
    let began = Instant::now();
    while began.elapsed() < NOTHING {
        if let Some(said) = ask(&Access::of(&scene.set, 0)) {
            assert_eq!((said.voters.len(), said.learners), (voters, 0), "{what}{}", scene.logs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn the_host_cluster_says_how_many_and_keeps_the_marker() {
    if !possible() {
        return;
    }
    let mut scene = Scene::of(1, TestBox::hosted(1, Policy::Parallel));
    let cluster = formed(&scene.set).expect("formed before anybody was served");
    let owner =
        scene.set.kubectl(&["get", "configmap", "vc-etcd", "-o", "jsonpath={.metadata.ownerReferences[*].name}"]);
    assert_eq!(owner, "vc-headless");

    scale(&mut scene, 3);
    scene.set.kubectl(&["delete", "configmap", "vc-etcd"]);
    poll("the leader's pod writes the marker again", CHANGE, || formed(&scene.set).filter(|again| *again == cluster));

    // A host API that is away, or that denies, removes nobody; whoever has data starts.
    scene.set.host_api(ApiMood::Gone).expect("a mood");
    nobody_is_removed(&scene, "the API is away", 3);
    scene.set.host_api(ApiMood::Well).expect("a mood");
    poll("the API is back", CHANGE, || formed(&scene.set));
    allow(&scene.set, r#"["list"]"#);
    let before = scene.set.status().expect("a status").pods[&1].incarnation;
    scene.set.kill9(1).expect("kill");
    let back = |pod: &crate::statefulset_box::protocol::PodStatus| pod.ready && pod.incarnation > before;
    scene.set.wait("pod 1 is back", CHANGE, |s| s.pods.get(&1).is_some_and(back)).expect("pod 1 starts from its data");
    scene.rests("the API denies", 3);
    scene.set.kubectl(&["scale", "statefulset", "vc", "--replicas=1"]);
    scene.set.wait("two pods are gone", CHANGE, |s| s.pods.len() == 1).expect("they stop");
    allow(&scene.set, r#"["get", "list", "watch"]"#);
    scene.set.kubectl(&["scale", "statefulset", "vc", "--replicas=3"]);
    scene.scaled(3);

    scale(&mut scene, 1);
    assert_eq!(formed(&scene.set), Some(cluster.clone()));

    // The volume is lost, and the marker knows of it.
    let lost = scene.set.volume("vc-0").with_extension("lost-0");
    scene.set.lose_volume(0).expect("lose the volume");
    poll("it is not formed anew", CHANGE, || scene.set.log("vc-0").contains("has been formed").then_some(()));
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
    assert_eq!(stopped, 3, "each notes its last entry: {:?}{}", marker(&scene.set), scene.logs());
    scale(&mut scene, 3);
    assert_eq!(marker(&scene.set).expect("a marker")["stopped"], serde_json::json!([]));

    // As an upgrade of the chart does that changes what cannot be changed: the pods stay, and so do the members.
    scene.set.kubectl(&["delete", "statefulset", "vc", "--cascade=orphan"]);
    nobody_is_removed(&scene, "the StatefulSet is gone", 3);
    assert!(!scene.writer.finish().is_empty());
}

fn nobody_serves(scene: &Scene) {
    let began = Instant::now();
    while began.elapsed() < NOTHING {
        assert!(ask(&Access::of(&scene.set, 0)).is_none(), "a second cluster serves");
    }
}
