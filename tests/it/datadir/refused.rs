//! Why an inspection refuses what etcd would start from: the trap, sprung.

use std::fs;

use syncer::datadir::snapshot::{RESTORED, file_name};
use syncer::datadir::{InspectedDatadir, inspect};

use super::read::{add_learner, version};
use super::store::Store;
use crate::support::etcd::{EtcdSpec, PATIENCE, all_keys, run, try_promote};
use crate::support::poll;

const LINE: &str = "3.6";

/// Without its raft snapshot file, etcd serves all keys of an imported store, and a member that joins gets none.
#[test]
fn an_import_that_lost_its_raft_snapshot_would_give_a_joiner_nothing() {
    let home = tempfile::tempdir().expect("make a directory");
    let spec = EtcdSpec::new(LINE, "pod-0", &home.path().join("etcd-0"));
    let store = Store::large(100);
    store.write(&spec);
    fs::remove_file(spec.data_dir.join("member/snap").join(file_name(RESTORED.0, RESTORED.1))).expect("remove");
    match inspect(&spec.data_dir, version(LINE)).expect("inspect") {
        InspectedDatadir::Damaged(reason) => assert!(reason.contains("is missing or damaged"), "{reason}"),
        other => panic!("this data dir must be refused: {other:?}"),
    }

    let first = spec.start();
    assert_eq!(run(async { all_keys(&mut first.client().await).await }).len(), store.keys.len());
    let mut joiner = EtcdSpec { existing: true, ..EtcdSpec::new(LINE, "pod-1", &home.path().join("etcd-1")) };
    joiner.initial_cluster = Some(format!("pod-0={},pod-1={}", spec.peer_url(), joiner.peer_url()));
    let id = add_learner(&first, &joiner.peer_url());
    let mut second = joiner.spawn();
    poll("the learner is promoted", PATIENCE, || run(async { try_promote(&mut first.client().await, id).await }));
    second.wait_until_serving();
    let lost = run(async { all_keys(&mut second.client().await).await });
    assert!(lost.is_empty(), "the trap is gone: a joiner got {} keys", lost.len());
}
