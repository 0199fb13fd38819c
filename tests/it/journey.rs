//! The whole journey of one pod on real input: kube-apiserver on SQLite, thousands of objects, killed, moved into etcd,
//! and served object for object by kube-apiserver again.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::support::kube::{Kube, status_of};
use crate::support::pod::{TestPod, child_running, children_of};
use crate::support::populate::{Plan, populate};
use crate::support::{part, poll};

const SQLITE: &str = "embeddedEtcd:\n  enabled: false\ncontroller:\n  disabled: true\n";
const ETCD: &str = "embeddedEtcd:\n  enabled: true\ncontroller:\n  disabled: true\n";

/// The identity leases that a running kube-apiserver renews by itself are not part of the comparison.
fn settled(mut objects: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    objects.retain(|path, _| !(path.contains("leases/kube-system/") && path.contains("apiserver-")));
    objects
}

fn kube(pod: &TestPod) -> Kube {
    Kube::from_kubeconfig(&pod.data().join("pki/admin.conf")).expect("the admin kubeconfig")
}

fn kubectl_json(pod: &TestPod, kinds: &str) -> Value {
    let output = Command::new(part("kubectl"))
        .arg(format!("--kubeconfig={}", pod.data().join("pki/admin.conf").display()))
        .args(["get", kinds, "-A", "-o", "json"])
        .output()
        .expect("kubectl runs");
    assert!(output.status.success(), "kubectl get {kinds}: {}", String::from_utf8_lossy(&output.stderr));
    let mut list: Value = serde_json::from_slice(&output.stdout).expect("kubectl prints JSON");
    list["metadata"] = Value::Null;
    list
}

#[test]
fn a_real_cluster_is_moved_object_for_object() {
    if std::env::var_os("SYNCER_QUICK").is_some() {
        eprintln!("skipped: --quick");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");

    let mut pod = TestPod::new();
    pod.values(SQLITE);
    pod.start("k8s", &[]);
    pod.wait_ready();
    let started = Instant::now();
    let written = runtime.block_on(populate(Arc::new(kube(&pod)), Plan::default())).expect("write the objects");
    eprintln!(
        "journey: {} objects of {} kinds, {} updates, {} deletes in {:?}",
        written.created,
        written.kinds.len(),
        written.updates,
        written.deleted,
        started.elapsed()
    );
    assert!(written.created >= 20_000 && written.kinds.len() >= 15, "{written:?}");
    let client = kube(&pod);
    let (_, early) = runtime.block_on(client.list("/api/v1/namespaces")).expect("list namespaces");
    let before = settled(runtime.block_on(client.everything()).expect("read every object"));
    let kubectl_before = kubectl_json(&pod, "configmaps,secrets,events");
    let (_, last) = runtime.block_on(client.list("/api/v1/namespaces")).expect("list namespaces");
    pod.kill_everything();
    let store = pod.data().join("state.db");
    let wal = pod.data().join("state.db-wal");
    let wal_bytes = std::fs::metadata(&wal).expect("a -wal is left").len();
    eprintln!("journey: state.db {} bytes, hot -wal {wal_bytes} bytes", std::fs::metadata(&store).expect("db").len());
    assert!(wal_bytes > 0, "the -wal is not hot");

    kill_at_random_instants(&pod.data());

    pod.values(ETCD);
    let started = Instant::now();
    pod.start("k8s", &[]);
    pod.wait_ready();
    eprintln!("journey: migrated and served in {:?}", started.elapsed());
    assert!(!store.exists() && !wal.exists(), "the store is not committed");
    let client = kube(&pod);
    let after = settled(runtime.block_on(client.everything()).expect("read every object"));
    same_objects(&before, &after);
    assert_eq!(kubectl_before, kubectl_json(&pod, "configmaps,secrets,events"), "kubectl shows other objects");

    runtime.block_on(async {
        watches_go_on_or_are_too_old(&client, &early, &last).await;
        life_goes_on(&client).await;
    });
    a_killed_api_server_returns(&mut pod);
    compaction_goes_on(&pod);
    runtime.block_on(life_goes_on(&client));
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    pod.start("k8s", &[]);
    pod.wait_ready();
    let again = settled(runtime.block_on(kube(&pod).everything()).expect("read every object"));
    same_objects(&before, &again);
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}

fn same_objects(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) {
    for (path, object) in before {
        match after.get(path) {
            None => panic!("{path} is missing after the migration"),
            Some(now) => assert_eq!(object, now, "{path} is another object after the migration"),
        }
    }
    for path in after.keys() {
        assert!(before.contains_key(path), "{path} was not there before the migration");
    }
    assert!(before.len() >= 20_000, "only {} objects were compared", before.len());
}

/// From the last resourceVersion of before a watch continues; from an early one it is told to list again.
async fn watches_go_on_or_are_too_old(client: &Kube, early: &str, last: &str) {
    let maps = "/api/v1/namespaces/default/configmaps";
    let mut watch = client.watch(maps, last).await.expect("watch from the last resourceVersion");
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "after-the-move"}});
    client.create(maps, &object).await.expect("create");
    let event = watch.next(Duration::from_secs(60)).await.expect("an event in time").expect("the watch is open");
    assert_eq!(event["type"], "ADDED", "{event}");
    assert_eq!(event["object"]["metadata"]["name"], "after-the-move", "{event}");
    client.delete(&format!("{maps}/after-the-move")).await.expect("delete");

    let too_old = (early.parse::<i64>().expect("a resourceVersion") / 2).to_string();
    let expired = match client.watch(maps, &too_old).await {
        Err(error) => status_of(&error) == Some(410),
        Ok(mut watch) => {
            let event = watch.next(Duration::from_secs(60)).await.expect("an answer in time").expect("an event");
            event["type"] == "ERROR" && event["object"]["code"] == 410
        }
    };
    assert!(expired, "a watch from resourceVersion {too_old} is not told that it is too old");
}

/// Create, update, delete, with rising resourceVersions.
async fn life_goes_on(client: &Kube) {
    let maps = "/api/v1/namespaces/default/configmaps";
    let version = |object: &Value| -> i64 {
        object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).expect("a resourceVersion")
    };
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "life"}, "data": {"a": "1"}});
    let mut created = client.create(maps, &object).await.expect("create");
    let first = version(&created);
    created["data"]["a"] = json!("2");
    let updated = client.update(&format!("{maps}/life"), &created).await.expect("update");
    assert!(version(&updated) > first);
    let stale = client.update(&format!("{maps}/life"), &created).await.expect_err("a stale update is refused");
    assert_eq!(status_of(&stale), Some(409), "{stale}");
    client.delete(&format!("{maps}/life")).await.expect("delete");
    let gone = client.get(&format!("{maps}/life")).await.expect_err("it is gone");
    assert_eq!(status_of(&gone), Some(404), "{gone}");
}

/// It is started again by itself, while the datastore serves on.
fn a_killed_api_server_returns(pod: &mut TestPod) {
    let (killed, _) = child_running(pod.pid(), "kube-apiserver").expect("the API server is a child");
    let (etcd, _) = child_running(pod.pid(), "etcd").expect("etcd is a child");
    kill(killed, Signal::SIGKILL).expect("kill the API server");
    poll("another API server runs", Duration::from_secs(30), || {
        child_running(pod.pid(), "kube-apiserver").filter(|(now, _)| *now != killed)
    });
    pod.wait_ready();
    let (now, _) = child_running(pod.pid(), "etcd").expect("etcd is a child");
    assert_eq!(now, etcd, "etcd was restarted with the API server");
}

fn compaction_goes_on(pod: &TestPod) {
    let revision = pod.dump().revision;
    pod.etcd(async |mut etcd| {
        let options = etcd_client::CompactionOptions::new().with_physical();
        etcd.compact(revision, Some(options)).await.expect("compact");
    });
}

/// Kills everything at instants spread over a whole migration of this volume; each time the next start ends in the same
/// state, that of an undisturbed migration.
fn kill_at_random_instants(volume: &Path) {
    // SYNCER_KILLS shortens the test while working on it; what counts is 100.
    let kills: u32 = std::env::var("SYNCER_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let fresh = || {
        let pod = TestPod::new();
        for name in ["state.db", "state.db-wal"] {
            std::fs::copy(volume.join(name), pod.data().join(name)).expect("copy the store");
        }
        pod
    };
    let mut undisturbed = fresh();
    let started = Instant::now();
    undisturbed.start("none", &[]);
    undisturbed.wait_serving();
    let whole = started.elapsed();
    let want = undisturbed.dump();
    drop(undisturbed);

    let mut pod = fresh();
    let mut converged = 0;
    for i in 0..kills {
        // Weyl's sequence spreads the instants evenly without a random source.
        let instant = whole.mul_f64((f64::from(i) * 0.618_033_988_749_895).fract());
        let started = Instant::now();
        pod.start("none", &[]);
        poll("the instant comes", Duration::from_secs(120), || (started.elapsed() >= instant).then_some(()));
        pod.assert_running();
        pod.kill_everything();
        if pod.data().join("state.db.migrated").exists() || i + 1 == kills {
            pod.start("none", &[]);
            pod.wait_serving();
            assert!(pod.dump() == want, "after kill {i}, {instant:?} into the migration, another state is served");
            converged += 1;
            drop(pod);
            pod = fresh();
        }
    }
    eprintln!("journey: {kills} kills over a migration of {whole:?}: the same state after each of {converged} ends");
}

impl TestPod {
    /// SIGKILL to syncer and every child of it at once.
    pub fn kill_everything(&mut self) {
        let children = children_of(self.pid());
        let _ = kill(self.pid(), Signal::SIGKILL);
        for child in &children {
            let _ = kill(*child, Signal::SIGKILL);
        }
        self.wait_end(Duration::from_secs(60));
        poll("the children are gone", Duration::from_secs(60), || {
            children.iter().all(|pid| kill(*pid, None).is_err()).then_some(())
        });
    }
}
