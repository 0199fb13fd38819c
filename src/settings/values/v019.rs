//! Values of the charts of 0.17 to 0.19: `vcluster` (k3s), `vcluster-k8s`, `vcluster-eks`, `vcluster-k0s`.
//!
//! The four charts have no key that names the distro. Where the environment does not either, it is told from what
//! only one of them has. Sources: `charts/{k3s,k8s,eks,k0s}/values.yaml` of vCluster 0.19.

use super::section::{Fault, Section, Spot};
use super::{Era, Values, etcd, replicas};
use crate::settings::{Distro, DistroCommand};

/// Keys from which values are taken; beside those of 0.20+ they are a contradiction.
pub const OWN_KEYS: &[&str] =
    &["embeddedEtcd", "syncer", "vcluster", "api", "controller", "scheduler", "etcd", "replicas", "k3sToken"];

/// Keys that only these charts have, those of [`OWN_KEYS`] first.
pub const KEYS: &[&str] = &[
    "embeddedEtcd",
    "syncer",
    "vcluster",
    "api",
    "controller",
    "scheduler",
    "etcd",
    "replicas",
    "k3sToken",
    "storage",
    "headless",
    "isolation",
    "multiNamespaceMode",
    "enableHA",
    "mapServices",
    "proLicenseSecret",
];

/// Takes from the file what concerns us.
pub fn read(root: &Section<'_>) -> Result<Values, Fault> {
    let embedded = root.section("embeddedEtcd")?;
    let syncer = root.section("syncer")?;
    let vcluster = root.section("vcluster")?;
    let (api, controller, scheduler) = (root.section("api")?, root.section("controller")?, root.section("scheduler")?);
    let ingress = root.section("ingress")?;
    let sans = match (ingress.flag("enabled")?, ingress.text("host")?) {
        (Some(Spot { value: true, .. }), Some(host)) => Some(host.map(|h| vec![h])),
        _ => None,
    };
    let mut values = Values {
        era: Some(Era::V019),
        etcd: etcd::read(&embedded, &etcd::KEYS_019, "migrateFromEtcd")?,
        replicas: replicas(&syncer, "replicas")?,
        legacy_replicas: replicas(root, "replicas")?,
        distro: distro(root, &vcluster)?,
        apiserver_extra_args: api.texts("extraArgs")?,
        controller_extra_args: controller.texts("extraArgs")?,
        scheduler_extra_args: scheduler.texts("extraArgs")?,
        scheduler_enabled: scheduler_enabled(root, &scheduler)?,
        controller_disabled: controller.flag("disabled")?,
        k3s_token: vcluster.secret("k3sToken")?.or(root.secret("k3sToken")?),
        k0s_config: root.secret("config")?,
        cluster_domain: vcluster.text("clusterDomain")?,
        service_cidr: root.text("serviceCIDR")?,
        tls_sans: sans,
        ..Values::default()
    };
    let (command, base) = (vcluster.texts("command")?, vcluster.texts("baseArgs")?);
    let extra = vcluster.texts("extraArgs")?;
    match command {
        Some(command) => {
            let mut args = base.map(|b| b.value).unwrap_or_default();
            args.extend(extra.map(|e| e.value).unwrap_or_default());
            values.vcluster = Some(command.map(|command| DistroCommand { command, args }));
        }
        None => values.vcluster_extra_args = extra,
    }
    Ok(values)
}

/// The scheduler runs if the chart's `scheduler.disabled` is false or nodes are synced with it.
fn scheduler_enabled(root: &Section<'_>, scheduler: &Section<'_>) -> Result<Option<Spot<bool>>, Fault> {
    let nodes = root.descend(&["sync", "nodes"])?;
    if let Some(spot) = nodes.flag("enableScheduler")?
        && spot.value
    {
        return Ok(Some(spot));
    }
    Ok(scheduler.flag("disabled")?.map(|spot| spot.map(|disabled| !disabled)))
}

fn distro(root: &Section<'_>, vcluster: &Section<'_>) -> Result<Option<Spot<Distro>>, Fault> {
    for (key, section) in [("api", root.section("api")?), ("etcd", root.section("etcd")?)] {
        if section.is_empty() {
            continue;
        }
        let image = section.text("image")?;
        let line = image.as_ref().map(|i| i.line).or(root.node(key).map(|n| n.line)).unwrap_or_default();
        let eks = image.is_some_and(|i| i.value.contains("eks-distro"));
        return Ok(Some(Spot { value: if eks { Distro::Eks } else { Distro::K8s }, line }));
    }
    let image = vcluster.text("image")?;
    let program = vcluster.texts("command")?.map(|c| c.map(|c| c.first().cloned().unwrap_or_default()));
    for spot in [image, program].into_iter().flatten() {
        for (part, value) in [("k0s", Distro::K0s), ("k3s", Distro::K3s)] {
            if spot.value.contains(part) {
                return Ok(Some(Spot { value, line: spot.line }));
            }
        }
    }
    Ok(None)
}
