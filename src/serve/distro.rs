//! Which processes serve the API of a virtual cluster, and how each is started: settings in, child specs out, no I/O.
//!
//! A command that the charts pass in the environment is run as it is given; only what vCluster itself adds when it
//! starts the distro is added, and no flag that is there is doubled. Without such a command the distro's default is
//! built. The sources are vCluster's charts and start code of 0.19 (`charts/*/templates/syncer.yaml`,
//! `pkg/{k3s,k0s,k8s}`) and of 0.20 and later (`pkg/k8s/k8s.go`, `pkg/k3s/k3s.go`, `pkg/k0s/k0s.go`).
//!
//! | distro | on etcd | on SQLite |
//! |---|---|---|
//! | k8s, eks | kube-apiserver, kube-controller-manager, kube-scheduler if enabled | the same, and kine before them |
//! | k3s | k3s with `--datastore-*` | k3s, which has its own SQLite |
//! | k0s | k0s with an external etcd in its configuration | k0s with its own kine |
//! | none | nothing | refused: nothing would run |
//! | `-- COMMAND` | COMMAND, with etcd's address in its environment | COMMAND |

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::flags::Flags;
use super::health::Serves;
use super::{k0s, k3s, k8s};
use crate::settings::env::{Env, ProcessEnv};
use crate::settings::{Distro, DistroCommand, Settings};
use crate::supervise::spec::{ChildSpec, LogFormat, Ready, Role};

/// From SIGTERM to SIGKILL for an API server: with open watches it would take a minute to stop by itself.
pub const STOP_GRACE: Duration = Duration::from_secs(3);

/// The longest path of a unix socket (`sun_path` less its terminating zero, unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Where the API server keeps its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The embedded etcd, on loopback at the client port, over TLS.
    Etcd,
    /// A SQLite file, through kine where the distro does not have its own.
    Sqlite {
        /// The file, `<data>/state.db` for k8s.
        state_db: PathBuf,
        /// kine's unix socket, `<data>/kine.sock`.
        socket: PathBuf,
    },
}

impl Backend {
    /// SQLite at the place where this distro has it by default.
    pub fn sqlite(settings: &Settings) -> Backend {
        let candidates = settings.state_db_candidates();
        let state_db = candidates.into_iter().next().unwrap_or_else(|| settings.data_dir.join("state.db"));
        Backend::Sqlite { state_db, socket: settings.data_dir.join("kine.sock") }
    }
}

/// What had to be read or made before the processes can be described: see [`super::prepare`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// The k3s token.
    pub k3s_token: Option<String>,
}

/// Why the processes cannot be described. Each is a contradiction in what the user gave, and says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The command of a distro is empty.
    #[error("{variable} has no command; give `command: [PROGRAM, ARGUMENTS...]` or unset it for the default")]
    EmptyCommand {
        /// The environment variable, or `--`.
        variable: &'static str,
    },
    /// The command names a datastore that is not the embedded etcd, which is enabled.
    #[error(
        "the API server's command has {flag}={given}, but embedded etcd is enabled and serves {ours}; \
         set {flag}={ours} or take the flag out of the command"
    )]
    OtherDatastore {
        /// The flag.
        flag: &'static str,
        /// Its value.
        given: String,
        /// What it should be.
        ours: String,
    },
    /// The command wants the embedded etcd, which is disabled.
    #[error(
        "the API server's command has {flag}={given}, but embedded etcd is disabled; switch it on \
         or take the flag out of the command"
    )]
    EtcdIsOff {
        /// The flag.
        flag: &'static str,
        /// Its value.
        given: String,
    },
    /// Probes could not reach the API server's health endpoints.
    #[error(
        "the API server's command has anonymous-auth=false, so that the kubelet's probes on port 8443 would get 401; \
         take it out, or allow anonymous requests to /livez, /readyz and /healthz alone with authentication-config \
         (Kubernetes 1.32 and newer)"
    )]
    AnonymousAuthOff,
    /// The value of a flag is not what its program takes.
    #[error("{flag}={given} is not a port between 1 and 65535")]
    NotAPort {
        /// The flag.
        flag: &'static str,
        /// Its value.
        given: String,
    },
    /// The path of a unix socket is too long for the kernel.
    #[error("{} is longer than {SOCKET_PATH_MAX} bytes, too long for a unix socket; use a shorter --data-dir", .0.display())]
    SocketPath(PathBuf),
    /// A path cannot stand in the argument or connection text that it has to stand in.
    #[error("{} cannot be passed to {program}: {reason}; use another --data-dir", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Who would get it.
        program: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No API server and no datastore.
    #[error("distro none with embedded etcd disabled runs nothing; switch it on, or choose a distro")]
    NothingToRun,
    /// k3s needs a token and none was prepared.
    #[error("there is no k3s token")]
    NoToken,
    /// The k0s configuration cannot be used.
    #[error("the k0s configuration in the values: {0}")]
    K0sConfig(String),
}

/// Describes the processes, in the order in which they start.
pub fn specs(settings: &Settings, backend: &Backend, prepared: &Prepared) -> Result<Vec<ChildSpec>, SpecError> {
    if let Some(command) = &settings.wrapped {
        return wrapped(settings, backend, command).map(|spec| vec![spec]);
    }
    match settings.distro {
        Distro::K8s | Distro::Eks => k8s::specs(settings, backend),
        Distro::K3s => k3s::specs(settings, backend, prepared),
        Distro::K0s => k0s::specs(settings, backend),
        Distro::None if *backend == Backend::Etcd => Ok(Vec::new()),
        Distro::None => Err(SpecError::NothingToRun),
    }
}

/// What port 8443 leads to here.
pub fn serves(settings: &Settings) -> Serves {
    if settings.wrapped.is_some() {
        Serves::Command
    } else if settings.distro == Distro::None {
        Serves::DatastoreOnly
    } else {
        Serves::ApiServer
    }
}

/// Where the API server among `specs` listens, from its readiness check.
pub fn apiserver_address(specs: &[ChildSpec]) -> Option<SocketAddr> {
    specs.iter().find_map(|spec| match (spec.role, &spec.ready) {
        (Role::ApiServer, Ready::HttpsReadyz(address)) => Some(*address),
        _ => None,
    })
}

/// `start ... -- COMMAND`. Whether it is an API server, and on which port, is not known: it is ready when it runs.
/// etcd's address and client certificate are in its environment under etcdctl's names.
fn wrapped(settings: &Settings, backend: &Backend, command: &[OsString]) -> Result<ChildSpec, SpecError> {
    let (program, args) = command.split_first().ok_or(SpecError::EmptyCommand { variable: "--" })?;
    let mut spec = child(Role::ApiServer, PathBuf::from(program), Vec::new());
    spec.args = args.to_vec();
    spec.log = LogFormat::Plain;
    if *backend == Backend::Etcd {
        let files = EtcdClientFiles::of(&settings.pki_dir);
        spec.env = BTreeMap::from([
            ("ETCDCTL_ENDPOINTS".to_owned(), etcd_endpoint(settings, "127.0.0.1").into()),
            ("ETCDCTL_CACERT".to_owned(), files.ca.into()),
            ("ETCDCTL_CERT".to_owned(), files.cert.into()),
            ("ETCDCTL_KEY".to_owned(), files.key.into()),
        ]);
    }
    Ok(spec)
}

/// What a client of etcd reads, at vCluster's names.
pub(super) struct EtcdClientFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl EtcdClientFiles {
    pub fn of(pki: &Path) -> EtcdClientFiles {
        EtcdClientFiles {
            ca: pki.join("etcd/ca.crt"),
            cert: pki.join("apiserver-etcd-client.crt"),
            key: pki.join("apiserver-etcd-client.key"),
        }
    }
}

/// The URL of the embedded etcd; `host` is a name of loopback.
pub(super) fn etcd_endpoint(settings: &Settings, host: &str) -> String {
    format!("https://{host}:{}", settings.listen.client_port)
}

/// Whether a `--etcd-servers` or `--datastore-endpoint` value means the embedded etcd and nothing else.
pub(super) fn is_embedded_etcd(settings: &Settings, value: &str) -> bool {
    !value.is_empty()
        && value.split(',').all(|endpoint| {
            let address = endpoint.trim().strip_prefix("https://").unwrap_or("").trim_end_matches('/');
            ["127.0.0.1", "localhost", "[::1]"]
                .iter()
                .any(|host| address == format!("{host}:{}", settings.listen.client_port))
        })
}

/// Whether the API server's command, or k3s' environment, names a datastore, or k0s' own configuration may.
pub fn may_have_another(settings: &Settings) -> bool {
    let programs = &settings.programs;
    let of = |command: &DistroCommand| Flags(command.command.iter().chain(&command.args).cloned().collect());
    let commands = programs.vcluster.iter().chain(&programs.apiserver).map(of);
    let named = |flags: Flags| ["datastore-endpoint", "etcd-servers"].iter().any(|name| flags.has(name));
    programs.k0s_config.is_some()
        || ProcessEnv.get_os("K3S_DATASTORE_ENDPOINT").is_some()
        || commands.chain([Flags(programs.apiserver_extra_args.clone())]).any(named)
}

/// Splits a command of the charts into program and flags.
pub(super) fn split(command: &DistroCommand, variable: &'static str) -> Result<(PathBuf, Flags), SpecError> {
    let mut tokens = command.command.iter().chain(&command.args).cloned();
    match tokens.next() {
        Some(program) if !program.is_empty() => Ok((PathBuf::from(program), Flags(tokens.collect()))),
        _ => Err(SpecError::EmptyCommand { variable }),
    }
}

/// A port from a flag, or the default where the flag is not there.
pub(super) fn port(flags: &Flags, flag: &'static str, default: u16) -> Result<u16, SpecError> {
    match flags.value(flag) {
        None => Ok(default),
        Some(given) => match given.parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(SpecError::NotAPort { flag, given: given.to_owned() }),
        },
    }
}

pub(super) fn readyz(port: u16) -> Ready {
    Ready::HttpsReadyz(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

/// A path as the text of an argument.
pub(super) fn text(path: &Path, program: &'static str) -> Result<String, SpecError> {
    path.to_str().map(str::to_owned).ok_or_else(|| SpecError::Path {
        path: path.to_owned(),
        program,
        reason: "it is not UTF-8",
    })
}

pub(super) fn socket_fits(path: &Path) -> Result<(), SpecError> {
    if path.as_os_str().len() > SOCKET_PATH_MAX { Err(SpecError::SocketPath(path.to_owned())) } else { Ok(()) }
}

/// A child with what all of them share.
pub(super) fn child(role: Role, program: PathBuf, args: Vec<String>) -> ChildSpec {
    ChildSpec {
        role,
        program,
        args: args.into_iter().map(OsString::from).collect(),
        env: BTreeMap::new(),
        // Kubernetes injects ETCD_PORT and the like for a Service called etcd.
        env_remove_prefixes: vec!["ETCD_"],
        cwd: None,
        ready: Ready::Started,
        log: LogFormat::Klog,
        stop_grace: STOP_GRACE,
    }
}
