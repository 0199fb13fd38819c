//! A real kube-apiserver over kine on what was written back: what expires ends, and what is old is compacted.

use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::restore::apiserver::expired;
use crate::support::kine_db::compacted;
use crate::support::kube::status_of;

const EVENTS: &str = "/api/v1/namespaces/default/events";
/// How long an Event lives, and how often the API server compacts.
const TTL: Duration = Duration::from_secs(30);
const API: &str = "api:\n  extraArgs: [--event-ttl=30s, --etcd-compaction-interval=2s]\n";
/// More than kine retains whoever tells it to compact (`compact-min-retain`).
const WRITES: usize = 1200;

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"v": "first"}})
}

fn event(name: &str) -> Value {
    let about = json!({"kind": "ConfigMap", "namespace": "default", "name": "map-0"});
    json!({"metadata": {"name": name}, "involvedObject": about, "reason": "Tested", "message": "soon gone", "type": "Normal"})
}

async fn is_there(client: &Kube, name: &str) -> bool {
    match client.get(&format!("{EVENTS}/{name}")).await {
        Ok(_) => true,
        Err(error) if status_of(&error) == Some(404) => false,
        Err(error) => panic!("read {name}: {error:#}"),
    }
}

/// Waits until an Event is gone, which had lived for no longer than since `begun`.
fn ends(runtime: &Runtime, client: &Kube, name: &str, begun: Instant) {
    let what = format!("{name} ends {TTL:?} after kine's start or its own");
    poll(&what, TTL + PATIENCE, || runtime.block_on(async { (!is_there(client, name).await).then_some(()) }));
    assert!(begun.elapsed() >= TTL, "{name} is gone after {:?} already", begun.elapsed());
}

#[test]
fn behind_the_way_back_events_end_and_an_api_server_compacts() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let mut pod = TestPod::new();
    pod.values(&format!("{ETCD}{API}"));
    pod.start("k8s", &[]);
    pod.wait_ready();
    let client = kube(&pod);
    let last = runtime.block_on(async {
        for n in 0..20 {
            client.create(MAPS, &map(&format!("map-{n}"))).await.expect("create");
        }
        client.create(EVENTS, &event("of-etcd")).await.expect("create an Event");
        client.list(MAPS).await.expect("list").1
    });
    pod.kill_everything();

    pod.values(&format!("{BACK}{API}"));
    let back = Instant::now();
    pod.start("k8s", &[]);
    pod.wait_ready();
    let client = Arc::new(kube(&pod));
    let db = pod.data().join("state.db");
    let (made, old, mut watch) = runtime.block_on(async {
        assert!(is_there(&client, "of-etcd").await || back.elapsed() > TTL, "the Event did not come back");
        let made = Instant::now();
        client.create(EVENTS, &event("of-kine")).await.expect("create an Event");
        let watch = client.watch(MAPS, &last).await.expect("watch from the last resourceVersion");
        client.delete(&format!("{MAPS}/map-2")).await.expect("delete");
        let old = client.list(MAPS).await.expect("list").1;
        // Not compacted as yet.
        client.watch(MAPS, &old).await.expect("watch from what will be old");
        let exact = client.get(&format!("{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact")).await;
        exact.expect("list what will be old");
        (made, old, watch)
    });
    let old: i64 = old.parse().expect("a number");
    runtime.block_on(async {
        let writers: Vec<_> = (10..18)
            .map(|n| {
                let client = Arc::clone(&client);
                tokio::spawn(async move {
                    for v in 0..WRITES / 8 {
                        let patch = json!({"data": {"v": v.to_string()}});
                        client.merge(&format!("{MAPS}/map-{n}"), &patch).await.expect("change");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.expect("a writer ends");
        }
    });
    let gone = b"/registry/configmaps/default/map-2";
    poll("the API server has kine compact: see compact_rev_key and the rows of map-2 in state.db", PATIENCE, || {
        let (revision, rows) = compacted(&db, gone);
        (revision > old && rows == 0).then_some(())
    });
    assert_eq!(compacted(&db, b"/registry/configmaps/default/map-1").1, 1, "a live row that was written back is gone");
    runtime.block_on(async {
        expired(&client, old).await;
        let exact = client.get(&format!("{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact")).await;
        assert_eq!(exact.as_ref().err().and_then(status_of), Some(410), "{exact:?}");
        // Who watched all the while goes on, and so does whoever begins now.
        let now = client.list(MAPS).await.expect("list").1;
        let mut anew = client.watch(MAPS, &now).await.expect("watch from the last resourceVersion");
        client.create(MAPS, &map("after-the-compaction")).await.expect("create");
        for (watch, most) in [(&mut anew, 1), (&mut watch, WRITES + 2)] {
            let mut events = 0;
            loop {
                let event = watch.next(PATIENCE).await.expect("an event in time").expect("the watch is open");
                if event["type"] == "BOOKMARK" {
                    continue;
                }
                events += 1;
                assert!(event["type"] != "ERROR" && events <= most, "{events} of {most}: {event}");
                if event["object"]["metadata"]["name"] == "after-the-compaction" {
                    break;
                }
            }
            assert_eq!(events, most, "the watch has missed some");
        }
    });
    ends(&runtime, &client, "of-etcd", back);
    ends(&runtime, &client, "of-kine", made);
    let left = runtime.block_on(client.list(MAPS)).expect("list").0;
    // All twenty less one, the one that came last; there are no controllers.
    assert_eq!(left.len(), 20, "something else has ended");
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}
