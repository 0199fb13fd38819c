//! Whole values files of both chart generations, through the real binary: `syncer config` says what they mean.

use std::process::Command;
use std::time::Duration;

use crate::support::pod::{TestPod, child_running};
use crate::support::{golden, poll, repository, syncer};

/// `syncer config` in an environment of its own.
fn config(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let out = Command::new(syncer()).arg("config").args(args).env_clear().envs(env.iter().copied()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

#[test]
fn whole_values_files_mean_what_they_say() {
    let pod =
        |distro| [("POD_NAME", "vc-0"), ("POD_IP", "10.1.2.3"), ("NAMESPACE", "team-a"), ("VCLUSTER_DISTRO", distro)];
    let new_pod = [("POD_NAME", "vc-0"), ("POD_IP", "10.1.2.3"), ("NAMESPACE", "team-a"), ("VCLUSTER_NAME", "vc")];
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("k3s-0.19", &pod("k3s")),
        ("k8s-0.19", &pod("k8s")),
        ("eks-0.19", &pod("eks")),
        ("k0s-0.19", &pod("k0s")),
        ("k8s-0.20", &new_pod),
        ("k3s-0.20", &new_pod),
        ("k0s-0.20", &new_pod),
        ("sidecar-0.25", &new_pod),
    ];
    for (name, env) in cases {
        let file = repository(&format!("tests/fixtures/values/{name}.yaml"));
        let mut args = vec!["--values", file.to_str().unwrap(), "--binaries", "/binaries"];
        if name.starts_with("sidecar") {
            args.extend(["--distro", "none"]);
        }
        let (code, out, err) = config(&args, env);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{name}");
        assert!(!out.contains("never-show"), "{name} shows a token: {out}");
        // The paths of this checkout and of the binary's folder are not part of it.
        let out = out.replace(file.to_str().unwrap(), "VALUES");
        let out = out.replace(syncer().parent().unwrap().to_str().unwrap(), "HERE");
        let out: String = out.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect();
        golden(&format!("config/{name}.txt"), &out);
    }
}

#[test]
fn the_distro_of_a_019_file_is_told_from_its_keys() {
    for (name, want) in [("k3s-0.19", "k3s"), ("k8s-0.19", "k8s"), ("eks-0.19", "eks"), ("k0s-0.19", "k0s")] {
        let file = repository(&format!("tests/fixtures/values/{name}.yaml"));
        let (code, out, err) = config(&["--values", file.to_str().unwrap(), "-o", "json"], &[]);
        assert_eq!(code, Some(0), "{err}");
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        let distro = json["settings"].as_array().unwrap().iter().find(|s| s["setting"] == "distro").unwrap();
        assert_eq!(distro["value"], want, "{name}");
        assert!(distro["source"].as_str().unwrap().contains(".yaml:"), "{name}: {distro}");
    }
}

#[test]
fn the_example_is_a_values_file() {
    let (code, example, _) = config(&["--example"], &[]);
    assert_eq!(code, Some(0));
    assert_eq!(example, std::fs::read_to_string(repository("config/values.yaml")).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("values.yaml");
    std::fs::write(&file, example).unwrap();
    let (code, out, err) = config(&["--values", file.to_str().unwrap()], &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(!out.contains("# warning"), "{out}");
}

#[test]
fn a_laptop_is_told_why_etcd_is_on() {
    let (code, out, err) = config(&["--distro", "k8s"], &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let line = out.lines().find(|l| l.trim_start().starts_with("enabled:")).unwrap();
    assert!(line.contains("true") && line.contains("# default: not in a pod and no values file"), "{line}");
}

#[test]
fn the_output_is_read_as_far_as_the_reader_likes() {
    let mut child = Command::new(syncer())
        .args(["config", "--example"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), String::from_utf8(out.stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn a_running_pod_notices_a_changed_values_file() {
    let mut pod = TestPod::new();
    pod.start("none", &["--log-format=json"]);
    pod.wait_serving();
    pod.etcd(async |mut etcd| etcd.put("/a", "1", None).await.expect("put"));
    let written = pod.dump().keys;
    let logged = |pod: &TestPod, what: &str, deadline: u64| {
        poll(&format!("the log says {what:?}"), Duration::from_secs(deadline), || {
            pod.log().contains(what).then_some(())
        });
    };
    pod.values("embeddedEtcd:\n  enabled: true\nsyncer:\n  replicas: three\n");
    logged(&pod, "values.yaml:4: syncer.replicas must be a number of replicas", 20);
    pod.values("embeddedEtcd:\n  enabled: true\n  snapshotCount: 5000\nsyncer:\n  replicas: 3\n");
    // Each has a line of its own.
    for setting in ["etcd.replicas", "etcd.snapshotCount"] {
        logged(&pod, &format!("\"setting\":\"{setting}\""), 20);
    }
    let log = pod.log();
    let change = |setting: &str| {
        let line =
            log.lines().find(|l| l.contains(&format!("\"setting\":\"{setting}\""))).unwrap_or_else(|| panic!("{log}"));
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["pod"], "syncer-0", "{line}");
        (line["old"].clone(), line["new"].clone(), line["acts"].clone())
    };
    assert_eq!(change("etcd.replicas"), ("1".into(), "3".into(), "now".into()));
    assert_eq!(change("etcd.snapshotCount"), ("10000".into(), "5000".into(), "now, by a restart of etcd".into()));
    poll("etcd runs by the new settings", Duration::from_secs(20), || {
        let (_, arguments) = child_running(pod.pid(), "etcd")?;
        arguments.contains(&"--snapshot-count=5000".to_owned()).then_some(())
    });
    pod.wait_serving();
    assert_eq!(pod.dump().keys, written, "etcd's restart lost what was written");
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}
