//! The chart's values as written, in both eras.
//!
//! The file is the values of the whole chart: either of the four charts of vCluster 0.17 to 0.19 ([`v019`]) or of the
//! one chart since 0.20 ([`v020`]). Which it is shows by its keys. Keys that do not concern this program are passed
//! over, however they look; within the subtree of embedded etcd ([`etcd`]) an unknown key is an error, because a
//! misspelt `enabled` would run the cluster on the wrong store.

pub mod etcd;
mod section;
mod v019;
mod v020;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::yaml::{self, Key, Node, Value};
use super::{Distro, DistroCommand};
use crate::exit::{Exit, refuse};
pub use etcd::EtcdValues;
pub use section::Spot;
use section::{Fault, Section};

/// The largest file that is read. Kubernetes limits Secrets and ConfigMaps to 1 MiB.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The most replicas accepted. Each write waits for a majority, so more members are slower, not safer: etcd advises
/// at most 7 (etcd FAQ, "What is maximum cluster size?"), and 9 tolerate the loss of 4. More is taken for a slip.
pub const MAX_REPLICAS: u32 = 9;

/// The generation of the chart that a values file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Era {
    /// The charts `vcluster`, `vcluster-k8s`, `vcluster-eks`, `vcluster-k0s` of 0.17 to 0.19.
    #[serde(rename = "0.19")]
    V019,
    /// The one chart since 0.20.
    #[serde(rename = "0.20+")]
    V020,
}

/// What a values file says about things that concern this program. `None`: it does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Values {
    /// The file's generation; `None` if it has no key of either.
    pub era: Option<Era>,
    /// The subtree of embedded etcd.
    pub etcd: EtcdValues,
    /// Desired replicas: 0.19 `syncer.replicas`, 0.20+ `controlPlane.statefulSet.highAvailability.replicas`.
    pub replicas: Option<Spot<u32>>,
    /// 0.19 `replicas`: what the k3s and k0s charts give precedence over `syncer.replicas`; the others do not know it.
    pub legacy_replicas: Option<Spot<u32>>,
    /// Another store than ours or SQLite is enabled.
    pub other_store: Option<Spot<OtherStore>>,
    /// SQLite is enabled by name (0.20+ `controlPlane.backingStore.database.embedded.enabled`).
    pub sqlite: Option<Spot<bool>>,
    /// The deployed etcd's service: `<name>-etcd`, or `<name>-etcd-headless` if its service is switched off.
    pub deployed_etcd_headless: bool,
    /// The distro: 0.20+ as said, 0.19 as can be told from the keys.
    pub distro: Option<Spot<Distro>>,
    /// The command of k3s or k0s.
    pub vcluster: Option<Spot<DistroCommand>>,
    /// The command of kube-apiserver.
    pub apiserver: Option<Spot<DistroCommand>>,
    /// The command of kube-controller-manager.
    pub controller: Option<Spot<DistroCommand>>,
    /// The command of kube-scheduler.
    pub scheduler: Option<Spot<DistroCommand>>,
    /// Whether kube-scheduler runs.
    pub scheduler_enabled: Option<Spot<bool>>,
    /// No kube-controller-manager: 0.19 `controller.disabled`, 0.20+ `controllerManager.enabled: false`.
    pub controller_disabled: Option<Spot<bool>>,
    /// Additional arguments of k3s or k0s.
    pub vcluster_extra_args: Option<Spot<Vec<String>>>,
    /// Additional arguments of kube-apiserver.
    pub apiserver_extra_args: Option<Spot<Vec<String>>>,
    /// Additional arguments of kube-controller-manager.
    pub controller_extra_args: Option<Spot<Vec<String>>>,
    /// Additional arguments of kube-scheduler.
    pub scheduler_extra_args: Option<Spot<Vec<String>>>,
    /// The token of k3s.
    pub k3s_token: Option<Spot<String>>,
    /// The whole k0s configuration in place of the chart's.
    pub k0s_config: Option<Spot<String>>,
    /// DNS domain of the virtual cluster.
    pub cluster_domain: Option<Spot<String>>,
    /// Range of Service addresses.
    pub service_cidr: Option<Spot<String>>,
    /// Additional names for the serving certificate.
    pub tls_sans: Option<Spot<Vec<String>>>,
    /// The port of the Service and probes.
    pub front_port: Option<Spot<u16>>,
    /// The address to listen on.
    pub bind_address: Option<Spot<String>>,
}

/// A store that is neither ours nor SQLite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OtherStore {
    /// `etcd.deploy`: an etcd StatefulSet of its own.
    DeployedEtcd,
    /// `etcd.external` with its endpoint. On loopback it may be the etcd that this program runs as a sidecar.
    ExternalEtcd(String),
    /// `database.external`, or `database.embedded` with a data source.
    Database,
}

/// Why a values file is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {what}", file, line.map(|l| format!(":{l}")).unwrap_or_default())]
pub struct ValuesError {
    /// The file as it was named.
    pub file: String,
    /// The line, where there is one.
    pub line: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl ValuesError {
    /// The error that ends the program: exit code 2.
    pub fn refuse(self) -> anyhow::Error {
        let remedy = self.remedy.clone();
        refuse(Exit::Usage, self.to_string(), remedy)
    }
}

/// Reads and parses a values file.
pub fn read(path: &Path) -> Result<Values, ValuesError> {
    parse(path, &read_bytes(path)?)
}

/// Reads a values file, at most [`MAX_FILE_BYTES`] of it.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ValuesError> {
    let fail = |what: String, remedy: &str| ValuesError {
        file: path.display().to_string(),
        line: None,
        what,
        remedy: remedy.to_owned(),
    };
    let unreadable = |e: std::io::Error| {
        let remedy = match e.kind() {
            std::io::ErrorKind::NotFound => "check the path given by --values, or leave it out to run on the defaults",
            std::io::ErrorKind::PermissionDenied => "make it readable to the user that syncer runs as",
            _ => "check the file and the volume it is on",
        };
        fail(format!("cannot be read: {e}"), remedy)
    };
    let meta = std::fs::metadata(path).map_err(unreadable)?;
    if meta.is_dir() {
        return Err(fail("is a directory".to_owned(), "name the values file in it, for example config.yaml"));
    }
    if !meta.is_file() {
        // Reading a FIFO would wait for ever.
        return Err(fail("is not a regular file".to_owned(), "name a file"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(fail(
            format!("is larger than {} MiB", MAX_FILE_BYTES / 1024 / 1024),
            "is this the values file? Kubernetes itself limits a Secret or ConfigMap to 1 MiB",
        ));
    }
    Ok(bytes)
}

/// Parses the content of a values file. `path` is for messages.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Values, ValuesError> {
    let file = path.display().to_string();
    let located =
        |fault: Fault| ValuesError { file: file.clone(), line: fault.line, what: fault.what, remedy: fault.remedy };
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let before = bytes.get(..e.valid_up_to()).unwrap_or_default();
        let line = 1 + before.iter().filter(|b| **b == b'\n').count() as u64;
        located(Fault::at(line, "is not UTF-8", "save the file as UTF-8 text"))
    })?;
    if text.trim_start_matches('\u{feff}').trim().is_empty() {
        return Err(located(empty()));
    }
    let root = yaml::parse(text).map_err(|e| {
        located(Fault {
            line: e.line,
            what: e.what,
            remedy: "correct the file: Helm must be able to read it too".to_owned(),
        })
    })?;
    from_tree(&root).map_err(located)
}

/// Parses the command of a distro as the charts write it in an environment variable: `{command: [...], args: [...]}`.
pub fn command(variable: &str, text: &str) -> Result<DistroCommand, ValuesError> {
    let located = |fault: Fault| ValuesError {
        file: format!("environment variable {variable}"),
        line: fault.line,
        what: fault.what,
        remedy: fault.remedy,
    };
    let remedy = "write it as YAML: {command: [PROGRAM, ARGUMENT...], args: [ARGUMENT...]}";
    let fault = |line, what: &str| located(Fault { line, what: what.to_owned(), remedy: remedy.to_owned() });
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(fault(None, "is too large"));
    }
    let root = yaml::parse(text).map_err(|e| fault(e.line, &e.what))?;
    if !matches!(root.value, Value::Map(_)) {
        return Err(fault(None, "is not a mapping"));
    }
    let section = Section::root(&root);
    section.only(&["command", "args"], &[]).map_err(located)?;
    let texts = |key| section.texts(key).map(|t| t.map(|t| t.value).unwrap_or_default()).map_err(located);
    let command = DistroCommand { command: texts("command")?, args: texts("args")? };
    if command.command.is_empty() {
        return Err(fault(None, "has no command"));
    }
    Ok(command)
}

fn empty() -> Fault {
    Fault { line: None, what: "is empty".to_owned(), remedy: "write {} into it to run on the defaults".to_owned() }
}

fn from_tree(root: &Node) -> Result<Values, Fault> {
    match &root.value {
        Value::Null => return Err(empty()),
        Value::Map(_) => {}
        _ => {
            return Err(Fault::at(
                root.line,
                format!("holds {} where the chart's values should be", root.type_name()),
                "give the values file of the vCluster chart; `syncer config --example` prints one",
            ));
        }
    }
    // As in Helm, null takes a key away.
    let written = |key: &&str| root.get(key).filter(|(_, node)| node.value != Value::Null);
    let old = v019::KEYS.iter().find_map(written);
    let new = v020::KEYS.iter().find_map(written);
    if let (Some((old, _)), Some((new, _))) = (old, new)
        && v019::OWN_KEYS.contains(&old.name.as_str())
    {
        return Err(Fault::at(
            old.line.max(new.line),
            format!(
                "has both {:?} (line {}), a key of the 0.19 charts, and {:?} (line {}), a key of the chart since 0.20",
                old.name, old.line, new.name, new.line
            ),
            "keep one form: for 0.19 set embeddedEtcd and syncer, since 0.20 set controlPlane",
        ));
    }
    let section = Section::root(root);
    section.no_near_miss(&["embeddedEtcd", "controlPlane"])?;
    match (old, new) {
        (_, Some(_)) => v020::read(&section),
        (Some(_), None) => v019::read(&section),
        (None, None) => without_era(root),
    }
}

/// What a file says that has no key of either era: `serviceCIDR`, which both have, and what the 0.19 charts have in
/// places that are theirs by no more than the form. Of another form such a key is somebody else's.
fn without_era(root: &Node) -> Result<Values, Fault> {
    let Value::Map(entries) = &root.value else { return Ok(Values::default()) };
    let of_the_form = |(key, node): &&(Key, Node)| match key.name.as_str() {
        "ingress" | "sync" => matches!(node.value, Value::Map(_)),
        "config" => matches!(node.value, Value::Text(_)),
        _ => true,
    };
    let entries: Vec<_> = entries.iter().filter(of_the_form).cloned().collect();
    v019::read(&Section::of(&entries)).map(|values| Values { era: None, ..values })
}

/// A replica count, checked against [`MAX_REPLICAS`].
fn replicas(section: &Section<'_>, key: &str) -> Result<Option<Spot<u32>>, Fault> {
    let Some(spot) = section.whole(key, "a number of replicas")? else { return Ok(None) };
    match u32::try_from(spot.value) {
        Ok(n) if n <= MAX_REPLICAS => Ok(Some(Spot { value: n, line: spot.line })),
        _ => Err(Fault::at(
            spot.line,
            format!("{} is {}, but must be from 0 to {MAX_REPLICAS}", section.name(key), spot.value),
            "use 1, 3 or 5: every write waits for a majority of the members, so more are slower and not safer",
        )),
    }
}

/// What is worth a warning about a replica count, if anything.
pub fn replicas_warning(replicas: u32) -> Option<String> {
    match replicas {
        0 => Some("replicas is 0: the virtual cluster is paused; nothing leaves the etcd cluster".to_owned()),
        n if n % 2 == 0 => Some(format!(
            "replicas is {n}: an even number of members tolerates the loss of no more than {} do; use {} or {}",
            n - 1,
            n - 1,
            n + 1
        )),
        n if n > 7 => Some(format!("replicas is {n}: etcd advises at most 7 members")),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
