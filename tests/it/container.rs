//! The container image: from scratch, non-root, read-only root; syncer as PID 1 migrates, serves, and stops cleanly.
//!
//! Runs where podman works (root, or a user who may run containers); otherwise it says that it was skipped.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::{part, poll};

/// podman with a configuration of the test's own, so that it works without CAP_SYS_RESOURCE and with runc.
struct Podman {
    conf: PathBuf,
}

impl Podman {
    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", &self.conf);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().expect("podman runs")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "podman {}: {}\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// Removes its container when the test ends, however it ends.
struct Container<'a> {
    podman: &'a Podman,
    name: String,
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.podman.run(&["rm", "--force", "--time", "0", &self.name]);
    }
}

#[test]
fn as_pid_1_in_an_empty_read_only_root_it_migrates_serves_and_stops() {
    let Some(release) = std::env::var_os("SYNCER_RELEASE") else {
        eprintln!("skipped: SYNCER_RELEASE is not set; scripts/test builds the release binary and sets it");
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let conf = dir.path().join("containers.conf");
    std::fs::write(
        &conf,
        "[containers]\ndefault_ulimits=[\"nofile=20000:20000\",\"nproc=1000:1000\"]\n[engine]\nruntime=\"runc\"\n",
    )
    .expect("write containers.conf");
    let podman = Podman { conf };
    match Command::new("podman").arg("--version").output() {
        Ok(output) if output.status.success() => {}
        _ => {
            eprintln!("skipped: podman is not installed");
            return;
        }
    }

    let image = format!("localhost/syncer-test:{}", std::process::id());
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/image"))
        .arg(&image)
        .env("CONTAINERS_CONF", &podman.conf)
        .env("SYNCER_RELEASE", release)
        .output()
        .expect("scripts/image runs");
    assert!(output.status.success(), "scripts/image: {}", String::from_utf8_lossy(&output.stderr));

    let data = dir.path().join("data");
    std::fs::create_dir(&data).expect("make the volume");
    let empty = dir.path().join("binaries");
    std::fs::create_dir(&empty).expect("make a folder");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/run/state.db");
    std::fs::copy(fixture, data.join("state.db")).expect("copy the store");
    std::fs::write(dir.path().join("values.yaml"), "embeddedEtcd:\n  enabled: true\n").expect("write the values");
    // The volume belongs to the image's user, as fsGroup makes it in a pod.
    for path in [data.clone(), data.join("state.db")] {
        std::os::unix::fs::chown(&path, Some(12345), Some(12345)).expect("chown needs root");
    }

    let name = format!("syncer-test-{}", std::process::id());
    let container = Container { podman: &podman, name: name.clone() };
    podman.ok(&[
        "run",
        "--detach",
        "--name",
        &name,
        "--read-only",
        "--read-only-tmpfs=false",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--network=none",
        &format!("--volume={}:/data", data.display()),
        // As the charts have it: nothing of the image's is to be seen there.
        &format!("--volume={}:/binaries", empty.display()),
        &format!("--volume={}:/values.yaml:ro", dir.path().join("values.yaml").display()),
        &image,
        "start",
        "--values=/values.yaml",
        "--distro=none",
        "--data-dir=/data",
    ]);
    let etcdctl = |args: &[&str]| {
        let mut all = vec![
            "exec",
            &name,
            "/usr/local/bin/etcdctl",
            "--endpoints=https://127.0.0.1:2379",
            "--cacert=/data/pki/etcd/ca.crt",
            "--cert=/data/pki/etcd/healthcheck-client.crt",
            "--key=/data/pki/etcd/healthcheck-client.key",
        ];
        all.extend_from_slice(args);
        podman.run(&all)
    };
    poll("the container serves", Duration::from_secs(60), || {
        let state = podman.ok(&["inspect", "--format", "{{.State.Running}}", &name]);
        assert_eq!(state, "true", "the container ended: {}", logs(&podman, &name));
        etcdctl(&["endpoint", "health"]).status.success().then_some(())
    });
    assert!(data.join("state.db.migrated").exists() && !data.join("state.db").exists(), "the store was not committed");
    let got = etcdctl(&["get", "/registry/configmaps/before/greeting", "--write-out=json"]);
    let got = String::from_utf8_lossy(&got.stdout).into_owned();
    assert!(got.contains("\"mod_revision\":"), "the ConfigMap is not served: {got}");
    let user = podman.ok(&["top", &name, "user,pid,comm"]);
    assert!(!user.contains("root"), "something runs as root: {user}");

    podman.ok(&["stop", "--time", "60", &name]);
    let code = podman.ok(&["inspect", "--format", "{{.State.ExitCode}}", &name]);
    assert_eq!(code, "0", "not a clean stop: {}", logs(&podman, &name));
    drop(container);
    let _ = podman.run(&["rmi", "--force", &image]);
}

fn logs(podman: &Podman, name: &str) -> String {
    let output = podman.run(&["logs", "--tail", "30", name]);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Ends it with the test, however that ends.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// No /etc, no name service, no shell: nothing but the two programs and /dev/null.
#[test]
fn in_an_empty_root_filesystem_it_serves_and_stops() {
    let Some(release) = std::env::var_os("SYNCER_RELEASE") else {
        eprintln!("skipped: SYNCER_RELEASE is not set; scripts/test builds the release binary and sets it");
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: a root filesystem of its own needs root");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = dir.path();
    for folder in ["dev", "data"] {
        std::fs::create_dir(root.join(folder)).expect("make a folder");
    }
    std::fs::copy(release, root.join("syncer")).expect("copy syncer");
    std::fs::copy(part("etcd"), root.join("etcd")).expect("copy etcd");
    let null = root.join("dev/null");
    let made = Command::new("mknod").arg("--mode=666").arg(&null).args(["c", "1", "3"]).status().expect("run mknod");
    assert!(made.success(), "mknod {}: {made}", null.display());
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).expect("a log");
    // A network of its own, so that the default ports are free.
    let script = "ip link set lo up && exec chroot \"$0\" /syncer start --data-dir /data --distro none --binaries /";
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", script]).arg(root).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let child = command.stdout(file.try_clone().expect("a log")).stderr(file).spawn().expect("run unshare");
    let mut running = Running(child);
    let said = || std::fs::read_to_string(&log).expect("the log");
    poll("it serves", Duration::from_secs(60), || {
        let ended = running.0.try_wait().expect("wait");
        assert!(ended.is_none(), "it ended: {ended:?}\n{}", said());
        said().contains("\"message\":\"serves\"").then_some(())
    });
    let pid = nix::unistd::Pid::from_raw(i32::try_from(running.0.id()).expect("a pid fits"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("end it");
    let ended = poll("it stops", Duration::from_secs(30), || running.0.try_wait().expect("wait"));
    assert_eq!(ended.code(), Some(0), "{}", said());
}
