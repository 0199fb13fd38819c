//! The host cluster: a real etcd, kube-apiserver and kube-controller-manager (its StatefulSet and EndpointSlice
//! controllers) inside the box, and the objects that the chart makes. The box's [`super::kubelet`] runs its pods.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::{Value, json};

use super::kubelet::Listed;
use super::network::{GATEWAY, Network};
use super::pod::dies_with_parent;
use super::protocol::{ApiMood, Config, Policy};
use super::way::Way;

/// How late answers are; a pod waits two seconds for one, four after a write.
const SLOW: Duration = Duration::from_millis(1200);
const LATE: Duration = Duration::from_secs(6);
/// The API server's port.
pub const PORT: u16 = 6443;
/// The only node.
const NODE: &str = "box";
/// How long the host cluster may take to come up.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one request may take. The box waits for it.
const ANSWER: Duration = Duration::from_secs(15);
/// Where the API server is among the children.
const APISERVER: usize = 1;

/// The host cluster's processes. They die with the box.
pub struct Host {
    /// Its API.
    pub api: Api,
    /// etcd, the API server, the controller-manager.
    children: Vec<Child>,
    apiserver_args: Vec<String>,
    parts: PathBuf,
    dir: PathBuf,
    /// How pods reach it.
    way: Way,
}

/// The host cluster's API, as its administrator.
#[derive(Clone)]
pub struct Api {
    token: String,
    tls: Arc<ClientConfig>,
    namespace: String,
    name: String,
}

/// The StatefulSet, as the API has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetStatus {
    /// `spec.replicas`.
    pub replicas: u32,
    /// `metadata.generation`.
    pub generation: u64,
    /// The controller has seen this generation, all pods are of the newest revision and ready.
    pub settled: bool,
}

/// A pod, as its kubelet has it.
#[derive(Clone, Copy, Debug)]
pub struct Reported {
    /// Its address; `None`: it has failed for good.
    pub address: Option<Ipv4Addr>,
    /// Its process runs.
    pub runs: bool,
    /// How often that was started again.
    pub restarts: u32,
    /// It is ready.
    pub ready: bool,
}

impl Host {
    /// Brings it up: to be asked from inside at `https://10.244.0.1:6443`, and by pods at 443 ([`super::way`]). `certs` is a `syncer`, which issues the PKI.
    pub fn up(network: &Network, dir: &Path, parts: &Path, certs: &Path, config: &Config) -> anyhow::Result<Host> {
        let pki = dir.join("pki");
        fs::create_dir_all(dir)?;
        // A new cluster each time: its volumes' pods are what lasts.
        let data = dir.join("etcd");
        if data.exists() {
            fs::remove_dir_all(&data)?;
        }
        let mut command = Command::new(certs);
        command.arg("certs").arg("--dir").arg(&pki).arg("--data-dir").arg(dir).arg(format!("--tls-san={GATEWAY}"));
        let made = command.args(["--etcd-embedded=true", "--distro=k8s"]).output().context("run syncer certs")?;
        ensure!(made.status.success(), "syncer certs: {}", String::from_utf8_lossy(&made.stderr).trim());
        let token = format!("{:032x}", rand::random::<u128>());
        fs::write(dir.join("tokens.csv"), format!("{token},box,box,system:masters\n"))?;

        let file = |name: &str| pki.join(name).display().to_string();
        let tls = Arc::new(syncer::supervise::probe::unverified()?);
        let api = Api { token, tls, namespace: config.namespace.clone(), name: config.name.clone() };
        let mut host = Host {
            api,
            children: Vec::new(),
            apiserver_args: Vec::new(),
            parts: parts.to_owned(),
            dir: dir.to_owned(),
            way: Way::open(network, PORT)?,
        };
        host.start(
            network,
            parts,
            dir,
            "etcd",
            &[
                format!("--data-dir={}", data.display()),
                "--listen-client-urls=http://127.0.0.1:2379".into(),
                "--advertise-client-urls=http://127.0.0.1:2379".into(),
                "--listen-peer-urls=http://127.0.0.1:2380".into(),
                // What is in it is made anew each time.
                "--unsafe-no-fsync".into(),
            ],
        )?;
        host.apiserver_args = vec![
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!("--bind-address={}", Ipv4Addr::UNSPECIFIED),
            format!("--advertise-address={GATEWAY}"),
            format!("--secure-port={PORT}"),
            format!("--token-auth-file={}", dir.join("tokens.csv").display()),
            "--authorization-mode=RBAC".into(),
            // No volume is ever unbound, and no node reports.
            "--disable-admission-plugins=StorageObjectInUseProtection,TaintNodesByCondition".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
        ];
        host.start(network, parts, dir, "kube-apiserver", &host.apiserver_args.clone())?;
        host.wait(network, "the API server", |api| api.get("/readyz").is_ok())?;
        let kubeconfig = file("controller-manager.conf");
        host.start(
            network,
            parts,
            dir,
            "kube-controller-manager",
            &[
                format!("--kubeconfig={kubeconfig}"),
                format!("--authentication-kubeconfig={kubeconfig}"),
                format!("--authorization-kubeconfig={kubeconfig}"),
                "--bind-address=127.0.0.1".into(),
                "--leader-elect=false".into(),
                "--use-service-account-credentials=true".into(),
                "--controllers=statefulset-controller,endpointslice-controller,garbage-collector-controller,\
             serviceaccount-controller,root-ca-certificate-publisher-controller,namespace-controller"
                    .into(),
                format!("--root-ca-file={}", file("ca.crt")),
                format!("--service-account-private-key-file={}", file("sa.key")),
            ],
        )?;
        let (dir, name, namespace) = (dir.to_owned(), config.name.clone(), config.namespace.clone());
        let objects = objects(config);
        let api = host.api.clone();
        network.inside(move || {
            for (path, object) in &objects {
                api.created(path, object)?;
            }
            // What a pod finds at /var/run/secrets/kubernetes.io/serviceaccount.
            let account = dir.join("serviceaccount");
            fs::create_dir_all(&account)?;
            let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/vc-{name}/token");
            let day = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}});
            let token = api.request("POST", &path, "application/json", Some(&day))?;
            fs::write(account.join("token"), token["status"]["token"].as_str().context("a token")?)?;
            fs::copy(dir.join("pki/ca.crt"), account.join("ca.crt"))?;
            fs::write(account.join("namespace"), &namespace)?;
            anyhow::Ok(())
        })?;
        Ok(host)
    }

    /// Ends it at once.
    pub fn stop(&mut self) {
        for mut child in self.children.drain(..).rev() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The folder that is the pods' service account.
    pub fn service_account(dir: &Path) -> PathBuf {
        dir.join("serviceaccount")
    }

    /// What its API server does from now on.
    pub fn set_mood(&mut self, network: &Network, mood: ApiMood) -> anyhow::Result<()> {
        let child = self.children.get_mut(APISERVER).context("the API server was started")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let runs = child.try_wait()?.is_none();
        self.way.delays(match mood {
            ApiMood::Slow => SLOW,
            ApiMood::Late => LATE,
            ApiMood::Well | ApiMood::Hangs | ApiMood::Gone => Duration::ZERO,
        });
        match mood {
            ApiMood::Hangs if runs => kill(pid, Signal::SIGSTOP)?,
            ApiMood::Well | ApiMood::Slow | ApiMood::Late if runs => kill(pid, Signal::SIGCONT)?,
            ApiMood::Gone if runs => {
                child.kill()?;
                child.wait()?;
            }
            ApiMood::Well | ApiMood::Slow | ApiMood::Late => {
                let args = self.apiserver_args.clone();
                *child = spawn(network, &self.parts, &self.dir, "kube-apiserver", &args)?;
            }
            ApiMood::Hangs | ApiMood::Gone => {}
        }
        Ok(())
    }

    fn start(
        &mut self,
        network: &Network,
        parts: &Path,
        dir: &Path,
        name: &str,
        args: &[String],
    ) -> anyhow::Result<()> {
        self.children.push(spawn(network, parts, dir, name, args)?);
        Ok(())
    }

    fn wait(&mut self, network: &Network, what: &str, ready: fn(&Api) -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let api = self.api.clone();
            if network.inside(move || ready(&api)) {
                return Ok(());
            }
            for child in &mut self.children {
                ensure!(child.try_wait()?.is_none(), "a program of the host cluster ended; see host/*.log");
            }
            ensure!(began.elapsed() < PATIENCE, "{what} is not ready within {PATIENCE:?}; see host/*.log");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn spawn(network: &Network, parts: &Path, dir: &Path, name: &str, args: &[String]) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join(format!("{name}.log")))?;
    let mut command = Command::new(parts.join(name));
    command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    dies_with_parent(&mut command);
    network.inside(move || command.spawn()).with_context(|| format!("start {name}"))
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Api {
    /// A request, from inside; the answer's JSON.
    pub fn request(&self, method: &str, path: &str, content: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let tcp = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), ANSWER)?;
        tcp.set_read_timeout(Some(ANSWER))?;
        tcp.set_write_timeout(Some(ANSWER))?;
        let tls = ClientConnection::new(self.tls.clone(), ServerName::try_from("localhost")?)?;
        let mut stream = StreamOwned::new(tls, tcp);
        let body = body.map(Value::to_string).unwrap_or_default();
        // HTTP/1.0: the answer comes in one piece and ends with the connection.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nAccept: application/json\r\n\
             Content-Type: {content}\r\nContent-Length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        )?;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
        match head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()) {
            Some(200..=299) => Ok(serde_json::from_str(body).unwrap_or(Value::Null)),
            _ => bail!("{method} {path}: {} {body}", head.lines().next().unwrap_or_default()),
        }
    }

    /// GET.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.request("GET", path, "", None)
    }

    /// POST of an object.
    pub fn create(&self, path: &str, object: &Value) -> anyhow::Result<Value> {
        self.request("POST", path, "application/json", Some(object))
    }

    /// POST of an object, tried until it is there: the API server has just been started.
    fn created(&self, path: &str, object: &Value) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            match self.create(path, object) {
                Ok(_) => return Ok(()),
                // By an earlier try whose answer was late.
                Err(error) if error.to_string().contains("AlreadyExists") => return Ok(()),
                Err(error) if began.elapsed() >= PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// A merge patch.
    pub fn merge(&self, path: &str, patch: &Value) -> anyhow::Result<Value> {
        self.request("PATCH", path, "application/merge-patch+json", Some(patch))
    }

    /// A kubeconfig for its administrator, by way of `address`.
    pub fn kubeconfig(&self, address: SocketAddr, ca: &Path) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: box\n\
             clusters:\n- name: box\n  cluster:\n    server: https://{address}\n    certificate-authority: {}\n\
             users:\n- name: box\n  user:\n    token: {}\n\
             contexts:\n- name: box\n  context:\n    cluster: box\n    user: box\n    namespace: {}\n",
            ca.display(),
            self.token,
            self.namespace
        )
    }

    fn pod_path(&self, ordinal: u32) -> String {
        format!("/api/v1/namespaces/{}/pods/{}-{ordinal}", self.namespace, self.name)
    }

    fn sets_path(&self) -> String {
        format!("/apis/apps/v1/namespaces/{}/statefulsets", self.namespace)
    }

    fn set_path(&self) -> String {
        format!("{}/{}", self.sets_path(), self.name)
    }

    /// The pods of the node.
    pub fn pods(&self) -> anyhow::Result<Vec<Listed>> {
        let list = self.get(&format!("/api/v1/namespaces/{}/pods", self.namespace))?;
        let pods = list["items"].as_array().context("a list of pods")?;
        let of = |pod: &Value| {
            let meta = &pod["metadata"];
            let (set, ordinal) = meta["name"].as_str()?.rsplit_once('-')?;
            let grace = meta["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
            (set == self.name && pod["spec"]["nodeName"] == NODE).then_some(Listed {
                ordinal: ordinal.parse().ok()?,
                uid: meta["uid"].as_str()?.to_owned(),
                deleted: meta["deletionTimestamp"].as_str().map(|_| Duration::from_secs(grace)),
                revision: meta["labels"]["controller-revision-hash"].as_str().unwrap_or_default().to_owned(),
            })
        };
        Ok(pods.iter().filter_map(of).collect())
    }

    /// The StatefulSet; one that was deleted wants nothing, and its pods may have been left.
    pub fn set(&self) -> anyhow::Result<SetStatus> {
        let named = format!("?fieldSelector=metadata.name={}", self.name);
        let list = self.get(&format!("{}{named}", self.sets_path()))?;
        let sets = list["items"].as_array().context("a list of StatefulSets")?;
        let Some(set) = sets.first() else { return Ok(SetStatus::default()) };
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let (replicas, status) = (number(&set["spec"]["replicas"]), &set["status"]);
        let all =
            ["replicas", "readyReplicas", "updatedReplicas"].iter().all(|field| number(&status[field]) == replicas);
        let seen = number(&status["observedGeneration"]) == number(&set["metadata"]["generation"]);
        let generation = number(&set["metadata"]["generation"]);
        Ok(SetStatus { replicas: u32::try_from(replicas)?, generation, settled: all && seen })
    }

    /// As `kubectl scale` does.
    pub fn scale(&self, replicas: u32) -> anyhow::Result<()> {
        let path = format!("{}/scale", self.set_path());
        self.merge(&path, &json!({"spec": {"replicas": replicas}})).map(|_| ())
    }

    /// As `kubectl rollout restart` does.
    pub fn roll(&self) -> anyhow::Result<()> {
        let annotation = format!("{:016x}", rand::random::<u64>());
        let template = json!({"metadata": {"annotations": {"box/rolled": annotation}}});
        self.merge(&self.set_path(), &json!({"spec": {"template": template}})).map(|_| ())
    }

    /// As `kubectl delete pod` does.
    pub fn delete(&self, ordinal: u32) -> anyhow::Result<()> {
        self.request("DELETE", &self.pod_path(ordinal), "", None).map(|_| ())
    }

    /// The pod has ended: it is no longer an object.
    pub fn remove(&self, ordinal: u32, uid: &str) -> anyhow::Result<()> {
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": uid}
        });
        self.request("DELETE", &self.pod_path(ordinal), "application/json", Some(&options)).map(|_| ())
    }

    /// Says how a pod is, as its kubelet does.
    pub fn report(&self, ordinal: u32, uid: &str, pod: &Reported) -> anyhow::Result<()> {
        let Reported { address, runs, restarts, ready } = pod;
        let condition =
            |kind: &str, holds: &bool| json!({"type": kind, "status": if *holds { "True" } else { "False" }});
        let state = match address {
            Some(_) if *runs => json!({"running": {}}),
            Some(_) => json!({"waiting": {"reason": "CrashLoopBackOff"}}),
            None => json!({"terminated": {"exitCode": 1, "reason": "Error"}}),
        };
        let status = json!({
            "phase": if address.is_some() { "Running" } else { "Failed" },
            "podIP": address,
            "podIPs": address.map(|ip| json!([{"ip": ip}])),
            "hostIP": GATEWAY,
            "conditions": [
                condition("Initialized", &true), condition("PodScheduled", &true),
                condition("ContainersReady", ready), condition("Ready", ready),
            ],
            "containerStatuses": [{
                "name": "syncer", "ready": ready, "started": runs, "restartCount": restarts,
                "image": "syncer", "imageID": "", "state": state,
            }],
        });
        let path = format!("{}/status", self.pod_path(ordinal));
        self.merge(&path, &json!({"metadata": {"uid": uid}, "status": status})).map(|_| ())
    }
}

/// What the 0.19 k8s chart makes, as far as it concerns syncer, each with the path to post it to.
fn objects(config: &Config) -> Vec<(String, Value)> {
    let Config { name, namespace, .. } = config;
    let core = format!("/api/v1/namespaces/{namespace}");
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}");
    let labels = json!({"app": "vcluster", "release": name});
    let policy = match config.policy {
        Policy::OrderedReady => "OrderedReady",
        Policy::Parallel => "Parallel",
    };
    let port = |name: &str, port: u16, target: u16| json!({"name": name, "port": port, "targetPort": target});
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let all = ["create", "delete", "patch", "update", "get", "list", "watch"];
    vec![
        ("/api/v1/namespaces".to_owned(), json!({"metadata": {"name": namespace}})),
        ("/api/v1/nodes".to_owned(), json!({"metadata": {"name": NODE}})),
        (format!("{core}/serviceaccounts"), json!({"metadata": {"name": format!("vc-{name}")}})),
        (
            format!("{rbac}/roles"),
            json!({"metadata": {"name": name}, "rules": [
                rule(&[""], &["configmaps", "secrets", "services", "pods", "persistentvolumeclaims"], &all),
                rule(&["apps"], &["statefulsets", "replicasets", "deployments"], &["get", "list", "watch"]),
                rule(&[""], &["endpoints", "events", "pods/log"], &["get", "list", "watch"]),
            ]}),
        ),
        (
            format!("{rbac}/rolebindings"),
            json!({
                "metadata": {"name": name},
                "subjects": [{"kind": "ServiceAccount", "name": format!("vc-{name}"), "namespace": namespace}],
                "roleRef": {"kind": "Role", "name": name, "apiGroup": "rbac.authorization.k8s.io"},
            }),
        ),
        (
            format!("{core}/services"),
            json!({"metadata": {"name": format!("{name}-headless")}, "spec": {
                "clusterIP": "None", "publishNotReadyAddresses": true, "selector": labels,
                "ports": [port("https", 443, 8443), port("etcd", 2379, 2379), port("peer", 2380, 2380)],
            }}),
        ),
        (
            format!("/apis/apps/v1/namespaces/{namespace}/statefulsets"),
            json!({"metadata": {"name": name, "labels": labels}, "spec": {
                "replicas": config.replicas, "ordinals": {"start": config.first}, "serviceName": format!("{name}-headless"), "podManagementPolicy": policy,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "nodeName": NODE, "serviceAccountName": format!("vc-{name}"),
                    "terminationGracePeriodSeconds": config.grace_ms.div_ceil(1000),
                    "containers": [{
                        "name": "syncer", "image": "syncer",
                        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8443, "scheme": "HTTPS"}},
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }],
                }},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}},
                }}],
            }}),
        ),
    ]
}
