//! An etcd that nobody else can reach: on loopback, with certificates made for it alone.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use crate::datadir::{DatadirLock, MemberIdentity};
use crate::disk::Disk;
use crate::etcd::args::etcd_args;
use crate::etcd::{Bootstrap, EtcdLaunch, EtcdVersion};
use crate::pki::{EtcdTlsFiles, throwaway};
use crate::settings::EtcdTiming;
use crate::supervise::child::{Child, spawn};
use crate::supervise::lines::LineSplitter;
use crate::supervise::spec::{ChildSpec, LogFormat, OF_NO_USE, Ready, Role};

/// The etcd that is asked.
#[derive(Clone, Copy, Debug)]
pub struct LoopbackEtcd<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its version.
    pub version: EtcdVersion,
    /// The data dir.
    pub data_dir: &'a Path,
    /// A directory for its certificates, made for it and removed after it.
    pub scratch: &'a Path,
    /// Size of its backend, which the quota must not be below.
    pub backend_bytes: u64,
    /// The member it is.
    pub member: &'a MemberIdentity,
    /// A lock for it to inherit.
    pub lock: Option<&'a DatadirLock>,
    /// Whether it is to throw out all other members.
    pub force_new_cluster: bool,
    /// `--snapshot-count`.
    pub snapshot_count: u64,
    /// Whether what it writes is not made durable: the caller does that, or throws the data dir away.
    pub unsynced: bool,
}

/// `--snapshot-count` of an etcd that is only asked: it takes none.
pub const NO_SNAPSHOT: u64 = 10_000;

/// It is alone, so nobody's heartbeat can be late, and the shortest times make it the leader soonest.
const TIMING: EtcdTiming = EtcdTiming { heartbeat: Duration::from_millis(2), election: Duration::from_millis(10) };
/// From SIGTERM to SIGKILL. What its log then has alone is missed by those who need it in the backend, who run it again.
const STOP: Duration = Duration::from_secs(10);
/// Another process may take a port between our look and etcd's.
const PORT_ATTEMPTS: u32 = 5;
/// So many of its last lines are kept for an error.
const KEPT_LINES: usize = 3;
/// How long an ended etcd's last lines may take to arrive; a descendant of it may hold its output open for ever.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// One attempt to connect and read.
const PROBE: Duration = Duration::from_secs(2);
/// Between two attempts.
const PROBE_EVERY: Duration = Duration::from_millis(10);

/// A start may wait for a slow disk and for as much of the store as it reads first.
pub const START: Duration = Duration::from_secs(60);
/// What no disk is slower than when read from end to end, in bytes a second.
pub const SLOWEST_READ: u64 = 4 << 20;

impl LoopbackEtcd<'_> {
    /// Makes its certificates, starts it, has `ask` ask it once it serves, stops it and removes the certificates.
    /// `ask` is given a client and the time that whatever reads the whole store may take. An error has etcd's last words.
    pub fn asked<T>(
        &self,
        disk: &dyn Disk,
        ask: impl AsyncFnOnce(Client, Duration) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        remove_scratch(disk, self.scratch)?;
        let tls = throwaway(self.scratch).context("make certificates for etcd on loopback")?;
        let result = self.run(&tls, ask);
        remove_scratch(disk, self.scratch)?;
        result
    }

    fn run<T>(
        &self,
        tls: &EtcdTlsFiles,
        ask: impl AsyncFnOnce(Client, Duration) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let patience = START + Duration::from_secs(self.backend_bytes / SLOWEST_READ);
        let mut running = Running::start(self, tls)?;
        let result = runtime.block_on(async {
            let client = running.serving(self, tls, patience).await?;
            ask(client, patience).await
        });
        // With it go the connections, for which etcd would wait.
        drop(runtime);
        let result = match running.last_lines() {
            lines if result.is_ok() || lines.is_empty() => result,
            lines => result.with_context(|| format!("etcd's last words: {lines}")),
        };
        running.stop()?;
        result
    }
}

/// Removes the certificates that an earlier, killed run left.
pub fn remove_scratch(disk: &dyn Disk, scratch: &Path) -> anyhow::Result<()> {
    disk.forget_dir(scratch).context("remove the verification's files")
}

/// A running etcd. Killed with its group when dropped.
struct Running {
    child: Child,
    client_port: u16,
    attempts: u32,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    /// Says, by being disconnected, that its standard error has been read to the end.
    drained: mpsc::Receiver<()>,
}

impl Running {
    /// Starts it; it may not serve yet.
    fn start(etcd: &LoopbackEtcd<'_>, tls: &EtcdTlsFiles) -> anyhow::Result<Running> {
        let [client_port, peer_port, metrics_port] = free_ports()?;
        let first = |urls: &[String]| urls.first().cloned().unwrap_or_default();
        let launch = EtcdLaunch {
            name: etcd.member.name.clone(),
            data_dir: etcd.data_dir.to_owned(),
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            loopback_only: true,
            client_port,
            peer_port,
            metrics: SocketAddr::from((Ipv4Addr::LOCALHOST, metrics_port)),
            peer_url: first(&etcd.member.peer_urls),
            client_url: first(&etcd.member.client_urls),
            bootstrap: if etcd.force_new_cluster { Bootstrap::ForceNewCluster } else { Bootstrap::Restart },
            tls: Some(tls.clone()),
            skip_peer_san: false,
            timing: TIMING,
            snapshot_count: etcd.snapshot_count,
            quota: None,
            store_size: etcd.backend_bytes,
            max_request_bytes: None,
            unsynced: etcd.unsynced,
            extra_args: vec!["--log-level=warn".to_owned()],
        };
        let spec = ChildSpec {
            role: Role::Etcd,
            program: etcd.program.to_owned(),
            args: etcd_args(&launch, etcd.version).map_err(|e| e.refused())?,
            env: BTreeMap::new(),
            env_remove_prefixes: OF_NO_USE.to_vec(),
            cwd: None,
            ready: Ready::EtcdLinearizableRead,
            log: LogFormat::EtcdJson,
            stop_grace: STOP,
        };
        let (child, output) = spawn(&spec, etcd.lock)?;
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        drain(output.stdout, None)?;
        let drained = drain(output.stderr, Some(last_lines.clone()))?;
        Ok(Running { child, client_port, attempts: 1, last_lines, drained })
    }

    /// Waits until it answers a linearizable read; gives a client whose calls end after `patience`.
    async fn serving(
        &mut self,
        etcd: &LoopbackEtcd<'_>,
        tls: &EtcdTlsFiles,
        patience: Duration,
    ) -> anyhow::Result<Client> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().context("wait for etcd")? {
                // Why it ended stands in lines that may still be on their way.
                let _ = self.drained.recv_timeout(LAST_WORDS);
                if self.last_lines().contains("address already in use") && self.attempts < PORT_ATTEMPTS {
                    let mut again = Running::start(etcd, tls)?;
                    again.attempts = self.attempts + 1;
                    *self = again;
                    continue;
                }
                bail!("etcd ended with {status}");
            }
            if let Ok(Ok(client)) = tokio::time::timeout(PROBE, self.probe(tls, patience)).await {
                return Ok(client);
            }
            ensure!(Instant::now() < deadline, "etcd did not serve within {} s", patience.as_secs());
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    async fn probe(&self, tls: &EtcdTlsFiles, patience: Duration) -> anyhow::Result<Client> {
        // A refused connection is told by the socket at once; the client would try again by itself, and less often.
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.client_port)).await?;
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        let options = TlsOptions::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(read(&tls.ca)?))
            .identity(Identity::from_pem(read(&tls.client_cert)?, read(&tls.client_key)?));
        let options = ConnectOptions::new().with_tls(options).with_connect_timeout(PROBE).with_timeout(patience);
        let mut client = Client::connect([format!("https://127.0.0.1:{}", self.client_port)], Some(options)).await?;
        client.get("probe", None).await?;
        Ok(client)
    }

    /// The last of what etcd wrote, in one line.
    fn last_lines(&self) -> String {
        let lines = self.last_lines.lock().unwrap_or_else(|e| e.into_inner());
        lines.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
    }

    /// SIGTERM, then SIGKILL. Connections to it must be gone before: it waits for them.
    fn stop(mut self) -> anyhow::Result<()> {
        self.child.stop_blocking(STOP).context("stop etcd")?;
        Ok(())
    }
}

/// Reads a child's output to its end, so that it is never blocked by it, and keeps its last lines. What is
/// given is disconnected at the end.
fn drain(output: OwnedFd, keep: Option<Arc<Mutex<VecDeque<String>>>>) -> anyhow::Result<mpsc::Receiver<()>> {
    let (end, ended) = mpsc::channel();
    let mut file = File::from(output);
    let run = move || {
        let (mut splitter, mut buffer) = (LineSplitter::default(), [0; 4096]);
        let mut note = |line: &str| {
            if let Some(keep) = &keep {
                let mut lines = keep.lock().unwrap_or_else(|e| e.into_inner());
                lines.push_back(line.to_owned());
                if lines.len() > KEPT_LINES {
                    lines.pop_front();
                }
            }
        };
        while let Ok(count) = file.read(&mut buffer)
            && let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty())
        {
            splitter.push(bytes, &mut note);
        }
        splitter.finish(&mut note);
        drop(end);
    };
    std::thread::Builder::new().name("etcd-output".into()).spawn(run).context("read etcd's output")?;
    Ok(ended)
}

/// Three ports on loopback that are free now.
fn free_ports() -> anyhow::Result<[u16; 3]> {
    // All are held until the last is found, so that they differ.
    let listeners: Vec<TcpListener> = (0..3)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()
        .context("find a free port")?;
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr().context("find a free port")?.port();
    }
    Ok(ports)
}
