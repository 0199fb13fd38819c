//! Defaults, values file, environment and flags, in rising order of precedence, become one [`Settings`].
//!
//! Everything that is wrong is refused here with exit code 2, naming the flag, the variable, or file and line. What is
//! read from outside besides these (where a default file lies, which programs there are) stands in [`Surroundings`].

use std::ffi::OsString;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::env::{self, Env, variable_of};
use super::flags::Flags;
use super::provenance::{Provenance, REDACTED, Source, redacted};
use super::values::{self, Era, OtherStore, Spot, Values, ValuesError};
use super::{
    Distro, DistroCommand, EtcdSettings, EtcdTiming, Listen, PodIdentity, Programs, Settings, check, find_program,
};
use crate::exit::{Exit, refuse};
use crate::ids::Ordinal;

/// Where the charts since 0.20 mount their values, newest first (0.26 and later, before that).
pub const MOUNTED_VALUES: [&str; 2] = ["/var/lib/vcluster/config.yaml", "/var/vcluster/config.yaml"];
/// Where Kubernetes tells a pod its namespace.
pub const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// What is looked up outside of file, environment and flags. Tests give their own.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Values files that are used if they exist, the first one first.
    pub values_files: Vec<PathBuf>,
    /// The file with the pod's namespace.
    pub namespace_file: PathBuf,
    /// Folders of programs behind `--binaries`.
    pub folders: Vec<PathBuf>,
}

impl Surroundings {
    /// Those of this machine.
    pub fn of_this_machine() -> Surroundings {
        let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
        Surroundings {
            values_files: MOUNTED_VALUES.iter().map(PathBuf::from).collect(),
            namespace_file: PathBuf::from(NAMESPACE_FILE),
            folders: std::iter::once(PathBuf::from("/binaries")).chain(own).collect(),
        }
    }
}

/// Loads the settings, again and again if the values file changes.
pub struct Loader {
    /// As typed.
    pub flags: Flags,
    /// `start ... -- COMMAND`.
    pub wrapped: Option<Vec<OsString>>,
    /// The environment.
    pub env: Box<dyn Env>,
    /// The rest.
    pub surroundings: Surroundings,
}

/// Settings with where they come from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Where each comes from, and warnings.
    pub provenance: Provenance,
}

impl Loader {
    /// Reads everything and decides.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        match self.values_file()? {
            Some(path) => {
                let bytes = values::read_bytes(&path).map_err(ValuesError::refuse)?;
                self.load_from(&path, &bytes)
            }
            None => self.resolve(None, Values::default()),
        }
    }

    /// As [`Loader::load`] with the values file's content at hand.
    pub fn load_from(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<Loaded> {
        let values = values::parse(path, bytes).map_err(ValuesError::refuse)?;
        self.resolve(Some(path.to_owned()), values)
    }

    /// The values file: as given, else the first mounted one.
    pub fn values_file(&self) -> anyhow::Result<Option<PathBuf>> {
        if let Some(path) = self.flags.values.clone().or(Flags::from_env(&*self.env)?.values) {
            return Ok(Some(path));
        }
        // One that is there but cannot be read must be reported, not passed over.
        let absent =
            |e: std::io::Error| matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory);
        Ok(self.surroundings.values_files.iter().find(|p| !p.symlink_metadata().is_err_and(absent)).cloned())
    }

    fn resolve(&self, file: Option<PathBuf>, values: Values) -> anyhow::Result<Loaded> {
        let shown = file.as_ref().map(|f| f.display().to_string()).unwrap_or_default();
        let env_flags = Flags::from_env(&*self.env)?;
        Resolver { loader: self, env_flags, values, file, shown, notes: Provenance::default() }.settings()
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
}

/// What a flag or its variable says.
macro_rules! given {
    ($self:ident, $field:ident, $flag:literal) => {
        match (&$self.loader.flags.$field, &$self.env_flags.$field) {
            (Some(v), _) => Some((v.clone(), Source::Flag(concat!("--", $flag).to_owned()))),
            (None, Some(v)) => Some((v.clone(), Source::Env(variable_of($flag)))),
            (None, None) => None,
        }
    };
}

impl Resolver<'_> {
    fn settings(mut self) -> anyhow::Result<Loaded> {
        if let Some(path) = &self.file {
            let source = given!(self, values, "values").map_or(Source::Default("the chart's mount"), |(_, s)| s);
            self.notes.note("values", path, source);
        }
        let (name, namespace, pod) = self.identity()?;
        let wrapped = self.loader.wrapped.clone();
        let (folders, source) = self.folders();
        let commands = Commands::read(&*self.loader.env)?;
        let distro = self.distro(&pod, &folders, &commands)?;
        let data_dir = self.take("dataDir", given!(self, data_dir, "data-dir"), "", || PathBuf::from("/data"));
        let pki_dir = self.pki_dir(distro, &pod, &data_dir, &commands);
        let etcd = self.etcd(&name, distro, &pod, wrapped.is_some())?;
        let programs = self.programs(distro, folders, source, commands)?;
        let listen = self.listen(&pod)?;
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
        let format = given!(self, log_format, "log-format");
        self.notes.note(
            "log.format",
            format.as_ref().map(|(f, _)| *f),
            source_of_or(&format, "text on a terminal, else json"),
        );
        let level = match given!(self, log_level, "log-level") {
            None => self.env(env::RUST_LOG)?,
            given => given,
        };
        let log_level = self.take("log.level", level, "", || "info".to_owned());
        check::log_level(&log_level, &self.origin("log.level"))?;
        let settings = Settings {
            name,
            namespace,
            pod,
            data_dir,
            distro,
            etcd,
            programs,
            listen,
            pki_dir,
            tls_sans,
            service_cidr,
            cluster_domain,
            k3s_token,
            shutdown_grace,
            wrapped,
            values_file: self.file,
            log_format: format.map(|(f, _)| f),
            log_level,
        };
        Ok(Loaded { settings, provenance: self.notes })
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
        folders.extend(self.loader.surroundings.folders.iter().cloned());
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
        } else if found("kube-apiserver") {
            (Distro::K8s, "a kube-apiserver was found")
        } else if found("k3s") {
            (Distro::K3s, "a k3s was found")
        } else {
            (Distro::None, "no kube-apiserver and no k3s was found, so etcd alone")
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

    fn etcd(&mut self, name: &str, distro: Distro, pod: &PodIdentity, wrapped: bool) -> anyhow::Result<EtcdSettings> {
        let values = self.values.clone();
        let other = values.other_store.clone();
        let ours_as_external = other.as_ref().and_then(|spot| match &spot.value {
            OtherStore::ExternalEtcd(endpoint) if check::is_loopback(endpoint) => {
                Some(Spot { value: true, line: spot.line })
            }
            _ => None,
        });
        let alone = distro == Distro::None && !wrapped;
        let on_laptop = !pod.in_pod && self.file.is_none();
        let given = given!(self, etcd_embedded, "etcd-embedded")
            .or(self.spot(values.etcd.enabled.clone()))
            .or(self.spot(ours_as_external.clone()))
            .or(self.spot(values.sqlite.map(|spot| spot.map(|on| !on)).filter(|spot| !spot.value)));
        let (default, why) = match () {
            () if alone => (true, "distro none is etcd alone"),
            () if on_laptop => (true, "not in a pod and no values file"),
            () => (false, "the charts'"),
        };
        let enabled = self.take("etcd.enabled", given, why, || default);
        if let Some(spot) = other.filter(|_| ours_as_external.is_none()) {
            return Err(self.other_store(&spot));
        }
        if alone && !enabled {
            let what =
                format!("distro none with embedded etcd switched off ({}) runs nothing", self.origin("etcd.enabled"));
            return Err(refuse(Exit::Usage, what, "switch embedded etcd on, or choose another distro"));
        }
        if enabled && Ordinal::of_pod(&pod.name).is_none() {
            let what = format!("the pod's name {:?} does not end in a number, so it is not a StatefulSet's", pod.name);
            return Err(refuse(
                Exit::Usage,
                what,
                "embedded etcd needs a StatefulSet: in the 0.19 charts set pro: true",
            ));
        }
        let replicas = self.replicas(distro, enabled)?;
        let migrate_from = self.migrate_from(name, distro, enabled)?;
        let back = values.etcd.migrate_back.clone();
        if let Some(spot) = back.as_ref().filter(|spot| spot.value && enabled) {
            let what = "migrateBack is true while embedded etcd is enabled";
            return Err(self.refuse_at(spot.line, what, "set enabled: false to move the store back to SQLite"));
        }
        let migrate_back = self.take("etcd.migrateBack", self.spot(back), "", || false);
        let snapshot_count = self.take("etcd.snapshotCount", self.spot(values.etcd.snapshot_count), "", || 10_000);
        let quota = self.spot(values.etcd.quota_backend_bytes.clone()).map(|(n, s)| (Some(n), s));
        let quota_backend_bytes =
            self.take("etcd.quotaBackendBytes", quota, "8Gi, never below the store's size", || None);
        if let Some(spot) = values.etcd.quota_backend_bytes.filter(|spot| spot.value > 8 << 30) {
            let warning = format!("{}:{}: etcd advises a quota of at most 8Gi", self.shown, spot.line);
            self.notes.warnings.push(warning);
        }
        let timing_set = values.etcd.heartbeat_ms.is_some() || values.etcd.election_ms.is_some();
        let heartbeat = self.milliseconds("etcd.heartbeatInterval", values.etcd.heartbeat_ms.clone(), 100);
        let election =
            self.milliseconds("etcd.electionTimeout", values.etcd.election_ms.clone(), 1000.max(heartbeat * 10));
        if election < 5 * heartbeat {
            // One of the two is given: the defaults fit.
            let line = values.etcd.election_ms.or(values.etcd.heartbeat_ms).map_or(0, |spot| spot.line);
            let what =
                format!("electionTimeout {election} ms is less than five times heartbeatInterval {heartbeat} ms");
            return Err(self.refuse_at(line, what, format!("set electionTimeout to {} or more", 10 * heartbeat)));
        }
        let extra_args = self.take("etcd.extraArgs", self.spot(values.etcd.extra_args), "", Vec::new);
        let timing =
            EtcdTiming { heartbeat: Duration::from_millis(heartbeat), election: Duration::from_millis(election) };
        Ok(EtcdSettings {
            enabled,
            replicas,
            migrate_from,
            migrate_back,
            snapshot_count,
            extra_args,
            quota_backend_bytes,
            timing,
            timing_set,
        })
    }

    fn milliseconds(&mut self, setting: &'static str, spot: Option<Spot<u64>>, default: u64) -> u64 {
        let (ms, source) = self.spot(spot).unwrap_or((default, Source::Default("")));
        self.notes.note(setting, format!("{ms}ms"), source);
        ms
    }

    fn other_store(&self, spot: &Spot<OtherStore>) -> anyhow::Error {
        let (what, remedy) = match &spot.value {
            OtherStore::DeployedEtcd => (
                "etcd.deploy is enabled: its data is not in this pod".to_owned(),
                "to move it here set etcd.embedded.enabled and etcd.embedded.migrateFromDeployedEtcd to true and etcd.deploy.enabled to false",
            ),
            OtherStore::ExternalEtcd(endpoint) => (
                format!("etcd.external is enabled with the endpoint {endpoint:?}, which is not this pod's"),
                "enable etcd.embedded instead, or set the endpoint to 127.0.0.1:2379 to use the etcd that syncer runs here",
            ),
            OtherStore::Database => (
                "an external database is enabled; syncer runs on etcd or on SQLite".to_owned(),
                "enable etcd.embedded instead",
            ),
        };
        self.refuse_at(spot.line, what, remedy)
    }

    fn replicas(&mut self, distro: Distro, enabled: bool) -> anyhow::Result<u32> {
        let given = match given!(self, etcd_replicas, "etcd-replicas") {
            Some((n, source)) => match u32::try_from(n) {
                Ok(n) if n <= values::MAX_REPLICAS => Some((n, source)),
                _ => {
                    let what = format!("{source} is {n}, but must be from 0 to {}", values::MAX_REPLICAS);
                    return Err(refuse(Exit::Usage, what, "use 1, 3 or 5"));
                }
            },
            // The k3s and k0s charts size the StatefulSet by `replicas` first; the others do not know that key.
            None => {
                let legacy =
                    self.values.legacy_replicas.clone().filter(|_| matches!(distro, Distro::K3s | Distro::K0s));
                self.spot(legacy.or(self.values.replicas.clone()))
            }
        };
        let replicas = self.take("etcd.replicas", given, "", || 1);
        if enabled {
            self.notes.warnings.extend(values::replicas_warning(replicas));
        } else if replicas > 1 && self.values.era == Some(Era::V020) {
            let what = format!(
                "{replicas} replicas are asked for ({}), but SQLite has one writer",
                self.origin("etcd.replicas")
            );
            let remedy = "set controlPlane.backingStore.etcd.embedded.enabled: true, or replicas: 1";
            return Err(match &self.values.replicas {
                Some(spot) => self.refuse_at(spot.line, what, remedy),
                None => refuse(Exit::Usage, what, remedy),
            });
        }
        Ok(replicas)
    }

    fn migrate_from(&mut self, name: &str, distro: Distro, enabled: bool) -> anyhow::Result<Option<String>> {
        let asked = self.values.etcd.migrate_from_deployed.clone().filter(|spot| spot.value);
        if let Some(spot) = asked.as_ref().filter(|_| distro == Distro::K0s && self.values.era == Some(Era::V019)) {
            let what = "migrateFromEtcd is true, but the k0s chart of 0.19 never deploys an etcd to move from";
            return Err(self.refuse_at(spot.line, what, "remove it: k0s keeps its data in /data/k0s"));
        }
        let service = if self.values.deployed_etcd_headless { "etcd-headless" } else { "etcd" };
        let given = given!(self, migrate_from, "migrate-from")
            .filter(|(url, _)| !url.is_empty())
            .or(self.spot(asked).map(|(_, source)| (format!("https://{name}-{service}:2379"), source)))
            .map(|(url, source)| (Some(url), source));
        let url = self.take("etcd.migrateFrom", given, "", || None);
        if let Some(url) = &url {
            let origin = self.origin("etcd.migrateFrom");
            check::etcd_url(url, &origin)?;
            if !enabled {
                let what = format!(
                    "moving from {url} is asked for ({origin}), but embedded etcd is off ({})",
                    self.origin("etcd.enabled")
                );
                let remedy =
                    "enable embedded etcd too; in the 0.19 charts that needs pro: true and embeddedEtcd.enabled: true";
                return Err(refuse(Exit::Usage, what, remedy));
            }
        }
        Ok(url)
    }

    /// Commands and arguments. Where the environment gives a command, the chart has put the values' into it.
    fn programs(
        &mut self,
        distro: Distro,
        folders: Vec<PathBuf>,
        source: Source,
        commands: Commands,
    ) -> anyhow::Result<Programs> {
        let values = self.values.clone();
        let single = matches!(distro, Distro::K3s | Distro::K0s);
        let api = !single && distro != Distro::None;
        self.notes.note("programs.folders", &folders, source);
        let mut programs = Programs { folders, ..Programs::default() };
        programs.vcluster = self.command("programs.vcluster", single, &commands.vcluster, values.vcluster);
        programs.apiserver = self.command("programs.apiserver", api, &commands.apiserver, values.apiserver);
        programs.controller = self.command("programs.controller", api, &commands.controller, values.controller);
        programs.scheduler = self.command("programs.scheduler", api, &commands.scheduler, values.scheduler);
        let (server, in_env) = if single {
            (values.vcluster_extra_args, commands.vcluster.is_some())
        } else {
            (values.apiserver_extra_args, commands.apiserver.is_some())
        };
        if single || api {
            let own = |spot: Option<Spot<Vec<String>>>, in_env: bool| spot.filter(|_| !in_env);
            programs.apiserver_extra_args = self.args("programs.apiserverExtraArgs", own(server, in_env));
            if api {
                let spot = own(values.controller_extra_args, commands.controller.is_some());
                programs.controller_extra_args = self.args("programs.controllerExtraArgs", spot);
                let spot = own(values.scheduler_extra_args, commands.scheduler.is_some());
                programs.scheduler_extra_args = self.args("programs.schedulerExtraArgs", spot);
            }
            let enabled = given!(self, enable_scheduler, "enable-scheduler").or(self.spot(values.scheduler_enabled));
            programs.scheduler_enabled = self.take("programs.schedulerEnabled", enabled, "", || false);
            let bare = programs.controller.is_none() && programs.apiserver.is_some();
            programs.controller_disabled =
                self.take("programs.controllerDisabled", self.spot(values.controller_disabled), "", || bare);
        }
        if distro == Distro::K0s
            && let Some((config, source)) = self.spot(values.k0s_config)
        {
            self.notes.note("programs.k0sConfig", format!("({} lines)", config.lines().count()), source);
            programs.k0s_config = Some(config);
        }
        Ok(programs)
    }

    fn args(&mut self, setting: &'static str, spot: Option<Spot<Vec<String>>>) -> Vec<String> {
        let (args, source) = self.spot(spot).unwrap_or((Vec::new(), Source::Default("")));
        self.notes.note(setting, redacted(&args), source);
        args
    }

    fn command(
        &mut self,
        setting: &'static str,
        wanted: bool,
        env: &Given<DistroCommand>,
        values: Option<Spot<DistroCommand>>,
    ) -> Option<DistroCommand> {
        let (command, source) = env.clone().or(self.spot(values)).filter(|_| wanted)?;
        let args: Vec<String> = command.command.iter().chain(&command.args).cloned().collect();
        self.notes.note(setting, redacted(&args), source);
        Some(command)
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
        check::distinct_ports(&listen)?;
        Ok(listen)
    }
}

/// The commands that the charts pass in the environment.
struct Commands {
    vcluster: Given<DistroCommand>,
    apiserver: Given<DistroCommand>,
    controller: Given<DistroCommand>,
    scheduler: Given<DistroCommand>,
}

impl Commands {
    fn read(env: &dyn Env) -> anyhow::Result<Commands> {
        let read = |name: &str| -> anyhow::Result<Given<DistroCommand>> {
            let Some(text) = env.get(name)? else { return Ok(None) };
            let command = values::command(name, &text).map_err(ValuesError::refuse)?;
            Ok(Some((command, Source::Env(name.to_owned()))))
        };
        Ok(Commands {
            vcluster: read(env::VCLUSTER_COMMAND)?,
            apiserver: read(env::APISERVER_COMMAND)?,
            controller: read(env::CONTROLLER_COMMAND)?,
            scheduler: read(env::SCHEDULER_COMMAND)?,
        })
    }

    /// The distro that a command is of: 0.17 passed no `VCLUSTER_DISTRO`.
    fn distro(&self) -> Given<Distro> {
        if let Some((command, source)) = &self.vcluster {
            let k0s = command.command.first().is_some_and(|program| program.ends_with("k0s"));
            return Some((if k0s { Distro::K0s } else { Distro::K3s }, source.clone()));
        }
        self.apiserver.as_ref().map(|(_, source)| (Distro::K8s, source.clone()))
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

#[cfg(test)]
pub(super) mod tests;
