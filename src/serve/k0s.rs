//! k0s: one binary and a configuration file, which says where the objects are: the embedded etcd, or k0s' own kine.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::distro::{Backend, EtcdClientFiles, SpecError, child, is_embedded_etcd, readyz, socket_fits, split, text};
use super::flags::Flags;
use super::k8s::controllers;
use crate::pki::layout::{CA, FRONT_PROXY_CA, SA_KEY, SA_PUB};
use crate::settings::provenance::without_user;
use crate::settings::{Distro, Settings};
use crate::supervise::spec::{ChildSpec, LogFormat, Role};

/// What stands for the range of Service addresses in a configuration of the charts.
const CIDR_PLACEHOLDER: &str = "CIDR_PLACEHOLDER";

/// k0s' folder for sockets and pid files in the charts.
pub(super) const RUN_DIR: &str = "/run/k0s";

/// The file that k0s is to be started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct K0sConfig {
    /// Where the command looks for it.
    pub path: PathBuf,
    /// Its content, YAML.
    pub content: String,
    /// The API server's port in it.
    pub port: u16,
}

pub(super) fn specs(settings: &Settings, backend: &Backend) -> Result<Vec<ChildSpec>, SpecError> {
    let (program, flags) = command(settings)?;
    if let Some(socket) = flags.value("status-socket") {
        socket_fits(Path::new(socket))?;
    }
    let port = config(settings, backend)?.port;
    let mut spec = child(Role::ApiServer, program, flags.0);
    // The charts set it for k0s' own etcd, and k0s refuses an architecture without it whatever its store.
    spec.env.insert("ETCD_UNSUPPORTED_ARCH".to_owned(), "arm64".into());
    spec.ready = readyz(port);
    spec.log = LogFormat::Plain;
    Ok(vec![spec])
}

/// The folder of k0s' CAs and its key pair for tokens. `None`: k0s is not run by us here.
pub fn pki_dir(settings: &Settings) -> Option<PathBuf> {
    if settings.distro != Distro::K0s || settings.wrapped.is_some() {
        return None;
    }
    // A command that cannot be used is refused by who starts it.
    let (_, flags) = command(settings).ok()?;
    Some(Path::new(flags.value("data-dir").unwrap_or("/var/lib/k0s")).join("pki"))
}

/// The folder in which k0s would make CAs or a key pair for tokens, because some are missing there: no other pod's k0s
/// would have the same (`pkg/component/controller/certificates.go`). `None`: all are there, or k0s is not run by us here.
pub fn makes_cas(settings: &Settings) -> Option<PathBuf> {
    let dir = pki_dir(settings)?;
    let shared = [CA.cert, CA.key, FRONT_PROXY_CA.cert, FRONT_PROXY_CA.key, SA_KEY, SA_PUB];
    shared.iter().any(|file| !dir.join(file).exists()).then_some(dir)
}

/// The folder of `--status-socket`, which k0s wants empty at its start, if it is one that nothing else uses.
pub fn run_dir(settings: &Settings) -> Result<Option<PathBuf>, SpecError> {
    let (_, flags) = command(settings)?;
    let parent = flags.value("status-socket").and_then(|socket| Path::new(socket).parent());
    Ok(parent.filter(|p| *p == Path::new(RUN_DIR) || *p == own_run_dir(settings)).map(Path::to_owned))
}

fn own_run_dir(settings: &Settings) -> PathBuf {
    settings.data_dir.join("k0s-run")
}

fn command(settings: &Settings) -> Result<(PathBuf, Flags), SpecError> {
    let (program, mut flags) = match &settings.programs.vcluster {
        Some(command) => split(command, "VCLUSTER_COMMAND")?,
        None => (settings.program("k0s"), defaults(settings)?),
    };
    flags.extend_by(&settings.programs.apiserver_extra_args);
    Ok((program, flags))
}

/// `vcluster.baseArgs` of the k0s chart with what its template adds. Outside a pod everything stays in the data dir.
fn defaults(settings: &Settings) -> Result<Flags, SpecError> {
    let pod = settings.pod.in_pod;
    let config = if pod { PathBuf::from("/tmp/k0s-config.yaml") } else { settings.data_dir.join("k0s-config.yaml") };
    let run = if pod { PathBuf::from(RUN_DIR) } else { own_run_dir(settings) };
    let scheduler = if settings.programs.scheduler_enabled { "" } else { "kube-scheduler," };
    let mut flags = Flags(vec!["controller".to_owned()]);
    flags.set("config", text(&config, "k0s")?);
    flags.set("data-dir", text(&settings.data_dir.join("k0s"), "k0s")?);
    flags.set("status-socket", text(&run.join("status.sock"), "k0s")?);
    flags.set(
        "disable-components",
        format!(
            "konnectivity-server,{scheduler}csr-approver,kube-proxy,coredns,network-provider,helm,metrics-server,\
             worker-config"
        ),
    );
    Ok(flags)
}

/// Renders the configuration file: the one in the values or the chart's default, with the range of Service addresses
/// filled in, the store made explicit, and probes allowed.
pub fn config(settings: &Settings, backend: &Backend) -> Result<K0sConfig, SpecError> {
    let (_, flags) = command(settings)?;
    let path = flags.value("config").filter(|p| !p.is_empty()).unwrap_or("/tmp/k0s-config.yaml");
    let mut root = match &settings.programs.k0s_config {
        Some(given) => parse(&given.replace(CIDR_PLACEHOLDER, &settings.service_cidr))?,
        None => default_config(settings),
    };
    let spec = object(&mut root, "spec")?;
    let port = api(settings, object(spec, "api")?)?;
    store(settings, backend, spec)?;
    let content = serde_yaml::to_string(&root).map_err(|e| SpecError::K0sConfig(e.to_string()))?;
    Ok(K0sConfig { path: PathBuf::from(path), content, port })
}

fn parse(given: &str) -> Result<Map<String, Value>, SpecError> {
    if given.contains("{{") {
        return Err(SpecError::K0sConfig("it is a template; write the values out instead of {{ ... }}".to_owned()));
    }
    match serde_yaml::from_str(given) {
        Ok(Value::Object(root)) => Ok(root),
        Ok(_) => Err(SpecError::K0sConfig("it is not a mapping".to_owned())),
        Err(error) => Err(SpecError::K0sConfig(error.to_string())),
    }
}

/// The mapping under `key`, made if it is missing or null.
fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Map<String, Value>, SpecError> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().ok_or_else(|| SpecError::K0sConfig(format!("{key} is not a mapping")))
}

fn api(settings: &Settings, api: &mut Map<String, Value>) -> Result<u16, SpecError> {
    let port = api.entry("port").or_insert_with(|| json!(settings.listen.apiserver_port));
    let port = match port.as_u64().and_then(|p| u16::try_from(p).ok()) {
        Some(port) if port > 0 => port,
        _ => return Err(SpecError::NotAPort { flag: "spec.api.port", given: port.to_string() }),
    };
    // k0s turns anonymous requests off unless told otherwise; the kubelet's probes come to /readyz without a name.
    let extra = object(api, "extraArgs")?;
    match extra.get("anonymous-auth") {
        Some(Value::Bool(false)) => return Err(SpecError::AnonymousAuthOff),
        Some(Value::String(s)) if s == "false" => return Err(SpecError::AnonymousAuthOff),
        Some(_) => {}
        None if extra.contains_key("authentication-config") => {}
        None => {
            extra.insert("anonymous-auth".to_owned(), json!("true"));
        }
    }
    Ok(port)
}

fn store(settings: &Settings, backend: &Backend, spec: &mut Map<String, Value>) -> Result<(), SpecError> {
    const FLAG: &str = "spec.storage.etcd.externalCluster.endpoints";
    let given = spec.get("storage").filter(|s| !s.is_null());
    let endpoints =
        given.and_then(|s| s.pointer("/etcd/externalCluster/endpoints")).and_then(Value::as_array).map(|e| {
            e.iter()
                .map(|e| format!("https://{}", e.as_str().unwrap_or("?").trim_start_matches("https://")))
                .collect::<Vec<_>>()
        });
    let embedded = endpoints.as_ref().is_some_and(|e| is_embedded_etcd(settings, &e.join(",")));
    match backend {
        Backend::Etcd if given.is_none() => {
            spec.insert("storage".to_owned(), external_cluster(settings)?);
            Ok(())
        }
        Backend::Etcd if embedded => Ok(()),
        Backend::Etcd => Err(SpecError::OtherDatastore {
            flag: FLAG,
            given: endpoints.map_or_else(|| "(k0s' own store)".to_owned(), |e| without_user(&e.join(","))),
            ours: format!("127.0.0.1:{}", settings.listen.client_port),
        }),
        Backend::Sqlite { .. } if embedded => {
            Err(SpecError::EtcdIsOff { flag: FLAG, given: without_user(&endpoints.unwrap_or_default().join(",")) })
        }
        Backend::Sqlite { state_db, .. } if given.is_none() => {
            let file = text(state_db, "k0s")?;
            let source = format!("sqlite://{file}?mode=rwc&_journal=WAL&cache=shared");
            spec.insert("storage".to_owned(), json!({"type": "kine", "kine": {"dataSource": source}}));
            Ok(())
        }
        Backend::Sqlite { .. } => Ok(()),
    }
}

/// The block that the k0s chart writes for embedded etcd.
fn external_cluster(settings: &Settings) -> Result<Value, SpecError> {
    let files = EtcdClientFiles::of(&settings.pki_dir);
    Ok(json!({"type": "etcd", "etcd": {"externalCluster": {
        "endpoints": [format!("127.0.0.1:{}", settings.listen.client_port)],
        "caFile": text(&files.ca, "k0s")?,
        "etcdPrefix": "/registry",
        "clientCertFile": text(&files.cert, "k0s")?,
        "clientKeyFile": text(&files.key, "k0s")?,
    }}}))
}

/// The chart's default configuration.
fn default_config(settings: &Settings) -> Map<String, Value> {
    let scheduler = settings.programs.scheduler_enabled;
    let mut manager = Map::new();
    manager.insert("controllers".to_owned(), json!(controllers(scheduler)));
    if scheduler {
        manager.insert("node-monitor-grace-period".to_owned(), json!("1h"));
        manager.insert("node-monitor-period".to_owned(), json!("1h"));
    }
    let root = json!({
        "apiVersion": "k0s.k0sproject.io/v1beta1",
        "kind": "Cluster",
        "metadata": {"name": "k0s"},
        "spec": {
            "api": {
                "port": settings.listen.apiserver_port,
                "k0sApiPort": 9443,
                "extraArgs": {
                    "bind-address": "127.0.0.1",
                    "enable-admission-plugins": "NodeRestriction",
                    "endpoint-reconciler-type": "none",
                },
            },
            "network": {
                "serviceCIDR": settings.service_cidr,
                "provider": "custom",
                "clusterDomain": settings.cluster_domain,
            },
            "controllerManager": {"extraArgs": manager},
        },
    });
    match root {
        Value::Object(root) => root,
        _ => Map::new(),
    }
}
