//! A real kube-apiserver over a restore: it serves the snapshot's objects, and nobody sees a resourceVersion twice.

use serde_json::json;

use super::*;
use crate::support::kube::{Kube, status_of};
use crate::way_back::{MAPS, kube, objects, same, served};

fn version(object: &Value) -> i64 {
    let version = object["metadata"]["resourceVersion"].as_str().expect("a resourceVersion");
    version.parse().expect("a number")
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"v": "first"}})
}

/// Whoever watches from there is told that it is too old (410), and lists anew.
pub async fn expired(client: &Kube, from: i64) {
    let told = match client.watch(MAPS, &from.to_string()).await {
        Err(error) => status_of(&error).map(u64::from),
        Ok(mut watch) => {
            let event = watch.next(PATIENCE).await.expect("an event in time").expect("the watch is open");
            assert_eq!(event["type"], "ERROR", "from {from}: {event}");
            event["object"]["code"].as_u64()
        }
    };
    assert_eq!(told, Some(410), "from {from}");
}

#[test]
fn an_api_server_goes_on_over_a_restore() {
    let (runtime, mut pod, client) = served();
    let (before, listed) = runtime.block_on(async {
        for n in 0..40 {
            client.create(MAPS, &map(&format!("map-{n}"))).await.expect("create");
        }
        (objects(&client).await, client.list(MAPS).await.expect("list").1.parse::<i64>().expect("a number"))
    });
    let place = pod.data().join("snapshots");
    let save = ["save", "--to", text(&place), "-o", "json"];
    let saved = json(&snapshot_of(&pod, "k8s", &save).output().expect("syncer runs"));
    let file = place.join(saved["snapshot"]["name"].as_str().expect("a name"));
    let later = runtime.block_on(async {
        for n in 0..20 {
            client.create(MAPS, &map(&format!("later-{n}"))).await.expect("create");
        }
        client.delete(&format!("{MAPS}/map-2")).await.expect("delete");
        version(&client.merge(&format!("{MAPS}/map-1"), &json!({"data": {"v": "later"}})).await.expect("change"))
    });
    let staged = json(&snapshot_of(&pod, "k8s", &["restore", text(&file), "-o", "json"]).output().expect("it runs"));
    // Whoever runs goes on, and its clients see more.
    let seen = version(&runtime.block_on(client.create(MAPS, &map("last"))).expect("create"));
    assert!(listed < later && later < seen);

    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    pod.start("k8s", &[]);
    pod.wait_ready();
    let client = kube(&pod);
    runtime.block_on(async {
        // Those of the snapshot as they were; what came later is gone, changed back, and there again.
        same(&before, &objects(&client).await);
        let now = client.list(MAPS).await.expect("list").1.parse::<i64>().expect("a number");
        assert!(now > seen && now >= staged["revision"].as_i64().expect("a revision"), "{now}: {staged}");
        for from in [listed, later, seen, now - 1_000_000] {
            expired(&client, from).await;
        }
        // New writes and watches go on from there.
        let mut watch = client.watch(MAPS, &now.to_string()).await.expect("a watch");
        let made = client.create(MAPS, &map("later-1")).await.expect("create what was lost");
        let changed = client.merge(&format!("{MAPS}/map-1"), &json!({"data": {"v": "new"}})).await.expect("change");
        client.delete(&format!("{MAPS}/map-2")).await.expect("delete");
        assert!(now < version(&made) && version(&made) < version(&changed));
        for (kind, name) in [("ADDED", "later-1"), ("MODIFIED", "map-1"), ("DELETED", "map-2")] {
            let event = loop {
                let event = watch.next(PATIENCE).await.expect("an event in time").expect("the watch is open");
                if event["type"] != "BOOKMARK" {
                    break event;
                }
            };
            assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&kind.into(), &name.into()));
            assert!(version(&event["object"]) > now, "{event}");
        }
    });
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}
