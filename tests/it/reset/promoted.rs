//! A member that has just been promoted may lack what the leader committed before it counted the new voter.
//!
//! raft counts by the configuration that the leader has applied. Entries that it committed together with the change, or
//! while it still applied what was before, needed the old voters alone. So a log that ends soon after a change does not
//! prove that nothing is missing, although it names two voters.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use syncer::reset::Permission;

use super::lossless::write;
use super::pods::{keys_of, log_of, reset_member, start_alone};
use crate::datadir::read::add_learner;
use crate::support::etcd::{Etcd, EtcdSpec, PATIENCE, run};
use crate::support::poll;

/// A leader with one follower that is promoted under load, and killed at once; or after a change that changes nothing.
fn promoted_under_load(line: &'static str, home: &std::path::Path, fenced: bool) -> (EtcdSpec, BTreeSet<Vec<u8>>) {
    let spec = |n: u32| {
        let data_dir = home.join(format!("pod-{n}"));
        std::fs::create_dir(&data_dir).expect("make a pod's directory");
        EtcdSpec::new(line, &format!("pod-{n}"), &data_dir.join("etcd"))
    };
    let mut first: Etcd = spec(0).start();
    let joiner = EtcdSpec { existing: true, ..spec(1) };
    let id = add_learner(&first, &joiner.peer_url());
    let initial_cluster = format!("pod-0={},pod-1={}", first.spec.peer_url(), joiner.peer_url());
    let joiner = EtcdSpec { initial_cluster: Some(initial_cluster), ..joiner };
    let mut second = joiner.spawn();
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let (over, url) = (over.clone(), first.spec.client_url());
            std::thread::spawn(move || run(write(writer, url, over)))
        })
        .collect();
    poll("the learner is promoted", PATIENCE, || {
        run(async { first.client().await.member_promote(id).await.ok().map(|_| ()) })
    });
    if fenced {
        let urls = [first.spec.peer_url()];
        poll("the other has a change that comes after the promotion", PATIENCE, || {
            run(async {
                let mut client = first.client().await;
                let leader = client.status().await.ok()?.leader();
                client.member_update(leader, urls.clone()).await.ok()?;
                let applied = second.client().await.get("fence", None).await;
                applied.ok().map(|_| ())
            })
        });
    }
    first.kill();
    over.store(true, Ordering::SeqCst);
    let acknowledged = writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect();
    second.stop();
    (joiner, acknowledged)
}

for_each_line! {
    a_change_counts_only_once_the_leader_had_applied_it => check_promoted,
}

fn check_promoted(line: &'static str) {
    for fenced in [false, true] {
        let home = tempfile::tempdir().expect("make a directory");
        let (spec, acknowledged) = promoted_under_load(line, home.path(), fenced);
        let (_, before) = log_of(&spec);
        println!("etcd {line}, fenced {fenced}: {:?}, then {:?}", before.before_change, before.memberships);
        let reset = reset_member(&spec, Permission::TwoVoters);
        if !fenced {
            let error = reset.expect_err("what the leader alone agreed on may be missing");
            assert_eq!(syncer::exit::exit_of(&error).code(), 5, "{error:#}");
            continue;
        }
        reset.expect("reset the survivor");
        let alone = start_alone(&spec, &before);
        let kept = keys_of(&alone);
        assert!(acknowledged.is_subset(&kept), "lost: {:?}", acknowledged.difference(&kept));
    }
}
