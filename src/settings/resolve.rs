//! What each setting is, and where it comes from: flags and their variables, the charts' variables, the values file,
//! defaults. The parts: [`datastore`] and [`programs`].

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::env::{self, variable_of};
use super::flags::{DEFAULT_LEVEL, Flags};
use super::load::{Loaded, Loader, Refused};
use super::provenance::{Provenance, REDACTED, Source, redacted};
use super::values::{Era, Spot, Values, ValuesError};
use super::{Distro, DnsSettings, HostApi, Listen, PodIdentity, Settings, check, find_program};
use crate::exit::{Exit, refuse};
use crate::ids::Ordinal;

/// Decides all settings. `values` is the content of `file`, `env_flags` what the `SYNCER_*` variables say.
pub fn settings(loader: &Loader, env_flags: Flags, file: Option<PathBuf>, values: Values) -> Result<Loaded, Refused> {
    let shown = file.as_ref().map(|f| f.display().to_string()).unwrap_or_default();
    let mut resolver = Resolver { loader, env_flags, values, file, shown, notes: Provenance::default(), refused: None };
    let resolved = resolver.settings();
    match (resolver.refused, resolved) {
        (None, Ok(settings)) => Ok(Loaded { settings, provenance: resolver.notes }),
        (None, Err(error)) => Err(error.into()),
        (Some(error), resolved) => Err(Refused { error, settings: resolved.ok().map(Box::new) }),
    }
}

/// A value and its source.
type Given<T> = Option<(T, Source)>;

struct Resolver<'l> {
    loader: &'l Loader,
    env_flags: Flags,
    values: Values,
    file: Option<PathBuf>,
    shown: String,
    notes: Provenance,
    /// The first refusal that the other settings do not depend on.
    refused: Option<anyhow::Error>,
}

/// What a flag or its variable says.
macro_rules! given {
    ($self:ident, $($field:ident).+, $flag:literal) => {
        match (&$self.loader.flags.$($field).+, &$self.env_flags.$($field).+) {
            (Some(v), _) => Some((v.clone(), Source::Flag(concat!("--", $flag).to_owned()))),
            (None, Some(v)) => Some((v.clone(), Source::Env(variable_of($flag)))),
            (None, None) => None,
        }
    };
}

mod datastore;
mod programs;

use programs::Commands;

impl Resolver<'_> {
    fn settings(&mut self) -> anyhow::Result<Settings> {
        if let Some(path) = &self.file {
            let source = given!(self, values, "values").map_or(Source::Default("the chart's mount"), |(_, s)| s);
            self.notes.note("values", path, source);
        }
        let (name, namespace, pod) = self.identity()?;
        let wrapped = self.loader.wrapped.clone();
        let (folders, source) = self.folders();
        let folders =
            folders.into_iter().map(|folder| absolute(folder, "--binaries")).collect::<Result<Vec<_>, _>>()?;
        let commands = Commands::read(&*self.loader.env)?;
        let distro = self.distro(&pod, &folders, &commands)?;
        let data_dir = self.take("dataDir", given!(self, data_dir, "data-dir"), "", || PathBuf::from("/data"));
        let data_dir = absolute(data_dir, "--data-dir")?;
        let pki_dir = absolute(self.pki_dir(distro, &pod, &data_dir, &commands), "--pki-dir")?;
        let etcd = self.etcd(&name, distro, &pod, &data_dir, wrapped.is_some())?;
        let programs = self.programs(distro, folders, source, commands)?;
        let listen = self.listen(&pod)?;
        let dns = self.dns()?;
        let host_api = self.host_api(&pod)?;
        let sans = given!(self, tls_san, "tls-san").or(self.spot(self.values.tls_sans.clone()));
        let tls_sans = self.take("tlsSans", sans, "", Vec::new);
        for san in &tls_sans {
            check::san(san, &self.origin("tlsSans"))?;
        }
        let cidr = given!(self, service_cidr, "service-cidr").or(self.spot(self.values.service_cidr.clone()));
        let service_cidr = self.take("serviceCidr", cidr, "", || "10.96.0.0/12".to_owned());
        check::cidrs(&service_cidr, &self.origin("serviceCidr"))?;
        let domain = given!(self, cluster_domain, "cluster-domain").or(self.spot(self.values.cluster_domain.clone()));
        let cluster_domain = self.take("clusterDomain", domain, "", || "cluster.local".to_owned());
        check::dns_name("the cluster domain", &cluster_domain, &self.origin("clusterDomain"))?;
        let k3s_token = self.k3s_token(distro);
        let grace = given!(self, shutdown_grace, "shutdown-grace");
        let shutdown_grace = grace.as_ref().map_or(Duration::from_secs(8), |(d, _)| *d);
        self.notes.note("shutdownGrace", seconds(shutdown_grace), source_of(grace));
        if let Some(command) = &wrapped {
            let args: Vec<_> = command.iter().map(|a| a.to_string_lossy().into_owned()).collect();
            self.notes.note("command", redacted(&args), Source::Flag("--".to_owned()));
        }
        let format = given!(self, log.format, "log-format");
        self.notes.note(
            "log.format",
            format.as_ref().map(|(f, _)| *f),
            source_of_or(&format, "text on a terminal, else json"),
        );
        let level = match given!(self, log.level, "log-level") {
            None => self.env(env::RUST_LOG)?,
            given => given,
        };
        let log_level = self.take("log.level", level, "", || DEFAULT_LEVEL.to_owned());
        check::log_level(&log_level, &self.origin("log.level"))?;
        Ok(Settings {
            name,
            namespace,
            pod,
            data_dir,
            distro,
            etcd,
            programs,
            listen,
            dns,
            host_api,
            pki_dir,
            tls_sans,
            service_cidr,
            cluster_domain,
            k3s_token,
            shutdown_grace,
            wrapped,
            values_file: self.file.clone(),
            log_format: format.map(|(f, _)| f),
            log_level,
        })
    }

    /// Refuses once the other settings are known.
    fn refuse_later(&mut self, refusal: anyhow::Error) {
        self.refused.get_or_insert(refusal);
    }

    /// Takes what was given or the default, and notes where it came from.
    fn take<T: Serialize>(
        &mut self,
        setting: &'static str,
        given: Given<T>,
        why: &'static str,
        default: impl FnOnce() -> T,
    ) -> T {
        let (value, source) = given.unwrap_or_else(|| (default(), Source::Default(why)));
        self.notes.note(setting, &value, source);
        value
    }

    fn spot<T>(&self, spot: Option<Spot<T>>) -> Given<T> {
        spot.map(|spot| (spot.value, Source::Values { file: self.shown.clone(), line: spot.line }))
    }

    fn env(&self, name: &str) -> anyhow::Result<Given<String>> {
        Ok(self.loader.env.get(name)?.map(|value| (value, Source::Env(name.to_owned()))))
    }

    /// Where a noted setting comes from, for messages.
    fn origin(&self, setting: &str) -> String {
        self.notes.source(setting).map(Source::to_string).unwrap_or_default()
    }

    /// Refuses what stands at a line of the values file.
    fn refuse_at(&self, line: u64, what: impl Into<String>, remedy: impl Into<String>) -> anyhow::Error {
        ValuesError { file: self.shown.clone(), line: Some(line), what: what.into(), remedy: remedy.into() }.refuse()
    }

    fn identity(&mut self) -> anyhow::Result<(String, String, PodIdentity)> {
        let pod_name = self.env(env::POD_NAME)?;
        let of_pod =
            pod_name.as_ref().and_then(|(pod, source)| Some((Ordinal::of_pod(pod)?.0.to_owned(), source.clone())));
        let name = match given!(self, name, "name") {
            None => self.env(env::VCLUSTER_NAME)?.or(of_pod),
            given => given,
        };
        let name = self.take("name", name, "", || "syncer".to_owned());
        check::label("the name of the virtual cluster", &name, &self.origin("name"))?;
        let namespace = match given!(self, namespace, "namespace") {
            None => match self.env(env::NAMESPACE)? {
                None => self.namespace_file()?,
                given => given,
            },
            given => given,
        };
        let namespace = self.take("namespace", namespace, "", || "default".to_owned());
        check::label("the namespace", &namespace, &self.origin("namespace"))?;
        let in_pod = pod_name.is_some();
        let pod = self.take("pod.name", pod_name, "not in a pod", || format!("{name}-0"));
        check::dns_name("the pod's name", &pod, &self.origin("pod.name"))?;
        let ordinal = match Ordinal::of_pod(&pod) {
            Some((set, ordinal)) if set == name => ordinal,
            Some((set, _)) => {
                let what = format!("the pod {pod} is not of the StatefulSet {name:?} ({})", self.origin("name"));
                return Err(refuse(Exit::Usage, what, format!("set --name={set}, or run it in a pod of {name}")));
            }
            // A Deployment's pod, as the charts have it on SQLite; with etcd it is refused below.
            None => Ordinal(0),
        };
        let ip = match self.env(env::POD_IP)? {
            None => None,
            Some((text, source)) => match text.parse::<IpAddr>() {
                Ok(ip) => {
                    self.notes.note("pod.ip", ip, source);
                    Some(ip)
                }
                Err(_) => {
                    let what = format!("POD_IP is {text:?}, which is not an address");
                    return Err(refuse(Exit::Usage, what, "set it from the field status.podIP"));
                }
            },
        };
        Ok((name, namespace, PodIdentity { name: pod, ordinal, ip, in_pod }))
    }

    fn namespace_file(&self) -> anyhow::Result<Given<String>> {
        let path = &self.loader.surroundings.namespace_file;
        let mut text = String::new();
        match std::fs::File::open(path).and_then(|f| f.take(256).read_to_string(&mut text)) {
            Ok(_) if text.trim().is_empty() => Ok(None),
            Ok(_) => Ok(Some((text.trim().to_owned(), Source::File(path.display().to_string())))),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => {
                let what = format!("{} cannot be read: {e}", path.display());
                Err(refuse(Exit::Usage, what, "make it readable or set NAMESPACE"))
            }
        }
    }

    fn folders(&mut self) -> (Vec<PathBuf>, Source) {
        let given = given!(self, binaries, "binaries");
        let source = source_of_or(&given, "/binaries and the folder of this program, then PATH");
        let mut folders = given.map(|(folders, _)| folders).unwrap_or_default();
        for folder in &self.loader.surroundings.folders {
            if !folders.contains(folder) {
                folders.push(folder.clone());
            }
        }
        (folders, source)
    }

    fn distro(&mut self, pod: &PodIdentity, folders: &[PathBuf], commands: &Commands) -> anyhow::Result<Distro> {
        let given = match given!(self, distro, "distro") {
            Some((distro, source)) => Some((Distro::from(distro), source)),
            None => match self.env(env::VCLUSTER_DISTRO)? {
                Some((text, source)) => Some((distro_of(&text)?, source)),
                None => commands.distro().or(self.spot(self.values.distro.clone())),
            },
        };
        let path = self.loader.env.get_os(env::PATH).unwrap_or_default();
        let found = |name: &str| {
            find_program(folders, name).is_file() || std::env::split_paths(&path).any(|f| f.join(name).is_file())
        };
        let (default, why) = if pod.in_pod || self.loader.wrapped.is_some() || self.values.era == Some(Era::V020) {
            (Distro::K8s, "the chart's")
        } else if found("kube-apiserver") && found("kube-controller-manager") {
            (Distro::K8s, "a kube-apiserver and a kube-controller-manager were found")
        } else if found("k3s") {
            (Distro::K3s, "a k3s was found")
        } else {
            (Distro::None, "no kube-apiserver with a kube-controller-manager and no k3s was found, so etcd alone")
        };
        Ok(self.take("distro", given, why, || default))
    }

    /// `/pki` is a volume of its own in the k8s and eks charts of 0.19; all others keep certificates under `/data`.
    fn pki_dir(&mut self, distro: Distro, pod: &PodIdentity, data: &Path, commands: &Commands) -> PathBuf {
        let beside = given!(self, client_ca_cert, "client-ca-cert")
            .filter(|_| matches!(distro, Distro::K8s | Distro::Eks | Distro::K0s))
            .and_then(|(file, source)| Some((file.parent()?.to_owned(), source)));
        let given = given!(self, pki_dir, "pki-dir").or(beside);
        let old = self.values.era == Some(Era::V019)
            || (self.values.era.is_none()
                && (commands.apiserver.is_some() || self.env(env::VCLUSTER_DISTRO).is_ok_and(|v| v.is_some())));
        let (default, why) = match distro {
            Distro::K0s => (data.join("k0s/pki"), "k0s"),
            Distro::K8s | Distro::Eks if pod.in_pod && old => (PathBuf::from("/pki"), "the charts of 0.19"),
            _ => (data.join("pki"), ""),
        };
        self.take("pkiDir", given, why, || default)
    }

    fn k3s_token(&mut self, distro: Distro) -> Option<String> {
        let given = given!(self, token, "token").or(self.spot(self.values.k3s_token.clone()));
        let (token, source) = given.filter(|_| distro == Distro::K3s)?;
        self.notes.note("k3sToken", REDACTED, source);
        Some(token)
    }

    fn listen(&mut self, pod: &PodIdentity) -> anyhow::Result<Listen> {
        let bind = self.values.bind_address.clone();
        let from_values = match bind {
            None => None,
            Some(spot) => match spot.value.parse::<IpAddr>() {
                Ok(ip) => self.spot(Some(Spot { value: ip, line: spot.line })),
                Err(_) => {
                    let what = format!("controlPlane.proxy.bindAddress is {:?}, which is not an address", spot.value);
                    return Err(self.refuse_at(spot.line, what, "write 0.0.0.0 or remove it"));
                }
            },
        };
        let given = given!(self, listen_address, "listen-address").or(from_values);
        let (default, why) = match (pod.in_pod, pod.ip) {
            (false, _) => (IpAddr::V4(Ipv4Addr::LOCALHOST), "not in a pod"),
            (true, Some(IpAddr::V6(_))) => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), "the pod has an IPv6 address"),
            (true, _) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), ""),
        };
        let listen = Listen {
            address: self.take("listen.address", given, why, || default),
            client_port: self.take("listen.clientPort", given!(self, client_port, "client-port"), "", || 2379),
            peer_port: self.take("listen.peerPort", given!(self, peer_port, "peer-port"), "", || 2380),
            metrics_port: self.take("listen.metricsPort", given!(self, metrics_port, "metrics-port"), "", || 2381),
            state_port: self.take("listen.statePort", given!(self, state_port, "state-port"), "", || 2382),
            front_port: {
                let given = given!(self, port, "port").or(self.spot(self.values.front_port.clone()));
                self.take("listen.port", given, "", || 8443)
            },
            apiserver_port: self.take(
                "listen.apiserverPort",
                given!(self, apiserver_port, "apiserver-port"),
                "",
                || 6443,
            ),
        };
        check::distinct_ports(&listen, |setting| self.origin(setting))?;
        Ok(listen)
    }

    /// Kubernetes gives every pod the address; whether the API may be used shows in the mounted token.
    fn host_api(&mut self, pod: &PodIdentity) -> anyhow::Result<HostApi> {
        if let Some((file, source)) = given!(self, host_kubeconfig, "host-kubeconfig") {
            if !pod.in_pod {
                let what = format!("{source} is given, but this is no pod of a host cluster");
                return Err(refuse(Exit::Usage, what, "set POD_NAME to the pod's name, or remove it"));
            }
            let file = absolute(file, "--host-kubeconfig")?;
            self.notes.note("hostApi", &file, source);
            return Ok(HostApi::Kubeconfig(file));
        }
        let token = self.loader.surroundings.namespace_file.with_file_name("token");
        let address = self.env(env::KUBERNETES_SERVICE_HOST)?;
        let (api, why) = match address {
            _ if !pod.in_pod => (HostApi::None, "not in a pod"),
            None => (HostApi::None, "KUBERNETES_SERVICE_HOST is not set"),
            // What is there and cannot be looked at is there.
            Some(_) if token.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) => {
                (HostApi::None, "no service account token is mounted")
            }
            Some(_) => (HostApi::InCluster, "the pod's service account"),
        };
        let shown = if api == HostApi::InCluster { "in-cluster" } else { "none" };
        self.notes.note("hostApi", shown, Source::Default(why));
        Ok(api)
    }

    fn dns(&mut self) -> anyhow::Result<DnsSettings> {
        let given = given!(self, dns_server, "dns-server");
        let source = source_of_or(&given, "those of resolvConf");
        let server = given.map(|(server, _)| server);
        self.notes.note("dns.server", server, source);
        let given = given!(self, resolv_conf, "resolv-conf");
        let resolv_conf = self.take("dns.resolvConf", given, "", || PathBuf::from("/etc/resolv.conf"));
        Ok(DnsSettings { server, resolv_conf: absolute(resolv_conf, "--resolv-conf")? })
    }
}

fn distro_of(text: &str) -> anyhow::Result<Distro> {
    [Distro::K3s, Distro::K8s, Distro::Eks, Distro::K0s, Distro::None]
        .into_iter()
        .find(|d| d.name() == text)
        .ok_or_else(|| {
            refuse(Exit::Usage, format!("VCLUSTER_DISTRO is {text:?}"), "set it to k3s, k8s, eks, k0s or none")
        })
}

fn source_of<T>(given: Given<T>) -> Source {
    source_of_or(&given, "")
}

fn source_of_or<T>(given: &Given<T>, why: &'static str) -> Source {
    given.as_ref().map_or(Source::Default(why), |(_, source)| source.clone())
}

fn seconds(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}

/// A path that means the same in whatever directory a child runs.
fn absolute(path: PathBuf, flag: &str) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path).map_err(|e| {
        refuse(Exit::Usage, format!("{flag}={} is not a path: {e}", path.display()), "give the path of a folder")
    })
}
