//! A pod and its process. A launcher (`statefulset pod`) takes namespaces of its own and sets up the pod in them; it is
//! what lasts of a pod whose process is started again. For each start it runs another (`statefulset process`), which takes
//! a PID namespace, starts the program as PID 1 of it, and ends as it ends. All of them die with the box.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::network::{GATEWAY, Network, ip};

/// What a pod is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodSpec {
    /// Its name, which is also its host name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether it has namespaces of its own.
    pub namespaces: bool,
    /// What it finds at /etc/resolv.conf.
    pub resolv_conf: PathBuf,
    /// What it finds at /var/run/secrets/kubernetes.io/serviceaccount.
    pub service_account: Option<PathBuf>,
    /// Folders that it can only read.
    pub read_only: Vec<PathBuf>,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, besides PATH.
    pub env: BTreeMap<String, String>,
    /// What it prints is appended to this.
    pub log: PathBuf,
}

/// What a pod's launcher says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The pod's process has ended.
    Ended,
    /// The launcher has, and with it the pod.
    Gone,
}

/// A pod that is set up. Dropped: it is given up, once its process has ended.
pub struct Sandbox {
    orders: ChildStdin,
    /// The process of each start; `None`: it ended before there was one.
    pids: mpsc::Receiver<Option<i32>>,
}

impl Sandbox {
    /// Starts the pod's process, of which none runs; gives it.
    pub fn start(&mut self) -> anyhow::Result<i32> {
        self.orders.write_all(b"go\n").context("tell the pod's launcher")?;
        let pid = self.pids.recv().context("the pod's launcher is gone")?;
        pid.context("the pod's process did not start; see the box's log")
    }
}

/// Sets up a pod, with a link to the box. Nothing runs in it yet. `told`: what becomes of it.
pub fn set_up(
    network: &Network,
    exe: &Path,
    spec: &PodSpec,
    incarnation: u64,
    mut told: impl FnMut(Said) + Send + 'static,
) -> anyhow::Result<Sandbox> {
    let mut command = Command::new(exe);
    command.arg("pod").arg(serde_json::to_string(spec)?).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.process_group(0);
    dies_with_parent(&mut command);
    // By the thread that lasts.
    let mut launcher = network.inside(move || command.spawn()).context("start the pod's launcher")?;
    let mut answers = BufReader::new(launcher.stdout.take().context("its output")?);
    let orders = launcher.stdin.take().context("its input")?;
    let mut handshake = || {
        let mut answer = String::new();
        answers.read_line(&mut answer).context("its output")?;
        ensure!(answer == "unshared\n", "the pod's launcher ended; see the box's log");
        match spec.namespaces {
            true => network.attach(launcher.id(), incarnation, spec.address),
            false => Ok(()),
        }
    };
    if let Err(e) = handshake() {
        let _ = launcher.kill();
        let _ = launcher.wait();
        return Err(e);
    }
    let (pid, pids) = mpsc::channel();
    let log = spec.log.clone();
    std::thread::Builder::new().name("pod".into()).spawn(move || {
        listen(answers, &pid, &log, &mut told);
        let _ = launcher.wait();
        told(Said::Gone);
    })?;
    Ok(Sandbox { orders, pids })
}

/// Takes what the launcher says until it ends.
fn listen(answers: BufReader<ChildStdout>, pids: &mpsc::Sender<Option<i32>>, log: &Path, told: &mut impl FnMut(Said)) {
    let mut runs = false;
    for answer in answers.lines().map_while(Result::ok) {
        if let Some(pid) = answer.strip_prefix("pid ") {
            runs = true;
            let _ = pids.send(pid.parse().ok());
        } else if let Some(status) = answer.strip_prefix("ended ") {
            if let Ok(mut log) = File::options().create(true).append(true).open(log) {
                let _ = writeln!(log, "-- the pod's process has ended: {status}");
            }
            match std::mem::take(&mut runs) {
                true => told(Said::Ended),
                // Whoever started it waits for this.
                false => drop(pids.send(None)),
            }
        }
    }
}

/// The kernel kills it when the thread that starts it ends. It blocks no signals, though the box does.
pub fn dies_with_parent(command: &mut Command) {
    // SAFETY: sigemptyset, sigprocmask and prctl are async-signal-safe, and the closure neither allocates nor locks.
    // sigemptyset initialises the set.
    unsafe {
        command.pre_exec(|| {
            let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            if libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) == -1
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// The launcher: `statefulset pod SPEC`. Says `unshared`, then for each line `go` that it is given what becomes of the
/// process: `pid PID`, `ended STATUS`.
pub fn launch(text: &str) -> anyhow::Result<()> {
    let spec: PodSpec = serde_json::from_str(text).context("read the pod's specification")?;
    if spec.namespaces {
        let own =
            CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
        unshare(own).context("take namespaces")?;
    }
    println!("unshared");
    let exe = std::env::current_exe()?;
    let mut is_set_up = false;
    for order in std::io::stdin().lines() {
        ensure!(order? == "go", "the box does not say what it should");
        if spec.namespaces && !is_set_up {
            furnish(&spec)?;
            is_set_up = true;
        }
        let mut command = Command::new(&exe);
        command.arg("process").arg(text).stdin(Stdio::null());
        dies_with_parent(&mut command);
        let status = command.status().context("start the pod's process")?;
        println!("ended {status}");
    }
    Ok(())
}

/// Starts the pod's process in the launcher's namespaces: `statefulset process SPEC`. Says `pid PID`, and gives the code to
/// exit with.
pub fn run(spec: &str) -> anyhow::Result<u8> {
    let spec: PodSpec = serde_json::from_str(spec).context("read the pod's specification")?;
    if spec.namespaces {
        // The next process that we start becomes PID 1: whatever it starts is gone with it. It sees a /proc of its own.
        unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).context("take a PID namespace")?;
    }
    let log = File::options().create(true).append(true).open(&spec.log).context("open the pod's log")?;
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let path = std::env::var_os("PATH");
    command.env_clear().envs(path.map(|path| ("PATH", path))).envs(&spec.env);
    dies_with_parent(&mut command);
    if spec.namespaces {
        // SAFETY: mount is a bare system call, its strings are constants, and nothing is allocated or locked.
        unsafe {
            command.pre_exec(|| {
                let (proc, at) = (c"proc".as_ptr(), c"/proc".as_ptr());
                match libc::mount(proc, at, proc, libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, std::ptr::null())
                {
                    -1 => Err(std::io::Error::last_os_error()),
                    _ => Ok(()),
                }
            });
        }
    }
    let mut pod = command.spawn().with_context(|| format!("start {}", spec.program.display()))?;
    println!("pid {}", pod.id());
    let status = pod.wait()?;
    let code = status.code().or_else(|| Some(128 + status.signal()?)).and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(u8::MAX))
}

/// The pod's side of the link, its host name and its files.
fn furnish(spec: &PodSpec) -> anyhow::Result<()> {
    ip(&format!(
        "link set lo up\nlink set eth0 up\naddress add {}/32 dev eth0\nroute add {GATEWAY}/32 dev eth0\n\
         route add default via {GATEWAY} dev eth0\n",
        spec.address
    ))?;
    nix::unistd::sethostname(&spec.name).context("set the host name")?;
    let none = None::<&str>;
    // What is mounted from here on is seen by the pod alone.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    if let Some(account) = &spec.service_account {
        own_run(account)?;
    }
    mount(Some(&spec.resolv_conf), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).context("mount resolv.conf")?;
    for folder in &spec.read_only {
        mount_read_only(folder, folder)?;
    }
    Ok(())
}

fn mount_read_only(folder: &Path, at: &Path) -> anyhow::Result<()> {
    let none = None::<&str>;
    mount(Some(folder), at, none, MsFlags::MS_BIND, none).with_context(|| format!("mount {}", at.display()))?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, at, none, flags, none).with_context(|| format!("make {} read-only", at.display()))
}

/// A /run of the pod's own, with the service account where pods find it.
fn own_run(account: &Path) -> anyhow::Result<()> {
    let run = fs::canonicalize("/var/run").context("find /var/run")?;
    ensure!(!account.starts_with(&run), "with a host cluster the box's folder cannot be in {}", run.display());
    let resolv_conf = fs::canonicalize("/etc/resolv.conf").context("find /etc/resolv.conf")?;
    mount(Some("tmpfs"), &run, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mount /run")?;
    if resolv_conf.starts_with(&run) {
        fs::create_dir_all(resolv_conf.parent().context("its folder")?)?;
        File::create(&resolv_conf)?;
    }
    let at = run.join("secrets/kubernetes.io/serviceaccount");
    fs::create_dir_all(&at)?;
    mount_read_only(account, &at)
}
