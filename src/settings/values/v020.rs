//! Values of the one chart since 0.20 (`vcluster.yaml`). Source: `chart/values.yaml` and `config/config.go` of vCluster.

use super::section::{Fault, Section, Spot};
use super::{Era, OtherStore, Values, etcd, replicas};
use crate::settings::{Distro, DistroCommand};

/// Keys that only this chart has.
pub const KEYS: &[&str] =
    &["controlPlane", "networking", "exportKubeConfig", "policies", "integrations", "experimental", "privateNodes"];

/// Takes from the file what concerns us.
pub fn read(root: &Section<'_>) -> Result<Values, Fault> {
    let plane = root.section("controlPlane")?;
    let store = plane.section("backingStore")?;
    plane.no_near_miss(&["backingStore", "statefulSet", "distro"])?;
    store.no_near_miss(&["etcd", "database"])?;
    store.section("etcd")?.no_near_miss(&["embedded", "deploy", "external"])?;
    let embedded = store.descend(&["etcd", "embedded"])?;
    let high_availability = plane.descend(&["statefulSet", "highAvailability"])?;
    let proxy = plane.section("proxy")?;
    let advanced = plane.section("advanced")?;
    let values = Values {
        era: Some(Era::V020),
        etcd: etcd::read(&embedded, &etcd::KEYS_020, "migrateFromDeployedEtcd")?,
        replicas: replicas(&high_availability, "replicas")?,
        deployed_etcd_headless: store
            .descend(&["etcd", "deploy", "service"])?
            .flag("enabled")?
            .is_some_and(|enabled| !enabled.value),
        cluster_domain: root.descend(&["networking", "advanced"])?.text("clusterDomain")?,
        service_cidr: root.text("serviceCIDR")?,
        tls_sans: sans(&plane, &proxy)?,
        front_port: proxy.within("port", 1, 65535, "a port")?.map(|s| s.map(|port| port as u16)),
        bind_address: proxy.text("bindAddress")?,
        scheduler_enabled: advanced.section("virtualScheduler")?.flag("enabled")?,
        ..Values::default()
    };
    distro(&plane.section("distro")?, stores(&store, values)?)
}

/// Finds the enabled stores: at most one.
fn stores(store: &Section<'_>, mut values: Values) -> Result<Values, Fault> {
    let database = store.section("database")?;
    let (inside, outside) = (database.section("embedded")?, database.section("external")?);
    let (deploy, external) = (store.descend(&["etcd", "deploy"])?, store.descend(&["etcd", "external"])?);
    let mut enabled = Vec::new();
    let mut on = |section: &Section<'_>, name: &'static str| -> Result<Option<Spot<bool>>, Fault> {
        let spot = section.flag("enabled")?;
        if let Some(spot) = spot.as_ref().filter(|s| s.value) {
            enabled.push((spot.line, name));
        }
        Ok(spot)
    };
    on(&store.descend(&["etcd", "embedded"])?, "etcd.embedded")?;
    let sqlite = on(&inside, "database.embedded")?;
    let database_on = on(&outside, "database.external")?;
    let deploy_on = on(&deploy, "etcd.deploy")?;
    let external_on = on(&external, "etcd.external")?;
    if let [(first_line, first), (line, second), ..] = enabled.as_slice() {
        return Err(Fault::at(
            *line.max(first_line),
            format!("two backing stores are enabled: {first} (line {first_line}) and {second} (line {line})"),
            "enable one; to move from a deployed etcd set etcd.embedded.migrateFromDeployedEtcd: true and etcd.deploy.enabled: false",
        ));
    }
    let source = inside.secret("dataSource")?;
    let other = [
        (database_on, OtherStore::Database),
        (deploy_on, OtherStore::DeployedEtcd),
        (external_on, OtherStore::ExternalEtcd(external.text("endpoint")?.map(|e| e.value).unwrap_or_default())),
    ];
    values.other_store =
        other.into_iter().find_map(|(on, store)| on.filter(|spot| spot.value).map(|spot| spot.map(|_| store)));
    match (sqlite, source) {
        (Some(Spot { value: true, .. }), Some(source)) => {
            values.other_store = Some(source.map(|_| OtherStore::Database));
        }
        (sqlite, _) => values.sqlite = sqlite,
    }
    Ok(values)
}

fn sans(plane: &Section<'_>, proxy: &Section<'_>) -> Result<Option<Spot<Vec<String>>>, Fault> {
    let ingress = plane.section("ingress")?;
    let host = match (ingress.flag("enabled")?, ingress.text("host")?) {
        (Some(Spot { value: true, .. }), Some(host)) => Some(host.map(|h| vec![h])),
        _ => None,
    };
    Ok(match (proxy.texts("extraSANs")?, host) {
        (Some(mut sans), Some(host)) => {
            sans.value.extend(host.value);
            Some(sans)
        }
        (sans, host) => sans.or(host),
    })
}

/// The enabled distro and its commands: at most one; the chart's default is k8s.
fn distro(section: &Section<'_>, mut values: Values) -> Result<Values, Fault> {
    for (key, distro) in [("k8s", Distro::K8s), ("k3s", Distro::K3s), ("k0s", Distro::K0s), ("eks", Distro::Eks)] {
        let one = section.section(key)?;
        let Some(enabled) = one.flag("enabled")?.filter(|spot| spot.value) else { continue };
        if let Some(first) = &values.distro {
            return Err(Fault::at(
                enabled.line.max(first.line),
                format!(
                    "two distros are enabled: {} (line {}) and {key} (line {})",
                    first.value.name(),
                    first.line,
                    enabled.line
                ),
                "enable one under controlPlane.distro",
            ));
        }
        values.distro = Some(enabled.map(|_| distro));
    }
    let key = values.distro.as_ref().map_or(Distro::K8s, |spot| spot.value);
    let section = section.section(key.name())?;
    let command = |s: &Section<'_>| -> Result<Option<Spot<DistroCommand>>, Fault> {
        Ok(s.texts("command")?.map(|c| c.map(|command| DistroCommand { command, args: Vec::new() })))
    };
    if matches!(key, Distro::K3s | Distro::K0s) {
        values.vcluster = command(&section)?;
        values.vcluster_extra_args = section.texts("extraArgs")?;
        values.k3s_token = section.secret("token")?;
        values.k0s_config = section.secret("config")?;
        return Ok(values);
    }
    let (api, controller, scheduler) =
        (section.section("apiServer")?, section.section("controllerManager")?, section.section("scheduler")?);
    values.apiserver = command(&api)?;
    values.apiserver_extra_args = api.texts("extraArgs")?;
    values.controller = command(&controller)?;
    values.controller_disabled = controller.flag("enabled")?.map(|spot| spot.map(|enabled| !enabled));
    values.controller_extra_args = controller.texts("extraArgs")?;
    values.scheduler = command(&scheduler)?;
    values.scheduler_extra_args = scheduler.texts("extraArgs")?;
    if let Some(spot) = scheduler.flag("enabled")?.filter(|spot| spot.value) {
        values.scheduler_enabled = Some(spot);
    }
    Ok(values)
}
