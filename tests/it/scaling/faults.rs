//! Faults of the network around pods under a writer: DNS that fails, a leader that is cut off.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::{Access, CHANGE, Scene, ask};
use crate::statefulset_box::coredns::Mood;
use crate::statefulset_box::protocol::Policy;
use crate::support::pod::child_running;
use crate::support::statefulset::TestBox;
use crate::support::{part, poll};

/// So long nothing must change where nothing may.
const NOTHING: Duration = Duration::from_secs(6);

/// While DNS fails, nobody knows who is there: a pod that has lost its volume forms and joins nothing, one that comes back with its
/// data does not start under a name that leads nowhere, and nobody is removed.
#[test]
fn dns_that_fails_forms_and_removes_nothing() {
    let mut scene = Scene::begin(Policy::Parallel);
    if !scene.set.has_namespaces() {
        return;
    }
    for (mood, ordinal, lost) in [(Mood::ServFail, 2, true), (Mood::Silent, 1, false), (Mood::Refuses, 2, false)] {
        let voters = scene.voters();
        let before = scene.set.status().expect("a status").pods[&ordinal].incarnation;
        let log = || scene.set.log(&format!("vc-{ordinal}"));
        let said = log().len();
        scene.set.dns(mood).expect("a mood");
        match lost {
            true => scene.set.lose_volume(ordinal).expect("lose the volume"),
            false => scene.set.kill9(ordinal).expect("kill"),
        }
        let new = |s: &crate::statefulset_box::protocol::Status| {
            s.pods.get(&ordinal).is_some_and(|pod| pod.incarnation > before && pod.pid.is_some())
        };
        scene.set.wait("its successor runs", CHANGE, new).expect("a pod");
        let (began, written) = (Instant::now(), scene.writer.acknowledged().len());
        while began.elapsed() < NOTHING {
            let made = scene.set.volume(&format!("vc-{ordinal}")).join("etcd/member").exists();
            assert!(!(lost && made), "{mood:?}: it formed or joined something");
            let pid = scene.set.status().expect("a status").pods.get(&ordinal).and_then(|pod| pod.pid);
            let etcd = pid.and_then(|pid| child_running(Pid::from_raw(pid), "etcd"));
            // It is asked for its version before anything is waited for.
            let started = etcd.filter(|(_, arguments)| !arguments.contains(&"--version".to_owned()));
            assert_eq!(started, None, "{mood:?}: started under a name that leads nowhere{}", scene.set.last_logs());
            if let Some(said) = ask(&Access::of(&scene.set, 0)) {
                assert_eq!((said.voters, said.learners), (voters.clone(), 0), "{mood:?}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        poll(&format!("{mood:?}: pod {ordinal} says that it waits (see its log)"), CHANGE, || {
            log()[said..].contains("etcd waits for this pod's own name").then_some(())
        });
        poll("the others go on", CHANGE, || (scene.writer.acknowledged().len() > written + 20).then_some(()));
        scene.set.dns(Mood::Well).expect("a mood");
        scene.scaled(3);
    }
    assert!(!scene.writer.finish().is_empty());
}

/// The leader is cut off from both others, with a writer on its side: those go on without it, and nothing that either side has
/// acknowledged is lost.
#[test]
fn a_leader_that_is_cut_off_leads_nobody() {
    let mut scene = Scene::begin(Policy::Parallel);
    if !scene.set.has_namespaces() {
        return;
    }
    for other in [1, 2] {
        scene.set.partition(0, other).expect("part them");
    }
    let others = Access::of(&scene.set, 1);
    poll("the others have a leader", CHANGE, || ask(&others));
    scene.set.etcdctl(1, &["put", "/other/side", "x"]);
    let written = scene.writer.acknowledged().len();
    let began = Instant::now();
    while began.elapsed() < NOTHING {
        let said = ask(&others).map(|said| (said.voters.len(), said.learners));
        assert!(said.is_none_or(|said| said == (3, 0)), "{said:?}: somebody was removed");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(scene.writer.acknowledged().len(), written, "it took writes without a quorum");
    scene.set.heal().expect("heal");
    scene.scaled(3);
    assert_eq!(scene.set.etcdctl(0, &["get", "/other/side", "--print-value-only"]).trim(), "x");
    assert!(!scene.writer.finish().is_empty());
}

/// A CoreDNS to which the headless service has no port `peer`, as Kubernetes answers where the Service lacks it.
fn without_the_port(folder: &Path) -> PathBuf {
    let program = folder.join("coredns");
    let script = format!(
        r#"#!/bin/sh
for argument; do [ "$before" = -conf ] && conf=$argument; before=$argument; done
sed -i '0,/^  file /s//  template IN SRV cluster.local {{\n    match ^_peer\\.\n    rcode NXDOMAIN\n    authority "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"\n    fallthrough\n  }}\n  file /' "$conf"
exec {} "$@"
"#,
        part("coredns").display()
    );
    crate::support::script(&program, script);
    program
}

/// Nobody is named then, and a seed that has lost its volume while the values say one replica must not take that for "nobody is
/// there": the others serve.
#[test]
fn a_service_without_the_port_by_which_pods_are_named_forms_nothing_beside_those_that_serve() {
    let folder = tempfile::tempdir().expect("a folder");
    let set = TestBox::syncer_with(3, Policy::Parallel, |config| config.coredns = without_the_port(folder.path()));
    let mut scene = Scene::of(3, set);
    let values = scene.set.dir().join("values.yaml");
    let three = std::fs::read_to_string(&values).expect("the values");
    std::fs::write(&values, three.replace("replicas: 3", "replicas: 1")).expect("change the values");
    // At its first start it may have said so as well.
    let before = scene.set.log("vc-0").len();
    scene.set.lose_volume(0).expect("lose the volume");
    poll("it says what the service lacks", CHANGE, || {
        scene.set.log("vc-0")[before..].contains("and its port `peer` (2380)").then_some(())
    });
    let began = Instant::now();
    while began.elapsed() < NOTHING {
        assert!(!scene.set.volume("vc-0").join("etcd").exists(), "it formed or joined something");
    }
    std::fs::write(&values, three).expect("change the values");
    scene.rests("three are wanted again", 3);
    assert!(!scene.writer.finish().is_empty());
}
