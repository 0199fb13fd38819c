//! Pods that run a command of the user's own over etcd (`start -- COMMAND`).

use std::fs;

use super::{Access, CHANGE, Said, ask};
use crate::statefulset_box::protocol::{Policy, Program};
use crate::support::poll;
use crate::support::statefulset::{TestBox, wrapped};

/// The command has port 8443 for itself, and runs only once etcd serves: until then the pod itself must say there that it stands
/// by, or in order nobody else would ever be created.
#[test]
fn they_come_back_in_order_after_a_pause_with_a_command_of_their_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let set = TestBox::syncer_with(1, Policy::OrderedReady, |config| {
        if let Program::Syncer { args, .. } = &mut config.program {
            args.extend(wrapped(folder.path()));
        }
    });
    if !set.has_namespaces() {
        return;
    }
    let voters = |wanted: usize| {
        let access = Access::of(&set, 0);
        poll("all of them vote", CHANGE, || ask(&access).filter(|said: &Said| said.voters.len() == wanted))
    };
    set.settled();
    set.scale(3).expect("scale up");
    set.settled();
    let cluster = voters(3).cluster;
    set.scale(0).expect("pause");
    set.wait("a pause", CHANGE, |status| status.pods.is_empty()).expect("all pods are gone");
    set.scale(3).expect("resume");
    set.settled();
    assert_eq!(voters(3).cluster, cluster);
    for pod in ["vc-0", "vc-1", "vc-2"] {
        let starts = || fs::read_to_string(folder.path().join(pod).join("starts")).unwrap_or_default().lines().count();
        poll(&format!("{pod}: its command is started again"), CHANGE, || (starts() >= 2).then_some(()));
    }
}
