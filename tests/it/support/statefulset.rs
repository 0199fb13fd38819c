//! A StatefulSet in a box for a test (`tests/box`): ends with the test.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::{part, poll, syncer};
use crate::statefulset_box::client::{self, Client};
use crate::statefulset_box::probe;
use crate::statefulset_box::protocol::{Config, HostPrograms, NetworkMode, Policy, Program, Status};
use crate::statefulset_box::stand_in::{PORT, Peers, State};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The program `statefulset`, built by Cargo with this test binary.
pub fn statefulset() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_statefulset"))
}

/// Whether a process runs; a zombie does not.
pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

/// A pod can be held back before it has looked at anything.
const HELD_BACK: &str = r#"#!/bin/sh
while [ -e FOLDER/hold-$POD_NAME ]; do sleep 0.02; done
exec SYNCER "$@"
"#;

/// Pods of syncer that can be held back, each for as long as there is a file `hold-POD` in the folder.
pub fn can_be_held_back(config: &mut Config, folder: &Path) {
    let Program::Syncer { file, .. } = &mut config.program else { panic!("pods of syncer") };
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).expect("open the folder");
    let program = folder.join("syncer");
    let script = HELD_BACK.replace("FOLDER", &folder.display().to_string());
    crate::support::script(&program, script.replace("SYNCER", &file.display().to_string()));
    *file = program;
}

/// Pods of syncer that have time to leave, however busy the machine is: etcd refuses removals for some seconds after a
/// connection, and who runs out of time leaves the others without a quorum.
pub fn has_time_to_leave(config: &mut Config) {
    config.grace_ms = 30_000;
    let Program::Syncer { args, .. } = &mut config.program else { panic!("pods of syncer") };
    args.push("--shutdown-grace=25s".to_owned());
}

/// Arguments of `syncer start` by which each pod runs a command in the API server's place that says `an API server runs`, and answers
/// probes on 8443. Each notes its starts in the folder.
pub fn wrapped(folder: &Path) -> [String; 4] {
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o777)).expect("open the folder");
    let (folder, program) = (folder.display(), statefulset());
    let command = format!(
        "echo an API server runs; mkdir -p {folder}/$POD_NAME; \
         exec {} stand-in --data-dir {folder}/$POD_NAME --listen 0.0.0.0:8443",
        program.display()
    );
    ["--".to_owned(), "/bin/sh".to_owned(), "-c".to_owned(), command]
}

/// A box in a folder of its own, which ends with the test (with the thread that made it). What can be asked of it: [`Client`].
pub struct TestBox {
    pub client: Client,
    pub daemon: Child,
    _dir: tempfile::TempDir,
}

impl std::ops::Deref for TestBox {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for TestBox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_logs());
        }
        let pids = self.client.status().map(|s| s.pods.values().filter_map(|pod| pod.pid).collect::<Vec<_>>());
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // The pods die with it, and write into the folder until then.
        let began = Instant::now();
        while pids.iter().flatten().any(|pid| alive(*pid)) && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl TestBox {
    /// One with a stand-in in its pods and short waits, changed by `change`. Does not wait for its pods.
    pub fn up(change: impl FnOnce(&mut Config)) -> TestBox {
        let dir = tempfile::tempdir().expect("a folder");
        // Users of a namespace see it too.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("open the folder");
        let mut config = Config::new(dir.path(), Program::StandIn, part("coredns"));
        config.probe_ms = 50;
        config.liveness_ms = 200;
        config.backoff_ms = (50, 400);
        change(&mut config);
        let (client, daemon) = client::up(&statefulset(), &config).expect("a box");
        TestBox { client, daemon, _dir: dir }
    }

    /// One whose pods are all ready.
    pub fn ready(replicas: u32, policy: Policy) -> TestBox {
        let set = TestBox::up(|config| (config.replicas, config.policy) = (replicas, policy));
        set.settled();
        set
    }

    /// One whose pods run the syncer under test with etcd alone. Does not wait for them.
    pub fn syncer(replicas: u32, policy: Policy) -> TestBox {
        TestBox::syncer_with(replicas, policy, |_| ())
    }

    /// The same, changed by `change`.
    pub fn syncer_with(replicas: u32, policy: Policy, change: impl FnOnce(&mut Config)) -> TestBox {
        let binaries = part("etcd").parent().expect("a program is in a folder").to_owned();
        TestBox::up(|config| {
            (config.replicas, config.policy) = (replicas, policy);
            config.program = Program::Syncer { file: syncer(), binaries, args: vec!["--distro=none".to_owned()] };
            change(config);
        })
    }

    /// As [`TestBox::syncer`], each with a real kube-apiserver and kube-controller-manager.
    pub fn kubernetes(replicas: u32, policy: Policy) -> TestBox {
        let binaries = part("kube-apiserver").parent().expect("a program is in a folder").to_owned();
        TestBox::syncer_with(replicas, policy, |config| {
            config.program = Program::Syncer { file: syncer(), binaries, args: vec!["--distro=k8s".to_owned()] };
            // As in the charts: it is seconds before an API server that has lost its etcd is not asked any more.
            config.liveness_ms = 2000;
        })
    }

    /// As [`TestBox::syncer`], in a real host cluster whose controllers decide.
    pub fn hosted(replicas: u32, policy: Policy) -> TestBox {
        TestBox::hosted_with(replicas, policy, |_| ())
    }

    /// The same, changed by `change`.
    pub fn hosted_with(replicas: u32, policy: Policy, change: impl FnOnce(&mut Config)) -> TestBox {
        let binaries = part("etcd").parent().expect("a program is in a folder").to_owned();
        let parts = part("kube-apiserver").parent().expect("a program is in a folder").to_owned();
        TestBox::up(|config| {
            (config.replicas, config.policy) = (replicas, policy);
            config.program = Program::Syncer { file: syncer(), binaries, args: vec!["--distro=none".to_owned()] };
            config.host = Some(HostPrograms { parts, certs: syncer() });
            change(config);
        })
    }

    /// Whether pods have namespaces here: without them some of what is tested does not exist, and is left out. Where
    /// `SYNCER_REQUIRE_NAMESPACES` is set, as in `.ci/run`, nothing is. It stands for mounts too ([`super::SmallVolume`]).
    pub fn has_namespaces(&self) -> bool {
        let namespaces = self.status().expect("a status").network == NetworkMode::Namespaces;
        let required = std::env::var_os("SYNCER_REQUIRE_NAMESPACES").is_some();
        assert!(namespaces || !required, "pods have no namespaces here, and SYNCER_REQUIRE_NAMESPACES is set");
        if !namespaces {
            println!("pods have no namespaces here: this is not tested");
        }
        namespaces
    }

    /// What kubectl prints, asked of the host cluster as its administrator.
    pub fn kubectl(&self, args: &[&str]) -> String {
        let mut command = Command::new(part("kubectl"));
        let output = command.arg("--kubeconfig").arg(self.kubeconfig()).args(args).output().expect("kubectl");
        assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// What etcdctl prints, asked of this pod's etcd from outside of the box.
    pub fn etcdctl(&self, ordinal: u32, args: &[&str]) -> String {
        let port = self.forward(ordinal, 2379).expect("a forward").port();
        let pki = self.pki(&format!("vc-{ordinal}"));
        let file = |flag: &str, name: &str| format!("--{flag}={}", pki.join(name).display());
        let output = Command::new(part("etcdctl"))
            .args([format!("--endpoints=https://localhost:{port}"), file("cacert", "etcd/ca.crt")])
            .args([file("cert", "etcd/healthcheck-client.crt"), file("key", "etcd/healthcheck-client.key")])
            // Etcd may be started anew, and its members may elect, meanwhile.
            .args(["--command-timeout=60s", "--dial-timeout=10s"])
            .args(args)
            .output()
            .expect("run etcdctl");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {errors}{}", self.log(&format!("vc-{ordinal}")));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until nothing is left to do.
    pub fn settled(&self) -> Status {
        self.settle(PATIENCE).expect("all pods are ready")
    }

    /// Waits until its status is as wanted.
    pub fn until(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        self.wait(what, PATIENCE, wanted).expect(what)
    }

    /// The last lines of each pod's log that are not etcd's.
    pub fn last_logs(&self) -> String {
        let last = |ordinal: u32| {
            let log = self.log(&format!("vc-{ordinal}"));
            let ours: Vec<_> = log.lines().filter(|l| !l.contains("\"target\":\"etcd\"")).rev().take(12).collect();
            format!("\npod {ordinal}, newest first:\n{}", ours.join("\n"))
        };
        (0..5).map(last).collect()
    }

    /// Asks a stand-in.
    pub fn get(&self, ordinal: u32, path: &str) -> Option<String> {
        let config = syncer::supervise::probe::unverified().expect("TLS");
        let address = self.forward(ordinal, PORT).expect("a forward");
        probe::get(address, path, &config.into()).filter(|(status, _)| *status == 200).map(|(_, body)| body)
    }

    /// What a stand-in says of itself.
    pub fn state(&self, ordinal: u32) -> State {
        let body = poll("the pod says how it is", PATIENCE, || self.get(ordinal, "/state"));
        serde_json::from_str(&body).expect("a state")
    }

    /// What a stand-in says of its peers.
    pub fn peers(&self, ordinal: u32, count: u32) -> Peers {
        let body = poll("the pod says whom it reaches", PATIENCE, || self.get(ordinal, &format!("/peers?{count}")));
        serde_json::from_str(&body).expect("peers")
    }

    /// Waits until pod `from` reaches pod `to`, or no longer does.
    pub fn reaches(&self, from: u32, to: u32, wanted: bool) {
        let what = format!("pod {from} reaches pod {to}: {wanted}");
        poll(&what, PATIENCE, || (self.peers(from, to + 1)[&to].reached == wanted).then_some(()));
    }

    /// Waits until pod `from` hears this of pod `of` from DNS.
    pub fn dns_of(&self, from: u32, of: u32, wanted: &str) {
        let what = format!("DNS says to pod {from} that pod {of} is {wanted}");
        poll(&what, PATIENCE, || (self.peers(from, of + 1)[&of].dns == wanted).then_some(()));
    }

    /// Makes a file in a pod's volume, by which its stand-in is steered.
    pub fn steer(&self, ordinal: u32, file: &str) {
        std::fs::write(self.volume(&format!("vc-{ordinal}")).join(file), "").expect("write into the volume");
    }

    /// The processes of its pods.
    pub fn pids(&self) -> Vec<i32> {
        self.status().expect("a status").pods.values().filter_map(|pod| pod.pid).collect()
    }
}
