//! The switch: nothing that the source acknowledged is missing, and everything is as it was.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use etcd_client::Client;
use syncer::settings::Distro;

use super::*;
use crate::support::etcd::{PATIENCE, SOURCES};
use crate::support::poll;

/// The last acknowledged write of each key: its value and revision, or `None` for a deletion.
type Ledger = BTreeMap<String, Option<(String, i64)>>;

/// Clients that write as fast as they can, each to keys of its own, until they are told to stop.
pub struct Writers {
    writing: Arc<Writing>,
    threads: Vec<JoinHandle<()>>,
}

/// What they have in common.
#[derive(Default)]
struct Writing {
    ledger: Mutex<Ledger>,
    acknowledged: AtomicUsize,
    /// Writes that were refused because of the fence.
    refused: AtomicUsize,
    stop: AtomicBool,
}

impl Writers {
    pub fn start(source: &Deployed, count: usize) -> Writers {
        let writing = Arc::new(Writing::default());
        let threads = (0..count)
            .map(|n| {
                let writing = Arc::clone(&writing);
                let spec = source.members[n % source.members.len()].spec.clone();
                std::thread::spawn(move || {
                    run(async {
                        let client = crate::support::etcd::connect_to(&spec.client_url(), spec.tls.as_ref()).await;
                        write(client, n, &writing).await;
                    });
                })
            })
            .collect();
        Writers { writing, threads }
    }

    pub fn acknowledged(&self) -> usize {
        self.writing.acknowledged.load(Ordering::Relaxed)
    }

    pub fn refused(&self) -> usize {
        self.writing.refused.load(Ordering::Relaxed)
    }

    /// What was acknowledged, and how many writes were refused because of the fence.
    pub fn finish(self) -> (Ledger, usize) {
        self.writing.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a writer"));
        (self.writing.ledger.lock().expect("the ledger").clone(), self.writing.refused.load(Ordering::Relaxed))
    }
}

async fn write(mut client: Client, writer: usize, writing: &Writing) {
    let Writing { ledger, acknowledged, refused, stop } = writing;
    for n in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("/w/{writer}/{}", n % 500);
        let outcome = if n % 9 == 8 {
            client.delete(key.as_str(), None).await.map(|_| None)
        } else {
            let value = format!("{writer}-{n}");
            let put = client.put(key.as_str(), value.as_str(), None).await;
            put.map(|put| Some((value, put.header().expect("a header").revision())))
        };
        match outcome {
            Ok(state) => {
                ledger.lock().expect("the ledger").insert(key, state);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                let words = error.to_string();
                // For a moment only the alarm that comes first is there.
                if ["corrupt cluster", "database space exceeded"].iter().any(|said| words.contains(said)) {
                    refused.fetch_add(1, Ordering::Relaxed);
                } else {
                    // Neither acknowledged nor refused, such as of a leader that went: it may be there or not.
                    ledger.lock().expect("the ledger").remove(&key);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

/// Moves from `source` while eight clients write to it, and gives the pod.
fn switched(source: &Deployed, mut pod: TestPod) -> TestPod {
    source.fill(300);
    let writers = Writers::start(source, 8);
    poll("the writers write", PATIENCE, || (writers.acknowledged() > 100).then_some(()));
    pod.start("none", &[&from(&source.url())]);
    has_everything(source, &mut pod, writers);
    pod
}

/// Waits until the pod serves, ends the writers, and makes sure that it has what was acknowledged to them.
pub fn has_everything(source: &Deployed, pod: &mut TestPod, writers: Writers) {
    pod.wait_serving();
    let (acknowledged, refused) = writers.finish();
    assert!(refused > 0, "nobody wrote at the moment of the switch");
    let got = moved(pod);
    assert_eq!(got, source.everything(), "the target differs from the source");
    let found: BTreeMap<_, _> = got.1.iter().map(|key| (key.0.as_slice(), key)).collect();
    for (key, state) in acknowledged {
        let served = found.get(key.as_bytes()).map(|key| (String::from_utf8_lossy(&key.1).into_owned(), key.3));
        assert_eq!(served, state, "{key} is not as it was acknowledged");
    }
    assert!(!source.takes_writes(), "the source takes writes after the switch");
}

#[test]
fn every_acknowledged_write_of_each_line_is_moved() {
    for line in SOURCES {
        let (pod, tls) = pod_with_certificates(Distro::None);
        let source = Deployed::start(line, 1, Some(&tls));
        let mut pod = switched(&source, pod);
        let before = moved(&pod);
        let granted =
            pod.etcd(async |mut client| client.lease_time_to_live(77, None).await.expect("lease").granted_ttl());
        assert_eq!(granted, 3600, "{line}");
        assert_eq!(pod.stop().code(), Some(0), "{line}: {}", pod.log());
        // The second upgrade, and the first again: both start from what is there.
        let url = from(&source.url());
        for extra in [vec![], vec![url.as_str()]] {
            pod.start("none", &extra);
            pod.wait_serving();
            assert_eq!(moved(&pod), before, "{line}");
            assert_eq!(pod.stop().code(), Some(0), "{line}: {}", pod.log());
        }
        drop(source);
        pod.start("none", &[]);
        pod.wait_serving();
        pod.etcd(async |mut client| {
            let put = client.put("/after", "x", None).await.expect("put");
            assert_eq!(put.header().expect("a header").revision(), before.0 + 1, "{line}");
        });
    }
}

#[test]
fn three_members_that_are_written_to_at_each_are_moved() {
    let (pod, tls) = pod_with_certificates(Distro::None);
    let source = Deployed::start("3.5", 3, Some(&tls));
    let _pod = switched(&source, pod);
    // Each of them, not only the one that was asked.
    for member in &source.members {
        let refused = run(async { member.client().await.put("/probe", "x", None).await }).expect_err("a write");
        assert!(refused.to_string().contains("corrupt cluster"), "{refused}");
    }
}

#[test]
fn a_source_without_space_is_moved_and_the_target_has_space() {
    let source = Deployed::start("3.6", 1, None);
    source.fill(100);
    let member =
        source.asked(async |mut client| client.status().await.expect("status").header().expect("header").member_id());
    source.asked(async |mut client| {
        let mut of = etcd_client::AlarmOptions::new();
        of.with_member(member);
        let (raise, kind) = (etcd_client::AlarmAction::Activate, etcd_client::AlarmType::Nospace);
        client.alarm(raise, kind, Some(of)).await.expect("raise an alarm");
    });
    let mut pod = TestPod::new();
    pod.start("none", &[&from(&source.url())]);
    pod.wait_serving();
    assert_eq!(moved(&pod), source.everything());
    pod.etcd(async |mut client| drop(client.put("/after", "x", None).await.expect("put")));
    assert!(pod.log().contains("has used up its quota"), "{}", pod.log());
}
