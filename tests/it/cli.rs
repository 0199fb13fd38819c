//! The real binary on bad input: every refusal ends with exit code 2 and one line that names the place and the remedy.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::syncer;

fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(syncer()).args(args).env_clear().envs(env.iter().copied()).output().unwrap()
}

type Words<'a> = &'a [&'a str];
type Vars<'a> = &'a [(&'a str, &'a str)];

/// Checks the form of a refusal and returns its line.
#[track_caller]
fn refused(name: &str, out: &Output) -> String {
    let err = String::from_utf8(out.stderr.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(out.status.code(), Some(2), "{name}: {err}");
    assert!(err.starts_with("syncer: error: ") && err.ends_with('\n') && err.lines().count() == 1, "{name}: {err:?}");
    assert!(!err.contains("panicked"), "{name}: {err}");
    assert!(err.contains("; "), "{name} gives no remedy: {err}");
    assert!(out.stdout.is_empty(), "{name} prints on standard output");
    err
}

#[test]
fn bad_values_files_are_refused() {
    let bomb = (1..40).fold("a0: &a0 [x, x, x, x, x, x]\n".to_owned(), |text, i| {
        text + &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 9].join(", "))
    });
    let deep = format!("a: {}\n", "[".repeat(100_000));
    let long = format!("{}: 1\n", "k".repeat(100_000));
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("unknown key", b"embeddedEtcd:\n  enabled: true\n  extraArg: []\n", &[":3: ", "\"extraArg\"", "\"extraArgs\""]),
        ("unknown key, 0.20", b"controlPlane:\n  backingStore:\n    etcd:\n      embedded:\n        enable: true\n", &[":5: ", "\"enabled\""]),
        ("wrong type", b"embeddedEtcd:\n  enabled: \"yes\"\n", &[":2: ", "true or false", "without quotes"]),
        ("text for a mapping", b"embeddedEtcd: on\n", &[":1: ", "must be a mapping"]),
        ("negative replicas", b"embeddedEtcd: {enabled: true}\nsyncer:\n  replicas: -3\n", &[":3: ", "is -3", "1, 3 or 5"]),
        ("absurd replicas", b"controlPlane:\n  statefulSet:\n    highAvailability:\n      replicas: 1000000\n", &[":4: ", "1000000"]),
        ("replicas in words", b"embeddedEtcd: {enabled: true}\nsyncer: {replicas: three}\n", &[":2: ", "three"]),
        ("both eras", b"controlPlane: {}\nembeddedEtcd: {enabled: true}\n", &[":2: ", "controlPlane", "embeddedEtcd", "keep one"]),
        ("two stores", b"controlPlane:\n  backingStore:\n    etcd:\n      embedded: {enabled: true}\n      deploy: {enabled: true}\n", &[":5: ", "two backing stores", "line 4"]),
        ("sqlite with replicas", b"controlPlane:\n  statefulSet:\n    highAvailability: {replicas: 3}\n", &[":3: ", "SQLite", "embedded.enabled"]),
        ("another database", b"controlPlane:\n  backingStore:\n    database:\n      external: {enabled: true}\n", &[":4: ", "database"]),
        ("the deployed etcd", b"controlPlane:\n  backingStore:\n    etcd:\n      deploy: {enabled: true}\n", &[":4: ", "migrateFromDeployedEtcd"]),
        ("k0s has no deployed etcd", b"embeddedEtcd:\n  enabled: true\n  migrateFromEtcd: true\nvcluster: {image: k0sproject/k0s}\n", &[":3: ", "k0s"]),
        ("both ways", b"embeddedEtcd:\n  enabled: true\n  migrateBack: true\n", &[":3: ", "migrateBack"]),
        ("move without etcd", b"embeddedEtcd:\n  migrateFromEtcd: true\napi: {image: x}\n", &[":2", "off"]),
        ("dangerous flag", b"embeddedEtcd:\n  enabled: true\n  extraArgs:\n    - --unsafe-no-fsync\n", &[":4: ", "--unsafe-no-fsync", "loses"]),
        ("flag of ours", b"embeddedEtcd:\n  extraArgs: [--data-dir=/x]\n", &[":2: ", "--data-dir"]),
        ("not a flag", b"embeddedEtcd:\n  extraArgs: [auto-compaction-mode=periodic]\n", &[":2: ", "--flag=value"]),
        ("odd timing", b"embeddedEtcd:\n  enabled: true\n  heartbeatInterval: 500\n  electionTimeout: 600\n", &[":4: ", "five times"]),
        ("too small a quota", b"embeddedEtcd:\n  quotaBackendBytes: 8\n", &[":2: ", "64Mi"]),
        ("not UTF-8", b"embeddedEtcd:\n  enabled: tru\xe9\n", &[":2: ", "UTF-8"]),
        ("UTF-16", b"\xff\xfee\x00m\x00", &[":1: ", "UTF-8"]),
        ("empty", b"", &["is empty", "{}"]),
        ("a comment", b"# to be done\n", &["is empty"]),
        ("a list", b"- embeddedEtcd\n", &[":1: ", "a list", "--example"]),
        ("not YAML", b"embeddedEtcd:\n\tenabled: true\n", &[":2: ", "not valid YAML"]),
        ("a key twice", b"embeddedEtcd:\n  enabled: true\n  enabled: false\n", &[":3: ", "twice"]),
        ("two documents", b"embeddedEtcd: {enabled: true}\n---\na: 1\n", &["more than one YAML document"]),
        ("alias bomb", bomb.as_bytes(), &["aliases expand"]),
        ("too deep", deep.as_bytes(), &[":1: "]),
        ("a long key", long.as_bytes(), &["values.yaml"]),
        ("control characters", b"embeddedEtcd:\n  \"ena\\e[31m\\nbled\": true\n", &[":2: ", "unknown key"]),
        ("two distros", b"controlPlane:\n  distro:\n    k3s: {enabled: true}\n    k0s: {enabled: true}\n", &[":4: ", "line 3"]),
        ("bad range", b"serviceCIDR: 10.0.0.0/99\ncontrolPlane: {}\n", &[":1", "10.96.0.0/12"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("values.yaml");
    let data = dir.path().join("data");
    for (name, content, parts) in cases {
        fs::write(&file, content).unwrap();
        let path = file.to_str().unwrap();
        // A long key of somebody else's is no fault.
        if *name == "a long key" {
            let out = run(&["config", "--values", path], &[]);
            assert!(matches!(out.status.code(), Some(0 | 2)), "{name}: {out:?}");
            continue;
        }
        // `start` refuses before it touches anything.
        for args in
            [&["config", "--values", path][..], &["start", "--values", path, "--data-dir", data.to_str().unwrap()]]
        {
            let err = refused(name, &run(args, &[]));
            assert!(err.contains(path), "{name} does not name the file: {err}");
            for part in *parts {
                assert!(err.contains(part), "{name}: {err:?} does not say {part:?}");
            }
            assert!(err.len() < 1000 && !err.trim_end().contains(char::is_control), "{name}: {err:?}");
        }
        assert!(!data.exists(), "{name}: start has made the data dir");
    }
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::File::create(path("huge.yaml")).unwrap().set_len(5 << 20).unwrap();
    std::os::unix::fs::symlink("nowhere", path("dangling.yaml")).unwrap();
    fs::write(path("locked.yaml"), "{}").unwrap();
    fs::set_permissions(path("locked.yaml"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::write(path("file"), "").unwrap();
    let mut cases = vec![
        ("missing.yaml", "cannot be read"),
        (".", "is a directory"),
        ("huge.yaml", "larger than 4 MiB"),
        ("dangling.yaml", "cannot be read"),
        ("file/below.yaml", "cannot be read"),
    ];
    if !nix::unistd::geteuid().is_root() {
        cases.push(("locked.yaml", "make it readable"));
    }
    for (name, want) in cases {
        let err = refused(name, &run(&["config", "--values", path(name).to_str().unwrap()], &[]));
        assert!(err.contains(want) && err.contains(name), "{name}: {err}");
    }
}

#[test]
fn bad_flags_and_variables_are_refused() {
    let cases: &[(Words<'_>, Vars<'_>, Words<'_>)] = &[
        (&[], &[], &["no command", "--help"]),
        (&["strat"], &[], &["strat", "'start'"]),
        (&["start", "--etcd-replcas=3"], &[], &["--etcd-replcas", "'--etcd-replicas'", "syncer start --help"]),
        (&["start", "--etcd-replicas=-3"], &[], &["--etcd-replicas is -3"]),
        (&["start", "--etcd-replicas", "99"], &[], &["--etcd-replicas is 99"]),
        (&["start", "--migrate-from=vc-etcd"], &[], &["--migrate-from", "https://"]),
        (&["start", "--listen-address=all"], &[], &["--listen-address"]),
        (&["start", "--shutdown-grace=soon"], &[], &["--shutdown-grace", "8s"]),
        (
            &["start", "--peer-port=2379"],
            &[],
            &["--client-port (default) and --peer-port (flag --peer-port) are both 2379"],
        ),
        (&["config", "-o", "xml"], &[], &["xml", "json"]),
        (&["config"], &[("SYNCER_SHUTDOWN_GRACE", "1 day")], &["SYNCER_SHUTDOWN_GRACE"]),
        (&["config"], &[("VCLUSTER_DISTRO", "rke2")], &["VCLUSTER_DISTRO", "k3s, k8s, eks, k0s"]),
        (&["config"], &[("APISERVER_COMMAND", "command: [a\n")], &["APISERVER_COMMAND", "YAML"]),
        (&["config"], &[("POD_NAME", "vc-0"), ("VCLUSTER_NAME", "other")], &["vc-0", "--name=vc"]),
        (&["config"], &[("POD_NAME", "vc-abc"), ("SYNCER_ETCD_EMBEDDED", "true")], &["vc-abc", "StatefulSet"]),
        (&["config"], &[("VCLUSTER_COMMAND", "{command: k3s --token=s3cret}")], &["must be a list, not a text"]),
        (&["start", "--data-dir=/etc/passwd"], &[], &["/etc/passwd is not a directory", "--data-dir"]),
        (&["cp", "/nonexistent/file", "/tmp"], &[], &["/nonexistent/file", "does not exist"]),
    ];
    for (args, env, parts) in cases {
        let err = refused(&format!("{args:?} {env:?}"), &run(args, env));
        assert!(!err.contains("s3cret"), "{err}");
        for part in *parts {
            assert!(err.contains(part), "{args:?} {env:?}: {err:?} does not say {part:?}");
        }
    }
    let out = Command::new(syncer())
        .arg("config")
        .env_clear()
        .env("VCLUSTER_NAME", std::ffi::OsStr::from_bytes(b"\xff"))
        .output()
        .unwrap();
    assert!(refused("not UTF-8", &out).contains("VCLUSTER_NAME"));
}

#[test]
fn output_that_cannot_be_written_is_a_fault() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = Command::new(syncer()).args(["config", "-o", "json"]).env_clear().stdout(full).output().unwrap();
    let err = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(1) && err.contains("standard output"), "{:?} {err}", out.status);
}

#[test]
fn help_and_version_go_to_standard_output() {
    for args in
        [&["--help"][..], &["start", "--help"], &["config", "-h"], &["cp", "--help"], &["--version"], &["version"]]
    {
        let out = run(args, &[]);
        assert_eq!((out.status.code(), out.stderr.len()), (Some(0), 0), "{args:?}");
        assert!(String::from_utf8(out.stdout).unwrap().contains("syncer"), "{args:?}");
    }
}

/// The init containers of the 0.19 k8s chart: `cp /vcluster /binaries/vcluster`, then `/binaries/vcluster cp SRC DST`.
#[test]
fn it_copies_itself_and_works_under_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |by: &Path, from: &Path, to: &Path| {
        let out = Command::new(by).arg("cp").arg(from).arg(to).env_clear().output().unwrap();
        assert!(out.status.success(), "{out:?}");
    };
    let vcluster = dir.path().join("vcluster");
    copy(&syncer(), &syncer(), &vcluster);
    let program = dir.path().join("kube-apiserver");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let binaries = dir.path().join("binaries");
    fs::create_dir(&binaries).unwrap();
    copy(&vcluster, &program, &binaries);
    assert_eq!(fs::metadata(binaries.join("kube-apiserver")).unwrap().permissions().mode() & 0o777, 0o755);
    let out =
        Command::new(&vcluster).args(["config", "--name", "vc", "--leader-elect=true"]).env_clear().output().unwrap();
    assert!(out.status.success() && String::from_utf8(out.stdout).unwrap().starts_with("name: vc"));
    // Onto a program that runs: the name gets the new file, the running one keeps the old.
    copy(&vcluster, &syncer(), &vcluster);
}
