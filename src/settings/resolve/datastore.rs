//! The datastore: whether etcd runs here, with how many members, from where its data comes, and its tuning.

use std::path::Path;
use std::time::Duration;

use super::Resolver;
use crate::etcd::args::ELECTION_MAX_MS;
use crate::exit::{Exit, refuse};
use crate::ids::Ordinal;
use crate::settings::env::variable_of;
use crate::settings::provenance::{Source, without_user};
use crate::settings::values::etcd::SnapshotValues;
use crate::settings::values::{self, Era, OtherStore, Spot};
use crate::settings::{Distro, EtcdSettings, EtcdTiming, PodIdentity, SnapshotSettings, check};
use crate::snapshot::directory::Directory;
use crate::snapshot::target::Target;

/// Why the default timing is not what a single replica runs with ([`crate::etcd::launch`]).
const ELECTION_MOST: u64 = ELECTION_MAX_MS as u64;
const ALONE: &str = "a lone member of a single replica runs with 20ms and 200ms";

impl Resolver<'_> {
    pub(super) fn etcd(
        &mut self,
        name: &str,
        distro: Distro,
        pod: &PodIdentity,
        data_dir: &Path,
        wrapped: bool,
    ) -> anyhow::Result<EtcdSettings> {
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
            let refusal = self.other_store(&spot);
            self.refuse_later(refusal);
        }
        if alone && !enabled {
            let (distro, off) = (self.origin("distro"), self.origin("etcd.enabled"));
            let what = format!("distro none ({distro}) with embedded etcd switched off ({off}) runs nothing");
            return Err(refuse(
                Exit::Usage,
                what,
                "switch embedded etcd on, or give a --distro and the folder of its programs (--binaries)",
            ));
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
        let given = given!(self, migrate_back, "migrate-back").or(self.spot(values.etcd.migrate_back.clone()));
        let migrate_back = self.take("etcd.migrateBack", given, "", || false);
        if migrate_back && enabled {
            let what = format!("migrateBack is true while embedded etcd is enabled ({})", self.origin("etcd.enabled"));
            let remedy = "set enabled: false to move the store back to SQLite";
            return Err(match values.etcd.migrate_back.filter(|spot| spot.value) {
                Some(spot) => self.refuse_at(spot.line, what, remedy),
                None => {
                    refuse(Exit::Usage, format!("{what} and {} asks for it", self.origin("etcd.migrateBack")), remedy)
                }
            });
        }
        let snapshot_count = self.take("etcd.snapshotCount", self.spot(values.etcd.snapshot_count), "", || 10_000);
        let quota = self.spot(values.etcd.quota_backend_bytes.clone()).map(|(n, s)| (Some(n), s));
        let quota_backend_bytes =
            self.take("etcd.quotaBackendBytes", quota, "8Gi, never below the store's size", || None);
        if let Some(spot) = values.etcd.quota_backend_bytes.filter(|spot| spot.value > 8 << 30) {
            let warning = format!("{}:{}: etcd advises a quota of at most 8Gi", self.shown, spot.line);
            self.notes.warnings.push(warning);
        }
        let timing_set = values.etcd.heartbeat_ms.is_some() || values.etcd.election_ms.is_some();
        let why = if timing_set { "" } else { ALONE };
        let heartbeat = self.milliseconds("etcd.heartbeatInterval", values.etcd.heartbeat_ms.clone(), (100, why));
        let election = self.milliseconds(
            "etcd.electionTimeout",
            values.etcd.election_ms.clone(),
            ((heartbeat * 10).clamp(1000, ELECTION_MOST), why),
        );
        if election < 5 * heartbeat {
            // One of the two is given: the defaults fit.
            let line = values.etcd.election_ms.or(values.etcd.heartbeat_ms).map_or(0, |spot| spot.line);
            let what =
                format!("electionTimeout {election} ms is less than five times heartbeatInterval {heartbeat} ms");
            let remedy = match 5 * heartbeat {
                least @ ..=ELECTION_MOST => format!("set electionTimeout to {least} or more, at most {ELECTION_MOST}"),
                _ => "lower heartbeatInterval".to_owned(),
            };
            return Err(self.refuse_at(line, what, remedy));
        }
        let extra_args = self.take("etcd.extraArgs", self.spot(values.etcd.extra_args), "", Vec::new);
        let snapshots = self.snapshots(values.etcd.snapshots, data_dir)?;
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
            snapshots,
        })
    }

    fn snapshots(&mut self, values: SnapshotValues, data_dir: &Path) -> anyhow::Result<Option<SnapshotSettings>> {
        let given = given!(self, snapshot_schedule, "snapshot-schedule").or(self.spot(values.schedule));
        let given = given.map(|(schedule, source)| (Some(schedule), source));
        let Some(schedule) = self.take("etcd.snapshots.schedule", given, "none are taken", || None) else {
            return Ok(None);
        };
        let given = given!(self, snapshot_keep, "snapshot-keep").or(self.spot(values.keep));
        let keep = self.take("etcd.snapshots.keep", given, "", || 5);
        let dir = data_dir.join("snapshots");
        let given = given!(self, snapshot_target, "snapshot-target").or(self.spot(values.target));
        let target = self.take("etcd.snapshots.target", given, "", || Target::directory(dir));
        if let Target::Directory(Directory(dir)) = &target
            && !dir.is_absolute()
        {
            let origin = self.origin("etcd.snapshots.target");
            let what = format!("snapshots are to be kept in {} ({origin}), which is not absolute", dir.display());
            return Err(refuse(Exit::Usage, what, "write it from the root, such as /data/snapshots"));
        }
        Ok(Some(SnapshotSettings { schedule, keep, target }))
    }

    fn milliseconds(&mut self, setting: &'static str, spot: Option<Spot<u64>>, default: (u64, &'static str)) -> u64 {
        let (ms, source) = self.spot(spot).unwrap_or((default.0, Source::Default(default.1)));
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
                format!(
                    "etcd.external is enabled with the endpoint {:?}, which is not this pod's",
                    without_user(endpoint)
                ),
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
            let refusal = match &self.values.replicas {
                Some(spot) => self.refuse_at(spot.line, what, remedy),
                None => refuse(Exit::Usage, what, remedy),
            };
            self.refuse_later(refusal);
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
                self.refuse_later(refuse(Exit::Usage, what, remedy));
            }
        }
        Ok(url)
    }
}
