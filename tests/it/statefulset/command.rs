//! The command `statefulset`, and the script that builds and runs it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::*;
use crate::support::repository;

/// A box in a folder of its own, of which everything is asked by a command. It goes down with the test.
struct Commanded {
    program: PathBuf,
    env: Vec<(&'static str, OsString)>,
    dir: tempfile::TempDir,
}

impl Drop for Commanded {
    fn drop(&mut self) {
        drop(self.given(&["down"]));
    }
}

impl Commanded {
    fn by(program: PathBuf, env: Vec<(&'static str, OsString)>) -> Commanded {
        Commanded { program, env, dir: tempfile::tempdir().expect("a folder") }
    }

    fn given(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.arg("--dir").arg(self.dir.path()).args(args).envs(self.env.iter().cloned());
        command.output().unwrap_or_else(|e| panic!("run {}: {e}", self.program.display()))
    }

    fn done(&self, args: &[&str]) -> String {
        let out = self.given(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn status(&self) -> Status {
        serde_json::from_str(&self.done(&["status", "--json"])).expect("a status")
    }
}

/// On pods that do nothing else.
#[test]
fn every_command_does_to_the_box_what_it_says() {
    let parts = part("coredns").parent().expect("a program is in a folder").to_owned();
    let set = Commanded::by(statefulset(), vec![("BOX_SYNCER", syncer().into()), ("BOX_PARTS", parts.into())]);
    set.done(&["up", "--replicas", "2", "--policy", "Parallel", "--stand-in", "--grace", "2"]);
    let first = set.status();
    assert_eq!((first.pods.len(), first.ready().len()), (2, 2), "{first:?}");
    assert!(set.done(&["status"]).contains("vc-1"));
    let replaced = |args: &[&str]| {
        let before = set.status().pods[&1].incarnation;
        set.done(args);
        poll(&format!("{args:?}: another pod"), PATIENCE, || {
            set.status().pods.get(&1).is_some_and(|pod| pod.incarnation > before && pod.ready).then_some(())
        });
    };
    replaced(&["kill", "1"]);
    replaced(&["kill", "1", "-9"]);
    std::fs::write(set.dir.path().join("volumes/vc-1/mark"), "x").expect("write to the volume");
    replaced(&["lose-volume", "1"]);
    assert!(!set.dir.path().join("volumes/vc-1/mark").exists());
    replaced(&["roll"]);
    assert_eq!(set.status().revision, first.revision + 1);
    if first.network == NetworkMode::Namespaces {
        set.done(&["partition", "0", "1"]);
        assert_eq!(set.status().partitions.len(), 1);
        set.done(&["heal"]);
    }
    assert!(set.status().partitions.is_empty());
    set.done(&["dns", "serv-fail"]);
    set.done(&["dns", "well"]);
    let address = set.done(&["forward", "0", "8443"]);
    assert!(std::net::TcpStream::connect(address.trim()).is_ok(), "{address}");
    set.done(&["scale", "1", "--keep-values"]);
    assert_eq!(set.status().pods.len(), 1);
    for (bad, why) in [(&["kill", "7"][..], "7"), (&["scale", "x"], "x"), (&["host-api", "gone"], "host")] {
        let out = set.given(bad);
        assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains(why), "{bad:?}: {out:?}");
    }
    set.done(&["down"]);
    assert!(!set.given(&["status"]).status.success(), "it runs on");
}

/// In Cargo's place while the script runs: what it is to build is there, built by Cargo with this test, which runs it.
fn in_place_of_cargo(folder: &Path) -> PathBuf {
    let file = folder.join("cargo");
    crate::support::script(&file, format!("#!/bin/sh\necho \"$@\" >>{}/told\n", folder.display()));
    folder.join("told")
}

#[test]
fn the_script_brings_up_a_host_cluster_and_hands_its_commands_on() {
    if std::env::var_os("SYNCER_QUICK").is_some() || !namespaces(&TestBox::up(|config| config.replicas = 0)) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let told = in_place_of_cargo(folder.path());
    let built = statefulset().parent().expect("a program is in a folder").to_owned();
    std::os::unix::fs::symlink(built, folder.path().join("debug")).expect("link what Cargo has built");
    let mut path = folder.path().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").expect("PATH"));
    let env = vec![("PATH", path), ("CARGO_TARGET_DIR", folder.path().into())];
    let set = Commanded::by(repository("scripts/statefulset"), env);

    let up = set.done(&["up", "--host", "--stand-in", "--policy", "Parallel"]);
    let built = std::fs::read_to_string(told).expect("what Cargo was told");
    assert!(built.starts_with("build ") && built.contains("--bin syncer --bin statefulset"), "{built}");
    let command = up.lines().find(|line| line.contains("/kubectl --kubeconfig ")).expect("how to ask the host cluster");
    let (kubectl, args) = command.split_once(' ').expect("its arguments");
    let pods = Command::new(kubectl).args(args.split(' ')).output().expect("run kubectl");
    let pods = String::from_utf8_lossy(&pods.stdout).into_owned();
    assert!(pods.lines().any(|line| line.starts_with("vc-0 ") && line.contains("1/1")), "{pods}");
    set.done(&["scale", "2", "--keep-values"]);
    let two = set.status();
    assert!(two.settled && two.ready() == [0, 1], "{two:?}");
    set.done(&["host-api", "gone"]);
    set.done(&["kill", "1", "-9"]);
    set.done(&["host-api", "well"]);
    poll("its controllers replace a pod", PATIENCE, || {
        let now = set.status();
        (now.settled && now.pods[&1].incarnation > two.pods[&1].incarnation).then_some(())
    });
    set.done(&["down"]);
}
