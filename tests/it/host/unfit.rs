//! A pod whose data dir its etcd does not fit, and nobody who could take its place.

use super::*;
use crate::scaling::install;

/// In order a pod may be ready for the sake of those above it. One that can never serve by itself is not: a rollout would be done,
/// and nothing serve.
#[test]
fn who_is_alone_with_a_data_dir_that_its_etcd_does_not_fit_is_refused_and_never_ready() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("open the folder");
    install(folder.path(), "3.5");
    let set = hosted(1, Policy::OrderedReady, |config| {
        if let Program::Syncer { binaries, .. } = &mut config.program {
            *binaries = folder.path().to_owned();
        }
    });
    let settled = |pods: usize| {
        let settled = set.wait("all are settled", CHANGE, |s| s.settled && s.pods.len() == pods);
        settled.unwrap_or_else(|error| panic!("{error:#}{}", set.log("vc-0")));
    };
    let upgraded = |says: &str| {
        let before = set.log("vc-0").len();
        install(folder.path(), "3.7");
        set.kill9(0).expect("kill");
        let said = || set.log("vc-0").split_off(before);
        poll(says, CHANGE, || (said().contains("is too old for this etcd") && said().contains(says)).then_some(()));
        let began = Instant::now();
        while began.elapsed() < NOTHING {
            assert!(set.status().expect("a status").ready().is_empty(), "{says}: it is ready: {}", said());
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    settled(1);
    upgraded("has ended: exit status: 3");
    install(folder.path(), "3.5");
    settled(1);
    // A volume of another pod is there, which may have what this one waits for.
    for replicas in [2, 1] {
        set.kubectl(&["scale", "statefulset", "vc", &format!("--replicas={replicas}")]);
        settled(replicas);
    }
    upgraded("waiting: the etcd data dir");
    install(folder.path(), "3.5");
    set.kill9(0).expect("kill");
    settled(1);
}
