//! Sources that cannot be moved from: each with its own words, and left as it was.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Instant;

use etcd_client::{AlarmAction, AlarmType};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fence::{alarm, own_member};
use super::*;
use crate::datadir::read::add_learner;
use crate::statefulset_box::forward::relay;
use crate::support::etcd::{PATIENCE, SOURCES, etcd_that, serves_instead};
use crate::support::{free_port, poll};

/// Refused with exit code 4 and these words, nothing moved, and the source as it was.
#[track_caller]
fn refused(pod: &mut TestPod, url: &str, words: &str) {
    let (code, log) = ended(pod, &[&from(url)]);
    assert_eq!(code, Some(4), "{log}");
    assert!(log.contains(words), "not {words:?}: {log}");
    assert!(!pod.data().join("etcd").exists(), "{log}");
}

/// `syncer migrate` refuses it too, in the same words, and leaves nothing.
#[track_caller]
fn not_copied(url: &str, words: &str) {
    let home = tempfile::tempdir().expect("a folder");
    let (code, said) = copied(url, &home.path().join("etcd"));
    assert!(code == Some(4) && said.contains(words), "{code:?}, not {words:?}: {said}");
    assert_eq!(std::fs::read_dir(home.path()).expect("list").count(), 0, "{said}");
}

#[test]
fn a_source_that_is_corrupt_by_its_own_word_is_left_alone() {
    for line in SOURCES {
        let source = Deployed::start(line, 1, None);
        source.fill(20);
        let member = own_member(&source);
        alarm(&source, AlarmAction::Activate, member, AlarmType::Corrupt);
        let words = format!("says of itself that the data of member {member:x} is corrupt");
        let mut pod = TestPod::new();
        refused(&mut pod, &source.url(), &words);
        assert!(!pod.data().join("migration.fence").exists(), "{line}: something was begun");
        not_copied(&source.url(), &words);
        let alarms = source.one().ctl(&["alarm", "list"]);
        let alarms: Vec<_> = alarms.split_whitespace().collect();
        assert_eq!(alarms, [&*format!("memberID:{member}"), "alarm:CORRUPT"], "{line}: another alarm than its own");
    }
}

#[test]
fn a_source_that_is_fenced_by_another_is_left_alone() {
    let source = Deployed::start("3.6", 1, None);
    source.fill(20);
    let url = source.url();
    let mut first = TestPod::new();
    first.start("none", &[&from(&url)]);
    first.wait_serving();
    // Another volume, such as the first one's after its loss: what the source has is not the newest any more.
    refused(&mut TestPod::new(), &url, "has a fence around it");
    not_copied(&url, "has a fence around it");
    assert!(!source.takes_writes());
}

#[test]
fn a_source_that_asks_for_a_user_is_not_moved() {
    let source = Deployed::start("3.6", 1, None);
    source.fill(20);
    for args in [&["user", "add", "root:secret"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]] {
        source.one().ctl(args);
    }
    refused(&mut TestPod::new(), &source.url(), "it asks for a user");
    source.one().ctl(&["--user=root:secret", "put", "/a", "x"]);
}

#[test]
fn a_source_that_is_away_silent_or_without_a_quorum_is_not_moved() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut few = Deployed::start("3.6", 3, None);
    few.fill(20);
    few.members[0].kill();
    few.members[1].kill();
    // It takes connections, and says nothing.
    let silent = Deployed::start("3.5", 1, None);
    let pid = Pid::from_raw(i32::try_from(silent.one().pid()).expect("a pid fits"));
    kill(pid, Signal::SIGSTOP).expect("halt the source");
    let cases = [(nobody, "cannot be moved from"), (few.url(), "has a quorum"), (silent.url(), "no answer within")];
    // Each is asked for half a minute.
    std::thread::scope(|scope| {
        for (url, words) in &cases {
            scope.spawn(move || {
                let mut pod = TestPod::new();
                refused(&mut pod, url, words);
                assert!(!pod.data().join("migration.fence").exists(), "something was begun");
            });
        }
    });
}

/// It answers no question of a client's but what it is: asking again for half a minute would change nothing.
#[test]
fn a_learner_is_told_from_a_source_that_is_away() {
    for line in ["3.4", "3.7"] {
        // etcd takes no member in its first seconds otherwise.
        let source = Deployed::with(line, 1, None, &["--strict-reconfig-check=false"]);
        source.fill(20);
        let joiner = EtcdSpec::new(line, "vc-etcd-1", &source.one().spec.data_dir.with_file_name("vc-etcd-1"));
        let initial_cluster =
            Some(format!("vc-etcd-0={},vc-etcd-1={}", source.one().spec.peer_url(), joiner.peer_url()));
        let joiner = EtcdSpec { existing: true, initial_cluster, ..joiner };
        add_learner(source.one(), &joiner.peer_url());
        let learner = joiner.spawn();
        let url = joiner.client_url();
        poll(&format!("the learner answers; see {}", learner.log.display()), PATIENCE, || {
            let asked = async { learner.client().await.status().await };
            run(asked).ok().filter(|status| status.is_learner()).map(drop)
        });
        let (begun, mut pod) = (Instant::now(), TestPod::new());
        refused(&mut pod, &url, "is a learner");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(20), "{line}: it was asked again and again, for {took:?}: {}", pod.log());
        assert!(!pod.data().join("migration.fence").exists(), "{line}: something was begun");
        not_copied(&url, "is a learner");
        assert!(source.takes_writes(), "{line}: the source is not as it was");
        // As a Service has it: one connection leads to the learner, the next to the voter.
        let home = tempfile::tempdir().expect("a folder");
        let (code, said) = copied(&in_turn(&[&url, &source.url()]), &home.path().join("etcd"));
        assert_eq!(code, Some(0), "{line}: {said}");
    }
}

/// A URL whose connections lead to these, one after the other.
fn in_turn(urls: &[&str]) -> String {
    let port = |url: &&str| url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let ports: Vec<u16> = urls.iter().map(port).collect();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    std::thread::spawn(move || {
        for (client, port) in listener.incoming().flatten().zip(ports.into_iter().cycle()) {
            std::thread::spawn(move || relay(client, (Ipv4Addr::LOCALHOST, port).into(), |_| ()));
        }
    });
    url
}

#[test]
fn a_source_of_another_ca_is_not_moved() {
    let other = tempfile::tempdir().expect("a folder");
    let tls = certificates(other.path(), Distro::None, 6443);
    let source = Deployed::start("3.6", 1, Some(&tls));
    refused(&mut TestPod::new(), &source.url(), "etcd/ca.crt");
    assert!(source.takes_writes());
}

/// What fails behind the fence lifts it: here an etcd that does not confirm what was written, as it serves a store that differs
/// in one value, or that ends.
#[test]
fn a_failure_lifts_the_fence() {
    let [source, other] = ["x", "y"].map(|value| {
        let source = Deployed::start("3.6", 1, None);
        source.fill(20);
        source.asked(async |mut client| client.put("/registry/one", value, None).await.map(drop)).expect("put");
        source
    });
    let programs = tempfile::tempdir().expect("a folder");
    let another = programs.path().join("another");
    let (code, said) = copied(&other.url(), &another);
    assert_eq!(code, Some(0), "{said}");
    for (does, words) in
        [(serves_instead(&another), "etcd's hash at revision"), ("exit 3".to_owned(), "etcd ended with exit status: 3")]
    {
        etcd_that(programs.path(), &does);
        let mut pod = TestPod::new();
        pod.spawn(pod.command_with(Some(programs.path()), "none", &[&from(&source.url())]));
        let status = pod.wait_end(Duration::from_secs(120));
        let log = pod.log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(words) && log.contains("the source is fenced"), "not {words:?}: {log}");
        for left in ["etcd", "etcd.staging", "migration.journal"] {
            assert!(!pod.data().join(left).exists(), "{left} is left of what was not confirmed: {log}");
        }
        assert!(source.takes_writes(), "{log}");
        assert_eq!(source.one().ctl(&["alarm", "list"]).trim(), "");
    }
}

#[test]
fn a_store_of_sqlite_on_the_volume_is_not_left_behind() {
    let source = Deployed::start("3.6", 1, None);
    refused(&mut TestPod::with_small_store(), &source.url(), "lies on this volume too");
    assert!(source.takes_writes());
}
