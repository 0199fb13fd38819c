//! What is needed to run one child process. Plain values, made by [`crate::etcd::args`] and [`crate::serve::distro`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use crate::settings::env::{Env, ProcessEnv};

/// A child's part in the pod, which decides its place in the start and stop order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// etcd: started first, stopped last.
    Etcd,
    /// kine on SQLite, in etcd's place while embedded etcd is off.
    Kine,
    /// kube-apiserver, k3s, k0s or the wrapped command: started when the datastore serves.
    ApiServer,
    /// kube-controller-manager: started when the API server is ready.
    ControllerManager,
    /// kube-scheduler: started when the API server is ready.
    Scheduler,
}

impl Role {
    /// The name in log lines.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Etcd => "etcd",
            Role::Kine => "kine",
            Role::ApiServer => "apiserver",
            Role::ControllerManager => "controller-manager",
            Role::Scheduler => "scheduler",
        }
    }
}

/// How to start one child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildSpec {
    /// Its part.
    pub role: Role,
    /// The program's file, or a bare name to be found in `PATH`.
    pub program: PathBuf,
    /// Arguments without the program's name.
    pub args: Vec<OsString>,
    /// Variables to set; the rest is inherited, less those with a prefix in `env_remove_prefixes`.
    pub env: BTreeMap<String, OsString>,
    /// Inherited variables whose name starts so are removed (`ETCD_`: Kubernetes service links inject `ETCD_PORT`); those
    /// that stand for flags of ours, such as `SYNCER_TOKEN`, are removed from every child.
    pub env_remove_prefixes: Vec<&'static str>,
    /// Working directory.
    pub cwd: Option<PathBuf>,
    /// How it tells that it serves.
    pub ready: Ready,
    /// How its output is to be read.
    pub log: LogFormat,
    /// From SIGTERM to SIGKILL.
    pub stop_grace: Duration,
}

/// Inherited variables that a datastore or a controller has no use for, by the beginnings of their names: what would
/// mislead etcd or kine, what is ours, and what may hold secrets.
pub const OF_NO_USE: &[&str] = &["ETCD_", "KINE_", "SYNCER_", "AWS_", "K3S_", "VCLUSTER_"];

impl ChildSpec {
    /// Whether it is a command of the user's, of which nothing is known but that it runs.
    pub fn is_command(&self) -> bool {
        self.role == Role::ApiServer && self.ready == Ready::Started
    }

    /// Whether its program is there and may be run: as a file, or by its bare name in `PATH`.
    pub fn has_program(&self) -> bool {
        let runs = |file: &Path| file.is_file() && access(file, AccessFlags::X_OK).is_ok();
        if self.program.components().count() > 1 {
            return runs(&self.cwd.as_ref().map_or_else(|| self.program.clone(), |cwd| cwd.join(&self.program)));
        }
        let path = self.env.get("PATH").cloned().or_else(|| ProcessEnv.get_os("PATH"));
        path.is_some_and(|path| std::env::split_paths(&path).any(|folder| runs(&folder.join(&self.program))))
    }
}

/// How a child tells that it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// As soon as it runs.
    Started,
    /// etcd answers a linearizable read over the client port.
    EtcdLinearizableRead,
    /// Something accepts connections on this unix socket.
    UnixSocket(PathBuf),
    /// `GET https://ADDR/readyz` answers 200. The certificate is not verified: it is our own child on loopback.
    HttpsReadyz(SocketAddr),
}

impl Ready {
    /// What it is a question of.
    pub const fn what(&self) -> &'static str {
        match self {
            Ready::Started => "command",
            Ready::EtcdLinearizableRead => "etcd",
            Ready::UnixSocket(_) => "kine",
            Ready::HttpsReadyz(_) => "API server",
        }
    }
}

/// How a child's output lines are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// etcd's JSON (zap) lines.
    EtcdJson,
    /// klog lines (`I1122 10:00:00.000000 ...`), as the Kubernetes programs write them.
    Klog,
    /// Anything else: relayed as it is.
    Plain,
}
