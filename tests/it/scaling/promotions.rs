//! Data dirs of an etcd 3.5 that has not stored promotions in its backend (3.5.1 to 3.5.19, etcd#19557), and etcd 3.6, which goes by
//! that.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use syncer::datadir::members::stored_members;

use super::upgrade::install;
use super::{CHANGE, Scene};
use crate::statefulset_box::protocol::{Policy, Program};
use crate::support::statefulset::TestBox;
use crate::support::{poll, syncer};

/// The members that the backend of a pod's data dir calls learners, by their names.
fn learners(set: &TestBox, ordinal: u32) -> Vec<String> {
    let stored = stored_members(&backend(set, ordinal)).expect("read the members of a backend");
    stored.members.into_iter().filter(|member| member.learner).map(|member| member.name).collect()
}

fn backend(set: &TestBox, ordinal: u32) -> std::path::PathBuf {
    set.volume(&format!("vc-{ordinal}")).join("etcd/member/snap/db")
}

/// What etcd before 3.5.20 left: to the backends of all pods this one is a learner still. Its client URLs make room for that in the
/// file; it publishes them anew when it starts.
fn forget_promotion(set: &TestBox, of: u32) {
    for ordinal in 0..3 {
        let file = backend(set, ordinal);
        let mut bytes = fs::read(&file).expect("read the backend");
        let (before, urls) = (format!(r#""name":"vc-{of}","#), br#""clientURLs":["#);
        let found = |bytes: &[u8], from: usize| {
            let published = [before.as_bytes(), urls.as_slice()].concat();
            bytes[from..].windows(published.len()).position(|here| here == published).map(|at| from + at + before.len())
        };
        let mut from = 0;
        while let Some(begin) = found(&bytes, from) {
            let length = bytes[begin..].iter().position(|byte| *byte == b']').expect("the list ends") + 1;
            let learner = format!("{:length$}", r#""isLearner":true"#);
            bytes[begin..begin + length].copy_from_slice(learner.as_bytes());
            from = begin + length;
        }
        fs::write(&file, bytes).expect("write the backend");
        assert!(
            learners(set, ordinal).contains(&format!("vc-{of}")),
            "the backend of pod {ordinal} still has pod {of} a voter"
        );
    }
}

/// etcd 3.6 does not start where that makes more than one learner, and its word for it is no help; the remedy is what it says. One
/// alone it finds promoted by its log.
#[test]
fn promotions_that_3_5_has_not_stored_keep_nobody_from_3_6() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("open the folder");
    let etcd = |line: &str| install(folder.path(), line);
    etcd("3.5");
    let set = TestBox::syncer_with(3, Policy::Parallel, |config| {
        let (file, binaries, args) = (syncer(), Path::to_owned(folder.path()), vec!["--distro=none".to_owned()]);
        config.program = Program::Syncer { file, binaries, args };
    });
    let mut scene = Scene::of(3, set);
    scene.scale(0);
    assert!((0..3).all(|ordinal| learners(&scene.set, ordinal).is_empty()), "etcd 3.5 of today stores promotions");
    [1, 2].into_iter().for_each(|of| forget_promotion(&scene.set, of));

    etcd("3.6");
    scene.set.scale(3).expect("scale");
    let refuses = |pod: &str| {
        let log = scene.set.log(pod);
        log.contains("calls 2 members learners") && log.contains("3.5.26 or newer) on every member")
    };
    // Who joined last did so by a raft snapshot that has the other a voter, which etcd 3.6 takes over before it counts.
    poll("the seed and who joined first refuse and say what to do (see their logs)", CHANGE, || {
        (refuses("vc-0") && (refuses("vc-1") || refuses("vc-2"))).then_some(())
    });
    scene.scale(0);
    etcd("3.5");
    scene.scale(3);
    scene.scale(0);
    for ordinal in 0..3 {
        assert_eq!(learners(&scene.set, ordinal), [""; 0], "the remedy has not helped pod {ordinal}");
    }

    forget_promotion(&scene.set, 1);
    etcd("3.6");
    scene.scale(3);
    assert!(!scene.writer.finish().is_empty());
}
