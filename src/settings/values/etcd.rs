//! The subtree of embedded etcd: `embeddedEtcd` in 0.19, `controlPlane.backingStore.etcd.embedded` since 0.20.
//!
//! `enabled`, `migrateFromEtcd` / `migrateFromDeployedEtcd`, `snapshotCount` and `extraArgs` are the charts' own; the
//! other keys are this program's additions in the charts' manner. `config/values.yaml` explains each.

use std::str::FromStr;

use super::section::{Fault, Section, Spot};
use crate::etcd::args::ELECTION_MAX_MS;
use crate::snapshot::directory::Directory;
use crate::snapshot::schedule::Schedule;
use crate::snapshot::target::Target;

/// Keys of the subtree in both eras; see [`KEYS_019`] and [`KEYS_020`] for the one that differs.
const COMMON: [&str; 8] = [
    "enabled",
    "migrateBack",
    "snapshotCount",
    "extraArgs",
    "quotaBackendBytes",
    "heartbeatInterval",
    "electionTimeout",
    "snapshots",
];

/// Keys of `embeddedEtcd`.
pub const KEYS_019: [&str; 9] = with("migrateFromEtcd");
/// Keys of `controlPlane.backingStore.etcd.embedded`.
pub const KEYS_020: [&str; 9] = with("migrateFromDeployedEtcd");

const fn with(key: &'static str) -> [&'static str; 9] {
    let [a, b, c, d, e, f, g, h] = COMMON;
    [a, b, c, d, e, f, g, h, key]
}

/// What the subtree says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EtcdValues {
    /// `enabled`.
    pub enabled: Option<Spot<bool>>,
    /// `migrateFromEtcd` or `migrateFromDeployedEtcd`.
    pub migrate_from_deployed: Option<Spot<bool>>,
    /// `migrateBack`.
    pub migrate_back: Option<Spot<bool>>,
    /// `snapshotCount`; a number below 1 means 10000, as in the chart.
    pub snapshot_count: Option<Spot<u64>>,
    /// `extraArgs`, less those that have a setting of their own.
    pub extra_args: Option<Spot<Vec<String>>>,
    /// `quotaBackendBytes`, or `--quota-backend-bytes` among `extraArgs`.
    pub quota_backend_bytes: Option<Spot<u64>>,
    /// `heartbeatInterval` in milliseconds.
    pub heartbeat_ms: Option<Spot<u64>>,
    /// `electionTimeout` in milliseconds.
    pub election_ms: Option<Spot<u64>>,
    /// `snapshots`.
    pub snapshots: SnapshotValues,
}

/// What `snapshots` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapshotValues {
    /// `schedule`.
    pub schedule: Option<Spot<Schedule>>,
    /// `keep`.
    pub keep: Option<Spot<u32>>,
    /// `target`.
    pub target: Option<Spot<Target>>,
}

const MAX_ELECTION_MS: i64 = ELECTION_MAX_MS as i64;
/// Smaller stores do not hold even an empty virtual cluster for long.
const MIN_QUOTA: i64 = 64 << 20;
/// Far above what etcd can serve (its own advice ends at 8 GiB).
const MAX_QUOTA: i64 = 1 << 40;
/// More are not looked through in one listing.
const MAX_KEEP: i64 = 10_000;
/// etcd's own default; more only costs memory and start time.
const MAX_SNAPSHOT_COUNT: i64 = 10_000_000;

/// Reads the subtree. `known` is [`KEYS_019`] or [`KEYS_020`].
pub(super) fn read(section: &Section<'_>, known: &[&str], migrate_key: &str) -> Result<EtcdValues, Fault> {
    section.only(
        known,
        &[
            ("replicas", "replicas are those of the StatefulSet: syncer.replicas in 0.19, controlPlane.statefulSet.highAvailability.replicas since 0.20"),
            ("migrateFromEtcd", "it is called migrateFromDeployedEtcd since 0.20"),
            ("migrateFromDeployedEtcd", "it is called migrateFromEtcd in 0.19"),
        ],
    )?;
    let mut values = EtcdValues {
        enabled: section.flag("enabled")?,
        migrate_from_deployed: section.flag(migrate_key)?,
        migrate_back: section.flag("migrateBack")?,
        snapshot_count: section.whole("snapshotCount", "a number of log entries")?.map(snapshot_count),
        extra_args: None,
        quota_backend_bytes: quota(section)?,
        heartbeat_ms: section.within("heartbeatInterval", 1, MAX_ELECTION_MS / 5, "milliseconds")?.map(unsign),
        election_ms: section.within("electionTimeout", 5, MAX_ELECTION_MS, "milliseconds")?.map(unsign),
        snapshots: snapshots(&section.section("snapshots")?)?,
    };
    if let Some((line, args)) = section.text_nodes("extraArgs")? {
        values.take_args(section, line, args)?;
    }
    Ok(values)
}

fn snapshot_count(spot: Spot<i64>) -> Spot<u64> {
    spot.map(|n| if n < 1 { 10_000 } else { n.min(MAX_SNAPSHOT_COUNT) as u64 })
}

fn snapshots(section: &Section<'_>) -> Result<SnapshotValues, Fault> {
    section.only(&["schedule", "keep", "target"], &[])?;
    let schedule = parsed(section, "schedule", "such as \"0 */6 * * *\" or \"@daily\", in UTC")?;
    let target: Option<Spot<Target>> =
        parsed(section, "target", "an absolute path of a directory in the pod, or s3://BUCKET/PREFIX")?;
    if let Some(Spot { value: Target::Directory(Directory(dir)), line }) = &target
        && !dir.is_absolute()
    {
        let what =
            format!("{} is {}, which is not absolute", section.name("target"), short(&dir.display().to_string()));
        return Err(Fault::at(*line, what, "write it from the root, such as /data/snapshots"));
    }
    let keep = section.within("keep", 1, MAX_KEEP, "snapshots")?.map(|spot| spot.map(|n| n as u32));
    Ok(SnapshotValues { schedule, keep, target })
}

/// A text that means something.
fn parsed<T: FromStr<Err = String>>(section: &Section<'_>, key: &str, remedy: &str) -> Result<Option<Spot<T>>, Fault> {
    let Some(Spot { value, line }) = section.text(key)? else { return Ok(None) };
    let value = value.parse().map_err(|e: String| {
        Fault::at(line, format!("{}: {}", section.name(key), short(&e)), format!("write {remedy}"))
    })?;
    Ok(Some(Spot { value, line }))
}

/// A message that may quote all of a long text: its beginning, and its end, which says what is wrong.
fn short(message: &str) -> String {
    let chars: Vec<char> = message.chars().collect();
    if chars.len() <= 300 {
        return message.to_owned();
    }
    let part = |chars: &[char]| chars.iter().collect::<String>();
    format!("{}...{}", part(&chars[..150]), part(&chars[chars.len() - 150..]))
}

fn unsign(spot: Spot<i64>) -> Spot<u64> {
    spot.map(i64::unsigned_abs)
}

/// `quotaBackendBytes`: bytes, or a Kubernetes quantity with a binary suffix.
fn quota(section: &Section<'_>) -> Result<Option<Spot<u64>>, Fault> {
    let key = "quotaBackendBytes";
    let Some(node) = section.node(key) else { return Ok(None) };
    let bytes = match &node.value {
        crate::settings::yaml::Value::Int(n) => Some(*n),
        crate::settings::yaml::Value::Text(text) => quantity(text),
        _ => None,
    };
    bounded_quota(bytes, node.line, &section.name(key), &node.kind()).map(Some)
}

fn bounded_quota(bytes: Option<i64>, line: u64, name: &str, shown: &str) -> Result<Spot<u64>, Fault> {
    match bytes {
        Some(n) if (MIN_QUOTA..=MAX_QUOTA).contains(&n) => Ok(Spot { value: n.unsigned_abs(), line }),
        _ => Err(Fault::at(
            line,
            format!("{name} must be from 64Mi to 1Ti, not {shown}"),
            "write bytes (8589934592) or a quantity (8Gi)",
        )),
    }
}

fn quantity(text: &str) -> Option<i64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(1 << shift)
}

impl EtcdValues {
    /// Checks `extraArgs` and moves flags that have a setting of their own there, so that each is given once.
    fn take_args(&mut self, section: &Section<'_>, line: u64, args: Vec<Spot<String>>) -> Result<(), Fault> {
        let mut rest = Vec::new();
        let mut args = args.into_iter().peekable();
        while let Some(arg) = args.next() {
            let name = checked_name(&arg)?;
            // `--flag value` in two items, as Go's flag package reads it.
            let inline = arg.value.split_once('=').map(|(_, v)| v.to_owned());
            let next = args.next_if(|next| inline.is_none() && !next.value.starts_with('-')).map(|a| a.value);
            let value = inline.as_ref().or(next.as_ref());
            let number = || -> Result<i64, Fault> {
                value.and_then(|v| v.parse().ok()).ok_or_else(|| {
                    Fault::at(
                        arg.line,
                        format!("{} of extraArgs needs a whole number", arg.value),
                        "write it as --flag=NUMBER",
                    )
                })
            };
            let ms = |low: i64, high: i64| {
                let n = number()?;
                if (low..=high).contains(&n) {
                    return Ok(Spot { value: n.unsigned_abs(), line: arg.line });
                }
                Err(Fault::at(
                    arg.line,
                    format!("{} must be milliseconds from {low} to {high}", arg.value),
                    "correct the number",
                ))
            };
            match name.as_str() {
                "quota-backend-bytes" => {
                    let quota = bounded_quota(Some(number()?), arg.line, "--quota-backend-bytes", &arg.value)?;
                    once(&mut self.quota_backend_bytes, quota, section, "quotaBackendBytes")?;
                }
                "snapshot-count" => {
                    let count = snapshot_count(Spot { value: number()?, line: arg.line });
                    once(&mut self.snapshot_count, count, section, "snapshotCount")?;
                }
                "heartbeat-interval" => {
                    let spot = ms(1, MAX_ELECTION_MS / 5)?;
                    once(&mut self.heartbeat_ms, spot, section, "heartbeatInterval")?;
                }
                "election-timeout" => {
                    let spot = ms(5, MAX_ELECTION_MS)?;
                    once(&mut self.election_ms, spot, section, "electionTimeout")?;
                }
                _ => {
                    rest.push(arg.value);
                    rest.extend(next);
                }
            }
        }
        self.extra_args = (!rest.is_empty()).then_some(Spot { value: rest, line });
        Ok(())
    }
}

/// Sets what may be said only once.
fn once<T>(place: &mut Option<Spot<T>>, spot: Spot<T>, section: &Section<'_>, key: &str) -> Result<(), Fault> {
    if let Some(first) = place {
        return Err(Fault::at(
            spot.line,
            format!("extraArgs repeats what {} says on line {}", section.name(key), first.line),
            "keep one of them",
        ));
    }
    *place = Some(spot);
    Ok(())
}

/// Why flags of etcd are not to be had through `extraArgs`: exact names, and beginnings of names ending in `*`.
const FORBIDDEN: &[(&[&str], &str)] = &[
    (
        &["data-dir", "wal-dir", "name", "config-file", "initial-*", "discovery*", "advertise-client-urls"],
        "syncer decides which member this is and where its data lies",
    ),
    (
        &["force-new-cluster*", "strict-reconfig-check"],
        "it can discard acknowledged writes; use `syncer recover` when a majority is lost for good",
    ),
    (&["unsafe-no-fsync"], "without fsync a crash loses acknowledged writes"),
    (
        &["listen-*", "socket-reuse-*"],
        "set ports and addresses by --listen-address, --client-port, --peer-port, --metrics-port, --state-port",
    ),
    (
        &[
            "cert-file",
            "key-file",
            "trusted-ca-file",
            "client-cert-*",
            "client-crl-file",
            "client-key-file",
            "auto-tls",
            "peer-*",
            "tls-*",
            "self-signed-cert-validity",
            "experimental-peer-skip-client-san-verification",
            "ca-file",
        ],
        "certificates come from the PKI directory (--pki-dir)",
    ),
    (
        &["logger", "log-outputs", "log-format", "log-rotation-config-json", "enable-log-rotation"],
        "syncer reads etcd's log lines",
    ),
    (&["version", "h", "help"], "etcd would not start"),
];

/// Flags that must stay usable although a pattern above matches them.
const ALLOWED: &[&str] = &["initial-election-tick-advance", "tls-cipher-suites", "tls-min-version", "tls-max-version"];

/// The name of a flag, if etcd may be given it.
fn checked_name(arg: &Spot<String>) -> Result<String, Fault> {
    let fault = |what: String, remedy: &str| Err(Fault::at(arg.line, what, remedy));
    let shown: String = arg.value.chars().take(80).collect();
    // Go's flag package takes one dash as well as two.
    let Some(name) = arg.value.strip_prefix("--").or_else(|| arg.value.strip_prefix('-')) else {
        return fault(format!("{shown:?} in extraArgs is not a flag"), "write each as --flag=value");
    };
    let name = name.split('=').next().unwrap_or_default();
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return fault(format!("{shown:?} in extraArgs is not a flag of etcd"), "write each as --flag=value");
    }
    let matches = |pattern: &&str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *pattern,
    };
    if !ALLOWED.contains(&name)
        && let Some((_, why)) = FORBIDDEN.iter().find(|(patterns, _)| patterns.iter().any(matches))
    {
        return fault(format!("--{name} may not be given in extraArgs"), &format!("remove it: {why}"));
    }
    Ok(name.to_owned())
}
