//! Members in data directories as pods have them, and what is done to them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use syncer::datadir::{DatadirLock, LogTail, UsableDatadir, log_tail};
use syncer::disk::RealDisk;
use syncer::etcd::EtcdVersion;
use syncer::reset::{Permission, ResetOutcome, ResetPlan, reset};

use crate::datadir::read::usable;
use crate::support::etcd::{Etcd, EtcdSpec, PATIENCE, all_keys, program, run};
use crate::support::poll;

/// A new cluster of so many voters, all serving; the leader first. Pod n has its data dir at `pod-<n>/etcd`.
pub fn cluster(line: &'static str, home: &Path, count: usize, flags: &[&str]) -> Vec<Etcd> {
    let mut specs: Vec<EtcdSpec> = (0..count)
        .map(|n| {
            let data_dir = home.join(format!("pod-{n}"));
            fs::create_dir(&data_dir).expect("make a pod's directory");
            EtcdSpec::new(line, &format!("pod-{n}"), &data_dir.join("etcd"))
        })
        .collect();
    let all: Vec<String> = specs.iter().map(|spec| format!("{}={}", spec.name, spec.peer_url())).collect();
    for spec in &mut specs {
        spec.initial_cluster = Some(all.join(","));
        spec.flags = flags.iter().map(|flag| flag.to_string()).collect();
    }
    let mut members: Vec<Etcd> = specs.iter().map(EtcdSpec::spawn).collect();
    members.iter_mut().for_each(Etcd::wait_until_serving);
    let leader = poll("a leader is known", PATIENCE, || {
        run(async {
            let leader = members[0].client().await.status().await.ok()?.leader();
            for (n, member) in members.iter().enumerate() {
                if member.client().await.status().await.ok()?.header()?.member_id() == leader {
                    return Some(n);
                }
            }
            None
        })
    });
    members.swap(0, leader);
    members
}

/// The directory that holds the member's `etcd/`.
pub fn home_of(spec: &EtcdSpec) -> PathBuf {
    spec.data_dir.parent().expect("a parent").to_owned()
}

/// What a stopped member's data dir says.
pub fn log_of(spec: &EtcdSpec) -> (UsableDatadir, LogTail) {
    let dir = usable(spec);
    let tail = log_tail(&dir).expect("read the end of the log");
    (dir, tail)
}

/// Resets a stopped member.
pub fn reset_member(spec: &EtcdSpec, permission: Permission) -> anyhow::Result<ResetOutcome> {
    let (_, tail) = log_of(spec);
    let home = home_of(spec);
    let lock = DatadirLock::acquire(&home, Duration::from_secs(10)).expect("lock the data dir");
    let etcd = program("etcd", spec.line);
    reset(
        &RealDisk,
        &ResetPlan {
            data_dir: home,
            version: EtcdVersion::of(&etcd).expect("etcd's version"),
            program: etcd,
            lock: &lock,
            member: tail.member,
            cluster: tail.cluster,
            permission,
        },
    )
}

/// A copy of a stopped member's data dir in a directory of its own.
pub fn copy_of(spec: &EtcdSpec, name: &str) -> EtcdSpec {
    let home = home_of(spec).with_file_name(name);
    let mut copy = spec.clone();
    copy.data_dir = home.join("etcd");
    copy_tree(&spec.data_dir, &copy.data_dir);
    copy
}

/// Copies a directory.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a directory");
    for entry in fs::read_dir(from).expect("list a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copy a file");
        }
    }
}

/// Starts a member with etcd's own `--force-new-cluster`, and stops it again when it serves; the keys it has.
pub fn forced_by_etcd_alone(spec: &EtcdSpec) -> BTreeSet<Vec<u8>> {
    let mut spec = spec.clone();
    spec.flags.push("--force-new-cluster".into());
    let mut etcd = spec.start();
    let keys = keys_of(&etcd);
    etcd.stop();
    keys
}

/// The keys that a member serves.
pub fn keys_of(etcd: &Etcd) -> BTreeSet<Vec<u8>> {
    run(async { all_keys(&mut etcd.client().await).await.into_iter().map(|key| key.0).collect() })
}

/// Starts a reset member as usual, and checks that it is alone, itself, and takes writes.
pub fn start_alone(spec: &EtcdSpec, before: &LogTail) -> Etcd {
    let etcd = spec.start();
    run(async {
        let mut client = etcd.client().await;
        let list = client.member_list().await.expect("list members");
        let header = list.header().expect("a header");
        assert_eq!((header.member_id(), header.cluster_id()), (before.member.0, before.cluster.0));
        assert_eq!(list.members().iter().map(|member| member.id()).collect::<Vec<_>>(), [before.member.0]);
        let revision = client.status().await.expect("status").header().expect("a header").revision();
        assert!(revision >= before.revision.0, "{revision} is below {}", before.revision);
        let put = client.put("/after/reset", "1", None).await.expect("put");
        assert!(put.header().expect("a header").revision() > revision);
    });
    etcd
}
