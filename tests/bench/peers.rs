//! The peers: real etcd, the Put loop, and a plain copy.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rusqlite::Connection;

use crate::sample::{Cost, Watch};
use crate::store::program;

/// A free port on loopback.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Ends with its owner.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something accepts connections on a loopback port.
pub fn wait_port(port: u16, deadline: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        anyhow::ensure!(started.elapsed() < deadline, "nothing listens on port {port} after {deadline:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Copies a file with `cp` and fsyncs the copy.
pub fn copy_and_sync(from: &Path, to: &Path) -> anyhow::Result<Cost> {
    let started = Instant::now();
    let mut cp = Command::new("cp").arg("--reflink=never").arg(from).arg(to).spawn().context("run cp")?;
    let memory = Watch::begin(cp.id());
    let status = cp.wait()?;
    anyhow::ensure!(status.success(), "cp failed: {status}");
    std::fs::File::open(to)?.sync_all()?;
    // A small file is copied before it is looked at.
    Ok(Cost { seconds: started.elapsed().as_secs_f64(), peak_anonymous: memory.end().unwrap_or(0), ..Cost::default() })
}

/// Copies a data dir.
pub fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp").args(["-a", "--reflink=never"]).arg(from).arg(to).status().context("run cp")?;
    anyhow::ensure!(status.success(), "cp failed: {status}");
    Ok(())
}

/// A real etcd on loopback, without TLS. Killed when dropped.
pub struct Etcd {
    running: Running,
    port: u16,
}

impl Etcd {
    /// Starts it on `data`; a new store is begun where there is none.
    pub fn start(data: &Path) -> anyhow::Result<Etcd> {
        let port = free_port()?;
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()?));
        let mut command = Command::new(program("SYNCER_PARTS", "etcd")?);
        command
            .args(["--name=default", "--quota-backend-bytes=8589934592", "--log-outputs=/dev/null"])
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Etcd { running: Running(command.spawn().context("start etcd")?), port })
    }

    /// Its client URL.
    pub fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits until it answers a linearizable read; a client.
    pub async fn connected(&self, deadline: Duration) -> anyhow::Result<etcd_client::Client> {
        wait_port(self.port, deadline)?;
        let mut client = etcd_client::Client::connect([self.client_url()], None).await?;
        client.get("probe", None).await?;
        Ok(client)
    }

    /// Waits until it answers a linearizable read.
    pub fn serves(&self, deadline: Duration) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.connected(deadline)).map(drop)
    }

    /// SIGTERM: all that it has taken is in its backend afterwards.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.running.0.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        self.running.0.wait()?;
        Ok(())
    }
}

/// What one Put after another into a real etcd costs, over at most `limit` keys, and how many were put; the memory is
/// etcd's. k3s migrates so: it lists the live keys by name, then puts each and waits for the answer.
pub fn put_loop(state_db: &Path, work: &Path, limit: u64) -> anyhow::Result<(Cost, u64)> {
    let etcd = Etcd::start(work)?;
    let memory = Watch::begin(etcd.running.0.id());
    wait_port(etcd.port, Duration::from_secs(30))?;
    let client = etcd.client_url();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (seconds, count) = runtime.block_on(async {
        let mut etcd = etcd_client::Client::connect([client], None).await?;
        let started = Instant::now();
        let db = Connection::open(state_db)?;
        let mut rows = db.prepare(
            "SELECT name, value FROM kine WHERE deleted = 0 AND id IN (SELECT MAX(id) FROM kine GROUP BY name) \
             AND name != 'compact_rev_key' ORDER BY name LIMIT ?",
        )?;
        let mut rows = rows.query([i64::try_from(limit)?])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            etcd.put(row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?, None).await?;
            count += 1;
        }
        anyhow::Ok((started.elapsed().as_secs_f64(), count))
    })?;
    Ok((Cost { seconds, peak_anonymous: memory.end()?, ..Cost::default() }, count))
}
