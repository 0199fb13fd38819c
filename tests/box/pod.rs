//! A pod's process. A launcher (`statefulset pod`) takes namespaces of its own, sets up the pod in them, starts the
//! program as PID 1 of a new PID namespace, and ends as it ends. Both die with the box.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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

/// A pod that was started.
pub struct Started {
    /// Ends when and as the pod does.
    pub launcher: Child,
    /// The pod's process.
    pub pid: i32,
}

/// Starts a pod, with a link to the box.
pub fn start(network: &Network, exe: &Path, spec: &PodSpec, incarnation: u64) -> anyhow::Result<Started> {
    let mut command = Command::new(exe);
    command.arg("pod").arg(serde_json::to_string(spec)?).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.process_group(0);
    dies_with_parent(&mut command);
    // By the thread that lasts.
    let mut launcher = network.inside(move || command.spawn()).context("start the pod's launcher")?;
    let mut answers = BufReader::new(launcher.stdout.take().context("its output")?).lines();
    let mut orders = launcher.stdin.take().context("its input")?;
    let mut answer =
        move || answers.next().context("the pod's launcher ended; see the box's log")?.context("its output");
    let handshake = (|| {
        ensure!(answer()? == "unshared", "the pod's launcher does not say what it should");
        if spec.namespaces {
            network.attach(launcher.id(), incarnation, spec.address)?;
        }
        orders.write_all(b"go\n")?;
        let pid = answer()?;
        pid.strip_prefix("pid ").and_then(|n| n.parse().ok()).context("the pod's launcher names no process")
    })();
    match handshake {
        Ok(pid) => Ok(Started { launcher, pid }),
        Err(e) => {
            let _ = launcher.kill();
            let _ = launcher.wait();
            Err(e)
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

/// The launcher: `statefulset pod SPEC`. Gives the code to exit with.
pub fn launch(spec: &str) -> anyhow::Result<u8> {
    let spec: PodSpec = serde_json::from_str(spec).context("read the pod's specification")?;
    if spec.namespaces {
        let own =
            CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
        unshare(own).context("take namespaces")?;
    }
    println!("unshared");
    let mut order = String::new();
    std::io::stdin().read_line(&mut order)?;
    ensure!(order == "go\n", "the box is gone");
    if spec.namespaces {
        set_up(&spec)?;
        // Last: the next process that we start becomes PID 1.
        unshare(CloneFlags::CLONE_NEWPID).context("take a PID namespace")?;
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
fn set_up(spec: &PodSpec) -> anyhow::Result<()> {
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
