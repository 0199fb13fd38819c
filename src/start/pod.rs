//! What every part of a pod's life needs: its settings, its word, the way to the other pods.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::boot::{Desired, Facts};
use crate::datadir::DatadirLock;
use crate::disk::RealDisk;
use crate::etcd::client::{EtcdClient, EtcdEndpoint};
use crate::etcd::version::EtcdVersion;
use crate::observe;
use crate::peer::Own;
use crate::peer::survey::{Survey, Surveyor};
use crate::pki::Pki;
use crate::serve::health::Health;
use crate::settings::Settings;
use crate::settings::load::Loader;

/// One question to the etcd beside us.
pub const ETCD_DEADLINE: Duration = Duration::from_millis(500);

/// A pod from the moment at which its certificates are there.
pub struct Pod {
    /// As they were at start: what needs a restart of the pod to act is read from here.
    pub settings: Settings,
    /// Reads them again.
    pub loader: Arc<Loader>,
    /// As they are now, a moment after the file changed.
    pub now: watch::Receiver<Settings>,
    /// Its certificates.
    pub pki: Pki,
    /// The disk.
    pub disk: RealDisk,
    /// The data directory's lock.
    pub lock: Arc<DatadirLock>,
    /// The etcd program and its version; `None`: embedded etcd is off.
    pub etcd: Option<(PathBuf, EtcdVersion)>,
    /// Its word to the others.
    pub own: Arc<Own>,
    /// The way to the others; `None` outside a pod, where there are none.
    pub surveyor: Option<Surveyor>,
    /// What probes are told.
    pub health: watch::Sender<Health>,
}

impl Pod {
    /// Desired replicas by the values file as it is now.
    pub fn desired(&self) -> u32 {
        self.now.borrow().etcd.replicas
    }

    /// Desired replicas, asked for afresh: by the file itself, which may have changed in this very moment.
    pub fn desired_afresh(&self) -> Desired {
        match self.loader.load() {
            Ok(loaded) => Desired::Values(loaded.settings.etcd.replicas),
            // What holds is what was read last.
            Err(error) => {
                tracing::warn!("the values file cannot be read now: {error:#}");
                Desired::Values(self.desired())
            }
        }
    }

    /// A look at the other pods, and at `others` of which there might be more than the values say.
    pub async fn survey(&self, others: impl IntoIterator<Item = crate::ids::Ordinal>) -> Survey {
        let Some(surveyor) = &self.surveyor else { return Survey::default() };
        surveyor.look(self.desired(), others).await.unwrap_or_else(|error| {
            tracing::warn!("the other pods cannot be asked: {error:#}");
            Survey::default()
        })
    }

    /// The facts of now, etcd not running.
    pub fn facts(&self, survey: &Survey) -> anyhow::Result<Facts> {
        let mut facts =
            observe::facts(&self.now.borrow(), observe::schema(self.etcd.as_ref().map(|(_, version)| *version)))?;
        // These act at the next start of the pod only.
        facts.enabled = self.settings.etcd.enabled;
        facts.migrate_back = self.settings.etcd.migrate_back;
        facts.migrate_from = self.settings.etcd.migrate_from.is_some();
        if self.surveyor.is_some() {
            survey.add_to(&mut facts);
        }
        Ok(facts)
    }

    /// Where the etcd beside us is.
    pub fn endpoint_here(&self) -> EtcdEndpoint {
        let url = format!("https://localhost:{}", self.settings.listen.client_port);
        EtcdEndpoint { url, tls: Some(self.pki.paths.etcd_tls()), server_name: None }
    }

    /// A client of it.
    pub async fn etcd_here(&self) -> anyhow::Result<EtcdClient> {
        Ok(EtcdClient::connect(&self.endpoint_here()).await?)
    }

    /// Tells probes whether this pod is ready although it does not serve, and clients where they are served meanwhile.
    pub fn stands_by(&self, stands_by: bool, elsewhere: Option<SocketAddr>) {
        self.health.send_if_modified(|health| {
            let before = *health;
            (health.stands_by, health.elsewhere) = (stands_by, elsewhere.filter(|_| stands_by));
            *health != before
        });
    }
}
