//! An upgrade from a program that knows nothing of other pods, without a host API: whether the seed still runs it shows only in
//! that it is there and says nothing (rule 4.8).

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use super::{Access, CHANGE, ask};
use crate::statefulset_box::protocol::{Config, Policy, Program, Status};
use crate::support::poll;
use crate::support::statefulset::{TestBox, statefulset};

/// Serves on 8443 and has no data dir of etcd's, until there is a file `new` in the folder, for whoever starts then.
const OLDER: &str = r#"#!/bin/sh
if [ "$1" != start ] || [ -e FOLDER/new ]; then exec SYNCER "$@"; fi
mkdir -p FOLDER/$POD_NAME
exec STATEFULSET stand-in --data-dir FOLDER/$POD_NAME --listen $POD_IP:8443
"#;

fn begins_with_another(config: &mut Config, folder: &Path) {
    let Program::Syncer { file, .. } = &mut config.program else { panic!("pods of syncer") };
    fs::set_permissions(folder, PermissionsExt::from_mode(0o777)).expect("open the folder");
    let script = OLDER.replace("FOLDER", &folder.display().to_string());
    let script = script.replace("STATEFULSET", &statefulset().display().to_string());
    let program = folder.join("program");
    crate::support::script(&program, script.replace("SYNCER", &file.display().to_string()));
    *file = program;
}

/// The StatefulSet replaces the highest first and none before it is ready: an empty pod that waited for the seed to speak would
/// keep it from ever being replaced.
#[test]
fn empty_pods_let_a_seed_be_replaced_that_does_not_speak() {
    let folder = tempfile::tempdir().expect("a folder");
    let set = TestBox::syncer_with(3, Policy::OrderedReady, |config| begins_with_another(config, folder.path()));
    let before = set.settled();
    File::create(folder.path().join("new")).expect("the upgrade");
    set.roll().expect("roll");
    let began = Instant::now();
    for ordinal in [2, 1] {
        let stands_by =
            |s: &Status| s.pods.get(&ordinal).is_some_and(|pod| pod.revision > before.revision && pod.ready);
        let what = format!("pod {ordinal} is ready while the seed runs what it ran (see its log)");
        let status = set.wait(&what, CHANGE, stands_by).unwrap_or_else(|e| panic!("{e:#}{}", set.last_logs()));
        println!("rollout: pod {ordinal} is ready after {:?}", began.elapsed());
        let formed = set.volume(&format!("vc-{ordinal}")).join("etcd").exists();
        assert!(!formed, "pod {ordinal} has formed or joined something before the seed: {status:?}{}", set.last_logs());
    }
    let rolled = set.wait("all are rolled", CHANGE, |s| s.settled && s.revision > before.revision);
    rolled.unwrap_or_else(|e| panic!("{e:#}{}", set.last_logs()));
    poll("three voters", CHANGE, || ask(&Access::of(&set, 0)).filter(|said| said.voters.len() == 3));
}
