//! Pods that run a command of the user's own over etcd (`start -- COMMAND`).

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Access, CHANGE, Said, ask};
use crate::statefulset_box::protocol::{Policy, Program};
use crate::support::pod::child_running;
use crate::support::poll;
use crate::support::statefulset::{TestBox, wrapped};

/// The command has port 8443 for itself, and runs only once etcd serves: until then the pod itself must say there that it stands
/// by, or in order nobody else would ever be created.
#[test]
fn they_come_back_in_order_after_a_pause_with_a_command_of_their_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let set = TestBox::syncer_with(1, Policy::OrderedReady, |config| {
        if let Program::Syncer { args, .. } = &mut config.program {
            args.extend(wrapped(folder.path()));
        }
        config.liveness_ms = 2000;
    });
    if !set.has_namespaces() {
        return;
    }
    let voters = |wanted: usize| {
        let access = Access::of(&set, 0);
        poll("all of them vote", CHANGE, || ask(&access).filter(|said: &Said| said.voters.len() == wanted))
    };
    set.settled();
    set.scale(3).expect("scale up");
    set.settled();
    let cluster = voters(3).cluster;
    set.scale(0).expect("pause");
    set.wait("a pause", CHANGE, |status| status.pods.is_empty()).expect("all pods are gone");
    set.scale(3).expect("resume");
    set.settled();
    assert_eq!(voters(3).cluster, cluster);
    for pod in ["vc-0", "vc-1", "vc-2"] {
        let starts = || fs::read_to_string(folder.path().join(pod).join("starts")).unwrap_or_default().lines().count();
        poll(&format!("{pod}: its command is started again"), CHANGE, || (starts() >= 2).then_some(()));
        // By the pause, and not by a liveness probe that nobody answered while it could not be started.
        let log = set.log(pod);
        assert_eq!(log.matches("the pod's process has ended").count(), 1, "{pod} was ended meanwhile:\n{log}");
    }
}

/// What ends without a quorum is not started before there is one: that must not end the pod.
#[test]
fn a_command_that_ends_without_a_quorum_is_answered_for_until_it_runs_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let set = TestBox::syncer_with(2, Policy::Parallel, |config| {
        if let Program::Syncer { args, .. } = &mut config.program {
            args.extend(wrapped(folder.path()));
        }
        config.liveness_ms = 2000;
    });
    if !set.has_namespaces() {
        return;
    }
    set.settled();
    poll("both vote", CHANGE, || ask(&Access::of(&set, 0)).filter(|said: &Said| said.voters.len() == 2));
    set.partition(0, 1).expect("part them");
    poll("etcd serves no longer", CHANGE, || set.log("vc-0").contains("serves no longer").then_some(()));
    let pid = set.status().expect("a status").pods[&0].pid.expect("its process");
    let (command, _) = child_running(Pid::from_raw(pid), "statefulset").expect("its command");
    kill(command, Signal::SIGKILL).expect("kill");

    poll("its end is seen", CHANGE, || set.log("vc-0").contains("was killed with SIGKILL").then_some(()));
    poll("it is answered for", CHANGE, || set.get(0, "/healthz"));
    let began = Instant::now();
    // Longer than its liveness may fail.
    while began.elapsed() < Duration::from_secs(4) {
        let log = set.log("vc-0");
        assert!(!log.contains("the pod's process has ended"), "it was ended:\n{log}");
        std::thread::sleep(Duration::from_millis(200));
    }
    set.heal().expect("heal");
    let starts = || set.log("vc-0").matches("an API server runs").count();
    poll("its command is started again", CHANGE, || (starts() == 2).then_some(()));
    set.settled();
    assert!(set.get(0, "/state").is_some_and(|state| state.contains("vc-0")), "the port is the command's again");
}
