//! What etcd makes of each data dir, flag, and member list: what the boot decisions rest on. On every line.
//!
//! The rows with a data dir are elsewhere: `launch` (restarts), `exits` (removed members, damage).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syncer::supervise::exit::ExitCause;
use syncer::supervise::spec::{ChildSpec, LogFormat, Ready, Role};

use super::exits::{end_of, poll_async};
use crate::reset::pods::cluster;
use crate::support::etcd::{Etcd, EtcdSpec, LINES, PATIENCE, program, put_surely, run};

/// Starts it and says why it ended.
fn judged(spec: &EtcdSpec) -> ExitCause {
    end_of(&ChildSpec {
        role: Role::Etcd,
        program: program("etcd", spec.line),
        args: spec.args().into_iter().map(Into::into).collect(),
        env: BTreeMap::new(),
        env_remove_prefixes: vec!["ETCD_"],
        cwd: None,
        ready: Ready::Started,
        log: LogFormat::EtcdJson,
        stop_grace: PATIENCE,
    })
}

fn emptied(spec: &EtcdSpec) -> EtcdSpec {
    let data_dir = spec.data_dir.with_extension("emptied");
    let _ = std::fs::remove_dir_all(&data_dir);
    EtcdSpec { data_dir, ..spec.clone() }
}

/// Member and cluster.
fn ids(etcd: &Etcd) -> (u64, u64) {
    run(async {
        let status = etcd.client().await.status().await.expect("status");
        let header = status.header().expect("a header");
        (header.member_id(), header.cluster_id())
    })
}

fn each_line(test: impl Fn(&'static str, &Path)) {
    for line in LINES {
        let home = tempfile::tempdir().expect("a folder");
        test(line, home.path());
    }
}

/// An empty data dir beside a cluster of three that knows its peer URL: `new` with the full list is refused; `existing` with
/// it starts under an ID that had data, which raft does not survive; a list of another length is refused.
#[test]
fn an_empty_data_dir_in_the_place_of_one_that_had_data() {
    each_line(|line, home| {
        let mut members = cluster(line, home, 3, &[]);
        run(async {
            let mut client = members[0].client().await;
            for n in 0..20 {
                put_surely(&mut client, format!("/{n}"), "x").await;
            }
        });
        members[2].kill();
        let lost = emptied(&members[2].spec);
        let cause = judged(&lost);
        let bootstrapped =
            matches!(&cause, ExitCause::BootstrapRefused(why) if why.contains("already been bootstrapped"));
        assert!(bootstrapped, "{line}, new: {cause:?}");

        let existing = EtcdSpec { existing: true, ..emptied(&lost) };
        let two = existing.initial_cluster.as_deref().expect("a list").split(',');
        let two: Vec<_> = two.filter(|member| !member.starts_with(&members[1].spec.name)).collect();
        let cause = judged(&EtcdSpec { initial_cluster: Some(two.join(",")), ..existing.clone() });
        let unequal = matches!(&cause, ExitCause::BootstrapRefused(why) if why.contains("validating peerURLs"));
        assert!(unequal, "{line}, a list of two: {cause:?}");

        // One whose URL nobody has listed, in the place of one that is.
        let stranger = EtcdSpec { existing: true, ..EtcdSpec::new(line, "stranger", &home.join("stranger")) };
        let with = format!("{},stranger={}", two.join(","), stranger.peer_url());
        let cause = judged(&EtcdSpec { initial_cluster: Some(with), ..stranger });
        let unmatched = matches!(&cause, ExitCause::BootstrapRefused(why) if why.contains("validating peerURLs"));
        assert!(unmatched, "{line}, not listed: {cause:?}");

        let cause = judged(&emptied(&existing));
        assert!(matches!(&cause, ExitCause::Corrupt(why) if why.contains("tocommit(")), "{line}, existing: {cause:?}");
    });
}

/// Alone in its list, an empty data dir makes a new and empty cluster, healthy, with the IDs of the lost one if the token is
/// the same: nothing tells them apart. Hence a fresh token each time.
#[test]
fn a_lost_data_dir_formed_again_has_the_ids_of_the_token() {
    each_line(|line, home| {
        let spec = EtcdSpec::new(line, "vc-0", &home.join("etcd"));
        let formed = |spec: &EtcdSpec| {
            let mut etcd = spec.start();
            let (ids, keys) = (ids(&etcd), crate::reset::pods::keys_of(&etcd));
            run(async { drop(etcd.client().await.put("/kept", "x", None).await.expect("put")) });
            etcd.stop();
            (ids, keys)
        };
        let (first, _) = formed(&spec);
        let (again, keys) = formed(&emptied(&spec));
        assert_eq!((again, keys), (first, BTreeSet::new()), "{line}");
        let (other, _) = formed(&EtcdSpec { token: "another".to_owned(), ..emptied(&spec) });
        assert!(other.0 != first.0 && other.1 != first.1, "{line}: {other:x?} {first:x?}");
    });
}

/// Removed meanwhile, an empty data dir starts with `new`, the full list and so the IDs of the first formation; the others tell
/// it that it is no member, and it ends.
#[test]
fn an_empty_data_dir_of_a_removed_member_is_told_so() {
    each_line(|line, home| {
        let mut members = cluster(line, home, 3, &[]);
        let removed = ids(&members[2]).0;
        members[2].kill();
        run(async {
            let mut client = members[0].client().await;
            // Refused until etcd has noticed the kill.
            poll_async("the member is removed", async || {
                crate::support::etcd::try_remove(&mut client, removed).await.is_some()
            })
            .await;
            put_surely(&mut client, "/kept", "x").await;
        });
        let cause = judged(&emptied(&members[2].spec));
        assert!(matches!(cause, ExitCause::Removed), "{line}: {cause:?}");
    });
}

/// With a raft snapshot, a lost backend is told as damage and never made anew, empty.
#[test]
fn a_lost_backend_is_damage() {
    each_line(|line, home| {
        let mut spec = EtcdSpec::new(line, "vc-0", &home.join("etcd"));
        spec.flags = vec!["--snapshot-count=5".to_owned()];
        let mut etcd = spec.start();
        run(async {
            let mut client = etcd.client().await;
            for n in 0..30 {
                put_surely(&mut client, format!("/{n}"), "x").await;
            }
        });
        etcd.stop();
        std::fs::remove_file(spec.data_dir.join("member/snap/db")).expect("remove the backend");
        let cause = judged(&spec);
        assert!(matches!(cause, ExitCause::Corrupt(_)), "{line}: {cause:?}");
    });
}
