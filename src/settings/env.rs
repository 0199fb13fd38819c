//! The environment: the one place where it is read, and the names of all variables.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::exit::{Exit, refuse};

/// Access to environment variables, so that tests need not change the process's own.
pub trait Env: Send + Sync {
    /// The value of a variable, if it is set.
    fn get_os(&self, name: &str) -> Option<OsString>;

    /// The value of a variable that is set and not empty. One that is not UTF-8 is refused, naming the variable.
    fn get(&self, name: &str) -> anyhow::Result<Option<String>> {
        match self.get_os(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) if value.is_empty() => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(refuse(
                Exit::Usage,
                format!("the environment variable {name} is not UTF-8"),
                format!("set {name} to plain text or unset it"),
            )),
        }
    }
}

/// The environment of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn get_os(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }
}

impl Env for BTreeMap<String, OsString> {
    fn get_os(&self, name: &str) -> Option<OsString> {
        self.get(name).cloned()
    }
}

/// The names of all variables of this process: a child inherits them less those that would mislead it.
pub fn names() -> Vec<OsString> {
    std::env::vars_os().map(|(name, _)| name).collect()
}

/// The pod's name; that it is set is what tells a pod from a laptop.
pub const POD_NAME: &str = "POD_NAME";
/// The pod's address.
pub const POD_IP: &str = "POD_IP";
/// The name of the virtual cluster (charts since 0.20; 0.19 passes `--name`).
pub const VCLUSTER_NAME: &str = "VCLUSTER_NAME";
/// The namespace of the pod; the charts leave it to the service account's file.
pub const NAMESPACE: &str = "NAMESPACE";
/// The host cluster's API, as Kubernetes tells each pod.
pub const KUBERNETES_SERVICE_HOST: &str = "KUBERNETES_SERVICE_HOST";
/// `k3s`, `k8s`, `eks` or `k0s` (charts of 0.18 and 0.19).
pub const VCLUSTER_DISTRO: &str = "VCLUSTER_DISTRO";
/// The command of k3s or k0s, as YAML `{command: [], args: []}`.
pub const VCLUSTER_COMMAND: &str = "VCLUSTER_COMMAND";
/// The command of kube-apiserver, as YAML `{command: []}`.
pub const APISERVER_COMMAND: &str = "APISERVER_COMMAND";
/// The command of kube-controller-manager, as YAML `{command: []}`.
pub const CONTROLLER_COMMAND: &str = "CONTROLLER_COMMAND";
/// The command of kube-scheduler, as YAML `{command: []}`.
pub const SCHEDULER_COMMAND: &str = "SCHEDULER_COMMAND";
/// Folders in which programs are looked for last.
pub const PATH: &str = "PATH";
/// The log level, where `--log-level` and `SYNCER_LOG_LEVEL` do not give it.
pub const RUST_LOG: &str = "RUST_LOG";

/// Those that tell which pod this is, and which API server runs in it.
pub const OF_THE_POD: &[&str] =
    &[VCLUSTER_NAME, POD_NAME, POD_IP, NAMESPACE, VCLUSTER_DISTRO, VCLUSTER_COMMAND, APISERVER_COMMAND];

/// Variables that the charts set and that do not concern this program.
pub const NOT_OURS: &[&str] =
    &["CONFIG", "VCLUSTER_NODE_NAME", "VCLUSTER_TELEMETRY_CONFIG", "NODE_NAME", "NODE_IP", "ETCD_UNSUPPORTED_ARCH"];

/// The variable that stands for a flag of `syncer start`: `--data-dir` is `SYNCER_DATA_DIR`.
///
/// `--port` is `SYNCER_FRONT_PORT`, because Kubernetes sets `SYNCER_PORT=tcp://...` itself in every pod beside a
/// Service named `syncer`.
pub fn variable_of(flag: &str) -> String {
    let flag = if flag == "port" { "front-port" } else { flag };
    format!("SYNCER_{}", flag.to_uppercase().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn empty_is_unset_and_non_text_is_refused() {
        let env = BTreeMap::from([
            ("A".to_owned(), OsString::from("x")),
            ("B".to_owned(), OsString::new()),
            ("C".to_owned(), OsString::from_vec(vec![0xff])),
        ]);
        let env: &dyn Env = &env;
        assert_eq!(env.get("A").unwrap().as_deref(), Some("x"));
        assert_eq!(env.get("B").unwrap(), None);
        assert_eq!(env.get("D").unwrap(), None);
        let error = env.get("C").unwrap_err();
        assert_eq!(crate::exit::exit_of(&error), Exit::Usage);
        assert!(error.to_string().contains("variable C"), "{error}");
    }

    #[test]
    fn a_flag_has_a_variable() {
        assert_eq!(variable_of("data-dir"), "SYNCER_DATA_DIR");
        assert_eq!(variable_of("port"), "SYNCER_FRONT_PORT");
    }
}
