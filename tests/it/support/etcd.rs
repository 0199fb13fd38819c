//! A real etcd for a test: own ports, own log, killed when the test ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};
use syncer::pki::layout::EtcdTlsFiles;

use super::{free_port, part, poll};

/// The etcd versions that everything is proven on, as `scripts/parts` names them.
pub const LINES: [&str; 3] = ["3.5", "3.6", "3.7"];

/// The versions that a deployed etcd may have. No pod runs the oldest, so it is no line of ours.
pub const SOURCES: [&str; 4] = ["3.4", "3.5", "3.6", "3.7"];

/// How long a start, a stop, or a join may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The file of `etcd`, `etcdctl` or `etcdutl` of a line.
pub fn program(name: &str, line: &str) -> PathBuf {
    if line == "3.6" { part(name) } else { part(&format!("{name}-{line}")) }
}

/// What to start. Fields may be changed between [`EtcdSpec::new`] and [`EtcdSpec::start`].
#[derive(Clone, Debug)]
pub struct EtcdSpec {
    /// `3.4` to `3.7`.
    pub line: &'static str,
    /// `--name`.
    pub name: String,
    /// `--data-dir`.
    pub data_dir: PathBuf,
    /// Port of the client URL.
    pub client_port: u16,
    /// Port of the peer URL.
    pub peer_port: u16,
    /// `--initial-cluster`; this member alone if `None`.
    pub initial_cluster: Option<String>,
    /// `--initial-cluster-state=existing`.
    pub existing: bool,
    /// `--initial-cluster-token`.
    pub token: String,
    /// More flags.
    pub flags: Vec<String>,
    /// The certificates of its client port, which asks clients for theirs; `None`: plain HTTP.
    pub tls: Option<EtcdTlsFiles>,
}

impl EtcdSpec {
    /// An etcd of `line` on free ports.
    pub fn new(line: &'static str, name: &str, data_dir: &Path) -> EtcdSpec {
        EtcdSpec {
            line,
            name: name.to_owned(),
            data_dir: data_dir.to_owned(),
            client_port: free_port(),
            peer_port: free_port(),
            initial_cluster: None,
            existing: false,
            token: "etcd-cluster".to_owned(),
            flags: vec![],
            tls: None,
        }
    }

    /// The client URL.
    pub fn client_url(&self) -> String {
        match self.tls {
            Some(_) => format!("https://localhost:{}", self.client_port),
            None => format!("http://127.0.0.1:{}", self.client_port),
        }
    }

    /// The peer URL.
    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    /// The flags that [`EtcdSpec::start`] uses.
    pub fn args(&self) -> Vec<String> {
        let alone = format!("{}={}", self.name, self.peer_url());
        let mut args: Vec<String> = BTreeMap::from([
            ("--name", self.name.clone()),
            ("--data-dir", self.data_dir.display().to_string()),
            ("--listen-client-urls", self.client_url()),
            ("--advertise-client-urls", self.client_url()),
            ("--listen-peer-urls", self.peer_url()),
            ("--initial-advertise-peer-urls", self.peer_url()),
            ("--initial-cluster", self.initial_cluster.clone().unwrap_or(alone)),
            ("--initial-cluster-state", if self.existing { "existing".into() } else { "new".into() }),
            ("--initial-cluster-token", self.token.clone()),
        ])
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        if let Some(tls) = &self.tls {
            for (flag, file) in
                [("--trusted-ca-file", &tls.ca), ("--cert-file", &tls.server_cert), ("--key-file", &tls.server_key)]
            {
                args.push(format!("{flag}={}", file.display()));
            }
            args.push("--client-cert-auth".to_owned());
        }
        args.extend(self.flags.iter().cloned());
        args
    }

    /// Starts it without waiting for anything. Its log is `<data dir>.log`.
    pub fn spawn(&self) -> Etcd {
        let mut log = self.data_dir.clone().into_os_string();
        log.push(".log");
        let log = PathBuf::from(log);
        let output = File::options().create(true).append(true).open(&log).expect("create etcd's log");
        let log_start = output.metadata().expect("look at etcd's log").len() as usize;
        let mut command = Command::new(program("etcd", self.line));
        command.args(self.args()).stdin(Stdio::null());
        command.stdout(output.try_clone().expect("share the log")).stderr(output);
        // A test that is killed must not leave an etcd behind.
        // SAFETY: prctl is async-signal-safe and takes no pointers.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().expect("start etcd");
        Etcd { child, log, log_start, spec: self.clone() }
    }

    /// Starts it and waits until it serves a linearizable read.
    pub fn start(&self) -> Etcd {
        let mut etcd = self.spawn();
        etcd.wait_until_serving();
        etcd
    }
}

/// A running etcd; killed on drop.
pub struct Etcd {
    child: Child,
    /// What it wrote to its standard output and error.
    pub log: PathBuf,
    /// How much of that is of its predecessors, in bytes.
    log_start: usize,
    /// How it was started.
    pub spec: EtcdSpec,
}

impl Etcd {
    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it answers a linearizable read, and handles signals.
    pub fn wait_until_serving(&mut self) {
        let (url, log, tls) = (self.spec.client_url(), self.log.clone(), self.spec.tls.clone());
        let child = &mut self.child;
        poll(&format!("etcd serves at {url}; see {}", log.display()), PATIENCE, || {
            if let Some(status) = child.try_wait().expect("wait for etcd") {
                panic!("etcd ended with {status}:\n{}", tail(&log));
            }
            run(async {
                let mut client = connect_to(&url, tls.as_ref()).await;
                client.get("probe", None).await.ok().map(|_| ())
            })
        });
        self.wait_until_it_handles_signals();
    }

    /// Waits until SIGTERM is no longer a kill to it: it handles signals from just before it tells systemd on. 3.4 does not say.
    pub fn wait_until_it_handles_signals(&self) {
        let log = &self.log;
        if self.spec.line != "3.4" {
            poll(&format!("etcd handles signals; see {}", log.display()), PATIENCE, || {
                let told = std::fs::read(log).expect("read etcd's log");
                String::from_utf8_lossy(&told[self.log_start..]).contains("notifying init daemon").then_some(())
            });
        }
    }

    /// A client of this member alone.
    pub async fn client(&self) -> Client {
        connect_to(&self.spec.client_url(), self.spec.tls.as_ref()).await
    }

    /// Waits until it has ended by itself; gives its exit code and the end of its log.
    pub fn wait_until_ended(&mut self) -> (Option<i32>, String) {
        let child = &mut self.child;
        let what = format!("etcd ends; see {}", self.log.display());
        let status = poll(&what, PATIENCE, || child.try_wait().expect("wait for etcd"));
        (status.code(), tail(&self.log))
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self) {
        // SAFETY: kill takes no pointers, and the child has not been waited for, so its ID is still its own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let child = &mut self.child;
        poll("etcd stops on SIGTERM", PATIENCE, || child.try_wait().expect("wait for etcd"));
    }

    /// Runs this line's `etcdctl` against it.
    pub fn ctl(&self, args: &[&str]) -> String {
        let mut command = Command::new(program("etcdctl", self.spec.line));
        command.arg("--endpoints").arg(self.spec.client_url()).args(args);
        if let Some(tls) = &self.spec.tls {
            command.arg("--cacert").arg(&tls.ca).arg("--cert").arg(&tls.client_cert).arg("--key").arg(&tls.client_key);
        }
        output(&mut command)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A client of a member, whose disk may be slow.
pub async fn connect(url: &str) -> Client {
    connect_to(url, None).await
}

/// The same, with certificates.
pub async fn connect_to(url: &str, tls: Option<&EtcdTlsFiles>) -> Client {
    let mut options = ConnectOptions::new().with_timeout(Duration::from_secs(30));
    if let Some(tls) = tls {
        let read = |file: &Path| std::fs::read(file).expect("read a certificate");
        let identity = Identity::from_pem(read(&tls.client_cert), read(&tls.client_key));
        let ca = Certificate::from_pem(read(&tls.ca));
        options = options.with_tls(TlsOptions::new().ca_certificate(ca).identity(identity));
    }
    Client::connect([url], Some(options)).await.expect("make an etcd client")
}

/// Key, value, create revision, mod revision, version, lease.
pub type ServedKey = (Vec<u8>, Vec<u8>, i64, i64, i64, i64);

/// Writes a key of a cluster whose leader may change meanwhile: what was proposed then is lost.
pub async fn put_surely(client: &mut Client, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
    let (key, value, began) = (key.into(), value.into(), Instant::now());
    while let Err(error) = client.put(key.clone(), value.clone(), None).await {
        assert!(began.elapsed() < PATIENCE, "etcd takes no write: {error}");
    }
}

/// Asks for a learner's promotion, which etcd refuses until it has caught up; whether it is a voter. An answer may be lost.
pub async fn try_promote(client: &mut Client, member: u64) -> Option<()> {
    match client.member_promote(member).await {
        Ok(_) => Some(()),
        Err(error) => {
            let told = error.to_string();
            (told.contains("can only promote a learner member") && !told.contains("in sync")).then_some(())
        }
    }
}

/// Asks for a member's removal, which etcd refuses while others have just connected; whether it is gone.
pub async fn try_remove(client: &mut Client, member: u64) -> Option<()> {
    match client.member_remove(member).await {
        Ok(_) => Some(()),
        Err(error) => error.to_string().contains("member not found").then_some(()),
    }
}

/// Every key in key order.
pub async fn all_keys(client: &mut Client) -> Vec<ServedKey> {
    try_all_keys(client).await.expect("read a page of keys")
}

/// Every key in key order, or what etcd answered instead.
pub async fn try_all_keys(client: &mut Client) -> Result<Vec<ServedKey>, etcd_client::Error> {
    let mut found = Vec::new();
    let mut from = vec![0];
    // Of the largest values that etcd takes by default, a page has more than a client takes by default.
    let mut client = client.kv_client().max_decoding_message_size(1 << 30);
    loop {
        let options = GetOptions::new().with_from_key().with_limit(500);
        let answer = client.get(from.clone(), Some(options)).await?;
        for kv in answer.kvs() {
            let (create, modified) = (kv.create_revision(), kv.mod_revision());
            found.push((kv.key().to_vec(), kv.value().to_vec(), create, modified, kv.version(), kv.lease()));
        }
        let Some(last) = answer.kvs().last().filter(|_| answer.more()) else { return Ok(found) };
        from = [last.key(), &[0]].concat();
    }
}

/// An etcd of a line that is killed, with what it has not written, when it is told to stop for the first time; afterwards it is
/// as any other. `folder` is to hold it, and its file `starts` a line for each start.
pub fn killed_once(line: &str, folder: &Path) -> PathBuf {
    let script = r#"#!/bin/sh
case "$*" in --version) exec ETCD --version ;; esac
echo >>FOLDER/starts
[ -e FOLDER/killed ] && exec ETCD "$@"
ETCD "$@" --backend-batch-interval=10m --snapshot-count=1000000 &
trap 'kill -KILL $!; wait $!; : >FOLDER/killed; exit' TERM
wait
"#;
    let script = script.replace("FOLDER", &folder.display().to_string());
    let file = folder.join("killed-once");
    crate::support::script(&file, script.replace("ETCD", &program("etcd", line).display().to_string()));
    file
}

/// Runs a future on a runtime of its own.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("build a runtime").block_on(future)
}

/// Runs a program to its end; panics with its output if it fails.
pub fn output(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?} failed: {}\n{text}\n{errors}", out.status);
    text
}

/// A program in this folder that tells etcd's version, and otherwise does what these words of a shell say.
pub fn etcd_that(folder: &Path, does: &str) -> PathBuf {
    let (file, real) = (folder.join("etcd"), part("etcd"));
    let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && exec {} --version\n{does}\n", real.display());
    crate::support::script(&file, script);
    file
}

/// For [`etcd_that`]: serves from another data dir than it is told to.
pub fn serves_instead(data_dir: &Path) -> String {
    // The last one of a flag counts.
    format!("exec {} \"$@\" --data-dir={}", part("etcd").display(), data_dir.display())
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
}
