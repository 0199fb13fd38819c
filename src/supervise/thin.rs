//! A first supervisor.

use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::spec::{ChildSpec, Ready, Role};
use crate::datadir::lock::DatadirLock;
use crate::pki::PkiPaths;
use crate::serve::health::Health;

/// Returns when the process is told to stop.
pub async fn stop_signal() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    Ok(())
}

fn spawn(spec: &ChildSpec, lock: &DatadirLock) -> anyhow::Result<Child> {
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).envs(&spec.env).process_group(0);
    for (name, _) in std::env::vars_os() {
        if spec.env_remove_prefixes.iter().any(|p| name.to_string_lossy().starts_with(p))
            && !spec.env.contains_key(&*name.to_string_lossy())
        {
            command.env_remove(name);
        }
    }
    if let Some(cwd) = &spec.cwd {
        command.current_dir(cwd);
    }
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    if spec.role == Role::Etcd {
        lock.inherit_into(command.as_std_mut())?;
    }
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let mut child = command.spawn().with_context(|| format!("start {}", spec.program.display()))?;
    let role = spec.role;
    if let Some(out) = child.stdout.take() {
        tokio::spawn(relay(role, out));
    }
    if let Some(out) = child.stderr.take() {
        tokio::spawn(relay(role, out));
    }
    Ok(child)
}

async fn relay(role: Role, out: impl tokio::io::AsyncRead + Unpin) {
    let mut lines = BufReader::new(out).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::info!(target: "child", child = role.name(), "{line}");
    }
}

async fn ready(spec: &ChildSpec, pki: &PkiPaths, port: u16) -> bool {
    match &spec.ready {
        Ready::Started => true,
        Ready::UnixSocket(path) => tokio::net::UnixStream::connect(path).await.is_ok(),
        Ready::EtcdLinearizableRead => {
            let tls = pki.etcd_tls();
            let attempt = async {
                let options = etcd_client::ConnectOptions::new().with_timeout(Duration::from_secs(2)).with_tls(
                    etcd_client::TlsOptions::new()
                        .ca_certificate(etcd_client::Certificate::from_pem(std::fs::read(tls.ca)?))
                        .identity(etcd_client::Identity::from_pem(
                            std::fs::read(tls.client_cert)?,
                            std::fs::read(tls.client_key)?,
                        )),
                );
                let mut client =
                    etcd_client::Client::connect([format!("https://localhost:{port}")], Some(options)).await?;
                client.get("health", None).await?;
                anyhow::Ok(())
            };
            attempt.await.is_ok()
        }
        Ready::HttpsReadyz(address) => {
            let address = *address;
            tokio::task::spawn_blocking(move || {
                std::process::Command::new("curl")
                    .args(["-skf", "-o/dev/null", "-m2"])
                    .arg(format!("https://{address}/readyz"))
                    .status()
                    .is_ok_and(|s| s.success())
            })
            .await
            .unwrap_or(false)
        }
    }
}

/// Runs the children until told to stop.
pub async fn run(
    specs: Vec<ChildSpec>,
    lock: DatadirLock,
    pki: &PkiPaths,
    port: u16,
    health: watch::Sender<Health>,
) -> anyhow::Result<()> {
    let mut running: Vec<(usize, Child)> = Vec::new();
    let mut stop = Box::pin(stop_signal());
    let mut next = 0;
    loop {
        if next < specs.len() && running.len() == next {
            let spec = &specs[next];
            running.push((next, spawn(spec, &lock)?));
            if spec.role == Role::ApiServer {
                crate::crash_point!("start-apiserver-spawned");
            }
            let begun = Instant::now();
            loop {
                tokio::select! {
                    _ = &mut stop => { return end(running, &specs, &health).await; }
                    status = running[next].1.wait() => { anyhow::bail!("{} ended: {}", spec.role.name(), status?); }
                    ok = ready(spec, pki, port) => if ok { break; }
                }
                anyhow::ensure!(begun.elapsed() < Duration::from_secs(300), "{} is not ready", spec.role.name());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if spec.role == Role::Etcd {
                crate::crash_point!("start-etcd-serving");
            }
            health.send_modify(|h| match spec.role {
                Role::Etcd | Role::Kine => h.datastore_ready = true,
                Role::ApiServer => h.apiserver_ready = true,
                _ => {}
            });
            next += 1;
            continue;
        }
        let exits: Vec<_> = running.iter_mut().map(|(i, c)| Box::pin(async move { (*i, c.wait().await) })).collect();
        let first = futures(exits);
        tokio::select! {
            _ = &mut stop => break,
            (i, status) = first => {
                tracing::error!(child = specs[i].role.name(), "ended: {:?}; starting it again", status);
                tokio::time::sleep(Duration::from_millis(200)).await;
                running[i] = (i, spawn(&specs[i], &lock)?);
            }
        }
    }
    end(running, &specs, &health).await
}

async fn futures<F: std::future::Future + Unpin>(mut all: Vec<F>) -> F::Output {
    std::future::poll_fn(|cx| {
        for f in &mut all {
            if let std::task::Poll::Ready(v) = std::pin::Pin::new(f).poll(cx) {
                return std::task::Poll::Ready(v);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

async fn end(
    mut running: Vec<(usize, Child)>,
    specs: &[ChildSpec],
    health: &watch::Sender<Health>,
) -> anyhow::Result<()> {
    health.send_modify(|h| h.stopping = true);
    while let Some((i, mut child)) = running.pop() {
        let Some(pid) = child.id() else { continue };
        let group = Pid::from_raw(pid as i32);
        let _ = killpg(group, Signal::SIGTERM);
        if tokio::time::timeout(specs[i].stop_grace, child.wait()).await.is_err() {
            let _ = killpg(group, Signal::SIGKILL);
            let _ = child.wait().await;
        }
    }
    Ok(())
}
