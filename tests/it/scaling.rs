//! Members come and go with the StatefulSet's replicas, under a steady writer: no acknowledged write is lost.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};

use self::clients::Clients;
pub use self::upgrade::install;
use crate::statefulset_box::protocol::Policy;
use crate::support::poll;
use crate::support::statefulset::{TestBox, has_time_to_leave};

mod alone;
mod apiservers;
mod clients;
mod clocks;
mod damage;
mod faults;
mod history;
mod joining;
pub mod kills;
mod names;
mod others;
mod processes;
mod promotions;
mod rest;
mod rollout;
mod upgrade;
mod wrapped;

/// One try of a question.
const TRY: Duration = Duration::from_secs(2);

/// One try of a write: what has gone to a leader that ends meanwhile is answered only after etcd's own time-out of seven seconds.
const WRITE: Duration = Duration::from_millis(500);

/// So long nothing may go unacknowledged while members leave as they should. It takes milliseconds, which `scripts/bench` measures;
/// but a busy machine alone may stall for seconds. What waits for an election and then for etcd's own time-out takes longer.
const GAP: Duration = Duration::from_secs(5);

/// How long a change of the members may take on a busy machine: etcd itself waits for five seconds after each.
pub const CHANGE: Duration = Duration::from_secs(120);

/// Where to reach a pod's etcd, and the files to do it with.
#[derive(Clone)]
pub struct Access {
    url: String,
    tls: TlsOptions,
}

impl Access {
    pub fn of(set: &TestBox, ordinal: u32) -> Access {
        let port = set.forward(ordinal, 2379).expect("a forward").port();
        let pki = set.pki(&format!("vc-{ordinal}"));
        // A pod without a mounted PKI makes its own when it first starts.
        let read =
            |name: &str| poll(&format!("{name} of pod {ordinal}"), CHANGE, || std::fs::read(pki.join(name)).ok());
        let identity = Identity::from_pem(read("etcd/healthcheck-client.crt"), read("etcd/healthcheck-client.key"));
        let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read("etcd/ca.crt"))).identity(identity);
        Access { url: format!("https://localhost:{port}"), tls }
    }

    pub async fn connect(&self) -> Option<Client> {
        let options = ConnectOptions::new().with_tls(self.tls.clone()).with_timeout(TRY).with_connect_timeout(TRY);
        Client::connect([&self.url], Some(options)).await.ok()
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What was acknowledged, and when.
#[derive(Default)]
struct Acknowledged {
    keys: BTreeSet<String>,
    at: Vec<Instant>,
}

/// Writes one key after the other through pod 0 and remembers those that were acknowledged.
pub struct Writer {
    acknowledged: Arc<Mutex<Acknowledged>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(access: Access) -> Writer {
        let (acknowledged, stop) = (Arc::<Mutex<Acknowledged>>::default(), Arc::new(AtomicBool::new(false)));
        let (told, over) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let mut client = None;
                for n in 0_u64.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("/written/{n:08}");
                    let mut with = match client.take() {
                        Some(client) => client,
                        None => match access.connect().await {
                            Some(client) => client,
                            None => continue,
                        },
                    };
                    if matches!(tokio::time::timeout(WRITE, with.put(key.clone(), "x", None)).await, Ok(Ok(_))) {
                        let mut told = told.lock().expect("the set");
                        told.keys.insert(key);
                        told.at.push(Instant::now());
                        client = Some(with);
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        });
        Writer { acknowledged, stop, thread: Some(thread) }
    }

    pub fn acknowledged(&self) -> BTreeSet<String> {
        self.acknowledged.lock().expect("the set").keys.clone()
    }

    /// The longest time between two acknowledgements, from the last one before `since` until now.
    fn longest_gap(&self, since: Instant) -> Duration {
        let mut at = self.acknowledged.lock().expect("the set").at.clone();
        at.push(Instant::now());
        let first = at.partition_point(|at| *at < since).saturating_sub(1);
        at[first..].windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
    }

    pub fn finish(mut self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("once").join().expect("the writer ends");
        self.acknowledged()
    }
}

/// What a member says: cluster, voters, learners, HashKV with its revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub cluster: u64,
    pub voters: BTreeSet<u64>,
    pub learners: usize,
}

pub fn ask(access: &Access) -> Option<Said> {
    runtime().block_on(async {
        let mut client = access.connect().await?;
        // A linearizable read first: the list that follows is not older.
        client.get("health", Some(GetOptions::new().with_count_only())).await.ok()?;
        let list = client.member_list().await.ok()?;
        let voters = list.members().iter().filter(|m| !m.is_learner()).map(|m| m.id()).collect();
        let learners = list.members().iter().filter(|m| m.is_learner()).count();
        Some(Said { cluster: list.header()?.cluster_id(), voters, learners })
    })
}

pub fn hash(access: &Access, revision: i64) -> Option<u32> {
    runtime().block_on(async { Some(access.connect().await?.hash_kv(revision).await.ok()?.hash()) })
}

fn keys(access: &Access) -> Option<(i64, BTreeSet<String>)> {
    runtime().block_on(async {
        let mut client = access.connect().await?;
        let options = GetOptions::new().with_prefix().with_keys_only();
        let answer = client.get("/written/", Some(options)).await.ok()?;
        let keys = answer.kvs().iter().map(|kv| String::from_utf8_lossy(kv.key()).into_owned()).collect();
        Some((answer.header()?.revision(), keys))
    })
}

/// Whether this pod's member leads.
async fn leads(access: &Access) -> Option<bool> {
    let status = access.connect().await?.status().await.ok()?;
    Some(status.leader() == status.header()?.member_id())
}

/// How long the disk keeps whoever syncs waiting, which is no pod's doing.
struct Stalls {
    over: Arc<AtomicBool>,
    syncs: JoinHandle<Duration>,
}

impl Stalls {
    fn watch(folder: &Path) -> Stalls {
        let (over, path) = (Arc::new(AtomicBool::new(false)), folder.join("stalls"));
        let told = over.clone();
        let syncs = std::thread::spawn(move || {
            let (mut file, mut longest) = (File::create(path).expect("make a file"), Duration::ZERO);
            while !told.load(Ordering::Relaxed) {
                let began = Instant::now();
                file.write_all(b"x").and_then(|()| file.sync_data()).expect("write and sync");
                longest = longest.max(began.elapsed());
                std::thread::sleep(Duration::from_millis(50));
            }
            longest
        });
        Stalls { over, syncs }
    }

    fn longest(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.syncs.join().expect("the syncs")
    }
}

pub struct Scene {
    pub set: TestBox,
    pub writer: Writer,
    cluster: Option<u64>,
    /// The first ordinal.
    first: u32,
}

impl Scene {
    fn begin(policy: Policy) -> Scene {
        Scene::of(3, TestBox::syncer_with(3, policy, has_time_to_leave))
    }

    /// A box with so many replicas, its writer at work.
    pub fn of(replicas: u32, set: TestBox) -> Scene {
        Scene::from(0, replicas, set)
    }

    /// The same, of pods from this ordinal on.
    pub fn from(first: u32, replicas: u32, set: TestBox) -> Scene {
        let writer = Writer::start(Access::of(&set, first));
        let mut scene = Scene { set, writer, cluster: None, first };
        scene.rests("at first", replicas);
        scene
    }

    /// Waits until there are `replicas` voters and nobody else; all of them have everything that was acknowledged, and
    /// equal hashes; the cluster is the one that it was from the first.
    pub fn rests(&mut self, what: &str, replicas: u32) {
        let ordinals = self.first..self.first + replicas;
        let accesses: Vec<_> = ordinals.map(|ordinal| Access::of(&self.set, ordinal)).collect();
        let voters =
            |access: &Access| ask(access).filter(|said| said.voters.len() == replicas as usize && said.learners == 0);
        let said = poll(&format!("{what}: {replicas} voters  (see the pods' logs)"), CHANGE, || {
            let all: Option<Vec<_>> = accesses.iter().map(voters).collect();
            all.filter(|all| all.windows(2).all(|two| two[0] == two[1]))
        });
        let cluster = *self.cluster.get_or_insert(said[0].cluster);
        assert_eq!(said[0].cluster, cluster, "{what}: another cluster");
        let written = self.writer.acknowledged();
        for (ordinal, access) in accesses.iter().enumerate() {
            let (_, keys) = poll("the keys", CHANGE, || keys(access));
            let lost: Vec<_> = written.difference(&keys).collect();
            assert!(
                lost.is_empty(),
                "{what}: pod {ordinal} lacks {} acknowledged writes: {:?}",
                lost.len(),
                lost.first()
            );
        }
        let (revision, _) = poll("the revision", CHANGE, || keys(&accesses[0]));
        let hashes: Vec<_> = accesses.iter().map(|a| poll("a hash", CHANGE, || hash(a, revision))).collect();
        assert!(hashes.windows(2).all(|two| two[0] == two[1]), "{what}: hashes differ: {hashes:x?}");
    }

    fn scale(&mut self, replicas: u32) {
        self.set.scale(replicas).expect("scale");
        self.scaled(replicas);
    }

    /// Waits until the pods are those of a scaling that was asked for.
    pub fn scaled(&mut self, replicas: u32) {
        let count = replicas as usize;
        let what = format!("{replicas} pods, all settled");
        let settled = self.set.wait(&what, CHANGE, |s| s.settled && s.pods.len() == count);
        settled.unwrap_or_else(|error| panic!("{error:#}"));
        if replicas > 0 {
            self.rests(&format!("scaled to {replicas}"), replicas);
            self.writes_go_on();
        }
    }

    /// Waits until some more writes are acknowledged.
    fn writes_go_on(&self) {
        let before = self.writer.acknowledged().len();
        poll("writes are acknowledged", CHANGE, || (self.writer.acknowledged().len() > before + 20).then_some(()));
    }

    /// The members that vote, by pod 0.
    pub fn voters(&self) -> BTreeSet<u64> {
        poll("the voters", CHANGE, || ask(&Access::of(&self.set, 0))).voters
    }

    /// Waits until this pod's member leads, to which leadership is moved.
    pub fn led_by(&self, ordinal: u32) {
        let pods = self.set.status().expect("a status").pods;
        let accesses: Vec<_> = pods.keys().map(|n| Access::of(&self.set, *n)).collect();
        let (to, what) = (Access::of(&self.set, ordinal), format!("pod {ordinal} leads"));
        let leads = async || {
            if leads(&to).await? {
                return Some(());
            }
            let member = to.connect().await?.status().await.ok()?.header()?.member_id();
            // Nobody but the leader does it.
            for access in &accesses {
                if access.connect().await?.move_leader(member).await.is_ok() {
                    break;
                }
            }
            None
        };
        poll(&what, CHANGE, || runtime().block_on(leads()));
    }

    /// Scales down while this pod's member leads.
    fn members_leave(&mut self, replicas: u32, leader: u32) {
        let log = |scene: &Scene| scene.set.log(&format!("vc-{leader}"));
        let said = poll("the pod leads, and keeps that", CHANGE, || {
            self.led_by(leader);
            let said = log(self).len();
            // What moves it from now on is behind that.
            runtime().block_on(leads(&Access::of(&self.set, leader)))?.then_some(said)
        });
        let (disk, began) = (Stalls::watch(self.set.dir()), Instant::now());
        self.scale(replicas);
        let (gap, stalled) = (self.writer.longest_gap(began), disk.longest());
        println!("scaled to {replicas} pods, led by pod {leader}: a gap of {gap:?}, the disk's longest {stalled:?}");
        let what = format!("to {replicas} pods, led by pod {leader}");
        // A write waits for two disks in turn, all of them this one.
        assert!(gap < GAP + 2 * stalled, "{what}: nothing was acknowledged for {gap:?}");
        if leader < replicas {
            return;
        }
        // Nor is that left to etcd, or to an election.
        let log = log(self);
        let moved = |line: &str, rule: &str| line.contains("MoveLeader") && line.contains(rule);
        let handed_on = log[said..].lines().any(|line| moved(line, "(LeaveFirst)"));
        // Where nothing was written for a moment, the lowest has come to lead before anybody was told to leave.
        let mut before = log[said..].lines().take_while(|line| !line.contains("told to stop"));
        let led_no_more = before.any(|line| moved(line, "(LowestLeads)"));
        assert!(handed_on || led_no_more, "{what}, whose syncer has not handed that on: see the pod's log");
    }

    /// Waits until each of three pods was replaced, whatever `end` did to them.
    fn all_replaced(&mut self, what: &str, end: impl FnOnce(&TestBox)) {
        let before = self.set.status().expect("a status").pods;
        end(&self.set);
        self.set
            .wait(what, CHANGE, |s| {
                s.settled && (0..3).all(|n| s.pods.get(&n).is_some_and(|pod| pod.incarnation > before[&n].incarnation))
            })
            .unwrap_or_else(|error| panic!("{error:#}"));
        self.rests(what, 3);
        self.writes_go_on();
    }

    pub fn replaced(&mut self, ordinal: u32, what: &str, end: impl FnOnce(&TestBox)) {
        let before = self.set.status().expect("a status").pods[&ordinal].incarnation;
        end(&self.set);
        self.set
            .wait(what, CHANGE, |s| s.settled && s.pods.get(&ordinal).is_some_and(|pod| pod.incarnation > before))
            .unwrap_or_else(|error| panic!("{error:#}"));
        self.rests(what, 3);
    }
}

/// etcd refuses to change the members of those that have been connected for less than five seconds.
pub fn etcd_calls_it_healthy() {
    let since = Instant::now();
    poll("etcd's own health interval", CHANGE, || (since.elapsed() >= Duration::from_secs(6)).then_some(()));
}

/// Every step at once, down to nothing (a pause) and back, and to more than any step before; and which pod leads when members are
/// told to leave: one that stays, or one that leaves itself.
const JOURNEY: [(u32, Option<u32>); 8] =
    [(1, Some(0)), (3, None), (2, Some(2)), (1, Some(0)), (0, None), (3, None), (5, None), (3, Some(4))];
const MOST: u32 = 5;

/// With a client on each pod beside the writer.
fn whole_journey(policy: Policy) -> (Scene, Clients) {
    let mut scene = Scene::begin(policy);
    let clients = Clients::start(&scene.set, MOST);
    for (replicas, leader) in JOURNEY {
        match leader {
            Some(leader) => scene.members_leave(replicas, leader),
            None => scene.scale(replicas),
        }
    }
    (scene, clients)
}

/// And a rolling update, in which each pod stops and stays the member that it is, and the end of all pods at once.
#[test]
fn no_write_is_lost_on_the_whole_journey_in_parallel() {
    let (mut scene, clients) = whole_journey(Policy::Parallel);
    let voters = scene.voters();
    scene.all_replaced("rolled", |set| set.roll().expect("roll"));
    assert_eq!(scene.voters(), voters, "a pod that was only restarted has left");
    scene.all_replaced("all were killed at once", |set| (0..3).for_each(|n| set.kill9(n).expect("kill")));
    assert_eq!(scene.voters(), voters, "a pod that was killed is another member");
    clients.finish(&scene.set, 3);
    assert!(!scene.writer.finish().is_empty());
}

/// The StatefulSet creates no pod before the one below it is ready, and three voters need two of them for a quorum. Then pods
/// are killed: each in turn, and those that are to leave while they do.
#[test]
fn no_write_is_lost_on_the_whole_journey_in_order() {
    let (mut scene, clients) = whole_journey(Policy::OrderedReady);
    for ordinal in [1, 0] {
        scene.replaced(ordinal, &format!("pod {ordinal} was killed"), |set| set.kill9(ordinal).expect("kill"));
    }
    scene.set.scale(1).expect("scale");
    // On a slow machine it has left by itself.
    let _ = scene.set.kill9(2);
    scene.scaled(1);
    clients.finish(&scene.set, 1);
    assert!(!scene.writer.finish().is_empty());
}

#[test]
fn a_pod_that_is_killed_or_loses_its_volume_returns_with_everything() {
    let mut scene = Scene::begin(Policy::Parallel);
    scene.replaced(1, "pod 1 was killed", |set| set.kill9(1).expect("kill"));
    scene.replaced(2, "pod 2 lost its volume", |set| set.lose_volume(2).expect("lose the volume"));
    scene.replaced(0, "the seed lost its volume", |set| set.lose_volume(0).expect("lose the volume"));
    assert!(!scene.writer.finish().is_empty());
}
