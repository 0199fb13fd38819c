//! A host API whose answers are late, on the pods' way to it alone.

use super::*;

/// How long answers come too late, and then in time, in turn.
const TOO_LATE: Duration = Duration::from_secs(3);
const IN_TIME: Duration = Duration::from_secs(2);

/// Has answers come too late and in time by turns until it is so. In between, what was asked for is done, and nobody hears it.
fn by_turns(set: &TestBox, what: &str, is: impl Fn(&Status) -> bool) {
    let began = Instant::now();
    for (mood, lasts) in [(ApiMood::Late, TOO_LATE), (ApiMood::Well, IN_TIME)].into_iter().cycle() {
        set.host_api(mood).expect("a mood");
        let since = Instant::now();
        while since.elapsed() < lasts {
            if set.status().is_ok_and(|status| is(&status)) {
                set.host_api(ApiMood::Well).expect("a mood");
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let logs = || (0..3).map(|pod| set.log(&format!("vc-{pod}"))).collect::<Vec<_>>().join("\n");
        assert!(began.elapsed() < 2 * CHANGE, "{what}: {:#?}{}", set.status(), logs());
    }
}

/// Three pods form one cluster, one leaves it, they pause and resume, whatever they hear of what they have written: the Secret, the
/// marker, the records of a stop.
#[test]
fn what_is_written_and_not_heard_of_is_written_once() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let held = |pod: u32| folder.path().join(format!("hold-vc-{pod}"));
    (0..3).for_each(|pod| std::fs::write(held(pod), "").expect("write a file"));
    let set = hosted(3, Policy::Parallel, |config| can_be_held_back(config, folder.path()));
    (0..3).for_each(|pod| std::fs::remove_file(held(pod)).expect("let it go"));
    by_turns(&set, "three pods are ready", |s| s.pods.len() == 3 && s.pods.values().all(|pod| pod.ready));
    let cluster = poll("the marker says formed", CHANGE, || formed(&set));
    let mut scene = Scene::of(3, set);
    assert_eq!(formed(&scene.set).as_ref(), Some(&cluster));

    for replicas in [2, 3, 0, 3] {
        etcd_calls_it_healthy();
        scene.set.kubectl(&["scale", "statefulset", "vc", &format!("--replicas={replicas}")]);
        by_turns(&scene.set, &format!("{replicas} pods"), |s| {
            s.pods.len() == replicas as usize && s.pods.values().all(|pod| pod.ready)
        });
        scene.scaled(replicas);
        assert_eq!(formed(&scene.set).as_ref(), Some(&cluster));
    }
    assert!(!scene.writer.finish().is_empty());
}

/// Two of three are told to stop, and at first hear of nobody whether they are to leave. Had they stopped at once, the third
/// would be left without a quorum.
#[test]
fn an_answer_that_is_late_while_pods_stop_is_waited_for() {
    if !possible() {
        return;
    }
    let mut scene = Scene::of(3, hosted(3, Policy::Parallel, has_time_to_leave));
    etcd_calls_it_healthy();
    scene.set.host_api(ApiMood::Late).expect("a mood");
    scene.set.kubectl(&["scale", "statefulset", "vc", "--replicas=1"]);
    for pod in ["vc-1", "vc-2"] {
        let waits = "Wait(Desired)";
        poll(&format!("{pod} waits for an answer"), CHANGE, || scene.set.log(pod).contains(waits).then_some(()));
    }
    scene.set.host_api(ApiMood::Well).expect("a mood");
    scene.scaled(1);
    assert!(!scene.writer.finish().is_empty());
}

/// Each answer takes more than half of what a pod waits for it.
#[test]
fn slow_answers_hold_nothing_up_for_good() {
    if !possible() {
        return;
    }
    let mut scene = Scene::of(1, hosted(1, Policy::OrderedReady, |_| ()));
    let cluster = formed(&scene.set);
    scene.set.host_api(ApiMood::Slow).expect("a mood");
    for replicas in [3, 2, 1] {
        scale(&mut scene, replicas);
    }
    scene.set.kubectl(&["rollout", "restart", "statefulset", "vc"]);
    scene.scaled(1);
    assert_eq!(formed(&scene.set), cluster);
    scene.set.host_api(ApiMood::Well).expect("a mood");
    assert!(!scene.writer.finish().is_empty());
}
