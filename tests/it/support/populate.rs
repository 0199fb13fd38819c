//! Fills a cluster through its real API: many objects of many kinds, some updated, some deleted, the same every time
//! for the same seed. Works against any API server that a kubeconfig leads to, with or without controllers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::kube::{Kube, is_connection_error, status_of};

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Objects to create, beyond the namespaces and CRDs that hold them.
    pub objects: usize,
    /// Decides every name and value.
    pub seed: u64,
    /// Clients at once.
    pub clients: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { objects: 23_000, seed: 1, clients: 16 }
    }
}

impl Plan {
    /// How many objects of a kind the plan deletes again.
    pub fn deleted_of(&self, kind: &str) -> u64 {
        (0..self.objects).map(|i| Object::of(self.seed, i)).filter(|o| o.kind.name == kind && o.deletes()).count()
            as u64
    }
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Populated {
    pub created: u64,
    pub updates: u64,
    pub deleted: u64,
    /// Kind to the number created.
    pub kinds: BTreeMap<&'static str, u64>,
}

/// A kind: where its collection is (`{ns}` is replaced), whether a deletion ends by itself without controllers, and its
/// share of the objects.
struct Kind {
    name: &'static str,
    collection: &'static str,
    deletable: bool,
    share: u32,
}

const fn kind(name: &'static str, collection: &'static str, deletable: bool, share: u32) -> Kind {
    Kind { name, collection, deletable, share }
}

const KINDS: &[Kind] = &[
    kind("ConfigMap", "/api/v1/namespaces/{ns}/configmaps", true, 14),
    kind("Secret", "/api/v1/namespaces/{ns}/secrets", true, 12),
    kind("Pod", "/api/v1/namespaces/{ns}/pods", true, 12),
    kind("Event", "/api/v1/namespaces/{ns}/events", true, 12),
    kind("Service", "/api/v1/namespaces/{ns}/services", true, 4),
    kind("ServiceAccount", "/api/v1/namespaces/{ns}/serviceaccounts", true, 5),
    // Its deletion waits for a controller that takes a finalizer off.
    kind("PersistentVolumeClaim", "/api/v1/namespaces/{ns}/persistentvolumeclaims", false, 2),
    kind("LimitRange", "/api/v1/namespaces/{ns}/limitranges", true, 1),
    kind("Deployment", "/apis/apps/v1/namespaces/{ns}/deployments", true, 5),
    kind("ReplicaSet", "/apis/apps/v1/namespaces/{ns}/replicasets", true, 5),
    kind("StatefulSet", "/apis/apps/v1/namespaces/{ns}/statefulsets", true, 3),
    kind("DaemonSet", "/apis/apps/v1/namespaces/{ns}/daemonsets", true, 3),
    kind("ControllerRevision", "/apis/apps/v1/namespaces/{ns}/controllerrevisions", true, 1),
    kind("Job", "/apis/batch/v1/namespaces/{ns}/jobs", true, 4),
    kind("CronJob", "/apis/batch/v1/namespaces/{ns}/cronjobs", true, 3),
    kind("Ingress", "/apis/networking.k8s.io/v1/namespaces/{ns}/ingresses", true, 3),
    kind("NetworkPolicy", "/apis/networking.k8s.io/v1/namespaces/{ns}/networkpolicies", true, 3),
    kind("Role", "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/roles", true, 4),
    kind("RoleBinding", "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings", true, 4),
    kind("ClusterRole", "/apis/rbac.authorization.k8s.io/v1/clusterroles", true, 2),
    kind("ClusterRoleBinding", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", true, 2),
    kind("PodDisruptionBudget", "/apis/policy/v1/namespaces/{ns}/poddisruptionbudgets", true, 2),
    kind("Lease", "/apis/coordination.k8s.io/v1/namespaces/{ns}/leases", true, 4),
    kind("EndpointSlice", "/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices", true, 3),
    kind("HorizontalPodAutoscaler", "/apis/autoscaling/v2/namespaces/{ns}/horizontalpodautoscalers", true, 1),
    kind("PriorityClass", "/apis/scheduling.k8s.io/v1/priorityclasses", true, 1),
    kind("StorageClass", "/apis/storage.k8s.io/v1/storageclasses", true, 1),
    kind("Widget", "/apis/shop.example.com/v1/namespaces/{ns}/widgets", true, 8),
    kind("Gadget", "/apis/shop.example.com/v1/gadgets", true, 2),
];

const NAMESPACES: usize = 20;

/// Tries of one request before the run fails.
const TRIES: u32 = 12;

/// Writes the plan's objects. Objects that are there already (from an interrupted run) are left as they are.
pub async fn populate(kube: Arc<Kube>, plan: Plan) -> Result<Populated> {
    for crd in [definition("widgets", "Widget", "Namespaced"), definition("gadgets", "Gadget", "Cluster")] {
        create(&kube, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd).await?;
    }
    for n in 0..NAMESPACES {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace_name(n)}});
        create(&kube, "/api/v1/namespaces", &namespace).await?;
        // Without controllers nobody makes it, and pods need it.
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        create(&kube, &format!("/api/v1/namespaces/{}/serviceaccounts", namespace_name(n)), &account).await?;
    }
    established(&kube).await?;

    let next = Arc::new(AtomicUsize::new(0));
    let (updates, deleted) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..plan.clients.max(1) {
        let (kube, next) = (Arc::clone(&kube), Arc::clone(&next));
        let (updates, deleted) = (Arc::clone(&updates), Arc::clone(&deleted));
        clients.spawn(async move {
            let mut kinds = BTreeMap::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= plan.objects {
                    return Ok::<_, anyhow::Error>(kinds);
                }
                let object = Object::of(plan.seed, index);
                let (updated, gone) =
                    object.write(&kube).await.with_context(|| format!("object {index}, {}", object.path()))?;
                *kinds.entry(object.kind.name).or_insert(0u64) += 1;
                updates.fetch_add(updated, Ordering::Relaxed);
                deleted.fetch_add(u64::from(gone), Ordering::Relaxed);
            }
        });
    }
    let mut result = Populated::default();
    while let Some(kinds) = clients.join_next().await {
        for (kind, count) in kinds?? {
            *result.kinds.entry(kind).or_insert(0) += count;
            result.created += count;
        }
    }
    result.updates = updates.load(Ordering::Relaxed);
    result.deleted = deleted.load(Ordering::Relaxed);
    Ok(result)
}

/// One object of the plan.
struct Object {
    kind: &'static Kind,
    index: usize,
    random: Random,
}

impl Object {
    fn of(seed: u64, index: usize) -> Object {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index as u64));
        // The first ones are one of each kind, so that a small plan has them all.
        let kind = KINDS.get(index).unwrap_or_else(|| {
            let total: u32 = KINDS.iter().map(|k| k.share).sum();
            let mut point = u32::try_from(random.below(u64::from(total))).unwrap();
            KINDS
                .iter()
                .find(|k| {
                    point < k.share || {
                        point -= k.share;
                        false
                    }
                })
                .unwrap()
        });
        Object { kind, index, random }
    }

    fn namespace(&self) -> String {
        namespace_name(self.index % NAMESPACES)
    }

    fn collection(&self) -> String {
        self.kind.collection.replace("{ns}", &self.namespace())
    }

    fn name(&self) -> String {
        format!("{}-{:05}", self.kind.name.to_lowercase(), self.index)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name())
    }

    fn deletes(&self) -> bool {
        self.index % 10 == 7 && self.kind.deletable
    }

    /// Creates it, updates every fifth three times, deletes every tenth; the number of updates, and whether it is gone.
    async fn write(&self, kube: &Kube) -> Result<(u64, bool)> {
        let path = self.path();
        let mut updates = 0;
        if self.index % 5 != 2 {
            put_in(kube, &self.collection(), &self.content()).await?;
        } else {
            let mut now = create(kube, &self.collection(), &self.content()).await?;
            for round in 1..=3 {
                now["metadata"]["annotations"]["round"] = json!(round.to_string());
                now = match retry(|| kube.update(&path, &now)).await {
                    // A controller was faster, or it was there before: the rest of it does not matter to us.
                    Err(error) if matches!(status_of(&error), Some(409 | 422)) => {
                        let patch = json!({"metadata": {"annotations": {"round": round.to_string()}}});
                        retry(|| kube.merge(&path, &patch)).await?
                    }
                    other => other?,
                };
                updates += 1;
            }
        }
        let gone = self.deletes();
        if gone {
            match retry(|| kube.delete(&path)).await {
                Err(error) if status_of(&error) != Some(404) => return Err(error),
                _ => {}
            }
        }
        Ok((updates, gone))
    }

    fn content(&self) -> Value {
        let mut random = self.random;
        let mut object = body(self.kind.name, self.index, &mut random);
        let (group, version) = api_version(self.kind.collection);
        object["apiVersion"] = json!(if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") });
        object["kind"] = json!(self.kind.name);
        object["metadata"] = json!({
            "name": self.name(),
            "labels": {"app": format!("app-{}", self.index % 97), "tier": random.word(6)},
            "annotations": {"note": random.text(40)},
        });
        if self.kind.collection.contains("{ns}") {
            object["metadata"]["namespace"] = json!(self.namespace());
        }
        if self.kind.name == "Event" {
            object["involvedObject"]["namespace"] = json!(self.namespace());
        }
        object
    }
}

fn api_version(collection: &str) -> (&str, &str) {
    let mut parts = collection.split('/').skip(1);
    match parts.next() {
        Some("apis") => (parts.next().unwrap_or_default(), parts.next().unwrap_or_default()),
        _ => ("", parts.next().unwrap_or_default()),
    }
}

fn namespace_name(n: usize) -> String {
    format!("team-{n:02}")
}

fn template(random: &mut Random, restart: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "x"}},
        "spec": {
            "restartPolicy": restart,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "main",
                "image": format!("registry.example.com/{}:{}", random.word(8), random.below(100)),
                "args": ["--mode", random.word(5)],
                "env": [{"name": "TOKEN", "value": random.text(30)}],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            }],
        },
    })
}

/// A kind's fields beside `metadata`. Nothing in it makes a controller create more objects: no replicas, suspended.
fn body(kind: &str, index: usize, random: &mut Random) -> Value {
    let selector = json!({"matchLabels": {"app": "x"}});
    match kind {
        "ConfigMap" => {
            let length = if index.is_multiple_of(1000) { 200_000 } else { 100 + random.below(1500) as usize };
            json!({"data": {"settings": random.text(length), "umlaut": "\u{e4}\u{f6}\u{fc} \u{2713} \u{1f980}"}})
        }
        "Secret" => {
            let secret = random.text(100 + (index % 7) * 200);
            json!({"type": "Opaque", "stringData": {"password": secret, "empty": ""}})
        }
        "Pod" => json!({"spec": template(random, "Always")["spec"]}),
        "Event" => json!({
            "type": "Normal",
            "reason": random.word(10),
            "message": random.text(120),
            "firstTimestamp": "2024-05-01T10:00:00Z",
            "lastTimestamp": "2024-05-01T10:00:00Z",
            "count": 1 + random.below(50),
            "source": {"component": "populate"},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": format!("pod-{index:05}")},
        }),
        "Service" => {
            let mut spec = json!({
                "selector": {"app": format!("app-{}", index % 97)},
                "ports": [{"name": "http", "port": 80 + random.below(9000), "protocol": "TCP"}],
            });
            if index.is_multiple_of(2) {
                spec["clusterIP"] = json!("None");
            }
            json!({"spec": spec})
        }
        "ServiceAccount" => json!({"automountServiceAccountToken": index.is_multiple_of(2)}),
        "PersistentVolumeClaim" => json!({"spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "resources": {"requests": {"storage": format!("{}Mi", 1 + random.below(500))}},
        }}),
        "LimitRange" => json!({"spec": {"limits": [{"type": "PersistentVolumeClaim", "max": {"storage": "1Ti"}}]}}),
        "Deployment" => json!({"spec": {"replicas": 0, "selector": selector, "template": template(random, "Always")}}),
        "ReplicaSet" => json!({"spec": {"replicas": 0, "selector": selector, "template": template(random, "Always")}}),
        "StatefulSet" => json!({"spec": {
            "replicas": 0, "serviceName": "x", "selector": selector, "template": template(random, "Always"),
        }}),
        "DaemonSet" => {
            let mut template = template(random, "Always");
            template["spec"]["nodeSelector"] = json!({"no": "node"});
            json!({"spec": {"selector": selector, "template": template}})
        }
        "ControllerRevision" => json!({"revision": 1 + random.below(9), "data": {"spec": {"text": random.text(300)}}}),
        "Job" => json!({"spec": {"suspend": true, "template": template(random, "Never")}}),
        "CronJob" => json!({"spec": {
            "suspend": true,
            "schedule": format!("{} * * * *", random.below(60)),
            "jobTemplate": {"spec": {"template": template(random, "Never")}},
        }}),
        "Ingress" => json!({"spec": {"rules": [{
            "host": format!("{}.example.com", random.word(12)),
            "http": {"paths": [{
                "path": "/", "pathType": "Prefix", "backend": {"service": {"name": "x", "port": {"number": 80}}},
            }]},
        }]}}),
        "NetworkPolicy" => json!({"spec": {
            "podSelector": selector, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80 + random.below(999)}]}],
        }}),
        "Role" | "ClusterRole" => json!({"rules": [
            {"apiGroups": [""], "resources": ["pods", random.word(7)], "verbs": ["get", "list"]},
        ]}),
        "RoleBinding" | "ClusterRoleBinding" => json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "name": random.word(9), "namespace": "team-00"}],
        }),
        "PodDisruptionBudget" => json!({"spec": {"minAvailable": 1, "selector": selector}}),
        "Lease" => json!({"spec": {"holderIdentity": random.word(12), "leaseDurationSeconds": 15}}),
        "EndpointSlice" => json!({
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            "endpoints": [{"addresses": [format!("10.1.{}.{}", random.below(255), 1 + random.below(253))]}],
        }),
        "HorizontalPodAutoscaler" => json!({"spec": {
            "minReplicas": 1,
            "maxReplicas": 2 + random.below(8),
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "absent"},
        }}),
        "PriorityClass" => json!({"value": random.below(100_000), "description": random.text(30)}),
        "StorageClass" => json!({"provisioner": "example.com/none", "parameters": {"kind": random.word(5)}}),
        "Widget" | "Gadget" => json!({"spec": {
            "size": random.below(1000),
            "ratio": 0.25,
            "words": (0..6).map(|_| random.word(9)).collect::<Vec<_>>(),
            "nested": {"text": random.text(200), "flag": index.is_multiple_of(2)},
        }}),
        other => panic!("no content for {other}"),
    }
}

fn definition(plural: &str, kind: &str, scope: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.shop.example.com")},
        "spec": {
            "group": "shop.example.com",
            "scope": scope,
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
                }},
            }],
        },
    })
}

/// Waits until the API server serves the custom resources.
async fn established(kube: &Kube) -> Result<()> {
    for _ in 0..600 {
        let mut served = true;
        for collection in ["/apis/shop.example.com/v1/widgets", "/apis/shop.example.com/v1/gadgets"] {
            served &= kube.get(&format!("{collection}?limit=1")).await.is_ok();
        }
        if served {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the custom resources are not served after a minute")
}

/// Creates it without a look at the answer.
async fn put_in(kube: &Kube, collection: &str, object: &Value) -> Result<()> {
    match retry(|| kube.create_unread(collection, object)).await {
        Err(error) if status_of(&error) != Some(409) => {
            Err(error.context(format!("create {} in {collection}", object["metadata"]["name"])))
        }
        _ => Ok(()),
    }
}

/// The object as created, or as asked for if it is there already.
async fn create(kube: &Kube, collection: &str, object: &Value) -> Result<Value> {
    match retry(|| kube.create(collection, object)).await {
        Err(error) if status_of(&error) == Some(409) => Ok(object.clone()),
        Err(error) => Err(error.context(format!("create {} in {collection}", object["metadata"]["name"]))),
        created => created,
    }
}

/// Tries again what the server could not take just now, with growing pauses.
async fn retry<F, R, T>(mut request: F) -> Result<T>
where
    F: FnMut() -> R,
    R: Future<Output = Result<T>>,
{
    let mut pause = Duration::from_millis(50);
    for _ in 1..TRIES {
        match request().await {
            Err(error) if is_connection_error(&error) || matches!(status_of(&error), Some(429 | 500..=599)) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            other => return other,
        }
    }
    request().await
}

/// splitmix64.
#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn word(&mut self, length: usize) -> String {
        self.text(length).replace(' ', "x")
    }

    /// Lower-case words of eight letters.
    fn text(&mut self, length: usize) -> String {
        let mut bytes = Vec::with_capacity(length + 9);
        while bytes.len() < length {
            bytes.extend(self.next().to_le_bytes().map(|b| b'a' + b % 26));
            bytes.push(b' ');
        }
        bytes.truncate(length);
        String::from_utf8(bytes).expect("letters and spaces").trim_end().to_owned()
    }
}
