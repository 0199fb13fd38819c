//! A pod whose clock disagrees with the others': certificates that it has issued or renewed by it are out of date for
//! them. The machine has one clock, so the certificates are of another time instead.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use syncer::disk::RealDisk;
use syncer::pki::plan::Input;
use syncer::pki::{Mode, ensure_input};
use syncer::settings::Distro;
use time::{Duration, OffsetDateTime};

use super::{CHANGE, Scene};
use crate::statefulset_box::protocol::{Policy, Program};
use crate::support::statefulset::TestBox;
use crate::support::{part, poll, syncer};

/// Pod 1 has a PKI directory of its own once there is one.
const WITH_OWN_PKI: &str = r#"#!/bin/sh
if [ "$POD_NAME" = vc-1 ] && [ -e FOLDER/pki ]; then
  for argument in "$@"; do
    shift
    case $argument in --pki-dir=*) argument=--pki-dir=FOLDER/pki ;; esac
    set -- "$@" "$argument"
  done
fi
exec SYNCER "$@"
"#;

const PEER: [&str; 2] = ["etcd/peer.crt", "etcd/peer.key"];

/// Issues what is missing in a PKI directory of the box, at this time.
fn issue(dir: &Path, now: OffsetDateTime) {
    issue_for("vc", dir, now);
}

/// The same for a StatefulSet of this name.
pub fn issue_for(name: &str, dir: &Path, now: OffsetDateTime) {
    let input = Input {
        pki_dir: dir.to_owned(),
        lasting_dir: None,
        distro: Distro::None,
        etcd: true,
        name: name.to_owned(),
        namespace: "team-a".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        pod: format!("{name}-0"),
        pod_ip: None,
        in_pod: true,
        desired: 3,
        tls_sans: Vec::new(),
        service_cidr: "10.96.0.0/12".to_owned(),
        apiserver_port: 6443,
    };
    let (_, refusals) = ensure_input(&input, &RealDisk, now, Mode::Ensure).expect("issue certificates");
    assert_eq!(refusals, []);
}

pub fn copy_peer(from: &Path, to: &Path) {
    for file in PEER {
        fs::create_dir_all(to.join("etcd")).expect("a folder");
        fs::copy(from.join(file), to.join(file)).expect("copy a file");
    }
}

/// What can be mounted into a pod: nothing can be issued anew with it, nor renewed.
fn copy_mounted(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("etcd")).expect("a folder");
    for file in ["etcd/ca.crt", "etcd/server.crt", "etcd/server.key"] {
        fs::copy(from.join(file), to.join(file)).expect("copy a file");
    }
    for file in ["etcd/healthcheck-client.crt", "etcd/healthcheck-client.key"] {
        fs::copy(from.join(file), to.join(file)).expect("copy a file");
    }
    copy_peer(from, to);
}

#[test]
fn a_pod_whose_clock_disagrees_is_told_apart_and_comes_back_when_that_is_mended() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("open the folder");
    let program = folder.path().join("syncer");
    let script = WITH_OWN_PKI.replace("FOLDER", &folder.path().display().to_string());
    crate::support::script(&program, script.replace("SYNCER", &syncer().display().to_string()));
    let (own, ended, future) = (folder.path().join("pki"), folder.path().join("ended"), folder.path().join("future"));
    let now = OffsetDateTime::now_utc();

    let set = TestBox::syncer_with(3, Policy::Parallel, |config| {
        let binaries = part("etcd").parent().expect("a folder").to_owned();
        config.program = Program::Syncer { file: program, binaries, args: vec!["--distro=none".to_owned()] };
        // The box goes on with this CA, and renews what has ended.
        let pki = config.dir.join("pki");
        issue(&pki, now - Duration::days(400));
        copy_peer(&pki, &ended);
    });
    let pki = set.dir().join("pki");
    copy_mounted(&pki, &future);
    fs::copy(pki.join("etcd/ca.key"), future.join("etcd/ca.key")).expect("copy the CA's key");
    fs::remove_file(future.join(PEER[0])).expect("remove it");
    issue(&future, now + Duration::days(2));
    copy_mounted(&pki, &own);

    let mut scene = Scene::of(3, set);
    scene.replaced(1, "pod 1 has a PKI directory of its own", |set| set.kill9(1).expect("kill"));
    for (skewed, others_say, it_says) in [
        (&future, "its etcd/peer.crt begins in the future by this clock", "etcd/peer.crt is not valid before"),
        (&ended, "its etcd/peer.crt has ended by this clock", "etcd/peer.crt expired at"),
    ] {
        copy_peer(skewed, &own);
        // While it runs on with it: the leader's pod says what is wrong.
        poll(others_say, CHANGE, || {
            let log = scene.set.log("vc-0");
            let said = |line: &str| line.contains(others_say) && line.contains("\"ordinal\":\"1\"");
            log.lines().any(said).then_some(())
        });
        // Started with it, it refuses, and the others go on.
        scene.set.kill9(1).expect("kill");
        poll(it_says, CHANGE, || {
            let log = scene.set.log("vc-1");
            let said = |line: &str| line.contains(it_says) && line.contains("check this machine's clock");
            (log.lines().any(said) && log.contains("exit status: 6")).then_some(())
        });
        let before = scene.writer.acknowledged().len();
        poll("the others go on", CHANGE, || (scene.writer.acknowledged().len() > before + 20).then_some(()));
        scene.set.until("the others are ready", |s| s.ready() == [0, 2]);
        copy_peer(&pki, &own);
        scene.set.wait("it is back", CHANGE, |s| s.settled).unwrap_or_else(|e| panic!("{e:#}"));
        scene.rests("the certificates fit again", 3);
    }
    assert!(!scene.writer.finish().is_empty());
}
