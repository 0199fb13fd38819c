//! A volume without room for what is moved.

use std::fs::File;

use nix::fcntl::{FallocateFlags, fallocate};

use super::trouble::{goes_on, halted};
use super::*;
use crate::support::SmallVolume;

/// Refused with the exit code of a full volume; nothing is left of what was begun, and the source is as before.
#[track_caller]
fn refused_for_room(pod: &mut TestPod, source: &Deployed) -> String {
    let status = pod.wait_end(Duration::from_secs(180));
    let log = pod.log();
    assert_eq!(status.code(), Some(7), "{log}");
    assert!(log.contains("MiB free and the import needs"), "{log}");
    for left in ["etcd", "etcd.staging", "etcd.migration.source", "etcd.migration.verify", "migration.journal"] {
        assert!(!pod.data().join(left).exists(), "{left} is left on a full volume: {log}");
    }
    assert!(source.takes_writes(), "the source takes no writes: {log}");
    assert_eq!(source.one().ctl(&["alarm", "list"]).trim(), "", "{log}");
    log
}

#[test]
fn a_volume_that_is_too_small_is_told_before_the_source_is_fenced() {
    let source = Deployed::start("3.6", 1, None);
    source.fill(20);
    let mut pod = TestPod::new();
    let Some(_small) = SmallVolume::over(&pod.data(), 100 << 20) else { return };
    pod.start("none", &[&from(&source.url())]);
    let log = refused_for_room(&mut pod, &source);
    assert!(!log.contains("the source is fenced") && !pod.data().join("migration.fence").exists(), "{log}");
}

#[test]
fn a_volume_that_is_filled_meanwhile_lifts_the_fence() {
    let source = Deployed::start("3.5", 1, None);
    source.fill(20);
    let mut pod = TestPod::new();
    let Some(_small) = SmallVolume::over(&pod.data(), 300 << 20) else { return };
    let command = pod.command("none", &[&from(&source.url())]);
    halted(&mut pod, "fence-stands", command);
    let others = pod.data().join("others");
    let file = File::create(&others).expect("a file");
    fallocate(file, FallocateFlags::empty(), 0, 250 << 20).expect("fill the volume");
    goes_on(&pod);
    let log = refused_for_room(&mut pod, &source);
    assert!(log.contains("the source is fenced"), "it was refused before: {log}");

    std::fs::remove_file(others).expect("make room");
    let want = source.everything();
    pod.start("none", &[&from(&source.url())]);
    pod.wait_serving();
    assert_eq!(moved(&pod), want, "what the source had is not what is served");
    assert!(!source.takes_writes(), "the source takes writes that are lost");
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}
