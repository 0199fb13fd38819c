//! One request to the host cluster's API and what came of it.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, Config, Resource};
use tokio::sync::OnceCell;

use crate::boot::Known;
use crate::ids::Ordinal;
use crate::settings::{HostApi, Settings};

/// One question.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// One write. One that did not answer in time may have been made.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(4);

/// Asks the API about the objects of one StatefulSet.
pub struct Client {
    /// The StatefulSet's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// This pod.
    pub ordinal: Ordinal,
    api: HostApi,
    /// Made by the first request that finds what it is made from.
    made: OnceCell<kube::Client>,
}

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The API says that there is no such object.
    NotFound,
    /// The object is there already, or is not of the version that was expected.
    Conflict,
    /// The API says that this pod may not do that: the Role lacks the verb.
    Denied(String),
    /// Anything else: no answer, or none in time. For a write: it may have been made.
    Unknown(String),
}

impl Client {
    /// For this pod. Asks nothing yet.
    pub fn new(settings: &Settings) -> Client {
        Client {
            name: settings.name.clone(),
            namespace: settings.namespace.clone(),
            ordinal: settings.pod.ordinal,
            api: settings.host_api.clone(),
            made: OnceCell::new(),
        }
    }

    /// Objects of a kind in the StatefulSet's namespace.
    pub async fn objects<K>(&self) -> Result<Api<K>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Ok(Api::namespaced(self.made().await?, &self.namespace))
    }

    /// As [`Client::objects`], of which only the parts that are looked at are read.
    pub async fn raw<K>(&self) -> Result<Api<DynamicObject>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        let resource = ApiResource::erase::<K>(&());
        Ok(Api::namespaced_with(self.made().await?, &self.namespace, &resource))
    }

    /// The client itself, for requests whose answers nobody else may read.
    pub(super) async fn made(&self) -> Result<kube::Client, Failure> {
        let make = || async { client(&self.api).await.map_err(|e| Failure::Unknown(format!("{e:#}"))) };
        self.made.get_or_try_init(make).await.cloned()
    }
}

async fn client(api: &HostApi) -> anyhow::Result<kube::Client> {
    let mut config = match api {
        HostApi::None => anyhow::bail!("no host API is configured"),
        HostApi::InCluster => Config::incluster_env()?,
        HostApi::Kubeconfig(file) => {
            Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &KubeConfigOptions::default()).await?
        }
    };
    // Whoever asks has a deadline and asks again by its own pace.
    config.default_retry = false;
    config.connect_timeout = Some(DEADLINE);
    Ok(kube::Client::try_from(config)?)
}

/// Waits for an answer until the deadline. `object` is the name that an authoritative "not found" speaks of.
pub async fn answer<T>(
    object: &str,
    deadline: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(deadline, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failure(object, error)),
        Err(_) => Err(Failure::Unknown(format!("no answer within {} s", deadline.as_secs_f32()))),
    }
}

fn failure(object: &str, error: kube::Error) -> Failure {
    let kube::Error::Api(status) = &error else {
        let mut why = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            let inner_text = inner.to_string();
            if !why.contains(&inner_text) {
                why = format!("{why}: {inner_text}");
            }
            cause = inner.source();
        }
        return Failure::Unknown(why);
    };
    // A proxy's 404, or that of a missing API group, names no object of ours.
    let named = status.details.as_ref().is_some_and(|details| details.name == object);
    match (status.code, status.reason.as_str()) {
        (404, "NotFound") if named => Failure::NotFound,
        (409, "Conflict" | "AlreadyExists") => Failure::Conflict,
        (403, _) => Failure::Denied(format!("status 403: {}", status.message)),
        (code, _) => Failure::Unknown(format!("status {code}: {}", status.message)),
    }
}

/// What a question has found.
pub fn known<T>(answer: Result<T, Failure>) -> Known<T> {
    match answer {
        Ok(value) => Known::Present(value),
        Err(Failure::NotFound) => Known::Absent,
        Err(Failure::Conflict) => Known::Unknown("status 409 for a question".to_owned()),
        Err(Failure::Denied(why) | Failure::Unknown(why)) => Known::Unknown(why),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn told(code: u16, reason: &str, name: &str) -> Failure {
        let text = serde_json::json!({"status": "Failure", "code": code, "reason": reason, "details": {"name": name}});
        let status: Status = serde_json::from_value(text).unwrap();
        failure("vc-etcd", kube::Error::Api(status.boxed()))
    }

    #[test]
    fn only_an_authority_on_this_very_object_says_that_it_is_absent() {
        assert_eq!(told(404, "NotFound", "vc-etcd"), Failure::NotFound);
        for (code, reason, name) in
            [(404, "NotFound", ""), (404, "Failed to parse error data", "vc-etcd"), (401, "Unauthorized", "vc-etcd")]
        {
            assert!(matches!(told(code, reason, name), Failure::Unknown(_)), "{code} {reason} {name}");
        }
        assert_eq!(told(409, "AlreadyExists", "vc-etcd"), Failure::Conflict);
        assert_eq!(told(409, "Conflict", "vc-etcd"), Failure::Conflict);
        let denied = told(403, "Forbidden", "vc-etcd");
        assert!(matches!(denied, Failure::Denied(_)));
        for failure in [denied, Failure::Conflict] {
            assert!(known::<()>(Err(failure)).unknown().is_some(), "neither says that there is none");
        }
    }
}
