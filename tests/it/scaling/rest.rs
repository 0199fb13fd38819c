//! What pods cost that have nothing to do.

use std::time::{Duration, Instant};

use super::Scene;
use crate::statefulset_box::protocol::Policy;
use crate::support::statefulset::TestBox;

/// How long DNS is listened to, and how often at most: on a busy machine an answer may come late, and the name is asked anew.
const LISTENED: Duration = Duration::from_secs(30);
const WINDOWS: usize = 3;

/// What each syncer may ask a minute. It asks 5 to 7 times.
const A_MINUTE: f64 = 12.0;

/// The cluster's DNS serves many: a pod that looks for the others in every pass would be noticed there.
#[test]
fn pods_at_rest_ask_dns_seldom() {
    let scene = Scene::begin(Policy::Parallel);
    if !scene.set.has_namespaces() {
        return;
    }
    scene.set.settled();
    let Scene { set, writer, .. } = scene;
    writer.finish();
    let mut often = Vec::new();
    for _ in 0..WINDOWS {
        often = those_that_ask_often(&set);
        if often.is_empty() {
            return;
        }
    }
    panic!("in each of {WINDOWS} windows a pod asked DNS too often: {often:#?}");
}

/// Listens once, and gives the questions of each pod that has asked too often.
fn those_that_ask_often(set: &TestBox) -> Vec<(u32, Vec<String>)> {
    let (before, began) = (set.log("coredns").len(), Instant::now());
    std::thread::sleep(LISTENED);
    let log = set.log("coredns");
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let most = (A_MINUTE * minutes).ceil() as usize;
    let mut often = Vec::new();
    for (ordinal, pod) in set.status().expect("a status").pods {
        let address = format!("{}:", pod.address.expect("an address"));
        let asked = || log[before..].lines().filter(|line| line.contains(&address));
        // etcd looks up addresses of whoever dials it, and A and AAAA of each peer, first by the search domain; syncer asks by
        // whole names.
        let (reverse, searched) = (
            asked().filter(|line| line.contains("\"PTR IN")).count(),
            asked().filter(|line| line.contains(".team-a.team-a.svc.")).count(),
        );
        assert!(asked().count() > 0, "pod {ordinal}: nobody at {address} has asked anything: is this the log's form?");
        let of_syncer = asked().count().saturating_sub(reverse + 2 * searched);
        println!(
            "at rest: pod {ordinal} has asked DNS {of_syncer} times in {minutes:.2} min, all of it {}",
            asked().count()
        );
        assert!(of_syncer > 0, "pod {ordinal}: syncer has asked nothing: is this the log's form?");
        if of_syncer > most {
            often.push((ordinal, asked().map(ToOwned::to_owned).collect()));
        }
    }
    often
}
