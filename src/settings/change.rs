//! What a changed values file asks for: which settings differ, and how each takes effect. Pure.

use std::ffi::OsString;

use super::provenance::{REDACTED, redacted};
use super::{DistroCommand, DnsSettings, EtcdSettings, EtcdTiming, Listen, PodIdentity, Programs, Settings};

/// How a changed setting takes effect, the mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// At once.
    Live,
    /// When etcd is started with other arguments; nothing else of the pod need stop for it.
    EtcdRestart,
    /// When the pod is started again. Until then the old value holds.
    PodRestart,
}

/// One setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name, as `syncer config` shows it.
    pub setting: &'static str,
    /// Its old value.
    pub old: String,
    /// Its new value.
    pub new: String,
    /// How it takes effect.
    pub effect: Effect,
}

/// All settings that differ, in the order of [`Settings`].
pub fn between(old: &Settings, new: &Settings) -> Vec<Change> {
    let mut changes = Vec::new();
    macro_rules! differ {
        ($setting:literal, $old:expr, $new:expr, $effect:expr) => {
            differ!($setting, $old, $new, $effect, |value| value)
        };
        ($setting:literal, $old:expr, $new:expr, $effect:expr, $show:expr) => {
            if $old != $new {
                let (old, new) = (format!("{:?}", $show($old)), format!("{:?}", $show($new)));
                changes.push(Change { setting: $setting, old, new, effect: $effect });
            }
        };
    }
    // Taken apart without `..`, so that a new field must be given its effect here.
    let Settings {
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
        values_file,
        log_format,
        log_level,
    } = old;
    let PodIdentity { name: pod_name, ordinal, ip, in_pod } = pod;
    let EtcdSettings {
        enabled,
        replicas,
        migrate_from,
        migrate_back,
        snapshot_count,
        extra_args,
        quota_backend_bytes,
        timing: EtcdTiming { heartbeat, election },
        timing_set,
        snapshots,
    } = etcd;
    let Programs {
        folders,
        vcluster,
        apiserver,
        controller,
        scheduler,
        scheduler_enabled,
        controller_disabled,
        apiserver_extra_args,
        controller_extra_args,
        scheduler_extra_args,
        k0s_config,
    } = programs;
    let DnsSettings { server, resolv_conf } = dns;
    let Listen { address, client_port, peer_port, metrics_port, state_port, front_port, apiserver_port } = listen;

    use Effect::{EtcdRestart, Live, PodRestart};
    differ!("name", name, &new.name, PodRestart);
    differ!("namespace", namespace, &new.namespace, PodRestart);
    differ!("pod.name", pod_name, &new.pod.name, PodRestart);
    differ!("pod.ordinal", ordinal, &new.pod.ordinal, PodRestart);
    differ!("pod.ip", ip, &new.pod.ip, PodRestart);
    differ!("pod.inPod", in_pod, &new.pod.in_pod, PodRestart);
    differ!("distro", distro, &new.distro, PodRestart);
    differ!("dataDir", data_dir, &new.data_dir, PodRestart);
    differ!("pkiDir", pki_dir, &new.pki_dir, PodRestart);
    differ!("etcd.enabled", enabled, &new.etcd.enabled, PodRestart);
    differ!("etcd.replicas", replicas, &new.etcd.replicas, Live);
    differ!("etcd.migrateFrom", migrate_from, &new.etcd.migrate_from, PodRestart);
    differ!("etcd.migrateBack", migrate_back, &new.etcd.migrate_back, PodRestart);
    differ!("etcd.snapshotCount", snapshot_count, &new.etcd.snapshot_count, EtcdRestart);
    differ!("etcd.quotaBackendBytes", quota_backend_bytes, &new.etcd.quota_backend_bytes, EtcdRestart);
    differ!("etcd.heartbeatInterval", heartbeat, &new.etcd.timing.heartbeat, EtcdRestart);
    differ!("etcd.electionTimeout", election, &new.etcd.timing.election, EtcdRestart);
    differ!("etcd.timingSet", timing_set, &new.etcd.timing_set, EtcdRestart);
    differ!("etcd.snapshots", snapshots, &new.etcd.snapshots, Live);
    // Free text that only etcd can judge: a mistake in it must not stop an etcd that serves.
    differ!("etcd.extraArgs", extra_args, &new.etcd.extra_args, PodRestart);
    differ!("programs.folders", folders, &new.programs.folders, PodRestart);
    differ!("programs.vcluster", vcluster, &new.programs.vcluster, PodRestart, command);
    differ!("programs.apiserver", apiserver, &new.programs.apiserver, PodRestart, command);
    differ!("programs.controller", controller, &new.programs.controller, PodRestart, command);
    differ!("programs.scheduler", scheduler, &new.programs.scheduler, PodRestart, command);
    differ!("programs.controllerDisabled", controller_disabled, &new.programs.controller_disabled, PodRestart);
    differ!("programs.schedulerEnabled", scheduler_enabled, &new.programs.scheduler_enabled, PodRestart);
    differ!(
        "programs.apiserverExtraArgs",
        apiserver_extra_args,
        &new.programs.apiserver_extra_args,
        PodRestart,
        |args: &Vec<String>| redacted(args)
    );
    differ!(
        "programs.controllerExtraArgs",
        controller_extra_args,
        &new.programs.controller_extra_args,
        PodRestart,
        |args: &Vec<String>| redacted(args)
    );
    differ!(
        "programs.schedulerExtraArgs",
        scheduler_extra_args,
        &new.programs.scheduler_extra_args,
        PodRestart,
        |args: &Vec<String>| redacted(args)
    );
    differ!("programs.k0sConfig", k0s_config, &new.programs.k0s_config, PodRestart, length);
    differ!("listen.address", address, &new.listen.address, PodRestart);
    differ!("listen.clientPort", client_port, &new.listen.client_port, PodRestart);
    differ!("listen.peerPort", peer_port, &new.listen.peer_port, PodRestart);
    differ!("listen.metricsPort", metrics_port, &new.listen.metrics_port, PodRestart);
    differ!("listen.statePort", state_port, &new.listen.state_port, PodRestart);
    differ!("listen.port", front_port, &new.listen.front_port, PodRestart);
    differ!("listen.apiserverPort", apiserver_port, &new.listen.apiserver_port, PodRestart);
    differ!("dns.server", server, &new.dns.server, PodRestart);
    differ!("dns.resolvConf", resolv_conf, &new.dns.resolv_conf, PodRestart);
    differ!("hostApi", host_api, &new.host_api, PodRestart);
    differ!("tlsSans", tls_sans, &new.tls_sans, PodRestart);
    differ!("serviceCidr", service_cidr, &new.service_cidr, PodRestart);
    differ!("clusterDomain", cluster_domain, &new.cluster_domain, PodRestart);
    if *k3s_token != new.k3s_token {
        let shown = |token: &Option<String>| token.as_ref().map_or("None", |_| REDACTED).to_owned();
        let (old, new) = (shown(k3s_token), shown(&new.k3s_token));
        changes.push(Change { setting: "k3sToken", old, new, effect: PodRestart });
    }
    differ!("shutdownGrace", shutdown_grace, &new.shutdown_grace, Live);
    differ!("command", wrapped, &new.wrapped, PodRestart, |c: &Option<Vec<OsString>>| c.as_ref().map(Vec::len));
    differ!("values", values_file, &new.values_file, PodRestart);
    differ!("log.format", log_format, &new.log_format, PodRestart);
    differ!("log.level", log_level, &new.log_level, Live);
    changes
}

fn command(command: &Option<DistroCommand>) -> Option<(Vec<String>, Vec<String>)> {
    command.as_ref().map(|c| (redacted(&c.command), redacted(&c.args)))
}

/// A k0s configuration may hold passwords.
fn length(config: &Option<String>) -> Option<String> {
    config.as_ref().map(|text| format!("({} bytes)", text.len()))
}

/// The settings that hold from now on: the new ones where they take effect without a restart of the pod, else the old.
pub fn apply(old: &Settings, new: &Settings) -> Settings {
    Settings {
        etcd: EtcdSettings {
            enabled: old.etcd.enabled,
            migrate_from: old.etcd.migrate_from.clone(),
            migrate_back: old.etcd.migrate_back,
            extra_args: old.etcd.extra_args.clone(),
            ..new.etcd.clone()
        },
        shutdown_grace: new.shutdown_grace,
        log_level: new.log_level.clone(),
        ..old.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::SnapshotSettings;
    use crate::settings::load::tests::laptop;
    use std::time::Duration;

    #[test]
    fn nothing_changed_is_no_change() {
        assert_eq!(between(&laptop(), &laptop()), []);
    }

    #[test]
    fn each_setting_has_its_effect() {
        type Set = fn(&mut Settings);
        let cases: &[(&str, Effect, Set)] = &[
            ("etcd.replicas", Effect::Live, |s| s.etcd.replicas = 3),
            ("log.level", Effect::Live, |s| s.log_level = "debug".into()),
            ("shutdownGrace", Effect::Live, |s| s.shutdown_grace = Duration::from_secs(30)),
            ("etcd.snapshotCount", Effect::EtcdRestart, |s| s.etcd.snapshot_count = 5),
            ("etcd.extraArgs", Effect::PodRestart, |s| s.etcd.extra_args = vec!["--pre-vote=true".into()]),
            ("etcd.quotaBackendBytes", Effect::EtcdRestart, |s| s.etcd.quota_backend_bytes = Some(1 << 30)),
            ("etcd.heartbeatInterval", Effect::EtcdRestart, |s| s.etcd.timing.heartbeat = Duration::from_millis(7)),
            ("etcd.electionTimeout", Effect::EtcdRestart, |s| s.etcd.timing.election = Duration::from_secs(7)),
            ("etcd.timingSet", Effect::EtcdRestart, |s| s.etcd.timing_set = true),
            ("etcd.snapshots", Effect::Live, |s| {
                let schedule = "@daily".parse().unwrap();
                s.etcd.snapshots = Some(SnapshotSettings { schedule, keep: 5, target: "/s".parse().unwrap() });
            }),
            ("etcd.enabled", Effect::PodRestart, |s| s.etcd.enabled = !s.etcd.enabled),
            ("etcd.migrateBack", Effect::PodRestart, |s| s.etcd.migrate_back = true),
            ("etcd.migrateFrom", Effect::PodRestart, |s| s.etcd.migrate_from = Some("https://a:1".into())),
            ("distro", Effect::PodRestart, |s| s.distro = crate::settings::Distro::K0s),
            ("listen.port", Effect::PodRestart, |s| s.listen.front_port = 1),
            ("tlsSans", Effect::PodRestart, |s| s.tls_sans = vec!["a".into()]),
            ("programs.schedulerEnabled", Effect::PodRestart, |s| s.programs.scheduler_enabled = true),
            ("clusterDomain", Effect::PodRestart, |s| s.cluster_domain = "x".into()),
        ];
        let old = laptop();
        for (setting, effect, set) in cases {
            let mut new = old.clone();
            set(&mut new);
            let changes = between(&old, &new);
            let [change] = changes.as_slice() else { panic!("{setting}: {changes:?}") };
            assert_eq!((change.setting, change.effect), (*setting, *effect));
            let held = apply(&old, &new);
            // What holds now is the new value exactly if the pod need not restart for it.
            let left = between(&held, &new);
            assert_eq!(left.is_empty(), *effect != Effect::PodRestart, "{setting}: {left:?}");
            assert_eq!(between(&old, &held).is_empty(), *effect == Effect::PodRestart, "{setting}");
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let (old, mut new) = (laptop(), laptop());
        new.k3s_token = Some("s3cret".into());
        let changes = between(&old, &new);
        assert_eq!(changes.len(), 1);
        assert!(!format!("{changes:?}").contains("s3cret"));
        let command = ["server", "--token", "s3cret"].map(str::to_owned).to_vec();
        new.programs.vcluster = Some(DistroCommand { command, args: vec!["--token=s3cret".into()] });
        new.programs.apiserver_extra_args = vec!["--token=s3cret".into()];
        new.programs.k0s_config = Some("password: s3cret".into());
        let changes = between(&old, &new);
        assert_eq!(changes.len(), 4);
        assert!(!format!("{changes:?}").contains("s3cret"), "{changes:?}");
    }
}
