//! A host API that is away, that denies or never answers, and a StatefulSet that is gone: nobody is removed, whatever the values
//! say, and whoever has data starts.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::support::statefulset::alive;

/// By the values one pod is wanted, which is nobody's answer where there is a host API.
fn values_want_one(set: &TestBox) {
    let file = set.dir().join("values.yaml");
    let values = std::fs::read_to_string(&file).expect("the values");
    let (others, _) = values.split_once("replicas:").expect("values with replicas");
    std::fs::write(&file, format!("{others}replicas: 1\n")).expect("write the values");
}

/// For a while the members stay those that they are.
fn nobody_is_removed(scene: &Scene, what: &str, voters: &BTreeSet<u64>) {
    let (began, mut answers) = (Instant::now(), 0);
    while began.elapsed() < NOTHING {
        if let Some(said) = ask(&Access::of(&scene.set, 0)) {
            answers += 1;
            assert_eq!(
                (&said.voters, said.learners),
                (voters, 0),
                "{what}, and the members change (see the pods' logs)"
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(answers > 0, "{what}: pod 0 has no quorum, and tells of no members");
}

/// As its node does it. The pod asks whether it is wanted, and nobody can say; were it not, it would leave the membership.
fn is_told_to_stop(set: &TestBox, ordinal: u32) {
    let stopped = set.status().expect("a status").pods[&ordinal].pid.expect("it runs");
    kill(Pid::from_raw(stopped), Signal::SIGTERM).expect("a signal");
    poll(&format!("pod {ordinal} stops"), CHANGE, || (!alive(stopped)).then_some(()));
}

/// The API is away.
pub fn gone(scene: &mut Scene) {
    values_want_one(&scene.set);
    let voters = scene.voters();
    scene.set.host_api(ApiMood::Gone).expect("a mood");
    is_told_to_stop(&scene.set, 2);
    nobody_is_removed(scene, "the API is away", &voters);
    scene.set.host_api(ApiMood::Well).expect("a mood");
    scene.scaled(3);
    assert_eq!(scene.voters(), voters, "the API was away, and a member is another now");
}

/// The API denies the pods what they ask for.
pub fn denies(scene: &mut Scene) {
    values_want_one(&scene.set);
    allow(&scene.set, r#"["list"]"#);
    let before = scene.set.status().expect("a status").pods[&1].incarnation;
    scene.set.kill9(1).expect("kill");
    let back = |pod: &PodStatus| pod.ready && pod.incarnation > before;
    scene.set.wait("pod 1 is back", CHANGE, |s| s.pods.get(&1).is_some_and(back)).expect("pod 1 starts from its data");
    scene.rests("the API denies", 3);

    // They go, and stay members: pod 0 cannot remove them, and waits for their return.
    let voters = scene.voters();
    scene.set.kubectl(&["scale", "statefulset", "vc", "--replicas=1"]);
    scene.set.wait("two pods are gone", CHANGE, |s| s.pods.len() == 1).expect("they stop");
    let said = ask(&Access::of(&scene.set, 0));
    assert_eq!(said, None, "the API denies, and pod 0 has a quorum without the two that went (see its log)");
    allow(&scene.set, r#"["get", "list", "watch"]"#);
    scene.set.kubectl(&["scale", "statefulset", "vc", "--replicas=3"]);
    scene.scaled(3);
    assert_eq!(scene.voters(), voters, "the API denied, and those that went came back as other members");
}

/// The API takes requests and never answers them.
pub fn hangs(scene: &mut Scene) {
    values_want_one(&scene.set);
    let voters = scene.voters();
    let before = scene.set.status().expect("a status").pods[&1].incarnation;
    scene.set.kill9(1).expect("kill");
    let new = |pod: &PodStatus| pod.incarnation > before && pod.pid.is_some();
    let made = scene.set.wait("pod 1 is made anew", CHANGE, |s| s.pods.get(&1).is_some_and(new)).expect("a new pod");
    has_its_name(&scene.set, &made.pods[&1]);
    scene.set.host_api(ApiMood::Hangs).expect("a mood");
    let serves = || ask(&Access::of(&scene.set, 1)).filter(|said| said.voters == voters);
    poll("pod 1 starts from its data", CHANGE, serves);

    is_told_to_stop(&scene.set, 2);
    nobody_is_removed(scene, "the API hangs", &voters);
    scene.set.host_api(ApiMood::Well).expect("a mood");
    scene.scaled(3);
    assert_eq!(scene.voters(), voters, "the API hung, and a member is another now");
}

/// As an upgrade of the chart does that changes what cannot be changed: the pods stay, and nobody makes those anew that go.
pub fn orphaned(scene: &Scene) {
    values_want_one(&scene.set);
    let voters = scene.voters();
    scene.set.kubectl(&["delete", "statefulset", "vc", "--cascade=orphan"]);
    scene.set.kubectl(&["delete", "pod", "vc-2"]);
    // Whoever begins to lead looks at everything afresh.
    scene.led_by(1);
    nobody_is_removed(scene, "the StatefulSet is gone, and so is pod 2", &voters);
    let left = scene.set.status().expect("a status").pods;
    assert_eq!(left.keys().collect::<Vec<_>>(), [&0, &1], "pod 2 was not deleted, or was made anew");
}
