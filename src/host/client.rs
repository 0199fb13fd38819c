//! One request to the host cluster's API and what came of it.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, Config, Resource};
use tokio::runtime::Handle;
use tokio::sync::watch;

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
    /// Made, or being made, since the first request; nothing after a failure, upon which the next request begins anew.
    making: Mutex<Option<watch::Receiver<Option<Making>>>>,
}

/// What came of making a client, with the reason why there is none.
type Making = Result<kube::Client, String>;

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
            making: Mutex::default(),
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
        let mut making = self.begun();
        let made = tokio::time::timeout(DEADLINE, making.wait_for(Option::is_some)).await.map(|made| {
            let made = made.ok().and_then(|made| made.clone());
            made.unwrap_or_else(|| Err("the thread that reads the host API's configuration has ended".to_owned()))
        });
        match made {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(why)) => {
                let mut begun = self.making.lock().unwrap_or_else(PoisonError::into_inner);
                begun.take_if(|begun| begun.same_channel(&making));
                Err(Failure::Unknown(why))
            }
            Err(_) => Err(Failure::Unknown(format!(
                "the host API's configuration is not read within {} s: a program that the kubeconfig names for the \
                 credentials does not end, or the disk does not answer",
                DEADLINE.as_secs_f32()
            ))),
        }
    }

    /// The making of the client that was begun, or that is begun now.
    ///
    /// It reads files and may run a program of the kubeconfig's to its end, both without yielding: so not in the runtime's
    /// only thread, and in none for which the runtime waits when it ends. A thread that hangs is the only one, as whoever asks
    /// meanwhile waits for the same.
    fn begun(&self) -> watch::Receiver<Option<Making>> {
        let mut begun = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(making) = &*begun {
            return making.clone();
        }
        let (sender, making) = watch::channel(None);
        // The client's own task runs where the requests are made.
        let (runtime, api) = (Handle::current(), self.api.clone());
        let make = move || {
            let made = runtime.block_on(client(&api)).map_err(|e| format!("{e:#}"));
            sender.send_replace(Some(made));
        };
        // Without a thread the sender is gone, which is told as a failure.
        if let Err(error) = std::thread::Builder::new().name("host-client".to_owned()).spawn(make) {
            tracing::warn!("no thread to read the host API's configuration in: {error}");
        }
        begun.insert(making).clone()
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
    use std::path::Path;
    use std::time::Instant;

    use kube::core::Status;

    use super::*;

    /// A client by a kubeconfig in `dir` that has this script run for the credentials.
    fn by_script(dir: &Path, script: &str) -> Client {
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", "insecure-skip-tls-verify": true}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"exec": {
                "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
                "command": "sh", "args": ["-c", script, "sh", dir],
            }}}],
        });
        let file = dir.join("kubeconfig");
        std::fs::write(&file, config.to_string()).unwrap();
        let (name, namespace) = ("vc".to_owned(), "team-a".to_owned());
        Client { name, namespace, ordinal: Ordinal(0), api: HostApi::Kubeconfig(file), making: Mutex::default() }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_credentials_program_that_hangs_is_waited_for_by_one_thread_and_not_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let client = by_script(dir.path(), "echo $$ >>$1/pids; exec sleep 1000");
        let (runtime, began) = (runtime(), Instant::now());
        let asked = runtime.block_on(async {
            let mut asked = Vec::new();
            for _ in 0..2 {
                let (a, b) = tokio::join!(client.made(), client.made());
                asked.extend([a.err(), b.err()]);
            }
            asked
        });
        drop(runtime);
        let took = began.elapsed();
        let pids = std::fs::read_to_string(dir.path().join("pids")).unwrap();
        let pids: Vec<i32> = pids.lines().map(|pid| pid.parse().unwrap()).collect();
        for pid in &pids {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        assert_eq!(pids.len(), 1, "each request that finds one hanging must wait for that one");
        for failure in asked {
            assert!(matches!(&failure, Some(Failure::Unknown(why)) if why.contains("within 2 s")), "{failure:?}");
        }
        assert!(took < Duration::from_secs(60), "neither a request nor the runtime's end waits for it: {took:?}");
    }

    #[test]
    fn what_the_credentials_program_fails_with_is_told_and_it_is_run_again() {
        let dir = tempfile::tempdir().unwrap();
        let status =
            r#"{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "t"}}"#;
        std::fs::write(dir.path().join("answer"), status).unwrap();
        let client = by_script(dir.path(), "test -e $1/works || { touch $1/works; exit 7; }; cat $1/answer");
        let runtime = runtime();
        let began = Instant::now();
        let mut told = Vec::new();
        while began.elapsed() < Duration::from_secs(60) {
            match runtime.block_on(client.made()) {
                Ok(_) => {
                    let failed =
                        |failure: &Failure| matches!(failure, Failure::Unknown(why) if why.contains("exit status: 7"));
                    return assert!(told.iter().any(failed), "its end is the reason: {told:?}");
                }
                Err(failure) => told.push(failure),
            }
        }
        panic!("the program works, and no client was made: {told:?}");
    }

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
