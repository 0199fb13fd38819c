//! Real API servers: one in each pod, of one cluster, while pods are rolled and leave.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{CHANGE, TRY, etcd_calls_it_healthy, runtime};
use crate::statefulset_box::client::Client;
use crate::statefulset_box::protocol::{PodPhase, Policy, Status};
use crate::support::kube::Kube;
use crate::support::pod::child_running;
use crate::support::poll;
use crate::support::statefulset::TestBox;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-controller-manager";
/// As a kubelet and a Service's endpoints would see it a moment later.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two reads of everything: three API servers, and all else, run on this machine.
const READ_EVERY: Duration = Duration::from_millis(100);
/// No ready pod has taken a write for so long: clients would call that an outage. Loose, as the machine may be busy: it
/// takes a tenth of a second.
const OUTAGE: Duration = Duration::from_secs(15);
/// A leaving pod's end, API server and etcd included. It takes about 3 s; its grace is 10 s, and an API server with open watches
/// would use up all of it.
const GONE_WITHIN: Duration = Duration::from_secs(8);

/// The administrator's way to one pod's front port.
fn kube(set: &Client, ordinal: u32) -> Kube {
    let server = set.forward(ordinal, 8443).expect("a forward");
    Kube::through(&admin(set), server).expect("the administrator's kubeconfig")
}

fn admin(set: &Client) -> PathBuf {
    set.dir().join("pki/admin.conf")
}

/// Names of ConfigMaps with their resourceVersions.
type Written = BTreeMap<String, String>;

#[derive(Default)]
struct Ledger {
    acknowledged: Written,
    last: Option<Instant>,
    /// The longest time without an acknowledged write, and how many each pod has taken.
    longest: Duration,
    by_pod: BTreeMap<u32, usize>,
}

impl Ledger {
    fn take(&mut self, ordinal: u32, name: String, version: String) {
        let now = Instant::now();
        self.longest = self.longest.max(self.last.map_or(Duration::ZERO, |last| now - last));
        self.last = Some(now);
        *self.by_pod.entry(ordinal).or_default() += 1;
        self.acknowledged.insert(name, version);
    }
}

/// One client for each pod, which creates one ConfigMap after the other while that pod is ready.
struct Writers {
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// What they write begins with `w-` and this.
    fn start(set: &Client, ordinals: std::ops::Range<u32>, prefix: &'static str) -> Writers {
        let (ledger, stop) = (Arc::new(Mutex::new(Ledger::default())), Arc::new(AtomicBool::new(false)));
        let threads = ordinals
            .map(|ordinal| {
                let (set, ledger, stop) = (set.clone(), Arc::clone(&ledger), Arc::clone(&stop));
                std::thread::spawn(move || runtime().block_on(write(&set, ordinal, prefix, &ledger, &stop)))
            })
            .collect();
        Writers { ledger, stop, threads }
    }

    fn count(&self, ordinal: u32) -> usize {
        self.ledger.lock().expect("the ledger").by_pod.get(&ordinal).copied().unwrap_or(0)
    }

    fn finish(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("the writer ends"));
        std::mem::take(&mut self.ledger.lock().expect("the ledger"))
    }
}

async fn write(set: &Client, ordinal: u32, prefix: &str, ledger: &Mutex<Ledger>, stop: &AtomicBool) {
    let kube = kube(set, ordinal);
    for n in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        if !set.status().is_ok_and(|status| status.ready().contains(&ordinal)) {
            continue;
        }
        let name = format!("w-{prefix}-{ordinal}-{n:06}");
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        // What is not acknowledged may or may not be there.
        if let Ok(Ok(made)) = tokio::time::timeout(TRY, kube.create(MAPS, &map)).await {
            ledger.lock().expect("the ledger").take(ordinal, name, version_of(&made));
        }
    }
}

/// One client for each pod, which reads everything from a quorum over and over, whenever its API server answers.
struct Readers {
    stop: Arc<AtomicBool>,
    /// How often each pod has answered, and what it lacked then.
    threads: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Readers {
    fn start(set: &Client, ordinals: std::ops::Range<u32>, writers: &Writers) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = ordinals
            .map(|ordinal| {
                let (set, ledger, stop) = (set.clone(), Arc::clone(&writers.ledger), Arc::clone(&stop));
                std::thread::spawn(move || runtime().block_on(read(&set, ordinal, &ledger, &stop)))
            })
            .collect();
        Readers { stop, threads }
    }

    /// Each has answered, and had each time what was acknowledged before it was asked.
    fn finish(self, set: &Client) {
        self.stop.store(true, Ordering::Relaxed);
        let found = self.threads.into_iter().map(|thread| thread.join().expect("the reader ends"));
        for (ordinal, (answers, lacking)) in found.enumerate() {
            eprintln!("apiservers: pod {ordinal} has answered {answers} lists while it was rolled");
            assert!(lacking.is_empty(), "while it was rolled: {}{}", lacking[0], logs(set));
            assert!(answers >= 10, "pod {ordinal} has answered {answers} times{}", logs(set));
        }
    }
}

async fn read(set: &Client, ordinal: u32, ledger: &Mutex<Ledger>, stop: &AtomicBool) -> (usize, Vec<String>) {
    let (kube, mut answers, mut lacking) = (kube(set, ordinal), 0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(READ_EVERY).await;
        let before = ledger.lock().expect("the ledger").acknowledged.clone();
        let Ok(Ok((listed, _))) = tokio::time::timeout(TRY, kube.list(MAPS)).await else { continue };
        answers += 1;
        let served = written(&listed);
        let lost: Vec<_> = before.iter().filter(|(name, version)| served.get(*name) != Some(version)).collect();
        if let Some((name, version)) = lost.first() {
            let has = served.get(*name);
            lacking.push(format!(
                "pod {ordinal}, answer {answers}: {} lacking, {name} is {has:?}, was {version}",
                lost.len()
            ));
        }
    }
    (answers, lacking)
}

fn version_of(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().expect("a resourceVersion").to_owned()
}

/// What a pod serves, read from a quorum.
fn maps(set: &Client, ordinal: u32) -> Written {
    let listed = poll(&format!("pod {ordinal} lists"), CHANGE, || {
        runtime().block_on(async { kube(set, ordinal).list(MAPS).await.ok() })
    });
    written(&listed.0)
}

fn written(maps: &[Value]) -> Written {
    let of = |map: &Value| (map["metadata"]["name"].as_str().unwrap_or_default().to_owned(), version_of(map));
    maps.iter().map(of).filter(|(name, _)| name.starts_with("w-")).collect()
}

/// Each pod serves everything that was acknowledged, at the resourceVersions that were.
fn all_serve(set: &Client, ordinals: std::ops::Range<u32>, acknowledged: &Written, what: &str) {
    for ordinal in ordinals {
        let served = maps(set, ordinal);
        let lost: Vec<_> = acknowledged.iter().filter(|(name, version)| served.get(*name) != Some(version)).collect();
        assert!(lost.is_empty(), "{what}: pod {ordinal} lacks or changed {} writes: {:?}", lost.len(), lost.first());
    }
}

/// Nobody writes any more: all have the same objects at the same resourceVersions, whatever was acknowledged among them.
fn all_serve_the_same(set: &Client, ordinals: std::ops::Range<u32>, acknowledged: &Written) {
    all_serve(set, ordinals.clone(), acknowledged, "at rest");
    let all: Vec<_> = ordinals.map(|ordinal| maps(set, ordinal)).collect();
    for (ordinal, served) in all.iter().enumerate() {
        let differ = served.iter().find(|(name, version)| all[0].get(*name) != Some(version));
        assert_eq!((differ, served.len()), (None, all[0].len()), "at rest: pods 0 and {ordinal} differ{}", logs(set));
    }
}

/// A rolling update under writers and readers of each pod.
fn roll_under_readers(set: &TestBox, before: &Status, writers: Writers) -> Ledger {
    poll("each pod takes writes", CHANGE, || (0..3).all(|pod| writers.count(pod) > 5).then_some(()));
    let readers = Readers::start(set, 0..3, &writers);
    let began = Instant::now();
    set.roll().expect("roll");
    let rolled = set.wait("all are rolled", CHANGE, |s| s.settled && s.revision == before.revision + 1);
    let rolled = rolled.unwrap_or_else(|e| panic!("{e:#}{}", logs(set)));
    assert!(rolled.pods.iter().all(|(ordinal, pod)| pod.incarnation > before.pods[ordinal].incarnation), "{rolled:?}");
    let taken: Vec<_> = (0..3).map(|pod| writers.count(pod)).collect();
    poll("each pod takes writes again", CHANGE, || {
        (0..3).all(|pod| writers.count(pod) > taken[pod as usize]).then_some(())
    });
    eprintln!("apiservers: rolled in {:?}", began.elapsed());
    readers.finish(set);
    let ledger = writers.finish();
    all_serve_the_same(set, 0..3, &ledger.acknowledged);
    ledger
}

/// A write through one pod is read at once through each other, and a token that one has signed is believed by all.
fn one_cluster(set: &Client, pods: u32) {
    runtime().block_on(async {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "someone"}});
        kube(set, 0).create(ACCOUNTS, &account).await.expect("create a service account");
        for writer in 0..pods {
            let name = format!("of-{writer}");
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
            let made = kube(set, writer).create(MAPS, &map).await.expect("create");
            let asks = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
            let signed = kube(set, writer).create(&format!("{ACCOUNTS}/someone/token"), &asks).await.expect("a token");
            let token = signed["status"]["token"].as_str().expect("a token").to_owned();
            for reader in 0..pods {
                let read = kube(set, reader).get(&format!("{MAPS}/{name}")).await.expect("read");
                assert_eq!(read, made, "written through pod {writer}, read through pod {reader}");
                let server = set.forward(reader, 8443).expect("a forward");
                let who = bearer(&set.dir().join("pki/ca.crt"), server, &token).whoami().await;
                assert_eq!(who, "system:serviceaccount:default:someone", "signed by {writer}, asked of {reader}");
            }
        }
    });
}

/// Of the controller-managers one acts, also if one of them was alone at first.
fn one_controller_manager(set: &TestBox, pods: u32) {
    for ordinal in 0..pods {
        poll("the controller-manager is a candidate", CHANGE, || {
            let pid = set.status().expect("a status").pods[&ordinal].pid?;
            let (_, args) = child_running(Pid::from_raw(pid), "kube-controller-manager")?;
            args.contains(&"--leader-elect=true".to_owned()).then_some(())
        });
    }
    let holder = poll("one of them leads", CHANGE, || {
        let lease = runtime().block_on(kube(set, 0).get(LEASE)).ok()?;
        lease["spec"]["holderIdentity"].as_str().map(str::to_owned).filter(|holder| !holder.is_empty())
    });
    assert!(holder.starts_with("vc-"), "{holder}");
}

fn bearer(ca: &Path, server: SocketAddr, token: &str) -> Kube {
    let ca = std::fs::read(ca).expect("read the CA");
    Kube::new(&format!("https://{server}"), Some(&ca), None, Some(token.to_owned())).expect("a client")
}

impl Kube {
    async fn whoami(&self) -> String {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let answer =
            self.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", &review).await.expect("an answer");
        answer["status"]["userInfo"]["username"].as_str().unwrap_or_default().to_owned()
    }
}

/// How long each of these pods takes from its SIGTERM to its end, its processes included.
fn ends(set: &Client, leaving: &[u32]) -> BTreeMap<u32, Duration> {
    let (mut told, mut gone) = (BTreeMap::new(), BTreeMap::new());
    poll("the leaving pods are gone", CHANGE, || {
        let pods = set.status().expect("a status").pods;
        for ordinal in leaving {
            match pods.get(ordinal) {
                Some(pod) if pod.phase == PodPhase::Terminating => {
                    told.entry(*ordinal).or_insert_with(Instant::now);
                }
                None => {
                    gone.entry(*ordinal).or_insert_with(Instant::now);
                }
                Some(_) => {}
            }
        }
        (gone.len() == leaving.len()).then_some(())
    });
    gone.into_iter().map(|(ordinal, at)| (ordinal, at - *told.get(&ordinal).unwrap_or(&at))).collect()
}

#[test]
fn three_api_servers_are_one_cluster_while_pods_are_rolled_and_leave() {
    if std::env::var_os("SYNCER_QUICK").is_some() {
        eprintln!("skipped: --quick");
        return;
    }
    let began = Instant::now();
    let set = TestBox::kubernetes(1, Policy::Parallel);
    let settled = |what: &str, pods: usize| {
        let settled = set.wait(what, CHANGE, |s| s.settled && s.pods.len() == pods);
        settled.unwrap_or_else(|e| panic!("{e:#}{}", logs(&set)))
    };
    settled("an API server", 1);
    if !set.has_namespaces() {
        return;
    }
    let writers = Writers::start(&set, 0..3, "a");
    poll("writes are taken", CHANGE, || (writers.count(0) > 5).then_some(()));
    set.scale(3).expect("scale");
    let first = settled("three API servers", 3);
    eprintln!("apiservers: three ready after {:?}", began.elapsed());
    // That takes the quorum, or the pod's API server, for a moment.
    let among = || {
        let log = set.log("vc-0");
        let (_, since) = log.split_once("starting etcd with the timing of one among others")?;
        let serves = |line: &str| line.contains(r#""child":"etcd""#) && line.contains(r#""message":"serves""#);
        since.lines().any(serves).then_some(())
    };
    poll("etcd of the pod that began alone is started anew", CHANGE, among);
    // What a probe has seen meanwhile may be heard a moment later.
    let mut ready = 0;
    poll("it stays ready", CHANGE, || {
        ready = if set.get(0, "/readyz").is_some() { ready + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(100));
        (ready == 30).then_some(())
    });
    settled("three API servers again", 3);
    one_cluster(&set, 3);
    one_controller_manager(&set, 3);

    let first = roll_under_readers(&set, &first, writers);

    let writers = Writers::start(&set, 0..3, "b");
    etcd_calls_it_healthy();
    // Open watches keep an API server from ending by itself for a minute.
    let runtime = runtime();
    let watches: Vec<_> = (1..3)
        .flat_map(|pod| [pod, pod, pod])
        .map(|pod| runtime.block_on(kube(&set, pod).watch(MAPS, "")).expect("a watch"))
        .collect();
    let said: BTreeMap<u32, usize> = [1, 2].map(|pod| (pod, set.log(&format!("vc-{pod}")).len())).into();
    set.scale(1).expect("scale");
    let ended = ends(&set, &[1, 2]);
    eprintln!("apiservers: from SIGTERM to a leaving pod's end: {ended:?}");
    drop(watches);
    settled("one pod", 1);
    let before = writers.count(0);
    poll("the pod that is left takes writes", CHANGE, || (writers.count(0) > before + 5).then_some(()));
    let mut ledger = writers.finish();
    ledger.acknowledged.extend(first.acknowledged);
    ledger.longest = ledger.longest.max(first.longest);
    eprintln!("apiservers: {:?} writes by pod, at most {:?} without one", ledger.by_pod, ledger.longest);
    all_serve(&set, 0..1, &ledger.acknowledged, "scaled to one");
    let members = set.etcdctl(0, &["member", "list"]);
    assert_eq!(members.lines().count(), 1, "{members}");
    for (pod, before) in said {
        let log = set.log(&format!("vc-{pod}"));
        let killed = |line: &str| line.contains("did not end in its time: killed") && line.contains("\"apiserver\"");
        assert!(log[before..].lines().any(killed), "pod {pod} has not ended its API server{}", logs(&set));
    }
    assert!(ended.values().all(|took| *took < GONE_WITHIN), "{ended:?}{}", logs(&set));
    assert!(ledger.longest < OUTAGE, "{:?} without a write{}", ledger.longest, logs(&set));
}

/// No pod is replaced before the one above it is ready, and none is created before the one below it is.
#[test]
fn three_api_servers_serve_the_same_while_pods_are_rolled_in_order() {
    if std::env::var_os("SYNCER_QUICK").is_some() {
        eprintln!("skipped: --quick");
        return;
    }
    let set = TestBox::kubernetes(3, Policy::OrderedReady);
    let first = set.wait("three API servers", CHANGE, |s| s.settled).unwrap_or_else(|e| panic!("{e:#}{}", logs(&set)));
    if !set.has_namespaces() {
        return;
    }
    let ledger = roll_under_readers(&set, &first, Writers::start(&set, 0..3, "a"));
    eprintln!("apiservers: {:?} writes by pod, at most {:?} without one", ledger.by_pod, ledger.longest);
    assert!(ledger.longest < OUTAGE, "{:?} without a write{}", ledger.longest, logs(&set));
}

/// The charts of k8s end a process whose `/healthz` has failed ten times, two seconds apart.
const BEYOND_LIVENESS: Duration = Duration::from_secs(26);

/// The API server's own `/healthz` fails with the quorum, and its pod would be ended for it: the pod answers in its place
/// before that.
#[test]
fn an_api_server_that_has_lost_its_quorum_is_not_ended_for_that() {
    if std::env::var_os("SYNCER_QUICK").is_some() {
        eprintln!("skipped: --quick");
        return;
    }
    let set = TestBox::kubernetes(2, Policy::Parallel);
    let before = set.wait("two API servers", CHANGE, |s| s.settled).unwrap_or_else(|e| panic!("{e:#}{}", logs(&set)));
    if !set.has_namespaces() {
        return;
    }
    set.partition(0, 1).expect("part them");
    let began = Instant::now();
    let lives = || set.get(0, "/healthz").is_some();
    poll("the API server says that it has no quorum", CHANGE, || (!lives()).then_some(()));
    let first = began.elapsed();
    let mut last = first;
    while began.elapsed() < BEYOND_LIVENESS {
        if !lives() {
            last = began.elapsed();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    eprintln!("apiservers: without a quorum /healthz fails from {first:?} to {last:?}");
    set.heal().expect("heal");
    let after = set.wait("both serve again", CHANGE, |s| s.settled).unwrap_or_else(|e| panic!("{e:#}{}", logs(&set)));
    for (ordinal, was) in before.pods {
        let is = &after.pods[&ordinal];
        assert_eq!((is.pid, is.restarts), (was.pid, 0), "pod {ordinal}: its process was ended{}", logs(&set));
    }
}

/// What the pods have said last, without their children.
fn logs(set: &Client) -> String {
    let last = |ordinal: u32| {
        let log = set.log(&format!("vc-{ordinal}"));
        let ours: Vec<_> = log.lines().filter(|line| line.contains("\"target\":\"syncer::")).rev().take(12).collect();
        format!("\npod {ordinal}, newest first:\n{}", ours.join("\n"))
    };
    (0..3).map(last).collect()
}
