//! The switch under a real kube-apiserver, which writes to the source until it is fenced and reads from it afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use serde_json::{Value, json};
use syncer::serve::distro::{Backend, specs};
use syncer::serve::prepare::prepare;
use syncer::settings::flags::{DistroFlag, Flags};
use syncer::settings::load::{Loader, Surroundings};
use syncer::supervise::spec::Role;

use super::trouble::{goes_on, halted};
use super::*;
use crate::support::etcd::PATIENCE;
use crate::support::kube::{Kube, status_of};
use crate::support::processes::Processes;
use crate::support::{free_port, part};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WRITERS: usize = 24;
/// Acknowledged writes before the pod is started.
const BEFORE: usize = 2000;
/// Acknowledged writes a minute up to the fence, and in how many of them that is measured.
const RATE: f64 = 10_000.0;
const IN_A_ROW: usize = 1000;

/// What the API server last acknowledged of each object: the object as it answered, or `None` when it is deleted.
type Ledger = Mutex<BTreeMap<String, Option<Value>>>;

/// The kube-apiserver that the chart had beside its etcd, on a port of its own.
pub(super) async fn old_apiserver(
    distro: DistroFlag,
    pod: &TestPod,
    source: &Deployed,
    home: &Path,
) -> (Processes, Kube) {
    let port = free_port();
    let flags = Flags {
        distro: Some(distro),
        etcd_embedded: Some(true),
        data_dir: Some(home.join("old")),
        pki_dir: Some(pod.data().join("pki")),
        binaries: Some(vec![part("kube-apiserver").parent().expect("a folder").to_owned()]),
        client_port: Some(source.one().spec.client_port),
        apiserver_port: Some(port),
        ..Flags::default()
    };
    let surroundings =
        Surroundings { values_files: Vec::new(), namespace_file: PathBuf::from("/nonexistent"), folders: Vec::new() };
    let env: BTreeMap<String, std::ffi::OsString> = BTreeMap::new();
    let loader = Loader { flags, wrapped: None, env: Box::new(env), surroundings };
    let settings = loader.load().expect("settings").settings;
    std::fs::create_dir_all(&settings.data_dir).expect("make a folder");
    let prepared = prepare(&settings, &Backend::Etcd, &RealDisk).expect("prepare");
    let mut specs = specs(&settings, &Backend::Etcd, &prepared).expect("specs");
    specs.retain(|spec| spec.role == Role::ApiServer);
    let processes = Processes::start(&specs, &home.join("logs")).await.expect("the old API server");
    let admin = pod.data().join("pki/admin.conf");
    (processes, Kube::through(&admin, ([127, 0, 0, 1], port).into()).expect("a client"))
}

/// What the writers have in common.
#[derive(Default)]
struct Writing {
    ledger: Ledger,
    /// When each write was acknowledged.
    acknowledged: Mutex<Vec<Instant>>,
    /// When the fence first refused one, and how many had been acknowledged by then.
    fenced: OnceLock<(Instant, usize)>,
    stop: AtomicBool,
}

impl Writing {
    fn written(&self) -> usize {
        self.acknowledged.lock().expect("the times").len()
    }

    /// Acknowledged writes a minute, of the last thousand of so many.
    fn rate(&self, of: usize, until: Instant) -> Option<f64> {
        let since = self.acknowledged.lock().expect("the times")[of.checked_sub(IN_A_ROW)?];
        Some(IN_A_ROW as f64 / (until - since).as_secs_f64() * 60.0)
    }
}

/// Creates, changes and deletes objects of its own until it is told to stop; how many writes the fence refused.
async fn write(kube: Arc<Kube>, writer: usize, writing: Arc<Writing>) -> u64 {
    let Writing { ledger, acknowledged, fenced, stop } = &*writing;
    let mut refused = 0;
    for n in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("map-{writer}-{}", n / 4);
        let path = format!("{MAPS}/{name}");
        let outcome = match n % 4 {
            0 => {
                let map = json!({"metadata": {"name": name}, "data": {"n": n.to_string(), "fill": "x".repeat(400)}});
                kube.create(MAPS, &map).await.map(Some)
            }
            3 if n % 8 == 7 => kube.delete(&path).await.map(|_| None),
            _ => kube.merge(&path, &json!({"data": {"n": n.to_string()}})).await.map(Some),
        };
        match outcome {
            Ok(state) => {
                ledger.lock().expect("the ledger").insert(name, state);
                acknowledged.lock().expect("the times").push(Instant::now());
            }
            Err(error) => {
                let words = format!("{error:#}");
                if words.contains("corrupt cluster") || words.contains("database space exceeded") {
                    refused += 1;
                    fenced.get_or_init(|| (Instant::now(), writing.written()));
                } else if status_of(&error) != Some(404) {
                    // Neither acknowledged nor refused: it may be there or not. (404: its creation was refused.)
                    ledger.lock().expect("the ledger").remove(&name);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    refused
}

/// Every object but the identity leases, which each running kube-apiserver renews by itself.
async fn objects(client: &Kube) -> BTreeMap<String, Value> {
    let mut objects = client.everything().await.expect("read every object");
    objects.retain(|path, _| !(path.contains("leases/kube-system/") && path.contains("apiserver-")));
    objects
}

#[test]
fn every_write_that_a_real_api_server_acknowledged_is_moved() {
    if std::env::var_os("SYNCER_QUICK").is_some() {
        eprintln!("skipped: --quick");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let home = tempfile::tempdir().expect("a folder");
    let (mut pod, tls) = pod_with_certificates(Distro::K8s);
    let source = Deployed::start("3.5", 1, Some(&tls));
    let (old, kube) = runtime.block_on(old_apiserver(DistroFlag::K8s, &pod, &source, home.path()));
    let kube = Arc::new(kube);

    let writing = Arc::new(Writing::default());
    let writers: Vec<_> = (0..WRITERS).map(|n| runtime.spawn(write(kube.clone(), n, writing.clone()))).collect();
    crate::support::poll("the writers write", PATIENCE, || (writing.written() >= BEFORE).then_some(()));
    // It halts before it raises the fence, and takes none of the machine until the writers are as fast as that.
    pod.values(&format!("{ON}controller:\n  disabled: true\n"));
    let command = pod.command("k8s", &[&from(&source.url())]);
    halted(&mut pod, "fence-recorded", command);
    let by_halt = writing.written();
    crate::support::poll("the API server takes 10,000 writes a minute", Duration::from_secs(180), || {
        let (now, written) = (Instant::now(), writing.written());
        // A little more, as the last of them come while the pod goes on.
        writing.rate(written, now).filter(|rate| *rate >= 1.1 * RATE && written >= by_halt + IN_A_ROW)
    });
    goes_on(&pod);
    pod.wait_ready();
    writing.stop.store(true, Ordering::Relaxed);
    let refused: u64 = writers.into_iter().map(|writer| runtime.block_on(writer).expect("a writer ends")).sum();
    let (fenced, by_then) = *writing.fenced.get().expect("nobody wrote at the moment of the switch");
    let rate = writing.rate(by_then, fenced).expect("a thousand writes before the fence");
    eprintln!(
        "migrate_from: {} writes acknowledged, {rate:.0} a minute of the last {IN_A_ROW} before the fence; then {refused} refused",
        writing.written(),
    );
    // Raising the fence takes two writes of etcd, and a disk may stall amid them.
    assert!(
        rate >= RATE / 3.0,
        "{rate:.0} writes a minute up to the fence: is the machine busy, or does something hold them up?"
    );

    let new = Kube::from_kubeconfig(&pod.data().join("pki/admin.conf")).expect("a client");
    let before = runtime.block_on(async {
        let (before, after) = (objects(&kube).await, objects(&new).await);
        for (name, state) in writing.ledger.lock().expect("the ledger").iter() {
            let found = after.get(&format!("/api/v1/configmaps/default/{name}"));
            let found = found.map(|object| (&object["data"], &object["metadata"]));
            let want = state.as_ref().map(|object| (&object["data"], &object["metadata"]));
            assert_eq!(found, want, "{name} is not as it was acknowledged");
        }
        // The old API server still reads from the source, and can change nothing.
        for (path, object) in &before {
            assert_eq!(after.get(path), Some(object), "{path} differs");
        }
        let map = json!({"metadata": {"name": "too-late"}});
        let error = format!("{:#}", kube.create(MAPS, &map).await.expect_err("a write to the source"));
        assert!(error.contains("corrupt cluster"), "{error}");
        // And the new one goes on above.
        let made = new.create(MAPS, &map).await.expect("create");
        let version =
            |object: &Value| object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<i64>().ok());
        assert!(before.values().all(|object| version(object) < version(&made)));
        before
    });
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());

    // Undone, as docs/migration.md has it, the old API server goes on from where its etcd was fenced.
    source.one().ctl(&["alarm", "disarm"]);
    runtime.block_on(async {
        kube.create(MAPS, &json!({"metadata": {"name": "too-late"}})).await.expect("create");
        let mut now = objects(&kube).await;
        assert!(now.remove("/api/v1/configmaps/default/too-late").is_some());
        for (path, object) in before.iter().filter(|(path, _)| path.contains("/configmaps/")) {
            assert_eq!(now.get(path), Some(object), "{path} differs");
        }
    });
    drop(old);
}
