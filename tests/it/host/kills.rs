//! Pods that are killed around the writes of the marker.

use syncer::crash_point::MARKER_CRASH_POINTS;

use super::*;
use crate::scaling::kills::Kills;

/// The seed forms, its marker is lost and made anew, three pods pause and resume.
#[test]
fn a_kill_around_a_write_of_the_marker_leaves_one_that_is_true() {
    if !possible() {
        return;
    }
    let mut kills = Kills::new();
    let set = hosted(0, Policy::Parallel, |config| kills.are_of(config));
    kills.next(&[("boot-before-mark", None), ("boot-marked", None)]);
    set.kubectl(&["scale", "statefulset", "vc", "--replicas=1"]);
    let mut scene = Scene::of(1, set);
    kills.come(&scene.set);
    let cluster = poll("the marker says formed", CHANGE, || formed(&scene.set));

    kills.next(&[("lead-before-mark", None), ("lead-marked", None)]);
    scene.set.kubectl(&["delete", "configmap", "vc-etcd"]);
    scene.set.kill9(0).expect("kill");
    kills.come(&scene.set);
    poll("the marker is as it was", CHANGE, || formed(&scene.set).filter(|again| *again == cluster));

    scale(&mut scene, 3);
    kills.next(&[("stop-noted", Some(1)), ("stop-before-mark", Some(2)), ("stop-marked", Some(0))]);
    scale(&mut scene, 0);
    kills.come(&scene.set);
    kills.next(&[("boot-before-mark", None), ("boot-marked", None), ("boot-withdrawn", None)]);
    scene.set.kubectl(&["scale", "statefulset", "vc", "--replicas=3"]);
    kills.come(&scene.set);
    scene.scaled(3);
    let marker = marker(&scene.set).expect("a marker");
    assert_eq!(marker["phase"]["formed"], cluster.as_str(), "{marker}");
    assert_eq!(marker["stopped"].as_array().map(Vec::len), Some(0), "each has taken its own back: {marker}");
    kills.were_all(MARKER_CRASH_POINTS);
    assert!(!scene.writer.finish().is_empty());
}
