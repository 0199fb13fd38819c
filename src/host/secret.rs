//! A Secret by which all pods share what must be the same in each of them. It is created by whoever is first, and what is
//! in it is never replaced: keys that it lacks are added.
//!
//! Nothing of its content is ever logged. So the answers are read here: the API's client logs what it cannot read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use kube::Resource;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::core::params::GetParams;
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, DEADLINE, Failure, WRITE_DEADLINE, answer};
use super::marker::owned;

/// The content of a Secret, or a part of it. Its `Debug` shows the names alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretData(pub BTreeMap<String, Vec<u8>>);

/// A Secret as it was read.
#[derive(Clone, Debug)]
pub struct SecretSeen {
    /// Its `resourceVersion`.
    pub version: String,
    /// Its content.
    pub data: SecretData,
}

/// One Secret of the StatefulSet's namespace.
#[derive(Clone)]
pub struct SecretObject {
    client: Arc<Client>,
    /// Its name.
    pub name: String,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    data: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

impl fmt::Debug for SecretData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The Secret in which vCluster keeps the certificates of the StatefulSet `name`.
pub fn certs_of(name: &str) -> String {
    format!("{name}-certs")
}

impl SecretData {
    /// A Secret with this content, as `kubectl apply` takes it.
    pub fn manifest(&self, name: &str, namespace: &str) -> serde_json::Value {
        let metadata = json!({"name": name, "namespace": namespace});
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": text(self)})
    }
}

impl SecretObject {
    pub(super) fn new(client: &Arc<Client>, name: String) -> SecretObject {
        SecretObject { client: Arc::clone(client), name }
    }

    /// Reads it.
    pub async fn get(&self) -> Result<SecretSeen, Failure> {
        let client = self.client.made().await?;
        let request = self.request().get(&self.name, &GetParams::default()).map_err(unmade)?;
        read(&answer(&self.name, DEADLINE, client.request_text(request)).await?)
    }

    /// Creates it. [`Failure::Conflict`]: somebody else was first.
    pub async fn create(&self, data: &SecretData) -> Result<(), Failure> {
        let client = self.client.made().await?;
        let metadata = owned(&self.client, &self.name).await?;
        let object =
            json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": text(data)});
        let body = serde_json::to_vec(&object).map_err(|e| Failure::Unknown(e.to_string()))?;
        let request = self.request().create(&PostParams::default(), body).map_err(unmade)?;
        answer(&self.name, WRITE_DEADLINE, client.request_text(request)).await.map(drop)
    }

    /// Adds to the version that was read. [`Failure::Conflict`]: it is another by now.
    pub async fn add(&self, version: &str, data: &SecretData) -> Result<(), Failure> {
        let client = self.client.made().await?;
        // The version in a patch is its precondition; what others have put into the object stays.
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "data": text(data)}));
        let request = self.request().patch(&self.name, &PatchParams::default(), &patch).map_err(unmade)?;
        answer(&self.name, WRITE_DEADLINE, client.request_text(request)).await.map(drop)
    }

    fn request(&self) -> Request {
        Request::new(Secret::url_path(&(), Some(&self.client.namespace)))
    }
}

fn unmade(error: kube::core::request::Error) -> Failure {
    Failure::Unknown(error.to_string())
}

fn text(data: &SecretData) -> BTreeMap<&str, String> {
    data.0.iter().map(|(key, bytes)| (key.as_str(), STANDARD.encode(bytes))).collect()
}

/// Reads an answer. What cannot be understood is unknown, never empty; the error shows none of it.
fn read(answer: &str) -> Result<SecretSeen, Failure> {
    let unreadable = |what: &str| Failure::Unknown(format!("the answer cannot be read: {what}"));
    let object: Object = serde_json::from_str(answer).map_err(|_| unreadable("it is no Secret"))?;
    let mut data = BTreeMap::new();
    for (key, text) in object.data.unwrap_or_default() {
        let bytes = STANDARD
            .decode(text.unwrap_or_default())
            .map_err(|_| unreadable(&format!("its key {key} is not base64")))?;
        data.insert(key, bytes);
    }
    Ok(SecretSeen { version: object.metadata.resource_version, data: SecretData(data) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_as_the_api_sends_it_and_shows_nothing_of_itself() {
        let seen = read(r#"{"metadata": {"resourceVersion": "7"}, "data": {"ca.key": "c2VjcmV0"}}"#).unwrap();
        assert_eq!((seen.version.as_str(), seen.data.0["ca.key"].as_slice()), ("7", &b"secret"[..]));
        let shown = format!("{seen:?}");
        assert!(shown.contains("ca.key") && !shown.contains("115") && !shown.contains("secret"), "{shown}");
        let seen = read(r#"{"metadata": {"resourceVersion": "7"}}"#).unwrap();
        assert_eq!(seen.data, SecretData::default());
        for broken in ["", "{}", "null", r#"{"metadata": {"resourceVersion": "7"}, "data": {"a": "sec!ret"}}"#] {
            let Err(Failure::Unknown(why)) = read(broken) else { panic!("{broken}") };
            assert!(!why.contains("sec!"), "{why}");
        }
    }
}
