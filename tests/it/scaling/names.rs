//! Mounted certificates without the names by which pods call each other: said with the file and what to do, by whoever
//! has them and by whoever asks.

use std::fs;
use std::path::{Path, PathBuf};

use syncer::pki::layout::RECORD;
use time::OffsetDateTime;

use super::clocks::{copy_peer, issue_for};
use super::{CHANGE, Scene};
use crate::statefulset_box::protocol::Policy;
use crate::support::poll;
use crate::support::statefulset::TestBox;

/// As it is mounted: nobody renews what is in it.
fn mounted(name: &str, dir: &Path, ca: Option<&Path>) {
    fs::create_dir_all(dir.join("etcd")).expect("a folder");
    for file in ["etcd/ca.crt", "etcd/ca.key"] {
        ca.map(|ca| fs::copy(ca.join(file), dir.join(file)).expect("copy the CA"));
    }
    issue_for(name, dir, OffsetDateTime::now_utc());
    fs::remove_file(dir.join(RECORD)).expect("remove the record");
}

/// The others' word on a pod whose certificate does not name it.
fn not_heard(set: &TestBox, says: u32, of: u32) {
    poll(&format!("pod {says} says what is wrong with pod {of}"), CHANGE, || {
        let said = |line: &str| {
            line.contains("its etcd/peer.crt is not for the name by which other pods call it")
                && line.contains(&format!("\"ordinal\":\"{of}\""))
                && line.contains(&format!("vc-{of}.vc-headless.team-a"))
        };
        set.log(&format!("vc-{says}")).lines().any(said).then_some(())
    });
}

#[test]
fn certificates_without_the_peers_names_are_named_with_the_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let (good, bad) = (folder.path().join("good"), folder.path().join("bad"));
    let mut pki = PathBuf::new();
    let set = TestBox::syncer_with(3, Policy::Parallel, |config| {
        pki = config.dir.join("pki");
        mounted("vc", &good, None);
        mounted("another", &bad, Some(&good));
        mounted("vc", &pki, Some(&good));
        copy_peer(&bad, &pki);
    });
    let file = pki.join("etcd/peer.crt");
    for ordinal in 0..3 {
        let pod = format!("vc-{ordinal}");
        let says = format!("{} does not hold vc-0.vc-headless.team-a, vc-1.", file.display());
        poll(&says, CHANGE, || set.log(&pod).contains(&says).then_some(()));
        not_heard(&set, ordinal, (ordinal == 0).into());
        assert!(!set.volume(&pod).join("etcd").exists(), "{pod} has formed or joined something: {}", set.log(&pod));
    }
    // Nobody needs a restart for the remedy.
    copy_peer(&good, &pki);
    let mut scene = Scene::of(3, set);
    let status = scene.set.wait("three pods", CHANGE, |s| s.settled).unwrap_or_else(|e| panic!("{e:#}"));
    assert!(status.pods.values().all(|pod| pod.restarts == 0), "{status:?}");

    // Of a cluster that runs, the pod that comes back with such a one is not heard, and the others go on.
    copy_peer(&bad, &pki);
    scene.set.kill9(1).expect("kill");
    not_heard(&scene.set, 0, 1);
    let written = scene.writer.acknowledged().len();
    poll("the others go on", CHANGE, || (scene.writer.acknowledged().len() > written + 20).then_some(()));
    copy_peer(&good, &pki);
    scene.set.wait("pod 1 is back", CHANGE, |s| s.settled).unwrap_or_else(|e| panic!("{e:#}"));
    scene.rests("the certificates have the names again", 3);
    assert!(!scene.writer.finish().is_empty());
}
