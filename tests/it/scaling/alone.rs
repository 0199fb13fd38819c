//! Those that are left when others are gone for good: what is repaired by itself, and what waits for its remedy. Without a
//! host API.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use syncer::disk::{Disk, RealDisk};

use super::{Access, CHANGE, Scene, ask, etcd_calls_it_healthy};
use crate::statefulset_box::protocol::Policy;
use crate::support::statefulset::{TestBox, alive, has_time_to_leave};
use crate::support::{part, poll, syncer};

impl Scene {
    /// Waits until pod `ordinal` has said this at least so many times.
    fn says(&self, ordinal: u32, what: &str, times: usize) {
        let pod = format!("vc-{ordinal}");
        let said = || (self.set.log(&pod).matches(what).count() >= times).then_some(());
        poll(&format!("pod {ordinal} says {what:?} {times} times"), CHANGE, said);
    }

    /// `syncer recover` on the volume of pod 0, which is down; killed at this point, if there is one of that name.
    fn recover(&self, crash_at: &str, more: &[&str]) -> Output {
        let mut command = Command::new(syncer());
        command.env("SYNCER_CRASH_AT", crash_at).args(["recover", "--data-dir"]).arg(self.set.volume("vc-0"));
        command.arg("--etcd").arg(part("etcd")).args(more).output().expect("run syncer")
    }

    /// Kills pod 0 and begins a reset on its volume that is killed half-way.
    fn begins_a_reset_of_pod_0(&self, more: &[&str]) {
        let pid = self.set.status().expect("a status").pods[&0].pid.expect("it runs");
        self.set.kill9(0).expect("kill");
        poll("it is gone", CHANGE, || (!alive(pid)).then_some(()));
        let cluster = format!("{:x}", self.cluster.expect("a cluster"));
        let killed = poll("its etcd is gone too", CHANGE, || {
            let recovered = self.recover("reset-appended", &[&["--cluster-id", &cluster], more].concat());
            (recovered.status.code() != Some(8)).then_some(recovered)
        });
        assert_eq!(killed.status.signal(), Some(9), "{killed:?}");
    }
}

/// How long a killed pod is away.
const AWAY: u64 = 10_000;

const RESET: &str = "the reset is finished";
const ASIDE: &str = "it was set aside";

/// The two were three a moment ago. Which of them loses its volume makes no difference, nor whether the other runs.
#[test]
fn of_two_voters_one_goes_on_without_loss_when_the_other_has_lost_its_volume() {
    let mut scene = Scene::begin(Policy::Parallel);
    etcd_calls_it_healthy();
    scene.scale(2);
    scene.set.lose_volume(1).expect("lose the volume");
    scene.says(0, RESET, 1);
    scene.rests("pod 1 lost its volume", 2);

    scene.set.lose_volume(1).expect("lose the volume");
    scene.set.kill9(0).expect("kill");
    scene.says(0, RESET, 2);
    scene.rests("pod 1 lost its volume while pod 0 was down", 2);

    scene.set.lose_volume(0).expect("lose the volume");
    scene.says(1, RESET, 1);
    scene.rests("the seed lost its volume", 2);
    scene.says(0, RESET, 2);
    assert!(!scene.writer.finish().is_empty());
}

/// Each pod that goes is killed before it could leave, of three and of two. The one that stays has no quorum, and cannot know whether
/// it has every acknowledged write: it says what helps, and that helps. In order, nobody is made anew before it is ready.
#[test]
fn whoever_is_left_by_kills_waits_with_a_remedy_that_works() {
    let (three, two) = ("voters 1, 2 are gone", "voters 1 are gone");
    for (replicas, policy, gone) in
        [(3, Policy::Parallel, three), (2, Policy::Parallel, two), (3, Policy::OrderedReady, three)]
    {
        // A killed pod is not replaced before the StatefulSet is scaled.
        let set = TestBox::syncer_with(replicas, policy, |config| config.backoff_ms = (AWAY, AWAY));
        let mut scene = Scene::of(replicas, set);
        (1..replicas).for_each(|ordinal| scene.set.kill9(ordinal).expect("kill"));
        scene.set.scale(1).expect("scale");
        scene.set.wait("one pod is left", CHANGE, |s| s.pods.len() == 1).expect("one pod");
        scene.says(0, &format!("waiting: {gone}"), 1);
        let log = scene.set.log("vc-0");
        assert!(log.contains(&format!("scale up to {replicas}, wait for a quorum, then down")), "{log}");
        assert!(!log.contains(RESET));

        scene.set.scale_only(replicas).expect("scale the StatefulSet alone");
        // By its values file it is one replica, and who is not wanted is ready at once: a member's own word tells. In order the
        // last one comes when the others have a quorum, and may have gone on without it.
        let asked = if policy == Policy::Parallel { replicas } else { 1 };
        let what = format!("{policy:?}: a quorum of {replicas} (see whether pod 0 is ready without the others)");
        poll(&what, CHANGE, || (0..asked).all(|n| ask(&Access::of(&scene.set, n)).is_some()).then_some(()));
        scene.set.scale_only(1).expect("scale the StatefulSet alone");
        scene.set.wait("one pod is left", CHANGE, |s| s.settled && s.pods.len() == 1).expect("one pod");
        scene.rests("scaled up and down", 1);
        assert!(!scene.writer.finish().is_empty());
    }
}

/// Its data dir is no member's any more, found while its etcd runs or when its retained volume comes back.
#[test]
fn a_removed_member_joins_anew_and_keeps_its_old_data_aside() {
    let set = TestBox::syncer_with(3, Policy::Parallel, |config| config.backoff_ms = (AWAY, AWAY));
    let mut scene = Scene::of(3, set);
    etcd_calls_it_healthy();
    let members = scene.set.etcdctl(0, &["member", "list", "-w", "simple"]);
    let id = members.lines().find(|l| l.contains("vc-2.")).and_then(|l| l.split(',').next()).expect("its member");
    let before = scene.set.status().expect("a status").pods[&2].pid;
    scene.set.etcdctl(0, &["member", "remove", id]);
    scene.says(2, ASIDE, 1);
    scene.rests("a member was removed by hand", 3);
    assert_eq!(scene.set.status().expect("a status").pods[&2].pid, before, "{}", scene.set.log("vc-2"));

    scene.set.kill9(2).expect("kill");
    scene.scale(2);
    scene.set.scale(3).expect("scale");
    scene.says(2, ASIDE, 2);
    scene.rests("a stale data dir came back", 3);
    assert!(!scene.writer.finish().is_empty());
}

/// etcd lets nobody who runs go for five seconds after any of them has connected, and a stopping pod has little longer.
#[test]
fn whoever_leaves_right_after_joining_or_returning_is_let_go() {
    let mut scene = Scene::of(1, TestBox::syncer_with(1, Policy::Parallel, has_time_to_leave));
    for round in 1..=2 {
        scene.set.scale(3).expect("scale");
        poll("three voters", CHANGE, || ask(&Access::of(&scene.set, 0)).filter(|said| said.voters.len() == 3));
        if round == 2 {
            scene.set.kill9(2).expect("kill");
            poll("pod 2 is back", CHANGE, || ask(&Access::of(&scene.set, 2)));
        }
        scene.scale(1);
        for ordinal in [1, 2] {
            scene.says(ordinal, ASIDE, round);
        }
    }
    assert!(!scene.writer.finish().is_empty());
}

/// As helm has it in one upgrade under Parallel: those that leave and the seed, which leads, are told to stop together.
#[test]
fn those_that_leave_are_removed_by_a_leader_that_is_told_to_stop_too() {
    let mut scene = Scene::of(3, TestBox::syncer_with(3, Policy::Parallel, has_time_to_leave));
    etcd_calls_it_healthy();
    for replicas in [1, 3, 1] {
        let seed = scene.set.status().expect("a status").pods[&0].pid.expect("it runs");
        scene.set.scale(replicas).expect("scale");
        kill(Pid::from_raw(seed), Signal::SIGTERM).expect("a signal");
        scene.scaled(replicas);
        if replicas == 3 {
            etcd_calls_it_healthy();
        }
    }
    assert!(!scene.set.log("vc-0").contains("scale up to"), "it was left without a quorum");
    assert!(!scene.writer.finish().is_empty());
}

/// Two of three volumes are lost: nothing but an operator's word helps, and what it takes is said.
#[test]
fn a_majority_that_is_lost_for_good_is_recovered_as_the_remedy_says() {
    let set = TestBox::syncer_with(3, Policy::Parallel, |config| config.backoff_ms = (AWAY, AWAY));
    let mut scene = Scene::of(3, set);
    // What the one that is left has is then everything that was acknowledged.
    scene.writer.stop.store(true, Ordering::Relaxed);
    scene.rests("nobody writes", 3);
    for ordinal in [1, 2] {
        scene.set.lose_volume(ordinal).expect("lose the volume");
    }
    scene.says(0, "waiting: the volumes of voters 1, 2 are empty", 1);
    scene.set.scale_only(0).expect("scale the StatefulSet alone");
    scene.set.wait("no pod is left", CHANGE, |s| s.pods.is_empty()).expect("no pod");

    let recover = |more: &[&str]| scene.recover("", more);
    let cluster = format!("{:x}", scene.cluster.expect("a cluster"));
    let shown = recover(&[]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&cluster), "{shown:?}");
    let refused = recover(&["--cluster-id", &cluster]);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    let done = recover(&["--cluster-id", &cluster, "--accept-loss"]);
    assert!(done.status.success(), "{done:?}");

    scene.set.scale_only(3).expect("scale the StatefulSet alone");
    scene.rests("recovered", 3);
    assert!(!scene.writer.finish().is_empty());
}

#[test]
fn a_reset_that_was_killed_is_finished_when_its_pod_comes_back() {
    let set = TestBox::syncer_with(2, Policy::Parallel, |config| config.backoff_ms = (AWAY, AWAY));
    let mut scene = Scene::of(2, set);
    scene.set.lose_volume(1).expect("lose the volume");
    scene.begins_a_reset_of_pod_0(&[]);
    scene.says(0, RESET, 1);
    scene.rests("both are back", 2);
    assert!(!scene.writer.finish().is_empty());
}

/// Finished, it would make a second cluster of the same ID.
#[test]
fn a_reset_that_was_begun_is_refused_while_the_others_serve() {
    let set = TestBox::syncer_with(3, Policy::Parallel, |config| config.backoff_ms = (AWAY, AWAY));
    let mut scene = Scene::of(3, set);
    scene.begins_a_reset_of_pod_0(&["--accept-loss"]);
    scene.says(0, "a reset was to make member", 1);
    assert!(!scene.set.log("vc-0").contains(RESET));
    // As the remedy says, while the pod is away once more.
    let volume = scene.set.volume("vc-0");
    for name in ["reset.journal", "etcd"] {
        RealDisk.rename(&volume.join(name), &volume.join(format!("{name}.away"))).expect("move it away");
    }
    scene.rests("pod 0 has joined anew", 3);
    assert!(!scene.writer.finish().is_empty());
}

/// At zero replicas nobody leaves, so that each of three that come back in order is without a quorum at first: the first
/// must not wait for readiness that only the others can bring.
#[test]
fn three_that_were_paused_come_back_in_order() {
    let mut scene = Scene::begin(Policy::OrderedReady);
    scene.scale(0);
    scene.scale(3);
    assert!(!scene.writer.finish().is_empty());
}
