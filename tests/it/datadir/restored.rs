//! Beside `etcdutl snapshot restore`: the same WAL, the same raft snapshot; and on through every upgrade.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use syncer::datadir::proto::Fields;
use syncer::datadir::snapshot::{self, RESTORED, file_name};
use syncer::datadir::wal::read_wal;
use syncer::datadir::wal::writer::FIRST_SEGMENT;

use super::store::Store;
use crate::support::etcd::{EtcdSpec, all_keys, output, program, run};

for_each_line! {
    our_log_and_snapshot_are_those_of_a_restore => check_restore,
}

fn check_restore(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let spec = EtcdSpec { token: "some token".into(), ..EtcdSpec::new(line, "pod-0", &home.path().join("ours")) };
    let store = Store::one_key();
    store.write(&spec);
    let theirs = home.path().join("theirs");
    let mut restore = Command::new(program("etcdutl", line));
    restore.args(["snapshot", "restore", "--skip-hash-check", "--name", &spec.name, "--data-dir"]).arg(&theirs);
    restore.args(["--initial-cluster", &format!("{}={}", spec.name, spec.peer_url())]);
    restore.args(["--initial-advertise-peer-urls", &spec.peer_url(), "--initial-cluster-token", &spec.token]);
    output(restore.arg(spec.data_dir.join("member/snap/db")));

    let wal = |dir: &Path| {
        let wal = read_wal(&dir.join("member/wal")).expect("read a WAL");
        (wal.metadata, wal.hard_state, wal.entries, wal.snapshots, wal.segments, wal.tail.torn)
    };
    assert_eq!(wal(&spec.data_dir), wal(&theirs), "{line}: what the logs say");
    if line != "3.7" {
        // 3.7 leaves out fields that are zero; up to 3.6 every byte of the segment is the same.
        let bytes = |dir: &Path| fs::read(dir.join("member/wal").join(FIRST_SEGMENT)).expect("read a segment");
        assert!(bytes(&spec.data_dir) == bytes(&theirs), "{line}: the segments differ");
    }

    let name = format!("member/snap/{}", file_name(RESTORED.0, RESTORED.1));
    let ours = fs::read(spec.data_dir.join(&name)).expect("read our raft snapshot");
    let Ok(theirs) = fs::read(theirs.join(&name)) else {
        assert_eq!(line, "3.7", "only 3.7 may do without a raft snapshot file");
        return;
    };
    assert_eq!(snapshot::decode(&ours), snapshot::decode(&theirs), "{line}");
    if line != "3.7" {
        assert!(v2_store(&ours) == v2_store(&theirs), "{line}: the v2 stores differ, beyond their counters");
    }
}

/// The v2 store within a raft snapshot file, without its counters of requests.
fn v2_store(file: &[u8]) -> Value {
    let inner = |bytes: &[u8], number: u32| {
        let field = Fields::new(bytes).map(|field| field.expect("a field")).find(|(found, _)| *found == number);
        field.expect("the field").1.bytes().expect("bytes").to_vec()
    };
    let mut store: Value = serde_json::from_slice(&inner(&inner(file, 2), 1)).expect("parse the v2 store");
    store["Stats"] = Value::Null;
    store
}

#[test]
fn a_store_goes_from_3_5_to_3_6() {
    check_upgrade(["3.5", "3.6"]);
}

#[test]
fn a_store_goes_from_3_6_to_3_7() {
    check_upgrade(["3.6", "3.7"]);
}

/// A store written once is opened by one line and then by the next. (From 3.5 to 3.7 etcd itself wants a raft snapshot
/// taken in between: 3.7 panics on requests of the v2 API in the log, with which 3.5 publishes its member.)
fn check_upgrade(lines: [&'static str; 2]) {
    let home = tempfile::tempdir().expect("make a directory");
    let mut spec = EtcdSpec::new(lines[0], "pod-0", &home.path().join("etcd"));
    let store = Store::large(500);
    store.write(&spec);
    let mut served = Vec::new();
    for line in lines {
        spec.line = line;
        let mut etcd = spec.start();
        run(async {
            let mut client = etcd.client().await;
            let found = all_keys(&mut client).await;
            assert_eq!(found.len(), store.keys.len());
            assert!(served.is_empty() || served == found, "{line} serves something else");
            served = found;
        });
        // The cluster version follows within seconds, and the next line refuses to skip one.
        crate::support::poll("the cluster version follows", crate::support::etcd::PATIENCE, || {
            let body = http_version(&spec.client_url());
            body.contains(&format!("\"etcdcluster\":\"{line}.")).then_some(())
        });
        etcd.stop();
    }
}

/// `GET /version` of an etcd, over plain HTTP.
fn http_version(url: &str) -> String {
    use std::io::{Read, Write};
    let address = url.trim_start_matches("http://");
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return String::new() };
    let mut answer = String::new();
    let _ = write!(stream, "GET /version HTTP/1.0\r\nHost: {address}\r\n\r\n");
    let _ = stream.read_to_string(&mut answer);
    answer
}
