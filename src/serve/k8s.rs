//! k8s and eks: upstream kube-apiserver, kube-controller-manager and kube-scheduler, and kine in etcd's place on SQLite.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::distro::{
    Backend, EtcdClientFiles, SpecError, child, etcd_endpoint, is_embedded_etcd, port, readyz, socket_fits, split, text,
};
use super::flags::Flags;
use crate::settings::provenance::without_user;
use crate::settings::{Distro, Settings};
use crate::supervise::spec::{ChildSpec, LogFormat, OF_NO_USE, Ready, Role};

/// vCluster's parameters for kine's SQLite (`pkg/k8s/k8s.go`).
const SQLITE_PARAMETERS: &str = "_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate";

/// kine finishes its transaction and stops at once; it has no connections worth waiting for.
const KINE_STOP_GRACE: Duration = Duration::from_secs(3);

/// With open watches it does not end by itself for a minute; without, requests in flight are answered within this time.
const APISERVER_STOP_GRACE: Duration = Duration::from_secs(2);

pub(super) fn specs(settings: &Settings, backend: &Backend) -> Result<Vec<ChildSpec>, SpecError> {
    let (apiserver, datastore) = apiserver(settings, backend)?;
    let mut specs = Vec::new();
    if let (Datastore::Ours, Backend::Sqlite { state_db, socket }) = (datastore, backend) {
        specs.push(kine(settings, state_db, socket)?);
    }
    specs.push(apiserver);
    if settings.programs.controller.is_some() || !settings.programs.controller_disabled {
        specs.push(controller_manager(settings)?);
    }
    if settings.programs.scheduler.is_some() || settings.programs.scheduler_enabled {
        specs.push(scheduler(settings)?);
    }
    // The API server keeps the environment that the charts gave it: an encryption provider of its may need it.
    for companion in specs.iter_mut().filter(|spec| matches!(spec.role, Role::ControllerManager | Role::Scheduler)) {
        companion.env_remove_prefixes = OF_NO_USE.to_vec();
    }
    Ok(specs)
}

/// Whose datastore the API server uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Datastore {
    /// The embedded etcd, or kine.
    Ours,
    /// One that the given command names while embedded etcd is disabled: a deployed etcd, say.
    AsGiven,
}

fn kine(settings: &Settings, state_db: &Path, socket: &Path) -> Result<ChildSpec, SpecError> {
    socket_fits(socket)?;
    let file = text(state_db, "kine")?;
    if file.contains('?') {
        return Err(SpecError::Path { path: state_db.to_owned(), program: "kine", reason: "it contains a '?'" });
    }
    let mut flags = Flags::default();
    flags.set("endpoint", format!("sqlite://{file}?{SQLITE_PARAMETERS}"));
    flags.set("listen-address", format!("unix://{}", text(socket, "kine")?));
    flags.set("metrics-bind-address", "0");
    let mut spec = child(Role::Kine, settings.program("kine"), flags.0);
    spec.env_remove_prefixes = OF_NO_USE.to_vec();
    spec.ready = Ready::UnixSocket(socket.to_owned());
    spec.log = LogFormat::Plain;
    spec.stop_grace = KINE_STOP_GRACE;
    Ok(spec)
}

fn apiserver(settings: &Settings, backend: &Backend) -> Result<(ChildSpec, Datastore), SpecError> {
    let (program, mut flags) = match &settings.programs.apiserver {
        Some(command) => split(command, "APISERVER_COMMAND")?,
        None => (settings.program("kube-apiserver"), apiserver_defaults(settings)?),
    };
    flags.extend_by(&settings.programs.apiserver_extra_args);
    let datastore = add_datastore(settings, backend, &mut flags)?;
    flags.add_missing("service-cluster-ip-range", &settings.service_cidr);
    if flags.value("anonymous-auth") == Some("false") {
        return Err(SpecError::AnonymousAuthOff);
    }
    let port = port(&flags, "secure-port", settings.listen.apiserver_port)?;
    flags.add_missing("secure-port", port.to_string());
    let mut spec = child(Role::ApiServer, program, flags.0);
    spec.ready = readyz(port);
    spec.stop_grace = APISERVER_STOP_GRACE;
    Ok((spec, datastore))
}

fn add_datastore(settings: &Settings, backend: &Backend, flags: &mut Flags) -> Result<Datastore, SpecError> {
    const FLAG: &str = "etcd-servers";
    let given = flags.value(FLAG).map(str::to_owned);
    match backend {
        Backend::Etcd => {
            let ours = etcd_endpoint(settings, "127.0.0.1");
            if let Some(given) = given.filter(|given| !is_embedded_etcd(settings, given)) {
                return Err(SpecError::OtherDatastore { flag: "--etcd-servers", given: without_user(&given), ours });
            }
            let files = EtcdClientFiles::of(&settings.pki_dir);
            flags.add_missing("etcd-cafile", text(&files.ca, "kube-apiserver")?);
            flags.add_missing("etcd-certfile", text(&files.cert, "kube-apiserver")?);
            flags.add_missing("etcd-keyfile", text(&files.key, "kube-apiserver")?);
            flags.add_missing(FLAG, ours);
            Ok(Datastore::Ours)
        }
        Backend::Sqlite { socket, .. } => match given {
            Some(given) if is_embedded_etcd(settings, &given) => {
                Err(SpecError::EtcdIsOff { flag: "--etcd-servers", given: without_user(&given) })
            }
            Some(_) => Ok(Datastore::AsGiven),
            None => {
                flags.set(FLAG, format!("unix://{}", text(socket, "kube-apiserver")?));
                Ok(Datastore::Ours)
            }
        },
    }
}

/// The command of the k8s chart (0.19) and of `pkg/k8s/k8s.go` (0.20 and later) without its datastore.
fn apiserver_defaults(settings: &Settings) -> Result<Flags, SpecError> {
    let pki = |name: &str| text(&settings.pki_dir.join(name), "kube-apiserver");
    let mut flags = Flags::default();
    flags.set("advertise-address", "127.0.0.1");
    flags.set("bind-address", "127.0.0.1");
    flags.set("allow-privileged", "true");
    flags.set("authorization-mode", "Node,RBAC");
    flags.set("client-ca-file", pki("ca.crt")?);
    flags.set("enable-bootstrap-token-auth", "true");
    flags.set("endpoint-reconciler-type", "none");
    flags.set("profiling", "false");
    flags.set("proxy-client-cert-file", pki("front-proxy-client.crt")?);
    flags.set("proxy-client-key-file", pki("front-proxy-client.key")?);
    flags.set("requestheader-allowed-names", "front-proxy-client");
    flags.set("requestheader-client-ca-file", pki("front-proxy-ca.crt")?);
    flags.set("requestheader-extra-headers-prefix", "X-Remote-Extra-");
    flags.set("requestheader-group-headers", "X-Remote-Group");
    flags.set("requestheader-username-headers", "X-Remote-User");
    flags.set("service-account-issuer", format!("https://kubernetes.default.svc.{}", settings.cluster_domain));
    flags.set("service-account-key-file", pki("sa.pub")?);
    flags.set("service-account-signing-key-file", pki("sa.key")?);
    flags.set("tls-cert-file", pki("apiserver.crt")?);
    flags.set("tls-private-key-file", pki("apiserver.key")?);
    flags.set("watch-cache", "false");
    Ok(flags)
}

fn controller_manager(settings: &Settings) -> Result<ChildSpec, SpecError> {
    let (program, mut flags) = match &settings.programs.controller {
        Some(command) => split(command, "CONTROLLER_COMMAND")?,
        None => (settings.program("kube-controller-manager"), controller_defaults(settings)?),
    };
    flags.extend_by(&settings.programs.controller_extra_args);
    flags.add_missing("service-cluster-ip-range", &settings.service_cidr);
    Ok(companion(settings, Role::ControllerManager, program, flags))
}

fn controller_defaults(settings: &Settings) -> Result<Flags, SpecError> {
    let pki = |name: &str| text(&settings.pki_dir.join(name), "kube-controller-manager");
    let scheduler = settings.programs.scheduler.is_some() || settings.programs.scheduler_enabled;
    let mut flags = Flags::default();
    flags.set("authentication-kubeconfig", pki("controller-manager.conf")?);
    flags.set("authorization-kubeconfig", pki("controller-manager.conf")?);
    flags.set("bind-address", "127.0.0.1");
    flags.set("client-ca-file", pki("ca.crt")?);
    flags.set("cluster-name", "kubernetes");
    flags.set("cluster-signing-cert-file", pki("ca.crt")?);
    flags.set("cluster-signing-key-file", pki("ca.key")?);
    flags.set("controllers", controllers(scheduler || settings.distro == Distro::Eks));
    flags.set("horizontal-pod-autoscaler-sync-period", "60s");
    flags.set("kubeconfig", pki("controller-manager.conf")?);
    flags.set("leader-elect", leader_elect(settings));
    // Nodes of a virtual cluster are kept by the syncing side; with a scheduler of its own none may be given up.
    let (grace, period) = if scheduler { ("1h", "1h") } else { ("180s", "30s") };
    flags.set("node-monitor-grace-period", grace);
    flags.set("node-monitor-period", period);
    flags.set("pvclaimbinder-sync-period", "60s");
    flags.set("requestheader-client-ca-file", pki("front-proxy-ca.crt")?);
    flags.set("root-ca-file", pki("ca.crt")?);
    flags.set("service-account-private-key-file", pki("sa.key")?);
    flags.set("use-service-account-credentials", "true");
    Ok(flags)
}

/// The controllers that vCluster leaves on: those that would act on nodes and volumes belong to the host cluster.
pub(super) fn controllers(node_lifecycle: bool) -> String {
    let node_lifecycle = if node_lifecycle { "" } else { ",-nodelifecycle" };
    format!(
        "*,-nodeipam{node_lifecycle},-persistentvolume-binder,-attachdetach,-persistentvolume-expander,\
         -cloud-node-lifecycle,-ttl"
    )
}

fn scheduler(settings: &Settings) -> Result<ChildSpec, SpecError> {
    let (program, mut flags) = match &settings.programs.scheduler {
        Some(command) => split(command, "SCHEDULER_COMMAND")?,
        None => {
            let conf = text(&settings.pki_dir.join("scheduler.conf"), "kube-scheduler")?;
            let mut flags = Flags::default();
            flags.set("authentication-kubeconfig", &conf);
            flags.set("authorization-kubeconfig", &conf);
            flags.set("bind-address", "127.0.0.1");
            flags.set("kubeconfig", &conf);
            flags.set("leader-elect", leader_elect(settings));
            (settings.program("kube-scheduler"), flags)
        }
    };
    flags.extend_by(&settings.programs.scheduler_extra_args);
    Ok(companion(settings, Role::Scheduler, program, flags))
}

fn companion(settings: &Settings, role: Role, program: PathBuf, mut flags: Flags) -> ChildSpec {
    // Outside a pod several virtual clusters share a loopback, where the programs' fixed ports would clash.
    if !settings.pod.in_pod {
        flags.add_missing("secure-port", "0");
    }
    child(role, program, flags.0)
}

fn leader_elect(settings: &Settings) -> &'static str {
    if settings.etcd.replicas > 1 { "true" } else { "false" }
}
