//! The StatefulSet in a box, with a stand-in in its pods and with syncer.

mod command;

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::statefulset_box::client::{self, Client};
use crate::statefulset_box::coredns::Mood;
use crate::statefulset_box::protocol::{
    ApiMood, Config, HostPrograms, NetworkMode, PodPhase, PodStatus, Policy, Program, Status,
};
use crate::statefulset_box::stand_in::PORT;
use crate::support::statefulset::{PATIENCE, TestBox, alive, statefulset};
use crate::support::{free_port, part, poll, syncer};

/// So long nothing must change where nothing may; a StatefulSet's controller acts at once.
const NOTHING: Duration = Duration::from_secs(3);

/// Whether pods have namespaces here; without them some of what is tested does not exist.
fn namespaces(set: &TestBox) -> bool {
    set.has_namespaces()
}

#[test]
fn ordered_pods_come_one_by_one_and_reach_each_other_by_name() {
    let set = TestBox::up(|config| config.replicas = 3);
    let status = set.settled();
    let order: Vec<_> = status.pods.values().map(|pod| pod.incarnation).collect();
    assert_eq!(order, [1, 2, 3]);
    for ordinal in 0..3 {
        let state = set.state(ordinal);
        assert_eq!(state.name, format!("vc-{ordinal}"));
        assert_eq!(Some(state.address), status.pods[&ordinal].address.map(|ip| ip.to_string()));
        assert_eq!(state.starts, 1);
        if status.network == NetworkMode::Namespaces {
            assert_eq!((state.host, state.pid), (state.name, 1));
        }
        for peer in 0..3 {
            set.reaches(ordinal, peer, true);
        }
        set.dns_of(ordinal, 3, "absent");
    }
}

#[test]
fn an_ordered_pod_that_is_not_ready_is_waited_for() {
    let set = TestBox::up(|config| config.replicas = 0);
    std::fs::create_dir_all(set.volume("vc-0")).expect("a volume");
    set.steer(0, "not-ready");
    set.scale(2).expect("scale");
    set.until("pod 0 runs", |s| s.pods.get(&0).is_some_and(|pod| pod.address.is_some()));
    // It has a record all the same (publishNotReadyAddresses), and nobody follows it.
    set.dns_of(0, 0, "present");
    assert_eq!(set.status().expect("a status").pods.len(), 1);
    std::fs::remove_file(set.volume("vc-0").join("not-ready")).expect("ready");
    set.settled();
}

#[test]
fn parallel_pods_do_not_wait_for_each_other() {
    let set = TestBox::up(|config| (config.replicas, config.policy) = (0, Policy::Parallel));
    std::fs::create_dir_all(set.volume("vc-0")).expect("a volume");
    set.steer(0, "not-ready");
    set.scale(3).expect("scale");
    set.until("the others are ready", |s| s.ready() == [1, 2]);
    assert_eq!(set.status().expect("a status").pods.len(), 3);
}

#[test]
fn a_killed_pod_is_replaced_under_its_name_with_another_address_on_its_volume() {
    let set = TestBox::ready(2, Policy::OrderedReady);
    let before = set.settled().pods[&1].clone();
    set.kill9(1).expect("kill");
    set.until("it is replaced", |s| s.settled && s.pods[&1].incarnation > before.incarnation);
    let after = set.state(1);
    assert_eq!((after.name.as_str(), after.starts), ("vc-1", 2));
    assert_ne!(Some(after.address), before.address.map(|ip| ip.to_string()));
    set.reaches(0, 1, true);
}

#[test]
fn a_deleted_pod_has_its_grace_and_no_more() {
    let set = TestBox::up(|config| (config.replicas, config.grace_ms) = (1, 60_000));
    set.settled();
    set.delete(0).expect("delete");
    set.until("it is replaced", |s| s.settled && s.pods[&0].incarnation == 2);
    assert!(set.log("vc-0").contains("SIGTERM"), "{}", set.log("vc-0"));
    let set = TestBox::up(|config| (config.replicas, config.grace_ms) = (1, 500));
    set.settled();
    set.steer(0, "ignore-term");
    set.delete(0).expect("delete");
    set.until("it is killed and replaced", |s| s.settled && s.pods[&0].incarnation == 2);
}

/// SIGKILL to a pod's process, of which the box is told nothing.
fn kill_process(pod: &PodStatus) {
    kill(Pid::from_raw(pod.pid.expect("it runs")), Signal::SIGKILL).expect("a signal");
}

#[test]
fn a_process_that_ends_again_and_again_is_started_again_in_its_place() {
    let set = TestBox::ready(2, Policy::Parallel);
    let before = set.status().expect("a status").pods[&1].clone();
    let crashes = || {
        set.steer(1, "crash");
        kill_process(&set.status().expect("a status").pods[&1]);
        let waits = |s: &Status| s.pods[&1].restarts >= 3 && s.pods[&1].phase == PodPhase::Backoff;
        set.until("it has ended a few times", waits)
    };
    let status = crashes();
    assert_eq!((status.ready(), status.pods[&1].pid), (vec![0], None));
    set.dns_of(0, 1, "present");
    let lives = || std::fs::remove_file(set.volume("vc-1").join("crash")).expect("let it live");
    lives();
    let after = set.settled().pods[&1].clone();
    assert_eq!((after.incarnation, after.address, after.failures), (before.incarnation, before.address, 0));
    assert_eq!(set.state(1).starts, after.restarts as usize + 1);
    set.reaches(0, 1, true);

    // A pod that is to end while it has no process is over at once.
    crashes();
    set.delete(1).expect("delete");
    let replaced = |s: &Status| s.pods.get(&1).is_some_and(|pod| pod.incarnation > before.incarnation);
    let after = set.until("it is replaced", replaced).pods[&1].clone();
    assert_ne!(after.address, before.address);
    lives();
    set.settled();
}

#[test]
fn a_process_that_does_not_live_is_ended_within_its_grace_and_started_again_in_its_place() {
    let set = TestBox::up(|config| (config.replicas, config.grace_ms) = (1, 500));
    let before = set.settled().pods[&0].clone();
    set.steer(0, "ignore-term");
    set.steer(0, "not-live");
    set.until("it is started again", |s| s.pods[&0].restarts >= 1);
    let log = set.log("vc-0");
    assert!(log.contains("SIGTERM") && log.contains("has ended: exit status: 137"), "{log}");
    for file in ["ignore-term", "not-live"] {
        std::fs::remove_file(set.volume("vc-0").join(file)).expect("let it live");
    }
    let after = set.settled().pods[&0].clone();
    assert_eq!((after.incarnation, after.address), (before.incarnation, before.address));
}

#[test]
fn syncer_runs_in_a_pod_and_its_volume_outlives_its_address() {
    let set = TestBox::syncer(1, Policy::OrderedReady);
    set.settled();
    let etcdctl = |args: &[&str]| set.etcdctl(0, args);
    etcdctl(&["put", "/a", "1"]);
    let members = etcdctl(&["member", "list"]);
    assert!(members.contains("vc-0, https://vc-0.vc-headless.team-a:2380"), "{members}");
    for (incarnation, end) in [(2, Client::kill9 as fn(&Client, u32) -> _), (3, Client::delete)] {
        end(&set, 0).expect("end the pod");
        set.until("it is replaced", |s| s.settled && s.pods[&0].incarnation == incarnation);
        assert_eq!(etcdctl(&["get", "/a", "--print-value-only"]), "1\n");
        assert_eq!(etcdctl(&["member", "list"]), members);
    }
    let starts = set.log("vc-0").matches("starting from the data dir").count();
    assert_eq!(starts, 3, "{}", set.log("vc-0"));
}

#[test]
fn a_host_clusters_controllers_decide() {
    if std::env::var_os("SYNCER_QUICK").is_some() {
        return;
    }
    let parts = part("kube-apiserver").parent().expect("a folder").to_owned();
    let set = TestBox::up(|config| {
        config.replicas = 2;
        config.host = Some(HostPrograms { parts, certs: syncer() });
    });
    if !namespaces(&set) {
        return;
    }
    let kubectl = |args: &[&str]| {
        let mut command = std::process::Command::new(part("kubectl"));
        let output = command.arg("--kubeconfig").arg(set.kubeconfig()).args(args).output().expect("kubectl");
        assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let claims = || kubectl(&["get", "pvc", "-o", "jsonpath={.items[*].metadata.name}"]);
    set.settled();
    assert_eq!(claims(), "data-vc-0 data-vc-1");
    kubectl(&["scale", "statefulset", "vc", "--replicas=3"]);
    let before = set.until("it is scaled up", |s| s.settled && s.pods.len() == 3);
    set.dns_of(0, 2, "present");
    set.reaches(0, 2, true);

    kill_process(&before.pods[&1]);
    let again = set.until("its process is started again", |s| s.settled && s.pods[&1].restarts == 1);
    let place = |s: &Status| (s.pods[&1].incarnation, s.pods[&1].address);
    assert_eq!(place(&again), place(&before));
    let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
    assert_eq!(kubectl(&["get", "pod", "vc-1", "-o", restarts]), "1");

    set.kill9(2).expect("kill");
    let old = before.pods[&2].incarnation;
    let after = set.until("it is replaced", |s| s.settled && s.pods.get(&2).is_some_and(|p| p.incarnation > old));
    assert_ne!(after.pods[&2].address, before.pods[&2].address);
    assert_eq!(set.state(2).starts, 2);

    kubectl(&["rollout", "restart", "statefulset", "vc"]);
    let old = |s: &Status| s.pods.values().all(|pod| pod.incarnation > after.pods[&2].incarnation);
    let rolled = set.until("all are replaced", |s| s.settled && s.pods.len() == 3 && old(s));
    assert!(rolled.pods[&2].incarnation < rolled.pods[&0].incarnation, "from the highest: {rolled:?}");

    // In order, nothing is made and nothing goes beside a pod that is not ready.
    let field = |path: &str| kubectl(&["get", "statefulset", "vc", "-o", &format!("jsonpath={{{path}}}")]);
    let pods =
        |s: &Status| s.pods.iter().map(|(ordinal, pod)| (*ordinal, pod.incarnation, pod.phase)).collect::<Vec<_>>();
    set.steer(0, "not-ready");
    poll("the controller knows of it", PATIENCE, || (field(".status.readyReplicas") == "2").then_some(()));
    for replicas in ["--replicas=4", "--replicas=1"] {
        kubectl(&["scale", "statefulset", "vc", replicas]);
        let seen = || (field(".status.observedGeneration") == field(".metadata.generation")).then_some(());
        poll("the controller has seen it", PATIENCE, seen);
        let began = Instant::now();
        while began.elapsed() < NOTHING {
            let now = set.status().expect("a status");
            assert_eq!(pods(&now), pods(&rolled), "{replicas}: pod 0 is not ready, and another comes or goes");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    std::fs::remove_file(set.volume("vc-0").join("not-ready")).expect("ready");
    set.until("it is scaled down", |s| s.settled && s.pods.len() == 1);
    set.dns_of(0, 1, "absent");
    assert_eq!(claims(), "data-vc-0 data-vc-1 data-vc-2", "volumes are retained");

    for mood in [ApiMood::Gone, ApiMood::Hangs] {
        set.host_api(mood).expect("a mood");
        let killed = set.status().expect("a status").pods[&0].incarnation;
        set.kill9(0).expect("kill");
        set.until("its end is seen", |s| s.pods[&0].address.is_none());
        assert!(!set.status().expect("a status").settled);
        set.host_api(ApiMood::Well).expect("a mood");
        set.until("it is replaced", |s| s.settled && s.pods.get(&0).is_some_and(|p| p.incarnation > killed));
    }
    let account = "--as=system:serviceaccount:team-a:vc-vc";
    assert_eq!(kubectl(&["auth", "can-i", "get", "statefulsets.apps/vc", account]), "yes");
}

#[test]
fn a_lost_volume_is_empty_and_a_scaled_down_pods_volume_is_kept() {
    let set = TestBox::ready(2, Policy::Parallel);
    set.lose_volume(1).expect("lose it");
    set.until("it is replaced", |s| s.settled && s.pods[&1].incarnation == 3);
    assert_eq!(set.state(1).starts, 1);
    assert!(set.volume("vc-1.lost-0").join("starts").exists(), "it is set aside");
    set.scale(1).expect("scale");
    set.until("it is gone", |s| s.settled && s.pods.len() == 1);
    set.dns_of(0, 1, "absent");
    set.scale(2).expect("scale");
    set.until("it is back", |s| s.settled && s.pods.len() == 2);
    assert_eq!(set.state(1).starts, 2);
}

#[test]
fn a_rolling_update_replaces_all_pods_one_at_a_time() {
    for policy in [Policy::OrderedReady, Policy::Parallel] {
        let set = TestBox::ready(3, policy);
        set.roll().expect("roll");
        let status = set.until("all are of the new revision", |s| {
            assert!(s.pods.values().filter(|pod| pod.phase == PodPhase::Terminating).count() <= 1, "{s:?}");
            s.settled && s.revision == 2
        });
        let incarnations: Vec<_> = status.pods.values().map(|pod| pod.incarnation).collect();
        assert_eq!(incarnations, [6, 5, 4], "from the highest");
        assert_eq!(set.state(0).revision, "2");
    }
}

#[test]
fn parted_pods_do_not_reach_each_other_whatever_their_addresses() {
    let set = TestBox::ready(3, Policy::Parallel);
    if !namespaces(&set) {
        assert!(set.partition(0, 2).is_err());
        return;
    }
    set.partition(2, 0).expect("part them");
    set.reaches(0, 2, false);
    set.reaches(2, 0, false);
    set.reaches(0, 1, true);
    set.reaches(2, 1, true);
    set.kill9(2).expect("kill");
    set.until("it is replaced", |s| s.settled && s.pods[&2].incarnation == 4);
    set.dns_of(0, 2, "present");
    set.reaches(2, 1, true);
    set.reaches(2, 0, false);
    set.heal().expect("heal");
    set.reaches(0, 2, true);
    set.reaches(2, 0, true);
}

#[test]
fn dns_can_fail_in_every_way() {
    let set = TestBox::ready(1, Policy::Parallel);
    for mood in [Mood::ServFail, Mood::Refuses, Mood::Silent] {
        set.dns(mood).expect("a mood");
        set.dns_of(0, 1, "unknown");
        set.dns(Mood::Well).expect("a mood");
        set.dns_of(0, 1, "absent");
    }
}

#[test]
fn nothing_outlives_a_killed_box_and_the_next_one_goes_on_with_its_volumes() {
    let mut set = TestBox::ready(2, Policy::Parallel);
    let pids = set.pids();
    assert!(pids.len() == 2 && pids.iter().all(|pid| alive(*pid)), "{pids:?}");
    set.daemon.kill().expect("kill the box");
    set.daemon.wait().expect("wait for it");
    poll("its pods are gone", PATIENCE, || pids.iter().all(|pid| !alive(*pid)).then_some(()));
    assert!(set.dir().join("box.sock").exists(), "it had no time to clean up");

    let mut config = Config::new(set.dir(), Program::StandIn, part("coredns"));
    (config.replicas, config.policy) = (2, Policy::Parallel);
    let (client, daemon) = client::up(&statefulset(), &config).expect("another box in the same folder");
    (set.client, set.daemon) = (client, daemon);
    set.settled();
    assert_eq!(set.state(1).starts, 2);
    let twice = client::up(&statefulset(), &config).expect_err("one runs already");
    assert!(twice.to_string().contains("already"), "{twice:#}");

    let pids = set.pids();
    set.down().expect("down");
    assert!(set.daemon.wait().expect("it ends").success());
    assert!(pids.iter().all(|pid| !alive(*pid)));
    assert!(set.status().is_err() && !set.dir().join("box.sock").exists());
}

#[test]
fn several_boxes_do_not_meet() {
    let (one, other) = (TestBox::ready(1, Policy::Parallel), TestBox::ready(2, Policy::Parallel));
    one.reaches(0, 1, false);
    other.reaches(0, 1, true);
    assert_ne!(one.forward(0, PORT).expect("a forward"), other.forward(0, PORT).expect("a forward"));
}

#[test]
fn pods_can_live_on_loopback() {
    let set = TestBox::up(|config| {
        (config.replicas, config.network) = (2, NetworkMode::Loopback);
    });
    let status = set.settled();
    assert!(status.pods.values().all(|pod| pod.address.is_some_and(|ip| ip.is_loopback())), "{status:?}");
    set.reaches(0, 1, true);
    set.kill9(1).expect("kill");
    set.until("it is replaced", |s| s.settled && s.pods[&1].incarnation == 3);
    set.reaches(0, 1, true);
    let error = set.partition(0, 1).expect_err("they share one network");
    assert!(error.to_string().contains("loopback"), "{error:#}");
}

/// etcd has its client port on 127.0.0.1 too, whatever the pod's address: there is room for one.
#[test]
fn one_pod_of_syncer_can_live_on_loopback() {
    let port = free_port();
    let set = TestBox::syncer_with(1, Policy::Parallel, |config| {
        config.network = NetworkMode::Loopback;
        let Program::Syncer { args, .. } = &mut config.program else { panic!("pods of syncer") };
        args.push(format!("--client-port={port}"));
    });
    let before = set.settled().pods[&0].clone();
    set.kill9(0).expect("kill");
    let after = set.until("it is replaced", |s| s.settled && s.pods[&0].incarnation > before.incarnation);
    let address = after.pods[&0].address;
    assert!(address != before.address && address.is_some_and(|ip| ip.is_loopback()), "{after:?}");
    let error = set.scale(2).expect_err("two of them would meet at 127.0.0.1");
    assert!(error.to_string().contains("namespaces"), "{error:#}");
}
