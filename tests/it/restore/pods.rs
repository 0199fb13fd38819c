//! A restore among several pods: the seed's alone is told, and the others follow.

use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::scaling::{Access, CHANGE, Said, ask, runtime};
use crate::statefulset_box::protocol::Policy;
use crate::support::statefulset::TestBox;

/// Runs `syncer ARGS` in a pod, as `kubectl exec` does, with the flags of its entrypoint.
fn exec(set: &TestBox, ordinal: u32, args: &[&str]) -> Output {
    let pid = set.status().expect("a status").pods[&ordinal].pid.expect("it runs");
    let words = |name: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{name}")).expect("look at the pod's process");
        let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(<[u8]>::to_vec);
        words.map(std::ffi::OsString::from_vec).collect::<Vec<_>>()
    };
    let flags = words("cmdline").into_iter().skip_while(|word| word != "start").skip(1).collect::<Vec<_>>();
    let env = words("environ").into_iter().filter_map(|word| {
        let (name, value) = word.to_str()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={pid}")).args(["--net", "--mount", "--uts", "--ipc", "--pid", "--"]);
    command.arg(syncer()).args(args).args(flags).env_clear().envs(env).output().expect("nsenter")
}

/// What a pod says, once that is as wanted.
fn said(set: &TestBox, ordinal: u32, what: &str, wanted: impl Fn(&Said) -> bool) -> Said {
    let access = Access::of(set, ordinal);
    poll(&format!("pod {ordinal}: {what}"), CHANGE, || ask(&access).filter(&wanted))
}

fn revision(set: &TestBox, ordinal: u32) -> i64 {
    let access = Access::of(set, ordinal);
    poll("a revision", CHANGE, || {
        runtime().block_on(async {
            let answer = access.connect().await?.get("/", None).await.ok()?;
            Some(answer.header()?.revision())
        })
    })
}

fn hash(set: &TestBox, ordinal: u32) -> String {
    let said = set.etcdctl(ordinal, &["endpoint", "hashkv", "-w", "json"]);
    serde_json::from_str::<Value>(&said).expect("JSON")[0]["HashKV"]["hash"].to_string()
}

/// Whether this pod has seen that its cluster was replaced: while it served, or while it had no leader for a moment.
fn tells(set: &TestBox, pod: &str) -> bool {
    let log = set.log(pod);
    log.contains("a restore has replaced this cluster") || log.contains("(Superseded)")
}

/// Three pods, a snapshot of what they have, a write behind it, and the seed restarted on the staged snapshot; `parted`: out
/// of the others' sight, until the marker has told them.
fn restored(set: &TestBox, parted: bool) -> (u64, Said) {
    set.wait("three pods", CHANGE, |s| s.settled && s.pods.len() == 3).expect("three pods");
    let old = said(set, 0, "three voters", |said| said.voters.len() == 3).cluster;
    for n in 0..30 {
        set.etcdctl(n % 3, &["put", &format!("/before/{n}"), "x"]);
    }
    let place = set.volume("vc-0").join("snapshots");
    let saved = json(&exec(set, 0, &["snapshot", "save", "--to", text(&place), "-o", "json"]));
    let file = place.join(saved["snapshot"]["name"].as_str().expect("a name"));
    set.etcdctl(1, &["put", "/after", "x"]);
    let seen = revision(set, 1);
    let refused = exec(set, 1, &["snapshot", "restore", text(&file)]);
    assert_eq!(refused.status.code(), Some(5), "not the seed's: {}", error_of(&refused));

    let staged = json(&exec(set, 0, &["snapshot", "restore", text(&file), "-o", "json"]));
    assert_eq!(staged["replaces"], format!("{old:x}"), "{staged}");
    assert_eq!(staged["revision"], seen + BUMP, "above the running store's: {staged}");
    assert_eq!(staged["next"], "restart this pod: kubectl delete pod vc-0 -n team-a");
    set.etcdctl(2, &["put", "/after", "y"]);
    assert_eq!(said(set, 0, "it goes on", |_| true).cluster, old);

    if parted {
        (1..3).for_each(|other| set.partition(0, other).expect("part them"));
    }
    set.delete(0).expect("delete the seed's pod");
    if parted {
        for pod in ["vc-1", "vc-2"] {
            poll("the marker tells of the restore", CHANGE, || tells(set, pod).then_some(()));
        }
        set.heal().expect("heal");
    }
    let new = said(set, 0, "three voters of another cluster", |said| said.cluster != old && said.voters.len() == 3);
    for ordinal in 0..3 {
        assert_eq!(said(set, ordinal, "the restored cluster", |said| *said == new), new);
        assert_eq!(
            set.etcdctl(ordinal, &["get", "/before/", "--prefix", "--count-only", "-w", "fields"])
                .matches("\"Count\" : 30")
                .count(),
            1
        );
        assert_eq!(set.etcdctl(ordinal, &["get", "/after", "--print-value-only"]), "");
    }
    set.wait("all are ready", CHANGE, |s| s.settled && s.pods.len() == 3).expect("all are ready");
    set.etcdctl(2, &["put", "/new", "x"]);
    assert_eq!(revision(set, 1), seen + BUMP + 1);
    let first = hash(set, 0);
    for ordinal in 1..3 {
        poll("equal hashes", CHANGE, || (hash(set, ordinal) == first).then_some(()));
    }
    // Of what anybody has seen, and had not seen, everything is told as compacted.
    let access = Access::of(set, 2);
    let told = runtime().block_on(async {
        let mut etcd = access.connect().await.expect("etcd");
        compacted(&mut etcd, "/after", seen + 1).await
    });
    assert_eq!(told, seen + BUMP);
    for pod in ["vc-1", "vc-2"] {
        assert!(tells(set, pod), "{}", set.log(pod));
    }
    for ordinal in 0..3 {
        let asides = syncer::datadir::quarantine::asides(&set.volume(&format!("vc-{ordinal}")).join("etcd"));
        assert_eq!(asides.expect("a volume").len(), 1, "pod {ordinal}: what was written since is kept");
    }
    (old, new)
}

#[test]
fn the_other_pods_follow_the_seed_and_so_does_a_volume_that_comes_back() {
    let set = TestBox::syncer(3, Policy::Parallel);
    if !set.has_namespaces() {
        return;
    }
    let (old, new) = restored(&set, false);
    // A pod that did not run meanwhile, or whose volume is an older one, comes back with the old cluster's data.
    let kept = syncer::datadir::quarantine::asides(&set.volume("vc-2").join("etcd")).expect("a volume").remove(0);
    set.scale(0).expect("scale");
    set.wait("nobody", CHANGE, |s| s.pods.is_empty()).expect("they stop");
    let volume = set.volume("vc-2");
    std::fs::remove_dir_all(volume.join("etcd")).expect("remove what it joined with");
    assert!(Command::new("mv").arg(&kept).arg(volume.join("etcd")).status().expect("mv").success());
    set.scale(3).expect("scale");
    said(&set, 2, "it joins the restored cluster anew", |said| said.cluster == new.cluster && said.voters.len() == 3);
    assert!(set.log("vc-2").contains("(Superseded)"), "{old:x}");
    set.wait("all are ready", CHANGE, |s| s.settled && s.pods.len() == 3).expect("all are ready");
}

#[test]
fn the_marker_names_the_restored_cluster() {
    if std::env::var_os("SYNCER_QUICK").is_some() || !TestBox::up(|config| config.replicas = 0).has_namespaces() {
        return;
    }
    // The seed's pod is killed between the marker and whatever follows it, once: its next start finds it written.
    let set = TestBox::hosted_with(3, Policy::OrderedReady, |config| {
        config.env.insert("SYNCER_CRASH_AT".to_owned(), "restore-marked".to_owned());
    });
    let (old, new) = restored(&set, true);
    let (log, put, done) = (set.log("vc-0"), "the restored data dir is in place", "the restore is complete");
    let (between, after) = log.split_once(put).and_then(|(_, rest)| rest.split_once("exit status: 137")).expect(&log);
    assert!(!between.contains(done) && !after.contains(put) && after.contains(done), "{log}");
    let text = set.kubectl(&["get", "configmap", "vc-etcd", "-o", "jsonpath={.data.marker}"]);
    let marker: Value = serde_json::from_str(&text).expect("a marker");
    assert_eq!(marker["phase"]["formed"], format!("{:x}", new.cluster), "{marker}");
    assert_eq!(marker["superseded"][0], format!("{old:x}"), "{marker}");
}
