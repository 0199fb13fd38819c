//! Restart-to-serving of one member beside bare etcd with the paid edition's timing, and syncer's cost at rest.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};
use serde_json::{Value, json};

use crate::peers::{Running, free_port, wait_port};
use crate::sample::{cpu_seconds, median, status_bytes, summary};
use crate::store::{program, state_db};

/// One member: its folder and ports.
pub struct Site {
    /// The folder.
    pub data: PathBuf,
    client: u16,
    peer: u16,
    metrics: u16,
    state: u16,
    front: u16,
}

impl Site {
    /// Makes the folder, and finds ports.
    pub fn new(data: &Path) -> anyhow::Result<Site> {
        std::fs::create_dir(data)?;
        let [client, peer, metrics] = [free_port()?, free_port()?, free_port()?];
        Ok(Site { data: data.to_owned(), client, peer, metrics, state: free_port()?, front: free_port()? })
    }
}

/// Runs both contenders in turn; the figures as JSON.
pub fn run(runs: usize, keys: u64, idle: u64) -> anyhow::Result<Value> {
    let store = state_db(keys)?;
    let work = tempfile::tempdir_in(store.parent().context("the store has a folder")?)?;
    let site = |name: &str| Site::new(&work.path().join(name));
    let (ours, bare) = (site("syncer")?, site("bare")?);
    // Both start from the same migrated store; the bare one from a copy of the data dir and certificates.
    std::fs::copy(&store, ours.data.join("state.db"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let start_syncer = |site: &Site| syncer(site, &[]);
    let mut first = Running(start_syncer(&ours)?);
    runtime.block_on(serving(&ours, &ours.data, Duration::from_secs(300)))?;
    stop(&mut first, false)?;
    for name in ["etcd", "pki"] {
        let status = Command::new("cp").arg("-a").arg(ours.data.join(name)).arg(bare.data.join(name)).status()?;
        anyhow::ensure!(status.success(), "cp failed: {status}");
    }

    let (mut our_times, mut bare_times) = (Vec::new(), Vec::new());
    for run in 0..runs.max(2) {
        let kill = run % 2 == 1;
        for (site, times, start) in [
            (&ours, &mut our_times, start_syncer as fn(&Site) -> anyhow::Result<Child>),
            (&bare, &mut bare_times, bare_etcd as fn(&Site) -> anyhow::Result<Child>),
        ] {
            let mut child = Running(start(site)?);
            runtime.block_on(serving(site, &ours.data, Duration::from_secs(60)))?;
            stop(&mut child, kill)?;
            drop(child);
            let started = Instant::now();
            let mut child = Running(start(site)?);
            runtime.block_on(serving(site, &ours.data, Duration::from_secs(60)))?;
            times.push(started.elapsed().as_secs_f64());
            stop(&mut child, false)?;
        }
        eprintln!(
            "bench: restart {} ({}): syncer {:.3} s, bare etcd 500/5000 {:.3} s",
            run + 1,
            if kill { "after kill -9" } else { "after SIGTERM" },
            our_times[run],
            bare_times[run]
        );
    }

    let mut child = Running(start_syncer(&ours)?);
    runtime.block_on(serving(&ours, &ours.data, Duration::from_secs(60)))?;
    std::thread::sleep(Duration::from_secs(5));
    let pid = child.0.id();
    let before = cpu_seconds(pid).context("read CPU time")?;
    std::thread::sleep(Duration::from_secs(idle));
    let after = cpu_seconds(pid).context("read CPU time")?;
    let resident = status_bytes(pid, "VmRSS:").context("read memory")?;
    stop(&mut child, false)?;

    Ok(json!({
        "bench": "start",
        "keys": keys,
        "syncer_restart_seconds": summary(&our_times),
        "bare_etcd_500_5000_restart_seconds": summary(&bare_times),
        "ratio_of_medians": median(&our_times) / median(&bare_times),
        "idle": {
            "seconds": idle,
            "resident_mib": resident as f64 / f64::from(1 << 20),
            "cpu_percent_of_a_core": (after - before) * 100.0 / idle as f64,
        },
        "binary_bytes": std::fs::metadata(program("SYNCER_RELEASE", "")?)?.len(),
    }))
}

/// Starts the pod of a site, with more flags.
pub fn syncer(site: &Site, flags: &[String]) -> anyhow::Result<Child> {
    Command::new(program("SYNCER_RELEASE", "")?)
        .args(["start", "--distro=none", "--name=bench"])
        .arg(format!("--data-dir={}", site.data.display()))
        .arg(format!("--binaries={}", program("SYNCER_PARTS", "")?.display()))
        .arg(format!("--client-port={}", site.client))
        .arg(format!("--peer-port={}", site.peer))
        .arg(format!("--metrics-port={}", site.metrics))
        .arg(format!("--state-port={}", site.state))
        .arg(format!("--port={}", site.front))
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start syncer")
}

/// etcd with the command line of the paid edition (heartbeat 500, election 5000).
fn bare_etcd(site: &Site) -> anyhow::Result<Child> {
    let pki = site.data.join("pki");
    let file = |name: &str| pki.join(name).display().to_string();
    Command::new(program("SYNCER_PARTS", "etcd")?)
        .args(["--name=bench-0", "--heartbeat-interval=500", "--election-timeout=5000", "--snapshot-count=10000"])
        .args(["--client-cert-auth=true", "--peer-client-cert-auth=true", "--logger=zap", "--log-outputs=stderr"])
        .arg(format!("--data-dir={}", site.data.join("etcd").display()))
        .arg(format!("--listen-client-urls=https://127.0.0.1:{}", site.client))
        .arg(format!("--advertise-client-urls=https://localhost:{}", site.client))
        .arg(format!("--listen-peer-urls=https://127.0.0.1:{}", site.peer))
        .arg(format!("--listen-metrics-urls=http://127.0.0.1:{}", site.metrics))
        .arg(format!("--cert-file={}", file("etcd/server.crt")))
        .arg(format!("--key-file={}", file("etcd/server.key")))
        .arg(format!("--peer-cert-file={}", file("etcd/peer.crt")))
        .arg(format!("--peer-key-file={}", file("etcd/peer.key")))
        .arg(format!("--trusted-ca-file={}", file("etcd/ca.crt")))
        .arg(format!("--peer-trusted-ca-file={}", file("etcd/ca.crt")))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start etcd")
}

async fn serving(site: &Site, data: &Path, deadline: Duration) -> anyhow::Result<()> {
    connected(site, data, deadline).await.map(drop)
}

/// Returns when a linearizable read is answered; the certificates are in `data`/pki.
pub async fn connected(site: &Site, data: &Path, deadline: Duration) -> anyhow::Result<Client> {
    let started = Instant::now();
    wait_port(site.client, deadline)?;
    let read = |name: &str| std::fs::read(data.join("pki").join(name));
    loop {
        let attempt = async {
            let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read("etcd/ca.crt")?)).identity(
                Identity::from_pem(read("etcd/healthcheck-client.crt")?, read("etcd/healthcheck-client.key")?),
            );
            let options = ConnectOptions::new().with_tls(tls).with_timeout(Duration::from_secs(1));
            let mut client = Client::connect([format!("https://localhost:{}", site.client)], Some(options)).await?;
            client.get("health", Some(GetOptions::new().with_count_only())).await?;
            anyhow::Ok(client)
        };
        match attempt.await {
            Ok(client) => return Ok(client),
            Err(e) => anyhow::ensure!(started.elapsed() < deadline, "does not serve after {deadline:?}: {e:#}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn stop(child: &mut Running, kill: bool) -> anyhow::Result<()> {
    use nix::sys::signal::{Signal, kill as send};
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.0.id())?);
    send(pid, if kill { Signal::SIGKILL } else { Signal::SIGTERM })?;
    child.0.wait()?;
    Ok(())
}
