//! What etcd writes, we read: identities, logs of several segments, backends, and whatever a kill leaves.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use etcd_client::{Client, Compare, CompareOp, MemberAddOptions, PutOptions, Txn, TxnOp};
use syncer::datadir::bolt::BoltReader;
use syncer::datadir::{InspectedDatadir, SchemaVersion, UsableDatadir, inspect, quarantine, schema};
use syncer::disk::RealDisk;
use syncer::ids::Revision;

use super::store::identity;
use crate::support::etcd::{Etcd, EtcdSpec, PATIENCE, ServedKey, all_keys, run, try_promote};
use crate::support::poll;

for_each_line! {
    a_data_dir_with_a_history_is_read => check_history,
    a_member_that_joined_is_read => check_joined,
    a_first_start_killed_at_any_moment_is_empty_or_usable => check_killed_first_start,
    a_member_killed_while_it_writes_is_usable => check_killed_while_writing,
}

/// The schema version of a line.
pub fn version(line: &str) -> SchemaVersion {
    let (major, minor) = schema::decode_version(line.as_bytes()).expect("a line is a version");
    SchemaVersion { major, minor }
}

/// Inspects the data dir of `spec`, which must be usable.
#[track_caller]
pub fn usable(spec: &EtcdSpec) -> UsableDatadir {
    match inspect(&spec.data_dir, version(spec.line)).expect("inspect the data dir") {
        InspectedDatadir::Usable(usable) => usable,
        other => panic!("etcd {} left a data dir that is not usable: {other:?}", spec.line),
    }
}

/// What `all_keys` gives, but from the backend file: the newest revision of each key that is not deleted.
fn keys_of_backend(path: &Path) -> Vec<ServedKey> {
    let reader = BoltReader::open(File::open(path).expect("open the backend")).expect("read the backend");
    let bucket = reader.bucket(schema::BUCKET_KEY).expect("find the bucket").expect("there is a bucket");
    let mut cursor = reader.cursor(&bucket).expect("walk the bucket");
    let mut live = BTreeMap::new();
    let mut previous = Revision(0);
    while let Some((key, value)) = cursor.next().expect("the next revision") {
        let revision = schema::decode_revision_key(key).expect("a revision");
        assert!(revision.revision >= previous);
        previous = revision.revision;
        let record = schema::decode_key_value(value).expect("a key and value");
        if revision.tombstone {
            live.remove(record.key);
        } else {
            assert_eq!(record.mod_revision, revision.revision);
            let (create, modified) = (record.create_revision.0, record.mod_revision.0);
            let rest = (record.value.to_vec(), create, modified, record.version, record.lease);
            live.insert(record.key.to_vec(), rest);
        }
    }
    live.into_iter().map(|(key, (value, c, m, version, lease))| (key, value, c, m, version, lease)).collect()
}

async fn some_history(client: &mut Client) {
    let lease = client.lease_grant(5000, None).await.expect("grant a lease").id();
    for n in 0..300 {
        let options = (n % 10 == 0).then(|| PutOptions::new().with_lease(lease));
        client.put(format!("/key/{}", n % 90), vec![n as u8; n * 20], options).await.expect("put");
    }
    for n in (0..90).step_by(4) {
        client.delete(format!("/key/{n}"), None).await.expect("delete");
    }
    let puts: Vec<_> = (0..5).map(|n| TxnOp::put(format!("/txn/{n}"), "1", None)).collect();
    let always = Compare::version("/never", CompareOp::Equal, 0);
    client.txn(Txn::new().when([always]).and_then(puts)).await.expect("a transaction");
    client.put("/key/0", "again", None).await.expect("put");
    client.compact(200, None).await.expect("compact");
}

/// Two segments, raft snapshots, compaction, deletions, leases, a transaction of several keys.
fn check_history(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let mut spec = EtcdSpec { token: "a-token".into(), ..EtcdSpec::new(line, "pod-0", &home.path().join("etcd")) };
    spec.flags = vec!["--snapshot-count".into(), "50".into()];
    let mut etcd = spec.start();
    let (listed, cluster) = run(async {
        let mut client = etcd.client().await;
        some_history(&mut client).await;
        // A segment is 64 MB.
        for n in 0..70 {
            client.put("/large", vec![n; 1_000_000], None).await.expect("put");
        }
        let members = client.member_list().await.expect("list members");
        (members.members()[0].id(), members.header().expect("a header").cluster_id())
    });
    etcd.stop();
    let dir = usable(&spec);
    // IDs as etcd reports them, as its WAL names them, and as we compute them from URL and token.
    let ids = (identity(&spec).member_id(), identity(&spec).cluster_id());
    assert_eq!((dir.member(), dir.cluster()), ids);
    assert_eq!((listed, cluster), (ids.0.0, ids.1.0));
    assert!(dir.wal().segments.len() >= 2, "{:?}", dir.wal().segments);
    assert!(dir.wal().committed_snapshots().count() > 3);
    assert!(dir.last_index() >= dir.consistent_index() && dir.consistent_index().0 > 400, "{dir:?}");
    let found = keys_of_backend(&spec.data_dir.join("member/snap/db"));

    let mut etcd = spec.start();
    run(async {
        let mut client = etcd.client().await;
        let served = all_keys(&mut client).await;
        assert!(served.len() > 70 && served == found, "what etcd serves is what its backend holds");
        let term = client.status().await.expect("status").raft_term();
        assert!(dir.term().0 < term && dir.term().0 + 2 >= term, "{:?} and {term}", dir.term());
    });
    etcd.kill();
    usable(&spec);

    // An older etcd must not be started on it.
    if line != "3.5" {
        let older = SchemaVersion { major: 3, minor: version(line).minor - 1 };
        let InspectedDatadir::Newer(reason) = inspect(&spec.data_dir, older).expect("inspect") else {
            panic!("etcd {older} would be started on a data dir of {line}")
        };
        assert_eq!(reason, format!("it was written by etcd {line}, and the etcd here is {older}"));
    }
}

/// A learner that was sent a snapshot, then a voter: its log begins behind a gap.
fn check_joined(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let mut spec = EtcdSpec::new(line, "pod-0", &home.path().join("etcd-0"));
    spec.flags = ["--snapshot-count", "50", "--experimental-snapshot-catchup-entries", "5"].map(String::from).to_vec();
    if line != "3.5" {
        spec.flags[2] = "--snapshot-catchup-entries".into();
    }
    if line == "3.6" {
        spec.flags[2] = "--experimental-snapshot-catchup-entries".into();
    }
    let mut first = spec.start();
    let joiner = EtcdSpec { existing: true, ..EtcdSpec::new(line, "pod-1", &home.path().join("etcd-1")) };
    let initial_cluster = Some(format!("pod-0={},pod-1={}", spec.peer_url(), joiner.peer_url()));
    let joiner = EtcdSpec { initial_cluster, ..joiner };
    run(async { some_history(&mut first.client().await).await });
    let id = add_learner(&first, &joiner.peer_url());
    let mut second = joiner.spawn();
    poll("the learner is promoted", PATIENCE, || run(async { try_promote(&mut first.client().await, id).await }));
    second.wait_until_serving();
    let served = run(async { all_keys(&mut second.client().await).await });
    // One is killed and one is told to stop; both are of one cluster, each with its own ID.
    second.stop();
    first.kill();
    let (one, two) = (usable(&spec), usable(&joiner));
    assert_eq!(one.cluster(), two.cluster());
    assert_eq!((one.member(), two.member().0), (identity(&spec).member_id(), id));
    assert!(two.wal().entries.expect("entries").first.0 > 300, "the joiner's log begins with a snapshot: {two:?}");
    assert_eq!(keys_of_backend(&joiner.data_dir.join("member/snap/db")), served);
}

/// Adds a learner, which etcd refuses for five seconds after its own start ("unhealthy cluster").
pub fn add_learner(leader: &Etcd, peer_url: &str) -> u64 {
    poll("the learner is added", PATIENCE, || {
        run(async {
            let options = Some(MemberAddOptions::new().with_is_learner());
            let mut client = leader.client().await;
            if let Ok(added) = client.member_add([peer_url], options).await {
                return added.member().map(|member| member.id());
            }
            // Done, with the answer lost.
            let list = client.member_list().await.ok()?;
            let has = |urls: &[String]| urls.iter().any(|url| url == peer_url);
            list.members().iter().find(|member| has(member.peer_urls())).map(|member| member.id())
        })
    })
}

/// Kills first starts after a while, and as soon as there is a WAL, where etcd itself would wait for ever afterwards.
fn check_killed_first_start(line: &'static str) {
    let (mut empty, mut leftovers) = (0, 0);
    let moments = [0, 20, 60, 130, 300].map(Some).into_iter().chain([None; 25]);
    for moment in moments {
        if moment.is_none() && leftovers > 0 {
            break;
        }
        let home = tempfile::tempdir().expect("make a directory");
        let spec = EtcdSpec::new(line, "pod-0", &home.path().join("etcd"));
        let mut etcd = spec.spawn();
        match moment {
            Some(delay) => std::thread::sleep(Duration::from_millis(delay)),
            None => while !spec.data_dir.join("member/wal").exists() {},
        }
        etcd.kill();
        match inspect(&spec.data_dir, version(line)).expect("inspect") {
            InspectedDatadir::Empty => {
                empty += 1;
                let kept = quarantine::clear(&RealDisk, &spec.data_dir, SystemTime::now()).expect("set aside");
                leftovers += u32::from(kept.is_some_and(|kept| kept.join("member/wal").is_dir()));
            }
            InspectedDatadir::Usable(dir) => assert_eq!(dir.member(), identity(&spec).member_id()),
            InspectedDatadir::Damaged(reason) | InspectedDatadir::Newer(reason) => {
                panic!("killed at {moment:?}: {reason}")
            }
        }
        // And etcd starts from there.
        spec.start().stop();
        usable(&spec);
    }
    assert!(empty > 0 && leftovers > 0, "{empty} were empty, {leftovers} of them with a WAL");
}

fn check_killed_while_writing(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let mut spec = EtcdSpec::new(line, "pod-0", &home.path().join("etcd"));
    spec.flags = vec!["--snapshot-count".into(), "100".into()];
    let mut last_index = 0;
    for round in 0..6u64 {
        let mut etcd = spec.start();
        let acknowledged = run(async {
            let mut client = etcd.client().await;
            let (done, begun) = (Cell::new(0), Instant::now());
            let writing = async {
                loop {
                    client.put(format!("/round/{round}"), vec![1; 3000], None).await.expect("put");
                    done.set(done.get() + 1);
                }
            };
            // A slow disk takes as many.
            let enough = async {
                while done.get() < 25 || begun.elapsed() < Duration::from_millis(150 + 120 * round) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                () = writing => 0,
                () = enough => done.get(),
            }
        });
        etcd.kill();
        let dir = usable(&spec);
        assert!(acknowledged > 0 && dir.last_index().0 >= last_index + acknowledged, "round {round}: {dir:?}");
        last_index = dir.last_index().0;
    }
    // The whole damaged copies in `damage.rs` begin here: a data dir that lives.
    assert!(fs::read_dir(spec.data_dir.join("member/snap")).expect("list").count() > 1);
}
