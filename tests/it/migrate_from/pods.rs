//! Three pods that are told at the same time to move from a deployed etcd: the seed does, the others wait and join.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use super::crash::POINTS;
use super::switch::Writers;
use super::*;
use crate::scaling::kills::Kills;
use crate::scaling::{Access, CHANGE, Said, ask, hash, runtime};
use crate::statefulset_box::network::GATEWAY;
use crate::statefulset_box::protocol::{Policy, Program};
use crate::support::etcd::PATIENCE;
use crate::support::pod::child_running;
use crate::support::poll;
use crate::support::statefulset::TestBox;

/// The URL of the source, as the pods of a box see it.
fn url() -> String {
    format!("http://{GATEWAY}:2379")
}

/// A deployed etcd in the network of a box, which is written to until the pods have moved it.
struct Source {
    is_moved: Sender<()>,
    thread: JoinHandle<Left>,
}

/// What it is left with.
struct Left {
    everything: (i64, Vec<ServedKey>),
    acknowledged: BTreeMap<String, Option<(String, i64)>>,
    refused: usize,
    takes_writes: bool,
}

impl Source {
    /// On a thread of its own, which is in the box's network, as are all threads and processes that it starts.
    fn of(set: &TestBox) -> Source {
        let daemon = Pid::from_raw(i32::try_from(set.daemon.id()).expect("a pid fits"));
        let (dns, _) = poll("the box's DNS server runs", PATIENCE, || child_running(daemon, "coredns"));
        let network = File::open(format!("/proc/{dns}/ns/net")).expect("the box's network");
        let (is_moved, moved) = channel();
        let (writes, written) = channel();
        let thread = std::thread::spawn(move || {
            setns(network.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the box's network");
            let source = Deployed::also_at("3.5", &url());
            source.fill(300);
            let writers = Writers::start(&source, 4);
            poll("the writers write", PATIENCE, || (writers.acknowledged() > 100).then_some(()));
            writes.send(()).expect("the test waits");
            // An error: the test has failed.
            let _ = moved.recv();
            let (acknowledged, refused) = writers.finish();
            let everything = source.everything();
            Left { everything, acknowledged, refused, takes_writes: source.takes_writes() }
        });
        written.recv_timeout(2 * PATIENCE).expect("the source is written to");
        Source { is_moved, thread }
    }

    /// Ends the writers, and looks at what is in it.
    fn left(self) -> Left {
        self.is_moved.send(()).expect("the source runs");
        self.thread.join().expect("the source's thread ends")
    }
}

/// Starts three pods at once in a box that has none, waits for what is to happen `meanwhile`, and gives what they say in the
/// end. In all there have been so many moves.
fn all_three_have_it(set: &TestBox, moves: RangeInclusive<usize>, meanwhile: impl FnOnce()) -> Said {
    let source = Source::of(set);
    set.scale(3).expect("scale");
    meanwhile();
    set.wait("three pods", CHANGE, |s| s.settled && s.pods.len() == 3).expect("three pods");
    let accesses: Vec<_> = (0..3).map(|ordinal| Access::of(set, ordinal)).collect();
    let said = accesses.iter().map(|access| {
        poll("three voters", CHANGE, || ask(access).filter(|said| said.voters.len() == 3 && said.learners == 0))
    });
    let said: Vec<_> = said.collect();
    assert!(said.windows(2).all(|two| two[0] == two[1]), "{said:?}");

    let left = source.left();
    assert!(left.refused > 0, "nobody wrote at the moment of the switch");
    assert!(!left.takes_writes, "the source takes writes after the switch");
    let hashes: Vec<_> = accesses
        .iter()
        .map(|access| {
            let got = poll("everything", CHANGE, || {
                runtime().block_on(async { try_contents(&mut access.connect().await?).await.ok() })
            });
            assert!(got == left.everything, "a pod differs from the source: {}, not {}", got.0, left.everything.0);
            poll("a hash", CHANGE, || hash(access, left.everything.0))
        })
        .collect();
    assert!(hashes.windows(2).all(|two| two[0] == two[1]), "{hashes:x?}");
    let found: BTreeMap<_, _> = left.everything.1.iter().map(|key| (key.0.as_slice(), key)).collect();
    for (key, state) in left.acknowledged {
        let served = found.get(key.as_bytes()).map(|key| (String::from_utf8_lossy(&key.1).into_owned(), key.3));
        assert_eq!(served, state, "{key} is not as it was acknowledged");
    }
    let [by_seed, others @ ..] =
        ["vc-0", "vc-1", "vc-2"].map(|pod| set.log(pod).matches("the source is fenced").count());
    assert_eq!(others, [0, 0], "the seed alone moves");
    assert!(moves.contains(&by_seed), "{by_seed} moves, not {moves:?}");
    said[0].clone()
}

fn told_to_move(config: &mut crate::statefulset_box::protocol::Config) {
    if let Program::Syncer { args, .. } = &mut config.program {
        args.push(from(&url()));
    }
}

#[test]
fn of_three_pods_at_once_the_seed_moves_and_the_others_join() {
    let set = TestBox::syncer_with(0, Policy::Parallel, told_to_move);
    if !set.has_namespaces() {
        return;
    }
    all_three_have_it(&set, 1..=1, || ());
}

/// The points of a move that its seed is killed at, with what follows a kill.
fn points(more: &[&'static str]) -> Vec<(&'static str, Option<u32>)> {
    let all = POINTS.iter().map(|(point, _)| *point).chain(["fence-half-lifted"]).chain(more.iter().copied());
    all.map(|point| (point, Some(0))).collect()
}

/// The others wait all the while, whatever the seed has got to, and join what it ends with.
#[test]
fn a_seed_that_is_killed_at_every_point_of_its_move_ends_with_it_and_the_others_join() {
    let mut kills = Kills::new();
    let set = TestBox::syncer_with(0, Policy::Parallel, |config| {
        told_to_move(config);
        kills.are_of(config);
    });
    if !set.has_namespaces() {
        return;
    }
    kills.next(&points(&[]));
    all_three_have_it(&set, 2..=POINTS.len(), || kills.come_within(3 * CHANGE, &set));
}

#[test]
fn of_three_hosted_pods_at_once_the_seed_moves_and_the_others_join() {
    if std::env::var_os("SYNCER_QUICK").is_some() || !TestBox::up(|config| config.replicas = 0).has_namespaces() {
        println!("this is not tested here");
        return;
    }
    let mut kills = Kills::new();
    let set = TestBox::hosted_with(0, Policy::Parallel, |config| {
        told_to_move(config);
        kills.are_of(config);
    });
    let formed = |said: &Said| {
        let text = set.kubectl(&["get", "configmap", "vc-etcd", "-o", "jsonpath={.data.marker}"]);
        let marker: serde_json::Value = serde_json::from_str(&text).expect("a marker");
        assert_eq!(marker["phase"]["formed"], format!("{:x}", said.cluster), "{marker}");
    };
    // The marker says what was formed only once there is what was moved.
    kills.next(&points(&["boot-before-mark", "boot-marked"]));
    let first = all_three_have_it(&set, 2..=POINTS.len(), || kills.come_within(3 * CHANGE, &set));
    formed(&first);
    let before = set.log("vc-0").matches("the source is fenced").count();

    // Undone as docs/migration.md has it, and moved once more.
    set.scale(0).expect("scale");
    set.wait("nobody", CHANGE, |s| s.pods.is_empty()).expect("they stop");
    set.kubectl(&["delete", "configmap", "vc-etcd"]);
    for pod in ["vc-0", "vc-1", "vc-2"] {
        std::fs::remove_dir_all(set.volume(pod)).expect("remove the volume");
    }
    let second = all_three_have_it(&set, before + 1..=before + 1, || ());
    formed(&second);
    assert_ne!(first.cluster, second.cluster);
}
