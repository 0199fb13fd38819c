//! Killed at any instant, or told to stop: the source takes writes again, or the pod goes on with everything.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;

use nix::fcntl::{FallocateFlags, fallocate};
use syncer::crash_point::{CRASH_POINTS, FENCE_CRASH_POINTS, FETCH_CRASH_POINTS};
use syncer::disk::Disk;
use syncer::migrate::fence::{self, FencePhase};

use super::switch::{Writers, has_everything};
use super::*;
use crate::support::etcd::PATIENCE;
use crate::support::{SmallVolume, poll};

/// The crash points of a move, in order, and whether the source is fenced for good from there on.
pub const POINTS: [(&str, bool); 19] = [
    ("fence-recorded", false),
    ("fence-half-raised", false),
    ("fence-raised", false),
    ("fence-stands", false),
    ("source-half-fetched", false),
    ("fence-snapshot-taken", false),
    ("migrate-before-journal", false),
    ("migrate-after-journal", false),
    ("migrate-staging-half-written", false),
    ("migrate-backend-written", false),
    ("migrate-etcd-started", false),
    ("migrate-verified", false),
    ("migrate-staging-synced", false),
    ("migrate-written", false),
    ("fence-held", false),
    ("migrate-after-flip", true),
    ("migrate-journal-done", true),
    ("fence-kept", true),
    ("start-etcd-serving", true),
];

/// And those of the same lists that it does not pass: while the fence is lifted (below), while a source is renamed, and where there is
/// an API server.
const OTHERS: [&str; 6] = [
    "fence-half-lifted",
    "migrate-before-commit",
    "migrate-after-commit",
    "migrate-wal-moved",
    "migrate-strays-moved",
    "start-apiserver-spawned",
];

fn killed_at(pod: &mut TestPod, point: &str, extra: &[&str]) {
    let mut command = pod.command("none", extra);
    command.env("SYNCER_CRASH_AT", point);
    pod.spawn(command);
    let status = pod.wait_end(Duration::from_secs(120));
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{point}: {status}\n{}", pod.log());
}

#[test]
fn killed_at_every_crash_point_the_source_or_the_pod_goes_on() {
    let all: BTreeSet<_> = [FENCE_CRASH_POINTS, CRASH_POINTS, FETCH_CRASH_POINTS].concat().into_iter().collect();
    let known: BTreeSet<_> = POINTS.iter().map(|(point, _)| *point).chain(OTHERS).collect();
    assert_eq!(known, all, "a crash point of src/crash_point.rs is in neither list here, or one here is in none there");
    let source = Deployed::start("3.6", 1, None);
    // Enough that the backend has more than a page to be half written.
    source.fill(400);
    let url = from(&source.url());
    for (point, committed) in POINTS {
        let mut pod = TestPod::new();
        killed_at(&mut pod, point, &[&url]);
        assert_eq!(pod.data().join("etcd").exists(), committed, "{point}");
        // The setting is gone by then: what was not moved is no reason for an empty cluster.
        if committed {
            let want = source.everything();
            pod.start("none", &[]);
            pod.wait_serving();
            assert_eq!(moved(&pod), want, "{point}");
            assert!(!source.takes_writes(), "{point}: the source takes writes that are lost");
            source.one().ctl(&["alarm", "disarm"]);
        } else {
            let (code, log) = ended(&mut pod, &[]);
            assert_eq!(code, Some(4), "{point}: {log}");
            assert!(log.contains("was begun on this volume and not completed"), "{point}: {log}");
            assert!(!pod.data().join("etcd").exists(), "{point}");
            assert!(source.takes_writes(), "{point}: the source is left fenced");
            assert_eq!(source.one().ctl(&["alarm", "list"]).trim(), "", "{point}");
            let want = source.everything();
            pod.start("none", &[&url]);
            pod.wait_serving();
            assert_eq!(moved(&pod), want, "{point}");
            assert!(!source.takes_writes(), "{point}");
            source.one().ctl(&["alarm", "disarm"]);
        }
    }
}

/// What each member has of alarms is its own, and so is whether it takes writes.
#[test]
fn three_members_that_are_written_to_go_on_or_are_moved_whatever_was_killed() {
    for (line, points) in [
        ("3.5", &[&["fence-half-raised"][..], &["fence-raised", "fence-half-lifted"]][..]),
        ("3.6", &[&["fence-held"]]),
    ] {
        let source = Deployed::start(line, 3, None);
        source.fill(50);
        let url = from(&source.url());
        for points in points {
            let what = format!("{line}: killed at {}", points.join(" and "));
            let mut pod = TestPod::new();
            let writers = Writers::start(&source, 6);
            poll("the writers write", PATIENCE, || (writers.acknowledged() > 100).then_some(()));
            points.iter().for_each(|point| killed_at(&mut pod, point, &[&url]));
            let (code, log) = ended(&mut pod, &[]);
            assert_eq!(code, Some(4), "{what}: {log}");
            assert!(log.contains("was begun on this volume and not completed"), "{what}: {log}");
            for member in &source.members {
                let name = &member.spec.name;
                // It is behind whoever was asked to lift the fence by a moment.
                poll(&format!("{what}: {name} has no alarm any more; see its `etcdctl alarm list`"), PATIENCE, || {
                    member.ctl(&["alarm", "list"]).trim().is_empty().then_some(())
                });
                let put = run(async { member.client().await.put("/probe", name.as_str(), None).await });
                assert!(put.is_ok(), "{what}: {name} is left fenced: {put:?}");
            }
            // Whoever was refused goes on as well.
            assert!(writers.refused() > 0, "{what}: nobody wrote behind the fence");
            let acknowledged = writers.acknowledged();
            poll("the writers write again", PATIENCE, || (writers.acknowledged() > acknowledged + 100).then_some(()));

            pod.start("none", &[&url]);
            has_everything(&source, &mut pod, writers);
            let want = moved(&pod);
            for member in &source.members {
                let everything = run(async { contents(&mut member.client().await).await });
                assert_eq!(everything, want, "{what}: {} differs from the others", member.spec.name);
            }
            source.one().ctl(&["alarm", "disarm"]);
        }
    }
}

/// Nothing is kept of the one that was not moved from, and it takes writes again before the other is fenced.
#[test]
fn after_a_killed_move_another_source_may_be_named() {
    let (one, other) = (Deployed::start("3.6", 1, None), Deployed::start("3.5", 1, None));
    other.fill(50);
    let want = other.everything();
    for point in ["migrate-after-journal", "migrate-written"] {
        let mut pod = TestPod::new();
        killed_at(&mut pod, point, &[&from(&one.url())]);
        pod.start("none", &[&from(&other.url())]);
        pod.wait_serving();
        assert_eq!(moved(&pod), want, "{point}");
        assert!(one.takes_writes() && !other.takes_writes(), "{point}");
        other.one().ctl(&["alarm", "disarm"]);
    }
}

/// Another data dir in the place is not what was moved: neither it nor the source is served as if the other were not there.
#[test]
fn a_data_dir_that_the_move_has_not_written_is_no_commit() {
    let source = Deployed::start("3.6", 1, None);
    let (url, elsewhere) = (from(&source.url()), tempfile::tempdir().expect("a folder"));
    let (etcd, old) = (program("etcd", "3.6"), elsewhere.path().join("old"));
    let made = |from: &str, to: &Path| {
        let places = ["--from", from, "--to", &format!("datadir:{}", to.display())];
        Command::new(syncer())
            .arg("migrate")
            .args(places)
            .arg("--etcd")
            .arg(&etcd)
            .output()
            .expect("run syncer migrate")
    };
    let done = made(&format!("etcd:{}", source.url()), &old);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // What the old one lacks.
    source.fill(20);
    let want = source.everything();
    let mut pod = TestPod::new();
    let place = pod.data().join("etcd");
    killed_at(&mut pod, "fence-raised", &[&url]);
    let before = std::fs::read(fence::path(&pod.data())).expect("the record of the fence");
    let refused = made(&format!("datadir:{}", old.display()), &place);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "a data dir was written beside a raised fence: {why}");
    assert!(why.contains("is being moved to this volume") && !place.exists(), "{why}");

    RealDisk.rename(&old, &place).expect("put it there by hand");
    for asked in [&[url.as_str()][..], &[]] {
        let (code, log) = ended(&mut pod, asked);
        assert_eq!(code, Some(3), "it was taken for the commit, with {asked:?}: {log}");
        assert!(
            log.contains("is not the one that the move has written") && log.contains("migration.fence away"),
            "{log}"
        );
        assert_eq!(std::fs::read(fence::path(&pod.data())).expect("the record"), before, "the record was changed");
    }
    assert!(!source.takes_writes(), "the fence was lifted while another data dir is in the place");
    RealDisk.rename(&place, &old).expect("move it away");
    pod.start("none", &[&url]);
    pod.wait_serving();
    assert_eq!(moved(&pod), want, "what the source had is not what is served");
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}

/// It is removed before the room is looked at: nothing of it is used again.
#[test]
fn what_a_killed_move_has_left_takes_no_room_of_the_next() {
    let source = Deployed::start("3.6", 1, None);
    source.fill(20);
    let (url, want) = (from(&source.url()), source.everything());
    let mut pod = TestPod::new();
    let Some(_small) = SmallVolume::over(&pod.data(), 300 << 20) else {
        return;
    };
    killed_at(&mut pod, "fence-snapshot-taken", &[&url]);
    let left =
        File::options().write(true).open(pod.data().join("etcd.migration.source")).expect("the source's snapshot");
    fallocate(left, FallocateFlags::empty(), 0, 200 << 20).expect("as of a large source");
    pod.start("none", &[&url]);
    pod.wait_serving();
    assert_eq!(moved(&pod), want);
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}

#[test]
fn killed_while_the_fence_is_lifted_it_is_lifted_by_the_next_start() {
    let source = Deployed::start("3.5", 1, None);
    source.fill(20);
    let url = from(&source.url());
    let mut pod = TestPod::new();
    killed_at(&mut pod, "fence-raised", &[&url]);
    killed_at(&mut pod, "fence-half-lifted", &[&url]);
    // Embedded etcd is off by now, and its etcd is to serve again. That it takes writes would not tell: before 3.6 it does
    // so from the first alarm's end on, though the other stands.
    pod.values("embeddedEtcd:\n  enabled: false\n");
    pod.start("none", &["--", "/bin/sleep", "60"]);
    poll("the fence is lifted", Duration::from_secs(60), || {
        let record = fence::load(&pod.data()).expect("read the record").expect("a record");
        (record.phase == FencePhase::Lifted).then_some(())
    });
    assert_eq!(source.one().ctl(&["alarm", "list"]).trim(), "");
    assert!(source.takes_writes());
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    pod.values(ON);
    let want = source.everything();
    pod.start("none", &[&url]);
    pod.wait_serving();
    assert_eq!(moved(&pod), want);
}

/// The values of before the move are refused, at every start: the source serves by them again.
#[test]
fn killed_and_reverted_the_fence_is_lifted_before_the_values_are_refused() {
    let (etcd, source) = ("controlPlane:\n  backingStore:\n    etcd:\n", Deployed::start("3.6", 1, None));
    source.fill(20);
    for (reverted, flag, why) in [
        ("      embedded: {enabled: false}\n      deploy: {enabled: true}\n", None, "etcd.deploy is enabled"),
        ("      embedded: {enabled: false, migrateFromDeployedEtcd: true}\n", None, "but embedded etcd is off"),
        // Nothing of these is known but where the volume is.
        ("      embedded: {enabled: [\n", None, "values.yaml"),
        ("      embedded: {enabled: true}\n", Some("--nonsense"), "--nonsense"),
        // What the settings alone do not tell.
        ("      embedded: {enabled: true, extraArgs: [--no-such-flag]}\n", None, "no-such-flag"),
        ("      embedded: {enabled: true}\n", Some("--migrate-from=ftp://x"), "--migrate-from"),
    ] {
        let mut pod = TestPod::new();
        killed_at(&mut pod, "migrate-written", &[&from(&source.url())]);
        assert!(!source.takes_writes());
        pod.values(&format!("{etcd}{reverted}"));
        for _ in 0..2 {
            let args: Vec<_> = flag.into_iter().chain(["--", "/bin/sleep", "60"]).collect();
            pod.start("none", &args);
            assert_eq!(pod.wait_end(Duration::from_secs(60)).code(), Some(2), "{}", pod.log());
            assert!(pod.log().contains(why), "{}", pod.log());
            assert!(source.takes_writes(), "the source is left fenced: {}", pod.log());
        }
        assert_eq!(source.one().ctl(&["alarm", "list"]).trim(), "");
        let record = fence::load(&pod.data()).expect("read the record").expect("a record");
        assert_eq!(record.phase, FencePhase::Lifted);
    }
    // One that does not answer is said beside the refusal.
    let mut pod = TestPod::new();
    killed_at(&mut pod, "fence-raised", &[&from(&source.url())]);
    drop(source);
    pod.values(&format!("{etcd}      deploy: {{enabled: true}}\n"));
    let mut command = pod.command("none", &["--", "/bin/sleep", "60"]);
    command.env("SYNCER_PATIENCE_SECONDS", "1");
    pod.spawn(command);
    assert_eq!(pod.wait_end(Duration::from_secs(60)).code(), Some(2), "{}", pod.log());
    for said in ["is not lifted, and it may refuse writes", "etcdctl alarm disarm", "etcd.deploy is enabled"] {
        assert!(pod.log().contains(said), "{said}: {}", pod.log());
    }
}

#[test]
fn told_to_stop_it_lifts_the_fence_unless_it_commits() {
    let source = Deployed::start("3.6", 1, None);
    source.fill(3000);
    let url = from(&source.url());
    let mut pod = TestPod::new();
    pod.start("none", &[&url]);
    poll("the source is fenced", Duration::from_secs(60), || pod.log().contains("the source is fenced").then_some(()));
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    let committed = pod.data().join("etcd/member").exists();
    assert_eq!(source.takes_writes(), !committed, "{}", pod.log());
    let want = source.everything();
    pod.start("none", &[&url]);
    pod.wait_serving();
    assert_eq!(moved(&pod), want);
}
