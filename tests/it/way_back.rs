//! The way back at boot: a real kube-apiserver's store out of etcd into SQLite, and into etcd again.

mod apiserver;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::etcd::{PATIENCE, program};
use crate::support::kube::Kube;
use crate::support::pod::{Dump, TestPod};
use crate::support::poll;

pub const ETCD: &str = "embeddedEtcd:\n  enabled: true\ncontroller:\n  disabled: true\n";
const BACK: &str = "embeddedEtcd:\n  enabled: false\n  migrateBack: true\ncontroller:\n  disabled: true\n";

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub fn kube(pod: &TestPod) -> Kube {
    Kube::from_kubeconfig(&pod.data().join("pki/admin.conf")).expect("the admin kubeconfig")
}

/// Every object but the identity leases, which a running kube-apiserver renews by itself.
pub async fn objects(client: &Kube) -> BTreeMap<String, Value> {
    let mut objects = client.everything().await.expect("read every object");
    objects.retain(|path, _| !(path.contains("leases/kube-system/") && path.contains("apiserver-")));
    objects
}

fn asides(data: &Path) -> usize {
    let entries = std::fs::read_dir(data).expect("read the volume");
    entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("etcd.aside-")).count()
}

#[track_caller]
pub fn same(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) {
    for (path, object) in before {
        assert_eq!(after.get(path), Some(object), "{path} is another object");
    }
    for path in after.keys() {
        assert!(before.contains_key(path), "{path} was not there");
    }
}

/// A pod with a real API server on etcd, ready, and its administrator, with a runtime to ask in.
pub fn served() -> (Runtime, TestPod, Kube) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let mut pod = TestPod::new();
    pod.values(ETCD);
    pod.start("k8s", &[]);
    pod.wait_ready();
    let client = kube(&pod);
    (runtime, pod, client)
}

#[test]
fn a_real_cluster_goes_back_to_sqlite_and_into_etcd_again() {
    let (runtime, mut pod, client) = served();
    let map = |name: &str, value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": value}});
    let (before, last) = runtime.block_on(async {
        for n in 0..60 {
            client.create(MAPS, &map(&format!("map-{n}"), "first")).await.expect("create");
        }
        for n in (0..60).step_by(3) {
            let patch = json!({"data": {"v": "second"}});
            client.merge(&format!("{MAPS}/map-{n}"), &patch).await.expect("update");
        }
        for n in (0..60).step_by(7) {
            client.delete(&format!("{MAPS}/map-{n}")).await.expect("delete");
        }
        let before = objects(&client).await;
        (before, client.list(MAPS).await.expect("list").1)
    });
    // Killed, so that etcd's log is ahead of its backend.
    pod.kill_everything();

    pod.values(BACK);
    pod.start("k8s", &[]);
    pod.wait_ready();
    let data = pod.data();
    assert!(data.join("state.db").exists() && !data.join("etcd").exists() && asides(&data) == 1);
    let client = kube(&pod);
    let after_back = runtime.block_on(async {
        same(&before, &objects(&client).await);
        // Who watched goes on from where he was.
        let mut watch = client.watch(MAPS, &last).await.expect("watch from the last resourceVersion");
        client.create(MAPS, &map("after-the-way-back", "x")).await.expect("create");
        let event = watch.next(Duration::from_secs(30)).await.expect("an event in time").expect("the watch is open");
        assert_eq!(
            (&event["type"], &event["object"]["metadata"]["name"]),
            (&"ADDED".into(), &"after-the-way-back".into())
        );
        let changed = client.merge(&format!("{MAPS}/map-1"), &json!({"data": {"v": "third"}})).await.expect("update");
        let version = |object: &Value| {
            object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<i64>().ok()).expect("a version")
        };
        assert!(version(&changed) > last.parse().expect("a version"));
        client.delete(&format!("{MAPS}/map-2")).await.expect("delete");
        objects(&client).await
    });
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    // Asked for still, and nothing is left to do.
    pod.start("k8s", &[]);
    pod.wait_ready();
    runtime.block_on(async { same(&after_back, &objects(&kube(&pod)).await) });
    assert_eq!(asides(&data), 1);
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());

    pod.values(ETCD);
    pod.start("k8s", &[]);
    pod.wait_ready();
    runtime.block_on(async { same(&after_back, &objects(&kube(&pod)).await) });
    assert!(data.join("state.db.migrated").exists() && data.join("etcd").exists());
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}

/// As docs/migration.md has it: the data dir that was set aside, in a new cluster, as its own is superseded.
#[test]
fn the_way_back_is_undone_with_a_new_cluster_of_the_data_dir() {
    let mut pod = TestPod::new();
    pod.start("none", &[]);
    pod.wait_serving();
    pod.etcd(async |mut client| drop(client.put("/registry/kept", "v", None).await.expect("put")));
    let want = pod.dump();
    pod.kill_everything();
    pod.values(BACK);
    pod.start("k8s", &[]);
    let (data, db) = (pod.data(), pod.data().join("state.db"));
    let revision_of = |file: &Path| {
        let store = rusqlite::Connection::open_with_flags(file, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
        store.query_row("SELECT max(id) FROM kine", [], |row| row.get::<_, i64>(0)).ok()
    };
    poll("SQLite is written to", PATIENCE, || {
        pod.assert_running();
        // Not before kine runs: a store that is in use is not put in place.
        pod.log().contains("\"kine\"").then(|| revision_of(&db))?.filter(|revision| *revision > want.revision)
    });
    pod.kill_everything();

    // With what may have its last writes alone.
    for of in ["", "-wal", "-shm"] {
        let [from, to] = ["state.db", "undone.db"].map(|name| data.join(format!("{name}{of}")));
        if from.exists() {
            syncer::disk::Disk::rename(&syncer::disk::RealDisk, &from, &to).expect("move state.db away");
        }
    }
    let seen = revision_of(&data.join("undone.db")).expect("SQLite's revision");
    let aside = syncer::datadir::quarantine::asides(&data.join("etcd")).expect("a volume").remove(0);
    // Whatever is asked for, no empty store takes its place.
    for values in [BACK, &BACK.replace("migrateBack: true", "migrateBack: false"), ETCD] {
        pod.values(values);
        pod.start("k8s", &[]);
        assert_eq!(pod.wait_end(PATIENCE).code(), Some(3), "{values}{}", pod.log());
        assert!(pod.log().contains("written back from etcd into SQLite earlier, and its state.db is gone"));
        assert!(!db.exists() && !data.join("etcd").exists());
    }
    let (name, url) = ("vc-0", "https://vc-0.vc-headless.ns:2380");
    let mut command = std::process::Command::new(crate::support::syncer());
    command.arg("migrate").arg(format!("--from=datadir:{}", aside.display()));
    command.arg(format!("--to=datadir:{}", data.join("etcd").display()));
    command.args(["--bump-revision", "1000000000"]);
    command.args(["--name", name, "--peer-url", url, "--client-url", "https://vc-0.vc-headless.ns:2379", "--etcd"]);
    crate::support::etcd::output(command.arg(crate::support::part("etcd")));
    pod.values("embeddedEtcd:\n  enabled: true\n");
    pod.start("none", &[]);
    pod.wait_serving();
    let again = pod.dump();
    assert!(want.keys.iter().all(|key| again.keys.contains(key)), "keys of the data dir that was set aside are gone");
    assert!(again.revision > seen, "revisions are given out again: {} is not above SQLite's {seen}", again.revision);
}

/// Starts a pod that goes back, and ends it once its API server runs on SQLite.
fn goes_back(pod: &mut TestPod, point: &str) {
    let data = pod.data();
    pod.start("k8s", &[]);
    poll(&format!("{point}: the way back is gone to its end"), PATIENCE, || {
        pod.assert_running();
        (!data.join("etcd").exists() && data.join("state.db").exists() && pod.log().contains("kine")).then_some(())
    });
    pod.kill_everything();
}

/// And into etcd again, where what was there is there.
fn comes_again(pod: &mut TestPod, point: &str, want: &Dump, prefix: &[u8]) {
    pod.values("embeddedEtcd:\n  enabled: true\n");
    pod.start("none", &[]);
    pod.wait_serving();
    let again = pod.dump();
    for key in want.keys.iter().filter(|(key, ..)| key.starts_with(prefix)) {
        assert!(again.keys.contains(key), "{point}: {} is another or gone", key.0.escape_ascii());
    }
    pod.kill_everything();
}

/// Of a store that was formed here, and of one that was imported, whose journal is done and whose old file is kept, or is not.
#[test]
fn killed_at_every_crash_point_the_way_back_converges() {
    use syncer::crash_point::{BACK_BOOT_CRASH_POINTS, BACK_CRASH_POINTS};
    for (n, point) in BACK_CRASH_POINTS.iter().chain(BACK_BOOT_CRASH_POINTS).enumerate() {
        let mut pod = if n < 4 { TestPod::new() } else { TestPod::with_small_store() };
        pod.start("none", &[]);
        pod.wait_serving();
        pod.etcd(async |mut client| {
            for n in 0..150 {
                client.put(format!("/registry/configmaps/{n}"), "v", None).await.expect("put");
            }
        });
        let want = pod.dump();
        pod.kill_everything();
        let migrated = pod.data().join("state.db.migrated");
        assert_eq!(migrated.exists(), n >= 4, "{point}");
        if n == 4 {
            std::fs::remove_file(migrated).expect("remove the old store");
        }

        pod.values(BACK);
        let mut command = pod.command("k8s", &[]);
        command.env("SYNCER_CRASH_AT", point);
        pod.spawn(command);
        let status = pod.wait_end(PATIENCE);
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{point}: {status}\n{}", pod.log());
        let (data, db) = (pod.data(), pod.data().join("state.db"));
        assert!(data.join("etcd/member/wal").is_dir() || db.exists(), "{point}: neither is there");
        assert_eq!(data.join("etcd").exists(), !["back-done", "back-after-commit"].contains(point), "{point}");

        // Switched on again before SQLite was run: what was written back goes into etcd, and nothing older.
        if *point == "back-after-commit" {
            pod.values("embeddedEtcd:\n  enabled: true\n");
            pod.start("none", &[]);
            pod.wait_serving();
            let again = pod.dump();
            assert!(want.keys.iter().all(|key| again.keys.contains(key)), "{point}: {}", pod.log());
            assert!(!db.exists() && asides(&data) == 1, "{point}");
            pod.kill_everything();
            continue;
        }
        goes_back(&mut pod, point);
        assert_eq!(asides(&data), 1, "{point}");
        comes_again(&mut pod, point, &want, b"/registry/configmaps/");
    }
}

/// No etcd is to start from it, so that it need not be of a line that the etcd at hand goes on from.
#[test]
fn a_data_dir_of_etcd_3_5_goes_back() {
    let programs = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(program("etcd", "3.5"), programs.path().join("etcd")).expect("link");
    let mut pod = TestPod::new();
    pod.spawn(pod.command_with(Some(programs.path()), "none", &[]));
    pod.wait_serving();
    pod.etcd(async |mut client| drop(client.put("/registry/old", "v", None).await.expect("put")));
    let want = pod.dump();
    pod.kill_everything();
    pod.values(BACK);
    goes_back(&mut pod, "3.5");
    comes_again(&mut pod, "3.5", &want, b"/registry/");
}

/// Given up before the commit: what was written back is no store to go on from, once etcd has been written to, and of no use.
#[test]
fn a_way_back_that_is_given_up_leaves_no_store_to_import_later() {
    for point in ["back-verified", "back-after-flip", "back-before-commit"] {
        let mut pod = TestPod::new();
        pod.start("none", &[]);
        pod.wait_serving();
        pod.etcd(async |mut client| drop(client.put("/registry/old", "v", None).await.expect("put")));
        pod.kill_everything();
        let (data, db) = (pod.data(), pod.data().join("state.db"));
        pod.values(BACK);
        let mut command = pod.command("k8s", &[]);
        command.env("SYNCER_CRASH_AT", point);
        pod.spawn(command);
        let status = pod.wait_end(PATIENCE);
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{point}: {status}\n{}", pod.log());
        let placed = point != "back-verified";
        assert!(db.exists() == placed && data.join("etcd").exists(), "{point}");

        pod.values("embeddedEtcd:\n  enabled: true\n");
        pod.start("none", &[]);
        pod.wait_serving();
        let left = ["state.db", "state.db.staging", "migration-back.journal"].map(|name| data.join(name));
        assert!(left.iter().all(|file| !file.exists()), "{point}: {}", pod.log());
        if !placed {
            pod.kill_everything();
            continue;
        }
        pod.etcd(async |mut client| drop(client.put("/registry/new", "v", None).await.expect("put")));
        let want = pod.dump();
        pod.kill_everything();
        if point == "back-after-flip" {
            // The data dir is lost: nothing older takes its place.
            std::fs::remove_dir_all(data.join("etcd")).expect("lose the data dir");
            pod.start("none", &[]);
            pod.wait_serving();
            assert!(pod.dump().keys.iter().all(|(key, ..)| !key.starts_with(b"/registry/")), "an old store is served");
            pod.kill_everything();
            continue;
        }
        // And the way back can be gone again.
        pod.values(BACK);
        goes_back(&mut pod, point);
        comes_again(&mut pod, point, &want, b"/registry/");
    }
}
