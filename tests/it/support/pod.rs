//! A pod for tests: the real `syncer start` with a volume and ports of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{free_port, part, poll, syncer};

/// A volume, ports, and the syncer process that uses them. Kills the process when dropped.
pub struct TestPod {
    dir: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    metrics_port: u16,
    state_port: u16,
    pub front_port: u16,
    pub apiserver_port: u16,
    child: Option<Child>,
    runtime: tokio::runtime::Runtime,
}

impl TestPod {
    /// A pod with an empty volume and `embeddedEtcd.enabled: true`; nothing runs yet.
    pub fn new() -> TestPod {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("data")).expect("make the volume");
        let pod = TestPod {
            dir,
            client_port: free_port(),
            peer_port: free_port(),
            metrics_port: free_port(),
            state_port: free_port(),
            front_port: free_port(),
            apiserver_port: free_port(),
            child: None,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
        };
        pod.values("embeddedEtcd:\n  enabled: true\n");
        pod
    }

    /// A pod whose volume holds the small store that ships with the tests.
    pub fn with_small_store() -> TestPod {
        let pod = TestPod::new();
        let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/run/state.db");
        std::fs::copy(store, pod.data().join("state.db")).expect("copy the store");
        pod
    }

    /// The volume.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// etcd's client port.
    pub fn client_port(&self) -> u16 {
        self.client_port
    }

    /// Another peer port, from the next start on.
    pub fn move_peer_port(&mut self) -> u16 {
        self.peer_port = free_port();
        self.peer_port
    }

    /// Writes the values file.
    pub fn values(&self, yaml: &str) {
        std::fs::write(self.dir.path().join("values.yaml"), yaml).expect("write the values");
    }

    /// The `syncer start` command line, with `extra` arguments at its end.
    pub fn command(&self, distro: &str, extra: &[&str]) -> Command {
        let mut command = Command::new(syncer());
        let etcd = part("etcd");
        let parts = etcd.parent().expect("a program is in a folder");
        command
            .arg("start")
            .arg(format!("--values={}", self.dir.path().join("values.yaml").display()))
            .arg(format!("--distro={distro}"))
            .arg(format!("--data-dir={}", self.data().display()))
            .arg(format!("--binaries={}", parts.display()))
            .arg(format!("--client-port={}", self.client_port))
            .arg(format!("--peer-port={}", self.peer_port))
            .arg(format!("--metrics-port={}", self.metrics_port))
            .arg(format!("--state-port={}", self.state_port))
            .arg(format!("--port={}", self.front_port))
            .arg(format!("--apiserver-port={}", self.apiserver_port))
            .args(extra)
            .env_remove("SYNCER_CRASH_AT")
            .env_remove("SYNCER_HALT_AT")
            .stdin(Stdio::null());
        command
    }

    /// The same, its programs looked for in these folders instead.
    pub fn command_with(&self, binaries: Option<&Path>, distro: &str, extra: &[&str]) -> Command {
        let given = self.command(distro, extra);
        let mut command = Command::new(given.get_program());
        command.args(given.get_args().filter(|arg| !arg.to_string_lossy().starts_with("--binaries=")));
        command.args(binaries.map(|folder| format!("--binaries={}", folder.display())));
        command
    }

    /// Starts syncer; its output goes to the log file.
    pub fn start(&mut self, distro: &str, extra: &[&str]) {
        let command = self.command(distro, extra);
        self.spawn(command);
    }

    /// Starts a command made by [`TestPod::command`].
    pub fn spawn(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "the pod runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("open the log");
        let errors = log.try_clone().expect("clone the log");
        self.child = Some(command.stdout(log).stderr(errors).spawn().expect("syncer starts"));
    }

    /// Runs syncer to its end, which must come by itself; its exit code and what it printed.
    pub fn run_to_end(&mut self, distro: &str, extra: &[&str]) -> (Option<i32>, String) {
        std::fs::write(self.log_path(), "").expect("clear the log");
        self.start(distro, extra);
        let status = self.wait_end(Duration::from_secs(60));
        (status.code(), self.log())
    }

    /// The process id of syncer.
    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("the pod runs");
        Pid::from_raw(i32::try_from(child.id()).expect("a pid fits"))
    }

    /// Waits until syncer ends by itself.
    pub fn wait_end(&mut self, deadline: Duration) -> ExitStatus {
        let log = self.log_path();
        let child = self.child.as_mut().expect("the pod runs");
        let what = format!("syncer ends by itself (its log: {})", log.display());
        let status = poll(&what, deadline, || child.try_wait().expect("wait for syncer"));
        self.child = None;
        status
    }

    /// SIGTERM, and the exit status.
    pub fn stop(&mut self) -> ExitStatus {
        kill(self.pid(), Signal::SIGTERM).expect("send SIGTERM");
        self.wait_end(Duration::from_secs(30))
    }

    /// SIGKILL to syncer alone: what it leaves behind is its own affair.
    pub fn kill9(&mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("send SIGKILL");
        // One that waits for its disk ends when that has answered.
        self.wait_end(Duration::from_secs(60));
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("syncer.log")
    }

    /// Everything syncer has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Waits until etcd answers a linearizable read over mTLS.
    pub fn wait_serving(&mut self) {
        poll("etcd answers a linearizable read", Duration::from_secs(60), || {
            self.assert_running();
            self.try_client().map(|_| ())
        });
    }

    /// Waits until port 8443's stand-in says that the pod is ready.
    pub fn wait_ready(&mut self) {
        poll("the pod is ready", Duration::from_secs(120), || {
            self.assert_running();
            (self.probe("/readyz") == Some(200)).then_some(())
        });
    }

    /// Fails with the log's end if syncer is gone.
    pub fn assert_running(&mut self) {
        let ended = self.child.as_mut().expect("the pod runs").try_wait().expect("look at syncer");
        if let Some(status) = ended {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(15).collect();
            panic!("syncer ended: {status}; the end of its log, newest first:\n{}", tail.join("\n"));
        }
    }

    /// The HTTP status that a probe on the front port gets, as the kubelet asks: without verifying the certificate.
    pub fn probe(&self, path: &str) -> Option<u16> {
        super::https::get_status(self.front_port, path)
    }

    /// A client that etcd has answered, whose requests may take as long as a probe's.
    pub fn try_client(&self) -> Option<Client> {
        self.client_within(Duration::from_secs(2))
    }

    /// A client that etcd has answered, whose requests may take so long.
    fn client_within(&self, patience: Duration) -> Option<Client> {
        let read = |name: &str| std::fs::read(self.data().join("pki").join(name)).ok();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(read("etcd/ca.crt")?))
            .identity(Identity::from_pem(read("etcd/healthcheck-client.crt")?, read("etcd/healthcheck-client.key")?));
        let options = ConnectOptions::new().with_tls(tls).with_timeout(patience);
        let url = format!("https://localhost:{}", self.client_port);
        self.runtime.block_on(async {
            let mut client = Client::connect([url], Some(options)).await.ok()?;
            client.get("health", Some(GetOptions::new().with_count_only())).await.ok()?;
            Some(client)
        })
    }

    /// Runs requests against the pod's etcd.
    pub fn etcd<T>(&self, requests: impl AsyncFnOnce(Client) -> T) -> T {
        poll("etcd answers", Duration::from_secs(60), || self.try_client());
        let patient = || self.client_within(Duration::from_secs(60));
        let client = poll("etcd answers again", Duration::from_secs(60), patient);
        self.runtime.block_on(requests(client))
    }

    /// Every live key with value, create revision, mod revision and version, and the store's revision.
    pub fn dump(&self) -> Dump {
        self.etcd(async |mut client| {
            // In pages, as a client takes no more than 4 MiB in one answer.
            let (mut keys, mut from, mut revision) = (Vec::new(), vec![0], 0);
            loop {
                let options = GetOptions::new().with_from_key().with_limit(250).with_revision(revision);
                let page = client.get(from, Some(options)).await.expect("read a page of keys");
                if revision == 0 {
                    revision = page.header().expect("a header").revision();
                }
                keys.extend(
                    page.kvs()
                        .iter()
                        .map(|kv| (kv.key().to_vec(), kv.value().to_vec(), kv.create_revision(), kv.mod_revision())),
                );
                match page.kvs().last() {
                    Some(last) if page.more() => from = [last.key(), b"\0"].concat(),
                    _ => break,
                }
            }
            Dump { revision, keys }
        })
    }
}

/// What an etcd serves.
#[derive(Debug, PartialEq)]
pub struct Dump {
    /// The store's revision.
    pub revision: i64,
    /// Key, value, create revision, mod revision.
    pub keys: Vec<(Vec<u8>, Vec<u8>, i64, i64)>,
}

impl Drop for TestPod {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The child of `parent` that runs `program`, and its arguments.
pub fn child_running(parent: Pid, program: &str) -> Option<(Pid, Vec<String>)> {
    children_of(parent).into_iter().find_map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments: Vec<_> =
            line.split(|byte| *byte == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
        let is_it = |argument: &String| argument.rsplit('/').next() == Some(program);
        // A script is run by its interpreter.
        arguments.iter().take(2).any(is_it).then_some((pid, arguments))
    })
}

/// The direct children of a process.
pub fn children_of(parent: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("read /proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let ppid = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
        if ppid == Some(parent.as_raw()) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}
