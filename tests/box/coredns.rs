//! CoreDNS as a cluster runs it: its configuration and its zone, as text.
//!
//! Records are those of Kubernetes' DNS specification for one headless service with `publishNotReadyAddresses: true`:
//! each pod that runs has an address record and an SRV record, ready or not.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

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

    /// The reverse zone of the network that begins with these octets, as a zone file: each pod's address leads to its
    /// name.
    pub fn reverse_file(&self, first: [u8; 2], serial: u32) -> String {
        let (zone, Zone { domain, ttl, negative_ttl, .. }) = (reverse_name(first), self);
        let mut text = format!(
            "{zone}. {negative_ttl} IN SOA ns.dns.{domain}. hostmaster.{domain}. {serial} 7200 1800 86400 {negative_ttl}\n\
             {zone}. {ttl} IN NS ns.dns.{domain}.\n"
        );
        for (pod, ip) in &self.pods {
            if let IpAddr::V4(ip) = ip {
                let [_, _, high, low] = ip.octets();
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{low}.{high}.{zone}. {ttl} IN PTR {pod}.{}.", self.service());
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

/// The name of the reverse zone of the network that begins with these octets.
pub fn reverse_name([a, b]: [u8; 2]) -> String {
    format!("{b}.{a}.in-addr.arpa")
}

/// What the server does with questions for the cluster's domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
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

/// Where records come from.
#[derive(Clone, Copy, Debug)]
pub enum Records<'a> {
    /// From zone files.
    Files(&'a [(String, &'a Path)]),
    /// From a cluster's API, as a cluster's DNS has them: the zones, a kubeconfig, and seconds that records hold.
    Kubernetes(&'a [String], &'a Path, u32),
}

/// A Corefile.
pub fn corefile(listen: SocketAddr, records: Records<'_>, mood: Mood) -> String {
    let (ip, port) = (listen.ip(), listen.port());
    let block = |zone: &str, plugins: &str| format!("{zone}:{port} {{\n  bind {ip}\n  log\n  errors\n{plugins}}}\n");
    let served: Vec<(&String, String)> = match records {
        Records::Files(zones) => {
            let file = |file: &Path, zone| format!("  file {} {zone} {{\n    reload 100ms\n  }}\n", file.display());
            zones.iter().map(|(zone, path)| (zone, file(path, zone))).collect()
        }
        Records::Kubernetes(zones, kubeconfig, ttl) => {
            let (all, kubeconfig) = (zones.join(" "), kubeconfig.display());
            let plugin = format!("  kubernetes {all} {{\n    kubeconfig {kubeconfig}\n    ttl {ttl}\n  }}\n");
            zones.iter().map(|zone| (zone, plugin.clone())).collect()
        }
    };
    let mut text = String::new();
    for (zone, plugin) in served {
        text += &match mood {
            Mood::Well => block(zone, &plugin),
            Mood::ServFail => block(zone, &format!("  template ANY ANY {zone} {{\n    rcode SERVFAIL\n  }}\n")),
            Mood::Silent => block(zone, "  erratic {\n    drop 1\n  }\n"),
            Mood::Refuses => String::new(),
        };
    }
    text + &match mood {
        // Something must be served, or there is no server.
        Mood::Refuses => block("refused.example", "  erratic\n"),
        // Everything else does not exist, as the root's servers would say.
        _ => {
            let root = ". 86400 IN SOA a.root-servers.net. nstld.verisign-grs.com. 1 1800 900 604800 86400";
            block(".", &format!("  template ANY ANY . {{\n    rcode NXDOMAIN\n    authority \"{root}\"\n  }}\n"))
        }
    }
}

/// What CoreDNS prints when it is up; it listens some moments before.
pub const UP: &str = "CoreDNS-";
