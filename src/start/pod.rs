//! What every part of a pod's life needs: its settings, its word, the way to the other pods.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

use super::readiness;

use crate::boot::{DataDirFact, Desired, Facts, Known, RestoreFact};
use crate::datadir::DatadirLock;
use crate::disk::RealDisk;
use crate::etcd::client::{EtcdClient, EtcdEndpoint};
use crate::etcd::version::EtcdVersion;
use crate::host::{self, Claims, Host};
use crate::ids::{ClusterId, MemberId, Ordinal};
use crate::observe;
use crate::peer::Own;
use crate::peer::survey::{Survey, Surveyor};
use crate::pki::Pki;
use crate::serve::health::Health;
use crate::serve::k0s;
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
    /// Whether its CAs are those of the Secret that every pod reads.
    pub shared_ca: AtomicBool,
    /// Whether k3s' token here is known to be the one in the Secret.
    pub shared_token: AtomicBool,
    /// Held while the backend of the etcd beside us is read or written as a whole: by a snapshot, or a defragmentation.
    pub backend: tokio::sync::Mutex<()>,
    /// Shared with whatever still writes a snapshot.
    pub snapshot: Arc<()>,
    /// The disk.
    pub disk: RealDisk,
    /// The data directory's lock.
    pub lock: Arc<DatadirLock>,
    /// The etcd program and its version; `None`: embedded etcd is off.
    pub etcd: Option<(PathBuf, EtcdVersion)>,
    /// The cluster that was staged to be restored when this process started. What is staged later acts at the next start.
    pub staged: Option<ClusterId>,
    /// Its word to the others.
    pub own: Arc<Own>,
    /// The way to the others; `None` outside a pod, where there are none.
    pub surveyor: Option<Surveyor>,
    /// The host cluster's API, if one is configured.
    pub host: Option<Host>,
    /// What probes are told.
    pub health: watch::Sender<Health>,
    /// The data dir on which etcd has ended, if it did so for damage.
    pub broken: Mutex<Option<Broken>>,
    /// The clusters that were known to be replaced by a restore when what runs was decided.
    pub replaced: Mutex<BTreeSet<ClusterId>>,
}

/// A data dir that is damaged by etcd's word, whatever an inspection says.
#[derive(Clone, Debug)]
pub struct Broken {
    /// Whose it is.
    pub member: MemberId,
    /// Which cluster it belongs to.
    pub cluster: ClusterId,
    /// What etcd said.
    pub why: String,
}

impl Broken {
    /// As long as it is this data dir that is there.
    fn add_to(&self, facts: &mut Facts) {
        let Broken { member, cluster, why } = self.clone();
        if facts.data_dir == (DataDirFact::Valid { member, cluster }) {
            facts.log = Known::Unknown(why.clone());
            facts.owner = Some((member, cluster));
            facts.data_dir = DataDirFact::Damaged(why);
        }
    }
}

impl Pod {
    /// Desired replicas, asked for afresh: of the host API, or by the file itself, which may have changed in this very
    /// moment.
    ///
    /// With it, for how long it counts as asked for: zero, or long where the API has said that there is no such StatefulSet, as it
    /// will say again.
    pub async fn asked_afresh(&self) -> (Desired, Duration) {
        if let Some(host) = &self.host {
            let set = host.set().await;
            let enough = if set.is_absent() { Duration::MAX } else { Duration::ZERO };
            return (host::statefulset::desired(&set), enough);
        }
        (self.desired_by_file(), Duration::ZERO)
    }

    fn desired_by_file(&self) -> Desired {
        match self.loader.load() {
            Ok(loaded) => Desired::Values(loaded.settings.etcd.replicas),
            // What holds is what was read last.
            Err(error) => {
                tracing::warn!("the values file cannot be read now: {error:#}");
                Desired::Values(self.now.borrow().etcd.replicas)
            }
        }
    }

    /// The seed, as it was known last.
    pub fn seed(&self) -> Ordinal {
        let last = self.host.as_ref().and_then(|host| host.last().borrow().as_ref().map(|set| set.start));
        last.unwrap_or(Ordinal(0))
    }

    /// The ordinals that were wanted when that was seen last. To look at: nothing is decided by it.
    fn wanted(&self) -> Vec<Ordinal> {
        match self.host.as_ref().and_then(|host| host.last().borrow().clone()) {
            Some(set) => set.ordinals().collect(),
            None => (0..self.now.borrow().etcd.replicas).map(Ordinal).collect(),
        }
    }

    /// A look at the other pods, and at `others` of which there might be more than are wanted.
    pub async fn survey(&self, others: impl IntoIterator<Item = Ordinal>) -> Survey {
        let Some(surveyor) = &self.surveyor else { return Survey::default() };
        let ordinals = self.wanted().into_iter().chain(others);
        surveyor.look(ordinals).await.unwrap_or_else(|error| {
            tracing::warn!("the other pods cannot be asked: {error:#}");
            Survey::default()
        })
    }

    /// A look at everything outside of this volume, by which a boot decision is made, and at the other ordinals' volumes as asked.
    pub async fn look(&self, others: impl IntoIterator<Item = Ordinal>, claims: Claims) -> Look {
        let Some(host) = &self.host else { return Look { survey: self.survey(others).await, host: None } };
        let mut view = host.view(claims).await;
        let survey = self.survey(others.into_iter().chain(view.claims.present().into_iter().flatten().copied())).await;
        view.pods = host.pods(survey.peers.iter().map(|peer| peer.ordinal), &view.set).await;
        Look { survey, host: Some(view) }
    }

    /// From now on this data dir is taken for damaged.
    pub fn is_broken(&self, broken: Broken) {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(broken);
    }

    /// What is decided rests on these clusters being replaced.
    pub fn has_replaced(&self, clusters: BTreeSet<ClusterId>) {
        *self.replaced.lock().unwrap_or_else(PoisonError::into_inner) = clusters;
    }

    /// The clusters that a restore has replaced, as was known when what runs was decided.
    pub fn replaced(&self) -> BTreeSet<ClusterId> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The facts of now, etcd not running. A log of some hundred megabytes is read for them, which a slow volume makes last:
    /// on a thread of its own, so that probes and other pods are answered meanwhile.
    pub async fn facts(&self, look: &Look) -> anyhow::Result<Facts> {
        let settings = self.now.borrow().clone();
        let schema = observe::schema(self.etcd.as_ref().map(|(_, version)| *version));
        let observed = tokio::task::spawn_blocking(move || observe::facts(&settings, schema)).await;
        let mut facts = observed.context("look at the volume on a thread of its own")??;
        // These act at the next start of the pod only.
        facts.enabled = self.settings.etcd.enabled;
        facts.migrate_back = self.settings.etcd.migrate_back;
        facts.migrate_from = self.settings.etcd.migrate_from.is_some();
        if facts.restore.cluster() != self.staged {
            facts.restore = RestoreFact::Absent;
        }
        if self.surveyor.is_some() {
            // What was taken for granted before anything said which ordinal is the first.
            facts.peers.retain(|peer| peer.ordinal >= self.seed());
            look.survey.add_to(&mut facts);
            facts.k0s_other_cas = look.survey.other_k0s_cas(k0s::pki_dir(&self.settings));
        }
        if let Some(broken) = &*self.broken.lock().unwrap_or_else(PoisonError::into_inner) {
            broken.add_to(&mut facts);
        }
        facts.shared_ca |= self.shared_ca.load(Ordering::Relaxed);
        if let Some(view) = &look.host {
            view.add_to(&mut facts, self.seed());
        }
        Ok(facts)
    }

    /// Where the etcd beside us is.
    pub fn endpoint_here(&self) -> EtcdEndpoint {
        EtcdEndpoint::on_loopback(self.settings.listen.client_port, self.pki.paths.etcd_tls().client())
    }

    /// A client of it.
    pub async fn etcd_here(&self) -> anyhow::Result<EtcdClient> {
        Ok(EtcdClient::connect(&self.endpoint_here()).await?)
    }

    /// Tells probes whether this pod is ready although it does not serve, and clients where they are served meanwhile.
    pub fn stands_by(&self, stands_by: bool, elsewhere: Option<SocketAddr>) {
        readiness::stand_by(&self.health, stands_by, elsewhere);
    }
}

/// What is seen outside of this volume.
#[derive(Debug, Default)]
pub struct Look {
    /// By the other pods and DNS.
    pub survey: Survey,
    /// By the host API, if one is configured.
    pub host: Option<host::View>,
}
