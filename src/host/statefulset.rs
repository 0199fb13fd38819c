//! The StatefulSet: how many pods are wanted, from which ordinal on, in which order they come and go.

use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::apps::v1;
use kube::api::{WatchEvent, WatchParams};
use kube::core::DynamicObject;
use serde::Deserialize;

use super::client::{Client, DEADLINE, Failure, answer, known};
use crate::boot::{Desired, Known};
use crate::ids::Ordinal;
use crate::membership::ready::PodManagement;

/// How long the API server is asked to keep a watch open; it begins anew with a question, so that a change that a
/// broken connection has kept from us is seen at last.
const WATCH: Duration = Duration::from_secs(240);
/// Between two tries, at first and at most.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MOST: Duration = Duration::from_secs(20);
/// No StatefulSet of this kind has more replicas; what says so is a slip, and is acted upon by nobody.
pub const REPLICAS_MAX: u32 = 64;

/// What is looked at of a StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatefulSet {
    /// `spec.replicas`.
    pub replicas: u32,
    /// `spec.ordinals.start`: the lowest ordinal, which is the seed's.
    pub start: Ordinal,
    /// `spec.podManagementPolicy`.
    pub policy: PodManagement,
    /// The names of `spec.volumeClaimTemplates`: a PVC is named `<template>-<name>-<ordinal>`.
    pub claim_templates: Vec<String>,
    /// `status.updateRevision`: the label `controller-revision-hash` of pods of the newest template.
    pub update_revision: Option<String>,
}

impl StatefulSet {
    /// The ordinals that are wanted.
    pub fn ordinals(&self) -> impl Iterator<Item = Ordinal> + use<> {
        let start = self.start.0;
        (0..self.replicas).map(move |n| Ordinal(start.saturating_add(n)))
    }

    /// Without templates no claim tells where data is: then each wanted pod but `own` may have some. `None`: claims tell.
    pub fn unclaimed(&self, own: Ordinal) -> Option<Vec<Ordinal>> {
        let wanted = || self.ordinals().filter(|ordinal| *ordinal != own).collect();
        self.claim_templates.is_empty().then(wanted)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    replicas: u32,
    ordinals: Option<Ordinals>,
    pod_management_policy: Option<PodManagement>,
    #[serde(default)]
    volume_claim_templates: Vec<Template>,
}

#[derive(Deserialize)]
struct Ordinals {
    #[serde(default)]
    start: u32,
}

#[derive(Deserialize)]
struct Template {
    metadata: TemplateMeta,
}

#[derive(Deserialize)]
struct TemplateMeta {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    observed_generation: Option<i64>,
    update_revision: Option<String>,
}

/// Asks for it.
pub async fn get(client: &Client) -> Known<StatefulSet> {
    let asked = async {
        let api = client.raw::<v1::StatefulSet>().await?;
        answer(&client.name, DEADLINE, api.get(&client.name)).await
    };
    match known(asked.await) {
        Known::Present(object) => read(&object),
        Known::Absent => Known::Absent,
        Known::Unknown(why) => Known::Unknown(format!("the StatefulSet {}: {why}", client.name)),
    }
}

/// Desired replicas by an answer.
pub fn desired(set: &Known<StatefulSet>) -> Desired {
    match set {
        Known::Present(set) => Desired::Host(set.replicas),
        Known::Absent => Desired::Unknown("there is no such StatefulSet".to_owned()),
        Known::Unknown(why) => Desired::Unknown(why.clone()),
    }
}

/// Calls `seen` for what there is and for each change, for as long as it is polled. Never ends.
pub async fn follow(client: &Client, mut seen: impl FnMut(&StatefulSet)) {
    let mut again = AGAIN_FIRST;
    loop {
        let began = tokio::time::Instant::now();
        if let Err(why) = watched(client, &mut seen).await {
            tracing::debug!(?why, "the StatefulSet cannot be watched");
        }
        again = if began.elapsed() > AGAIN_MOST { AGAIN_FIRST } else { (again * 2).min(AGAIN_MOST) };
        tokio::time::sleep(again).await;
    }
}

/// One watch, until it ends.
async fn watched(client: &Client, seen: &mut impl FnMut(&StatefulSet)) -> Result<(), Failure> {
    let api = client.raw::<v1::StatefulSet>().await?;
    let now = answer(&client.name, DEADLINE, api.get(&client.name)).await?;
    let version = now.metadata.resource_version.clone().unwrap_or_default();
    if let Known::Present(set) = read(&now) {
        seen(&set);
    }
    let seconds = u32::try_from(WATCH.as_secs()).unwrap_or(u32::MAX);
    let params = WatchParams::default().fields(&format!("metadata.name={}", client.name)).timeout(seconds);
    let events = answer(&client.name, DEADLINE, api.watch(&params, &version)).await?;
    let events = async {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    if let Known::Present(set) = read(&object) {
                        seen(&set);
                    }
                }
                Ok(WatchEvent::Deleted(_) | WatchEvent::Bookmark(_)) => {}
                Ok(WatchEvent::Error(status)) => return Err(Failure::Unknown(status.message)),
                Err(error) => return Err(Failure::Unknown(error.to_string())),
            }
        }
        Ok(())
    };
    // Should the other end be gone without a word, nobody says that the time is over.
    tokio::time::timeout(WATCH + DEADLINE, events).await.unwrap_or(Ok(()))
}

/// Reads what the API sent. What cannot be understood is unknown.
fn read(object: &DynamicObject) -> Known<StatefulSet> {
    let part = |name: &str| object.data.get(name).cloned();
    let spec: Spec = match part("spec").map(serde_json::from_value).transpose() {
        Ok(Some(spec)) => spec,
        Ok(None) => return Known::Unknown("the StatefulSet has no spec".to_owned()),
        Err(error) => return Known::Unknown(format!("the StatefulSet's spec cannot be read: {error}")),
    };
    if spec.replicas > REPLICAS_MAX {
        let why = format!("the StatefulSet wants {} replicas, more than {REPLICAS_MAX}: scale it down", spec.replicas);
        return Known::Unknown(why);
    }
    let status: Status = part("status").and_then(|status| serde_json::from_value(status).ok()).unwrap_or_default();
    let current = status.observed_generation.is_some() && status.observed_generation == object.metadata.generation;
    Known::Present(StatefulSet {
        replicas: spec.replicas,
        start: Ordinal(spec.ordinals.map_or(0, |ordinals| ordinals.start)),
        policy: spec.pod_management_policy.unwrap_or(PodManagement::OrderedReady),
        claim_templates: spec.volume_claim_templates.into_iter().map(|t| t.metadata.name).collect(),
        // Until the controller has seen the newest template, nobody knows its revision.
        update_revision: status.update_revision.filter(|_| current),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(spec: serde_json::Value) -> DynamicObject {
        let object = serde_json::json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "vc", "generation": 2},
            "spec": spec, "status": {"observedGeneration": 2, "updateRevision": "vc-7d"},
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_set_is_read_as_the_api_sends_it() {
        let set = object(serde_json::json!({
            "replicas": 3, "ordinals": {"start": 2}, "podManagementPolicy": "Parallel", "serviceName": "x",
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
        }));
        let set = read(&set).present().unwrap().clone();
        assert_eq!(set.ordinals().collect::<Vec<_>>(), [Ordinal(2), Ordinal(3), Ordinal(4)]);
        assert_eq!(set.unclaimed(Ordinal(2)), None);
        assert_eq!((set.policy, set.claim_templates), (PodManagement::Parallel, vec!["data".to_owned()]));
        assert_eq!(set.update_revision.as_deref(), Some("vc-7d"));
        let without = read(&object(serde_json::json!({"replicas": 3}))).present().unwrap().clone();
        assert_eq!(without.unclaimed(Ordinal(1)), Some(vec![Ordinal(0), Ordinal(2)]), "each may have data");
        let bare = read(&object(serde_json::json!({"replicas": 0}))).present().unwrap().clone();
        assert_eq!((bare.start, bare.policy, bare.replicas), (Ordinal(0), PodManagement::OrderedReady, 0));
    }

    #[test]
    fn what_cannot_be_understood_is_unknown_and_never_none_wanted() {
        let many = serde_json::json!({"replicas": REPLICAS_MAX + 1});
        for spec in [serde_json::json!({}), serde_json::json!({"replicas": -1}), serde_json::json!("x"), many] {
            assert!(read(&object(spec.clone())).unknown().is_some(), "{spec}");
            assert_eq!(desired(&read(&object(spec))).known(), None);
        }
        assert_eq!(desired(&Known::Absent).known(), None, "orphaned pods are no scaled-down ones");
    }

    #[test]
    fn the_newest_revision_is_unknown_until_the_controller_has_seen_the_newest_template() {
        let mut set = object(serde_json::json!({"replicas": 1}));
        set.metadata.generation = Some(3);
        assert_eq!(read(&set).present().unwrap().update_revision, None);
    }
}
