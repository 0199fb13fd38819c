//! etcd's command line by its version: launch and version in, arguments out, no I/O.
//!
//! The flags are those of `server/embed/config.go` and `server/etcdmain/config.go` of etcd 3.5, 3.6 and 3.7. What
//! differs: 3.5 spells the corruption checks, the watch progress interval and the SAN skipping with `--experimental-`;
//! 3.6 has both spellings and warns of the old one; 3.7 ends at an unknown flag on the old one.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use thiserror::Error;

use super::version::EtcdVersion;
use crate::exit::{Exit, refuse};
use crate::pki::EtcdTlsFiles;
use crate::settings::EtcdTiming;

const GIB: u64 = 1 << 30;

/// `--quota-backend-bytes` unless set: the most that etcd's own documentation advises.
pub const DEFAULT_QUOTA: u64 = 8 * GIB;

/// `--max-request-bytes` unless raised: etcd's own default.
pub const DEFAULT_MAX_REQUEST: u64 = 1_572_864;

/// etcd never takes an election timeout above this (`maxElectionMs`).
pub const ELECTION_MAX_MS: u32 = 50_000;

/// Everything that decides how etcd is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdLaunch {
    /// Member name: the pod's name.
    pub name: String,
    /// The data dir; the WAL is in it.
    pub data_dir: PathBuf,
    /// Address for the client and the peer port. Loopback is always listened on for clients.
    pub listen: IpAddr,
    /// Listen on 127.0.0.1 alone, whatever `listen` says. What is advertised stays the same: it is stored in the store.
    pub loopback_only: bool,
    /// Client port.
    pub client_port: u16,
    /// Peer port.
    pub peer_port: u16,
    /// Plain HTTP for `/livez`, `/readyz` and `/metrics`; must be loopback.
    pub metrics: SocketAddr,
    /// This member's peer URL, by which the others reach it.
    pub peer_url: String,
    /// This member's client URL.
    pub client_url: String,
    /// How the member came or comes to its cluster.
    pub bootstrap: Bootstrap,
    /// Certificates and keys; `None` is plain HTTP, allowed on loopback alone.
    pub tls: Option<EtcdTlsFiles>,
    /// Do not compare a peer's certificate names with its address: for certificates that lack a peer's name.
    pub skip_peer_san: bool,
    /// Heartbeat and election timeout.
    pub timing: EtcdTiming,
    /// `--snapshot-count`.
    pub snapshot_count: u64,
    /// `--quota-backend-bytes`, if set.
    pub quota: Option<u64>,
    /// Size of the store (`member/snap/db`) now, 0 if there is none. The quota is never below it.
    pub store_size: u64,
    /// The largest request that migrated values need, in bytes; only ever raises etcd's own limit.
    pub max_request_bytes: Option<u64>,
    /// Make nothing durable: whoever has started it does that, before anything rests on its data dir. Only on loopback,
    /// where it acknowledges nobody's writes.
    pub unsynced: bool,
    /// The user's own flags. One that we also set replaces ours, except those that a user must not set.
    pub extra_args: Vec<String>,
}

/// How a member comes to its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// The data dir has a WAL: it knows its cluster. Should the WAL be gone after all, etcd ends with an error and does
    /// not form a new, empty cluster.
    Restart,
    /// The same, once, for a member that is to be the only one: all others are removed, and what the WAL does not say is
    /// committed is discarded. Only [`crate::reset`] does this, on loopback.
    ForceNewCluster,
    /// Form a cluster of these members.
    New {
        /// The members, this one among them.
        members: Vec<InitialMember>,
        /// Enters into member and cluster IDs.
        token: String,
    },
    /// Join the cluster of these members, whose list is fresh.
    Existing {
        /// The members, this one among them.
        members: Vec<InitialMember>,
        /// Bytes of the backend file that it is to be sent.
        store_bytes: u64,
    },
}

/// An entry of `--initial-cluster`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    /// Member name.
    pub name: String,
    /// Peer URL.
    pub peer_url: String,
}

/// Why there is no command line for a launch.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ArgsError {
    /// A flag that decides where the data is or who may reach it.
    #[error("etcd's extraArgs must not set --{flag}: {why}")]
    Protected {
        /// The flag, without dashes.
        flag: String,
        /// Why not.
        why: &'static str,
    },
    /// Not a flag and not the value of one.
    #[error("etcd's extraArgs have {arg:?}, which is not a flag; write --NAME=VALUE")]
    NotAFlag {
        /// The argument.
        arg: String,
    },
    /// The flag was removed in this version.
    #[error("etcd {version} has no --{flag}; {instead}")]
    Removed {
        /// The flag, without dashes.
        flag: String,
        /// The version.
        version: EtcdVersion,
        /// What to set instead.
        instead: String,
    },
    /// etcd would refuse this timing.
    #[error(
        "etcd needs an election timeout of 5 heartbeats to 50 s; got {election_ms} ms with a heartbeat of \
         {heartbeat_ms} ms"
    )]
    Timing {
        /// Heartbeat.
        heartbeat_ms: u128,
        /// Election timeout.
        election_ms: u128,
    },
    /// A value that would be read as something else, or that would open a port to everyone.
    #[error("{what}")]
    Unsafe {
        /// What is wrong.
        what: String,
    },
}

impl ArgsError {
    /// As an error that `main` exits with.
    pub fn refused(self) -> anyhow::Error {
        refuse(Exit::Usage, self.to_string(), "change the values of the embedded etcd")
    }
}

/// Flags that users must not set, and why.
const PROTECTED: &[(&str, &str)] = &[
    ("name", "the member is called after its pod"),
    ("data-dir", "set --data-dir of syncer"),
    ("wal-dir", "the WAL is kept in the data dir, where migrations and backups expect it"),
    ("config-file", "with a file etcd ignores every flag"),
    ("config", "with a file etcd ignores every flag"),
    ("force-new-cluster", "it throws away acknowledged writes and evicts the other members"),
    ("unsafe-no-fsync", "it loses acknowledged writes"),
    ("experimental-force-new-cluster", "it throws away acknowledged writes and evicts the other members"),
    ("initial-cluster", "syncer decides which cluster is formed or joined"),
    ("initial-cluster-state", "syncer decides which cluster is formed or joined"),
    ("initial-cluster-token", "syncer decides which cluster is formed or joined"),
    ("initial-advertise-peer-urls", "peers find each other by their pods' names"),
    ("advertise-client-urls", "clients find members by their pods' names"),
    ("listen-peer-urls", "syncer decides when etcd may be reached from outside"),
    ("listen-client-urls", "syncer decides when etcd may be reached from outside"),
    ("listen-metrics-urls", "syncer watches etcd there, on loopback: set --metrics-port"),
    ("client-cert-auth", "etcd is never open to clients without a certificate"),
    ("peer-client-cert-auth", "etcd is never open to peers without a certificate"),
    ("auto-tls", "etcd's certificates are in the PKI directory"),
    ("peer-auto-tls", "etcd's certificates are in the PKI directory"),
    ("cert-file", "etcd's certificates are in the PKI directory"),
    ("key-file", "etcd's certificates are in the PKI directory"),
    ("trusted-ca-file", "etcd's certificates are in the PKI directory"),
    ("peer-cert-file", "etcd's certificates are in the PKI directory"),
    ("peer-key-file", "etcd's certificates are in the PKI directory"),
    ("peer-trusted-ca-file", "etcd's certificates are in the PKI directory"),
    ("logger", "syncer reads etcd's log lines"),
    ("log-outputs", "syncer reads etcd's log lines"),
    ("log-format", "syncer reads etcd's log lines"),
    ("enable-log-rotation", "syncer reads etcd's log lines"),
    ("version", "etcd would print it and end"),
    ("help", "etcd would print it and end"),
    ("h", "etcd would print it and end"),
    ("proxy", "it would not be a member"),
];

/// The arguments of etcd, without the program's name.
pub fn etcd_args(launch: &EtcdLaunch, version: EtcdVersion) -> Result<Vec<OsString>, ArgsError> {
    check(launch)?;
    let extra = ExtraArgs::parse(&launch.extra_args, version)?;
    let mut flags = Flags::default();
    addresses(launch, &mut flags);
    bootstrap(launch, &mut flags);
    tls(launch, version, &mut flags);

    flags.set("heartbeat-interval", launch.timing.heartbeat.as_millis().to_string());
    flags.set("election-timeout", launch.timing.election.as_millis().to_string());
    flags.set("pre-vote", "true");
    flags.set("strict-reconfig-check", "true");
    flags.set("snapshot-count", launch.snapshot_count.to_string());
    let asked = extra.number("quota-backend-bytes").or(launch.quota);
    flags.set("quota-backend-bytes", quota(asked, launch.store_size).to_string());
    if let Some(bytes) = launch.max_request_bytes.filter(|bytes| *bytes > DEFAULT_MAX_REQUEST) {
        let bytes = extra.number("max-request-bytes").map_or(bytes, |asked| asked.max(bytes));
        flags.set("max-request-bytes", bytes.to_string());
    }
    // On loopback there is nobody to compare with, and hashing a large store takes long.
    if !launch.loopback_only {
        corruption_checks(version, &extra, &mut flags);
    }
    let progress = if version.minor == 5 { "experimental-watch-progress-notify-interval" } else { WATCH_PROGRESS };
    flags.set(progress, "5s");
    if launch.unsynced {
        flags.set("unsafe-no-fsync", "true");
    }
    flags.set("logger", "zap");
    flags.set("log-level", "info");
    flags.set("log-outputs", "stderr");
    Ok(flags.with(extra))
}

/// How many learners etcd 3.6 and newer start with, given these extra arguments (`membership.DefaultMaxLearners`).
pub fn max_learners(extra_args: &[String]) -> u64 {
    // What cannot be read is refused where etcd's arguments are made.
    let Ok(extra) = ExtraArgs::read(extra_args) else { return 1 };
    let asked = extra.number("max-learners").or_else(|| extra.number("experimental-max-learners"));
    // One is always a true learner's place.
    asked.unwrap_or(1).max(1)
}

const WATCH_PROGRESS: &str = "watch-progress-notify-interval";

/// The quota: what is asked for (0 and nothing are [`DEFAULT_QUOTA`]), but never below the store plus an eighth of it
/// and 64 MiB, as etcd refuses writes from the moment at which the file *would* exceed the quota.
pub fn quota(asked: Option<u64>, store_size: u64) -> u64 {
    let floor = if store_size == 0 { 0 } else { store_size.saturating_add(store_size / 8).saturating_add(64 << 20) };
    // etcd parses a signed 64-bit number.
    asked.filter(|bytes| *bytes > 0).unwrap_or(DEFAULT_QUOTA).max(floor).min(i64::MAX as u64)
}

fn check(launch: &EtcdLaunch) -> Result<(), ArgsError> {
    let unsafe_ = |what: String| Err(ArgsError::Unsafe { what });
    let (heartbeat_ms, election_ms) = (launch.timing.heartbeat.as_millis(), launch.timing.election.as_millis());
    if heartbeat_ms == 0 || election_ms < 5 * heartbeat_ms || election_ms > u128::from(ELECTION_MAX_MS) {
        return Err(ArgsError::Timing { heartbeat_ms, election_ms });
    }
    if !launch.metrics.ip().is_loopback() {
        return unsafe_(format!("etcd's metrics are plain HTTP and must stay on loopback, not on {}", launch.metrics));
    }
    if launch.tls.is_none() && !launch.loopback_only && !launch.listen.is_loopback() {
        return unsafe_(format!("etcd without TLS must stay on loopback, not on {}", launch.listen));
    }
    if launch.bootstrap == Bootstrap::ForceNewCluster && !launch.loopback_only {
        return unsafe_("etcd with --force-new-cluster must stay on loopback".to_owned());
    }
    if launch.unsynced && !launch.loopback_only {
        return unsafe_("etcd without fsync must stay on loopback".to_owned());
    }
    // `,` and `=` separate the entries of --initial-cluster.
    let members = launch.bootstrap.members();
    let names = members.iter().map(|m| &m.name).chain([&launch.name]);
    let urls = members.iter().map(|m| &m.peer_url).chain([&launch.peer_url, &launch.client_url]);
    if let Some(bad) = names.chain(urls).find(|text| text.is_empty() || text.contains([',', '=', '\0', ' ', '\n'])) {
        return unsafe_(format!("{bad:?} cannot be an etcd member's name or URL"));
    }
    let me = members.iter().any(|m| m.name == launch.name && m.peer_url == launch.peer_url);
    if !matches!(launch.bootstrap, Bootstrap::Restart | Bootstrap::ForceNewCluster) && !me {
        return unsafe_(format!("the initial cluster lacks this member, {}={}", launch.name, launch.peer_url));
    }
    Ok(())
}

impl Bootstrap {
    fn members(&self) -> &[InitialMember] {
        match self {
            Bootstrap::Restart | Bootstrap::ForceNewCluster => &[],
            Bootstrap::New { members, .. } | Bootstrap::Existing { members, .. } => members,
        }
    }
}

fn addresses(launch: &EtcdLaunch, flags: &mut Flags) {
    let scheme = if launch.tls.is_some() { "https" } else { "http" };
    let listen = if launch.loopback_only { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { launch.listen };
    let url = |ip: IpAddr, port: u16| format!("{scheme}://{}", SocketAddr::new(ip, port));
    let mut clients = url(listen, launch.client_port);
    // Our own probes and the API server come by 127.0.0.1.
    if !listen.is_unspecified() && listen != IpAddr::V4(Ipv4Addr::LOCALHOST) {
        clients = format!("{clients},{}", url(IpAddr::V4(Ipv4Addr::LOCALHOST), launch.client_port));
    }
    flags.set("name", &*launch.name);
    flags.set("data-dir", launch.data_dir.as_os_str());
    flags.set("listen-client-urls", clients);
    flags.set("advertise-client-urls", &*launch.client_url);
    flags.set("listen-peer-urls", url(listen, launch.peer_port));
    flags.set("initial-advertise-peer-urls", &*launch.peer_url);
    flags.set("listen-metrics-urls", format!("http://{}", launch.metrics));
}

fn bootstrap(launch: &EtcdLaunch, flags: &mut Flags) {
    let alone = [InitialMember { name: launch.name.clone(), peer_url: launch.peer_url.clone() }];
    let (members, state) = match &launch.bootstrap {
        // "existing" with nobody else to ask is an error for an etcd that has lost its WAL; "new" would form a cluster.
        Bootstrap::Restart | Bootstrap::ForceNewCluster => (&alone[..], "existing"),
        Bootstrap::New { members, .. } => (&members[..], "new"),
        Bootstrap::Existing { members, .. } => (&members[..], "existing"),
    };
    let list: Vec<_> = members.iter().map(|m| format!("{}={}", m.name, m.peer_url)).collect();
    flags.set("initial-cluster", list.join(","));
    flags.set("initial-cluster-state", state);
    if launch.bootstrap == Bootstrap::ForceNewCluster {
        flags.set("force-new-cluster", "true");
    }
    if let Bootstrap::New { token, .. } = &launch.bootstrap {
        flags.set("initial-cluster-token", &**token);
    }
}

fn tls(launch: &EtcdLaunch, version: EtcdVersion, flags: &mut Flags) {
    let Some(tls) = &launch.tls else { return };
    for (flag, file) in [
        ("cert-file", &tls.server_cert),
        ("key-file", &tls.server_key),
        ("trusted-ca-file", &tls.ca),
        ("peer-cert-file", &tls.peer_cert),
        ("peer-key-file", &tls.peer_key),
        ("peer-trusted-ca-file", &tls.peer_ca),
    ] {
        flags.set(flag, file.as_os_str());
    }
    flags.set("client-cert-auth", "true");
    flags.set("peer-client-cert-auth", "true");
    if launch.skip_peer_san {
        let flag = if version.minor == 5 {
            "experimental-peer-skip-client-san-verification"
        } else {
            "peer-skip-client-san-verification"
        };
        flags.set(flag, "true");
    }
}

/// Compares hashes with the peers before serving, and of every compaction.
fn corruption_checks(version: EtcdVersion, extra: &ExtraArgs, flags: &mut Flags) {
    if version.minor == 5 {
        flags.set("experimental-initial-corrupt-check", "true");
        flags.set("experimental-compact-hash-check-enabled", "true");
        return;
    }
    // 3.6 refuses a feature that is set by both spellings; the user's stands.
    let gates: Vec<_> = [
        ("CompactHashCheck", "experimental-compact-hash-check-enabled"),
        ("InitialCorruptCheck", "experimental-initial-corrupt-check"),
    ]
    .iter()
    .filter(|(gate, old)| !extra.has(old) && !extra.value("feature-gates").is_some_and(|v| v.contains(gate)))
    .map(|(gate, _)| format!("{gate}=true"))
    .chain(extra.value("feature-gates").map(str::to_owned))
    .collect();
    if !gates.is_empty() {
        flags.set("feature-gates", gates.join(","));
    }
}

/// Our flags, in the order in which they are set.
#[derive(Default)]
struct Flags(Vec<(&'static str, OsString)>);

impl Flags {
    fn set(&mut self, flag: &'static str, value: impl Into<OsString>) {
        self.0.push((flag, value.into()));
    }

    /// Ours, without those that the user set too, then the user's.
    fn with(self, extra: ExtraArgs) -> Vec<OsString> {
        let merged = |flag: &str| MERGED.contains(&flag) && self.0.iter().any(|(ours, _)| *ours == flag);
        let theirs: Vec<OsString> = extra
            .0
            .iter()
            .filter(|(flag, _)| !merged(flag))
            .map(|(flag, value)| match value {
                Some(value) => format!("--{flag}={value}").into(),
                None => format!("--{flag}").into(),
            })
            .collect();
        let ours = self.0.into_iter().filter(|(flag, _)| MERGED.contains(flag) || !extra.overrides(flag));
        ours.map(|(flag, value)| {
            let mut arg = OsString::from(format!("--{flag}="));
            arg.push(value);
            arg
        })
        .chain(theirs)
        .collect()
    }
}

/// Flags of the user's that have gone into ours.
const MERGED: &[&str] = &["quota-backend-bytes", "max-request-bytes", "feature-gates"];

/// The user's flags, checked: name without dashes, and value.
struct ExtraArgs(Vec<(String, Option<String>)>);

impl ExtraArgs {
    fn parse(args: &[String], version: EtcdVersion) -> Result<Self, ArgsError> {
        let parsed = ExtraArgs::read(args)?;
        parsed.check(version)?;
        Ok(parsed)
    }

    /// As etcd's own flag package takes them.
    fn read(args: &[String]) -> Result<Self, ArgsError> {
        let mut parsed: Vec<(String, Option<String>)> = Vec::new();
        for arg in args {
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|f| !f.is_empty()) else {
                // `--flag`, `value`: Go's flag package takes it so, too.
                match parsed.last_mut() {
                    Some((_, value @ None)) => *value = Some(arg.clone()),
                    _ => return Err(ArgsError::NotAFlag { arg: arg.clone() }),
                }
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            parsed.push((name.to_owned(), value));
        }
        Ok(ExtraArgs(parsed))
    }

    /// None of them is syncer's own, or gone in this version.
    fn check(&self, version: EtcdVersion) -> Result<(), ArgsError> {
        for (name, _) in &self.0 {
            let discovery = name.starts_with("discovery").then_some("syncer decides which cluster is formed or joined");
            let why = PROTECTED.iter().find(|(flag, _)| flag == name).map(|(_, why)| *why).or(discovery);
            if let Some(why) = why {
                return Err(ArgsError::Protected { flag: name.clone(), why });
            }
            if version.minor >= 7
                && let Some(plain) = name.strip_prefix("experimental-")
            {
                return Err(ArgsError::Removed { flag: name.clone(), version, instead: successor(plain) });
            }
        }
        Ok(())
    }

    fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|(name, _)| name == flag)
    }

    /// Whether the user's flags replace ours, in either spelling: 3.6 refuses both at once.
    fn overrides(&self, flag: &str) -> bool {
        self.has(flag) || self.0.iter().any(|(name, _)| name.strip_prefix("experimental-") == Some(flag))
    }

    /// The last value given.
    fn value(&self, flag: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == flag).and_then(|(_, value)| value.as_deref())
    }

    fn number(&self, flag: &str) -> Option<u64> {
        self.value(flag).and_then(|value| value.parse().ok())
    }
}

/// What replaces a removed `--experimental-` flag (`ExperimentalFlagToFeatureMap` and the flag list of 3.6).
fn successor(plain: &str) -> String {
    let gate = match plain {
        "initial-corrupt-check" => "InitialCorruptCheck",
        "compact-hash-check-enabled" => "CompactHashCheck",
        "enable-lease-checkpoint" => "LeaseCheckpoint",
        "enable-lease-checkpoint-persist" => "LeaseCheckpointPersist",
        "stop-grpc-service-on-defrag" => "StopGRPCServiceOnDefrag",
        "txn-mode-write-with-shared-buffer" => "TxnModeWriteWithSharedBuffer",
        _ => return format!("use --{plain}"),
    };
    format!("use --feature-gates={gate}=true")
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
