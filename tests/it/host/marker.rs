//! A marker that is gone, as Kubernetes removes it with the headless Service that owns it, while volumes outlive both.

use super::*;

/// Three are paused, and the seed goes on alone by what they noted. Without the marker nothing but the seed's own word keeps the two
/// others, whose volumes are a quorum, from serving what was before.
#[test]
fn those_that_a_reset_has_dropped_do_not_start_although_the_marker_is_gone() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let set = hosted(3, Policy::Parallel, |config| can_be_held_back(config, folder.path()));
    let pods = |replicas: usize| {
        set.wait("the pods are there", CHANGE, |s| s.settled && s.pods.len() == replicas)
            .unwrap_or_else(|e| panic!("{e:#}{}{}", set.log("vc-0"), set.log("vc-1")));
    };
    let scale = |replicas: usize| {
        set.kubectl(&["scale", "statefulset", "vc", &format!("--replicas={replicas}")]);
    };
    pods(3);
    set.etcdctl(0, &["put", "/registry/kept", "x"]);
    for replicas in [0, 1] {
        scale(replicas);
        pods(replicas);
    }
    set.etcdctl(0, &["put", "/registry/since", "y"]);
    let dropped = || marker(&set).map(|marker| marker["dropped"].as_array().map_or(0, Vec::len));
    assert_eq!(dropped(), Some(2), "{}", set.log("vc-0"));

    let gone = || set.kubectl(&["delete", "configmap", "vc-etcd"]);
    gone();
    poll("the leader's pod writes it again, with whom it has dropped", CHANGE, || dropped().filter(|n| *n == 2));

    // Nobody is there to write it again, and the seed comes last.
    scale(0);
    pods(0);
    gone();
    let held = folder.path().join("hold-vc-0");
    std::fs::write(&held, "").expect("write a file");
    scale(3);
    for pod in ["vc-1", "vc-2"] {
        let waits = || set.log(pod).contains("pod 0 has not said what its volume holds").then_some(());
        poll(&format!("{pod} waits for the seed"), CHANGE, waits);
    }
    std::fs::remove_file(held).expect("let it go");
    poll("three voters", CHANGE, || ask(&Access::of(&set, 0)).filter(|said| said.voters.len() == 3));
    for ordinal in 1..3 {
        let pod = format!("vc-{ordinal}");
        let asides = syncer::datadir::quarantine::asides(&set.volume(&pod).join("etcd")).expect("a volume");
        assert_eq!(asides.len(), 1, "it started from its data{}", set.log(&pod));
        let has = |key: &str| set.etcdctl(ordinal, &["get", key, "--print-value-only"]);
        assert_eq!((&*has("/registry/kept"), &*has("/registry/since")), ("x\n", "y\n"));
    }
}
