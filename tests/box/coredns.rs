//! CoreDNS as a cluster runs it: its configuration and its zone, as text.
//!
//! Records are those of Kubernetes' DNS specification for one headless service with `publishNotReadyAddresses: true`:
//! each pod that runs has an address record and an SRV record, ready or not.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The records of one headless service.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The cluster's domain, without a final dot.
    pub domain: String,
    /// The StatefulSet's name; the service is `<set>-headless`.
    pub set: String,
    /// Its namespace.
    pub namespace: String,
    /// Seconds that a record holds; CoreDNS' `kubernetes` plugin says 5.
    pub ttl: u32,
    /// Seconds that an absence holds; CoreDNS' `kubernetes` plugin says 5.
    pub negative_ttl: u32,
    /// Addresses by pod.
    pub pods: BTreeMap<String, IpAddr>,
}

impl Zone {
    /// An empty service of `set`.
    pub fn new(set: &str, namespace: &str) -> Zone {
        Zone {
            domain: "cluster.local".to_owned(),
            set: set.to_owned(),
            namespace: namespace.to_owned(),
            ttl: 5,
            negative_ttl: 5,
            pods: BTreeMap::new(),
        }
    }

    /// The full name of the service.
    pub fn service(&self) -> String {
        format!("{}-headless.{}.svc.{}", self.set, self.namespace, self.domain)
    }

    /// As a zone file. CoreDNS takes a changed file only if its serial has grown.
    pub fn file(&self, serial: u32) -> String {
        let Zone { domain, ttl, negative_ttl, pods, .. } = self;
        let service = self.service();
        let mut text = format!(
            "{domain}. {negative_ttl} IN SOA ns.dns.{domain}. hostmaster.{domain}. {serial} 7200 1800 86400 {negative_ttl}\n\
             {domain}. {ttl} IN NS ns.dns.{domain}.\n"
        );
        for (pod, ip) in pods {
            let kind = if ip.is_ipv4() { "A" } else { "AAAA" };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{pod}.{service}. {ttl} IN {kind} {ip}\n{service}. {ttl} IN {kind} {ip}");
            for (port, number) in [("etcd", 2379), ("peer", 2380)] {
                let _ = writeln!(text, "_{port}._tcp.{service}. {ttl} IN SRV 0 100 {number} {pod}.{service}.");
            }
        }
        text
    }

    /// What the kubelet writes into the pods' `resolv.conf`.
    pub fn resolv_conf(&self, server: IpAddr) -> String {
        let Zone { namespace, domain, .. } = self;
        format!("search {namespace}.svc.{domain} svc.{domain} {domain}\nnameserver {server}\noptions ndots:5\n")
    }
}

/// What the server does with questions for the cluster's domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It answers them.
    Well,
    /// It answers SERVFAIL, as it does while it has lost the API server.
    ServFail,
    /// It does not serve the zone: REFUSED.
    Refuses,
    /// It takes them and says nothing.
    Silent,
}

/// A Corefile. `zone` is the zone's file.
pub fn corefile(listen: SocketAddr, domain: &str, zone: &Path, mood: Mood) -> String {
    let (ip, port, zone) = (listen.ip(), listen.port(), zone.display());
    let served = match mood {
        Mood::Well => format!("file {zone} {domain} {{\n    reload 100ms\n  }}"),
        Mood::ServFail => format!("template ANY ANY {domain} {{\n    rcode SERVFAIL\n  }}"),
        Mood::Silent => "erratic {\n    drop 1\n  }".to_owned(),
        Mood::Refuses => String::new(),
    };
    // Everything else does not exist, as the root's servers would say.
    let root = ". 86400 IN SOA a.root-servers.net. nstld.verisign-grs.com. 1 1800 900 604800 86400";
    let cluster = match mood {
        Mood::Refuses => String::new(),
        _ => format!("{domain}:{port} {{\n  bind {ip}\n  log\n  errors\n  {served}\n}}\n"),
    };
    let rest = match mood {
        Mood::Refuses => {
            format!("refused.example:{port} {{\n  bind {ip}\n  log\n  whoami\n}}\n").replace("whoami", "erratic")
        }
        _ => format!(
            ".:{port} {{\n  bind {ip}\n  log\n  template ANY ANY . {{\n    rcode NXDOMAIN\n    authority \"{root}\"\n  }}\n}}\n"
        ),
    };
    cluster + &rest
}
