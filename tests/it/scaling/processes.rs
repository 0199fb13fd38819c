//! A pod's process that ends by itself is started again in its place by the kubelet, which is no return of the pod's with a
//! new address; and the kubelet ends none for what befalls the others.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Access, CHANGE, Scene, ask};
use crate::statefulset_box::protocol::{Policy, Status};
use crate::support::poll;

/// Longer than the kubelet of a test's box takes to end a process that does not answer.
const BEYOND_LIVENESS: Duration = Duration::from_secs(4);

#[test]
fn a_process_that_ends_comes_back_in_its_place_and_none_is_ended_for_a_lost_quorum() {
    let mut scene = Scene::begin(Policy::Parallel);
    let before = scene.set.settled();
    // The leader's is the seed's, or soon will be.
    for ordinal in [2, 0] {
        let pid = scene.set.status().expect("a status").pods[&ordinal].pid.expect("it runs");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a signal");
        let again = scene.set.wait("it is started again", CHANGE, |s| s.settled && s.pods[&ordinal].restarts == 1);
        let again = again.unwrap_or_else(|e| panic!("{e:#}"));
        let (was, is) = (&before.pods[&ordinal], &again.pods[&ordinal]);
        assert_eq!((is.incarnation, is.address), (was.incarnation, was.address));
        assert_ne!(is.pid, was.pid);
        scene.rests("a process was killed", 3);
    }
    if !scene.set.has_namespaces() {
        return;
    }

    let before = scene.set.status().expect("a status");
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        scene.set.partition(one, other).expect("part them");
    }
    let accesses: Vec<_> = (0..3).map(|ordinal| Access::of(&scene.set, ordinal)).collect();
    poll("nobody has a quorum", CHANGE, || accesses.iter().all(|access| ask(access).is_none()).then_some(()));
    let ready = |s: &Status| s.pods.values().any(|pod| pod.ready);
    let noticed = scene.set.wait("they notice it", CHANGE, |s| !ready(s));
    noticed.unwrap_or_else(|e| panic!("{e:#}"));
    let (written, began) = (scene.writer.acknowledged().len(), Instant::now());
    while began.elapsed() < BEYOND_LIVENESS {
        // A rollout would replace one after the other.
        assert!(!ready(&scene.set.status().expect("a status")), "one of them says that it is ready");
        for ordinal in 0..3 {
            poll("it says that it lives", CHANGE, || scene.set.get(ordinal, "/healthz"));
        }
    }
    assert_eq!(scene.writer.acknowledged().len(), written, "somebody had a quorum");
    scene.set.heal().expect("heal");
    scene.rests("healed", 3);
    let after = scene.set.settled();
    for (ordinal, was) in before.pods {
        let is = &after.pods[&ordinal];
        assert_eq!((is.pid, is.restarts), (was.pid, was.restarts), "pod {ordinal}: its process was ended");
    }
    assert!(!scene.writer.finish().is_empty());
}
