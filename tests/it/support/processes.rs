//! Real processes started from their [`ChildSpec`]s, without the supervisor: for tests of what the specs say.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::Method;
use hyper::body::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use syncer::supervise::spec::{ChildSpec, Ready};

use super::kube::Kube;

/// Started processes, in order. Dropped: stopped in reverse.
#[derive(Default)]
pub struct Processes(Vec<Process>);

pub struct Process {
    pub spec: ChildSpec,
    pub log: PathBuf,
    child: Child,
}

impl Processes {
    /// Starts them one after another, each when the one before is ready. Their output goes to files in `logs`.
    pub async fn start(specs: &[ChildSpec], logs: &Path) -> Result<Processes> {
        let mut all = Processes::default();
        for spec in specs {
            let process = Process::start(spec, logs)?;
            all.0.push(process);
            let last = all.0.last_mut().context("just pushed")?;
            last.ready(Duration::from_secs(120)).await?;
        }
        Ok(all)
    }

    /// Kills the process of this spec's role with SIGKILL and starts it again.
    pub async fn restart_killed(&mut self, name: &str, logs: &Path) -> Result<()> {
        let index = self.0.iter().position(|p| p.spec.role.name() == name).context("no such process")?;
        let process = &mut self.0[index];
        process.child.kill()?;
        process.child.wait()?;
        *process = Process::start(&process.spec.clone(), logs)?;
        process.ready(Duration::from_secs(60)).await
    }

    /// Stops the process of this role for good.
    pub fn stop(&mut self, name: &str) {
        self.0.retain(|p| p.spec.role.name() != name);
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Process {
    /// Starts it and does not wait.
    pub fn start(spec: &ChildSpec, logs: &Path) -> Result<Process> {
        fs::create_dir_all(logs)?;
        let log = logs.join(format!("{}.log", spec.role.name()));
        let file = fs::OpenOptions::new().append(true).create(true).open(&log)?;
        let mut command = Command::new(&spec.program);
        command.args(&spec.args).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        for (name, _) in std::env::vars_os() {
            if spec.env_remove_prefixes.iter().any(|p| name.to_string_lossy().starts_with(p)) {
                command.env_remove(name);
            }
        }
        command.envs(&spec.env);
        if let Some(cwd) = &spec.cwd {
            command.current_dir(cwd);
        }
        // SAFETY: prctl with these arguments is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("start {}", spec.program.display()))?;
        Ok(Process { spec: spec.clone(), log, child })
    }

    async fn ready(&mut self, deadline: Duration) -> Result<()> {
        let started = Instant::now();
        while !self.is_ready().await? {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}; its last lines:\n{}", self.spec.role.name(), self.tail());
            }
            ensure!(
                started.elapsed() < deadline,
                "{} is not ready after {deadline:?}; its last lines:\n{}",
                self.spec.role.name(),
                self.tail()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn is_ready(&self) -> Result<bool> {
        match &self.spec.ready {
            Ready::Started => Ok(true),
            Ready::UnixSocket(path) => Ok(tokio::net::UnixStream::connect(path).await.is_ok()),
            Ready::HttpsReadyz(address) => {
                let kube = Kube::new(&format!("https://{address}"), None, None, None)?;
                Ok(kube.raw(Method::GET, "/readyz", "", Bytes::new()).await.is_ok_and(|(status, _)| status == 200))
            }
            Ready::EtcdLinearizableRead => bail!("etcd is started elsewhere"),
        }
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn stop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let started = Instant::now();
        while started.elapsed() < self.spec.stop_grace {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
