//! Joiners whose first start fails or hangs.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::Pid;

use super::{Access, CHANGE, Scene, ask, runtime};
use crate::statefulset_box::protocol::{Config, Policy, Program};
use crate::support::kine_db::{Era, History};
use crate::support::pod::child_running;
use crate::support::statefulset::{TestBox, can_be_held_back};
use crate::support::{part, poll, syncer};

/// An etcd of pod 1 that hangs at its first start as a joiner, until the file `go` is there.
const HANGS_ONCE: &str = r#"#!/bin/sh
for argument in "$@"; do
  case $argument in --initial-cluster=*,*)
    case $* in *--name=vc-1*)
      : > hangs
      while [ ! -e go ]; do sleep 0.02; done ;;
    esac ;;
  esac
done
exec ETCD "$@"
"#;

/// An etcd that ends without a word at its first start as a joiner, once the file `go` is there.
const FAILS_ONCE: &str = r#"#!/bin/sh
for argument in "$@"; do
  case $argument in --initial-cluster=*,*)
    if [ ! -e failed ]; then
      : > failed
      while [ ! -e go ]; do sleep 0.02; done
      exit 1
    fi ;;
  esac
done
exec ETCD "$@"
"#;

/// This is the pods' etcd; in the script `ETCD` is the real one.
fn with_etcd(config: &mut Config, folder: &Path, script: &str) {
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).expect("open the folder");
    let etcd = folder.join("etcd");
    crate::support::script(&etcd, script.replace("ETCD", &part("etcd").display().to_string()));
    let (file, binaries, args) = (syncer(), folder.to_owned(), vec!["--distro=none".to_owned()]);
    config.program = Program::Syncer { file, binaries, args };
}

/// Its member is gone by then, so that the list of members that it was started with is no longer true. What it was to
/// join is looked at anew before its next start, within the same life of its pod.
#[test]
fn a_joiner_that_fails_before_it_has_written_anything_looks_at_the_members_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut scene =
        Scene::of(1, TestBox::syncer_with(1, Policy::Parallel, |config| with_etcd(config, folder.path(), FAILS_ONCE)));
    scene.set.scale(2).expect("scale");
    let volume = scene.set.volume("vc-1");
    poll("the joiner is started", CHANGE, || volume.join("failed").exists().then_some(()));
    let before = scene.set.status().expect("a status").pods[&1].pid;
    let learner = scene.set.etcdctl(0, &["member", "list", "-w", "simple"]);
    let learner = learner.lines().find(|l| l.ends_with("true")).and_then(|l| l.split(',').next()).expect("a learner");
    scene.set.etcdctl(0, &["member", "remove", learner]);
    std::fs::write(volume.join("go"), "").expect("let it fail");
    scene.rests("the joiner failed once", 2);
    assert_eq!(scene.set.status().expect("a status").pods[&1].pid, before, "{}", scene.set.log("vc-1"));
    let said = poll("the members", CHANGE, || ask(&Access::of(&scene.set, 1)));
    assert!(!said.voters.contains(&u64::from_str_radix(learner, 16).expect("an ID")), "a removed ID was used again");
    assert!(!scene.writer.finish().is_empty());
}

/// etcd takes nobody in while a member is down. Whoever scaled up is told which, and what to do.
#[test]
fn a_scale_up_beside_a_member_that_is_down_says_which_and_goes_on_once_it_is_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let set = TestBox::syncer_with(3, Policy::Parallel, |config| can_be_held_back(config, folder.path()));
    let mut scene = Scene::of(3, set);
    let held = folder.path().join("hold-vc-2");
    std::fs::write(&held, "").expect("write a file");
    scene.set.kill9(2).expect("kill");
    scene.set.scale(5).expect("scale up");
    let (refused, silent) = ("etcd refuses it: ", "\"silent\":\"pod 2's ");
    let lines = || scene.set.log("vc-0");
    poll("the leader's pod says what is in the way", CHANGE, || {
        lines().lines().any(|line| line.contains(refused) && line.contains(silent)).then_some(())
    });
    std::fs::remove_file(held).expect("let it go");
    scene.rests("the member is back", 5);
    assert!(!scene.writer.finish().is_empty());
}

/// The election timeout that pod 0's etcd runs with, in milliseconds.
fn election_timeout(set: &TestBox) -> Option<String> {
    let volume = set.volume("vc-0").canonicalize().expect("the volume");
    let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(|entry| Some(entry.ok()?.path()));
    processes.filter(|process| std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == volume)).find_map(
        |process| {
            let line = String::from_utf8(std::fs::read(process.join("cmdline")).ok()?).ok()?;
            line.split('\0').find_map(|arg| Some(arg.strip_prefix("--election-timeout=")?.to_owned()))
        },
    )
}

/// The timeout of one that is alone would make it give leadership up whenever another's disk takes its time.
#[test]
fn a_member_that_was_alone_takes_the_timing_of_the_others() {
    let mut scene = Scene::of(1, TestBox::syncer(1, Policy::Parallel));
    assert_eq!(election_timeout(&scene.set).as_deref(), Some("200"));
    let before = scene.set.status().expect("a status").pods[&0].clone();
    scene.set.scale(3).expect("scale");
    scene.rests("two have joined", 3);
    poll("pod 0's etcd runs with the timing of one among others", CHANGE, || {
        (election_timeout(&scene.set)? == "1000").then_some(())
    });
    scene.rests("pod 0's etcd was restarted", 3);
    let after = scene.set.status().expect("a status").pods[&0].clone();
    assert_eq!(after.pid, before.pid, "its pod runs on");
    assert!(!scene.writer.finish().is_empty());
}

/// etcd refuses what is larger than its limit in the member that is asked: the seed's is raised for what it has imported,
/// and the joiner is told.
#[test]
fn a_joiner_takes_values_as_large_as_those_that_the_seed_has_imported() {
    let set = TestBox::syncer(0, Policy::Parallel);
    std::fs::create_dir_all(set.volume("vc-0")).expect("a volume");
    let large = vec![b'x'; 2 << 20];
    History::new(Era::V0_14)
        .create(b"/registry/configmaps/large", Some(&large), 0)
        .write_cold(&set.volume("vc-0").join("state.db"));
    set.scale(2).expect("scale");
    let joiner = poll("two voters", CHANGE, || {
        let joiner = Access::of(&set, 1);
        ask(&joiner).filter(|said| said.voters.len() == 2).map(|_| joiner)
    });
    // Of an etcd that is restarted for the timing of one among others there is none for a moment.
    let limit = |ordinal: u32| {
        let pid = set.status().expect("a status").pods[&ordinal].pid.expect("it runs");
        poll("its etcd runs", CHANGE, || {
            let (_, arguments) = child_running(Pid::from_raw(pid), "etcd")?;
            Some(arguments.into_iter().find(|argument| argument.starts_with("--max-request-bytes=")))
        })
    };
    assert!(limit(0).is_some() && limit(0) == limit(1), "{:?} and {:?}", limit(0), limit(1));
    poll("the joiner takes a value as large as the imported one", CHANGE, || {
        let key = "/registry/configmaps/large";
        runtime().block_on(async { joiner.connect().await?.put(key, large.clone(), None).await.ok() })
    });
}

/// Each has made a CA of its own, so that none ever hears the other; what is wrong is told by the handshake.
#[test]
fn pods_with_a_ca_each_form_and_join_nothing_and_say_why() {
    let set = TestBox::syncer_with(2, Policy::Parallel, |config| config.mounted_pki = false);
    for pod in ["vc-0", "vc-1"] {
        let said = || set.log(pod).contains("more than one replica needs one shared CA").then_some(());
        poll(&format!("{pod} names the CA"), CHANGE, said);
        assert!(!set.volume(pod).join("etcd").exists(), "{}", set.log(pod));
    }
}

/// A learner that comes no further keeps others from joining. It is removed, and joins anew when it can.
#[test]
fn a_learner_that_is_stuck_is_evicted_and_holds_up_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let set = TestBox::syncer_with(1, Policy::Parallel, |config| {
        with_etcd(config, folder.path(), HANGS_ONCE);
        config.env.insert("SYNCER_STALLED_SECONDS".to_owned(), "30".to_owned());
    });
    let mut scene = Scene::of(1, set);
    scene.set.scale(2).expect("scale");
    let volume = scene.set.volume("vc-1");
    poll("the joiner hangs", CHANGE, || volume.join("hangs").exists().then_some(()));
    scene.set.scale(3).expect("scale");
    let evicts = "4.6 (EvictStalled)";
    poll("it is evicted", CHANGE, || scene.set.log("vc-0").contains(evicts).then_some(()));
    let log = scene.set.log("vc-1");
    assert!(
        log.contains("etcd does not serve yet: "),
        "it hangs for longer than ten seconds, and its pod is silent: {log}"
    );
    let members = || ask(&Access::of(&scene.set, 0)).filter(|said| said.voters.len() == 2 && said.learners == 0);
    poll("the other joins", CHANGE, members);
    std::fs::write(volume.join("go"), "").expect("let it start");
    scene.rests("the joiner was stuck", 3);
    assert!(!scene.writer.finish().is_empty());
}
