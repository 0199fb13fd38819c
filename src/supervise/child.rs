//! One child process: started in a process group of its own, bound to our life, stopped by a ladder of signals.
//!
//! * **Bound to our life.** The kernel sends every child SIGKILL when we die, however we die. Not SIGTERM: etcd with an
//!   open watch takes 7 s and kube-apiserver a minute to follow it, and until then ports and data dir are taken; etcd,
//!   kine and SQLite are made to be killed, and the Kubernetes programs keep no state.
//! * The kernel means the *thread* that spawned. All children are therefore spawned by one thread that never ends, so
//!   that callers may spawn from wherever they run.
//! * The group gets SIGTERM as a whole, and SIGKILL as a whole once its leader has ended: nothing that a child has
//!   started outlives it. A process that leaves the group (k0s's own children) is left to its parent; in a pod it ends
//!   with PID 1 all the same.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use thiserror::Error;

use super::spec::{ChildSpec, Role};
use crate::datadir::DatadirLock;
use crate::settings::env;
use crate::settings::flags::Flags;

/// How long a child that is killed as it is dropped may take to end.
const DROPPED: Duration = Duration::from_secs(2);

/// A child was not started.
#[derive(Debug, Error)]
#[error("start {} ({})", role.name(), program.display())]
pub struct SpawnError {
    /// Which child.
    pub role: Role,
    /// Its program.
    pub program: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl SpawnError {
    /// Whether another try can help: not if the program is missing or cannot be executed.
    pub fn may_pass(&self) -> bool {
        let never = [libc::ENOENT, libc::EACCES, libc::ENOEXEC, libc::ENOTDIR, libc::EISDIR, libc::E2BIG, libc::EINVAL];
        !self.source.raw_os_error().is_some_and(|e| never.contains(&e))
            && self.source.kind() != io::ErrorKind::InvalidInput
    }
}

/// A running child, or one that has ended and was not yet seen to. Killed with its group when dropped.
#[derive(Debug)]
pub struct Child {
    role: Role,
    process: std::process::Child,
    pid: Pid,
    ended: Option<ExitStatus>,
}

/// The reading ends of a child's standard output and error.
#[derive(Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// Starts a child. `lock`, if given, is inherited, so that it stays taken for as long as the child lives.
pub fn spawn(spec: &ChildSpec, lock: Option<&DatadirLock>) -> Result<(Child, Output), SpawnError> {
    let failed = |source| SpawnError { role: spec.role, program: spec.program.clone(), source };
    let mut command = command(spec, &env::names());
    if let Some(lock) = lock {
        lock.inherit_into(&mut command).map_err(failed)?;
    }
    let mut process = on_lasting_thread(command).map_err(failed)?;
    let pid = i32::try_from(process.id()).map_err(|e| failed(io::Error::other(e)))?;
    let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
    let child = Child { role: spec.role, process, pid: Pid::from_raw(pid), ended: None };
    match (stdout, stderr) {
        (Some(out), Some(err)) => Ok((child, Output { stdout: out.into(), stderr: err.into() })),
        _ => Err(failed(io::Error::other("its output is not piped"))),
    }
}

/// What is run: everything but the lock. `inherited` are the names of the variables that we have.
fn command(spec: &ChildSpec, inherited: &[OsString]) -> Command {
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in scrubbed(inherited, &spec.env_remove_prefixes, &Flags::variables()) {
        command.env_remove(name);
    }
    command.envs(&spec.env);
    if let Some(cwd) = &spec.cwd {
        command.current_dir(cwd);
    }
    command.process_group(0);
    let parent = std::process::id();
    // SAFETY: prctl, getppid and raise are async-signal-safe, and the closure neither allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 {
                return Err(io::Error::last_os_error());
            }
            // Ours alone, and kept across exec; a child's memory is its own affair.
            libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0);
            // We may have died before the line above; the signal for that would never come.
            if u32::try_from(libc::getppid()) != Ok(parent) {
                libc::raise(libc::SIGKILL);
            }
            Ok(())
        });
    }
    command
}

/// The inherited variables that a child must not see: those with one of the prefixes, and our own settings.
fn scrubbed<'a>(names: &'a [OsString], prefixes: &[&str], ours: &[String]) -> Vec<&'a OsString> {
    let prefixed = |name: &OsString| prefixes.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
    names.iter().filter(|name| prefixed(name) || ours.iter().any(|own| name.as_os_str() == own.as_str())).collect()
}

type Job = (Command, mpsc::Sender<io::Result<std::process::Child>>);

/// Spawns from a thread that lasts as long as the process does.
fn on_lasting_thread(command: Command) -> io::Result<std::process::Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = match SPAWNER.get() {
        Some(spawner) => spawner,
        None => {
            let (jobs, queue) = mpsc::channel::<Job>();
            std::thread::Builder::new().name("spawner".into()).spawn(move || {
                while let Ok((mut command, done)) = queue.recv() {
                    // The caller waits for it.
                    let _ = done.send(command.spawn());
                }
            })?;
            // Of two threads made at once, the queue of one is dropped and that thread ends, unused.
            SPAWNER.get_or_init(|| jobs)
        }
    };
    let (done, result) = mpsc::channel();
    let gone = |_| io::Error::other("the spawning thread is gone");
    spawner.send((command, done)).map_err(|_| io::Error::other("the spawning thread is gone"))?;
    result.recv().map_err(gone)?
}

impl Child {
    /// Its part.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its process ID, which is also its group's.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has. What is left of its group is killed before the process ID is given back to the system,
    /// so that no stranger is hit.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_some() {
            return Ok(self.ended);
        }
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if matches!(waitid(Id::Pid(self.pid), look)?, WaitStatus::StillAlive) {
            return Ok(None);
        }
        self.signal(Signal::SIGKILL);
        self.ended = self.process.try_wait()?;
        Ok(self.ended)
    }

    /// Sends a signal to its whole group. Nothing happens once it has been waited for.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_some() {
            return;
        }
        match killpg(self.pid, signal) {
            // The group is gone, or only zombies are left of it.
            Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => {}
            Err(error) => tracing::warn!(child = self.role.name(), %error, "could not send {signal}"),
        }
    }

    /// SIGTERM, then after `grace` SIGKILL; blocks until it has ended.
    pub fn stop_blocking(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + grace;
        let mut killed = false;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if !killed && Instant::now() >= deadline {
                self.signal(Signal::SIGKILL);
                killed = true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_some() {
            return;
        }
        self.signal(Signal::SIGKILL);
        // One that waits for its disk ends when that answers, with whoever waits for it.
        let begun = Instant::now();
        while begun.elapsed() < DROPPED && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::spec::{LogFormat, OF_NO_USE, Ready};
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;

    fn shell(script: &str) -> ChildSpec {
        ChildSpec {
            role: Role::ApiServer,
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: BTreeMap::from([("GIVEN".to_owned(), "yes".into())]),
            env_remove_prefixes: vec!["CARGO_"],
            cwd: Some("/".into()),
            ready: Ready::Started,
            log: LogFormat::Plain,
            stop_grace: Duration::from_secs(1),
        }
    }

    fn first_line(output: OwnedFd) -> String {
        let mut file = std::fs::File::from(output);
        let (mut line, mut byte) = (Vec::new(), [0]);
        while file.read(&mut byte).expect("read the output") == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).expect("UTF-8")
    }

    fn gone(pid: i32) -> bool {
        // A process that is not ours to wait for may be a zombie for a moment.
        std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    }

    #[test]
    fn a_child_has_its_own_group_a_clean_environment_and_no_input() {
        let script =
            "read x && exit 9; echo $GIVEN ${CARGO_PKG_NAME-unset} $(pwd) $(ps -o pgid= -p $$) $$; exec sleep 60";
        let (mut child, output) = spawn(&shell(script), None).expect("start a shell");
        let line = first_line(output.stdout);
        let pid = child.pid().to_string();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["yes", "unset", "/", &pid, &pid]);
        assert!(child.try_wait().expect("look").is_none(), "it sleeps");
    }

    #[test]
    fn variables_are_removed_by_prefix() {
        let names = ["ETCD_PORT", "ETCD_", "ETCDCTL_API", "HOME", "MY_ETCD_"].map(OsString::from);
        assert_eq!(scrubbed(&names, &["ETCD_"], &[]), [&names[0], &names[1]]);
        assert_eq!(scrubbed(&names, &[], &[]), Vec::<&OsString>::new());
        // A command keeps its environment, but for our settings: SYNCER_PORT is Kubernetes', for a Service "syncer".
        let names =
            ["SYNCER_TOKEN", "SYNCER_DATA_DIR", "SYNCER_PORT", "AWS_REGION", "K3S_TOKEN", "PATH"].map(OsString::from);
        assert_eq!(scrubbed(&names, &["ETCD_"], &Flags::variables()), [&names[0], &names[1]]);
        assert_eq!(scrubbed(&names, OF_NO_USE, &[]), names[..5].iter().collect::<Vec<_>>());
    }

    #[test]
    fn stopping_ends_what_ignores_sigterm_and_what_it_started() {
        let (mut child, output) =
            spawn(&shell("trap '' TERM; sleep 300 & echo $!; wait"), None).expect("start a shell");
        let grandchild: i32 = first_line(output.stdout).parse().expect("a process ID");
        let begun = Instant::now();
        let status = child.stop_blocking(Duration::from_millis(200)).expect("stop it");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert!(begun.elapsed() >= Duration::from_millis(200), "SIGTERM first");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !gone(grandchild) {
            assert!(Instant::now() < deadline, "process {grandchild} outlives its group");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_a_child_leaves_behind_is_killed_when_its_end_is_seen() {
        let (mut child, output) = spawn(&shell("sleep 300 >/dev/null 2>&1 & echo $!; exit 3"), None).expect("start");
        let grandchild: i32 = first_line(output.stdout).parse().expect("a process ID");
        let deadline = Instant::now() + Duration::from_secs(5);
        let status = loop {
            if let Some(status) = child.try_wait().expect("look") {
                break status;
            }
            assert!(Instant::now() < deadline, "the shell does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(status.code(), Some(3));
        assert_eq!(child.try_wait().expect("look again").and_then(|s| s.code()), Some(3), "the status stays");
        while !gone(grandchild) {
            assert!(Instant::now() < deadline, "process {grandchild} outlives its group");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let spawned = std::thread::spawn(|| spawn(&shell("exec sleep 300"), None).expect("start")).join();
        let (mut child, _output) = spawned.expect("the thread ends well");
        // The signal would be sent when the thread ends, which has been.
        std::thread::sleep(Duration::from_millis(100));
        assert!(child.try_wait().expect("look").is_none(), "it was killed with the thread that asked for it");
    }

    #[test]
    fn a_program_that_cannot_be_run_is_named() {
        for (program, passes) in [("/nowhere/etcd", false), ("/", false), ("no-such-program-anywhere", false)] {
            let error = spawn(&ChildSpec { program: program.into(), ..shell("") }, None).expect_err(program);
            assert!(error.to_string().contains(program), "{error}");
            assert_eq!(error.may_pass(), passes, "{error:?}");
        }
    }

    #[test]
    fn dropping_kills() {
        let (child, _output) = spawn(&shell("exec sleep 300"), None).expect("start");
        let pid = child.pid().as_raw();
        drop(child);
        assert!(gone(pid), "process {pid} runs on");
    }
}
