//! A hosted pod that goes to SQLite and comes from it.

use syncer::crash_point::{BACK_BOOT_CRASH_POINTS, BACK_CRASH_POINTS};

use super::*;
use crate::scaling::kills::Kills;
use crate::statefulset_box::stand_in::State;
use crate::support::kine_db::{Era, History};

/// Back to SQLite while the marker cannot be reached, which stops nobody; the marker releases the cluster once it can be.
/// Switched on again, embedded etcd takes the store, and a retained volume with the old cluster's data joins.
#[test]
fn after_the_way_back_the_marker_lets_a_new_cluster_form() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut kills = Kills::new();
    let set = hosted(1, Policy::Parallel, |config| {
        with_k0s(config, folder.path());
        kills.are_of(config);
    });
    let values = |text: &str| std::fs::write(set.dir().join("values.yaml"), text).expect("write the values");
    let restarted = |what: &str| {
        let before = set.status().expect("a status").pods[&0].incarnation;
        set.kill9(0).expect("kill");
        let again = |s: &Status| s.settled && s.pods.get(&0).is_some_and(|pod| pod.incarnation > before);
        set.wait(what, CHANGE, again).unwrap_or_else(|e| panic!("{e:#}{}", set.log("vc-0")));
    };
    set.wait("one pod", CHANGE, |s| s.settled).expect("one pod");
    // Where the others have their PKI.
    let pki_of_k0s = |pod: &str| std::os::unix::fs::symlink("k0s/pki", set.volume(pod).join("pki")).expect("a link");
    pki_of_k0s("vc-0");
    let old = formed(&set).expect("formed");
    set.etcdctl(0, &["put", "/registry/kept", "x"]);

    let configmaps = |resource: &str| {
        let rule = format!(r#"[{{"op": "replace", "path": "/rules/0/resources/0", "value": "{resource}"}}]"#);
        set.kubectl(&["patch", "role", "vc", "--type=json", "-p", &rule]);
    };
    assert_eq!(set.kubectl(&["get", "role", "vc", "-o", "jsonpath={.rules[0].resources[0]}"]), "configmaps");
    configmaps("nothing");
    values("embeddedEtcd:\n  enabled: false\n  migrateBack: true\n");
    // Wherever it is killed meanwhile, it goes on.
    let points = BACK_CRASH_POINTS.iter().chain(BACK_BOOT_CRASH_POINTS).filter(|point| **point != "back-half-written");
    let points: Vec<_> = points.map(|point| (*point, Some(0))).collect();
    kills.next(&points);
    restarted("it is ready on SQLite");
    kills.come(&set);
    let said = |what: &str| poll(what, CHANGE, || set.log("vc-0").contains(what).then_some(()));
    said("the marker may still name the cluster that is SQLite's again");
    configmaps("configmaps");
    said("the marker names the cluster no more that is SQLite's again");
    assert_eq!(formed(&set), None);
    assert_eq!(marker(&set).expect("a marker")["superseded"], serde_json::json!([old]));

    // A volume that was retained, with its claim.
    let claim = r#"{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data-vc-1"}, "spec":
        {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}"#;
    let file = folder.path().join("claim.json");
    std::fs::write(&file, claim).expect("write a claim");
    let namespace =
        set.kubectl(&["get", "role", "-A", "-o", "jsonpath={.items[?(@.metadata.name==\"vc\")].metadata.namespace}"]);
    set.kubectl(&["create", "-n", &namespace, "-f", &file.display().to_string()]);
    let asides = |pod: &str| syncer::datadir::quarantine::asides(&set.volume(pod).join("etcd")).expect("a volume");
    let volume = set.volume("vc-1");
    std::fs::create_dir_all(&volume).expect("a volume");
    pki_of_k0s("vc-1");
    let copied = std::process::Command::new("cp").arg("-a").arg(&asides("vc-0")[0]).arg(volume.join("etcd")).status();
    assert!(copied.expect("cp").success());

    values("pro: true\nembeddedEtcd:\n  enabled: true\nsyncer:\n  replicas: 1\n");
    restarted("it is ready on etcd");
    let new = formed(&set).expect("formed again");
    assert_ne!(new, old);
    assert_eq!(set.etcdctl(0, &["get", "/registry/kept", "--print-value-only"]), "x\n");
    set.kubectl(&["scale", "statefulset", "vc", "--replicas=2"]);
    let two = |access: &Access| ask(access).filter(|said| said.voters.len() == 2);
    poll("two voters", CHANGE, || two(&Access::of(&set, 1)));
    assert_eq!((asides("vc-1").len(), formed(&set)), (1, Some(new.clone())));
    assert_eq!(set.etcdctl(1, &["get", "/registry/kept", "--print-value-only"]), "x\n");
    // And k0s finds one CA in both pods when it starts.
    let found = |pod: &str| {
        let file = set.volume(pod).join("found-by-k0s");
        poll("k0s has run", CHANGE, || std::fs::read_to_string(&file).ok().filter(|found| found.lines().count() == 6))
    };
    assert_eq!(found("vc-0"), found("vc-1"));
    assert!(own(&set, 1, "ca.crt") == shared(&set, "ca.crt") && !shared(&set, "sa.key").is_empty());
    given_up(&set, &new);
}

/// A pod that runs SQLite, and an upgrade that enables embedded etcd with three replicas: the new pods wait for what only
/// the seed can make, and the seed is replaced last, once they are ready.
#[test]
fn three_at_once_where_one_ran_sqlite() {
    if !possible() {
        return;
    }
    for policy in [Policy::Parallel, Policy::OrderedReady] {
        let folder = tempfile::tempdir().expect("a folder");
        let set = hosted(0, policy, |config| {
            with_k3s(config, folder.path());
            // Ended for its liveness on a busy machine, the seed would take up the values before it is to.
            config.liveness_ms = 2000;
        });
        let values = |text: &str| std::fs::write(set.dir().join("values.yaml"), text).expect("write the values");
        values("embeddedEtcd:\n  enabled: false\n");
        let mut history = History::new(Era::V0_14);
        history.create(b"/registry/kept", Some(b"x"), 0);
        let db = set.volume("vc-0").join("server/db/state.db");
        std::fs::create_dir_all(db.parent().expect("a folder")).expect("make the volume");
        history.write_cold(&db);
        set.kubectl(&["scale", "statefulset", "vc", "--replicas=1"]);
        set.wait("one pod on SQLite", CHANGE, |s| s.settled && s.pods.len() == 1)
            .unwrap_or_else(|e| panic!("{e:#}{}", set.log("vc-0")));
        assert!(shared(&set, "etcd-ca.key").is_empty());
        let seed = set.status().expect("a status").pods[&0].incarnation;

        values("pro: true\nembeddedEtcd:\n  enabled: true\nsyncer:\n  replicas: 3\n");
        // A Role that does not let them: none is ready, so that the one that serves is not replaced.
        allow_secrets(&set, false);
        let patch = |spec: &str| {
            set.kubectl(&["patch", "statefulset", "vc", "--type=merge", "-p", &format!(r#"{{"spec": {{{spec}}}}}"#)]);
        };
        let replaced_from = |ordinal: u32| {
            patch(&format!(
                r#""updateStrategy": {{"type": "RollingUpdate", "rollingUpdate": {{"partition": {ordinal}}}}}"#
            ));
        };
        patch(r#""replicas": 3, "template": {"metadata": {"annotations": {"upgraded": "yes"}}}"#);
        let denied = || set.log("vc-1").contains("this pod may not use Secret").then_some(());
        poll("it may not use the Secret", CHANGE, denied);
        let began = Instant::now();
        while began.elapsed() < NOTHING {
            let now = set.status().expect("a status");
            // A probe of the seed's may fail on a busy machine, which has nobody replaced.
            let ready: Vec<_> = now.ready().into_iter().filter(|ordinal| *ordinal != 0).collect();
            assert_eq!((ready, now.pods[&0].incarnation), (vec![], seed), "{policy:?}{}", set.log("vc-1"));
            std::thread::sleep(Duration::from_millis(200));
        }
        replaced_from(1);
        allow_secrets(&set, true);
        // Those that wait are ready, so that a Service sends clients to them: the seed serves those too.
        for ordinal in [1, 2] {
            let answered = || set.get(ordinal, "/state").and_then(|body| serde_json::from_str::<State>(&body).ok());
            poll("a client of a pod that waits is served by the seed", CHANGE, || {
                answered().filter(|by| by.name == "vc-0").map(drop)
            });
        }
        replaced_from(0);
        let three = |s: &Status| s.settled && s.pods.len() == 3;
        set.wait("three pods", CHANGE * 2, three)
            .unwrap_or_else(|e| panic!("{policy:?}: {e:#}{}{}{}", set.log("vc-0"), set.log("vc-1"), set.log("vc-2")));
        poll("three voters", CHANGE, || ask(&Access::of(&set, 0)).filter(|said| said.voters.len() == 3));
        assert_eq!(set.etcdctl(2, &["get", "/registry/kept", "--print-value-only"]), "x\n");
        assert!(!shared(&set, "etcd-ca.key").is_empty() && !db.exists());
    }
}

/// The seed has its token from when it ran SQLite, cannot put it into the Secret when it is started, and goes on; the others wait
/// for that token, and the seed for their word that they have no data.
#[test]
fn a_token_that_could_not_be_shared_at_first_is_shared_later() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let set = hosted(0, Policy::Parallel, |config| {
        with_k3s(config, folder.path());
        config.liveness_ms = 2000;
    });
    let values = |text: &str| std::fs::write(set.dir().join("values.yaml"), text).expect("write the values");
    // The Secret that another release left behind is not there: the token lies on the volume alone.
    let token = set.volume("vc-0").join("server/token");
    std::fs::create_dir_all(token.parent().expect("a folder")).expect("make the volume");
    std::fs::write(&token, "a-token-of-k3s").expect("write a token");
    allow_secrets(&set, false);
    values("pro: true\nembeddedEtcd:\n  enabled: true\nsyncer:\n  replicas: 3\n");
    set.kubectl(&["scale", "statefulset", "vc", "--replicas=3"]);
    let said = |pod: &str, what: &str| poll(what, CHANGE, || set.log(pod).contains(what).then_some(()));
    said("vc-0", "this pod may not use Secret vc-certs");
    for pod in ["vc-1", "vc-2"] {
        said(pod, "this pod may not use Secret vc-k3s-vc");
    }
    allow_secrets(&set, true);
    let three = |s: &Status| s.settled && s.pods.len() == 3;
    set.wait("three pods", CHANGE, three).unwrap_or_else(|e| panic!("{e:#}{}{}", set.log("vc-0"), set.log("vc-1")));
    poll("three voters", CHANGE, || ask(&Access::of(&set, 0)).filter(|said| said.voters.len() == 3));
    for pod in ["vc-0", "vc-1", "vc-2"] {
        let given = std::fs::read_to_string(set.volume(pod).join("given-token")).expect("k3s was started");
        assert_eq!(given, "a-token-of-k3s", "{pod}");
    }
}

/// An operator says that all data is gone for good: a new cluster is formed once every volume is known to be empty.
fn given_up(set: &TestBox, cluster: &str) {
    let scale = |replicas: usize| {
        set.kubectl(&["scale", "statefulset", "vc", &format!("--replicas={replicas}")]);
    };
    scale(0);
    set.wait("no pods", CHANGE, |s| s.pods.is_empty()).expect("no pods");
    for pod in ["vc-0", "vc-1"] {
        let mut command = std::process::Command::new(crate::support::syncer());
        command.args(["recover", "--new-cluster", "--cluster-id", cluster, "--data-dir"]).arg(set.volume(pod));
        command.arg("--etcd").arg(part("etcd"));
        crate::support::etcd::output(&mut command);
    }
    scale(1);
    poll("the marker is believed", CHANGE, || set.log("vc-0").contains("has been formed").then_some(()));
    set.kubectl(&["delete", "configmap", "vc-etcd"]);
    poll("it asks for the other", CHANGE, || {
        set.log("vc-0").contains("pods 1 may hold a cluster's data").then_some(())
    });
    scale(2);
    let again = poll("a new cluster", CHANGE, || formed(set));
    assert_ne!(again, cluster);
}
