//! A log that ends soon after a change of the voters does not prove that nothing is missing, although it names two.
//!
//! raft counts by the configuration that the leader has applied. Entries that it committed together with the change, or
//! while it still applied what was before, needed the old voters alone: a member that has just been promoted may lack
//! them, and so may one of two that were three a moment ago. A change that changes nothing, which the leader proposes
//! after it ([`syncer start`] does), makes it certain. What is lost otherwise: [`super::agreed`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use syncer::reset::Permission;

use super::lossless::write;
use super::pods::{cluster, keys_of, log_of, reset_member, start_alone};
use crate::datadir::read::add_learner;
use crate::support::etcd::{Etcd, EtcdSpec, PATIENCE, run, try_promote, try_remove};
use crate::support::poll;

/// A leader with one follower that is promoted under load, and killed at once; or after a change that changes nothing.
fn promoted_under_load(line: &'static str, home: &std::path::Path, fenced: bool) -> Survived {
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
    poll("the learner is promoted", PATIENCE, || run(async { try_promote(&mut first.client().await, id).await }));
    if fenced {
        fence(&first, &second);
    }
    first.kill();
    over.store(true, Ordering::SeqCst);
    let acknowledged = writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect();
    second.stop();
    (joiner, acknowledged)
}

/// Changes nothing about the leader, and waits until the other has applied that.
fn fence(leader: &Etcd, other: &Etcd) {
    let urls = [leader.spec.peer_url()];
    poll("the other has a change that comes after the last one", PATIENCE, || {
        run(async {
            let mut client = leader.client().await;
            let id = client.status().await.ok()?.leader();
            client.member_update(id, urls.clone()).await.ok()?;
            let applied = other.client().await.get("fence", None).await;
            applied.ok().map(|_| ())
        })
    });
}

/// Three voters of which one is removed under load; then the leader is killed at once, or after a fence.
fn removed_under_load(line: &'static str, home: &std::path::Path, fenced: bool) -> Survived {
    let mut members = cluster(line, home, 3, &[]);
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (over, url) = (over.clone(), members[0].spec.client_url());
            std::thread::spawn(move || run(write(writer, url, over)))
        })
        .collect();
    let gone = run(async { members[2].client().await.status().await.expect("status").header().map(|h| h.member_id()) });
    let gone = gone.expect("a header");
    members[2].kill();
    poll("the third is removed", PATIENCE, || run(async { try_remove(&mut members[0].client().await, gone).await }));
    if fenced {
        fence(&members[0], &members[1]);
    }
    members[0].kill();
    over.store(true, Ordering::SeqCst);
    let acknowledged = writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect();
    members[1].stop();
    (members[1].spec.clone(), acknowledged)
}

for_each_line! {
    a_change_counts_only_once_the_leader_had_applied_it => check_promoted,
    two_that_were_three_a_moment_ago_are_reset_only_behind_a_fence => check_removed,
}

fn check_promoted(line: &'static str) {
    check(line, promoted_under_load);
}

fn check_removed(line: &'static str) {
    check(line, removed_under_load);
}

/// The survivor and the keys that were acknowledged.
type Survived = (EtcdSpec, BTreeSet<Vec<u8>>);

fn check(line: &'static str, begin: fn(&'static str, &std::path::Path, bool) -> Survived) {
    for fenced in [false, true] {
        let home = tempfile::tempdir().expect("make a directory");
        let (spec, acknowledged) = begin(line, home.path(), fenced);
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
