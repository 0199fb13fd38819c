//! The flags of `syncer start` as typed. Each can also be given as a variable, see [`variable_of`].

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use super::env::{Env, RUST_LOG, variable_of};
use super::{Distro, check};
use crate::exit::{Exit, refuse};
use crate::snapshot::schedule::Schedule;
use crate::snapshot::target::Target;

/// Flags of `syncer start`. `None`: not given.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// The values file of the vCluster chart, in the form of 0.19 or of 0.20 and later.
    ///
    /// The whole chart's file: what does not concern syncer is passed over. It is watched: a changed replica count
    /// acts without a restart. Default: /var/lib/vcluster/config.yaml or /var/vcluster/config.yaml, where the charts
    /// mount it, if there is one.
    #[arg(long, alias = "config", value_name = "FILE", help_heading = "Settings")]
    pub values: Option<PathBuf>,

    /// The volume. etcd's data dir is `etcd` in it; an existing state.db is found in it and moved.
    ///
    /// Default: /data.
    #[arg(long, value_name = "DIR", help_heading = "Settings")]
    pub data_dir: Option<PathBuf>,

    /// Which API server runs here; `none` runs etcd alone.
    ///
    /// Default: VCLUSTER_DISTRO, else what the values file enables, else k8s. Outside a pod: k8s if a kube-apiserver
    /// and a kube-controller-manager are found, k3s if a k3s is found, else none.
    #[arg(long, value_enum, help_heading = "Settings")]
    pub distro: Option<DistroFlag>,

    /// Folders with programs (etcd, kube-apiserver, k3s ...), searched first; can be given several times.
    ///
    /// After them: /binaries, the folder of this program, PATH.
    #[arg(long, value_name = "DIR", value_delimiter = ':', help_heading = "Settings")]
    pub binaries: Option<Vec<PathBuf>>,

    /// Where certificates and keys are, or are made if there are none.
    ///
    /// Default: /data/pki; /data/k0s/pki for k0s; /pki for the k8s and eks charts of 0.19. Existing files are used
    /// and never overwritten.
    #[arg(long, value_name = "DIR", help_heading = "Settings")]
    pub pki_dir: Option<PathBuf>,

    /// Name of the virtual cluster, which is the name of the StatefulSet.
    ///
    /// Default: VCLUSTER_NAME, else the pod's name without its number, else syncer.
    #[arg(long, help_heading = "Identity")]
    pub name: Option<String>,

    /// Namespace of the StatefulSet. Default: NAMESPACE, else the service account's, else default.
    #[arg(long, help_heading = "Identity")]
    pub namespace: Option<String>,

    /// Kubeconfig of the host cluster, whose API tells the desired replicas and keeps what must outlive the volumes.
    ///
    /// Default: the pod's service account, if its token is mounted (automountServiceAccountToken); else none is used.
    /// (`--kube-config`, which the charts pass, is the virtual cluster's and of no concern here.)
    #[arg(long, value_name = "FILE", help_heading = "Identity")]
    pub host_kubeconfig: Option<PathBuf>,

    /// Run etcd here; otherwise the API server runs on SQLite.
    ///
    /// The same as `embeddedEtcd.enabled` (0.19) or `controlPlane.backingStore.etcd.embedded.enabled` in the values.
    /// Default: false as in the charts; true outside a pod if there is no values file.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
          help_heading = "Datastore")]
    pub etcd_embedded: Option<bool>,

    /// How many pods there should be: 1, 3 or 5. Default: the values file's, else 1.
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Datastore")]
    pub etcd_replicas: Option<i64>,

    /// A deployed etcd to move from, for example https://my-vcluster-etcd:2379.
    #[arg(long, value_name = "URL", help_heading = "Datastore")]
    pub migrate_from: Option<String>,

    /// With embedded etcd off: move its store back into SQLite at this start.
    ///
    /// The same as `migrateBack` in the values, for charts whose schema knows no such key: SYNCER_MIGRATE_BACK=true.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
          help_heading = "Datastore")]
    pub migrate_back: Option<bool>,

    /// Take snapshots at these times: a cron expression in UTC, or @hourly, @daily ... Default: none are taken.
    ///
    /// This and the next two are `snapshots` in the values, for charts whose schema knows no such key:
    /// SYNCER_SNAPSHOT_SCHEDULE, SYNCER_SNAPSHOT_KEEP, SYNCER_SNAPSHOT_TARGET.
    #[arg(long, value_name = "CRON", help_heading = "Datastore")]
    pub snapshot_schedule: Option<Schedule>,

    /// How many scheduled snapshots are kept. Default: 5.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Datastore")]
    pub snapshot_keep: Option<u32>,

    /// Where scheduled snapshots are kept: a directory, or s3://BUCKET/PREFIX. Default: `snapshots` on the volume.
    #[arg(long, value_name = "PLACE", help_heading = "Datastore")]
    pub snapshot_target: Option<Target>,

    /// Token of a k3s virtual cluster; it encrypts the cluster's own keys in the datastore, so it must stay the same.
    ///
    /// Better given as SYNCER_TOKEN or in the values: the command line can be seen by other processes.
    #[arg(long, help_heading = "Kubernetes")]
    pub token: Option<String>,

    /// Range of Service addresses of the virtual cluster. Default: 10.96.0.0/12.
    #[arg(long, value_name = "CIDR", help_heading = "Kubernetes")]
    pub service_cidr: Option<String>,

    /// DNS domain of the virtual cluster. Default: cluster.local.
    #[arg(long, value_name = "DOMAIN", help_heading = "Kubernetes")]
    pub cluster_domain: Option<String>,

    /// Additional names or addresses for the serving certificate; can be given several times.
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "Kubernetes")]
    pub tls_san: Option<Vec<String>>,

    /// Run kube-scheduler too.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
          help_heading = "Kubernetes")]
    pub enable_scheduler: Option<bool>,

    /// The address to listen on. Default: all addresses in a pod, 127.0.0.1 elsewhere.
    #[arg(long, alias = "bind-address", value_name = "IP", help_heading = "Network")]
    pub listen_address: Option<IpAddr>,

    /// etcd's client port. Default: 2379.
    #[arg(long, value_name = "PORT", value_parser = port, help_heading = "Network")]
    pub client_port: Option<u16>,

    /// etcd's peer port. Default: 2380.
    #[arg(long, value_name = "PORT", value_parser = port, help_heading = "Network")]
    pub peer_port: Option<u16>,

    /// etcd's metrics and health port, on loopback. Default: 2381.
    #[arg(long, value_name = "PORT", value_parser = port, help_heading = "Network")]
    pub metrics_port: Option<u16>,

    /// The port on which the pods of a virtual cluster tell each other their state, over mTLS. Default: 2382.
    #[arg(long, value_name = "PORT", value_parser = port, help_heading = "Network")]
    pub state_port: Option<u16>,

    /// The port of the charts' Service and probes, passed through to the API server. Default: 8443.
    #[arg(long, value_name = "PORT", value_parser = port, help_heading = "Network")]
    pub port: Option<u16>,

    /// The API server's own port, on loopback. Default: 6443.
    #[arg(long, value_name = "PORT", value_parser = port, help_heading = "Network")]
    pub apiserver_port: Option<u16>,

    /// The DNS server that knows the pods, instead of those in resolv.conf; its search list still counts.
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = dns_server, help_heading = "Network")]
    pub dns_server: Option<SocketAddr>,

    /// The resolver's configuration. Default: /etc/resolv.conf.
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub resolv_conf: Option<PathBuf>,

    /// Time from SIGTERM until everything has stopped. Default: 8s, which fits the charts' 10 s.
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Running")]
    pub shutdown_grace: Option<Duration>,

    /// What is logged.
    #[command(flatten)]
    pub log: LogFlags,

    /// The charts' way to name the certificates' directory (k8s, eks, k0s).
    #[arg(long, value_name = "FILE", hide = true)]
    pub client_ca_cert: Option<PathBuf>,
}

/// What is logged, and how, by any command.
#[derive(Args, Clone, Debug, Default)]
pub struct LogFlags {
    /// Form of the log lines. Default: text on a terminal, json elsewhere.
    #[arg(long = "log-format", value_enum, help_heading = "Running")]
    pub format: Option<LogFormat>,

    /// error, warn, info, debug or trace; or by part: info,etcd=warn. Default: info.
    #[arg(long = "log-level", value_name = "LEVEL", help_heading = "Running")]
    pub level: Option<String>,
}

/// [`Distro`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum DistroFlag {
    K8s,
    K3s,
    K0s,
    Eks,
    None,
}

impl From<DistroFlag> for Distro {
    fn from(flag: DistroFlag) -> Distro {
        match flag {
            DistroFlag::K8s => Distro::K8s,
            DistroFlag::K3s => Distro::K3s,
            DistroFlag::K0s => Distro::K0s,
            DistroFlag::Eks => Distro::Eks,
            DistroFlag::None => Distro::None,
        }
    }
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a port is a number from 1 to 65535".to_owned()),
        Ok(port) => Ok(port),
    }
}

/// `10.96.0.10`, `10.96.0.10:5353`, `fd00::a` or `[fd00::a]:5353`.
fn dns_server(text: &str) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let server = match bare.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, DNS_PORT),
        Err(_) => text.parse().map_err(|_| "write an address, or an address and a port: 10.96.0.10:53".to_owned())?,
    };
    match (server.port(), server.ip().is_unspecified()) {
        (0, _) => Err("a port is a number from 1 to 65535".to_owned()),
        (_, true) => Err("no server has this address".to_owned()),
        _ => Ok(server),
    }
}

/// The port of DNS servers.
const DNS_PORT: u16 = 53;

/// Shortest and longest time to stop in.
const GRACE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number = number.parse::<u32>().map_err(|_| "write a number and a unit: 8s, 500ms, 1m".to_owned())?;
    let duration = match unit {
        "ms" => Duration::from_millis(number.into()),
        "s" | "" => Duration::from_secs(number.into()),
        "m" => Duration::from_secs(u64::from(number) * 60),
        _ => return Err("the units are ms, s and m".to_owned()),
    };
    if GRACE.contains(&duration) { Ok(duration) } else { Err("it must be from 1s to 10m".to_owned()) }
}

/// For parsing variables as if they were flags.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Lone {
    #[command(flatten)]
    flags: Flags,
}

impl Flags {
    /// The flags' long names.
    pub fn names() -> Vec<String> {
        Lone::command().get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
    }

    /// The variables that stand for them.
    pub fn variables() -> Vec<String> {
        Flags::names().iter().map(|name| variable_of(name)).collect()
    }

    /// What the `SYNCER_*` variables say.
    pub fn from_env(env: &dyn Env) -> anyhow::Result<Flags> {
        Flags::of_variables(env, Flags::names())
    }

    /// What the variables for these flags say.
    pub(super) fn of_variables(env: &dyn Env, names: Vec<String>) -> anyhow::Result<Flags> {
        let mut all = Vec::new();
        for name in names {
            let variable = variable_of(&name);
            let Some(value) = env.get(&variable)? else { continue };
            let arg = OsString::from(format!("--{name}={value}"));
            // One by one first, so that the message can name the variable.
            Lone::command().try_get_matches_from([&arg]).map_err(|e| {
                let what = one_line(&e).replace(&format!("--{name}"), &variable);
                refuse(
                    Exit::Usage,
                    format!("the environment variable {variable}: {what}"),
                    format!("correct or unset {variable}"),
                )
            })?;
            all.push(arg);
        }
        let matches = Lone::command().try_get_matches_from(all).map_err(|e| refuse(Exit::Usage, one_line(&e), ""))?;
        Ok(Lone::from_arg_matches(&matches).map_err(|e| refuse(Exit::Usage, one_line(&e), ""))?.flags)
    }
}

impl LogFlags {
    /// Form and level for a command without other settings: these flags, else the variables of `syncer start`.
    ///
    /// # Errors
    /// [`Exit::Usage`] for a level or a variable that means nothing.
    pub fn or_env(&self, env: &dyn Env) -> anyhow::Result<(Option<LogFormat>, String)> {
        let (format, level) = ("log-format", "log-level");
        let set = Flags::of_variables(env, vec![format.to_owned(), level.to_owned()])?.log;
        let level = match (&self.level, set.level) {
            (Some(given), _) => Some((given.clone(), format!("--{level}"))),
            (None, Some(set)) => Some((set, variable_of(level))),
            (None, None) => env.get(RUST_LOG)?.map(|set| (set, RUST_LOG.to_owned())),
        };
        if let Some((level, origin)) = &level {
            check::log_level(level, origin)?;
        }
        Ok((self.format.or(set.format), level.map_or_else(|| DEFAULT_LEVEL.to_owned(), |(level, _)| level)))
    }
}

/// What is logged where nothing is said of it.
pub const DEFAULT_LEVEL: &str = "info";

/// clap's message without usage, in one line.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let parts = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .map(|line| line.trim_start_matches("error: ").trim_start_matches("tip: "))
        .collect::<Vec<_>>();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_commands_log_is_as_its_flags_say_else_as_the_variables() {
        let env = |set: &[(&str, &str)]| {
            set.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect::<BTreeMap<_, _>>()
        };
        let given = LogFlags { format: Some(LogFormat::Text), level: Some("debug".to_owned()) };
        let none = LogFlags::default();
        let set = [("SYNCER_LOG_FORMAT", "json"), ("SYNCER_LOG_LEVEL", "warn"), ("RUST_LOG", "trace")];
        for (flags, set, format, level) in [
            (&none, &[][..], None, "info"),
            (&none, &set[2..], None, "trace"),
            (&none, &set, Some(LogFormat::Json), "warn"),
            (&given, &set, Some(LogFormat::Text), "debug"),
            // What concerns `syncer start` alone is for it to refuse.
            (&none, &[("SYNCER_PEER_PORT", "none")], None, "info"),
        ] {
            assert_eq!(flags.or_env(&env(set)).unwrap(), (format, level.to_owned()), "{flags:?} {set:?}");
        }
        for (flags, set, want) in [
            (LogFlags { level: Some("loud".to_owned()), format: None }, &[][..], "(--log-level)"),
            (none.clone(), &[("SYNCER_LOG_LEVEL", "loud")], "(SYNCER_LOG_LEVEL)"),
            (none.clone(), &[("RUST_LOG", "7")], "(RUST_LOG)"),
            (none, &[("SYNCER_LOG_FORMAT", "xml")], "SYNCER_LOG_FORMAT"),
        ] {
            let error = flags.or_env(&env(set)).unwrap_err();
            assert_eq!(crate::exit::exit_of(&error), Exit::Usage);
            assert!(format!("{error:#}").contains(want), "{error:#}");
        }
    }

    #[test]
    fn variables_are_flags() {
        let env = BTreeMap::from([
            ("SYNCER_DATA_DIR".to_owned(), OsString::from("/x y")),
            ("SYNCER_BINARIES".to_owned(), OsString::from("/a:/b")),
            ("SYNCER_FRONT_PORT".to_owned(), OsString::from("1")),
            ("SYNCER_PORT".to_owned(), OsString::from("tcp://10.0.0.1:443")),
            ("SYNCER_ETCD_EMBEDDED".to_owned(), OsString::from("true")),
            ("SYNCER_PARTS".to_owned(), OsString::from("/not/ours")),
        ]);
        let flags = Flags::from_env(&env).unwrap();
        assert_eq!(flags.data_dir.as_deref(), Some(std::path::Path::new("/x y")));
        assert_eq!(flags.binaries, Some(vec!["/a".into(), "/b".into()]));
        assert_eq!((flags.port, flags.etcd_embedded, flags.name), (Some(1), Some(true), None));
    }

    #[test]
    fn a_bad_variable_is_named() {
        for (name, value) in [
            ("SYNCER_CLIENT_PORT", "70000"),
            ("SYNCER_SHUTDOWN_GRACE", "1h"),
            ("SYNCER_SHUTDOWN_GRACE", "20m"),
            ("SYNCER_DISTRO", "k9s"),
            ("SYNCER_ETCD_EMBEDDED", "maybe"),
            ("SYNCER_LISTEN_ADDRESS", "localhost"),
        ] {
            let env = BTreeMap::from([(name.to_owned(), OsString::from(value))]);
            let error = Flags::from_env(&env).unwrap_err();
            assert_eq!(crate::exit::exit_of(&error), Exit::Usage);
            let text = error.to_string();
            assert!(text.contains(name) && text.contains(value) && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn dns_servers() {
        for (text, want) in [
            ("10.96.0.10", "10.96.0.10:53"),
            ("10.96.0.10:5353", "10.96.0.10:5353"),
            ("fd00::a", "[fd00::a]:53"),
            ("[fd00::a]", "[fd00::a]:53"),
            ("[fd00::a]:5353", "[fd00::a]:5353"),
        ] {
            assert_eq!(dns_server(text), Ok(want.parse().unwrap()));
        }
        for bad in ["", "dns.example.com", "10.96.0.10:", "10.96.0.10:0", "10.96.0.10:99999", "0.0.0.0", "::"] {
            assert!(dns_server(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("8s"), Ok(Duration::from_secs(8)));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        for bad in ["", "s", "-1s", "1h", "0s", "11m", "99999999999s", "8 s"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
