//! Which files a virtual cluster needs, and what must be in them. Pure.
//!
//! Subjects and usages are kubeadm's (`cmd/kubeadm/app/phases/certs/certlist.go`), as vCluster makes them. One
//! difference: the administrator is in `system:masters`, which needs no role binding; newer kubeadm uses
//! `kubeadm:cluster-admins`, and makes the binding itself.

use std::net::IpAddr;
use std::path::PathBuf;

use super::layout::{self, Pair, RelPath};
use super::sans;
use crate::settings::{Distro, Settings};

/// What the plan depends on, taken from [`Settings`] or from the flags of `syncer certs`.
#[derive(Clone, Debug)]
pub struct Input {
    /// Where the children read their files.
    pub pki_dir: PathBuf,
    /// Where files that we issue are kept if `pki_dir` may be lost at a restart; `None` if it is not.
    pub lasting_dir: Option<PathBuf>,
    /// Which API server runs here.
    pub distro: Distro,
    /// Whether etcd runs here.
    pub etcd: bool,
    /// Name of the virtual cluster.
    pub name: String,
    /// Its namespace in the host cluster.
    pub namespace: String,
    /// Its DNS domain.
    pub cluster_domain: String,
    /// This pod, which is also its etcd member's name.
    pub pod: String,
    /// This pod's address, if known.
    pub pod_ip: Option<IpAddr>,
    /// Whether it runs in a pod; elsewhere peers are at `localhost`.
    pub in_pod: bool,
    /// Desired replicas.
    pub desired: u32,
    /// Additional names and addresses.
    pub tls_sans: Vec<String>,
    /// Range of Service addresses, or two of them separated by a comma.
    pub service_cidr: String,
    /// The API server's own port on loopback.
    pub apiserver_port: u16,
}

impl Input {
    /// What the settings say. The charts of k8s and eks 0.19 mount an `emptyDir` at `/pki`: a PKI directory outside
    /// the volume gets a lasting copy in the volume, or else the service account key would change at each restart and
    /// every token in the cluster would become invalid.
    pub fn of(settings: &Settings) -> Input {
        let on_volume = settings.pki_dir.starts_with(&settings.data_dir);
        Input {
            pki_dir: settings.pki_dir.clone(),
            lasting_dir: (!on_volume).then(|| settings.data_dir.join("pki")),
            distro: settings.distro,
            etcd: settings.etcd.enabled,
            name: settings.name.clone(),
            namespace: settings.namespace.clone(),
            cluster_domain: settings.cluster_domain.clone(),
            pod: settings.pod.name.clone(),
            pod_ip: settings.pod.ip,
            in_pod: settings.pod.in_pod,
            desired: settings.etcd.replicas,
            tls_sans: settings.tls_sans.clone(),
            service_cidr: settings.service_cidr.clone(),
            apiserver_port: settings.listen.apiserver_port,
        }
    }
}

/// One of the three CAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CaName {
    /// etcd's.
    Etcd,
    /// The virtual cluster's.
    Kubernetes,
    /// The front proxy's.
    FrontProxy,
}

impl CaName {
    /// Its files.
    pub const fn pair(self) -> Pair {
        match self {
            CaName::Etcd => layout::ETCD_CA,
            CaName::Kubernetes => layout::CA,
            CaName::FrontProxy => layout::FRONT_PROXY_CA,
        }
    }

    /// Its common name.
    pub const fn common_name(self) -> &'static str {
        match self {
            CaName::Etcd => "etcd-ca",
            CaName::Kubernetes => "kubernetes",
            CaName::FrontProxy => "front-proxy-ca",
        }
    }
}

/// A certificate's subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Common name: the user's name where the certificate is a client's.
    pub common_name: String,
    /// Organization: the user's group.
    pub organization: Option<&'static str>,
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// TLS server.
    pub server: bool,
    /// TLS client.
    pub client: bool,
}

impl Usage {
    const SERVER: Usage = Usage { server: true, client: false };
    const CLIENT: Usage = Usage { server: false, client: true };
    const BOTH: Usage = Usage { server: true, client: true };

    /// Whether everything in `needed` is in this usage.
    pub fn covers(self, needed: Usage) -> bool {
        (self.server || !needed.server) && (self.client || !needed.client)
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match (self.server, self.client) {
            (true, true) => "server and client authentication",
            (true, false) => "server authentication",
            (false, true) => "client authentication",
            (false, false) => "nothing",
        })
    }
}

/// A name or an address in a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum San {
    /// A DNS name, or a wildcard of one.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl std::fmt::Display for San {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            San::Dns(name) => f.write_str(name),
            San::Ip(ip) => ip.fmt(f),
        }
    }
}

/// A certificate that a CA signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafPlan {
    /// Who signs it.
    pub issuer: CaName,
    /// Whom it names.
    pub subject: Subject,
    /// What for.
    pub usage: Usage,
    /// Names and addresses that it must hold, in this order when we issue it.
    pub sans: Vec<San>,
}

/// One thing that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A CA.
    Ca(CaName),
    /// A certificate and its key.
    Leaf(Pair, LeafPlan),
    /// A kubeconfig that embeds its certificate and key.
    Kubeconfig {
        /// Its file.
        file: RelPath,
        /// The API server's URL.
        server: String,
        /// Its client certificate.
        leaf: LeafPlan,
    },
    /// The key pair of service account tokens.
    ServiceAccount,
}

/// Why there can be no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A name that cannot stand in a certificate.
    #[error("'{0}' is neither an address nor a DNS name, so it cannot stand in a certificate")]
    BadName(String),
    /// A Service range that is none.
    #[error("'{0}' is not a range of Service addresses such as 10.96.0.0/12")]
    BadServiceCidr(String),
}

/// Everything that must be in the PKI directory, each CA before what it signs.
///
/// k3s and k0s make their own Kubernetes PKI, so only etcd's files and the client certificate towards it are needed;
/// without an API server (`distro: none`) only etcd's; with etcd off nothing of etcd's.
pub fn plan(input: &Input) -> Result<Vec<Item>, PlanError> {
    let mut items = Vec::new();
    if input.etcd {
        etcd_items(input, &mut items)?;
        if input.distro != Distro::None {
            let subject = user("kube-apiserver-etcd-client");
            items.push(client(layout::APISERVER_ETCD_CLIENT, CaName::Etcd, subject));
        }
    }
    if matches!(input.distro, Distro::K8s | Distro::Eks) {
        kubernetes_items(input, &mut items)?;
    }
    Ok(items)
}

fn etcd_items(input: &Input, items: &mut Vec<Item>) -> Result<(), PlanError> {
    let sans = sans::etcd(input)?;
    items.push(Item::Ca(CaName::Etcd));
    // One certificate each for all members, as vCluster has it, with both usages: etcd's gRPC gateway dials its own
    // client port with the server certificate, and peers dial with the peer certificate.
    for pair in [layout::ETCD_SERVER, layout::ETCD_PEER] {
        items.push(Item::Leaf(
            pair,
            LeafPlan { issuer: CaName::Etcd, subject: user(&input.name), usage: Usage::BOTH, sans: sans.clone() },
        ));
    }
    let subject = user("kube-etcd-healthcheck-client");
    items.push(client(layout::ETCD_HEALTHCHECK_CLIENT, CaName::Etcd, subject));
    Ok(())
}

fn kubernetes_items(input: &Input, items: &mut Vec<Item>) -> Result<(), PlanError> {
    items.push(Item::Ca(CaName::Kubernetes));
    items.push(Item::Leaf(
        layout::APISERVER,
        LeafPlan {
            issuer: CaName::Kubernetes,
            subject: user("kube-apiserver"),
            usage: Usage::SERVER,
            sans: sans::apiserver(input)?,
        },
    ));
    items.push(client(layout::APISERVER_KUBELET_CLIENT, CaName::Kubernetes, master("kube-apiserver-kubelet-client")));
    items.push(Item::Ca(CaName::FrontProxy));
    items.push(client(layout::FRONT_PROXY_CLIENT, CaName::FrontProxy, user("front-proxy-client")));
    items.push(Item::ServiceAccount);
    for (file, subject) in [
        (layout::ADMIN_CONF, master("kubernetes-admin")),
        (layout::CONTROLLER_MANAGER_CONF, user("system:kube-controller-manager")),
        (layout::SCHEDULER_CONF, user("system:kube-scheduler")),
    ] {
        items.push(Item::Kubeconfig {
            file,
            server: format!("https://127.0.0.1:{}", input.apiserver_port),
            leaf: client_leaf(CaName::Kubernetes, subject),
        });
    }
    Ok(())
}

fn user(name: &str) -> Subject {
    Subject { common_name: name.to_owned(), organization: None }
}

fn master(name: &str) -> Subject {
    Subject { common_name: name.to_owned(), organization: Some("system:masters") }
}

fn client(pair: Pair, issuer: CaName, subject: Subject) -> Item {
    Item::Leaf(pair, client_leaf(issuer, subject))
}

fn client_leaf(issuer: CaName, subject: Subject) -> LeafPlan {
    LeafPlan { issuer, subject, usage: Usage::CLIENT, sans: Vec::new() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn input(distro: Distro) -> Input {
        Input {
            pki_dir: PathBuf::from("/data/pki"),
            lasting_dir: None,
            distro,
            etcd: true,
            name: "my".to_owned(),
            namespace: "team".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            pod: "my-0".to_owned(),
            pod_ip: Some("10.1.2.3".parse().unwrap()),
            in_pod: true,
            desired: 3,
            tls_sans: vec!["my.example.org".to_owned(), "192.0.2.7".to_owned()],
            service_cidr: "10.96.0.0/12".to_owned(),
            apiserver_port: 6443,
        }
    }

    pub(crate) fn files(items: &[Item]) -> Vec<RelPath> {
        items
            .iter()
            .flat_map(|item| match item {
                Item::Ca(ca) => vec![ca.pair().cert, ca.pair().key],
                Item::Leaf(pair, _) => vec![pair.cert, pair.key],
                Item::Kubeconfig { file, .. } => vec![*file],
                Item::ServiceAccount => vec![layout::SA_KEY, layout::SA_PUB],
            })
            .collect()
    }

    #[test]
    fn each_distro_gets_what_it_reads_and_no_more() {
        let none = files(&plan(&input(Distro::None)).unwrap());
        assert_eq!(none.len(), 8, "{none:?}");
        assert!(none.iter().all(|f| f.starts_with("etcd/")), "{none:?}");

        for distro in [Distro::K3s, Distro::K0s] {
            let files = files(&plan(&input(distro)).unwrap());
            assert_eq!(files.len(), 10, "{files:?}");
            assert!(files.contains(&"apiserver-etcd-client.crt"));
        }
        for distro in [Distro::K8s, Distro::Eks] {
            assert_eq!(files(&plan(&input(distro)).unwrap()).len(), 25);
        }
    }

    #[test]
    fn without_etcd_nothing_of_etcds_is_needed() {
        let off = |distro| Input { etcd: false, ..input(distro) };
        assert!(plan(&off(Distro::K3s)).unwrap().is_empty());
        assert!(files(&plan(&off(Distro::K8s)).unwrap()).iter().all(|f| !f.contains("etcd")));
    }

    #[test]
    fn a_ca_comes_before_what_it_signs() {
        let mut seen = Vec::new();
        for item in plan(&input(Distro::K8s)).unwrap() {
            match item {
                Item::Ca(ca) => seen.push(ca),
                Item::Leaf(pair, leaf) => assert!(seen.contains(&leaf.issuer), "{pair:?}"),
                Item::Kubeconfig { file, leaf, .. } => assert!(seen.contains(&leaf.issuer), "{file}"),
                Item::ServiceAccount => {}
            }
        }
    }

    #[test]
    fn usage_covers() {
        assert!(Usage::BOTH.covers(Usage::SERVER) && Usage::BOTH.covers(Usage::BOTH));
        assert!(!Usage::SERVER.covers(Usage::BOTH) && !Usage::CLIENT.covers(Usage::SERVER));
    }
}
