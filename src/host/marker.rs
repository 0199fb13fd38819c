//! The marker: ConfigMap `<name>-etcd`, owned by the headless Service, so that it goes with the virtual cluster and not with
//! its StatefulSet, which an upgrade may delete and make anew.
//!
//! One key, `marker`, holds the JSON of [`Marker`]. Its version is the object's `resourceVersion`, by which each write is a
//! compare-and-swap. A ConfigMap that cannot be understood is unknown, never absent.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::client::{Client, DEADLINE, Failure, WRITE_DEADLINE, answer, known};
use crate::boot::{Known, Marker, MarkerSeen, MarkerWrite};

/// The key of the ConfigMap's data.
const KEY: &str = "marker";

/// What came of a write. Whatever it is, the marker is read again before anything is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is durable.
    Done,
    /// It was not made: the marker is not the one that was expected.
    Outdated,
    /// It is not allowed.
    Denied(String),
    /// It may have been made, or may still be made.
    Unknown(String),
}

fn name_of(client: &Client) -> String {
    format!("{}-etcd", client.name)
}

/// Reads it.
pub async fn get(client: &Client) -> Known<MarkerSeen> {
    let name = name_of(client);
    let asked = async {
        let api = client.objects::<ConfigMap>().await?;
        answer(&name, DEADLINE, api.get(&name)).await
    };
    match known(asked.await) {
        Known::Present(object) => {
            read(&object).unwrap_or_else(|why| Known::Unknown(format!("ConfigMap {name}: {why}")))
        }
        Known::Absent => Known::Absent,
        Known::Unknown(why) => Known::Unknown(format!("ConfigMap {name}: {why}")),
    }
}

fn read(object: &ConfigMap) -> Result<Known<MarkerSeen>, String> {
    let text = object.data.as_ref().and_then(|data| data.get(KEY)).ok_or_else(|| format!("it has no key {KEY:?}"))?;
    let marker: Marker = serde_json::from_str(text).map_err(|e| format!("its key {KEY:?} is no marker: {e}"))?;
    let version = object.metadata.resource_version.clone().ok_or("it has no resourceVersion")?;
    Ok(Known::Present(MarkerSeen { version, marker }))
}

/// Replaces the version that the write expects, or creates it.
pub async fn write(client: &Client, write: &MarkerWrite) -> Written {
    let name = name_of(client);
    let text = match serde_json::to_string(&write.marker) {
        Ok(text) => text,
        Err(error) => return Written::Unknown(error.to_string()),
    };
    let done = async {
        let api = client.objects::<ConfigMap>().await?;
        match &write.expect {
            Some(version) => {
                // The version in a patch is its precondition; what others have put into the object stays.
                let patch = json!({"metadata": {"resourceVersion": version}, "data": {KEY: text}});
                let params = PatchParams::default();
                answer(&name, WRITE_DEADLINE, api.patch(&name, &params, &Patch::Merge(patch))).await
            }
            None => {
                let object = ConfigMap {
                    metadata: owned(client, &name).await?,
                    data: Some(BTreeMap::from([(KEY.to_owned(), text)])),
                    ..ConfigMap::default()
                };
                answer(&name, WRITE_DEADLINE, api.create(&PostParams::default(), &object)).await
            }
        }
    };
    match done.await {
        Ok(_) => Written::Done,
        Err(Failure::Conflict | Failure::NotFound) => Written::Outdated,
        Err(Failure::Denied(why)) => Written::Denied(format!("ConfigMap {name}: {why}")),
        Err(Failure::Unknown(why)) => Written::Unknown(format!("ConfigMap {name}: {why}")),
    }
}

/// The metadata of an object of this virtual cluster, which the headless Service owns.
pub(super) async fn owned(client: &Client, name: &str) -> Result<ObjectMeta, Failure> {
    let service = format!("{}-headless", client.name);
    let api = client.objects::<Service>().await?;
    let owner = match answer(&service, DEADLINE, api.get_metadata(&service)).await {
        Ok(found) => found.metadata.uid.map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Service".to_owned(),
            name: service,
            uid,
            ..OwnerReference::default()
        }),
        Err(Failure::NotFound) => None,
        Err(other) => return Err(other),
    };
    Ok(ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(client.namespace.clone()),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::MarkerPhase;
    use crate::ids::ClusterId;

    fn object(data: &[(&str, &str)]) -> ConfigMap {
        let data = data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let metadata = ObjectMeta { resource_version: Some("7".to_owned()), ..ObjectMeta::default() };
        ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }
    }

    #[test]
    fn a_marker_comes_back_and_what_is_none_is_never_absent() {
        let marker = Marker::new(MarkerPhase::Formed(ClusterId(0xabc)));
        let text = serde_json::to_string(&marker).unwrap();
        let seen = read(&object(&[(KEY, &text), ("else", "x")])).unwrap();
        assert_eq!(seen, Known::Present(MarkerSeen { version: "7".to_owned(), marker }));
        for data in [&[][..], &[(KEY, "")], &[(KEY, "{}")], &[(KEY, "null")]] {
            assert!(read(&object(data)).is_err(), "{data:?}");
        }
    }
}
