//! The API of the host cluster, in which the pods of the virtual cluster's StatefulSet run: what it knows of them, and what
//! is kept there because it must outlive their volumes.
//!
//! * [`client`]: one request, with a deadline. An answer that did not come, or that denies, is *unknown*, with the reason;
//!   only an authority's "there is no such object" is absent.
//! * [`statefulset`]: how many pods are wanted, from which ordinal on, in which order; asked for afresh, and watched.
//! * [`pods`]: a pod of an ordinal; the volumes (PVCs) of all ordinals.
//! * [`marker`]: ConfigMap `<name>-etcd`, the record that a cluster has been formed.
//! * [`secret`]: Secrets by which all pods share what must be the same in each of them; [`share`]: who puts it there, who
//!   adopts it, and who waits.
//!
//! Only verbs of the Role that vCluster's charts grant are used: get, list and watch of StatefulSets, everything on
//! pods, PVCs, ConfigMaps, Secrets and Services.

pub mod client;
pub mod marker;
pub mod pods;
pub mod secret;
pub mod share;
pub mod statefulset;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::boot::{Desired, Facts, Known, MarkerSeen, PodFact};
use crate::ids::Ordinal;
use crate::membership::ready::PodManagement;
use crate::settings::{HostApi, Settings};
use client::Client;
use secret::SecretObject;
use statefulset::StatefulSet;

/// The host cluster's API, as this pod uses it.
#[derive(Clone)]
pub struct Host {
    client: Arc<Client>,
    /// The StatefulSet as it was when it was seen last; who looks at it decides nothing by it.
    last: watch::Sender<Option<StatefulSet>>,
}

/// What the API says at one time.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The StatefulSet. Absent: there is no such object, as after `kubectl delete --cascade=orphan`.
    pub set: Known<StatefulSet>,
    /// The marker.
    pub marker: Known<MarkerSeen>,
    /// The other ordinals that have a PVC. Unknown if it was not asked for.
    pub claims: Known<Vec<Ordinal>>,
    /// The pods that were asked for.
    pub pods: BTreeMap<Ordinal, Known<PodFact>>,
}

/// Whether the claims are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claims {
    /// Nothing is decided by them.
    Never,
    /// Unless the marker knows of a cluster, of which this volume has data.
    UnlessFormed,
    /// They tell whether there is anybody else.
    Always,
}

impl Claims {
    /// As a boot decision needs them. `usable`: this volume has a log of etcd's, from which the etcd at hand can start as far as is
    /// known.
    pub fn of_boot(usable: bool) -> Claims {
        if usable { Claims::UnlessFormed } else { Claims::Always }
    }
}

impl Host {
    /// The API that the settings name; `None`: there is none. Asks nothing yet.
    pub fn of(settings: &Settings) -> Option<Host> {
        if settings.etcd.enabled { Host::configured(settings) } else { None }
    }

    /// The same although embedded etcd is off: for the marker of a cluster that was left.
    pub fn configured(settings: &Settings) -> Option<Host> {
        (settings.host_api != HostApi::None)
            .then(|| Host { client: Arc::new(Client::new(settings)), last: watch::Sender::new(None) })
    }

    /// The StatefulSet and the marker, and the claims as asked.
    pub async fn view(&self, claims: Claims) -> View {
        let (set, marker) = tokio::join!(self.set(), self.marker());
        let mut view = View { set, marker, ..View::default() };
        let formed = view.marker.present().is_some_and(|seen| seen.marker.formed().is_some());
        let asked = match claims {
            Claims::Never => false,
            Claims::UnlessFormed => !formed,
            Claims::Always => true,
        };
        if asked {
            view.claims = self.claims(&view.set).await;
        }
        view
    }

    /// The StatefulSet, asked for now.
    pub async fn set(&self) -> Known<StatefulSet> {
        let set = statefulset::get(&self.client).await;
        if let Known::Present(set) = &set {
            self.seen(set);
        }
        set
    }

    /// The StatefulSet as it was seen last, and each change of it while [`Host::follow`] is polled.
    pub fn last(&self) -> watch::Receiver<Option<StatefulSet>> {
        self.last.subscribe()
    }

    /// Watches the StatefulSet. Never ends.
    pub async fn follow(&self) {
        statefulset::follow(&self.client, |set| self.seen(set)).await;
    }

    fn seen(&self, set: &StatefulSet) {
        self.last.send_if_modified(|last| {
            let news = last.as_ref() != Some(set);
            if news {
                *last = Some(set.clone());
            }
            news
        });
    }

    /// The other ordinals that have a PVC of this StatefulSet, or of which none tells.
    pub async fn claims(&self, set: &Known<StatefulSet>) -> Known<Vec<Ordinal>> {
        match set {
            Known::Present(set) => match set.unclaimed(self.client.ordinal) {
                Some(ordinals) => Known::Present(ordinals),
                None => pods::claims(&self.client, &set.claim_templates).await,
            },
            Known::Absent => Known::Unknown("there is no such StatefulSet, which names the claims".to_owned()),
            Known::Unknown(why) => Known::Unknown(why.clone()),
        }
    }

    /// The pods of these ordinals.
    pub async fn pods(
        &self,
        ordinals: impl IntoIterator<Item = Ordinal>,
        set: &Known<StatefulSet>,
    ) -> BTreeMap<Ordinal, Known<PodFact>> {
        let newest = set.present().and_then(|set| set.update_revision.clone());
        let mut asked = JoinSet::new();
        for ordinal in ordinals.into_iter().collect::<BTreeSet<_>>() {
            let (client, newest) = (Arc::clone(&self.client), newest.clone());
            asked.spawn(async move { (ordinal, pods::get(&client, ordinal, newest.as_deref()).await) });
        }
        asked.join_all().await.into_iter().collect()
    }

    /// Where the pod of this ordinal takes clients, if it is ready.
    pub async fn ready_address(&self, ordinal: Ordinal) -> Option<IpAddr> {
        pods::ready_address(&self.client, ordinal).await
    }

    /// The marker.
    pub async fn marker(&self) -> Known<MarkerSeen> {
        marker::get(&self.client).await
    }

    /// Secret `<name>-certs`, in which vCluster keeps the certificates.
    pub fn certs(&self) -> SecretObject {
        SecretObject::new(&self.client, secret::certs_of(&self.client.name))
    }

    /// Secret `vc-k3s-<name>`, in which vCluster keeps k3s' token.
    pub fn k3s_token(&self) -> SecretObject {
        SecretObject::new(&self.client, format!("vc-k3s-{}", self.client.name))
    }

    /// Writes the marker, by compare-and-swap.
    pub async fn write_marker(&self, write: &crate::boot::MarkerWrite) -> marker::Written {
        marker::write(&self.client, write).await
    }
}

impl View {
    /// Desired replicas by this answer.
    pub fn desired(&self) -> Desired {
        statefulset::desired(&self.set)
    }

    /// `spec.podManagementPolicy`.
    pub fn policy(&self) -> Known<PodManagement> {
        self.set.present().map_or_else(Known::default, |set| Known::Present(set.policy))
    }

    /// Puts it into the facts. `seed`, as it was known last, if the StatefulSet is not known now.
    pub fn add_to(&self, facts: &mut Facts, seed: Ordinal) {
        facts.host_configured = true;
        facts.seed = self.set.present().map_or(seed, |set| set.start);
        facts.desired = self.desired();
        facts.marker.clone_from(&self.marker);
        facts.claims.clone_from(&self.claims);
        for peer in &mut facts.peers {
            peer.pod = self.pods.get(&peer.ordinal).cloned().unwrap_or_default();
        }
    }
}
