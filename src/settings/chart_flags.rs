//! Flags of the charts' syncer that do not concern this program. They are taken out of the command line before it is
//! parsed, each with one debug line, so that the arguments of a 0.19 chart can stay as they are while a misspelt flag
//! of ours is still an error. Sources: vCluster 0.19, `pkg/setup/options/flags.go`, and for the flags of the paid
//! edition the charts' templates and `config/legacyconfig` of 0.20.

use std::ffi::{OsStr, OsString};

/// Flags without a value, or with `=true` or `=false`.
const SWITCHES: &[&str] = &[
    "disable-fake-kubelets",
    "disable-plugins",
    "enable-priority-classes",
    "enable-storage-classes",
    "enforce-node-selector",
    "fake-kubelet-ips",
    "fake-kubelets",
    "fake-nodes",
    "fake-persistent-volumes",
    "integrated-coredns",
    "leader-elect",
    "mount-physical-host-paths",
    "multi-namespace-mode",
    "node-clear-image-status",
    "noop-syncer",
    "override-hosts",
    "proxy-metrics-server",
    "rewrite-host-paths",
    "service-account-token-secrets",
    "set-owner",
    "single-binary-distro",
    "sync-all-configmaps",
    "sync-all-nodes",
    "sync-all-secrets",
    "sync-k8s-service",
    "sync-node-changes",
    "use-coredns-plugin",
];

/// Flags with a value, after `=` or as the next argument.
const WITH_VALUE: &[&str] = &[
    "default-image-registry",
    "disable-sync-resources",
    "enforce-mutating-hook",
    "enforce-pod-security-standard",
    "enforce-toleration",
    "enforce-validating-hook",
    "host-metrics-bind-address",
    "kube-config",
    "kube-config-context-name",
    "lease-duration",
    "map-host-service",
    "map-virtual-service",
    "namespace-labels",
    "node-selector",
    "out-kube-config-secret",
    "out-kube-config-secret-namespace",
    "out-kube-config-server",
    "override-hosts-container-image",
    "owning-statefulset",
    "plugin-listen-address",
    "plugins",
    "pro-license-secret",
    "remote-kube-config",
    "remote-namespace",
    "remote-service-name",
    "renew-deadline",
    "request-header-ca-cert",
    "retry-period",
    "server-ca-cert",
    "server-ca-key",
    "service-account",
    "service-name",
    "suffix",
    "sync",
    "sync-labels",
    "target-namespace",
    "translate-image",
    "virtual-metrics-bind-address",
];

/// Splits the arguments of `start` into those that are ours and the names of flags that are not. Nothing after `--`
/// is looked at: that is the wrapped command.
pub fn take(args: Vec<OsString>) -> (Vec<OsString>, Vec<String>) {
    let (mut ours, mut taken) = (Vec::new(), Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            ours.push(arg);
            break;
        }
        match foreign(&arg) {
            Some((name, value_follows)) => {
                taken.push(name);
                if value_follows {
                    // A flag at the end without its value changes nothing for us.
                    let _ = args.next();
                }
            }
            None => ours.push(arg),
        }
    }
    ours.extend(args);
    (ours, taken)
}

/// The flag's name if it is one of the lists, and whether its value is the next argument.
fn foreign(arg: &OsStr) -> Option<(String, bool)> {
    // A value may hold any bytes; a name in the lists does not.
    let text = arg.to_string_lossy();
    let text = text.strip_prefix("--")?;
    let (name, inline) = match text.split_once('=') {
        Some((name, _)) => (name, true),
        None => (text, false),
    };
    if SWITCHES.binary_search(&name).is_ok() {
        return Some((name.to_owned(), false));
    }
    WITH_VALUE.binary_search(&name).is_ok().then(|| (name.to_owned(), !inline))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::flags::Flags;

    #[test]
    fn the_lists_are_sorted_and_hold_no_flag_of_ours() {
        assert!(SWITCHES.is_sorted() && WITH_VALUE.is_sorted(), "the lists are searched by halves");
        for name in Flags::names() {
            assert!(foreign(OsStr::new(&format!("--{name}"))).is_none(), "--{name} is ours");
        }
    }

    #[test]
    fn foreign_flags_are_taken_with_their_values() {
        let args = "--name=a --leader-elect=true --sync -fake-nodes --fake-kubelet-ips --kube-config=/x \
                    --etcd-replicas 3 --node-selector a=b --noop-syncre -- cmd --sync x";
        let (ours, taken) = take(args.split_whitespace().map(OsString::from).collect());
        assert_eq!(ours, ["--name=a", "--etcd-replicas", "3", "--noop-syncre", "--", "cmd", "--sync", "x"]);
        assert_eq!(taken, ["leader-elect", "sync", "fake-kubelet-ips", "kube-config", "node-selector"]);
        assert_eq!(take(vec!["--sync".into()]).1, ["sync"]);
    }
}
