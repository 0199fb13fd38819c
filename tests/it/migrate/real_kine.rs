//! Stores that a real kine wrote, killed in the middle of its life.

use super::*;
use crate::support::kine_db::{Kine, create, delete, update};

/// What the API server does, through kine: creates, updates, deletes, creates again, events with a time to live.
async fn work(kine: &Kine, objects: usize) -> Live {
    let mut client = kine.client().await;
    let mut live = Live::new();
    let key = |i: usize| format!("/registry/configmaps/ns-{}/object-{i}", i % 5).into_bytes();
    for i in 0..objects {
        let value = format!("value {i} {}", "y".repeat(i % 500)).into_bytes();
        let ttl = if i % 4 == 0 { 3660 } else { 0 };
        let revision = create(&mut client, &key(i), &value, ttl).await;
        live.insert(key(i), (value, revision, revision, ttl));
    }
    for i in (1..objects).step_by(4) {
        let Some((value, _, modified, _)) = live.get_mut(&key(i)) else { continue };
        *value = b"changed".to_vec();
        *modified = update(&mut client, &key(i), value, *modified).await;
    }
    for i in (2..objects).step_by(8) {
        if let Some((_, _, modified, _)) = live.remove(&key(i)) {
            delete(&mut client, &key(i), modified).await;
        }
    }
    for i in (2..objects).step_by(16) {
        let revision = create(&mut client, &key(i), b"again", 0).await;
        live.insert(key(i), (b"again".to_vec(), revision, revision, 0));
    }
    let big = vec![b'z'; 1_900_000];
    let mut kv = client.kv_client().max_encoding_message_size(4 << 20);
    let absent = etcd_client::Compare::mod_revision("/registry/big", etcd_client::CompareOp::Equal, 0);
    let put = etcd_client::TxnOp::put("/registry/big", big.clone(), None);
    let answer = kv.txn(etcd_client::Txn::new().when([absent]).and_then([put])).await.expect("create a big value");
    let revision = answer.header().expect("a header").revision();
    live.insert(b"/registry/big".to_vec(), (big, revision, revision, 0));
    live
}

fn migrated_from(program: &str, line: &'static str) {
    let (dir, db) = volume();
    let kine = Kine::start(program, &db);
    let (mut expected, revision) = run(async {
        let live = work(&kine, 400).await;
        let mut client = kine.client().await;
        let answer = client.get("/registry/health", None).await.expect("read kine's health key");
        let kv = answer.kvs().first().expect("kine's health key").clone();
        let mut live = live;
        let health = (kv.value().to_vec(), kv.create_revision(), kv.mod_revision(), 0);
        live.insert(b"/registry/health".to_vec(), health);
        (live, answer.header().expect("a header").revision())
    });
    kine.kill();
    assert!(db.with_file_name("state.db-wal").metadata().is_ok_and(|m| m.len() > 0), "the -wal is not hot");
    let outcome = import_at_boot(dir.path(), line);
    assert_eq!(outcome.revision.0, revision, "{program}");
    expected.retain(|_, v| v.2 <= revision);
    assert_live(&served(line, &dir.path().join("etcd"), revision, true), &expected);
}

#[test]
fn kine_0_17_is_migrated() {
    migrated_from("kine", "3.6");
}

#[test]
fn kine_0_13_is_migrated() {
    migrated_from("kine-0.13", "3.5");
}

#[test]
fn kine_0_11_is_migrated() {
    migrated_from("kine-0.11", "3.7");
}

#[test]
fn a_store_that_three_kines_wrote_one_after_another_is_migrated() {
    let (dir, db) = volume();
    let mut expected = Live::new();
    for (i, program) in ["kine-0.11", "kine-0.13", "kine"].into_iter().enumerate() {
        let kine = Kine::start(program, &db);
        run(async {
            let mut client = kine.client().await;
            for n in 0..50 {
                let key = format!("/registry/pods/{i}/{n}").into_bytes();
                let revision = create(&mut client, &key, program.as_bytes(), 0).await;
                expected.insert(key, (program.as_bytes().to_vec(), revision, revision, 0));
            }
            if i > 0 {
                let key = format!("/registry/pods/{}/0", i - 1).into_bytes();
                let old = expected.get_mut(&key).expect("made before");
                old.2 = update(&mut client, &key, b"later", old.2).await;
                old.0 = b"later".to_vec();
                let gone = format!("/registry/pods/{}/1", i - 1).into_bytes();
                delete(&mut client, &gone, expected.remove(&gone).expect("made before").2).await;
            }
        });
        kine.kill();
    }
    let outcome = import_at_boot(dir.path(), "3.6");
    let mut live = served("3.6", &dir.path().join("etcd"), outcome.revision.0, true);
    live.retain(|key, _| key != b"/registry/health");
    assert_live(&live, &expected);
}
