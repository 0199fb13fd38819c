//! `syncer snapshot restore`: a snapshot is staged beside a store, and takes its place at the next start.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use etcd_client::{Client, PutOptions, WatchOptions};
use serde_json::Value;

use crate::migrate::foretold;
use crate::support::etcd::{EtcdSpec, PATIENCE, SOURCES, all_keys, run};
use crate::support::pod::{Dump, TestPod};
use crate::support::versitygw::VersityGw;
use crate::support::{SmallVolume, part, poll, syncer};

pub mod apiserver;
mod crash;
mod pods;

/// Above the greater of two revisions by default.
const BUMP: i64 = 1_000_000_000;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

fn error_of(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn json(out: &Output) -> Value {
    assert!(out.status.success(), "{}", error_of(out));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// `syncer snapshot ARGS` beside the pod.
pub fn snapshot(pod: &TestPod, args: &[&str]) -> Command {
    snapshot_of(pod, "none", args)
}

fn snapshot_of(pod: &TestPod, distro: &str, args: &[&str]) -> Command {
    let mut command = pod.command(distro, &[]);
    let flags: Vec<_> = command.get_args().skip(1).map(ToOwned::to_owned).collect();
    command = Command::new(syncer());
    command.arg("snapshot").args(args).args(flags).env_remove("SYNCER_CRASH_AT");
    command
}

fn restore(pod: &TestPod, args: &[&str]) -> Output {
    snapshot(pod, &[&["restore"], args].concat()).output().expect("syncer runs")
}

/// The names on the pod's volume, but for locks, whose files stay.
fn names(pod: &TestPod) -> BTreeSet<String> {
    let names = std::fs::read_dir(pod.data()).expect("read the volume").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with(".syncer")).collect()
}

fn asides(pod: &TestPod) -> usize {
    names(pod).iter().filter(|name| name.starts_with("etcd.aside-")).count()
}

/// Objects, some of them changed and deleted, one with a lease.
async fn fill(mut etcd: Client) {
    for n in 0..120 {
        etcd.put(format!("/registry/pods/default/{}", n % 40), vec![n as u8; 2000], None).await.expect("put");
    }
    let lease = etcd.lease_grant(3600, None).await.expect("a lease").id();
    etcd.put("/registry/events/a", "an event", Some(PutOptions::new().with_lease(lease))).await.expect("put");
    etcd.delete("/registry/pods/default/7", None).await.expect("delete");
}

/// A pod that serves a filled store, its snapshot, what it holds, and a write that came after it.
fn filled() -> (TestPod, PathBuf, Dump) {
    let mut pod = TestPod::new();
    pod.start("none", &[]);
    pod.wait_serving();
    pod.etcd(fill);
    let before = pod.dump();
    let place = pod.data().join("snapshots");
    let saved = json(&snapshot(&pod, &["save", "--to", text(&place), "-o", "json"]).output().expect("syncer runs"));
    let file = place.join(saved["snapshot"]["name"].as_str().expect("a name"));
    pod.etcd(async |mut etcd| etcd.put("/registry/lost", "x", None).await.map(drop)).expect("put");
    (pod, file, before)
}

/// The keys as they were, at this revision, above all that was seen.
#[track_caller]
fn serves(pod: &TestPod, before: &Dump, revision: i64) {
    let now = pod.dump();
    assert_eq!((now.revision, now.keys.len()), (revision, before.keys.len()));
    assert!(now.keys == before.keys, "the keys are others than those of the snapshot");
}

/// Watches from a revision, and gives the one up to which it is told that all is compacted.
async fn compacted(etcd: &mut Client, key: &str, from: i64) -> i64 {
    let options = WatchOptions::new().with_start_revision(from);
    let mut watch = etcd.watch(key, Some(options)).await.expect("a watch");
    loop {
        let told = watch.message().await.expect("an answer").expect("the stream is open");
        if told.canceled() {
            return told.compact_revision();
        }
        assert!(told.created() && told.events().is_empty(), "{told:?}");
    }
}

/// Whatever `syncer migrate` reports of the same snapshot is reported of its restore.
#[track_caller]
fn tells_what_a_migration_tells(staged: &Value, file: &Path) {
    let home = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(syncer());
    command.args(["migrate", "-o", "json", &format!("--from=snapshot:{}", text(file))]);
    command.arg(format!("--to=datadir:{}", text(&home.path().join("etcd")))).arg("--etcd").arg(part("etcd"));
    let moved = json(&command.output().expect("syncer runs"));
    let moved = moved.as_object().expect("a report");
    for name in moved.keys() {
        // A snapshot keeps its name in any case.
        assert!(staged.get(name).is_some() || name == "sourceRenamed", "{name}: {staged}");
    }
    for name in ["source", "keys", "bytes", "leases", "verified", "maxRequestBytes", "warnings"] {
        assert_eq!(staged[name], moved[name], "{name}: {staged}");
    }
}

#[test]
fn a_snapshot_takes_the_place_of_the_store_at_the_next_start() {
    let (mut pod, file, before) = filled();
    // A store that lies there is not imported, before or after.
    std::fs::write(pod.data().join("state.db"), "not a store").expect("write a file");
    let (running, listing) = (pod.dump(), names(&pod));

    let shown = json(&restore(&pod, &[text(&file), "--dry-run", "-o", "json"]));
    assert_eq!((&shown["presentRevision"], &shown["keys"]), (&running.revision.into(), &before.keys.len().into()));
    assert_eq!(names(&pod), listing, "a dry run writes nothing");
    let staged = json(&restore(&pod, &[text(&file), "-o", "json"]));
    let revision = running.revision + BUMP;
    assert_eq!(
        (&staged["revision"], &staged["sourceRevision"]),
        (&revision.into(), &before.revision.into()),
        "{staged}"
    );
    tells_what_a_migration_tells(&staged, &file);
    foretold(&shown, &staged);
    // The same again is done; another is refused until the first is called off, upon which nothing is left of it.
    let again = json(&restore(&pod, &[text(&file), "-o", "json"]));
    for name in ["target", "clusterId", "revision", "keys", "hash", "verified"] {
        assert_eq!(again[name], staged[name], "{name}: {again}");
    }
    assert_eq!((&staged["stagedBefore"], &again["stagedBefore"]), (&false.into(), &true.into()));
    let other = file.with_file_name("other.db");
    std::fs::copy(&file, &other).expect("copy");
    // And so says a dry run.
    for dry in [&[][..], &["--dry-run"]] {
        for asked in [&[text(&other)][..], &[text(&file), "--bump-revision=7"], &[text(&file), "--verify=full"]] {
            let out = restore(&pod, &[asked, dry].concat());
            assert!(
                out.status.code() == Some(3) && error_of(&out).contains("--cancel"),
                "{asked:?} {}",
                error_of(&out)
            );
        }
        let again = json(&restore(&pod, &[&[text(&file), "-o", "json"], dry].concat()));
        assert_eq!((&again["stagedBefore"], &again["clusterId"]), (&true.into(), &staged["clusterId"]));
    }
    let said = String::from_utf8(restore(&pod, &[text(&file)]).stdout).expect("text");
    assert!(said.contains("minutes ago, and is left as it is"), "{said}");
    assert_eq!(json(&restore(&pod, &["--cancel", "-o", "json"]))["calledOff"], text(&file));
    assert_eq!(names(&pod), listing, "called off, nothing is left");
    assert_eq!(json(&restore(&pod, &["--cancel", "-o", "json"]))["calledOff"], Value::Null);
    let said = String::from_utf8(restore(&pod, &[text(&file)]).stdout).expect("text");
    for word in ["staged", "confirmed by etcd", "restart syncer", "etcd.aside-", "--cancel"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(pod.dump(), running, "whoever runs goes on as before");
    let reminds = "the next start of this pod, whatever brings it about";
    poll("the pod says what its next start does", Duration::from_secs(30), || {
        pod.log().contains(reminds).then_some(())
    });

    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    pod.start("none", &[]);
    pod.wait_serving();
    serves(&pod, &before, revision);
    assert!(pod.log().contains("a snapshot is restored") && pod.log().contains("it is not imported"), "{}", pod.log());
    assert_eq!(asides(&pod), 1);
    assert!(names(&pod).contains("restored.journal") && !names(&pod).contains("etcd.restore"), "{:?}", names(&pod));
    pod.etcd(async |mut etcd| {
        // Whoever watched from what was seen is told so, and lists anew.
        for seen in [before.revision, running.revision, revision - 1] {
            assert_eq!(compacted(&mut etcd, "/registry/lost", seen).await, revision, "from {seen}");
        }
        let put = etcd.put("/registry/new", "x", None).await.expect("put");
        assert_eq!(put.header().expect("a header").revision(), revision + 1);
    });
    // It is a data dir like any other from then on.
    assert_eq!(pod.stop().code(), Some(0));
    pod.start("none", &[]);
    pod.wait_serving();
    assert_eq!((pod.dump().revision, asides(&pod)), (revision + 1, 1));
}

/// By etcdctl, of each version; onto a volume on which all is lost, and offline.
#[test]
fn snapshots_of_etcdctl_are_restored_onto_an_empty_volume() {
    for line in SOURCES {
        let mut pod = TestPod::new();
        let file = pod.data().join("theirs.db");
        let home = tempfile::tempdir().expect("a folder");
        let etcd = EtcdSpec::new(line, "a", &home.path().join("etcd")).start();
        let want = run(async {
            fill(etcd.client().await).await;
            all_keys(&mut etcd.client().await).await
        });
        etcd.ctl(&["snapshot", "save", text(&file)]);
        let staged = json(&restore(&pod, &[text(&file), "--verify=full", "-o", "json"]));
        assert_eq!(
            (&staged["replaces"], &staged["next"]),
            (&Value::Null, &"start syncer on this volume".into()),
            "{line}"
        );
        pod.start("none", &[]);
        pod.wait_serving();
        assert_eq!(pod.dump().revision, staged["sourceRevision"].as_i64().expect("it") + BUMP, "{line}");
        let found = pod.etcd(async |mut etcd| all_keys(&mut etcd).await);
        assert!(found.len() == 40 && found == want, "{line}: the keys are others than those of the snapshot");
        assert_eq!(asides(&pod), 0, "{line}");
        assert_eq!(pod.stop().code(), Some(0), "{line}: {}", pod.log());
    }
}

#[test]
fn one_in_a_bucket_is_restored_into_the_place_of_a_damaged_store() {
    let server = VersityGw::start(false, &["backups"]);
    let (mut pod, file, _) = filled();
    let before = pod.dump();
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    std::fs::create_dir(server.object("backups", "vc")).expect("a folder");
    let place = format!("s3://backups/vc/{name}");
    let saved = snapshot(&pod, &["save", "--to", "s3://backups/vc", "-o", "json"]).envs(server.env()).output();
    let name = json(&saved.expect("syncer runs"))["snapshot"]["name"].as_str().expect("a name").to_owned();
    let place = place.replace(file.file_name().expect("a name").to_str().expect("text"), &name);
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    let db = pod.data().join("etcd/member/snap/db");
    std::fs::write(&db, vec![0; 1 << 16]).expect("damage the backend");
    assert_eq!(pod.run_to_end("none", &[]).0, Some(3), "{}", pod.log());

    let out = snapshot(&pod, &["restore", &place, "-o", "json"]).envs(server.env()).output().expect("syncer runs");
    let staged = json(&out);
    assert_eq!(staged["source"], place.as_str());
    assert!(staged["replaces"].is_string(), "its WAL tells: {staged}");
    assert_eq!(std::fs::read_dir(pod.data().join("etcd.restore")).expect("staged").count(), 2, "the copy is removed");
    pod.start("none", &[]);
    pod.wait_serving();
    serves(&pod, &before, before.revision + BUMP);
}

#[test]
fn what_cannot_be_restored_is_refused_and_nothing_is_changed() {
    let (mut pod, file, _) = filled();
    let whole = std::fs::read(&file).expect("read it");
    let running = pod.dump();
    let broken = pod.data().join("broken.db");
    std::fs::write(&broken, "").expect("a file");
    let listing = names(&pod);
    let mut changed = whole.clone();
    changed[20_000] ^= 1;
    let foreign = [vec![7; 1 << 16], vec![0; 32]].concat();
    let bare = &whole[..whole.len() - 32];
    for (bytes, want) in [
        (&changed[..], "checksum"),
        (&whole[..whole.len() - 4096], ""),
        (&whole[..5000], "middle of a page"),
        (bare, "--skip-hash-check"),
        (&foreign, ""),
        (b"", "no checksum"),
    ] {
        std::fs::write(&broken, bytes).expect("write it");
        let out = restore(&pod, &[text(&broken)]);
        assert_eq!(out.status.code(), Some(4), "{want}: {}", error_of(&out));
        assert!(error_of(&out).contains(want) && error_of(&out).contains("broken.db"), "{want}: {}", error_of(&out));
        assert_eq!(names(&pod), listing, "{want}");
    }
    let none = pod.data().join("none.db");
    for (args, code, want) in [
        (vec![text(&none)], 4, "nothing of this name"),
        (vec![text(file.parent().expect("a folder"))], 4, "not a regular file"),
        (vec![], 2, "PLACE"),
        (vec!["s3://backups"], 2, "is a bucket"),
    ] {
        let out = restore(&pod, &args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", error_of(&out));
        assert!(error_of(&out).contains(want), "{args:?}: {}", error_of(&out));
        assert_eq!(names(&pod), listing, "{args:?}");
    }
    let out = snapshot(&pod, &["restore", text(&file), "--name=vc"]).env("POD_NAME", "vc-1").output().expect("it runs");
    assert!(out.status.code() == Some(5) && error_of(&out).contains("on that of pod 1"), "{}", error_of(&out));
    // As `kubectl exec` has it: no flag of the entrypoint's says that etcd is on.
    let args = ["restore", text(&file), "--dry-run", "--name=vc"];
    let out = snapshot_of(&pod, "k8s", &args).env("POD_NAME", "vc-0").output().expect("syncer runs");
    assert!(out.status.success(), "{}", error_of(&out));
    let args = ["restore", text(&file), "--etcd-embedded=false"];
    let out = snapshot_of(&pod, "k8s", &args).output().expect("syncer runs");
    assert!(out.status.code() == Some(3) && error_of(&out).contains("etcd is disabled"), "{}", error_of(&out));
    assert_eq!(names(&pod), listing);
    assert_eq!(pod.dump(), running, "whoever runs goes on as before");
    if let Some(small) = SmallVolume::mount(300 << 20) {
        let data = format!("--data-dir={}", small.path().display());
        let mut command = Command::new(syncer());
        command.args(["snapshot", "restore", text(&file), &data, "--binaries"]).arg(part("etcd").parent().expect("it"));
        let out = command.output().expect("syncer runs");
        assert_eq!(out.status.code(), Some(7), "{}", error_of(&out));
        assert!(!small.path().join("etcd.restore").exists() && !small.path().join("restore.journal").exists());
    }
    // A bare one, if it is asked for.
    std::fs::write(&broken, bare).expect("write it");
    json(&restore(&pod, &[text(&broken), "--skip-hash-check", "-o", "json"]));

    // Staged, and then something else: the start says so, changes nothing, and goes on once it is called off.
    assert_eq!(pod.stop().code(), Some(0));
    let refused = |pod: &mut TestPod, code, want: &str| {
        let (ended, log) = pod.run_to_end("k8s", &[]);
        assert!(ended == Some(code) && log.contains(want) && log.contains("--cancel"), "{want}: {ended:?} {log}");
        assert!(pod.data().join("etcd.restore/etcd").exists() && asides(pod) == 0, "{want}");
    };
    let mut recover = Command::new(syncer());
    recover.args(["recover", "--new-cluster", "--yes", "--data-dir"]).arg(pod.data()).arg("--etcd").arg(part("etcd"));
    let out = recover.output().expect("syncer runs");
    assert!(out.status.code() == Some(3) && error_of(&out).contains("--cancel"), "{}", error_of(&out));
    pod.values("embeddedEtcd:\n  enabled: false\n  migrateBack: true\n");
    refused(&mut pod, 3, "embedded etcd is disabled");
    pod.values("embeddedEtcd:\n  enabled: true\n");
    let (here, there) = (pod.data().join("etcd.restore/etcd/member"), pod.data().join("taken"));
    let rename = |from: &Path, to: &Path| assert!(Command::new("mv").arg(from).arg(to).status().expect("mv").success());
    rename(&here, &there);
    refused(&mut pod, 3, "is gone or damaged");
    rename(&there, &here);
    assert!(json(&restore(&pod, &["--cancel", "-o", "json"]))["calledOff"].is_string());
    pod.start("none", &[]);
    pod.wait_serving();
    assert_eq!((pod.dump(), names(&pod)), (running, listing));
}

/// The running store has come to where the restored one was to go on.
#[test]
fn a_store_that_has_outrun_the_staged_one_is_not_replaced() {
    let (mut pod, file, before) = filled();
    let staged = json(&restore(&pod, &[text(&file), "--bump-revision=1", "-o", "json"]));
    assert_eq!(staged["revision"], before.revision + 2);
    pod.etcd(async |mut etcd| etcd.put("/registry/seen", "x", None).await.map(drop)).expect("put");
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    let (code, log) = pod.run_to_end("none", &[]);
    assert!(code == Some(3) && log.contains("--bump-revision"), "{code:?} {log}");
    json(&restore(&pod, &["--cancel", "-o", "json"]));
    json(&restore(&pod, &[text(&file), "-o", "json"]));
    pod.start("none", &[]);
    pod.wait_serving();
    serves(&pod, &before, before.revision + 2 + BUMP);
    poll("it goes on", PATIENCE, || pod.try_client().map(drop));
}
