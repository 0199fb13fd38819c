//! What we write, etcd serves: every line, every store.

use std::process::Command;

use etcd_client::{Client, EventType, GetOptions, WatchOptions};

use super::read::add_learner;
use super::store::{Store, identity};
use crate::support::etcd::{EtcdSpec, LINES, PATIENCE, all_keys, output, program, run, try_promote};
use crate::support::poll;

for_each_line! {
    a_store_without_keys_is_served => check_without_keys,
    a_store_of_one_key_is_served => check_one_key,
    a_large_store_is_served => check_large,
    a_member_that_joins_holds_every_key => check_joiner,
}

fn check_without_keys(line: &'static str) {
    check_served(line, &Store::without_keys());
}

fn check_one_key(line: &'static str) {
    check_served(line, &Store::one_key());
}

fn check_large(line: &'static str) {
    check_served(line, &Store::large(20_000));
}

/// Writes the store, starts etcd on it, and compares everything that a client can see.
fn check_served(line: &'static str, store: &Store) {
    assert!(LINES.contains(&line));
    let home = tempfile::tempdir().expect("make a directory");
    let spec = EtcdSpec { token: "fresh-token".into(), ..EtcdSpec::new(line, "pod-0", &home.path().join("etcd")) };
    let written = store.write(&spec);
    assert_eq!(written.keys, store.keys.len() as u64);

    // `snapshot status` runs bbolt's own check of every page, and counts.
    let db = spec.data_dir.join("member/snap/db");
    assert_eq!(std::fs::metadata(&db).expect("look at the backend").len(), written.backend_bytes);
    let status = output(Command::new(program("etcdutl", line)).args(["snapshot", "status", "-w", "json"]).arg(&db));
    let status: serde_json::Value = serde_json::from_str(&status).expect("parse the status");
    let newest = store.keys.iter().map(|key| key.modified).max().unwrap_or(0);
    assert_eq!(status["revision"], newest, "{line}, {}: {status}", store.name);

    let mut etcd = spec.start();
    run(async {
        let mut client = etcd.client().await;
        check_content(&mut client, store).await;
        check_history(&mut client, store).await;
        let hash = client.hash_kv(store.revision).await.expect("HashKV");
        assert_eq!(hash.hash(), written.hash_kv, "{line}, {}: HashKV", store.name);
        assert_eq!(hash.compact_version(), store.revision);

        let members = client.member_list().await.expect("list members");
        let [member] = members.members() else { panic!("one member, not {members:?}") };
        assert_eq!(member.id(), written.member_id.0);
        assert_eq!(members.header().expect("a header").cluster_id(), written.cluster_id.0);
        assert_eq!(
            (written.member_id, written.cluster_id),
            (identity(&spec).member_id(), identity(&spec).cluster_id())
        );
        assert!(
            client
                .alarm(etcd_client::AlarmAction::Get, etcd_client::AlarmType::None, None)
                .await
                .expect("list alarms")
                .alarms()
                .is_empty()
        );

        // Writing goes on at the next revision, and a watch from there sees it.
        let from = WatchOptions::new().with_start_revision(store.revision + 1);
        let mut watch = client.watch("/new", Some(from)).await.expect("watch");
        let put = client.put("/new", "1", None).await.expect("put");
        assert_eq!(put.header().expect("a header").revision(), store.revision + 1);
        let event = loop {
            let message = watch.message().await.expect("a watch event").expect("the watch goes on");
            assert!(!message.canceled(), "the watch was cancelled: {}", message.cancel_reason());
            if let Some(event) = message.events().first() {
                break (event.event_type(), event.kv().expect("a key").mod_revision());
            }
        };
        assert_eq!(event, (EventType::Put, store.revision + 1));
        client.defragment().await.expect("defragment");
        client.delete("/new", None).await.expect("delete");
    });
    etcd.stop();
    drop(etcd);

    // Once more from what etcd left, stopped and then killed.
    for round in 1..=2 {
        let mut etcd = spec.start();
        run(async {
            let mut client = etcd.client().await;
            check_content(&mut client, store).await;
            let revision = client.get("x", None).await.expect("get").header().expect("a header").revision();
            assert_eq!(revision, store.revision + 2 * round);
            client.compact(revision, None).await.expect("compact");
            client.put("/new", "2", None).await.expect("put");
            client.delete("/new", None).await.expect("delete");
        });
        etcd.kill();
    }
}

async fn check_content(client: &mut Client, store: &Store) {
    let mut want: Vec<_> =
        store.keys.iter().map(|k| (k.key.clone(), k.value.clone(), k.create, k.modified, k.version, k.lease)).collect();
    want.sort();
    let found = all_keys(client).await;
    assert_eq!(found.len(), want.len(), "{}: number of keys", store.name);
    for (found, want) in found.iter().zip(&want) {
        assert_eq!(found, want, "{}: a key", store.name);
    }
    let mut leases: Vec<i64> = client.leases().await.expect("list leases").leases().iter().map(|l| l.id()).collect();
    leases.sort_unstable();
    assert_eq!(leases, store.leases.iter().map(|lease| lease.id).collect::<Vec<_>>());
    for lease in &store.leases {
        let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
        let answer = client.lease_time_to_live(lease.id, Some(options)).await.expect("look at a lease");
        assert_eq!(answer.granted_ttl(), lease.ttl);
        assert!((lease.ttl - 120..=lease.ttl).contains(&answer.ttl()), "{} of {}", answer.ttl(), lease.ttl);
        let attached = store.keys.iter().filter(|key| key.lease == lease.id).count();
        assert_eq!(answer.keys().len(), attached, "keys of lease {}", lease.id);
    }
}

/// The store's revision is the source's, and what is older reads as compacted.
async fn check_history(client: &mut Client, store: &Store) {
    let now = client.get("x", None).await.expect("get");
    assert_eq!(now.header().expect("a header").revision(), store.revision, "{}: revision", store.name);
    let at = |revision| Some(GetOptions::new().with_revision(revision));
    client.get("x", at(store.revision)).await.expect("a read at the present revision");
    let old = client.get("x", at(store.revision - 1)).await.expect_err("an old revision is compacted");
    assert!(old.to_string().contains("compacted"), "{old}");
    let from = WatchOptions::new().with_start_revision(store.revision - 1);
    let mut watch = client.watch("x", Some(from)).await.expect("watch");
    let compacted = loop {
        let message = watch.message().await.expect("a watch answer").expect("the watch goes on");
        if message.canceled() {
            break message.compact_revision();
        }
    };
    assert_eq!(compacted, store.revision, "{}: a watch from the past is told that it is compacted", store.name);
}

/// The classic silent loss: a member that joins after the import must be sent the whole store.
fn check_joiner(line: &'static str) {
    let store = Store::large(3_000);
    let home = tempfile::tempdir().expect("make a directory");
    let spec = EtcdSpec::new(line, "pod-0", &home.path().join("etcd-0"));
    let written = store.write(&spec);
    let first = spec.start();
    let mut second = EtcdSpec { existing: true, ..EtcdSpec::new(line, "pod-1", &home.path().join("etcd-1")) };
    second.initial_cluster = Some(format!("pod-0={},pod-1={}", spec.peer_url(), second.peer_url()));

    let id = add_learner(&first, &second.peer_url());
    let mut joined = second.spawn();
    poll("the learner catches up and is promoted", PATIENCE, || {
        run(async { try_promote(&mut first.client().await, id).await })
    });
    joined.wait_until_serving();
    run(async {
        let mut client = joined.client().await;
        check_content(&mut client, &store).await;
        for etcd in [&first, &joined] {
            let hash = etcd.client().await.hash_kv(store.revision).await.expect("HashKV");
            assert_eq!(hash.hash(), written.hash_kv, "{line}: HashKV of {}", etcd.spec.name);
        }
        client.put("/after", "1", None).await.expect("put through the joined member");
    });
}
