//! k3s: one binary, on etcd by its datastore flags, on SQLite by itself.

use super::distro::{
    Backend, EtcdClientFiles, Prepared, SpecError, child, etcd_endpoint, is_embedded_etcd, port, readyz, split, text,
};
use super::flags::Flags;
use super::k8s::controllers;
use crate::settings::Settings;
use crate::settings::provenance::without_user;
use crate::supervise::spec::{ChildSpec, LogFormat, Role};

const DATASTORE: &str = "datastore-endpoint";

pub(super) fn specs(settings: &Settings, backend: &Backend, prepared: &Prepared) -> Result<Vec<ChildSpec>, SpecError> {
    let (program, mut flags) = match &settings.programs.vcluster {
        Some(command) => split(command, "VCLUSTER_COMMAND")?,
        None => (settings.program("k3s"), defaults(settings)?),
    };
    flags.extend_by(&settings.programs.apiserver_extra_args);
    add_datastore(settings, backend, &mut flags)?;
    // The two that vCluster appends to the command, in its spelling.
    if !flags.has("service-cidr") {
        flags.0.extend(["--service-cidr".to_owned(), settings.service_cidr.clone()]);
    }
    if !flags.has("token") && !flags.has("token-file") {
        let token = prepared.k3s_token.as_deref().ok_or(SpecError::NoToken)?;
        flags.0.extend(["--token".to_owned(), token.trim().to_owned()]);
    }
    allow_probes(&mut flags)?;
    let port = port(&flags, "https-listen-port", settings.listen.apiserver_port)?;
    if port != 6443 {
        flags.add_missing("https-listen-port", port.to_string());
    }
    let mut spec = child(Role::ApiServer, program, flags.0);
    spec.ready = readyz(port);
    spec.log = LogFormat::Plain;
    Ok(vec![spec])
}

fn add_datastore(settings: &Settings, backend: &Backend, flags: &mut Flags) -> Result<(), SpecError> {
    let given = flags.value(DATASTORE).map(str::to_owned);
    match backend {
        Backend::Etcd => {
            let ours = etcd_endpoint(settings, "localhost");
            if let Some(given) = given.filter(|given| !is_embedded_etcd(settings, given)) {
                return Err(SpecError::OtherDatastore {
                    flag: "--datastore-endpoint",
                    given: without_user(&given),
                    ours,
                });
            }
            let files = EtcdClientFiles::of(&settings.pki_dir);
            flags.add_missing(DATASTORE, ours);
            flags.add_missing("datastore-cafile", text(&files.ca, "k3s")?);
            flags.add_missing("datastore-certfile", text(&files.cert, "k3s")?);
            flags.add_missing("datastore-keyfile", text(&files.key, "k3s")?);
            Ok(())
        }
        Backend::Sqlite { .. } => match given {
            Some(given) if is_embedded_etcd(settings, &given) => {
                Err(SpecError::EtcdIsOff { flag: "--datastore-endpoint", given: without_user(&given) })
            }
            _ => Ok(()),
        },
    }
}

/// k3s turns anonymous requests off unless told otherwise, and `/readyz` would answer 401 to us and to the kubelet's
/// probes, which reach it through port 8443. With them on, RBAC still gives the anonymous user the health and version
/// endpoints alone, which is upstream's default.
fn allow_probes(flags: &mut Flags) -> Result<(), SpecError> {
    let given: Vec<_> = flags.values("kube-apiserver-arg").iter().filter_map(|a| a.split_once('=')).collect();
    let value = |name: &str| given.iter().rev().find(|(n, _)| n.trim_start_matches('-') == name).map(|(_, v)| *v);
    match (value("anonymous-auth"), value("authentication-config")) {
        (Some("false"), _) => Err(SpecError::AnonymousAuthOff),
        (Some(_), _) | (None, Some(_)) => Ok(()),
        (None, None) => {
            flags.set("kube-apiserver-arg", "anonymous-auth=true");
            Ok(())
        }
    }
}

/// `vcluster.baseArgs` of the k3s chart with what its template adds.
fn defaults(settings: &Settings) -> Result<Flags, SpecError> {
    let scheduler = settings.programs.scheduler_enabled;
    let mut flags = Flags(vec!["server".to_owned()]);
    flags.set("write-kubeconfig", text(&settings.data_dir.join("k3s-config/kube-config.yaml"), "k3s")?);
    flags.set("data-dir", text(&settings.data_dir, "k3s")?);
    flags.set("disable", "traefik,servicelb,metrics-server,local-storage,coredns");
    for flag in ["--disable-network-policy", "--disable-agent", "--disable-cloud-controller"] {
        flags.0.push(flag.to_owned());
    }
    flags.set("egress-selector-mode", "disabled");
    flags.set("flannel-backend", "none");
    flags.set("kube-apiserver-arg", "bind-address=127.0.0.1");
    if !scheduler {
        flags.0.push("--disable-scheduler".to_owned());
    }
    flags.set("kube-controller-manager-arg", format!("controllers={}", controllers(scheduler)));
    flags.set("kube-apiserver-arg", "endpoint-reconciler-type=none");
    if scheduler {
        flags.set("kube-controller-manager-arg", "node-monitor-grace-period=1h");
        flags.set("kube-controller-manager-arg", "node-monitor-period=1h");
    }
    Ok(flags)
}
